# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_container, whole: options to plan to steps, on a node that is made of dictionaries."""

from __future__ import annotations

import functools

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import node, nodes, process
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container_plan import Memory
from ansible_collections.phoenix.hypervisor.plugins.modules import pct_container
from pve_model import PveModel

SOURCE = """\
dev0: /dev/a
dev1: /dev/b
features: nesting=1
hostname: source
memory: 512
net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=dhcp
rootfs: fast:base-900-disk-0,size=8G
template: 1
unprivileged: 1
lxc.cap.drop: sys_boot
"""


class FakeNode(PveModel):
    """A node with a template, and what an earlier run remembered of its containers."""

    def __init__(self) -> None:
        super().__init__()
        self.texts[900] = SOURCE
        self.memories: dict[int, Memory] = {}

    def attach(self, argv, timeout=None) -> process.Finished:
        assert argv[0] == "lxc-attach"
        return process.Finished(tuple(argv), 0, "running\n", "")


@pytest.fixture
def fake(monkeypatch) -> FakeNode:
    it = FakeNode()
    monkeypatch.setattr(nodes, "connect", lambda params: it)
    monkeypatch.setattr(node, "edit_raw", it.edit_raw)
    monkeypatch.setattr(node, "remembered", lambda vmid: it.memories.get(vmid, Memory()))
    monkeypatch.setattr(node, "remember", it.memories.__setitem__)
    monkeypatch.setattr(node, "nvidia_devices", dict)
    monkeypatch.setattr(node, "root_subids", lambda: {"u": [(100000, 65536)], "g": [(100000, 65536)]})
    monkeypatch.setattr(node, "owners", lambda paths: dict.fromkeys(paths, (0, 0)))
    monkeypatch.setattr(node, "running", lambda: set(it.started))
    monkeypatch.setattr(node, "log", lambda vmid: b"")
    monkeypatch.setattr(process, "run", it.attach)
    monkeypatch.setattr(pct_container.time, "sleep", lambda seconds: None)
    return it


@pytest.fixture
def run(fake, run_main):
    """A function that runs the module's main and gives what it returns."""
    return functools.partial(run_main, pct_container, vmid=700)


CASES = {
    "create": {
        "ostemplate": "local:vztmpl/x",
        "storage": "fast",
        "disk_gb": 8,
        "unprivileged": True,
        "state": "started",
    },
    "create bare": {"ostemplate": "local:vztmpl/x", "raw": ["lxc.cap.drop: a"]},
    "linked clone": {
        "clone": {"vmid": 900},
        "config": {"hostname": "x", "memory": 70},
        "devices": [{"path": "/dev/b"}],
    },
    "full clone": {"clone": {"vmid": 900}, "storage": "local", "raw": ["lxc.cap.drop: a", "lxc.cap.drop: b"]},
    "clone that grows": {"clone": {"vmid": 900}, "disk_gb": 9, "state": "started"},
    "clone to template": {"clone": {"vmid": 900}, "state": "template", "mounts": [{"source": "/a", "mp": "/a"}]},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
class TestNew:
    def test_what_check_mode_shows_is_what_is_done(self, fake, run, options):
        before = dict(fake.texts)
        shown = run(check=True, **options)
        assert fake.texts == before
        assert fake.calls == []
        done = run(**options)
        assert shown["changed"] is done["changed"] is True
        assert (shown["commands"], shown["steps"], shown["status"]) == (done["commands"], done["steps"], done["status"])
        assert shown["restart_required"] == done["restart_required"] == []
        assert [list(argv) for argv in fake.calls] == done["commands"]

    def test_a_second_run_does_nothing(self, fake, run, options):
        run(**options)
        text, calls = fake.texts[700], len(fake.calls)
        again = run(**options)
        assert (again["changed"], again["commands"], again["steps"]) == (False, [], [])
        assert (fake.texts[700], len(fake.calls)) == (text, calls)
        assert again["diff"]["before"] == again["diff"]["after"]


@pytest.mark.parametrize(
    "options",
    [
        {"config": {"memory": 70, "features": {"keyctl": 1, "nesting": 1}, "tags": "B,a", "description": "ä\n% x"}},
        {"config": {"net0": {"ip": "10.0.0.1/8"}}, "delete": ["swap"]},
        {"config": {"hostname": "other", "features": {}}, "restart": "never"},
        {"config": {"hostname": "other", "features": {}}, "raw": ["lxc.cap.drop: mknod"]},
        {"devices": [{"path": "/dev/b"}, {"path": "/dev/c", "mode": "0660"}]},
        {"mounts": [{"source": "/a", "mp": "/a", "ro": True}], "disk_gb": 20},
        {"raw": ["lxc.cap.drop = x"], "state": "started"},
        {"state": "stopped"},
        {"state": "absent"},
    ],
)
@pytest.mark.parametrize("is_running", [True, False])
def test_a_change_is_shown_done_and_not_done_again(fake, run, options, is_running):
    fake.texts[700] = SOURCE.replace("template: 1\n", "")
    if is_running:
        fake._start(700, (), {})
    shown = run(check=True, **options)
    done = run(**options)
    assert {**shown, "invocation": None} == {**done, "invocation": None}
    assert run(**options)["changed"] is False


def failed(argv: str, stderr: str) -> process.Finished:
    return process.Finished(("pct", *argv.split()), 255, "", stderr)


class TestFailures:
    def test_somebody_elses_change_is_planned_again_and_not_overwritten(self, fake, run, monkeypatch):
        fake.texts[700] = SOURCE.replace("template: 1\n", "")
        do = fake.run
        other_writer = iter(["cores: 3\n", "swap: 7\n"])

        def run_after_another(command, timeout=0, digest=""):
            fake.texts[700] = next(other_writer, "") + fake.texts[700]
            return do(command, timeout, digest)

        monkeypatch.setattr(fake, "run", run_after_another)
        done = run(config={"memory": 70, "cores": 2})
        assert done["commands"] == [["pct", "set", "700", "--cores", "2", "--memory", "70"]]
        assert fake.read(700).conf.main.values["swap"] == "7"
        assert len(fake.calls) == 3

    def test_somebody_who_never_stops_changing_it(self, fake, run, monkeypatch):
        fake.texts[700] = SOURCE.replace("template: 1\n", "")
        fake.answers["set"] = [failed("set 700", "detected modified configuration - file changed by other user?")] * 99
        result = run(config={"memory": 70})
        assert "detected modified configuration" in result["msg"]
        assert len(fake.calls) < 20

    def test_a_step_that_has_no_effect_is_not_done_for_ever(self, fake, run, monkeypatch):
        fake.texts[700] = SOURCE.replace("template: 1\n", "")
        fake.answers["set"] = [process.Finished(("pct", "set"), 0, "", "")] * 99
        assert "was done, and is to be done again" in run(config={"memory": 70})["msg"]

    @pytest.mark.parametrize("is_running", [True, False])
    def test_a_restart_is_one(self, fake, run, is_running):
        fake.texts[700] = SOURCE.replace("template: 1\n", "")
        if is_running:
            fake._start(700, (), {})
        shown = run(check=True, state="restarted")
        done = run(state="restarted")
        assert shown["commands"] == done["commands"] == [["pct", "reboot" if is_running else "start", "700"]]

    @pytest.mark.parametrize(
        ("state", "name"),
        [("started", "start"), ("stopped", "shutdown"), ("absent", "destroy"), ("template", "template")],
    )
    def test_who_did_the_same_first_is_thanked(self, fake, run, monkeypatch, state, name):
        fake.texts[700] = SOURCE.replace("template: 1\n", "")
        if state == "stopped":
            fake._start(700, (), {})

        def overtaken(vmid, arguments, options) -> None:
            getattr(PveModel, f"_{name}")(fake, vmid, arguments, options)
            raise RuntimeError

        monkeypatch.setattr(fake, f"_{name}", overtaken)
        do = fake.run

        def run_late(command, timeout=0, digest=""):
            try:
                return do(command, timeout, digest)
            except RuntimeError:
                return failed(f"{name} 700", f"CT 700 is {state} already")

        monkeypatch.setattr(fake, "run", run_late)
        assert run(state=state)["changed"] is False

    def test_what_is_being_made_is_waited_for(self, fake, run, monkeypatch):
        fake.texts[700] = "lock: create\n"
        fake.at_work[700] = ["the task vzclone of root@pam"]
        waited = []

        def made_meanwhile(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 5:
                fake.texts[700] = SOURCE.replace("template: 1\n", "")

        monkeypatch.setattr(pct_container.time, "sleep", made_meanwhile)
        assert run(clone={"vmid": 900}, config={"memory": 512})["changed"] is False
        assert fake.calls == []

    def test_what_is_being_made_for_too_long(self, fake, run, monkeypatch):
        fake.texts[700] = "lock: create\n"
        fake.at_work[700] = ["the task vzclone of root@pam"]
        clock = iter(range(0, 10_000, 10))
        monkeypatch.setattr(pct_container.time, "monotonic", lambda: next(clock))
        result = run(clone={"vmid": 900}, timeout=60)
        assert "CTID 700 is being made by the task vzclone of root@pam; waited 60 s" in result["msg"]

    def test_what_a_killed_clone_left_is_made_anew(self, fake, run):
        fake.texts[700] = "lock: create\n"
        done = run(clone={"vmid": 900})
        assert [argv[1] for argv in done["commands"]] == ["unlock", "destroy", "clone"]

    def test_what_it_wrote_is_remembered_and_goes_when_it_is_declared_no_more(self, fake, run):
        fake.texts[700] = SOURCE.replace("template: 1\n", "lxc.group: by hand\n")
        run(raw=["lxc.cap.keep: chown"], mounts=[{"source": "/tank", "mp": "/m"}])
        assert fake.memories[700] == Memory((("lxc.cap.keep", "chown"),), (), {"/m": "/tank"})
        done = run(raw=[], mounts=[])
        assert done["steps"] == ["mp0: /tank,mp=/m → nothing", "raw lines: lxc.cap.keep: chown → nothing"]
        assert "lxc.group: by hand" in fake.texts[700]
        assert fake.memories[700] == Memory()

    def test_a_run_that_is_killed_has_said_what_it_would_write(self, fake, run, monkeypatch):
        fake.texts[700] = SOURCE.replace("template: 1\n", "")

        def killed(*arguments) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(node, "edit_raw", killed)
        with pytest.raises(KeyboardInterrupt):
            run(raw=["lxc.cap.keep: chown"])
        assert fake.memories[700].raw == (("lxc.cap.keep", "chown"),)

    @pytest.mark.parametrize(
        ("command", "options"),
        [("template", {"state": "template"}), ("resize", {"disk_gb": 20}), ("destroy", {"state": "absent"})],
    )
    def test_a_command_that_ends_with_0_without_its_effect(self, fake, run, command, options):
        fake.texts[700] = SOURCE.replace("template: 1\n", "")
        fake.answers[command] = [process.Finished(("pct", command, "700"), 0, "", "worker: disk quota")]
        result = run(**options)
        assert result["failed"]
        assert result["msg"].startswith(f"CTID 700: `pct {command} 700` ended with 0: worker: disk quota - without")

    def test_a_container_that_does_not_start(self, fake, run, monkeypatch):
        logs = iter([b"old ERROR\n", b"old ERROR\n0 ERROR why\n"])
        monkeypatch.setattr(node, "log", lambda vmid: next(logs))
        fake.answers["start"] = [failed("start 700", "startup for container '700' failed")]
        message = run(clone={"vmid": 900}, state="started")["msg"]
        assert message.splitlines()[:2] == [
            "CTID 700 doesn't start: startup for container '700' failed. The last lines of /var/log/lxc/700.log:",
            "0 ERROR why",
        ]
        assert "Done before that: it does not exist; a linked clone of 900" in message
        monkeypatch.setattr(node, "log", lambda vmid: b"")
        again = run(clone={"vmid": 900}, state="started")
        assert again["commands"] == [["pct", "start", "700"]]

    def test_a_container_that_stops_while_it_boots(self, fake, run, monkeypatch):
        def attach(argv, timeout=None):
            fake.started.clear()
            return process.Finished(tuple(argv), 1, "", "")

        monkeypatch.setattr(process, "run", attach)
        assert "700 stopped by itself while it was starting" in run(clone={"vmid": 900}, state="started")["msg"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "700 does not exist"),
            ({"clone": {"vmid": 901}}, "901, which does not exist on this node"),
            ({"clone": {"vmid": 900}, "unprivileged": False}, "is unprivileged and is declared privileged"),
            ({"clone": {"vmid": 900}, "disk_gb": 7}, "never shrinks"),
            ({"clone": {"vmid": 900}, "config": {"net0": "eth0"}}, "CTID 700: net0: 'eth0'"),
            ({"clone": {"vmid": 900}, "raw": ["x"]}, "correct lxc_options"),
            ({"clone": {"vmid": 900}, "config": {"memry": 1}}, "did you mean memory?"),
            ({"clone": {"vmid": 900}, "gpus": [0]}, "the node has no /dev/nvidia0"),
            ({"clone": {"vmid": 900}, "raw": ["lxc.idmap: u 0 0 1"]}, "add root:0:1 to /etc/subuid"),
        ],
    )
    def test_what_can_not_be_is_said_before_anything_changes(self, fake, run, options, words):
        result = run(**options)
        assert result["failed"]
        assert words in result["msg"]
        assert fake.calls == []
        assert 700 not in fake.texts

    def test_check_mode_assumes_a_source_that_the_run_would_have_made(self, fake, run):
        shown = run(check=True, clone={"vmid": 901}, unprivileged=True, disk_gb=8, state="started")
        assert [argv[1] for argv in shown["commands"]] == ["clone", "start"]
