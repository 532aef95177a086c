# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import StateError, Target
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_states import States


@pytest.fixture
def states(tmp_path):
    """An empty folder of states."""
    return States(str(tmp_path / "states"))


def state(digest: str, release: str) -> Target:
    return Target(digest, "unit", "config", "", release, "/cache", {"port": 8000}, "tiny")


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "cpu-1"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "vllm").write_text("")
    return str(folder)


def test_nothing_is_made_by_looking(states, tmp_path):
    assert (states.good, states.there(), states.took("a"), states.salt(create=False)) == ("", set(), 0, b"")
    assert list(tmp_path.iterdir()) == []


def test_the_salt_stays(states, tmp_path):
    salt = states.salt(create=True)
    assert len(salt) == 33 and states.salt(create=True) == salt == States(states.folder).salt(create=False)
    assert os.stat(tmp_path / "states" / "salt").st_mode & 0o777 == 0o600
    assert os.stat(states.folder).st_mode & 0o777 == 0o700


def test_states_are_written_down_and_come_back(states, release):
    for digest in "ab":
        states.put(state(digest, release))
    assert states.load("a") == state("a", release) and states.there() == {"a", "b"}
    assert os.stat(states.path("a")).st_mode & 0o777 == 0o600
    with pytest.raises(StateError):
        states.load("c")


def test_one_whose_release_is_gone_or_whose_file_is_damaged_is_not_there(states, release, tmp_path):
    for digest, where in (("a", release), ("b", str(tmp_path / "gone")), ("c", release)):
        states.put(state(digest, where))
    with open(states.path("c"), "w") as file:
        file.write("{")
    assert states.there() == {"a"}


def test_those_that_are_too_old_go(states, release):
    for number, digest in enumerate("abc"):
        states.put(state(digest, release))
        states.keep(state(digest, release), 2, 10.0 + number)
    again = States(states.folder)
    assert again.good == "c" and again.there() == {"b", "c"}
    assert [entry["digest"] for entry in again.history] == ["b", "c"]
    assert (again.took("b"), again.took("other")) == (11.0, 12.0)


def test_what_was_gone_back_to_is_recorded(states):
    states.record({"from": "a", "to": "b"})
    states.record({"from": "b", "to": "a"})
    with open(os.path.join(states.folder, "rollbacks.jsonl")) as file:
        assert [json.loads(line)["to"] for line in file] == ["b", "a"]
