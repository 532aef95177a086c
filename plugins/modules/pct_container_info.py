#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: pct_container_info
short_description: What a Proxmox VE node says about its LXC containers
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Reads conf files and C(/proc/net/unix) on the node; makes no C(pct) call. With O(api_host), asks the REST API.
extends_documentation_fragment:
  - phoenix.hypervisor.look
  - phoenix.hypervisor.api
options:
  vmids:
    description: CTIDs to look at, whether they exist or not. Left out, all containers of the node.
    type: list
    elements: int
  compare:
    description:
      - Containers to compare with their declarations. Each is a dictionary with variables of the role
        P(phoenix.hypervisor.container#role), C(container_vmid) among them, as the inventory has them.
      - The comparison is the plan of M(phoenix.hypervisor.pct_container). The firewall's rules are not compared.
    type: list
    elements: dict
    default: []
seealso:
  - module: phoenix.hypervisor.pct_container
"""

EXAMPLES = r"""
- name: Look at two containers
  phoenix.hypervisor.pct_container_info:
    vmids: [900, 901]
  register: look

- name: All containers of a node, through its REST API
  phoenix.hypervisor.pct_container_info:
    api_host: pve.example.com
    api_user: automation@pve
    api_token_id: ansible
    api_token_secret: "{{ proxmox_token_secret }}"
  delegate_to: localhost

- name: See what of a container differs from its declaration
  phoenix.hypervisor.pct_container_info:
    compare:
      - container_vmid: 921
        container_config: {memory: 32768, cores: 8}
        container_gpus: [0]

- name: Say which of them are templates
  ansible.builtin.debug:
    msg: "{{ look.containers | selectattr('template') | map(attribute='vmid') }}"
"""

RETURN = r"""
containers:
  description: One entry for each CTID, in the order of O(vmids), or by CTID.
  returned: always
  type: list
  elements: dict
  contains:
    vmid:
      description: The CTID.
      type: int
      sample: 901
    exists:
      description: Whether the container exists on this node. Where it does not, the other values are empty.
      type: bool
      sample: true
    status:
      description: C(running) or C(stopped), empty when it does not exist.
      type: str
      sample: stopped
    template:
      description: Whether it is a template.
      type: bool
      sample: true
    lock:
      description: The lock that is set, or empty.
      type: str
      sample: ""
    snapshots:
      description: Names of its complete snapshots, sorted. One that is being taken or deleted is none yet.
      type: list
      elements: str
      sample: []
    config:
      description: Its active configuration, by key.
      type: dict
      sample: {"hostname": "Template-GPU", "memory": "8192"}
    pending:
      description: What waits for a restart, by key; C(delete) names keys to be removed.
      type: dict
      sample: {}
    waiting:
      description: Keys that change or go at a restart, sorted.
      type: list
      elements: str
      sample: []
    description:
      description: Its description.
      type: str
      sample: ""
    digest:
      description: What Proxmox knows this configuration by; it changes with every change.
      type: str
      sample: "0fd71a2a4c4cb2f5a0c6ab0a1e8d0ef4f3d0b0c1"
    raw:
      description: Its raw C(lxc.*) lines.
      type: list
      elements: str
      sample: []
compared:
  description: One entry for each container of O(compare).
  returned: always
  type: list
  elements: dict
  contains:
    vmid:
      description: The CTID.
      type: int
      sample: 921
    state:
      description: C(running), C(stopped), C(template), C(absent), or C(incomplete) while it is made.
      type: str
      sample: running
    differs:
      description: Keys of the configuration that a run would change, sorted.
      type: list
      elements: str
      sample: [memory]
    problem:
      description: Why it can't become what is declared, or empty.
      type: str
      sample: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import container_plan, live, node, nodes, pct_conf
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container


def described(vmid: int, container: Container) -> dict:
    """A container as the module returns it."""
    conf = container.conf
    status = "running" if container.running else "stopped"
    return {
        "vmid": vmid,
        "exists": container.exists,
        "status": status if container.exists else "",
        "template": container.is_template,
        "lock": container.lock,
        "snapshots": conf.complete_snapshots,
        "config": conf.main.values,
        "pending": conf.pending.values,
        "waiting": pct_conf.waiting(conf),
        "description": conf.main.description,
        "digest": container.digest,
        "raw": [f"{key}: {value}" for key, value in conf.main.raw],
    }


def compared(there: nodes.Node, variables: dict) -> dict:
    """What differs between a container and its declaration.

    :param variables: the variables of the role container
    """
    vmid = int(variables["container_vmid"])
    actual = there.read(vmid)
    seen = live.Seen({vmid: actual} if actual.exists else {})
    facts = container_plan.Facts(release=there.release())
    if there.is_local:
        sources = [mount["source"] for mount in variables.get("container_mounts") or [] if mount.get("source")]
        facts = container_plan.Facts(
            release=there.release(), nvidia_devices=node.nvidia_devices(), root_subids=node.root_subids(),
            owners=node.owners(sources), memory=node.remembered(vmid),
        )  # fmt: skip
    found = live.compared({**variables, "container_vmid": vmid}, seen, facts)
    return {
        "vmid": vmid, "state": found["phoenix_state"], "differs": found["phoenix_differs"],
        "problem": found.get("phoenix_problem", ""),
    }  # fmt: skip


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            vmids=dict(type="list", elements="int"),
            compare=dict(type="list", elements="dict", default=[]),
            **nodes.ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    nameless = [one for one in module.params["compare"] if not str(one.get("container_vmid", "")).isdigit()]
    if nameless:
        module.fail_json(msg="compare: each entry needs a container_vmid, the container's CTID.")
    try:
        there = nodes.connect(module.params)
        vmids = module.params["vmids"]
        containers = [described(vmid, there.read(vmid)) for vmid in (there.vmids() if vmids is None else vmids)]
        differences = [compared(there, variables) for variables in module.params["compare"]]
    except node.NodeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, containers=containers, compared=differences)


if __name__ == "__main__":
    main()
