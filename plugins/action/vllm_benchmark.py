# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls the module L(vllm_benchmark) until all is measured, and shows how far it is."""

from __future__ import annotations

from ansible_collections.phoenix.hypervisor.plugins.plugin_utils import progress


class ActionModule(progress.Following):
    """What Ansible looks for."""
