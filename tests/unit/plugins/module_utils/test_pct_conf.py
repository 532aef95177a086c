# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Conf files and property strings: parsed, rendered, compared, edited."""

from __future__ import annotations

import re

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import pct_conf, pct_keys
from hypothesis import given
from hypothesis import strategies as st

CONF = """\
#line one%0Awith a newline
#ümläut %C3%BC
arch: amd64
features: nesting=1
memory: 512
net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=dhcp,type=veth
rootfs: local-btrfs:vm-700-disk-0.subvol,size=8G
lxc.cap.keep: a,b
lxc.mount.entry = /dev/x dev/x none bind 0 0

[pve:pending]
hostname: later
delete: features,!swap

[before]
#of the snapshot
memory: 256
snaptime: 1
lxc.cap.keep: of the snapshot

[vzdump]
memory: 128
snapstate: delete
"""

KEYS = st.sampled_from(["arch", "hostname", "memory", "net0", "mp12", "tags", "cores"])
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs", "Z"]), min_size=1)
RAW_KEYS = st.sampled_from(["lxc.cap.drop", "lxc.apparmor.profile", "lxc.cgroup2.devices.allow", "lxc.environment"])
SECTIONS = st.builds(
    pct_conf.Section,
    st.dictionaries(KEYS, WORDS),
    st.lists(st.tuples(RAW_KEYS, WORDS), max_size=4),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30).map(pct_conf.as_comments),
)


def test_parse_keeps_the_sections_apart():
    conf = pct_conf.parse(CONF)
    assert conf.main.values["memory"] == "512"
    assert conf.main.raw == [("lxc.cap.keep", "a,b"), ("lxc.mount.entry", "/dev/x dev/x none bind 0 0")]
    assert conf.main.description == "line one\nwith a newline\nümläut ü\n"
    assert conf.pending.values == {"hostname": "later", "delete": "features,!swap"}
    assert sorted(conf.snapshots) == ["before", "vzdump"]
    assert conf.complete_snapshots == ["before"]
    assert conf.snapshots["before"].values == {"memory": "256", "snaptime": "1"}
    assert conf.snapshots["before"].raw == [("lxc.cap.keep", "of the snapshot")]
    assert conf.snapshots["before"].description == "of the snapshot\n"


@pytest.mark.parametrize("line", ["", "   ", "no colon", "=x", "Upper: 1", "lxc.a", "\x0c", ": 1"])
def test_parse_passes_over_what_is_no_line_of_a_conf(line):
    assert pct_conf.parse(f"memory: 1\n{line}\ncores: 2\n").main.values == {"memory": "1", "cores": "2"}


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_parse_of_the_last_line(end):
    assert pct_conf.parse(f"memory: 1{end}").main.values == {"memory": "1"}


@given(SECTIONS)
def test_what_is_rendered_is_parsed_to_the_same(section):
    assert pct_conf.parse(pct_conf.render(section)).main == section


@given(st.text())
def test_parse_takes_any_text(text):
    pct_conf.parse(text)


def test_render_is_what_proxmox_writes():
    raw, comments = [("lxc.b", "2"), ("lxc.a", "1")], pct_conf.as_comments("ü: 50 %\n\nx\n\n")
    section = pct_conf.Section({"memory": "512", "arch": "amd64"}, raw, comments)
    assert pct_conf.render(section) == (
        "#%C3%BC%3A 50 %\n#\n#x\narch: amd64\nmemory: 512\nlxc.b: 2\nlxc.a: 1\n"
    )


def test_a_description_is_read_back_as_proxmox_does():
    """It doesn't encode its own escape sign: what looks like an escape is one when it is read."""
    assert pct_conf.same("description", "a%41\n", "aA")
    assert pct_conf.same("description", "ü: 50 % off", "ü: 50 % off\n\n")
    assert not pct_conf.same("description", "a", "a\nb")
    assert pct_conf.as_comments("") == pct_conf.as_comments("\n") == []


# What Proxmox itself can have written: sections in its order, keys sorted, descriptions encoded.
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=0x17F, exclude_categories=["Cc"]), min_size=1).map(
    str.strip
).filter(bool)
ALL_KEYS = st.one_of(
    st.sampled_from([name for name, key in pct_keys.KEYS.items() if key.highest is None and name != "description"]),
    st.builds("{}{}".format, st.sampled_from(["net", "mp", "dev", "unused"]), st.integers(0, 255)),
    st.sampled_from(["lock", "parent", "snaptime", "template", "unprivileged"]),
)
WRITTEN = st.builds(
    lambda values, raw, description: pct_conf.render(pct_conf.Section(values, raw, pct_conf.as_comments(description))),
    st.dictionaries(ALL_KEYS, VALUES, min_size=1),
    st.lists(st.tuples(RAW_KEYS, VALUES), max_size=5),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
SNAPSHOTS = st.dictionaries(st.from_regex(r"[a-zA-Z][a-zA-Z0-9_-]{1,39}", fullmatch=True), WRITTEN, max_size=3)


@given(WRITTEN, st.dictionaries(ALL_KEYS, VALUES), st.sets(ALL_KEYS), SNAPSHOTS)
def test_every_file_of_proxmox_is_rendered_as_it_was(main, pending, deleted, snapshots):
    """Parse and render is the identity, to the byte."""
    waiting = {**pending, **({"delete": ",".join(sorted(deleted))} if deleted else {})}
    text = main
    if waiting:
        text += "\n[pve:pending]\n" + "".join(f"{key}: {value}\n" for key, value in sorted(waiting.items()))
    text += "".join(f"\n[{name}]\n{section}" for name, section in sorted(snapshots.items()))
    assert pct_conf.render_conf(pct_conf.parse(text)) == text


@given(SECTIONS, SECTIONS, st.dictionaries(KEYS, WORDS))
def test_a_whole_conf_round_trips(main, snapshot, pending):
    conf = pct_conf.Conf(main, pct_conf.Section(pending), {"snap": snapshot})
    assert pct_conf.parse(pct_conf.render_conf(conf)) == conf


def test_with_pending_is_the_conf_after_a_restart():
    conf = pct_conf.parse(CONF)
    after = pct_conf.with_pending(conf)
    assert after.values == {
        **{key: value for key, value in conf.main.values.items() if key != "features"},
        "hostname": "later",
    }
    assert after.raw == conf.main.raw
    assert pct_conf.waiting(conf) == ["features", "hostname", "swap"]
    assert pct_conf.waiting(pct_conf.parse("memory: 1\n")) == []


@pytest.mark.parametrize(
    ("key", "text", "parts"),
    [
        ("net0", "name=eth0,ip=dhcp", {"name": "eth0", "ip": "dhcp"}),
        ("rootfs", "local:8", {"volume": "local:8"}),
        ("rootfs", "local:x/y,size=8G", {"volume": "local:x/y", "size": "8G"}),
        ("rootfs", "volume=local:8", {"volume": "local:8"}),
        ("mp0", "/a,mp=/b", {"volume": "/a", "mp": "/b"}),
        ("mp0", "/a=b,mp=/b", {"volume": "/a=b", "mp": "/b"}),
        ("dev0", "/dev/x,mode=0660", {"path": "/dev/x", "mode": "0660"}),
        ("dev0", "path=/dev/x", {"path": "/dev/x"}),
        ("dev0", "/dev/disk/by-id/a=b", {"path": "/dev/disk/by-id/a=b"}),
        ("startup", "5", {"order": "5"}),
        ("startup", "order=5,up=3", {"order": "5", "up": "3"}),
        ("features", "", {}),
        ("features", "nesting=1,,keyctl=1", {"nesting": "1", "keyctl": "1"}),
        ("features", "mount=nfs;cifs", {"mount": "nfs;cifs"}),
    ],
)
def test_split_property(key, text, parts):
    assert pct_conf.split_property(key, text) == parts
    assert pct_conf.split_property(key, pct_conf.join_property(key, parts)) == parts


@pytest.mark.parametrize(("key", "text"), [("net0", "eth0"), ("features", "nesting"), ("net1", "name=eth0,bridge")])
def test_a_part_without_a_name_is_an_error_that_names_the_key(key, text):
    with pytest.raises(ValueError, match=key):
        pct_conf.split_property(key, text)


@given(
    st.dictionaries(st.sampled_from(["name", "ip", "gw", "hwaddr"]), st.from_regex(r"[A-Za-z0-9:./-]+", fullmatch=True))
)
def test_property_strings_round_trip(parts):
    assert pct_conf.split_property("net0", pct_conf.join_property("net0", parts)) == parts


@pytest.mark.parametrize(
    ("key", "parts", "text"),
    [
        ("features", {"nesting": True, "keyctl": False}, "keyctl=0,nesting=1"),
        ("features", {"nesting": 1, "fuse": None, "mount": ""}, "nesting=1"),
        ("mp0", {"mp": "/b", "volume": "/a"}, "/a,mp=/b"),
        ("startup", {"order": 5, "up": 0}, "order=5,up=0"),
        ("dev3", {"path": "/dev/x", "uid": 0}, "/dev/x,uid=0"),
    ],
)
def test_join_property(key, parts, text):
    assert pct_conf.join_property(key, parts) == text


@pytest.mark.parametrize(
    ("key", "value", "written"),
    [
        ("tags", "B a,b", "a;b"),
        ("onboot", "yes", "1"),
        ("features", "nesting=1,keyctl=1", "keyctl=1,nesting=1"),
        ("net0", "bridge=vmbr0,name=eth0,ip=dhcp", "name=eth0,bridge=vmbr0,ip=dhcp"),
        ("mp0", "ro=1,mp=/b,volume=/a,backup=1", "/a,mp=/b,backup=1,ro=1"),
        ("startup", "5", "order=5"),
        ("hostname", "Yes", "Yes"),
    ],
)
def test_as_proxmox_writes_it(key, value, written):
    assert pct_conf.as_written(key, value) == written
    assert pct_conf.same(key, value, written)
    assert pct_conf.as_written(key, written) == written


SAME = [
    ("features", "nesting=1,keyctl=1", "keyctl=1,nesting=1"),
    ("features", "nesting=1,keyctl=0", "nesting=1"),
    ("features", "nesting=yes", "nesting=1"),
    ("net0", "name=eth0,hwaddr=bc:24:11:00:00:01", "hwaddr=BC:24:11:00:00:01,name=eth0"),
    ("net0", "name=eth0,firewall=0", "name=eth0"),
    ("mp0", "/a,mp=/b/", "/a,mp=/b"),
    ("mp0", "local:v,mp=/b,size=8G", "local:v,mp=/b"),
    ("dev0", "path=/dev/x", "/dev/x"),
    ("dev0", "/dev/x,gid=0,uid=0,mode=0660,deny-write=0", "/dev/x"),
    ("mp0", "/a,mp=/b,ro=0,backup=0,replicate=1", "/a,mp=/b"),
    ("mp0", "/a,mp=/b,ro=yes", "/a,mp=/b,ro=1"),
    ("net0", "name=eth0,link_down=0", "name=eth0"),
    ("startup", "5", "order=5"),
    ("tags", "B;a", "a,b"),
    ("tags", "a a", "a"),
    ("cpulimit", "2", "2.0"),
    ("onboot", "yes", "1"),
    ("onboot", "off", "0"),
    ("nameserver", "1.1.1.1 8.8.8.8", "1.1.1.1,8.8.8.8"),
    ("description", "text\n", "text"),
    ("memory", "512", "512"),
    ("memory", None, None),
]
DIFFERENT = [
    ("features", "nesting=1", "keyctl=1"),
    ("net0", "name=eth0", "name=eth1"),
    ("net0", "name=eth0,firewall=1", "name=eth0"),
    ("net0", "name=eth0,hwaddr=BC:24:11:00:00:01", "name=eth0"),
    ("mp0", "/a,mp=/b", "/a,mp=/b,ro=1"),
    ("mp0", "/a,mp=/b", "/c,mp=/b"),
    ("dev0", "/dev/x", "/dev/x,mode=0666"),
    ("dev0", "/dev/x", "/dev/x,gid=1"),
    ("mp0", "/a,mp=/b,replicate=0", "/a,mp=/b"),
    ("tags", "a", "a;b"),
    ("cpulimit", "2", "2.5"),
    ("cpulimit", "2", "two"),
    ("onboot", "1", "0"),
    ("nameserver", "1.1.1.1 8.8.8.8", "8.8.8.8 1.1.1.1"),
    ("memory", "512", "1024"),
    ("memory", None, "512"),
    ("hostname", "a", "A"),
]


@pytest.mark.parametrize(("key", "one", "other"), SAME)
def test_same(key, one, other):
    assert pct_conf.same(key, one, other)
    assert pct_conf.same(key, one=other, other=one)


@pytest.mark.parametrize(("key", "one", "other"), DIFFERENT)
def test_not_same(key, one, other):
    assert not pct_conf.same(key, one, other)
    assert not pct_conf.same(key, one=other, other=one)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8 * 2**30), ("512M", 2**29), ("1.5T", 3 * 2**39), ("4K", 4096), ("17", 17), (" 1G ", 2**30), ("0", 0)],
)
def test_size_in_bytes(text, size):
    assert pct_conf.size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "8g", "-8G", "8 G", "8GB", "+1G"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is not a size"):
        pct_conf.size_in_bytes(text)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("lxc.apparmor.profile: unconfined", ("lxc.apparmor.profile", "unconfined")),
        ("lxc.apparmor.profile=unconfined", ("lxc.apparmor.profile", "unconfined")),
        ("lxc.cap.drop = ", ("lxc.cap.drop", "")),
        ("lxc.cgroup2.devices.allow: c 195:* rwm", ("lxc.cgroup2.devices.allow", "c 195:* rwm")),
        ("lxc.mount.entry: /a b none bind,create=dir 0 0", ("lxc.mount.entry", "/a b none bind,create=dir 0 0")),
        ("lxc.idmap: u 0 100000 65536", ("lxc.idmap", "u 0 100000 65536")),
        ("lxc.net.0.type = veth", ("lxc.net.0.type", "veth")),
    ],
)
def test_split_raw(line, parts):
    assert pct_conf.split_raw(line) == parts


@pytest.mark.parametrize("line", ["", "memory: 1", "lxc.cap.drop", "# lxc.x: y", "xlxc.cap.drop: a"])
def test_what_is_no_raw_line(line):
    with pytest.raises(ValueError, match="not of the form"):
        pct_conf.split_raw(line)


@pytest.mark.parametrize("key", ["lxc.rootfs.path", "lxc.rootfs.options", "lxc.nonsense", "lxc.capdrop", "lxc.cap.x"])
def test_a_raw_key_that_proxmox_would_drop_is_refused(key):
    with pytest.raises(ValueError, match=re.escape(key)):
        pct_conf.split_raw(f"{key}: x")


class TestEditRaw:
    """Fault 4: lines appended to a conf with snapshots land in a snapshot's section."""

    def test_a_new_line_goes_above_the_first_section(self):
        text = pct_conf.edit_raw(CONF, [], [("lxc.apparmor.profile", "unconfined")])
        assert text == CONF.replace("\n\n[pve:pending]", "\nlxc.apparmor.profile: unconfined\n\n[pve:pending]")

    def test_lines_go_from_the_main_section_only(self):
        text = pct_conf.edit_raw(CONF + "lxc.cap.keep: a,b\n", [("lxc.cap.keep", "a,b")], [])
        assert text == CONF.replace("lxc.cap.keep: a,b\n", "", 1) + "lxc.cap.keep: a,b\n"

    def test_a_line_with_an_equals_sign_is_known(self):
        text = pct_conf.edit_raw(CONF, [("lxc.mount.entry", "/dev/x dev/x none bind 0 0")], [])
        assert text == CONF.replace("lxc.mount.entry = /dev/x dev/x none bind 0 0\n", "")

    def test_a_key_given_twice_has_both_lines_in_their_order(self):
        lines = [("lxc.cap.drop", "b"), ("lxc.cap.drop", "a")]
        assert pct_conf.parse(pct_conf.edit_raw(CONF, [], lines)).main.raw[-2:] == lines

    @pytest.mark.parametrize("text", ["", "memory: 1", "memory: 1\n", "memory: 1\n\n", "\n\n[s]\nmemory: 2\n", "[s]\n"])
    def test_any_end(self, text):
        conf = pct_conf.parse(pct_conf.edit_raw(text, [], [("lxc.cap.drop", "a")]))
        assert conf.main.raw == [("lxc.cap.drop", "a")]
        assert conf.main.values == pct_conf.parse(text).main.values
        assert conf.snapshots == pct_conf.parse(text).snapshots

    def test_bytes_that_are_no_utf_8_stay(self):
        text = b"#caf\xe9\r\nmemory: 1\x0b\x1c\nlxc.cap.drop: a\n\n[s]\n#\xff\n".decode("utf-8", "surrogateescape")
        done = pct_conf.edit_raw(text, [("lxc.cap.drop", "a")], [("lxc.cap.drop", "b")])
        assert done.encode("utf-8", "surrogateescape") == (
            b"#caf\xe9\r\nmemory: 1\x0b\x1c\nlxc.cap.drop: b\n\n[s]\n#\xff\n"
        )

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))), RAW_KEYS, WORDS)
    def test_all_other_lines_stay_to_the_byte(self, lines, key, value):
        text = "".join(f"{line}\n" for line in lines)
        others = [line for line in pct_conf.edit_raw(text, [(key, value)], []).split("\n") if line]
        assert others == [line for line in lines if line and pct_conf.raw_of(line) != (key, value)]

    @given(SECTIONS, SECTIONS, st.lists(st.tuples(RAW_KEYS, WORDS), max_size=3))
    def test_what_was_put_in_can_be_taken_out(self, main, snapshot, lines):
        text = f"{pct_conf.render(main)}\n[snap]\n{pct_conf.render(snapshot)}"
        lines = [line for line in lines if line not in main.raw]
        there = pct_conf.edit_raw(text, [], lines)
        assert pct_conf.parse(there).main.raw == main.raw + lines
        assert pct_conf.parse(there).snapshots["snap"] == snapshot
        assert pct_conf.edit_raw(there, lines, []) == text
