# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings a model's files, from whatever opens them, into their place; a folder of the node as one such source."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import download, model_plan
from .download import BLOCK, Unreachable
from .model_plan import MANIFEST, File, ModelError, NotThere, Revision
from .model_store import FULL, PARTS, Place, owner

_TELL = 0.5
# A fetch of hours outlives a network that is away for a minute or two.
PAUSES = (1.0, 5.0, 15.0, 30.0, 60.0)


# --- a folder as the source ---------------------------------------------------------------------------------------


class _Local:
    """A file of this machine, as an answer of a server would be."""

    status = 206
    headers: Mapping[str, str] = {}

    def __init__(self, file: Any, start: int) -> None:
        self._file = file
        file.seek(start)
        self.read = file.read

    def __enter__(self) -> _Local:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()


class Folder:
    """A folder of the node that has a model: a copied tree, a mounted one, a snapshot of Hugging Face's cache."""

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/") or "/"
        # In Hugging Face's cache, files are links to blobs/<digest>, two folders up.
        parent = os.path.dirname(os.path.realpath(self.path))
        self._blobs = f"{os.path.dirname(parent)}/blobs" if os.path.basename(parent) == "snapshots" else ""

    def __str__(self) -> str:
        return self.path

    def look(self) -> list[File]:
        """Its files, with the checksums that it has of them itself.

        Raises:
            NotThere: there is no such folder, or nothing in it.
            ModelError: something in it can't be a model's.
        """
        if not os.path.isdir(self.path):
            raise NotThere(f"source: {self.path} is no folder on the node; mount what has it, or correct it")
        known = self._known()
        files = []
        for folder, folders, names in os.walk(self.path, onerror=self._unreadable):
            below = os.path.relpath(folder, self.path)
            for name in [*names, *(each for each in folders if os.path.islink(f"{folder}/{each}"))]:
                path = os.path.normpath(f"{below}/{name}")
                if not model_plan.matches(path, model_plan.LEFTOVERS):
                    files.append(self._file(path, known))
        if not files:
            raise NotThere(f"source: {self.path} has no files: is what has them mounted?")
        return model_plan.checked(files, self.path)

    def opened(self, file: File) -> Callable[[int], Any]:
        """What opens a file from a byte on."""
        return lambda start: _Local(open(self._real(file.path), "rb"), start)

    def is_same(self, file: File) -> bool:
        """Whether a file is as it was when it was looked at."""
        try:
            there = os.stat(self._real(file.path))
        except (OSError, ModelError):
            return False
        return (there.st_size, there.st_mtime_ns) == (file.size, file.mtime)

    def _known(self) -> dict[str, File]:
        """Checksums that somebody wrote down: this collection's own record of a copied revision, or SHA256SUMS."""
        with contextlib.suppress(OSError, ModelError, UnicodeDecodeError):
            record = model_plan.parse_manifest(Path(f"{self.path}/{MANIFEST}").read_text(encoding="utf-8"))
            return {file.path: file for file in record.files}
        with contextlib.suppress(OSError, UnicodeDecodeError):
            sums = model_plan.checksums(Path(f"{self.path}/SHA256SUMS").read_text(encoding="utf-8"))
            return {path: File(path, -1, "sha256", digest) for path, digest in sums.items()}
        return {}

    def _file(self, path: str, known: Mapping[str, File]) -> File:
        if model_plan.path_problem(path):
            raise ModelError(f"source: {self.path} has {path!r}: {model_plan.path_problem(path)}")
        real = self._real(path)
        there = os.stat(real)
        if not stat.S_ISREG(there.st_mode):
            raise ModelError(f"source: {self.path}/{path} is neither a file nor a folder; remove it")
        found = File(path, there.st_size, mtime=there.st_mtime_ns)
        if path in known:
            if known[path].size not in (-1, there.st_size):
                raise ModelError(
                    f"source: {self.path}/{path} has {there.st_size} bytes, and its own record says "
                    f"{known[path].size}: the copy isn't whole; make it again"
                )
            return replace(found, algorithm=known[path].algorithm, digest=known[path].digest)
        if self._blobs and os.path.dirname(real) == self._blobs:
            digest = os.path.basename(real)
            algorithm = {64: "sha256", 40: "git"}.get(len(digest), "")
            if algorithm and re.fullmatch("[0-9a-f]+", digest):
                return replace(found, algorithm=algorithm, digest=digest)
        return found

    def _real(self, path: str) -> str:
        """Where a file is. What it has gets readable for everybody, so a link must not lead just anywhere."""
        root, real = os.path.realpath(self.path), os.path.realpath(f"{self.path}/{path}")
        allowed = [f"{root}/", *([f"{self._blobs}/"] if self._blobs else [])]
        if not real.startswith(tuple(allowed)):
            raise ModelError(f"source: {self.path}/{path} is a link that leads out of the folder; copy the file there")
        if os.path.isdir(real):
            raise ModelError(f"source: {self.path}/{path} is a link to a folder; copy the folder there")
        return real

    def _unreadable(self, error: OSError) -> None:
        raise ModelError(f"source: {error.filename}: {error.strerror}") from None


# --- fetching -----------------------------------------------------------------------------------------------------


class Work:
    """Makes a revision whole in its place.

    Args:
        place: where it goes; its folders are open, and the lock is held.
        revision: what is to be there.
        opened: what opens a file at the source from a byte on.
        failure: what it means that a file can't be had.
        say: is called with how far it is, every half a second.
        threads: how many files come at the same time.
        unchanged: whether a file is at its source what it was when it was looked at.
    """

    def __init__(
        self,
        place: Place,
        revision: Revision,
        opened: Callable[[File], Callable[[int], Any]],
        failure: Callable[[Unreachable, File], ModelError],
        say: Callable[[str], None],
        threads: int = 4,
        unchanged: Callable[[File], bool] = lambda _file: True,
    ) -> None:
        self.place = place
        self.revision = revision
        self.opened = opened
        self.failure = failure
        self.say = say
        self.threads = threads
        self.unchanged = unchanged
        self.fetched = 0
        self._parts = f"{place.hidden}/{PARTS}"
        self._digests: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._stop = False
        self._done = self._total = self._whole = self._of = 0
        self._name = ""
        self._at, self._began, self._since = 0.0, time.monotonic(), time.strftime("%H:%M:%S")

    def run(self, verify: bool) -> list[str]:
        """Do it. Give the files of a revision that was there already that had to be replaced.

        Raises:
            ModelError: a file can't be had as it should be.
        """
        there = os.path.isdir(f"{self.place.hidden}/{self.revision.name}")
        wanted = list(self.revision.files)
        if there:
            missing = set(self.place.missing(self.revision))
            if verify:
                self._begin([file for file in wanted if file not in missing])
                missing |= {file for file in wanted if file not in missing and not self.is_right(file)}
            wanted = sorted(missing)
        self._bring_all(wanted)
        if there:
            self._repair(wanted)
        else:
            self._place_all()
        return [file.path for file in wanted] if there else []

    # --- one file ---------------------------------------------------------------------------------------------------

    def _bring_all(self, files: Sequence[File]) -> None:
        """Have every content once among the parts; big ones first, as nothing else would be left to do beside them."""
        os.makedirs(self._parts, 0o700, exist_ok=True)
        jobs = sorted({file.key: file for file in files}.values(), key=lambda file: (-file.size, file.path))
        self._begin(jobs)
        candidates = self._candidates()
        with ThreadPoolExecutor(self.threads) as pool:
            begun = [pool.submit(self._bring, file, candidates) for file in jobs]
            done, _others = wait(begun, return_when=FIRST_EXCEPTION)
            failed = [job for job in done if job.exception()]
            if failed:
                self._stop = True
                for job in begun:
                    job.cancel()
        for job in begun:
            if not job.cancelled() and job.exception() and not isinstance(job.exception(), _Stopped):
                raise job.exception()

    def _bring(self, file: File, candidates: Mapping[str, list[str]]) -> None:
        part = Path(self._parts, file.key)
        with contextlib.suppress(FileNotFoundError):
            if part.stat().st_nlink > 1 and part.stat().st_size != file.size:
                # A link to a file of a revision must never be written to.
                part.unlink()
        if not part.exists():
            for path in [*candidates.get(file.key, []), *candidates.get(f"path {file.path}", [])]:
                if self._take(path, file, part):
                    return
        found = ""
        for _attempt in (1, 2):
            found = self._download(file, part)
            if not found:
                break
            self._count(-part.stat().st_size, file.path)
            part.unlink()
        else:
            raise ModelError(
                f"{self.place.path}: {file.path} came twice with another checksum ({found}) than its source says "
                f"that it has ({file.digest}): what is between here and there changes it, or the source is damaged"
            )
        _sync(part)
        with self._lock:
            self._whole += 1

    def _download(self, file: File, part: Path) -> str:
        """Bring a file; give its digest when that is another one than it should be."""
        begun = part.stat().st_size if part.exists() else 0
        try:
            found = download.download(
                self.opened(file), part, file.hasher, lambda count: self._count(count, file.path), file.size, PAUSES
            )
        except Unreachable as problem:
            raise self.failure(problem, file) from None
        if not self.unchanged(file):
            part.unlink()
            raise ModelError(f"{self.place.path}: {file.path} changes at its source while it is read; run again later")
        with self._lock:
            self.fetched += max(part.stat().st_size - begun, 0)
        if file.digest:
            return "" if found == file.digest else found
        self._digests[file.path] = ("sha256", found)
        return ""

    def _candidates(self) -> dict[str, list[str]]:
        """Files on this disk that may have the content: those of other revisions, and of a plain folder before them."""
        found: dict[str, list[str]] = {}
        for name, revision in self.place.revisions().items():
            for file in revision.files if name != self.revision.name else ():
                found.setdefault(file.key, []).append(f"{self.place.hidden}/{name}/{file.path}")
        if self.place.plain():
            base = f"{self.place.parent}/{os.path.basename(self.place.path)}"
            for file in self.revision.files:
                found.setdefault(f"path {file.path}", []).append(f"{base}/{file.path}")
        return found

    def _take(self, path: str, file: File, part: Path) -> bool:
        """Take a file of this disk when it is the right one: linked when it is root's, else copied."""
        if not file.digest:
            return False
        try:
            with open(_beneath(path), "rb") as source:
                there = os.fstat(source.fileno())
                if not stat.S_ISREG(there.st_mode) or there.st_size != file.size:
                    return False
                if there.st_uid == os.geteuid():
                    with contextlib.suppress(OSError):
                        # The very file that is open, whatever its path leads to by now.
                        folder = os.open(self._parts, os.O_RDONLY)
                        try:
                            os.link(f"/proc/self/fd/{source.fileno()}", part.name, src_dir_fd=folder,
                                    dst_dir_fd=folder, follow_symlinks=True)  # fmt: skip
                        finally:
                            os.close(folder)
                found = download.download(
                    lambda start: _Local(os.fdopen(os.dup(source.fileno()), "rb"), start), part, file.hasher,
                    lambda count: self._count(count, file.path), file.size,
                )  # fmt: skip
        except (OSError, Unreachable) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            part.unlink(missing_ok=True)
            return False
        if found != file.digest:
            self._count(-file.size, file.path)
            part.unlink()
            return False
        _sync(part)
        with self._lock:
            self._whole += 1
        return True

    def is_right(self, file: File) -> bool:
        """Whether a file of the revision has the content that it should have."""
        hashed = file.hasher()
        try:
            with open(f"{self.place.hidden}/{self.revision.name}/{file.path}", "rb") as source:
                for block in iter(lambda: source.read(BLOCK), b""):
                    hashed.update(block)
                    self._count(len(block), f"checking {file.path}")
        except OSError:
            return False
        self._whole += 1
        return hashed.hexdigest() == file.digest

    # --- all of them ------------------------------------------------------------------------------------------------

    def _place_all(self) -> None:
        """From parts to a revision that is there whole, with one rename."""
        incoming = f"{self.place.hidden}/.incoming-{self.revision.name}"
        shutil.rmtree(incoming, ignore_errors=True)
        os.mkdir(incoming, 0o755)
        files = []
        for file in self.revision.files:
            target = f"{incoming}/{file.path}"
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            part = f"{self._parts}/{file.key}"
            os.chmod(part, 0o644)
            os.chown(part, *owner())
            os.link(part, target)
            algorithm, digest = self._digests.get(file.path, (file.algorithm, file.digest))
            files.append(replace(file, algorithm=algorithm, digest=digest))
        record = f"{incoming}/{MANIFEST}"
        with open(record, "w", encoding="utf-8") as written:
            written.write(model_plan.manifest(replace(self.revision, files=tuple(files))))
        _sync(Path(record))
        os.rename(incoming, f"{self.place.hidden}/{self.revision.name}")
        folder = os.open(self.place.hidden, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def _repair(self, files: Sequence[File]) -> None:
        for file in files:
            target = f"{self.place.hidden}/{self.revision.name}/{file.path}"
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            if os.path.isdir(target) and not os.path.islink(target):
                shutil.rmtree(target)
            # Another file of the same content may need the part, too.
            temporary = f"{self._parts}/repair"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            os.link(f"{self._parts}/{file.key}", temporary)
            os.chmod(temporary, 0o644)
            os.chown(temporary, *owner())
            os.replace(temporary, target)

    # --- progress ---------------------------------------------------------------------------------------------------

    def _begin(self, files: Sequence[File]) -> None:
        self._done, self._whole = 0, 0
        self._total, self._of = sum(file.size for file in files), len(files)
        self._began, self._at = time.monotonic(), 0.0

    def _count(self, count: int, name: str) -> None:
        if self._stop:
            raise _Stopped
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._at < _TELL:
                return
            self._at = now
            speed = self._done / (now - self._began) if now - self._began > 1 else 0
            self.say(
                model_plan.progress(name, self._done, self._total, self._whole, self._of, self._since, max(speed, 0))
            )


class _Stopped(Exception):
    """Another file can't be had, so this one isn't needed."""


def _beneath(path: str) -> int:
    """Open a file, and follow no link on the way but those of C(/proc/self/fd) at its beginning."""
    match = re.fullmatch(r"(/proc/self/fd/\d+)/(.+)", path)
    if not match:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    at = os.open(match[1], os.O_RDONLY | os.O_DIRECTORY)
    parts = match[2].split("/")
    for place, part in enumerate(parts):
        # A pipe that nobody writes into must not hold this up.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_DIRECTORY if place < len(parts) - 1 else 0)
        try:
            inner = os.open(part, flags, dir_fd=at)
        finally:
            os.close(at)
        at = inner
    return at


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
