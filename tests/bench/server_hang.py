# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How soon a model server that hangs is noticed: the seconds from the hang to its end by the watchdog.

On a container of the lab, with a program that stands in for vLLM, so no load of a model is among the seconds. The
server is stopped as a whole (SIGSTOP), some seconds after a look of the watchdog. Times are the node's, looked at every
tenth of a second; the largest of the rounds is the figure. C(restarted) are the seconds until systemd has started the
server again, C(answers) until it has answered.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / ".ansible" / "collections"), str(ROOT / "tests" / "support")]

from lab_modules import wait_until
from model_site import UNIT, Site

VMID, ADDRESS = 655, "10.92.0.68"
LIMIT = 20
# Seconds from a look of the watchdog to the hang; it looks every five or six.
MOMENTS = (1.0, 3.0, 5.0)

Figures = dict[str, dict]


def hang(site: Site, after: float) -> tuple[float, float, float]:
    """Stop the server so many seconds after it has answered. Returns seconds until it is killed, started, answers."""
    site.inside(f"systemctl reset-failed {UNIT}; systemctl restart {UNIT}")
    wait_until(site.answers, 60)
    site.inside("systemctl start vllm_model_server_watchdog.service")
    time.sleep(after)
    pid = site.main_pid()
    site.inside(f"kill -STOP {pid}")
    began = time.monotonic()
    seconds = []
    for there in (lambda: site.main_pid() != pid, lambda: site.main_pid() not in (pid, "0"), site.answers):
        wait_until(lambda there=there: time.sleep(0.1) or there(), LIMIT + 60)
        seconds.append(time.monotonic() - began)
    return seconds[0], seconds[1], seconds[2]


def server_hang() -> Figures:
    """The figures."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site(VMID, ADDRESS, Path(folder))
        site.variables = {"vllm_model_server_watchdog_limit": LIMIT}
        try:
            site.create()
            site.run()
            rounds = [hang(site, after) for after in MOMENTS]
        finally:
            site.close()
    killed, started, answers = (round(max(times), 1) for times in zip(*rounds))
    return {
        "hang_detect_seconds": {
            "value": killed, "unit": "s", "against": LIMIT, "ratio": round(killed / LIMIT, 2), "restarted": started,
            "answers": answers,
        }
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(server_hang(), indent=1))
