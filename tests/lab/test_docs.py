# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of the documentation, run in the lab: those marked C(lab), and C(slow) in the full run, on a container
with a stand-in for vLLM, which takes the place of the example's 921; those marked C(full) on the lab's own containers,
as they are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docs_blocks
import pytest
import yaml
from docs_blocks import Block
from lab_modules import OSTEMPLATE, ROOT, destroy, require_lab
from model_site import Site

pytestmark = pytest.mark.lab
VMID, ADDRESS = 595, "10.92.0.15"
KEY = "sk-of-the-docs"
# What comes later in a page, or in the next, builds on what was run before.
ORDER = ("start-node", "api", "status", "rollback", "troubleshooting", "moving-over")


def blocks(*hows: str) -> list[Block]:
    found = [block for page in docs_blocks.pages() for block in docs_blocks.of_page(page) if block.how in hows]
    places = {f"docs/{name}.md": place for place, name in enumerate(ORDER)}
    return sorted(found, key=lambda block: (places.get(block.page, len(ORDER)), block.page, block.line))


class Checkout:
    """A person's terminal in the checkout, with an inventory of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inventory = folder / "site"
        (self.inventory / "group_vars").mkdir(parents=True)
        self.server = Site(VMID, ADDRESS, folder / "server")
        self.server.variables["vllm_model_server_api_key"] = KEY
        node = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        source = {"plugin": "phoenix.hypervisor.lxc_configs", "nodes": {"pve": node}}
        (self.inventory / "lxc_configs.yml").write_text(yaml.safe_dump(source))
        network = {"name": "eth0", "bridge": "vmbr0", "ip": f"{ADDRESS}/24", "gw": "10.92.0.1"}
        entry = {
            "name": f"server{VMID}", "template": OSTEMPLATE, "storage_pool": "local-btrfs", "memory_mb": 512,
            "cores": 2, "pct_options": ["nesting=1"], "network_config": network, "vllm_stack": "cpu",
            "application_script": "phoenix_hypervisor_lxc_vllm.sh",
            "vllm_engine_config": {
                "ModelConfig": {"model": "/models/good"},
                "ServerConfig": {"port": 8000, "served_model_name": "llama-3.2-3b-fp8"},
            },
        }  # fmt: skip
        (self.inventory / "phoenix_lxc_configs.json").write_text(json.dumps({"lxc_configs": {str(VMID): entry}}))
        variables = {
            "certificate_source": "none", "vllm_model_server_api_key": KEY,
            "vllm_model_server_ready_timeout": 60, "vllm_model_server_stop_timeout": 5,
        }  # fmt: skip
        (self.inventory / "group_vars/phoenix_containers.yml").write_text(yaml.safe_dump(variables))

    def run(self, block: Block) -> str:
        """Run a block for this container in the place of 921. Returns what was said."""
        text = block.text.replace("inventories/site", str(self.inventory))
        text = text.replace("10.92.0.121", ADDRESS).replace("921", str(VMID))
        shell = ["bash", "-euo", "pipefail", "-c"]
        command = [*([sys.executable, "-c"] if block.language == "python" else shell), text]
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
            env={
                **environment(), "ANSIBLE_INVENTORY": str(self.inventory / "lxc_configs.yml"), "API_KEY": KEY,
                "BASE": f"http://{ADDRESS}:8000",
            },
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def environment() -> dict[str, str]:
    """Of somebody who has sourced .venv/bin/activate."""
    return {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONDONTWRITEBYTECODE": "1",
        "NO_PROXY": ADDRESS, "no_proxy": ADDRESS,
    }  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Iterator[Checkout]:
    require_lab()
    it = Checkout(tmp_path_factory.mktemp("docs"))
    kept = Path(f"/var/lib/phoenix-hypervisor/adopted/{VMID}.conf")
    kept.unlink(missing_ok=True)
    try:
        it.server.create(("good", "other"), ("cpu-111111111111",))
        # A state to go back to.
        it.server.run(**it.server.engine_config("other"))
        yield it
    finally:
        destroy(VMID)
        kept.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=[pytest.mark.full] * (block.how == "slow"), id=str(block))
     for block in blocks("lab", "slow")],
)  # fmt: skip
def test_commands_on_a_container(checkout, block):
    assert checkout.run(block).strip()


@pytest.fixture(scope="module")
def converged() -> None:
    """The lab's 921, as `make demo` leaves it."""
    require_lab()
    done = subprocess.run(
        ["ansible-playbook", "site.yml", "-l", "ctid_921"], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.usefixtures("converged")
@pytest.mark.parametrize("block", blocks("full"), ids=str)
def test_commands_on_the_lab_s_own_containers(block):
    text = block.text.replace("source .venv/bin/activate", ":")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_a_block_of_each_page_that_was_meant():
    assert {Path(block.page).stem for block in blocks("lab", "slow")} >= set(ORDER)
