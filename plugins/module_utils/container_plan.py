# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a container is and what is declared to the steps between them. Values in, values out.

The same function plans a change, a clone (on what the clone will have from its source) and, after each step that was
done, the rest. Check mode shows the plan, the real run executes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.phoenix.hypervisor.plugins.module_utils import gpu, idmap, pct_conf, pct_keys
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Command
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container

# Keys whose sub-keys are exactly what is declared. The parts of other property strings (a net's MAC, its firewall flag)
# keep their value when the declaration doesn't name them.
_EXACT = {"features", "startup"}
# A volume that is to be allocated: storage and size in GiB.
_ALLOCATION = re.compile(r"[^/:]+:\d+(\.\d+)?")
# Storage types that can make a linked clone of a template; directories can't, for containers.
_LINKED = {"btrfs", "cephfs", "lvmthin", "rbd", "zfs", "zfspool"}
# Not copied by a clone (pct.md, "create / clone / template").
_NOT_CLONED = {"template", "lock", "parent", "snaptime"}

RawLine = tuple  # of two texts: key and value


class PlanError(Exception):
    """What is declared can't be made from what is there; the text says which key, why, and what to do."""


@dataclass(frozen=True)
class Memory:
    """What earlier runs declared of a container, so that what is not declared any more can go.

    :ivar raw: raw lines as (key, value)
    :ivar gpus: raw lines that were written for GPUs
    :ivar mounts: by path inside: the folder of the node, or the volume that was made for it
    """

    raw: tuple[RawLine, ...] = ()
    gpus: tuple[RawLine, ...] = ()
    mounts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What a plan has to know of the node. None: it can't be known from where the module runs.

    :ivar storage_types: the type of each storage by name, for the choice between a linked and a full clone
    :ivar release: Proxmox VE's
    :ivar nvidia_devices: NVIDIA's device nodes by path
    :ivar root_subids: what root may map into containers, for users (C(u)) and groups (C(g))
    :ivar owners: owner and group of each folder that is to be mounted; None for one that isn't there
    :ivar memory: what earlier runs declared
    :ivar is_busy: whether something is at work on the container
    :ivar is_source_busy: whether something is at work on its clone source
    :ivar unseen: keys that wait for a restart although nothing on the node tells so
    :ivar taken: raw lines that this run took away since the container was last started
    """

    storage_types: Mapping[str, str] = field(default_factory=dict)
    release: tuple = pct_keys.NEWEST
    nvidia_devices: Mapping[str, gpu.Device] | None = None
    root_subids: Mapping[str, Sequence[tuple[int, int]]] | None = None
    owners: Mapping[str, tuple[int, int] | None] | None = None
    memory: Memory = Memory()
    is_busy: bool = False
    is_source_busy: bool = False
    unseen: frozenset = frozenset()
    taken: frozenset = frozenset()


NO_FACTS = Facts()


@dataclass(frozen=True)
class Declared:
    """A container as it should be. None means that the declaration doesn't speak of it."""

    vmid: int
    state: str = "present"
    clone_vmid: int | None = None
    clone_snapname: str = ""
    clone_full: bool | None = None
    ostemplate: str = ""
    storage: str = ""
    disk_gb: int | None = None
    unprivileged: bool | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    gpus: Sequence[int] | None = None
    devices: Sequence[Mapping[str, object]] | None = None
    mounts: Sequence[Mapping[str, object]] | None = None
    raw: Sequence[str] | None = None
    delete: Sequence[str] = ()
    restart: str = "when_required"


@dataclass(frozen=True)
class Step:
    """One thing to do.

    :ivar why: the reason, for the result
    :ivar command: what Proxmox is told, for most steps
    :ivar removed: raw lines to take out of the conf file, for a step that edits these
    :ivar added: raw lines to put in
    :ivar path: folder on the node that gets another owner, for a step that does this
    :ivar owner: user and group id on the node that it gets
    """

    why: str
    command: Command | None = None
    removed: tuple[RawLine, ...] = ()
    added: tuple[RawLine, ...] = ()
    path: str = ""
    owner: tuple[int, int] = (0, 0)

    @property
    def is_raw(self) -> bool:
        return bool(self.removed or self.added)

    @property
    def name(self) -> str:
        """What it does, in a word."""
        return self.command.name if self.command else "raw" if self.is_raw else "chown"


@dataclass(frozen=True)
class Plan:
    """The steps, the container as it will be after them, and the keys that wait for a restart then."""

    steps: tuple[Step, ...]
    after: Container
    restart_required: tuple[str, ...] = ()


def plan(declared: Declared, actual: Container, source: Container | None = None, facts: Facts = NO_FACTS) -> Plan:
    """The steps from what is there to what is declared.

    :param source: the container to clone from, when one is declared
    :raises PlanError: when there is no way
    """
    _refuse_keys(declared, facts.release)
    steps: list[Step] = []
    if actual.is_half_made:
        if facts.is_busy:
            raise PlanError(f"CTID {declared.vmid} is being created by somebody else; run again after that")
        steps += _clean_up(declared.vmid, actual)
        actual = Container()
    if declared.state == "absent":
        removal, after = _absent(declared, actual)
        return Plan((*steps, *removal), after)
    after = actual
    if not actual.exists:
        creation, after = _create(declared, source, facts)
        steps += creation
    changes, after, restart = _change(declared, after, facts)
    lifecycle, after = _state(declared, after, restart)
    steps += changes + lifecycle
    is_restarted = any(step.name in ("reboot", "start") for step in steps)
    return Plan(tuple(steps), after, () if is_restarted or not after.running else tuple(restart))


def to_remember(declared: Declared, actual: Container, facts: Facts) -> Memory:
    """What the next run has to know of this declaration; what it doesn't speak of stays remembered.

    :param actual: the container after this run
    """
    if declared.state == "absent" or not actual.exists:
        return Memory()
    memory = facts.memory
    raw, gpus, mounts = memory.raw, memory.gpus, dict(memory.mounts)
    if declared.raw is not None:
        raw = tuple(_declared_raw(declared))
    if declared.gpus is not None:
        started = [pct_conf.raw_of(line) for line in (actual.started_with or "").splitlines()]
        taken = [line for line in dict.fromkeys([*memory.gpus, *facts.taken]) if line not in actual.conf.main.raw]
        # What it still runs with, where no restart was allowed, waits in the next run, too.
        gpus = (*_assigned_lines(declared, facts), *(line for line in taken if line in started))
    if declared.mounts is not None:
        there = _by_part("mp", "mp", actual.conf.main.values)
        paths = {str(mount["mp"]).rstrip("/") for mount in declared.mounts}
        # A volume that is not declared any more is remembered: declared again, it is the same one that comes back.
        mounts = {path: what for path, what in mounts.items() if not what.startswith("/")}
        for path, key in there.items():
            if path.rstrip("/") in paths:
                mounts[path.rstrip("/")] = _volume(key, actual.conf.main.values[key])
    return Memory(raw, gpus, mounts)


def to_remember_at_first(declared: Declared, planned: Plan, facts: Facts) -> Memory:
    """What has to be known of a run that is killed: which lines it may have written, and taken from what runs."""
    memory = facts.memory
    raw = dict.fromkeys([*memory.raw, *_declared_raw(declared)])
    gpus = dict.fromkeys([*memory.gpus, *_assigned_lines(declared, facts)])
    (raw if declared.gpus is None else gpus).update((line, None) for step in planned.steps for line in step.removed)
    binds = [mount for mount in declared.mounts or [] if mount.get("source")]
    folders = {str(mount["mp"]).rstrip("/"): str(mount["source"]) for mount in binds}
    return Memory(tuple(raw), tuple(gpus), {**memory.mounts, **folders})


def _volume(key: str, value: str) -> str:
    return pct_conf.split_property(key, value).get("volume", "")


def _command(vmid: int, name: str, *arguments: str, **options: str) -> Command:
    return Command(name, vmid, arguments, tuple(options.items()))


# --- what is declared has to make sense ---------------------------------------------------------------------------


def _refuse_keys(declared: Declared, release: tuple) -> None:
    for key, value in declared.config.items():
        fault = pct_keys.problem_of_key(key, release) or _fault_of_value(key, value)
        if fault:
            raise PlanError(f"CTID {declared.vmid}: {key} {fault}")
    for key in declared.delete:
        fault = "" if key.startswith("lxc.") else pct_keys.problem_of_key(key, pct_keys.NEWEST)
        if fault and pct_keys.base(key) != "unused":
            raise PlanError(f"CTID {declared.vmid}: delete: {key} {fault}")
    if declared.devices and release < pct_keys.HAS_DEVICES:
        raise PlanError(
            f"CTID {declared.vmid}: devices needs Proxmox VE {'.'.join(map(str, pct_keys.HAS_DEVICES))}, and this node "
            f"has {'.'.join(map(str, release))}; pass the device through with raw lines, or upgrade the node"
        )


def _fault_of_value(key: str, value: object) -> str:
    """What is wrong with a declared value, as the end of a sentence."""
    if value is None or value == "":
        return ""
    known = pct_keys.KEYS[pct_keys.base(key)]
    if known.parts:
        if not isinstance(value, (Mapping, str)):
            return f"has the value {value!r}, which has to be a dictionary, or text as Proxmox writes it"
        parts = value if isinstance(value, Mapping) else pct_conf.split_property(key, value)
        given = {name: pct_conf.plain(part) for name, part in parts.items() if part is not None and part != ""}
        return pct_keys.problem_of_parts(key, given)
    if isinstance(value, Mapping):
        return f"has the value {dict(value)!r}, and is no property string"
    wanted = known.check(_as_text(value))
    return f"has the value {value!r}, which has to be {wanted}" if wanted else ""


def _as_text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(pct_conf.plain(item) for item in value)
    return "" if value is None else pct_conf.plain(value)


# --- being there --------------------------------------------------------------------------------------------------


def _clean_up(vmid: int, actual: Container) -> list[Step]:
    why = "it is what a create or clone left that was killed"
    unlock = [Step(f"{why}: its lock", _command(vmid, "unlock"))] if actual.lock else []
    return [*unlock, Step(why, _command(vmid, "destroy", **{"destroy-unreferenced-disks": "1"}))]


def _absent(declared: Declared, actual: Container) -> tuple[list[Step], Container]:
    if not actual.exists:
        return [], actual
    if actual.conf.main.values.get("protection") == "1":
        raise PlanError(
            f"CTID {declared.vmid} is protected and is not removed; take the protection away first: "
            f"pct set {declared.vmid} --protection 0"
        )
    steps = []
    if actual.running:
        steps.append(Step("it runs, and is to be removed", _command(declared.vmid, "stop")))
    steps.append(Step("it is not to exist", _command(declared.vmid, "destroy", purge="1")))
    return steps, Container()


def _create(declared: Declared, source: Container | None, facts: Facts) -> tuple[list[Step], Container]:
    if declared.clone_vmid is not None:
        if source is None or not source.exists:
            raise PlanError(
                f"CTID {declared.vmid} is to be cloned from {declared.clone_vmid}, which does not exist on this node; "
                f"converge that first (site.yml with -l lineage_{declared.vmid}), or correct clone_from_ctid"
            )
        return _clone(declared, source, facts)
    if not declared.ostemplate:
        raise PlanError(
            f"CTID {declared.vmid} does not exist, and its declaration names neither a container to clone "
            "(clone_from_ctid) nor an archive to create it from (template)"
        )
    return _from_archive(declared, facts)


def _from_archive(declared: Declared, facts: Facts) -> tuple[list[Step], Container]:
    values = {key: _wanted_value(key, value, None) for key, value in declared.config.items()}
    values.update(_device_changes(declared, {}, facts)[0])
    mounts, _undeclared, _sizes = _mount_changes(declared, Container(exists=True), facts)
    values.update(mounts)
    values = {key: value for key, value in values.items() if value != ""}
    if declared.unprivileged is not None:
        # Its default is another one before and after Proxmox VE 9.
        values["unprivileged"] = pct_conf.plain(declared.unprivileged)
    if declared.storage or declared.disk_gb:
        values["rootfs"] = f"{declared.storage or 'local'}:{declared.disk_gb or 4}"
    command = Command("create", declared.vmid, (declared.ostemplate,), tuple(sorted(values.items())))
    after = {key: pct_conf.as_written(key, value) for key, value in values.items()}
    after["rootfs"] = f"{after.get('rootfs', 'local:4')},size={declared.disk_gb or 4}G"
    comments = pct_conf.as_comments(after.pop("description", ""))
    step = Step(f"it does not exist; created from {declared.ostemplate}", command)
    return [step], Container(exists=True, text=pct_conf.render(pct_conf.Section(after, [], comments)))


def _clone(declared: Declared, source: Container, facts: Facts) -> tuple[list[Step], Container]:
    conf = source.conf
    complete = conf.complete_snapshots
    if declared.clone_snapname and declared.clone_snapname not in complete and "rootfs" in conf.main.values:
        raise PlanError(
            f"CTID {declared.vmid} is to be cloned from the snapshot {declared.clone_snapname!r} of "
            f"{declared.clone_vmid}, which has {', '.join(complete) or 'no snapshots'}; converge "
            f"{declared.clone_vmid} first, or correct its template_snapshot_name"
        )
    origin = conf.snapshots.get(declared.clone_snapname, conf.main)
    _refuse_bind_mounts(declared, origin)
    source_storage = conf.main.values.get("rootfs", "").partition(":")[0]
    wanted_storage = declared.storage or source_storage
    linked = (
        not declared.clone_full
        if declared.clone_full is not None
        else source.is_template
        and wanted_storage == source_storage
        and facts.storage_types.get(source_storage) in _LINKED
    )
    if source.running and not linked and not declared.clone_snapname:
        raise PlanError(
            f"CTID {declared.vmid} is to be a full clone of {declared.clone_vmid}, which runs; Proxmox clones a "
            f"running container from a snapshot only. Declare template_snapshot_name for {declared.clone_vmid} "
            "(clone.snapname here), or stop it"
        )
    options = {}
    if "hostname" in declared.config:
        options["hostname"] = str(declared.config["hostname"])
    if declared.clone_snapname:
        options["snapname"] = declared.clone_snapname
    if not linked:
        options.update({"full": "1", **({"storage": wanted_storage} if wanted_storage else {})})
    values = _cloned_values(origin)
    values.update({key: value for key, value in options.items() if key == "hostname"})
    steps = []
    if source.lock == "disk" and not facts.is_source_busy:
        why = f"the lock of {declared.clone_vmid} was left by a clone that was killed"
        steps.append(Step(why, _command(int(declared.clone_vmid or 0), "unlock")))
    kind = "a linked clone" if linked else "a full clone"
    from_snapshot = f" at {declared.clone_snapname}" if declared.clone_snapname else ""
    steps.append(
        Step(
            f"it does not exist; {kind} of {declared.clone_vmid}{from_snapshot}",
            _command(int(declared.clone_vmid or 0), "clone", str(declared.vmid), **options),
        )
    )
    text = pct_conf.render(pct_conf.Section(values, list(origin.raw), list(origin.comments)))
    return steps, Container(exists=True, text=text)


def _refuse_bind_mounts(declared: Declared, origin: pct_conf.Section) -> None:
    for key, value in sorted(origin.values.items()):
        if pct_keys.base(key) == "mp" and _volume(key, value).startswith("/"):
            raise PlanError(
                f"CTID {declared.vmid} can't be cloned from {declared.clone_vmid}: that has the bind mount {key} "
                f"({_volume(key, value)}), and Proxmox clones none. Declare the mount on the clones instead of on "
                f"{declared.clone_vmid}"
            )


def _cloned_values(origin: pct_conf.Section) -> dict[str, str]:
    """What a clone has from its source: all but what is the source's own; MAC addresses are made anew."""
    values = {}
    for key, value in origin.values.items():
        if key in _NOT_CLONED or pct_keys.base(key) == "unused":
            continue
        if pct_keys.base(key) == "net":
            parts = pct_conf.split_property(key, value)
            parts.pop("hwaddr", None)
            value = pct_conf.join_property(key, parts)
        values[key] = value
    return values


# --- being as declared --------------------------------------------------------------------------------------------


def _change(declared: Declared, actual: Container, facts: Facts) -> tuple[list[Step], Container, list[str]]:
    """Steps for keys, disks and raw lines; the container after them; and the keys that wait for a restart."""
    conf = actual.conf
    # What waits for a restart counts as said already; saying it again would change nothing.
    current = pct_conf.with_pending(conf).values
    if conf.main.comments:
        current["description"] = conf.main.description
    _refuse_unprivileged(declared, current)

    wanted = {key: _wanted_value(key, value, current.get(key)) for key, value in declared.config.items()}
    devices, undeclared_devices = _device_changes(declared, current, facts)
    mounts, undeclared_mounts, sizes = _mount_changes(declared, actual, facts)
    _refuse_twice(declared, wanted, {**devices, **mounts})
    wanted.update({**devices, **mounts})
    raw_removed, raw_added = _raw_changes(declared, conf.main.raw, facts)
    _refuse_contradiction(declared, wanted)

    size = _grown(declared.vmid, "rootfs", "storage_size_gb", declared.disk_gb, current.get("rootfs", ""))
    if size and not actual.is_template:
        sizes["rootfs"] = size
    changed = {key: value for key, value in wanted.items() if not pct_conf.same(key, current.get(key), value)}
    gone = [key for key in declared.delete if key in current] + undeclared_devices + undeclared_mounts
    deleted = sorted({*gone, *(key for key, value in changed.items() if value == "" and key in current)})
    changed = {key: pct_conf.as_written(key, value) for key, value in changed.items() if value != ""}

    steps = [
        Step(f"{key}: {_size_of(key, current[key])} → {size}", _command(declared.vmid, "resize", key, size))
        for key, size in sorted(sizes.items())
    ]
    if changed or deleted:
        steps.append(_set(declared.vmid, current, changed, deleted))
    if raw_removed or raw_added:
        why = f"raw lines: {_lines(raw_removed)} → {_lines(raw_added)}"
        steps.append(Step(why, removed=tuple(raw_removed), added=tuple(raw_added)))
    steps += _owner_steps(declared, conf.main.raw if declared.raw is None else _declared_raw(declared), current, facts)

    values = {key: value for key, value in {**current, **changed}.items() if key not in deleted}
    for key, new_size in sizes.items():
        parts = {**pct_conf.split_property(key, values[key]), "size": new_size}
        values[key] = pct_conf.join_property(key, parts)
    raw = [line for line in conf.main.raw if line not in raw_removed] + raw_added
    restart = []
    if actual.running:
        later = {key for key in changed if not pct_keys.is_live(key, key in current, facts.release)}
        later |= {key for key in deleted if not pct_keys.is_live(key, True, facts.release)}
        spoken_of = {*wanted, *declared.delete, *undeclared_devices, *undeclared_mounts}
        if declared.gpus is not None or declared.devices is not None:
            spoken_of |= {key for key in pct_conf.waiting(conf) if pct_keys.base(key) == "dev"}
        if declared.mounts is not None:
            spoken_of |= {key for key in pct_conf.waiting(conf) if pct_keys.base(key) == "mp"}
        later |= spoken_of & set(pct_conf.waiting(conf))
        later |= facts.unseen | _waiting_since_start(declared, actual, values, raw, raw_removed, facts)
        restart = sorted(later)
    comments = pct_conf.as_comments(values.pop("description", ""))
    after = pct_conf.Conf(pct_conf.Section(values, raw, comments), snapshots=conf.snapshots)
    return steps, replace(actual, text=pct_conf.render_conf(after)), restart


def _set(vmid: int, current: Mapping[str, str], changed: Mapping[str, str], deleted: Sequence[str]) -> Step:
    why = ", ".join(
        [f"{key}: {current.get(key, 'nothing')} → {value}" for key, value in sorted(changed.items())]
        + [f"{key}: {current[key]} → nothing" for key in deleted]
    )
    options = tuple(sorted(changed.items())) + ((("delete", ",".join(deleted)),) if deleted else ())
    return Step(why, Command("set", vmid, (), options))


def _lines(raw: Sequence[RawLine]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in raw) or "nothing"


def _refuse_unprivileged(declared: Declared, current: Mapping[str, str]) -> None:
    if declared.unprivileged is None:
        return
    is_unprivileged = current.get("unprivileged") == "1"
    if is_unprivileged != declared.unprivileged:
        words = {True: "unprivileged", False: "privileged"}
        raise PlanError(
            f"CTID {declared.vmid} is {words[is_unprivileged]} and is declared {words[declared.unprivileged]}; Proxmox "
            "can't change that in place. Correct `unprivileged` in the declaration, or remove the container (after a "
            "backup of what it holds) and run again"
        )


def _refuse_twice(declared: Declared, config: Mapping[str, str], others: Mapping[str, str]) -> None:
    twice = sorted(set(config) & set(others))
    if twice:
        raise PlanError(
            f"CTID {declared.vmid}: {', '.join(twice)} is declared in config, and the same one by devices, gpus or "
            "mounts; keep one of the two"
        )


def _refuse_contradiction(declared: Declared, wanted: Mapping[str, str]) -> None:
    named = {key for key, value in wanted.items() if value != ""}
    named |= {key for key, _value in _declared_raw(declared)}
    both = sorted(named & set(declared.delete))
    if both:
        raise PlanError(
            f"CTID {declared.vmid}: {', '.join(both)} is declared, and is to be deleted; keep one of the two"
        )


def _size_of(key: str, value: str) -> str:
    return pct_conf.split_property(key, value).get("size", "")


def _grown(vmid: int, key: str, name: str, gigabytes: int | None, value: str) -> str:
    """The new size of a disk, "" when it stays.

    :param name: what the user calls the size
    :param value: the disk's property string
    :raises PlanError: when it would shrink
    """
    size = _size_of(key, value) if value else ""
    if not gigabytes or not size:
        return ""
    wanted, there = int(gigabytes) * 2**30, pct_conf.size_in_bytes(size)
    if wanted < there:
        raise PlanError(
            f"CTID {vmid}: {name} {gigabytes} is less than the {size} that its disk has, and a disk never shrinks; "
            f"declare at least {-(-there // 2**30)}, or remove the container and run again"
        )
    return f"{gigabytes}G" if wanted > there else ""


def _wanted_value(key: str, value: object, current: str | None) -> str:
    """A declared value as Proxmox writes it; what the declaration doesn't name of a property string stays."""
    if pct_keys.base(key) == "net" and current and value:
        return _wanted_net(key, value, current)
    if isinstance(value, Mapping):
        base = {}
        if current and pct_keys.base(key) not in _EXACT:
            base = pct_conf.split_property(key, current)
        value = pct_conf.join_property(key, {**base, **value})
    if pct_keys.base(key) == "mp" and current and value:
        return _with_its_volume(key, str(value), current)
    return _as_text(value)


def _with_its_volume(key: str, value: str, current: str) -> str:
    """STORAGE:SIZE makes a new volume; one that is there already is the one that was meant."""
    parts = pct_conf.split_property(key, value)
    if _ALLOCATION.fullmatch(parts.get("volume", "")) and not _volume(key, current).startswith("/"):
        parts["volume"] = _volume(key, current)
    return pct_conf.join_property(key, parts)


def _wanted_net(key: str, value: object, current: str) -> str:
    """A network device: a string is all of it but for its MAC address, a dictionary names what is to change."""
    there = pct_conf.split_property(key, current)
    if isinstance(value, Mapping):
        parts = {**there, **value}
        if value.get("ip") in ("dhcp", "manual") and "gw" not in value:
            parts.pop("gw", None)
    else:
        kept = {name: there[name] for name in ("hwaddr", "type") if name in there}
        parts = {**kept, **pct_conf.split_property(key, str(value))}
    return pct_conf.join_property(key, parts)


def _free(prefix: str, taken: set[str]) -> str:
    free = [f"{prefix}{number}" for number in range(256) if f"{prefix}{number}" not in taken]
    if not free:
        raise PlanError(f"there are more than 256 of {prefix}0, {prefix}1, …; Proxmox has no more numbers")
    taken.add(free[0])
    return free[0]


def _by_part(prefix: str, part: str, current: Mapping[str, str]) -> dict[str, str]:
    """Key by the value that one part has: which devN is /dev/x, which mpN is mounted at /y."""
    keys = sorted(key for key in current if pct_keys.base(key) == prefix)
    return {pct_conf.split_property(key, current[key]).get(part, ""): key for key in keys}


# --- devices ------------------------------------------------------------------------------------------------------


def _device_changes(declared: Declared, current: Mapping[str, str], facts: Facts) -> tuple[dict[str, str], list[str]]:
    """Values of devN keys, and the devN keys that are not declared.

    C(devices) says which devices there are, C(gpus) which of NVIDIA's; alone, each leaves the other's as they are.
    """
    if declared.gpus is None and declared.devices is None:
        return {}, []
    wanted = {str(device["path"]): device for device in declared.devices or []}
    if declared.gpus is not None:
        fault = gpu.problem(declared.gpus, facts.nvidia_devices) if facts.nvidia_devices is not None else ""
        if fault:
            raise PlanError(f"CTID {declared.vmid}: {fault}")
        if facts.release >= pct_keys.HAS_DEVICES:
            devices = gpu.as_devices(declared.gpus, facts.nvidia_devices)
            wanted.update((device["path"], device) for device in devices if device["path"] not in wanted)
    there = _by_part("dev", "path", current)
    kept = {path for path in there if declared.devices is None and not gpu.is_device(path)}
    undeclared = sorted(key for path, key in there.items() if path not in wanted and path not in kept)
    taken = set(there.values())
    values = {}
    for path, device in wanted.items():
        key = there.get(path) or _free("dev", taken)
        values[key] = pct_conf.join_property(key, dict(device))
    return values, undeclared


# --- mounts -------------------------------------------------------------------------------------------------------


def _mount_changes(
    declared: Declared, actual: Container, facts: Facts
) -> tuple[dict[str, str], list[str], dict[str, str]]:
    """One mpN for each declared mount point: their values, the mpN that are declared no more, the sizes to grow to.

    The one that is mounted there already keeps its number and its volume; a volume that an earlier run made for this
    place and that is unused now comes back.
    """
    if declared.mounts is None:
        return {}, [], {}
    vmid = declared.vmid
    current = pct_conf.with_pending(actual.conf).values
    there = {path.rstrip("/"): key for path, key in _by_part("mp", "mp", current).items()}
    unused = {value.partition(",")[0] for key, value in current.items() if pct_keys.base(key) == "unused"}
    taken = set(there.values())
    paths = [str(mount["mp"]).rstrip("/") for mount in declared.mounts]
    if len(set(paths)) < len(paths):
        fault = f"a mount point is declared twice: {', '.join(sorted(paths))}; keep one of the two"
        raise PlanError(f"CTID {vmid}: {fault}")
    values, sizes = {}, {}
    for path, mount in zip(paths, declared.mounts):
        key = there.get(path) or _free("mp", taken)
        parts = pct_conf.split_property(key, current.get(key, ""))
        is_volume = bool(parts) and not parts["volume"].startswith("/")
        if mount.get("source"):
            _refuse_source(vmid, str(mount["source"]), facts)
            if is_volume:
                raise PlanError(
                    f"CTID {vmid}: {path} is the volume {parts['volume']} and is declared as the folder "
                    f"{mount['source']}; detach it first (pct set {vmid} --delete {key}: its data stays, as an unused "
                    "volume), or declare the volume"
                )
            parts["volume"] = str(mount["source"])
        elif is_volume:
            size = _grown(vmid, key, f"size_gb of {path}", int(mount["size_gb"]), current[key])
            if size:
                sizes[key] = size
        else:
            before = facts.memory.mounts.get(path, "")
            parts["volume"] = before if before in unused else f"{mount['storage']}:{mount['size_gb']}"
        parts["mp"] = path
        for name in ("ro", "backup"):
            if mount.get(name) is not None:
                parts[name] = pct_conf.plain(bool(mount[name]))
        values[key] = pct_conf.join_property(key, parts)
    remembered = facts.memory.mounts
    undeclared = [
        key
        for path, key in there.items()
        if path not in paths and remembered.get(path) == _volume(key, current[key])
    ]
    return values, sorted(undeclared), sizes


def _refuse_source(vmid: int, source: str, facts: Facts) -> None:
    if facts.owners is not None and facts.owners.get(source) is None:
        raise PlanError(
            f"CTID {vmid}: {source} is to be mounted, and the node has no such folder; make it there (or mount the "
            "file system that has it), or correct host_path"
        )


def _owner_steps(
    declared: Declared, raw: Sequence[RawLine], current: Mapping[str, str], facts: Facts
) -> list[Step]:
    """The folders of the node that get the owner that is declared by the ids inside."""
    if facts.owners is None:
        return []
    is_unprivileged = current.get("unprivileged") == "1"
    steps = []
    for mount in declared.mounts or []:
        ids = [mount.get("owner_uid"), mount.get("owner_gid")]
        if ids == [None, None] or not mount.get("source"):
            continue
        path = str(mount["source"])
        now = facts.owners.get(path) or (0, 0)
        wanted = list(now)
        for place, (kind, number) in enumerate(zip("ug", ids)):
            if number is not None:
                try:
                    wanted[place] = idmap.on_node(kind, int(number), raw, is_unprivileged)
                except ValueError as error:
                    raise PlanError(f"CTID {declared.vmid}: owner of {path}: {error}") from error
        if tuple(wanted) != now:
            why = f"{path}: owner {now[0]}:{now[1]} → {wanted[0]}:{wanted[1]}"
            steps.append(Step(why, path=path, owner=(wanted[0], wanted[1])))
    return steps


# --- raw lines ----------------------------------------------------------------------------------------------------


def _declared_raw(declared: Declared) -> list[RawLine]:
    try:
        return [pct_conf.split_raw(line) for line in declared.raw or []]
    except ValueError as error:
        raise PlanError(f"CTID {declared.vmid}: raw line: {error}; correct lxc_options") from error


def _raw_changes(
    declared: Declared, current: Sequence[RawLine], facts: Facts
) -> tuple[list[RawLine], list[RawLine]]:
    """The raw lines to take away and those to add.

    The lines of a declared key become exactly those that are declared. Of other keys, those go that an earlier run
    declared; those that a person wrote stay. With C(gpus), all that gives GPUs is GPUs' own affair.
    """
    wanted = _declared_raw(declared)
    fault = idmap.problem([value for key, value in wanted if key == "lxc.idmap"], facts.root_subids)
    if fault:
        raise PlanError(f"CTID {declared.vmid}: lxc.idmap: {fault}")
    gone = [line for line in current if line[0] in declared.delete]
    if declared.raw is not None:
        gone += [line for line in current if line in facts.memory.raw and line not in wanted]
    gpu_lines: list[RawLine] = []
    if declared.gpus is not None:
        devices = facts.nvidia_devices or {}
        gpu_lines = [line for line in gpu.raw_lines_of(current, devices) if line not in wanted]
        gpu_lines += [line for line in current if line in facts.memory.gpus and line not in [*wanted, *gpu_lines]]
        assigned = _assigned_lines(declared, facts)
        gone += [line for line in gpu_lines if line not in assigned]
    added: list[RawLine] = []
    for key in dict.fromkeys(line[0] for line in wanted):
        there = [line for line in current if line[0] == key and line not in gpu_lines]
        lines = [line for line in wanted if line[0] == key]
        if there != lines:
            gone += there
            added += lines
    if declared.gpus is not None:
        added += [line for line in assigned if line not in current or line in gone]
    return list(dict.fromkeys(gone)), added


def _assigned_lines(declared: Declared, facts: Facts) -> list[RawLine]:
    """The raw lines for the assigned GPUs on a Proxmox VE that has no C(devN)."""
    if not declared.gpus or facts.release >= pct_keys.HAS_DEVICES:
        return []
    return gpu.as_raw(declared.gpus, facts.nvidia_devices or {})


def _waiting_since_start(
    declared: Declared,
    actual: Container,
    values: Mapping[str, str],
    raw: Sequence[RawLine],
    raw_removed: Sequence[RawLine],
    facts: Facts,
) -> set[str]:
    """What the running container was not started with, of what is declared and has no place in C([pve:pending]).

    :param raw: its raw lines as they will be
    :param raw_removed: raw lines that the plan takes away
    """
    assigned = _assigned_lines(declared, facts)
    removed = {*raw_removed, *facts.taken, *facts.memory.raw, *facts.memory.gpus} - _rules_of_devices(values, facts)
    if actual.started_with is None:
        # Unknown, or only by this run's own change.
        return {line[0] for line in [*raw, *removed] if (line in raw) != (line in actual.conf.main.raw)}
    started = [line for line in map(pct_conf.raw_of, actual.started_with.splitlines()) if line]
    found = {line[0] for line in raw if line not in started and (line in assigned or _speaks_of(declared, line))}
    found |= {line[0] for line in removed if line in started and line not in raw and line[0] != "lxc.idmap"}
    if any(key == "lxc.idmap" for key, _value in [*raw, *removed]):
        is_unprivileged = values.get("unprivileged") == "1"
        now = [value for key, value in started if key == "lxc.idmap"]
        later = [value for key, value in raw if key == "lxc.idmap"]
        if idmap.parse(now, is_unprivileged) != idmap.parse(later, is_unprivileged):
            found.add("lxc.idmap")
    name = next((value for key, value in started if key == "lxc.uts.name"), None)
    if "hostname" in declared.config and name and name.partition(".")[0] != values["hostname"].partition(".")[0]:
        found.add("hostname")
    return found


def _rules_of_devices(values: Mapping[str, str], facts: Facts) -> set[RawLine]:
    """The rules that Proxmox makes of the GPUs' devN at a start: the same as raw lines for them are."""
    there = facts.nvidia_devices or {}
    found = [there[path] for path in _by_part("dev", "path", values) if path in there]
    return {("lxc.cgroup2.devices.allow", f"c {device.major}:{device.minor} rw") for device in found}


def _speaks_of(declared: Declared, line: RawLine) -> bool:
    if line[0] in {key for key, _value in _declared_raw(declared)}:
        return True
    return declared.gpus is not None and bool(gpu.raw_lines_of([line], {}))


# --- being in a state ---------------------------------------------------------------------------------------------


def _state(declared: Declared, actual: Container, restart: Sequence[str]) -> tuple[list[Step], Container]:
    vmid, state = declared.vmid, declared.state
    if state == "template":
        return _template(vmid, actual)
    if state in ("started", "restarted"):
        if actual.is_template:
            raise PlanError(f"CTID {vmid} is a template and can't be started; clone it, or ask for state: present")
        if not actual.running:
            return [Step("it is stopped", _command(vmid, "start"))], replace(actual, running=True)
        if state == "restarted":
            return [Step("a restart was asked for", _command(vmid, "reboot"))], actual
    if state == "stopped" and actual.running:
        return [_shutdown(vmid, "it runs, and is to be stopped")], replace(actual, running=False)
    if actual.running and restart and declared.restart == "when_required":
        return [Step(f"{', '.join(restart)}: takes effect at a restart", _command(vmid, "reboot"))], actual
    return [], actual


def _template(vmid: int, actual: Container) -> tuple[list[Step], Container]:
    if actual.is_template:
        return [], actual
    if actual.conf.snapshots:
        raise PlanError(
            f"CTID {vmid} is to become a template and has snapshots ({', '.join(sorted(actual.conf.snapshots))}); "
            "Proxmox refuses that. Delete them, or declare template_snapshot_name instead of is_template"
        )
    steps = [_shutdown(vmid, "it runs, and a template doesn't")] if actual.running else []
    steps.append(Step("it is to be a template", _command(vmid, "template")))
    conf = actual.conf.main
    conf.values["template"] = "1"
    return steps, Container(exists=True, text=pct_conf.render(conf))


def _shutdown(vmid: int, why: str) -> Step:
    return Step(why, _command(vmid, "shutdown", timeout="60", forceStop="1"))
