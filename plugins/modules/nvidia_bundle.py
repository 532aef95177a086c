#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_bundle
short_description: Have exactly this NVIDIA driver, or this CUDA toolkit, in a container
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Runs inside the container. What is there is compared with what should be, file by file and by hash; that a file
    exists proves nothing.
  - A driver is one folder below O(folder). It is unpacked beside the one that is in use and takes its place by one
    rename, so a run that fails or is killed leaves what was there before.
  - The loader looks there first. What other drivers left in the system's folders is removed afterwards, by removing the
    distribution's packages that it belongs to, or file by file where it belongs to none.
  - Toolkits lie beside each other, as C(/usr/local/cuda-13.0); C(/usr/local/cuda) is a link to the default one.
attributes:
  check_mode:
    description: Tells the steps of the plan that the real run executes.
    support: full
  diff_mode:
    description: What is in use, before and after.
    support: full
  idempotence:
    description: What is as it should be is not touched. Files are hashed when they look different from the last time.
    support: full
options:
  kind:
    description: What it is.
    type: str
    choices: [driver, toolkit]
    default: driver
  version:
    description: Its version.
    type: str
    required: true
  digest:
    description:
      - SHA-256 of its manifest, as M(phoenix.hypervisor.nvidia_store) returns it.
      - May be empty in check mode, for an archive that isn't there yet.
    type: str
    required: true
  archive:
    description:
      - The archive inside the container, needed where something has to be unpacked. It is removed afterwards.
    type: path
    default: ""
  folder:
    description: Where drivers and toolkits are unpacked.
    type: path
    default: /opt/nvidia
  default:
    description: Whether C(/usr/local/cuda) is to be this toolkit.
    type: bool
    default: true
  gpus:
    description: Numbers of the GPUs whose device nodes the container must have.
    type: list
    elements: int
    default: []
"""

EXAMPLES = r"""
- name: The node has an archive
  phoenix.hypervisor.nvidia_store:
  delegate_to: pve
  register: driver

- name: It is inside
  phoenix.hypervisor.pct_push:
    vmid: 921
    src: "{{ driver.archive }}"
    dest: /var/tmp/driver.tar
  delegate_to: pve

- name: It is what programs get
  phoenix.hypervisor.nvidia_bundle:
    version: "{{ driver.version }}"
    digest: "{{ driver.digest }}"
    archive: /var/tmp/driver.tar
"""

RETURN = r"""
plan:
  description: What was done, or with check mode would be, one sentence each.
  returned: success
  type: list
  elements: str
  sample: ["unpack NVIDIA driver 580.95.05 (driver-580.95.05-0123456789ab)"]
unpack:
  description: Whether the archive is, or was, needed.
  returned: success
  type: bool
before:
  description: What was in use before, C("") for nothing.
  returned: success
  type: str
  sample: driver-575.64.03-ba9876543210
name:
  description: What is in use now.
  returned: success
  type: str
  sample: driver-580.95.05-0123456789ab
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import nvidia_driver
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_driver import (
    DRIVER,
    LOADER,
    MANIFEST,
    PROGRAMS,
    PRUNE,
    PURGE,
    REMOVE,
    SETTINGS,
    SWITCH,
    UNPACK,
    NvidiaError,
    Seen,
    Wanted,
)

# Read before all other folders, whatever they are called.
LOADER_CONF = "/etc/ld.so.conf.d/000-phoenix-nvidia.conf"
# Where other ways of installing put a driver.
FOLDERS = (
    "/usr/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/lib/nvidia/current", "/usr/lib64",
    "/usr/lib", "/usr/local/lib",
)  # fmt: skip
# Not /usr/local/bin, which `pct exec` doesn't look into.
BIN = "/usr/bin"
CUDA = "/usr/local"
_BLOCK = 1 << 20
_CACHE = ".seen.json"
_INCOMING = ".incoming-"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Task:
    """One call: what it is for, and what comes of it."""

    def __init__(self, module: AnsibleModule) -> None:
        params = module.params
        self.module = module
        self.kind = params["kind"]
        self.folder = params["folder"].rstrip("/")
        self.archive = params["archive"]
        self.is_default = params["default"]
        self.wanted = Wanted(self.kind, params["version"], params["digest"])
        self.home = f"{self.folder}/{self.wanted.name}"
        self.is_driver = self.kind == DRIVER
        self.link = f"{self.folder}/driver" if self.is_driver else f"{CUDA}/cuda-{params['version']}"

    def run(self) -> dict:
        """Return what the module returns."""
        self.check_gpus()
        if not re.fullmatch("[0-9a-f]{64}", self.wanted.digest):
            return self.unknown()
        seen = self.look()
        steps = nvidia_driver.plan(self.wanted, seen, self.link)
        names = [step.name for step in steps]
        if not self.module.check_mode:
            self.act(names, seen)
        after = "" if not steps else f"{self.wanted.name}\n"
        before = "" if not steps else f"{seen.live}\n" if seen.live else ""
        return {
            "changed": bool(steps),
            "plan": [step.text for step in steps],
            "unpack": UNPACK in names,
            "before": seen.live,
            "name": self.wanted.name,
            "diff": {
                "before_header": self.link,
                "after_header": self.link,
                "before": before + "".join(f"{path}\n" for path in (*seen.packages, *seen.files)),
                "after": after,
            },
        }

    def unknown(self) -> dict:
        """Return what is known before the archive has been made."""
        if not self.module.check_mode:
            raise NvidiaError("digest must be 64 hexadecimal digits")
        text = f"unpack {nvidia_driver.TITLES[self.kind]} {self.wanted.version}, once the node has it"
        return {"changed": True, "plan": [text], "unpack": True, "before": self.live(), "name": "", "diff": {}}

    def check_gpus(self) -> None:
        """Make sure that the GPUs that the container was given are there."""
        missing = [number for number in self.module.params["gpus"] if not os.path.exists(f"/dev/nvidia{number}")]
        if missing:
            names = ", ".join(f"/dev/nvidia{number}" for number in missing)
            raise NvidiaError(
                f"the container was given GPU {', '.join(map(str, missing))}, and has no {names}: it was taken away on "
                "the node, or came after the container started. See whether the node has it (nvidia-smi), then restart "
                "the container; or correct gpu_assignment"
            )

    # --- what is there ----------------------------------------------------------------------------------------------

    def look(self) -> Seen:
        """Return what the container has."""
        if not self.is_driver:
            self.check_links()
        packages, files = self.foreign() if self.is_driver else ([], [])
        prefix = "driver-" if self.is_driver else f"toolkit-{self.wanted.version}-"
        there = sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []
        return Seen(
            live=self.live(),
            problems=tuple(self.problems()),
            settings=tuple(path for path, _target in self.settings()),
            packages=tuple(packages),
            files=tuple(files),
            others=tuple(name for name in there if name.startswith((prefix, _INCOMING + prefix))),
            loader=self.loader() if self.is_driver else "",
        )

    def live(self) -> str:
        """Return the name of what is in use."""
        try:
            return os.path.basename(os.readlink(self.link))
        except OSError:
            return ""

    def problems(self) -> list[str]:
        """Return what is wrong with the wanted folder."""
        try:
            with open(f"{self.home}/{MANIFEST}", encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError):
            return ["not there"] if not os.path.isdir(self.home) else ["its manifest is missing"]
        if nvidia_driver.digest(text) != self.wanted.digest:
            return ["its manifest is another one"]
        content = nvidia_driver.parse_manifest(text)
        known, now, wrong = self.cache(), {}, []
        for path, file in content["files"].items():
            problem = self.file_problem(path, file, known, now)
            if problem:
                wrong.append(problem)
        for path, target in content["links"].items():
            try:
                right = os.readlink(f"{self.home}/{path}") == target
            except OSError:
                right = False
            if not right:
                wrong.append(f"{path} is no link to {target}")
        if now != known and not wrong and not self.module.check_mode:
            self.write(f"{self.home}/{_CACHE}", json.dumps(now, sort_keys=True))
        return wrong

    def file_problem(self, path: str, file: nvidia_driver.File, known: dict, now: dict) -> str:
        """Return what is wrong with a file. One that looks as it did when it was right isn't read."""
        try:
            there = os.lstat(f"{self.home}/{path}")
            if not stat.S_ISREG(there.st_mode):
                return f"{path} is no file"
            if there.st_size != file.size:
                return f"{path} has {there.st_size} bytes in place of {file.size}"
            if bool(there.st_mode & 0o111) != file.executable:
                return f"{path} has another mode"
            # Nobody can set ctime, and a write sets it.
            now[path] = [there.st_size, there.st_mtime_ns, there.st_ctime_ns, there.st_ino]
            if known.get(path) != now[path] and self.module.sha256(f"{self.home}/{path}") != file.sha256:
                return f"{path} has another content"
        except FileNotFoundError:
            return f"{path} is missing"
        return ""

    def cache(self) -> dict:
        """Return how files looked when they were right."""
        with contextlib.suppress(OSError, ValueError):
            with open(f"{self.home}/{_CACHE}", encoding="utf-8") as file:
                found = json.load(file)
            return found if isinstance(found, dict) else {}
        return {}

    def settings(self) -> list[tuple[str, str]]:
        """Return the paths around the folder that aren't as they should be, and what they should link to or hold."""
        if not self.is_driver:
            path, target = f"{CUDA}/cuda", f"cuda-{self.wanted.version}"
            return [(path, target)] if self.is_default and read_link(path) != target else []
        wrong = []
        text = f"{self.link}/lib\n"
        try:
            with open(LOADER_CONF, encoding="utf-8") as file:
                right = file.read() == text
        except OSError:
            right = False
        if not right:
            wrong.append((LOADER_CONF, text))
        path, target = self.program()
        if read_link(path) != target:
            wrong.append((path, target))
        return wrong

    def program(self) -> tuple[str, str]:
        """Return where people find nvidia-smi, and what that links to."""
        return f"{BIN}/{PROGRAMS[0]}", f"{self.link}/bin/{PROGRAMS[0]}"

    def is_ours(self, path: str) -> bool:
        """Return whether a path is the link that is made here."""
        return (path, read_link(path)) == self.program()

    def check_links(self) -> None:
        """Make sure that nobody else's toolkit is where the links go."""
        for path in (self.link, *([f"{CUDA}/cuda"] if self.is_default else [])):
            if os.path.lexists(path) and not os.path.islink(path):
                raise NvidiaError(
                    f"{path} is a folder that wasn't made here. Move it away, or use it and set "
                    "nvidia_toolkit_source: none"
                )

    def foreign(self) -> tuple[list[str], list[str]]:
        """Return what other drivers left: packages, and files that belong to none."""
        found = []
        for folder in (*FOLDERS, BIN):
            with contextlib.suppress(OSError):
                for name in sorted(os.listdir(folder)):
                    is_program = name in PROGRAMS
                    if is_program == (folder == BIN) and nvidia_driver.foreign(name):
                        found.append(f"{folder}/{name}")
        found = [path for path in found if not self.is_ours(path)]
        # On a system with /lib in /usr, a folder may be there twice.
        unique = {(os.path.realpath(os.path.dirname(path)), os.path.basename(path)): path for path in found}
        found = sorted(unique.values())
        if not found:
            return [], []
        owners = self.owners(found)
        return sorted(set(owners.values())), [path for path in found if path not in owners]

    def owners(self, paths: list[str]) -> dict[str, str]:
        """Return the distribution's package that each file belongs to."""
        query = self.module.get_bin_path("dpkg-query")
        if not query:
            return {}
        _rc, stdout, _stderr = self.module.run_command([query, "-S", *paths])
        found = {}
        for line in stdout.splitlines():
            package, colon, path = line.rpartition(": ")
            if colon and not line.startswith("diversion by"):
                found[path] = package.partition(",")[0].partition(":")[0]
        return found

    def loader(self) -> str:
        """Return which library a program gets for libcuda.so.1."""
        command = self.module.get_bin_path("ldconfig", opt_dirs=["/sbin", "/usr/sbin"])
        if not command:
            raise NvidiaError("the container has no ldconfig: NVIDIA's libraries need glibc (Debian, Ubuntu)")
        _rc, stdout, _stderr = self.module.run_command([command, "-p"])
        match = re.search(r"^\s*libcuda\.so\.1 \([^)]*x86-64[^)]*\) => (\S+)", stdout, re.MULTILINE)
        return match[1] if match else ""

    # --- what is done -----------------------------------------------------------------------------------------------

    def act(self, names: list[str], seen: Seen) -> None:
        """Do the steps of the plan."""
        actions = {
            UNPACK: self.unpack,
            SWITCH: lambda: replace_link(self.link, self.link_target()),
            SETTINGS: self.set,
            PURGE: lambda: self.purge(seen.packages),
            REMOVE: lambda: self.remove(seen.files),
            LOADER: self.load,
            PRUNE: lambda: self.prune(seen.others),
        }
        for name in names:
            actions[name]()
        if self.archive:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.archive)

    def link_target(self) -> str:
        """Return what the link holds: beside it for a driver, so that the folder may be mounted elsewhere."""
        return self.wanted.name if self.is_driver else self.home

    def unpack(self) -> None:
        """Unpack the archive beside what is there, and give it its name when it is whole."""
        if not self.archive:
            raise NvidiaError(f"{self.wanted.name} has to be unpacked, and no archive was given")
        incoming = f"{self.folder}/{_INCOMING}{self.wanted.name}"
        shutil.rmtree(incoming, ignore_errors=True)
        os.makedirs(incoming, 0o755)
        try:
            self.unpack_to(incoming)
            if os.path.isdir(self.home):
                old = tempfile.mkdtemp(prefix=".old-", dir=self.folder)
                os.rename(self.home, f"{old}/it")
                os.rename(incoming, self.home)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(incoming, self.home)
        except (tarfile.TarError, EOFError) as error:
            raise NvidiaError(
                f"{self.archive} is damaged ({error}). Remove the archive of that name in the node's store, and run "
                "again"
            ) from None
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def unpack_to(self, incoming: str) -> None:
        """Unpack the archive to an empty folder, and make sure that it is what it should be."""
        again = "Remove the archive of that name in the node's store, and run again"
        with tarfile.open(self.archive, "r:") as archive:
            head = archive.next()
            if head is None or head.name != MANIFEST or not head.isreg():
                raise NvidiaError(f"{self.archive} has no manifest at its beginning. {again}")
            text = archive.extractfile(head).read().decode("utf-8", "replace")
            if nvidia_driver.digest(text) != self.wanted.digest:
                raise NvidiaError(f"{self.archive} is another archive than {self.wanted.name}. {again}")
            content = nvidia_driver.parse_manifest(text)
            left = dict(content["files"])
            while (member := archive.next()) is not None:
                file = left.pop(member.name, None)
                if file is None or not member.isreg():
                    raise NvidiaError(f"{self.archive} has {member.name}, and its manifest doesn't. {again}")
                found = copy(archive.extractfile(member), f"{incoming}/{member.name}", file.executable)
                if found != file.sha256:
                    raise NvidiaError(f"{self.archive}: {member.name} isn't what it should be. {again}")
            if left:
                raise NvidiaError(f"{self.archive} has no {next(iter(left))}. {again}")
        for path, target in content["links"].items():
            os.makedirs(os.path.dirname(f"{incoming}/{path}"), 0o755, exist_ok=True)
            os.symlink(target, f"{incoming}/{path}")
        self.write(f"{incoming}/{MANIFEST}", text)

    def set(self) -> None:
        """Set what is around the folder."""
        for path, value in self.settings():
            if path == LOADER_CONF:
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                self.write(path, value)
            else:
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                replace_link(path, value)

    def purge(self, packages: tuple[str, ...]) -> None:
        """Remove packages with libraries of a driver."""
        command = self.module.get_bin_path("apt-get", required=True)
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        rc, stdout, stderr = self.module.run_command(
            [command, "-qy", "-o", "DPkg::Lock::Timeout=120", "purge", *packages], environ_update=environment
        )
        if rc:
            said = " / ".join((stderr or stdout).strip().splitlines()[-3:])
            raise NvidiaError(
                f"the packages {', '.join(packages)} have libraries of another driver and can't be removed: {said}. "
                "The new driver is in its place already; remove them by hand and run again"
            )

    def remove(self, files: tuple[str, ...]) -> None:
        """Remove files of a driver that belong to no package."""
        for path in files:
            try:
                if not self.is_ours(path):
                    os.unlink(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise NvidiaError(
                        f"{path} is mounted from the node (lxc.mount.entry in the container's raw lines); take that "
                        "out of lxc_options, since libraries that are mounted change under running servers"
                    ) from None
                raise

    def load(self) -> None:
        """Have the loader look again."""
        # A package that went may have taken along what was put in the place of its file.
        self.set()
        command = self.module.get_bin_path("ldconfig", required=True, opt_dirs=["/sbin", "/usr/sbin"])
        rc, _stdout, stderr = self.module.run_command([command])
        found = self.loader()
        if rc or not found.startswith(f"{self.link}/"):
            raise NvidiaError(
                f"programs would still get {found or 'no libcuda.so.1'} in place of {self.link}/lib/libcuda.so.1: "
                f"{stderr.strip() or 'another file in /etc/ld.so.conf.d comes first'}"
            )

    def prune(self, others: tuple[str, ...]) -> None:
        """Remove what isn't used any more. What a program has open stays until it ends."""
        for name in others:
            if name != self.wanted.name:
                shutil.rmtree(f"{self.folder}/{name}", ignore_errors=True)

    def write(self, path: str, text: str) -> None:
        """Write a small file in one step, readable for everyone."""
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".phoenix-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)


def read_link(path: str) -> str:
    """Return what a link holds, C("") where there is none."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def replace_link(path: str, target: str) -> None:
    """Make a link take the place of whatever has its name, in one step."""
    temporary = f"{path}.phoenix-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, path)


def copy(source, path: str, executable: bool) -> str:
    """Write a file from what can be read, and return its digest."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    hashed = hashlib.sha256()
    with open(path, "wb") as file:
        size = 0
        for block in iter(lambda: source.read(_BLOCK), b""):
            hashed.update(block)
            file.write(block)
            size += len(block)
        os.fchmod(file.fileno(), 0o755 if executable else 0o644)
        # A library that is empty after a power failure would only be found when it is used.
        if size >= _BLOCK:
            file.flush()
            os.fsync(file.fileno())
    return hashed.hexdigest()


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "choices": ["driver", "toolkit"], "default": "driver"},
            "version": {"type": "str", "required": True},
            "digest": {"type": "str", "required": True},
            "archive": {"type": "path", "default": ""},
            "folder": {"type": "path", "default": "/opt/nvidia"},
            "default": {"type": "bool", "default": True},
            "gpus": {"type": "list", "elements": "int", "default": []},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    try:
        result = Task(module).run()
    except NvidiaError as error:
        text = str(error)
        module.fail_json(msg=text if text.endswith(".") else f"{text}.")
    except OSError as error:
        where = error.filename or module.params["folder"]
        if error.errno in _FULL:
            module.fail_json(msg=f"The container's disk is full ({where}). Give it more (storage_size_gb), run again.")
        module.fail_json(msg=f"{where} inside the container: {error.strerror or error}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
