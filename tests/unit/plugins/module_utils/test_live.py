# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import gpu, live

CONF = """#conf 999
arch: amd64
cores: 2
hostname: web
lxc.cap.drop: sys_time
memory: 512
net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=10.0.0.5/24,type=veth
rootfs: local:900/vm-900-disk-0.raw,size=8G
swap: 0
unprivileged: 1
"""


def printed(conf: str = CONF, running: str = "", devices: str = "") -> str:
    """What the script prints of a node with the container 900."""
    lines = "".join(f" {line}\n" for line in conf.splitlines())
    return f"conf 900\n{lines}\n{devices}{running}end\n"


def compared(output: str, **variables: Any) -> dict[str, Any]:
    return live.compared({"container_vmid": 900, **variables}, live.read(output))


DECLARED = {
    "container_disk_gb": 8,
    "container_unprivileged": True,
    "container_config": {"hostname": "web", "cores": 2, "memory": 512, "net0": {"name": "eth0", "ip": "10.0.0.5/24"}},
    "container_mounts": [],
    "container_raw": ["lxc.cap.drop: sys_time"],
}


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ({}, []),
        ({"container_config": {"hostname": "db", "memory": 1024}}, ["hostname", "memory"]),
        ({"container_config": {"net0": {"name": "eth0", "ip": "10.0.0.6/24"}}}, ["net0"]),
        ({"container_disk_gb": 16}, ["rootfs"]),
        ({"container_raw": ["lxc.cap.drop: sys_nice"]}, ["lxc.cap.drop"]),
        ({"container_mounts": [{"mp": "/a", "source": "/tank"}]}, ["mp0"]),
        ({"container_template": True}, ["template"]),
        ({"container_snapshot": "ready"}, ["snapshot"]),
    ],
)
def test_what_differs(changed: dict[str, Any], keys: list[str]) -> None:
    found = compared(printed(running="running 900\n 10.0.0.5\n fd00::5\n"), **{**DECLARED, **changed})
    assert found == {
        "phoenix_state": "running",
        "phoenix_addresses": ["10.0.0.5", "fd00::5"],
        "phoenix_differs": keys,
    }


def test_gpus() -> None:
    nodes = "device /dev/nvidia0 c3 0\ndevice /dev/nvidiactl c3 ff\ndevice /dev/nvidia-uvm f3 0\n"
    assert live.read(printed(devices=nodes)).devices["/dev/nvidiactl"] == gpu.Device(195, 255)
    found = compared(printed(devices=nodes), **DECLARED, container_gpus=[0])
    assert found["phoenix_differs"] == ["dev0", "dev1", "dev2"]
    assert "phoenix_problem" not in found


def test_instances_of_gpus() -> None:
    caps = "/dev/nvidia-caps/nvidia-cap"
    folder = "/proc/driver/nvidia/capabilities"
    nodes = (
        f"device /dev/nvidia1 c3 1\ndevice {caps}1 1ff 1\ndevice {caps}21 1ff 15\n"
        f"instance {folder}/gpu1/mig/gi1/access 21\ninstance {folder}/gpu1/mig/gi1/ci0/access 1\n"
    )
    found = live.read(printed(devices=nodes)).devices
    assert found[f"{caps}21"] == gpu.Device(511, 21, gpu=1)
    assert found["/dev/nvidia1"] == gpu.Device(195, 1)


@pytest.mark.parametrize(
    ("conf", "state"),
    [
        (CONF, "stopped"),
        (CONF + "template: 1\n", "template"),
        (CONF + "\n[a]\ntemplate: 1\n", "stopped"),
        ("", "absent"),
        ("lock: create\n", "incomplete"),
    ],
)
def test_states(conf: str, state: str) -> None:
    assert compared(printed(conf))["phoenix_state"] == state


def test_what_can_not_become_what_is_declared() -> None:
    found = compared(printed(), **{**DECLARED, "container_disk_gb": 4, "container_config": {"cores": 4}})
    assert found["phoenix_differs"] == ["cores", "rootfs"]
    assert "a disk never shrinks" in found["phoenix_problem"]


def test_content_is_no_heading() -> None:
    """The description of a container may hold any text."""
    seen = live.read(printed("conf 901\nrunning 900\nend\n" + CONF))
    assert list(seen.containers) == [900]
    assert not seen.containers[900].running
    with pytest.raises(live.LiveError, match="cut short"):
        live.read(printed("end")[:-4])


RESOURCE = {
    "vmid": 900, "type": "lxc", "name": "web", "status": "running", "template": 0, "maxmem": 512 * 2**20, "maxcpu": 2.0,
    "maxdisk": 8 * 2**30,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ({}, []),
        ({"maxmem": 1}, ["memory"]),
        ({"maxcpu": 4}, ["cores"]),
        ({"name": "db", "maxdisk": 0}, ["hostname", "rootfs"]),
    ],
)
def test_what_differs_by_the_api(changed: dict[str, Any], keys: list[str]) -> None:
    found = live.compared_by_api({"container_vmid": 900, **DECLARED}, [{"vmid": 901}, {**RESOURCE, **changed}])
    assert found == {"phoenix_state": "running", "phoenix_differs": keys}


def test_states_by_the_api() -> None:
    def state(**changed: Any) -> str:
        return live.compared_by_api({"container_vmid": 900}, [{**RESOURCE, **changed}])["phoenix_state"]

    assert state(vmid=901) == "absent"
    assert state(status="stopped") == "stopped"
    assert state(template=1, status="stopped") == "template"
