# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules have in common that make a report on the control node (plugin_utils/reports.py)."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Shows the report, and writes no file.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotence:
    description: Each run writes its own report in the place of the last one's. It reports no change.
    support: full
options: {}
"""

    # Of a report on several hosts.
    HOSTS = r"""
options:
  hosts:
    description: The hosts that are to be in the report, in this order.
    type: list
    elements: str
    required: true
  folder:
    description:
      - The folder on the control node that the report is written into, as JSON and as text. It is created. Relative to
        the folder that Ansible was started in. No file is written when it is empty.
      - A folder that can't be written is a warning.
    type: path
    default: ""
"""
