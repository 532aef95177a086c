# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which CUDA toolkit a stack needs, and why; whether the one that there is will do. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .nvidia_driver import NvidiaError, branch, numbers

# The first that knows sm_120.
LEAST = "12.8"
# FlashInfer compiles its kernels when a server starts, and since this release refuses sm_12x below that toolkit.
FLASHINFER, FLASHINFER_LEAST = "0.6.7", "12.9"
# Driver branch → the newest CUDA that it knows.
DRIVERS = {"525": "12.0", "530": "12.1", "535": "12.2", "545": "12.3", "550": "12.4", "555": "12.5", "560": "12.6",
           "565": "12.7", "570": "12.8", "575": "12.9", "580": "13.0", "590": "13.1", "595": "13.2",
           "610": "13.3"}  # fmt: skip


class Need(NamedTuple):
    """What a stack needs.

    Attributes:
        version: the least toolkit, C("") where none is needed.
        reasons: why, a sentence each.
    """

    version: str
    reasons: tuple[str, ...]


def need(candidates: Iterable[Mapping[str, Any]]) -> Need:
    """Return the toolkit that the candidates of a stack need, of which any may be the one that is installed.

    Args:
        candidates: what the lookup C(stack) returns.
    """
    candidates = list(candidates)
    versions, reasons = [], []
    for candidate in candidates:
        requires = candidate.get("requires") or {}
        if not candidate.get("cuda") or not (candidate.get("source") or candidate.get("flashinfer")):
            continue
        # Its libraries come before those that PyTorch brings (LD_LIBRARY_PATH), and may not be older than they are.
        asked = max(LEAST, requires.get("toolkit") or "", candidate["cuda"], key=numbers)
        versions.append(asked)
        if candidate.get("source"):
            reasons.append(f"vLLM {candidate['vllm']} is compiled in the container, which takes nvcc {asked} or newer.")
        if candidate.get("flashinfer"):
            asked, reason = _flashinfer(candidate, asked)
            versions.append(asked)
            reasons.append(reason)
    if not versions:
        gpu = any(candidate.get("cuda") for candidate in candidates)
        return Need("", ("Nothing is compiled: the kernels are in vLLM's and PyTorch's wheels.",) if gpu else ())
    return Need(max(versions, key=numbers), tuple(dict.fromkeys(reasons)))


def _flashinfer(candidate: Mapping[str, Any], asked: str) -> tuple[str, str]:
    release = candidate["flashinfer"]
    compiles = f"FlashInfer {release} compiles its kernels when a server starts (nvcc, ninja and a C++ compiler)"
    named = "FLASHINFER_CUDA_ARCH_LIST" in (candidate.get("environment") or {})
    blackwell = any(numbers(one)[:1] == (12,) for one in (candidate.get("requires") or {}).get("arch") or ())
    if not blackwell or named or numbers(release) < numbers(FLASHINFER):
        return asked, f"{compiles}, which takes nvcc {asked} or newer."
    asked = max(asked, FLASHINFER_LEAST, key=numbers)
    return asked, (
        f"{compiles}, and since {FLASHINFER} refuses to do so for sm_120 with an nvcc older than {FLASHINFER_LEAST}: "
        f"nvcc {asked} or newer is needed."
    )


def chosen(declared: str, needed: Need, stack: str, candidates: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return the toolkit to install: the declared one, else the one that is needed.

    Raises:
        NvidiaError: the declared one is older than what is needed, or vLLM can't be compiled with it.
    """
    if not declared:
        return needed.version
    problem = too_old(declared, needed, stack) or other_major(declared, candidates, stack)
    if problem:
        raise NvidiaError(
            f"nvidia_toolkit_version is {declared}: {problem} Leave it empty, and the one that the stack asks for is "
            "installed; or choose another stack."
        )
    return declared


def too_old(found: str, needed: Need, stack: str) -> str:
    """Return why a toolkit won't do, C("") where it will.

    Args:
        found: its version, C("") where there is none.
        needed: what is needed.
        stack: the stack's name.
    """
    if not needed.version or (found and numbers(found)[:2] >= numbers(needed.version)[:2]):
        return ""
    there = f"CUDA toolkit {found} is too old" if found else "there is no CUDA toolkit"
    return f"{there}; the stack {stack} needs {needed.version} or newer. {' '.join(needed.reasons)}"


def other_major(found: str, candidates: Iterable[Mapping[str, Any]], stack: str) -> str:
    """Return why vLLM can't be compiled with a toolkit, C("") where it can: CMake wants PyTorch's own major version."""
    for candidate in candidates:
        cuda = candidate.get("cuda")
        if candidate.get("source") and cuda and numbers(found)[:1] != numbers(cuda)[:1]:
            return (
                f"CUDA toolkit {found} is of another major version than PyTorch's CUDA {cuda}; the stack {stack} "
                f"compiles vLLM {candidate['vllm']}, which takes the same one."
            )
    return ""


def newer_than_driver(toolkit: str, driver: str) -> str:
    """Return what is to be said of a toolkit that makes code which a driver may not take, C("") where it does."""
    known = DRIVERS.get(branch(driver))
    if not known or not toolkit or numbers(toolkit)[:2] <= numbers(known):
        return ""
    return (
        f"CUDA toolkit {toolkit} is newer than the driver's CUDA ({driver} knows {known}): compiled kernels run within "
        "one major version, those that are left to the driver to compile (PTX) don't. Upgrade the node's driver when a "
        "server says that a PTX was compiled with an unsupported toolchain."
    )


def decide(
    candidates: Iterable[Mapping[str, Any]], stack: str, declared: str = "", source: str = "auto", driver: str = ""
) -> dict[str, Any]:
    """Return what is to be installed for a stack, and everything that is to be said of it.

    Args:
        candidates: what the lookup C(stack) returns, in the order in which they are tried.
        stack: its name, C("") where there is none.
        declared: the version that a person wants.
        source: where it comes from; C(none) for a container that is left alone.
        driver: the version of the driver.
    """
    candidates = list(candidates)
    needed = need(candidates)
    problem, version = "", ""
    try:
        version = chosen(declared, needed, stack, candidates)
    except NvidiaError as error:
        problem = str(error)
    note = newer_than_driver(version, driver)
    return {
        "version": "" if source == "none" else version,
        "needed": needed.version,
        "reasons": list(needed.reasons),
        "problem": problem,
        "notes": [note] if note else [],
        # Triton compiles a little C for every kernel, also where nothing else is compiled.
        "compilers": source != "none" and any(candidate.get("cuda") for candidate in candidates),
        # A stack that can do without: it is installed without what has to be compiled.
        "optional": any(not need([candidate]).version for candidate in candidates),
    }


def found_problem(said: str, decided: Mapping[str, Any], stack: str) -> str:
    """Return why a toolkit that was not installed here won't do, C("") where it will.

    Args:
        said: what C(nvcc --version) printed, C("") where there is none.
        decided: what L(decide) returned.
        stack: the stack's name.
    """
    match = re.search(r"release (\d+\.\d+)", said)
    found = match[1] if match else ""
    if not found and decided["optional"]:
        return ""
    problem = too_old(found, Need(decided["needed"], tuple(decided["reasons"])), stack)
    return f"{problem} nvidia_toolkit_source is none, so nothing is installed; auto would" if problem else ""
