# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether GPUs may copy to each other, past the node's memory, by what its kernel says. Values in, values out.

An IOMMU that translates, and bridges that redirect (PCIe's Access Control Services), break such copies without an
error: a server with several GPUs then hangs while it starts, or computes nonsense. NCCL is told not to try, and vLLM,
which copies by itself where two GPUs are alone, to test first whether what it copies arrives.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_ADDRESS = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
# PCIe: the first extended capability, the one of ACS, and its bits that redirect what one device sends to another.
_EXTENDED, _ACS, _REDIRECTS = 0x100, 0x000D, {0x04: "P2P Request Redirect", 0x08: "P2P Completion Redirect"}
OFF = {"NCCL_P2P_DISABLE": "1", "VLLM_SKIP_P2P_CHECK": "0"}


class Gpu(NamedTuple):
    """A GPU of the node.

    Attributes:
        number: of C(/dev/nvidiaN).
        address: its PCI address.
        model: its name.
    """

    number: int
    address: str
    model: str


class Place(NamedTuple):
    """Where a GPU is.

    Attributes:
        group: the type of its IOMMU group (C(DMA), C(DMA-FQ), C(identity)), C("") where there is none.
        bridges: PCI addresses of what is above it, the root port first.
    """

    group: str
    bridges: tuple[str, ...]


class Verdict(NamedTuple):
    """What is to be done.

    Attributes:
        direct: whether NCCL may try to copy from GPU to GPU.
        reasons: why, a sentence each.
    """

    direct: bool
    reasons: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """NCCL's settings that follow."""
        return {} if self.direct else dict(OFF)


def gpu_of(information: str) -> Gpu | None:
    """Return the GPU that C(/proc/driver/nvidia/gpus/*/information) describes."""
    fields = {
        name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in information.splitlines())
        if colon
    }  # fmt: skip
    minor = fields.get("Device Minor", "")
    if not minor.isdigit():
        return None
    return Gpu(int(minor), fields.get("Bus Location", "").lower(), fields.get("Model", ""))


def bridges(path: str) -> tuple[str, ...]:
    """Return the bridges in the path of a device below C(/sys/devices), the device itself left out."""
    return tuple(part.lower() for part in path.split("/") if re.fullmatch(_ADDRESS, part))[:-1]


def redirects(config: bytes) -> list[str] | None:
    """Return what a bridge redirects, from its configuration space; None where too little of it could be read."""
    if len(config) <= _EXTENDED + 4:
        return None
    offset, seen = _EXTENDED, set()
    while _EXTENDED <= offset <= len(config) - 8 and offset not in seen:
        seen.add(offset)
        (header,) = struct.unpack_from("<I", config, offset)
        if header in (0, 0xFFFFFFFF):
            break
        if header & 0xFFFF == _ACS:
            (control,) = struct.unpack_from("<H", config, offset + 6)
            return [name for bit, name in _REDIRECTS.items() if control & bit]
        offset = header >> 20
    return []


def linked(topology: str, numbers: str, addresses: Sequence[str]) -> bool:
    """Return whether each of some GPUs has NVLink to each other one of them.

    Args:
        topology: what C(nvidia-smi topo -m) printed.
        numbers: what C(nvidia-smi --query-gpu=index,pci.bus_id --format=csv,noheader) printed.
        addresses: their PCI addresses.
    """
    # Its addresses have eight digits for the domain.
    pairs = re.findall(r"^(\d+), *[0-9A-Fa-f]*([0-9A-Fa-f]{4}:\S+)", numbers, re.MULTILINE)
    known = {address.lower(): int(number) for number, address in pairs}
    plain = re.sub(r"\x1b\[[0-9;]*m", "", topology)
    # The GPUs come first in a line, in their order; what else there is comes after them.
    rows = {int(number): cells.split() for number, cells in re.findall(r"^\s*GPU(\d+)\s+(\S.*)$", plain, re.MULTILINE)}
    places = {known.get(address.lower()) for address in addresses}
    if len(places) < 2 or None in places:
        return False
    return all(
        re.fullmatch(r"NV\d+", "".join(rows.get(one, ())[other : other + 1]))
        for one in places
        for other in places
        if one != other
    )


def translates(cmdline: str) -> str:
    """Return the words of the kernel's command line that speak of the IOMMU."""
    return " ".join(word for word in cmdline.split() if re.match(r"(?:\w+_)?iommu(?:\.\w+)?=", word))


def judge(
    wanted: Sequence[int],
    gpus: Mapping[int, Gpu],
    places: Mapping[int, Place],
    acs: Mapping[str, Sequence[str] | None],
    nvlink: bool = False,
    cmdline: str = "",
    setting: str = "auto",
) -> Verdict:
    """Return whether the GPUs of a container may copy to each other.

    Args:
        wanted: the numbers of the container's GPUs.
        gpus: the node's GPUs by number.
        places: where they are.
        acs: what each bridge redirects, None where that can't be told.
        nvlink: whether they are all linked by NVLink.
        cmdline: the kernel's command line.
        setting: what a person decided: C(on), C(off), or C(auto).
    """
    if len(set(wanted)) < 2:
        return Verdict(True, ())
    if setting in ("on", "off"):
        return Verdict(setting == "on", (f"nvidia_peer_to_peer is {setting}.",))
    unknown = [number for number in wanted if number not in gpus]
    if unknown:
        which = ", ".join(map(str, unknown))
        return Verdict(True, (f"Where GPU {which} is on the node can't be told, so NCCL decides by itself.",))
    if nvlink:
        return Verdict(True, ("The GPUs are linked by NVLink, which neither IOMMU nor bridges are part of.",))
    names = ", ".join(str(number) for number in sorted(wanted))
    translated = sorted({places[number].group for number in wanted if places[number].group.startswith("DMA")})
    if translated:
        said = translates(cmdline)
        words = f" (kernel command line: {said})" if said else ""
        return Verdict(
            False,
            (
                f"NCCL_P2P_DISABLE=1: the node's IOMMU translates what GPU {names} send to each other (group type "
                f"{', '.join(translated)}){words}, which makes such copies hang or arrive wrong. For direct copies "
                "boot the node with iommu=pt, or switch the IOMMU off.",
            ),
        )
    redirected = {
        bridge: acs[bridge] for number in wanted for bridge in places[number].bridges if acs.get(bridge)
    }
    if redirected:
        first = sorted(redirected)[0]
        return Verdict(
            False,
            (
                f"NCCL_P2P_DISABLE=1: the PCIe bridge {first} above GPU {names} redirects copies between them (ACS: "
                f"{', '.join(redirected[first] or ())}). For direct copies switch ACS off in the firmware.",
            ),
        )
    reasons = ["NCCL decides by itself: no IOMMU translates between the GPUs, and no bridge redirects."]
    blind = sorted({b for number in wanted for b in places[number].bridges if acs.get(b, None) is None})
    if blind:
        reasons = [
            f"NCCL decides by itself: no IOMMU translates between the GPUs. Whether {', '.join(blind)} redirect (ACS) "
            "could not be read."
        ]
    if any("GeForce" in gpus[number].model for number in wanted):
        reasons.append(
            "GeForce cards copy through the node's memory in any case: their driver offers no direct copies over PCIe."
        )
    return Verdict(True, tuple(reasons))
