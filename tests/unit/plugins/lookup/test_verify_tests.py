# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.lookup.verify_tests import find, planned


@pytest.fixture
def folders(tmp_path):
    """Two folders of tests; the first one wins."""
    for folder, names in (("one", ["a.sh"]), ("two", ["a.sh", "vllm/b.py"])):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(folder)
    (tmp_path / "two" / "binary").write_bytes(b"\x7fELF\xff")
    return [str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "none")]


def test_the_first_folder_that_has_it(folders):
    assert find("a.sh", folders) == (f"{folders[0]}/a.sh", "")
    assert find("vllm/b.py", folders) == (f"{folders[1]}/vllm/b.py", "")


def test_a_relative_folder_is_below_the_working_one(folders, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find("vllm/b.py", ["two"]) == (f"{folders[1]}/vllm/b.py", "")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("c.sh", "there is no c.sh in {0}, {1}, {2}; put it there, or name its folder in verify_tests_folders"),
        ("vllm", "there is no vllm in "),
        ("../two/a.sh", "has '..' in it"),
        ("binary", "two/binary is no UTF-8 text; a test is a script"),
    ],
)
def test_no_script(folders, path, words):
    file, problem = find(path, folders)
    assert file == "" and words.format(*folders) in problem


def test_no_folder():
    assert find("a.sh", [])[1].startswith("there is no a.sh in no folder; ")


@pytest.mark.parametrize("as_text", [False, True])
def test_tests_of_a_declaration(folders, as_text):
    tests = {"g": [{"path": "a.sh"}, {"type": "http", "path": "x"}], "h": [{"path": "c.sh"}]}
    found = planned([tests], "g", ",".join(folders) if as_text else folders, "http://h:1")
    assert [test.get("file") or test.get("url") for test in found] == [f"{folders[0]}/a.sh", "http://h:1/x"]
    assert [test["group"] for test in planned([tests, tests], [], [], "")] == ["g", "g", "h"] * 2
