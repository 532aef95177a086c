# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files inside a container: what is there, what should be, and the scripts that look and write.

The scripts need a POSIX shell and either coreutils or BusyBox. Why not C(pct push) and C(pct pull): they end with 0
when they failed, write in place, take a directory for an empty file, and hold pct's lock for as long as they copy.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ansible_collections.phoenix.hypervisor.plugins.module_utils import inside

# More of a text than this is not shown in a diff.
DIFF_LIMIT = 100 * 1024
_CHUNK = 1 << 18

# Arguments: path, whether links are followed (-L or ""), the one size that a checksum is needed of ("any": of any),
# the most bytes to show, owner and group to look up. Only the first so many bytes that stat counted are read, so that a
# log that grows meanwhile is one file, and a device that took the file's place has an end.
_LOOK = r"""
export LC_ALL=C
path=$1 follow=$2 wanted=$3 limit=$4 owner=$5 group=$6
folder=${path%/*}/
case $owner in
  '' | *[!0-9]*) [ -z "$owner" ] || owner=$(id -u "$owner" 2>/dev/null) || owner=unknown ;;
esac
group_id() {
  while IFS=: read -r name password number rest; do
    if [ "$name" = "$1" ]; then echo "$number"; return; fi
  done </etc/group
  getent group "$1" 2>/dev/null | cut -d: -f3
}
case $group in
  '' | *[!0-9]*) [ -z "$group" ] || group=$(group_id "$group"); [ -z "$6" ] || group=${group:-unknown} ;;
esac
echo "owner=$owner"
echo "group=$group"
[ -d "$folder" ] && echo folder=yes
[ -d "$path" ] && echo directory=yes
if [ -e "$path" ] || [ -L "$path" ]; then
  if stat=$(stat $follow -c 'mode=%f size=%s uid=%u gid=%g' -- "$path"); then
    for word in $stat; do echo "$word"; done
    size=${stat#*size=} size=${size%% *}
    case $stat in mode=8???' '*)
      if [ "$wanted" = any ] || [ "$wanted" = "$size" ]; then
        sum=$(head -c "$size" <"$path" | sha256sum) && echo "sha256=${sum%% *}"
      fi
      if [ "$size" -le "$limit" ]; then
        echo content
        exec head -c "$size" <"$path"
      fi
    esac
  fi
fi
exit 0
"""

# Arguments: path, size, checksum, owner, group, mode; the content on stdin. A reader of the path sees the old file or
# the new one, never a part. A temporary file is another run's for as long as its process lives, and a leftover then.
_WRITE = r"""
export LC_ALL=C
path=$1 size=$2 sha256=$3 owner=$4 group=$5 mode=$6
folder=${path%/*}/
umask 077
for old in "$folder".pct_push.*; do
  [ -f "$old" ] || continue
  pid=${old##*/.pct_push.}
  grep -qs pct_push "/proc/${pid%%.*}/cmdline" || rm -f -- "$old"
done
new=$(mktemp "$folder.pct_push.$$.XXXXXX") || exit 1
trap 'rm -f -- "$new"' EXIT
trap 'exit 143' HUP INT TERM
cat >"$new" || exit 1
sync -- "$new" 2>/dev/null || sync
got=$(stat -c %s -- "$new") sum=$(sha256sum <"$new")
if [ "$got" != "$size" ] || [ "${sum%% *}" != "$sha256" ]; then
  echo "$got bytes arrived that are not the $size bytes that were sent" >&2
  exit 1
fi
chown -- "$owner:$group" "$new" && chmod -- "$mode" "$new" && mv -fT -- "$new" "$path"
"""

# Arguments: path, owner, group, mode.
_SET = r"""
export LC_ALL=C
if [ -L "$1" ] || [ ! -f "$1" ]; then echo "it is no regular file any more" >&2; exit 1; fi
chown -h -- "$2:$3" "$1" && chmod -- "$4" "$1"
"""

_READ = r"""
export LC_ALL=C
exec head -c "$2" <"$1"
"""


@dataclass(frozen=True)
class Found:
    """What is at a path inside.

    :ivar mode: type and permissions as stat has them; 0 when there is nothing
    :ivar sha256: "" where none was needed
    :ivar content: None where it was not asked for, or is too large
    :ivar folder: whether the folder that it is in exists
    :ivar directory: whether it is a directory, or leads to one
    :ivar owner: number of the user that was asked for; None when there is no such user
    """

    mode: int = 0
    size: int = 0
    uid: int = 0
    gid: int = 0
    sha256: str = ""
    content: bytes | None = None
    folder: bool = False
    directory: bool = False
    owner: int | None = None
    group: int | None = None

    @property
    def exists(self) -> bool:
        return self.mode != 0

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def kind(self) -> str:
        """What it is, in a word."""
        for test, name in _KINDS:
            if test(self.mode):
                return name
        return "no regular file"


_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def parse(output: bytes) -> Found:
    """What the script that looks has printed."""
    head, mark, content = output.partition(b"\ncontent\n")
    said = dict(line.split("=", 1) for line in head.decode("ascii", "replace").splitlines())
    return Found(
        mode=int(said.get("mode", "0"), 16),
        size=int(said.get("size", "0")),
        uid=int(said.get("uid", "0")),
        gid=int(said.get("gid", "0")),
        sha256=said.get("sha256", ""),
        content=content if mark else None,
        folder="folder" in said,
        directory="directory" in said,
        owner=_number(said["owner"]),
        group=_number(said["group"]),
    )


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def look(
    vmid: int,
    path: str,
    timeout: float,
    *,
    follow: bool = False,
    checksum_of: int | None = None,
    show: bool = False,
    owner: str = "",
    group: str = "",
) -> Found:
    """What is at a path inside.

    :param follow: whether it is what a symbolic link leads to
    :param checksum_of: the one size that a checksum is needed of; None for any
    :param show: whether the content is wanted, unless it is larger than what a diff shows
    """
    wanted = "any" if checksum_of is None else str(checksum_of)
    limit = str(DIFF_LIMIT if show else -1)
    output: list[bytes] = []
    arguments = ["pct_look", path, "-L" if follow else "", wanted, limit, owner, group]
    inside.ask(vmid, _LOOK, arguments, f"{path} can't be looked at", timeout, sink=output.append)
    return parse(b"".join(output))


def write(vmid: int, path: str, pieces: Iterator[bytes], wanted: Wanted, timeout: float) -> None:
    """Put a file where it should be, whole, or leave what is there as it is."""
    arguments = ["pct_push", path, str(wanted.size), wanted.sha256, *wanted.attributes()]
    what = f"{path} can't be written, and what was there is untouched"
    inside.ask(vmid, _WRITE, arguments, what, timeout, stdin=pieces)


def set_attributes(vmid: int, path: str, wanted: Wanted, timeout: float) -> None:
    """Give a file its owner, group and mode."""
    what = f"owner, group and mode of {path} can't be set"
    inside.ask(vmid, _SET, ["pct_push", path, *wanted.attributes()], what, timeout)


def read(vmid: int, path: str, size: int, sink: Callable[[bytes], object], timeout: float) -> None:
    """Hand the first bytes of a file on."""
    inside.ask(vmid, _READ, ["pct_pull", path, str(size)], f"{path} can't be read", timeout, sink=sink)


# --- what should be -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """A file as it should be."""

    size: int
    sha256: str
    uid: int
    gid: int
    mode: int

    def attributes(self) -> tuple[str, str, str]:
        return str(self.uid), str(self.gid), f"{self.mode:04o}"


def wanted(found: Found, size: int, sha256: str, owner: str, group: str, mode: str) -> Wanted:
    """A file as it should be: what is not declared stays, and is root's and 0644 with a new one."""
    kept = found if found.is_file else Found(mode=stat.S_IFREG | 0o644)
    return Wanted(
        size=size,
        sha256=sha256,
        uid=found.owner if owner and found.owner is not None else kept.uid,
        gid=found.group if group and found.group is not None else kept.gid,
        mode=int(mode, 8) if mode else stat.S_IMODE(kept.mode),
    )


def same_content(found: Found, wanted: Wanted) -> bool:
    return found.is_file and (found.size, found.sha256) == (wanted.size, wanted.sha256)


def same_attributes(found: Found, wanted: Wanted) -> bool:
    return (found.uid, found.gid, stat.S_IMODE(found.mode)) == (wanted.uid, wanted.gid, wanted.mode)


# --- options --------------------------------------------------------------------------------------------------------


def path_problem(option: str, path: str) -> str:
    """What is wrong with the path of a file, or ""."""
    if not path.startswith("/"):
        return f"{option}: {path!r} is not an absolute path; write it from the root on, such as /root/{path or 'name'}"
    if "\0" in path:
        return f"{option}: {path!r} has a NUL character, which no path can have; remove it"
    if path.rpartition("/")[2] in ("", ".", ".."):
        return f"{option}: {path!r} is a directory; name the file"
    return ""


def mode_problem(mode) -> str:
    """What is wrong with a mode, or ""."""
    if mode is None or (isinstance(mode, str) and re.fullmatch(r"0?[0-7]{3,4}", mode)):
        return ""
    if isinstance(mode, str):
        return f"mode: {mode!r} is not an octal mode; write three or four octal digits, such as '0644'"
    return (
        f"mode: {mode} is a number, and YAML makes 420 of 0644 without quotes; write the octal digits in quotes, such "
        "as '0644'"
    )


# --- content --------------------------------------------------------------------------------------------------------


def pieces(file) -> Iterator[bytes]:
    """A file's content from its begin, piece by piece."""
    file.seek(0)
    while True:
        piece = file.read(_CHUNK)
        if not piece:
            return
        yield piece


def measure(file) -> tuple[int, str]:
    """Size and checksum of a file's content."""
    size, digest = 0, hashlib.sha256()
    for piece in pieces(file):
        size += len(piece)
        digest.update(piece)
    return size, digest.hexdigest()


def for_diff(file) -> bytes | None:
    """A file's content, or None when it is larger than what a diff shows."""
    file.seek(0)
    content = file.read(DIFF_LIMIT + 1)
    return content if len(content) <= DIFF_LIMIT else None


def content_diff(before: bytes | None, after: bytes | None, before_header: str, after_header: str) -> dict:
    """A diff of contents in Ansible's form; None is one that is too large."""
    diff: dict = {"before_header": before_header, "after_header": after_header}
    for content, text_key, prefix in ((before, "before", "dst"), (after, "after", "src")):
        if content is None:
            diff[f"{prefix}_larger"] = DIFF_LIMIT
        elif not _is_text(content):
            diff[f"{prefix}_binary"] = 1
        else:
            diff[text_key] = content.decode("utf-8")
    return diff


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        return False


def attributes_text(uid: int, gid: int, mode: int) -> str:
    """Owner, group and mode as a diff shows them."""
    return f"owner: {uid}\ngroup: {gid}\nmode: {mode:04o}\n"


def file_problem(option: str, path: str) -> str:
    """What is wrong with a file of the node that is to be read, or ""."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"{option}: {path} on the node can't be read: {error.strerror}; copy it to the node first"
    found = Found(mode=mode)
    return "" if found.is_file else f"{option}: {path} on the node is {found.kind}; name a regular file"
