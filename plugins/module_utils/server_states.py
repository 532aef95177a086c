# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The states of the model server that were kept: files that only root reads."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import StateError, Target, kept
from ansible_collections.phoenix.hypervisor.plugins.module_utils.text_file import is_like, read_json, read_text, write


def now_text() -> str:
    """Return the time as it is written down."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class States:
    """The states that were kept: files that only root reads."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.history_file = os.path.join(folder, "history.json")
        self.history: list[dict[str, Any]] = read_json(self.history_file, [])

    @property
    def good(self) -> str:
        """Return the digest of the last state whose server answered."""
        return self.history[-1]["digest"] if self.history else ""

    def make(self) -> None:
        """Make the folder."""
        os.makedirs(os.path.join(self.folder, "states"), mode=0o700, exist_ok=True)
        os.chmod(self.folder, 0o700)

    def salt(self, create: bool) -> bytes:
        """Return the salt of digests."""
        path = os.path.join(self.folder, "salt")
        if create and not os.path.exists(path):
            self.make()
            write(path, os.urandom(16).hex() + "\n", 0o600)
        return (read_text(path) or "").encode()

    def path(self, digest: str) -> str:
        """Return a state's file."""
        return os.path.join(self.folder, "states", f"{digest}.json")

    def there(self) -> set[str]:
        """Return the digests of the states that can be gone back to: their release is still installed."""
        found = set()
        for path in glob.glob(self.path("*")):
            name = os.path.basename(path)[: -len(".json")]
            with contextlib.suppress(StateError):
                if os.path.exists(os.path.join(self.load(name).release, "bin", "vllm")):
                    found.add(name)
        return found

    def load(self, digest: str) -> Target:
        """Return a state.

        Raises:
            StateError: its file is gone or damaged.
        """
        return Target.from_json(read_text(self.path(digest)) or "")

    def put(self, target: Target) -> None:
        """Write a state down, before anything of it is made live."""
        self.make()
        text = target.to_json()
        if not is_like(self.path(target.digest), text, 0o600, 0):
            write(self.path(target.digest), text, 0o600)

    def took(self, digest: str) -> float:
        """Return how many seconds the last start took, of this state if there was one. 0 when nobody knows."""
        own = [entry for entry in self.history if entry.get("digest") == digest]
        return ([entry["seconds"] for entry in [*self.history, *own] if entry.get("seconds")] or [0])[-1]

    def keep(self, target: Target, count: int, seconds: float) -> None:
        """Write down that a state is good and how long its start took, and remove those that are too old."""
        entry = {"digest": target.digest, "release": target.release_name, "model": target.model, "at": now_text(),
                 "seconds": round(seconds, 1)}  # fmt: skip
        self.history = kept([*self.history, entry], count)
        write(self.history_file, json.dumps(self.history, indent=1) + "\n", 0o600)
        names = {self.path(entry["digest"]) for entry in self.history}
        for path in set(glob.glob(self.path("*"))) - names:
            os.unlink(path)

    def record(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the record of what was gone back to."""
        self.make()
        path = os.path.join(self.folder, "rollbacks.jsonl")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps({"at": now_text(), **entry}) + "\n")
