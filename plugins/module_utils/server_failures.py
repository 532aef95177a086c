# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a model server ended, in its own words, and what to do about the failures that are well known. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# "…: ValueError: text", "torch.OutOfMemoryError: text", and what vLLM puts before such a line in the journal.
_EXCEPTION = re.compile(r"(?:^|\s|\])(?P<cause>(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?::\s+\S.*)?)$")
_USAGE = re.compile(r"^(?:\S+: )?error: .*|.*: error: .*")
# What the other processes say after the one that failed.
_FOLLOWING = ("engine core initialization failed", "see root cause above", "workerproc initialization failed")


# Lines of the journal in a message.
SHOWN = 25


class Failure(NamedTuple):
    """A well-known failure.

    Attributes:
        name: what it is called here.
        pattern: what its lines in the journal have.
        remedy: what to do, a sentence or two.
    """

    name: str
    pattern: re.Pattern[str]
    remedy: str


def _failure(name: str, pattern: str, remedy: str) -> Failure:
    return Failure(name, re.compile(pattern, re.IGNORECASE), remedy)


# In the order of their weight: what is found first is told. One failure draws others after it, so what is nearer to the
# hardware and the system comes first.
FAILURES = (
    _failure(
        "driver mismatch",
        r"driver/library version mismatch",
        "The container's NVIDIA libraries are of another release than the node's kernel driver, as after an upgrade of "
        "the node. Restart the node if its own `nvidia-smi` fails too; then run site.yml, whose feature nvidia brings "
        "the container to the node's release.",
    ),
    _failure(
        "driver too old",
        r"nvidia driver on your system is too old|driver version is insufficient for cuda runtime",
        "The node's NVIDIA driver is older than the stack's CUDA needs (12.8: 570, 13: 580). Upgrade the driver on the "
        "node and run site.yml (the feature nvidia brings the container along), or take a stack with an older CUDA.",
    ),
    _failure(
        "no kernel image",
        r"no kernel image is available for execution|not compatible with the current pytorch installation"
        r"|no supported cuda architectures found",
        "The release has no code for this GPU's architecture. Take a stack that was built for it: Blackwell cards "
        "(RTX 50, sm_120) need CUDA 12.8 or newer, and TORCH_CUDA_ARCH_LIST=12.0 in a source build.",
    ),
    _failure(
        "no GPU",
        r"no cuda gpus are available|failed to infer device type|cuda unknown error"
        r"|no cuda-capable device is detected|found no nvidia driver on your system",
        "The server sees no GPU. Check gpu_assignment in the JSON, `nvidia-smi` in the container, and that "
        "/dev/nvidia-uvm is there (on the node: nvidia-modprobe -u -c 0); restart the container after that.",
    ),
    _failure(
        "not enough free GPU memory",
        r"free memory on device.* is less than desired gpu memory utilization",
        "Something else has memory of this GPU: `nvidia-smi` on the node tells who. Stop it, or lower "
        "CacheConfig.gpu_memory_utilization so that all servers of the GPU fit together.",
    ),
    _failure(
        "no room for the KV cache",
        r"no available memory for the cache blocks|larger than the available kv cache memory"
        r"|larger than the maximum number of tokens that can be stored in kv cache",
        "The weights leave too little GPU memory for the KV cache. Lower ModelConfig.max_model_len, raise "
        "CacheConfig.gpu_memory_utilization, use kv_cache_dtype fp8, or spread the model over more GPUs.",
    ),
    _failure(
        "CUDA out of memory",
        r"cuda out of memory|outofmemoryerror|cublas_status_alloc_failed|cuda error: out of memory",
        "The model doesn't fit into the GPU's memory. Use a smaller or quantized model, lower max_model_len, "
        "max_num_seqs or gpu_memory_utilization, or spread it over more GPUs (ParallelConfig.tensor_parallel_size). "
        "`nvidia-smi` on the node tells whether another process holds memory.",
    ),
    _failure(
        "memory",
        r"defaultcpuallocator: can't allocate memory|std::bad_alloc|cannot allocate memory|^memoryerror",
        "The container's memory is not enough to load the model: give it more (memory_mb).",
    ),
    _failure(
        "certificate",
        r"the model server's (?:certificate|key) \S+ (?:can't|has no|is that)"
        r"|the model server's certificate could not be copied",
        "The server's certificate can't be used. See whether the role certificate has issued it, or what it says of it "
        "(certificate_source); a certificate of your own is one PEM file with its chain, and one with its key, without "
        "a password.",
    ),
    _failure(
        "port taken",
        r"address already in use",
        "Another program in the container listens on the port: `ss -ltnp` there tells which. Stop it, or set another "
        "ServerConfig.port.",
    ),
    _failure(
        "gated model",
        r"gated repo|gatedrepoerror|access to model .* is restricted|awaiting a review",
        "The model is gated. Accept its terms on the hub, and give a token of that account in "
        "vllm_model_server_huggingface_token.",
    ),
    _failure(
        "hub not reached",
        r"couldn't connect to 'https?://|localentrynotfounderror|offlinemodeisenabled"
        r"|outgoing traffic has been disabled|httpx\.connect|requests\.exceptions\.connect"
        r"|max retries exceeded with url",
        "The model is not in the cache, and the hub can't be reached or is switched off (HF_HUB_OFFLINE). Check the "
        "container's gateway and nameserver, or give the path of a folder that has the model.",
    ),
    _failure(
        "model not found",
        r"(?:repository|revision) not found for url|(?:repository|revision)notfounderror|not a valid model identifier"
        r"|does not appear to have a file named config\.json|invalid repository id or local directory"
        r"|repo id must be in the form"
        r"|no such file or directory: '[^']*/config\.json'",
        "There is no such model. A path must be a folder with config.json in the container (mount_points); a name must "
        "be one of the hub, a private one needs vllm_model_server_huggingface_token.",
    ),
    _failure(
        "NCCL",
        r"nccl error|ncclsystemerror|ncclunhandledcudaerror|ncclinternalerror|ncclremoteerror"
        r"|watchdog caught collective operation timeout|no available shared memory broadcast block found",
        "The GPUs don't get through to each other. Set nvidia_peer_to_peer: \"off\" for the container; "
        "between consumer cards it is usually ACS or the IOMMU of the node that is in the way.",
    ),
    _failure(
        "transformers 5",
        r"tokenizersbackend has no attribute",
        "transformers 5 is installed beside a vLLM that needs 4. Install the release from its lock (role vllm_stack); "
        "don't install packages into it by hand.",
    ),
    _failure(
        "libnuma",
        r"libnuma\.so\.1|has no attribute 'init_cpu_memory_env'|failed to import from vllm\._c",
        "The library libnuma is missing in the container: `apt-get install libnuma1`, or list it in the stack's system "
        "packages.",
    ),
    _failure(
        "open files",
        r"too many open files",
        "The server may have too few files open: raise vllm_model_server_open_files.",
    ),
    _failure(
        "sandbox",
        r"failed at step (?:namespace|seccomp|capabilities)|failed to set up mount namespacing",
        "systemd can't make the service's sandbox in this container. An unprivileged container needs nesting for it: "
        "add nesting=1 to pct_options in the JSON.",
    ),
    _failure(
        "shared memory",
        r"no space left on device.*(?:shm|torch_)|(?:shm|torch_).*no space left on device|bus error",
        "/dev/shm in the container is full: what a server that was killed left there goes with a restart of the "
        "container; else give it more room.",
    ),
    _failure(
        "disk full",
        r"no space left on device|disk quota exceeded",
        "A disk in the container is full: give it more room (storage_size_gb), or put vllm_model_server_cache on a "
        "larger volume.",
    ),
    _failure(
        "no compiler",
        r"could not find nvcc|nvcc: (?:command )?not found|no such file or directory: '[^']*nvcc'|ninja is required"
        r"|no such file or directory: 'ninja'|failed to find c compiler",
        "Kernels are compiled when the server starts, and nvcc, ninja or a C compiler is missing in the container. "
        "Install the CUDA toolkit that the stack names and gcc; ninja is in the release.",
    ),
    _failure(
        "remote code",
        r"trust_remote_code=true|trust-remote-code",
        "The model brings Python code of its own. When you trust its author, set ModelConfig.trust_remote_code: true.",
    ),
    _failure(
        "read-only",
        r"read-only file system",
        "The server wants to write where its sandbox doesn't let it: name the folder in vllm_model_server_write_paths, "
        "or the volume is mounted read-only.",
    ),
    _failure(
        "permission",
        r"permissionerror: \[errno 13\]|permission denied: '",
        "The service's user vllm may not read or write a file that the server needs. Make the model readable for all, "
        "or set its owner in mount_points (owner_uid) to that user.",
    ),
    _failure(
        "no answer",
        r"^the model server is killed: it has not answered",
        "The server was up but gave no answer, so the watchdog ended it. Its own last lines may say why; a GPU that "
        "hangs is in the node's kernel log (`dmesg | grep -i xid`). One that is only slow needs a longer "
        "vllm_model_server_watchdog_limit.",
    ),
)

# A GPU that doesn't work ends a server with something else, in the end.
_HARDWARE = FAILURES[:3]


def cause(lines: Sequence[str]) -> str:
    """Return the line of a journal that says why the server ended, C("") when none does.

    The exception of the process that failed first is wanted, not those of the processes that noticed.
    """
    found = []
    for line in lines:
        match = _EXCEPTION.search(line.rstrip())
        if match and not any(words in line.lower() for words in _FOLLOWING):
            found.append(match.group("cause"))
        elif _USAGE.match(line.rstrip()):
            found.append(line.strip())
    # The last one of the first process: a process that dies prints its exception at the end of its traceback.
    with_text = [entry for entry in found if ":" in entry]
    return (with_text or found or [""])[-1]


def known(lines: Sequence[str], result: str = "") -> Failure | None:
    """Return the well-known failure that a journal tells of, C(None) when there is none.

    Args:
        lines: of the journal, of one run of the server.
        result: what systemd says of it, C(oom-kill) for example.
    """
    if result == "oom-kill":
        return next(failure for failure in FAILURES if failure.name == "memory")
    # A warning on the way ("… does not need trust_remote_code=True …") is no failure: the cause goes first.
    why = cause(lines)
    # Nor is one of an error that may come ("This can cause … Too many open files").
    said = [line for line in lines if not re.search(r"\bWARNING\b", line)]
    bad = [line for line in said if re.search("error|fail", line, re.IGNORECASE)]
    for table, texts in ((_HARDWARE, bad), (FAILURES, [why]), (FAILURES, bad)):
        for failure in table:
            if any(failure.pattern.search(text) for text in texts):
                return failure
    # The last words of a library that ends the process itself.
    return next((failure for failure in FAILURES if any(failure.pattern.search(line) for line in said[-15:])), None)


def tail(lines: Sequence[str], count: int) -> list[str]:
    """Return the last lines that say something."""
    return [line.rstrip() for line in lines if line.strip()][-count:]


def last_words(what: str, result: str, lines: Sequence[str], unit: str) -> tuple[str, dict[str, str]]:
    """Return what is said of a server that ended, and the details of a result.

    Args:
        what: the beginning of the sentence.
        result: what systemd says of it.
        lines: of the journal, of this run of the server.
        unit: the unit's name.
    """
    why, failure = cause(lines), known(lines, result)
    message = f"{what} (systemd says {result or 'nothing'}). " + (f"{why}\n" if why else "\n")
    message += (f"{failure.remedy}\n" if failure else "") + _shown(lines, unit)
    return message, {"cause": why, "failure": failure.name if failure else "", "result": result}


def too_late(what: str, lines: Sequence[str], unit: str) -> tuple[str, dict[str, str]]:
    """Return the same of a server that took too long. The beginning is one or two whole sentences."""
    failure = known(lines)
    remedy = failure.remedy if failure else "A large model may need more time (vllm_model_server_ready_timeout)."
    return f"{what}{remedy} {_shown(lines, unit)}", {"failure": failure.name if failure else "", "result": "timeout"}


def _shown(lines: Sequence[str], unit: str) -> str:
    return "\n".join([f"Its last lines (`journalctl -u {unit}` has all):", *tail(lines, SHOWN)])
