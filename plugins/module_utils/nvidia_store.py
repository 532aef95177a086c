# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's bundles on the node.

    <store>/<name>.tar        a bundle, its manifest first; comes by rename
    <store>/<name>.json       where it came from, and what its archive hashes to; written last
    <store>/.parts/           downloads on their way, by what they must hash to: a run that was killed goes on with them
    <store>/.work/            what is being unpacked

A bundle that is there is given to every container without asking anybody. What is downloaded is checked before it is
unpacked, and goes once its bundle is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import download, nvidia_driver, nvidia_repository, process
from .download import BLOCK, Unreachable, sha256_of
from .nvidia_driver import DRIVER, MANIFEST, TOOLKIT, File, NvidiaError, Source

DEFAULT = "/var/lib/phoenix-hypervisor/nvidia"
VERSION_FILE = "/proc/driver/nvidia/version"
# Where distributions and NVIDIA's installer put a driver's libraries and programs.
LIBRARIES = (
    "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/nvidia/current", "usr/lib/nvidia/current", "usr/lib/nvidia",
    "usr/lib64", "usr/lib",
)  # fmt: skip
PROGRAMS = ("usr/bin", "usr/lib/nvidia/current", "usr/local/bin")
_SMALL = 256 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Tree:
    """A folder that is being filled with a bundle's files."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files: dict[str, File] = {}
        self.links: dict[str, str] = {}
        os.makedirs(folder, 0o755)

    def add(self, path: str, source: Any, executable: bool) -> None:
        """Add a file from what can be read."""
        if nvidia_driver.path_problem(path):
            raise NvidiaError(f"has the path {path!r}, which leads somewhere else")
        target = f"{self.folder}/{path}"
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        hashed, size = hashlib.sha256(), 0
        self.links.pop(path, None)
        with open(target, "wb") as file:
            for block in iter(lambda: source.read(BLOCK), b""):
                hashed.update(block)
                file.write(block)
                size += len(block)
        self.files[path] = File(hashed.hexdigest(), size, executable)

    def link(self, path: str, target: str) -> None:
        """Add a link, unless it leads out of the bundle."""
        leads_out = nvidia_driver.path_problem(path) or nvidia_driver.target_problem(path, target)
        if path not in self.files and not leads_out:
            self.links[path] = target

    def text(self, kind: str, version: str) -> str:
        """Return the manifest. Where one part has a folder, another part's link of that name gives way."""
        folders = {os.path.dirname(path) for path in (*self.files, *self.links)}
        for folder in list(folders):
            while folder := os.path.dirname(folder):
                folders.add(folder)
        self.links = {path: target for path, target in self.links.items() if path not in folders}
        return nvidia_driver.manifest(kind, version, self.files, self.links)


class Store:
    """The bundles of a node.

    Args:
        folder: where they are.
        say: is called with a sentence for each thing that was done.
        pauses: seconds before each further attempt of a download.
    """

    def __init__(
        self, folder: str, say: Callable[[str], None] = lambda _text: None, pauses: Sequence[float] | None = None
    ) -> None:
        self.folder = folder.rstrip("/")
        self.say = say
        self.pauses = pauses
        self.downloaded = 0
        self._open = download.opener().open

    # --- what is there ----------------------------------------------------------------------------------------------

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Return what is known of the bundles of a kind whose archives are there and are what was written."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(os.listdir(self.folder)):
                if not entry.startswith(f"{kind}-") or not entry.endswith(".json"):
                    continue
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    record = json.loads(Path(self.folder, entry).read_text(encoding="utf-8"))
                    if self._is_whole(record):
                        found.append(record)
        return found

    def archive(self, name: str) -> str:
        """Return the path of a bundle's archive."""
        return f"{self.folder}/{name}.tar"

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        path = self.archive(record["name"])
        there = os.stat(path)
        if [there.st_size, there.st_mtime_ns, there.st_ctime_ns] == record["seen"]:
            return True
        return there.st_size == record["seen"][0] and sha256_of(path) == record["sha256"]

    @contextlib.contextmanager
    def locked(self, seconds: float) -> Iterator[None]:
        """Keep others from working in the store: the second container finds what the first one made.

        Raises:
            NvidiaError: another one is still at it.
        """
        os.makedirs(self.folder, 0o755, exist_ok=True)
        end = time.monotonic() + seconds
        with open(f"{self.folder}/.lock", "a", encoding="utf-8") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise NvidiaError(
                            f"another run has been at work in {self.folder} on the node for {seconds:g} s; see what it "
                            "waits for, and run again"
                        ) from None
                    time.sleep(0.2)
            yield

    # --- making a bundle --------------------------------------------------------------------------------------------

    def make(self, kind: str, version: str, method: str, fill: Callable[[Tree], dict[str, Any]]) -> dict[str, Any]:
        """Make a bundle, and return what is known of it.

        Args:
            kind: driver or toolkit.
            version: its version.
            method: how it comes.
            fill: fills a folder, and returns where that came from.

        Raises:
            NvidiaError: it can't be made. Nothing of it is left.
        """
        work = f"{self.folder}/.work"
        shutil.rmtree(work, ignore_errors=True)
        os.makedirs(work, 0o700)
        try:
            tree = Tree(f"{work}/tree")
            origin = fill(tree)
            lacking = nvidia_driver.missing(kind, version, tree.files)
            if lacking:
                raise NvidiaError(f"has no {lacking}")
            text = tree.text(kind, version)
            whole = nvidia_driver.digest(text)
            name = nvidia_driver.name(kind, version, whole)
            packed = f"{work}/{name}.tar"
            _pack(packed, tree, text)
            record = {"name": name, "kind": kind, "version": version, "digest": whole, "source": method}
            record.update(origin=origin, sha256=sha256_of(packed))
            os.replace(packed, self.archive(name))
            there = os.stat(self.archive(name))
            record["seen"] = [there.st_size, there.st_mtime_ns, there.st_ctime_ns]
            temporary = f"{work}/record"
            Path(temporary).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            os.replace(temporary, f"{self.folder}/{name}.json")
            shutil.rmtree(f"{self.folder}/.parts", ignore_errors=True)
            return record
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def prune(self, kind: str, keep: int, live: str) -> list[str]:
        """Remove the oldest bundles of a kind, and return their names."""
        known = sorted(self.records(kind), key=lambda record: (record["name"] == live, record["seen"][1]), reverse=True)
        gone = [record["name"] for record in known[max(keep, 1) :]]
        for name in gone:
            for path in (f"{self.folder}/{name}.json", self.archive(name)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        return gone

    # --- the node's own libraries -----------------------------------------------------------------------------------

    def from_node(self, version: str, root: str = "/") -> Callable[[Tree], dict[str, Any]]:
        """Return what fills a bundle with the node's own libraries."""

        def fill(tree: Tree) -> dict[str, Any]:
            problem = node_problem(version, root)
            if problem:
                raise NvidiaError(problem)
            for path, real in sorted(node_files(version, root).items()):
                with open(real, "rb") as source:
                    tree.add(path, source, path.startswith("bin/"))
            for path, target in nvidia_driver.driver_links(tree.files, version).items():
                tree.link(path, target)
            return {"fingerprint": node_fingerprint(version, root)}

        return fill

    # --- a self-extracting archive ----------------------------------------------------------------------------------

    def from_runfile(self, kind: str, version: str, source: Source) -> Callable[[Tree], dict[str, Any]]:
        """Return what fills a bundle from NVIDIA's self-extracting archive. Nothing in it is run but its unpacking."""

        def fill(tree: Tree) -> dict[str, Any]:
            path = self.fetch(source.runfile_url, source.runfile_sha256.lower())
            self._run(["sh", path, "--check"], "its own checksum is wrong", source.runfile_url)
            folder = f"{self.folder}/.work/runfile"
            # Both unpack alone: NVIDIA's own form of makeself for drivers, makeself itself for toolkits.
            unpack = ["--extract-only"] if kind == DRIVER else ["--noexec"]
            self._run(["sh", path, *unpack, "--target", folder], "it can't be unpacked", source.runfile_url)
            if kind == DRIVER:
                self._driver_from(folder, version, tree, source.runfile_url)
            else:
                self._toolkit_from(folder, tree)
            return {"url": source.runfile_url, "sha256": source.runfile_sha256.lower()}

        return fill

    def _driver_from(self, folder: str, version: str, tree: Tree, url: str) -> None:
        names = sorted(os.listdir(folder))
        for name in names:
            path, real = nvidia_driver.place(name, version), f"{folder}/{name}"
            if path and stat.S_ISREG(os.lstat(real).st_mode):
                with open(real, "rb") as source:
                    tree.add(path, source, path.startswith("bin/"))
        if f"lib/libcuda.so.{version}" not in tree.files:
            other = [name.partition(".so.")[2] for name in names if name.startswith("libcuda.so.")]
            has = f"it is driver {other[0]}" if other else "it is no driver"
            raise NvidiaError(f"{url} has no libraries of {version}: {has}; correct nvidia_runfile_url and its hash")
        for path, target in nvidia_driver.driver_links(tree.files, version).items():
            tree.link(path, target)

    def _toolkit_from(self, folder: str, tree: Tree) -> None:
        """Merge the parts of a toolkit's archive: each is a folder with bin, include, lib64 and the like."""
        builds = f"{folder}/builds" if os.path.isdir(f"{folder}/builds") else folder
        # Profilers with windows are as large as all the rest.
        parts = [f"{builds}/{name}" for name in sorted(os.listdir(builds)) if not name.startswith("nsight")]
        for part in parts:
            inner = set(os.listdir(part)) if os.path.isdir(part) and not os.path.islink(part) else set()
            if inner & {"bin", "include", "lib64", "lib", "nvvm", "targets"}:
                _add_folder(tree, part)
        _complete_toolkit(tree)

    # --- an apt repository ------------------------------------------------------------------------------------------

    def from_repository(
        self, kind: str, version: str, source: Source, keys: Sequence[str], key_url: str, wanted: Sequence[str]
    ) -> Callable[[Tree], dict[str, Any]]:
        """Return what fills a bundle from the packages of NVIDIA's apt repository."""

        def fill(tree: Tree) -> dict[str, Any]:
            base = source.repo_url.rstrip("/") + "/"
            there = self.index(base, keys, key_url)
            with _about(base):
                if kind == DRIVER:
                    chosen = nvidia_repository.driver_packages(
                        there, version, wanted or nvidia_repository.DRIVER_PACKAGES
                    )
                else:
                    chosen = nvidia_repository.toolkit_packages(
                        there, version, wanted or nvidia_repository.TOOLKIT_PACKAGES
                    )
            for package in chosen:
                path = self.fetch(base + package.filename, package.sha256, package.size)
                with _about(base + package.filename):
                    self._unpack(path, kind, version, tree)
            if kind == DRIVER:
                for path, target in nvidia_driver.driver_links(tree.files, version).items():
                    tree.link(path, target)
            else:
                _complete_toolkit(tree)
            return {"url": base, "packages": [f"{package.name}={package.version}" for package in chosen]}

        return fill

    def index(
        self, base: str, keys: Sequence[str], key_url: str
    ) -> dict[str, list[nvidia_repository.Package]]:
        """Return the packages of a repository, once its signature is checked.

        Raises:
            NvidiaError: it gives no answer, or isn't signed by one of the keys.
        """
        problem = nvidia_repository.fingerprint_problem(keys)
        if problem:
            raise NvidiaError(problem)
        signed = self.small(f"{base}InRelease")
        release = self._verified(signed, self._key(base, keys, key_url), keys, f"{base}InRelease")
        with _about(f"{base}InRelease"):
            name, wanted = nvidia_repository.index_of(release)
        data = self.small(base + name)
        if hashlib.sha256(data).hexdigest() != wanted:
            raise NvidiaError(
                f"{base}{name} isn't the one that InRelease names: the repository is being changed, or is damaged"
            )
        with _about(base + name):
            return nvidia_repository.packages(nvidia_repository.unpacked(name, data))

    def _key(self, base: str, keys: Sequence[str], key_url: str) -> bytes:
        urls = [key_url] if key_url else [base + name for name in nvidia_repository.key_names(keys)]
        found, problems = b"", []
        for url in urls:
            try:
                data = self.small(url)
            except NvidiaError as error:
                problems.append(str(error))
                continue
            with _about(url):
                found += nvidia_repository.binary_key(data)
        if not found:
            raise NvidiaError(f"the key of the repository can't be had: {'; '.join(problems)}; set nvidia_repo_key_url")
        return found

    def _verified(self, signed: bytes, key: bytes, keys: Sequence[str], url: str) -> str:
        with tempfile.TemporaryDirectory(prefix="phoenix-nvidia-") as folder:
            for name, data in (("key.gpg", key), ("InRelease", signed)):
                Path(folder, name).write_bytes(data)
            done = process.run(
                ["gpgv", "--status-fd", "1", "--homedir", folder, "--keyring", f"{folder}/key.gpg",
                 "--output", f"{folder}/Release", f"{folder}/InRelease"], 60,
            )  # fmt: skip
            problem = (self._problem_by_sqv(folder, signed, keys, url) if done.rc == 127
                       else nvidia_repository.signer_problem(done.stdout, keys))  # fmt: skip
            if problem:
                raise NvidiaError(f"{url} {problem}")
            # This is what was signed; a file may have more around it.
            return Path(folder, "Release").read_text(encoding="utf-8", errors="replace")

    def _problem_by_sqv(self, folder: str, signed: bytes, keys: Sequence[str], url: str) -> str:
        """Check it as Debian 13 does, whose apt needs sqv and no gpgv any more. Return what is wrong.

        Args:
            folder: with C(key.gpg); it gets C(Release), what was signed.
        """
        with _about(url):
            text, signature = nvidia_repository.signed_parts(signed.decode("utf-8", "surrogateescape"))
        files = {"Release": text, "Release.sig": signature, "policy": nvidia_repository.SQV_POLICY}
        for name, content in files.items():
            Path(folder, name).write_text(content, encoding="utf-8", errors="surrogateescape")
        done = process.run(
            ["sqv", "--verbose", "--keyring", f"{folder}/key.gpg", f"{folder}/Release.sig", f"{folder}/Release"], 60,
            environment={"SEQUOIA_CRYPTO_POLICY": f"{folder}/policy"},
        )  # fmt: skip
        if done.rc == 127:
            raise NvidiaError(
                "the node has neither gpgv nor sqv to check the repository's signature with: apt-get install gpgv"
            )
        return nvidia_repository.sqv_problem("" if done.failed else done.stdout, done.stderr, keys)

    def _unpack(self, path: str, kind: str, version: str, tree: Tree) -> None:
        """Take what a package has of a bundle."""
        inner = f"{path}.tar"
        try:
            with open(inner, "wb") as file:
                done = process.run(["dpkg-deb", "--fsys-tarfile", path], 1800, sink=file.write)
            if done.failed:
                raise NvidiaError(f"can't be unpacked: {done.sentence()}")
            with tarfile.open(inner) as archive:
                for member in archive:
                    place = _package_place(member.name, kind, version)
                    if place and (member.isreg() or (member.islnk() and kind == DRIVER)):
                        tree.add(place, archive.extractfile(member), bool(member.mode & 0o111))
                    elif place and member.islnk():
                        tree.link(place, os.path.relpath(
                            _package_place(member.linkname, kind, version), os.path.dirname(place) or "."))  # fmt: skip
                    elif place and member.issym() and kind == TOOLKIT:
                        tree.link(place, member.linkname)
        except tarfile.TarError as error:
            raise NvidiaError(f"can't be unpacked: {error}") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(inner)

    # --- downloads --------------------------------------------------------------------------------------------------

    def fetch(self, url: str, sha256: str, size: int = 0) -> str:
        """Return the path of a file that has been downloaded and is what it must be.

        Raises:
            NvidiaError: it can't be had, or is another one.
        """
        os.makedirs(f"{self.folder}/.parts", 0o700, exist_ok=True)
        part = Path(self.folder, ".parts", sha256)
        begun = part.stat().st_size if part.exists() else 0
        if begun and sha256_of(part) == sha256:
            return str(part)
        try:
            found = download.download(
                lambda start: self._open(download.urllib.request.Request(
                    url, headers={"User-Agent": download.AGENT, **({"Range": f"bytes={start}-"} if start else {})}
                ), timeout=60), part, hashlib.sha256, self._count, size, self.pauses,
            )  # fmt: skip
        except Unreachable as problem:
            raise NvidiaError(
                f"{url}: {problem.reason}; what came of it is kept, and the next run goes on with it"
            ) from None
        there = part.stat().st_size
        if found != sha256:
            part.unlink()
            short = f"; it has {there} bytes, and should have {size}" if size and there != size else f" ({there} bytes)"
            raise NvidiaError(
                f"{url} hashes to {found}, and should to {sha256}{short}: it is truncated, was changed, or is another "
                "file. Nothing of it was unpacked. Download it by hand and compare with what NVIDIA publishes"
            )
        self.say(f"downloaded {url}: {there >> 20} MiB, SHA-256 {sha256}")
        return str(part)

    def small(self, url: str) -> bytes:
        """Return the content of a small file.

        Raises:
            NvidiaError: it can't be had.
        """
        def opened(_start: int) -> Any:
            return self._open(
                download.urllib.request.Request(url, headers={"User-Agent": download.AGENT}), timeout=60
            )

        try:
            with download.answered(opened, 0) as reply:
                data = b"".join(download.blocks(reply))[:_SMALL]
        except Unreachable as problem:
            raise NvidiaError(f"{url}: {problem.reason}") from None
        self.downloaded += len(data)
        return data

    def _count(self, count: int) -> None:
        self.downloaded += max(count, 0)

    def _run(self, words: list[str], problem: str, url: str) -> None:
        done = process.run(words, 3600)
        if done.failed:
            raise NvidiaError(f"{url}: {problem} ({done.sentence()}); download it anew and correct its hash")

    def problem(self, error: OSError) -> str:
        """Return what an error of the disk means."""
        if error.errno in _FULL:
            return f"the disk of {self.folder} on the node is full; make room, or set nvidia_store to another folder"
        return f"{error.filename or self.folder} on the node: {error.strerror or error}"


# --- the node -------------------------------------------------------------------------------------------------------


def read_version(path: str = VERSION_FILE) -> str:
    """Return the version of the node's kernel driver.

    Raises:
        NvidiaError: there is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise NvidiaError(
            f"the node has no NVIDIA kernel driver loaded ({path} can't be read). Install it on the node and load it "
            "(nvidia-smi there must work), or take the feature nvidia out of the container's entry"
        ) from None
    found = nvidia_driver.kernel_version(text)
    if not found:
        raise NvidiaError(f"{path} on the node has no version of a driver in it: {text.strip()[:80]!r}")
    return found


def node_files(version: str, root: str = "/") -> dict[str, str]:
    """Return the node's own files of a driver: path in a bundle → path on the node."""
    found: dict[str, str] = {}
    root = root.rstrip("/")
    for folder in dict.fromkeys((*LIBRARIES, *PROGRAMS)):
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(f"{root}/{folder}")):
                path = nvidia_driver.place(name, version)
                is_program = path.startswith("bin/")
                if not path or path in found or folder not in (PROGRAMS if is_program else LIBRARIES):
                    continue
                real = os.path.realpath(f"{root}/{folder}/{name}")
                # Programs have no version in their names, but in them.
                if os.path.isfile(real) and (not is_program or name != "nvidia-smi" or _mentions(real, version)):
                    found[path] = real
    return found


def node_problem(version: str, root: str = "/") -> str:
    """Return why the node's own files are no driver of this version, C("") when they are."""
    lacking = nvidia_driver.missing(DRIVER, version, node_files(version, root))
    if not lacking:
        return ""
    others = ", ".join(sorted(_other_versions(root, version)))
    half = f"; it has libcuda.so of {others}, so its own driver is half upgraded" if others else ""
    return f"the node itself has no {lacking}{half}"


def node_fingerprint(version: str, root: str = "/") -> str:
    """Return a text that is another one when the node's own files are: they are not hashed at every run."""
    lines = []
    for path, real in sorted(node_files(version, root).items()):
        there = os.stat(real)
        lines.append(f"{path} {there.st_size} {there.st_mtime_ns} {there.st_ino}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _other_versions(root: str, version: str) -> set[str]:
    found = set()
    for folder in LIBRARIES:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{root.rstrip('/')}/{folder}"):
                other = name.partition("libcuda.so.")[2]
                if nvidia_driver.is_version(other) and other != version:
                    found.add(other)
    return found


def _mentions(path: str, text: str) -> bool:
    before = b""
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            if text.encode() in before + block:
                return True
            before = block[-64:]
    return False


# --- archives -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _about(what: str) -> Iterator[None]:
    """Give a sentence without a beginning its beginning."""
    try:
        yield
    except NvidiaError as error:
        raise NvidiaError(f"{what} {error}") from None


def _package_place(name: str, kind: str, version: str) -> str:
    """Return where a file of a package goes in a bundle, C("") where it is left out."""
    path = os.path.normpath(name).lstrip("/")
    if kind == DRIVER:
        base = os.path.basename(path)
        inside = path.startswith(("usr/lib", "usr/bin/", "lib/")) and "/i386-linux-gnu/" not in path
        return nvidia_driver.place(base, version) if inside else ""
    prefix = f"usr/local/cuda-{version}/"
    return path[len(prefix) :] if path.startswith(prefix) else ""


def _add_folder(tree: Tree, folder: str) -> None:
    for where, folders, files in os.walk(folder):
        inner = os.path.relpath(where, folder)
        for name in sorted(folders + files):
            real, path = os.path.join(where, name), os.path.normpath(os.path.join(inner, name))
            there = os.lstat(real)
            if stat.S_ISLNK(there.st_mode):
                tree.link(path, os.readlink(real))
            elif stat.S_ISREG(there.st_mode):
                with open(real, "rb") as source:
                    tree.add(path, source, bool(there.st_mode & 0o111))


def _complete_toolkit(tree: Tree) -> None:
    """Have the folders where a toolkit's are looked for, which a package's script makes elsewhere."""
    for name, target in (("lib64", "targets/x86_64-linux/lib"), ("include", "targets/x86_64-linux/include")):
        below = any(path.startswith(f"{name}/") for path in (*tree.files, *tree.links))
        there = any(path.startswith(f"{target}/") for path in tree.files)
        if there and not below and name not in tree.links:
            tree.link(name, target)


def _pack(path: str, tree: Tree, text: str) -> None:
    """Write a bundle's archive: the manifest, then the files. Links are made from the manifest."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        data = text.encode()
        head = tarfile.TarInfo(MANIFEST)
        head.size = len(data)
        archive.addfile(head, io.BytesIO(data))
        for name, file in sorted(tree.files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = file.size, 0o755 if file.executable else 0o644
            with open(f"{tree.folder}/{name}", "rb") as source:
                archive.addfile(member, source)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
