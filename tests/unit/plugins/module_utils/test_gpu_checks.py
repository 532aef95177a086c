# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of GPUs: what is done, what its figures mean, and that what hangs is ended."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import gpu_checks, gpu_info, gpu_runner, gpu_worker
from ansible_collections.phoenix.hypervisor.plugins.module_utils.gpu_checks import Limits
from ansible_collections.phoenix.hypervisor.plugins.modules import gpu_check

TORCH = {"torch": "2.13.0+cu130", "cuda": "13.0", "nccl": "2.28.9", "seen": 1, "sum": 499500.0, "seconds": 4.0}
MEMORY = {"free_mib": 15000, "total_mib": 16311, "taken_mib": 13312, "in_use_mib": 14600, "free_after_mib": 15000,
          "wrong_blocks": 0, "write_gb_per_s": 400.0}  # fmt: skip
MATRIX = {"side": 8192, "error_relative": 0.003, "tflops": 99.6}
FP8 = {"wrong_codes": 0, "side": 8192, "error_relative": 0.004, "tflops": 190.2}
ALL = {"torch_": TORCH, "memory": MEMORY, "matrix": MATRIX, "fp8": FP8}
SUM = {"torch_": TORCH, "all_reduce": {"world": 2, "wrong_sizes": [], "bus_gb_per_s": {"1024": 0.1, "1048576": 9.5}}}
HUNG = {"torch_": TORCH, "all_reduce": {"hung": 120.3, "gone": True, "lines": ["NCCL INFO Connected"]}}
ENDED = {"torch_": TORCH, "all_reduce": {"ended": True, "lines": []}}


def gpu(index: int = 0, **more) -> dict:
    return {
        "index": index, "name": "RTX 5060 Ti", "architecture": "Blackwell", "compute_capability": "12.0",
        "memory_total_mib": 16311, "memory_used_mib": 4, "memory_free_mib": 15900, "mig": False, "mig_devices": [],
        "processes": [], "problem": "", **more,
    }  # fmt: skip


BUSY = gpu(processes=[{"pid": 812, "name": "/opt/vllm/bin/python", "memory_mib": 12000, "kind": "compute"}],
           memory_used_mib=12100, memory_free_mib=4100)  # fmt: skip


def info(*gpus: dict, **more) -> dict:
    return {
        "available": True, "reason": "", "driver_version": "580.95.05", "kernel_driver_version": "580.95.05",
        "library_version": "580.95.05", "cuda_driver_version": "13.0", "gpus": list(gpus) or [gpu()],
        "peer_to_peer": [], "toolkit_version": "13.0", "nccl_version": "2.28.9", **more,
    }  # fmt: skip


def results(checks: list[dict]) -> dict[str, str]:
    return {check["check"]: check["result"] for check in checks}


def message(checks: list[dict], name: str) -> str:
    return next(check["message"] for check in checks if check["check"] == name)


# --- versions and plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "wanted", "older"),
    [
        ("12.8", "12.8", False), ("13.0", "12.8", False), ("12.4", "12.8", True), ("13", "13.0", False),
        ("2.26.5", "2.26.5", False), ("2.26.2", "2.26.5", True), ("2.28", "2.26.5", False), ("2.9.9", "2.26.5", True),
        ("", "12.8", True), ("13.0+x", "12.8", False),
    ],
)  # fmt: skip
def test_versions_are_compared_as_numbers(version, wanted, older):
    assert gpu_checks.older(version, wanted) is older


def test_an_idle_gpu_gives_all_but_a_little():
    wish = gpu_checks.wishes([gpu()], Limits())[0]
    assert wish["checks"] == ["memory", "matrix", "fp8"] and wish["memory_reserve"] == 512


def test_beside_a_server_more_is_left_and_it_is_said():
    assert gpu_checks.wishes([BUSY], Limits())[0]["memory_reserve"] == 2048
    said = gpu_checks.notes([gpu(), BUSY])
    assert len(said) == 1
    assert "python (pid 812, 12000 MiB): it is left alone" in said[0] and "less 2048 MiB" in said[0]


def test_a_neighbour_that_cant_be_seen_shows_by_its_memory():
    hidden = gpu(memory_used_mib=9000, memory_free_mib=7000)
    assert "somebody outside (9000 MiB)" in gpu_checks.notes([hidden])[0]


def test_a_full_gpu_is_not_touched():
    full = {**BUSY, "memory_free_mib": 600}
    assert gpu_checks.wishes([full], Limits())[0]["checks"] == []
    checks = gpu_checks.judge_gpu(full, {"torch_": TORCH}, Limits())
    assert results(checks) == {"cuda": "passed", "memory": "skipped", "matrix": "skipped", "fp8": "skipped"}
    assert "Only 600 MiB are free: used by python (pid 812" in message(checks, "memory")
    assert gpu_checks.together([full, gpu(1)], "/x", 10) == []
    assert "left alone" in message(gpu_checks.judge_together(info(full), [], [], "2.28.9", Limits()), "all_reduce")


def test_an_older_gpu_has_no_fp8():
    ampere = gpu(compute_capability="8.6")
    assert "fp8" not in gpu_checks.wishes([ampere], Limits())[0]["checks"]
    checks = gpu_checks.judge_gpu(ampere, ALL, Limits())
    assert results(checks)["fp8"] == "skipped" and "8.6 has no FP8" in message(checks, "fp8")


def test_a_divided_gpu_adds_up_nothing():
    parts = [gpu(mig=True, memory_free_mib=None), gpu(1)]
    assert gpu_checks.together(parts, "/x", 10) == []
    assert "MIG" in message(gpu_checks.judge_together(info(*parts), [], [], "2.28.9", Limits()), "all_reduce")


def part(number: int, used: int = 100) -> dict:
    return {"index": number, "name": "MIG 1g.24gb", "uuid": f"MIG-{number}", "memory_total_mib": 24000,
            "memory_used_mib": used}  # fmt: skip


def test_each_part_of_a_divided_gpu_is_checked():
    divided = gpu(mig=True, memory_total_mib=None, memory_used_mib=None, memory_free_mib=None,
                  mig_devices=[part(0), part(2, 23500)])  # fmt: skip
    devices = gpu_checks.devices([divided, gpu(1, uuid="GPU-1")])
    wishes = gpu_checks.wishes(devices, Limits())
    assert [(wish["gpu"], wish["visible"], len(wish["checks"])) for wish in wishes] == [
        (0, "MIG-0", 3), (0, "MIG-2", 0), (0, "GPU-1", 3),
    ]  # fmt: skip
    checks = [check for device in devices for check in gpu_checks.judge_gpu(device, ALL, Limits())]
    lines = gpu_checks.table(checks)
    assert any(line.startswith("memory (GPU 0, part 0)  passed") for line in lines)
    assert any(line.startswith("memory (GPU 0, part 2)  skipped") and "Only 500 MiB" in line for line in lines)
    assert any(line.startswith("memory (GPU 1)") for line in lines)


def test_whole_gpus_are_counted_as_nvml_counts_them():
    devices = gpu_checks.devices([gpu(0, uuid="GPU-0"), gpu(1, uuid="GPU-1")])
    assert [(wish["gpu"], wish["visible"]) for wish in gpu_checks.wishes(devices, Limits())] == [(0, ""), (1, "")]


def test_a_divided_gpu_without_parts_is_told_of():
    divided = gpu(mig=True)
    assert gpu_checks.devices([divided]) == []
    said = message(gpu_checks.judge_driver(info(divided), Limits()), "gpus")
    assert said.startswith("GPU 0 is divided (MIG), and no part of it is here: make parts on the node")


# --- what figures mean ----------------------------------------------------------------------------------------------


def test_all_is_well():
    two = info(gpu(), gpu(1))
    checks = gpu_checks.judge_driver(two, Limits(gpus=2))
    for one in two["gpus"]:
        checks += gpu_checks.judge_gpu(one, ALL, Limits())
    checks += gpu_checks.judge_together(two, [SUM, SUM], [], "2.28.9", Limits())
    assert gpu_checks.passed(checks) and gpu_checks.failures(checks) == []
    lines = gpu_checks.table(checks)
    assert lines[0].split() == ["check", "result", "figure"]
    assert any(line.startswith("memory (GPU 1)") and "13.0 of 15.9 GiB" in line for line in lines)
    assert any("2 GPUs, 9.5 GB/s" in line for line in lines)
    json.dumps(checks)


@pytest.mark.parametrize(
    ("changes", "limits", "check", "words"),
    [
        ({"kernel_driver_version": "580.105.08"}, Limits(), "driver", "The kernel's driver is 580.105.08, its library"),
        ({"cuda_driver_version": "12.4"}, Limits(), "driver", "can do CUDA 12.4, and 12.8 is needed"),
        ({"toolkit_version": "12.6"}, Limits(), "toolkit", "The CUDA toolkit is 12.6, and 12.8 is needed"),
        ({}, Limits(gpus=2), "gpus", "2 are assigned (gpu_assignment), and 1 is here"),
        ({"gpus": [gpu(problem="GPU 0 can't be used: GPU is lost.")]}, Limits(), "gpus", "GPU is lost"),
    ],
)
def test_driver_and_toolkit(changes, limits, check, words):
    checks = gpu_checks.judge_driver({**info(), **changes}, limits)
    assert results(checks)[check] == "failed" and words in message(checks, check)
    assert any(words in line for line in gpu_checks.failures(checks))


def test_without_a_toolkit_nothing_fails():
    assert results(gpu_checks.judge_driver(info(toolkit_version=""), Limits()))["toolkit"] == "skipped"


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"torch_": {**TORCH, "cuda": "12.4"}}, "cuda", "is built for CUDA 12.4, and 12.8 is needed"),
        ({"torch_": {**TORCH, "sum": 499499.0}}, "cuda", "it computes wrongly"),
        ({"torch_": {"error": "ModuleNotFoundError: No module named 'torch'"}}, "cuda", "No module named 'torch'"),
        ({"torch_": {"hung": 300.0, "gone": False, "lines": []}}, "cuda", "It can't be ended: it hangs in the kernel"),
        ({"torch_": {"died": -11, "lines": ["Segmentation fault"]}}, "cuda", "signal 11. Its last words: Segment"),
        ({"memory": {**MEMORY, "wrong_blocks": 2}}, "memory", "2 blocks of 256 MiB had something else in them"),
        ({"memory": {**MEMORY, "free_after_mib": 12000}}, "memory", "3000 MiB were not given back"),
        ({"memory": {"error": "OutOfMemoryError: CUDA out of memory."}}, "memory", "CUDA out of memory."),
        ({"memory": {"hung": 120.2, "gone": True, "lines": []}}, "memory", "did not end within 120 s and was ended"),
        ({"matrix": {**MATRIX, "error_relative": 0.3}}, "matrix", "differs from its reference by 0.3"),
        ({"matrix": {**MATRIX, "error_relative": math.nan}}, "matrix", "differs from its reference by nan"),
        ({"matrix": {"died": 1, "lines": []}}, "matrix", "ended with exit code 1"),
        ({"fp8": {**FP8, "wrong_codes": 3}}, "fp8", "3 of the 256 numbers of FP8 (E4M3)"),
        ({"fp8": {}}, "fp8", "The worker said nothing"),
    ],
)
def test_what_goes_wrong_on_one_gpu(changes, check, words):
    checks = gpu_checks.judge_gpu(gpu(), {**ALL, **changes}, Limits())
    assert results(checks)[check] == "failed" and words in message(checks, check), message(checks, check)
    if check != "cuda":
        assert list(results(checks).values()).count("failed") == 1


def test_memory_that_a_server_took_meanwhile_is_no_fault():
    checks = gpu_checks.judge_gpu(BUSY, {**ALL, "memory": {**MEMORY, "free_after_mib": 12000}}, Limits())
    assert results(checks)["memory"] == "passed"


def test_nccl_that_is_too_old():
    checks = gpu_checks.judge_together(info(), [SUM], [], "2.26.2", Limits())
    assert results(checks)["nccl"] == "failed" and "2.26.2, and 2.26.5 is needed" in message(checks, "nccl")


PEERS = [{"from": 0, "to": 1, "path": "PHB", "read": "chipset not supported", "write": "ok", "nvlink": "unknown"}]


def test_nccl_that_hangs_names_the_reasons():
    checks = gpu_checks.judge_together(info(peer_to_peer=PEERS), [ENDED, HUNG], [ENDED, HUNG], "2.28.9", Limits())
    said = message(checks, "all_reduce")
    for words in ("did not end within 120 s", "It doesn't work with NCCL_P2P_DISABLE=1 either", "ACS", "IOMMU",
                  "chipset not supported"):  # fmt: skip
        assert words in said


def test_nccl_that_hangs_and_what_helps():
    checks = gpu_checks.judge_together(info(), [HUNG, ENDED], [SUM, SUM], "2.28.9", Limits())
    assert results(checks)["all_reduce"] == "failed"
    assert "With NCCL_P2P_DISABLE=1 it works" in message(checks, "all_reduce")


def test_wrong_sums():
    wrong = {**SUM, "all_reduce": {**SUM["all_reduce"], "wrong_sizes": [1048576]}}
    said = message(gpu_checks.judge_together(info(), [SUM, wrong], [], "2.28.9", Limits()), "all_reduce")
    assert "The sums over all GPUs are wrong, for 1048576 bytes" in said


def test_one_gpu_alone():
    checks = gpu_checks.judge_together(info(), [SUM], [], "2.28.9", Limits())
    assert results(checks)["all_reduce"] == "passed" and "one GPU" in message(checks, "all_reduce")


# --- the numbers of FP8 ---------------------------------------------------------------------------------------------


def test_the_numbers_of_e4m3():
    numbers = [gpu_worker.decode_e4m3(code) for code in range(256)]
    assert max(number for number in numbers if not math.isnan(number)) == 448.0
    assert numbers[0x38] == 1.0 and numbers[0x01] == 2**-9 and numbers[0x08] == 2**-6 and numbers[0xB8] == -1.0
    assert [code for code, number in enumerate(numbers) if math.isnan(number)] == [0x7F, 0xFF]
    # Within one sign they grow with their codes.
    assert all(numbers[code] < numbers[code + 1] for code in range(0x7E))


# --- processes ------------------------------------------------------------------------------------------------------

WORKER = """
import json, sys, time
wish = json.loads(sys.argv[1])
def say(**what): print("phoenix-gpu " + json.dumps(what), flush=True)
say(check="torch_", begin=True)
if wish.get("first") == "hang": time.sleep(60)
if wish.get("first") == "error":
    say(check="torch_", error="ImportError: no torch"); sys.exit(0)
print("some library's words")
say(check="torch_", sum=1.0)
for name in wish["checks"]:
    say(check=name, begin=True)
    if name == "hangs": time.sleep(60)
    if name == "crashes": sys.stderr.write("CUDA error: an illegal instruction\\n"); sys.exit(7)
    say(check=name, gpu=wish["gpu"], **({"error": "it is broken"} if name == "fails" else {}))
"""
COMMAND = [sys.executable, "-c", WORKER]
QUICK = {"": 1.5, "torch_": 20.0}


def wish(number: int = 0, *checks: str, **more) -> dict:
    return {"gpu": number, "checks": list(checks), **more}


def test_what_hangs_or_crashes_costs_only_itself():
    one, two = gpu_runner.run_each(
        COMMAND, [wish(0, "a", "hangs", "b", "crashes", "c"), wish(1, "a", "b")], QUICK, {}
    )
    assert {name: "gpu" in found for name, found in one.items()} == {
        "torch_": False, "a": True, "hangs": False, "b": True, "crashes": False, "c": True,
    }  # fmt: skip
    assert one["hangs"]["hung"] >= 1.5 and one["hangs"]["gone"]
    assert one["crashes"] == {"died": 7, "lines": ["CUDA error: an illegal instruction"]}
    assert two == {"torch_": {"sum": 1.0}, "a": {"gpu": 1}, "b": {"gpu": 1}}


@pytest.mark.parametrize(("first", "word"), [("hang", "hung"), ("error", "error")])
def test_without_pytorch_nothing_is_tried_again(first, word):
    began = time.monotonic()
    found = gpu_runner.run_each(COMMAND, [wish(0, "a", first=first)], {"": 60.0, "torch_": 1.0}, {})[0]
    assert word in found["torch_"] and "a" not in found
    assert time.monotonic() - began < 20


def test_a_python_that_ends_at_once():
    found = gpu_runner.run_each([sys.executable, "-c", "raise SystemExit(3)"], [wish(0, "a")], QUICK, {})[0]
    assert found["torch_"]["died"] == 3


def test_those_that_work_together_end_together():
    wishes = [wish(0, "hangs", store="/x"), wish(1, "crashes", store="/x"), wish(2, "a", store="/y")]
    began = time.monotonic()
    one, two, three = gpu_runner.run(COMMAND, wishes, {"": 50.0, "torch_": 50.0}, {})
    assert one["hangs"]["ended"] and two["crashes"]["died"] == 7 and three["a"] == {"gpu": 2}
    assert time.monotonic() - began < 30


# --- the module -----------------------------------------------------------------------------------------------------


@pytest.fixture
def there(monkeypatch):
    """Let the module see a machine."""

    def see(found: dict) -> None:
        monkeypatch.setattr(gpu_info, "look", lambda *_: None)
        monkeypatch.setattr(gpu_info, "result", lambda _seen: found)

    return see


def test_a_machine_without_a_gpu_is_a_result(run_main, tmp_path, monkeypatch):
    # This one may have some.
    look = gpu_info.look
    monkeypatch.setattr(gpu_info, "look", lambda run, pythons: look(run, pythons, str(tmp_path)))
    found = run_main(gpu_check, python=str(tmp_path / "python"))
    assert not found["passed"] and not found["changed"]
    assert len(found["failures"]) == 1 and found["failures"][0].startswith("gpus: There is no NVIDIA GPU here")


def test_check_mode_runs_nothing(run_main, there):
    there(info(BUSY))
    found = run_main(gpu_check, check=True)
    assert found["skipped"] and "pid 812" in found["notes"][0] and "checks" not in found


def test_gpus_without_a_release(run_main, there, tmp_path):
    there(info())
    found = run_main(gpu_check, python=str(tmp_path / "python"))
    assert "the container needs the feature vllm" in found["failures"][0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory_fraction": 1.5}, "1.5 is no part of 1"), ({"timeout": 0}, "0 is no limit"),
        ({"cuda": "new"}, "'new' is no version"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(run_main, options, words):
    assert words in run_main(gpu_check, **options)["msg"]


@pytest.mark.parametrize(
    ("how", "environment", "helps"),
    [
        ("sys.exit(9)", {}, True),
        ("wrong = [1024]", {}, True),
        ("wrong = [1024]", {"NCCL_P2P_DISABLE": "0"}, True),
        # It was without already.
        ("wrong = [1024]", {"NCCL_P2P_DISABLE": "1"}, None),
    ],
)
def test_the_module_tries_without_p2p_what_failed(monkeypatch, how, environment, helps):
    """A worker that adds up right only without peer-to-peer."""
    source = """
import json, os, sys
wish = json.loads(sys.argv[1])
def say(**what): print("phoenix-gpu " + json.dumps(what), flush=True)
say(check="torch_", **{"torch": "2.13.0", "cuda": "13.0", "nccl": "2.28.9", "sum": 499500.0})
for name in wish["checks"]:
    say(check=name, begin=True)
    if name == "all_reduce":
        wrong = []
        if os.environ.get("NCCL_P2P_DISABLE") != "1": HOW
        say(check=name, world=2, wrong_sizes=wrong, bus_gb_per_s={"1024": 1.0})
    elif name == "memory":
        say(check=name, free_mib=15000, total_mib=16311, taken_mib=13312, free_after_mib=15000, wrong_blocks=0)
    else:
        say(check=name, error_relative=0.001, tflops=100.0, wrong_codes=0)
"""
    monkeypatch.setattr(gpu_check.inspect, "getsource", lambda _module: source.replace("HOW", how))
    # In isolated mode a "-c" program sees its words as any other does.
    checks = gpu_check.run_checks(info(gpu(), gpu(1)), sys.executable, Limits(), {"": 30, "torch_": 30}, environment)
    assert results(checks)["matrix"] == "passed"
    assert results(checks)["all_reduce"] == ("failed" if helps else "passed")
    assert ("With NCCL_P2P_DISABLE=1 it works" in message(checks, "all_reduce")) == bool(helps)


def test_the_checks_have_a_services_environment():
    around = {"PATH": "/bin", "SECRET": "x", "NCCL_NVLS_ENABLE": "0", "CUDA_VISIBLE_DEVICES": "1", "HOME": "/root"}
    assert gpu_check.environment_of({"LD_LIBRARY_PATH": "/usr/local/cuda/lib64", "N": 1}, around) == {
        "PATH": "/bin", "HOME": "/root", "NCCL_NVLS_ENABLE": "0", "CUDA_VISIBLE_DEVICES": "1",
        "LD_LIBRARY_PATH": "/usr/local/cuda/lib64", "N": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }  # fmt: skip


def test_the_checks_have_what_the_model_server_has_for_nccl(tmp_path):
    """The role nvidia may have switched peer-to-peer off; then that is what has to work."""
    unit = tmp_path / "unit"
    assert gpu_check.servers_environment(str(unit)) == {}
    unit.write_text(
        '[Service]\nEnvironment="NCCL_P2P_DISABLE=1"\nEnvironment="CUDA_VISIBLE_DEVICES=0"\nEnvironment="HF_HOME=/x"\n'
        'Environment="CUDA_HOME=/usr/local/cuda-13.0"\n'
    )
    server = gpu_check.servers_environment(str(unit))
    assert gpu_check.environment_of({}, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, server) == {
        "NCCL_P2P_DISABLE": "1", "CUDA_HOME": "/usr/local/cuda-13.0", "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
    }  # fmt: skip
    assert gpu_check.environment_of({"NCCL_P2P_DISABLE": 0}, {}, server)["NCCL_P2P_DISABLE"] == "0"
    assert gpu_check.environment_notes({}, server) == ["NCCL runs with NCCL_P2P_DISABLE=1, as the model server does."]
    assert gpu_check.environment_notes({"NCCL_P2P_DISABLE": 0}, server) == []


def test_a_part_is_made_visible_before_pytorch_looks(monkeypatch):
    seen = []

    class Torch:
        __version__ = "2.13.0"
        version = type("version", (), {"cuda": "13.0"})

        def __getattr__(self, name):
            seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
            return type("cuda", (), {"is_available": staticmethod(lambda: False)})

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setitem(sys.modules, "torch", Torch())
    assert "sees no GPU" in gpu_worker.Checks({"gpu": 0, "visible": "MIG-1", "checks": []}).torch_()["error"]
    assert set(seen) == {"MIG-1"}


def test_the_worker_needs_nothing_but_pytorch():
    """It is run as text, so it can't import what lies beside it."""
    for module in (gpu_worker,):
        text = Path(module.__file__).read_text()
        assert "ansible" not in text.replace("Ansible", "").split('"""', 2)[2]
