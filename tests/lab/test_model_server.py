# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model server's unit, its changes and their undoing, for real systemd, in a container of the lab.

A small program stands in for vLLM: it takes the same command line and answers the same requests, in a second. How it
behaves is the name of the model. What vLLM itself does is in test_vllm_roles.py. One container (CTID 650) serves all
tests of this file, in their order.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab_modules import OSTEMPLATE, destroy, pct, require_lab, wait_until
from lab_modules import inside as inside_of

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
VMID, ADDRESS, PORT = 650, "10.92.0.65", 8000
UNIT = "vllm_model_server.service"
KEY, TOKEN = "key-of-this-t3st-$HOME\"%n'", "hf_t0ken-of-this-test"
ONE, TWO, BROKEN = "fake-111111111111", "fake-222222222222", "fake-333333333333"

VLLM = '''#!/usr/bin/python3
import http.server, json, os, signal, sys, time

assert sys.argv[1] == "serve" and sys.argv[3] == "--config", sys.argv
release = os.path.realpath(__file__).split("/")[3]
model, behaviour = sys.argv[2], os.path.basename(sys.argv[2])
lines = dict(line.rstrip("\\n").split(": ", 1) for line in open(sys.argv[4]) if ": " in line)
if os.path.exists(os.path.join(os.path.dirname(__file__), "broken")):
    behaviour = "dies"


def say(text):
    print("(EngineCore pid=9) INFO 11-21 05:06:44 [core.py:402] " + text, flush=True)


say("serving " + model)
if behaviour == "dies":
    say("Traceback (most recent call last):")
    say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 31.36 GiB")
    sys.exit(1)
if behaviour == "hangs":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        say("Loading safetensors checkpoint shards: 10% Completed")
        time.sleep(1)
if behaviour.startswith("slow"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for shard in range(1, 21):
        say(f"Loading safetensors checkpoint shards: {shard * 5}% Completed")
        time.sleep(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
for folder in ("HF_HOME", "VLLM_CACHE_ROOT", "FLASHINFER_WORKSPACE_BASE"):
    os.makedirs(os.environ[folder], exist_ok=True)
    open(os.environ[folder] + "/written", "w").close()


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(200, {"data": [{"id": model}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        key = os.environ.get("VLLM_API_KEY")
        if key and self.headers["Authorization"] != "Bearer " + key:
            return self.reply(401, {"error": "Unauthorized"})
        self.reply(200, {"choices": [{"text": f"{release} {behaviour} {lines.get('max-num-seqs')}"}]})

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


http.server.ThreadingHTTPServer(("0.0.0.0", int(lines.get("port", 8000))), Answer).serve_forever()
'''


def inside(script: str) -> str:
    """What a shell script in the container prints."""
    return inside_of(VMID, script)


def answer(key: str = KEY) -> str:
    """What the server says, over the network: its release, its model and an argument of it."""
    body = json.dumps({"model": "m", "prompt": "Hello"}).encode()
    request = urllib.request.Request(f"http://{ADDRESS}:{PORT}/v1/completions", body)
    request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=20) as reply:
        return json.load(reply)["choices"][0]["text"]


def answers() -> bool:
    """Whether it says anything."""
    try:
        return bool(answer())
    except OSError:
        return False


def main_pid() -> str:
    """The server's process."""
    return inside(f"systemctl show --value --property=MainPID {UNIT}")


def use(release: str) -> None:
    """What the role vllm_stack does at the end: another release is live."""
    inside(f"ln -sfn /opt/vllm-releases/{release} /opt/vllm.new && mv -T /opt/vllm.new /opt/vllm")


def live() -> tuple[str, str, str, str]:
    """What is live: release, unit, engine config and secrets."""
    return (
        inside("readlink /opt/vllm"),
        inside(f"cat /etc/systemd/system/{UNIT}"),
        inside("ls /etc/vllm; cat /etc/vllm/engine.yaml"),
        inside("cat /etc/vllm/secrets-*.env"),
    )


class Site:
    """An inventory with the one container, and what is run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stack = folder / "stacks" / "fake"
        stack.mkdir(parents=True)
        (stack / "stack.yml").write_text(yaml.safe_dump({"name": "fake", "gpu": False}))
        self.engine_config("good")

    def engine_config(self, model: str, **others) -> dict:
        """The variables of the role for a model."""
        config = {"ModelConfig": {"model": f"/models/{model}"}, "ServerConfig": {"port": PORT, **others}}
        return {"vllm_model_server_engine_config": config}

    def command(self, options: tuple, playbook: str, variables: dict) -> list[str]:
        """The command line of a run."""
        node = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        container = {
            "ansible_connection": "phoenix.hypervisor.pct", "ansible_pct_vmid": VMID, "ansible_host": "localhost",
            "ansible_pct_node_connection": "local", "ansible_python_interpreter": "/usr/bin/python3",
            "phoenix_node": "pve", "container_address": ADDRESS, "vllm_stack_name": "fake",
            "vllm_model_server_stack_folders": [str(self.folder / "stacks")], "vllm_model_server_ready_timeout": 60,
            "vllm_model_server_stop_timeout": 5, "vllm_model_server_api_key": KEY,
            "vllm_model_server_huggingface_token": TOKEN, **self.engine_config("good"), **variables,
        }  # fmt: skip
        hosts = {"pve": node, f"ctid_{VMID}": container}
        inventory = {"all": {"hosts": {"pve": node}, "children": {"phoenix_containers": {
            "hosts": {f"ctid_{VMID}": hosts[f"ctid_{VMID}"]}}}}}  # fmt: skip
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        tasks = [{"ansible.builtin.include_role": {"name": "phoenix.hypervisor.vllm_model_server"}}]
        play = [{"hosts": f"ctid_{VMID}", "gather_facts": False, "tasks": tasks}]
        (self.folder / "play.yml").write_text(yaml.safe_dump(play))
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        return [program, "-i", str(self.folder / "hosts.yml"), playbook or str(self.folder / "play.yml"), *options]

    def start(self, *options: str, playbook: str = "", **variables) -> subprocess.Popen[str]:
        """Start a run of the role, or of a playbook, in a process group of its own."""
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                       "COLUMNS": "9999", "USER": "somebody"}  # fmt: skip
        return subprocess.Popen(
            self.command(options, playbook, variables), cwd=ROOT, env=environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *options: str, playbook: str = "", code: int = 0, **variables) -> str:
        """The same, to its end, which must be this one. Returns what was said, without the YAML's folding."""
        process = self.start(*options, playbook=playbook, **variables)
        said, _nothing = process.communicate(timeout=300)
        assert process.returncode == code, said
        assert 'File "<' not in said, said
        assert KEY not in said and TOKEN not in said, said
        return " ".join(said.replace("''", "'").split())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    """A container with three releases and some models."""
    require_lab()
    destroy(VMID)
    pct(
        "create", str(VMID), OSTEMPLATE, "--rootfs", "local-btrfs:2", "--unprivileged", "1", "--memory", "512",
        "--features", "nesting=1", "--hostname", f"server{VMID}", "--cores", "2",
        "--net0", f"name=eth0,bridge=vmbr0,ip={ADDRESS}/24,gw=10.92.0.1",
    )  # fmt: skip
    try:
        pct("start", str(VMID))
        folder = tmp_path_factory.mktemp("site")
        (folder / "vllm").write_text(VLLM)
        inside("mkdir -p " + " ".join(f"/opt/vllm-releases/{name}/bin" for name in (ONE, TWO, BROKEN)))
        inside("mkdir -p /models/good /models/other /models/dies /models/hangs /models/slow")
        for name in (ONE, TWO, BROKEN):
            pct("push", str(VMID), str(folder / "vllm"), f"/opt/vllm-releases/{name}/bin/vllm", "--perms", "0755")
            record = json.dumps({"release": name, "vllm": "0.10.2", "flashinfer": ""})
            inside(f"echo '{record}' >/opt/vllm-releases/{name}/release.json")
        inside(f"touch /opt/vllm-releases/{BROKEN}/bin/broken")
        use(ONE)
        yield Site(folder)
    finally:
        destroy(VMID)


def test_a_first_start_that_fails_has_nothing_to_go_back_to(site):
    said = site.run(code=2, **site.engine_config("dies"))
    assert "It was the server's first start: there is no former state to go back to." in said
    assert "torch.OutOfMemoryError: CUDA out of memory." in said
    assert "lower max_model_len" in said and "failure: CUDA out of memory" in said
    assert "serving /models/dies" in said, "its last lines"


def test_check_mode_and_the_run_have_one_plan(site):
    # systemd goes on trying that one for a while.
    inside(f"systemctl stop {UNIT}")
    shown = site.run("--check", "--diff")
    assert inside("ls /var/lib/vllm_model_server/history.json 2>/dev/null || true") == ""
    done = site.run("--diff")
    steps = [re.findall(r" (write /etc/vllm/engine.yaml .*?) changed:", text) for text in (shown, done)]
    assert steps[0] == steps[1] and "start vllm_model_server.service" in steps[0][0]
    assert answer() == f"{ONE} good None"


def test_a_second_run_changes_nothing(site):
    pid = main_pid()
    before = inside("cd / && find etc/vllm etc/systemd var/lib/vllm_model_server usr/local opt/vllm -newer /proc/1")
    state = inside("cat /var/lib/vllm_model_server/*.json /etc/vllm/*")
    assert "changed=0" in site.run()
    assert main_pid() == pid
    assert inside("cat /var/lib/vllm_model_server/*.json /etc/vllm/*") == state
    assert inside(
        "cd / && find etc/vllm etc/systemd var/lib/vllm_model_server usr/local opt/vllm -newer /proc/1"
    ) == before


def test_the_unit(site):
    assert inside(f"systemd-analyze verify /etc/systemd/system/{UNIT} 2>&1") == ""
    assert inside(f"systemctl is-enabled {UNIT}") == "enabled"
    command = inside(f"tr '\\0' ' ' </proc/{main_pid()}/cmdline")
    assert f"/opt/vllm-releases/{ONE}/bin/vllm serve /models/good --config /etc/vllm/engine-" in command
    variables = inside(f"tr '\\0' '\\n' </proc/{main_pid()}/environ").splitlines()
    assert f"VLLM_API_KEY={KEY}" in variables and f"HF_TOKEN={TOKEN}" in variables
    # The stand-in has written there as the service's user.
    assert "HF_HOME=/var/cache/vllm/huggingface" in variables
    assert not [line for line in variables if line.startswith(("VLLM_USE_FLASHINFER", "CUDA_HOME", "LD_LIB"))]
    status = inside(f"grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid)' /proc/{main_pid()}/status")
    assert re.search(r"CapBnd:\s0+\n", status) and "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    score = inside(f"systemd-analyze security --no-pager {UNIT} | tail -1")
    assert float(re.search(r": ([\d.]+) ", score)[1]) <= 2.5, score


def test_secrets_are_in_root_s_files_only(site):
    found = inside(
        f"grep -rlF '{TOKEN}' /etc /var /run /tmp /usr/local /opt /root --exclude-dir=journal 2>/dev/null || true"
    ).split()
    assert len(found) == 2, found
    assert re.fullmatch(r"/etc/vllm/secrets-[0-9a-f]{16}\.env", found[0])
    assert re.fullmatch(r"/var/lib/vllm_model_server/states/[0-9a-f]{16}\.json", found[1])
    assert inside(f"stat -c '%U %a' {' '.join(found)} /var/lib/vllm_model_server") == "root 600\nroot 600\nroot 700"
    assert inside("journalctl --no-pager -o verbose | grep -cE 't0ken-of-this|of-this-t3st' || true") == "0"
    lines = inside("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c 't0ken-of-[t]his' || true")
    assert lines == "0"
    assert "of-this-t" not in inside(f"systemctl show {UNIT}; systemctl cat {UNIT}")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        answer("another")


def test_a_change_is_kept_and_restarts_once(site):
    pid = main_pid()
    said = site.run("--diff", **site.engine_config("good", max_num_seqs=2))
    assert "+max-num-seqs: 2" in said and "changed=1" in said
    assert main_pid() != pid and answer() == f"{ONE} good 2"
    assert len(inside("ls /etc/vllm").split()) == 3, "engine.yaml, what it stands for, and the secrets"
    assert "changed=0" in site.run(**site.engine_config("good", max_num_seqs=2))


@pytest.mark.parametrize(
    ("release", "variables", "why"),
    [
        (TWO, {"model": "dies"}, "torch.OutOfMemoryError: CUDA out of memory."),
        (BROKEN, {"model": "good", "max_num_seqs": 2}, "torch.OutOfMemoryError: CUDA out of memory."),
        (TWO, {"model": "hangs"}, "did not answer within 6 s"),
        (ONE, {"model": "good", "open_files": 4}, "The server may have too few files open"),
    ],
    ids=["bad engine config", "bad release", "hangs and ignores SIGTERM", "bad unit"],
)
def test_a_change_that_fails_is_undone(site, release, variables, why):
    before = live()
    config = {name: variables[name] for name in ("model", "max_num_seqs") if name in variables}
    extra = {f"vllm_model_server_{name}": variables[name] for name in ("open_files",) if name in variables}
    if variables["model"] == "hangs":
        extra["vllm_model_server_ready_timeout"] = 6
    use(release)
    began = time.monotonic()
    said = site.run(code=2, **site.engine_config(**config), **extra)
    assert why in said and "The change was undone: release" in said, said
    assert f"release {ONE} with the unit and engine config" in said and "is live again and answered" in said
    assert live() == before
    assert answer() == f"{ONE} good 2"
    assert time.monotonic() - began < 45
    assert inside(f"systemctl is-active {UNIT}") == "active"
    entry = json.loads(inside("tail -n 1 /var/lib/vllm_model_server/rollbacks.jsonl"))
    assert (entry["by_itself"], entry["answered"], entry["who"]) == (True, True, "somebody")
    assert "changed=0" in site.run(**site.engine_config("good", max_num_seqs=2)), "the former state is the declared one"


def test_why_it_ended_is_kept(site):
    entries = [json.loads(line) for line in inside("cat /var/lib/vllm_model_server/ends.jsonl").splitlines()]
    told = [line for entry in entries if entry["result"] == "exit-code" for line in entry["lines"]]
    assert any("CUDA out of memory" in line for line in told)
    assert inside("stat -c %a /var/lib/vllm_model_server/ends.jsonl") == "600"


def test_progress_is_shown_while_it_loads(site):
    said = site.run(**site.engine_config("slow"))
    assert re.search(rf"\[ctid_{VMID}\] the model server is loading, for \d+ s: .*shards: \d+% Completed", said), said
    assert "changed=1" in said and answer() == f"{ONE} slow None"
    assert "changed=1" in site.run(**site.engine_config("good", max_num_seqs=2))


@pytest.mark.parametrize(
    "moment", [0.2, *(pytest.param(seconds, marks=pytest.mark.full) for seconds in (0.0, 0.1, 0.4, 0.7, 1.0, 1.5, 2.5))]
)
def test_a_run_that_is_killed_in_the_middle(site, moment):
    """The container starts one state whole, and the next run gets to what is declared or back."""
    use(ONE)
    site.run(**site.engine_config("good", max_num_seqs=2))
    use(TWO)
    unit = inside(f"cat /etc/systemd/system/{UNIT}")
    change = site.engine_config("other", max_num_seqs=int(10 * moment))
    states = "ls /var/lib/vllm_model_server/states"
    before = inside(states)
    process = site.start(**change)
    # From the first thing that it writes on.
    wait_until(lambda: inside(states) != before, 60)
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # What it had started inside ends with it, by the connection.
    wait_until(lambda: inside("pgrep -fc '^/usr/bin/python3$' || true") == "0", 30)
    inside(f"systemctl daemon-reload; systemctl reset-failed {UNIT}; systemctl restart {UNIT}")
    wait_until(answers, 60)
    started = answer()
    changed = inside(f"cat /etc/systemd/system/{UNIT}") != unit
    assert started == (f"{TWO} other {int(10 * moment)}" if changed else f"{ONE} good 2")
    site.run(**change)
    assert answer() == f"{TWO} other {int(10 * moment)}"
    assert "changed=0" in site.run(**change)


def test_a_killed_change_to_something_bad_is_undone_by_the_next_run(site):
    use(ONE)
    site.run(**site.engine_config("good", max_num_seqs=2))
    before = live()
    process = site.start(**site.engine_config("hangs"))
    wait_until(lambda: "hangs" in inside(f"cat /etc/systemd/system/{UNIT}"), 60)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    said = site.run(code=2, vllm_model_server_ready_timeout=5, **site.engine_config("hangs"))
    assert "The change was undone" in said
    assert live() == before and answer() == f"{ONE} good 2"


def test_going_back_on_purpose(site):
    use(TWO)
    site.run(**site.engine_config("other"))
    playbook = str(ROOT / "playbooks/rollback.yml")
    shown = site.run("--check", playbook=playbook)
    assert answer() == f"{TWO} other None", "check mode went back"
    assert f"point /opt/vllm at /opt/vllm-releases/{ONE}" in shown
    done = site.run(playbook=playbook, phoenix_rollback_reason="it talks nonsense")
    assert "changed=1" in done and answer() == f"{ONE} good 2"
    assert inside("readlink /opt/vllm") == f"/opt/vllm-releases/{ONE}"
    entry = json.loads(inside("tail -n 1 /var/lib/vllm_model_server/rollbacks.jsonl"))
    assert (entry["who"], entry["why"], entry["by_itself"]) == ("somebody", "it talks nonsense", False)
    said = site.run(playbook=playbook, code=2, phoenix_rollback_to="0000")
    assert "There is no state 0000. Kept are: " in said and f"release {TWO}, model /models/other" in said
    site.run(playbook=playbook, phoenix_rollback_to=TWO)
    assert answer() == f"{TWO} other None"


def test_it_starts_with_the_container(site):
    state = answer()
    pct("reboot", str(VMID))
    wait_until(answers, 60)
    assert answer() == state


def test_verify_sees_what_is_not_right(site):
    playbook = str(ROOT / "playbooks/verify.yml")
    site.run(playbook=playbook, **site.engine_config("other"))
    inside(f"systemctl --quiet disable {UNIT}")
    assert "is not enabled" in site.run(playbook=playbook, code=2, **site.engine_config("other"))
    inside(f"systemctl --quiet enable {UNIT}; systemctl stop {UNIT}")
    assert "is not active" in site.run(playbook=playbook, code=2, **site.engine_config("other"))
    inside(f"systemctl start {UNIT}")


def test_caches_are_on_the_model_s_volume_where_it_can_be_written(site):
    inside("mkdir -p /volume && mount -t tmpfs tmpfs /volume && mkdir /volume/good")
    config = {"ModelConfig": {"model": "/volume/good"}, "ServerConfig": {"port": PORT}}
    site.run(vllm_model_server_engine_config=config)
    assert inside(f"stat -c %U /volume/.vllm-cache/server{VMID}/huggingface/written") == "vllm"
    assert "changed=0" in site.run(vllm_model_server_engine_config=config)
