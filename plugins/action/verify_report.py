# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the report of a run of verify, on the control node."""

from __future__ import annotations

import datetime
import json
import os
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.phoenix.hypervisor.plugins.module_utils import verification

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
                files = write(options["folder"], report, text)
                display.display(f"The report is in {' and '.join(files)}.")
            except OSError as error:
                display.warning(
                    f"The report could not be written to {options['folder']}: {error.strerror}. It is above; "
                    "verify_report_folder names another folder."
                )
        return {**result, "changed": False, "report": report, "files": files}


def write(folder: str, report: dict[str, Any], text: str) -> list[str]:
    """Write the report as JSON and as text, each in one step. Return the paths."""
    os.makedirs(folder, exist_ok=True)
    written = []
    contents = (("verify.json", json.dumps(report, indent=2, ensure_ascii=False)), ("verify.txt", text))
    for name, content in contents:
        path = os.path.join(folder, name)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(content + "\n")
        os.replace(f"{path}.new", path)
        written.append(path)
    return written


def _container(host: str, variables: Any) -> dict[str, Any]:
    """What is known of a host: its result, or why there is none."""
    result = variables.get("verify_result")
    if result:
        return _plain(result)
    if variables.get("container_template"):
        return verification.unverified(host, "it is a template, and nothing runs in one", verification.SKIPPED)
    return verification.unverified(host, "it was not verified; see above why")


def _plain(value: Any) -> Any:
    """Plain lists, dictionaries and text: ansible-core has types of its own for what comes from variables."""
    if isinstance(value, dict):
        return {str(key): _plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(member) for member in value]
    return str(value) if isinstance(value, str) else value
