# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Storages and volumes: ``btrfs`` (snapshots, linked clones) and ``dir`` (neither), from /etc/pve/storage.cfg.

A volume is a folder: a subvolume on btrfs, a plain directory on dir. Its size is written down, not enforced.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from node import settings
from node.errors import PctError
from node.system import run, succeeds


@dataclass(frozen=True)
class Storage:
    """A section of storage.cfg."""

    name: str
    kind: str
    path: Path
    content: frozenset[str]

    @property
    def can_snapshot(self) -> bool:
        """Whether volumes have snapshots and linked clones."""
        return self.kind == "btrfs"


@dataclass(frozen=True)
class Volume:
    """A volume id, taken apart: ``local-btrfs:700/vm-700-disk-0.subvol``."""

    storage: Storage
    name: str

    def __str__(self) -> str:
        return f"{self.storage.name}:{self.name}"

    @property
    def path(self) -> Path:
        """The folder of the volume."""
        return self.storage.path / "images" / self.name

    @property
    def owner(self) -> int:
        """The CTID that the volume belongs to."""
        return int(self.name.split("/")[0])

    @property
    def is_base(self) -> bool:
        """Whether this is a template's volume."""
        return self.name.split("/")[-1].startswith("base-")

    def snapshot_path(self, snapname: str) -> Path:
        """The read-only subvolume of a snapshot."""
        return self.path.with_name(f"{self.path.name}@{snapname}")


def parse_storage_cfg(text: str) -> dict[str, Storage]:
    """storage.cfg to storages by name."""
    found: dict[str, Storage] = {}
    for block in re.split(r"\n(?=\S)", "\n" + text):
        header, *lines = block.strip("\n").split("\n") if block.strip() else [""]
        match = re.fullmatch(r"(\w+):\s*(\S+)\s*", header)
        if not match or header.startswith("#"):
            continue
        values = dict([*line.split(None, 1), ""][:2] for line in lines if line.strip())
        content = frozenset(values.get("content", "").split(","))
        found[match[2]] = Storage(match[2], match[1], Path(values.get("path", "/var/lib/vz")), content)
    return found


def storages() -> dict[str, Storage]:
    """The node's storages."""
    try:
        return parse_storage_cfg(settings.STORAGE_CFG.read_text())
    except FileNotFoundError:
        raise PctError("the lab is not up - run 'lab/lab up' first") from None


def storage(name: str) -> Storage:
    """A storage by name; the genuine error when there is none."""
    try:
        return storages()[name]
    except KeyError:
        raise PctError(f"storage '{name}' does not exist") from None


def for_rootdir(name: str) -> Storage:
    """A storage that may hold container directories."""
    found = storage(name)
    if "rootdir" not in found.content:
        raise PctError(f"storage '{name}' does not support container directories")
    return found


def volume(volid: str) -> Volume:
    """A volume id to a volume."""
    name, colon, rest = volid.partition(":")
    if not colon or not re.fullmatch(r"\d+/(vm|base)-\d+-disk-\d+\.subvol", rest):
        raise PctError(f"unable to parse volume ID '{volid}'")
    return Volume(storage(name), rest)


def template_path(ostemplate: str) -> Path:
    """``local:vztmpl/x.tar.zst`` or an absolute path to the archive's path."""
    match = re.fullmatch(r"([^:/]+):vztmpl/([^/]+)", ostemplate)
    if match:
        path = storage(match[1]).path / "template/cache" / match[2]
    elif ostemplate.startswith("/"):
        path = Path(ostemplate)
    else:
        raise PctError(f"unable to parse volume ID '{ostemplate}'")
    if not path.is_file():
        raise PctError(f"volume '{ostemplate}' does not exist")
    return path


def free_name(where: Storage, vmid: int, prefix: str = "vm") -> Volume:
    """The next free volume of a container."""
    folder = where.path / "images" / str(vmid)
    for number in range(1000):
        names = (f"vm-{vmid}-disk-{number}.subvol", f"base-{vmid}-disk-{number}.subvol")
        if not any((folder / name).exists() for name in names):
            return Volume(where, f"{vmid}/{prefix}-{vmid}-disk-{number}.subvol")
    raise PctError(f"unable to allocate an image name for VM {vmid} in storage '{where.name}'")


def allocate(where: Storage, vmid: int) -> Volume:
    """A new empty volume, owned by root; the caller gives it to the container's root."""
    made = free_name(where, vmid)
    made.path.parent.mkdir(parents=True, exist_ok=True)
    if where.kind == "btrfs":
        run(["btrfs", "-q", "subvolume", "create", str(made.path)])
    else:
        made.path.mkdir()
    made.path.chmod(0o755)
    return made


def linked_clone(source: Volume, vmid: int, snapname: str = "") -> Volume:
    """A volume that shares its blocks with the source."""
    if not source.storage.can_snapshot:
        raise PctError(f"Linked clone feature for '{source}' is not available")
    made = free_name(source.storage, vmid)
    made.path.parent.mkdir(parents=True, exist_ok=True)
    origin = source.snapshot_path(snapname) if snapname else source.path
    run(["btrfs", "-q", "subvolume", "snapshot", str(origin), str(made.path)])
    return made


def full_clone(source: Volume, where: Storage, vmid: int, snapname: str = "") -> Volume:
    """A volume of its own, block for block; on another or the same storage."""
    origin = source.snapshot_path(snapname) if snapname else source.path
    made = allocate(where, vmid)
    try:
        run(["cp", "-a", "--reflink=auto", f"{origin}/.", f"{made.path}/"])
    except PctError:
        free(made)
        raise
    return made


def snapshot(source: Volume, snapname: str) -> None:
    """Take a snapshot."""
    run(["btrfs", "-q", "subvolume", "snapshot", "-r", str(source.path), str(source.snapshot_path(snapname))])


def rollback(source: Volume, snapname: str) -> None:
    """Put a snapshot in the place of the volume. The old state is kept until the new one is there."""
    if not source.snapshot_path(snapname).exists():
        raise PctError(f"snapshot '{snapname}' of volume '{source}' does not exist")
    aside = source.path.with_name(source.path.name + ".rollback")
    _delete(source.storage, aside)
    if source.path.exists():
        source.path.rename(aside)
    run(["btrfs", "-q", "subvolume", "snapshot", str(source.snapshot_path(snapname)), str(source.path)])
    _delete(source.storage, aside)


def delete_snapshot(source: Volume, snapname: str) -> None:
    """Delete a snapshot; silent when it is gone already."""
    _delete(source.storage, source.snapshot_path(snapname))


def make_base(source: Volume) -> Volume:
    """Rename a volume to a template's name and make it read-only where the storage can."""
    made = Volume(source.storage, source.name.replace("/vm-", "/base-"))
    source.path.rename(made.path)
    if source.storage.kind == "btrfs":
        run(["btrfs", "property", "set", str(made.path), "ro", "true"])
    return made


def free(source: Volume) -> None:
    """Delete a volume, and its folder when that was the last one."""
    _delete(source.storage, source.path)
    folder = source.path.parent
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def leftovers(vmid: int) -> list[Volume]:
    """All volumes of a container on all storages, whether its conf speaks of them or not."""
    found = []
    for place in storages().values():
        folder = place.path / "images" / str(vmid)
        if "rootdir" in place.content and folder.is_dir():
            names = (entry.name for entry in folder.iterdir())
            found += [Volume(place, f"{vmid}/{n}") for n in names if re.fullmatch(r"(vm|base)-\d+-disk-\d+\.subvol", n)]
    return found


def _delete(where: Storage, path: Path) -> None:
    if not path.exists():
        return
    if where.kind == "btrfs":
        # systemd makes subvolumes of its own inside (/var/lib/machines, /var/lib/portables): they go first.
        for inner in sorted(_inner_subvolumes(path), reverse=True):
            run(["btrfs", "property", "set", str(inner), "ro", "false"])
            run(["btrfs", "-q", "subvolume", "delete", str(inner)])
        if succeeds(["btrfs", "-q", "subvolume", "delete", str(path)]):
            return
    shutil.rmtree(path)


def _inner_subvolumes(path: Path) -> list[Path]:
    listed = run(["btrfs", "subvolume", "list", "-o", str(path)], check=False)
    names = [line.split(" path ", 1)[1] for line in listed.splitlines() if " path " in line]
    return [settings.POOL_MOUNT / name for name in names]


def used_bytes(path: Path) -> int:
    """What the files of a volume take on disk."""
    words = run(["du", "-sx", "--block-size=1", str(path)], check=False).split()
    return int(words[0]) if words else 0
