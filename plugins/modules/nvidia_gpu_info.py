#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_gpu_info
short_description: What is known of the NVIDIA GPUs of a container or a host
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Asks NVIDIA's management library (NVML) for GPUs, driver, processes and what the GPUs can do with each other's
    memory, and looks which CUDA toolkit and which NCCL there are.
  - Where there is no GPU, no driver or no package, RV(available) is false and RV(reason) says what is missing and what
    to do. The module doesn't fail then.
  - NVML is asked by a Python that has its package, C(nvidia-ml-py). That is the one of O(python); else
    C(/opt/vllm/bin/python), the live release's, which has the package or vLLM's own copy of it; else the Python that
    this module runs on.
  - Needs no root. Asks for nothing that a GPU does, so it disturbs no server.
extends_documentation_fragment:
  - phoenix.hypervisor.look
options:
  python:
    description: The Python to ask NVML with, where the usual ones don't have its package.
    type: path
    default: ""
seealso:
  - module: phoenix.hypervisor.gpu_check
"""

EXAMPLES = r"""
- name: Look at the GPUs
  phoenix.hypervisor.nvidia_gpu_info:
  register: look

- name: Make sure that there is one
  ansible.builtin.assert:
    that: look.available
    fail_msg: "{{ look.reason }}"

- name: Say which pairs can't read each other's memory
  ansible.builtin.debug:
    msg: "{{ look.peer_to_peer | rejectattr('read', 'equalto', 'ok') }}"
"""

RETURN = r"""
available:
  description: Whether there is a GPU that can be used.
  returned: always
  type: bool
  sample: true
reason:
  description: Why there is none, as a sentence with what to do; empty when there is one.
  returned: always
  type: str
  sample: ""
driver_version:
  description: The driver's version, as its library says; empty when it doesn't.
  returned: always
  type: str
  sample: 580.95.05
kernel_driver_version:
  description: The version of the kernel's driver (C(/proc/driver/nvidia/version)); empty when none is loaded.
  returned: always
  type: str
  sample: 580.95.05
library_version:
  description: The version of the driver's library here, by its file's name; empty when there is none.
  returned: always
  type: str
  sample: 580.95.05
cuda_driver_version:
  description: The newest CUDA that the driver can do.
  returned: always
  type: str
  sample: "13.0"
gpus:
  description: One entry for each GPU.
  returned: always
  type: list
  elements: dict
  contains:
    index:
      description: Its number here. In a container this isn't the node's number.
      type: int
      sample: 0
    device:
      description: Its device node.
      type: str
      sample: /dev/nvidia0
    name:
      description: Its name.
      type: str
      sample: NVIDIA GeForce RTX 5060 Ti
    uuid:
      description: Its UUID.
      type: str
      sample: GPU-4f0e4bd0-0c69-5ef2-8b2b-1ec4b37bfb6d
    pci_address:
      description: Where it is on the PCI bus.
      type: str
      sample: "00000000:01:00.0"
    architecture:
      description: The name of its generation, empty for one that isn't known.
      type: str
      sample: Blackwell
    compute_capability:
      description: Its compute capability.
      type: str
      sample: "12.0"
    memory_total_mib:
      description: Its memory. Like the two that follow, null where the driver doesn't say.
      type: int
      sample: 16311
    memory_used_mib:
      description: What of it is in use, by whomever.
      type: int
      sample: 14820
    memory_free_mib:
      description: What of it is free.
      type: int
      sample: 1491
    mig:
      description: Whether it is divided (Multi-Instance GPU).
      type: bool
      sample: false
    mig_devices:
      description: Its parts, with C(index), C(name), C(uuid), C(memory_total_mib) and C(memory_used_mib).
      type: list
      elements: dict
      sample: []
    processes:
      description:
        - The processes that have memory of it, with C(pid), C(name), C(memory_mib) (null where the driver doesn't say)
          and C(kind) (C(compute) or C(graphics)).
        - Inside a container those of others can't be seen; they show as memory in use.
      type: list
      elements: dict
      sample: [{pid: 812, name: VLLM::EngineCore, memory_mib: 14600, kind: compute}]
    problem:
      description: Why this one can't be used, empty when it can.
      type: str
      sample: ""
peer_to_peer:
  description:
    - One entry for each ordered pair of GPUs, C(from) and C(to).
    - C(read), C(write) and C(nvlink) are C(ok) or why not; C(path) is what lies between the two, as
      C(nvidia-smi topo) says it (C(PIX), C(PXB), C(PHB), C(NODE) or C(SYS)).
  returned: always
  type: list
  elements: dict
  sample: [{from: 0, to: 1, path: PHB, read: ok, write: ok, nvlink: not supported}]
toolkit_version:
  description: The CUDA toolkit's version (nvcc), empty when there is none.
  returned: always
  type: str
  sample: "13.0"
nccl_version:
  description: The version of the NCCL that is installed with the Python that was asked, empty when there is none.
  returned: always
  type: str
  sample: 2.28.9
python:
  description: The Python that NVML was asked with, empty when none has its package.
  returned: always
  type: str
  sample: /opt/vllm/bin/python
"""

import sys

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import gpu_info


def main() -> None:
    module = AnsibleModule(argument_spec=dict(python=dict(type="path", default="")), supports_check_mode=True)
    wanted = module.params["python"]
    seen = gpu_info.look(module.run_command, [wanted] if wanted else [gpu_info.RELEASE_PYTHON, sys.executable])
    module.exit_json(changed=False, **gpu_info.result(seen))


if __name__ == "__main__":
    main()
