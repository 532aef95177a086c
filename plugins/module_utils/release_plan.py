# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a release of a stack is called, what it must hold, and what is to be done to have it live. Pure functions.

A release is a folder below C(/opt/vllm-releases), named ``<stack>-<12 hex>`` by the digest of its lock and of what else
decides its content. Its C(release.json) is written last: a folder without it is half done and is built again. The link
C(/opt/vllm) points at the live one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The keys of a stack that decide what is in the release. The others (titles, the environment of a server, where wheels
# come from) may change without a new release.
CONTENT_KEYS = ("name", "method", "python", "vllm", "distribution_aliases")
RECORD = "release.json"


class StackError(ValueError):
    """A stack that can't be installed. The text is one sentence for the user."""


class JobError(Exception):
    """An installation that failed.

    Attributes:
        message: what happened, one sentence.
        piece: what it happened to (C(torch), C(disk), …), C("") for the installation as such.
        remedy: what to do about it, C("") when nobody knows.
        tail: the last lines of output.
    """

    def __init__(self, message: str, piece: str = "", remedy: str = "", tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.piece = piece
        self.remedy = remedy
        self.tail = list(tail)


class Refused(JobError):
    """A candidate that a gate refused: it is installed, and must not go live. The next candidate may do better."""


@dataclass(frozen=True)
class Seen:
    """What there is in the container.

    Attributes:
        live: where the link points (a path, absolute), C("") when there is no link.
        in_the_way: whether something that is no link stands where the link should be.
        record: the content of the wanted release's C(release.json), C(None) when it isn't there or can't be read.
        half_done: whether the wanted release's folder is there without a C(release.json).
        uv: whether the wanted uv is there.
    """

    live: str = ""
    in_the_way: bool = False
    record: dict[str, Any] | None = None
    half_done: bool = False
    uv: bool = False


@dataclass(frozen=True)
class Step:
    """One thing to do, and its sentence for the user.

    Attributes:
        action: C(uv), C(remove), C(build) or C(switch).
    """

    action: str
    text: str


def check_stack(stack: Mapping[str, Any], requirements: str) -> None:
    """Make sure that a stack says what an installation needs.

    Raises:
        StackError: a key is missing or has a value that can't work, or the lock isn't complete.
    """
    name = stack.get("name")
    where = f"stack {name}" if name else "the stack"
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise StackError(f"{where}: name must be small letters, digits, dots and dashes.")
    if stack.get("method") != "wheel":
        raise StackError(f"{where}: method is {stack.get('method')!r}; this version installs with method: wheel.")
    if not re.fullmatch(r"3\.[0-9]+", str(stack.get("python", ""))):
        raise StackError(f"{where}: python must be a version like \"3.11\" (in quotes).")
    if not stack.get("vllm"):
        raise StackError(f"{where}: vllm must be the version that `vllm --version` says.")
    uv = stack.get("uv") or {}
    if not uv.get("version") or not uv.get("hashes"):
        raise StackError(f"{where}: uv must have a version and hashes (sha256 of its wheels).")
    pinned = {line.split("==")[0] for line in requirements.splitlines() if re.match(r"[A-Za-z0-9]", line)}
    if not pinned:
        raise StackError(f"{where}: its lock has no package in it. Write it with tools/lock_stack.py.")
    for entry in re.split(r"(?<!\\)\n", requirements):
        if re.match(r"[A-Za-z0-9]", entry) and not re.match(r"[^\s=]+==\S+.*--hash=sha256:[0-9a-f]{64}", entry, re.S):
            raise StackError(f"{where}: its lock has {entry.split()[0]} without a version or a hash.")


def digest(stack: Mapping[str, Any], requirements: str) -> str:
    """Return the digest (12 hexadecimal digits) of what decides the content of a release.

    Comments of the lock don't count.
    """
    content = {key: stack.get(key) for key in CONTENT_KEYS}
    lock = [line.rstrip() for line in requirements.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    text = json.dumps([content, lock], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def release_name(stack: Mapping[str, Any], requirements: str) -> str:
    """Return the name of the folder of a release."""
    return f"{stack['name']}-{digest(stack, requirements)}"


def record(stack: Mapping[str, Any], requirements: str, seconds: float, finished: str) -> dict[str, Any]:
    """Return what C(release.json) says.

    Args:
        stack: the stack.
        requirements: its lock.
        seconds: how long the installation took.
        finished: when it was done (ISO 8601).
    """
    return {
        "release": release_name(stack, requirements),
        "stack": stack["name"],
        "vllm": stack["vllm"],
        "digest": digest(stack, requirements),
        "finished": finished,
        "seconds": round(seconds, 1),
    }


def uv_requirement(stack: Mapping[str, Any]) -> str:
    """Return the requirements file that installs the stack's uv with pip."""
    hashes = "".join(f" \\\n    --hash=sha256:{value}" for value in stack["uv"]["hashes"])
    return f"uv=={stack['uv']['version']}{hashes}\n"


def alias_metadata(name: str, version: str) -> str:
    """Return the metadata of a distribution that has a name and a version and no files."""
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: names the version of another package\n"


def plan(seen: Seen, release: str, wanted: str, link: str, uv_version: str) -> list[Step]:
    """Return what is to be done, in order; nothing when the release is live.

    Args:
        seen: what there is.
        release: the release's name.
        wanted: the path of its folder.
        link: the path of the link.
        uv_version: the uv that builds it.

    Raises:
        StackError: something stands where the link should be.
    """
    if seen.in_the_way:
        raise StackError(
            f"{link} is a folder or a file, not a link to a release. Move it away (mv {link} {link}.old) and run "
            "again; nothing in it was changed."
        )
    steps = []
    if not seen.record or seen.record.get("release") != release:
        if not seen.uv:
            steps.append(Step("uv", f"install uv {uv_version}"))
        if seen.half_done or seen.record:
            steps.append(Step("remove", f"remove {wanted}, an installation that did not finish"))
        steps.append(Step("build", f"install release {release}"))
    if seen.live != wanted:
        old = f" (it pointed at {seen.live})" if seen.live else ""
        steps.append(Step("switch", f"point {link} at {wanted}{old}"))
    return steps


def explain(output: str, python: str) -> str:
    """Return what to do about a failed installation, from the installer's own words; C("") when they are not known."""
    text = output.lower()
    if "no space left on device" in text:
        return "The container's disk is full: give it more room (storage_size_gb) and run again."
    if "hash mismatch" in text or "do not match the hashes" in text:
        return (
            "A package isn't the one that was locked. The index or find-links folder that it came from has other files "
            "than the lock: use one that has the published files, or write the lock again."
        )
    if "no interpreter found" in text or "no python" in text:
        return f"The container has no Python {python}: use a template that has it (Debian 12 has 3.11)."
    if any(word in text for word in ("certificate", "unknownissuer", "ssl")):
        return (
            "The TLS certificate of the package index isn't trusted in the container. Behind a proxy that opens TLS, "
            "list its CA in trusted_ca_files and add the feature trusted_ca before vllm."
        )
    network = ("dns error", "name resolution", "failed to resolve", "connection refused", "network is unreachable")
    if any(word in text for word in (*network, "timed out", "error sending request", "connecterror", "no route")):
        return (
            "The container can't reach the package index. Check its gateway and nameserver, or give it a mirror or a "
            "find-links folder in /etc/uv/uv.toml and /etc/pip.conf."
        )
    if "no solution found" in text or "not found in the" in text or "no matching distribution" in text:
        return "The package index has no such file. Check its URL and its find-links folder, or write the lock again."
    return ""


def last_lines(text: str, count: int = 12) -> list[str]:
    """Return the last lines of an output that say something."""
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]
