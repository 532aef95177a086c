# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_container, pct_container_info and pct_snapshot on real containers. Needs a lab that is up; CTIDs 800 to 819."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_modules import (
    CONFIGS,
    OSTEMPLATE,
    call,
    calls,
    converge,
    destroy,
    failure,
    info,
    inside,
    names,
    pct,
    require_lab,
    result_of,
    start_module,
    through,
    unchanged,
    wait_until,
    way,
)

pytestmark = pytest.mark.lab

DEVICES = [Path(f"/dev/phoenix-test{number}") for number in range(3)]
NET = {"name": "eth0", "bridge": "vmbr0", "ip": "10.92.0.180/24", "gw": "10.92.0.1"}
# What all containers of these tests are made of: small, and quick to start.
BASE = {
    "ostemplate": OSTEMPLATE,
    "storage": "local-btrfs",
    "disk_gb": 2,
    "unprivileged": True,
    "config": {"hostname": "plain", "memory": 256, "cores": 1, "features": {"nesting": 1}, "net0": NET},
}


@pytest.fixture(scope="module", params=["node", "api"], autouse=True)
def each_way(request) -> Iterator[None]:
    """All tests go both ways to the node; what the REST API can't do is marked as C(node_only)."""
    require_lab()
    with through(request.param):
        yield


@pytest.fixture
def node_only() -> None:
    if way() != "node":
        pytest.skip("the REST API can't do this (test_the_api_says_what_it_can_not_do)")


@pytest.fixture(scope="module", autouse=True)
def clean(each_way) -> Iterator[None]:
    """Containers and device nodes of these tests are gone before and after, also when one fails."""
    def remove() -> None:
        destroy(*range(819, 799, -1))
        for device in DEVICES:
            device.unlink(missing_ok=True)

    remove()
    for number, device in enumerate(DEVICES):
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3 + 2 * number))
    yield
    remove()


@pytest.fixture(scope="module")
def web(clean) -> int:
    """A running container, made by the module."""
    done = call(vmid=800, state="started", **BASE)
    assert done["changed"]
    assert names(done) == ["create", "start"]
    assert done["status"] == "running"
    # The REST API tells that it was started, not that the system inside is up.
    script = "hostname; systemctl is-system-running --wait || true"
    wait_until(lambda: inside(800, script) in ("plain\nrunning", "plain\ndegraded"), 60)
    return 800


@pytest.fixture(scope="module")
def source(clean) -> int:
    """A template with two devices, a raw line and a mark on its disk."""
    options = {**BASE, "devices": [{"path": str(device)} for device in DEVICES[:2]]}
    with through("node"):
        call(vmid=801, raw=["lxc.cap.drop: sys_boot"], **options)
    call(vmid=801, state="started", **options)
    inside(801, "echo mark >/root/mark")
    done = call(vmid=801, state="template", **options)
    assert names(done) == ["shutdown", "template"]
    return 801


@pytest.fixture
def stopped(source) -> Iterator[int]:
    """A linked clone that is stopped."""
    call(vmid=802, clone={"vmid": source})
    yield 802
    destroy(802)


class TestOne:
    """One container that runs, changed step by step."""

    def test_a_second_run_changes_nothing_and_calls_nothing(self, web):
        unchanged(vmid=web, state="started", **BASE)

    def test_a_live_change(self, web):
        pid = inside(web, "stat -c %Z /proc/1")
        done = converge(vmid=web, state="started", config={"memory": 300, "tags": ["B", "a"], "description": "-ü %\nx"})
        assert names(done) == ["set"]
        assert done["diff"] == done["shown"]["diff"]
        assert "memory: 300" in done["diff"]["after"]
        assert inside(web, "stat -c %Z /proc/1") == pid
        assert info(web)["config"]["memory"] == "300"

    def test_a_change_that_waits_and_the_restart_it_needs(self, web):
        config = {"features": {"nesting": 1, "keyctl": 1}, "hostname": "renamed"}
        done = converge(vmid=web, state="started", config=config, restart="never")
        assert done["restart_required"] == ["features", "hostname"]
        assert done["diff"] == done["shown"]["diff"]
        assert info(web)["pending"] == {"features": "keyctl=1,nesting=1"}
        done = converge(vmid=web, state="started", config=config)
        assert names(done) == ["reboot"]
        assert done["diff"] == done["shown"]["diff"]
        assert info(web)["pending"] == {}
        assert inside(web, "hostname") == "renamed"

    def test_features_are_exact(self, web):
        converge(vmid=web, state="started", config={"features": {"nesting": 1}})
        assert info(web)["config"]["features"] == "nesting=1"

    def test_a_mac_address_stays(self, web):
        before = info(web)["config"]["net0"]
        assert "hwaddr=" in before
        converge(vmid=web, config={"net0": {**NET, "ip": "10.92.0.181/24"}})
        assert info(web)["config"]["net0"] == before.replace("10.92.0.180", "10.92.0.181")

    def test_devices_are_exact(self, web):
        zero, one = ({"path": str(device)} for device in DEVICES[:2])
        # Whether a device can be opened: cgroups decide, whatever node root inside makes.
        for devices, opened in (([zero, one], "0 1"), ([one], "1"), ([], "")):
            converge(vmid=web, state="started", devices=devices)
            script = (
                "for n in 0 1; do test -c /dev/phoenix-test$n && head -c 1 /dev/phoenix-test$n >/tmp/x && echo $n; done"
            )
            assert inside(web, f"{script}; true").split() == opened.split()

    def test_a_device_that_is_not_there(self, web):
        message = failure(vmid=web, devices=[{"path": "/dev/phoenix-none"}])
        assert "Device /dev/phoenix-none does not exist" in message
        assert "dev0" not in info(web)["config"]

    def test_one_mount_each_ever(self, web, folder):
        (folder / "file").write_text("seen\n")
        mounts = [{"source": str(folder), "mp": "/srv/a"}]
        converge(vmid=web, state="started", mounts=mounts)
        assert inside(web, "cat /srv/a/file") == "seen"
        converge(vmid=web, state="started", mounts=[{**mounts[0], "mp": "/srv/a/", "ro": True}])
        assert inside(web, "touch /srv/a/x 2>/dev/null || echo no") == "no"
        assert [key for key in info(web)["config"] if key.startswith("mp")] == ["mp0"]
        converge(vmid=web, state="started", delete=["mp0"])

    def test_raw_lines_and_snapshots(self, web, node_only):
        """Fault 4: lines that are appended to a conf with snapshots land in a snapshot's section."""
        taken = call("pct_snapshot", vmid=web, snapname="before")
        assert taken["changed"]
        assert not call("pct_snapshot", vmid=web, snapname="before")["changed"]
        text = (CONFIGS / f"{web}.conf").read_text()
        section = text[text.index("[before]") :]
        for raw in (["lxc.environment = PHOENIX=one"], ["lxc.environment: PHOENIX=two", "lxc.cap.drop: mac_admin"]):
            done = converge(vmid=web, state="started", raw=raw)
            assert names(done) == ["reboot"]
            text = (CONFIGS / f"{web}.conf").read_text()
            assert text[text.index("[before]") :] == section
            assert inside(web, "tr '\\0' '\\n' </proc/1/environ | grep PHOENIX") == raw[0].split()[-1]
        assert info(web)["raw"] == ["lxc.environment: PHOENIX=two", "lxc.cap.drop: mac_admin"]
        assert "snapshots (before)" in failure(vmid=web, state="template")
        converge(vmid=web, delete=["lxc.environment", "lxc.cap.drop"])
        assert info(web)["raw"] == []
        assert call("pct_snapshot", vmid=web, snapname="before", state="absent")["snapshots"] == []

    def test_the_disk_grows_and_never_shrinks(self, web):
        converge(vmid=web, disk_gb=3)
        assert "size=3G" in info(web)["config"]["rootfs"]
        assert "less than the 3G" in failure(vmid=web, disk_gb=2)
        assert "less than the 3G" in failure(vmid=web, disk_gb=2, check=True)

    def test_a_mismatch_of_privilege(self, web):
        assert "is unprivileged and is declared privileged" in failure(vmid=web, unprivileged=False)

    def test_check_mode_changes_nothing(self, web):
        text, before = (CONFIGS / f"{web}.conf").read_bytes(), calls(web)
        shown = call(check=True, vmid=web, state="stopped", config={"memory": 999}, devices=[])
        assert shown["changed"]
        assert (CONFIGS / f"{web}.conf").read_bytes() == text
        assert calls(web) == before
        assert info(web)["status"] == "running"

    def test_a_lock_is_named_with_its_remedy(self, web):
        pct("set", str(web), "--lock", "backup")
        try:
            message = failure(vmid=web, config={"memory": 310})
        finally:
            pct("unlock", str(web))
        assert "CT is locked (backup)" in message
        assert f"pct unlock {web}" in message

    def test_a_wrong_value_is_pcts_own_word(self, web):
        message = failure(vmid=web, config={"memory": "much"})
        assert "memory" in message
        assert f"CTID {web}" in message

    def test_stop_and_start(self, web):
        assert converge(vmid=web, state="stopped")["status"] == "stopped"
        assert converge(vmid=web, state="started")["status"] == "running"

    def test_a_protected_container_stays(self, web):
        converge(vmid=web, config={"protection": True})
        assert "pct set 800 --protection 0" in failure(vmid=web, state="absent")
        converge(vmid=web, config={"protection": False})

    def test_absent(self, web):
        done = converge(vmid=web, state="absent")
        assert names(done) == ["stop", "destroy"]
        assert done["status"] == "absent"
        assert info(web)["exists"] is False


class TestClones:
    def test_a_template_twice(self, source):
        """Fault 5: a second run on a template fails."""
        unchanged(vmid=source, state="template")
        unchanged(vmid=source, state="present", **BASE)
        assert "is a template" in failure(vmid=source, state="started")

    def test_a_clone_has_the_devices_that_it_was_given(self, source):
        """Fault 2: a clone of a template that has two GPUs keeps both, although it was given one."""
        options = {"vmid": 803, "clone": {"vmid": source}, "devices": [{"path": str(DEVICES[1])}]}
        done = converge(state="started", **options)
        assert names(done)[0] == "clone"
        config = info(803)["config"]
        assert [value for key, value in config.items() if key.startswith("dev")] == [str(DEVICES[1])]
        assert inside(803, "ls /dev | grep phoenix; cat /root/mark") == f"{DEVICES[1].name}\nmark"
        assert info(803)["raw"] == ["lxc.cap.drop: sys_boot"]
        destroy(803)

    def test_a_full_clone_to_another_storage(self, source):
        done = converge(vmid=804, clone={"vmid": source}, storage="local-dir", devices=[])
        assert names(done)[0] == "clone"
        assert info(804)["config"]["rootfs"].startswith("local-dir:")
        destroy(804)

    def test_a_clone_of_a_snapshot(self, stopped):
        call("pct_snapshot", vmid=stopped, snapname="base")
        call(vmid=stopped, config={"memory": 512})
        clone = {"vmid": stopped, "snapname": "base"}
        converge(vmid=805, clone=clone)
        assert info(805)["config"]["memory"] == "256"
        assert "'none' of 802, which has base" in failure(vmid=806, clone={**clone, "snapname": "none"})
        destroy(805)

    def test_a_source_that_does_not_exist(self):
        message = failure(vmid=807, clone={"vmid": 819})
        assert "cloned from 819, which does not exist on this node" in message
        assert "\n" not in message
        assert not info(807)["exists"]

    def test_parallel_clones_of_one_source(self, source):
        vmids = [808, 809, 810]
        runs = [start_module("pct_container", False, {"vmid": vmid, "clone": {"vmid": source}}) for vmid in vmids]
        results = [result_of(run) for run in runs]
        assert [result.get("changed") for result in results] == [True] * 3, results
        assert all(info(vmid)["exists"] for vmid in vmids)
        destroy(*vmids)

    def test_an_archive_that_does_not_exist(self):
        message = failure(vmid=811, ostemplate="local:vztmpl/none.tar.zst", storage="local-btrfs", disk_gb=2)
        assert "none.tar.zst" in message
        assert not info(811)["exists"]

    def test_check_mode_of_a_whole_lineage_that_is_not_there(self):
        shown = call(check=True, vmid=812, state="started", clone={"vmid": 819}, unprivileged=True, disk_gb=2)
        assert names(shown) == ["clone", "start"]
        assert not info(812)["exists"]


class TestDoesNotStart:
    """One sentence, then the container's own log lines of this start; no traceback."""

    def test_a_raw_line_that_lxc_refuses(self, stopped, node_only):
        message = failure(vmid=stopped, state="started", raw=["lxc.cap.drop: no_such_capability"])
        first, *log = message.splitlines()
        assert first.startswith(f"CTID {stopped} doesn't start: startup for container '{stopped}' failed")
        assert any("ERROR" in line for line in log)
        assert "raw lines: lxc.cap.drop: sys_boot → lxc.cap.drop: no_such_capability" in log[-1]
        converge(vmid=stopped, state="started", raw=["lxc.cap.drop: sys_boot"])

    def test_a_device_that_vanished(self, stopped):
        call(vmid=stopped, devices=[{"path": str(DEVICES[2])}])
        number = os.stat(DEVICES[2]).st_rdev
        DEVICES[2].unlink()
        try:
            message = failure(vmid=stopped, state="started")
        finally:
            os.mknod(DEVICES[2], 0o666 | stat.S_IFCHR, number)
        assert message.startswith(f"CTID {stopped} doesn't start: ")
        assert str(DEVICES[2]) in message


def test_a_conf_that_is_no_utf_8_keeps_its_bytes(stopped, node_only):
    path = CONFIGS / f"{stopped}.conf"
    line = b"lxc.environment: LATIN=caf\xe9\n"
    path.write_bytes(path.read_bytes() + line)
    done = call(vmid=stopped, raw=["lxc.cap.drop: mac_admin"])
    assert done["changed"]
    assert line in path.read_bytes()
    assert b"lxc.cap.drop: mac_admin\n" in path.read_bytes()


def test_a_killed_run_before_its_restart_is_made_good_by_the_next(stopped):
    call(vmid=stopped, state="started")
    # What a run had written when it was killed: the key waits, the restart did not happen.
    pct("set", str(stopped), "--features", "nesting=1,keyctl=1")
    done = converge(vmid=stopped, state="started", config={"features": {"nesting": 1, "keyctl": 1}})
    assert names(done) == ["reboot"]
