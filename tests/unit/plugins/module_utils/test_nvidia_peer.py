# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import struct

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import nvidia_peer as peer
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_peer import Gpu, Place
from hypothesis import given
from hypothesis import strategies as st

INFORMATION = (
    "Model: \t\t NVIDIA GeForce RTX 5090\nIRQ:   \t\t 158\nGPU UUID: \t GPU-1\nVideo BIOS: \t 98.02\n"
    "Bus Type: \t PCIe\nDMA Size: \t 52 bits\nBus Location: \t 0000:C1:00.0\nDevice Minor: \t 3\nGPU Excluded:\t No\n"
)
GPUS = {n: Gpu(n, f"0000:0{n + 1}:00.0", "NVIDIA RTX PRO 6000") for n in range(2)}
GEFORCE = {n: gpu._replace(model="NVIDIA GeForce RTX 5090") for n, gpu in GPUS.items()}
FREE = {n: Place("identity", (f"0000:00:0{n}.1",)) for n in range(2)}
QUIET = {"0000:00:00.1": [], "0000:00:01.1": []}


def places(group: str) -> dict:
    return {n: place._replace(group=group) for n, place in FREE.items()}


def test_a_gpu_of_the_node():
    assert peer.gpu_of(INFORMATION) == Gpu(3, "0000:c1:00.0", "NVIDIA GeForce RTX 5090")
    assert peer.gpu_of("") is None
    assert peer.gpu_of(INFORMATION.replace("Device Minor: \t 3", "Device Minor: \t 255x")) is None


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/sys/devices/pci0000:00/0000:00:01.1/0000:01:00.0", ("0000:00:01.1",)),
        ("/sys/devices/pci0000:40/0000:40:01.1/0000:41:00.0/0000:42:08.0/0000:43:00.0",
         ("0000:40:01.1", "0000:41:00.0", "0000:42:08.0")),
        ("/sys/devices/pci0000:00/0000:01:00.0", ()),
        ("", ()),
    ],
)  # fmt: skip
def test_the_bridges_above_it(path, found):
    assert peer.bridges(path) == found


def config(*capabilities: tuple[int, int], size: int = 4096) -> bytes:
    """A configuration space with extended capabilities: id and, where it is ACS, its control bits."""
    data, offset = bytearray(size), 0x100
    for place, (number, control) in enumerate(capabilities):
        following = offset + 0x20 if place + 1 < len(capabilities) else 0
        struct.pack_into("<I", data, offset, number | 1 << 16 | following << 20)
        struct.pack_into("<H", data, offset + 6, control)
        offset = following
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", None), (bytes(64), None), (bytes(256), None), (bytes(4096), []), (b"\xff" * 4096, []),
        (config((0x1, 0xFFFF)), []),
        (config((0x1, 0), (0xD, 0)), []),
        (config((0x1, 0), (0xD, 0x11)), []),  # source validation and upstream forwarding redirect nothing
        (config((0xD, 0x04)), ["P2P Request Redirect"]),
        (config((0x1, 0), (0x15, 0), (0xD, 0x1D)), ["P2P Request Redirect", "P2P Completion Redirect"]),
        (config((0xD, 0x08)), ["P2P Completion Redirect"]),
    ],
)  # fmt: skip
def test_what_a_bridge_redirects(data, found):
    assert peer.redirects(data) == found


def test_a_circle_of_capabilities_ends():
    data = bytearray(config((0x1, 0)))
    struct.pack_into("<I", data, 0x100, 0x1 | 1 << 16 | 0x100 << 20)
    assert peer.redirects(bytes(data)) == []


@given(st.binary(max_size=600))
def test_any_bytes_are_read(data):
    assert peer.redirects(data) is None or isinstance(peer.redirects(data), list)


@pytest.mark.parametrize(
    ("cmdline", "said"),
    [("quiet amd_iommu=on iommu=pt x", "amd_iommu=on iommu=pt"), ("quiet", ""), ("intel_iommu=on", "intel_iommu=on"),
     ("iommu.passthrough=1", "iommu.passthrough=1"), ("xiommu no-iommu=z iommu", "")],
)  # fmt: skip
def test_what_the_kernel_was_told(cmdline, said):
    assert peer.translates(cmdline) == said


# As nvidia-smi prints it: underlined, and with tabs that are not under those of the first line. A pair that is linked,
# and a card beside it.
TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tNV4\tSYS\tNODE\t0-15\t0\t\tN/A\nGPU1\tNV4\t X \tSYS\tNODE\t0-15\t0\t\tN/A\n"
    "GPU2\tSYS\tSYS\t X \tPIX\t\t1\t\tN/A\nNIC0\tNODE\tNODE\tPIX\t X \n\nLegend:\n\n  X    = Self\n"
)
NUMBERS = "0, 00000000:01:00.0\n1, 00000000:C1:00.0\n2, 00000000:41:00.0\n"


@pytest.mark.parametrize(
    ("addresses", "found"),
    [
        (["0000:01:00.0", "0000:c1:00.0"], True), (["0000:c1:00.0", "0000:01:00.0"], True),
        (["0000:01:00.0", "0000:41:00.0"], False), (["0000:01:00.0", "0000:c1:00.0", "0000:41:00.0"], False),
        # One that nvidia-smi doesn't tell of.
        (["0000:01:00.0", "0000:02:00.0"], False), (["0000:01:00.0"], False), ([], False),
    ],
)  # fmt: skip
def test_which_are_linked_by_nvlink(addresses, found):
    assert peer.linked(TOPOLOGY, NUMBERS, addresses) == found


def test_nothing_is_linked_where_nvidia_smi_says_nothing():
    assert not peer.linked("", NUMBERS, ["0000:01:00.0", "0000:c1:00.0"])
    assert not peer.linked(TOPOLOGY, "", ["0000:01:00.0", "0000:c1:00.0"])
    assert not peer.linked("GPU0\t X\n", NUMBERS, ["0000:01:00.0", "0000:c1:00.0"])


@pytest.mark.parametrize(
    ("arguments", "direct", "words"),
    [
        (([0], GPUS, FREE, QUIET), True, ""),
        (([], {}, {}, {}), True, ""),
        (([0, 0], GPUS, places("DMA"), QUIET), True, ""),
        (([0, 1], GPUS, FREE, QUIET), True, "no IOMMU translates between the GPUs, and no bridge redirects"),
        (([0, 1], GPUS, places(""), QUIET), True, "NCCL decides by itself"),
        (([0, 1], GEFORCE, FREE, QUIET), True, "GeForce cards copy through the node's memory"),
        (([0, 1], GPUS, places("DMA"), QUIET), False, "the node's IOMMU translates what GPU 0, 1 send"),
        (([0, 1], GPUS, places("DMA-FQ"), QUIET), False, "group type DMA-FQ"),
        (([0, 1], GPUS, {**FREE, 1: Place("DMA", ())}, QUIET), False, "boot the node with iommu=pt"),
        (([0, 1], GPUS, places("DMA"), QUIET, True), True, "NVLink"),
        (([0, 1], GPUS, FREE, {**QUIET, "0000:00:01.1": ["P2P Request Redirect"]}), False,
         "the PCIe bridge 0000:00:01.1 above GPU 0, 1 redirects copies between them (ACS: P2P Request Redirect)"),
        (([0, 1], GPUS, FREE, {"0000:00:00.1": None, "0000:00:01.1": []}), True,
         "Whether 0000:00:00.1 redirect (ACS) could not be read"),
        (([0, 2], GPUS, FREE, QUIET), True, "Where GPU 2 is on the node can't be told"),
        (([0, 1], GPUS, places("DMA"), QUIET, False, "quiet intel_iommu=on"), False, "command line: intel_iommu=on"),
        (([0, 1], GPUS, places("DMA"), QUIET, False, "", "on"), True, "nvidia_peer_to_peer is on"),
        (([0, 1], GPUS, FREE, QUIET, False, "", "off"), False, "nvidia_peer_to_peer is off"),
        (([0], GPUS, FREE, QUIET, False, "", "off"), True, ""),
    ],
)  # fmt: skip
def test_whether_they_may_copy_to_each_other_and_why(arguments, direct, words):
    verdict = peer.judge(*arguments)
    assert verdict.direct == direct
    assert verdict.environment == ({} if direct else {"NCCL_P2P_DISABLE": "1", "VLLM_SKIP_P2P_CHECK": "0"})
    assert words in " ".join(verdict.reasons)
    assert bool(verdict.reasons) == bool(words)
