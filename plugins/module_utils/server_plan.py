# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model server should be, what it is, and what is to be done about the difference. Pure functions.

The unit carries a digest of itself, the engine config and the release in the environment of its process. A running
server whose environment has another digest runs something else than what is declared, and is restarted; a run that died
between writing and restarting is repaired by the next one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DIGEST_VARIABLE = "PHOENIX_DIGEST"
# Two words in the unit's template that are known only here.
EXEC_START_WORD = "@EXEC_START@"
DIGEST_WORD = "@DIGEST@"
# The properties of the unit that `systemctl show` is asked for.
PROPERTIES = (
    "ActiveState",
    "InvocationID",
    "Job",
    "MainPID",
    "NRestarts",
    "NeedDaemonReload",
    "Result",
    "SubState",
    "UnitFileState",
)

# "…: ValueError: text", "torch.OutOfMemoryError: text", and what vLLM puts before such a line in the journal.
_EXCEPTION = re.compile(r"(?:^|\s|\])(?P<cause>(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?::\s+\S.*)?)$")
_USAGE = re.compile(r"^(?:\S+: )?error: .*|.*: error: .*")
# What the other processes say after the one that failed.
_FOLLOWING = ("engine core initialization failed", "see root cause above", "workerproc initialization failed")


class UnitError(ValueError):
    """A unit that can't be used. The text is one sentence for the user."""


@dataclass(frozen=True)
class Wanted:
    """What the server should be.

    Attributes:
        config: the text of the engine config's file.
        unit: the text of the unit.
        digest: what the running server must carry.
        user: the service's user.
    """

    config: str
    unit: str
    digest: str
    user: str


@dataclass(frozen=True)
class Seen:
    """What it is.

    Attributes:
        user: whether the user exists.
        config: the text of the engine config's file, C(None) when it isn't there.
        config_access: whether its owner and mode are right.
        unit: the text of the unit, C(None) when it isn't there.
        properties: what `systemctl show` says of the unit.
        digest: the digest that the running server carries, C("") when none runs.
    """

    user: bool
    config: str | None
    config_access: bool
    unit: str | None
    properties: Mapping[str, str]
    digest: str


@dataclass(frozen=True)
class Step:
    """One thing to do, and its sentence for the user.

    Attributes:
        action: C(user), C(config), C(unit), C(reload), C(enable), C(start) or C(restart).
    """

    action: str
    text: str


def fill_unit(template: str, exec_start: str, config: str, release: str) -> tuple[str, str]:
    """Return (unit, digest): the template with its two words filled in.

    Args:
        template: the unit with C(@EXEC_START@) and C(@DIGEST@) in it.
        exec_start: the command line, quoted for systemd.
        config: the text of the engine config's file.
        release: the name of the release that it runs on.

    Raises:
        UnitError: one of the words isn't in the template.
    """
    for word in (EXEC_START_WORD, DIGEST_WORD):
        if word not in template:
            raise UnitError(f"The unit's template has no {word} in it: without it a change would not reach the server.")
    unit = template.replace(EXEC_START_WORD, exec_start)
    digest = hashlib.sha256(json.dumps([unit, config, release]).encode()).hexdigest()[:16]
    # At once: the command line may have one of the words in it, as text.
    fill = {EXEC_START_WORD: exec_start, DIGEST_WORD: digest}
    return re.sub("|".join(map(re.escape, fill)), lambda match: fill[match[0]], template), digest


def properties(output: str) -> dict[str, str]:
    """Return name → value of what `systemctl show` printed."""
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def environment(raw: bytes) -> dict[str, str]:
    """Return the variables in the content of C(/proc/<pid>/environ)."""
    entries = raw.decode("utf-8", "surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def plan(wanted: Wanted, seen: Seen, unit_name: str, config_path: str) -> list[Step]:
    """Return what is to be done, in order; nothing when the server runs what is declared."""
    steps = []
    if not seen.user:
        steps.append(Step("user", f"add the system user {wanted.user}"))
    if seen.config != wanted.config:
        steps.append(Step("config", f"{'write' if seen.config is None else 'change'} {config_path}"))
    elif not seen.config_access:
        steps.append(Step("config", f"correct owner and mode of {config_path}"))
    new_unit = seen.unit != wanted.unit
    if new_unit:
        steps.append(Step("unit", f"{'write' if seen.unit is None else 'change'} {unit_name}"))
    if new_unit or seen.properties.get("NeedDaemonReload") == "yes":
        steps.append(Step("reload", "have systemd read its units again"))
    if seen.properties.get("UnitFileState") != "enabled":
        steps.append(Step("enable", f"enable {unit_name}"))
    if seen.properties.get("ActiveState") not in ("active", "activating", "reloading"):
        steps.append(Step("start", f"start {unit_name}"))
    elif seen.digest != wanted.digest:
        steps.append(Step("restart", f"restart {unit_name}"))
    return steps


def is_dead(now: Mapping[str, str], before: Mapping[str, str]) -> bool:
    """Return whether the server that was started, or found running, has ended.

    Args:
        now: the unit's properties.
        before: its properties when the waiting began.
    """
    if now.get("Job", "") not in ("", "0"):
        # systemd is still stopping the former server.
        return False
    if now.get("ActiveState") in ("failed", "inactive"):
        return True
    restarts = int(now.get("NRestarts") or 0), int(before.get("NRestarts") or 0)
    return now.get("SubState") == "auto-restart" or restarts[0] > restarts[1]


def cause(lines: Sequence[str]) -> str:
    """Return the line of a journal that says why the server ended, C("") when none does.

    The exception of the process that failed first is wanted, not those of the processes that noticed.
    """
    found = []
    for line in lines:
        match = _EXCEPTION.search(line.rstrip())
        if match and not any(words in line.lower() for words in _FOLLOWING):
            found.append(match.group("cause"))
        elif _USAGE.match(line.rstrip()):
            found.append(line.strip())
    # The last one of the first process: a process that dies prints its exception at the end of its traceback.
    with_text = [entry for entry in found if ":" in entry]
    return (with_text or found or [""])[-1]


def tail(lines: Sequence[str], count: int) -> list[str]:
    """Return the last lines that say something."""
    return [line.rstrip() for line in lines if line.strip()][-count:]
