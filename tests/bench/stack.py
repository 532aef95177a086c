# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a stack costs: the first container of a node, which builds vLLM from its sources, the next one, and a switch.

vLLM 0.10.2 is fetched from a git server, compiled for the CPU, and installed with PyTorch 2.13.0 and all else that it
needs, by the role vllm_stack on two new containers of the lab; the store on the node is empty before. Times are those
of whole runs of ansible-playbook. ``--without-compiler`` leaves out the compiled code, which makes the first time
smaller than any real source build has it.

What the release needs of the distribution is in both containers before, as it would come with their template; what only
the build needs (the compiler) is installed by the run that builds. Received bytes are those of all IP packets that the
second container got (C(IpExt InOctets)); the wheels come to it without the network.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / ".ansible" / "collections"), str(ROOT / "tests" / "support")]

from lab_modules import inside
from stack_site import Done, Site, live, record
from tiny_stack import Index, Tiny
from vllm_repositories import COMPILED, Repositories

FIRST, SECOND = 665, 666
ADDRESSES = {FIRST: "10.92.0.165", SECOND: "10.92.0.166"}
GIT_PORT = 9665
SYSTEM_PACKAGES = "libnuma1 libsndfile1"
ROUNDS = 3

Figures = dict[str, dict]


def timed(site: Site, vmid: int, **variables) -> tuple[float, Done]:
    """A run of the role that must succeed, and its seconds."""
    began = time.monotonic()
    done = site.good(vmid, **variables)
    return time.monotonic() - began, done


def median(site: Site, vmid: int, **variables) -> tuple[float, Done]:
    """The same several times, and the median of the seconds."""
    runs = sorted((timed(site, vmid, **variables) for _round in range(ROUNDS)), key=lambda run: run[0])
    return runs[ROUNDS // 2]


def received(vmid: int) -> int:
    """Bytes of the IP packets that came to a container since it started."""
    names, values = inside(vmid, "grep ^IpExt: /proc/net/netstat").splitlines()
    return int(dict(zip(names.split(), values.split()))["InOctets"])


def seconds(value: float, **more) -> dict:
    """A figure of a time."""
    return {"value": round(value, 1), "unit": "s", **more}


def stack(compiled: bool = True) -> Figures:
    """The figures."""
    with tempfile.TemporaryDirectory(prefix="phoenix-bench-", dir="/var/tmp") as folder:
        repositories = Repositories(Path(folder), GIT_PORT)
        site = Site(ADDRESSES, disk_gb=16, memory=6144)
        try:
            return measured(site, repositories, Path(folder), compiled)
        finally:
            site.close()
            repositories.stop()


def measured(site: Site, repositories: Repositories, folder: Path, compiled: bool) -> Figures:
    """The figures, of containers that have nothing."""
    for vmid in ADDRESSES:
        inside(vmid, f"apt-get -qq update && apt-get -qq install --no-install-recommends -y {SYSTEM_PACKAGES}")
    site.variables |= {
        "vllm_stack_name": "vllm-0.10.2-source",
        "vllm_stack_folders": [str(ROOT / "tests/lab/stacks")],
        "vllm_stack_repository": repositories.url("0.10.2"),
        "vllm_stack_overrides": COMPILED if compiled else {},
    }
    first, _done = timed(site, FIRST)
    made = record(FIRST)
    before = received(SECOND)
    second, _done = timed(site, SECOND)
    figures = {
        "stack_first_seconds": seconds(first, phases=made["phases"]),
        "stack_second_seconds": seconds(second, phases=record(SECOND)["phases"]),
        "stack_second_vs_first": {
            "value": round(second / first, 3), "unit": "", "against": 1, "ratio": round(second / first, 3),
        },
        "stack_second_bytes": {"value": received(SECOND) - before, "unit": "bytes"},
    }  # fmt: skip
    assert live(FIRST) == live(SECOND)
    noop, done = median(site, SECOND)
    assert done.count(SECOND, "changed") == 0, done.output
    figures["stack_noop_tasks"] = {"value": done.count(SECOND, "ok"), "unit": "tasks"}
    figures["stack_noop_seconds"] = seconds(noop)
    # Another release, to go to and fro.
    tiny = Tiny(folder / "tiny")
    tiny.write(folder / "stacks")
    index = Index(tiny.folder)
    site.good(
        SECOND, vllm_stack_name="tiny", vllm_stack_folders=[str(folder / "stacks")], vllm_stack_overrides={},
        vllm_stack_index=index.url,
    )  # fmt: skip
    index.close()
    rollback, done = median(site, SECOND, vllm_stack_release="previous")
    assert done.count(SECOND, "changed") == 1, done.output
    figures["stack_rollback_seconds"] = seconds(rollback)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-compiler", action="store_true", help="build vLLM without compiled code")
    compiled = not parser.parse_args().without_compiler
    print(json.dumps({"load": os.getloadavg(), **stack(compiled)}, indent=1))
