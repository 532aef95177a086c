# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the unit's sandbox costs: tokens per second of one vLLM in it, and of the same one beside it without.

Both have the same release, user, environment and engine config, in one container of the lab, on the CPU; the second one
is outside of any sandbox, as a person would start it. They are asked in turns, so that what disturbs the machine
disturbs both. The model has two layers: much of the time goes to what a sandbox could slow down, to messages between
processes, sockets and files, so with a real model it can only be less.

tests/gpu/proof.py compares servers on a GPU, where there is no systemd and so no sandbox.
"""

from __future__ import annotations

import http.client
import json
import shlex
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / ".ansible" / "collections"), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "gpu")]

import proof
from ansible_collections.phoenix.hypervisor.plugins.module_utils import benchmark
from lab_modules import inside, wait_until
from server import UNIT, answers, installed

VMID, ADDRESS, PORT = 674, "10.92.0.174", 8000
BARE_PORT = PORT + 1
STREAMS, TOKENS = 4, 32
ROUNDS, SECONDS = 60, 3.0

Figures = dict[str, dict]


def start_bare() -> None:
    """Start what the unit starts, as its user, with its environment, in no sandbox, on another port."""
    environment, words = proof.parse_unit(inside(VMID, f"systemctl cat {UNIT}"))
    variables = [f"--setenv={name}={value}" for name, value in environment.items()]
    command = ["systemd-run", "--quiet", "--unit=bare", "--uid=vllm", "--gid=vllm",
               "--working-directory=/var/cache/vllm", *variables, "--", *words, "--port", str(BARE_PORT)]  # fmt: skip
    inside(VMID, shlex.join(command))


def filters(unit: str) -> int:
    """How many filters a unit's system calls go through; the container's own is one of them."""
    pid = inside(VMID, f"systemctl show --value --property=MainPID {unit}").strip()
    return int(inside(VMID, f"sed -n 's/^Seccomp_filters:\\s*//p' /proc/{pid}/status"))


def rate(port: int) -> float:
    """Tokens per second of a server that some streams ask for a while.

    :raises RuntimeError: an answer is not whole
    """
    counts = [0] * STREAMS
    end = time.monotonic() + SECONDS
    body = json.dumps({"model": "tiny", "prompt": "Hello", "max_tokens": TOKENS, "ignore_eos": True})

    def stream(number: int) -> None:
        connection = http.client.HTTPConnection(ADDRESS, port, timeout=60)
        while time.monotonic() < end:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            counts[number] += json.load(connection.getresponse())["usage"]["completion_tokens"]
        connection.close()

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(STREAMS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(counts) or sum(counts) % TOKENS:
        raise RuntimeError(f"the server on port {port} gave answers that aren't whole: {counts} tokens")
    return sum(counts) / (time.monotonic() - began)


def figures() -> Figures:
    """The ratio of tokens per second, in the sandbox to without it.

    :raises RuntimeError: a server is not as it should be
    """
    with installed(VMID, ADDRESS, 10240, STREAMS) as site:
        site.good(VMID, roles=["vllm_model_server"])
        start_bare()
        wait_until(lambda: answers(ADDRESS, BARE_PORT), 300)
        found = {"filters": filters(UNIT), "filters_against": filters("bare.service")}
        if found["filters"] <= found["filters_against"]:
            raise RuntimeError(f"the server in the sandbox has no filter of its own: {found}")
        return measured(found)


def measured(more: dict) -> Figures:
    """The figure of two servers that run.

    :param more: what else is told of them
    """
    for port in (PORT, BARE_PORT):
        rate(port)
    pairs = []
    for turn in range(ROUNDS):
        order = (PORT, BARE_PORT) if turn % 2 else (BARE_PORT, PORT)
        found = {port: rate(port) for port in order}
        pairs.append((found[PORT], found[BARE_PORT]))
    ratio = proof.middle([[sandboxed / bare] for sandboxed, bare in pairs])
    sandboxed, bare = (benchmark.median(rates) for rates in zip(*pairs))
    return {
        "sandbox_tokens_per_second": {
            "value": round(sandboxed, 1), "unit": "tokens/s", "against": round(bare, 1),
            "ratio": round(ratio["median"], 3), "interval": ratio["interval"], "rounds": ROUNDS, **more,
        }
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(figures(), indent=2))
