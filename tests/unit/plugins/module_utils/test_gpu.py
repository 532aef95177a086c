# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From GPU numbers to devices and raw lines."""

from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import gpu
from ansible_collections.phoenix.hypervisor.plugins.module_utils.gpu import Device

THERE = {
    "/dev/nvidia0": Device(195, 0), "/dev/nvidia1": Device(195, 1), "/dev/nvidia10": Device(195, 10),
    "/dev/nvidiactl": Device(195, 255), "/dev/nvidia-uvm": Device(508, 0),
}  # fmt: skip

# What a divided GPU 0 and a divided GPU 1 have, and what is for the node alone.
CAPS = {
    "/dev/nvidia-caps/nvidia-cap1": Device(511, 1), "/dev/nvidia-caps/nvidia-cap2": Device(511, 2),
    "/dev/nvidia-caps/nvidia-cap21": Device(511, 21, gpu=0), "/dev/nvidia-caps/nvidia-cap22": Device(511, 22, gpu=0),
    "/dev/nvidia-caps/nvidia-cap156": Device(511, 156, gpu=1),
}  # fmt: skip


def test_every_gpu_has_the_common_devices_once():
    assert gpu.paths([10, 0, 10], THERE) == ["/dev/nvidia0", "/dev/nvidia10", "/dev/nvidiactl", "/dev/nvidia-uvm"]
    assert gpu.paths([], THERE) == []


def test_tools_and_caps_where_they_are():
    more = {**THERE, "/dev/nvidia-uvm-tools": Device(508, 1), **CAPS}
    instances = ["/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22"]
    assert gpu.paths([0], more)[-3:] == ["/dev/nvidia-uvm-tools", *instances]
    assert "/dev/nvidia-uvm-tools" in gpu.paths([0], None)


def test_a_container_gets_the_instances_of_its_own_gpus_only():
    """Whoever may open capability 1 divides the GPUs of the node anew."""
    more = {**THERE, **CAPS}
    assert [path for path in gpu.paths([1], more) if "caps" in path] == ["/dev/nvidia-caps/nvidia-cap156"]
    assert [path for path in gpu.paths([10], more) if "caps" in path] == []
    modes = {device["path"]: device["mode"] for device in gpu.as_devices([0, 1], more)}
    assert {mode for path, mode in modes.items() if "caps" in path} == {"0444"}
    assert {mode for path, mode in modes.items() if "caps" not in path} == {"0666"}
    assert ("lxc.cgroup2.devices.allow", "c 511:156 rw") in gpu.as_raw([1], more)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("gpu0/mig/gi1/access", 0), ("gpu12/mig/gi1/ci0/access", 12), ("mig/config", None), ("mig/monitor", None),
        ("gpu0/mig/gi1/ci0", None), ("fabric-imex-mgmt", None),
    ],
)  # fmt: skip
def test_whose_instance_a_capability_is(path, number):
    assert gpu.instance_of(f"/proc/driver/nvidia/capabilities/{path}") == number


def test_the_number_of_a_capability():
    assert gpu.capability_minor("DeviceFileMinor: 21\nDeviceFileMode: 292\nDeviceFileModify: 1\n") == 21
    assert gpu.capability_minor("") is None


def test_a_capability_of_another_boot_is_made_anew_by_the_unit():
    stale = {**THERE, "/dev/nvidia-caps/nvidia-cap21": Device(511, 21, is_stale=True, gpu=0)}
    assert gpu.problem([0], stale).endswith("rm /dev/nvidia-caps/nvidia-cap21 && systemctl restart phoenix-nvidia")
    assert gpu.problem([1], stale) == ""


def test_raw_lines_name_each_number_and_no_other():
    assert gpu.as_raw([1], THERE)[:3] == [
        ("lxc.cgroup2.devices.allow", "c 195:1 rw"),
        ("lxc.cgroup2.devices.allow", "c 195:255 rw"),
        ("lxc.cgroup2.devices.allow", "c 508:0 rw"),
    ]


@pytest.mark.parametrize(
    ("line", "is_gpus"),
    [
        (("lxc.mount.entry", "/dev/nvidia0 dev/nvidia0 none bind 0 0"), True),
        (("lxc.mount.entry", "/dev/nvidia-uvm dev/nvidia-uvm none bind 0 0"), True),
        (("lxc.mount.entry", "/dev/net/tun dev/net/tun none bind 0 0"), False),
        (("lxc.cgroup2.devices.allow", "c 195:* rwm"), True),
        (("lxc.cgroup.devices.allow", "c 195:0 rwm"), True),
        (("lxc.cgroup2.devices.allow", "c 508:0 rwm"), True),
        (("lxc.cgroup2.devices.allow", "c 10:200 rwm"), False),
        (("lxc.cgroup2.devices.allow", "b 195:0 rwm"), False),
        (("lxc.cgroup2.devices.allow", "a"), False),
        (("lxc.cgroup2.memory.high", "c 195:0"), False),
    ],
)
def test_what_gives_a_gpu(line, is_gpus):
    assert bool(gpu.raw_lines_of([line], THERE)) is is_gpus


def test_nothing_hinders():
    assert gpu.problem([0, 10], THERE) == gpu.problem([], {}) == ""
