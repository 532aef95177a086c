# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import ansible_programs
import pytest
import yaml
from ansible_collections.phoenix.hypervisor.plugins.filter.wave_sizes import wave_order, wave_sizes
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[4]
GROUPS = {
    "wave_0": ["ctid_900"],
    "wave_1": ["ctid_901", "ctid_910"],
    "wave_2": ["ctid_920", "ctid_921"],
    "clones_of_900": ["ctid_901", "ctid_910"],
    "clones_of_901": ["ctid_920", "ctid_921"],
    "wave_x": ["ctid_900"],
    "all": ["ctid_900", "ctid_901", "ctid_910", "ctid_920", "ctid_921"],
}


@pytest.mark.parametrize(
    ("hosts", "sizes"),
    [
        ([], []),
        ([900, 901, 910, 920, 921], [1, 2, 2]),
        ([901, 910], [1, 1]),  # 900 is made for the first of them, if it has to be
        ([920, 921], [1, 1]),
        ([901, 920, 921], [1, 2]),
        ([900, 901, 921], [1, 1, 1]),
        ([920, 921, 901], [1, 1, 1]),  # the source comes later
        ([900, 920, 910], [1, 1, 1]),
        ([900, 5, 6], [1, 1, 1]),  # of no wave
    ],
)
def test_sizes(hosts: list[int], sizes: list[int]) -> None:
    assert wave_sizes([f"ctid_{host}" for host in hosts], GROUPS) == [*sizes, 1]


@pytest.mark.parametrize(
    ("serves", "sizes"),
    [
        ({"a": [910]}, [1, 2, 3]),
        ({"a": [920, 922]}, [1, 2, 2, 1]),
        ({"a": [920, 921, 922]}, [1, 2, 1, 1, 1]),
        ({"a": [920, 921], "b": [921, 922]}, [1, 2, 1, 1, 1]),
        ({"a": [901, 920]}, [1, 2, 3]),  # of two waves in any case
        ({"a": [921, 922], "b": [920]}, [1, 2, 2, 1]),
    ],
)
def test_of_those_that_serve_the_same_one_goes_on_answering(serves: dict, sizes: list[int]) -> None:
    groups = {**GROUPS, **{name: [*GROUPS[name], "ctid_922"] for name in ("wave_2", "clones_of_901")}}
    groups |= {f"serves_{name}": [f"ctid_{host}" for host in hosts] for name, hosts in serves.items()}
    assert wave_sizes([*GROUPS["all"], "ctid_922"], groups) == [*sizes, 1]


@given(st.lists(st.sampled_from(GROUPS["all"]), unique=True))
def test_a_batch_is_of_one_wave_and_makes_no_source_twice(hosts: list[str]) -> None:
    rest = list(hosts)
    for size in wave_sizes(hosts, GROUPS)[:-1]:
        batch, rest = rest[:size], rest[size:]
        assert len({wave for wave in ("wave_0", "wave_1", "wave_2") for host in batch if host in GROUPS[wave]}) == 1
        before = hosts[: hosts.index(batch[0])]
        for source, clones in (("ctid_900", GROUPS["clones_of_900"]), ("ctid_901", GROUPS["clones_of_901"])):
            makers = [host for host in batch if host in clones and source not in before]
            assert not makers or len(batch) == 1
    assert rest == []


def batches(tmp_path: Path, *arguments: str) -> list[str]:
    """The batches of site.yml's second play, with the example's inventory, on this ansible-core."""
    _refuse, play, _failed = yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
    task = {"ansible.builtin.debug": {"msg": "BATCH {{ ansible_play_batch | join(' ') }}"}, "run_once": True}
    kept = {key: play[key] for key in ("hosts", "gather_facts", "order", "serial", "vars")}
    playbook = tmp_path / "play.yml"
    playbook.write_text(json.dumps([{**kept, "tasks": [task]}]))
    source = ROOT / "inventories/example/lxc_configs.yml"
    done = subprocess.run(
        [*ansible_programs.command("ansible-playbook"), "-i", str(source), *arguments, str(playbook)],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"BATCH (.*)", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["900", "901 910", "920 921", "950", "951"]),
        (["-l", "lineage_921"], ["900", "901", "921"]),
        (["-l", "ctid_921"], ["921"]),
        (["-l", "pve,ctid_901,ctid_910,ctid_900"], ["900", "901 910"]),
        (["-e", "phoenix_target=lineage_901"], ["900", "901"]),
    ],
)
def test_the_batches_of_a_run(tmp_path: Path, arguments: list[str], expected: list[str]) -> None:
    assert batches(tmp_path, *arguments) == [
        " ".join(f"ctid_{number}" for number in batch.split()) for batch in expected
    ]


def test_the_order_of_the_waves():
    """AWX hands hosts on by their names; a source comes before its clones all the same."""
    hosts = ["ctid_1000", "ctid_900", "ctid_901", "ctid_920", "pve"]
    groups = {**GROUPS, "wave_0": ["ctid_920"], "wave_2": ["ctid_900"], "wave_10": ["ctid_1000"]}
    assert wave_order(hosts, groups) == ["ctid_920", "ctid_901", "ctid_900", "ctid_1000", "pve"]
    assert wave_order([], groups) == [] and wave_order(["b", "a"], {}) == ["b", "a"]
