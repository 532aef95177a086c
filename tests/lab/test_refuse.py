# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml refuses what can't work with one sentence, before anything changes on the node."""
from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "inventories" / "lab"
PCT_CALLS = Path("/var/log/phoenix-lab/pct-calls.log")


def _calls() -> list[str]:
    """The calls of `pct` for the containers of the example. Other tests may be at work on others, and words
    of a call may have line ends in them."""
    return [line for line in PCT_CALLS.read_text().splitlines() if re.search(r"\b9[0-9]{2}\b", line.partition(" ")[2])]


def _run(folder: Path, overrides: dict, limit: str = "ctid_921") -> subprocess.CompletedProcess:
    """Run site.yml on the lab's inventory with these overrides on top."""
    source = (LAB / "lxc_configs.yml").read_text()
    source = source.replace("../example/", f"{LAB.parent}/example/")
    source = source.replace("[overrides.json]", f"[{LAB}/overrides.json, more.json]")
    (folder / "lxc_configs.yml").write_text(source)
    (folder / "more.json").write_text(json.dumps({"lxc_configs": overrides}))
    return subprocess.run(
        ["ansible-playbook", "-i", str(folder / "lxc_configs.yml"), "site.yml", "-l", limit],
        cwd=ROOT, env={**os.environ, "COLUMNS": "1000"}, capture_output=True, text=True, check=False,
    )


@pytest.mark.parametrize(
    ("overrides", "limit", "words"),
    [
        pytest.param({"901": {"features": ["nvidea"]}}, "ctid_921", "no role for feature nvidea", id="feature"),
        pytest.param({"901": {"features": ["nvidia"]}}, "ctid_921", "no NVIDIA kernel driver loaded", id="driver"),
        pytest.param({"921": {"application_script": "x.sh"}}, "ctid_921", "application_script x.sh", id="application"),
        pytest.param({"921": {"vllm_stack": "nope"}}, "ctid_921", "vllm_stack is nope", id="stack"),
        pytest.param({"921": {"vllm_stack": None}}, "ctid_921", "wants vLLM and names no stack", id="no stack"),
        pytest.param(
            {"921": {"vllm_engine_config": {"ModelConfig": {"max_modl_len": 5}}}}, "ctid_921",
            "the nearest that it has is max_model_len", id="engine argument",
        ),
        pytest.param(
            {"921": {"vllm_stack": "vllm-0.10.2-cu128", "gpu_assignment": "0",
                     "vllm_engine_config": {"ParallelConfig": {"tensor_parallel_size": 2}}}}, "ctid_921",
            "tensor_parallel_size is 2, and gpu_assignment gives the container 1 GPU (0)", id="GPUs",
        ),
        pytest.param(
            {ctid: {"vllm_stack": "vllm-0.10.2-cu128", "gpu_assignment": "0"} for ctid in ("921", "950")},
            "ctid_921,ctid_950", "the model servers on GPU 0 want 1.8 of its memory together", id="one GPU for two",
        ),
        pytest.param({"921": {"memory_mb": "much"}}, "ctid_921", "CTID 921, key memory_mb", id="value"),
        pytest.param({"901": {"clone_from_ctid": "921"}}, "ctid_921", "clone_from_ctid", id="circle"),
        pytest.param({}, "ctid_999", "CTID 999", id="unknown CTID"),
    ],
)
def test_one_sentence_and_nothing_changed(tmp_path, overrides, limit, words):
    calls = _calls()
    done = _run(tmp_path, overrides, limit)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert words in output
    assert "Traceback" not in output
    assert not re.search(r"changed=[1-9]", output)
    assert _calls() == calls
