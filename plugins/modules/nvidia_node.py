#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_node
short_description: Have NVIDIA's device nodes on the node before its containers start
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Writes a unit of systemd that makes the device nodes at boot, enables it, and starts it.
  - C(/dev/nvidia-uvm) isn't there after a boot until something has asked for it, and Proxmox doesn't start a container
    whose device is missing.
  - A node that wasn't booted by systemd, and one without O(modprobe), are left as they are; RV(reason) says so.
attributes:
  check_mode:
    description: Tells the steps of the plan that the real run executes.
    support: full
  diff_mode:
    description: The unit before and after.
    support: full
  idempotence:
    description: A unit that is as it should be, enabled and active, is not touched.
    support: full
options:
  name:
    description: The unit's name.
    type: str
    default: phoenix-nvidia.service
  unit:
    description: The unit's text.
    type: str
    required: true
  modprobe:
    description: NVIDIA's program that makes the device nodes.
    type: path
    default: /usr/bin/nvidia-modprobe
"""

EXAMPLES = r"""
- name: The node makes NVIDIA's device nodes at boot
  phoenix.hypervisor.nvidia_node:
    unit: "{{ lookup('ansible.builtin.template', 'phoenix-nvidia.service.j2') }}"
  delegate_to: pve
"""

RETURN = r"""
plan:
  description: What was done, or with check mode would be, one sentence each.
  returned: success
  type: list
  elements: str
reason:
  description: Why the node was left as it is, C("") where it wasn't.
  returned: success
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils.text_file import read_text, write

FOLDER = "/etc/systemd/system"
BOOTED = "/run/systemd/system"


def run(module: AnsibleModule, *words: str) -> None:
    """Run systemctl.

    :param words: what it is to do
    """
    rc, stdout, stderr = module.run_command(["systemctl", *words])
    if rc:
        said = (stderr or stdout).strip().rstrip(".")
        more = f"journalctl -u {module.params['name']} there says more"
        module.fail_json(msg=f"systemctl {' '.join(words)} on the node: {said}; {more}.")


def converge(module: AnsibleModule) -> dict:
    """Read, plan, and execute the plan unless only asked to tell it."""
    name, wanted = module.params["name"], module.params["unit"].rstrip() + "\n"
    path = f"{FOLDER}/{name}"
    if not os.path.isdir(BOOTED):
        return {"changed": False, "plan": [], "reason": "The node wasn't booted by systemd."}
    if not os.path.exists(module.params["modprobe"]):
        return {"changed": False, "plan": [], "reason": f"The node has no {module.params['modprobe']}."}
    there = read_text(path, "")
    enabled = os.path.lexists(f"{FOLDER}/multi-user.target.wants/{name}")
    active = module.run_command(["systemctl", "is-active", "--quiet", name])[0] == 0
    plan = []
    if there != wanted:
        plan.append(f"write {path}")
    if not enabled:
        plan.append(f"have {name} start at boot, before the containers")
    if not active or there != wanted:
        plan.append(f"start {name}")
    if plan and not module.check_mode:
        if there != wanted:
            write(path, wanted)
            run(module, "daemon-reload")
        if not enabled:
            run(module, "enable", name)
        if not active or there != wanted:
            run(module, "restart", name)
    diff = {}
    if there != wanted:
        diff = {"before_header": path, "after_header": path, "before": there, "after": wanted}
    return {"changed": bool(plan), "plan": plan, "reason": "", "diff": diff}


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "phoenix-nvidia.service"},
            "unit": {"type": "str", "required": True},
            "modprobe": {"type": "path", "default": "/usr/bin/nvidia-modprobe"},
        },
        supports_check_mode=True,
    )
    try:
        result = converge(module)
    except OSError as error:
        module.fail_json(msg=f"{error.filename or FOLDER} on the node: {error.strerror or error}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
