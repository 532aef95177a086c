# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM from its own sources, for real, in a container without a GPU; what gates refuse. Needs a lab that is up.

A git server on the lab's bridge has vLLM's published source distributions as repositories; the stacks are in
tests/lab/stacks, a user's own folder. In every run vLLM 0.10.2 is built without compiled code, which takes all the
steps of a build but the compiler's, and small stacks meet the gates that they are made for. The full run compiles it,
is killed on the way and goes on, and has vLLM 0.32.0 answer with compiled code taken from a published wheel.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab_modules import OSTEMPLATE, ROOT, destroy, inside, open_folder, pct, require_lab, start, wait_until
from tiny_stack import Index, Tiny, make_wheel, sha256
from vllm_repositories import COMPILED, HOST, Repositories

pytestmark = pytest.mark.lab

VMID, ADDRESS = 616, "10.92.0.216"
STACKS = ROOT / "tests" / "lab" / "stacks"
RELEASES = "/opt/vllm-releases"
LOG = "/var/log/vllm-release.log"


class Site:
    """A container, and playbooks that run on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.variables: dict = {
            "ansible_connection": "phoenix.hypervisor.pct",
            "ansible_pct_vmid": VMID,
            "ansible_pct_node_connection": "local",
            "ansible_host": "localhost",
            "ansible_python_interpreter": "/usr/bin/python3",
            "phoenix_node": "pve",
            "container_address": ADDRESS,
            "vllm_stack_folders": [str(STACKS)],
            # Its own node would keep what these tests make for other containers.
            "vllm_stack_store": "",
        }

    def play(self, *tasks: dict, **variables) -> subprocess.Popen:
        """Start a play of tasks on the container."""
        node = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        hosts = {"pve": node, f"ctid_{VMID}": {**self.variables, **variables}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        play = [{"hosts": f"ctid_{VMID}", "gather_facts": False, "tasks": list(tasks)}]
        (self.folder / "play.yml").write_text(yaml.safe_dump(play))
        playbook = str(Path(sys.executable).with_name("ansible-playbook"))
        return subprocess.Popen(
            [playbook, "-i", str(self.folder / "hosts.yml"), str(self.folder / "play.yml")],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        )  # fmt: skip

    def good(self, *tasks: dict, **variables) -> int:
        """Run a play that must succeed. Returns how many tasks changed something."""
        process = self.play(*tasks, **variables)
        output = process.communicate(timeout=1500)[0]
        assert process.returncode == 0, output
        return int(output.rsplit("changed=", 1)[1].split()[0])

    def refused(self, *tasks: dict, **variables) -> str:
        """Run a play that must fail, without a traceback. Returns its output in one line."""
        process = self.play(*tasks, **variables)
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 2, output
        assert "Traceback" not in output
        return " ".join(output.replace("''", "'").split())


def role(name: str) -> dict:
    """The task that runs a role of the collection."""
    return {"ansible.builtin.include_role": {"name": f"phoenix.hypervisor.{name}"}}


STACK, SERVER = role("vllm_stack"), role("vllm_model_server")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Iterator[Repositories]:
    """The git server."""
    require_lab()
    served = Repositories(tmp_path_factory.mktemp("repositories"))
    yield served
    served.stop()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A container of the lab's base, with a model."""
    require_lab()
    with open_folder() as folder:
        model = folder / "model"
        subprocess.run([sys.executable, ROOT / "lab/tiny_llama.py", model], check=True, capture_output=True)
        destroy(VMID)
        pct(
            "create", str(VMID), OSTEMPLATE, "--hostname", f"source{VMID}", "--memory", "6144", "--cores", "2",
            "--rootfs", "local-btrfs:16", "--unprivileged", "1", "--features", "nesting=1",
            "--mp0", f"{model},mp=/model", "--net0", f"name=eth0,bridge=vmbr0,ip={ADDRESS}/24,gw={HOST}",
        )  # fmt: skip
        start(VMID)
        yield Site(folder)
        destroy(VMID)


def record() -> dict:
    """What the live release says of itself."""
    return json.loads(inside(VMID, "cat /opt/vllm/release.json"))


# --- small stacks that the gates refuse -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Iterator[Tiny]:
    """A stack that takes a second, on an index of its own."""
    stack = Tiny(tmp_path_factory.mktemp("wheels"))
    stack.index = Index(stack.folder)
    yield stack
    stack.index.close()


def install(tiny: Tiny, *candidates: dict) -> dict:
    """The task that installs candidates."""
    places = {"index": tiny.index.url}
    return {"phoenix.hypervisor.vllm_release": {"candidates": list(candidates), "places": places}}


def test_a_wheel_that_lies_about_its_version_does_not_go_live(site, tiny):
    liar = tiny.candidate("1.0", says="0.9")
    said = site.refused(install(tiny, liar))
    assert "vLLM should be 1.0, and `vllm --version` says 0.9." in said
    assert liar["release"] in json.loads(inside(VMID, f"cat {RELEASES}/refused.json"))
    assert inside(VMID, f"ls -d /opt/vllm {RELEASES}/tiny-* 2>/dev/null || true") == ""


def test_a_package_that_brings_files_of_torch_does_not_go_live(site, tiny):
    # So many files that its torch comes last.
    files = {f"evil/part{number}.py": "" for number in range(4000)} | {"torch/__init__.py": "__version__ = '9.9.0'\n"}
    wheel = make_wheel(tiny.folder, "evil", "1.0", files)
    good = tiny.candidate("2.0")
    evil = tiny.candidate("2.0", requirements=f"evil==1.0 --hash=sha256:{sha256(wheel)}\n{good['requirements']}")
    said = site.refused(install(tiny, evil))
    assert "A package touched torch: its file torch/__init__.py is not the one that it was installed with" in said
    assert "evil-1.0 brings a file of that name" in said
    # The next candidate is installed in its stead.
    assert site.good(install(tiny, evil, good)) == 1
    assert record()["release"] == good["release"]


# --- from source -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_vllm_is_built_from_its_sources(site, repositories):
    """All but the compiler: fetched by its commit, made for the locked PyTorch, built, installed, tried."""
    options = {"vllm_stack_name": "vllm-0.10.2-source", "vllm_stack_repository": repositories.url("0.10.2")}
    assert site.good(STACK, **options) >= 2
    found = record()
    assert "vllm 0.10.2+cpu.empty" in found["found"]
    assert any(text.startswith("torch 2.13.0+cpu") for text in found["found"])
    ((name, built),) = found["built"].items()
    assert name.startswith("vllm-0.10.2+cpu.empty-")
    assert built["from"].endswith("@82175eb26e006ad3e391188f9d55ac3d7205f9c8")
    # vLLM's own script leaves the pins of this release where they are.
    assert "pyproject.toml: torch == 2.8.0" in built["removed"]
    assert ">>> removed" not in inside(VMID, f"cat {LOG}")
    assert site.good(STACK, **options) == 0


@pytest.mark.full
def test_flashinfer_is_built_from_its_published_sources(site, repositories):
    """As the stack for vLLM 0.10.2 on GPUs has it. It can be imported without CUDA, so its gates are passed, too."""
    shipped = yaml.safe_load((ROOT / "roles/vllm_stack/files/stacks/vllm-0.10.2-cu128/stack.yml").read_text())
    flashinfer = {key: shipped["flashinfer"][key] for key in ("version", "ladder", "hashes")}
    site.good(
        STACK, vllm_stack_name="vllm-0.10.2-source", vllm_stack_repository=repositories.url("0.10.2"),
        vllm_stack_overrides={"flashinfer": flashinfer},
    )  # fmt: skip
    found = record()
    assert found["flashinfer"] == "0.3.1" and found["refused"] == {}
    assert {"flashinfer 0.3.1 has its headers", "flashinfer 0.3.1", "vllm 0.10.2+cpu.empty"} <= set(found["found"])
    assert sorted(name.split("-")[0] for name in found["built"]) == ["flashinfer_python", "vllm"]


def test_a_commit_that_is_not_there_is_named(site, repositories):
    overrides = {"vllm": {"commit": "c" * 40}}
    said = site.refused(
        STACK, vllm_stack_name="vllm-0.10.2-source", vllm_stack_repository=repositories.url("0.10.2"),
        vllm_stack_overrides=overrides,
    )  # fmt: skip
    assert f"has no commit {'c' * 40}" in said or "could not be fetched" in said
    assert "vllm.commit" in said or "vllm.repository" in said


@pytest.mark.full
def test_compiled_killed_and_gone_on_with(site, repositories):
    """A compilation that is killed keeps its objects; the next run compiles the rest."""
    options = {
        "vllm_stack_name": "vllm-0.10.2-source", "vllm_stack_repository": repositories.url("0.10.2"),
        "vllm_stack_overrides": COMPILED,
    }  # fmt: skip
    process = site.play(STACK, **options)
    wait_until(lambda: "[4/" in inside(VMID, f"cat {RELEASES}/.work/*/progress.json 2>/dev/null || true"), 900)
    inside(VMID, "systemctl kill --kill-who=all --signal=KILL vllm_release.service")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert "Traceback" not in output
    objects = int(inside(VMID, f"find {RELEASES}/.work -path '*/_C.dir/*.o' | wc -l"))
    assert objects >= 3
    before = int(inside(VMID, f"wc -l < {LOG}"))
    site.good(STACK, **options)
    steps = re.findall(r"^\[(\d+)/(\d+)\] (?:Building|Linking) CXX", inside(VMID, f"tail -n +{before} {LOG}"), re.M)
    assert steps
    # Eight files and the library, without those that were there.
    assert int(steps[-1][1]) <= 9 - objects + 2
    assert "vllm 0.10.2+cpu" in record()["found"]
    (built,) = record()["built"].values()
    assert "2 cores" in built["notes"][0]


@pytest.mark.full
def test_a_build_from_source_answers(site, repositories):
    """vLLM 0.32.0 from its sources, with the compiled code of a wheel, up to a completion."""
    site.good(
        STACK, SERVER, vllm_stack_name="vllm-0.32.0-precompiled", vllm_stack_repository=repositories.url("0.32.0"),
        vllm_model_server_engine_config={
            "ModelConfig": {"model": "/model", "load_format": "dummy", "dtype": "float32", "max_model_len": 256,
                            "enforce_eager": True},
            "ServerConfig": {"port": 8000, "served_model_name": ["tiny"]},
        },
    )  # fmt: skip
    body = json.dumps({"model": "tiny", "prompt": "Hello", "max_tokens": 4}).encode()
    url = f"http://{ADDRESS}:8000/v1/completions"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert json.load(reply)["choices"][0]["text"]
