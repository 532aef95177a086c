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

import pooled
import proof
import report
from ansible_collections.phoenix.hypervisor.plugins.module_utils import benchmark_client

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


def _runs(*rates: float, load: int = 0, start: int = 1) -> list[dict]:
    """A round for each rate."""
    same = {"load": load, "start": start, "gpu": 0}
    figures = {"first_token_ms": 20.0, "inter_token_ms": 3.0}
    return [
        {**same, "round": turn, "figures": {"output_tokens_per_second": rate, **figures}}
        for turn, rate in enumerate(rates, 1)
    ]


def test_a_ratio_is_of_two_runs_that_follow_each_other():
    # The machine was half as fast in the second round: both medians say 0.75, the rounds say that nothing was lost.
    found = proof.compared({"rendered": _runs(100, 50, 100), "hand_made": _runs(100, 50, 100)}, proof.LOADS[:1])
    assert found["overall"]["median"] == 1.0 and found["overall"]["interval"] == [1.0, 1.0]
    loads = {
        "rendered": _runs(100, 100) + _runs(400, 400, load=1),
        "hand_made": _runs(100, 100) + _runs(100, 100, load=1),
    }
    found = proof.compared(loads, proof.LOADS[:2])
    assert [ratio["median"] for ratio in found["ratios"].values()] == [1.0, 4.0]
    assert found["overall"]["median"] == 2.0 and (found["rounds"], found["starts"]) == (2, 1)


def test_starts_are_what_is_drawn_for_the_interval():
    # Eight rounds say 0.9 and eight say 1.0, but they are two starts only: either may be what is so.
    slow = {"rendered": _runs(*[90] * 8) + _runs(*[100] * 8, start=2), "hand_made": _runs(*[100] * 8)}
    slow["hand_made"] += _runs(*[100] * 8, start=2)
    found = proof.compared(slow, proof.LOADS[:1])
    assert found["overall"]["interval"] == [0.9, 1.0] and (found["rounds"], found["starts"]) == (16, 2)
    # A round that is missing at one load is left out over all of them.
    loads = {arm: [*runs, *_runs(200, load=1), *_runs(200, load=1, start=2)] for arm, runs in slow.items()}
    found = proof.compared(loads, proof.LOADS[:2])
    assert len(found["overall"]["values"]) == 2


def test_results_are_pooled_by_start():
    # Two loads of one start without a number, and two starts of one load.
    old = {"runs": {arm: [{key: value for key, value in run.items() if key not in ("start", "gpu")} for run in runs]
                    for arm, runs in (("rendered", [*_runs(90, 90), *_runs(40, 40, load=1)]),
                                      ("hand_made", [*_runs(100, 100), *_runs(10, 10, load=1)]))},
           "loads": proof.LOADS[:2]}  # fmt: skip
    new = proof.compared({"rendered": [*_runs(100), *_runs(110, start=2)],
                          "hand_made": [*_runs(100), *_runs(100, start=2)]}, proof.LOADS[:1])  # fmt: skip
    found = pooled.pooled([{"x": old}, {}, {"x": new}], "x")
    one, two = (benchmark_client.load_name(load) for load in proof.LOADS[:2])
    assert found[one] == [[0.9, 0.9], [1.0], [1.1]] and found[two] == [[4.0, 4.0]]
    assert [pytest.approx(start) for start in found["all loads"]] == [[3.6**0.5] * 2, [1.0], [1.1]]
    lines = pooled.table(found)
    assert lines[2].startswith(f"| {one} | 4 | 3 | 0.950 (0.900 to 1.100) | 0.972 (")
    assert lines[3] == f"| {two} | 2 | 1 | 4.000 (4.000 to 4.000) | 4.000 (4.000 to 4.000) |"


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("$WORK/model", "$WORK/model"), ("$RELEASE", "$RELEASE"), ("/a/b", "/a/b"), ("$HOME/x", "'$HOME/x'"),
     ("$WORK/a b", "'$WORK/a b'"), ("$WORKING", "'$WORKING'"), ("", "''"), ('{"a": 1}', """'{"a": 1}'""")],
)  # fmt: skip
def test_only_stand_ins_are_left_to_the_shell(word, quoted):
    assert report.quoted(word) == quoted


def test_processors_are_parted_where_there_are_enough():
    assert proof.parted(range(4), 2) == [({0, 1, 2, 3}, {0, 1, 2, 3})] * 2
    first, second = proof.parted(range(32), 2)
    assert first == (set(range(12)), set(range(12, 16))) and second == (set(range(16, 28)), set(range(28, 32)))


@pytest.mark.parametrize(
    ("rates", "wrong"),
    [
        ([100, 101, 99], []),
        ([97, 90, 97.5], ["over all loads the rendered server has 0.970", "1 stream, 128 in, 128 out the rendered"]),
        ([97, 101, 90], ["over all loads the rendered server has 0.970"]),
    ],
)
def test_a_rendered_server_that_is_slower_is_wrong(rates, wrong):
    judged = proof.Proof.__new__(proof.Proof)
    judged.wrong = []
    runs = {"rendered": _runs(*rates), "hand_made": _runs(100, 100, 100)}
    judged.result = {"x": proof.compared(runs, proof.LOADS[:1])}
    judged.judge("x")
    assert len(judged.wrong) == len(wrong) and all(words in line for words, line in zip(wrong, judged.wrong))


def test_what_was_not_measured_is_wrong():
    judged = proof.Proof.__new__(proof.Proof)
    judged.wrong, judged.result = [], {}
    judged.judge("x")
    assert judged.wrong == ["x: nothing was measured"]


def test_the_page_has_what_was_measured():
    result = {
        "date": "2026-11-28T01:00:00Z", "machine": MACHINE, "wrong": ["x: it was slow"],
        "asked": {"arguments": ["--release", "/opt/vllm"], "sampling": proof.SAMPLING},
        "rendered_to_hand_made": {
            **proof.compared({"rendered": _runs(4400, 4300), "hand_made": _runs(4300, 4300)}, proof.LOADS[1:2]),
            "same_settings": True,
        },
        "server_cold_rendered": {
            "command": ["vllm", "serve"], "environment": {"A": "1"}, "log": ["Using FLASH_ATTN"],
            "engine_config_file": "port: 8100\n", "starts": [105.0],
        },
        "server_hand_made": {"error": "ended with 1", "log": [], "command": []},
    }  # fmt: skip
    page = report.page(result)
    for words in ("not Blackwell", "- x: it was slow", "| rendered, empty caches | 105.0 s |", "port: 8100",
                  "| 32 streams, 256 in, 256 out | **1.012** |", "4,350 (4,300 to 4,400)", "It did not answer",
                  "2 rounds of 1 start.", "both engines had the same settings",
                  'make gpu-proof ARGS="--release /opt/vllm"'):  # fmt: skip
        assert words in page
    assert "rendered, kept caches" not in page


@pytest.mark.parametrize("path", sorted((ROOT / "docs/benchmarks").glob("*/README.md")))
def test_kept_pages_say_which_gpu_it_was(path):
    result = json.loads((path.parent / "result.json").read_text())
    assert report.warning(result.get("first", result)["machine"]) in path.read_text()
