# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Health checks, tests and the report of verify.yml, on two containers of the lab.

656 declares a health check and tests, and no model server; site.yml makes it. 657 has a stand-in for vLLM. The JSON
goes through the inventory plugin.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab_modules import OSTEMPLATE, destroy, pct, require_lab, start
from lab_modules import inside as inside_of

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
PLAIN, SERVER = 656, 657
ADDRESSES = {PLAIN: "10.92.0.66", SERVER: "10.92.0.67"}
UNIT = "vllm_model_server.service"
KEY = "key-of-this-t3st"
HARD = """printf '%s|' '{{ 7 * 7 }}' "$HOME" '$(id)' '"q"' "it's" '%n' "two
lines" ünï >/run/said; test ! -e /etc/pve"""
SAID = "{{ 7 * 7 }}|/root|$(id)|\"q\"|it's|%n|two\nlines|ünï|"

# Answers as vLLM does, or as the file says.
SERVER_TEXT = '''#!/usr/bin/python3
import http.server, json, os

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(200 if self.path in ("/health", "/v1/models") else 404, "{}")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer KEY":
            return self.reply(401, '{"error": "Unauthorized"}')
        said = open("/run/says").read() if os.path.exists("/run/says") else ""
        self.reply(200, said or json.dumps({"choices": [{"text": " Paris"}]}))

    def reply(self, status, content):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Answer).serve_forever()
'''.replace("KEY", KEY)


def inside(script: str, vmid: int = PLAIN) -> str:
    """What a shell script in a container prints."""
    return inside_of(vmid, script)


def entry(vmid: int, **keys) -> dict:
    """A container's entry in the JSON."""
    network = {"name": "eth0", "bridge": "vmbr0", "ip": f"{ADDRESSES[vmid]}/24", "gw": "10.92.0.1"}
    return {
        "name": f"verify{vmid}", "template": OSTEMPLATE, "storage_pool": "local-btrfs", "storage_size_gb": 2,
        "memory_mb": 256, "cores": 2, "pct_options": ["nesting=1"], "network_config": network, **keys,
    }  # fmt: skip


class Site:
    """An inventory of the two, and what is run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inventory = folder / "inventory"
        self.inventory.mkdir()
        scripts = folder / "tests" / "own"
        scripts.mkdir(parents=True)
        (scripts / "good.sh").write_text('#!/bin/sh\ntest "$PHOENIX_CTID" = 656 && echo "{{ all }} is \\"well\\""\n')
        (scripts / "bad.py").write_text(
            "#!/usr/bin/python3\nimport os, sys\nprint('\\033[31mred\\033[0m')\n"
            "print(os.path.dirname(sys.argv[0]))\nsys.exit('it is {% bad %}')\n"
        )
        (scripts / "plain").write_text("echo no first line; test -z \"$API_KEY\"\n")
        (scripts / "slow.sh").write_text("#!/bin/sh\nsleep 300 & echo begun; wait\n")
        (scripts / "key.sh").write_text('#!/bin/sh\necho "the key is $API_KEY at $PHOENIX_URL"; exit 3\n')
        nodes = {
            "pve": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
            "far": {"ansible_host": "127.0.0.1", "ansible_port": 9},
        }
        source = {"plugin": "phoenix.hypervisor.lxc_configs", "config_files": ["c.json"], "nodes": nodes,
                  "default_node": "pve"}  # fmt: skip
        (self.inventory / "lxc_configs.yml").write_text(yaml.safe_dump(source))

    def declare(self, **entries: dict) -> None:
        """Write the JSON."""
        content = {"lxc_configs": {name[1:]: entries[name] for name in entries}}
        (self.inventory / "c.json").write_text(json.dumps(content))

    def run(self, playbook: str, *options: str, code: int = 0, keep_lines: bool = False, **variables) -> str:
        """Run a playbook to its end, which must be this one. Returns what was said, without the YAML's folding."""
        variables = {"verify_report_folder": str(self.folder / "report"), **variables}
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.inventory / "lxc_configs.yml"),
             playbook, "-e", json.dumps(variables), *options],
            cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert 'File "<' not in said and KEY not in said, said
        return said if keep_lines else " ".join(said.split())

    def verify(self, *options: str, code: int = 0, **variables) -> str:
        """Run verify.yml, which never changes anything."""
        said = self.run("playbooks/verify.yml", *options, code=code, **variables)
        assert not re.search(r"changed=[1-9]", said), said
        return said

    def report(self) -> dict:
        """The last report, by container and check."""
        report = json.loads((self.folder / "report/verify.json").read_text())
        assert KEY not in json.dumps(report) + (self.folder / "report/verify.txt").read_text()
        checks = {}
        for container in report["containers"]:
            for check in container["checks"]:
                checks[container["host"], check.get("name") or check["check"]] = check
        return {**report, "by_name": checks}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    require_lab()
    destroy(PLAIN, SERVER)
    try:
        yield Site(tmp_path_factory.mktemp("site"))
    finally:
        destroy(PLAIN, SERVER)


def test_a_health_check_gates_the_run_that_makes_a_container(site):
    command = "echo tried >>/run/tries; echo 'Connection \"refused\"' >&2; exit 7"
    site.declare(c656=entry(PLAIN, health_check={"command": command, "retries": 2, "interval": 0}))
    said = site.run("site.yml", code=2)
    assert "CTID 656: health_check: `echo tried >>/run/tries;" in said
    assert "failed in each of 3 tries, the last time: exit code 7. The last that it said:" in said
    assert 'Connection "refused"' in said
    assert inside("wc -l </run/tries") == "3"


def test_a_command_arrives_as_it_is_and_no_other_shell_sees_it(site):
    tests = {"health": [{"name": "must not run", "type": "command", "path": "touch /run/ran"}]}
    site.declare(c656=entry(PLAIN, health_check={"command": HARD}, tests=tests))
    assert "changed=0" in site.run("site.yml")
    assert inside("cat /run/said") == SAID.strip()
    assert inside("ls /run/ran 2>&1 || true").endswith("No such file or directory"), "site.yml ran a test"
    inside("rm /run/said")
    site.run("site.yml", "--check")
    assert inside("ls /run") and "said" not in inside("ls /run")


def test_a_command_that_hangs_is_ended(site):
    site.declare(c656=entry(PLAIN, health_check={"command": "sleep 987 & wait", "retries": 0}))
    began = time.monotonic()
    said = site.run("site.yml", code=2, verify_health_check_timeout=2)
    assert "failed: it was still running after 2 s and was ended, with all that it had started." in said
    assert time.monotonic() - began < 40 and inside("pgrep -f '^sleep 987' || true") == ""


def test_all_tests_are_run_and_told(site):
    tests = {
        "health_checks": [
            {"name": "good", "type": "script", "path": "own/good.sh"},
            {"name": "bad", "path": "own/bad.py"},
            {"name": "plain", "type": "script", "path": "own/plain"},
            {"name": "inside", "type": "script", "path": "/bin/true"},
        ],
        "integration_tests": [
            {"name": "slow", "type": "script", "path": "own/slow.sh"},
            {"name": "none", "type": "script", "path": "own/none.sh"},
            {"name": "odd", "type": "magic", "path": "x"},
            {"name": "command", "type": "command", "path": "test 1 = 2 || exit 4"},
            {"name": "http", "type": "http", "path": f"http://{ADDRESSES[PLAIN]}:9/health"},
        ],
    }
    site.declare(c656=entry(PLAIN, health_check={"command": "true"}, tests=tests))
    said = site.verify(code=2, keep_lines=True, verify_test_timeout=3)
    report = site.report()
    found = {name: check["result"] for (_host, name), check in report["by_name"].items()}
    assert found == {
        "health_check": "passed", "good": "passed", "bad": "failed", "plain": "passed", "inside": "passed",
        "slow": "failed", "none": "failed", "odd": "failed", "command": "failed", "http": "failed",
    }  # fmt: skip
    assert report["counts"] == {"containers": 1, "checks": 10, "passed": 4, "failed": 6, "skipped": 0}
    bad = report["by_name"]["ctid_656", "bad"]
    assert bad["message"] == "`own/bad.py` failed: exit code 1"
    folder = bad["lines"][1] if bad["lines"][0] == "red" else bad["lines"][-1]
    assert sorted(bad["lines"]) == sorted(["red", "it is {% bad %}", folder])
    assert inside(f"ls -d {folder} /tmp/phoenix-test-* 2>/dev/null || true") == "", "the script was left behind"
    assert report["by_name"]["ctid_656", "slow"]["lines"][0] == "begun"
    folder = site.folder / "tests"
    assert f"there is no own/none.sh in {folder}, " in report["by_name"]["ctid_656", "none"]["message"]
    message = "there is no type of tests 'magic'; write script, command or http"
    assert report["by_name"]["ctid_656", "odd"]["message"] == message
    assert "exit code 4" in report["by_name"]["ctid_656", "command"]["message"]
    assert "no answer: " in report["by_name"]["ctid_656", "http"]["message"]
    text = (site.folder / "report/verify.txt").read_text()
    assert re.search(r"^ctid_656 +test health_checks/good +passed +0\.\d", text, re.M) and text.strip() in said
    assert "ctid_656, test health_checks/bad: `own/bad.py` failed: exit code 1. The last that it said:\n    " in text
    assert "1 container, 10 checks: 4 passed, 6 failed." in text


def test_groups_of_tests(site):
    site.verify(verify_groups="health_checks", verify_tests={"health_checks": [{"path": "own/good.sh"}]})
    said = site.verify(code=2, verify_groups="nope, health_checks")
    assert "there is no group nope. The containers of this run have health_checks, integration_tests" in said
    said = site.verify("--check", code=2, verify_groups="integration_tests")
    assert "ctid_656 test integration_tests/command skipped not run in check mode ctid_656" in said
    assert "ctid_656 did not pass: test integration_tests/none, test integration_tests/odd." in said


def test_a_node_that_cannot_be_reached(site):
    config = {"ModelConfig": {"model": "m"}}
    site.declare(
        c656=entry(PLAIN, health_check={"command": "true"}),
        c657=entry(SERVER, node="far", application_script="phoenix_hypervisor_lxc_vllm.sh", vllm_engine_config=config,
                   health_check={"command": "true"}, tests={"t": [{"type": "command", "path": "true"}]}),
    )  # fmt: skip
    said = site.verify(code=2)
    found = {name: check["result"] for name, check in site.report()["by_name"].items()}
    assert found == {
        ("ctid_656", "health_check"): "passed", ("ctid_657", "unit"): "failed", ("ctid_657", "release"): "skipped",
        ("ctid_657", "completion"): "failed", ("ctid_657", "health_check"): "failed", ("ctid_657", "true"): "failed",
    }  # fmt: skip
    assert "it can't be reached: " in site.report()["by_name"]["ctid_657", "true"]["message"]
    assert "ctid_657 did not pass: unit, completion, health_check, test t/true." in said


def test_a_model_server_beside_a_container_that_is_stopped(site):
    """657 has the server; 656 is stopped."""
    server = {"ModelConfig": {"model": "/models/good"}, "ServerConfig": {"port": 8000, "served_model_name": "good"}}
    models = {"name": "models", "type": "http", "path": "/v1/models"}
    site.declare(
        c656=entry(PLAIN, health_check={"command": "true"}),
        c657=entry(
            SERVER, vllm_engine_config=server, application_script="phoenix_hypervisor_lxc_vllm.sh", vllm_stack="cpu",
            health_check={"command": "test \"$PHOENIX_MODEL\" = good"},
            tests={"health": [models, {"name": "key", "path": "own/key.sh"}]},
        ),
    )  # fmt: skip
    network = f"name=eth0,bridge=vmbr0,ip={ADDRESSES[SERVER]}/24,gw=10.92.0.1"
    pct("create", str(SERVER), OSTEMPLATE, "--rootfs", "local-btrfs:2", "--unprivileged", "1", "--memory", "256",
        "--features", "nesting=1", "--hostname", f"verify{SERVER}", "--net0", network)  # fmt: skip
    start(SERVER)
    (site.folder / "vllm").write_text(SERVER_TEXT)
    inside("mkdir -p /opt/vllm-releases/own-1/bin", SERVER)
    pct("push", str(SERVER), str(site.folder / "vllm"), "/opt/vllm-releases/own-1/bin/vllm", "--perms", "0755")
    inside(
        f"printf '%s\\n' '[Service]' 'ExecStart=/opt/vllm-releases/own-1/bin/vllm' '[Install]' "
        f"WantedBy=multi-user.target >/etc/systemd/system/{UNIT}; systemctl --quiet enable --now {UNIT}",
        SERVER,
    )
    pct("stop", str(PLAIN))
    said = site.verify("-vvv", code=2, vllm_model_server_api_key=KEY)
    report = site.report()
    found = {name: check["result"] for name, check in report["by_name"].items()}
    assert found == {
        ("ctid_656", "health_check"): "failed", ("ctid_657", "unit"): "passed", ("ctid_657", "release"): "passed",
        ("ctid_657", "completion"): "passed", ("ctid_657", "health_check"): "passed",
        ("ctid_657", "models"): "passed", ("ctid_657", "key"): "failed",
    }  # fmt: skip
    assert "CTID 656 is not running; start it" in report["by_name"]["ctid_656", "health_check"]["message"]
    assert report["by_name"]["ctid_657", "key"]["lines"] == [f"the key is *** at http://{ADDRESSES[SERVER]}:8000"]
    containers = {found["host"]: found for found in report["containers"]}
    assert containers["ctid_657"]["answer"] == " Paris" and containers["ctid_657"]["release"] == "own-1"
    assert '-H "Authorization: Bearer $API_KEY"' in said.replace("\\", "")
    assert "ctid_656 did not pass: health_check." in said and "ctid_657 did not pass: test health/key." in said
    # A limit leaves the other out.
    site.verify("-l", "ctid_657", vllm_model_server_api_key=KEY, verify_tests={})
    assert [found["host"] for found in site.report()["containers"]] == ["ctid_657"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("<b>{{ no }}</b>", "/v1/completions is no JSON, so no vLLM; see what listens there: <b>{{ no }}</b>"),
        ('["a"]', '/v1/completions gave no text: ["a"]'),
    ],
)
def test_something_else_answers(site, said, message):
    (site.folder / "says").write_text(said)
    pct("push", str(SERVER), str(site.folder / "says"), "/run/says")
    shown = site.verify("-l", "ctid_657", code=2, vllm_model_server_api_key=KEY, verify_tests={})
    assert message in shown
    assert site.report()["by_name"]["ctid_657", "completion"]["message"].endswith(message)


def test_what_runs_is_looked_at(site):
    inside(f"rm -f /run/says; systemctl --quiet disable {UNIT}; systemctl stop {UNIT}", SERVER)
    said = site.verify("-l", "ctid_657", code=2, vllm_model_server_api_key=KEY, verify_tests={})
    unit = site.report()["by_name"]["ctid_657", "unit"]["message"]
    assert "is not active, but inactive" in unit and "is not enabled" in unit
    assert site.report()["by_name"]["ctid_657", "release"]["result"] == "skipped"
    assert "no answer: " in site.report()["by_name"]["ctid_657", "completion"]["message"]
    assert "check that the address is reachable from the node" in said
