#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: adopt_inside
short_description: What the old shell scripts left inside a container
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Looks for the model server's unit, the folder of vLLM, lines for a shell in C(/etc/environment), and downloaded
    models, as the shell scripts that this collection replaces leave them.
  - Keeps copies of the unit and of C(/etc/environment), once. Moves lines with C(export) from C(/etc/environment),
    where they are not valid, to C(/etc/profile.d/phoenix_adopted.sh), where they are.
  - Starts, stops and restarts nothing, and leaves the unit as it is.
  - C(playbooks/adopt.yml) tells what it finds. Runs in the container, as root.
attributes:
  check_mode:
    description: Tells what it would do.
    support: full
  diff_mode:
    description: Shows the files' lines before and after, with the names of variables only.
    support: full
  idempotence:
    description: What was moved and kept is not moved and kept again.
    support: full
options:
  name:
    description: The name of the model server's unit.
    type: str
    default: vllm_model_server.service
  link:
    description: Where vLLM is.
    type: path
    default: /opt/vllm
  keep_folder:
    description: The folder for the copies, readable for root only.
    type: path
    default: /var/lib/phoenix-hypervisor/adopted
seealso:
  - module: phoenix.hypervisor.adopt_node
"""

EXAMPLES = r"""
- name: Take over what can be taken over without a restart
  phoenix.hypervisor.adopt_inside:
"""

RETURN = r"""
steps:
  description: What was done, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: ["move 2 lines (PATH, HF_HOME) from /etc/environment to /etc/profile.d/phoenix_adopted.sh"]
name:
  description: The name of the unit.
  returned: success
  type: str
link:
  description: Where vLLM is.
  returned: success
  type: str
unit:
  description:
    - What the unit runs. C(ours) says whether this collection wrote it. C(command) is its command line without secrets;
      C(user), C(model) and C(port) are as it says. Empty where there is no unit.
  returned: success
  type: dict
active:
  description: Whether the unit runs, in systemd's word.
  returned: success
  type: str
  sample: active
folder_version:
  description: The version of vLLM in O(link) where that is a folder, empty when it isn't known; null where it is none.
  returned: success
  type: str
  sample: 0.10.2
exports:
  description: Names of the variables that lines with C(export) in C(/etc/environment) set.
  returned: success
  type: list
  elements: str
root_models:
  description: Models in root's own cache of the hub.
  returned: success
  type: list
  elements: str
"""

import glob
import os
import re
import stat

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import adoption
from ansible_collections.phoenix.hypervisor.plugins.module_utils.text_file import read_text, write

ENVIRONMENT = "/etc/environment"
PROFILE = "/etc/profile.d/phoenix_adopted.sh"
UNITS = "/etc/systemd/system"
HUB = "/root/.cache/huggingface/hub"


def version_in(folder):
    """Return the version of vLLM that is installed in a folder, None when that is no folder of its own."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        return None
    found = [
        match[1]
        for path in glob.glob(os.path.join(glob.escape(folder), "**/site-packages/vllm-*.dist-info"), recursive=True)
        if (match := re.search(r"/vllm-([^/]+)\.dist-info$", path))
    ]
    return found[0] if found else ""


def main():
    """Run as a module."""
    module = AnsibleModule(
        argument_spec=dict(
            name=dict(type="str", default="vllm_model_server.service"),
            link=dict(type="path", default="/opt/vllm"),
            keep_folder=dict(type="path", default="/var/lib/phoenix-hypervisor/adopted"),
        ),
        supports_check_mode=True,
    )
    try:
        adopt(module)
    except OSError as error:
        module.fail_json(msg=f"What is inside could not be taken over: {error.strerror} ({error.filename}).")


def adopt(module):
    """Read, plan, and execute the plan unless only asked to tell it."""
    parameters = module.params
    unit_file = os.path.join(UNITS, parameters["name"])
    unit, environment, profile = (read_text(path, "", "surrogateescape") for path in (unit_file, ENVIRONMENT, PROFILE))
    about = adoption.of_unit(unit) if unit else {}
    kept, moved = adoption.without_exports(environment)
    names = adoption.names_of(moved)
    copies = {}
    if about and not about["ours"]:
        copies[unit_file] = unit
    if moved:
        copies[ENVIRONMENT] = environment
    copies = {
        path: text for path, text in copies.items()
        if not os.path.exists(os.path.join(parameters["keep_folder"], os.path.basename(path)))
    }  # fmt: skip
    steps = [f"keep a copy of {path} in {parameters['keep_folder']}" for path in copies]
    if moved:
        lines = "1 line" if len(moved) == 1 else f"{len(moved)} lines"
        steps.append(f"move {lines} ({', '.join(names)}) from {ENVIRONMENT} to {PROFILE}")
    if steps and not module.check_mode:
        os.makedirs(parameters["keep_folder"], mode=0o700, exist_ok=True)
        for path, text in copies.items():
            write(os.path.join(parameters["keep_folder"], os.path.basename(path)), text, 0o600)
        if moved:
            # First where they are added: a run that ends in between leaves them in both files, not in none.
            write(PROFILE, adoption.with_exports(profile, moved), 0o644)
            write(ENVIRONMENT, kept, stat.S_IMODE(os.stat(ENVIRONMENT).st_mode))
    active = module.run_command(["systemctl", "is-active", parameters["name"]])[1].strip() if unit else ""
    module.exit_json(
        changed=bool(steps), steps=steps, name=parameters["name"], link=parameters["link"], unit=about, active=active,
        folder_version=version_in(parameters["link"]), exports=names,
        root_models=sorted(name[len("models--"):].replace("--", "/") for name in names_in(HUB)),
        diff={"before": "".join(f"export {name}=…\n" for name in names), "after": "",
              "before_header": ENVIRONMENT, "after_header": ENVIRONMENT} if moved else {},
    )  # fmt: skip


def names_in(folder):
    """Return the folders of models in a cache of the hub."""
    return [name for name in os.listdir(folder) if name.startswith("models--")] if os.path.isdir(folder) else []


if __name__ == "__main__":
    main()
