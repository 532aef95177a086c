#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_check
short_description: Check that the NVIDIA GPUs of a container or a host do what a model server needs
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Runs, with the release's PyTorch, what a server on these GPUs relies on, and compares each result with a reference.
  - C(driver), C(gpus) and C(toolkit) - driver and library are of one version, CUDA is new enough, all GPUs that are
    assigned are there.
  - C(cuda) - PyTorch is built for a CUDA that is new enough and computes on the GPU.
  - C(memory) - most of the free memory can be taken, holds what is written to it, and is free again afterwards.
  - C(matrix) and C(fp8) - products of matrices, in bfloat16 and in FP8, agree with a computation in double precision;
    all numbers of FP8 (E4M3) are converted right. C(fp8) is left out below compute capability 8.9.
  - C(nccl) and C(all_reduce) - NCCL is new enough, and adds up right over all GPUs. When that hangs, fails or adds up
    wrong, it is tried again with C(NCCL_P2P_DISABLE=1), and the message says whether that helps.
  - Of a divided GPU (MIG) each part is checked.
  - A check that hangs is ended after its time limit, told, and the others go on.
  - What runs on a GPU is left alone. The test of memory takes only what is free then, and the message says so.
  - A check that fails is a result, not a failure of the module. So is a machine without a GPU.
attributes:
  check_mode:
    description: Runs no check. Says what it would do.
    support: full
  diff_mode:
    description: Changes nothing.
    support: N/A
  idempotence:
    description: Changes nothing; figures of speed differ from run to run.
    support: full
options:
  python:
    description: The Python with PyTorch and NVML's package.
    type: path
    default: /opt/vllm/bin/python
  gpus:
    description: How many GPUs there should be. 0 is as many as there are.
    type: int
    default: 0
  cuda:
    description: The oldest CUDA that will do, for driver, PyTorch and toolkit.
    type: str
    default: "12.8"
  nccl:
    description: The oldest NCCL that will do.
    type: str
    default: 2.26.5
  memory_fraction:
    description: How much of the free memory is taken.
    type: float
    default: 0.9
  timeout:
    description: How many seconds a check may take.
    type: int
    default: 120
  start_timeout:
    description: How many seconds the start of PyTorch may take, which reads some gigabytes from the disk.
    type: int
    default: 300
  environment:
    description:
      - Variables for the checks. They win over those that the model server's unit sets for NCCL (C(NCCL_P2P_DISABLE),
        for example) and CUDA's libraries, which the checks have, too.
    type: dict
    default: {}
seealso:
  - module: phoenix.hypervisor.nvidia_gpu_info
"""

EXAMPLES = r"""
- name: Check the GPUs
  phoenix.hypervisor.gpu_check:
    gpus: 2
  register: check

- name: Show what came of it
  ansible.builtin.debug:
    msg: "{{ check.table }}"
"""

RETURN = r"""
passed:
  description: Whether no check failed.
  returned: when the checks ran
  type: bool
  sample: true
failures:
  description: A sentence for each check that failed.
  returned: when the checks ran
  type: list
  elements: str
  sample: []
notes:
  description: What was not done because a server runs on a GPU, a sentence each.
  returned: always
  type: list
  elements: str
  sample: []
checks:
  description:
    - One entry for each check, with C(check), C(gpu) where it is about one, C(part) of a divided one, C(result)
      (C(passed), C(failed) or C(skipped)), C(figure) and C(message) for people, and C(figures) as measured.
  returned: when the checks ran
  type: list
  elements: dict
  sample: [{check: memory, gpu: 0, result: passed, figure: 13.9 of 15.9 GiB, message: ""}]
table:
  description: The same as lines of a table.
  returned: when the checks ran
  type: list
  elements: str
  sample: ["check           result  figure", "memory (GPU 0)  passed  13.9 of 15.9 GiB"]
info:
  description: What is known of the GPUs, as M(phoenix.hypervisor.nvidia_gpu_info) returns it.
  returned: always
  type: dict
  sample: {available: true, driver_version: 580.95.05}
seconds:
  description: How long the checks took.
  returned: when the checks ran
  type: float
  sample: 31.4
"""

import inspect
import os
import re
import sys
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    gpu_checks,
    gpu_info,
    gpu_runner,
    gpu_worker,
    server_switch,
)

# All that a process of the checks finds in its environment, beside what is declared.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
# NVML counts in this order, CUDA by itself in that of speed.
_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
# What the model server runs with; its choice of GPUs isn't taken over, since all that are assigned are checked.
UNIT = "/etc/systemd/system/vllm_model_server.service"
_SERVERS = re.compile(r"NCCL_\w+|LD_LIBRARY_PATH|CUDA_HOME|CUDA_DEVICE_ORDER")


def environment_of(declared: dict, around: dict, server: dict | None = None) -> dict:
    """The environment of the checks: as a service has it, with what is declared, and NCCL's and CUDA's variables.

    :param server: of the model server, where there is one
    """
    kept = {name: value for name, value in around.items() if name in _KEPT or name.startswith(("NCCL_", "CUDA_"))}
    servers = {name: value for name, value in (server or {}).items() if _SERVERS.fullmatch(name)}
    return {**_ORDER, **kept, **servers, **{str(name): str(value) for name, value in declared.items()}}


def servers_environment(path: str) -> dict:
    """The variables that the model server's unit sets, C({}) where there is no unit."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return server_switch.environment(file.read())
    except OSError:
        return {}


def environment_notes(declared: dict, server: dict) -> list[str]:
    """What of the model server's settings for NCCL the checks have, a sentence."""
    taken = [f"{name}={value}" for name, value in sorted(server.items())
             if name.startswith("NCCL_") and name not in declared]  # fmt: skip
    return [f"NCCL runs with {', '.join(taken)}, as the model server does."] if taken else []


def run_checks(info: dict, python: str, limits: gpu_checks.Limits, seconds: dict, environment: dict) -> list[dict]:
    """Run all checks of a machine that has GPUs. Gives what the module returns of each."""
    command = [python, "-I", "-c", inspect.getsource(gpu_worker)]
    gpus = [gpu for gpu in info["gpus"] if not gpu["problem"]]
    devices = gpu_checks.devices(gpus)
    found = gpu_runner.run_each(command, gpu_checks.wishes(devices, limits), seconds, environment)
    checks = gpu_checks.judge_driver(info, limits)
    for gpu, one in zip(devices, found):
        checks += gpu_checks.judge_gpu(gpu, one, limits)
    version = next((one["torch_"]["nccl"] for one in found if "nccl" in one.get("torch_", {})), "")
    if not all("sum" in one.get("torch_", {}) for one in found):
        # Without PyTorch there is nothing that could add up.
        return checks

    def add_up(**more: str) -> list[dict]:
        with tempfile.TemporaryDirectory(prefix="phoenix-gpu-") as folder:
            # What the processes wait for each other is less than what they are waited for, so that they say it.
            wishes = gpu_checks.together(gpus, os.path.join(folder, "store"), 2 * seconds[""])
            return gpu_runner.run(command, wishes, seconds, {**environment, **more})

    sums = add_up()
    # Copies that an IOMMU lets arrive wrong hang, or add up to something else.
    again = []
    if gpu_checks.sum_problem(sums) and environment.get("NCCL_P2P_DISABLE", "0") == "0":
        again = add_up(NCCL_P2P_DISABLE="1")
    return checks + gpu_checks.judge_together(info, sums, again, version, limits)


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            python=dict(type="path", default=gpu_info.RELEASE_PYTHON),
            gpus=dict(type="int", default=0),
            cuda=dict(type="str", default="12.8"),
            nccl=dict(type="str", default="2.26.5"),
            memory_fraction=dict(type="float", default=0.9),
            timeout=dict(type="int", default=120),
            start_timeout=dict(type="int", default=300),
            environment=dict(type="dict", default={}),
        ),
        supports_check_mode=True,
    )
    params = module.params
    if not 0 < params["memory_fraction"] <= 1:
        module.fail_json(msg=f"memory_fraction: {params['memory_fraction']} is no part of 1; write 0.9, for example")
    for name in ("timeout", "start_timeout"):
        if params[name] < 1:
            module.fail_json(msg=f"{name}: {params[name]} is no limit in seconds; write 1 or more")
    for name in ("cuda", "nccl"):
        if not gpu_checks.numbers(params[name]):
            module.fail_json(msg=f"{name}: {params[name]!r} is no version; write one such as 12.8")
    # Also where there is no release yet it can be told whether there is a GPU.
    info = gpu_info.result(gpu_info.look(module.run_command, [params["python"], sys.executable]))
    server = servers_environment(UNIT)
    notes = [*gpu_checks.notes(info["gpus"]), *environment_notes(params["environment"], server)]
    if module.check_mode:
        said = "The checks are not run in check mode"
        module.exit_json(changed=False, skipped=True, msg=said, info=info, notes=notes)
    began = time.monotonic()
    limits = gpu_checks.Limits(params["cuda"], params["nccl"], params["memory_fraction"], params["gpus"])
    if not info["available"]:
        checks = gpu_checks.unavailable(info)
    elif not os.access(params["python"], os.X_OK):
        checks = gpu_checks.judge_driver(info, limits) + gpu_checks.without_python(params["python"])
    else:
        seconds = {"": params["timeout"], gpu_runner.FIRST: params["start_timeout"]}
        environment = environment_of(params["environment"], dict(os.environ), server)
        checks = run_checks(info, params["python"], limits, seconds, environment)
    module.exit_json(
        changed=False,
        passed=gpu_checks.passed(checks),
        failures=gpu_checks.failures(checks),
        notes=notes,
        checks=checks,
        table=gpu_checks.table(checks),
        info=info,
        seconds=round(time.monotonic() - began, 1),
    )


if __name__ == "__main__":
    main()
