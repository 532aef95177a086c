# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.filter.replicas import replicas
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args

GROUPS = {
    "all": ["a", "b", "c", "d"],
    "serves_x": ["a", "b"],
    "serves_y": ["b", "c"],
    "deserves_x": ["d"],
    "feature_serves_x": ["d"],
}


@pytest.mark.parametrize(
    ("host", "candidates", "found"),
    [("a", "abcd", "b"), ("b", "abcd", "ac"), ("c", "cba", "b"), ("d", "abcd", ""), ("a", "acd", ""), ("a", "", ""),
     ("nobody", "abcd", "")],
)  # fmt: skip
def test_who_serves_the_same(host, candidates, found):
    assert replicas(GROUPS, host, list(candidates)) == list(found)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, []),
        ({"ModelConfig": {"model": "Qwen/Qwen2.5"}}, ["Qwen/Qwen2.5"]),
        ({"ModelConfig": {"model": "Qwen/Qwen2.5", "served_model_name": "q"}}, ["q"]),
        ({"ServerConfig": {"served_model_name": ["q", "r"]}, "ModelConfig": {"model": "m"}}, ["q", "r"]),
        ({"ModelConfig": {"model": None}}, []),
        ({"ModelConfig": "nonsense"}, []),
    ],
)
def test_the_names_that_a_server_answers_under(config, names):
    assert engine_args.served_names(config) == names
