# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_container, whole: options to plan to steps, on a node that is made of dictionaries."""

from __future__ import annotations

import io
import json

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.phoenix.hypervisor.plugins.module_utils import node, pct_conf, process
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container_plan import Container
from ansible_collections.phoenix.hypervisor.plugins.modules import pct_container

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


class FakeNode:
    """Conf files and running containers, changed by the pct commands that the module runs."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {900: SOURCE}
        self.running: set[int] = set()
        self.calls: list[tuple[str, ...]] = []
        # Answers that are given instead of doing a command, by the command, one each time.
        self.answers: dict[str, list[process.Finished]] = {}

    def read(self, vmid: int) -> Container:
        if vmid not in self.texts:
            return Container()
        return Container(exists=True, running=vmid in self.running, text=self.texts[vmid])

    def write(self, vmid: int, text: str, expected: str) -> None:
        assert self.texts[vmid] == expected
        self.texts[vmid] = text

    def run(self, argv, timeout=None) -> process.Finished:
        argv = tuple(argv)
        if argv[0] == "lxc-attach":
            return process.Finished(argv, 0, "running\n", "")
        self.calls.append(argv)
        if self.answers.get(argv[1]):
            return self.answers[argv[1]].pop(0)
        getattr(self, argv[1])(int(argv[3] if argv[1] == "clone" else argv[2]), list(argv[3:]))
        return process.Finished(argv, 0, "", "")

    def create(self, vmid: int, words: list[str]) -> None:
        self.texts[vmid] = "memory: 512\nrootfs: local:x,size=4G\n"
        self.set(vmid, words[1:])

    def clone(self, vmid: int, words: list[str]) -> None:
        conf = pct_conf.parse(self.texts[900])
        conf.main.values.pop("template", None)
        self.texts[vmid] = pct_conf.render(conf.main)
        if "--hostname" in words:
            self.set(vmid, ["--hostname", words[words.index("--hostname") + 1]])

    def set(self, vmid: int, words: list[str]) -> None:
        conf = pct_conf.parse(self.texts[vmid])
        for option, value in zip(words[::2], words[1::2]):
            if option == "--delete":
                for key in value.split(","):
                    del conf.main.values[key]
            elif option == "--rootfs":
                conf.main.values["rootfs"] = f"{value.split(':')[0]}:vm-disk-0,size={value.split(':')[1]}G"
            elif option == "--description":
                conf.main.description = f"{value}\n"
            else:
                conf.main.values[option[2:]] = value
        self.texts[vmid] = pct_conf.render_conf(conf)

    def resize(self, vmid: int, words: list[str]) -> None:
        assert words[0] == "rootfs"
        self.texts[vmid] = self.texts[vmid].replace("size=8G", f"size={words[1]}")

    def start(self, vmid: int, words: list[str]) -> None:
        self.running.add(vmid)

    def reboot(self, vmid: int, words: list[str]) -> None:
        assert vmid in self.running

    def shutdown(self, vmid: int, words: list[str]) -> None:
        self.running.remove(vmid)

    stop = shutdown

    def template(self, vmid: int, words: list[str]) -> None:
        self.set(vmid, ["--template", "1"])

    def destroy(self, vmid: int, words: list[str]) -> None:
        del self.texts[vmid]


@pytest.fixture
def fake(monkeypatch) -> FakeNode:
    it = FakeNode()
    monkeypatch.setattr(node, "read", it.read)
    monkeypatch.setattr(node, "write", it.write)
    monkeypatch.setattr(node, "running", lambda: it.running)
    monkeypatch.setattr(node, "storage_types", lambda: {"fast": "zfspool", "local": "dir"})
    monkeypatch.setattr(node, "log", lambda vmid: b"")
    monkeypatch.setattr(process, "run", it.run)
    monkeypatch.setattr(pct_container.time, "sleep", lambda seconds: None)
    return it


@pytest.fixture
def run(fake, monkeypatch):
    """A function that runs the module's main and gives what it returns."""

    def call(check: bool = False, **options) -> dict:
        out = io.StringIO()
        monkeypatch.setattr(basic.sys, "stdout", out)
        with patch_module_args({"vmid": 700, **options, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            pct_container.main()
        return json.loads(out.getvalue())

    return call


CASES = {
    "create": {
        "ostemplate": "local:vztmpl/x",
        "storage": "fast",
        "disk_gb": 8,
        "unprivileged": True,
        "state": "started",
    },
    "create bare": {"ostemplate": "local:vztmpl/x", "raw": ["lxc.cap.drop: a"]},
    "linked clone": {"clone": {"vmid": 900}, "config": {"hostname": "x", "memory": 7}, "devices": [{"path": "/dev/b"}]},
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
        {"config": {"memory": 7, "features": {"keyctl": 1, "nesting": 1}, "tags": "B,a", "description": "ä\n% x"}},
        {"config": {"net0": {"ip": "10.0.0.1/8"}}, "delete": ["memory"]},
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
    fake.running = {700} if is_running else set()
    shown = run(check=True, **options)
    done = run(**options)
    assert {**shown, "invocation": None} == {**done, "invocation": None}
    assert run(**options)["changed"] is False


def failed(argv: str, stderr: str) -> process.Finished:
    return process.Finished(("pct", *argv.split()), 255, "", stderr)


class TestFailures:
    def test_a_source_that_another_clone_locks_is_waited_for(self, fake, run):
        fake.answers["clone"] = [failed("clone 900 700", "CT is locked (disk)")] * 3
        assert run(clone={"vmid": 900})["changed"]
        assert [argv[1] for argv in fake.calls] == ["clone"] * 4

    def test_a_source_that_stays_locked(self, fake, run, monkeypatch):
        clock = iter(range(0, 10_000, 100))
        monkeypatch.setattr(pct_container.time, "monotonic", lambda: next(clock))
        fake.answers["clone"] = [failed("clone 900 700", "CT is locked (disk)")] * 50
        result = run(clone={"vmid": 900}, timeout=300)
        assert result["failed"]
        assert "pct unlock" in result["msg"]

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
            if argv[0] != "lxc-attach":
                return fake.run(argv, timeout)
            fake.running.clear()
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
