# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Proxmox writes into a Debian guest: network, names, resolver, passwords, host keys.

The texts are pure functions; :func:`inside` is the one way into a root file system. It enters by chroot as the
container's own root, so that a link in the guest can't lead to the host's files.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Callable

from node import settings
from node.conf import Section
from node.schema import NET, id_map, to_host
from node.system import in_child, run

# Units that can't work in a container; Proxmox masks them when it creates one
MASKED_UNITS = ("sys-kernel-config.mount", "sys-kernel-debug.mount")
BEGIN, END = "# --- BEGIN PVE ---", "# --- END PVE ---"


def networks(section: Section) -> dict[int, dict[str, str]]:
    """The network cards of a section by their number."""
    return {
        int(key[3:]): NET.parse(value) for key, value in sorted(section.options.items()) if re.fullmatch(r"net\d+", key)
    }


def interfaces_text(section: Section) -> str:
    """/etc/network/interfaces for ifupdown."""
    parts = ["auto lo\niface lo inet loopback\n"]
    for _number, net in sorted(networks(section).items()):
        name = net["name"]
        text = f"auto {name}\n"
        ip, ip6 = net.get("ip", ""), net.get("ip6", "")
        if ip and ip not in ("dhcp", "manual"):
            text += f"iface {name} inet static\n\taddress {ip}\n"
            if "gw" in net:
                gateway = ipaddress.ip_address(net["gw"])
                if gateway not in ipaddress.ip_interface(ip).network:
                    text += f"\tpost-up ip route add {gateway} dev {name}\n"
                    text += f"\tpost-up ip route add default via {gateway} dev {name}\n"
                else:
                    text += f"\tgateway {gateway}\n"
        else:
            text += f"iface {name} inet {ip or 'manual'}\n"
        if ip6 and ip6 not in ("dhcp", "manual", "auto"):
            text += f"\niface {name} inet6 static\n\taddress {ip6}\n"
            if "gw6" in net:
                text += f"\tgateway {net['gw6']}\n"
        elif ip6:
            text += f"\niface {name} inet6 {ip6}\n"
        parts.append(text)
    return "\n".join(parts)


def with_block(old: str, block: str) -> str:
    """A file's text with Proxmox's own block replaced, put at the end when there was none, dropped when empty."""
    bare = re.sub(rf"^{BEGIN}\n.*?^{END}\n?", "", old, flags=re.M | re.S)
    if not block:
        return bare
    if bare and not bare.endswith("\n"):
        bare += "\n"
    return f"{bare}{BEGIN}\n{block}{END}\n"


def full_names(hostname: str, searchdomain: str) -> tuple[str, str]:
    """(short name, ``fqdn short`` for /etc/hosts)."""
    short, domain = hostname.partition(".")[::2]
    domain = domain or (searchdomain.split() or [""])[0]
    return short, f"{short}.{domain} {short}" if domain else short


def hosts_text(old: str, section: Section) -> str:
    """/etc/hosts: the container's own addresses in Proxmox's block."""
    hostname = section.options.get("hostname", "localhost")
    _short, names = full_names(hostname, section.options.get("searchdomain", ""))
    addresses = []
    for net in networks(section).values():
        for key in ("ip", "ip6"):
            value = net.get(key, "")
            if "/" in value:
                addresses.append(value.split("/")[0])
    block = "".join(f"{address} {names}\n" for address in addresses) or f"127.0.1.1 {names}\n"
    base = old or "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
    return with_block(base, block)


def resolver_text(section: Section, host_text: str) -> str:
    """/etc/resolv.conf: the conf's nameservers and search domain, else the node's."""
    search = section.options.get("searchdomain", "")
    servers = re.split(r"[,;\s]+", section.options["nameserver"]) if "nameserver" in section.options else []
    if not servers or servers == ["host"]:
        servers = re.findall(r"^nameserver\s+(\S+)", host_text, re.M)
    if not search and "nameserver" not in section.options:
        found = re.findall(r"^(?:search|domain)\s+(.+?)\s*$", host_text, re.M)
        search = found[0] if found else ""
    return with_block("", (f"search {search}\n" if search else "") + "".join(f"nameserver {s}\n" for s in servers))


def host_resolver() -> str:
    """The node's resolv.conf; with a stub resolver on loopback (systemd-resolved), the one behind it."""
    text = Path("/etc/resolv.conf").read_text() if Path("/etc/resolv.conf").exists() else ""
    behind = Path("/run/systemd/resolve/resolv.conf")
    if re.search(r"^nameserver\s+127\.", text, re.M) and behind.exists():
        return behind.read_text()
    return text


def inside(rootfs: Path, section: Section, work: Callable[[], None]) -> None:
    """Run ``work`` in a child that is chrooted into ``rootfs`` as the container's root."""
    unprivileged = section.options.get("unprivileged") == "1"
    maps = id_map(section.raw, unprivileged, settings.ID_START, settings.ID_COUNT)
    uid, gid = to_host(maps, "u", 0), to_host(maps, "g", 0)

    def enter() -> None:
        os.chroot(rootfs)
        os.chdir("/")
        os.umask(0o022)
        if uid or gid:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        work()

    in_child(enter)


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as handle:
            return handle.read()
    except FileNotFoundError:
        return ""


def _write(path: str, text: str, mode: int = 0o644) -> None:
    if _read(path) == text and os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.pve-tmp"
    with open(temporary, "w") as handle:
        handle.write(text)
        os.fchmod(handle.fileno(), mode)
    os.rename(temporary, path)


def prepare_start(rootfs: Path, section: Section) -> None:
    """Write what Proxmox writes at each start."""
    resolver = resolver_text(section, host_resolver())
    network = interfaces_text(section)
    short = full_names(section.options.get("hostname", "localhost"), "")[0]

    def work() -> None:
        if not os.path.exists("/etc"):
            raise FileNotFoundError(2, "No such file or directory", "/etc")
        _write("/etc/hostname", short + "\n")
        _write("/etc/hosts", hosts_text(_read("/etc/hosts"), section))
        if os.path.islink("/etc/resolv.conf"):
            os.unlink("/etc/resolv.conf")
        _write("/etc/resolv.conf", resolver)
        if os.path.isdir("/etc/network"):
            _write("/etc/network/interfaces", network)

    inside(rootfs, section, work)


def prepare_network(rootfs: Path, section: Section) -> None:
    """Write the network configuration of a running container anew."""
    network = interfaces_text(section)

    def work() -> None:
        _write("/etc/network/interfaces", network)
        _write("/etc/hosts", hosts_text(_read("/etc/hosts"), section))

    inside(rootfs, section, work)


def prepare_new(rootfs: Path, section: Section, password_hash: str, ssh_keys: str, timezone: str) -> None:
    """Write what Proxmox writes once, after unpacking: root's password and keys, a new machine id."""

    def work() -> None:
        reset_machine_id()
        for unit in MASKED_UNITS if os.path.isdir("/etc/systemd/system") else ():
            if not os.path.lexists(f"/etc/systemd/system/{unit}"):
                os.symlink("/dev/null", f"/etc/systemd/system/{unit}")
        if password_hash:
            lines = _read("/etc/shadow").splitlines()
            lines = [
                ":".join(["root", password_hash, *line.split(":")[2:]]) if line.startswith("root:") else line
                for line in lines
            ]
            _write("/etc/shadow", "\n".join(lines) + "\n", 0o640)
        if ssh_keys:
            os.makedirs("/root/.ssh", mode=0o700, exist_ok=True)
            _write("/root/.ssh/authorized_keys", ssh_keys, 0o600)
        if timezone and os.path.exists(f"/usr/share/zoneinfo/{timezone}"):
            if os.path.lexists("/etc/localtime"):
                os.unlink("/etc/localtime")
            os.symlink(f"/usr/share/zoneinfo/{timezone}", "/etc/localtime")

    inside(rootfs, section, work)


def reset_machine_id() -> None:
    """Inside a guest: forget the machine id, so that systemd makes a new one (create and clone do this)."""
    if os.path.exists("/etc/machine-id"):
        _write("/etc/machine-id", "", 0o444)
    if os.path.exists("/var/lib/dbus/machine-id") and not os.path.islink("/var/lib/dbus/machine-id"):
        os.unlink("/var/lib/dbus/machine-id")


def os_release(rootfs: Path) -> tuple[str, str]:
    """(ostype, Debian/Ubuntu version) of an unpacked root file system, ``unmanaged`` when it isn't known."""
    release = ""
    for name in ("etc/os-release", "usr/lib/os-release"):
        path = rootfs / name
        if path.is_file() and not path.is_symlink():
            release = path.read_text(errors="replace")
            break
    ids = re.findall(r"^ID=\"?(\w+)\"?$", release, re.M)
    kind = ids[0] if ids and ids[0] in ("debian", "ubuntu") else "unmanaged"
    versions = re.findall(r"^VERSION_ID=\"?([\d.]+)\"?$", release, re.M)
    return kind, versions[0] if versions else ""


def systemd_version(rootfs: Path) -> int:
    """The version of the guest's systemd by the name of its shared library, 0 without systemd."""
    for folder in ("usr/lib/systemd", "lib/systemd", "usr/lib/x86_64-linux-gnu/systemd"):
        for found in (rootfs / folder).glob("libsystemd-shared-*.so"):
            match = re.match(r"libsystemd-shared-(\d+)", found.name)
            if match:
                return int(match[1])
    return 0


def hash_password(password: str) -> str:
    """A SHA-512 crypt hash; the password goes through stdin, never onto a command line."""
    return run(["openssl", "passwd", "-6", "-stdin"], data=password + "\n").strip()
