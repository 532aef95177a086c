# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook gpu_check.yml on a container of the lab, which has no GPU: CTID 580.

With a package in the place of NVML's, and a program in the place of the release's Python, the way of a run that has
GPUs is gone, too. What real GPUs say is in docs/benchmarks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_modules import require_lab
from model_site import Site

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = str(ROOT / "playbooks/gpu_check.yml")
VMID, ADDRESS = 580, "10.92.0.50"
# Of one GPU, on which a server runs.
NVML = """
class NVMLError(Exception):
    value = 3
class Of:
    def __init__(self, **values): self.__dict__.update(values)
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return "580.95.05"
def nvmlSystemGetCudaDriverVersion_v2(): return 13000
def nvmlSystemGetProcessName(pid): return "/opt/vllm/bin/python"
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(number): return number
def nvmlDeviceGetName(gpu): return "RTX 5060 Ti"
def nvmlDeviceGetCudaComputeCapability(gpu): return (12, 0)
def nvmlDeviceGetMemoryInfo(gpu): return Of(total=16 << 30, used=12 << 30, free=4 << 30)
def nvmlDeviceGetComputeRunningProcesses(gpu): return [Of(pid=812, usedGpuMemory=12 << 30)]
"""
# A Python whose PyTorch is there, and whose FP8 arithmetic hangs.
PYTHON = """#!/usr/bin/python3
import json, sys, time
if "phoenix-nvml" in sys.argv[3]:
    sys.path.insert(0, "/opt/fake")
    exec(sys.argv[3], {"__name__": "__main__"})
    sys.exit()
def say(**what): print("phoenix-gpu " + json.dumps(what), flush=True)
say(check="torch_", torch="2.13.0+cu130", cuda="13.0", nccl="2.28.9", sum=499500.0)
for name in json.loads(sys.argv[4])["checks"]:
    say(check=name, begin=True)
    if name == "fp8": time.sleep(600)
    say(check=name, free_mib=4096, total_mib=16384, taken_mib=2048, free_after_mib=4096, wrong_blocks=0,
        error_relative=0.001, tflops=99.0, world=1, wrong_sizes=[], bus_gb_per_s={"1024": 0.0})
"""


class Gpu(Site):
    """The container, and its results."""

    def check(self, *options: str, code: int = 0, **variables) -> str:
        """Run the playbook. Returns what was said."""
        said = self.run(*options, playbook=PLAYBOOK, code=code, **variables)
        assert "Traceback" not in said
        return said

    def results(self) -> list[dict]:
        """The results, the last one last."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("results/*/gpu_check-*.json"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Gpu]:
    """A container."""
    require_lab()
    site = Gpu(VMID, ADDRESS, tmp_path_factory.mktemp("site"))
    site.variables = {"gpu_check_folder": str(site.folder / "results"), "container_gpus": [0]}
    try:
        site.create(("good",), ("fake-111111111111",), memory=256)
        yield site
    finally:
        site.close()


def test_a_container_without_a_gpu_is_told_so(site):
    said = site.check(code=2)
    assert "There is no NVIDIA GPU here: no driver is loaded (/proc/driver/nvidia/version isn't there)" in said
    assert "changed=0" in said
    result = site.results()[-1]
    assert (result["ctid"], result["passed"]) == (str(VMID), False)
    assert [check["check"] for check in result["checks"]] == ["gpus"] and not result["info"]["available"]


def test_one_that_wants_none_is_left_alone(site):
    said = site.check(container_gpus=[])
    assert "has no GPU assigned (gpu_assignment): nothing to check" in said and len(site.results()) == 1


def test_check_mode_runs_nothing(site):
    said = site.check("--check")
    assert "changed=0" in said and len(site.results()) == 1


def test_what_hangs_is_told_and_a_server_is_left_alone(site):
    site.inside("mkdir -p /opt/fake")
    site.inside(f"cat >/opt/fake/pynvml.py <<'END'\n{NVML}END")
    python = "/opt/vllm-releases/fake-111111111111/bin/python"
    site.inside(f"cat >{python} <<'END'\n{PYTHON}END\nchmod 0755 {python}")
    unit = "/etc/systemd/system/vllm_model_server.service"
    site.inside(f"printf '[Service]\\nEnvironment=\"NCCL_P2P_DISABLE=1\"\\n' >{unit}")
    said = site.check(code=2, gpu_check_timeout=5, container_gpus=[0, 1])
    assert "NCCL runs with NCCL_P2P_DISABLE=1, as the model server does." in said
    assert "GPU 0 is used by python (pid 812, 12288 MiB): it is left alone." in said
    assert "fp8 (GPU 0): FP8 arithmetic did not end within 5 s and was ended." in said
    assert "2 are assigned (gpu_assignment), and 1 is here" in said
    result = site.results()[-1]
    assert len(site.results()) == 2 and len(result["failures"]) == 2 and len(result["notes"]) == 2
    found = {check["check"]: check["result"] for check in result["checks"]}
    assert found == {"driver": "passed", "gpus": "failed", "toolkit": "skipped", "cuda": "passed", "memory": "passed",
                     "matrix": "passed", "fp8": "failed", "nccl": "passed", "all_reduce": "passed"}  # fmt: skip
    # Nothing of it is left running.
    assert site.inside("pgrep -fc '[p]hoenix-gpu' || true").strip() == "0"
