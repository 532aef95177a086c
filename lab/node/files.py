# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""push and pull, with their genuine weaknesses: not atomic, a folder becomes an empty file, errors end with 0."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import re
import shutil
from typing import BinaryIO

from node import runtime, settings, store, tasks
from node.errors import PctError
from node.schema import id_map, to_host
from node.system import in_child

_CLONE_NEWNS = 0x20000


def _mode(text: str) -> int | None:
    if not text:
        return None
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text, 16)
    if re.fullmatch(r"0?[0-7]+", text):
        return int(text, 8)
    raise PctError(f"invalid mode: '{text}'")


def _id_inside(text: str, table: str, word: str) -> int:
    if text.isdigit():
        return int(text)
    with open(table) as handle:
        for line in handle:
            fields = line.split(":")
            if fields[0] == text:
                return int(fields[2])
    raise PctError(f"failed to get {word} for: {text}")


def _id_outside(text: str, word: str) -> int:
    if text.isdigit():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid if word == "uid" else grp.getgrnam(text).gr_gid
    except KeyError:
        raise PctError(f"failed to get {word} for: {text}") from None


def _enter(vmid: int) -> None:
    """In a child: go into the container's mount namespace and its root, as the host's root still."""
    pid = runtime.init_pid(vmid)
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    root = os.open(f"/proc/{pid}/root", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNS) < 0:
        raise PctError(f"failed to enter CT {vmid}: {os.strerror(ctypes.get_errno())}")
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    try:
        shutil.copyfileobj(source, target, 1024 * 1024)
    except OSError:
        return  # genuine pct doesn't look at the result of its copy


def _open_source(path: str) -> BinaryIO:
    try:
        return open(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb", buffering=0)
    except IsADirectoryError:
        return open(os.devnull, "rb", buffering=0)
    except OSError as reason:
        raise PctError(f"failed to open {path} for reading: {reason.strerror}") from None


def _open_fd_source(path: str) -> BinaryIO:
    if os.path.isdir(path):
        return open(os.devnull, "rb", buffering=0)
    return _open_source(path)


def _create(path: str) -> tuple[int, bool]:
    existed = os.path.exists(path)
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), existed
    except OSError as reason:
        raise PctError(f"failed to create file: {path}: {reason.strerror}") from None


def push(vmid: int, source: str, target: str, options: dict[str, str]) -> int:
    """Copy a file of the host into a running container."""
    section = store.load(vmid).active if store.exists(vmid) else None
    if section is None or not runtime.is_running(vmid):
        raise PctError("can only push files to a running CT")
    maps = id_map(section.raw, section.options.get("unprivileged") == "1", settings.ID_START, settings.ID_COUNT)

    def child() -> None:
        with _open_fd_source(source) as reader:
            _enter(vmid)
            mode = _mode(options.get("perms", ""))
            owner = _id_inside(options["user"], "/etc/passwd", "uid") if "user" in options else None
            group = _id_inside(options["group"], "/etc/group", "gid") if "group" in options else None
            os.umask(0o022)
            _become_root_of(maps)
            descriptor, _existed = _create(target)
            with open(descriptor, "wb", buffering=0) as writer:
                _copy(reader, writer)
                os.seteuid(0)
                if owner is not None or group is not None:
                    uid = to_host(maps, "u", owner) if owner is not None else -1
                    gid = to_host(maps, "g", group) if group is not None else -1
                    os.fchown(descriptor, uid, gid)
                if mode is not None:
                    os.fchmod(descriptor, mode)

    def work() -> None:
        with store.flocked(vmid):
            in_child(child)

    return tasks.run_task("push_file", vmid, work, keeps_rc=False)


def _become_root_of(maps: list[tuple[str, int, int, int]]) -> None:
    """Files are made by the container's own root, so that its rights and its ownership apply."""
    if maps:
        os.setgroups([])
        os.setegid(to_host(maps, "g", 0))
        os.seteuid(to_host(maps, "u", 0))


def pull(vmid: int, source: str, target: str, options: dict[str, str]) -> int:
    """Copy a file of a running container to the host."""
    if not store.exists(vmid) or not runtime.is_running(vmid):
        raise PctError("can only pull files from a running VM at /usr/share/perl5/PVE/CLI/pct.pm line 660.")

    def work() -> None:
        with store.flocked(vmid):
            mode = _mode(options.get("perms", ""))
            owner = _id_outside(options["user"], "uid") if "user" in options else -1
            group = _id_outside(options["group"], "gid") if "group" in options else -1
            os.umask(0o022)
            descriptor, _existed = _create(target)
            with open(descriptor, "wb", buffering=0) as writer:

                def child() -> None:
                    _enter(vmid)
                    with _open_fd_source(source) as reader:
                        _copy(reader, writer)

                in_child(child)
                if owner != -1 or group != -1:
                    os.fchown(descriptor, owner, group)
                if mode is not None:
                    os.fchmod(descriptor, mode)

    return tasks.run_task("pull_file", vmid, work, keeps_rc=False)
