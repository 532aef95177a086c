# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The paths of the REST API. Each is a small function around what pct does too; tasks run in the background."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Callable

from node import (
    access,
    active,
    changes,
    firewall,
    lifecycle,
    release,
    runtime,
    schema,
    settings,
    snapshots,
    storage,
    store,
    tasks,
    views,
)
from node import conf as conf_format
from node.access import Caller
from node.conf import Section
from node.errors import ParameterError, PctError, Refusal
from node.system import run


@dataclass
class Ask:
    """One request: who asks, for which path, with which parameters."""

    who: Caller
    path: dict[str, str]
    given: dict[str, str]

    @property
    def vmid(self) -> int:
        """The CTID of the path."""
        return int(self.path["vmid"])

    def flag(self, name: str) -> bool:
        """A boolean parameter."""
        try:
            return schema.boolean(self.given.get(name, "0")) == "1"
        except ValueError as reason:
            raise ParameterError({name: str(reason)}) from None

    def number(self, name: str, default: int) -> int:
        """A parameter that is a whole number."""
        try:
            return int(schema.integer(0)(self.given.get(name, str(default))))
        except ValueError as reason:
            raise ParameterError({name: str(reason)}) from None

    def words(self, name: str) -> list[str]:
        """A parameter that is a list."""
        return [word for word in re.split(r"[,;\s]+", self.given.get(name, "")) if word]


Work = Callable[[Ask], Any]


@dataclass(frozen=True)
class Endpoint:
    """A method and a path: what may be given, what must be, and which privilege it needs on the container."""

    method: str
    pattern: re.Pattern[str]
    work: Work
    privilege: str
    takes: tuple[str, ...]
    needs: tuple[str, ...]
    takes_config: bool


_ENDPOINTS: list[Endpoint] = []
_NODE = "/nodes/{node}"
_CT = "/nodes/{node}/lxc/{vmid}"


def endpoint(
    method: str, path: str, privilege: str = "", takes: Iterable[str] = (), needs: Iterable[str] = (),
    takes_config: bool = False,
) -> Callable[[Work], Work]:  # fmt: skip
    """Register a function for a method and a path."""
    pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))

    def register(work: Work) -> Work:
        _ENDPOINTS.append(Endpoint(method, pattern, work, privilege, tuple(takes), tuple(needs), takes_config))
        return work

    return register


def answer(who: Caller, method: str, path: str, given: dict[str, str]) -> dict[str, Any]:
    """Find the endpoint, check node, parameters and permission, do it; the whole body of the answer."""
    for place in _ENDPOINTS:
        match = place.pattern.fullmatch(path)
        if match and place.method == method:
            break
    else:
        raise Refusal(501, f"Method '{method} {path}' not implemented")
    ask = Ask(who, match.groupdict(), given)
    _check(place, ask)
    data = place.work(ask)
    return data if isinstance(data, dict) and data.keys() == {"data", "total"} else {"data": data}


def _check(place: Endpoint, ask: Ask) -> None:
    wrong = {}
    vmid = ask.path.get("vmid")
    if vmid is not None and not (vmid.isdigit() and 100 <= int(vmid) <= 999999999):
        kind = "value does not look like a valid VM ID" if vmid.isdigit() else "type check ('integer') failed"
        wrong["vmid"] = kind if vmid.isdigit() else f"{kind} - got '{vmid}'"
    for name in ask.given:
        known = name in (*place.takes, *place.needs) or (place.takes_config and schema.validator(name))
        if not known:
            wrong[name] = schema.NO_SUCH_PROPERTY
    for name in place.needs:
        if name not in ask.given:
            wrong[name] = "property is missing and it is not optional"
    if wrong:
        raise ParameterError(wrong)
    node = ask.path.get("node", settings.node_name())
    if node not in (settings.node_name(), "localhost"):
        reason = f"failed to get address info for: {node}: Name or service not known"
        raise PctError(f"hostname lookup '{node}' failed - {reason}")
    if vmid is not None:
        access.check(ask.who, f"/vms/{vmid}", place.privilege)
    if "skiplock" in ask.given:
        access.check_skiplock(ask.who, "1" if ask.flag("skiplock") else "0")


# --- tasks -----------------------------------------------------------------------------------------------------------


def in_background(work: Callable[[], object]) -> str:
    """Run what pct would run, in a process that outlives the request; the task's UPID as soon as there is one.

    What goes wrong before a task begins is raised here.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            _behind(work, writer)
        os._exit(0)
    os.close(writer)
    os.waitpid(middle, 0)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    if not text:
        raise PctError("the task did not begin; the lab's API log says why")
    said = json.loads(text)
    if "upid" in said:
        return str(said["upid"])
    if "errors" in said:
        raise ParameterError(said["errors"])
    raise PctError(said["error"])


def _behind(work: Callable[[], object], writer: int) -> None:
    """The process behind a task: it copies the worker's output to the log, as pct does."""
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for descriptor in range(3, 64):  # the client's connection among them
        if descriptor != writer:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)

    def tell(said: dict[str, Any]) -> None:
        os.write(writer, json.dumps(said).encode())
        os.close(writer)

    tasks.announce = lambda upid: tell({"upid": upid})
    try:
        work()
    except ParameterError as wrong:
        tell({"errors": wrong.errors})
    except PctError as reason:
        tell({"error": str(reason)})
    except BaseException:
        traceback.print_exc()
    os._exit(0)


# --- cluster and node ------------------------------------------------------------------------------------------------


@endpoint("GET", "/version")
def _version(ask: Ask) -> Any:
    return {"release": release.name(), "version": f"{release.name()}.1", "repoid": settings.REPOID}


@endpoint("GET", "/nodes")
def _nodes(ask: Ask) -> Any:
    return [_node_entry()]


def _node_entry() -> dict[str, Any]:
    name = settings.node_name()
    return {
        "node": name,
        "id": f"node/{name}",
        "type": "node",
        "status": "online",
        "maxcpu": os.cpu_count(),
        "level": "",
    }


@endpoint("GET", "/cluster/status")
def _cluster_status(ask: Ask) -> Any:
    name, address = settings.node_name(), json.loads(settings.API_SECRETS.read_text())["host"]
    return [{"type": "node", "id": f"node/{name}", "name": name, "ip": address, "local": 1, "online": 1, "nodeid": 0}]


@endpoint("GET", "/cluster/nextid", takes=("vmid",))
def _next_id(ask: Ask) -> Any:
    if "vmid" in ask.given:
        vmid = ask.number("vmid", 0)
        if store.exists(vmid):
            raise ParameterError({"vmid": f"VM {vmid} already exists"})
        return str(vmid)
    taken = set(store.all_ids())
    return str(next(number for number in range(100, 1000000) if number not in taken))


@endpoint("GET", "/cluster/resources", takes=("type",))
def _resources(ask: Ask) -> Any:
    name, wanted = settings.node_name(), ask.given.get("type", "")
    if wanted not in ("", "vm", "node", "storage", "sdn"):
        reason = f"value '{wanted}' does not have a value in the enumeration 'vm, storage, node, sdn'"
        raise ParameterError({"type": reason})
    found: list[dict[str, Any]] = []
    if wanted in ("", "vm"):
        for entry in _containers():
            found.append({**entry, "id": f"lxc/{entry['vmid']}", "node": name, "maxcpu": entry.pop("cpus")})
            found[-1].setdefault("template", 0)
    if wanted in ("", "storage"):
        for place in storage.storages().values():
            entry = {"id": f"storage/{name}/{place.name}", "type": "storage", "node": name, "storage": place.name}
            found.append({**entry, "plugintype": place.kind, "status": "available", "shared": 0})
    if wanted in ("", "node"):
        found.append(_node_entry())
    return found


@endpoint("GET", f"{_NODE}/storage", takes=("content", "enabled", "storage", "target", "format"))
def _storage(ask: Ask) -> Any:
    found = []
    for place in storage.storages().values():
        if ask.given.get("storage", place.name) == place.name and {*ask.words("content")} <= place.content:
            fs = os.statvfs(place.path)
            size = {"total": fs.f_blocks * fs.f_frsize, "avail": fs.f_bavail * fs.f_frsize}
            size["used"] = size["total"] - size["avail"]
            content = ",".join(sorted(place.content))
            state = {"content": content, "active": 1, "enabled": 1, "shared": 0}
            found.append({"storage": place.name, "type": place.kind, **state, **size})
    return found


@endpoint("GET", f"{_NODE}/storage/{{storage}}/content", takes=("content", "vmid"))
def _storage_content(ask: Ask) -> Any:
    place = storage.storage(ask.path["storage"])
    found: list[dict[str, Any]] = []
    if "vztmpl" in place.content and ask.given.get("content", "vztmpl") == "vztmpl":
        for path in sorted((place.path / "template/cache").glob("*.tar.*")):
            volid = f"{place.name}:vztmpl/{path.name}"
            found.append({"volid": volid, "content": "vztmpl", "format": "tzst", "size": path.stat().st_size})
    if "rootdir" in place.content and ask.given.get("content", "rootdir") == "rootdir":
        for path in sorted((place.path / "images").glob("*/*.subvol")):
            owner = int(path.parent.name)
            volid = f"{place.name}:{owner}/{path.name}"
            found.append({"volid": volid, "content": "rootdir", "format": "subvol", "vmid": owner})
    return found


# --- tasks of the node -----------------------------------------------------------------------------------------------


@endpoint("GET", f"{_NODE}/tasks", takes=("vmid", "source", "limit", "start", "typefilter", "errors", "userfilter"))
def _tasks(ask: Ask) -> Any:
    source = ask.given.get("source", "archive")
    if source not in ("archive", "active", "all"):
        reason = f"value '{source}' does not have a value in the enumeration 'archive, active, all'"
        raise ParameterError({"source": reason})
    active.refresh()
    found: list[active.Task] = []
    if source in ("active", "all"):
        found += [task for task in active.read() if not task.ended or source == "active"]
    if source in ("archive", "all"):
        found += active.finished()
    entries = [{**task.fields, **_ending(task)} for task in found]
    if "vmid" in ask.given:
        entries = [entry for entry in entries if entry["id"] == ask.given["vmid"]]
    if "typefilter" in ask.given:
        entries = [entry for entry in entries if entry["type"] == ask.given["typefilter"]]
    if ask.flag("errors"):
        entries = [entry for entry in entries if entry.get("status", "OK") != "OK"]
    start, limit = ask.number("start", 0), ask.number("limit", 50)
    return {"data": entries[start : start + limit], "total": len(entries)}


def _ending(task: active.Task) -> dict[str, Any]:
    return {"endtime": task.ended, "status": task.status} if task.ended else {}


def _task(ask: Ask) -> active.Task:
    upid = ask.path["upid"]
    if not active.is_upid(upid):
        raise ParameterError({"upid": "unable to parse worker upid"})
    task = active.Task(upid)
    if task.fields["user"] != ask.who.name:
        access.check(ask.who, f"/nodes/{ask.path['node']}", "Sys.Audit")
    return task


@endpoint("GET", f"{_NODE}/tasks/{{upid}}/status")
def _task_status(ask: Ask) -> Any:
    task = _task(ask)
    running = active.is_running(task) or (task.log.exists() and not _has_ended(task) and _is_listed(task))
    ending = {"status": "running"} if running else {"status": "stopped", "exitstatus": active.status_in_log(task)}
    return {**task.fields, **ending}


def _has_ended(task: active.Task) -> bool:
    return active.status_in_log(task) != "unexpected status"


def _is_listed(task: active.Task) -> bool:
    """Whether the process behind the task has yet to write how it ended, a moment after its worker."""
    active.refresh()
    return any(entry.upid == task.upid and not entry.ended for entry in active.read())


@endpoint("GET", f"{_NODE}/tasks/{{upid}}/log", takes=("start", "limit"))
def _task_log(ask: Ask) -> Any:
    task = _task(ask)
    if not task.log.exists():
        raise PctError(f"unable to open file - {task.log}")
    lines = task.log.read_text(errors="replace").splitlines() or ["no content"]
    start, limit = ask.number("start", 0), ask.number("limit", 50) or len(lines)
    chosen = list(enumerate(lines, 1))[start : start + limit]
    return {"data": [{"n": number, "t": text} for number, text in chosen], "total": len(lines)}


@endpoint("DELETE", f"{_NODE}/tasks/{{upid}}")
def _task_stop(ask: Ask) -> Any:
    task = _task(ask)
    if task.fields["user"] != ask.who.name:
        access.check(ask.who, f"/nodes/{ask.path['node']}", "Sys.Modify")
    if active.is_running(task):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(str(task.fields["pid"])), signal.SIGTERM)


# --- containers ------------------------------------------------------------------------------------------------------

_NUMBERS = frozenset({"cores", "cpuunits", "memory", "swap", "tty", "snaptime"}) | schema.BOOLEANS
_STATUS_TEXTS = frozenset({"name", "status", "type", "tags", "lock", "cpus"})


def _typed(key: str, value: str) -> Any:
    """Whole numbers and booleans are numbers in JSON, everything else is text."""
    return int(value) if key in _NUMBERS and value.isdigit() else value


def _status(vmid: int) -> dict[str, Any]:
    values = {key: value if key in _STATUS_TEXTS else int(value) for key, value in views.status(vmid).items()}
    return {**values, "cpus": float(values["cpus"]), "cpu": 0}


def _containers() -> list[dict[str, Any]]:
    found = []
    for vmid in store.all_ids():
        with contextlib.suppress(PctError):  # gone since we looked
            found.append(_status(vmid))
    return found


@endpoint("GET", f"{_NODE}/lxc")
def _list(ask: Ask) -> Any:
    return _containers()


@endpoint("GET", _CT, "VM.Audit")
def _index(ask: Ask) -> Any:
    store.load(ask.vmid)
    names = ("config", "pending", "status", "snapshot", "resize", "clone", "template", "firewall", "interfaces")
    return [{"subdir": name} for name in names]


@endpoint(
    "POST", f"{_NODE}/lxc", needs=("vmid", "ostemplate"), takes_config=True,
    takes=("storage", "password", "ssh-public-keys", "start", "pool", "force", "unique", "ignore-unpack-errors",
           "bwlimit", "ha-managed"),
)  # fmt: skip
def _create(ask: Ask) -> Any:
    vmid = ask.number("vmid", 0)
    if not 100 <= vmid <= 999999999:
        raise ParameterError({"vmid": "value must have a minimum value of 100"})
    access.check(ask.who, f"/vms/{vmid}", "VM.Allocate")
    own = {name: text for name, text in ask.given.items() if schema.validator(name) is None}
    new = schema.checked_config(ask.given)
    unprivileged = new.get("unprivileged", "1" if release.at_least(9, 0) else "0") == "1"
    access.check_config(ask.who, vmid, new, (), {}, unprivileged)
    return in_background(lambda: lifecycle.create(vmid, own["ostemplate"], new, own))


@endpoint("DELETE", _CT, "VM.Allocate", ("purge", "force", "destroy-unreferenced-disks"))
def _destroy(ask: Ask) -> Any:
    for name in ask.given:
        ask.flag(name)
    return in_background(lambda: lifecycle.destroy(ask.vmid, ask.given))


@endpoint("GET", f"{_CT}/config", "VM.Audit", ("current", "snapshot"))
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


@endpoint("PUT", f"{_CT}/config", takes=("delete", "revert", "digest"), takes_config=True)
def _set(ask: Ask) -> Any:
    new = schema.checked_config(ask.given)
    delete, revert = ask.words("delete"), ask.words("revert")
    old = store.load(ask.vmid).active.options
    access.check_config(ask.who, ask.vmid, new, [*delete, *revert], old, old.get("unprivileged") == "1")
    changes.update(ask.vmid, new, delete, revert, ask.given.get("digest", ""))


@endpoint("GET", f"{_CT}/pending", "VM.Audit")
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


@endpoint("PUT", f"{_CT}/resize", "VM.Config.Disk", ("digest",), ("disk", "size"))
def _resize(ask: Ask) -> Any:
    given = ask.given
    return in_background(lambda: lifecycle.resize(ask.vmid, given["disk"], given["size"], given.get("digest", "")))


@endpoint(
    "POST", f"{_CT}/clone", "VM.Clone",
    ("full", "snapname", "storage", "hostname", "description", "pool", "target", "bwlimit"), ("newid",),
)  # fmt: skip
def _clone(ask: Ask) -> Any:
    new = ask.number("newid", 0)
    access.check(ask.who, f"/vms/{new}", "VM.Allocate")
    config = schema.checked_config({key: ask.given[key] for key in ("hostname", "description") if key in ask.given})
    if "full" in ask.given:
        ask.flag("full")
    return in_background(lambda: lifecycle.clone(ask.vmid, new, {**ask.given, **config}))


@endpoint("POST", f"{_CT}/template", "VM.Allocate")
def _template(ask: Ask) -> Any:
    in_background(lambda: lifecycle.template(ask.vmid))  # its UPID is not told, here as there


@endpoint("GET", f"{_CT}/status/current", "VM.Audit")
def _status_current(ask: Ask) -> Any:
    return {**_status(ask.vmid), "ha": {"managed": 0}}


@endpoint("POST", f"{_CT}/status/start", "VM.PowerMgmt", ("skiplock", "debug"))
def _start(ask: Ask) -> Any:
    return in_background(lambda: lifecycle.start(ask.vmid, ask.flag("skiplock"), ask.flag("debug")))


@endpoint("POST", f"{_CT}/status/stop", "VM.PowerMgmt", ("skiplock", "overrule-shutdown"))
def _stop(ask: Ask) -> Any:
    return in_background(lambda: lifecycle.stop(ask.vmid, ask.flag("skiplock")))


@endpoint("POST", f"{_CT}/status/shutdown", "VM.PowerMgmt", ("timeout", "forceStop"))
def _shutdown(ask: Ask) -> Any:
    return in_background(lambda: lifecycle.shutdown(ask.vmid, ask.number("timeout", 60), ask.flag("forceStop")))


@endpoint("POST", f"{_CT}/status/reboot", "VM.PowerMgmt", ("timeout",))
def _reboot(ask: Ask) -> Any:
    return in_background(lambda: lifecycle.reboot(ask.vmid, ask.number("timeout", 60)))


@endpoint("GET", f"{_CT}/interfaces", "VM.Audit")
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


@endpoint("GET", f"{_CT}/snapshot", "VM.Audit")
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


@endpoint("POST", f"{_CT}/snapshot", "VM.Snapshot", ("description",), ("snapname",))
def _snapshot(ask: Ask) -> Any:
    name = ask.given["snapname"]
    snapshots.check_name(name)
    return in_background(lambda: snapshots.snapshot(ask.vmid, name, ask.given.get("description", "")))


@endpoint("DELETE", f"{_CT}/snapshot/{{snapname}}", "VM.Snapshot", ("force",))
def _snapshot_delete(ask: Ask) -> Any:
    return in_background(lambda: snapshots.delete(ask.vmid, ask.path["snapname"], ask.flag("force")))


@endpoint("POST", f"{_CT}/snapshot/{{snapname}}/rollback", "VM.Snapshot.Rollback", ("start",))
def _rollback(ask: Ask) -> Any:
    return in_background(lambda: snapshots.rollback(ask.vmid, ask.path["snapname"], ask.flag("start")))


def _saved(ask: Ask, conf: conf_format.Conf) -> Section:
    name = ask.path["snapname"]
    if name not in conf.snapshots:
        raise PctError(f"snapshot '{name}' does not exist")
    return conf.snapshots[name]


@endpoint("GET", f"{_CT}/snapshot/{{snapname}}/config", "VM.Audit")
def _snapshot_config(ask: Ask) -> Any:
    return _values(_saved(ask, store.load(ask.vmid)))


@endpoint("PUT", f"{_CT}/snapshot/{{snapname}}/config", "VM.Snapshot", ("description",))
def _snapshot_describe(ask: Ask) -> Any:
    with store.flocked(ask.vmid):
        conf = store.load(ask.vmid)
        store.refuse_locked(conf)
        text = ask.given.get("description", "")
        _saved(ask, conf).description = text + "\n" if text else ""
        store.save(ask.vmid, conf)


# --- firewall --------------------------------------------------------------------------------------------------------

_RULE_PARTS = tuple(name for name in firewall.RULE if name not in ("type", "action"))


def _fw(ask: Ask) -> firewall.Firewall:
    """The firewall of the path's container, after a look at the digest that the caller gave."""
    store.load(ask.vmid)
    firewall.check_digest(ask.vmid, ask.given.get("digest", ""))
    return firewall.load(ask.vmid)


@endpoint("GET", f"{_CT}/firewall/options", "VM.Audit")
def _fw_options(ask: Ask) -> Any:
    numbers = {key: int(text) if text.isdigit() else text for key, text in _fw(ask).options.items()}
    return {**numbers, "digest": firewall.digest(ask.vmid)}


@endpoint("PUT", f"{_CT}/firewall/options", "VM.Config.Network", (*firewall.OPTIONS, "delete", "digest"))
def _fw_set_options(ask: Ask) -> Any:
    found = _fw(ask)
    for name in ask.words("delete"):
        if name not in firewall.OPTIONS:
            raise ParameterError({"delete": f"no such option '{name}'"})
        found.options.pop(name, None)
    given = {key: text for key, text in ask.given.items() if key in firewall.OPTIONS}
    found.options.update(firewall.checked(given, firewall.OPTIONS))
    firewall.save(ask.vmid, found)


def _rule_entry(vmid: int, number: int, rule: firewall.Rule) -> dict[str, Any]:
    return {**rule, "enable": int(rule["enable"]), "pos": number, "digest": firewall.digest(vmid)}


@endpoint("GET", f"{_CT}/firewall/rules", "VM.Audit")
def _fw_rules(ask: Ask) -> Any:
    return [_rule_entry(ask.vmid, number, rule) for number, rule in enumerate(_fw(ask).rules)]


@endpoint("POST", f"{_CT}/firewall/rules", "VM.Config.Network", (*_RULE_PARTS, "digest", "pos"), ("type", "action"))
def _fw_add(ask: Ask) -> Any:
    found = _fw(ask)
    rule = firewall.checked({key: text for key, text in ask.given.items() if key in firewall.RULE}, firewall.RULE)
    rule.setdefault("enable", "0")
    firewall.check_rule(rule)
    found.rules.insert(0, rule)  # always first: genuine ignores `pos` here
    firewall.save(ask.vmid, found)


def _position(ask: Ask, found: firewall.Firewall) -> int:
    text = ask.path["pos"]
    if not text.isdigit():
        raise ParameterError({"pos": f"type check ('integer') failed - got '{text}'"})
    if int(text) >= len(found.rules):
        raise PctError(f"no rule at position {text}")
    return int(text)


@endpoint("GET", f"{_CT}/firewall/rules/{{pos}}", "VM.Audit")
def _fw_rule(ask: Ask) -> Any:
    found = _fw(ask)
    number = _position(ask, found)
    return _rule_entry(ask.vmid, number, found.rules[number])


@endpoint(
    "PUT", f"{_CT}/firewall/rules/{{pos}}", "VM.Config.Network",
    ("type", "action", *_RULE_PARTS, "digest", "moveto", "delete"),
)  # fmt: skip
def _fw_change(ask: Ask) -> Any:
    found = _fw(ask)
    number = _position(ask, found)
    if "moveto" in ask.given:
        # the rule goes before the one that is at this position now; nothing else of the call counts
        target = min(ask.number("moveto", 0), len(found.rules))
        rule = found.rules.pop(number)
        found.rules.insert(target if target <= number else target - 1, rule)
    else:
        rule = found.rules[number]
        for name in ask.words("delete"):
            rule.pop(name, None)
        given = {key: text for key, text in ask.given.items() if key in firewall.RULE}
        rule.update(firewall.checked(given, firewall.RULE))
        firewall.check_rule(rule)
    firewall.save(ask.vmid, found)


@endpoint("DELETE", f"{_CT}/firewall/rules/{{pos}}", "VM.Config.Network", ("digest",))
def _fw_delete(ask: Ask) -> Any:
    found = _fw(ask)
    del found.rules[_position(ask, found)]
    firewall.save(ask.vmid, found)
