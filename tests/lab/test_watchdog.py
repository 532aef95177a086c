# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The watchdog of the model server, for real systemd, in a container of the lab. A program stands in for vLLM.

One container (CTID 651) serves all tests of this file, in their order. Where the timer isn't what is tested, a look is
had at once: C(systemctl start) of the watchdog's service returns when it has ended.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_modules import require_lab, wait_until
from model_site import KEY, TOKEN, UNIT, Site

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
VERIFY = str(ROOT / "playbooks/verify.yml")
VMID, ADDRESS = 651, "10.92.0.62"
SERVICE, TIMER = "vllm_model_server_watchdog.service", "vllm_model_server_watchdog.timer"
MEMORY = "/run/vllm_model_server_watchdog/memory.json"
LIMIT = 3
# The unit's own is 15 seconds; tests/bench/server_hang.py measures with that.
RESTART_AFTER = 1


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    """A container with a model server whose watchdog is quick to lose its patience, and which is restarted once."""
    require_lab()
    site = Site(VMID, ADDRESS, tmp_path_factory.mktemp("site"))
    site.variables = {"vllm_model_server_watchdog_limit": LIMIT, "vllm_model_server_restarts": 1}
    try:
        site.create(("good", "hangs", "slow-10"))
        site.inside(f"mkdir /etc/systemd/system/{UNIT}.d && cd /etc/systemd/system/{UNIT}.d && "
                    f"printf '[Service]\\nRestartSec={RESTART_AFTER}\\n' >soon.conf")  # fmt: skip
        yield site
    finally:
        site.close()


def state(site: Site, *names: str) -> str:
    """What systemd says of the server."""
    return site.inside(f"systemctl show --value {' '.join(f'--property={name}' for name in names)} {UNIT}")


def look(site: Site, times: int = 1) -> None:
    """Have the watchdog look at the server, at once."""
    site.inside(f"for i in $(seq {times}); do systemctl start {SERVICE}; done")


def told(site: Site) -> str:
    """What the journal has of the watchdog, where a person looks for it: at the server's own unit."""
    return site.inside(f"journalctl --sync; journalctl --no-pager --quiet --output=cat -u {UNIT} -t watchdog")


def test_it_is_set_up_by_the_role(site):
    shown = site.run("--check", "--diff")
    assert f"write {SERVICE} and {TIMER}" in shown and "OnUnitInactiveSec=5" in shown
    assert site.inside(f"ls /etc/systemd/system/{TIMER} 2>/dev/null || true") == ""
    assert f"write {SERVICE} and {TIMER}" in site.run("--diff")
    assert site.inside(f"systemctl is-active {TIMER}; systemctl is-enabled {TIMER}") == "active\nenabled"
    assert "changed=0" in site.run()


def test_its_units(site):
    assert site.inside(f"systemd-analyze verify /etc/systemd/system/{SERVICE} /etc/systemd/system/{TIMER} 2>&1") == ""
    score = site.inside(f"systemd-analyze security --no-pager {SERVICE} | tail -1")
    assert float(re.search(r": ([\d.]+) ", score)[1]) <= 2.2, score


def test_another_limit_restarts_no_server(site):
    pid = site.main_pid()
    shown = site.run("--check", "--diff", vllm_model_server_watchdog_limit=4)
    assert f"change {SERVICE} and {TIMER}" in shown and "restart" not in re.search(r"plan: .*", shown + "plan: ")[0]
    assert "changed=1" in site.run(vllm_model_server_watchdog_limit=4)
    assert "/var/lib/vllm_model_server 4 60" in site.inside(f"systemctl cat {SERVICE}")
    site.run()
    assert site.main_pid() == pid
    site.inside(f"systemctl --quiet disable --now {TIMER}")
    assert f"{TIMER} is disabled and inactive" in site.run(playbook=VERIFY, code=2)
    assert "changed=1" in site.run()
    assert site.inside(f"systemctl is-active {TIMER}; systemctl is-enabled {TIMER}") == "active\nenabled"
    assert site.main_pid() == pid


def test_one_that_hangs_is_restarted(site):
    """Stopped as a whole, so that it hears no SIGTERM; the timer has the watchdog look."""
    # systemd 252 forgets with each daemon-reload how often it has started something.
    site.inside(f"systemctl reset-failed {UNIT}; systemctl restart {UNIT}")
    wait_until(site.answers)
    look(site)
    pid = site.main_pid()
    began = time.monotonic()
    site.inside(f"kill -STOP {pid}")
    wait_until(lambda: site.main_pid() not in (pid, "0"), LIMIT + 40)
    seconds = time.monotonic() - began
    assert LIMIT <= seconds <= LIMIT + 15, seconds
    wait_until(site.answers)
    assert state(site, "NRestarts") == "1"
    entry = json.loads(site.inside("tail -n 1 /var/lib/vllm_model_server/ends.jsonl"))
    why = rf"it has not answered for \d+ s \(the limit is {LIMIT} s\): no answer on port 8000"
    assert entry["result"] == "signal" and re.fullmatch(why, entry["watchdog"])
    assert f"The model server is killed: {entry['watchdog']}. systemd starts it again" in told(site)


def test_one_that_hangs_again_and_again_is_left_stopped(site):
    """Its API answers /health, but no completion comes: its engine is dead-locked. It was restarted once already."""
    look(site)
    site.inside("touch /models/good/deadlocked")
    try:
        wait_until(lambda: state(site, "ActiveState") == "failed", LIMIT + 50)
    finally:
        site.inside("rm /models/good/deadlocked")
    look(site, 3)
    time.sleep(2)
    assert state(site, "ActiveState", "MainPID").split() == ["0", "failed"]
    stopped = "The model server is left stopped after its last restart (vllm_model_server_restarts: 1): it has not"
    assert told(site).count("is killed") == 2 and told(site).count(stopped) == 1
    status = site.inside(f"systemctl status --no-pager {UNIT} || true")
    assert "Active: failed" in status and stopped in status
    said = site.run(playbook=VERIFY, code=2)
    assert f"{UNIT} was left stopped after its last restart (vllm_model_server_restarts: 1), because it did" in said
    assert "changed=1" in site.run(), "the next run starts it"
    wait_until(site.answers)
    site.run(playbook=VERIFY)


def test_a_busy_one_is_left_alone(site):
    pid = site.main_pid()
    site.inside("touch /models/good/busy")
    began = time.monotonic()
    try:
        look(site, 3)
        assert time.monotonic() - began > 2 * LIMIT, "it has waited for an answer longer than the limit"
        memory = json.loads(site.inside(f"cat {MEMORY}"))
    finally:
        site.inside("rm /models/good/busy")
    assert memory["since"] and memory["counters"] and not memory["killed"]
    look(site)
    assert site.main_pid() == pid and state(site, "NRestarts") == "0"
    assert json.loads(site.inside(f"cat {MEMORY}"))["since"] is None, "it answers again"


def test_one_that_refuses_is_alive_and_that_is_told_once(site):
    pid = site.main_pid()
    site.inside("touch /models/good/refuses")
    try:
        look(site, 3)
    finally:
        site.inside("rm /models/good/refuses")
    line = "The model server is taken for alive, but it answers on port 8000, but refuses /v1/completions: HTTP 404."
    assert told(site).count(line) == 1
    assert site.main_pid() == pid


def test_one_that_was_stopped_on_purpose_stays_so(site):
    site.inside(f"systemctl stop {UNIT}")
    look(site, 2)
    assert state(site, "ActiveState") == "inactive"
    site.inside(f"systemctl reset-failed {UNIT}; systemctl start {UNIT}")
    wait_until(site.answers)


@pytest.mark.full
def test_a_change_that_fails_is_undone_beside_it(site):
    site.run()
    killed = told(site).count("is killed")
    said = site.run(code=2, vllm_model_server_ready_timeout=8, **site.engine_config("hangs"))
    assert "The change was undone: release" in said and "did not answer within 8 s" in said, said
    assert told(site).count("is killed") == killed
    assert "good" in site.answer() and state(site, "NRestarts") == "0"
    assert f"/var/lib/vllm_model_server {LIMIT} 60" in site.inside(f"systemctl cat {SERVICE}"), "its time to load again"


def test_one_that_loads_is_left_alone(site):
    """It is silent for three times the limit, while the change to it is waited for."""
    killed = told(site).count("is killed")
    assert "changed=1" in site.run(**site.engine_config("slow-10"))
    assert (state(site, "NRestarts"), told(site).count("is killed")) == ("0", killed)


def test_no_secret_of_the_server_is_seen(site):
    """The watchdog has sent the key with each of its requests."""
    assert site.inside(f"grep -lF -e '{TOKEN}' -e 'of-this-t3st' {MEMORY} /etc/systemd/system/*watchdog* || true") == ""
    assert site.inside("journalctl --no-pager -o verbose | grep -cE 't0ken-of-this|of-this-t3st' || true") == "0"
    site.inside("touch /models/slow-10/busy")
    try:
        site.inside(f"systemctl --no-block start {SERVICE}")
        wait_until(lambda: "guard.py" in site.inside("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"))
        lines = site.inside("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
    finally:
        site.inside("rm /models/slow-10/busy")
    assert "guard.py" in lines and KEY not in lines and TOKEN not in lines


def test_it_can_be_switched_off(site):
    config = site.engine_config("slow-10")
    shown = site.run("--check", "--diff", vllm_model_server_watchdog_limit=0, **config)
    assert f"stop and remove {SERVICE} and {TIMER}" in shown and "-OnUnitInactiveSec=5" in shown
    pid = site.main_pid()
    assert "changed=1" in site.run(vllm_model_server_watchdog_limit=0, **config)
    assert site.main_pid() == pid
    assert site.inside("find /etc/systemd/system -name '*watchdog*'") == ""
    assert site.inside(f"systemctl is-active {TIMER} || true") == "inactive"
    assert "changed=0" in site.run(vllm_model_server_watchdog_limit=0, **config)
    site.run(playbook=VERIFY, **config)
