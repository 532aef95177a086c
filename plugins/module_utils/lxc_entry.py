# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one entry of C(lxc_configs) may say: the table of its keys (L(KEYS)), and what reads each.

The table checks, and the JSON Schema for editors is made from it (C(tools/schema)): each parser carries the schema of
what it accepts, each key its description. A schema may accept more than its parser does, never less.

A key that is C(null) or C("") says nothing, everywhere. Numbers and booleans may be written as text, because the shell
scripts that these files were made for never saw the difference.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Callable, NamedTuple

from ansible_collections.phoenix.hypervisor.plugins.module_utils import certificate, firewall, gpu, idmap, vllm_flat
from ansible_collections.phoenix.hypervisor.plugins.module_utils.vllm_flat import Path, show_path

_FEATURES = ("nesting", "keyctl", "fuse", "mknod", "force_rw_sys", "mount")
MISSING = object()  # where a sentence shows no value


# --- words --------------------------------------------------------------------------------------------------------


def show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"


def kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def some(words: list[str], most: int = 12) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "") or "there is none"


# --- what reads a value -------------------------------------------------------------------------------------------


class Findings:
    """Collects what is wrong (C(problems)) and what is only worth a word (C(notes)) in one entry."""

    def __init__(self) -> None:
        self.problems: list[tuple[Path, Any, str, str]] = []
        self.notes: list[tuple[Path, Any, str, str]] = []
        self.unknown: list[Path] = []

    def wrong(self, path: Path, value: Any, fault: str, remedy: str) -> None:
        self.problems.append((path, value, fault, remedy))

    def note(self, path: Path, value: Any, fault: str, remedy: str) -> None:
        self.notes.append((path, value, fault, remedy))


# Takes (value, path, findings), gives the value in its one right form, or None after it has told the findings why not.
# Its attribute `schema` is the JSON Schema of what it accepts.
Parser = Callable[[Any, Path, Findings], Any]
Schema = dict


class Key(NamedTuple):
    """A key of an object: what reads its value, and what an editor shows of it."""

    read: Parser
    description: str


def _accepts(*schemas: Schema) -> Callable[[Parser], Parser]:
    """Say what a parser accepts: any of these."""

    def mark(parser: Parser) -> Parser:
        parser.schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}  # type: ignore[attr-defined]
        return parser

    return mark


def _like(pattern: str) -> Schema:
    """Text that has this form, blanks around it aside."""
    return {"type": "string", "pattern": rf"^\s*(?:{pattern})\s*$"}


def _any_case(*words: str) -> str:
    spelled = ("".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else re.escape(c) for c in word) for word in words)
    return "|".join(spelled)


@_accepts({"type": "boolean"}, {"enum": [0, 1]}, _like(f"{_any_case('true', 'false')}|0|1"))
def _flag(value: Any, path: Path, findings: Findings) -> bool | None:
    if isinstance(value, bool):
        return value
    known = {"true": True, "1": True, "false": False, "0": False}
    text = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if text in known:
        return known[text]
    return findings.wrong(path, value, "is neither true nor false", "write true or false")


def _whole(low: int, high: int | None = None, unit: str = "") -> Parser:
    span = f"from {low} to {high}" if high is not None else f"of at least {low}"
    limits = {"minimum": low} if high is None else {"minimum": low, "maximum": high}

    @_accepts({"type": "integer", **limits}, _like("-?[0-9]{1,18}"))
    def parse_whole(value: Any, path: Path, findings: Findings) -> int | None:
        number = value
        if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value):
            number = int(value)
        elif isinstance(value, float) and value.is_integer():
            number = int(value)  # 4096.0, as some tools write it
        if (
            isinstance(number, int)
            and not isinstance(number, bool)
            and low <= number <= (number if high is None else high)
        ):
            return number
        return findings.wrong(path, value, f"is not a whole number {span}", f"write one{unit}")

    return parse_whole


_DECIMAL = r"\+?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"


@_accepts({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, _like(_DECIMAL))
def _fraction(value: Any, path: Path, findings: Findings) -> float | None:
    number = value
    if isinstance(value, str):
        number = float(value) if re.fullmatch(rf"\s*{_DECIMAL}\s*", value) else None
    if isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number <= 1:
        return float(number)
    return findings.wrong(path, value, "is not a share of the memory above 0 and up to 1", "write one such as 0.9")


def _text(pattern: str = r"[^\x00-\x1f\x7f]+", what: str = "text in one line", example: str = "") -> Parser:
    compiled = re.compile(pattern)
    # Some of these values look like numbers and were written as such; a shell script didn't mind.
    numbers = [{"type": "integer"}] if any(compiled.fullmatch(number) for number in ("5", "500", "-1")) else []

    @_accepts(_like(pattern), *numbers)
    def parse_text(value: Any, path: Path, findings: Findings) -> str | None:
        # A number of thousands of digits is no name, and Python doesn't write it out.
        is_number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18
        text = str(value) if is_number else value
        if isinstance(text, str) and compiled.fullmatch(text.strip()):
            return text.strip()
        return findings.wrong(path, value, f"is not {what}", f"write {example or 'that'}")

    return parse_text


def _one_of(*allowed: str) -> Parser:
    @_accepts({"enum": list(allowed)}, _like(_any_case(*allowed)))
    def parse_one_of(value: Any, path: Path, findings: Findings) -> str | None:
        for candidate in allowed:
            if isinstance(value, str) and value.strip().lower() == candidate.lower():
                return candidate
        return findings.wrong(path, value, "is not known here", f"write {either(allowed)}")

    return parse_one_of


def _list(item: Parser) -> Parser:
    @_accepts({"type": "array", "items": schema_of(item)})
    def parse_list(value: Any, path: Path, findings: Findings) -> list[Any] | None:
        if not isinstance(value, list):
            return findings.wrong(path, value, "is not a list", "put it in brackets: [ … ]")
        parsed = (item(member, (*path, place), findings) for place, member in enumerate(value))
        return [member for member in parsed if member is not None]

    return parse_list


def _object(keys: Mapping[str, Key], needed: tuple[str, ...] = ()) -> Parser:
    @_accepts({**object_schema(keys), **({"required": list(needed)} if needed else {})})
    def parse_object(value: Any, path: Path, findings: Findings) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            return findings.wrong(path, value, "is not an object", "put it in braces: { … }")
        result = _parse_keys(value, keys, path, findings)
        for key in needed:
            if value.get(key) in (None, ""):
                findings.wrong((*path, key), MISSING, "it is missing", "add it")
        return result if all(key in result for key in needed) else None

    return parse_object


def _map_of(member: Parser, known: Schema | None = None) -> Parser:
    """An object with keys of any name; C(known) are the schemas of those that an editor offers."""
    others = {"anyOf": [schema_of(member), {"type": "null"}]} if schema_of(member) else {}

    @_accepts({"type": "object", "properties": known or {}, "additionalProperties": others})
    def parse_map(value: Any, path: Path, findings: Findings) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            return findings.wrong(path, value, "is not an object", "put it in braces: { … }")
        parsed = {key: member(item, (*path, key), findings) for key, item in value.items() if item is not None}
        return {key: item for key, item in parsed.items() if item is not None}

    return parse_map


@_accepts({})
def _anything(value: Any, path: Path, findings: Findings) -> Any:
    return value


def _parse_keys(value: dict[str, Any], keys: Mapping[str, Key], path: Path, findings: Findings) -> dict[str, Any]:
    result = {}
    for key, member in value.items():
        if key not in keys:
            findings.unknown.append((*path, key))
        elif member is not None and member != "":
            parsed = keys[key].read(member, (*path, key), findings)
            if parsed is not None:
                result[key] = parsed
    return result


def schema_of(parser: Parser) -> Schema:
    """The JSON Schema of what a parser accepts."""
    return parser.schema  # type: ignore[attr-defined]


def object_schema(keys: Mapping[str, Key]) -> Schema:
    """The JSON Schema of an object with these keys, of which each may be silent; others are only noted."""
    return {
        "type": "object",
        "properties": {
            name: {"description": key.description, **_or_silent(schema_of(key.read))} for name, key in keys.items()
        },
    }


def _or_silent(schema: Schema) -> Schema:
    if not schema:
        return {}
    return {"anyOf": [*schema.get("anyOf", [schema]), {"enum": [None, ""]}]}


_IPV4 = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}"


@_accepts(_like(rf"{_any_case('dhcp', 'manual')}|{_IPV4}/[0-9]{{1,2}}"))
def _address_or_word(value: Any, path: Path, findings: Findings) -> str | None:
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in ("dhcp", "manual"):
            return text.lower()
        try:
            if re.fullmatch(rf"{_IPV4}/[0-9]{{1,2}}", text) and ipaddress.IPv4Interface(text):
                return text
        except ValueError:
            pass
    return findings.wrong(
        path,
        value,
        "is not an IPv4 address with the length of its network's prefix",
        'write one such as "10.92.0.121/24", or "dhcp"',
    )


@_accepts(_like(_IPV4))
def _gateway(value: Any, path: Path, findings: Findings) -> str | None:
    try:
        return str(ipaddress.IPv4Address(value.strip() if isinstance(value, str) else ""))
    except ValueError:
        return findings.wrong(path, value, "is not an IPv4 address", "write one such as 10.92.0.1")


@_accepts(_like("[0-9A-Fa-f:.]+"))
def _address(value: Any, path: Path, findings: Findings) -> str | None:
    try:
        # A zone ("%eth0") could hold anything, and no name server needs one.
        text = value.strip() if isinstance(value, str) and "%" not in value else ""
        return str(ipaddress.ip_address(text))
    except ValueError:
        return findings.wrong(path, value, "is not an IP address", "write one such as 10.92.0.1")


_address_list = _list(_address)


@_accepts({"type": "string", "pattern": r"^[0-9A-Fa-f:.,;\s]+$"}, schema_of(_address_list))
def _addresses(value: Any, path: Path, findings: Findings) -> list[str] | None:
    """A list, or text with commas or blanks between the addresses."""
    members = re.split(r"[\s,;]+", value.strip()) if isinstance(value, str) else value
    return _address_list(members, path, findings)


_mac_text = _text(
    r"[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}",
    "the MAC address of a network card",
    '"BC:24:11:00:09:21" or the like',
)


@_accepts(schema_of(_mac_text))
def _mac(value: Any, path: Path, findings: Findings) -> str | None:
    text = _mac_text(value, path, findings)
    return text.upper() if text else None


@_accepts(
    _like(rf"{_any_case('none')}|[0-9]{{1,2}}(?:\s*,\s*[0-9]{{1,2}})*"),
    {"type": "integer", "minimum": 0, "maximum": 99},
)
def _gpus(value: Any, path: Path, findings: Findings) -> list[int] | None:
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 99
    text = str(value).strip().lower() if is_number or isinstance(value, str) else ""
    if text == "none":
        return []
    if re.fullmatch(r"[0-9]{1,2}(\s*,\s*[0-9]{1,2})*", text):
        numbers = [int(number) for number in text.split(",")]
        if len(set(numbers)) < len(numbers):
            findings.note(path, value, "names a GPU twice", "name each once")
        return sorted(set(numbers))
    return findings.wrong(path, value, "does not say which GPUs", 'write "none", or their numbers: "0" or "0,1"')


@_accepts(
    {"enum": [f"{name}=1" for name in _FEATURES[:-1]]},
    {"type": "string", "pattern": rf"^\s*(?:{'|'.join(_FEATURES)})\s*="},
)
def _pct_option(value: Any, path: Path, findings: Findings) -> dict[str, Any] | None:
    result: dict[str, Any] = {}
    # A value of `mount` separates with semicolons, so a comma always begins the next option.
    for option in value.split(",") if isinstance(value, str) else [None]:
        name, equals, setting = (option or "").strip().partition("=")
        name, setting = name.strip(), setting.strip()
        fits = setting in ("0", "1") if name != "mount" else re.fullmatch(r"[A-Za-z0-9_.;-]+", setting)
        if not equals or name not in _FEATURES or not fits:
            return findings.wrong(
                path,
                value,
                "is no feature of a container",
                f'write "name=1" or "name=0"; names are {", ".join(_FEATURES)}',
            )
        result[name] = setting if name == "mount" else int(setting)
    return result


@_accepts({"type": "string", "pattern": r"^ *lxc\.[A-Za-z0-9_.-]+ *[=:]"})
def _raw_line(value: Any, path: Path, findings: Findings) -> str | None:
    # The first "=" or ":" separates; whatever follows it, commas included, is the value.
    pattern = r" *(lxc\.[A-Za-z0-9_.-]+) *[=:] *([^\x00-\x1f\x7f]*?) *"
    match = re.fullmatch(pattern, value) if isinstance(value, str) else None
    if match:
        return f"{match.group(1)}: {match.group(2)}"
    return findings.wrong(path, value, "is not a line of LXC's configuration", 'write "lxc.key=value" in one line')


@_accepts({"type": "string", "pattern": r"^/[^\x00-\x1f\x7f,]*$"})
def _absolute(value: Any, path: Path, findings: Findings) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"/[^\x00-\x1f\x7f,]*", value) and ".." not in value.split("/"):
        return "/" + "/".join(part for part in value.split("/") if part not in ("", "."))
    return findings.wrong(
        path, value, 'is not an absolute path without ".." and commas', 'write one such as "/tank/models"'
    )


_storage = _text(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]", "the name of a Proxmox storage", '"local-zfs" or the like')
_volume_object = _object(
    {
        "name": Key(_text(), "A name for the reader."),
        "pool": Key(_storage, "Storage of Proxmox that the volume is made on; storage_pool when it is silent."),
        "storage": Key(_storage, "The same as pool."),
        "size_gb": Key(_whole(1, unit=", in GiB"), "Size in GiB."),
        "mount_point": Key(_absolute, "Where it is mounted in the container. One volume per mount point, ever."),
        "mp": Key(_absolute, "The same as mount_point."),
    }
)


@_accepts({**schema_of(_volume_object), "required": ["size_gb"]})
def _volume(value: Any, path: Path, findings: Findings) -> dict[str, Any] | None:
    """A volume, in the words of these files (C(pool), C(mount_point)) or in Proxmox's (C(storage), C(mp))."""
    before = len(findings.problems)
    volume = _volume_object(value, path, findings)
    if volume is None:
        return None
    for key, other in (("pool", "storage"), ("mount_point", "mp")):
        if other in volume and volume.setdefault(key, volume[other]) != volume[other]:
            findings.wrong((*path, other), volume[other], f"differs from {key}", "keep one of the two")
    for names in (("mount_point", "mp"), ("size_gb",)):
        if all(value.get(name) in (None, "") for name in names):
            findings.wrong((*path, names[0]), MISSING, "it is missing", "add it")
    return volume if len(findings.problems) == before else None


class _RulePlace:
    """Where a rule is in the JSON. The checks are those of the module pct_firewall, before anything runs."""

    def __init__(self, path: Path, findings: Findings) -> None:
        self.path, self.findings = path, findings

    def wrong(self, key: str, fault: str, remedy: str) -> firewall.FirewallError:
        key = "port" if key == "dport" else key
        self.findings.wrong((*self.path, key), MISSING, fault, remedy)
        return firewall.FirewallError(fault)


_rule_object = _object(
    {
        "type": Key(_text(), "in or out; group for a security group of the datacenter's."),
        "action": Key(_text(), "ACCEPT, DROP or REJECT; SSH(ACCEPT) for a macro; the name of a security group."),
        "source": Key(_text(), "Address, network, range, IP set (+name) or alias that a packet comes from."),
        "dest": Key(_text(), "The same for where it goes."),
        "proto": Key(_text(), "Protocol, such as tcp or udp."),
        "port": Key(_text(), "Destination port, range (8000:8010) or several with commas; needs proto."),
        "comment": Key(_text(), "Text for the reader."),
    },
    needed=("type", "action"),
)


@_accepts(schema_of(_rule_object))
def _rule(value: Any, path: Path, findings: Findings) -> dict[str, Any] | None:
    """A rule of the firewall, in Proxmox's words; a macro's action, C(SSH(ACCEPT)), becomes C(macro) and C(action)."""
    before = len(findings.problems)
    rule = _rule_object(value, path, findings)
    if rule is None or len(findings.problems) > before:
        return None
    if "port" in rule:
        rule["dport"] = rule.pop("port")
    for key in {"source", "dest", "dport"} & set(rule):
        rule[key] = re.sub(r"\s*,\s*", ",", rule[key])
    try:
        checked = asdict(firewall.checked_rule(_RulePlace(path, findings), rule))
    except firewall.FirewallError:
        return None
    return {key: checked[key] for key in checked if key != "enable" and checked[key]}


def _argument(name: str, value: Any, path: Path, findings: Findings) -> Any:
    """One argument of the model server, given in any form."""
    parser = _ARGUMENTS.get(name.lstrip("-").replace("-", "_"))
    return parser(value, path, findings) if parser else value


@_accepts({})
def _argument_value(value: Any, path: Path, findings: Findings) -> Any:
    return _argument(path[-1], value, path, findings)


_one_name = _text()
_names = _list(_one_name)


@_accepts(*schema_of(_one_name)["anyOf"], schema_of(_names))
def _name_or_names(value: Any, path: Path, findings: Findings) -> Any:
    return (_names if isinstance(value, list) else _one_name)(value, path, findings)


@_accepts({"type": ["string", "number"]})
def _word(value: Any, path: Path, findings: Findings) -> str | None:
    if isinstance(value, str) and "\x00" not in value:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    return findings.wrong(path, value, "is no word of a command line", "write text")


_words = _list(_word)


@_accepts({"type": "string"}, schema_of(_words))
def _word_list(value: Any, path: Path, findings: Findings) -> list[str] | None:
    return _words([value] if isinstance(value, str) else value, path, findings)


_name = _text(
    r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*",
    "a host name (letters, digits, and hyphens between them)",
    '"Template-VLLM" or the like',
)
_interface = _text(
    r"[A-Za-z0-9_.-]{1,15}", "the name of a network interface (up to 15 letters and digits)", '"vmbr0" or the like'
)
_ctid = _whole(100, 999999999, ": a CTID")
_port = _whole(1, 65535, ": a port")
_length = _text(r"[0-9]{1,18}|[0-9]+(\.[0-9]+)?[kKmMgG]|auto|-1", "a length in tokens", '8192, "8k" or "auto"')
_id = _whole(0, 4294967294)


@_accepts(*schema_of(_length)["anyOf"])
def _tokens(value: Any, path: Path, findings: Findings) -> Any:
    text = _length(value, path, findings)
    if text == "0":
        return findings.wrong(path, value, "is not a length in tokens", 'write 8192, "8k" or "auto"')
    return int(text) if text and re.fullmatch(r"-?[0-9]+", text) else text


# Arguments of the model server that are checked here wherever they are given; the others are vLLM's business.
_ARGUMENTS: dict[str, Parser] = {
    "port": _port,
    "gpu_memory_utilization": _fraction,
    "tensor_parallel_size": _whole(1),
    "pipeline_parallel_size": _whole(1),
    "max_model_len": _tokens,
}


def _argument_schema(name: str) -> Schema:
    parser = _ARGUMENTS.get(name)
    return {"anyOf": [schema_of(parser), {"type": "null"}]} if parser else {}


_engine_groups = {
    group: {
        "type": ["object", "null"],
        "description": f"Arguments of vLLM ({group}), by the name that vLLM gives them.",
        "properties": {name: _argument_schema(name) for name in names},
    }
    for group, names in {**vllm_flat.GROUPS, "ServerConfig": ("host", "port", "served_model_name")}.items()
}


# --- the table ----------------------------------------------------------------------------------------------------

_NETWORK: dict[str, Key] = {
    "name": Key(_interface, "Name of the interface in the container; eth0 when it is silent."),
    "bridge": Key(_interface, "Bridge of the node that it is connected to, such as vmbr0."),
    "ip": Key(_address_or_word, "IPv4 address with the length of its network's prefix, dhcp or manual."),
    "gw": Key(_gateway, "IPv4 gateway."),
    "nameservers": Key(_addresses, "Name servers, as a list or with commas between."),
    "nameserver": Key(_addresses, "The same as nameservers."),
    "type": Key(_one_of("veth"), "Kind of interface."),
    "parent": Key(_anything, "Old key; kept and not used. Name the bridge in bridge."),
    "hwaddr": Key(_mac, "MAC address; the one that Proxmox made is kept when it is silent."),
}

_fingerprint_text = _text(
    r"[0-9A-Fa-f]{2}(?::?[0-9A-Fa-f]{2}){31}",
    "the SHA-256 fingerprint of a certificate",
    "what `step certificate fingerprint root_ca.crt` prints on the CA",
)
_fingerprint_list = _list(_fingerprint_text)


@_accepts(schema_of(_fingerprint_text), schema_of(_fingerprint_list))
def _fingerprints(value: Any, path: Path, findings: Findings) -> list[str] | None:
    found = _fingerprint_list(value if isinstance(value, list) else [value], path, findings)
    return None if found is None else certificate.fingerprints(found)


# What a certificate can be for: a name in DNS, with a * at its beginning at most, or an address.
_certificate_name = _text(
    r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*",
    "a name that a certificate can have",
    "a name such as llm.example.internal, or an address",
)
_certificate_name_list = _list(_certificate_name)


@_accepts({"type": "string"}, schema_of(_certificate_name_list))
def _certificate_names(value: Any, path: Path, findings: Findings) -> list[str] | None:
    """A list, or text with commas or blanks between the names."""
    members = re.split(r"[\s,;]+", value.strip()) if isinstance(value, str) else value
    if isinstance(members, list):
        # Files of the old system have [""] for none.
        members = [member for member in members if member not in ("", None)]
    return _certificate_name_list(members, path, findings)


@_accepts({"type": "string"}, {"type": "array", "items": {"type": ["string", "number"]}})
def _command(value: Any, path: Path, findings: Findings) -> list[str] | None:
    """The words of a command. Text is split into words as a shell does it; nothing else of a shell is in it."""
    plain = isinstance(value, str) or (
        isinstance(value, list)
        and all(isinstance(word, (str, int, float)) and not isinstance(word, bool) for word in value)
    )
    if not plain or "\x00" in str(value):
        return findings.wrong(path, value, "is no command", "write it as text, or as the list of its words")
    try:
        return certificate.command_words(value)
    except certificate.CertificateError as error:
        fault, _semicolon, remedy = str(error).partition("; ")
        return findings.wrong(path, value, fault, remedy)


_file_mode = _text(r"0?[0-7]{3}", "the mode of a file", '"0640" or the like')
_certificate_object = _object(
    {
        "name": Key(_text(r"[A-Za-z0-9_][A-Za-z0-9_-]*", "a name of letters, digits, _ and -"),
                    "A name for it; vllm_model_server is the model server's."),
        "common_name": Key(_certificate_name, "Its first name."),
        "sans": Key(_certificate_names, "Its further names and addresses."),
        "guest_id": Key(_ctid, "The container that it is for: this one."),
        "guest_type": Key(_one_of("lxc", "vm"), "lxc."),
        "cert_path": Key(_absolute, "Where its chain is put, in the container."),
        "key_path": Key(_absolute, "Where its key is put, in the container."),
        "owner": Key(_text(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*(?::[A-Za-z0-9_.-]+)?", "a user", '"root" or "root:ssl-cert"'),
                     "Owner of both files; with a colon, their group too."),
        "group": Key(_text(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", "a group"), "Group of both files."),
        "mode": Key(_file_mode, "Mode of the key; 0600 when it is silent."),
        "permissions": Key(_file_mode, "The same as mode."),
        "post_renewal_command": Key(_command, "What is run in the container after each renewal, without a shell."),
        "source_certificate": Key(_text(), "With certificate_source: files, the chain that is copied."),
        "source_key": Key(_text(), "With certificate_source: files, its key."),
    }
)  # fmt: skip


@_accepts(schema_of(_certificate_object))
def _certificate(value: Any, path: Path, findings: Findings) -> dict[str, Any] | None:
    """A certificate in the words of these files; becomes one in the words of the role certificate."""
    before = len(findings.problems)
    said = _certificate_object(value, path, findings)
    if said is None:
        return None
    if said.get("guest_type") == "vm":
        findings.wrong((*path, "guest_type"), "vm", "is no container", "leave it out here")
    for key in ("mode", "permissions"):
        if key in said:
            said[key] = f"{int(said[key], 8):04o}"
    if said.setdefault("mode", said.get("permissions", "0600")) != said.get("permissions", said["mode"]):
        findings.wrong((*path, "permissions"), said["permissions"], "differs from mode", "keep one of the two")
    if not (value.get("common_name") or said.get("sans") or said.get("name") == certificate.MODEL_SERVER):
        findings.wrong((*path, "common_name"), MISSING, "it is missing", "add it")
    owner, _colon, group = said.get("owner", "root").partition(":")
    if group and said.setdefault("group", group) != group:
        findings.wrong((*path, "group"), said["group"], "differs from owner", "keep one of the two")
    if int(said["mode"], 8) & 0o004:
        findings.note((*path, "mode"), said["mode"], "lets everybody read the key", 'write one such as "0640"')
    if len(findings.problems) > before:
        return None
    names = {"cert_path": "cert_file", "key_path": "key_file", "name": "name", "common_name": "common_name",
             "sans": "sans", "group": "group", "mode": "mode", "post_renewal_command": "post_renewal_command",
             "source_certificate": "source_certificate", "source_key": "source_key",
             "guest_id": "guest_id"}  # fmt: skip
    return {**{new: said[old] for old, new in names.items() if old in said}, "owner": owner}


# Every key that an entry may have, with what reads it.
KEYS: dict[str, Key] = {
    "name": Key(_name, "Host name."),
    "node": Key(_text(), "Proxmox VE node that it is on, one of the inventory's; default_node when it is silent."),
    "memory_mb": Key(_whole(16, unit=", in MiB"), "Memory in MiB."),
    "cores": Key(_whole(1, 8192), "CPU cores."),
    "swap_mb": Key(_whole(0, unit=", in MiB"), "Swap in MiB."),
    "start_at_boot": Key(_flag, "Whether it starts with the node."),
    "boot_order": Key(_whole(0), "Place in the order of starting."),
    "boot_delay": Key(_whole(0, unit=", in seconds"), "Seconds to wait before the next one starts."),
    "template": Key(_text(), "Archive that it is created from, such as local:vztmpl/debian-12-….tar.zst."),
    "template_file": Key(_text(), "The same as template."),
    "clone_from_ctid": Key(_ctid, "CTID that it is cloned from."),
    "template_snapshot_name": Key(
        _text(
            r"(?!(?:current|vzdump)$)[A-Za-z][A-Za-z0-9_-]{1,39}",
            "the name of a snapshot (a letter, then letters, digits, - and _, at most 40; not current or vzdump)",
            '"gpu-snapshot" or the like',
        ),
        "Snapshot that is taken when it is complete, and that clones are made from.",
    ),
    "is_template": Key(_flag, "Whether it becomes a template when it is complete."),
    "storage_pool": Key(_storage, "Storage of Proxmox that its root disk is on."),
    "storage_size_gb": Key(_whole(1, unit=", in GiB"), "Size of the root disk in GiB; grown, never shrunk."),
    "network_config": Key(_object(_NETWORK), "The first network interface."),
    "mac_address": Key(_mac, "MAC address of the first interface."),
    "secondary_network_config": Key(_object(_NETWORK), "The second network interface."),
    "gpu_assignment": Key(_gpus, "NVIDIA GPUs that can be opened inside, by number: none, 0 or 0,1. No others can."),
    "unprivileged": Key(_flag, "Whether it is unprivileged (yes when silent). Set when it is created only."),
    "features": Key(
        _list(_text(r"[A-Za-z0-9_.-]+", "the name of a feature", '"nvidia" or the like')),
        "What is set up inside, in this order: names of the collection's roles, or of your own.",
    ),
    "application_script": Key(
        _text(), "What it serves: phoenix_hypervisor_lxc_vllm.sh is the model server; or a name of your own."
    ),
    "vllm_stack": Key(
        _text(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "the name of a stack", '"cpu" or the like'),
        "Locked set of PyTorch, vLLM and their build settings; the clone source's when it is silent.",
    ),
    "vllm_stack_overrides": Key(
        _map_of(_anything), "Values that replace single ones of the stack, with the keys of its stack.yml."
    ),
    "vllm_engine_config": Key(
        _map_of(_map_of(_argument_value), _engine_groups), "Arguments of the model server, in groups."
    ),
    "vllm_model": Key(_text(), "Old form of vllm_engine_config.ModelConfig.model."),
    "vllm_model_type": Key(_one_of("chat", "embedding"), "Old form of ModelConfig.runner."),
    "vllm_quantization": Key(_text(), "Old form of CacheConfig.quantization; none for none."),
    "vllm_max_model_len": Key(_tokens, "Old form of ModelConfig.max_model_len."),
    "vllm_gpu_memory_utilization": Key(_fraction, "Old form of CacheConfig.gpu_memory_utilization."),
    "vllm_tensor_parallel_size": Key(_whole(1), "Old form of ParallelConfig.tensor_parallel_size."),
    "vllm_served_model_name": Key(_name_or_names, "Old form of ServerConfig.served_model_name."),
    "vllm_port": Key(_port, "Old form of ServerConfig.port."),
    "vllm_trust_remote_code": Key(_flag, "Old form of ModelConfig.trust_remote_code."),
    "vllm_parameters": Key(_map_of(_argument_value), "Old form: further arguments of the model server."),
    "vllm_args": Key(_word_list, "Old form: words of the model server's command line."),
    "pct_options": Key(_list(_pct_option), "Features of Proxmox, such as nesting=1. Exactly these."),
    "lxc_options": Key(_list(_raw_line), "Raw lines of LXC's configuration, such as lxc.cap.drop=sys_time."),
    "apparmor_profile": Key(_text(), "AppArmor profile, such as unconfined."),
    "apparmor_manages_nesting": Key(_flag, "Whether nesting is left to the profile."),
    "id_maps": Key(
        _list(
            _object(
                {
                    "type": Key(
                        _one_of("u", "g", "uid", "gid", "user", "group", "both"), "Users (u), groups (g), or both."
                    ),
                    "host_id": Key(_id, "The first id on the node."),
                    "container_id": Key(_id, "The first id in the container."),
                    "size": Key(_whole(1, 4294967294), "How many."),
                },
                needed=("type", "host_id", "container_id", "size"),
            )
        ),
        "Ids that are not mapped as Proxmox does; the gaps between are filled.",
    ),
    "zfs_volumes": Key(_list(_volume), "Volumes that are made for it and mounted in it."),
    "volumes": Key(_list(_volume), "The same as zfs_volumes."),
    "mount_points": Key(
        _list(
            _object(
                {
                    "host_path": Key(_absolute, "Folder on the node."),
                    "container_path": Key(_absolute, "Where it is mounted in the container."),
                    "owner_uid": Key(_id, "Its owner, as seen in the container."),
                    "owner_gid": Key(_id, "Its group, as seen in the container."),
                    "read_only": Key(_flag, "Whether it can only be read in the container; left out, as it is now."),
                },
                needed=("host_path", "container_path"),
            )
        ),
        "Folders of the node that are mounted in it.",
    ),
    "firewall": Key(
        _object(
            {
                "enabled": Key(_flag, "Whether Proxmox's firewall filters for it."),
                "rules": Key(_list(_rule), "The rules, in their order. Exactly these."),
            }
        ),
        "Proxmox's firewall.",
    ),
    "dependencies": Key(_list(_ctid), "CTIDs that come before it; VM ids that are not in this file are left to you."),
    "ports": Key(_list(_anything), "Ports that it serves, for the reader and the gateway."),
    "health_check": Key(
        _object(
            {
                # Any text, in several lines too.
                "command": Key(_text(r"[^\x00]+"), "Command for the shell inside that ends with 0 when it is well."),
                "retries": Key(_whole(0), "How often to try again; 3 when it is silent."),
                "interval": Key(_whole(0, unit=", in seconds"), "Seconds between; 5 when it is silent."),
            }
        ),
        "What has to succeed before it counts as ready.",
    ),
    "tests": Key(
        _map_of(
            _list(
                _object(
                    {
                        "name": Key(_text(), "Name of the test."),
                        "type": Key(_text(), "Kind of the test: script (when it is silent), command or http."),
                        "path": Key(
                            _text(),
                            "Its script, below the folder of tests or absolute inside; the command; "
                            "the path below the model server's URL, or a whole URL.",
                        ),
                    }
                )
            )
        ),
        "Tests that the verify playbook runs, in groups.",
    ),
    "traefik_service": Key(
        _object(
            {
                "name": Key(_text(), "Name of the service."),
                "port": Key(_port, "Port that it serves."),
                "scheme": Key(_one_of("http", "https", "h2c", "tcp"), "How the gateway talks to it."),
            }
        ),
        "How the gateway reaches it.",
    ),
    "portainer_role": Key(_text(), "Its part in Portainer."),
    "bootstrap_ca_url": Key(
        _text(r"https?://[^\s\x00-\x1f]+", "an address of a CA", '"https://10.0.0.10:9000" or the like'),
        "Address of the CA that its certificate comes from.",
    ),
    "bootstrap_ca_fingerprint": Key(
        _fingerprints, "SHA-256 fingerprint of that CA's root; a list of two while the root changes."
    ),
    "certificates": Key(_list(_certificate), "Certificates of its other services, which it renews by itself."),
    "trigger_sync_on_completion": Key(_flag, "Whether Portainer is brought up to date afterwards."),
    "enable_lifecycle_snapshots": Key(_flag, "Whether snapshots are taken before and after."),
}

# Every key at the top of a file.
TOP_KEYS: dict[str, str] = {
    "$schema": "Where this schema is, for the editor.",
    "nvidia_driver_version": "NVIDIA driver of the nodes.",
    "nvidia_repo_url": "Where CUDA's packages come from.",
    "nvidia_runfile_url": "Where the driver comes from.",
    "lxc_configs": "The containers, each under its CTID.",
}


# --- one entry ----------------------------------------------------------------------------------------------------


def parse_entry(entry: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """An entry with each key in its one right form; what is silent or wrong is left out."""
    result = _parse_keys(entry, KEYS, (), findings)

    template = result.get("template")
    if template and result.setdefault("template_file", template) != template:
        findings.wrong(("template_file",), result["template_file"], "differs from template", "keep one of the two")
    for key, mac in (("network_config", result.get("mac_address")), ("secondary_network_config", None)):
        network = result.get(key)
        if network is not None:
            _check_network(key, network, mac, findings)
            if "parent" in network:
                findings.note((key, "parent"), network["parent"], "is kept and not used", "name the bridge in bridge")
    if result.get("is_template") and result.get("template_snapshot_name"):
        # Files of the old system have both; a template is cloned as it is, and Proxmox gives it no snapshot.
        name = result.pop("template_snapshot_name")
        findings.note(("template_snapshot_name",), name, "is not taken: a template has no snapshots", "remove it")
    if "id_maps" in result and len(result["id_maps"]) == len(entry["id_maps"]):
        _check_id_maps(result["id_maps"], findings)
    _check_raw(result, findings)
    _check_mounts(result, findings)
    _check_volumes(result, entry, findings)
    _check_snapshots(result, findings)
    _leave_gpus_to_the_assignment(result, findings)
    result["_engine_config"] = vllm_flat.engine_config(
        result, findings.wrong, lambda name, value, path: _argument(name, value, path, findings)
    )
    return result


def _check_network(key: str, network: dict[str, Any], mac: str | None, findings: Findings) -> None:
    if mac and network.setdefault("hwaddr", mac) != mac:
        findings.wrong((key, "hwaddr"), network["hwaddr"], f"differs from mac_address, {mac}", "keep one of the two")
    servers = network.pop("nameserver", None)
    if servers is not None and network.setdefault("nameservers", servers) != servers:
        findings.wrong((key, "nameserver"), " ".join(servers), "differs from nameservers", "keep one of the two")
    if "/" not in network.get("ip", ""):
        return
    interface = ipaddress.IPv4Interface(network["ip"])
    if interface.network.prefixlen < 31 and interface.ip in (
        interface.network.network_address,
        interface.network.broadcast_address,
    ):
        findings.wrong(
            (key, "ip"),
            network["ip"],
            f"is an end of the network {interface.network}",
            "write an address between its ends",
        )
    gateway = network.get("gw")
    if gateway is None or interface.network.prefixlen == 32:
        return
    if ipaddress.ip_address(gateway) not in interface.network:
        findings.wrong(
            (key, "gw"),
            gateway,
            f"is outside the container's network, {interface.network}",
            f"write an address in it, or correct {key}.ip",
        )
    elif gateway == str(interface.ip):
        findings.wrong((key, "gw"), gateway, "is the container's own address", "write the gateway's")


def _check_raw(result: dict[str, Any], findings: Findings) -> None:
    profile = result.get("apparmor_profile")
    for line in result.get("lxc_options", []):
        key, value = line.split(": ", 1)
        if profile and key == "lxc.apparmor.profile" and value != profile:
            findings.wrong(("apparmor_profile",), profile, f"differs from lxc_options, {value}", "keep one of the two")
        if result.get("id_maps") and key == "lxc.idmap":
            findings.wrong(("id_maps",), MISSING, "lxc_options has lxc.idmap lines too", "keep one of the two")
            break


def _check_mounts(result: dict[str, Any], findings: Findings) -> None:
    seen: dict[str, str] = {}
    members = (("mount_points", "container_path"), ("zfs_volumes", "mount_point"), ("volumes", "mount_point"))
    for key, member in members:
        for place, mount in enumerate(result.get(key, [])):
            where = mount.get(member)
            path = (key, place, member)
            if where == "/":
                findings.wrong(path, where, "is the container's root file system", "write a path below it")
            elif where in seen:
                findings.wrong(path, where, f"is mounted by {seen[where]} already", "keep one of the two")
            elif where:
                seen[where] = show_path((key, place))


def _check_volumes(result: dict[str, Any], entry: dict[str, Any], findings: Findings) -> None:
    if entry.get("storage_pool") not in (None, ""):
        return
    for key in ("zfs_volumes", "volumes"):
        for place, volume in enumerate(result.get(key, [])):
            if "pool" not in volume:
                findings.wrong((key, place), MISSING, "it names no storage", "add pool here, or storage_pool for all")


def _check_snapshots(result: dict[str, Any], findings: Findings) -> None:
    for key in ("template_snapshot_name", "enable_lifecycle_snapshots"):
        if result.get(key) and result.get("mount_points"):
            fault = "Proxmox takes no snapshot of a container that has bind mounts (mount_points)"
            findings.wrong((key,), MISSING, fault, "remove one of the two, or put the data on a volume (zfs_volumes)")


def _leave_gpus_to_the_assignment(result: dict[str, Any], findings: Findings) -> None:
    """Take out the raw lines that open GPUs: with C(gpu_assignment), exactly its GPUs can be opened."""
    if "gpu_assignment" not in result or "lxc_options" not in result:
        return
    lines = [(key, value) for key, _colon, value in (line.partition(": ") for line in result["lxc_options"])]
    opening = [f"{key}: {value}" for key, value in gpu.raw_lines_of(lines, None)]
    if opening:
        fault = "is left out: gpu_assignment says which GPUs it can open"
        findings.note(("lxc_options",), opening, fault, "remove it from lxc_options")
    result["lxc_options"] = [line for line in result["lxc_options"] if line not in opening]
    for line in result["lxc_options"]:
        if re.fullmatch(r"lxc\.cgroup2?\.devices\.allow: (a|[ac] \*:\*)( .*)?", line):
            findings.note(("lxc_options",), line, "allows every device, all GPUs too", "name the devices that it needs")


def _check_id_maps(id_maps: list[dict[str, Any]], findings: Findings) -> None:
    """Neither an id inside nor one on the host may be in two ranges; the kernel takes no such map."""
    for kind, whose in (("u", "user"), ("g", "group")):
        given = _id_ranges(id_maps, kind)
        for side, name, ranges in ((0, "container_id", given), (1, "host_id", given + _id_gaps(given))):
            spans = sorted((line[side], line[side] + line[2]) for line in ranges)
            twice = [span[0] for before, span in zip(spans, spans[1:]) if span[0] < before[1]]
            if twice:
                fault = f"{whose} {name} {twice[0]} is mapped twice"
                if side:
                    fault += f" (what is not listed is mapped to {idmap.DEFAULT_HOST} and up)"
                findings.wrong(("id_maps",), MISSING, fault, "make the ranges meet nowhere")


def _id_ranges(id_maps: list[dict[str, Any]], kind: str) -> list[tuple[int, int, int]]:
    """(first id inside, first id on the host, how many) of users ("u") or groups ("g")."""
    return [
        (int(line["container_id"]), int(line["host_id"]), int(line["size"]))
        for line in id_maps
        if line["type"][0] in (kind, "b")
    ]


def _id_gaps(lines: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The ranges between those given, mapped as Proxmox maps all ids when nothing is said."""
    gaps, start = [], 0
    for inside, _host, size in sorted(lines):
        if inside > start and start < idmap.DEFAULT_SIZE:
            gaps.append((start, idmap.DEFAULT_HOST + start, min(inside, idmap.DEFAULT_SIZE) - start))
        start = max(start, inside + size)
    if start < idmap.DEFAULT_SIZE:
        gaps.append((start, idmap.DEFAULT_HOST + start, idmap.DEFAULT_SIZE - start))
    return gaps


def idmap_lines(id_maps: list[dict[str, Any]]) -> list[str]:
    """The complete C(lxc.idmap) lines for what C(id_maps) asks for, users first, each by the id inside."""
    lines = []
    for kind in "ug":
        given = _id_ranges(id_maps, kind)
        lines += [f"lxc.idmap: {kind} {inside} {host} {size}" for inside, host, size in sorted(given + _id_gaps(given))]
    return lines
