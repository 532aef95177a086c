# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.phoenix.hypervisor.plugins.plugin_utils import progress

HOST = {"inventory_hostname": "ctid_921"}


class Action:
    """An action plugin whose module gives these results in turn."""

    def __init__(self, *results):
        self.results = list(results)
        self.calls = []
        self._task = SimpleNamespace(args={"releases": "/r"})

    def _execute_module(self, module_args, task_vars):
        self.calls.append(module_args)
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(progress.display, "display", lines.append)
    monkeypatch.setattr(progress.display, "warning", lines.append)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    return lines


def running(text, **more):
    return {"running": True, "progress": text, "changed": True, **more}


def test_one_call_is_enough_when_nothing_runs(said):
    action = Action({"changed": False, "release": "x"})
    assert progress.follow(action, HOST, wait=3) == {"changed": False, "release": "x"}
    assert action.calls == [{"releases": "/r", "wait": 3}] and said == []


def test_it_goes_on_until_the_work_is_done(said):
    first = running("a", again={"job": "1"})
    action = Action(first, first, running("b"), {"changed": False})
    result = progress.follow(action, HOST)
    assert result["changed"] is True, "the first call started something"
    assert action.calls[0] == {"releases": "/r"} and action.calls[1] == {"releases": "/r", "job": "1"}
    assert said == ["[ctid_921] a", "[ctid_921] b"], "a line for each that is new"


def test_how_far_a_call_before_was_is_told_at_once(said):
    progress.follow(Action(running("a"), running("b"), {}), HOST, "a")
    assert said == ["[ctid_921] a", "[ctid_921] b"]


def test_a_failure_ends_it(said):
    action = Action(running("a"), {"failed": True, "msg": "x", "running": True})
    assert progress.follow(action, HOST)["msg"] == "x"


def test_lines_come_slowly(said, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 60.0)
    progress.follow(Action(running("a"), running("b"), running("c"), {}), HOST)
    assert said == ["[ctid_921] a"]


def test_a_lost_connection_is_tried_again(said):
    action = Action(running("a"), AnsibleConnectionFailure("gone"), AnsibleConnectionFailure("gone"), {"release": "x"})
    assert progress.follow(action, HOST)["release"] == "x"
    assert sum("connection was lost" in line for line in said) == 2


def test_a_connection_that_stays_away_is_an_error(said):
    gone = AnsibleConnectionFailure("gone")
    with pytest.raises(AnsibleConnectionFailure):
        progress.follow(Action(gone, {}), HOST)
    with pytest.raises(AnsibleConnectionFailure):
        progress.follow(Action(running("a"), *[gone] * progress.ATTEMPTS, {}), HOST)


def test_it_asks_no_more_when_ansible_playbook_was_killed(said, tmp_path):
    """As ansible-core does it: a process that starts another one, in a session of its own, for a task."""
    calls = tmp_path / "calls"

    class Endless(Action):
        def _execute_module(self, module_args, task_vars):
            with calls.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.05)
            return running("a")

    playbook = os.fork()
    if playbook == 0:
        if os.fork() == 0:
            os.setsid()
            try:
                progress.follow(Endless(), HOST)
            except BaseException as error:
                (tmp_path / "end.new").write_text(f"{type(error).__name__}: {error}")
                (tmp_path / "end.new").rename(tmp_path / "end")
            os._exit(0)
        time.sleep(600)
        os._exit(0)
    end = time.monotonic() + 60
    try:
        while not calls.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.kill(playbook, signal.SIGKILL)
        os.waitpid(playbook, 0)
    while not (tmp_path / "end").exists():
        assert time.monotonic() < end, "it goes on asking"
        time.sleep(0.05)
    assert (tmp_path / "end").read_text() == "AnsibleError: ansible-playbook has ended. The work inside goes on."
