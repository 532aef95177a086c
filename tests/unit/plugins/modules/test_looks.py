# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_container_info, adopt_node, adopt_inside and vllm_model_server_info, on nodes and files of the test's own."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args, node, nodes, server_guard
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container_plan import Memory
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import Target
from ansible_collections.phoenix.hypervisor.plugins.modules import (
    adopt_inside,
    adopt_node,
    pct_container_info,
    vllm_model_server_info,
)
from pve_model import PveModel

CONF = """\
arch: amd64
hostname: one
memory: 512
rootfs: fast:subvol-700-disk-0,size=8G
unprivileged: 1
lxc.cgroup2.devices.allow: c 195:* rwm
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
"""


@pytest.fixture
def fake(monkeypatch) -> PveModel:
    it = PveModel()
    it.texts[700] = CONF
    monkeypatch.setattr(nodes, "connect", lambda params: it)
    monkeypatch.setattr(node, "remembered", lambda vmid: Memory())
    monkeypatch.setattr(node, "nvidia_devices", dict)
    monkeypatch.setattr(node, "root_subids", lambda: {"u": [(100000, 65536)], "g": [(100000, 65536)]})
    monkeypatch.setattr(node, "owners", lambda paths: dict.fromkeys(paths, (0, 0)))
    return it


# --- pct_container_info -------------------------------------------------------------------------------------------


def compared(run_main, **variables) -> dict:
    done = run_main(pct_container_info, vmids=[700], compare=[{"container_vmid": 700, **variables}])
    (found,) = done["compared"]
    assert done["changed"] is False and found["vmid"] == 700
    return found


def test_a_container_that_is_as_declared(fake, run_main):
    found = compared(run_main, container_config={"memory": 512, "hostname": "one"}, container_unprivileged=True)
    assert (found["state"], found["differs"], found["problem"]) == ("stopped", [], "")
    assert fake.calls == []


@pytest.mark.parametrize(
    ("variables", "differs"),
    [
        ({"container_config": {"memory": 1024}}, ["memory"]),
        ({"container_config": {"memory": 1024, "cores": 2}}, ["cores", "memory"]),
        ({"container_gpus": []}, ["lxc.cgroup2.devices.allow", "lxc.mount.entry"]),
        ({"container_disk_gb": 9}, ["rootfs"]),
        ({"container_template": True}, ["template"]),
        ({"container_snapshot": "ready"}, ["snapshot"]),
        ({"container_raw": ["lxc.cap.drop: sys_time"]}, ["lxc.cap.drop"]),
        ({"container_mounts": [{"mp": "/m", "source": "/tank"}]}, ["mp0"]),
    ],
)
def test_what_differs(fake, run_main, variables, differs):
    assert compared(run_main, **variables)["differs"] == differs


def test_what_cannot_be(fake, run_main):
    found = compared(run_main, container_disk_gb=4, container_config={"memory": 600})
    assert found["differs"] == ["memory", "rootfs"] and "4" in found["problem"]


def test_a_container_that_is_not_there(fake, run_main):
    del fake.texts[700]
    assert compared(run_main)["state"] == "absent"


def test_a_declaration_without_a_ctid_is_refused(fake, run_main):
    said = run_main(pct_container_info, compare=[{"container_config": {}}])
    assert said["failed"] and "container_vmid" in said["msg"]


# --- adopt_node ---------------------------------------------------------------------------------------------------


def test_what_the_old_scripts_left(fake, run_main, tmp_path):
    declared = {"container_vmid": 700, "container_config": {"memory": 1024}, "container_gpus": []}
    options = {"declared": declared, "keep_folder": str(tmp_path / "kept")}
    shown = run_main(adopt_node, check=True, **options)
    assert shown["changed"] and not (tmp_path / "kept").exists()
    done = run_main(adopt_node, **options)
    assert done["steps"] == shown["steps"] and len(done["gpu_lines"]) == 2
    assert done["would"][0] == "memory: 512 → 1024" and done["would"][1].startswith("raw lines: ")
    assert (tmp_path / "kept/700.conf").read_text() == CONF
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    fake.texts[700] = CONF.replace("one", "two")
    assert run_main(adopt_node, **options)["changed"] is False
    assert (tmp_path / "kept/700.conf").read_text() == CONF, "the first one is kept"


def test_one_that_cannot_become_what_is_declared(fake, run_main, tmp_path):
    declared = {"container_vmid": 700, "container_unprivileged": False}
    done = run_main(adopt_node, declared=declared, keep_folder=str(tmp_path))
    assert "unprivileged" in done["problem"] and done["would"] == []


@pytest.mark.parametrize(("mode", "is_open"), [(0o755, False), (0o777, True), (0o1777, True), (0o775, False)])
def test_folders_that_everybody_can_write(tmp_path, mode, is_open):
    (tmp_path / "a/b/c").mkdir(parents=True)
    for name in ("x.key", "a/password.txt", "a/b/root_ca_key", "a/b/c/too_deep_key", "cert.crt"):
        (tmp_path / name).write_text("")
    os.chmod(tmp_path, mode)
    found = adopt_node.open_folder(str(tmp_path), "/ca")
    assert (found is not None) is is_open
    if found:
        assert found == {"source": str(tmp_path), "inside": "/ca", "secrets": ["x.key", "a/password.txt",
                                                                               "a/b/root_ca_key"]}  # fmt: skip
    assert adopt_node.open_folder(str(tmp_path / "none"), "/x") is None
    assert adopt_node.open_folder(str(tmp_path / "x.key"), "/x") is None


# --- adopt_inside -------------------------------------------------------------------------------------------------


@pytest.fixture
def inside(monkeypatch, tmp_path):
    """A container's files in a folder, and a run of the module on them."""
    units, profile = tmp_path / "units", tmp_path / "profile.d"
    units.mkdir()
    profile.mkdir()
    environment = tmp_path / "environment"
    environment.write_text("A=1\nexport B=s3cret\n")
    monkeypatch.setattr(adopt_inside, "ENVIRONMENT", str(environment))
    monkeypatch.setattr(adopt_inside, "PROFILE", str(profile / "phoenix_adopted.sh"))
    monkeypatch.setattr(adopt_inside, "UNITS", str(units))
    monkeypatch.setattr(adopt_inside, "HUB", str(tmp_path / "hub"))
    (units / "none.service").write_text("[Service]\nExecStart=/a serve m\n")
    return tmp_path


def adopt(run_main, folder, check=False) -> dict:
    return run_main(adopt_inside, check=check, name="none.service", link=str(folder / "vllm"),
                    keep_folder=str(folder / "kept"))  # fmt: skip


def test_lines_are_moved_and_copies_kept(inside, run_main):
    shown = adopt(run_main, inside, check=True)
    assert shown["changed"] and (inside / "environment").read_text() == "A=1\nexport B=s3cret\n"
    assert not (inside / "kept").exists()
    done = adopt(run_main, inside)
    assert done["steps"] == shown["steps"] and "s3cret" not in json.dumps(done)
    assert (inside / "environment").read_text() == "A=1\n"
    assert (inside / "profile.d/phoenix_adopted.sh").read_text().endswith("export B=s3cret\n")
    assert (inside / "kept/environment").read_text() == "A=1\nexport B=s3cret\n"
    assert (inside / "kept/none.service").stat().st_mode & 0o777 == 0o600
    assert adopt(run_main, inside)["changed"] is False


def test_a_run_that_was_killed_in_between_is_gone_on_with(inside, run_main, monkeypatch):
    whole = adopt_inside.write

    def killed(path, text, mode):
        if path.endswith("/environment") and "kept" not in path:
            raise OSError(28, "No space left on device", path)
        whole(path, text, mode)

    monkeypatch.setattr(adopt_inside, "write", killed)
    said = adopt(run_main, inside)
    assert said["failed"] and "No space left on device" in said["msg"]
    assert "export B" in (inside / "environment").read_text()
    monkeypatch.setattr(adopt_inside, "write", whole)
    adopt(run_main, inside)
    assert (inside / "profile.d/phoenix_adopted.sh").read_text().count("export B") == 1
    assert (inside / "environment").read_text() == "A=1\n"


def test_what_is_there_of_vllm(inside, run_main):
    assert adopt(run_main, inside)["folder_version"] is None
    site = inside / "vllm/lib/python3.11/site-packages"
    site.mkdir(parents=True)
    assert adopt(run_main, inside)["folder_version"] == ""
    (site / "vllm-0.10.2+cu128.dist-info").mkdir()
    (inside / "hub/models--org--name").mkdir(parents=True)
    done = adopt(run_main, inside)
    assert (done["folder_version"], done["root_models"]) == ("0.10.2+cu128", ["org/name"])
    (inside / "vllm").rename(inside / "release")
    (inside / "vllm").symlink_to(inside / "release")
    assert adopt(run_main, inside)["folder_version"] is None


# --- vllm_model_server_info ---------------------------------------------------------------------------------------

CONFIG = {"ModelConfig": {"model": "/m/good", "max_model_len": 512}, "ServerConfig": {"port": 8000, "api_key": "k"}}


def state(config: dict, model="/m/good", added="") -> Target:
    """What vllm_model_server writes down for an engine config."""
    arguments = engine_args.flatten(config)
    arguments.pop("api-key", None)
    _model, others = engine_args.split_model(arguments)
    text = engine_args.render(engine_args.check(others)) + added
    unit = f"[Service]\nExecStart=/r/bin/vllm serve {model} --config /etc/vllm/x.yaml\n"
    return Target("0123", unit, text, "", "/r", "/c", {"port": 8000}, engine_args.served_name(arguments))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, []),
        ({"max_model_len": 1024}, ["max-model-len"]),
        ({"max_model_len": None}, ["max-model-len"]),
        ({"dtype": "float32"}, ["dtype"]),
        ({"trust_remote_code": True}, ["trust-remote-code"]),
        ({"model": "/m/other"}, ["model", "served-model-name"]),
        ({"served_model_name": ["a", "b"]}, ["served-model-name"]),
        ({"override_generation_config": {"temperature": 0}}, ["override-generation-config"]),
        ({"api_key": "another"}, []),
    ],
)
def test_what_of_a_server_is_not_as_declared(change, differs):
    declared = {"All": {**CONFIG["ModelConfig"], **CONFIG["ServerConfig"], **change}}
    assert vllm_model_server_info.differing(declared, {}, state(CONFIG)) == differs


def test_what_the_server_s_module_adds_is_no_difference():
    added = 'ssl-certfile: "/a"\nssl-keyfile: "/b"\nserved-model-name:\n- "/m/good"\n'
    assert vllm_model_server_info.differing(CONFIG, {}, state(CONFIG, added=added)) == []


def test_lists_and_odd_keys_are_told_apart():
    text = '# x\na: 1\nlist:\n- "b: 2"\n- c\n"d=-1": true\n'
    assert vllm_model_server_info.blocks(text) == {
        "a": "a: 1\n", "list": 'list:\n- "b: 2"\n- c\n', "d": '"d=-1": true\n',
    }  # fmt: skip


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A unit, and what systemd says of it."""
    unit = tmp_path / "unit"
    unit.write_text("[Service]\nEnvironment=PHOENIX_DIGEST=0123456789abcdef\n")
    said = {"FragmentPath": str(unit), "ActiveState": "active", "MainPID": "1", "NRestarts": "2", "Result": "success"}
    (tmp_path / "states").mkdir()
    record = {**json.loads(state(CONFIG).to_json()), "digest": "0123456789abcdef", "release": str(tmp_path / "cpu-1")}
    (tmp_path / "states/0123456789abcdef.json").write_text(json.dumps(record))
    answer = {"seen": server_guard.Seen("answer", "")}
    monkeypatch.setattr(vllm_model_server_info, "properties", lambda module, name: said)
    monkeypatch.setattr(vllm_model_server_info, "running_digest", lambda pid: "0123456789abcdef" if pid else "")
    monkeypatch.setattr(server_guard, "ask", lambda probe, seconds: answer["seen"])
    return tmp_path, said, answer, unit


def info(run_main, folder, **options) -> dict:
    return run_main(vllm_model_server_info, state_folder=str(folder), link=str(folder / "none"),
                    certificates=[str(folder / "*.pem")], **options)  # fmt: skip


def test_a_server_that_answers(server, run_main):
    folder, *_rest = server
    done = info(run_main, folder, engine_config=CONFIG)
    assert (done["server"], done["ready"], done["reason"], done["restarts"]) == ("active", True, "", 2)
    assert (done["model"], done["release"], done["differs"]) == ("/m/good", "cpu-1", [])


def test_one_that_does_not(server, run_main):
    folder, _said, answer, _unit = server
    answer["seen"] = server_guard.Seen("silence", "no answer on port 8000")
    done = info(run_main, folder)
    assert (done["server"], done["ready"], done["reason"]) == ("starting", False, "no answer on port 8000")
    (folder / "history.json").write_text('[{"digest": "0123456789abcdef"}]')
    assert info(run_main, folder)["server"] == "active"
    (folder / "history.json").write_text('{"damaged"')
    assert info(run_main, folder)["server"] == "starting"


def test_one_that_has_ended(server, run_main):
    folder, said, _answer, _unit = server
    said.update(ActiveState="failed", MainPID="0", Result="exit-code")
    done = info(run_main, folder)
    assert done["server"] == "failed" and "systemd says exit-code" in done["reason"]


def test_none_and_a_foreign_one(server, run_main):
    folder, said, _answer, unit = server
    unit.write_text("[Service]\nExecStart=/x\n")
    done = info(run_main, folder)
    assert done["server"] == "foreign" and "not of this collection" in done["reason"]
    said["FragmentPath"] = ""
    assert info(run_main, folder)["server"] == "none"


def test_a_state_that_is_gone(server, run_main):
    folder, *_rest = server
    (folder / "states/0123456789abcdef.json").write_text("{}")
    done = info(run_main, folder)
    assert not done["ready"] and "has no state 0123456789abcdef" in done["reason"]


def test_a_config_that_cannot_be_used_is_a_difference(server, run_main):
    folder, *_rest = server
    done = info(run_main, folder, engine_config={"ModelConfig": {"model": "m", "a.b": 1}})
    assert len(done["differs"]) == 1 and "can't be used" in done["differs"][0]


def test_the_first_certificate_of_each_file(server, run_main):
    folder, *_rest = server
    one, two = (f"-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n" for name in "ab")
    (folder / "chain.pem").write_text(f"-----BEGIN PRIVATE KEY-----\nk\n-----END PRIVATE KEY-----\n{one}{two}")
    (folder / "empty.pem").write_text("")
    found = info(run_main, folder)["certificates"]
    assert [entry["pem"] for entry in found] == [one, ""], "and no key"
