# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container's firewall: Proxmox's file format, what is declared, and the edits between them. Values in, values out.

The file is C(/etc/pve/firewall/<vmid>.fw): sections in brackets, of which C([OPTIONS]) and C([RULES]) are understood
here. All else in it (aliases, IP sets, comments, lines that Proxmox passes over) stays as it is, to the byte.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

# What Proxmox takes for the value of an option that the file doesn't have.
DEFAULTS = {"enable": "0", "policy_in": "DROP", "policy_out": "ACCEPT"}
ACTIONS = ("ACCEPT", "DROP", "REJECT")
LOG_LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug", "nolog")

_HEADER = re.compile(r"\[(options|aliases|rules|ipset\s+\S+)\]\s*(#.*)?", re.I | re.ASCII)
_OPTION = re.compile(r"([a-z0-9_]+):[ \t]*(.*)", re.I)
_MACRO = re.compile(rf"(\S+)\(({'|'.join(ACTIONS)})\)")
# The words of a rule in the order in which Proxmox writes them, with the other forms that it reads.
_WORDS = {
    "iface": ("-i", r"-i"),
    "source": ("-source", r"--?source"),
    "dest": ("-dest", r"--?dest"),
    "proto": ("-p", r"(?:-p|--?proto)"),
    "dport": ("-dport", r"--?dport"),
    "sport": ("-sport", r"--?sport"),
    "log": ("-log", r"--?log"),
    "icmp_type": ("-icmp-type", r"--?icmp-type"),
}
_OF_GROUPS = ("iface", "comment", "enable")

_GROUP_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,17}")
# An IP set or an alias; newer Proxmox has scopes before the name (dc/, guest/, sdn/).
_NAMED_ADDRESS = re.compile(r"\+?([a-z]+/)?[A-Za-z][A-Za-z0-9_-]{1,63}")
# A number, two of them, or the name of a service.
_PORT = re.compile(r"(\d+)(?::(\d+))?|(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9+._-]*")
_MOST_PORTS = 15
_LONGEST_ADDRESSES = 512
_WITH_PORTS = ("tcp", "udp", "udplite", "sctp", "dccp", "6", "17", "33", "132", "136")
_ICMP = ("icmp", "icmpv6", "ipv6-icmp")
# fmt: off
# The names in Debian's /etc/protocols, and icmpv6, which Proxmox adds.
_PROTOCOLS = {
    "ah", "ax.25", "dccp", "ddp", "egp", "eigrp", "encap", "esp", "etherip", "ethernet", "fc", "ggp", "gre", "hip",
    "hmp", "hopopt", "icmp", "icmpv6", "idpr-cmtp", "idrp", "igmp", "igp", "ip", "ipcomp", "ipencap", "ipip", "ipv6",
    "ipv6-frag", "ipv6-icmp", "ipv6-nonxt", "ipv6-opts", "ipv6-route", "isis", "iso-tp4", "l2tp", "manet",
    "mobility-header", "mpls-in-ip", "mptcp", "ospf", "pim", "pup", "rdp", "rohc", "rspf", "rsvp", "sctp", "shim6",
    "skip", "st", "tcp", "udp", "udplite", "vmtp", "vrrp", "wesp", "xns-idp", "xtp",
}
# fmt: on


class FirewallError(Exception):
    """What is declared is no firewall; the text says where, why, and what to do."""


@dataclass(frozen=True)
class Rule:
    """A rule, in the words of Proxmox's API. "" for what it doesn't say.

    :ivar type: C(in), C(out), C(group)
    :ivar action: what happens to a packet, or the name of a security group
    """

    type: str
    action: str
    macro: str = ""
    iface: str = ""
    source: str = ""
    dest: str = ""
    proto: str = ""
    dport: str = ""
    sport: str = ""
    log: str = ""
    icmp_type: str = ""
    comment: str = ""
    enable: bool = True

    @property
    def line(self) -> str:
        """The rule as Proxmox writes it into the file."""
        action = f"{self.macro}({self.action})" if self.macro else self.action
        words = [f"{'' if self.enable else '|'}{self.type.upper()} {action}"]
        names = [name for name in _WORDS if self.type != "group" or name in _OF_GROUPS]
        words += [f"{_WORDS[name][0]} {getattr(self, name)}" for name in names if getattr(self, name)]
        return " ".join(words) + (f" # {self.comment}" if self.comment else "")


@dataclass(frozen=True)
class Edit:
    """One change of the list of rules.

    :ivar kind: C(insert), C(replace), C(delete)
    :ivar pos: the position in the list as it is when it is this edit's turn
    :ivar rule: the new rule, or the one that goes
    :ivar old: the rule that is replaced
    """

    kind: str
    pos: int
    rule: Rule
    old: Rule | None = None

    @property
    def sentence(self) -> str:
        if self.kind == "replace" and self.old:
            return f"rule {self.pos} becomes {self.rule.line} (it was {self.old.line})"
        return f"rule {self.pos} is {self.kind}{'ed' if self.kind == 'insert' else 'd'}: {self.rule.line}"


@dataclass(frozen=True)
class Declared:
    """What is to be in the firewall. None means that the declaration doesn't speak of it.

    :ivar options: only those that are declared
    """

    options: Mapping[str, str]
    rules: Sequence[Rule] | None


@dataclass(frozen=True)
class Plan:
    """What to change, in this order: C(edits), C(options), C(deletes). So there's no moment in which less is refused or
    accepted than before and after.

    :ivar options: new values of options that change
    :ivar edits: insertions and replacements
    """

    edits: tuple[Edit, ...]
    options: Mapping[str, str]
    deletes: tuple[Edit, ...]
    steps: tuple[str, ...]


# --- the file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What a file, or the API, says.

    :ivar options: those that the file has
    :ivar strange: lines among the rules that Proxmox passes over
    """

    options: Mapping[str, str]
    rules: tuple[Rule, ...]
    strange: tuple[str, ...] = ()

    def option(self, name: str) -> str:
        """An option's value, the default where the file has none."""
        return self.options.get(name, DEFAULTS[name])

    @property
    def text(self) -> str:
        """The part that is understood here, for a reader."""
        options = "".join(f"{name}: {self.option(name)}\n" for name in DEFAULTS)
        return f"[OPTIONS]\n{options}\n[RULES]\n" + "".join(f"{rule.line}\n" for rule in self.rules)


def parse(text: str) -> Content:
    """A firewall file's content."""
    lines = _lines_of(text)
    values = [(name, value) for _place, name, value in _options_in(lines)]
    strange = [line for _place, line in _section(lines, "rules") if parse_rule(line) is None]
    options = {name: value for name, value in values if _is_value(name, value)}
    return Content(options, tuple(rule for _place, rule in _rules_in(lines)), tuple(strange))


def parse_rule(line: str) -> Rule | None:
    """A line of the section C([RULES]), None when Proxmox doesn't understand it and passes it over."""
    rest, hash_sign, comment = line.partition("#")
    enable = not rest.startswith("|")
    head = re.match(r"(\S+)\s+(\S+)\s*", rest[0 if enable else 1 :], re.ASCII)
    if not head:
        return None
    kind, action = head.group(1).lower(), head.group(2)
    macro = _MACRO.fullmatch(action) if kind in ("in", "out") else None
    rule = Rule(kind, macro.group(2) if macro else action, macro.group(1) if macro else "", enable=enable)
    if hash_sign:
        rule = replace(rule, comment=comment.strip(" \t"))
    rest = rest[0 if enable else 1 :][head.end() :]
    while rest:
        for name, (_what, pattern) in _WORDS.items():
            word = re.match(rf"{pattern} (\S+)\s*", rest, re.ASCII)
            known = kind != "group" or name in _OF_GROUPS
            if word and known and (name != "log" or word.group(1) in LOG_LEVELS):
                rule = replace(rule, **{name: word.group(1)})
                rest = rest[word.end() :]
                break
        else:
            return None
    return rule


def edit_text(text: str, plan: Plan) -> str:
    """A firewall file's content after a plan, everything else in it as it was."""
    if not plan.steps:
        return text
    lines = _lines_of(text)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    for edit in (*plan.edits, *plan.deletes):
        places = [place for place, _rule in _rules_in(lines)]
        if edit.kind == "delete":
            del lines[places[edit.pos]]
        elif edit.kind == "replace":
            lines[places[edit.pos]] = f"{edit.rule.line}\n"
        elif edit.pos:
            lines.insert(places[edit.pos - 1] + 1, f"{edit.rule.line}\n")
        else:
            lines.insert(places[0] if places else _top_of(lines, "rules"), f"{edit.rule.line}\n")
    for name, value in plan.options.items():
        places = [place for place, known, _value in _options_in(lines) if known == name]
        if places:
            # Of several lines the last one counts.
            lines[places[-1]] = f"{name}: {value}\n"
        else:
            others = [place + 1 for place, _name, _value in _options_in(lines)]
            lines.insert(others[-1] if others else _top_of(lines, "options"), f"{name}: {value}\n")
    return "".join(lines)


def _lines_of(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _is_value(name: str, value: str) -> bool:
    """Would Proxmox take this value for an option, or pass the line over?"""
    return value in (("0", "1") if name == "enable" else ACTIONS) if name in DEFAULTS else True


def _section(lines: Sequence[str], wanted: str) -> list[tuple[int, str]]:
    """The lines of a section with their places, comments and empty ones left out."""
    found, section = [], ""
    for place, line in enumerate(lines):
        content = line.strip(" \t\n")
        header = _HEADER.fullmatch(content)
        if header:
            section = header.group(1).lower()
        elif section == wanted and content and not content.startswith("#"):
            found.append((place, content))
    return found


def _rules_in(lines: Sequence[str]) -> list[tuple[int, Rule]]:
    parsed = [(place, parse_rule(line)) for place, line in _section(lines, "rules")]
    return [(place, rule) for place, rule in parsed if rule is not None]


def _options_in(lines: Sequence[str]) -> list[tuple[int, str, str]]:
    found = []
    for place, line in _section(lines, "options"):
        option = _OPTION.fullmatch(line)
        if option:
            name, value = option.group(1).lower(), option.group(2).strip()
            found.append((place, name, value.upper() if name.startswith("policy_") else value))
    return found


def _top_of(lines: list[str], section: str) -> int:
    """The place of a section's first line; the section is made when there is none."""
    headers = [_HEADER.fullmatch(line.strip(" \t\n")) for line in lines]
    for place, header in enumerate(headers):
        if header and header.group(1).lower() == section:
            below = place + 1
            if below < len(lines) and not lines[below].strip():
                below += 1
            return below
    # Where Proxmox has them: options first, rules last.
    first = next((place for place, header in enumerate(headers) if header), len(lines))
    place = first if section == "options" else len(lines)
    gap = ["\n"] if place and lines[place - 1].strip() else []
    lines[place:place] = [*gap, f"[{section.upper()}]\n", "\n", "\n"]
    return place + len(gap) + 2


# --- the API ------------------------------------------------------------------------------------------------------


def from_api(entry: Mapping[str, object]) -> Rule:
    """A rule as the API lists it."""
    values = {_name(key): str(value) for key, value in entry.items() if _name(key) in _NAMES and value is not None}
    enable = values.pop("enable", "0") not in ("", "0")
    return Rule(**{**values, "type": str(entry["type"]).lower()}, enable=enable)


def to_api(rule: Rule, old: Rule | None = None) -> dict[str, str]:
    """A rule as the API wants it.

    :param old: the rule that becomes this one; what only that says is taken away
    """
    texts = [name for name in _NAMES if name != "enable"]
    result = {_api_name(name): getattr(rule, name) for name in texts if getattr(rule, name)}
    gone = [_api_name(name) for name in texts if old and getattr(old, name) and not getattr(rule, name)]
    return {**result, "enable": "1" if rule.enable else "0", **({"delete": ",".join(gone)} if gone else {})}


_NAMES = tuple(each.name for each in fields(Rule))


def _name(api_name: str) -> str:
    return api_name.replace("-", "_")


def _api_name(name: str) -> str:
    return name.replace("_", "-")


# --- the plan -----------------------------------------------------------------------------------------------------


def plan(declared: Declared, actual: Content) -> Plan:
    """The changes from what is there to what is declared."""
    edits = edits_between(actual.rules, declared.rules) if declared.rules is not None else []
    options = {name: value for name, value in declared.options.items() if value != actual.option(name)}
    first = tuple(edit for edit in edits if edit.kind != "delete")
    deletes = tuple(edit for edit in edits if edit.kind == "delete")
    said = [f"{name} becomes {value} (it was {actual.option(name)})" for name, value in options.items()]
    steps = [*(edit.sentence for edit in first), *said, *(edit.sentence for edit in deletes)]
    return Plan(first, options, deletes, tuple(steps))


def after(plan: Plan, actual: Content) -> Content:
    """What there is once a plan was followed."""
    rules = list(actual.rules)
    for edit in (*plan.edits, *plan.deletes):
        if edit.kind == "delete":
            del rules[edit.pos]
        elif edit.kind == "replace":
            rules[edit.pos] = edit.rule
        else:
            rules.insert(edit.pos, edit.rule)
    return Content({**actual.options, **plan.options}, tuple(rules), actual.strange)


def edits_between(current: Sequence[Rule], wanted: Sequence[Rule]) -> list[Edit]:
    """The fewest insertions and deletions between two lists, insertions first: rules that stay are never away.

    A rule that stands alone between two that stay, before and after, is replaced, which is one change instead of two.
    """
    first: list[Edit] = []
    last: list[Edit] = []
    shift = here = there = 0
    for stays, counterpart in (*_common(current, wanted), (len(current), len(wanted))):
        gone, new = current[here:stays], wanted[there:counterpart]
        if len(gone) == len(new) == 1:
            first.append(Edit("replace", here + shift, new[0], gone[0]))
        else:
            first += [Edit("insert", here + shift + number, rule) for number, rule in enumerate(new)]
            shift += len(new)
            last += [Edit("delete", here + shift + number, rule) for number, rule in enumerate(gone)]
        here, there = stays + 1, counterpart + 1
    # From the end, so that no deletion moves what another one means.
    return first + last[::-1]


def _common(current: Sequence[Rule], wanted: Sequence[Rule]) -> list[tuple[int, int]]:
    """The longest common subsequence, as pairs of places."""
    one, two = [normalised(rule) for rule in current], [normalised(rule) for rule in wanted]
    # longest[i][j]: of one[i:] and two[j:]
    longest = [[0] * (len(two) + 1) for _row in range(len(one) + 1)]
    for i in reversed(range(len(one))):
        for j in reversed(range(len(two))):
            same = longest[i + 1][j + 1] + 1
            longest[i][j] = same if one[i] == two[j] else max(longest[i + 1][j], longest[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(one) and j < len(two):
        if one[i] == two[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def normalised(rule: Rule) -> Rule:
    """A rule in a form in which equal ones are equal: without regard to case where Proxmox has none."""
    if rule.type == "group":
        return Rule("group", rule.action, iface=rule.iface, comment=rule.comment.strip(), enable=rule.enable)
    return replace(
        rule,
        macro=rule.macro.lower(),
        source=rule.source.lower(),
        dest=rule.dest.lower(),
        proto=rule.proto.lower(),
        # To log nothing is what a rule does that doesn't speak of it.
        log="" if rule.log == "nolog" else rule.log,
        comment=rule.comment.strip(),
    )


# --- what is declared ---------------------------------------------------------------------------------------------


def declared_rules(vmid: int, entries: Iterable[Mapping[str, object]]) -> list[Rule]:
    """The declared rules, each checked.

    :raises FirewallError: for the first one that Proxmox would refuse, or pass over without a word
    """
    return [checked_rule(_Place(vmid, number), entry) for number, entry in enumerate(entries)]


@dataclass(frozen=True)
class _Place:
    """Where in the declaration we are."""

    vmid: int
    number: int

    def wrong(self, key: str, fault: str, remedy: str) -> FirewallError:
        return FirewallError(f"CTID {self.vmid}, rules[{self.number}].{key}: {fault}; {remedy}")


def checked_rule(place: _Place, entry: Mapping[str, object]) -> Rule:
    texts = {name: str(entry.get(name) or "").strip() for name in _NAMES if name != "enable"}
    rule = Rule(**texts, enable=entry.get("enable") is not False)
    rule = replace(rule, type=rule.type.lower(), proto=rule.proto.lower(), log=rule.log.lower())
    if rule.type not in ("in", "out", "group"):
        remedy = "write in (to the container), out (from it) or group (a security group)"
        fault = f"{rule.type!r} is no type of a container's rule" if rule.type else "missing"
        raise place.wrong("type", fault, remedy)
    rule = _checked_group(place, rule) if rule.type == "group" else _checked_action(place, rule)
    if rule.iface and not re.fullmatch(r"net\d+", rule.iface):
        remedy = "write the key of its configuration, such as net0"
        raise place.wrong("iface", f"{rule.iface!r} is no network interface of a container", remedy)
    if not rule.comment.isprintable():
        raise place.wrong("comment", "has a line break or a control character", "write it in one line")
    if rule.log and rule.log not in LOG_LEVELS:
        raise place.wrong("log", f"{rule.log!r} is no log level", f"take one of {', '.join(LOG_LEVELS)}")
    _check_addresses(place, rule)
    _check_protocol(place, rule)
    return rule


def _checked_group(place: _Place, rule: Rule) -> Rule:
    if not _GROUP_NAME.fullmatch(rule.action):
        fault = f"{rule.action!r} is no name of a security group" if rule.action else "missing"
        raise place.wrong("action", fault, "name the security group (2 to 18 letters, digits, - and _)")
    for name in _NAMES[2:]:
        if name not in _OF_GROUPS and getattr(rule, name):
            raise place.wrong(name, "a group's own rules say this", "leave it out here")
    return rule


def _checked_action(place: _Place, rule: Rule) -> Rule:
    """The rule with a macro in its action taken apart."""
    form = re.fullmatch(r"(\S+)\((\w+)\)", rule.action)
    if form:
        if rule.macro and rule.macro.lower() != form.group(1).lower():
            raise place.wrong("macro", f"{rule.macro!r} is another one than in action {rule.action!r}", "keep one")
        rule = replace(rule, macro=form.group(1), action=form.group(2))
    rule = replace(rule, action=rule.action.upper())
    if rule.action not in ACTIONS:
        fault = f"{rule.action!r} is no action" if rule.action else "missing"
        raise place.wrong("action", fault, "write ACCEPT, DROP or REJECT, with a macro as in SSH(ACCEPT)")
    if rule.macro and not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", rule.macro):
        raise place.wrong("macro", f"{rule.macro!r} is no macro", "name one as Proxmox does, such as SSH or HTTPS")
    for name in ("proto", "dport", "icmp_type"):
        if rule.macro and getattr(rule, name):
            fault = f"the macro {rule.macro} says this itself"
            raise place.wrong(name, fault, "leave it out, or leave the macro out and write an action alone")
    return rule


def _check_protocol(place: _Place, rule: Rule) -> None:
    if rule.proto and rule.proto not in _PROTOCOLS and not (rule.proto.isdecimal() and int(rule.proto) <= 255):
        remedy = "write tcp, udp, icmp or another name of /etc/protocols, or leave it out for all"
        raise place.wrong("proto", f"{rule.proto!r} is no protocol", remedy)
    for name in ("dport", "sport"):
        ports = getattr(rule, name)
        # A type of ICMP may stand in place of the port, as in files of old.
        if not ports or rule.macro or (name == "dport" and rule.proto in _ICMP):
            continue
        if rule.proto not in _WITH_PORTS:
            fault = f"ports are of no meaning to {rule.proto}" if rule.proto else f"missing, and {name} needs it"
            raise place.wrong("proto", fault, "write tcp, udp, sctp, dccp or udplite")
        _check_ports(place, name, ports)
    if rule.icmp_type:
        if rule.proto not in _ICMP:
            raise place.wrong("icmp_type", "is of a meaning to ICMP only", "write proto icmp or ipv6-icmp")
        if rule.dport:
            raise place.wrong("dport", "stands beside icmp_type", "keep icmp_type")
        if not re.fullmatch(r"[A-Za-z0-9-]+", rule.icmp_type):
            raise place.wrong("icmp_type", f"{rule.icmp_type!r} is no type of ICMP", "write echo-request or the like")


def _check_ports(place: _Place, key: str, ports: str) -> None:
    count = 0
    for item in ports.split(","):
        found = _PORT.fullmatch(item)
        if re.fullmatch(r"\d+-\d+", item):
            raise place.wrong(key, f"{item!r} is no range of ports", f'write "{item.replace("-", ":")}"')
        if not found:
            remedy = 'write "8000", "8000:8010", "80,443" or a name of /etc/services'
            raise place.wrong(key, f"{item!r} is no port", remedy)
        numbers = [int(number) for number in found.group(1, 2) if number]
        if any(number > 65535 for number in numbers):
            raise place.wrong(key, f"{item!r} is beyond the last port", "take a number up to 65535")
        if len(numbers) == 2 and numbers[0] > numbers[1]:
            raise place.wrong(key, f"{item!r} is backwards", f'write "{numbers[1]}:{numbers[0]}"')
        count += max(1, len(numbers))
    if count > _MOST_PORTS:
        fault = f"{count} numbers are more than the {_MOST_PORTS} that Proxmox takes (a range counts as two)"
        raise place.wrong(key, fault, "write two rules")


def _check_addresses(place: _Place, rule: Rule) -> None:
    versions = {"icmp": 4, "icmpv6": 6, "ipv6-icmp": 6}
    known = {versions[rule.proto]} if rule.proto in versions else set()
    for key in ("source", "dest"):
        text = getattr(rule, key)
        if not text:
            continue
        if len(text) > _LONGEST_ADDRESSES:
            raise place.wrong(key, f"is longer than {_LONGEST_ADDRESSES} characters", "make an IP set of the addresses")
        if text.lower() in ("any", "all", "*"):
            raise place.wrong(key, f"{text!r} is no address", "leave it out for all addresses")
        if _NAMED_ADDRESS.fullmatch(text):
            continue
        for item in text.split(","):
            known.add(_version_of(place, key, item, alone=item == text))
        if len(known) > 1:
            raise place.wrong(key, "IPv4 and IPv6 are mixed in one rule", "write a rule for each")


def _version_of(place: _Place, key: str, item: str, alone: bool) -> int:
    """The IP version of an address, a network, or a range where that stands alone."""
    try:
        if "-" in item and alone:
            low, high = (ipaddress.ip_address(end) for end in item.split("-"))
            if low.version == high.version and int(low) <= int(high):
                return low.version
            raise ValueError
        return ipaddress.ip_network(item).version
    except ValueError:
        pass
    try:
        # The bits behind the prefix must be 0.
        remedy = f"write {ipaddress.ip_network(item, strict=False)}"
    except ValueError:
        remedy = 'write "10.0.0.1", "10.0.0.0/24", "10.0.0.1-10.0.0.9" alone, "+ipset" or the name of an alias'
    raise place.wrong(key, f"{item!r} is no address", remedy)
