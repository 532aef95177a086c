# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command inside a container finds in its environment, by the connection C(pct) and by the modules alike."""

from __future__ import annotations

# lxc-attach alone leaves HOME unset, and Ansible would make a folder named "~"; pct exec hands the node's environment
# on.
ENVIRONMENT = {
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/sh",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "container": "lxc",
}

# One more variable is in it: a mark by which the node finds what a command has started inside.
MARK = "PHOENIX_PCT_RUN"
