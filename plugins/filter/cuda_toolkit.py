# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters cuda_toolkit and cuda_toolkit_problem."""

from __future__ import annotations

from typing import Callable

from ansible_collections.phoenix.hypervisor.plugins.module_utils import nvidia_toolkit


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {"cuda_toolkit": nvidia_toolkit.decide, "cuda_toolkit_problem": nvidia_toolkit.found_problem}
