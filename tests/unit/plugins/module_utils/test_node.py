# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's files say, on files made here."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import node
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container_plan import Memory


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A node's folders below tmp_path, with no container running."""
    (tmp_path / "lxc").mkdir()
    monkeypatch.setattr(node, "_CONFIGS", str(tmp_path / "lxc"))
    monkeypatch.setattr(node, "_STORAGES", str(tmp_path / "storage.cfg"))
    monkeypatch.setattr(node, "_LOG", str(tmp_path / "{vmid}.log"))
    monkeypatch.setattr(node, "_RELEASE", str(tmp_path / "pvecfg.pm"))
    monkeypatch.setattr(node, "_MEMORY", str(tmp_path / "memory"))
    monkeypatch.setattr(node, "_STARTED_WITH", str(tmp_path / "{vmid}.config"))
    monkeypatch.setattr(node, "_TASKS", str(tmp_path / "active"))
    monkeypatch.setattr(node, "_LOCK", str(tmp_path / "{vmid}.lock"))
    monkeypatch.setattr(node, "_DEV", str(tmp_path / "dev"))
    monkeypatch.setattr(node, "_CAPABILITIES", str(tmp_path / "capabilities"))
    monkeypatch.setattr(node, "_MAJORS", str(tmp_path / "devices"))
    monkeypatch.setattr(node, "_SUBIDS", {"u": str(tmp_path / "subuid"), "g": str(tmp_path / "subgid")})
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


def test_read_has_the_digest_and_what_lxc_was_started_with(folder, monkeypatch):
    content = b"#caf\xe9\nmemory: 1\n"
    (folder / "lxc" / "100.conf").write_bytes(content)
    (folder / "100.config").write_text("lxc.uts.name = a\n")
    assert node.read(100).digest == hashlib.sha1(content).hexdigest()
    assert node.read(100).started_with is None
    monkeypatch.setattr(node, "running", lambda: {100})
    assert node.read(100).started_with == "lxc.uts.name = a\n"


class TestEditRaw:
    def test_in_place_with_its_mode_and_bytes(self, folder):
        path = folder / "lxc" / "100.conf"
        path.write_bytes(b"#caf\xe9\r\nmemory: 1\nlxc.group: a long one\n")
        path.chmod(0o640)
        inode = path.stat().st_ino
        node.edit_raw(100, node.read(100).digest, [("lxc.group", "a long one")], [("lxc.group", "b")], 1)
        assert path.read_bytes() == b"#caf\xe9\r\nmemory: 1\nlxc.group: b\n"
        assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o640)
        assert os.listdir(folder / "lxc") == ["100.conf"]

    def test_what_another_wrote_is_not_overwritten(self, folder):
        path = folder / "lxc" / "100.conf"
        path.write_text("memory: 1\n")
        digest = node.read(100).digest
        path.write_text("memory: 2\n")
        with pytest.raises(node.Changed, match="changed by somebody else"):
            node.edit_raw(100, digest, [], [("lxc.group", "b")], 1)
        assert path.read_text() == "memory: 2\n"

    def test_a_lock_that_pct_holds_is_waited_for_and_its_holder_named(self, folder):
        (folder / "lxc" / "100.conf").write_text("memory: 1\n")
        script = (
            "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
            "print(flush=True); time.sleep(60)"
        )
        holder = subprocess.Popen([sys.executable, "-c", script, str(folder / "100.lock")], stdout=subprocess.PIPE)
        try:
            holder.stdout.readline()
            with pytest.raises(node.NodeError, match=rf"CTID 100: its conf file is locked by process {holder.pid} "):
                node.edit_raw(100, node.read(100).digest, [], [("lxc.group", "b")], 0.3)
            assert node.flock_holder(100)
        finally:
            holder.kill()
            holder.wait()
        assert node.flock_holder(100) == ""
        node.edit_raw(100, node.read(100).digest, [], [("lxc.group", "b")], 1)


def test_a_turn_waits_for_the_other(folder, monkeypatch):
    monkeypatch.setattr(node, "_TURN", str(folder / "turn-{vmid}"))
    with node.turn(100, 1), open(folder / "turn-100", "a") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(folder / "turn-100", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class TestWorkers:
    def test_a_task_that_lives_is_named_and_one_that_ended_is_not(self, folder):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        pid = os.getpid()
        (folder / "active").write_text(
            f"UPID:pve:{pid:08X}:{ticks:08X}:69200000:vzdump:100:root@pam: 0\n"
            f"UPID:pve:{pid:08X}:{ticks + 1:08X}:69200000:vzclone:100:root@pam: 1 69200001 OK\n"
            f"UPID:pve:{pid:08X}:{ticks:08X}:69200000:vzstart:101:root@pam: 0\n"
            "\nnonsense\n"
        )
        found = node.workers(100)
        assert len(found) == 1
        assert found[0].startswith(f"the task vzdump of root@pam (process {pid}, since ")

    def test_a_pct_call_is_named_without_its_options(self, folder):
        script = folder / "pct"
        script.write_text("#!/bin/sh\nread line\n")
        script.chmod(0o755)
        words = [[str(script), "clone", "100", "105", "--password", "secret"], [str(script), "enter", "100"]]
        calls = [subprocess.Popen(argv, stdin=subprocess.PIPE) for argv in words]
        try:
            assert node.workers(100) == [f"`pct clone 100` (process {calls[0].pid})"]
            assert node.workers(105) == [f"`pct clone 105` (process {calls[0].pid})"]
            assert node.workers(10) == []
        finally:
            for call in calls:
                call.communicate(b"\n")


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("sub version {\n    return '8.4.1';\n}\n\nsub release {\n    return '8.4';\n}\n", (8, 4)),
        ("sub release { return '7.4'; }", (7, 4)),
        ("", (9, 1)),
    ],
)
def test_release(folder, text, release):
    (folder / "pvecfg.pm").write_text(text)
    assert node.release() == release


def test_root_subids(folder):
    (folder / "subuid").write_text("root:100000:65536\nme:1:2\n0:1000:1\nroot:bad\n")
    assert node.root_subids() == {"u": [(100000, 65536), (1000, 1)], "g": []}


CAPS = [(f"nvidia-caps/nvidia-cap{minor}", 511, minor) for minor in (1, 21, 22)]


def test_nvidia_devices_have_the_drivers_number(folder, monkeypatch):
    (folder / "dev" / "nvidia-caps").mkdir(parents=True)
    for name, major, minor in (("nvidia0", 195, 0), ("nvidia-uvm", 243, 0), *CAPS):
        os.mknod(folder / "dev" / name, 0o20666, os.makedev(major, minor))
    (folder / "dev" / "nvidia.txt").touch()
    (folder / "devices").write_text(
        "Character devices:\n  1 mem\n195 nvidia-frontend\n508 nvidia-uvm\n511 nvidia-caps\n\nBlock devices:\n"
    )
    for name, minor in (("mig/config", 1), ("gpu0/mig/gi1/access", 21), ("gpu1/mig/gi1/ci0/access", 22)):
        path = folder / "capabilities" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    found = node.nvidia_devices()
    assert {path: (one.major, one.minor, one.is_stale, one.gpu) for path, one in found.items()} == {
        "/dev/nvidia0": (195, 0, False, None), "/dev/nvidia-uvm": (508, 0, True, None),
        "/dev/nvidia-caps/nvidia-cap1": (511, 1, False, None),
        "/dev/nvidia-caps/nvidia-cap21": (511, 21, False, 0), "/dev/nvidia-caps/nvidia-cap22": (511, 22, False, 1),
    }  # fmt: skip


def test_owners(folder):
    (folder / "x").touch()
    assert node.owners([str(folder / "x"), str(folder / "none")]) == {
        str(folder / "x"): (os.getuid(), os.getgid()), str(folder / "none"): None,
    }  # fmt: skip


def test_memory_is_kept_written_only_when_it_changes_and_forgotten(folder):
    assert node.remembered(100) == Memory()
    memory = Memory((("lxc.group", "caf\udce9"),), (("lxc.mount.entry", "/dev/nvidia0"),), {"/m": "/tank"})
    node.remember(100, memory)
    assert node.remembered(100) == memory
    before = (folder / "memory" / "100.json").stat().st_ino
    node.remember(100, memory)
    assert (folder / "memory" / "100.json").stat().st_ino == before
    node.remember(100, Memory())
    assert os.listdir(folder / "memory") == []
    node.remember(100, Memory())
    (folder / "memory" / "100.json").write_text("[]")
    assert node.remembered(100) == Memory()


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
