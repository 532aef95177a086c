# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml goes through the waves: those of one wave at the same time, and nothing is made on a source that failed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_modules import CONFIGS, OSTEMPLATE, require_lab

pytestmark = pytest.mark.lab
ROOT = Path(__file__).resolve().parents[2]
COMMON = {"memory_mb": 128, "swap_mb": 0, "cores": 1}
BASE = {**COMMON, "template": OSTEMPLATE, "storage_pool": "local-btrfs", "storage_size_gb": 2, "is_template": True}
CTIDS = range(892, 898)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    require_lab()
    yield
    for ctid in reversed(CTIDS):
        if (CONFIGS / f"{ctid}.conf").exists():
            subprocess.run(["pct", "stop", str(ctid)], check=False, capture_output=True)
            subprocess.run(["pct", "destroy", str(ctid)], check=True, capture_output=True)


def run(folder: Path, containers: dict[int, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run site.yml over these containers on the lab's node."""
    text = json.dumps({"lxc_configs": {str(ctid): entry for ctid, entry in containers.items()}})
    (folder / "phoenix_lxc_configs.json").write_text(text)
    source = folder / "lxc_configs.yml"
    nodes = {"pve": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}
    source.write_text(json.dumps({"plugin": "phoenix.hypervisor.lxc_configs", "nodes": nodes}))
    return subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(source), "site.yml", *arguments],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "COLUMNS": "9999"},
        capture_output=True,
        text=True,
        check=False,
    )


def recap(output: str) -> dict[int, tuple[int, int]]:
    """CTID → (changed, failed)."""
    found = re.findall(r"^ctid_(\d+) .* changed=(\d+) .* failed=(\d+)", output, re.MULTILINE)
    return {int(ctid): (int(changed), int(failed)) for ctid, changed, failed in found}


def test_a_family_in_waves(tmp_path: Path) -> None:
    """892 is made for 893, and not by both of its clones; run again, nothing changes."""
    clone = {**COMMON, "clone_from_ctid": 892}
    family = {892: BASE, 893: clone, 894: clone}
    done = run(tmp_path, family, "-l", "ctid_893,ctid_894")
    assert done.returncode == 0, done.stdout + done.stderr
    # Proxmox would refuse to create 892 twice. The second clone finds it complete.
    assert "template: 1" in (CONFIGS / "892.conf").read_text()
    assert recap(done.stdout).keys() == {893, 894}
    again = run(tmp_path, family)
    assert recap(again.stdout) == {892: (0, 0), 893: (0, 0), 894: (0, 0)}, again.stdout
    plays = again.stdout.count("PLAY [Converge the containers")
    assert plays == 2  # two waves


def test_nothing_is_made_on_a_source_that_failed(tmp_path: Path) -> None:
    """893 can't start; 894 of the same wave is made all the same, and what is cloned from 893 is left alone."""
    broken = {**COMMON, "clone_from_ctid": 892, "is_template": True, "network_config": {"bridge": "nobr", "ip": "dhcp"}}
    clone = {**COMMON, "clone_from_ctid": 893}
    family = {892: BASE, 893: broken, 894: {**COMMON, "clone_from_ctid": 892}, 895: clone, 896: clone}
    done = run(tmp_path, family)
    assert done.returncode != 0
    failed = {ctid for ctid, (_changed, failures) in recap(done.stdout).items() if failures}
    assert failed == {893, 895, 896}, done.stdout
    for ctid in (895, 896):
        assert f"CTID {ctid} is left alone: what it is cloned from, ctid_893, was not completed" in done.stdout
        assert not (CONFIGS / f"{ctid}.conf").exists()
    assert (CONFIGS / "894.conf").exists()
