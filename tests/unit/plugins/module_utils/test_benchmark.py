# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What measurements mean: spread, losses, verdicts, kept results, tables."""

from __future__ import annotations

import copy
import itertools
import json
import re

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import benchmark
from ansible_collections.phoenix.hypervisor.plugins.module_utils.benchmark import FIGURES, ResultError
from hypothesis import given
from hypothesis import strategies as st

LOADS = [
    {"streams": 1, "input_tokens": 256, "output_tokens": 256, "prompts": 8},
    {"streams": 32, "input_tokens": 256, "output_tokens": 256, "prompts": 128},
]
SERVER = {
    "hardware": {"gpus": ["NVIDIA GeForce RTX 5060 Ti", "NVIDIA GeForce RTX 5060 Ti"]}, "model": "/models/org/llama",
    "gpus": [], "driver": "580.65.06", "release": "vllm-0.10.2-0123456789ab", "stack": "vllm-0.10.2-cu128",
    "versions": {"vllm": "0.10.2", "torch": "2.8.0", "flashinfer": ""}, "digest": "0123", "engine_config": "port: 8000",
}  # fmt: skip
WHERE = {"host": "ctid_921", "ctid": 921, "node": "pve"}


def run(load: int = 0, turn: int = 1, **figures: float) -> dict:
    """A run with these figures, and 10 for all others."""
    found = {**dict.fromkeys(FIGURES, 10.0), **figures}
    return {"load": load, "round": turn, "prompts": 8, "seed": 1, "figures": found}


def measured(name: str, *values: float, loads: list | None = None) -> dict:
    """Measurements in which one figure of the first load has these values."""
    runs = [run(0, turn, **{name: value}) for turn, value in enumerate(values, 1)]
    others = [run(load, turn) for load in range(1, len(loads or LOADS)) for turn in range(1, len(values) + 1)]
    return {"runs": [*runs, *others], "loads": loads or LOADS, "sampling": {"temperature": 0.8, "top_k": 50}, "seed": 1}


def result(name: str = "output_tokens_per_second", *values: float, **change) -> dict:
    """A result in which one figure of the first load has these values."""
    runs = measured(name, *(values or (100.0, 101.0, 99.0)))
    return {**benchmark.make_result(runs, SERVER, WHERE, "2026-11-28T01:00:00Z"), **change}


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "middle"), [([3], 3), ([1, 2], 1.5), ([5, 1, 3], 3), ([4, 1, 3, 2], 2.5)])
def test_the_median(values, middle):
    assert benchmark.median(values) == middle
    assert benchmark.spread(values) == {"median": middle, "least": min(values), "most": max(values), "values": values}


def brute_force(one: list[float], other: list[float]) -> float:
    """The same, by trying all ways to deal the values out."""
    everything = [*one, *other]

    def above(first, second) -> float:
        return sum((a > b) + (a == b) / 2 for a in first for b in second)

    middle = len(one) * len(other) / 2
    seen = abs(above(one, other) - middle)
    ways = list(itertools.combinations(range(len(everything)), len(one)))
    far = 0
    for chosen in ways:
        first = [everything[place] for place in chosen]
        second = [everything[place] for place in range(len(everything)) if place not in chosen]
        far += abs(above(first, second) - middle) >= seen - 1e-9
    return far / len(ways)


few = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=5)


@given(one=few, other=few)
def test_the_chance_is_that_of_all_ways_to_deal_out(one, other):
    assert benchmark.chance(one, other) == pytest.approx(brute_force(one, other))
    both_ways = [benchmark.chance(*pair) for pair in ((one, other), (other, one))]
    assert both_ways[0] == pytest.approx(both_ways[1])


@pytest.mark.parametrize(("rounds", "chance"), [
    (1, 1.0), (2, 1 / 3), (3, 0.1), (4, 2 / 70), (5, 2 / 252), (10, 2 / 184756),
])  # fmt: skip
def test_four_rounds_are_the_fewest_that_can_show_anything(rounds, chance):
    off, on = list(range(rounds)), list(range(100, 100 + rounds))
    assert benchmark.chance(on, off) == pytest.approx(chance)
    assert (chance <= benchmark.SIGNIFICANT) == (rounds >= benchmark.FEWEST_ROUNDS)


def test_equal_values_differ_by_nothing():
    assert benchmark.chance([5.0] * 4, [5.0] * 4) == 1.0
    assert benchmark.interval([5.0] * 4, [5.0] * 4) == (1.0, 1.0)


some = st.lists(st.floats(1, 100), min_size=1, max_size=6)


@given(values=some, other=some)
def test_an_interval_lies_within_what_was_seen(values, other):
    low, high = benchmark.interval(values, other)
    assert min(values) / max(other) - 1e-9 <= low <= high <= max(values) / min(other) + 1e-9
    assert (low, high) == benchmark.interval(values, other)


@pytest.mark.parametrize(("name", "new", "old", "percent"), [
    ("output_tokens_per_second", 120, 100, 20), ("output_tokens_per_second", 80, 100, -20),
    ("first_token_ms", 50, 100, 50), ("first_token_ms", 200, 100, -100), ("inter_token_ms", 10, 10, 0),
    ("inter_token_ms", 10, 0, 0),
])  # fmt: skip
def test_more_tokens_and_less_time_are_better(name, new, old, percent):
    assert benchmark.gain(name, new, old) == pytest.approx(percent)


def test_a_summary_has_each_load_with_its_own_runs():
    runs = [run(0, 1, requests_per_second=1), run(1, 1, requests_per_second=5), run(0, 2, requests_per_second=3)]
    one, two = benchmark.summarise(runs, LOADS)
    assert one["load"] == LOADS[0] and one["figures"]["requests_per_second"]["values"] == [1, 3]
    assert two["figures"]["requests_per_second"] == {"median": 5, "least": 5, "most": 5, "values": [5]}
    assert set(one["figures"]) == set(FIGURES)


# --- before and after -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limits", "change"), [
    (None, {}), ({}, {}), ({"first_token_ms": "30"}, {"first_token_ms": 30.0}),
    ({"request_ms": 1}, {"request_ms": 1.0}), ({"inter_token_ms": 0}, {"inter_token_ms": 0.0}),
])  # fmt: skip
def test_limits_add_to_those_that_are_there(limits, change):
    assert benchmark.checked_limits(limits) == {**benchmark.LIMITS, **change}


@pytest.mark.parametrize(("limits", "message"), [
    ({"speed": 5}, "benchmark_loss_limit has speed, which is no figure: there are output_tokens_per_second"),
    ({"request_ms": "little"}, "benchmark_loss_limit: request_ms is 'little', and should be percent, 0 or more"),
    ({"request_ms": -1}, "request_ms is -1"), ({"request_ms": "nan"}, "request_ms is 'nan'"),
    ({"request_ms": None}, "request_ms is None"), ({"request_ms": "inf"}, "request_ms is 'inf'"),
])  # fmt: skip
def test_a_wrong_limit_is_told_of(limits, message):
    with pytest.raises(ResultError, match=re.escape(message)):
        benchmark.checked_limits(limits)


SPEED, FIRST = "output_tokens_per_second", "first_token_ms"


@pytest.mark.parametrize(
    ("name", "old", "new", "lost"),
    [
        (SPEED, (100, 101, 99), (100, 100, 100), False),
        (SPEED, (100, 101, 99), (96, 96, 96), False),  # Within the limit of 5 %.
        (SPEED, (100, 101, 99), (94, 94, 94), True),
        (SPEED, (100, 101, 99), (94, 94, 99), False),  # One run as good as one of the accepted.
        (SPEED, (100, 101, 99), (94, 94, 98), True),
        (SPEED, (100, 130, 80), (85, 85, 85), False),  # Within the spread of the accepted run.
        (SPEED, (100, 101, 99), (150, 150, 150), False),
        (FIRST, (100, 101, 99), (119, 119, 119), False),  # Within the limit of 20 %.
        (FIRST, (100, 101, 99), (121, 121, 121), True),
        (FIRST, (100, 125, 99), (121, 121, 121), False),
        (FIRST, (100, 101, 99), (50, 50, 50), False),
        (FIRST, (100,), (150,), True),
    ],
)
def test_lost_is_what_is_beyond_limit_and_spread(name, old, new, lost):
    rows = benchmark.compare(result(name, *new), result(name, *old), benchmark.LIMITS)
    assert len(rows) == len(LOADS) * len(benchmark.LIMITS)
    assert [(row["load"], row["figure"]) for row in rows if row["lost"]] == ([(LOADS[0], name)] if lost else [])
    outcome = benchmark.verdict(result(name, *new), result(name, *old), benchmark.LIMITS, False)
    assert outcome["passed"] is not lost and len(outcome["losses"]) == lost and outcome["accepted"] is False


def test_a_limit_of_one_s_own_holds():
    new, old = result(SPEED, 97.0, 97.0), result(SPEED, 100.0, 100.0)
    assert benchmark.verdict(new, old, benchmark.checked_limits({SPEED: 2}), False)["passed"] is False
    assert benchmark.verdict(new, old, benchmark.checked_limits({SPEED: 3}), False)["passed"] is True


def test_a_loss_is_told_in_a_sentence():
    outcome = benchmark.verdict(result(FIRST, 150.0, 151.0), result(FIRST, 100.0, 101.0), benchmark.LIMITS, False)
    assert outcome["losses"] == [
        "1 stream, 256 in, 256 out: time to the first token rose from 100 to 150 ms, 49.8 % worse (limit 20 %, and no "
        "run was as good as one of the accepted)"
    ]
    assert outcome["reason"] == "It is worse than the accepted run of 2026-11-28T01:00:00Z."


def test_the_first_result_is_accepted():
    outcome = benchmark.verdict(result(), None, benchmark.LIMITS, False)
    assert (outcome["accepted"], outcome["passed"], outcome["comparison"]) == (True, True, [])


@pytest.mark.parametrize(("values", "accept", "accepted"), [
    ((100.0, 100.0), False, False), ((100.0, 100.0), True, True), ((50.0, 50.0), True, True),
])  # fmt: skip
def test_a_person_accepts(values, accept, accepted):
    outcome = benchmark.verdict(result(SPEED, *values), result(), benchmark.LIMITS, accept)
    assert outcome["passed"] and outcome["accepted"] is accepted
    assert bool(outcome["losses"]) is (values[0] < 90)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hardware": {"gpus": ["NVIDIA H200"]}},
         "the hardware was gpus NVIDIA GeForce RTX 5060 Ti, NVIDIA GeForce RTX 5060 Ti, and is gpus NVIDIA H200"),
        ({"model": "/models/other"}, "the model was /models/org/llama, and is /models/other"),
        ({"loads": [LOADS[0]]}, "the loads were 1 stream, 256 in, 256 out, 8 requests; 32 streams, 256 in, 256 out, "
         "128 requests, and are 1 stream, 256 in, 256 out, 8 requests"),
        ({"sampling": {}}, "the requests were sampled with temperature 0.8, top_k 50, and are with none"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("accept", [False, True])
def test_what_can_t_be_compared_is_not_and_why(change, why, accept):
    new = result(SPEED, 1.0, **change)
    outcome = benchmark.verdict(new, result(), benchmark.LIMITS, accept)
    assert outcome["passed"] and outcome["accepted"] is accept and outcome["comparison"] == []
    assert outcome["comparable"] is False and why in outcome["reason"]
    assert ("-e benchmark_accept=true makes it" in outcome["reason"]) is not accept


@pytest.mark.parametrize("change", [
    {"release": "x"}, {"driver": "590"}, {"versions": {"vllm": "0.32.0"}}, {"engine_config": "port: 1"},
    {"digest": "y"}, {"host": "ctid_922"},
])  # fmt: skip
def test_what_a_change_may_change_is_compared(change):
    assert benchmark.incomparable(result(**change), result()) == []


# --- two settings in turns ------------------------------------------------------------------------------------------


def test_settings_are_measured_in_turns():
    assert [turn["sampler"] for turn in benchmark.turns(3)] == ["on", "off"] * 3
    assert [turn["round"] for turn in benchmark.turns(2)] == [1, 1, 2, 2]
    with pytest.raises(ResultError, match="benchmark_sampler_rounds is 0"):
        benchmark.turns(0)


def arms(on: tuple, off: tuple) -> list[dict]:
    """The comparison of one load in which the tokens per second are these."""
    made = ([run(0, turn, **{SPEED: float(value)}) for turn, value in enumerate(each, 1)] for each in (on, off))
    return benchmark.compare_arms(*made, LOADS[:1])


@pytest.mark.parametrize(
    ("on", "off", "gain", "verdict"),
    [
        ((120, 121, 119, 120), (100, 101, 99, 100), 20.0, "better"),
        ((80, 81, 79, 80), (100, 101, 99, 100), -20.0, "worse"),
        ((100, 101, 99, 100), (100, 101, 99, 100), 0.0, "no difference seen"),
        ((102, 99, 103, 98), (100, 101, 99, 100), 0.5, "no difference seen"),
        ((120, 121, 119), (100, 101, 99), 20.0, "too few rounds"),
        ((120,), (100,), 20.0, "too few rounds"),
    ],
)
def test_a_difference_is_told_from_chance(on, off, gain, verdict):
    rows = arms(on, off)
    assert [row["figure"] for row in rows] == list(benchmark.LIMITS)
    assert rows[0]["gain_percent"] == pytest.approx(gain, abs=0.01) and rows[0]["verdict"] == verdict
    low, high = rows[0]["gain_interval_percent"]
    assert low <= rows[0]["gain_percent"] <= high
    assert rows[1]["verdict"] == ("too few rounds" if len(on) < 4 else "no difference seen")


def test_each_load_is_compared_with_itself():
    on = [run(load, turn, **{SPEED: 100.0 * (load + 1)}) for turn in range(1, 5) for load in (0, 1)]
    off = [run(load, turn, **{SPEED: 50.0}) for turn in range(1, 5) for load in (0, 1)]
    rows = [row for row in benchmark.compare_arms(on, off, LOADS) if row["figure"] == SPEED]
    assert [row["gain_percent"] for row in rows] == [100.0, 300.0]


def test_a_time_of_nothing_ends_no_comparison():
    on = [run(0, turn, first_token_ms=0.0) for turn in range(1, 5)]
    row = benchmark.compare_arms(on, on, LOADS[:1], ["first_token_ms"])[0]
    assert (row["gain_percent"], row["gain_interval_percent"]) == (0.0, [0.0, 0.0])


USED = {"on": ["flashinfer"], "off": ["pytorch"]}


@pytest.mark.parametrize(
    ("on", "off", "used", "reached", "said"),
    [
        ((125, 126, 124, 125), (100, 101, 99, 100), USED, True,
         ["25.0 % more tokens per second, which chance alone gives in 2.9 % of cases",
          "on FP8 was seen (at most 25.0 %)"]),
        ((105, 106, 104, 105), (100, 101, 99, 100), USED, True,
         ["5.0 % more tokens", "on FP8 was not seen (at most 5.0 %)"]),
        ((90, 91, 89, 90), (100, 101, 99, 100), USED, True, ["10.0 % fewer tokens", "on FP8 was not seen."]),
        ((101, 102, 98, 101), (100, 101, 99, 100), USED, True, ["+1.0 % tokens per second, which may be chance (p ="]),
        ((150, 150), (100, 100), USED, True, ["2 rounds are too few for a verdict", "was not seen."]),
        ((150,), (100,), USED, True, ["1 round is too few for a verdict"]),
        ((100, 101, 99, 100), (100, 101, 99, 100), {"on": ["pytorch"], "off": ["pytorch"]}, True,
         ["With the sampler on, vLLM did not use FlashInfer (its log says so)"]),
        ((100, 101, 99, 100), (100, 101, 99, 100), {"on": [""], "off": [""]}, True,
         ["Whether vLLM used FlashInfer with the sampler on is not known"]),
        ((100, 101, 99, 100), (100, 101, 99, 100), {"on": ["flashinfer"], "off": ["flashinfer"]}, True,
         ["With the sampler off, vLLM used FlashInfer all the same"]),
        ((100, 101, 99, 100), (100, 101, 99, 100), USED, False, ["sampled without top-k and top-p"]),
    ],
)  # fmt: skip
def test_the_verdict_says_what_is(on, off, used, reached, said):
    told = benchmark.sampler_verdict(arms(on, off), len(on), used, reached)
    for text in said:
        assert text in " ".join(told)
    assert ("did not use FlashInfer" in " ".join(told)) is (used["on"] == ["pytorch"])


@pytest.mark.parametrize(
    ("journal", "found"),
    [
        ("INFO [topk_topp_sampler.py:124] Using FlashInfer for top-p & top-k sampling.", "flashinfer"),
        ("FlashInfer is not available. Falling back to the PyTorch-native implementation of top-p & top-k sampling. "
         "For the best performance, please install FlashInfer.", "pytorch"),
        ("FlashInfer is available, but it is not enabled. Falling back to the PyTorch-native implementation of top-p & "
         "top-k sampling.", "pytorch"),
        ("FlashInfer top-p/top-k sampling disabled via VLLM_USE_FLASHINFER_SAMPLER=0.", "pytorch"),
        ("FlashInfer top-p/top-k sampling unavailable: no nvcc; falling back.", "pytorch"),
        ("Using FlashInfer backend on V1 engine.", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_what_a_server_samples_with_is_in_its_log(journal, found):
    assert benchmark.sampler_in(f"before\n{journal}\nafter") == found


# --- results --------------------------------------------------------------------------------------------------------


def test_a_result_has_everything_needed_to_repeat_it():
    made = result()
    for name in ("kind", "schema_version", "date", "host", "ctid", "node", "hardware", "model", "gpus", "driver",
                 "release", "stack", "versions", "digest", "engine_config", "loads", "sampling", "seed", "repeats",
                 "summary", "runs"):  # fmt: skip
        assert name in made
    assert made["repeats"] == 3 and len(made["runs"]) == 6
    assert benchmark.parse_result(json.dumps(made), "x.json") == made


def without(name: str) -> dict:
    """A result without something."""
    return {key: value for key, value in result().items() if key != name}


def with_figure(value) -> dict:
    """A result in which a figure is something else."""
    made = copy.deepcopy(result())
    made["summary"][1]["figures"][SPEED] = value
    return made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged: it is no JSON"), ('{"kind": "ph', "is damaged: it is no JSON"),
        ("[]", "is no result of a benchmark"), ('{"kind": "other"}', "is no result of a benchmark"),
        (result(schema_version=2), "has version 2 of the form of results, and this collection reads 1"),
        (without("schema_version"), "has version None"),
        (without("summary"), "parts of it are missing"), (without("hardware"), "parts of it are missing"),
        (without("loads"), "parts of it are missing"), (without("sampling"), "parts of it are missing"),
        (without("date"), "parts of it are missing"), (without("model"), "parts of it are missing"),
        (result(summary=[]), "parts of it are missing"), (result(summary=None), "parts of it are missing"),
        (result(summary=[], loads=[]), "parts of it are missing"),
        (result(loads=[{}, {}]), "parts of it are missing"), (with_figure(None), "parts of it are missing"),
        (with_figure({"median": 1, "least": "x", "most": 2}), "parts of it are missing"),
        (with_figure([]), "parts of it are missing"),
    ],
)  # fmt: skip
def test_a_damaged_result_is_told_of_with_what_to_do(content, message):
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(ResultError, match=re.escape(message)) as caught:
        benchmark.parse_result(text, "results/921/accepted.json")
    told = str(caught.value)
    assert "results/921/accepted.json" in told and "the next run is accepted as the first" in told


@pytest.mark.parametrize(("path", "name", "revision"), [
    ("/models/org/.llama/0123456789abcdef", "/models/org/llama", "0123456789abcdef"),
    ("/models/org/llama", "/models/org/llama", ""), ("/models/org/llama/", "/models/org/llama", ""),
    ("org/llama", "org/llama", ""), ("/models/org/.llama/main", "/models/org/.llama/main", ""),
])  # fmt: skip
def test_a_model_s_revision_is_no_part_of_its_name(path, name, revision):
    assert benchmark.model_name(path) == (name, revision)


def test_the_client_has_of_the_server_s_environment_what_it_needs_and_no_secret():
    kept = {"HOME": "/c", "HF_HOME": "/c/hf", "HF_HUB_OFFLINE": "1", "PATH": "/bin", "https_proxy": "http://p:1",
            "VLLM_CACHE_ROOT": "/c/vllm", "SSL_CERT_FILE": "/etc/ca"}  # fmt: skip
    gone = {"VLLM_API_KEY": "a", "HF_TOKEN": "b", "PHOENIX_DIGEST": "c", "INVOCATION_ID": "d", "NOTIFY_SOCKET": "e",
            "VLLM_CPU_KVCACHE_SPACE": "1", "HF_API_KEY": "f"}  # fmt: skip
    assert benchmark.client_variables({**kept, **gone}) == kept


def test_what_a_servers_speed_depends_on_is_told_and_no_secret():
    told = {"VLLM_LOGGING_LEVEL": "DEBUG", "NCCL_P2P_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "1",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "LD_LIBRARY_PATH": "/x", "VLLM_MAX_TOKENS_PER_EXPERT": "9"}  # fmt: skip
    gone = {"VLLM_API_KEY": "a", "HF_TOKEN": "b", "PHOENIX_DIGEST": "c", "HOME": "/root"}
    assert benchmark.told_variables({**told, **gone}) == told


@pytest.mark.parametrize(("probe", "url"), [
    ({"host": "127.0.0.1", "port": 8000, "tls": False}, "http://127.0.0.1:8000"),
    ({"host": "127.0.0.1", "port": 8000}, "http://127.0.0.1:8000"),
    ({"host": "::1", "port": 8000, "tls": True}, "https://[::1]:8000"),
    ({"host": "127.0.0.1", "port": 443, "tls": {"name": "llm.example", "ca": "/x"}}, "https://llm.example:443"),
    ({"host": "127.0.0.1", "port": 443, "tls": {"name": "", "ca": "/x"}}, "https://127.0.0.1:443"),
])  # fmt: skip
def test_where_a_server_is(probe, url):
    assert benchmark.server_url(probe) == url


def test_what_nvidia_smi_says_of_gpus():
    line = "NVIDIA GeForce RTX 5060 Ti, GPU-0123, 16311, 580.65.06, 12.0, 180.00\n"
    assert benchmark.gpus_in(line * 2)[1] == {
        "name": "NVIDIA GeForce RTX 5060 Ti", "uuid": "GPU-0123", "memory_mib": "16311", "driver": "580.65.06",
        "compute_capability": "12.0", "power_limit_watts": "180.00",
    }  # fmt: skip
    assert benchmark.gpus_in("No devices were found\n") == [] == benchmark.gpus_in("")


def test_what_a_processor_is_called():
    assert benchmark.processor_in("processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t: x\n") == "AMD EPYC 9R14"
    assert benchmark.processor_in("processor: 0\n") == "unknown"


# --- for people -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "text"), [
    (13566.4, "13,566"), (423.0, "423"), (83.25, "83.2"), (9.949, "9.95"), (0.0, "0.00"),
])  # fmt: skip
def test_a_number_has_as_many_digits_as_mean_something(value, text):
    assert benchmark.number(value) == text


def test_a_table_has_all_loads_in_columns():
    lines = benchmark.table(result(SPEED, 100.0, 110.0, 120.0)).splitlines()
    assert re.split(r"  +", lines[0]) == [
        "load", "tokens/s", "first token ms", "first p99 ms", "between tokens ms", "between p99 ms",
    ]  # fmt: skip
    assert lines[2].startswith("1 stream, 256 in, 256 out    110 (100 to 120)") and len(lines) == 4
    assert {line.rstrip()[-4:] for line in lines[2:]} == {"10.0"}


def test_a_report_says_all():
    made = result(SPEED, 90.0, 90.0)
    rows = arms((120, 121, 119, 120), (100, 101, 99, 100))
    made["sampler"] = {"rounds": 4, "comparison": rows, "verdict": ["It is so."]}
    text = benchmark.report(made, benchmark.verdict(made, result(), benchmark.LIMITS, False))
    for part in ("ctid_921: /models/org/llama on gpus NVIDIA GeForce RTX 5060 Ti", "2 runs of each load",
                 "release vllm-0.10.2-0123456789ab (vllm 0.10.2, torch 2.8.0), driver 580.65.06", "+20.0 %", "better",
                 "FlashInfer sampler on and off in turns, 4 rounds:", "It is so.", "Against the accepted run:", "LOST",
                 "It is worse than the accepted run"):  # fmt: skip
        assert part in text
    assert "None" not in text


def test_a_report_of_a_first_run_is_short():
    made = result()
    text = benchmark.report(made, benchmark.verdict(made, None, benchmark.LIMITS, False))
    assert text.endswith("It is the first result, so it is the accepted one from now on.") and "LOST" not in text
