# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM's sources as git repositories on the lab's bridge; the stacks of tests/lab/stacks are built from them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ansible_collections.phoenix.hypervisor.plugins.module_utils import release_fetch

HOST, PORT = "10.92.0.1", 9616
# vLLM's source distributions, by version.
SDISTS = {
    "0.10.2": "57608f44cf61f5d80fb182c98e06e524cb2925bb528258a7b247c8e43a52d13e",
    "0.32.0": "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad",
}
# The same author at the same time makes the same commit everywhere: the stacks name it.
AUTHOR = {"NAME": "lab", "EMAIL": "lab@example.com", "DATE": "2025-09-13T00:00:00Z"}
GIT = {f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in AUTHOR.items()}
# Overrides of the stack vllm-0.10.2-source: the same, compiled for the CPU.
COMPILED = {
    "vllm": {"version": "0.10.2+cpu"},
    "build": {
        # AVX-512 would want oneDNN's sources, from a server on the internet.
        "environment": {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_DISABLE_AVX512": "true"},
        "packages": ["git", "g++", "python3-dev", "libnuma-dev", "ccache"],
    },
}


class Repositories:
    """A git server with vLLM's sources as they were published."""

    def __init__(self, folder: Path, port: int = PORT):
        self.folder, self.port = folder, port
        (folder / "served").mkdir()
        where = [f"--base-path={folder}/served", f"--listen={HOST}", f"--port={port}"]
        self.server = subprocess.Popen(["git", "daemon", "--export-all", *where], stderr=subprocess.DEVNULL)

    def url(self, version: str) -> str:
        """The address of the repository of a version."""
        served = self.folder / "served" / f"vllm-{version}.git"
        if not served.exists():
            settings = release_fetch.read_settings({}, os.environ, ["/etc/pip.conf"])
            locked = release_fetch.Locked("vllm", version, frozenset([SDISTS[version]]))
            fetcher = release_fetch.Fetcher(settings, [], "3.11", self.folder, lambda *words: None)
            (name,) = fetcher.fetch([locked])
            subprocess.run(["tar", "--no-same-owner", "-xzf", self.folder / name, "-C", self.folder], check=True)
            self.serve(self.folder / f"vllm-{version}", served.stem, f"vllm-{version}, as published")
        return self._url(served.stem)

    def serve(self, tree: Path, name: str, message: str) -> str:
        """Commit all of a tree, and serve it. Gives the address of the repository."""
        served = self.folder / "served" / f"{name}.git"
        shutil.rmtree(served, ignore_errors=True)
        for words in (
            ["init", "--quiet", "--initial-branch=main", "."],
            ["add", "--force", "--all"],
            ["commit", "--quiet", "--message", message],
            ["clone", "--quiet", "--bare", ".", served],
        ):
            environment = {**os.environ, **GIT, "GIT_CONFIG_GLOBAL": "/dev/null"}
            subprocess.run(["git", *words], cwd=tree, env=environment, check=True)
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"git://{HOST}:{self.port}/{name}.git"

    def head(self, name: str) -> str:
        """The commit that the branch of a repository is at."""
        command = ["git", "-C", str(self.folder / "served" / f"{name}.git"), "rev-parse", "main"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def stop(self) -> None:
        """End the server and the process that it started."""
        subprocess.run(["pkill", "-P", str(self.server.pid)], check=False)
        self.server.terminate()
        self.server.wait(10)
