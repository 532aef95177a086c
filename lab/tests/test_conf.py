# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The conf file: what goes in comes out, in the genuine order."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node import conf
from node.conf import Conf, Section

WHOLE = """\
#first%3A line
#%C3%BC second
arch: amd64
features: nesting=1
hostname: c712
memory: 512
net0: name=eth0,bridge=vmbr0
parent: snap1
lxc.idmap: u 0 100000 65536
lxc.apparmor.profile: unconfined
lxc.idmap: g 0 100000 65536

[pve:pending]
delete: !mp1,swap
nameserver: 1.1.1.1

[snap1]
#of the snapshot
arch: amd64
hostname: c712
snaptime: 1795238662
lxc.apparmor.profile: unconfined
"""


def test_whole_file_round_trip() -> None:
    parsed = conf.parse(WHOLE)
    assert parsed.warnings == []
    assert parsed.active.description == "first: line\nü second\n"
    assert parsed.active.raw[1] == ("lxc.apparmor.profile", "unconfined")
    assert parsed.delete == {"mp1": True, "swap": False}
    assert parsed.pending == {"nameserver": "1.1.1.1"}
    assert parsed.snapshots["snap1"].options["snaptime"] == "1795238662"
    assert conf.render(parsed) == WHOLE


def test_raw_lines_with_equals_sign_are_normalised_and_keep_their_order() -> None:
    parsed = conf.parse("lxc.cap.drop = sys_time\nmemory: 64\nlxc.cap.drop: mac_admin\n")
    assert conf.render(parsed) == "memory: 64\nlxc.cap.drop: sys_time\nlxc.cap.drop: mac_admin\n"


def test_unknown_raw_key_is_warned_about_and_lost() -> None:
    parsed = conf.parse("memory: 64\nlxc.nonsense: 1\nnot a line\n", 712)
    assert parsed.warnings == [
        "vm 712 - unable to parse config: lxc.nonsense: 1",
        "vm 712 - unable to parse config: not a line",
    ]
    assert conf.render(parsed) == "memory: 64\n"


@pytest.mark.parametrize("key", ["lxc.rootfs.path", "lxc.rootfs.options", "lxc.foo"])
def test_refused_raw_keys(key: str) -> None:
    assert not conf.raw_key_allowed(key)


@pytest.mark.parametrize("key", ["lxc.idmap", "lxc.cgroup2.devices.allow", "lxc.prlimit.nofile", "lxc.mount.entry"])
def test_accepted_raw_keys(key: str) -> None:
    assert conf.raw_key_allowed(key)


def test_comments_anywhere_move_to_the_top() -> None:
    assert conf.render(conf.parse("memory: 64\n#late\n")) == "#late\nmemory: 64\n"


def test_config_shows_pending_merged_and_the_description_encoded() -> None:
    parsed = conf.parse("#line1\n#line2 ü\nmemory: 64\nswap: 1\n\n[pve:pending]\ndelete: swap\nmemory: 128\n")
    assert conf.config_lines(conf.merged(parsed)) == ["description: line1%0Aline2 %C3%BC%0A", "memory: 128"]
    assert conf.config_lines(parsed.active)[1:] == ["memory: 64", "swap: 1"]


def test_pending_lines() -> None:
    parsed = conf.parse("memory: 64\nswap: 1\n\n[pve:pending]\ndelete: swap\nmemory: 128\ntty: 1\n")
    assert conf.pending_lines(parsed) == ["cur memory: 64", "new memory: 128", "del swap: 1", "new tty: 1"]


def test_snapshot_tree_is_the_genuine_picture() -> None:
    parsed = conf.parse(
        "parent: running1\n\n[base]\n#first snap\nsnaptime: 1\n\n[running1]\nparent: base\nsnaptime: 2\n"
        "\n[other]\nparent: base\nsnaptime: 3\n"
    )
    times = {"base": "2026-11-21 00:07:45", "running1": "2026-11-21 00:08:02", "other": "2026-11-21 00:09:00"}
    assert conf.snapshot_tree(parsed, times) == [
        "`-> base                        2026-11-21 00:07:45     first snap",
        " `-> running1                   2026-11-21 00:08:02     no-description",
        "  `-> current                                           You are here!",
        " `-> other                      2026-11-21 00:09:00     no-description",
    ]


def test_snapshot_tree_without_snapshots() -> None:
    assert conf.snapshot_tree(Conf(), {}) == ["`-> current" + " " * 44 + " You are here!"]


def test_digest_is_sha1_of_the_file() -> None:
    assert conf.digest(WHOLE) == hashlib.sha1(WHOLE.encode()).hexdigest()


_KEYS = st.sampled_from(["arch", "memory", "swap", "net0", "mp1", "tags", "hostname"])
_VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)
_DESCRIPTIONS = st.lists(
    st.text(st.characters(blacklist_categories=["Cs", "Zl", "Zp", "Cc"], blacklist_characters="%"))
)


@given(
    st.dictionaries(_KEYS, _VALUES),
    _DESCRIPTIONS,
    st.dictionaries(st.from_regex("[a-z][a-z0-9_-]{1,9}", fullmatch=True), st.just({"snaptime": "1"})),
)
def test_any_conf_survives(options: dict[str, str], lines: list[str], snapshots: dict[str, dict[str, str]]) -> None:
    whole = Conf(Section(options, [], "".join(line + "\n" for line in lines)))
    whole.snapshots = {name: Section(dict(values)) for name, values in snapshots.items()}
    parsed = conf.parse(conf.render(whole))
    assert parsed.warnings == []
    assert parsed.active == whole.active
    assert parsed.snapshots == whole.snapshots
