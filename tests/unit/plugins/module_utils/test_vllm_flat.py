# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import lxc_config, vllm_flat
from hypothesis import given, settings
from hypothesis import strategies as st


def structured(**entry: Any) -> dict[str, Any]:
    """The arguments of an entry without their groups; fails on any mistake."""
    data = {"lxc_configs": {"950": {"template": "x", **entry}}}
    assert [str(problem) for problem in lxc_config.check(data, "f")] == []
    config = lxc_config.Model(data, "f").role_variables("950").get("vllm_model_server_engine_config", {})
    flat: dict[str, Any] = {}
    for members in config.values():
        assert not set(flat) & set(members)
        flat.update(members)
    return flat


def refused(**entry: Any) -> str:
    problems = lxc_config.check({"lxc_configs": {"950": {"template": "x", **entry}}}, "f")
    assert len(problems) == 1, problems
    return str(problems[0])


@pytest.mark.parametrize(
    ("entry", "arguments"),
    [
        ({"vllm_model": "m"}, {"model": "m"}),
        ({"vllm_model": "m", "vllm_model_type": "chat"}, {"model": "m"}),
        ({"vllm_model_type": "embedding"}, {"runner": "pooling"}),
        ({"vllm_model_type": "embedding", "vllm_args": ["--task", "embed"]}, {"runner": "pooling"}),
        ({"vllm_quantization": "none"}, {}),
        ({"vllm_quantization": "awq"}, {"quantization": "awq"}),
        ({"vllm_max_model_len": "8192"}, {"max_model_len": 8192}),
        ({"vllm_max_model_len": "32k"}, {"max_model_len": "32k"}),
        ({"vllm_gpu_memory_utilization": "0.90"}, {"gpu_memory_utilization": 0.9}),
        ({"vllm_trust_remote_code": "false"}, {"trust_remote_code": False}),
        ({"vllm_served_model_name": ["a", "b"]}, {"served_model_name": ["a", "b"]}),
        ({"vllm_port": 8001}, {"port": 8001}),
        (
            {"vllm_parameters": {"max-num-seqs": 4, "--dtype": "half", "seed": None}},
            {"max_num_seqs": 4, "dtype": "half"},
        ),
        ({"vllm_parameters": {"enforce_eager": False}}, {"enforce_eager": False}),
        ({"vllm_parameters": {"no_enable_prefix_caching": True}}, {"enable_prefix_caching": False}),
        ({"vllm_parameters": {"rope_scaling": {"factor": 2}}}, {"rope_scaling": {"factor": 2}}),
        ({"vllm_args": ["--max-model-len", "4096"]}, {"max_model_len": 4096}),
        ({"vllm_args": ["--max-model-len=4096"]}, {"max_model_len": 4096}),
        ({"vllm_args": ["--max-model-len 4096", "--enforce-eager"]}, {"max_model_len": 4096, "enforce_eager": True}),
        ({"vllm_args": ["--max-num-seqs", 64]}, {"max_num_seqs": 64}),
        ({"vllm_args": "--enforce-eager"}, {"enforce_eager": True}),
        ({"vllm_args": ["--no-enable-prefix-caching"]}, {"enable_prefix_caching": False}),
        ({"vllm_args": ["-tp", "2", "-q", "awq"]}, {"tensor_parallel_size": 2, "quantization": "awq"}),
        ({"vllm_args": ["--served-model-name", "a", "007"]}, {"served_model_name": ["a", "007"]}),
        ({"vllm_args": ["--revision", "1.10"]}, {"revision": "1.10"}),
        ({"vllm_args": ["--some-version", "1.10"]}, {"some_version": "1.10"}),
        ({"vllm_args": ["--gpu-memory-utilization", "0.90"]}, {"gpu_memory_utilization": 0.9}),
        ({"vllm_args": ["--seed", "-1"]}, {"seed": -1}),
        ({"vllm_args": ["--rope-scaling", '{"factor": 2.0}']}, {"rope_scaling": {"factor": 2.0}}),
        ({"vllm_args": ["--rope-scaling '{\"factor\": 2.0}'"]}, {"rope_scaling": {"factor": 2.0}}),
        ({"vllm_args": ["--chat-template", "a b"]}, {"chat_template": "a b"}),
        ({"vllm_args": ["--x", "{not json"]}, {"x": "{not json"}),
        ({"vllm_args": ["--middleware", "a", "--middleware=b"]}, {"middleware": ["a", "b"]}),
        (
            {"vllm_engine_config": {"ModelConfig": {"model": "m"}}, "vllm_port": 8001, "vllm_args": ["--port", "8001"]},
            {"model": "m", "port": 8001},
        ),
        ({"vllm_engine_config": {"A": {"max-model-len": 4}, "B": {"max_model_len": 4}}}, {"max_model_len": 4}),
    ],
)
def test_arguments(entry: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert structured(**entry) == arguments


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"vllm_max_model_len": 8192, "vllm_args": ["--max-model-len", "4096"]},
            "CTID 950, key vllm_args[0]: 4096 is a second value for the argument max_model_len, which "
            "vllm_max_model_len sets to 8192; say it in one place, or the same in both.",
        ),
        ({"vllm_port": 8000, "vllm_parameters": {"port": 8001}}, "key vllm_parameters.port: 8001 is a second value"),
        ({"vllm_args": ["--seed", "1", "--seed", "2"]}, "key vllm_args[2]: 2 is a second value"),
        ({"vllm_model_type": "embedding", "vllm_args": ["--runner", "generate"]}, "the argument runner"),
        ({"vllm_trust_remote_code": True, "vllm_args": ["--no-trust-remote-code"]}, "the argument trust_remote_code"),
        ({"vllm_engine_config": {"A": {"seed": 1}, "B": {"seed": 2}}}, "key vllm_engine_config.B.seed: 2 is a second"),
        ({"vllm_args": ["model"]}, 'key vllm_args[0]: "model" belongs to no argument'),
        ({"vllm_args": ["--port", "99999"]}, "key vllm_args[0]: 99999 is not a whole number from 1 to 65535"),
        ({"vllm_args": ["--gpu-memory-utilization", "90"]}, "key vllm_args[0]: 90 is not a share"),
        ({"vllm_args": ["-zz", "1"]}, 'key vllm_args[0]: "-zz" is an abbreviation'),
        ({"vllm_args": ["--x 'a"]}, "has a quote that is never closed"),
    ],
)
def test_refused(entry: dict[str, Any], said: str) -> None:
    assert said in refused(**entry)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (8192, "8192", True),
        (0.9, "0.90", True),
        (1, 1.0, True),
        (True, "true", True),
        (True, 1, False),
        (["a"], "a", True),
        (["a", "b"], "a", False),
        ({"a": 1}, '{"a": 1.0}', True),
        ("a", "b", False),
        (None, "None", False),
    ],
)
def test_same(one: Any, other: Any, same: bool) -> None:
    for pair in ((one, other), (other, one)):
        assert vllm_flat.same(*pair) is same


def test_groups_and_the_deprecation() -> None:
    entry = {
        "template": "x",
        "vllm_model": "m",
        "vllm_quantization": "awq",
        "vllm_tensor_parallel_size": 2,
        "vllm_port": 8000,
        "vllm_args": ["--max-num-seqs", "4", "--some-new-thing"],
    }
    (sentence,) = lxc_config.Model({"lxc_configs": {"950": entry}}, "f").deprecations("950")
    old, today = sentence.split(": the flat form is old; write this in its place: ")
    assert old == "vllm_model, vllm_quantization, vllm_tensor_parallel_size, vllm_port, vllm_args"
    assert json.loads("{" + today + "}") == {
        "vllm_engine_config": {
            "ModelConfig": {"model": "m"},
            "CacheConfig": {"quantization": "awq"},
            "ParallelConfig": {"tensor_parallel_size": 2},
            "ServerConfig": {"port": 8000, "some_new_thing": True},
            "SchedulerConfig": {"max_num_seqs": 4},
        }
    }
    # What it says to write means the same.
    today_entry = {"template": "x", **json.loads("{" + today + "}")}
    model = lxc_config.Model({"lxc_configs": {"950": entry, "951": today_entry}}, "f")
    variable = "vllm_model_server_engine_config"
    assert model.role_variables("950")[variable] == model.role_variables("951")[variable]
    assert model.deprecations("951") == []


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"x[a-z]{1,6}(_[a-z]{1,4})?", fullmatch=True),
        st.integers(-(10**12), 10**12)
        | st.booleans()
        | st.from_regex(r"[a-zA-Z/][a-zA-Z0-9/._ -]{0,9}", fullmatch=True),
        max_size=5,
    )
)
def test_words_mean_what_the_object_means(arguments: dict[str, Any]) -> None:
    words: list[str] = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
    assert structured(vllm_args=words) == structured(vllm_parameters={k: _word(v) for k, v in arguments.items()})


def _word(value: Any) -> Any:
    """A word "true" on a command line and the boolean are the same."""
    return value.lower() == "true" if isinstance(value, str) and value.lower() in ("true", "false") else value
