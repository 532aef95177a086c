# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ansible_collections.phoenix.hypervisor.plugins.filter.replicas import served_by


def _groups_of(hosts: Sequence[str], groups: Mapping[str, Sequence[str]], kind: str) -> dict[str, str]:
    """The number in the name of the group C(<kind>_N) that each host is in."""
    wanted = set(hosts)
    found = {}
    for group, members in groups.items():
        match = re.fullmatch(rf"{kind}_([0-9]+)", group)
        if match:
            found.update((host, match.group(1)) for host in members if host in wanted)
    return found


def wave_sizes(hosts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[int]:
    """How many hosts after each other can be converged at the same time.

    Hosts whose clone source doesn't come before them in the play come one by one: the run makes a source that is
    missing for the first that needs it, and two must not make it at once. Nor are two that serve the same model in one
    batch: while one is changed, the other one answers.

    :param hosts: the hosts of the play, in its order
    :param groups: the magic variable of this name
    """
    waves = _groups_of(hosts, groups, "wave")
    sources = _groups_of(hosts, groups, "clones_of")
    sizes: list[int] = []
    previous = None
    before: set[str] = set()
    names, served = served_by(groups), set()
    for host in hosts:
        own = names.get(host, set())
        is_alone = host not in waves or (host in sources and f"ctid_{sources[host]}" not in before)
        before.add(host)
        wave = None if is_alone else waves[host]
        if wave is not None and wave == previous and not own & served:
            sizes[-1] += 1
            served |= own
        else:
            sizes.append(1)
            served = own
        previous = wave
    # Should there be more hosts than were counted, Ansible goes on in batches of the last size.
    return [*sizes, 1]


def wave_order(hosts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The hosts in the order of their waves; within one, and those without one at the end, as they come.

    :param hosts: names of hosts
    :param groups: the magic variable of this name
    """
    waves = _groups_of(hosts, groups, "wave")
    return sorted(hosts, key=lambda host: (host not in waves, int(waves.get(host, 0))))


class FilterModule:
    def filters(self) -> dict:
        return {"wave_sizes": wave_sizes, "wave_order": wave_order}
