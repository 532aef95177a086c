# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a container is and what is declared to the steps between them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import pct_conf
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container_plan import (
    Container,
    Declared,
    PlanError,
    plan,
)
from hypothesis import given
from hypothesis import strategies as st

CONF = """\
arch: amd64
cores: 2
features: nesting=1,keyctl=1
hostname: web
memory: 512
net0: name=eth0,bridge=vmbr0,firewall=1,gw=10.92.0.1,hwaddr=BC:24:11:00:00:01,ip=10.92.0.70/24,type=veth
onboot: 1
ostype: debian
rootfs: local-btrfs:vm-700-disk-0.subvol,size=8G
startup: order=5,up=10
swap: 512
tags: a;b
unprivileged: 1
lxc.cap.drop: sys_boot
"""
DEVICES = "dev0: /dev/nvidia0\ndev1: /dev/nvidia1\ndev2: /dev/nvidiactl,mode=0666\n"
MOUNTS = "mp0: /tank/models,mp=/models\nmp1: local-btrfs:vm-700-disk-1.subvol,mp=/data,size=50G\n"
SNAPSHOT = "\n[before]\nmemory: 256\nlxc.cap.drop: other\nsnaptime: 1\n"

STOPPED = Container(exists=True, text=CONF)
RUNNING = replace(STOPPED, running=True)
BTRFS = {"local-btrfs": "btrfs", "local-dir": "dir", "local": "dir"}


def declared(**values) -> Declared:
    return Declared(vmid=700, **values)


def argvs(planned) -> list:
    """The pct commands of a plan without "pct", as text."""
    return [" ".join(step.argv[1:]) for step in planned.steps if step.argv]


def kinds(planned) -> list:
    """What a plan's steps are: pct's command, or the kind."""
    return [step.argv[1] if step.argv else step.kind for step in planned.steps]


def assert_converges(wanted: Declared, actual: Container, **more) -> None:
    """What the plan predicts needs no further step. (A restart that was not allowed stays to be done.)"""
    first = plan(wanted, actual, **more)
    assert plan(wanted, first.after, **more).steps == ()


class TestNothingToDo:
    """Fault 1: a run that changes nothing makes pct calls, restarts the container, adds a volume."""

    SAME = (
        {},
        {"config": {"memory": 512, "cores": "2", "swap": 512}},
        {"config": {"hostname": "web", "onboot": True}},
        {"config": {"features": {"keyctl": 1, "nesting": True}}},
        {"config": {"features": {"keyctl": 1, "nesting": True, "fuse": False}}},
        {"config": {"features": "keyctl=1,nesting=1"}},
        {"config": {"startup": {"order": 5, "up": 10}}},
        {"config": {"tags": ["B", "a"]}},
        {"config": {"net0": {"name": "eth0", "ip": "10.92.0.70/24"}}},
        {"config": {"net0": "name=eth0,bridge=vmbr0,firewall=1,gw=10.92.0.1,ip=10.92.0.70/24"}},
        {"config": {"nameserver": ""}},
        {"config": {"description": ""}},
        {"delete": ["nameserver", "lxc.idmap"]},
        {"disk_gb": 8},
        {"unprivileged": True},
        {"storage": "other"},
        {"ostemplate": "local:vztmpl/other.tar.zst"},
        {"clone_vmid": 900},
        {"raw": []},
        {"raw": ["lxc.cap.drop = sys_boot"]},
        {"devices": []},
        {"mounts": []},
    )

    @pytest.mark.parametrize("values", SAME)
    @pytest.mark.parametrize("state", ["present", "stopped"])
    def test_stopped(self, values, state):
        assert plan(declared(state=state, **values), STOPPED).steps == ()

    @pytest.mark.parametrize("values", SAME)
    @pytest.mark.parametrize("state", ["present", "started"])
    def test_running(self, values, state):
        planned = plan(declared(state=state, **values), RUNNING)
        assert planned.steps == ()
        assert planned.restart_required == ()

    def test_devices_and_mounts(self):
        actual = replace(RUNNING, text=CONF + DEVICES + MOUNTS)
        wanted = declared(
            devices=[{"path": "/dev/nvidia1"}, {"path": "/dev/nvidiactl", "mode": "0666"}, {"path": "/dev/nvidia0"}],
            mounts=[{"source": "/tank/models", "mp": "/models/"}, {"source": "local-btrfs:50", "mp": "/data"}],
        )
        assert plan(wanted, actual).steps == ()

    def test_left_out_is_not_spoken_of(self):
        actual = replace(RUNNING, text=CONF + DEVICES + MOUNTS)
        assert plan(declared(config={"memory": 512}), actual).steps == ()

    def test_a_description(self):
        actual = replace(STOPPED, text="#one%0Atwo %25\n" + CONF)
        assert plan(declared(config={"description": "one\ntwo %"}), actual).steps == ()


class TestSet:
    @pytest.mark.parametrize(
        ("config", "argv"),
        [
            ({"memory": 1024}, "set 700 --memory 1024"),
            ({"memory": 1024, "cores": 4}, "set 700 --cores 4 --memory 1024"),
            ({"onboot": False}, "set 700 --onboot 0"),
            ({"features": {"nesting": 1}}, "set 700 --features nesting=1"),
            ({"features": {}}, "set 700 --delete features"),
            ({"startup": {"order": 6}}, "set 700 --startup order=6"),
            ({"tags": ["c"]}, "set 700 --tags c"),
            ({"nameserver": ["1.1.1.1", "8.8.8.8"]}, "set 700 --nameserver 1.1.1.1 8.8.8.8"),
            ({"swap": None, "memory": 1}, "set 700 --memory 1 --delete swap"),
            ({"description": "-x"}, "set 700 --description -x"),
            ({"cpulimit": 1.5}, "set 700 --cpulimit 1.5"),
        ],
    )
    def test_one_call_for_all_keys(self, config, argv):
        assert argvs(plan(declared(config=config), STOPPED)) == [argv]
        assert_converges(declared(config=config), STOPPED)

    def test_a_net_keeps_what_a_dictionary_does_not_name(self):
        planned = plan(declared(config={"net0": {"ip": "10.92.0.71/24"}}), STOPPED)
        net = pct_conf.split_property("net0", planned.after.conf.main.values["net0"])
        assert net == {
            "name": "eth0", "bridge": "vmbr0", "firewall": "1", "gw": "10.92.0.1", "hwaddr": "BC:24:11:00:00:01",
            "ip": "10.92.0.71/24", "type": "veth",
        }  # fmt: skip

    def test_a_net_as_a_string_keeps_its_mac_only(self):
        planned = plan(declared(config={"net0": "name=eth0,bridge=vmbr1,ip=dhcp"}), STOPPED)
        net = pct_conf.split_property("net0", planned.after.conf.main.values["net0"])
        assert net == {
            "name": "eth0", "bridge": "vmbr1", "ip": "dhcp", "hwaddr": "BC:24:11:00:00:01", "type": "veth",
        }  # fmt: skip

    def test_a_net_that_goes_to_dhcp_has_no_gateway(self):
        planned = plan(declared(config={"net0": {"ip": "dhcp"}}), STOPPED)
        assert "gw=" not in planned.after.conf.main.values["net0"]

    def test_an_own_mac(self):
        planned = plan(declared(config={"net0": {"hwaddr": "BC:24:11:00:00:99"}}), STOPPED)
        assert "hwaddr=BC:24:11:00:00:99" in argvs(planned)[0]

    def test_a_second_net(self):
        planned = plan(declared(config={"net1": {"name": "eth1", "bridge": "vmbr0", "ip": "dhcp"}}), STOPPED)
        assert argvs(planned) == ["set 700 --net1 name=eth1,bridge=vmbr0,ip=dhcp"]

    def test_delete(self):
        planned = plan(declared(delete=["swap", "nothing"]), STOPPED)
        assert argvs(planned) == ["set 700 --delete swap"]
        assert "swap" not in planned.after.conf.main.values

    @pytest.mark.parametrize(
        ("values", "key"),
        [
            ({"config": {"swap": 1}, "delete": ["swap"]}, "swap"),
            ({"devices": [{"path": "/dev/x"}], "delete": ["dev0"]}, "dev0"),
            ({"raw": ["lxc.cap.drop: a"], "delete": ["lxc.cap.drop"]}, "lxc.cap.drop"),
        ],
    )
    def test_declared_and_deleted(self, values, key):
        with pytest.raises(PlanError, match=f"CTID 700: {key} is declared, and is to be deleted"):
            plan(declared(**values), STOPPED)

    def test_deleted_for_two_reasons(self):
        actual = replace(STOPPED, text=CONF + DEVICES)
        planned = plan(declared(devices=[], config={"swap": ""}, delete=["dev0", "swap"]), actual)
        assert argvs(planned) == ["set 700 --delete dev0,dev1,dev2,swap"]

    @pytest.mark.parametrize("key", ["memory", "cores", "swap", "tags", "onboot", "startup", "description", "net0"])
    def test_live_keys_need_no_restart(self, key):
        value = {"tags": "z", "onboot": 0, "startup": "order=1", "net0": {"ip": "dhcp"}}.get(key, 7)
        planned = plan(declared(config={key: value}), RUNNING)
        assert kinds(planned) == ["set"]
        assert planned.restart_required == ()

    @pytest.mark.parametrize(
        ("values", "key"),
        [
            ({"config": {"features": {"nesting": 1}}}, "features"),
            ({"config": {"hostname": "other"}}, "hostname"),
            ({"config": {"nameserver": "1.1.1.1"}}, "nameserver"),
            ({"devices": [{"path": "/dev/null"}]}, "dev0"),
        ],
    )
    def test_other_keys_restart_a_running_container_only(self, values, key):
        assert kinds(plan(declared(**values), RUNNING)) == ["set", "reboot", "boot"]
        assert kinds(plan(declared(**values), STOPPED)) == ["set"]
        never = plan(declared(restart="never", **values), RUNNING)
        assert kinds(never) == ["set"]
        assert never.restart_required == (key,)

    def test_what_waits_already_is_not_set_again_but_restarted_for(self):
        actual = replace(RUNNING, text=CONF + "\n[pve:pending]\nfeatures: nesting=1\ndelete: swap\n")
        wanted = declared(config={"features": {"nesting": 1}}, delete=["swap"])
        planned = plan(wanted, actual)
        assert kinds(planned) == ["reboot", "boot"]
        assert planned.after.conf.main.values["features"] == "nesting=1"
        assert "swap" not in planned.after.conf.main.values
        assert plan(replace(wanted, restart="never"), actual).restart_required == ("features", "swap")

    def test_a_key_that_waits_for_its_deletion_is_set_again_when_declared(self):
        actual = replace(RUNNING, text=CONF + "\n[pve:pending]\ndelete: features\n")
        planned = plan(declared(config={"features": {"nesting": 1, "keyctl": 1}}), actual)
        assert argvs(planned)[0] == "set 700 --features keyctl=1,nesting=1"

    def test_a_change_without_a_meaning_names_the_key(self):
        with pytest.raises(ValueError, match="net0: 'eth0'"):
            plan(declared(config={"net0": "eth0"}), STOPPED)


class TestDevices:
    """Fault 2: a clone of a template that has GPUs 0 and 1 keeps both, although it was given one."""

    ACTUAL = replace(STOPPED, text=CONF + DEVICES)

    @pytest.mark.parametrize(
        ("devices", "argv"),
        [
            ([], ["set 700 --delete dev0,dev1,dev2"]),
            ([{"path": "/dev/nvidia0"}], ["set 700 --delete dev1,dev2"]),
            ([{"path": "/dev/nvidia1"}], ["set 700 --delete dev0,dev2"]),
            (
                [{"path": "/dev/nvidia0"}, {"path": "/dev/nvidia1"}, {"path": "/dev/nvidiactl"}],
                ["set 700 --dev2 /dev/nvidiactl"],
            ),
            ([{"path": "/dev/nvidia7", "uid": 3}], ["set 700 --dev3 /dev/nvidia7,uid=3 --delete dev0,dev1,dev2"]),
        ],
    )
    def test_exactly_what_is_declared(self, devices, argv):
        planned = plan(declared(devices=devices), self.ACTUAL)
        assert argvs(planned) == argv
        assert_converges(declared(devices=devices), self.ACTUAL)

    @given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
    def test_from_any_to_any(self, there, wanted):
        text = CONF + "".join(f"dev{place}: /dev/nvidia{number}\n" for place, number in enumerate(there))
        devices = [{"path": f"/dev/nvidia{number}"} for number in wanted]
        planned = plan(declared(devices=devices), replace(STOPPED, text=text))
        values = planned.after.conf.main.values
        assert sorted(value for key, value in values.items() if key.startswith("dev")) == sorted(
            device["path"] for device in devices
        )
        assert plan(declared(devices=devices), planned.after).steps == ()
        assert bool(planned.steps) == (there != wanted)

    def test_of_a_clone(self):
        source = Container(exists=True, text=CONF + DEVICES + "template: 1\n")
        planned = plan(declared(clone_vmid=900, devices=[{"path": "/dev/nvidia1"}]), Container(), source, BTRFS)
        assert argvs(planned) == ["clone 900 700", "set 700 --delete dev0,dev2"]
        assert [key for key in planned.after.conf.main.values if key.startswith("dev")] == ["dev1"]

    def test_more_than_proxmox_has_numbers_for(self):
        with pytest.raises(PlanError, match="256"):
            plan(declared(devices=[{"path": f"/dev/x{number}"} for number in range(300)]), STOPPED)


class TestMounts:
    def test_one_for_each_mount_point_ever(self):
        mounts = [{"source": "/tank/models", "mp": "/models"}, {"source": "local-btrfs:50", "mp": "/data"}]
        planned = plan(declared(mounts=mounts), STOPPED)
        assert argvs(planned) == ["set 700 --mp0 /tank/models,mp=/models --mp1 local-btrfs:50,mp=/data"]
        assert_converges(declared(mounts=mounts), STOPPED)

    def test_another_source_and_read_only(self):
        actual = replace(STOPPED, text=CONF + MOUNTS)
        planned = plan(declared(mounts=[{"source": "/tank/other", "mp": "/models", "ro": True}]), actual)
        assert argvs(planned) == ["set 700 --mp0 /tank/other,mp=/models,ro=1"]
        assert plan(declared(mounts=[{"source": "/tank/other", "mp": "/models", "ro": False}]), planned.after).steps

    def test_a_free_number(self):
        actual = replace(STOPPED, text=CONF + "mp0: /a,mp=/a\nmp2: /c,mp=/c\n")
        assert argvs(plan(declared(mounts=[{"source": "/b", "mp": "/b"}]), actual)) == ["set 700 --mp1 /b,mp=/b"]

    def test_a_new_one_is_there_at_once_and_a_changed_one_after_a_restart(self):
        assert kinds(plan(declared(mounts=[{"source": "/b", "mp": "/b"}]), RUNNING)) == ["set"]
        actual = replace(RUNNING, text=CONF + MOUNTS)
        assert kinds(plan(declared(mounts=[{"source": "/b", "mp": "/models"}]), actual)) == ["set", "reboot", "boot"]

    def test_declared_twice(self):
        with pytest.raises(PlanError, match="declared twice"):
            plan(declared(mounts=[{"source": "/a", "mp": "/m"}, {"source": "/b", "mp": "/m/"}]), STOPPED)


class TestDisk:
    @pytest.mark.parametrize(
        ("size", "step"), [(8, []), (9, ["resize 700 rootfs 9G"]), (100, ["resize 700 rootfs 100G"])]
    )
    def test_it_grows(self, size, step):
        assert argvs(plan(declared(disk_gb=size), RUNNING)) == step
        assert_converges(declared(disk_gb=size), RUNNING)

    def test_it_never_shrinks(self):
        with pytest.raises(PlanError, match=r"700.*7.*less than the 8G.*at least 8"):
            plan(declared(disk_gb=7), STOPPED)

    def test_at_least_is_rounded_up(self):
        actual = replace(STOPPED, text=CONF.replace("size=8G", "size=8704M"))
        with pytest.raises(PlanError, match="at least 9"):
            plan(declared(disk_gb=8), actual)

    def test_a_template_keeps_its_disk(self):
        assert plan(declared(disk_gb=9), replace(STOPPED, text=CONF + "template: 1\n")).steps == ()


class TestUnprivileged:
    @pytest.mark.parametrize(("text", "wanted"), [(CONF, False), (CONF.replace("unprivileged: 1\n", ""), True)])
    def test_a_mismatch_says_what_to_do(self, text, wanted):
        with pytest.raises(PlanError, match=r"700 is .*privileged and is declared .*remove the container"):
            plan(declared(unprivileged=wanted), replace(STOPPED, text=text))


class TestRaw:
    """Fault 4: lines appended to a conf with snapshots land in a snapshot's section."""

    ACTUAL = replace(STOPPED, text=CONF + SNAPSHOT)

    @pytest.mark.parametrize(
        ("raw", "after"),
        [
            (["lxc.cap.drop: sys_boot", "lxc.cap.drop: mknod"], ["sys_boot", "mknod"]),
            (["lxc.cap.drop: mknod"], ["mknod"]),
            (["lxc.cap.drop:"], [""]),
        ],
    )
    def test_the_lines_of_a_key_become_exactly_these(self, raw, after):
        planned = plan(declared(raw=raw), self.ACTUAL)
        assert kinds(planned) == ["raw"]
        assert [value for _key, value in planned.after.conf.main.raw] == after
        text = pct_conf.replace_raw(self.ACTUAL.text, list(planned.steps[0].raw))
        assert pct_conf.parse(text).snapshots == self.ACTUAL.conf.snapshots
        assert plan(declared(raw=raw), replace(self.ACTUAL, text=text)).steps == ()

    def test_lines_of_other_keys_stay(self):
        planned = plan(declared(raw=["lxc.apparmor.profile: unconfined"]), self.ACTUAL)
        assert planned.after.conf.main.raw == [("lxc.cap.drop", "sys_boot"), ("lxc.apparmor.profile", "unconfined")]

    def test_delete(self):
        planned = plan(declared(delete=["lxc.cap.drop"]), self.ACTUAL)
        assert kinds(planned) == ["raw"]
        assert planned.steps[0].raw_removed == ("lxc.cap.drop",)
        assert planned.after.conf.main.raw == []

    @pytest.mark.parametrize("state", ["present", "started"])
    def test_a_running_container_is_down_first_so_that_no_restart_is_lost(self, state):
        planned = plan(declared(state=state, raw=["lxc.cap.drop: mknod"], config={"memory": 7}), RUNNING)
        assert kinds(planned) == ["shutdown", "set", "raw", "start", "boot"]
        assert planned.after.running
        assert planned.restart_required == ()

    def test_to_be_stopped_anyway(self):
        assert kinds(plan(declared(state="stopped", raw=["lxc.cap.drop: mknod"]), RUNNING)) == ["shutdown", "raw"]

    def test_without_leave_to_restart(self):
        planned = plan(declared(restart="never", raw=["lxc.cap.drop: mknod"]), RUNNING)
        assert kinds(planned) == ["raw"]
        assert planned.restart_required == ("lxc.cap.drop",)

    @pytest.mark.parametrize("line", ["nonsense", "lxc.rootfs.path: /", "lxc.nonsense: 1"])
    def test_a_line_that_proxmox_would_drop(self, line):
        with pytest.raises(PlanError, match=r"CTID 700: raw line: .*; correct lxc_options"):
            plan(declared(raw=[line]), STOPPED)


class TestCreate:
    def test_all_keys_in_one_call(self):
        planned = plan(
            declared(
                state="started", ostemplate="local:vztmpl/x.tar.zst", storage="local-btrfs", disk_gb=8,
                unprivileged=True, config={"hostname": "web", "net0": {"name": "eth0", "ip": "dhcp"}},
                devices=[{"path": "/dev/x"}], mounts=[{"source": "/m", "mp": "/m"}],
            ),
            Container(),
        )  # fmt: skip
        assert argvs(planned) == [
            "create 700 local:vztmpl/x.tar.zst --dev0 /dev/x --hostname web --mp0 /m,mp=/m --net0 name=eth0,ip=dhcp "
            "--rootfs local-btrfs:8 --unprivileged 1",
            "start 700",
        ]
        assert kinds(planned) == ["create", "start", "boot"]
        assert planned.steps[0].then_plan

    @pytest.mark.parametrize("unprivileged", [True, False])
    def test_unprivileged_is_always_said(self, unprivileged):
        planned = plan(declared(ostemplate="x", unprivileged=unprivileged), Container())
        assert f"--unprivileged {int(unprivileged)}" in argvs(planned)[0]

    def test_from_nothing(self):
        with pytest.raises(PlanError, match=r"700 does not exist.*clone_from_ctid.*template"):
            plan(declared(), Container())

    def test_raw_lines_come_before_the_start(self):
        planned = plan(declared(state="started", ostemplate="x", raw=["lxc.cap.drop: a"]), Container())
        assert kinds(planned) == ["create", "raw", "start", "boot"]


class TestClone:
    TEMPLATE = Container(exists=True, text=CONF + "template: 1\n")
    PLAIN = Container(exists=True, text=CONF + SNAPSHOT)

    @pytest.mark.parametrize(
        ("source", "values", "argv"),
        [
            (TEMPLATE, {}, "clone 900 700"),
            (TEMPLATE, {"storage": "local-btrfs"}, "clone 900 700"),
            (TEMPLATE, {"storage": "local-dir"}, "clone 900 700 --full 1 --storage local-dir"),
            (TEMPLATE, {"clone_full": True}, "clone 900 700 --full 1 --storage local-btrfs"),
            (TEMPLATE, {"config": {"hostname": "web"}}, "clone 900 700 --hostname web"),
            (PLAIN, {}, "clone 900 700 --full 1 --storage local-btrfs"),
            (PLAIN, {"clone_full": False}, "clone 900 700"),
            (
                PLAIN,
                {"clone_snapname": "before"},
                "clone 900 700 --snapname before --full 1 --storage local-btrfs",
            ),
        ],
    )
    def test_linked_or_full(self, source, values, argv):
        planned = plan(declared(clone_vmid=900, **values), Container(), source, BTRFS)
        assert argvs(planned)[0] == argv
        assert planned.steps[0].then_plan

    def test_a_template_on_a_directory_is_cloned_in_full(self):
        source = replace(self.TEMPLATE, text=self.TEMPLATE.text.replace("local-btrfs", "local-dir"))
        assert "--full 1" in argvs(plan(declared(clone_vmid=900), Container(), source, BTRFS))[0]

    def test_a_source_that_does_not_exist(self):
        for source in (None, Container()):
            with pytest.raises(PlanError, match="cloned from 900, which does not exist on this node"):
                plan(declared(clone_vmid=900), Container(), source)

    def test_a_snapshot_that_does_not_exist(self):
        with pytest.raises(PlanError, match="snapshot 'x' of 900, which has before"):
            plan(declared(clone_vmid=900, clone_snapname="x"), Container(), self.PLAIN)

    def test_a_snapshot_that_is_being_taken_is_none(self):
        source = replace(self.PLAIN, text=self.PLAIN.text + "snapstate: prepare\n")
        with pytest.raises(PlanError, match="which has no snapshots"):
            plan(declared(clone_vmid=900, clone_snapname="before"), Container(), source)

    def test_what_the_clone_will_have(self):
        source = Container(exists=True, text=CONF + "lock: disk\nunused0: x\n" + SNAPSHOT)
        planned = plan(declared(clone_vmid=900), Container(), source)
        values = planned.after.conf.main.values
        assert not {"lock", "unused0", "template"} & set(values)
        assert "hwaddr" not in values["net0"]
        assert planned.after.conf.main.raw == [("lxc.cap.drop", "sys_boot")]
        assert planned.after.conf.snapshots == {}

    def test_of_a_snapshot_it_has_the_snapshots_configuration(self):
        planned = plan(declared(clone_vmid=900, clone_snapname="before"), Container(), self.PLAIN)
        assert planned.after.conf.main.values == {"memory": "256"}
        assert planned.after.conf.main.raw == [("lxc.cap.drop", "other")]

    def test_the_rest_is_planned_on_it(self):
        wanted = declared(state="started", clone_vmid=900, disk_gb=9, config={"memory": 7})
        planned = plan(wanted, Container(), self.TEMPLATE, BTRFS)
        assert kinds(planned) == ["clone", "resize", "set", "start", "boot"]

    def test_a_mismatch_of_privilege_is_seen_before_the_clone(self):
        with pytest.raises(PlanError, match="unprivileged"):
            plan(declared(clone_vmid=900, unprivileged=False), Container(), self.TEMPLATE)


class TestStates:
    """Fault 5: a second run on a template fails."""

    TEMPLATE = replace(STOPPED, text=CONF + "template: 1\n")

    @pytest.mark.parametrize(
        ("state", "actual", "steps"),
        [
            ("present", STOPPED, []),
            ("present", RUNNING, []),
            ("started", STOPPED, ["start", "boot"]),
            ("started", RUNNING, []),
            ("stopped", STOPPED, []),
            ("stopped", RUNNING, ["shutdown"]),
            ("restarted", STOPPED, ["start", "boot"]),
            ("restarted", RUNNING, ["reboot", "boot"]),
            ("template", STOPPED, ["template"]),
            ("template", RUNNING, ["shutdown", "template"]),
            ("template", TEMPLATE, []),
            ("present", TEMPLATE, []),
            ("stopped", TEMPLATE, []),
            ("absent", STOPPED, ["destroy"]),
            ("absent", RUNNING, ["stop", "destroy"]),
            ("absent", TEMPLATE, ["destroy"]),
            ("absent", Container(), []),
        ],
    )
    def test_from_any_to_any(self, state, actual, steps):
        planned = plan(declared(state=state), actual)
        assert kinds(planned) == steps
        if state != "restarted":
            assert_converges(declared(state=state), actual)

    @pytest.mark.parametrize("state", ["started", "restarted"])
    def test_a_template_can_not_run(self, state):
        with pytest.raises(PlanError, match="700 is a template"):
            plan(declared(state=state), self.TEMPLATE)

    def test_a_template_with_snapshots(self):
        with pytest.raises(PlanError, match=r"snapshots \(before\)"):
            plan(declared(state="template"), replace(STOPPED, text=CONF + SNAPSHOT))

    def test_a_protected_container_stays(self):
        with pytest.raises(PlanError, match="pct set 700 --protection 0"):
            plan(declared(state="absent"), replace(STOPPED, text=CONF + "protection: 1\n"))

    def test_one_restart_for_all_that_waits(self):
        wanted = declared(state="restarted", config={"features": {}, "hostname": "x"})
        assert kinds(plan(wanted, RUNNING)) == ["set", "reboot", "boot"]

    def test_configured_before_it_starts(self):
        assert kinds(plan(declared(state="started", config={"memory": 7}), STOPPED)) == ["set", "start", "boot"]


CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "memory": st.integers(16, 9999),
        "cores": st.integers(1, 64),
        "hostname": st.from_regex(r"[a-z]{1,9}", fullmatch=True),
        "onboot": st.booleans(),
        "features": st.dictionaries(
            st.sampled_from(["nesting", "keyctl", "fuse"]), st.sampled_from([0, 1, True, False])
        ),
        "startup": st.dictionaries(st.sampled_from(["order", "up", "down"]), st.integers(0, 99)),
        "net0": st.dictionaries(st.sampled_from(["ip", "gw", "firewall"]), st.sampled_from(["dhcp", "0", "1"])),
        "description": st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=9),
        "tags": st.lists(st.sampled_from("aBc")),
        "nameserver": st.sampled_from(["", "1.1.1.1", "1.1.1.1 8.8.8.8"]),
    },
)
NAMES = st.lists(st.sampled_from("abc"), unique=True)
DECLARATIONS = st.builds(
    Declared,
    vmid=st.just(700),
    state=st.sampled_from(["present", "started", "stopped", "template"]),
    config=CONFIGS,
    clone_vmid=st.just(900),
    disk_gb=st.sampled_from([None, 8, 16]),
    devices=st.none() | NAMES.map(lambda names: [{"path": f"/dev/{name}"} for name in names]),
    mounts=st.none() | NAMES.map(lambda names: [{"source": f"/{name}", "mp": f"/{name}"} for name in names]),
    raw=st.none() | st.lists(st.sampled_from(["lxc.cap.drop: a", "lxc.cap.drop: b", "lxc.idmap = u 0 1 2"])),
    delete=st.lists(st.sampled_from(["swap", "dev9", "lxc.arch"]), unique=True),
)  # fmt: skip
CONTAINERS = st.sampled_from([Container(), STOPPED, RUNNING, replace(RUNNING, text=CONF + DEVICES + MOUNTS)])


@given(DECLARATIONS, CONTAINERS)
def test_after_any_plan_there_is_nothing_left_to_do(wanted, actual):
    source = Container(exists=True, text=CONF + DEVICES + "template: 1\n")
    first = plan(wanted, actual, source, BTRFS)
    again = plan(wanted, first.after, source, BTRFS)
    assert again.steps == ()
    assert first.after.exists
