# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that runs processes on a node, and turns their failures into one sentence."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

# pct's own search path: nothing from /usr/local, nothing from the caller.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    :ivar rc: exit code; 127 when the program is not there, 124 when it was ended because its time was up
    """

    argv: tuple[str, ...]
    rc: int
    stdout: str
    stderr: str

    @property
    def failed(self) -> bool:
        return self.rc != 0

    def sentence(self) -> str:
        """What ran, how it ended, and what it said: a task's own output is merged on stdout, its error on stderr."""
        parts = [text.strip().replace("\n", " / ") for text in (self.stderr, self.stdout)]
        said = "; ".join(part for part in parts if part)
        return f"`{' '.join(self.argv)}` ended with {self.rc}: {said or 'it said nothing'}"


def run(argv: Sequence[str], timeout: float | None = None) -> Finished:
    """Run a process to its end, with nothing on its standard input.

    :param timeout: seconds after which it is ended; pct hands that on to the task that it started
    """
    argv = tuple(argv)
    environment = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/root")}
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        return Finished(argv, 127, "", f"{argv[0]} is not installed here: is this a Proxmox VE node?")
    except OSError as error:
        return Finished(argv, 126, "", f"{argv[0]} can't be run: {error.strerror}")
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            out, err = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        return Finished(argv, 124, out, f"{err}\nit was ended after {timeout:g} s")
    return Finished(argv, process.returncode, out, err)
