# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls the module L(vllm_model_server) until the server answers, and shows how far it is."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.phoenix.hypervisor.plugins.plugin_utils import progress


class ActionModule(ActionBase):
    """The module's own options are all that there are."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task."""
        result = super().run(tmp, task_vars)
        # The call that makes the change. What it planned and its diff are the task's; the others only wait.
        first = self._execute_module(task_vars=task_vars)
        if first.get("failed") or not first.get("running"):
            return {**result, **first}
        last = progress.follow(self, task_vars or {}, str(first.get("progress", "")), **first["again"])
        planned = {name: first[name] for name in ("plan", "diff", "invocation") if name in first}
        return {**result, **planned, **last, "changed": first.get("changed") or last.get("changed")}
