# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many C(pct) calls pct_container makes, and how long it takes, for one container and for 20. CTIDs 720 to 740.

The module runs as a process of its own on the lab's node, without a playbook around it:

* clone: from a template, with hostname, memory, cores, network and features of the clone's own. The 20 are started at
  once, as 20 hosts of a playbook are; Proxmox clones one after the other of them.
* change: five keys of a stopped container. The 20 are changed one after the other.
* noop: the same declaration once more. The 20 likewise.

The lab's C(pct) takes 50 ms, a genuine one about a second. Seconds are measured with that second imitated. Calls are
those that name one of these containers; others may be at work in the lab.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import lab_modules as lab

DELAY = Path("/var/lib/phoenix-lab/pct-delay")
TEMPLATE = 720
CLONES = range(721, 741)
UNIT = "s, of 1 s a call"

Figures = dict[str, dict]


def declared(vmid: int) -> dict:
    """A clone and its configuration."""
    net = {"name": "eth0", "bridge": "vmbr0", "ip": f"10.92.0.{vmid - 560}/24", "gw": "10.92.0.1"}
    return {
        "vmid": vmid,
        "clone": {"vmid": TEMPLATE},
        "config": {"hostname": f"bench-{vmid}", "memory": 512, "cores": 2, "net0": net, "features": {"nesting": 1}},
    }


def changed(vmid: int) -> dict:
    """The same with five keys that have another value."""
    options = declared(vmid)
    five = {"memory": 1024, "cores": 1, "swap": 0, "onboot": True, "description": "changed"}
    return {**options, "config": {**options["config"], **five}}


def at_once(options: Sequence[dict]) -> list[dict]:
    """Module runs that are all started before one has ended."""
    runs = [lab.start_module("pct_container", False, each) for each in options]
    return [lab.result_of(run) for run in runs]


def in_turn(options: Sequence[dict]) -> list[dict]:
    """Module runs one after the other."""
    return [lab.result_of(lab.start_module("pct_container", False, each)) for each in options]


def calls(vmids: Sequence[int]) -> int:
    """How many calls of pct there were that name one of these containers."""
    names = {str(vmid) for vmid in vmids}
    return sum(not names.isdisjoint(line.split()) for line in lab.PCT_CALLS.read_text(errors="replace").splitlines())


def measure(name: str, run: Callable, declare: Callable[[int], dict], vmids: Sequence[int], is_change: bool) -> Figures:
    """Calls and seconds of the runs over these containers.

    :raises RuntimeError: when one of them did not do what is measured
    """
    before, begin = calls(vmids), time.monotonic()
    results = run([declare(vmid) for vmid in vmids])
    seconds = time.monotonic() - begin
    for vmid, result in zip(vmids, results):
        if result.get("failed") or result["changed"] is not is_change:
            raise RuntimeError(f"{name}: CTID {vmid}: {result.get('msg') or result['steps']}")
    return {
        f"{name}_pct_calls": {"value": calls(vmids) - before, "unit": "calls"},
        f"{name}_seconds": {"value": round(seconds, 2), "unit": UNIT},
    }


def measure_all(vmids: Sequence[int], suffix: str) -> Figures:
    """All figures of these containers, from their clone on. C(_20) stands at the end of a figure's name."""
    figures = {
        **measure("clone", at_once, declared, vmids, True),
        **measure("change_five", in_turn, changed, vmids, True),
        **measure("noop", in_turn, changed, vmids, False),
    }
    return {f"{name}{suffix}": figure for name, figure in figures.items()}


@contextlib.contextmanager
def genuine_cost() -> Iterator[None]:
    """pct takes a second a call for the time of the block."""
    before = DELAY.read_text() if DELAY.exists() else None
    DELAY.write_text("1\n")
    try:
        yield
    finally:
        DELAY.unlink() if before is None else DELAY.write_text(before)


def remove() -> None:
    lab.destroy(*CLONES, TEMPLATE)


def figures() -> Figures:
    """Calls and seconds for one container and for 20. The lab has to be up."""
    remove()
    try:
        lab.call(
            vmid=TEMPLATE, state="template", ostemplate=lab.OSTEMPLATE, storage="local-btrfs", disk_gb=2,
            unprivileged=True,
        )  # fmt: skip
        with genuine_cost():
            one = measure_all(CLONES[:1], "")
            lab.destroy(CLONES[0])
            return {**one, **measure_all(CLONES, "_20")}
    finally:
        remove()
