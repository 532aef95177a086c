# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The conf files on disk and the two kinds of lock: flock on a file, and the ``lock:`` property."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from node import conf as conf_format
from node import settings
from node.conf import Conf
from node.errors import PctError
from node.system import write_atomically

WWW_DATA = 33  # the group of everything in /etc/pve


def path_of(vmid: int) -> Path:
    """The conf file of a container."""
    return settings.conf_dir() / f"{vmid}.conf"


def exists(vmid: int) -> bool:
    """Whether the node has a container of this CTID."""
    return path_of(vmid).exists()


def all_ids() -> list[int]:
    """The CTIDs of this node, sorted."""
    return sorted(int(path.stem) for path in settings.conf_dir().glob("*.conf") if path.stem.isdigit())


def read_text(vmid: int) -> str:
    """The raw conf file; the genuine error when there is none."""
    try:
        return path_of(vmid).read_text(errors="replace")
    except FileNotFoundError:
        place = f"nodes/{settings.node_name()}/lxc/{vmid}.conf"
        raise PctError(f"Configuration file '{place}' does not exist", 2) from None


def load(vmid: int) -> Conf:
    """The parsed conf file; lines that make no sense are reported on stderr."""
    conf = conf_format.parse(read_text(vmid), vmid)
    for warning in conf.warnings:
        print(warning, file=sys.stderr)
    return conf


def save(vmid: int, conf: Conf) -> None:
    """Write the conf file anew."""
    write_atomically(path_of(vmid), conf_format.render(conf), 0o640, WWW_DATA)


def remove(vmid: int) -> None:
    """Forget the conf file."""
    path_of(vmid).unlink(missing_ok=True)


def reserve(vmid: int, conf: Conf) -> None:
    """Create the conf file of a new container; refuses when there is one already."""
    settings.conf_dir().mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path_of(vmid), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
    except FileExistsError:
        raise PctError(
            f"unable to create CT {vmid} - CT {vmid} already exists on node '{settings.node_name()}'"
        ) from None
    save(vmid, conf)


def refuse_locked(conf: Conf, allowed: str = "") -> None:
    """Refuse when the ``lock:`` property is set to something else than ``allowed``."""
    lock = conf.active.options.get("lock")
    if lock and lock != allowed:
        raise PctError(f"CT is locked ({lock})")


@contextlib.contextmanager
def flocked(vmid: int, timeout: float = 10) -> Iterator[None]:
    """Hold the flock of a container's conf file; ``timeout`` in seconds."""
    settings.LOCK_DIR.mkdir(parents=True, exist_ok=True)
    path = settings.LOCK_DIR / f"pve-config-{vmid}.lock"
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _wait_for(handle.fileno(), path, timeout)
        yield


def _wait_for(descriptor: int, path: Path, timeout: float) -> None:
    print("trying to acquire lock...", end="", file=sys.stderr, flush=True)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        time.sleep(0.05)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        print(" OK", file=sys.stderr)
        return
    print(file=sys.stderr)
    raise PctError(f"can't lock file '{path}' - got timeout", 4)


@contextlib.contextmanager
def property_lock(vmid: int, name: str) -> Iterator[Conf]:
    """Set ``lock: name`` for the time of the block (a snapshot, a clone of the source), and take it away again."""
    with flocked(vmid):
        conf = load(vmid)
        refuse_locked(conf)
        conf.active.options["lock"] = name
        save(vmid, conf)
    try:
        yield conf
    finally:
        with flocked(vmid):
            if exists(vmid):
                conf = load(vmid)
                if conf.active.options.get("lock") == name:
                    del conf.active.options["lock"]
                    save(vmid, conf)
