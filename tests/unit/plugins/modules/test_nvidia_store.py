# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drivers and toolkits come to the node from archives, packages and files made here, over a real HTTP server."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import nvidia_site as site
import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import nvidia_driver, nvidia_repository, nvidia_store
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_driver import NvidiaError
from ansible_collections.phoenix.hypervisor.plugins.modules.nvidia_store import Task

V, OLD, NEW = "580.95.05", "575.64.03", "590.44.01"
NEEDS_TOOLS = pytest.mark.skipif(not site.with_tools(), reason="gpg, gpgv or dpkg-deb is missing")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node whose kernel has a driver, and which has none of its libraries."""
    site.kernel(tmp_path / "node", V)
    return tmp_path / "node"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[site.Server]:
    (tmp_path / "www").mkdir()
    with site.served(tmp_path / "www") as running:
        yield running


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Iterator[site.Repository]:
    made = site.Repository(tmp_path_factory.mktemp("repository") / "www")
    for version in (OLD, V):
        made.add_driver(version)
    for version in ("12.8", "12.9"):
        made.add_toolkit(version)
    made.sign()
    yield made
    made.close()


def options(root: Path, **values) -> dict:
    return {
        "kind": "driver", "version": "", "method": "auto", "runfile_url": "", "runfile_sha256": "", "repo_url": "",
        "repo_key_url": "", "repo_key_fingerprints": list(nvidia_repository.FINGERPRINTS), "packages": [],
        "store": str(root.parent / "store"), "keep": 3, "version_file": str(root / "proc/driver/nvidia/version"),
        "node_root": str(root), "wait": 5, **values,
    }  # fmt: skip


def run(root: Path, check: bool = False, **values) -> dict:
    task = Task(options(root, **values), check)
    task.store.pauses = ()
    return task.run()


def refused(root: Path, **values) -> str:
    """The sentence of a run that must fail; nothing is left in the store."""
    with pytest.raises(NvidiaError) as caught:
        run(root, **values)
    store = root.parent / "store"
    kept = sorted(path.name for path in store.iterdir()) if store.exists() else []
    assert [name for name in kept if name not in (".lock", ".parts")] == []
    return str(caught.value)


def content(result: dict) -> dict[str, bytes]:
    """What an archive has: path → content."""
    with tarfile.open(result["archive"]) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def runfile(server: site.Server, version: str = V, files: dict | None = None, name: str = "") -> tuple[str, str]:
    name = name or f"NVIDIA-Linux-x86_64-{version}.run"
    extra = {"nvidia-installer": b"#!/bin/sh\n", "kernel/nvidia.ko": b"kernel", "nvidia.ko": b"kernel"}
    files = {**site.driver_files(version), **extra} if files is None else files
    sha256 = site.runfile(server.folder / name, files, server.folder.parent / "ran")
    return f"{server.url}/{name}", sha256


class TestNode:
    def test_the_nodes_own_libraries(self, root):
        site.node_root(root, V)
        result = run(root)
        assert (result["version"], result["source"], result["changed"], result["downloaded"]) == (V, "node", True, 0)
        there = content(result)
        assert there[f"lib/libcuda.so.{V}"] == site.driver_files(V)[f"libcuda.so.{V}"]
        assert there["bin/nvidia-smi"] == site.SMI.format(V).encode()
        manifest = there[nvidia_driver.MANIFEST].decode()
        assert nvidia_driver.digest(manifest) == result["digest"]
        assert nvidia_driver.parse_manifest(manifest)["links"]["lib/libcuda.so.1"] == f"libcuda.so.{V}"

    def test_a_second_run_changes_nothing(self, root):
        site.node_root(root, V)
        first = run(root)
        before = {path: path.stat().st_mtime_ns for path in Path(first["archive"]).parent.iterdir()}
        second = run(root)
        assert second["changed"] is False
        assert (second["name"], second["digest"]) == (first["name"], first["digest"])
        assert {path: path.stat().st_mtime_ns for path in Path(first["archive"]).parent.iterdir()} == before

    @pytest.mark.parametrize("folder", [*nvidia_store.LIBRARIES])
    def test_wherever_a_distribution_puts_them(self, root, folder):
        site.node_root(root, V, folder)
        assert run(root)["source"] == "node"

    def test_a_link_is_followed(self, root):
        site.node_root(root, V)
        lib = root / "usr/lib/x86_64-linux-gnu"
        (root / "real").mkdir()
        (lib / f"libcuda.so.{V}").rename(root / "real" / "x")
        (lib / f"libcuda.so.{V}").symlink_to(root / "real" / "x")
        assert content(run(root))[f"lib/libcuda.so.{V}"] == site.driver_files(V)[f"libcuda.so.{V}"]

    def test_a_node_that_is_half_upgraded(self, root):
        site.node_root(root, OLD)
        site.kernel(root, V)
        assert f"it has libcuda.so of {OLD}, so its own driver is half upgraded" in refused(root)

    def test_what_is_kept_is_good_until_the_upgraded_node_is_rebooted(self, root):
        """An upgrade takes the libraries away at once; the kernel's module stays until it is loaded anew."""
        site.node_root(root, V)
        first = run(root)
        site.node_root(root, NEW)
        site.kernel(root, V)
        for check in (True, False):
            result = run(root, check=check)
            assert (result["digest"], result["changed"]) == (first["digest"], False)
            (note,) = result["notes"]
            assert f"the node's kernel still has driver {V}" in note
            assert f"it has libcuda.so of {NEW}, so its own driver is half upgraded" in note
            assert note.endswith("load the new driver (reboot the node), and run again")
        site.kernel(root, NEW)
        assert (run(root)["version"], run(root)["notes"]) == (NEW, [])

    def test_a_program_of_another_version_is_not_taken(self, root):
        site.node_root(root, V)
        (root / "usr/bin/nvidia-smi").write_text(site.SMI.format(OLD))
        assert "has no nvidia-smi" in refused(root)

    def test_an_upgraded_node_gets_another_one_and_keeps_the_old(self, root):
        site.node_root(root, OLD)
        old = run(root)
        site.node_root(root, V)
        new = run(root)
        assert (new["version"], new["changed"]) == (V, True)
        assert os.path.exists(old["archive"])
        assert os.path.exists(new["archive"])

    def test_libraries_that_changed_are_taken_again(self, root):
        site.node_root(root, V)
        first = run(root)
        path = root / f"usr/lib/x86_64-linux-gnu/libcuda.so.{V}"
        path.write_bytes(path.read_bytes() + b"again")
        second = run(root)
        assert second["digest"] != first["digest"]

    def test_a_node_without_a_driver(self, root):
        (root / "proc/driver/nvidia/version").unlink()
        sentence = refused(root)
        assert "the node has no NVIDIA kernel driver loaded" in sentence
        assert "take the feature nvidia out" in sentence

    def test_a_version_file_that_says_nothing(self, root):
        (root / "proc/driver/nvidia/version").write_text("hello\n")
        assert "has no version of a driver in it: 'hello'" in refused(root)

    @pytest.mark.parametrize(("declared", "notes"), [("", 0), (V, 0), ("580", 0), (OLD, 1)])
    def test_the_node_wins_over_the_declaration(self, root, declared, notes):
        site.node_root(root, V)
        result = run(root, version=declared)
        assert result["version"] == V
        assert len(result["notes"]) == notes


class TestRunfile:
    def test_it_is_checked_and_unpacked_and_never_run(self, root, server):
        url, sha256 = runfile(server)
        result = run(root, runfile_url=url, runfile_sha256=sha256.upper())
        assert result["source"] == "runfile"
        assert any("not from node: the node itself has no libcuda.so" in reason
                   or "node: the node itself has no" in reason for reason in result["reasons"])  # fmt: skip
        assert result["downloaded"] == os.path.getsize(server.folder / os.path.basename(url))
        there = content(result)
        assert there[f"lib/libcuda.so.{V}"] == site.driver_files(V)[f"libcuda.so.{V}"]
        assert not [name for name in there if "kernel" in name or ".ko" in name or "installer" in name]
        assert not (server.folder.parent / "ran").exists()

    def test_the_second_container_downloads_nothing(self, root, server):
        url, sha256 = runfile(server)
        run(root, runfile_url=url, runfile_sha256=sha256)
        server.asked.clear()
        again = run(root, runfile_url=url, runfile_sha256=sha256)
        assert (again["changed"], again["downloaded"], server.asked) == (False, 0, [])

    @pytest.mark.parametrize("method", ["auto", "runfile"])
    def test_the_next_runfile_may_be_declared_before_the_node_is_upgraded(self, root, server, method):
        url, sha256 = runfile(server)
        first = run(root, method=method, runfile_url=url, runfile_sha256=sha256)
        server.asked.clear()
        later, other = runfile(server, NEW)
        values = {"method": method, "runfile_url": later, "runfile_sha256": other}
        kept = run(root, **values)
        assert (kept["digest"], kept["changed"], server.asked) == (first["digest"], False, [])
        assert kept["notes"] == [
            f"nvidia_runfile_url is that of {NEW}, and the node's kernel driver is {V}: the containers keep {V}, from "
            f"an earlier runfile, until the node has {NEW}"
        ]
        site.kernel(root, NEW)
        assert (run(root, **values)["version"], run(root, **values)["notes"]) == (NEW, [])

    def test_the_same_content_has_the_same_digest_from_everywhere(self, root, server):
        url, sha256 = runfile(server)
        one = run(root, method="runfile", runfile_url=url, runfile_sha256=sha256)
        site.node_root(root, V)
        other = run(root, method="node")
        assert one["digest"] == other["digest"]

    def test_check_mode_says_it_and_asks_nobody(self, root, server):
        url, sha256 = runfile(server)
        shown = run(root, True, method="runfile", runfile_url=url, runfile_sha256=sha256)
        assert shown["changed"] is True
        assert shown["steps"] == [f"make NVIDIA driver {V} from runfile"]
        assert (shown["name"], server.asked) == ("", [])
        assert not (root.parent / "store").exists()

    def test_a_wrong_hash(self, root, server):
        url, sha256 = runfile(server)
        sentence = refused(root, method="runfile", runfile_url=url, runfile_sha256="ab" * 32)
        assert f"hashes to {sha256}, and should to {'ab' * 32}" in sentence
        assert "Nothing of it was unpacked" in sentence

    def test_one_that_ends_in_the_middle(self, root, server):
        url, sha256 = runfile(server)
        server.cut.add(os.path.basename(url))
        assert "the connection ended in the middle of the file" in refused(
            root, method="runfile", runfile_url=url, runfile_sha256=sha256
        )
        server.cut.clear()
        # What came is kept, and the next run goes on with it.
        size = os.path.getsize(server.folder / os.path.basename(url))
        result = run(root, method="runfile", runfile_url=url, runfile_sha256=sha256)
        assert result["downloaded"] <= size + 1
        assert content(result)[f"lib/libcuda.so.{V}"]

    def test_a_truncated_one_on_the_server(self, root, server):
        url, sha256 = runfile(server)
        path = server.folder / os.path.basename(url)
        path.write_bytes(path.read_bytes()[:-200])
        assert "it is truncated" in refused(root, method="runfile", runfile_url=url, runfile_sha256=sha256)

    def test_one_whose_own_checksum_is_wrong(self, root, server):
        url, _sha256 = runfile(server)
        path = server.folder / os.path.basename(url)
        path.write_bytes(re.sub(rb'MD5="[0-9a-f]+"', b'MD5="' + b"0" * 32 + b'"', path.read_bytes()))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        sentence = refused(root, method="runfile", runfile_url=url, runfile_sha256=sha256)
        assert "its own checksum is wrong" in sentence
        assert "Error in MD5 checksums" in sentence

    def test_one_of_another_version_under_this_name(self, root, server):
        url, sha256 = runfile(server, OLD, name=f"NVIDIA-Linux-x86_64-{V}.run")
        assert f"has no libraries of {V}: it is driver {OLD}" in refused(
            root, method="runfile", runfile_url=url, runfile_sha256=sha256
        )

    def test_one_that_is_no_driver(self, root, server):
        url, sha256 = runfile(server, files={"readme": b"x"}, name="x.run")
        assert "it is no driver" in refused(root, method="runfile", runfile_url=url, runfile_sha256=sha256)

    def test_one_that_is_not_there(self, root, server):
        url = f"{server.url}/x.run"
        assert "HTTP 404" in refused(root, method="runfile", runfile_url=url, runfile_sha256="ab" * 32)

    def test_one_on_the_node(self, root, server):
        url, sha256 = runfile(server)
        path = server.folder / os.path.basename(url)
        result = run(root, method="runfile", runfile_url=f"file://{path}", runfile_sha256=sha256)
        assert result["source"] == "runfile"
        assert server.asked == []

    def test_another_hash_is_another_driver(self, root, server):
        url, sha256 = runfile(server)
        run(root, method="runfile", runfile_url=url, runfile_sha256=sha256)
        files = {**site.driver_files(V), f"libcuda.so.{V}": b"another build"}
        url, other = runfile(server, files=files)
        assert run(root, method="runfile", runfile_url=url, runfile_sha256=other)["changed"] is True

    def test_a_toolkit(self, root, server):
        files = {f"builds/cuda_nvcc/{path}": data for path, data in site.toolkit_files("13.0").items()}
        files["builds/libcublas/targets/x86_64-linux/include/cublas_v2.h"] = b"//\n"
        files["builds/version.json"] = b"{}"
        files["builds/nsight_compute/bin/ncu"] = b"#!/bin/sh\n"
        url, sha256 = runfile(server, files=files, name="cuda_13.0.2_580.95.05_linux.run")
        result = run(root, kind="toolkit", version="13.0", runfile_url=url, runfile_sha256=sha256)
        there = content(result)
        assert {"bin/nvcc", "targets/x86_64-linux/include/cublas_v2.h"} <= set(there)
        assert "bin/ncu" not in there
        links = nvidia_driver.parse_manifest(there[nvidia_driver.MANIFEST].decode())["links"]
        assert links == {"lib64": "targets/x86_64-linux/lib", "include": "targets/x86_64-linux/include"}
        assert not (server.folder.parent / "ran").exists()


def without(monkeypatch, *programs: str) -> None:
    """Have a node without these programs."""
    real = nvidia_store.process.run

    def run_others(argv, *arguments, **options):
        if argv[0] in programs:
            return nvidia_store.process.Finished(tuple(argv), 127, "", "")
        return real(argv, *arguments, **options)

    monkeypatch.setattr(nvidia_store.process, "run", run_others)


@NEEDS_TOOLS
def test_a_node_that_can_not_check_signatures(root, repository, monkeypatch):
    without(monkeypatch, "gpgv", "sqv")
    with site.served(repository.folder) as running:
        sentence = refused(root, method="apt", repo_url=running.url, repo_key_fingerprints=[repository.fingerprint])
    assert "the node has neither gpgv nor sqv" in sentence and "apt-get install gpgv" in sentence


@NEEDS_TOOLS
@pytest.mark.parametrize(
    "checker",
    ["gpgv", pytest.param("sqv", marks=pytest.mark.skipif(not shutil.which("sqv"), reason="apt-get install sqv"))],
    indirect=True,
)
class TestRepository:
    @pytest.fixture(autouse=True)
    def checker(self, request, monkeypatch) -> None:
        """What signatures are checked with."""
        if request.param == "sqv":
            without(monkeypatch, "gpgv")

    @pytest.fixture
    def url(self, repository) -> Iterator[str]:
        with site.served(repository.folder) as running:
            self.server = running
            yield f"{running.url}/"

    def test_a_driver_in_exactly_the_kernels_version(self, root, repository, url):
        result = run(root, repo_url=url, repo_key_fingerprints=[repository.fingerprint])
        assert result["source"] == "apt"
        there = content(result)
        assert there[f"lib/libcuda.so.{V}"] == site.driver_files(V)[f"libcuda.so.{V}"]
        assert not [name for name in there if OLD in name or ".ko" in name]
        assert not [path for path in self.server.asked if "dkms" in path]
        self.server.asked.clear()
        again = run(root, repo_url=url, repo_key_fingerprints=[repository.fingerprint])
        assert (again["changed"], self.server.asked) == (False, [])

    def test_the_same_content_as_the_nodes(self, root, repository, url):
        one = run(root, method="apt", repo_url=url, repo_key_fingerprints=[repository.fingerprint])
        site.node_root(root, V)
        assert run(root, method="node")["digest"] == one["digest"]

    def test_a_key_that_is_not_trusted(self, root, url, repository):
        key = f"{url}{repository.fingerprint[-8:]}.pub"
        sentence = refused(root, method="apt", repo_url=url, repo_key_url=key)
        assert f"is signed by the key {repository.fingerprint}" in sentence
        assert "nvidia_repo_key_fingerprints doesn't have it" in sentence

    def test_a_key_that_is_not_there(self, root, url):
        sentence = refused(root, method="apt", repo_url=url)
        assert "the key of the repository can't be had" in sentence
        assert "set nvidia_repo_key_url" in sentence

    def test_a_key_that_is_none(self, root, url, repository):
        sentence = refused(root, method="apt", repo_url=url, repo_key_url=f"{url}Packages.gz",
                           repo_key_fingerprints=[repository.fingerprint])  # fmt: skip
        assert "OpenPGP" in sentence or "has no valid signature" in sentence or "is signed by the key" in sentence

    def test_a_repository_that_somebody_else_has_signed(self, root, tmp_path, repository):
        other = site.Repository(tmp_path / "other")
        other.add_driver(V)
        other.sign()
        other.close()
        name = f"{repository.fingerprint[-8:]}.pub"
        (other.folder / name).write_bytes((repository.folder / name).read_bytes())
        with site.served(other.folder) as running:
            sentence = refused(root, method="apt", repo_url=running.url, repo_key_fingerprints=[repository.fingerprint])
        assert f"is signed by the key …{other.fingerprint[-16:]}" in sentence

    @pytest.mark.parametrize(
        ("name", "words"),
        [("InRelease", "is not what was signed"), ("Packages.gz", "isn't the one that InRelease names"),
         (f"libcuda1_{V}-1_amd64.deb", "hashes to")],
    )  # fmt: skip
    def test_what_was_changed_on_its_way(self, root, tmp_path, repository, name, words):
        folder = tmp_path / "changed"
        folder.mkdir()
        for path in repository.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        data = (folder / name).read_bytes()
        changed = data.replace(b"stand-in", b"stand_in") if name == "InRelease" else data[:-9] + b"x" * 9
        (folder / name).write_bytes(changed)
        with site.served(folder) as running:
            sentence = refused(root, method="apt", repo_url=running.url, repo_key_fingerprints=[repository.fingerprint])
        assert words in sentence

    def test_what_stands_around_the_signed_text_is_not_read(self, root, tmp_path, repository):
        folder = tmp_path / "around"
        folder.mkdir()
        for path in repository.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        evil = b"SHA256:\n " + b"00" * 32 + b" 1 Packages.xz\n"
        (folder / "InRelease").write_bytes(evil + (folder / "InRelease").read_bytes() + evil)
        with site.served(folder) as running:
            found = nvidia_store.Store(str(tmp_path / "store")).index(
                f"{running.url}/", [repository.fingerprint], f"{running.url}/{repository.fingerprint[-8:]}.pub"
            )
            assert "libcuda1" in found
            assert "/Packages.xz" not in running.asked

    def test_a_version_that_is_not_in_it(self, root, repository, url):
        site.kernel(root, NEW)
        sentence = refused(root, method="apt", repo_url=url, repo_key_fingerprints=[repository.fingerprint])
        assert f"has no driver {NEW}; it has {OLD}, {V}" in sentence

    def test_no_repository_at_all(self, root, server):
        assert "InRelease: HTTP 404" in refused(root, method="apt", repo_url=server.url)

    def test_a_toolkit_with_what_it_needs(self, root, repository, url):
        keys = {"repo_url": url, "repo_key_fingerprints": [repository.fingerprint]}
        result = run(root, kind="toolkit", version="12.8", **keys)
        assert result["version"] == "12.8"
        there = content(result)
        assert {"bin/nvcc", "nvvm/bin/cicc"} <= set(there)
        assert nvidia_driver.parse_manifest(there[nvidia_driver.MANIFEST].decode())["files"]["bin/nvcc"].executable
        assert run(root, kind="toolkit", version="12.8", **keys)["changed"] is False

    def test_the_next_newer_toolkit(self, root, tmp_path, repository):
        other = site.Repository(tmp_path / "newer")
        other.add_toolkit("12.9")
        other.sign()
        other.close()
        with site.served(other.folder) as running:
            keys = {"repo_url": running.url, "repo_key_fingerprints": [other.fingerprint]}
            assert run(root, kind="toolkit", version="12.8", **keys)["version"] == "12.9"
            again = run(root, kind="toolkit", version="12.8", **keys)
            assert (again["changed"], again["version"]) == (False, "12.9")

    def test_a_toolkit_that_is_not_in_it(self, root, repository, url):
        sentence = refused(root, kind="toolkit", version="13.0", repo_url=url,
                           repo_key_fingerprints=[repository.fingerprint])  # fmt: skip
        assert "has no CUDA toolkit 13.0, and no newer one of the same major version; it has 12.8, 12.9" in sentence


def test_a_link_gives_way_to_a_folder(tmp_path):
    tree = nvidia_store.Tree(str(tmp_path / "tree"))
    tree.link("lib64", "lib")
    tree.link("include", "other")
    tree.link("a/b", "c")
    tree.link("up", "../out")
    for path in ("lib/x", "lib64/y", "a/b/c/d"):
        tree.add(path, io.BytesIO(b"1"), False)
    assert nvidia_driver.parse_manifest(tree.text("toolkit", "13.0"))["links"] == {"include": "other"}


class TestBeforeAnythingChanges:
    """Check mode, with which a run begins: it refuses what can be known without asking anybody."""

    def test_a_node_without_libraries_and_nowhere_else_to_go(self, root):
        with pytest.raises(NvidiaError) as caught:
            run(root, True)
        for words in ("node: the node itself has no libcuda.so", "runfile: nvidia_runfile_url is not set",
                      "apt: nvidia_repo_url is not set"):  # fmt: skip
            assert words in str(caught.value)

    def test_it_says_from_where_it_would_come(self, root):
        shown = run(root, True, repo_url="http://127.0.0.1:1")
        assert shown["source"] == "apt"
        assert any("the node itself has no" in reason for reason in shown["reasons"])
        site.node_root(root, V)
        assert run(root, True, repo_url="http://127.0.0.1:1")["source"] == "node"

    def test_a_failure_says_why_the_others_were_left_out(self, root):
        sentence = refused(root)
        assert "runfile: nvidia_runfile_url is not set" in sentence


class TestStore:
    def test_auto_goes_on_and_says_why(self, root, server):
        sentence = refused(root, runfile_url=f"{server.url}/NVIDIA-Linux-x86_64-{V}.run", runfile_sha256="ab" * 32,
                           repo_url=server.url)  # fmt: skip
        for words in ("node: the node itself has no", "runfile: ", "HTTP 404", "apt: ", "Nothing was installed"):
            assert words in sentence

    @pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
    def test_a_damaged_archive_is_made_again(self, root, damage):
        site.node_root(root, V)
        first = run(root)
        path = Path(first["archive"])
        data = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(data[:-600] if damage == "cut" else data[:2000] + b"x" + data[2001:])
        again = run(root)
        assert again["changed"] is True
        assert path.read_bytes() == data

    def test_an_archive_that_was_only_touched_is_kept(self, root):
        site.node_root(root, V)
        os.utime(run(root)["archive"], (1, 1))
        assert run(root)["changed"] is False

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', "null"])
    def test_a_record_that_can_not_be_read_is_none(self, root, text):
        site.node_root(root, V)
        first = run(root)
        Path(first["archive"]).with_suffix(".json").write_text(text)
        assert run(root)["changed"] is True

    def test_the_oldest_goes(self, root):
        names = []
        for version in (OLD, V, NEW):
            site.node_root(root, version)
            names.append(run(root, keep=2)["name"])
            for path in (root.parent / "store").glob("*.json"):
                record = json.loads(path.read_text())
                assert set(record) >= {"name", "digest", "source", "origin", "sha256"}
        there = sorted(path.stem for path in (root.parent / "store").glob("*.tar"))
        assert there == sorted(names[1:])

    def test_another_run_at_work_is_waited_for_and_named(self, root):
        site.node_root(root, V)
        store = nvidia_store.Store(str(root.parent / "store"))
        with store.locked(1), pytest.raises(NvidiaError, match="another run has been at work in"):
            run(root, wait=0)

    def test_a_killed_run_leaves_nothing_in_the_way(self, root):
        site.node_root(root, V)
        work = root.parent / "store/.work/tree/lib"
        work.mkdir(parents=True)
        (work / "x").write_text("half")
        result = run(root)
        assert "lib/x" not in content(result)
        assert not (root.parent / "store/.work").exists()

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"kind": "toolkit"}, "version is needed"),
            ({"kind": "toolkit", "version": "13.0", "method": "node"}, "not from the node"),
            ({"kind": "toolkit", "version": "13.0"}, "nvidia_repo_url is not set"),
            ({"kind": "toolkit", "version": "13.0", "method": "runfile", "runfile_url": "x"},
             "nvidia_toolkit_runfile_sha256 is not set"),
            ({"method": "apt", "repo_url": "http://127.0.0.1:1", "repo_key_fingerprints": []}, "is empty"),
            ({"method": "apt", "repo_url": "http://127.0.0.1:1"}, "InRelease: Connection refused"),
        ],
    )  # fmt: skip
    def test_what_can_not_be(self, root, values, words):
        assert words in refused(root, **values)
