# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ansible-galaxy collection build` gives an archive that installs, and that holds the collection only."""
from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a checkout may hold beside the collection: an environment, caches, results, settings of the tools.
FOREIGN = ("build", "inventories/site")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("archive")
    subprocess.run(
        ["ansible-galaxy", "collection", "build", "--output-path", str(output)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )
    (built,) = output.glob("phoenix-hypervisor-*.tar.gz")
    return built


def test_holds_the_collection_and_nothing_else(archive):
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert "plugins/connection/pct.py" in names
    assert "roles/container/tasks/main.yml" in names
    assert "playbooks/site.yml" in names
    hidden = [name for name in names if name.startswith(".")]
    foreign = [name for name in names if name.startswith(FOREIGN) or "__pycache__" in name]
    assert not hidden + foreign


def test_installs_and_resolves_by_full_name(archive, tmp_path):
    environment = {"PATH": subprocess.os.environ["PATH"], "HOME": str(tmp_path)}
    subprocess.run(
        ["ansible-galaxy", "collection", "install", "--offline", "-p", str(tmp_path / "collections"), str(archive)],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )
    environment["ANSIBLE_COLLECTIONS_PATH"] = str(tmp_path / "collections")
    listing = subprocess.run(
        ["ansible-doc", "-t", "module", "-j", "phoenix.hypervisor.pct_container"],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )
    assert "phoenix.hypervisor.pct_container" in json.loads(listing.stdout)
