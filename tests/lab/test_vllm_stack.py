# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role vllm_stack from end to end, for real: two containers, a node's store, a stack that takes a second.

CTIDs 660 and 661. Every test begins with containers that have nothing, and an empty store. Needs a lab that is up.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from lab_modules import ROOT, inside, require_lab, wait_until
from stack_site import Site, clean, cut, live, mend, record
from tiny_stack import Index, Tiny, make_wheel, sha256, write_sources
from vllm_repositories import Repositories

pytestmark = pytest.mark.lab

FIRST, SECOND = 660, 661
ADDRESSES = {FIRST: "10.92.0.160", SECOND: "10.92.0.161"}
RELEASES = "/opt/vllm-releases"
HEADER = "flashinfer/data/cutlass/include/cutlass/cutlass.h"


class TinySite(Site):
    """The containers, a folder of stacks, and an index that has their wheels."""

    def __init__(self, tiny: Tiny):
        super().__init__(ADDRESSES)
        self.tiny = tiny
        self.index = Index(tiny.folder)
        self.stacks = self.folder / "stacks"
        self.variables |= {
            "vllm_stack_name": "tiny",
            "vllm_stack_folders": [str(self.stacks)],
            "vllm_stack_index": self.index.url,
        }

    def write(self, vllm: str = "1.0", says: str = "", **more) -> None:
        """Write the stack: a version of vLLM, what its wheel says that it is, and what Tiny.write() knows besides."""
        self.tiny.write(self.stacks, vllm, says, **more)

    def wheel(self, name: str, version: str, files: dict[str, str]) -> str:
        """Make a wheel and give its hash."""
        return sha256(make_wheel(self.tiny.folder, name, version, files))


@pytest.fixture(scope="module")
def containers(tmp_path_factory) -> Iterator[TinySite]:
    """The containers with the wheels of the stack; gone afterwards."""
    require_lab()
    made = TinySite(Tiny(tmp_path_factory.mktemp("tiny")))
    yield made
    made.index.close()
    made.close()


@pytest.fixture
def site(containers) -> Iterator[TinySite]:
    """Nothing is installed anywhere."""
    containers.write()
    yield containers
    containers.index.mend()
    subprocess.run(["rm", "-rf", str(containers.store)], check=True)
    for vmid in ADDRESSES:
        mend(vmid)
        clean(vmid)


# --- the way of a stack ---------------------------------------------------------------------------------------------


def test_check_mode_tells_the_plan_and_does_nothing(site):
    shown = site.good(FIRST, options=("--check", "--diff"))
    assert shown.count(FIRST, "changed") >= 1
    assert "install release tiny-" in shown.output
    assert inside(FIRST, "ls -d /opt/vllm* /var/log/vllm-release* 2>/dev/null || true") == ""
    assert not site.store.exists()
    assert site.index.requests == []
    done = site.good(FIRST)
    assert f"install release {live(FIRST)}" in shown.output
    assert done.count(FIRST, "changed") >= 1
    # On one that is installed: nothing to do, and then another release.
    before = inside(FIRST, f"cd {RELEASES} && find . | sort")
    assert site.good(FIRST, options=("--check",)).count(FIRST, "changed") == 0
    site.write("1.1")
    shown = site.good(FIRST, options=("--check", "--diff"))
    assert f"(it pointed at {RELEASES}/{live(FIRST)})" in shown.line
    assert inside(FIRST, f"cd {RELEASES} && find . | sort") == before
    assert site.kept() == [live(FIRST)]


def test_the_second_container_needs_neither_network_nor_compiler(site):
    first = site.good(FIRST)
    release = live(FIRST)
    assert record(FIRST)["vllm"] == "1.0"
    assert site.kept() == [release]
    assert inside(FIRST, f"ls -A {RELEASES}/.work") == "", "the store has the wheels, nobody else needs them"
    assert sorted(set(site.index.files())) == sorted(path.name for path in (site.store / release).glob("*.whl"))
    site.index.mend()
    cut(SECOND)
    assert inside(SECOND, "command -v cc gcc g++ || true") == ""
    second = site.good(SECOND)
    assert live(SECOND) == release
    assert inside(SECOND, "/opt/vllm/bin/vllm --version") == "1.0"
    assert site.index.requests == []
    assert inside(SECOND, f"ls -A {RELEASES}/.work") == ""
    assert first.count(FIRST, "changed") >= 1 and second.count(SECOND, "changed") >= 1
    # A run with nothing to do: four tasks, three of them on the control node.
    for vmid in ADDRESSES:
        again = site.good(vmid)
        assert again.count(vmid, "changed") == 0
        assert again.count(vmid, "ok") <= 5
    assert site.index.requests == []


def test_another_release_downloads_what_is_new(site):
    site.good(FIRST)
    assert len(site.index.files()) == 3, "uv, torch and vllm"
    site.index.mend()
    site.write("1.1")
    site.good(SECOND)
    assert site.index.files() == ["vllm-1.1-py3-none-any.whl"], "the store has the rest from the release before"
    assert inside(SECOND, "/opt/vllm/bin/vllm --version") == "1.1"
    assert len(site.kept()) == 2


def test_two_at_once_one_makes_the_wheels(site):
    site.index.pause = 3
    done = site.good(FIRST, SECOND)
    assert live(FIRST) == live(SECOND) != ""
    assert len(site.index.files()) == 3, "uv, torch and vllm, once"
    assert site.kept() == [live(FIRST)]
    text = f"CTID {{}} comes back for the wheels of {live(FIRST)} when CTID {{}} has made them"
    assert (text.format(SECOND, FIRST) in done.line) is not (text.format(FIRST, SECOND) in done.line)
    assert list((site.store / "claims").iterdir()) == []
    again = site.good(FIRST, SECOND)
    assert again.count(FIRST, "changed") == again.count(SECOND, "changed") == 0


@pytest.mark.full
def test_two_plays_at_once_one_makes_the_wheels(site):
    site.index.pause = 5
    makes = site.start(FIRST)
    wait_until(lambda: list(site.store.glob("claims/tiny-*.json")), 60)
    waits = site.good(SECOND)
    assert site.end(makes).code == 0
    assert live(FIRST) == live(SECOND) != ""
    assert f"[ctid_{SECOND}] waits for the wheels of {live(FIRST)}, which CTID {FIRST} makes since" in waits.line
    assert len(site.index.files()) == 3, "uv, torch and vllm, once"


@pytest.mark.full
def test_hosts_that_do_not_keep_step(site):
    site.index.pause = 5
    site.good(FIRST, SECOND, strategy="free")
    assert live(FIRST) == live(SECOND) != ""
    assert len(site.index.files()) == 3


@pytest.mark.full
def test_one_whose_maker_fails_makes_them_itself(site):
    site.index.broken["torch-9.9.0-py3-none-any.whl"] = 500
    done = site.end(site.start(FIRST, SECOND))
    assert done.code == 2
    assert "can't be downloaded: HTTP 500" in done.line
    assert list((site.store / "claims").iterdir()) == [], "no claim is left behind"
    site.index.mend()
    site.good(FIRST, SECOND)
    assert live(FIRST) == live(SECOND) != ""


def test_a_bundle_is_all_that_a_node_without_a_network_needs(site):
    site.good(FIRST)
    release, bundle = live(FIRST), site.folder / "tiny.tar"
    variables = {"phoenix_bundle": str(bundle), "vllm_stack_store": str(site.store)}
    assert release in site.playbook("stack_export", phoenix_stack="tiny", **variables)
    subprocess.run(["rm", "-rf", str(site.store)], check=True)
    site.playbook("stack_import", **variables)
    bundle.unlink()
    assert site.kept() == [release]
    site.index.mend()
    cut(SECOND)
    site.good(SECOND)
    assert live(SECOND) == release
    assert site.index.requests == []


def test_without_a_store_every_container_fetches_for_itself(site):
    site.good(FIRST, vllm_stack_store="")
    assert live(FIRST) and not site.store.exists()
    assert inside(FIRST, f"ls -A {RELEASES}/.work") == ""


# --- the ladder -----------------------------------------------------------------------------------------------------


def ladder(site: TinySite) -> None:
    """Write the stack with two FlashInfers that a gate refuses each in its way, and none as the last rung."""
    module = "__version__ = '{}'\n"
    bare = site.wheel("flashinfer_python", "0.3.1", {"flashinfer/__init__.py": module.format("0.3.1")})
    liar = {"flashinfer/__init__.py": module.format("0.2.9"), HEADER: "// a header\n"}
    hashes = {"0.3.1": [bare], "0.3.0": [site.wheel("flashinfer_python", "0.3.0", liar)]}
    site.write(flashinfer={"version": "0.3.1", "ladder": ["0.3.0", "off"], "hashes": hashes})


def test_down_the_ladder_each_step_is_said_and_recorded(site):
    ladder(site)
    done = site.good(FIRST)
    release = live(FIRST)
    refused = list(record(FIRST)["refused"].values())
    messages = ["flashinfer 0.3.1 has no CUTLASS headers", "flashinfer should be 0.3.0, and says 0.2.9"]
    for message in messages:
        assert message in done.line
        assert any(message in entry["message"] for entry in refused)
    assert len(refused) == 2
    assert record(FIRST)["flashinfer"] == ""
    # Only what may be used is kept for others.
    assert site.kept() == [release]
    assert list((site.store / "claims").iterdir()) == []
    assert inside(FIRST, f"ls -d {RELEASES}/tiny-*") == f"{RELEASES}/{release}"
    site.index.mend()
    again = site.good(FIRST)
    assert again.count(FIRST, "changed") == 0
    assert again.count(FIRST, "ok") <= 5
    assert site.index.requests == []
    # Asked to, it tries again, and comes to the same.
    again = site.good(FIRST, vllm_stack_retry=True)
    assert messages[0] in again.line
    assert live(FIRST) == release
    # Another container goes the same way.
    site.good(SECOND)
    assert live(SECOND) == release


def test_when_nothing_passes_the_live_release_stays(site):
    site.good(FIRST)
    before = live(FIRST)
    site.write("2.0", says="1.9")
    said = site.refused(FIRST)
    assert "vLLM should be 2.0, and `vllm --version` says 1.9." in said
    assert live(FIRST) == before
    said = site.refused(FIRST)
    assert "No way to install the stack passed its gates" in said and "vllm_stack_retry: true" in said
    assert site.kept() == [before]


@pytest.fixture
def sources(site, tmp_path) -> Iterator[Repositories]:
    """A git server with the sources of the stack's vLLM 3.0, as the repository C(tiny)."""
    write_sources(tmp_path / "tree", "3.0")
    repositories = Repositories(tmp_path, 9660)
    repositories.serve(tmp_path / "tree", "tiny", "3.0")
    yield repositories
    repositories.stop()


def test_auto_builds_from_source_what_a_gate_refused_as_a_wheel(site, sources):
    commit = sources.head("tiny")
    where = {"repository": f"git://10.92.0.1:{sources.port}/tiny.git", "commit": commit}
    site.write("3.0", says="2.9", method="auto", source=where, build={"packages": ["git"]})
    done = site.good(FIRST)
    assert "vLLM should be 3.0, and `vllm --version` says 2.9." in done.line
    made = record(FIRST)
    assert made["method"] == "source" and made["source"]["commit"] == commit
    assert [entry["piece"] for entry in made["refused"].values()] == ["vllm"]
    assert inside(FIRST, "/opt/vllm/bin/vllm --version") == "3.0"
    ((name, built),) = made["built"].items()
    assert name == "vllm-3.0-py3-none-any.whl" and built["removed"] == ["requirements.txt: torch == 2.8.0"]
    assert site.good(FIRST).count(FIRST, "changed") == 0
    # The next container gets what was built once, without git and without a network, and is told why.
    assert site.kept() == [live(FIRST)]
    cut(SECOND)
    done = site.good(SECOND)
    assert live(SECOND) == live(FIRST)
    assert "is left out, it was refused before: vLLM should be 3.0" in done.line
    assert record(SECOND)["refused"] == made["refused"]
    assert inside(SECOND, "command -v git || true") == ""
    assert site.good(SECOND).count(SECOND, "changed") == 0


def test_a_branch_is_a_commit_that_is_written_down(site, sources, tmp_path):
    where = {"repository": f"git://10.92.0.1:{sources.port}/tiny.git", "commit": "main"}
    site.write("3.0", method="source", source=where, build={"packages": ["git"]})
    site.good(FIRST)
    first, commit = live(FIRST), sources.head("tiny")
    assert record(FIRST)["source"]["commit"] == commit
    assert commit in inside(FIRST, f"cat {RELEASES}/commits.json")
    # The branch goes on; the container stays where it is until it is asked to look again.
    (tmp_path / "tree/vllm/added.py").write_text("")
    sources.serve(tmp_path / "tree", "tiny", "goes on")
    assert site.good(FIRST).count(FIRST, "changed") == 0
    site.good(FIRST, vllm_stack_refresh=True)
    assert record(FIRST)["source"]["commit"] == sources.head("tiny") != commit
    assert live(FIRST) != first
    assert site.good(FIRST).count(FIRST, "changed") == 0


# --- variables ------------------------------------------------------------------------------------------------------


def test_forward_and_back(site):
    names = []
    for version in ("1.0", "1.1"):
        site.write(version)
        site.good(FIRST)
        names.append(live(FIRST))
    asked = len(site.index.requests)
    done = site.good(FIRST, vllm_stack_release="previous")
    assert done.count(FIRST, "changed") == 1 and live(FIRST) == names[0]
    assert site.good(FIRST, vllm_stack_release=names[0]).count(FIRST, "changed") == 0
    shown = site.good(FIRST, vllm_stack_release=names[1], options=("--check", "--diff"))
    assert shown.count(FIRST, "changed") == 1 and live(FIRST) == names[0]
    assert site.good(FIRST, vllm_stack_release=names[1]).count(FIRST, "changed") == 1
    assert live(FIRST) == names[1]
    said = site.refused(FIRST, vllm_stack_release="tiny-000000000000")
    assert "There is no release tiny-000000000000" in said and names[0] in said
    assert len(site.index.requests) == asked
    # Which stack is named doesn't matter, as nothing is installed.
    assert site.good(FIRST, vllm_stack_name="", vllm_stack_release="previous").count(FIRST, "changed") == 1


def test_single_values_and_what_they_may_not_be(site):
    site.good(FIRST)
    before = live(FIRST)
    # The same files, and one more name: another release.
    overrides = {"distribution_aliases": {"phoenix-test": "1.0"}}
    site.good(FIRST, vllm_stack_overrides=overrides)
    assert live(FIRST) != before
    inside(FIRST, "/opt/vllm/bin/python -c 'import importlib.metadata as m; assert m.version(\"phoenix-test\")'")
    # An environment of servers is no other release.
    assert site.good(FIRST, vllm_stack_overrides={"environment": {"A": "1"}}).count(FIRST, "changed") == 1
    assert live(FIRST) == before
    for variables, sentence in (
        ({"vllm_stack_overrides": {"torch": {"version": "9.8.0"}}}, "requirements.lock has 9.9.0"),
        ({"vllm_stack_overrides": {"vlm": {}}}, "vlm isn't known. Did you mean vllm?"),
        ({"vllm_stack_method": "source"}, "method is source, and vllm.commit is missing"),
        ({"vllm_stack_method": "wheels"}, "vllm_stack_method must be one of"),
        ({"vllm_stack_name": "tinny"}, "there is no such stack"),
        ({"vllm_stack_name": ""}, "names no stack"),
    ):
        said = site.refused(FIRST, **variables)
        assert sentence in said, said
        assert live(FIRST) == before


def test_a_full_disk_is_said_and_gone_on_with(site):
    inside(FIRST, f"mkdir {RELEASES}; mount -t tmpfs -o size=30m tmpfs {RELEASES}")
    said = site.refused(FIRST)
    assert "disk" in said and "storage_size_gb" in said
    assert inside(FIRST, "ls -d /opt/vllm || true") == ""
    assert list((site.store / "claims").iterdir()) == []
    inside(FIRST, f"mount -t tmpfs -o remount,size=900m tmpfs {RELEASES}")
    site.good(FIRST)
    assert live(FIRST)
    # No room for what comes from the store.
    inside(SECOND, f"mkdir {RELEASES}; mount -t tmpfs -o size=10m tmpfs {RELEASES}")
    said = site.refused(SECOND)
    assert "its disk has no room for the wheels" in said and "storage_size_gb" in said
    inside(SECOND, f"mount -t tmpfs -o remount,size=900m tmpfs {RELEASES}")
    site.good(SECOND)
    assert live(SECOND) == live(FIRST)


# --- under load -----------------------------------------------------------------------------------------------------


class Client:
    """Asks a server again and again, and remembers when it got no good answer.

    :ivar failures: (when, why)
    :ivar answers: how many were good
    """

    def __init__(self, ask):
        self.ask = ask
        self.failures: list[tuple[float, str]] = []
        self.answers: list[tuple[float, str]] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self.over.is_set():
            at = time.monotonic()
            try:
                self.answers.append((at, self.ask()))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((at, repr(error)))
            time.sleep(0.02)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()

    def check(self, *spans: tuple[float, float]) -> None:
        """Make sure that requests failed only in these times, and in each without a good answer between them."""
        assert len(self.answers) > 100
        left = list(self.failures)
        for begin, end in spans:
            failed = [at for at, _why in left if begin <= at <= end]
            left = [failure for failure in left if failure[0] not in failed]
            assert not [at for at, _text in self.answers if failed and failed[0] < at < failed[-1]]
        assert left == []


# Answers with its release's vLLM as the files say it at this moment.
SERVER = """
import http.server, importlib.metadata
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = importlib.metadata.version("vllm").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


def test_a_running_server_is_not_disturbed_by_switch_and_rollback(site):
    url = f"http://{ADDRESSES[FIRST]}:8000/"
    site.good(FIRST)
    unit = (
        "systemd-run --quiet --collect --unit=fake-server --property=Restart=no "
        f"\"$(readlink /opt/vllm)/bin/python\" -c '{SERVER}'"
    )

    def ask() -> str:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.read().decode()

    def answers() -> bool:
        try:
            return bool(ask())
        except OSError:
            return False

    def restart() -> tuple[float, float]:
        begin = time.monotonic()
        inside(FIRST, f"systemctl stop fake-server; {unit}")
        wait_until(answers)
        return begin, time.monotonic()

    inside(FIRST, unit)
    wait_until(answers)
    try:
        with Client(ask) as client:
            # Two more releases, and only one may stay besides: the one that the server runs from.
            for version in ("1.1", "1.2"):
                site.write(version)
                site.good(FIRST, vllm_stack_keep=1)
            assert {text for _at, text in client.answers} == {"1.0"}
            spans = [restart()]
            # What was asked before the stop may be answered after it.
            wait_until(lambda: client.answers[-1][0] > spans[0][1])
            assert client.answers[-1][1] == "1.2"
            site.good(FIRST, vllm_stack_release="previous")
            assert client.answers[-1][1] == "1.2"
            spans.append(restart())
            wait_until(lambda: client.answers[-1][0] > spans[1][1])
            assert client.answers[-1][1] == "1.1"
        client.check(*spans)
    finally:
        inside(FIRST, "systemctl stop fake-server || true")


@pytest.mark.full
def test_a_model_answers_through_switch_and_rollback(folder):
    """The same with vLLM on the CPU, its role, and completions."""
    require_lab()
    model, vmid, address = folder / "model", 662, "10.92.0.162"
    subprocess.run([sys.executable, ROOT / "lab/tiny_llama.py", model], check=True, capture_output=True)
    site = Site({vmid: address}, 10, 6144, 2, "--mp0", f"{model},mp=/model")
    site.variables |= {
        "vllm_stack_name": "cpu",
        "vllm_model_server_engine_config": {
            "ModelConfig": {"model": "/model", "load_format": "dummy", "dtype": "float32", "max_model_len": 256,
                            "enforce_eager": True},
            "ServerConfig": {"port": 8000, "served_model_name": ["tiny"]},
        },
    }  # fmt: skip
    body = json.dumps({"model": "tiny", "prompt": "Hello", "max_tokens": 2, "temperature": 0}).encode()

    def ask() -> str:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{address}:8000/v1/completions", body, headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["choices"][0]["text"]

    def restarted(**variables) -> tuple[float, float]:
        begin = time.monotonic()
        assert site.good(vmid, roles=["vllm_model_server"], **variables).count(vmid, "changed") == 1
        return begin, time.monotonic()

    try:
        site.good(vmid, roles=["base_setup", "vllm_stack", "vllm_model_server"])
        first = live(vmid)
        other = {"vllm_stack_overrides": {"distribution_aliases": {"phoenix-test": "1.0"}}}
        with Client(ask) as client:
            site.good(vmid, **other)
            assert live(vmid) != first
            spans = [restarted(**other)]
            site.good(vmid, vllm_stack_release="previous")
            assert live(vmid) == first
            spans.append(restarted())
        client.check(*spans)
        assert client.answers[-1][0] > spans[1][0]
        assert {text for _at, text in client.answers} == {client.answers[0][1]}, "the same model all the time"
    finally:
        site.close()
