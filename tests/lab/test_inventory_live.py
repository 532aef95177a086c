# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`live: true` of the inventory plugin: on the node itself, by the REST API, with a node that doesn't answer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_modules import API, OSTEMPLATE, require_lab

pytestmark = pytest.mark.lab
ROOT = Path(__file__).resolve().parents[2]
CTID = 890
ENTRY = {
    "name": "live", "template": OSTEMPLATE, "memory_mb": 256, "swap_mb": 0, "cores": 1, "storage_pool": "local-btrfs",
    "storage_size_gb": 2, "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.92.0.190/24"},
}  # fmt: skip


@pytest.fixture(scope="module")
def container() -> Iterator[None]:
    """A container that runs, as ENTRY declares it."""
    require_lab()
    words = ["--hostname", "live", "--memory", "256", "--swap", "0", "--cores", "1", "--rootfs", "local-btrfs:2"]
    words += ["--net0", "name=eth0,bridge=vmbr0,ip=10.92.0.190/24", "--unprivileged", "1", "--start", "1"]
    subprocess.run(["pct", "create", str(CTID), OSTEMPLATE, *words], check=True, capture_output=True)
    try:
        # It runs before it has its address.
        wait = f"until lxc-info -n {CTID} -iH | grep -q .; do sleep 0.2; done"
        subprocess.run(["sh", "-c", wait], check=True, timeout=60)
        yield
    finally:
        subprocess.run(["pct", "stop", str(CTID)], check=False, capture_output=True)
        subprocess.run(["pct", "destroy", str(CTID)], check=True, capture_output=True)


def read(folder: Path, source: dict[str, Any], entry: dict[str, Any], **environment: str) -> tuple[dict[str, Any], str]:
    """The variables of the container's host, and what was said on stderr."""
    (folder / "phoenix_lxc_configs.json").write_text(json.dumps({"lxc_configs": {str(CTID): entry}}))
    path = folder / "lxc_configs.yml"
    path.write_text(json.dumps({"plugin": "phoenix.hypervisor.lxc_configs", "live": True, **source}))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(path), "--list", "--export"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "COLUMNS": "9999", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or not done.stdout, done.stderr
    return json.loads(done.stdout)["_meta"]["hostvars"][f"ctid_{CTID}"] if done.stdout else {}, done.stderr


LOCAL = {"nodes": {"pve": {"ansible_connection": "local"}}}
UNREACHABLE = {"nodes": {"pve": {"ansible_host": "127.0.0.1", "ansible_port": 9}}}


def api_source() -> tuple[dict[str, Any], dict[str, str]]:
    """A source that asks the lab's API as somebody who may only look; the token is in the environment."""
    access = json.loads(API.read_text())
    source = {**UNREACHABLE, "live_api_host": access["host"], "live_ca_path": access["ca"]}
    return {**source, "live_api_port": access["port"], "live_api_user": access["viewer_user"]}, {
        "PROXMOX_TOKEN_ID": access["viewer_token_id"],
        "PROXMOX_TOKEN_SECRET": access["viewer_token_secret"],
    }


@pytest.mark.usefixtures("container")
def test_by_the_nodes_files(tmp_path: Path) -> None:
    variables, said = read(tmp_path, LOCAL, ENTRY)
    assert said == ""
    assert (variables["phoenix_state"], variables["phoenix_differs"]) == ("running", [])
    assert variables["phoenix_addresses"] == ["10.92.0.190"]
    variables, said = read(tmp_path, LOCAL, {**ENTRY, "cores": 2, "lxc_options": ["lxc.cap.drop=sys_time"]})
    assert variables["phoenix_differs"] == ["cores", "lxc.cap.drop"]


@pytest.fixture
def over_ssh() -> Iterator[dict[str, Any]]:
    """Variables by which this machine is reached through an SSH server of the test's own."""
    # A control socket's path must be short: not below pytest's own folders.
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        folder = Path(name)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        (folder / "config").write_text(
            f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        )
        (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config")]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert "listening" in server.stderr.readline()
            yield {
                "ansible_host": "{{ '127.0.0' ~ '.1' }}",
                "ansible_port": port,
                "ansible_user": "root",
                "ansible_private_key_file": str(folder / "user"),
                "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={folder}/known -o IdentitiesOnly=yes",
                "ansible_control_path_dir": str(folder / "cp"),
                "ansible_ssh_args": "-o ControlMaster=no",
            }
        finally:
            server.terminate()
            server.wait(10)


@pytest.mark.usefixtures("container")
def test_over_ssh(tmp_path: Path, over_ssh: dict[str, Any]) -> None:
    """As ansible-core's own ssh plugin reaches it, with all of its variables, templates too."""
    variables, said = read(tmp_path, {"nodes": {"pve": over_ssh}}, {**ENTRY, "swap_mb": 64})
    assert said == ""
    assert (variables["phoenix_state"], variables["phoenix_differs"]) == ("running", ["swap"])
    assert variables["phoenix_addresses"] == ["10.92.0.190"]


@pytest.mark.usefixtures("container")
def test_by_the_api(tmp_path: Path) -> None:
    source, environment = api_source()
    variables, said = read(tmp_path, source, {**ENTRY, "memory_mb": 512}, **environment)
    assert said == ""
    assert (variables["phoenix_state"], variables["phoenix_differs"]) == ("running", ["memory"])
    assert "phoenix_addresses" not in variables
    assert environment["PROXMOX_TOKEN_SECRET"] not in json.dumps(variables)


@pytest.mark.usefixtures("container")
def test_the_cache_knows_what_was_found(tmp_path: Path) -> None:
    cache = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "cache_connection": str(tmp_path / "cache")}
    first, _said = read(tmp_path, {**LOCAL, **cache}, ENTRY)
    (stored,) = (tmp_path / "cache").iterdir()
    assert str(tmp_path) not in stored.read_text() + stored.name
    assert "vmbr0" not in stored.read_text()
    # Nobody is asked now, or this would be a warning.
    again, said = read(tmp_path, {**UNREACHABLE, **cache}, ENTRY)
    assert said == ""
    assert again["phoenix_state"] == first["phoenix_state"] == "running"
    # Another declaration is compared anew.
    changed, said = read(tmp_path, {**LOCAL, **cache}, {**ENTRY, "memory_mb": 512})
    assert changed["phoenix_differs"] == ["memory"]


def test_a_node_that_does_not_answer(tmp_path: Path) -> None:
    variables, said = read(tmp_path, UNREACHABLE, ENTRY)
    assert "[WARNING]: node pve does not answer: " in said
    assert "port 9" in said
    assert variables["container_vmid"] == CTID
    assert "phoenix_state" not in variables
    variables, said = read(tmp_path, {**UNREACHABLE, "strict": True}, ENTRY)
    assert variables == {}
    assert "lxc_configs.yml: node pve does not answer: " in said
    assert "Traceback" not in said


def test_an_api_that_does_not_answer(tmp_path: Path) -> None:
    source = {**LOCAL, "live_api_host": "127.0.0.1", "live_api_port": 9, "live_api_user": "a@pam"}
    token = {"PROXMOX_TOKEN_ID": "a", "PROXMOX_TOKEN_SECRET": "secret-of-a"}
    variables, said = read(tmp_path, source, ENTRY, **token)
    assert "the API at 127.0.0.1 does not answer: " in said
    assert "secret-of-a" not in said
    assert "phoenix_state" not in variables
