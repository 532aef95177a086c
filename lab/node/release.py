# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which release of Proxmox VE the lab plays. The one place that says it is the file in which a genuine node says it."""

from __future__ import annotations

import re

from node import settings
from node.errors import PctError

Release = tuple[int, int]
DEFAULT = "9.1"


def text(release: str) -> str:
    """The Perl module of a node of this release."""
    version = f"{release}.1"
    answers = {
        "package": "pve-manager", "version": version, "release": release, "repoid": settings.REPOID,
        "version_text": f"{version}/{settings.REPOID}",
    }  # fmt: skip
    subs = "".join(f"sub {name} {{\n    return '{value}';\n}}\n\n" for name, value in answers.items())
    info = "".join(f"\t'{name}' => '{answers[name]}',\n" for name in ("version", "release", "repoid"))
    return f"package PVE::pvecfg;\n\nuse strict;\n\n{subs}sub version_info {{\n    return {{\n{info}    }}\n}}\n\n1;\n"


def checked(release: str) -> str:
    """A release such as ``8.4``; refuses what is none."""
    if not re.fullmatch(r"[789]\.\d", release):
        raise PctError(f"PHOENIX_LAB_RELEASE must be a release of Proxmox VE from 7.0 on, such as 8.4: '{release}'", 1)
    return release


def name() -> str:
    """The release as text, such as ``9.1``; the default where no file says one (tests without a lab)."""
    try:
        found = re.search(r"^sub release\s*\{\s*return '([\d.]+)'", settings.PVECFG.read_text(), re.M)
    except FileNotFoundError:
        return DEFAULT
    if not found:
        raise PctError(f"{settings.PVECFG} does not say the release - run 'PHOENIX_LAB_RELEASE=9.1 lab/lab up'")
    return found[1]


def at_least(major: int, minor: int) -> bool:
    """Whether the lab plays this release or a later one. Read anew each time."""
    return tuple(int(part) for part in name().split(".")[:2]) >= (major, minor)
