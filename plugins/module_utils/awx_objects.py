# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is declared for an AWX, beside what is there: whose is what, and what can't be made. Without any request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# How AWX shows a secret that it has; sent back, it keeps it.
KEPT = "$encrypted$"
# The secret inputs of the credential types that AWX brings and that a site like ours needs.
BUILT_IN_SECRETS = frozenset(
    ["password", "ssh_key_data", "ssh_key_unlock", "become_password", "vault_password", "token", "oauth_token"]
)

Entry = Mapping[str, Any]


def is_made_by_us(found: Entry, mark: str) -> bool:
    """Whether an object has our mark at the end of its description."""
    return str(found.get("description") or "").rstrip().endswith(mark)


def is_same(entry: Entry, found: Entry, scope: str) -> bool:
    """Whether an object of AWX is the one that an entry declares; a name is unique within its scope only."""
    if entry.get("name") != found.get("name"):
        return False
    declared = entry.get(scope) if scope else None
    if not declared:
        return True
    at = (found.get("summary_fields") or {}).get(scope) or {}
    return at.get("name") == declared


def find(entry: Entry, there: Sequence[Entry], scope: str) -> Entry | None:
    """Return the object that an entry declares, None when it isn't there."""
    return next((found for found in there if is_same(entry, found, scope)), None)


def own(entries: Sequence[Entry], there: Sequence[Entry], mark: str, scope: str = "") -> list[Entry]:
    """Return the entries whose objects are there and were made by us."""
    pairs = [(entry, find(entry, there, scope)) for entry in entries]
    return [entry for entry, found in pairs if found is not None and is_made_by_us(found, mark)]


def secret_fields(credential_type: str, types: Sequence[Entry]) -> set[str]:
    """Return the inputs of a credential type that are secret."""
    declared = next((entry for entry in types if entry.get("name") == credential_type), None)
    if declared is None:
        return set(BUILT_IN_SECRETS)
    fields = (declared.get("inputs") or {}).get("fields") or []
    return {field["id"] for field in fields if field.get("secret")}


def inputs(entry: Entry, secrets: Mapping[str, str]) -> dict[str, Any]:
    """Return the inputs of a credential: the plain ones, and its secrets, or that AWX keeps those that aren't given.

    Args:
        entry: as declared; C(secrets) names a variable for each.
        secrets: what these names stand for, C("") when nothing does.
    """
    named = entry.get("secrets") or {}
    return {**(entry.get("inputs") or {}), **{field: secrets.get(name) or KEPT for field, name in named.items()}}


def names_of_secrets(credentials: Sequence[Entry]) -> list[str]:
    """Return the names of variables that the secrets of all credentials are in, each once."""
    return list(dict.fromkeys(str(name) for entry in credentials for name in (entry.get("secrets") or {}).values()))


def secrets_of(names: Sequence[str], variables: Sequence[Any], environment: Sequence[Any]) -> dict[str, str]:
    """Return what each name stands for: the variable of this name, else that of the environment, else nothing."""
    return {name: str(one or other or "") for name, one, other in zip(names, variables, environment)}


def problems(
    types: Sequence[Entry],
    there: Mapping[str, Sequence[Entry]],
    mark: str,
    secrets: Mapping[str, str],
    take_over: bool = False,
) -> list[str]:
    """Return a sentence for everything that can't be made as declared.

    Args:
        types: the kinds of objects, each with C(kind), C(endpoint), C(scope) and C(entries).
        there: what AWX has of them, by endpoint.
        mark: what the description of an object of ours ends with.
        secrets: the values of the secrets' names.
        take_over: whether objects that somebody else made may be changed.
    """
    said: list[str] = []
    for kind in types:
        found = there.get(kind["endpoint"], [])
        said += _names(kind)
        if not take_over:
            said += _strangers(kind, found, mark)
    declared = {kind["endpoint"]: kind["entries"] for kind in types}
    for entry in declared.get("credentials", []):
        is_there = find(entry, there.get("credentials", []), "organization") is not None
        said += _secrets(entry, declared.get("credential_types", []), secrets, is_there)
    return said


def _names(kind: Entry) -> list[str]:
    """Names that AWX couldn't be asked for, and those that are there twice."""
    said, seen = [], set()
    for entry in kind["entries"]:
        name, scope = entry["name"], entry.get(kind["scope"]) if kind["scope"] else None
        if "," in name or "++" in name:
            said.append(
                f"The {kind['kind']} {name!r} can't have a comma or ++ in its name: AWX reads them as something else."
            )
        if (name, scope) in seen:
            said.append(f"The {kind['kind']} {name!r} is declared twice.")
        seen.add((name, scope))
    return said


def _strangers(kind: Entry, there: Sequence[Entry], mark: str) -> list[str]:
    pairs = [(entry, find(entry, there, kind["scope"])) for entry in kind["entries"]]
    return [
        f"AWX has the {kind['kind']} {entry['name']!r}, and configure did not make it (its description doesn't end "
        f"with {mark}). Give yours another name, or let it be changed with -e awx_config_take_over=true."
        for entry, found in pairs
        if found is not None and not is_made_by_us(found, mark)
    ]


def _secrets(entry: Entry, types: Sequence[Entry], secrets: Mapping[str, str], is_there: bool) -> list[str]:
    said = []
    is_secret = secret_fields(entry["credential_type"], types)
    for field in sorted(is_secret & set(entry.get("inputs") or {})):
        said.append(
            f"The credential {entry['name']!r} has {field} among its inputs, where all can read it. Put the name of a "
            f"variable of a vault, or of the environment, under secrets: {{{field}: NAME_OF_THE_VARIABLE}}."
        )
    # The name isn't shown: who wrote the secret itself there would find it in the output.
    for field, name in (entry.get("secrets") or {}).items():
        if not secrets.get(name) and not is_there:
            said.append(
                f"The credential {entry['name']!r} is new and its {field} is not known: neither a variable nor an "
                f"environment variable has the name that secrets.{field} gives, or it is empty. Export it, or hand "
                f"over a vault file with -e @FILE."
            )
    return said
