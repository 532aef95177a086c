# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models containers want, and where on their node these go. Pure functions.

A model server that is told C(/models/meta-llama/Llama-3.2-3B-Instruct), in a container where C(/tank/models) of the
node is mounted at C(/models), wants the hub's C(meta-llama/Llama-3.2-3B-Instruct) in the node's folder C(/tank/models).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import engine_args, model_plan

# Arguments of vLLM that name a model, each with the one that names its revision.
_ARGUMENTS = (("model", "revision"), ("tokenizer", "tokenizer-revision"))


@dataclass
class Wanted:
    """What is to be fetched for a host.

    Attributes:
        fetch: options of M(phoenix.hypervisor.model_files), each.
        notes: what isn't fetched, or isn't used, and what to write so that it is.
        problems: what contradicts itself.
    """

    fetch: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def of_container(ctid: int | str, config: Mapping[str, Any], mounts: Sequence[Mapping[str, Any]]) -> Wanted:
    """What a container's engine config asks for.

    Args:
        ctid: the container.
        config: its engine config, with groups or without.
        mounts: what is mounted in it, as the role C(container) has it.
    """
    wanted = Wanted()
    try:
        arguments = engine_args.flatten(config)
    except engine_args.EngineConfigError as error:
        wanted.notes.append(f"CTID {ctid}: its engine config can't be read: {error}")
        return wanted
    named = [(name, arguments.get(name), arguments.get(revision)) for name, revision in _ARGUMENTS]
    draft = arguments.get("speculative-config")
    if isinstance(draft, Mapping):
        named.append(("speculative_config.model", draft.get("model"), draft.get("revision")))
    for name, model, revision in named:
        if isinstance(model, str) and model and model != (arguments.get("model") if name != "model" else None):
            entry, note = _place(name, model, mounts)
            if entry:
                wanted.fetch.append({**entry, "revision": str(revision or "main")})
            if note:
                wanted.notes.append(f"CTID {ctid}: {note}")
    return wanted


def _place(argument: str, model: str, mounts: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], str]:
    """Where a model goes, {} when that isn't known; and what there is to say about it."""
    folders = [(str(mount["mp"]), str(mount["source"])) for mount in mounts if mount.get("source")]
    if model.startswith("/"):
        return _of_path(argument, posixpath.normpath(model), mounts)
    if model_plan.repository_problem(model):
        return {}, f"{argument} is {model}, which is neither a path nor a hub's name (organisation/name); left as it is"
    if len(folders) != 1:
        path = f"{folders[0][0].rstrip('/')}/{model}" if folders else f"/models/{model}"
        mount = '; add {"host_path": "/tank/models", "container_path": "/models", "read_only": true} to mount_points'
        several = f" (several are: {', '.join(sorted(inside for inside, _outside in folders))})"
        return {}, (
            f"{argument} is {model}, which its server fetches by itself, into the container. To have it fetched ahead, "
            f"write {path} as {argument}{several if folders else mount}"
        )
    inside, outside = folders[0]
    return {"folder": outside, "name": model, "repository": model}, (
        f"{argument} is {model}, which is fetched into {outside}; its server uses it only when {argument} is "
        f"{inside.rstrip('/')}/{model}"
        + (f" (served_model_name: {model} keeps its name for clients)" if argument == "model" else "")
    )


def _of_path(argument: str, path: str, mounts: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], str]:
    below = [mount for mount in mounts if f"{path}/".startswith(f"{str(mount['mp']).rstrip('/')}/")]
    # The innermost is what a process in the container sees.
    mount = max(below, key=lambda mount: len(str(mount["mp"]).rstrip("/")), default=None)
    if mount is None:
        return {}, (
            f"{argument} is {path}, on the container's own disk, where nothing is fetched ahead; mount a folder of the "
            'node there: "mount_points": [{"host_path": "/tank/models", "container_path": '
            f'"{posixpath.dirname(posixpath.dirname(path)).rstrip("/") or "/models"}", "read_only": true}}]'
        )
    if not mount.get("source"):
        return {}, (
            f"{argument} is {path}, on a volume of the container's own ({mount['mp']}), where nothing is fetched "
            "ahead; declare a folder of the node (mount_points) in place of the volume"
        )
    name = path[len(str(mount["mp"]).rstrip("/")) + 1 :]
    repository = "/".join(name.split("/")[-2:])
    if "/" not in name or model_plan.repository_problem(repository) or model_plan.name_problem(name):
        return {}, (
            f"{argument} is {path}, in which no hub's name is to be seen (organisation/name below {mount['mp']}); it "
            "is left as it is. To have it fetched, list it in phoenix_models, with "
            f"{{repository: organisation/name, name: {name or 'organisation/name'}, folder: {mount['source']}}}"
        )
    if name.endswith(".gguf"):
        return {}, (
            f"{argument} is {path}, a single file; to have it fetched, list its model in phoenix_models, with "
            f"include: [{posixpath.basename(path)}]"
        )
    return {"folder": str(mount["source"]), "name": name, "repository": repository}, ""


def of_list(entries: Iterable[Mapping[str, Any]], mounts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Models that a person listed; they go into the one folder of the node that is mounted, where they don't say."""
    folders = [str(mount["source"]) for mount in mounts if mount.get("source")]
    found = []
    for entry in entries:
        complete = dict(entry)
        if len(folders) == 1:
            complete.setdefault("folder", folders[0])
        complete.setdefault("name", complete.get("repository", ""))
        found.append(complete)
    return found


def shared(wanted: Mapping[str, Wanted], nodes: Mapping[str, str], host: str) -> Wanted:
    """What of it one host fetches: a model that several hosts want at one place of a node is fetched for the first.

    Args:
        wanted: host → what it wants, in the order of the play.
        nodes: host → its node.
        host: the one that asks.
    """
    result = Wanted(notes=list(wanted[host].notes), problems=list(wanted[host].problems))
    for entry in wanted[host].fetch:
        others = [
            (other, theirs)
            for other, each in wanted.items()
            if nodes[other] == nodes[host]
            for theirs in each.fetch
            if _where(theirs) == _where(entry)
        ]
        differing = sorted({other for other, theirs in others if theirs != entry})
        first, its = others[0]
        if differing:
            result.problems.append(
                f"{host} wants {_text(entry)} as {entry['name']} in {entry.get('folder') or 'models_folder'} of "
                f"{nodes[host]}, and {', '.join(differing)} another revision or other files of it; give them "
                "one, or another name"
            )
        elif first == host and its is entry:
            result.fetch.append(entry)
        elif first != host:
            result.notes.append(f"{host}: {_text(entry)} is fetched with {first}, for both")
    return result


def _where(entry: Mapping[str, Any]) -> tuple[str, str]:
    folder = str(entry.get("folder") or "")
    return (posixpath.normpath(folder) if folder else "", str(entry.get("name") or ""))


def _text(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('repository') or entry.get('source')} ({entry.get('revision', 'main')})"
