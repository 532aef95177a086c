# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How one state of the model server takes another one's place without a gap, and whether there is room for that.

The new state is started beside the running server, on another port. Once it answers, new connections to the server's
port go to it, by rules of nftables in the container; those that are there stay where they are, so what is being
answered is answered to its end. Then the server itself is restarted with the new state, the rule is taken away, and the
one beside ends. So the model is loaded twice, and the server's own unit is the one that runs in the end.

vLLM can't do it by itself: from 0.10.2 on to 0.32 it went from a port that several servers may share to one that they
may not, and a server that is told to end gives up its engine before it stops to accept.

Pure functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args

GIB = 1024**3
# The table of nftables that is there during a switch only.
TABLE = "phoenix_model_server"
_ADDRESSES = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
# How many connections it may remember; it takes memory for those that there are.
_CLIENTS = 1_000_000
# Where the units are that a restart of the container forgets.
FOLDER = "/run/systemd/system"
# What an engine has on a GPU besides its share: CUDA's context, and graphs that are captured after the cache was made.
_GPU_EXTRA = 1024
# Of the container's memory: a process without weights and cache, on a CPU and for a GPU, and what has to stay free.
_CPU_BASE, _GPU_BASE, _RESERVE = GIB * 3 // 2, 4 * GIB, GIB // 2
# Failures that a server may have only because another one runs beside it.
BESIDE_FAILURES = ("not enough free GPU memory", "memory", "port taken")
# What isn't read from the hub by name, or not as it is kept there.
_OTHER_LOADERS = ("dummy", "gguf", "tensorizer", "runai_streamer", "runai_streamer_sharded", "sharded_state")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


class Gpu(NamedTuple):
    """A GPU's memory in MiB."""

    index: str
    total: int
    free: int


@dataclass(frozen=True)
class Here:
    """What there is in the container, for the question whether two servers have room.

    Attributes:
        gpus: the GPUs that a server sees.
        free: how much memory may still be taken, in bytes.
        used: how much memory the running server has for itself, in bytes, 0 when nobody knows.
        weights: the size of the new model's files, in bytes, C(None) when they aren't there.
        obstacle: why new connections can't be sent to another port, C("") when they can.
    """

    gpus: Sequence[Gpu]
    free: int
    used: int
    weights: int | None
    obstacle: str = ""


class Room(NamedTuple):
    """Whether the old server answers until the new one does, and why.

    Attributes:
        overlap: whether it does.
        reason: a part of a sentence, C("") when nothing that answers is replaced.
        fetch: whether the model has to be fetched first.
    """

    overlap: bool
    reason: str
    fetch: bool = False


def other_name(name: str, word: str) -> str:
    """Return the name of a unit that stands beside the server's: vllm_model_server-next.service."""
    return f"{name.rpartition('.')[0]}-{word}.service"


def next_unit(unit: str, port: int) -> str:
    """Return the unit that runs a state beside the running server, on another port.

    Should memory become scarce, it is the one that goes.
    """
    command = re.findall(r"^ExecStart=(.*)$", unit, re.M)[-1]
    lines = [f"ExecStart={command} --port {port}", "OOMScoreAdjust=500"]
    return _other(unit, "vLLM model server, until it has taken the former one's place", ["ExecStart"], lines)


def port_of(unit: str | None) -> int:
    """Return the port of such a unit, 0 when it is none."""
    match = re.search(r"^ExecStart=.* --port (\d+)$", unit or "", re.M)
    return int(match[1]) if match else 0


def fetch_unit(unit: str, command: str) -> str:
    """Return the unit that fetches a model, as the user and with the environment of the server."""
    lines = [f"ExecStart={command}", "RemainAfterExit=yes", "Environment=HF_HUB_DISABLE_PROGRESS_BARS=1"]
    without = ["ExecStart", "ExecStartPre", "ExecStopPost"]
    return _other(unit, "Fetches a model for the vLLM model server", without, lines)


def _other(unit: str, description: str, without: Sequence[str], lines: Sequence[str]) -> str:
    """Return a unit with the [Service] section of another one, but for some settings, and some lines of its own."""
    section = re.search(r"^\[Service\]\n(.*?)(?=^\[|\Z)", unit, re.M | re.S)
    names = "|".join([*without, "Restart", "RestartSec"])
    kept = [line for line in (section[1] if section else "").splitlines()
            if line and not re.match(rf"#|(?:{names})=", line)]  # fmt: skip
    head = ["# Written by Ansible (phoenix.hypervisor.vllm_model_server) for the time of a change.", "[Unit]",
            f"Description={description}", "[Service]"]  # fmt: skip
    return "\n".join([*head, *kept, *lines]) + "\n"


def rules(port: int = 0, to: int = 0, host: str = "", new: bool = True) -> str:
    """Return what `nft -f -` reads to send the connections of a port to another one.

    A connection's first packet decides, and a set remembers its client, so what began before the rules goes on where it
    is, and what began under them does so after them, as long as the table is there. Root inside asks the server itself.

    The kernel's own way (dnat) has it track connections. It takes up those that have begun, too, and where packets of
    both directions come at that moment, it sends the answers from another port; and of those that are open when the
    rules go, it remembers where they went, for a later client with the same number. So ports are rewritten here, packet
    by packet, before the kernel tracks connections for anybody else, and after.

    Args:
        port: the server's. No packet has the number 0: that tells whether the kernel has all that it takes.
        to: the other one.
        host: the one address that the server listens on, C("") for all.
        new: whether new connections go there, too, and not only those that do.
    """
    table = f"inet {TABLE}"
    lines = [f"add table {table}"]
    for family, address in _ADDRESSES.items():
        lines.append(
            f"add set {table} sent_{family} {{ type {address} . inet_service; flags dynamic; size {_CLIENTS}; }}"
        )
    for chain, hook in (("from_outside", "prerouting"), ("from_inside", "output"), ("answers", "postrouting")):
        priority = 300 if chain == "answers" else -300
        lines.append(f"add chain {table} {chain} {{ type filter hook {hook} priority {priority}; }}")
    lines.append(f"flush table {table}")
    for family in _ADDRESSES:
        if host and (":" in host) != (family == "ip6"):
            continue
        only = f"{family} daddr {host} " if host else ""
        asks = f"fib daddr type local {only}tcp dport {port}"
        begins = f"{asks} tcp flags & (fin | syn | rst | ack) == syn"
        client, sent = f"{family} saddr . tcp sport", f"@sent_{family}"
        note, forget = (f"{word} {sent} {{ {client} }}" for word in ("add" if new else "delete", "delete"))
        from_outside, from_inside = f"add rule {table} from_outside", f"add rule {table} from_inside"
        lines += [
            # What a process inside asks was looked at when it went out.
            f'{from_outside} iifname != "lo" {begins} {note}',
            f'{from_outside} iifname != "lo" {asks} {client} {sent} tcp dport set {to}',
            f"{from_inside} meta skuid != 0 {begins} {note}",
            f"{from_inside} meta skuid 0 {begins} {forget}",
            f"{from_inside} {asks} {client} {sent} tcp dport set {to}",
            f"add rule {table} answers tcp sport {to} {family} daddr . tcp dport {sent} tcp sport set {port}",
        ]
    return "\n".join(lines) + "\n"


def no_rules() -> str:
    """Return what `nft -f -` reads to have no table left, whether there was one or not."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}\n"


def only_host(probe: Mapping[str, Any]) -> str:
    """Return the one address that a server listens on, C("") for all."""
    host = str(probe["host"])
    return "" if host in ("127.0.0.1", "::1", "localhost") else host


def sockets(table: str, port: int, listening: bool = False) -> int:
    """Return how many connections a port has, or how many listen on it.

    Args:
        table: the content of C(/proc/net/tcp) and C(/proc/net/tcp6).
        port: the port.
        listening: whether those are wanted that listen.
    """
    state, end = "0A" if listening else "01", f":{port:04X}"
    rows = [line.split() for line in table.splitlines()]
    return sum(len(row) > 3 and row[1].endswith(end) and row[3] == state for row in rows)


def gpus(output: str) -> list[Gpu]:
    """Return the GPUs in what `nvidia-smi --query-gpu=index,memory.total,memory.free` printed, without units."""
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    if not all(len(row) == 3 and row[1].isdigit() and row[2].isdigit() for row in rows):
        return []
    return [Gpu(index, int(total), int(free)) for index, total, free in rows]


def settings(config: str) -> dict[str, str]:
    """Return the arguments in the text of an engine config's file that have one value."""
    return {name: value.strip('"') for name, value in re.findall(r'^"?([\w.-]+)"?: (.+)$', config, re.M)}


def environment(unit: str) -> dict[str, str]:
    """Return the variables that a unit sets, without those in its file of secrets."""
    found = {}
    for words in re.findall(r"^Environment=(.*)$", unit, re.M):
        try:
            words = json.loads(words) if words.startswith('"') else words
        except ValueError:
            continue
        name, _sign, value = words.partition("=")
        found[name] = value.replace("%%", "%")
    return found


def model_in(unit: str) -> str:
    """Return the model that a unit serves, as vLLM is given it, C("") when that can't be read."""
    match = re.search(r'^ExecStart=.*? serve (?:"((?:[^"\\]|\\.)*)"|(\S+)) --config ', unit, re.M)
    if not match:
        return ""
    quoted, plain = match.groups()
    return plain or re.sub(r"\\(.)", r"\1", quoted.replace("%%", "%").replace("$$", "$"))


def room(old: Mapping[str, Any], new: Mapping[str, Any], here: Here) -> Room:
    """Return whether a new state has room beside the running server, by careful numbers.

    Both have to fit together, and then the new one twice. What nobody can know is no room.

    Args:
        old: C(unit), C(config) and C(probe) of the state that runs.
        new: the same of the one that is to take its place.
        here: what there is in the container.
    """
    told, before = settings(new["config"]), settings(old["config"])
    ports = sorted(name for name in told if name.endswith("-port") or name == "uds")
    if old["probe"]["port"] != new["probe"]["port"]:
        return Room(False, f"its port changes from {old['probe']['port']} to {new['probe']['port']}")
    if ports:
        return Room(False, f"two servers can't have the same {ports[0]}")
    if here.obstacle:
        return Room(False, here.obstacle)
    if "guard.py settle" in new["unit"]:
        fits, why = _gpu_room(before, told, here.gpus, environment(new["unit"]))
        base = max(_GPU_BASE, here.used)
    else:
        cache = environment(new["unit"]).get("VLLM_CPU_KVCACHE_SPACE", "")
        if not re.fullmatch(r"[1-9]\d*", cache):
            return Room(False, "how much memory the new one takes is not known (VLLM_CPU_KVCACHE_SPACE is not set)")
        if here.weights is None:
            return Room(False, "how much memory the new one takes is not known, its model is not here yet")
        fits, why = True, ""
        base = max(_CPU_BASE + int(cache) * GIB + here.weights, here.used)
    if not fits:
        return Room(False, why)
    if not here.used:
        return Room(False, "how much memory the old one has is not known")
    wants = f"the new one may want {base / GIB:.1f}"
    if here.free < base + _RESERVE:
        return Room(False, f"{here.free / GIB:.1f} GiB of the container's memory are free, and {wants}")
    if here.free + here.used < 2 * base + _RESERVE:
        return Room(False, f"{(here.free + here.used) / GIB:.1f} GiB of the container's memory are free without the "
                    f"old one, and {wants}, twice for a moment")  # fmt: skip
    return Room(True, why or f"{here.free / GIB:.1f} GiB of memory are free, and {wants}")


def _gpu_room(
    before: Mapping[str, str], told: Mapping[str, str], there: Sequence[Gpu], variables: Mapping[str, str]
) -> tuple[bool, str]:
    """Return whether the GPUs have room for both, and why."""
    if not there:
        return False, "nvidia-smi does not tell how much memory the GPU has"
    if "kv-cache-memory-bytes" in told:
        return False, "kv_cache_memory_bytes leaves open how much of the GPU it takes"
    try:
        most = engine_args.default_share(most=True)
        share, old_share = (float(each.get("gpu-memory-utilization", most)) for each in (told, before))
        count = 1
        for name in ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size"):
            count *= int(told.get(name, 1))
    except ValueError:
        return False, "how much of the GPU it takes is not known"
    if count > len(there):
        return False, f"it wants {count} GPUs, and nvidia-smi tells of {len(there)}"
    # vLLM takes the first ones, unless a variable says which.
    used = there if "CUDA_VISIBLE_DEVICES" in variables else there[:count]
    for gpu in used:
        wants = share * gpu.total + _GPU_EXTRA
        old = min(gpu.total - gpu.free, old_share * gpu.total)
        said = f"the new one wants {wants / 1024:.1f}"
        if gpu.free < wants:
            return False, f"GPU {gpu.index} has {gpu.free / 1024:.1f} of {gpu.total / 1024:.1f} GiB free, and {said}"
        if gpu.free + old < 2 * wants:
            return False, (
                f"GPU {gpu.index} has {(gpu.free + old) / 1024:.1f} GiB free without the old one, and {said}, "
                "twice for a moment"
            )
    first = used[0]
    wants = share * first.total + _GPU_EXTRA
    return True, (
        f"GPU {first.index} has {first.free / 1024:.1f} of {first.total / 1024:.1f} GiB free, and the new one wants "
        f"{wants / 1024:.1f}"
    )


def repository(model: str, config: str, variables: Mapping[str, str]) -> str:
    """Return the name of the model on the hub that a server would fetch when it starts, C("") when it would not.

    Args:
        model: as vLLM is given it.
        config: the text of the engine config's file.
        variables: of the server's environment.
    """
    told = settings(config)
    off = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_USE_MODELSCOPE")
    if any(variables.get(name, "").lower() in ("1", "on", "yes", "true") for name in off):
        return ""
    if not re.fullmatch(r"\w[\w.-]*(?:/\w[\w.-]*)?", model) or told.get("load-format") in _OTHER_LOADERS:
        return ""
    return model


def hub_folder(repository_name: str, config: str, variables: Mapping[str, str]) -> str:
    """Return the folder where the hub's own program keeps a model, as the server would find it."""
    home = variables.get("HF_HOME") or f"{variables.get('HOME', '')}/.cache/huggingface"
    folder = settings(config).get("download-dir") or variables.get("HF_HUB_CACHE") or f"{home}/hub"
    return f"{folder}/models--{repository_name.replace('/', '--')}"


def is_fetched(names: Iterable[str], index: str = "") -> bool:
    """Return whether the files of a model are all there.

    Args:
        names: of the files in its snapshot that are whole.
        index: the text of C(model.safetensors.index.json), C("") when it has none.
    """
    there = set(names)
    try:
        needed = set(json.loads(index)["weight_map"].values()) if index else set()
    except (ValueError, LookupError, AttributeError, TypeError):
        return False
    return "config.json" in there and needed <= there and any(name.endswith(_WEIGHTS) for name in there)


def weights(sizes: Mapping[str, int]) -> int:
    """Return how many bytes of a model's files become part of a server.

    Args:
        sizes: of the files in its folder. Where the weights are there in two forms, vLLM reads one.
    """
    by_form = [sum(size for name, size in sizes.items() if name.endswith(form)) for form in _WEIGHTS]
    return by_form[0] or max(by_form)
