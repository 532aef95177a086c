# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from ansible.plugins.action import ActionBase
from ansible_collections.phoenix.hypervisor.plugins.action import verify_report
from ansible_collections.phoenix.hypervisor.plugins.module_utils import verification

GOOD = {"passed": True, "outcome": "exit code 0", "seconds": 0.2, "attempts": 1, "lines": []}
HOSTVARS = {
    "ctid_921": {"verify_result": verification.result_of({"host": "ctid_921", "health_check": GOOD, "command": "ä"})},
    "ctid_900": {"container_template": True},
    "ctid_950": {},
}


@pytest.fixture
def report(monkeypatch):
    """Run the action for all hosts. Returns (result, what was shown, warnings)."""
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp, task_vars: {})

    def run(check_mode=False, **options):
        shown, warnings = [], []
        monkeypatch.setattr(verify_report.display, "display", shown.append)
        monkeypatch.setattr(verify_report.display, "warning", warnings.append)
        action = verify_report.ActionModule.__new__(verify_report.ActionModule)
        action._task = SimpleNamespace(args={"hosts": list(HOSTVARS), **options}, check_mode=check_mode)
        return action.run(task_vars={"hostvars": HOSTVARS}), "\n".join(shown), "\n".join(warnings)

    return run


def test_every_host_is_in_it(report):
    result, shown, _warnings = report()
    assert result["changed"] is False and result["files"] == []
    containers = {container["host"]: container for container in result["report"]["containers"]}
    assert [containers[host]["passed"] for host in HOSTVARS] == [True, True, False]
    assert containers["ctid_950"]["checks"][0]["message"] == "it was not verified; see above why"
    assert "it is a template, and nothing runs in one" in shown and "3 containers, 3 checks" in shown


def test_the_files(report, tmp_path):
    folder = tmp_path / "new" / "folder"
    for _again in range(2):
        result, shown, _warnings = report(folder=str(folder))
    assert json.loads((folder / "verify.json").read_text()) == result["report"]
    assert (folder / "verify.txt").read_text().strip() in shown
    assert sorted(path.name for path in folder.iterdir()) == ["verify.json", "verify.txt"]
    assert result["files"] == [f"{folder}/verify.json", f"{folder}/verify.txt"]


def test_check_mode_writes_nothing(report, tmp_path):
    result, shown, _warnings = report(check_mode=True, folder=str(tmp_path / "new"))
    assert result["report"]["check_mode"] and shown and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(report, tmp_path):
    (tmp_path / "file").write_text("")
    result, shown, warnings = report(folder=str(tmp_path / "file" / "x"))
    assert "could not be written to" in warnings and "verify_report_folder" in warnings
    assert result["files"] == [] and "3 containers" in shown
