# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook benchmark.yml with the real vLLM, on a CPU, and its own benchmark client. Needs a lab that is up.

One container (CTID 586). The figures mean nothing: a model of two layers, on a machine that does other things, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab_modules import OSTEMPLATE, destroy, inside, pct, require_lab, start

pytestmark = [pytest.mark.lab, pytest.mark.full]

ROOT = Path(__file__).resolve().parents[2]
VMID, ADDRESS = 586, "10.92.0.56"
KEY = "s3cret-of-this-test"
LOADS = [{"streams": 1, "input_tokens": 32, "output_tokens": 16, "prompts": 4},
         {"streams": 4, "input_tokens": 32, "output_tokens": 16, "prompts": 8}]  # fmt: skip
VARIABLES = {
    "ansible_connection": "phoenix.hypervisor.pct", "ansible_pct_vmid": VMID, "ansible_pct_node_connection": "local",
    "ansible_host": "localhost", "ansible_python_interpreter": "/usr/bin/python3", "phoenix_node": "pve",
    "container_address": ADDRESS, "vllm_stack_name": "cpu", "vllm_model_server_api_key": KEY,
    "vllm_model_server_engine_config": {
        "ModelConfig": {"model": "/models/tiny", "load_format": "dummy", "dtype": "float32", "max_model_len": 256,
                        "enforce_eager": True},
        "ServerConfig": {"port": 8000, "served_model_name": "tiny one"},
    },
    "benchmark_loads": LOADS, "benchmark_repeats": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Path]:
    """A container with the real vLLM and a tiny model. Gives the folder of the inventory."""
    require_lab()
    folder = tmp_path_factory.mktemp("site")
    destroy(VMID)
    pct(
        "create", str(VMID), OSTEMPLATE, "--hostname", f"vllm{VMID}", "--memory", "6144", "--cores", "2",
        "--rootfs", "local-btrfs:8", "--unprivileged", "1", "--features", "nesting=1",
        "--net0", f"name=eth0,bridge=vmbr0,ip={ADDRESS}/24,gw=10.92.0.1",
    )  # fmt: skip
    subprocess.run(["ip", "neigh", "flush", "to", ADDRESS], check=True)
    try:
        start(VMID)
        pct("push", str(VMID), str(ROOT / "lab/tiny_llama.py"), "/root/tiny_llama.py")
        inside(VMID, "mkdir /models && python3 /root/tiny_llama.py /models/tiny && chmod -R a+rX /models")
        tasks = [{"ansible.builtin.include_role": {"name": f"phoenix.hypervisor.{role}"}}
                 for role in ("vllm_stack", "vllm_model_server")]  # fmt: skip
        play = [{"hosts": f"ctid_{VMID}", "gather_facts": False, "tasks": tasks}]
        (folder / "play.yml").write_text(yaml.safe_dump(play))
        run(folder, str(folder / "play.yml"))
        yield folder
    finally:
        destroy(VMID)


def run(folder: Path, playbook: str = "playbooks/benchmark.yml", code: int = 0, **variables) -> str:
    """Run a playbook. Returns what was said, in one line."""
    node = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    container = {**VARIABLES, "benchmark_folder": str(folder / "results"), **variables}
    inventory = {"all": {"hosts": {"pve": node}, "children": {"phoenix_containers": {
        "hosts": {f"ctid_{VMID}": container}}}}}  # fmt: skip
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(folder / "hosts.yml"), playbook],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=1200, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                           "COLUMNS": "9999"},
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    assert KEY not in done.stdout and 'File "<' not in done.stdout
    return " ".join(done.stdout.replace("''", "'").split())


def test_real_figures(site):
    said = run(site)
    assert "It is the first result" in said and "changed=0" in said
    assert f"[ctid_{VMID}] 1 stream, 32 in, 16 out: warm-up" in said
    result = json.loads((site / "results" / str(VMID) / "accepted.json").read_text())
    assert result["versions"]["vllm"].startswith("0.32.0") and result["stack"] == "cpu"
    assert result["release"].startswith("cpu-") and "max-model-len: 256" in result["engine_config"]
    assert (result["model"], result["served_name"], result["gpus"]) == ("/models/tiny", "tiny one", [])
    for load, row in zip(LOADS, result["summary"]):
        assert row["load"] == load
        figures = row["figures"]
        for name in ("output_tokens_per_second", "first_token_ms", "inter_token_ms", "request_ms"):
            assert 0 < figures[name]["least"] <= figures[name]["median"] <= figures[name]["most"]
        # A request is its first token and the fifteen after it.
        whole = figures["first_token_ms"]["median"] + 15 * figures["inter_token_ms"]["median"]
        assert 0.5 * whole < figures["request_ms"]["median"] < 2 * whole
    assert [run["figures"]["output_tokens"] for run in result["runs"]] == [64, 128] * 2
    log = inside(VMID, "cat /var/lib/vllm_benchmark/client.log")
    assert KEY not in log and "Serving Benchmark Result" in log
    assert list((site / "results" / str(VMID)).glob("*.svg"))


def test_what_the_real_client_can_t_do_is_told_in_a_sentence(site):
    said = run(site, code=2, benchmark_api_key="wr0ng-key")
    assert "The server wants another API key than the one of its own unit (benchmark_api_key)" in said
    said = run(site, code=2, benchmark_model="nobody")
    assert "The server doesn't know this model name" in said
    said = run(site, code=2, benchmark_tokenizer="/models/nowhere")
    assert "The client can't load the model's tokenizer: benchmark_tokenizer names one" in said
    said = run(site, code=2, benchmark_loads=[{"streams": 1, "input_tokens": 300, "output_tokens": 16}])
    assert "that is more than the 256 tokens of the server's max_model_len" in said
    assert "Traceback" not in said


def test_there_is_no_sampler_to_compare_on_a_cpu(site):
    said = run(site, code=2, benchmark_sampler=True, benchmark_repeats=1, benchmark_loads=LOADS[:1])
    assert "With the sampler on and off the server is the same: its stack has no GPU" in said
