# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils.json_lines import (
    Places,
    line_of_half_character,
    line_of_token,
)
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = """{
  "a": [1, {"b": "x\\"}, {"},
    "c"
  ],
  "ü\\n" : {}, "d":
    {"e": null}
}
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ((), 1),
        (("a",), 2),
        (("a", 0), 2),
        (("a", 1, "b"), 2),
        (("a", 2), 3),
        (("ü\n",), 5),
        (("d",), 5),
        (("d", "e"), 6),
        (("d", "nothing", "e"), 5),
        (("a", 9), 2),
        (("a", "b"), 2),
        (("nothing",), 1),
    ],
)
def test_line(path: tuple, line: int) -> None:
    assert Places(TEXT).line(path) == line


DATA = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=15,
)


def paths(data: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place below this one, in the order of the text."""
    members = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, member in members:
        yield (*path, key)
        yield from paths(member, (*path, key))


@settings(deadline=None)
@given(DATA, st.booleans())
def test_every_place_of_any_text(data: Any, is_ascii: bool) -> None:
    """With an indent, each member starts a line of its own, and only ends of objects and lists are lines between."""
    text = json.dumps(data, indent=1, ensure_ascii=is_ascii)
    places, lines = Places(text), text.split("\n")
    starts = [number for number, line in enumerate(lines, 1) if line.strip() not in ("}", "},", "]", "],")][1:]
    assert [places.line(path) for path in paths(data)] == starts
    assert list(places.twice()) == []


def test_twice() -> None:
    text = '{"a": 1,\n"b": [{"c": 1,\n\n"\\u0063": {"c": 2}}],\n"a": 3, "a": 4}'
    assert list(Places(text).twice()) == [(("a",), 1, 5), (("a",), 1, 5), (("b", 0, "c"), 2, 4)]


def test_lines_in_texts_that_are_no_json() -> None:
    assert line_of_token('{"NaN":\n "NaN \\" NaN",\n NaN', "NaN") == 3
    assert line_of_token('"NaN"', "NaN") == 0
    assert line_of_half_character('["\\ud83d\\ude00",\n"\\\\ud800",\n"\\ud800"]') == 3
    assert line_of_half_character('["\\ud83d\\ude00"]') == 0
