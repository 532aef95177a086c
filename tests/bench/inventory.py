# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long reading the inventory takes, against a static JSON inventory that says the same.

Measured is what every Ansible command does first: C(InventoryManager(sources=[…])) in a process of its own, from the
source file to the complete hosts, groups and variables. Python and ansible-core are loaded before the clock starts;
plugins and what they import are loaded after it. The static inventory has the same hosts, groups and variables (which
is checked) and is read by ansible-core's own plugin for JSON and YAML. Memory is the process's peak (VmHWM).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIZES = {10: 9, 1000: 9, 10000: 5}  # containers → repetitions
FAMILY = 50  # containers that are clones of one template

Figures = dict[str, dict]


def declaration(count: int) -> dict[str, Any]:
    """A file with this many containers, as sites have them: templates, and model servers cloned from them."""
    containers: dict[str, Any] = {}
    for number in range(count):
        ctid = str(1000 + number)
        entry: dict[str, Any] = {
            "name": f"container-{ctid}",
            "memory_mb": 32768,
            "swap_mb": 0,
            "cores": 8,
            "storage_pool": ("local-zfs", "tank")[number % 2],
            "storage_size_gb": 64,
            "network_config": {
                "name": "eth0",
                "bridge": "vmbr0",
                "ip": f"10.{number >> 14 & 255}.{number >> 7 & 127}.{number % 128 + 1}/8",
                "gw": "10.255.0.1",
                "type": "veth",
            },
            "mac_address": f"BC:24:11:{number >> 16 & 255:02X}:{number >> 8 & 255:02X}:{number & 255:02X}",
            "pct_options": ["nesting=1"],
        }
        place = number % FAMILY
        if place == 0:
            entry.update(template="local:vztmpl/debian-12.tar.zst", is_template=True, features=["base_setup"])
        elif place == 1:
            entry.update(clone_from_ctid=str(1000 + number - 1), is_template=True, features=["nvidia"])
        else:
            entry.update(
                clone_from_ctid=str(1000 + number - place + 1),
                boot_order=5,
                gpu_assignment="0,1",
                features=["nvidia", "vllm"],
                application_script="phoenix_hypervisor_lxc_vllm.sh",
                vllm_engine_config={
                    "ModelConfig": {"model": "meta-llama/Llama-3.2-3B-Instruct", "max_model_len": 8192},
                    "CacheConfig": {"quantization": "fp8", "gpu_memory_utilization": 0.9},
                    "ParallelConfig": {"tensor_parallel_size": 2},
                    "ServerConfig": {"host": "0.0.0.0", "port": 8000, "served_model_name": f"model-{ctid}"},
                },
            )
        containers[ctid] = entry
    return {"nvidia_driver_version": "580.95.05", "lxc_configs": containers}


# What a process does that is measured. With a second argument it writes what it read.
_READ = """
import json, sys, time
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader()
begin = time.perf_counter()
inventory = InventoryManager(loader=DataLoader(), sources=[sys.argv[1]])
seconds = time.perf_counter() - begin
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "mib": int(peak.split()[1]) / 1024, "hosts": len(inventory.hosts)}))
if len(sys.argv) > 2:
    own = ("inventory_file", "inventory_dir")
    groups = {name: {"hosts": [host.name for host in group.hosts], "vars": group.vars,
                     "children": [child.name for child in group.child_groups]}
              for name, group in inventory.groups.items()}
    hosts = {name: {key: value for key, value in host.vars.items() if key not in own}
             for name, host in inventory.hosts.items()}
    json.dump({"groups": groups, "hosts": hosts}, open(sys.argv[2], "w"))
"""


def _read(source: Path, result: Path | None = None) -> dict[str, float]:
    """Read a source in a new process: seconds, peak memory in MiB; what was read goes into the file."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(source), *([str(result)] if result else [])],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            # Each reader alone, as a site sets it that has one kind of source.
            "ANSIBLE_INVENTORY_ENABLED": "yaml" if source.suffix == ".json" else "phoenix.hypervisor.lxc_configs",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"reading {source.name} ended with {done.returncode}:\n{done.stdout}{done.stderr}"[:3000])
    return json.loads(done.stdout.splitlines()[-1])


def _write_sources(folder: Path, count: int) -> tuple[Path, Path]:
    """The plugin's source and the static one that says the same."""
    ours, static = folder / "lxc_configs.yml", folder / "static" / "hosts.json"
    static.parent.mkdir()
    (folder / "phoenix_lxc_configs.json").write_text(json.dumps(declaration(count), indent=2))
    # JSON is YAML.
    nodes = {"pve": {"ansible_user": "root"}}
    ours.write_text(json.dumps({"plugin": "phoenix.hypervisor.lxc_configs", "nodes": nodes}))
    read, again = folder / "read.json", folder / "again.json"
    _read(ours, read)
    data = json.loads(read.read_text())
    children = {
        name: {"hosts": dict.fromkeys(group["hosts"]), "vars": group["vars"]}
        for name, group in data["groups"].items()
        if name not in ("all", "ungrouped")
    }
    # One line, as a program writes it: the friendliest form for the one that we compare with.
    static.write_text(json.dumps({"all": {"hosts": data["hosts"], "children": children}}))
    _read(static, again)
    same = json.loads(again.read_text())
    for side in (data, same):
        side["groups"]["all"]["hosts"] = []  # the static form lists each host here, too
        side["groups"]["all"]["children"].sort()
    if data != same:
        raise RuntimeError("the static inventory says something else than the plugin; they can't be compared")
    return ours, static


def inventory(sizes: dict[int, int] | None = None) -> Figures:
    """Seconds and peak memory for 10, 1,000 and 10,000 containers, the two interleaved; medians."""
    figures: Figures = {}
    for count, repetitions in (sizes or SIZES).items():
        with tempfile.TemporaryDirectory() as folder:
            sources = _write_sources(Path(folder), count)
            runs: tuple[list[dict[str, float]], ...] = ([], [])
            for _repetition in range(repetitions):
                for source, side in zip(sources, runs):
                    side.append(_read(source))
        for key, unit, name in (("seconds", "s", "vs_static"), ("mib", "MiB", "memory_vs_static")):
            ours, static = (statistics.median(run[key] for run in side) for side in runs)
            figures[f"inventory_{count}_{name}"] = {
                "value": round(ours, 3),
                "unit": unit,
                "against": round(static, 3),
                "ratio": round(ours / static, 2),
            }
    return figures


if __name__ == "__main__":
    print(json.dumps(inventory({int(size): 3 for size in sys.argv[1:]} or None), indent=2))
