# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the snapshots that a container has, and what is declared of them, to steps. Values in, values out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ansible_collections.phoenix.hypervisor.plugins.module_utils import pct_conf
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Command

# Proxmox's own rule for the name of a snapshot, and the names that it keeps for itself.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")
_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_LONGEST = 40
_RESERVED = ("current", "vzdump")
_TIME = "%Y%m%d-%H%M%S"
_LONGEST_PREFIX = _LONGEST - len("20261121-114500")
# What a section has because it is a snapshot; a rollback doesn't take it over.
_OF_SNAPSHOTS = ("snaptime", "snapstate", "parent", "lock")
# Storage types with snapshots of containers' volumes (directories and network shares have none).
_WITH_SNAPSHOTS = ("btrfs", "lvmthin", "rbd", "zfspool")


class SnapshotError(Exception):
    """What is declared can't be, or the node refuses it; the text is for the user."""


@dataclass(frozen=True)
class Declared:
    """What is to be with a container's snapshots.

    :ivar snapname: "" where the plan makes one of C(prefix) and C(now), or where only C(keep) counts
    :ivar keep: how many complete snapshots with C(prefix) stay, None for all
    :ivar start: whether the container runs after a rollback, None for as it was before
    :ivar now: the time, in UTC
    """

    vmid: int
    state: str = "present"
    snapname: str = ""
    description: str = ""
    prefix: str = ""
    keep: int | None = None
    start: bool | None = None
    now: datetime = datetime(1970, 1, 1)


@dataclass(frozen=True)
class Step:
    """One thing to do, and the reason for it."""

    command: Command
    why: str


@dataclass(frozen=True)
class Plan:
    """The steps, and what there is after them.

    :ivar snapshots: names of the complete snapshots
    :ivar config: the configuration
    :ivar snapname: the snapshot that all this is about, "" for none in particular
    :ivar warnings: what a person should know who looks at the result
    """

    steps: tuple[Step, ...]
    snapshots: tuple[str, ...]
    config: pct_conf.Section
    running: bool
    snapname: str = ""
    warnings: tuple[str, ...] = ()


def check(declared: Declared) -> None:
    """:raises SnapshotError: when the options make no sense, whatever the container"""

    def wrong(option: str, fault: str, remedy: str) -> SnapshotError:
        return SnapshotError(f"CTID {declared.vmid}: {option} {fault}; {remedy}")

    name, prefix, keep = declared.snapname, declared.prefix, declared.keep
    rule = "begin with a letter, and use letters, digits, - and _ only"
    if name and not (_NAME.fullmatch(name) and len(name) <= _LONGEST):
        raise wrong("snapname", f"{name!r} is no name for a snapshot", f"take 2 to {_LONGEST} characters, {rule}")
    if name in _RESERVED:
        raise wrong("snapname", f"{name!r} is a name that Proxmox keeps for itself", "take another")
    if prefix and not (_PREFIX.fullmatch(prefix) and len(prefix) <= _LONGEST_PREFIX):
        raise wrong("prefix", f"{prefix!r} is no beginning of one", f"take up to {_LONGEST_PREFIX} characters, {rule}")
    if keep is not None and keep < 1:
        raise wrong("keep", f"is {keep}", "keep at least 1, or delete single ones by snapname and state absent")
    if keep is not None and not prefix:
        raise wrong("keep", "says of no snapshots how many stay", "name the beginning of their names in prefix")
    if declared.state == "rollback":
        if not name:
            raise wrong("snapname", "is missing", "name the snapshot to go back to")
        if prefix:
            raise wrong("prefix", "says nothing to a rollback", "leave prefix and keep out")
    elif not name and not prefix:
        raise wrong("snapname", "is missing", "name a snapshot, or give a prefix")
    elif declared.state == "absent" and name and prefix:
        raise wrong("prefix", f"stands beside snapname {name!r}", "delete one by snapname, or many by prefix and keep")
    elif declared.state == "absent" and prefix and keep is None:
        raise wrong("keep", "is missing", f"say how many of the snapshots {prefix}… stay")
    elif prefix and name and not name.startswith(prefix):
        raise wrong("snapname", f"{name!r} doesn't begin with the prefix {prefix!r}", f"call it {prefix}{name}")


def plan(declared: Declared, conf: pct_conf.Conf, running: bool, lock_is_left_over: bool = False) -> Plan:
    """The steps from what is there to what is declared.

    :param lock_is_left_over: the container is locked, and nothing is at work on it any more
    :raises SnapshotError: when there is no way
    """
    if declared.state == "rollback":
        return _rollback(declared, conf, running, lock_is_left_over)
    steps = _without_half_made(declared, conf)
    complete = {name: _time_of(conf, name) for name in conf.complete_snapshots}
    name = declared.snapname
    if declared.state == "present":
        name = name or _free_name(declared, conf)
        if name not in complete:
            _refuse_what_takes_none(declared, conf)
            why = f"there is no snapshot {name}" if declared.snapname else f"a new snapshot {name}"
            steps.append(_step(declared, "snapshot", name, why, _options(description=declared.description)))
        # Whatever the clocks say, this is the one that was asked for: nothing counts as younger.
        complete[name] = float("inf")
    elif name in complete:
        steps.append(_step(declared, "delsnapshot", name, f"{name} is not to exist"))
        del complete[name]
    for old in _too_many(declared, complete):
        why = f"{old} is older than the {declared.keep} of {declared.prefix}… that stay"
        steps.append(_step(declared, "delsnapshot", old, why))
        del complete[old]
    if lock_is_left_over and _is_forced(steps):
        steps.insert(0, _unlock(declared, conf))
    return Plan(tuple(steps), tuple(sorted(complete)), conf.main, running, name)


def _step(declared: Declared, command: str, name: str, why: str, options: tuple = ()) -> Step:
    return Step(Command(command, declared.vmid, (name,), options), why)


def _options(**values: str) -> tuple:
    return tuple((name, value) for name, value in values.items() if value)


def _time_of(conf: pct_conf.Conf, name: str) -> float:
    text = conf.snapshots[name].values.get("snaptime", "")
    return int(text) if text.isdigit() else 0


def _half_made(conf: pct_conf.Conf) -> list[str]:
    return sorted(set(conf.snapshots) - set(conf.complete_snapshots))


def _without_half_made(declared: Declared, conf: pct_conf.Conf) -> list[Step]:
    """Away with what a task left that was killed: the one that is named, and where many are kept, all of theirs."""
    steps = []
    for name in _half_made(conf):
        if name == declared.snapname or (declared.prefix and name.startswith(declared.prefix)):
            state = conf.snapshots[name].values["snapstate"]
            why = f"{name} was left half-made (snapstate: {state})"
            steps.append(_step(declared, "delsnapshot", name, why, _options(force="1")))
    return steps


def _is_forced(steps: Sequence[Step]) -> bool:
    return any(step.command.options == _options(force="1") for step in steps)


def _unlock(declared: Declared, conf: pct_conf.Conf) -> Step:
    why = f"the lock ({conf.main.values['lock']}) was left by a task that is no more"
    return Step(Command("unlock", declared.vmid), why)


def _free_name(declared: Declared, conf: pct_conf.Conf) -> str:
    """A name that no snapshot has: two in one second are no mistake."""
    now = declared.now
    while (name := f"{declared.prefix}{now.strftime(_TIME)}") in conf.snapshots:
        now += timedelta(seconds=1)
    return name


def _too_many(declared: Declared, complete: Mapping[str, float]) -> list[str]:
    """Names beyond what is kept, the oldest first."""
    if declared.keep is None:
        return []
    matching = [name for name in complete if name.startswith(declared.prefix)]
    oldest_first = sorted(matching, key=lambda name: (complete[name], name))
    return oldest_first[: -declared.keep]


def _refuse_what_takes_none(declared: Declared, conf: pct_conf.Conf) -> None:
    """What Proxmox would refuse in any case, said before anything is done.

    :raises SnapshotError: with what to do
    """
    if conf.main.values.get("template") == "1":
        raise SnapshotError(f"CTID {declared.vmid} is a template, and a template has no snapshots; take one of a clone")
    reason = _bind_mounts(declared.vmid, conf)
    if reason:
        raise SnapshotError(f"CTID {declared.vmid}: Proxmox takes no snapshot of it: {reason}")


def _bind_mounts(vmid: int, conf: pct_conf.Conf) -> str:
    """Which mount points rule snapshots out, and what to do; "" when none does."""
    parts = {
        key: pct_conf.split_property(key, value)
        for key, value in sorted(conf.main.values.items())
        if re.fullmatch(r"mp\d+", key)
    }
    bound = {key: part for key, part in parts.items() if part.get("volume", "").startswith("/")}
    if not bound:
        return ""
    shown = ", ".join(f"{key} ({part['volume']} at {part.get('mp', '?')})" for key, part in bound.items())
    return (
        f"{shown} comes from the node itself, of which no storage has a snapshot; take it away first (pct set {vmid} "
        f"--delete {','.join(bound)}), or mount it with a raw line lxc.mount.entry"
    )


def _rollback(declared: Declared, conf: pct_conf.Conf, running: bool, lock_is_left_over: bool) -> Plan:
    vmid, name = declared.vmid, declared.snapname
    complete = conf.complete_snapshots
    if name not in conf.snapshots:
        known = f"there are: {', '.join(complete)}" if complete else "it has none"
        raise SnapshotError(f"CTID {vmid} has no snapshot {name!r} to go back to; {known}")
    if name not in complete:
        state = conf.snapshots[name].values["snapstate"]
        raise SnapshotError(
            f"CTID {vmid}: the snapshot {name!r} is half-made (snapstate: {state}), nothing can go back to it; "
            "delete it with state absent"
        )
    if conf.main.values.get("template") == "1":
        raise SnapshotError(f"CTID {vmid} is a template, and stays what it is; clone it")
    start = running if declared.start is None else declared.start
    killed = "stops the container (it is killed, not shut down), and " if running else ""
    why = f"goes back to {name}: {killed}all that was written since is lost" + ("; starts it" if start else "")
    steps = [_step(declared, "rollback", name, why, _options(start="1" if start else ""))]
    if lock_is_left_over and conf.main.values.get("lock") == "rollback":
        steps.insert(0, _unlock(declared, conf))
    warnings = (
        (f"CTID {vmid} was running: the rollback to {name} kills it, and what was written since is lost.",)
        if running
        else ()
    )
    return Plan(tuple(steps), tuple(complete), _rolled_back(conf, name), start, name, warnings)


def _rolled_back(conf: pct_conf.Conf, name: str) -> pct_conf.Section:
    """The configuration after a rollback: the snapshot's, with the description and the unused volumes of today."""
    saved = conf.snapshots[name]
    values = {key: value for key, value in saved.values.items() if key not in _OF_SNAPSHOTS}
    unused = {key: value for key, value in conf.main.values.items() if key.startswith("unused")}
    return pct_conf.Section({**unused, **values, "parent": name}, list(saved.raw), list(conf.main.comments))


def missing_effect(step: Step, conf: pct_conf.Conf, running: bool) -> str:
    """What a command that ended well should have done and hasn't; "" when it has."""
    name = step.command.arguments[0] if step.command.arguments else ""
    if step.command.name == "snapshot" and name not in conf.complete_snapshots:
        return f"there is no complete snapshot {name} afterwards"
    if step.command.name == "delsnapshot" and name in conf.snapshots:
        return f"the snapshot {name} is still there"
    if step.command.name == "rollback":
        if conf.main.values.get("parent") != name or "lock" in conf.main.values:
            return f"the container is not at {name} afterwards"
        if ("start", "1") in step.command.options and not running:
            return "the container doesn't run afterwards"
    return ""


def remedy(step: Step, said: str, conf: pct_conf.Conf, storage_types: Mapping[str, str]) -> str:
    """What can be done about a failure, as the end of a sentence; "" when nothing is known."""
    if "snapshot feature is not available" in said:
        vmid = step.command.vmid
        return f" - {_bind_mounts(vmid, conf) or _storages(vmid, conf, storage_types)}"
    blocked = re.search(r"is not most recent snapshot on '([^']+)'", said)
    if blocked and step.command.name == "rollback":
        target = step.command.arguments[0]
        younger = [name for name in conf.snapshots if _time_of(conf, name) > _time_of(conf, target)]
        younger.sort(key=lambda name: -_time_of(conf, name))
        which = ", ".join(younger) or "look with zfs list -t snapshot"
        return (
            f" - the storage of {blocked.group(1)} goes back to its youngest snapshot only; delete the younger ones "
            f"first ({which}), or clone from {target}"
        )
    if "still in use by linked clones" in said:
        return " - destroy those clones first, or keep the snapshot"
    return ""


def _storages(vmid: int, conf: pct_conf.Conf, storage_types: Mapping[str, str]) -> str:
    """Which volumes are on storages without snapshots, and which types have them."""
    poor = []
    for key, value in sorted(conf.main.values.items()):
        if key == "rootfs" or re.fullmatch(r"mp\d+", key):
            storage = pct_conf.split_property(key, value).get("volume", "").partition(":")[0]
            kind = storage_types.get(storage, "unknown")
            if kind not in _WITH_SNAPSHOTS:
                poor.append(f"{key} is on {storage} (type {kind})")
    return (
        f"{', '.join(poor) or 'one of its storages'}, which has no snapshots of containers; storages of the types "
        f"{', '.join(_WITH_SNAPSHOTS)} have. Move it there: pct move-volume {vmid} <volume> <storage>"
    )
