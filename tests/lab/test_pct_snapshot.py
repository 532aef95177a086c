# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_snapshot on real containers, by pct and by the REST API. Needs a lab that is up; CTIDs 840 to 849."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Iterator

import lab_modules
import pytest
from lab_modules import CONFIGS, api_options, create, destroy, inside, names, pct, require_lab, through

pytestmark = pytest.mark.lab

VMID = 840
CONF = CONFIGS / f"{VMID}.conf"
call = functools.partial(lab_modules.call, "pct_snapshot", vmid=VMID)
failure = functools.partial(lab_modules.failure, "pct_snapshot", vmid=VMID)


@pytest.fixture(scope="module", autouse=True)
def containers() -> Iterator[None]:
    """Nothing is left, also when a test fails."""
    require_lab()
    yield
    destroy(*range(840, 850))


@pytest.fixture
def container() -> None:
    """A new container that doesn't run."""
    create(VMID)


@pytest.fixture(params=["node", "api"])
def way(request) -> Iterator[None]:
    """A test goes each way to the node; a token is enough for snapshots."""
    with through(request.param, "token"):
        yield


def listed() -> list[str]:
    """The names of the container's snapshots, as pct lists them."""
    found = re.findall(r"^\s*`->\s+(\S+)", pct("listsnapshot", str(VMID)), re.MULTILINE)
    return sorted(name for name in found if name != "current")


def converge(**options) -> dict:
    """A run that does what its check mode said, after which nothing is left to do."""
    before = CONF.read_text()
    shown = call(check=True, **options)
    assert CONF.read_text() == before
    done = call(**options)
    for key in ("changed", "steps", "commands", "snapshots", "snapname", "diff"):
        assert shown[key] == done[key], key
    assert done["snapshots"] == listed()
    again = call(**options)
    assert (again["changed"], again["steps"], again["commands"]) == (False, [], [])
    return done


def leave(name: str, state: str, lock: str = "") -> None:
    """Make of a snapshot what a task leaves that is killed in the middle: a half-made one, and a lock."""
    text = CONF.read_text()
    assert f"[{name}]\n" in text
    locked = f"lock: {lock}\n" if lock else ""
    CONF.write_text(locked + text.replace(f"[{name}]\n", f"[{name}]\nsnapstate: {state}\n"))


def warnings_of(result: dict) -> str:
    # Newer ansible-core has more than a text for each.
    return json.dumps(result.get("warnings", []))


def test_present_and_absent(container, way):
    done = converge(snapname="one", description="the first")
    assert done["steps"] == ["there is no snapshot one"]
    assert (done["diff"]["before"], done["diff"]["after"]) == ("", "one\n")
    assert "the first" in pct("listsnapshot", str(VMID))
    assert done["status"] == "stopped"
    assert converge(snapname="two")["snapshots"] == ["one", "two"]
    assert converge(snapname="one", state="absent")["snapshots"] == ["two"]
    assert call(snapname="one", state="absent")["changed"] is False


def test_a_series_keeps_the_youngest(container, way):
    """Each run takes one; the oldest go, and nothing that isn't of the series."""
    call(snapname="other")
    taken = [call(prefix="auto-", keep=2)["snapname"] for _round in range(3)]
    assert len(set(taken)) == 3
    assert listed() == [*taken[1:], "other"]
    shown = call(check=True, prefix="auto-", keep=2)
    assert names(shown) == ["snapshot", "delsnapshot"]
    assert listed() == [*taken[1:], "other"]
    assert converge(state="absent", prefix="auto-", keep=1)["snapshots"] == [taken[2], "other"]
    converge(snapname="auto-named", prefix="auto-", keep=1)
    assert listed() == ["auto-named", "other"]


def test_a_rollback_kills_loses_and_starts_again(way):
    create(VMID)
    pct("start", str(VMID))
    inside(VMID, "echo kept >/root/kept; sync")
    call(snapname="good")
    inside(VMID, "echo lost >/root/lost; sync")
    pct("set", str(VMID), "--memory", "300", "--description", "said later")
    shown = call(check=True, state="rollback", snapname="good")
    assert inside(VMID, "cat /root/lost") == "lost"
    done = call(state="rollback", snapname="good")
    assert (done["changed"], done["steps"], done["commands"]) == (True, shown["steps"], shown["commands"])
    assert "it is killed, not shut down" in done["steps"][0]
    assert "what was written since is lost" in warnings_of(done)
    assert (done["status"], shown["status"]) == ("running", "running")
    assert inside(VMID, "ls /root") == "kept"
    assert "memory: 300" in done["diff"]["before"]
    assert "memory: 256" in done["diff"]["after"]
    assert shown["diff"]["after"] == done["diff"]["after"]
    assert "said later" in pct("config", str(VMID))
    # Left as it is asked for, whatever it was.
    assert call(state="rollback", snapname="good", start=False)["status"] == "stopped"
    quiet = call(state="rollback", snapname="good")
    assert (quiet["status"], warnings_of(quiet)) == ("stopped", "[]")
    assert call(state="rollback", snapname="good", start=True)["status"] == "running"


def test_refusals_say_what_to_do(container, way):
    call(snapname="one")
    assert "there are: one" in failure(state="rollback", snapname="nope")
    assert "there are: one" in failure(check=True, state="rollback", snapname="nope")
    assert "2 to 40 characters" in failure(snapname="1")
    assert "CTID 849 does not exist" in failure(vmid=849, snapname="one")
    assert "CTID 849 does not exist" in failure(check=True, vmid=849, state="rollback", snapname="one")
    assert call(check=True, vmid=849, snapname="one")["snapshots"] == ["one"]
    # Left over by nobody knows what: that is for a person to look at.
    CONF.write_text("lock: backup\n" + CONF.read_text())
    said = failure(snapname="two")
    assert "CT is locked (backup)" in said
    assert "pct unlock 840" in said


def test_what_has_no_snapshots(way, tmp_path):
    create(VMID)
    pct("set", str(VMID), "--mp3", f"{tmp_path},mp=/models")
    said = failure(snapname="one")
    assert f"mp3 ({tmp_path} at /models)" in said
    assert said == failure(check=True, snapname="one")
    create(VMID, storage="local-dir")
    said = failure(snapname="one")
    assert "snapshot feature is not available" in said
    assert "rootfs is on local-dir (type dir)" in said
    create(VMID)
    pct("template", str(VMID))
    assert "840 is a template" in failure(snapname="one")
    assert listed() == []


def test_a_half_made_one_is_no_snapshot_and_goes(container, way):
    call(snapname="good")
    call(snapname="bad")
    leave("bad", "prepare")
    assert call(check=True, snapname="good")["snapshots"] == ["good"]
    assert "half-made" in failure(state="rollback", snapname="bad")
    done = converge(snapname="bad")
    assert [step.split(" (")[0] for step in done["steps"]] == ["bad was left half-made", "there is no snapshot bad"]
    leave("bad", "delete")
    assert converge(state="absent", snapname="bad")["snapshots"] == ["good"]


def test_a_killed_task_leaves_a_lock_that_the_next_run_takes_away(container):
    call(snapname="good")
    call(snapname="bad")
    leave("bad", "delete", lock="snapshot-delete")
    # The REST API can't remove a lock, so it says who can.
    assert "pct unlock 840" in failure(**api_options("token"), state="absent", snapname="bad")
    done = converge(state="absent", snapname="bad")
    assert names(done) == ["unlock", "delsnapshot"]
    assert "lock" not in CONF.read_text()
    CONF.write_text("lock: rollback\n" + CONF.read_text())
    done = call(state="rollback", snapname="good")
    assert names(done) == ["unlock", "rollback"]
    assert "lock" not in CONF.read_text()


def test_a_task_of_somebody_else_is_waited_for(container):
    """As long as a process holds the lock on the conf file, nothing is done; then it goes on."""
    held = subprocess.Popen(["flock", f"/run/lock/lxc/pve-config-{VMID}.lock", "sleep", "2"], stdin=subprocess.DEVNULL)
    try:
        assert call(snapname="one")["snapshots"] == ["one"]
    finally:
        assert held.wait(timeout=10) == 0


def test_who_may_only_look_is_told_so(container):
    said = failure(**api_options("viewer"), snapname="one")
    assert "Permission check failed" in said
    assert listed() == []
