# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of the role verify: verify_result, verify_unknown_groups and verify_unverified."""

from __future__ import annotations

from typing import Callable

from ansible_collections.phoenix.hypervisor.plugins.module_utils import verification


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {
            "verify_result": verification.result_of,
            "verify_unknown_groups": verification.unknown_groups,
            "verify_unverified": verification.unverified,
        }
