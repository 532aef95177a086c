# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the proof on a GPU needs none: what it takes from a unit, and its page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "gpu"))

import proof
import report

UNIT = r"""
[Service]
UnsetEnvironment=CUDA_HOME
Environment="HOME=/var/cache/vllm"
Environment="A=50%% \"of\" it"
Environment=PHOENIX_DIGEST=0123
ExecStart=/opt/vllm/bin/vllm serve "/models/a b%%$$c" --config /etc/vllm/engine-0123.yaml
"""
MACHINE = {
    "gpus": [{"name": "NVIDIA H100 80GB HBM3", "architecture": "Hopper"}] * 2, "driver": "580.1", "cuda_driver": "13.0",
    "toolkit": "", "processor": "Xeon", "cores": 32, "kernel": "6.18", "python": "3.12", "versions": {"vllm": "0.26.0"},
}  # fmt: skip


def test_a_unit_is_read_as_systemd_reads_it():
    environment, words = proof.parse_unit(UNIT)
    assert environment == {"HOME": "/var/cache/vllm", "A": '50% "of" it', "PHOENIX_DIGEST": "0123"}
    assert words == ["/opt/vllm/bin/vllm", "serve", "/models/a b%$c", "--config", "/etc/vllm/engine-0123.yaml"]


def test_the_definition_is_changed_by_a_patch_only():
    patch = proof.overrides(Path("/work/model"), {"ParallelConfig": {"tensor_parallel_size": 1}})
    config = patch["lxc_configs"]["921"]["vllm_engine_config"]
    assert config["ModelConfig"] == {"model": "/work/model"} and config["ParallelConfig"]["tensor_parallel_size"] == 1
    assert "quantization" not in json.dumps(patch)


def test_a_gpu_that_is_no_blackwell_is_said_to_be_none():
    assert "2 NVIDIA H100 80GB HBM3, Hopper, not Blackwell" in report.warning(MACHINE)
    blackwell = {**MACHINE, "gpus": [{"name": "RTX 5060 Ti", "architecture": "Blackwell"}]}
    assert report.warning(blackwell) == "Measured on 1 RTX 5060 Ti, Blackwell."
    assert "not a measurement" in report.warning({**MACHINE, "gpus": []})


def _row(name: str, on: float, off: float) -> dict:
    spread = [{"median": value, "least": value - 1, "most": value + 1} for value in (on, off)]
    return {"load": proof.LOADS[1], "figure": name, "on": spread[0], "off": spread[1], "chance": 0.2,
            "verdict": "better"}  # fmt: skip


def test_the_page_has_what_was_measured():
    result = {
        "date": "2026-11-28T01:00:00Z", "machine": MACHINE, "wrong": ["x: it was slow"],
        "asked": {"arguments": ["--release", "/opt/vllm"], "sampling": proof.SAMPLING},
        "starts": {"cold_seconds": 105.0, "warm_seconds": None},
        "rendered_to_hand_made": {"rounds": 4, "rows": [_row("output_tokens_per_second", 4400, 4300)]},
        "server_rendered": {"command": ["vllm", "serve"], "environment": {"A": "1"}, "log": ["Using FLASH_ATTN"],
                            "engine_config_file": "port: 8100\n"},
        "server_hand_made": {"error": "ended with 1", "log": [], "command": []},
    }  # fmt: skip
    page = report.page(result)
    for words in ("not Blackwell", "- x: it was slow", "| rendered, empty caches | 105.0 s |", "port: 8100",
                  "32 streams, 256 in, 256 out", "4,400 (4,399 to 4,401)", "1.023", "It did not answer",
                  "make gpu-proof ARGS='--release /opt/vllm'"):  # fmt: skip
        assert words in page
    assert "kept caches" not in page


@pytest.mark.parametrize("path", sorted((ROOT / "docs/benchmarks").glob("*/README.md")))
def test_kept_pages_say_which_gpu_it_was(path):
    result = json.loads((path.parent / "result.json").read_text())
    assert report.warning(result.get("first", result)["machine"]) in path.read_text()
