#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: pct_snapshot
short_description: Take, delete and go back to snapshots of an LXC container of Proxmox VE
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Makes sure that a snapshot exists, or does not. What it holds is not compared.
  - Takes a series of snapshots, named by the time, and keeps the youngest ones of it.
  - Goes back to a snapshot.
  - What a killed task left half-made is deleted before a snapshot of that name, or of that O(prefix), is taken. A lock
    that such a task left is removed, once nothing is at work on the container any more; by the REST API only a person
    can do that, and the module says so.
  - Runs on the node, as root, or from anywhere with O(api_host).
attributes:
  check_mode:
    description: Says what would be done, and changes nothing. A container that is missing is taken for one without
      snapshots.
    support: full
  diff_mode:
    description: The names of the snapshots before and after; for a rollback the configuration.
    support: full
  idempotence:
    description: A second run changes nothing, but for a rollback and for O(state=present) without O(snapname), which do
      their work each time.
    support: partial
extends_documentation_fragment:
  - phoenix.hypervisor.api
options:
  vmid:
    description: CTID of the container.
    type: int
    required: true
  state:
    description:
      - V(present) takes the snapshot O(snapname) when there is none of that name. Without O(snapname), a new one is
        taken in every run, named O(prefix) and the time in UTC, such as C(daily-20261121-114500).
      - V(absent) deletes O(snapname), or, with O(prefix) and O(keep), the oldest ones of a series.
      - V(rollback) goes back to O(snapname). A container that runs is killed for it, not shut down, and B(all that was
        written since the snapshot was taken is lost). The module asks for nothing; it warns when the container runs.
        The configuration becomes the snapshot's, too; the description stays.
    type: str
    choices: [present, absent, rollback]
    default: present
  snapname:
    description: Name of the snapshot. 2 to 40 letters, digits, V(-) and V(_), the first one a letter.
    type: str
    default: ""
  prefix:
    description: What the names of a series of snapshots begin with, up to 25 characters. With O(snapname), that begins
      with it, too.
    type: str
    default: ""
  keep:
    description:
      - How many complete snapshots of the series stay, at least 1. The older ones are deleted, after the new one is
        complete and the oldest first, by the time at which Proxmox took them. The one that this run makes sure of is
        never among them.
      - All stay when this is left out.
    type: int
  description:
    description: What Proxmox shows beside a snapshot that is taken.
    type: str
    default: ""
  start:
    description: Whether the container runs after a rollback. Left out, it runs when it ran before.
    type: bool
  timeout:
    description: Seconds that each command may take, the time for which it waits for others at work on the container
      included.
    type: int
    default: 600
seealso:
  - module: phoenix.hypervisor.pct_container
"""

EXAMPLES = r"""
- name: Keep the state that clones are taken from
  phoenix.hypervisor.pct_snapshot:
    vmid: 920
    snapname: vllm-base-snapshot

- name: A snapshot before each change, and the seven youngest of them
  phoenix.hypervisor.pct_snapshot:
    vmid: 921
    prefix: before-change-
    keep: 7
    description: Before the change of tonight

- name: Only three of them from now on
  phoenix.hypervisor.pct_snapshot:
    vmid: 921
    state: absent
    prefix: before-change-
    keep: 3

- name: Back to the state of before, running as it did (kills the container, loses what was written since)
  phoenix.hypervisor.pct_snapshot:
    vmid: 921
    state: rollback
    snapname: before-change-20261121-114500

- name: Delete one, from another machine
  phoenix.hypervisor.pct_snapshot:
    vmid: 921
    state: absent
    snapname: before-change-20261121-114500
    api_host: pve.example.com
    api_user: automation@pve
    api_token_id: ansible
    api_token_secret: "{{ vault_token_secret }}"
"""

RETURN = r"""
snapshots:
  description: Names of the container's complete snapshots afterwards, sorted.
  returned: success
  type: list
  elements: str
  sample: ["vllm-base-snapshot"]
snapname:
  description: Name of the snapshot that was taken, deleted or gone back to; empty where only O(keep) counted.
  returned: success
  type: str
  sample: before-change-20261121-114500
steps:
  description: What was done, or would be, and why. When the module fails, what was done before that.
  returned: always
  type: list
  elements: str
  sample: ["there is no snapshot vllm-base-snapshot"]
commands:
  description: The commands that were run, or would be, as C(pct) or as the REST API has them.
  returned: success
  type: list
  elements: list
  sample: [["pct", "snapshot", "920", "vllm-base-snapshot"]]
status:
  description: Whether the container runs afterwards.
  returned: success
  type: str
  choices: [running, stopped, absent]
  sample: running
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import node, nodes, pct_conf, snapshot_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.snapshot_plan import (
    Declared,
    Plan,
    SnapshotError,
    Step,
)


def declared_by(params: dict) -> Declared:
    """The module's options as the plan wants them."""
    names = ("vmid", "state", "snapname", "description", "prefix", "keep", "start")
    now = datetime.now(timezone.utc)
    return Declared(**{name: params[name] for name in names}, now=now)


def plan_for(there: nodes.Node, declared: Declared, container: Container) -> Plan:
    """The plan for a container as it is."""
    # The REST API has no way to take a lock away.
    left_over = bool(container.lock) and there.is_local and not there.workers(declared.vmid)
    return snapshot_plan.plan(declared, container.conf, container.running, left_over)


def settled(there: nodes.Node, declared: Declared, timeout: float) -> tuple[Container, Plan]:
    """The container, and the plan for it, once nobody else is at work on it.

    :raises NodeError: when somebody stays at work, or left a lock that the plan doesn't take away
    """
    try:
        there.settle(declared.vmid, timeout)
    except node.NodeError:
        container = there.read(declared.vmid)
        planned = plan_for(there, declared, container)
        if not any(step.command.name == "unlock" for step in planned.steps):
            raise
        return container, planned
    container = there.read(declared.vmid)
    return container, plan_for(there, declared, container)


def refuse_missing(declared: Declared, container: Container) -> None:
    """:raises SnapshotError: for a container that doesn't exist"""
    if not container.exists:
        raise SnapshotError(
            f"CTID {declared.vmid} does not exist on this node, so it has no snapshots; correct vmid or node"
        )


def execute(there: nodes.Node, step: Step, timeout: float) -> None:
    """Do one step, and make sure of its effect.

    :raises SnapshotError: with what Proxmox said, and what can be done
    """
    vmid = step.command.vmid
    done = there.run(step.command, timeout)
    container = there.read(vmid)
    if done.failed:
        remedy = snapshot_plan.remedy(step, done.sentence(), container.conf, there.storage_types())
        raise SnapshotError(f"CTID {vmid}: {done.sentence()}{remedy}")
    missing = snapshot_plan.missing_effect(step, container.conf, container.running)
    if missing:
        raise SnapshotError(f"CTID {vmid}: {done.sentence()} - but {missing}; look at the container's last tasks")


def lines(names: Iterable[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def text_of(declared: Declared, snapshots: Sequence[str], config: pct_conf.Section, running: bool) -> str:
    """What the diff shows."""
    if declared.state == "rollback":
        return f"{pct_conf.render(config)}status: {'running' if running else 'stopped'}\n"
    return lines(snapshots)


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            vmid=dict(type="int", required=True),
            state=dict(type="str", choices=["present", "absent", "rollback"], default="present"),
            snapname=dict(type="str", default=""),
            prefix=dict(type="str", default=""),
            keep=dict(type="int"),
            description=dict(type="str", default=""),
            start=dict(type="bool"),
            timeout=dict(type="int", default=600),
            **nodes.ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    declared = declared_by(module.params)
    timeout = module.params["timeout"]
    done: list[Step] = []
    try:
        snapshot_plan.check(declared)
        there = nodes.connect(module.params)
        before = there.read(declared.vmid)
        # What an earlier task of a check-mode run would have made has no snapshots to go back to.
        if not module.check_mode or declared.state == "rollback":
            refuse_missing(declared, before)
        planned = plan_for(there, declared, before)
        if planned.steps and not module.check_mode:
            before, planned = settled(there, declared, timeout)
            refuse_missing(declared, before)
            for step in planned.steps:
                execute(there, step, timeout)
                done.append(step)
            after = there.read(declared.vmid)
            snapshots, config, running = after.conf.complete_snapshots, after.conf.main, after.running
        else:
            snapshots, config, running = planned.snapshots, planned.config, planned.running
        commands = [there.words(step.command) for step in planned.steps]
    except (SnapshotError, node.NodeError) as error:
        steps = [step.why for step in done]
        begun = f"\nDone before that: {'; '.join(steps)}. The next run goes on from there." if steps else ""
        module.fail_json(msg=f"{error}{begun}", steps=steps)
    for warning in planned.warnings:
        module.warn(warning)
    module.exit_json(
        changed=bool(planned.steps),
        snapshots=list(snapshots),
        snapname=planned.snapname,
        steps=[step.why for step in planned.steps],
        commands=commands,
        status="absent" if not before.exists else "running" if running else "stopped",
        diff={
            "before": text_of(declared, before.conf.complete_snapshots, before.conf.main, before.running),
            "after": text_of(declared, snapshots, config, running),
            "before_header": f"CTID {declared.vmid}",
            "after_header": f"CTID {declared.vmid}",
        },
    )


if __name__ == "__main__":
    main()
