# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of GPUs: which are done, what their figures mean, and the table of them. Values in, values out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
# What a worker does for one GPU, in this order.
SINGLE = ("memory", "matrix", "fp8")
# Of memory that nobody else uses this much stays free, for CUDA itself; beside a server more, which asks for some now
# and then and would end when it gets none.
RESERVE_MIB, RESERVE_BESIDE_MIB = 512, 2048
# Less than this is no test of memory, and not enough for the others.
LEAST_MIB = 1024
# A driver takes some of every GPU; more than that is somebody's.
IDLE_MIB = 1024
# FP8 came with Ada.
FP8_SINCE = (8, 9)
# bfloat16 has eight bits of mantissa, and so have the results of both products.
LARGEST_ERROR = 0.01
# What PyTorch and NCCL keep for themselves until the process ends.
GIVEN_BACK_MIB = 256
NCCL_HINT = (
    "Where two GPUs hang or give wrong sums, it is mostly PCIe's access control (ACS) or the IOMMU between them: "
    "switch them off in the node's firmware or on its kernel's command line"
)


@dataclass(frozen=True)
class Limits:
    """What is asked for.

    :ivar cuda: the oldest CUDA
    :ivar nccl: the oldest NCCL
    :ivar memory_fraction: how much of the free memory is taken
    :ivar gpus: how many GPUs there should be, 0 for as many as there are
    """

    cuda: str = "12.8"
    nccl: str = "2.26.5"
    memory_fraction: float = 0.9
    gpus: int = 0


def numbers(version: str) -> tuple[int, ...]:
    """A version's numbers, to compare: 2.28.9 → (2, 28, 9)."""
    return tuple(int(word) for word in re.findall(r"\d+", version.partition("+")[0]))


def older(version: str, wanted: str) -> bool:
    """Whether a version is older than another one; 13 is as new as 13.0."""
    one, other = numbers(version), numbers(wanted)
    length = max(len(one), len(other))
    return one + (0,) * (length - len(one)) < other + (0,) * (length - len(other))


# --- what is to be done -------------------------------------------------------------------------------------------


def is_busy(gpu: Mapping[str, Any]) -> bool:
    """Whether somebody works on a GPU. Inside a container others show only by their memory."""
    return bool(gpu["processes"]) or (gpu["memory_used_mib"] or 0) > IDLE_MIB


def occupants(gpu: Mapping[str, Any]) -> str:
    """Who works on a GPU, for the middle of a sentence."""
    names = [
        f"{process['name'].rpartition('/')[2] or 'a process'} (pid {process['pid']}"
        + (f", {process['memory_mib']} MiB)" if process["memory_mib"] else ")")
        for process in gpu["processes"]
    ]
    return ", ".join(names) or f"somebody outside ({gpu['memory_used_mib']} MiB)"


def notes(gpus: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the checks will not do because somebody works on a GPU, a sentence each."""
    return [
        f"GPU {gpu['index']} is used by {occupants(gpu)}: it is left alone. Memory is tested only as far as it is "
        f"free, less {RESERVE_BESIDE_MIB} MiB, and figures of speed are those beside it."
        for gpu in gpus
        if is_busy(gpu)
    ]


def devices(gpus: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What CUDA runs on: the GPUs, and in the place of a divided one (MIG) its parts, each with its name in C(visible).

    :param gpus: as the module nvidia_gpu_info returns them
    """
    divided = any(gpu["mig"] for gpu in gpus)
    found = []
    for gpu in gpus:
        if not gpu["mig"]:
            # Beside parts, CUDA doesn't count as NVML does.
            found.append({**gpu, "visible": gpu.get("uuid", "") if divided else ""})
        for part in gpu["mig_devices"] if gpu["mig"] else ():
            total, used = part["memory_total_mib"], part["memory_used_mib"]
            free = None if total is None or used is None else total - used
            found.append(
                {**gpu, "visible": part["uuid"], "part": part["index"], "processes": [], "memory_total_mib": total,
                 "memory_used_mib": used, "memory_free_mib": free}
            )  # fmt: skip
    return found


def wishes(gpus: Sequence[Mapping[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    """What the worker of each GPU, and of each part of one, is asked for.

    :param gpus: from L(devices), or as the module nvidia_gpu_info returns them
    """
    return [
        {
            "gpu": 0 if gpu.get("visible") else place,
            "visible": gpu.get("visible", ""),
            "checks": [] if (gpu["memory_free_mib"] or LEAST_MIB) < LEAST_MIB else [
                name for name in SINGLE if name != "fp8" or numbers(gpu["compute_capability"]) >= FP8_SINCE
            ],
            "memory_fraction": limits.memory_fraction,
            "memory_reserve": RESERVE_BESIDE_MIB if is_busy(gpu) else RESERVE_MIB,
        }
        for place, gpu in enumerate(gpus)
    ]  # fmt: skip


def together(gpus: Sequence[Mapping[str, Any]], store: str, seconds: float) -> list[dict[str, Any]]:
    """What the workers are asked for that work together; none where GPUs can't.

    :param store: a file that they find each other by
    """
    if any(gpu["mig"] for gpu in gpus) or any((gpu["memory_free_mib"] or LEAST_MIB) < LEAST_MIB for gpu in gpus):
        return []
    return [
        {"gpu": place, "checks": ["all_reduce"], "rank": place, "world": len(gpus), "store": store, "seconds": seconds}
        for place in range(len(gpus))
    ]


# --- what came of it ----------------------------------------------------------------------------------------------


def _check(name: str, result: str, message: str, gpu: int | None = None, figure: str = "", **more: Any) -> dict:
    found = {"check": name, "result": result, "figure": figure, "message": message, **more}
    return found if gpu is None else {**found, "gpu": gpu}


def _trouble(found: Mapping[str, Any], what: str) -> str:
    """Why a check has no figures, as a sentence; C("") when it has some."""
    tail = f" Its last words: {' | '.join(found['lines'][-2:])}" if found.get("lines") else ""
    if "hung" in found:
        stuck = "" if found.get("gone", True) else " It can't be ended: it hangs in the kernel, so restart the node."
        return f"{what} did not end within {found['hung']:.0f} s and was ended.{stuck}{tail}"
    if "died" in found:
        signal = f"signal {-found['died']}" if found["died"] < 0 else f"exit code {found['died']}"
        return f"{what} ended with {signal}.{tail}"
    if "ended" in found:
        return f"{what} was ended, because another GPU's did not end well."
    if "error" in found:
        return f"{what} failed: {found['error'].rstrip('.')}."
    return ""


def judge_driver(info: Mapping[str, Any], limits: Limits) -> list[dict]:
    """Driver, toolkit, and how many GPUs there are.

    :param info: as the module nvidia_gpu_info returns it
    """
    kernel, library = info["kernel_driver_version"], info["driver_version"]
    figure = f"{library}, CUDA {info['cuda_driver_version']}"
    if kernel and library and kernel != library:
        message = f"The kernel's driver is {kernel}, its library here is {library}: run site.yml, which aligns them."
        found = [_check("driver", FAILED, message, figure=figure)]
    elif older(info["cuda_driver_version"] or "0", limits.cuda):
        message = f"The driver {library} can do CUDA {info['cuda_driver_version'] or '?'}, and {limits.cuda} is needed."
        found = [_check("driver", FAILED, f"{message} Install a newer driver on the node.", figure=figure)]
    else:
        found = [_check("driver", PASSED, "", figure=figure)]
    seen = len(info["gpus"])
    what = ", ".join(f"{gpu['name']} ({gpu['architecture'] or '?'}, sm_{gpu['compute_capability'].replace('.', '')})"
                     for gpu in info["gpus"])  # fmt: skip
    problems = [gpu["problem"] for gpu in info["gpus"] if gpu["problem"]]
    problems += [
        f"GPU {gpu['index']} is divided (MIG), and no part of it is here: make parts on the node (nvidia-smi mig "
        "-cgi … -C) and run site.yml for the container, or switch MIG off."
        for gpu in info["gpus"]
        if gpu["mig"] and not gpu["mig_devices"]
    ]
    if limits.gpus and seen != limits.gpus:
        problems.append(
            f"{limits.gpus} {'is' if limits.gpus == 1 else 'are'} assigned (gpu_assignment), and {seen} "
            f"{'is' if seen == 1 else 'are'} here: restart the container, or run site.yml for it."
        )
    found.append(_check("gpus", FAILED if problems else PASSED, " ".join(problems), figure=what))
    toolkit = info["toolkit_version"]
    if not toolkit:
        found.append(_check("toolkit", SKIPPED, "There is no CUDA toolkit here (nvcc); only what is compiled at run "
                                                "time needs one."))  # fmt: skip
    elif older(toolkit, limits.cuda):
        found.append(_check("toolkit", FAILED, f"The CUDA toolkit is {toolkit}, and {limits.cuda} is needed.",
                            figure=toolkit))  # fmt: skip
    else:
        found.append(_check("toolkit", PASSED, "", figure=toolkit))
    return found


def judge_gpu(gpu: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], limits: Limits) -> list[dict]:
    """What the worker of one GPU, or of a part of one, found.

    :param gpu: from L(devices), or as the module nvidia_gpu_info returns it
    """
    part = {"part": gpu["part"]} if "part" in gpu else {}
    return [{**check, **part} for check in _judge_gpu(gpu, found, limits)]


def _judge_gpu(gpu: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], limits: Limits) -> list[dict]:
    number, torch = gpu["index"], found.get("torch_", {})
    checks = [_judge_torch(number, torch, limits)]
    if checks[0]["result"] == FAILED:
        return [*checks, *(_check(name, SKIPPED, "Not tried, because the check cuda failed.", number)
                           for name in SINGLE)]  # fmt: skip
    if (gpu["memory_free_mib"] or LEAST_MIB) < LEAST_MIB:
        why = f"Only {gpu['memory_free_mib']} MiB are free: used by {occupants(gpu)}, which is left alone."
        return [*checks, *(_check(name, SKIPPED, why, number) for name in SINGLE)]
    checks.append(_judge_memory(gpu, found.get("memory", {})))
    checks.append(_judge_product("matrix", number, found.get("matrix", {}), "The product of matrices"))
    if numbers(gpu["compute_capability"]) < FP8_SINCE:
        why = f"Compute capability {gpu['compute_capability']} has no FP8 arithmetic; 8.9 and newer have."
        checks.append(_check("fp8", SKIPPED, why, number))
    else:
        checks.append(_judge_product("fp8", number, found.get("fp8", {}), "FP8 arithmetic"))
    return checks


def _judge_torch(number: int, torch: Mapping[str, Any], limits: Limits) -> dict:
    figure = f"PyTorch {torch['torch']}, CUDA {torch['cuda'] or 'none'}" if "torch" in torch else ""
    why = _trouble(torch, "PyTorch's start") or ("" if torch else "The worker said nothing.")
    if not why and older(torch["cuda"] or "0", limits.cuda):
        why = f"PyTorch {torch['torch']} is built for CUDA {torch['cuda'] or 'none'}, and {limits.cuda} is needed."
    if not why and torch["sum"] != 499500:
        why = f"The numbers from 0 to 999 add up to {torch['sum']:.0f} on it, not to 499500: it computes wrongly."
    return _check("cuda", FAILED if why else PASSED, why, number, figure)


def _judge_memory(gpu: Mapping[str, Any], found: Mapping[str, Any]) -> dict:
    number = gpu["index"]
    why = _trouble(found, "The test of memory") or ("" if found else "The worker said nothing.")
    if why:
        return _check("memory", FAILED, why, number)
    figure = f"{found['taken_mib'] / 1024:.1f} of {found['total_mib'] / 1024:.1f} GiB"
    if not found["taken_mib"]:
        return _check("memory", SKIPPED, f"Only {found['free_mib']} MiB are free.", number, figure)
    if found["wrong_blocks"]:
        why = f"{found['wrong_blocks']} blocks of 256 MiB had something else in them than what was written: the " \
              "memory is damaged, or the GPU is driven too fast."  # fmt: skip
    lost = found["free_mib"] - found["free_after_mib"]
    if not why and lost > GIVEN_BACK_MIB and not is_busy(gpu):
        why = f"{lost} MiB were not given back."
    return _check("memory", FAILED if why else PASSED, why, number, figure, figures=dict(found))


def _judge_product(name: str, number: int, found: Mapping[str, Any], what: str) -> dict:
    why = _trouble(found, what) or ("" if found else "The worker said nothing.")
    if why:
        return _check(name, FAILED, why, number)
    figure = f"{found['tflops']:.0f} TFLOP/s"
    # A comparison with what is no number is never true.
    if not found["error_relative"] <= LARGEST_ERROR:
        why = f"{what} differs from its reference by {found['error_relative']:.2g}, and {LARGEST_ERROR} is the most."
    if found.get("wrong_codes"):
        why = f"{found['wrong_codes']} of the 256 numbers of FP8 (E4M3) are converted wrongly. {why}".rstrip()
    return _check(name, FAILED if why else PASSED, why, number, figure, figures=dict(found))


def judge_together(
    info: Mapping[str, Any],
    found: Sequence[Mapping[str, Mapping[str, Any]]],
    without_p2p: Sequence[Mapping[str, Mapping[str, Any]]],
    version: str,
    limits: Limits,
) -> list[dict]:
    """NCCL, and adding up over all GPUs.

    :param info: as the module nvidia_gpu_info returns it
    :param found: what the workers that work together found, nothing when there were none
    :param without_p2p: the same of a second try with NCCL_P2P_DISABLE=1, after the first one failed
    :param version: of NCCL, as PyTorch says it
    """
    version = version or info["nccl_version"]
    if not version:
        checks = [_check("nccl", FAILED, "Nothing says which NCCL PyTorch has.")]
    elif older(version, limits.nccl):
        checks = [_check("nccl", FAILED, f"NCCL is {version}, and {limits.nccl} is needed: take a stack with a newer "
                                         "PyTorch.", figure=version)]  # fmt: skip
    else:
        checks = [_check("nccl", PASSED, "", figure=version)]
    return [*checks, _judge_sum(info, found, without_p2p)]


def sum_problem(found: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """Why adding up over all GPUs did not come out right, as a sentence; C("") when it did.

    :param found: what the workers that work together found
    """
    return _sum_problem(found) if found else ""


def _sum_problem(found: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    for one in found:
        result = one.get("all_reduce") or one.get("torch_") or {}
        why = _trouble(result, "Adding up over all GPUs") if "ended" not in result else ""
        if why:
            return why
    if any("all_reduce" not in one for one in found):
        return "Adding up over all GPUs did not begin."
    wrong = sorted({size for one in found for size in one["all_reduce"]["wrong_sizes"]})
    return f"The sums over all GPUs are wrong, for {', '.join(f'{size} bytes' for size in wrong)}." if wrong else ""


def _judge_sum(
    info: Mapping[str, Any],
    found: Sequence[Mapping[str, Mapping[str, Any]]],
    without_p2p: Sequence[Mapping[str, Mapping[str, Any]]],
) -> dict:
    if not found:
        if any(gpu["mig"] for gpu in info["gpus"]):
            return _check("all_reduce", SKIPPED, "NCCL doesn't work over the parts of a divided GPU (MIG).")
        return _check("all_reduce", SKIPPED, "A GPU has not enough free memory; what uses it is left alone.")
    why = _sum_problem(found)
    if not why:
        speeds = found[0]["all_reduce"]["bus_gb_per_s"]
        largest = speeds[max(speeds, key=int)] if speeds else 0.0
        figure = f"{len(found)} GPUs, {largest:.1f} GB/s" if len(found) > 1 else "1 GPU"
        message = "" if len(found) > 1 else "There is one GPU: NCCL works, and there is nothing to add up over."
        return _check("all_reduce", PASSED, message, figure=figure, figures=dict(found[0]["all_reduce"]))
    if without_p2p and not _sum_problem(without_p2p):
        why += (
            ' With NCCL_P2P_DISABLE=1 it works: set nvidia_peer_to_peer: "off" for this container, until the reason is '
            "gone."
        )
    elif without_p2p:
        why += " It doesn't work with NCCL_P2P_DISABLE=1 either."
    blocked = sorted({one["read"] for one in info["peer_to_peer"] if one["read"] not in ("ok", "unknown")})
    if blocked:
        why += f" The driver says of the GPUs' access to each other: {', '.join(blocked)}."
    return _check("all_reduce", FAILED, f"{why} {NCCL_HINT}.")


def unavailable(info: Mapping[str, Any]) -> list[dict]:
    """The checks of a machine without a GPU that can be used."""
    return [_check("gpus", FAILED, info["reason"])]


def without_python(python: str) -> list[dict]:
    """The check of a machine with GPUs and without PyTorch."""
    return [
        _check("cuda", FAILED, f"There is no {python}: the container needs the feature vllm (role vllm_stack) before "
                               "its GPUs can be checked; or name a Python with PyTorch (gpu_check_python).")
    ]  # fmt: skip


def passed(checks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether none failed."""
    return all(check["result"] != FAILED for check in checks)


def failures(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each that failed."""
    return [f"{_name(check)}: {check['message']}" for check in checks if check["result"] == FAILED]


def _name(check: Mapping[str, Any]) -> str:
    part = f", part {check['part']}" if "part" in check else ""
    return f"{check['check']} (GPU {check['gpu']}{part})" if "gpu" in check else check["check"]


def table(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The checks as lines for people."""
    rows = [("check", "result", "figure", "")]
    rows += [(_name(check), check["result"], check["figure"], check["message"]) for check in checks]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip() for row in rows
    ]
