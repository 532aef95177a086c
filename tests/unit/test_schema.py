# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The JSON Schema for editors refuses nothing that the inventory plugin takes.

The plugin's own check is stricter: it follows references (clone sources, circles, what belongs to two containers), and
compares keys of one entry (address and gateway, mounts, id maps, two forms of one argument).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import lxc_config, lxc_entry
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "schemas" / "phoenix_lxc_configs.schema.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
EXAMPLE = json.loads((ROOT / "inventories/example/phoenix_lxc_configs.json").read_text())
PATCH = json.loads((ROOT / "inventories/lab/overrides.json").read_text())

# One value that is taken, for each key.
VOLUMES = [{"name": "a", "size_gb": 1, "mp": "/a", "storage": "tank"}, {"size_gb": "2", "mount_point": "/b"}]
TAKEN: dict[str, Any] = {
    "name": "web-1",
    "node": "pve",
    "memory_mb": "4096",
    "cores": 4.0,
    "swap_mb": 0,
    "start_at_boot": "True",
    "boot_order": 1,
    "boot_delay": 10,
    "template": "local:vztmpl/debian-12.tar.zst",
    "template_file": "/var/lib/x.tar.zst",
    "clone_from_ctid": 900,
    "template_snapshot_name": "gpu-snapshot",
    "is_template": 1,
    "storage_pool": "local-zfs",
    "storage_size_gb": 32,
    "network_config": {"ip": " DHCP", "bridge": "vmbr0", "nameserver": "8.8.8.8, ::1", "gw": "10.0.0.1"},
    "mac_address": "bc:24:11:00:00:01",
    "secondary_network_config": {"ip": "10.0.0.2/24", "type": "VETH", "nameservers": ["1.1.1.1"], "parent": {}},
    "gpu_assignment": "0, 1",
    "unprivileged": False,
    "features": ["base_setup", 5],
    "application_script": "x.sh",
    "vllm_stack": "cpu",
    "vllm_stack_overrides": {"method": "source", "vllm": {"commit": "main"}, "flashinfer": None},
    "vllm_engine_config": {"ModelConfig": {"max_model_len": "8k", "x": None}, "Own": {"a": [1]}, "CacheConfig": None},
    "vllm_model": "m",
    "vllm_model_type": "Chat",
    "vllm_quantization": "none",
    "vllm_max_model_len": -1,
    "vllm_gpu_memory_utilization": "0.90",
    "vllm_tensor_parallel_size": 2,
    "vllm_served_model_name": ["a", 1],
    "vllm_port": "8000",
    "vllm_trust_remote_code": "0",
    "vllm_parameters": {"dtype": "half", "port": None},
    "vllm_args": ["--max-num-seqs", 4, 0.5],
    "pct_options": ["nesting=1", " mount = nfs;cifs , keyctl=1"],
    "lxc_options": [" lxc.cap.drop = sys_time"],
    "apparmor_profile": "unconfined",
    "apparmor_manages_nesting": True,
    "id_maps": [{"type": "BOTH", "host_id": 1, "container_id": "1", "size": 1}],
    "zfs_volumes": VOLUMES,
    "volumes": VOLUMES,
    "mount_points": [{"host_path": "/a", "container_path": "/b", "owner_uid": 0, "owner_gid": "", "read_only": True}],
    "firewall": {"enabled": True, "rules": [{"type": "IN", "action": "SSH(accept)", "port": None, "log": "x"}]},
    "dependencies": ["900", 101],
    "ports": [8000, {"a": 1}],
    "health_check": {"command": "a\nb", "retries": 3},
    "tests": {"health": [{"name": "a", "type": "shell", "path": "x"}]},
    "traefik_service": {"name": "a", "port": 80, "scheme": "HTTPS"},
    "portainer_role": "agent",
    "bootstrap_ca_url": "https://10.0.0.10:9000",
    "bootstrap_ca_fingerprint": ["ab" * 32, ":".join(["0F"] * 32)],
    "certificates": [
        {"common_name": "a.b", "sans": "c, 10.0.0.1", "owner": "root:ssl-cert", "permissions": 640, "mode": "0640",
         "cert_path": "/a", "key_path": "/b", "post_renewal_command": "systemctl reload nginx", "guest_id": 921},
        {"name": "x", "sans": [" *.c ", "::1"], "post_renewal_command": ["/bin/a", 1], "guest_type": "LXC"},
    ],
    "trigger_sync_on_completion": False,
    "enable_lifecycle_snapshots": "1",
}
TEXTS = [text for value in TAKEN.values() for text in re.findall(r"[^\"{}\[\]]+", json.dumps(value))]
VALUE = (
    st.sampled_from([None, True, False, 0, 1, -1, 99, 10**9, 10**19, 0.5, 1.0, 1e300, "", "\n", "900\n", "٣", *TEXTS])
    | st.text(max_size=6)
    | st.sampled_from(list(TAKEN.values()))
)
NAMES = st.sampled_from(["ip", "gw", "port", "type", "name", "size_gb", "mp", "rules", "x"])
JSON = st.recursive(
    VALUE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def is_taken(key: str, value: Any) -> bool:
    findings = lxc_entry.Findings()
    lxc_entry.parse_entry({key: value}, findings)
    return not findings.problems


def is_in_schema(key: str, value: Any) -> bool:
    container = {"template": "x", **({key: value} if key != "template" else {"template": value})}
    return VALIDATOR.is_valid({"lxc_configs": {"900": container}})


def test_it_is_a_schema_and_up_to_date() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    command = [sys.executable, "tools/schema", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_knows_every_key() -> None:
    assert set(TAKEN) == set(lxc_entry.KEYS)
    properties = SCHEMA["definitions"]["container"]["properties"]
    assert set(properties) == set(TAKEN)
    for text in re.findall(r'"description": "(.*?)"', json.dumps(SCHEMA, ensure_ascii=False)):
        assert text.endswith((".", '\\')), text


@pytest.mark.parametrize("data", [EXAMPLE, lxc_config.merge_patch(EXAMPLE, PATCH)])
def test_the_examples(data: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors(data)) == []
    assert lxc_config.check(data, "f") == []


@pytest.mark.parametrize("key", sorted(TAKEN))
def test_what_is_taken(key: str) -> None:
    assert is_taken(key, TAKEN[key]) or key.endswith("volumes")  # of which one names no storage
    assert is_in_schema(key, TAKEN[key])
    assert is_in_schema(key, None)
    assert is_in_schema(key, "")


@pytest.mark.parametrize("key", sorted(TAKEN))
@settings(deadline=None, max_examples=60)
@given(value=JSON)
def test_what_the_check_takes_the_schema_takes(key: str, value: Any) -> None:
    if is_taken(key, value):
        assert is_in_schema(key, value)


@settings(deadline=None)
@given(st.sampled_from(sorted(EXAMPLE["lxc_configs"])), st.sampled_from(sorted(TAKEN)), JSON)
def test_what_the_schema_refuses_the_check_refuses(ctid: str, key: str, value: Any) -> None:
    data = lxc_config.merge_patch(EXAMPLE, {})
    data["lxc_configs"] = {**data["lxc_configs"], ctid: {**data["lxc_configs"][ctid], key: value}}
    if not VALIDATOR.is_valid(data):
        assert lxc_config.check(data, "f")


# What an editor marks: the wrong kind of value, a wrong form, something that is missing.
MARKED: list[tuple[str, Any]] = [
    *((key, {"x": 1}) for key, value in TAKEN.items() if not isinstance(value, dict)),
    *((key, ["x"]) for key, value in TAKEN.items() if isinstance(value, dict)),
    ("name", "a b"),
    ("memory_mb", 0),
    ("cores", 8193),
    ("start_at_boot", "yes"),
    ("template_snapshot_name", "1a"),
    ("network_config", {"ip": "10.0.0.1"}),
    ("network_config", {"gw": "fe80::1"}),
    ("gpu_assignment", "-1"),
    ("gpu_assignment", "all"),
    ("vllm_gpu_memory_utilization", 1.5),
    ("vllm_model_type", "image"),
    ("vllm_engine_config", {"CacheConfig": {"gpu_memory_utilization": 2}}),
    ("pct_options", ["privileged=1"]),
    ("lxc_options", ["cap.drop=x"]),
    ("mount_points", [{"host_path": "/a"}]),
    ("mount_points", [{"host_path": "a", "container_path": "/b"}]),
    ("zfs_volumes", [{"mount_point": "/a"}]),
    ("firewall", {"rules": [{"type": "in"}]}),
    ("dependencies", [99]),
]


@pytest.mark.parametrize(("key", "value"), MARKED)
def test_what_an_editor_marks(key: str, value: Any) -> None:
    assert not is_in_schema(key, value)
    assert not is_taken(key, value)


@pytest.mark.parametrize(
    "data", [[], {}, {"lxc_configs": []}, {"lxc_configs": {"99": {"template": "x"}}}, {"lxc_configs": {"900": {}}}]
)
def test_what_an_editor_marks_at_the_top(data: Any) -> None:
    assert not VALIDATOR.is_valid(data)
