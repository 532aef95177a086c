# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every configuration key of a container, Proxmox VE 7.4 to 9.1: what may stand behind it, since when there is it, and
whether a running container takes a change of it at once.

From Proxmox's own schema as it was seen (pct.md, "Config file" and "set"). What only the node can know (does that
bridge exist?) is left to it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Release = tuple  # of two numbers: (9, 1)

OLDEST: Release = (7, 4)
# A node whose release isn't known is taken for one of these.
NEWEST: Release = (9, 1)
# Devices by key; before, only raw lines with their numbers can pass one through.
HAS_DEVICES: Release = (8, 1)
# A device that is new reaches a running container.
HOTPLUGS_DEVICES: Release = (9, 0)

BOOLEANS = {"1": "1", "yes": "1", "true": "1", "on": "1", "0": "0", "no": "0", "false": "0", "off": "0"}

# A check gives what is allowed, as a phrase that follows "has to be", or "" when the value is good.
Check = Callable[[str], str]


def _whole(low: int, high: int | None = None) -> Check:
    def check(value: str) -> str:
        good = re.fullmatch(r"\d+", value, re.ASCII) and low <= int(value) and (high is None or int(value) <= high)
        return "" if good else f"a whole number from {low}{'' if high is None else f' to {high}'}"

    return check


def _number(value: str) -> str:
    return "" if re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII) else "a number"


def _flag(value: str) -> str:
    return "" if value.lower() in BOOLEANS else "0 or 1"


def _one_of(*words: str) -> Check:
    return lambda value: "" if value in words else f"one of {', '.join(words)}"


def _line(value: str) -> str:
    return "" if value and not re.search(r"[\x00-\x1f\x7f]", value) else "text in one line"


def _any(value: str) -> str:
    return ""


def _match(pattern: str, what: str) -> Check:
    return lambda value: "" if re.fullmatch(pattern, value, re.ASCII) else what


@dataclass(frozen=True)
class Key:
    """A configuration key.

    :ivar check: whether a value is good; for property strings, of each part
    :ivar parts: the parts of a property string by name, empty when the value is none
    :ivar unnamed: the part that may be given without its name
    :ivar first: the part that Proxmox writes first when none is unnamed, or after it
    :ivar defaults: parts that mean the same as when they are left out
    :ivar highest: the highest number behind the name (C(net31)), None when it has none
    :ivar live: whether a running container takes a change at once
    :ivar since: the first release that has it
    """

    check: Check = _line
    parts: Mapping[str, Check] = field(default_factory=dict)
    unnamed: str = ""
    first: str = ""
    defaults: Mapping[str, str] = field(default_factory=dict)
    highest: int | None = None
    live: bool = False
    since: Release = OLDEST


_SIZE = _match(r"\d+(\.\d+)?[KMGT]?", "a size such as 8G")
_VOLUME = {
    "volume": _line, "acl": _flag, "mountoptions": _line, "quota": _flag, "replicate": _flag, "ro": _flag,
    "shared": _flag, "size": _SIZE,
}  # fmt: skip

KEYS: Mapping[str, Key] = {
    "arch": Key(_one_of("amd64", "i386", "arm64", "armhf", "riscv32", "riscv64")),
    "cmode": Key(_one_of("shell", "console", "tty")),
    "console": Key(_flag),
    "cores": Key(_whole(1, 8192), live=True),
    "cpulimit": Key(_number, live=True),
    "cpuunits": Key(_whole(0, 500000), live=True),
    "debug": Key(_flag),
    "description": Key(_any, live=True),
    "dev": Key(
        parts={
            "path": _match(r"/dev/\S+", "a path below /dev/"), "deny-write": _flag, "gid": _whole(0), "uid": _whole(0),
            "mode": _match(r"0[0-7]{3}", "four octal digits, the first of them 0"),
        },
        unnamed="path", defaults={"deny-write": "0", "gid": "0", "uid": "0", "mode": "0660"}, highest=255,
        since=HAS_DEVICES,
    ),
    "entrypoint": Key(since=(9, 1)),
    "env": Key(since=(9, 1)),
    "features": Key(
        parts={
            **dict.fromkeys(("force_rw_sys", "fuse", "keyctl", "mknod", "nesting"), _flag),
            "mount": _match(r"[\w; ]+", "file systems, with semicolons between them"),
        },
        defaults=dict.fromkeys(("force_rw_sys", "fuse", "keyctl", "mknod", "nesting"), "0"),
    ),
    "hookscript": Key(live=True),
    "hostname": Key(
        _match(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*", "a DNS name")
    ),
    "memory": Key(_whole(16), live=True),
    "mp": Key(
        parts={**_VOLUME, "backup": _flag, "idmap": _line, "keepattrs": _flag, "mp": _match(r"/.*", "a path")},
        unnamed="volume", first="mp", highest=255,
        defaults={**dict.fromkeys(("acl", "backup", "keepattrs", "quota", "ro", "shared"), "0"), "replicate": "1"},
    ),
    "nameserver": Key(),
    "net": Key(
        parts={
            "name": _line, "bridge": _line, "firewall": _flag, "gw": _line, "gw6": _line, "host-managed": _flag,
            "hwaddr": _match(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", "a MAC address"), "ip": _line, "ip6": _line,
            "link_down": _flag, "mtu": _whole(64, 65535), "rate": _number, "tag": _whole(1, 4094), "trunks": _line,
            "type": _one_of("veth"),
        },
        first="name", defaults={"firewall": "0", "host-managed": "0", "link_down": "0"}, highest=31, live=True,
    ),
    "onboot": Key(_flag, live=True),
    "ostype": Key(
        _one_of("debian", "devuan", "ubuntu", "centos", "fedora", "opensuse", "archlinux", "alpine", "gentoo", "nixos",
                "unmanaged")
    ),
    "protection": Key(_flag, live=True),
    "rootfs": Key(
        parts=_VOLUME, unnamed="volume",
        defaults={"acl": "0", "quota": "0", "replicate": "1", "ro": "0", "shared": "0"},
    ),
    "searchdomain": Key(),
    "startup": Key(
        parts={"order": _whole(0), "up": _whole(0), "down": _whole(0)}, unnamed="order", live=True
    ),
    "swap": Key(_whole(0), live=True),
    "tags": Key(_any, live=True),
    "timezone": Key(),
    "tty": Key(_whole(0, 6)),
}  # fmt: skip

# What Proxmox has a key for that is no matter of configuration, and what to use instead.
_ELSEWHERE = {
    "digest": "it is not yours to set",
    "lock": "it is Proxmox's own; to remove one that was left over, use pct unlock",
    "lxc": "declare raw lines in raw",
    "parent": "take and roll back snapshots with pct_snapshot",
    "snaptime": "take and roll back snapshots with pct_snapshot",
    "template": "ask for state: template",
    "unprivileged": "use the option unprivileged",
    "unused": "volumes that are not used any more are yours to look through and remove: pct set … --delete unusedN",
}


def base(key: str) -> str:
    """A key without its number: C(net0) is a C(net)."""
    return key.rstrip("0123456789")


def find(key: str) -> Key | None:
    """What is known of a key, numbers as they may be; None when Proxmox has no such key."""
    known = KEYS.get(base(key))
    if known is None:
        return None
    number = key[len(base(key)) :]
    if known.highest is None:
        return known if number == "" else None
    good = number != "" and int(number) <= known.highest and str(int(number)) == number
    return known if good else None


def is_live(key: str, is_there: bool, release: Release) -> bool:
    """Does a running container get a change of this key at once?

    :param is_there: whether the key has a value already: mounts and devices that are new reach it, changed ones wait
    :param release: the node's
    """
    if base(key) == "mp":
        return not is_there
    if base(key) == "dev":
        return not is_there and release >= HOTPLUGS_DEVICES
    known = find(key)
    return known is not None and known.live


def problem_of_key(key: str, release: Release) -> str:
    """What is wrong with a key's name, as the end of a sentence; "" when it is good."""
    stem = base(key)
    if stem in _ELSEWHERE:
        return f"is no key to declare; {_ELSEWHERE[stem]}"
    known = find(key)
    if known is None and stem in KEYS:
        highest = KEYS[stem].highest
        return f"has no number; write {stem}" if highest is None else f"needs a number from 0 to {highest} at its end"
    if known is None:
        near = difflib.get_close_matches(stem, KEYS, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(KEYS))}"
        return f"is no configuration key of Proxmox VE{hint}"
    if release < known.since:
        return (
            f"is known to Proxmox VE {known.since[0]}.{known.since[1]} and newer, and this node has "
            f"{release[0]}.{release[1]}; remove it, or upgrade the node"
        )
    return ""


def problem_of_parts(key: str, parts: Mapping[str, str]) -> str:
    """What is wrong with the parts of a property string, as the end of a sentence; "" when they are good."""
    allowed = KEYS[base(key)].parts
    for name, value in parts.items():
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(allowed))}"
            return f"has no part {name!r}; {hint}"
        wanted = allowed[name](value)
        if wanted:
            return f"has the part {name} with the value {value!r}, which has to be {wanted}"
    return ""
