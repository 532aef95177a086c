# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files a model has, which of them are wanted, what is to be done to have them. Pure functions.

A model is a link, C(<folder>/<org>/<name>), to one of its revisions, C(<folder>/<org>/.<name>/<revision>). A revision's
folder never gets other content than it was made with, so a link that moves on doesn't touch what a server has open.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

MANIFEST = ".phoenix-model.json"
HUB = "https://huggingface.co"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGESTS = {"sha256": re.compile(r"[0-9a-f]{64}"), "git": re.compile(r"[0-9a-f]{40}")}
# Weights that vLLM takes by itself when there are any; the same weights in other forms are left out beside them.
_SAFETENSORS = re.compile(r"model(\.safetensors|\.safetensors\.index\.json|-\d+-of-\d+\.safetensors)")
DUPLICATES = (
    "original/*", "onnx/*", "openvino/*", "coreml/*", "pytorch_model*.bin", "pytorch_model*.bin.index.json", "*.pth",
    "*.gguf", "*.h5", "*.msgpack", "*.ot", "*.tflite",
)  # fmt: skip
# Of a folder: what tools leave there.
LEFTOVERS = (".git/*", ".cache/*", ".gitattributes", ".gitignore", MANIFEST, "SHA256SUMS")
_MEBI = 1 << 20


class ModelError(ValueError):
    """A model that can't be had. The text is one sentence for the user."""


class NotThere(ModelError):
    """Who was asked gave no answer, or doesn't know the model. What is on the node already may do."""


@dataclass(frozen=True, order=True)
class File:
    """A file of a model.

    Attributes:
        path: where it is below the model's folder.
        size: in bytes.
        algorithm: of its digest: C(sha256), C(git) (the SHA-1 of git's blob), C("") where none is known yet.
        digest: in hexadecimal digits.
        mtime: of a file that came from a folder: its modification time there, in nanoseconds.
    """

    path: str
    size: int
    algorithm: str = ""
    digest: str = ""
    mtime: int = 0

    @property
    def key(self) -> str:
        """A name that only files of the same content have."""
        if self.digest:
            return f"{self.algorithm}-{self.digest}"
        return "file-" + hashlib.sha256(f"{self.path}\0{self.size}\0{self.mtime}".encode()).hexdigest()

    def hasher(self) -> Any:
        """An empty hash of its algorithm."""
        return hashlib.new("sha1", b"blob %d\0" % self.size) if self.algorithm == "git" else hashlib.sha256()


@dataclass(frozen=True)
class Revision:
    """A model as it is at some place.

    Attributes:
        name: of its folder.
        origin: where it is from: C(repository), C(commit) and C(endpoint), or C(source).
        files: the files that are wanted of it.
    """

    name: str
    origin: Mapping[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def same_source(self, other: Mapping[str, str]) -> bool:
        """Whether it is from there, too, be it another revision."""
        return all(self.origin.get(name, "") == other.get(name, "") for name in ("repository", "source"))


# --- names --------------------------------------------------------------------------------------------------------


def repository_problem(repository: str) -> str:
    """What is wrong with the name of a repository, or C("")."""
    parts = repository.split("/")
    if len(parts) != 2 or not all(re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,95}", part, re.ASCII) for part in parts):
        return f"repository: {repository!r} isn't of the form organisation/name; take it from the model's page"
    return f"repository: {repository!r} has .. in it" if ".." in repository else ""


def name_problem(name: str) -> str:
    """What is wrong with a model's name below the folder, or C("")."""
    if path_problem(name) or any(part.startswith(".") for part in name.split("/")):
        return f"name: {name!r} is no path below the folder of the models; use one like organisation/name"
    return ""


def path_problem(path: Any) -> str:
    """What is wrong with the path of a model's file, or C(""). A hub's word is no reason to write anywhere else."""
    if not isinstance(path, str) or not path or len(path) > 1024:
        return "it is no path"
    if re.search(r"[\x00-\x1f\x7f\\]", path):
        return "it has a character that no file of a model has"
    parts = path.split("/")
    if any(part in ("", ".", "..") or len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts):
        return "it leads out of the model's folder"
    return "it is the name of this collection's own record" if parts[0] == MANIFEST else ""


def is_commit(revision: str) -> bool:
    return bool(_COMMIT.fullmatch(revision))


def folder_name(commit: str, include: Sequence[str], exclude: Sequence[str] | None) -> str:
    """The name of a revision's folder: the commit; with patterns of one's own their digest, as other files make another
    folder."""
    if not include and exclude is None:
        return commit
    text = json.dumps([sorted(include), None if exclude is None else sorted(exclude)])
    return f"{commit}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# --- files --------------------------------------------------------------------------------------------------------


def hub_files(reply: Any, where: str) -> tuple[str, list[File]]:
    """The commit and the files that a hub tells of a revision (C(/api/models/…/revision/…?blobs=true)).

    Raises:
        ModelError: it is no such answer, or names a file that no model has.
    """
    fault = f"{where} isn't the answer of a model hub; check the endpoint"
    reply = reply if isinstance(reply, dict) else {}
    commit, entries = str(reply.get("sha")), reply.get("siblings")
    if not is_commit(commit) or not isinstance(entries, list):
        raise ModelError(fault)
    files = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise ModelError(fault)
        path, lfs = entry.get("rfilename"), entry.get("lfs")
        lfs = lfs if isinstance(lfs, dict) else {}
        algorithm = "sha256" if lfs.get("sha256") else "git"
        digest = str(lfs.get("sha256") or entry.get("blobId") or "").lower()
        size = lfs.get("size", entry.get("size"))
        if path_problem(path):
            raise ModelError(f"{where} names the file {path!r}: {path_problem(path)}; nothing is fetched")
        if not _DIGESTS[algorithm].fullmatch(digest) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ModelError(
                f"{where} tells no checksum or no size of {path}, so nobody could see whether it is whole; use another "
                "endpoint, or fetch it elsewhere and give the folder as source"
            )
        files.append(File(path, size, algorithm, digest))
    return commit, checked(files, where)


def checked(files: Iterable[File], where: str) -> list[File]:
    """Files in order, when each can be there beside the others.

    Raises:
        ModelError: two have one place.
    """
    result = sorted(files)
    paths = [file.path for file in result]
    folders = {path[: at.start()] for path in paths for at in re.finditer("/", path)}
    twice = {path for path in paths if paths.count(path) > 1} if len(set(paths)) < len(paths) else set()
    twice |= folders & set(paths)
    if twice:
        raise ModelError(f"{where} names {min(twice)} twice, or as a file and a folder; nothing is fetched")
    return result


def selected(files: Sequence[File], include: Sequence[str], exclude: Sequence[str] | None) -> list[File]:
    """The files that are wanted.

    Args:
        files: all that there are.
        include: shell patterns, compared with the whole path; C(*) takes C(/), too. Empty for all.
        exclude: the same. None for weights in other forms beside those in safetensors, unless O(include) names files.
    """
    if exclude is None:
        has_safetensors = any(_SAFETENSORS.fullmatch(file.path) for file in files)
        exclude = DUPLICATES if has_safetensors and not include else ()
    return [
        file for file in files if (not include or matches(file.path, include)) and not matches(file.path, exclude)
    ]


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path is one of the patterns'."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def with_known_digests(files: Iterable[File], revisions: Iterable[Revision]) -> list[File]:
    """Files of a folder, with the digests of those that were read there before and are untouched since."""
    known = {
        (file.path, file.size, file.mtime): file
        for revision in revisions
        for file in revision.files
        if file.mtime and file.algorithm == "sha256"
    }
    return [
        file if file.digest else replace(file, algorithm=found.algorithm, digest=found.digest)
        if (found := known.get((file.path, file.size, file.mtime)))
        else file
        for file in files
    ]


def folder_revision_name(files: Sequence[File]) -> str:
    """The name of the revision that a folder's files are, without a look at their content."""
    text = "".join(f"{file.path}\0{file.size}\0{file.mtime}\0" for file in sorted(files))
    return "folder-" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def checksums(text: str) -> dict[str, str]:
    """Path → SHA-256 of a file in the form of C(sha256sum)."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line.strip())
        if match:
            found[match[2]] = match[1].lower()
    return found


# --- manifests ----------------------------------------------------------------------------------------------------


def manifest(revision: Revision) -> str:
    """The record of a whole revision, in its folder."""
    files = [asdict(file) for file in revision.files]
    content = {"name": revision.name, "origin": dict(revision.origin), "files": files}
    return json.dumps(content, indent=1) + "\n"


def parse_manifest(text: str) -> Revision:
    """
    Raises:
        ModelError: it is none.
    """
    try:
        content = json.loads(text)
        files = [File(**entry) for entry in content["files"]]
        right = all(
            not path_problem(file.path) and isinstance(file.size, int)
            and (not file.digest or _DIGESTS[file.algorithm].fullmatch(file.digest))
            for file in files
        )  # fmt: skip
        origin = {str(name): str(value) for name, value in content["origin"].items()}
        if right:
            return Revision(str(content["name"]), origin, tuple(files))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ModelError("it is no record of a model")


# --- what is to be done -------------------------------------------------------------------------------------------


def to_prune(revisions: Mapping[str, float], live: str, keep: int) -> list[str]:
    """The revisions that may go, so that no more than so many stay, the live one among them; the oldest first.

    Args:
        revisions: name → when it was made live last.
        live: the one that stays in any case.
        keep: how many stay.
    """
    others = sorted((name for name in revisions if name != live), key=lambda name: (-revisions[name], name))
    return sorted(others[max(keep - 1, 0) :], key=lambda name: (revisions[name], name))


def nearest(name: str, known: Collection[str], count: int = 3) -> list[str]:
    """The known names that look most like a name."""
    folded = {each.lower(): each for each in known}
    return [folded[each] for each in difflib.get_close_matches(name.lower(), list(folded), count, 0.5)]


def amount(size: float) -> str:
    """A number of bytes for a reader."""
    return f"{size / _MEBI:.1f} MiB" if size < 10 * _MEBI else f"{size / _MEBI:.0f} MiB"


def files_text(files: Sequence[File]) -> str:
    """How many files of what size, for a reader."""
    return f"{len(files)} file{'' if len(files) == 1 else 's'}, {amount(sum(file.size for file in files))}"


def progress(name: str, done: int, total: int, files: int, of_files: int, since: str, speed: float) -> str:
    """How far a fetch is, for a reader.

    Args:
        name: of the file that it is at.
        done: bytes that are there.
        total: of so many.
        files: that are whole.
        of_files: of so many.
        since: the time of day at which it began.
        speed: bytes a second.
    """
    rate = f", {amount(speed)}/s" if speed else ""
    return (
        f"{name} ({files} of {of_files} files, {done / _MEBI:.0f} of {total / _MEBI:.0f} MiB, since {since}{rate})"
    )
