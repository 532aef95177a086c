# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The templates of AWX and the workflow that provisions, verifies and goes back, on containers 668 and 669 of the lab.

A small program stands in for vLLM (tests/support/vllm_stand_in.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from awx_job import Awx, Job, environment_of
from lab_modules import OSTEMPLATE, destroy, inside, pct, require_lab
from model_site import RELEASE, UNIT, VLLM

pytestmark = [pytest.mark.lab, pytest.mark.full]
ONE, OTHER = 668, 669
WORKFLOW = "Phoenix provision and prove"
SOURCE = "inventories/production/lxc_configs.yml"
NODES = {"pve": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}
# A workflow's survey in which nothing was filled in: AWX sends no choice that was not made.
BLANK = {"phoenix_target": "", "phoenix_version": ""}
# What the credential "Phoenix Hugging Face" injects: a file, and the variable with its name.
TOKEN = "hf_t0ken-of-this-test"
CREDENTIALS = {"credentials": {"phoenix_huggingface_token_file": "{folder}/tmp_hub"}, "files": {"tmp_hub": TOKEN}}
# What proves that it is right, and that it is not when it serves this model.
PROOF = {"proof": [{"name": "right", "type": "command", "path": "! grep -q nonsense /etc/systemd/system/" + UNIT}]}


def entry(ctid: int, **keys: Any) -> dict[str, Any]:
    """A container's entry in the JSON."""
    network = {"name": "eth0", "bridge": "vmbr0", "ip": f"10.92.0.{ctid - 500}/24", "gw": "10.92.0.1"}
    return {
        "name": f"workflow{ctid}", "template": OSTEMPLATE, "storage_pool": "local-btrfs", "storage_size_gb": 2,
        "memory_mb": 512, "swap_mb": 0, "cores": 2, "pct_options": ["nesting=1"], "network_config": network,
        "gpu_assignment": "none", "health_check": {"command": "true"}, "tests": PROOF, **keys,
    }  # fmt: skip


def server(ctid: int, model: str, **arguments: Any) -> dict[str, Any]:
    """One that serves a model."""
    config = {"ModelConfig": {"model": f"/models/{model}"}, "ServerConfig": {"port": 8000, **arguments}}
    return entry(
        ctid, application_script="phoenix_hypervisor_lxc_vllm.sh", vllm_stack="cpu", vllm_engine_config=config
    )


class Site:
    """A project of AWX with the two, each with the stand-in where a stack would have been installed."""

    def __init__(self, folder: Path, core: str) -> None:
        self.awx = Awx(folder, environment_of(core))
        self.declare(entry(ONE), entry(OTHER))
        self.launch("site.yml")
        program = folder / "vllm"
        program.write_text(f"#!/usr/bin/python3\n{VLLM.read_text()}")
        record = json.dumps({"release": RELEASE, "vllm": "0.10.2", "flashinfer": ""})
        for ctid in (ONE, OTHER):
            inside(ctid, f"mkdir -p /opt/vllm-releases/{RELEASE}/bin /models/good /models/other /models/nonsense")
            pct("push", str(ctid), str(program), f"/opt/vllm-releases/{RELEASE}/bin/vllm", "--perms", "0755")
            inside(ctid, f"ln -sfn /opt/vllm-releases/{RELEASE} /opt/vllm; "
                         f"echo '{record}' >/opt/vllm-releases/{RELEASE}/release.json")  # fmt: skip

    def declare(self, one: dict[str, Any], other: dict[str, Any]) -> None:
        """Commit another JSON, and have AWX read it."""
        self.awx.declare(SOURCE, {ONE: one, OTHER: other}, NODES)
        variables = {"certificate_source": "none", "vllm_model_server_ready_timeout": 120}
        folder = (self.awx.project / SOURCE).parent / "group_vars"
        folder.mkdir(exist_ok=True)
        (folder / "phoenix_containers.yml").write_text(yaml.safe_dump(variables))
        done = self.awx.sync(SOURCE, ANSIBLE_COLLECTIONS_PATH=str(self.awx.project / ".ansible/collections"))
        assert done.returncode == 0, done.stderr

    def launch(self, playbook: str, answers: dict[str, Any] | None = None, ends: str = "successful", **how: Any) -> Job:
        """Run a job, with the secret of its credential, which nobody may see. It must end like this."""
        job = self.awx.launch(playbook, {**BLANK, **(answers or {})}, **CREDENTIALS, **how)
        assert job.status == ends, job.output
        check(job)
        return job

    def workflow(self, wanted: list[str]) -> dict[str, Any]:
        """Run the workflow, which must go through these nodes and fail, and return their jobs."""
        status, jobs = self.awx.workflow(WORKFLOW, BLANK, **CREDENTIALS)
        for job in jobs.values():
            check(job)
        assert list(jobs) == wanted, "\n".join(job.output for job in jobs.values())
        assert status == "failed" and jobs["rollback"].status == "failed", jobs["rollback"].output
        return jobs


def check(job: Job) -> None:
    """What AWX shows and keeps of a job has no secret in it, and no traceback but the server's own."""
    assert TOKEN not in job.output + json.dumps([job.events, job.artifacts]), job.output
    assert 'File "' not in job.output, job.output


def state(ctid: int) -> tuple[str, ...]:
    """What can be seen of a server: its process, its unit and what it keeps of its states."""
    return (
        inside(ctid, f"systemctl show --value --property=MainPID,NRestarts,ExecMainStartTimestamp {UNIT}"),
        inside(ctid, f"cat /etc/systemd/system/{UNIT} /etc/vllm/engine.yaml"),
        inside(ctid, "cat /var/lib/vllm_model_server/*.json*"),
    )


def serves(ctid: int) -> str:
    """The folder of the model that is served."""
    return inside(ctid, f"sed -n 's|^ExecStart=.* serve /models/\\([a-z]*\\) .*|\\1|p' /etc/systemd/system/{UNIT}")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    require_lab()
    destroy(ONE, OTHER)
    yield
    destroy(ONE, OTHER)


@pytest.mark.parametrize("core", ["2.17", "2.19", "2.21"])
def test_only_what_the_workflow_changed_goes_back(core: str, tmp_path: Path) -> None:
    """668 is changed and verify finds it wrong; 669, which has a former state, too, is left alone."""
    site = Site(tmp_path, core)
    for model in ("good", "other"):
        site.declare(server(ONE, "good"), server(OTHER, model))
        site.launch("site.yml")
    assert (serves(ONE), serves(OTHER)) == ("good", "other")
    good, untouched = state(ONE), state(OTHER)

    site.declare(server(ONE, "nonsense"), server(OTHER, "other"))
    jobs = site.workflow(["provision", "verify", "rollback"])
    assert jobs["provision"].of("changed") == {"ctid_668": 1}, jobs["provision"].output
    assert list(jobs["provision"].artifacts["phoenix_former_states"]) == ["ctid_668"]
    assert jobs["verify"].failed == {"ctid_668"}, jobs["verify"].output
    rollback = jobs["rollback"]
    assert rollback.of("changed") == {"ctid_668": 1}, rollback.output
    # The workflow fails by 668; 669 isn't called a failure.
    assert rollback.failed == {"ctid_668"}, rollback.output
    assert "is back at /models/good" in " ".join(rollback.output.split())
    assert serves(ONE) == "good" and state(ONE)[1] == good[1]
    assert state(OTHER) == untouched
    (told,) = [json.loads(line) for line in inside(ONE, "cat /var/lib/vllm_model_server/rollbacks.jsonl").splitlines()]
    assert (told["who"], told["why"]) == ("anna", "a later step of the workflow failed")
    site.launch("playbooks/verify.yml")

    # A workflow in which nothing was changed has nothing to undo, and fails all the same.
    site.declare({**server(ONE, "good"), "tests": {"proof": [{"type": "command", "path": "false"}]}},
                 server(OTHER, "other"))  # fmt: skip
    before = state(ONE)
    jobs = site.workflow(["provision", "verify", "rollback"])
    assert jobs["provision"].of("changed") == {} and jobs["rollback"].of("changed") == {}
    assert jobs["rollback"].failed == {"ctid_668", "ctid_669"}
    assert (state(ONE), state(OTHER)) == (before, untouched)

    # One that could not be provisioned went back by itself; what the others got is undone.
    site.declare(server(ONE, "dies"), server(OTHER, "good"))
    inside(ONE, "mkdir /models/dies")
    jobs = site.workflow(["provision", "rollback"])
    assert jobs["provision"].failed == {"ctid_668"}, jobs["provision"].output
    assert "CUDA out of memory" in jobs["provision"].output
    assert jobs["rollback"].of("changed") == {"ctid_669": 1}, jobs["rollback"].output
    assert (serves(ONE), serves(OTHER)) == ("good", "other")
    assert state(OTHER)[1] == untouched[1]


@pytest.mark.parametrize("core", ["2.17", "2.19", "2.21"])
def test_every_template(core: str, tmp_path: Path) -> None:
    """Each is run as AWX would, with its survey blank, and the playbooks that have no template, too."""
    site = Site(tmp_path, core)
    site.declare(server(ONE, "good"), entry(OTHER))
    site.launch("site.yml")
    # The file of the credential is gone; what was in it is where the server reads it.
    assert inside(ONE, "cat /etc/vllm/secrets-*.env").count(TOKEN) == 1
    assert inside(ONE, f"tr '\\0' '\\n' </proc/$(systemctl show --value -p MainPID {UNIT})/environ").count(TOKEN) == 1
    assert TOKEN not in inside(ONE, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl --no-pager")
    assert TOKEN not in json.dumps(site.awx.inventory)

    again = site.launch("site.yml")
    assert again.of("changed") == {}, again.output
    for playbook, said in (
        ("verify", "2 containers, "),
        ("gpu_check", "ctid_668 has no GPU assigned (gpu_assignment): nothing to check."),
        ("models", ""),
        ("certificates", ""),
        ("status", "ctid_669"),
        ("adopt", "the next steps"),
    ):
        job = site.launch(f"playbooks/{playbook}.yml")
        assert said in " ".join(job.output.split()), job.output
        assert playbook == "adopt" or job.of("changed") == {}, job.output
    # The stand-in has no client that could measure it.
    for how in ({"check": True}, {"limit": "ctid_669"}):
        measured = site.launch("playbooks/benchmark.yml", **how)
        assert "ctid_669 has no model server: there is nothing to measure." in " ".join(measured.output.split())
    # Outside a workflow a rollback that went well is a success.
    site.declare(server(ONE, "other"), entry(OTHER))
    site.launch("site.yml", limit="ctid_668")
    back = site.launch("playbooks/rollback.yml", {"phoenix_rollback_to": "", "phoenix_rollback_reason": ""},
                       limit="ctid_668")  # fmt: skip
    assert serves(ONE) == "good" and back.of("changed") == {"ctid_668": 1}
    # A state that there isn't, and a target that there isn't.
    wrong = site.launch("playbooks/rollback.yml", {"phoenix_rollback_to": "yesterday"}, "failed", limit="ctid_668")
    assert "There is no state yesterday. Kept are: " in " ".join(wrong.output.split())
    for playbook in ("site.yml", "playbooks/verify.yml", "playbooks/rollback.yml"):
        for target in ("ctid_999", "ctid_668,ctid_999"):
            wrong = site.launch(playbook, {"phoenix_target": target}, "failed")
            assert "Could not match supplied host pattern, ignoring: ctid_999" in wrong.output
    assert serves(ONE) == "good"
