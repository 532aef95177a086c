# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What AWX 24.6 does with a repository like this one, without an AWX.

A project is a copy of the checkout without C(.git). An inventory source is C(ansible-inventory --list --export) in it;
what that prints is kept, sorted by names, and a job gets it as a script that prints it: no plugin runs again.
A job goes through ansible-runner's transmit, worker and process, with the credentials' variables and files, the
limit on the command line, and the survey's answers last. All text in these variables is tagged C(!unsafe).
A workflow follows its nodes; what jobs keep with set_stats are variables of those after them.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader

ROOT = Path(__file__).resolve().parents[2]
# What AWX sets for every sync and job; it hides the settings of these names in ansible.cfg.
SYNC = {
    "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
    "ANSIBLE_INVENTORY_EXPORT": "True",
    "ANSIBLE_VERBOSE_TO_STDERR": "True",
    "ANSIBLE_TRANSFORM_INVALID_GROUP_CHARS": "never",
}
JOB = {
    "ANSIBLE_HOST_KEY_CHECKING": "False",
    "ANSIBLE_RETRY_FILES_ENABLED": "False",
    "ANSIBLE_FORCE_COLOR": "False",
    "ANSIBLE_UNSAFE_WRITES": "1",
    "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
}


class _Unsafe(yaml.SafeDumper):
    """Writes variables as AWX does: no text of a survey or a credential is ever a template."""


_Unsafe.add_representer(str, lambda dumper, text: dumper.represent_scalar("!unsafe", text))


@dataclass
class Job:
    """What AWX knows of a job at its end."""

    status: str
    output: str
    events: list[dict[str, Any]]
    artifacts: dict[str, Any]

    def of(self, what: str) -> dict[str, int]:
        """Return host → number, of the summary of hosts (C(failures), C(changed), C(ok), C(dark))."""
        (stats,) = [event["event_data"] for event in self.events if event["event"] == "playbook_on_stats"]
        return stats[what]

    @property
    def failed(self) -> set[str]:
        """The hosts that AWX shows as failed."""
        return {*self.of("failures"), *self.of("dark")}


class Awx:
    """One project and one inventory, run by the ansible-core of a virtual environment."""

    def __init__(self, folder: Path, environment: Path) -> None:
        self.folder, self.bin = folder, environment / "bin"
        self.project = folder / "runner/project"
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.number = 0
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            source, target = ROOT / name, self.project / name
            if name.startswith(("tests/", "lab/")) or not os.path.lexists(source):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)

    def declare(self, name: str, containers: dict[int, Any], nodes: dict[str, Any], **keys: Any) -> None:
        """Put an inventory into the project: the file of this name, and the JSON beside it."""
        source = self.project / name
        source.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"lxc_configs": {str(ctid): entry for ctid, entry in containers.items()}})
        (source.parent / "phoenix_lxc_configs.json").write_text(text)
        source.write_text(json.dumps({"plugin": "phoenix.hypervisor.lxc_configs", "nodes": nodes, **keys}))

    def environment(self, settings: dict[str, str]) -> dict[str, str]:
        """Return an environment in which nothing is but what AWX sets."""
        path = f"{self.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", **settings}

    def sync(self, name: str, **source_variables: str) -> subprocess.CompletedProcess[str]:
        """Read an inventory source as AWX does; what it says is what jobs have from then on."""
        # The plural is all that AWX 24.6.1 sets, and a source's own variables come after it.
        hidden = {"ANSIBLE_COLLECTIONS_PATHS": f"{self.home}/.ansible/collections:/usr/share/ansible/collections"}
        command = [
            str(self.bin / "ansible-inventory"), "--list", "--export", "-i", str(self.project / name),
            "--playbook-dir", str((self.project / name).parent), "-v",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=self.project, env=self.environment({**SYNC, **hidden, **source_variables}),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            self.inventory = sorted_by_name(json.loads(done.stdout))
        return done

    def launch(
        self, playbook: str, answers: dict[str, Any] | None = None, limit: str = "", check: bool = False,
        credentials: dict[str, Any] | None = None, files: dict[str, str] | None = None, workflow: int = 0,
        tags: str = "",
    ) -> Job:  # fmt: skip
        """Run a job.

        Args:
            playbook: the template's playbook.
            answers: what the survey was answered with, and other variables of the launch.
            limit: the limit.
            check: whether it is a check.
            credentials: the variables that credentials inject; C({folder}) becomes the folder of their files.
            files: the files that credentials inject, by their names.
            workflow: the number of the workflow that it is part of.
            tags: the job tags.
        """
        self.number += 1
        sent, worked = self.folder / f"job-{self.number}", self.folder / f"worker-{self.number}"
        (sent / "inventory").mkdir(parents=True)
        (sent / "env").mkdir()
        worked.mkdir()
        (sent / "project").symlink_to(self.project)
        script = sent / "inventory/hosts"
        script.write_text(f"#!{self.bin}/python\nprint({json.dumps(self.inventory)!r})\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        for name, text in (files or {}).items():
            (sent / "env" / name).write_text(text)
        variables = {"awx_job_id": self.number, "awx_user_name": "anna", "tower_user_name": "anna"}
        if workflow:
            variables |= {"awx_workflow_job_id": workflow, "tower_workflow_job_id": workflow}
        injected = yaml.dump(credentials or {}, Dumper=_Unsafe).replace("{folder}", str(worked / "env"))
        (sent / "env/credentials").write_text(injected)
        (sent / "env/extravars").write_text(yaml.dump({**variables, **(answers or {})}, Dumper=_Unsafe))
        settings = {
            **JOB,
            "ANSIBLE_COLLECTIONS_PATH": f"{worked}/requirements_collections:.ansible/collections:"
            "~/.ansible/collections:/usr/share/ansible/collections",
            "ANSIBLE_ROLES_PATH": f"{worked}/requirements_roles:~/.ansible/roles:/usr/share/ansible/roles",
        }
        (sent / "env/envvars").write_text(json.dumps(settings))
        words = ["-u", "root", *(["-l", limit] if limit else []), *(["-t", tags] if tags else [])]
        words += ["--check"] if check else []
        (sent / "env/cmdline").write_text(" ".join([*words, "-e", f"@{worked}/env/credentials"]))
        return self.run(sent, worked, playbook)

    def workflow(self, name: str, answers: dict[str, Any], **how: Any) -> tuple[str, dict[str, Job]]:
        """Run a workflow of awx/controller.yml, and return how it ended and the jobs of its nodes, in their order.

        Args:
            name: its name.
            answers: what its survey was answered with; every job gets that.
            how: as for L(launch).
        """
        declared = declaration()
        playbooks = {template["name"]: template["playbook"] for template in declared["controller_templates"]}
        (workflow,) = [one for one in declared["controller_workflows"] if one["name"] == name]
        nodes = {node["identifier"]: node for node in workflow["simplified_workflow_nodes"]}
        ways = ("success_nodes", "failure_nodes")
        later = {after for node in nodes.values() for way in ways for after in node.get(way, [])}
        number, status, jobs = self.number + 1000, "successful", {}
        waiting = [(identifier, {}) for identifier in nodes if identifier not in later]
        while waiting:
            identifier, kept = waiting.pop(0)
            node = nodes[identifier]
            # An answer of the workflow's survey comes before what a job kept, and that before the node's own.
            variables = {**node.get("extra_data", {}), **kept, **answers}
            job = self.launch(playbooks[node["unified_job_template"]], variables, workflow=number, **how)
            jobs[identifier] = job
            after = node.get("success_nodes" if job.status == "successful" else "failure_nodes", [])
            waiting += [(one, {**kept, **job.artifacts}) for one in after]
            # What has a way for its failure is no failure of the workflow.
            if job.status != "successful" and not node.get("failure_nodes"):
                status = "failed"
        return status, jobs

    def run(self, sent: Path, worked: Path, playbook: str) -> Job:
        """Send a job, do it, and read what comes back."""
        runner = str(self.bin / "ansible-runner")
        stream, back = self.folder / "stream", self.folder / "back"
        environment = self.environment({})
        with stream.open("wb") as file:
            subprocess.run(
                [runner, "transmit", str(sent), "-p", playbook], stdout=file, env=environment, check=True, timeout=120
            )
        with stream.open("rb") as file, back.open("wb") as answer:
            subprocess.run(
                [runner, "worker", "--private-data-dir", str(worked)], stdin=file, stdout=answer, env=environment,
                check=False, timeout=900,
            )  # fmt: skip
        processed = self.folder / f"processed-{self.number}"
        processed.mkdir()
        with back.open("rb") as file:
            done = subprocess.run(
                [runner, "process", str(processed)], stdin=file, env=environment, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
        artifacts = processed / "artifacts"
        events = [json.loads(path.read_text()) for path in (artifacts / "job_events").glob("*.json")]
        events.sort(key=lambda event: event["counter"])
        stats = [event["event_data"] for event in events if event["event"] == "playbook_on_stats"]
        kept = stats[0].get("artifact_data", {}) if stats else {}
        status = (artifacts / "status").read_text() if (artifacts / "status").exists() else "error"
        return Job(status, done.stdout + done.stderr, events, kept)


def declaration() -> dict[str, Any]:
    """Return what awx/controller.yml declares."""
    # To JSON and back: ansible-core's own kinds of texts are none of PyYAML's.
    return json.loads(json.dumps(DataLoader().load_from_file(str(ROOT / "awx/controller.yml"))))


@functools.cache
def environment_of(core: str) -> Path:
    """Return the environment of an ansible-core; that of 2.19 is the project's. Skips where none can be made."""
    if core == "2.19":
        return Path(sys.prefix)
    made = subprocess.run([ROOT / "tools/ansible_environment", core], capture_output=True, text=True, check=False)
    if made.returncode == 3:
        pytest.skip(made.stderr)
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip())


def sorted_by_name(inventory: dict[str, Any]) -> dict[str, Any]:
    """Return an inventory as a job gets it: AWX forgets the order of hosts."""
    return {
        name: {**group, "hosts": sorted(group["hosts"])} if isinstance(group, dict) and "hosts" in group else group
        for name, group in inventory.items()
    }
