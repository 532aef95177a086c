# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``pct set``: what changes at once, what waits for the next start, and volumes that come and go with it."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field

from node import conf as conf_format
from node import guest, release, runtime, schema, settings, storage, store
from node.conf import Conf, Section
from node.errors import ParameterError, PctError
from node.schema import MOUNT, NET, ROOTFS, PropertyString

NEW_VOLUME = re.compile(r"([^:/\s]+):(\d+(?:\.\d+)?)")
# What a running container takes over at once by being written down (hostname and cores as Proxmox does it)
FAST = frozenset({"description", "onboot", "startup", "protection", "hostname", "hookscript", "cores", "tags", "lock"})
LIMITS = frozenset({"memory", "swap", "cpulimit", "cpuunits"})


@dataclass
class Split:
    """The changes of one ``pct set`` on a running container, by when they take effect."""

    live: dict[str, str] = field(default_factory=dict)
    live_delete: list[str] = field(default_factory=list)
    later: dict[str, str] = field(default_factory=dict)
    later_delete: list[str] = field(default_factory=list)


def split(
    active: dict[str, str], params: dict[str, str], delete: list[str], running: bool, plug_devices: bool = True
) -> Split:
    """Which changes a container takes now and which wait; a new devN only when ``plug_devices``. Pure."""
    found = Split()
    for key, value in params.items():
        stem = key.rstrip("0123456789")
        new_slot = (stem == "mp" or (stem == "dev" and plug_devices)) and key not in active
        same = active.get(key) == value
        now = not running or same or key in FAST | LIMITS or stem in ("net", "unused") or new_slot
        (found.live if now else found.later)[key] = value
    for key in delete:
        stem = key.rstrip("0123456789")
        now = not running or key in FAST | LIMITS or stem in ("net", "unused")
        (found.live_delete if now else found.later_delete).append(key)
    return found


def check_digest(vmid: int, digest: str) -> None:
    """Refuse when the conf file isn't the one that the caller read."""
    if digest and conf_format.digest(store.read_text(vmid)) != digest:
        raise PctError("detected modified configuration - file changed by other user? Try again.")


def fill_in_nets(options: dict[str, str], known: dict[str, str] | None = None) -> None:
    """Give each new network card a MAC address; a card that is changed without one keeps the one it has."""
    for key in [key for key in options if re.fullmatch(r"net\d+", key)]:
        net = NET.parse(options[key])
        if "hwaddr" not in net and known and key in known:
            old = NET.parse(known[key])
            if "hwaddr" in old:
                net["hwaddr"] = old["hwaddr"]
        options[key] = NET.render(schema.with_hwaddr(net))


def allocate_volume(
    vmid: int, properties: schema.Properties, section: Section, form: PropertyString
) -> tuple[str, storage.Volume]:
    """Make the volume of ``STORAGE:SIZE``; returns the conf's text and the volume."""
    match = NEW_VOLUME.fullmatch(properties["volume"])
    if not match:
        raise PctError(f"unable to parse volume ID '{properties['volume']}'")
    made = storage.allocate(storage.for_rootdir(match[1]), vmid)
    maps = schema.id_map(section.raw, section.options.get("unprivileged") == "1", settings.ID_START, settings.ID_COUNT)
    os.chown(made.path, schema.to_host(maps, "u", 0), schema.to_host(maps, "g", 0))
    size = schema.size_text(int(float(match[2]) * 1024**3))
    return form.render({**properties, "volume": str(made), "size": size}), made


def volumes_of(section: Section) -> list[str]:
    """The volume ids that a section names, unused ones included."""
    found = []
    for key, value in section.options.items():
        if key == "rootfs":
            found.append(ROOTFS.parse(value)["volume"])
        elif re.fullmatch(r"mp\d+", key):
            found.append(MOUNT.parse(value)["volume"])
        elif re.fullmatch(r"unused\d+", key):
            found.append(value.split(",")[0])
    return [volid for volid in found if not volid.startswith("/")]


def _drop(conf: Conf, key: str) -> None:
    """Take an option out of the active section; a volume mpN becomes unusedN, an unusedN's volume is freed."""
    value = conf.active.options.pop(key, None)
    if key == "description":
        conf.active.description = ""
    if value is None:
        return
    if re.fullmatch(r"mp\d+", key):
        volid = MOUNT.parse(value)["volume"]
        if not volid.startswith("/") and volid not in volumes_of(conf.active):
            number = next(i for i in range(256) if f"unused{i}" not in conf.active.options)
            conf.active.options[f"unused{number}"] = volid
    elif re.fullmatch(r"unused\d+", key):
        volid = value.split(",")[0]
        in_snapshots = any(volid in volumes_of(section) for section in conf.snapshots.values())
        if volid not in volumes_of(conf.active) and not in_snapshots:
            storage.free(storage.volume(volid))


def _put(vmid: int, conf: Conf, key: str, value: str, made: list[storage.Volume]) -> None:
    """Put an option into the active section. The volume of a new mpN is made and added to ``made``; the volume of a
    replaced one becomes unusedN.
    """
    options = conf.active.options
    if key == "description":
        conf.active.description = value + "\n" if value else ""
        return
    if re.fullmatch(r"mp\d+", key):
        properties = MOUNT.parse(value)
        if NEW_VOLUME.fullmatch(properties["volume"]):
            value, volume = allocate_volume(vmid, properties, conf.active, MOUNT)
            made.append(volume)
        elif not properties["volume"].startswith("/"):
            _take_unused(conf, properties["volume"])
            if not storage.volume(properties["volume"]).path.is_dir():
                raise PctError(f"volume '{properties['volume']}' does not exist")
        if key in options and MOUNT.parse(options[key])["volume"] != MOUNT.parse(value)["volume"]:
            _drop(conf, key)
    options[key] = value


def _take_unused(conf: Conf, volid: str) -> None:
    for key in [key for key, value in conf.active.options.items() if key.startswith("unused") and value == volid]:
        del conf.active.options[key]


def apply_pending(vmid: int, conf: Conf) -> None:
    """Make pending changes the active ones: what every stop and start does."""
    for key in sorted(conf.delete):
        _drop(conf, key)
    for key in sorted(conf.pending):
        _put(vmid, conf, key, conf.pending[key], [])
    conf.delete.clear()
    conf.pending.clear()


def update(vmid: int, params: dict[str, str], delete: list[str], revert: list[str], digest: str) -> None:
    """``pct set``. All is checked before anything changes."""
    if not params and not delete and not revert:
        raise PctError("no options specified")
    with store.flocked(vmid):
        check_digest(vmid, digest)
        conf = store.load(vmid)
        store.refuse_locked(conf)
        running = runtime.is_running(vmid)
        before = conf_format.render(conf)
        for key in [*params, *delete]:
            if key in schema.READ_ONLY and (key in delete or params.get(key) != conf.active.options.get(key)):
                raise PctError(f"unable to modify read-only option: '{key}'")
        for key in delete:
            if schema.validator(key) is None:
                raise _parameter("delete", f"unknown option '{key}'")
            if key in schema.REQUIRED:
                raise PctError(f"unable to delete required option '{key}'")
            if key in params:
                raise _parameter("delete", f"you can't use '-{key}' and -delete {key}' at the same time")
        if conf.active.options.get("protection") == "1":
            for key in [*params, *delete]:
                if re.fullmatch(r"rootfs|mp\d+|unused\d+", key) and params.get(key) != conf.active.options.get(key):
                    raise PctError(f"can't update CT {vmid} drive '{key}' - protection mode enabled")
        params = dict(params)
        fill_in_nets(params, conf.active.options)
        _check_new(params, conf.active, running)
        for key in revert:
            conf.pending.pop(key, None)
            conf.delete.pop(key, None)
        real_delete = []
        for key in delete:
            here = conf.active.description if key == "description" else conf.active.options.get(key)
            if not here and key not in conf.pending:
                print(f"cannot delete '{key}' - not set in current configuration!", file=sys.stderr)
            elif not here:
                del conf.pending[key]
            else:
                real_delete.append(key)
        parts = split(conf.active.options, params, real_delete, running, release.at_least(9, 0))
        old = conf.active.copy()
        made: list[storage.Volume] = []
        for key in [*parts.live, *parts.live_delete]:
            conf.pending.pop(key, None)
            conf.delete.pop(key, None)
        for key, value in parts.later.items():
            conf.pending[key] = value
            conf.delete.pop(key, None)
        for key in parts.later_delete:
            conf.pending.pop(key, None)
            conf.delete[key] = False
        try:
            for key in parts.live_delete:
                _drop(conf, key)
            for key, value in parts.live.items():
                _put(vmid, conf, key, value, made)
            if running:
                _apply_live(vmid, old, conf.active)
        except BaseException:
            for volume in made:
                storage.free(volume)
            raise
        if conf_format.render(conf) != before:
            store.save(vmid, conf)


def _parameter(name: str, reason: str) -> ParameterError:
    return ParameterError({name: reason})


def _check_new(params: dict[str, str], active: Section, running: bool) -> None:
    """Check against the host what only it can know."""
    for key, value in params.items():
        if active.options.get(key) == value:
            continue
        if re.fullmatch(r"net\d+", key) and running:
            bridge = NET.parse(value).get("bridge")
            if bridge and not runtime.bridge_exists(bridge):
                raise _parameter(key, f"unable to hotplug {key}: bridge '{bridge}' does not exist")
        elif re.fullmatch(r"dev\d+", key):
            runtime.check_device(schema.DEVICE.parse(value))
        elif re.fullmatch(r"mp\d+", key):
            volid = MOUNT.parse(value)["volume"]
            match = NEW_VOLUME.fullmatch(volid)
            if match:
                storage.for_rootdir(match[1])
            elif volid.startswith("/") and running and key not in active.options and not os.path.exists(volid):
                raise _parameter(key, f"unable to hotplug {key}: directory '{volid}' does not exist")
        elif key == "rootfs":
            storage.volume(ROOTFS.parse(value)["volume"])


def _apply_live(vmid: int, old: Section, new: Section) -> None:
    """Bring what runs in line with the new active section."""
    changed = {key for key in {*old.options, *new.options} if old.options.get(key) != new.options.get(key)}
    if changed & LIMITS:
        runtime.apply_limits(vmid, old.options, new.options)
    if "cores" in changed:
        runtime.apply_cores(vmid, new.options)
    old_nets, new_nets = guest.networks(old), guest.networks(new)
    for number in sorted({*old_nets, *new_nets}):
        if f"net{number}" in changed:
            runtime.apply_net(vmid, number, old_nets.get(number), new_nets.get(number), new)
    for key, mount in runtime.mount_points(new).items():
        if key in changed and key not in old.options:
            runtime.plug_mount(vmid, mount)
    for key, device in runtime.devices(new).items():
        if key in changed and key not in old.options:
            runtime.plug_device(vmid, new, device)
