# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node says about its containers, read from its files: no C(pct) call (one costs a second of CPU)."""

from __future__ import annotations

import os
import re

from ansible_collections.phoenix.hypervisor.plugins.module_utils.container_plan import Container

_CONFIGS = "/etc/pve/lxc"
_STORAGES = "/etc/pve/storage.cfg"
_LOG = "/var/log/lxc/{vmid}.log"


class NodeError(Exception):
    """This is not a node, or it can't be read; the text is for the user."""


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
        with open(config_path(vmid), encoding="utf-8", errors="surrogateescape", newline="") as file:
            text = file.read()
    except FileNotFoundError:
        return Container()
    return Container(exists=True, running=vmid in running(), text=text)


def write(vmid: int, text: str, expected: str) -> None:
    """Replace a conf file's content.

    :param expected: the content that the new one was made from; another writer's change since then is not overwritten
    :raises NodeError: when the file changed meanwhile
    """
    path = config_path(vmid)
    # In place: on /etc/pve a file's owner and mode are fixed, and a name that isn't <vmid>.conf doesn't belong there.
    with open(path, "r+", encoding="utf-8", errors="surrogateescape", newline="") as file:
        if file.read() != expected:
            raise NodeError(f"{path} was changed by somebody else meanwhile; run again")
        file.seek(0)
        file.write(text)
        file.truncate()


def storage_types() -> dict[str, str]:
    """The type (C(dir), C(btrfs), C(zfspool), ...) of each storage by name."""
    try:
        with open(_STORAGES, encoding="utf-8") as file:
            return {name: kind for kind, name in re.findall(r"^(\w+):\s+(\S+)", file.read(), re.MULTILINE)}
    except FileNotFoundError:
        return {}


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
