# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import awx_objects
from hypothesis import given
from hypothesis import strategies as st

MARK = "[phoenix.hypervisor]"
OURS = {"name": "a", "description": f"Text {MARK}", "summary_fields": {"organization": {"name": "Ours"}}}
THEIRS = {**OURS, "description": "Text", "summary_fields": {"organization": {"name": "Theirs"}}}
TYPE = {"name": "T v1", "inputs": {"fields": [{"id": "host"}, {"id": "key", "secret": True}]}}
CREDENTIAL = {"name": "c", "organization": "Ours", "credential_type": "T v1", "secrets": {"key": "THE_KEY"}}


def kinds(**entries):
    scopes = {"organizations": "", "credential_types": ""}
    return [
        {"kind": name[:-1], "endpoint": name, "scope": scopes.get(name, "organization"), "entries": list_}
        for name, list_ in entries.items()
    ]


@pytest.mark.parametrize("description", [MARK, f"Text {MARK}", f"Text {MARK} ", f"{MARK} {MARK}"])
def test_ours_by_its_mark(description):
    assert awx_objects.is_made_by_us({"description": description}, MARK)


@pytest.mark.parametrize("found", [{}, {"description": None}, {"description": ""}, {"description": f"{MARK} no more"}])
def test_not_ours(found):
    assert not awx_objects.is_made_by_us(found, MARK)


def test_a_name_is_looked_for_where_it_is_unique():
    entry = {"name": "a", "organization": "Ours"}
    assert awx_objects.find(entry, [THEIRS, OURS], "organization") is OURS
    assert awx_objects.find(entry, [THEIRS], "organization") is None
    assert awx_objects.find(entry, [THEIRS], "") is THEIRS
    assert awx_objects.own([entry], [THEIRS, OURS], MARK, "organization") == [entry]
    assert awx_objects.own([entry], [THEIRS], MARK) == []


def test_what_is_there_and_not_ours_is_a_problem():
    types = kinds(projects=[{"name": "a", "organization": "Theirs"}])
    (said,) = awx_objects.problems(types, {"projects": [THEIRS, OURS]}, MARK, {})
    assert "AWX has the project 'a', and configure did not make it" in said
    assert awx_objects.problems(types, {"projects": [THEIRS]}, MARK, {}, take_over=True) == []
    assert awx_objects.problems(types, {}, MARK, {}) == []


def test_names():
    twice = kinds(projects=[{"name": "a", "organization": "x"}, {"name": "a", "organization": "y"},
                            {"name": "a", "organization": "x"}], organizations=[{"name": "p++q"}])  # fmt: skip
    said = awx_objects.problems(twice, {}, MARK, {})
    assert said == [
        "The project 'a' is declared twice.",
        "The organization 'p++q' can't have a comma or ++ in its name: AWX reads them as something else.",
    ]


def test_secrets():
    types = kinds(credential_types=[TYPE], credentials=[CREDENTIAL])
    (said,) = awx_objects.problems(types, {}, MARK, {"THE_KEY": ""})
    assert "The credential 'c' is new and its key is not known" in said and "THE_KEY" not in said
    assert awx_objects.problems(types, {}, MARK, {"THE_KEY": "x"}) == []
    there = {"credentials": [{**OURS, "name": "c"}]}
    assert awx_objects.problems(types, there, MARK, {}) == []
    assert awx_objects.inputs(CREDENTIAL, {}) == {"key": awx_objects.KEPT}
    assert awx_objects.inputs({**CREDENTIAL, "inputs": {"host": "h"}}, {"THE_KEY": "x"}) == {"host": "h", "key": "x"}


@pytest.mark.parametrize(
    ("credential_type", "field", "is_secret"),
    [("T v1", "key", True), ("T v1", "host", False), ("Machine", "ssh_key_data", True), ("Machine", "username", False)],
)
def test_a_secret_in_the_file_is_refused_without_showing_it(credential_type, field, is_secret):
    entry = {"name": "c", "credential_type": credential_type, "inputs": {field: "s3cret"}}
    said = awx_objects.problems(kinds(credential_types=[TYPE], credentials=[entry]), {}, MARK, {})
    assert bool(said) == is_secret and "s3cret" not in " ".join(said)


def test_names_of_secrets():
    entries = [CREDENTIAL, {"name": "d"}, {"name": "e", "secrets": {"a": "THE_KEY", "b": "B"}}]
    assert awx_objects.names_of_secrets(entries) == ["THE_KEY", "B"]
    assert awx_objects.secrets_of(["A", "B", "C"], ["", "v", None], ["e", "e", ""]) == {"A": "e", "B": "v", "C": ""}


texts = st.text(max_size=5)


@given(st.lists(st.fixed_dictionaries({"name": texts}, optional={"organization": texts})),
       st.lists(st.fixed_dictionaries({"name": texts}, optional={"description": texts})))
def test_nothing_of_others_is_ever_ours(entries, there):
    """Whatever is there without the mark."""
    assert awx_objects.own(entries, there, MARK, "organization") == []
    strangers = {found["name"] for found in there}
    said = awx_objects.problems(kinds(organizations=entries), {"organizations": there}, MARK, {})
    named = {entry["name"] for entry in entries}
    assert all(any(repr(name) in sentence for sentence in said) for name in strangers & named)
