# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tasks: a forked worker whose stdout and stderr both go to pct's stdout and to a log under /var/log/pve/tasks."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from typing import Callable

from node import active
from node.errors import PctError

_warnings = 0
user = "root@pam"  # whose tasks these are; the REST API sets the user that is logged in


def _nobody(upid: str) -> None:
    """Nobody wants to know the task's name: pct doesn't print it."""


announce: Callable[[str], None] = _nobody


def warn(text: str) -> None:
    """A warning inside a task: the task still succeeds, pct says so on stderr."""
    global _warnings
    _warnings += 1
    print(f"WARN: {text}", flush=True)


def run_task(kind: str, vmid: int, work: Callable[[], None], *, keeps_rc: bool = True) -> int:
    """Run ``work`` as a task and return pct's exit code.

    ``keeps_rc=False`` is for push, pull, resize and template: genuine pct ends with 0 even when their worker failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    output_read, output_write = os.pipe()
    verdict_read, verdict_write = os.pipe()
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        for descriptor in (output_read, verdict_read, ready_write):
            os.close(descriptor)
        os.read(ready_read, 1)
        _worker(work, output_write, verdict_write)
    for descriptor in (output_write, verdict_write, ready_read):
        os.close(descriptor)

    signals = 0

    def pass_on(number: int, frame: object) -> None:
        nonlocal signals
        signals += 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGTERM if signals < 4 else signal.SIGKILL)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    started = int(time.time())
    task = active.Task(active.upid(kind, vmid, child, started, user))
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "wb", buffering=0) as log:
        active.refresh(task.upid)
        announce(task.upid)
        os.write(ready_write, b"1")
        os.close(ready_write)
        _copy(output_read, log.write)
        with os.fdopen(verdict_read, "rb") as pipe:
            verdict = pipe.read().decode(errors="replace")
        # not collected yet: until its last line is written, the worker counts as running
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        if not verdict:
            verdict = f"error unexpected status (worker ended with {ended.si_status if ended else 'nothing'})"
        word, text = verdict.partition(" ")[::2]
        endings = {"ok": "OK", "warnings": f"WARNINGS: {text}", "error": f"ERROR: {text}"}
        # one line, because its last line is what tells how a task ended
        log.write(f"TASK {endings[word]}".replace("\n", " ").encode() + b"\n")
    os.waitpid(child, 0)
    active.refresh()
    for number, handler in previous.items():
        signal.signal(number, handler)
    if word == "warnings":
        print(f"Task finished with {text} warning(s)!", file=sys.stderr)
    elif word == "error":
        print(text, file=sys.stderr)
        return 255 if keeps_rc else 0
    return 0


def _copy(source: int, log: Callable[[bytes], object]) -> None:
    """Everything from the worker to stdout and to the log; a closed stdout doesn't stop the task."""
    out: int | None = 1
    while True:
        chunk = os.read(source, 65536)
        if not chunk:
            break
        log(chunk)
        if out is not None:
            try:
                os.write(out, chunk)
            except OSError:
                out = None
    os.close(source)


def _worker(work: Callable[[], None], output: int, verdict: int) -> None:
    os.setsid()
    # SIGPIPE: a worker whose pct was killed dies at its next word, and nobody tidies up after it
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)

    def interrupted(number: int, frame: object) -> None:
        raise PctError("interrupted by signal")

    signal.signal(signal.SIGTERM, interrupted)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    code = 0
    try:
        work()
        sys.stdout.flush()
        words = f"warnings {_warnings}" if _warnings else "ok"
    except PctError as reason:
        words, code = f"error {reason}", 1
    except OSError as reason:
        words, code = f"error {reason.filename or 'system call'}: {reason.strerror}", 1
    except BaseException:
        words, code = "error " + traceback.format_exc(), 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    word, blank, text = words.partition(" ")
    # A pipe holds 64 KiB. The end of a long text says why; the first word says how it ended.
    os.write(verdict, f"{word}{blank}".encode() + text.encode()[-60000:])
    os._exit(code)
