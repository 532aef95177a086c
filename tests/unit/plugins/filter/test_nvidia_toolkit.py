# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.lookup.stack import load
from ansible_collections.phoenix.hypervisor.plugins.module_utils import nvidia_toolkit as toolkit
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_toolkit import Need

STACKS = Path(__file__).resolve().parents[4] / "roles/vllm_stack/files/stacks"


def candidate(**values) -> dict:
    requires = {"toolkit": values.pop("toolkit", ""), "arch": values.pop("arch", ["12.0"])}
    usual = {"cuda": "12.8", "vllm": "0.10.2", "source": {}, "flashinfer": "", "environment": {}}
    return {**usual, "requires": requires, **values}


@pytest.mark.parametrize(
    ("candidates", "version", "words"),
    [
        ([], "", ""),
        ([candidate(cuda="")], "", ""),
        ([candidate(cuda="", source={"x": 1})], "", ""),
        ([candidate()], "", "Nothing is compiled"),
        ([candidate(source={"x": 1}, toolkit="12.8")], "12.8", "is compiled in the container, which takes nvcc 12.8"),
        ([candidate(source={"x": 1}, toolkit="12.4")], "12.8", "nvcc 12.8 or newer"),
        ([candidate(source={"x": 1})], "12.8", "nvcc 12.8 or newer"),
        ([candidate(source={"x": 1}, toolkit="13.0")], "13.0", "nvcc 13.0 or newer"),
        # Not older than PyTorch's own CUDA, whatever a stack of one's own leaves out.
        ([candidate(source={"x": 1}, cuda="13.0")], "13.0", "nvcc 13.0 or newer"),
        ([candidate(flashinfer="0.3.1", toolkit="12.8", cuda="12.9")], "12.9", "takes nvcc 12.9"),
        ([candidate(flashinfer="0.3.1", toolkit="12.8")], "12.8", "FlashInfer 0.3.1 compiles its kernels"),
        ([candidate(flashinfer="0.6.6", toolkit="12.8")], "12.8", "compiles its kernels"),
        ([candidate(flashinfer="0.6.7", toolkit="12.8")], "12.9", "since 0.6.7 refuses to do so for sm_120"),
        ([candidate(flashinfer="0.7.0.post1", toolkit="12.8")], "12.9", "older than 12.9"),
        ([candidate(flashinfer="0.7.0.post1", toolkit="13.0")], "13.0", "nvcc 13.0 or newer is needed"),
        ([candidate(flashinfer="0.7.0", toolkit="12.8", arch=["9.0"])], "12.8", "takes nvcc 12.8"),
        ([candidate(flashinfer="0.7.0", toolkit="12.8", arch=["12.1"])], "12.9", "sm_120"),
        (
            [candidate(flashinfer="0.7.0", toolkit="12.8", environment={"FLASHINFER_CUDA_ARCH_LIST": "12.0a"})], "12.8",
            "takes nvcc 12.8",
        ),
        ([candidate(flashinfer="0.7.0", toolkit="12.8"), candidate()], "12.9", "sm_120"),
        ([candidate(), candidate(source={"x": 1}, toolkit="12.8")], "12.8", "is compiled in the container"),
    ],
)  # fmt: skip
def test_what_a_stack_needs_and_why(candidates, version, words):
    needed = toolkit.need(candidates)
    assert needed.version == version
    assert words in " ".join(needed.reasons)
    assert bool(needed.reasons) == bool(words)


@pytest.mark.parametrize(
    ("name", "version"),
    [("cpu", ""), ("vllm-0.32.0-cu130", "13.0"), ("vllm-0.10.2-cu128", "12.8"), ("vllm-0.10.2-cu128-source", "12.8")],
)
def test_the_collections_own_stacks(name, version):
    candidates = load(name, [str(STACKS)], {})["candidates"]
    decided = toolkit.decide(candidates, name)
    assert decided["version"] == decided["needed"] == version
    assert decided["problem"] == ""
    assert decided["compilers"] == (name != "cpu")


NEED = Need("12.9", ("Because.",))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("", "there is no CUDA toolkit; the stack s needs 12.9 or newer. Because."),
        ("12.4", "CUDA toolkit 12.4 is too old"), ("12.8", "too old"), ("11.99", "too old"),
        ("12.9", ""), ("12.10", ""), ("13.0", ""), ("12.9.1", ""),
    ],
)  # fmt: skip
def test_a_toolkit_that_is_too_old(found, words):
    problem = toolkit.too_old(found, NEED, "s")
    assert (words in problem) if words else problem == ""


def test_nothing_is_too_old_where_nothing_is_needed():
    assert toolkit.too_old("", Need("", ()), "s") == ""


@pytest.mark.parametrize(
    ("declared", "version", "words"),
    [("", "12.9", ""), ("13.0", "13.0", ""), ("12.9", "12.9", ""), ("12.8", "", "nvidia_toolkit_version is 12.8: CU")],
)
def test_a_persons_choice(declared, version, words):
    decided = toolkit.decide([candidate(flashinfer="0.7.0", toolkit="12.8")], "s", declared)
    assert decided["version"] == version
    assert (words in decided["problem"]) if words else decided["problem"] == ""


@pytest.mark.parametrize(
    ("declared", "cuda", "words"),
    [
        ("13.0", "12.8", "CUDA toolkit 13.0 is of another major version than PyTorch's CUDA 12.8"),
        ("12.9", "12.8", ""), ("13.1", "13.0", ""), ("13.0", "", ""),
    ],
)  # fmt: skip
def test_what_is_compiled_takes_pytorchs_major_version(declared, cuda, words):
    problem = toolkit.decide([candidate(source={"x": 1}, cuda=cuda)], "s", declared)["problem"]
    assert (words in problem and "Leave it empty" in problem) if words else problem == ""


def test_a_toolkit_can_be_had_without_a_stack():
    assert toolkit.decide([], "", "13.0")["version"] == "13.0"
    assert toolkit.decide([], "")["version"] == ""


def test_none_installs_nothing():
    decided = toolkit.decide([candidate(source={"x": 1})], "s", source="none")
    assert (decided["version"], decided["compilers"], decided["needed"]) == ("", False, "12.8")


@pytest.mark.parametrize(
    ("found", "candidates", "words"),
    [
        ("12.8", [candidate(source={"x": 1})], ""),
        ("", [candidate(source={"x": 1})], "there is no CUDA toolkit"),
        ("12.4", [candidate(source={"x": 1})], "CUDA toolkit 12.4 is too old"),
        ("", [candidate(flashinfer="0.3.1"), candidate()], ""),  # it can be installed without FlashInfer
        ("12.4", [candidate(flashinfer="0.3.1"), candidate()], "CUDA toolkit 12.4 is too old"),
    ],
)
def test_a_toolkit_that_somebody_else_has_installed(found, candidates, words):
    said = f"Cuda compilation tools, release {found}, V{found}.131" if found else ""
    problem = toolkit.found_problem(said, toolkit.decide(candidates, "s", source="none"), "s")
    assert (words in problem) if words else problem == ""
    assert not words or "nvidia_toolkit_source is none" in problem


@pytest.mark.parametrize(
    ("version", "driver", "told"),
    [("12.8", "570.86.10", False), ("12.9", "570.86.10", True), ("13.0", "580.95.05", False), ("13.1", "580.1.2", True),
     ("13.1", "590.48.01", False), ("13.3", "595.71.05", True), ("13.3", "610.43.02", False),
     ("13.0", "575.64.03", True), ("14.0", "999.1.1", False), ("", "570.1.1", False), ("12.8", "", False)],
)  # fmt: skip
def test_a_toolkit_that_is_newer_than_the_driver(version, driver, told):
    assert bool(toolkit.newer_than_driver(version, driver)) == told
