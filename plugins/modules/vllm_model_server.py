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

import contextlib
import glob
import grp
import inspect
import json
import os
import pwd
import socket
import stat
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    engine_args,
    release_source,
    server_failures,
    server_fetch,
    server_guard,
    server_plan,
    server_switch,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils.engine_args import EngineConfigError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_guard import CertificateError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import Seen, StateError, Target, UnitError

UNIT_FOLDER = "/etc/systemd/system"
SHARES = os.path.join(os.path.dirname(server_guard.PROGRAM), server_guard.SHARES)
FETCH = "/usr/local/libexec/vllm_model_server/fetch.py"
CACHE = "/var/cache/vllm"
# The group reads the engine config, nobody else: an API key may be in it. Secrets are read by systemd, which is root.
CONFIG_MODE = 0o640
SECRETS_MODE = 0o600
UNIT_MODE = 0o644
# A loaded server answers a short question in well under a second; one that is busy may need its time.
ANSWER_TIMEOUT = 120
JOURNAL_LINES = 400
SHOWN_LINES = 25
# Of the journal in a line of progress.
PROGRESS_WIDTH = 140
# Seconds between two looks at the server.
LOOK = 0.5
# What comes in at the moment of a switch gets this many seconds to be seen as a connection.
SETTLED = 1.0
# Seconds after which a new line of the server is worth a call of its own, and between two looks at that.
NEWS = 8.0
LINE = 2.0


class ServerError(Exception):
    """Something that can't be done with the service. The text is for the user."""


def read_text(path):
    """Return a file's text, None when there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def read_json(path, default):
    """Return what a JSON file of ours has, a default when it isn't there or is damaged."""
    try:
        return json.loads(read_text(path) or "")
    except ValueError:
        return default


def write(path, text, mode, group=0):
    """Write a file of root's in one step, so that it is there whole or not at all, even after a power cut."""
    folder = os.path.dirname(path)
    # mkstemp makes it 0600, so the text is never readable for more than it should be.
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".phoenix-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchown(file.fileno(), 0, group)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def point(path, target):
    """Make a path a link in one step, whether it was one before or not."""
    temporary = f"{path}.phoenix-{os.getpid()}"
    os.symlink(target, temporary)
    os.replace(temporary, path)


def is_like(path, text, mode, group):
    """Return whether a file of root's has this text, mode and group."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, group, mode) and read_text(path) == text


def now_text():
    """Return the time as it is written down."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class States:
    """The states that were kept: files that only root reads."""

    def __init__(self, folder):
        self.folder = folder
        self.history_file = os.path.join(folder, "history.json")
        self.history = read_json(self.history_file, [])

    @property
    def good(self):
        """Return the digest of the last state whose server answered."""
        return self.history[-1]["digest"] if self.history else ""

    def make(self):
        """Make the folder."""
        os.makedirs(os.path.join(self.folder, "states"), mode=0o700, exist_ok=True)
        os.chmod(self.folder, 0o700)

    def salt(self, create):
        """Return the salt of digests."""
        path = os.path.join(self.folder, "salt")
        if create and not os.path.exists(path):
            self.make()
            write(path, os.urandom(16).hex() + "\n", 0o600)
        return (read_text(path) or "").encode()

    def path(self, digest):
        """Return a state's file."""
        return os.path.join(self.folder, "states", f"{digest}.json")

    def there(self):
        """Return the digests of the states that can be gone back to: their release is still installed."""
        found = set()
        for path in glob.glob(self.path("*")):
            name = os.path.basename(path)[: -len(".json")]
            with contextlib.suppress(StateError):
                if os.path.exists(os.path.join(self.load(name).release, "bin", "vllm")):
                    found.add(name)
        return found

    def load(self, digest):
        """Return a state.

        Raises:
            StateError: its file is gone or damaged.
        """
        return Target.from_json(read_text(self.path(digest)) or "")

    def put(self, target):
        """Write a state down, before anything of it is made live."""
        self.make()
        text = target.to_json()
        if not is_like(self.path(target.digest), text, 0o600, 0):
            write(self.path(target.digest), text, 0o600)

    def took(self, digest):
        """Return how many seconds the last start took, of this state if there was one. 0 when nobody knows."""
        own = [entry for entry in self.history if entry.get("digest") == digest]
        return ([entry["seconds"] for entry in [*self.history, *own] if entry.get("seconds")] or [0])[-1]

    def keep(self, target, count, seconds):
        """Write down that a state is good and how long its start took, and remove those that are too old."""
        entry = {"digest": target.digest, "release": target.release_name, "model": target.model, "at": now_text(),
                 "seconds": round(seconds, 1)}  # fmt: skip
        self.history = server_plan.kept([*self.history, entry], count)
        write(self.history_file, json.dumps(self.history, indent=1) + "\n", 0o600)
        names = {self.path(entry["digest"]) for entry in self.history}
        for path in set(glob.glob(self.path("*"))) - names:
            os.unlink(path)

    def record(self, entry):
        """Add a line to the record of what was gone back to."""
        self.make()
        path = os.path.join(self.folder, "rollbacks.jsonl")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps({"at": now_text(), **entry}) + "\n")


class Server:
    """Reads what there is, executes the steps of a plan, and looks whether it answers."""

    def __init__(self, module):
        self.module = module
        parameters = module.params
        self.name = parameters["name"]
        self.user = parameters["user"]
        self.config_file = parameters["config_file"]
        self.link = parameters["link"]
        self.unit_file = os.path.join(UNIT_FOLDER, self.name)
        self.beside_name, self.fetch_name = (server_switch.other_name(self.name, word) for word in ("next", "fetch"))
        self.beside_file, self.fetch_file = (
            os.path.join(server_switch.FOLDER, name) for name in (self.beside_name, self.fetch_name)
        )
        self.watchdog = self.declared_watchdog()
        self.run_file = f"/run/{self.name.rpartition('.')[0]}.run"
        self.states = States(parameters["state_folder"])

    def hide(self, *secrets):
        """Let no output show these secrets."""
        self.module.no_log_values.update(secret for secret in secrets if secret)

    def declared_watchdog(self):
        """Return the texts of the watchdog's units by name, None when nothing is said of it."""
        declared = self.module.params["watchdog"]
        if not declared:
            return declared
        try:
            texts = [
                declared[part].replace(server_plan.GUARD_WORD, server_guard.PROGRAM) for part in ("service", "timer")
            ]
        except (KeyError, AttributeError):
            self.module.fail_json(msg="watchdog must have the texts of two units, service and timer, or be empty.")
        return dict(zip(server_plan.watchdog_names(self.name), texts))

    def declared(self):
        """Return the state that is declared.

        Raises:
            EngineConfigError: the engine config can't be handed to vLLM.
            UnitError: the unit can't be used.
        """
        parameters = self.module.params
        arguments = engine_args.flatten(parameters["engine_config"])
        secrets = {"VLLM_API_KEY": parameters["api_key"], "HF_TOKEN": parameters["huggingface_token"]}
        # no_log hides the engine config from the journal. In what is said here only the secrets are hidden, not each
        # word and number that the config happens to have.
        self.module.no_log_values.clear()
        self.hide(*engine_args.secrets(arguments), *secrets.values())
        # vLLM 0.10 writes its arguments into the journal, a key among them; from the environment it tells nobody.
        key, token = arguments.get("api-key"), arguments.get("hf-token")
        keys = key if isinstance(key, list) else [key]
        if secrets["VLLM_API_KEY"] or len(keys) == 1:
            arguments.pop("api-key", None)
            secrets["VLLM_API_KEY"] = secrets["VLLM_API_KEY"] or str(keys[0] or "")
        if isinstance(token, str):
            arguments.pop("hf-token")
            secrets["HF_TOKEN"] = secrets["HF_TOKEN"] or token
        table = parameters["flags"] or None
        certificate = parameters["tls"]
        tls, added = server_plan.tls(
            *(certificate.get(name) or "" for name in ("certificate_file", "key_file", "ca_file", "name")),
            arguments, parameters["flags"].get("flags", {}),
        )  # fmt: skip
        arguments.update(added)
        before = []
        if added:
            tls.update(user=self.user, drain=parameters["stop_timeout"], ready=parameters["ready_timeout"])
            files = tls["certificate"], tls["key"]
            before = ["/usr/bin/python3", "-I", server_guard.PROGRAM, "certificate", *files, self.user]
        model, others = engine_args.split_model(arguments)
        # A model that was fetched ahead is a link to its revision. The unit names the folder itself, so that another
        # revision is a change, and the former state still has its own.
        folder = os.path.realpath(model) if model.startswith("/") else model
        if folder != model:
            others.setdefault("served-model-name", [model])
        config = engine_args.render(engine_args.check(others, table), table)
        release = os.path.realpath(self.link)
        cache = self.cache(model)
        environment = server_plan.release_environment(
            release,
            read_json(os.path.join(release, "release.json"), {}),
            self.version(release),
            parameters["flashinfer_sampler"],
            parameters["flash_attn_version"],
        )
        secrets_text = server_plan.secrets_file(secrets)
        argv = [*self.program(release), "serve", folder, "--config"]
        digest = server_plan.make_digest(
            self.states.salt(create=not self.module.check_mode),
            *[parameters["unit"], argv, config, secrets_text, environment, cache],
            # What is copied may be renewed without a change of the state.
            before or self.certificates(arguments),
        )
        config_name, secrets_name = (os.path.join(os.path.dirname(self.config_file), name)
                                     for name in server_plan.file_names(digest))
        unit = server_plan.fill_unit(
            parameters["unit"],
            {
                server_plan.EXEC_START_WORD: " ".join(map(engine_args.unit_word, [*argv, config_name])),
                server_plan.DIGEST_WORD: digest,
                server_plan.ENVIRONMENT_WORD: server_plan.environment_lines(
                    environment, secrets_name if secrets_text else ""
                ),
                server_plan.CERTIFICATE_WORD: (
                    "ExecStartPre=+" + " ".join(map(engine_args.unit_word, before)) if before else ""
                ),
                server_plan.CACHE_WORD: server_plan.quoted(cache),
                server_plan.GUARD_WORD: server_guard.PROGRAM,
            },
        )
        host, port = engine_args.address(arguments)
        path, body = engine_args.probe(arguments)
        probe = {"host": host, "port": port, "tls": tls, "path": path, "body": body,
                 "key": secrets["VLLM_API_KEY"] or str(keys[0] or "")}  # fmt: skip
        served = engine_args.served_name(arguments)
        return Target(digest, unit, config, secrets_text, release, cache, probe, served)

    def version(self, release):
        """Return vLLM's version in a release: as its record says, else as the table of arguments says."""
        version = read_json(os.path.join(release, "release.json"), {}).get("vllm")
        return str(version or self.module.params["flags"].get("vllm") or "")

    def program(self, release):
        """Return the words that start vLLM of a release, by its real path.

        A virtual environment that was made under another path (the folder of the time before releases) starts whatever
        is at that path now; its own Python is named then.
        """
        program, python = os.path.join(release, "bin", "vllm"), os.path.join(release, "bin", "python")
        try:
            with open(program, "rb") as file:
                own = os.fsencode(release) + b"/" in file.read(1024)
        except OSError:
            own = True
        return [program] if own or not os.path.exists(python) else [python, program]

    def certificates(self, arguments):
        """Return what the server's certificate files have, for the digest; nothing when vLLM reloads them itself."""
        if arguments.get("enable-ssl-refresh") is True:
            return []
        names = ("ssl-certfile", "ssl-keyfile", "ssl-ca-certs")
        return [read_text(str(arguments[name])) for name in names if arguments.get(name)]

    def cache(self, model):
        """Return the folder of the server's caches.

        The volume that has the model also keeps what is compiled and downloaded, so that a second start is fast, even
        of a container that was made anew. It is taken when it can be written, else the container's own disk.
        """
        if self.module.params["cache"]:
            return self.module.params["cache"]
        volume = os.path.realpath(model) if model.startswith("/") else "/"
        while not os.path.ismount(volume):
            volume = os.path.dirname(volume)
        folder = os.path.join(volume, ".vllm-cache", socket.gethostname())
        return CACHE if volume == "/" or not (os.path.isdir(folder) or os.access(volume, os.W_OK)) else folder

    def cache_is_right(self, folder):
        """Return whether the folder of the caches is the service's own. systemd makes the usual one."""
        if folder == CACHE:
            return True
        try:
            status = os.lstat(folder)
            owner = pwd.getpwnam(self.user).pw_uid
        except (OSError, KeyError):
            return False
        return stat.S_ISDIR(status.st_mode) and status.st_uid == owner

    def systemctl(self, *words, fatal=True):
        """Run systemctl. Return its output."""
        code, stdout, stderr = self.module.run_command(["systemctl", *words])
        if code and fatal:
            raise ServerError(f"`systemctl {' '.join(words)}` failed: {(stderr or stdout).strip()}")
        return stdout

    def properties(self, name=""):
        """Return the properties of the server's unit, or of another one."""
        names = ",".join(server_plan.PROPERTIES)
        return server_plan.properties(self.systemctl("show", name or self.name, f"--property={names}", fatal=False))

    def running_digest(self, properties):
        """Return the digest that the server's process carries, or what runs before it, "" when there is none."""
        pid = int(properties.get("MainPID") or 0)
        # What runs after a server that ended has the digest of the unit as it is by then.
        if not pid and properties.get("SubState", "").startswith("start"):
            pid = int(properties.get("ControlPID") or 0)
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                return server_plan.environment(file.read()).get(server_plan.DIGEST_VARIABLE, "")
        except OSError:
            return ""

    def look(self, target):
        """Return what there is."""
        properties = self.properties()
        try:
            group = grp.getgrnam(self.user).gr_gid
            pwd.getpwnam(self.user)
            user = True
        except KeyError:
            group, user = -1, False
        folder = os.path.dirname(self.config_file)
        unit = read_text(self.unit_file)
        watchdog = {name: read_text(os.path.join(UNIT_FOLDER, name)) for name in server_plan.watchdog_names(self.name)}
        config_name, _secrets_name = server_plan.file_names(server_plan.digest_in(unit) or target.digest)
        return Seen(
            user=user,
            config=read_text(os.path.join(folder, config_name)),
            files=frozenset(
                os.path.basename(path)
                for pattern in server_plan.file_names("*")
                for path in glob.glob(os.path.join(folder, pattern))
            ),
            files_right=all(is_like(*file) for file in self.files(target, group)) and self.is_named(target),
            unit=unit,
            guard=is_like(server_guard.PROGRAM, inspect.getsource(server_guard), 0o755, 0) and self.shares_are_right(),
            cache=self.cache_is_right(target.cache),
            link=os.path.realpath(self.link) if os.path.islink(self.link) else "",
            properties=properties,
            digest=self.running_digest(properties),
            good=self.states.good,
            watchdog={name: text for name, text in watchdog.items() if text is not None},
            watching=bool(self.watchdog) and self.is_watching(),
            beside=server_plan.digest_in(read_text(self.beside_file)),
            certified=self.is_certified(target, properties),
        )

    def is_certified(self, target, properties):
        """Return whether the running server serves the certificate that is in its files, or has none."""
        tls = target.probe["tls"]
        if not isinstance(tls, dict) or "file" not in tls or self.running_digest(properties) != target.digest:
            return True
        try:
            text, certificate = server_guard.read_pair(tls["certificate"], tls["key"])
        except CertificateError:
            # Nobody could serve that.
            return True
        # One that does not listen yet reads the copy when it does.
        return read_text(tls["file"]) == text and server_guard.is_served(target.probe, certificate) is not False

    def is_watching(self):
        """Return whether the watchdog's timer runs and is started at boot, and systemd knows what the units say."""
        names = "--property=ActiveState,UnitFileState,NeedDaemonReload"
        said = self.systemctl("show", names, *server_plan.watchdog_names(self.name), fatal=False)
        # A block for each unit, in their order.
        timer = server_plan.properties(said.rpartition("\n\n")[2])
        runs = (timer.get("ActiveState"), timer.get("UnitFileState")) == ("active", "enabled")
        return runs and "NeedDaemonReload=yes" not in said

    def sockets(self, port, listening=False):
        """Return how many connections a port has, or how many listen on it."""
        tables = (read_text(f"/proc/net/{name}") or "" for name in ("tcp", "tcp6"))
        return server_switch.sockets("\n".join(tables), port, listening)

    def room(self, target, seen):
        """Return whether the old server answers until the new one does, None when none answers."""
        if not server_plan.is_replaced(target, seen) or seen.digest != seen.good:
            return None
        try:
            old = self.states.load(seen.digest)
        except StateError:
            return None
        if not self.sockets(old.probe["port"], listening=True):
            return None
        variables = server_switch.environment(target.unit)
        model = server_switch.model_in(target.unit)
        name = server_switch.repository(model, target.config, variables)
        folder = self.snapshot(name, target.config, variables) if name else model
        python = os.path.join(target.release, "bin", "python")
        fetch = bool(name) and not folder and os.path.exists(python)
        if self.module.params["overlap"] == "never":
            return server_switch.Room(False, "vllm_model_server_overlap is never", fetch)
        if seen.beside == target.digest:
            return server_switch.Room(True, "an earlier run has started it")
        memory = release_source.room()
        here = server_switch.Here(
            gpus=self.gpus(),
            free=memory.free,
            used=self.memory_of(int(seen.properties.get("MainPID") or 0)),
            weights=server_switch.weights(self.sizes(folder)) if folder else None,
            obstacle=self.obstacle(),
        )
        room = server_switch.room(vars(old), vars(target), here)
        # One that is loaded beside the old server fetches its model by itself.
        return room if room.overlap else room._replace(fetch=fetch)

    def obstacle(self):
        """Return why connections can't be sent to another port, "" when they can."""
        try:
            # In check mode only the words are looked at. Else the table, without a rule in it, tells what the kernel
            # has.
            self.nft(server_switch.rules(), *(["--check"] if self.module.check_mode else []))
            if not self.module.check_mode:
                self.nft(server_switch.no_rules())
        except ServerError as error:
            return str(error)
        return ""

    def nft(self, script, *options):
        """Have nft do what a script says."""
        program = self.module.get_bin_path("nft")
        if not program:
            raise ServerError("the container has no nft (Debian's package nftables)")
        code, _stdout, stderr = self.module.run_command([program, *options, "-f", "-"], data=script)
        if code:
            raise ServerError(f"nft can't send connections to another port ({' '.join(stderr.split())[:200]})")

    def gpus(self):
        """Return the GPUs, none where nobody can tell."""
        program = self.module.get_bin_path("nvidia-smi")
        if not program:
            return []
        query = ["--query-gpu=index,memory.total,memory.free", "--format=csv,noheader,nounits"]
        code, stdout, _stderr = self.module.run_command([program, *query])
        return [] if code else server_switch.gpus(stdout)

    def memory_of(self, pid):
        """Return how many bytes of memory a process and all that it started have for themselves, 0 if unknown."""
        parents, used = {}, {}
        for path in glob.glob("/proc/[0-9]*/status"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                lines = dict(line.split(":", 1) for line in (read_text(path) or "").splitlines() if ":" in line)
                number = int(lines["Pid"])
                parents[number] = int(lines["PPid"])
                used[number] = sum(int(lines.get(key, "0").split()[0]) for key in ("RssAnon", "RssShmem", "VmSwap"))
        family = [pid] if pid in used else []
        for member in family:
            family += [child for child, parent in parents.items() if parent == member]
        return sum(used[member] for member in family) * 1024

    def snapshot(self, name, config, variables):
        """Return the folder with a model of the hub, "" when it isn't all there."""
        folder = server_switch.hub_folder(name, config, variables)
        wanted = server_switch.settings(config).get("revision") or "main"
        revision = (read_text(os.path.join(folder, "refs", wanted)) or wanted).strip()
        place = os.path.join(folder, "snapshots", revision)
        index = read_text(os.path.join(place, "model.safetensors.index.json")) or ""
        whole = server_switch.is_fetched(self.sizes(place), index)
        return place if whole and not glob.glob(os.path.join(glob.escape(folder), "blobs", "*.incomplete")) else ""

    def sizes(self, folder):
        """Return the size of each file in a folder."""
        found = {}
        for path in glob.glob(os.path.join(glob.escape(folder), "*")):
            with contextlib.suppress(OSError):
                found[os.path.basename(path)] = os.stat(path).st_size
        return found

    def files(self, target, group):
        """Return (path, text, mode, group) of the files that a state's unit names."""
        folder = os.path.dirname(self.config_file)
        config, secrets = (os.path.join(folder, name) for name in server_plan.file_names(target.digest))
        files = [(config, target.config, CONFIG_MODE, group)]
        return [*files, (secrets, target.secrets, SECRETS_MODE, 0)] if target.secrets else files

    def is_named(self, target):
        """Return whether the engine config's name for people stands for a state's."""
        config = server_plan.file_names(target.digest)[0]
        return os.path.islink(self.config_file) and os.readlink(self.config_file) == config

    def apply(self, step, target):
        """Execute one step."""
        getattr(self, f"do_{step.action}")(target)

    def do_user(self, target):
        """Add the service's user."""
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        code, _stdout, stderr = self.module.run_command(
            [*command, "--home-dir", self.module.params["home"], self.user]
        )
        if code:
            raise ServerError(f"The user {self.user} could not be added: {stderr.strip()}")

    def do_cache(self, target):
        """Make the folder of the caches. Its parent may be shared with other containers, so a link is not followed."""
        os.makedirs(os.path.dirname(target.cache), mode=0o755, exist_ok=True)
        if os.path.islink(target.cache):
            os.unlink(target.cache)
        if not os.path.isdir(target.cache):
            os.mkdir(target.cache, 0o750)
        user = pwd.getpwnam(self.user)
        try:
            os.chown(target.cache, user.pw_uid, user.pw_gid, follow_symlinks=False)
        except OSError as error:
            raise ServerError(
                f"{target.cache} can't be given to the user {self.user} ({error.strerror}): set the owner of that "
                "volume (owner_uid in mount_points), or name another folder in vllm_model_server_cache."
            ) from None

    def do_guard(self, target):
        """Write the program that runs before and after the server."""
        os.makedirs(os.path.dirname(server_guard.PROGRAM), mode=0o755, exist_ok=True)
        write(server_guard.PROGRAM, inspect.getsource(server_guard), 0o755)
        shares = self.module.params["shares_before"]
        if shares:
            write(SHARES, json.dumps(shares) + "\n", 0o644)
        elif shares is not None and os.path.exists(SHARES):
            os.unlink(SHARES)

    def shares_are_right(self):
        """Return whether what other servers take of the GPUs before this one is written down as it was said."""
        shares = self.module.params["shares_before"]
        return shares is None or read_json(SHARES, []) == shares

    def do_config(self, target):
        """Write the files that the unit names; those that the live unit names stay as they are."""
        os.makedirs(os.path.dirname(self.config_file), mode=0o755, exist_ok=True)
        for file in self.files(target, grp.getgrnam(self.user).gr_gid):
            write(*file)

    def do_unit(self, target):
        """Write the unit: from here on the new state is the one that starts."""
        write(self.unit_file, target.unit, UNIT_MODE)

    def do_link(self, target):
        """Point the link at the release, and write it down where the installer looks for what was live before."""
        point(self.link, target.release)
        history = os.path.join(os.path.dirname(target.release), "history.json")
        entries = read_json(history, [])
        if isinstance(entries, list):
            write(history, json.dumps([*entries, {"release": target.release_name, "at": now_text()}]) + "\n", 0o644)

    def do_reload(self, target):
        """Have systemd read its units again."""
        self.systemctl("daemon-reload")

    def do_enable(self, target):
        """Have the unit started at boot."""
        self.systemctl("--quiet", "enable", self.name)

    def do_watch(self, target):
        """Have the watchdog look after the server, as its units say."""
        for name, text in self.watchdog.items():
            write(os.path.join(UNIT_FOLDER, name), text, UNIT_MODE)
        _service, timer = server_plan.watchdog_names(self.name)
        self.systemctl("daemon-reload")
        self.systemctl("--quiet", "enable", timer)
        self.systemctl("restart", timer)

    def do_unwatch(self, target):
        """Stop and remove the watchdog."""
        service, timer = server_plan.watchdog_names(self.name)
        self.systemctl("--quiet", "disable", "--now", timer, fatal=False)
        self.systemctl("stop", service, fatal=False)
        for name in (service, timer):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(UNIT_FOLDER, name))
        self.systemctl("daemon-reload")

    def do_start(self, target):
        """Start the server; it is waited for elsewhere."""
        # After too many failures systemd would refuse.
        self.systemctl("reset-failed", self.name, fatal=False)
        self.systemctl("--no-block", "start", self.name)

    def do_restart(self, target):
        """Restart the server; it is waited for elsewhere."""
        self.systemctl("reset-failed", self.name, fatal=False)
        self.systemctl("--no-block", "restart", self.name)

    def do_certificate(self, target):
        """Have the running server serve the certificate that is in its files."""
        try:
            server_guard.renewed(self.name, self.states.folder, wait=False)
        except CertificateError as error:
            raise ServerError(str(error)) from None

    def do_fetch(self, target):
        """Have the model fetched by the release's own program, as the service's user."""
        os.makedirs(os.path.dirname(FETCH), mode=0o755, exist_ok=True)
        write(FETCH, inspect.getsource(server_fetch), 0o644)
        told = server_switch.settings(target.config)
        command = [os.path.join(target.release, "bin", "python"), FETCH, server_switch.model_in(target.unit)]
        command += [told.get(name, "") for name in ("revision", "download-dir")]
        words = map(engine_args.unit_word, command)
        unit = server_switch.fetch_unit(target.unit, " ".join(words))
        if read_text(self.fetch_file) == unit and self.properties(self.fetch_name).get("SubState") == "running":
            # An earlier run has begun with it.
            return
        self.end_other(self.fetch_name, kill=True)
        self.start_other(self.fetch_name, unit)

    def do_beside(self, target):
        """Start the new state beside the running server, or go on with the one that an earlier run has started."""
        digest = server_plan.digest_in(read_text(self.beside_file))
        if digest == target.digest and self.properties(self.beside_name).get("ActiveState") == "active":
            return
        self.end_beside(kill=True)
        self.nft(server_switch.rules())
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        own = f"{self.unit_file}.d"
        if os.path.isdir(own):
            # What a person added to the server's unit is meant for it, whatever it is called meanwhile.
            point(f"{self.beside_file}.d", own)
        self.start_other(self.beside_name, server_switch.next_unit(target.unit, port))

    def start_other(self, name, unit):
        """Start a unit that is there for the time of a change only."""
        os.makedirs(server_switch.FOLDER, exist_ok=True)
        write(os.path.join(server_switch.FOLDER, name), unit, UNIT_MODE)
        self.systemctl("daemon-reload")
        self.systemctl("reset-failed", name, fatal=False)
        self.systemctl("--no-block", "start", name)

    def end_other(self, name, kill=False):
        """End such a unit and forget it; nothing when there is none."""
        file = os.path.join(server_switch.FOLDER, name)
        if not os.path.lexists(file):
            return
        if kill:
            self.systemctl("kill", "--signal=KILL", name, fatal=False)
        self.systemctl("stop", name, fatal=False)
        for path in (f"{file}.d", file):
            if os.path.lexists(path):
                os.unlink(path)
        self.systemctl("daemon-reload")
        self.systemctl("reset-failed", name, fatal=False)

    def beside_port(self):
        """Return the port of the server beside, 0 when there is none."""
        return server_switch.port_of(read_text(self.beside_file))

    def send(self, probe, to):
        """Send new connections to the server beside, or (0) to the server itself again."""
        self.nft(server_switch.rules(probe["port"], to, server_switch.only_host(probe)))

    def end_beside(self, kill=False):
        """End the server beside, and have no rule left."""
        self.end_other(self.beside_name, kill)
        with contextlib.suppress(ServerError):
            self.nft(server_switch.no_rules())

    def do_tidy(self, target):
        """Remove the files that only former states' units name."""
        folder = os.path.dirname(self.config_file)
        for pattern in server_plan.file_names("*"):
            for path in glob.glob(os.path.join(folder, pattern)):
                if os.path.basename(path) not in server_plan.file_names(target.digest):
                    os.unlink(path)
        tls = target.probe["tls"]
        for path in glob.glob(f"{server_guard.CERTIFICATES}/*.pem"):
            # Those of former states, with their keys.
            if not (isinstance(tls, dict) and tls.get("file") == path):
                os.unlink(path)

    def journal(self, invocation="", count=JOURNAL_LINES, systemd=True, name=""):
        """Return the journal's last lines of one run of the server, of the newest one by default.

        What systemd itself says of that run is among them: it is all that there is when the program can't be started.
        """
        invocation = invocation or self.properties(name).get("InvocationID", "")
        match = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else ["--unit", name or self.name]
        match += ["+", f"INVOCATION_ID={invocation}"] if invocation and systemd else []
        _code, stdout, _stderr = self.module.run_command(
            ["journalctl", *match, f"--lines={count}", "--no-pager", "--quiet", "--output=cat"]
        )
        return stdout.splitlines()


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
        self.shown = {"plan": [step.text for step in steps], "diff": self.diff(target, seen, steps)}
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
            server.apply(step, target)
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
            self.server.hide(*target.hidden)
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
            self.failed(target, *self.too_late(self.last_answer))

    def take_over(self, target):
        """The server beside has answered: from here on it gets what comes in."""
        try:
            self.server.send(target.probe, self.server.beside_port())
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
            server.send(target.probe, 0)
        except ServerError:
            # Without the rule there is nothing to send back.
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
        """Return (what happened, why, what to do) of a server that ended."""
        # What was said in the last moment may not be in the journal yet.
        self.module.run_command(["journalctl", "--sync"])
        lines = self.server.journal(self.waiting["invocation"], name=self.unit())
        why = server_failures.cause(lines)
        known = server_failures.known(lines, now.get("Result", ""))
        message = (
            f"{what} (systemd says {now.get('Result', 'nothing')}). "
            + (f"{why}\n" if why else "\n")
            + (f"{known.remedy}\n" if known else "")
            + f"Its last lines (`journalctl -u {self.unit()}` has all):\n"
            + "\n".join(server_failures.tail(lines, SHOWN_LINES))
        )
        return message, {"cause": why, "failure": known.name if known else "", "result": now.get("Result", "")}

    def too_late(self, last_answer):
        """Return what to say of a server that took too long."""
        lines = self.server.journal(self.waiting["invocation"], name=self.unit())
        known = server_failures.known(lines)
        return (
            f"The model server did not answer within {self.module.params['ready_timeout']} s: {last_answer}. "
            + ("" if self.waiting["former"] else self.what_comes)
            + (known.remedy if known else "A large model may need more time (vllm_model_server_ready_timeout).")
            + f" Its last lines (`journalctl -u {self.unit()}` has all):\n"
            + "\n".join(server_failures.tail(lines, SHOWN_LINES)),
            {"failure": known.name if known else "", "result": "timeout"},
        )

    @property
    def what_comes(self):
        """Return what becomes of a server that took too long, and is not undone."""
        if self.server.watchdog:
            return "It is still running, until the watchdog restarts it. "
        return "It is still running. "

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
        server.hide(*former.hidden)
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

    def diff(self, target, seen, steps):
        """Return what the diff shows."""
        config, unit = self.server.config_file, self.server.unit_file
        return [
            {
                "before_header": config,
                "after_header": config,
                "before": engine_args.hide(seen.config or ""),
                "after": engine_args.hide(target.config),
            },
            {"before_header": unit, "after_header": unit, "before": seen.unit or "", "after": target.unit},
            *(
                {"before_header": name, "after_header": name, "before": seen.watchdog.get(name, ""), "after": text}
                for name, text in self.watchdog_after(seen).items()
            ),
            {"prepared": "".join(f"{step.text}\n" for step in steps)},
        ]

    def watchdog_after(self, seen):
        """Return the texts that the watchdog's units get, by name; empty for those that go."""
        wanted = self.server.watchdog
        return {} if wanted is None else {**dict.fromkeys(seen.watchdog, ""), **wanted}

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
            "home": {"type": "path", "default": CACHE},
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
    server = Server(module)
    try:
        converge(module, server)
    except EngineConfigError as error:
        module.fail_json(msg=f"The engine config can't be used: {error}")
    except (ServerError, StateError, UnitError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"The model server could not be set up: {error.strerror} ({error.filename}).")


def converge(module, server):
    """Make the server what is declared, or what it was, and wait for an answer."""
    run = Run(module, server)
    if module.params["waiting"]:
        # What is declared has the secrets that must not be said.
        if not module.params["go_back_to"]:
            server.declared()
        run.resume(module.params["waiting"])
    if module.params["go_back_to"]:
        states = server.states
        there = states.there()
        live = server_plan.digest_in(read_text(server.unit_file))
        target = states.load(server_plan.find(module.params["go_back_to"], states.history, live, there))
        server.hide(*target.hidden)
        run.begin(target)
    if not module.params["engine_config"]:
        raise EngineConfigError("it is empty (vllm_engine_config in the JSON): name at least ModelConfig.model.")
    target = server.declared()
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
