# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may stand behind each option of a container, as functions from text to normalised text.

A validator returns the value as the conf file keeps it, or raises ``ValueError`` with the reason that pct shows
behind ``<option>: ``.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from typing import Callable

from node import release
from node.errors import ParameterError, PctError

Validator = Callable[[str], str]
Properties = dict[str, str]


class PropertyError(ValueError):
    """A property string is wrong at one key; pct names it as ``<option>.<key>: <reason>``."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


_SIZE_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def size_bytes(text: str) -> int:
    """``8G`` as bytes. Units K, M, G, T; none means bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    if not match:
        raise ValueError(f"invalid format - value '{text}' is not a valid disk size")
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def size_text(count: int) -> str:
    """Bytes as Proxmox writes them: the largest unit that leaves no remainder."""
    for unit in ("T", "G", "M", "K"):
        if count >= _SIZE_UNITS[unit] and count % _SIZE_UNITS[unit] == 0:
            return f"{count // _SIZE_UNITS[unit]}{unit}"
    return str(count)


def boolean(text: str) -> str:
    """0 or 1 from the words that Proxmox accepts."""
    if text.lower() in ("1", "on", "yes", "true"):
        return "1"
    if text.lower() in ("0", "off", "no", "false"):
        return "0"
    raise ValueError(f"type check ('boolean') failed - got '{text}'")


def integer(low: int, high: int | None = None) -> Validator:
    """A whole number from ``low`` to ``high``."""

    def check(text: str) -> str:
        if not re.fullmatch(r"[+-]?\d+", text):
            raise ValueError(f"type check ('integer') failed - got '{text}'")
        if int(text) < low:
            raise ValueError(f"value must have a minimum value of {low}")
        if high is not None and int(text) > high:
            raise ValueError(f"value must have a maximum value of {high}")
        return str(int(text))

    return check


def number(low: float, high: float) -> Validator:
    """A decimal number from ``low`` to ``high``, kept as it was written."""

    def check(text: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?", text):
            raise ValueError(f"type check ('number') failed - got '{text}'")
        if not low <= float(text) <= high:
            raise ValueError(f"value must have a maximum value of {high:g}")
        return text

    return check


def one_of(*allowed: str) -> Validator:
    """One of a list of words."""

    def check(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"value '{text}' does not have a value in the enumeration '{', '.join(allowed)}'")
        return text

    return check


def pattern(regex: str, reason: str = "value does not match the regex pattern") -> Validator:
    """Text that matches a regular expression as a whole."""

    def check(text: str) -> str:
        if not re.fullmatch(regex, text):
            raise ValueError(reason.format(text))
        return text

    return check


def anything(text: str) -> str:
    """Any text of one line that isn't empty."""
    if not text.strip() or "\n" in text:
        raise ValueError("invalid format - value must be one line")
    return text


def tags(text: str) -> str:
    """Lower case, no doubles, sorted, joined by semicolons."""
    names = [name.lower() for name in re.split(r"[;,\s]+", text) if name]
    for name in names:
        if not re.fullmatch(r"[a-z0-9_][a-z0-9_\-+.]*", name):
            raise ValueError(f"invalid format - invalid characters in tag '{name}'")
    return ";".join(sorted(set(names)))


def _addresses(text: str) -> str:
    for word in re.split(r"[,;\s]+", text):
        if word == "host":
            continue
        try:
            ipaddress.ip_address(word)
        except ValueError:
            raise ValueError(f"invalid format - value '{word}' does not look like a valid ip address") from None
    return text


def _startup(text: str) -> str:
    if not re.fullmatch(r"((order=)?\d+|up=\d+|down=\d+)(,((order=)?\d+|up=\d+|down=\d+))*", text):
        raise ValueError("invalid format - unable to parse startup options")
    return ",".join(part if "=" in part else f"order={part}" for part in text.split(","))


def _address_and_length(family: int, words: tuple[str, ...]) -> Validator:
    def check(text: str) -> str:
        if text in words:
            return text
        try:
            interface = ipaddress.ip_interface(text)
            if "/" in text and interface.version == family:
                return text
        except ValueError:
            pass
        kind = f"IPv{family} network configuration"
        raise ValueError(f"invalid format - value '{text}' does not look like a valid {kind}")

    return check


def _address(family: int) -> Validator:
    def check(text: str) -> str:
        try:
            if text == "auto" or ipaddress.ip_address(text).version == family:
                return text
        except ValueError:
            pass
        raise ValueError(f"invalid format - value '{text}' does not look like a valid IPv{family} address")

    return check


NO_VMID = "invalid format - value does not look like a valid VM ID"
NO_SUCH_PROPERTY = "property is not defined in schema and the schema does not allow additional properties"


class PropertyString:
    """A format like ``name=eth0,bridge=vmbr0``: checked keys, at most one of them may be given bare.

    ``since`` has the release that brought a key; until then it can't be given, though it can be read.
    """

    def __init__(
        self,
        keys: dict[str, Validator],
        default: str = "",
        required: tuple[str, ...] = (),
        since: dict[str, release.Release] | None = None,
    ) -> None:
        self.keys, self.default, self.required, self.since = keys, default, required, since or {}

    def parse(self, text: str) -> Properties:
        """Text to properties; ``ValueError`` with Proxmox's reason when it isn't of this format."""
        found: Properties = {}
        for part in filter(None, (word.strip() for word in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals and self.default:
                key, value = self.default, part
            if key not in self.keys:
                raise PropertyError(key, NO_SUCH_PROPERTY)
            if key in found:
                raise PropertyError(key, "duplicate key in comma-separated list property")
            try:
                found[key] = self.keys[key](value)
            except ValueError as reason:
                raise PropertyError(key, str(reason)) from None
        for key in self.required:
            if key not in found:
                raise PropertyError(key, "property is missing and it is not optional")
        return found

    def render(self, properties: Properties) -> str:
        """Properties to text: the bare key first, required ones next, the others sorted."""
        words = [properties[self.default]] if self.default in properties else []
        others = sorted((key for key in properties if key != self.default), key=lambda k: (k not in self.required, k))
        return ",".join(words + [f"{key}={properties[key]}" for key in others])

    def __call__(self, text: str) -> str:
        """Check and normalise."""
        found = self.parse(text)
        for key in found.keys() & self.since.keys():
            if not release.at_least(*self.since[key]):
                raise PropertyError(key, NO_SUCH_PROPERTY)
        return self.render(found)


FEATURES = PropertyString(
    {
        **dict.fromkeys(("nesting", "keyctl", "fuse", "mknod", "force_rw_sys"), boolean),
        "mount": pattern(r"[a-zA-Z0-9_; ]+"),
    }
)
NET = PropertyString(
    {
        "name": pattern(r"[-_.\w\d]{2,15}"),
        "bridge": pattern(r"[-_.\w\d]+"),
        "hwaddr": pattern(
            r"(?i)[0-9a-f][02468ace](?::[0-9a-f]{2}){5}",
            "invalid format - value '{}' does not look like a valid unicast MAC address",
        ),
        "ip": _address_and_length(4, ("dhcp", "manual")),
        "gw": _address(4),
        "ip6": _address_and_length(6, ("auto", "dhcp", "manual")),
        "gw6": _address(6),
        "tag": integer(1, 4094),
        "trunks": pattern(r"\d+(?:-\d+)?(?:;\d+(?:-\d+)?)*"),
        "mtu": integer(64, 65535),
        "rate": number(0, 1e6),
        "firewall": boolean,
        "link_down": boolean,
        "host-managed": boolean,
        "type": one_of("veth"),
    },
    required=("name",),
    since={"host-managed": (9, 1)},
)


def _disk_size(text: str) -> str:
    return size_text(size_bytes(text))


def _device_path(text: str) -> str:
    if not re.fullmatch(r"(?!.*/\.\.(/|$))/dev/\S+", text):
        raise ValueError(f"invalid format - value '{text}' is not a valid device path")
    return text


_MOUNT_OPTION = "(noatime|lazytime|nodev|nosuid|noexec|discard)"
_VOLUME_KEYS: dict[str, Validator] = {
    "volume": anything,
    "size": _disk_size,
    **dict.fromkeys(("acl", "ro", "quota", "replicate", "shared"), boolean),
    "mountoptions": pattern(rf"{_MOUNT_OPTION}(;{_MOUNT_OPTION})*"),
}
ROOTFS = PropertyString(_VOLUME_KEYS, default="volume", required=("volume",))
MOUNT = PropertyString(
    {
        **_VOLUME_KEYS,
        "mp": pattern(r"(?!.*/\.\.(/|$))/[^\0]+", "invalid format - value '{}' is not a valid mount point"),
        "backup": boolean,
        "keepattrs": boolean,
    },
    default="volume",
    required=("volume", "mp"),
    since={"keepattrs": (9, 1)},
)
DEVICE = PropertyString(
    {
        "path": _device_path,
        "deny-write": boolean,
        "gid": integer(0),
        "uid": integer(0),
        "mode": pattern(r"0[0-7]{3}"),
    },
    default="path",
    required=("path",),
    since={"deny-write": (8, 3)},
)

_HOSTNAME = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_LOCKS = (
    "backup", "create", "destroyed", "disk", "fstrim", "migrate", "mounted", "rollback", "snapshot", "snapshot-delete",
)  # fmt: skip
_DNS_NAME = pattern(rf"{_HOSTNAME}(\.{_HOSTNAME})*", "invalid format - value '{}' does not look like a valid DNS name")

_SIMPLE: dict[str, Validator] = {
    "arch": one_of("amd64", "i386", "arm64", "armhf", "riscv32", "riscv64"),
    "cmode": one_of("shell", "console", "tty"),
    "console": boolean,
    "cores": integer(1, 8192),
    "cpulimit": number(0, 8192),
    "cpuunits": integer(0, 500000),
    "debug": boolean,
    "description": lambda text: text,
    "entrypoint": anything,
    "env": anything,
    "features": FEATURES,
    "hookscript": anything,
    "hostname": _DNS_NAME,
    "lock": one_of(*_LOCKS),
    "memory": integer(16),
    "nameserver": _addresses,
    "onboot": boolean,
    "ostype": one_of(
        "debian", "devuan", "ubuntu", "centos", "fedora", "opensuse", "archlinux", "alpine", "gentoo", "nixos",
        "unmanaged",
    ),
    "protection": boolean,
    "rootfs": ROOTFS,
    "searchdomain": lambda text: " ".join(_DNS_NAME(word) for word in re.split(r"[,;\s]+", text)),
    "startup": _startup,
    "swap": integer(0),
    "tags": tags,
    "template": boolean,
    "timezone": anything,
    "tty": integer(0, 6),
    "unprivileged": boolean,
}  # fmt: skip
_NUMBERED: dict[str, tuple[int, Validator]] = {
    "net": (31, NET),
    "mp": (255, MOUNT),
    "dev": (255, DEVICE),
    "unused": (255, anything),
}

# The release that brought an option; before it there is no such option
SINCE: dict[str, release.Release] = {"dev": (8, 1), "entrypoint": (9, 1), "env": (9, 1)}

BOOLEANS = frozenset(name for name, check in _SIMPLE.items() if check is boolean)
REQUIRED = frozenset({"rootfs", "memory", "ostype"})
READ_ONLY = frozenset({"arch", "unprivileged", "template"})


def validator(name: str) -> Validator | None:
    """The validator of an option, None when there is no such option in this release."""
    stem = name.rstrip("0123456789")
    if stem in SINCE and not release.at_least(*SINCE[stem]):
        return None
    if name in _SIMPLE:
        return _SIMPLE[name]
    match = re.fullmatch(r"([a-z]+)(\d+)", name)
    if match and match[1] in _NUMBERED and int(match[2]) <= _NUMBERED[match[1]][0] and str(int(match[2])) == match[2]:
        return _NUMBERED[match[1]][1]
    return None


def option_names() -> list[str]:
    """All option names that the command line knows in this release, numbered ones included."""
    too_new = {name for name, since in SINCE.items() if not release.at_least(*since)}
    numbered = [f"{s}{i}" for s, (top, _check) in _NUMBERED.items() if s not in too_new for i in range(top + 1)]
    return sorted(_SIMPLE.keys() - too_new) + numbered


def checked_config(given: dict[str, str]) -> dict[str, str]:
    """The config options among these, checked and normalised; all mistakes are named at once."""
    good: dict[str, str] = {}
    bad: dict[str, str] = {}
    for name, value in sorted(given.items()):
        check = validator(name)
        if check is None:
            continue
        try:
            good[name] = check(value)
        except PropertyError as reason:
            bad[name] = f"invalid format - format error\n{name}.{reason.key}: {reason.reason}"
        except ValueError as reason:
            bad[name] = str(reason)
    if bad:
        raise ParameterError(bad)
    return good


def with_hwaddr(net: Properties) -> Properties:
    """A network card with a MAC address (Proxmox's own prefix) and its type filled in."""
    tail = secrets.token_bytes(3)
    made = "BC:24:11:" + ":".join(f"{byte:02X}" for byte in tail)
    return {"hwaddr": made, "type": "veth", **net}


def id_map(raw: list[tuple[str, str]], unprivileged: bool, start: int, count: int) -> list[tuple[str, int, int, int]]:
    """(kind, first id inside, first id outside, count): the raw ``lxc.idmap`` lines, or the default map."""
    lines = [value for key, value in raw if key == "lxc.idmap"]
    if not lines:
        return [("u", 0, start, count), ("g", 0, start, count)] if unprivileged else []
    found = []
    for line in lines:
        match = re.fullmatch(r"([ug])\s+(\d+)\s+(\d+)\s+(\d+)", line)
        if not match:
            raise PctError(f"failed to parse idmap: {line}")
        found.append((match[1], int(match[2]), int(match[3]), int(match[4])))
    return found


def to_host(id_maps: list[tuple[str, int, int, int]], kind: str, number_inside: int) -> int:
    """The id on the host of an id inside the container; itself when nothing is mapped (privileged)."""
    if not id_maps:
        return number_inside
    for letter, inside, outside, count in id_maps:
        if letter in (kind, "b") and inside <= number_inside < inside + count:
            return outside + number_inside - inside
    raise ValueError(f"{kind}id {number_inside} is not mapped into the container")
