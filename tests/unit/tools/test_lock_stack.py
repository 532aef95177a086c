# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tools/lock_stack.py with the real uv, on folders of small wheels: no network."""
from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from ansible_collections.phoenix.hypervisor.plugins.module_utils import stack as stacks
from ansible_collections.phoenix.hypervisor.plugins.module_utils.stack import StackError

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / "tools/lock_stack.py"
SPEC = importlib.util.spec_from_file_location("lock_stack", TOOL)
lock_stack = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(lock_stack)

STACK = {
    "name": "mine",
    "method": "wheel",
    "python": "3.11",
    "torch": {"version": "2.0+cu128", "cuda": "cu128"},
    "vllm": {"version": "1.0"},
    "uv": {"version": "0.13.8", "hashes": ["e" * 64]},
    "excluded": ["unwanted"],
    "build": {"environment": {"A": "1"}},
}


def wheel(folder: Path, name: str, version: str, *requires: str, tag: str = "py3-none-any") -> str:
    """Make a wheel without code. Return its digest."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"{name}-{version}-{tag}.whl", f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{info}/METADATA", metadata + "".join(f"Requires-Dist: {one}\n" for one in requires))
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Site:
    """A stack of one's own, and a folder of wheels."""

    def __init__(self, path: Path) -> None:
        self.folder, self.wheels = path / "stacks/mine", path / "wheels"
        self.folder.mkdir(parents=True)
        self.write()
        (self.folder / "requirements.in").write_text("vllm==1.0\ntorch==2.0+cu128\n")
        self.hashes = {
            name: wheel(self.wheels, *words)
            for name, words in {
                "vllm": ("vllm", "1.0", "torch", "helper>=1", "unwanted"),
                "torch": ("torch", "2.0+cu128", "helper"),
                "helper": ("helper", "1.5"),
            }.items()
        }

    def write(self, **change) -> None:
        (self.folder / "stack.yml").write_text(yaml.safe_dump({**STACK, **change}))

    def run(self, *words: str) -> subprocess.CompletedProcess:
        settings = self.folder.parent / "uv.toml"
        settings.write_text("no-index = true\n")
        command = [sys.executable, str(TOOL), str(self.folder), "--find-links", str(self.wheels), *words]
        environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "UV_CONFIG_FILE": str(settings),
                       "HOME": str(self.folder.parent), "UV_NO_CACHE": "1"}  # fmt: skip
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)

    def good(self) -> str:
        done = self.run()
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_it_writes_a_lock_that_the_stack_passes_with(site):
    said = site.good()
    lock = (site.folder / "requirements.lock").read_text()
    assert said.splitlines() == [
        "requirements.lock: 3 packages",
        "  helper: not there → 1.5",
        "  torch: not there → 2.0+cu128",
        "  vllm: not there → 1.0",
    ]
    assert {name: pin.hashes for name, pin in stacks.pins(lock).items()} == {
        name: (digest,) for name, digest in site.hashes.items()
    }
    assert "/" not in "".join(line for line in lock.splitlines() if not line.startswith("#")), "it names no place"
    stacks.check(STACK, lock)


def test_a_second_run_changes_nothing_and_says_so(site):
    site.good()
    before = (site.folder / "requirements.lock").read_bytes()
    assert site.good() == "requirements.lock: 3 packages, unchanged\n"
    assert (site.folder / "requirements.lock").read_bytes() == before


def test_it_says_what_changed(site):
    site.good()
    wheel(site.wheels, "helper", "1.6", "fresh")
    wheel(site.wheels, "fresh", "0.1")
    (site.wheels / "vllm-1.0-py3-none-any.whl").unlink()
    wheel(site.wheels, "vllm", "1.0", "torch", "helper>=1.5")
    assert site.good().splitlines() == [
        "requirements.lock: 4 packages",
        "  fresh: not there → 0.1",
        "  helper: 1.5 → 1.6",
        "  vllm: 1.0, other files",
    ]


def test_what_builds_has_the_versions_of_what_runs(site):
    wheel(site.wheels, "helper", "1.6")
    wheel(site.wheels, "tool", "1.0", "helper<1.6")
    wheel(site.wheels, "tool", "0.9", "helper")
    (site.folder / "build.in").write_text("torch==2.0+cu128\ntool\n")
    site.good()
    running, building = (stacks.pins((site.folder / f"{name}.lock").read_text()) for name in ("requirements", "build"))
    # The newest tool wants an older helper than the one that is installed, so it isn't the newest.
    assert running["helper"].version == building["helper"].version == "1.6"
    assert building["tool"].version == "0.9" and building["torch"] == running["torch"]


def test_only_files_that_fit_have_a_hash(site):
    wheel(site.wheels, "helper", "1.5", tag="cp312-cp312-manylinux_2_28_x86_64")
    wheel(site.wheels, "helper", "1.5", tag="cp311-cp311-win_amd64")
    fits = wheel(site.wheels, "helper", "1.5", tag="cp311-cp311-manylinux_2_28_x86_64")
    site.good()
    lock = stacks.pins((site.folder / "requirements.lock").read_text())
    assert set(lock["helper"].hashes) == {fits, site.hashes["helper"]}


@pytest.mark.parametrize("channel", ["stable", "nightly"])
def test_a_pytorch_that_is_gone_is_one_sentence_with_the_stacks_that_work(site, channel):
    site.good()
    before = (site.folder / "requirements.lock").read_bytes()
    (site.wheels / "torch-2.0+cu128-py3-none-any.whl").unlink()
    site.write(torch={"version": "2.0+cu128", "cuda": "cu128", "channel": channel})
    done = site.run()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"lock_stack: stack mine: PyTorch 2.0+cu128 ({channel}, cu128) is not published, or")
    assert "Stacks whose PyTorch stays published: cpu, vllm-0.10.2-cu128, " in done.stderr
    assert "nightly-source" not in done.stderr
    assert (site.folder / "requirements.lock").read_bytes() == before, "a failure leaves the lock"


def test_an_index_that_can_not_be_reached():
    stack = yaml.safe_load((ROOT / "roles/vllm_stack/files/stacks/cpu/stack.yml").read_text())
    output = "error: Failed to fetch: `https://mirror/cpu/torch/`\n  Caused by: dns error: failed to lookup address"
    said = lock_stack.explain(stack, output, "https://mirror/cpu")
    assert said.startswith("stack cpu: https://mirror/cpu can't be reached, and the lock stays as it is.")
    assert "TORCH_INDEX=" in said and "FIND_LINKS=" in said


def test_what_is_published_as_source_only_is_not_built_by_surprise():
    package = {"name": "flashinfer-python", "version": "0.3.1",
               "sdist": {"name": "flashinfer_python-0.3.1.tar.gz", "hashes": {"sha256": "a" * 64}}}  # fmt: skip
    with pytest.raises(StackError, match=r"published as source only.*build\.sdists"):
        lock_stack.requirement(package, lock_stack.fitting_tags("3.11"), [])
    assert "a" * 64 in lock_stack.requirement(package, lock_stack.fitting_tags("3.11"), ["flashinfer-python"])
    with pytest.raises(StackError, match="no file for this Python"):
        lock_stack.requirement({"name": "x", "version": "1"}, set(), [])


def test_mistakes_in_the_stack_are_sentences(site):
    site.write(pyhton="3.11")
    done = site.run()
    assert done.returncode == 1 and "pyhton isn't known. Did you mean python?" in done.stderr
    with pytest.raises(StackError, match=r"NAME=nope is neither a shipped stack \(cpu, "):
        lock_stack.find("nope")


def test_a_shipped_lock_is_what_its_requirements_ask_for():
    for path in sorted(lock_stack.STACKS.glob("*/*.lock")):
        asked = lock_stack.wanted(path.with_suffix(".in").read_text())
        locked = stacks.pins(path.read_text())
        assert asked and set(asked) <= set(locked), path
        assert all(version in ("", locked[name].version) for name, version in asked.items()), path
