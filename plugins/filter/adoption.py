# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter of adopt.yml: adoption_told."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.phoenix.hypervisor.plugins.module_utils import adoption
from ansible_collections.phoenix.hypervisor.plugins.plugin_utils import reports


def adoption_told(node: dict[str, Any], host: str, ctid: int, inside: dict[str, Any]) -> dict[str, list[str]]:
    """What a person has to know and do about a container of the old scripts."""
    node, inside = reports.plain(node), reports.plain(inside)
    return adoption.told({"host": host, "ctid": int(ctid)}, node, inside if "steps" in inside else {})


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {"adoption_told": adoption_told}
