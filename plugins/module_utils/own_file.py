# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file of the node that is replaced whole: written beside its place, then moved there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator

# A temporary file's name begins with this; who writes it holds a lock on it, so one without a lock is a leftover.
PREFIX = ".pct_pull."


@contextlib.contextmanager
def beside(path: str) -> Iterator:
    """A new file beside a path, for root's eyes only, and gone afterwards unless it was moved."""
    folder = os.path.dirname(path)
    _remove_leftovers(folder)
    fd, name = tempfile.mkstemp(prefix=PREFIX, dir=folder)
    try:
        with open(fd, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file, name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _remove_leftovers(folder: str) -> None:
    for entry in os.scandir(folder):
        if not entry.name.startswith(PREFIX) or not entry.is_file(follow_symlinks=False):
            continue
        with contextlib.suppress(OSError), open(entry.path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(entry.path)


def keep_attributes(file, path: str) -> None:
    """Give a new file the owner, group and mode of the one that it replaces."""
    with contextlib.suppress(FileNotFoundError):
        old = os.lstat(path)
        if stat.S_ISREG(old.st_mode):
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
