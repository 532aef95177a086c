# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers of the lab with the role vllm_stack, as a site has them: an inventory, plays, a store on the node."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml
from lab_modules import OSTEMPLATE, ROOT, destroy, inside, pct, start

PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
GATEWAY = "10.92.0.1"


@dataclass(frozen=True)
class Done:
    """A play that has ended."""

    code: int
    output: str

    @property
    def line(self) -> str:
        """The output in one line; messages are folded in it."""
        return " ".join(self.output.replace("''", "'").split())

    def count(self, vmid: int, word: str) -> int:
        """A number of a container's recap: C(ok), C(changed), C(failed)…"""
        recap = re.search(rf"^ctid_{vmid}\s+:.*?\b{word}=(\d+)", self.output, re.MULTILINE)
        assert recap, self.output
        return int(recap[1])


class Site:
    """Containers, and a store of their own on the node.

    :ivar variables: what all of them have
    """

    def __init__(self, addresses: dict[int, str], disk_gb: int = 4, memory: int = 1024, cores: int = 2, *more: str):
        self.folder = Path(tempfile.mkdtemp(prefix="phoenix-stack-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        self.store = self.folder / "store"
        self.addresses = addresses
        self.variables: dict = {"vllm_stack_store": str(self.store)}
        for vmid, address in addresses.items():
            destroy(vmid)
            pct(
                "create", str(vmid), OSTEMPLATE, "--rootfs", f"local-btrfs:{disk_gb}", "--unprivileged", "1",
                "--memory", str(memory), "--cores", str(cores), "--features", "nesting=1", "--hostname", f"stack{vmid}",
                "--net0", f"name=eth0,bridge=vmbr0,ip={address}/24,gw={GATEWAY}", *more,
            )  # fmt: skip
            start(vmid)

    def close(self) -> None:
        """Remove the containers and the store."""
        destroy(*self.addresses)
        shutil.rmtree(self.folder)

    def inventory(self, **variables) -> Path:
        """Write the inventory. Gives its path."""
        hosts: dict = {"pve": {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}}
        for vmid, address in self.addresses.items():
            hosts[f"ctid_{vmid}"] = {
                "ansible_connection": "phoenix.hypervisor.pct",
                "ansible_pct_vmid": vmid,
                "ansible_pct_node_connection": "local",
                "ansible_host": "localhost",
                "ansible_python_interpreter": "/usr/bin/python3",
                "phoenix_node": "pve",
                "container_address": address,
            }
        groups = {"hosts": hosts, "vars": {**self.variables, **variables}}
        path = self.folder / "hosts.yml"
        path.write_text(yaml.safe_dump({"all": groups}))
        return path

    def start(
        self, *vmids: int, roles=("vllm_stack",), options=(), strategy: str = "linear", **variables
    ) -> subprocess.Popen:
        """Start a play of roles on some of the containers."""
        tasks = [{"ansible.builtin.include_role": {"name": f"phoenix.hypervisor.{name}"}} for name in roles]
        hosts = ":".join(f"ctid_{vmid}" for vmid in vmids)
        # Several may run at the same time.
        play = self.folder / f"play-{'-'.join(map(str, vmids))}.yml"
        play.write_text(yaml.safe_dump([{"hosts": hosts, "gather_facts": False, "strategy": strategy, "tasks": tasks}]))
        return self._start([str(play), *options], variables)

    def _start(self, words: list[str], variables: dict) -> subprocess.Popen:
        return subprocess.Popen(
            [PLAYBOOK, "-i", str(self.inventory(**variables)), *words],
            cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        )  # fmt: skip

    @staticmethod
    def end(process: subprocess.Popen, timeout: float = 1800) -> Done:
        """Wait for a play. A traceback never reaches a user."""
        output = process.communicate(timeout=timeout)[0]
        assert "Traceback" not in output, output
        return Done(process.returncode, output)

    def good(self, *vmids: int, **how) -> Done:
        """Run a play that must succeed."""
        done = self.end(self.start(*vmids, **how))
        assert done.code == 0, done.output
        return done

    def refused(self, *vmids: int, **how) -> str:
        """Run a play that must fail. Gives its output in one line."""
        done = self.end(self.start(*vmids, **how))
        assert done.code == 2, done.output
        return done.line

    def playbook(self, name: str, **variables) -> str:
        """Run a playbook of the collection on the node; it must succeed. Gives its output in one line."""
        words = [f"phoenix.hypervisor.{name}", "-e", json.dumps({"phoenix_target": "pve", **variables})]
        done = self.end(self._start(words, {}))
        assert done.code == 0, done.output
        return done.line

    def kept(self) -> list[str]:
        """The releases whose wheels are in the store, and whole."""
        return sorted(path.parent.name for path in self.store.glob("*/manifest.json"))


def record(vmid: int) -> dict:
    """What the live release of a container says of itself."""
    return json.loads(inside(vmid, "cat /opt/vllm/release.json"))


def live(vmid: int) -> str:
    """The name of the live release of a container."""
    return inside(vmid, "readlink /opt/vllm || true").rpartition("/")[2]


def cut(vmid: int) -> None:
    """Take the network from a container; what runs in it is told nothing."""
    inside(vmid, "ip route del default; ip link set eth0 down; cp -n /etc/resolv.conf /etc/resolv.conf.kept; "
                 ": >/etc/resolv.conf")


def mend(vmid: int) -> None:
    """Give a container its network back."""
    inside(vmid, f"ip link set eth0 up; ip route replace default via {GATEWAY}; "
                 "if [ -f /etc/resolv.conf.kept ]; then cp /etc/resolv.conf.kept /etc/resolv.conf; fi")


def clean(vmid: int) -> None:
    """Leave nothing of a stack in a container."""
    inside(vmid, "systemctl stop vllm_release.service 2>/dev/null; umount /opt/vllm-releases 2>/dev/null; "
                 "rm -rf /opt/vllm /opt/vllm-releases /var/log/vllm-release.log*")
