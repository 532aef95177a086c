# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What C(phoenix_lxc_configs.json) says: read, merged, checked, ordered, and turned into role variables.

There is no Ansible in here, and only L(read) touches a file. A configuration is the whole JSON object with overrides
applied; an entry is the object of one CTID in C(lxc_configs).

A key that is C(null) or C("") says nothing, everywhere. Numbers and booleans may be written as text, because the shell
scripts that these files were made for never saw the difference.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable

from ansible_collections.phoenix.hypervisor.plugins.module_utils import firewall, gpu, vllm_flat
from ansible_collections.phoenix.hypervisor.plugins.module_utils.vllm_flat import Path, show_path

# The role variables that a declaration gives (docs/architecture.md has a row for each).
ROLE_VARIABLES = (
    "container_vmid",
    "container_address",
    "container_clone",
    "container_ostemplate",
    "container_storage",
    "container_disk_gb",
    "container_unprivileged",
    "container_config",
    "container_gpus",
    "container_mounts",
    "container_raw",
    "container_firewall",
    "container_template",
    "container_snapshot",
    "vllm_stack_name",
    "vllm_model_server_engine_config",
)

# An unprivileged container's ids, as Proxmox maps them when nothing else is said.
_IDMAP_HOST = 100000
_IDMAP_SIZE = 65536

_FEATURES = ("nesting", "keyctl", "fuse", "mknod", "force_rw_sys", "mount")
_MISSING = object()


@dataclass(frozen=True)
class Problem:
    """One mistake, or one note.

    :ivar file: the file that says it
    :ivar ctid: the CTID it is about, "" for the file as a whole
    :ivar path: the place inside the CTID's entry, or inside the file
    :ivar value: the value there; left out of the sentence when there is none to show
    :ivar fault: what is wrong with it: continues a sentence that begins with the value
    :ivar remedy: what is allowed, what to do
    """

    file: str
    ctid: str
    path: Path
    value: Any
    fault: str
    remedy: str

    def __str__(self) -> str:
        place = [f"CTID {self.ctid}"] if self.ctid else []
        place += [f"key {show_path(self.path)}"] if self.path else []
        subject = "" if self.value is _MISSING else _show(self.value) + " "
        return ": ".join(filter(None, [self.file, ", ".join(place), f"{subject}{self.fault}; {self.remedy}."]))


class ConfigError(Exception):
    """A configuration that can't be used; C(problems) are all its mistakes, the text is a sentence for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


# --- reading ------------------------------------------------------------------------------------------------------


def read(path: str, file: str) -> bytes:
    """The content of a file.

    :param path: where it is
    :param file: its name, for messages
    :raises ConfigError: when it can't be read
    """
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except FileNotFoundError as error:
        missing = "correct its name in config_files or override_files, or create it"
        raise ConfigError([problem(file, (), "there is no such file", missing)]) from error
    except IsADirectoryError as error:
        raise ConfigError([problem(file, (), "it is a folder", "name the JSON file in it")]) from error
    except OSError as error:
        fault = f"it can't be read: {error.strerror}"
        raise ConfigError([problem(file, (), fault, "check its permissions")]) from error


def parse(content: bytes, file: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    :param content: the file's content, UTF-8, with or without a byte order mark
    :param file: its name, for messages
    :raises ConfigError: when it isn't a JSON object, or names a key twice in one object
    """

    def refuse(fault: str, remedy: str) -> ConfigError:
        return ConfigError([problem(file, (), fault, remedy)])

    twice: list[str] = []

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(members)
        if len(result) < len(members):
            keys = [key for key, member in members]
            twice.extend(key for key in result if keys.count(key) > 1)
        return result

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is no JSON value")

    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(f"byte {error.start} is not UTF-8", "save the file as UTF-8") from error
    if not text.strip():
        raise refuse("it is empty", 'write a JSON object such as {"lxc_configs": {"900": {"name": "base"}}}')
    try:
        data = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise refuse(
            f"it is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}, column {error.colno}",
            "correct it there or just before",
        ) from error
    except RecursionError as error:
        raise refuse("it is nested too deeply to be read", "check it for brackets that are never closed") from error
    except ValueError as error:
        raise refuse(f"it is not JSON: {error}", "replace that value") from error
    if twice:
        key = twice[0]
        lines = [number for number, line in enumerate(text.splitlines(), 1) if f"{json.dumps(key)}" in line]
        raise refuse(
            f"the key {json.dumps(key, ensure_ascii=False)} is twice in one object (look at "
            f"{'line' if len(lines) == 1 else 'lines'} {', '.join(map(str, lines)) or 'with escapes in the key'})",
            "keep one of them",
        )
    if not isinstance(data, dict):
        raise refuse(f"it holds {_kind(data)} at the top", 'write a JSON object such as {"lxc_configs": {…}}')
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise refuse("it holds half of a surrogate pair (\\ud800 to \\udfff alone)", "write it whole") from error
    return data


def merge_patch(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396): objects are merged, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def combine(configs: list[tuple[str, dict[str, Any]]], overrides: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """One configuration from several files.

    :param configs: (file name, content) of the files that declare containers; no CTID may be in two of them
    :param overrides: (file name, content) of the merge patches, applied in order; they can't add a CTID
    :raises ConfigError: when a file has not the right shape, declares a CTID again or overrides an unknown one
    """
    problems: list[Problem] = []
    result: dict[str, Any] = {}
    declared: dict[str, str] = {}
    for file, data in configs:
        containers = data.get("lxc_configs", _MISSING)
        if not isinstance(containers, dict):
            problems.append(_shape_problem(file, containers))
            continue
        for ctid in containers:
            if ctid in declared:
                problems.append(
                    Problem(file, ctid, (), _MISSING, f"it is declared in {declared[ctid]} too", "keep one of the two")
                )
            declared.setdefault(ctid, file)
        for key, value in data.items():
            if key not in ("lxc_configs", "$schema") and key in result and result[key] != value:
                problems.append(Problem(file, "", (key,), value, "differs from an earlier file's", "say it once"))
        result = {**result, **data, "lxc_configs": {**result.get("lxc_configs", {}), **containers}}
    for file, data in overrides:
        containers = data.get("lxc_configs", {})
        if not isinstance(containers, dict):
            problems.append(_shape_problem(file, containers))
            continue
        unknown = [ctid for ctid in containers if ctid not in declared]
        problems += [
            Problem(
                file,
                ctid,
                (),
                _MISSING,
                "it overrides a container that no file declares",
                _known_ctids(sorted(declared)),
            )
            for ctid in unknown
        ]
        result = merge_patch(result, data)
    if problems:
        raise ConfigError(problems)
    return result


def blame(problem: Problem, sources: list[tuple[str, dict[str, Any]]]) -> Problem:
    """The same problem with the file that gives the value: the last one that has something at that place.

    :param sources: (file name, content) in the order in which they were applied
    """
    path = (("lxc_configs", problem.ctid) if problem.ctid else ()) + problem.path
    best, deepest = problem.file, 0
    for file, data in sources:
        depth = _depth(data, path)
        if depth >= deepest:
            best, deepest = file, depth
    return replace(problem, file=best)


def problem(file: str, path: Path, fault: str, remedy: str, ctid: str = "") -> Problem:
    """A mistake that shows no value, for what is outside the JSON files (the source, the limit)."""
    return Problem(file, ctid, path, _MISSING, fault, remedy)


def _depth(data: Any, path: Path) -> int:
    for depth, step in enumerate(path):
        known = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
        if step not in known:
            return depth
        data = data[step]
    return len(path)


def _shape_problem(file: str, containers: Any) -> Problem:
    remedy = 'write an object with an entry for each CTID: {"lxc_configs": {"900": {"name": "base"}}}'
    if containers is _MISSING:
        return Problem(file, "", (), _MISSING, "there is no lxc_configs in it", remedy)
    return Problem(file, "", ("lxc_configs",), _MISSING, f"it is {_kind(containers)}", remedy)


# --- one entry ----------------------------------------------------------------------------------------------------


class _Findings:
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
Parser = Callable[[Any, Path, _Findings], Any]


def _flag(value: Any, path: Path, findings: _Findings) -> bool | None:
    if isinstance(value, bool):
        return value
    known = {"true": True, "1": True, "false": False, "0": False}
    text = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if text in known:
        return known[text]
    return findings.wrong(path, value, "is neither true nor false", "write true or false")


def _whole(low: int, high: int | None = None, unit: str = "") -> Parser:
    span = f"from {low} to {high}" if high is not None else f"of at least {low}"

    def parse_whole(value: Any, path: Path, findings: _Findings) -> int | None:
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


def _fraction(value: Any, path: Path, findings: _Findings) -> float | None:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        number = 0.0
    if 0 < number <= 1:
        return number
    return findings.wrong(path, value, "is not a share of the memory above 0 and up to 1", "write one such as 0.9")


def _text(pattern: str = r"[^\x00-\x1f\x7f]+", what: str = "text in one line", example: str = "") -> Parser:
    compiled = re.compile(pattern)

    def parse_text(value: Any, path: Path, findings: _Findings) -> str | None:
        # Some of these values look like numbers and were written as such; a shell script didn't mind.
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(text, str) and compiled.fullmatch(text.strip()):
            return text.strip()
        return findings.wrong(path, value, f"is not {what}", f"write {example or 'that'}")

    return parse_text


def _one_of(*allowed: str) -> Parser:
    def parse_one_of(value: Any, path: Path, findings: _Findings) -> str | None:
        for candidate in allowed:
            if isinstance(value, str) and value.strip().lower() == candidate.lower():
                return candidate
        return findings.wrong(path, value, "is not known here", f"write {_either(allowed)}")

    return parse_one_of


def _list(item: Parser) -> Parser:
    def parse_list(value: Any, path: Path, findings: _Findings) -> list[Any] | None:
        if not isinstance(value, list):
            return findings.wrong(path, value, "is not a list", "put it in brackets: [ … ]")
        parsed = (item(member, (*path, place), findings) for place, member in enumerate(value))
        return [member for member in parsed if member is not None]

    return parse_list


def _object(keys: dict[str, Parser], needed: tuple[str, ...] = ()) -> Parser:
    def parse_object(value: Any, path: Path, findings: _Findings) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            return findings.wrong(path, value, "is not an object", "put it in braces: { … }")
        result = _parse_keys(value, keys, path, findings)
        for key in needed:
            if value.get(key) in (None, ""):
                findings.wrong((*path, key), _MISSING, "it is missing", "add it")
        return result if all(key in result for key in needed) else None

    return parse_object


def _map_of(member: Parser) -> Parser:
    def parse_map(value: Any, path: Path, findings: _Findings) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            return findings.wrong(path, value, "is not an object", "put it in braces: { … }")
        parsed = {key: member(item, (*path, key), findings) for key, item in value.items() if item is not None}
        return {key: item for key, item in parsed.items() if item is not None}

    return parse_map


def _anything(value: Any, path: Path, findings: _Findings) -> Any:
    return value


def _parse_keys(value: dict[str, Any], keys: dict[str, Parser], path: Path, findings: _Findings) -> dict[str, Any]:
    result = {}
    for key, member in value.items():
        if key not in keys:
            findings.unknown.append((*path, key))
        elif member is not None and member != "":
            parsed = keys[key](member, (*path, key), findings)
            if parsed is not None:
                result[key] = parsed
    return result


def _address_or_word(value: Any, path: Path, findings: _Findings) -> str | None:
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in ("dhcp", "manual"):
            return text.lower()
        try:
            if "/" in text and ipaddress.IPv4Interface(text) and text.rpartition("/")[2].isdigit():
                return text
        except ValueError:
            pass
    return findings.wrong(
        path,
        value,
        "is not an IPv4 address with the length of its network's prefix",
        'write one such as "10.92.0.121/24", or "dhcp"',
    )


def _address(value: Any, path: Path, findings: _Findings) -> str | None:
    try:
        return str(ipaddress.ip_address(value.strip() if isinstance(value, str) else ""))
    except ValueError:
        return findings.wrong(path, value, "is not an IP address", "write one such as 10.92.0.1")


def _addresses(value: Any, path: Path, findings: _Findings) -> list[str] | None:
    """A list, or text with commas or blanks between the addresses."""
    members = re.split(r"[\s,;]+", value.strip()) if isinstance(value, str) else value
    return _list(_address)(members, path, findings)


_mac_text = _text(
    r"[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}",
    "the MAC address of a network card",
    '"BC:24:11:00:09:21" or the like',
)


def _mac(value: Any, path: Path, findings: _Findings) -> str | None:
    text = _mac_text(value, path, findings)
    return text.upper() if text else None


def _gpus(value: Any, path: Path, findings: _Findings) -> list[int] | None:
    text = str(value).strip().lower() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if text == "none":
        return []
    if re.fullmatch(r"\d{1,2}(\s*,\s*\d{1,2})*", text):
        return sorted({int(number) for number in text.split(",")})
    return findings.wrong(path, value, "does not say which GPUs", 'write "none", or their numbers: "0" or "0,1"')


def _pct_option(value: Any, path: Path, findings: _Findings) -> dict[str, Any] | None:
    result: dict[str, Any] = {}
    # A value of `mount` separates with semicolons, so a comma always begins the next option.
    for option in value.split(",") if isinstance(value, str) else [None]:
        name, equals, setting = (option or "").strip().partition("=")
        name, setting = name.strip(), setting.strip()
        if not equals or name not in _FEATURES or not (setting in ("0", "1") or (name == "mount" and setting)):
            return findings.wrong(
                path,
                value,
                "is no feature of a container",
                f'write "name=1" or "name=0"; names are {", ".join(_FEATURES)}',
            )
        result[name] = setting if name == "mount" else int(setting)
    return result


def _raw_line(value: Any, path: Path, findings: _Findings) -> str | None:
    # The first "=" or ":" separates; whatever follows it, commas included, is the value.
    pattern = r" *(lxc\.[A-Za-z0-9_.-]+) *[=:] *([^\x00-\x1f\x7f]*?) *"
    match = re.fullmatch(pattern, value) if isinstance(value, str) else None
    if match:
        return f"{match.group(1)}: {match.group(2)}"
    return findings.wrong(path, value, "is not a line of LXC's configuration", 'write "lxc.key=value" in one line')


def _absolute(value: Any, path: Path, findings: _Findings) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"/[^\x00-\x1f\x7f,]*", value) and ".." not in value.split("/"):
        return "/" + "/".join(part for part in value.split("/") if part not in ("", "."))
    return findings.wrong(
        path, value, 'is not an absolute path without ".." and commas', 'write one such as "/tank/models"'
    )


def _volume(value: Any, path: Path, findings: _Findings) -> dict[str, Any] | None:
    """A volume, in the words of these files (C(pool), C(mount_point)) or in Proxmox's (C(storage), C(mp))."""
    before = len(findings.problems)
    keys = {
        "name": _text(),
        "pool": _storage,
        "storage": _storage,
        "size_gb": _whole(1, unit=", in GiB"),
        "mount_point": _absolute,
        "mp": _absolute,
    }
    volume = _object(keys)(value, path, findings)
    if volume is None:
        return None
    for key, other in (("pool", "storage"), ("mount_point", "mp")):
        if other in volume and volume.setdefault(key, volume[other]) != volume[other]:
            findings.wrong((*path, other), volume[other], f"differs from {key}", "keep one of the two")
    for names in (("mount_point", "mp"), ("size_gb",)):
        if all(value.get(name) in (None, "") for name in names):
            findings.wrong((*path, names[0]), _MISSING, "it is missing", "add it")
    return volume if len(findings.problems) == before else None


class _RulePlace:
    """Where a rule is in the JSON. The checks are those of the module pct_firewall, before anything runs."""

    def __init__(self, path: Path, findings: _Findings) -> None:
        self.path, self.findings = path, findings

    def wrong(self, key: str, fault: str, remedy: str) -> firewall.FirewallError:
        key = "port" if key == "dport" else key
        self.findings.wrong((*self.path, key), _MISSING, fault, remedy)
        return firewall.FirewallError(fault)


def _rule(value: Any, path: Path, findings: _Findings) -> dict[str, Any] | None:
    """A rule of the firewall, in Proxmox's words; a macro's action, C(SSH(ACCEPT)), becomes C(macro) and C(action)."""
    before = len(findings.problems)
    keys = dict.fromkeys(("type", "action", "source", "dest", "proto", "port", "comment"), _text())
    rule = _object(keys, needed=("type", "action"))(value, path, findings)
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


def _argument(name: str, value: Any, path: Path, findings: _Findings) -> Any:
    """One argument of the model server, given in any form."""
    parser = _ARGUMENTS.get(name.lstrip("-").replace("-", "_"))
    return parser(value, path, findings) if parser else value


def _argument_value(value: Any, path: Path, findings: _Findings) -> Any:
    return _argument(path[-1], value, path, findings)


def _name_or_names(value: Any, path: Path, findings: _Findings) -> Any:
    parser: Parser = _list(_text()) if isinstance(value, list) else _text()
    return parser(value, path, findings)


def _word(value: Any, path: Path, findings: _Findings) -> str | None:
    if isinstance(value, str) and "\x00" not in value:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return findings.wrong(path, value, "is no word of a command line", "write text")


def _word_list(value: Any, path: Path, findings: _Findings) -> list[str] | None:
    return _list(_word)([value] if isinstance(value, str) else value, path, findings)


_name = _text(
    r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*",
    "a host name (letters, digits, and hyphens between them)",
    '"Template-VLLM" or the like',
)
_interface = _text(
    r"[A-Za-z0-9_.-]{1,15}", "the name of a network interface (up to 15 letters and digits)", '"vmbr0" or the like'
)
_storage = _text(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]", "the name of a Proxmox storage", '"local-zfs" or the like')
_ctid = _whole(100, 999999999, ": a CTID")
_port = _whole(1, 65535, ": a port")
_length = _text(r"\d+|\d+(\.\d+)?[kKmMgG]|auto|-1", "a length in tokens", '8192, "8k" or "auto"')


def _tokens(value: Any, path: Path, findings: _Findings) -> Any:
    text = _length(value, path, findings)
    if text == "0":
        return findings.wrong(path, value, "is not a length in tokens", 'write 8192, "8k" or "auto"')
    return int(text) if text and re.fullmatch(r"-?\d+", text) else text


# Arguments of the model server that are checked here wherever they are given; the others are vLLM's business.
_ARGUMENTS: dict[str, Parser] = {
    "port": _port,
    "gpu_memory_utilization": _fraction,
    "tensor_parallel_size": _whole(1),
    "pipeline_parallel_size": _whole(1),
    "max_model_len": _tokens,
}

_NETWORK: dict[str, Parser] = {
    "name": _interface,
    "bridge": _interface,
    "ip": _address_or_word,
    "gw": _address,
    "nameservers": _addresses,
    "nameserver": _addresses,
    "type": _one_of("veth"),
    "parent": _anything,
    "hwaddr": _mac,
}

# Every key that an entry may have, with what reads it.
_KEYS: dict[str, Parser] = {
    "name": _name,
    "node": _text(),
    "memory_mb": _whole(16, unit=", in MiB"),
    "cores": _whole(1, 8192),
    "swap_mb": _whole(0, unit=", in MiB"),
    "start_at_boot": _flag,
    "boot_order": _whole(0),
    "boot_delay": _whole(0, unit=", in seconds"),
    "template": _text(),
    "template_file": _text(),
    "clone_from_ctid": _ctid,
    "template_snapshot_name": _text(
        r"(?!(?:current|vzdump)$)[A-Za-z][A-Za-z0-9_-]{1,39}",
        "the name of a snapshot (a letter, then letters, digits, - and _, at most 40; not current or vzdump)",
        '"gpu-snapshot" or the like',
    ),
    "is_template": _flag,
    "storage_pool": _storage,
    "storage_size_gb": _whole(1, unit=", in GiB"),
    "network_config": _object(_NETWORK),
    "mac_address": _mac,
    "secondary_network_config": _object(_NETWORK),
    "gpu_assignment": _gpus,
    "unprivileged": _flag,
    "features": _list(_text(r"[A-Za-z0-9_.-]+", "the name of a feature", '"nvidia" or the like')),
    "application_script": _text(),
    "vllm_stack": _text(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "the name of a stack", '"cpu" or the like'),
    "vllm_engine_config": _map_of(_map_of(_argument_value)),
    "vllm_model": _text(),
    "vllm_model_type": _one_of("chat", "embedding"),
    "vllm_quantization": _text(),
    "vllm_max_model_len": _tokens,
    "vllm_gpu_memory_utilization": _fraction,
    "vllm_tensor_parallel_size": _whole(1),
    "vllm_served_model_name": _name_or_names,
    "vllm_port": _port,
    "vllm_trust_remote_code": _flag,
    "vllm_parameters": _map_of(_argument_value),
    "vllm_args": _word_list,
    "pct_options": _list(_pct_option),
    "lxc_options": _list(_raw_line),
    "apparmor_profile": _text(),
    "apparmor_manages_nesting": _flag,
    "id_maps": _list(
        _object(
            {
                "type": _one_of("u", "g", "uid", "gid", "user", "group", "both"),
                "host_id": _whole(0, 4294967294),
                "container_id": _whole(0, 4294967294),
                "size": _whole(1, 4294967294),
            },
            needed=("type", "host_id", "container_id", "size"),
        )
    ),
    "zfs_volumes": _list(_volume),
    "volumes": _list(_volume),
    "mount_points": _list(
        _object(
            {
                "host_path": _absolute,
                "container_path": _absolute,
                "owner_uid": _whole(0, 4294967294),
                "owner_gid": _whole(0, 4294967294),
            },
            needed=("host_path", "container_path"),
        )
    ),
    "firewall": _object({"enabled": _flag, "rules": _list(_rule)}),
    "dependencies": _list(_ctid),
    "ports": _list(_anything),
    "health_check": _object(
        {"command": _text(r"(?s)[^\x00]+"), "retries": _whole(0), "interval": _whole(0, unit=", in seconds")}
    ),
    "tests": _map_of(_list(_object({"name": _text(), "type": _text(), "path": _text()}))),
    "traefik_service": _object({"name": _text(), "port": _port, "scheme": _one_of("http", "https", "h2c", "tcp")}),
    "portainer_role": _text(),
    "bootstrap_ca_url": _text(
        r"https?://[^\s\x00-\x1f]+", "an address of a CA", '"https://10.0.0.10:9000" or the like'
    ),
    "trigger_sync_on_completion": _flag,
    "enable_lifecycle_snapshots": _flag,
}
_TOP_KEYS = ("$schema", "nvidia_driver_version", "nvidia_repo_url", "nvidia_runfile_url", "lxc_configs")


def _entry(entry: dict[str, Any], findings: _Findings) -> dict[str, Any]:
    """An entry with each key in its one right form; what is silent or wrong is left out."""
    result = _parse_keys(entry, _KEYS, (), findings)

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


def _check_network(key: str, network: dict[str, Any], mac: str | None, findings: _Findings) -> None:
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


def _check_raw(result: dict[str, Any], findings: _Findings) -> None:
    profile = result.get("apparmor_profile")
    for line in result.get("lxc_options", []):
        key, value = line.split(": ", 1)
        if profile and key == "lxc.apparmor.profile" and value != profile:
            findings.wrong(("apparmor_profile",), profile, f"differs from lxc_options, {value}", "keep one of the two")
        if result.get("id_maps") and key == "lxc.idmap":
            findings.wrong(("id_maps",), _MISSING, "lxc_options has lxc.idmap lines too", "keep one of the two")
            break


def _check_mounts(result: dict[str, Any], findings: _Findings) -> None:
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


def _check_volumes(result: dict[str, Any], entry: dict[str, Any], findings: _Findings) -> None:
    if entry.get("storage_pool") not in (None, ""):
        return
    for key in ("zfs_volumes", "volumes"):
        for place, volume in enumerate(result.get(key, [])):
            if "pool" not in volume:
                findings.wrong((key, place), _MISSING, "it names no storage", "add pool here, or storage_pool for all")


def _check_snapshots(result: dict[str, Any], findings: _Findings) -> None:
    for key in ("template_snapshot_name", "enable_lifecycle_snapshots"):
        if result.get(key) and result.get("mount_points"):
            fault = "Proxmox takes no snapshot of a container that has bind mounts (mount_points)"
            findings.wrong((key,), _MISSING, fault, "remove one of the two, or put the data on a volume (zfs_volumes)")


def _leave_gpus_to_the_assignment(result: dict[str, Any], findings: _Findings) -> None:
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


def _check_id_maps(id_maps: list[dict[str, Any]], findings: _Findings) -> None:
    """Neither an id inside nor one on the host may be in two ranges; the kernel takes no such map."""
    for kind, whose in (("u", "user"), ("g", "group")):
        given = _id_ranges(id_maps, kind)
        for side, name, ranges in ((0, "container_id", given), (1, "host_id", given + _id_gaps(given))):
            spans = sorted((line[side], line[side] + line[2]) for line in ranges)
            twice = [span[0] for before, span in zip(spans, spans[1:]) if span[0] < before[1]]
            if twice:
                fault = f"{whose} {name} {twice[0]} is mapped twice"
                if side:
                    fault += f" (what is not listed is mapped to {_IDMAP_HOST} and up)"
                findings.wrong(("id_maps",), _MISSING, fault, "make the ranges meet nowhere")


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
        if inside > start and start < _IDMAP_SIZE:
            gaps.append((start, _IDMAP_HOST + start, min(inside, _IDMAP_SIZE) - start))
        start = max(start, inside + size)
    if start < _IDMAP_SIZE:
        gaps.append((start, _IDMAP_HOST + start, _IDMAP_SIZE - start))
    return gaps


def idmap_lines(id_maps: list[dict[str, Any]]) -> list[str]:
    """The complete C(lxc.idmap) lines for what C(id_maps) asks for, users first, each by the id inside."""
    lines = []
    for kind in "ug":
        given = _id_ranges(id_maps, kind)
        lines += [f"lxc.idmap: {kind} {inside} {host} {size}" for inside, host, size in sorted(given + _id_gaps(given))]
    return lines


# --- the whole configuration --------------------------------------------------------------------------------------


def check(config: dict[str, Any], file: str) -> list[Problem]:
    """All mistakes in a configuration.

    :param config: the JSON object, overrides applied
    :param file: its name, for messages
    """
    return examine(config, file)[0]


def examine(
    config: dict[str, Any], file: str, nodes: Iterable[str] | None = None
) -> tuple[list[Problem], list[Problem]]:
    """All mistakes in a configuration, and what is no mistake but worth a word (each unknown key once).

    :param config: the JSON object, overrides applied
    :param file: its name, for messages
    :param nodes: the names of the Proxmox VE nodes that an entry may name, when they are known
    """
    containers = config.get("lxc_configs", _MISSING)
    if not isinstance(containers, dict):
        return [_shape_problem(file, containers)], []
    problems: list[Problem] = []
    notes: list[Problem] = []
    unknown: dict[str, list[str]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for ctid, entry in containers.items():
        if not _is_ctid(ctid):
            problems.append(
                problem(file, ("lxc_configs", ctid), "it is no CTID", "write digits, from 100 to 999999999")
            )
            continue
        if not isinstance(entry, dict):
            problems.append(Problem(file, ctid, (), entry, "is not an object", 'write {"name": …}'))
            continue
        findings = _Findings()
        entries[ctid] = _entry(entry, findings)
        problems += [Problem(file, ctid, *finding) for finding in findings.problems]
        notes += [Problem(file, ctid, *finding) for finding in findings.notes]
        for path in findings.unknown:
            # A list's index is no part of the key's name.
            unknown.setdefault(show_path(tuple(step for step in path if isinstance(step, str))), []).append(ctid)
    problems += _check_references(entries, containers, nodes, file)
    problems += _check_bind_mounts(entries, file)
    problems += _check_twice(entries, file)
    notes += [
        problem(file, (key,), "this key is not known", "it is kept in phoenix_settings")
        for key in config
        if key not in _TOP_KEYS
    ]
    for key, ctids in unknown.items():
        who = list(dict.fromkeys(ctids))
        text = ", ".join(who[:3]) + (f" and {len(who) - 3} more" if len(who) > 3 else "")
        notes.append(problem(file, (key,), "this key is not known", "it is kept in phoenix_definition", ctid=text))
    for ctid, entry in entries.items():
        elsewhere = [str(other) for other in entry.get("dependencies", []) if str(other) not in containers]
        if elsewhere:
            fault = f"{', '.join(elsewhere)} {'is' if len(elsewhere) == 1 else 'are'} not declared"
            notes.append(problem(file, ("dependencies",), fault, "whether it runs is left to you", ctid=ctid))
    return problems, notes


def _is_ctid(text: str) -> bool:
    return bool(re.fullmatch(r"[1-9][0-9]{2,8}", text))


def _check_references(
    entries: dict[str, dict[str, Any]], containers: dict[str, Any], nodes: Iterable[str] | None, file: str
) -> Iterator[Problem]:
    clones: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for ctid, entry in entries.items():
        source = entry.get("clone_from_ctid")
        clones[ctid] = [] if source is None or str(source) not in entries else [str(source)]
        others = [str(other) for other in entry.get("dependencies", []) if str(other) in entries]
        after[ctid] = list(dict.fromkeys(clones[ctid] + others))
        declared = containers[ctid]
        if nodes is not None and "node" in entry and entry["node"] not in nodes:
            yield Problem(file, ctid, ("node",), entry["node"], "is not among the nodes", f"write {_either(nodes)}")
        if source is not None and str(source) not in containers:
            yield Problem(
                file,
                ctid,
                ("clone_from_ctid",),
                declared["clone_from_ctid"],
                "is a container that is not declared",
                f"declare it too, or clone from one that is: {_some(sorted(set(containers) - {ctid}))}",
            )
        if all(declared.get(key) in (None, "") for key in ("clone_from_ctid", "template", "template_file")):
            yield Problem(
                file,
                ctid,
                (),
                _MISSING,
                "it says neither what it is cloned from nor which template it is made from",
                'add "clone_from_ctid": "900" or "template": "local:vztmpl/debian-12-….tar.zst"',
            )
    in_circles: set[str] = set()
    for graph, key, what in (
        (clones, "clone_from_ctid", "is cloned, in the end, from itself"),
        (after, "dependencies", "waits, in the end, for itself"),
    ):
        for circle in _circles(graph):
            if not in_circles.intersection(circle):
                in_circles.update(circle)
                yield Problem(
                    file,
                    circle[0],
                    (key,),
                    _MISSING,
                    f"it {what}: {' → '.join([*circle, circle[0]])}",
                    "break the circle",
                )


def _check_bind_mounts(entries: dict[str, dict[str, Any]], file: str) -> Iterator[Problem]:
    """Proxmox can't clone a container that has a bind mount."""
    clones: dict[str, list[str]] = {}
    for ctid, entry in entries.items():
        clones.setdefault(str(entry.get("clone_from_ctid")), []).append(ctid)
    for ctid, entry in entries.items():
        if entry.get("mount_points") and ctid in clones:
            fault = f"Proxmox can't clone bind mounts, and CTID {_some(clones[ctid])} is cloned from this container"
            remedy = "declare the mount points in the clones instead"
            yield Problem(file, ctid, ("mount_points",), _MISSING, fault, remedy)


def _check_twice(entries: dict[str, dict[str, Any]], file: str) -> Iterator[Problem]:
    """Host names, addresses and MAC addresses that two containers have."""
    seen: dict[tuple[str, str], tuple[str, Path]] = {}
    for ctid, entry in sorted(entries.items(), key=lambda item: int(item[0])):
        uses: list[tuple[str, str, Path, str]] = []
        if "name" in entry:
            uses.append(("name", entry["name"].lower(), ("name",), entry["name"]))
        for key in ("network_config", "secondary_network_config"):
            network = entry.get(key, {})
            if "/" in network.get("ip", ""):
                uses.append(("ip", network["ip"].partition("/")[0], (key, "ip"), network["ip"]))
            if "hwaddr" in network and network["hwaddr"] != entry.get("mac_address"):
                uses.append(("mac", network["hwaddr"], (key, "hwaddr"), network["hwaddr"]))
        if "mac_address" in entry:
            uses.append(("mac", entry["mac_address"], ("mac_address",), entry["mac_address"]))
        for kind, identity, path, value in uses:
            other, other_path = seen.setdefault((kind, identity), (ctid, path))
            if (other, other_path) != (ctid, path):
                yield Problem(
                    file,
                    ctid,
                    path,
                    value,
                    f"belongs to CTID {other} already ({show_path(other_path)})",
                    "give each its own",
                )


def _circles(graph: dict[str, list[str]]) -> list[list[str]]:
    """The circles in a graph, one for each knot, each from its smallest member on."""
    levels = _levels(graph)
    rest = {name for name in graph if name not in levels}
    circles = []
    while rest:
        trail: list[str] = [min(rest, key=int)]
        while True:
            following = [name for name in graph[trail[-1]] if name in rest]
            if not following:
                # It only leads to a circle that was found before.
                rest.discard(trail[-1])
                break
            if following[0] in trail:
                circle = trail[trail.index(following[0]) :]
                start = circle.index(min(circle, key=int))
                circles.append(circle[start:] + circle[:start])
                rest.difference_update(trail)
                break
            trail.append(following[0])
    return circles


def _levels(graph: dict[str, list[str]]) -> dict[str, int]:
    """For each name how many steps it is from one that waits for nothing; without those that wait for themselves."""
    waiting = {name: len(set(others)) for name, others in graph.items()}
    followers: dict[str, list[str]] = {name: [] for name in graph}
    for name, others in graph.items():
        for other in set(others):
            followers[other].append(name)
    levels: dict[str, int] = {}
    ready = [name for name, count in waiting.items() if count == 0]
    level = 0
    while ready:
        levels.update(dict.fromkeys(ready, level))
        following = []
        for name in ready:
            for follower in followers[name]:
                waiting[follower] -= 1
                if waiting[follower] == 0:
                    following.append(follower)
        ready, level = following, level + 1
    return levels


def lineage(config: dict[str, Any], ctid: str) -> list[int]:
    """The CTIDs that a container is cloned from, oldest first, and its own at the end.

    :param config: a configuration without problems
    """
    result: list[int] = []
    current: str | None = str(ctid)
    while current is not None and int(current) not in result:
        result.insert(0, int(current))
        source = config["lxc_configs"][current].get("clone_from_ctid")
        current = None if source in (None, "") else str(int(source))
    return result


def waves(config: dict[str, Any]) -> dict[int, int]:
    """The wave of each CTID: 0 for those that wait for nothing, else one more than the last that they wait for.

    A container waits for its clone source and for its dependencies, as far as they are in the configuration.

    :param config: a configuration without problems
    """
    containers = config["lxc_configs"]
    graph: dict[str, list[str]] = {}
    for ctid, entry in containers.items():
        others = [entry.get("clone_from_ctid"), *(entry.get("dependencies") or [])]
        known = [str(int(other)) for other in others if other not in (None, "")]
        graph[ctid] = [other for other in known if other in containers]
    return {int(ctid): wave for ctid, wave in _levels(graph).items()}


def features(entry: dict[str, Any]) -> list[str]:
    """The features of an entry, in its order."""
    return _entry(entry, _Findings()).get("features", [])


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says at its top, for all containers."""
    return {key: value for key, value in config.items() if key not in ("lxc_configs", "$schema")}


def deprecations(entry: dict[str, Any]) -> list[str]:
    """A sentence for each old form that an entry uses, with what to write today."""
    parsed = _entry(entry, _Findings())
    old = vllm_flat.flat_keys_of(entry)
    if not old:
        return []
    today = json.dumps({"vllm_engine_config": parsed["_engine_config"]}, ensure_ascii=False)[1:-1]
    return [f"{', '.join(old)}: the flat form is old; write this in its place: {today}"]


# --- role variables -----------------------------------------------------------------------------------------------


def role_variables(ctid: str, entry: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What an entry means for the roles: those of L(ROLE_VARIABLES) that it speaks of.

    :param ctid: the entry's CTID
    :param entry: the entry, overrides applied, without problems
    :param config: the configuration that it is in: what is cloned depends on the source's entry, too
    """
    declared = _entry(entry, _Findings())
    result: dict[str, Any] = {"container_vmid": int(ctid)}
    network = declared.get("network_config", {})
    if "ip" in network:
        result["container_address"] = network["ip"].partition("/")[0] if "/" in network["ip"] else ""
    result["container_clone"] = _clone(declared, config)
    result["container_ostemplate"] = "" if result["container_clone"] else declared.get("template_file", "")
    for key, variable in (("storage_pool", "container_storage"), ("storage_size_gb", "container_disk_gb")):
        if key in declared:
            result[variable] = declared[key]
    result["container_unprivileged"] = declared.get("unprivileged", True)
    result["container_config"] = _proxmox_config(declared)
    if "gpu_assignment" in declared:
        result["container_gpus"] = declared["gpu_assignment"]
    # Said even where there are none, so that those of an earlier declaration are removed.
    result["container_mounts"] = _mounts(declared)
    result["container_raw"] = _raw_lines(declared)
    if declared.get("firewall"):
        result["container_firewall"] = declared["firewall"]
    if "is_template" in declared:
        result["container_template"] = declared["is_template"]
    if "template_snapshot_name" in declared:
        result["container_snapshot"] = declared["template_snapshot_name"]
    stack = _stack(ctid, config)
    if stack:
        result["vllm_stack_name"] = stack
    if declared["_engine_config"]:
        result["vllm_model_server_engine_config"] = declared["_engine_config"]
    return result


def _stack(ctid: str, config: dict[str, Any]) -> str:
    """The stack that a container names, or else the nearest of those that it is cloned from: it has theirs inside."""
    for member in reversed(lineage(config, ctid)):
        named = str(config["lxc_configs"][str(member)].get("vllm_stack") or "").strip()
        if named:
            return named
    return ""


def _clone(declared: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    if "clone_from_ctid" not in declared:
        return {}
    source = _entry(config["lxc_configs"][str(declared["clone_from_ctid"])], _Findings())
    clone: dict[str, Any] = {"vmid": declared["clone_from_ctid"]}
    if "template_snapshot_name" in source:
        clone["snapname"] = source["template_snapshot_name"]
    return clone


def _proxmox_config(declared: dict[str, Any]) -> dict[str, Any]:
    """The keys that Proxmox has a key for, named as there; an object is a property string."""
    result: dict[str, Any] = {}
    for key, ours in (("hostname", "name"), ("memory", "memory_mb"), ("swap", "swap_mb"), ("cores", "cores")):
        if ours in declared:
            result[key] = declared[ours]
    if "start_at_boot" in declared:
        result["onboot"] = int(declared["start_at_boot"])
    startup = {"order": declared["boot_order"]} if "boot_order" in declared else {}
    if "boot_delay" in declared:
        startup.update(up=declared["boot_delay"], down=declared["boot_delay"])
    if startup:
        result["startup"] = startup
    if "pct_options" in declared:
        options: dict[str, Any] = {}
        for option in declared["pct_options"]:
            options.update(option)
        if declared.get("apparmor_manages_nesting"):
            options.pop("nesting", None)
        result["features"] = options
    servers: list[str] = []
    mac = {"hwaddr": declared["mac_address"]} if "mac_address" in declared else {}
    for place, key in enumerate(("network_config", "secondary_network_config")):
        network = declared.get(key, mac if key == "network_config" else {})
        if not network:
            continue
        servers += [server for server in network.get("nameservers", []) if server not in servers]
        interface = {"name": network.get("name", f"eth{place}")}
        interface.update((name, network[name]) for name in ("bridge", "ip", "gw", "hwaddr") if name in network)
        if declared.get("firewall", {}).get("enabled"):
            interface["firewall"] = 1  # Proxmox filters no other cards
        result[f"net{place}"] = {**interface, "type": network.get("type", "veth")}
    if servers:
        result["nameserver"] = " ".join(servers)
    return result


def _mounts(declared: dict[str, Any]) -> list[dict[str, Any]]:
    mounts = []
    for mount in declared.get("mount_points", []):
        owner = {key: mount[key] for key in ("owner_uid", "owner_gid") if key in mount}
        mounts.append({"mp": mount["container_path"], "source": mount["host_path"], **owner})
    for volume in declared.get("zfs_volumes", []) + declared.get("volumes", []):
        storage = volume.get("pool") or declared["storage_pool"]
        mounts.append({"mp": volume["mount_point"], "storage": storage, "size_gb": volume["size_gb"]})
    return mounts


def _raw_lines(declared: dict[str, Any]) -> list[str]:
    lines = list(declared.get("lxc_options", []))
    if "apparmor_profile" in declared:
        lines.append(f"lxc.apparmor.profile: {declared['apparmor_profile']}")
    if declared.get("id_maps"):
        lines += idmap_lines(declared["id_maps"])
    return list(dict.fromkeys(lines))


# --- words --------------------------------------------------------------------------------------------------------


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _some(words: list[str]) -> str:
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "") or "there is none"


def _known_ctids(ctids: list[str]) -> str:
    return f"declared are {_some(ctids)}"
