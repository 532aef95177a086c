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
  - When the server ends while it is waited for, the module fails at once with the server's own last words.
  - Also when nothing is to be done the server is asked for a completion.
  - Runs where the model server runs, in the container, as root. Needs systemd there.
options:
  engine_config:
    description:
      - What the server is started with. Groups of arguments of C(vllm serve), named as there, with underscores.
      - An argument is accepted in any group, or in none. C(false) switches an argument off, C(null) leaves it out.
    type: dict
    required: true
  unit:
    description:
      - The text of the systemd unit. It must have the words C(@EXEC_START@) and C(@DIGEST@), which are filled in.
    type: str
    required: true
  flags:
    description:
      - The release's table of arguments, as C(tools/vllm_flags.py) prints it. Without it names and types are not
        checked.
    type: dict
    default: {}
  link:
    description: The link to the live release.
    type: path
    default: /opt/vllm
  config_file:
    description: The file that the engine config is written to.
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
  ready_timeout:
    description: How many seconds a server may take from its start to its first completion.
    type: int
    default: 1800
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
    unit: "{{ lookup('ansible.builtin.template', 'vllm_model_server.service.j2') }}"
"""

RETURN = r"""
plan:
  description: What was done, or would be done in check mode, a sentence for each step.
  type: list
  elements: str
  returned: success
  sample: ["change /etc/vllm/engine.yaml", "restart vllm_model_server.service"]
digest:
  description: The digest of unit, engine config and release that the running server carries.
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
completion:
  description: What the server answered, empty in check mode.
  type: str
  returned: success
  sample: " bako ledi"
seconds:
  description: How long it took from the last step to that answer.
  type: float
  returned: success
"""

import grp
import http.client
import json
import os
import pwd
import stat
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args, server_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.engine_args import EngineConfigError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import Seen, UnitError, Wanted

UNIT_FOLDER = "/etc/systemd/system"
# The group reads the engine config, nobody else: an API key may be in it.
CONFIG_MODE = 0o640
UNIT_MODE = 0o644
# A loaded server answers a short question in well under a second; one that is busy may need its time.
ANSWER_TIMEOUT = 120
JOURNAL_LINES = 400
SHOWN_LINES = 25


def read_text(path):
    """Return a file's text, None when there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def read_digest(pid):
    """Return the digest that a process carries, an empty string when it carries none or has ended."""
    if not pid:
        return ""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return server_plan.environment(file.read()).get(server_plan.DIGEST_VARIABLE, "")
    except OSError:
        return ""


class Server:
    """Reads what there is, executes the steps of a plan, and waits for an answer."""

    def __init__(self, module):
        self.module = module
        parameters = module.params
        self.name = parameters["name"]
        self.user = parameters["user"]
        self.config_file = parameters["config_file"]
        self.unit_file = os.path.join(UNIT_FOLDER, self.name)
        self.executable = os.path.join(parameters["link"], "bin", "vllm")
        self.release = os.path.basename(os.path.realpath(parameters["link"])) if os.path.exists(self.executable) else ""
        self.table = parameters["flags"] or None
        self.arguments = engine_args.flatten(parameters["engine_config"])
        # no_log hides the whole engine config from the journal. In what is said here only the secrets are hidden, not
        # each word and number that the config happens to have.
        module.no_log_values.clear()
        module.no_log_values.update(engine_args.secrets(self.arguments))
        self.wanted = self.want()

    def want(self):
        """Return what the server should be."""
        model, others = engine_args.split_model(self.arguments)
        checked = engine_args.check(others, self.table)
        config = engine_args.render(checked, self.table)
        words = [self.executable, "serve", model, "--config", self.config_file]
        unit, digest = server_plan.fill_unit(
            self.module.params["unit"], " ".join(map(engine_args.unit_word, words)), config, self.release
        )
        return Wanted(config, unit, digest, self.user)

    def systemctl(self, *words, fatal=True):
        """Run systemctl. Return its output."""
        code, stdout, stderr = self.module.run_command(["systemctl", *words])
        if code and fatal:
            self.module.fail_json(msg=f"`systemctl {' '.join(words)}` failed: {(stderr or stdout).strip()}")
        return stdout

    def properties(self):
        """Return the unit's properties."""
        names = ",".join(server_plan.PROPERTIES)
        return server_plan.properties(self.systemctl("show", self.name, f"--property={names}", fatal=False))

    def look(self):
        """Return what there is."""
        properties = self.properties()
        try:
            pwd.getpwnam(self.user)
            user = True
        except KeyError:
            user = False
        return Seen(
            user=user,
            config=read_text(self.config_file),
            config_access=self.has_access(),
            unit=read_text(self.unit_file),
            properties=properties,
            digest=read_digest(int(properties.get("MainPID") or 0)),
        )

    def has_access(self):
        """Return whether owner and mode of the engine config's file are right."""
        try:
            status = os.stat(self.config_file)
            group = grp.getgrnam(self.user).gr_gid
        except (OSError, KeyError):
            return False
        return (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, group, CONFIG_MODE)

    def apply(self, step):
        """Execute one step."""
        getattr(self, f"do_{step.action}")()

    def do_user(self):
        """Add the service's user."""
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        code, _stdout, stderr = self.module.run_command(
            [*command, "--home-dir", self.module.params["home"], self.user]
        )
        if code:
            self.module.fail_json(msg=f"The user {self.user} could not be added: {stderr.strip()}")

    def do_config(self):
        """Write the engine config's file."""
        os.makedirs(os.path.dirname(self.config_file), mode=0o755, exist_ok=True)
        self.write(self.config_file, self.wanted.config, CONFIG_MODE, grp.getgrnam(self.user).gr_gid)

    def do_unit(self):
        """Write the unit."""
        self.write(self.unit_file, self.wanted.unit, UNIT_MODE, 0)

    def write(self, path, text, mode, group):
        """Write a file of root's in one step."""
        # mkstemp makes it 0600, so the text is never readable for more than it should be.
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".phoenix-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchown(file.fileno(), 0, group)
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)

    def do_reload(self):
        """Have systemd read its units again."""
        self.systemctl("daemon-reload")

    def do_enable(self):
        """Have the unit started at boot."""
        self.systemctl("--quiet", "enable", self.name)

    def do_start(self):
        """Start the server; it is waited for elsewhere."""
        # After too many failures systemd would refuse.
        self.systemctl("reset-failed", self.name, fatal=False)
        self.systemctl("--no-block", "start", self.name)

    def do_restart(self):
        """Restart the server; it is waited for elsewhere."""
        self.systemctl("reset-failed", self.name, fatal=False)
        self.systemctl("--no-block", "restart", self.name)

    def wait(self):
        """Wait until a completion came back. Return its text. Fail when the server ends, or when it takes too long."""
        before = self.properties()
        deadline = time.monotonic() + self.module.params["ready_timeout"]
        last_answer = "it was not asked yet"
        while True:
            now = self.properties()
            if server_plan.is_dead(now, before):
                self.fail_dead(now)
            if read_digest(int(now.get("MainPID") or 0)) == self.wanted.digest:
                text, last_answer = self.ask(min(ANSWER_TIMEOUT, max(1.0, deadline - time.monotonic())))
                if text is not None:
                    return text
            if time.monotonic() >= deadline:
                self.fail_late(last_answer)
            time.sleep(0.5)

    def ask(self, timeout):
        """Ask the server. Return (its answer's text or None, what is in the way).

        Ends the module when the server says that the request is wrong: waiting would not help.
        """
        host, port = engine_args.address(self.arguments)
        path, body = engine_args.probe(self.arguments)
        headers = {"Content-Type": "application/json"}
        key = self.arguments.get("api-key")
        if key:
            headers["Authorization"] = f"Bearer {key[0] if isinstance(key, list) else key}"
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            return None, f"it does not answer on port {port} ({error.__class__.__name__})"
        finally:
            connection.close()
        if 400 <= response.status < 500 and response.status != 429:
            self.module.fail_json(
                msg=f"The model server answers on port {port}, but refuses {path}: HTTP {response.status}, "
                f"{content[:300].decode('utf-8', 'replace')}"
            )
        if response.status != 200:
            return None, f"it answered {path} with HTTP {response.status}"
        try:
            answer = json.loads(content)
            return (answer["choices"][0]["text"], "") if "choices" in answer else ("(an embedding)", "")
        except (ValueError, LookupError, TypeError):
            return None, f"its answer to {path} is none of vLLM's"

    def journal(self):
        """Return the journal's last lines of the server's newest process."""
        invocation = self.properties().get("InvocationID", "")
        match = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else ["--unit", self.name]
        _code, stdout, _stderr = self.module.run_command(
            ["journalctl", *match, f"--lines={JOURNAL_LINES}", "--no-pager", "--quiet", "--output=cat"]
        )
        return stdout.splitlines()

    def fail_dead(self, now):
        """Fail with the last words of a server that ended."""
        lines = self.journal()
        why = server_plan.cause(lines)
        self.module.fail_json(
            msg=f"The model server ended before it answered (systemd says {now.get('Result', 'nothing')}). "
            + (f"{why}\n" if why else "\n")
            + f"Its last lines (`journalctl -u {self.name}` has all):\n"
            + "\n".join(server_plan.tail(lines, SHOWN_LINES)),
            cause=why,
            result=now.get("Result", ""),
        )

    def fail_late(self, last_answer):
        """Fail because the server took too long."""
        self.module.fail_json(
            msg=f"The model server did not answer within {self.module.params['ready_timeout']} s: {last_answer}. It is "
            "still running. A large model may need a larger ready_timeout. Its last lines "
            f"(`journalctl -u {self.name}` has all):\n" + "\n".join(server_plan.tail(self.journal(), SHOWN_LINES))
        )


def main():
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            # It may have keys in it, and a module writes its arguments into the journal.
            "engine_config": {"type": "dict", "required": True, "no_log": True},
            "unit": {"type": "str", "required": True},
            "flags": {"type": "dict", "default": {}},
            "link": {"type": "path", "default": "/opt/vllm"},
            "config_file": {"type": "path", "default": "/etc/vllm/engine.yaml"},
            "name": {"type": "str", "default": "vllm_model_server.service"},
            "user": {"type": "str", "default": "vllm"},
            "home": {"type": "path", "default": "/var/cache/vllm"},
            "ready_timeout": {"type": "int", "default": 1800},
        },
        supports_check_mode=True,
    )
    try:
        converge(module, Server(module))
    except (EngineConfigError, UnitError) as error:
        where = "The engine config can't be used: " if isinstance(error, EngineConfigError) else ""
        module.fail_json(msg=f"{where}{error}")
    except OSError as error:
        module.fail_json(msg=f"The model server could not be set up: {error.strerror} ({error.filename}).")


def converge(module, server):
    """Read, plan, execute the plan unless only asked to tell it, and wait for an answer."""
    if not server.release and not module.check_mode:
        module.fail_json(
            msg=f"There is no vLLM at {server.executable}: the container needs the feature vllm (role vllm_stack) "
            "before its model server."
        )
    model = server.arguments["model"]
    if model.startswith("/") and not os.path.exists(model) and not module.check_mode:
        module.fail_json(
            msg=f"ModelConfig.model is {model}, and there is no such folder in the container. Mount it (mount_points "
            "in the JSON) or correct the path; the running server was not touched."
        )
    seen = server.look()
    steps = server_plan.plan(server.wanted, seen, server.name, server.config_file)
    answer = ""
    began = time.monotonic()
    if not module.check_mode:
        for step in steps:
            server.apply(step)
        began = time.monotonic()
        answer = server.wait()
    unit_header, config_header = server.unit_file, server.config_file
    module.exit_json(
        changed=bool(steps),
        plan=[step.text for step in steps],
        digest=server.wanted.digest,
        release=server.release,
        model=engine_args.served_name(server.arguments),
        port=engine_args.address(server.arguments)[1],
        completion=answer,
        seconds=round(time.monotonic() - began, 1),
        diff=[
            {
                "before_header": config_header,
                "after_header": config_header,
                "before": engine_args.hide(seen.config or ""),
                "after": engine_args.hide(server.wanted.config),
            },
            {
                "before_header": unit_header,
                "after_header": unit_header,
                "before": seen.unit or "",
                "after": server.wanted.unit,
            },
            {"prepared": "".join(f"{step.text}\n" for step in steps)},
        ],
    )


if __name__ == "__main__":
    main()
