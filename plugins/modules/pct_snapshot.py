#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: pct_snapshot
short_description: Take or delete a snapshot of an LXC container of Proxmox VE
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Makes sure that a snapshot of this name exists, or does not. What it holds is not compared.
  - Runs on the node, as root.
attributes:
  check_mode:
    description: Says what would be done, and changes nothing.
    support: full
  diff_mode:
    description: The names of the snapshots before and after.
    support: full
  idempotence:
    description: A second run changes nothing.
    support: full
options:
  vmid:
    description: CTID of the container.
    type: int
    required: true
  snapname:
    description: Name of the snapshot.
    type: str
    required: true
  state:
    description: Whether it is to exist.
    type: str
    choices: [present, absent]
    default: present
  description:
    description: What Proxmox shows beside a snapshot that is taken.
    type: str
    default: ""
  timeout:
    description: Seconds that the C(pct) call may take.
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
"""

RETURN = r"""
snapshots:
  description: Names of the container's snapshots afterwards, sorted.
  returned: always
  type: list
  elements: str
  sample: ["vllm-base-snapshot"]
commands:
  description: The C(pct) commands that were run, or would be.
  returned: always
  type: list
  elements: list
  sample: [["pct", "snapshot", "920", "vllm-base-snapshot"]]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import node, process


def command(vmid: int, snapname: str, state: str, description: str, snapshots: set) -> list:
    """The C(pct) command that is needed, or none."""
    if (snapname in snapshots) == (state == "present"):
        return []
    if state == "absent":
        return ["pct", "delsnapshot", str(vmid), snapname]
    return ["pct", "snapshot", str(vmid), snapname, *(["--description", description] if description else [])]


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            vmid=dict(type="int", required=True),
            snapname=dict(type="str", required=True),
            state=dict(type="str", choices=["present", "absent"], default="present"),
            description=dict(type="str", default=""),
            timeout=dict(type="int", default=600),
        ),
        supports_check_mode=True,
    )
    vmid, snapname, state = (module.params[name] for name in ("vmid", "snapname", "state"))
    try:
        container = node.read(vmid)
        if not container.exists and not module.check_mode:
            module.fail_json(msg=f"CTID {vmid} does not exist on this node, so it has no snapshots")
        before = set(container.conf.complete_snapshots)
        argv = command(vmid, snapname, state, module.params["description"], before)
        after = before | {snapname} if state == "present" else before - {snapname}
        if argv and not module.check_mode:
            done = process.run(argv, module.params["timeout"])
            if done.failed:
                module.fail_json(msg=f"CTID {vmid}: {done.sentence()}")
            after = set(node.read(vmid).conf.complete_snapshots)
            if (snapname in after) != (state == "present"):
                module.fail_json(msg=f"CTID {vmid}: {done.sentence()} - without the effect that it should have")
    except node.NodeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(argv),
        snapshots=sorted(after),
        commands=[argv] if argv else [],
        diff={"before": "".join(f"{name}\n" for name in sorted(before)),
              "after": "".join(f"{name}\n" for name in sorted(after))},
    )


if __name__ == "__main__":
    main()
