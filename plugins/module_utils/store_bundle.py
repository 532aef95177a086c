# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bundle: a wheelhouse in one file, to be carried to another node.

It is a tar archive of C(<release>/manifest.json) and, after that, the files that it names, sorted. It is never unpacked
by its own names: a file is taken when the manifest names it, and is written where the store wants it.
"""

from __future__ import annotations

import contextlib
import re
import tarfile
from collections.abc import Callable, Iterator

from ansible_collections.phoenix.hypervisor.plugins.module_utils import store_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.store_plan import (
    MANIFEST,
    MANIFEST_LIMIT,
    Manifest,
    StoreError,
)

_CHUNK = 1 << 18


class Bundle:
    """An open bundle whose manifest was read."""

    def __init__(self, archive: tarfile.TarFile, path: str) -> None:
        self._archive, self.path = archive, path
        first = archive.next()
        found = re.fullmatch(rf"([^/]+)/{re.escape(MANIFEST)}", first.name if first else "")
        if not first or not found or not first.isreg() or first.size > MANIFEST_LIMIT:
            raise StoreError(f"path: {path} is no bundle of wheels: it doesn't begin with <release>/{MANIFEST}")
        release = found.group(1)
        wrong = store_plan.release_problem(release)
        if wrong:
            raise StoreError(f"path: {path} is no bundle of wheels: {wrong}")
        self.manifest: Manifest = store_plan.manifest(archive.extractfile(first).read(), release, f"path: {path}")

    def sizes(self) -> dict[str, int]:
        """Size of each file.

        :raises StoreError: when the bundle has others than its manifest says
        """
        found: dict[str, int] = {}
        for member in self._archive.getmembers()[1:]:
            name = member.name[len(self.manifest.release) + 1 :]
            named = member.name == f"{self.manifest.release}/{name}" and name in self.manifest.files
            if not named or name in found or not member.isreg():
                raise StoreError(f"path: {self.path} has {member.name!r}, which its {MANIFEST} doesn't name (once)")
            found[name] = member.size
        missing = [name for name in self.manifest.names if name not in found]
        if missing:
            raise StoreError(f"path: {self.path} is not complete, {missing[0]} is missing; copy it again")
        return found

    def read(self, begin: Callable, finish: Callable) -> None:
        """Hand on all files: C(begin) with a name gives what takes the pieces, C(finish) comes after the last."""
        for member in self._archive.getmembers()[1:]:
            name = member.name[len(self.manifest.release) + 1 :]
            take, file = begin(name), self._archive.extractfile(member)
            while piece := file.read(_CHUNK):
                take(memoryview(piece))
            finish(name)


@contextlib.contextmanager
def opened(path: str) -> Iterator[Bundle]:
    """A bundle of the node.

    :raises StoreError: when it is none, or a part of one
    """
    try:
        with tarfile.open(path, "r:") as archive:
            yield Bundle(archive, path)
    except (tarfile.TarError, EOFError):
        raise StoreError(f"path: {path} is no bundle of wheels, or not complete; copy it again") from None
