# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_failures
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_failures import FAILURES

# What vLLM puts before a line, and how its processes say that another one failed.
CORE = "(EngineCore_0 pid=812) ERROR 11-21 05:06:44 [core.py:718] "
API = "(APIServer pid=790) "
STARTED = [
    "INFO 11-21 05:05:58 [__init__.py:216] Automatically detected platform cuda.",
    f"{API}INFO 11-21 05:06:02 [api_server.py:1896] vLLM API server version 0.10.2",
]
FOLLOWED = [f"{API}RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}"]


def raised(*lines: str) -> list[str]:
    """A journal of a server whose engine raised this."""
    return [*STARTED, f"{CORE}EngineCore failed to start.", f"{CORE}Traceback (most recent call last):",
            *(CORE + line for line in lines), *FOLLOWED]  # fmt: skip


JOURNALS = {
    "driver mismatch": [
        *STARTED, "Failed to initialize NVML: Driver/library version mismatch", "NVML library version: 570.195",
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
    ],
    "driver too old": raised(
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver"
    ),
    "no kernel image": raised(
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device"
    ),
    "no GPU": raised("RuntimeError: No CUDA GPUs are available"),
    "not enough free GPU memory": raised(
        "ValueError: Free memory on device (3.06/31.36 GiB) on startup is less than desired GPU memory utilization "
        "(0.9, 28.23 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    ),
    "no room for the KV cache": raised(
        "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (4.21 GiB). Try increasing gpu_memory_utilization."
    ),
    "CUDA out of memory": raised(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of 31.36 "
        "GiB of which 118.94 MiB is free. If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC"
    ),
    "memory": raised("RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate "
                     "memory: you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"),
    "certificate": [
        "The model server's certificate /etc/x/fullchain.pem can't be read: No such file or directory.",
        "vllm_model_server.service: Control process exited, code=exited, status=1/FAILURE",
        "vllm_model_server.service: Failed with result 'exit-code'.",
    ],
    "port taken": [*STARTED, f"{API}Traceback (most recent call last):",
                   f"{API}OSError: [Errno 98] Address already in use"],
    "gated model": [
        *STARTED,
        "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-68d)",
        "Cannot access gated repo for url https://huggingface.co/meta-llama/Llama-3.1-8B/resolve/main/config.json.",
        "OSError: You are trying to access a gated repo.",
    ],
    "hub not reached": [
        *STARTED,
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the "
        "cached files.",
    ],
    "model not found": [
        *STARTED,
        "OSError: Qwen/Qwen9-9B is not a local folder and is not a valid model identifier listed on "
        "'https://huggingface.co/models'",
    ],
    "NCCL": raised(
        "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    ),
    "transformers 5": raised(
        "AttributeError: TokenizersBackend has no attribute all_special_tokens_extended. Did you mean: "
        "'num_special_tokens_to_add'?"
    ),
    "libnuma": [
        "WARNING 11-21 05:06:01 [cpu.py:31] Failed to import from vllm._C_AVX512: ImportError('libnuma.so.1: cannot "
        "open shared object file: No such file or directory')",
        *raised("AttributeError: '_OpNamespace' '_C' object has no attribute 'init_cpu_memory_env'"),
    ],
    "open files": [*STARTED, f"{API}OSError: [Errno 24] Too many open files"],
    "sandbox": [
        "vllm_model_server.service: Failed to set up mount namespacing: /run/systemd/unit-root/: Permission denied",
        "vllm_model_server.service: Failed at step NAMESPACE spawning /opt/vllm-releases/x/bin/vllm: Permission denied",
        "vllm_model_server.service: Main process exited, code=exited, status=226/NAMESPACE",
        "vllm_model_server.service: Failed with result 'exit-code'.",
    ],
    "shared memory": raised(
        "RuntimeError: unable to write to file </torch_812_3106519472_0>: No space left on device (28)"
    ),
    "disk full": raised("OSError: [Errno 28] No space left on device"),
    "no compiler": raised("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist"),
    "remote code": [
        *STARTED,
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, The repository /models/x contains custom code which must be executed to correctly load the "
        "model. Please pass the argument `trust_remote_code=True` to allow custom code to be run. [type=value_error]",
    ],
    "read-only": raised("OSError: [Errno 30] Read-only file system: '/models/hub'"),
    "permission": raised("PermissionError: [Errno 13] Permission denied: '/models/qwen/config.json'"),
    "no answer": [
        *STARTED,
        "The model server is killed: it has not answered for 120 s (the limit is 120 s): no answer on port 8000. "
        "systemd starts it again, unless it was started 4 times lately; then it is left stopped.",
        "vllm_model_server.service: Main process exited, code=killed, status=9/KILL",
        "vllm_model_server.service: Failed with result 'signal'.",
    ],
}  # fmt: skip


def test_every_failure_has_a_journal():
    assert list(JOURNALS) and {failure.name for failure in FAILURES} == set(JOURNALS)


@pytest.mark.parametrize("name", JOURNALS)
def test_a_well_known_failure_is_recognised(name):
    found = server_failures.known(JOURNALS[name])
    assert found is not None and found.name == name
    assert found.remedy.endswith((".", ")")) and len(found.remedy) < 300


@pytest.mark.parametrize(
    "lines",
    [
        [],
        STARTED,
        raised("ValueError: There is no module or parameter named 'lm_head' in LlamaForCausalLM"),
        # Said on the way, of a server that failed for another reason.
        [*STARTED, "INFO 11-21 [config.py:1] The argument `trust_remote_code` is to be used with Auto classes.",
         *[f"line {number}" for number in range(20)], *raised("KeyError: 'layers.0'")],
    ],
)  # fmt: skip
def test_what_is_not_known_is_not_guessed(lines):
    assert server_failures.known(lines) is None


def test_a_hang_of_nccl_is_told_before_anything_raises():
    lines = [*STARTED, *["(VllmWorker rank=0 pid=9) INFO vLLM is using nccl==2.27.3"] * 3,
             "(EngineCore_0 pid=8) INFO [shm_broadcast.py:466] No available shared memory broadcast block found in 60 "
             "seconds. This typically happens when some processes are hanging"]  # fmt: skip
    assert server_failures.known(lines).name == "NCCL"


def test_the_kernel_ended_it():
    assert server_failures.known(STARTED, "oom-kill").name == "memory"


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([], ""),
        (["INFO all is well"], ""),
        (
            [
                "(EngineCore pid=9) ERROR 11-21 05:06:44 [core.py:402] Traceback (most recent call last):",
                "(EngineCore pid=9) ERROR 11-21 05:06:44 [core.py:402] torch.OutOfMemoryError: CUDA out of memory.",
                "(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above. Failed: {}",
            ],
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
        (
            ["Traceback (most recent call last):", '  File "x"', "ValueError: no such model"],
            "ValueError: no such model",
        ),
        (["usage: vllm serve", "vllm serve: error: unrecognized arguments: --x"], "vllm serve: error: unrecognized "
         "arguments: --x"),
        (["KeyboardInterrupt"], "KeyboardInterrupt"),
        (["OSError: [Errno 98] Address already in use", "done"], "OSError: [Errno 98] Address already in use"),
    ],
)  # fmt: skip
def test_the_cause_is_the_first_process_exception(lines, cause):
    assert server_failures.cause(lines) == cause


def test_the_last_lines_that_say_something():
    assert server_failures.tail(["a", "", "b ", "c"], 2) == ["b", "c"]


# What vLLM 0.26.0 says at every start with few files, on an H100.
FEW_FILES = (
    f"{API}WARNING 11-27 22:19:19 [system_utils.py:299] Found ulimit of 20000 and failed to automatically increase "
    "with error current limit exceeds maximum limit. This can cause fd limit errors like `OSError: [Errno 24] Too many "
    "open files`. Consider increasing with ulimit -n"
)
NO_FOLDER = (
    f"{API}huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': "
    "'/models/not-there'. Use `repo_type` argument if needed."
)


def test_a_warning_of_an_error_that_may_come_is_no_failure():
    assert server_failures.known([*STARTED, FEW_FILES]) is None
    assert server_failures.known([*STARTED, FEW_FILES, NO_FOLDER]).name == "model not found"


def test_the_last_words_of_a_server():
    message, details = server_failures.last_words("It ended", "exit-code", JOURNALS["no GPU"], "x.service")
    assert message.startswith("It ended (systemd says exit-code). RuntimeError: No CUDA GPUs are available\n")
    remedy = next(failure.remedy for failure in FAILURES if failure.name == "no GPU")
    assert f"{remedy}\nIts last lines (`journalctl -u x.service` has all):\n{STARTED[0]}\n" in message
    assert details == {"cause": "RuntimeError: No CUDA GPUs are available", "failure": "no GPU", "result": "exit-code"}
    message, details = server_failures.last_words("It ended", "", [f"line {number}" for number in range(99)], "x")
    assert message.startswith("It ended (systemd says nothing). \nIts last lines (`journalctl -u x` has all):\nline 74")
    assert details == {"cause": "", "failure": "", "result": ""}


def test_what_is_said_of_a_server_that_takes_too_long():
    message, details = server_failures.too_late("No answer. ", ["a", ""], "x")
    assert message == (
        "No answer. A large model may need more time (vllm_model_server_ready_timeout). Its last lines (`journalctl -u "
        "x` has all):\na"
    )
    assert details == {"failure": "", "result": "timeout"}
    message, details = server_failures.too_late("No answer. ", JOURNALS["no GPU"], "x")
    assert details["failure"] == "no GPU" and "more time" not in message
