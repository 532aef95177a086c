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


def test_every_gpu_has_the_common_devices_once():
    assert gpu.paths([10, 0, 10], THERE) == ["/dev/nvidia0", "/dev/nvidia10", "/dev/nvidiactl", "/dev/nvidia-uvm"]
    assert gpu.paths([], THERE) == []


def test_tools_and_caps_where_they_are():
    more = {**THERE, "/dev/nvidia-uvm-tools": Device(508, 1), "/dev/nvidia-caps/nvidia-cap2": Device(511, 2)}
    assert gpu.paths([0], more)[-2:] == ["/dev/nvidia-uvm-tools", "/dev/nvidia-caps/nvidia-cap2"]
    assert "/dev/nvidia-uvm-tools" in gpu.paths([0], None)


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
