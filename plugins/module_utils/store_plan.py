# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's store of wheels is to do: who may build, who waits, what goes. Pure functions.

A wheelhouse is all wheels of a release, with a C(manifest.json) that names each with its SHA-256 and is written last. A
claim says which container makes the wheels of a release, so that the others wait for them.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

MANIFEST = "manifest.json"
# More than this is no manifest; it comes from inside a container.
MANIFEST_LIMIT = 4 << 20
# Seconds without a sign of life after which a claim is dead.
SILENCE = 60.0
_RELEASE = r"[A-Za-z0-9][A-Za-z0-9._+-]*-[0-9a-f]{12}"
# A base name; an interpreter's archive is in a folder of its own.
_NAME = r"(?:python/)?[A-Za-z0-9][A-Za-z0-9._+!~%-]{0,254}"


class StoreError(Exception):
    """The store can't do it; the text is for the user."""


class Damaged(Exception):
    """A file of the store isn't what its manifest says any more."""

    def __init__(self, release: str, name: str, what: str) -> None:
        super().__init__(f"{name} of {release} in the store {what}")
        self.name = name


# --- wheelhouses ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What a wheelhouse holds.

    :ivar files: SHA-256 of each file by its name
    :ivar text: the manifest as it is written
    :ivar refused: the better releases that a gate refused for what is the same in every container, and why
    """

    release: str
    files: Mapping[str, str]
    text: bytes
    refused: Mapping[str, Mapping] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return sorted(self.files)


def release_problem(release: str) -> str:
    """What is wrong with a release's name, or ""."""
    if re.fullmatch(_RELEASE, release):
        return ""
    return f"release: {release!r} is no release; its name is the stack's and 12 hexadecimal digits: cpu-0123456789ab"


def wheels_problem(wheels: str, release: str) -> str:
    """What is wrong with the folder of a wheelhouse inside, or "". It is removed when its work is done."""
    parts = wheels.split("/")
    if wheels.startswith("/") and parts[-2:] == [release, "wheels"] and not {"", ".", ".."} & set(parts[1:]):
        return ""
    return f"wheels: {wheels!r} is not the folder of this release's wheels; it ends in /{release}/wheels"


def manifest(content: bytes, release: str, where: str) -> Manifest:
    """A manifest that was read.

    :param where: whose it is, for the message
    :raises StoreError: when it isn't one, or another release's, or names what it must not
    """
    try:
        data = json.loads(content)
        said, files = data["release"], data["files"]
        wrong = [name for name, digest in files.items() if not re.fullmatch("[0-9a-f]{64}", digest)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreError(f"{where}: its {MANIFEST} is none (release and files with their SHA-256 are needed)") from None
    if said != release:
        raise StoreError(f"{where}: its {MANIFEST} is that of {said!r}, not of {release}")
    wrong += [name for name in files if not re.fullmatch(_NAME, name) or name == MANIFEST]
    if wrong:
        raise StoreError(f"{where}: its {MANIFEST} names {wrong[0]!r}, which is no file of a wheelhouse with a SHA-256")
    if not files:
        raise StoreError(f"{where}: its {MANIFEST} names no files")
    refused = data.get("refused")
    refused = {name: why for name, why in refused.items() if isinstance(why, dict)} if isinstance(refused, dict) else {}
    return Manifest(release, MappingProxyType(dict(files)), content, MappingProxyType(refused))


def instead(release: str, candidates: Sequence[str], kept: Callable[[str], Manifest | None]) -> Manifest | None:
    """The wheelhouse that is given instead of a release's own, or None.

    That of a later candidate, when the one that made it had every candidate before it refused: here they would be, too.

    :param candidates: the names of the releases that may be installed, the best first
    :param kept: gives the whole wheelhouse of a release in the store
    """
    if release not in candidates or kept(release):
        return None
    better = [release]
    for name in candidates[candidates.index(release) + 1 :]:
        found = kept(name)
        if found and all(one in found.refused for one in better):
            return found
        better.append(name)
    return None


def known(locked: Collection[str], manifests: Iterable[Manifest]) -> dict[str, str]:
    """The files of a lock that other releases' wheelhouses have: SHA-256 by name.

    :param locked: the hashes that the files of the lock may have
    """
    wanted = frozenset(locked)
    files = (pair for found in manifests for pair in found.files.items())
    return {name: digest for name, digest in files if digest in wanted}


def to_remove(used: Mapping[str, float], keep: int, spared: Collection[str]) -> list[str]:
    """The releases that go: all but those that were used last, and but those that are spared.

    :param used: when each was used
    """
    newest = sorted(used, key=lambda release: (-used[release], release))
    return [release for release in newest[keep:] if release not in spared]


def newest_of(stack: str, used: Mapping[str, float]) -> str:
    """The release of this name, or the one of this stack that was used last; "" for none."""
    of_stack = [release for release in used if stack in (release, release[:-13])]
    return max(of_stack, key=lambda release: (used[release], release), default="")


def megabytes(size: float) -> str:
    """A size for people."""
    return f"{math.ceil(size / 2**20)} MiB"


# --- claims ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """Who makes the wheels of a release.

    :ivar since: when it began, in seconds of the epoch
    :ivar wheels: where they come to be, inside
    :ivar heard: when it last gave a sign of life
    """

    vmid: int
    since: float
    wheels: str
    heard: float = 0.0

    def text(self) -> str:
        return json.dumps({"vmid": self.vmid, "since": self.since, "wheels": self.wheels}) + "\n"


def claim(content: bytes, heard: float) -> Claim:
    """A claim that was read; one that can't be read is nobody's, and dies of silence."""
    try:
        data = json.loads(content)
        return Claim(int(data["vmid"]), float(data["since"]), str(data["wheels"]), heard)
    except (ValueError, KeyError, TypeError):
        return Claim(0, heard, "", heard)


@dataclass(frozen=True)
class Builder:
    """What a container with a claim does.

    :ivar runs: whether the container runs
    :ivar unit: whether C(vllm_release.service) is active in it
    :ivar packages: whether packages of its distribution are being installed
    :ivar progress: what its C(progress.json) says of this release
    :ivar age: seconds since that changed
    """

    runs: bool = False
    unit: bool = False
    packages: bool = False
    progress: Mapping = field(default_factory=dict)
    age: float = math.inf

    @property
    def goes_on(self) -> bool:
        """Does it work at this moment, whatever its play does?"""
        builds = self.unit and self.progress.get("state", "running") == "running"
        return self.runs and (builds or self.packages)

    @property
    def works(self) -> bool:
        """Does it show a sign of life at this moment?"""
        return self.goes_on or (self.runs and self.age < SILENCE)


NOBODY = Builder()


def is_alive(found: Claim, builder: Builder, now: float) -> bool:
    return builder.works or now - found.heard < SILENCE


def waiting(found: Claim, builder: Builder, release: str) -> str:
    """What somebody who waits is told. It changes when there is something new, not with the time."""
    said = [str(builder.progress.get(key) or "") for key in ("text", "detail")]
    doing = ": ".join(part for part in said if part)
    if not doing:
        doing = "it installs packages of its distribution" if builder.packages else "it has not said yet what it does"
    since = time.strftime("%H:%M:%S", time.localtime(found.since))
    return f"waits for the wheels of {release}, which CTID {found.vmid} makes since {since}: {doing}"


# --- plans ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What there is.

    :ivar inside: the whole wheelhouse in the container
    :ivar busy: whether the container works on this release at the moment
    :ivar kept: the whole wheelhouse in the store
    :ivar claim: who makes it
    :ivar builder: what that one does, where it is another container
    """

    inside: Manifest | None = None
    busy: bool = False
    kept: Manifest | None = None
    claim: Claim | None = None
    builder: Builder = NOBODY


@dataclass(frozen=True)
class Step:
    """One thing to do, and its sentence for the user.

    :ivar action: for a wheelhouse to give C(there), C(give), C(claim), C(own), C(busy), C(wait), C(postpone) or
        C(take over)
    """

    action: str
    text: str


def plan_given(seen: Seen, vmid: int, release: str, now: float, beside: Collection[int] = ()) -> Step:
    """How this container comes to its wheels.

    :param beside: containers whose plays may go on only when this one's does. To wait for such a play would be to wait
        for ever; for what goes on inside without the play, it is not.
    """
    if seen.inside:
        return Step("there", f"the wheels of {release} are in CTID {vmid} already")
    # What works on it has files open in that folder.
    if seen.kept and not seen.busy:
        return Step("give", f"give CTID {vmid} the wheels of {release} from the store: {len(seen.kept.files)} files")
    if not seen.claim:
        return Step("claim", f"CTID {vmid} makes the wheels of {release}; the store has none")
    if seen.claim.vmid == vmid:
        return Step("own", f"CTID {vmid} makes the wheels of {release}, as before")
    if seen.busy:
        return Step("busy", f"CTID {vmid} works on {release} at the moment, as CTID {seen.claim.vmid} does")
    if is_alive(seen.claim, seen.builder, now):
        if seen.claim.vmid in beside and not seen.builder.goes_on:
            text = f"CTID {vmid} comes back for the wheels of {release} when CTID {seen.claim.vmid} has made them"
            return Step("postpone", text)
        return Step("wait", waiting(seen.claim, seen.builder, release))
    silent = f"of which nothing was heard for {now - seen.claim.heard:.0f} s"
    return Step("take over", f"CTID {vmid} makes the wheels of {release} instead of CTID {seen.claim.vmid}, {silent}")


# --- a stream of files ----------------------------------------------------------------------------------------------


class Cutter:
    """Cuts a stream into the files that it is made of, one after the other.

    :param sizes: name and size of each
    :param begin: called with a name when its file begins; gives what takes its pieces
    :param finish: called with the name when it is whole
    """

    def __init__(self, sizes: Iterable[tuple[str, int]], begin, finish) -> None:
        self._sizes = iter(sizes)
        self._begin, self._finish = begin, finish
        self._name, self._left, self._take = "", 0, None
        self._next()

    @property
    def is_done(self) -> bool:
        return self._take is None

    def feed(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            if self._take is None:
                raise StoreError(f"{len(rest)} bytes more came than there should be")
            piece, rest = rest[: self._left], rest[self._left :]
            self._take(piece)
            self._left -= len(piece)
            if not self._left:
                self._finish(self._name)
                self._next()

    def _next(self) -> None:
        for name, size in self._sizes:
            self._name, self._left, self._take = name, size, self._begin(name)
            if self._left:
                return
            self._finish(self._name)
        self._take = None
