#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: pct_container
short_description: Make an LXC container of Proxmox VE as it is declared
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Creates or clones a container, configures it, starts, stops or removes it, or makes a template of it.
  - Reads the container's conf file and C(/proc/net/unix), plans, and runs C(pct) only to change something, with all
    keys of a change in one call. A run that changes nothing makes no C(pct) call.
  - Runs on the node, as root.
  - What the options name is made exactly so. What they don't speak of stays as it is.
attributes:
  check_mode:
    description: Shows the plan that a real run would execute, and changes nothing.
    support: full
  diff_mode:
    description: The container's configuration before and after, as Proxmox writes it, with what waits for a restart.
    support: full
  idempotence:
    description: A second run changes nothing. O(state=restarted) always restarts.
    support: full
options:
  vmid:
    description: CTID of the container.
    type: int
    required: true
  state:
    description:
      - V(present) creates what is missing and configures; it neither starts nor stops.
      - V(started) also starts it and waits until the system inside is up. A template can't be started.
      - V(stopped) also shuts it down.
      - V(restarted) also restarts it.
      - V(template) shuts it down and makes a template of it. There is no way back.
      - V(absent) stops and removes it, with its disks.
    type: str
    choices: [present, started, stopped, restarted, template, absent]
    default: present
  clone:
    description: Where the container comes from when it does not exist.
    type: dict
    suboptions:
      vmid:
        description: CTID of the source.
        type: int
        required: true
      snapname:
        description: Snapshot of the source to clone; empty for its current state.
        type: str
        default: ""
      full:
        description:
          - Whether all data is copied. Left out, a template on a storage that can do it gives a linked clone, and
            everything else a full one.
        type: bool
  ostemplate:
    description: Archive to create the container from when it does not exist and O(clone) is not given.
    type: str
    default: ""
  storage:
    description: Storage for the disk of a container that is created, or that is cloned in full.
    type: str
    default: ""
  disk_gb:
    description: Size of C(rootfs) in GiB. It is grown to this; less than it has is an error. V(0) doesn't speak of it.
    type: int
    default: 0
  unprivileged:
    description:
      - Whether a container that is created is unprivileged. Proxmox can't change it later; another value than the
        container has is an error.
    type: bool
  config:
    description:
      - Keys as in C(pct set) and their values. A dictionary is a property string.
      - Parts of a property string that are not named keep their value (a MAC address, a firewall flag), but in
        C(features) and C(startup), which become exactly what is declared.
      - An empty value removes the key.
    type: dict
    default: {}
  devices:
    description: Exactly these devices are passed through (C(devN)); others are removed. Left out, none is touched.
    type: list
    elements: dict
    suboptions:
      path:
        description: Path on the node, below C(/dev/).
        type: str
        required: true
      mode:
        description: Mode inside, four octal digits.
        type: str
      uid:
        description: Owner inside.
        type: int
      gid:
        description: Group inside.
        type: int
  mounts:
    description: Bind mounts (C(mpN)), one for each O(mounts[].mp). Others are not touched.
    type: list
    elements: dict
    suboptions:
      source:
        description: Folder on the node.
        type: str
        required: true
      mp:
        description: Path inside.
        type: str
        required: true
      ro:
        description: Whether it is read-only inside.
        type: bool
        default: false
  raw:
    description:
      - Raw lines, C(lxc.key = value) or with a colon. The lines of each key that is named become exactly these; lines
        of other keys stay.
      - Written into the main section of the conf file; they take effect at a restart.
    type: list
    elements: str
  delete:
    description: Keys to remove, those of raw lines included.
    type: list
    elements: str
    default: []
  restart:
    description: Whether a running container is restarted for changes that take effect only then.
    type: str
    choices: [never, when_required]
    default: when_required
  timeout:
    description:
      - Seconds that one C(pct) call may take, that a locked source is waited for, and that the system inside may take
        to come up.
    type: int
    default: 600
seealso:
  - module: phoenix.hypervisor.pct_container_info
  - module: phoenix.hypervisor.pct_snapshot
"""

EXAMPLES = r"""
- name: A container from a template, started
  phoenix.hypervisor.pct_container:
    vmid: 921
    state: started
    clone:
      vmid: 901
    disk_gb: 64
    config:
      hostname: vllm
      memory: 32768
      cores: 8
      net0: {name: eth0, bridge: vmbr0, ip: 10.92.0.121/24, gw: 10.92.0.1}
      features: {nesting: 1}
    devices:
      - path: /dev/nvidia0
      - path: /dev/nvidiactl
      - path: /dev/nvidia-uvm
    mounts:
      - source: /tank/models
        mp: /models

- name: A container from an archive
  phoenix.hypervisor.pct_container:
    vmid: 900
    ostemplate: local:vztmpl/debian-12-standard_12.12-1_amd64.tar.zst
    storage: local-zfs
    disk_gb: 32
    unprivileged: true
    config:
      hostname: base

- name: Make a template of it
  phoenix.hypervisor.pct_container:
    vmid: 900
    state: template
"""

RETURN = r"""
steps:
  description: What was done, or would be in check mode, with the reason of each step.
  returned: always
  type: list
  elements: str
  sample: ["memory: 2048 → 4096", "it is stopped"]
commands:
  description: The C(pct) commands of these steps.
  returned: always
  type: list
  elements: list
  sample: [["pct", "set", "921", "--memory", "4096"]]
status:
  description: Whether the container runs, C(running) or C(stopped); C(absent) when it does not exist.
  returned: always
  type: str
  sample: running
restart_required:
  description: Keys that take effect only at a restart, which O(restart=never) did not allow.
  returned: always
  type: list
  elements: str
  sample: []
"""

import time
from collections.abc import Sequence

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import node, pct_conf, process
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container_plan import (
    Container,
    Declared,
    Plan,
    PlanError,
    Step,
    plan,
)


class ContainerError(Exception):
    """A step failed; the text is for the user."""


def declared_by(params: dict) -> Declared:
    """The module's options as the plan wants them."""
    clone = params["clone"] or {}
    return Declared(
        vmid=params["vmid"],
        state=params["state"],
        clone_vmid=clone.get("vmid"),
        clone_snapname=clone.get("snapname") or "",
        clone_full=clone.get("full"),
        ostemplate=params["ostemplate"],
        storage=params["storage"],
        disk_gb=params["disk_gb"] or None,
        unprivileged=params["unprivileged"],
        config=params["config"],
        devices=params["devices"],
        mounts=params["mounts"],
        raw=params["raw"],
        delete=params["delete"],
        restart=params["restart"],
    )


def plan_now(declared: Declared, assume_source: bool = False) -> Plan:
    """The plan for what is there now.

    :param assume_source: take a source that is missing for one that an earlier step of the run would have made
    """
    source = node.read(declared.clone_vmid) if declared.clone_vmid is not None else None
    if source and not source.exists and assume_source:
        source = Container(exists=True, text="unprivileged: 1\n" if declared.unprivileged else "")
    return plan(declared, node.read(declared.vmid), source, node.storage_types())


def execute(declared: Declared, step: Step, timeout: int) -> None:
    """Do one step, and make sure of its effect: some pct commands end with 0 although they failed.

    :raises ContainerError: with what pct said and, for a container that doesn't start, what its log says
    """
    if step.kind == "raw":
        actual = node.read(declared.vmid)
        text = pct_conf.replace_raw(actual.text, list(step.raw), step.raw_removed)
        node.write(declared.vmid, text, actual.text)
    elif step.kind == "boot":
        _wait_for_boot(declared.vmid, timeout)
    elif step.argv[1] in ("start", "reboot"):
        log_before = node.log(declared.vmid)
        done = _pct(step, timeout)
        if done.failed or declared.vmid not in node.running():
            raise ContainerError(_start_problem(declared.vmid, done, node.log_tail(declared.vmid, log_before)))
    else:
        done = _pct(step, timeout)
        problem = done.sentence() if done.failed else _effect_problem(declared, step, done)
        if problem:
            raise ContainerError(f"CTID {declared.vmid}: {problem}{_remedy(declared.vmid, problem)}")


def _start_problem(vmid: int, done: process.Finished, log: str) -> str:
    """Why a container doesn't start. Its log has all that pct printed; without one, what pct printed has to do."""
    if not log:
        return f"CTID {vmid} doesn't start: {done.sentence()}"
    error = done.stderr.strip() or done.sentence()
    said = f"{error}{_remedy(vmid, error)}. The last lines of /var/log/lxc/{vmid}.log:\n{log}"
    return f"CTID {vmid} doesn't start: {said}"


def _remedy(vmid: int, problem: str) -> str:
    if "CT is locked" not in problem:
        return ""
    return (
        f" - something else is at work on it; wait for its end (the tasks of the node tell), or, when nothing runs any "
        f"more, remove the lock with: pct unlock {vmid}"
    )


def _pct(step: Step, timeout: int) -> process.Finished:
    """Run pct; wait for the locks that a clone or another short task holds: two clones of one source are no mistake."""
    end = time.monotonic() + timeout
    while True:
        done = process.run(step.argv, timeout)
        locked = "CT is locked (disk)" in done.stderr or "got timeout" in done.stderr
        if not (done.failed and locked) or time.monotonic() > end:
            return done
        time.sleep(2)


def _effect_problem(declared: Declared, step: Step, done: process.Finished) -> str:
    command = step.argv[1]
    actual = node.read(declared.vmid)
    reached = {
        "create": actual.exists,
        "clone": actual.exists,
        "destroy": not actual.exists,
        "template": actual.is_template,
        "stop": not actual.running,
        "shutdown": not actual.running,
    }.get(command, True)
    if command == "resize":
        size = pct_conf.split_property("rootfs", actual.conf.main.values.get("rootfs", "")).get("size", "0")
        reached = pct_conf.size_in_bytes(size) >= pct_conf.size_in_bytes(step.argv[-1])
    return "" if reached else f"{done.sentence()} - without the effect that it should have"


def _wait_for_boot(vmid: int, timeout: int) -> None:
    """Wait until systemd inside says that it is up, failed units or not. A guest without systemd is up at once.

    :raises ContainerError: when it stops meanwhile, or isn't up in time
    """
    end = time.monotonic() + timeout
    state = ""
    while time.monotonic() < end:
        done = process.run(
            ["lxc-attach", "-n", str(vmid), "--clear-env", "--", "systemctl", "is-system-running", "--wait"],
            max(1.0, end - time.monotonic()),
        )
        state = done.stdout.strip()
        if state in ("running", "degraded") or done.rc == 127:
            return
        if vmid not in node.running():
            raise ContainerError(
                f"CTID {vmid} stopped by itself while it was starting. The last lines of /var/log/lxc/{vmid}.log:\n"
                f"{node.log_tail(vmid)}"
            )
        time.sleep(0.2)
    raise ContainerError(
        f"CTID {vmid} runs, but the system inside is still {state or 'not answering'} after {timeout} s; look inside "
        f"with: pct enter {vmid}, then systemctl list-jobs"
    )


def text_of(container: Container, waiting: Sequence[str]) -> str:
    """What the diff shows: the configuration as after a restart, whether it runs, and what waits for that restart."""
    if not container.exists:
        return ""
    lines = [f"status: {'running' if container.running else 'stopped'}"]
    lines += [f"waits for a restart: {key}" for key in waiting]
    return pct_conf.render(pct_conf.with_pending(container.conf)) + "".join(f"{line}\n" for line in lines)


def main() -> None:
    device = dict(
        path=dict(type="str", required=True), mode=dict(type="str"), uid=dict(type="int"), gid=dict(type="int")
    )
    mount = dict(
        source=dict(type="str", required=True), mp=dict(type="str", required=True), ro=dict(type="bool", default=False)
    )
    clone = dict(vmid=dict(type="int", required=True), snapname=dict(type="str", default=""), full=dict(type="bool"))
    states = ["present", "started", "stopped", "restarted", "template", "absent"]
    module = AnsibleModule(
        argument_spec=dict(
            vmid=dict(type="int", required=True),
            state=dict(type="str", choices=states, default="present"),
            clone=dict(type="dict", options=clone),
            ostemplate=dict(type="str", default=""),
            storage=dict(type="str", default=""),
            disk_gb=dict(type="int", default=0),
            unprivileged=dict(type="bool"),
            config=dict(type="dict", default={}),
            devices=dict(type="list", elements="dict", options=device),
            mounts=dict(type="list", elements="dict", options=mount),
            raw=dict(type="list", elements="str"),
            delete=dict(type="list", elements="str", default=[]),
            restart=dict(type="str", choices=["never", "when_required"], default="when_required"),
            timeout=dict(type="int", default=600),
        ),
        supports_check_mode=True,
    )
    declared = declared_by(module.params)
    timeout = module.params["timeout"]
    done: list[Step] = []
    try:
        before = node.read(declared.vmid)
        planned = plan_now(declared, assume_source=module.check_mode)
        steps = list(planned.steps)
        while steps and not module.check_mode:
            step = steps.pop(0)
            execute(declared, step, timeout)
            done.append(step)
            if step.then_plan:
                planned = plan_now(declared)
                steps = list(planned.steps)
        after = planned.after if module.check_mode else node.read(declared.vmid)
    except (PlanError, ContainerError, node.NodeError, ValueError) as error:
        where = f"CTID {declared.vmid}: " if isinstance(error, ValueError) else ""
        steps = [step.why for step in done]
        begun = f"\nDone before that: {'; '.join(steps)}. The next run goes on from there." if steps else ""
        module.fail_json(msg=f"{where}{error}{begun}", steps=steps)
    shown = planned.steps if module.check_mode else done
    module.exit_json(
        changed=bool(shown),
        steps=[step.why for step in shown if step.kind != "boot"],
        commands=[list(step.argv) for step in shown if step.argv],
        status="absent" if not after.exists else "running" if after.running else "stopped",
        restart_required=list(planned.restart_required),
        diff={
            "before": text_of(before, pct_conf.waiting(before.conf)),
            "after": text_of(after, planned.restart_required),
            "before_header": f"CTID {declared.vmid}",
            "after_header": f"CTID {declared.vmid}",
        },
    )


if __name__ == "__main__":
    main()
