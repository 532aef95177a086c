# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The map between the ids in a container and those on its node: C(lxc.idmap) lines, and what root may map."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# How Proxmox maps the ids of an unprivileged container when nothing is said.
DEFAULT_HOST, DEFAULT_SIZE = 100000, 65536
_DEFAULT = tuple(f"{kind} 0 {DEFAULT_HOST} {DEFAULT_SIZE}" for kind in "ug")
_FILES = {"u": "/etc/subuid", "g": "/etc/subgid"}
_WORDS = {"u": "user", "g": "group"}


def parse(lines: Sequence[str], is_unprivileged: bool) -> list[tuple[str, int, int, int]]:
    """Kind (C(u) or C(g)), first id inside, first id on the node, how many; sorted.

    :param lines: values of C(lxc.idmap); without any, the default map
    :param is_unprivileged: a privileged container has no map: an empty list
    :raises ValueError: when a line is none
    """
    if not is_unprivileged:
        return []
    found = []
    for line in lines or _DEFAULT:
        match = re.fullmatch(r"([ugb])\s+(\d+)\s+(\d+)\s+([1-9]\d*)", line.strip())
        if not match:
            raise ValueError(f"{line!r} is not of the form u|g FIRST_INSIDE FIRST_ON_NODE COUNT; correct it")
        kinds = "ug" if match.group(1) == "b" else match.group(1)
        found += [(kind, int(match.group(2)), int(match.group(3)), int(match.group(4))) for kind in kinds]
    return sorted(found)


def problem(lines: Sequence[str], root_subids: Mapping[str, Sequence[tuple[int, int]]] | None) -> str:
    """What is wrong with declared C(lxc.idmap) lines, with what to do; "" when nothing is.

    :param root_subids: ranges (first, how many) that root may map, by C(u) and C(g); None when they can't be known
    """
    if not lines:
        return ""
    try:
        ranges = parse(lines, True)
    except ValueError as error:
        return str(error)
    if root_subids is None:
        return ""
    missing = []
    for kind, _inside, first, count in ranges:
        for start, size in _not_covered(first, count, root_subids[kind]):
            missing.append(f"root:{start}:{size} to {_FILES[kind]}")
    if not missing:
        return ""
    return f"root on the node may not map all of these ids; add {', '.join(missing)} there"


def _not_covered(first: int, count: int, allowed: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of a range of ids that no allowed range holds."""
    gaps, at, end = [], first, first + count
    for start, size in sorted(allowed):
        if start + size <= at:
            continue
        if start >= end:
            break
        if start > at:
            gaps.append((at, start - at))
        at = max(at, start + size)
    if at < end:
        gaps.append((at, end - at))
    return gaps


def on_node(kind: str, number: int, raw: Sequence[tuple[str, str]], is_unprivileged: bool) -> int:
    """The id on the node of an id inside.

    :param kind: C(u) for a user, C(g) for a group
    :param raw: the container's raw lines
    :raises ValueError: when the map has no place for it
    """
    ranges = parse([value for key, value in raw if key == "lxc.idmap"], is_unprivileged)
    if not is_unprivileged:
        return number
    for its_kind, inside, outside, count in ranges:
        if its_kind == kind and inside <= number < inside + count:
            return outside + number - inside
    raise ValueError(f"{_WORDS[kind]} id {number} has no place in the container's id map; correct it, or the id_maps")
