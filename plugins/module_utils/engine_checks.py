# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine config against what its container has: GPUs, mounts, environment, and who else is there. Pure, no Ansible.

What can't work is refused; what may be meant so, or can't be known on the control node, is a warning. Nobody has looked
at a GPU here: where its architecture matters and the stack isn't for one alone, the sentence says what was assumed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils.engine_args import (
    EngineConfigError,
    address,
    default_share,
    flatten,
)

# Attention backends of 0.10.2 with an fp8 cache on consumer Blackwell.
_FP8_BACKENDS = ("FLASHINFER", "TRITON_ATTN_VLLM_V1")
# Where other features of a container listen, of the ports that a model server can have.
_FEATURE_PORTS = {"ollama": (11434,), "portainer": (8000, 9000, 9443), "traefik": (8080,)}
_PARALLEL = (
    "tensor-parallel-size",
    "pipeline-parallel-size",
    "prefill-context-parallel-size",
    "data-parallel-size",
)
# With these, GPUs of other machines are used, or somebody else starts the workers.
_ELSEWHERE = ("ray", "external_launcher")


@dataclass(frozen=True)
class Neighbour:
    """Another model server on the same node.

    Attributes:
        ctid: its CTID.
        gpus: the numbers of its GPUs.
        engine_config: with its groups.
        together: why both run at the same time, C("") when that isn't known.
        before: whether the node starts it before this one.
    """

    ctid: int
    gpus: Sequence[int]
    engine_config: Mapping[str, Any]
    together: str = ""
    before: bool = False


@dataclass(frozen=True)
class Place:
    """What a model server has around it. C(None) stands for "the declaration doesn't say".

    Attributes:
        ctid: its CTID.
        gpu: whether its stack runs on GPUs.
        vllm: the release of vLLM in its stack, C("") when that isn't known.
        architectures: those that the stack is for, as C("12.0"); empty when it doesn't say.
        gpus: the numbers of its GPUs.
        mounts: the paths of what is mounted in the container.
        environment: the server's environment.
        features: what else is in the container.
        gateway_port: where the gateway expects the server.
        neighbours: other model servers on its node.
    """

    ctid: int = 0
    gpu: bool = True
    vllm: str = ""
    architectures: Sequence[str] = ()
    gpus: Sequence[int] | None = None
    mounts: Sequence[str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    features: Sequence[str] = ()
    gateway_port: int | None = None
    neighbours: Sequence[Neighbour] = ()


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        certain: whether it can't work.
        text: a sentence for the user, and what to do.
    """

    certain: bool
    text: str


def findings(arguments: Mapping[str, Any], place: Place, table: Mapping[str, Any] | None = None) -> list[Finding]:
    """Return what doesn't fit together.

    Args:
        arguments: from `flatten`, without mistakes of their own.
        place: what is around the server.
        table: the flag table of its stack.
    """
    found = [*_ports(arguments, place), *_tools(arguments), *_paths(arguments, place), *_share_of_gpu(arguments)]
    if place.gpu:
        found += [*_parallel(arguments, place), *_memory(arguments, place)]
        found += [*_old_variables(place, table), *_attention(arguments, place, table)]
    return found


def _whole(arguments: Mapping[str, Any], name: str, default: int = 1) -> int:
    """Return an integer argument; a stack without a table may have anything there."""
    try:
        return int(arguments.get(name, default))
    except (TypeError, ValueError):
        return default


def _share(arguments: Mapping[str, Any], vllm: str = "") -> float | None:
    """Return how much of each GPU's memory a server takes, C(None) when that is said otherwise."""
    if arguments.get("kv-cache-memory-bytes") is not None:
        return None
    try:
        return float(arguments.get("gpu-memory-utilization", default_share(vllm)))
    except (TypeError, ValueError):
        return None


def _gpus_used(arguments: Mapping[str, Any]) -> int | None:
    """Return how many GPUs of its container a server uses, C(None) when that isn't known."""
    spread = (
        arguments.get("distributed-executor-backend") in _ELSEWHERE
        or arguments.get("data-parallel-backend") in _ELSEWHERE
        or _whole(arguments, "nnodes") > 1
        or arguments.get("data-parallel-address") is not None
    )
    if spread:
        return None
    count = 1
    for name in _PARALLEL:
        count *= max(1, _whole(arguments, name))
    local = _whole(arguments, "data-parallel-size-local", 0)
    return count // max(1, _whole(arguments, "data-parallel-size")) * local if local else count


def _some(numbers: Sequence[int]) -> str:
    """Return GPUs as words."""
    return f"{len(numbers)} GPU{'' if len(numbers) == 1 else 's'} ({', '.join(map(str, numbers))})"


def _parallel(arguments: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    """The sizes of its parallelism against its GPUs."""
    if place.gpus is None:
        return
    if not place.gpus:
        yield Finding(
            True,
            "gpu_assignment is none, and the stack runs on GPUs: assign one, or take the stack cpu.",
        )
        return
    count = _gpus_used(arguments)
    if count is None or count == len(place.gpus):
        return
    given = [name.replace("-", "_") for name in _PARALLEL if _whole(arguments, name) > 1]
    what = " times ".join(given) or "tensor_parallel_size"
    if count > len(place.gpus):
        yield Finding(
            True,
            f"{what} is {count}, and gpu_assignment gives the container {_some(place.gpus)}: assign {count}, or make "
            f"it {len(place.gpus)}.",
        )
    else:
        yield Finding(
            False,
            f"{what} is {count}, and gpu_assignment gives the container {_some(place.gpus)}: the others stay idle. "
            f"Make it {len(place.gpus)}, or assign {count}.",
        )


def _share_of_gpu(arguments: Mapping[str, Any]) -> Iterator[Finding]:
    """A share of a GPU's memory is more than nothing and at most all."""
    share = _share(arguments)
    if share is not None and not 0 < share <= 1:
        yield Finding(
            True, f"gpu_memory_utilization is {share:g}: it is the part of a GPU's memory, above 0 and at most 1."
        )


def _memory(arguments: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    """What servers on one GPU take together."""
    share = _share(arguments, place.vllm)
    if share is None or not place.gpus:
        return
    sure: dict[int, list[tuple[int, float]]] = {}
    why: dict[int, str] = {}
    for neighbour in place.neighbours:
        try:
            theirs = flatten(neighbour.engine_config)
        except EngineConfigError:
            continue
        their_share, common = _share(theirs), sorted(set(place.gpus) & set(neighbour.gpus))
        if their_share is None or not common:
            continue
        # Which of its GPUs a server takes when it doesn't take all is vLLM's choice.
        all_used = _gpus_used(arguments) == len(place.gpus) and _gpus_used(theirs) == len(neighbour.gpus)
        if neighbour.together and all_used:
            why[neighbour.ctid] = neighbour.together
            for number in common:
                sure.setdefault(number, []).append((neighbour.ctid, their_share))
        elif _too_much(share + their_share):
            yield Finding(
                False,
                f"it shares GPU {', '.join(map(str, common))} with CTID {neighbour.ctid}, and together they want "
                f"{share + their_share:g} of its memory ({share:g} and {their_share:g}): they can't run at the same "
                "time. Lower gpu_memory_utilization where they should.",
            )
    told = set()
    for number, others in sure.items():
        total = share + sum(theirs for _ctid, theirs in others)
        if not _too_much(total) or tuple(others) in told:
            continue
        told.add(tuple(others))
        parts = ", ".join(f"CTID {ctid} {part:g}" for ctid, part in [(place.ctid, share), *others])
        reasons = ", ".join(f"CTID {ctid}: {why[ctid]}" for ctid, _part in others)
        yield Finding(
            True,
            f"the model servers on GPU {number} want {total:g} of its memory together ({parts}), and run at the same "
            f"time ({reasons}): lower gpu_memory_utilization so that the sum is at most 1, or give one another GPU.",
        )


def _too_much(total: float) -> bool:
    """Return whether it is more than a whole GPU; the sum of fractions has its own small error."""
    return total > 1 + 1e-6


def _paths(arguments: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    """A model or tokenizer that is a path should be on something that is mounted."""
    if place.mounts is None:
        return
    for name in ("model", "tokenizer"):
        path = arguments.get(name)
        if not isinstance(path, str) or not path.startswith("/"):
            continue
        path = posixpath.normpath(path) + "/"
        if not any(path.startswith(mount.rstrip("/") + "/") for mount in place.mounts):
            declared = f"only {', '.join(sorted(place.mounts))}" if place.mounts else "nothing"
            yield Finding(
                False,
                f"{name} is {path[:-1]}, and {declared} is mounted in the container: it must be on the container's own "
                "disk. Where it is on the node, add it to mount_points.",
            )


def _ports(arguments: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    """The server's port against others in its container."""
    port = address(arguments)[1]
    for name in ("grpc-port", "master-port", "data-parallel-rpc-port"):
        if name in arguments and _whole(arguments, name, 0) == port:
            yield Finding(True, f"{name.replace('-', '_')} and port are both {port}: take another one for either.")
    for feature in place.features:
        if port in _FEATURE_PORTS.get(feature, ()):
            yield Finding(
                False,
                f"port is {port}, and the feature {feature} in the same container listens there unless it is told "
                "otherwise: take another port.",
            )
    if place.gateway_port not in (None, port):
        yield Finding(
            False,
            f"port is {port}, and traefik_service.port is {place.gateway_port}: the gateway would ask where nobody "
            "listens. Make them the same.",
        )


def _tools(arguments: Mapping[str, Any]) -> Iterator[Finding]:
    """vLLM refuses the one without the other before it loads a model."""
    if arguments.get("enable-auto-tool-choice") is True and not arguments.get("tool-call-parser"):
        yield Finding(True, "enable_auto_tool_choice needs tool_call_parser: name the parser for the model's calls.")


def _is_consumer_blackwell(place: Place) -> tuple[bool | None, str]:
    """Return (whether its GPUs are sm_120, what to say about how that is known)."""
    if not place.architectures:
        return None, " That its GPU is of architecture 12.0 (RTX 50, RTX PRO Blackwell) is assumed."
    consumer = [str(architecture).startswith("12.") for architecture in place.architectures]
    if all(consumer):
        return True, ""
    if any(consumer):
        return None, f" That its GPU is of architecture 12.0, of {', '.join(place.architectures)}, is assumed."
    return False, ""


def _old_variables(place: Place, table: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Environment variables that became arguments."""
    for variable, argument in (
        ("VLLM_ATTENTION_BACKEND", "attention-backend"),
        ("VLLM_FLASH_ATTN_VERSION", "attention-config"),
    ):
        if table and place.environment.get(variable) and argument in table["flags"]:
            how = {"attention-backend": "attention_backend"}.get(argument, "attention_config: {flash_attn_version: …}")
            yield Finding(
                False,
                f"{variable} is set in the server's environment, and vLLM {table['vllm']} doesn't read it any more: "
                f"write {how} in the engine config instead.",
            )


def _attention(arguments: Mapping[str, Any], place: Place, table: Mapping[str, Any] | None) -> Iterator[Finding]:
    """FlashAttention 3, and caches in fp8, on consumer Blackwell."""
    consumer, assumed = _is_consumer_blackwell(place)
    if consumer is False or not table:
        return
    by_arguments = "attention-config" in table["flags"]
    options = arguments.get("attention-config") if by_arguments else None
    options = options if isinstance(options, dict) else {}
    version = options.get("flash_attn_version") if by_arguments else place.environment.get("VLLM_FLASH_ATTN_VERSION")
    if str(version) == "3":
        name = "attention_config.flash_attn_version" if by_arguments else "VLLM_FLASH_ATTN_VERSION"
        yield Finding(
            consumer is True,
            f"{name} is 3, and FlashAttention 3 doesn't run on GPUs of architecture 12.0: remove it, 2 is taken by "
            f"itself.{assumed}",
        )
    if not str(arguments.get("kv-cache-dtype", "auto")).startswith("fp8"):
        return
    cache = f"kv_cache_dtype is {arguments['kv-cache-dtype']}"
    if by_arguments:
        backend = arguments.get("attention-backend") or options.get("backend")
        if str(backend).upper() == "FLASH_ATTN":
            yield Finding(
                consumer is True,
                f"{cache}, and attention_backend is {backend}, which has no such cache on GPUs of architecture 12.0: "
                f"leave attention_backend out, or take FLASHINFER or TRITON_ATTN.{assumed}",
            )
    elif place.environment.get("VLLM_ATTENTION_BACKEND") not in _FP8_BACKENDS:
        insists = place.environment.get("VLLM_USE_V1") == "1"
        yield Finding(
            insists and consumer is True,
            f"{cache}, and on GPUs of architecture 12.0 the attention that vLLM {table['vllm']} takes by itself has no "
            f"such cache: {'it ends at its start' if insists else 'it falls back to its old, slower engine V0'}. Set "
            f"VLLM_ATTENTION_BACKEND to {' or '.join(_FP8_BACKENDS)} in vllm_model_server_environment.{assumed}",
        )
