# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's files on the node.

    <folder>/<org>/<name>                 a link to the revision that servers get
    <folder>/<org>/.<name>/<revision>/    a whole revision, with its record; comes by rename, goes by rename
    <folder>/<org>/.<name>/.parts/        files on their way, by their digest: a run that was killed goes on with them
    <folder>/<org>/.<name>/.before-<n>/   a plain folder that was where the link is now
    <folder>/<org>/.<name>/.job.json      what the process that fetches does at the moment, or did last

The folder is mounted in containers, which may be allowed to write there. So nothing is reached by a path that they
could bend meanwhile: L(Place) holds the folders themselves, and the hidden one has to be root's alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import model_plan
from .model_plan import MANIFEST, File, ModelError, Revision, amount

DEFAULT = "/var/lib/phoenix-hypervisor/models"
_JOB, _LOCK, PARTS, _BEFORE = ".job.json", ".lock", ".parts", ".before-"
FULL = (errno.ENOSPC, errno.EDQUOT)
_OURS = "/var/lib/phoenix-hypervisor/"
# Left free on the disk, whatever else there is.
_SPARE = 64 << 20


class Place:
    """Where a model is, or goes to.

    Attributes:
        folder: of the models; it may be anybody's.
        name: the model's, below it.
        path: both together, which servers get.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.folder = folder.rstrip("/") or "/"
        self.name = name
        self.path = f"{self.folder.rstrip('/')}/{name}"
        self._base = os.path.basename(name)
        self._shown = f"{os.path.dirname(self.path)}/.{self._base}"
        # Paths that lead through open folders; "" for one that isn't there.
        self.parent = self.hidden = ""
        self._open: list[int] = []

    def enter(self, make: bool) -> None:
        """Open its folders.

        Args:
            make: whether to make those that are missing.

        Raises:
            ModelError: one of them is a link or somebody else's.
        """
        self.leave()
        if make:
            os.umask(0o022)
            self._make_folder()
        at = self._folder(self.folder, None, False)
        shown = self.folder
        for part in [] if at is None else self.name.split("/")[:-1]:
            shown = f"{shown}/{part}"
            at = self._folder(part, at, make, shown)
            if at is None:
                return
        if at is None:
            return
        self.parent = f"/proc/self/fd/{at}"
        inner = self._folder(f".{self._base}", at, make, self._shown)
        if inner is None:
            return
        found = os.fstat(inner)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise ModelError(
                f"{self._shown} is writable for others than root, who could change models under a server: look at what "
                "is in it, and remove it"
            )
        self.hidden = f"/proc/self/fd/{inner}"

    def _make_folder(self) -> None:
        parent = os.path.dirname(self.folder)
        if self.folder.startswith(_OURS):
            os.makedirs(parent, 0o755, exist_ok=True)
        if not os.path.isdir(parent):
            # Made on the root disk, it would be in the way of what should be mounted there.
            raise ModelError(f"folder: there is no {parent} on the node; mount what has it, or make it")
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.folder, 0o755)

    def _folder(self, name: str, at: int | None, make: bool, shown: str = "") -> int | None:
        flags = os.O_RDONLY | os.O_DIRECTORY | (0 if at is None else os.O_NOFOLLOW)
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=at)
            self._open.append(os.open(name, flags, dir_fd=at))
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise ModelError(f"{shown or name} is no folder, so no model can be below it; move it away") from None
            raise
        return self._open[-1]

    def leave(self) -> None:
        """Close its folders."""
        for each in self._open:
            os.close(each)
        self._open, self.parent, self.hidden = [], "", ""

    def problem(self, error: OSError) -> str:
        """What an error of the disk means."""
        if error.errno in FULL:
            return (
                f"{self.path}: the disk of {self.folder} is full; make room, or name another folder. What was fetched "
                "is kept, and the next run goes on with it"
            )
        where = str(error.filename or self.path)
        for real, through in ((self._shown, self.hidden), (os.path.dirname(self.path), self.parent)):
            where = where.replace(through, real, 1) if through and where.startswith(through) else where
        return f"{where} on the node: {error.strerror}"

    # --- what is there ----------------------------------------------------------------------------------------------

    def live(self) -> str:
        """The revision that the link names, C("") where there is none.

        Raises:
            ModelError: the link is somebody else's.
        """
        if not self.parent:
            return ""
        try:
            target = os.readlink(f"{self.parent}/{self._base}")
        except OSError:
            if os.path.lexists(f"{self.parent}/{self._base}") and not self.plain():
                raise ModelError(f"{self.path} is a file, and should be a model; move it away") from None
            return ""
        folder, _slash, revision = target.rpartition("/")
        if folder != f".{self._base}" or not revision or revision.startswith("."):
            raise ModelError(f"{self.path} is a link to {target}, not made here; remove it, or take another name")
        return revision

    def plain(self) -> bool:
        """Whether a plain folder is where the link should be."""
        if not self.parent:
            return False
        try:
            return stat.S_ISDIR(os.lstat(f"{self.parent}/{self._base}").st_mode)
        except FileNotFoundError:
            return False

    def revisions(self) -> dict[str, Revision]:
        """The whole revisions that there are, by the name of their folder."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.hidden) if self.hidden else []:
                if name.startswith("."):
                    continue
                with contextlib.suppress(OSError, ModelError, UnicodeDecodeError):
                    text = Path(f"{self.hidden}/{name}/{MANIFEST}").read_text(encoding="utf-8")
                    found[name] = model_plan.parse_manifest(text)
        return found

    def used(self, names: Iterator[str] | Sequence[str]) -> dict[str, float]:
        """When each revision was made live last."""
        found = {}
        for name in names:
            with contextlib.suppress(OSError):
                found[name] = os.stat(f"{self.hidden}/{name}/{MANIFEST}").st_mtime
        return found

    def missing(self, revision: Revision) -> list[File]:
        """The files of a revision that aren't there in their size; their content isn't looked at."""
        found = []
        for file in revision.files:
            try:
                there = os.lstat(f"{self.hidden}/{revision.name}/{file.path}")
                right = stat.S_ISREG(there.st_mode) and there.st_size == file.size
            except OSError:
                right = False
            if not right:
                found.append(file)
        return found

    def wrong_owner(self, revision: Revision) -> list[str]:
        """What in a revision isn't root's, or not readable for everybody, or writable for others."""
        root = f"{self.hidden}/{revision.name}"
        folders = {os.path.dirname(file.path) for file in revision.files}
        folders |= {folder[: at.start()] for folder in folders for at in re.finditer("/", folder)} | {""}
        wanted = [(file.path, 0o644) for file in revision.files] + [(folder, 0o755) for folder in folders]
        found = []
        for path, mode in sorted(wanted):
            with contextlib.suppress(FileNotFoundError):
                there = os.lstat(f"{root}/{path}")
                if (there.st_uid, there.st_gid) != owner() or stat.S_IMODE(there.st_mode) != mode:
                    found.append(path)
        return found

    def here(self, files: Sequence[File]) -> int:
        """How many bytes of files are on their way already."""
        count = 0
        for file in {file.key: file for file in files}.values() if self.hidden else ():
            with contextlib.suppress(OSError):
                count += min(os.stat(f"{self.hidden}/{PARTS}/{file.key}").st_size, file.size)
        return count

    def world_problem(self) -> str:
        """Why users of containers can't come to the model, or C("")."""
        at = self.folder
        for part in ["", *self.name.split("/")[:-1]]:
            at = f"{at}/{part}".rstrip("/")
            with contextlib.suppress(OSError):
                if not os.stat(at).st_mode & 0o001:
                    return f"{at} can't be entered by everybody, so servers in containers may not: chmod o+x {at}"
        return ""

    def room_problem(self, size: int) -> str:
        """Why the disk hasn't room for so many bytes more, or C("")."""
        at = self.folder
        while not os.path.isdir(at):
            at = os.path.dirname(at)
        free = shutil.disk_usage(at).free
        if size + _SPARE <= free:
            return ""
        return (
            f"{self.path}: {amount(size)} are to be fetched, and the disk of {self.folder} has {amount(free)} free; "
            "make room (fewer revisions: keep; fewer files: exclude), or name another folder"
        )

    # --- the job ----------------------------------------------------------------------------------------------------

    def lock(self) -> int | None:
        """The right to change the model, as long as the file descriptor is open; None while another has it."""
        at = os.open(f"{self.hidden}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(at, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(at)
            return None
        return at

    def is_busy(self) -> bool:
        """Whether somebody is at work on it."""
        if not self.hidden or not os.path.exists(f"{self.hidden}/{_LOCK}"):
            return False
        at = self.lock()
        if at is None:
            return True
        os.close(at)
        return False

    def job(self) -> dict[str, Any]:
        """What was written last about who fetches it; {} for nothing."""
        try:
            found = json.loads(Path(f"{self.hidden}/{_JOB}").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_job(self, content: Mapping[str, Any]) -> None:
        """Write it; nothing secret is in it."""
        temporary = f"{self.hidden}/{_JOB}.new"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, f"{self.hidden}/{_JOB}")

    # --- changing ---------------------------------------------------------------------------------------------------

    def set_owner(self, revision: Revision, paths: Sequence[str]) -> None:
        """Make files and folders of a revision root's, and readable for everybody."""
        for path in paths:
            whole = f"{self.hidden}/{revision.name}/{path}"
            os.lchown(whole, *owner())
            os.chmod(whole, 0o755 if os.path.isdir(whole) else 0o644)

    def point_at(self, name: str) -> str:
        """Make a revision the live one, in one step. Give where a plain folder went that was in the way."""
        link, before = f"{self.parent}/{self._base}", ""
        temporary = f"{self.hidden}/.link"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(f".{self._base}/{name}", temporary)
        if self.plain():
            before = f"{_BEFORE}{time.strftime('%Y%m%d-%H%M%S')}"
            os.rename(link, f"{self.hidden}/{before}")
        os.rename(temporary, link)
        os.utime(f"{self.hidden}/{name}/{MANIFEST}")
        return f"{self._shown}/{before}" if before else ""

    def remove(self, name: str) -> None:
        """Remove a revision: first from sight, so that nothing half is ever there."""
        gone = f"{self.hidden}/.gone-{name}"
        os.rename(f"{self.hidden}/{name}", gone)
        shutil.rmtree(gone)

    def tidy(self) -> None:
        """Remove what runs left behind that were killed."""
        for entry in os.scandir(self.hidden):
            if entry.name == PARTS or entry.name.startswith((".gone-", ".incoming-")):
                shutil.rmtree(entry.path, ignore_errors=True)

    def in_use(self, names: Sequence[str]) -> set[str]:
        """The revisions of which a process on the node, in a container or not, has a file open or mapped."""
        theirs: dict[tuple[int, int], set[str]] = {}
        for name in names:
            for inode in self._inodes(name):
                theirs.setdefault(inode, set()).add(name)
        # What a revision that stays has, too, says nothing.
        for name in set(self.revisions()).difference(names) if theirs else ():
            for inode in self._inodes(name):
                theirs.pop(inode, None)
        found: set[str] = set()
        for kind in ("fd", "map_files") if theirs else ():
            for link in glob.iglob(f"/proc/[0-9]*/{kind}/*"):
                with contextlib.suppress(OSError):
                    there = os.stat(link)
                    found |= theirs.get((there.st_dev, there.st_ino), set())
        return found

    def _inodes(self, name: str) -> Iterator[tuple[int, int]]:
        for folder, _folders, files in os.walk(f"{self.hidden}/{name}"):
            for file in files:
                there = os.lstat(f"{folder}/{file}")
                yield there.st_dev, there.st_ino


def owner() -> tuple[int, int]:
    """Root, in the one place where this runs; an id that no unprivileged container has."""
    return os.geteuid(), os.getegid()
