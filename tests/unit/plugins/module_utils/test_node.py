# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's files say, on files made here."""

from __future__ import annotations

import os

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import node


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A node's folders below tmp_path, with no container running."""
    (tmp_path / "lxc").mkdir()
    monkeypatch.setattr(node, "_CONFIGS", str(tmp_path / "lxc"))
    monkeypatch.setattr(node, "_STORAGES", str(tmp_path / "storage.cfg"))
    monkeypatch.setattr(node, "_LOG", str(tmp_path / "{vmid}.log"))
    monkeypatch.setattr(node, "running", set)
    return tmp_path


def test_a_machine_that_is_no_node(folder):
    (folder / "lxc").rmdir()
    for call in (node.check, node.vmids, lambda: node.read(100)):
        with pytest.raises(node.NodeError, match="not a Proxmox VE node"):
            call()


def test_vmids_are_sorted_and_only_conf_files(folder):
    for name in ("1000.conf", "200.conf", "200.conf.tmp", "x.conf", "30"):
        (folder / "lxc" / name).touch()
    assert node.vmids() == [200, 1000]


def test_read(folder, monkeypatch):
    assert not node.read(100).exists
    (folder / "lxc" / "100.conf").write_bytes(b"#caf\xe9\r\nmemory: 1\n")
    container = node.read(100)
    assert container.exists
    assert not container.running
    assert container.text.encode("utf-8", "surrogateescape") == b"#caf\xe9\r\nmemory: 1\n"
    monkeypatch.setattr(node, "running", lambda: {100})
    assert node.read(100).running


def test_write_replaces_in_place_and_keeps_mode_and_bytes(folder):
    path = folder / "lxc" / "100.conf"
    path.write_bytes(b"#caf\xe9\r\nmemory: 100000\n")
    path.chmod(0o640)
    inode = path.stat().st_ino
    text = node.read(100).text
    node.write(100, text.replace("100000", "1"), text)
    assert path.read_bytes() == b"#caf\xe9\r\nmemory: 1\n"
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o640)
    assert os.listdir(folder / "lxc") == ["100.conf"]


def test_write_does_not_undo_what_another_wrote(folder):
    path = folder / "lxc" / "100.conf"
    path.write_text("memory: 1\n")
    with pytest.raises(node.NodeError, match="changed by somebody else"):
        node.write(100, "memory: 3\n", "memory: 2\n")
    assert path.read_text() == "memory: 1\n"


def test_storage_types(folder):
    assert node.storage_types() == {}
    (folder / "storage.cfg").write_text(
        "dir: local\n\tpath /var/lib/vz\n\tcontent vztmpl\n\nzfspool: local-zfs\n\tpool rpool: data\n"
    )
    assert node.storage_types() == {"local": "dir", "local-zfs": "zfspool"}


def test_log_tail_is_what_is_wrong_since_the_beginning_of_this_start(folder):
    log = folder / "100.log"
    assert (node.log(100), node.log_tail(100)) == (b"", "")
    log.write_text("lxc ERROR of the start before\n")
    before = node.log(100)
    with log.open("a") as file:
        file.write("lxc DEBUG this\nlxc ERROR that\nlxc WARN third\nlxc INFO fourth\n")
    assert node.log_tail(100, before) == "lxc ERROR that\nlxc WARN third"
    assert node.log_tail(100, before, lines=1) == "lxc WARN third"


def test_log_tail_without_errors_and_of_a_log_that_was_begun_anew(folder):
    (folder / "100.log").write_bytes(b"one\ntwo \xff\nthree\n")
    assert node.log_tail(100, before=b"as long as it is now", lines=2) == "two \ufffd\nthree"


def test_running_reads_the_real_list(monkeypatch):
    monkeypatch.undo()
    assert all(isinstance(vmid, int) for vmid in node.running())
