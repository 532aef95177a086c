#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: model_files
short_description: Have a model's files on the node, whole and checked
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Fetches a model from Hugging Face's hub, from a mirror of it, or from a folder of the node, and puts it where
    containers can mount it, at C(folder/organisation/name).
  - That path is a link to one of the model's revisions. A revision appears whole or not at all, and never changes
    afterwards, so that a server that has it open isn't touched; the link moves on in one step.
  - Every file is compared with the checksum that its source says. What was fetched before a run was killed is gone on
    with, and what an older revision has, too, isn't fetched again.
  - The files are root's and readable for everybody, and so for every user of every unprivileged container, which can't
    change them, however the folder is mounted.
  - A plain folder that is at the path already (from C(hf download --local-dir), say) is made use of. Its files that are
    right aren't fetched again, and it is kept beside the revisions, under a name that begins with C(.before-).
  - The work goes on in a process of its own when the play is stopped, and the next run waits for it. To stop it, end
    that process (RV(pid)).
  - Proxies and a CA are taken from the environment of the task (C(HTTPS_PROXY), C(NO_PROXY), C(SSL_CERT_FILE)).
attributes:
  check_mode:
    description: Asks the source, and tells what would be fetched, file by file with O(verify).
    support: full
  diff_mode:
    description: The revisions that there are, the one that servers get, and the files that are to be fetched.
    support: full
  idempotence:
    description: A model that is there is not touched. Without O(verify), its files' sizes are looked at, not their
      content.
    support: full
options:
  repository:
    description:
      - The model's name on the hub, C(organisation/name).
      - With O(source) it is only the name.
    type: str
    default: ""
  revision:
    description:
      - A branch, a tag, or a commit as 40 hexadecimal digits.
      - A branch or a tag is looked up at each run. A commit that is there already needs no network.
    type: str
    default: main
  endpoint:
    description: The hub, or a mirror with the same API.
    type: str
    default: https://huggingface.co
  token:
    description:
      - A token of the hub, for a model that is gated or private. It goes to O(endpoint) alone, never to where that
        redirects to.
    type: str
    default: ""
  source:
    description:
      - A folder of the node that has the model, in place of the hub. It may be a mounted one, a copy of a revision that
        this module made elsewhere, or a snapshot in Hugging Face's cache.
      - Checksums are compared where the folder has some - this module's own record, a file C(SHA256SUMS), the names in
        Hugging Face's cache.
    type: path
  name:
    description: Where the model goes below O(folder); O(repository) when it is left out.
    type: str
    default: ""
  folder:
    description: The folder of the models on the node. It is made when it isn't there, and the one above it is; else its
      owner and mode stay.
    type: path
    default: /var/lib/phoenix-hypervisor/models
  include:
    description: Shell patterns of the files that are wanted, compared with their whole path. Left out, all of them.
    type: list
    elements: str
    default: []
  exclude:
    description:
      - Shell patterns of files that are not wanted.
      - Left out, and without O(include), weights in other forms are left out when the model has C(model*.safetensors),
        which vLLM takes - C(original/*), C(onnx/*), C(openvino/*), C(coreml/*), C(pytorch_model*.bin), C(*.pth),
        C(*.gguf), C(*.h5), C(*.msgpack), C(*.ot), C(*.tflite). An empty list takes them, too.
    type: list
    elements: str
  keep:
    description:
      - How many revisions stay, the live one among them. The one that was live longest ago goes first; one that a
        process has open stays in any case.
    type: int
    default: 2
  verify:
    description: Whether the content of the files that are there is compared with their checksums. What is damaged is
      fetched again, file by file.
    type: bool
    default: false
  threads:
    description: How many files are fetched at the same time.
    type: int
    default: 4
  wait:
    description:
      - Seconds that one call of the module waits. The task itself waits on, calls it again, and shows how far it is.
    type: int
    default: 10
  job:
    description: What another call began, for the task itself.
    type: str
    default: ""
seealso:
  - name: Role models
    description: Which models the containers of a play need, and where.
    link: https://github.com/phoenix/hypervisor/tree/main/roles/models
"""

EXAMPLES = r"""
- name: A model from the hub
  phoenix.hypervisor.model_files:
    repository: Qwen/Qwen2.5-7B-Instruct
    revision: a09a35458c702b33eeacc393d103063234e8bc28
    folder: /tank/models
  delegate_to: pve

- name: A gated one, through a mirror
  phoenix.hypervisor.model_files:
    repository: meta-llama/Llama-3.2-3B-Instruct
    endpoint: https://models.example.org
    token: "{{ models_token }}"
    folder: /tank/models
  delegate_to: pve

- name: One's own, from a folder
  phoenix.hypervisor.model_files:
    source: /mnt/nas/finetuned
    name: example/finetuned
    folder: /tank/models
  delegate_to: pve
"""

RETURN = r"""
model:
  description: The model's path on the node.
  returned: success
  type: str
  sample: /tank/models/Qwen/Qwen2.5-7B-Instruct
revision:
  description: The revision's folder. Its commit, for one from a hub.
  returned: success
  type: str
  sample: a09a35458c702b33eeacc393d103063234e8bc28
files:
  description: How many files it has.
  returned: success
  type: int
  sample: 12
size:
  description: Their bytes together.
  returned: success
  type: int
  sample: 15242000000
fetched:
  description: Bytes that were fetched in this run; in check mode, that would be.
  returned: success
  type: int
  sample: 15242000000
steps:
  description: What was done, or with check mode would be, one sentence each.
  returned: success
  type: list
  elements: str
  sample: ["fetch Qwen/Qwen2.5-7B-Instruct (main, a09a35458c70) from https://huggingface.co: 12 files, 14536 MiB"]
revisions:
  description: The revisions that are there.
  returned: success
  type: list
  elements: str
  sample: [a09a35458c702b33eeacc393d103063234e8bc28]
running:
  description: Whether it is still being fetched.
  returned: success
  type: bool
  sample: false
progress:
  description: How far that is.
  returned: success
  type: str
  sample: "model-00001-of-00004.safetensors (8 of 12 files, 2048 of 14536 MiB, since 14:03:12, 112 MiB/s)"
pid:
  description: The process that fetches, 0 when there is none.
  returned: success
  type: int
  sample: 0
again:
  description: Options of the next call of the module while RV(running), for the task itself.
  returned: success
  type: dict
  sample: {}
"""

import contextlib
import os
import signal
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import model_hub, model_plan, model_store
from ansible_collections.phoenix.hypervisor.plugins.module_utils.download import Unreachable
from ansible_collections.phoenix.hypervisor.plugins.module_utils.model_fetch import Folder, Work
from ansible_collections.phoenix.hypervisor.plugins.module_utils.model_plan import (
    HUB,
    File,
    ModelError,
    NotThere,
    Revision,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils.model_store import Place

_PAUSE = 0.2
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass
class Plan:
    """What is to be done.

    :ivar revision: what servers are to get; None when what is there stays without more ado
    :ivar missing: its files that aren't there
    :ivar fetch: how many bytes of them aren't on the node at all
    :ivar wrong: paths with the wrong owner or mode
    :ivar switch: whether the link moves
    :ivar prune: revisions that go
    :ivar steps: the same in words
    """

    revision: Revision | None = None
    missing: list[File] = field(default_factory=list)
    fetch: int = 0
    wrong: list[str] = field(default_factory=list)
    switch: bool = False
    prune: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    result: dict = field(default_factory=dict)


class Task:
    """One call: what it is for, and what comes of it."""

    def __init__(self, module: AnsibleModule) -> None:
        params = module.params
        self.module = module
        self.params = params
        self.check = module.check_mode
        self.repository, self.ref = params["repository"], params["revision"]
        self.place = Place(params["folder"], params["name"] or params["repository"])
        self.folder = Folder(params["source"]) if params["source"] else None
        self.hub = model_hub.Hub(params["endpoint"], params["token"] or "")
        self.deadline = time.monotonic() + params["wait"]

    @property
    def origin(self) -> dict[str, str]:
        if self.folder:
            return {"source": self.folder.path, **({"repository": self.repository} if self.repository else {})}
        return {"repository": self.repository}

    def run(self) -> dict:
        """What the module returns."""
        self.place.enter(make=False)
        if self.params["job"]:
            followed = self.follow(self.params["job"])
            if followed is not None:
                return followed
        # A run that has nothing to do leaves no trace, and waits for nobody.
        plan = self.plan()
        if self.check or not (plan.steps or (self.params["verify"] and plan.revision)):
            return plan.result
        self.place.enter(make=True)
        lock = self.place.lock()
        while lock is None:
            job = self.place.job()
            if time.monotonic() >= self.deadline:
                return self.still(job, {"wait": self.params["wait"]}, "another run is at it: ")
            time.sleep(_PAUSE)
            lock = self.place.lock()
        try:
            # Somebody else may have done it meanwhile.
            plan = self.plan()
            if not plan.missing and not (self.params["verify"] and plan.revision):
                return self.act(plan, lambda text: None) if plan.steps else plan.result
            job = self.start(plan)
        finally:
            # The process that fetches has it now, too.
            os.close(lock)
        followed = self.follow(job)
        return followed if followed is not None else self.run()

    # --- what is to be done -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What is to be done, without doing it."""
        place, there = self.place, self.place.revisions()
        live = place.live()
        plan = Plan(revision=self.resolve(there, live))
        revision = plan.revision
        if revision is None:
            # What is there stays.
            plan.result = self.described(plan, there.get(live), there, live)
            return plan
        whole = revision.name in there
        if not revision.files:
            raise ModelError(f"{self.place.path}: include and exclude leave no file of it; correct them")
        plan.missing = place.missing(revision) if whole else list(revision.files)
        if whole and self.params["verify"] and self.check:
            plan.missing = self.damaged(revision, plan.missing)
        plan.wrong = place.wrong_owner(revision) if whole else []
        plan.switch = live != revision.name
        self.plan_fetch(plan, there, whole)
        if plan.wrong:
            plan.steps.append(f"set owner and mode of {len(plan.wrong)} files and folders of {_short(revision.name)}")
        if plan.switch:
            instead = f", in place of {_short(live)}" if live else ""
            if not live and place.plain():
                instead = ", in place of the folder that is there, which is kept as .before-<date> beside the revisions"
            plan.steps.append(f"point {place.path} at {_short(revision.name)}{instead}")
        used = {**place.used(there), revision.name: time.time()}
        gone = model_plan.to_prune(used, revision.name, self.params["keep"])
        busy = place.in_use(gone) if gone else set()
        plan.prune = [name for name in gone if name not in busy]
        plan.steps += [f"remove the revision {_short(name)}" for name in plan.prune]
        plan.result = self.described(plan, revision, there, live)
        return plan

    def plan_fetch(self, plan: Plan, there: dict[str, Revision], whole: bool) -> None:
        """What of the missing files has to come from the source."""
        if not plan.missing:
            return
        revision = plan.revision
        known = {file.key for name, other in there.items() if name != revision.name for file in other.files}
        unique = list({file.key: file for file in plan.missing}.values())
        fetch = [file for file in unique if not file.digest or file.key not in known]
        here = self.place.here(fetch)
        plan.fetch = sum(file.size for file in fetch) - here
        what = f"fetch {self.title(revision)} from {self.folder or self.hub}"
        if whole:
            what = f"replace what is missing or damaged in {self.title(revision)}, from {self.folder or self.hub}"
        beside = []
        if len(fetch) < len(unique):
            beside.append(f"{len(unique) - len(fetch)} are in an older revision")
        if here:
            beside.append(f"{model_plan.amount(here)} of it came in an earlier run")
        text = f"{what}: {model_plan.files_text(plan.missing)}"
        plan.steps.append(f"{text} ({', '.join(beside)})" if beside else text)
        # A folder that is there already may have most of it.
        wrong = "" if self.place.plain() else self.place.room_problem(plan.fetch)
        if wrong:
            raise ModelError(wrong)

    def title(self, revision: Revision) -> str:
        """The model and its revision, for a reader."""
        name = self.repository or self.place.name
        if self.folder:
            return name
        ref = "" if model_plan.is_commit(self.ref) else f"{self.ref}, "
        return f"{name} ({ref}{_short(revision.name)})"

    def resolve(self, there: dict[str, Revision], live: str) -> Revision | None:
        """The revision that is wanted; None when its source can't tell, and what is there does."""
        params = self.params
        include, exclude = params["include"], params["exclude"]
        try:
            if self.folder:
                files = model_plan.selected(self.folder.look(), include, exclude)
                files = model_plan.with_known_digests(files, there.values())
                revision = Revision(model_plan.folder_revision_name(files), self.origin, tuple(files))
                return there.get(revision.name, revision)
            if model_plan.is_commit(self.ref):
                name = model_plan.folder_name(self.ref, include, exclude)
                if name in there and there[name].same_source(self.origin):
                    return there[name]
            commit, files = self.hub.look(self.repository, self.ref)
        except NotThere as problem:
            return self.stays(problem, there.get(live))
        name = model_plan.folder_name(commit, include, exclude)
        origin = {**self.origin, "commit": commit, "revision": self.ref, "endpoint": self.hub.endpoint}
        return there.get(name) or Revision(name, origin, tuple(model_plan.selected(files, include, exclude)))

    def stays(self, problem: NotThere, live: Revision | None) -> None:
        """What is there is better than nothing, when it may be what is wanted.

        :raises NotThere: when it isn't
        """
        same = live is not None and live.same_source(self.origin) and not self.place.missing(live)
        if same and (self.folder or live.origin.get("revision") == self.ref):
            self.module.warn(f"{self.place.path} stays at {_short(live.name)}: {problem}")
        elif live is None and self.place.plain():
            self.module.warn(f"{self.place.path} is a folder that wasn't made here, and stays as it is: {problem}")
        else:
            raise problem

    def damaged(self, revision: Revision, missing: list[File]) -> list[File]:
        """Files of a revision that aren't as they should be, by their content."""
        work = Work(self.place, revision, self.opened, self.failure, lambda text: None)
        return sorted({*missing, *(file for file in revision.files if not work.is_right(file))})

    def described(self, plan: Plan, revision: Revision | None, there: dict[str, Revision], live: str) -> dict:
        """The result when all went as planned."""
        after = sorted({*there, *([revision.name] if revision else [])}.difference(plan.prune))
        now = revision.name if revision else live
        fetched = "".join(f"fetch {file.path} {model_plan.amount(file.size)}\n" for file in plan.missing)
        return {
            "changed": bool(plan.steps),
            "model": self.place.path,
            "revision": now,
            "files": len(revision.files) if revision else 0,
            "size": revision.size if revision else 0,
            "fetched": plan.fetch,
            "steps": plan.steps,
            "revisions": after,
            "running": False, "progress": "", "pid": 0, "again": {},
            "diff": {
                "before": self.state_text(there, live),
                "after": self.state_text(after, now if revision else live) + fetched,
            },
        }  # fmt: skip

    def state_text(self, revisions, live: str) -> str:
        lines = [f"revision {name}\n" for name in sorted(revisions)]
        if live:
            lines.append(f"{self.place.path} -> {live}\n")
        elif self.place.plain():
            lines.append(f"{self.place.path}/\n")
        return "".join(lines)

    # --- doing it ---------------------------------------------------------------------------------------------------

    def opened(self, file: File):
        """What opens a file at its source."""
        if self.folder:
            return self.folder.opened(file)
        return self.hub.opened(self.repository, self.commit, file)

    def failure(self, problem: Unreachable, file: File) -> ModelError:
        """What it means that a file can't be had."""
        if self.folder:
            return ModelError(f"source: {self.folder}/{file.path} can't be read: {problem.reason}")
        return self.hub.problem(problem, self.repository, self.commit, file.path)

    def act(self, plan: Plan, say) -> dict:
        """Do what is planned. Give the result."""
        revision, result = plan.revision, dict(plan.result)
        self.commit = revision.origin.get("commit", "")
        if plan.missing or self.params["verify"]:
            unchanged = self.folder.is_same if self.folder else lambda file: True
            work = Work(self.place, revision, self.opened, self.failure, say, self.params["threads"], unchanged)
            replaced = work.run(self.params["verify"])
            result["fetched"] = work.fetched
            if replaced and not plan.missing:
                step = f"replace what is damaged in {self.title(revision)}: {', '.join(replaced)}"
                result.update(steps=[step, *plan.steps], changed=True)
        self.place.set_owner(revision, self.place.wrong_owner(revision))
        if plan.switch:
            self.place.point_at(revision.name)
        self.place.tidy()
        for name in sorted(set(plan.prune).difference(self.place.in_use(plan.prune))):
            self.place.remove(name)
        return result

    # --- the process in the background ------------------------------------------------------------------------------

    def start(self, plan: Plan) -> str:
        """Begin the work in a process of its own, which the end of this one or of the connection doesn't end."""
        job = {"id": uuid.uuid4().hex, "pid": 0, "text": "begins", "ended": False}
        self.place.write_job(job)
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return job["id"]
        try:
            os.setsid()
            if not os.fork():
                self.background(plan, job)
        finally:
            os._exit(0)

    def background(self, plan: Plan, job: dict) -> None:
        """All that the process does."""
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        for each in (signal.SIGHUP, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        job["pid"] = os.getpid()
        self.place.write_job(job)

        def say(text: str) -> None:
            with contextlib.suppress(OSError):
                # A full disk is told of by what doesn't fit on it.
                self.place.write_job({**job, "text": text})

        try:
            job["result"] = self.act(plan, say)
        except ModelError as error:
            job["error"] = str(error)
        except OSError as error:
            job["error"] = self.place.problem(error)
        except Exception as error:
            job["error"] = f"{self.place.path}: {type(error).__name__}: {error}; report this"
        job["ended"] = True
        self.place.write_job(job)

    def follow(self, job_id: str) -> dict | None:
        """Wait for a process that fetches. Its result; None when another one began since, so that nobody knows."""
        while True:
            # In this order: it may end in between.
            busy = self.place.is_busy()
            job = self.place.job()
            if job.get("id") != job_id:
                return None
            if job.get("ended"):
                if "error" in job:
                    raise ModelError(job["error"])
                return job["result"]
            if not busy:
                raise ModelError(
                    f"{self.place.path}: the process that fetched it was killed ({job['text']}); run again, it goes on "
                    "from there"
                )
            if time.monotonic() >= self.deadline:
                return self.still(job, {"wait": self.params["wait"], "job": job_id}, "")
            time.sleep(_PAUSE)

    def still(self, job: dict, again: dict, why: str) -> dict:
        """The result while it is not there yet."""
        return {
            "changed": False, "model": self.place.path, "running": True, "again": again, "pid": job.get("pid", 0),
            "progress": f"{self.place.name}: {why}{job.get('text', 'begins')}", "revision": "", "files": 0, "size": 0,
            "fetched": 0, "steps": [], "revisions": [],
        }  # fmt: skip


def _short(name: str) -> str:
    return name[:12] if model_plan.is_commit(name[:40]) else name


def options_problem(params: dict) -> str:
    """What is wrong with the module's options, or ""."""
    wrong = ""
    if params["repository"]:
        wrong = model_plan.repository_problem(params["repository"])
    elif not params["name"]:
        wrong = "name: a folder says not how its model is called; give name, such as organisation/name"
    wrong = wrong or model_plan.name_problem(params["name"] or params["repository"])
    if not params["revision"] or any(ord(letter) < 33 for letter in params["revision"]):
        wrong = wrong or f"revision: {params['revision']!r} is no branch, tag or commit"
    for name in ("folder", "source"):
        if params[name] is not None and not params[name].startswith("/"):
            wrong = wrong or f"{name}: {params[name]!r} is no absolute path"
    wrong = wrong or model_hub.endpoint_problem(params["endpoint"])
    for name in ("keep", "threads"):
        if params[name] < 1:
            wrong = wrong or f"{name}: {params[name]} is too few; at least 1"
    if params["source"] and not wrong:
        place = os.path.realpath(f"{params['folder']}/{params['name'] or params['repository']}")
        source = os.path.realpath(params["source"])
        if f"{source}/".startswith(f"{place}/") or f"{place}/".startswith(f"{source}/"):
            wrong = f"source: {params['source']} is where the model goes to; move it elsewhere, or name another folder"
    return wrong


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            repository=dict(type="str", default=""),
            revision=dict(type="str", default="main"),
            endpoint=dict(type="str", default=HUB),
            token=dict(type="str", default="", no_log=True),
            source=dict(type="path"),
            name=dict(type="str", default=""),
            folder=dict(type="path", default=model_store.DEFAULT),
            include=dict(type="list", elements="str", default=[]),
            exclude=dict(type="list", elements="str"),
            keep=dict(type="int", default=2),
            verify=dict(type="bool", default=False),
            threads=dict(type="int", default=4),
            wait=dict(type="int", default=10),
            job=dict(type="str", default=""),
        ),
        supports_check_mode=True,
    )
    params = module.params
    params["source"] = params["source"] or None
    if not params["repository"] and not params["source"]:
        module.fail_json(msg="give the model's name on the hub (repository) or a folder that has it (source)")
    wrong = options_problem(params)
    if wrong:
        module.fail_json(msg=wrong)
    endpoint = urllib.parse.urlsplit(params["endpoint"])
    if params["token"] and not params["source"] and endpoint.scheme == "http" and endpoint.hostname not in _LOOPBACK:
        module.warn(f"the token goes to {params['endpoint']} in the clear; use https, or leave it out")
    task = Task(module)
    try:
        result = task.run()
    except ModelError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=task.place.problem(error))
    unreadable = "" if result["running"] else task.place.world_problem()
    if unreadable:
        module.warn(unreadable)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
