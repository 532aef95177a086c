# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import datetime
import json
from types import SimpleNamespace

import pytest
from ansible.plugins.action import ActionBase
from ansible_collections.phoenix.hypervisor.plugins.action import status_report
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime.datetime.now(datetime.timezone.utc)


def certificate(days: float) -> str:
    """A certificate that ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=100)).not_valid_after(NOW + datetime.timedelta(days=days))
    )  # fmt: skip
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


CONTAINERS = [
    {"vmid": vmid, "exists": True, "template": False, "status": "running", "waiting": [], "lock": "", "config": {}}
    for vmid in (921, 104)
]
LOOK = {"containers": CONTAINERS, "compared": [
    {"vmid": 921, "state": "running", "differs": [], "problem": ""},
    {"vmid": 950, "state": "absent", "differs": [], "problem": ""},
]}  # fmt: skip
INSIDE = {
    "server": "active", "ready": True, "reason": "", "seconds": 0.1, "model": "ä", "release": "cpu-1", "differs": [],
    "live_release": "cpu-1", "vllm": "0.32.0", "restarts": 0,
    "certificates": [{"file": "/a", "pem": certificate(9.5)}, {"file": "/b", "pem": "none"}],
}  # fmt: skip
HOSTVARS = {
    "ctid_921": {
        "container_vmid": 921, "phoenix_node": "pve", "status_node": LOOK, "status_inside": INSIDE,
        "vllm_stack_name": "cpu", "vllm_model_server_engine_config": {"ModelConfig": {"model": "ä"}},
    },
    "ctid_950": {"container_vmid": 950, "phoenix_node": "pve", "status_node": {"skipped": True}},
    "ctid_960": {"container_vmid": 960, "phoenix_node": "far", "status_node": {"unreachable": True, "msg": "gone"},
                 "vllm_model_server_engine_config": {"ModelConfig": {"a.b": 1}}},
    "pve": {},
}  # fmt: skip


@pytest.fixture
def report(monkeypatch):
    """Run the action for all containers. Returns (result, what was shown, warnings)."""
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp, task_vars: {})

    def run(check_mode=False, **options):
        shown, warnings = [], []
        monkeypatch.setattr(status_report.display, "display", shown.append)
        monkeypatch.setattr(status_report.display, "warning", warnings.append)
        action = status_report.ActionModule.__new__(status_report.ActionModule)
        hosts = [host for host in HOSTVARS if host != "pve"]
        action._task = SimpleNamespace(args={"hosts": hosts, **options}, check_mode=check_mode)
        return action.run(task_vars={"hostvars": HOSTVARS}), "\n".join(shown), "\n".join(warnings)

    return run


def test_the_table_of_all(report):
    result, shown, warnings = report()
    rows = {one["host"]: one for one in result["report"]["containers"]}
    assert rows["ctid_921"]["certificate_days"] == 9 and rows["ctid_921"]["ready"] is True
    assert "/b: it holds no certificate" in rows["ctid_921"]["notes"]
    assert rows["ctid_950"]["state"] == "absent" and rows["ctid_950"]["ready"] is None
    assert rows["ctid_960"]["notes"] == ["its node can't be asked: gone"]
    assert rows["ctid_960"]["declared_model"] == "?"
    assert result["report"]["undeclared"] == {
        "pve": [{"ctid": 104, "hostname": "", "state": "running"}], "far": [],
    }  # fmt: skip
    assert "pve also has, not declared: 104 (running)." in shown and warnings == ""
    assert result["changed"] is False and result["files"] == []


def test_json_instead_of_the_table(report):
    result, shown, _warnings = report(format="json")
    assert json.loads(shown) == result["report"]


def test_files(report, tmp_path):
    result, shown, _warnings = report(folder=str(tmp_path / "new"))
    assert json.loads((tmp_path / "new/status.json").read_text()) == result["report"]
    assert (tmp_path / "new/status.txt").read_text() == shown + "\n"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["status.json", "status.txt"]


def test_check_mode_writes_nothing(report, tmp_path):
    report(check_mode=True, folder=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_a_warning(report, tmp_path):
    (tmp_path / "file").write_text("")
    result, _shown, warnings = report(folder=str(tmp_path / "file" / "x"))
    assert "could not be written" in warnings and result["files"] == []
