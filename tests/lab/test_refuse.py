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


def _run(
    folder: Path, overrides: dict, limit: str = "ctid_921", certificates: str = "none", playbook: str = "site.yml"
) -> subprocess.CompletedProcess:
    """Run site.yml on the lab's inventory with these overrides on top, and this certificate_source."""
    source = (LAB / "lxc_configs.yml").read_text()
    source = source.replace("certificate_source: none", f"certificate_source: {certificates}")
    source = source.replace("../example/", f"{LAB.parent}/example/")
    source = source.replace("[overrides.json]", f"[{LAB}/overrides.json, more.json]")
    (folder / "lxc_configs.yml").write_text(source)
    (folder / "more.json").write_text(json.dumps({"lxc_configs": overrides}))
    return subprocess.run(
        ["ansible-playbook", "-i", str(folder / "lxc_configs.yml"), playbook, "-l", limit],
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


PLAIN = "nobody said how its model server is reached"
OWN = {"ssl_certfile": "/c.pem", "ssl_keyfile": "/k.pem"}


@pytest.mark.parametrize(
    ("server", "certificates", "said", "not_said"),
    [
        pytest.param({}, "''", PLAIN, "", id="nothing was said"),
        pytest.param({}, "none", "", PLAIN, id="plain HTTP on purpose"),
        pytest.param({}, "self_signed", "health_check asks for http://", PLAIN, id="a certificate"),
        pytest.param({"host": "127.0.0.1"}, "''", "", PLAIN, id="loopback"),
        pytest.param(OWN, "''", "health_check asks for http://", PLAIN, id="one's own"),
    ],
)
def test_plain_http_has_to_be_asked_for(tmp_path, server, certificates, said, not_said):
    """Only the check, without the run."""
    include = {"name": "Check", "ansible.builtin.import_tasks": str(ROOT / "playbooks/tasks/refuse.yml"),
               "vars": {"__lineage_hosts": ["ctid_921"]}}  # fmt: skip
    play = {"name": "Refuse", "hosts": "ctid_921", "gather_facts": False, "tasks": [include],
            "vars_files": [str(ROOT / "playbooks/vars/roles.yml")]}  # fmt: skip
    (tmp_path / "refuse.yml").write_text(json.dumps([play]))
    overrides = {"921": {"vllm_engine_config": {"ServerConfig": server},
                         "health_check": {"command": "curl -fsS http://localhost:8000/health"}}}  # fmt: skip
    done = _run(tmp_path, overrides, "ctid_921", certificates, str(tmp_path / "refuse.yml"))
    output = " ".join((done.stdout + done.stderr).split())
    assert (done.returncode != 0) == (said == PLAIN), output
    assert said in output and (not not_said or not_said not in output)
    if said == PLAIN:
        assert "CTID 921: nobody" in output and "It would answer on 10.92.0.121 in plain HTTP" in output
        assert all(f"{choice} (" in output for choice in ("step_ca", "files", "self_signed"))
        assert "or none, for plain HTTP on purpose" in output
    else:
        assert ("health_check asks for" in output) == (said != "")


def test_site_refuses_it_before_anything_changes(tmp_path):
    calls = _calls()
    done = _run(tmp_path, {}, certificates="''")
    assert done.returncode != 0 and PLAIN in done.stdout
    assert _calls() == calls and not re.search(r"changed=[1-9]", done.stdout)
