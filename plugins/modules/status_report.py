#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: status_report
short_description: Show one table of all containers
version_added: 0.1.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Shows what the tasks of C(playbooks/status.yml) found, a line for each container, and what there is to say about
    some of them below. Writes it into a folder (C(status.json) and C(status.txt)).
  - Reads the variables C(status_node) (of M(phoenix.hypervisor.pct_container_info), on one host of each node) and
    C(status_inside) (of M(phoenix.hypervisor.vllm_model_server_info)) of the hosts.
  - Runs on the control node, as an action plugin. It does not fail for what it shows.
extends_documentation_fragment:
  - phoenix.hypervisor.report
  - phoenix.hypervisor.report.hosts
options:
  format:
    description: What is shown on the screen.
    type: str
    choices: [table, json]
    default: table
seealso:
  - module: phoenix.hypervisor.verify_report
"""

EXAMPLES = r"""
- name: Show the table
  phoenix.hypervisor.status_report:
    hosts: "{{ ansible_play_hosts_all }}"
    folder: build/status
  run_once: true
"""

RETURN = r"""
report:
  description:
    - C(time), C(counts), C(containers) and C(undeclared), which has by node the containers that aren't in the
      inventory.
    - Each container has C(host), C(ctid), C(node), C(hostname), C(state), C(model), C(release), C(vllm), C(server),
      C(ready) (null where no model is declared), C(seconds) (of the answer), C(certificate_days), C(certificates),
      C(drift) (keys and arguments that are not as declared), C(waiting) (keys that wait for a restart), C(problem),
      C(declared_model), C(declared_stack) and C(notes) (sentences).
  returned: always
  type: dict
  sample: {time: "2026-11-28T01:00:00Z", counts: {containers: 3, running: 1, ready: 1, not_ready: 0, drift: 0}}
files:
  description: The files that were written.
  returned: always
  type: list
  elements: str
  sample: [build/status/status.json, build/status/status.txt]
"""
