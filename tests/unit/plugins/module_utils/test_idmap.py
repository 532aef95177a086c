# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The map between ids inside and on the node."""

from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import idmap
from hypothesis import given
from hypothesis import strategies as st

MAPPED = [("lxc.idmap", "u 0 100000 1000"), ("lxc.idmap", "u 1000 1000 1"), ("lxc.idmap", "g 0 100000 65536")]


@pytest.mark.parametrize(
    ("kind", "number", "raw", "unprivileged", "expected"),
    [
        ("u", 0, [], True, 100000),
        ("g", 65535, [], True, 165535),
        ("u", 7, [], False, 7),
        ("u", 1000, MAPPED, True, 1000),
        ("u", 999, MAPPED, True, 100999),
        ("g", 1000, MAPPED, True, 101000),
        ("g", 5, [("lxc.idmap", "b 0 200000 10")], True, 200005),
    ],
)
def test_on_node(kind, number, raw, unprivileged, expected):
    assert idmap.on_node(kind, number, raw, unprivileged) == expected


@pytest.mark.parametrize(("number", "raw"), [(65536, []), (1001, MAPPED)])
def test_an_id_without_a_place(number, raw):
    with pytest.raises(ValueError, match=f"user id {number} has no place in the container's id map"):
        idmap.on_node("u", number, raw, True)


@pytest.mark.parametrize("line", ["", "u 0 1", "x 0 1 2", "u 0 1 0", "u -1 1 1", "u 0 1 2 3"])
def test_what_is_no_line(line):
    assert "is not of the form" in idmap.problem([line], None)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=4), st.integers(0, 60), st.integers(1, 30))
def test_what_root_may_not_map_is_exactly_what_is_missing(allowed, first, count):
    may = {number for start, size in allowed for number in range(start, start + size)}
    wanted = set(range(first, first + count))
    fault = idmap.problem([f"u 0 {first} {count}"], {"u": allowed, "g": []})
    assert bool(fault) == bool(wanted - may)
    missing = [tuple(map(int, part.split(" ")[0].split(":"))) for part in fault.split("root:")[1:]]
    assert {number for start, size in missing for number in range(start, start + size)} == wanted - may
