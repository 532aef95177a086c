# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of status.yml: status_declared and status_running."""

from __future__ import annotations

from typing import Callable

from ansible_collections.phoenix.hypervisor.plugins.module_utils import status


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {
            "status_declared": status.declared,
            "status_running": lambda node, vmid: status.is_running(int(vmid), node),
        }
