# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable

_PREFIX = "serves_"


def served_by(groups: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Return host → the groups of what it serves."""
    found: dict[str, set[str]] = {}
    for group, members in groups.items():
        for host in members if group.startswith(_PREFIX) else ():
            found.setdefault(host, set()).add(group)
    return found


def replicas(groups: Mapping[str, Sequence[str]], host: str, candidates: Sequence[str]) -> list[str]:
    """Return those of the candidates that serve a model under a name of a host's own, the host itself left out."""
    names = served_by(groups)
    own = names.get(host, set())
    return [name for name in candidates if name != host and own & names.get(name, set())]


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {"replicas": replicas}
