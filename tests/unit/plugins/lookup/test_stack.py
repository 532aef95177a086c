# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleLookupError
from ansible_collections.phoenix.hypervisor.plugins.lookup.stack import LookupModule, load
from ansible_collections.phoenix.hypervisor.plugins.module_utils.stack import StackError

SHIPPED = Path(__file__).resolve().parents[4] / "roles/vllm_stack/files/stacks"


@pytest.fixture
def own(tmp_path):
    """A folder of stacks with one, a copy of cpu under its name."""
    shutil.copytree(SHIPPED / "cpu", tmp_path / "cpu")
    return tmp_path


def change(folder: Path, **values) -> None:
    path = folder / "stack.yml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


def said(*arguments) -> str:
    with pytest.raises(StackError) as error:
        load(*arguments)
    return str(error.value)


def test_a_stack_and_its_candidates():
    stack = load("cpu", [str(SHIPPED)], {})
    assert (stack["name"], stack["method"], stack["gpu"]) == ("cpu", "wheel", False)
    assert stack["folder"] == str(SHIPPED / "cpu") and stack["environment"]["HF_HUB_OFFLINE"] == "1"
    (candidate,) = stack["candidates"]
    assert candidate["release"].startswith("cpu-") and candidate["flashinfer"] == "" and candidate["source"] == {}


def test_what_one_should_know_comes_along():
    holes = load("vllm-0.10.2-cu128", [str(SHIPPED)], {})["known_holes"]
    assert {"CVE-2025-66448", "CVE-2026-22807", "CVE-2026-27893"} <= {hole["id"] for hole in holes}


def test_the_first_folder_wins(own):
    change(own / "cpu", title="mine")
    assert load("cpu", [str(own), str(SHIPPED)], {})["title"] == "mine"
    assert load("cpu", [str(SHIPPED), str(own)], {})["title"] != "mine"
    assert load("vllm-0.32.0-cu130", [str(own), str(SHIPPED)], {})["folder"].startswith(str(SHIPPED))


def test_overrides_reach_the_candidates():
    stack = load("cpu", [str(SHIPPED)], {"environment": {"VLLM_LOGGING_LEVEL": "DEBUG", "HF_HUB_OFFLINE": None}})
    assert stack["environment"] == {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "DEBUG"}
    assert stack["candidates"][0]["environment"] == stack["environment"]
    assert "did you mean" in said("cpu", [str(SHIPPED)], {"environmnt": {}}).lower()


def test_a_stack_that_there_is_not(own):
    assert "There is no stack 'cup' in" in said("cup", [str(own)], {})
    assert "Did you mean cpu?" in said("cup", [str(own)], {})
    # A name is a folder's name, never a path.
    assert "There is no stack" in said("../cpu", [str(own / "cpu")], {})
    assert "There is no stack ''" in said("", [str(own)], {})
    assert "There is none." in said("cpu", [str(own / "missing")], {})


def test_files_that_are_not_what_they_should_be(own):
    path = own / "cpu/stack.yml"
    change(own / "cpu", name="other")
    assert f"{path}: name is 'other', and its folder is cpu" in said("cpu", [str(own)], {})
    path.write_text("name: cpu\ntorch: [\n")
    assert f"{path}: line 3: it isn't YAML" in said("cpu", [str(own)], {})
    path.write_text("- cpu\n")
    assert "must have keys with values" in said("cpu", [str(own)], {})
    path.write_bytes(b"name: \xff\n")
    assert f"{path} can't be read" in said("cpu", [str(own)], {})


def test_a_template_gets_the_sentence(monkeypatch):
    """Without a traceback. Ansible reads the options by the documentation; a play in the lab tests has that."""
    options = {"folders": [str(SHIPPED)], "overrides": {"method": "source"}, "repository": ""}
    monkeypatch.setattr(LookupModule, "set_options", lambda *_words, **_options: None)
    monkeypatch.setattr(LookupModule, "get_option", lambda _self, name: options[name])
    with pytest.raises(AnsibleLookupError, match=r"^stack cpu: method is source, and vllm\.commit is missing"):
        LookupModule().run(["cpu"])
    options["overrides"] = {}
    assert [stack["name"] for stack in LookupModule().run(["cpu", "vllm-0.32.0-cu130"])] == ["cpu", "vllm-0.32.0-cu130"]
