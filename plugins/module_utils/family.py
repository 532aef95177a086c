# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ends all that a command inside a container has started, from the node.

Ending C(lxc-attach) does not end what it started inside (pct.md, "exec"). So a command gets a random mark in its
environment, which its children inherit, and the node finds the processes that carry it in C(/proc).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from ansible_collections.phoenix.hypervisor.plugins.module_utils.environment import MARK

_GRACE = 5.0
_PAUSE = 0.05


def members(mark: str, known: Mapping = MappingProxyType({}), proc: str = "/proc") -> dict[int, int]:
    """Processes that carry a mark, those that are known, and all their descendants: PID and clock tick of the start.

    :param known: members that were found before, by PID and start: they may have no mark, and no parent any more
    """
    wanted = f"{MARK}={mark}".encode()
    started, parents, found = {}, {}, set()
    for pid in map(int, filter(str.isdigit, os.listdir(proc))):
        try:
            parents[pid], started[pid] = _parent_and_start(pid, proc)
            with open(f"{proc}/{pid}/environ", "rb") as environ:
                if (pid, started[pid]) in known or wanted in environ.read().split(b"\0"):
                    found.add(pid)
        except OSError:
            continue
    # A child that dropped its environment (su, env -i) is known by its parent.
    while True:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        if not children:
            return {pid: started[pid] for pid in found if pid in started}
        found |= children


def _parent_and_start(pid: int, proc: str = "/proc") -> tuple[int, int]:
    with open(f"{proc}/{pid}/stat", "rb") as stat:
        # A name may have blanks and brackets of its own; what follows the last bracket has none.
        fields = stat.read().rpartition(b")")[2].split()
    return int(fields[1]), int(fields[19])


def end(mark: str, grace: float = _GRACE) -> None:
    """End all members: first asked to, after a while killed.

    Each is held by a PID file descriptor from the moment it is found, so that no signal meets another process that got
    its PID meanwhile, and none is lost when the parent that it is known by ends first.
    """
    held: dict[tuple[int, int], int] = {}
    try:
        # All are stopped before one is killed: a shell would start its next command when its last one dies.
        for number in (signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
            if _signal_all(mark, held, number, time.monotonic() + grace):
                return
    finally:
        for pidfd in held.values():
            os.close(pidfd)


def _signal_all(mark: str, held: dict, number: int, deadline: float) -> bool:
    """Send a signal to all members, also to those that are born meanwhile. True when none is left.

    Stopping them is done when no other is found.
    """
    told: set = set()
    while True:
        for member in members(mark, held).items():
            if member not in held:
                _hold(held, *member)
        new = held.keys() - told
        for member in new:
            told.add(member)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held[member], number)
        time.sleep(_PAUSE)
        for member in [member for member, pidfd in held.items() if select.select([pidfd], [], [], 0)[0]]:
            os.close(held.pop(member))
        if not held and not members(mark):
            return True
        if time.monotonic() > deadline or (number == signal.SIGSTOP and not new):
            return False


def _hold(held: dict, pid: int, start: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        same = _parent_and_start(pid)[1] == start
    except OSError:
        same = False
    if same:
        held[pid, start] = pidfd
    else:
        os.close(pidfd)


@contextlib.contextmanager
def guarded(mark: str) -> Iterator[None]:
    """Members end with this process, also when it is killed: Ansible ends a task of C(async) that way."""
    alive, ours = os.pipe()
    guard = os.fork()
    if guard == 0:
        _guard(mark, alive)
    os.close(alive)
    try:
        yield
    finally:
        # Its pipe said something: all is well.
        os.write(ours, b".")
        os.close(ours)
        os.waitpid(guard, 0)


def _guard(mark: str, alive: int) -> None:
    try:
        # On its own: signals to the module's group pass by, and nothing of the module's is held open.
        os.setsid()
        for number in map(int, os.listdir("/proc/self/fd")):
            if number != alive:
                with contextlib.suppress(OSError):
                    os.close(number)
        if not os.read(alive, 1):
            end(mark)
    finally:
        os._exit(0)
