# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The REST API of the cluster, the node, its storages and tasks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import Any

from node import access, active, release, settings, storage, store, views
from node.errors import ParameterError, PctError
from node.routing import NODE, Ask, endpoint


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
        for entry in views.containers():
            found.append({**entry, "id": f"lxc/{entry['vmid']}", "node": name, "maxcpu": entry.pop("cpus")})
            found[-1].setdefault("template", 0)
    if wanted in ("", "storage"):
        for place in storage.storages().values():
            entry = {"id": f"storage/{name}/{place.name}", "type": "storage", "node": name, "storage": place.name}
            found.append({**entry, "plugintype": place.kind, "status": "available", "shared": 0})
    if wanted in ("", "node"):
        found.append(_node_entry())
    return found


@endpoint("GET", f"{NODE}/storage", takes=("content", "enabled", "storage", "target", "format"))
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


@endpoint("GET", f"{NODE}/storage/{{storage}}/content", takes=("content", "vmid"))
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


@endpoint("GET", f"{NODE}/tasks", takes=("vmid", "source", "limit", "start", "typefilter", "errors", "userfilter"))
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


@endpoint("GET", f"{NODE}/tasks/{{upid}}/status")
def _task_status(ask: Ask) -> Any:
    task = _task(ask)
    if active.is_running(task):
        return {**task.fields, "status": "running"}
    return {**task.fields, "status": "stopped", "exitstatus": active.status_in_log(task)}


@endpoint("GET", f"{NODE}/tasks/{{upid}}/log", takes=("start", "limit"))
def _task_log(ask: Ask) -> Any:
    task = _task(ask)
    if not task.log.exists():
        raise PctError(f"unable to open file - {task.log}")
    lines = task.log.read_text(errors="replace").splitlines() or ["no content"]
    start, limit = ask.number("start", 0), ask.number("limit", 50) or len(lines)
    chosen = list(enumerate(lines, 1))[start : start + limit]
    return {"data": [{"n": number, "t": text} for number, text in chosen], "total": len(lines)}


@endpoint("DELETE", f"{NODE}/tasks/{{upid}}")
def _task_stop(ask: Ask) -> Any:
    task = _task(ask)
    if task.fields["user"] != ask.who.name:
        access.check(ask.who, f"/nodes/{ask.path['node']}", "Sys.Modify")
    if active.is_running(task):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(str(task.fields["pid"])), signal.SIGTERM)
