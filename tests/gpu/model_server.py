# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a real engine on a GPU does that the lab can't show, for the parts of the collection that rely on it.

    python3 tests/gpu/model_server.py [--vllm "python3 -m vllm.entrypoints.cli.main"] [--out FILE]

Needs one GPU with nothing on it and a vLLM; neither root, systemd nor a network. In some minutes it sees

- how long a server takes to its first token, with empty caches and with full ones;
- that C(guard.py settle) waits for a server before it until that has its memory, and no longer;
- that two servers have room where C(server_switch.room) says so, and that it says no where they have not;
- that a server whose engine is stopped is told from one that is busy, as the watchdog does it;
- that the failures of C(server_failures) are known by what this vLLM says of them.

It ends with 1 when one of them is otherwise. The last line that it prints is the result as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".ansible" / "collections"))

from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    server_failures,
    server_guard,
    server_switch,
)

# The architecture of Llama 3.2 3B. Its weights are made up, and so are its answers.
SHAPE = {
    "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 8192, "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip
SHARE = 0.35
PORT = 8100


class Server:
    """A server of vLLM."""

    def __init__(self, program: list[str], folder: Path, name: str, port: int, model: str, *more: str, **environment):
        self.port, self.log = port, folder / f"{name}.log"
        words = [*program, "serve", model, "--port", str(port), "--host", "127.0.0.1", *more]
        self.began = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "VLLM_CACHE_ROOT": str(folder / "cache"), "VLLM_NO_USAGE_STATS": "1",
                     "HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0", **environment},
            )  # fmt: skip
        self.probe = {
            "host": "127.0.0.1", "port": port, "tls": False, "path": "/v1/completions", "key": "",
            "body": {"model": "m", "prompt": "Hello", "max_tokens": 4, "temperature": 0},
        }  # fmt: skip

    def lines(self) -> list[str]:
        """What it has said."""
        return self.log.read_text(errors="replace").splitlines()

    def first_token(self, limit: float = 400) -> float:
        """Wait for an answer. Gives the seconds from its start."""
        while time.monotonic() - self.began < limit:
            if self.process.poll() is not None:
                raise SystemExit("\n".join([*self.lines()[-40:], f"{self.log.name} ended"]))
            if server_guard.ask(self.probe, 60).kind == "answer":
                return round(time.monotonic() - self.began, 1)
            time.sleep(0.2)
        raise SystemExit("\n".join([*self.lines()[-40:], f"{self.log.name} did not answer"]))

    def engine(self) -> int:
        """The process of its engine."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError, ValueError):
                text, pid = path.read_text(), int(path.parent.name)
                name = (path.parent / "comm").read_text()
                if os.getpgid(pid) == self.process.pid and ("EngineCore" in text or "EngineCor" in name):
                    return pid
        raise SystemExit("the process of the engine was not found")

    def stop(self) -> float:
        """End it. Gives the seconds that it took."""
        began = time.monotonic()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return round(time.monotonic() - began, 1)


def settle(folder: Path, *shares: float) -> tuple[float, list[str]]:
    """What a server that starts now would wait for: the seconds, and what is said meanwhile.

    :param shares: what the servers before it take of each GPU; the container has just started
    """
    (folder / server_guard.SHARES).write_text(json.dumps(shares))
    server_guard.__file__ = str(folder / "guard.py")
    server_guard.started_at = time.monotonic
    began, said = time.monotonic(), io.StringIO()
    with contextlib.redirect_stdout(said):
        server_guard.settle()
    return round(time.monotonic() - began, 1), said.getvalue().splitlines()


def gpus() -> list:
    """The GPUs as the module sees them."""
    command = ["nvidia-smi", "--query-gpu=index,memory.total,memory.free", "--format=csv,noheader,nounits"]
    return server_switch.gpus(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def room(share: float) -> server_switch.Room:
    """Whether a second server would have room that takes a share of the GPU."""
    unit = 'ExecStartPre=guard.py settle\nExecStart=/x/bin/vllm serve m --config /etc/vllm/engine.yaml\n'
    probe = {"host": "127.0.0.1", "port": PORT}
    old = {"unit": unit, "config": f"gpu-memory-utilization: {SHARE}\n", "probe": probe}
    new = {"unit": unit, "config": f"gpu-memory-utilization: {share}\n", "probe": probe}
    free = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    return server_switch.room(old, new, server_switch.Here(gpus(), free, 4 * server_switch.GIB, 0))


def watch(server: Server, seconds: float, limit: int) -> dict:
    """What the watchdog remembers after it has looked at a server for a while."""
    memory = {**server_guard.remembered({}, "run"), "answered": True}
    asked = time.monotonic()
    question = server_guard.Question(server.probe, limit)
    while time.monotonic() - asked < seconds and not memory["killed"]:
        question.join(2)
        seen = question.seen
        if not question.is_alive():
            return {**server_guard.judge(memory, seen, asked, 0, time.monotonic(), limit, 600), "seen": seen.kind}
        seen = seen._replace(counters=server_guard.counted(server.probe, 5))
        memory = server_guard.judge(memory, seen, asked, 0, time.monotonic(), limit, 600)
    return {**memory, "seen": "silence"}


def flood(server: Server, over: threading.Event) -> None:
    """Keep a server busy: more requests than it works on at a time, and long ones."""
    body = {"model": "m", "prompt": "Hello", "max_tokens": 4000, "ignore_eos": True}

    def ask() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                server_guard.request(server.probe, "POST", "/v1/completions", json.dumps(body), 300)

    for _number in range(64):
        threading.Thread(target=ask, daemon=True).start()


def failures(program: list[str], folder: Path, model: str) -> dict:
    """How servers end that can't work, beside one that has its share of the GPU."""
    base = ["--load-format", "dummy", "--max-model-len", "4096", "--enforce-eager"]
    cases = {
        "not enough free GPU memory": (model, [*base, "--gpu-memory-utilization", "0.95"]),
        "no room for the KV cache": (
            model, ["--load-format", "dummy", "--enforce-eager", "--max-model-len", "131072",
                    "--gpu-memory-utilization", "0.12"]),
        "CUDA out of memory": (
            model, [*base, "--gpu-memory-utilization", "0.3", "--hf-overrides", '{"num_hidden_layers": 600}']),
        "model not found": ("/models/not-there", base),
        "hub not reached": ("somebody/not-there", base),
        "unknown quantization": (model, [*base, "--quantization", "nope"]),
        "two GPUs, one there": (model, [*base, "--tensor-parallel-size", "2"]),
    }  # fmt: skip
    # One after the other, where what one takes would be the other's failure. The others end before that.
    alone = 3
    found, started = {}, {}
    for number, (name, (what, more)) in enumerate(cases.items()):
        if number >= alone:
            started[name] = Server(program, folder, f"failure{number}", PORT + 10 + number, what, *more)
    for number, (name, (what, more)) in enumerate(cases.items()):
        server = started.get(name) or Server(program, folder, f"failure{number}", PORT + 10 + number, what, *more)
        try:
            code = server.process.wait(150)
        except subprocess.TimeoutExpired:
            code = None
            server.stop()
        known = server_failures.known(server.lines())
        found[name] = {
            "exit": code, "known": known.name if known else "", "cause": server_failures.cause(server.lines())[:200],
            "seconds": round(time.monotonic() - server.began, 1),
        }  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", default=f"{sys.executable} -m vllm.entrypoints.cli.main", help="what starts vLLM")
    parser.add_argument("--out", type=Path, help="a folder for the servers' logs")
    options = parser.parse_args()
    program = shlex.split(options.vllm)
    folder = options.out or Path(tempfile.mkdtemp(prefix="phoenix-gpu-"))
    model = folder / "model"
    subprocess.run([sys.executable, ROOT / "lab" / "tiny_llama.py", model], check=True, stdout=subprocess.DEVNULL)
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **SHAPE}))
    smi = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    result: dict = {"gpu": subprocess.run(smi, capture_output=True, text=True, check=True).stdout.strip()}
    wrong = []

    def hold(name: str, what: object, good: bool) -> None:
        result[name] = what
        print(f"{'ok   ' if good else 'WRONG'} {name}: {what}", flush=True)
        if not good:
            wrong.append(name)

    def served(name: str, port: int, share: float = SHARE, *more: str) -> Server:
        return Server(program, folder, name, port, str(model), "--load-format", "dummy", "--max-model-len", "8192",
                      "--served-model-name", "m", "--gpu-memory-utilization", str(share), *more)  # fmt: skip

    alone, _said = settle(folder)
    hold("settle_on_an_idle_gpu_seconds", alone, alone < 8)
    one = served("cold", PORT)
    cold = one.first_token()
    hold("first_token_seconds", cold, True)
    hold("stop_seconds", one.stop(), True)
    # As two containers that start with the node: the second one's server waits until the first has its memory.
    one = served("warm", PORT, SHARE, "--max-num-seqs", "4")
    waited, said = settle(folder, SHARE)
    in_use, in_all = server_guard.gpus()[0]
    warm = one.first_token()
    hold("warm_start_seconds", warm, warm < cold)
    hold("settle_behind_a_server_that_loads", {"seconds": waited, "said": [said[:1], said[-1:]], "in_use": in_use},
         bool(said) and waited < warm + 20 and in_use > (SHARE - 0.05) * in_all)  # fmt: skip
    fits, too_much = room(0.25), room(0.9)
    hold("room_for_a_quarter", fits.reason, fits.overlap)
    hold("room_for_nine_tenths", too_much.reason, not too_much.overlap)
    # The engine stands still; the front end goes on and says that all is well.
    engine = one.engine()
    os.kill(engine, signal.SIGSTOP)
    status = server_guard.request(one.probe, "GET", "/health", None, 10)[0]
    hung = watch(one, 40, 15)
    os.kill(engine, signal.SIGCONT)
    hold("health_of_a_hung_engine", f"HTTP {status}", True)
    hold("a_hung_engine_is_noticed", (hung["killed"] or {}).get("why", hung["seen"]), bool(hung["killed"]))
    again = server_guard.ask(one.probe, 60).kind
    hold("it_goes_on_answering", again, again == "answer")
    over = threading.Event()
    flood(one, over)
    time.sleep(5)
    seen = watch(one, 40, 15)
    over.set()
    hold("a_busy_engine_is_left_alone", seen["seen"], not seen["killed"])
    two = served("beside", PORT + 1, 0.25)
    hold("beside_it_seconds", two.first_token(), True)
    two.stop()
    found = failures(program, folder, str(model))
    one.stop()
    for name, how in found.items():
        expected = name in {failure.name for failure in server_failures.FAILURES}
        hold(f"failure: {name}", how, how["exit"] not in (0, None) and (how["known"] == name or not expected))
    print(json.dumps({**result, "wrong": wrong}))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
