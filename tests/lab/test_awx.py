# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs as AWX runs them (tests/support/awx_job.py), on containers 590 to 593 of the lab."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from awx_job import Awx, Job, declaration, environment_of
from lab_modules import CONFIGS, OSTEMPLATE, destroy, require_lab

pytestmark = pytest.mark.lab
CTIDS = (593, 592, 591, 590)
SOURCE = "inventories/production/lxc_configs.yml"
NODES = {"pve": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}
COMMON = {
    "template": OSTEMPLATE, "storage_pool": "local-btrfs", "storage_size_gb": 2, "memory_mb": 128, "swap_mb": 0,
    "cores": 1,
}  # fmt: skip
# What the survey of "Phoenix provision" sends when nothing is filled in.
BLANK = {"phoenix_target": "", "vllm_stack_method": "", "phoenix_stack": "", "phoenix_version": ""}
BROKEN = {**COMMON, "network_config": {"name": "eth0", "bridge": "nobr", "ip": "dhcp"}}


def entry(ctid: int, **keys: Any) -> dict[str, Any]:
    """A small container that answers its health check."""
    network = {"name": "eth0", "bridge": "vmbr0", "ip": f"10.92.0.{ctid - 580}/24", "gw": "10.92.0.1"}
    return {**COMMON, "network_config": network, "health_check": {"command": "true"}, **keys}


CONTAINERS = {
    # 593 comes first by its wave, and last by its name.
    593: entry(593),
    590: BROKEN,
    591: entry(591, dependencies=[593]),
    592: entry(592, features=["vllm"], vllm_stack="cpu"),
}


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    require_lab()
    destroy(*CTIDS)
    yield
    destroy(*CTIDS)


@pytest.fixture(params=["2.19", *(pytest.param(core, marks=pytest.mark.full) for core in ("2.17", "2.21"))])
def awx(request, tmp_path) -> Awx:
    """A project with these containers, whose inventory was read."""
    new = Awx(tmp_path, environment_of(request.param))
    new.declare(SOURCE, CONTAINERS, NODES)
    done = new.sync(SOURCE, ANSIBLE_COLLECTIONS_PATH=str(new.project / ".ansible/collections"))
    assert done.returncode == 0, done.stderr
    return new


def started(job: Job, name: str) -> list[str]:
    """The hosts that began a task, in order."""
    ran = [event["event_data"] for event in job.events if event["event"] == "runner_on_start"]
    return [data["host"] for data in ran if data["task"] == name]


def test_jobs(awx: Awx) -> None:
    """Provision twice, one failing; verify; what a survey asks for that can't be."""
    provision = awx.launch("site.yml", {**BLANK, "phoenix_target": "ctid_590,ctid_591,ctid_593"}, workflow=7)
    assert provision.status == "failed", provision.output
    # The failure is that of 590. 591 comes after 593, although AWX sorts by names.
    assert provision.failed == {"ctid_590"}, provision.output
    assert "ctid_590 failed." in provision.output and "nobr" in provision.output
    looked = started(provision, "Look at the containers of the lineage")
    assert looked.index("ctid_593") < looked.index("ctid_591"), looked
    assert (CONFIGS / "591.conf").exists() and (CONFIGS / "593.conf").exists()

    again = awx.launch("site.yml", BLANK, limit="ctid_591")
    assert again.status == "successful", again.output
    assert again.of("changed") == {}, again.output

    verify = awx.launch("playbooks/verify.yml", {"phoenix_target": ""}, limit="ctid_591,ctid_593")
    assert verify.status == "successful", verify.output
    assert "verify_report" in verify.artifacts

    for answers, sentence in (
        ({"phoenix_stack": "gpu"}, "phoenix_stack is 'gpu', and there is no such stack"),
        ({"phoenix_version": "9.9"}, "no stack without a GPU has this version of vLLM. There are 0.32.0"),
        ({"vllm_stack_method": "carrier pigeon"}, "value of vllm_stack_method must be one of"),
        ({"phoenix_target": "ctid_999"}, "ctid_999"),
    ):
        job = awx.launch("site.yml", {**BLANK, **answers}, limit="ctid_592")
        assert job.status == "failed", job.output
        assert sentence in " ".join(job.output.replace("│", " ").split()), job.output
        assert "Traceback" not in job.output
    assert not (CONFIGS / "592.conf").exists()


def test_answers_that_mean_something(awx: Awx) -> None:
    """What a person asks for is checked, and what would be done is told; nothing is done."""
    answers = {**BLANK, "phoenix_target": "ctid_592", "phoenix_version": "v0.32.0", "vllm_stack_method": "wheel"}
    job = awx.launch("site.yml", answers, check=True)
    assert job.status == "successful", job.output
    assert job.of("changed") == {"ctid_592": 1} and not (CONFIGS / "592.conf").exists()
    # Of the steps that have tags, only this one.
    tagged = awx.launch("site.yml", {**BLANK, "phoenix_target": "ctid_592"}, check=True, tags="verify")
    assert tagged.status == "successful", tagged.output
    assert tagged.of("changed") == {}


@pytest.mark.full
def test_every_choice_of_the_survey(awx: Awx) -> None:
    """What can be chosen is done, as far as a check goes, or refused in a sentence that says why."""
    asked = [one for one in declaration()["phoenix_awx_questions"] if one["type"] == "multiplechoice"]
    choices = {one["variable"]: one["choices"].split() for one in asked}
    # What is not chosen is not sent at all.
    answers = {"phoenix_target": "ctid_592", "phoenix_version": ""}
    # The container's stack has no sources.
    refused = dict.fromkeys(("source", "auto"), "method is {}, and vllm.commit is missing: name the commit to build.")
    tried = 0
    for variable, ones in choices.items():
        for one in ones:
            job = awx.launch("site.yml", {**answers, variable: one}, check=True)
            said = " ".join(job.output.replace("│", " ").split())
            assert refused.get(one, "").format(one) in said and "Traceback" not in said, said
            assert job.status == ("failed" if one in refused else "successful"), said
            tried += 1
    assert tried == 7
    assert not (CONFIGS / "592.conf").exists()
