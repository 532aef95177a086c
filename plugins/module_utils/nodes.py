# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two ways to a node: its files and C(pct) where a module runs on it, its REST API from anywhere else.

L(Node) is what both are. A module asks L(connect) for one and doesn't care which it got.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from ansible.module_utils.basic import env_fallback
from ansible_collections.phoenix.hypervisor.plugins.module_utils import node, process
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Command
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.process import Finished

# Options of every module that can take either way (documented in doc_fragments/api.py).
ARGUMENTS = dict(
    api_host=dict(type="str"),
    api_port=dict(type="int", default=8006),
    api_user=dict(type="str", fallback=(env_fallback, ["PROXMOX_USER"])),
    api_password=dict(type="str", no_log=True, fallback=(env_fallback, ["PROXMOX_PASSWORD"])),
    api_token_id=dict(type="str", no_log=False, fallback=(env_fallback, ["PROXMOX_TOKEN_ID"])),
    api_token_secret=dict(type="str", no_log=True, fallback=(env_fallback, ["PROXMOX_TOKEN_SECRET"])),
    validate_certs=dict(type="bool", default=True),
    ca_path=dict(type="path"),
    node=dict(type="str"),
)
# Seconds for which a lock without anybody at work has to be seen before it counts as left over.
_GRACE = 3.0


class Node(Protocol):
    """A Proxmox VE node. Reading costs little; only L(run) changes anything."""

    is_local: bool

    def release(self) -> tuple:
        """Proxmox VE's release as two numbers."""

    def vmids(self) -> list[int]:
        """CTIDs of its containers, sorted."""

    def read(self, vmid: int) -> Container:
        """A container as it is. :raises NodeError: when that can't be read"""

    def storage_types(self) -> Mapping[str, str]:
        """The type of each storage by name."""

    def workers(self, vmid: int, or_clones: bool = False) -> list[str]:
        """What is at work on a container, each as a phrase.

        :param or_clones: every clone on the node counts: the task that makes a container by cloning is its source's
        """

    def flock_holder(self, vmid: int) -> str:
        """Who holds the lock on its conf file, "" for nobody."""

    def turn(self, vmid: int, timeout: float) -> AbstractContextManager:
        """Wait for this source's turn to be cloned."""

    def words(self, command: Command) -> list[str]:
        """A command as the user could give it."""

    def refusal(self, command: Command, container: Container) -> str:
        """Why this way to the node can't do a command with a container, with what to do; "" when it can."""

    def run(self, command: Command, timeout: float, digest: str = "") -> Finished:
        """Run one command to the end of its task, once nobody else is at work on its container.

        :param digest: do it only while the container's configuration is still this one
        """

    def settle(self, vmid: int, timeout: float) -> None:
        """Wait until nobody else is at work on a container. :raises NodeError: with who it is, when time is up"""


def connect(params: Mapping) -> Node:
    """The node that a module's options name.

    :raises NodeError: when there is no way to it
    """
    if params.get("api_host"):
        from ansible_collections.phoenix.hypervisor.plugins.module_utils.api import ApiNode

        return ApiNode(params)
    node.check()
    return LocalNode()


def settle(there: Node, vmid: int, timeout: float) -> None:
    """What L(Node.settle) is, for both ways: only reads while it waits."""
    end = time.monotonic() + timeout
    begun = time.monotonic()
    while True:
        container = there.read(vmid)
        holder = there.flock_holder(vmid)
        if not container.lock and not holder:
            return
        workers = there.workers(vmid)
        if time.monotonic() > end or (not holder and not workers and time.monotonic() - begun > _GRACE):
            break
        time.sleep(0.5)
    waited = time.monotonic() - begun
    if not container.lock:
        raise node.NodeError(f"CTID {vmid}: {holder}; waited {waited:.0f} s. Let it come to its end, then run again")
    if workers:
        raise node.NodeError(
            f"CTID {vmid}: CT is locked ({container.lock}) by {', '.join(workers)}; waited {waited:.0f} s. Let it come "
            "to its end, then run again"
        )
    raise node.NodeError(
        f"CTID {vmid}: CT is locked ({container.lock}), and no task of this node is at work on it: the lock was left "
        f"over. Look at the container, then remove the lock with: pct unlock {vmid}"
    )


def is_locked_out(done: Finished) -> bool:
    """Did a command fail because somebody else was at work on the container?"""
    return done.failed and bool(re.search(r"CT is locked|can't lock file|got timeout", done.stderr))


def has_changed(done: Finished) -> bool:
    """Did a command fail because the configuration isn't the one any more that it was planned on?"""
    return done.failed and "detected modified configuration" in done.stderr


def run_when_free(there: Node, command: Command, timeout: float, once) -> Finished:
    """Run a command, and again when somebody else came between the look and the lock."""
    end = time.monotonic() + timeout
    while True:
        left = max(1.0, end - time.monotonic())
        there.settle(command.vmid, left)
        done = once(left)
        if not is_locked_out(done) or time.monotonic() > end:
            return done


class LocalNode:
    """The node that the module runs on: its files, and pct."""

    is_local = True
    release = staticmethod(node.release)
    vmids = staticmethod(node.vmids)
    read = staticmethod(node.read)
    storage_types = staticmethod(node.storage_types)
    workers = staticmethod(node.workers)
    flock_holder = staticmethod(node.flock_holder)
    turn = staticmethod(node.turn)

    def words(self, command: Command) -> list[str]:
        return list(command.argv)

    def refusal(self, command: Command, container: Container) -> str:
        return ""

    def settle(self, vmid: int, timeout: float) -> None:
        settle(self, vmid, timeout)

    def run(self, command: Command, timeout: float, digest: str = "") -> Finished:
        argv = (*command.argv, "--digest", digest) if digest else command.argv
        if command.name == "unlock":
            return process.run(argv, timeout)
        return run_when_free(self, command, timeout, lambda left: process.run(argv, left))
