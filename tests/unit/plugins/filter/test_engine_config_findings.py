# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.phoenix.hypervisor.plugins.filter.engine_config_findings import engine_config_findings
from ansible_collections.phoenix.hypervisor.plugins.filter.gpu_neighbours import gpu_neighbours, gpu_shares_before

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


def config(share: float | None = None, order: int | None = None) -> dict:
    """What a host says of its part of a GPU and of its place in the order of the starts."""
    cache = {} if share is None else {"CacheConfig": {"gpu_memory_utilization": share}}
    startup = {} if order is None else {"startup": {"order": order}}
    return {
        "vllm_model_server_engine_config": {"ModelConfig": {"model": "m"}, **cache},
        "container_config": {"onboot": 1, **startup},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        # The node starts by number, then by CTID; without a number last.
        ("first", []),
        ("second", [0.45]),
        ("third", [0.75, 0.0]),
        # GPU 1 is its first one inside, GPU 2 the second.
        ("last", [0.2, 0.0]),
        ("by hand", []),
    ],
)
def test_what_those_before_it_take(name, shares):
    hostvars = {
        "second": host(1, [0], **config(0.3, order=2)),
        "first": host(2, [0], **config(0.45, order=1)),
        "third": host(3, [0, 1], **config(0.2, order=2)),
        "last": host(4, [2, 1], **config()),
        "by hand": host(5, [0]),
    }
    neighbours = gpu_neighbours(hostvars, name, list(hostvars))
    assert gpu_shares_before(neighbours, hostvars[name]["container_gpus"]) == shares
    # The other filter takes what this one says.
    assert engine_config_findings(GOOD, TABLE, {"ctid": 1, "neighbours": neighbours})
