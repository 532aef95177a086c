# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The node's lists of tasks: /var/log/pve/tasks/active and index, in the genuine format.

``active`` has a line ``UPID saved`` for a task that runs and ``UPID saved endtime status`` for one that ended, the
newest of those only; ``index`` has ``UPID endtime status`` of every task that ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from node import settings
from node.system import write_atomically

_KEPT = 25
_UPID = re.compile(
    r"UPID:(?P<node>[^:\s]+):(?P<pid>[0-9A-F]{8}):(?P<pstart>[0-9A-F]{8,9}):(?P<starttime>[0-9A-F]{8}):"
    r"(?P<type>[^:\s]+):(?P<id>[^:\s]*):(?P<user>[^:\s]+):"
)
_LINE = re.compile(r"(\S+) ([01])(?: ([0-9A-F]{8})(?: (.+))?)?")


@dataclass(frozen=True)
class Task:
    """A task by its UPID; ``ended`` is 0 and ``status`` empty while it runs."""

    upid: str
    ended: int = 0
    status: str = ""

    @property
    def fields(self) -> dict[str, str | int]:
        """The parts of the UPID under the names of the REST API."""
        match = _UPID.fullmatch(self.upid)
        assert match is not None
        numbers = {key: int(match[key], 16) for key in ("pid", "pstart", "starttime")}
        return {"upid": self.upid, **match.groupdict(), **numbers}

    @property
    def log(self) -> Path:
        """The file with the task's output."""
        return settings.TASK_LOG / self.upid.split(":")[4][-1] / self.upid


def is_upid(text: str) -> bool:
    """Whether this is the name of a task."""
    return bool(_UPID.fullmatch(text))


def upid(kind: str, vmid: int, pid: int, started: int, user: str) -> str:
    """The name of a task: node, process, its start in clock ticks, time (hexadecimal), type, CTID, user."""
    return f"UPID:{settings.node_name()}:{pid:08X}:{start_ticks(pid):08X}:{started:08X}:{kind}:{vmid}:{user}:"


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when there is no such process.

    A worker that ended counts until its pct has written how, and has collected it.
    """
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    orphaned = words[0] == "Z" and words[1] == "1"
    return 0 if orphaned else int(words[19])


def is_running(task: Task) -> bool:
    """Whether the task's own worker lives; another process with its number started at another time."""
    return start_ticks(int(str(task.fields["pid"]))) == task.fields["pstart"] != 0


def status_in_log(task: Task) -> str:
    """How a task ended, from the last line of its log."""
    try:
        lines = task.log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return "unable to open file"
    last = lines[-1] if lines else ""
    match = re.search(r"TASK (OK|WARNINGS: \d+|ERROR: (.*))$", last)  # may follow a word without its line end
    if not match:
        return "unexpected status"
    return match[2] if match[2] is not None else match[1]


def read() -> list[Task]:
    """The lines of ``active``."""
    try:
        lines = (settings.TASK_LOG / "active").read_text().splitlines()
    except FileNotFoundError:
        return []
    matches = [match for match in map(_LINE.fullmatch, lines) if match and is_upid(match[1])]
    return [Task(match[1], int(match[3] or "0", 16), match[4] or "") for match in matches]


def finished() -> list[Task]:
    """The lines of ``index``, the newest first."""
    try:
        lines = (settings.TASK_LOG / "index").read_text().splitlines()
    except FileNotFoundError:
        return []
    parts = [line.split(" ", 2) for line in lines]
    tasks = [Task(words[0], int(words[1], 16), words[2]) for words in parts if len(words) == 3 and is_upid(words[0])]
    return tasks[::-1]


def refresh(new: str = "") -> None:
    """Bring both files up to date, with a task that has just begun: every start and end of a task does this."""
    with _alone():
        tasks = read() + ([Task(new)] if new else [])
        running = [task for task in tasks if not task.ended and is_running(task)]
        ended = [task for task in tasks if task.ended]
        for task in tasks:
            if not task.ended and task not in running:
                ended.append(Task(task.upid, int(time.time()), status_in_log(task)))
                _to_index(ended[-1])
        ended.sort(key=lambda task: task.ended)
        lines = [f"{task.upid} 0\n" for task in running]
        lines += [f"{task.upid} 1 {task.ended:08X} {task.status}\n" for task in reversed(ended[-_KEPT:])]
        write_atomically(settings.TASK_LOG / "active", "".join(lines))


def _to_index(task: Task) -> None:
    with open(settings.TASK_LOG / "index", "a") as handle:
        handle.write(f"{task.upid} {task.ended:08X} {task.status}\n")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    settings.TASK_LOG.mkdir(parents=True, exist_ok=True)
    with open(settings.TASK_LOG / ".active.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
