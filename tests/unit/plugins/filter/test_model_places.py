# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.phoenix.hypervisor.plugins.filter.wanted_models import wanted_models
from ansible_collections.phoenix.hypervisor.plugins.module_utils import model_places

LLAMA = "meta-llama/Llama-3.2-3B-Instruct"
TANK = {"mp": "/models", "source": "/tank/models"}
VOLUME = {"mp": "/data", "storage": "local-zfs", "size_gb": 50}


def config(model: object = f"/models/{LLAMA}", **more) -> dict:
    return {"ModelConfig": {"model": model, **more}}


def of(engine_config: dict, *mounts: dict):
    return model_places.of_container(921, engine_config, mounts)


def entry(folder: str = "/tank/models", name: str = LLAMA, revision: str = "main", repository: str = "") -> dict:
    return {"folder": folder, "name": name, "repository": repository or name, "revision": revision}


@pytest.mark.parametrize(
    ("model", "mounts", "wanted"),
    [
        (f"/models/{LLAMA}", [TANK], entry()),
        (f"/models/{LLAMA}/", [TANK, VOLUME], entry()),
        (f"/models//{LLAMA}", [{"mp": "/models/", "source": "/tank/models"}], entry()),
        (f"/models/hub/{LLAMA}", [TANK], entry(name=f"hub/{LLAMA}", repository=LLAMA)),
        (f"/models/{LLAMA}", [TANK, {"mp": "/models/meta-llama", "source": "/x"}], None),
        (f"/models/{LLAMA}", [{"mp": "/", "source": "/x"}, TANK], entry()),
        (f"/models/{LLAMA}", [{"mp": "/mod", "source": "/x"}, TANK], entry()),
    ],
)
def test_a_path_below_a_mount(model, mounts, wanted):
    found = of(config(model), *mounts)
    assert found.fetch == ([wanted] if wanted else [])
    assert bool(found.notes) == (not wanted) and found.problems == []


def test_the_revision_is_the_engine_config_s():
    assert of(config(revision="v1.0"), TANK).fetch == [entry(revision="v1.0")]
    assert of({"model": f"/models/{LLAMA}", "revision": None}, TANK).fetch == [entry()]


def test_tokenizer_and_draft_model():
    more = {"tokenizer": "/models/org/tok", "tokenizer_revision": "v2"}
    draft = {"speculative_config": {"model": "/models/org/draft", "num_speculative_tokens": 3}}
    found = of({"ModelConfig": {"model": f"/models/{LLAMA}", **more}, "Other": draft}, TANK)
    assert found.fetch == [entry(), entry(name="org/tok", revision="v2"), entry(name="org/draft")]
    same = of(config(tokenizer=f"/models/{LLAMA}"), TANK)
    assert same.fetch == [entry()]


@pytest.mark.parametrize(
    ("model", "mounts", "says"),
    [
        ("/models/tiny-llama", [TANK], "phoenix_models"),
        ("/models", [TANK], "phoenix_models"),
        ("/models/a/b c", [TANK], "phoenix_models"),
        ("/models/.a/b", [TANK], "phoenix_models"),
        ("/models/../etc/x/y", [TANK], "on the container's own disk"),
        (f"/models/{LLAMA}/x.gguf", [TANK], "include: [x.gguf]"),
        (f"/opt/{LLAMA}", [TANK], "on the container's own disk"),
        (f"/opt/{LLAMA}", [], '"container_path": "/opt"'),
        (f"/data/{LLAMA}", [TANK, VOLUME], "mount_points) in place of the volume"),
        (LLAMA, [], f"write /models/{LLAMA} as model; add"),
        (LLAMA, [VOLUME], '"host_path": "/tank/models"'),
        (LLAMA, [TANK, {"mp": "/b", "source": "/b"}], "several are: /b, /models"),
        ("s3://bucket/model", [TANK], "neither a path nor a hub's name"),
        ("gpt2", [TANK], "neither a path nor a hub's name"),
    ],
)
def test_what_can_t_be_fetched_ahead_is_said(model, mounts, says):
    found = of(config(model), *mounts)
    assert found.fetch == [] and len(found.notes) == 1
    assert found.notes[0].startswith("CTID 921: model is ") and says in found.notes[0]


def test_a_hub_s_name_with_one_folder():
    found = of(config(LLAMA), TANK, VOLUME)
    assert found.fetch == [entry()]
    assert f"only when model is /models/{LLAMA}" in found.notes[0] and "served_model_name" in found.notes[0]


def test_an_engine_config_that_can_t_be_read():
    found = of({"A": {"model": "x"}, "B": {"model": "y"}}, TANK)
    assert found.fetch == [] and "can't be read" in found.notes[0]
    assert of({"ModelConfig": {"dtype": "auto"}}, TANK) == model_places.Wanted()


def host(ctid: int, engine_config: dict | None = None, node: str = "pve", **more) -> dict:
    return {
        "phoenix_ctid": ctid, "phoenix_node": node, "container_mounts": [TANK],
        "vllm_model_server_engine_config": config() if engine_config is None else engine_config, **more,
    }  # fmt: skip


class TestFilter:
    def test_what_two_share_is_fetched_once(self):
        hostvars = {"a": host(1), "b": host(2), "c": host(3, node="other"), "d": host(4, config("/models/org/x"))}
        found = {name: wanted_models(hostvars, name, list(hostvars)) for name in hostvars}
        assert [len(found[name]["fetch"]) for name in "abcd"] == [1, 0, 1, 1]
        assert found["b"]["notes"] == [f"b: {LLAMA} (main) is fetched with a, for both"]
        assert not any(found[name]["problems"] for name in found)

    def test_two_that_want_different_things_in_one_place(self):
        hostvars = {"a": host(1), "b": host(2, config(revision="v2")), "c": host(3, config("/models/org/x"))}
        for name, revision in (("a", "main"), ("b", "v2")):
            found = wanted_models(hostvars, name, list(hostvars))
            assert found["fetch"] == [] and f"wants {LLAMA} ({revision})" in found["problems"][0]
        assert wanted_models(hostvars, "c", list(hostvars))["problems"] == []
        assert wanted_models(hostvars, "a", ["a"])["problems"] == []

    def test_a_host_without_a_model_server(self):
        nothing = {"fetch": [], "notes": [], "problems": []}
        assert wanted_models({"a": host(1, {}), "pve": {}}, "a", ["a", "pve"]) == nothing
        assert wanted_models({"pve": {}}, "pve", ["pve"]) == nothing

    def test_a_list_of_one_s_own(self):
        models = [{"repository": "org/x", "revision": "v1"}, {"source": "/nas/y", "name": "my/y", "folder": "/z"}]
        found = wanted_models({"a": host(1, phoenix_models=models)}, "a", ["a"])
        assert found["fetch"] == [{**models[0], "folder": "/tank/models", "name": "org/x"}, models[1]]
        found = wanted_models({"pve": {"phoenix_models": models[:1]}}, "pve", ["pve"])
        assert found["fetch"] == [{**models[0], "name": "org/x"}]

    @pytest.mark.parametrize("models", ["org/x", {"repository": "org/x"}, ["org/x"]])
    def test_a_list_that_is_none(self, models):
        with pytest.raises(AnsibleFilterError, match="a: phoenix_models is no list"):
            wanted_models({"a": host(1, phoenix_models=models)}, "a", ["a"])
