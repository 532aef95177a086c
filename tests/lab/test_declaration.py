# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the JSON to the container by site.yml, one run after the other. Needs a lab that is up; CTIDs 880 and 881."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab_modules import (
    CONFIGS,
    OSTEMPLATE,
    PCT_CALLS,
    ROOT,
    destroy,
    info,
    inside,
    open_folder,
    pct,
    require_lab,
    volumes,
)

pytestmark = pytest.mark.lab

SOURCE, VMID = 880, 881
MAC = "BC:24:11:92:08:81"
FIREWALL = Path(f"/etc/pve/firewall/{VMID}.fw")
RULES = ["IN ACCEPT -source 10.92.0.0/24 -p tcp -dport 22", "IN ACCEPT -p tcp -dport 8000 # the model"]
INVENTORY = """\
plugin: phoenix.hypervisor.lxc_configs
config_files: [phoenix_lxc_configs.json]
nodes:
  pve:
    ansible_connection: local
    ansible_python_interpreter: /usr/bin/python3
    phoenix_lab: true
"""


def declaration(folder: Path) -> dict:
    """A template and a clone of it that has some of everything."""
    network = {"bridge": "vmbr0", "gw": "10.92.0.1", "nameservers": ["10.92.0.1", "9.9.9.9"]}
    return {
        str(SOURCE): {
            "name": "declared-base",
            "template": OSTEMPLATE,
            "is_template": True,
            "unprivileged": True,
            "memory_mb": 256,
            "cores": 1,
            "storage_pool": "local-btrfs",
            "storage_size_gb": 2,
            "pct_options": ["nesting=1"],
            "features": [],
        },
        str(VMID): {
            "name": "declared",
            "clone_from_ctid": str(SOURCE),
            "memory_mb": 256,
            "swap_mb": 0,
            "cores": 1,
            "start_at_boot": False,
            "boot_order": 7,
            "boot_delay": 5,
            "storage_pool": "local-btrfs",
            "storage_size_gb": 2,
            "network_config": {"name": "eth0", "ip": "10.92.0.188/24", **network},
            "mac_address": MAC,
            "secondary_network_config": {"name": "eth1", "bridge": "vmbr0", "ip": "10.92.0.189/24"},
            "pct_options": ["nesting=1", "keyctl=1"],
            "lxc_options": ["lxc.environment=DECLARED=yes", "lxc.cap.drop=sys_boot"],
            "zfs_volumes": [{"name": "data", "pool": "local-btrfs", "size_gb": 1, "mount_point": "/srv/data"}],
            "volumes": [{"name": "cache", "size_gb": 1, "mount_point": "/srv/cache"}],
            "mount_points": [
                {"host_path": f"{folder}/owned", "container_path": "/srv/owned", "owner_uid": 1000, "owner_gid": 33},
                {"host_path": f"{folder}/plain", "container_path": "/srv/plain"},
            ],
            "firewall": {
                "enabled": True,
                "rules": [
                    {"type": "in", "action": "ACCEPT", "proto": "tcp", "port": 22, "source": "10.92.0.0/24"},
                    {"type": "in", "action": "ACCEPT", "proto": "tcp", "port": 8000, "comment": "the model"},
                ],
            },
            "features": [],
        },
    }


def changed_declaration(before: dict) -> dict:
    """Some of it larger, some of it renamed, some of it gone."""
    after = copy.deepcopy(before)
    entry = after[str(VMID)]
    entry.update(name="renamed", memory_mb=320, pct_options=["nesting=1"], lxc_options=["lxc.cap.drop=sys_boot"])
    entry["zfs_volumes"][0]["size_gb"] = 2
    del entry["volumes"]
    del entry["mount_points"][1]
    del entry["firewall"]["rules"][1]
    return after


@dataclass
class Run:
    """What a run of the playbook printed, and the calls of pct that it made for the two containers."""

    output: str
    calls: list[list[str]]

    @property
    def changed(self) -> int:
        return sum(map(int, re.findall(r"\bchanged=(\d+)", self.output)))

    @property
    def names(self) -> list[str]:
        return [words[0] for words in self.calls]


class Site:
    """A folder with an inventory and its JSON, and the runs of site.yml on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "lxc_configs.yml").write_text(INVENTORY)
        for name in ("owned", "plain", "by-hand"):
            (folder / name).mkdir()
        self.declared = declaration(folder)

    def run(self, *options: str) -> Run:
        """It must succeed."""
        (self.folder / "phoenix_lxc_configs.json").write_text(json.dumps({"lxc_configs": self.declared}))
        before = len(pct_calls())
        playbook = [Path(sys.executable).with_name("ansible-playbook"), "-i", self.folder / "lxc_configs.yml"]
        done = subprocess.run(
            [*playbook, "site.yml", *options],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "1000"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return Run(done.stdout, pct_calls()[before:])


def pct_calls() -> list[list[str]]:
    """The calls of pct that changed something in the two containers, as words; others may be at work in the lab."""
    calls = [line.split()[1:] for line in PCT_CALLS.read_text(errors="replace").splitlines()]
    return [words for words in calls if {str(SOURCE), str(VMID)} & set(words[1:3]) and words[0] != "exec"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Nothing is there before and after, also when a test fails."""
    require_lab()
    destroy(VMID, SOURCE)
    with open_folder() as folder:
        yield Site(folder)
        destroy(VMID, SOURCE)


def owner(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


def rules() -> list[str]:
    """The lines below [RULES], comments too."""
    return list(filter(None, FIREWALL.read_text().partition("[RULES]\n")[2].splitlines()))


def test_check_mode_names_everything_and_changes_nothing(site):
    shown = site.run("--check", "--diff")
    assert shown.changed
    for words in (
        "hostname: declared-base", "hostname: declared\n", "startup: down=5,order=7,up=5", MAC, "ip=10.92.0.189/24",
        "nameserver: 10.92.0.1 9.9.9.9", "keyctl=1", "mp=/srv/data", "mp=/srv/cache", "mp=/srv/owned", "mp=/srv/plain",
        "lxc.environment: DECLARED=yes", "lxc.cap.drop: sys_boot", *RULES,
    ):  # fmt: skip
        assert words in shown.output, words
    assert shown.calls == []
    assert [vmid for vmid in (SOURCE, VMID) if (CONFIGS / f"{vmid}.conf").exists() or volumes(vmid)] == []
    assert not FIREWALL.exists()
    assert owner(site.folder / "owned") == (0, 0)


def test_the_first_run_makes_it_and_what_it_is_cloned_from(site):
    done = site.run("-l", f"ctid_{VMID}")
    assert done.names == ["create", "start", "shutdown", "template", "clone", "set", "start"]
    assert info(SOURCE)["template"] is True
    config = info(VMID)["config"]
    assert (config["startup"], config["onboot"]) == ("down=5,order=7,up=5", "0")
    assert config["net0"].count(MAC) == 1
    assert "firewall=1" in config["net0"]
    assert rules() == RULES
    assert owner(site.folder / "owned") == (101000, 100033)
    script = "hostname; ip -o -4 address | grep -o '10.92[^ ]*/24'; cat /sys/class/net/eth0/address /etc/resolv.conf"
    said = [line for line in inside(VMID, script).splitlines() if not line.startswith("#")]
    assert said[:4] == ["declared", "10.92.0.188/24", "10.92.0.189/24", MAC.lower()]
    assert {"nameserver 10.92.0.1", "nameserver 9.9.9.9"} <= set(said[4:])
    assert inside(VMID, "tr '\\0' '\\n' </proc/1/environ | grep DECLARED") == "DECLARED=yes"
    assert inside(VMID, "stat -c '%u %g' /srv/owned; mountpoint -q /srv/plain && mountpoint -q /srv/data") == "1000 33"
    assert len(volumes(VMID)) == 3


def test_the_second_run_changes_nothing_and_calls_nothing(site):
    again = site.run()
    assert (again.changed, again.calls) == (0, [])


def test_a_change_is_one_set_one_resize_and_one_restart(site):
    before, there = info(VMID)["config"], volumes(VMID)
    inside(VMID, "echo kept >/srv/cache/file; echo kept >/srv/data/file")
    # What a person does beside the declaration.
    pct("set", str(VMID), "--mp7", f"{site.folder}/by-hand,mp=/srv/by-hand")
    with open(CONFIGS / f"{VMID}.conf", "a") as conf:
        conf.write("lxc.prlimit.nofile: 4096\n")
    FIREWALL.write_text(FIREWALL.read_text().replace(RULES[0], f"# by hand\n{RULES[0]}"))

    site.declared = changed_declaration(site.declared)
    done = site.run()
    assert sorted(done.names) == ["reboot", "resize", "set"]
    state = info(VMID)
    config = state["config"]
    assert (config["hostname"], config["memory"], config["features"]) == ("renamed", "320", "nesting=1")
    assert inside(VMID, "hostname; ls /srv; cat /srv/data/file").split() == [
        "renamed", "by-hand", "cache", "data", "owned", "plain", "kept",
    ]  # fmt: skip
    assert inside(VMID, "for p in /srv/*; do mountpoint -q $p && echo $p; done; true").split() == [
        "/srv/by-hand", "/srv/data", "/srv/owned",
    ]  # fmt: skip
    assert [value for key, value in config.items() if "/srv/data" in value and "size=2G" in value]
    assert config["net0"] == before["net0"]
    assert state["raw"] == ["lxc.cap.drop: sys_boot", "lxc.prlimit.nofile: 4096"]
    assert state["pending"] == {}
    assert inside(VMID, "tr '\\0' '\\n' </proc/1/environ | grep DECLARED || true") == ""
    assert rules() == ["# by hand", RULES[0]]
    # Taken off, not thrown away.
    assert volumes(VMID) == there

    again = site.run()
    assert (again.changed, again.calls) == (0, [])


def test_a_volume_that_is_declared_again_comes_back_with_its_file(site):
    there = volumes(VMID)
    site.declared[str(VMID)]["volumes"] = declaration(site.folder)[str(VMID)]["volumes"]
    assert site.run().names == ["set"]
    assert inside(VMID, "cat /srv/cache/file") == "kept"
    assert volumes(VMID) == there
    assert not [key for key in info(VMID)["config"] if key.startswith("unused")]
