# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ansible-galaxy collection build` gives an archive that installs, and that holds the collection only."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
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


@pytest.fixture
def installed(archive, tmp_path) -> Path:
    """The folder that the archive was installed to, with its collections' folder as a parent."""
    subprocess.run(
        ["ansible-galaxy", "collection", "install", "--offline", "-p", str(tmp_path / "elsewhere"), str(archive)],
        cwd=tmp_path, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, check=True, capture_output=True,
    )
    assert (tmp_path / "elsewhere/ansible_collections").is_dir()
    return tmp_path / "elsewhere/ansible_collections/phoenix/hypervisor"


def test_everything_has_a_description(installed):
    """ansible-doc shows each plugin, module and role of the installed archive."""
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(installed.parents[2])}
    environment.pop("ANSIBLE_CONFIG", None)
    for kind, folder in (("module", "modules"), ("filter", "filter"), ("lookup", "lookup"), ("role", "../roles"),
                         ("inventory", "inventory"), ("connection", "connection")):  # fmt: skip
        listed = subprocess.run(
            ["ansible-doc", "-t", kind, "-l", "-j", "phoenix.hypervisor"],
            cwd=installed.parents[2], env=environment, check=False, capture_output=True, text=True,
        )
        assert listed.returncode == 0, listed.stderr
        assert json.loads(listed.stdout), kind
        assert (installed / "plugins" / folder).is_dir()
        # What can't be shown is told on stderr.
        assert "ERROR" not in listed.stderr and "Unable" not in listed.stderr, listed.stderr


@pytest.mark.full
def test_the_unit_tests_pass_where_it_is_installed(installed):
    """With what the archive has, and nothing of the checkout."""
    # Processes that a test starts have no pytest to tell them where the collection is.
    place = str(installed.parents[2])
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": place, "PYTHONPATH": place}
    environment.pop("ANSIBLE_CONFIG", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "not lab", "tests/unit/plugins",
         "-o", f"pythonpath={installed.parents[2]} tests/support"],
        cwd=installed, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 300


@pytest.mark.full
def test_the_readmes_of_the_roles_say_what_their_specs_do():
    """Galaxy wants one for each role; tools/role_readmes writes it."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools/role_readmes", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    with_one = {path.parent.name for path in (ROOT / "roles").glob("*/README.md")}
    assert {path.name for path in (ROOT / "roles").iterdir()} == with_one


@pytest.mark.full
def test_galaxy_would_take_it(archive, tmp_path):
    """galaxy-importer reads and checks the archive as Galaxy does, and finds no error."""
    config = tmp_path / "importer.cfg"
    config.write_text("[galaxy-importer]\nRUN_ANSIBLE_TEST = False\nCHECK_REQUIRED_TAGS = True\n")
    shutil.copy(archive, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "galaxy_importer.main", str(tmp_path / archive.name)],
        cwd=tmp_path, env={**os.environ, "GALAXY_IMPORTER_CONFIG": str(config)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert "Importer processing completed successfully" in said, said[-6000:]
    # What a role is for is said in its argument specs; the link in .ansible is what the sanity tests are told of; the
    # importer's ansible-lint doesn't find the collection that it looks at by its name. It gets three minutes, which are
    # not enough on a loaded machine; `make test-lint` runs it, too, at the strictest profile.
    known = ("Could not get role description", "Ignore files skip ansible-test sanity", "hypervisor.site playbook",
             "Timeout on call to ansible-lint")  # fmt: skip
    found = re.findall(r"^(?:ERROR|WARNING).*", said, re.MULTILINE)
    assert not [line for line in found if not any(words in line for words in known)], found


@pytest.mark.full
def test_the_changelog_of_the_release_can_be_made(tmp_path):
    """antsibull-changelog makes the release's changelog from the fragments; it is done in a copy, which it uses up."""
    tree = tmp_path / "ansible_collections/phoenix/hypervisor"
    shutil.copytree(
        ROOT, tree, symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv", ".cache", "build", ".ansible", "tests"),
    )
    version = re.search(r"^version: (.+)$", (tree / "galaxy.yml").read_text(), re.MULTILINE).group(1)
    done = subprocess.run(
        ["antsibull-changelog", "release", "--version", version], cwd=tree, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tree / "CHANGELOG.rst").read_text()
    assert f"v{version}" in text and "phoenix.hypervisor.pct_container" in text
