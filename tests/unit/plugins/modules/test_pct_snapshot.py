# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_snapshot, whole: options to plan to commands, on a node that is made of a conf file."""

from __future__ import annotations

import functools
import json

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import node, nodes, pct_conf
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Command
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.process import Finished
from ansible_collections.phoenix.hypervisor.plugins.modules import pct_snapshot

MAIN = "hostname: now\nrootfs: plain:x,size=2G\n"


class FakeNode:
    """One container, changed by the commands that the module runs."""

    is_local = True

    def __init__(self) -> None:
        self.conf = pct_conf.parse(MAIN)
        self.exists = True
        self.running = False
        self.calls: list[str] = []
        self.at_work: list[str] = []
        # Answers that are given instead of doing a command, by its name.
        self.answers: dict[str, Finished] = {}
        # What somebody else does while one waits for the container.
        self.meanwhile = lambda: None
        self.clock = 100

    def read(self, vmid: int) -> Container:
        if vmid != 840 or not self.exists:
            return Container()
        return Container(exists=True, running=self.running, text=pct_conf.render_conf(self.conf))

    def storage_types(self) -> dict:
        return {"plain": "dir"}

    def workers(self, vmid: int) -> list[str]:
        return self.at_work

    def words(self, command: Command) -> list[str]:
        return list(command.argv)

    def settle(self, vmid: int, timeout: float) -> None:
        self.meanwhile()
        if "lock" in self.conf.main.values:
            raise node.NodeError("CT is locked, says the node")

    def run(self, command: Command, timeout: float) -> Finished:
        self.calls.append(" ".join(command.argv[1:]))
        if command.name in self.answers:
            return self.answers[command.name]
        if command.name != "unlock":
            assert "lock" not in self.conf.main.values
        getattr(self, command.name)(*command.arguments, **dict(command.options))
        return Finished(command.argv, 0, "", "")

    def unlock(self) -> None:
        del self.conf.main.values["lock"]

    def snapshot(self, name: str, description: str = "") -> None:
        assert name not in self.conf.snapshots
        self.clock += 1
        self.conf.snapshots[name] = pct_conf.Section({"hostname": "then", "snaptime": str(self.clock)})

    def delsnapshot(self, name: str, force: str = "0") -> None:
        assert force == "1" or "snapstate" not in self.conf.snapshots[name].values
        del self.conf.snapshots[name]

    def rollback(self, name: str, start: str = "0") -> None:
        self.conf.main.values.update(hostname="then", parent=name)
        self.running = start == "1"

    def half_made(self, name: str, lock: str = "") -> None:
        self.conf.snapshots[name] = pct_conf.Section({"snapstate": "prepare", "snaptime": "1"})
        if lock:
            self.conf.main.values["lock"] = lock


@pytest.fixture
def fake(monkeypatch) -> FakeNode:
    it = FakeNode()
    monkeypatch.setattr(nodes, "connect", lambda params: it)
    return it


@pytest.fixture
def run(fake, run_main):
    """A function that runs the module's main and gives what it returns."""
    return functools.partial(run_main, pct_snapshot, vmid=840)


def test_check_mode_says_what_the_run_does(fake, run):
    shown = run(check=True, snapname="one", description="x")
    assert fake.calls == []
    done = run(snapname="one", description="x")
    for key in ("changed", "snapshots", "snapname", "steps", "commands", "status", "diff"):
        assert shown[key] == done[key], key
    assert done["commands"] == [["pct", "snapshot", "840", "one", "--description", "x"]]
    assert run(snapname="one")["changed"] is False


def test_the_old_ones_stay_when_the_new_one_fails(fake, run):
    fake.snapshot("auto-a")
    fake.answers["snapshot"] = Finished(("pct",), 255, "", "no space left")
    done = run(prefix="auto-", keep=1)
    assert done["failed"]
    assert "CTID 840" in done["msg"]
    assert "no space left" in done["msg"]
    assert list(fake.conf.snapshots) == ["auto-a"]


def test_the_old_ones_stay_when_the_new_one_is_not_there_although_pct_ended_well(fake, run):
    fake.snapshot("auto-a")
    fake.answers["snapshot"] = Finished(("pct",), 0, "", "")
    done = run(prefix="auto-", keep=1)
    assert "there is no complete snapshot auto-" in done["msg"]
    assert list(fake.conf.snapshots) == ["auto-a"]


def test_a_failure_in_the_middle_says_what_was_done_and_the_next_run_goes_on(fake, run):
    fake.snapshot("auto-a")
    fake.answers["delsnapshot"] = Finished(("pct",), 255, "", "dataset is busy")
    done = run(snapname="auto-b", prefix="auto-", keep=1)
    assert "Done before that: there is no snapshot auto-b." in done["msg"]
    assert done["steps"] == ["there is no snapshot auto-b"]
    fake.answers.clear()
    done = run(snapname="auto-b", prefix="auto-", keep=1)
    assert done["commands"] == [["pct", "delsnapshot", "840", "auto-a"]]


def test_an_error_of_the_storage_becomes_a_remedy(fake, run):
    fake.answers["snapshot"] = Finished(("pct",), 255, "", "snapshot feature is not available")
    assert "rootfs is on plain (type dir)" in run(snapname="one")["msg"]


def test_a_lock_that_was_left_goes_with_what_was_left(fake, run):
    fake.half_made("one", lock="snapshot")
    assert run(snapname="one")["snapshots"] == ["one"]
    assert fake.calls == ["unlock 840", "delsnapshot 840 one --force 1", "snapshot 840 one"]


def test_a_lock_of_somebody_at_work_stays(fake, run):
    fake.half_made("one", lock="snapshot")
    fake.at_work = ["the task vzsnapshot"]
    assert run(state="absent", snapname="one")["msg"] == "CT is locked, says the node"
    assert fake.calls == []
    assert run(check=True, state="absent", snapname="one")["commands"] == [
        ["pct", "delsnapshot", "840", "one", "--force", "1"]
    ]


def test_the_api_leaves_locks_alone(fake, run):
    fake.is_local = False
    fake.half_made("one", lock="snapshot")
    assert run(state="absent", snapname="one")["msg"] == "CT is locked, says the node"
    assert fake.calls == []


def test_what_somebody_else_did_meanwhile_counts(fake, run):
    fake.meanwhile = lambda: fake.conf.snapshots.get("one") or fake.snapshot("one")
    done = run(snapname="one")
    assert (done["changed"], done["steps"], fake.calls) == (False, [], [])

    def gone() -> None:
        fake.exists = False

    fake.meanwhile = gone
    done = run(snapname="two")
    assert done["failed"]
    assert "CTID 840 does not exist" in done["msg"]
    assert fake.calls == []


def test_a_rollback_warns_and_starts_again(fake, run):
    fake.snapshot("one")
    fake.running = True
    done = run(state="rollback", snapname="one")
    assert done["status"] == "running"
    assert fake.calls == ["rollback 840 one --start 1"]
    assert "what was written since is lost" in json.dumps(done["warnings"])
    assert "hostname: now" in done["diff"]["before"]
    assert "hostname: then" in done["diff"]["after"]
    assert run(state="rollback", snapname="one", start=False)["status"] == "stopped"


def test_a_rollback_after_which_nothing_runs_is_no_success(fake, run):
    fake.snapshot("one")
    fake.rollback = lambda name, start="0": fake.conf.main.values.update(parent=name)
    assert "the container doesn't run afterwards" in run(state="rollback", snapname="one", start=True)["msg"]


def test_options_are_checked_before_a_node_is_asked(monkeypatch, run):
    monkeypatch.setattr(nodes, "connect", lambda params: pytest.fail("a node was asked"))
    assert "snapname is missing" in run()["msg"]
    assert "keep at least 1" in run(prefix="a", keep=0)["msg"]


def test_a_container_that_isnt_there(fake, run):
    fake.exists = False
    assert "CTID 840 does not exist" in run(snapname="one")["msg"]
    shown = run(check=True, snapname="one")
    assert (shown["changed"], shown["status"]) == (True, "absent")
    assert "CTID 840 does not exist" in run(check=True, state="rollback", snapname="one")["msg"]
