# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the numbers of NVIDIA GPUs to the devices that a container needs for them. Values in, values out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PREFIX = "/dev/nvidia"
# Every GPU needs these beside its own node; the second one can be missing on a node that never debugged.
_COMMON = ("/dev/nvidiactl", "/dev/nvidia-uvm")
_TOOLS = "/dev/nvidia-uvm-tools"
CAPS = "/dev/nvidia-caps/"
# As the driver itself makes them on the node. Proxmox would make them 0660 for root, and a server that runs as a user
# of its own could not open them.
_MODE, _CAPS_MODE = "0666", "0444"
# NVIDIA's registered major number, and the one that the old system took nvidia-uvm's to be on every node.
_MAJOR, _OLD_UVM_MAJOR = 195, 243


@dataclass(frozen=True)
class Device:
    """A device node's numbers.

    :ivar is_stale: whether the node was made when its driver had another major number
    :ivar gpu: the number of the GPU whose instance (MIG) it opens; None where it is something else
    """

    major: int
    minor: int
    is_stale: bool = False
    gpu: int | None = None


def instance_of(path: str) -> int | None:
    """The number of the GPU whose instance a file below C(/proc/driver/nvidia/capabilities) tells of.

    None for all other capabilities: the one to divide GPUs anew, for example, is the node's own.
    """
    found = re.search(r"/gpu(\d+)/mig/gi\d+/(?:ci\d+/)?access$", path)
    return int(found[1]) if found else None


def capability_minor(text: str) -> int | None:
    """The minor number in such a file."""
    found = re.search(r"^DeviceFileMinor:\s*(\d+)\s*$", text, re.MULTILINE)
    return int(found[1]) if found else None


def problem(gpus: Sequence[int], there: Mapping[str, Device]) -> str:
    """What hinders these GPUs from being passed through, as a sentence with its remedy; "" when nothing does.

    :param there: NVIDIA's device nodes of the node by path
    """
    if not gpus:
        return ""
    numbers = sorted(int(path[len(_PREFIX) :]) for path in there if re.fullmatch(rf"{_PREFIX}\d+", path))
    missing = [number for number in gpus if number not in numbers]
    if missing:
        names = ", ".join(f"{_PREFIX}{number}" for number in missing)
        if not numbers:
            return f"the node has no {names}, and no other GPU; load its driver there (nvidia-smi), or assign none"
        return f"the node has no {names}; correct gpu_assignment, it has {', '.join(map(str, numbers))}"
    common = [path for path in _COMMON if path not in there]
    if common:
        return f"the node has no {common[0]}; make it there with: nvidia-modprobe -u -c 0"
    stale = [path for path in paths(gpus, there) if there[path].is_stale]
    if stale:
        again = "systemctl restart phoenix-nvidia" if stale[0].startswith(CAPS) else "nvidia-modprobe -u -c 0"
        return (
            f"{stale[0]} on the node has not the number that its driver has now; make it anew there: rm {stale[0]} && "
            f"{again}"
        )
    return ""


def paths(gpus: Sequence[int], there: Mapping[str, Device] | None) -> list[str]:
    """The device nodes that a container with these GPUs has.

    :param there: NVIDIA's device nodes of the node by path, None where they can't be known
    """
    if not gpus:
        return []
    own = [f"{_PREFIX}{number}" for number in sorted(set(gpus))]
    if there is None:
        return [*own, *_COMMON, _TOOLS]
    instances = sorted(path for path, device in there.items() if device.gpu in gpus)
    return [*own, *_COMMON, *([_TOOLS] if _TOOLS in there else []), *instances]


def is_device(path: str) -> bool:
    """Is this a device node of NVIDIA's?"""
    return path.startswith(_PREFIX)


def as_devices(gpus: Sequence[int], there: Mapping[str, Device] | None) -> list[dict[str, str]]:
    """The C(devN) for these GPUs."""
    return [
        {"path": path, "mode": _CAPS_MODE if path.startswith(CAPS) else _MODE} for path in paths(gpus, there)
    ]


def as_raw(gpus: Sequence[int], there: Mapping[str, Device]) -> list[tuple[str, str]]:
    """Raw lines for these GPUs, with the numbers that their devices have now: for a Proxmox VE without C(devN)."""
    chosen = paths(gpus, there)
    allowed = [("lxc.cgroup2.devices.allow", f"c {there[path].major}:{there[path].minor} rw") for path in chosen]
    return allowed + [("lxc.mount.entry", f"{path} {path[1:]} none bind,optional,create=file") for path in chosen]


def raw_lines_of(raw: Sequence[tuple[str, str]], there: Mapping[str, Device] | None) -> list[tuple[str, str]]:
    """Those of a container's raw lines that give it GPUs: ours, and those that the old system wrote."""
    majors = {_MAJOR} | {device.major for device in (there or {}).values()}
    mounts = [line for line in raw if line[0] == "lxc.mount.entry" and line[1].startswith(_PREFIX)]
    allowed = [line for line in raw if re.fullmatch(r"lxc\.cgroup2?\.devices\.allow", line[0])]
    found = [line for line in allowed if _major_of(line[1]) in majors]
    if mounts or found:
        # 243 alone may be anybody's; beside other lines for GPUs it is what the old system wrote for nvidia-uvm.
        found += [line for line in allowed if _major_of(line[1]) == _OLD_UVM_MAJOR and line not in found]
    return [line for line in raw if line in mounts or line in found]


def _major_of(rule: str) -> int:
    found = re.match(r"c\s+(\d+):", rule)
    return int(found.group(1)) if found else -1
