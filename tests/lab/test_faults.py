# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of the old system that show on a whole container only. Needs a lab that is up; CTIDs 550 to 558.

The others are named in their tests: 2 and 3 in test_gpu_assignment.py, 4 and 5 in test_pct_container.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import lab_modules as lab
import pytest

pytestmark = pytest.mark.lab

VOLUME = {"mp": "/data", "storage": "local-btrfs", "size_gb": 1}
NET = {"name": "eth0", "bridge": "vmbr0", "ip": "10.92.0.150/24", "gw": "10.92.0.1"}


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    """The containers of these tests are gone before and after."""
    lab.require_lab()
    lab.destroy(*range(558, 549, -1))
    yield
    lab.destroy(*range(558, 549, -1))


@pytest.fixture(scope="module")
def template() -> int:
    config = {"memory": 256, "features": {"nesting": 1}}
    options = {"ostemplate": lab.OSTEMPLATE, "storage": "local-btrfs", "disk_gb": 2, "unprivileged": True}
    lab.call(vmid=550, state="template", config=config, **options)
    return 550


@pytest.fixture
def clone(template) -> Iterator[dict]:
    """The options that make a clone, which is gone after the test."""
    yield {"vmid": 551, "clone": {"vmid": template}}
    lab.destroy(551)


def identity(vmid: int) -> tuple:
    """What a run that changes nothing leaves as it is: the conf file, the calls, the volumes, the system that runs."""
    conf = lab.CONFIGS / f"{vmid}.conf"
    begun = Path(f"/proc/{init(vmid)}/stat").read_text().split()[21]
    return conf.read_bytes(), conf.stat().st_mtime_ns, lab.calls(vmid), lab.volumes(vmid), init(vmid), begun


def init(vmid: int) -> str:
    """The process id of a running container's init, as the node sees it."""
    command = ["lxc-info", "-n", str(vmid), "-p", "-H"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_run_that_changes_nothing_does_nothing(clone, folder):
    """Fault 1: 41 pct calls, a stop, a start and another 50 GB volume in a run that changes nothing."""
    options = {
        **clone,
        "state": "started",
        "disk_gb": 3,
        "unprivileged": True,
        "config": {
            "hostname": "same", "memory": 320, "cores": 1, "swap": 0, "onboot": True, "net0": NET, "tags": ["B", "a"],
            "startup": {"order": 5, "up": 10}, "features": {"nesting": 1, "keyctl": 1}, "description": "-ü 50 %\nx",
        },
        "devices": [{"path": "/dev/fuse", "mode": "0666"}],
        "gpus": [],
        "mounts": [VOLUME, {"mp": "/models", "source": str(folder), "ro": True, "owner_uid": 1000}],
        "raw": ["lxc.cap.drop = sys_boot", "lxc.environment: PHOENIX=one"],
    }  # fmt: skip
    assert lab.call(**options)["changed"]
    before = identity(551)
    assert before[3] == ["vm-551-disk-0.subvol", "vm-551-disk-1.subvol"]
    for _run in range(3):
        result = lab.call(**options)
        assert (result["changed"], result["steps"], result["commands"]) == (False, [], [])
        assert identity(551) == before


class TestALaterStepFails:
    """Fault 16: no step is undone when a later one fails. Here it says what was done, and the next run goes on."""

    def test_a_start(self, clone):
        options = {**clone, "state": "started", "mounts": [VOLUME], "config": {"hostname": "later"}}
        message = lab.failure(**options, raw=["lxc.cap.drop: no_such_capability"])
        assert message.startswith("CTID 551 doesn't start: ")
        assert message.endswith(
            "\nDone before that: it does not exist; a linked clone of 550; mp0: nothing → local-btrfs:1,mp=/data; raw "
            "lines: nothing → lxc.cap.drop: no_such_capability. The next run goes on from there."
        )
        volumes = lab.volumes(551)
        assert len(volumes) == 2
        # The same mistake once more: it goes on at the start, and doubles nothing.
        again = lab.failure(**options, raw=["lxc.cap.drop: no_such_capability"])
        assert again.startswith("CTID 551 doesn't start: ")
        assert "Done before that" not in again
        assert lab.volumes(551) == volumes
        done = lab.converge(**options, raw=["lxc.cap.drop: sys_boot"])
        assert lab.names(done) == ["start"]
        assert lab.volumes(551) == volumes
        assert lab.info(551)["raw"] == ["lxc.cap.drop: sys_boot"]

    def test_a_change_of_a_clone(self, clone):
        """A call of pct that fails writes nothing: none of its keys is half done."""
        mounts = [VOLUME, {**VOLUME, "mp": "/more", "storage": "no-such-storage"}]
        config = {"memory": 300}
        message = lab.failure(**clone, config=config, mounts=mounts)
        assert "storage 'no-such-storage' does not exist" in message
        assert "\nDone before that: it does not exist; a linked clone of 550. The next run goes on" in message
        values = lab.info(551)["config"]
        assert values["memory"] == "256"
        assert "mp0" not in values
        assert lab.volumes(551) == ["vm-551-disk-0.subvol"]
        done = lab.converge(**clone, config=config, mounts=[VOLUME])
        assert lab.names(done) == ["set"]
        assert lab.volumes(551) == ["vm-551-disk-0.subvol", "vm-551-disk-1.subvol"]

    def test_a_creation(self):
        """Proxmox removes what a failed create made; nothing is there, and the next run begins at the beginning."""
        options = {"vmid": 552, "storage": "local-btrfs", "disk_gb": 2, "unprivileged": True}
        archive = Path("/var/lib/vz/template/cache/phoenix-broken.tar.zst")
        archive.write_bytes(b"no archive")
        try:
            message = lab.failure(**options, ostemplate="local:vztmpl/phoenix-broken.tar.zst")
        finally:
            archive.unlink()
        assert message.startswith("CTID 552: ")
        assert "Done before that" not in message
        assert not lab.info(552)["exists"]
        assert lab.volumes(552) == []
        assert lab.names(lab.converge(**options, ostemplate=lab.OSTEMPLATE)) == ["create"]
