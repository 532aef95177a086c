# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On which line of a JSON text a key is. Only used when there is something to say about it."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

_BLANK = re.compile(r"[ \t\r\n]*")
_STRING = r'"(?:[^"\\]|\\.)*"'
_decode = json.JSONDecoder().raw_decode


class Places:
    """The places in a JSON text.

    Each object on the way to a place is looked through once, and what is beside the way is passed over by the decoder
    itself, so that thousands of places in a large file are found as fast as the file is read.

    :param text: a text that L(json.loads) takes
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._members: dict[int, dict[Any, tuple[int, int]]] = {}
        self._line_ends = [match.start() for match in re.finditer("\n", text)]

    def line(self, path: tuple) -> int:
        """The line of the key at the end of a path, or of the last one on the way that is there.

        :param path: keys of objects and indices of lists
        """
        where = start = _skip(self._text, 0)
        for step in path:
            if start not in self._members:
                self._members[start] = {key: (key_at, at) for key, key_at, at in self._scan(start)}
            if step not in self._members[start]:
                break
            where, start = self._members[start][step]
        return self.line_at(where)

    def line_at(self, place: int) -> int:
        """The line of a place in the text, from 1."""
        return bisect_right(self._line_ends, place - 1) + 1

    def twice(self) -> Iterator[tuple[tuple, int, int]]:
        """Each key that an object has more than once: its path, and the lines of the first and of the next one."""
        waiting: list[tuple[tuple, int]] = [((), _skip(self._text, 0))]
        while waiting:
            path, start = waiting.pop(0)
            first: dict[Any, int] = {}
            for key, where, value_at in self._scan(start):
                if first.setdefault(key, where) != where:
                    yield (*path, key), self.line_at(first[key]), self.line_at(where)
                waiting.append(((*path, key), value_at))

    def _scan(self, start: int) -> Iterator[tuple[Any, int, int]]:
        """The members of the object or list that starts here: key or index, where it is, where its value starts."""
        text = self._text
        kind = text[start]
        if kind not in "{[":
            return
        at, index = _skip(text, start + 1), 0
        while text[at] not in "}]":
            key, where = index, at
            if kind == "{":
                key, at = _decode(text, at)
                at = _skip(text, _skip(text, at) + 1)  # the colon
            yield key, where, at
            at = _skip(text, _decode(text, at)[1])
            if text[at] == ",":
                at = _skip(text, at + 1)
            index += 1


def line_of_token(text: str, pattern: str) -> int:
    """The line of the first match that is not inside a string, 0 when there is none. The text may be no JSON."""
    for match in re.finditer(f"{_STRING}|{pattern}", text, re.DOTALL):
        if not match.group().startswith('"'):
            return text.count("\n", 0, match.start()) + 1
    return 0


def line_of_half_character(text: str) -> int:
    """The line of the first string with half of a surrogate pair in it, 0 when there is none."""
    for match in re.finditer(_STRING, text):
        try:
            json.loads(match.group()).encode("utf-8")
        except UnicodeEncodeError:
            return text.count("\n", 0, match.start()) + 1
    return 0


def _skip(text: str, at: int) -> int:
    return _BLANK.match(text, at).end()  # type: ignore[union-attr]
