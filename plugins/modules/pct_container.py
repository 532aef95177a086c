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
  - What the options name is made exactly so. What they don't speak of stays as it is.
  - Each step is planned on what is there at that moment, and is refused by Proxmox when the configuration has changed
    since; then it is planned again. What another writer changed is never overwritten unseen.
  - A container that something else is at work on (a backup, a clone, a C(pct) call) is waited for.
  - Runs on the node, as root; with O(api_host) through the REST API, for all but O(raw), O(gpus) on a Proxmox VE older
    than 8.1, owners of mounts, and the removal of mounts that are no longer declared.
extends_documentation_fragment:
  - phoenix.hypervisor.api
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
      - V(absent) stops and removes it, with its disks and its place in backup jobs, replication and HA.
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
      - Keys as in C(pct set) and their values; every key of Proxmox VE 7.4 to 9.1. A dictionary is a property string.
      - Parts of a property string that are not named keep their value (a MAC address, a firewall flag), but in
        C(features) and C(startup), which become exactly what is declared.
      - An empty value removes the key.
      - Unknown keys, keys that this node's release doesn't have, and values that can't be are refused before anything
        changes.
    type: dict
    default: {}
  gpus:
    description:
      - Numbers of the NVIDIA GPUs that can be opened inside, and no others; an empty list for none. Left out, none is
        touched.
      - Makes C(devN) of C(/dev/nvidiaN), C(/dev/nvidiactl), C(/dev/nvidia-uvm), C(/dev/nvidia-uvm-tools) and
        of C(/dev/nvidia-caps/*) those of the GPUs' own instances (MIG), whose numbers Proxmox looks up at each start.
        Before Proxmox VE 8.1, raw lines with the numbers of the moment.
      - Raw lines that give GPUs (C(lxc.mount.entry) of C(/dev/nvidia*), C(lxc.cgroup2.devices.allow) of their numbers)
        are taken away, unless O(raw) declares them.
    type: list
    elements: int
  devices:
    description:
      - Exactly these devices, and those of O(gpus), are passed through (C(devN)); others are removed. Left out, none is
        touched that is not NVIDIA's.
      - A device that is new reaches a running container on Proxmox VE 9.0 and newer.
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
      deny_write:
        description: Whether it is read-only inside.
        type: bool
  mounts:
    description:
      - What is mounted inside (C(mpN)), one for each O(mounts[].mp), ever. A mount point that is there keeps its number
        and, when it is a volume, that volume.
      - A mount that an earlier run declared and that is not declared any more is taken away; a volume stays as an
        unused one, and comes back when it is declared again. What was mounted by hand stays.
    type: list
    elements: dict
    suboptions:
      mp:
        description: Path inside.
        type: str
        required: true
      source:
        description: Folder on the node, for a bind mount. It has to be there.
        type: str
      storage:
        description: Storage of a volume that is made, when none is mounted there yet.
        type: str
      size_gb:
        description: Size of the volume in GiB. It is grown to this; less than it has is an error.
        type: int
      ro:
        description: Whether it is read-only inside.
        type: bool
      backup:
        description: Whether backups hold the volume.
        type: bool
      owner_uid:
        description:
          - User id inside that owns O(mounts[].source); the folder on the node gets the id that it is mapped to.
        type: int
      owner_gid:
        description: Group id inside, likewise.
        type: int
  raw:
    description:
      - Raw lines, C(lxc.key = value) or with a colon. The lines of each key that is named become exactly these.
      - Lines that an earlier run declared and that are not declared any more are taken away. Lines of other keys that
        were written by hand stay.
      - Written into the main section of the conf file, under Proxmox's own lock; they take effect at a restart.
      - C(lxc.idmap) lines are compared with what root may map on the node (C(/etc/subuid), C(/etc/subgid)).
    type: list
    elements: str
  delete:
    description: Keys to remove, those of raw lines included.
    type: list
    elements: str
    default: []
  restart:
    description:
      - Whether a running container is restarted for changes that take effect only then. The steps name the keys.
      - A change that waits is told in RV(restart_required) by every run until it was restarted.
    type: str
    choices: [never, when_required]
    default: when_required
  timeout:
    description:
      - Seconds that one step may take, that somebody else's work on the container or its source is waited for, and that
        the system inside may take to come up.
    type: int
    default: 600
seealso:
  - module: phoenix.hypervisor.pct_container_info
  - module: phoenix.hypervisor.pct_snapshot
  - module: phoenix.hypervisor.pct_exec
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
    gpus: [0]
    mounts:
      - mp: /models
        source: /tank/models
        ro: true
      - mp: /var/lib/vllm
        storage: local-zfs
        size_gb: 50

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

- name: More memory for a container, from anywhere, with a token
  phoenix.hypervisor.pct_container:
    vmid: 921
    config:
      memory: 65536
    api_host: pve.example.com
    api_user: automation@pve
    api_token_id: ansible
    api_token_secret: "{{ proxmox_token_secret }}"
  delegate_to: localhost
"""

RETURN = r"""
steps:
  description: What was done, or would be in check mode, with the reason of each step.
  returned: always
  type: list
  elements: str
  sample: ["memory: 2048 → 4096", "features: takes effect at a restart"]
commands:
  description: The C(pct) commands of these steps; with O(api_host) the requests, as method, path and parameters.
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

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import gpu, node, nodes, pct_conf, process
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Command
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container_plan import (
    Declared,
    Facts,
    Memory,
    Plan,
    PlanError,
    Step,
    plan,
    to_remember,
    to_remember_at_first,
)

# How often a step is planned anew because somebody else changed the container in between.
_ATTEMPTS = 10
# How often the same step is done, when another run declares something else.
_REPEATS = 3
# Seconds for which nobody has to be seen at work before what is there counts as left over.
_GRACE = 3


class ContainerError(Exception):
    """The container can't be made as declared; the text is for the user."""


class StepError(ContainerError):
    """A step failed; somebody else may have done the same meanwhile."""


def declared_by(params: dict) -> Declared:
    """The module's options as the plan wants them."""
    clone = params["clone"] or {}
    devices = params["devices"]
    if devices is not None:
        devices = [{name.replace("_", "-"): value for name, value in device.items()} for device in devices]
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
        gpus=params["gpus"],
        devices=devices,
        mounts=params["mounts"],
        raw=params["raw"],
        delete=params["delete"],
        restart=params["restart"],
    )


class Run:
    """One run of the module over one container."""

    def __init__(self, there: nodes.Node, declared: Declared, timeout: int, is_check: bool) -> None:
        self.there, self.declared, self.timeout, self.is_check = there, declared, timeout, is_check
        self.done: list[Step] = []
        # What this run changed, and of which nothing on the node tells that it waits for a restart.
        self._unseen: set[str] = set()
        self._taken: set[tuple] = set()
        is_known = there.is_local and there.read(declared.vmid).exists
        self.memory = node.remembered(declared.vmid) if is_known else Memory()
        self._release = there.release()
        self._storage_types = there.storage_types()

    def plan(self, actual: Container) -> Plan:
        """The plan for what is there now.

        :raises ContainerError: when this way to the node can't do one of its steps
        """
        source, facts = self._about(actual)
        planned = plan(self.declared, actual, source, facts)
        for step in planned.steps:
            # What a clone has from its source was the source's affair.
            fault = self._refusal(step, source if source and not actual.exists else actual)
            if fault:
                raise ContainerError(f"CTID {self.declared.vmid}: {step.why}: {fault}")
        return planned

    def _refusal(self, step: Step, before: Container) -> str:
        if step.command:
            return self.there.refusal(step.command, before)
        if self.there.is_local:
            return ""
        return "the REST API can't do that, for nobody; run the module on the node, without api_host"

    def _about(self, actual: Container) -> tuple[Container | None, Facts]:
        """The clone source, where one is needed, and what the plan has to know of the node."""
        declared = self.declared
        source = None
        if declared.clone_vmid is not None and (not actual.exists or actual.is_half_made):
            source = self.there.read(declared.clone_vmid)
            if not source.exists and self.is_check:
                # An earlier task of the run would have made it.
                source = Container(exists=True, text="unprivileged: 1\n" if declared.unprivileged else "")
        return source, self._facts(actual, source)

    def _facts(self, actual: Container, source: Container | None) -> Facts:
        busy = actual.is_half_made and bool(self.there.workers(self.declared.vmid, or_clones=True))
        source_busy = source is not None and source.lock == "disk" and self._is_worked_on(int(self.declared.clone_vmid))
        if not self.there.is_local:
            return Facts(
                self._storage_types, self._release, is_busy=busy, is_source_busy=source_busy,
                unseen=frozenset(self._unseen),
            )  # fmt: skip
        sources = [mount["source"] for mount in self.declared.mounts or [] if mount["source"]]
        return Facts(
            self._storage_types, self._release, node.nvidia_devices(), node.root_subids(), node.owners(sources),
            self.memory, busy, source_busy, taken=frozenset(self._taken),
        )  # fmt: skip

    def _is_worked_on(self, vmid: int) -> bool:
        """Is a lock somebody's? One that was left over is nobody's for a while, not only between two steps."""
        for _second in range(_GRACE):
            if self.there.workers(vmid) or not self.there.read(vmid).lock:
                return True
            time.sleep(1)
        return False

    def _when_it_is_made(self) -> Container:
        """The container, once nobody is at work any more on one that is being made, or that was begun and left.

        :raises ContainerError: when somebody stays at work
        """
        vmid, end, unseen = self.declared.vmid, time.monotonic() + self.timeout, 0
        while True:
            container = self.there.read(vmid)
            workers = self.there.workers(vmid, or_clones=True) if container.is_half_made else []
            unseen = 0 if workers else unseen + 1
            if not container.is_half_made or unseen > _GRACE:
                return container
            if time.monotonic() > end:
                raise ContainerError(
                    f"CTID {vmid} is being made by {', '.join(workers)}; waited {self.timeout} s. Let it come to its "
                    "end, then run again"
                )
            time.sleep(1)

    def execute(self) -> Plan:
        """Plan, do the first step, look again, until there is nothing left to do. Gives the last plan."""
        again = 0
        is_remembered = not self.there.is_local
        while True:
            actual = self._when_it_is_made()
            planned = self.plan(actual)
            if not planned.steps:
                return planned
            if not is_remembered:
                memory = to_remember_at_first(self.declared, planned, self._facts(actual, None))
                node.remember(self.declared.vmid, memory)
                is_remembered = True
            step = planned.steps[0]
            if self.done.count(step) > _REPEATS:
                raise ContainerError(
                    f"CTID {self.declared.vmid}: {step.why}: was done, and is to be done again; somebody else undoes "
                    "it, or Proxmox writes it differently (which would be a fault of this module)"
                )
            try:
                self._do(step, actual)
            except (node.Changed, StepError) as error:
                again += 1
                if again > _ATTEMPTS or (isinstance(error, StepError) and self._is_still_to_do(step)):
                    raise
                continue
            self._note(step, actual)

    def _is_still_to_do(self, step: Step) -> bool:
        """Is a step that failed to be done yet? Somebody else may have done the same."""
        try:
            planned = self.plan(self._when_it_is_made())
        except (PlanError, ContainerError, node.NodeError):
            return True
        return bool(planned.steps) and planned.steps[0].name == step.name

    def _note(self, step: Step, before: Container) -> None:
        """What a step that was done means for the plans that follow."""
        self.done.append(step)
        if step.name in ("start", "reboot"):
            self._unseen.clear()
            self._taken.clear()
            if self.declared.state == "restarted":
                self.declared = replace(self.declared, state="started")
        elif step.is_raw and before.running:
            self._taken.update(step.removed)
        elif step.name == "set" and before.running and before.started_with is None:
            self._unseen |= {"hostname"} & dict(step.command.options).keys()

    def remember(self, after: Container) -> None:
        """Keep what was declared, for the next run."""
        if self.there.is_local:
            node.remember(self.declared.vmid, to_remember(self.declared, after, self._facts(after, None)))

    def _do(self, step: Step, actual: Container) -> None:
        """Do one step, and make sure of its effect: some pct commands end with 0 although they failed.

        :raises Changed: when the container is not the one any more that this was planned on
        :raises StepError: with what Proxmox said and, for a container that doesn't start, what its log says
        """
        vmid = self.declared.vmid
        if step.path:
            os.chown(step.path, *step.owner)
        elif step.is_raw:
            self._edit_raw(step, actual)
        elif step.name in ("start", "reboot"):
            self._start(step)
        elif step.name == "clone":
            self._clone(step)
        else:
            digest = actual.digest if step.name in ("set", "resize") else ""
            done = self.there.run(step.command, self.timeout, digest)
            if nodes.has_changed(done):
                raise node.Changed(f"CTID {vmid}: {done.sentence()}")
            problem = done.sentence() if done.failed else self._effect_problem(step.command, done)
            if problem:
                raise StepError(f"CTID {vmid}: {problem}")

    def _edit_raw(self, step: Step, actual: Container) -> None:
        self.there.settle(self.declared.vmid, self.timeout)
        node.edit_raw(self.declared.vmid, actual.digest, step.removed, step.added, self.timeout)

    def _clone(self, step: Step) -> None:
        """Clone, one at a time of one source: Proxmox refuses a second one."""
        with self.there.turn(step.command.vmid, self.timeout):
            if self.there.read(self.declared.vmid).exists:
                raise node.Changed(f"CTID {self.declared.vmid} was made by somebody else meanwhile; run again")
            done = self.there.run(step.command, self.timeout)
        if done.failed or not self.there.read(self.declared.vmid).exists:
            raise StepError(f"CTID {self.declared.vmid}: {done.sentence()}")

    def _start(self, step: Step) -> None:
        vmid = self.declared.vmid
        log_before = node.log(vmid) if self.there.is_local else b""
        done = self.there.run(step.command, self.timeout)
        if done.failed or not self.there.read(vmid).running:
            log = node.log_tail(vmid, log_before) if self.there.is_local else ""
            raise StepError(_start_problem(vmid, done, log))
        if self.there.is_local:
            wait_for_boot(vmid, self.timeout)

    def _effect_problem(self, command: Command, done: process.Finished) -> str:
        def is_reached() -> bool:
            actual = self.there.read(self.declared.vmid)
            if command.name == "resize":
                size = pct_conf.split_property(command.arguments[0], actual.conf.main.values[command.arguments[0]])
                wanted = pct_conf.size_in_bytes(command.arguments[1])
                return pct_conf.size_in_bytes(size.get("size", "0")) >= wanted
            return {
                "create": actual.exists and not actual.is_half_made,
                "destroy": not actual.exists,
                "template": actual.is_template,
                "stop": not actual.running,
                "shutdown": not actual.running,
            }.get(command.name, True)

        end = time.monotonic() + (0 if self.there.is_local else 30)
        # The API answers some requests before their worker is through.
        while not is_reached():
            if time.monotonic() >= end:
                return f"{done.sentence()} - without the effect that it should have"
            time.sleep(0.5)
        return ""


def _start_problem(vmid: int, done: process.Finished, log: str) -> str:
    """Why a container doesn't start. Its log has all that pct printed; without one, what pct printed has to do."""
    if not log:
        return f"CTID {vmid} doesn't start: {done.sentence()}"
    error = done.stderr.strip() or done.sentence()
    return f"CTID {vmid} doesn't start: {error}. The last lines of /var/log/lxc/{vmid}.log:\n{log}"


def wait_for_boot(vmid: int, timeout: int) -> None:
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


def warnings_of(declared: Declared) -> list[str]:
    """What is declared, can be done, and is not what was meant."""
    found = []
    if declared.gpus is not None:
        lines = gpu.raw_lines_of([pct_conf.split_raw(line) for line in declared.raw or []], {})
        if lines:
            found.append(
                f"CTID {declared.vmid}: raw declares {'; '.join(f'{key}: {value}' for key, value in lines)}, which "
                "gives GPUs beside those of gpus; remove it"
            )
    return found


def main() -> None:
    device = dict(
        path=dict(type="str", required=True), mode=dict(type="str"), uid=dict(type="int"), gid=dict(type="int"),
        deny_write=dict(type="bool"),
    )  # fmt: skip
    mount = dict(
        mp=dict(type="str", required=True), source=dict(type="str"), storage=dict(type="str"), size_gb=dict(type="int"),
        ro=dict(type="bool"), backup=dict(type="bool"), owner_uid=dict(type="int"), owner_gid=dict(type="int"),
    )  # fmt: skip
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
            gpus=dict(type="list", elements="int"),
            devices=dict(type="list", elements="dict", options=device),
            mounts=dict(
                type="list", elements="dict", options=mount, mutually_exclusive=[("source", "storage")],
                required_one_of=[("source", "storage")], required_together=[("storage", "size_gb")],
            ),
            raw=dict(type="list", elements="str"),
            delete=dict(type="list", elements="str", default=[]),
            restart=dict(type="str", choices=["never", "when_required"], default="when_required"),
            timeout=dict(type="int", default=600),
            **nodes.ARGUMENTS,
        ),
        supports_check_mode=True,
    )  # fmt: skip
    declared = declared_by(module.params)
    run = None
    try:
        there = nodes.connect(module.params)
        run = Run(there, declared, module.params["timeout"], module.check_mode)
        before = there.read(declared.vmid)
        first = run.plan(before) if module.check_mode else run.execute()
        after = first.after if module.check_mode else there.read(declared.vmid)
        if not module.check_mode:
            run.remember(after)
    except (PlanError, ContainerError, node.NodeError, ValueError, OSError) as error:
        where = f"CTID {declared.vmid}: " if isinstance(error, (ValueError, OSError)) else ""
        steps = [step.why for step in run.done] if run else []
        begun = f"\nDone before that: {'; '.join(steps)}. The next run goes on from there." if steps else ""
        module.fail_json(msg=f"{where}{error}{begun}", steps=steps)
    for warning in warnings_of(declared):
        module.warn(warning)
    shown = first.steps if module.check_mode else run.done
    module.exit_json(
        changed=bool(shown),
        steps=[step.why for step in shown],
        commands=[there.words(step.command) for step in shown if step.command],
        status="absent" if not after.exists else "running" if after.running else "stopped",
        restart_required=list(first.restart_required),
        diff={
            "before": text_of(before, pct_conf.waiting(before.conf)),
            "after": text_of(after, first.restart_required),
            "before_header": f"CTID {declared.vmid}",
            "after_header": f"CTID {declared.vmid}",
        },
    )


if __name__ == "__main__":
    main()
