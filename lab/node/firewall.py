# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A container's firewall: /etc/pve/firewall/<CTID>.fw in the genuine format. Written down, never enforced."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from node import conf as conf_format
from node import schema, settings
from node.errors import ParameterError, PctError
from node.store import WWW_DATA
from node.system import write_atomically

Rule = dict[str, str]

_LEVELS = schema.one_of("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug", "nolog")
_POLICY = schema.one_of("ACCEPT", "REJECT", "DROP")
OPTIONS: dict[str, schema.Validator] = {
    **dict.fromkeys(("enable", "dhcp", "ipfilter", "macfilter", "ndp", "radv"), schema.boolean),
    **dict.fromkeys(("log_level_in", "log_level_out"), _LEVELS),
    **dict.fromkeys(("policy_in", "policy_out"), _POLICY),
}
_SWITCHES = {  # in the order in which they are written
    "iface": "-i", "source": "-source", "dest": "-dest", "proto": "-p", "dport": "-dport", "sport": "-sport",
    "log": "-log", "icmp-type": "-icmp-type",
}  # fmt: skip
RULE: dict[str, schema.Validator] = {
    "type": schema.one_of("in", "out", "forward", "group"),
    "action": schema.pattern(r"[A-Za-z][A-Za-z0-9_-]+"),
    "macro": schema.pattern(r"[A-Za-z0-9_-]+"),
    "enable": schema.integer(0),
    "comment": schema.anything,
    **dict.fromkeys(("source", "dest", "dport", "sport", "icmp-type"), schema.pattern(r"\S+")),
    "proto": schema.pattern(r"[a-z0-9-]+"),
    "iface": schema.pattern(r"net\d+|[a-z]\S*"),
    "log": _LEVELS,
}


@dataclass
class Firewall:
    """Options and rules; ``rest`` are the sections that only pass through (aliases, IP sets)."""

    options: dict[str, str] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    rest: str = ""


def path_of(vmid: int) -> Path:
    """The file of a container."""
    return settings.FIREWALL / f"{vmid}.fw"


def parse(text: str) -> Firewall:
    """The text of a file to its parts; what makes no sense is passed over, as the genuine parser does."""
    found = Firewall()
    section = ""
    for line in text.splitlines():
        header = re.fullmatch(r"\[(\S+)( .*)?\]\s*(#.*)?", line.strip())
        if header:
            section = header[1].upper()
            found.rest += f"{line}\n" if section not in ("OPTIONS", "RULES") else ""
        elif section == "OPTIONS":
            option = re.fullmatch(r"\s*([a-z_]+):\s*(\S+)\s*", line)
            if option and option[1] in OPTIONS:
                found.options[option[1]] = option[2]
        elif section == "RULES":
            rule = parse_rule(line)
            if rule:
                found.rules.append(rule)
        elif section:
            found.rest += f"{line}\n"
    return found


def parse_rule(line: str) -> Rule | None:
    """A line of [RULES], None when it is none."""
    text, _hash, comment = line.partition("#")
    match = re.fullmatch(
        r"\s*(\|?)(IN|OUT|FORWARD|GROUP)\s+(?:([\w-]+)\(([\w-]+)\)|([\w-]+))((?:\s+-\S+\s+\S+)*)\s*", text
    )
    if not match:
        return None
    rule = {"type": match[2].lower(), "action": match[4] or match[5], "enable": "0" if match[1] else "1"}
    if match[3]:
        rule["macro"] = match[3]
    names = {switch: name for name, switch in _SWITCHES.items()}
    words = match[6].split()
    for switch, value in zip(words[::2], words[1::2]):
        if switch in names:
            rule[names[switch]] = value
    if comment.strip():
        rule["comment"] = comment.strip()
    return rule


def render_rule(rule: Rule) -> str:
    """A line of [RULES]."""
    words = ["|" if rule.get("enable") == "0" else "", rule["type"].upper(), " "]
    words.append(f"{rule['macro']}({rule['action']})" if "macro" in rule else rule["action"])
    words += [f" {switch} {rule[name]}" for name, switch in _SWITCHES.items() if rule.get(name)]
    words += [f" # {rule['comment']}"] if rule.get("comment", "").strip() else []
    return "".join(words)


def render(firewall: Firewall) -> str:
    """The text of the file."""
    text = ""
    if firewall.options:
        text += "[OPTIONS]\n\n" + "".join(f"{key}: {value}\n" for key, value in sorted(firewall.options.items())) + "\n"
    text += firewall.rest if not firewall.rest or firewall.rest.endswith("\n\n") else firewall.rest + "\n"
    if firewall.rules:
        text += "[RULES]\n\n" + "".join(render_rule(rule) + "\n" for rule in firewall.rules) + "\n"
    return text


def _read(vmid: int) -> str:
    return path_of(vmid).read_text() if path_of(vmid).exists() else ""


def load(vmid: int) -> Firewall:
    """The container's firewall; empty when it has none."""
    return parse(_read(vmid))


def digest(vmid: int) -> str:
    """What a change can be tied to. (Genuine: of options, or of rules; here of the file.)"""
    return conf_format.digest(_read(vmid))


def check_digest(vmid: int, given: str) -> None:
    """Refuse when the file isn't the one that the caller read."""
    if given and given != digest(vmid):
        raise PctError("detected modified configuration - file changed by other user? Try again.")


def save(vmid: int, firewall: Firewall) -> None:
    """Write the file anew; without anything in it there is none."""
    text = render(firewall)
    if text:
        write_atomically(path_of(vmid), text, 0o640, WWW_DATA)
    else:
        remove(vmid)


def remove(vmid: int) -> None:
    """Forget the file: what destroy does."""
    path_of(vmid).unlink(missing_ok=True)


def clone(vmid: int, new: int) -> None:
    """The clone gets the source's rules."""
    if path_of(vmid).exists():
        write_atomically(path_of(new), _read(vmid), 0o640, WWW_DATA)


def checked(given: dict[str, str], forms: dict[str, schema.Validator]) -> dict[str, str]:
    """Options or parts of a rule, checked; all mistakes are named at once."""
    good, bad = {}, {}
    for name, value in given.items():
        try:
            good[name] = forms[name](value)
        except ValueError as reason:
            bad[name] = str(reason)
    if bad:
        raise ParameterError(bad)
    return good


def check_rule(rule: Rule) -> None:
    """Refuse a rule that the genuine firewall couldn't take."""
    if rule["type"] != "group" and rule["action"] not in ("ACCEPT", "DROP", "REJECT"):
        raise ParameterError({"action": f"unknown action '{rule['action']}'"})
    for name in ("dport", "sport"):
        if name in rule and "macro" not in rule and rule.get("proto") not in ("tcp", "udp", "sctp", "dccp", "udplite"):
            raise ParameterError({"proto": f"missing property - '{name}' requires 'proto' to be specified"})
