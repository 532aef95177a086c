# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of NVML, from a package that behaves like it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import gpu_info, nvml

GIB = 1 << 30


class NVMLError(Exception):
    """An error as the package raises it."""

    def __init__(self, value: int):
        super().__init__({3: "Not Supported", 4: "Insufficient Permissions", 15: "GPU is lost",
                          18: "Driver/library version mismatch"}.get(value, "Unknown Error"))  # fmt: skip
        self.value = value


class Nvml:
    """NVML of a machine with GPUs.

    :param gpus: of each, function of NVML (without "nvmlDeviceGet") → what it gives; an error is raised
    """

    NVMLError = NVMLError

    def __init__(self, *gpus: dict, init: int = 0, peers: dict | None = None):
        self.gpus, self.init, self.peers, self.down = gpus, init, peers or {}, 0

    def nvmlInit(self):
        if self.init:
            raise NVMLError(self.init)

    def nvmlShutdown(self):
        self.down += 1

    def nvmlSystemGetDriverVersion(self):
        return b"580.95.05"

    def nvmlSystemGetCudaDriverVersion_v2(self):
        return 13000

    def nvmlSystemGetProcessName(self, pid):
        if pid > 1000:
            raise NVMLError(4)
        return "/opt/vllm/bin/python"

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number):
        if "handle" in self.gpus[number]:
            raise NVMLError(self.gpus[number]["handle"])
        return self.gpus[number]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu, number):
        if number >= len(gpu["parts"]):
            raise NVMLError(6)
        return gpu["parts"][number]

    def nvmlDeviceGetP2PStatus(self, one, other, kind):
        return self.peers[self.gpus.index(one), self.gpus.index(other)][kind]

    def nvmlDeviceGetTopologyCommonAncestor(self, _one, _other):
        return 30

    def __getattr__(self, name):
        prefix = "nvmlDeviceGet"
        if not name.startswith(prefix):
            raise AttributeError(name)

        def of(gpu):
            found = gpu.get(name[len(prefix) :], 3)
            numbers = ("MinorNumber", "Architecture", "MaxMigDeviceCount")
            if isinstance(found, int) and name[len(prefix) :] not in numbers:
                raise NVMLError(found)
            return found

        return of


def memory(total: int, used: int) -> SimpleNamespace:
    return SimpleNamespace(total=total * GIB, used=used * GIB, free=(total - used) * GIB)


def gpu(number: int, **more) -> dict:
    return {
        "Name": "NVIDIA GeForce RTX 5060 Ti", "UUID": f"GPU-{number}", "MinorNumber": number, "Architecture": 10,
        "CudaComputeCapability": (12, 0), "MemoryInfo": memory(16, 2), "ComputeRunningProcesses": [],
        "GraphicsRunningProcesses": [], "PciInfo": SimpleNamespace(busId=b"00000000:01:00.0"), **more,
    }  # fmt: skip


def process(pid: int, used: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def seen(said: dict, **more) -> gpu_info.Seen:
    there = {"kernel": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n",
             "libraries": ["/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05"], "devices": ["/dev/nvidia0"],
             "tried": ["/opt/vllm/bin/python"], "python": "/opt/vllm/bin/python"}  # fmt: skip
    return gpu_info.Seen(**{**there, **more}, said={"package": True, "nccl": "2.28.9", **said})


def read(package: Nvml, **more) -> dict:
    return gpu_info.result(seen(nvml.Reader(package).read(), **more))


def test_two_gpus_and_what_they_can_do_together():
    package = Nvml(gpu(0), gpu(1), peers={(0, 1): [0, 1, 5], (1, 0): [0, 0, 5]})
    found = read(package, toolkit="Cuda compilation tools, release 13.0, V13.0.88\n")
    assert found["available"], found["reason"]
    assert (found["driver_version"], found["cuda_driver_version"]) == ("580.95.05", "13.0")
    assert (found["toolkit_version"], found["nccl_version"]) == ("13.0", "2.28.9")
    first = found["gpus"][0]
    assert (first["architecture"], first["compute_capability"]) == ("Blackwell", "12.0")
    assert first["device"] == "/dev/nvidia0"
    assert (first["memory_total_mib"], first["memory_used_mib"], first["memory_free_mib"]) == (16384, 2048, 14336)
    assert first["pci_address"] == "00000000:01:00.0" and not first["mig"]
    assert found["peer_to_peer"] == [
        {"from": 0, "to": 1, "path": "PHB", "read": "ok", "write": "chipset not supported", "nvlink": "not supported"},
        {"from": 1, "to": 0, "path": "PHB", "read": "ok", "write": "ok", "nvlink": "not supported"},
    ]
    assert package.down == 1
    json.dumps(found)


def test_processes_are_told_once_and_without_what_is_not_told():
    busy = gpu(0, ComputeRunningProcesses=[process(812, 14 * GIB), process(4711, None)],
               GraphicsRunningProcesses=[process(812, 14 * GIB), process(900, (1 << 64) - 1)])  # fmt: skip
    assert read(Nvml(busy))["gpus"][0]["processes"] == [
        {"pid": 812, "name": "/opt/vllm/bin/python", "memory_mib": 14336, "kind": "compute"},
        {"pid": 900, "name": "/opt/vllm/bin/python", "memory_mib": None, "kind": "graphics"},
        {"pid": 4711, "name": "", "memory_mib": None, "kind": "compute"},
    ]


def test_a_gpu_that_is_divided():
    parts = [{"Name": f"MIG {size}", "UUID": f"MIG-{size}", "MemoryInfo": memory(size, 1),
              "ComputeRunningProcesses": [process(812, GIB)] if size == 10 else []} for size in (10, 20)]  # fmt: skip
    divided = gpu(0, MigMode=[1, 1], MaxMigDeviceCount=7, parts=parts, MemoryInfo=4, CudaComputeCapability=(9, 0),
                  Architecture=9)  # fmt: skip
    found = read(Nvml(divided))
    assert found["available"]
    whole = found["gpus"][0]
    assert whole["mig"] and whole["architecture"] == "Hopper"
    # A container may not ask the whole GPU for its memory.
    assert whole["memory_total_mib"] is None
    assert [(part["uuid"], part["memory_total_mib"]) for part in whole["mig_devices"]] == [
        ("MIG-10", 10240), ("MIG-20", 20480),
    ]  # fmt: skip
    assert [one["pid"] for one in whole["processes"]] == [812]


def test_mig_that_is_only_possible_is_off():
    assert not read(Nvml(gpu(0, MigMode=[0, 1])))["gpus"][0]["mig"]


def test_a_gpu_that_is_lost_beside_one_that_works():
    found = read(Nvml(gpu(0), {"handle": 15}))
    assert found["available"]
    assert found["gpus"][1]["problem"].startswith("GPU 1 can't be used: GPU is lost. It has fallen off the bus")
    assert found["peer_to_peer"] == []


def test_a_gpu_that_the_container_was_not_given_is_none_of_its_own():
    """NVML counts all of the node's, and may open those that have a device node here."""
    package = Nvml({"handle": 4}, gpu(1), peers={})
    found = read(package, devices=["/dev/nvidia1"])
    assert found["available"]
    assert [(one["index"], one["device"]) for one in found["gpus"]] == [(1, "/dev/nvidia1")]
    # One that has a node here and can't be opened is told of.
    found = read(package, devices=["/dev/nvidia0", "/dev/nvidia1"])
    assert [bool(one["problem"]) for one in found["gpus"]] == [True, False]


def test_a_gpu_of_a_generation_to_come():
    assert read(Nvml(gpu(0, Architecture=11, CudaComputeCapability=(13, 0))))["gpus"][0]["architecture"] == ""
    # A package that is older than the GPU.
    assert read(Nvml(gpu(0, Architecture=0xFFFFFFFF)))["gpus"][0]["architecture"] == "Blackwell"


@pytest.mark.parametrize(
    ("package", "more", "words"),
    [
        (Nvml(init=18), {"libraries": ["/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.124.06"]},
         "The kernel's driver is 580.95.05, and the driver's library here is 570.124.06: both must have the same"),
        (Nvml(init=18), {"libraries": []}, "the driver's library here is another version"),
        (Nvml(init=12), {"libraries": []}, "its library libnvidia-ml.so.1 isn't installed here"),
        (Nvml(init=9), {}, "NVML says that the driver isn't loaded"),
        (Nvml(init=4), {}, "NVML may not open the driver's devices"),
        (Nvml(init=999), {}, "NVML can't be used: Unknown Error"),
        (Nvml(), {}, "says that there is no GPU"),
        (Nvml({"handle": 4}), {}, "Its device node isn't in the container, or its mode isn't 0666"),
    ],
)  # fmt: skip
def test_why_there_is_none(package, more, words):
    found = read(package, **more)
    assert not found["available"]
    assert words in found["reason"], found["reason"]
    assert found["reason"].endswith((".", ")."))


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"kernel": "", "devices": []}, "There is no NVIDIA GPU here: no driver is loaded"),
        ({"kernel": ""}, "driver isn't loaded (/proc/driver/nvidia/version isn't there), though /dev/nvidia0 is"),
        ({"devices": []}, "there is no device node /dev/nvidia0 here: assign a GPU"),
        ({"python": "", "tried": ["/opt/vllm/bin/python", "/usr/bin/python3"]},
         "/opt/vllm/bin/python and /usr/bin/python3 have no pynvml"),
        ({"python": "", "tried": []}, "no Python has no pynvml"),
    ],
)  # fmt: skip
def test_why_nobody_was_asked(there, words):
    found = gpu_info.result(seen({}, **there))
    assert not found["available"] and words in found["reason"], found["reason"]
    assert found["gpus"] == [] and found["nccl_version"] == "2.28.9"


def test_where_the_driver_shows_no_file_an_answer_is_enough():
    """Under some virtual machines /proc/driver isn't there."""
    assert read(Nvml(gpu(0)), kernel="", devices=[])["available"]


def _python(folder: Path, package: str | None) -> str:
    """A Python that has a package pynvml, or none."""
    program = folder / "python"
    where = f"sys.path.insert(0, {str(folder)!r})\n" if package is not None else ""
    program.write_text(f"#!{sys.executable}\nimport sys\n{where}exec(sys.argv[3], {{'__name__': '__main__'}})\n")
    program.chmod(0o755)
    if package is not None:
        (folder / "pynvml.py").write_text(package)
    return str(program)


def _run(argv):
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


PACKAGE = """
class NVMLError(Exception): value = 18
def nvmlInit(): raise NVMLError("Driver/library version mismatch")
"""


def test_look_asks_the_first_python_that_has_the_package(tmp_path):
    without, with_it = tmp_path / "without", tmp_path / "with"
    without.mkdir(), with_it.mkdir()
    root = tmp_path / "root"
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Fri\n")
    (root / "dev").mkdir()
    for name in ("nvidia0", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (root / "dev" / name).touch()
    library = root / "usr/lib/x86_64-linux-gnu"
    library.mkdir(parents=True)
    (library / "libnvidia-ml.so.570.124.06").touch()
    (library / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.570.124.06")
    nvcc = root / "usr/local/cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.9, V12.9.86'\n")
    nvcc.chmod(0o755)
    pythons = ["/nowhere/python", _python(without, None), _python(with_it, PACKAGE)]
    there = gpu_info.look(_run, pythons, str(root))
    assert there.tried == pythons[1:] and there.python == pythons[2]
    assert [Path(path).name for path in there.devices] == ["nvidia0", "nvidia10"]
    found = gpu_info.result(there)
    assert (found["kernel_driver_version"], found["library_version"]) == ("580.95.05", "570.124.06")
    assert found["toolkit_version"] == "12.9"
    assert "run site.yml for this container" in found["reason"]


def test_look_finds_the_copy_that_vllm_brings(tmp_path):
    program = _python(tmp_path, "")
    (tmp_path / "pynvml.py").unlink()
    folder = tmp_path / "vllm" / "third_party"
    folder.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('vLLM was imported')\n")
    (folder / "pynvml.py").write_text(PACKAGE)
    there = gpu_info.look(_run, [program], str(tmp_path))
    assert there.said["error"] == {"code": 18, "text": "Driver/library version mismatch"}


def test_look_tells_of_nvml_that_hangs(tmp_path):
    program = _python(tmp_path, PACKAGE)
    there = gpu_info.look(lambda argv: (124, "", ""), [program], str(tmp_path))
    assert "no answer within 60 s" in there.said["error"]["text"]


def test_look_finds_the_library_that_the_role_installs(tmp_path):
    """It is what programs get, whatever else lies about."""
    for folder, version in (("opt/nvidia/driver/lib", "580.95.05"), ("usr/lib/x86_64-linux-gnu", "570.124.06")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"libnvidia-ml.so.{version}").touch()
        (tmp_path / folder / "libnvidia-ml.so.1").symlink_to(f"libnvidia-ml.so.{version}")
    there = gpu_info.look(_run, [], str(tmp_path))
    assert gpu_info.result(there)["library_version"] == "580.95.05"


@pytest.mark.parametrize(
    ("content", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.274.02  Thu Sep 25 2025\nGCC version: 12.2.0",
         "535.274.02"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs)", "580.95.05"),
        ("NVRM version: NVIDIA UNIX Kernel Module  550.54", "550.54"),
        ("GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_kernel_drivers_version(content, version):
    assert gpu_info.kernel_version(content) == version


@pytest.mark.parametrize(("number", "text"), [(13000, "13.0"), (12080, "12.8"), (12090, "12.9"), (None, ""), (0, "")])
def test_cudas_number(number, text):
    assert gpu_info.cuda_version(number) == text
