# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what clients see of a change of the model and of going back: requests that failed beyond the restart itself.

A client asks twenty times a second, each time by a new connection, from before the run to after it. Where there is room
for two servers no request may fail. Where there isn't, those fail that come while nothing answers, between the last
answer of the old server and the first of the new one; they are told beside the figure, with how long that was.

`switch` takes any container with a model server, real or not. The figures here are made with the program that stands in
for vLLM in tests (three seconds to load), so they tell of the switch, not of vLLM.
"""
from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / ".ansible" / "collections"), str(ROOT / "tests" / "support")]

from model_site import KEY, PORT, Site
from steady_client import SteadyClient

VMID, ADDRESS = 653, "10.92.0.64"

Figures = dict[str, dict]


def switch(run: Callable[[], object], host: str, port: int, key: str = "", model: str = "m", rate: float = 20) -> dict:
    """The figure of one change: how many requests of a steady client failed outside the gap, and how long that was.

    :param run: makes the change, and ends when the new server answers
    :param model: the name that both servers serve their model under
    :raises RuntimeError: the server did not answer before the change, or something else doesn't add up
    """
    with SteadyClient(host, port, key, model, rate) as client:
        time.sleep(1)
        if not client.answers:
            raise RuntimeError("the server did not answer before the change")
        run()
        time.sleep(1)
    # Without a failure there was none, however slow an answer was.
    gap = client.gap() if client.failed else (0.0, 0.0)
    failed = client.failed_outside(gap) if client.failed else 0
    return {
        "value": failed,
        "unit": "requests",
        "of": len(client.requests),
        "gap_seconds": round(gap[1] - gap[0], 2),
        "failed_in_gap": len(client.failed) - failed,
    }


def figures() -> Figures:
    """Both changes, with room for two servers and without, with the stand-in for vLLM."""
    back = str(ROOT / "playbooks" / "rollback.yml")
    found: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        site = Site(VMID, ADDRESS, Path(folder))
        site.variables = {"vllm_model_server_environment": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
        try:
            site.create(("loads-one", "loads-two"), memory=8192)
            site.inside("apt-get update -q && apt-get install -qy --no-install-recommends nftables")
            for overlap, name in (("auto", ""), ("never", "_without_room")):
                wanted = {"vllm_model_server_overlap": overlap}
                site.run(**site.engine_config("loads-one"), **wanted)
                runs = {
                    "change": lambda wanted=wanted: site.run(**site.engine_config("loads-two"), **wanted),
                    "rollback": lambda wanted=wanted: site.run(playbook=back, **wanted),
                }
                for what, run in runs.items():
                    found[f"{what}_failed_requests{name}"] = switch(run, ADDRESS, PORT, KEY)
        finally:
            site.close()
    return found


if __name__ == "__main__":
    print(json.dumps(figures(), indent=2))
