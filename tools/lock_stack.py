# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lock a stack again: requirements.in → requirements.lock, every package with version and hashes.

    python tools/lock_stack.py cpu [--find-links FOLDER]

uv resolves; this script keeps, of each package, the hashes of the files that fit the stack's Python on Linux x86_64
(a tenth of all), and no index. It prints what changed. Needs uv, PyYAML and packaging (the development environment).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from typing import Any

import tomllib
import yaml
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

STACKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "roles", "vllm_stack", "files", "stacks")
# Debian 12 has glibc 2.36. Older names of the same come after.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)] + [
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
]
HEADER = "# Written by tools/lock_stack.py {name} for Python {python} on Linux x86_64. Don't edit.\n"


def fitting_tags(python: str) -> set[Tag]:
    """Return the wheel tags that a Python ("3.11") on Linux x86_64 can install."""
    major, minor = (int(part) for part in python.split("."))
    return {
        *cpython_tags((major, minor), platforms=PLATFORMS),
        *compatible_tags((major, minor), interpreter=f"cp{major}{minor}", platforms=PLATFORMS),
    }


def file_name(entry: dict[str, Any]) -> str:
    """Return the name of a file that a pylock.toml names by URL or path."""
    return (entry.get("name") or entry.get("url") or entry["path"]).rsplit("/", 1)[-1].replace("%2B", "+")


def requirement(package: dict[str, Any], tags: set[Tag]) -> str:
    """Return a package's lines in the lock.

    Raises:
        SystemExit: no file of it fits.
    """
    fitting = [wheel for wheel in package.get("wheels", []) if parse_wheel_filename(file_name(wheel))[3] & tags]
    files = fitting or ([package["sdist"]] if "sdist" in package else [])
    if not files:
        sys.exit(f"lock_stack: {package['name']} {package['version']} has no file for this Python and platform")
    if not fitting:
        print(f"note: {package['name']} {package['version']} comes as source only and is built at installation")
    hashes = sorted({entry["hashes"]["sha256"] for entry in files})
    lines = [f"{package['name']}=={package['version']}", *(f"--hash=sha256:{digest}" for digest in hashes)]
    return " \\\n    ".join(lines) + "\n"


def versions(lock: str) -> dict[str, str]:
    """Return package → version of a lock."""
    return dict(line.split(" ")[0].split("==", 1) for line in lock.splitlines() if "==" in line.split(" ")[0])


def main() -> int:
    """Run as a command. Return the exit code."""
    parser = argparse.ArgumentParser(description="Write a stack's requirements.lock again.")
    parser.add_argument("stack", help="a folder in roles/vllm_stack/files/stacks")
    parser.add_argument("--find-links", action="append", default=[], help="a folder with further wheels")
    arguments = parser.parse_args()
    folder = os.path.join(STACKS, arguments.stack)
    with open(os.path.join(folder, "stack.yml"), encoding="utf-8") as file:
        stack = yaml.safe_load(file)
    with tempfile.TemporaryDirectory() as scratch:
        excluded, pylock = os.path.join(scratch, "excluded.txt"), os.path.join(scratch, "pylock.toml")
        with open(excluded, "w", encoding="utf-8") as file:
            file.write("\n".join(stack.get("excluded", [])) + "\n")
        command = [
            "uv", "pip", "compile", "--quiet", "--generate-hashes", "--format", "pylock.toml",
            "--python-version", stack["python"], "--python-platform", "x86_64-manylinux_2_36",
            "--excludes", excluded, "--output-file", pylock, os.path.join(folder, "requirements.in"),
        ]  # fmt: skip
        if arguments.find_links:
            command += [word for path in arguments.find_links for word in ("--find-links", path)]
        else:
            command += ["--torch-backend", stack["torch_backend"]]
        if subprocess.run(command, check=False).returncode:
            return 1
        with open(pylock, "rb") as file:
            packages = tomllib.load(file)["packages"]
    tags = fitting_tags(stack["python"])
    lock = HEADER.format(**stack) + "".join(requirement(package, tags) for package in packages)
    path = os.path.join(folder, "requirements.lock")
    old = ""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            old = file.read()
    before, after = versions(old), versions(lock)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            print(f"{name}: {before.get(name, 'not there')} → {after.get(name, 'removed')}")
    print(f"{len(after)} packages" + ("" if lock != old else ", unchanged"))
    with open(path, "w", encoding="utf-8") as file:
        file.write(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
