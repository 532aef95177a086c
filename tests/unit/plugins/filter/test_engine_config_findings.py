# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.phoenix.hypervisor.plugins.filter.engine_config_findings import engine_config_findings
from ansible_collections.phoenix.hypervisor.plugins.filter.gpu_neighbours import gpu_neighbours

TABLE = {"vllm": "1.2.3", "flags": {"max-model-len": {"kind": "text"}, "port": {"kind": "text"}}}
GOOD = {"ModelConfig": {"model": "/models/m", "max_model_len": 512}, "ServerConfig": {"port": 8000}}


def test_a_good_config_has_no_findings():
    assert engine_config_findings(GOOD, TABLE) == {"problems": [], "warnings": []}
    assert engine_config_findings(GOOD, {}, {"gpus": [0], "mounts": ["/models"]}) == {"problems": [], "warnings": []}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"ModelConfig": {"max_model_len": 512}}, ["ModelConfig.model is missing"]),
        ({"ModelConfig": {"model": "m", "max_modl_len": 512}}, ["the nearest that it has is max_model_len"]),
        ({"ModelConfig": {"max_modl_len": 1}, "ServerConfig": {"port": 80}}, ["is missing", "nearest", "port is 80"]),
        ({}, ["ModelConfig.model is missing"]),
    ],
)
def test_each_problem_is_a_sentence(config, words):
    found = engine_config_findings(config, TABLE)
    assert len(found["problems"]) == len(words)
    assert all(word in problem for word, problem in zip(words, found["problems"]))


def test_the_place_is_looked_at_when_the_config_has_no_mistakes():
    place = {"gpus": [], "mounts": []}
    assert len(engine_config_findings(GOOD, TABLE, place)["problems"]) == 1
    assert len(engine_config_findings(GOOD, TABLE, place)["warnings"]) == 1
    assert engine_config_findings({}, TABLE, place)["warnings"] == []


def test_what_templates_make_of_none_and_numbers():
    place = {"ctid": "921", "gpus": "", "mounts": None, "gateway_port": "8000", "neighbours": ""}
    assert engine_config_findings(GOOD, TABLE, place) == {"problems": [], "warnings": []}


@pytest.mark.parametrize("place", [{"gpuz": []}, {"neighbours": [{"id": 1}]}, {"ctid": "x"}])
def test_a_place_that_is_none(place):
    with pytest.raises(AnsibleFilterError, match="the place can't be understood"):
        engine_config_findings(GOOD, TABLE, place)


def host(ctid: int, gpus: list[int], boot: int = 0, **more) -> dict:
    return {
        "phoenix_ctid": ctid, "container_gpus": gpus, "container_config": {"onboot": boot},
        "phoenix_application": "x.sh", "vllm_model_server_engine_config": {"ModelConfig": {"model": "m"}}, **more,
    }  # fmt: skip


def test_the_neighbours_on_its_gpus():
    hostvars = {
        "a": host(1, [0, 1], 1), "b": host(2, [1], 1), "c": host(3, [2], 1), "d": host(4, [0]),
        "template": host(5, [0], container_template=True), "no server": host(6, [0], phoenix_application=""),
        "no gpus": {"phoenix_ctid": 7},
    }  # fmt: skip
    found = gpu_neighbours(hostvars, "a", list(hostvars), ["a", "d"])
    assert [(other["ctid"], other["together"]) for other in found] == [
        (2, "both start with the node"),
        (4, "this run starts both"),
    ]
    assert [other["together"] for other in gpu_neighbours(hostvars, "d", list(hostvars), ["d"])] == [""]
    assert gpu_neighbours(hostvars, "no gpus", list(hostvars)) == []
    assert gpu_neighbours(hostvars, "template", list(hostvars)) == []
