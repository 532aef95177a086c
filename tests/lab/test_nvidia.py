# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nvidia in containers of the lab. CTIDs 570 to 579.

There is no GPU: a folder stands in for the node's own driver and for what its kernel says, archives and packages are
made here (nvidia_site.py), a program stands in for vLLM. What is asked is asked of the container's own loader, of the
server's process and of systemd. One container (570) serves most tests, in their order.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lab_modules as lab
import nvidia_site
import pytest
import yaml
from model_site import Site

pytestmark = pytest.mark.lab

VMID, ADDRESS = 570, "10.92.0.40"
OLD, V, NEW = "575.64.03", "580.95.05", "590.44.01"
# Where a program gets libcuda.so.1 from, and what it says in there.
GETS = """
python3 - <<'END'
import ctypes, re
ctypes.CDLL("libcuda.so.1")
path = re.search(r"\\S*libcuda\\S*", open("/proc/self/maps").read())[0]
print(path, re.findall(rb"\\0(\\d{3}\\.\\d+\\.\\d+)\\0", open(path, "rb").read())[-1].decode())
END
"""


class Node:
    """A node with a driver, and a container on it that has a model server."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.root, self.folder = site, folder / "node", folder
        stack = {"name": "fake", "gpu": True}
        (site.folder / "stacks/fake/stack.yml").write_text(yaml.safe_dump(stack))
        roles = [{"ansible.builtin.include_role": {"name": f"phoenix.hypervisor.{name}"}}
                 for name in ("nvidia", "vllm_model_server")]  # fmt: skip
        self.plays = {}
        for name, tasks in (("both", roles), ("nvidia", roles[:1])):
            path = folder / f"{name}.yml"
            path.write_text(yaml.safe_dump([{"hosts": "phoenix_containers", "gather_facts": False, "tasks": tasks}]))
            self.plays[name] = str(path)
        site.variables = {
            "nvidia_version_file": str(self.root / "proc/driver/nvidia/version"),
            "nvidia_node_root": str(self.root),
            "nvidia_store": str(folder / "store"),
            "nvidia_stack": "",
            "nvidia_gpus": [],
            "vllm_model_server_watchdog_limit": 0,
        }

    def run(self, *options: str, play: str = "both", **values) -> str:
        """A run of the roles."""
        return self.site.run(*options, playbook=self.plays[play], **values)

    def ready(self) -> None:
        """Have a driver in the container and a server that runs, also where no test was before."""
        nvidia_site.node_root(self.root, V)
        if self.site.inside("ls -d /opt/nvidia/driver 2>/dev/null || true") == "" or not self.site.answers():
            self.run()

    def driver(self) -> str:
        """Which library a program in the container gets, and of which version it is."""
        return self.site.inside(GETS)

    def environment(self) -> dict[str, str]:
        """The environment of the server's process."""
        text = self.site.inside(f"tr '\\0' '\\n' </proc/{self.site.main_pid()}/environ")
        return dict(line.partition("=")[::2] for line in text.splitlines())


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[Node]:
    lab.require_lab()
    site = Site(VMID, ADDRESS, tmp_path_factory.mktemp("site"))
    try:
        site.create()
        yield Node(site, tmp_path_factory.mktemp("node"))
    finally:
        lab.destroy(571, VMID)


def test_a_node_without_a_driver_is_refused_with_one_sentence(node):
    said = node.run(play="nvidia", code=2)
    assert "the node has no NVIDIA kernel driver loaded" in said
    assert "take the feature nvidia out of the container's entry" in said


def test_check_mode_tells_what_the_run_does(node):
    nvidia_site.node_root(node.root, OLD)
    shown = node.run("--check", "--diff", play="nvidia")
    assert f"made driver-{OLD}" not in shown
    assert re.search(r"changed=2\b", shown), shown
    assert node.site.inside("ls -d /opt/nvidia /etc/ld.so.conf.d/000* 2>/dev/null || true") == ""
    assert not (node.folder / "store").exists()


def test_the_containers_driver_is_the_kernels(node):
    said = node.run("--diff", nvidia_driver_version="580.95.05")
    assert f"nvidia_driver_version is 580.95.05, and the node's kernel driver is {OLD}" in said
    path, version = node.driver().split()
    assert path.startswith(f"/opt/nvidia/driver-{OLD}-")
    assert version == OLD
    assert f"Driver Version: {OLD}" in node.site.inside("nvidia-smi")
    assert node.environment()["PHOENIX_NVIDIA_DRIVER"] == OLD
    assert node.site.inside("find / -xdev -name '*.ko' 2>/dev/null | head -1; ls /var/tmp | grep tar || true") == ""


def test_a_second_run_changes_nothing(node):
    pid = node.site.main_pid()
    before = lab.calls(VMID)
    assert "changed=0" in node.run(nvidia_driver_version="575")
    assert lab.calls(VMID) == before
    assert node.site.main_pid() == pid


def test_between_an_upgrade_and_the_reboot_everything_stays(node):
    """The node has the next driver's libraries already, and its kernel not yet."""
    pid = node.site.main_pid()
    nvidia_site.node_root(node.root, V)
    nvidia_site.kernel(node.root, OLD)
    try:
        said = node.run()
    finally:
        nvidia_site.node_root(node.root, OLD)
    assert f"the node's kernel still has driver {OLD}" in said and "load the new driver (reboot the node)" in said
    assert "changed=0" in said
    assert (node.driver().split()[1], node.site.main_pid()) == (OLD, pid)


def test_after_an_upgrade_of_the_node_one_run_brings_all_to_it(node):
    """Fault 12: nvidia-smi is there, so the driver counts as installed, and every CUDA call fails."""
    pid = node.site.main_pid()
    nvidia_site.node_root(node.root, V)
    said = node.run()
    path, version = node.driver().split()
    assert (version, path.startswith(f"/opt/nvidia/driver-{V}-")) == (V, True), said
    assert node.site.inside("ls /opt/nvidia | grep -c driver-") == "1"
    assert node.environment()["PHOENIX_NVIDIA_DRIVER"] == V
    assert node.site.main_pid() != pid


def test_what_others_left_goes_and_what_is_damaged_comes_again(node, tmp_path):
    repository = nvidia_site.Repository(tmp_path / "www")
    repository.add_driver(OLD)
    repository.close()
    lib = "/usr/lib/x86_64-linux-gnu"
    package = next(repository.folder.glob("libcuda1*.deb"))
    lab.pct("push", str(VMID), str(package), "/root/libcuda1.deb")
    node.site.inside(
        f"dpkg -i /root/libcuda1.deb >/dev/null && rm /root/libcuda1.deb; cd {lib} && "
        f"cp libcuda.so.{OLD} libnvidia-ml.so.535.183.01 && ln -s libnvidia-ml.so.535.183.01 libnvidia-ml.so.1 && "
        f"rm /usr/bin/nvidia-smi && printf x >/usr/bin/nvidia-smi && "
        f"printf x >>/opt/nvidia/driver/lib/libnvidia-ml.so.{V} && "
        f"rm /opt/nvidia/driver/lib/libcuda.so.1 && ldconfig"
    )
    shown = node.run("--check", "--diff", play="nvidia")
    assert "libcuda1" in shown and f"{lib}/libnvidia-ml.so.535.183.01" in shown
    node.run(play="nvidia")
    assert node.driver().split()[1] == V
    assert node.site.inside(f"ls {lib} | grep -E 'libcuda|nvidia' || true") == ""
    assert node.site.inside("dpkg-query -W -f '${db:Status-Abbrev}' libcuda1 2>/dev/null || true") == ""
    assert f"Driver Version: {V}" in node.site.inside("nvidia-smi")
    assert "changed=0" in node.run(play="nvidia")


@pytest.mark.full
def test_a_library_that_looks_the_same_is_hashed(node):
    """Same size, same time: only its content is another one."""
    node.ready()
    node.site.inside(
        f"cd /opt/nvidia/driver/lib && touch -r libcuda.so.{V} /root/t && printf x | "
        f"dd of=libcuda.so.{V} bs=1 seek=9000 conv=notrunc 2>/dev/null && touch -r /root/t libcuda.so.{V}"
    )
    said = node.run("--check", play="nvidia")
    assert "changed=1" in said
    node.run(play="nvidia")
    assert "changed=0" in node.run(play="nvidia")


@pytest.mark.parametrize(
    "fault", ["hash", *(pytest.param(name, marks=pytest.mark.full) for name in ("cut", "version", "repository"))]
)
def test_a_fault_is_one_sentence_and_leaves_what_is_there(node, tmp_path, fault):
    node.ready()
    nvidia_site.node_root(node.root, OLD)
    nvidia_site.kernel(node.root, NEW)
    before, pid = node.driver(), node.site.main_pid()
    (tmp_path / "www").mkdir()
    name = f"NVIDIA-Linux-x86_64-{NEW}.run"
    files = nvidia_site.driver_files(V if fault == "version" else NEW)
    sha256 = nvidia_site.runfile(tmp_path / "www" / name, files, tmp_path / "ran")
    try:
        with nvidia_site.served(tmp_path / "www") as server:
            values = {"nvidia_driver_source": "runfile", "nvidia_runfile_url": f"{server.url}/{name}",
                      "nvidia_runfile_sha256": sha256}  # fmt: skip
            words = "has no libraries of 590.44.01: it is driver 580.95.05"
            if fault == "hash":
                values["nvidia_runfile_sha256"], words = "ab" * 32, f"hashes to {sha256}, and should to {'ab' * 32}"
            elif fault == "cut":
                server.cut.add(name)
                words = "the connection ended in the middle of the file"
            elif fault == "repository":
                values, words = {"nvidia_driver_source": "auto", "nvidia_repo_url": server.url}, "InRelease: HTTP 404"
            said = node.run(code=2, **values)
            assert words in said
            assert "Nothing was installed" in said
    finally:
        nvidia_site.node_root(node.root, V)
    assert (node.driver(), node.site.main_pid()) == (before, pid)
    assert node.site.inside("ls -A /opt/nvidia | grep incoming || true; ls /var/tmp | grep tar || true") == ""


def test_a_gpu_that_was_taken_away(node):
    said = node.run(play="nvidia", code=2, nvidia_gpus=[0, 1])
    assert "the container was given GPU 0, 1, and has no /dev/nvidia0, /dev/nvidia1" in said
    assert "or correct gpu_assignment" in said


@pytest.fixture
def toolkits(tmp_path) -> Iterator[tuple[nvidia_site.Server, dict]]:
    """A server of a signed repository with two toolkits, and the variables that name it."""
    repository = nvidia_site.Repository(tmp_path / "www")
    for version in ("12.8", "12.9"):
        repository.add_toolkit(version)
    repository.sign()
    repository.close()
    with nvidia_site.served(repository.folder) as server:
        yield server, {"nvidia_repo_url": server.url, "nvidia_repo_key_fingerprints": [repository.fingerprint]}


def test_a_toolkit_from_a_signed_repository(node, toolkits):
    nvidia_site.node_root(node.root, V)
    server, values = toolkits
    node.run(play="nvidia", nvidia_toolkit_version="12.8", **values)
    assert "release 12.8" in node.site.inside("/usr/local/cuda/bin/nvcc --version")
    assert node.site.inside("ls /usr/local/cuda-12.8/lib64/ /usr/local/cuda-12.8/include/").split() == [
        "/usr/local/cuda-12.8/include/:", "cuda_runtime.h", "/usr/local/cuda-12.8/lib64/:", "libcudart_static.a",
    ]  # fmt: skip
    assert server.asked


@pytest.mark.full
def test_toolkits_beside_each_other(node, toolkits):
    nvidia_site.node_root(node.root, V)
    node.site.inside("rm -rf /usr/local/cuda* /opt/nvidia/toolkit*")
    server, values = toolkits
    key = f"{server.url}/{values['nvidia_repo_key_fingerprints'][0][-8:]}.pub"
    wrong = node.run(play="nvidia", code=2, nvidia_toolkit_version="12.9", nvidia_repo_url=server.url,
                     nvidia_repo_key_url=key)  # fmt: skip
    assert f"is signed by the key {values['nvidia_repo_key_fingerprints'][0]}" in wrong
    assert node.site.inside("ls -d /usr/local/cuda* 2>/dev/null || true") == ""
    for version in ("12.8", "12.9"):
        node.run(nvidia_toolkit_version=version, **values)
        assert f"release {version}" in node.site.inside("/usr/local/cuda/bin/nvcc --version")
        environment = node.environment()
        assert environment["CUDA_HOME"] == f"/usr/local/cuda-{version}"
        assert environment["LD_LIBRARY_PATH"] == f"/usr/local/cuda-{version}/lib64"
    assert "release 12.8" in node.site.inside("/usr/local/cuda-12.8/bin/nvcc --version")
    assert "changed=0" in node.run(nvidia_toolkit_version="12.9", **values)


def test_a_toolkit_that_is_too_old(node):
    """Somebody else has installed it. It says what the stack needs, and why."""
    nvidia_site.node_root(node.root, V)
    node.site.inside(
        "rm -rf /usr/local/cuda* && mkdir -p /usr/local/cuda/bin && cd /usr/local/cuda/bin && "
        "printf '#!/bin/sh\\necho Cuda compilation tools, release 12.4, V12.4.131\\n' >nvcc && chmod 755 nvcc"
    )
    values = {"nvidia_stack": "vllm-0.32.0-cu130", "nvidia_toolkit_source": "none"}
    said = node.run(play="nvidia", code=2, **values)
    assert "CUDA toolkit 12.4 is too old; the stack vllm-0.32.0-cu130 needs 13.0 or newer" in said
    assert "FlashInfer 0.7.0.post1 compiles its kernels when a server starts" in said


@pytest.mark.full
def test_a_clone_made_after_an_upgrade_is_brought_to_it(node):
    nvidia_site.node_root(node.root, V)
    node.run(play="nvidia")
    lab.pct("stop", str(VMID))
    lab.destroy(571)
    lab.pct("clone", str(VMID), "571", "--full", "1")
    lab.pct("start", str(VMID))
    lab.pct("set", "571", "--net0", "name=eth0,bridge=vmbr0,ip=10.92.0.41/24,gw=10.92.0.1")
    lab.start(571)
    nvidia_site.node_root(node.root, NEW)
    other = Site.__new__(Site)
    other.__dict__.update(node.site.__dict__, vmid=571, address="10.92.0.41")
    said = other.run(playbook=node.plays["nvidia"])
    assert lab.inside(571, GETS).split()[1] == NEW, said
    # The original is as it was until its own run.
    assert node.driver().split()[1] == V
    assert "changed=0" in other.run(playbook=node.plays["nvidia"])


UVM = """#!/bin/sh
echo "$(cut -d' ' -f1 /proc/uptime) $*" >>/var/log/modprobe.log
test -e /run/guests && echo too-late >>/var/log/modprobe.log
exit 0
"""
GUESTS = """[Unit]
Description=What starts the containers of a node
[Service]
Type=oneshot
ExecStart=/usr/bin/touch /run/guests
[Install]
WantedBy=multi-user.target
"""


@pytest.mark.full
def test_the_nodes_devices_are_there_before_its_containers(tmp_path):
    """A container with systemd plays the node here."""
    lab.require_lab()
    lab.create(572)
    try:
        lab.start(572)
        for name, text, mode in (("nvidia-modprobe", UVM, "0755"), ("pve-guests.service", GUESTS, "0644")):
            (tmp_path / name).write_text(text)
            folder = "/usr/bin" if name == "nvidia-modprobe" else "/etc/systemd/system"
            lab.pct("push", "572", str(tmp_path / name), f"{folder}/{name}", "--perms", mode)
        lab.inside(572, "systemctl enable pve-guests.service 2>&1")
        site = Site.__new__(Site)
        (tmp_path / "stacks").mkdir()
        site.vmid, site.address, site.folder, site.variables = 572, "", tmp_path, {"nvidia_node": "ctid_572"}
        play = tmp_path / "node.yml"
        role = {"name": "phoenix.hypervisor.nvidia", "tasks_from": "node"}
        tasks = [{"ansible.builtin.include_role": role}]
        play.write_text(yaml.safe_dump([{"hosts": "phoenix_containers", "gather_facts": False, "tasks": tasks}]))
        unit = "phoenix-nvidia.service"
        assert "changed=1" in site.run("--check", "--diff", playbook=str(play))
        assert lab.inside(572, f"systemctl is-enabled {unit} 2>&1 || true") != "enabled"
        assert "changed=1" in site.run("--diff", playbook=str(play))
        assert lab.inside(572, f"systemd-analyze verify /etc/systemd/system/{unit} 2>&1") == ""
        assert lab.inside(572, "cat /var/log/modprobe.log | cut -d' ' -f2-") == "-u -c 0"
        assert "changed=0" in site.run(playbook=str(play))
        lab.inside(572, "rm -f /var/log/modprobe.log")
        lab.pct("reboot", "572")
        lab.wait_until(lambda: lab.inside(572, "ls /run/guests 2>/dev/null || true") != "", 60)
        log = lab.inside(572, "cat /var/log/modprobe.log")
        assert "-u -c 0" in log and "too-late" not in log
        # A node without NVIDIA is left as it is, and no failed unit is there.
        lab.inside(572, f"rm /usr/bin/nvidia-modprobe && systemctl disable -q {unit} && rm /etc/systemd/system/{unit}")
        assert "changed=0" in site.run(playbook=str(play))
        assert lab.inside(572, "systemctl --failed --no-legend | grep nvidia || true") == ""
    finally:
        lab.destroy(572)


def test_the_gpus_of_a_node_are_looked_at(tmp_path):
    """What a run says where tensor parallel would hang, on a tree of files as a kernel has them."""
    for number, address in enumerate(("0000:01:00.0", "0000:02:00.0")):
        device = tmp_path / f"sys/devices/pci0000:00/0000:00:0{number}.1/{address}"
        device.mkdir(parents=True)
        bus = tmp_path / "sys/bus/pci/devices"
        bus.mkdir(parents=True, exist_ok=True)
        (bus / address).symlink_to(device)
        (bus / f"0000:00:0{number}.1").symlink_to(device.parent)
        (device.parent / "config").write_bytes(bytes(4096))
        group = tmp_path / f"sys/kernel/iommu_groups/{number}"
        group.mkdir(parents=True)
        (group / "type").write_text("DMA-FQ\n")
        (device / "iommu_group").symlink_to(group)
        card = tmp_path / f"proc/driver/nvidia/gpus/{address}"
        card.mkdir(parents=True)
        (card / "information").write_text(
            f"Model: \t\t NVIDIA GeForce RTX 5090\nBus Location: \t {address}\nDevice Minor: \t {number}\n"
        )
    (tmp_path / "proc/cmdline").write_text("quiet intel_iommu=on\n")
    found = lab.call("nvidia_peer_info", gpus=[0, 1], root=str(tmp_path))
    assert found["environment"] == {"NCCL_P2P_DISABLE": "1", "VLLM_SKIP_P2P_CHECK": "0"}
    assert "command line: intel_iommu=on" in found["reasons"][0]
    assert found["gpus"][1]["bridges"] == ["0000:00:01.1"]
    for group in (0, 1):
        (tmp_path / f"sys/kernel/iommu_groups/{group}/type").write_text("identity\n")
    assert lab.call("nvidia_peer_info", gpus=[0, 1], root=str(tmp_path))["direct"] is True
    assert lab.call("nvidia_peer_info", gpus=[0], root=str(tmp_path))["reasons"] == []


class Family:
    """Containers of a JSON file, on a node with a driver, converged by site.yml."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "node"
        node = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable,
                "nvidia_version_file": str(self.root / "proc/driver/nvidia/version"),
                "nvidia_node_root": str(self.root), "nvidia_store": str(folder / "store")}  # fmt: skip
        source = {"plugin": "phoenix.hypervisor.lxc_configs", "nodes": {"pve": node}}
        (folder / "lxc_configs.yml").write_text(json.dumps(source))

    def declare(self, **containers: dict) -> None:
        """The JSON file."""
        common = {"template": lab.OSTEMPLATE, "memory_mb": 128, "swap_mb": 0, "cores": 1, "features": ["nvidia"],
                  "storage_pool": "local-btrfs", "storage_size_gb": 2}  # fmt: skip
        entries = {name[1:]: {**common, **entry} for name, entry in containers.items()}
        config = {"nvidia_driver_version": "580", "lxc_configs": entries}
        (self.folder / "phoenix_lxc_configs.json").write_text(json.dumps(config))

    def run(self, *options: str, code: int = 0) -> str:
        """A run of site.yml."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.folder / "lxc_configs.yml"),
             "site.yml", *options],
            cwd=lab.ROOT, env={**os.environ, "ANSIBLE_CONFIG": str(lab.ROOT / "ansible.cfg"), "COLUMNS": "9999"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def family(tmp_path) -> Iterator[Family]:
    lab.require_lab()
    try:
        yield Family(tmp_path)
    finally:
        lab.destroy(573, 574, 575)


def test_site_yml_brings_it_into_a_container(family):
    """Refused before anything changes where the node has no driver; then from nothing to the kernel's driver."""
    family.declare(_573={})
    said = family.run(code=2)
    assert "the node has no NVIDIA kernel driver loaded" in said
    assert not (lab.CONFIGS / "573.conf").exists()
    nvidia_site.node_root(family.root, V)
    family.run()
    assert lab.inside(573, GETS).split()[1] == V
    calls = lab.calls(573)
    assert "changed=0" in family.run()
    assert lab.calls(573) == calls


@pytest.mark.full
def test_an_application_alone_has_what_a_whole_run_gives_it(family):
    """With --tags application the features are left out; the server's environment must not be another one for that."""
    shows = family.folder / "shows/tasks"
    shows.mkdir(parents=True)
    found = "{{ (nvidia_environments | default({}))['573'] | default('nothing') }}"
    (shows / "main.yml").write_text(f'- ansible.builtin.debug: {{msg: "has {found}"}}\n')
    family.declare(_573={"application_script": "x.sh"})
    nvidia_site.node_root(family.root, V)
    roles = ("-e", json.dumps({"phoenix_application_roles": {"x.sh": str(family.folder / "shows")}}))
    whole = re.findall(r"has \{[^\n]*", family.run(*roles))
    assert len(whole) == 1 and "PHOENIX_NVIDIA_DRIVER" in whole[0] and V in whole[0], whole
    said = family.run("--tags", "application", *roles)
    assert re.findall(r"has \{[^\n]*", said) == whole and "changed=0" in said


@pytest.mark.full
def test_of_two_that_serve_the_same_one_goes_on(family):
    """After an upgrade: one after the other; and when the first one fails, the second one isn't touched."""
    serves = {"application_script": "x.sh", "vllm_engine_config": {"ModelConfig": {"model": "org/same"}}}
    family.declare(_573={}, _574=serves, _575=serves)
    roles = ("-e", json.dumps({"phoenix_application_roles": {"x.sh": "phoenix.hypervisor.trusted_ca"}}))
    nvidia_site.node_root(family.root, OLD)
    said = family.run(*roles)
    assert said.count("PLAY [Converge the containers") == 2
    nvidia_site.node_root(family.root, V)
    (family.folder / "host_vars").mkdir()
    (family.folder / "host_vars/ctid_574.yml").write_text("nvidia_gpus: [0]\n")
    said = family.run(*roles, code=2)
    assert "the container was given GPU 0, and has no /dev/nvidia0" in said
    assert "CTID 575 is left as it is, and goes on serving: ctid_574, which serves the same model, failed" in said
    assert [lab.inside(vmid, GETS).split()[1] for vmid in (573, 574, 575)] == [V, OLD, OLD]
    (family.folder / "host_vars/ctid_574.yml").unlink()
    family.run(*roles)
    assert [lab.inside(vmid, GETS).split()[1] for vmid in (573, 574, 575)] == [V, V, V]
