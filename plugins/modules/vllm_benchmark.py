#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_benchmark
short_description: Measure a vLLM model server with vLLM's own benchmark client
version_added: 0.1.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Measures tokens per second, the time to the first token and the time between two tokens of the running server, at
    the loads that are given. What asks is C(vllm bench serve) of the server's own release, beside the server.
  - Which model, tokenizer, key and certificates are meant is read from the state that the running server carries, so
    the server must be one of M(phoenix.hypervisor.vllm_model_server).
  - Each run has random prompts of its own, since what was asked before is in the server's prefix cache. Before the
    first run each load is run once without being counted.
  - The work goes on in a unit of its own, C(vllm_benchmark.service), as the server's user. It ends by itself when
    nobody has asked for two minutes how far it is. Its log is C(/var/lib/vllm_benchmark/client.log).
  - A server that ends or is restarted meanwhile ends the measuring, too.
  - Runs in the container, as root. Needs systemd there.
  - An action plugin of the same name calls the module until all is measured, and shows how far it is.
options:
  loads:
    description:
      - What is asked. C(streams) requests at the same time, each with C(input_tokens) of a prompt and C(output_tokens)
        of an answer, C(prompts) in all (four for each stream by itself, at least 8).
    type: list
    elements: dict
    required: true
  repeats:
    description: How often each load is measured.
    type: int
    default: 4
  warm_up:
    description: Whether each load is run once before, without being counted.
    type: bool
    default: true
  sampling:
    description:
      - How the answers are sampled. C(temperature), C(top_p), C(top_k), C(min_p). With a temperature of 0 the sampler
        has nothing to do.
    type: dict
    default: {}
  seed:
    description: Of the random prompts. 0 is another one each time, which is what a server that has run before needs.
    type: int
    default: 0
  url:
    description: Where the server is, without a path. Left empty, where its own state says.
    type: str
    default: ""
  model:
    description: The model's name in requests. Left empty, the served name.
    type: str
    default: ""
  tokenizer:
    description: The folder or name of the tokenizer that makes the prompts. Left empty, the server's own.
    type: str
    default: ""
  api_key:
    description: The key that requests need. Left empty, the server's own. It reaches the client in its environment.
    type: str
    default: ""
  ca_file:
    description: The file with the CAs that the client trusts. Left empty, that of the server's state or the system's.
    type: path
    default: ""
  timeout:
    description: How many seconds one run of the client may take.
    type: int
    default: 3600
  name:
    description: The unit of the server.
    type: str
    default: vllm_model_server.service
  state_folder:
    description: Where the server's states are kept.
    type: path
    default: /var/lib/vllm_model_server
  user:
    description: The user that the client runs as.
    type: str
    default: vllm
  wait:
    description: How many seconds a call of the module waits before it says how far it is.
    type: int
    default: 30
  waiting:
    description: What an earlier call said in RV(again). For the action plugin only.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Looks at the server and says what would be measured.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: It measures each time, and never reports a change.
"""

EXAMPLES = r"""
- name: Measure the model server
  phoenix.hypervisor.vllm_benchmark:
    loads:
      - {streams: 1, input_tokens: 256, output_tokens: 256}
      - {streams: 32, input_tokens: 256, output_tokens: 256}
    sampling: {temperature: 0.8, top_p: 0.95, top_k: 50}
"""

RETURN = r"""
measured:
  description:
    - C(runs), each with C(load) (its place in the list), C(round), C(prompts), C(seed) and C(figures); C(loads),
      C(sampling) and C(seed). C({}) in check mode.
  type: dict
  returned: success
server:
  description:
    - What was measured. C(hardware), C(gpus), C(driver), C(model), C(model_path), C(revision), C(release), C(stack),
      C(versions), C(digest), C(engine_config), C(environment), C(sampler_used) and C(url).
  type: dict
  returned: success
plan:
  description: What was measured, or would be, a sentence for each load.
  type: list
  elements: str
  returned: success
  sample: ["4 runs of 1 stream, 256 in, 256 out: 8 requests each"]
running:
  description: Whether there is more to wait for. Never seen by a task, the action plugin follows it.
  type: bool
  returned: while it is measured
progress:
  description: How far it is, for people.
  type: str
  returned: while it is measured
again:
  description: Options for the next call.
  type: dict
  returned: while it is measured
"""

import inspect
import json
import os
import pwd
import secrets
import shutil
import socket
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    benchmark,
    benchmark_client,
    engine_args,
    server_guard,
    server_plan,
    server_switch,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils.benchmark_client import BenchmarkError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import StateError, Target

UNIT = "vllm_benchmark.service"
PROGRAM = "/usr/local/libexec/vllm_benchmark/client.py"
# Root's own folder, for what the program is told; and the program's own, for what it says.
RUN = "/run/vllm_benchmark"
WORK = "/var/lib/vllm_benchmark"
ASKED = f"{RUN}/asked"
JOB = f"{RUN}/job.json"
STATUS = f"{WORK}/status.json"
# Seconds without a question after which whoever asked is gone.
FORGOTTEN = 60
LOOK = 0.5
# Each call of the module takes a second of a processor, which the server may want: no more than one in so many seconds.
CALM = 5
ANSWER = 120


def read(path, fallback=""):
    """Return a file's text."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return fallback


def read_status():
    """Return what the program says. Its folder is not root's: no link is followed there."""
    try:
        descriptor = os.open(STATUS, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
            content = json.loads(file.read())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def write(path, text, mode, owner=0):
    """Write a file in one step, never readable for others on the way."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
        os.fchown(file.fileno(), owner, -1)
    os.replace(temporary, path)


class Benchmark:
    """Looks at the server, has it measured, and follows that."""

    def __init__(self, module):
        self.module = module
        self.unit = module.params["name"]

    def properties(self, name):
        """Return what systemd says of a unit."""
        names = "--property=ActiveState,SubState,MainPID,InvocationID,Result"
        _code, stdout, _stderr = self.module.run_command(["systemctl", "show", name, names])
        return server_plan.properties(stdout)

    def environment(self, pid):
        """Return the environment of the server's process."""
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                return server_plan.environment(file.read())
        except OSError:
            return {}

    def state(self):
        """Return (the state that the running server carries, its process, its environment).

        Raises:
            BenchmarkError: no server runs, or none that is known.
        """
        properties = self.properties(self.unit)
        pid = int(properties.get("MainPID") or 0)
        if properties.get("ActiveState") != "active" or not pid:
            raise BenchmarkError(
                f"There is nothing to measure: {self.unit} is {properties.get('ActiveState') or 'unknown'}. See "
                f"journalctl -u {self.unit}, and run site.yml."
            )
        environment = self.environment(pid)
        digest = environment.get(server_plan.DIGEST_VARIABLE, "")
        path = os.path.join(self.module.params["state_folder"], "states", f"{digest}.json")
        try:
            return Target.from_json(read(path)), pid, environment
        except StateError:
            raise BenchmarkError(
                f"Nobody knows how to ask {self.unit}: it carries no state that is kept ({path}). Run site.yml first."
            ) from None

    def gpus(self):
        """Return what there is of GPUs."""
        query = f"--query-gpu={','.join(benchmark.GPU_QUERY)}"
        program = shutil.which("nvidia-smi")
        if not program:
            return []
        _code, stdout, _stderr = self.module.run_command([program, query, "--format=csv,noheader,nounits"])
        return benchmark.gpus_in(stdout)

    def journal(self, pid_properties):
        """Return what the running server has said, as far as the journal still has it."""
        invocation = pid_properties.get("InvocationID", "")
        _code, stdout, _stderr = self.module.run_command(
            ["journalctl", f"_SYSTEMD_INVOCATION_ID={invocation}", "--no-pager", "--quiet", "--output=cat"]
        )
        return stdout

    def facts(self, target, environment, url):
        """Return what the server is, for the result."""
        path = server_switch.model_in(target.unit)
        name, revision = benchmark.model_name(path)
        gpus = self.gpus()
        try:
            record = json.loads(read(os.path.join(target.release, "release.json"), "{}"))
        except ValueError:
            record = {}
        hardware = {"gpus": [gpu["name"] for gpu in gpus]} if gpus else {
            "processor": benchmark.processor_in(read("/proc/cpuinfo")), "cores": len(os.sched_getaffinity(0)),
        }  # fmt: skip
        versions = {key: str(record.get(key) or "") for key in ("vllm", "torch", "cuda", "flashinfer", "python")}
        told = benchmark.told_variables(server_switch.environment(target.unit))
        return {
            "hardware": hardware, "gpus": gpus, "driver": gpus[0]["driver"] if gpus else "", "model": name,
            "model_path": path, "revision": revision, "served_name": target.model, "release": target.release_name,
            "stack": str(record.get("stack") or ""), "versions": versions, "digest": target.digest,
            "engine_config": engine_args.hide(target.config), "environment": told, "url": url,
            "sampler_used": benchmark.sampler_in(self.journal(self.properties(self.unit))),
            "sampler_setting": environment.get("VLLM_USE_FLASHINFER_SAMPLER", ""), "hostname": socket.gethostname(),
        }  # fmt: skip

    def job(self, target, pid, environment):
        """Return what the program is told.

        Raises:
            BenchmarkError: something that was given is wrong.
        """
        parameters = self.module.params
        if target.probe.get("path") == "/v1/embeddings":
            raise BenchmarkError("The server answers with embeddings. What is measured here are generated tokens; "
                                 "leave this container out (-l).")  # fmt: skip
        settings = server_switch.settings(target.config)
        tls = target.probe.get("tls")
        program = os.path.join(target.release, "bin", "vllm")
        if not os.path.exists(program):
            raise BenchmarkError(
                f"The release {target.release_name} that the server runs on is not there any more ({program}), and its "
                "benchmark client neither. Run site.yml."
            )
        job = benchmark_client.checked({
            "id": secrets.token_hex(8), "program": [program], "folder": WORK, "unit": self.unit, "pid": pid,
            "asked": ASKED,
            "url": parameters["url"] or benchmark.server_url(target.probe),
            "model": parameters["model"] or target.model,
            "tokenizer": parameters["tokenizer"] or settings.get("tokenizer") or server_switch.model_in(target.unit),
            "tokenizer_mode": settings.get("tokenizer-mode", ""),
            "trust_remote_code": settings.get("trust-remote-code") == "true",
            "api_key": parameters["api_key"] or target.probe.get("key", ""),
            "ca_file": parameters["ca_file"] or (tls.get("ca", "") if isinstance(tls, dict) else ""),
            "environment": benchmark.client_variables(environment),
            "loads": parameters["loads"], "sampling": parameters["sampling"], "repeats": parameters["repeats"],
            "warm_up": parameters["warm_up"], "timeout": parameters["timeout"],
            # Two runs of the program have no seed in common; each of its own runs takes the next one.
            "seed": parameters["seed"] or secrets.randbelow(2**20) * 1000,
        })  # fmt: skip
        if job["repeats"] < 1 or job["timeout"] < 1:
            raise BenchmarkError("benchmark_repeats and benchmark_timeout should be 1 or more.")
        length = int(settings["max-model-len"]) if settings.get("max-model-len", "").isdigit() else 0
        for load in job["loads"]:
            if length and load["input_tokens"] + load["output_tokens"] > length:
                raise BenchmarkError(
                    f"{benchmark_client.load_name(load)}: that is more than the {length} tokens of the server's "
                    "max_model_len. Make the load smaller (benchmark_loads)."
                )
        return job

    def begin(self):
        """Look, and have it measured."""
        target, pid, environment = self.state()
        job = self.job(target, pid, environment)
        self.module.no_log_values.update(secret for secret in [job["api_key"], *target.hidden] if secret)
        plan = [f"{job['repeats']} runs of {benchmark_client.load_name(load)}: {load['prompts']} requests each"
                for load in job["loads"]]  # fmt: skip
        facts = self.facts(target, environment, job["url"])
        if self.module.check_mode:
            self.module.exit_json(changed=False, plan=plan, measured={}, server=facts)
        seen = server_guard.ask(target.probe, ANSWER)
        if seen.kind != "answer":
            raise BenchmarkError(f"The server is not ready: {seen.words}. verify.yml says more; see journalctl -u "
                                 f"{self.unit}.")  # fmt: skip
        self.make_room()
        self.start(job)
        self.watch({"id": job["id"], "plan": plan, "server": facts})

    def make_room(self):
        """End a benchmark that nobody waits for any more.

        Raises:
            BenchmarkError: somebody does.
        """
        properties = self.properties(UNIT)
        if properties.get("ActiveState") in ("active", "activating", "deactivating"):
            try:
                silence = time.time() - os.stat(ASKED).st_mtime
            except OSError:
                silence = FORGOTTEN
            if silence < FORGOTTEN:
                raise BenchmarkError(
                    f"Another benchmark of this server is being run ({read_status().get('progress', 'it begins')}). "
                    f"Two at a time would measure each other; wait, or end it with systemctl stop {UNIT}, inside."
                )
            self.module.warn("A benchmark that nobody waited for any more was ended.")
            self.module.run_command(["systemctl", "stop", UNIT])
        self.module.run_command(["systemctl", "reset-failed", UNIT])

    def start(self, job):
        """Start the program."""
        try:
            owner = pwd.getpwnam(self.module.params["user"])
        except KeyError:
            raise BenchmarkError(f"There is no user {self.module.params['user']}, who runs the client.") from None
        for folder in (os.path.dirname(PROGRAM), RUN):
            os.makedirs(folder, mode=0o755, exist_ok=True)
        source = inspect.getsource(benchmark_client)
        if read(PROGRAM) != source:
            write(PROGRAM, source, 0o755)
        write(ASKED, "", 0o644)
        write(JOB, json.dumps(job), 0o400, owner.pw_uid)
        command = [
            "systemd-run", f"--unit={UNIT}", "--collect", "--quiet", f"--uid={owner.pw_name}", f"--gid={owner.pw_gid}",
            "--description=Measures the model server", "--property=LimitNOFILE=65536", "--property=TimeoutStopSec=20",
            f"--property=StateDirectory={os.path.basename(WORK)}", "--property=StateDirectoryMode=0700",
            # Not even the server's user can read the key of another one's process; nobody else the log.
            "--property=UMask=0077", "--property=NoNewPrivileges=yes", "--property=PrivateTmp=yes",
            "/usr/bin/python3", "-I", PROGRAM, JOB, STATUS,
        ]  # fmt: skip
        code, stdout, stderr = self.module.run_command(command)
        if code:
            self.forget()
            raise BenchmarkError(f"The benchmark could not be started: {(stderr or stdout).strip()}")

    def forget(self):
        """Remove the job, for it may have a key in it."""
        for path in (JOB, f"{JOB}.new"):
            if os.path.exists(path):
                os.unlink(path)

    def watch(self, waiting):
        """Follow the program for a while, and say how far it is or what came of it."""
        began = time.monotonic()
        end = began + self.module.params["wait"]
        told = waiting.get("told", "")
        while True:
            os.utime(ASKED)
            # In this order: what has ended after the look at its status is seen at the next look.
            active = self.properties(UNIT).get("ActiveState") in ("active", "activating")
            status = read_status()
            own = status.get("id") == waiting["id"]
            if own:
                self.forget()
            if own and status.get("done"):
                self.finish(status, waiting)
            if not active:
                self.forget()
                raise BenchmarkError(self.last_words())
            text = status.get("progress", "") if own else "the benchmark begins"
            if time.monotonic() > (end if text == told else min(end, began + CALM)):
                again = {"waiting": {**waiting, "told": text}, "wait": self.module.params["wait"]}
                self.module.exit_json(changed=False, running=True, progress=text, again=again)
            time.sleep(LOOK)

    def last_words(self):
        """Return why the program ended without a result."""
        self.module.run_command(["journalctl", "--sync"])
        _code, stdout, _stderr = self.module.run_command(
            ["journalctl", "--unit", UNIT, "--lines=20", "--no-pager", "--quiet", "--output=cat"]
        )
        lines = "\n".join(benchmark_client.said(stdout))
        return (f"The benchmark ended without a result: it was stopped, or the container's memory or disk is full. Its "
                f"last lines (`journalctl -u {UNIT}` has all):\n{lines}")  # fmt: skip

    def finish(self, status, waiting):
        """Say what came of it."""
        if status.get("error"):
            raise BenchmarkError(f"{status['error']}\nAll that the client said is in {WORK}/client.log, inside.")
        facts = waiting["server"]
        target = self.state()[0]
        if target.digest != facts["digest"]:
            raise BenchmarkError("The server was changed while it was measured. Run the benchmark again.")
        # Its log says what it samples with once it has sampled.
        facts["sampler_used"] = benchmark.sampler_in(self.journal(self.properties(self.unit))) or facts["sampler_used"]
        self.module.exit_json(changed=False, plan=waiting["plan"], measured=status["measured"], server=facts)


def main():
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "loads": {"type": "list", "elements": "dict", "required": True},
            "repeats": {"type": "int", "default": 4},
            "warm_up": {"type": "bool", "default": True},
            "sampling": {"type": "dict", "default": {}},
            "seed": {"type": "int", "default": 0},
            "url": {"type": "str", "default": ""},
            "model": {"type": "str", "default": ""},
            # A name, and no token.
            "tokenizer": {"type": "str", "default": "", "no_log": False},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "ca_file": {"type": "path", "default": ""},
            "timeout": {"type": "int", "default": 3600},
            "name": {"type": "str", "default": "vllm_model_server.service"},
            "state_folder": {"type": "path", "default": "/var/lib/vllm_model_server"},
            "user": {"type": "str", "default": "vllm"},
            "wait": {"type": "int", "default": 30},
            "waiting": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    run = Benchmark(module)
    try:
        if module.params["waiting"]:
            run.watch(module.params["waiting"])
        run.begin()
    except BenchmarkError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"The benchmark could not be run: {error.strerror} ({error.filename}).")


if __name__ == "__main__":
    main()
