# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The base archive: a small Debian 12 that knows the machine's mirrors, pip settings and CA certificates.

Reading the machine's settings gives one value, :class:`Machine`; from it the files of the archive are made purely.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlparse

from node import settings
from node.errors import PctError
from node.system import run

SUITE = "bookworm"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "iproute2", "ifupdown", "netbase", "procps", "python3", "ca-certificates",
)  # fmt: skip
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# What concerns the way to the mirrors; what apt installs is the guest's own business
_PIP_KEYS = frozenset(
    ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "timeout", "default-timeout",
     "retries")
)  # fmt: skip
_APT_KEYS = re.compile(
    r"^Acquire::(https?(::.*)?|Check-Valid-Until|Check-Date|Max-FutureTime|Retries|ForceIPv[46]|Languages)$", re.I
)


@dataclass(frozen=True)
class Machine:
    """What the machine says about reaching packages. Without a mirror, mmdebstrap knows Debian's own."""

    mirror: str
    security: str
    apt: tuple[str, ...] = ()
    pip: Mapping[str, str] = field(default_factory=dict)
    certificates: Mapping[str, str] = field(default_factory=dict)
    proxies: Mapping[str, str] = field(default_factory=dict)


def debian_mirrors(sources: str) -> tuple[str, str]:
    """(main, security) mirror URI from apt sources of either format; empty where there is none."""
    found: dict[str, str] = {}
    for block in re.split(r"\n\s*\n", sources):
        fields = dict(re.findall(r"^(\w[\w-]*):[ \t]*(.+)$", block, re.M))
        if "deb" in fields.get("Types", "").split():
            for uri in fields.get("URIs", "").split():
                for suite in fields.get("Suites", "").split():
                    found.setdefault("security" if "-security" in suite else "main", uri)
        for uri, suite in re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)", block, re.M):
            found.setdefault("security" if "-security" in suite else "main", uri)
    usable = {kind: uri.rstrip("/") for kind, uri in found.items() if uri.startswith(("http://", "https://"))}
    return usable.get("main", ""), usable.get("security", "")


def source_lines(machine: Machine) -> list[str]:
    """The one-line apt sources of the machine's mirrors."""
    lines = [f"deb {machine.mirror} {suite} main" for suite in (SUITE, f"{SUITE}-updates") if machine.mirror]
    if machine.mirror and machine.security:
        lines.append(f"deb {machine.security} {SUITE}-security main")
    return lines


def apt_settings(dump: str) -> tuple[str, ...]:
    """The lines of ``apt-config dump`` that say how to reach mirrors. Local helper programs are left out."""
    kept = []
    for line in dump.splitlines():
        match = re.match(r'^(\S+?)(::)? "(.*)";$', line)
        if match and match[3] and _APT_KEYS.match(match[1]) and "Proxy-Auto-Detect" not in match[1]:
            kept.append(line)
    return tuple(kept)


def pip_settings(files: list[str], environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings from the texts of its config files (later ones win) and from ``PIP_…`` variables."""
    merged: dict[str, str] = {}
    for text in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                merged.update({key.replace("_", "-"): value.strip() for key, value in parser.items(section)})
    for name, value in environ.items():
        if name.startswith("PIP_") and name != "PIP_CONFIG_FILE" and value:
            merged[name[4:].lower().replace("_", "-")] = value.strip()
    kept = {key: value for key, value in merged.items() if key in _PIP_KEYS}
    if "default-timeout" in kept:
        kept["timeout"] = kept.pop("default-timeout")
    return kept


def local_folders(pip: Mapping[str, str]) -> list[str]:
    """The folders of this machine that pip's settings name, for a bind mount at the same path.

    A ``file://…/simple`` index is taken with its parent: the files that its pages link to lie beside it.
    """
    found = []
    for key in ("find-links", "index-url", "extra-index-url"):
        for word in pip.get(key, "").split():
            path = unquote(urlparse(word).path) if word.startswith("file://") else word
            if not path.startswith("/"):
                continue
            path = os.path.normpath(path)
            if key != "find-links" and os.path.basename(path) == "simple":
                path = os.path.dirname(path)
            found.append(path)
    return sorted(set(found) - {"/"})


def pip_conf(machine: Machine) -> str:
    """/etc/pip.conf of the archive, empty when the machine says nothing."""
    values = dict(machine.pip)
    proxy = machine.proxies.get("https_proxy") or machine.proxies.get("http_proxy")
    if proxy:
        values.setdefault("proxy", proxy)
    if machine.certificates:
        values["cert"] = CA_BUNDLE
    if not values:
        return ""
    lines = [f"{key} = " + "\n    ".join(values[key].split()) for key in sorted(values)]
    return "[global]\n" + "\n".join(lines) + "\n"


def uv_toml(machine: Machine) -> str:
    """/etc/uv/uv.toml of the archive, empty when the machine says nothing. uv doesn't read pip's files."""
    values: dict[str, object] = {}
    pip = machine.pip
    if "index-url" in pip:
        values["index-url"] = _as_url(pip["index-url"])
    if pip.get("extra-index-url"):
        values["extra-index-url"] = [_as_url(word) for word in pip["extra-index-url"].split()]
        values["index-strategy"] = "unsafe-best-match"  # what pip does: all indexes are equal
    if pip.get("find-links"):
        values["find-links"] = pip["find-links"].split()
    if pip.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        values["no-index"] = True
    if pip.get("trusted-host"):
        values["allow-insecure-host"] = pip["trusted-host"].split()
    if machine.certificates:
        values["system-certs"] = True
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _as_url(word: str) -> str:
    return "file://" + word if word.startswith("/") else word


def archive_files(machine: Machine) -> dict[str, str]:
    """Path to text of every file that the lab adds to the plain Debian."""
    files = {
        "/etc/apt/sources.list": "".join(f"{line}\n" for line in source_lines(machine)),
        "/etc/apt/apt.conf.d/90phoenix-lab": "".join(line + "\n" for line in machine.apt)
        + "".join(
            f'Acquire::{name.split("_")[0]}::Proxy "{value}";\n'
            for name, value in sorted(machine.proxies.items())
            if name in ("http_proxy", "https_proxy")
        ),
        "/etc/default/locale": "LANG=C.UTF-8\n",
        "/etc/environment": "".join(f"{name}={value}\n" for name, value in sorted(machine.proxies.items())),
        "/etc/pip.conf": pip_conf(machine),
        "/etc/uv/uv.toml": uv_toml(machine),
    }
    for name, text in machine.certificates.items():
        files[f"/usr/local/share/ca-certificates/{name}"] = text
    return {path: text for path, text in files.items() if text}


def recipe_digest(machine: Machine) -> str:
    """Changes when the archive must be made anew."""
    text = json.dumps([SUITE, PACKAGES, archive_files(machine), 3], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_machine() -> Machine:
    """What this machine says; nothing is changed."""
    release = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    mirror = security = ""
    if re.search(r'^ID="?debian"?$', release, re.M):
        places = [Path("/etc/apt/sources.list")]
        places += sorted(Path("/etc/apt/sources.list.d").glob("*.sources"))
        places += sorted(Path("/etc/apt/sources.list.d").glob("*.list"))
        debian_only = [_debian_blocks(path.read_text()) for path in places if path.is_file()]
        mirror, security = debian_mirrors("\n\n".join(debian_only))
    environ = dict(os.environ)
    home = Path(environ.get("HOME", "/root"))
    pip_files = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf"]
    pip_files += [str(home / ".pip/pip.conf"), str(home / ".config/pip/pip.conf")]
    if environ.get("PIP_CONFIG_FILE"):
        pip_files.append(environ["PIP_CONFIG_FILE"])
    certificates = sorted(Path("/usr/local/share/ca-certificates").rglob("*.crt"))
    proxies = {}
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        value = environ.get(name) or environ.get(name.upper(), "")
        if value:
            proxies[name] = value
    return Machine(
        mirror=mirror,
        security=security,
        apt=apt_settings(run(["apt-config", "dump"])),
        pip=pip_settings([Path(p).read_text() for p in pip_files if Path(p).is_file()], environ),
        certificates={path.name: path.read_text() for path in certificates},
        proxies=proxies,
    )


def _debian_blocks(text: str) -> str:
    """Only what names Debian's own archive: third parties' repositories have no base system."""
    kept = []
    for block in re.split(r"\n\s*\n", text):
        if block.lstrip().startswith(("deb ", "deb-src ")) or "\ndeb " in block:
            kept += [line for line in block.splitlines() if line.startswith("deb ") and "debian" in line]
        elif "debian" in block:
            kept.append(block)
    return "\n\n".join(kept)


def build_environment(machine: Machine, environ: Mapping[str, str]) -> dict[str, str]:
    """What the programs of the archive see while they are installed: the way to the mirrors, and nothing else of ours.

    Python inside would write its caches into the archive below a ``PYTHONPYCACHEPREFIX``, for instance.
    """
    own = {"PATH": environ["PATH"], "HOME": "/root", "LC_ALL": "C.UTF-8", "TMPDIR": "/var/tmp"}
    return {**machine.proxies, **own}


def build(machine: Machine, target: Path) -> None:
    """Make the archive with mmdebstrap. It appears under its name only when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="phoenix-lab-") as name:
        work = Path(name)
        work.chmod(0o755)
        overlay = work / "overlay"
        for path, text in archive_files(machine).items():
            place = overlay / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        apt = work / "apt.conf"
        proxies = archive_files(machine).get("/etc/apt/apt.conf.d/90phoenix-lab", "")
        apt.write_text(proxies)
        inside = shlex.quote(str(overlay))
        partial = target.with_name("." + target.name.replace(".tar.zst", f".{os.getpid()}.tar.zst"))
        argv = [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--architectures=amd64",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            f"--keyring={KEYRING}",
            *([f"--aptopt={apt}"] if proxies else []),
            '--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"',
            f'--customize-hook=cp -rT --no-preserve=ownership {inside} "$1"',
            '--customize-hook=chroot "$1" update-ca-certificates',
            f'--customize-hook=install -D -m 0644 {KEYRING} "$1{KEYRING}"',
            SUITE,
            str(partial),
            *source_lines(machine),
        ]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
                env=build_environment(machine, os.environ),
            )  # fmt: skip
            if done.returncode:
                words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
                origin = machine.mirror or "Debian"
                raise PctError(f"mmdebstrap could not make {settings.BASE_NAME} from {origin}:\n{words}", 1)
            partial.chmod(0o600)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
