# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof on a real GPU: what the inventory's container 921 is made into, served by a real vLLM, and measured.

    make gpu-proof RELEASE=/opt/vllm OUT=build/gpu-proof

or

    python tests/gpu/proof.py --release /opt/vllm --out build/gpu-proof [--stages tp1,tp2] [--limit 900]

Needs a machine with one NVIDIA GPU or more and nothing on them, and a release of vLLM: a folder with bin/python and
bin/vllm. Neither root, systemd, containers nor a network; the weights are made up (--load-format dummy), in the
architecture of Llama 3.2 3B. Ansible runs on the Python that runs this.

1. The definition of 921 in inventories/example goes the whole way through inventory plugin, role, template and module,
   in check mode. What comes out, the unit and the engine config, is what is started, with the unit's environment and
   its command line. What differs from the definition is in the result: the model's folder, port, number of GPUs, and
   the share of a GPU, since servers that are compared run beside each other.
2. gpu_check on all GPUs.
3. A cold start with empty caches, a warm one with those that were kept; verify's own question, judged by verify's code.
4. In turns, with vLLM's own benchmark client: the rendered server and the best command line that a person would write,
   both on the same GPU; the rendered server with FlashInfer's sampler on and off, both on the same GPU.
5. The same of 3 and 4 with tensor parallel 2, where there are two GPUs; the sampler apart.

What disturbs a machine for seconds disturbs two runs that follow each other, so a ratio is of two such runs. Two starts
of one server differ, too, by some percent, so servers are started again (--starts), the other one first. The result is
the median of all rounds of all starts; what is chance in it is told by resamples of the starts, then of each one's
rounds. All that are compared were started from kept caches. Pairs on different GPUs are measured at the same time, with
processors of their own.

It ends with 1 when over all loads the rendered server has less than 0.98 of the hand-made one's tokens per second, or
at one load surely so, or vLLM says that it gave the two engines different settings, or a check fails. result.json has
everything as measured, after each step; `report.py` makes a page of it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import math
import operator
import os
import platform
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".ansible" / "collections"))

import client
import report
from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    benchmark,
    benchmark_client,
    engine_args,
    gpu_checks,
    gpu_info,
    gpu_runner,
    server_guard,
    verification,
)
from ansible_collections.phoenix.hypervisor.plugins.modules import container_check, gpu_check

CTID = "921"
PORT = 8100
# The architecture of Llama 3.2 3B.
SHAPE = {
    "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 8192, "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip
LOADS = [
    {"streams": 1, "input_tokens": 128, "output_tokens": 128, "prompts": 8},
    {"streams": 32, "input_tokens": 256, "output_tokens": 256, "prompts": 128},
    {"streams": 128, "input_tokens": 256, "output_tokens": 256, "prompts": 256},
    # Most of this is reading prompts, in which the GPU is the limit; in the others it is often the processor.
    {"streams": 64, "input_tokens": 1024, "output_tokens": 64, "prompts": 192},
]
# Requests that are sampled by top-k and top-p, which is what FlashInfer's sampler does.
SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": 40}
# What is compared, and with what.
COMPARISONS = {"rendered": ("rendered", "hand_made"), "sampler": ("rendered", "sampler_off")}
NAMES = {"rendered": "rendered_to_hand_made", "sampler": "sampler_on_to_off"}
COMPILERS = ("CC", "CXX", "CUDAHOSTCXX", "CFLAGS", "CXXFLAGS", "TORCH_CUDA_ARCH_LIST")
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
# What a release has.
PACKAGES = """
import importlib.metadata, json, sys
packages = sorted({f"{one.name}=={one.version}" for one in importlib.metadata.distributions()})
print(json.dumps({"python": sys.version.split()[0], "packages": packages}))
"""
# Of a GPU, for one of its two servers.
SHARE = 0.42
# What is worth keeping of a server's log.
WORTH = re.compile(
    r"attention backend|FlashInfer|Selected \w+ for|kernel for|Model loading took|torch.compile t|Compiling a graph|"
    r"compil\w+ .*took|Directly load|GPU KV cache size|Available KV cache|Graph capturing|init engine|custom allreduce|"
    r"Using .*(backend|kernel|all-?reduce)|nccl|Asynchronous scheduling|Chunked prefill|Capturing CUDA graphs \(.*100%",
    re.I,
)


def now() -> str:
    """The time, as results have it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def output(*command: str) -> str:
    """What a program prints, nothing when there is no such program."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def run(argv: Sequence[str]) -> tuple[int, str, str]:
    """Run a program as a module does."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def parted(processors: Sequence[int], parts: int) -> list[tuple[set[int], set[int]]]:
    """Processors for pairs of servers that are measured at the same time: each pair's, and its client's.

    Where there are few, all have all.
    """
    size = len(processors) // parts
    if size < 8:
        return [(set(processors), set(processors))] * parts
    blocks = [processors[number * size : (number + 1) * size] for number in range(parts)]
    return [(set(block[: size * 3 // 4]), set(block[size * 3 // 4 :])) for block in blocks]


def suffix(gpus: Sequence[int]) -> str:
    """How names in the result end for servers on these GPUs."""
    return "_tp2" if len(gpus) > 1 else ""


def stolen() -> tuple[int, int]:
    """What other machines of the same host took of this one's processors until now, and all of their time."""
    with contextlib.suppress(OSError, IndexError):
        times = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return times[7], sum(times)
    return 0, 1


def paired(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], load: int) -> list[list[float]]:
    """The ratio of one's tokens per second to the other's at a load: of each start a list, a number for each round."""
    which = operator.itemgetter("start", "gpu", "round")
    first, second = (
        {which(run): run["figures"]["output_tokens_per_second"] for run in runs if run["load"] == load}
        for runs in (one, other)
    )  # fmt: skip
    starts = itertools.groupby(sorted(second), operator.itemgetter(0, 1))
    return [[first[key] / second[key] for key in keys] for _start, keys in starts]


def over_all_loads(ratios: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The ratio over all loads: of each start a list, of each round the geometric mean, each load with the same weight.

    :param ratios: of each load, by start, a number for each round
    """
    return [[math.prod(of_round) ** (1 / len(ratios)) for of_round in zip(*of_start)] for of_start in zip(*ratios)]


def resampled(ratios: Sequence[Sequence[float]], center: Callable[[Sequence[float]], float]) -> tuple[float, float]:
    """Where what ratios come to lies in 95 % of resamples.

    Rounds of one start are more alike than those of two, so starts are drawn, then rounds of each: resamples of all
    rounds alike would say that more is known than is.

    :param ratios: of each start a list
    :param center: what they come to
    """
    dice = random.Random(1)
    return benchmark.bounds(
        center([ratio for start in dice.choices(ratios, k=len(ratios)) for ratio in dice.choices(start, k=len(start))])
        for _number in range(benchmark.RESAMPLES)
    )


def middle(ratios: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The median of ratios, where it lies in 95 % of resamples, and all of them.

    :param ratios: of each start a list
    """
    values = [ratio for start in ratios for ratio in start]
    low, high = resampled(ratios, benchmark.median)
    return {"median": round(benchmark.median(values), 4), "interval": [round(low, 4), round(high, 4)],
            "values": [round(ratio, 4) for ratio in values]}  # fmt: skip


def compared(found: Mapping[str, Sequence[Mapping[str, Any]]], loads: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """What was measured of two arms, compared.

    :param found: of each arm the runs
    """
    one, other = found.values()
    ratios = [paired(one, other, number) for number in range(len(loads))]
    overall = middle(over_all_loads(ratios))
    by_load = {benchmark_client.load_name(load): middle(values) for load, values in zip(loads, ratios)}
    low, high = overall["interval"]
    return {
        "arms": list(found), "rounds": sum(map(len, ratios[0])), "starts": len(ratios[0]),
        "loads": list(loads), "rows": benchmark.compare_arms(one, other, loads), "ratios": by_load, "overall": overall,
        "runs": {arm: list(runs) for arm, runs in found.items()},
        "summary_line": f"over all loads {overall['median']:.3f} ({low:.3f} to {high:.3f}); "
                        + ", ".join(f"{load} {ratio['median']:.3f}" for load, ratio in by_load.items()),
    }  # fmt: skip


# --- what the role makes of it --------------------------------------------------------------------------------------


def unquoted(text: str) -> str:
    """A setting of a unit as systemd reads it: quoted as JSON is, or not at all; %% is a percent sign."""
    return (json.loads(text) if text.startswith('"') else text).replace("%%", "%")


def parse_unit(unit: str) -> tuple[dict[str, str], list[str]]:
    """The environment and the command line that systemd takes from a unit as the role writes it."""
    lines = unit.splitlines()
    pairs = [unquoted(line.partition("=")[2]) for line in lines if line.startswith("Environment=")]
    command = next(line.partition("=")[2] for line in lines if line.startswith("ExecStart="))
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(command)]
    return dict(pair.split("=", 1) for pair in pairs), words


def overrides(model: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What of the inventory's definition is another, as a JSON merge patch."""
    return {
        "lxc_configs": {
            CTID: {
                "vllm_engine_config": {
                    "ModelConfig": {"model": str(model)}, "LoadConfig": {"load_format": "dummy"},
                    "ServerConfig": {"host": "127.0.0.1"}, **changes,
                }
            }
        }
    }  # fmt: skip


class Rendered:
    """What the inventory, the role, its template and its module make of the definition.

    :param folder: for its files
    :param changes: of the engine config, by group
    :param variables: of the role
    """

    def __init__(self, folder: Path, release: Path, model: Path, changes: Mapping[str, Any],
                 variables: Mapping[str, Any]):  # fmt: skip
        self.folder, self.release = folder, release
        folder.mkdir(parents=True, exist_ok=True)
        self.overrides = overrides(model, changes)
        self.variables = {**variables, "vllm_model_server_link": str(release), "vllm_model_server_overlap": "never"}
        self.file = folder / "rendered.json"
        self.process = self._start()

    def _start(self) -> subprocess.Popen:
        example = ROOT / "inventories" / "example"
        (self.folder / "overrides.json").write_text(json.dumps(self.overrides, indent=1))
        inventory = self.folder / "lxc_configs.yml"
        inventory.write_text(json.dumps({
            "plugin": "phoenix.hypervisor.lxc_configs",
            "config_files": [str(example / "phoenix_lxc_configs.json")],
            "override_files": ["overrides.json"],
            "nodes": {"pve": {"ansible_connection": "local"}},
        }))  # fmt: skip
        # Nothing of this machine's systemd is asked: a server that runs here already has nothing to do with it.
        stubs = self.folder / "stubs"
        stubs.mkdir(exist_ok=True)
        stub = stubs / "systemctl"
        stub.write_text("#!/bin/sh\nexit 0\n")
        stub.chmod(0o755)
        wanted = {
            **self.variables, "proof_host": f"ctid_{CTID}", "proof_file": str(self.file),
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
        }  # fmt: skip
        (self.folder / "variables.json").write_text(json.dumps(wanted))
        environment = {
            **os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_LOCALHOST_WARNING": "0",
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-m", "ansible", "playbook", "-i", inventory, ROOT / "tests/gpu/render.yml", "--check",
             "--diff", "-e", f"@{self.folder / 'variables.json'}"],
            stdout=(self.folder / "ansible.log").open("w"), stderr=subprocess.STDOUT, env=environment, cwd=ROOT,
        )  # fmt: skip

    def done(self) -> Rendered:
        """Wait for it, and read what came out."""
        if self.process.wait(300) or not self.file.exists():
            raise SystemExit(f"the role could not be run:\n{(self.folder / 'ansible.log').read_text()[-3000:]}")
        found = json.loads(self.file.read_text())
        after = {part["after_header"]: part["after"] for part in found["diff"] if "after_header" in part}
        self.config = next(text for name, text in after.items() if name.endswith(".yaml"))
        self.unit = next(text for name, text in after.items() if name.endswith("vllm_model_server.service"))
        self.environment, self.command = parse_unit(self.unit)
        # What the unit names is written when it is made live; here it lies beside.
        config = self.folder / "engine.yaml"
        config.write_text(self.config)
        self.command[-1] = str(config)
        return self


# --- servers --------------------------------------------------------------------------------------------------------


class Server:
    """A server of vLLM that runs."""

    def __init__(self, name: str, folder: Path, port: int, command: Sequence[str], environment: Mapping[str, str],
                 served: str, processors: tuple[set[int], set[int]]):  # fmt: skip
        self.processors, self.for_client = processors
        self.name, self.port, self.command, self.environment = name, port, list(command), dict(environment)
        self.log = folder / f"{name}.log"
        self.url = f"http://127.0.0.1:{port}"
        path, body = engine_args.probe({"served-model-name": [served]})
        self.probe = {"host": "127.0.0.1", "port": port, "tls": False, "path": path, "body": body, "key": ""}
        self.served = served
        caches = {Path(value) for key, value in self.environment.items() if key in ("HOME", "VLLM_CACHE_ROOT")}
        self.kept = any(path.is_dir() and any(path.iterdir()) for path in caches)
        for cache in caches:
            cache.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, cwd=folder, preexec_fn=lambda: os.sched_setaffinity(0, self.processors),
            )  # fmt: skip

    def lines(self) -> list[str]:
        """What it has said."""
        return self.log.read_text(errors="replace").splitlines()

    def wait(self, limit: float) -> float:
        """Wait until it has answered. Gives the seconds from its start."""
        while time.monotonic() - self.began < limit:
            if self.process.poll() is not None:
                raise ProofError(f"{self.name} ended with {self.process.returncode}:\n" + "\n".join(self.lines()[-40:]))
            if server_guard.ask(self.probe, 60).kind == "answer":
                return round(time.monotonic() - self.began, 1)
            time.sleep(0.2)
        raise ProofError(f"{self.name} did not answer within {limit:.0f} s:\n" + "\n".join(self.lines()[-40:]))

    def worth(self) -> list[str]:
        """The lines of its log that say how it works."""
        lines = [re.sub(r"^.*?(INFO|WARNING) [\d-]+ [\d:]+ (\[[^\]]*\] )?", "", line)[:240] for line in self.lines()
                 if WORTH.search(line)]  # fmt: skip
        return list(dict.fromkeys(lines))[:60]

    def settings(self) -> str:
        """What vLLM says that it gives its engine."""
        lines = [line.partition(" with config: ")[2] for line in self.lines() if "Initializing a V1 LLM engine" in line]
        return lines[0] if lines else ""

    def stop(self) -> None:
        """End it and all that it started."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class ProofError(Exception):
    """A step that can't be done. The text is for the user."""


# --- the proof ------------------------------------------------------------------------------------------------------


class Proof:
    """One run. What it finds is written after each step.

    :param options: of the command line
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.began = time.monotonic()
        self.out = options.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = (options.work or self.out / "work").resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.release = options.release.resolve()
        self.python = str(self.release / "bin" / "python")
        self.model = self.work / "model"
        self.wrong: list[str] = []
        self.running: list[Server] = []
        # What is added to is kept in the same hold, so that an older state never comes last.
        self.lock = threading.RLock()
        self.file = self.out / "result.json"
        self.result: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.client: list[str] = []
        self.known: dict[tuple[str, tuple[int, ...]], Rendered] = {}
        self.measured: dict[str, dict[str, list[dict]]] = {}
        self.used: dict[str, list[str]] = {}

    def left(self) -> float:
        """Seconds that are left."""
        return self.options.limit - (time.monotonic() - self.began)

    def say(self, text: str) -> None:
        """Tell how far it is."""
        sys.stdout.write(f"[{time.monotonic() - self.began:6.1f} s] {text}\n")
        sys.stdout.flush()

    def keep(self, name: str, what: Any) -> None:
        """Write down what was found."""
        with self.lock:
            self.result[name] = what
            self.result["wrong"] = self.wrong
            new = self.file.with_suffix(".new")
            new.write_text(self.anywhere(json.dumps(self.result, indent=1)) + "\n")
            os.replace(new, self.file)

    def anywhere(self, text: str) -> str:
        """What is written down, with names for this machine's folders: the result is read elsewhere."""
        for folder, name in ((self.work, "$WORK"), (self.release, "$RELEASE"), (self.out, "$OUT")):
            text = text.replace(str(folder), name)
        return text

    # -- steps --------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What this is measured on. Gives what is known of the GPUs."""
        info = gpu_info.result(gpu_info.look(run, [self.python, sys.executable]))
        if not info["available"] and not self.options.no_gpu:
            raise SystemExit(info["reason"])
        known = json.loads(output(self.python, "-c", PACKAGES) or "{}")
        versions = dict(one.split("==", 1) for one in known.get("packages", []))
        names = ("vllm", "torch", "flashinfer-python", "transformers", "triton", "nvidia-nccl-cu13")
        query = "index,name,driver_version,memory.total,power.limit,clocks.max.sm,pcie.link.gen.max"
        smi = output("nvidia-smi", f"--query-gpu={query}", "--format=csv")
        with contextlib.suppress(OSError):
            processor = benchmark.processor_in(Path("/proc/cpuinfo").read_text())
        self.keep("date", now())
        self.keep("machine", {
            "gpus": [{name: gpu[name] for name in ("name", "architecture", "compute_capability", "memory_total_mib")}
                     for gpu in info["gpus"]],
            "driver": info["driver_version"], "cuda_driver": info["cuda_driver_version"],
            "toolkit": info["toolkit_version"], "nvidia_smi": smi.splitlines(),
            "topology": output("nvidia-smi", "topo", "-m").splitlines(),
            "processor": processor, "cores": os.cpu_count(), "kernel": platform.release(),
            "python": known.get("python", ""), "versions": {name: versions.get(name, "") for name in names},
        })  # fmt: skip
        self.keep("packages", known.get("packages", []))
        self.keep("info", info)
        self.keep("asked", {"arguments": sys.argv[1:], "environment": self.options.environment,
                            "engine": self.options.engine, "loads": LOADS, "sampling": SAMPLING})  # fmt: skip
        return info

    def make_model(self) -> None:
        """Write the model: the tiny one's tokenizer, the shape of Llama 3.2 3B, no weights."""
        tiny = [sys.executable, str(ROOT / "lab" / "tiny_llama.py"), str(self.model)]
        subprocess.run(tiny, check=True, stdout=subprocess.DEVNULL)
        config = self.model / "config.json"
        if not self.options.tiny:
            config.write_text(json.dumps({**json.loads(config.read_text()), **SHAPE}))

    def check_gpus(self, info: Mapping[str, Any]) -> None:
        """Run gpu_check's checks."""
        began = time.monotonic()
        environment = gpu_check.environment_of(dict(self.options.environment), dict(os.environ))
        seconds = {"": 90, gpu_runner.FIRST: 120}
        checks = gpu_check.run_checks(dict(info), self.python, gpu_checks.Limits(), seconds, environment)
        self.say("gpu_check\n" + "\n".join(gpu_checks.table(checks)))
        self.keep("gpu_check", {
            "checks": checks, "table": gpu_checks.table(checks), "passed": gpu_checks.passed(checks),
            "seconds": round(time.monotonic() - began, 1),
        })  # fmt: skip
        self.wrong += gpu_checks.failures(checks)

    def start_client(self) -> None:
        """Have vLLM's benchmark client imported; it is needed once servers answer."""
        path = self.work / f"client-{os.getpid()}.socket"
        script = str(ROOT / "tests" / "gpu" / "client.py")
        environment = {**os.environ, **dict(self.options.environment), **QUIET}
        self.client_process = subprocess.Popen(
            [self.python, script, "serve", str(path)], stdout=subprocess.PIPE, text=True, env=environment,
            stderr=(self.work / "client-start.log").open("w"), cwd=self.work, start_new_session=True,
        )  # fmt: skip
        self.client = [self.python, "-S", "-E", script, str(path)]

    # -- one number of GPUs -------------------------------------------------------------------------------------------

    def changes(self, tensor_parallel: int, port: int) -> dict[str, Any]:
        """What of the engine config is another for a server."""
        found: dict[str, Any] = {
            "CacheConfig": {"gpu_memory_utilization": SHARE},
            "ParallelConfig": {"tensor_parallel_size": tensor_parallel},
            "ServerConfig": {"host": "127.0.0.1", "port": port},
        }
        for name, value in self.options.engine:
            found.setdefault("ModelConfig", {})[name] = value
        # What other servers on this GPU can do is no matter; the folder is.
        found.setdefault("ModelConfig", {})["model"] = str(self.model)
        if self.options.no_gpu:
            # The two keys that the CPU build has not.
            found["CacheConfig"] = {"quantization": None, "kv_cache_dtype": None, "gpu_memory_utilization": None}
        return found

    def rendered(self, kind: str, gpus: Sequence[int]) -> Rendered:
        """What the role makes of a server on these GPUs. The first call begins to render it.

        :param kind: rendered, or sampler_off
        """
        key = (kind, tuple(gpus))
        if key not in self.known:
            sampler = kind == "rendered"
            port = self.next_port()
            variables = {
                # One compiles for all that are the same: FlashInfer's kernels are those of one GPU on two as well.
                "vllm_model_server_cache": str(self.work / "caches" / kind),
                "vllm_model_server_flashinfer_sampler": sampler,
                "vllm_model_server_environment": {
                    **dict(self.options.environment), "HF_HUB_OFFLINE": "1",
                    "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
                },
            }  # fmt: skip
            if self.options.no_gpu:
                variables["vllm_model_server_stack"] = "cpu"
            folder = self.work / self.label(kind, gpus)
            self.known[key] = Rendered(folder, self.release, self.model, self.changes(len(gpus), port), variables)
            self.known[key].port = port
        return self.known[key]

    @staticmethod
    def label(kind: str, gpus: Sequence[int]) -> str:
        """A server's name: rendered_gpu0, hand_made_gpu0_1."""
        return f"{kind}_gpu{'_'.join(map(str, gpus))}"

    def next_port(self) -> int:
        """A port that no other server has."""
        self.port = getattr(self, "port", PORT - 1) + 1
        return self.port

    def processors(self, gpus: Sequence[int]) -> tuple[set[int], set[int]]:
        """The processors of servers on these GPUs, and of their client."""
        parts = min(self.count, 2) if len(gpus) == 1 else 1
        return parted(sorted(os.sched_getaffinity(0)), parts)[-1 if gpus[0] else 0]

    def serve(self, kind: str, gpus: Sequence[int]) -> Server:
        """Start a server: what was rendered, as systemd would, or what a person would start."""
        if kind == "hand_made":
            command, environment, port = self.by_hand(gpus)
        else:
            known = self.rendered(kind, gpus).done()
            command, environment, port = known.command, known.environment, known.port
        server = Server(self.label(kind, gpus), self.work, port, command, environment, "llama-3.2-3b-fp8",
                        self.processors(gpus))  # fmt: skip
        server.kind, server.gpus = kind, list(gpus)
        with self.lock:
            self.running.append(server)
        return server

    def by_hand(self, gpus: Sequence[int]) -> tuple[list[str], dict[str, str], int]:
        """The best command line that a person would write, that person's environment, and the port."""
        port = self.next_port()
        words = [
            str(self.release / "bin" / "vllm"), "serve", str(self.model), "--load-format", "dummy", "--max-model-len",
            "8192", "--served-model-name", "llama-3.2-3b-fp8", "--host", "127.0.0.1", "--port", str(port),
            "--tensor-parallel-size", str(len(gpus)), "--trust-remote-code",
        ]  # fmt: skip
        if not self.options.no_gpu:
            words += ["--quantization", "fp8", "--kv-cache-dtype", "fp8", "--gpu-memory-utilization", str(SHARE)]
        for key, value in self.options.engine:
            text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
            words += [f"--{key.replace('_', '-')}", text]
        environment = {
            **os.environ, **QUIET,
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
            # Those that the rendered server has left: what is compiled once is compiled for both.
            **self.cache_variables("rendered"), **dict(self.options.environment),
        }  # fmt: skip
        environment["PATH"] = f"{self.release / 'bin'}:{environment['PATH']}"
        # FlashInfer writes the compiler's name into what it builds from, and compiles all of it again where that is
        # another one: two minutes, for this server and then for the rendered one.
        return words, {key: value for key, value in environment.items() if key not in COMPILERS}, port

    def cache_variables(self, cache: str) -> dict[str, str]:
        """Where caches are, for a server that nobody rendered."""
        folder = self.work / "caches" / cache
        names = {"HOME": "", "HF_HOME": "huggingface", "VLLM_CACHE_ROOT": "vllm", "XDG_CACHE_HOME": "",
                 "TORCHINDUCTOR_CACHE_DIR": "torchinductor", "TRITON_CACHE_DIR": "triton",
                 "FLASHINFER_WORKSPACE_BASE": ""}  # fmt: skip
        return {name: str(folder / below) if below else str(folder) for name, below in names.items()}

    def verify(self, server: Server) -> dict[str, Any]:
        """Ask what the role verify asks, with its code, and judge it with that."""
        request = {
            "url": f"{server.url}/v1/completions", "timeout": 120, "retries": 0, "interval": 1,
            "body": {"model": server.served, "prompt": "The capital of France is", "max_tokens": 16, "temperature": 0},
        }  # fmt: skip
        reply = container_check.without("", container_check.check(request, ""))
        return verification.result_of({"host": f"ctid_{CTID}", "ctid": int(CTID), "model": server.served,
                                       "url": server.url, "completion": reply})  # fmt: skip

    def described(self, server: Server) -> dict[str, Any]:
        """A server for the result."""
        rendered = self.known.get((server.kind, tuple(server.gpus)))
        # Of what a person's shell has, only what was added to it.
        added = dict(sorted(set(server.environment.items()) - set(os.environ.items())))
        return {
            "command": server.command,
            "environment": rendered.environment if rendered else added,
            **({"engine_config_file": rendered.config, "unit": rendered.unit} if rendered else {}),
            "caches_kept": server.kept, "log": server.worth(),
            "sampler": benchmark.sampler_in("\n".join(server.lines())),
        }  # fmt: skip

    def stop_all(self) -> None:
        """End all servers, several at the same time."""
        threads = [threading.Thread(target=server.stop) for server in self.running]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.running.clear()

    def measure(self, server: Server, seed: int, warm_up: bool, loads: Sequence[Mapping[str, int]]) -> list[dict]:
        """Measure a server once at each load."""
        job = {
            "program": self.client, "url": server.url, "model": server.served, "tokenizer": str(self.model),
            "folder": str(self.work / f"client-{server.name}"), "loads": list(loads), "sampling": SAMPLING,
            "repeats": 0 if warm_up else 1, "warm_up": warm_up, "seed": seed, "timeout": 120,
            "environment": {"HF_HUB_OFFLINE": "1", client.PROCESSORS: ",".join(map(str, sorted(server.for_client)))},
        }  # fmt: skip
        return benchmark_client.measure(job)["runs"]

    def in_turns(self, what: str, start: int, pair: Sequence[Server]) -> None:
        """Measure a pair in turns, one load of one after the same of the other, as long as there is time."""
        loads = benchmark_client.checked_loads(LOADS[:2] if self.options.tiny else LOADS)
        gpus = pair[0].gpus
        name = NAMES[what] + suffix(gpus)
        said = f"{name}, GPU {', '.join(map(str, gpus))}, start {start}"
        kinds = COMPARISONS[what]
        try:
            for server in pair:
                self.measure(server, 1000, True, loads)
            for turn in range(1, self.options.rounds + 1):
                began, before = time.monotonic(), stolen()
                runs: dict[str, list[dict]] = {kind: [] for kind in kinds}
                for place, load in enumerate(loads):
                    for server in pair if (turn + place) % 2 else pair[::-1]:
                        seed = 100_000 * start + 1000 * (turn + 1) + place
                        run = self.measure(server, seed, False, [load])[0]
                        runs[server.kind].append({**run, "load": place, "round": turn, "start": start, "gpu": gpus[0]})
                took, after = time.monotonic() - began, stolen()
                share = 100 * (after[0] - before[0]) / max(after[1] - before[1], 1)
                line = self.add(name, kinds, loads, runs)
                self.say(f"{said}, round {turn} of {self.options.rounds}, {took:.0f} s, {share:.1f} % of the time of "
                         f"processors went to other machines. Until now: {line}")  # fmt: skip
                if self.left() < took + 20:
                    self.say(f"{said}: no time for another round")
                    break
        except benchmark_client.BenchmarkError as error:
            self.wrong.append(f"{said}: {error}")
            self.say(f"{said}: {error}")

    def add(self, name: str, kinds: Sequence[str], loads: Sequence[Mapping[str, int]],
            runs: Mapping[str, Sequence[dict]]) -> str:  # fmt: skip
        """Add a round to what was measured, and keep it. Gives a line of what it comes to."""
        with self.lock:
            known = self.measured.setdefault(name, {kind: [] for kind in kinds})
            for kind in kinds:
                known[kind] += runs[kind]
            found = compared(known, loads)
            self.keep(name, {**self.result.get(name, {}), **found})
        return found["summary_line"]

    def begin(self, *wanted: tuple[str, Sequence[int]], cold: bool = False) -> list[Server]:
        """Start servers on different GPUs and wait for all of them.

        :param cold: whether they are the first ones of their kind
        """
        servers = [self.serve(kind, gpus) for kind, gpus in wanted]
        threads = [threading.Thread(target=self.wait, args=(server, cold)) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return servers

    def wait(self, server: Server, cold: bool) -> None:
        """Wait for a server, and keep how long it took; of each kind the first one is described."""
        name = f"server_{'cold_' if cold else ''}{server.kind}{suffix(server.gpus)}"
        try:
            seconds = server.wait(min(400, max(self.left(), 5)))
        except ProofError as error:
            self.wrong.append(str(error).splitlines()[0])
            self.keep(name, {"error": str(error), "log": server.worth(), "command": server.command})
            self.say(str(error))
            return
        self.say(f"{server.name} answered after {seconds} s{'' if server.kept else ', caches empty'}")
        with self.lock:
            known = self.result.get(name) or self.described(server)
            self.keep(name, {**known, "starts": [*known.get("starts", ()), seconds]})

    def alive(self, *servers: Server) -> bool:
        """Whether servers run that answered."""
        return all(server.process.poll() is None and not any(name.startswith(f"{server.name} ") for name in self.wrong)
                   for server in servers)  # fmt: skip

    def judge(self, name: str) -> None:
        """Compare the rendered server with the hand-made one."""
        found = self.result.get(name)
        if not found:
            self.wrong.append(f"{name}: nothing was measured")
            return
        said = "the rendered server has {:.3f} of the hand-made one's tokens per second ({:.3f} to {:.3f})"
        if found["overall"]["median"] < report.RATIO:
            overall = said.format(found["overall"]["median"], *found["overall"]["interval"])
            self.wrong.append(f"{name}: over all loads {overall}")
        self.wrong += [f"{name}: at {load} {said.format(ratio['median'], *ratio['interval'])}"
                       for load, ratio in found["ratios"].items() if ratio["interval"][1] < report.RATIO]  # fmt: skip

    def same(self, name: str, one: Server, other: Server) -> None:
        """Look whether vLLM gave both engines the same settings, by what it says."""
        settings = [server.settings() for server in (one, other)]
        if all(settings):
            same = settings[0] == settings[1]
            other_settings = {} if same else {"other_settings": settings[1]}
            if not same:
                self.wrong.append(f"{name}: vLLM gave the engines different settings")
            known = self.result.get(name, {})
            self.keep(name, {**known, "same_settings": same, "settings": settings[0], **other_settings})

    def stage(self, places: Sequence[Sequence[int]], whats: Sequence[str]) -> None:
        """Serve and compare.

        :param places: GPUs for a server; those of two places are measured at the same time
        :param whats: the comparisons
        """
        parallel = suffix(places[0])
        waves = ([list(zip(itertools.cycle(whats), places))] if len(places) >= len(whats)
                 else [[(what, places[0])] for what in whats])  # fmt: skip
        kinds = dict.fromkeys(kind for what in whats for kind in COMPARISONS[what] if kind != "hand_made")
        # The caches of one kind are filled once. Where there is a GPU for each kind, that takes as long as the longest.
        cold = [(kind, places[number % len(places)]) for number, kind in enumerate(kinds)]
        for what, gpus in itertools.chain(*waves):
            for kind in set(COMPARISONS[what]) - {"hand_made"}:
                self.rendered(kind, gpus)
        together = [cold] if len(places) >= len(cold) else [[one] for one in cold]
        servers = [server for wanted in together for server in self.begin(*wanted, cold=True)]
        self.verified(f"verify{parallel}", servers[0])
        usable = self.alive(*servers)
        self.stop_all()
        self.wait_for_client()
        for start in range(1, self.options.starts + 1):
            for wave in waves if usable else ():
                # A start and a round take minutes.
                if self.left() < 150 and start > 1:
                    self.say("no time for another start")
                    break
                self.start_and_measure(start, wave)
        for what in whats:
            if what == "rendered":
                self.judge(NAMES[what] + parallel)
            else:
                self.sampler_verdict(NAMES[what] + parallel)

    def start_and_measure(self, start: int, wave: Sequence[tuple[str, Sequence[int]]]) -> None:
        """Start pairs of servers, measure them, end them.

        :param start: counted from 1
        :param wave: a comparison and its GPUs, each
        """
        # Engines that measure one GPU's free memory at once get it wrong: on each GPU one after the other.
        order = (0, 1) if start % 2 else (1, 0)
        begun = {arm: self.begin(*((COMPARISONS[what][arm], gpus) for what, gpus in wave)) for arm in order}
        pairs = [(what, (one, other)) for (what, _gpus), one, other in zip(wave, begun[0], begun[1])]
        pairs = [(what, pair) for what, pair in pairs if self.alive(*pair)]
        threads = [threading.Thread(target=self.in_turns, args=(what, start, pair)) for what, pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for what, pair in pairs:
            if what == "rendered":
                self.same(NAMES[what] + suffix(pair[0].gpus), *pair)
            else:
                for arm, server in zip(("on", "off"), pair):
                    self.used.setdefault(arm, []).append(benchmark.sampler_in("\n".join(server.lines())))
        self.stop_all()

    def verified(self, name: str, server: Server) -> None:
        """Verify a server and keep it."""
        if not self.alive(server):
            return
        found = self.verify(server)
        self.keep(name, found)
        self.say(f"{name}: {'passed' if found['passed'] else found['failures']}, it answered {found.get('answer')!r}")
        if not found["passed"]:
            self.wrong += [f"{name}: {failure}" for failure in found["failures"]]

    def wait_for_client(self) -> None:
        """Wait until the client is imported."""
        if not getattr(self, "client_ready", False):
            assert self.client_process.stdout
            # vLLM has its own things to say before.
            if not any(line.strip() == "ready" for line in iter(self.client_process.stdout.readline, "")):
                raise ProofError(f"vLLM's benchmark client can't be imported: see {self.work / 'client-start.log'}")
            self.client_ready = True

    def sampler_verdict(self, name: str) -> None:
        """What the sampler's comparison says."""
        found = self.result.get(name)
        if not found:
            self.wrong.append(f"{name}: nothing was measured")
            return
        said = benchmark.sampler_verdict(found["rows"], found["rounds"], self.used)
        self.keep(name, {**found, "used": self.used, "verdict": said})
        self.say("\n".join(said))

    def go(self) -> int:
        """Do what was asked for."""
        stages = self.options.stages.split(",")
        try:
            info = self.facts()
            self.count = len(info["gpus"]) or 1
            gpus = list(range(self.count)) if not self.options.no_gpu else [0]
            places = [[gpus[0]], [gpus[-1]]] if len(gpus) > 1 else [[gpus[0]]]
            self.make_model()
            if "tp1" in stages:
                # It renders while the GPUs are checked.
                self.rendered("rendered", places[0])
            if "check" in stages:
                self.check_gpus(info)
            self.start_client()
            if "tp1" in stages:
                self.stage(places, self.options.compare)
            if "tp2" in stages:
                if self.count > 1:
                    self.stage([gpus[:2]], ["rendered"])
                else:
                    self.say("tensor parallel 2 needs two GPUs; left out")
        except (ProofError, benchmark_client.BenchmarkError) as error:
            self.wrong.append(str(error))
            self.say(str(error))
        finally:
            self.stop_all()
            with contextlib.suppress(ProcessLookupError, AttributeError):
                os.killpg(self.client_process.pid, signal.SIGKILL)
            self.keep("seconds", round(time.monotonic() - self.began, 1))
            (self.out / "README.md").write_text(self.anywhere(report.page(self.result)))
        for line in self.wrong:
            self.say(f"WRONG {line}")
        return bool(self.wrong)


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def engine(text: str) -> tuple[str, Any]:
    """A key of the engine config and its value, as JSON where it is some."""
    name, value = pair(text)
    with contextlib.suppress(ValueError):
        return name, json.loads(value)
    return name, value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", type=Path, default=Path("/opt/vllm"), help="a folder with bin/python and bin/vllm")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-proof", help="for result.json and README.md")
    parser.add_argument("--work", type=Path, help="for caches, logs and the model; below --out by default")
    parser.add_argument("--stages", default="check,tp1,tp2", help="which of check, tp1 and tp2")
    parser.add_argument("--compare", type=lambda text: text.split(","), default=list(COMPARISONS),
                        help="which of rendered and sampler; with one of them, two GPUs both do it")  # fmt: skip
    parser.add_argument("--starts", type=int, default=3, help="how often the servers of a comparison are started")
    parser.add_argument("--rounds", type=int, default=2, help="how often each server is measured after each start")
    parser.add_argument("--limit", type=float, default=3600, help="seconds in all; then no round is begun any more")
    parser.add_argument("--environment", type=pair, action="append", default=[], metavar="NAME=VALUE",
                        help="for all servers and checks")  # fmt: skip
    parser.add_argument("--engine", type=engine, action="append", default=[], metavar="KEY=VALUE",
                        help="of the engine config, for all servers")  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="the lab's tiny model and two loads, to try the harness")
    parser.add_argument("--no-gpu", action="store_true", help="try the harness with vLLM's CPU build")
    options = parser.parse_args()
    return Proof(options).go()


if __name__ == "__main__":
    sys.exit(main())
