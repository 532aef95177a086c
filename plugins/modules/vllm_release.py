#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_release
short_description: Install a release of a vLLM stack and make it the live one
version_added: 0.1.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - A release is a folder (a Python virtual environment) below O(releases), named by the digest of what decides its
    content. It is installed beside the live one, tried, and then made the live one by moving the link O(link) in one
    step.
  - The candidates of a stack are tried in order. One that a gate refuses is written down with the reason, and the next
    one is tried.
  - What takes long is done in the background by the transient unit C(vllm_release.service), which goes on when the play
    is stopped; the next run finds it, or goes on with what it left. The task shows how far it is.
  - A folder whose installation did not finish is recognised (it has no C(release.json)) and installed again.
  - A plain folder at O(link), of the time before releases, becomes a release as it is, and can be gone back to.
  - Runs where the model server runs, in the container. Needs systemd and Python there, neither pip nor a compiler for a
    stack of wheels.
options:
  candidates:
    description:
      - The ways to install the stack, the best first, as the lookup P(phoenix.hypervisor.stack#lookup) gives them.
    type: list
    elements: dict
    default: []
  release:
    description:
      - The name of a release that is there, or V(previous) for the one that was live before the live one. It is made
        the live one, and nothing is installed.
      - With V(previous) every run switches; a name is what may stay in a play.
    type: str
    default: ""
  releases:
    description: The folder of the releases.
    type: path
    default: /opt/vllm-releases
  link:
    description: The link to the live release.
    type: path
    default: /opt/vllm
  log:
    description: The file that the output of installations goes to, as it comes.
    type: path
    default: /var/log/vllm-release.log
  keep:
    description:
      - How many releases stay, the live one included. The one before the live one stays in any case, and those that
        a process uses.
    type: int
    default: 3
  keep_wheels:
    description:
      - Whether the wheels of an installation stay in the container, for P(phoenix.hypervisor.vllm_store#module).
    type: bool
    default: false
  retry:
    description: Whether candidates that a gate refused are tried again.
    type: bool
    default: false
  refresh:
    description:
      - Whether the commit of a branch (a stack whose commit is C(main)) is asked for again. Otherwise it stays what it
        was when it was asked first.
    type: bool
    default: false
  places:
    description:
      - Where packages come from, besides what the container's own settings for pip and uv say.
    type: dict
    default: {}
    suboptions:
      index:
        description: URL of an index that is asked in place of the container's first one.
        type: str
        default: ""
      torch_index:
        description: URL of an index that has PyTorch's wheels, in place of PyTorch's own.
        type: str
        default: ""
      python_mirror:
        description: URL of a mirror of Python builds, for uv, where the container has no such Python.
        type: str
        default: ""
      find_links:
        description: A folder in the container, or the URL of a page, that has packages. Several with blanks between.
        type: str
        default: ""
  build:
    description: How packages are built.
    type: dict
    default: {}
    suboptions:
      max_jobs:
        description: How many compilers run at the same time, V(0) for what memory and cores allow.
        type: int
        default: 0
      nvcc_threads:
        description: How many threads each of them has, V(0) for what the build says.
        type: int
        default: 0
      time_limit:
        description: Seconds that an installation may take, a build included.
        type: int
        default: 21600
      environment:
        description: Environment variables of the build, which win over those of the stack.
        type: dict
        default: {}
  refused:
    description:
      - Candidates that a gate refused where the wheels were made, and why, as M(phoenix.hypervisor.vllm_store) returns
        them. They are not tried here.
    type: dict
    default: {}
  wait:
    description:
      - How many seconds this module waits for the background at most, before it returns with RV(running). The task
        calls it again then; only who calls the module in another way sees that.
    type: int
    default: 30
  follows:
    description: What the task passes from one call of the module to the next. Not for playbooks.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description:
      - Tells the steps of the plan that the real run executes.
      - For a branch whose commit isn't known yet, the release has another name in check mode.
  diff_mode:
    support: full
    description: Shows the live release before and after.
  idempotent:
    support: full
    description: A release that is live costs a few reads and no process.
seealso:
  - plugin: phoenix.hypervisor.stack
    plugin_type: lookup
  - module: phoenix.hypervisor.vllm_store
"""

EXAMPLES = r"""
- name: Install the stack for the CPU
  phoenix.hypervisor.vllm_release:
    candidates: "{{ lookup('phoenix.hypervisor.stack', 'cpu').candidates }}"

- name: Go back to the release before
  phoenix.hypervisor.vllm_release:
    release: previous
"""

RETURN = r"""
release:
  description: The name of the release.
  type: str
  returned: success
  sample: cpu-0123456789ab
path:
  description: Its folder.
  type: str
  returned: success
  sample: /opt/vllm-releases/cpu-0123456789ab
previous:
  description: The folder that was live before, empty when there was none.
  type: str
  returned: success
  sample: ""
plan:
  description: What was done, or would be done in check mode, a sentence for each step.
  type: list
  elements: str
  returned: success
  sample: ["install release cpu-0123456789ab (from wheels)"]
next:
  description:
    - The release that is to be installed next, empty when nothing is left to install.
    - Outside of check mode it isn't empty only after a candidate was refused, when the next one needs packages of the
      distribution, or when O(keep_wheels) says that its wheels may come from elsewhere. Call the module again then.
  type: str
  returned: success
  sample: ""
missing_packages:
  description: Packages of the distribution that RV(next) needs and that are not installed.
  type: list
  elements: str
  returned: success
  sample: [libnuma1]
wheels:
  description: The folder with the wheels of RV(release), empty when there is none.
  type: str
  returned: success
  sample: /opt/vllm-releases/.work/cpu-0123456789ab/wheels
wheelhouse_complete:
  description: Whether all wheels are in it.
  type: bool
  returned: success
running:
  description: Whether there is more to wait for in the background.
  type: bool
  returned: success
progress:
  description: How far it is, in one line.
  type: str
  returned: when running
  sample: "cpu-0123456789ab: installing packages, for 12 s"
again:
  description: The options for the next call, besides the task's own.
  type: dict
  returned: when running
refused:
  description: The candidates that a gate refused, with the reason of each.
  type: list
  elements: dict
  returned: success
  sample: [{"release": "vllm-0123456789ab", "message": "…"}]
flashinfer:
  description: The version of FlashInfer in the release, empty when it has none.
  type: str
  returned: success
record:
  description: What the release's C(release.json) says.
  type: dict
  returned: success
log:
  description: Where the output of installations is.
  type: str
  returned: success
seconds:
  description: How long the installation took when it was done.
  type: float
  returned: success
"""

import contextlib
import ctypes
import errno
import fcntl
import inspect
import os
import re
import shutil
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    download,
    release_bytecode,
    release_fetch,
    release_gates,
    release_job,
    release_plan,
    release_source,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils import stack as stacks
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_job import read_json, write_json
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_plan import JobError, Seen, StackError, Wanted

UNIT = "vllm_release"
# What the job runs on, outside of Ansible.
LIBRARY = (
    stacks, download, release_plan, release_fetch, release_source, release_gates, release_bytecode, release_job,
)  # fmt: skip
PROPERTIES = "ActiveState,Result,ExecMainStatus,Description"
# A new line of progress is worth a return after so many seconds.
NEWS = 10.0
# Of this process's environment, what says how the network is reached.
PASSED = re.compile(r"(?:PIP|UV)_\w+|(?:https?|no|all)_proxy|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|GIT_\w+", re.I)
# Of renameat2(2).
AT_FDCWD = -100
RENAME_EXCHANGE = 2


class Releases:
    """Reads what there is and executes the steps of a plan."""

    def __init__(self, module):
        options = module.params
        self.module = module
        self.options = options
        self.releases = Path(options["releases"])
        self.link = options["link"]
        self.candidates = list(options["candidates"])
        self.release = options["release"]
        self.retry = options["retry"]
        self.follows = options["follows"]
        self.refused = options["refused"]

    # --- reading --------------------------------------------------------------------------------------------------

    def wanted(self):
        """Return what there should be."""
        return Wanted(
            candidates=self.candidates,
            release=self.release,
            releases=str(self.releases),
            link=self.link,
            keep=self.options["keep"],
            keep_wheels=self.options["keep_wheels"],
            retry=self.retry,
            today=time.strftime("%Y-%m-%d"),
        )

    def look(self):
        """Return what there is, and the plan for it."""
        is_link = os.path.islink(self.link)
        in_the_way = ""
        if not is_link and os.path.lexists(self.link):
            in_the_way = "folder" if os.path.isdir(self.link) else "other"
        names = [name for name in self._names(self.releases) if not name.startswith(".")]
        folders = [name for name in names if (self.releases / name).is_dir()]
        complete = {name for name in folders if (self.releases / name / release_plan.RECORD).exists()}
        # A record that can't be read, or is another's, is none.
        for name in complete & {candidate["release"] for candidate in self.candidates}:
            if (self.record(name) or {}).get("release") != name:
                complete.discard(name)
        history = read_json(self.releases / "history.json", list) or []
        seen = Seen(
            live=os.path.join(os.path.dirname(self.link), os.readlink(self.link)) if is_link else "",
            in_the_way=in_the_way,
            complete=frozenset(complete),
            half_done=frozenset(folders) - complete,
            works=frozenset(self._names(self.releases / ".work")),
            refused=self.known_refusals(),
            history=[entry["release"] for entry in history if isinstance(entry, dict) and "release" in entry],
        )
        if self.release == "previous":
            # Which one that is, is asked once: after the switch it is another.
            self.release = release_plan.previous(seen.history, seen.live_name, seen.complete) or self.release
        steps = release_plan.plan(self.wanted(), seen)
        if any(step.action == "remove" for step in steps):
            # Only now, as it reads much: what a process uses stays.
            seen = replace(seen, in_use=frozenset(self.in_use()))
            steps = release_plan.plan(self.wanted(), seen)
        return seen, steps

    @staticmethod
    def _names(folder):
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def known_refusals(self):
        """Return what gates refused, here or in the container that the wheels are from."""
        return {**self.refused, **(read_json(self.releases / release_job.REFUSED) or {})}

    def take_refusals(self):
        """Write down what was refused elsewhere: the next run knows it, too."""
        here = read_json(self.releases / release_job.REFUSED) or {}
        if not self.refused.keys() <= here.keys():
            write_json(self.releases / release_job.REFUSED, {**self.refused, **here})

    def record(self, name):
        """Return what a release's record says, None when it has none that can be read."""
        return read_json(self.releases / name / release_plan.RECORD)

    def in_use(self):
        """Return the names of the releases that a process or a unit uses, and of the one that is being installed."""
        pattern = re.compile(re.escape(str(self.releases)).encode() + rb"/(?:\.work/)?([A-Za-z0-9][\w.-]*)")
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            if process.name == str(os.getpid()):
                continue
            for name in ("maps", "cmdline"):
                # Processes end while they are looked at.
                with contextlib.suppress(OSError):
                    found.update(match.decode() for match in pattern.findall((process / name).read_bytes()))
        # A server that is stopped at the moment is started from its release again.
        for unit in Path("/etc/systemd/system").glob("*.service"):
            with contextlib.suppress(OSError):
                found.update(match.decode() for match in pattern.findall(unit.read_bytes()))
        return found

    def missing_packages(self, candidate):
        """Return the distribution's packages that an installation of a candidate needs and that aren't there."""
        whole = release_job.whole_wheelhouse(self.work(candidate["release"]) / "wheels", candidate["release"])
        needed = release_plan.packages_needed(candidate, whole)
        if not needed:
            return []
        try:
            status = Path("/var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        there = release_plan.installed_packages(status)
        return [name for name in needed if name not in there]

    def work(self, release):
        """Return the folder that the installation of a release works in."""
        return self.releases / ".work" / release

    # --- branches -------------------------------------------------------------------------------------------------

    def resolve(self):
        """Give the candidates whose source is a branch the commit that it is at, which is then written down."""
        path = self.releases / "commits.json"
        commits = read_json(path) or {}
        before = dict(commits)
        for index, candidate in enumerate(self.candidates):
            if stacks.is_resolved(candidate):
                continue
            repository, branch = candidate["source"]["repository"], candidate["source"]["commit"]
            key = release_plan.without_secrets(f"{repository} {branch}")
            asked = self.options["refresh"] and commits.get(key) == before.get(key)
            if asked or key not in commits:
                commit = self.commit_of(repository, branch)
                if not commit:
                    continue
                commits[key] = commit
            self.candidates[index] = stacks.resolved(candidate, commits[key])
        if commits != before and not self.module.check_mode:
            self.releases.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_json(path, commits)

    def commit_of(self, repository, branch):
        """Ask a repository for the commit of a branch. Without git there is no answer in check mode."""
        if self.module.check_mode and not self.module.get_bin_path("git"):
            return ""
        code, output, error = self.module.run_command(
            ["timeout", "60", "git", "ls-remote", repository, branch],
            environ_update={"GIT_TERMINAL_PROMPT": "0", "LANG": "C.UTF-8"},
            handle_exceptions=False,
        )
        found = dict(reversed(line.split("\t", 1)) for line in output.splitlines() if "\t" in line)
        for name in (f"refs/heads/{branch}", f"refs/tags/{branch}^{{}}", f"refs/tags/{branch}"):
            if name in found:
                return found[name]
        words = release_plan.without_secrets(" ".join(error.split())) if code else "it has no such branch or tag"
        where = release_plan.without_secrets(repository)
        raise StackError(f"The commit of {branch} can't be had from {where}: {words or 'no answer within 60 s'}.")

    # --- steps ----------------------------------------------------------------------------------------------------

    def do_forgive(self, step):
        """Forget that a candidate was refused."""
        path = self.releases / release_job.REFUSED
        refused = read_json(path) or {}
        refused.pop(step.name, None)
        write_json(path, refused)

    def do_take_over(self, step):
        """Make the plain folder a release. What runs in it finds everything at its old path at every moment."""
        path = self.releases / step.name
        version = next(Path(self.link).glob("**/site-packages/vllm-*.dist-info"), None)
        record = {
            "release": step.name,
            "stack": "",
            "method": "before",
            "vllm": version.name[5:-10] if version else "",
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_json(os.path.join(self.link, release_plan.RECORD), record)
        # A link at the new place that points at itself changes places with the folder: one step for both.
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        path.symlink_to(path)
        names = (os.fsencode(self.link), os.fsencode(path))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE):
            problem = ctypes.get_errno()
            path.unlink()
            if problem not in (errno.ENOSYS, errno.EINVAL):
                raise OSError(problem, os.strerror(problem), self.link)
            # This file system can't exchange; the path is gone for as long as it takes to make a link.
            os.rename(self.link, path)
            os.symlink(path, self.link)

    def do_switch(self, step):
        """Make the release the live one, in one step, and write it down."""
        before = os.readlink(self.link) if os.path.islink(self.link) else ""
        temporary = f"{self.link}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(self.releases / step.name, temporary)
        os.replace(temporary, self.link)
        path = self.releases / "history.json"
        history = read_json(path, list) or []
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        last = history[-1].get("release") if history else ""
        # A run that was killed after its switch has not written it down.
        for name in (os.path.basename(before), step.name):
            if name and name != last:
                history.append({"release": name, "at": at})
                last = name
        write_json(path, history[-100:])

    def do_clean(self, step):
        """Remove what an installation worked in."""
        shutil.rmtree(self.work(step.name), ignore_errors=True)

    def do_remove(self, step):
        """Remove a release, its record first: what is left of it when this is killed is half done."""
        folder = self.releases / step.name
        with contextlib.suppress(FileNotFoundError):
            (folder / release_plan.RECORD).unlink()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.work(step.name), ignore_errors=True)

    # --- the job in the background --------------------------------------------------------------------------------

    def systemctl(self, *words):
        """Call systemctl. Return its output."""
        return self.module.run_command(["systemctl", *words])[1]

    def unit(self):
        """Return what systemd says of the job's unit."""
        output = self.systemctl("show", f"--property={PROPERTIES}", f"{UNIT}.service")
        return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)

    def start(self, candidate):
        """Have a job install a candidate in the background. Return its id."""
        work = self.work(candidate["release"])
        work.mkdir(mode=0o755, parents=True, exist_ok=True)
        library = work / "lib"
        shutil.rmtree(library, ignore_errors=True)
        folder = library.joinpath(*release_job.__name__.split(".")[:-1])
        folder.mkdir(parents=True)
        for part in LIBRARY:
            (folder / f"{part.__name__.rpartition('.')[2]}.py").write_text(inspect.getsource(part), encoding="utf-8")
        refused = read_json(self.releases / release_job.REFUSED) or {}
        names = [other["release"] for other in self.candidates]
        job = {
            "id": uuid.uuid4().hex,
            "candidate": candidate,
            "refused": {name: refused[name] for name in names if name in refused},
            "places": self.options["places"],
            "build": self.options["build"],
            "environment": {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)},
            "releases": str(self.releases),
            "log": self.options["log"],
            "keep_wheels": self.options["keep_wheels"],
        }
        # Until the job says so itself.
        write_json(work / release_job.PROGRESS, release_job.first_progress(job), durable=False)
        # URLs may hold a login.
        path = work / "job.json"
        write_json(path, job, mode=0o600)
        Path(self.options["log"]).parent.mkdir(parents=True, exist_ok=True)
        self.systemctl("reset-failed", f"{UNIT}.service")
        code, output, error = self.module.run_command(
            [
                *("systemd-run", "--quiet", f"--unit={UNIT}", f"--description={path}"),
                f"--property=RuntimeMaxSec={self.options['build']['time_limit']}",
                # A model server that answers meanwhile goes first.
                *("--property=Nice=5", "--property=CPUWeight=50", "--property=IOWeight=50"),
                *(f"--property=Standard{name}=append:{self.options['log']}" for name in ("Output", "Error")),
                *(f"--setenv=PYTHONPATH={library}", "--setenv=HOME=/root", "--setenv=LANG=C.UTF-8"),
                *(sys.executable, "-m", release_job.__name__, str(path)),
            ]
        )
        if code:
            words = " ".join((error or output).split())
            raise JobError(f"systemd can't start {UNIT}.service: {words}.", "", "Look at `systemctl status` inside.")
        return job["id"]

    def install(self, candidate):
        """Start the installation of a candidate, find the one that runs, or see how it ended.

        Returns:
            The id of the job that runs, and its working folder; C(None) when it has ended and there may be more to do.

        Raises:
            JobError: it failed.
        """
        work = self.work(candidate["release"])
        unit = self.unit()
        if unit.get("ActiveState") in ("active", "activating", "deactivating", "reloading"):
            path = Path(unit["Description"])
            return (read_json(path) or {}).get("id", ""), path.parent
        job = (read_json(work / "job.json") or {}).get("id", "")
        progress = read_json(work / release_job.PROGRESS) or {}
        if not job or self.follows.get("job") != job:
            return self.start(candidate), work
        # The job that this task has started, or waited for, is at its end.
        self.follows = {**self.follows, "job": ""}
        state = progress.get("state") if progress.get("job") == job else "running"
        if state == "failed":
            error = progress["error"]
            raise JobError(error["message"], error["piece"], error["remedy"], error["tail"])
        if state == "running":
            limit = release_plan.duration(self.options["build"]["time_limit"])
            raise release_plan.ended(unit, progress.get("text", ""), limit)
        return None

    def wait(self, work, until):
        """Wait until a job has ended, or there is news. Return its progress, and whether it still runs."""
        began = time.monotonic()
        first, checked = None, 0.0
        while True:
            progress = read_json(work / release_job.PROGRESS) or {}
            now = time.monotonic()
            if now - checked > 1 or progress.get("state", "running") != "running":
                checked = now
                if self.unit().get("ActiveState") in ("inactive", "failed"):
                    return progress, False
            first = first if first is not None else progress.get("text")
            if now > until or (now - began > NEWS and progress.get("text") != first):
                return progress, True
            time.sleep(0.15)


class Task:
    """One call of the module."""

    def __init__(self, module):
        self.module = module
        self.options = module.params
        self.it = Releases(module)
        self.until = time.monotonic() + self.options["wait"]
        self.before = None
        self.plan = list(self.it.follows.get("plan", []))
        self.acted = False
        self.installs = ""

    def run(self):
        """Read, plan, and execute the plan unless only asked to tell it."""
        it = self.it
        release_plan.check_candidates(it.candidates)
        it.resolve()
        seen, steps = it.look()
        self.note(seen, steps)
        if self.module.check_mode or not steps:
            self.exit(seen, steps)
        it.releases.mkdir(mode=0o755, parents=True, exist_ok=True)
        first = not it.follows
        while True:
            with open(it.releases / ".lock", "w", encoding="utf-8") as lock:
                # Another run may be at work here: look again at what is left to do.
                fcntl.flock(lock, fcntl.LOCK_EX)
                it.take_refusals()
                seen, steps = it.look()
                self.note(seen, steps)
                job = self.apply(seen, steps, first)
                if job is None:
                    seen, steps = it.look()
                    if not steps:
                        self.exit(seen, [])
                    continue
            first = False
            identity, work = job
            it.follows = {"job": identity, "installs": self.installs, "plan": self.plan, "before": self.before}
            progress, running = it.wait(work, self.until)
            if running:
                self.exit_running(work, progress)

    def note(self, seen, steps):
        """Remember what there was, and what is said to be done."""
        if self.before is None:
            self.before = self.it.follows.get("before", seen.live)
        self.plan += [step.text for step in steps if step.text not in self.plan]

    def apply(self, seen, steps, first):
        """Execute steps up to one that takes long. Return its job, C(None) when they are done."""
        for step in steps:
            if step.action == "install":
                candidate = next(one for one in self.it.candidates if one["release"] == step.name)
                job = self.begin(seen, steps, candidate, first)
                if job is None:
                    return None
                self.acted = True
                return job
            self.acted = True
            getattr(self.it, f"do_{step.action}")(step)
            # Forgiven and taken over once, not in the next round, too.
            self.it.retry = self.it.retry and step.action != "forgive"
        self.it.retry = False
        return None

    def begin(self, seen, steps, candidate, first):
        """Start or find the job of a candidate, after its needs were looked at."""
        it = self.it
        self.installs = candidate["release"]
        missing = it.missing_packages(candidate)
        # Another one than that which was begun: it was refused meanwhile.
        fallback = not first and it.follows.get("installs") != candidate["release"]
        if missing and first:
            raise StackError(
                f"The container lacks {', '.join(missing)}, which {candidate['release']} needs. Install them first "
                "(the role vllm_stack does)."
            )
        if fallback and (missing or self.options["keep_wheels"]):
            self.exit(seen, steps)
        return it.install(candidate)

    def result(self, seen, steps):
        """Return what every result has."""
        it = self.it
        install = next((step.name for step in steps if step.action == "install"), "")
        switch = next((step.name for step in steps if step.action == "switch"), "")
        release = install or switch or seen.live_name
        candidate = next((one for one in it.candidates if one["release"] == install), None)
        record = it.record(release) or {}
        wheels = it.work(release) / "wheels"
        after = str(it.releases / release) if release else ""
        return {
            "release": release,
            "path": after,
            "previous": self.before,
            "plan": self.plan,
            "next": install,
            "missing_packages": it.missing_packages(candidate) if candidate else [],
            "wheels": str(wheels) if wheels.is_dir() else "",
            "wheelhouse_complete": release_job.whole_wheelhouse(wheels, release),
            "running": False,
            "refused": [
                {"release": name, **{key: str(value) for key, value in seen.refused[name].items()}}
                for name in (one["release"] for one in it.candidates)
                if name in seen.refused
            ],
            "flashinfer": (candidate or record).get("flashinfer", ""),
            "record": record,
            "log": self.options["log"],
            "seconds": record.get("seconds", 0.0),
            "diff": {
                "before_header": it.link,
                "after_header": it.link,
                "before": f"{self.before or 'no release'}\n",
                "after": f"{after}\n" + "".join(f"# {text}\n" for text in self.plan),
            },
        }

    def exit(self, seen, steps):
        """End the module."""
        changed = bool(steps) if self.module.check_mode else self.acted
        self.module.exit_json(changed=changed, **self.result(seen, steps))

    def exit_running(self, work, progress):
        """End the module while the background goes on."""
        it = self.it
        seen, steps = it.look()
        text = release_plan.sentence(progress, time.time())
        wanted = next((step.name for step in steps if step.action == "install"), "")
        if wanted and work.name != wanted:
            text = f"{wanted} waits for another installation: {text}"
        if not self.options["follows"]:
            text += f" (goes on when this run is stopped; its output is in {self.options['log']})"
        result = {
            **self.result(seen, steps),
            "running": True,
            "progress": text,
            "again": {"follows": it.follows, "retry": False, "refresh": False},
        }
        self.module.exit_json(changed=self.acted, **result)


def failure(module, error, task):
    """Return the message of a failed installation."""
    said = " ".join(filter(None, (error.message, error.remedy)))
    tail = "".join(f"\n{line}" for line in error.tail)
    return (
        f"Release {task.installs} could not be installed: {said} The live release was not touched. "
        f"The whole output is in {module.params['log']}{'; its end:' + tail if tail else '.'}"
    )


def main():
    """Run as a module."""
    text = {"type": "str", "default": ""}
    places = ("index", "torch_index", "python_mirror", "find_links")
    module = AnsibleModule(
        argument_spec={
            "candidates": {"type": "list", "elements": "dict", "default": []},
            "release": text,
            "releases": {"type": "path", "default": "/opt/vllm-releases"},
            "link": {"type": "path", "default": "/opt/vllm"},
            "log": {"type": "path", "default": "/var/log/vllm-release.log"},
            "keep": {"type": "int", "default": 3},
            "keep_wheels": {"type": "bool", "default": False},
            "retry": {"type": "bool", "default": False},
            "refresh": {"type": "bool", "default": False},
            "places": {
                "type": "dict",
                "default": {},
                "apply_defaults": True,
                "options": dict.fromkeys(places, text),
            },
            "build": {
                "type": "dict",
                "default": {},
                "apply_defaults": True,
                "options": {
                    "max_jobs": {"type": "int", "default": 0},
                    "nvcc_threads": {"type": "int", "default": 0},
                    "time_limit": {"type": "int", "default": 21600},
                    "environment": {"type": "dict", "default": {}},
                },
            },
            "refused": {"type": "dict", "default": {}},
            "wait": {"type": "int", "default": 30},
            "follows": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    if not module.params["candidates"] and not module.params["release"]:
        module.fail_json(msg="There is nothing to install: give candidates (the lookup stack does), or release.")
    if module.params["keep"] < 1:
        module.fail_json(msg=f"keep is {module.params['keep']}: at least one release stays, the live one.")
    task = Task(module)
    try:
        task.run()
    except StackError as error:
        module.fail_json(msg=str(error))
    except JobError as error:
        module.fail_json(msg=failure(module, error, task), log=module.params["log"], piece=error.piece)
    except OSError as error:
        module.fail_json(
            msg=f"The release could not be installed: {error.strerror} ({error.filename}). "
            + release_plan.explain(str(error.strerror))
        )


if __name__ == "__main__":
    main()
