# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""execution-environment.yml is one, and everything in it is pinned to what the tests run with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEFINITION = yaml.safe_load((ROOT / "execution-environment.yml").read_text())
BIN = Path(sys.prefix) / "bin"


def pins(name: str) -> dict[str, str]:
    """Package → version of a file of requirements."""
    return dict(re.findall(r"^([\w.-]+)==([\w.+-]+)", (ROOT / name).read_text(), re.MULTILINE))


def test_ansible_builder_makes_a_context(tmp_path: Path) -> None:
    """Without a container engine and without a network: it checks the definition, and writes what would be built."""
    done = subprocess.run(
        [BIN / "ansible-builder", "create", "-f", ROOT / "execution-environment.yml", "-c", tmp_path / "context",
         "--output-filename", "Containerfile"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "context/Containerfile").read_text()
    assert f'ARG EE_BASE_IMAGE="{DEFINITION["images"]["base_image"]["name"]}"' in text
    assert 'ARG PYCMD="/usr/bin/python3.12"' in text
    made = tmp_path / "context/_build"
    assert (made / "requirements.txt").read_text().strip() == (ROOT / "requirements-ee.txt").read_text().strip()
    assert yaml.safe_load((made / "requirements.yml").read_text()) == DEFINITION["dependencies"]["galaxy"]
    assert "openssh-clients" in (made / "bindep.txt").read_text()


def test_everything_is_pinned() -> None:
    """By version; and what the tests run with is what jobs run with."""
    dependencies = DEFINITION["dependencies"]
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+", DEFINITION["images"]["base_image"]["name"])
    mine, tested = pins("requirements-ee.txt"), pins("requirements-dev.txt")
    assert len((ROOT / "requirements-ee.txt").read_text().splitlines()) == len(mine)
    both = set(mine) & set(tested)
    assert len(both) > 10
    assert {name: mine[name] for name in both} == {name: tested[name] for name in both}
    assert dependencies["ansible_core"]["package_pip"] == f"ansible-core=={mine['ansible-core']}"
    assert dependencies["ansible_runner"]["package_pip"] == f"ansible-runner=={mine['ansible-runner']}"
    (collection,) = dependencies["galaxy"]["collections"]
    manifest = next(Path(sys.prefix).glob("lib/python3*/site-packages/ansible_collections/awx/awx/MANIFEST.json"))
    assert collection["version"] == yaml.safe_load(manifest.read_text())["collection_info"]["version"]
    assert yaml.safe_load((ROOT / "awx/requirements.yml").read_text()) == dependencies["galaxy"]
