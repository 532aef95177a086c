# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The REST API of containers and their snapshots: small functions around what pct does too."""

from __future__ import annotations

import json
from typing import Any

from node import access, changes, lifecycle, release, runtime, schema, snapshots, store, views
from node import conf as conf_format
from node.conf import Section
from node.errors import ParameterError, PctError
from node.routing import CT, NODE, Ask, endpoint, in_background
from node.system import run

_NUMBERS = frozenset({"cores", "cpuunits", "memory", "swap", "tty", "snaptime"}) | schema.BOOLEANS


def _typed(key: str, value: str) -> Any:
    """Whole numbers and booleans are numbers in JSON, everything else is text."""
    return int(value) if key in _NUMBERS and value.isdigit() else value


@endpoint("GET", f"{NODE}/lxc")
def _list(ask: Ask) -> Any:
    return views.containers()


@endpoint("GET", CT, "VM.Audit")
def _index(ask: Ask) -> Any:
    store.load(ask.vmid)
    names = ("config", "pending", "status", "snapshot", "resize", "clone", "template", "firewall", "interfaces")
    return [{"subdir": name} for name in names]


@endpoint(
    "POST", f"{NODE}/lxc", needs=("vmid", "ostemplate"), takes_config=True,
    takes=("storage", "password", "ssh-public-keys", "start", "pool", "force", "unique", "ignore-unpack-errors",
           "bwlimit", "ha-managed"),
)  # fmt: skip
def _create(ask: Ask) -> Any:
    vmid = ask.number("vmid", 0)
    if not 100 <= vmid <= 999999999:
        raise ParameterError({"vmid": schema.NO_VMID})
    access.check(ask.who, f"/vms/{vmid}", "VM.Allocate")
    own = {name: text for name, text in ask.given.items() if schema.validator(name) is None}
    new = schema.checked_config(ask.given)
    unprivileged = new.get("unprivileged", "1" if release.at_least(9, 0) else "0") == "1"
    access.check_config(ask.who, vmid, new, (), {}, unprivileged)
    return in_background(lambda: lifecycle.create(vmid, own["ostemplate"], new, own))


@endpoint("DELETE", CT, "VM.Allocate", ("purge", "force", "destroy-unreferenced-disks"))
def _destroy(ask: Ask) -> Any:
    for name in ask.given:
        ask.flag(name)
    return in_background(lambda: lifecycle.destroy(ask.vmid, ask.given))


@endpoint("GET", f"{CT}/config", "VM.Audit", ("current", "snapshot"))
def _config(ask: Ask) -> Any:
    text = store.read_text(ask.vmid)
    conf = store.load(ask.vmid)
    name = ask.given.get("snapshot")
    if name:
        if name not in conf.snapshots:
            raise PctError(f"snapshot '{name}' does not exist")
        section = conf.snapshots[name]
    else:
        section = conf.active if ask.flag("current") else conf_format.merged(conf)
    return {**_values(section), "digest": conf_format.digest(text)}


def _values(section: Section) -> dict[str, Any]:
    values: dict[str, Any] = {key: _typed(key, text) for key, text in section.options.items()}
    if section.description:
        values["description"] = section.description
    if section.raw:
        values["lxc"] = [[key, text] for key, text in section.raw]
    return values


@endpoint("PUT", f"{CT}/config", takes=("delete", "revert", "digest"), takes_config=True)
def _set(ask: Ask) -> Any:
    new = schema.checked_config(ask.given)
    delete, revert = ask.words("delete"), ask.words("revert")
    old = store.load(ask.vmid).active.options
    access.check_config(ask.who, ask.vmid, new, [*delete, *revert], old, old.get("unprivileged") == "1")
    changes.update(ask.vmid, new, delete, revert, ask.given.get("digest", ""))


@endpoint("GET", f"{CT}/pending", "VM.Audit")
def _pending(ask: Ask) -> Any:
    conf = store.load(ask.vmid)
    current = dict(conf.active.options)
    if conf.active.description:
        current["description"] = conf.active.description
    found = []
    for key in sorted({*current, *conf.pending, *conf.delete}):
        entry: dict[str, Any] = {"key": key}
        if key in current:
            entry["value"] = _typed(key, current[key])
        if key in conf.pending:
            entry["pending"] = _typed(key, conf.pending[key])
        if key in conf.delete:
            entry["delete"] = 2 if conf.delete[key] else 1
        found.append(entry)
    return found


@endpoint("PUT", f"{CT}/resize", "VM.Config.Disk", ("digest",), ("disk", "size"))
def _resize(ask: Ask) -> Any:
    given = ask.given
    return in_background(lambda: lifecycle.resize(ask.vmid, given["disk"], given["size"], given.get("digest", "")))


@endpoint(
    "POST", f"{CT}/clone", "VM.Clone",
    ("full", "snapname", "storage", "hostname", "description", "pool", "target", "bwlimit"), ("newid",),
)  # fmt: skip
def _clone(ask: Ask) -> Any:
    new = ask.number("newid", 0)
    access.check(ask.who, f"/vms/{new}", "VM.Allocate")
    config = schema.checked_config({key: ask.given[key] for key in ("hostname", "description") if key in ask.given})
    if "full" in ask.given:
        ask.flag("full")
    return in_background(lambda: lifecycle.clone(ask.vmid, new, {**ask.given, **config}))


@endpoint("POST", f"{CT}/template", "VM.Allocate")
def _template(ask: Ask) -> Any:
    in_background(lambda: lifecycle.template(ask.vmid))  # its UPID is not told, here as there


@endpoint("GET", f"{CT}/status/current", "VM.Audit")
def _status_current(ask: Ask) -> Any:
    return {**views.numbers(ask.vmid), "ha": {"managed": 0}}


@endpoint("POST", f"{CT}/status/start", "VM.PowerMgmt", ("skiplock", "debug"))
def _start(ask: Ask) -> Any:
    return in_background(lambda: lifecycle.start(ask.vmid, ask.flag("skiplock"), ask.flag("debug")))


@endpoint("POST", f"{CT}/status/stop", "VM.PowerMgmt", ("skiplock", "overrule-shutdown"))
def _stop(ask: Ask) -> Any:
    return in_background(lambda: lifecycle.stop(ask.vmid, ask.flag("skiplock")))


@endpoint("POST", f"{CT}/status/shutdown", "VM.PowerMgmt", ("timeout", "forceStop"))
def _shutdown(ask: Ask) -> Any:
    return in_background(lambda: lifecycle.shutdown(ask.vmid, ask.number("timeout", 60), ask.flag("forceStop")))


@endpoint("POST", f"{CT}/status/reboot", "VM.PowerMgmt", ("timeout",))
def _reboot(ask: Ask) -> Any:
    return in_background(lambda: lifecycle.reboot(ask.vmid, ask.number("timeout", 60)))


@endpoint("GET", f"{CT}/interfaces", "VM.Audit")
def _interfaces(ask: Ask) -> Any:
    store.load(ask.vmid)
    if not runtime.is_running(ask.vmid):
        return None
    links = json.loads(run(["nsenter", "-t", str(runtime.init_pid(ask.vmid)), "-n", "--", "ip", "-j", "addr"]))
    found = []
    for link in links:
        entry = {"name": link["ifname"], "hwaddr": link.get("address", ""), "hardware-address": link.get("address", "")}
        entry["ip-addresses"] = []
        for address in link.get("addr_info", []):
            family = address["family"]
            entry.setdefault(family, f"{address['local']}/{address['prefixlen']}")
            one = {"ip-address": address["local"], "prefix": address["prefixlen"], "ip-address-type": family}
            entry["ip-addresses"].append(one)
        found.append(entry)
    return found


# --- snapshots -------------------------------------------------------------------------------------------------------


@endpoint("GET", f"{CT}/snapshot", "VM.Audit")
def _snapshots(ask: Ask) -> Any:
    text = store.read_text(ask.vmid)
    conf = store.load(ask.vmid)
    found: list[dict[str, Any]] = []
    for name, section in sorted(conf.snapshots.items()):
        kept = ("snaptime", "parent", "snapstate")
        entry = {key: _typed(key, section.options[key]) for key in kept if key in section.options}
        found.append({"name": name, "description": section.description, **entry})
    running = int(runtime.is_running(ask.vmid))
    here = {"name": "current", "description": "You are here!", "running": running, "digest": conf_format.digest(text)}
    parent = conf.active.options.get("parent")
    return [*found, {**here, "parent": parent} if parent else here]


@endpoint("POST", f"{CT}/snapshot", "VM.Snapshot", ("description",), ("snapname",))
def _snapshot(ask: Ask) -> Any:
    name = ask.given["snapname"]
    snapshots.check_name(name)
    return in_background(lambda: snapshots.snapshot(ask.vmid, name, ask.given.get("description", "")))


@endpoint("DELETE", f"{CT}/snapshot/{{snapname}}", "VM.Snapshot", ("force",))
def _snapshot_delete(ask: Ask) -> Any:
    return in_background(lambda: snapshots.delete(ask.vmid, ask.path["snapname"], ask.flag("force")))


@endpoint("POST", f"{CT}/snapshot/{{snapname}}/rollback", "VM.Snapshot.Rollback", ("start",))
def _rollback(ask: Ask) -> Any:
    return in_background(lambda: snapshots.rollback(ask.vmid, ask.path["snapname"], ask.flag("start")))


def _saved(ask: Ask, conf: conf_format.Conf) -> Section:
    name = ask.path["snapname"]
    if name not in conf.snapshots:
        raise PctError(f"snapshot '{name}' does not exist")
    return conf.snapshots[name]


@endpoint("GET", f"{CT}/snapshot/{{snapname}}/config", "VM.Audit")
def _snapshot_config(ask: Ask) -> Any:
    return _values(_saved(ask, store.load(ask.vmid)))


@endpoint("PUT", f"{CT}/snapshot/{{snapname}}/config", "VM.Snapshot", ("description",))
def _snapshot_describe(ask: Ask) -> Any:
    with store.flocked(ask.vmid):
        conf = store.load(ask.vmid)
        store.refuse_locked(conf)
        text = ask.given.get("description", "")
        _saved(ask, conf).description = text + "\n" if text else ""
        store.save(ask.vmid, conf)
