#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: verify_report
short_description: Report what the checks of all containers came to
version_added: 0.1.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Reads what the role P(phoenix.hypervisor.verify#role) left in the fact C(verify_result) of each host, shows a table
    of all checks and what failed in full, and writes both into a folder (C(verify.json) and C(verify.txt)).
  - A host without that fact is in the report as failed.
  - Runs on the control node, as an action plugin. It does not fail for what the report says.
extends_documentation_fragment:
  - phoenix.hypervisor.report
  - phoenix.hypervisor.report.hosts
"""

EXAMPLES = r"""
- name: Report
  phoenix.hypervisor.verify_report:
    hosts: "{{ ansible_play_hosts_all }}"
    folder: build/verify
  run_once: true
"""

RETURN = r"""
report:
  description:
    - C(passed), C(time), C(check_mode), C(counts) and C(containers).
    - Each container has C(host), C(passed), C(failed) (the names of the checks that did) and C(checks); for a model
      server C(model), C(url), C(release) and C(answer), too.
    - Each check has C(check), C(result) (C(passed), C(failed) or C(skipped)) and C(message), and C(group), C(name),
      C(seconds), C(attempts) and C(lines) where there are any.
  returned: always
  type: dict
  sample: {passed: true, time: "2026-11-27T21:18:52Z", check_mode: false, counts: {containers: 1, checks: 5, passed: 5}}
files:
  description: The files that were written.
  returned: always
  type: list
  elements: str
  sample: [build/verify/verify.json, build/verify/verify.txt]
"""
