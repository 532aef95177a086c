# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small text files of the machine that a module runs on: read, compared, and written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from typing import Any


def read_text(path: str, missing: str | None = None, errors: str = "replace") -> str | None:
    """Return a file's text.

    Args:
        path: of the file.
        missing: what is returned when there is none.
        errors: what becomes of bytes that are no UTF-8; with C(surrogateescape) `write` writes them again.
    """
    try:
        with open(path, encoding="utf-8", errors=errors) as file:
            return file.read()
    except FileNotFoundError:
        return missing


def read_json(path: str, default: Any) -> Any:
    """Return what a JSON file of ours has, a default when it isn't there or is damaged."""
    try:
        return json.loads(read_text(path) or "")
    except ValueError:
        return default


def write(path: str, text: str, mode: int = 0o644, group: int | None = None) -> None:
    """Write a file in one step, so that it is there whole or not at all, even after a power cut.

    Args:
        path: of the file; its folder is made where there is none.
        text: what it is to have.
        mode: who may read and write it.
        group: root's file is given to this group; else it is whose it is who writes it.
    """
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    # mkstemp makes it 0600, so the text is never readable for more than it should be.
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".phoenix-")
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        if group is not None:
            os.fchown(file.fileno(), 0, group)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def point(path: str, target: str) -> None:
    """Make a path a link in one step, whether it was one before or not."""
    temporary = f"{path}.phoenix-{os.getpid()}"
    os.symlink(target, temporary)
    os.replace(temporary, path)


def is_like(path: str, text: str, mode: int, group: int) -> bool:
    """Return whether a file of root's has this text, mode and group."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, group, mode) and read_text(path) == text
