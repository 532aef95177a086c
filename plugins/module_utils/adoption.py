# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the shell scripts that this collection replaces left of a container, and what is to be done about it.

Values in, values out; nothing is run and no file is read in here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils import container_plan, gpu, pct_conf, server_plan

HIDDEN = "(hidden)"
# Files that nobody but their owner should be able to write or, most of them, read.
_SECRET_FILE = re.compile(r".*(_key|\.key|password.*|\.pem\.key)$|.*password.*", re.I)
_SECRET_WORD = re.compile(r"--?(api[-_]key|hf[-_]token|.*password|.*secret)$", re.I)
_SECRET_SETTING = re.compile(r"(\w*(?:KEY|TOKEN|PASSWORD|SECRET)\w*=)(\"[^\"]*\"|'[^']*'|\S+)", re.I)
_EXPORT = re.compile(r"\s*export\s")


# --- on the node --------------------------------------------------------------------------------------------------


def of_conf(
    conf: pct_conf.Conf, declared: container_plan.Declared, devices: Mapping[str, gpu.Device]
) -> dict[str, Any]:
    """What a conf file has that the old scripts are known to leave there.

    Returns C(gpu_lines) (that give GPUs), C(other_lines) (raw lines that nobody declares), C(snapshot_lines) (that only
    a snapshot's section has, where they do nothing) and C(unused) (volumes that nothing mounts).
    """
    gpu_lines = gpu.raw_lines_of(conf.main.raw, devices)
    wanted = [pct_conf.split_raw(line) for line in declared.raw or []]
    others = [line for line in conf.main.raw if line not in gpu_lines and line not in wanted]
    strays = {
        name: [_line(*line) for line in section.raw if line not in conf.main.raw]
        for name, section in sorted(conf.snapshots.items())
    }
    return {
        "gpu_lines": [_line(*line) for line in gpu_lines],
        "other_lines": [_line(*line) for line in others],
        "snapshot_lines": {name: lines for name, lines in strays.items() if lines},
        "unused": [
            conf.main.values[key] for key in sorted(conf.main.values) if re.fullmatch(r"unused\d+", key)
        ],
    }  # fmt: skip


def _line(key: str, value: str) -> str:
    return f"{key}: {value}"


def bound_folders(section: pct_conf.Section) -> list[tuple[str, str]]:
    """Folders of the node that a container mounts: (on the node, inside)."""
    found = []
    for key, value in sorted(section.values.items()):
        if re.fullmatch(r"mp\d+", key):
            parts = pct_conf.split_property(key, value)
            if parts.get("volume", "").startswith("/"):
                found.append((parts["volume"], parts.get("mp", "")))
    for key, value in section.raw:
        words = value.split()
        is_bind = key == "lxc.mount.entry" and len(words) > 3 and "bind" in words[3]
        if is_bind and not words[0].startswith("/dev/"):
            found.append((words[0], "/" + words[1].lstrip("/")))
    return found


def is_secret_file(name: str) -> bool:
    """Is a file, by its name, one of keys or passwords?"""
    return bool(_SECRET_FILE.fullmatch(name))


# --- inside -------------------------------------------------------------------------------------------------------


def without_exports(text: str) -> tuple[str, list[str]]:
    """What C(/etc/environment) should have, and the lines that only a shell understands."""
    lines = text.splitlines(keepends=True)
    moved = [line.strip() for line in lines if _EXPORT.match(line)]
    return "".join(line for line in lines if not _EXPORT.match(line)), moved


def with_exports(text: str, lines: Iterable[str]) -> str:
    """The shell's file with these lines, each once."""
    head = "# Moved here from /etc/environment, which is no shell script, by phoenix.hypervisor.adopt_inside.\n"
    there = text.splitlines()
    missing = [line for line in dict.fromkeys(lines) if line not in there]
    return (text or head) + "".join(f"{line}\n" for line in missing)


def names_of(lines: Iterable[str]) -> list[str]:
    """The variables that lines with C(export) set. Their values may be secrets."""
    found = [re.match(r"\s*export\s+(\w+)", line) for line in lines]
    return [match[1] for match in found if match]


def of_unit(text: str) -> dict[str, Any]:
    """What an old unit runs: C(ours), C(command), C(user), C(model) and C(port), without secrets."""
    text = re.sub(r"\\\n\s*", " ", text)
    users = re.findall(r"^User=(.*)$", text, re.M)
    commands = re.findall(r"^ExecStart=[-@:+!]*(.*)$", text, re.M)
    words = _words(commands[-1]) if commands else []
    return {
        "ours": bool(server_plan.digest_in(text)),
        "command": without_secrets(words),
        "user": (users[-1].strip() if users else "") or "root",
        "model": _value(words, "--model") or _after(words, "serve"),
        "port": _value(words, "--port") or "8000",
    }


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def without_secrets(words: Sequence[str]) -> str:
    """A command line without the values of keys and tokens."""
    shown, hide = [], False
    for word in words:
        name, equals, _value_of = word.partition("=")
        if hide:
            word = HIDDEN
        elif equals and _SECRET_WORD.match(name):
            word = f"{name}={HIDDEN}"
        hide = not hide and not equals and bool(_SECRET_WORD.match(word))
        shown.append(_SECRET_SETTING.sub(rf"\1{HIDDEN}", word))
    return " ".join(shown)


def _value(words: Sequence[str], name: str) -> str:
    """The value of an argument, by itself or after an equals sign."""
    for place, word in enumerate(words):
        if word == name:
            return words[place + 1] if place + 1 < len(words) else ""
        if word.startswith(f"{name}="):
            return word[len(name) + 1 :]
    return ""


def _after(words: Sequence[str], name: str) -> str:
    return _value(words, name) if name in words else ""


# --- what there is to say -----------------------------------------------------------------------------------------


def told(host: Mapping[str, Any], node: Mapping[str, Any], inside: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a person has to know and do.

    :param host: C(host) and C(ctid)
    :param node: the result of C(adopt_node)
    :param inside: the result of C(adopt_inside), empty where there is no inside to look at
    """
    ctid = host["ctid"]
    found, later, hand = [], [], []
    if not node.get("exists"):
        return {
            "found": [f"CTID {ctid} is not there: there is nothing to take over"], "done": [],
            "site_yml_will": ["create it"], "by_hand": [], "next": [],
        }  # fmt: skip
    _of_the_node(ctid, node, found, later, hand)
    if inside:
        _of_the_inside(inside, found, later, hand)
    elif node["status"] != "running" and not node.get("template"):
        hand.append(f"start it (pct start {ctid}) and run adopt.yml again: what is inside was not looked at")
    return {
        "found": found, "done": [*node["steps"], *inside.get("steps", [])], "site_yml_will": later, "by_hand": hand,
        "next": _next(host, node, inside),
    }  # fmt: skip


def _of_the_node(
    ctid: int, node: Mapping[str, Any], found: list[str], later: list[str], hand: list[str]
) -> None:
    later += node["would"]
    if node["problem"]:
        hand.append(node["problem"].rstrip("."))
    if node["gpu_lines"]:
        found.append(f"{len(node['gpu_lines'])} raw lines give it GPUs by numbers")
        if not node["gpus_declared"]:
            hand.append("say in gpu_assignment which GPUs it has; its raw lines for GPUs stay as they are until then")
    if node["other_lines"]:
        found.append(f"raw lines that nobody declares, and that stay: {'; '.join(node['other_lines'])}")
        hand.append("declare in lxc_options those raw lines that are wanted; remove the others from the conf file")
    for name, lines in node["snapshot_lines"].items():
        found.append(f"raw lines in the section of snapshot {name}, where they do nothing: {'; '.join(lines)}")
        hand.append(f"declare what of them is wanted in lxc_options, or remove them: pct delsnapshot {ctid} {name}")
    if node["unused"]:
        found.append(f"volumes that nothing mounts: {', '.join(node['unused'])}")
        hand.append("look whether they are empty; remove one with: pct set CTID --delete unusedN (it deletes the data)")
    for folder in node["open_folders"]:
        files = f", and {', '.join(folder['secrets'])} in it" if folder["secrets"] else ""
        found.append(f"{folder['source']}, mounted at {folder['inside']}, can be written by everybody{files}")
        source = shlex.quote(folder["source"])
        hand.append(f"take away its mount from the containers that don't issue certificates, then: chmod o-w {source}")
        if folder["secrets"]:
            files = " ".join(shlex.quote(f"{folder['source']}/{name}") for name in folder["secrets"])
            hand.append(f"let only their owner read them: chmod go-rwx {files}")
            hand.append("make new keys and passwords for the CA: everybody in these containers could read the old ones")


def _of_the_inside(inside: Mapping[str, Any], found: list[str], later: list[str], hand: list[str]) -> None:
    unit = inside["unit"]
    if unit and not unit["ours"]:
        active = inside["active"]
        found.append(f"{inside['name']} was written by the old scripts; it is {active} and runs: {unit['command']}")
        if unit["user"] == "root":
            found.append("the model server runs as root")
        later.append(
            f"write {inside['name']} from vllm_engine_config, for a user of its own, and start that in the old "
            "server's place; nothing answers from then on until the new one does"
        )
        if "--trust-remote-code" in unit["command"]:
            hand.append("set trust_remote_code in vllm_engine_config only if the model brings code of its own")
        if HIDDEN in unit["command"]:
            hand.append("put the key of the unit's command line into vllm_model_server_api_key (ansible-vault)")
    if inside["folder_version"] is not None:
        version = inside["folder_version"] or "unknown"
        found.append(f"{inside['link']} is a folder with vLLM {version}")
        later.append(f"keep {inside['link']} as a release (before-…), and put a link in its place")
    if inside["exports"]:
        found.append(f"/etc/environment has lines for a shell ({', '.join(inside['exports'])})")
    if inside["root_models"]:
        found.append(f"models that vLLM downloaded onto the root disk: {', '.join(inside['root_models'])}")
        hand.append(
            "once the new server answers, remove /root/.cache/huggingface, or move it below the folder of the caches"
        )


def _next(host: Mapping[str, Any], node: Mapping[str, Any], inside: Mapping[str, Any]) -> list[str]:
    name = host["host"]
    steps = [f"pct snapshot {host['ctid']} before-adoption, where its storage can; else a backup"]
    steps.append(f"ansible-playbook site.yml -l {name} --check --diff")
    unit = inside.get("unit")
    gap = bool(unit and not unit["ours"])
    restart = bool(node["restart"])
    if gap or restart:
        why = " and ".join(
            [*(["the container restarts once"] if restart else []), *(["the model server is replaced"] if gap else [])]
        )
        steps.append(f"at a time when that may be: ansible-playbook site.yml -l {name} ({why})")
    else:
        steps.append(f"ansible-playbook site.yml -l {name}")
    return [*steps, f"ansible-playbook playbooks/verify.yml -l {name}"]
