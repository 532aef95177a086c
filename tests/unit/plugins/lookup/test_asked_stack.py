# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import itertools

import pytest
from ansible.errors import AnsibleLookupError
from ansible_collections.phoenix.hypervisor.plugins.lookup.asked_stack import choose, described
from ansible_collections.phoenix.hypervisor.plugins.lookup.stacks import SHIPPED

THERE = {
    "cpu": {"version": "0.32.0+cpu", "gpu": False, "method": "wheel"},
    "old": {"version": "0.10.2", "gpu": True, "method": "wheel"},
    "old-source": {"version": "0.10.2", "gpu": True, "method": "source"},
    "new": {"version": "0.32.0", "gpu": True, "method": "wheel"},
    "other": {"version": "0.5.0", "gpu": True, "method": "source"},
}


@pytest.mark.parametrize(
    ("declared", "stack", "version", "meant"),
    [
        ("old", "", "", "old"),
        ("old", "new", "", "new"),
        ("old", "", "0.32.0", "new"),
        ("old", "", "v0.32.0", "new"),
        ("old", "", "0.10.2", "old"),  # what is declared already
        ("old-source", "", "0.10.2", "old-source"),
        ("new", "", "0.10.2", "old"),  # of two, that with the same method
        ("new", "", "0.5.0", "other"),  # the only one, by another method
        ("cpu", "", "0.32.0", "cpu"),
        ("cpu", "", "0.32.0+cpu", "cpu"),
        ("old", "new", "0.32.0", "new"),
        ("gone", "new", "", "new"),  # a declared one that there isn't doesn't matter then
        ("", "new", "0.32.0", ""),  # a container without vLLM
        ("", "nonsense", "9", ""),
    ],
)
def test_what_is_meant(declared, stack, version, meant):
    assert choose(declared, stack, version, THERE) == meant


@pytest.mark.parametrize(
    ("declared", "stack", "version", "sentence"),
    [
        ("old", "newer", "", "phoenix_stack is 'newer', and there is no such stack. Did you mean new?"),
        ("old", "../../etc", "", "phoenix_stack is '../../etc', and there is no such stack."),
        ("old", "new", "0.10.2", "phoenix_stack is 'new', which has vLLM 0.32.0, and phoenix_version is '0.10.2'."),
        ("old", "", "latest", "phoenix_version is 'latest', and no stack for a GPU has this version of vLLM. "
                              "There are 0.10.2, 0.32.0, 0.5.0."),
        ("cpu", "", "0.10.2", "no stack without a GPU has this version of vLLM. There are 0.32.0."),
        ("gone", "", "0.10.2", "which several stacks have: old, old-source. Name one of them as phoenix_stack."),
    ],
)  # fmt: skip
def test_nonsense_is_answered_with_a_sentence(declared, stack, version, sentence):
    with pytest.raises(AnsibleLookupError) as error:
        choose(declared, stack, version, THERE)
    assert sentence in str(error.value)


def test_every_choice_of_the_survey_works():
    """Each stack that is shipped can be asked for in place of each, with its version and without."""
    shipped = described([SHIPPED])
    assert shipped["vllm-0.32.0-cu130"] == {"version": "0.32.0", "gpu": True, "method": "wheel"}
    for declared, name in itertools.product(shipped, shipped):
        assert choose(declared, name, "", shipped) == name
        assert choose(declared, name, shipped[name]["version"], shipped) == name
        assert choose(declared, "", "", shipped) == declared


def test_a_stack_that_can_t_be_read_has_no_version(tmp_path):
    for name, text in (("broken", "a: [b"), ("list", "[1]"), ("text", "vllm: 3"), ("binary", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stack.yml").write_text(text)
    (tmp_path / "binary/stack.yml").write_bytes(b"\xff\xfe")
    found = described([str(tmp_path)])
    assert {one["version"] for one in found.values()} == {""}
    with pytest.raises(AnsibleLookupError, match="no stack for a GPU has this version"):
        choose("list", "", "1.0", found)
