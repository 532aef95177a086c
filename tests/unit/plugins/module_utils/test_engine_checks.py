# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils.engine_args import flatten
from ansible_collections.phoenix.hypervisor.plugins.module_utils.engine_checks import Neighbour, Place, findings

STACKS = Path(__file__).resolve().parents[4] / "roles" / "vllm_stack" / "files" / "stacks"
OLD = json.loads((STACKS / "vllm-0.10.2-cu128" / "flags.json").read_text())
NEW = json.loads((STACKS / "vllm-0.32.0-cu130" / "flags.json").read_text())
CONSUMER, CENTRE = ("12.0",), ("9.0", "10.0")
FP8 = {"kv_cache_dtype": "fp8"}


def neighbour(ctid: int, gpus: list[int], together: str = "", **config) -> Neighbour:
    return Neighbour(ctid, gpus, {"ModelConfig": {"model": "m"}, "Mine": config}, together)


def look(config: dict, table: dict = OLD, **place) -> list[tuple[bool, str]]:
    arguments = flatten({"ModelConfig": {"model": "org/m"}, "Mine": config})
    return [(finding.certain, finding.text) for finding in findings(arguments, Place(921, **place), table)]


@pytest.mark.parametrize(
    ("config", "place"),
    [
        pytest.param({}, {}, id="nothing is known"),
        pytest.param({"tensor_parallel_size": 2}, {"gpus": [0, 1]}, id="two of two"),
        pytest.param({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, {"gpus": [0, 1, 2, 3]}, id="2 by 2"),
        pytest.param(
            {"data_parallel_size": 4, "data_parallel_size_local": 1}, {"gpus": [0]}, id="the others elsewhere"
        ),
        pytest.param({"tensor_parallel_size": 8, "distributed_executor_backend": "ray"}, {"gpus": [0]}, id="ray"),
        pytest.param({"tensor_parallel_size": 8}, {"gpus": [], "gpu": False}, id="CPU"),
        pytest.param({"model": None, "tokenizer": "/models/t"}, {"mounts": ["/models"]}, id="below a mount"),
        pytest.param({"tokenizer": "/models"}, {"mounts": ["/models/"]}, id="the mount itself"),
        pytest.param({"tokenizer": "/anywhere"}, {"mounts": ["/"]}, id="all is mounted"),
        pytest.param(
            {"gpu_memory_utilization": 0.5},
            {
                "gpus": [0],
                "neighbours": [
                    neighbour(950, [0], "both", gpu_memory_utilization=0.3),
                    neighbour(951, [0], "both", gpu_memory_utilization=0.2),
                ],
            },
            id="exactly all",
        ),
        pytest.param({}, {"gpus": [0], "neighbours": [neighbour(950, [1], "both")]}, id="another GPU"),
        pytest.param(
            {"kv_cache_memory_bytes": 10**9}, {"gpus": [0], "neighbours": [neighbour(950, [0], "both")]}, id="bytes"
        ),
        pytest.param(FP8, {"architectures": CENTRE}, id="fp8 in a data centre"),
        pytest.param(
            FP8, {"architectures": CONSUMER, "environment": {"VLLM_ATTENTION_BACKEND": "FLASHINFER"}}, id="fp8"
        ),
        pytest.param({"kv_cache_dtype": "auto"}, {"architectures": CONSUMER}, id="no fp8"),
        pytest.param({}, {"architectures": CONSUMER, "environment": {"VLLM_FLASH_ATTN_VERSION": "2"}}, id="FA 2"),
        pytest.param({"port": 8001}, {"features": ["portainer"], "gateway_port": 8001}, id="another port"),
        pytest.param({"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}, {}, id="tools"),
        pytest.param({"enable_auto_tool_choice": False}, {}, id="no tools"),
    ],
)
def test_what_fits_has_no_finding(config, place):
    assert look(config, **place) == []


@pytest.mark.parametrize(
    ("config", "place", "certain", "words"),
    [
        pytest.param(
            {"tensor_parallel_size": 4},
            {"gpus": [0, 1]},
            True,
            "tensor_parallel_size is 4, and gpu_assignment gives the container 2 GPUs (0, 1): assign 4, or make it 2.",
            id="too few GPUs",
        ),
        pytest.param(
            {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
            {"gpus": [3]},
            True,
            "tensor_parallel_size times pipeline_parallel_size is 4, and gpu_assignment gives the container 1 GPU (3)",
            id="a product",
        ),
        pytest.param({"data_parallel_size": 2}, {"gpus": [0]}, True, "data_parallel_size is 2", id="data parallel"),
        pytest.param({}, {"gpus": [0, 1]}, False, "tensor_parallel_size is 1", id="an idle GPU"),
        pytest.param({}, {"gpus": []}, True, "gpu_assignment is none", id="no GPU"),
        pytest.param(
            {"gpu_memory_utilization": 90}, {}, True, "gpu_memory_utilization is 90: it is the part", id="90 %"
        ),
        pytest.param({"gpu_memory_utilization": 0}, {"gpu": False}, True, "above 0 and at most 1", id="nothing"),
        pytest.param(
            {"tokenizer": "/models/../srv/t"},
            {"mounts": ["/models"]},
            False,
            "tokenizer is /srv/t, and only /models is mounted",
            id="not below a mount",
        ),
        pytest.param(
            {"tokenizer": "/models2"}, {"mounts": ["/models"]}, False, "tokenizer is /models2", id="a sibling"
        ),
        pytest.param({"tokenizer": "/t"}, {"mounts": []}, False, "nothing is mounted in the container", id="no mount"),
        pytest.param(
            {}, {"features": ["vllm", "portainer"]}, False, "port is 8000, and the feature portainer", id="port"
        ),
        pytest.param({}, {"gateway_port": 9000}, False, "traefik_service.port is 9000", id="gateway"),
        pytest.param({"port": 9500, "data_parallel_rpc_port": 9500}, {}, True, "are both 9500", id="two ports"),
        pytest.param({"enable_auto_tool_choice": True}, {}, True, "needs tool_call_parser", id="tools"),
        pytest.param(
            FP8,
            {"architectures": CONSUMER},
            False,
            "on GPUs of architecture 12.0 the attention that vLLM 0.10.2 takes by itself has no such cache: it "
            "falls back to its old, slower engine V0. Set VLLM_ATTENTION_BACKEND to FLASHINFER or "
            "TRITON_ATTN_VLLM_V1 in vllm_model_server_environment.",
            id="fp8",
        ),
        pytest.param(FP8, {}, False, "is assumed", id="fp8, architecture unknown"),
        pytest.param(
            FP8, {"architectures": ("9.0", "12.0")}, False, "12.0, of 9.0, 12.0, is assumed", id="fp8, several"
        ),
        pytest.param(
            FP8,
            {"architectures": CONSUMER, "environment": {"VLLM_USE_V1": "1"}},
            True,
            "it ends at its start",
            id="fp8, V1 insisted on",
        ),
        pytest.param(
            FP8, {"environment": {"VLLM_ATTENTION_BACKEND": "XFORMERS"}}, False, "no such cache", id="xformers"
        ),
        pytest.param(
            {},
            {"architectures": CONSUMER, "environment": {"VLLM_FLASH_ATTN_VERSION": "3"}},
            True,
            "VLLM_FLASH_ATTN_VERSION is 3, and FlashAttention 3 doesn't run",
            id="FA 3",
        ),
        pytest.param({}, {"environment": {"VLLM_FLASH_ATTN_VERSION": "3"}}, False, "is assumed", id="FA 3, perhaps"),
    ],
)
def test_what_does_not_fit_is_said_once(config, place, certain, words):
    ((sure, text),) = look(config, **place)
    assert sure is certain
    assert words in text
    assert "\n" not in text and text.endswith(".")


def test_later_releases_have_arguments_for_it():
    environment = {"VLLM_ATTENTION_BACKEND": "FLASHINFER", "VLLM_FLASH_ATTN_VERSION": "2"}
    texts = look({}, NEW, environment=environment, architectures=CONSUMER)
    assert [certain for certain, _text in texts] == [False, False]
    assert "write attention_backend in the engine config" in texts[0][1]
    assert look(FP8, NEW, architectures=CONSUMER) == []
    ((certain, text),) = look({**FP8, "attention_backend": "flash_attn"}, NEW, architectures=CONSUMER)
    assert certain and "take FLASHINFER or TRITON_ATTN" in text
    ((certain, text),) = look({"attention_config": {"flash_attn_version": 3}}, NEW, architectures=CONSUMER)
    assert certain and text.startswith("attention_config.flash_attn_version is 3")


def test_servers_that_run_at_the_same_time_are_refused_with_all_ctids():
    others = [
        neighbour(950, [0], "both start with the node", gpu_memory_utilization=0.4),
        neighbour(951, [0], "this run"),
    ]
    ((certain, text),) = look({"gpu_memory_utilization": 0.3}, gpus=[0], neighbours=others)
    assert certain
    assert "on GPU 0 want 1.6 of its memory together (CTID 921 0.3, CTID 950 0.4, CTID 951 0.9)" in text
    assert "CTID 950: both start with the node, CTID 951: this run" in text
    # On two GPUs it is still one sentence.
    ((certain, text),) = look(
        {"tensor_parallel_size": 2}, gpus=[0, 1], neighbours=[neighbour(950, [0, 1], "x", tensor_parallel_size=2)]
    )
    assert certain


def test_servers_that_may_never_meet_are_a_warning():
    ((certain, text),) = look({}, gpus=[0], neighbours=[neighbour(950, [0])])
    assert not certain
    assert "shares GPU 0 with CTID 950" in text and "1.8 of its memory (0.9 and 0.9)" in text
    # The stack tells what its own release takes; of the other one the least is sure.
    ((_certain, text),) = look({}, gpus=[0], vllm="0.32.0", neighbours=[neighbour(950, [0])])
    assert "1.82 of its memory (0.92 and 0.9)" in text
    # Which of its two GPUs the other one takes isn't known.
    ((certain, text),) = look({}, gpus=[0], neighbours=[neighbour(950, [0, 1], "both start with the node")])
    assert not certain


def test_a_neighbours_own_mistakes_are_its_own():
    broken = Neighbour(950, [0], {"ModelConfig": 3}, "x")
    assert look({}, gpus=[0], neighbours=[broken]) == []
    # Without a table nothing was checked before.
    assert look({"tensor_parallel_size": "many", "gpu_memory_utilization": "much"}, None, gpus=[0]) == []
