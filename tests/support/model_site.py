# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container of the lab with a model server, as a site has it. A program stands in for vLLM (vllm_stand_in.py)."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml
from lab_modules import OSTEMPLATE, ROOT, destroy, pct, start, wait_until
from lab_modules import inside as inside_of

PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
PORT = 8000
UNIT = "vllm_model_server.service"
KEY, TOKEN = "key-of-this-t3st-$HOME\"%n'", "hf_t0ken-of-this-test"
RELEASE = "fake-111111111111"
VLLM = Path(__file__).with_name("vllm_stand_in.py")


class Site:
    """An inventory with one container, and what is run on it.

    :ivar variables: what the container has besides in the inventory
    :ivar ca: the file of the CA that is trusted, where the server has a certificate; that has its address in it
    """

    def __init__(self, vmid: int, address: str, folder: Path) -> None:
        self.vmid, self.address, self.folder = vmid, address, folder
        self.variables: dict = {}
        self.ca = ""
        stack = folder / "stacks" / "fake"
        stack.mkdir(parents=True)
        (stack / "stack.yml").write_text(yaml.safe_dump({"name": "fake", "gpu": False}))

    def create(
        self, models: Iterable[str] = ("good",), releases: Iterable[str] = (RELEASE,), memory: int = 512, disk: int = 2
    ) -> None:
        """Make the container, anew, with folders of models and the stand-in as these releases; the first is live."""
        destroy(self.vmid)
        pct(
            "create", str(self.vmid), OSTEMPLATE, "--rootfs", f"local-btrfs:{disk}", "--unprivileged", "1",
            "--memory", str(memory), "--features", "nesting=1", "--hostname", f"server{self.vmid}", "--cores", "2",
            "--net0", f"name=eth0,bridge=vmbr0,ip={self.address}/24,gw=10.92.0.1",
        )  # fmt: skip
        # A container before this one may have had the address, with another MAC.
        subprocess.run(["ip", "neigh", "flush", "to", self.address], check=True)
        start(self.vmid)
        self.inside("mkdir -p " + " ".join(f"/models/{model}" for model in models))
        program = self.folder / "vllm"
        program.write_text(f"#!/usr/bin/python3\n{VLLM.read_text()}")
        for name in releases:
            self.inside(f"mkdir -p /opt/vllm-releases/{name}/bin")
            pct("push", str(self.vmid), str(program), f"/opt/vllm-releases/{name}/bin/vllm", "--perms", "0755")
            record = json.dumps({"release": name, "vllm": "0.10.2", "flashinfer": ""})
            self.inside(f"echo '{record}' >/opt/vllm-releases/{name}/release.json")
        self.use(next(iter(releases)))

    def close(self) -> None:
        """Remove the container."""
        destroy(self.vmid)

    def inside(self, script: str) -> str:
        """What a shell script in the container prints."""
        return inside_of(self.vmid, script)

    def use(self, release: str) -> None:
        """What the role vllm_stack does at the end: another release is live."""
        self.inside(f"ln -sfn /opt/vllm-releases/{release} /opt/vllm.new && mv -T /opt/vllm.new /opt/vllm")

    def answer(self, key: str = KEY) -> str:
        """What the server says, over the network: its release, its model and an argument of it."""
        body = json.dumps({"model": "m", "prompt": "Hello"}).encode()
        scheme, context = ("https", ssl.create_default_context(cafile=self.ca)) if self.ca else ("http", None)
        request = urllib.request.Request(f"{scheme}://{self.address}:{PORT}/v1/completions", body)
        request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=20, context=context) as reply:
            return json.load(reply)["choices"][0]["text"]

    def answers(self) -> bool:
        """Whether it says anything."""
        try:
            return bool(self.answer())
        except OSError:
            return False

    def main_pid(self) -> str:
        """The server's process."""
        return self.inside(f"systemctl show --value --property=MainPID {UNIT}")

    def engine_config(self, model: str, **others) -> dict:
        """The variables of the role for a model."""
        config = {"ModelConfig": {"model": f"/models/{model}"}, "ServerConfig": {"port": PORT, **others}}
        return {"vllm_model_server_engine_config": config}

    def command(self, options: tuple, playbook: str, variables: dict) -> list[str]:
        """The command line of a run."""
        node = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        container = {
            "ansible_connection": "phoenix.hypervisor.pct", "ansible_pct_vmid": self.vmid, "ansible_host": "localhost",
            "ansible_pct_node_connection": "local", "ansible_python_interpreter": "/usr/bin/python3",
            "phoenix_node": "pve", "container_address": self.address, "vllm_stack_name": "fake",
            "vllm_model_server_stack_folders": [str(self.folder / "stacks")], "vllm_model_server_ready_timeout": 60,
            "vllm_model_server_stop_timeout": 5, "vllm_model_server_api_key": KEY,
            "vllm_model_server_huggingface_token": TOKEN, **self.engine_config("good"), **self.variables, **variables,
        }  # fmt: skip
        inventory = {"all": {"hosts": {"pve": node}, "children": {"phoenix_containers": {
            "hosts": {f"ctid_{self.vmid}": container}}}}}  # fmt: skip
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        tasks = [{"ansible.builtin.include_role": {"name": "phoenix.hypervisor.vllm_model_server"}}]
        play = [{"hosts": f"ctid_{self.vmid}", "gather_facts": False, "tasks": tasks}]
        (self.folder / "play.yml").write_text(yaml.safe_dump(play))
        return [PLAYBOOK, "-i", str(self.folder / "hosts.yml"), playbook or str(self.folder / "play.yml"), *options]

    def start(self, *options: str, playbook: str = "", **variables) -> subprocess.Popen[str]:
        """Start a run of the role, or of a playbook, in a process group of its own."""
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                       "COLUMNS": "9999", "USER": "somebody"}  # fmt: skip
        return subprocess.Popen(
            self.command(options, playbook, variables), cwd=ROOT, env=environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def until(self, process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 90) -> None:
        """Wait until a run that was started has come so far. What it said and does is shown where it doesn't."""
        try:
            wait_until(lambda: process.poll() is not None or condition(), seconds)
        except AssertionError:
            does = self.inside("ps -eo pid,ppid,etimes,wchan:20,args")
            os.killpg(process.pid, signal.SIGTERM)
            said = process.communicate(timeout=60)[0]
            raise AssertionError(f"it did not come to that in {seconds} s:\n{said}\n{does}") from None
        assert process.poll() is None or condition(), f"it ended before that:\n{process.communicate()[0]}"

    def run(self, *options: str, playbook: str = "", code: int = 0, **variables) -> str:
        """The same, to its end, which must be this one. Returns what was said, without the YAML's folding."""
        process = self.start(*options, playbook=playbook, **variables)
        said, _nothing = process.communicate(timeout=300)
        assert process.returncode == code, said
        assert 'File "<' not in said, said
        assert KEY not in said and TOKEN not in said, said
        return " ".join(said.replace("''", "'").split())
