# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import stat
from types import SimpleNamespace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_guard


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs that print something, found before all others."""

    def make(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return make


@pytest.mark.parametrize(
    ("readings", "looks"),
    [
        (["10 20", "10 20"], 2),
        # A monitor on the same card.
        (["10 20", "40 20"], 2),
        # Another server loads, then is done.
        (["10 20", "900 20", "9000 20", "9000 20"], 4),
        # A GPU appears.
        (["10", "10 20", "10 20"], 3),
    ],
)
def test_it_waits_until_the_memory_in_use_is_still(monkeypatch, capsys, readings, looks):
    seen = iter([[int(word) for word in reading.split()] for reading in readings])
    count = []
    monkeypatch.setattr(server_guard, "used", lambda: count.append(1) or next(seen))
    monkeypatch.setattr(server_guard.time, "sleep", lambda seconds: None)
    server_guard.settle()
    assert len(count) == looks
    assert ("waiting for it" in capsys.readouterr().out) == (looks > 2)


def test_it_waits_no_longer_than_its_limit(monkeypatch):
    clock, memory = iter(range(0, 10_000, 10)), iter(range(0, 10_000_000, 1000))
    monkeypatch.setattr(server_guard.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(server_guard.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(server_guard, "used", lambda: [next(memory)])
    server_guard.settle()
    assert next(clock) <= server_guard.LIMIT + 30


@pytest.mark.parametrize("script", ["exit 1", "echo No devices were found", "echo '[N/A]'"])
def test_where_nobody_can_tell_nothing_is_waited_for(programs, monkeypatch, script):
    programs("nvidia-smi", script)
    clock = SimpleNamespace(sleep=lambda seconds: pytest.fail("it waited"), monotonic=lambda: 0.0)
    monkeypatch.setattr(server_guard, "time", clock)
    assert server_guard.used() == []
    server_guard.settle()


def test_what_nvidia_smi_says_is_read(programs):
    programs("nvidia-smi", "printf '1024\\n32000\\n'")
    assert server_guard.used() == [1024, 32000]


def test_why_it_ended_is_kept_and_does_not_grow(programs, tmp_path, monkeypatch):
    programs("journalctl", "echo 'last words'")
    path = tmp_path / "state" / "ends.jsonl"
    monkeypatch.setenv("SERVICE_RESULT", "success")
    server_guard.ended(str(path))
    assert not path.exists(), "it was stopped on purpose"
    monkeypatch.setenv("SERVICE_RESULT", "exit-code")
    monkeypatch.setenv("PHOENIX_DIGEST", "abc")
    for number in range(server_guard.KEPT + 5):
        monkeypatch.setenv("EXIT_STATUS", str(number))
        server_guard.ended(str(path))
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["status"] for entry in entries] == [str(number) for number in range(5, server_guard.KEPT + 5)]
    assert entries[-1]["lines"] == ["last words"] and entries[-1]["digest"] == "abc"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["ends.jsonl"]
