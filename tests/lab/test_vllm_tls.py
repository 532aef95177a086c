# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A vLLM that is real has its certificate replaced while it serves. Installs one, so about three minutes (CTID 566)."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import yaml
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_guard
from certificates import Authority, serial
from lab_modules import ROOT, require_lab
from model_site import PLAYBOOK, PORT, UNIT, Site
from steady_client import SteadyClient

pytestmark = [pytest.mark.lab, pytest.mark.full]

VMID, ADDRESS, NAME = 566, "10.92.0.36", "server566"
FOLDER = "/etc/phoenix-hypervisor/certificates"
ENGINE_CONFIG = {
    "ModelConfig": {"model": "/models/tiny", "load_format": "dummy", "dtype": "float32", "max_model_len": 256,
                    "enforce_eager": True},
    "ServerConfig": {"port": PORT, "served_model_name": "tiny"},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[tuple[Site, Authority]]:
    """A container without a release, with a model, and the CA that it trusts."""
    require_lab()
    site = Site(VMID, ADDRESS, tmp_path_factory.mktemp("site"))
    authority = Authority(site.folder)
    site.ca = str(authority.file)
    try:
        site.create(("tiny",), memory=6144, disk=8)
        subprocess.run([sys.executable, str(ROOT / "lab/tiny_llama.py"), str(site.folder / "tiny")], check=True,
                       capture_output=True)  # fmt: skip
        for path in (site.folder / "tiny").iterdir():
            subprocess.run(["pct", "push", str(VMID), str(path), f"/models/tiny/{path.name}"], check=True)
        site.inside(f"rm -rf /opt/vllm /opt/vllm-releases; mkdir -p {FOLDER}/vllm_model_server")
        subprocess.run(["pct", "push", str(VMID), site.ca, f"{FOLDER}/ca.pem"], check=True)
        yield site, authority
    finally:
        site.close()


def issue(site: Site, authority: Authority) -> int:
    """Write a certificate as the role `certificate` does, by rename. Returns its serial number."""
    certificate, key = authority.issue(NAME, ADDRESS)
    for name, text in (("fullchain", certificate), ("privkey", key)):
        path = f"{FOLDER}/vllm_model_server/{name}.pem"
        site.inside(f"umask 077; cat >{path}.new <<'EOF'\n{text}\nEOF\nmv {path}.new {path}")
    return serial(certificate)


def served(site: Site) -> int:
    """The serial number of the certificate that a client is shown, which it has verified."""
    context = ssl.create_default_context(cafile=site.ca)
    with socket.create_connection((ADDRESS, PORT), 20) as plain, context.wrap_socket(
        plain, server_hostname=NAME
    ) as shown:
        return int(shown.getpeercert()["serialNumber"], 16)


def test_a_certificate_is_replaced_while_vllm_serves(made):
    """By the roles from nothing to an answer over TLS, then ten renewals with a steady client."""
    site, authority = made
    issue(site, authority)
    site.variables = {
        "certificate_source": "step_ca", "container_config": {"hostname": NAME}, "vllm_stack_name": "cpu",
        "vllm_stack_store": "/var/lib/phoenix-lab/wheels", "vllm_model_server_engine_config": ENGINE_CONFIG,
        "vllm_model_server_stack_folders": [], "vllm_model_server_ready_timeout": 900,
        "vllm_model_server_api_key": "", "verify_certificate_timer": "",
    }  # fmt: skip
    command = site.command((), "", {})
    tasks = [{"ansible.builtin.include_role": {"name": f"phoenix.hypervisor.{role}"}}
             for role in ("base_setup", "vllm_stack", "vllm_model_server", "verify")]  # fmt: skip
    play = [{"hosts": f"ctid_{VMID}", "gather_facts": False, "tasks": tasks}]
    (site.folder / "play.yml").write_text(yaml.safe_dump(play))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert PLAYBOOK in command and done.returncode == 0, done.stdout + done.stderr
    config = site.inside("cat /etc/vllm/engine.yaml")
    assert "enable-ssl-refresh: true" in config
    pid = site.main_pid()
    with SteadyClient(ADDRESS, PORT, model="tiny", per_second=4, timeout=60, ca=site.ca) as steady:
        time.sleep(1)
        for _number in range(10):
            number = issue(site, authority)
            began = time.monotonic()
            assert site.inside(" ".join(server_guard.RENEWED)) == f"{UNIT} serves the new certificate."
            assert time.monotonic() - began < 20
            assert served(site) == number
    assert steady.failed == [] and len(steady.requests) > 5
    assert site.main_pid() == pid
    journal = site.inside(f"journalctl --sync; journalctl --no-pager -o cat -u {UNIT} | grep -c 'Reloading SSL'")
    assert int(journal) >= 10
    assert "failed taking action" not in site.inside(f"journalctl --no-pager -o cat -u {UNIT}")
    report = json.loads(site.inside("cat /opt/vllm/release.json"))
    assert report["vllm"].startswith("0.32.0")
