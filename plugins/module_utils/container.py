# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container as it is on a node, however that was read."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.phoenix.hypervisor.plugins.module_utils import pct_conf


@dataclass(frozen=True)
class Container:
    """A container as it is.

    :ivar text: content of its conf file, "" when there is none
    :ivar digest: what Proxmox knows this content by; a change that names it fails when another one came first
    :ivar started_with: the configuration that LXC was started with, None where that is not known
    """

    exists: bool = False
    running: bool = False
    text: str = ""
    digest: str = ""
    started_with: str | None = None

    @property
    def conf(self) -> pct_conf.Conf:
        return pct_conf.parse(self.text)

    @property
    def is_template(self) -> bool:
        return self.conf.main.values.get("template") == "1"

    @property
    def lock(self) -> str:
        """What Proxmox does with it at the moment (C(backup), C(disk), …), "" for nothing."""
        return self.conf.main.values.get("lock", "")

    @property
    def is_half_made(self) -> bool:
        """Is this what a create or clone has so far, or left when it was killed? Every whole container has a rootfs."""
        return self.exists and (self.lock == "create" or "rootfs" not in self.conf.main.values)
