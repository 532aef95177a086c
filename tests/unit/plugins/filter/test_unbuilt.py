# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.filter.unbuilt import unbuilt

LINEAGE = [900, 901, 921]
HOSTVARS = {
    "ctid_900": {"container_template": True},
    "ctid_901": {"container_snapshot": "gpu-snapshot"},
    "ctid_921": {},
}
ABSENT = {"exists": False, "template": False, "snapshots": []}
BARE = {"exists": True, "template": False, "snapshots": []}
TEMPLATE = {"exists": True, "template": True, "snapshots": []}
SNAPSHOT = {"exists": True, "template": False, "snapshots": ["gpu-snapshot"]}


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        pytest.param((ABSENT, ABSENT, ABSENT), ["ctid_900", "ctid_901", "ctid_921"], id="empty node"),
        pytest.param((TEMPLATE, ABSENT, ABSENT), ["ctid_901", "ctid_921"], id="base is there"),
        pytest.param((TEMPLATE, SNAPSHOT, ABSENT), ["ctid_921"], id="sources are complete"),
        pytest.param((ABSENT, SNAPSHOT, ABSENT), ["ctid_921"], id="only the direct source is needed"),
        pytest.param((TEMPLATE, BARE, ABSENT), ["ctid_901", "ctid_921"], id="a source without its snapshot"),
        pytest.param((ABSENT, BARE, ABSENT), ["ctid_901", "ctid_921"], id="a half-done clone doesn't need its source"),
        pytest.param((BARE, ABSENT, ABSENT), ["ctid_900", "ctid_901", "ctid_921"], id="a base that is no template yet"),
        pytest.param((ABSENT, ABSENT, BARE), ["ctid_921"], id="the container is there: no source is needed"),
    ],
)
def test_what_a_run_converges(states, expected):
    containers = [{"vmid": vmid, **state} for vmid, state in zip(LINEAGE, states)]
    assert unbuilt(LINEAGE, containers, HOSTVARS) == expected


def test_a_container_without_a_source_is_its_own_lineage():
    assert unbuilt([700], [{"vmid": 700, **ABSENT}], {"ctid_700": {}}) == ["ctid_700"]
