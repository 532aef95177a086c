# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs without a module, whose run_command it can't have.
# pylint: disable=ansible-bad-function
"""The wheels that nobody publishes: vLLM compiled against the locked PyTorch, and source distributions.

Runs in the container, on the standard library, called by C(release_job). The places, below the job's folder:

    wheels/           what is installed; the built wheels end up here
    build/wheels/     what only building needs (the build environment, a precompiled vLLM)
    build/venv/       the build environment: PyTorch as locked, and the locked build requirements
    build/built.json  what was built, from what, in which time
    src/              vLLM's tree, its objects in src/build/

All of it can be killed at any moment and is gone on with: a tree at the right commit is used again, objects that were
compiled stay, a wheel that was finished is not built again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import stack
from .release_fetch import sha256_of
from .release_plan import JobError, Refused

try:
    import tomllib
except ImportError:  # Python 3.10 and older can't check what is left of a pyproject.toml. The regular expression can.
    tomllib = None

GB = 1 << 30
# Compiled PyTorch extensions fit one PyTorch. These distributions are what vLLM's sources pin because of it.
TORCH_FAMILY = ("torch", "torchvision", "torchaudio", "torchcodec")
_PIN = rf"(?:{'|'.join(TORCH_FAMILY)})\s*(?:\[[^\]\n]*\]\s*)?(?:[=~<>!]=|[<>@])"
PIN_LINE = re.compile(rf"\s*{_PIN}", re.IGNORECASE)
PIN_STRING = re.compile(rf"""(?:"\s*{_PIN}[^"\n]*"|'\s*{_PIN}[^'\n]*')[ \t]*,?""", re.IGNORECASE)
# Never ask on a terminal, give up on a server that sends nothing for a minute, and speak English.
GIT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
    "GIT_HTTP_LOW_SPEED_TIME": "60",
    "LC_ALL": "C.UTF-8",
}
# What git says of a server that gives out branches only, or whole histories only.
NO_SHALLOW = ("not our ref", "unadvertised object", "does not allow request", "shallow capabilities")

Run = Callable[..., str]
Say = Callable[..., None]


# --- the tree ------------------------------------------------------------------------------------------------------


def prepare(candidate: Mapping[str, Any], work: Path, run: Run, say: Say) -> Path:
    """Have vLLM's tree at the candidate's commit, made for the locked PyTorch.

    Args:
        candidate: what is installed.
        work: the folder of the job.
        run: runs a program; raises JobError when it fails.
        say: sets the progress.

    Returns:
        The folder of the tree.
    """
    tree = work / "src"
    commit = fetch(candidate["source"], tree, run, say)
    say("making vLLM's sources fit the locked PyTorch")
    removed = align(tree, run)
    (work / "build").mkdir(parents=True, exist_ok=True)
    write_json(work / "build" / "source.json", {"commit": commit, "removed": removed})
    return tree


def fetch(source: Mapping[str, Any], tree: Path, run: Run, say: Say) -> str:
    """Have a repository's tree at exactly one commit, without its history where the server allows that.

    Returns:
        The commit, 40 hexadecimal digits.
    """
    repository, commit, prefix = source["repository"], source["commit"], source.get("commit_prefix", "")
    if not prefix and not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise JobError(
            f"The commit of vLLM must be 40 hexadecimal digits, not {commit!r}.", "source", "Correct vllm.commit."
        )
    if not shutil.which("git"):
        raise JobError("git is not installed in the container.", "git", "List git in the stack's build.packages.")

    def git(*words: str, watch: Callable[[str], None] | None = None) -> str:
        # A mirror on a folder of another owner is what the user named: git need not doubt it.
        return run(["git", "-c", "safe.directory=*", *words], environment=GIT, cwd=tree, watch=watch)

    def receiving(line: str) -> None:
        if found := re.match(r"(?:remote: )?(\w+ objects|Resolving deltas): +(\d+%)", line):
            say(f"fetching vLLM's sources from {repository}", f"{found[1].lower()} {found[2]}")

    say(f"fetching vLLM's sources from {repository}")
    # What a killed git left. Nobody else works here.
    for lock in tree.glob(".git/**/*.lock"):
        lock.unlink()
    try:
        if tree.exists():
            git("rev-parse", "--git-dir")
            if not (tree / ".git").is_dir():
                raise JobError("no repository of its own")
    except JobError:
        shutil.rmtree(tree)
    if not tree.exists():
        tree.mkdir(parents=True)
        git("init", "--quiet", ".")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        commit = tagged(repository, commit, prefix, tree, git)
    if not has_commit(tree, commit):
        try:
            try:
                git("fetch", "--progress", "--no-tags", "--depth=1", repository, commit, watch=receiving)
            except JobError as error:
                if not any(word in "\n".join(error.tail) for word in NO_SHALLOW):
                    raise
                say(f"fetching vLLM's sources from {repository}", "all of them: the server gives no single commit")
                git("fetch", "--progress", repository, "+refs/*:refs/mirror/*", watch=receiving)
        except JobError as error:
            raise not_fetched(repository, error) from error
        if not has_commit(tree, commit):
            raise JobError(
                f"{repository} has no commit {commit}.", "source", "Correct vllm.commit, or name another repository."
            )
    # Objects stay, so that only what changed is compiled again.
    git("checkout", "--quiet", "--force", "--detach", commit)
    git("clean", "-ffdxq", "-e", "/build", "-e", "/.deps")
    if (tree / ".gitmodules").exists():
        say("fetching the submodules of vLLM's sources")
        modules = ["submodule", "update", "--init", "--recursive", "--force"]
        git("submodule", "--quiet", "sync", "--recursive")
        try:
            git(*modules, "--depth=1")
        except JobError:
            git(*modules)
    if (head := git("rev-parse", "HEAD").split()[-1]) != commit:
        raise JobError(f"{tree} is at commit {head} and should be at {commit}.", "source", "Remove it and run again.")
    return commit


def not_fetched(repository: str, error: JobError) -> JobError:
    """Return what is said when git did not get to a repository."""
    return JobError(
        f"vLLM's sources could not be fetched from {repository}: {last_word(error)}",
        "source",
        "Check that the container reaches it (gateway, nameserver), or name a mirror (vllm_stack_repository).",
        error.tail,
    )


def tagged(repository: str, tag: str, prefix: str, tree: Path, git: Callable[..., str]) -> str:
    """Return the commit of a tag, which must begin as the stack says. Once known, nobody is asked again.

    Raises:
        JobError: there is no such tag, it is another commit, or the repository can't be asked.
    """
    known = tree / ".git" / "phoenix-tags" / tag.replace("/", "_")
    if known.is_file() and (commit := known.read_text(encoding="ascii").strip()).startswith(prefix):
        return commit
    try:
        answer = git("ls-remote", repository, f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}")
    except JobError as error:
        raise not_fetched(repository, error) from error
    found = {name: commit for commit, name in re.findall(r"^([0-9a-f]{40})\s+(\S+)$", answer, re.M)}
    # An annotated tag is an object of its own; with ^{} it is the commit that it names.
    commit = found.get(f"refs/tags/{tag}^{{}}") or found.get(f"refs/tags/{tag}", "")
    if not commit or not commit.startswith(prefix):
        is_what = f"is commit {commit}, which doesn't begin with {prefix}" if commit else "isn't there"
        raise JobError(
            f"The tag {tag} of {repository} {is_what}: it isn't what was released.",
            "source",
            "Name another repository, or the commit itself in vllm.commit.",
        )
    known.parent.mkdir(exist_ok=True)
    known.write_text(commit, encoding="ascii")
    return commit


def has_commit(tree: Path, commit: str) -> bool:
    """Return whether a repository has a commit. Asked without the log: no is an answer, not a failure."""
    words = ["git", "-c", "safe.directory=*", "cat-file", "-e", f"{commit}^{{commit}}"]
    return not subprocess.run(words, cwd=tree, env={**os.environ, **GIT}, capture_output=True, check=False).returncode


def last_word(error: JobError) -> str:
    """Return the line of an output that says most: git's fatal one, else the last."""
    fatal = [line for line in error.tail if re.match(r"(fatal|error): ", line)]
    return (fatal or error.tail or [error.message])[-1].rstrip(".") + "."


# --- made for the PyTorch that is there ------------------------------------------------------------------------------


def align(tree: Path, run: Run) -> list[str]:
    """Take the pins of PyTorch out of vLLM's sources, and make sure that they are out.

    vLLM has a script for it. At some releases it changes nothing and ends well, so what counts is its effect.

    Returns:
        What was taken out, "file: requirement" for each.
    """
    before = pins(tree)
    for script, options in (("tools/use_existing_torch.py", ["--prefix"]), ("use_existing_torch.py", [])):
        if (tree / script).exists():
            try:
                run(["/usr/bin/python3", script, *options], cwd=tree)
            except JobError as error:
                raise JobError(
                    f"vLLM's {script} failed: {last_word(error)}", "source", "Name another commit.", error.tail
                ) from error
            break
    for path in requirement_files(tree):
        text = path.read_text(encoding="utf-8")
        if (left := without_pins(text, path.suffix == ".toml")) != text:
            path.write_text(left, encoding="utf-8")
    if left := pins(tree):
        raise JobError(f"vLLM's sources still ask for their own PyTorch: {left[0]}.", "torch", "Name another commit.")
    project = tree / "pyproject.toml"
    if tomllib and project.exists():
        try:
            tomllib.loads(project.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            message = f"vLLM's pyproject.toml can't be read without its pins of PyTorch: {error}."
            raise JobError(message, "source", "Name another commit.") from error
    return before


def requirement_files(tree: Path) -> Iterator[Path]:
    """Yield the files of a tree that pin what it is built and run with."""
    for pattern in ("pyproject.toml", "requirements*.txt", "requirements/**/*.txt", "requirements/**/*.in"):
        yield from sorted(path for path in tree.glob(pattern) if path.is_file())


def pins(tree: Path) -> list[str]:
    """Return the pins of PyTorch and its family in a tree, "file: requirement" for each."""
    found = []
    for path in requirement_files(tree):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            lines = [match[0].strip(" \t,\"'") for match in PIN_STRING.finditer(text)]
        else:
            lines = [line.strip() for line in text.splitlines() if PIN_LINE.match(line)]
        found += [f"{path.relative_to(tree)}: {line}" for line in lines]
    return found


def without_pins(text: str, toml: bool) -> str:
    """Return a requirements file, or a pyproject.toml, without the pins of PyTorch and its family."""
    kept = []
    for line in text.splitlines(keepends=True):
        left = PIN_STRING.sub("", line) if toml else ("" if PIN_LINE.match(line) else line)
        if left == line or left.strip():
            kept.append(left)
    return "".join(kept)


# --- how many compilers at once --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """What the container may use.

    Attributes:
        memory: bytes, of all that sets a limit the least.
        free: bytes of it that nobody holds.
        cores: processors that it may run on, or a fraction where its time is limited.
    """

    memory: int
    free: int
    cores: float


def room(root: Path = Path("/"), processors: int | None = None) -> Room:
    """Return what there is for a build: the least of what the control groups and the kernel say.

    Args:
        root: the root of the file system.
        processors: how many this process may run on; asked for when it isn't given.
    """

    def read(path: Path) -> str:
        try:
            return path.read_text(encoding="ascii")
        except (OSError, ValueError):
            return ""

    def number(path: Path, key: str = "") -> int | None:
        """The number in a file, or the one after a key. None for none and for "max"."""
        found = re.search(rf"^{key}[: ]*([0-9]+)(?: kB)?$", read(path), re.MULTILINE)
        return int(found[1]) if found else None

    meminfo = root / "proc/meminfo"
    memory = (number(meminfo, "MemTotal") or 0) * 1024
    free = (number(meminfo, "MemAvailable") or 0) * 1024
    cores = float(processors or len(os.sched_getaffinity(0)))
    groups = root / "sys/fs/cgroup"
    # Where both versions of control groups are in use, the second has a folder of its own.
    unified = groups / "unified" if (groups / "unified").is_dir() else groups
    for line in read(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        _number, controllers, path = [*line.split(":", 2), "", ""][:3]
        own = Path(path.lstrip("/"))
        for group in (own, *own.parents):
            if not controllers:
                at = unified / group
                limit, used = number(at / "memory.max"), number(at / "memory.current")
                cache = number(at / "memory.stat", "inactive_file")
                words = read(at / "cpu.max").split()
            elif "memory" in controllers.split(","):
                at = groups / "memory" / group
                limit, used = number(at / "memory.limit_in_bytes"), number(at / "memory.usage_in_bytes")
                cache, words = number(at / "memory.stat", "total_inactive_file"), []
            elif "cpu" in controllers.split(","):
                at = groups / controllers / group
                limit = used = cache = None
                words = [read(at / "cpu.cfs_quota_us").strip(), read(at / "cpu.cfs_period_us").strip()]
            else:
                break
            if limit:
                memory = min(memory or limit, limit)
                free = min(free or limit, limit, max(0, limit - (used or 0) + (cache or 0)))
            if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
                cores = min(cores, int(words[0]) / int(words[1]))
    return Room(memory, min(free, memory), cores)


def jobs(there: Room, per_job_gb: float, wanted: str = "") -> tuple[int, str]:
    """Return how many compilers may run at once, and the sum as a sentence.

    Args:
        there: what the container may use.
        per_job_gb: the memory that one of them needs, in GB.
        wanted: what the user wants; it is taken as it is. C("") for nothing.
    """
    if wanted:
        return int(wanted), f"{wanted} jobs, as told."
    by_cores = max(1, int(there.cores))
    # A little more than free memory is held by nobody in earnest: round to the nearest, not down.
    by_memory = int(there.free / GB / per_job_gb + 0.1) if per_job_gb else by_cores
    count = max(1, min(by_cores, by_memory))
    memory = f"{there.free / GB:.1f} of {there.memory / GB:.1f} GB of memory are free"
    text = (
        f"{count} job{'s' if count > 1 else ''}: {memory}, {per_job_gb:g} GB for each make {by_memory}; "
        f"{there.cores:g} core{'s' if there.cores != 1 else ''}."
    )
    if not by_memory:
        text += f" One may need more than there is: give the container {per_job_gb:g} GB for this build."
    return count, text


# --- the build environment -------------------------------------------------------------------------------------------


def entries(lock: str) -> dict[str, str]:
    """Return package → its lines in a lock."""
    return {name: pin.text for name, pin in stack.pins(lock).items()}


def wheels_of(*folders: Path) -> dict[str, Path]:
    """Return distribution → wheel of all wheels in folders."""
    paths = [path for folder in folders for path in sorted(folder.glob("*.whl"))]
    return {stack.normal(path.name.split("-")[0]): path for path in paths}


def required(wheel: Path) -> set[str]:
    """Return the names of the distributions that a wheel needs without any extra, whatever their markers."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        text = archive.read(name).decode("utf-8", "replace").split("\n\n")[0]
    found = re.findall(r"^Requires-Dist: *([A-Za-z0-9._-]+)([^\n]*)", text, re.MULTILINE)
    return {stack.normal(name) for name, rest in found if not re.search(r";.*\bextra\b", rest)}


def closure(names: Sequence[str], locked: Mapping[str, str], wheels: Mapping[str, Path]) -> dict[str, str]:
    """Return the locked requirements of distributions and of all that they need."""
    found: dict[str, str] = {}
    waiting = [name for name in names if name in locked]
    while waiting:
        name = waiting.pop()
        if name not in found and name in wheels:
            found[name] = locked[name]
            waiting += sorted(required(wheels[name]) & locked.keys())
    return found


def build_requirements(candidate: Mapping[str, Any], wheels: Mapping[str, Path]) -> str:
    """Return what the build environment is made of: PyTorch as it will run, and the locked build requirements."""
    torch = closure(["torch", "numpy"], entries(candidate["requirements"]), wheels)
    # Where both name a package (setuptools), building has its own needs. PyTorch is what this is about.
    both = {**torch, **entries(candidate["build_requirements"])}
    both.update((name, torch[name]) for name in TORCH_FAMILY if name in torch)
    return "".join(both[name] for name in sorted(both))


def cached(work: Path) -> dict[str, str]:
    """Return the environment of uv: its cache is the job's, with which the release shares files."""
    return {"UV_CACHE_DIR": str(work / "cache"), "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}


def build_environment(candidate: Mapping[str, Any], work: Path, tools: Mapping[str, Any], run: Run, say: Say) -> Path:
    """Have the build environment. Return its folder."""
    build, folders = work / "build", [work / "wheels", work / "build" / "wheels"]
    venv, wanted = build / "venv", build / "requirements.txt"
    text = build_requirements(candidate, wheels_of(*folders))
    complete = venv / "complete"
    if not complete.exists() or complete.read_text(encoding="utf-8") != text:
        say("making the build environment")
        build.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(venv, ignore_errors=True)
        wanted.write_text(text, encoding="utf-8")
        python = str(tools.get("python") or candidate["python"])
        run([tools["uv"], "venv", "--quiet", "--no-project", "--no-config", "--python", python, venv], cached(work))
        find = [word for folder in folders if folder.is_dir() for word in ("--find-links", folder)]
        run(
            [
                *(tools["uv"], "pip", "install", "--no-config", "--offline", "--no-index", *find),
                *("--no-deps", "--require-hashes", "--python", venv / "bin" / "python", "--requirement", wanted),
            ],
            cached(work),
        )
        complete.write_text(text, encoding="utf-8")
    return venv


def in_environment(venv: Path) -> dict[str, str]:
    """Return the variables with which the programs of the build environment, and of the CUDA toolkit, are found."""
    cuda = ["/usr/local/cuda/bin"] if os.path.isdir("/usr/local/cuda/bin") else []
    return {
        "VIRTUAL_ENV": str(venv),
        "PATH": ":".join([str(venv / "bin"), *cuda, os.environ.get("PATH") or "/usr/bin:/bin"]),
    }


def build_variables(
    source: Mapping[str, Any], work: Path, venv: Path, settings: Mapping[str, Any], there: Room
) -> tuple[dict[str, str], str]:
    """Return the environment that vLLM is compiled in, and how the number of jobs came about.

    Args:
        source: the candidate's C(source).
        work: the folder of the job.
        venv: the build environment.
        settings: the user's C(max_jobs), C(nvcc_threads) and C(environment); they win.
        there: what the container may use.
    """
    own = {**source.get("environment", {}), **(settings.get("environment") or {})}
    if settings.get("nvcc_threads"):
        own["NVCC_THREADS"] = settings["nvcc_threads"]
    wanted = str(settings.get("max_jobs") or own.get("MAX_JOBS") or "")
    count, text = jobs(there, float(source.get("memory_per_job_gb") or 0), wanted)
    releases = work.parent.parent
    variables = {
        **in_environment(venv),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(count),
        "NVCC_THREADS": "1",
        "FETCHCONTENT_BASE_DIR": str(work / "build" / "deps"),
        # Kept beside the releases, for the next one. Its folder has another name each time.
        "CCACHE_DIR": str(releases / ".ccache"),
        "CCACHE_BASEDIR": str(work),
        "CCACHE_NOHASHDIR": "true",
        # The one for all releases, and the one that newer releases take as it is.
        "SETUPTOOLS_SCM_PRETEND_VERSION": source["version"],
        "VLLM_VERSION_OVERRIDE": source["version"],
        **{name: str(value) for name, value in own.items()},
        "MAX_JOBS": str(count),
    }
    return variables, text


# --- building --------------------------------------------------------------------------------------------------------


class Compiling:
    """Watches a build: its stages and ninja's count become progress, the compiler's complaints are kept."""

    # What a line begins with, and what is going on then.
    STAGES = (
        ("running build_py", "copying the Python files"),
        ("running build_ext", "configuring"),
        ("-- Build files have been written", "compiling"),
        ("running build_rust", "compiling Rust"),
        ("creating '", "packing the wheel"),
    )
    TROUBLE = re.compile(
        r"\berror:|\bFAILED:|CMake Error|Killed|ninja: (error|fatal)|out of memory|No space left|^error\b|^fatal:",
        re.IGNORECASE,
    )

    def __init__(self, what: str, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self.what = what
        self.say = say
        self.clock = clock
        self.total = self.first = 0
        self.began = 0.0
        self.trouble: list[str] = []

    def __call__(self, line: str) -> None:
        """Look at a line of output."""
        if found := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
            self.count(int(found[1]), int(found[2]), found[3])
        for begin, stage in self.STAGES:
            if line.startswith(begin):
                self.say(f"building {self.what}", stage)
        if self.TROUBLE.search(line):
            self.trouble.append(line.strip())

    def count(self, done: int, total: int, text: str) -> None:
        """Say how far ninja is, and how long the rest will take if it takes as long as what was done."""
        now = self.clock()
        if total != self.total:
            self.total, self.first, self.began = total, done, now
        file = re.sub(r"^\w+ (?:\w+ )?object \S*?\.dir/|\.o$", "", text)
        detail = f"[{done}/{total}] {file}"
        passed = now - self.began
        if done - self.first >= 3 and passed > 30:
            minutes = passed / (done - self.first) * (total - done) / 60
            detail += f", about {max(1, round(minutes))} min left"
        self.say(f"building {self.what}", detail)


# A compiler's words, and what to do about them.
REMEDIES = (
    (
        r"Killed signal terminated program|compiler error: Killed|: Killed|out of memory|Cannot allocate memory",
        "The memory did not last. Give the container more (memory_mb), or let fewer compilers run "
        "(vllm_stack_max_jobs).",
    ),
    (r"No space left on device", "The container's disk is full: give it more room (storage_size_gb) and run again."),
    (
        r"Unsupported gpu architecture|unsupported gpu architecture",
        "The container's CUDA toolkit is older than the GPU architecture of the stack: install a newer one.",
    ),
    (
        r"unsupported GNU version|-- unsupported clang version",
        "The container's g++ is newer than its CUDA toolkit knows. Name another in the stack's build.environment "
        "(NVCC_PREPEND_FLAGS: -ccbin=g++-12) and in build.packages.",
    ),
    (
        r"nvcc: (?:command )?not found|nvcc not found|CUDA_HOME is not set|Failed to find nvcc|No CUDA toolset found"
        r"|CUDA_HOME environment variable is not set",
        "The container has no CUDA toolkit. Add the feature nvidia before vllm.",
    ),
    (
        r"fatal error: (\S+\.h\w*): No such file or directory",
        "The header {0} is missing: list the distribution's package that has it in the stack's build.packages.",
    ),
    (
        r"No CMAKE_CXX_COMPILER could be found|command '?(?:gcc|g\+\+|x86_64-linux-gnu-g\S+)'? failed: No such file",
        "The container has no C++ compiler: list g++ in the stack's build.packages.",
    ),
    (
        r"Failed to clone repository|Could not resolve host|unable to access 'https?://([^']+)",
        "The build fetches further sources by git and did not reach them. Check the container's network, or name a "
        "local copy in the stack's build.environment (VLLM_CUTLASS_SRC_DIR, FETCHCONTENT_SOURCE_DIR_…).",
    ),
)


def remedy(lines: Sequence[str]) -> str:
    """Return what to do about a build's complaints, C("") when nobody knows."""
    text = "\n".join(lines)
    for pattern, advice in REMEDIES:
        if found := re.search(pattern, text):
            return advice.format(*found.groups())
    return ""


def build_wheels(candidate: Mapping[str, Any], work: Path, tools: Mapping[str, Any], run: Run, say: Say) -> list[Path]:
    """Have the wheels that aren't published.

    Args:
        candidate: what is installed.
        work: the folder of the job.
        tools: C(uv), the program; C(python), what uv is told to use (the candidate's version when it isn't there);
            C(build), the user's C(max_jobs), C(nvcc_threads) and C(environment).
        run: runs a program; raises JobError when it fails.
        say: sets the progress.

    Returns:
        The wheels, in the folder C(wheels).
    """
    sources = sdists(work / "wheels")
    if not sources and not candidate["source"]:
        return []
    venv = build_environment(candidate, work, tools, run, say)
    made = []
    for path in sources:
        name = stack.normal(path.name.rsplit("-", 1)[0])
        try:
            made.append(build(Building(name, path.name, path, in_environment(venv)), work, venv, tools, run, say))
        except JobError as error:
            if error.remedy:
                raise
            # It won't build the next time either; another candidate may have another version of it, or do without.
            advice = f"Read the log, or lock another version of {name}."
            raise Refused(error.message, error.piece, advice, error.tail) from error
    if candidate["source"]:
        made.append(build_vllm(candidate, work, venv, tools, run, say))
    return made


def sdists(wheels: Path) -> list[Path]:
    """Return the source distributions in a folder of wheels."""
    return sorted(path for path in wheels.iterdir() if path.name.endswith((".tar.gz", ".zip")))


def build_vllm(
    candidate: Mapping[str, Any], work: Path, venv: Path, tools: Mapping[str, Any], run: Run, say: Say
) -> Path:
    """Have vLLM's wheel from its tree."""
    source = candidate["source"]
    variables, sentence = build_variables(source, work, venv, tools.get("build") or {}, room())
    notes = [f"compiled with {sentence}"]
    precompiled = None
    if source.get("precompiled"):
        precompiled = precompiled_wheel(source["precompiled"], work)
        variables.update(VLLM_USE_PRECOMPILED="1", VLLM_PRECOMPILED_WHEEL_LOCATION=str(precompiled))
        notes = [f"compiled code taken from {precompiled.name}"]
    elif variables.get("VLLM_TARGET_DEVICE") == "empty":
        notes = ["nothing compiled"]
    say(f"building vLLM {candidate['vllm']}", notes[0])
    variables["SETUPTOOLS_SCM_PRETEND_VERSION"] = pretended(source["version"], work / "src", venv, variables, run)
    # Only objects are worth keeping. What a killed build copied half would count as up to date.
    for pattern in ("lib*", "bdist*"):
        for folder in (work / "src" / "build").glob(pattern):
            shutil.rmtree(folder)
    made_of = read_json(work / "build" / "source.json")
    removed = made_of.get("removed", [])
    # Of a tag, too, the commit is written down.
    origin = f"{source['repository']}@{made_of.get('commit') or source['commit']}"
    what = Building("vllm", origin, work / "src", variables, notes, removed)

    def finish(wheel: Path) -> None:
        if precompiled and source.get("overlay"):
            added = overlay(wheel, precompiled, source["overlay"])
            notes.append(f"{', '.join(added)} from {precompiled.name}")

    return build(what, work, venv, tools, run, say, finish)


def pretended(version: str, tree: Path, venv: Path, variables: Mapping[str, str], run: Run) -> str:
    """Return the version to give to vLLM's build so that it comes to the wanted one.

    Many releases add what they are built for to the version that they are given, "+cpu" or "+cu130". Which, only they
    know; asked before the compilation, not hours later.
    """
    output = run([venv / "bin" / "python", "setup.py", "--quiet", "--version"], environment=variables, cwd=tree)
    found = (output.split() or [""])[-1]
    added = found.removeprefix(version)[1:]
    if found == version:
        return version
    if found.startswith(version) and added and version.endswith((f"+{added}", f".{added}")):
        return version[: -len(added) - 1]
    raise JobError(
        f"The stack says vLLM {version}, and what would be built here calls itself {found or 'nothing'}.",
        "vllm",
        f"Set vllm.version to {found}." if found.startswith(version) else "Correct vllm.version or vllm.commit.",
    )


def precompiled_wheel(requirement: str, work: Path) -> Path:
    """Return the wheel whose compiled code is used."""
    for name in stack.pins(requirement):
        if wheel := wheels_of(work / "build" / "wheels").get(name):
            return wheel
    raise JobError(
        f"The precompiled wheel of the stack was not downloaded: {requirement.split()[0]}.", "vllm", "Run again."
    )


@dataclass
class Building:
    """Something to build.

    Attributes:
        name: the distribution's name.
        origin: where its sources are from, for the record.
        sources: a folder, or a source distribution.
        variables: the environment it is built in.
        notes: how it was built, sentences for the record.
        removed: what was taken out of the sources.
    """

    name: str
    origin: str
    sources: Path
    variables: Mapping[str, str]
    notes: Sequence[str] = ()
    removed: Sequence[str] = ()


def build(
    what: Building,
    work: Path,
    venv: Path,
    tools: Mapping[str, Any],
    run: Run,
    say: Say,
    finish: Callable[[Path], None] = lambda wheel: None,
) -> Path:
    """Have the wheel of something, in the folder of wheels. What was built before isn't built again.

    A candidate with another FlashInfer takes the same vLLM, so what another one has built here counts, too.

    Args:
        what: what is built.
        work: the folder of the job.
        venv: the build environment.
        tools: uv.
        run: runs a program.
        say: sets the progress.
        finish: is called with the wheel before it counts as built.
    """
    made_from = inputs(what, work)
    records = built(work)
    for folder in (work, *sorted(path for path in work.parent.iterdir() if path != work)):
        for name, record in built(folder).items():
            path, final = folder / "wheels" / name, work / "wheels" / name
            if record.get("inputs") == made_from and path.exists() and sha256_of(path) == record["sha256"]:
                if folder != work:
                    final.unlink(missing_ok=True)
                    os.link(path, final)
                    write_json(work / "build" / "built.json", {**records, name: record})
                return final
    out = work / "build" / "out"
    shutil.rmtree(out, ignore_errors=True)
    watch, began = Compiling(what.name, say), time.monotonic()
    command = [tools["uv"], "build", "--wheel", "--no-build-isolation", "--no-config", "--offline"]
    try:
        run(
            [*command, "--python", venv / "bin" / "python", "--out-dir", out, what.sources],
            environment={**cached(work), **what.variables},
            watch=watch,
        )
    except JobError as error:
        # The first complaint is the cause, what follows are its effects.
        words = [*watch.trouble, *error.tail]
        complaint = next((line for line in watch.trouble if "error:" in line.lower()), "") or words[0] if words else ""
        raise JobError(
            f"Building {what.name} from {what.origin} failed: {complaint}",
            what.name,
            remedy(words) or error.remedy,
            [*watch.trouble[:6], *error.tail],
        ) from error
    wheels = sorted(out.glob("*.whl"))
    if len(wheels) != 1:
        raise JobError(
            f"Building {what.name} made {len(wheels)} wheels instead of one.", what.name, "Read the log for why."
        )
    finish(wheels[0])
    final = work / "wheels" / wheels[0].name
    os.replace(wheels[0], final)
    records[final.name] = {
        "from": what.origin,
        "inputs": made_from,
        "seconds": round(time.monotonic() - began),
        "sha256": sha256_of(final),
        "notes": list(what.notes),
        "removed": list(what.removed),
    }
    write_json(work / "build" / "built.json", records)
    return final


# Where a build finds its programs and how many run at once makes no difference to what comes of it.
_INDIFFERENT = re.compile(
    r"PATH|VIRTUAL_ENV|MAX_JOBS|NVCC_THREADS|CMAKE_BUILD_PARALLEL_LEVEL|FETCHCONTENT_BASE_DIR|S?CCACHE_\w+"
)


def inputs(what: Building, work: Path) -> str:
    """Return a digest of what a wheel is made from: its sources, the variables of the build and its environment."""
    variables = {
        name: value.replace(str(work), "") for name, value in what.variables.items() if not _INDIFFERENT.fullmatch(name)
    }
    try:
        environment = (work / "build" / "requirements.txt").read_text(encoding="utf-8")
    except FileNotFoundError:
        environment = ""
    text = json.dumps([what.origin, variables, list(what.removed), environment], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def built(work: Path) -> dict[str, Any]:
    """Return what was built so far: wheel → C(from), C(inputs), C(seconds), C(sha256), C(notes), C(removed)."""
    return read_json(work / "build" / "built.json")


def overlay(wheel: Path, other: Path, patterns: Sequence[str]) -> list[str]:
    """Put files of another wheel into a wheel, replacing those that are there. Return their names.

    Args:
        wheel: the wheel that gets them.
        other: the wheel that has them.
        patterns: which, as shell patterns on whole paths.

    Raises:
        JobError: a pattern fits nothing.
    """
    with zipfile.ZipFile(other) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and ".dist-info/" not in name]
        chosen = {name: archive.getinfo(name) for name in names if any(fnmatch.fnmatch(name, one) for one in patterns)}
        for pattern in patterns:
            if not any(fnmatch.fnmatch(name, pattern) for name in chosen):
                raise JobError(f"{other.name} has no file {pattern}.", "vllm", "Correct build.overlay.")
        temporary = wheel.with_suffix(".new")
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as new:
            record = next(name for name in old.namelist() if re.fullmatch(r"[^/]+\.dist-info/RECORD", name))
            lines = [line for line in old.read(record).decode().splitlines() if line.split(",")[0] not in chosen]
            for info in old.infolist():
                if info.filename not in chosen and info.filename != record:
                    new.writestr(info, old.read(info), compresslevel=1)
            for name, info in sorted(chosen.items()):
                content = archive.read(info)
                new.writestr(info, content, compresslevel=1)
                digest = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                lines.append(f"{name},sha256={digest},{len(content)}")
            new.writestr(old.getinfo(record), "\n".join(lines) + "\n")
    os.replace(temporary, wheel)
    return sorted(chosen)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one when there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)
