# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What LXC calls before a container starts and after it stopped, whoever started or stopped it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from node import changes, lifecycle, runtime, settings, store
from node.errors import PctError


def main(words: list[str]) -> int:
    """``hook <name> lxc pre-start|post-stop`` from LXC, ``hook restart <vmid>`` from ourselves."""
    os.environ["PATH"] = settings.SAFE_PATH
    try:
        if words[:1] == ["restart"]:
            return _restart(int(words[1]))
        vmid, kind = int(words[0]), words[2]
        if kind == "pre-start":
            conf = store.load(vmid)
            runtime.pre_start(vmid, conf.active)
            return 0
        return _post_stop(vmid)
    except (PctError, OSError) as reason:
        # LXC itself only tells that a hook failed; its log is where a person looks for the why
        with open(settings.LXC_LOG / f"{words[0]}.log", "a") as log:
            log.write(f"lxc {words[0]} {time.strftime('%Y%m%d%H%M%S')} ERROR    hook - {reason}\n")
        print(reason, file=sys.stderr)
        return 2


def _post_stop(vmid: int) -> int:
    runtime.clean_up(vmid)
    if store.exists(vmid):
        conf = store.load(vmid)
        if conf.pending or conf.delete:
            changes.apply_pending(vmid, conf)
            store.save(vmid, conf)
    if os.environ.get("LXC_TARGET") != "reboot":
        return 0
    # LXC would reboot with the config that it read at the first start. Ending with an error makes it stop instead,
    # and a fresh start follows with the conf file as it is now (Proxmox does the same).
    subprocess.Popen(
        [str(settings.CHECKOUT_LAB / "node/hook"), "restart", str(vmid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return 1


def _restart(vmid: int) -> int:
    deadline = time.monotonic() + 20
    while runtime.is_running(vmid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return lifecycle.start(vmid)
