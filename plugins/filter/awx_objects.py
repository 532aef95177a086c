# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role awx_config."""

from __future__ import annotations

from ansible_collections.phoenix.hypervisor.plugins.module_utils import awx_objects


def awx_problems(types, there, mark, secrets, take_over=False):
    """Return what can't be made as declared, a sentence each."""
    return awx_objects.problems(types, there, mark, secrets, take_over=take_over)


class FilterModule:
    """What Ansible looks for."""

    def filters(self):
        """Return name → function."""
        return {
            "awx_inputs": awx_objects.inputs,
            "awx_own": awx_objects.own,
            "awx_problems": awx_problems,
            "awx_secrets": awx_objects.secrets_of,
            "awx_secret_names": awx_objects.names_of_secrets,
        }
