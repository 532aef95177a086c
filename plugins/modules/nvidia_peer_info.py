#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_peer_info
short_description: Whether a container's GPUs may copy to each other, and why
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Looks at the node's IOMMU and at the PCIe bridges above GPUs, and says what NCCL should be told. An IOMMU that
    translates, and bridges that redirect (ACS), make copies between GPUs hang or arrive wrong, without an error.
  - Runs on the node. Only reads.
extends_documentation_fragment:
  - phoenix.hypervisor.look
options:
  gpus:
    description: Numbers of the container's GPUs.
    type: list
    elements: int
    default: []
  setting:
    description: What a person decided; V(auto) looks.
    type: str
    choices: ["auto", "on", "off"]
    default: auto
  root:
    description: Below which folder C(/sys) and C(/proc) are.
    type: path
    default: /
"""

EXAMPLES = r"""
- name: May they copy to each other?
  phoenix.hypervisor.nvidia_peer_info:
    gpus: [0, 1]
  delegate_to: pve
"""

RETURN = r"""
direct:
  description: Whether NCCL may try to.
  returned: success
  type: bool
reasons:
  description: Why, a sentence each; empty for one GPU.
  returned: success
  type: list
  elements: str
environment:
  description: The variables that a server needs for it.
  returned: success
  type: dict
  sample: {NCCL_P2P_DISABLE: "1", VLLM_SKIP_P2P_CHECK: "0"}
gpus:
  description: The node's GPUs.
  returned: success
  type: list
  elements: dict
  sample:
    - {number: 0, address: "0000:01:00.0", model: NVIDIA GeForce RTX 5090, group: DMA-FQ, bridges: ["0000:00:01.1"]}
"""

import contextlib
import glob
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import nvidia_peer
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_peer import Place


def read(path: str) -> str:
    """Return a file's text, C("") when it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def look(root: str) -> tuple[dict, dict, dict]:
    """Return the node's GPUs by number, where they are, and what the bridges above them redirect."""
    gpus, places, acs = {}, {}, {}
    for path in sorted(glob.glob(f"{root}/proc/driver/nvidia/gpus/*/information")):
        gpu = nvidia_peer.gpu_of(read(path))
        if gpu is None:
            continue
        device = f"{root}/sys/bus/pci/devices/{gpu.address}"
        real = os.path.realpath(device)
        above = nvidia_peer.bridges(real)
        gpus[gpu.number] = gpu
        places[gpu.number] = Place(read(f"{device}/iommu_group/type").strip(), above)
        for bridge in above:
            config = b""
            with contextlib.suppress(OSError), open(f"{root}/sys/bus/pci/devices/{bridge}/config", "rb") as file:
                config = file.read(4096)
            acs[bridge] = nvidia_peer.redirects(config)
    return gpus, places, acs


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "gpus": {"type": "list", "elements": "int", "default": []},
            "setting": {"type": "str", "choices": ["auto", "on", "off"], "default": "auto"},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    root = module.params["root"].rstrip("/")
    wanted = module.params["gpus"]
    gpus, places, acs = look(root)
    nvlink = False
    program = module.get_bin_path("nvidia-smi")
    if len(set(wanted)) > 1 and not root and program:
        said = [
            module.run_command([program, *words])[1]
            for words in (["topo", "-m"], ["--query-gpu=index,pci.bus_id", "--format=csv,noheader"])
        ]
        nvlink = nvidia_peer.linked(*said, [gpus[number].address for number in set(wanted) if number in gpus])
    verdict = nvidia_peer.judge(
        wanted, gpus, places, acs, nvlink, read(f"{root}/proc/cmdline"), module.params["setting"]
    )
    module.exit_json(
        changed=False,
        direct=verdict.direct,
        reasons=list(verdict.reasons),
        environment=verdict.environment,
        gpus=[
            {**gpu._asdict(), "group": places[number].group, "bridges": list(places[number].bridges)}
            for number, gpu in sorted(gpus.items())
        ],
    )


if __name__ == "__main__":
    main()
