# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follows a module whose work goes on in the background, and shows how far it is.

Such a module returns within a minute or so, and says with C(running: true) that there is more to wait for; it is then
called again, with the options of C(again) besides its own. What it says in C(progress) is shown when it changes.

ansible-core runs an action in a process of its own, which is not told when ansible-playbook is killed. It sees that it
has another parent then, and asks no more.
"""

from __future__ import annotations

import os
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

# Seconds between two lines, so that a log of AWX stays readable.
EVERY = 5.0
# The work doesn't need the connection. One that is lost on the way is tried again, so many times in a row.
ATTEMPTS = 4
PAUSE = 5.0


def follow(action: ActionBase, task_vars: dict[str, Any], begun: str = "", **options: Any) -> dict[str, Any]:
    """Call the task's module until its work is done, and return its last result.

    Args:
        action: the action plugin of the task.
        task_vars: the task's variables.
        begun: how far a call was that came before these.
        options: of the module, besides those of the task.

    Raises:
        AnsibleConnectionFailure: the connection is lost, and stays so.
        AnsibleError: ansible-playbook is gone.
    """
    parent = os.getppid()
    own = {**action._task.args, **options}
    again: dict[str, Any] = {}
    shown, at, lost = "", -EVERY, 0
    changed = False
    if begun:
        display.display(f"[{_host(task_vars)}] {begun}")
        shown, at = begun, time.monotonic()
    while True:
        if os.getppid() != parent:
            raise AnsibleError("ansible-playbook has ended. The work inside goes on.")
        try:
            result = action._execute_module(module_args={**own, **again}, task_vars=task_vars)
            lost = 0
        except AnsibleConnectionFailure as error:
            lost += 1
            # Nothing is in the background yet when the first call fails.
            if not again or lost >= ATTEMPTS:
                raise
            display.warning(f"[{_host(task_vars)}] the connection was lost; the work inside goes on. Again: {error}")
            time.sleep(PAUSE)
            continue
        changed = changed or bool(result.get("changed"))
        if result.get("failed") or not result.get("running"):
            return {**result, "changed": changed}
        again = dict(result.get("again") or {"wait": own.get("wait", 30)})
        text = str(result.get("progress", ""))
        if text != shown and time.monotonic() - at >= EVERY:
            display.display(f"[{_host(task_vars)}] {text}")
            shown, at = text, time.monotonic()


class Following(ActionBase):
    """An action plugin that does nothing else. The module's own options are all that there are."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task."""
        result = super().run(tmp, task_vars)
        return {**result, **follow(self, task_vars or {})}


def _host(task_vars: dict[str, Any]) -> str:
    return str(task_vars.get("inventory_hostname", ""))
