# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From looks at nodes and into containers to the table of all."""

from __future__ import annotations

import itertools

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import status

HOST = {"host": "ctid_921", "ctid": 921, "node": "pve", "model": "tiny", "stack": "cpu"}
PLAIN = {**HOST, "model": "", "stack": ""}
INSIDE = {
    "server": "active", "ready": True, "reason": "", "seconds": 0.1, "model": "tiny", "release": "cpu-0123456789ab",
    "live_release": "cpu-0123456789ab", "vllm": "0.32.0", "digest": "d", "port": 8000, "restarts": 0, "differs": [],
    "certificates": [],
}  # fmt: skip


def node(state="running", differs=(), problem="", vmid=921, **others):
    container = {"vmid": vmid, "exists": state != "absent", "waiting": [], "lock": "", "config": {"hostname": "llm"}}
    compared = {"vmid": vmid, "state": state, "differs": list(differs), "problem": problem}
    return {"compared": [compared], "containers": [{**container, **others}]}


def row(host=None, there=None, **inside):
    return status.row(host or HOST, there or node(), {**INSIDE, **inside})


def test_a_container_that_is_as_declared_and_answers():
    found = row()
    assert (found["state"], found["ready"], found["drift"], found["notes"]) == ("running", True, [], [])
    assert (found["model"], found["release"], found["hostname"]) == ("tiny", "cpu-0123456789ab", "llm")
    assert found["certificate_days"] is None


@pytest.mark.parametrize("state", ["stopped", "absent", "incomplete"])
def test_a_model_that_is_declared_and_cannot_answer_is_not_ready(state):
    assert status.row(HOST, node(state), {})["ready"] is False


@pytest.mark.parametrize("state", ["running", "stopped", "absent", "incomplete", "template"])
def test_a_container_without_a_model_is_neither_ready_nor_not(state):
    found = status.row(PLAIN, node(state), {**INSIDE, "server": "none"} if state == "running" else {})
    assert found["ready"] is None


def test_a_template_with_a_model_runs_nothing():
    assert status.row(HOST, node("template"), {})["ready"] is None


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ({}, "its node can't be asked: it was not looked at"),
        ({"msg": "no route\nto host."}, "its node can't be asked: no route to host"),
        (node(vmid=900), "its node was not asked about it"),
    ],
)
def test_a_node_that_cannot_be_asked(there, why):
    found = status.row(HOST, there, {})
    assert (found["state"], found["ready"], found["notes"]) == ("unknown", None, [why])
    assert not status.is_running(921, there)


@pytest.mark.parametrize(
    ("there", "inside", "drift", "note"),
    [
        (node(differs=["memory"]), {}, ["memory"], None),
        (node(differs=["memory"], problem="no way."), {}, ["memory"], "no way"),
        (node(lock="backup"), {}, [], "it is locked (backup)"),
        (node(waiting=["cores", "dev0"]), {}, [], "a restart is needed for cores, dev0"),
        (None, {"differs": ["max-model-len"]}, ["max-model-len"], None),
        (None, {"release": "gpu-1"}, ["stack"], "gpu-1 runs, and the stack cpu is declared"),
        (None, {"live_release": "cpu-2"}, ["release"], "cpu-2 is installed, and cpu-0123456789ab still runs"),
        (None, {"restarts": 1}, [], "systemd has started the model server again once"),
        (None, {"restarts": 3}, [], "systemd has started the model server again 3 times"),
        (None, {"ready": False, "reason": "no answer."}, [], "the model server is not ready: no answer"),
        (None, {"server": "none", "release": "", "ready": False}, [], "there is no model server yet: run site.yml"),
    ],
)
def test_what_there_is_to_say(there, inside, drift, note):
    found = row(there=there, **inside)
    assert found["drift"] == drift
    assert found["notes"] == ([note] if note else [])


def test_an_inside_that_cannot_be_looked_at():
    found = status.row(HOST, node(), {"msg": "no \x1b[31mpython3\x1b[0m here.", "failed": True})
    assert found["notes"] == ["inside can't be looked at: no python3 here"] and found["ready"] is False


@pytest.mark.parametrize(("days", "fewest", "shown"), [([], None, "-"), ([40, 7], 7, "7 d"), ([-1, 3], -1, "expired")])
def test_the_certificate_that_ends_first_counts(days, fewest, shown):
    certificates = [{"file": f"/{number}", "days": number, "problem": "", "pem": "x"} for number in days]
    found = row(certificates=certificates)
    assert found["certificate_days"] == fewest and all("pem" not in one for one in found["certificates"])
    assert f"  {shown}  " in status.text_of(status.report_of([found], {}, "now"))


def test_a_file_that_is_no_certificate_is_told_of():
    found = row(certificates=[{"file": "/a", "days": None, "problem": "it holds no certificate", "pem": ""}])
    assert found["notes"] == ["/a: it holds no certificate"]


@pytest.mark.parametrize(
    ("state", "server", "ready"), list(itertools.product(["running"], ["active", "starting", "failed"], [True, False]))
)
def test_the_column_ready(state, server, ready):
    line = status.text_of(status.report_of([row(server=server, ready=ready)], {}, "now")).splitlines()[1]
    assert line.split()[5] == ("starting" if server == "starting" else "yes" if ready else "no")


def test_the_table():
    rows = [
        {**status.row(PLAIN, node("template"), {}), "host": "ctid_900"},
        row(there=node(differs=["cores"])),
    ]
    report = status.report_of(rows, {"pve": status.undeclared([
        {"vmid": 5, "exists": True, "template": False, "status": "stopped", "config": {}},
        {"vmid": 921, "exists": True, "template": False, "status": "running", "config": {}},
    ], [921])}, "now")  # fmt: skip
    assert status.text_of(report).splitlines() == [
        "CONTAINER  NAME  STATE     MODEL  RELEASE           READY  CERT  DRIFT",
        "ctid_900   llm   template  -      -                 -      -     -",
        "ctid_921   llm   running   tiny   cpu-0123456789ab  yes    -     cores",
        "",
        "pve also has, not declared: 5 (stopped).",
        "",
        "2 containers: 1 running, 1 ready, 0 not ready, 1 not as declared.",
    ]
    assert report["counts"] == {"containers": 2, "running": 1, "ready": 1, "not_ready": 0, "drift": 1}


def test_nodes_have_a_column_where_there_are_several():
    rows = [row(), {**row(), "node": "pve2"}]
    assert "NODE" in status.text_of(status.report_of(rows, {}, "now")).splitlines()[0]


def test_many_that_are_not_declared_are_counted():
    those = [{"ctid": number, "hostname": "", "state": "stopped"} for number in range(100, 113)]
    assert "109 (stopped) and 3 more." in status.text_of(status.report_of([], {"pve": those}, "now"))


def test_nothing_of_a_model_s_name_reaches_the_terminal():
    assert "\x1b" not in status.text_of(status.report_of([row(model="a\x1b[2Jb")], {}, "now"))


@pytest.mark.parametrize(("release", "stack", "is_of"), [
    ("cpu-0123456789ab", "cpu", True), ("cpu", "cpu", True), ("cpux-1", "cpu", False), ("gpu-1", "cpu", False),
])  # fmt: skip
def test_a_release_is_of_its_stack(release, stack, is_of):
    assert ("stack" not in row({**HOST, "stack": stack}, release=release, live_release=release)["drift"]) is is_of


def test_only_what_is_declared_is_compared():
    host = {"container_vmid": 1, "container_config": {"memory": 1}, "container_gpus": None, "container_raw": "",
            "verify_tests": {}, "phoenix_ctid": 1}  # fmt: skip
    assert status.declared([host]) == [{"container_vmid": 1, "container_config": {"memory": 1}}]
