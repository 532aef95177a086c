# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is declared for AWX fits awx.awx, the playbooks and the stacks; what AWX stores of an inventory."""

from __future__ import annotations

import configparser
import itertools
import json
import re
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import fragment_loader, module_loader
from ansible.utils.plugin_docs import get_docstring
from awx_job import Awx, environment_of
from dateutil.rrule import rrulestr

ROOT = Path(__file__).resolve().parents[2]
CALLS = [*sorted((ROOT / "roles/awx_config/tasks").glob("*.yml")), *sorted((ROOT / "playbooks/awx").glob("*.yml"))]


def tasks_of(node: Any) -> list[dict[str, Any]]:
    """All tasks in a file, those of plays and blocks included."""
    if isinstance(node, list):
        return [task for one in node for task in tasks_of(one)]
    nested = [task for key in ("tasks", "block", "rescue", "always") for task in tasks_of(node.get(key, []))]
    return [node, *nested]


def calls() -> list[tuple[str, str, dict[str, Any]]]:
    """Every call of awx.awx: the file, the module, its arguments."""
    found = []
    for path in CALLS:
        for task in tasks_of(yaml.safe_load(path.read_text())):
            found += [(path.name, key, task[key]) for key in task if key.startswith("awx.awx.")]
    return found


def options_of(module: str) -> dict[str, Any]:
    """The options that the documentation of a module has, those for the connection included."""
    path = module_loader.find_plugin(module)
    assert path, f"there is no {module}"
    return get_docstring(path, fragment_loader)[0]["options"]


def _id(value: Any) -> str:
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(("file", "module", "arguments"), calls(), ids=_id)
def test_every_call_fits_the_module(file: str, module: str, arguments: dict[str, Any]) -> None:
    """Each argument is an option by its own name, required ones are there, plain values are of their type."""
    assert isinstance(arguments, dict), f"{file}: {module} gets its arguments one by one"
    options = options_of(module)
    assert set(arguments) <= set(options), f"{file}: {module}"
    required = {name for name, option in options.items() if option.get("required")}
    assert required <= set(arguments), f"{file}: {module}"
    kinds = {"bool": bool, "int": int, "str": str, "list": list, "dict": dict}
    for name, value in arguments.items():
        if isinstance(value, str) and "{{" in value:
            continue
        assert isinstance(value, kinds[options[name].get("type", "str")]), f"{file}: {module} {name}"
        assert value in options[name].get("choices", [value]), f"{file}: {module} {name}"


def test_all_modules_are_called() -> None:
    """What is made is removed by the same module."""
    made = {module for file, module, _arguments in calls() if file in ("main.yml", "workflow.yml")}
    removed = {
        module for file, module, arguments in calls()
        if file in ("teardown.yml", "organization.yml") and arguments["state"] == "absent"
    }  # fmt: skip
    # A workflow takes its nodes along.
    assert made - removed == {"awx.awx.workflow_job_template_node"} and len(made) == 12


DECLARED = DataLoader().load_from_file(str(ROOT / "awx/controller.yml"))
ALL = {name: DECLARED[name] for name in DECLARED if name.startswith("controller_")}


def test_every_name_is_declared() -> None:
    """What an entry names is there, by the name that it has."""
    names = {name: {entry["name"] for entry in entries} for name, entries in ALL.items()}
    where = {
        "project": "projects", "source_project": "projects", "inventory": "inventories",
        "execution_environment": "execution_environments", "default_environment": "execution_environments",
    }  # fmt: skip
    for entries in ALL.values():
        for entry in entries:
            for key, kind in where.items():
                assert entry.get(key) in {None, *names[f"controller_{kind}"]}, entry["name"]
            assert set(entry.get("credentials", [])) <= names["controller_credentials"]
            for when in ("success", "error"):
                assert set(entry.get(f"notification_templates_{when}", [])) <= names["controller_notifications"]
            assert entry.get("unified_job_template") in {None, *names["controller_templates"]}
    for workflow in ALL["controller_workflows"]:
        nodes = {node["identifier"]: node for node in workflow["simplified_workflow_nodes"]}
        for node in nodes.values():
            assert node["unified_job_template"] in names["controller_templates"]
            assert {*node.get("success_nodes", []), *node.get("failure_nodes", [])} <= set(nodes)


def test_templates_are_playbooks_that_awx_can_run() -> None:
    """Each playbook is there, takes a target, and has no play that a limit skips."""
    for template in ALL["controller_templates"]:
        path = ROOT / template["playbook"]
        assert path.exists(), template["name"]
        text = yaml.safe_load(path.read_text())
        assert "survey_spec" in template and template["ask_limit_on_launch"]
        if template["playbook"] == "site.yml":
            text = yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
        for play in text:
            assert "phoenix_target | default(" in play["hosts"] and "localhost" not in play["hosts"], template["name"]


def playbooks() -> list[Path]:
    return [*sorted((ROOT / "playbooks").glob("*.yml")), *sorted((ROOT / "playbooks/awx").glob("*.yml"))]


@pytest.mark.parametrize("path", playbooks(), ids=lambda path: path.stem)
def test_every_playbook_works_from_awx(path: Path) -> None:
    """A blank target means all, and a limit leaves the work in."""
    for play in yaml.safe_load(path.read_text()):
        assert re.search(r"phoenix_target \| default\('[\w:]+', true\)", play["hosts"]), play["name"]
        # localhost alone would be left out by each limit.
        assert not re.search(r"default\('localhost'", play["hosts"]), play["name"]


@pytest.mark.parametrize(
    ("name", "weekday", "hour"),
    [("benchmark every night", "", "0300"), ("verify every week", "0", "0500"), ("certificates every day", "", "0130")],
)
def test_schedules_start_when_they_say(name: str, weekday: str, hour: str) -> None:
    """AWX wants a start with its time zone, and an interval; the next three starts are a day or a week apart."""
    (entry,) = [one for one in ALL["controller_schedules"] if one["name"] == f"Phoenix {name}"]
    zone = DECLARED["phoenix_awx_time_zone"]
    rule = entry["rrule"].replace("{{ phoenix_awx_time_zone }}", zone)
    assert rule.startswith(f"DTSTART;TZID={zone}:") and rule.count("RRULE:") == 1 and "INTERVAL=1" in rule
    starts = list(itertools.islice(rrulestr(rule.replace(" ", "\n")), 3))
    assert {start.strftime("%H%M") for start in starts} == {hour}
    assert starts[1] - starts[0] == starts[2] - starts[1] == timedelta(days=7 if weekday else 1)
    assert not weekday or starts[0].weekday() == int(weekday)


def test_nothing_in_the_repository_trips_awx() -> None:
    """What was seen to go wrong on a running one; each is silent there, or shows long after."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = set(listed.split("\0"))
    settings = configparser.ConfigParser()
    settings.read(ROOT / "ansible.cfg")
    # A job's inventory is a script, which a list of plugins would have to name.
    assert not settings.has_option("inventory", "enable_plugins")
    # A target that is misspelled would be a job that does nothing, and ends well.
    assert settings["inventory"]["host_pattern_mismatch"] == "error"
    # AWX would take over such variables for good, and fetch such collections for each job.
    assert not [name for name in names if re.search(r"(^|/)group_vars/(all|ungrouped)(/|\.|$)", name)]
    assert not [name for name in names if re.fullmatch(r"((collections|roles)/)?requirements\.ya?ml", name)]


def test_surveys_ask_what_there_is() -> None:
    """The stacks that are offered are those that can be installed; the methods are the role's."""
    asked = {question["variable"]: question for question in DECLARED["phoenix_awx_questions"]}
    stacks = sorted(path.parent.name for path in (ROOT / "roles/vllm_stack/files/stacks").glob("*/requirements.lock"))
    assert asked["phoenix_stack"]["choices"].split("\n") == stacks
    specs = yaml.safe_load((ROOT / "roles/vllm_stack/meta/argument_specs.yml").read_text())["argument_specs"]
    choices = specs["main"]["options"]["vllm_stack_method"]["choices"]
    assert ["", *asked["vllm_stack_method"]["choices"].split("\n")] == choices
    # An empty answer is one: nothing is required.
    assert not any(question["required"] or question["default"] for question in asked.values())


def test_secrets_are_never_in_the_file() -> None:
    """Of every secret field of a credential's type there is a name of a variable, and nothing in the inputs."""
    types = {entry["name"]: entry for entry in ALL["controller_credential_types"]}
    for entry in ALL["controller_credentials"]:
        fields = types.get(entry["credential_type"], {"inputs": {"fields": []}})["inputs"]["fields"]
        secret = {field["id"] for field in fields if field.get("secret")} or {"ssh_key_data"}
        assert not secret & set(entry.get("inputs", {}))
        assert set(entry["secrets"]) == secret
        assert all(re.fullmatch(r"PHOENIX_[A-Z_]+", name) for name in entry["secrets"].values())


# From AWX on a real one: a 2.17 doesn't read ansible.cfg's collections_path there, a 2.19 doesn't read the plural.
@pytest.mark.parametrize("core", ["2.19", *(pytest.param(core, marks=pytest.mark.full) for core in ("2.17", "2.21"))])
def test_what_awx_stores_of_an_inventory(core: str, tmp_path: Path) -> None:
    """The example's JSON, read as an inventory source: plain JSON, without a path of the control node or a secret."""
    awx = Awx(tmp_path, environment_of(core))
    folder = awx.project / "inventories/production"
    shutil.copytree(ROOT / "inventories/example", folder)
    (source,) = ALL["controller_inventory_sources"]
    variables = {
        name: value.replace("/runner/project", str(awx.project)) for name, value in source["source_vars"].items()
    }
    # It is a source at the top of the repository, too; a 2.19 needs no variables.
    shutil.copy(folder / "phoenix_lxc_configs.json", awx.project)
    shutil.copy(folder / "lxc_configs.yml", awx.project)
    shutil.copytree(folder / "group_vars", awx.project / "group_vars")
    stored = []
    bare = variables if core == "2.17" else {}
    for name, given in (("inventories/production/lxc_configs.yml", variables), ("lxc_configs.yml", bare)):
        done = awx.sync(name, **given)
        assert done.returncode == 0, done.stderr
        stored.append(json.dumps(awx.inventory, sort_keys=True))
    assert stored[0] == stored[1]
    assert "ctid_921" in awx.inventory["_meta"]["hostvars"]
    for path in (str(tmp_path), str(ROOT), str(Path.home())):
        assert path not in stored[0], path
    assert "__ansible_unsafe" not in stored[0] and "__ansible_vault" not in stored[0]
