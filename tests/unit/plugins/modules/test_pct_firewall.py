# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_firewall, whole: on a file, and on an API that does what Proxmox's does."""

from __future__ import annotations

import functools
import json

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import firewall, nodes
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.firewall import Rule
from ansible_collections.phoenix.hypervisor.plugins.module_utils.process import Finished
from ansible_collections.phoenix.hypervisor.plugins.modules import pct_firewall

CONF = "hostname: one\nnet0: name=eth0,bridge=vmbr0,firewall=1\nrootfs: x:y\n"
SSH = {"type": "in", "action": "SSH(ACCEPT)"}
WEB = {"type": "in", "action": "ACCEPT", "proto": "tcp", "dport": "443"}
DROP = {"type": "in", "action": "DROP"}
RULES = {"ssh": Rule("in", "ACCEPT", "SSH"), "web": Rule("in", "ACCEPT", proto="tcp", dport="443"),
         "drop": Rule("in", "DROP")}  # fmt: skip


class FakeNode:
    """A node with one container. Its API puts new rules first, and moves them to before another's place."""

    def __init__(self, is_local: bool) -> None:
        self.is_local = is_local
        self.conf = CONF
        self.rules: list[dict] = []
        self.options: dict = {}
        self.requests: list[str] = []
        # What somebody else does after so many requests, and what the API says instead of doing one.
        self.interrupts: dict = {}
        self.refusals: dict[int, str] = {}
        # The enabled rules after each request.
        self.seen: list[list[str]] = []

    def read(self, vmid: int) -> Container:
        return Container(exists=bool(self.conf), text=self.conf) if vmid == 700 else Container()

    def digest(self) -> str:
        return json.dumps([self.rules, self.options])

    def get(self, path: str) -> object:
        if path == "lxc/700/firewall/options":
            return {**self.options, "digest": self.digest()}
        assert path == "lxc/700/firewall/rules"
        return [{**rule, "pos": pos, "digest": self.digest()} for pos, rule in enumerate(self.rules)]

    def request(self, call, timeout: float, digest: str) -> Finished:
        words = (call.method, call.path)
        self.requests.append(" ".join(words))
        if len(self.requests) in self.interrupts:
            self.interrupts[len(self.requests)]()
        if len(self.requests) in self.refusals:
            return Finished(words, 1, "", self.refusals[len(self.requests)])
        if digest and digest != self.digest() and call.method != "POST":
            return Finished(words, 1, "", "detected modified configuration - file changed by other user? Try again.")
        self.do(call.method, call.path.rpartition("/")[2], dict(call.parameters))
        self.seen.append([firewall.from_api(rule).line for rule in self.rules if rule["enable"]])
        return Finished(words, 0, "", "")

    def do(self, method: str, last: str, given: dict) -> None:
        if "enable" in given:
            given["enable"] = int(given["enable"])
        if last == "options":
            self.options.update(given)
        elif method == "POST":
            self.rules.insert(0, given)
        elif method == "DELETE":
            del self.rules[int(last)]
        elif "moveto" in given:
            assert list(given) == ["moveto"]
            target, rule = int(given["moveto"]), self.rules.pop(int(last))
            self.rules.insert(target if target <= int(last) else target - 1, rule)
        else:
            for name in filter(None, given.pop("delete", "").split(",")):
                del self.rules[int(last)][name]
            self.rules[int(last)].update(given)

    def has(self, *names: str) -> None:
        self.rules = [{**firewall.to_api(RULES[name]), "enable": 1} for name in names]

    @property
    def lines(self) -> list[str]:
        return [firewall.from_api(rule).line for rule in self.rules]


@pytest.fixture
def api(monkeypatch) -> FakeNode:
    it = FakeNode(is_local=False)
    monkeypatch.setattr(nodes, "connect", lambda params: it)
    return it


@pytest.fixture
def file(monkeypatch, tmp_path):
    """The file of the container on a node that the module runs on."""
    it = FakeNode(is_local=True)
    monkeypatch.setattr(nodes, "connect", lambda params: it)
    monkeypatch.setattr(pct_firewall, "_FIREWALLS", str(tmp_path / "firewall"))
    # Nobody but root may give a file away.
    monkeypatch.setattr(pct_firewall.os, "fchown", lambda *_words: None)
    return tmp_path / "firewall/700.fw"


@pytest.fixture
def run(run_main):
    """A function that runs the module's main and gives what it returns."""
    return functools.partial(run_main, pct_firewall, vmid=700)


# --- by the API ---------------------------------------------------------------------------------------------------


def test_a_new_rule_counts_only_in_its_place(api, run):
    """The API puts it before all others; an ACCEPT must not be there for a moment."""
    api.has("ssh", "drop")
    done = run(rules=[SSH, DROP, WEB])
    assert api.lines == ["IN SSH(ACCEPT)", "IN DROP", "IN ACCEPT -p tcp -dport 443"]
    before, after = ["IN SSH(ACCEPT)", "IN DROP"], ["IN SSH(ACCEPT)", "IN DROP", "IN ACCEPT -p tcp -dport 443"]
    assert api.seen == [before, before, after]
    assert done["steps"] == ["rule 2 is inserted: IN ACCEPT -p tcp -dport 443"]
    assert run(rules=[SSH, DROP, WEB])["changed"] is False
    assert len(api.requests) == 3


def test_a_rule_that_is_to_be_first_or_off_needs_less(api, run):
    api.has("drop")
    run(rules=[SSH, DROP, {**WEB, "enable": False}])
    assert api.requests == [
        "POST lxc/700/firewall/rules",
        "POST lxc/700/firewall/rules",
        "PUT lxc/700/firewall/rules/0",
    ]
    assert api.lines == ["IN SSH(ACCEPT)", "IN DROP", "|IN ACCEPT -p tcp -dport 443"]


def test_a_changed_rule_is_changed_in_its_place(api, run):
    api.has("ssh", "web", "drop")
    run(rules=[SSH, {"type": "in", "action": "HTTPS(ACCEPT)", "comment": "web"}, DROP])
    assert api.requests == ["PUT lxc/700/firewall/rules/1"]
    assert api.rules[1] == {"type": "in", "action": "ACCEPT", "macro": "HTTPS", "comment": "web", "enable": 1}


def test_insertions_then_options_then_deletions(api, run):
    api.has("ssh", "drop")
    done = run(enabled=True, policy_in="ACCEPT", rules=[WEB, SSH])
    assert api.requests == [
        "POST lxc/700/firewall/rules",
        "PUT lxc/700/firewall/options",
        "DELETE lxc/700/firewall/rules/2",
    ]
    assert api.options == {"enable": 1, "policy_in": "ACCEPT"}
    assert [step.split()[0] for step in done["steps"]] == ["rule", "enable", "policy_in", "rule"]


@pytest.mark.parametrize("when", [1, 2, 3, 4])
def test_whoever_comes_between_is_seen(api, run, when):
    """Another's rule, at any moment: it is never taken for one of ours, and at the end all is as declared."""
    api.has("ssh", "drop")
    api.interrupts[when] = lambda: api.rules.insert(0, {"type": "out", "action": "REJECT", "enable": 1})
    run(rules=[SSH, WEB])
    assert api.lines == ["IN SSH(ACCEPT)", "IN ACCEPT -p tcp -dport 443"]


def test_whoever_never_stops_is_told_of(api, run):
    api.interrupts = {
        number: lambda: api.rules.insert(0, {"type": "out", "action": "REJECT", "enable": 1}) for number in range(99)
    }
    done = run(rules=[SSH])
    assert done["failed"]
    assert "CTID 700" in done["msg"]
    assert "somebody else" in done["msg"]


def test_a_refusal_says_what_was_done_before(api, run):
    api.refusals[2] = "Permission check failed (/vms/700, VM.Config.Network)"
    done = run(rules=[SSH], enabled=True)
    assert done["failed"]
    assert done["msg"].startswith("CTID 700: `PUT lxc/700/firewall/options` ended with 1: Permission check failed")
    assert "Done before that: rule 0 is inserted: IN SSH(ACCEPT)" in done["msg"]
    assert done["steps"] == ["rule 0 is inserted: IN SSH(ACCEPT)"]
    api.refusals.clear()
    assert run(rules=[SSH], enabled=True)["steps"] == ["enable becomes 1 (it was 0)"]


@pytest.mark.parametrize("when", [1, 2, 3, 4, 5, 6])
def test_a_run_that_ends_anywhere_is_finished_by_the_next(api, run, when):
    api.has("drop", "ssh")
    api.refusals[when] = "read timeout"
    run(enabled=True, rules=[SSH, WEB, DROP])
    api.refusals.clear()
    assert not run(enabled=True, rules=[SSH, WEB, DROP]).get("failed")
    assert api.lines == ["IN SSH(ACCEPT)", "IN ACCEPT -p tcp -dport 443", "IN DROP"]
    assert run(enabled=True, rules=[SSH, WEB, DROP])["changed"] is False


def test_check_mode_asks_for_nothing(api, run):
    api.has("ssh")
    done = run(check=True, enabled=True, rules=[DROP])
    assert done["steps"] == ["rule 0 becomes IN DROP (it was IN SSH(ACCEPT))", "enable becomes 1 (it was 0)"]
    assert api.requests == []
    assert done["diff"]["before"] == (
        "[OPTIONS]\nenable: 0\npolicy_in: DROP\npolicy_out: ACCEPT\n\n[RULES]\nIN SSH(ACCEPT)\n"
    )
    assert done["diff"]["after"] == ("[OPTIONS]\nenable: 1\npolicy_in: DROP\npolicy_out: ACCEPT\n\n[RULES]\nIN DROP\n")


# --- by the file --------------------------------------------------------------------------------------------------


def test_the_file_is_written_once_and_in_one_piece(file, run, monkeypatch):
    renamed = []
    real = pct_firewall.os.replace
    monkeypatch.setattr(pct_firewall.os, "replace", lambda old, new: (renamed.append(old), real(old, new)))
    done = run(enabled=True, rules=[SSH, DROP])
    assert file.read_text() == "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\nIN SSH(ACCEPT)\nIN DROP\n\n"
    assert len(done["steps"]) == 3
    assert len(renamed) == 1
    assert renamed[0].startswith(str(file))
    assert file.stat().st_mode & 0o777 == 0o640
    assert run(enabled=True, rules=[SSH, DROP])["changed"] is False
    assert len(renamed) == 1


def test_another_writer_is_not_overwritten(file, run, monkeypatch):
    """Between the look and the rename: both changes are there at the end."""
    real = firewall.edit_text
    others = ["[OPTIONS]\ndhcp: 1\n\n[RULES]\n# another\nOUT REJECT\n"]

    def edit(text, plan):
        if others:
            file.write_text(others.pop())
        return real(text, plan)

    monkeypatch.setattr(firewall, "edit_text", edit)
    done = run(enabled=True)
    assert file.read_text() == "[OPTIONS]\ndhcp: 1\nenable: 1\n\n[RULES]\n# another\nOUT REJECT\n"
    assert done["steps"] == ["enable becomes 1 (it was 0)"]
    assert [path.name for path in file.parent.iterdir()] == ["700.fw"]


def test_a_full_disk_leaves_the_old_rules(file, run, monkeypatch):
    run(rules=[SSH])

    def full(*_words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pct_firewall.os, "replace", full)
    done = run(rules=[DROP])
    assert done["failed"]
    assert f"{file} can't be written: No space left on device" in done["msg"]
    assert "IN SSH(ACCEPT)" in file.read_text()
    assert [path.name for path in file.parent.iterdir()] == ["700.fw"]


def test_lines_that_are_no_rules_are_told_of_and_stay(file, run):
    file.parent.mkdir()
    file.write_text("[RULES]\nIN ACCEPT -port 22\n")
    done = run(rules=[SSH])
    assert "IN ACCEPT -port 22" in json.dumps(done["warnings"])
    assert file.read_text() == "[RULES]\nIN SSH(ACCEPT)\nIN ACCEPT -port 22\n"


def test_a_firewall_at_no_interface_is_told_of():
    def said(conf: str, **options: str) -> list[str]:
        declared = firewall.Declared(options, None)
        return pct_firewall.warnings(700, declared, Container(exists=True, text=conf), firewall.Content({}, ()))

    off = CONF.replace("firewall=1", "firewall=0")
    (warning,) = said(off, enable="1")
    assert "pct set 700 --net0 name=eth0,bridge=vmbr0,firewall=1" in warning
    assert said(off, enable="0") == said(off, policy_in="DROP") == said(CONF, enable="1") == []
    # What waits for a restart counts.
    assert said(f"{off}\n[pve:pending]\nnet0: name=eth0,firewall=1\n", enable="1") == []


def test_nothing_is_looked_at_before_the_rules_are_checked(monkeypatch, run):
    monkeypatch.setattr(nodes, "connect", lambda params: pytest.fail("a node was asked"))
    done = run(rules=[SSH, {"type": "in", "action": "ALLOW"}])
    assert done["msg"] == (
        "CTID 700, rules[1].action: 'ALLOW' is no action; write ACCEPT, DROP or REJECT, with a macro as in SSH(ACCEPT)"
    )
    assert done["steps"] == []
