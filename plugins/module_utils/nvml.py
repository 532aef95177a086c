# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what NVIDIA's management library says of the GPUs.

It is run by a Python that has NVML's package (C(nvidia-ml-py)), which is seldom the one that Ansible's modules run on:

    /opt/vllm/bin/python -I -c "<this file>"

So it needs the standard library only, besides. It prints one line: C(phoenix-nvml) and what it read, as JSON. What a
GPU doesn't say is C(null); a GPU that doesn't answer at all is in the list with why. It never fails.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys

MARK = "phoenix-nvml"
MIB = 1 << 20
# What is asked of a pair of GPUs. The numbers are NVML's.
CAPABILITIES = {"read": 0, "write": 1, "nvlink": 2}
NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")


def package():
    """Return NVML's package: the distribution's own module, or the copy that vLLM brings. None when there is none."""
    if importlib.util.find_spec("pynvml"):
        return importlib.import_module("pynvml")
    # vLLM itself isn't imported for it, which would take a while.
    vllm = importlib.util.find_spec("vllm")
    for folder in (vllm and vllm.submodule_search_locations) or ():
        path = os.path.join(folder, "third_party", "pynvml.py")
        if os.path.isfile(path):
            spec = importlib.util.spec_from_file_location("pynvml", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return None


def text(value):
    """Return text that older packages give as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class Reader:
    """Asks NVML.

    Args:
        nvml: its package, or one that behaves like it.
    """

    def __init__(self, nvml):
        self.nvml = nvml

    def ask(self, name, *arguments):
        """Return what a function of NVML says, None when it can't: not there, not supported, not allowed."""
        try:
            return text(getattr(self.nvml, name)(*arguments))
        except (self.nvml.NVMLError, AttributeError):
            return None

    def read(self):
        """Return all that it says."""
        nvml = self.nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return {"error": self.problem(error)}
        try:
            cuda = self.ask("nvmlSystemGetCudaDriverVersion_v2") or self.ask("nvmlSystemGetCudaDriverVersion")
            handles = [self.handle(number) for number in range(self.ask("nvmlDeviceGetCount") or 0)]
            return {
                "driver": self.ask("nvmlSystemGetDriverVersion"),
                "cuda": cuda,
                "gpus": [self.gpu(number, *found) for number, found in enumerate(handles)],
                "pairs": self.pairs([found[0] for found in handles]),
            }
        finally:
            self.ask("nvmlShutdown")

    @staticmethod
    def problem(error):
        """Return an error of NVML: its number and its text."""
        return {"code": getattr(error, "value", -1), "text": str(error)}

    def handle(self, number):
        """Return a GPU's handle and, when there is none, why."""
        try:
            return self.nvml.nvmlDeviceGetHandleByIndex(number), None
        except self.nvml.NVMLError as error:
            return None, self.problem(error)

    def gpu(self, number, handle, error):
        """Return what is known of a GPU."""
        if handle is None:
            return {"index": number, "error": error}
        mode = self.ask("nvmlDeviceGetMigMode", handle)
        capability = self.ask("nvmlDeviceGetCudaComputeCapability", handle)
        pci = self.ask("nvmlDeviceGetPciInfo", handle)
        found = {
            "index": number,
            "minor": self.ask("nvmlDeviceGetMinorNumber", handle),
            "name": self.ask("nvmlDeviceGetName", handle),
            "uuid": self.ask("nvmlDeviceGetUUID", handle),
            "pci": text(getattr(pci, "busId", None)),
            "architecture": self.ask("nvmlDeviceGetArchitecture", handle),
            "capability": list(capability) if capability else None,
            "mig": bool(mode and mode[0]),
            "mig_devices": [],
            "processes": self.processes(handle),
            **self.memory(handle),
        }
        if found["mig"]:
            found["mig_devices"] = self.mig_devices(handle)
            found["processes"] += [one for device in found["mig_devices"] for one in device.pop("processes")]
        return found

    def memory(self, handle):
        """Return a GPU's memory in MiB."""
        memory = self.ask("nvmlDeviceGetMemoryInfo", handle)
        return {f"memory_{name}": None if memory is None else int(getattr(memory, name)) // MIB
                for name in ("total", "used", "free")}  # fmt: skip

    def processes(self, handle):
        """Return the processes that have memory of a GPU, by number."""
        found = {}
        for kind in ("Compute", "Graphics"):
            for process in self.ask(f"nvmlDeviceGet{kind}RunningProcesses", handle) or ():
                used = process.usedGpuMemory
                found[process.pid] = {
                    "pid": process.pid,
                    "name": self.ask("nvmlSystemGetProcessName", process.pid) or None,
                    # Not told to everybody; -1 is NVML's word for that in older packages.
                    "memory": None if used is None or used < 0 or used >> 62 else used // MIB,
                    "kind": found.get(process.pid, {}).get("kind", kind.lower()),
                }
        return [found[pid] for pid in sorted(found)]

    def mig_devices(self, handle):
        """Return the parts that a GPU is divided into."""
        found = []
        for number in range(self.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            # There are fewer than there may be.
            part = self.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if part is not None:
                found.append(
                    {
                        "index": number,
                        "name": self.ask("nvmlDeviceGetName", part),
                        "uuid": self.ask("nvmlDeviceGetUUID", part),
                        "processes": self.processes(part),
                        **self.memory(part),
                    }
                )
        return found

    def pairs(self, handles):
        """Return for each ordered pair of GPUs what they can do with each other's memory, and what is between them."""
        return [
            {
                "from": one,
                "to": other,
                "path": self.ask("nvmlDeviceGetTopologyCommonAncestor", handles[one], handles[other]),
                **{name: self.ask("nvmlDeviceGetP2PStatus", handles[one], handles[other], number)
                   for name, number in CAPABILITIES.items()},
            }
            for one in range(len(handles))
            for other in range(len(handles))
            if one != other and handles[one] is not None and handles[other] is not None
        ]  # fmt: skip


def nccl():
    """Return the version of the NCCL that is installed with this Python, C("") when there is none."""
    for name in NCCL:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def main():
    """Print what there is."""
    nvml = package()
    found = {"package": nvml is not None, "nccl": nccl()}
    if nvml is not None:
        found.update(Reader(nvml).read())
    sys.stdout.write(f"{MARK} {json.dumps(found)}\n")


if __name__ == "__main__":
    main()
