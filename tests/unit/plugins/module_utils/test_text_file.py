# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import text_file


def test_a_file_is_written_with_its_folder_and_read(tmp_path):
    path = str(tmp_path / "new" / "folder" / "file")
    for text in ("one\n", "zwei ü\n"):
        text_file.write(path, text, 0o640)
        assert text_file.read_text(path) == text
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert os.listdir(os.path.dirname(path)) == ["file"], "something is left of the way there"
    text_file.write(path, "three")
    assert os.stat(path).st_mode & 0o777 == 0o644


def test_one_that_is_not_there(tmp_path):
    assert text_file.read_text(str(tmp_path / "none")) is None
    assert text_file.read_text(str(tmp_path / "none"), "") == ""
    with pytest.raises(IsADirectoryError):
        text_file.read_text(str(tmp_path))


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a\xffb")
    assert text_file.read_text(str(path)) == "a\ufffdb"
    text_file.write(str(path), text_file.read_text(str(path), errors="surrogateescape"))
    assert path.read_bytes() == b"a\xffb"


def test_it_is_given_to_a_group(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(text_file.os, "fchown", lambda descriptor, user, group: given.append((user, group)))
    text_file.write(str(tmp_path / "a"), "x", 0o640, 997)
    text_file.write(str(tmp_path / "b"), "x")
    assert given == [(0, 997)]


def test_whether_a_file_is_as_it_should_be(tmp_path, monkeypatch):
    path = str(tmp_path / "file")
    text_file.write(path, "x", 0o600)
    group = os.stat(path).st_gid
    assert text_file.is_like(path, "x", 0o600, group) == (os.getuid() == 0)
    assert not text_file.is_like(path, "y", 0o600, group)
    assert not text_file.is_like(path, "x", 0o640, group) and not text_file.is_like(path, "x", 0o600, group + 1)
    assert not text_file.is_like(f"{path}2", "x", 0o600, group)


def test_a_link_is_pointed_elsewhere_in_one_step(tmp_path):
    for target in ("a", "b"):
        text_file.point(str(tmp_path / "link"), target)
    assert os.readlink(tmp_path / "link") == "b" and os.listdir(tmp_path) == ["link"]


def test_a_damaged_file_has_the_default(tmp_path):
    assert text_file.read_json(str(tmp_path / "none"), [1]) == [1]
    (tmp_path / "x").write_text("{")
    assert text_file.read_json(str(tmp_path / "x"), {}) == {}
    (tmp_path / "x").write_text("[2]")
    assert text_file.read_json(str(tmp_path / "x"), {}) == [2]
