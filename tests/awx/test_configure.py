# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/awx on a stand-in for AWX's API (tests/support/awx_stand_in.py), with the modules of awx.awx themselves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awx_stand_in
import pytest
import yaml
from awx_job import environment_of
from awx_stand_in import SECRET, TOKEN, Awx

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "awx/controller.yml"
PLAYBOOKS = ["site.yml", *(f"playbooks/{name}.yml" for name in
             ("verify", "benchmark", "rollback", "gpu_check", "models", "certificates"))]  # fmt: skip
SECRETS = {
    "PHOENIX_NODE_SSH_KEY": "-----BEGIN KEY-----", "PHOENIX_HF_TOKEN": "hf_s3cret",
    "PHOENIX_PROXMOX_TOKEN_SECRET": "pv3s3cret",
}  # fmt: skip


class Site:
    """An AWX, and what is run against it."""

    def __init__(self, awx: Awx, url: str, folder: Path, environment: Path) -> None:
        self.awx, self.folder, self.bin = awx, folder, environment / "bin"
        self.secrets = dict(SECRETS)
        self.address = {"CONTROLLER_HOST": url, "CONTROLLER_OAUTH_TOKEN": TOKEN}

    def run(self, playbook: str, *options: str, file: Path | None = FILE) -> subprocess.CompletedProcess[str]:
        """Run one of the playbooks."""
        words = ["-e", f"@{file}"] if file else []
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.folder), "LANG": "C.UTF-8", "COLUMNS": "9999",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_INVENTORY": "/dev/null",
            "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "false", **self.address, **self.secrets,
        }  # fmt: skip
        command = [self.bin / "ansible-playbook", ROOT / f"playbooks/awx/{playbook}.yml", *words, *options]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    def well(self, playbook: str, *options: str, file: Path | None = FILE) -> str:
        """Run one that has to end well, and return what it printed."""
        done = self.run(playbook, *options, file=file)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def declare(self, **lists: Any) -> Path:
        """Write a file of lists."""
        path = self.folder / "controller.yml"
        path.write_text(yaml.safe_dump(lists))
        return path


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    """An AWX with an organization of somebody's, for the project's own ansible-core."""
    with awx_stand_in.running(PLAYBOOKS) as (awx, url):
        yield Site(awx, url, tmp_path, environment_of("2.19"))


ORGANIZATION = {"name": "Ours"}
FIELD = {"id": "a", "label": "A", "type": "string", "secret": True}
TYPE = {"name": "T v1", "inputs": {"fields": [FIELD]}, "injectors": {}}
PROJECT = {"name": "P", "organization": "Ours", "scm_url": "https://git.example.com/p.git"}


@pytest.mark.parametrize("core", ["2.19", *(pytest.param(core, marks=pytest.mark.full) for core in ("2.17", "2.21"))])
def test_configure_twice_and_tear_down(site: Site, core: str) -> None:
    """All is made by the first run, nothing by the second, and AWX is as it was after the teardown."""
    site.bin = environment_of(core) / "bin"
    before = site.awx.everything()
    # As somebody would run it who looks for a mistake.
    output = site.well("configure", "-vvvv", "--diff")
    awx = site.awx
    # AWX would have dropped these in silence.
    assert awx.unknown == []
    assert not [secret for secret in (TOKEN, *SECRETS.values()) if secret in output]
    template = awx.get("job_templates", "Phoenix provision")
    assert template["ask_limit_on_launch"] and template["ask_tags_on_launch"] and template["ask_variables_on_launch"]
    asked = [question["variable"] for question in awx.surveys[template["id"]]["spec"]]
    assert asked == ["phoenix_target", "vllm_stack_method", "phoenix_stack", "phoenix_version"]
    assert awx.linked("job_templates", "Phoenix provision", "credentials") == ["Phoenix Hugging Face", "Phoenix nodes"]
    ways = {name: awx.linked("workflow_job_template_nodes", name, "failure_nodes") for name in
            ("provision", "verify", "benchmark", "rollback")}  # fmt: skip
    assert ways == {"provision": ["rollback"], "verify": ["rollback"], "benchmark": ["rollback"], "rollback": []}
    assert awx.linked("workflow_job_template_nodes", "provision", "success_nodes") == ["verify"]
    assert awx.linked("workflow_job_template_nodes", "verify", "success_nodes") == ["benchmark"]
    assert awx.get("workflow_job_template_nodes", "rollback")["extra_data"] == {"phoenix_rollback_changed_only": True}
    told = {name: awx.linked("job_templates", name, "notification_templates_error") for name in
            awx.names("job_templates")}  # fmt: skip
    assert len(told) == 7 and set(map(tuple, told.values())) == {("Phoenix webhook",)}
    assert len(awx.names("schedules")) == 3
    hub = awx.get("credential_types", "Phoenix Hugging Face token v1")
    assert hub["injectors"]["file"] == {"template": "{{ token }}"} and "env" not in hub["injectors"]
    assert awx.hidden[awx.get("credentials", "Phoenix Hugging Face")["id"]] == {"token": "hf_s3cret"}

    # A secret that is known no more stays what it is.
    site.secrets = {}
    written = len(awx.writes)
    output = site.well("configure")
    assert awx.writes[written:] == [] and "changed=0" in output, output
    assert awx.hidden[awx.get("credentials", "Phoenix Hugging Face")["id"]] == {"token": "hf_s3cret"}

    site.well("teardown")
    assert awx.everything() == before


def test_a_change_changes_that_alone(site: Site) -> None:
    """A question more, a node less and another secret are three changes."""
    lists = {
        "controller_organizations": [ORGANIZATION], "controller_credential_types": [TYPE],
        "controller_credentials": [
            {"name": "C", "organization": "Ours", "credential_type": "T v1", "secrets": {"a": "THE_A"}}],
        "controller_projects": [PROJECT],
        "controller_inventories": [{"name": "I", "organization": "Ours"}],
        "controller_templates": [{"name": "J", "organization": "Ours", "project": "P", "inventory": "I",
                                  "playbook": "site.yml"}],
        "controller_workflows": [{"name": "W", "organization": "Ours", "simplified_workflow_nodes": [
            {"identifier": "one", "unified_job_template": "J", "success_nodes": ["two"]},
            {"identifier": "two", "unified_job_template": "J"}]}],
    }  # fmt: skip
    site.secrets = {"THE_A": "first"}
    site.well("configure", file=site.declare(**lists))
    question = {"question_name": "Q", "variable": "q", "type": "text", "required": False}
    lists["controller_templates"][0]["survey_spec"] = {"name": "", "description": "", "spec": [question]}
    nodes = lists["controller_workflows"][0]["simplified_workflow_nodes"]
    del nodes[1], nodes[0]["success_nodes"]
    site.secrets = {"THE_A": "second"}
    written = len(site.awx.writes)
    site.well("configure", "-e", "awx_config_update_secrets=true", file=site.declare(**lists))
    paths = {(method, path.split("/")[3], path.split("/")[5]) for method, path, _data in site.awx.writes[written:]}
    assert paths == {
        ("PATCH", "credentials", ""), ("PATCH", "job_templates", ""), ("POST", "job_templates", "survey_spec"),
        ("POST", "workflow_job_template_nodes", "success_nodes"), ("DELETE", "workflow_job_template_nodes", ""),
    }  # fmt: skip
    assert site.awx.hidden[site.awx.get("credentials", "C")["id"]] == {"a": "second"}
    assert site.awx.get("credentials", "C")["inputs"] == {"a": SECRET}
    assert site.awx.names("workflow_job_template_nodes") == ["one"]


def test_what_others_made_stays(site: Site) -> None:
    """What has a name of ours is refused, before anything changes; what others have in our organization keeps it."""
    site.awx.create("organizations", {"name": "Ours", "description": "Theirs"})
    file = site.declare(
        controller_organizations=[ORGANIZATION], controller_projects=[PROJECT], controller_credential_types=[TYPE]
    )
    written = len(site.awx.writes)
    refused = site.run("configure", file=file)
    assert refused.returncode and "AWX has the organization 'Ours', and configure did not make it" in refused.stdout
    assert site.awx.writes[written:] == []
    # With leave it is ours, and goes with the teardown only when it is empty.
    site.well("configure", "-e", "awx_config_take_over=true", file=file)
    team = site.awx.create("teams", {"name": "Theirs", "organization": site.awx.get("organizations", "Ours")["id"]})
    used = {"name": "Stranger", "credential_type": site.awx.get("credential_types", "T v1")["id"]}
    credential = site.awx.create("credentials", used)
    output = site.well("teardown", file=file)
    said = "The credential type T v1 stays, because credentials that configure did not make are of it: Stranger."
    assert said in " ".join(output.split()), output
    assert "T v1" in site.awx.names("credential_types")
    assert "The organization Ours stays, because it has what configure did not make: Theirs." in output
    assert site.awx.names("organizations") == ["Default", "Ours"] and site.awx.names("projects") == []
    site.awx.forget("teams", team["id"])
    site.awx.forget("credentials", credential["id"])
    site.well("teardown", file=file)
    assert site.awx.names("organizations") == ["Default"] and "T v1" not in site.awx.names("credential_types")
    # One that configure never touched isn't removed, whatever the file says.
    output = site.well("teardown", file=site.declare(controller_organizations=[{"name": "Default"}]))
    assert "The organization Default stays: configure did not make it." in output
    assert site.awx.names("organizations") == ["Default"]


def test_secrets_come_from_elsewhere(site: Site) -> None:
    """Not in the file; a name that nothing has is told of, without the name."""
    credential = {"name": "C", "organization": "Ours", "credential_type": "T v1"}
    lists = {"controller_organizations": [ORGANIZATION], "controller_credential_types": [TYPE]}
    plain = site.declare(**lists, controller_credentials=[{**credential, "inputs": {"a": "s3cret"}}])
    done = site.run("configure", file=plain)
    assert done.returncode and "The credential 'C' has a among its inputs, where all can read it." in done.stdout
    assert "s3cret" not in done.stdout.replace(str(plain), "")
    mistaken = site.declare(**lists, controller_credentials=[{**credential, "secrets": {"a": "s3cret"}}])
    done = site.run("configure", file=mistaken)
    assert done.returncode and "The credential 'C' is new and its a is not known" in done.stdout
    assert "s3cret" not in done.stdout and site.awx.names("organizations") == ["Default"]
    # A variable, of a vault for instance, comes before the environment.
    named = site.declare(**lists, controller_credentials=[{**credential, "secrets": {"a": "vault_a"}}])
    site.secrets = {"vault_a": "of the environment"}
    site.well("configure", "-e", "vault_a=v4ult", file=named)
    assert site.awx.hidden[site.awx.get("credentials", "C")["id"]] == {"a": "v4ult"}


@pytest.mark.parametrize(
    ("lists", "address", "sentence"),
    [
        ({"controller_organizations": [{"nam": "x"}]}, True, "nam. Supported parameters include"),
        ({"controller_organizations": [ORGANIZATION, ORGANIZATION]}, True, "'Ours' is declared twice."),
        ({"controller_organizations": [{"name": "a,b"}]}, True, "can't have a comma"),
        ({"controller_organizations": [ORGANIZATION]}, False, "Nothing says where AWX is."),
        ({}, True, "Nothing is declared. Name your copy of awx/controller.yml with -e @FILE."),
    ],
)
def test_mistakes_are_sentences(site: Site, lists, address, sentence) -> None:
    """And nothing is sent to AWX."""
    site.address = site.address if address else {}
    done = site.run("configure", file=site.declare(**lists))
    assert done.returncode and sentence in done.stdout, done.stdout
    assert "Traceback" not in done.stdout + done.stderr and site.awx.names("organizations") == ["Default"]


def test_sync_and_launch(site: Site) -> None:
    """Both wait for the end, and a job that fails is a failure here; a limit of the caller's changes nothing."""
    file = site.declare(
        controller_organizations=[ORGANIZATION], controller_projects=[PROJECT],
        controller_inventories=[{"name": "I", "organization": "Ours"}],
        controller_inventory_sources=[{"name": "S", "organization": "Ours", "inventory": "I", "source_project": "P",
                                       "source_path": "lxc_configs.yml"}],
        controller_templates=[{"name": "J", "organization": "Ours", "project": "P", "inventory": "I",
                               "playbook": "site.yml", "ask_limit_on_launch": True, "ask_variables_on_launch": True}],
    )  # fmt: skip
    site.well("configure", file=file)
    site.well("sync", file=file)
    assert [name for name, _data in site.awx.launched] == ["P", "S"]
    words = ["-e", '{"phoenix_awx_variables": {"phoenix_target": "ctid_921"}}', "-e", "phoenix_awx_limit=ctid_921"]
    site.well("launch", "-e", "phoenix_awx_template=J", *words, file=None)
    sent = {"limit": "ctid_921", "extra_vars": {"phoenix_target": "ctid_921"}}
    assert site.awx.launched[-1] == ("J", sent)
    site.awx.job_ends = "failed"
    failed = site.run("launch", "-e", "phoenix_awx_template=J", file=None)
    assert failed.returncode and "J, failed" in failed.stdout
    nothing = site.run("launch", file=None)
    assert nothing.returncode and "Name what is launched: -e phoenix_awx_template='Phoenix provision'" in nothing.stdout
    # A limit to a host of the inventory, as AWX gives one, leaves the work in.
    site.awx.job_ends = "successful"
    site.well("sync", "-i", "ctid_1,ctid_2,", "-l", "ctid_2", file=file)
    assert [name for name, _data in site.awx.launched[-2:]] == ["P", "S"]
