#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_model_server
short_description: Make a vLLM model server what is declared, and wait until it answers
version_added: 0.1.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Writes the engine config's file and the systemd unit, enables and starts the service, restarts it when it runs
    something else than what is declared, and waits until a real completion came back.
  - When the server ends while it is waited for, the module fails at once with the server's own last words and, for
    failures that are well known, with what to do.
  - A change that doesn't become ready is undone. The former unit, engine config, secrets and release are live again and
    have answered when the module fails; it says both. It is the last state whose server answered.
  - Where there is room for both, the old server answers until the new one does (O(overlap)). A new state that doesn't
    become ready has not touched the running server then.
  - A run that was killed at any moment leaves one state whole, the former or the new one, never a mixture.
  - With O(go_back_to), goes back to a former state on purpose.
  - Also when nothing is to be done the server is asked for a completion.
  - Runs where the model server runs, in the container, as root. Needs systemd there.
  - An action plugin of the same name calls the module until the server is ready, and shows how far it is.
options:
  engine_config:
    description:
      - What the server is started with. Groups of arguments of C(vllm serve), named as there, with underscores.
      - An argument is accepted in any group, or in none. C(false) switches an argument off, C(null) leaves it out.
      - C(api_key) (a single one) and C(hf_token) go where O(api_key) and O(huggingface_token) go.
      - Needed without O(go_back_to).
    type: dict
    default: {}
  unit:
    description:
      - The text of the systemd unit. It must have the words C(@EXEC_START@) and C(@DIGEST@), which are filled in.
      - C(@ENVIRONMENT@), a line of its own, becomes the variables that depend on the release, and the file of secrets.
      - C(@CERTIFICATE@), a line of its own, becomes what copies the certificate; needed with O(tls.certificate_file).
      - C(@CACHE@), only between double quotes, becomes the folder of the caches.
      - C(@GUARD@) becomes the program that the unit runs before the server (C(settle)) and after it (C(ended FILE)).
      - Needed without O(go_back_to).
    type: str
    default: ""
  watchdog:
    description:
      - The units that look after the server while nobody else does, C(service) and C(timer), which get the name of
        O(name) with C(_watchdog). The timer is enabled and started.
      - C(@GUARD@) in the service becomes the program that asks for one token and kills a server that gives none
        (C(watch UNIT FOLDER LIMIT READY)).
      - An empty dictionary removes them. Left out, they stay as they are.
      - They are no part of a state that can be gone back to, and the server is not restarted when they change.
    type: dict
  shares_before:
    description:
      - What the model servers that the node starts before this one take of each GPU, a part of 1, as the filter
        P(phoenix.hypervisor.gpu_shares_before#filter) says it. After a start of the container the server waits until
        they have it, for ten minutes at most.
      - Left out, it stays as it is. The server is not restarted when it changes.
    type: list
    elements: float
  flags:
    description:
      - The release's table of arguments, as C(tools/vllm_flags.py) prints it. Without it names and types are not
        checked.
    type: dict
    default: {}
  link:
    description: The link to the live release. The unit names the release that it points at by its real path.
    type: path
    default: /opt/vllm
  config_file:
    description:
      - What the engine config's file is called for people. It is a link to the file that the live unit names, which has
        the state's digest in its name and lies beside it.
    type: path
    default: /etc/vllm/engine.yaml
  name:
    description: The name of the unit.
    type: str
    default: vllm_model_server.service
  user:
    description: The system user that the server runs as. Its group has the same name.
    type: str
    default: vllm
  home:
    description: That user's home.
    type: path
    default: /var/cache/vllm
  cache:
    description:
      - The folder of what the server downloads and compiles. Left empty, it is C(.vllm-cache/<hostname>) on the volume
        that the model's folder is mounted from, when that can be written, else C(/var/cache/vllm).
    type: path
    default: ""
  api_key:
    description:
      - The key that requests must have. Like O(huggingface_token), it is written into a file that only root reads, and
        reaches the server in its environment.
    type: str
    default: ""
  huggingface_token:
    description: The token for models of the hub that are private or gated.
    type: str
    default: ""
  tls:
    description:
      - The server's certificate. Without O(tls.certificate_file) the server speaks plain HTTP, unless the engine
        config has C(ssl_certfile).
      - The server reads a copy of certificate and key that is its user's alone, in memory; the files may be root's.
        C(@CERTIFICATE@), a line of its own in O(unit), becomes what makes it. Where the release has
        C(enable_ssl_refresh), a renewed certificate is served without a restart.
      - A server that answers with a certificate that is not trusted makes the module fail in the end, and undoes
        nothing.
    type: dict
    default: {}
    suboptions:
      certificate_file:
        description: The file in the container with the certificate and its chain (PEM).
        type: path
        default: ""
      key_file:
        description: The file with its key.
        type: path
        default: ""
      ca_file:
        description:
          - The file in the container with the CAs that are trusted when the server is asked; empty for the system's
            store. With C(ssl_certfile) in the engine config and without this, the certificate is not looked at.
        type: path
        default: ""
      name:
        description: The name that the certificate must have; empty for any.
        type: str
        default: ""
  flashinfer_sampler:
    description:
      - Whether to sample with FlashInfer (C(VLLM_USE_FLASHINFER_SAMPLER)). A release without FlashInfer is told not to.
        From vLLM 0.26 on it is left to vLLM, which takes it where it works; the variable would end a server where not.
      - Left out, for a server without a GPU, nothing is said of it.
    type: bool
  flash_attn_version:
    description: The version of FlashAttention, for a vLLM before 0.26. 0 is vLLM's own choice.
    type: int
    default: 0
  ready_timeout:
    description: How many seconds a server may take from its start to its first completion.
    type: int
    default: 1800
  overlap:
    description:
      - Whether a running server goes on answering until the new state does, which is started beside it for that time
        and so is loaded twice. C(auto) does so where both clearly have room in the GPUs' and the container's memory,
        and where the container has C(nft), which sends new connections from the one to the other.
      - Else, and with C(never), nothing answers from the end of the old server to the first answer of the new one. The
        plan says why, and RV(gap_seconds) how long it was. A model of the hub is fetched before that.
    type: str
    choices: [auto, never]
    default: auto
  stop_timeout:
    description: How many seconds a server that gets no new requests any more may take to finish those that it has.
    type: int
    default: 60
  state_folder:
    description: Where the states are kept, readable for root only.
    type: path
    default: /var/lib/vllm_model_server
  keep:
    description: How many states whose server answered are kept, the live one included.
    type: int
    default: 5
  trial:
    description:
      - Whether the state is only tried out, as a benchmark does. It is not kept as one to go back to, and what a later
        failure goes back to is still the state before it.
    type: bool
    default: false
  go_back_to:
    description:
      - Goes back to a state instead. C(previous), the digest of a kept state or the beginning of one, or the name of a
        release, for the latest state on it.
    type: str
    default: ""
  who:
    description: Who runs this, for the record of what was gone back to.
    type: str
    default: ""
  why:
    description: Why it is gone back, for that record.
    type: str
    default: ""
  wait:
    description: How many seconds a call of the module waits before it says how far the server is.
    type: int
    default: 30
  waiting:
    description: What an earlier call said in RV(again). For the action plugin only.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Tells the steps of the plan that the real run executes. Asks for no completion.
  diff_mode:
    support: full
    description: Shows the engine config's file and the unit before and after, without secret values.
  idempotent:
    support: full
    description: A server that runs what is declared is only asked for a completion.
"""

EXAMPLES = r"""
- name: Serve a model
  phoenix.hypervisor.vllm_model_server:
    engine_config:
      ModelConfig:
        model: /models/tiny-llama
        load_format: dummy
        max_model_len: 512
      ServerConfig:
        port: 8000
        served_model_name: tiny
    api_key: "{{ vault_api_key }}"
    unit: "{{ lookup('ansible.builtin.template', 'vllm_model_server.service.j2') }}"
    watchdog:
      service: "{{ lookup('ansible.builtin.template', 'vllm_model_server_watchdog.service.j2') }}"
      timer: "{{ lookup('ansible.builtin.template', 'vllm_model_server_watchdog.timer.j2') }}"

- name: Go back to what was before
  phoenix.hypervisor.vllm_model_server:
    go_back_to: previous
    who: "{{ lookup('ansible.builtin.env', 'USER') }}"
    why: The new model answers nonsense
"""

RETURN = r"""
plan:
  description: What was done, or would be done in check mode, a sentence for each step.
  type: list
  elements: str
  returned: success
  sample: ["change /etc/vllm/engine.yaml", "restart vllm_model_server.service"]
digest:
  description: The digest of the state that the running server carries.
  type: str
  returned: success
  sample: 0123456789abcdef
release:
  description: The release that it runs on.
  type: str
  returned: success
  sample: cpu-0123456789ab
model:
  description: The name that a request gives for the model.
  type: str
  returned: success
  sample: tiny
port:
  description: The port that the server listens on.
  type: int
  returned: success
  sample: 8000
cache:
  description: The folder of the server's caches.
  type: str
  returned: success
  sample: /var/cache/vllm
completion:
  description: What the server answered, empty in check mode.
  type: str
  returned: success
  sample: " bako ledi"
seconds:
  description: How long it took from the last step to that answer.
  type: float
  returned: success
gap_seconds:
  description:
    - How long nothing answered, from the end of the old server to the first answer of the new one. 0 when the old one
      answered until the new one did.
  type: float
  returned: when a server that answered was replaced
  sample: 57.3
gap_reason:
  description: Why there was a gap, empty when there was none.
  type: str
  returned: when a server that answered was replaced
  sample: GPU 0 has 2.9 of 31.4 GiB free, and the new one wants 29.3
former:
  description: The digest of the state that answered before this change, empty when nothing changed or there was none.
  type: str
  returned: success
  sample: 0123456789abcdef
states:
  description: The states that can be gone back to, the latest last.
  type: list
  elements: str
  returned: success
  sample: ["0123456789abcdef (release cpu-0123456789ab, model tiny, 2026-11-21T16:00:00Z, live)"]
undone:
  description: Whether the change was undone, and the former state is live again and answered.
  type: bool
  returned: failure while a server was waited for
cause:
  description: The line of the server's journal that says why it ended.
  type: str
  returned: failure because the server ended
  sample: "torch.OutOfMemoryError: CUDA out of memory."
failure:
  description: The name of the failure, when it is a well-known one.
  type: str
  returned: failure because the server ended, or took too long
  sample: CUDA out of memory
running:
  description: Whether there is more to wait for. Never seen by a task, the action plugin follows it.
  type: bool
  returned: while the server is loading
progress:
  description: How far the server is, for people.
  type: str
  returned: while the server is loading
again:
  description: Options for the next call.
  type: dict
  returned: while the server is loading
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    engine_args,
    server_declared,
    server_failures,
    server_guard,
    server_plan,
    server_switch,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils.engine_args import EngineConfigError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_guard import CertificateError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_inside import Server, ServerError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import StateError, UnitError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.text_file import point, read_text, write

# A loaded server answers a short question in well under a second; one that is busy may need its time.
ANSWER_TIMEOUT = 120
# Of the journal in a line of progress.
PROGRESS_WIDTH = 140
# Seconds between two looks at the server.
LOOK = 0.5
# What comes in at the moment of a switch gets this many seconds to be seen as a connection.
SETTLED = 1.0
# Seconds after which a new line of the server is worth a call of its own, and between two looks at that.
NEWS = 8.0
LINE = 2.0


class Run:
    """A change from its plan to the answer, or back. It goes on over several calls of the module.

    What a later call has to know is in C(waiting); no call has secrets in it.
    """

    def __init__(self, module, server):
        self.module = module
        self.server = server
        self.until = time.monotonic() + module.params["wait"]
        self.last_answer = "it was not asked yet"
        self.waiting = {}
        self.shown = {}

    def begin(self, target):
        """Read, plan, execute the plan unless only asked to tell it."""
        module, server = self.module, self.server
        run = "" if module.check_mode else self.claim()
        seen = server.look(target)
        room = server.room(target, seen)
        steps = self.plan(target, seen, room)
        former = ""
        # Where what is declared is what answered last, and doesn't now, there is nothing better to go back to.
        if server.states.good != target.digest:
            former = server_plan.former(server.states.history, target.digest, server.states.there())
        self.waiting = {
            "run": run, "phase": "ready", "undo": False, "digest": target.digest, "former": former,
            "since": time.time(), "invocation": "", "line": "", "why": "", "changed": bool(steps),
            "from": server_plan.digest_in(seen.unit),
            "answer": "", "untouched": False, "stopped": 0.0, "gap": None, "reason": room.reason if room else "",
            "watchdog": seen.watchdog, "distrust": "",
        }  # fmt: skip
        if room and room.overlap:
            self.waiting.update(gap=0.0, reason="")
        diff = server_plan.diff(target, seen, steps, server.config_file, server.unit_file, server.watchdog)
        self.shown = {"plan": [step.text for step in steps], "diff": diff}
        if module.check_mode:
            self.exit(target, "", bool(steps))
        server.states.put(target)
        try:
            if room and seen.beside not in ("", target.digest):
                # Of a run that was given up. It is not what is wanted any more, and the old server answers.
                server.end_beside(kill=True)
            self.execute(target, steps)
        except ServerError as error:
            self.failed(target, str(error))
        self.watch(target)

    def claim(self):
        """Be the run that works on the server. One that was, and still waits somewhere, does nothing more."""
        run = os.urandom(8).hex()
        write(self.server.run_file, run, 0o600)
        return run

    def look_for_others(self):
        """Fail when another run works on the server since this one began. A play that was killed may go on waiting."""
        # The file is forgotten by a restart of the container, and then nobody else has begun.
        if read_text(self.server.run_file) not in (None, self.waiting["run"]):
            self.module.fail_json(
                msg="Another run works on the model server since this one began: this one waits no more, and undoes "
                "nothing.", undone=False, changed=self.waiting["changed"], **self.shown,
            )  # fmt: skip

    def plan(self, target, seen, room=None):
        """Return the steps to a state; with those of the link where a former state is made live."""
        server = self.server
        link = server.link if self.module.params["go_back_to"] or self.waiting.get("undo") else ""
        took = server.states.took(target.digest)
        if self.waiting.get("undo") and server.watchdog is not None:
            # How long the former state may load is what it says there.
            server.watchdog = self.waiting["watchdog"]
        steps = server_plan.plan(
            target, seen, server.user, server.name, server.config_file, link, room, took, server.watchdog
        )
        return [step for step in steps if not (self.module.params["trial"] and step.action == "keep")]

    def execute(self, target, steps):
        """Execute the steps up to one that has to be waited for, or to the answer."""
        server, waiting = self.server, self.waiting
        waiting.update(phase="ready", since=time.time(), invocation="", line="")
        for step in steps:
            if step.action in server_plan.AFTER:
                continue
            self.look_for_others()
            if step.action == "restart":
                if waiting["undo"]:
                    # It never answered, so nobody is cut off; and a vLLM that is starting ignores the request to stop.
                    server.systemctl("kill", "--signal=KILL", server.name, fatal=False)
                elif waiting["reason"]:
                    waiting["stopped"] = time.time()
            if step.action in server_plan.WAITED_FOR:
                waiting["phase"] = step.action
            getattr(server, f"do_{step.action}")(target)
            if step.action in server_plan.WAITED_FOR:
                return
        if not server.is_named(target):
            point(server.config_file, server_plan.file_names(target.digest)[0])

    def go_ahead(self, target):
        """Execute the steps that are left after what was waited for."""
        try:
            self.execute(target, self.plan(target, self.server.look(target)))
        except ServerError as error:
            self.failed(target, str(error))

    def resume(self, waiting):
        """Go on where an earlier call left off."""
        self.waiting = dict(waiting)
        try:
            target = self.server.states.load(self.waiting["digest"])
            hide(self.module, target.hidden)
        except StateError as error:
            self.module.fail_json(msg=f"{error} Somebody else works on the model server; run again.")
        self.watch(target)

    def unit(self):
        """Return the unit that is looked at in this phase."""
        names = {"fetch": self.server.fetch_name, "beside": self.server.beside_name, "drain": self.server.beside_name}
        return names.get(self.waiting["phase"], self.server.name)

    def watch(self, target):
        """Look until a completion came back, the server ended, its time is up, or there is something to tell."""
        server, waiting = self.server, self.waiting
        looks = {"fetch": self.fetched, "drain": self.drained, "over": self.over}
        news_at = time.monotonic() + NEWS
        while True:
            self.look_for_others()
            now = server.properties(self.unit())
            phase = waiting["phase"]
            looks.get(phase, self.answers)(target, now)
            if waiting["phase"] != phase:
                continue
            if time.monotonic() >= news_at:
                news_at = time.monotonic() + LINE
                line = self.line()
                if line != waiting["line"] or time.monotonic() >= self.until:
                    self.go_on(target, now, line)
            time.sleep(LOOK)

    def fetched(self, target, now):
        """Look whether the model is here, and go on when it is."""
        server, waiting = self.server, self.waiting
        if server_plan.is_dead(now):
            model = server_switch.model_in(target.unit)
            self.failed(target, *self.last_words(now, f"The model {model} could not be fetched"))
        waiting["invocation"] = now.get("InvocationID", "")
        if now.get("SubState") == "exited":
            server.end_other(server.fetch_name)
            self.go_ahead(target)

    def answers(self, target, now):
        """Ask the server, or the one beside it; go on when a completion came back."""
        server, waiting = self.server, self.waiting
        limit = self.module.params["ready_timeout"]
        beside = waiting["phase"] == "beside"
        if server_plan.is_dead(now, waiting["invocation"]):
            self.failed(target, *self.last_words(now))
        if not beside and server.beside_port() and server_plan.is_dead(server.properties(server.beside_name)):
            # Rare, and nothing to be done about but to say it: the server itself is loading.
            if waiting["gap"] == 0.0:
                waiting.update(stopped=time.time(), reason=f"{server.beside_name} ended, its journal tells why")
            server.end_beside()
        left = limit - (time.time() - waiting["since"])
        if server.running_digest(now) == target.digest:
            waiting["invocation"] = now.get("InvocationID", "")
            probe = {**target.probe, "port": server.beside_port()} if beside else target.probe
            answer = server_guard.ask(probe, min(ANSWER_TIMEOUT, max(1.0, left)), short=False)
            self.last_answer, waiting["distrust"] = answer.words, answer.distrust
            if answer.kind == "refusal" and not answer.distrust:
                # Waiting would not help.
                self.failed(target, f"The model server was started; {answer.words}, {answer.text}")
            if answer.kind != "silence":
                return self.take_over(target) if beside else self.answered(target, answer.text)
        if left <= 0:
            self.failed(target, *self.too_late())

    def take_over(self, target):
        """The server beside has answered: from here on it gets what comes in."""
        try:
            self.server.send(target.probe, new=True)
        except ServerError as error:
            self.failed(target, str(error))
        self.waiting.update(phase="drain", since=time.time(), line="")

    def drained(self, target, now):
        """Look whether the old server has finished what it had begun; then it is replaced."""
        if server_plan.is_dead(now, self.waiting["invocation"]):
            self.failed(target, *self.last_words(now))
        if self.is_quiet(target.probe["port"]):
            self.go_ahead(target)

    def is_quiet(self, port):
        """Return whether a port that gets no new connections has none, or has had time enough to finish them."""
        seconds = time.time() - self.waiting["since"]
        return seconds >= SETTLED and (
            seconds >= self.module.params["stop_timeout"] or not self.server.sockets(port)
        )

    def answered(self, target, text):
        """The server answered: keep the state, and end what ran beside it meanwhile."""
        server, waiting = self.server, self.waiting
        took = time.time() - waiting["since"]
        if waiting["stopped"]:
            waiting["gap"] = round(time.time() - waiting["stopped"], 1)
        waiting["answer"] = text
        waiting["seconds"] = round(took, 1)
        if server.states.good != target.digest and not waiting["undo"] and not self.module.params["trial"]:
            server.states.keep(target, self.module.params["keep"], took)
        server.end_other(server.fetch_name, kill=True)
        if not server.beside_port():
            self.finish(target)
        try:
            server.send(target.probe, new=False)
        except ServerError:
            # Once the table is gone nobody is sent anywhere.
            server.end_beside()
            self.finish(target)
        waiting.update(phase="over", since=time.time(), line="")

    def over(self, target, _now):
        """Look whether the server beside has finished what it had begun; then it ends."""
        if self.is_quiet(self.server.beside_port()):
            self.server.end_beside()
            self.finish(target)

    def line(self):
        """Return the server's last line in the journal."""
        lines = self.server.journal(self.waiting["invocation"], 5, systemd=False, name=self.unit())
        return "".join(server_failures.tail(lines, 1))[:PROGRESS_WIDTH]

    def go_on(self, target, now, line):
        """Say how far it is, and that there is more to wait for."""
        self.waiting["line"] = line
        seconds = int(time.time() - self.waiting["since"])
        undone = "undoing the change: " if self.waiting["undo"] else ""
        self.module.exit_json(
            changed=self.waiting["changed"],
            running=True,
            progress=f"{undone}{server_plan.doing(now, self.waiting['phase'])}, for {seconds} s"
            + (f": {line}" if line else ""),
            again={"waiting": self.waiting, "wait": self.module.params["wait"]},
            **self.shown,
        )

    def last_words(self, now, what="The model server ended before it answered"):
        """Return (what happened, details) of a server that ended."""
        # What was said in the last moment may not be in the journal yet.
        self.module.run_command(["journalctl", "--sync"])
        lines = self.server.journal(self.waiting["invocation"], name=self.unit())
        return server_failures.last_words(what, now.get("Result", ""), lines, self.unit())

    def too_late(self):
        """Return the same of one that took too long."""
        lines = self.server.journal(self.waiting["invocation"], name=self.unit())
        what = f"The model server did not answer within {self.module.params['ready_timeout']} s: {self.last_answer}. "
        if not self.waiting["former"]:
            # It is not undone.
            watched = ", until the watchdog restarts it" if self.server.watchdog else ""
            what += f"It is still running{watched}. "
        return server_failures.too_late(what, lines, self.unit())

    def failed(self, target, message, details=None):
        """Undo what didn't become ready; fail when there is nothing to undo it with, or when that failed, too."""
        waiting, server = self.waiting, self.server
        details = details or {}
        self.look_for_others()
        if waiting["undo"]:
            self.record(target, answered=False)
            self.module.fail_json(
                msg=f"{waiting['why']}\n\nThe change was undone, but the former state {self.name(target)} does not "
                f"answer any more either: {message}{self.who_answers()}",
                undone=False, changed=True, **{**waiting["details"], **self.shown},
            )  # fmt: skip
        if waiting["phase"] in ("fetch", "beside", "drain"):
            # The running server goes on answering.
            server.end_other(server.fetch_name, kill=True)
            server.end_beside(kill=True)
            if waiting["phase"] == "beside" and details.get("failure") in server_switch.BESIDE_FAILURES:
                waiting["reason"] = f"it had no room beside the old one ({details.get('cause') or details['failure']})"
                self.go_ahead(target)
                self.watch(target)
        if not waiting["former"]:
            first = not server.states.history
            note = "It was the server's first start: there is no former state to go back to. " if first else ""
            self.module.fail_json(
                msg=note + message + self.who_answers(), undone=False, changed=waiting["changed"], **details
            )
        former = server.states.load(waiting["former"])
        hide(self.module, former.hidden)
        untouched = waiting["phase"] in ("fetch", "beside", "drain")
        waiting.update(undo=True, why=message, details=details, digest=former.digest, former="", untouched=untouched,
                       changed=True)  # fmt: skip
        waiting["from"] = target.digest
        self.go_ahead(former)
        self.watch(former)

    def who_answers(self):
        """Return a sentence about the server beside, when the server itself doesn't answer and that one does."""
        if not self.server.beside_port():
            return ""
        return (
            f"\n\nRequests are answered by {self.server.beside_name}, which has the state that was to take its place, "
            "until the container restarts or the next run ends it."
        )

    def finish(self, target):
        """The server answered, and nothing runs beside it: tell that, or that it is the former state again."""
        server, waiting = self.server, self.waiting
        server.do_tidy(target)
        if waiting["undo"]:
            self.record(target, answered=True)
            how = "before it reached the running server" if waiting["untouched"] else ""
            self.module.fail_json(
                msg=f"{waiting['why']}\n\nThe change was undone{how and ' '}{how}: {self.name(target)} is live "
                f"{'' if how else 'again '}and answered.",
                undone=True, changed=True, digest=target.digest, release=target.release_name, model=target.model,
                completion=waiting["answer"], **{**self.gap(), **waiting["details"], **self.shown},
            )  # fmt: skip
        if self.module.params["go_back_to"] and waiting["changed"]:
            self.record(target, answered=True)
        self.exit(target, waiting["answer"], waiting["changed"])

    def gap(self):
        """Return how long nothing answered, and why, when a server that answered was replaced."""
        if self.waiting["gap"] is None:
            return {}
        return {"gap_seconds": self.waiting["gap"], "gap_reason": self.waiting["reason"]}

    def record(self, target, answered):
        """Write down that a state was gone back to."""
        parameters, waiting = self.module.params, self.waiting
        undo = waiting["undo"]
        self.server.states.record(
            {
                "from": waiting["from"], "to": target.digest, "release": target.release_name, "model": target.model,
                "who": parameters["who"], "why": waiting["why"].split("\n")[0] if undo else parameters["why"],
                "by_itself": undo, "answered": answered,
            }
        )  # fmt: skip

    def name(self, target):
        """Return a state's name for people."""
        entry = next((one for one in self.server.states.history if one["digest"] == target.digest), {})
        at = f" of {entry['at']}" if entry else ""
        return f"release {target.release_name} with the unit and engine config{at} (state {target.digest})"

    def exit(self, target, answer, changed):
        """End well."""
        states = self.server.states
        if self.waiting["distrust"]:
            self.module.fail_json(
                msg=f"The model server answers, but its certificate {self.waiting['distrust']}. Clients don't accept "
                "it: renew it (role certificate, certificate_source), or correct vllm_model_server_ca_file or "
                "vllm_model_server_certificate_name. The server itself is as declared, and goes on running.",
                undone=False, changed=changed, digest=target.digest, release=target.release_name, model=target.model,
                completion=answer, **{**self.gap(), **self.shown},
            )  # fmt: skip
        self.module.exit_json(
            changed=changed,
            digest=target.digest,
            release=target.release_name,
            model=target.model,
            port=target.probe["port"],
            cache=target.cache,
            completion=answer,
            seconds=self.waiting.get("seconds", 0.0),
            states=[server_plan.describe(entry, states.good) for entry in states.history],
            former=self.waiting["former"] if changed else "",
            **self.gap(),
            **self.shown,
        )


def main():
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            # It may have keys in it, and a module writes its arguments into the journal.
            "engine_config": {"type": "dict", "default": {}, "no_log": True},
            "unit": {"type": "str", "default": ""},
            "watchdog": {"type": "dict"},
            "shares_before": {"type": "list", "elements": "float"},
            "flags": {"type": "dict", "default": {}},
            "link": {"type": "path", "default": "/opt/vllm"},
            "config_file": {"type": "path", "default": "/etc/vllm/engine.yaml"},
            "name": {"type": "str", "default": "vllm_model_server.service"},
            "user": {"type": "str", "default": "vllm"},
            "home": {"type": "path", "default": server_declared.CACHE},
            "cache": {"type": "path", "default": ""},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "huggingface_token": {"type": "str", "default": "", "no_log": True},
            "tls": {
                "type": "dict",
                "default": {},
                "options": {
                    "certificate_file": {"type": "path", "default": ""},
                    "key_file": {"type": "path", "default": "", "no_log": False},
                    "ca_file": {"type": "path", "default": ""},
                    "name": {"type": "str", "default": ""},
                },
            },
            "flashinfer_sampler": {"type": "bool"},
            "flash_attn_version": {"type": "int", "default": 0},
            "ready_timeout": {"type": "int", "default": 1800},
            "overlap": {"type": "str", "default": "auto", "choices": ["auto", "never"]},
            "stop_timeout": {"type": "int", "default": 60},
            "state_folder": {"type": "path", "default": "/var/lib/vllm_model_server"},
            "keep": {"type": "int", "default": 5},
            "trial": {"type": "bool", "default": False},
            "go_back_to": {"type": "str", "default": ""},
            "who": {"type": "str", "default": ""},
            "why": {"type": "str", "default": ""},
            "wait": {"type": "int", "default": 30},
            "waiting": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        converge(module)
    except EngineConfigError as error:
        module.fail_json(msg=f"The engine config can't be used: {error}")
    except (ServerError, StateError, UnitError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"The model server could not be set up: {error.strerror} ({error.filename}).")


def hide(module, secrets):
    """Let no output show these secrets."""
    module.no_log_values.update(secret for secret in secrets if secret)


def declared(module, server):
    """Return the state that is declared. From here on its secrets are shown nowhere."""

    def only(secrets):
        # no_log hides the engine config from the journal. In what is said here only the secrets are hidden, not each
        # word and number that the config happens to have.
        module.no_log_values.clear()
        hide(module, secrets)

    return server_declared.declared(module.params, lambda: server.states.salt(create=not module.check_mode), only)


def converge(module):
    """Make the server what is declared, or what it was, and wait for an answer."""
    server = Server(module)
    run = Run(module, server)
    if module.params["waiting"]:
        if not module.params["go_back_to"]:
            declared(module, server)
        run.resume(module.params["waiting"])
    if module.params["go_back_to"]:
        states = server.states
        there = states.there()
        live = server_plan.digest_in(read_text(server.unit_file))
        target = states.load(server_plan.find(module.params["go_back_to"], states.history, live, there))
        hide(module, target.hidden)
        run.begin(target)
    if not module.params["engine_config"]:
        raise EngineConfigError("it is empty (vllm_engine_config in the JSON): name at least ModelConfig.model.")
    target = declared(module, server)
    program = os.path.join(target.release, "bin", "vllm")
    if not os.path.exists(program) and not module.check_mode:
        raise ServerError(
            f"There is no vLLM at {server.link}/bin/vllm: the container needs the feature vllm (role vllm_stack) "
            "before its model server."
        )
    tls = target.probe["tls"]
    if isinstance(tls, dict) and "file" in tls and not module.check_mode:
        try:
            server_guard.read_pair(tls["certificate"], tls["key"])
        except CertificateError as error:
            raise ServerError(
                f"{error} The role certificate issues it (certificate_source), or vllm_model_server_certificate_file "
                "and vllm_model_server_key_file name others; the running server was not touched."
            ) from None
    model = engine_args.split_model(engine_args.flatten(module.params["engine_config"]))[0]
    if model.startswith("/") and not os.path.exists(model) and not module.check_mode:
        raise ServerError(
            f"ModelConfig.model is {model}, and there is no such folder in the container. Mount it (mount_points "
            "in the JSON) or correct the path; the running server was not touched."
        )
    run.begin(target)


if __name__ == "__main__":
    main()
