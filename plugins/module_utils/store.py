# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's store of wheels: its files.

    <release>/            a whole wheelhouse, with its manifest.json; comes by rename, goes by rename
    files/<SHA-256>       every file once; those of the wheelhouses are hard links to it
    claims/<release>.json who makes a wheelhouse at the moment; its mtime is the last sign of life
    damaged/              files that were found to be something else than their manifest says
    .incoming.*           what is being received or removed; a leftover unless somebody holds a lock on it

What changes which wheelhouses there are is done under one lock and takes no time. Files are received and read without.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from ansible_collections.phoenix.hypervisor.plugins.module_utils import store_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.store_plan import (
    MANIFEST,
    MANIFEST_LIMIT,
    Claim,
    Damaged,
    Manifest,
    StoreError,
    megabytes,
)

DEFAULT = "/var/lib/phoenix-hypervisor/wheels"
KEEP = 5
# Damaged files are kept to be looked at; a disk that goes bad must not fill up with them.
_DAMAGED_KEPT = 3
_INCOMING = ".incoming."
_CHUNK = 1 << 18
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Store:
    """The store in a folder of the node."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._files, self._claims = f"{root}/files", f"{root}/claims"

    def path(self, release: str) -> str:
        return f"{self.root}/{release}"

    def prepare(self) -> None:
        """Make its folders. What is in it is public software: everybody may read it, root alone may write."""
        os.umask(0o022)
        for folder in (self._files, self._claims):
            os.makedirs(folder, exist_ok=True)

    def problem(self, error: OSError) -> str:
        """Why the store could not be changed."""
        if error.errno in _FULL:
            return f"store: the disk of {self.root} on the node is full; make room, or name another folder. {_SAME}"
        return f"store: {error.filename or self.root} on the node: {error.strerror}. {_SAME}"

    # --- reading ----------------------------------------------------------------------------------------------------

    def manifest(self, release: str) -> Manifest | None:
        """The manifest of a whole wheelhouse; None where there is none. The content of its files isn't looked at."""
        folder = self.path(release)
        try:
            with open(f"{folder}/{MANIFEST}", "rb") as file:
                found = store_plan.manifest(file.read(MANIFEST_LIMIT), release, folder)
        except (OSError, StoreError):
            return None
        return found if all(os.path.isfile(f"{folder}/{name}") for name in found.files) else None

    def used(self) -> dict[str, float]:
        """When each wheelhouse was used last."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.root):
                with contextlib.suppress(OSError):
                    if not store_plan.release_problem(entry.name):
                        found[entry.name] = os.stat(f"{entry.path}/{MANIFEST}").st_mtime
        return found

    def size(self, manifest: Manifest) -> int:
        """Bytes of a wheelhouse's files."""
        folder = self.path(manifest.release)
        return sum(os.stat(f"{folder}/{name}").st_size for name in manifest.files)

    @contextlib.contextmanager
    def reading(self, release: str) -> Iterator[int]:
        """A wheelhouse that isn't removed meanwhile, as a file descriptor of its folder.

        :raises FileNotFoundError: when it is gone
        """
        folder = os.open(self.path(release), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_SH)
            if not _is_at(folder, self.path(release)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path(release))
            yield folder
        finally:
            os.close(folder)

    def mark_used(self, release: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(f"{self.path(release)}/{MANIFEST}")

    # --- changing ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with open(f"{self.root}/.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def incoming(self) -> Iterator[str]:
        """A new folder, for files to come; gone afterwards unless it was placed."""
        with self._alone():
            for leftover in self._leftovers():
                shutil.rmtree(leftover, ignore_errors=True)
            folder = tempfile.mkdtemp(prefix=_INCOMING, dir=self.root)
            os.chmod(folder, 0o755)
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)

    def _leftovers(self) -> list[str]:
        found = [entry.path for entry in os.scandir(self.root) if entry.name.startswith(_INCOMING)]
        return [path for path in found if not _is_held(path)]

    def share(self, folder: str, manifest: Manifest) -> list[str]:
        """Link files into a folder that the store has from other wheelhouses. Gives the names of those that it hasn't.

        Each is read first: a damaged one is set aside and comes anew.
        """
        missing = []
        for name in manifest.names:
            shared = f"{self._files}/{manifest.files[name]}"
            try:
                if _sha256(shared) != manifest.files[name]:
                    self._keep_damaged(shared, f"{os.path.basename(name)}-{_stamp()}")
                    raise FileNotFoundError
                os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
                os.link(shared, f"{folder}/{name}")
            except FileNotFoundError:
                missing.append(name)
        return missing

    def check_room(self, size: int) -> None:
        """:raises StoreError: when so many bytes more have no place"""
        there = os.statvfs(self.root)
        free = there.f_bavail * there.f_frsize
        if size > free:
            raise StoreError(
                f"store: the disk of {self.root} on the node has {megabytes(free)} left, and the wheels need "
                f"{megabytes(size)}; make room there, or name another folder. {_SAME}"
            )

    def place(self, folder: str, manifest: Manifest) -> bool:
        """Make a folder with all files the wheelhouse of its release; False when it has one already."""
        with open(f"{folder}/{MANIFEST}", "xb") as file:
            file.write(manifest.text)
            file.flush()
            os.fsync(file.fileno())
        with self._alone():
            if self.manifest(manifest.release):
                return False
            for name, digest in manifest.files.items():
                _make_one(f"{folder}/{name}", f"{self._files}/{digest}")
            self._away(self.path(manifest.release))
            os.rename(folder, self.path(manifest.release))
            _sync_folder(self.root)
        return True

    def prune(self, keep: int) -> list[str]:
        """Remove all wheelhouses but those that were used last, and files that are in none. Gives what went."""
        with self._alone():
            going = store_plan.to_remove(self.used(), keep, self.claimed())
            gone = [release for release in going if self._remove(release)]
            for entry in os.scandir(self._files):
                if entry.stat().st_nlink == 1:
                    os.unlink(entry.path)
        return gone

    def _remove(self, release: str) -> bool:
        """Remove a wheelhouse, unless somebody reads it."""
        folder = os.open(self.path(release), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self._away(self.path(release)), ignore_errors=True)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(folder)

    def set_aside(self, manifest: Manifest, name: str, held: int) -> str | None:
        """Take a wheelhouse with a damaged file out of the store.

        :param held: its folder as it was read: another that came meanwhile is left alone
        :returns: where that file is now, "" when it was missing; None when somebody else was first
        """
        digest = manifest.files[name]
        with self._alone():
            if not _is_at(held, self.path(manifest.release)):
                return None
            away = self._away(self.path(manifest.release))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._files}/{digest}")
            try:
                return self._keep_damaged(f"{away}/{name}", f"{os.path.basename(name)}-{_stamp()}")
            except FileNotFoundError:
                return ""
            finally:
                shutil.rmtree(away, ignore_errors=True)

    def _away(self, path: str) -> str:
        """Take a folder from its place, for its removal."""
        away = f"{self.root}/{_INCOMING}{os.getpid()}.{os.path.basename(path)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, away)
        return away

    def _keep_damaged(self, path: str, name: str) -> str:
        os.makedirs(f"{self.root}/damaged", exist_ok=True)
        aside = f"{self.root}/damaged/{name}"
        os.rename(path, aside)
        os.utime(aside)
        there = sorted(os.scandir(f"{self.root}/damaged"), key=lambda entry: entry.stat().st_mtime)
        for old in there[:-_DAMAGED_KEPT]:
            os.unlink(old.path)
        return aside

    # --- claims -----------------------------------------------------------------------------------------------------

    def claim(self, release: str) -> Claim | None:
        """Who makes the wheels of a release."""
        try:
            with open(f"{self._claims}/{release}.json", "rb") as file:
                return store_plan.claim(file.read(4096), os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return None

    def claimed(self) -> set[str]:
        """The releases that somebody makes."""
        with contextlib.suppress(FileNotFoundError):
            return {name[:-5] for name in os.listdir(self._claims)}
        return set()

    def take_claim(self, release: str, mine: Claim, instead: Claim | None) -> bool:
        """Claim a release; False when the claim isn't the one any more that it is taken instead of."""
        with self._alone():
            if self.claim(release) != instead:
                return False
            with open(f"{self._claims}/.new", "w", encoding="utf-8") as file:
                file.write(mine.text())
            os.replace(file.name, f"{self._claims}/{release}.json")
        return True

    def heard(self, release: str) -> None:
        """Who claims this release is alive."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(f"{self._claims}/{release}.json")

    def give_back(self, release: str, vmid: int) -> bool:
        """Take a container's claim away, where it has one."""
        with self._alone():
            found = self.claim(release)
            if not found or found.vmid != vmid:
                return False
            os.unlink(f"{self._claims}/{release}.json")
        return True


_SAME = "The store is as it was"


# --- files as a stream ----------------------------------------------------------------------------------------------


class Receiver:
    """Makes sure that each file of a stream is what its manifest says, and writes it to a folder.

    :param source: where they come from, for the message
    :param wanted: the names of those that are written; None for all
    """

    def __init__(
        self, folder: str, manifest: Manifest, source: str, wanted: Collection[str] | None = None
    ) -> None:
        self._folder, self._manifest, self._source, self._wanted = folder, manifest, source, wanted
        self._file, self._digest = -1, hashlib.sha256()

    def begin(self, name: str) -> Callable:
        self._digest = hashlib.sha256()
        if self._wanted is not None and name not in self._wanted:
            return self._digest.update
        path = f"{self._folder}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        return self._take

    def _take(self, piece: memoryview) -> None:
        self._digest.update(piece)
        while piece:
            piece = piece[os.write(self._file, piece) :]

    def finish(self, name: str) -> None:
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1
        if self._digest.hexdigest() != self._manifest.files[name]:
            raise StoreError(
                f"{self._source}: {name} is not what its {MANIFEST} says (SHA-256 {self._digest.hexdigest()}); it was "
                f"damaged or is being changed. {_SAME}"
            )


def archive(folder: int, manifest: Manifest, names: Sequence[str], prefix: str = "") -> Iterator[bytes]:
    """A tar archive of a wheelhouse of the store, piece by piece. The same files give the same bytes.

    :param folder: its folder
    :param names: its files in their order, the manifest among them
    :raises Damaged: at the end of a file that isn't what the manifest says
    """
    for name in names:
        if name == MANIFEST:
            yield _header(prefix + name, len(manifest.text)) + manifest.text + _padding(len(manifest.text))
        else:
            yield from _member(folder, manifest, name, prefix)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _member(folder: int, manifest: Manifest, name: str, prefix: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb", buffering=0) as file:
            size = left = os.fstat(file.fileno()).st_size
            yield _header(prefix + name, size)
            while left and (piece := file.read(min(left, _CHUNK))):
                digest.update(piece)
                left -= len(piece)
                yield piece
    except FileNotFoundError:
        raise Damaged(manifest.release, name, "is missing") from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Damaged(manifest.release, name, "can't be read any more") from None
    if left or digest.hexdigest() != manifest.files[name]:
        raise Damaged(manifest.release, name, f"has another SHA-256 now ({digest.hexdigest()})")
    yield _padding(size)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.uname, member.gname = size, 0o644, "root", "root"
    return member.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


# --- helpers --------------------------------------------------------------------------------------------------------


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _stamp() -> str:
    return time.strftime("%Y%m%dT%H%M%S")


def _is_held(path: str) -> bool:
    """Does somebody hold a lock on a file or folder?"""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def _is_at(folder: int, path: str) -> bool:
    """Is an open folder the one at this path?"""
    try:
        return os.path.samestat(os.fstat(folder), os.stat(path))
    except FileNotFoundError:
        return False


def _make_one(path: str, shared: str) -> None:
    """Make a file and the store's file of that content the same."""
    try:
        os.link(path, shared)
    except FileExistsError:
        if not os.path.samefile(path, shared):
            os.link(shared, f"{path}.shared")
            os.replace(f"{path}.shared", path)


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def path_problem(path: str) -> str:
    """What is wrong with the store's folder, or ""."""
    if re.fullmatch(r"(/[^/\0]+){2,}", path) and not {".", ".."} & set(path.split("/")):
        return ""
    return f"store: {path!r} is no folder for a store; write a path of its own from the root on, such as {DEFAULT}"
