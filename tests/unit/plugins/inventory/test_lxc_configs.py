# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import ansible_programs
import pytest
import yaml
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.phoenix.hypervisor.plugins.inventory import lxc_configs
from ansible_collections.phoenix.hypervisor.plugins.module_utils import api, live, lxc_config

# A source's own expressions are templates; that has to be said from ansible-core 2.19 on.
trusted = lxc_configs._trust
ROOT = Path(__file__).resolve().parents[4]
BASE = {"name": "base", "template": "local:vztmpl/debian-12.tar.zst", "features": ["base_setup"], "is_template": True}
CONFIG = {
    "nvidia_driver_version": "580.95.05",
    "lxc_configs": {
        "921": {
            "name": "fp8",
            "clone_from_ctid": "900",
            "features": ["nvidia", "vllm"],
            "application_script": "vllm.sh",
            "storage_pool": "local-zfs",
        },
        "900": BASE,
        "910": {"name": "zero", "template": "x", "storage_pool": "local-zfs"},
    },
}
OPTIONS: dict[str, Any] = {
    "config_files": ["phoenix_lxc_configs.json"],
    "override_files": [],
    "nodes": {"pve": {"ansible_host": "192.168.1.10", "ansible_user": "root"}},
    "default_node": None,
    "strict": True,
    "compose": {},
    "groups": {},
    "keyed_groups": [],
    "use_extra_vars": False,
    "leading_separator": True,
}


def module(**options: Any) -> lxc_configs.InventoryModule:
    """A plugin with an empty inventory and these options."""
    plugin = lxc_configs.InventoryModule()
    plugin.inventory = InventoryData()
    plugin.loader = DataLoader()
    plugin.templar = Templar(loader=plugin.loader)
    plugin.get_option = {**OPTIONS, **options}.__getitem__
    return plugin


def populated(
    config: dict[str, Any] | None = None, nodes: dict[str, Any] | None = None, **options: Any
) -> InventoryData:
    plugin, nodes = module(**options), nodes or OPTIONS["nodes"]
    model = lxc_config.Model(config or CONFIG, "f", nodes)
    assert model.problems == []
    plugin._construct(plugin.populate(model, nodes, next(iter(nodes))))
    return plugin.inventory


def members(inventory: InventoryData, group: str) -> list[str]:
    return [host.name for host in inventory.groups[group].get_hosts()]


# --- populate -----------------------------------------------------------------------------------------------------


def test_hosts_are_in_the_order_of_waves_then_of_ctids() -> None:
    inventory = populated()
    assert list(inventory.hosts) == ["pve", "ctid_900", "ctid_910", "ctid_921"]
    assert members(inventory, "phoenix_containers") == ["ctid_900", "ctid_910", "ctid_921"]


@pytest.mark.parametrize(
    ("group", "hosts"),
    [
        ("phoenix_nodes", ["pve"]),
        ("node_pve", ["ctid_900", "ctid_910", "ctid_921"]),
        ("wave_0", ["ctid_900", "ctid_910"]),
        ("wave_1", ["ctid_921"]),
        ("templates", ["ctid_900"]),
        ("feature_base_setup", ["ctid_900"]),
        ("feature_nvidia", ["ctid_921"]),
        ("feature_vllm", ["ctid_921"]),
        ("lineage_921", ["ctid_900", "ctid_921"]),
        ("lineage_900", ["ctid_900"]),
        ("clones_of_900", ["ctid_921"]),
        ("pool_local_zfs", ["ctid_910", "ctid_921"]),
    ],
)
def test_groups(group: str, hosts: list[str]) -> None:
    assert members(populated(), group) == hosts


@pytest.mark.parametrize(
    ("entry", "served"),
    [
        ({"application_script": "vllm.sh"}, ["serves_llama"]),
        ({}, []),  # nothing serves it
        ({"application_script": "vllm.sh", "is_template": True}, []),
    ],
)
def test_groups_of_what_is_served(entry: dict, served: list[str]) -> None:
    engine = {"ModelConfig": {"model": "m/x"}, "ServerConfig": {"served_model_name": "llama"}}
    declared = {"name": "a", "template": "x", "vllm_engine_config": engine, **entry}
    config = {"lxc_configs": {"900": BASE, "921": declared}}
    groups = populated(config).groups
    assert [name for name in groups if name.startswith("serves_")] == served
    assert all(members(populated(config), name) == ["ctid_921"] for name in served)


def test_what_is_served_under_other_letters_has_groups_of_its_own() -> None:
    """Two models are no replicas of each other because their names have letters that ASCII has not."""
    served = {"910": "通义千问", "920": "文心一言", "921": "qwen 2.5/7b"}
    containers = {
        ctid: {"name": f"a{ctid}", "template": "x", "application_script": "vllm.sh",
               "vllm_engine_config": {"ModelConfig": {"model": "m/x"}, "ServerConfig": {"served_model_name": name}}}
        for ctid, name in served.items()
    }  # fmt: skip
    inventory = populated({"lxc_configs": {"900": BASE, **containers}})
    assert {name: members(inventory, name) for name in inventory.groups if name.startswith("serves_")} == {
        "serves_通义千问": ["ctid_910"], "serves_文心一言": ["ctid_920"], "serves_qwen_2_5_7b": ["ctid_921"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ({}, {}),
        ({"nvidia_driver_version": "580.95.05"}, {"nvidia_driver_version": "580.95.05"}),
        ({"nvidia_driver_version": 580}, {"nvidia_driver_version": "580"}),
        ({"nvidia_driver_version": "", "nvidia_repo_url": None}, {}),
        ({"nvidia_repo_url": "http://a/", "nvidia_runfile_url": "http://b.run"},
         {"nvidia_repo_url": "http://a/", "nvidia_runfile_url": "http://b.run"}),
    ],
)  # fmt: skip
def test_what_is_said_of_the_driver_is_each_containers(top: dict, expected: dict) -> None:
    variables = populated({"lxc_configs": CONFIG["lxc_configs"], **top}).hosts["ctid_921"].vars
    assert {name: value for name, value in variables.items() if name.startswith("nvidia_")} == expected


def test_variables_of_a_container() -> None:
    variables = populated().hosts["ctid_921"].vars
    expected = {
        "ansible_connection": "phoenix.hypervisor.pct",
        "ansible_pct_vmid": 921,
        "ansible_pct_node_connection": "ssh",
        "ansible_host": "192.168.1.10",
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "phoenix_node": "pve",
        "phoenix_ctid": 921,
        "phoenix_lineage": [900, 921],
        "phoenix_wave": 1,
        "phoenix_features": ["nvidia", "vllm"],
        "phoenix_application": "vllm.sh",
        "phoenix_definition": CONFIG["lxc_configs"]["921"],
        "phoenix_deprecations": [],
        "container_vmid": 921,
        "container_storage": "local-zfs",
        "container_clone": {"vmid": 900},
    }
    assert {name: variables[name] for name in expected} == expected
    assert set(variables) - set(expected) - {"inventory_file", "inventory_dir"} <= set(lxc_config.ROLE_VARIABLES)


def test_settings_are_the_groups() -> None:
    assert populated().groups["phoenix_containers"].vars == {"phoenix_settings": {"nvidia_driver_version": "580.95.05"}}


@pytest.mark.parametrize(
    ("node", "has"),
    [
        ({"ansible_connection": "local"}, {"ansible_pct_node_connection": "local"}),
        ({"ansible_connection": "ansible.builtin.local"}, {"ansible_pct_node_connection": "local"}),
        ({"ansible_connection": "ansible.builtin.ssh"}, {"ansible_pct_node_connection": "ssh", "ansible_host": "pve"}),
        ({}, {"ansible_pct_node_connection": "ssh", "ansible_host": "pve"}),
        (
            {
                "ansible_host": "h",
                "ansible_port": 2222,
                "ansible_ssh_common_args": "-J jump",
                "ansible_private_key": "k",
            },
            {
                "ansible_pct_node_connection": "ssh",
                "ansible_host": "h",
                "ansible_port": 2222,
                "ansible_ssh_common_args": "-J jump",
                "ansible_private_key": "k",
            },
        ),
        (
            {
                "ansible_connection": "local",
                "ansible_python_interpreter": "/opt/python",
                "ansible_become": True,
                "phoenix_lab": True,
            },
            {"ansible_pct_node_connection": "local", "phoenix_lab": True},
        ),
    ],
)
def test_what_a_container_has_from_its_node(node: dict[str, Any], has: dict[str, Any]) -> None:
    inventory = populated(nodes={"pve": node})
    own = {"ansible_connection", "ansible_pct_vmid", "ansible_python_interpreter"}
    of_node = {
        name: value
        for name, value in inventory.hosts["ctid_900"].vars.items()
        if name in has or (name.startswith("ansible_") and name not in own)
    }
    assert of_node == has
    assert inventory.hosts["ctid_900"].vars["ansible_python_interpreter"] == "/usr/bin/python3"
    assert {name: inventory.hosts["pve"].vars[name] for name in node} == node


def test_a_container_on_another_node() -> None:
    config = {"lxc_configs": {"900": {"template": "x", "node": "b"}, "901": {"template": "x"}}}
    inventory = populated(config, {"a": {}, "b": {"ansible_connection": "local"}})
    assert members(inventory, "node_a") == ["ctid_901"]
    assert members(inventory, "node_b") == ["ctid_900"]
    assert inventory.hosts["ctid_900"].vars["phoenix_node"] == "b"
    assert "ansible_host" not in inventory.hosts["ctid_900"].vars


def test_feature_names_become_group_names() -> None:
    config = {"lxc_configs": {"900": {"template": "x", "features": ["my-own.thing"]}}}
    assert members(populated(config), "feature_my_own_thing") == ["ctid_900"]


def test_constructed() -> None:
    inventory = populated(
        compose={"url": trusted("'http://' ~ phoenix_definition.name")},
        groups={"with_model": trusted("phoenix_application != ''")},
        keyed_groups=[{"key": trusted("phoenix_definition.name"), "prefix": "name"}],
    )
    assert inventory.hosts["ctid_921"].vars["url"] == "http://fp8"
    assert members(inventory, "with_model") == ["ctid_921"]
    assert members(inventory, "name_fp8") == ["ctid_921"]


def test_strict() -> None:
    populated(strict=False, compose={"x": trusted("no_such_variable")})
    with pytest.raises(AnsibleError):
        populated(compose={"x": trusted("no_such_variable")})


# --- live ---------------------------------------------------------------------------------------------------------

LIVE = {"live": True, "live_api_host": None, "cache": False}
SCRIPT_OUTPUT = """conf 900
 rootfs: local:900/base-900-disk-0.raw,size=8G
 template: 1
 unprivileged: 1

conf 921
 rootfs: local:921/vm-921-disk-0.raw,size=8G
 unprivileged: 1

running 921
 10.0.0.5
end
"""


class Asked:
    """Answers instead of the nodes, and counts."""

    def __init__(self, plugin: lxc_configs.InventoryModule, **answers: str) -> None:
        self.answers, self.asked, self.warnings = answers, [], []
        plugin._ask_node = self
        plugin.display = self

    def __call__(self, node: str, variables: Any) -> str:
        self.asked.append(node)
        if node not in self.answers:
            raise live.LiveError("first line\nno route to host")
        return self.answers[node]

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def looked(nodes: dict[str, Any], answers: dict[str, str], **options: Any) -> tuple[InventoryData, Asked]:
    config = {"lxc_configs": {"900": BASE, "910": {"template": "x", "node": "b"}, "921": {"clone_from_ctid": 900}}}
    plugin = module(**LIVE, **options)
    asked = Asked(plugin, **answers)
    plugin.get_cache_key = lambda path: "key"
    hosts = plugin.populate(lxc_config.Model(config, "f", nodes, "a"), nodes, "a")
    plugin._add_live(hosts, nodes, "source", True)
    plugin._construct(hosts)
    return plugin.inventory, asked


def test_each_node_is_asked_once() -> None:
    groups = [{"key": trusted("phoenix_state"), "prefix": "state"}]
    nodes: dict[str, Any] = {"a": {}, "b": {}, "idle": {}}
    inventory, asked = looked(nodes, {"a": SCRIPT_OUTPUT, "b": "end\n"}, keyed_groups=groups)
    assert asked.asked == ["a", "b"]
    assert asked.warnings == []
    assert members(inventory, "state_running") == ["ctid_921"]
    assert members(inventory, "state_template") == ["ctid_900"]
    assert members(inventory, "state_absent") == ["ctid_910"]
    assert inventory.hosts["ctid_921"].vars["phoenix_addresses"] == ["10.0.0.5"]
    assert inventory.hosts["ctid_900"].vars["phoenix_differs"] == ["hostname"]


def test_a_node_that_does_not_answer_leaves_the_others() -> None:
    inventory, asked = looked({"a": {}, "b": {}}, {"a": SCRIPT_OUTPUT}, strict=False)
    (warning,) = asked.warnings
    assert warning.startswith("node b does not answer: no route to host; ")
    assert "phoenix_state" not in inventory.hosts["ctid_910"].vars
    assert inventory.hosts["ctid_921"].vars["phoenix_state"] == "running"
    with pytest.raises(AnsibleParserError, match=r"^node b does not answer: no route to host; "):
        looked({"a": {}, "b": {}}, {"a": SCRIPT_OUTPUT}, strict=True)


def test_the_api_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    class Api:
        def __init__(self, host: str, **login: Any) -> None:
            requests.append((host, login["token_name"], login["token_value"]))

        def __call__(self, path: str) -> Any:
            requests.append(path)
            return self

        def get(self, **parameters: str) -> list[dict[str, Any]]:
            return [{"vmid": 921, "type": "lxc", "status": "running"}, {"vmid": 900, "type": "qemu"}]

    pytest.importorskip("proxmoxer")
    monkeypatch.setattr(api, "ProxmoxAPI", Api)
    options = {"user": "a@pve", "token_id": "t", "token_secret": "s", "port": 8006}
    plugin = module(
        **{f"live_api_{name}": value for name, value in options.items()},
        live_api_host="h", live_validate_certs=True, live_ca_path=None,
    )  # fmt: skip
    assert plugin._ask_api() == [{"vmid": 921, "type": "lxc", "status": "running"}]
    assert requests == [("h", "t", "s"), "cluster/resources"]


# --- nodes and limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "default", "said"),
    [
        (None, None, "key nodes: it names no node"),
        ({}, None, "key nodes: it names no node"),
        (["pve"], None, "key nodes: it names no node"),
        ({"a": {}, "b": {}}, None, "key default_node: there are 2 nodes and it is missing"),
        ({"a": {}}, "b", "key default_node: b is not among the nodes; write one of a."),
        ({"a": "192.168.1.10"}, None, "key nodes.a: it has no variables' names"),
        ({"ctid_1": {}}, None, "key nodes.ctid_1: a name that begins with ctid_ is a container's"),
    ],
)
def test_wrong_nodes(nodes: Any, default: str | None, said: str) -> None:
    with pytest.raises(lxc_config.ConfigError) as error:
        lxc_configs.check_nodes(nodes, default, "lxc_configs.yml")
    assert str(error.value).startswith(f"lxc_configs.yml: {said}")


@pytest.mark.parametrize(
    ("nodes", "default", "expected"),
    [
        ({"a": None}, None, ({"a": {}}, "a")),
        ({"a": {"x": 1}, "b": None}, "b", ({"a": {"x": 1}, "b": {}}, "b")),
        ({1: {}}, None, ({"1": {}}, "1")),
    ],
)
def test_right_nodes(nodes: Any, default: str | None, expected: tuple[dict, str]) -> None:
    assert lxc_configs.check_nodes(nodes, default, "f") == expected


@pytest.mark.parametrize(
    ("limit", "refused"),
    [
        (None, []),
        ("", []),
        ("all", []),
        ("ctid_921", []),
        ("ctid_921,lineage_900", []),
        ("lineage_921:!ctid_900", []),
        ("phoenix_containers:&feature_vllm", []),
        ("ctid_92*", []),
        ("~ctid_(9|8)99", []),
        ("lineage_921[0]", []),
        ("@failed.txt", []),
        ("web1", []),
        ("100", []),
        ("ctid_999", ["ctid_999, which is not declared"]),
        ("lineage_999", ["lineage_999, which is not declared"]),
        ("ctid_921,ctid_999,ctid_998", ["ctid_999, which is not", "ctid_998, which is not"]),
        ("all:!ctid_999", ["ctid_999, which is not declared"]),
        ("all:&lineage_999", ["lineage_999, which is not declared"]),
        ("lineage_999[0]", ["lineage_999[0], which is not declared"]),
        ("921", ["921, which is no host; write ctid_921 or lineage_921"]),
        ("!921", ["921, which is no host; write ctid_921 or lineage_921"]),
        ("999", ["999, which is not declared"]),
    ],
)
def test_limits(limit: str | None, refused: list[str]) -> None:
    problems = lxc_configs.check_limit(limit, ["900", "921"], ["web1", "100"], "site.json")
    assert len(problems) == len(refused)
    for problem, said in zip(problems, refused):
        assert str(problem).startswith("site.json: CTID ")
        assert f"the limit names {said}" in str(problem)
    if any("not declared" in said for said in refused):
        assert "declared are 900, 921." in str(problems[0])


def test_only_the_last_source_knows_all_containers(tmp_path: Path) -> None:
    for name in ("a_lxc_configs.yml", "b_lxc_configs.yaml", "hosts.yml"):
        (tmp_path / name).touch()
    first, last, other = (str(tmp_path / name) for name in ("a_lxc_configs.yml", "b_lxc_configs.yaml", "hosts.yml"))
    assert not lxc_configs._is_last_source(first, [str(tmp_path)])
    assert lxc_configs._is_last_source(last, [str(tmp_path)])
    assert not lxc_configs._is_last_source(first, [first, last, other])
    assert lxc_configs._is_last_source(last, [first, last, other])
    assert lxc_configs._is_last_source(first, [last, first])
    assert lxc_configs._is_last_source(first, [])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("lxc_configs.yml", True), ("site_lxc_configs.yaml", True), ("hosts.yml", False), ("lxc_configs.json", False)],
)
def test_verify_file(tmp_path: Path, name: str, wanted: bool) -> None:
    (tmp_path / name).touch()
    assert module().verify_file(str(tmp_path / name)) is wanted


# --- files --------------------------------------------------------------------------------------------------------


def site(folder: Path, config: Any, overrides: Any = None, **source: Any) -> Path:
    """A source and its files in a folder; texts are written as they are, None writes no file."""
    text = {
        "phoenix_lxc_configs.json": config,
        "overrides.json": overrides,
        "lxc_configs.yml": yaml.safe_dump(
            {
                "plugin": "phoenix.hypervisor.lxc_configs",
                "override_files": [] if overrides is None else ["overrides.json"],
                "nodes": {"pve": {"ansible_host": "192.168.1.10"}},
                **source,
            }
        ),
    }
    for name, content in text.items():
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "lxc_configs.yml"


def load(path: Path, **options: Any) -> dict[str, Any]:
    return module(**options)._load(str(path.parent), {"pve": {}}, "pve").config


def test_load(tmp_path: Path) -> None:
    patch = {"lxc_configs": {"921": {"cores": 2, "features": None}}}
    config = load(site(tmp_path, CONFIG, patch), override_files=["overrides.json"])
    assert config["lxc_configs"]["921"]["cores"] == 2
    assert "features" not in config["lxc_configs"]["921"]
    assert config["lxc_configs"]["900"] == BASE


@pytest.mark.parametrize(
    ("config", "overrides", "said"),
    [
        (None, None, "phoenix_lxc_configs.json: there is no such file"),
        ("", None, "phoenix_lxc_configs.json: it is empty"),
        ('{"a": }', None, "phoenix_lxc_configs.json:1: it is not JSON: expecting value at column 7"),
        ("[]", None, "phoenix_lxc_configs.json:1: it holds a list at the top"),
        ("{}", None, "phoenix_lxc_configs.json:1: there is no lxc_configs in it"),
        (CONFIG, "", "overrides.json: it is empty"),
        (CONFIG, {"lxc_configs": {"999": {}}}, "overrides.json:1: CTID 999: it overrides a container that no file"),
        (
            CONFIG,
            '{"lxc_configs": {\n"921": {\n"cores": 0}}}',
            "overrides.json:3: CTID 921, key cores: 0 is not a whole number",
        ),
    ],
)
def test_files_that_are_refused(tmp_path: Path, config: Any, overrides: Any, said: str) -> None:
    path = site(tmp_path, config, overrides)
    with pytest.raises(lxc_config.ConfigError) as error:
        load(path, override_files=[] if overrides is None else ["overrides.json"])
    assert str(error.value).startswith(f"{tmp_path}/{said}")
    assert len(error.value.problems) == 1


def test_both_files_missing_are_two_sentences(tmp_path: Path) -> None:
    with pytest.raises(lxc_config.ConfigError) as error:
        load(site(tmp_path, None), override_files=["overrides.json"])
    assert len(error.value.problems) == 2


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"override_file": ["x"]}, "key override_file: there is no such option; options are "),
        ({"config_files": []}, "key config_files: it names no file"),
    ],
)
def test_options_that_are_refused(source: dict[str, Any], said: str) -> None:
    plugin = module(**{name: value for name, value in source.items() if name in OPTIONS})
    plugin._options = OPTIONS
    with pytest.raises(lxc_config.ConfigError) as error:
        plugin._check_options({"plugin": "phoenix.hypervisor.lxc_configs", **source}, "lxc_configs.yml")
    assert str(error.value).startswith(f"lxc_configs.yml: {said}")


def test_refused_outside_a_program() -> None:
    with pytest.raises(AnsibleParserError, match=r"(?s)one.*two"):
        module()._refuse(["one", "two"])


# --- as a user sees it --------------------------------------------------------------------------------------------


def inventory(path: Path, *arguments: str, program: str = "ansible-inventory") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "COLUMNS": "80"}
    command = [*ansible_programs.command(program), "-i", str(path), *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("config", "limit", "sentence"),
    [
        (
            {"lxc_configs": {"900": {**BASE, "network_config": {"ip": "10.92.0.300/24"}}}},
            "ctid_900",
            ':1: CTID 900, key network_config.ip: "10.92.0.300/24" is not an IPv4 address',
        ),
        (CONFIG, "ctid_999", ": CTID 999: the limit names ctid_999, which is not declared; declared are 900, 910"),
        ('{"lxc_configs": {', "ctid_900", ":1: it is not JSON: "),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, config: Any, limit: str, sentence: str) -> None:
    path = site(tmp_path, config)
    playbook = tmp_path / "play.yml"
    playbook.write_text("- hosts: all\n  gather_facts: false\n  tasks: []\n")
    result = inventory(path, "-l", limit, str(playbook), program="ansible-playbook")
    assert result.returncode != 0
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"[ERROR]: {tmp_path}/phoenix_lxc_configs.json{sentence}")


TEXT = "{{ 1 + 1 }} {% raw %} {# x #} $(id) `id` %n \\ ' \" ü 😀"


def test_text_arrives_as_it_is_and_the_export_is_plain(tmp_path: Path) -> None:
    entry = {**BASE, "application_script": TEXT, "note": [TEXT, "plain"], "vllm_parameters": {"x": TEXT}}
    path = site(tmp_path, {"site": TEXT, "lxc_configs": {"900": entry}})
    exported = inventory(path, "--list", "--export", "--playbook-dir", str(tmp_path))
    assert exported.returncode == 0, exported.stderr
    assert str(tmp_path) not in exported.stdout
    variables = json.loads(exported.stdout)["_meta"]["hostvars"]["ctid_900"]
    assert variables["container_config"] == {"hostname": "base"}
    assert variables["phoenix_definition"]["note"] == [{"__ansible_unsafe": TEXT}, "plain"]

    # As AWX does it: the export is stored, and a script prints it in the job.
    stored, script = tmp_path / "stored.json", tmp_path / "stored"
    stored.write_text(exported.stdout)
    script.write_text(f"#!/bin/sh\ncat {stored}\n")
    script.chmod(0o755)
    playbook, seen = tmp_path / "play.yml", tmp_path / "seen.json"
    playbook.write_text(
        "- hosts: ctid_900\n  gather_facts: false\n  connection: local\n  tasks:\n"
        "    - ansible.builtin.copy:\n        dest: " + str(seen) + "\n"
        "        content: '{{ [phoenix_application, phoenix_definition.note, phoenix_settings.site,"
        " vllm_model_server_engine_config.ServerConfig.x] | to_json }}'\n      delegate_to: localhost\n"
    )
    for source in (path, script):
        result = inventory(
            source, "-c", "local", "-e", "ansible_connection=local", str(playbook), program="ansible-playbook"
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert json.loads(seen.read_text()) == [TEXT, [TEXT, "plain"], TEXT, TEXT]
        seen.unlink()


def test_variables_of_the_source_are_templates(tmp_path: Path) -> None:
    path = site(tmp_path, CONFIG, nodes={"pve": {"ansible_host": "{{ 'pve' ~ 1 }}"}})
    playbook = tmp_path / "play.yml"
    playbook.write_text(
        "- hosts: ctid_900\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.debug:\n        msg: <{{ ansible_host }}>\n"
    )
    result = inventory(path, "-e", "ansible_connection=local", str(playbook), program="ansible-playbook")
    assert "<pve1>" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["example", "lab"])
def test_the_inventories_of_the_repository(name: str) -> None:
    result = inventory(ROOT / "inventories" / name / "lxc_configs.yml", "--list", "--export")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "__ansible_unsafe" not in result.stdout
    hostvars = json.loads(result.stdout)["_meta"]["hostvars"]
    assert [host for host in hostvars if host.startswith("ctid_")] == [
        f"ctid_{ctid}" for ctid in (900, 901, 910, 920, 921, 950, 951)
    ]
    assert hostvars["ctid_921"]["phoenix_lineage"] == [900, 901, 921]
    assert hostvars["ctid_921"]["container_address"] == "10.92.0.121"
    engine = hostvars["ctid_921"]["vllm_model_server_engine_config"]
    assert engine["ServerConfig"] == {"host": "0.0.0.0", "port": 8000, "served_model_name": "llama-3.2-3b-fp8"}
    assert len(hostvars["ctid_950"]["phoenix_deprecations"]) == 1
    if name == "lab":
        assert all(variables["phoenix_lab"] for variables in hostvars.values())
        assert engine["ModelConfig"]["model"] == "/models/tiny-llama"
        assert "quantization" not in json.dumps(engine)
        assert hostvars["ctid_921"]["container_gpus"] == []
        assert {"mp": "/models", "source": "/var/lib/phoenix-lab/models"} in hostvars["ctid_910"]["container_mounts"]
    else:
        assert engine["CacheConfig"]["kv_cache_dtype"] == "fp8"
        assert hostvars["ctid_921"]["container_gpus"] == [0, 1]
        assert hostvars["ctid_910"]["container_mounts"] == [
            {"mp": "/models", "source": "/tank/models", "owner_uid": 1000, "owner_gid": 1000},
            {"mp": "/var/cache/huggingface", "storage": "local-zfs", "size_gb": 200},
        ]
        assert hostvars["ctid_910"]["container_config"]["net0"]["firewall"] == 1
        assert [rule.get("dport") for rule in hostvars["ctid_910"]["container_firewall"]["rules"]] == ["22", None]
