# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A wheelhouse inside a container: what is there, and the scripts that put it there, hand it on and take it away.

Files stream through C(lxc-attach), nothing is held in memory. A folder from inside is never unpacked on the node: the
node names the files that it wants and cuts the stream by their sizes.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.phoenix.hypervisor.plugins.module_utils import inside, node, store_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.store_plan import MANIFEST, NOBODY, Builder

_NAME = "vllm_store"
UNIT = "vllm_release.service"
_FULL = f"{_NAME}: no room"

# Arguments: the folder of the wheels, its manifest's name, the most bytes of it.
_LOOK = rf"""
export LC_ALL=C
wheels=$1 manifest=$2 limit=$3
case $(systemctl is-active {UNIT} 2>/dev/null) in active | activating | deactivating | reloading) echo unit=yes ;; esac
for comm in /proc/[0-9]*/comm; do
  read -r name <"$comm" || continue
  case $name in apt | apt-get | dpkg) echo packages=yes; break ;; esac
done 2>/dev/null
progress=${{wheels%/*}}/progress.json
if [ -f "$progress" ]; then
  echo "changed=$(stat -c %Y -- "$progress")"
  echo "progress=$(head -c 65536 -- "$progress" | tr -d '\n')"
fi
[ -e "$wheels" ] && echo wheels=yes
folder=$wheels
while [ -n "$folder" ] && [ ! -d "$folder" ]; do folder=${{folder%/*}}; done
free=$(df -Pk -- "${{folder:-/}}" | awk 'NR == 2 {{ print $4 }}')
echo "free=$free"
if [ -f "$wheels/$manifest" ]; then
  echo content
  exec head -c "$limit" -- "$wheels/$manifest"
fi
exit 0
"""

# Arguments: the folder of the wheels, its manifest's name, or "" when these are a part of the files; the files on stdin
# as a tar archive, the manifest last. The folder is there with all of them or not at all. A temporary one is another
# run's for as long as its process lives. Nothing is synced: who installs from it compares every file with its hash
# first, and after a power cut it comes again.
_GIVE = rf"""
export LC_ALL=C
wheels=$1 manifest=$2
work=${{wheels%/*}}
umask 022
mkdir -p -- "$work" || exit 1
for old in "$work"/.{_NAME}.*; do
  [ -d "$old" ] || continue
  pid=${{old##*/.{_NAME}.}}
  grep -qs {_NAME} "/proc/${{pid%%.*}}/cmdline" || rm -rf -- "$old"
done
new=$(mktemp -d "$work/.{_NAME}.$$.XXXXXX") || exit 1
trap 'rm -rf -- "$new" "$new.old"; rmdir -- "$work" 2>/dev/null' EXIT
trap 'exit 143' HUP INT TERM
chmod 0755 -- "$new"
if ! said=$(tar -x -m -B -b 512 -f - -C "$new" 2>&1); then
  case $said in *"No space left"* | *"Disk quota"*) echo "{_FULL}" >&2 ;; *) echo "$said" >&2 ;; esac
  exit 1
fi
if [ -n "$manifest" ] && [ ! -f "$new/$manifest" ]; then echo "the stream ended too early" >&2; exit 1; fi
if [ -e "$wheels" ] || [ -L "$wheels" ]; then mv -T -- "$wheels" "$new.old" || exit 1; fi
mv -T -- "$new" "$wheels"
"""

# Arguments: the folder, names of files.
_SIZES = r"""
export LC_ALL=C
cd -- "$1" && shift && exec stat -c '%f %s' -- "$@"
"""

# Arguments: the folder, names of files. They come one after the other.
_TAKE = r"""
export LC_ALL=C
cd -- "$1" && shift && exec cat -- "$@"
"""

# Arguments: the folder of the wheels, its manifest's name. All of the work goes, not only they. What is killed in the
# middle leaves nothing that looks whole.
_REMOVE = r"""
rm -f -- "$1/$2" && rm -rf -- "${1%/*}"
"""


@dataclass(frozen=True)
class Found:
    """What there is of a wheelhouse inside.

    :ivar manifest: the content of its C(manifest.json), None when there is none
    :ivar wheels: whether its folder is there
    :ivar free: bytes that are free where it is
    """

    builder: Builder = NOBODY
    manifest: bytes | None = None
    wheels: bool = False
    free: int = 0

    @property
    def busy(self) -> bool:
        """Does this container work on this release?"""
        return self.builder.unit and self.builder.progress.get("state") == "running"


def parse(output: bytes, now: float) -> Found:
    """What the script that looks has printed."""
    head, mark, content = output.partition(b"\ncontent\n")
    said = dict(line.split("=", 1) for line in head.decode("utf-8", "replace").splitlines() if "=" in line)
    try:
        progress = json.loads(said.get("progress", ""))
    except ValueError:
        progress = {}
    changed = said.get("changed", "")
    builder = Builder(
        runs=True,
        unit="unit" in said,
        packages="packages" in said,
        progress=progress if isinstance(progress, dict) else {},
        **({"age": now - int(changed)} if changed.isdigit() else {}),
    )
    free = said.get("free", "")
    return Found(builder, content if mark else None, "wheels" in said, int(free) * 1024 if free.isdigit() else 0)


def look(vmid: int, wheels: str, now: float, timeout: float) -> Found:
    """What there is of a wheelhouse inside."""
    output: list[bytes] = []
    arguments = [_NAME, wheels, MANIFEST, str(store_plan.MANIFEST_LIMIT)]
    inside.ask(vmid, _LOOK, arguments, f"{wheels} can't be looked at", timeout, sink=output.append)
    return parse(b"".join(output), now)


def builder(vmid: int, wheels: str, now: float) -> Builder:
    """What a container does that makes a wheelhouse; one that can't be entered does nothing."""
    try:
        return look(vmid, wheels, now, timeout=30).builder
    except (inside.InsideError, node.NodeError):
        return NOBODY


def give(vmid: int, wheels: str, pieces: Iterator[bytes], size: int, timeout: float, whole: bool = True) -> None:
    """Put a wheelhouse inside, whole, or leave what is there as it is.

    :param pieces: a tar archive of its files, the manifest last
    :param size: bytes of the files
    :param whole: False for a part of its files, without a manifest
    """
    try:
        what = f"the wheels can't be put into {wheels}, and what was there is untouched"
        inside.ask(vmid, _GIVE, [_NAME, wheels, MANIFEST if whole else ""], what, timeout, stdin=pieces)
    except inside.InsideError as error:
        if _FULL in str(error):
            raise no_room(vmid, wheels, size) from None
        raise


def no_room(vmid: int, wheels: str, size: int) -> inside.InsideError:
    """The disk inside is full."""
    return inside.InsideError(
        f"CTID {vmid}: its disk has no room for the wheels, {store_plan.megabytes(size)} under {wheels}; give it more "
        "(storage_size_gb) and run again. Nothing of them is left there"
    )


def sizes(vmid: int, wheels: str, names: Sequence[str], timeout: float) -> list[int]:
    """Sizes of files of a wheelhouse inside.

    :raises InsideError: when one isn't a regular file
    """
    what = f"the wheels in {wheels} can't be looked at"
    lines = inside.ask(vmid, _SIZES, [_NAME, wheels, *names], what, timeout).stdout.splitlines()
    found = []
    for name, line in zip(names, lines):
        mode, size = line.split()
        if not stat.S_ISREG(int(mode, 16)):
            raise inside.InsideError(f"CTID {vmid}: {wheels}/{name} is no regular file, and the manifest names it")
        found.append(int(size))
    return found


def take(vmid: int, wheels: str, names: Sequence[str], sink: Callable[[bytes], object], timeout: float) -> None:
    """Hand on the content of files of a wheelhouse inside, one after the other."""
    what = f"the wheels in {wheels} can't be read"
    inside.ask(vmid, _TAKE, [_NAME, wheels, *names], what, timeout, sink=sink)


def remove(vmid: int, wheels: str, timeout: float) -> None:
    """Take away the folder that a release was made in."""
    inside.ask(vmid, _REMOVE, [_NAME, wheels, MANIFEST], f"{wheels} can't be removed", timeout)
