# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lock a stack again: requirements.in → requirements.lock, build.in → build.lock, all with versions and hashes.

    make lock NAME=cpu
    make lock NAME=/srv/stacks/mine [TORCH_INDEX=https://mirror/pytorch/cu128] [FIND_LINKS=/srv/wheels]

The stack is one of the shipped ones or a folder of yours. uv resolves; this script keeps, of each package, the hashes
of the files that fit the stack's Python on Linux x86_64 (a tenth of all), and no index. What build.lock shares with
requirements.lock has one version. It prints what changed, and writes nothing when something fails. Needs uv, PyYAML
and packaging (the development environment).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomllib
import yaml
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
STACKS = ROOT / "roles" / "vllm_stack" / "files" / "stacks"
sys.path.insert(0, str(ROOT / ".ansible" / "collections"))

from ansible_collections.phoenix.hypervisor.plugins.module_utils import stack as stacks
from ansible_collections.phoenix.hypervisor.plugins.module_utils.stack import StackError

# Debian 12 has glibc 2.36. Older names of the same come after.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)] + [
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
]
HEADER = "# Written by tools/lock_stack.py {name} for Python {python} on Linux x86_64. Don't edit.\n"
# uv's words when a version isn't on any index, and when an index isn't there.
ABSENT = re.compile(r"there is no version of ([a-z0-9-]+)==(\S+?)(?: and|,|$)|([a-z0-9-]+) was not found in the", re.M)
UNREACHABLE = re.compile(r"error sending request|dns error|failed to fetch|connection refused|timed out", re.I)
# PyTorch's own, and what its releases pin exactly: as new as the PyTorch that was chosen.
PYTORCH = ("torch", "torchvision", "torchaudio", "triton")
PINNED_BY_TORCH = (
    *PYTORCH, "cuda-toolkit", "cuda-bindings", "cuda-pathfinder",
    *(f"nvidia-{name}-cu{major}" for major in (12, 13) for name in ("cudnn", "cusparselt", "nccl", "nvshmem")),
)  # fmt: skip


def find(name: str) -> Path:
    """Return the folder of a stack: a shipped one by its name, or any folder."""
    folder = STACKS / name if re.fullmatch(stacks.NAME_PATTERN, name) else Path(name)
    if not (folder / "stack.yml").is_file():
        known = ", ".join(sorted(path.parent.name for path in STACKS.glob("*/stack.yml")))
        raise StackError(f"NAME={name} is neither a shipped stack ({known}) nor a folder with a stack.yml.")
    return folder


def load(folder: Path) -> dict[str, Any]:
    """Return a stack.yml's content, its keys and values checked."""
    stack = yaml.safe_load((folder / "stack.yml").read_text(encoding="utf-8"))
    stacks.check_keys(stack, str(folder / "stack.yml"))
    return stack


def fitting_tags(python: str) -> set[Tag]:
    """Return the wheel tags that a Python ("3.11") on Linux x86_64 can install."""
    major, minor = (int(part) for part in python.split("."))
    return {
        *cpython_tags((major, minor), platforms=PLATFORMS),
        *compatible_tags((major, minor), interpreter=f"cp{major}{minor}", platforms=PLATFORMS),
    }


def file_name(entry: Mapping[str, Any]) -> str:
    """Return the name of a file that a pylock.toml names by URL or path."""
    return (entry.get("name") or entry.get("url") or entry["path"]).rsplit("/", 1)[-1].replace("%2B", "+")


def requirement(package: Mapping[str, Any], tags: set[Tag], sdists: Sequence[str]) -> str:
    """Return a package's lines in the lock.

    Raises:
        StackError: no file of it fits.
    """
    fitting = [wheel for wheel in package.get("wheels", []) if parse_wheel_filename(file_name(wheel))[3] & tags]
    files = fitting or ([package["sdist"]] if "sdist" in package else [])
    if not files:
        raise StackError(f"{package['name']} {package['version']} has no file for this Python and platform.")
    if not fitting and package["name"] not in sdists:
        raise StackError(
            f"{package['name']} {package['version']} is published as source only. To have it built at installation, "
            "list it in stack.yml's build.sdists and what builds it in build.in; or list it in excluded."
        )
    hashes = sorted({entry["hashes"]["sha256"] for entry in files})
    lines = [f"{package['name']}=={package['version']}", *(f"--hash=sha256:{digest}" for digest in hashes)]
    return " \\\n    ".join(lines) + "\n"


def wanted(requirements: str) -> dict[str, str]:
    """Return name → version of what a requirements.in asks for, C("") where it names no exact version."""
    found = {}
    for line in requirements.splitlines():
        match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*(?:==([^\s;,*]+)(?=\s*(?:;|#|$)))?", line)
        if match:
            found[stacks.normal(match[1])] = match[2] or ""
    return found


def resolve(
    stack: Mapping[str, Any], source: Path, scratch: Path, constraints: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the packages that a requirements.in makes, with all of their files.

    Raises:
        StackError: it can't be resolved.
    """
    pylock = scratch / "pylock.toml"
    (scratch / "excluded.txt").write_text("".join(f"{name}\n" for name in stack.get("excluded", [])))
    (scratch / "constraints.txt").write_text(constraints)
    asked = wanted(source.read_text(encoding="utf-8"))
    index = arguments.torch_index or stacks.torch_index(stack)
    command = [
        "uv", "pip", "compile", "--quiet", "--generate-hashes", "--format", "pylock.toml",
        "--python-version", stack["python"], "--python-platform", "x86_64-manylinux_2_36",
        "--excludes", scratch / "excluded.txt", "--constraints", scratch / "constraints.txt",
        "--output-file", pylock, source,
    ]  # fmt: skip
    if "as_of" in stack:
        command += ["--exclude-newer", stack["as_of"]]
        # What is pinned was chosen by a person; an index without dates has nothing older either.
        exact = {*(name for name, version in {**wanted(constraints), **asked}.items() if version), *PINNED_BY_TORCH}
        command += [word for name in sorted(exact) for word in ("--exclude-newer-package", f"{name}=false")]
    if arguments.find_links:
        command += [word for path in arguments.find_links for word in ("--find-links", path)]
    elif index:
        # PyTorch's indexes have a few old versions of other packages, too: the best of both is wanted.
        command += ["--extra-index-url", index, "--index-strategy", "unsafe-best-match"]
    if any(".dev" in version for version in asked.values()):
        command += ["--prerelease", "if-necessary-or-explicit"]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise StackError(explain(stack, done.stderr, index))
    sys.stderr.write(done.stderr)
    with open(pylock, "rb") as file:
        return tomllib.load(file)["packages"]


def explain(stack: Mapping[str, Any], output: str, index: str) -> str:
    """Return what to say of uv's failure: one sentence where the reason is known, else its own words."""
    torch = stack["torch"]
    channel = torch.get("channel", "stable")
    others = ", ".join(published())
    absent = [match[1] or match[3] for match in ABSENT.finditer(output)]
    if any(name in PYTORCH for name in absent) and not UNREACHABLE.search(output):
        return (
            f"stack {stack['name']}: PyTorch {torch['version']} ({channel}, {torch['cuda']}) is not published, or no "
            f"longer, at {index or 'the package index'}. Stacks whose PyTorch stays published: {others}."
        )
    if UNREACHABLE.search(output):
        where = index if index and index in output else "the package index"
        return (
            f"stack {stack['name']}: {where} can't be reached, and the lock stays as it is. Run this where it can be, "
            "or name a mirror (TORCH_INDEX=…) or a folder of wheels (FIND_LINKS=…)."
        )
    return f"stack {stack['name']}: uv can't resolve it:\n{output.strip()}"


def published() -> list[str]:
    """Return the names of the shipped stacks whose PyTorch isn't a nightly that goes away."""
    shipped = [load(path.parent) for path in sorted(STACKS.glob("*/stack.yml"))]
    return [stack["name"] for stack in shipped if stack["torch"].get("channel", "stable") == "stable"]


def changes(old: str, new: str) -> list[str]:
    """Return what a new lock changes, a line for each package."""
    try:
        before = stacks.pins(old)
    except StackError:
        before = {}
    after = stacks.pins(new)
    lines = []
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was and now and was.version == now.version and was.hashes != now.hashes:
            lines.append(f"{name}: {now.version}, other files")
        elif not was or not now or was.version != now.version:
            lines.append(f"{name}: {was.version if was else 'not there'} → {now.version if now else 'removed'}")
    return lines


def lock(folder: Path, arguments: argparse.Namespace) -> dict[Path, str]:
    """Return the new text of a stack's locks."""
    stack = load(folder)
    tags, sdists = fitting_tags(stack["python"]), (stack.get("build") or {}).get("sdists", [])
    written: dict[Path, str] = {}
    constraints = ""
    for name in ("requirements", "build"):
        source = folder / f"{name}.in"
        if name == "build" and not source.exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            packages = resolve(stack, source, Path(scratch), constraints, arguments)
        text = HEADER.format(**stack) + "".join(requirement(package, tags, sdists) for package in packages)
        written[folder / f"{name}.lock"] = text
        own = wanted((folder / "build.in").read_text(encoding="utf-8")) if (folder / "build.in").exists() else {}
        constraints = "".join(
            f"{name}=={pin.version}\n" for name, pin in stacks.pins(text).items() if name not in own or name == "torch"
        )
    return written


def main() -> int:
    """Run as a command. Return the exit code."""
    parser = argparse.ArgumentParser(description="Write a stack's locks again.")
    parser.add_argument("stack", help="a shipped stack, or a folder")
    parser.add_argument("--torch-index", default="", help="a mirror of the index that has the stack's PyTorch")
    parser.add_argument("--find-links", action="append", default=[], help="a folder with wheels, PyTorch's among them")
    arguments = parser.parse_args()
    try:
        written = lock(find(arguments.stack), arguments)
        for path, text in written.items():
            old = path.read_text(encoding="utf-8") if path.exists() else ""
            said = changes(old, text)
            print(f"{path.name}: {len(stacks.pins(text))} packages" + ("" if text != old else ", unchanged"))
            print("".join(f"  {line}\n" for line in said), end="")
            temporary = path.with_suffix(".new")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
    except (StackError, OSError) as error:
        sys.exit(f"lock_stack: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
