# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for others at work on a container, and a way to a node."""

from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import node, nodes
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Command
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.process import Finished


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class There:
    """A container that is locked until a moment, by whom."""

    def __init__(self, clock: Clock, lock: str = "", until: float = 0, workers=(), holder: str = "") -> None:
        self.clock, self.lock, self.until, self.at_work, self.holder = clock, lock, until, list(workers), holder

    def read(self, vmid: int) -> Container:
        is_locked = self.lock and self.clock.now < self.until
        return Container(exists=True, text=f"lock: {self.lock}\n" if is_locked else "memory: 1\n")

    def workers(self, vmid: int) -> list[str]:
        return self.at_work

    def flock_holder(self, vmid: int) -> str:
        return self.holder if self.clock.now < self.until else ""

    def settle(self, vmid: int, timeout: float) -> None:
        nodes.settle(self, vmid, timeout)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    it = Clock()
    monkeypatch.setattr(nodes, "time", it)
    return it


def test_nobody_at_work_costs_no_time(clock):
    nodes.settle(There(clock), 100, 60)
    assert clock.now == 0


@pytest.mark.parametrize("options", [{"lock": "backup", "workers": ["the task vzdump"]}, {"holder": "locked by pct"}])
def test_somebody_at_work_is_waited_for(clock, options):
    nodes.settle(There(clock, until=30, **options), 100, 60)
    assert 30 <= clock.now < 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lock": "backup", "workers": ["the task vzdump of root@pam"]}, r"\(backup\) by the task vzdump of root"),
        ({"holder": "its conf file is locked by process 7 (pct push)"}, "by process 7 .*waited 60 s"),
    ],
)
def test_who_it_is_is_said_when_time_is_up(clock, options, words):
    with pytest.raises(node.NodeError, match=f"CTID 100: .*{words}"):
        nodes.settle(There(clock, until=999, **options), 100, 60)
    assert clock.now >= 60


def test_a_lock_that_was_left_over_is_said_at_once(clock):
    with pytest.raises(node.NodeError, match=r"no task of this node is at work on it.*pct unlock 100"):
        nodes.settle(There(clock, "disk", until=999), 100, 600)
    assert clock.now < 5


@pytest.mark.parametrize("said", ["CT is locked (disk)", "can't lock file '/run/lock/lxc/x' - got timeout"])
def test_who_comes_between_the_look_and_the_lock_is_waited_for(clock, said):
    answers = [Finished(("pct",), 255, "", said)] * 3 + [Finished(("pct",), 0, "", "")]
    done = nodes.run_when_free(There(clock), Command("set", 100), 60, lambda left: answers.pop(0))
    assert not done.failed
    assert answers == []


def test_other_failures_are_not_tried_again(clock):
    answers = [Finished(("pct",), 255, "", "no such bridge")]
    assert nodes.run_when_free(There(clock), Command("set", 100), 60, lambda left: answers.pop(0)).failed


def test_without_an_api_host_it_is_this_machine(monkeypatch):
    monkeypatch.setattr(node, "check", lambda: None)
    assert nodes.connect({"api_host": None}).is_local


def test_a_machine_that_is_no_node(monkeypatch, tmp_path):
    monkeypatch.setattr(node, "_CONFIGS", str(tmp_path / "none"))
    with pytest.raises(node.NodeError, match="not a Proxmox VE node"):
        nodes.connect({})
