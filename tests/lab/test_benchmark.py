# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook benchmark.yml on a container of the lab, with programs in the place of vLLM and of its client.

One container (CTID 585) serves all tests of this file, in their order.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nvidia_site
import pytest
import yaml
from lab_modules import pct, require_lab, wait_until
from model_site import KEY, UNIT, VLLM, Site

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = str(ROOT / "playbooks/benchmark.yml")
CLIENT = Path(__file__).parents[1] / "support" / "bench_stand_in.py"
VMID, ADDRESS = 585, "10.92.0.55"
RELEASE = "fake-111111111111"
LOADS = [{"streams": 1, "input_tokens": 16, "output_tokens": 8}, {"streams": 4, "input_tokens": 16, "output_tokens": 8}]
RUNNING = "systemctl is-active vllm_benchmark.service"


class Bench(Site):
    """The container, and its results."""

    @property
    def results(self) -> Path:
        """The folder of the container's results."""
        return self.folder / "results" / str(self.vmid)

    def measure(self, *options: str, code: int = 0, **variables) -> str:
        """Run the playbook. Returns what was said."""
        return self.run(*options, playbook=PLAYBOOK, code=code, **variables)

    def latest(self) -> dict:
        """The last result."""
        return json.loads(max(self.results.glob("2*.json")).read_text())

    def accepted(self) -> dict:
        """The accepted one."""
        return json.loads((self.results / "accepted.json").read_text())

    def says(self, name: str, text: str) -> None:
        """Put a file that the client reads into the model's folder, or remove it."""
        self.inside(f"echo '{text}' >/models/good/{name}" if text else f"rm -f /models/good/{name}")

    def history(self) -> str:
        """The states that can be gone back to."""
        return self.inside("cat /var/lib/vllm_model_server/history.json")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Bench]:
    """A container whose server answers, with a stack that is one for GPUs."""
    require_lab()
    site = Bench(VMID, ADDRESS, tmp_path_factory.mktemp("site"))
    (site.folder / "stacks/fake/stack.yml").write_text(yaml.safe_dump({"name": "fake", "gpu": True}))
    site.variables = {
        "benchmark_folder": str(site.folder / "results"), "benchmark_loads": LOADS[:1], "benchmark_repeats": 2,
        "benchmark_warm_up": False, "benchmark_plot": False, "vllm_model_server_watchdog_limit": 0,
    }  # fmt: skip
    try:
        site.create(("good",), (RELEASE,))
        program = site.folder / "vllm"
        program.write_text(f"#!/usr/bin/python3\n{CLIENT.read_text()}\n{VLLM.read_text()}")
        pct("push", str(VMID), str(program), f"/opt/vllm-releases/{RELEASE}/bin/vllm", "--perms", "0755")
        record = {"release": RELEASE, "stack": "fake", "vllm": "0.10.2", "torch": "2.8.0", "flashinfer": "0.3.1"}
        site.inside(f"echo '{json.dumps(record)}' >/opt/vllm-releases/{RELEASE}/release.json")
        site.run()
        yield site
    finally:
        site.close()


def test_check_mode_says_what_would_be_measured(site):
    said = site.measure("--check", benchmark_repeats=3)
    assert "3 runs of 1 stream, 16 in, 8 out: 8 requests each" in said and "changed=0" in said
    assert not site.results.exists()
    assert site.inside("ls -d /var/lib/vllm_benchmark /run/vllm_benchmark 2>&1 | grep -c 'No such'") == "2"


def test_the_first_run_is_accepted(site, monkeypatch):
    monkeypatch.setenv("ANSIBLE_SHOW_CUSTOM_STATS", "true")
    said = site.measure(benchmark_loads=LOADS, benchmark_repeats=3, benchmark_warm_up=True, benchmark_plot=True)
    assert "It is the first result, so it is the accepted one from now on." in said and "changed=0" in said
    result = site.latest()
    assert site.accepted() == result
    assert (result["schema_version"], result["ctid"], result["node"]) == (1, VMID, "pve")
    assert (result["model"], result["release"], result["stack"]) == ("/models/good", RELEASE, "fake")
    assert result["versions"]["vllm"] == "0.10.2" and result["hardware"]["cores"] >= 1 and result["gpus"] == []
    assert "port: 8000" in result["engine_config"] and result["sampler_used"] == "flashinfer"
    assert [len(row["figures"]["first_token_ms"]["values"]) for row in result["summary"]] == [3, 3]
    # Each run had a seed of its own, and so requests of its own.
    assert len({run["seed"] for run in result["runs"]}) == 6
    assert 110 < result["summary"][0]["figures"]["output_tokens_per_second"]["median"] < 112
    files = sorted(path.suffix for path in site.results.glob("2*"))
    assert files == [".json", ".png", ".svg", ".txt"]
    assert next(site.results.glob("*.png")).read_bytes().startswith(b"\x89PNG")
    # AWX keeps it with the job.
    assert "benchmark_results: ctid_585: ctid: 585" in said.partition("CUSTOM STATS")[2]
    # Nothing that has the key is left, and the client was not root.
    assert KEY not in site.inside("cat /var/lib/vllm_benchmark/client.log; ls /run/vllm_benchmark")
    assert site.inside("ls /run/vllm_benchmark") == "asked"
    assert site.inside("stat -c '%U %a' /var/lib/vllm_benchmark") == "vllm 700"


def test_the_next_run_is_compared_and_changes_nothing(site):
    accepted, history = site.accepted(), site.history()
    said = site.measure(benchmark_loads=LOADS, benchmark_repeats=1)
    assert "Nothing was lost against the accepted run of" in said and "That stays the accepted one." in said
    assert site.accepted() == accepted and site.latest()["date"] != accepted["date"]
    assert site.latest()["seed"] != accepted["seed"] and site.history() == history


@pytest.mark.full
def test_the_sampler_on_and_off_and_the_server_as_it_was(site):
    """The only test with eight restarts of the server; each is one of a program that loads nothing."""
    history, digest = site.history(), site.inside(f"grep PHOENIX_DIGEST /etc/systemd/system/{UNIT}")
    said = site.measure(benchmark_sampler=True, benchmark_accept=True)
    sampler = site.latest()["sampler"]
    assert sampler["rounds"] == 4 and sampler["used"] == {"on": ["flashinfer"], "off": ["pytorch"]}
    row = sampler["comparison"][0]
    assert row["verdict"] == "better" and 9 < row["gain_percent"] < 11 and row["chance"] < 0.05
    assert "The gain of 20 % that the plan expects on FP8 was not seen (at most" in said
    assert "on is better by" in said
    # What the other server was is no state to go back to.
    assert site.history() == history
    assert site.inside(f"grep PHOENIX_DIGEST /etc/systemd/system/{UNIT}") == digest
    assert "changed=0" in site.run()


@pytest.mark.full
def test_the_sampler_of_a_server_with_nvidia_s_settings(site):
    """What the role nvidia gives the server is in the declared one, too; else there was nothing to be compared."""
    root = site.folder / "node"
    nvidia_site.node_root(root, "580.95.05")
    nvidia = {"nvidia_version_file": str(root / "proc/driver/nvidia/version"), "nvidia_node_root": str(root),
              "nvidia_store": str(site.folder / "store"), "nvidia_stack": "", "nvidia_gpus": []}  # fmt: skip
    play = site.folder / "nvidia.yml"
    roles = [{"ansible.builtin.include_role": {"name": f"phoenix.hypervisor.{name}"}}
             for name in ("nvidia", "vllm_model_server")]  # fmt: skip
    play.write_text(yaml.safe_dump([{"hosts": "phoenix_containers", "gather_facts": False, "tasks": roles}]))
    before = dict(site.variables)
    try:
        site.variables.update(nvidia)
        site.run(playbook=str(play))
        site.variables["phoenix_features"] = ["nvidia"]
        site.measure(benchmark_sampler=True, benchmark_sampler_rounds=1, benchmark_accept=True)
        sampler = site.latest()["sampler"]
        assert "problem" not in sampler and sampler["rounds"] == 1
        assert site.inside(f"grep -c PHOENIX_NVIDIA_DRIVER=580.95.05 /etc/systemd/system/{UNIT}") == "1"
        assert "changed=0" in site.run(playbook=str(play))
    finally:
        site.variables.clear()
        site.variables.update(before)
        site.run()


def test_other_loads_are_not_compared(site):
    said = site.measure(benchmark_loads=LOADS[1:])
    assert "It is not compared with the accepted run of" in said and "the loads were 1 stream, 16 in, 8 out, 8" in said
    assert not list(site.results.glob(max(site.results.glob("2*.json")).stem + ".png"))


def test_a_loss_fails_the_run_and_goes_back_where_asked(site):
    site.says("speed", "")
    site.measure(benchmark_accept=True)
    # Another state, with which the server is slower.
    slower = site.engine_config("good", max_num_seqs=1)
    good = site.inside("readlink -f /etc/vllm/engine.yaml")
    site.run(**slower)
    site.says("speed", "80")
    said = site.measure(code=2, benchmark_rollback=True, **slower)
    assert "tokens per second fell from 11" in said and "limit 5 %" in said and "LOST" in said
    assert site.latest()["verdict"]["passed"] is False and site.accepted()["verdict"]["passed"] is True
    assert "The server was taken back to the state of the accepted run" in said
    assert site.inside("readlink -f /etc/vllm/engine.yaml") == good
    entry = json.loads(site.inside("tail -n 1 /var/lib/vllm_model_server/rollbacks.jsonl"))
    assert entry["why"].startswith("A benchmark was worse than the accepted one: 1 stream") and entry["answered"]
    site.says("speed", "")


@pytest.mark.full
def test_a_loss_that_is_not_the_state_s_is_told_and_can_be_accepted(site):
    site.measure(benchmark_accept=True)
    site.says("speed", "80")
    assert "benchmark_rollback goes back to the state of that run" in site.measure(code=2)
    said = site.measure(code=2, benchmark_rollback=True)
    assert "so what was lost was lost by something else, and there is nothing to go back to" in said
    said = site.measure(benchmark_accept=True)
    assert "It is worse than the accepted run" in said and "accepted all the same (benchmark_accept)" in said
    site.says("speed", "")


@pytest.mark.parametrize(("how", "message"), [
    ("absent", "This release's vLLM has no benchmark client: it needs vLLM 0.9.2 or newer."),
    ("half", "4 of 8 requests were answered. The first error: aiohttp.client_exceptions.ServerDisconnectedError"),
])  # fmt: skip
def test_a_client_that_can_t_is_told_of(site, how, message):
    before = sorted(site.results.iterdir())
    site.says("client", how)
    try:
        said = site.measure(code=2)
    finally:
        site.says("client", "")
    assert message in said and "All that the client said is in /var/lib/vllm_benchmark/client.log" in said
    assert sorted(site.results.iterdir()) == before
    assert site.inside(f"{RUNNING} || true") == "inactive"


def test_a_sampler_that_can_t_be_compared_leaves_the_server_and_the_result(site):
    """The client fails in the second turn, while the server has the sampler off."""
    before, history = site.main_pid(), site.history()
    process = site.start(playbook=PLAYBOOK, benchmark_sampler=True, benchmark_sampler_rounds=1)
    site.until(process, lambda: "SAMPLER=0" in site.inside(f"cat /etc/systemd/system/{UNIT}"), 120)
    site.says("client", "half")
    said = " ".join(process.communicate(timeout=300)[0].split())
    site.says("client", "")
    assert process.returncode == 2, said
    assert "the sampler was not compared. 1 stream, 16 in, 8 out: warm-up: 1 of 2 requests were answered" in said
    assert site.latest()["sampler"]["problem"] and site.latest()["verdict"]["passed"]
    assert "SAMPLER=1" in site.inside(f"cat /etc/systemd/system/{UNIT}") and site.main_pid() != before
    # The state that was tried out is none to go back to.
    assert site.history() == history
    assert "changed=0" in site.run()


def test_a_server_that_ends_meanwhile_ends_the_run(site):
    site.says("client", "slow-60")
    process = site.start(playbook=PLAYBOOK)
    site.until(process, lambda: site.inside(f"{RUNNING} || true") == "active", 60)
    # Two at a time would measure each other.
    assert "Another benchmark of this server is being run" in site.measure(code=2)
    site.inside(f"systemctl restart {UNIT}")
    said = " ".join(process.communicate(timeout=120)[0].split())
    site.says("client", "")
    assert process.returncode == 2 and "The server was restarted while it was measured" in said
    assert "[ctid_585] 1 stream, 16 in, 8 out: run 1 of 2" in said
    assert site.inside(f"{RUNNING} || true") == "inactive"
    wait_until(site.answers, 30)


def test_a_server_that_is_not_ready_is_told_of(site):
    site.inside(f"systemctl stop {UNIT}")
    said = site.measure(code=2)
    site.inside(f"systemctl start {UNIT}")
    assert f"There is nothing to measure: {UNIT} is inactive" in said
    wait_until(site.answers, 30)
    site.inside("touch /models/good/refuses")
    said = site.measure(code=2)
    site.inside("rm /models/good/refuses")
    assert "The server is not ready: it answers on port 8000, but refuses" in said


def test_what_is_wrong_on_the_control_node_is_told_before_anything_is_measured(site, tmp_path):
    """A damaged result, wrong limits and loads, and a full disk (a tmpfs with room for little)."""
    accepted = site.results / "accepted.json"
    whole = accepted.read_text()
    accepted.write_text(whole[:1000])
    said = site.measure(code=2)
    accepted.write_text(whole)
    assert "accepted.json is damaged: it is no JSON. Remove it, and the next run is accepted as the first" in said
    said = site.measure(code=2, benchmark_loss_limit={"speed": 1})
    assert "benchmark_loss_limit has speed, which is no figure" in said
    assert "load 1 has no output_tokens" in site.measure(code=2, benchmark_loads=[{"streams": 1, "input_tokens": 1}])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        said = site.measure(code=2, benchmark_folder=str(tmp_path))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert "can't be kept in" in said and "No space left on device. Make room" in said
    assert "Measure the server as it is" not in said


@pytest.mark.full
def test_a_run_that_nobody_waits_for_any_more_ends(site):
    site.says("client", "slow-600")
    process = site.start(playbook=PLAYBOOK)
    site.until(process, lambda: site.inside(f"{RUNNING} || true") == "active", 60)
    # ansible-core's workers are in sessions of their own, and notice it by themselves.
    process.kill()
    process.wait()
    wait_until(lambda: site.inside(f"{RUNNING} || true") == "inactive", 240)
    site.says("client", "")
    assert "Nobody has asked for the result" in site.inside("cat /var/lib/vllm_benchmark/status.json")
    assert "changed=0" in site.measure()
