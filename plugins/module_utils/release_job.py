# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installs one candidate as a release: the program of the transient unit C(vllm_release.service).

It runs in the container on the standard library alone, outside of Ansible, and goes on when the play that started it is
gone. What was done is found on the disk, so that a job that was killed anywhere is started again and goes on.

    python3 -m ansible_collections.phoenix.hypervisor.plugins.module_utils.release_job <job.json>
"""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .release_plan import JobError

TAIL = 12


class Job:
    """One installation: what it is for, where it works, what it says."""

    def __init__(self, job: Mapping, work: Path) -> None:
        self.candidate = job["candidate"]
        self.work = work

    def say(self, text: str, detail: str = "") -> None:
        """Set the progress that people see."""

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        watch: Callable[[str], None] | None = None,
    ) -> str:
        """Run a program with its output in the log, and return the output.

        Args:
            argv: the program and its arguments.
            environment: variables to set besides those that are there.
            cwd: the folder that it runs in.
            watch: is called with every line of output as it comes.

        Raises:
            JobError: it failed.
        """
        lines: list[str] = []
        process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for line in process.stdout:
            lines.append(line)
            if watch:
                watch(line.rstrip("\n"))
        if process.wait():
            tail = deque((line.rstrip() for line in lines if line.strip()), TAIL)
            raise JobError(f"{argv[0]} failed (exit code {process.returncode}).", tail=list(tail))
        return "".join(lines)

    def source_and_build(self, tools: Mapping[str, str]) -> list[Path]:
        """Build the wheels that aren't published."""
        from . import release_source

        release_source.prepare(self.candidate, self.work, self.run, self.say)
        return release_source.build_wheels(self.candidate, self.work, tools, self.run, self.say)

    def gates(self, release: Path, look) -> None:
        """Make sure that the release is what it should be."""
        from . import release_gates

        release_gates.gates(self.candidate, release, self.work / "wheels", look)
