# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model server's unit, its changes and their undoing, for real systemd, in a container of the lab.

A small program stands in for vLLM (tests/support/vllm_stand_in.py); what vLLM itself does is in test_vllm_roles.py. One
container (CTID 650) serves all tests of this file, in their order.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_modules import inside as inside_of
from lab_modules import pct, require_lab, wait_until
from model_site import KEY, PORT, TOKEN, UNIT, Site

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
VMID, ADDRESS = 650, "10.92.0.65"
ONE, TWO, BROKEN = "fake-111111111111", "fake-222222222222", "fake-333333333333"


def inside(script: str) -> str:
    """What a shell script in the container prints."""
    return inside_of(VMID, script)


def live() -> tuple[str, str, str, str]:
    """What is live: release, unit, engine config and secrets."""
    return (
        inside("readlink /opt/vllm"),
        inside(f"cat /etc/systemd/system/{UNIT}"),
        inside("ls /etc/vllm; cat /etc/vllm/engine.yaml"),
        inside("cat /etc/vllm/secrets-*.env"),
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    """A container with three releases and some models."""
    require_lab()
    site = Site(VMID, ADDRESS, tmp_path_factory.mktemp("site"))
    try:
        site.create(("good", "other", "dies", "hangs", "slow-16"), (ONE, TWO, BROKEN))
        inside(f"touch /opt/vllm-releases/{BROKEN}/bin/broken")
        yield site
    finally:
        site.close()


def test_a_first_start_that_fails_has_nothing_to_go_back_to(site):
    said = site.run(code=2, **site.engine_config("dies"))
    assert "It was the server's first start: there is no former state to go back to." in said
    assert "torch.OutOfMemoryError: CUDA out of memory." in said
    assert "lower max_model_len" in said and "failure: CUDA out of memory" in said
    assert "serving /models/dies" in said, "its last lines"


def test_check_mode_and_the_run_have_one_plan(site):
    # systemd goes on trying that one for a while.
    inside(f"systemctl stop {UNIT}")
    shown = site.run("--check", "--diff")
    assert inside("ls /var/lib/vllm_model_server/history.json 2>/dev/null || true") == ""
    done = site.run("--diff")
    steps = [re.findall(r" (write /etc/vllm/engine.yaml .*?) changed:", text) for text in (shown, done)]
    assert steps[0] == steps[1] and "start vllm_model_server.service" in steps[0][0]
    assert site.answer() == f"{ONE} good None"


def test_a_second_run_changes_nothing(site):
    pid = site.main_pid()
    before = inside("cd / && find etc/vllm etc/systemd var/lib/vllm_model_server usr/local opt/vllm -newer /proc/1")
    state = inside("cat /var/lib/vllm_model_server/*.json /etc/vllm/*")
    assert "changed=0" in site.run()
    assert site.main_pid() == pid
    assert inside("cat /var/lib/vllm_model_server/*.json /etc/vllm/*") == state
    assert inside(
        "cd / && find etc/vllm etc/systemd var/lib/vllm_model_server usr/local opt/vllm -newer /proc/1"
    ) == before


def test_the_unit(site):
    assert inside(f"systemd-analyze verify /etc/systemd/system/{UNIT} 2>&1") == ""
    assert inside(f"systemctl is-enabled {UNIT}") == "enabled"
    command = inside(f"tr '\\0' ' ' </proc/{site.main_pid()}/cmdline")
    assert f"/opt/vllm-releases/{ONE}/bin/vllm serve /models/good --config /etc/vllm/engine-" in command
    variables = inside(f"tr '\\0' '\\n' </proc/{site.main_pid()}/environ").splitlines()
    assert f"VLLM_API_KEY={KEY}" in variables and f"HF_TOKEN={TOKEN}" in variables
    # The stand-in has written there as the service's user.
    assert "HF_HOME=/var/cache/vllm/huggingface" in variables
    assert not [line for line in variables if line.startswith(("VLLM_USE_FLASHINFER", "CUDA_HOME", "LD_LIB"))]
    status = inside(f"grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid)' /proc/{site.main_pid()}/status")
    assert re.search(r"CapBnd:\s0+\n", status) and "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    score = inside(f"systemd-analyze security --no-pager {UNIT} | tail -1")
    assert float(re.search(r": ([\d.]+) ", score)[1]) <= 2.5, score


def test_secrets_are_in_root_s_files_only(site):
    found = inside(
        f"grep -rlF '{TOKEN}' /etc /var /run /tmp /usr/local /opt /root --exclude-dir=journal 2>/dev/null || true"
    ).split()
    assert len(found) == 2, found
    assert re.fullmatch(r"/etc/vllm/secrets-[0-9a-f]{16}\.env", found[0])
    assert re.fullmatch(r"/var/lib/vllm_model_server/states/[0-9a-f]{16}\.json", found[1])
    assert inside(f"stat -c '%U %a' {' '.join(found)} /var/lib/vllm_model_server") == "root 600\nroot 600\nroot 700"
    assert inside("journalctl --no-pager -o verbose | grep -cE 't0ken-of-this|of-this-t3st' || true") == "0"
    lines = inside("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c 't0ken-of-[t]his' || true")
    assert lines == "0"
    assert "of-this-t" not in inside(f"systemctl show {UNIT}; systemctl cat {UNIT}")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        site.answer("another")


def test_a_change_is_kept_and_restarts_once(site):
    pid = site.main_pid()
    said = site.run("--diff", **site.engine_config("good", max_num_seqs=2))
    assert "+max-num-seqs: 2" in said and "changed=1" in said
    assert site.main_pid() != pid and site.answer() == f"{ONE} good 2"
    assert len(inside("ls /etc/vllm").split()) == 3, "engine.yaml, what it stands for, and the secrets"
    assert "changed=0" in site.run(**site.engine_config("good", max_num_seqs=2))


@pytest.mark.parametrize(
    ("release", "variables", "why"),
    [
        (TWO, {"model": "dies"}, "torch.OutOfMemoryError: CUDA out of memory."),
        (BROKEN, {"model": "good", "max_num_seqs": 2}, "torch.OutOfMemoryError: CUDA out of memory."),
        (TWO, {"model": "hangs"}, "did not answer within 6 s"),
        (ONE, {"model": "good", "open_files": 4}, "The server may have too few files open"),
    ],
    ids=["bad engine config", "bad release", "hangs and ignores SIGTERM", "bad unit"],
)
def test_a_change_that_fails_is_undone(site, release, variables, why):
    before = live()
    config = {name: variables[name] for name in ("model", "max_num_seqs") if name in variables}
    extra = {f"vllm_model_server_{name}": variables[name] for name in ("open_files",) if name in variables}
    if variables["model"] == "hangs":
        extra["vllm_model_server_ready_timeout"] = 6
    site.use(release)
    began = time.monotonic()
    said = site.run(code=2, **site.engine_config(**config), **extra)
    assert why in said and "The change was undone: release" in said, said
    assert f"release {ONE} with the unit and engine config" in said and "is live again and answered" in said
    assert live() == before
    assert site.answer() == f"{ONE} good 2"
    assert time.monotonic() - began < 45
    assert inside(f"systemctl is-active {UNIT}") == "active"
    entry = json.loads(inside("tail -n 1 /var/lib/vllm_model_server/rollbacks.jsonl"))
    assert (entry["by_itself"], entry["answered"], entry["who"]) == (True, True, "somebody")
    assert "changed=0" in site.run(**site.engine_config("good", max_num_seqs=2)), "the former state is the declared one"


def test_why_it_ended_is_kept(site):
    entries = [json.loads(line) for line in inside("cat /var/lib/vllm_model_server/ends.jsonl").splitlines()]
    told = [line for entry in entries if entry["result"] == "exit-code" for line in entry["lines"]]
    assert any("CUDA out of memory" in line for line in told)
    assert inside("stat -c %a /var/lib/vllm_model_server/ends.jsonl") == "600"


def test_progress_is_shown_while_it_loads(site):
    said = site.run(**site.engine_config("slow-16"))
    assert re.search(rf"\[ctid_{VMID}\] the model server is loading, for \d+ s: .*shards: \d+% Completed", said), said
    assert "changed=1" in said and site.answer() == f"{ONE} slow-16 None"
    assert "changed=1" in site.run(**site.engine_config("good", max_num_seqs=2))


@pytest.mark.parametrize(
    "moment", [0.2, *(pytest.param(seconds, marks=pytest.mark.full) for seconds in (0.0, 0.1, 0.4, 0.7, 1.0, 1.5, 2.5))]
)
def test_a_run_that_is_killed_in_the_middle(site, moment):
    """The container starts one state whole, and the next run gets to what is declared or back."""
    site.use(ONE)
    site.run(**site.engine_config("good", max_num_seqs=2))
    site.use(TWO)
    unit = inside(f"cat /etc/systemd/system/{UNIT}")
    change = site.engine_config("other", max_num_seqs=int(10 * moment))
    states = "ls /var/lib/vllm_model_server/states"
    before = inside(states)
    process = site.start(**change)
    # From the first thing that it writes on.
    site.until(process, lambda: inside(states) != before, 60)
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # What it had started inside ends with it, by the connection.
    wait_until(lambda: inside("pgrep -fc '^/usr/bin/python3$' || true") == "0", 30)
    inside(f"systemctl daemon-reload; systemctl reset-failed {UNIT}; systemctl restart {UNIT}")
    wait_until(site.answers, 60)
    started = site.answer()
    changed = inside(f"cat /etc/systemd/system/{UNIT}") != unit
    assert started == (f"{TWO} other {int(10 * moment)}" if changed else f"{ONE} good 2")
    site.run(**change)
    assert site.answer() == f"{TWO} other {int(10 * moment)}"
    assert "changed=0" in site.run(**change)


def test_a_killed_change_to_something_bad_is_undone_by_the_next_run(site):
    site.use(ONE)
    site.run(**site.engine_config("good", max_num_seqs=2))
    before = live()
    process = site.start(**site.engine_config("hangs"))
    site.until(process, lambda: "hangs" in inside(f"cat /etc/systemd/system/{UNIT}"), 60)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    said = site.run(code=2, vllm_model_server_ready_timeout=5, **site.engine_config("hangs"))
    assert "The change was undone" in said
    assert live() == before and site.answer() == f"{ONE} good 2"


def test_going_back_on_purpose(site):
    site.use(TWO)
    site.run(**site.engine_config("other"))
    playbook = str(ROOT / "playbooks/rollback.yml")
    shown = site.run("--check", playbook=playbook)
    assert site.answer() == f"{TWO} other None", "check mode went back"
    assert f"point /opt/vllm at /opt/vllm-releases/{ONE}" in shown
    done = site.run(playbook=playbook, phoenix_rollback_reason="it talks nonsense")
    assert "changed=1" in done and site.answer() == f"{ONE} good 2"
    assert inside("readlink /opt/vllm") == f"/opt/vllm-releases/{ONE}"
    entry = json.loads(inside("tail -n 1 /var/lib/vllm_model_server/rollbacks.jsonl"))
    assert (entry["who"], entry["why"], entry["by_itself"]) == ("somebody", "it talks nonsense", False)
    said = site.run(playbook=playbook, code=2, phoenix_rollback_to="0000")
    assert "There is no state 0000. Kept are: " in said and f"release {TWO}, model /models/other" in said
    site.run(playbook=playbook, phoenix_rollback_to=TWO)
    assert site.answer() == f"{TWO} other None"


def test_it_starts_with_the_container(site):
    state = site.answer()
    pct("reboot", str(VMID))
    wait_until(site.answers, 60)
    assert site.answer() == state


def test_verify_sees_what_is_not_right(site):
    playbook = str(ROOT / "playbooks/verify.yml")
    site.run(playbook=playbook, **site.engine_config("other"))
    inside(f"systemctl --quiet disable {UNIT}")
    assert "is not enabled" in site.run(playbook=playbook, code=2, **site.engine_config("other"))
    inside(f"systemctl --quiet enable {UNIT}; systemctl stop {UNIT}")
    assert "is not active" in site.run(playbook=playbook, code=2, **site.engine_config("other"))
    inside(f"systemctl start {UNIT}")


def test_a_snapshot_is_taken_before_a_change(site):
    def names() -> list[str]:
        return re.findall(r"before-model-server-\S+", pct("listsnapshot", str(VMID)))

    wanted = {"vllm_model_server_snapshot": True, **site.engine_config("good", max_num_seqs=4)}
    site.run("--check", **wanted)
    assert names() == []
    before = inside("cat /etc/vllm/engine.yaml")
    assert "changed=2" in site.run(**wanted)
    (name,) = names()
    assert "changed=0" in site.run(**wanted) and names() == [name]
    # It has what was before.
    pct("rollback", str(VMID), name)
    pct("start", str(VMID))
    assert inside("cat /etc/vllm/engine.yaml") == before != ""
    wait_until(site.answers, 60)
    pct("delsnapshot", str(VMID), name)


def test_another_revision_of_a_model_is_a_change(site):
    """As the role models keeps them: the model's name is a link to a folder that never changes."""
    inside("mkdir -p /models/.it/one /models/.it/two && ln -sfn .it/one /models/it")
    site.run(**site.engine_config("it"))
    assert site.answer().split()[1] == "one"
    assert "changed=0" in site.run(**site.engine_config("it"))
    assert "/models/it" in inside("grep -A1 served-model-name /etc/vllm/engine.yaml"), "it is called as before"
    inside("ln -sfn .it/two /models/it")
    assert "changed=1" in site.run(**site.engine_config("it"))
    assert site.answer().split()[1] == "two"
    site.run(playbook=str(ROOT / "playbooks/rollback.yml"))
    assert site.answer().split()[1] == "one"


def test_caches_are_on_the_model_s_volume_where_it_can_be_written(site):
    inside("mkdir -p /volume && mount -t tmpfs tmpfs /volume && mkdir /volume/good")
    config = {"ModelConfig": {"model": "/volume/good"}, "ServerConfig": {"port": PORT}}
    site.run(vllm_model_server_engine_config=config)
    assert inside(f"stat -c %U /volume/.vllm-cache/server{VMID}/huggingface/written") == "vllm"
    assert "changed=0" in site.run(vllm_model_server_engine_config=config)
