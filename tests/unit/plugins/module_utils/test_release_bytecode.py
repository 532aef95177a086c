# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import release_bytecode

SITE = "lib/python3.11/site-packages"
CACHED = f"__pycache__/one.{sys.implementation.cache_tag}.pyc"


def release(folder: Path, text: str = "ANSWER = 42\n") -> Path:
    """A release with one module in a package."""
    package = folder / SITE / "thing"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(text)
    return folder


@pytest.fixture
def archive(tmp_path) -> Path:
    """What another container has compiled."""
    first = release(tmp_path / "first")
    # Beside its source, wherever the tests' own Python keeps what it compiles.
    source = first / SITE / "thing/one.py"
    py_compile.compile(str(source), cfile=str(source.parent / CACHED))
    assert release_bytecode.pack(first, tmp_path / "bytecode.zip") == 1
    return tmp_path / "bytecode.zip"


def test_python_takes_what_comes_compiled(archive, tmp_path):
    second = release(tmp_path / "second")
    os.utime(second / SITE / "thing/one.py", (1_600_000_000, 1_600_000_000))
    assert release_bytecode.unpack(archive, second) == 1
    before = (second / SITE / "thing" / CACHED).stat().st_mtime_ns
    command = [sys.executable, "-v", "-c", "import thing.one; print(thing.one.ANSWER)"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(second / SITE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "42\n"
    assert f"{CACHED} matches" in done.stderr
    assert (second / SITE / "thing" / CACHED).stat().st_mtime_ns == before


def test_of_another_source_nothing_is_taken(archive, tmp_path):
    second = release(tmp_path / "second", "ANSWER = 'another'\n")
    assert release_bytecode.unpack(archive, second) == 0
    assert not (second / SITE / "thing/__pycache__").exists()
    (second / SITE / "thing/one.py").unlink()
    assert release_bytecode.unpack(archive, second) == 0


@pytest.mark.parametrize("name", ["/tmp/x.pyc", f"{SITE}/../../../../x.pyc", f"{SITE}/thing/one.py", f"{SITE}/thing/x"])
def test_nothing_else_is_unpacked(tmp_path, name):
    second = release(tmp_path / "second")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as evil:
        evil.writestr(name, b"x" * 99)
    before = sorted(tmp_path.rglob("*"))
    assert release_bytecode.unpack(tmp_path / "evil.zip", second) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert (second / SITE / "thing/one.py").read_text() == "ANSWER = 42\n"


@pytest.mark.parametrize("content", [b"", b"short", b"\x00" * 4 + b"\x01\x00\x00\x00" + b"\x00" * 40])
def test_what_is_no_compiled_file_of_a_time_is_left_out(tmp_path, content):
    second = release(tmp_path / "second")
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as odd:
        odd.writestr(f"{SITE}/thing/{CACHED}", content)
    assert release_bytecode.unpack(tmp_path / "odd.zip", second) == 0
