# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The REST API of a container's firewall."""

from __future__ import annotations

from typing import Any

from node import firewall, store
from node.errors import ParameterError, PctError
from node.routing import CT, Ask, endpoint

_RULE_PARTS = tuple(name for name in firewall.RULE if name not in ("type", "action"))


def _fw(ask: Ask) -> firewall.Firewall:
    """The firewall of the path's container, after a look at the digest that the caller gave."""
    store.load(ask.vmid)
    firewall.check_digest(ask.vmid, ask.given.get("digest", ""))
    return firewall.load(ask.vmid)


@endpoint("GET", f"{CT}/firewall/options", "VM.Audit")
def _fw_options(ask: Ask) -> Any:
    numbers = {key: int(text) if text.isdigit() else text for key, text in _fw(ask).options.items()}
    return {**numbers, "digest": firewall.digest(ask.vmid)}


@endpoint("PUT", f"{CT}/firewall/options", "VM.Config.Network", (*firewall.OPTIONS, "delete", "digest"))
def _fw_set_options(ask: Ask) -> Any:
    found = _fw(ask)
    for name in ask.words("delete"):
        if name not in firewall.OPTIONS:
            raise ParameterError({"delete": f"no such option '{name}'"})
        found.options.pop(name, None)
    given = {key: text for key, text in ask.given.items() if key in firewall.OPTIONS}
    found.options.update(firewall.checked(given, firewall.OPTIONS))
    firewall.save(ask.vmid, found)


def _rule_entry(vmid: int, number: int, rule: firewall.Rule) -> dict[str, Any]:
    return {**rule, "enable": int(rule["enable"]), "pos": number, "digest": firewall.digest(vmid)}


@endpoint("GET", f"{CT}/firewall/rules", "VM.Audit")
def _fw_rules(ask: Ask) -> Any:
    return [_rule_entry(ask.vmid, number, rule) for number, rule in enumerate(_fw(ask).rules)]


@endpoint("POST", f"{CT}/firewall/rules", "VM.Config.Network", (*_RULE_PARTS, "digest", "pos"), ("type", "action"))
def _fw_add(ask: Ask) -> Any:
    found = _fw(ask)
    rule = firewall.checked({key: text for key, text in ask.given.items() if key in firewall.RULE}, firewall.RULE)
    rule.setdefault("enable", "0")
    firewall.check_rule(rule)
    found.rules.insert(0, rule)  # always first: genuine ignores `pos` here
    firewall.save(ask.vmid, found)


def _position(ask: Ask, found: firewall.Firewall) -> int:
    text = ask.path["pos"]
    if not text.isdigit():
        raise ParameterError({"pos": f"type check ('integer') failed - got '{text}'"})
    if int(text) >= len(found.rules):
        raise PctError(f"no rule at position {text}")
    return int(text)


@endpoint("GET", f"{CT}/firewall/rules/{{pos}}", "VM.Audit")
def _fw_rule(ask: Ask) -> Any:
    found = _fw(ask)
    number = _position(ask, found)
    return _rule_entry(ask.vmid, number, found.rules[number])


@endpoint(
    "PUT", f"{CT}/firewall/rules/{{pos}}", "VM.Config.Network",
    ("type", "action", *_RULE_PARTS, "digest", "moveto", "delete"),
)  # fmt: skip
def _fw_change(ask: Ask) -> Any:
    found = _fw(ask)
    number = _position(ask, found)
    if "moveto" in ask.given:
        # the rule goes before the one that is at this position now; nothing else of the call counts
        target = min(ask.number("moveto", 0), len(found.rules))
        rule = found.rules.pop(number)
        found.rules.insert(target if target <= number else target - 1, rule)
    else:
        rule = found.rules[number]
        for name in ask.words("delete"):
            rule.pop(name, None)
        given = {key: text for key, text in ask.given.items() if key in firewall.RULE}
        rule.update(firewall.checked(given, firewall.RULE))
        firewall.check_rule(rule)
    firewall.save(ask.vmid, found)


@endpoint("DELETE", f"{CT}/firewall/rules/{{pos}}", "VM.Config.Network", ("digest",))
def _fw_delete(ask: Ask) -> Any:
    found = _fw(ask)
    del found.rules[_position(ask, found)]
    firewall.save(ask.vmid, found)
