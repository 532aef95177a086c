# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done to have a release live, which releases may go, and what a failure means. Pure functions.

A release is a candidate as installed: a folder below C(/opt/vllm-releases), named ``<stack>-<12 hex>`` by the digest of
what decides its content. Its C(release.json) is written last: a folder without it is half done and is installed again.
The link C(/opt/vllm) points at the live one. The candidates of a stack are tried in order; one that a gate refused is
written down, and is not tried again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RECORD = "release.json"
# A folder of the time before releases; the date that it was taken over follows.
BEFORE = "before-"
# What the record of a release has of its candidate. Locks are in files of their own.
_RECORDED = ("release", "stack", "vllm", "torch", "cuda", "python", "channel", "method", "flashinfer", "requires")
_SOURCE = ("repository", "commit", "version", "environment")
# The Python that a distribution has by itself; where a stack wants another one, uv brings it.
DISTRIBUTIONS = {"Debian 12": "3.11", "Debian 13": "3.13", "Ubuntu 22.04": "3.10", "Ubuntu 24.04": "3.12"}


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
        in_the_way: what stands where the link should be and is none: C(folder), C(other) or C("").
        complete: the names of the releases that are complete.
        half_done: the names of folders of releases that are not.
        works: the names of the releases that an installation has a working folder of.
        refused: the releases that a gate refused: piece, message and remedy of each.
        history: the releases that were made live, in order, the latest last.
        in_use: the names of the releases that a running process uses.
    """

    live: str = ""
    in_the_way: str = ""
    complete: frozenset[str] = frozenset()
    half_done: frozenset[str] = frozenset()
    works: frozenset[str] = frozenset()
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    history: Sequence[str] = ()
    in_use: frozenset[str] = frozenset()

    @property
    def live_name(self) -> str:
        """The name of the live release, C("") when there is none."""
        return self.live.rpartition("/")[2]


@dataclass(frozen=True)
class Wanted:
    """What there should be.

    Attributes:
        candidates: the ways to install the stack, the best first.
        release: the name of a release that is there, or C(previous): it is gone back to, and nothing is installed.
        releases: the folder of the releases.
        link: the path of the link.
        keep: how many releases stay.
        keep_wheels: whether the wheels of an installation stay when it is done; somebody else fetches them.
        retry: whether candidates that were refused are tried again.
        today: the date, for the name of a folder that is taken over.
    """

    candidates: Sequence[Mapping[str, Any]]
    release: str = ""
    releases: str = "/opt/vllm-releases"
    link: str = "/opt/vllm"
    keep: int = 3
    keep_wheels: bool = False
    retry: bool = False
    today: str = ""


@dataclass(frozen=True)
class Step:
    """One thing to do, and its sentence for the user.

    Attributes:
        action: C(forgive), C(take_over), C(install), C(switch), C(clean) or C(remove).
        name: the release that it is done to.
    """

    action: str
    name: str
    text: str


def check_candidates(candidates: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that candidates have what an installation needs; the lookup C(stack) makes them so.

    Raises:
        StackError: something is missing or has a value that can't work.
    """
    for candidate in candidates:
        name = candidate.get("release")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*-[0-9a-f]{12}", name):
            raise StackError(f"A candidate's release is {name!r}: it must be a stack's name, a dash and 12 hex digits.")
        missing = [key for key in ("stack", "python", "vllm", "method", "requirements", "uv") if not candidate.get(key)]
        if missing:
            raise StackError(f"The candidate {name} has no {', '.join(missing)}: the lookup stack makes whole ones.")
        if candidate["method"] not in ("wheel", "source"):
            raise StackError(f"The candidate {name} has method {candidate['method']!r}: it must be wheel or source.")


def choose(wanted: Wanted, seen: Seen) -> Mapping[str, Any]:
    """Return the first candidate that wasn't refused.

    Raises:
        StackError: there is none.
    """
    for candidate in wanted.candidates:
        if wanted.retry or candidate["release"] not in seen.refused:
            return candidate
    reasons = "\n".join(f"- {name}: {_reason(seen.refused[name])}" for name in _names(wanted.candidates))
    raise StackError(
        f"No way to install the stack passed its gates:\n{reasons}\n"
        "The live release was not touched. When the cause is gone, run again with vllm_stack_retry: true."
    )


def plan(wanted: Wanted, seen: Seen) -> list[Step]:
    """Return what is to be done, in order; nothing when the wanted release is live and no release is too many.

    Raises:
        StackError: it can't be done.
    """
    steps: list[Step] = []
    if wanted.release:
        release, way = _named(wanted, seen), ""
    else:
        candidate = choose(wanted, seen)
        release, way = candidate["release"], describe(candidate)
        for name in _names(wanted.candidates):
            if name in seen.refused and wanted.retry:
                steps.append(Step("forgive", name, f"try {name} again, which was refused"))
    if seen.in_the_way == "other":
        raise StackError(
            f"{wanted.link} is neither a folder nor a link to a release. Move it away (mv {wanted.link} "
            f"{wanted.link}.old) and run again; nothing was changed."
        )
    live = seen.live
    if seen.in_the_way:
        name = before_name(wanted.today, seen)
        live = f"{wanted.releases}/{name}"
        text = f"keep the folder {wanted.link} as {live}, and put a link to it in its place"
        steps.append(Step("take_over", name, text))
    if release not in seen.complete:
        steps.append(Step("install", release, f"install release {release} ({way})"))
    path = f"{wanted.releases}/{release}"
    if live != path:
        old = f" (it pointed at {live})" if live else ""
        steps.append(Step("switch", release, f"point {wanted.link} at {path}{old}"))
    if not wanted.keep_wheels and (release not in seen.complete or release in seen.works):
        steps.append(Step("clean", release, f"remove what the installation of {release} has left"))
    steps += [Step("remove", name, text) for name, text in removable(wanted, seen, release)]
    return steps


def removable(wanted: Wanted, seen: Seen, release: str) -> list[tuple[str, str]]:
    """Return (name, sentence) of what may go once a release is live: what is too old, and what was never finished.

    The live release, the one before it and those that a process uses stay.
    """
    after = [*seen.history, *([seen.live_name] if seen.live else []), release]
    # The one that was live last stays even without a record: nobody knows what is in it.
    last = next((name for name in reversed(after) if name != release), "")
    kept = {release, seen.live_name, last, previous(after, release, seen.complete), *seen.in_use}
    # The longest out of use goes first; one that never was in use before all others.
    age = {name: index for index, name in enumerate(after)}
    complete = sorted(seen.complete | {release}, key=lambda name: (age.get(name, -1), name))
    old = [name for name in complete[: -wanted.keep or None] if name not in kept]
    candidates = {name for name in _names(wanted.candidates) if name not in seen.refused}
    # What an installation left that nobody wants any more. That of a candidate is gone on with one day.
    left = sorted((seen.half_done | seen.works) - seen.complete - candidates - kept)
    return [
        *((name, f"remove release {name}: {wanted.keep} releases stay") for name in old),
        *((name, f"remove {name}, which was never finished") for name in left),
    ]


def previous(history: Sequence[str], live: str, complete: Iterable[str]) -> str:
    """Return the release that was live before the live one and is still there, C("") when there is none."""
    there = set(complete)
    return next((name for name in reversed(history) if name != live and name in there), "")


def before_name(today: str, seen: Seen) -> str:
    """Return the name for a folder of the time before releases."""
    taken = seen.complete | seen.half_done
    names = (f"{BEFORE}{today}{suffix}" for suffix in ("", *(f"-{number}" for number in range(2, 1000))))
    return next(name for name in names if name not in taken)


def describe(candidate: Mapping[str, Any]) -> str:
    """Return in a few words how a candidate is installed."""
    words = ["built from source" if candidate["method"] == "source" else "from wheels"]
    if candidate.get("flashinfer"):
        words.append(f"FlashInfer {candidate['flashinfer']}")
    return ", ".join(words)


def record(
    candidate: Mapping[str, Any],
    refused: Mapping[str, Mapping[str, str]],
    seconds: Mapping[str, float],
    finished: str,
    built: Mapping[str, Any] | None = None,
    found: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what C(release.json) says.

    Args:
        candidate: the candidate.
        refused: the better candidates that a gate refused.
        seconds: how long each phase took.
        finished: when it was done (ISO 8601).
        built: the wheels that were built here, and what from.
        found: what the gates found, a sentence each.
    """
    source = candidate.get("source") or {}
    return {
        **{key: candidate.get(key, "") for key in _RECORDED},
        "source": {key: source[key] for key in _SOURCE if key in source},
        "refused": {name: dict(reason) for name, reason in refused.items()},
        "built": dict(built or {}),
        "found": list(found),
        "seconds": round(sum(seconds.values()), 1),
        "phases": {name: round(value, 1) for name, value in seconds.items()},
        "finished": finished,
    }


def alias_metadata(name: str, version: str) -> str:
    """Return the metadata of a distribution that has a name and a version and no files."""
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: names the version of another package\n"


def packages_needed(candidate: Mapping[str, Any], has_wheels: bool) -> list[str]:
    """Return the distribution's packages that a candidate needs.

    Args:
        candidate: the candidate.
        has_wheels: whether all of its wheels are here, so that nothing is built.
    """
    packages = candidate.get("packages") or {}
    build = [] if has_wheels else packages.get("build") or []
    return sorted({*(packages.get("install") or []), *build})


def installed_packages(status: str) -> set[str]:
    """Return the packages that dpkg's status file says are installed, and what they provide."""
    found: set[str] = set()
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Provides): (.*)$", stanza, re.M))
        if fields.get("Status", "").endswith(" installed"):
            found.add(fields.get("Package", ""))
            found.update(entry.split()[0] for entry in fields.get("Provides", "").split(",") if entry.strip())
    return found


def sentence(progress: Mapping[str, Any], now: float) -> str:
    """Return how far an installation is, in one line."""
    detail = f" {progress['detail']}" if progress.get("detail") else ""
    since = duration(now - float(progress.get("since") or now))
    return f"{progress.get('release', 'a release')}: {progress.get('text', '')}{detail}, for {since}"


def duration(seconds: float) -> str:
    """Return a time in words: C(12 s), C(3 min), C(2 h 5 min)."""
    whole = max(0, int(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def ended(properties: Mapping[str, str], phase: str, limit: str) -> JobError:
    """Return why a job ended that didn't say so itself.

    Args:
        properties: what `systemctl show` says of its unit.
        phase: what it was doing.
        limit: its time limit in words.
    """
    result = properties.get("Result", "")
    doing = f" while it was {phase}" if phase else ""
    again = "Run again: what was done is gone on with."
    if result == "oom-kill":
        return JobError(
            f"The container's memory was not enough{doing}: the kernel ended the installation.",
            "memory",
            "Give the container more memory (memory_mb), or build with fewer jobs (vllm_stack_max_jobs: 1), "
            "and run again: what was done is gone on with.",
        )
    if result == "timeout":
        return JobError(
            f"The installation took longer than its time limit of {limit}{doing}.",
            "time",
            "Raise vllm_stack_time_limit and run again: what was done is gone on with.",
        )
    if result in ("signal", "core-dump", "watchdog"):
        number = properties.get("ExecMainStatus", "")
        return JobError(f"The installation was killed (signal {number}){doing}.", "", again)
    if result in ("exit-code", "resources", "protocol", "start-limit-hit"):
        return JobError(f"The installation ended{doing} (systemd says {result}).", "", again)
    return JobError(f"The installation was stopped{doing}.", "", again)


def explain(output: str, python: str = "") -> str:
    """Return what to do about a failed command, from its own words; C("") when they are not known."""
    text = output.lower()
    if "no space left on device" in text or "disk quota exceeded" in text:
        return "The container's disk is full: give it more room (storage_size_gb) and run again."
    if "cannot allocate memory" in text or "memoryerror" in text or "out of memory" in text:
        return "The container's memory is not enough: give it more (memory_mb) and run again."
    if "hash mismatch" in text or "do not match the hashes" in text or "mismatched hash" in text:
        return (
            "A package isn't the one that was locked. The index or find-links folder that it came from has other files "
            "than the lock: use one that has the published files, or write the lock again (make lock)."
        )
    if "no interpreter found" in text or "no python" in text:
        have = " or ".join(name for name, own in DISTRIBUTIONS.items() if own == ".".join(python.split(".")[:2]))
        template = f"use a template that has it ({have}), or name" if have else "name"
        return (
            f"The container has no Python {python}: {template} a mirror of Python builds (vllm_stack_python_mirror)."
        )
    if any(word in text for word in ("certificate", "unknownissuer", "ssl")):
        return (
            "The TLS certificate of the package index isn't trusted in the container. Behind a proxy that opens TLS, "
            "list its CA in trusted_ca_files and add the feature trusted_ca before vllm."
        )
    network = ("dns error", "name resolution", "name or service not known", "failed to resolve", "no route")
    gone = ("connection refused", "network is unreachable", "connection reset", "timed out", "error sending request")
    if any(word in text for word in (*network, *gone, "connecterror", "could not connect", "temporary failure")):
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


def without_secrets(text: str) -> str:
    """Return a text with the login taken out of the URLs in it."""
    return re.sub(r"(?<=://)[^/\s@'\"]+@", "***@", text)


def _named(wanted: Wanted, seen: Seen) -> str:
    name = wanted.release
    if name == "previous":
        name = previous(seen.history, seen.live_name, seen.complete)
        if not name:
            raise StackError(f"There is no release before the live one ({seen.live_name or 'none is live'}).")
    if name not in seen.complete:
        there = ", ".join(sorted(seen.complete)) or "none"
        raise StackError(f"There is no release {name} in {wanted.releases}; it has {there}.")
    return name


def _names(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    return [candidate["release"] for candidate in candidates]


def _reason(reason: Mapping[str, str]) -> str:
    return " ".join(filter(None, (reason.get("message", ""), reason.get("remedy", ""))))
