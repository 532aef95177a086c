# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The conf file of a container: parse and render, values to values.

Genuine layout: description as ``#`` lines, sorted ``key: value`` lines, raw ``lxc.*`` lines in their order, then
``[pve:pending]``, then one section per snapshot. The whole file is written anew each time.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

_SECTION = re.compile(r"^\[(pve:pending|[a-zA-Z][a-zA-Z0-9_-]+)\]\s*$")
_OPTION = re.compile(r"^([a-z][a-z_-]*\d*):\s*(.*?)\s*$")
_RAW = re.compile(r"^(lxc\.[a-zA-Z0-9_.-]+)\s*[:=]\s*(.*?)\s*$")
_RAW_ALLOWED = re.compile(
    r"^lxc\.(apparmor\.(profile|allow_incomplete|allow_nesting|raw)|selinux\.context|include|arch|uts\.name"
    r"|signal\.(halt|reboot|stop)|init\.(cmd|cwd|uid|gid|groups)|pty\.max"
    r"|console\.(logfile|path|buffer\.size|size|rotate)|tty\.max|devtty\.dir|tty\.dir"
    r"|hook\.(version|pre-start|pre-mount|mount|autodev|start-host|start|stop|post-stop|clone|destroy)"
    r"|autodev|autodev\.tmpfs\.size|kmsg|mount\.(fstab|entry|auto)|rootfs\.mount|cap\.(drop|keep)"
    r"|seccomp\.(profile|allow_nesting|notify\.proxy|notify\.cookie)|idmap|log\.(level|file|syslog)"
    r"|start\.(auto|delay|order)|group|environment(\.(runtime|hooks))?|sysctl\..+|cgroup2?\..+|prlimit\..+|net\..+)$"
)


_RAW_REFUSED = {
    "lxc.rootfs.path": "is auto generated from rootfs",
    "lxc.rootfs.options": 'is not supported, please use mount point options in the "rootfs" key',
}


@dataclass
class Section:
    """One set of options: the active one or a snapshot's."""

    options: dict[str, str] = field(default_factory=dict)
    raw: list[tuple[str, str]] = field(default_factory=list)
    description: str = ""

    def copy(self) -> Section:
        """An independent copy."""
        return Section(dict(self.options), list(self.raw), self.description)


@dataclass
class Conf:
    """A whole conf file. ``delete`` maps keys that wait for deletion to whether it was forced (``!key``)."""

    active: Section = field(default_factory=Section)
    pending: dict[str, str] = field(default_factory=dict)
    delete: dict[str, bool] = field(default_factory=dict)
    snapshots: dict[str, Section] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def digest(text: str) -> str:
    """SHA1 of the raw file, as ``pct set --digest`` wants it."""
    return hashlib.sha1(text.encode()).hexdigest()


def encode_text(text: str) -> str:
    """Percent-encode control characters, colons and everything outside ASCII (the genuine set)."""
    return "".join(
        chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x3A else f"%{byte:02X}" for byte in text.encode("utf-8")
    )


def decode_text(text: str) -> str:
    """The reverse of :func:`encode_text`."""
    return unquote(text, errors="replace")


def raw_key_allowed(key: str) -> bool:
    """Whether Proxmox keeps this raw ``lxc.*`` key; others are lost at the next write."""
    return bool(_RAW_ALLOWED.match(key))


def parse(text: str, vmid: int | str = "") -> Conf:
    """Parse a conf file. Lines that make no sense end up as sentences in ``warnings``, as pct prints them."""
    conf = Conf()
    section: Section | None = conf.active
    in_pending = False
    for line in text.splitlines():
        if not line.strip():
            continue
        header = _SECTION.match(line)
        if header:
            in_pending = header[1] == "pve:pending"
            section = None if in_pending else conf.snapshots.setdefault(header[1], Section())
            continue
        if line.startswith("#"):
            if section is not None:
                section.description += decode_text(line[1:]) + "\n"
            continue
        raw = _RAW.match(line)
        if raw and section is not None and raw_key_allowed(raw[1]):
            section.raw.append((raw[1], raw[2]))
            continue
        if raw and raw[1] in _RAW_REFUSED:
            conf.warnings.append(f"vm {vmid} - {raw[1]}: {raw[1]} {_RAW_REFUSED[raw[1]]}")
            continue
        option = _OPTION.match(line)
        if raw or not option or not option[2]:
            conf.warnings.append(f"vm {vmid} - unable to parse config: {line}")
            continue
        key, value = option[1], option[2]
        if in_pending and key == "delete":
            for name in filter(None, re.split(r"[,;\s]+", value)):
                conf.delete[name.lstrip("!")] = name.startswith("!")
        elif in_pending:
            conf.pending[key] = value
        elif key == "description":
            section.description += decode_text(value)
        else:
            section.options[key] = value
    return conf


def _render_section(section: Section) -> str:
    lines = ["#" + encode_text(line) for line in section.description.splitlines()]
    lines += [f"{key}: {section.options[key]}" for key in sorted(section.options)]
    lines += [f"{key}: {value}" for key, value in section.raw]
    return "".join(line + "\n" for line in lines)


def render(conf: Conf) -> str:
    """The text of the conf file."""
    text = _render_section(conf.active)
    waiting = dict(conf.pending)
    if conf.delete:
        waiting["delete"] = ",".join(("!" if conf.delete[name] else "") + name for name in sorted(conf.delete))
    if waiting:
        text += "\n[pve:pending]\n" + "".join(f"{key}: {waiting[key]}\n" for key in sorted(waiting))
    for name in sorted(conf.snapshots):
        text += f"\n[{name}]\n" + _render_section(conf.snapshots[name])
    return text


def merged(conf: Conf) -> Section:
    """The active section with what is pending applied: what ``pct config`` shows unless told ``--current``."""
    section = conf.active.copy()
    for key in conf.delete:
        section.options.pop(key, None)
        if key == "description":
            section.description = ""
    section.options.update(conf.pending)
    return section


def config_lines(section: Section) -> list[str]:
    """The lines of ``pct config``: sorted options with the description among them, then the raw lines."""
    shown = dict(section.options)
    if section.description:
        shown["description"] = encode_text(section.description)
    lines = [f"{key}: {shown[key]}" for key in sorted(shown)]
    return lines + [f"{key}: {value}" for key, value in section.raw]


def pending_lines(conf: Conf) -> list[str]:
    """The lines of ``pct pending``."""
    current = dict(conf.active.options)
    if conf.active.description:
        current["description"] = encode_text(conf.active.description)
    lines = []
    for key in sorted({*current, *conf.pending, *conf.delete}):
        if key in current:
            lines.append(f"{'del' if key in conf.delete else 'cur'} {key}: {current[key]}")
        if key in conf.pending:
            lines.append(f"new {key}: {conf.pending[key]}")
    return lines


def snapshot_tree(conf: Conf, times: dict[str, str]) -> list[str]:
    """The lines of ``pct listsnapshot``. ``times`` gives each snapshot's local time as text."""
    children: dict[str, list[str]] = {}
    for name, section in conf.snapshots.items():
        parent = section.options.get("parent", "")
        children.setdefault(parent if parent in conf.snapshots else "", []).append(name)
    here = conf.active.options.get("parent", "")
    here = here if here in conf.snapshots else ""
    lines: list[str] = []

    def line(depth: int, name: str, when: str, description: str) -> None:
        prefix = " " * depth + "`->"
        lines.append(f"{prefix} {name:<{30 - len(prefix)}} {when:<23} {description}")

    def walk(parent: str, depth: int) -> None:
        for name in sorted(children.get(parent, []), key=lambda n: int(conf.snapshots[n].options.get("snaptime", "0"))):
            text = conf.snapshots[name].description.splitlines()
            line(depth, name, times.get(name, ""), text[-1] if text else "no-description")
            walk(name, depth + 1)
        if parent == here:
            line(depth, "current", "", "You are here!")

    walk("", 0)
    return lines
