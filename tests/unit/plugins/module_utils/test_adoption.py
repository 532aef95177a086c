# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the old scripts left, recognised in conf files, units and /etc/environment."""

from __future__ import annotations

import string

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import adoption, container_plan, pct_conf
from hypothesis import given
from hypothesis import strategies as st

CONF = """\
arch: amd64
mp0: /mnt/pve/quickOS/shared-ca,mp=/etc/step-ca
mp1: local-zfs:subvol-921-disk-1,mp=/data,size=50G
rootfs: local-zfs:subvol-921-disk-0,size=64G
unused0: local-zfs:subvol-921-disk-2
unused1: local-zfs:subvol-921-disk-3
lxc.cgroup2.devices.allow: c 195:* rwm
lxc.cgroup2.devices.allow: c 243:* rwm
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.mount.entry: /srv/x srv/x none bind,create=dir
lxc.cap.drop: sys_time

[before]
rootfs: local-zfs:subvol-921-disk-0,size=64G
lxc.apparmor.profile: unconfined
lxc.cap.drop: sys_time
"""
NODE = {
    "exists": True, "status": "running", "template": False, "steps": [], "would": [], "restart": [], "problem": "",
    "gpus_declared": True, "gpu_lines": [], "other_lines": [], "snapshot_lines": {}, "unused": [], "open_folders": [],
}  # fmt: skip
INSIDE = {"steps": [], "name": "s.service", "link": "/opt/vllm", "unit": {}, "active": "", "folder_version": None,
          "exports": [], "root_models": []}  # fmt: skip
OLD = {"ours": False, "command": "vllm serve x", "user": "root", "model": "x", "port": "8000"}


def told(inside=None, **node):
    return adoption.told({"host": "ctid_921", "ctid": 921}, {**NODE, **node}, {} if inside is None else inside)


def test_a_conf_file():
    declared = container_plan.Declared(921, raw=["lxc.cap.drop: sys_time"])
    found = adoption.of_conf(pct_conf.parse(CONF), declared, {})
    assert len(found["gpu_lines"]) == 3
    assert found["other_lines"] == ["lxc.mount.entry: /srv/x srv/x none bind,create=dir"]
    assert found["snapshot_lines"] == {"before": ["lxc.apparmor.profile: unconfined"]}
    assert found["unused"] == ["local-zfs:subvol-921-disk-2", "local-zfs:subvol-921-disk-3"]


def test_folders_of_the_node_that_are_mounted():
    assert adoption.bound_folders(pct_conf.parse(CONF).main) == [
        ("/mnt/pve/quickOS/shared-ca", "/etc/step-ca"), ("/srv/x", "/srv/x"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [("root_ca_key", True), ("server.key", True), ("password.txt", True), ("ca_password", True), ("ca.crt", False),
     ("keyboard", False), ("Provisioner-Password", True)],
)  # fmt: skip
def test_files_of_secrets(name, is_secret):
    assert adoption.is_secret_file(name) is is_secret


@pytest.mark.parametrize(
    ("text", "kept", "moved"),
    [
        ("", "", []),
        ("A=1\n", "A=1\n", []),
        ("A=1\nexport B=2\nC=3", "A=1\nC=3", ["export B=2"]),
        ("  export  B='x y'\n", "", ["export  B='x y'"]),
        ("# export A=1\nexported=1\n", "# export A=1\nexported=1\n", []),
    ],
)
def test_lines_for_a_shell(text, kept, moved):
    assert adoption.without_exports(text) == (kept, moved)


LINES = st.lists(st.text(st.sampled_from(string.ascii_letters + " =$:'#"), max_size=20), max_size=8)


@given(LINES, LINES)
def test_no_line_is_lost_and_a_second_time_moves_nothing(lines, there):
    text = "\n".join(f"export X{line}" if place % 2 else line for place, line in enumerate(lines))
    kept, moved = adoption.without_exports(text)
    assert adoption.without_exports(kept) == (kept, [])
    assert sorted([*(line.strip() for line in kept.splitlines()), *moved]) == sorted(
        line.strip() for line in text.splitlines()
    )
    once = adoption.with_exports("".join(f"{line}\n" for line in there), moved)
    assert adoption.with_exports(once, moved) == once
    assert set(moved) <= set(once.splitlines())


def test_names_and_no_values():
    assert adoption.names_of(["export A=secret", "export B", "x"]) == ["A", "B"]


@pytest.mark.parametrize(
    ("command", "shown", "model", "port"),
    [
        ('python -m api --model "/m/a b" --port 8001', "python -m api --model /m/a b --port 8001", "/m/a b", "8001"),
        ("vllm serve org/m --port=9000", "vllm serve org/m --port=9000", "org/m", "9000"),
        ("vllm serve m --api-key s3cret --x", "vllm serve m --api-key (hidden) --x", "m", "8000"),
        ("vllm serve m --api_key=s3cret", "vllm serve m --api_key=(hidden)", "m", "8000"),
        ("/bin/env HF_TOKEN=s3cret vllm serve m", "/bin/env HF_TOKEN=(hidden) vllm serve m", "m", "8000"),
        ("/bin/bash -c 'export HF_TOKEN=\"s3cret\"; vllm'", "/bin/bash -c export HF_TOKEN=(hidden); vllm", "", "8000"),
        ("python 's3 unclosed --model m", "python 's3 unclosed --model m", "m", "8000"),
        ("serve", "serve", "", "8000"),
        ("", "", "", "8000"),
    ],
)
def test_an_old_unit(command, shown, model, port):
    found = adoption.of_unit(f"[Service]\nExecStart={command}\n")
    assert (found["command"], found["model"], found["port"]) == (shown, model, port)
    assert found["user"] == "root" and not found["ours"]


def test_a_unit_of_ours_and_its_user():
    unit = "[Service]\nUser=vllm\nEnvironment=PHOENIX_DIGEST=0123456789abcdef\nExecStart=-/a \\\n  b\n"
    found = adoption.of_unit(unit)
    assert found["ours"] and found["user"] == "vllm" and found["command"] == "/a b"


def test_a_container_that_is_as_it_should_be():
    assert told(INSIDE) == {
        "found": [], "done": [], "site_yml_will": [], "by_hand": [],
        "next": [
            "pct snapshot 921 before-adoption, where its storage can; else a backup",
            "ansible-playbook site.yml -l ctid_921 --check --diff",
            "ansible-playbook site.yml -l ctid_921",
            "ansible-playbook playbooks/verify.yml -l ctid_921",
        ],
    }  # fmt: skip


def test_a_container_that_is_not_there():
    said = told(exists=False)
    assert said["found"] == ["CTID 921 is not there: there is nothing to take over"] and said["next"] == []


@pytest.mark.parametrize(
    ("node", "inside", "where", "words"),
    [
        ({"gpu_lines": ["a"], "gpus_declared": False}, INSIDE, "by_hand", "say in gpu_assignment"),
        ({"gpu_lines": ["a", "b"]}, INSIDE, "found", "2 raw lines give it GPUs"),
        ({"other_lines": ["lxc.a: b"]}, INSIDE, "found", "lxc.a: b"),
        ({"snapshot_lines": {"s": ["lxc.a: b"]}}, INSIDE, "by_hand", "pct delsnapshot 921 s"),
        ({"unused": ["x:y"]}, INSIDE, "found", "volumes that nothing mounts: x:y"),
        ({"problem": "no way."}, INSIDE, "by_hand", "no way"),
        ({"would": ["memory: 1 → 2"]}, INSIDE, "site_yml_will", "memory: 1 → 2"),
        ({"status": "stopped"}, None, "by_hand", "start it (pct start 921)"),
        ({"open_folders": [{"source": "/s", "inside": "/i", "secrets": []}]}, INSIDE, "by_hand", "chmod o-w /s"),
        ({"open_folders": [{"source": "/s", "inside": "/i", "secrets": ["a b.key"]}]}, INSIDE, "by_hand",
         "chmod go-rwx '/s/a b.key'"),
        ({}, {**INSIDE, "unit": OLD, "active": "active"}, "found", "runs as root"),
        ({}, {**INSIDE, "unit": OLD}, "site_yml_will", "write s.service from vllm_engine_config"),
        ({}, {**INSIDE, "unit": {**OLD, "command": "x --trust-remote-code"}}, "by_hand", "trust_remote_code"),
        ({}, {**INSIDE, "unit": {**OLD, "command": "x --api-key (hidden)"}}, "by_hand", "vllm_model_server_api_key"),
        ({}, {**INSIDE, "unit": OLD}, "next", "(the model server is replaced)"),
        ({"restart": ["dev0"]}, {**INSIDE, "unit": OLD}, "next",
         "(the container restarts once and the model server is replaced)"),
        ({}, {**INSIDE, "folder_version": ""}, "found", "/opt/vllm is a folder with vLLM unknown"),
        ({}, {**INSIDE, "folder_version": "0.10.2"}, "site_yml_will", "keep /opt/vllm as a release"),
        ({}, {**INSIDE, "exports": ["A"]}, "found", "/etc/environment has lines for a shell (A)"),
        ({}, {**INSIDE, "root_models": ["o/m"]}, "by_hand", "/root/.cache/huggingface"),
        ({"steps": ["a"]}, {**INSIDE, "steps": ["b"]}, "done", "b"),
    ],
)  # fmt: skip
def test_what_is_told(node, inside, where, words):
    assert any(words in line for line in told(inside, **node)[where]), told(inside, **node)


def test_nothing_is_said_of_a_unit_of_ours():
    said = told({**INSIDE, "unit": {**OLD, "ours": True}, "active": "active"})
    assert said["found"] == [] and said["site_yml_will"] == []
