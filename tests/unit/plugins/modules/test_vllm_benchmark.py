# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_benchmark: what it learns from the server's state, what it refuses, how it follows; the rest is in the lab."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_guard
from ansible_collections.phoenix.hypervisor.plugins.module_utils.benchmark_client import BenchmarkError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import Target
from ansible_collections.phoenix.hypervisor.plugins.modules import vllm_benchmark

LOADS = [{"streams": 1, "input_tokens": 256, "output_tokens": 256}]
SHOW = "ActiveState=active\nSubState=running\nMainPID=4711\nInvocationID=cafe\nResult=success\n"


class Ended(Exception):
    """What the module returned."""


@pytest.fixture
def target(tmp_path) -> Target:
    """The state of a server whose release is there."""
    release = tmp_path / "releases" / "vllm-0123"
    (release / "bin").mkdir(parents=True)
    (release / "bin" / "vllm").write_text("")
    record = {"stack": "cu128", "vllm": "0.10.2", "torch": "2.8.0", "cuda": "12.8", "flashinfer": "0.3.1"}
    (release / "release.json").write_text(json.dumps(record))
    unit = (
        f"Environment=VLLM_LOGGING_LEVEL=DEBUG\nEnvironment=HOME=/x\n"
        f"ExecStart={release}/bin/vllm serve /models/org/.llama/0123456789abcdef --config /etc/vllm/engine-1.yaml\n"
    )
    probe = {"host": "127.0.0.1", "port": 8000, "tls": False, "path": "/v1/completions", "body": {}, "key": "s3cret"}
    config = 'max-model-len: 8192\napi-key: "x1"\nport: 8000\n'
    return Target("0123", unit, config, "", str(release), "/c", probe, "llama")


@pytest.fixture
def make(tmp_path, monkeypatch, target):
    """A function that makes a Benchmark whose server has this state. Its commands are answered by C(said)."""
    run = tmp_path / "run"
    run.mkdir()
    for name, path in {"RUN": run, "ASKED": run / "asked", "JOB": run / "job.json", "STATUS": tmp_path / "status.json",
                       "PROGRAM": tmp_path / "lib" / "client.py", "WORK": tmp_path}.items():  # fmt: skip
        monkeypatch.setattr(vllm_benchmark, name, str(path))
    monkeypatch.setattr(vllm_benchmark, "LOOK", 0.01)
    monkeypatch.setattr(vllm_benchmark, "CALM", 0.05)
    monkeypatch.setattr(vllm_benchmark.shutil, "which", lambda name: None)
    (tmp_path / "states").mkdir()

    def maker(state: Target | None = target, said: dict | None = None, check: bool = False, **options):
        calls: list[list[str]] = []
        answers = {"systemctl show vllm_model_server.service": SHOW, **(said or {})}

        def command(words):
            calls.append(words)
            line = " ".join(words)
            return 0, next((text for start, text in answers.items() if line.startswith(start)), ""), ""

        def end(**result):
            raise Ended(result)

        if state:
            (tmp_path / "states" / "0123.json").write_text(state.to_json())
        parameters = {
            "loads": LOADS, "repeats": 4, "warm_up": True, "sampling": {"top_k": 50}, "seed": 0, "url": "", "model": "",
            "tokenizer": "", "api_key": "", "ca_file": "", "timeout": 3600, "name": "vllm_model_server.service",
            "state_folder": str(tmp_path), "user": "nobody", "wait": 1, "waiting": {}, **options,
        }  # fmt: skip
        module = SimpleNamespace(params=parameters, run_command=command, exit_json=end, check_mode=check,
                                 no_log_values=set(), warn=lambda text: calls.append(["warn", text]))  # fmt: skip
        made = vllm_benchmark.Benchmark(module)
        made.calls = calls
        made.environment = lambda pid: {"PHOENIX_DIGEST": "0123", "HF_HOME": "/c/hf", "VLLM_API_KEY": "s3cret"}
        return made

    return maker


def changed(target: Target, **change) -> Target:
    """The state with something else."""
    return Target(**{**target.__dict__, **change})


def test_the_job_is_made_from_the_server_s_own_state(make, target):
    made = make()
    job = made.job(*made.state())
    assert job["program"] == [f"{target.release}/bin/vllm"] and job["url"] == "http://127.0.0.1:8000"
    assert (job["model"], job["tokenizer"]) == ("llama", "/models/org/.llama/0123456789abcdef")
    assert (job["api_key"], job["unit"], job["pid"]) == ("s3cret", "vllm_model_server.service", 4711)
    assert job["environment"] == {"HF_HOME": "/c/hf"} and job["trust_remote_code"] is False and job["ca_file"] == ""
    assert job["loads"][0]["prompts"] == 8 and job["repeats"] == 4


def test_two_jobs_have_other_prompts_unless_a_seed_is_given(make):
    made = make()
    seeds = {made.job(*made.state())["seed"] for _number in range(20)}
    # Each run of a job takes the next number.
    assert len(seeds) > 15 and all(seed % 1000 == 0 for seed in seeds)
    again = make(seed=42)
    assert again.job(*again.state())["seed"] == 42


def test_what_is_given_wins(make):
    made = make(url="https://llm:443", model="m", tokenizer="/t", api_key="k", ca_file="/ca.pem")
    job = made.job(*made.state())
    assert [job[name] for name in ("url", "model", "tokenizer", "api_key", "ca_file")] == [
        "https://llm:443", "m", "/t", "k", "/ca.pem",
    ]  # fmt: skip


def test_settings_of_the_tokenizer_are_the_server_s(make, target):
    config = "tokenizer: /models/t\ntokenizer-mode: mistral\ntrust-remote-code: true\n"
    made = make(changed(target, config=config))
    job = made.job(*made.state())
    assert (job["tokenizer"], job["tokenizer_mode"], job["trust_remote_code"]) == ("/models/t", "mistral", True)


@pytest.mark.parametrize(("tls", "url", "ca"), [
    (True, "https://127.0.0.1:8000", ""),
    ({"ca": "/ca.pem", "name": "llm.example"}, "https://llm.example:8000", "/ca.pem"),
])  # fmt: skip
def test_a_server_with_tls_is_asked_by_the_name_that_it_has(make, target, tls, url, ca):
    made = make(changed(target, probe={**target.probe, "tls": tls}))
    job = made.job(*made.state())
    assert (job["url"], job["ca_file"]) == (url, ca)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"loads": []}, {}, "benchmark_loads has no load"),
        ({"loads": [{**LOADS[0], "input_tokens": 8000}]}, {}, "that is more than the 8192 tokens of the server"),
        ({"sampling": {"top": 1}}, {}, "benchmark_sampling has top"),
        ({"repeats": 0}, {}, "benchmark_repeats and benchmark_timeout should be 1 or more"),
        ({"timeout": 0}, {}, "benchmark_repeats and benchmark_timeout should be 1 or more"),
        ({"url": "llm:8000"}, {}, "benchmark_url is 'llm:8000'"),
        ({}, {"release": "/nowhere/r-1"}, "The release r-1 that the server runs on is not there any more"),
        ({}, {"probe": {"path": "/v1/embeddings", "host": "h", "port": 1}}, "The server answers with embeddings"),
    ],
)
def test_what_can_t_be_measured_is_refused(make, target, options, change, message):
    made = make(changed(target, **change), **options)
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        made.job(*made.state())


@pytest.mark.parametrize(("show", "message"), [
    ("ActiveState=failed\nMainPID=0\n", "There is nothing to measure: vllm_model_server.service is failed."),
    ("ActiveState=activating\nMainPID=12\n", "vllm_model_server.service is activating."),
    ("", "vllm_model_server.service is unknown."),
])  # fmt: skip
def test_no_server_nothing_to_measure(make, show, message):
    made = make(said={"systemctl show vllm_model_server.service": show})
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        made.begin()


def test_a_server_of_somebody_else_is_not_known(make):
    with pytest.raises(BenchmarkError, match=r"Nobody knows how to ask .*0123\.json.*Run site\.yml first"):
        make(None).begin()


def test_check_mode_only_looks(make, target):
    made = make(check=True, said={"journalctl": "Using FlashInfer for top-p & top-k sampling."})
    with pytest.raises(Ended) as ended:
        made.begin()
    result = ended.value.args[0]
    assert result["plan"] == ["4 runs of 1 stream, 256 in, 256 out: 8 requests each"] and result["measured"] == {}
    server = result["server"]
    assert (server["model"], server["revision"]) == ("/models/org/llama", "0123456789abcdef")
    assert (server["release"], server["stack"], server["digest"]) == ("vllm-0123", "cu128", "0123")
    versions = {"vllm": "0.10.2", "torch": "2.8.0", "cuda": "12.8", "flashinfer": "0.3.1", "python": ""}
    assert server["versions"] == versions
    assert server["sampler_used"] == "flashinfer" and server["environment"] == {"VLLM_LOGGING_LEVEL": "DEBUG"}
    assert server["hardware"]["cores"] >= 1 and server["gpus"] == []
    assert "s3cret" not in json.dumps(result) and "x1" not in json.dumps(result)
    assert not any(words[0] == "systemd-run" for words in made.calls)


def test_gpus_are_the_hardware(make, monkeypatch):
    monkeypatch.setattr(vllm_benchmark.shutil, "which", lambda name: f"/usr/bin/{name}")
    line = "NVIDIA H200, GPU-1, 143771, 580.65.06, 9.0, 700.00\n"
    made = make(check=True, said={"/usr/bin/nvidia-smi": line * 2})
    with pytest.raises(Ended) as ended:
        made.begin()
    server = ended.value.args[0]["server"]
    assert server["hardware"] == {"gpus": ["NVIDIA H200"] * 2} and server["driver"] == "580.65.06"


def test_a_server_that_does_not_answer_is_not_measured(make, monkeypatch):
    seen = server_guard.Seen("silence", "no answer on port 8000")
    monkeypatch.setattr(server_guard, "ask", lambda probe, seconds: seen)
    with pytest.raises(BenchmarkError, match="The server is not ready: no answer on port 8000"):
        make().begin()


@pytest.mark.parametrize(("age", "refused"), [(0, True), (30, True), (90, False)])
def test_a_benchmark_that_somebody_waits_for_is_left_alone(make, age, refused):
    made = make(said={"systemctl show vllm_benchmark.service": "ActiveState=active\n"})
    Path(vllm_benchmark.ASKED).write_text("")
    os.utime(vllm_benchmark.ASKED, (time.time() - age,) * 2)
    Path(vllm_benchmark.STATUS).write_text(json.dumps({"progress": "run 2 of 4"}))
    if refused:
        with pytest.raises(BenchmarkError, match=r"Another benchmark of this server is being run \(run 2 of 4\)"):
            made.make_room()
    else:
        made.make_room()
        assert ["systemctl", "stop", "vllm_benchmark.service"] in made.calls and made.calls[1][0] == "warn"


def follow(made, status: dict | None, active: str = "active"):
    """Call watch, with this status there."""
    Path(vllm_benchmark.ASKED).write_text("")
    Path(vllm_benchmark.JOB).write_text("s3cret")
    if status is not None:
        Path(vllm_benchmark.STATUS).write_text(json.dumps(status))
    facts = {"digest": "0123", "sampler_used": ""}
    with pytest.raises(Ended) as ended:
        made.watch({"id": "abc", "plan": ["p"], "server": facts, "told": "old"})
    return ended.value.args[0]


ACTIVE = {"systemctl show vllm_benchmark.service": "ActiveState=active\n"}


def test_progress_is_told_and_asked_for_again(make):
    result = follow(make(said=ACTIVE), {"id": "abc", "progress": "run 1 of 4", "done": False})
    assert result["running"] and result["progress"] == "run 1 of 4" and result["changed"] is False
    assert result["again"]["waiting"]["told"] == "run 1 of 4" and result["again"]["wait"] == 1
    # What has the key is gone once the program has read it.
    assert not Path(vllm_benchmark.JOB).exists()


def test_what_another_run_said_is_not_taken(make):
    result = follow(make(said=ACTIVE, wait=0), {"id": "other", "progress": "x", "done": True, "measured": {}})
    assert result["progress"] == "the benchmark begins" and Path(vllm_benchmark.JOB).exists()


def test_the_end_is_the_result(make):
    said = {"journalctl": "FlashInfer top-p/top-k sampling disabled via x"}
    result = follow(make(said=said), {"id": "abc", "progress": "x", "done": True, "measured": {"runs": [1]}})
    assert (result["measured"], result["plan"], result["server"]["sampler_used"]) == ({"runs": [1]}, ["p"], "pytorch")


@pytest.mark.parametrize(("status", "message"), [
    ({"id": "abc", "done": True, "error": "It broke."}, "It broke.\nAll that the client said is in"),
    ({"id": "abc", "done": False}, "The benchmark ended without a result"),
    (None, "The benchmark ended without a result"),
])  # fmt: skip
def test_an_end_without_a_result_is_told(make, status, message):
    made = make()
    Path(vllm_benchmark.ASKED).write_text("")
    Path(vllm_benchmark.JOB).write_text("s3cret")
    if status:
        Path(vllm_benchmark.STATUS).write_text(json.dumps(status))
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        made.watch({"id": "abc", "plan": [], "server": {"digest": "0123"}})
    assert not Path(vllm_benchmark.JOB).exists()


def test_a_server_that_was_changed_meanwhile_is_told(make, target):
    made = make()
    made.state = lambda: (changed(target, digest="4567"), 1, {})
    Path(vllm_benchmark.ASKED).write_text("")
    Path(vllm_benchmark.STATUS).write_text(json.dumps({"id": "abc", "done": True, "measured": {}}))
    with pytest.raises(BenchmarkError, match="was changed while it was measured"):
        made.watch({"id": "abc", "plan": [], "server": {"digest": "0123"}})


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_status_is_none(make, content):
    make()
    Path(vllm_benchmark.STATUS).write_text(content)
    assert vllm_benchmark.read_status() == {}


def test_no_link_is_followed_to_a_status(make, tmp_path):
    make()
    (tmp_path / "secret").write_text('{"progress": "root:x"}')
    Path(vllm_benchmark.STATUS).symlink_to(tmp_path / "secret")
    assert vllm_benchmark.read_status() == {}


def test_a_job_is_written_for_the_client_s_user_alone(make, monkeypatch):
    owners = []
    monkeypatch.setattr(vllm_benchmark.os, "fchown", lambda file, owner, group: owners.append((owner, group)))
    made = make()
    made.start(made.job(*made.state()))
    assert os.stat(vllm_benchmark.JOB).st_mode & 0o777 == 0o400 and owners[-1] == (65534, -1)
    (command,) = [words for words in made.calls if words[0] == "systemd-run"]
    assert "s3cret" not in " ".join(command) and "--uid=nobody" in command
    assert command[-5:] == ["/usr/bin/python3", "-I", vllm_benchmark.PROGRAM, vllm_benchmark.JOB, vllm_benchmark.STATUS]
    assert Path(vllm_benchmark.PROGRAM).read_text().startswith("# Copyright")


def test_a_user_that_isn_t_there_is_told_of(make):
    made = make(user="nobody-at-all")
    with pytest.raises(BenchmarkError, match="There is no user nobody-at-all"):
        made.start({"api_key": ""})
