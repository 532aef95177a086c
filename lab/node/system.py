# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes and small system facts. Everything that the lab runs on the host goes through here."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Callable

from node.errors import PctError


def run(argv: list[str], *, check: bool = True, data: str | None = None, timeout: float | None = None) -> str:
    """Run a program and return its stdout. Its failure is a :class:`PctError` with its own last words."""
    try:
        done = subprocess.run(
            argv,
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise PctError(f"command '{argv[0]}' was not found - run 'lab up' again") from None
    except subprocess.TimeoutExpired:
        raise PctError(f"command '{' '.join(argv)}' failed: got timeout") from None
    if check and done.returncode:
        # The end of what it said: cp on a full disk has a line for every file.
        words = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise PctError("\n".join([f"command '{' '.join(argv)}' failed: exit code {done.returncode}", *words]))
    return done.stdout


def succeeds(argv: list[str]) -> bool:
    """Whether a program ends with 0. Its output is dropped."""
    return (
        subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


def in_child(work: Callable[[], None]) -> None:
    """Run a function in a forked child, for what can't be undone in this process (chroot, setns, setuid).

    What it raises in the child is raised here as :class:`PctError` with the same text.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 0
        try:
            work()
        except (OSError, ValueError, PctError) as reason:
            os.write(writer, _reason(reason).encode())
            code = 1
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-60000:])
            code = 1
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        words = pipe.read().decode(errors="replace")
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise PctError(words or "a helper process died")


def _reason(reason: BaseException) -> str:
    if isinstance(reason, OSError) and reason.filename:
        return f"{reason.filename}: {reason.strerror}"
    return str(reason)


def write_atomically(path: Path, text: str, mode: int = 0o644, group: int = 0) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
        os.fchmod(handle.fileno(), mode)
        os.fchown(handle.fileno(), 0, group)
    temporary.rename(path)


def pure_cgroup2() -> bool:
    """Whether the controllers are in cgroup v2 (a pure unified host) and not in v1."""
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def mounted(path: Path) -> bool:
    """Whether something is mounted exactly there."""
    with open("/proc/self/mountinfo") as handle:
        return any(line.split()[4] == str(path) for line in handle)
