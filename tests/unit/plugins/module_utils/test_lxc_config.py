# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import json
import re
from dataclasses import asdict
from typing import Any

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import firewall, lxc_config
from ansible_collections.phoenix.hypervisor.plugins.module_utils.lxc_config import ConfigError, File
from ansible_collections.phoenix.hypervisor.plugins.module_utils.lxc_entry import KEYS, idmap_lines
from hypothesis import given, settings
from hypothesis import strategies as st

FILE = "site/phoenix_lxc_configs.json"
BASE = {"name": "base", "template": "local:vztmpl/debian-12.tar.zst"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=12,
)


def config(**entry: Any) -> dict[str, Any]:
    """A base and the container 921 that is cloned from it."""
    return {"lxc_configs": {"900": dict(BASE), "921": {"clone_from_ctid": "900", **entry}}}


def sentences(**entry: Any) -> list[str]:
    return [str(problem) for problem in lxc_config.check(config(**entry), FILE)]


def notes(data: dict[str, Any]) -> list[str]:
    return [str(note) for note in lxc_config.Model(data, FILE).notes]


def role_variables(ctid: str, data: dict[str, Any]) -> dict[str, Any]:
    return lxc_config.Model(data, FILE).role_variables(ctid)


def variables(**entry: Any) -> dict[str, Any]:
    data = config(**entry)
    assert lxc_config.check(data, FILE) == []
    return role_variables("921", data)


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ": it is empty"),
        (b" \n", ": it is empty"),
        (b'{"a": 1,}', ":1: it is not JSON: "),
        (b'{"a": 1,\n  "b" 2}', ":2: it is not JSON: expecting ':' delimiter at column 7;"),
        (b"\n\n []", ":3: it holds a list at the top"),
        (b"3", ":1: it holds a number at the top"),
        (b"null", ":1: it holds null at the top"),
        (b'"x"', ":1: it holds text at the top"),
        (b'{"a": "NaN",\n"b": NaN}', ":2: it is not JSON: NaN is no JSON value"),
        (b'{\n"a": "\xff"}', ":2: byte 8 is not UTF-8"),
        (b'{"a": "\\ud83d\\ude00",\n"b": "\\ud800"}', ":2: it holds half of a surrogate pair"),
        (b'{"\\udc00": 1}', ":1: it holds half of a surrogate pair"),
        (b'{"a": 1,\n "b": {"a": 2,\n  "\\u0061": 3}}', ":3: key b.a: the key is there twice, first on line 2;"),
        (
            b'{"lxc_configs":\n {"900":\n {"a": 2, "a":\n 3}}}',
            ":3: CTID 900, key a: the key is there twice, first on line 3; keep one of them.",
        ),
        (b'{"a":\n' + b"9" * 5000 + b"}", ":2: it is not JSON: "),
        (b'{"a": ' * 60000 + b"1" + b"}" * 60000, ": it is nested too deeply"),
    ],
)
def test_parse_refuses(content: bytes, said: str) -> None:
    if b"9" * 5000 in content and not hasattr(__import__("sys"), "get_int_max_str_digits"):
        pytest.skip("this Python reads numbers of any length")
    with pytest.raises(ConfigError) as error:
        lxc_config.parse(content, FILE)
    (problem,) = error.value.problems
    text = str(problem)
    assert text.startswith(f"{FILE}{said}")
    assert "; " in text
    assert text.endswith(".")
    assert "\n" not in text


def test_parse_takes_a_byte_order_mark() -> None:
    assert lxc_config.parse(b'\xef\xbb\xbf{"a": "\xc3\xbc"}', FILE).data == {"a": "ü"}


@settings(deadline=None)
@given(st.dictionaries(st.text("abc", max_size=2), JSON))
def test_parse_gives_what_json_gives(data: dict[str, Any]) -> None:
    assert lxc_config.parse(json.dumps(data).encode(), FILE).data == data


@pytest.mark.parametrize(("name", "said"), [("missing.json", "there is no such file"), (".", "it is a folder")])
def test_read_refuses(tmp_path: Any, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^site/x.json: {said}; "):
        lxc_config.read(str(tmp_path / name), "site/x.json")


# The examples of RFC 7396, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_as_the_rfc(target: Any, patch: Any, result: Any) -> None:
    before = copy.deepcopy((target, patch))
    assert lxc_config.merge_patch(target, patch) == result
    assert (target, patch) == before


@settings(deadline=None)
@given(JSON, JSON)
def test_merge_patch_twice_is_once(target: Any, patch: Any) -> None:
    once = lxc_config.merge_patch(target, patch)
    assert lxc_config.merge_patch(once, patch) == once


@settings(deadline=None)
@given(JSON.filter(lambda value: isinstance(value, dict)))
def test_merge_patch_with_nothing_is_nothing(target: Any) -> None:
    assert lxc_config.merge_patch(target, {}) == target


def test_combine_merges_files_and_overrides() -> None:
    one = {"nvidia_driver_version": "580", "lxc_configs": {"900": {"cores": 1, "name": "a"}}}
    two = {"lxc_configs": {"901": {"name": "b"}}}
    patch = {"lxc_configs": {"900": {"cores": 2, "name": None}}}
    combined = lxc_config.combine([File("1", one), File("2", two)], [File("3", patch)])
    assert combined == {"nvidia_driver_version": "580", "lxc_configs": {"900": {"cores": 2}, "901": {"name": "b"}}}
    assert one["lxc_configs"]["900"] == {"cores": 1, "name": "a"}


@pytest.mark.parametrize(
    ("configs", "overrides", "said"),
    [
        ([{}], [], "there is no lxc_configs in it"),
        ([{"lxc_configs": []}], [], "key lxc_configs: it is a list"),
        ([{"lxc_configs": {}}], [{"lxc_configs": None}], "key lxc_configs: it is null"),
        (
            [{"lxc_configs": {"900": {}}}],
            [{"lxc_configs": {"901": {}}}],
            "o0: CTID 901: it overrides a container that no file declares; declared are 900.",
        ),
        ([{"lxc_configs": {"900": {}}}] * 2, [], "c1: CTID 900: it is declared in c0 too; keep one of the two."),
        (
            [{"a": 1, "lxc_configs": {}}, {"a": 2, "lxc_configs": {}}],
            [],
            "c1: key a: 2 differs from an earlier file's; say it once.",
        ),
    ],
)
def test_combine_refuses(configs: list, overrides: list, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        lxc_config.combine(
            [File(f"c{number}", data) for number, data in enumerate(configs)],
            [File(f"o{number}", data) for number, data in enumerate(overrides)],
        )
    assert said in str(error.value)


def test_a_problem_is_where_the_value_is_given() -> None:
    declared, patch = config(cores=0, memory_mb=1), {"lxc_configs": {"921": {"cores": 0}}}
    sources = [File("a.json", declared, json.dumps(declared, indent=1)), File("b.json", patch, json.dumps(patch))]
    problems = lxc_config.check(lxc_config.combine(sources[:1], sources[1:]), "a.json")
    located = {problem.path: (problem.file, problem.line) for problem in lxc_config.locate(problems, sources)}
    assert located == {("cores",): ("b.json", 1), ("memory_mb",): ("a.json", 10)}


# --- checks -------------------------------------------------------------------------------------------------------


def test_the_sentence() -> None:
    assert sentences(network_config={"ip": "10.92.0.300/24"}) == [
        f'{FILE}: CTID 921, key network_config.ip: "10.92.0.300/24" is not an IPv4 address with the length of its '
        'network\'s prefix; write one such as "10.92.0.121/24", or "dhcp".'
    ]


def test_the_sentence_is_one_line_whatever_it_quotes() -> None:
    (sentence,) = [str(problem) for problem in lxc_config.check({"lxc_configs": {"a\n\u202e[b]": {}}}, FILE)]
    assert sentence.startswith(FILE + r": key lxc_configs.a\n\u202e[b]: it is no CTID; ")


def test_all_problems_at_once() -> None:
    found = sentences(cores=0, memory_mb="much", gpu_assignment="all", features="vllm", network_config={"ip": "x"})
    assert len(found) == 5


WRONG_RULES: list[dict[str, Any]] = [
    {"action": "ALLOW"},
    {"action": "SSH"},
    {"action": "SSH(ALLOW)"},
    {"action": "SSH(ACCEPT"},
    {"action": "(ACCEPT)"},
    {"port": 8000},
    *(
        {"proto": "tcp", "port": port}
        for port in (
            "80;81",
            65536,
            "90:80",
            "8000-8010",
            "80,",
            "80,,81",
            ":80",
            "80:",
            "80 81",
            True,
            [80],
            "1:2,1:2,1:2,1:2,1:2,1:2,1:2,1:2",
        )
    ),
    {"proto": "esp", "port": 8},
    {"proto": "t c p"},
    *(
        {"source": source}
        for source in (
            "10.92.0.300",
            "10.92.0.0/33",
            "10.0.0.5/24",
            "10.0.0.9-10.0.0.1",
            "10.0.0.1-fe80::1",
            "10.0.0.1,10.0.0.5-10.0.0.9",
            "10.0.0.1,fe80::1",
            "!10.0.0.1",
            "10.0.0.1,",
            "any",
            "+",
            "+a b",
            10,
            [],
        )
    ),
    {"source": "10.0.0.1", "dest": "fe80::1"},
    {"comment": "a\nb"},
]
WRONG_GROUP_RULES: list[dict[str, Any]] = [
    {"action": "web(ACCEPT)"},
    {"action": "a" * 19},
    {"action": "1web"},
    {"action": "web", "port": 80},
    {"action": "web", "source": "10.0.0.1"},
]
IN_ONE_LINE = ["a\nb", "a\x00b", [], {}, True, 1.5]
WRONG = {
    "name": ["-a", "a-", "a_b", "a b", "ü", "a" * 64, "a.", "{{ x }}", *IN_ONE_LINE],
    "memory_mb": [0, 15, -1, "x", 1.5, True, [], {}, "1e3"],
    "cores": [0, 8193, "x"],
    "swap_mb": [-1, "x"],
    "start_at_boot": ["yes", 2, [], "on"],
    "boot_order": [-1, "x"],
    "boot_delay": [-1, 0.5],
    "template": IN_ONE_LINE,
    "template_file": IN_ONE_LINE,
    "clone_from_ctid": ["x", 99, 0, [900], 900.5],
    "template_snapshot_name": ["a", "1a", "current", "vzdump", "a" * 41, "a b", "a.b"],
    "is_template": ["x"],
    "storage_pool": ["a b", "-a", "a/b", "local:"],
    "storage_size_gb": [0, "32G", -1],
    "network_config": [[], "dhcp", 1],
    "mac_address": ["x", "BC:24:11:92:09", "BD:24:11:92:09:21", "BC-24-11-92-09-21", "BC:24:11:92:09:2G"],
    "secondary_network_config": [[]],
    "gpu_assignment": ["all", "0;1", "0,", ",0", "a", "-1", "100", [0], True, 1.5, "none,0"],
    "unprivileged": ["maybe"],
    "features": ["vllm", [1.5], [["a"]], ["a b"], ["{{ x }}"], {}],
    "application_script": IN_ONE_LINE,
    "vllm_stack": ["a/b", "../x", "-x"],
    "vllm_stack_overrides": [[], "method=wheel", 1],
    "vllm_engine_config": [[], {"model": "x"}, {"ServerConfig": {"port": 0}}, {"ServerConfig": {"port": [1]}}],
    "vllm_model": IN_ONE_LINE,
    "vllm_model_type": ["image", 1],
    "vllm_max_model_len": [0, "8192 tokens", -2, 1.5],
    "vllm_gpu_memory_utilization": [0, 1.1, -0.5, "x", True, []],
    "vllm_tensor_parallel_size": [0, "two"],
    "vllm_served_model_name": [{}, [1.5]],
    "vllm_port": [0, 65536, "http", -1],
    "vllm_trust_remote_code": ["x"],
    "vllm_parameters": [[], "x", {"port": 0}, {"max-model-len": 0}],
    "vllm_args": [{}, [[]], ["model"], ["-zz", "1"], ["--port", "0"], ["--x 'a"]],
    "pct_options": ["nesting=1", ["nesting"], ["nesting=2"], ["privileged=1"], [1], ["mount="], [None, "x"]],
    "lxc_options": ["lxc.a=b", ["a=b"], ["lxc.a"], ["lxc.a=b\nlxc.c=d"], [1], ["lxc.a b=c"]],
    "apparmor_profile": IN_ONE_LINE,
    "apparmor_manages_nesting": ["x"],
    "id_maps": [{}, [{}], [1], [{"type": "x", "host_id": 1, "container_id": 1, "size": 1}]],
    "zfs_volumes": [
        {},
        [{}],
        ["x"],
        [{"mount_point": "data", "size_gb": 1, "pool": "tank"}],
        [{"mount_point": "/", "size_gb": 1, "pool": "tank"}],
        [{"mount_point": "/data", "pool": "tank"}],
        [{"mount_point": "/data", "size_gb": "50G", "pool": "tank"}],
        [{"mount_point": "/data", "size_gb": 0, "pool": "tank"}],
        [{"mount_point": "/data", "size_gb": 1, "pool": "tank/data"}],
        [{"mount_point": "/data", "size_gb": 1}],
        [{"mount_point": "/data", "mp": "/other", "size_gb": 1, "pool": "tank"}],
        [{"mount_point": "/data", "size_gb": 1, "pool": "tank", "storage": "local-zfs"}],
        [{"mount_point": "/data", "size_gb": 1, "pool": "tank"}, {"mp": "/data/", "size_gb": 2, "pool": "tank"}],
    ],
    "volumes": [{}, [{}], [1], [{"mp": "/", "size_gb": 1, "pool": "tank"}], [{"mp": "/data", "size_gb": 1}]],
    "mount_points": [
        {},
        [{}],
        [{"host_path": "/a"}],
        [{"host_path": "a", "container_path": "/a"}],
        [{"host_path": "/a", "container_path": "/"}],
        [{"host_path": "/a", "container_path": "/b/../c"}],
        [{"host_path": "/a,mp=/b", "container_path": "/b"}],
        [{"host_path": "/a", "container_path": "/b"}, {"host_path": "/c", "container_path": "/b/"}],
        [{"host_path": "/a", "container_path": "/b", "owner_uid": -1}],
    ],
    "firewall": [
        [],
        {"enabled": "x"},
        {"rules": {}},
        {"rules": [{}]},
        {"rules": [{"type": "up", "action": "ACCEPT"}]},
        {"rules": [{"action": "ACCEPT"}]},
        {"rules": [{"type": "in"}]},
        {"rules": [{"type": "forward", "action": "ACCEPT"}]},
        *({"rules": [{"type": "group", **rule}]} for rule in WRONG_GROUP_RULES),
        *({"rules": [{"type": "in", "action": "ACCEPT", **rule}]} for rule in WRONG_RULES),
    ],
    "dependencies": ["950", ["x"], [99], [{}]],
    "ports": [{}],
    "health_check": [[], {"retries": "x"}, {"interval": -1}],
    "tests": [[], {"health": {}}],
    "traefik_service": [[], {"port": 0}, {"scheme": "gopher"}],
    "bootstrap_ca_url": ["ca:9000", "http:// x"],
    "trigger_sync_on_completion": ["x"],
    "enable_lifecycle_snapshots": ["x"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_wrong_values(key: str, value: Any) -> None:
    found = sentences(**{key: value})
    assert found
    assert all(line.startswith(f"{FILE}: CTID 921, key {key}") for line in found)
    assert all(line.endswith(".") and "\n" not in line for line in found)


NETWORK = {"bridge": "vmbr0", "ip": "10.92.0.121/24", "gw": "10.92.0.1"}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"ip": "10.92.0.121"}, "ip"),
        ({"ip": "10.92.0.121/33"}, "ip"),
        ({"ip": "10.92.0.121/255.255.255.0"}, "ip"),
        ({"ip": "10.92.0.0/24"}, "ip"),
        ({"ip": "10.92.0.255/24"}, "ip"),
        ({"ip": "DHCP please"}, "ip"),
        ({"ip": 10}, "ip"),
        ({"gw": "10.92.1.1"}, "gw"),
        ({"gw": "10.92.0.121"}, "gw"),
        ({"gw": "gateway"}, "gw"),
        ({"gw": "10.92.0.1/24"}, "gw"),
        ({"bridge": "a b"}, "bridge"),
        ({"bridge": "vmbr0,tag=5"}, "bridge"),
        ({"name": "a" * 16}, "name"),
        ({"type": "macvlan"}, "type"),
        ({"hwaddr": "x"}, "hwaddr"),
        ({"nameservers": ["8.8.8"]}, "nameservers[0]"),
        ({"nameservers": "8.8.8.8 dns.example.org"}, "nameservers[1]"),
        ({"nameserver": 8}, "nameserver"),
        ({"nameserver": "1.1.1.1", "nameservers": "8.8.8.8"}, "nameserver"),
    ],
)
@pytest.mark.parametrize("which", ["network_config", "secondary_network_config"])
def test_wrong_network(which: str, change: dict[str, Any], key: str) -> None:
    found = sentences(**{which: {**NETWORK, **change}})
    assert len(found) == 1, found
    assert found[0].startswith(f"{FILE}: CTID 921, key {which}.{key}: ")


@pytest.mark.parametrize(
    "network",
    [
        NETWORK,
        {**NETWORK, "ip": "dhcp"},
        {**NETWORK, "ip": "DHCP", "gw": ""},
        {**NETWORK, "ip": "10.92.0.121/32", "gw": "192.168.0.1"},
        {**NETWORK, "ip": "10.92.0.0/31", "gw": "10.92.0.1"},
        {**NETWORK, "nameservers": ["8.8.8.8", "2001:4860:4860::8888"]},
        {**NETWORK, "nameservers": "8.8.8.8,1.1.1.1", "nameserver": ["8.8.8.8", "1.1.1.1"]},
        {**NETWORK, "gw": None, "hwaddr": "bc:24:11:92:09:21"},
        {},
    ],
)
def test_right_network(network: dict[str, Any]) -> None:
    assert sentences(network_config=network) == []


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("key", sorted(KEYS))
def test_null_and_nothing_say_nothing(key: str, value: Any) -> None:
    data = config(**{key: value})
    if key == "clone_from_ctid":
        data["lxc_configs"]["921"]["template"] = "x"
    assert lxc_config.check(data, FILE) == []
    model = lxc_config.Model(data, FILE)
    assert model.deprecations("921") == []
    silent = copy.deepcopy(data)
    del silent["lxc_configs"]["921"][key]
    assert model.role_variables("921") == role_variables("921", silent)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (
            {"cores": 4, "memory_mb": 2048, "unprivileged": False},
            {"cores": "4", "memory_mb": " 2048", "unprivileged": "false"},
        )
    ],
)
def test_numbers_and_booleans_as_text(number: dict[str, Any], text: dict[str, Any]) -> None:
    assert variables(**number) == variables(**text)


def test_unknown_keys_are_noted_once() -> None:
    data = config(
        _comment="x", network_config={"vlan": 5}, firewall={"rules": [{"type": "in", "action": "DROP", "log": 1}]}
    )
    data["lxc_configs"]["900"]["_comment"] = "y"
    data["site"] = "x"
    assert lxc_config.check(data, FILE) == []
    assert notes(data) == [
        f"{FILE}: key site: this key is not known; it is kept in phoenix_settings.",
        f"{FILE}: CTID 900, key _comment: this key is not known (CTID 921 has it too); it is kept in "
        "phoenix_definition.",
        f"{FILE}: CTID 921, key network_config.vlan: this key is not known; it is kept in phoenix_definition.",
        f"{FILE}: CTID 921, key firewall.rules[0].log: this key is not known; it is kept in phoenix_definition.",
    ]


def test_dependencies_elsewhere_are_noted() -> None:
    data = config(dependencies=["900", 101, "8000"])
    assert lxc_config.check(data, FILE) == []
    assert notes(data) == [
        f"{FILE}: CTID 921, key dependencies: 101, 8000 are not declared; whether it runs is left to you."
    ]


@pytest.mark.parametrize("ctid", ["99", "0900", "9x", "", "1000000000", "-900", "{{ x }}", "ctid_900", "٩٠٠"])
def test_wrong_ctids(ctid: str) -> None:
    (problem,) = lxc_config.check({"lxc_configs": {ctid: dict(BASE)}}, FILE)
    assert "it is no CTID; write digits" in str(problem)


@pytest.mark.parametrize("entry", [None, [], "x", 1, True])
def test_wrong_entries(entry: Any) -> None:
    (problem,) = lxc_config.check({"lxc_configs": {"900": entry}}, FILE)
    assert str(problem).startswith(f"{FILE}: CTID 900: ")


def test_without_a_source() -> None:
    (problem,) = lxc_config.check({"lxc_configs": {"900": {"name": "x"}}}, FILE)
    assert "neither what it is cloned from nor which template" in str(problem)


def test_an_unknown_source() -> None:
    assert sentences(clone_from_ctid="901") == [
        f'{FILE}: CTID 921, key clone_from_ctid: "901" is a container that is not declared; '
        "declare it too, or clone from one that is: 900."
    ]


def test_an_unknown_node() -> None:
    problems = lxc_config.Model(config(node="pve9"), FILE, ["pve1", "pve2"]).problems
    assert [str(problem) for problem in problems] == [
        f'{FILE}: CTID 921, key node: "pve9" is not among the nodes; write pve1 or pve2.'
    ]
    assert lxc_config.Model(config(node="pve2"), FILE, ["pve1", "pve2"]).problems == []


@pytest.mark.parametrize(
    ("clones", "dependencies", "said"),
    [
        ({900: 900}, {}, "CTID 900, key clone_from_ctid: it is cloned, in the end, from itself: 900 → 900;"),
        (
            {900: 902, 901: 900, 902: 901, 903: 902},
            {},
            "CTID 900, key clone_from_ctid: it is cloned, in the end, from itself: 900 → 902 → 901 → 900;",
        ),
        ({901: 900}, {900: [901]}, "CTID 900, key dependencies: it waits, in the end, for itself: 900 → 901 → 900;"),
        (
            {},
            {900: [901], 901: [902], 902: [901]},
            "CTID 901, key dependencies: it waits, in the end, for itself: 901 → 902 → 901;",
        ),
        ({}, {900: [900]}, "CTID 900, key dependencies: it waits, in the end, for itself: 900 → 900;"),
    ],
)
def test_circles(clones: dict[int, int], dependencies: dict[int, list[int]], said: str) -> None:
    ctids = {
        900,
        *clones,
        *clones.values(),
        *dependencies,
        *(other for list_ in dependencies.values() for other in list_),
    }
    containers: dict[str, Any] = {str(ctid): {"template": "x"} for ctid in ctids}
    for ctid, source in clones.items():
        containers[str(ctid)]["clone_from_ctid"] = source
    for ctid, others in dependencies.items():
        containers[str(ctid)]["dependencies"] = others
    (problem,) = lxc_config.check({"lxc_configs": containers}, FILE)
    assert said in str(problem)


def test_a_long_lineage_is_no_trouble() -> None:
    containers: dict[str, Any] = {"100": dict(BASE)}
    for ctid in range(101, 3100):
        containers[str(ctid)] = {"clone_from_ctid": ctid - 1}
    data = {"lxc_configs": containers}
    assert lxc_config.check(data, FILE) == []
    assert lxc_config.Model(data, FILE).waves()[3099] == 2999
    assert lxc_config.Model(data, FILE).lineage("3099") == list(range(100, 3100))
    containers["100"]["clone_from_ctid"] = "3099"
    assert len(lxc_config.check(data, FILE)) == 1


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        ({"name": "a"}, {"name": "A"}, "name"),
        (
            {"mac_address": "BC:24:11:00:00:01"},
            {"network_config": {"hwaddr": "bc:24:11:00:00:01"}},
            "network_config.hwaddr",
        ),
        (
            {"network_config": {"ip": "10.0.0.5/24"}},
            {"secondary_network_config": {"ip": "10.0.0.5/16"}},
            "secondary_network_config.ip",
        ),
    ],
)
def test_twice_in_two_containers(one: dict[str, Any], other: dict[str, Any], key: str) -> None:
    data = {"lxc_configs": {"901": {**other, "template": "x"}, "900": {**one, "template": "x"}}}
    (problem,) = lxc_config.check(data, FILE)
    assert str(problem).startswith(f"{FILE}: CTID 901, key {key}: ")
    assert "belongs to CTID 900 already" in str(problem)


def test_dhcp_is_no_address_of_anyone() -> None:
    network = {"network_config": {"ip": "dhcp"}, "template": "x"}
    assert lxc_config.check({"lxc_configs": {"900": network, "901": network}}, FILE) == []


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"template": "a", "template_file": "b"}, "template_file"),
        (
            {"mac_address": "BC:24:11:00:00:01", "network_config": {"hwaddr": "BC:24:11:00:00:02"}},
            "network_config.hwaddr",
        ),
        ({"apparmor_profile": "unconfined", "lxc_options": ["lxc.apparmor.profile=generated"]}, "apparmor_profile"),
        (
            {
                "id_maps": [{"type": "u", "host_id": 1, "container_id": 1, "size": 1}],
                "lxc_options": ["lxc.idmap: u 0 1 1"],
            },
            "id_maps",
        ),
    ],
)
def test_said_twice_and_differently(entry: dict[str, Any], key: str) -> None:
    (sentence,) = sentences(**entry)
    assert sentence.startswith(f"{FILE}: CTID 921, key {key}: ")


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(KEYS)), JSON, max_size=6))
def test_any_value_is_checked_without_a_traceback(entry: dict[str, Any]) -> None:
    data = config(**entry)
    model = lxc_config.Model(data, FILE)
    assert all(str(line).startswith(FILE) for line in model.problems + model.notes)
    if not model.problems:
        result = model.role_variables("921")
        assert set(result) <= set(lxc_config.ROLE_VARIABLES)
        assert json.loads(json.dumps(result)) == result


# --- order --------------------------------------------------------------------------------------------------------


def test_lineage_and_waves() -> None:
    containers: dict[str, Any] = {
        "951": {"clone_from_ctid": 920, "dependencies": ["950", "4000"]},
        "950": {"clone_from_ctid": "920"},
        "920": {"clone_from_ctid": "901"},
        "901": {"clone_from_ctid": "900"},
        "900": BASE,
    }
    data = {"lxc_configs": containers}
    assert lxc_config.Model(data, FILE).lineage("951") == [900, 901, 920, 951]
    assert lxc_config.Model(data, FILE).lineage("900") == [900]
    assert lxc_config.Model(data, FILE).waves() == {900: 0, 901: 1, 920: 2, 950: 3, 951: 4}


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=30)
)
def test_waves_are_after_what_they_wait_for(sources: list[int], edges: list[tuple[int, int]]) -> None:
    containers: dict[str, Any] = {str(100 + number): {"template": "x", "dependencies": []} for number in range(31)}
    for number, source in enumerate(sources):
        if source < number:
            containers[str(100 + number)]["clone_from_ctid"] = str(100 + source)
    for one, other in edges:
        if other < one:
            containers[str(100 + one)]["dependencies"].append(100 + other)
    data = {"lxc_configs": containers}
    assert lxc_config.check(data, FILE) == []
    waves = lxc_config.Model(data, FILE).waves()
    for ctid, entry in containers.items():
        others = [int(other) for other in [entry.get("clone_from_ctid", 0), *entry["dependencies"]] if other]
        assert waves[int(ctid)] == max((waves[other] + 1 for other in others), default=0)


# --- role variables -----------------------------------------------------------------------------------------------


def test_a_silent_entry() -> None:
    assert variables() == {
        "container_vmid": 921,
        "container_clone": {"vmid": 900},
        "container_ostemplate": "",
        "container_unprivileged": True,
        "container_config": {},
        "container_mounts": [],
        "container_raw": [],
    }


def test_the_example_of_the_contract() -> None:
    data = {
        "lxc_configs": {
            "901": {"name": "gpu", "template": "x", "template_snapshot_name": "gpu-snapshot"},
            "921": {
                "name": "Template-VLLM-FP8",
                "clone_from_ctid": "901",
                "memory_mb": 32768,
                "swap_mb": 0,
                "cores": 8,
                "start_at_boot": True,
                "boot_order": 5,
                "boot_delay": 10,
                "pct_options": ["nesting=1"],
                "storage_pool": "local-zfs",
                "storage_size_gb": 64,
                "gpu_assignment": "0, 1",
                "mac_address": "bc:24:11:92:09:21",
                "network_config": {"name": "eth0", **NETWORK, "nameservers": ["8.8.8.8", "1.1.1.1"]},
                "mount_points": [{"host_path": "/tank/models/", "container_path": "/models", "owner_uid": 1000}],
                "apparmor_profile": "unconfined",
                "lxc_options": [
                    "lxc.cap.keep=a,b",
                    "lxc.mount.entry = /a b none bind 0 0",
                    "lxc.apparmor.profile: unconfined",
                ],
                "vllm_stack": "cpu",
                "vllm_engine_config": {"ModelConfig": {"model": "m", "seed": None}, "ServerConfig": {"port": "8000"}},
            },
        }
    }
    assert lxc_config.check(data, FILE) == []
    assert role_variables("921", data) == {
        "container_vmid": 921,
        "container_address": "10.92.0.121",
        "container_clone": {"vmid": 901, "snapname": "gpu-snapshot"},
        "container_ostemplate": "",
        "container_storage": "local-zfs",
        "container_disk_gb": 64,
        "container_unprivileged": True,
        "container_config": {
            "hostname": "Template-VLLM-FP8",
            "memory": 32768,
            "swap": 0,
            "cores": 8,
            "onboot": 1,
            "startup": {"order": 5, "up": 10, "down": 10},
            "features": {"nesting": 1},
            "nameserver": "8.8.8.8 1.1.1.1",
            "net0": {
                "name": "eth0",
                "bridge": "vmbr0",
                "ip": "10.92.0.121/24",
                "gw": "10.92.0.1",
                "hwaddr": "BC:24:11:92:09:21",
                "type": "veth",
            },
        },
        "container_gpus": [0, 1],
        "container_mounts": [{"mp": "/models", "source": "/tank/models", "owner_uid": 1000}],
        "container_raw": [
            "lxc.cap.keep: a,b",
            "lxc.mount.entry: /a b none bind 0 0",
            "lxc.apparmor.profile: unconfined",
        ],
        "vllm_stack_name": "cpu",
        "vllm_model_server_engine_config": {"ModelConfig": {"model": "m"}, "ServerConfig": {"port": 8000}},
    }


# As the old system wrote them.
GPU_LINES = [
    "lxc.mount.entry=/dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
    "lxc.mount.entry=/dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file",
    "lxc.cgroup2.devices.allow=c 195:* rwm",
    "lxc.cgroup2.devices.allow=c 243:* rwm",
]


@pytest.mark.parametrize(
    ("assignment", "numbers"),
    [("none", []), ("None", []), ("0", [0]), (0, [0]), ("1,0", [0, 1]), ("0, 1", [0, 1]), ("0,0", [0])],
)
def test_gpus(assignment: Any, numbers: list[int]) -> None:
    assert variables(gpu_assignment=assignment)["container_gpus"] == numbers


@pytest.mark.parametrize(
    ("options", "features"),
    [
        (["nesting=1", "keyctl=1"], {"nesting": 1, "keyctl": 1}),
        (["nesting=1,keyctl=0"], {"nesting": 1, "keyctl": 0}),
        ([" fuse = 1 "], {"fuse": 1}),
        (["mount=nfs;cifs"], {"mount": "nfs;cifs"}),
        ([], {}),
    ],
)
def test_features(options: list[str], features: dict[str, Any]) -> None:
    assert variables(pct_options=options)["container_config"]["features"] == features


def test_nesting_is_left_alone_where_the_profile_manages_it() -> None:
    result = variables(pct_options=["nesting=1", "keyctl=1"], apparmor_manages_nesting=True, apparmor_profile="p")
    assert result["container_config"]["features"] == {"keyctl": 1}
    assert result["container_raw"] == ["lxc.apparmor.profile: p"]


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("lxc.a=b", "lxc.a: b"),
        ("lxc.a = b", "lxc.a: b"),
        ("lxc.a: b", "lxc.a: b"),
        ("lxc.cap.keep=a,b", "lxc.cap.keep: a,b"),
        ("lxc.cgroup2.devices.allow: c 195:* rwm", "lxc.cgroup2.devices.allow: c 195:* rwm"),
        ("lxc.cgroup2.devices.allow = c 195:* rwm", "lxc.cgroup2.devices.allow: c 195:* rwm"),
        ("lxc.environment=A=b: c", "lxc.environment: A=b: c"),
        ("lxc.cap.drop=", "lxc.cap.drop: "),
    ],
)
def test_raw_lines(written: str, line: str) -> None:
    assert variables(lxc_options=[written])["container_raw"] == [line]


def test_a_second_interface() -> None:
    result = variables(
        network_config={"ip": "dhcp", "bridge": "vmbr0"},
        secondary_network_config={"ip": "10.9.0.2/24", "bridge": "vmbr1", "nameserver": "9.9.9.9"},
    )
    assert result["container_address"] == ""
    assert result["container_config"] == {
        "net0": {"name": "eth0", "bridge": "vmbr0", "ip": "dhcp", "type": "veth"},
        "net1": {"name": "eth1", "bridge": "vmbr1", "ip": "10.9.0.2/24", "type": "veth"},
        "nameserver": "9.9.9.9",
    }


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"command": " a\n{{ b }} ", "retries": "3"}, {"command": "a\n{{ b }}", "retries": 3}),
        ({"command": "a", "interval": 0, "retries": None}, {"command": "a", "interval": 0}),
        ({"retries": 3}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_health_check(declared: Any, expected: Any) -> None:
    assert variables(health_check=declared).get("verify_health_check") == expected


def test_tests() -> None:
    declared = {"health": [{"name": "a", "type": "script", "path": "b.sh"}, {"path": 5}], "empty": []}
    expected = {"health": [{"name": "a", "type": "script", "path": "b.sh"}, {"path": "5"}], "empty": []}
    assert variables(tests=declared)["verify_tests"] == expected
    assert "verify_tests" not in variables(tests={})


def test_a_mac_address_alone() -> None:
    assert variables(mac_address="bc:24:11:00:00:01")["container_config"]["net0"]["hwaddr"] == "BC:24:11:00:00:01"


def test_a_template_has_no_snapshot() -> None:
    data = config()
    data["lxc_configs"]["900"].update(is_template=True, template_snapshot_name="base-snapshot")
    assert lxc_config.check(data, FILE) == []
    assert notes(data) == [
        f'{FILE}: CTID 900, key template_snapshot_name: "base-snapshot" is '
        "not taken: a template has no snapshots; remove it."
    ]
    base = role_variables("900", data)
    assert base["container_template"] is True
    assert "container_snapshot" not in base
    clone = role_variables("921", data)
    assert clone["container_clone"] == {"vmid": 900}


def test_fault_2_a_clone_has_the_gpus_that_it_was_given() -> None:
    """Fault 2: a clone of a template that has GPUs 0 and 1 kept both, although it was given one."""
    data = config(gpu_assignment="0")
    data["lxc_configs"]["900"].update(gpu_assignment="0,1", lxc_options=GPU_LINES)
    assert lxc_config.check(data, FILE) == []
    for entry, gpus in (({"gpu_assignment": "0"}, [0]), ({"gpu_assignment": "none"}, []), ({}, None)):
        data["lxc_configs"]["921"] = {"clone_from_ctid": "900", **entry}
        result = role_variables("921", data)
        assert result.get("container_gpus") == gpus
        assert result["container_raw"] == []  # said, so that the source's lines that come along are removed


def test_fault_3_raw_lines_with_hard_coded_numbers_are_left_to_the_assignment() -> None:
    """Fault 3: the device number of nvidia-uvm was hard-coded in raw lines; it differs by kernel and boot."""
    data = config(gpu_assignment="0", lxc_options=[*GPU_LINES, "lxc.cap.drop=sys_time"])
    assert variables(**data["lxc_configs"]["921"])["container_raw"] == ["lxc.cap.drop: sys_time"]
    (note,) = notes(data)
    assert note.startswith(f'{FILE}: CTID 921, key lxc_options: ["lxc.mount.entry: /dev/nvidia0 ')
    assert note.endswith("is left out: gpu_assignment says which GPUs it can open; remove it from lxc_options.")


def test_raw_lines_for_gpus_without_an_assignment_stay() -> None:
    data = config(lxc_options=GPU_LINES)
    assert variables(lxc_options=GPU_LINES)["container_raw"] == [line.replace("=", ": ", 1) for line in GPU_LINES]
    assert notes(data) == []


@pytest.mark.parametrize(
    "line",
    [
        "lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir",
        "lxc.cgroup2.devices.allow: c 226:0 rwm",
        "lxc.cgroup2.devices.allow: c 243:0 rwm",
        "lxc.cgroup2.devices.deny: c 195:* rwm",
        "lxc.environment: NVIDIA_VISIBLE_DEVICES=all",
    ],
)
def test_other_raw_lines_stay_beside_an_assignment(line: str) -> None:
    data = config(gpu_assignment="none", lxc_options=[line])
    assert variables(gpu_assignment="none", lxc_options=[line])["container_raw"] == [line]
    assert notes(data) == []


@pytest.mark.parametrize("what", ["a", "a *:* rwm", "c *:* rwm"])
def test_a_raw_line_that_allows_every_device_is_noted(what: str) -> None:
    line = f"lxc.cgroup2.devices.allow: {what}"
    data = config(gpu_assignment="0", lxc_options=[line])
    assert variables(gpu_assignment="0", lxc_options=[line])["container_raw"] == [line]
    assert notes(data) == [
        f'{FILE}: CTID 921, key lxc_options: "{line}" allows every device, all GPUs too; '
        "name the devices that it needs."
    ]


def test_fault_1_a_volume_is_named_by_its_mount_point() -> None:
    """Fault 1: every run added a 50 GB volume. What is declared is one volume for each mount point."""
    declared = {
        "storage_pool": "local-zfs",
        "zfs_volumes": [
            {"name": "models", "pool": "tank", "size_gb": "50", "mount_point": "/models/"},
            {"size_gb": 8, "mount_point": "/data"},
        ],
        "volumes": [{"storage": "fast", "size_gb": 2, "mp": "/fast"}],
        "mount_points": [
            {"host_path": "/tank/a", "container_path": "/a", "owner_uid": "1000", "owner_gid": 0},
            {"host_path": "/tank/b", "container_path": "/b"},
        ],
    }
    assert variables(**declared)["container_mounts"] == [
        {"mp": "/a", "source": "/tank/a", "owner_uid": 1000, "owner_gid": 0},
        {"mp": "/b", "source": "/tank/b"},
        {"mp": "/models", "storage": "tank", "size_gb": 50},
        {"mp": "/data", "storage": "local-zfs", "size_gb": 8},
        {"mp": "/fast", "storage": "fast", "size_gb": 2},
    ]
    twice = [{"mount_point": "/models", "size_gb": 50}] * 2
    (sentence,) = sentences(storage_pool="local-zfs", zfs_volumes=twice)
    assert "is mounted by zfs_volumes[0] already" in sentence


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        ({"mount_point": "/data", "size_gb": 1}, "key zfs_volumes[0]: it names no storage; add pool here, or storage_"),
        ({"mount_point": "/data", "pool": "tank"}, "key zfs_volumes[0].size_gb: it is missing; add it."),
        ({"size_gb": 1, "pool": "tank"}, "key zfs_volumes[0].mount_point: it is missing; add it."),
        (
            {"mount_point": "/a", "mp": "/b", "size_gb": 1, "pool": "tank"},
            'key zfs_volumes[0].mp: "/b" differs from mount_point; keep one of the two.',
        ),
    ],
)
def test_what_is_wrong_with_a_volume(volume: dict[str, Any], said: str) -> None:
    (sentence,) = sentences(zfs_volumes=[volume])
    assert said in sentence


def test_a_volume_and_a_bind_mount_at_the_same_place() -> None:
    (sentence,) = sentences(
        mount_points=[{"host_path": "/a", "container_path": "/data"}],
        volumes=[{"mp": "/data/", "storage": "tank", "size_gb": 1}],
    )
    assert 'key volumes[0].mount_point: "/data" is mounted by mount_points[0] already' in sentence


def test_a_clone_source_with_a_bind_mount() -> None:
    data = config()
    data["lxc_configs"]["900"]["mount_points"] = [{"host_path": "/tank", "container_path": "/tank"}]
    data["lxc_configs"]["922"] = {"clone_from_ctid": 900}
    assert [str(problem) for problem in lxc_config.check(data, FILE)] == [
        f"{FILE}: CTID 900, key mount_points: Proxmox can't clone bind mounts, and CTID 921, 922 is cloned from this "
        "container; declare the mount points in the clones instead."
    ]
    data["lxc_configs"]["900"]["mount_points"] = []
    assert lxc_config.check(data, FILE) == []


@pytest.mark.parametrize("key", ["template_snapshot_name", "enable_lifecycle_snapshots"])
def test_snapshots_of_a_container_with_a_bind_mount(key: str) -> None:
    mounts = [{"host_path": "/tank", "container_path": "/tank"}]
    value = True if key.startswith("enable") else "ready"
    assert sentences(**{key: value}, mount_points=mounts) == [
        f"{FILE}: CTID 921, key {key}: Proxmox takes no snapshot of a container that has bind mounts (mount_points); "
        "remove one of the two, or put the data on a volume (zfs_volumes)."
    ]
    volume = [{"mount_point": "/tank", "size_gb": 1, "pool": "tank"}]
    assert sentences(**{key: value}, zfs_volumes=volume) == []
    assert sentences(mount_points=mounts, enable_lifecycle_snapshots=False) == []


def rules(*declared: dict[str, Any]) -> list[dict[str, Any]]:
    return variables(firewall={"rules": list(declared)})["container_firewall"]["rules"]


@pytest.mark.parametrize(
    ("declared", "rule"),
    [
        ({"type": "IN", "action": "accept"}, {"type": "in", "action": "ACCEPT"}),
        (
            {
                "type": "in",
                "action": "ACCEPT",
                "proto": "TCP",
                "port": 8000,
                "source": "10.92.0.0/24",
                "comment": "API",
            },
            {
                "type": "in",
                "action": "ACCEPT",
                "proto": "tcp",
                "dport": "8000",
                "source": "10.92.0.0/24",
                "comment": "API",
            },
        ),
        ({"type": "out", "action": "SSH(drop)"}, {"type": "out", "action": "DROP", "macro": "SSH"}),
        ({"type": "group", "action": "web-servers"}, {"type": "group", "action": "web-servers"}),
        ({"type": "in", "action": "DROP", "port": None, "dest": ""}, {"type": "in", "action": "DROP"}),
    ],
)
def test_firewall_rules(declared: dict[str, Any], rule: dict[str, Any]) -> None:
    assert rules(declared) == [rule]
    (taken,) = firewall.declared_rules(921, [rule])
    assert {key: value for key, value in asdict(taken).items() if key in rule} == rule


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        (" 10.0.0.1, 10.1.0.0/16 ", "10.0.0.1,10.1.0.0/16"),
        ("10.0.0.1-10.0.0.9", "10.0.0.1-10.0.0.9"),
        ("10.0.0.5/32", "10.0.0.5/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::/8,::1", "fd00::/8,::1"),
        ("+office", "+office"),
        ("+dc/office", "+dc/office"),
        ("guest/office", "guest/office"),
        ("office", "office"),
    ],
)
def test_firewall_addresses(written: str, address: str) -> None:
    (rule,) = rules({"type": "in", "action": "DROP", "source": written})
    assert rule["source"] == address


@pytest.mark.parametrize(
    ("written", "port"),
    [(8000, "8000"), ("8000:8010", "8000:8010"), ("80, 443,8000:8010", "80,443,8000:8010"), ("https", "https")],
)
@pytest.mark.parametrize("proto", ["tcp", "udp", 17, "sctp"])
def test_firewall_ports(proto: Any, written: Any, port: str) -> None:
    (rule,) = rules({"type": "in", "action": "DROP", "proto": proto, "port": written})
    assert rule["dport"] == port


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"type": "forward", "action": "DROP"}, "rules[1].type: 'forward' is no type"),
        ({"type": "in", "action": "ACCEPT", "proto": "tcp", "port": 80801}, "rules[1].port: '80801' is beyond"),
        ({"type": "in", "action": "ACCEPT", "port": 80}, "rules[1].proto: missing"),
        ({"type": "in", "action": "ACCEPT", "source": "10.0.0.300"}, "rules[1].source: '10.0.0.300' is no address"),
        ({"type": "in"}, "rules[1].action: it is missing"),
    ],
)
def test_what_is_wrong_with_a_rule(rule: dict[str, Any], said: str) -> None:
    """The module's own checks of a rule, before anything runs; the place is that in the JSON."""
    (sentence,) = sentences(firewall={"rules": [{"type": "in", "action": "DROP"}, rule]})
    assert sentence.startswith(f"{FILE}: CTID 921, key firewall.{said}")
    assert re.search("; (write|take|add) .*[.]$", sentence)


def test_what_a_firewall_does_not_say_is_left_out() -> None:
    assert "container_firewall" not in variables()
    assert "container_firewall" not in variables(firewall={})
    assert variables(firewall={"enabled": "false"})["container_firewall"] == {"enabled": False}
    assert variables(firewall={"rules": []})["container_firewall"] == {"rules": []}


@pytest.mark.parametrize(("enabled", "flag"), [(True, 1), ("1", 1), (False, None), (None, None)])
def test_a_firewall_is_on_at_every_declared_card(enabled: Any, flag: int | None) -> None:
    result = variables(firewall={"enabled": enabled}, network_config=NETWORK, secondary_network_config={"ip": "dhcp"})[
        "container_config"
    ]
    assert [result[key].get("firewall") for key in ("net0", "net1")] == [flag, flag]


def test_what_is_created_from_a_template_file() -> None:
    data = {"lxc_configs": {"900": {"template_file": "/var/lib/vz/x.tar.zst", "unprivileged": False}}}
    result = role_variables("900", data)
    assert result["container_ostemplate"] == "/var/lib/vz/x.tar.zst"
    assert result["container_clone"] == {}
    assert result["container_unprivileged"] is False


# --- id maps ------------------------------------------------------------------------------------------------------


def id_map(kind: str, inside: int, host: int, size: int = 1) -> dict[str, Any]:
    return {"type": kind, "container_id": inside, "host_id": host, "size": size}


@pytest.mark.parametrize(
    ("maps", "lines"),
    [
        (
            [id_map("u", 1000, 1000)],
            ["u 0 100000 1000", "u 1000 1000 1", "u 1001 101001 64535", "g 0 100000 65536"],
        ),
        ([id_map("gid", 0, 44, 65536)], ["u 0 100000 65536", "g 0 44 65536"]),
        (
            [id_map("both", 70000, 5)],
            ["u 0 100000 65536", "u 70000 5 1", "g 0 100000 65536", "g 70000 5 1"],
        ),
    ],
)
def test_idmap_lines(maps: list[dict[str, Any]], lines: list[str]) -> None:
    assert variables(id_maps=maps)["container_raw"] == [f"lxc.idmap: {line}" for line in lines]


@pytest.mark.parametrize(
    "maps",
    [
        [id_map("u", 1000, 1000, 2), id_map("u", 1001, 5000)],
        [id_map("u", 1000, 1000, 2), id_map("u", 2000, 1001)],
        [id_map("u", 1000, 100000)],
    ],
)
def test_idmaps_that_overlap(maps: list[dict[str, Any]]) -> None:
    (sentence,) = sentences(id_maps=maps)
    assert sentence.startswith(f"{FILE}: CTID 921, key id_maps: ")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(1, 3000)), max_size=5))
def test_idmap_lines_leave_no_gap(ranges: list[tuple[int, int]]) -> None:
    maps, end = [], 0
    for skip, size in ranges:
        start = end + skip % 20000
        if start + size > 65536:
            break
        maps.append(id_map("u", start, 1000000 + start, size))
        end = start + size
    covered = 0
    for line in idmap_lines(maps):
        key, kind, inside, host, size = line.split()
        assert key == "lxc.idmap:"
        if kind == "u":
            assert int(inside) == covered
            assert int(host) - int(inside) in (100000, 1000000)
            covered += int(size)
    assert covered == 65536


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, None),
        ({"1": "cpu"}, "cpu"),
        ({"1": "cpu", "2": "cuda"}, "cuda"),
        ({"1": "cpu", "3": " own "}, "own"),
        ({"1": "cpu", "3": None}, "cpu"),
    ],
)
def test_a_clone_has_the_stack_of_its_nearest_source(named: dict, expected: str | None) -> None:
    entries: dict = {"1": {}, "2": {"clone_from_ctid": "1"}, "3": {"clone_from_ctid": 2}}
    for ctid, stack in named.items():
        entries[ctid]["vllm_stack"] = stack
    data = {"lxc_configs": {str(100 + int(ctid)): entry for ctid, entry in entries.items()}}
    for entry in entries.values():
        if "clone_from_ctid" in entry:
            entry["clone_from_ctid"] = 100 + int(entry["clone_from_ctid"])
    assert role_variables("103", data).get("vllm_stack_name") == expected


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"1": {"vllm_stack": "cpu"}}, None),
        ({"1": {"vllm_stack": "cpu", "vllm_stack_overrides": {"a": {"b": None}}}}, {"a": {"b": None}}),
        ({"1": {"vllm_stack_overrides": {"a": 1}}, "2": {"vllm_stack": "cuda"}}, None),
        ({"1": {"vllm_stack": "cpu"}, "3": {"vllm_stack_overrides": {"a": 1}}}, {"a": 1}),
        ({"1": {"vllm_stack": "cpu", "vllm_stack_overrides": {"a": 1}}, "3": {"vllm_stack": "cpu"}}, None),
    ],
)
def test_overrides_go_with_the_stack_that_they_were_written_for(entries: dict, expected: dict | None) -> None:
    sources = {"1": {}, "2": {"clone_from_ctid": 101}, "3": {"clone_from_ctid": 102}}
    data = {"lxc_configs": {f"10{ctid}": {**entry, **entries.get(ctid, {})} for ctid, entry in sources.items()}}
    assert role_variables("103", data).get("vllm_stack_overrides") == expected
