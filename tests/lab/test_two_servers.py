# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two model servers behind one node, declared in the old flat form, by site.yml from the example's own JSON.

950 and 951 are cloned from a snapshot of 920, which has vLLM, and 951 comes after 950. Needs a lab that is up.
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
from lab_modules import destroy, inside, require_lab

pytestmark = [pytest.mark.lab, pytest.mark.full]

ROOT = Path(__file__).resolve().parents[2]
SERVERS = {950: "10.92.0.150", 951: "10.92.0.151"}
# Clones before what they are cloned from.
MADE = (951, 950, 920)


@pytest.fixture(scope="module", autouse=True)
def containers() -> Iterator[None]:
    """None of them is there before, and after."""
    require_lab()
    destroy(*MADE)
    yield
    destroy(*MADE)


def run(*options: str, playbook: str = "site.yml") -> tuple[int, str]:
    """Run a playbook over the two. Returns its exit code and its output in one line."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), playbook, "-l", "ctid_950,ctid_951", *options],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "9999",
             "ANSIBLE_INVENTORY": str(ROOT / "inventories/lab/lxc_configs.yml")},
    )  # fmt: skip
    return done.returncode, " ".join(done.stdout.split())


def models(address: str) -> list[str]:
    """The models that a server has, and it answers for the first of them."""
    with urllib.request.urlopen(f"http://{address}:8000/v1/models", timeout=20) as reply:
        names = [model["id"] for model in json.load(reply)["data"]]
    body = json.dumps({"model": names[0], "prompt": "Hello", "max_tokens": 2}).encode()
    request = urllib.request.Request(
        f"http://{address}:8000/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert json.load(reply)["choices"][0]["text"]
    return names


def test_both_are_made_and_answer():
    code, said = run()
    assert code == 0, said
    assert "vllm_engine_config" in said, "the old form is told, with the new one"
    assert [models(address) for address in SERVERS.values()] == [
        ["qwen2.5-7b-instruct-awq"], ["qwen2.5-3b-instruct-awq"],
    ]  # fmt: skip
    releases = {inside(vmid, "readlink /opt/vllm") for vmid in SERVERS}
    assert len(releases) == 1, "installed once, in what both are cloned from"
    code, said = run()
    assert code == 0 and re.findall(r"changed=(\d+)", said) == ["0", "0"], said


def test_verify_has_both_in_its_report(tmp_path):
    code, said = run("-e", f"verify_report_folder={tmp_path}", playbook="playbooks/verify.yml")
    assert code == 0, said
    assert all(f"ctid_{vmid}" in (tmp_path / "verify.txt").read_text() for vmid in SERVERS)
