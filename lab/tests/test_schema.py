# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options and their values."""

from __future__ import annotations

import re

import pytest
from node import schema
from node.errors import UsageError


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("memory", "0512", "512"),
        ("onboot", "yes", "1"),
        ("tags", "B;a,b  C", "a;b;c"),
        ("startup", "5,up=10", "order=5,up=10"),
        ("features", "nesting=1,keyctl=0", "keyctl=0,nesting=1"),
        ("net0", "bridge=vmbr0,ip=dhcp,name=eth0", "name=eth0,bridge=vmbr0,ip=dhcp"),
        ("rootfs", "local-btrfs:8", "local-btrfs:8"),
        ("mp0", "/a b,mp=/x,ro=1", "/a b,mp=/x,ro=1"),
        ("mp3", "mp=/x,size=1024M,volume=s:1/vm-1-disk-0.subvol", "s:1/vm-1-disk-0.subvol,mp=/x,size=1G"),
        ("dev0", "mode=0666,path=/dev/fuse,gid=44", "/dev/fuse,gid=44,mode=0666"),
        ("nameserver", "1.1.1.1 9.9.9.9", "1.1.1.1 9.9.9.9"),
    ],
)
def test_normalised(name: str, given: str, kept: str) -> None:
    assert schema.checked_config({name: given}) == {name: kept}


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("memory", "abc", "memory: type check ('integer') failed - got 'abc'"),
        ("memory", "15", "memory: value must have a minimum value of 16"),
        ("onboot", "maybe", "onboot: type check ('boolean') failed - got 'maybe'"),
        ("dev0", "fuse", "dev0.path: invalid format - value 'fuse' is not a valid device path"),
        ("dev0", "/dev/x,mode=666", "dev0.mode: value does not match the regex pattern"),
        ("dev0", "/dev/../etc", "dev0.path: invalid format - value '/dev/../etc' is not a valid device path"),
        ("net0", "bridge=vmbr0", "net0.name: property is missing and it is not optional"),
        ("net0", "name=eth0,ip=10.0.0.1", "does not look like a valid IPv4 network configuration"),
        ("net0", "name=eth0,foo=1", "net0.foo: property is not defined in schema"),
        ("net0", "name=eth0,hwaddr=01:00:00:00:00:00", "net0.hwaddr: "),
        ("mp0", "/x", "mp0.mp: property is missing"),
        ("mp0", "/x,mp=relative", "mp0.mp: invalid format"),
        ("hostname", "a_b", "hostname: invalid format - value 'a_b' does not look like a valid DNS name"),
        ("nameserver", "example", "nameserver: invalid format"),
        ("lock", "nonsense", "lock: value 'nonsense' does not have a value in the enumeration"),
    ],
)
def test_refused(name: str, given: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        schema.checked_config({name: given})
    assert str(refused.value).startswith("400 Parameter verification failed.\n" + name)
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["net32", "mp256", "dev256", "net00", "net", "lxc.idmap", "nonsense"])
def test_no_such_option(name: str) -> None:
    assert schema.validator(name) is None


@pytest.mark.parametrize(("count", "text"), [(8 * 1024**3, "8G"), (1536 * 1024**2, "1536M"), (1000, "1000"), (0, "0")])
def test_sizes(count: int, text: str) -> None:
    assert schema.size_text(count) == text
    assert schema.size_bytes(text) == count


def test_generated_hwaddr_is_proxmox_own_prefix_and_given_ones_stay() -> None:
    assert re.fullmatch(r"BC:24:11(:[0-9A-F]{2}){3}", schema.with_hwaddr({"name": "eth0"})["hwaddr"])
    assert schema.with_hwaddr({"hwaddr": "AA:BB:CC:DD:EE:00"})["hwaddr"] == "AA:BB:CC:DD:EE:00"


def test_id_maps() -> None:
    default = schema.id_map([], True, 100000, 65536)
    assert schema.to_host(default, "u", 0) == 100000
    assert schema.to_host(schema.id_map([], False, 100000, 65536), "u", 5) == 5
    raw = [("lxc.idmap", "u 0 100000 1000"), ("lxc.idmap", "u 1000 1000 1"), ("lxc.idmap", "g 0 200000 65536")]
    own = schema.id_map(raw, True, 100000, 65536)
    assert (schema.to_host(own, "u", 1000), schema.to_host(own, "g", 7)) == (1000, 200007)
    with pytest.raises(ValueError, match="uid 2000 is not mapped"):
        schema.to_host(own, "u", 2000)
