# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What C(phoenix_lxc_configs.json) says: read, merged, checked, ordered, and turned into role variables.

There is no Ansible in here, and only L(read) touches a file. A configuration is the whole JSON object with overrides
applied; an entry is the object of one CTID in C(lxc_configs). What an entry may say is in C(lxc_entry.py).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    certificate,
    engine_args,
    json_lines,
    vllm_flat,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils.lxc_entry import (
    MISSING,
    TOP_KEYS,
    Findings,
    either,
    idmap_lines,
    kind_of,
    parse_entry,
    show,
    some,
)
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
    "nvidia_driver_version",
    "nvidia_repo_url",
    "nvidia_runfile_url",
    "vllm_stack_name",
    "vllm_stack_overrides",
    "vllm_model_server_engine_config",
    "certificate_ca_url",
    "certificate_ca_fingerprint",
    "certificate_services",
    "verify_health_check",
    "verify_tests",
)


@dataclass(frozen=True)
class Problem:
    """One mistake, or one note.

    :ivar file: the file that says it
    :ivar line: its line there, 0 when it isn't known
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
    line: int = 0

    def __str__(self) -> str:
        place = [f"CTID {self.ctid}"] if self.ctid else []
        place += [f"key {show_path(self.path)}"] if self.path else []
        subject = "" if self.value is MISSING else show(self.value) + " "
        file = f"{self.file}:{self.line}" if self.line else self.file
        sentence = ": ".join(filter(None, [file, ", ".join(place), f"{subject}{self.fault}; {self.remedy}."]))
        # A key may hold anything, the end of the line and what turns text around too.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence)


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


class File(NamedTuple):
    """A JSON file that was read.

    :ivar name: as messages have it
    :ivar data: its object
    :ivar text: its text, where its lines are looked up
    """

    name: str
    data: dict[str, Any]
    text: str = ""


def parse(content: bytes, file: str) -> File:
    """The JSON object that a file holds.

    :param content: the file's content, UTF-8, with or without a byte order mark
    :param file: its name, for messages
    :raises ConfigError: when it isn't a JSON object, or names a key twice in one object
    """

    def refuse(fault: str, remedy: str, line: int = 0) -> ConfigError:
        return ConfigError([replace(problem(file, (), fault, remedy), line=line)])

    has_twice = False

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal has_twice
        result = dict(members)
        has_twice = has_twice or len(result) < len(members)
        return result

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is no JSON value")

    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise refuse(f"byte {error.start} is not UTF-8", "save the file as UTF-8", line) from error
    if not text.strip():
        raise refuse("it is empty", 'write a JSON object such as {"lxc_configs": {"900": {"name": "base"}}}')
    try:
        data = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        fault = f"it is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
        raise refuse(fault, "correct it there or just before", error.lineno) from error
    except RecursionError as error:
        raise refuse("it is nested too deeply to be read", "check it for brackets that are never closed") from error
    except ValueError as error:
        line = json_lines.line_of_token(text, "NaN|-?Infinity|[0-9]{1000,}")
        raise refuse(f"it is not JSON: {error}", "replace that value", line) from error
    if not isinstance(data, dict):
        remedy = 'write a JSON object such as {"lxc_configs": {…}}'
        raise refuse(f"it holds {kind_of(data)} at the top", remedy, json_lines.Places(text).line(()))
    line = json_lines.line_of_half_character(text) if re.search(r"\\u[dD][89a-fA-F]", text) else 0
    if line:
        raise refuse("it holds half of a surrogate pair (\\ud800 to \\udfff alone)", "write it whole", line)
    if has_twice:
        found = json_lines.Places(text).twice()
        raise ConfigError(_twice(file, path, first, line) for path, first, line in found)
    return File(file, data, text)


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


def combine(configs: Sequence[File], overrides: Sequence[File]) -> dict[str, Any]:
    """One configuration from several files.

    :param configs: the files that declare containers; no CTID may be in two of them
    :param overrides: the merge patches, applied in order; they can't add a CTID
    :raises ConfigError: when a file has not the right shape, declares a CTID again or overrides an unknown one
    """
    problems: list[Problem] = []
    result: dict[str, Any] = {}
    declared: dict[str, str] = {}
    for file, data, _text in configs:
        containers = data.get("lxc_configs", MISSING)
        if not isinstance(containers, dict):
            problems.append(_shape_problem(file, containers))
            continue
        for ctid in containers:
            if ctid in declared:
                problems.append(
                    Problem(file, ctid, (), MISSING, f"it is declared in {declared[ctid]} too", "keep one of the two")
                )
            declared.setdefault(ctid, file)
        for key, value in data.items():
            if key not in ("lxc_configs", "$schema") and key in result and result[key] != value:
                problems.append(Problem(file, "", (key,), value, "differs from an earlier file's", "say it once"))
        result = {**result, **data, "lxc_configs": {**result.get("lxc_configs", {}), **containers}}
    for file, data, _text in overrides:
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
                MISSING,
                "it overrides a container that no file declares",
                f"declared are {some(sorted(declared))}",
            )
            for ctid in unknown
        ]
        result = merge_patch(result, data)
    if problems:
        raise ConfigError(locate(problems, [*configs, *overrides], is_of_file=True))
    return result


def locate(problems: Iterable[Problem], sources: Sequence[File], is_of_file: bool = False) -> list[Problem]:
    """The same problems, each with the file that gives the value, and its line there.

    :param sources: in the order in which they were applied; the last one that has something at a place gives it
    :param is_of_file: whether each problem names its file already
    """
    places: dict[str, json_lines.Places] = {}
    located = []
    for found in problems:
        path = (("lxc_configs", found.ctid) if found.ctid else ()) + found.path
        candidates = [source for source in sources if source.name == found.file or not is_of_file]
        best = max(reversed(candidates), key=lambda source: _depth(source.data, path), default=None)
        if best is not None:
            found = replace(found, file=best.name)
            if best.text:
                if best.name not in places:
                    places[best.name] = json_lines.Places(best.text)
                found = replace(found, line=places[best.name].line(path))
        located.append(found)
    return located


def problem(file: str, path: Path, fault: str, remedy: str, ctid: str = "") -> Problem:
    """A mistake that shows no value, for what is outside the JSON files (the source, the limit)."""
    return Problem(file, ctid, path, MISSING, fault, remedy)


def _twice(file: str, path: Path, first: int, line: int) -> Problem:
    is_in_entry = len(path) > 2 and path[0] == "lxc_configs"
    ctid, path = (str(path[1]), path[2:]) if is_in_entry else ("", path)
    fault = f"the key is there twice, first on line {first}"
    return Problem(file, ctid, path, MISSING, fault, "keep one of them", line)


def _depth(data: Any, path: Path) -> int:
    for depth, step in enumerate(path):
        known = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
        if step not in known:
            return depth
        data = data[step]
    return len(path)


def _shape_problem(file: str, containers: Any) -> Problem:
    remedy = 'write an object with an entry for each CTID: {"lxc_configs": {"900": {"name": "base"}}}'
    if containers is MISSING:
        return Problem(file, "", (), MISSING, "there is no lxc_configs in it", remedy)
    return Problem(file, "", ("lxc_configs",), MISSING, f"it is {kind_of(containers)}", remedy)


# --- the whole configuration --------------------------------------------------------------------------------------


class Model:
    """A configuration, read once: each entry in its one right form, what is wrong, and what there is to say.

    :ivar config: the JSON object, overrides applied
    :ivar entries: by CTID, each key in its one right form
    :ivar problems: all mistakes; with one of them, nothing but this and C(notes) can be used
    :ivar notes: what is no mistake but worth a word (each unknown key once)

    :param config: the JSON object, overrides applied
    :param file: its name, for messages
    :param nodes: the names of the Proxmox VE nodes that an entry may name, when they are known
    :param default_node: the node of entries that name none
    """

    def __init__(
        self, config: dict[str, Any], file: str, nodes: Iterable[str] | None = None, default_node: str = ""
    ) -> None:
        self.config = config
        self.entries: dict[str, dict[str, Any]] = {}
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self._lineages: dict[str, list[int]] = {}
        self._examine(file, nodes, default_node)

    def _examine(self, file: str, nodes: Iterable[str] | None, default_node: str) -> None:
        containers = self.config.get("lxc_configs", MISSING)
        if not isinstance(containers, dict):
            self.problems.append(_shape_problem(file, containers))
            return
        unknown: dict[str, list[tuple[str, Path]]] = {}
        for ctid, entry in containers.items():
            if not _is_ctid(ctid):
                remedy = "write digits, from 100 to 999999999"
                self.problems.append(problem(file, ("lxc_configs", ctid), "it is no CTID", remedy))
                continue
            if not isinstance(entry, dict):
                self.problems.append(Problem(file, ctid, (), entry, "is not an object", 'write {"name": …}'))
                continue
            findings = Findings()
            self.entries[ctid] = parse_entry(entry, findings)
            self.problems += [Problem(file, ctid, *finding) for finding in findings.problems]
            self.notes += [Problem(file, ctid, *finding) for finding in findings.notes]
            for path in findings.unknown:
                # A list's index is no part of the key's name.
                name = show_path(tuple(step for step in path if isinstance(step, str)))
                unknown.setdefault(name, []).append((ctid, path))
        self.problems += _check_references(self.entries, containers, nodes, file)
        self.problems += _check_bind_mounts(self.entries, file)
        self.problems += _check_twice(self.entries, file)
        self.problems += _check_certificates(self.entries, file)
        self.notes += _unknown_keys(self.config, unknown, file)
        self.notes += _check_dependencies(self.entries, containers, file)
        self.notes += _check_bridges(self.entries, default_node, file)
        self.notes += _check_shared_gpus(self.entries, default_node, file)

    def lineage(self, ctid: str) -> list[int]:
        """The CTIDs that a container is cloned from, oldest first, and its own at the end."""
        missing = []
        current: str | None = str(ctid)
        while current is not None and current not in self._lineages:
            missing.append(current)
            source = self.entries[current].get("clone_from_ctid")
            current = None if source is None else str(source)
        for member in reversed(missing):
            before = self._lineages[current] if current is not None else []
            self._lineages[member] = [*before, int(member)]
            current = member
        return self._lineages[str(ctid)]

    def waves(self) -> dict[int, int]:
        """The wave of each CTID: 0 for those that wait for nothing, else one more than the last that they wait for.

        A container waits for its clone source and for its dependencies, as far as they are in the configuration.
        """
        return {int(ctid): wave for ctid, wave in _levels(_waits_for(self.entries)).items()}

    def settings(self) -> dict[str, Any]:
        """What is said at the top, for all containers."""
        return {key: value for key, value in self.config.items() if key not in ("lxc_configs", "$schema")}

    def deprecations(self, ctid: str) -> list[str]:
        """A sentence for each old form that an entry uses, with what to write today."""
        old = vllm_flat.flat_keys_of(self.config["lxc_configs"][ctid])
        if not old:
            return []
        today = json.dumps({"vllm_engine_config": self.entries[ctid]["_engine_config"]}, ensure_ascii=False)[1:-1]
        return [f"{', '.join(old)}: the flat form is old; write this in its place: {today}"]

    def role_variables(self, ctid: str) -> dict[str, Any]:
        """What an entry means for the roles: those of L(ROLE_VARIABLES) that it speaks of."""
        declared = self.entries[ctid]
        result: dict[str, Any] = {"container_vmid": int(ctid)}
        network = declared.get("network_config", {})
        if "ip" in network:
            result["container_address"] = network["ip"].partition("/")[0] if "/" in network["ip"] else ""
        result["container_clone"] = self._clone(declared)
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
        for key in ("nvidia_driver_version", "nvidia_repo_url", "nvidia_runfile_url"):
            value = self.config.get(key)
            if isinstance(value, (str, int, float)) and value:
                result[key] = str(value)
        stack = self._stack(ctid)
        if stack:
            result["vllm_stack_name"] = stack
        overrides = self._stack_overrides(ctid)
        if overrides:
            result["vllm_stack_overrides"] = overrides
        if declared["_engine_config"]:
            result["vllm_model_server_engine_config"] = declared["_engine_config"]
        for key, variable in (
            ("bootstrap_ca_url", "certificate_ca_url"),
            ("bootstrap_ca_fingerprint", "certificate_ca_fingerprint"),
        ):
            if key in declared:
                result[variable] = declared[key]
        if declared.get("certificates"):
            result["certificate_services"] = [
                _service_of(certified, ctid) for certified in declared["certificates"]
            ]
        if "command" in declared.get("health_check", {}):
            result["verify_health_check"] = declared["health_check"]
        if declared.get("tests"):
            result["verify_tests"] = declared["tests"]
        return result

    def _clone(self, declared: dict[str, Any]) -> dict[str, Any]:
        if "clone_from_ctid" not in declared:
            return {}
        source = self.entries[str(declared["clone_from_ctid"])]
        clone: dict[str, Any] = {"vmid": declared["clone_from_ctid"]}
        if "template_snapshot_name" in source:
            clone["snapname"] = source["template_snapshot_name"]
        return clone

    def _stack(self, ctid: str) -> str:
        """The stack that it names, or else the nearest of those that it is cloned from: it has theirs inside."""
        named = (self.entries[str(member)].get("vllm_stack") for member in reversed(self.lineage(ctid)))
        return next(filter(None, named), "")

    def _stack_overrides(self, ctid: str) -> dict[str, Any]:
        """Its own overrides, or else those that go with the stack that it has."""
        for member in reversed(self.lineage(ctid)):
            entry = self.entries[str(member)]
            if entry.get("vllm_stack_overrides") or entry.get("vllm_stack"):
                return entry.get("vllm_stack_overrides") or {}
        return {}


def check(config: dict[str, Any], file: str) -> list[Problem]:
    """All mistakes in a configuration.

    :param config: the JSON object, overrides applied
    :param file: its name, for messages
    """
    return Model(config, file).problems


def _unknown_keys(
    config: dict[str, Any], unknown: dict[str, list[tuple[str, Path]]], file: str
) -> Iterator[Problem]:
    fault = "this key is not known"
    for key in config:
        if key not in TOP_KEYS:
            yield problem(file, (key,), fault, "it is kept in phoenix_settings")
    for places in unknown.values():
        ctid, path = places[0]
        others = [other for other in dict.fromkeys(other for other, _path in places) if other != ctid]
        also = f" (CTID {some(others, 2)} {'has' if len(others) == 1 else 'have'} it too)" if others else ""
        yield problem(file, path, fault + also, "it is kept in phoenix_definition", ctid=ctid)


def _service_of(certified: Mapping[str, Any], ctid: str) -> dict[str, Any]:
    """A certificate as the role has it: what says that it is for this container is left out."""
    service = {key: value for key, value in certified.items() if key != "guest_id"}
    if "post_renewal_command" in service:
        service["post_renewal_command"] = certificate.without_pct_exec(service["post_renewal_command"], ctid)
    return service


def _check_certificates(entries: dict[str, dict[str, Any]], file: str) -> Iterator[Problem]:
    for ctid, entry in entries.items():
        services, whole = [], True
        for place, certified in enumerate(entry.get("certificates", [])):
            path, whose = ("certificates", place), certified.get("guest_id", int(ctid))
            if whose != int(ctid):
                fault = f"it is for CTID {whose}"
                yield problem(file, (*path, "guest_id"), fault, "move it to that entry", ctid=ctid)
                whole = False
            try:
                services.append(_service_of(certified, ctid))
            except certificate.CertificateError as error:
                fault, _semicolon, remedy = str(error).partition("; ")
                yield problem(file, (*path, "post_renewal_command"), fault, remedy, ctid=ctid)
                whole = False
        if services and whole:
            try:
                certificate.entries(services, False, {"name": "name"})
            except certificate.CertificateError as error:
                fault, _colon, remedy = str(error).rstrip(".").partition(": ")
                yield problem(file, ("certificates",), fault, remedy or "correct it", ctid=ctid)


def _check_dependencies(
    entries: dict[str, dict[str, Any]], containers: dict[str, Any], file: str
) -> Iterator[Problem]:
    for ctid, entry in entries.items():
        elsewhere = [str(other) for other in entry.get("dependencies", []) if str(other) not in containers]
        if elsewhere:
            fault = f"{', '.join(elsewhere)} {'is' if len(elsewhere) == 1 else 'are'} not declared"
            yield problem(file, ("dependencies",), fault, "whether it runs is left to you", ctid=ctid)


def _check_bridges(entries: dict[str, dict[str, Any]], default_node: str, file: str) -> Iterator[Problem]:
    """Addresses that are in another network than the bridge's first one. A bridge may carry two, so these are notes."""
    first: dict[tuple[str, str], tuple[ipaddress.IPv4Network, str]] = {}
    for ctid, entry in sorted(entries.items(), key=lambda item: int(item[0])):
        for key in ("network_config", "secondary_network_config"):
            card = entry.get(key, {})
            if "bridge" not in card or "/" not in card.get("ip", ""):
                continue
            network = ipaddress.IPv4Interface(card["ip"]).network
            bridge = (entry.get("node", default_node), card["bridge"])
            theirs, other = first.setdefault(bridge, (network, ctid))
            if not network.overlaps(theirs):
                fault = f"is in no network of {card['bridge']}'s: it holds {theirs} (CTID {other})"
                yield Problem(
                    file, ctid, (key, "ip"), card["ip"], fault, "correct the address or the bridge, unless it has both"
                )


def _check_shared_gpus(entries: dict[str, dict[str, Any]], default_node: str, file: str) -> Iterator[Problem]:
    """Model servers that start with the node and want more of one GPU than there is."""
    users: dict[tuple[str, int], dict[str, float]] = {}
    for ctid, entry in entries.items():
        arguments = {name: value for group in entry["_engine_config"].values() for name, value in group.items()}
        if entry.get("start_at_boot") and arguments:
            share = arguments.get("gpu_memory_utilization", engine_args.default_share())
            for number in entry.get("gpu_assignment", []):
                users.setdefault((entry.get("node", default_node), number), {})[ctid] = share
    told: set[tuple[str, ...]] = set()
    for (_node, number), shares in users.items():
        ctids = tuple(shares)
        if len(ctids) > 1 and sum(shares.values()) > 1 and ctids not in told:
            told.add(ctids)
            fault = f"the model servers {some(list(ctids))} want more than all memory of GPU {number} at boot"
            remedy = "lower their gpu_memory_utilization, or start one at boot only"
            yield problem(file, ("gpu_assignment",), fault, remedy, ctid=ctids[1])


def _is_ctid(text: str) -> bool:
    return bool(re.fullmatch(r"[1-9][0-9]{2,8}", text))


def _check_references(
    entries: dict[str, dict[str, Any]], containers: dict[str, Any], nodes: Iterable[str] | None, file: str
) -> Iterator[Problem]:
    clones: dict[str, list[str]] = {}
    known = sorted(containers)
    for ctid, entry in entries.items():
        source = entry.get("clone_from_ctid")
        clones[ctid] = [] if source is None or str(source) not in entries else [str(source)]
        declared = containers[ctid]
        if nodes is not None and "node" in entry and entry["node"] not in nodes:
            yield Problem(file, ctid, ("node",), entry["node"], "is not among the nodes", f"write {either(nodes)}")
        if source is not None and str(source) not in containers:
            yield Problem(
                file,
                ctid,
                ("clone_from_ctid",),
                declared["clone_from_ctid"],
                "is a container that is not declared",
                f"declare it too, or clone from one that is: {some([other for other in known if other != ctid])}",
            )
        if all(declared.get(key) in (None, "") for key in ("clone_from_ctid", "template", "template_file")):
            yield Problem(
                file,
                ctid,
                (),
                MISSING,
                "it says neither what it is cloned from nor which template it is made from",
                'add "clone_from_ctid": "900" or "template": "local:vztmpl/debian-12-….tar.zst"',
            )
    in_circles: set[str] = set()
    for graph, key, what in (
        (clones, "clone_from_ctid", "is cloned, in the end, from itself"),
        (_waits_for(entries), "dependencies", "waits, in the end, for itself"),
    ):
        for circle in _circles(graph):
            if not in_circles.intersection(circle):
                in_circles.update(circle)
                yield Problem(
                    file,
                    circle[0],
                    (key,),
                    MISSING,
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
            fault = f"Proxmox can't clone bind mounts, and CTID {some(clones[ctid])} is cloned from this container"
            remedy = "declare the mount points in the clones instead"
            yield Problem(file, ctid, ("mount_points",), MISSING, fault, remedy)


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


def _waits_for(entries: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The CTIDs that each container has to come after, as far as they are declared."""
    after = {}
    for ctid, entry in entries.items():
        others = [entry.get("clone_from_ctid"), *entry.get("dependencies", [])]
        after[ctid] = [other for other in dict.fromkeys(map(str, others)) if other in entries]
    return after


# --- role variables -----------------------------------------------------------------------------------------------


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
        read_only = {"ro": mount["read_only"]} if "read_only" in mount else {}
        mounts.append({"mp": mount["container_path"], "source": mount["host_path"], **owner, **read_only})
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
