# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What containers are like at the moment, and what of that differs from their declarations: one request per node.

The request is a shell script that prints the node's files, or one GET of the REST API. Values in, values out; who runs
them is not decided here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils import container_plan, gpu
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container

# For the node's /bin/sh. A content line begins with a blank, all others don't, so no content is taken for a heading.
SCRIPT = r"""
cd /etc/pve/lxc || exit 1
for conf in [0-9]*.conf; do
  [ -f "$conf" ] || continue
  echo "conf ${conf%.conf}"
  sed 's/^/ /' "$conf" || [ ! -f "$conf" ] || exit 1
  echo
done
for device in /dev/nvidia[0-9]* /dev/nvidiactl /dev/nvidia-uvm* /dev/nvidia-caps/*; do
  if [ -c "$device" ]; then stat -c 'device %n %t %T' "$device"; fi
done
parts='/proc/driver/nvidia/capabilities/gpu*/mig/gi*'
for file in $parts/access $parts/ci*/access; do
  if [ -r "$file" ]; then echo "instance $file $(sed -n 's/^DeviceFileMinor: *//p' "$file")"; fi
done
for vmid in $(sed -n 's|.*@/var/lib/lxc/\([0-9]*\)/command$|\1|p' /proc/net/unix | sort -u); do
  echo "running $vmid"
  lxc-info -n "$vmid" -iH 2>/dev/null | sed 's/^/ /'
done
echo end
"""


# What a declaration has that can make a plan impossible, and what it is called in the configuration.
_PARTS = {"unprivileged": "unprivileged", "disk_gb": "rootfs", "mounts": "mp", "gpus": "dev", "raw": "lxc"}


class LiveError(Exception):
    """A node's answer that is none; the text says why."""


@dataclass(frozen=True)
class Seen:
    """A node's containers.

    :ivar containers: by CTID
    :ivar addresses: by CTID, of those that run
    :ivar devices: NVIDIA's device nodes by path
    """

    containers: Mapping[int, Container]
    addresses: Mapping[int, list[str]] = field(default_factory=dict)
    devices: Mapping[str, gpu.Device] = field(default_factory=dict)


def read(output: str) -> Seen:
    """What L(SCRIPT) printed. :raises LiveError: when it was cut short"""
    texts: dict[int, list[str]] = {}
    addresses: dict[int, list[str]] = {}
    devices: dict[str, gpu.Device] = {}
    instances: dict[str, int | None] = {}
    lines: list[str] = []
    is_whole = False
    for line in output.split("\n"):
        kind, _blank, rest = line.partition(" ")
        if kind == "" and rest:
            lines.append(rest)
        elif kind == "conf":
            lines = texts.setdefault(int(rest), [])
        elif kind == "running":
            lines = addresses.setdefault(int(rest), [])
        elif kind == "device":
            path, major, minor = rest.rsplit(" ", 2)
            devices[path] = gpu.Device(int(major, 16), int(minor, 16))
        elif kind == "instance":
            path, _blank, minor = rest.rpartition(" ")
            instances[minor] = gpu.instance_of(path)
        is_whole = is_whole or line == "end"
    if not is_whole:
        raise LiveError("its answer was cut short")
    devices = {
        path: replace(device, gpu=instances.get(str(device.minor))) if path.startswith(gpu.CAPS) else device
        for path, device in devices.items()
    }
    containers = {
        vmid: Container(exists=True, running=vmid in addresses, text="\n".join([*text, ""]))
        for vmid, text in texts.items()
        if text  # else it went while it was read
    }
    return Seen(containers, {vmid: found for vmid, found in addresses.items() if vmid in containers}, devices)


def compared(
    variables: Mapping[str, Any], seen: Seen, facts: container_plan.Facts | None = None
) -> dict[str, Any]:
    """The variables that tell how a container is.

    :param variables: its role variables
    :param facts: what is known of the node; what C(seen) tells, where that is all
    """
    vmid = variables["container_vmid"]
    actual = seen.containers.get(vmid, Container())
    if not actual.exists:
        return {"phoenix_state": "absent", "phoenix_addresses": [], "phoenix_differs": []}
    if actual.is_half_made:
        return {"phoenix_state": "incomplete", "phoenix_addresses": [], "phoenix_differs": []}
    result: dict[str, Any] = {
        "phoenix_state": "template" if actual.is_template else "running" if actual.running else "stopped",
        "phoenix_addresses": seen.addresses.get(vmid, []),
    }
    facts = facts or container_plan.Facts(nvidia_devices=seen.devices)
    wanted = declared(variables)
    try:
        keys = _differing(wanted, actual, facts)
    except container_plan.PlanError as error:
        result["phoenix_problem"] = str(error)
        keys = _differing_beside_a_problem(wanted, actual, facts)
    if variables.get("container_template") and not actual.is_template:
        keys.append("template")
    if variables.get("container_snapshot") and variables["container_snapshot"] not in actual.conf.complete_snapshots:
        keys.append("snapshot")
    return {**result, "phoenix_differs": sorted(set(keys))}


def compared_by_api(variables: Mapping[str, Any], resources: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The same by the API's list of resources, which tells of name, memory, cores, disk and template only.

    :param resources: the answer to C(GET /cluster/resources?type=vm)
    """
    found = next((one for one in resources if one.get("vmid") == variables["container_vmid"]), None)
    if found is None:
        return {"phoenix_state": "absent", "phoenix_differs": []}
    config = variables.get("container_config", {})
    is_template = bool(int(found.get("template") or 0))
    differs = {
        "hostname": config.get("hostname", found.get("name")) != found.get("name"),
        "memory": "memory" in config and int(config["memory"]) * 2**20 != int(found.get("maxmem") or 0),
        "cores": "cores" in config and float(config["cores"]) != float(found.get("maxcpu") or 0),
        "rootfs": "container_disk_gb" in variables
        and int(variables["container_disk_gb"]) * 2**30 != int(found.get("maxdisk") or 0),
        "template": bool(variables.get("container_template")) and not is_template,
    }
    return {
        "phoenix_state": "template" if is_template else "running" if found.get("status") == "running" else "stopped",
        "phoenix_differs": sorted(key for key, is_different in differs.items() if is_different),
    }


def _differing(declared: container_plan.Declared, actual: Container, facts: container_plan.Facts) -> list[str]:
    plan = container_plan.plan(declared, actual, facts=facts)
    return [key for step in plan.steps for key in _keys(step)]


def _differing_beside_a_problem(
    declared: container_plan.Declared, actual: Container, facts: container_plan.Facts
) -> list[str]:
    """The keys that differ where no plan leads to the whole declaration: the part that hinders, and the others."""
    for part, key in _PARTS.items():
        with contextlib.suppress(container_plan.PlanError):
            return [key, *_differing(replace(declared, **{part: None}), actual, facts)]
    return sorted(_PARTS.values())


def declared(variables: Mapping[str, Any]) -> container_plan.Declared:
    """What a container's role variables declare, for one that exists and is not to be restarted."""
    return container_plan.Declared(
        vmid=variables["container_vmid"],
        disk_gb=variables.get("container_disk_gb"),
        unprivileged=variables.get("container_unprivileged"),
        config=variables.get("container_config", {}),
        gpus=variables.get("container_gpus"),
        mounts=variables.get("container_mounts"),
        raw=variables.get("container_raw"),
        restart="never",
    )


def _keys(step: container_plan.Step) -> list[str]:
    """The keys of the configuration that a step would change."""
    if step.command is None:
        return [key for key, _value in (*step.removed, *step.added)]
    if step.command.name == "resize":
        return [step.command.arguments[0]]
    keys = []
    for name, value in step.command.options:
        if name in ("delete", "revert"):
            keys += re.split(r"[,; ]+", value)
        elif name != "digest":
            keys.append(name)
    return keys
