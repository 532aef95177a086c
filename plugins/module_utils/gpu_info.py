# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what NVML and a few files say to what is known of the GPUs, or why there are none. Values in, values out.

C(look) at the end is the one that looks; modules call it.
"""

from __future__ import annotations

import glob
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils import nvml
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_driver import kernel_version

KERNEL_DRIVER = "/proc/driver/nvidia/version"
RELEASE_PYTHON = "/opt/vllm/bin/python"
LIBRARY = "libnvidia-ml.so.1"
# NVML answers at once, or hangs because a GPU does.
SECONDS = 60
ARCHITECTURES = {2: "Kepler", 3: "Maxwell", 4: "Pascal", 5: "Volta", 6: "Turing", 7: "Ampere", 8: "Ada", 9: "Hopper",
                 10: "Blackwell"}  # fmt: skip
# By compute capability, where the package is too old to know the generation.
_BY_CAPABILITY = {8.9: "Ada", 9.0: "Hopper", 10.0: "Blackwell", 10.3: "Blackwell", 12.0: "Blackwell",
                  12.1: "Blackwell"}  # fmt: skip
# What lies between two GPUs, in the words of `nvidia-smi topo`.
PATHS = {0: "same board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
P2P = {0: "ok", 1: "chipset not supported", 2: "GPU not supported", 3: "topology not supported",
       4: "switched off by the driver", 5: "not supported"}  # fmt: skip
# NVML's numbers for what can be wrong.
NO_PERMISSION, NOT_LOADED, NO_LIBRARY, MISMATCH, LOST = 4, 9, 12, 18, 15


@dataclass(frozen=True)
class Seen:
    """What there is.

    :ivar kernel: the text of the kernel driver's version file, C("") when no driver is loaded
    :ivar libraries: the files that C(libnvidia-ml.so.1) is on this machine
    :ivar devices: the device nodes of GPUs (C(/dev/nvidia0))
    :ivar toolkit: what `nvcc --version` prints, C("") when there is none
    :ivar tried: the Pythons that were asked, in this order
    :ivar python: the one whose answer this is, C("") when none has NVML's package
    :ivar said: what it read, as L(nvml) prints it
    """

    kernel: str = ""
    libraries: Sequence[str] = ()
    devices: Sequence[str] = ()
    toolkit: str = ""
    tried: Sequence[str] = ()
    python: str = ""
    said: Mapping[str, Any] = field(default_factory=dict)


def library_version(paths: Sequence[str]) -> str:
    """The version of the driver's library, by the names of its files; C("") when they have none."""
    versions = [match[1] for path in paths if (match := re.search(r"\.so\.(\d+\.\d+(?:\.\d+)?)$", path))]
    return versions[0] if versions else ""


def toolkit_version(output: str) -> str:
    """The version of the CUDA toolkit, in what `nvcc --version` prints."""
    match = re.search(r"release (\d+\.\d+)", output)
    return match[1] if match else ""


def cuda_version(number: int | None) -> str:
    """CUDA's number as a version: 13000 → 13.0, 12080 → 12.8."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def architecture(number: int | None, capability: Sequence[int] | None) -> str:
    """The name of a generation of GPUs; C("") for one that isn't known here."""
    value = float(f"{capability[0]}.{capability[1]}") if capability else 0.0
    return ARCHITECTURES.get(number or 0) or _BY_CAPABILITY.get(value, "")


def own(seen: Seen) -> list[Mapping[str, Any]]:
    """The GPUs that are meant for this machine, as they were read.

    In a container NVML counts all of the node's, and may not open those that the container was not given: they have no
    device node here.
    """
    gpus = list(seen.said.get("gpus") or ())
    closed = [gpu for gpu in gpus if (gpu.get("error") or {}).get("code") == NO_PERMISSION]
    others = [gpu for gpu in gpus if gpu not in closed]
    return others if len(others) >= len(seen.devices) else gpus


def reason(seen: Seen) -> str:
    """Why there is no GPU to be used, as a sentence with its remedy; C("") when there is one."""
    gpus = own(seen)
    if any(not gpu.get("error") for gpu in gpus):
        return ""
    kernel, library = kernel_version(seen.kernel), library_version(seen.libraries)
    if not kernel and not seen.devices:
        return (
            f"There is no NVIDIA GPU here: no driver is loaded ({KERNEL_DRIVER} isn't there), and there is no "
            "/dev/nvidia0. In a container, give it one (gpu_assignment) and see on its node whether nvidia-smi works."
        )
    if not kernel:
        return (
            f"The kernel's NVIDIA driver isn't loaded ({KERNEL_DRIVER} isn't there), though {seen.devices[0]} is: load "
            "it on the node (nvidia-smi does), or install it there."
        )
    if not seen.devices:
        return (
            f"The driver {kernel} is loaded, but there is no device node /dev/nvidia0 here: assign a GPU to the "
            "container (gpu_assignment), or make the node's with nvidia-modprobe."
        )
    if not seen.python:
        return (
            f"There is no NVML package for Python: {' and '.join(seen.tried) or 'no Python'} "
            f"{'have' if len(seen.tried) > 1 else 'has'} no pynvml. Install nvidia-ml-py there, or name a Python that "
            "has it (python); a release of vLLM has it."
        )
    error = seen.said.get("error")
    if error:
        return _library_problem(error, kernel, library)
    if not gpus:
        return (
            f"The driver {kernel} answers, and says that there is no GPU. See on the node whether `lspci -d 10de:` "
            "shows one, and whether it was taken away from the driver (for a virtual machine, say)."
        )
    return _gpu_problem(gpus[0])


def _library_problem(error: Mapping[str, Any], kernel: str, library: str) -> str:
    code = error.get("code")
    if code == MISMATCH:
        return (
            f"The kernel's driver is {kernel}, and the driver's library here is {library or 'another version'}: both "
            "must have the same version. The node's driver was upgraded; run site.yml for this container, which brings "
            "its library to the same version (on a node, restart it)."
        )
    if code == NO_LIBRARY:
        return (
            f"The driver {kernel} is loaded, but its library {LIBRARY} isn't installed here: run site.yml for this "
            "container with the feature nvidia, or install the driver's libraries of exactly that version."
        )
    if code == NOT_LOADED:
        return f"NVML says that the driver isn't loaded, though {KERNEL_DRIVER} has {kernel}: see /dev/nvidiactl."
    if code == NO_PERMISSION:
        return "NVML may not open the driver's devices: see the mode of /dev/nvidiactl and /dev/nvidia0 (0666)."
    return f"NVML can't be used: {error.get('text')}. See `dmesg | grep NVRM` on the node."


def _gpu_problem(gpu: Mapping[str, Any]) -> str:
    error = gpu["error"]
    what = f"GPU {gpu['index']} can't be used: {error.get('text')}."
    if error.get("code") == LOST:
        return f"{what} It has fallen off the bus: see `dmesg | grep NVRM` on the node, and restart the node."
    if error.get("code") == NO_PERMISSION:
        return f"{what} Its device node isn't in the container, or its mode isn't 0666 (gpu_assignment)."
    return f"{what} See `dmesg | grep NVRM` on the node."


def described(gpu: Mapping[str, Any]) -> dict[str, Any]:
    """A GPU as the module returns it."""
    capability = gpu.get("capability")
    parts = [
        {"index": part["index"], "name": part["name"] or "", "uuid": part["uuid"] or "",
         "memory_total_mib": part["memory_total"], "memory_used_mib": part["memory_used"]}
        for part in gpu.get("mig_devices") or ()
    ]  # fmt: skip
    processes = [
        {"pid": one["pid"], "name": one["name"] or "", "memory_mib": one["memory"], "kind": one["kind"]}
        for one in gpu.get("processes") or ()
    ]
    minor = gpu.get("minor")
    return {
        "index": gpu["index"],
        "device": "" if minor is None else f"/dev/nvidia{minor}",
        "name": gpu.get("name") or "",
        "uuid": gpu.get("uuid") or "",
        "pci_address": gpu.get("pci") or "",
        "architecture": architecture(gpu.get("architecture"), capability),
        "compute_capability": f"{capability[0]}.{capability[1]}" if capability else "",
        "memory_total_mib": gpu.get("memory_total"),
        "memory_used_mib": gpu.get("memory_used"),
        "memory_free_mib": gpu.get("memory_free"),
        "mig": bool(gpu.get("mig")),
        "mig_devices": parts,
        "processes": processes,
        "problem": _gpu_problem(gpu) if gpu.get("error") else "",
    }


def pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    """What two GPUs can do together, as the module returns it."""
    return {
        "from": pair["from"],
        "to": pair["to"],
        "path": PATHS.get(pair["path"], "") if pair["path"] is not None else "",
        **{name: P2P.get(pair[name], "unknown") if pair[name] is not None else "unknown"
           for name in nvml.CAPABILITIES},
    }  # fmt: skip


def result(seen: Seen) -> dict[str, Any]:
    """What the module returns."""
    why = reason(seen)
    said = seen.said
    return {
        "available": not why,
        "reason": why,
        "driver_version": said.get("driver") or "",
        "kernel_driver_version": kernel_version(seen.kernel),
        "library_version": library_version(seen.libraries),
        "cuda_driver_version": cuda_version(said.get("cuda")),
        "gpus": [described(gpu) for gpu in own(seen)],
        "peer_to_peer": [pair(one) for one in said.get("pairs") or ()],
        "toolkit_version": toolkit_version(seen.toolkit),
        "nccl_version": said.get("nccl") or "",
        "python": seen.python,
    }


def answer(output: str) -> dict[str, Any] | None:
    """What L(nvml) printed; None when it printed nothing of its own."""
    found = re.findall(rf"^{nvml.MARK} (\{{.*\}})$", output, re.MULTILINE)
    return json.loads(found[-1]) if found else None


Run = Callable[[Sequence[str]], "tuple[int, str, str]"]


def look(run: Run, pythons: Sequence[str], root: str = "/") -> Seen:
    """See what there is on this machine.

    :param run: runs a program: argv → exit code, stdout, stderr
    :param pythons: those that may have NVML's package, in the order in which they are asked
    :param root: where the file system of the driver begins
    """
    tried, python, said = [], "", {}
    for candidate in pythons:
        if not os.access(candidate, os.X_OK):
            continue
        tried.append(candidate)
        code, stdout, _stderr = run(["timeout", "-k", "5", str(SECONDS), candidate, "-I", "-c",
                                     inspect.getsource(nvml)])  # fmt: skip
        found = answer(stdout)
        if found and found["package"]:
            python, said = candidate, found
            break
        # NCCL is told also where there is no package.
        said = said or found or {}
        if code in (124, 137):
            python = candidate
            said = {"error": {"code": -1, "text": f"it gave no answer within {SECONDS} s; a GPU may hang"}}
            break
    return Seen(
        kernel=_text(os.path.join(root, KERNEL_DRIVER.lstrip("/"))),
        libraries=_libraries(root),
        devices=sorted(path for path in glob.glob(os.path.join(root, "dev", "nvidia*"))
                       if re.search(r"/nvidia\d+$", path)),
        toolkit=_toolkit(run, root),
        tried=tried,
        python=python,
        said=said,
    )  # fmt: skip


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _libraries(root: str) -> list[str]:
    # Where the role nvidia has them comes first, as it does for the loader.
    folders = ("opt/nvidia/driver/lib", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu",
               "usr/lib64", "usr/lib", "usr/local/nvidia/lib64", "usr/local/lib")  # fmt: skip
    links = [os.path.join(root, folder, LIBRARY) for folder in folders]
    return [os.path.realpath(link) for link in links if os.path.exists(link)]


def _toolkit(run: Run, root: str) -> str:
    folders = ["usr/local/cuda/bin", *sorted(glob.glob(os.path.join(root, "usr/local/cuda-*/bin")), reverse=True)]
    for folder in [*(os.path.join(root, one) for one in folders), os.path.join(root, "usr/bin")]:
        program = os.path.join(folder, "nvcc")
        if os.access(program, os.X_OK):
            return run([program, "--version"])[1]
    return ""
