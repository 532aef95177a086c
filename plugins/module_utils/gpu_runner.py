# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs without a module, whose run_command it can't have.
# pylint: disable=ansible-bad-function
"""Starts the processes that check GPUs (L(gpu_worker)), several at the same time, and ends those that hang.

A check that hangs or crashes costs its own process only: what that was to do after it is done by another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

MARK = "phoenix-gpu"
# What a worker does before its first check.
FIRST = "torch_"
LINES = 6
# Seconds in which a process that was killed is gone, unless it hangs in the kernel.
GONE = 10.0


class Worker:
    """A process that checks.

    Args:
        command: what starts it, without what it is asked for.
        wish: what it is asked for.
        environment: of the process.
    """

    def __init__(self, command: Sequence[str], wish: Mapping[str, Any], environment: Mapping[str, str]):
        self.wish = wish
        self.found: dict[str, dict[str, Any]] = {}
        self.doing, self.since = FIRST, time.monotonic()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with the run)
        self.process = subprocess.Popen(
            [*command, json.dumps(wish)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors,
            env=dict(environment), start_new_session=True, cwd="/",
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            match = re.match(rf"{MARK} (\{{.*\}})$", line.decode("utf-8", "replace").rstrip())
            if not match:
                continue
            said = json.loads(match[1])
            name = said.pop("check")
            if said.pop("begin", False):
                self.doing, self.since = name, time.monotonic()
            else:
                self.found[name] = said
                self.doing, self.since = "", time.monotonic()

    @property
    def ended(self) -> bool:
        """Whether it has ended and all that it said was read."""
        return self.process.poll() is not None and not self.reader.is_alive()

    def last_lines(self) -> list[str]:
        """The end of what it wrote to stderr."""
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", "replace").splitlines()
        return [line.rstrip()[:300] for line in lines if line.strip()][-LINES:]

    def kill(self) -> bool:
        """End it and all that it started. Return whether it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GONE)
        return self.process.poll() is not None

    def give_up(self, outcome: dict[str, Any]) -> None:
        """Write down that the check in hand did not end well."""
        self.found[self.doing or FIRST] = {**outcome, "lines": self.last_lines()}


def run(
    command: Sequence[str],
    wishes: Sequence[Mapping[str, Any]],
    limits: Mapping[str, float],
    environment: Mapping[str, str],
) -> list[dict[str, dict[str, Any]]]:
    """Start a process for each wish, at the same time, and wait for all of them.

    A check that takes too long has C(hung) in its result, the seconds; one whose process died has C(died), its exit
    code. When processes work together (wishes with the same C(store)), none goes on after one of them did not end well.

    Args:
        command: what starts a worker, without what it is asked for.
        wishes: what each is asked for; C(checks) are the names, in order.
        limits: seconds that a check may take, by name; C("") is for those that aren't named.
        environment: of the processes.

    Returns:
        For each wish what its checks found, by name.
    """
    workers = [Worker(command, wish, environment) for wish in wishes]
    open_ = list(workers)
    while open_:
        time.sleep(0.05)
        for worker in list(open_):
            if worker not in open_:  # it was ended with another one
                continue
            limit = limits.get(worker.doing, limits[""])
            waited = time.monotonic() - worker.since
            if worker.ended:
                open_.remove(worker)
                missing = [name for name in (FIRST, *worker.wish["checks"]) if name not in worker.found]
                # After PyTorch failed there is nothing more to be said.
                failed = "error" in worker.found.get(FIRST, {})
                if missing and not failed:
                    worker.doing = worker.doing or missing[0]
                    worker.give_up({"died": worker.process.returncode})
            elif waited > limit:
                open_.remove(worker)
                # Not before it is killed: nobody writes to its files any more then.
                gone = worker.kill()
                worker.give_up({"hung": round(waited, 1), "gone": gone})
            else:
                continue
            trouble = {"hung", "died", "error"} & {word for found in worker.found.values() for word in found}
            if trouble and worker.wish.get("store"):
                for other in [one for one in open_ if one.wish.get("store") == worker.wish["store"]]:
                    open_.remove(other)
                    other.kill()
                    other.give_up({"ended": True})
    for worker in workers:
        worker.errors.close()
    return [worker.found for worker in workers]


def run_each(
    command: Sequence[str],
    wishes: Sequence[Mapping[str, Any]],
    limits: Mapping[str, float],
    environment: Mapping[str, str],
) -> list[dict[str, dict[str, Any]]]:
    """Do the same for processes that don't work together; the rest of what one that ended too early was to do is done
    by another one."""
    results: list[dict[str, dict[str, Any]]] = [{} for _wish in wishes]
    rest = list(enumerate(wishes))
    while rest:
        found = run(command, [wish for _number, wish in rest], limits, environment)
        again = []
        for (number, wish), one in zip(rest, found):
            results[number] = {**results[number], **one}
            open_ = [name for name in wish["checks"] if name not in results[number]]
            # One whose PyTorch can't be imported would only do the same again.
            first = one.get(FIRST, {})
            if open_ and not {"error", "hung", "died"} & set(first):
                again.append((number, {**wish, "checks": open_}))
        rest = again
    return results
