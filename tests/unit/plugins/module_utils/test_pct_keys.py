# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every configuration key of Proxmox, its values and its first release."""

from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import pct_keys

# pct.md, "Config file": all keys that Proxmox VE 7.4 to 9.1 knows.
ALL = [
    "arch", "cmode", "console", "cores", "cpulimit", "cpuunits", "debug", "description", "dev0", "dev255",
    "entrypoint", "env", "features", "hookscript", "hostname", "memory", "mp0", "mp255", "nameserver", "net0",
    "net31", "onboot", "ostype", "protection", "rootfs", "searchdomain", "startup", "swap", "tags", "timezone",
    "tty",
]  # fmt: skip


@pytest.mark.parametrize("key", ALL)
def test_every_key_is_known(key):
    assert pct_keys.find(key) is not None
    assert pct_keys.problem_of_key(key, pct_keys.NEWEST) == ""


def test_no_key_is_made_up():
    assert set(pct_keys.KEYS) == {pct_keys.base(key) for key in ALL}


@pytest.mark.parametrize("key", ["net32", "net", "net01", "dev256", "mp256", "memory1", "lxc", "unused0", "x", "1", ""])
def test_what_is_no_key(key):
    assert pct_keys.problem_of_key(key, pct_keys.NEWEST)


@pytest.mark.parametrize(
    ("key", "release", "is_known"),
    [
        ("dev0", (8, 0), False), ("dev0", (8, 1), True), ("env", (9, 0), False), ("env", (9, 1), True),
        ("entrypoint", (10, 0), True), ("memory", (7, 4), True),
    ],
)  # fmt: skip
def test_since_when_there_is_a_key(key, release, is_known):
    assert (pct_keys.problem_of_key(key, release) == "") is is_known


@pytest.mark.parametrize(
    ("key", "is_there", "release", "live"),
    [
        ("memory", True, (7, 4), True), ("cores", True, (9, 1), True), ("net0", False, (7, 4), True),
        ("hostname", True, (9, 1), False), ("features", True, (9, 1), False), ("nameserver", True, (9, 1), False),
        ("mp0", False, (7, 4), True), ("mp0", True, (9, 1), False), ("dev0", False, (8, 4), False),
        ("dev0", False, (9, 0), True), ("dev0", True, (9, 1), False), ("tags", True, (7, 4), True),
    ],
)  # fmt: skip
def test_what_a_running_container_takes_at_once(key, is_there, release, live):
    assert pct_keys.is_live(key, is_there, release) is live


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("cores", ["1", "8192"], ["0", "8193", "two", "1.5", "-1", "²"]),
        ("memory", ["16"], ["15", ""]),
        ("cpulimit", ["0", "1.5"], ["x", "-1"]),
        ("onboot", ["0", "1", "yes", "Off"], ["2", "y"]),
        ("hostname", ["a", "a-b.c", "A1"], ["-a", "a_b", "a..b", "a b", ""]),
        ("tty", ["0", "6"], ["7"]),
        ("ostype", ["debian"], ["Debian"]),
    ],
)
def test_values(key, good, bad):
    check = pct_keys.KEYS[key].check
    assert [value for value in good if check(value)] == []
    assert [value for value in bad if not check(value)] == []


@pytest.mark.parametrize(
    ("key", "parts", "fault"),
    [
        ("net0", {"name": "eth0", "hwaddr": "bc:24:11:00:00:01", "tag": "12"}, ""),
        ("net0", {"tag": "4095"}, "part tag with the value '4095'"),
        ("dev0", {"path": "/dev/x", "mode": "0660"}, ""),
        ("dev0", {"path": "/dev/x", "mode": "660"}, "which has to be four octal digits"),
        ("dev0", {"path": "/etc/x"}, "a path below /dev/"),
        ("mp0", {"volume": "/a", "mp": "a"}, "which has to be a path"),
        ("features", {"mount": "nfs;cifs"}, ""),
        ("startup", {"ordre": "1"}, "did you mean order?"),
    ],
)
def test_parts(key, parts, fault):
    said = pct_keys.problem_of_parts(key, parts)
    assert fault in said
    assert bool(said) == bool(fault)
