# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models that are fetched ahead and shared between real containers. Needs a lab that is up; CTIDs 658 and 659.

The hub is one on this machine (tests/support/model_hub.py), the inventory a JSON file as a user writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import model_hub
import pytest
from lab_modules import OSTEMPLATE, ROOT, destroy, inside, open_folder, pct, require_lab, wait_until
from model_hub import FakeHub, Model

pytestmark = pytest.mark.lab

READER, WRITER = 658, 659
NAME = "org/name"
BIG = random.Random(7).randbytes(6_000_000)
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": BIG, "sub/vocab.txt": b"a\n"}
TOKEN = "hf_right"


class Site:
    """A JSON file with two containers, and playbooks that run on them."""

    def __init__(self, folder: Path, hub: FakeHub) -> None:
        self.folder, self.hub = folder, hub
        self.models = folder / "tank"
        self.models.mkdir(mode=0o755)
        self.write()

    def write(self, **more: str) -> None:
        """The JSON file; more is of both ModelConfigs."""
        mount = {"host_path": str(self.models), "container_path": "/models"}
        address = "10.92.0.{}/24"
        mounts = {READER: {**mount, "read_only": True}, WRITER: {**mount, "owner_uid": 1000, "owner_gid": 1000}}
        entries = {
            str(ctid): {
                "name": f"models{ctid}", "template": OSTEMPLATE, "memory_mb": 256, "cores": 1,
                "storage_pool": "local-btrfs", "storage_size_gb": 1, "pct_options": ["nesting=1"],
                "network_config": {
                    "name": "eth0", "bridge": "vmbr0", "ip": address.format(ctid - 590), "gw": "10.92.0.1",
                },
                "mount_points": [mounts[ctid]],
                "vllm_engine_config": {"ModelConfig": {"model": f"/models/{NAME}", **more}},
            }
            for ctid in (READER, WRITER)
        }  # fmt: skip
        (self.folder / "configs.json").write_text(json.dumps({"lxc_configs": entries}))
        node = {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
            "models_endpoint": self.hub.endpoint, "vllm_model_server_huggingface_token": TOKEN,
        }  # fmt: skip
        source = {
            "plugin": "phoenix.hypervisor.lxc_configs", "config_files": ["configs.json"], "nodes": {"pve": node},
        }  # fmt: skip
        (self.folder / "lxc_configs.yml").write_text(json.dumps(source))
        tasks = [{"ansible.builtin.include_role": {"name": "phoenix.hypervisor.container"}}]
        play = [{"hosts": "phoenix_containers", "gather_facts": False, "tasks": tasks}]
        (self.folder / "containers.yml").write_text(json.dumps(play))

    def start(self, playbook: str, *words: str, **variables: object) -> subprocess.Popen:
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.folder / "lxc_configs.yml"),
            playbook, "-e", json.dumps(variables), *words,
        ]  # fmt: skip
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, playbook: str, *words: str, code: int = 0, **variables: object) -> str:
        """Run a playbook. Returns what it said, as one line."""
        process = self.start(playbook, *words, **variables)
        said, _nothing = process.communicate(timeout=240)
        assert process.returncode == code, said
        return " ".join(said.replace("''", "'").split())

    def fetch(self, *words: str, code: int = 0, **variables: object) -> str:
        """Run the playbook models."""
        return self.run("playbooks/models.yml", *words, code=code, **variables)

    @property
    def job(self) -> dict:
        """What the process that fetches wrote last."""
        path = self.models / "org/.name/.job.json"
        return json.loads(path.read_text()) if path.exists() else {"ended": True, "pid": 0}

    def revisions(self) -> set[str]:
        return {entry.name for entry in (self.models / "org/.name").iterdir() if entry.name[0] != "."}


def as_nobody(ctid: int, script: str) -> str:
    """What a shell script prints in a container, run by a user who is nobody there."""
    return inside(ctid, f"setpriv --reuid=65534 --regid=65534 --clear-groups sh -c {shlex.quote(script)}")


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with model_hub.serving() as fake:
        fake.models[NAME] = Model(gated="yes")
        fake.models[NAME].push(FILES)
        yield fake


@pytest.fixture(scope="module")
def site(hub) -> Iterator[Site]:
    """Two containers, made from the JSON file after the models are there; gone afterwards."""
    require_lab()
    destroy(READER, WRITER)
    with open_folder() as folder:
        yield Site(folder, hub)
        destroy(READER, WRITER)


def test_killed_and_gone_on_with_and_nobody_sees_the_token(site, hub):
    shown = site.fetch("--check", "--diff")
    assert f"fetch {NAME} (main, " in shown and not (site.models / "org").exists()
    hub.slow = 0.15
    process = site.start("playbooks/models.yml", "-vvv")
    wait_until(lambda: site.job["pid"] and "MiB" in site.job["text"] and hub.sent["model.safetensors"] > 1_000_000, 60)
    argv = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    os.kill(site.job["pid"], signal.SIGKILL)
    said, _nothing = process.communicate(timeout=120)
    assert process.returncode == 2 and "was killed" in said
    assert not (site.models / NAME).exists() and site.revisions() == set()
    before, hub.slow = hub.sent["model.safetensors"], 0
    said += site.fetch("-vvv")
    assert (site.models / NAME / "model.safetensors").read_bytes() == BIG
    assert hub.sent["model.safetensors"] - before < len(BIG) - 500_000, "it began again"
    files = [file.read_bytes() for file in site.models.rglob("*") if file.is_file()]
    assert TOKEN not in said and not any(TOKEN.encode() in each for each in [*argv, *files])
    assert {server for server, _login in hub.logins} == {"hub"}


def test_fetched_once_for_both_and_then_nothing_changes(site, hub):
    count = len(hub.requests)
    said = site.fetch()
    assert "is fetched with ctid_658, for both" in said and "changed=1" not in said
    # One look at the branch, and no file.
    assert len(hub.requests) == count + 1 and "/revision/main" in hub.requests[-1][2]


def test_both_read_and_neither_changes_it(site):
    site.run(str(site.folder / "containers.yml"))
    assert "changed=1" not in site.run(str(site.folder / "containers.yml"))
    for ctid in (READER, WRITER):
        assert as_nobody(ctid, f"cd /models/{NAME} && cat config.json sub/vocab.txt") == '{"model_type": "llama"}a'
        digest = as_nobody(ctid, f"sha256sum </models/{NAME}/model.safetensors").split()[0]
        assert digest == hashlib.sha256(BIG).hexdigest()
        for change in (f"echo x >/models/{NAME}/config.json", f"rm /models/{NAME}/config.json", "touch /models/org/x"):
            assert inside(ctid, f"({change}) 2>/dev/null || echo no") == "no"
    # The owner of the mounted folder is who was declared, inside; that's where the other may add a model.
    assert inside(WRITER, "stat -c %u /models; touch /models/own && echo yes") == "1000\nyes"
    assert inside(READER, "(touch /models/x) 2>&1 || true").endswith("Read-only file system")
    assert ",ro=1" in pct("config", str(READER)) and "ro=1" not in pct("config", str(WRITER))


def test_a_new_revision_comes_beside_the_one_that_is_open(site, hub):
    (old,) = site.revisions()
    holder = f"echo $$ >/run/holder; exec sleep 300 9</models/{NAME}/sub/vocab.txt"
    inside(READER, f"nohup sh -c '{holder}' >/dev/null 2>&1 &")
    wait_until(lambda: inside(READER, "cat /run/holder 2>/dev/null || true"))
    new = hub.models[NAME].push({**FILES, "config.json": b"{}", "sub/vocab.txt": b"b\n"})
    hub.sent.clear()
    said = site.fetch(models_keep=1)
    assert f"at {new[:12]}, in place of {old[:12]}" in said
    assert dict(hub.sent) == {"config.json": 2, "sub/vocab.txt": 2}
    for ctid in (READER, WRITER):
        assert as_nobody(ctid, f"cat /models/{NAME}/sub/vocab.txt") == "b"
    assert inside(READER, "cat /proc/$(cat /run/holder)/fd/9") == "a" and site.revisions() == {old, new}
    inside(READER, "kill $(cat /run/holder); while [ -d /proc/$(cat /run/holder) ]; do sleep 0.1; done")
    assert f"remove the revision {old[:12]}" in site.fetch(models_keep=1)
    assert site.revisions() == {new}


def test_a_commit_that_is_there_needs_no_hub(site, hub):
    (commit,) = site.revisions()
    site.write(revision=commit)
    said = site.fetch(models_endpoint="http://127.0.0.1:1")
    assert "done: []" in said and f"{site.models}/{NAME}: {commit}" in said and "changed=1" not in said
    site.write(revision="v9")
    said = site.fetch(code=2)
    assert f"{NAME} has no revision v9 on {hub.endpoint}; it has main" in said


def test_a_list_for_the_node(site, hub):
    hub.models["org/other"] = Model()
    hub.models["org/other"].push({"config.json": b"{}"})
    models = [{"repository": "org/other", "folder": str(site.models)}]
    said = site.fetch("-l", "pve", phoenix_models=models)
    assert "changed=1" in said and "ctid_" not in said
    assert as_nobody(READER, "cat /models/org/other/config.json") == "{}"
