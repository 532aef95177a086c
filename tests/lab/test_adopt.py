# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""adopt.yml on a container as the old shell scripts left it (599): nothing is restarted or made anew."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab_modules import CONFIGS, OSTEMPLATE, ROOT, calls, destroy, inside, pct, require_lab, start
from model_site import PLAYBOOK, UNIT

pytestmark = pytest.mark.lab
VMID, ADDRESS = 599, "10.92.0.19"
SECRET = "s3cret-of-this-test"
OLD_UNIT = f"""[Unit]
Description=vLLM Model Server
After=network.target

[Service]
ExecStart=/opt/vllm/bin/python -m vllm.entrypoints.openai.api_server --model "/models/good" --port 8000 \\
  --api-key {SECRET} --trust-remote-code
Restart=always

[Install]
WantedBy=multi-user.target
"""
ENVIRONMENT = f"LANG=C.UTF-8\nexport PATH=/usr/local/cuda/bin:$PATH\nexport HF_TOKEN={SECRET}\n"
GPU_LINES = (
    "lxc.cgroup2.devices.allow: c 195:* rwm", "lxc.cgroup2.devices.allow: c 243:* rwm",
    "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
    "lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file",
)  # fmt: skip
OWN = "lxc.cap.drop: sys_time"


class Site:
    """A container of the old scripts, an inventory that declares it, and adopt.yml on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # pytest's folders are closed to the container.
        self.ca = Path(tempfile.mkdtemp(prefix="old-ca-", dir="/var/tmp"))
        node = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        source = {"plugin": "phoenix.hypervisor.lxc_configs", "nodes": {"pve": node}}
        (folder / "lxc_configs.yml").write_text(yaml.safe_dump(source))

    def create(self) -> None:
        """Make it as the old scripts did."""
        os.chmod(self.ca, 0o777)
        (self.ca / "root_ca_key").write_text("")
        (self.ca / "password.txt").write_text("")
        destroy(VMID)
        pct(
            "create", str(VMID), OSTEMPLATE, "--rootfs", "local-btrfs:2", "--unprivileged", "1", "--memory", "256",
            "--features", "nesting=1", "--hostname", f"old{VMID}", "--cores", "1",
            "--mp0", f"{self.ca},mp=/etc/step-ca", "--net0", f"name=eth0,bridge=vmbr0,ip={ADDRESS}/24,gw=10.92.0.1",
        )  # fmt: skip
        path = CONFIGS / f"{VMID}.conf"
        path.write_text(path.read_text() + "".join(f"{line}\n" for line in (*GPU_LINES, OWN)))
        start(VMID)
        inside(VMID, "mkdir -p /opt/vllm/bin /opt/vllm/lib/python3.11/site-packages/vllm-0.10.2.dist-info "
               "/root/.cache/huggingface/hub/models--org--name /models/good; "
               "printf '#!/bin/sh\\nexec sleep infinity\\n' >/opt/vllm/bin/python; chmod 755 /opt/vllm/bin/python")
        for text, place in ((OLD_UNIT, f"/etc/systemd/system/{UNIT}"), (ENVIRONMENT, "/etc/environment")):
            (self.folder / "text").write_text(text)
            pct("push", str(VMID), str(self.folder / "text"), place, "--perms", "0644")
        inside(VMID, f"systemctl daemon-reload; systemctl enable --now {UNIT} 2>/dev/null")

    def run(self, *options: str, **keys) -> str:
        """Run adopt.yml. Returns what was said, without the YAML's folding."""
        network = {"name": "eth0", "bridge": "vmbr0", "ip": f"{ADDRESS}/24", "gw": "10.92.0.1"}
        config = {"ModelConfig": {"model": "/models/good"}, "ServerConfig": {"port": 8000}}
        entry = {
            "name": f"old{VMID}", "template": OSTEMPLATE, "storage_pool": "local-btrfs", "memory_mb": 384, "cores": 1,
            "pct_options": ["nesting=1"], "network_config": network, "gpu_assignment": "none", "vllm_stack": "cpu",
            "mount_points": [{"host_path": str(self.ca), "container_path": "/etc/step-ca"}],
            "vllm_engine_config": config, **keys,
        }  # fmt: skip
        (self.folder / "phoenix_lxc_configs.json").write_text(json.dumps({"lxc_configs": {str(VMID): entry}}))
        done = subprocess.run(
            [PLAYBOOK, "-i", str(self.folder / "lxc_configs.yml"), f"{ROOT}/playbooks/adopt.yml", "--diff", *options],
            cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0 and SECRET not in said, said
        return " ".join(said.replace("''", "'").split())

    def state(self) -> list[str]:
        """What runs, and the files that are spoken of."""
        return [
            inside(VMID, "stat -c %Y /proc/1"), inside(VMID, f"systemctl show --value --property=MainPID {UNIT}"),
            inside(VMID, f"cat /etc/environment /etc/systemd/system/{UNIT}; ls /etc/profile.d /var/lib"),
            (CONFIGS / f"{VMID}.conf").read_text(),
        ]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    require_lab()
    it = Site(tmp_path_factory.mktemp("adopt"))
    kept = Path(f"/var/lib/phoenix-hypervisor/adopted/{VMID}.conf")
    kept.unlink(missing_ok=True)
    try:
        it.create()
        yield it
    finally:
        destroy(VMID)
        kept.unlink(missing_ok=True)
        shutil.rmtree(it.ca)


def test_check_mode_tells_all_and_touches_nothing(site):
    before = site.state()
    said = site.run("--check")
    assert site.state() == before and not Path(f"/var/lib/phoenix-hypervisor/adopted/{VMID}.conf").exists()
    for words in (
        "4 raw lines give it GPUs by numbers",
        "raw lines that nobody declares, and that stay: lxc.cap.drop: sys_time",
        f"{site.ca}, mounted at /etc/step-ca, can be written by everybody, and password.txt, root_ca_key in it",
        f"{UNIT} was written by the old scripts; it is active and runs: /opt/vllm/bin/python -m",
        "--api-key (hidden)",
        "the model server runs as root",
        "/opt/vllm is a folder with vLLM 0.10.2",
        "/etc/environment has lines for a shell (PATH, HF_TOKEN)",
        "downloaded onto the root disk: org/name",
        "move 2 lines (PATH, HF_TOKEN) from /etc/environment to /etc/profile.d/phoenix_adopted.sh",
        "memory: 256 → 384", "raw lines: lxc.cgroup2.devices.allow: c 195:* rwm;",
        "the container restarts once and the model server is replaced",
    ):
        assert words in said, (words, said)


def test_nothing_is_restarted(site):
    before = site.state()
    counted = calls(VMID)
    said = site.run()
    assert "changed=2" in said and calls(VMID) == counted, said
    after = site.state()
    assert after[:2] == before[:2] and after[3] == before[3]
    assert inside(VMID, "cat /etc/environment") == "LANG=C.UTF-8"
    assert inside(VMID, "grep -c ^export /etc/profile.d/phoenix_adopted.sh") == "2"
    assert "/usr/local/cuda/bin:/" in inside(VMID, ". /etc/profile.d/phoenix_adopted.sh; echo $PATH")
    kept = "/var/lib/phoenix-hypervisor/adopted"
    assert inside(VMID, f"stat -c '%a %U' {kept} {kept}/environment {kept}/{UNIT}") == "700 root\n600 root\n600 root"
    assert inside(VMID, f"cat {kept}/environment") == ENVIRONMENT.strip()
    assert Path(f"{kept}/{VMID}.conf").read_text() == before[3]


def test_a_second_run_changes_nothing(site):
    before = site.state()
    said = site.run()
    assert "changed=0" in said and site.state() == before
    assert f"{UNIT} was written by the old scripts" in said


def test_the_configuration_without_a_restart(site):
    before = site.state()
    said = site.run("-e", "adopt_configure=true")
    after = site.state()
    assert after[:2] == before[:2], "nothing was restarted"
    assert "memory: 384" in after[3] and OWN in after[3] and "nvidia" not in after[3]
    assert "changed=1" in said and "changed=2" not in said
    assert "changed=0" in site.run("-e", "adopt_configure=true")


def test_a_container_that_is_not_there_is_no_mistake(site):
    destroy(VMID)
    said = site.run()
    assert f"CTID {VMID} is not there: there is nothing to take over" in said and "changed=0" in said
