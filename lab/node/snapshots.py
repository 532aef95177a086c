# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""snapshot, rollback, delsnapshot, listsnapshot."""

from __future__ import annotations

import re
import time

from node import conf as conf_format
from node import runtime, storage, store, tasks
from node.conf import Conf, Section
from node.errors import ParameterError, PctError

_OF_SNAPSHOTS = ("snaptime", "parent", "snapstate", "lock")


def check_name(name: str) -> None:
    """The genuine rules for names of snapshots."""
    if not re.fullmatch(r"(?i)[a-z][a-z0-9_-]+", name) or len(name) > 40:
        reason = f"invalid format - invalid configuration ID '{name}'"
        reason = reason if len(name) <= 40 else "value may only be 40 characters long"
        raise ParameterError({"snapname": reason})
    if name in ("current", "vzdump"):
        raise PctError(f"unable to use snapshot name '{name}' (reserved name)")


def _volumes(section: Section) -> list[storage.Volume]:
    mounts = runtime.mount_points(section).values()
    return [runtime.rootfs_volume(section)] + [
        storage.volume(mount["volume"]) for mount in mounts if not mount["volume"].startswith("/")
    ]


def _feature_available(section: Section) -> bool:
    """Any bind mount, and any storage without snapshots, rules snapshots out."""
    if any(mount["volume"].startswith("/") for mount in runtime.mount_points(section).values()):
        return False
    return all(volume.storage.can_snapshot for volume in _volumes(section))


def snapshot(vmid: int, name: str, description: str) -> int:
    """Take a snapshot of the volumes and of the configuration."""
    check_name(name)

    def work() -> None:
        with store.flocked(vmid):
            conf = store.load(vmid)
            store.refuse_locked(conf)
            if conf.active.options.get("template") == "1":
                raise PctError("you can't take a snapshot if it's a template")
            if name in conf.snapshots:
                raise PctError(f"snapshot name '{name}' already used")
            if not _feature_available(conf.active):
                raise PctError("snapshot feature is not available")
            section = conf.active.copy()
            section.options = {k: v for k, v in section.options.items() if k != "lock" and not k.startswith("unused")}
            section.options["snaptime"] = str(int(time.time()))
            section.options["snapstate"] = "prepare"
            section.description = description + "\n" if description else ""
            conf.snapshots[name] = section
            conf.active.options["lock"] = "snapshot"
            store.save(vmid, conf)
        done: list[storage.Volume] = []
        try:
            with runtime.frozen(vmid):
                for volume in _volumes(section):
                    storage.snapshot(volume, name)
                    done.append(volume)
        except BaseException:
            for volume in done:
                storage.delete_snapshot(volume, name)
            with store.flocked(vmid):
                conf = store.load(vmid)
                conf.snapshots.pop(name, None)
                conf.active.options.pop("lock", None)
                store.save(vmid, conf)
            raise
        with store.flocked(vmid):
            conf = store.load(vmid)
            conf.snapshots[name].options.pop("snapstate", None)
            conf.active.options.pop("lock", None)
            conf.active.options["parent"] = name
            store.save(vmid, conf)

    return tasks.run_task("vzsnapshot", vmid, work)


def delete(vmid: int, name: str, force: bool) -> int:
    """Delete a snapshot; its children hang under its parent afterwards."""

    def work() -> None:
        with store.flocked(vmid):
            conf = store.load(vmid)
            store.refuse_locked(conf)
            _known(conf, name)
            conf.active.options["lock"] = "snapshot-delete"
            conf.snapshots[name].options["snapstate"] = "delete"
            store.save(vmid, conf)
        for volume in _volumes(conf.snapshots[name]):
            try:
                storage.delete_snapshot(volume, name)
            except PctError:
                if not force:
                    raise
        with store.flocked(vmid):
            conf = store.load(vmid)
            gone = conf.snapshots.pop(name)
            parent = gone.options.get("parent")
            for section in [conf.active, *conf.snapshots.values()]:
                if section.options.get("parent") == name:
                    del section.options["parent"]
                    if parent:
                        section.options["parent"] = parent
            conf.active.options.pop("lock", None)
            store.save(vmid, conf)

    return tasks.run_task("vzdelsnapshot", vmid, work)


def rollback(vmid: int, name: str, start: bool) -> int:
    """Go back to a snapshot. A running container is killed, and left stopped unless ``start``."""

    def work() -> None:
        with store.flocked(vmid):
            conf = store.load(vmid)
            _known(conf, name)
            if conf.active.options.get("template") == "1":
                raise PctError("you can't rollback if VM is a template")
            store.refuse_locked(conf)
            if conf.snapshots[name].options.get("snapstate"):
                state = conf.snapshots[name].options["snapstate"]
                raise PctError(f"unable to rollback to incomplete snapshot (snapstate = {state})")
            if runtime.is_running(vmid):
                runtime.stop(vmid)
            conf = store.load(vmid)
            conf.active.options["lock"] = "rollback"
            store.save(vmid, conf)
            saved = conf.snapshots[name]
            for volume in _volumes(saved):
                storage.rollback(volume, name)
            kept = {key: value for key, value in conf.active.options.items() if key.startswith("unused")}
            options = {key: value for key, value in saved.options.items() if key not in _OF_SNAPSHOTS}
            conf.active = Section({**kept, **options, "parent": name}, list(saved.raw), conf.active.description)
            conf.pending.clear()
            conf.delete.clear()
            store.save(vmid, conf)
        if start:
            with store.flocked(vmid):
                runtime.start(vmid, store.load(vmid).active)

    return tasks.run_task("vzrollback", vmid, work)


def show(vmid: int) -> None:
    """Print the tree of snapshots."""
    conf = store.load(vmid)
    times = {
        name: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(section.options.get("snaptime", "0"))))
        for name, section in conf.snapshots.items()
    }
    for line in conf_format.snapshot_tree(conf, times):
        print(line)


def _known(conf: Conf, name: str) -> None:
    if name not in conf.snapshots:
        raise PctError(f"snapshot '{name}' does not exist")
