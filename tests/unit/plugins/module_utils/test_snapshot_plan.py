# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which snapshots are taken, which are deleted and in which order; rollbacks; what errors of Proxmox mean."""

from __future__ import annotations

from datetime import datetime

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import pct_conf, snapshot_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Command
from ansible_collections.phoenix.hypervisor.plugins.module_utils.snapshot_plan import Declared, SnapshotError, Step
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 21, 11, 45, 0)
MAIN = "#about it\nhostname: now\nmemory: 512\nrootfs: fast:vm-850-disk-0,size=2G\nunused0: fast:vm-850-disk-9\n"


def conf(*snapshots: str, main: str = MAIN, **half_made: str) -> pct_conf.Conf:
    """A conf with snapshots, each "name" or "name@snaptime"; half-made ones by their snapstate."""
    text = main
    for number, entry in enumerate(snapshots):
        name, _first, time = entry.partition("@")
        text += f"\n[{name}]\nhostname: then\nlxc.cap.drop: sys_boot\nsnaptime: {time or 1000 + number}\n"
    for name, state in half_made.items():
        text += f"\n[{name}]\nhostname: then\nsnapstate: {state}\nsnaptime: 99\n"
    return pct_conf.parse(text)


def steps(declared: Declared, actual: pct_conf.Conf, running: bool = False, left_over: bool = False) -> list[str]:
    """The commands of a plan, as a person would type them."""
    planned = snapshot_plan.plan(declared, actual, running, left_over)
    return [" ".join(step.command.argv) for step in planned.steps]


def declared(**values) -> Declared:
    return Declared(vmid=850, now=NOW, **values)


# --- present and absent -------------------------------------------------------------------------------------------


def test_present():
    assert steps(declared(snapname="a1", description="mine"), conf()) == ["pct snapshot 850 a1 --description mine"]
    assert steps(declared(snapname="a1"), conf("a1")) == []
    assert snapshot_plan.plan(declared(snapname="b1"), conf("a1"), False).snapshots == ("a1", "b1")


def test_absent():
    assert steps(declared(state="absent", snapname="a1"), conf("a1", "b1")) == ["pct delsnapshot 850 a1"]
    assert steps(declared(state="absent", snapname="a1"), conf("b1")) == []
    assert snapshot_plan.plan(declared(state="absent", snapname="a1"), conf("a1", "b1"), False).snapshots == ("b1",)


def test_a_half_made_one_is_deleted_by_force_and_taken_again():
    assert steps(declared(state="absent", snapname="a1"), conf(a1="delete")) == ["pct delsnapshot 850 a1 --force 1"]
    assert steps(declared(snapname="a1"), conf(a1="prepare")) == [
        "pct delsnapshot 850 a1 --force 1",
        "pct snapshot 850 a1",
    ]
    # Somebody else's is none of our business.
    assert steps(declared(snapname="b1"), conf(a1="prepare")) == ["pct snapshot 850 b1"]


def test_a_lock_that_was_left_is_removed_only_with_the_half_made_snapshot():
    locked = MAIN + "lock: snapshot\n"
    assert steps(declared(state="absent", snapname="a1"), conf(main=locked, a1="prepare"), left_over=True) == [
        "pct unlock 850",
        "pct delsnapshot 850 a1 --force 1",
    ]
    assert steps(declared(state="absent", snapname="a1"), conf(main=locked, a1="prepare")) == [
        "pct delsnapshot 850 a1 --force 1"
    ]
    assert steps(declared(state="absent", snapname="a1"), conf("a1", main=locked), left_over=True) == [
        "pct delsnapshot 850 a1"
    ]


# --- a series -----------------------------------------------------------------------------------------------------


def test_a_name_is_made_of_prefix_and_time():
    planned = snapshot_plan.plan(declared(prefix="auto-"), conf("auto-20261121-114500"), False)
    assert planned.snapname == "auto-20261121-114501"
    assert planned.snapshots == ("auto-20261121-114500", "auto-20261121-114501")


def test_the_oldest_go_after_the_new_one_is_there():
    actual = conf("auto-c@30", "auto-a@10", "auto-b@20", "other@1")
    assert steps(declared(prefix="auto-", keep=2), actual) == [
        "pct snapshot 850 auto-20261121-114500",
        "pct delsnapshot 850 auto-a",
        "pct delsnapshot 850 auto-b",
    ]


def test_keep_counts_without_a_new_one_too():
    actual = conf("auto-c@30", "auto-a@10", "auto-b@20", "other@1")
    assert steps(declared(state="absent", prefix="auto-", keep=1), actual) == [
        "pct delsnapshot 850 auto-a",
        "pct delsnapshot 850 auto-b",
    ]
    assert steps(declared(state="absent", prefix="auto-", keep=3), actual) == []
    # The named one stays, although it is the oldest.
    assert steps(declared(snapname="auto-a", prefix="auto-", keep=1), actual) == [
        "pct delsnapshot 850 auto-b",
        "pct delsnapshot 850 auto-c",
    ]


def test_a_clock_that_was_wrong_doesnt_take_the_new_one():
    actual = conf("auto-future@99999999999")
    assert steps(declared(prefix="auto-", keep=1), actual)[1:] == ["pct delsnapshot 850 auto-future"]


def test_what_a_killed_run_of_the_series_left_goes_and_doesnt_count():
    actual = conf("auto-a@10", "auto-b@20", **{"auto-x": "prepare", "other": "prepare"})
    assert steps(declared(prefix="auto-", keep=3), actual) == [
        "pct delsnapshot 850 auto-x --force 1",
        "pct snapshot 850 auto-20261121-114500",
    ]


names = st.sampled_from(["auto-a", "auto-b", "auto-c", "auto-d", "other", "auto"])


@given(
    st.dictionaries(names, st.integers(0, 5)),
    st.dictionaries(names, st.sampled_from(["prepare", "delete"])),
    st.integers(1, 4),
    st.sampled_from(["present", "absent"]),
)
def test_retention_whatever_is_there(complete, half_made, keep, state):
    complete = {name: time for name, time in complete.items() if name not in half_made}
    actual = conf(*[f"{name}@{time}" for name, time in complete.items()], **half_made)
    wanted = declared(state=state, prefix="auto-", keep=keep)
    planned = snapshot_plan.plan(wanted, actual, False)
    series = {name: time for name, time in complete.items() if name.startswith("auto-")}
    there = set(series)
    for step in planned.steps:
        if step.command.name == "snapshot":
            there.add(step.command.arguments[0])
        else:
            # Never fewer good ones than there were, up to those that are kept.
            there.discard(step.command.arguments[0])
            assert len(there) >= min(keep, len(series))
    assert len(there) == min(keep, len(series) + (state == "present"))
    assert there == {name for name in planned.snapshots if name.startswith("auto-")}
    assert state == "absent" or planned.snapname in there
    gone = set(series) - there
    assert all(series[old] <= series[young] for old in gone for young in there & set(series))
    assert {name for name in complete if not name.startswith("auto-")} <= set(planned.snapshots)


# --- rollback -----------------------------------------------------------------------------------------------------


def test_rollback_runs_afterwards_as_it_did_before():
    assert steps(declared(state="rollback", snapname="a1"), conf("a1")) == ["pct rollback 850 a1"]
    assert steps(declared(state="rollback", snapname="a1"), conf("a1"), running=True) == [
        "pct rollback 850 a1 --start 1"
    ]
    assert steps(declared(state="rollback", snapname="a1", start=True), conf("a1")) == ["pct rollback 850 a1 --start 1"]
    assert steps(declared(state="rollback", snapname="a1", start=False), conf("a1"), running=True) == [
        "pct rollback 850 a1"
    ]


def test_rollback_says_what_it_costs():
    planned = snapshot_plan.plan(declared(state="rollback", snapname="a1"), conf("a1"), True)
    assert "killed" in planned.steps[0].why
    assert "since is lost" in planned.steps[0].why
    assert "850 was running" in planned.warnings[0]
    stopped = snapshot_plan.plan(declared(state="rollback", snapname="a1"), conf("a1"), False)
    assert "killed" not in stopped.steps[0].why
    assert not stopped.warnings


def test_rollback_takes_the_configuration_but_description_and_unused_volumes():
    planned = snapshot_plan.plan(declared(state="rollback", snapname="a1"), conf("a1"), False)
    assert pct_conf.render(planned.config) == (
        "#about it\nhostname: then\nparent: a1\nunused0: fast:vm-850-disk-9\nlxc.cap.drop: sys_boot\n"
    )


def test_a_rollback_that_was_killed_is_done_again():
    actual = conf("a1", main=MAIN + "lock: rollback\n")
    assert steps(declared(state="rollback", snapname="a1"), actual, left_over=True) == [
        "pct unlock 850",
        "pct rollback 850 a1",
    ]
    other = conf("a1", main=MAIN + "lock: backup\n")
    assert steps(declared(state="rollback", snapname="a1"), other, left_over=True) == ["pct rollback 850 a1"]


@pytest.mark.parametrize(
    ("actual", "said"),
    [
        (conf("b1", "c1"), "has no snapshot 'a1' to go back to; there are: b1, c1"),
        (conf(), "it has none"),
        (conf(a1="prepare"), "half-made (snapstate: prepare), nothing can go back to it; delete it with state absent"),
        (conf("a1", main=MAIN + "template: 1\n"), "is a template"),
    ],
)
def test_rollback_refuses(actual, said):
    with pytest.raises(SnapshotError, match="CTID 850") as caught:
        snapshot_plan.plan(declared(state="rollback", snapname="a1"), actual, False)
    assert said in str(caught.value)


# --- refusals before anything is done -----------------------------------------------------------------------------


def test_what_takes_no_snapshot_is_refused_with_the_reason():
    with pytest.raises(SnapshotError, match="850 is a template"):
        steps(declared(snapname="a1"), conf(main=MAIN + "template: 1\n"))
    bound = MAIN + "mp0: fast:vm-850-disk-1,mp=/data,size=1G\nmp7: /tank/models,mp=/models\n"
    with pytest.raises(SnapshotError) as caught:
        steps(declared(snapname="a1"), conf(main=bound))
    assert "mp7 (/tank/models at /models)" in str(caught.value)
    assert "pct set 850 --delete mp7)" in str(caught.value)
    # What is there already needs nothing of this.
    assert steps(declared(snapname="a1"), conf("a1", main=bound)) == []


@pytest.mark.parametrize(
    ("values", "option", "remedy"),
    [
        ({"snapname": "a"}, "snapname 'a'", "2 to 40"),
        ({"snapname": "1a"}, "snapname '1a'", "begin with a letter"),
        ({"snapname": "a b"}, "snapname 'a b'", "digits"),
        ({"snapname": "a" * 41}, "snapname", "2 to 40"),
        ({"snapname": "current"}, "'current'", "take another"),
        ({"prefix": "auto."}, "prefix 'auto.'", "up to 25"),
        ({"prefix": "a" * 26}, "prefix", "up to 25"),
        ({"prefix": "a", "keep": 0}, "keep is 0", "at least 1"),
        ({"snapname": "a1", "keep": 1}, "keep", "prefix"),
        ({}, "snapname is missing", "prefix"),
        ({"snapname": "ab", "prefix": "x-"}, "doesn't begin with the prefix", "call it x-ab"),
        ({"state": "absent", "prefix": "x-"}, "keep is missing", "how many"),
        ({"state": "absent", "prefix": "x-", "keep": 1, "snapname": "x-a"}, "beside snapname", "one by snapname"),
        ({"state": "rollback"}, "snapname is missing", "go back"),
        ({"state": "rollback", "snapname": "a1", "prefix": "a", "keep": 1}, "prefix", "leave prefix and keep out"),
    ],
)  # fmt: skip
def test_options_without_sense(values, option, remedy):
    with pytest.raises(SnapshotError) as caught:
        snapshot_plan.check(declared(**values))
    what, _first, todo = str(caught.value).partition("; ")
    assert what.startswith("CTID 850: ")
    assert option in what
    assert remedy in todo


def test_options_with_sense():
    for values in (
        {"snapname": "ab"},
        {"prefix": "a" * 25},
        {"prefix": "x-", "snapname": "x-a", "keep": 1},
        {"state": "absent", "prefix": "x-", "keep": 1},
        {"state": "rollback", "snapname": "a1"},
    ):
        snapshot_plan.check(declared(**values))


# --- after a command ----------------------------------------------------------------------------------------------

TAKE = Step(Command("snapshot", 850, ("a1",)), "")
DELETE = Step(Command("delsnapshot", 850, ("a1",)), "")
BACK = Step(Command("rollback", 850, ("a1",), (("start", "1"),)), "")
BACK_AT = MAIN + "parent: a1\n"


@pytest.mark.parametrize(
    ("step", "actual", "running", "missing"),
    [
        (TAKE, conf("a1"), False, ""),
        (TAKE, conf(), False, "no complete snapshot a1"),
        (TAKE, conf(a1="prepare"), False, "no complete snapshot a1"),
        (DELETE, conf(), False, ""),
        (DELETE, conf(a1="delete"), False, "still there"),
        (BACK, conf("a1", main=BACK_AT), True, ""),
        (BACK, conf("a1", main=BACK_AT), False, "doesn't run"),
        (BACK, conf("a1"), True, "not at a1"),
        (BACK, conf("a1", main=BACK_AT + "lock: rollback\n"), True, "not at a1"),
        (Step(Command("unlock", 850), ""), conf(), False, ""),
    ],
)
def test_the_effect_counts_not_the_exit_code(step, actual, running, missing):
    found = snapshot_plan.missing_effect(step, actual, running)
    assert missing in found
    assert bool(found) == bool(missing)


def test_a_storage_without_snapshots_is_named():
    types = {"fast": "lvmthin", "plain": "dir"}
    actual = conf(main="rootfs: plain:850/vm-850-disk-0.raw,size=2G\nmp0: fast:vm-850-disk-1,mp=/data\n")
    remedy = snapshot_plan.remedy(TAKE, "snapshot feature is not available", actual, types)
    assert "rootfs is on plain (type dir)" in remedy
    assert "mp0" not in remedy
    assert "btrfs, lvmthin, rbd, zfspool" in remedy
    assert "pct move-volume 850" in remedy
    bound = conf(main=MAIN + "mp3: /tank,mp=/tank\n")
    assert "mp3" in snapshot_plan.remedy(TAKE, "snapshot feature is not available", bound, types)


def test_younger_snapshots_in_the_way_are_named_the_youngest_first():
    actual = conf("old@1", "a1@5", "b1@7", "c1@9")
    said = "can't rollback, 'a1' is not most recent snapshot on 'tank:subvol-850-disk-0'"
    remedy = snapshot_plan.remedy(BACK, said, actual, {})
    assert "delete the younger ones first (c1, b1)" in remedy
    assert "tank:subvol-850-disk-0" in remedy


def test_an_unknown_failure_has_no_made_up_remedy():
    assert snapshot_plan.remedy(TAKE, "no space left", conf(), {}) == ""
