# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's store of wheels and real containers. Needs a lab that is up; CTIDs 625, 626 and 634.

The wheelhouses are random bytes: nothing here installs them.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import lab_modules
import pytest
from lab_modules import ROOT, create, destroy, require_lab, wait_until

pytestmark = pytest.mark.lab

FIRST, SECOND, MISSING = 625, 626, 634
RELEASE = "fake-0123456789ab"
RELEASES = "/opt/vllm-releases"
WORK = f"{RELEASES}/.work/{RELEASE}"
WHEELS = f"{WORK}/wheels"


def shell(vmid: int, script: str, data: bytes = b"") -> str:
    """What a script in a container prints; not by the modules that are tested."""
    words = ["lxc-attach", "-n", str(vmid), "--clear-env", "--", "/bin/sh", "-c", script]
    return subprocess.run(words, input=data, stdout=subprocess.PIPE, timeout=120, check=True).stdout.decode().strip()


def make(vmid: int, count: int = 3, mebibytes: float = 1, release: str = RELEASE) -> dict[str, str]:
    """A whole wheelhouse in a container. Gives the digests of its files."""
    wheels = f"{RELEASES}/.work/{release}/wheels"
    size = int(mebibytes * 2**20)
    listed = shell(
        vmid,
        f"mkdir -p {wheels} && cd {wheels} && for i in $(seq {count}); do "
        f"head -c {size} /dev/urandom >w$i-1.0-py3-none-any.whl; done; sha256sum *.whl",
    )
    files = {line.split()[1]: line.split()[0] for line in listed.splitlines()}
    manifest = json.dumps({"release": release, "files": files, "built": {}, "python": "3.11"})
    shell(vmid, f"cat >{wheels}/manifest.json", manifest.encode())
    return files


def found_inside(vmid: int) -> dict[str, str]:
    """Digests of the files of a wheelhouse in a container. {} for none; what has no manifest is none."""
    listed = shell(vmid, f"[ ! -f {WHEELS}/manifest.json ] || {{ cd {WHEELS} && sha256sum *.whl; }}")
    return {line.split()[1]: line.split()[0] for line in listed.splitlines()}


def found_in(folder: Path) -> dict[str, str]:
    """Digests of the files of a wheelhouse on the node. {} for none."""
    if not folder.exists():
        return {}
    assert (folder / "manifest.json").exists()
    done = subprocess.run(["sha256sum", *folder.glob("*.whl")], stdout=subprocess.PIPE, text=True, check=True)
    return {Path(line.split()[1]).name: line.split()[0] for line in done.stdout.splitlines()}


def playbook(name: str, good: bool = True, **variables: str) -> str:
    """What a playbook of the collection says, run for this machine as the node."""
    words = [sys.executable, "-m", "ansible", "playbook", f"phoenix.hypervisor.{name}", "-i", "localhost,"]
    variables = {"phoenix_target": "localhost", "ansible_python_interpreter": sys.executable, **variables}
    done = subprocess.run(
        [*words, "-c", "local", "-e", json.dumps(variables)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) is good, done.stdout
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module", autouse=True)
def containers() -> Iterator[None]:
    """Two containers that run; gone afterwards, also when a test fails."""
    require_lab()
    for vmid in (FIRST, SECOND):
        create(vmid)
        lab_modules.start(vmid)
    yield
    destroy(FIRST, SECOND)


@pytest.fixture
def store() -> Iterator[Path]:
    """A store of its own on the node, and containers without a release."""
    for vmid in (FIRST, SECOND):
        shell(vmid, f"rm -rf {RELEASES}")
    with tempfile.TemporaryDirectory(prefix="phoenix-test-", dir="/var/tmp") as name:
        yield Path(name) / "wheels"


@pytest.fixture
def call(store):
    """A function that runs the module; the call must succeed."""
    return functools.partial(lab_modules.call, "vllm_store", release=RELEASE, store=str(store))


@pytest.fixture
def failure(store):
    """A function that runs the module and gives the message with which it must fail."""
    return functools.partial(lab_modules.failure, "vllm_store", release=RELEASE, store=str(store))


@pytest.fixture
def start(store):
    """A function that starts the module and doesn't wait for it."""
    return lambda **options: lab_modules.start_module(
        "vllm_store", False, {"release": RELEASE, "store": str(store), **options}
    )


def silence(store: Path, seconds: float = 100) -> None:
    """The last sign of life of the claim is so old."""
    os.utime(store / "claims" / f"{RELEASE}.json", (time.time() - seconds,) * 2)


class TestTheWay:
    def test_from_one_container_to_the_next(self, call, store):
        assert call(state="given", vmid=FIRST)["claimed"] is True
        files = make(FIRST)
        shown = call(state="kept", vmid=FIRST, check=True)
        assert not (store / RELEASE).exists()
        done = call(state="kept", vmid=FIRST)
        assert (done["changed"], done["steps"], done["diff"]) == (True, shown["steps"], shown["diff"])
        assert found_in(store / RELEASE) == files
        assert shell(FIRST, f"ls -A {RELEASES}/.work") == ""
        again = call(state="kept", vmid=FIRST)
        assert (again["changed"], again["steps"]) == (False, [])
        shown = call(state="given", vmid=SECOND, check=True)
        assert found_inside(SECOND) == {}
        done = call(state="given", vmid=SECOND)
        assert (done["changed"], done["given"], done["steps"]) == (True, True, shown["steps"])
        assert found_inside(SECOND) == files
        # Its owner is root inside, not on the node.
        assert set(shell(SECOND, f"stat -c '%u:%g:%a' {WHEELS} {WHEELS}/*").splitlines()) == {"0:0:755", "0:0:644"}
        again = call(state="given", vmid=SECOND)
        assert (again["changed"], again["given"], again["sent"]) == (False, True, 0)

    def test_over_a_bundle(self, call, store):
        """The two playbooks, as if they ran on two nodes."""
        files = make(FIRST)
        call(state="kept", vmid=FIRST)
        bundle, other = str(store.parent / "bundle.tar"), store.parent / "other" / "wheels"
        assert "bundle.tar on localhost has fake-0123456789ab: 3 files, 3.00 MB." in playbook(
            "stack_export", phoenix_stack="fake", phoenix_bundle=bundle, vllm_stack_store=str(store)
        )
        assert "changed=1" in playbook("stack_import", phoenix_bundle=bundle, vllm_stack_store=str(other))
        assert "changed=0" in playbook("stack_import", phoenix_bundle=bundle, vllm_stack_store=str(other))
        assert "-e phoenix_bundle=/root/cpu.tar" in playbook("stack_import", good=False)
        assert call(state="given", vmid=SECOND, store=str(other))["given"] is True
        assert found_inside(SECOND) == files

    def test_a_container_that_is_not_there(self, failure):
        assert f"CTID {MISSING} does not exist on this node" in failure(state="given", vmid=MISSING)


class TestWaiting:
    def test_a_play_waits_and_shows_what_the_other_does(self, call, store):
        call(state="given", vmid=FIRST)
        files = make(FIRST)
        said = {"state": "running", "text": "building vLLM", "detail": "[12/345] cache.cu"}
        shell(FIRST, f"cat >{WORK}/progress.json", json.dumps(said).encode())
        options = f"state=given vmid={SECOND} release={RELEASE} store={store}"
        ansible = [sys.executable, "-m", "ansible", "adhoc", "localhost"]
        with subprocess.Popen(
            [*ansible, "-m", "phoenix.hypervisor.vllm_store", "-a", options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        ) as play:  # fmt: skip
            assert play.stdout is not None
            lines: list[str] = []
            while not any("building vLLM" in line for line in lines):
                line = play.stdout.readline()
                assert line, lines
                lines.append(line)
            done = call(state="kept", vmid=FIRST)
            assert done["changed"] is True
            rest = play.stdout.read()
        assert f"which CTID {FIRST} makes since " in lines[-1]
        assert lines[-1].strip().endswith("building vLLM: [12/345] cache.cu")
        assert "given: true" in rest, rest
        assert found_inside(SECOND) == files

    def test_of_two_at_once_one_builds(self, start):
        both = [start(state="given", vmid=vmid) for vmid in (FIRST, SECOND)]
        results = [lab_modules.result_of(process) for process in both]
        assert sorted((result["claimed"], result["running"]) for result in results) == [(False, True), (True, False)]

    def test_a_dead_claim_is_taken_over(self, call, store):
        call(state="given", vmid=FIRST)
        assert call(state="given", vmid=SECOND)["running"] is True
        silence(store)
        done = call(state="given", vmid=SECOND)
        assert (done["running"], done["claimed"], done["builder"]) == (False, True, SECOND)
        # The first one's play comes back: now it waits.
        assert call(state="given", vmid=FIRST)["running"] is True

    @pytest.mark.parametrize("sign", ["unit", "progress", "packages"])
    def test_a_builder_that_is_alive(self, call, store, sign):
        call(state="given", vmid=FIRST)
        silence(store)
        shell(FIRST, f"mkdir -p {WORK}")
        if sign == "unit":
            shell(FIRST, "systemd-run -q --unit vllm_release --collect sleep 300")
        elif sign == "progress":
            shell(FIRST, f"echo '{{}}' >{WORK}/progress.json")
        else:
            shell(FIRST, "cp /bin/sleep /tmp/apt-get; systemd-run -q --unit phoenix-test --collect /tmp/apt-get 300")
        try:
            assert call(state="given", vmid=SECOND)["running"] is True
        finally:
            shell(FIRST, "systemctl stop vllm_release phoenix-test 2>/dev/null || true")
        # Whoever waits passes the sign of life on.
        assert time.time() - (store / "claims" / f"{RELEASE}.json").stat().st_mtime < 30

    def test_a_builder_that_was_destroyed(self, call, store):
        call(state="given", vmid=FIRST)
        claim = store / "claims" / f"{RELEASE}.json"
        claim.write_text(claim.read_text().replace(str(FIRST), str(MISSING)))
        silence(store)
        assert call(state="given", vmid=SECOND)["claimed"] is True


class TestDamage:
    def test_a_bit_that_flipped_on_the_node(self, call, store):
        files = make(FIRST)
        call(state="kept", vmid=FIRST)
        name = sorted(files)[1]
        with (store / RELEASE / name).open("r+b") as file:
            file.seek(1000)
            byte = file.read(1)[0]
            file.seek(1000)
            file.write(bytes([byte ^ 4]))
        done = call(state="given", vmid=SECOND)
        assert (done["given"], done["claimed"]) == (False, True)
        assert f"{name} of {RELEASE} in the store has another SHA-256" in done["damaged"]
        assert [path.name.startswith(name) for path in (store / "damaged").iterdir()] == [True]
        assert not (store / RELEASE).exists()
        # What cleans up inside may be a moment later.
        wait_until(lambda: shell(SECOND, f"ls -A {RELEASES}/.work") == "")
        rebuilt = make(SECOND)
        assert call(state="kept", vmid=SECOND)["changed"] is True
        assert call(state="given", vmid=FIRST)["given"] is True
        assert found_inside(FIRST) == rebuilt

    def test_inside(self, failure, store):
        make(FIRST)
        shell(FIRST, f"printf x >>{WHEELS}/w2-1.0-py3-none-any.whl")
        assert "w2-1.0-py3-none-any.whl is not what its manifest.json says" in failure(state="kept", vmid=FIRST)
        assert [path.name for path in store.iterdir() if path.name not in ("files", "claims", ".lock")] == []


class TestRoom:
    @pytest.mark.parametrize("option", ["size=1m", "nr_inodes=6"])
    def test_none_in_the_container(self, call, failure, store, option):
        make(FIRST)
        call(state="kept", vmid=FIRST)
        shell(SECOND, f"mkdir -p {RELEASES} && mount -t tmpfs -o {option} tmpfs {RELEASES}")
        try:
            message = failure(state="given", vmid=SECOND)
            assert message.startswith(f"CTID {SECOND}: its disk has no room for the wheels, 3 MiB under {WHEELS}; give")
            assert "\n" not in message
            assert shell(SECOND, f"find {RELEASES} -type f") == ""
        finally:
            shell(SECOND, f"umount {RELEASES}")
        assert call(state="given", vmid=SECOND)["given"] is True

    @pytest.mark.parametrize("option", ["size=2m", "nr_inodes=8"])
    def test_none_on_the_node(self, call, failure, store, option):
        files = make(FIRST)
        store.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(store)], check=True)
        try:
            message = failure(state="kept", vmid=FIRST)
            assert message.startswith(f"store: the disk of {store} on the node ")
            assert message.endswith("The store is as it was")
            assert sorted(path.name for path in store.iterdir()) == [".lock", "claims", "files"]
            assert list((store / "files").iterdir()) == []
            assert found_inside(FIRST) == files
        finally:
            subprocess.run(["umount", str(store)], check=True)
        assert call(state="kept", vmid=FIRST)["changed"] is True


def kill_after(process: subprocess.Popen, seconds: float) -> None:
    """Kill a module at a moment of its run, however far it is."""
    time.sleep(seconds)
    process.kill()
    process.communicate()


def killed_anywhere(call, start, store: Path, moments: list[float]) -> None:
    files = make(FIRST, count=5, mebibytes=40)
    for moment in moments:
        kill_after(start(state="kept", vmid=FIRST), moment)
        assert found_in(store / RELEASE) in ({}, files)
        if found_inside(FIRST) == {}:
            break
    assert call(state="kept", vmid=FIRST)["kept"] is True
    assert found_in(store / RELEASE) == files
    for moment in moments:
        kill_after(start(state="given", vmid=SECOND), moment)
        assert found_inside(SECOND) in ({}, files)
        shell(SECOND, f"rm -rf {WHEELS}")
    assert call(state="given", vmid=SECOND)["given"] is True
    assert found_inside(SECOND) == files
    assert shell(SECOND, f"ls -A {WORK}") == "wheels"
    assert [path.name for path in store.iterdir() if path.name.startswith(".incoming")] in ([], None)


class TestKilled:
    def test_at_some_moments(self, call, start, store):
        killed_anywhere(call, start, store, [0.3, 0.5])

    @pytest.mark.full
    def test_at_many_moments(self, call, start, store):
        killed_anywhere(call, start, store, [0.1 + 0.06 * i for i in range(20)])

    def test_asked_to_end(self, call, start, store):
        """SIGTERM is answered with a sentence, and nothing of it is left on either side."""
        files = make(FIRST, count=5, mebibytes=40)
        call(state="kept", vmid=FIRST)
        process = start(state="given", vmid=SECOND)
        wait_until(lambda: shell(SECOND, f"ls -d {WORK}/.vllm_store.*/*.whl 2>/dev/null || true") != "")
        process.terminate()
        result = lab_modules.result_of(process)
        assert result["failed"]
        assert "SIGTERM" in result["msg"]
        assert shell(SECOND, f"find {RELEASES} -name '*.whl'") == ""
        assert found_in(store / RELEASE) == files


@pytest.mark.full
def test_throughput(call, store):
    """500 MiB to a container and back, beside what cat alone takes. Prints the figures."""
    size = 500 * 2**20
    make(FIRST, count=10, mebibytes=50)

    def seconds(what) -> float:
        subprocess.run(["sync"], check=True)
        begun = time.monotonic()
        what()
        return time.monotonic() - begun

    kept = seconds(lambda: call(state="kept", vmid=FIRST))
    given = seconds(lambda: call(state="given", vmid=SECOND))
    words = f"cat {store}/{RELEASE}/*.whl | lxc-attach -n {SECOND} --clear-env -- sh -c 'cat >/root/all; rm /root/all'"
    cat = seconds(lambda: subprocess.run(words, shell=True, check=True))
    for name, took in {"kept": kept, "given": given, "cat": cat}.items():
        print(f"{name}: {size / took / 2**20:.0f} MiB/s")
    assert given < 6 * cat + 1
