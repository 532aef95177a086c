# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases are installed, switched, gone back to, refused and killed, for real, with a stack that takes a second.

One container (CTID 601) serves all tests of this file. The module runs inside as Ansible runs it, without Ansible
around it; one test goes through a playbook. Needs a lab that is up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ansible
import pytest
import yaml
from ansible_collections.phoenix.hypervisor.plugins.module_utils import stack
from lab_modules import OSTEMPLATE, ROOT, destroy, inside, pct, require_lab, start, wait_until
from tiny_stack import Index, Tiny, make_wheel, sha256

pytestmark = pytest.mark.lab

VMID = 601
MODULE = "ansible_collections.phoenix.hypervisor.plugins.modules.vllm_release"
RELEASES = "/opt/vllm-releases"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    """The wheels of the stack."""
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def container(tiny) -> Iterator[None]:
    """A container of the lab's base that sees the collection and ansible-core."""
    require_lab()
    destroy(VMID)
    pct(
        "create", str(VMID), OSTEMPLATE, "--rootfs", "local-btrfs:8", "--unprivileged", "1", "--memory", "4096",
        "--features", "nesting=1", "--hostname", f"release{VMID}",
        "--net0", f"name=eth0,bridge=vmbr0,ip=10.92.0.{VMID - 540}/24,gw=10.92.0.1",
        "--mp0", f"{ROOT},mp=/mnt/collection", "--mp1", f"{Path(ansible.__file__).parent},mp=/mnt/core/ansible",
    )  # fmt: skip
    start(VMID)
    yield
    destroy(VMID)


class Site:
    """The container with nothing installed in it, and an index that has the stack."""

    def __init__(self, tiny: Tiny, index: Index):
        self.tiny, self.index = tiny, index
        self.options: dict = {"places": {"index": index.url}, "wait": 20}

    def start(self, *candidates: dict, check: bool = False, environment: tuple[str, ...] = (), **options):
        """A call of the module in a process of its own."""
        arguments = {**self.options, "candidates": list(candidates), "_ansible_check_mode": check, **options}
        process = subprocess.Popen(
            ["lxc-attach", "-n", str(VMID), "--clear-env", "--", "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
             "PYTHONPATH=/mnt/collection/.ansible/collections:/mnt/core", "PYTHONDONTWRITEBYTECODE=1", *environment,
             "/usr/bin/python3", "-m", MODULE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        process.stdin.close()
        process.stdin = None
        return process

    def call(self, *candidates: dict, **options) -> dict:
        """One call of the module."""
        out, err = self.start(*candidates, **options).communicate(timeout=120)
        assert "Traceback" not in out + err, out + err
        return json.loads(out)

    def run(self, *candidates: dict, **options) -> dict:
        """What the task does: call until nothing runs any more. It must succeed."""
        result = self.end(*candidates, **options)
        assert not result.get("failed"), result["msg"]
        return result

    def end(self, *candidates: dict, **options) -> dict:
        """The same, however it ends."""
        result, changed = {"running": True, "again": {}}, False
        while result.get("running"):
            result = self.call(*candidates, **{**options, **result["again"]})
            changed = changed or result.get("changed", False)
        return {**result, "changed": changed}

    def failure(self, *candidates: dict, **options) -> str:
        """The message of a run that must fail."""
        result = self.end(*candidates, **options)
        assert result.get("failed"), result
        return result["msg"]

    def live(self) -> str:
        """What the link points at, by name."""
        return inside(VMID, "readlink /opt/vllm").rpartition("/")[2]

    def folders(self) -> list[str]:
        """What there is in the folder of releases, hidden or not, and below the working folder."""
        return inside(VMID, f"cd {RELEASES} && ls -A . .work").split()

    def active(self) -> bool:
        """Whether something is being installed."""
        return inside(VMID, "systemctl is-active vllm_release.service || true") in ("active", "activating")

    def kill(self, what: str = "all") -> None:
        """Kill the processes of the job at once."""
        inside(VMID, f"systemctl kill --kill-who={what} --signal=KILL vllm_release.service 2>/dev/null || true")


@pytest.fixture
def site(container, tiny) -> Iterator[Site]:
    """Nothing is installed, nothing runs."""
    index = Index(tiny.folder)
    yield Site(tiny, index)
    index.close()
    inside(VMID, "systemctl stop vllm_release.service 2>/dev/null; systemctl reset-failed vllm_release.service "
                 f"2>/dev/null; umount {RELEASES} 2>/dev/null; rm -rf /opt/vllm {RELEASES} /var/log/vllm-release.log*")


def test_it_is_installed_and_made_the_live_one(site):
    one = site.tiny.candidate()
    shown = site.call(one, check=True)
    assert shown["changed"] and shown["next"] == one["release"], shown
    assert inside(VMID, "ls -d /opt/vllm* || true") == "" and site.index.requests == []
    done = site.run(one)
    assert done["plan"] == shown["plan"] and done["changed"] and done["previous"] == ""
    assert done["plan"][0] == f"install release {one['release']} (from wheels)"
    assert inside(VMID, "/opt/vllm/bin/vllm --version") == "1.0"
    record = json.loads(inside(VMID, "cat /opt/vllm/release.json"))
    assert record == done["record"] and record["vllm"] == "1.0" and record["release"] == one["release"]
    assert "torch 9.9.0 (the CPU)" in record["found"]
    # The service can't write there, and would compile all modules at every start.
    assert int(inside(VMID, "find /opt/vllm/ -name '*.pyc' | wc -l")) >= 9
    assert set(inside(VMID, f"ls -A {RELEASES}").split()) == {
        one["release"], f".uv-{site.tiny.uv['version']}", ".lock", ".work", "history.json",
    }  # fmt: skip
    assert inside(VMID, f"ls -A {RELEASES}/.work") == ""


def test_a_second_run_starts_no_process(site):
    one = site.tiny.candidate()
    site.run(one)
    asked = len(site.index.requests)
    # Nothing that it could start is found.
    for check in (True, False):
        again = site.call(one, check=check, environment=("PATH=/nowhere",))
        assert again["changed"] is False and again["plan"] == [] and again["next"] == ""
    assert len(site.index.requests) == asked
    assert again["record"]["vllm"] == "1.0" and again["release"] == one["release"]


def test_switching_and_going_back(site):
    candidates = [site.tiny.candidate(version) for version in ("1.0", "1.1", "1.2", "1.3")]
    names = [one["release"] for one in candidates]
    for one in candidates[:2]:
        site.run(one)
    assert site.live() == names[1]
    asked = len(site.index.requests)
    back = site.run(release="previous")
    assert back["changed"] and site.live() == names[0] and back["previous"] == f"{RELEASES}/{names[1]}"
    assert site.run(release=names[0])["changed"] is False
    assert site.run(release="previous")["changed"] and site.live() == names[1]
    assert site.run(candidates[0])["changed"] and site.live() == names[0], "it is there, nothing is installed"
    assert len(site.index.requests) == asked
    assert "There is no release tiny-0 " in site.failure(release="tiny-0")
    # What a process uses stays, whatever its age.
    sleeper = f"/opt/vllm-releases/{names[1]}/bin/python -c 'import time; time.sleep(600)' >/dev/null 2>&1 & echo $!"
    pid = inside(VMID, sleeper)
    site.run(candidates[2], keep=1)
    site.run(candidates[3], keep=1)
    there = inside(VMID, f"cd {RELEASES} && ls -d tiny-*").split()
    assert sorted(there) == sorted([names[1], names[2], names[3]]), "in use, the one before, the live one"
    inside(VMID, f"kill {pid}")
    shown = site.call(candidates[3], keep=1, check=True)
    assert site.run(candidates[3], keep=1)["plan"] == shown["plan"] and len(shown["plan"]) == 1
    assert sorted(inside(VMID, f"cd {RELEASES} && ls -d tiny-*").split()) == sorted(names[2:])
    assert site.run(candidates[3], keep=1)["changed"] is False


def test_a_candidate_that_lies_is_refused_and_the_next_one_taken(site):
    liar, good = site.tiny.candidate("2.0", says="1.9"), site.tiny.candidate("2.1")
    done = site.run(liar, good)
    assert site.live() == good["release"] and done["release"] == good["release"]
    assert "1.9" in done["refused"][0]["message"] and done["refused"][0]["release"] == liar["release"]
    assert "1.9" in done["record"]["refused"][liar["release"]]["message"]
    assert site.folders().count("torch") == 0 and liar["release"] not in site.folders()
    site.index.mend()
    again = site.run(liar, good)
    assert again["changed"] is False and again["refused"] and site.index.requests == []
    # Asked to, it tries again, and says the same.
    assert site.run(liar, good, retry=True)["changed"] and site.live() == good["release"]
    message = site.failure(liar)
    assert "No way to install the stack passed its gates" in message and "1.9" in message
    assert site.live() == good["release"]


def test_the_next_candidate_waits_for_what_it_needs(site):
    liar = site.tiny.candidate("2.0", says="1.9")
    needy = site.tiny.candidate("2.2", packages={"install": ["no-such-package"], "build": ["g++"]})
    done = site.run(liar, needy)
    assert done["next"] == needy["release"] and done["missing_packages"] == ["g++", "no-such-package"]
    assert "lacks g++, no-such-package" in site.failure(liar, needy)
    assert site.call(liar, needy, check=True)["missing_packages"] == ["g++", "no-such-package"]
    # Its wheels may be with the node.
    assert site.run(liar, site.tiny.candidate("2.3"), retry=True, keep_wheels=True)["next"].startswith("tiny-")


def test_wheels_stay_for_the_store_and_are_all_that_is_needed(site):
    one = site.tiny.candidate()
    done = site.run(one, keep_wheels=True)
    assert done["wheelhouse_complete"] and done["wheels"] == f"{RELEASES}/.work/{one['release']}/wheels"
    assert site.run(one, keep_wheels=True)["changed"] is False
    names = set(inside(VMID, f"ls {done['wheels']}").split())
    wheels = {"torch-9.9.0-py3-none-any.whl", "vllm-1.0-py3-none-any.whl"}
    assert names > {"manifest.json", "bytecode.zip", *wheels} and len(names) == 5, "and uv"
    inside(VMID, f"mv {done['wheels']} /opt/kept; rm -rf /opt/vllm {RELEASES}; mkdir -p {done['wheels']}; "
                 f"mv /opt/kept/* {done['wheels']}; rmdir /opt/kept")
    site.index.mend()
    site.run(one)
    assert site.index.requests == [] and inside(VMID, "/opt/vllm/bin/vllm --version") == "1.0"


def test_a_damaged_wheelhouse_is_named_and_mended(site):
    one = site.tiny.candidate()
    wheels = site.run(one, keep_wheels=True)["wheels"]
    inside(VMID, f"rm -rf {RELEASES}/{one['release']}; echo x >>{wheels}/torch-9.9.0-py3-none-any.whl")
    assert "torch-9.9.0-py3-none-any.whl isn't what the wheelhouse's manifest says" in site.failure(one)
    site.index.mend()
    site.run(one)
    assert site.index.files() == ["torch-9.9.0-py3-none-any.whl"]


def test_what_goes_wrong_is_one_sentence(site):
    one, wheel = site.tiny.candidate(), "torch-9.9.0-py3-none-any.whl"
    site.run(one)

    def wrong(sentence: str, change=lambda lock: lock, **more) -> None:
        other = site.tiny.candidate("1.1")
        other["requirements"] = change(other["requirements"])
        message = site.failure({**other, **more.pop("candidate", {})}, **more)
        assert sentence in message, message
        assert "The live release was not touched" in message and "/var/log/vllm-release.log" in message
        assert site.live() == one["release"]
        site.index.mend()

    good = sha256(site.tiny.folder / wheel)
    wrong(f"{wheel} has another hash than the lock", lambda lock: lock.replace(good, "0" * 64))
    wrong("vllm==9.9.9 is in none of the places for packages", lambda lock: lock.replace("vllm==1.1", "vllm==9.9.9"))
    site.index.broken[wheel] = 404
    wrong("can't be downloaded: HTTP 404")
    wrong(
        "The container has no Python 3.29, and uv could not get one",
        candidate={"python": "3.29"},
        places={"index": site.index.url, "python_mirror": "file:///nowhere"},
    )
    site.index.pause = 30
    wrong("longer than its time limit of 2 s while it was", build={"time_limit": 2})
    assert site.run(site.tiny.candidate("1.1"))["changed"]


@pytest.mark.parametrize(("size", "sentence"), [(10, "disk is full"), (150, "disk has not enough room")])
def test_a_full_disk_is_said(site, size, sentence):
    """The wheel of uv is larger than the one disk, what is in a package is larger than the other."""
    inside(VMID, f"mkdir {RELEASES}; mount -t tmpfs -o size={size}m tmpfs {RELEASES}")
    one = site.tiny.candidate()
    wheel = make_wheel(site.tiny.folder, "blob", "1.0", {"blob.txt": "x" * 300_000_000})
    large = {**one, "requirements": f"{one['requirements']}blob==1.0 --hash=sha256:{sha256(wheel)}\n"}
    message = site.failure(large)
    assert sentence in message and "storage_size_gb" in message, message
    assert inside(VMID, "ls -d /opt/vllm || true") == ""
    # With more room it goes on.
    inside(VMID, f"mount -t tmpfs -o remount,size=900m tmpfs {RELEASES}")
    site.run(large)
    assert site.live() == one["release"]


def test_a_connection_that_breaks_is_gone_on_with(site):
    site.index.broken["torch-9.9.0-py3-none-any.whl"] = "cut"
    one = site.tiny.candidate()
    process = site.start(one)
    wait_until(lambda: site.index.files().count("torch-9.9.0-py3-none-any.whl") >= 2)
    site.index.broken = {}
    out, _err = process.communicate(timeout=60)
    assert not json.loads(out).get("failed"), out
    site.run(one)


def test_a_place_that_can_not_be_reached_costs_no_minutes(site):
    began = time.monotonic()
    one = site.tiny.candidate()
    # 10.92.0.250 is nobody: connecting ends with "no route to host" after some seconds, or never.
    site.run(one, places={"index": site.index.url, "torch_index": "http://10.92.0.250/whl"})
    assert time.monotonic() - began < 30, "what the first index has isn't asked of another"
    two = site.tiny.candidate("1.1")
    two["requirements"] = two["requirements"].replace("vllm==1.1", "vllm==9.9.9")
    began = time.monotonic()
    message = site.failure(two, places={"index": site.index.url, "torch_index": "http://10.92.0.250/whl"})
    assert "http://10.92.0.250/whl can't be reached" in message and time.monotonic() - began < 60


def real_candidate() -> dict:
    """The shipped stack for the CPU."""
    folder = ROOT / "roles/vllm_stack/files/stacks/cpu"
    build = folder / "build.lock"
    return stack.candidates(
        yaml.safe_load((folder / "stack.yml").read_text()),
        (folder / "requirements.lock").read_text(),
        build.read_text() if build.exists() else "",
    )[0]


@pytest.mark.full
@pytest.mark.parametrize("real", [False, True])
def test_kill_9_at_ten_moments_then_one_plain_run(site, real):
    """What is there after it is what is there after a run that nobody disturbed."""
    one = real_candidate() if real else site.tiny.candidate()
    options = {"places": {}} if real else {}
    listing = f"cd {RELEASES} && find . -not -name '*.pyc' -not -name __pycache__ -not -path './.uv*' | sort"
    if real:
        needed = " ".join(one["packages"]["install"])
        inside(VMID, f"apt-get -qq update && apt-get -qq install -y --no-install-recommends {needed} >/dev/null")
    began = time.monotonic()
    site.run(one, **options)
    whole = time.monotonic() - began
    inside(VMID, f"{listing} >/root/clean")
    for moment in range(10):
        inside(VMID, f"rm -rf /opt/vllm {RELEASES}")
        process = site.start(one, **{"wait": 600, **options})
        time.sleep(whole * (moment + 0.5) / 10)
        if moment % 2:
            # Inside as well: lxc-attach leaves what it started alone.
            inside(VMID, f"pkill -KILL -f '^/usr/bin/python3 -m {MODULE}$' || true")
        site.kill()
        process.communicate(timeout=600)
        # systemd still takes it for active for a moment, and a run would join it.
        wait_until(lambda: not site.active())
        done = site.run(one, **options)
        assert done["release"] == one["release"] and site.live() == one["release"], moment
        assert inside(VMID, f"{listing} | diff /root/clean - || true") == "", moment
        assert inside(VMID, "/opt/vllm/bin/vllm --version 2>/dev/null | tail -n 1") == one["vllm"]
        assert site.call(one, check=True, **options)["plan"] == []


def test_the_container_is_killed_in_the_middle(site):
    site.index.pause = 20
    one = site.tiny.candidate()
    process = site.start(one)
    wait_until(site.active)
    pct("stop", str(VMID))
    process.communicate(timeout=60)
    site.index.mend()
    start(VMID)
    assert site.run(one)["changed"] and site.live() == one["release"]


def test_a_play_that_was_killed_is_joined(site):
    site.index.pause = 3
    one = site.tiny.candidate()
    process = site.start(one)
    wait_until(site.active)
    # Inside as well: lxc-attach leaves what it started alone.
    inside(VMID, f"pkill -KILL -f '^/usr/bin/python3 -m {MODULE}$'")
    process.communicate(timeout=60)
    identity = inside(VMID, f"cat {RELEASES}/.work/*/job.json | grep '\"id\"'")
    joined = site.start(one)
    time.sleep(1)
    assert inside(VMID, f"cat {RELEASES}/.work/*/job.json | grep '\"id\"'") == identity
    out, _err = joined.communicate(timeout=60)
    assert not json.loads(out).get("failed")
    site.run(one)
    assert site.live() == one["release"]


def test_another_installation_is_waited_for_and_named(site):
    site.index.pause = 4
    one, two = site.tiny.candidate(), site.tiny.candidate("1.1")
    process = site.start(one, wait=60)
    wait_until(site.active)
    waiting = site.call(two, wait=0)
    assert waiting["running"] and f"{two['release']} waits for another installation: {one['release']}" in (
        waiting["progress"]
    )
    site.index.pause = 0
    done = site.run(two, **waiting["again"])
    process.communicate(timeout=60)
    assert done["release"] == two["release"] and {one["release"], two["release"]} <= set(site.folders())
    # Which of two calls at the same time looks last is nobody's to say; its release is the live one.
    site.run(two)
    assert site.live() == two["release"]


def test_a_folder_of_the_old_scripts_is_taken_over_under_load(site):
    """A process that reads a file below the path in a tight loop doesn't notice."""
    script = """
import os, sys, time
missed = 0
while not os.path.exists('/root/stop'):
    try:
        os.stat('/opt/vllm/bin/old')
    except OSError:
        missed += not os.path.exists('/root/new')
print(missed)
"""
    inside(VMID, "rm -f /root/stop /root/new /root/missed; mkdir -p /opt/vllm/bin "
                 "/opt/vllm/lib/python3.11/site-packages/vllm-0.10.2.dist-info; touch /opt/vllm/bin/old; "
                 "python3 -m venv --without-pip /opt/vllm 2>/dev/null || true")
    inside(VMID, f"cat >/root/reader.py <<'X'\n{script}\nX\n(python3 /root/reader.py >/root/missed 2>&1 &) >/dev/null")
    one = site.tiny.candidate()
    shown = site.call(one, check=True)
    assert "keep the folder /opt/vllm as /opt/vllm-releases/before-" in shown["plan"][0]
    # The switch to the new release comes later; up to it the old path has the old files.
    first = site.call(one, wait=0)
    assert site.live().startswith("before-"), first
    inside(VMID, "touch /root/stop; sleep 0.3")
    assert inside(VMID, "cat /root/missed") == "0"
    done = site.run(one, **first["again"])
    assert done["plan"] == shown["plan"] and site.live() == one["release"]
    assert site.run(one)["changed"] is False
    back = site.run(release="previous")
    assert back["record"]["method"] == "before" and back["record"]["vllm"] == "0.10.2"
    assert inside(VMID, "ls /opt/vllm/bin/old") == "/opt/vllm/bin/old"


def test_something_else_in_the_way_is_left_alone(site):
    inside(VMID, "echo mine >/opt/vllm")
    assert "is neither a folder nor a link" in site.failure(site.tiny.candidate())
    assert inside(VMID, "cat /opt/vllm") == "mine"


def test_through_a_playbook_that_is_interrupted(site, tmp_path):
    """The task shows how far it is; ctrl-C ends the play and not the installation; the next play goes on with it."""
    site.index.pause = 8
    one = site.tiny.candidate()
    variables = {
        "ansible_connection": "phoenix.hypervisor.pct", "ansible_pct_vmid": VMID, "ansible_host": "localhost",
        "ansible_pct_node_connection": "local", "ansible_python_interpreter": "/usr/bin/python3",
    }  # fmt: skip
    task = {"phoenix.hypervisor.vllm_release": {"candidates": [one], "places": {"index": site.index.url}, "wait": 1}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"ctid_601": variables}}}))
    (tmp_path / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(tmp_path / "hosts.yml"),
               str(tmp_path / "play.yml")]  # fmt: skip
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}

    output = tmp_path / "output"

    def play() -> subprocess.Popen:
        with output.open("w") as file:
            return subprocess.Popen(
                ["env", "--default-signal=INT", *command], cwd=ROOT, env=environment, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    process = play()
    wait_until(lambda: "[ctid_601] " in output.read_text(), 60)
    line = next(line for line in output.read_text().splitlines() if line.startswith("[ctid_601]"))
    assert one["release"] in line and "goes on when this run is stopped" in line
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert site.active(), "the installation goes on"
    site.index.pause = 0
    again = play()
    assert again.wait(timeout=120) == 0, output.read_text()
    assert site.live() == one["release"] and len(site.index.files()) == 3, "no file was downloaded twice"
    assert play().wait(timeout=120) == 0 and "changed=0" in output.read_text()
