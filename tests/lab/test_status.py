# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""status.yml: one table of a container with a model server (595), a stopped one (596), one that isn't there (597), and
one on a node that doesn't answer (598)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab_modules import OSTEMPLATE, ROOT, calls, create, destroy, pct, require_lab
from model_site import KEY, PLAYBOOK, RELEASE, UNIT, Site

pytestmark = pytest.mark.lab
SERVER, STOPPED, MISSING, FAR = 595, 596, 597, 598
ADDRESS = "10.92.0.15"


def entry(vmid: int, **keys) -> dict:
    """A container's entry in the JSON, as Site and create make it."""
    return {
        "name": f"c{vmid}", "template": OSTEMPLATE, "storage_pool": "local-btrfs", "memory_mb": 256,
        "pct_options": ["nesting=1"], "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "dhcp"}, **keys,
    }  # fmt: skip


class Sites:
    """The inventory of all, and status.yml on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Site(SERVER, ADDRESS, folder / "server")
        self.server.variables["vllm_model_server_engine_config"] = self.engine_config("good")
        nodes = {
            "pve": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
            "far": {"ansible_host": "127.0.0.1", "ansible_port": 9},
        }
        source = {"plugin": "phoenix.hypervisor.lxc_configs", "nodes": nodes, "default_node": "pve"}
        (folder / "lxc_configs.yml").write_text(yaml.safe_dump(source))

    def engine_config(self, model: str, **others) -> dict:
        """An engine config for a model of the server."""
        return {"ModelConfig": {"model": f"/models/{model}"}, "ServerConfig": {"port": 8000, **others}}

    def run(self, *options: str, config: dict | None = None, **keys) -> tuple[dict, str]:
        """Run status.yml. Returns the report by CTID, and what was said."""
        network = {"name": "eth0", "bridge": "vmbr0", "ip": f"{ADDRESS}/24", "gw": "10.92.0.1"}
        server = entry(
            SERVER, name=f"server{SERVER}", memory_mb=512, cores=2, network_config=network,
            vllm_engine_config=config or self.engine_config("good"), **{"vllm_stack": "fake", **keys},
        )  # fmt: skip
        stopped = {key: value for key, value in entry(STOPPED).items() if key != "network_config"}
        entries = {SERVER: server, STOPPED: stopped, MISSING: entry(MISSING), FAR: entry(FAR, node="far")}
        content = {"lxc_configs": {str(vmid): one for vmid, one in entries.items()}}
        (self.folder / "phoenix_lxc_configs.json").write_text(json.dumps(content))
        variables = {"status_report_folder": str(self.folder / "out"), "status_timeout": 3,
                     "vllm_stack_folders": [str(self.server.folder / "stacks")]}  # fmt: skip
        done = subprocess.run(
            [PLAYBOOK, "-i", str(self.folder / "lxc_configs.yml"), str(ROOT / "playbooks/status.yml"), "-e",
             json.dumps(variables), *options],
            cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0 and 'File "<' not in said and KEY not in said, said
        assert "changed=0" in said and "changed=1" not in said, said
        report = json.loads((self.folder / "out/status.json").read_text())
        return {one["ctid"]: one for one in report["containers"]}, said


@pytest.fixture(scope="module")
def sites(tmp_path_factory) -> Iterator[Sites]:
    require_lab()
    destroy(SERVER, STOPPED, MISSING)
    it = Sites(tmp_path_factory.mktemp("status"))
    try:
        create(STOPPED)
        it.server.create(("good", "other"))
        it.server.run()
        yield it
    finally:
        destroy(SERVER, STOPPED, MISSING)


def test_one_table_of_all(sites):
    before = calls(SERVER)
    found, said = sites.run()
    server = found[SERVER]
    assert (server["state"], server["ready"], server["server"]) == ("running", True, "active"), server
    assert (server["model"], server["release"], server["vllm"]) == ("/models/good", RELEASE, "0.10.2")
    assert (server["drift"], server["notes"]) == ([], []), server
    assert (found[STOPPED]["state"], found[STOPPED]["ready"], found[STOPPED]["drift"]) == ("stopped", None, [])
    assert (found[MISSING]["state"], found[MISSING]["hostname"]) == ("absent", "")
    assert found[FAR]["state"] == "unknown" and "its node can't be asked" in found[FAR]["notes"][0]
    lines = [line.split() for line in said.splitlines() if line.startswith(("CONTAINER", f"ctid_{SERVER}  "))]
    assert lines[0] == ["CONTAINER", "NAME", "NODE", "STATE", "MODEL", "RELEASE", "READY", "CERT", "DRIFT"]
    assert lines[1] == [f"ctid_{SERVER}", f"server{SERVER}", "pve", "running", "/models/good", RELEASE, "yes", "-", "-"]
    assert calls(SERVER) == before, "it only reads"


def test_what_is_not_as_declared(sites):
    found, _said = sites.run(config=sites.engine_config("other", max_num_seqs=3), start_at_boot=True)
    assert found[SERVER]["drift"] == ["onboot", "max-num-seqs", "model", "served-model-name"]
    found, _said = sites.run("-l", f"ctid_{SERVER}", config=sites.engine_config("good"), vllm_stack="cpu")
    assert found[SERVER]["drift"] == ["stack"] and list(found) == [SERVER]


def test_days_of_certificates(sites):
    folder = "/etc/phoenix-hypervisor/certificates/vllm_model_server"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "5",
         "-subj", "/CN=x", "-keyout", "/dev/null"], check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    (sites.folder / "x.pem").write_text(made)
    sites.server.inside(f"mkdir -p {folder}")
    pct("push", str(SERVER), str(sites.folder / "x.pem"), f"{folder}/fullchain.pem")
    found, said = sites.run("-l", f"ctid_{SERVER}")
    assert found[SERVER]["certificate_days"] == 4 and "  4 d  " in said
    sites.server.inside("rm -r /etc/phoenix-hypervisor")


def test_servers_that_do_not_answer(sites):
    sites.server.inside("touch /models/good/deadlocked")
    found, said = sites.run("-l", f"ctid_{SERVER}")
    assert found[SERVER]["ready"] is False
    assert "the model server is not ready: no answer on port 8000" in said
    sites.server.inside(f"rm /models/good/deadlocked; systemctl stop {UNIT}")
    found, said = sites.run("-l", f"ctid_{SERVER}", "-e", "status_format=json")
    assert (found[SERVER]["server"], found[SERVER]["ready"]) == ("inactive", False)
    assert '"server": "inactive"' in said
    sites.server.inside("mv /usr/bin/python3 /usr/bin/python3.away")
    found, _said = sites.run("-l", f"ctid_{SERVER}")
    sites.server.inside("mv /usr/bin/python3.away /usr/bin/python3")
    assert found[SERVER]["notes"][0].startswith("inside can't be looked at: ")
