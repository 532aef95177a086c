# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which GPUs a container can open, found out by opening them inside. Needs a lab that is up; CTIDs 540 to 549.

The machine has no GPU. Device nodes with NVIDIA's names get the numbers of other devices of the machine: such that can
be opened, and that LXC does not let a container open by itself. cgroups and mounts decide as they do for a GPU: in a
privileged container both; in an unprivileged one mounts alone, for LXC gives it no rules, and its root makes no nodes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import lab_modules as lab
import pytest

pytestmark = pytest.mark.lab

# Drivers whose device anybody may open who has the node: none looks at capabilities, none minds being opened.
MISC = (
    "loop-control", "autofs", "tun", "btrfs-control", "device-mapper", "vsock", "vga_arbiter", "hw_random", "kvm",
    "userfaultfd", "cpu_dma_latency", "vhost-net",
)  # fmt: skip
# The first CPU's cpuid, the first screen: a major number that no MISC device has.
OTHER_MAJOR = (os.makedev(203, 0), os.makedev(7, 0))
DELAY = Path("/var/lib/phoenix-lab/pct-delay")
GPUS = ("/dev/nvidia0", "/dev/nvidia1")
UVM = "/dev/nvidia-uvm"
COMMON = ("/dev/nvidiactl", UVM, "/dev/nvidia-uvm-tools")
# What divides the node's GPUs anew is given to no container.
CONFIG = "/dev/nvidia-caps/nvidia-cap1"
BASE = {
    "ostemplate": lab.OSTEMPLATE,
    "storage": "local-btrfs",
    "disk_gb": 2,
    "config": {"memory": 256, "features": {"nesting": 1}},
}
OPENED = """
for path in /dev/nvidia* /dev/nvidia-caps/*; do
    test -c "$path" && (exec 3<"$path") 2>/dev/null && stat -c '%n %t %T' "$path"
done
true
"""


def openable() -> Iterator[int]:
    """Numbers of this machine's devices that can stand in for NVIDIA's; one of another major number comes first."""
    minors = {name: int(minor) for minor, name in re.findall(r"^\s*(\d+) (\S+)$", Path("/proc/misc").read_text(), re.M)}
    misc = [os.makedev(10, minors[name]) for name in MISC if name in minors]
    trial = Path("/dev/phoenix-trial")
    for numbers, wanted in ((OTHER_MAJOR, 1), (misc, 6)):
        found = 0
        for number in numbers:
            place(trial, number)
            with contextlib.suppress(OSError):
                os.close(os.open(trial, os.O_RDONLY | os.O_NONBLOCK))
                found += 1
                yield number
            trial.unlink()
            if found == wanted:
                break
        else:
            pytest.skip("this machine has too few devices that could stand in for a GPU's")


def place(path: Path | str, number: int) -> None:
    """Make a device node anew, as open as the driver makes its own."""
    Path(path).unlink(missing_ok=True)
    Path(path).parent.mkdir(exist_ok=True)
    os.mknod(path, stat.S_IFCHR, number)
    os.chmod(path, 0o666)


def remove_nodes() -> None:
    for path in Path("/dev").glob("nvidia*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def numbers() -> list[int]:
    """Seven device numbers, the first one of another major number than the others."""
    lab.require_lab()
    if "nvidia" in Path("/proc/devices").read_text():
        pytest.skip("this machine has NVIDIA's driver; its device nodes are not touched")
    return list(openable())


@pytest.fixture(autouse=True)
def node(numbers) -> Iterator[dict[str, int]]:
    """The node's device nodes of two GPUs, by path; gone after each test, also when it fails."""
    remove_nodes()
    try:
        uvm, *others = numbers
        devices = {UVM: uvm, **dict(zip([*GPUS, *(path for path in COMMON if path != UVM), CONFIG], others))}
        for path, number in devices.items():
            place(path, number)
        yield devices
    finally:
        remove_nodes()


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    """The containers of these tests are gone before and after."""
    lab.require_lab()
    lab.destroy(*range(549, 539, -1))
    yield
    lab.destroy(*range(549, 539, -1))


@pytest.fixture(scope="module", params=[True, False], ids=["unprivileged", "privileged"])
def unprivileged(request) -> bool:
    return request.param


@pytest.fixture
def template(unprivileged, node) -> int:
    """A template that has both GPUs. The first test makes it."""
    vmid = 540 if unprivileged else 541
    if not lab.info(vmid)["exists"]:
        lab.call(vmid=vmid, state="template", unprivileged=unprivileged, gpus=[0, 1], **BASE)
    return vmid


@pytest.fixture
def clone(template) -> Iterator[int]:
    """The CTID of a clone that the test makes."""
    yield 542
    lab.destroy(542)


def opened(vmid: int) -> dict[str, int]:
    """NVIDIA's device nodes inside that can be opened, with the number that was opened."""
    found = [line.split() for line in lab.inside(vmid, OPENED).splitlines()]
    return {path: os.makedev(int(major, 16), int(minor, 16)) for path, major, minor in found}


def expected(node: Mapping[str, int], *gpus: int) -> dict[str, int]:
    """What can be opened by a container with these GPUs."""
    return {path: node[path] for path in [*(GPUS[gpu] for gpu in gpus), *COMMON]} if gpus else {}


def opens_made_by_root(vmid: int, number: int) -> bool:
    """Can root inside open this number by a device node of its own making?"""
    words = f"c {os.major(number)} {os.minor(number)}"
    script = f"rm -f /root/own; mknod /root/own {words} && (exec 3</root/own) 2>/dev/null && echo yes; true"
    return lab.inside(vmid, script) == "yes"


def check(vmid: int, node: Mapping[str, int], *gpus: int) -> None:
    """A container opens exactly these GPUs, whatever root inside tries."""
    wanted = expected(node, *gpus)
    assert opened(vmid) == wanted
    if lab.info(vmid)["config"].get("unprivileged") == "1":
        # Not even the number of what it was given: making device nodes is not for it.
        assert not opens_made_by_root(vmid, node[GPUS[0]])
    else:
        assert {path for path, number in node.items() if opens_made_by_root(vmid, number)} == set(wanted)


class TestDevices:
    """devN, which Proxmox VE resolves at each start."""

    def test_a_clone_opens_the_gpu_that_it_was_given(self, template, clone, node):
        """Fault 2: a clone of a template that has GPUs 0 and 1 keeps both, although it was given one."""
        done = lab.converge(vmid=clone, state="started", clone={"vmid": template}, gpus=[0])
        assert lab.names(done) == ["clone", "set", "start"]
        check(clone, node, 0)
        lab.pct("reboot", str(clone))
        check(clone, node, 0)
        lab.pct("stop", str(clone))
        lab.pct("start", str(clone))
        check(clone, node, 0)

    def test_a_clone_that_is_not_spoken_of_opens_what_its_template_has(self, template, clone, node):
        """Without which the others would prove nothing."""
        lab.call(vmid=clone, state="started", clone={"vmid": template})
        check(clone, node, 0, 1)

    def test_changes_of_a_running_container(self, template, clone, node):
        lab.call(vmid=clone, state="started", clone={"vmid": template}, gpus=[0])
        # A device that is new reaches a running container; one is taken away by a restart.
        for gpus, commands in (([1], ["set", "reboot"]), ([0, 1], ["set"]), ([], ["set", "reboot"]), ([1], ["set"])):
            done = lab.converge(vmid=clone, state="started", gpus=gpus)
            assert lab.names(done) == commands
            check(clone, node, *gpus)
        lab.pct("reboot", str(clone))
        check(clone, node, 1)

    def test_changes_of_a_stopped_container(self, template, clone, node):
        lab.call(vmid=clone, clone={"vmid": template}, gpus=[0, 1])
        assert lab.names(lab.converge(vmid=clone, state="stopped", gpus=[1])) == ["set"]
        lab.pct("start", str(clone))
        check(clone, node, 1)
        lab.pct("stop", str(clone))
        lab.converge(vmid=clone, state="stopped", gpus=[])
        lab.pct("start", str(clone))
        check(clone, node)

    def test_a_change_that_must_not_restart_says_what_waits(self, template, clone, node):
        lab.call(vmid=clone, state="started", clone={"vmid": template}, gpus=[0])
        done = lab.converge(vmid=clone, state="started", gpus=[], restart="never")
        assert lab.names(done) == ["set"]
        assert set(done["restart_required"]) == {f"dev{number}" for number in (0, 2, 3, 4)}
        check(clone, node, 0)
        lab.pct("reboot", str(clone))
        check(clone, node)

    def test_a_changed_number_of_uvm_is_found_at_the_next_start(self, template, clone, node, numbers):
        """Fault 3: the device number of nvidia-uvm is hard-coded; it differs by kernel and boot."""
        options = {"vmid": clone, "state": "started", "clone": {"vmid": template}, "gpus": [1]}
        lab.call(**options)
        check(clone, node, 1)
        lab.pct("stop", str(clone))
        old = node[UVM]
        node[UVM] = numbers[-1]
        place(UVM, node[UVM])
        lab.pct("start", str(clone))
        check(clone, node, 1)
        assert not opens_made_by_root(clone, old)
        lab.unchanged(**options)

    def test_what_the_old_system_wrote(self, template, clone, node):
        """Faults 2 and 3: raw lines for both GPUs stay for ever, with 243 for nvidia-uvm on every node."""
        lab.call(vmid=clone, clone={"vmid": template}, gpus=[])
        # What 195:* is for GPUs, 10:* is for their stand-ins here.
        allowed = ("c 195:* rwm", "c 243:* rwm", "c 10:* rwm")
        mounted = [f"{path} {path[1:]} none bind,optional,create=file" for path in [*GPUS, "/dev/nvidiactl", UVM]]
        lines = [f"lxc.cgroup2.devices.allow: {rule}\n" for rule in allowed]
        lines += [f"lxc.mount.entry: {entry}\n" for entry in mounted]
        with (lab.CONFIGS / f"{clone}.conf").open("a") as conf:
            conf.writelines(lines)
        lab.pct("start", str(clone))
        rules_count = lab.info(clone)["config"].get("unprivileged") != "1"
        before = [*GPUS, "/dev/nvidiactl", *([] if rules_count else [UVM])]
        assert opened(clone) == {path: node[path] for path in before}
        done = lab.converge(vmid=clone, state="started", gpus=[0])
        assert lab.names(done) == ["set", "reboot"]
        assert lab.info(clone)["raw"] == []
        check(clone, node, 0)

    def test_through_the_api(self, template, clone, node):
        """Which instances (MIG) the node has can't be seen from there."""
        with lab.through("api"):
            lab.converge(vmid=clone, state="started", clone={"vmid": template}, gpus=[1])
            assert opened(clone) == expected(node, 1)
            lab.converge(vmid=clone, state="started", gpus=[])
            assert opened(clone) == {}


class TestRawLines:
    """Proxmox VE 7.4, which has no devN: raw lines with the numbers of the moment."""

    @pytest.fixture(autouse=True)
    def release(self) -> Iterator[None]:
        with lab.release("7.4"):
            yield

    @pytest.fixture
    def template(self, unprivileged, node) -> int:
        vmid = 543 if unprivileged else 544
        if not lab.info(vmid)["exists"]:
            lab.call(vmid=vmid, state="template", unprivileged=unprivileged, gpus=[0, 1], **BASE)
        return vmid

    @staticmethod
    def rules(vmid: int) -> set[str]:
        prefix = "lxc.cgroup2.devices.allow: "
        return {line[len(prefix) :] for line in lab.info(vmid)["raw"] if line.startswith(prefix)}

    @staticmethod
    def rule(number: int) -> str:
        return f"c {os.major(number)}:{os.minor(number)} rw"

    def test_a_clone_opens_the_gpu_that_it_was_given(self, template, clone, node):
        """Fault 2, on a Proxmox VE without devN."""
        assert self.rules(template) == {self.rule(number) for path, number in node.items() if path != CONFIG}
        done = lab.converge(vmid=clone, state="started", clone={"vmid": template}, gpus=[0])
        assert lab.names(done) == ["clone", "start"]
        assert self.rules(clone) == {self.rule(number) for number in expected(node, 0).values()}
        assert not any(key.startswith("dev") for key in lab.info(clone)["config"])
        check(clone, node, 0)
        for gpus in ([1], [0, 1], []):
            lab.converge(vmid=clone, state="started", gpus=gpus)
            check(clone, node, *gpus)
        lab.pct("stop", str(clone))
        lab.pct("start", str(clone))
        check(clone, node)

    def test_a_changed_number_of_uvm_is_put_right_by_the_next_run(self, template, clone, node, numbers):
        """Fault 3, on a Proxmox VE without devN."""
        options = {"vmid": clone, "state": "started", "clone": {"vmid": template}, "gpus": [0]}
        lab.call(**options)
        check(clone, node, 0)
        old = node[UVM]
        node[UVM] = numbers[-1]
        place(UVM, node[UVM])
        done = lab.converge(**options)
        assert lab.names(done) == ["reboot"]
        assert self.rule(node[UVM]) in self.rules(clone)
        assert self.rule(old) not in self.rules(clone)
        check(clone, node, 0)
        assert not opens_made_by_root(clone, old)

    def test_a_node_that_was_upgraded(self, template, clone, node):
        """devN instead of the raw lines, by one restart: the rules that Proxmox makes of devN are the same as ours."""
        options = {"vmid": clone, "state": "started", "clone": {"vmid": template}, "gpus": [0]}
        lab.call(**options)
        with lab.release("9.1"):
            done = lab.converge(**options)
            assert lab.names(done) == ["set", "reboot"]
            assert lab.info(clone)["raw"] == []
            check(clone, node, 0)

    def test_a_change_that_must_not_restart_says_what_waits(self, template, clone, node):
        options = {"vmid": clone, "clone": {"vmid": template}, "gpus": [1]}
        lab.call(**{**options, "gpus": [0, 1]}, state="started")
        done = lab.call(**options, restart="never")
        assert lab.names(done) == []
        assert done["restart_required"] == ["lxc.cgroup2.devices.allow", "lxc.mount.entry"]
        check(clone, node, 0, 1)
        # Until it was restarted.
        assert lab.call(**options, restart="never")["restart_required"] == done["restart_required"]
        assert lab.names(lab.call(**options)) == ["reboot"]
        check(clone, node, 1)

    def test_a_run_that_was_killed_before_its_restart_is_made_up_for_by_the_next(self, template, clone, node):
        options = {"vmid": clone, "state": "started", "clone": {"vmid": template}}
        lab.call(**options, gpus=[0, 1])
        before = lab.calls(clone)
        DELAY.write_text("5\n")
        try:
            run = lab.start_module("pct_container", False, {**options, "gpus": [1]})
            lab.wait_until(lambda: lab.calls(clone) > before)
            reboot = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            for pid in (run.pid, *map(int, reboot)):
                os.kill(pid, signal.SIGKILL)
            run.communicate()
        finally:
            DELAY.unlink()
        assert len(reboot) == 1
        check(clone, node, 0, 1)
        assert lab.names(lab.converge(**options, gpus=[1])) == ["reboot"]
        check(clone, node, 1)


class TestWhatTheNodeDoesNotHave:
    """One sentence with a remedy, before anything changes."""

    @pytest.fixture
    def stopped(self, template, clone) -> int:
        lab.call(vmid=clone, clone={"vmid": template}, gpus=[0])
        return clone

    @staticmethod
    def refused(**options) -> str:
        """The message of a run that must not have changed anything; check mode's is the same."""
        path = lab.CONFIGS / f"{options['vmid']}.conf"
        before = path.read_bytes() if path.exists() else b"", lab.calls(options["vmid"])
        shown = lab.failure(check=True, **options)
        message = lab.failure(**options)
        assert (path.read_bytes() if path.exists() else b"", lab.calls(options["vmid"])) == before
        assert message == shown
        assert "\n" not in message
        return message

    def test_a_gpu(self, stopped):
        message = self.refused(vmid=stopped, state="started", gpus=[0, 2], config={"memory": 300})
        assert message.startswith(f"CTID {stopped}: the node has no /dev/nvidia2")
        assert "it has 0, 1" in message

    def test_a_gpu_for_a_clone(self, template, clone):
        message = self.refused(vmid=clone, clone={"vmid": template}, gpus=[7])
        assert f"CTID {clone}: the node has no /dev/nvidia7" in message
        assert not lab.info(clone)["exists"]

    def test_uvm(self, stopped):
        Path(UVM).unlink()
        message = self.refused(vmid=stopped, state="started", gpus=[1])
        assert message == f"CTID {stopped}: the node has no {UVM}; make it there with: nvidia-modprobe -u -c 0"

    def test_any(self, stopped):
        remove_nodes()
        assert "and no other GPU; load its driver there" in self.refused(vmid=stopped, gpus=[0])
        # None is no harder to have without a driver.
        lab.converge(vmid=stopped, gpus=[])

    def test_uvm_at_a_start_by_the_module(self, stopped):
        """What vanished after it was given is named when the container can't start without it."""
        Path(UVM).unlink()
        message = lab.failure(vmid=stopped, state="started")
        assert message.startswith(f"CTID {stopped} doesn't start: ")
        assert f"Device {UVM} does not exist" in message
