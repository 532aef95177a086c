# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model server costs: its start, its restart, a change and the way back, with vLLM on the CPU in the lab.

A two-layer model with made-up weights, so these are the seconds of vLLM itself and of ours; a real model adds the time
of its weights. Times count from the moment that systemd started the program (first), that it was told to restart it
(warm), and that ansible-playbook was started (rollback, which ends when the run does, so after the answer).

A client asks five times a second while the server is changed and while it is gone back. How many of its requests failed
beyond the restart itself is the figure; with room for two servers there is no restart that it could notice.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / ".ansible" / "collections"), str(ROOT / "tests" / "support")]

import server_hang
from lab_modules import inside, wait_until
from server_switch import switch
from stack_site import Site
from steady_client import ask

VMID, ADDRESS, PORT = 667, "10.92.0.167", 8000
UNIT = "vllm_model_server.service"
ROUNDS = 3
RATE = 5

Figures = dict[str, dict]


def engine_config(max_num_seqs: int) -> dict:
    """The variable of the role for a state of the server."""
    model = {"model": "/model", "load_format": "dummy", "dtype": "float32", "max_model_len": 256, "enforce_eager": True}
    others = {"SchedulerConfig": {"max_num_seqs": max_num_seqs}, "ServerConfig": {"port": PORT}}
    return {"vllm_model_server_engine_config": {"ModelConfig": {**model, "served_model_name": "tiny"}, **others}}


def answers(address: str = ADDRESS, port: int = PORT) -> bool:
    """Whether a server answers."""
    body = json.dumps({"model": "tiny", "prompt": "Hello", "max_tokens": 1})
    return bool(ask(address, port, {"Content-Type": "application/json"}, body, 5)[0])


@contextlib.contextmanager
def installed(vmid: int, address: str, memory: int, max_num_seqs: int) -> Iterator[Site]:
    """A container with an installed release and a model; what its server is to be is in its variables."""
    site = Site({vmid: address}, 10, memory, 2)
    model = site.folder / "model"
    subprocess.run([sys.executable, ROOT / "lab" / "tiny_llama.py", model], check=True, capture_output=True)
    try:
        subprocess.run(["pct", "set", str(vmid), "--mp0", f"{model},mp=/model"], check=True)
        site.variables |= {"vllm_stack_name": "cpu", **engine_config(max_num_seqs)}
        site.good(vmid, roles=["base_setup", "vllm_stack"])
        yield site
    finally:
        site.close()


def started() -> float:
    """When systemd started the program, on the clock of C(time.monotonic())."""
    return int(inside(VMID, f"systemctl show --value --property=ExecMainStartTimestampMonotonic {UNIT}")) / 1e6


def restarted() -> float:
    """The seconds from the order to restart to an answer of the new process."""
    began = time.monotonic()
    inside(VMID, f"systemctl --no-block restart {UNIT}")
    # Until it is stopped the former one may answer.
    with contextlib.suppress(AssertionError):
        wait_until(lambda: started() > began, 90)
    wait_until(answers, 300)
    return time.monotonic() - began


def seconds(value: float, **more) -> dict:
    """A figure of a time."""
    return {"value": round(value, 1), "unit": "s", **more}


def figures() -> Figures:
    """The figures of a container that has nothing."""
    # As much as three servers want: the old one, the one beside it, and the new one for a moment.
    with installed(VMID, ADDRESS, 14336, 2) as site:
        return measured(site)


def measured(site: Site) -> Figures:
    """The figures of a container with an installed release."""
    run = site.start(VMID, roles=["vllm_model_server"])
    wait_until(answers, 400)
    first = time.monotonic() - started()
    assert site.end(run).code == 0
    warm = sorted(restarted() for _round in range(ROUNDS))[ROUNDS // 2]
    found: Figures = {"first_token_seconds": seconds(first), "warm_restart_seconds": seconds(warm)}

    def change() -> None:
        site.good(VMID, roles=["vllm_model_server"], **engine_config(3))

    took: list[float] = []

    def back() -> None:
        began = time.monotonic()
        site.playbook("rollback", phoenix_target=f"ctid_{VMID}", phoenix_rollback_reason="a measurement")
        took.append(time.monotonic() - began)

    found["change_failed_requests"] = switch(change, ADDRESS, PORT, model="tiny", rate=RATE)
    found["rollback_failed_requests"] = switch(back, ADDRESS, PORT, model="tiny", rate=RATE)
    # Without room for two, the shortest gap.
    site.variables["vllm_model_server_overlap"] = "never"
    found["change_failed_requests_without_room"] = switch(change, ADDRESS, PORT, model="tiny", rate=RATE)
    found["rollback_failed_requests_without_room"] = switch(back, ADDRESS, PORT, model="tiny", rate=RATE)
    found["server_rollback_seconds"] = seconds(took[1], with_overlap=round(took[0], 1))
    return found


def server() -> Figures:
    """All figures of the model server; a hang is measured with the program that stands in for vLLM in tests."""
    return {**figures(), **server_hang.server_hang()}


if __name__ == "__main__":
    print(json.dumps({"load": os.getloadavg(), **server()}, indent=1))
