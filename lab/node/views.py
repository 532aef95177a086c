# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a container's state is, as values: ``pct status`` prints them, the REST API answers them."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from node import runtime, schema, store
from node.errors import PctError

_TEXTS = frozenset({"name", "status", "type", "tags", "lock", "cpus"})


def status(vmid: int) -> dict[str, str]:
    """Everything that ``pct status --verbose`` knows."""
    options = store.load(vmid).active.options
    running = runtime.is_running(vmid)
    zero = ("disk", "diskread", "diskwrite", "mem", "netin", "netout", "swap", "uptime")
    values = {
        **dict.fromkeys(zero, "0"),
        "cpus": options.get("cores", str(os.cpu_count() or 1)),
        "maxdisk": str(schema.size_bytes(schema.ROOTFS.parse(options.get("rootfs", "x")).get("size", "0"))),
        "maxmem": str(int(options.get("memory", "512")) * 1024**2),
        "maxswap": str(int(options.get("swap", "512")) * 1024**2),
        "name": options.get("hostname", f"CT{vmid}"),
        "status": "running" if running else "stopped",
        "type": "lxc",
        "vmid": str(vmid),
    }
    values.update({key: options[key] for key in ("lock", "tags", "template") if key in options})
    if running:
        pid = runtime.init_pid(vmid)
        values["pid"] = str(pid)
        values["uptime"] = str(int(time.time() - os.stat(f"/proc/{pid}").st_ctime))
        used = runtime.read_cgroup(vmid, "memory.current") or runtime.read_cgroup(vmid, "memory.usage_in_bytes")
        values["mem"] = used or "0"
    return values


def numbers(vmid: int) -> dict[str, Any]:
    """The same for the REST API, where numbers are numbers."""
    values: dict[str, Any] = {k: text if k in _TEXTS else int(text) for k, text in status(vmid).items()}
    return {**values, "cpus": float(values["cpus"]), "cpu": 0}


def containers() -> list[dict[str, Any]]:
    """All containers of the node, for the REST API."""
    found = []
    for vmid in store.all_ids():
        with contextlib.suppress(PctError):  # gone since we looked
            found.append(numbers(vmid))
    return found
