# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One model takes another one's place, with a client that asks twenty times a second, in a container of the lab.

A small program stands in for vLLM (tests/support/vllm_stand_in.py). One container (CTID 652) serves all tests of this
file, in their order.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_switch
from lab_modules import pct, require_lab, wait_until
from model_site import KEY, PORT, TOKEN, UNIT, Site
from steady_client import SteadyClient

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
VMID, ADDRESS = 652, "10.92.0.63"
ONE, TWO = "fake-111111111111", "fake-222222222222"
NEXT = "vllm_model_server-next.service"
HUB_RELEASE = "fake-333333333333"
# Stands in for huggingface_hub.
HUB = '''
import os, time
from types import SimpleNamespace

constants = SimpleNamespace(HF_HUB_CACHE=os.environ["HF_HOME"] + "/hub")


class RepositoryNotFoundError(Exception):
    pass


class HfApi:
    def model_info(self, model, revision, files_metadata):
        if model.endswith("gone"):
            raise RepositoryNotFoundError("404 Client Error. Repository Not Found for url: http://hub")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="model.safetensors", size=9)])


def snapshot_download(model, revision, cache_dir, ignore_patterns):
    time.sleep(2)
    place = (cache_dir or constants.HF_HUB_CACHE) + "/models--" + model.replace("/", "--")
    os.makedirs(place + "/snapshots/abc")
    os.makedirs(place + "/refs")
    for name, text in {"refs/main": "abc", "token": os.environ["HF_TOKEN"], "snapshots/abc/config.json": "{}",
                       "snapshots/abc/model.safetensors": "weights"}.items():
        with open(place + "/" + name, "w") as file:
            file.write(text)
'''
ROOM = {"vllm_model_server_environment": {"VLLM_CPU_KVCACHE_SPACE": "1"}}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    """A container with two releases and some models, and memory for two servers, as the numbers go."""
    require_lab()
    site = Site(VMID, ADDRESS, tmp_path_factory.mktemp("site"))
    site.variables = ROOM
    models = ("good", "loads", "loads-one", "loads-two", "loads-beside", "loads-restart", "alone", "dies", "slow")
    try:
        site.create(models, (ONE, TWO, HUB_RELEASE), memory=8192)
        site.inside("apt-get update -q && apt-get install -qy --no-install-recommends nftables")
        site.run()
        yield site
    finally:
        site.close()


def client() -> SteadyClient:
    """A client of the container's server."""
    return SteadyClient(ADDRESS, PORT, KEY)


def hub(model: str) -> dict:
    """The variables of the role for a model of the hub."""
    return {"vllm_model_server_engine_config": {"ModelConfig": {"model": model}, "ServerConfig": {"port": PORT}}}


def left(site: Site) -> str:
    """What is there of a switch, and how many servers run: C(active 1) when that is over."""
    return " ".join(site.inside(
        f"ls -d /run/systemd/system/vllm_model_server* 2>/dev/null; nft list tables; "
        f"systemctl list-units --all --no-legend '{NEXT}'; systemctl is-active {UNIT}; pgrep -u vllm -fc 'vllm serve'"
    ).split())  # fmt: skip


def kill(process) -> None:
    """Kill a run, with Ansible's worker, which is in a session of its own and would go on until its module returns."""
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], stdout=subprocess.PIPE, text=True, check=False).stdout
    for pid in [process.pid, *map(int, workers.split())]:
        os.kill(pid, signal.SIGKILL)
    process.wait()


def test_the_old_server_answers_until_the_new_one_does(site):
    site.use(TWO)
    shown = site.run("--check", "--diff", **site.engine_config("loads"))
    assert "start the new server beside the old one, which answers until it does (" in shown
    # A connection from before, on which something is asked half a second before the new server is loaded: the old one
    # answers it, to its end.
    before = http.client.HTTPConnection(ADDRESS, PORT, timeout=30)
    before.connect()
    with client() as steady:
        process = site.start("--diff", **site.engine_config("loads"))
        site.until(process, lambda: NEXT in site.inside("ls /run/systemd/system"))
        time.sleep(2.5)
        body = json.dumps({"model": "m", "prompt": "Slowly"})
        before.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {KEY}"})
        slow = json.load(before.getresponse())["choices"][0]["text"]
        diverted = "add @sent_ip" in site.inside("nft list ruleset")
        said, _nothing = process.communicate(timeout=120)
        time.sleep(1)
    assert process.returncode == 0, said
    assert "changed=1" in said and "Nothing answered for" not in said
    assert steady.failed == [] and len(steady.requests) > 100
    assert steady.answers == [f"{ONE} good None", f"{TWO} loads None"]
    assert diverted and slow == f"{ONE} good None"
    assert left(site) == "active 1" and site.answer() == f"{TWO} loads None"
    assert "changed=0" in site.run(**site.engine_config("loads"))


def test_going_back_has_no_gap_either(site):
    with client() as steady:
        site.run(playbook=str(ROOT / "playbooks/rollback.yml"), phoenix_rollback_reason="it talks nonsense")
    assert steady.failed == []
    assert steady.answers == [f"{TWO} loads None", f"{ONE} good None"]
    assert left(site) == "active 1"
    entry = json.loads(site.inside("tail -n 1 /var/lib/vllm_model_server/rollbacks.jsonl"))
    assert (entry["why"], entry["by_itself"], entry["answered"]) == ("it talks nonsense", False, True)
    assert "changed=0" in site.run()


ECHO = """
import http.server, socket, sys


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())


Server(("::", int(sys.argv[1])), Answer).serve_forever()
"""


def test_who_is_sent_to_the_server_beside(site):
    """All but root inside, whatever the address, as long as new ones are to go there."""
    ask = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"
    for port in (9000, 9001):
        site.inside(f"systemd-run -q --unit echo{port} python3 -c {shlex.quote(ECHO)} {port}")

    def answers(user: str) -> set[str]:
        hosts = ("127.0.0.1", "[::1]", ADDRESS)
        words = (f"setpriv --reuid={user} --clear-groups python3 -c '{ask}' http://{host}:9000" for host in hosts)
        return set(site.inside("; ".join(words)).split())

    def rules(text: str) -> None:
        site.inside(f"nft -f - <<'EOF'\n{text}EOF")

    wait_until(lambda: site.inside("ss -Hltn 'sport = :9000 or sport = :9001' | wc -l") == "2")
    for port, new in ((9001, True), (9000, False)):
        rules(server_switch.rules(9000, 9001, new=new))
        assert (answers("root"), answers("nobody")) == ({"9000"}, {str(port)})
        outside = urllib.request.urlopen(f"http://{ADDRESS}:9000", timeout=5).read()
        assert outside.decode() == str(port)
    rules(server_switch.no_rules())
    site.inside("systemctl stop echo9000 echo9001")


@pytest.mark.full
def test_of_many_connections_none_is_lost(site):
    """As long as the kernel's own address translation sent them elsewhere, one was lost in sixteen such switches."""
    for _time in range(20):
        for model in ("loads-one", "good"):
            with SteadyClient(ADDRESS, PORT, KEY, per_second=200) as steady:
                site.run(**site.engine_config(model))
            assert steady.failed == [] and len(steady.requests) > 500


def test_a_new_server_that_fails_has_not_touched_the_old_one(site):
    pid = site.main_pid()
    site.use(TWO)
    with client() as steady:
        said = site.run(code=2, **site.engine_config("dies"))
    assert "torch.OutOfMemoryError: CUDA out of memory." in said and "serving /models/dies" in said
    assert f"The change was undone before it reached the running server: release {ONE}" in said
    assert steady.failed == [] and steady.answers == [f"{ONE} good None"]
    assert site.main_pid() == pid and left(site) == "active 1"
    assert site.inside("readlink /opt/vllm") == f"/opt/vllm-releases/{ONE}"
    assert "changed=0" in site.run()


@pytest.mark.parametrize(
    ("model", "variables", "planned", "why"),
    [
        ("loads-one", {"vllm_model_server_environment": {"VLLM_CPU_KVCACHE_SPACE": "6"}}, True,
         "and the new one may want 7.5"),
        # By the numbers it has room, and then it has not.
        pytest.param("alone", {}, False, "it had no room beside the old one (ValueError: Free memory on device",
                     marks=pytest.mark.full),
        pytest.param("loads-two", {"vllm_model_server_overlap": "never"}, True, "vllm_model_server_overlap is never",
                     marks=pytest.mark.full),
    ],
    ids=["no room", "no room after all", "not wanted"],
)  # fmt: skip
def test_where_it_can_t_be_the_gap_is_told(site, model, variables, planned, why):
    before = site.answer()
    if planned:
        shown = site.run("--check", "--diff", **site.engine_config(model), **variables)
        assert f"restart {UNIT}, and nothing answers until it has loaded: " in shown and why in shown
        assert "the last start took" in shown
    with client() as steady:
        said = site.run("--diff", **site.engine_config(model), **variables)
        time.sleep(0.5)
    assert ("start the new server beside" not in said) == planned
    told = re.search(r"Nothing answered for ([\d.]+) s while the server was replaced, because.*" + re.escape(why), said)
    assert told, said
    gap = steady.gap()
    assert steady.failed and steady.failed_outside(gap) == 0
    # The client saw what the run says.
    assert abs(gap[1] - gap[0] - float(told[1])) < 1.5 and float(told[1]) < 8
    assert steady.answers == [before, f"{ONE} {model} None"]
    assert left(site) == "active 1"
    assert "changed=0" in site.run(**site.engine_config(model), **variables)


@pytest.mark.parametrize("moment", ["beside", pytest.param("restart", marks=pytest.mark.full)])
def test_a_run_that_is_killed_in_the_middle_is_repaired_by_the_next(site, moment):
    """Killed while the new one loads beside, or while the server itself is started anew; all the time it answers."""
    model = f"loads-{moment}"
    before = site.answer()
    with client() as steady:
        process = site.start(**site.engine_config(model))
        site.until(process, lambda: NEXT in site.inside("ls /run/systemd/system"))
        if moment == "restart":
            site.until(process, lambda: "add @sent_ip" in site.inside("nft list ruleset"))
            site.until(process, lambda: model in site.inside(f"cat /etc/systemd/system/{UNIT}"))
        kill(process)
        time.sleep(1)
        said = site.run("--diff", **site.engine_config(model))
    assert "end the server beside it" in said
    assert steady.failed == [] and steady.answers == [before, f"{ONE} {model} None"]
    assert left(site) == "active 1"
    assert "changed=0" in site.run(**site.engine_config(model))


def test_a_run_that_another_one_follows_waits_no_more_and_undoes_nothing(site):
    before = site.answer()
    process = site.start(**site.engine_config("slow"))
    site.until(process, lambda: NEXT in site.inside("ls /run/systemd/system"))
    current = re.search(r" (\S+) None$", before)[1]
    assert "end the server beside it" in site.run("--diff", **site.engine_config(current))
    said, _nothing = process.communicate(timeout=120)
    assert process.returncode == 2 and "Another run works on the model server since this one began" in said
    assert site.answer() == before and left(site) == "active 1"


@pytest.mark.full
def test_what_a_killed_run_left_is_ended_by_one_that_wants_something_else(site):
    site.run()
    process = site.start(**site.engine_config("slow"))
    site.until(process, lambda: NEXT in site.inside("ls /run/systemd/system"))
    kill(process)
    with client() as steady:
        assert "end the server beside it" in site.run("--diff")
    assert steady.failed == [] and left(site) == "active 1"
    assert "changed=0" in site.run()


def test_a_container_that_restarts_in_the_middle_has_one_state(site):
    before = site.answer()
    process = site.start(**site.engine_config("slow"))
    site.until(process, lambda: NEXT in site.inside("ls /run/systemd/system"))
    kill(process)
    pct("reboot", str(VMID))
    wait_until(site.answers, 60)
    assert site.answer() == before and left(site) == "active 1"


@pytest.mark.full
def test_a_model_of_the_hub_is_fetched_while_the_old_server_answers(site):
    site.inside(f"mkdir -p /opt/hub && cat >/opt/hub/huggingface_hub.py <<'EOF'\n{HUB}\nEOF\n"
                f"printf '#!/bin/sh\\nexec env PYTHONPATH=/opt/hub python3 \"$@\"\\n' "
                f">/opt/vllm-releases/{HUB_RELEASE}/bin/python; chmod 755 /opt/vllm-releases/{HUB_RELEASE}/bin/python")
    before = site.answer()
    site.use(HUB_RELEASE)
    with client() as steady:
        said = site.run(code=2, **hub("somebody/gone"))
        assert "The model somebody/gone could not be fetched" in said and "There is no such model." in said
        assert "failure: model not found" in said
        assert "The change was undone before it reached the running server" in said
        assert steady.failed == [] and steady.answers == [before]
    site.use(HUB_RELEASE)
    with client() as steady:
        said = site.run("--diff", **hub("somebody/good"))
        time.sleep(0.5)
    assert "fetch the model somebody/good, while the old server answers" in said
    assert "how much memory the new one takes is not known, its model is not here yet" in said
    assert steady.answers == [before, f"{HUB_RELEASE} good None"]
    gap = steady.gap()
    # Fetching takes two seconds.
    assert gap[1] - gap[0] < 2 and steady.failed_outside(gap) == 0
    assert left(site) == "active 1"
    # As the service's user, and with the token that only root's file has.
    folder = "/var/cache/vllm/huggingface/hub/models--somebody--good"
    there = site.inside(f"cd {folder} && stat -c %U refs/main && cat token")
    assert there == f"vllm\n{TOKEN}"
    assert "changed=0" in site.run(**hub("somebody/good"))
    assert TOKEN not in site.inside("journalctl --no-pager -o cat; cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
