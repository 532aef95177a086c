# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks pass to the roles agrees with the roles and with the inventory, and whom they concern."""
from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import ansible_programs
import pytest
import yaml
from ansible_collections.phoenix.hypervisor.plugins.module_utils.lxc_config import ROLE_VARIABLES

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
PASSED = yaml.safe_load((ROOT / "playbooks/tasks/container.yml").read_text())[0]["vars"]


def _read(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text()) or {}


def test_every_declared_variable_is_passed_on():
    """A clone source that is converged for a clone gets all that its declaration gives, not what the clone's gives."""
    assert set(ROLE_VARIABLES) <= set(PASSED)


# The JSON doesn't give container_devices, but host_vars may.
@pytest.mark.parametrize("name", sorted({*ROLE_VARIABLES, "container_devices"} - {"container_vmid", "vllm_stack_name"}))
def test_a_silent_declaration_leaves_the_roles_default(name):
    role = max((role for role in ROLES if name.startswith(f"{role}_")), key=len)
    match = re.fullmatch(
        r"\{\{ hostvars\[phoenix_host\]\.(\w+) \| default\((.*)\) \}\}", PASSED[name]
    )
    assert match, PASSED[name]
    assert match.group(1) == name
    literal = {"none": None, "true": True, "false": False}
    default = literal[match.group(2)] if match.group(2) in literal else ast.literal_eval(match.group(2))
    assert default == _read(f"roles/{role}/defaults/main.yml")[name]


def test_null_passes_the_spec_of_every_core():
    """Core 2.17 hands null on as "", which is a list for it, but no list of numbers or dictionaries."""
    defaults = _read("roles/container/defaults/main.yml")
    options = _read("roles/container/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    nullable = [options[name] for name, default in defaults.items() if default is None]
    assert nullable
    assert all(option["type"] == "list" and option.get("elements", "str") == "str" for option in nullable)


def test_a_stack_that_is_asked_for_comes_before_the_declared_one():
    assert "asked_stack', hostvars[phoenix_host].vllm_stack_name | default('')" in PASSED["vllm_stack_name"]
    assert _read("roles/vllm_stack/defaults/main.yml")["vllm_stack_name"] == ""


@pytest.mark.parametrize("role", ROLES)
def test_spec_and_defaults_agree(role):
    """Each public variable is described, and described with the default that it has."""
    defaults = _read(f"roles/{role}/defaults/main.yml")
    specs = _read(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]
    options = {name: option for spec in specs.values() for name, option in spec.get("options", {}).items()}
    assert set(defaults) <= set(options)
    for name, option in options.items():
        assert name.startswith(f"{role}_") or name in ROLE_VARIABLES or name.startswith("phoenix_"), name
        if "default" in option:
            assert option["default"] == defaults[name], name
        elif not option.get("required") and name in defaults:
            # What is empty, or made from other variables, is described in words.
            assert defaults[name] in (None, "", [], {}) or "{{" in str(defaults[name]), name


def test_gpu_check_of_all_passes_by_what_has_no_gpu(tmp_path):
    containers = {
        "ctid_7": {}, "ctid_8": {"container_gpus": []}, "ctid_9": {"container_gpus": None},
        "ctid_900": {"container_gpus": [0], "container_template": True},
    }  # fmt: skip
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"phoenix_containers": {
        "hosts": containers, "vars": {"ansible_connection": "local"},
    }}))  # fmt: skip
    done = subprocess.run(
        [*ansible_programs.command("ansible-playbook"), "-i", str(inventory), str(ROOT / "playbooks/gpu_check.yml")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("ctid_7", "ctid_8", "ctid_9"):
        assert f"{name} has no GPU assigned (gpu_assignment): nothing to check." in done.stdout
    assert "ctid_900 is a template, in which nothing runs: nothing to check." in done.stdout
