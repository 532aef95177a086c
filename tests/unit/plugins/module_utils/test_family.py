# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that a command has started is found by its mark, or by its parent, and ended."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import family


@pytest.fixture
def mark() -> Iterator[str]:
    it = secrets.token_hex(16)
    yield it
    family.end(it, 0.1)


def start(mark: str, script: str) -> subprocess.Popen:
    """A shell that carries a mark, once it has said that it is ready."""
    process = subprocess.Popen(
        ["sh", "-c", script], env={**os.environ, family.MARK: mark}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_nobody_carries_it(mark):
    assert family.members(mark) == {}
    begin = time.monotonic()
    family.end(mark)
    assert time.monotonic() - begin < 1


def test_children_that_left_and_children_that_dropped_it(mark):
    process = start(mark, "setsid sleep 71 & env -i sh -c 'sleep 72; :' & sleep 73 & sleep 0.5; echo ready; wait")
    names = set()
    for pid in family.members(mark):
        with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
            names.add(file.read().replace("\0", " ").strip())
    assert {"sleep 71", "sleep 72", "sleep 73", "sh -c sleep 72; :"} <= names
    assert os.getpid() not in family.members(mark)
    family.end(mark)
    # The shell ends by the signal, or because nothing is left that it waits for.
    assert process.wait(5) in (0, -signal.SIGTERM)
    assert family.members(mark) == {}


def test_one_that_does_not_listen_is_killed(mark):
    process = start(
        mark, "trap '' TERM; env -i sh -c 'trap \"\" TERM; sleep 74; sleep 75' & echo ready; sleep 76; sleep 77"
    )
    begin = time.monotonic()
    family.end(mark, 0.5)
    assert 0.4 < time.monotonic() - begin < 5
    assert process.wait(5) in (0, -signal.SIGKILL)
    assert family.members(mark) == {}


def test_one_that_puts_things_in_order_has_the_time(mark, tmp_path):
    start(mark, f"trap 'sleep 0.3; echo tidy >{tmp_path}/file; exit' TERM; echo ready; while :; do sleep 0.1; done")
    family.end(mark, 5)
    assert (tmp_path / "file").read_text() == "tidy\n"


def test_another_process_with_the_same_number_is_not_met(mark, monkeypatch):
    process = subprocess.Popen(["sleep", "78"])
    try:
        # Found with a start that is not this process's: its number was another's before.
        found = iter([{process.pid: 1}])
        monkeypatch.setattr(family, "members", lambda mark, known=(): next(found, {}))
        family.end(mark, 0.2)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


SCRIPT = """
import os, subprocess, sys, time
from ansible_collections.phoenix.hypervisor.plugins.module_utils import family
with family.guarded(sys.argv[1]):
    subprocess.Popen(["setsid", "sleep", "79"], env={**os.environ, family.MARK: sys.argv[1]})
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def guarded(mark: str, seconds: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, mark, str(seconds)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_members_end_with_a_module_that_is_killed(mark):
    module = guarded(mark, 60)
    assert module.stdout is not None
    assert module.stdout.readline() == "ready\n"
    assert family.members(mark)
    module.kill()
    module.wait()
    end = time.monotonic() + 10
    while family.members(mark):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_members_stay_when_all_is_well(mark):
    module = guarded(mark, 0)
    assert module.wait(10) == 0
    time.sleep(0.3)
    assert family.members(mark)
