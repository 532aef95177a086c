# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node by its REST API: what is made of its answers. (Against a server: tests/lab/test_api_refusals.py.)"""

from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import api, node
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Command
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from proxmoxer.core import ResourceException

PARAMS = {
    "api_host": "pve.example.com", "api_port": 8006, "api_user": "root@pam", "api_password": "x", "api_token_id": None,
    "api_token_secret": None, "validate_certs": True, "ca_path": None, "node": None,
}  # fmt: skip


class FakeApi:
    """proxmoxer's object: answers by path, and what was asked with which parameters."""

    def __init__(self, answers: dict) -> None:
        self.answers, self.asked = answers, []
        self.nodes = self("nodes")

    def __call__(self, path: str) -> FakeApi:
        it = FakeApi.__new__(FakeApi)
        it.answers, it.asked, it.path = self.answers, self.asked, path
        return it

    def __getattr__(self, name: str) -> FakeApi:
        return self(f"{self.path}/{name}")

    def get(self, **parameters):
        self.asked.append((f"GET {self.path}", parameters))
        answer = self.answers[self.path]
        answer = answer(parameters) if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def put(self, **parameters):
        self.asked.append((f"PUT {self.path}", parameters))
        answer = self.answers.get(f"PUT {self.path}")
        if isinstance(answer, Exception):
            raise answer
        return answer

    post = delete = put


CONFIG = {
    "digest": "d1", "description": "ä: one\ntwo\n", "memory": 512, "hostname": "web", "unprivileged": 1,
    "lxc": [["lxc.cap.drop", "sys_boot"]],
}  # fmt: skip
ANSWERS = {
    "nodes": [{"node": "pve"}],
    "version": {"release": "8.4"},
    "nodes/pve/lxc/700/config": lambda parameters: {"memory": 256} if "snapshot" in parameters else CONFIG,
    "nodes/pve/lxc/700/pending": [
        {"key": "memory", "value": 512}, {"key": "features", "pending": "nesting=1"}, {"key": "swap", "delete": 1},
    ],
    "nodes/pve/lxc/700/status/current": {"status": "running"},
    "nodes/pve/lxc/700/snapshot": [{"name": "good"}, {"name": "current"}],
}  # fmt: skip


@pytest.fixture
def there(monkeypatch):
    """A function that gives a node with these answers."""

    def make(answers: dict | None = None, **params) -> api.ApiNode:
        fake = FakeApi({**ANSWERS, **(answers or {})})
        monkeypatch.setattr(api, "ProxmoxAPI", lambda host, **login: fake)
        it = api.ApiNode({**PARAMS, **params})
        fake.asked.clear()
        return it

    return make


def test_a_container_is_what_its_conf_file_would_say(there):
    container = there().read(700)
    assert (container.exists, container.running, container.digest) == (True, True, "d1")
    assert container.started_with is None
    assert container.text == (
        "#%C3%A4%3A one\n#two\nhostname: web\nmemory: 512\nunprivileged: 1\nlxc.cap.drop: sys_boot\n"
        "\n[pve:pending]\ndelete: swap\nfeatures: nesting=1\n"
        "\n[good]\nmemory: 256\n"
    )


def test_a_container_that_there_is_not(there):
    error = ResourceException(500, "Internal", "Configuration file 'nodes/pve/lxc/700.conf' does not exist")
    assert there({"nodes/pve/lxc/700/config": error}).read(700) == Container()


def test_another_error_is_a_sentence(there):
    error = ResourceException(596, "x", "Connection timed out")
    with pytest.raises(node.NodeError, match=r"CTID 700 at pve.example.com:8006: Connection timed out"):
        there({"nodes/pve/lxc/700/config": error}).read(700)


def test_release(there):
    assert there().release() == (8, 4)


def test_a_change_names_its_digest(there):
    it = there()
    assert not it.request(Command("set", 700, (), (("memory", "1"),)).call, 10, "d1").failed
    assert it._api.asked == [("PUT nodes/pve/lxc/700/config", {"memory": "1", "digest": "d1"})]
    assert it.words(Command("set", 700, (), (("memory", "1"),))) == ["PUT", "/nodes/pve/lxc/700/config", "memory=1"]


@pytest.mark.parametrize(
    ("status", "rc", "stderr"), [("OK", 0, ""), ("WARNINGS: 1", 0, ""), ("no space left", 1, "no space left")]
)
def test_a_task_is_waited_for(there, monkeypatch, status, rc, stderr):
    monkeypatch.setattr(api.time, "sleep", lambda seconds: None)
    states = iter([{"status": "running"}, {"status": "running"}, {"status": "stopped", "exitstatus": status}])
    upid = "UPID:pve:1:2:3:vzstart:700:root@pam:"
    it = there({
        "PUT nodes/pve/lxc/700/status/start": upid,
        f"nodes/pve/tasks/{upid}/status": lambda parameters: next(states),
        f"nodes/pve/tasks/{upid}/log": [{"n": 1, "t": "said"}, {"n": 2, "t": f"TASK {status}"}],
    })  # fmt: skip
    done = it.request(Command("start", 700).call, 10)
    assert (done.rc, done.stdout, done.stderr) == (rc, "said", stderr)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ResourceException(400, "x", "Parameter verification failed.", errors={"memory": "type check\n"}),
            "Parameter verification failed. - memory: type check",
        ),
        (ResourceException(403, "x", "Permission check failed (/vms/700)"), "give the user or token a role"),
        (ResourceException(403, "x", "only allowed for root@pam"), "no token counts as root@pam"),
    ],
)
def test_a_refusal_is_a_sentence(there, error, words):
    done = there({"PUT nodes/pve/lxc/700/config": error}).request(Command("set", 700).call, 10)
    assert done.failed
    assert words in done.stderr


@pytest.mark.parametrize(
    ("text", "options", "refused"),
    [
        ("unprivileged: 1\n", {"memory": "1"}, ""),
        ("unprivileged: 1\n", {"dev0": "/dev/x"}, "dev0"),
        ("unprivileged: 1\ndev0: /dev/x\n", {"delete": "dev0,swap"}, "dev0"),
        ("unprivileged: 1\n", {"features": "nesting=1"}, ""),
        ("unprivileged: 1\nfeatures: keyctl=1\n", {"features": "keyctl=1,nesting=1"}, ""),
        ("unprivileged: 1\nfeatures: keyctl=1\n", {"features": "nesting=1"}, "features"),
        ("memory: 1\n", {"features": "nesting=1"}, "features"),
        ("unprivileged: 1\n", {"mp0": "/tank,mp=/m"}, "mp0"),
        ("unprivileged: 1\nmp0: /tank,mp=/m\n", {"delete": "mp0"}, "mp0"),
        ("unprivileged: 1\n", {"mp0": "local:8,mp=/m"}, ""),
        ("unprivileged: 1\n", {"hookscript": "x"}, "hookscript"),
    ],
)
def test_what_is_roots_alone(there, text, options, refused):
    command, container = Command("set", 700, (), tuple(options.items())), Container(exists=True, text=text)
    by_token = there(api_token_id="root@pam!name", api_token_secret="x").refusal(command, container)
    assert bool(by_token) == bool(refused)
    assert refused in by_token
    assert there().refusal(command, container) == ""
    assert there(api_user="me@pve").refusal(command, container) == by_token


def test_what_the_api_does_not_have(there):
    assert "the REST API has no `pct unlock 700`" in there().refusal(Command("unlock", 700), Container())


@pytest.mark.parametrize(("names", "wanted", "name"), [(["a"], None, "a"), (["a", "b"], "b", "b")])
def test_which_node_is_meant(there, names, wanted, name):
    assert there({"nodes": [{"node": each} for each in names]}, node=wanted).name == name


@pytest.mark.parametrize(("names", "wanted"), [(["a", "b"], None), (["a"], "c")])
def test_which_node_is_not_clear(there, names, wanted):
    with pytest.raises(node.NodeError, match=f"name one in `node`: {', '.join(names)}"):
        there({"nodes": [{"node": each} for each in names]}, node=wanted)


def test_without_proxmoxer(monkeypatch):
    monkeypatch.setattr(api, "ProxmoxAPI", None)
    with pytest.raises(node.NodeError, match="pip install proxmoxer requests"):
        api.ApiNode(PARAMS)
