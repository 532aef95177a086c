# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads, the client's command line, its result and its failures; and the client run, with a program in its place."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import textwrap
import time
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import benchmark_client as client
from ansible_collections.phoenix.hypervisor.plugins.module_utils.benchmark_client import BenchmarkError

LOAD = {"streams": 4, "input_tokens": 64, "output_tokens": 32, "prompts": 16}
JOB = {
    "program": ["/opt/vllm/bin/vllm"], "url": "http://127.0.0.1:8000/", "model": "tiny", "tokenizer": "/models/tiny",
    "folder": "/tmp/x", "loads": [LOAD], "repeats": 2, "seed": 7, "sampling": {"temperature": 0.8, "top_k": 50},
}  # fmt: skip
# As vLLM 0.32.0 writes it, but for the lists of each request.
RESULT = {
    "date": "20261128-004741", "backend": "openai", "model_id": "tiny", "num_prompts": 16, "request_rate": "inf",
    "max_concurrency": 4, "duration": 2.5, "completed": 16, "failed": 0, "total_input_tokens": 1024,
    "total_output_tokens": 512, "request_throughput": 6.4, "request_goodput": None, "output_throughput": 204.8,
    "total_token_throughput": 614.4, "mean_ttft_ms": 45.4, "median_ttft_ms": 23.3, "p99_ttft_ms": 99.6,
    "mean_tpot_ms": 1.73, "median_tpot_ms": 2.36, "p99_tpot_ms": 2.92, "mean_itl_ms": 1.73, "median_itl_ms": 0.0,
    "p99_itl_ms": 38.1, "mean_e2el_ms": 99.1, "median_e2el_ms": 99.4, "p99_e2el_ms": 114.0, "errors": [""] * 16,
}  # fmt: skip


# --- loads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("streams", "prompts"), [(1, 8), (2, 8), (3, 12), (32, 128), (256, 1024)])
def test_a_load_has_enough_requests_by_itself(streams, prompts):
    (load,) = client.checked_loads([{"streams": streams, "input_tokens": 10, "output_tokens": 20}])
    assert load == {"streams": streams, "input_tokens": 10, "output_tokens": 20, "prompts": prompts}


def test_numbers_may_be_text_as_variables_of_the_command_line_are():
    (load,) = client.checked_loads([{"streams": "4", "input_tokens": "64", "output_tokens": "32", "prompts": "16"}])
    assert load == LOAD


@pytest.mark.parametrize(
    ("loads", "message"),
    [
        (None, "benchmark_loads has no load"),
        ([], "benchmark_loads has no load"),
        ("1/32/256", "benchmark_loads has no load"),
        ({"streams": 1}, "benchmark_loads has no load"),
        ([1], "load 1 is 1, and should be"),
        ([LOAD, "x"], "load 2 is 'x', and should be"),
        ([{**LOAD, "users": 3}], "load 1 has users, which no load has: there are streams, input_tokens"),
        ([{"streams": 1, "input_tokens": 8}], "load 1 has no output_tokens"),
        ([{"input_tokens": 8, "output_tokens": 8}], "load 1 has no streams"),
        ([{**LOAD, "streams": 0}], "load 1: streams is 0, and should be a whole number from 1 on"),
        ([{**LOAD, "streams": -1}], "load 1: streams is -1"),
        ([{**LOAD, "streams": 1.5}], "load 1: streams is 1.5"),
        ([{**LOAD, "streams": True}], "load 1: streams is True"),
        ([{**LOAD, "input_tokens": "many"}], "load 1: input_tokens is 'many'"),
        ([{**LOAD, "prompts": 3}], "load 1 has 3 prompts for 4 streams: some would have nothing to do"),
        ([{**LOAD, "output_tokens": 1}], "output_tokens is 1, and between two tokens there are two"),
        ([LOAD, {**LOAD, "streams": 1}, LOAD], "load 3 is there twice (4 streams, 64 in, 32 out)"),
    ],
)
def test_a_wrong_load_is_told_of(loads, message):
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        client.checked_loads(loads)


def test_loads_have_names():
    assert client.load_name(LOAD) == "4 streams, 64 in, 32 out"
    assert client.load_name({**LOAD, "streams": 1}) == "1 stream, 64 in, 32 out"


@pytest.mark.parametrize(
    ("sampling", "found", "reached"),
    [
        ({"temperature": "0.8", "top_p": 0.95, "top_k": "50"}, {"temperature": 0.8, "top_p": 0.95, "top_k": 50}, True),
        ({"temperature": 0}, {"temperature": 0.0}, False),
        ({"temperature": 0, "top_k": 50}, {"temperature": 0.0, "top_k": 50}, False),
        ({"temperature": 1}, {"temperature": 1.0}, False),
        ({"top_p": 0.9}, {"top_p": 0.9}, True),
        ({"top_p": 1, "top_k": 0}, {"top_p": 1.0, "top_k": 0}, False),
        ({"min_p": 0.1}, {"min_p": 0.1}, False),
        ({}, {}, False),
        (None, {}, False),
    ],
)
def test_sampling_is_numbers_and_it_is_known_whether_it_reaches_flashinfer(sampling, found, reached):
    assert client.checked_sampling(sampling) == found
    assert client.reaches_sampler(found) is reached


@pytest.mark.parametrize(("sampling", "message"), [
    ({"seed": 1}, "benchmark_sampling has seed: there are temperature, top_p, top_k, min_p"),
    ({"top_k": "few"}, "benchmark_sampling: top_k is 'few', which is no number"),
    ({"temperature": None}, "benchmark_sampling: temperature is None"),
])  # fmt: skip
def test_wrong_sampling_is_told_of(sampling, message):
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        client.checked_sampling(sampling)


# --- the command line -----------------------------------------------------------------------------------------------


def option(words: list[str], name: str) -> str:
    """The value of an option."""
    return words[words.index(name) + 1]


def test_the_command_line_says_all_of_the_load():
    words = client.arguments(JOB, LOAD, 16, 7, "/tmp/x/client.json")
    assert words[:3] == ["/opt/vllm/bin/vllm", "bench", "serve"]
    assert option(words, "--base-url") == "http://127.0.0.1:8000"
    assert (option(words, "--model"), option(words, "--tokenizer")) == ("tiny", "/models/tiny")
    assert (option(words, "--random-input-len"), option(words, "--random-output-len")) == ("64", "32")
    assert (option(words, "--num-prompts"), option(words, "--max-concurrency")) == ("16", "4")
    assert (option(words, "--seed"), option(words, "--temperature"), option(words, "--top-k")) == ("7", "0.8", "50")
    assert (option(words, "--result-dir"), option(words, "--result-filename")) == ("/tmp/x", "client.json")
    assert "--ignore-eos" in words and "--top-p" not in words and "--trust-remote-code" not in words


def test_what_only_some_models_need_is_given_where_it_is_said():
    words = client.arguments({**JOB, "tokenizer_mode": "mistral", "trust_remote_code": True}, LOAD, 16, 7, "/x/y")
    assert option(words, "--tokenizer-mode") == "mistral" and "--trust-remote-code" in words


def test_the_key_is_in_the_environment_alone():
    job = {**JOB, "api_key": "s3cret", "environment": {"HF_HOME": "/cache"}, "ca_file": "/etc/ca.pem"}
    assert "s3cret" not in " ".join(client.arguments(job, LOAD, 16, 7, "/x/y"))
    found = client.client_environment(job, {"PATH": "/bin"})
    assert (found["OPENAI_API_KEY"], found["HF_HOME"], found["PATH"]) == ("s3cret", "/cache", "/bin")
    assert found["SSL_CERT_FILE"] == "/etc/ca.pem"


def test_a_key_of_somebody_else_goes_nowhere():
    found = client.client_environment({**JOB, "environment": {"OPENAI_API_KEY": "b"}}, {"OPENAI_API_KEY": "a"})
    assert "OPENAI_API_KEY" not in found


@pytest.mark.parametrize(("url", "before", "after"), [
    ("http://127.0.0.1:8000", {}, "127.0.0.1"),
    ("https://llm.example:443/x", {"no_proxy": "a,b", "NO_PROXY": "a,b"}, "a,b,llm.example"),
    ("http://[::1]:8000", {}, "::1"),
])  # fmt: skip
def test_the_server_is_asked_without_a_proxy(url, before, after):
    found = client.client_environment({**JOB, "url": url}, before)
    assert (found["no_proxy"], found["NO_PROXY"]) == (after, after)


# --- its result -----------------------------------------------------------------------------------------------------


def test_figures_of_a_real_result():
    found = client.figures(json.dumps(RESULT), 16, LOAD)
    assert found["output_tokens_per_second"] == 204.8
    assert (found["first_token_ms"], found["first_token_p99_ms"]) == (23.3, 99.6)
    # Half of the pauses are 0 where tokens come two at a time: the median of those would say nothing.
    assert (found["inter_token_ms"], found["inter_token_p99_ms"]) == (2.36, 38.1)
    assert (found["seconds"], found["input_tokens"], found["output_tokens"]) == (2.5, 1024, 512)
    assert set(client.FIGURES) <= set(found)


def test_figures_of_vllm_0_10_2_have_the_same_names():
    assert client.figures(json.dumps({name: value for name, value in RESULT.items() if name != "failed"}), 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completed": 9, "errors": ["", "Traceback:\n  x\nConnectionRefusedError: no\n"]},
         "9 of 16 requests were answered. The first error: ConnectionRefusedError: no"),
        ({"completed": 0, "errors": []}, "0 of 16 requests were answered."),
        ({"completed": None}, "0 of 16 requests were answered."),
        ({"completed": 15, "errors": None}, "15 of 16 requests were answered."),
        ({"median_ttft_ms": None}, "The client's result has no median_ttft_ms, or no number there (None)"),
        ({"median_ttft_ms": "fast"}, "no median_ttft_ms, or no number there ('fast')"),
        ({"median_ttft_ms": float("nan")}, "no number there (nan)"),
        ({"p99_itl_ms": float("inf")}, "no number there (inf)"),
        ({"p99_itl_ms": -1.0}, "no number there (-1.0)"),
        ({"p99_itl_ms": True}, "no number there (True)"),
        ({"output_throughput": 0}, "The server made no token"),
        ({"total_output_tokens": 0}, "The server made no token"),
        ({"total_output_tokens": 100}, "The server made 100 tokens where 512 were asked for: its answers end early"),
    ],
)  # fmt: skip
def test_a_result_that_is_none_is_told_of(change, message):
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        client.figures(json.dumps({**RESULT, **change}), 16, LOAD)


@pytest.mark.parametrize("name", [key for key, _unit, _more in client.FIGURES.values()])
def test_a_figure_that_is_missing_is_named(name):
    with pytest.raises(BenchmarkError, match=f"has no {name},"):
        client.figures(json.dumps({key: value for key, value in RESULT.items() if key != name}), 16)


@pytest.mark.parametrize(("text", "message"), [
    ("", "it is no JSON"), ('{"completed": 16', "it is no JSON"), ("[]", "no JSON object"), ("null", "no JSON object"),
    ("{}", "0 of 16 requests were answered"),
])  # fmt: skip
def test_a_damaged_result_is_told_of(text, message):
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        client.figures(text, 16)


# --- what it says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "found"), [
    ("", None),
    ("INFO 11-28 vllm/serve.py:120 12/16 x", None),
    ("\r  0%|          | 0/16 [00:00<?, ?it/s]", (0, 16)),
    ("\r 25%|██▌       | 4/16 [00:01<00:03]\r100%|██████████| 16/16 [00:02<00:00,  6.2it/s]\n", (16, 16)),
    ("Waiting |   | 00:00 elapsed, 29:59 remaining", None),
])  # fmt: skip
def test_progress_is_that_of_the_last_bar(text, found):
    assert client.progress(text) == found


TRACE = """Starting initial single prompt test run...
Traceback (most recent call last):
  File "/opt/vllm/lib/python3.11/site-packages/vllm/benchmarks/serve.py", line 884, in benchmark
    raise ValueError(
ValueError: Initial test run failed - Please make sure benchmark arguments are correctly specified. Error: {why}
"""


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (TRACE.format(why="Unauthorized"), "wants another API key than the one of its own unit (benchmark_api_key)"),
        (TRACE.format(why="Not Found"), "doesn't know this model name"),
        (TRACE.format(why="This model's maximum context length is 512 tokens."), "longer than the server's max_model"),
        (TRACE.format(why="ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED]"), "benchmark_ca_file"),
        ("vllm: error: argument subparser: invalid choice: 'bench' (choose from 'chat', 'serve')", "vLLM 0.9.2"),
        (TRACE.format(why="Cannot connect to host x:8000 [Name or service not known]"), "benchmark_url gives an"),
        (TRACE.format(why="Bad Request"), "they are longer than its max_model_len (benchmark_loads)"),
        (TRACE.format(why="Cannot connect to host 127.0.0.1:8 [Connect call failed]"), "benchmark_url says where"),
        ("OSError: Repo id must be in the form 'repo_name': '/models/nowhere'.", "benchmark_tokenizer"),
        ("vllm: error: unrecognized arguments: --dataset-name", "knows other arguments"),
        ("ModuleNotFoundError: No module named 'pandas'", "A package that the client needs"),
        ("OSError: Can't load tokenizer for 'tiny'.", "benchmark_tokenizer"),
        ("OSError: [Errno 28] No space left on device: 'client.json'", "disk is full"),
    ],
)
def test_why_a_client_failed_is_told_with_what_to_do(text, remedy):
    told = client.explain(1, text)
    assert told.startswith("vLLM's benchmark client failed (exit status 1). ") and remedy in told
    assert "Traceback" not in told and 'File "' not in told and text.strip().splitlines()[-1] in told


def test_what_isn_t_known_is_told_in_its_own_words():
    assert client.explain(3, "Something\nnew\n") == (
        "vLLM's benchmark client failed (exit status 3). Its last lines:\nSomething\nnew"
    )
    assert client.explain(2, "") == "vLLM's benchmark client failed (exit status 2). It said nothing."
    assert "ended by signal 15" in client.explain(-15, "")
    assert "perhaps because the container's memory is full" in client.explain(-9, "")


def test_what_a_client_says_of_itself_is_no_reason():
    text = ("Namespace(subparser='bench', seed=100)\nValueError: it. Error: Traceback (most recent call last):\n"
            "  File \"x\"\nKeyError: y\n\nDuring handling of the above exception, another exception occurred:\n\n"
            "The above exception was the direct cause of the following exception:\n")  # fmt: skip
    assert client.said(text) == ["KeyError: y"]


def test_neither_a_secret_nor_a_bar_nor_an_endless_line_is_told():
    text = "key s3cret here\n\r 25%|██▌  | 4/16 [00:01<00:03]\n" + "x" * 1000 + "\nlast\n"
    assert client.said(text, "s3cret") == ["key … here", "x" * client.WIDTH, "last"]
    assert len(client.said("line\n" * 100)) == client.LINES


# --- what is run ----------------------------------------------------------------------------------------------------


def test_each_run_has_requests_of_its_own():
    loads = client.checked_loads([{"streams": n, "input_tokens": 8, "output_tokens": 8} for n in (1, 32)])
    runs = client.plan({**JOB, "loads": loads, "repeats": 3})
    assert [(run["round"], run["load"]) for run in runs] == [(turn, load) for turn in range(4) for load in (0, 1)]
    assert [run["seed"] for run in runs] == list(range(7, 15))
    assert [run["prompts"] for run in runs[:4]] == [2, 32, 8, 128]
    assert all(run["round"] for run in client.plan({**JOB, "loads": loads, "warm_up": False}))


def test_what_is_being_measured_is_said():
    run = {"load": 0, "round": 1, "prompts": 16, "seed": 7}
    assert client.doing(JOB, run, (3, 16)) == "4 streams, 64 in, 32 out: run 1 of 2, 3 of 16 requests"
    assert client.doing(JOB, {**run, "round": 0}) == "4 streams, 64 in, 32 out: warm-up"


@pytest.mark.parametrize(("change", "message"), [
    ({"program": []}, "has no program"), ({"url": ""}, "has no url"), ({"model": ""}, "has no model"),
    ({"tokenizer": None}, "has no tokenizer"), ({"url": "localhost:8000"}, "benchmark_url is 'localhost:8000'"),
    ({"url": "ftp://x"}, "should begin with http:// or https://"), ({"loads": []}, "benchmark_loads has no load"),
])  # fmt: skip
def test_a_job_that_can_t_be_done_is_refused(change, message):
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        client.checked({**JOB, **change})


# --- a client -------------------------------------------------------------------------------------------------------

# A program in the client's place. What it does is said in the environment.
PROGRAM = """
    import json, os, sys, time
    words = sys.argv[1:]
    value = lambda name: words[words.index(name) + 1]
    prompts, streams = int(value("--num-prompts")), int(value("--max-concurrency"))
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps({"words": words, "key": os.environ.get("OPENAI_API_KEY")}) + "\\n")
    how = os.environ.get("HOW", "")
    count = len(open(os.environ["CALLS"]).readlines())
    if how == "fails" and count == 3:
        sys.exit("ValueError: Initial test run failed. Error: Unauthorized with " + os.environ["OPENAI_API_KEY"])
    if how == "hangs":
        time.sleep(60)
    if how == "silent":
        sys.exit(0)
    sys.stderr.write(f"\\r50%|##  | {prompts // 2}/{prompts} [00:01<00:01]")
    sys.stderr.flush()
    time.sleep(float(os.environ.get("PAUSE", "0")))
    made = prompts * int(value("--random-output-len"))
    result = {**json.loads(os.environ["RESULT"]), "completed": prompts, "total_output_tokens": made,
              "output_throughput": 100.0 * streams + count}
    if how == "half":
        result.update(completed=prompts // 2, errors=["", "ServerDisconnectedError"])
    with open(os.path.join(value("--result-dir"), value("--result-filename")), "w") as file:
        file.write("{" if how == "damaged" else json.dumps(result))
"""


@pytest.fixture
def job(tmp_path, monkeypatch) -> dict:
    """A job whose client is a small program."""
    program = tmp_path / "vllm"
    program.write_text(f"#!{sys.executable} -I\n{textwrap.dedent(PROGRAM)}")
    program.chmod(0o755)
    monkeypatch.setattr(client, "LOOK", 0.02)
    monkeypatch.setattr(client, "GRACE", 2)
    environment = {"CALLS": str(tmp_path / "calls"), "RESULT": json.dumps(RESULT)}
    return {**JOB, "program": [str(program)], "folder": str(tmp_path / "work"), "api_key": "s3cret",
            "environment": environment}  # fmt: skip


def how(job: dict, **variables: str) -> dict:
    """The job with more in its environment."""
    return {**job, "environment": {**job["environment"], **variables}}


def test_each_load_is_measured_in_each_round_after_a_warm_up(job, tmp_path):
    told: list[str] = []
    job["loads"] = [LOAD, {"streams": 1, "input_tokens": 8, "output_tokens": 4}]
    found = client.measure(how(job, PAUSE="0.2"), told.append)
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert [(run["round"], run["load"]) for run in found["runs"]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    # Four runs and two warm-ups, each with a seed of its own, and the key in the environment alone.
    assert [option(call["words"], "--seed") for call in calls] == ["7", "8", "9", "10", "11", "12"]
    assert {call["key"] for call in calls} == {"s3cret"} and "s3cret" not in str([call["words"] for call in calls])
    assert [run["figures"]["output_tokens_per_second"] for run in found["runs"]] == [403.0, 104.0, 405.0, 106.0]
    assert (found["seed"], found["sampling"], len(found["loads"])) == (7, {"temperature": 0.8, "top_k": 50}, 2)
    assert "4 streams, 64 in, 32 out: run 1 of 2, 8 of 16 requests" in told
    assert "4 streams, 64 in, 32 out: run 1 of 2: 403.0 tokens/s, first token 23 ms, then 2.4 ms" in told
    assert "s3cret" not in (tmp_path / "work" / "client.log").read_text()
    assert not (tmp_path / "work" / "client.json").exists()


def test_a_client_that_fails_on_the_way_is_told_of_without_its_key(job):
    with pytest.raises(BenchmarkError) as caught:
        client.measure(how(job, HOW="fails"))
    told = str(caught.value)
    assert told.startswith("4 streams, 64 in, 32 out: run 2 of 2: vLLM's benchmark client failed (exit status 1).")
    assert "another API key" in told and "Unauthorized with …" in told and "s3cret" not in told


@pytest.mark.parametrize(("mode", "message"), [
    ("half", "warm-up: 2 of 4 requests were answered. The first error: ServerDisconnectedError"),
    ("damaged", "warm-up: The client's result is damaged"),
    ("silent", "warm-up: vLLM's benchmark client ended well, but wrote no result"),
])  # fmt: skip
def test_a_client_without_a_result_is_told_of(job, mode, message):
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        client.measure(how(job, HOW=mode))


def test_a_result_of_the_run_before_is_not_taken_for_its_own(job, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "client.json").write_text(json.dumps(RESULT))
    with pytest.raises(BenchmarkError, match="wrote no result"):
        client.measure(how(job, HOW="silent"))


def test_a_client_that_hangs_is_ended(job):
    began = time.monotonic()
    with pytest.raises(BenchmarkError, match=re.escape("was not done after 0.3 s (benchmark_timeout)")):
        client.measure({**how(job, HOW="hangs"), "timeout": 0.3})
    assert time.monotonic() - began < 30


def test_a_server_that_ends_meanwhile_ends_the_client(job):
    with pytest.raises(BenchmarkError, match="The server ended"):
        client.measure(how(job, HOW="hangs"), still=lambda: "The server ended")


def test_a_client_that_isn_t_there_is_told_of(job, tmp_path):
    with pytest.raises(BenchmarkError, match=re.escape("can't be started: No such file or directory (/nowhere/vllm)")):
        client.measure({**job, "program": ["/nowhere/vllm"]})


# --- the program ----------------------------------------------------------------------------------------------------


def run_program(job: dict, tmp_path: Path) -> dict:
    """What the program says in the end."""
    path, status = tmp_path / "job.json", tmp_path / "status.json"
    path.write_text(json.dumps({"id": "abc", **job}))
    client.main(str(path), str(status))
    return json.loads(status.read_text())


@pytest.fixture(autouse=True)
def _keep_signals(monkeypatch):
    monkeypatch.setattr(client.signal, "signal", lambda *_: None)


def test_the_program_says_what_came_of_it(job, tmp_path):
    status = run_program(job, tmp_path)
    assert (status["id"], status["done"], len(status["measured"]["runs"])) == ("abc", True, 2)
    assert status["ended"] >= status["began"] and "tokens/s" in status["progress"] and "error" not in status


def test_the_program_says_why_there_is_no_result(job, tmp_path):
    status = run_program(how(job, HOW="half"), tmp_path)
    assert status["done"] and "requests were answered" in status["error"] and "measured" not in status


def test_the_program_tells_of_a_folder_that_can_t_be_made(job, tmp_path):
    (tmp_path / "file").write_text("")
    status = run_program({**job, "folder": str(tmp_path / "file" / "x")}, tmp_path)
    assert status["error"].startswith("The benchmark could not be run: ")


@pytest.mark.parametrize(("there", "message"), [
    (0, "The server ended while it was measured; see journalctl -u x.service"), (43, "The server was restarted"),
    (42, ""),
])  # fmt: skip
def test_it_is_noticed_when_the_server_is_another_one(monkeypatch, there, message):
    monkeypatch.setattr(client, "main_pid", lambda unit: there)
    watch = client.Watch({"unit": "x.service", "pid": 42})
    seen = watch.still()
    assert seen.startswith(message) and bool(seen) is bool(message)
    # The next look is some seconds later.
    assert watch.still() == ""


@pytest.mark.parametrize(("age", "ends"), [(5, False), (client.UNASKED - 1, False), (client.UNASKED + 1, True)])
def test_it_ends_when_nobody_asks_any_more(tmp_path, age, ends):
    asked = tmp_path / "asked"
    asked.write_text("")
    now = os.stat(asked).st_mtime + age
    assert bool(client.Watch({"asked": str(asked)}, lambda: now).still()) is ends


def test_it_goes_on_where_nobody_says_who_asks(tmp_path):
    assert client.Watch({}).still() == "" and client.Watch({"asked": str(tmp_path / "nowhere")}).still() == ""


def test_a_log_doesn_t_grow_for_ever(job, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "LOG", 100)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "client.log").write_text("old\n" * 100)
    run_program(job, tmp_path)
    assert "old" not in (tmp_path / "work" / "client.log").read_text()


def test_no_unit_no_process(monkeypatch, tmp_path):
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\necho 4711\n")
    systemctl.chmod(systemctl.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert client.main_pid("x.service") == 4711
    systemctl.write_text("#!/bin/sh\nexit 1\n")
    assert client.main_pid("x.service") == 0
    systemctl.unlink()
    assert client.main_pid("x.service") == 0
