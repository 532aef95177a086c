# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the report of a run of verify, on the control node."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from ansible.utils.display import Display
from ansible_collections.phoenix.hypervisor.plugins.module_utils import verification
from ansible_collections.phoenix.hypervisor.plugins.plugin_utils import reports

display = Display()


class ActionModule(reports.Report):
    """C(plugins/modules/verify_report.py) has the documentation."""

    def report(self, options: dict[str, Any], hostvars: Mapping[str, Any], now: datetime.datetime) -> dict[str, Any]:
        """Make and show it. Return what the task returns."""
        containers = [_container(host, hostvars[host]) for host in options["hosts"]]
        report = verification.report_of(containers, reports.moment(now), self.check_mode)
        text = verification.text_of(report)
        display.display(text)
        files = self.keep(options["folder"], "verify", report, text)
        if files:
            display.display(f"The report is in {' and '.join(files)}.")
        return {"report": report, "files": files}


def _container(host: str, variables: Any) -> dict[str, Any]:
    """What is known of a host: its result, or why there is none."""
    result = variables.get("verify_result")
    if result:
        return reports.plain(result)
    if variables.get("container_template"):
        return verification.unverified(host, "it is a template, and nothing runs in one", verification.SKIPPED)
    return verification.unverified(host, "it was not verified; see above why")
