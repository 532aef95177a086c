# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node says about its containers, read from its files: no C(pct) call (one costs a second of CPU)."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from datetime import datetime

from ansible_collections.phoenix.hypervisor.plugins.module_utils import gpu, pct_conf, pct_keys
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container_plan import Memory
from ansible_collections.phoenix.hypervisor.plugins.module_utils.gpu import Device

_CONFIGS = "/etc/pve/lxc"
_STORAGES = "/etc/pve/storage.cfg"
_MEMORY = "/etc/pve/phoenix-hypervisor"
_RELEASE = "/usr/share/perl5/PVE/pvecfg.pm"
_LOG = "/var/log/lxc/{vmid}.log"
_STARTED_WITH = "/var/lib/lxc/{vmid}/config"
_TASKS = "/var/log/pve/tasks/active"
_LOCK = "/run/lock/lxc/pve-config-{vmid}.lock"
_TURN = "/run/lock/phoenix-hypervisor-clone-{vmid}.lock"
_DEV = "/dev"
_MAJORS = "/proc/devices"
_CAPABILITIES = "/proc/driver/nvidia/capabilities"
_SUBIDS = {"u": "/etc/subuid", "g": "/etc/subgid"}


class NodeError(Exception):
    """This is not a node, or it can't be read, or it refuses; the text is for the user."""


class Changed(NodeError):
    """Somebody else changed the container's configuration since it was read."""


def config_path(vmid: int) -> str:
    """The conf file of a container."""
    return f"{_CONFIGS}/{vmid}.conf"


def check() -> None:
    """:raises NodeError: when this machine has no Proxmox VE container configuration"""
    if not os.path.isdir(_CONFIGS):
        raise NodeError(
            f"there is no {_CONFIGS} here: this is not a Proxmox VE node, or its cluster file system is down "
            "(systemctl status pve-cluster). Run on the node, or correct its address in the inventory"
        )


def release() -> tuple:
    """The node's release as two numbers; the newest known one where it can't be read.

    From pve-manager's own file: pveversion would cost a second.
    """
    found = re.search(r"sub\s+release\s*\{\s*return\s+'(\d+)\.(\d+)", _text(_RELEASE))
    return (int(found.group(1)), int(found.group(2))) if found else pct_keys.NEWEST


def running() -> set:
    """CTIDs of the containers that run: LXC's command socket is there exactly then (pct.md, "status")."""
    with open("/proc/net/unix", encoding="ascii", errors="replace") as sockets:
        return {int(vmid) for vmid in re.findall(r" @/var/lib/lxc/(\d+)/command$", sockets.read(), re.MULTILINE)}


def vmids() -> list[int]:
    """CTIDs of the containers that exist on this node."""
    check()
    return sorted(int(name[:-5]) for name in os.listdir(_CONFIGS) if re.fullmatch(r"\d+\.conf", name))


def read(vmid: int) -> Container:
    """A container as it is.

    :raises NodeError: when this is no node
    """
    check()
    try:
        with open(config_path(vmid), "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return Container()
    is_running = vmid in running()
    return Container(
        exists=True,
        running=is_running,
        text=content.decode("utf-8", "surrogateescape"),
        digest=hashlib.sha1(content, usedforsecurity=False).hexdigest(),
        started_with=_text(_STARTED_WITH.format(vmid=vmid)) or None if is_running else None,
    )


def edit_raw(
    vmid: int, digest: str, removed: Sequence[tuple[str, str]], added: Sequence[tuple[str, str]], timeout: float
) -> None:
    """Take raw lines out of a conf file's main section and put others in, under Proxmox's own lock.

    :param digest: of the content that this was planned on
    :raises Changed: when the file has another content by now
    :raises NodeError: when somebody holds the lock for longer than C(timeout) seconds
    """
    with _locked(vmid, timeout):
        container = read(vmid)
        if container.digest != digest:
            raise Changed(f"{config_path(vmid)} was changed by somebody else meanwhile; run again")
        text = pct_conf.edit_raw(container.text, removed, added)
        # In place: on /etc/pve a file's owner and mode are fixed, and a name that isn't <vmid>.conf doesn't belong
        # there.
        with open(config_path(vmid), "r+b") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.truncate()


@contextlib.contextmanager
def _locked(vmid: int, timeout: float) -> Iterator[None]:
    """Hold the lock that pct itself takes for a change."""
    path = _LOCK.format(vmid=vmid)
    with _flocked(path, timeout) as got:
        if not got:
            raise NodeError(f"CTID {vmid}: {flock_holder(vmid) or f'somebody holds {path}'}, for {timeout:g} s by now")
        yield


@contextlib.contextmanager
def turn(vmid: int, timeout: float) -> Iterator[None]:
    """Wait for this source's turn to be cloned: Proxmox refuses a second clone of it at the same time."""
    with _flocked(_TURN.format(vmid=vmid), timeout):
        yield


@contextlib.contextmanager
def _flocked(path: str, timeout: float) -> Iterator[bool]:
    """Hold the flock on a file for the time of the block; gives whether it is held."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    end = time.monotonic() + timeout
    with open(path, "a", encoding="ascii") as file:
        got = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                got = True
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    break
                time.sleep(0.1)
        yield got


def flock_holder(vmid: int) -> str:
    """Who holds the lock on a container's conf file, "" when nobody does: a phrase with the process."""
    with contextlib.suppress(OSError):
        inode = os.stat(_LOCK.format(vmid=vmid)).st_ino
        for line in _text("/proc/locks").splitlines():
            found = re.match(rf"\d+: FLOCK +\S+ +WRITE +(-?\d+) [0-9a-f]+:[0-9a-f]+:{inode} ", line)
            if found:
                return f"its conf file is locked by {_process(int(found.group(1)))}"
    return ""


def _process(pid: int) -> str:
    # Not more of its command line: what follows may be secret.
    words = _text(f"/proc/{pid}/cmdline").split("\0")
    names = [os.path.basename(word) for word in words[:3] if word and not word.startswith("-")]
    return f"process {pid}" + (f" ({' '.join(names)})" if names else "")


def workers(vmid: int, or_clones: bool = False) -> list[str]:
    """What is at work on a container at the moment, tasks of Proxmox and C(pct) calls, each as a phrase.

    :param or_clones: every clone on the node counts: the task that makes a container by cloning is its source's
    """
    found = []
    for line in _text(_TASKS).splitlines():
        # UPID:node:pid:start of the process:start time:type:vmid:user:
        fields = line.split()[0].split(":") if line.split() else []
        if len(fields) < 8 or not (fields[6] == str(vmid) or (or_clones and fields[5] == "vzclone")):
            continue
        pid = int(fields[2], 16)
        if _start_ticks(pid) == int(fields[3], 16):
            begun = datetime.fromtimestamp(int(fields[4], 16)).strftime("%H:%M:%S")
            found.append(f"the task {fields[5]} of {fields[7]} (process {pid}, since {begun})")
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        words = _text(path).rstrip("\0").split("\0")
        # Behind the interpreter, and what that was told.
        names = [os.path.basename(word) for word in words[:5]]
        command = words[names.index("pct") + 1 :] if "pct" in names else []
        # A shell in the container holds no lock.
        if str(vmid) in command[1:4] and command[0] not in ("exec", "enter", "console"):
            found.append(f"`pct {command[0]} {vmid}` (process {path.split('/')[2]})")
    return found


def _start_ticks(pid: int) -> int:
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    # One that has ended and whose parent hasn't looked yet is at work no more.
    return int(fields[19]) if len(fields) > 19 and fields[0] != "Z" else -1


def storage_types() -> dict[str, str]:
    """The type (C(dir), C(btrfs), C(zfspool), ...) of each storage by name."""
    return {name: kind for kind, name in re.findall(r"^(\w+):\s+(\S+)", _text(_STORAGES), re.MULTILINE)}


# --- what only the node can know -----------------------------------------------------------------------------------


def nvidia_devices() -> dict[str, Device]:
    """NVIDIA's device nodes by path, with their numbers as they are now."""
    majors = {name: int(number) for number, name in re.findall(r"^\s*(\d+) (nvidia\S*)$", _text(_MAJORS), re.MULTILINE)}
    parts = [path for below in ("", "ci*/") for path in glob.glob(f"{_CAPABILITIES}/gpu*/mig/gi*/{below}access")]
    instances = {gpu.capability_minor(_text(path)): gpu.instance_of(path) for path in parts}
    found = {}
    for path in sorted(glob.glob(f"{_DEV}/nvidia*") + glob.glob(f"{_DEV}/nvidia-caps/*")):
        status = os.stat(path)
        if stat.S_ISCHR(status.st_mode):
            # The driver's own word counts: a node of an earlier boot may still have another number.
            name = os.path.basename(path)
            driver = "nvidia-uvm" if "uvm" in name else "nvidia-caps" if "cap" in name else "nvidia"
            older_name = majors.get("nvidia-frontend") if driver == "nvidia" else None
            there = os.major(status.st_rdev)
            major = majors.get(driver, older_name) or there
            minor = os.minor(status.st_rdev)
            owner = instances.get(minor) if driver == "nvidia-caps" else None
            found[path.replace(_DEV, "/dev", 1)] = Device(major, minor, is_stale=major != there, gpu=owner)
    return found


def root_subids() -> dict[str, list[tuple[int, int]]]:
    """The ranges (first, how many) of ids that root may map into containers: C(u) for users, C(g) for groups."""
    found = {}
    for kind, path in _SUBIDS.items():
        ranges = re.findall(r"^(?:root|0):(\d+):(\d+)\s*$", _text(path), re.MULTILINE)
        found[kind] = [(int(first), int(count)) for first, count in ranges]
    return found


def owners(paths: Sequence[str]) -> dict[str, tuple[int, int] | None]:
    """Owner and group of each path, None for one that isn't there."""
    found: dict[str, tuple[int, int] | None] = {}
    for path in paths:
        try:
            status = os.stat(path)
            found[path] = (status.st_uid, status.st_gid)
        except OSError:
            found[path] = None
    return found


# --- what an earlier run declared ----------------------------------------------------------------------------------


def remembered(vmid: int) -> Memory:
    """What earlier runs declared of a container; nothing where they were not here."""
    try:
        data = json.loads(_text(f"{_MEMORY}/{vmid}.json"))
        raw, gpus = (tuple((str(key), str(value)) for key, value in data[name]) for name in ("raw", "gpus"))
        return Memory(raw, gpus, dict(data["mounts"]))
    except (ValueError, KeyError, TypeError):
        return Memory()


def remember(vmid: int, memory: Memory) -> None:
    """Keep what is declared for the next run. In /etc/pve, so that it is there after a migration, too."""
    path = f"{_MEMORY}/{vmid}.json"
    if memory == Memory():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    text = json.dumps({"raw": memory.raw, "gpus": memory.gpus, "mounts": dict(memory.mounts)}, sort_keys=True)
    if _text(path) == f"{text}\n":
        return
    os.makedirs(_MEMORY, exist_ok=True)
    with open(f"{path}.tmp", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{text}\n")
    os.replace(f"{path}.tmp", path)


# --- the log of a start --------------------------------------------------------------------------------------------


def log(vmid: int) -> bytes:
    """A container's start log as it is; what a start adds to it is what L(log_tail) shows."""
    try:
        with open(_LOG.format(vmid=vmid), "rb") as file:
            return file.read()
    except OSError:
        return b""


def log_tail(vmid: int, before: bytes = b"", lines: int = 12) -> str:
    """The last lines of a container's start log that say what is wrong, or its last lines; "" when there is none.

    :param before: what L(log) was before this start, which is left out; a log that was begun anew is shown whole
    """
    now = log(vmid)
    text = now[len(before) if now.startswith(before) else 0 :].decode("utf-8", "replace").splitlines()
    wrong = [line for line in text if re.search(r"\b(ERROR|WARN|FATAL)\b", line)]
    return "\n".join((wrong or text)[-lines:])


def _text(path: str) -> str:
    """A file's content, "" when there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
