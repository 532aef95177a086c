# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import release_source
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_plan import JobError

PERSON = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def run(argv, environment=None, cwd=None, watch=None):
    """What the job gives to release_source, without its log."""
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env={**os.environ, **(environment or {})},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise JobError("failed", tail=done.stderr.splitlines())
    return done.stdout


@pytest.fixture
def repository(tmp_path):
    """A repository with an annotated tag on its first commit of two."""
    path = tmp_path / "repository"

    def git(*words: str) -> str:
        return run(["git", "-c", "init.defaultBranch=main", *words], PERSON, path)

    path.mkdir()
    git("init", "-q", ".")
    (path / "setup.py").write_text("one")
    git("add", "setup.py")
    git("commit", "-qm", "one")
    git("tag", "-a", "v1", "-m", "release")
    first = git("rev-parse", "HEAD").strip()
    (path / "setup.py").write_text("two")
    git("commit", "-qam", "two")
    return path, first, git


def fetch(repository, tree, prefix: str) -> str:
    source = {"repository": str(repository), "commit": "v1", "commit_prefix": prefix}
    return release_source.fetch(source, tree, run, lambda *_words: None)


def test_an_annotated_tag_is_the_commit_that_it_names(repository, tmp_path):
    path, first, _git = repository
    assert fetch(path, tmp_path / "src", first[:9]) == first
    assert (tmp_path / "src/setup.py").read_text() == "one"


def test_once_fetched_nobody_is_asked_again(repository, tmp_path):
    path, first, _git = repository
    fetch(path, tmp_path / "src", first[:9])
    path.rename(tmp_path / "gone")
    assert fetch(path, tmp_path / "src", first[:9]) == first


def test_a_tag_that_has_moved_is_refused(repository, tmp_path):
    path, first, git = repository
    git("tag", "-f", "-a", "v1", "-m", "again", "HEAD")
    with pytest.raises(JobError, match=f"doesn't begin with {first[:9]}: it isn't what was released"):
        fetch(path, tmp_path / "src", first[:9])


def test_a_tag_that_is_not_there_and_a_repository_that_can_not_be_asked(repository, tmp_path):
    path, first, git = repository
    git("tag", "-d", "v1")
    with pytest.raises(JobError, match=r"tag v1 of .* isn't there"):
        fetch(path, tmp_path / "src", first[:9])
    with pytest.raises(JobError, match="could not be fetched"):
        fetch(tmp_path / "nowhere", tmp_path / "src", first[:9])
