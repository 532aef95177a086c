# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a container is and what is declared to the steps between them. Values in, values out.

The same function plans a change, a clone (on what the clone will have from its source) and, after the clone was made,
the rest. Check mode shows the plan, the real run executes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.phoenix.hypervisor.plugins.module_utils import pct_conf

# What `pct set` changes in a running container at once; everything else waits for a restart (pct.md, "set").
_LIVE = {
    "cores", "cpulimit", "cpuunits", "description", "hookscript", "lock", "memory", "net", "onboot", "protection",
    "startup", "swap", "tags",
}  # fmt: skip
# Keys whose sub-keys are exactly what is declared. The parts of other property strings (a net's MAC, its firewall flag)
# keep their value when the declaration doesn't name them.
_EXACT = {"features", "startup"}
# A volume that is to be allocated: storage and size in GiB.
_ALLOCATION = re.compile(r"[^/:]+:\d+(\.\d+)?")
# Storage types that can make a linked clone of a template; directories can't, for containers.
_LINKED = {"btrfs", "cephfs", "lvmthin", "rbd", "zfs", "zfspool"}


class PlanError(Exception):
    """What is declared can't be made from what is there; the text says which key, why, and what to do."""


@dataclass(frozen=True)
class Container:
    """A container as it is.

    :ivar text: content of its conf file, "" when there is none
    """

    exists: bool = False
    running: bool = False
    text: str = ""

    @property
    def conf(self) -> pct_conf.Conf:
        return pct_conf.parse(self.text)

    @property
    def is_template(self) -> bool:
        return self.conf.main.values.get("template") == "1"


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
    devices: Sequence[Mapping[str, object]] | None = None
    mounts: Sequence[Mapping[str, object]] | None = None
    raw: Sequence[str] | None = None
    delete: Sequence[str] = ()
    restart: str = "when_required"


@dataclass(frozen=True)
class Step:
    """One thing to do.

    :ivar kind: C(pct) runs C(argv); C(raw) writes C(raw) into the conf file; C(boot) waits for the system inside
    :ivar why: the reason, for the result
    :ivar then_plan: what follows was planned on an assumption (a clone's conf): plan again on what is there
    """

    kind: str
    why: str
    argv: tuple[str, ...] = ()
    raw: tuple[tuple[str, str], ...] = ()
    raw_removed: tuple[str, ...] = ()
    then_plan: bool = False


@dataclass(frozen=True)
class Plan:
    """The steps, and the container as it will be after them."""

    steps: tuple[Step, ...] = ()
    after: Container = Container()
    restart_required: tuple[str, ...] = ()


def plan(
    declared: Declared,
    actual: Container,
    source: Container | None = None,
    storage_types: Mapping[str, str] | None = None,
) -> Plan:
    """The steps from what is there to what is declared.

    :param source: the container to clone from, when one is declared
    :param storage_types: type of each storage of the node by name, for the choice between a linked and a full clone
    :raises PlanError: when there is no way
    """
    if declared.state == "absent":
        return _absent(declared, actual)
    steps: list[Step] = []
    after = actual
    if not actual.exists:
        step, after = _create(declared, source, storage_types or {})
        steps.append(step)
    changes, after, restart = _change(declared, after)
    if after.running and declared.restart == "when_required" and any(step.kind == "raw" for step in changes):
        # Nothing in the conf file tells that a raw line waits for a restart. Down first: a run that is killed in
        # between leaves a stopped container, which the next run starts.
        changes.insert(0, _shutdown(declared.vmid, "raw lines take effect at a start"))
        after = replace(after, running=False)
        if declared.state == "present":
            declared = replace(declared, state="started")
    steps += changes
    lifecycle, after = _state(declared, after, restart)
    steps += lifecycle
    if any(step.argv[1:2] in (("reboot",), ("start",)) for step in steps):
        restart = []
    return Plan(tuple(steps), after, tuple(restart))


def _pct(vmid: int, command: str, *arguments: str) -> tuple[str, ...]:
    return ("pct", command, str(vmid), *arguments)


def _options(values: Mapping[str, str]) -> list[str]:
    return [word for key, value in sorted(values.items()) for word in (f"--{key}", value)]


# --- being there --------------------------------------------------------------------------------------------------


def _absent(declared: Declared, actual: Container) -> Plan:
    if not actual.exists:
        return Plan((), actual)
    if actual.conf.main.values.get("protection") == "1":
        raise PlanError(
            f"CTID {declared.vmid} is protected and is not removed; take the protection away first: "
            f"pct set {declared.vmid} --protection 0"
        )
    steps = []
    if actual.running:
        steps.append(Step("pct", "it runs, and is to be removed", _pct(declared.vmid, "stop")))
    steps.append(Step("pct", "it is not to exist", _pct(declared.vmid, "destroy", "--purge", "1")))
    return Plan(tuple(steps), Container())


def _create(declared: Declared, source: Container | None, storage_types: Mapping[str, str]) -> tuple[Step, Container]:
    vmid = declared.vmid
    if declared.clone_vmid is not None:
        if source is None or not source.exists:
            raise PlanError(
                f"CTID {vmid} is to be cloned from {declared.clone_vmid}, which does not exist on this node; converge "
                f"that first (site.yml with -l lineage_{vmid}), or correct clone_from_ctid"
            )
        return _clone(declared, source, storage_types)
    if not declared.ostemplate:
        raise PlanError(
            f"CTID {vmid} does not exist, and its declaration names neither a container to clone (clone_from_ctid) nor "
            "an archive to create it from (template)"
        )
    values = {key: _wanted_value(key, value, None) for key, value in declared.config.items()}
    values.update(_device_changes(declared.devices or [], {})[0])
    values.update(_mount_changes(declared.mounts or [], {}))
    if declared.unprivileged is not None:
        # Its default is another one before and after Proxmox VE 9.
        values["unprivileged"] = pct_conf.plain(declared.unprivileged)
    if declared.storage or declared.disk_gb:
        values["rootfs"] = f"{declared.storage or 'local'}:{declared.disk_gb or 4}"
    argv = _pct(vmid, "create", declared.ostemplate, *_options(values))
    after = pct_conf.Section(values=dict(values))
    if declared.disk_gb:
        after.values["rootfs"] += f",size={declared.disk_gb}G"
    step = Step("pct", f"it does not exist; created from {declared.ostemplate}", argv, then_plan=True)
    return step, Container(exists=True, text=pct_conf.render(after))


def _clone(declared: Declared, source: Container, storage_types: Mapping[str, str]) -> tuple[Step, Container]:
    conf = source.conf
    complete = conf.complete_snapshots
    if declared.clone_snapname and declared.clone_snapname not in complete and "rootfs" in conf.main.values:
        raise PlanError(
            f"CTID {declared.vmid} is to be cloned from the snapshot {declared.clone_snapname!r} of "
            f"{declared.clone_vmid}, which has {', '.join(complete) or 'no snapshots'}; converge "
            f"{declared.clone_vmid} first, or correct its template_snapshot_name"
        )
    source_storage = conf.main.values.get("rootfs", "").partition(":")[0]
    wanted_storage = declared.storage or source_storage
    linked = (
        not declared.clone_full
        if declared.clone_full is not None
        else source.is_template and wanted_storage == source_storage and storage_types.get(source_storage) in _LINKED
    )
    argv = ["pct", "clone", str(declared.clone_vmid), str(declared.vmid)]
    if "hostname" in declared.config:
        argv += ["--hostname", str(declared.config["hostname"])]
    if declared.clone_snapname:
        argv += ["--snapname", declared.clone_snapname]
    if not linked:
        argv += ["--full", "1", *(["--storage", wanted_storage] if wanted_storage else [])]
    origin = conf.snapshots.get(declared.clone_snapname, conf.main)
    values = {
        key: value
        for key, value in origin.values.items()
        if key not in ("template", "lock", "parent", "snaptime") and pct_conf.base_key(key) != "unused"
    }
    for key in [key for key in values if pct_conf.base_key(key) == "net"]:
        # A clone gets MAC addresses of its own.
        parts = pct_conf.split_property(key, values[key])
        parts.pop("hwaddr", None)
        values[key] = pct_conf.join_property(key, parts)
    if "hostname" in declared.config:
        values["hostname"] = str(declared.config["hostname"])
    kind = "a linked clone" if linked else "a full clone"
    from_snapshot = f" at {declared.clone_snapname}" if declared.clone_snapname else ""
    step = Step(
        "pct", f"it does not exist; {kind} of {declared.clone_vmid}{from_snapshot}", tuple(argv), then_plan=True
    )
    return step, Container(exists=True, text=pct_conf.render(pct_conf.Section(values, list(origin.raw))))


# --- being as declared --------------------------------------------------------------------------------------------


def _change(declared: Declared, actual: Container) -> tuple[list[Step], Container, list[str]]:
    """Steps for keys, disk and raw lines; the container after them; and the keys that wait for a restart."""
    conf = actual.conf
    # What waits for a restart counts as said already; saying it again would change nothing.
    current = pct_conf.with_pending(conf).values
    if conf.main.description:
        current["description"] = conf.main.description
    _refuse_unprivileged(declared, current)
    steps: list[Step] = []
    values = dict(current)

    size = _grown_disk(declared, current)
    if size and not actual.is_template:
        why = f"rootfs: {_size_of(current)} → {size}"
        steps.append(Step("pct", why, _pct(declared.vmid, "resize", "rootfs", size)))
        parts = pct_conf.split_property("rootfs", values["rootfs"])
        values["rootfs"] = pct_conf.join_property("rootfs", {**parts, "size": size})

    wanted = {key: _wanted_value(key, value, current.get(key)) for key, value in declared.config.items()}
    deleted = [key for key in declared.delete if key in current]
    raw_removed = {key for key in declared.delete if key in dict(conf.main.raw)}
    if declared.devices is not None:
        devices, undeclared = _device_changes(declared.devices, current)
        wanted.update(devices)
        deleted += undeclared
    if declared.mounts is not None:
        wanted.update(_mount_changes(declared.mounts, current))
    changed = {key: value for key, value in wanted.items() if not pct_conf.same(key, current.get(key), value)}
    _refuse_contradiction(declared, wanted)
    emptied = [key for key, value in changed.items() if value == ""]
    deleted = sorted({*deleted, *(key for key in emptied if key in current)})
    changed = {key: pct_conf.as_written(key, value) for key, value in changed.items() if value != ""}
    if changed or deleted:
        why = ", ".join(
            [f"{key}: {_short(current.get(key))} → {value}" for key, value in sorted(changed.items())]
            + [f"{key}: {_short(current[key])} → nothing" for key in deleted]
        )
        argv = _pct(declared.vmid, "set", *_options(changed))
        if deleted:
            argv += ("--delete", ",".join(deleted))
        steps.append(Step("pct", why, argv))
        values.update(changed)
        for key in deleted:
            values.pop(key, None)

    raw = conf.main.raw
    wanted_raw = _raw_changes(declared, raw)
    if wanted_raw or raw_removed:
        named = {line[0] for line in wanted_raw} | raw_removed
        before = [line for line in raw if line[0] in named]
        why = f"raw lines: {_lines(before)} → {_lines(wanted_raw)}"
        steps.append(Step("raw", why, raw=tuple(wanted_raw), raw_removed=tuple(sorted(raw_removed))))
        raw = [line for line in raw if line[0] not in named] + list(wanted_raw)

    restart = []
    if actual.running:
        restart = sorted(
            {key for key in changed if not _is_live(key, key in current)}
            | {key for key in deleted if not _is_live(key, True)}
            | set(pct_conf.waiting(conf))
            | {line[0] for line in wanted_raw}
            | raw_removed
        )
    description = values.pop("description", conf.main.description if "description" not in deleted else "")
    after = pct_conf.Conf(pct_conf.Section(values, list(raw), description), snapshots=conf.snapshots)
    return steps, replace(actual, text=pct_conf.render_conf(after)), restart


def _is_live(key: str, is_there: bool) -> bool:
    """Does a running container get this change at once? A mount that is new does; one that is there waits."""
    base = pct_conf.base_key(key)
    return base in _LIVE or (base == "mp" and not is_there)


def _short(value: str | None) -> str:
    return "nothing" if value is None else value


def _lines(raw: Sequence[tuple[str, str]]) -> str:
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


def _refuse_contradiction(declared: Declared, wanted: Mapping[str, str]) -> None:
    named = {key for key, value in wanted.items() if value != ""}
    named |= {key for key, _value in _declared_raw(declared)}
    both = sorted(named & set(declared.delete))
    if both:
        raise PlanError(
            f"CTID {declared.vmid}: {', '.join(both)} is declared, and is to be deleted; keep one of the two"
        )


def _size_of(current: Mapping[str, str]) -> str:
    return pct_conf.split_property("rootfs", current.get("rootfs", "")).get("size", "")


def _grown_disk(declared: Declared, current: Mapping[str, str]) -> str:
    """The new size of rootfs, "" when it stays. :raises PlanError: when it would shrink"""
    size = _size_of(current)
    if not declared.disk_gb or not size:
        return ""
    wanted, there = declared.disk_gb * 2**30, pct_conf.size_in_bytes(size)
    if wanted < there:
        raise PlanError(
            f"CTID {declared.vmid}: storage_size_gb {declared.disk_gb} is less than the {size} that its disk has, and "
            f"a disk never shrinks; declare at least {-(-there // 2**30)}, or remove the container and run again"
        )
    return f"{declared.disk_gb}G" if wanted > there else ""


def _wanted_value(key: str, value: object, current: str | None) -> str:
    """A declared value as Proxmox writes it; what the declaration doesn't name of a property string stays."""
    if pct_conf.base_key(key) == "net" and current and value:
        return _wanted_net(key, value, current)
    if isinstance(value, Mapping):
        base = {}
        if current and pct_conf.base_key(key) not in _EXACT:
            base = pct_conf.split_property(key, current)
        return pct_conf.join_property(key, {**base, **value})
    if isinstance(value, (list, tuple)):
        return " ".join(pct_conf.plain(item) for item in value)
    return "" if value is None else pct_conf.plain(value)


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
    keys = sorted(key for key in current if pct_conf.base_key(key) == prefix)
    return {pct_conf.split_property(key, current[key]).get(part, ""): key for key in keys}


def _device_changes(
    devices: Sequence[Mapping[str, object]], current: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Exactly these devices: values of devN keys, and the devN keys that are not declared."""
    there = _by_part("dev", "path", current)
    declared = {str(device["path"]): device for device in devices}
    undeclared = sorted(key for path, key in there.items() if path not in declared)
    taken = set(there.values())
    values = {}
    for path, device in declared.items():
        key = there.get(path) or _free("dev", taken)
        values[key] = pct_conf.join_property(key, dict(device))
    return values, undeclared


def _mount_changes(mounts: Sequence[Mapping[str, object]], current: Mapping[str, str]) -> dict[str, str]:
    """One mpN for each declared mount point, the one that has it already where there is one."""
    there = {path.rstrip("/"): key for path, key in _by_part("mp", "mp", current).items()}
    taken = set(there.values())
    paths = [str(mount["mp"]).rstrip("/") for mount in mounts]
    if len(set(paths)) < len(paths):
        raise PlanError(f"a mount point is declared twice: {', '.join(sorted(paths))}; keep one of the two")
    values = {}
    for path, mount in zip(paths, mounts):
        key = there.get(path) or _free("mp", taken)
        parts = pct_conf.split_property(key, current.get(key, ""))
        if not parts or not _ALLOCATION.fullmatch(str(mount["source"])):
            # STORAGE:SIZE makes a new volume; one that is there already is the one that was meant.
            parts["volume"] = mount["source"]
        parts.update(mp=path, ro="1" if mount.get("ro") else None)
        values[key] = pct_conf.join_property(key, parts)
    return values


def _declared_raw(declared: Declared) -> list[tuple[str, str]]:
    try:
        return [pct_conf.split_raw(line) for line in declared.raw or []]
    except ValueError as error:
        raise PlanError(f"CTID {declared.vmid}: raw line: {error}; correct lxc_options") from error


def _raw_changes(declared: Declared, current: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The raw lines to write, none when they are there already. Lines with other keys are not spoken of."""
    wanted = _declared_raw(declared)

    def of(lines: Sequence[tuple[str, str]], name: str) -> list[str]:
        return [line[1] for line in lines if line[0] == name]

    return [] if all(of(wanted, line[0]) == of(current, line[0]) for line in wanted) else wanted


# --- being in a state ---------------------------------------------------------------------------------------------


def _state(declared: Declared, actual: Container, restart: Sequence[str]) -> tuple[list[Step], Container]:
    vmid, state = declared.vmid, declared.state
    if state == "template":
        if actual.is_template:
            return [], actual
        if actual.conf.snapshots:
            raise PlanError(
                f"CTID {vmid} is to become a template and has snapshots ({', '.join(sorted(actual.conf.snapshots))}); "
                "Proxmox refuses that. Delete them, or declare template_snapshot_name instead of is_template"
            )
        steps = [_shutdown(vmid, "it runs, and a template doesn't")] if actual.running else []
        steps.append(Step("pct", "it is to be a template", _pct(vmid, "template")))
        conf = actual.conf.main
        conf.values["template"] = "1"
        return steps, Container(exists=True, text=pct_conf.render(conf))
    if state in ("started", "restarted"):
        if actual.is_template:
            raise PlanError(
                f"CTID {vmid} is a template and can't be started; clone it, or ask for state: present"
            )
        boot = Step("boot", "the system inside has to be up")
        started = replace(actual, running=True)
        if not actual.running:
            return [Step("pct", "it is stopped", _pct(vmid, "start")), boot], started
        if state == "restarted":
            return [Step("pct", "a restart was asked for", _pct(vmid, "reboot")), boot], started
    if state == "stopped" and actual.running:
        return [_shutdown(vmid, "it runs, and is to be stopped")], replace(actual, running=False)
    if actual.running and restart and declared.restart == "when_required":
        why = f"{', '.join(restart)}: takes effect at a restart"
        return [Step("pct", why, _pct(vmid, "reboot")), Step("boot", "the system inside has to be up")], actual
    return [], actual


def _shutdown(vmid: int, why: str) -> Step:
    return Step("pct", why, _pct(vmid, "shutdown", "--timeout", "60", "--forceStop", "1"))
