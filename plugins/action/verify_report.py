# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the report of a run of verify, on the control node."""

from __future__ import annotations

import datetime
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.phoenix.hypervisor.plugins.module_utils import verification
from ansible_collections.phoenix.hypervisor.plugins.plugin_utils import report_files

display = Display()


class ActionModule(ActionBase):
    """C(plugins/modules/verify_report.py) has the documentation."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task."""
        result = super().run(tmp, task_vars)
        _nothing, options = self.validate_argument_spec(
            argument_spec={
                "hosts": {"type": "list", "elements": "str", "required": True},
                "folder": {"type": "path", "default": ""},
            }
        )
        hostvars = (task_vars or {})["hostvars"]
        containers = [_container(host, hostvars[host]) for host in options["hosts"]]
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        check_mode = bool(self._task.check_mode)
        report = verification.report_of(containers, now, check_mode)
        text = verification.text_of(report)
        display.display(text)
        files = []
        if options["folder"] and not check_mode:
            try:
                files = report_files.write(options["folder"], "verify", report, text)
                display.display(f"The report is in {' and '.join(files)}.")
            except OSError as error:
                display.warning(
                    f"The report could not be written to {options['folder']}: {error.strerror}. It is above; "
                    "verify_report_folder names another folder."
                )
        return {**result, "changed": False, "report": report, "files": files}


def _container(host: str, variables: Any) -> dict[str, Any]:
    """What is known of a host: its result, or why there is none."""
    result = variables.get("verify_result")
    if result:
        return report_files.plain(result)
    if variables.get("container_template"):
        return verification.unverified(host, "it is a template, and nothing runs in one", verification.SKIPPED)
    return verification.unverified(host, "it was not verified; see above why")
