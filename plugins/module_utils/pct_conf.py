# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proxmox's conf-file format of a container, and the property strings in it: parsed, rendered, compared.

Nothing here touches a file or runs a process. The format is that of C(/etc/pve/lxc/<vmid>.conf): the main section with
C(key: value) lines and raw C(lxc.*) lines, then C([pve:pending]), then a section for each snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from ansible_collections.phoenix.hypervisor.plugins.module_utils.pct_keys import BOOLEANS, KEYS, base

_BOOLEAN_KEYS = {"onboot", "protection", "unprivileged", "template", "console", "debug"}
# Blanks are ASCII's: Python would take a no-break space for one, Proxmox doesn't.
_LINE = re.compile(r"([a-z][a-z0-9_]*):\s*(.*?)\s*$", re.ASCII)
_RAW_LINE = re.compile(r"(lxc\.[A-Za-z0-9_.\-]+)\s*[:=]\s*(.*?)\s*$", re.ASCII)
_SECTION = re.compile(r"\[(.+)\]\s*$", re.ASCII)
# What Proxmox accepts as raw keys; it warns of others and drops them at its next write (pct.md, "Config file").
_RAW_KEYS = re.compile(
    r"lxc\.(apparmor\.(profile|allow_incomplete|allow_nesting|raw)|selinux\.context|include|arch|uts\.name|signal\..+"
    r"|init\.(cmd|cwd|uid|gid|groups)|pty\.max|console\..+|tty\.max|devtty\.dir|hook\..+|autodev|kmsg"
    r"|mount\.(fstab|entry|auto)|rootfs\.mount|cap\.(drop|keep)|seccomp\..+|idmap|log\..+|start\..+|group"
    r"|environment(\.runtime|\.hooks)?|sysctl\..+|cgroup2?\..+|prlimit\..+|net\..+)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass
class Section:
    """One section of a conf file.

    :ivar values: the keys, numbers in their names included (C(net0))
    :ivar raw: the C(lxc.*) lines as (key, value), in their order
    :ivar comments: the description as it is written: a line each, encoded, without its C(#)
    """

    values: dict[str, str] = field(default_factory=dict)
    raw: list[tuple[str, str]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    @property
    def description(self) -> str:
        """The description as a person reads it, each line ended."""
        return "".join(f"{unquote(line)}\n" for line in self.comments)


@dataclass
class Conf:
    """A whole conf file: what is active, what waits for a restart, and the snapshots by name."""

    main: Section = field(default_factory=Section)
    pending: Section = field(default_factory=Section)
    snapshots: dict[str, Section] = field(default_factory=dict)

    @property
    def complete_snapshots(self) -> list[str]:
        """Names of the snapshots that are neither being taken nor being deleted, sorted."""
        return sorted(name for name, section in self.snapshots.items() if "snapstate" not in section.values)


def parse(text: str) -> Conf:
    """A conf file's content. Lines that Proxmox itself would not understand are passed over, as it does."""
    conf = Conf()
    section = conf.main
    for line in text.split("\n"):
        header = _SECTION.match(line)
        if header:
            name = header.group(1)
            section = conf.pending if name == "pve:pending" else conf.snapshots.setdefault(name, Section())
        elif line.startswith("#"):
            section.comments.append(line[1:])
        else:
            raw, plain = _RAW_LINE.match(line), _LINE.match(line)
            if raw:
                section.raw.append((raw.group(1), raw.group(2)))
            elif plain:
                section.values[plain.group(1)] = plain.group(2)
    return conf


def as_comments(description: str) -> list[str]:
    """The lines that Proxmox writes for a description.

    Control characters, colons and what is not ASCII are percent-encoded; a percent sign is not, so that C(%41) in a
    description is read back as C(A) (that is Proxmox's own doing).
    """
    text = description.rstrip("\n")
    return ["".join(_encoded(character) for character in line) for line in text.split("\n")] if text else []


def _encoded(character: str) -> str:
    if " " <= character <= "~" and character != ":":
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def _deleted_by_pending(conf: Conf) -> set:
    # "!key" is one that Proxmox was told to remove by force.
    return set(filter(None, conf.pending.values.get("delete", "").replace("!", "").split(",")))


def waiting(conf: Conf) -> list:
    """The keys that change or go at a restart, sorted."""
    return sorted((set(conf.pending.values) - {"delete"}) | _deleted_by_pending(conf))


def with_pending(conf: Conf) -> Section:
    """The main section as it is after a restart."""
    values = {**conf.main.values, **conf.pending.values}
    gone = _deleted_by_pending(conf) | {"delete"}
    kept = {key: value for key, value in values.items() if key not in gone}
    return Section(kept, list(conf.main.raw), list(conf.main.comments))


def render(section: Section) -> str:
    """One section as Proxmox writes it: description, sorted keys, raw lines."""
    lines = [f"#{line}" for line in section.comments]
    lines += [f"{key}: {value}" for key, value in sorted(section.values.items())]
    lines += [f"{key}: {value}" for key, value in section.raw]
    return "".join(f"{line}\n" for line in lines)


def render_conf(conf: Conf) -> str:
    """A whole conf file as Proxmox writes it."""
    text = render(conf.main)
    if conf.pending.values:
        text += f"\n[pve:pending]\n{render(conf.pending)}"
    return text + "".join(f"\n[{name}]\n{render(section)}" for name, section in sorted(conf.snapshots.items()))


def is_property_string(key: str) -> bool:
    """Does the value of this key consist of C(name=value) parts?"""
    return base(key) in KEYS and bool(KEYS[base(key)].parts)


def split_property(key: str, text: str) -> dict[str, str]:
    """The parts of a property string, the unnamed one under its name.

    :raises ValueError: when a part has no name and the key knows no unnamed part
    """
    result = {}
    known = KEYS[base(key)]
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or (name.startswith("/") and known.unnamed):
            unnamed = known.unnamed
            if not unnamed:
                raise ValueError(f"{key}: {part!r} in {text!r} is not of the form name=value")
            name, value = unnamed, part
        result[name] = value
    return result


def join_property(key: str, parts: Mapping[str, object]) -> str:
    """A property string from its parts, in the order in which Proxmox writes them.

    Booleans become 1 and 0; parts without a value are left out.
    """
    known = KEYS[base(key)]
    named = {name: plain(value) for name, value in parts.items() if value is not None and value != ""}
    first = [named.pop(known.unnamed)] if known.unnamed in named and base(key) != "startup" else []
    order = sorted(named, key=lambda name: (name != known.first, name))
    return ",".join(first + [f"{name}={named[name]}" for name in order])


def plain(value: object) -> str:
    """A value as Proxmox writes it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value)


def as_written(key: str, value: str) -> str:
    """A value as Proxmox writes it into the conf file when it is given this one."""
    if is_property_string(key):
        return join_property(key, split_property(key, value))
    if key == "tags":
        return ";".join(_tags(value))
    return BOOLEANS.get(value.lower(), value) if key in _BOOLEAN_KEYS else value


def _tags(value: str) -> list[str]:
    return sorted({tag.lower() for tag in re.split(r"[;,\s]+", value) if tag})


def normalised(key: str, value: str) -> object:
    """A value in a form in which equal things are equal: what Proxmox itself would make of it."""
    if is_property_string(key):
        return _normalised_parts(key, split_property(key, value))
    if key == "description":
        return unquote("\n".join(as_comments(value)))
    if key == "cpulimit" and re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    if key == "tags":
        return _tags(value)
    if key in _BOOLEAN_KEYS:
        return BOOLEANS.get(value.lower(), value)
    if key in ("nameserver", "searchdomain"):
        return re.split(r"[,;\s]+", value.strip())
    return value.strip()


def _normalised_parts(key: str, parts: dict[str, str]) -> dict[str, str]:
    known = KEYS[base(key)]
    # A part that is as if it were left out is left out; the size is what Proxmox writes, and nobody declares it here.
    gone = {name for name, value in known.defaults.items() if name in parts and _flat(parts[name]) == value}
    parts = {name: _flat(value) if name in known.defaults else value for name, value in parts.items()}
    if base(key) in ("rootfs", "mp"):
        gone.add("size")
    if "hwaddr" in parts:
        parts["hwaddr"] = parts["hwaddr"].upper()
    if "mp" in parts:
        parts["mp"] = parts["mp"].rstrip("/")
    return {name: value for name, value in parts.items() if name not in gone}


def _flat(value: str) -> str:
    return BOOLEANS.get(value.lower(), value)


def same(key: str, one: str | None, other: str | None) -> bool:
    """Do two values of a key mean the same?"""
    if one is None or other is None:
        return one is other
    return normalised(key, one) == normalised(key, other)


def size_in_bytes(text: str) -> int:
    """A size as in C(size=8G). :raises ValueError: when it is none"""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size such as 8G")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def split_raw(line: str) -> tuple[str, str]:
    """Key and value of a raw line, C(lxc.key: value) or C(lxc.key = value).

    :raises ValueError: when it is none, or has a key that Proxmox doesn't keep
    """
    match = _RAW_LINE.match(line)
    if not match:
        raise ValueError(f"{line!r} is not of the form lxc.key: value")
    if not _RAW_KEYS.fullmatch(match.group(1)):
        raise ValueError(f"{match.group(1)} is not a key that Proxmox keeps in a container's configuration")
    return match.group(1), match.group(2)


def raw_of(line: str) -> tuple[str, str] | None:
    """Key and value when a line is a raw one, of a conf file or of LXC's own configuration."""
    raw = _RAW_LINE.match(line)
    return (raw.group(1), raw.group(2)) if raw else None


def edit_raw(text: str, removed: Iterable[tuple[str, str]], added: Iterable[tuple[str, str]]) -> str:
    """A conf file's content without and with raw lines, in the main section.

    :param removed: lines that go, as (key, value)
    :param added: lines that come, behind those that are there

    Other lines stay as they are, to the byte. Nothing is written below the first section header: a line there would
    belong to a snapshot.
    """
    gone = set(removed)
    all_lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    end = next((place for place, line in enumerate(all_lines) if _SECTION.match(line)), len(all_lines))
    main, rest = all_lines[:end], all_lines[end:]
    kept = [line for line in main if not gone or raw_of(line) not in gone]
    # Empty lines before a section header belong to it.
    gap = []
    while kept and not kept[-1].strip():
        gap.insert(0, kept.pop())
    if kept and not kept[-1].endswith("\n"):
        kept[-1] += "\n"
    return "".join([*kept, *(f"{key}: {value}\n" for key, value in added), *gap, *rest])
