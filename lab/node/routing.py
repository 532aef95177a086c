# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a request of the REST API to a function: paths, parameters, permissions, and tasks in the background."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Callable

from node import access, schema, settings, tasks
from node.access import Caller
from node.errors import ParameterError, PctError, Refusal


@dataclass
class Ask:
    """One request: who asks, for which path, with which parameters."""

    who: Caller
    path: dict[str, str]
    given: dict[str, str]

    @property
    def vmid(self) -> int:
        """The CTID of the path."""
        return int(self.path["vmid"])

    def flag(self, name: str) -> bool:
        """A boolean parameter."""
        try:
            return schema.boolean(self.given.get(name, "0")) == "1"
        except ValueError as reason:
            raise ParameterError({name: str(reason)}) from None

    def number(self, name: str, default: int) -> int:
        """A parameter that is a whole number."""
        try:
            return int(schema.integer(0)(self.given.get(name, str(default))))
        except ValueError as reason:
            raise ParameterError({name: str(reason)}) from None

    def words(self, name: str) -> list[str]:
        """A parameter that is a list."""
        return [word for word in re.split(r"[,;\s]+", self.given.get(name, "")) if word]


Work = Callable[[Ask], Any]


@dataclass(frozen=True)
class Endpoint:
    """A method and a path: what may be given, what must be, and which privilege it needs on the container."""

    method: str
    pattern: re.Pattern[str]
    work: Work
    privilege: str
    takes: tuple[str, ...]
    needs: tuple[str, ...]
    takes_config: bool


_ENDPOINTS: list[Endpoint] = []
NODE = "/nodes/{node}"
CT = f"{NODE}/lxc/{{vmid}}"


def endpoint(
    method: str, path: str, privilege: str = "", takes: Iterable[str] = (), needs: Iterable[str] = (),
    takes_config: bool = False,
) -> Callable[[Work], Work]:  # fmt: skip
    """Register a function for a method and a path."""
    pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))

    def register(work: Work) -> Work:
        _ENDPOINTS.append(Endpoint(method, pattern, work, privilege, tuple(takes), tuple(needs), takes_config))
        return work

    return register


def answer(who: Caller, method: str, path: str, given: dict[str, str]) -> dict[str, Any]:
    """Find the endpoint, check node, parameters and permission, do it; the whole body of the answer."""
    for place in _ENDPOINTS:
        match = place.pattern.fullmatch(path)
        if match and place.method == method:
            break
    else:
        raise Refusal(501, f"Method '{method} {path}' not implemented")
    ask = Ask(who, match.groupdict(), given)
    _check(place, ask)
    data = place.work(ask)
    return data if isinstance(data, dict) and data.keys() == {"data", "total"} else {"data": data}


def _check(place: Endpoint, ask: Ask) -> None:
    wrong = {}
    vmid = ask.path.get("vmid")
    if vmid is not None and not (vmid.isdigit() and 100 <= int(vmid) <= 999999999):
        wrong["vmid"] = schema.NO_VMID if vmid.isdigit() else f"type check ('integer') failed - got '{vmid}'"
    for name in ask.given:
        known = name in (*place.takes, *place.needs) or (place.takes_config and schema.validator(name))
        if not known:
            wrong[name] = schema.NO_SUCH_PROPERTY
    for name in place.needs:
        if name not in ask.given:
            wrong[name] = "property is missing and it is not optional"
    if wrong:
        raise ParameterError(wrong)
    node = ask.path.get("node", settings.node_name())
    if node not in (settings.node_name(), "localhost"):
        reason = f"failed to get address info for: {node}: Name or service not known"
        raise PctError(f"hostname lookup '{node}' failed - {reason}")
    if vmid is not None:
        access.check(ask.who, f"/vms/{vmid}", place.privilege)
    if "skiplock" in ask.given:
        access.check_skiplock(ask.who, "1" if ask.flag("skiplock") else "0")


# --- tasks -----------------------------------------------------------------------------------------------------------


def in_background(work: Callable[[], object]) -> str:
    """Run what pct would run, in a process that outlives the request; the task's UPID as soon as there is one.

    What goes wrong before a task begins is raised here.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            _behind(work, writer)
        os._exit(0)
    os.close(writer)
    os.waitpid(middle, 0)
    with os.fdopen(reader) as pipe:
        text = pipe.readline()  # one line, not to the end: the task's worker has the other end too
    if not text:
        raise PctError("the task did not begin; the lab's API log says why")
    said = json.loads(text)
    if "upid" in said:
        return str(said["upid"])
    if "errors" in said:
        raise ParameterError(said["errors"])
    raise PctError(said["error"])


def _behind(work: Callable[[], object], writer: int) -> None:
    """The process behind a task: it copies the worker's output to the log, as pct does."""
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for descriptor in range(3, 64):  # the client's connection among them
        if descriptor != writer:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)

    def tell(said: dict[str, Any]) -> None:
        os.write(writer, json.dumps(said).encode() + b"\n")
        os.close(writer)

    tasks.announce = lambda upid: tell({"upid": upid})
    try:
        work()
    except ParameterError as wrong:
        tell({"errors": wrong.errors})
    except PctError as reason:
        tell({"error": str(reason)})
    except BaseException:
        traceback.print_exc()
    os._exit(0)
