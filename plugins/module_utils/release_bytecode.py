# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Python compiled when a release was tried, packed for the next container that gets the same wheels.

Importing vLLM for the first time compiles thousands of modules, which takes longer than everything else that the next
container has to do. Python takes a compiled file for its source by the source's size and time of change. The sizes are
the same there, since the wheels are; the times are those of unpacking, and are written into the files.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import zipfile
from pathlib import Path

NAME = "bytecode.zip"
# Of a compiled file's head (PEP 552): flags at 4, where 0 says that time and size follow, each of four bytes.
_HEAD = struct.Struct("<4sLLL")
_FLAGS, _TIME, _SIZE = 1, 2, 3


def pack(release: Path, path: Path) -> int:
    """Pack the compiled files of a release into an archive, and return how many there are.

    Args:
        release: the folder of the release.
        path: the archive, which is there whole or not at all.
    """
    files = sorted(release.glob("lib/python3*/site-packages/**/__pycache__/*.pyc"))
    temporary = path.with_name(f"{path.name}.new")
    # Reading and unpacking it takes longer than what compressing saves on the way.
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, file.relative_to(release).as_posix())
    os.replace(temporary, path)
    return len(files)


def unpack(path: Path, release: Path) -> int:
    """Put compiled files beside their sources, and return how many. One whose source is another here is left out.

    Args:
        path: the archive.
        release: the folder of the release.
    """
    count = 0
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            # It comes from another container: nothing but compiled files, nowhere but below the release.
            if not name.endswith(".pyc") or name.startswith("/") or ".." in name.split("/"):
                continue
            try:
                source = os.stat(importlib.util.source_from_cache(str(release / name)))
            except (OSError, ValueError):
                continue
            content = archive.read(name)
            head = list(_HEAD.unpack_from(content)) if len(content) > _HEAD.size else [b"", 1, 0, 0]
            if head[_FLAGS] != 0 or head[_SIZE] != source.st_size & 0xFFFFFFFF:
                continue
            head[_TIME] = int(source.st_mtime) & 0xFFFFFFFF
            target = release / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(_HEAD.pack(*head) + content[_HEAD.size :])
            count += 1
    return count
