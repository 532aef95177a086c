# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two forms in which a container says what its model server is started with, brought into one.

The structured form is C(vllm_engine_config): groups of arguments. The older flat form is C(vllm_model), C(vllm_port)
and the like, C(vllm_parameters) (an object of further arguments) and C(vllm_args) (words of a command line). Here they
become L(Argument)s, one per place that gives a value, and from that one structured configuration.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable

# What a place in the declaration is called: ("vllm_engine_config", "ModelConfig", "model")
Path = tuple
# Called with (path, value, fault, remedy) for each mistake.
Report = Callable[[Path, Any, str, str], None]
# Called with (name, value, path) for each argument in the words of a command line; gives the value in its right form,
# or None after it has reported why not. What is in the other forms was looked at before.
Check = Callable[[str, Any, Path], Any]

# Flat key of the old form -> argument of vLLM. `vllm_model_type`, `vllm_parameters` and `vllm_args` are no such keys.
FLAT_KEYS = {
    "vllm_model": "model",
    "vllm_quantization": "quantization",
    "vllm_max_model_len": "max_model_len",
    "vllm_gpu_memory_utilization": "gpu_memory_utilization",
    "vllm_tensor_parallel_size": "tensor_parallel_size",
    "vllm_served_model_name": "served_model_name",
    "vllm_port": "port",
    "vllm_trust_remote_code": "trust_remote_code",
}
OTHER_FLAT_KEYS = ("vllm_model_type", "vllm_parameters", "vllm_args")

# The group that an argument is written into. The model server accepts an argument in any group, so this is for the
# reader only, and what isn't listed goes to ServerConfig. These files always had quantization in CacheConfig.
# fmt: off
GROUPS = {
    "ModelConfig": (
        "model", "runner", "convert", "task", "tokenizer", "tokenizer_mode", "tokenizer_revision",
        "trust_remote_code", "dtype", "seed", "revision", "code_revision", "max_model_len", "enforce_eager",
        "hf_overrides", "rope_scaling", "rope_theta", "generation_config", "override_generation_config",
        "max_logprobs", "model_impl", "config_format", "limit_mm_per_prompt",
    ),
    "CacheConfig": (
        "quantization", "kv_cache_dtype", "gpu_memory_utilization", "block_size", "swap_space",
        "enable_prefix_caching", "calculate_kv_scales", "cpu_offload_gb", "num_gpu_blocks_override",
        "kv_cache_memory_bytes",
    ),
    "ParallelConfig": (
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel",
        "distributed_executor_backend", "disable_custom_all_reduce", "max_parallel_loading_workers",
    ),
    "SchedulerConfig": (
        "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "scheduling_policy", "async_scheduling",
    ),
    "LoadConfig": (
        "load_format", "download_dir", "ignore_patterns", "model_loader_extra_config",
    ),
    "LoRAConfig": (
        "enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "lora_dtype", "fully_sharded_loras",
    ),
}
# fmt: on
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}

# Short options of `vllm serve` (0.10.2 to 0.32.0) that people use.
_SHORT = {
    "q": "quantization",
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "ep": "enable_expert_parallel",
    "sc": "speculative_config",
    "cc": "compilation_config",
    "asc": "api_server_count",
}

# Words of the command line that stay text even when they look like something else.
_TEXT = frozenset(
    ("model", "tokenizer", "served_model_name", "revision", "code_revision", "tokenizer_revision", "api_key", "host")
)
# ... that are fractions, so that "0.90" is 0.9.
_FRACTIONS = frozenset(("gpu_memory_utilization", "swap_space", "cpu_offload_gb", "rope_theta"))
# ... that may be given several times, each time with one more value.
_APPENDED = frozenset(["middleware"])

_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d{1,17})?")


@dataclass(frozen=True)
class Argument:
    """One argument of the model server, and the place in the declaration that gives it."""

    path: Path
    name: str
    value: Any


def engine_config(entry: dict[str, Any], report: Report, check: Check) -> dict[str, dict[str, Any]]:
    """The structured engine configuration of a container, whichever forms it is declared in.

    :param entry: the container's entry, its flat keys already of the right types
    :param report: is told of words that can't be read, and of arguments with two different values
    :param check: looks at the arguments in C(vllm_args)
    :return: groups of arguments; empty when nothing is declared
    """
    groups: dict[str, dict[str, Any]] = {}
    first: dict[str, Argument] = {}
    for argument in _arguments(entry, report, check):
        earlier = first.setdefault(argument.name, argument)
        if earlier is argument:
            in_group = argument.path[0] == "vllm_engine_config"
            group = argument.path[1] if in_group else _GROUP_OF.get(argument.name, "ServerConfig")
            groups.setdefault(group, {})[argument.name] = argument.value
        elif same(earlier.value, argument.value):
            continue
        else:
            report(
                argument.path,
                argument.value,
                f"is a second value for the argument {argument.name}, which {show_path(earlier.path)} "
                f"sets to {json.dumps(earlier.value, ensure_ascii=False)}",
                "say it in one place, or the same in both",
            )
    return groups


def flat_keys_of(entry: dict[str, Any]) -> list[str]:
    """The keys of the old flat form that an entry uses, in its own order."""
    return [key for key in entry if (key in FLAT_KEYS or key in OTHER_FLAT_KEYS) and entry[key] not in (None, "")]


def same(one: Any, other: Any) -> bool:
    """Do two values mean the same argument, however each was written (8192 and "8192", ["a"] and "a")?"""
    return _canonical(one) == _canonical(other)


def show_path(path: Path) -> str:
    """A place in the declaration as a reader writes it: C(mount_points[0].host_path)."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _canonical(value: Any) -> Any:
    if isinstance(value, str):
        value = _typed(value)
    if isinstance(value, list) and len(value) == 1:
        return _canonical(value[0])
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, (int, float)):
        return ("number", float(value))
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    return value


def _arguments(entry: dict[str, Any], report: Report, check: Check) -> Iterator[Argument]:
    """Each argument that an entry gives, the structured form first, then flat keys, parameters, words."""
    for group, members in (entry.get("vllm_engine_config") or {}).items():
        for name, value in members.items():
            if value is not None:
                yield Argument(("vllm_engine_config", group, name), _name(name), value)
    for key in flat_keys_of(entry):
        if key in FLAT_KEYS and not (key == "vllm_quantization" and str(entry[key]).lower() == "none"):
            yield Argument((key,), FLAT_KEYS[key], entry[key])
    if entry.get("vllm_model_type") == "embedding":
        # "chat" is what a server does anyway. `runner` is known from 0.10.2 on; `task`, its predecessor, is gone.
        yield Argument(("vllm_model_type",), "runner", "pooling")
    for key, value in (entry.get("vllm_parameters") or {}).items():
        if value is not None:
            yield _renamed(Argument(("vllm_parameters", key), _name(key), value))
    for argument in _words(entry.get("vllm_args") or [], report):
        value = check(argument.name, argument.value, argument.path)
        if value is not None:
            yield _renamed(Argument(argument.path, argument.name, value))


def _name(written: str) -> str:
    """The argument's name as vLLM's own configuration has it: C(--max-model-len) is C(max_model_len)."""
    return written.strip().lstrip("-").replace("-", "_")


def _renamed(argument: Argument) -> Argument:
    """What an old argument is called today."""
    if argument.name.startswith("no_") and isinstance(argument.value, bool):
        return Argument(argument.path, argument.name[3:], not argument.value)
    if argument.name == "task" and argument.value in ("embed", "embedding"):
        return Argument(argument.path, "runner", "pooling")
    if argument.name == "task" and argument.value == "generate":
        return Argument(argument.path, "runner", "generate")
    return argument


def _words(words: list[str], report: Report) -> Iterator[Argument]:
    """The arguments in the words of a command line."""
    queue: list[tuple[int, str]] = []
    for place, word in enumerate(words):
        # The old scripts joined the list with blanks, so "--port 8000" in one piece was as good as in two.
        if re.match(r"--?[A-Za-z][\w.-]*\s", word):
            try:
                queue += [(place, part) for part in shlex.split(word)]
            except ValueError:
                report(("vllm_args", place), word, "has a quote that is never closed", "close it")
        else:
            queue.append((place, word))
    appended: dict[str, Argument] = {}
    index = 0
    while index < len(queue):
        place, word = queue[index]
        path = ("vllm_args", place)
        index += 1
        if not _is_option(word):
            report(path, word, "belongs to no argument", 'begin each with "--"; the model belongs in vllm_model')
            continue
        option, glued, value = word.partition("=")
        values = [value] if glued else []
        while not glued and index < len(queue) and not _is_option(queue[index][1]):
            values.append(queue[index][1])
            index += 1
        name = _name(option)
        if not option.startswith("--"):
            if name not in _SHORT:
                report(path, word, "is an abbreviation that is not known here", "write the argument's long name")
                continue
            name = _SHORT[name]
        typed = [_typed(value, name) for value in values]
        if name in _APPENDED:
            appended.setdefault(name, Argument(path, name, [])).value.extend(typed)
        else:
            yield Argument(path, name, True if not typed else typed[0] if len(typed) == 1 else typed)
    yield from appended.values()


def _is_option(word: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", word))


def _typed(word: str, name: str = "") -> Any:
    """The value that a word of a command line stands for."""
    if name in _TEXT:
        return word
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    if _NUMBER.fullmatch(word):
        number = float(word) if "." in word else int(word)
        # Only what comes out again as it went in: a revision "1.10" is no number.
        return number if str(number) == word or name in _FRACTIONS or not name else word
    if word[:1] in ("{", "["):
        try:
            return json.loads(word)
        except ValueError:
            return word
    return word
