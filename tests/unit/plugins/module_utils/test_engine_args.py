# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import argparse
import datetime
import json
import os
import re

import pytest
import yaml
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args
from ansible_collections.phoenix.hypervisor.plugins.module_utils.engine_args import EngineConfigError
from engine_configs import configs
from hypothesis import given, settings
from hypothesis import strategies as st

STACKS = os.path.join(os.path.dirname(__file__), "..", "..", "..", "..", "roles", "vllm_stack", "files", "stacks")
with open(os.path.join(STACKS, "cpu", "flags.json"), encoding="utf-8") as file:
    TABLE = json.load(file)
with open(os.path.join(STACKS, "vllm-0.10.2-cu128", "flags.json"), encoding="utf-8") as file:
    TABLE_0_10 = json.load(file)

CONFIG_921 = {
    "ModelConfig": {
        "model": "meta-llama/Llama-3.2-3B-Instruct",
        "trust_remote_code": True,
        "dtype": "auto",
        "max_model_len": 8192,
    },
    "CacheConfig": {"quantization": "fp8", "kv_cache_dtype": "fp8", "gpu_memory_utilization": 0.90},
    "ParallelConfig": {"tensor_parallel_size": 2},
    "ServerConfig": {"host": "0.0.0.0", "port": 8000, "served_model_name": "llama-3.2-3b-fp8"},
}


def words_of_vllm(text: str, booleans=()) -> list[str]:
    """What `vllm serve` 0.32.0 makes of a config file (load_config_file), for comparison."""
    words = []
    for key, value in yaml.safe_load(text).items():
        if isinstance(value, bool):
            if value:
                words.append("--" + key)
            elif key in booleans:
                words.append("--no-" + key)
        elif isinstance(value, list):
            words += ["--" + key, *map(str, value)] if value else []
        else:
            words += ["--" + key, json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def words(config: dict, table=TABLE) -> list[str]:
    _model, arguments = engine_args.split_model(engine_args.flatten({"model": "m", **config}))
    return words_of_vllm(engine_args.render(engine_args.check(arguments, table), table))


def test_the_example_of_the_project_plan():
    model, arguments = engine_args.split_model(engine_args.flatten(CONFIG_921))
    text = engine_args.render(engine_args.check(arguments, TABLE), TABLE)
    assert model == "meta-llama/Llama-3.2-3B-Instruct"
    assert text.splitlines()[1:] == [
        'dtype: "auto"',
        "gpu-memory-utilization: 0.9",
        'host: "0.0.0.0"',
        'kv-cache-dtype: "fp8"',
        "max-model-len: 8192",
        "port: 8000",
        'quantization: "fp8"',
        "served-model-name:",
        '- "llama-3.2-3b-fp8"',
        "tensor-parallel-size: 2",
        "trust-remote-code: true",
    ]


@pytest.mark.parametrize("group", ["ModelConfig", "SchedulerConfig", "Anything"])
def test_an_argument_is_accepted_in_any_group_or_none(group):
    assert engine_args.flatten({group: {"max_num_seqs": 4}}) == engine_args.flatten({"max-num-seqs": 4})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"enforce_eager": True}, ["--enforce-eager"]),
        ({"enforce_eager": False}, ["--no-enforce-eager"]),
        ({"disable_log_stats": True}, ["--disable-log-stats"]),
        ({"disable_log_stats": False}, []),
        ({"seed": -1}, ["--seed=-1"]),
        ({"seed": "7"}, ["--seed", "7"]),
        ({"gpu_memory_utilization": 0.85}, ["--gpu-memory-utilization", "0.85"]),
        ({"gpu_memory_utilization": 1}, ["--gpu-memory-utilization", "1"]),
        ({"max_model_len": "8k"}, ["--max-model-len", "8k"]),
        ({"max_model_len": -1}, ["--max-model-len=-1"]),
        ({"served_model_name": ["a", "b c"]}, ["--served-model-name", "a", "b c"]),
        ({"served_model_name": "007"}, ["--served-model-name", "007"]),
        ({"served_model_name": "yes"}, ["--served-model-name", "yes"]),
        ({"lora_modules": [{"name": "x", "path": "/p"}]}, ["--lora-modules", '{"name": "x", "path": "/p"}']),
        ({"middleware": ["a.B", "c.D"]}, ["--middleware=a.B", "--middleware=c.D"]),
        ({"allowed_origins": ["*"]}, ["--allowed-origins", '["*"]']),
        ({"allowed_origins": []}, ["--allowed-origins", "[]"]),
        ({"speculative_config": {"model": "x", "n": None}}, ["--speculative-config", '{"model": "x", "n": null}']),
        ({"compilation_config": '{"mode": 3}'}, ["--compilation-config", '{"mode": 3}']),
        ({"chat_template": "-odd.jinja"}, ["--chat-template=-odd.jinja"]),
        ({"chat_template": "{{ 50 % 'a' }} $HOME\n\u2028ü😀"}, ["--chat-template", "{{ 50 % 'a' }} $HOME\n\u2028ü😀"]),
        ({"policy": "priority"}, ["--scheduling-policy", "priority"]),
        ({"cache_dtype": "fp8"}, ["--kv-cache-dtype", "fp8"]),
        ({"quantization": None}, []),
        ({"revision": "1e5"}, ["--revision", "1e5"]),
        ({"revision": "1.10"}, ["--revision", "1.10"]),
        ({"revision": "0x10"}, ["--revision", "0x10"]),
        ({"revision": ""}, ["--revision", ""]),
    ],
)
def test_values_arrive(config, expected):
    assert (words(config) if config != {"quantization": None} else words({**config, "seed": 1})[2:]) == expected


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"max_model_length": 1}, "the nearest that it has is max_model_len"),
        ({"tensor_paralel_size": 1}, "the nearest that it has is tensor_parallel_size"),
        ({"no_enforce_eager": True}, "write enforce_eager: false"),
        ({"xyzzy": 1}, "no argument of vLLM 0.32.0+cpu; see `vllm serve --help=all`"),
        ({"swap_space": 4}, "swap_space is 4: it is no argument of vLLM 0.32.0+cpu; it is gone; nothing is swapped"),
        ({"compilation_config.mode": 3}, "write it as an object, compilation_config: {mode: …}"),
        ({"enforce_eager": "yes"}, "enforce_eager is 'yes': it must be true or false"),
        ({"enforce_eager": 1}, "must be true or false"),
        ({"tensor_parallel_size": "two"}, "tensor_parallel_size is 'two': it must be an integer"),
        ({"tensor_parallel_size": 1.5}, "must be an integer"),
        ({"tensor_parallel_size": True}, "must be an integer"),
        ({"gpu_memory_utilization": "much"}, "must be a number"),
        ({"gpu_memory_utilization": float("nan")}, "must be a finite number"),
        ({"max_model_len": "eight"}, "must be an integer, or one with k"),
        ({"revision": {"a": 1}}, "revision is an object: it must be a string"),
        ({"dtype": True}, "dtype is true: vLLM 0.32.0+cpu takes auto, bfloat16"),
        ({"kv_cache_dtype": "fp9"}, "kv_cache_dtype is 'fp9': vLLM 0.32.0+cpu takes auto, bfloat16"),
        ({"quantization": "fp9"}, "quantization is 'fp9': vLLM 0.32.0+cpu takes auto_awq"),
        ({"attention_backend": "FLASHINFR"}, "takes AUTO, AMX_MLA"),
        ({"max_model_len": 8192.0}, "must be an integer, or one with k"),
        ({"max_num_batched_tokens": "1.5K"}, "must be an integer, or one with k, m or g (powers of 1000)"),
        ({"max_num_batched_tokens": "auto"}, "K, M or G."),
        ({"cudagraph_capture_sizes": [1, "two"]}, "must be an integer"),
        ({"collect_detailed_traces": ["model", "all of it"]}, "takes all, model, worker"),
        ({"allowed_origins": "*"}, "a string here must be JSON; write an object or a list"),
        ({"compilation_config": [3]}, "must be an object"),
        ({"compilation_config": "[3]"}, "must be an object"),
        ({"compilation_config": {"modes": 3}}, "it has no key modes; is mode meant"),
        ({"compilation_config": '{"modes": 3}'}, "it has no key modes"),
        ({"hf_overrides": ["a"]}, "it must be an object or a string"),
        ({"hf_overrides": {"a": float("inf")}}, "something that JSON hasn't"),
        ({"hf_overrides": {"a": datetime.date(2026, 1, 1)}}, "something that JSON hasn't"),
        ({"revision": datetime.date(2026, 1, 1)}, "must be a string or a number"),
        ({"revision": "--"}, "two dashes"),
        ({"served_model_name": ["a", ""]}, "an empty string and the word None in a list as nothing"),
        ({"chat_template": "x" * 1000 + "\0"}, "chat_template is 'xxxxx"),
        ({"served_model_name": []}, "empty list"),
        ({"served_model_name": ["a", "-b"]}, "begins with a dash"),
        ({"served_model_name": [["a"]]}, "must be a list of strings"),
        ({"revision": "a\0b"}, "no argument can hold"),
        ({"port": 80}, "port is 80"),
        ({"port": "99999"}, "from 1024 to 65535"),
        ({"config": "x.yaml"}, "can't be set in an engine config"),
        ({"ModelConfig": 3}, "ModelConfig is a group and must be an object, not a number"),
        ({"a b": 3}, "can't be an argument"),
        ({"A": {"seed": 1}, "B": {"seed": 2}}, "seed is given twice, A.seed says 1 and B.seed says 2"),
        ({"A": {"seed": 1}, "B": {"seed": True}}, "given twice"),
    ],
)
def test_mistakes_are_one_sentence(config, sentence):
    with pytest.raises(EngineConfigError) as error:
        words(config)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert len(error.value.problems) == 1
    assert len(str(error.value)) < 500 or "takes" in sentence


GONE_BY_0_32 = sorted(set(TABLE_0_10["flags"]) - set(TABLE["flags"]))


def test_all_mistakes_are_told_at_once_with_their_places():
    config = {
        "ModelConfig": {"model": "m", "max_modl_len": 512, "dtype": "bf16"},
        "CacheConfig": {"swap_space": 4, "gpu_memory_utilization": "much"},
        "ServerConfig": {"port": 80, "config": "x", "api_key": {"s3cret": 1}, "max_num_seqs": 4},
        "Other": 3,
        "Twice": {"max_num_seqs": 5},
    }
    found = engine_args.problems(config, TABLE)
    assert [problem.split(" ")[0] for problem in found] == [
        *["Other", "ServerConfig.config", "max_num_seqs"],
        *["ModelConfig.max_modl_len", "ModelConfig.dtype", "CacheConfig.swap_space"],
        *["CacheConfig.gpu_memory_utilization", "ServerConfig.port", "ServerConfig.api_key"],
    ]
    assert "s3cret" not in " ".join(found)
    assert all(problem.endswith(".") and "\n" not in problem for problem in found)
    assert engine_args.problems({"ModelConfig": {"model": "m"}}, TABLE) == []
    assert engine_args.problems({}, TABLE)[0].startswith("ModelConfig.model is missing")


@pytest.mark.parametrize("name", GONE_BY_0_32)
def test_what_left_says_what_to_do(name):
    (problem,) = engine_args.problems({"model": "m", "Group": {name.replace("-", "_"): "x"}}, TABLE)
    assert "it is gone; " in problem
    # Advice names arguments that are there.
    for word in re.findall(r"\b[a-z0-9]+(?:_[a-z0-9]+)+(?=:)", problem.split("it is gone; ")[1].split("{")[0]):
        assert word.replace("_", "-") in TABLE["flags"], problem


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"task": "embed"}, "write runner: pooling, and convert: embed"),
        ({"task": "generate"}, "write runner: generate"),
        ({"task": ["embed"]}, "write runner (generate or pooling)"),
        ({"rope_scaling": {"factor": 2}}, 'write hf_overrides: {"rope_parameters"'),
        ({"guided_decoding_backend": "xgrammar"}, "write structured_outputs_config: {backend: …}"),
        ({"disable_log_requests": True}, "enable_log_requests: true"),
        ({"enable_reasoning": True}, "reasoning_parser alone says it"),
    ],
)
def test_what_replaced_it(config, sentence):
    assert sentence in engine_args.problems({"model": "m", **config}, TABLE)[0]


def test_what_came_later():
    (problem,) = engine_args.problems({"model": "m", "attention_backend": "FLASHINFER"}, TABLE_0_10)
    assert "no argument of vLLM 0.10.2; it came later; set VLLM_ATTENTION_BACKEND" in problem
    (problem,) = engine_args.problems({"model": "m", "async_engine": 1, "grpc": True}, TABLE_0_10, {"cpu": TABLE})[1:]
    assert "but of 0.32.0+cpu (stack cpu)" in problem
    # Only vLLM 0.32.0 has a word for it.
    assert engine_args.problems({"model": "m", "max_model_len": "auto"}, TABLE) == []
    assert engine_args.problems({"model": "m", "max_model_len": "auto"}, TABLE_0_10) != []


@pytest.mark.parametrize("model", [None, "", " ", "-x", 3, "a\nb"])
def test_a_model_is_needed(model):
    with pytest.raises(EngineConfigError, match=r"ModelConfig\.model"):
        engine_args.split_model(engine_args.flatten({"ModelConfig": {"model": model}}))


def test_the_same_twice_is_fine():
    assert engine_args.flatten({"A": {"seed": 1}, "B": {"seed": 1}}) == {"seed": 1}


def test_without_a_table_values_say_what_they_are():
    config = {"brand_new": False, "other": [1, "b"], "thing": {"a": 1}, "empty": [], "deep": [{"a": 1}], "plain": 3}
    # In the order of the entries in the file; "no-brand-new" stands where "brand-new" is sorted.
    assert words(config, None) == [
        *["--no-brand-new", "--deep", '[{"a": 1}]', "--empty", "[]"],
        *["--other", "1", "b", "--plain", "3", "--thing", '{"a": 1}'],
    ]


def test_a_file_without_arguments_is_an_object():
    assert yaml.safe_load(engine_args.render({})) == {}


def test_secrets_are_hidden_and_never_in_a_message():
    config = {"ServerConfig": {"api_key": ["s3cret"], "hf_token": "-t0ken", "port": 8001}}
    arguments = engine_args.flatten(config)
    assert engine_args.secrets(arguments) == ["-t0ken", "s3cret"]
    text = engine_args.render(engine_args.check(arguments, TABLE), TABLE)
    shown = engine_args.hide(text)
    assert "s3cret" in text and "t0ken" in text
    assert "s3cret" not in shown and "t0ken" not in shown
    assert yaml.safe_load(shown) == {"api-key": "(hidden)", "hf-token": "(hidden)", "port": 8001}
    for mistake in ({"api_key": {"s3cret": 1}}, {"A": {"api_key": "s3cret"}, "B": {"api_key": "other"}}):
        with pytest.raises(EngineConfigError) as error:
            words(mistake)
        assert "s3cret" not in str(error.value)


def parser_of(table: dict) -> argparse.ArgumentParser:
    """A parser of Python's with the arguments of a table. tests/parser has vLLM's own."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name, entry in table["flags"].items():
        how = {
            "boolean": {"action": argparse.BooleanOptionalAction},
            "switch": {"action": "store_true"},
            "integer": {"type": int},
            "number": {"type": float},
            "object": {"type": str if "words" in entry else json.loads},
            "list": {"nargs": "+", "type": int if "items" in entry else str},
            "repeated": {"action": "append", "default": []},
        }.get(entry["kind"], {})
        choices = {"choices": [how.get("type", str)(word) for word in entry["choices"]]} if "choices" in entry else {}
        parser.add_argument(f"--{name}", dest=name, **choices, **how)
    return parser


def expected(kind: str, entry: dict, content) -> object:
    """What a parser should have for a value."""
    if kind in ("list", "repeated"):
        items = content if isinstance(content, list) else [content]
        number = "items" in entry
        return [item if number else json.dumps(item) if isinstance(item, dict) else word_of(item) for item in items]
    if kind == "object" and "words" in entry:
        return content if isinstance(content, str) else json.dumps(content)
    if kind == "object":
        return json.loads(content) if isinstance(content, str) else content
    if kind in ("boolean", "switch"):
        return content
    return {"integer": int, "number": float}.get(kind, word_of)(content)


def word_of(value) -> str:
    return value if isinstance(value, str) else repr(value)


@pytest.mark.parametrize("table", [TABLE, TABLE_0_10], ids=lambda table: table["vllm"])
def test_any_config_arrives(table):
    parser = parser_of(table)
    nothing = vars(parser.parse_args([]))

    @given(configs(table))
    @settings(max_examples=150, deadline=None)
    def run(case):
        model, config, declared = case
        named, arguments = engine_args.split_model(engine_args.flatten(config))
        assert named == model
        got = vars(parser.parse_args(words_of_vllm(engine_args.render(engine_args.check(arguments, table), table))))
        for name, entry in declared.items():
            wanted = expected(entry["kind"], table["flags"][name], entry["value"])
            assert got.pop(name) == wanted
        assert all(value == nothing[name] for name, value in got.items())

    run()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
@settings(max_examples=300, deadline=None)
def test_any_text_arrives(text):
    got = words({"chat_template": text})
    assert got == (["--chat-template=" + text] if text.startswith("-") else ["--chat-template", text])


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
@settings(max_examples=300, deadline=None)
def test_any_number_arrives(number):
    got = words({"thing": number}, None)
    assert len(got) == (1 if repr(number).startswith("-") else 2)
    assert type(number)(got[0].split("=")[1] if len(got) == 1 else got[1]) == number


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp", "Cf", "Cn", "Co", "Zs"]), min_size=1))
@settings(max_examples=200, deadline=None)
def test_unit_words_are_ascii_safe(text):
    word = engine_args.unit_word(text)
    if word != text:
        assert word[0] == word[-1] == '"'
        assert word[1:-1].replace("\\\\", "").replace('\\"', "").count('"') == 0
        assert word.replace("%%", "").count("%") == word.replace("$$", "").count("$") == 0


def test_a_unit_word_can_not_hold_a_line_break():
    with pytest.raises(EngineConfigError, match="control character"):
        engine_args.unit_word("a\nExecStartPre=/bin/false")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ("127.0.0.1", 8000)),
        ({"host": "0.0.0.0", "port": 9000}, ("127.0.0.1", 9000)),
        ({"host": "::"}, ("::1", 8000)),
        ({"host": "10.0.0.5", "port": "8001"}, ("10.0.0.5", 8001)),
    ],
)
def test_where_to_ask(arguments, expected):
    assert engine_args.address(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"model": "m"}, "/v1/completions"),
        ({"model": "m", "runner": "pooling"}, "/v1/embeddings"),
        ({"model": "m", "convert": "classify"}, "/classify"),
        ({"model": "m", "convert": "reward", "runner": "pooling"}, "/pooling"),
        ({"model": "m", "task": "embed"}, "/v1/embeddings"),
    ],
)
def test_what_to_ask(arguments, path):
    assert engine_args.probe(arguments)[0] == path


def test_the_name_to_ask_for():
    assert engine_args.served_name({"model": "m"}) == "m"
    assert engine_args.served_name({"model": "m", "served-model-name": ["a", "b"]}) == "a"
    assert engine_args.probe({"model": "m", "served-model-name": "a"})[1]["model"] == "a"


@pytest.mark.parametrize(
    ("vllm", "least", "most"),
    [
        ("0.10.2", 0.9, 0.9),
        ("0.19.1", 0.9, 0.9),
        ("0.20.0", 0.92, 0.92),
        ("0.32.0+cpu", 0.92, 0.92),
        ("1.0.0", 0.92, 0.92),
        # Not known: as little, or as much, as any takes.
        ("", 0.9, 0.92),
        ("main", 0.9, 0.92),
    ],
)
def test_what_vllm_takes_of_a_gpu_by_itself(vllm, least, most):
    assert engine_args.default_share(vllm) == least
    assert engine_args.default_share(vllm, most=True) == most
