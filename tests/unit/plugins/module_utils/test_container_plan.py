# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a container is and what is declared to the steps between them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import pct_conf
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container_plan import (
    Declared,
    Facts,
    Memory,
    PlanError,
    plan,
    to_remember,
    to_remember_at_first,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils.gpu import Device
from hypothesis import given
from hypothesis import strategies as st
from pve_model import PveModel

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
BTRFS = Facts({"local-btrfs": "btrfs", "local-dir": "dir", "local": "dir"})
# As LXC was started with the configuration above.
STARTED = """\
lxc.uts.name = web
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
lxc.cap.drop = sys_boot
"""


def declared(**values) -> Declared:
    return Declared(vmid=700, **values)


def argvs(planned) -> list:
    """The pct commands of a plan without "pct", as text."""
    return [" ".join(step.command.argv[1:]) for step in planned.steps if step.command]


def kinds(planned) -> list:
    """What a plan's steps are: pct's command, raw or chown."""
    return [step.name for step in planned.steps]


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
            mounts=[
                {"source": "/tank/models", "mp": "/models/"},
                {"storage": "local-btrfs", "size_gb": 50, "mp": "/data"},
            ],
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
            ({"swap": None, "memory": 16}, "set 700 --memory 16 --delete swap"),
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
        planned = plan(declared(delete=["swap", "timezone"]), STOPPED)
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
        value = {"tags": "z", "onboot": 0, "startup": "order=1", "net0": {"ip": "dhcp"}}.get(key, 70)
        planned = plan(declared(config={key: value}), RUNNING)
        assert kinds(planned) == ["set"]
        assert planned.restart_required == ()

    @pytest.mark.parametrize(
        ("values", "key"),
        [
            ({"config": {"features": {"nesting": 1}}}, "features"),
            ({"config": {"hostname": "other"}}, "hostname"),
            ({"config": {"nameserver": "1.1.1.1"}}, "nameserver"),
        ],
    )
    def test_other_keys_restart_a_running_container_only(self, values, key):
        assert kinds(plan(declared(**values), RUNNING)) == ["set", "reboot"]
        assert kinds(plan(declared(**values), STOPPED)) == ["set"]
        never = plan(declared(restart="never", **values), RUNNING)
        assert kinds(never) == ["set"]
        assert never.restart_required == (key,)

    def test_what_waits_already_is_not_set_again_but_restarted_for(self):
        actual = replace(RUNNING, text=CONF + "\n[pve:pending]\nfeatures: nesting=1\ndelete: swap\n")
        wanted = declared(config={"features": {"nesting": 1}}, delete=["swap"])
        planned = plan(wanted, actual)
        assert kinds(planned) == ["reboot"]
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

    @pytest.mark.parametrize(("release", "kept"), [((8, 4), ["set", "reboot"]), ((9, 0), ["set"])])
    def test_a_new_device_reaches_a_running_container_since_9_0(self, release, kept):
        facts = replace(BTRFS, release=release)
        assert kinds(plan(declared(devices=[{"path": "/dev/null"}]), RUNNING, None, facts)) == kept
        there = replace(RUNNING, text=CONF + "dev0: /dev/null\n")
        changed = declared(devices=[{"path": "/dev/null", "mode": "0666"}])
        assert kinds(plan(changed, there, None, facts)) == ["set", "reboot"]

    def test_what_waits_by_somebody_elses_hand_is_no_reason_for_a_restart(self):
        actual = replace(RUNNING, text=CONF + "\n[pve:pending]\nnameserver: 1.1.1.1\n")
        planned = plan(declared(state="started", config={"memory": 1024}), actual)
        assert kinds(planned) == ["set"]
        assert planned.restart_required == ()

    def test_a_hostname_waits_until_the_container_was_started_with_it(self):
        """A run that was killed between the change and the restart is made good by the next one."""
        actual = replace(RUNNING, text=CONF, started_with=STARTED.replace("web", "old"))
        assert kinds(plan(declared(config={"hostname": "web"}), actual)) == ["reboot"]
        assert plan(declared(config={"hostname": "web"}, restart="never"), actual).restart_required == ("hostname",)
        assert plan(declared(config={"hostname": "web"}), replace(actual, started_with=STARTED)).steps == ()


class TestKeys:
    """Bad input is refused before anything changes, a clone included."""

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"memry": 1}, "memry is no configuration key of Proxmox VE; did you mean memory?"),
            ({"net": "name=eth0"}, "net needs a number from 0 to 31"),
            ({"net32": "name=eth0"}, "net32 needs a number from 0 to 31"),
            ({"memory0": 512}, "memory0 has no number; write memory"),
            ({"memory": "much"}, "memory has the value 'much', which has to be a whole number from 16"),
            ({"onboot": "perhaps"}, "which has to be 0 or 1"),
            ({"features": {"nestng": 1}}, "features has no part 'nestng'; did you mean nesting?"),
            ({"features": "nesting=2"}, "part nesting with the value '2', which has to be 0 or 1"),
            ({"net0": {"hwaddr": "1:2"}}, "which has to be a MAC address"),
            ({"memory": {"a": 1}}, "is no property string"),
            ({"features": 7}, "has to be a dictionary"),
            ({"template": 1}, "template is no key to declare; ask for state: template"),
            ({"lock": "backup"}, "pct unlock"),
            ({"unprivileged": 1}, "use the option unprivileged"),
            ({"hostname": "a_b"}, "which has to be a DNS name"),
        ],
    )
    def test_a_mistake_is_named_with_its_remedy(self, config, words):
        for actual in (STOPPED, Container()):
            with pytest.raises(PlanError) as error:
                plan(declared(config=config, clone_vmid=900), actual, TestClone.TEMPLATE, BTRFS)
            assert str(error.value).startswith("CTID 700: ")
            assert words in str(error.value)

    @pytest.mark.parametrize("release", [(7, 4), (8, 0), (9, 0)])
    def test_a_key_that_the_release_does_not_have(self, release):
        with pytest.raises(PlanError, match=rf"9.1 and newer, and this node has {release[0]}.{release[1]}"):
            plan(declared(config={"entrypoint": "/init"}), STOPPED, None, Facts(release=release))

    def test_devices_need_8_1(self):
        with pytest.raises(PlanError, match=r"devices needs Proxmox VE 8\.1, and this node has 7\.4"):
            plan(declared(devices=[{"path": "/dev/null"}]), STOPPED, None, Facts(release=(7, 4)))
        assert plan(declared(devices=[]), STOPPED, None, Facts(release=(7, 4))).steps == ()

    def test_every_key_may_be_deleted_by_its_name(self):
        assert kinds(plan(declared(delete=["swap", "lxc.cap.drop"]), STOPPED)) == ["set", "raw"]
        with pytest.raises(PlanError, match="delete: swop is no configuration key"):
            plan(declared(delete=["swop"]), STOPPED)


NVIDIA = {
    "/dev/nvidia0": Device(195, 0),
    "/dev/nvidia1": Device(195, 1),
    "/dev/nvidiactl": Device(195, 255),
    "/dev/nvidia-uvm": Device(508, 0),
    "/dev/nvidia-uvm-tools": Device(508, 1),
    # The first one divides GPUs anew, and is the node's; the others are instances.
    "/dev/nvidia-caps/nvidia-cap1": Device(511, 1),
    "/dev/nvidia-caps/nvidia-cap21": Device(511, 21, gpu=0),
    "/dev/nvidia-caps/nvidia-cap156": Device(511, 156, gpu=1),
}
OLD_SYSTEM = """\
lxc.cgroup2.devices.allow: c 195:* rwm
lxc.cgroup2.devices.allow: c 243:* rwm
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
"""


class TestGpus:
    FACTS = replace(BTRFS, nvidia_devices=NVIDIA)

    @staticmethod
    def passed_through(container: Container) -> list[str]:
        values = container.conf.main.values
        return sorted(value.split(",")[0] for key, value in values.items() if key.startswith("dev"))

    @pytest.mark.parametrize("gpus", [[], [0], [1], [0, 1], [1, 0, 1]])
    @pytest.mark.parametrize("there", ["", DEVICES, OLD_SYSTEM, DEVICES + OLD_SYSTEM])
    def test_exactly_these_whatever_there_was(self, gpus, there):
        """Faults 2 and 3: both GPUs of the template stay, with a device number from another node."""
        actual = replace(STOPPED, text=CONF + there)
        planned = plan(declared(gpus=gpus), actual, None, self.FACTS)
        common = [path for path in NVIDIA if not path[-1].isdigit()]
        common += [path for path, device in NVIDIA.items() if device.gpu in gpus]
        expected = sorted([f"/dev/nvidia{number}" for number in set(gpus)] + common) if gpus else []
        assert self.passed_through(planned.after) == expected
        assert planned.after.conf.main.raw == [("lxc.cap.drop", "sys_boot")]
        devices = [value for key, value in planned.after.conf.main.values.items() if key[:3] == "dev"]
        assert all(("mode=0444" if "nvidia-caps" in value else "mode=0666") in value for value in devices)
        assert_converges(declared(gpus=gpus), actual, facts=self.FACTS)

    def test_other_devices_are_not_spoken_of(self):
        actual = replace(STOPPED, text=CONF + "dev0: /dev/fuse\ndev1: /dev/nvidia1\n")
        planned = plan(declared(gpus=[]), actual, None, self.FACTS)
        assert self.passed_through(planned.after) == ["/dev/fuse"]
        both = plan(declared(gpus=[0], devices=[{"path": "/dev/fuse"}]), actual, None, self.FACTS)
        assert "/dev/fuse" in self.passed_through(both.after)
        assert "/dev/nvidia1" not in self.passed_through(both.after)

    def test_of_a_clone_in_one_go(self):
        source = Container(exists=True, text=CONF + DEVICES + "template: 1\n")
        planned = plan(declared(clone_vmid=900, gpus=[1]), Container(), source, self.FACTS)
        assert kinds(planned) == ["clone", "set"]
        assert "/dev/nvidia0" not in self.passed_through(planned.after)

    def test_lines_of_others_stay(self):
        lines = "lxc.mount.entry: /dev/net/tun dev/net/tun none bind 0 0\nlxc.cgroup2.devices.allow: c 10:200 rwm\n"
        actual = replace(STOPPED, text=CONF + lines + OLD_SYSTEM)
        planned = plan(declared(gpus=[0]), actual, None, self.FACTS)
        assert [f"{key}: {value}\n" for key, value in planned.after.conf.main.raw[1:]] == lines.splitlines(True)

    def test_243_alone_may_be_anybodys(self):
        actual = replace(STOPPED, text=CONF + "lxc.cgroup2.devices.allow: c 243:* rwm\n")
        assert kinds(plan(declared(gpus=[]), actual, None, self.FACTS)) == []

    def test_before_8_1_they_are_raw_lines_with_the_numbers_of_the_moment(self):
        facts = replace(self.FACTS, release=(7, 4))
        actual = replace(STOPPED, text=CONF + OLD_SYSTEM)
        planned = plan(declared(gpus=[1]), actual, None, facts)
        assert kinds(planned) == ["raw"]
        raw = planned.after.conf.main.raw
        assert ("lxc.cgroup2.devices.allow", "c 195:1 rw") in raw
        assert ("lxc.cgroup2.devices.allow", "c 508:0 rw") in raw
        assert not any("195:*" in value or "243" in value or "nvidia0 " in value for _key, value in raw)
        assert_converges(declared(gpus=[1]), actual, facts=facts)
        moved = {**NVIDIA, "/dev/nvidia-uvm": Device(510, 0), "/dev/nvidia-uvm-tools": Device(510, 1)}
        memory = to_remember(declared(gpus=[1]), planned.after, facts)
        now = replace(facts, nvidia_devices=moved, memory=memory)
        again = plan(declared(gpus=[1]), planned.after, None, now)
        assert kinds(again) == ["raw"]
        assert ("lxc.cgroup2.devices.allow", "c 508:0 rw") not in again.after.conf.main.raw
        assert ("lxc.cgroup2.devices.allow", "c 510:0 rw") in again.after.conf.main.raw

    @pytest.mark.parametrize(
        ("gpus", "devices", "words"),
        [
            ([2], NVIDIA, "the node has no /dev/nvidia2; correct gpu_assignment, it has 0, 1"),
            ([0], {}, "and no other GPU; load its driver"),
            ([0], {"/dev/nvidia0": Device(195, 0)}, "the node has no /dev/nvidiactl"),
            ([0], {**NVIDIA, "/dev/nvidia-uvm": Device(508, 0, True)}, "has not the number that its driver has now"),
        ],
    )
    def test_what_the_node_does_not_have(self, gpus, devices, words):
        with pytest.raises(PlanError, match="CTID 700: ") as error:
            plan(declared(gpus=gpus), STOPPED, None, replace(BTRFS, nvidia_devices=devices))
        assert words in str(error.value)

    def test_declared_in_config_as_well(self):
        with pytest.raises(PlanError, match="dev0 is declared in config, and the same one by devices, gpus or mounts"):
            plan(declared(gpus=[0], config={"dev0": "/dev/nvidia0"}), STOPPED, None, self.FACTS)


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
        mounts = [{"source": "/tank/models", "mp": "/models"}, {"storage": "local-btrfs", "size_gb": 50, "mp": "/data"}]
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
        assert kinds(plan(declared(mounts=[{"source": "/b", "mp": "/models"}]), actual)) == ["set", "reboot"]

    def test_declared_twice(self):
        with pytest.raises(PlanError, match="declared twice"):
            plan(declared(mounts=[{"source": "/a", "mp": "/m"}, {"source": "/b", "mp": "/m/"}]), STOPPED)

    def test_a_volume_grows_and_never_shrinks(self):
        actual = replace(STOPPED, text=CONF + MOUNTS)
        wanted = declared(mounts=[{"storage": "local-btrfs", "size_gb": 60, "mp": "/data"}])
        assert argvs(plan(wanted, actual)) == ["resize 700 mp1 60G"]
        assert_converges(wanted, actual)
        with pytest.raises(PlanError, match="size_gb of /data 40 is less than the 50G"):
            plan(declared(mounts=[{"storage": "local-btrfs", "size_gb": 40, "mp": "/data"}]), actual)

    def test_a_volume_is_not_replaced_by_a_folder(self):
        with pytest.raises(PlanError, match=r"/data is the volume local-btrfs:vm-700-disk-1.*detach it first"):
            plan(declared(mounts=[{"source": "/tank", "mp": "/data"}]), replace(STOPPED, text=CONF + MOUNTS))

    def test_what_an_earlier_run_declared_goes_and_what_a_person_mounted_stays(self):
        actual = replace(STOPPED, text=CONF + MOUNTS)
        for memory, argv in (
            ({}, []),
            ({"/models": "/tank/models"}, ["set 700 --delete mp0"]),
            ({"/models": "/somewhere/else"}, []),
            ({"/data": "local-btrfs:vm-700-disk-1.subvol"}, ["set 700 --delete mp1"]),
        ):
            facts = replace(BTRFS, memory=Memory(mounts=memory))
            assert argvs(plan(declared(mounts=[]), actual, None, facts)) == argv
            assert plan(declared(), actual, None, facts).steps == ()

    def test_a_volume_that_was_taken_away_comes_back(self):
        """Fault 1: a run adds another volume of 50 GB. One for each mount point, ever."""
        actual = replace(STOPPED, text=CONF + "unused0: local-btrfs:vm-700-disk-1.subvol\n")
        facts = replace(BTRFS, memory=Memory(mounts={"/data": "local-btrfs:vm-700-disk-1.subvol"}))
        wanted = declared(mounts=[{"storage": "local-btrfs", "size_gb": 50, "mp": "/data"}])
        assert argvs(plan(wanted, actual, None, facts)) == [
            "set 700 --mp0 local-btrfs:vm-700-disk-1.subvol,mp=/data"
        ]
        assert argvs(plan(wanted, STOPPED, None, facts)) == ["set 700 --mp0 local-btrfs:50,mp=/data"]

    def test_what_is_remembered(self):
        actual = replace(STOPPED, text=CONF + MOUNTS)
        wanted = declared(
            mounts=[{"source": "/tank/models", "mp": "/models/"}, {"storage": "x", "size_gb": 1, "mp": "/data"}],
            raw=["lxc.cap.drop = sys_boot"],
        )
        before = Memory(mounts={"/gone": "/gone", "/old": "local:vm-700-disk-9"})
        memory = to_remember(wanted, actual, Facts(memory=before))
        assert memory.raw == (("lxc.cap.drop", "sys_boot"),)
        assert memory.mounts == {
            "/models": "/tank/models", "/data": "local-btrfs:vm-700-disk-1.subvol", "/old": "local:vm-700-disk-9",
        }  # fmt: skip
        assert to_remember(declared(), actual, Facts(memory=memory)) == memory
        assert to_remember(declared(state="absent"), Container(), Facts(memory=memory)) == Memory()

    def test_what_is_remembered_of_a_run_that_is_killed(self):
        wanted = declared(mounts=[{"source": "/tank", "mp": "/m"}], raw=["lxc.cap.drop: a"])
        facts = Facts(memory=Memory(raw=(("lxc.group", "g"),), mounts={"/old": "/old"}))
        memory = to_remember_at_first(wanted, plan(wanted, STOPPED, None, facts), facts)
        assert memory == Memory(
            # The one that is replaced, too: the container may still run with it.
            raw=(("lxc.group", "g"), ("lxc.cap.drop", "a"), ("lxc.cap.drop", "sys_boot")),
            mounts={"/old": "/old", "/m": "/tank"},
        )

    def test_a_folder_that_is_not_there(self):
        facts = replace(BTRFS, owners={"/tank": None})
        with pytest.raises(PlanError, match="/tank is to be mounted, and the node has no such folder"):
            plan(declared(mounts=[{"source": "/tank", "mp": "/m"}]), STOPPED, None, facts)

    @pytest.mark.parametrize(
        ("text", "raw", "owner"),
        [
            (CONF, None, (101000, 100100)),
            (CONF.replace("unprivileged: 1\n", ""), None, (1000, 100)),
            (CONF, ["lxc.idmap: u 0 100000 1000", "lxc.idmap: u 1000 1000 1", "lxc.idmap: g 0 100000 65536"],
             (1000, 100100)),
        ],
    )  # fmt: skip
    def test_its_owner_goes_through_the_id_map(self, text, raw, owner):
        facts = replace(BTRFS, owners={"/tank": (0, 0)})
        wanted = declared(mounts=[{"source": "/tank", "mp": "/m", "owner_uid": 1000, "owner_gid": 100}], raw=raw)
        step = plan(wanted, replace(STOPPED, text=text), None, facts).steps[-1]
        assert (step.name, step.path, step.owner) == ("chown", "/tank", owner)
        there = replace(facts, owners={"/tank": owner})
        assert "chown" not in kinds(plan(wanted, replace(STOPPED, text=text), None, there))

    def test_an_owner_without_a_place_in_the_map(self):
        wanted = declared(mounts=[{"source": "/tank", "mp": "/m", "owner_uid": 70000}])
        with pytest.raises(PlanError, match="owner of /tank: user id 70000 has no place"):
            plan(wanted, STOPPED, None, replace(BTRFS, owners={"/tank": (0, 0)}))


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
        text = pct_conf.edit_raw(self.ACTUAL.text, planned.steps[0].removed, planned.steps[0].added)
        assert pct_conf.parse(text).snapshots == self.ACTUAL.conf.snapshots
        assert plan(declared(raw=raw), replace(self.ACTUAL, text=text)).steps == ()

    def test_lines_of_other_keys_stay(self):
        planned = plan(declared(raw=["lxc.apparmor.profile: unconfined"]), self.ACTUAL)
        assert planned.after.conf.main.raw == [("lxc.cap.drop", "sys_boot"), ("lxc.apparmor.profile", "unconfined")]

    def test_what_an_earlier_run_declared_goes(self):
        facts = Facts(memory=Memory(raw=(("lxc.cap.drop", "sys_boot"), ("lxc.group", "gone"))))
        for raw in ([], ["lxc.group: x"]):
            planned = plan(declared(raw=raw), self.ACTUAL, None, facts)
            assert planned.steps[0].removed == (("lxc.cap.drop", "sys_boot"),)
        assert plan(declared(), self.ACTUAL, None, facts).steps == ()
        assert plan(declared(raw=["lxc.cap.drop: sys_boot"]), self.ACTUAL, None, facts).steps == ()

    def test_delete(self):
        planned = plan(declared(delete=["lxc.cap.drop"]), self.ACTUAL)
        assert kinds(planned) == ["raw"]
        assert planned.steps[0].removed == (("lxc.cap.drop", "sys_boot"),)
        assert planned.after.conf.main.raw == []

    @pytest.mark.parametrize("state", ["present", "started"])
    def test_a_running_container_is_restarted_for_them(self, state):
        actual = replace(RUNNING, started_with=STARTED)
        planned = plan(declared(state=state, raw=["lxc.cap.drop: mknod"], config={"memory": 70}), actual)
        assert kinds(planned) == ["set", "raw", "reboot"]
        assert planned.steps[-1].why == "lxc.cap.drop: takes effect at a restart"
        assert planned.restart_required == ()

    def test_it_waits_until_the_container_was_started_with_them(self):
        """A run that was killed between the change and the restart is made good by the next one."""
        wanted = declared(raw=["lxc.cap.drop: sys_boot"])
        actual = replace(RUNNING, started_with=STARTED.replace("sys_boot", "other"))
        assert kinds(plan(wanted, actual)) == ["reboot"]
        assert plan(replace(wanted, restart="never"), actual).restart_required == ("lxc.cap.drop",)
        assert plan(wanted, replace(RUNNING, started_with=STARTED)).steps == ()
        taken_away = Facts(memory=Memory(raw=(("lxc.group", "gone"),)))
        still_there = replace(RUNNING, started_with=STARTED + "lxc.group = gone\n")
        assert kinds(plan(declared(raw=[]), still_there, None, taken_away)) == ["reboot"]

    def test_a_line_of_somebody_else_is_no_reason_for_a_restart(self):
        actual = replace(RUNNING, text=CONF + "lxc.group: by hand\n", started_with=STARTED)
        assert plan(declared(raw=["lxc.cap.drop: sys_boot"]), actual).steps == ()

    def test_the_default_id_map_said_aloud_is_none_to_wait_for(self):
        raw = ["lxc.idmap: u 0 100000 65536", "lxc.idmap: g 0 100000 65536"]
        actual = replace(RUNNING, started_with=STARTED)
        assert kinds(plan(declared(raw=raw), actual)) == ["raw"]
        other = ["lxc.idmap: u 0 100000 65535", "lxc.idmap: g 0 100000 65536"]
        assert kinds(plan(declared(raw=other), actual)) == ["raw", "reboot"]

    def test_to_be_stopped_anyway(self):
        assert kinds(plan(declared(state="stopped", raw=["lxc.cap.drop: mknod"]), RUNNING)) == ["raw", "shutdown"]

    def test_without_leave_to_restart(self):
        planned = plan(declared(restart="never", raw=["lxc.cap.drop: mknod"]), RUNNING)
        assert kinds(planned) == ["raw"]
        assert planned.restart_required == ("lxc.cap.drop",)

    def test_an_id_that_root_may_not_map(self):
        facts = Facts(root_subids={"u": [(100000, 65536)], "g": [(100000, 65536), (1000, 1)]})
        raw = ["lxc.idmap: u 0 100000 1000", "lxc.idmap: u 1000 1000 1", "lxc.idmap: g 1000 1000 1"]
        with pytest.raises(PlanError, match=r"lxc.idmap: root on the node may not map.*add root:1000:1 to /etc/subuid"):
            plan(declared(raw=raw), STOPPED, None, facts)
        assert kinds(plan(declared(raw=[raw[0], raw[2]]), STOPPED, None, facts)) == ["raw"]
        with pytest.raises(PlanError, match=r"is not of the form u\|g"):
            plan(declared(raw=["lxc.idmap: 1 2 3"]), STOPPED, None, facts)

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
        assert kinds(planned) == ["create", "start"]

    @pytest.mark.parametrize("unprivileged", [True, False])
    def test_unprivileged_is_always_said(self, unprivileged):
        planned = plan(declared(ostemplate="x", unprivileged=unprivileged), Container())
        assert f"--unprivileged {int(unprivileged)}" in argvs(planned)[0]

    def test_from_nothing(self):
        with pytest.raises(PlanError, match=r"700 does not exist.*clone_from_ctid.*template"):
            plan(declared(), Container())

    def test_raw_lines_come_before_the_start(self):
        planned = plan(declared(state="started", ostemplate="x", raw=["lxc.cap.drop: a"]), Container())
        assert kinds(planned) == ["create", "raw", "start"]


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
        wanted = declared(state="started", clone_vmid=900, disk_gb=9, config={"memory": 70})
        planned = plan(wanted, Container(), self.TEMPLATE, BTRFS)
        assert kinds(planned) == ["clone", "resize", "set", "start"]

    def test_a_bind_mount_of_the_source_is_refused_with_the_remedy(self):
        source = Container(exists=True, text=CONF + MOUNTS + "template: 1\n")
        with pytest.raises(PlanError, match=r"can't be cloned from 900: .* mp0 \(/tank/models\).*on the clones"):
            plan(declared(clone_vmid=900), Container(), source, BTRFS)

    def test_a_full_clone_of_a_running_container(self):
        source = replace(self.PLAIN, running=True)
        with pytest.raises(PlanError, match=r"full clone of 900, which runs.*template_snapshot_name"):
            plan(declared(clone_vmid=900), Container(), source, BTRFS)
        assert kinds(plan(declared(clone_vmid=900, clone_snapname="before"), Container(), source, BTRFS)) == ["clone"]

    def test_a_lock_that_a_killed_clone_left_on_the_source(self):
        source = Container(exists=True, text=CONF + "lock: disk\ntemplate: 1\n")
        assert argvs(plan(declared(clone_vmid=900), Container(), source, BTRFS)) == ["unlock 900", "clone 900 700"]
        busy = replace(BTRFS, is_source_busy=True)
        assert argvs(plan(declared(clone_vmid=900), Container(), source, busy)) == ["clone 900 700"]

    def test_what_a_killed_create_left_goes_first(self):
        half = Container(exists=True, text="lock: create\n")
        source = self.TEMPLATE
        assert argvs(plan(declared(clone_vmid=900), half, source, BTRFS)) == [
            "unlock 700", "destroy 700 --destroy-unreferenced-disks 1", "clone 900 700",
        ]  # fmt: skip
        assert argvs(plan(declared(state="absent"), half)) == [
            "unlock 700", "destroy 700 --destroy-unreferenced-disks 1",
        ]  # fmt: skip
        with pytest.raises(PlanError, match="700 is being created by somebody else"):
            plan(declared(clone_vmid=900), half, source, replace(BTRFS, is_busy=True))
        # As far as a clone had come, and after somebody took the lock away.
        further = Container(exists=True, text=CONF + "lock: create\n")
        assert kinds(plan(declared(clone_vmid=900), further, source, BTRFS)) == ["unlock", "destroy", "clone"]
        unlocked = Container(exists=True, text="hostname: x\n")
        assert kinds(plan(declared(clone_vmid=900), unlocked, source, BTRFS)) == ["destroy", "clone"]

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
            ("started", STOPPED, ["start"]),
            ("started", RUNNING, []),
            ("stopped", STOPPED, []),
            ("stopped", RUNNING, ["shutdown"]),
            ("restarted", STOPPED, ["start"]),
            ("restarted", RUNNING, ["reboot"]),
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
        assert kinds(plan(wanted, RUNNING)) == ["set", "reboot"]

    def test_configured_before_it_starts(self):
        assert kinds(plan(declared(state="started", config={"memory": 70}), STOPPED)) == ["set", "start"]


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
        "net0": st.fixed_dictionaries({}, optional={"ip": st.just("dhcp"), "firewall": st.sampled_from([0, 1, "no"])}),
        "net1": st.just("name=eth1,bridge=vmbr0,ip=dhcp"),
        "description": st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=9),
        "tags": st.lists(st.sampled_from("aBc")),
        "nameserver": st.sampled_from(["", "1.1.1.1", "1.1.1.1 8.8.8.8", ["9.9.9.9", "1.1.1.1"]]),
        "timezone": st.sampled_from([None, "host"]),
        "cpulimit": st.sampled_from([1, 1.5, "2.0"]),
    },
)
NAMES = st.lists(st.sampled_from("abc"), unique=True)
MOUNTED = st.lists(
    st.one_of(
        st.sampled_from("ab").map(lambda name: {"source": f"/{name}", "mp": f"/{name}", "ro": name == "b"}),
        st.just({"storage": "local-btrfs", "size_gb": 60, "mp": "/data"}),
        st.just({"storage": "local-btrfs", "size_gb": 5, "mp": "/more", "backup": True}),
    ),
    unique_by=lambda mount: mount["mp"],
)
DECLARATIONS = st.builds(
    Declared,
    vmid=st.just(700),
    state=st.sampled_from(["present", "started", "stopped", "template", "absent"]),
    config=CONFIGS,
    clone_vmid=st.just(900),
    disk_gb=st.sampled_from([None, 8, 16]),
    gpus=st.none() | st.lists(st.sampled_from([0, 1])),
    devices=st.none() | NAMES.map(lambda names: [{"path": f"/dev/{name}"} for name in names]),
    mounts=st.none() | MOUNTED,
    raw=st.none() | st.lists(st.sampled_from(["lxc.cap.drop: a", "lxc.cap.drop: b", "lxc.group = g"]), unique=True),
    delete=st.lists(st.sampled_from(["swap", "arch", "lxc.arch"]), unique=True),
)  # fmt: skip
CONTAINERS = st.sampled_from([
    Container(), STOPPED, RUNNING, replace(RUNNING, text=CONF + DEVICES + MOUNTS),
    replace(STOPPED, text=CONF + DEVICES + OLD_SYSTEM), replace(RUNNING, text=CONF + OLD_SYSTEM),
    replace(RUNNING, text=CONF + "\n[pve:pending]\nfeatures: keyctl=1\ndelete: nameserver,swap\n"),
])  # fmt: skip
RELEASES = st.sampled_from([(7, 4), (8, 1), (8, 4), (9, 0), (9, 1)])


@given(DECLARATIONS, CONTAINERS, RELEASES)
def test_a_plan_done_gives_what_it_said_and_leaves_nothing_to_do(wanted, actual, release):
    """Done by a model of Proxmox that knows nothing of plans: what is there then is what check mode had shown."""
    node = PveModel(release)
    node.texts[900] = CONF + DEVICES + "template: 1\n"
    if actual.exists:
        node.texts[700] = actual.text
    if actual.running:
        node.started[700] = STARTED.replace("lxc.cap.drop = sys_boot\n", "") + "".join(
            f"{key} = {value}\n" for key, value in actual.conf.main.raw
        )
    facts = replace(BTRFS, release=release, nvidia_devices=NVIDIA)
    if release < (8, 1):
        wanted = replace(wanted, devices=None)
    taken: set[tuple] = set()

    def plan_now():
        return plan(wanted, node.read(700), node.read(900), replace(facts, taken=frozenset(taken)))

    first = shown = plan_now()
    for _step in shown.steps:
        step = first.steps[0]
        if step.is_raw:
            node.edit_raw(700, node.read(700).digest, step.removed, step.added)
            taken |= set(step.removed)
        else:
            done = node.run(step.command, digest=node.read(700).digest if step.name in ("set", "resize") else "")
            assert not done.failed, done
        if step.name in ("start", "reboot"):
            taken.clear()
        first = plan_now()
    assert first.steps == ()
    after = node.read(700)
    assert (after.exists, after.running) == (shown.after.exists, shown.after.running)
    assert first.restart_required == shown.restart_required
    # What check mode showed, but for the numbers and addresses that only Proxmox can give.
    if after.exists:
        said = pct_conf.with_pending(shown.after.conf)
        is_there = pct_conf.with_pending(after.conf)
        assert sorted(said.raw) == sorted(is_there.raw)
        assert said.comments == is_there.comments
        differing = {key for key in {*said.values, *is_there.values} if not key.startswith(("net", "mp", "unused"))
                     and not pct_conf.same(key, said.values.get(key), is_there.values.get(key))}  # fmt: skip
        assert not differing
