# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Mapping, Sequence


def _is_complete(container: Mapping, declared: Mapping) -> bool:
    """Can clones be taken from this container? See docs/architecture.md, "A run", step 2."""
    if not container["exists"]:
        return False
    if declared.get("container_template"):
        return bool(container["template"])
    if declared.get("container_snapshot"):
        return declared["container_snapshot"] in container["snapshots"]
    return True


def unbuilt(lineage: Sequence[int], containers: Sequence[Mapping], hostvars: Mapping[str, Mapping]) -> list[str]:
    """Inventory names of the members of a lineage that a run for its last member has to converge, in order.

    :param lineage: CTIDs, oldest first, the container itself last
    :param containers: what pct_container_info says of them
    :param hostvars: what each member declares, by inventory name
    """
    state = {int(container["vmid"]): container for container in containers}
    members = [int(vmid) for vmid in lineage]
    needed = [members[-1]]
    if not state[members[-1]]["exists"]:
        for vmid in reversed(members[:-1]):
            if _is_complete(state[vmid], hostvars[f"ctid_{vmid}"]):
                break
            needed.insert(0, vmid)
            if state[vmid]["exists"]:
                # It was cloned already: only its own completion is missing, not its sources.
                break
    return [f"ctid_{vmid}" for vmid in needed]


class FilterModule:
    def filters(self) -> dict:
        return {"unbuilt": unbuilt}
