#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: adopt_node
short_description: What the old shell scripts left of a container on its node
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Looks at a container's conf file for what the shell scripts that this collection replaces leave there, and says what
    a run of C(site.yml) would change. Makes no C(pct) call, and touches no container.
  - Keeps a copy of the conf file, once.
  - C(playbooks/adopt.yml) tells what it finds.
attributes:
  check_mode:
    description: Keeps no copy.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotence:
    description: A copy that is there stays as it is.
    support: full
options:
  declared:
    description: Variables of the role P(phoenix.hypervisor.container#role), as the inventory has them.
    type: dict
    required: true
  keep_folder:
    description: The folder on the node for the copy, readable for root only.
    type: path
    default: /var/lib/phoenix-hypervisor/adopted
seealso:
  - module: phoenix.hypervisor.adopt_inside
  - module: phoenix.hypervisor.pct_container_info
"""

EXAMPLES = r"""
- name: Look what is there
  phoenix.hypervisor.adopt_node:
    declared:
      container_vmid: 921
      container_config: {memory: 32768}
      container_gpus: [0]
  delegate_to: pve
"""

RETURN = r"""
exists:
  description: Whether the container exists.
  returned: success
  type: bool
status:
  description: C(running) or C(stopped), empty when it does not exist.
  returned: success
  type: str
  sample: running
template:
  description: Whether it is a template.
  returned: success
  type: bool
steps:
  description: What was done, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: ["keep a copy of its conf file as /var/lib/phoenix-hypervisor/adopted/921.conf on the node"]
would:
  description: What a run of C(site.yml) would change of the container.
  returned: success
  type: list
  elements: str
  sample: ["memory: 2048 → 4096"]
restart:
  description: Keys for which such a run would restart it.
  returned: success
  type: list
  elements: str
  sample: [features]
problem:
  description: Why it can't become what is declared, or empty.
  returned: success
  type: str
gpus_declared:
  description: Whether the declaration says which GPUs it has.
  returned: success
  type: bool
gpu_lines:
  description: Raw lines that give it GPUs.
  returned: success
  type: list
  elements: str
other_lines:
  description: Other raw lines that are not declared.
  returned: success
  type: list
  elements: str
snapshot_lines:
  description: By snapshot, raw lines that only its section has.
  returned: success
  type: dict
unused:
  description: Volumes that nothing mounts.
  returned: success
  type: list
  elements: str
open_folders:
  description:
    - Folders of the node that it mounts and everybody can write, each with C(source), C(inside) and C(secrets), the
      files of keys and passwords in it.
  returned: success
  type: list
  elements: dict
"""

import os
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    adoption,
    container_plan,
    live,
    node,
    nodes,
    pct_conf,
)

# A folder is looked through for keys so many levels deep, and so many are told.
_DEPTH = 3
_FILES = 20


def open_folder(source: str, inside: str) -> dict | None:
    """A mounted folder that everybody can write, None when it is no such."""
    try:
        status = os.stat(source)
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode) or not status.st_mode & stat.S_IWOTH:
        return None
    secrets: list[str] = []
    for folder, folders, files in os.walk(source):
        folders.sort()
        below = os.path.relpath(folder, source)
        if below != "." and below.count(os.sep) + 2 >= _DEPTH:
            folders.clear()
        secrets += [
            os.path.relpath(os.path.join(folder, name), source) for name in sorted(files)
            if adoption.is_secret_file(name)
        ]  # fmt: skip
    return {"source": source, "inside": inside, "secrets": secrets[:_FILES]}


def keep(folder: str, vmid: int, text: str) -> None:
    """Keep a copy of a conf file, whole or not at all."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".phoenix-")
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.replace(temporary, os.path.join(folder, f"{vmid}.conf"))


def would(declared: container_plan.Declared, actual, facts: container_plan.Facts) -> dict:
    """What a run would change, for what it would restart the container, or why it can't be done."""
    try:
        planned = container_plan.plan(declared, actual, facts=facts)
    except container_plan.PlanError as error:
        return {"would": [], "restart": [], "problem": str(error)}
    return {"would": [step.why for step in planned.steps], "restart": list(planned.restart_required), "problem": ""}


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            declared=dict(type="dict", required=True),
            keep_folder=dict(type="path", default="/var/lib/phoenix-hypervisor/adopted"),
        ),
        supports_check_mode=True,
    )
    variables = module.params["declared"]
    if not str(variables.get("container_vmid", "")).isdigit():
        module.fail_json(msg="declared: it needs a container_vmid, the container's CTID.")
    vmid = int(variables["container_vmid"])
    try:
        there = nodes.connect({})
        actual = there.read(vmid)
        if not actual.exists:
            module.exit_json(changed=False, exists=False, status="", template=False, steps=[])
        sources = [mount["source"] for mount in variables.get("container_mounts") or [] if mount.get("source")]
        devices = node.nvidia_devices()
        facts = container_plan.Facts(
            release=there.release(), nvidia_devices=devices, root_subids=node.root_subids(),
            owners=node.owners(sources), memory=node.remembered(vmid),
        )  # fmt: skip
        declared = live.declared({**variables, "container_vmid": vmid})
        conf = pct_conf.parse(actual.text)
        folders = [open_folder(*pair) for pair in adoption.bound_folders(conf.main)]
        path = os.path.join(module.params["keep_folder"], f"{vmid}.conf")
        steps = [] if os.path.exists(path) else [f"keep a copy of its conf file as {path} on the node"]
        if steps and not module.check_mode:
            keep(module.params["keep_folder"], vmid, actual.text)
    except node.NodeError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"CTID {vmid}: {error.strerror} ({error.filename}); nothing was changed.")
    module.exit_json(
        changed=bool(steps), exists=True, status="running" if actual.running else "stopped", steps=steps,
        template=actual.is_template, gpus_declared=declared.gpus is not None, **would(declared, actual, facts),
        **adoption.of_conf(conf, declared, devices), open_folders=[folder for folder in folders if folder],
    )  # fmt: skip


if __name__ == "__main__":
    main()
