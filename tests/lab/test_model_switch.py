# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One model takes another one's place, with a client that asks twenty times a second, in a container of the lab.

A small program stands in for vLLM (tests/support/vllm_stand_in.py). One container (CTID 652) serves all tests of this
file, in their order.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_modules import pct, require_lab, wait_until
from model_site import KEY, PORT, UNIT, Site
from steady_client import SteadyClient, ask

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
VMID, ADDRESS = 652, "10.92.0.63"
ONE, TWO = "fake-111111111111", "fake-222222222222"
NEXT = "vllm_model_server-next.service"
ROOM = {"vllm_model_server_environment": {"VLLM_CPU_KVCACHE_SPACE": "1"}}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    """A container with two releases and some models, and memory for two servers, as the numbers go."""
    require_lab()
    site = Site(VMID, ADDRESS, tmp_path_factory.mktemp("site"))
    site.variables = ROOM
    try:
        site.create(("good", "other", "loads", "dies", "slow"), (ONE, TWO), memory=8192)
        site.inside("apt-get update -q && apt-get install -qy --no-install-recommends nftables")
        site.run()
        yield site
    finally:
        site.close()


def client() -> SteadyClient:
    """A client of the container's server."""
    return SteadyClient(ADDRESS, PORT, KEY)


def nothing_is_left(site: Site) -> bool:
    """Whether nothing of a switch is there any more, and the server itself runs."""
    assert site.inside(f"systemctl is-active {UNIT}") == "active"
    left = site.inside(f"ls -d /run/systemd/system/vllm_model_server* 2>/dev/null; nft list tables; "
                       f"systemctl list-units --all --no-legend '{NEXT}'; pgrep -fc '/bin/vllm serve'")  # fmt: skip
    return left == "1"


def kill(process) -> None:
    """Kill a run, and wait for what it had begun inside."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_old_server_answers_until_the_new_one_does(site):
    site.use(TWO)
    slow: list[tuple[str, str]] = []
    body = json.dumps({"model": "m", "prompt": "Slowly"})
    shown = site.run("--check", "--diff", **site.engine_config("loads"))
    assert "start the new server beside the old one, which answers until it does (" in shown
    with client() as steady:
        process = site.start("--diff", **site.engine_config("loads"))
        wait_until(lambda: NEXT in site.inside("ls /run/systemd/system"), 30)
        # Half a second before the new one answers: it is answered by the old one, to its end.
        time.sleep(2.5)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        thread = threading.Thread(target=lambda: slow.append(ask(ADDRESS, PORT, headers, body, 30)))
        thread.start()
        said, _nothing = process.communicate(timeout=120)
        thread.join()
        time.sleep(1)
    assert process.returncode == 0, said
    assert "changed=1" in said and "Nothing answered for" not in said
    assert steady.failed == [] and len(steady.requests) > 100
    assert steady.answers == [f"{ONE} good None", f"{TWO} loads None"]
    assert slow == [(f"{ONE} good None", "")]
    assert re.findall(r"start the new server beside the old one, which answers until it does \(.*?\)", shown)
    assert nothing_is_left(site) and site.answer() == f"{TWO} loads None"
    assert "changed=0" in site.run(**site.engine_config("loads"))


def test_going_back_has_no_gap_either(site):
    with client() as steady:
        site.run(playbook=str(ROOT / "playbooks/rollback.yml"), phoenix_rollback_reason="it talks nonsense")
    assert steady.failed == []
    assert steady.answers == [f"{TWO} loads None", f"{ONE} good None"]
    assert nothing_is_left(site)
    entry = json.loads(site.inside("tail -n 1 /var/lib/vllm_model_server/rollbacks.jsonl"))
    assert (entry["why"], entry["by_itself"], entry["answered"]) == ("it talks nonsense", False, True)
    assert "changed=0" in site.run()


def test_a_new_server_that_fails_has_not_touched_the_old_one(site):
    pid = site.main_pid()
    site.use(TWO)
    with client() as steady:
        said = site.run(code=2, **site.engine_config("dies"))
    assert "torch.OutOfMemoryError: CUDA out of memory." in said and "serving /models/dies" in said
    assert f"The change was undone before it reached the running server: release {ONE}" in said
    assert steady.failed == [] and steady.answers == [f"{ONE} good None"]
    assert site.main_pid() == pid and nothing_is_left(site)
    assert site.inside("readlink /opt/vllm") == f"/opt/vllm-releases/{ONE}"
    assert "changed=0" in site.run()


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"vllm_model_server_environment": {"VLLM_CPU_KVCACHE_SPACE": "6"}}, "the new one may want 7.5"),
        ({"vllm_model_server_overlap": "never"}, "vllm_model_server_overlap is never"),
    ],
    ids=["no room", "not wanted"],
)
def test_where_it_can_t_be_the_gap_is_told(site, variables, why):
    site.run()
    shown = site.run("--check", "--diff", **site.engine_config("loads"), **variables)
    assert f"restart {UNIT}, and nothing answers until it has loaded: " in shown and why in shown
    with client() as steady:
        said = site.run("--diff", **site.engine_config("loads"), **variables)
        time.sleep(0.5)
    assert "start the new server beside" not in said
    told = re.search(r"Nothing answered for ([\d.]+) s while the server was replaced, because .*?" + re.escape(why), said)
    assert told, said
    gap = steady.gap()
    assert steady.failed and steady.failed_outside(gap) == 0
    # The client saw what the run says.
    assert abs(gap[1] - gap[0] - float(told[1])) < 1.5 and 3 < float(told[1]) < 8
    assert steady.answers == [f"{ONE} good None", f"{ONE} loads None"]
    assert nothing_is_left(site)
    assert "changed=0" in site.run(**site.engine_config("loads"), **variables)


@pytest.mark.parametrize("moment", ["beside", pytest.param("restart", marks=pytest.mark.full)])
def test_a_run_that_is_killed_in_the_middle_is_repaired_by_the_next(site, moment):
    """Killed while the new one loads beside, or while the server itself is started anew; all the time it answers."""
    site.run()
    with client() as steady:
        process = site.start(**site.engine_config("loads"))
        wait_until(lambda: NEXT in site.inside("ls /run/systemd/system"), 30)
        if moment == "restart":
            wait_until(lambda: "dnat" in site.inside("nft list ruleset"), 30)
            wait_until(lambda: "loads" in site.inside(f"cat /etc/systemd/system/{UNIT}"), 30)
        kill(process)
        time.sleep(1)
        said = site.run("--diff", **site.engine_config("loads"))
    assert "end the server beside it" in said
    assert steady.failed == [] and steady.answers == [f"{ONE} good None", f"{ONE} loads None"]
    assert nothing_is_left(site)
    assert "changed=0" in site.run(**site.engine_config("loads"))


def test_what_a_killed_run_left_is_ended_by_one_that_wants_something_else(site):
    site.run()
    process = site.start(**site.engine_config("slow"))
    wait_until(lambda: NEXT in site.inside("ls /run/systemd/system"), 30)
    kill(process)
    with client() as steady:
        assert "end the server beside it" in site.run("--diff")
    assert steady.failed == [] and nothing_is_left(site)
    assert "changed=0" in site.run()


def test_a_container_that_restarts_in_the_middle_has_one_state(site):
    site.run()
    process = site.start(**site.engine_config("slow"))
    wait_until(lambda: NEXT in site.inside("ls /run/systemd/system"), 30)
    kill(process)
    pct("reboot", str(VMID))
    wait_until(site.answers, 60)
    assert site.answer() == f"{ONE} good None" and nothing_is_left(site)
    assert "changed=0" in site.run()
