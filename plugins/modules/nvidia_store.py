#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_store
short_description: Have NVIDIA's driver libraries, or a CUDA toolkit, on the node for its containers
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Looks which version the node's kernel driver has, and makes sure that the store on the node has the user-space
    driver of exactly this version, or a CUDA toolkit, as one archive whose files are hashed.
  - What is there is taken without asking anybody, so the second container downloads nothing.
  - What is downloaded is checked before it is unpacked. A runfile by its SHA-256 and by its own checksum, packages by
    the signature of their repository. Only files are taken; nothing of NVIDIA's is run but the unpacking of a runfile,
    and there is never a kernel module among them.
  - Runs on the node, as root. Proxies and a CA are taken from the environment of the task (C(HTTPS_PROXY),
    C(NO_PROXY), C(SSL_CERT_FILE)).
attributes:
  check_mode:
    description: Tells from where it would come. What has to be downloaded isn't known then, nor is RV(digest).
    support: full
  diff_mode:
    description: The archives in the store.
    support: full
  idempotence:
    description: An archive of the version is not made again, unless the node's own libraries it came from are others.
    support: full
options:
  kind:
    description: What it is.
    type: str
    choices: [driver, toolkit]
    default: driver
  version:
    description:
      - The toolkit's version, such as V(13.0). When the repository hasn't it, the next newer one of the same major
        version is taken.
      - A driver's version is the kernel driver's, whatever is declared. Another one here is told of in RV(notes).
    type: str
    default: ""
  method:
    description:
      - Where it comes from. V(node) are the node's own libraries (drivers only), V(runfile) is NVIDIA's self-extracting
        archive, V(apt) its apt repository.
      - V(auto) tries V(node), V(runfile), V(apt) in this order, and says in RV(reasons) why one was left out.
    type: str
    choices: [auto, node, runfile, apt]
    default: auto
  runfile_url:
    description: URL of the runfile; C(file://) for one on the node.
    type: str
    default: ""
  runfile_sha256:
    description: Its SHA-256. Without it no runfile is taken.
    type: str
    default: ""
  repo_url:
    description: URL of the flat apt repository that has C(InRelease); NVIDIA's or a mirror of it.
    type: str
    default: ""
  repo_key_url:
    description: URL of the key that it is signed with. By default NVIDIA's names below O(repo_url) are tried.
    type: str
    default: ""
  repo_key_fingerprints:
    description: Fingerprints of the keys that are trusted, of 40 digits. NVIDIA's two by default.
    type: list
    elements: str
    default: [EB693B3035CD5710E231E123A4B469963BF863CC, 02182E60104FCDC26EAE1B8597A5D4CB8793F200]
  packages:
    description:
      - Other packages than the default ones. C({branch}) in a name stands for the driver's first number, C({v}) for the
        toolkit's version with a dash.
    type: list
    elements: str
    default: []
  store:
    description: The folder on the node.
    type: path
    default: /var/lib/phoenix-hypervisor/nvidia
  keep:
    description: How many archives of a kind stay.
    type: int
    default: 3
  version_file:
    description: Where the kernel driver says its version.
    type: path
    default: /proc/driver/nvidia/version
  node_root:
    description: Below which folder the node's own libraries are looked for.
    type: path
    default: /
  wait:
    description: Seconds to wait for another run that is at work in the store.
    type: int
    default: 3600
"""

EXAMPLES = r"""
- name: The driver that fits the node's kernel, from wherever it can be had
  phoenix.hypervisor.nvidia_store:
    repo_url: https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/
  delegate_to: pve
  register: driver

- name: A CUDA toolkit
  phoenix.hypervisor.nvidia_store:
    kind: toolkit
    version: "13.0"
    method: apt
    repo_url: https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/
  delegate_to: pve
"""

RETURN = r"""
version:
  description: The version of the driver or the toolkit.
  returned: success
  type: str
  sample: 580.95.05
name:
  description: The name of the archive, C("") in check mode where it isn't there yet.
  returned: success
  type: str
  sample: driver-580.95.05-0123456789ab
digest:
  description: SHA-256 of its manifest, for M(phoenix.hypervisor.nvidia_bundle).
  returned: success
  type: str
archive:
  description: Its path on the node.
  returned: success
  type: str
  sample: /var/lib/phoenix-hypervisor/nvidia/driver-580.95.05-0123456789ab.tar
source:
  description: Where it came from.
  returned: success
  type: str
  sample: node
reasons:
  description: Why it came from there and not from elsewhere, a sentence each.
  returned: success
  type: list
  elements: str
notes:
  description: What is to be corrected in the declaration, a sentence each.
  returned: success
  type: list
  elements: str
steps:
  description: What was done, or with check mode would be.
  returned: success
  type: list
  elements: str
downloaded:
  description: Bytes that were downloaded.
  returned: success
  type: int
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import nvidia_driver, nvidia_repository, nvidia_store
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_driver import (
    APT,
    DRIVER,
    NODE,
    RUNFILE,
    NvidiaError,
    Source,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_store import Store


class Task:
    """One call: what it is for, and what comes of it."""

    def __init__(self, params: dict, check: bool) -> None:
        self.params = params
        self.check = check
        self.kind = params["kind"]
        self.steps: list[str] = []
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self.store = Store(params["store"], self.steps.append)
        self.source = Source(
            params["method"], params["runfile_url"], params["runfile_sha256"], params["repo_url"]
        )

    def run(self) -> dict:
        """Return what the module returns."""
        version = self.version()
        try:
            methods = self.methods(version)
        except NvidiaError:
            record = self.there(version, [])
            if record is None:
                raise
            return self.result(record, [])
        # A run that has nothing to do leaves no trace, and waits for nobody.
        record = self.there(version, methods)
        if record is not None:
            return self.result(record, [])
        if self.check:
            methods = self.likely(methods, version)
            self.steps.append(f"make {nvidia_driver.TITLES[self.kind]} {version} from {methods[0]}")
            return self.result({"version": version, "source": methods[0]}, [])
        with self.store.locked(self.params["wait"]):
            record = self.there(version, methods)
            if record is not None:
                return self.result(record, [])
            before = [each["name"] for each in self.store.records(self.kind)]
            record = self.make(version, methods)
            gone = self.store.prune(self.kind, self.params["keep"], record["name"])
            self.steps += [f"removed {name}" for name in gone]
        return self.result(record, before)

    def version(self) -> str:
        """Return the version that is wanted."""
        declared = self.params["version"]
        if self.kind != DRIVER:
            if not declared:
                raise NvidiaError("version is needed for a toolkit")
            return declared
        kernel = nvidia_store.read_version(self.params["version_file"])
        note = nvidia_driver.differs(declared, kernel)
        self.notes += [note] if note else []
        return kernel

    def methods(self, version: str) -> list[str]:
        """Return the methods to try."""
        if self.kind == DRIVER:
            methods, reasons = nvidia_driver.methods(self.source, version)
            self.reasons += [f"not from {reason}" for reason in reasons]
            return methods
        if self.source.method == NODE:
            raise NvidiaError("a toolkit comes from a runfile or from an apt repository, not from the node")
        runfile = "its URL is not set" if not self.source.runfile_url else nvidia_driver.sha256_problem(
            self.source.runfile_sha256, "nvidia_toolkit_runfile_sha256"
        )  # fmt: skip
        problems = {RUNFILE: runfile, APT: "" if self.source.repo_url else "nvidia_repo_url is not set"}
        wanted = [self.source.method] if self.source.method != "auto" else [RUNFILE, APT]
        methods = [method for method in wanted if not problems[method]]
        said = [f"{method}: {problems[method]}" for method in wanted if problems[method]]
        if not methods:
            raise NvidiaError(f"CUDA toolkit {version} can't be had: {'; '.join(said)}.")
        self.reasons += [f"not from {reason}" for reason in said]
        return methods

    def there(self, version: str, methods: list[str]) -> dict | None:
        """Return what is known of an archive that is there and still right."""
        params = self.params
        records = self.store.records(self.kind)
        for record in records:
            origin, exact = record["origin"], record["version"] == version
            # The repository may have had a newer minor version only.
            if not exact and not (self.kind != DRIVER and origin.get("wanted") == version):
                continue
            if record["source"] not in methods:
                continue
            if record["source"] == NODE and not self.is_nodes(origin, version):
                continue
            if record["source"] == RUNFILE and origin.get("sha256") != self.source.runfile_sha256.lower():
                continue
            if record["source"] == APT and origin.get("asked", []) != params["packages"]:
                continue
            return record
        kept = [record for record in records if (record["source"], record["version"]) == (RUNFILE, version)]
        return kept[0] if kept and self.is_for_later(version) else None

    def is_for_later(self, version: str) -> bool:
        """Return whether the declared runfile is another driver's, so that it says nothing of the one that is kept."""
        named = nvidia_driver.url_version(self.source.runfile_url)
        if self.kind != DRIVER or self.source.method not in ("auto", RUNFILE) or named in ("", version):
            return False
        note = (
            f"nvidia_runfile_url is that of {named}, and the node's kernel driver is {version}: the containers keep "
            f"{version}, from an earlier runfile, until the node has {named}"
        )
        self.notes += [] if note in self.notes else [note]
        return True

    def is_nodes(self, origin: dict, version: str) -> bool:
        """Return whether an archive has what the node has of this version, or had until its driver was upgraded."""
        root = self.params["node_root"]
        if origin.get("fingerprint") == nvidia_store.node_fingerprint(version, root):
            return True
        problem = nvidia_store.node_problem(version, root)
        if not problem:
            return False
        # Between an upgrade and the reboot. The containers go on with what the kernel still has.
        note = (
            f"the node's kernel still has driver {version}, and {problem}. The containers keep {version}; load the new "
            "driver (reboot the node), and run again"
        )
        self.notes += [] if note in self.notes else [note]
        return True

    def likely(self, methods: list[str], version: str) -> list[str]:
        """Return the methods that may work, as far as that can be told without asking anybody."""
        if methods[0] != NODE:
            return methods
        problem = nvidia_store.node_problem(version, self.params["node_root"])
        if problem and len(methods) == 1:
            said = "; ".join([f"node: {problem}", *(reason.partition("not from ")[2] for reason in self.reasons)])
            raise NvidiaError(f"NVIDIA driver {version} can't be had: {said}.")
        if problem:
            self.reasons.append(f"not from node: {problem}")
        return methods[1:] if problem else methods

    def make(self, version: str, methods: list[str]) -> dict:
        """Make the archive by the first method that works."""
        failed = []
        for method in methods:
            try:
                found, fill = self.filler(method, version)
                record = self.store.make(self.kind, found, method, fill)
            except NvidiaError as error:
                failed.append(f"{method}: {error}")
                continue
            except OSError as error:
                raise NvidiaError(self.store.problem(error)) from None
            self.reasons += [f"not from {reason}" for reason in failed]
            self.steps.append(f"made {record['name']} from {method}")
            return record
        title = nvidia_driver.TITLES[self.kind]
        failed += [reason.partition("not from ")[2] for reason in self.reasons]
        raise NvidiaError(f"{title} {version} can't be had: {'; '.join(failed)}. Nothing was installed.")

    def filler(self, method: str, version: str):
        """Return the version that is made, and what fills it."""
        params = self.params
        if method == NODE:
            return version, self.store.from_node(version, params["node_root"])
        if method == RUNFILE:
            return version, self.store.from_runfile(self.kind, version, self.source)
        keys, key_url = params["repo_key_fingerprints"], params["repo_key_url"]
        found = version
        if self.kind != DRIVER:
            base = self.source.repo_url.rstrip("/") + "/"
            try:
                found = nvidia_repository.toolkit_version(self.store.index(base, keys, key_url), version)
            except NvidiaError as error:
                raise NvidiaError(f"{base} {error}" if str(error).startswith("has ") else str(error)) from None
        fill = self.store.from_repository(self.kind, found, self.source, keys, key_url, params["packages"])
        return found, lambda tree: {**fill(tree), "asked": params["packages"], "wanted": version}

    def result(self, record: dict, before: list[str]) -> dict:
        """Return the result."""
        name = record.get("name", "")
        diff = {"before": "".join(f"{each}\n" for each in before), "after": ""}
        if self.steps:
            header = f"{nvidia_driver.TITLES[self.kind]} in {self.store.folder}"
            diff.update(before_header=header, after_header=header)
            after = sorted({*before, name or f"{self.kind}-{record['version']}"})
            diff["after"] = "".join(f"{each}\n" for each in after)
        return {
            "changed": bool(self.steps),
            "version": record["version"],
            "name": name,
            "digest": record.get("digest", ""),
            "archive": self.store.archive(name) if name else "",
            "source": record["source"],
            "reasons": self.reasons,
            "notes": self.notes,
            "steps": self.steps,
            "downloaded": self.store.downloaded,
            "diff": diff,
        }


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "choices": ["driver", "toolkit"], "default": "driver"},
            "version": {"type": "str", "default": ""},
            "method": {"type": "str", "choices": ["auto", "node", "runfile", "apt"], "default": "auto"},
            "runfile_url": {"type": "str", "default": ""},
            "runfile_sha256": {"type": "str", "default": ""},
            "repo_url": {"type": "str", "default": ""},
            "repo_key_url": {"type": "str", "default": "", "no_log": False},
            "repo_key_fingerprints": {
                "type": "list",
                "elements": "str",
                "default": list(nvidia_repository.FINGERPRINTS),
                "no_log": False,
            },
            "packages": {"type": "list", "elements": "str", "default": []},
            "store": {"type": "path", "default": nvidia_store.DEFAULT},
            "keep": {"type": "int", "default": 3},
            "version_file": {"type": "path", "default": nvidia_store.VERSION_FILE},
            "node_root": {"type": "path", "default": "/"},
            "wait": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    task = Task(module.params, module.check_mode)
    try:
        result = task.run()
    except NvidiaError as error:
        text = str(error)
        module.fail_json(msg=text if text.endswith(".") else f"{text}.", reasons=task.reasons, notes=task.notes)
    except OSError as error:
        module.fail_json(msg=f"{task.store.problem(error)}.")
    for note in result["notes"]:
        module.warn(note)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
