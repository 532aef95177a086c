# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One line for each container: what it is, what it serves, whether it answers, and what is not as declared.

Values in, values out; nothing is run and no file is read in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils import lxc_config, verification

# Of these there is nothing to compare with a declaration.
_NOT_THERE = ("absent", "incomplete", "unknown")


def declared(variables: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What C(pct_container_info) compares containers with.

    :param variables: all variables of each host
    """
    return [
        {
            name: host[name]
            for name in lxc_config.ROLE_VARIABLES
            if name.startswith("container_") and host.get(name) not in (None, "")
        }
        for host in variables
    ]


def of_the_node(vmid: int, node: Mapping[str, Any]) -> dict[str, Any]:
    """What the look at a node tells of one container: C(state), C(differs), C(problem), C(waiting), C(hostname).

    :param node: the result of C(pct_container_info); empty when there was none
    """
    unknown = {"state": "unknown", "differs": [], "problem": "", "waiting": [], "hostname": "", "reason": ""}
    if "compared" not in node:
        return {**unknown, "reason": f"its node can't be asked: {_said(node, 'it was not looked at')}"}
    found = next((one for one in node["compared"] if one["vmid"] == vmid), None)
    if found is None:
        return {**unknown, "reason": "its node was not asked about it"}
    there = next((one for one in node["containers"] if one["vmid"] == vmid), {})
    return {
        **unknown,
        **{key: found[key] for key in ("state", "differs", "problem")},
        "waiting": there.get("waiting", []),
        "hostname": there.get("config", {}).get("hostname", ""),
        "lock": there.get("lock", ""),
    }


def is_running(vmid: int, node: Mapping[str, Any]) -> bool:
    """Is there an inside to look at?"""
    return of_the_node(vmid, node)["state"] == "running"


def row(host: Mapping[str, Any], node: Mapping[str, Any], inside: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known of a container.

    :param host: C(host), C(ctid), C(node), C(model) and C(stack) as they are declared
    :param node: the result of C(pct_container_info) on its node
    :param inside: the result of C(vllm_model_server_info), with the days of its certificates in C(days); empty for none
    """
    found = of_the_node(host["ctid"], node)
    notes = [found["reason"]] if found["reason"] else []
    if found["problem"]:
        notes.append(found["problem"].rstrip("."))
    if found.get("lock"):
        notes.append(f"it is locked ({found['lock']})")
    if found["waiting"]:
        notes.append(f"a restart is needed for {', '.join(found['waiting'])}")
    drift = list(found["differs"])
    result = {
        "host": host["host"], "ctid": host["ctid"], "node": host["node"], "hostname": found["hostname"],
        "state": found["state"], "declared_model": host["model"], "declared_stack": host["stack"],
        "model": "", "release": "", "vllm": "", "server": "none", "ready": None, "seconds": None,
        "certificates": [], "certificate_days": None, "waiting": list(found["waiting"]), "problem": found["problem"],
    }  # fmt: skip
    if found["state"] == "running":
        if "server" in inside:
            result.update({key: inside[key] for key in ("model", "release", "vllm", "server")})
            result.update(_of_the_server(host, inside, notes, drift))
        elif inside:
            notes.append(f"inside can't be looked at: {_said(inside, 'it gave no result')}")
    if host["model"] and result["ready"] is None and found["state"] not in ("template", "unknown"):
        # A model is declared, and none can answer.
        result["ready"] = False
    return {**result, "drift": drift, "notes": notes}


def _of_the_server(
    host: Mapping[str, Any], inside: Mapping[str, Any], notes: list[str], drift: list[str]
) -> dict[str, Any]:
    """What the look inside tells; what there is to say is added to the notes and the drift."""
    found: dict[str, Any] = {}
    if inside["server"] != "none":
        found.update(ready=inside["ready"], seconds=inside["seconds"])
        if inside["reason"]:
            notes.append(f"the model server is not ready: {inside['reason'].rstrip('.')}")
        if inside["restarts"]:
            notes.append(f"systemd has started the model server again {_times(inside['restarts'])}")
    elif host["model"]:
        notes.append("there is no model server yet: run site.yml")
    drift += inside["differs"]
    release, live = inside["release"], inside["live_release"]
    stack = host["stack"]
    if stack and release and not _is_of(release, stack):
        drift.append("stack")
        notes.append(f"{release} runs, and the stack {stack} is declared")
    elif release and live and release != live:
        drift.append("release")
        notes.append(f"{live} is installed, and {release} still runs")
    certificates = [{key: one[key] for key in ("file", "days", "problem")} for one in inside.get("certificates", [])]
    for one in certificates:
        if one["problem"]:
            notes.append(f"{one['file']}: {one['problem']}")
    days = [one["days"] for one in certificates if one["days"] is not None]
    found.update(certificates=certificates, certificate_days=min(days, default=None))
    return found


def _said(result: Mapping[str, Any], otherwise: str) -> str:
    """What a task that failed said, in one line."""
    return verification.clean(result.get("msg") or otherwise).rstrip(".").removeprefix("Task failed: ")


def _is_of(release: str, stack: str) -> bool:
    """Is a release one of a stack, by its name?"""
    return release == stack or release.startswith(f"{stack}-")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def report_of(
    rows: Sequence[Mapping[str, Any]], undeclared: Mapping[str, Sequence[Mapping[str, Any]]], time: str
) -> dict[str, Any]:
    """The report, as it is written in JSON.

    :param undeclared: by node, the containers there that the inventory doesn't have
    """
    return {
        "time": time,
        "counts": {
            "containers": len(rows),
            "running": sum(one["state"] == "running" for one in rows),
            "ready": sum(one["ready"] is True for one in rows),
            "not_ready": sum(one["ready"] is False for one in rows),
            "drift": sum(bool(one["drift"]) for one in rows),
        },
        "containers": list(rows),
        "undeclared": {node: list(those) for node, those in undeclared.items()},
    }


def undeclared(containers: Iterable[Mapping[str, Any]], known: Iterable[int]) -> list[dict[str, Any]]:
    """The containers of a node that the inventory doesn't have.

    :param containers: of the look at the node
    :param known: CTIDs of the inventory
    """
    known = set(known)
    return [
        {
            "ctid": one["vmid"], "hostname": one["config"].get("hostname", ""),
            "state": "template" if one["template"] else one["status"],
        }
        for one in containers
        if one["exists"] and one["vmid"] not in known
    ]  # fmt: skip


def text_of(report: Mapping[str, Any]) -> str:
    """The same for people: a line for each container, then what there is to say about some."""
    heads = ["CONTAINER", "NAME", "NODE", "STATE", "MODEL", "RELEASE", "READY", "CERT", "DRIFT"]
    rows = [heads, *(_columns(one) for one in report["containers"])]
    if len({one["node"] for one in report["containers"]}) < 2:
        rows = [[cell for place, cell in enumerate(cells) if heads[place] != "NODE"] for cells in rows]
    widths = [max(len(cells[place]) for cells in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in rows]
    notes = [f"{one['host']}: {note}." for one in report["containers"] for note in one["notes"]]
    for node, those in report["undeclared"].items():
        if those:
            named = ", ".join(f"{one['ctid']} ({one['state']})" for one in those[:10])
            more = f" and {len(those) - 10} more" if len(those) > 10 else ""
            notes.append(f"{node} also has, not declared: {named}{more}.")
    counts = report["counts"]
    number = counts["containers"]
    summary = (
        f"{number} container{'' if number == 1 else 's'}: {counts['running']} running, {counts['ready']} ready, "
        f"{counts['not_ready']} not ready, {counts['drift']} not as declared."
    )
    return "\n".join([*lines, "", *notes, *([""] if notes else []), summary])


def _columns(one: Mapping[str, Any]) -> list[str]:
    ready = {None: "-", True: "yes", False: "no"}[one["ready"]]
    if one["server"] in ("starting", "activating"):
        ready = "starting"
    days = one["certificate_days"]
    certificate = "-" if days is None else "expired" if days < 0 else f"{days} d"
    drift = ", ".join(one["drift"]) or "-"
    if one["problem"]:
        drift = f"{drift} (see below)"
    elif one["state"] in _NOT_THERE:
        drift = "-"
    return [
        one["host"], one["hostname"] or "-", one["node"], one["state"], verification.clean(one["model"]) or "-",
        one["release"] or "-", ready, certificate, drift,
    ]  # fmt: skip
