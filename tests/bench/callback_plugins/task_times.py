# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = """
name: task_times
type: aggregate
short_description: Writes how long each task took, for the benchmark
description:
  - Writes one JSON line per task and host to the file that E(TASK_TIMES_FILE) names.
"""

import json
import os
import time

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_times"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_start(self, host, task):
        self._begun = time.monotonic()

    def v2_runner_on_ok(self, result):
        seconds = time.monotonic() - self._begun
        # ansible-core 2.19 and later have public names for these.
        task = getattr(result, "task", None) or result._task
        with open(os.environ["TASK_TIMES_FILE"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"task": task.get_name(), "seconds": seconds}) + "\n")
