# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One command, in pct's words and in the REST API's."""

from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Call, Command


@pytest.mark.parametrize(
    ("command", "argv", "call"),
    [
        (
            Command("set", 921, (), (("memory", "512"), ("delete", "swap"))),
            "pct set 921 --memory 512 --delete swap",
            Call("PUT", "lxc/921/config", {"memory": "512", "delete": "swap"}),
        ),
        (
            Command("clone", 901, ("921",), (("full", "1"),)),
            "pct clone 901 921 --full 1",
            Call("POST", "lxc/901/clone", {"newid": "921", "full": "1"}),
        ),
        (
            Command("create", 900, ("local:vztmpl/x",), (("memory", "512"),)),
            "pct create 900 local:vztmpl/x --memory 512",
            Call("POST", "lxc", {"vmid": "900", "ostemplate": "local:vztmpl/x", "memory": "512"}),
        ),
        (
            Command("resize", 921, ("rootfs", "9G")),
            "pct resize 921 rootfs 9G",
            Call("PUT", "lxc/921/resize", {"disk": "rootfs", "size": "9G"}),
        ),
        (
            Command("rollback", 921, ("good",), (("start", "1"),)),
            "pct rollback 921 good --start 1",
            Call("POST", "lxc/921/snapshot/good/rollback", {"start": "1"}),
        ),
        (Command("destroy", 921), "pct destroy 921", Call("DELETE", "lxc/921", {})),
    ],
)
def test_both_ways(command, argv, call):
    assert " ".join(command.argv) == argv
    assert command.has_call
    assert command.call == call


def test_what_the_api_does_not_have():
    assert not Command("unlock", 921).has_call
