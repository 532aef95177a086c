# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text in the JSON that tries to template, to inject shell or to escape into systemd stays text, all the way in.

site.yml itself, with a site's own role, makes container 703 from such a declaration: inventory, node, connection,
engine config, unit and request. A vLLM that only tells what it was started with stands in for the real one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from lab_modules import CONFIGS, OSTEMPLATE, require_lab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
CTID, ADDRESS = 703, "10.92.0.203"
PWNED = Path("/pwned")
LINES = (
    "{{ 7*7 }}", "{{ lookup('pipe', 'touch /pwned') }}", "{% raw %}{# x #}", "$(touch /pwned)", "`touch /pwned`",
    "; touch /pwned;", "'; touch /pwned; '", '"; touch /pwned; "', "\\'$(touch /pwned)", "|| touch /pwned", "* ?",
    "%n %i %% %h", "$HOME ${HOME} $$", "back\\slash \\n \\x41 \\", '" ExecStartPre=/bin/touch /pwned "', "~/x",
    "!unsafe x", "&a *a : - #", "@EXEC_START@ @DIGEST@", "ü\u2028\u202e😀", "a\ttab",
)  # fmt: skip
# Several lines would be several settings of a unit, or several commands.
TEXTS = (
    *LINES, "a\ntouch /pwned\n", "a\n[Service]\nExecStartPre=/bin/touch /pwned\n", "a\\\nb",
    "a\rExecStopPost=/bin/touch /pwned",
)  # fmt: skip
# A folder's name, 255 bytes at most.
MODEL = "/models/" + "".join(text.replace("/", "_") for text in LINES if text.isprintable()).encode()[:255].decode()
# A node's host name, which Ansible itself would split at a comma or a colon.
NODE = "pve {{ 7*7 }}'; touch $(touch pwned) %n\\"
ENTRY = {
    "name": "hostile", "template": OSTEMPLATE, "memory_mb": 256, "swap_mb": 0, "cores": 1,
    "storage_pool": "local-btrfs", "storage_size_gb": 2, "pct_options": ["nesting=1"],
    "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": f"{ADDRESS}/24", "gw": "10.92.0.1"},
    "features": ["stand_in"],
    "application_script": "phoenix_hypervisor_lxc_vllm.sh",
    "vllm_stack": "cpu",
    "vllm_engine_config": {
        "ModelConfig": {"model": MODEL, "hf_overrides": dict(zip(TEXTS, TEXTS[::-1]))},
        "ServerConfig": {"served_model_name": list(TEXTS), "chat_template": "\n".join(TEXTS)},
    },
    # Keys of a site's own, for its own roles and group_vars.
    "texts": list(TEXTS),
    "environment": {f"TEXT_{number}": text for number, text in enumerate(TEXTS)},
}  # fmt: skip

# It says what it was started with, and answers a request with the name of the model that was asked for.
VLLM = '''#!/usr/bin/python3
import http.server, json, os, sys

with open(sys.argv[4], encoding="utf-8") as file:
    told = {"argv": sys.argv[1:], "environment": dict(os.environ), "config": file.read()}
with open("/var/cache/vllm/told.json", "w", encoding="ascii") as file:
    json.dump(told, file)


class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"choices": [{"text": asked["model"]}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.HTTPServer(("0.0.0.0", 8000), Answer).serve_forever()
'''

# The site's own role, for the feature stand_in: texts as file contents, arguments, environment, on the node as well.
ROLE = r"""
- ansible.builtin.set_fact:
    __program: "import json, os, sys; print(json.dumps({'texts': sys.argv[1:], 'environment': dict(os.environ)}))"
# Not by the module file, which takes $HOME in a path for a variable.
- ansible.builtin.command:
    argv: [mkdir, -p, "{{ vllm_model_server_engine_config.ModelConfig.model }}", /opt/vllm/bin]
    expand_argument_vars: false
  changed_when: false
- ansible.builtin.copy: {src: vllm, dest: /opt/vllm/bin/vllm, mode: "0755"}
- ansible.builtin.copy:
    dest: /root/texts.json
    mode: "0600"
    content: "{{ {'texts': phoenix_definition.texts, 'node': phoenix_node} | to_json }}"
- ansible.builtin.command:
    argv: "{{ [ansible_python_interpreter, '-c', __program] + phoenix_definition.texts }}"
    expand_argument_vars: false
  environment: "{{ phoenix_definition.environment }}"
  changed_when: false
  register: by_argv
- ansible.builtin.shell: >-
    {{ [ansible_python_interpreter, '-c', __program] | map('quote') | join(' ') }}
    {{ phoenix_definition.texts | map('quote') | join(' ') }}
  environment: "{{ phoenix_definition.environment }}"
  changed_when: false
  register: by_shell
- ansible.builtin.assert:
    that:
      - (item.stdout | from_json).texts == phoenix_definition.texts
      - phoenix_definition.environment.items() | difference((item.stdout | from_json).environment.items()) == []
  loop: ["{{ by_argv }}", "{{ by_shell }}"]
  loop_control: {label: ""}
- phoenix.hypervisor.pct_container:
    vmid: "{{ phoenix_ctid }}"
    state: started
    config: {description: "{{ phoenix_definition.texts | to_json }}"}
  delegate_to: "{{ phoenix_node }}"
- phoenix.hypervisor.pct_container:
    vmid: "{{ phoenix_ctid }}"
    state: started
    config: {hostname: "{{ item }}"}
  delegate_to: "{{ phoenix_node }}"
  loop: "{{ phoenix_definition.texts }}"
  ignore_errors: true
  register: refused
- ansible.builtin.assert:
    that: refused.results | rejectattr('failed') | length == 0
"""


def site(folder: Path, entry: dict[str, Any]) -> Path:
    """A site with this container: inventory, group_vars and a role."""
    files = {
        "phoenix_lxc_configs.json": {"lxc_configs": {str(CTID): entry}},
        "lxc_configs.yml": {
            "plugin": "phoenix.hypervisor.lxc_configs",
            "nodes": {NODE: {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}},
            "keyed_groups": [{"key": "phoenix_definition.texts", "prefix": "text"}],
        },
        "group_vars/phoenix_containers.yml": {
            "phoenix_feature_roles": {"stand_in": str(folder / "roles" / "stand_in")},
            "vllm_model_server_environment": "{{ phoenix_definition.environment }}",
            "vllm_model_server_ready_timeout": 60,
            "certificate_source": "none",
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    role = folder / "roles" / "stand_in"
    for name, text in {"tasks/main.yml": ROLE, "files/vllm": VLLM}.items():
        (role / name).parent.mkdir(parents=True, exist_ok=True)
        (role / name).write_text(text)
    return folder / "lxc_configs.yml"


def ansible(program: str, source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program of Ansible on the site."""
    return subprocess.run(
        [str(Path(sys.executable).with_name(program)), "-i", str(source), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "COLUMNS": "9999"},
    )  # fmt: skip


def inside(*words: str) -> str:
    """A command in the container that must succeed. Returns stdout."""
    return subprocess.run(
        ["pct", "exec", str(CTID), "--", *words], capture_output=True, text=True, timeout=60, check=True
    ).stdout


@pytest.fixture(autouse=True)
def nothing_was_run() -> Iterator[None]:
    """No text was a command, anywhere."""
    require_lab()
    places = [PWNED, ROOT / "pwned", ROOT / "playbooks" / "pwned", Path.home() / "pwned"]
    assert not any(place.exists() for place in places)
    yield
    found = [place for place in places if place.exists()]
    for place in found:
        place.unlink()
    assert found == []


@pytest.fixture(scope="module")
def converged(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """The container as site.yml made it: the site's source, and what the run said."""
    require_lab()

    def remove() -> None:
        if (CONFIGS / f"{CTID}.conf").exists():
            subprocess.run(["pct", "destroy", str(CTID), "--force"], check=True, capture_output=True)

    remove()
    source = site(tmp_path_factory.mktemp("site"), ENTRY)
    try:
        done = ansible("ansible-playbook", source, "site.yml", "-l", f"ctid_{CTID}")
        assert done.returncode == 0, done.stdout + done.stderr
        yield source, done.stdout
    finally:
        remove()


@pytest.fixture(scope="module")
def told(converged) -> dict[str, Any]:
    """What the model server was started with."""
    return json.loads(inside("cat", "/var/cache/vllm/told.json"))


def test_what_proxmox_cannot_hold_is_refused_with_its_place(tmp_path):
    """Names of hosts, features and storages are no free text: nothing is made from them."""
    source = site(tmp_path, ENTRY)
    bad = {
        str(9000 + number): {**ENTRY, "name": text, "features": [text], "storage_pool": text}
        for number, text in enumerate(TEXTS)
    }
    (tmp_path / "phoenix_lxc_configs.json").write_text(json.dumps({"lxc_configs": bad}, indent=1))
    done = ansible("ansible-inventory", source, "--list")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    for ctid in bad:
        for key in ("name", "features[0]", "storage_pool"):
            assert f"CTID {ctid}, key {key}: " in done.stderr, (bad[ctid]["name"], key)


def test_files_arguments_and_environment_in_the_container(converged):
    """The role's own asserts compared the rest in the run itself."""
    assert json.loads(inside("cat", "/root/texts.json")) == {"texts": list(TEXTS), "node": NODE}
    assert inside("sh", "-c", "ls -d /pwned /root/pwned 2>/dev/null; true") == ""
    assert inside("hostname") == "hostile\n"


def test_the_description_on_the_node(converged):
    lines = [line for line in (CONFIGS / f"{CTID}.conf").read_text().splitlines() if line.startswith("#")]
    assert [json.loads(unquote(line[1:])) for line in lines] == [list(TEXTS)]


def test_the_engine_config_that_vllm_reads(told):
    config = yaml.safe_load(told["config"])
    assert config["served-model-name"] == list(TEXTS)
    assert config["chat-template"] == "\n".join(TEXTS)
    assert json.loads(config["hf-overrides"]) == dict(zip(TEXTS, TEXTS[::-1]))
    assert told["argv"][:3] == ["serve", MODEL, "--config"]
    assert re.fullmatch(r"/etc/vllm/engine-[0-9a-f]{16}\.yaml", told["argv"][3])


def test_the_environment_of_the_unit(told):
    assert {name: told["environment"].get(name) for name in ENTRY["environment"]} == ENTRY["environment"]


def test_the_unit_has_no_more_settings_than_it_was_given(told):
    unit = "vllm_model_server.service"
    done = subprocess.run(
        ["pct", "exec", str(CTID), "--", "systemd-analyze", "verify", f"/etc/systemd/system/{unit}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, unit in done.stderr) == (0, False), done.stderr
    settings = "ExecStartPre,ExecStartPost,ExecStop,ExecStopPost,ExecReload,DropInPaths"
    shown = inside("systemctl", "show", unit, f"--property={settings}").splitlines()
    # The unit's own, which keeps why a server ended.
    own = [line for line in shown if line.partition("=")[2]]
    assert len(own) == 1 and own[0].startswith("ExecStopPost={ path=/usr/bin/python3 ; argv[]=/usr/bin/python3 -I /usr")


def test_the_answer_names_the_model(converged):
    _source, said = converged
    # The server answers with the name that it was asked for: the first served name, a template.
    assert f"answered: '{TEXTS[0]}'" in said


def test_a_second_run_changes_nothing(converged):
    """What was read back is what was written."""
    source, _said = converged
    done = ansible("ansible-playbook", source, "site.yml", "-l", f"ctid_{CTID}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ctid_{CTID}" in done.stdout.rsplit("PLAY RECAP", 1)[1]
    assert "changed=0 " in done.stdout.rsplit("PLAY RECAP", 1)[1]
