# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.lookup.stacks import SHIPPED, LookupModule, names


@pytest.fixture
def lookup(monkeypatch):
    """Run the lookup, without Ansible's loader of plugins, which knows the options otherwise."""

    def run(folders, paths=False):
        monkeypatch.setattr(LookupModule, "set_options", lambda *_words, **_options: None)
        monkeypatch.setattr(LookupModule, "get_option", lambda _self, name: {"paths": paths}[name])
        return LookupModule().run(folders)

    return run


def make(folder, *stacks):
    for name in stacks:
        (folder / name).mkdir(parents=True)
        (folder / name / "stack.yml").touch()
    return str(folder)


def test_folders_with_a_stack(tmp_path, lookup):
    folders = [make(tmp_path, "cpu"), make(tmp_path / "own[1]", "cuda"), str(tmp_path / "missing")]
    (tmp_path / "own[1]/aside").mkdir()
    assert names(folders) == ["cpu", "cuda"]
    assert {"cpu", "cuda", "vllm-0.32.0-cu130"} <= set(lookup(folders))


def test_of_two_with_one_name_the_first_folder_wins(tmp_path, lookup):
    found = lookup([make(tmp_path / "b", "cpu"), make(tmp_path / "a", "cpu")], paths=True)
    assert str(tmp_path / "b/cpu") in found and str(tmp_path / "a/cpu") not in found
    assert f"{SHIPPED}/cpu" not in found and f"{SHIPPED}/vllm-0.32.0-cu130" in found
