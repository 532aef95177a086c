# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs without a module, whose run_command it can't have.
# pylint: disable=ansible-bad-function
"""Installs one candidate as a release: the program of the transient unit C(vllm_release.service).

It runs in the container on the standard library alone, outside of Ansible, and goes on when the play that started it is
gone. What was done is found on the disk, so that a job that was killed anywhere is started again and goes on.

    python3 -m ansible_collections.phoenix.hypervisor.plugins.module_utils.release_job <job.json>
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import release_bytecode, release_fetch, release_gates, release_plan, release_source
from .release_plan import JobError, Refused

TAIL = 12
# A build says a lot; its beginning is in the log.
KEPT_LINES = 20_000
CONFIGURATION = ("/etc/pip.conf", "/etc/uv/uv.toml")
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
REFUSED = "refused.json"


def read_json(path: str | Path, kind: type = dict) -> Any:
    """Return the object (or what else C(kind) says) in a JSON file, C(None) when there is none that can be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, kind) else None


def write_json(path: str | Path, content: Any, mode: int = 0o644, durable: bool = True) -> None:
    """Write a JSON file in one step.

    Args:
        path: where.
        content: what.
        mode: who may read it.
        durable: whether it must be there after a power failure, too.
    """
    temporary = f"{path}.new"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(temporary, path)


def whole_wheelhouse(wheels: Path, release: str) -> bool:
    """Return whether a wheelhouse says that it is complete, and has all of its files. Hashes are checked when used."""
    manifest = read_json(wheels / MANIFEST) or {}
    return manifest.get("release") == release and all((wheels / name).is_file() for name in manifest["files"])


def first_progress(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the progress of a job is before it says something."""
    return {
        "job": job["id"], "release": job["candidate"]["release"], "state": "running", "phase": "", "text": "starting",
        "detail": "", "began": time.time(), "since": time.time(), "log": job["log"],
    }  # fmt: skip


class Job:
    """One installation: what it is for, where it works, what it says.

    Args:
        job: the content of C(job.json): C(id), C(candidate), C(refused), C(places), C(build), C(environment),
            C(releases), C(log), C(keep_wheels).
        work: the folder that it works in.
    """

    def __init__(self, job: Mapping[str, Any], work: Path) -> None:
        self.job = job
        self.candidate = job["candidate"]
        self.work = work
        self.wheels = work / "wheels"
        self.releases = Path(job["releases"])
        self.release = self.releases / self.candidate["release"]
        self.seconds: dict[str, float] = {}
        self.manifest: dict[str, Any] = {}
        self.tools: dict[str, str] = {}
        self.found: list[str] = []
        self._lock = threading.Lock()
        # So that the last words find room on a disk that is full.
        self._reserve = work / "reserve"
        self._reserve.write_bytes(b"." * 65536)
        self._log = open(job["log"], "a", encoding="utf-8", errors="replace")  # noqa: SIM115 - open for all its life
        self._progress = first_progress(job)

    # --- what it says ---------------------------------------------------------------------------------------------

    def say(self, text: str, detail: str = "") -> None:
        """Set the progress that people see."""
        with self._lock:
            if text != self._progress["text"]:
                self._progress["since"] = time.time()
                self.write(f"{time.strftime('%H:%M:%S')} {self.candidate['release']}: {text}\n")
            self._progress.update(text=text, detail=detail)
            self._save()

    def end(self, state: str, error: JobError | None = None) -> None:
        """Write down how it ended."""
        with self._lock:
            self._reserve.unlink(missing_ok=True)
            if error:
                words = {"message": error.message, "piece": error.piece, "remedy": error.remedy, "tail": error.tail}
                self._progress["error"] = words
                self.write(f"{state}: {error.message} {error.remedy}\n")
            self._progress["state"] = state
            self._save()

    def _save(self) -> None:
        write_json(self.work / PROGRESS, self._progress, durable=False)

    def write(self, text: str) -> None:
        """Write to the log. One that finds no room is no reason to fail."""
        with contextlib.suppress(OSError):
            self._log.write(text)
            self._log.flush()

    def run(
        self,
        argv: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        watch: Callable[[str], None] | None = None,
    ) -> str:
        """Run a program with its output in the log, and return the output.

        Args:
            argv: the program and its arguments.
            environment: variables to set besides those that are there.
            cwd: the folder that it runs in.
            watch: is called with every line of output as it comes.

        Raises:
            JobError: it failed.
        """
        command = [str(word) for word in argv]
        shown = " ".join(word if "\n" not in word else "…" for word in command)
        self.write(release_plan.without_secrets(f"+ {shown}\n"))
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise JobError(f"{command[0]} can't be run: {error.strerror}.") from None
        with process:
            for line in process.stdout:
                self.write(line)
                lines.append(line)
                if watch:
                    watch(line.rstrip("\n"))
        output = "".join(lines)
        if process.returncode:
            how = f"exit code {process.returncode}"
            if process.returncode < 0:
                how = f"killed by signal {-process.returncode}"
                how += ", often because the container's memory was not enough" if process.returncode == -9 else ""
            name = " ".join(command[:1] if command[0].endswith("python") else command[:3])
            raise JobError(
                f"{name} failed ({how}).",
                "",
                release_plan.explain(output, self.candidate["python"]),
                [release_plan.without_secrets(line) for line in release_plan.last_lines(output, TAIL)],
            )
        return output

    # --- what it does ---------------------------------------------------------------------------------------------

    def phases(self) -> None:
        """Do everything that isn't done yet, in order."""
        whole = whole_wheelhouse(self.wheels, self.candidate["release"])
        phases = [("machine", self.check_machine)]
        phases += [("check", self.check_wheels)] if whole else []
        phases += [("tools", self.bring_tools), ("python", self.find_python)]
        phases += [] if whole else [("fetch", self.fetch), ("build", self.build), ("manifest", self.write_manifest)]
        phases += [("venv", self.make_venv), ("install", self.install)]
        phases += [("gates", self.gate), ("bytecode", self.keep_bytecode), ("record", self.record)]
        for name, phase in phases:
            began = time.monotonic()
            self._progress["phase"] = name
            phase()
            self.seconds[name] = time.monotonic() - began

    def check_machine(self) -> None:
        """Refuse what can't run here before anything is downloaded for it."""
        release_gates.machine(self.candidate, release_gates.Look(self.run))

    def check_wheels(self) -> None:
        """Make sure that the files of a complete wheelhouse are what its manifest says."""
        self.say("checking the packages that are here")
        self.manifest = read_json(self.wheels / MANIFEST)
        files = self.manifest["files"]
        with release_fetch.ThreadPoolExecutor(os.cpu_count()) as pool:
            found = dict(zip(files, pool.map(lambda name: release_fetch.sha256_of(self.wheels / name), files)))
        damaged = [name for name in files if found[name] != files[name]]
        if damaged:
            for name in (*damaged, MANIFEST):
                (self.wheels / name).unlink()
            raise JobError(
                f"{damaged[0]} isn't what the wheelhouse's manifest says (another hash); it was removed.",
                "wheelhouse",
                "Run again: what is missing is downloaded or built.",
            )

    def bring_tools(self) -> None:
        """Have the stack's uv: it is one program in a wheel."""
        version = self.candidate["uv"]["version"]
        folder = self.releases / f".uv-{version}"
        self.tools = {"uv": str(folder / "bin/uv")}
        locked = release_fetch.Locked("uv", version, frozenset(self.candidate["uv"]["hashes"]))
        if not self.manifest:
            self.say(f"getting uv {version}")
            wheel = next(iter(self.fetcher().fetch([locked], self.neighbours())))
        else:
            wheel = next((name for name in self.manifest["files"] if name.startswith("uv-")), "")
        if folder.is_dir():
            return
        temporary = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "bin").mkdir(parents=True)
        with zipfile.ZipFile(self.wheels / wheel) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/scripts/uv")), None)
            if not member:
                raise JobError(f"{wheel} has no program uv in it.", "uv", "Lock another version of uv in the stack.")
            with archive.open(member) as source, open(temporary / "bin/uv", "wb") as target:
                shutil.copyfileobj(source, target)
        (temporary / "bin/uv").chmod(0o755)
        os.replace(temporary, folder)

    def find_python(self) -> None:
        """Have the Python that the stack is locked for: the container's own, else one that uv brings."""
        wanted = self.candidate["python"]
        find = [self.tools["uv"], "python", "find", "--no-project", wanted]
        offline = {**self.uv_environment(), "UV_PYTHON_DOWNLOADS": "never"}
        try:
            output = self.run(find, offline)
        except JobError:
            self.say(f"getting Python {wanted}")
            install = [self.tools["uv"], "python", "install", "--no-bin", wanted]
            mirror = self.job["places"].get("python_mirror")
            more = {"UV_PYTHON_INSTALL_MIRROR": mirror} if mirror else {}
            cache = {"UV_PYTHON_CACHE_DIR": str(self.wheels / "python")}
            try:
                self.run(install, {**self.uv_environment(), **cache, **more})
            except JobError as error:
                error.message = f"The container has no Python {wanted}, and uv could not get one: {error.message}"
                error.piece = "python"
                error.remedy = release_plan.explain("no python", wanted)
                raise
            output = self.run(find, offline)
        self.tools["python"] = release_plan.last_lines(output, 1)[0]

    def uv_environment(self) -> dict[str, str]:
        """Return the environment of uv. Its cache is on the release's disk: packages are unpacked once and linked."""
        return {
            "UV_CACHE_DIR": str(self.work / "cache"),
            "UV_PYTHON_INSTALL_DIR": str(self.releases / ".python"),
            "UV_NO_PROGRESS": "1",
            # With this variable set Python would not keep what it compiles.
            "PYTHONDONTWRITEBYTECODE": "",
        }

    def neighbours(self) -> list[Path]:
        """Return the wheelhouses of other candidates that are here: most of their files are the same."""
        return [folder for folder in self.work.parent.glob("*/wheels") if folder != self.wheels]

    def fetcher(self, folder: Path | None = None) -> release_fetch.Fetcher:
        """Return what brings packages into a folder, the wheelhouse if nothing else is said."""
        places = self.job["places"]
        extra = places.get("torch_index") or self.candidate.get("torch_index") or ""
        return release_fetch.Fetcher(
            release_fetch.read_settings(places, os.environ, CONFIGURATION),
            [extra] if extra else [],
            self.candidate["python"],
            folder or self.wheels,
            self.say,
        )

    def fetch(self) -> None:
        """Bring all that is downloaded."""
        self.say("downloading packages")
        (self.wheels / MANIFEST).unlink(missing_ok=True)
        files = self.fetcher().fetch(release_fetch.parse_lock(self.candidate["requirements"]), self.neighbours())
        uv = next(self.wheels.glob("uv-*.whl"))
        self.manifest = {"files": {**files, uv.name: release_fetch.sha256_of(uv)}, "built": {}}
        precompiled = self.candidate.get("source", {}).get("precompiled") or ""
        locks = (self.candidate.get("build_requirements", ""), precompiled)
        entries = dict.fromkeys(entry for lock in locks for entry in release_fetch.parse_lock(lock))
        if entries:
            self.say("downloading what building needs")
            self.fetcher(self.work / "build/wheels").fetch(list(entries), [self.wheels, *self.neighbours()])

    def build(self) -> None:
        """Build the wheels that nobody publishes: vLLM's, and those of locked source distributions."""
        sources = [name for name in self.manifest["files"] if not name.endswith(".whl")]
        if self.candidate["method"] == "source":
            release_source.prepare(self.candidate, self.work, self.run, self.say)
        elif not sources:
            return
        tools = {**self.tools, "build": self.job.get("build") or {}}
        made = release_source.build_wheels(self.candidate, self.work, tools, self.run, self.say)
        records = release_source.built(self.work)
        for name in sources:
            del self.manifest["files"][name]
        for path in made:
            record = {**records[path.name], "from": release_plan.without_secrets(records[path.name]["from"])}
            self.manifest["files"][path.name] = record["sha256"]
            self.manifest["built"][path.name] = record

    def write_manifest(self) -> None:
        """Write down that the wheelhouse is complete, and with what. Nothing else stays in it."""
        self.manifest.update(release=self.candidate["release"], python=self.candidate["python"])
        # What only this container lacks says nothing of the next one.
        self.manifest["refused"] = {
            name: why for name, why in self.job.get("refused", {}).items()
            if name != self.candidate["release"] and why.get("piece") not in release_gates.MACHINE
        }
        for path in self.wheels.iterdir():
            if path.is_file() and path.name not in self.manifest["files"]:
                path.unlink()
        # An interpreter that uv had to bring, so that the next container needs no network for it either.
        for path in self.wheels.glob("python/*.tar.*"):
            self.manifest["files"][f"python/{path.name}"] = release_fetch.sha256_of(path)
        sync(self.wheels)
        write_json(self.wheels / MANIFEST, self.manifest)

    def make_venv(self) -> None:
        """Make the release's folder anew, whatever was there: it has no record."""
        release_gates.wheelhouse(self.candidate, self.wheels)
        self.say("making room for the release")
        shutil.rmtree(self.release, ignore_errors=True)
        if self.release.is_symlink() or self.release.exists():
            raise JobError(f"{self.release} can't be removed.", "", "Remove it by hand and run again.")
        self.room()
        self.run(
            [self.tools["uv"], "venv", "--no-project", "--python", self.tools["python"], self.release],
            {**self.uv_environment(), "UV_OFFLINE": "1"},
        )

    def room(self) -> None:
        """Make sure that what is in the wheels finds room on the disk."""
        size = 0
        for name in self.manifest["files"]:
            if name.endswith(".whl"):
                try:
                    with zipfile.ZipFile(self.wheels / name) as archive:
                        size += sum(member.file_size for member in archive.infolist())
                except zipfile.BadZipFile:
                    raise JobError(f"{name} is no wheel.", name, "Lock another file of it.") from None
        free = shutil.disk_usage(self.releases).free
        # A tenth more for what Python compiles.
        if size * 1.1 > free:
            raise JobError(
                f"The container's disk has not enough room: the release takes about {size * 1.1 / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free.",
                "disk",
                "Give it more room (storage_size_gb), or keep fewer releases (vllm_stack_keep), and run again.",
            )

    def install(self) -> None:
        """Install the wheels of the lock into the release, each with its hash, from the wheelhouse and nowhere else."""
        self.say("installing packages")
        lock = self.release / "requirements.lock"
        lock.write_text(self.lock(), encoding="utf-8")
        self.run(
            [
                *(self.tools["uv"], "pip", "install", "--python", self.release / "bin/python"),
                *("--offline", "--no-index", "--find-links", self.wheels, "--no-deps", "--require-hashes"),
                *("--no-config", "--requirement", lock),
            ],
            self.uv_environment(),
        )
        site = next(self.release.glob("lib/python3*/site-packages"))
        for name, version in sorted(self.candidate.get("aliases", {}).items()):
            # As wheels are named: with a dash in its name it would not be found by it.
            entry = site / f"{release_fetch.normalized(name).replace('-', '_')}-{version}.dist-info"
            entry.mkdir()
            (entry / "METADATA").write_text(release_plan.alias_metadata(name, version), encoding="utf-8")
            (entry / "INSTALLER").write_text("phoenix.hypervisor\n", encoding="utf-8")
            names = ("METADATA", "INSTALLER", "RECORD")
            (entry / "RECORD").write_text("".join(f"{entry.name}/{file},,\n" for file in names), encoding="utf-8")
        if release_bytecode.NAME in self.manifest["files"]:
            count = release_bytecode.unpack(self.wheels / release_bytecode.NAME, self.release)
            self.write(f"{count} modules come compiled\n")

    def lock(self) -> str:
        """Return the lock of what is installed: each package with the one file that is here."""
        entries = release_fetch.parse_lock(self.candidate["requirements"])
        by_hash = {digest: name for name, digest in self.manifest["files"].items()}
        lines = []
        for entry in entries:
            name = next((by_hash[digest] for digest in sorted(entry.hashes) if digest in by_hash), "")
            if name.endswith(".whl"):
                lines.append((str(entry), self.manifest["files"][name]))
        for name in self.manifest.get("built", {}):
            package, version = name.split("-")[:2]
            lines.append((f"{release_fetch.normalized(package)}=={version}", self.manifest["files"][name]))
        return "".join(f"{line} \\\n    --hash=sha256:{digest}\n" for line, digest in sorted(lines))

    def gate(self) -> None:
        """Make sure that the release is what it should be, before it can go live."""
        self.say("trying the release")
        # What was unpacked goes to the disk meanwhile.
        flush = threading.Thread(target=sync, args=(self.releases,), daemon=True)
        flush.start()
        self.found = release_gates.gates(self.candidate, self.release, self.wheels, release_gates.Look(self.run))
        flush.join()

    def keep_bytecode(self) -> None:
        """Put what Python compiled into the wheelhouse, where somebody fetches it for the next container."""
        if not self.job.get("keep_wheels") or release_bytecode.NAME in self.manifest["files"]:
            return
        path = self.wheels / release_bytecode.NAME
        release_bytecode.pack(self.release, path)
        self.manifest["files"][path.name] = release_fetch.sha256_of(path)
        write_json(self.wheels / MANIFEST, self.manifest)

    def record(self) -> None:
        """Write down that the release is complete."""
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        built = self.manifest.get("built")
        content = release_plan.record(
            self.candidate, self.job.get("refused", {}), self.seconds, finished, built, self.found
        )
        sync(self.releases)
        write_json(self.release / release_plan.RECORD, content)
        for folder in ("cache", "src", "build", "lib"):
            shutil.rmtree(self.work / folder, ignore_errors=True)


def sync(folder: Path) -> None:
    """Have a file system write down what it was given, so that a power failure doesn't leave empty files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)


def refuse(job: Job, error: Refused) -> None:
    """Write down that a candidate was refused. Its folder goes: it would never go live."""
    path = job.releases / REFUSED
    refused = read_json(path) or {}
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    refused[job.candidate["release"]] = {
        "piece": error.piece, "message": error.message, "remedy": error.remedy, "at": at,
    }  # fmt: skip
    write_json(path, refused)
    shutil.rmtree(job.release, ignore_errors=True)


def main(path: Path) -> int:
    """Do a job. Return the exit code."""
    content = read_json(path)
    if content is None:
        sys.stderr.write(f"{path} can't be read.\n")
        return 2
    os.environ.update(content.get("environment", {}))
    try:
        job = Job(content, path.parent)
    except OSError as error:
        sys.stderr.write(f"{error.filename or path.parent}: {error.strerror}\n")
        return 2
    try:
        job.say("starting")
        job.phases()
    except Refused as error:
        refuse(job, error)
        job.end("refused", error)
        return 0
    except JobError as error:
        job.end("failed", error)
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        job.end("failed", JobError(f"{error.strerror or error}{where}.", "", release_plan.explain(str(error))))
        return 1
    job.end("done")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
