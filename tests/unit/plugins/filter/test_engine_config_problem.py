# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.filter.engine_config_problem import engine_config_problem

TABLE = {"vllm": "1.2.3", "flags": {"max-model-len": {"kind": "text"}, "port": {"kind": "text"}}}


def test_a_good_config_has_no_problem():
    config = {"ModelConfig": {"model": "/models/m", "max_model_len": 512}, "ServerConfig": {"port": 8000}}
    assert engine_config_problem(config, TABLE) == ""


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"ModelConfig": {"max_model_len": 512}}, "ModelConfig.model is missing"),
        ({"ModelConfig": {"model": "m", "max_modl_len": 512}}, "the nearest that it has is max_model_len"),
        ({"ModelConfig": {"model": "m"}, "ServerConfig": {"port": 80}}, "port is 80"),
        ({}, "ModelConfig.model is missing"),
    ],
)
def test_a_problem_is_one_sentence(config, words):
    assert words in engine_config_problem(config, TABLE)
