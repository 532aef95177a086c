# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's user-space driver: which version a container needs, from where it comes, which files it is. Pure functions.

A driver, as a CUDA toolkit, is a I(bundle): files with their hashes, and links between them, in one folder. Its name,
``driver-<version>-<12 hex>``, has the digest of what is in it, wherever that came from: two bundles of one name are the
same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

DRIVER, TOOLKIT = "driver", "toolkit"
NODE, RUNFILE, APT = "node", "runfile", "apt"
# In this order. The node's own libraries are its kernel driver's by definition, and cost no download.
AUTO = (NODE, RUNFILE, APT)
MANIFEST = ".manifest.json"
# A driver's version has three digits first, which tells its files from others of the same name.
_VERSION = r"[0-9]{3,4}\.[0-9]+(?:\.[0-9]+)?"

# What computes and what looks after GPUs. Graphics stays away, and so does all that belongs to the node: kernel
# modules, firmware, nvidia-modprobe (it makes device nodes), nvidia-persistenced.
SONAMES: dict[str, str] = {
    "libcuda": "1",
    "libcudadebugger": "1",
    "libnvcuvid": "1",
    "libnvidia-allocator": "1",
    "libnvidia-cfg": "1",
    "libnvidia-encode": "1",
    "libnvidia-ml": "1",
    "libnvidia-nvvm": "4",
    "libnvidia-opencl": "1",
    "libnvidia-opticalflow": "1",
    "libnvidia-ptxjitcompiler": "1",
    "libnvidia-sandboxutils": "1",
    # Opened by their whole name.
    "libnvidia-compiler": "",
    "libnvidia-fatbinaryloader": "",
    "libnvidia-gpucomp": "",
    "libnvidia-nvvm70": "",
    "libnvidia-pkcs11": "",
    "libnvidia-pkcs11-openssl3": "",
    "libnvidia-tileiras": "",
}
PROGRAMS = ("nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
_STEMS = "|".join(re.escape(stem) for stem in sorted(SONAMES, key=len, reverse=True))
# Programs compile for this name (`-lcuda`, Triton); the others are looked up by their sonames alone.
_UNVERSIONED = ("libcuda", "libnvidia-ml")


class NvidiaError(Exception):
    """Something that can't be had or can't be used. The text is one sentence or two: what is wrong, and what to do."""


# --- which version --------------------------------------------------------------------------------------------------


def kernel_version(text: str) -> str:
    """Return the driver's version in C(/proc/driver/nvidia/version), C("") where there is none.

    Both forms are known: ``NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue …`` and
    ``NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build …``.
    """
    found = re.search(rf"^NVRM version:.*?\s({_VERSION})(?:\s|$)", text, re.MULTILINE)
    return found[1] if found else ""


def is_version(text: str) -> bool:
    """Return whether a text is a driver's version."""
    return re.fullmatch(_VERSION, text) is not None


def branch(version: str) -> str:
    """Return the first number of a version: C(580) of C(580.95.05)."""
    return version.partition(".")[0]


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, to compare."""
    return tuple(int(word) for word in re.findall(r"\d+", version))


def differs(declared: str, kernel: str) -> str:
    """Return what is to be said where a declared version isn't the kernel driver's, C("") where it is.

    The node wins: with libraries of another version every CUDA call in the container fails.
    """
    if not declared or declared == kernel or kernel.startswith(f"{declared}."):
        return ""
    return (
        f"nvidia_driver_version is {declared}, and the node's kernel driver is {kernel}: the container gets {kernel}, "
        "since no other works with this kernel. Correct nvidia_driver_version in the JSON file, and the runfile's URL "
        "beside it."
    )


# --- from where -----------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Where a bundle may come from.

    Attributes:
        method: one of L(AUTO), or C(auto).
        runfile_url: of NVIDIA's self-extracting archive; C(file://) is good, too.
        runfile_sha256: what it must hash to.
        repo_url: NVIDIA's apt repository.
    """

    method: str = "auto"
    runfile_url: str = ""
    runfile_sha256: str = ""
    repo_url: str = ""


def url_version(url: str) -> str:
    """Return the driver's version in the name of a runfile, C("") where it has none."""
    found = re.search(rf"-({_VERSION})(?:[.-][A-Za-z][^/]*)?\.run$", url.partition("?")[0])
    return found[1] if found else ""


def methods(source: Source, version: str) -> tuple[list[str], list[str]]:
    """Return the methods to try for a version, in order, and why each other one is left out.

    Raises:
        NvidiaError: the one that is asked for can't work, or none can.
    """
    possible, reasons = [], []
    for method in AUTO if source.method == "auto" else (source.method,):
        problem = _method_problem(method, source, version)
        if problem:
            reasons.append(f"{method}: {problem}")
        else:
            possible.append(method)
    if not possible:
        raise NvidiaError(f"NVIDIA driver {version} can't be had: {'; '.join(reasons)}.")
    return possible, reasons


def _method_problem(method: str, source: Source, version: str) -> str:
    if method == RUNFILE:
        if not source.runfile_url:
            return "nvidia_runfile_url is not set"
        named = url_version(source.runfile_url)
        if named and named != version:
            return (
                f"nvidia_runfile_url is that of {named}, and the node's kernel driver is {version}; name the runfile "
                "of the same version, with its hash"
            )
        return sha256_problem(source.runfile_sha256)
    if method == APT and not source.repo_url:
        return "nvidia_repo_url is not set"
    return ""


def sha256_problem(value: str, name: str = "nvidia_runfile_sha256") -> str:
    """Return why a text can't be the SHA-256 of a runfile, C("") when it can."""
    if not value:
        return f"{name} is not set, and nothing is unpacked that isn't checked; NVIDIA publishes it beside the file"
    return "" if re.fullmatch("[0-9a-fA-F]{64}", value) else f"{name} must be 64 hexadecimal digits"


# --- which files ----------------------------------------------------------------------------------------------------


def place(name: str, version: str) -> str:
    """Return where a file of this name goes in a driver's bundle, C("") where it is none of its files."""
    if name in PROGRAMS:
        return f"bin/{name}"
    # nvvm70 is the compiler of older code, and has no version in its name.
    if re.fullmatch(rf"(?:{_STEMS})\.so\.{re.escape(version)}", name) or name == "libnvidia-nvvm70.so.4":
        return f"lib/{name}"
    return ""


def driver_links(files: Iterable[str], version: str) -> dict[str, str]:
    """Return the links by which programs find the libraries of a bundle: path → target beside it."""
    links = {}
    for stem, number in SONAMES.items():
        if number and f"lib/{stem}.so.{version}" in set(files):
            links[f"lib/{stem}.so.{number}"] = f"{stem}.so.{version}"
            if stem in _UNVERSIONED:
                links[f"lib/{stem}.so"] = f"{stem}.so.{number}"
    return links


def foreign(name: str) -> bool:
    """Return whether a file in one of the system's folders is a driver's, of whatever version."""
    return name in PROGRAMS or re.fullmatch(rf"(?:{_STEMS})\.so(?:\.\d+|\.{_VERSION})?", name) is not None


def needed(kind: str, version: str) -> tuple[str, ...]:
    """Return the files without which a bundle is none."""
    if kind == DRIVER:
        # The third one compiles PTX, which is what a GPU that is newer than a release's kernels runs.
        names = ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler")
        return (*(f"lib/{name}.so.{version}" for name in names), "bin/nvidia-smi")
    return ("bin/nvcc",)


def missing(kind: str, version: str, files: Iterable[str]) -> str:
    """Return what a bundle lacks, in words; C("") when it is whole."""
    there = set(files)
    return ", ".join(path.rpartition("/")[2] for path in needed(kind, version) if path not in there)


# --- bundles --------------------------------------------------------------------------------------------------------


class File(NamedTuple):
    """A file of a bundle."""

    sha256: str
    size: int
    executable: bool


def manifest(kind: str, version: str, files: Mapping[str, File], links: Mapping[str, str]) -> str:
    """Return what is in a bundle, as text: the same text for the same content."""
    content = {
        "kind": kind,
        "version": version,
        "files": {path: [file.sha256, file.size, file.executable] for path, file in sorted(files.items())},
        "links": dict(sorted(links.items())),
    }
    return json.dumps(content, indent=0, sort_keys=True) + "\n"


def digest(text: str) -> str:
    """Return the digest of a manifest, by which it is known."""
    return hashlib.sha256(text.encode()).hexdigest()


def name(kind: str, version: str, whole: str) -> str:
    """Return a bundle's name."""
    return f"{kind}-{version}-{whole[:12]}"


def parse_manifest(text: str) -> dict[str, Any]:
    """Return what a manifest says, its files as L(File).

    Raises:
        NvidiaError: it is none.
    """
    try:
        found = json.loads(text)
        files = {path: File(str(file[0]), int(file[1]), bool(file[2])) for path, file in found["files"].items()}
        result = {"kind": str(found["kind"]), "version": str(found["version"]), "files": files}
        result["links"] = {str(path): str(target) for path, target in found["links"].items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise NvidiaError("its manifest can't be read") from None
    wrong = [path for path in (*result["files"], *result["links"]) if path_problem(path)]
    wrong += [target for path, target in result["links"].items() if target_problem(path, target)]
    if wrong:
        raise NvidiaError(f"its manifest has the path {wrong[0]!r}")
    return result


def path_problem(path: str) -> bool:
    """Return whether a path leads out of the folder that it should be below."""
    parts = path.split("/")
    return not path or path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in path


def target_problem(path: str, target: str) -> bool:
    """Return whether a link's target leads out of its bundle."""
    if not target or target.startswith("/") or "\0" in target:
        return True
    depth = len(path.split("/")) - 1
    for part in target.split("/"):
        depth += -1 if part == ".." else 0 if part in ("", ".") else 1
        if depth < 0:
            return True
    return False


# --- what is to be done in a container ------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """What a container is to have.

    Attributes:
        kind: driver or toolkit.
        version: its version.
        digest: of its manifest.
    """

    kind: str
    version: str
    digest: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return name(self.kind, self.version, self.digest)


class Seen(NamedTuple):
    """What a container has.

    Attributes:
        live: the name of the bundle that is in use, C("") where there is none.
        problems: what is wrong with the wanted bundle's files, a few words each; "not there" where there is none.
        settings: what isn't as it should be around it (links, the loader's configuration), in words.
        packages: the distribution's packages that have files of a driver.
        files: files of a driver that belong to nobody.
        others: bundles of the same kind that are there.
        loader: the library that a program gets for libcuda.so.1 now, C("") where there is none.
    """

    live: str = ""
    problems: Sequence[str] = ()
    settings: Sequence[str] = ()
    packages: Sequence[str] = ()
    files: Sequence[str] = ()
    others: Sequence[str] = ()
    loader: str = ""


class Step(NamedTuple):
    """One thing to do: its name, and a sentence."""

    name: str
    text: str


# Steps, in their order: the new one is whole before anything of the old one goes.
UNPACK, SWITCH, SETTINGS, PURGE, REMOVE, LOADER, PRUNE = (
    "unpack", "switch", "settings", "purge", "remove", "loader", "prune",
)  # fmt: skip
TITLES = {DRIVER: "NVIDIA driver", TOOLKIT: "CUDA toolkit"}


def plan(wanted: Wanted, seen: Seen, link: str) -> list[Step]:
    """Return what is to be done so that a container has what it should have.

    Args:
        wanted: what it should have.
        seen: what it has.
        link: the path that is switched to it.
    """
    title = f"{TITLES[wanted.kind]} {wanted.version}"
    steps = []
    if seen.problems:
        first = seen.problems[0] if len(seen.problems) == 1 else f"{seen.problems[0]} and {len(seen.problems) - 1} more"
        why = "" if seen.problems == ("not there",) else f", because of what is there: {first}"
        steps.append(Step(UNPACK, f"unpack {title} ({wanted.name}){why}"))
    if seen.live != wanted.name:
        instead = f", in place of {seen.live}" if seen.live else ""
        steps.append(Step(SWITCH, f"point {link} at {wanted.name}{instead}"))
    if seen.settings:
        steps.append(Step(SETTINGS, f"set {', '.join(seen.settings)}"))
    if seen.packages:
        steps.append(Step(PURGE, f"remove packages with libraries of a driver: {', '.join(seen.packages)}"))
    if seen.files:
        shown = [*seen.files[:3], *([f"{len(seen.files) - 3} more"] if len(seen.files) > 3 else [])]
        steps.append(Step(REMOVE, f"remove what another driver left: {', '.join(shown)}"))
    stale = not seen.loader.startswith(f"{link}/")
    if wanted.kind == DRIVER and (steps or stale):
        before = f"; libcuda.so.1 is {seen.loader or 'not found'} now" if stale else ""
        steps.append(Step(LOADER, f"make the loader's cache again{before}"))
    old = [other for other in seen.others if other != wanted.name]
    if old:
        steps.append(Step(PRUNE, f"remove {', '.join(old)}"))
    return steps
