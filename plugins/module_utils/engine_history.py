# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments of `vllm serve` that one release has and another hasn't, and what to write instead. Pure, no Ansible.

The flag tables tell which release has what. What they can't tell is what became of an argument; that is here, as read
in the sources of vLLM 0.10.2 and 0.32.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REMOVE = "remove it"
_EPLB = "write eplb_config: {{{key}: …}}"
_STRUCTURED = "write structured_outputs_config: {{{key}: …}}"
_SPECULATIVE = 'write speculative_config: {"model": …, "num_speculative_tokens": …}'
_ENGINE_V0 = "it was for the engine V0, which is gone; remove it"

# Name → (the argument that must be there for the advice to hold, or "", the advice). Gone by 0.32.0:
_GONE = {
    "calculate-kv-scales": ("", "the scales come from the model's checkpoint, or are 1.0; remove it"),
    "cuda-graph-sizes": (
        "cudagraph-capture-sizes",
        "write cudagraph_capture_sizes for a list of sizes, max_cudagraph_capture_size for the largest one",
    ),
    "disable-async-output-proc": ("", _ENGINE_V0),
    "disable-frontend-multiprocessing": ("", _ENGINE_V0),
    "disable-log-requests": ("enable-log-requests", "requests are only logged with enable_log_requests: true"),
    "disable-mm-preprocessor-cache": ("mm-processor-cache-gb", "write mm_processor_cache_gb: 0"),
    "enable-lora-bias": ("", _REMOVE),
    "enable-multimodal-encoder-data-parallel": ("mm-encoder-tp-mode", "write mm_encoder_tp_mode: data"),
    "eplb-log-balancedness": ("eplb-config", _EPLB.format(key="log_balancedness")),
    "eplb-step-interval": ("eplb-config", _EPLB.format(key="step_interval")),
    "eplb-window-size": ("eplb-config", _EPLB.format(key="window_size")),
    "guided-decoding-backend": ("structured-outputs-config", _STRUCTURED.format(key="backend")),
    "guided-decoding-disable-additional-properties": (
        "structured-outputs-config",
        _STRUCTURED.format(key="disable_additional_properties"),
    ),
    "guided-decoding-disable-any-whitespace": (
        "structured-outputs-config",
        _STRUCTURED.format(key="disable_any_whitespace"),
    ),
    "guided-decoding-disable-fallback": (
        "structured-outputs-config",
        "a backend that structured_outputs_config names is the only one anyway; remove it",
    ),
    "logits-processor-pattern": (
        "logits-processors",
        "requests can't name processors any more; those in logits_processors are loaded at the start",
    ),
    "lora-extra-vocab-size": ("", _REMOVE),
    "max-long-partial-prefills": ("", _REMOVE),
    "max-num-partial-prefills": ("", _REMOVE),
    "max-seq-len-to-capture": ("", _ENGINE_V0),
    "num-lookahead-slots": ("", "speculative_config says it; remove it"),
    "num-redundant-experts": ("eplb-config", _EPLB.format(key="num_redundant_experts")),
    "override-attention-dtype": ("", _REMOVE),
    "override-pooler-config": ("pooler-config", "it is called pooler_config"),
    "preemption-mode": ("", "what is preempted is always computed again; remove it"),
    "rope-scaling": ("hf-overrides", 'write hf_overrides: {"rope_parameters": {"rope_type": …, "factor": …}}'),
    "rope-theta": ("hf-overrides", 'write hf_overrides: {"rope_parameters": {"rope_theta": …, "rope_type": …}}'),
    "scheduler-delay-factor": ("", _ENGINE_V0),
    "swap-space": ("", "nothing is swapped to the CPU's memory any more; remove it"),
    # Gone before 0.10.2, and still in many files.
    "device": ("", "it follows from the stack; remove it"),
    "enable-reasoning": ("reasoning-parser", "reasoning_parser alone says it"),
    "num-scheduler-steps": ("", _ENGINE_V0),
    "num-speculative-tokens": ("speculative-config", _SPECULATIVE),
    "speculative-model": ("speculative-config", _SPECULATIVE),
    "use-v2-block-manager": ("", _ENGINE_V0),
    "worker-use-ray": ("distributed-executor-backend", "write distributed_executor_backend: ray"),
}

# Newer than 0.10.2:
_COMING = {
    "attention-backend": ("", "set VLLM_ATTENTION_BACKEND in vllm_model_server_environment"),
    "attention-config": (
        "",
        "set VLLM_ATTENTION_BACKEND or VLLM_FLASH_ATTN_VERSION in vllm_model_server_environment",
    ),
    "cudagraph-capture-sizes": ("cuda-graph-sizes", "it is called cuda_graph_sizes there"),
    "max-cudagraph-capture-size": ("cuda-graph-sizes", "write cuda_graph_sizes: […] with this one size"),
    "pooler-config": ("override-pooler-config", "it is called override_pooler_config there"),
    "profiler-config": ("", "set VLLM_TORCH_PROFILER_DIR in vllm_model_server_environment"),
    "structured-outputs-config": (
        "guided-decoding-backend",
        "write guided_decoding_backend, guided_decoding_disable_any_whitespace and the like",
    ),
}

# `task` by its value: what 0.10.2 itself makes of it.
_TASKS = {
    "auto": _REMOVE,
    "generate": "write runner: generate",
    "transcription": "write runner: generate",
    "embed": "write runner: pooling, and convert: embed where the model generates text",
    "embedding": "write runner: pooling, and convert: embed where the model generates text",
    "classify": "write runner: pooling, and convert: classify where the model generates text",
    "score": "write runner: pooling",
    "reward": "write runner: pooling",
}


def advice(name: str, value: Any, flags: Mapping[str, Any]) -> str:
    """Return what to do about an argument that a release doesn't have, as the rest of a sentence about it.

    Args:
        name: the argument, with dashes.
        value: its value.
        flags: the release's flag table. Advice that names an argument holds only where the table has that one.
    """
    if name == "task" and "runner" in flags:
        how = _TASKS.get(value) if isinstance(value, str) else None
        return f"it is gone; {how or 'write runner (generate or pooling), and convert to adapt a model to pooling'}"
    for table, state in ((_GONE, "it is gone"), (_COMING, "it came later")):
        needed, how = table.get(name, ("", ""))
        if how and (not needed or needed in flags):
            return f"{state}; {how}"
    return ""
