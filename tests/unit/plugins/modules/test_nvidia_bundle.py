# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of an installation that only moves files, in folders of the test. The loader's part is a lab test."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
from pathlib import Path

import nvidia_site as site
import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_driver import MANIFEST, NvidiaError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_store import Store
from ansible_collections.phoenix.hypervisor.plugins.modules import nvidia_bundle
from ansible_collections.phoenix.hypervisor.plugins.modules.nvidia_bundle import Task

V, NEW = "580.95.05", "590.44.01"


class Module:
    """A module whose commands know what a container's loader and package manager would say."""

    def __init__(self, box: Box, params: dict, check: bool) -> None:
        self.box, self.params, self.check_mode = box, params, check

    def get_bin_path(self, name: str, required: bool = False, opt_dirs: object = None) -> str:
        return name

    def sha256(self, path: str) -> str:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def run_command(self, words: list[str], environ_update: object = None) -> tuple[int, str, str]:
        self.box.commands.append(" ".join(words))
        if words[0] == "dpkg-query":
            found = [path for path in words[2:] if path in self.box.owned]
            return 0, "".join(f"{self.box.owned[path]}:amd64: {path}\n" for path in found), ""
        if words[0] == "apt-get":
            for path, owner in list(self.box.owned.items()):
                if owner in words:
                    os.unlink(path)
                    del self.box.owned[path]
        if words == ["ldconfig"]:
            conf = self.box.root / "ld.conf"
            self.box.loader = f"{conf.read_text().strip()}/libcuda.so.1" if conf.exists() else ""
        line = f"\tlibcuda.so.1 (libc6,x86-64) => {self.box.loader}\n" if self.box.loader else ""
        return 0, f"2 libs found\n{line}\tlibcuda.so.1 (libc6) => /usr/lib32/libcuda.so.1\n", ""


class Box:
    """A container's folders, and a node's store."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.loader, self.owned, self.commands = root, "", {}, []
        self.lib, self.bin, self.cuda = root / "usr/lib", root / "usr/bin", root / "local"
        for path in (self.lib, self.bin, self.cuda):
            path.mkdir(parents=True)
        monkeypatch.setattr(nvidia_bundle, "LOADER_CONF", str(root / "ld.conf"))
        monkeypatch.setattr(nvidia_bundle, "FOLDERS", (str(self.lib),))
        monkeypatch.setattr(nvidia_bundle, "BIN", str(self.bin))
        monkeypatch.setattr(nvidia_bundle, "CUDA", str(self.cuda))
        self.store = Store(str(root / "store"))
        self.given = 0

    def stored(self, version: str = V) -> dict:
        """The driver of this version in the store."""
        known = {record["version"]: record for record in self.store.records("driver")}
        site.node_root(self.root / f"node-{version}", version)
        fill = self.store.from_node(version, str(self.root / f"node-{version}"))
        with self.store.locked(1):
            return known.get(version) or self.store.make("driver", version, "node", fill)

    def run(self, version: str = V, check: bool = False, archive: str | None = None, **values) -> dict:
        """A run, with a copy of the archive."""
        record = self.stored(version)
        if archive is None:
            self.given += 1
            archive = str(self.root / f"copy-{self.given}.tar")
            shutil.copy(self.store.archive(record["name"]), archive)
        params = {"kind": "driver", "version": version, "digest": record["digest"], "archive": archive,
                  "folder": str(self.root / "opt"), "default": True, "gpus": [], **values}  # fmt: skip
        return Task(Module(self, params, check)).run()

    def has(self) -> str:
        """The version that a program gets."""
        data = Path(os.path.realpath(self.root / "opt/driver/lib/libcuda.so.1")).read_bytes()
        return re.findall(rb"\0(\d{3}\.\d+\.\d+)\0", data)[-1].decode()

    def tree(self) -> dict[str, bytes]:
        """All that is in the container, but the caches of how files looked."""
        found = {}
        for top in ("opt", "usr", "local", "ld.conf"):
            for path in [self.root / top, *(self.root / top).rglob("*")]:
                if path.is_symlink():
                    found[str(path)] = os.readlink(path).encode()
                elif path.is_file() and path.name != ".seen.json":
                    found[str(path)] = path.read_bytes()
        return found


@pytest.fixture
def box(tmp_path, monkeypatch) -> Box:
    return Box(tmp_path, monkeypatch)


def test_from_nothing_to_a_driver_and_nothing_more(box):
    shown = box.run(check=True)
    assert box.tree() == {}
    done = box.run()
    assert (shown["plan"], shown["unpack"], shown["changed"]) == (done["plan"], True, True)
    assert box.has() == V
    assert box.loader == f"{box.root}/opt/driver/lib/libcuda.so.1"
    assert not list(box.root.glob("copy-2.tar"))
    before = box.tree()
    again = box.run()
    assert (again["plan"], again["unpack"], again["changed"]) == ([], False, False)
    assert box.tree() == before


def test_another_version_takes_its_place(box):
    old = box.run()["name"]
    done = box.run(NEW)
    assert (box.has(), done["before"]) == (NEW, old)
    assert sorted(path.name for path in (box.root / "opt").iterdir()) == ["driver", done["name"]]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda home: (home / f"lib/libcuda.so.{V}").unlink(), f"lib/libcuda.so.{V} is missing"),
        (lambda home: (home / f"lib/libcuda.so.{V}").write_bytes(b"x"), "has 1 bytes in place of"),
        (lambda home: (home / "lib/libcuda.so.1").unlink(), "lib/libcuda.so.1 is no link"),
        (lambda home: (home / "bin/nvidia-smi").chmod(0o644), "bin/nvidia-smi has another mode"),
        (lambda home: (home / MANIFEST).unlink(), "its manifest is missing"),
        (lambda home: (home / MANIFEST).write_text("{}"), "its manifest is another one"),
        (shutil.rmtree, "unpack NVIDIA driver"),
        (lambda home: ((home / "bin/nvidia-smi").unlink(), (home / "bin/nvidia-smi").mkdir()), "nvidia-smi is no file"),
    ],
)
def test_what_is_damaged_comes_again(box, damage, words):
    home = box.root / "opt" / box.run()["name"]
    before = box.tree()
    damage(home)
    done = box.run()
    assert words in done["plan"][0]
    assert box.tree() == before
    assert box.run()["changed"] is False


def test_content_is_compared_and_not_only_how_a_file_looks(box):
    path = box.root / "opt" / box.run()["name"] / f"lib/libcuda.so.{V}"
    box.run()
    data, there = path.read_bytes(), path.stat()
    path.write_bytes(data[:-3] + b"xyz")
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns))
    assert "has another content" in box.run()["plan"][0]
    assert path.read_bytes() == data


def test_what_was_right_is_not_read_again(box, monkeypatch):
    box.run()
    box.run()
    monkeypatch.setattr(Module, "sha256", lambda _module, path: pytest.fail(f"{path} was read"))
    assert box.run()["changed"] is False


def changed(path: str, change: object) -> None:
    """Write an archive anew with other members."""
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(path, "w") as archive:
        for member, data in change(members):
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda m: m[:-1], "has no "),
        (lambda m: [*m, (tarfile.TarInfo("../evil"), b"x")], "has ../evil, and its manifest doesn't"),
        (lambda m: [*m, (tarfile.TarInfo("lib/more.so"), b"x")], "has lib/more.so, and its manifest doesn't"),
        (lambda m: [*m[:1], (m[1][0], m[1][1] + b"x"), *m[2:]], "isn't what it should be"),
        (lambda m: m[1:], "has no manifest at its beginning"),
        (lambda m: [(m[0][0], m[0][1] + b" "), *m[1:]], "is another archive than driver-"),
        (lambda m: [], "has no manifest at its beginning"),
    ],
)
def test_an_archive_that_is_not_what_it_should_be_changes_nothing(box, damage, words):
    box.run()
    before = box.tree()
    archive = str(box.root / "damaged.tar")
    shutil.copy(box.store.archive(box.stored(NEW)["name"]), archive)
    changed(archive, damage)
    with pytest.raises(NvidiaError, match=re.escape(words)):
        box.run(NEW, archive=archive)
    assert box.tree() == before
    assert box.run(NEW)["changed"] is True


@pytest.mark.parametrize("size", [0, 100, 5000, 30000])
def test_a_truncated_archive_changes_nothing(box, size):
    box.run()
    before = box.tree()
    archive = box.root / "cut.tar"
    archive.write_bytes(Path(box.store.archive(box.stored(NEW)["name"])).read_bytes()[:size])
    with pytest.raises(NvidiaError):
        box.run(NEW, archive=str(archive))
    assert box.tree() == before


def test_no_archive_is_a_sentence(box):
    with pytest.raises(NvidiaError, match="no archive was given"):
        box.run(archive="")
    assert box.tree() == {}


@pytest.mark.parametrize("left", [f".incoming-driver-{V}-x", f"driver-{NEW}-0123456789ab"])
def test_what_a_killed_run_left_goes(box, left):
    box.run()
    (box.root / "opt" / left).mkdir()
    assert box.run()["plan"] == [f"remove {left}"]
    assert box.run()["changed"] is False


def test_a_run_that_was_killed_before_it_switched_is_gone_on_with(box):
    box.run()
    box.run(NEW)
    os.unlink(box.root / "opt/driver")
    done = box.run(NEW)
    assert [text.split()[0] for text in done["plan"]] == ["point", "make"]
    assert not done["unpack"]


def test_what_other_drivers_left(box):
    (box.lib / "libcuda.so.535.1.2").write_bytes(b"old")
    (box.lib / "libcuda.so.1").symlink_to("libcuda.so.535.1.2")
    (box.lib / "libnvidia-ml.so.1").write_bytes(b"packaged")
    (box.lib / "libcudart.so.12").write_bytes(b"stays")
    (box.bin / "nvidia-smi").write_bytes(b"packaged")
    (box.bin / "nvidia-debugdump").write_bytes(b"old")
    box.owned = {str(box.lib / "libnvidia-ml.so.1"): "libnvidia-ml1", str(box.bin / "nvidia-smi"): "nvidia-smi"}
    box.loader = str(box.lib / "libcuda.so.1")
    done = box.run()
    assert "remove packages with libraries of a driver: libnvidia-ml1, nvidia-smi" in done["plan"]
    assert sorted(path.name for path in box.lib.iterdir()) == ["libcudart.so.12"]
    assert os.readlink(box.bin / "nvidia-smi") == f"{box.root}/opt/driver/bin/nvidia-smi"
    assert not (box.bin / "nvidia-debugdump").exists()
    # The new one is in its place before anything goes.
    assert [text.split()[0] for text in done["plan"]] == ["unpack", "point", "set", "remove", "remove", "make"]
    assert box.run()["changed"] is False


def test_another_one_before_ours_is_told(box, monkeypatch):
    said = (0, "libcuda.so.1 (libc6,x86-64) => /x/libcuda.so.1", "")
    monkeypatch.setattr(Module, "run_command", lambda *_a, **_k: said)
    with pytest.raises(NvidiaError, match=r"programs would still get /x/libcuda\.so\.1 in place of"):
        box.run()


def test_a_gpu_that_is_not_there(box):
    with pytest.raises(NvidiaError, match="given GPU 97, and has no /dev/nvidia97"):
        box.run(gpus=[97])
    assert box.tree() == {}


def test_check_mode_before_the_archive_is_there(box):
    params = {"kind": "driver", "version": V, "digest": "", "archive": "", "folder": str(box.root / "opt"),
              "default": True, "gpus": []}  # fmt: skip
    shown = Task(Module(box, params, True)).run()
    assert (shown["changed"], shown["unpack"], shown["plan"]) == (
        True, True, [f"unpack NVIDIA driver {V}, once the node has it"]
    )  # fmt: skip
    with pytest.raises(NvidiaError, match="64 hexadecimal digits"):
        Task(Module(box, params, False)).run()


class TestToolkit:
    @pytest.fixture
    def toolkit(self, box):
        """A function that installs a toolkit."""

        def run(version: str, check: bool = False, **values) -> dict:
            def fill(tree) -> dict:
                for path, data in site.toolkit_files(version).items():
                    tree.add(path, io.BytesIO(data), data.startswith(b"#!"))
                return {}

            record = box.store.make("toolkit", version, "apt", fill)
            params = {"kind": "toolkit", "version": version, "digest": record["digest"], "gpus": [],
                      "archive": box.store.archive(record["name"]), "folder": str(box.root / "opt"), "default": True,
                      **values}  # fmt: skip
            return Task(Module(box, params, check)).run()

        return run

    def test_several_lie_beside_each_other(self, box, toolkit):
        for version in ("12.8", "12.9", "13.0"):
            toolkit(version)
            assert f"release {version}" in (box.cuda / "cuda/bin/nvcc").read_text()
        assert f"release {'12.8'}" in (box.cuda / "cuda-12.8/bin/nvcc").read_text()
        assert toolkit("12.8", default=False)["changed"] is False
        assert toolkit("12.8")["plan"] == [f"set {box.cuda}/cuda"]
        assert toolkit("12.8")["changed"] is False

    @pytest.mark.parametrize("name", ["cuda", "cuda-12.8"])
    def test_somebody_elses_is_left_alone(self, box, toolkit, name):
        (box.cuda / name).mkdir()
        with pytest.raises(NvidiaError, match="is a folder that wasn't made here"):
            toolkit("12.8")
        assert not (box.root / "opt").exists()

    def test_a_driver_is_not_its_business(self, box, toolkit):
        box.run()
        before = box.tree()
        (box.lib / "libcuda.so.535.1.2").write_bytes(b"old")
        assert len(toolkit("12.8")["plan"]) == 3
        assert (box.lib / "libcuda.so.535.1.2").exists()
        (box.lib / "libcuda.so.535.1.2").unlink()
        assert before.items() <= box.tree().items()
