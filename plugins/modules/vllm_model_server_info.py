#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_model_server_info
short_description: What a model server is doing, and whether it answers
version_added: 0.1.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Looks at the unit, at the state that the running server carries, and asks the server for one token.
  - Compares the running server with an engine config, where one is given, and reads the certificates of the container.
  - Runs where the model server runs, in the container, as root. It works where there is no model server, too.
options:
  engine_config:
    description: The engine config that is declared, as for M(phoenix.hypervisor.vllm_model_server). It is compared.
    type: dict
    default: {}
  flags:
    description: The table of arguments of the stack that is declared. Without it only names and values are compared.
    type: dict
    default: {}
  link:
    description: The link to the live release.
    type: path
    default: /opt/vllm
  name:
    description: The name of the unit.
    type: str
    default: vllm_model_server.service
  state_folder:
    description: Where M(phoenix.hypervisor.vllm_model_server) keeps its states.
    type: path
    default: /var/lib/vllm_model_server
  certificates:
    description: Patterns of files with certificates. Of each file the first certificate counts.
    type: list
    elements: str
    default: [/etc/phoenix-hypervisor/certificates/*/fullchain.pem]
  timeout:
    description: Seconds to wait for the one token.
    type: int
    default: 10
extends_documentation_fragment:
  - phoenix.hypervisor.look
attributes:
  check_mode:
    description: Only reads, and asks for one token.
seealso:
  - module: phoenix.hypervisor.vllm_model_server
  - module: phoenix.hypervisor.status_report
"""

EXAMPLES = r"""
- name: See what the model server is doing
  phoenix.hypervisor.vllm_model_server_info:
    engine_config: "{{ vllm_model_server_engine_config }}"
  register: server

- name: Say why it is not ready
  ansible.builtin.debug:
    msg: "{{ server.reason }}"
  when: not server.ready
"""

RETURN = r"""
server:
  description:
    - What there is. V(none) without the unit, V(foreign) for a unit that this collection did not write, else systemd's
      C(ActiveState), with V(starting) for a server that runs and has not answered yet.
  type: str
  returned: success
  sample: active
ready:
  description: Whether it answered.
  type: bool
  returned: success
reason:
  description: Why it is not ready, empty when it is, or when there is none.
  type: str
  returned: success
  sample: no answer on port 8000
seconds:
  description: How long the answer took.
  type: float
  returned: success
model:
  description: The name that a request gives for the model that runs.
  type: str
  returned: success
  sample: tiny
release:
  description: The release that the running server is of.
  type: str
  returned: success
  sample: cpu-0123456789ab
live_release:
  description: The release that O(link) points at, empty where there is none.
  type: str
  returned: success
  sample: cpu-0123456789ab
vllm:
  description: vLLM's version, as the running release's record says.
  type: str
  returned: success
  sample: 0.32.0
digest:
  description: The digest of the running state.
  type: str
  returned: success
  sample: 0123456789abcdef
port:
  description: The port that it listens on, 0 when that isn't known.
  type: int
  returned: success
  sample: 8000
restarts:
  description: How often systemd has started it again by itself.
  type: int
  returned: success
differs:
  description: What of the running server is not as O(engine_config) says, sorted; C(model), or arguments of vLLM.
  type: list
  elements: str
  returned: success
  sample: [max-model-len]
certificates:
  description: The certificates, each with C(file) and C(pem), which is its text.
  type: list
  elements: dict
  returned: success
"""

import contextlib
import glob
import os
import re
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args, server_guard, server_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_guard import read_text
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import StateError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_states import States

PROPERTIES = (*server_plan.PROPERTIES, "FragmentPath")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n.*?-----END CERTIFICATE-----\n?", re.S)
# What the module of the server adds to the arguments by itself.
_ADDED = re.compile(r"(no-)?(ssl-.*|enable-ssl-refresh|served-model-name)")


def properties(module, name):
    """Return what systemd says of a unit."""
    words = ["systemctl", "show", name, f"--property={','.join(PROPERTIES)}"]
    return server_plan.properties(module.run_command(words)[1])


def blocks(text):
    """Return key → the text of its entry, in a file that `engine_args.render` made."""
    found = {}
    key = ""
    for line in text.splitlines():
        if line and line[0] not in " -#":
            key = line.partition(":")[0].strip("\"'").partition("=")[0]
        if key:
            found[key] = f"{found.get(key, '')}{line}\n"
    return found


def differing(declared, flags, state):
    """Return what of a running state is not as an engine config says.

    Args:
        declared: the engine config.
        flags: the table of arguments, or nothing.
        state: the running state.
    """
    table = flags or None
    arguments = engine_args.flatten(declared)
    # Secrets are compared by the run that would write them.
    for name in ("api-key", "hf-token"):
        arguments.pop(name, None)
    model, others = engine_args.split_model(arguments)
    wanted = blocks(engine_args.render(engine_args.check(others, table), table))
    there = blocks(state.config)
    names = {name for name in {*wanted, *there} - engine_args.SECRET_ARGUMENTS if wanted.get(name) != there.get(name)}
    found = {name for name in names if not (_ADDED.fullmatch(name) and name not in wanted)}
    folder = os.path.realpath(model) if model.startswith("/") else model
    if f" serve {engine_args.unit_word(folder)} " not in state.unit:
        found.add("model")
    if engine_args.served_name(arguments) != state.model:
        found.add("served-model-name")
    return sorted(found)


def look(module):
    """Return what the server is doing."""
    parameters = module.params
    seen = properties(module, parameters["name"])
    found = {
        "server": "none", "ready": False, "reason": "", "seconds": 0.0, "model": "", "release": "", "vllm": "",
        "digest": "", "port": 0, "restarts": int(seen.get("NRestarts") or 0), "differs": [],
    }  # fmt: skip
    if not seen.get("FragmentPath"):
        return found
    unit = read_text(seen["FragmentPath"])
    if not server_plan.digest_in(unit):
        active = seen.get("ActiveState", "")
        return {**found, "server": "foreign", "reason": f"the unit is not of this collection, and {active}; playbooks/"
                "adopt.yml says how it is taken over"}  # fmt: skip
    found["server"] = seen.get("ActiveState") or "unknown"
    pid = int(seen.get("MainPID") or 0)
    digest = running_digest(pid)
    if not digest:
        found["reason"] = f"the unit is {found['server']} (systemd says {seen.get('Result')}); see journalctl -u " \
            f"{parameters['name']}"  # fmt: skip
        return found
    states = States(parameters["state_folder"])
    try:
        state = states.load(digest)
    except StateError:
        reason = f"{parameters['state_folder']} has no state {digest}: run site.yml"
        return {**found, "digest": digest, "reason": reason}
    record = server_guard.read_json(os.path.join(state.release, "release.json"))
    found.update(digest=digest, model=state.model, release=state.release_name, vllm=str(record.get("vllm", "")),
                 port=int(state.probe["port"]))  # fmt: skip
    began = time.monotonic()
    answer = server_guard.ask(dict(state.probe), parameters["timeout"])
    found["seconds"] = round(time.monotonic() - began, 3)
    found["ready"] = answer.kind == "answer"
    if not found["ready"]:
        found["reason"] = answer.words
        if digest not in [entry.get("digest") for entry in states.history]:
            found["server"] = "starting"
    if parameters["engine_config"]:
        try:
            found["differs"] = differing(parameters["engine_config"], parameters["flags"], state)
        except engine_args.EngineConfigError as error:
            found["differs"] = [f"the engine config can't be used: {error}"]
    return found


def running_digest(pid):
    """Return the digest that a process carries, "" when there is none."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return server_plan.environment(file.read()).get(server_plan.DIGEST_VARIABLE, "")
    except OSError:
        return ""


def certificates(patterns):
    """Return the first certificate of each file."""
    files = sorted({path for pattern in patterns for path in glob.glob(pattern)})
    found = [(path, _CERTIFICATE.search(read_text(path))) for path in files]
    return [{"file": path, "pem": match[0] if match else ""} for path, match in found]


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            # It may have a key in it, and nobody's log needs it.
            engine_config=dict(type="dict", default={}, no_log=True),
            flags=dict(type="dict", default={}),
            link=dict(type="path", default="/opt/vllm"),
            name=dict(type="str", default="vllm_model_server.service"),
            state_folder=dict(type="path", default="/var/lib/vllm_model_server"),
            certificates=dict(
                type="list", elements="str", default=["/etc/phoenix-hypervisor/certificates/*/fullchain.pem"]
            ),
            timeout=dict(type="int", default=10),
        ),
        supports_check_mode=True,
    )
    # In what is said only secrets are hidden, not each word and number that the config happens to have.
    module.no_log_values.clear()
    # A config that can't be read is told of later.
    with contextlib.suppress(engine_args.EngineConfigError):
        secrets = engine_args.secrets(engine_args.flatten(module.params["engine_config"]))
        module.no_log_values.update(secret for secret in secrets if secret)
    link = module.params["link"]
    live = os.path.basename(os.path.realpath(link)) if os.path.islink(link) else ""
    module.exit_json(
        changed=False, live_release=live, certificates=certificates(module.params["certificates"]), **look(module)
    )


if __name__ == "__main__":
    main()
