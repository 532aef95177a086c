#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_store
short_description: Keep the wheels of a vLLM release on the node, for its next container
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - The wheels of a release, downloaded and built, are its wheelhouse. This module keeps wheelhouses in a folder of the
    node and gives them to containers, which then need no network and no compiler.
  - While one container makes a wheelhouse, the others that ask for it wait. One that is heard of no more (no play, no
    C(vllm_release.service), no progress for a minute) is waited for no longer.
  - Files stream through C(lxc-attach), are checked by SHA-256 on their way, and a wheelhouse is there whole or not at
    all, on both sides, also when the disk is full or the task is killed. A file that several wheelhouses have is on the
    node's disk once.
  - A file that was damaged on the node is noticed when it is given. It is set aside with a warning that names it, and
    the wheelhouse is made anew.
  - Runs on the node, as root. The REST API of Proxmox VE can't copy files into containers.
attributes:
  check_mode:
    description: Tells what would be done, without a look at the content of the store's files, and waits for nobody.
    support: full
  diff_mode:
    description: The wheelhouses that the store has, who makes one, and whether the container has its own.
    support: full
  idempotence:
    description: A wheelhouse that is where it should be is not touched.
    support: full
options:
  state:
    description:
      - V(given) puts the wheelhouse into the container when the store has it. When it hasn't, the container is to make
        it, which is written down as its claim, or waits for another that does.
      - V(kept) gets the wheelhouse out of the container, and takes the claim back. The folder that it was made in is
        removed inside. The wheelhouses that were used least lately go when there are more than O(keep).
      - V(released) takes the claim back, for a container that did not make it.
    type: str
    choices: [given, kept, released]
    required: true
  vmid:
    description: CTID of the container. It has to run, but for V(released).
    type: int
    required: true
  release:
    description: The release's name, as M(phoenix.hypervisor.vllm_release) has it.
    type: str
    required: true
  candidates:
    description:
      - With V(given), the releases that may be installed, the best first; O(release) is one of them.
      - When the store has none of O(release), and has one of a later candidate whose maker had every candidate between
        refused by a gate, that one is given instead. What depends on the single container, the driver and the toolkit,
        is no such reason.
    type: list
    elements: str
    default: []
  locked:
    description:
      - With V(given), the hashes (SHA-256) that the files of the release's lock may have. When this container is to
        make the wheelhouse, it gets what the store has of these files from other releases, and downloads the rest only.
    type: list
    elements: str
    default: []
  wheels:
    description:
      - The folder of the wheelhouse inside. It has to end in the release's name and C(wheels), and the folder above it
        is removed with V(kept).
      - Left out, it is the one below C(/opt/vllm-releases/.work) that M(phoenix.hypervisor.vllm_release) uses.
    type: str
    default: ""
  store:
    description: The folder on the node.
    type: path
    default: /var/lib/phoenix-hypervisor/wheels
  keep:
    description: How many wheelhouses stay at most. One that is claimed or being given stays in any case.
    type: int
    default: 5
  beside:
    description:
      - CTIDs of the play's other containers. With Ansible's usual strategy they don't go on before this task has ended,
        so it doesn't wait for one of them to begin its work. It returns RV(postponed) then, and is to be called again
        after the tasks that make the wheels.
    type: list
    elements: int
    default: []
  wait:
    description:
      - Seconds that one call of the module waits for another container. The task itself waits on, calls it again, and
        shows what that container does.
    type: int
    default: 0
  timeout:
    description: Seconds that one look or transfer may take; V(0) for no limit.
    type: int
    default: 3600
notes:
  - All containers that install a release from the store trust the one that made its wheels.
seealso:
  - module: phoenix.hypervisor.vllm_release
  - module: phoenix.hypervisor.vllm_store_bundle
"""

EXAMPLES = r"""
- name: Wheels from the store, or the task to make them
  phoenix.hypervisor.vllm_store:
    state: given
    vmid: 921
    release: cpu-0123456789ab
  delegate_to: pve
  register: store

- name: Wheels to the store, for the next container
  phoenix.hypervisor.vllm_store:
    state: kept
    vmid: 921
    release: cpu-0123456789ab
  delegate_to: pve
"""

RETURN = r"""
release:
  description: The release whose wheels are given, another than O(release) when that one was refused before.
  returned: success
  type: str
  sample: cpu-0123456789ab
refused:
  description: The better releases that were refused before, and why; M(phoenix.hypervisor.vllm_release) takes them.
  returned: success
  type: dict
  sample: {}
given:
  description: Whether the whole wheelhouse is in the container.
  returned: success, with O(state=given)
  type: bool
  sample: true
claimed:
  description: Whether this container is to make it, and has the claim.
  returned: success
  type: bool
  sample: false
kept:
  description: Whether the store has the wheelhouse.
  returned: success
  type: bool
  sample: true
postponed:
  description: Whether a container of O(beside) is to make it first, and this module to be called again after that.
  returned: success
  type: bool
  sample: false
running:
  description: Whether another container makes it at the moment, and is worth to wait for.
  returned: success
  type: bool
  sample: false
progress:
  description: Whom it waits for, since when, and what that one does; empty when it waits for nobody.
  returned: success
  type: str
  sample: "waits for the wheels of cpu-0123456789ab, which CTID 922 makes since 14:03:12: building: [12/345] cache.cu"
again:
  description: Options of the next call of the module while RV(running), for the task itself.
  returned: success
  type: dict
  sample: {wait: 30}
builder:
  description: CTID that makes it; 0 when nobody does.
  returned: success
  type: int
  sample: 922
steps:
  description: What was done, or with check mode would be, one sentence each.
  returned: success
  type: list
  elements: str
  sample: ["give CTID 921 the wheels of cpu-0123456789ab from the store: 74 files"]
sent:
  description: Bytes of wheels that were copied into the container or out of it.
  returned: success
  type: int
  sample: 524288000
damaged:
  description: The file of the store that was found damaged, and where it is now; empty when all is well.
  returned: success
  type: str
  sample: ""
removed:
  description: The wheelhouses that went, to keep no more than O(keep).
  returned: success
  type: list
  elements: str
  sample: []
"""

import contextlib
import os
import time
from dataclasses import dataclass, replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    inside,
    node,
    process,
    store_inside,
    store_plan,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils.store import (
    DEFAULT,
    KEEP,
    Receiver,
    Store,
    archive,
    path_problem,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils.store_plan import (
    MANIFEST,
    Claim,
    Damaged,
    Manifest,
    Seen,
    StoreError,
)

_WORK = "/opt/vllm-releases/.work"
_PAUSE = 2.0
# Seconds that a call waits after the first one.
_WAIT = 30
# A transfer is a sign of life, too.
_BEAT = 10.0


@dataclass(frozen=True)
class State:
    """What a diff shows.

    :ivar inside: the folder of the whole wheelhouse in the container
    :ivar kept: the releases of the store
    :ivar maker: CTID of who makes it
    """

    inside: str = ""
    kept: frozenset = frozenset()
    maker: int = 0

    def text(self, vmid: int) -> str:
        lines = [f"store: {release}" for release in sorted(self.kept)]
        lines += [f"made by: CTID {self.maker}"] if self.maker else []
        lines += [f"CTID {vmid}: {self.inside}"] if self.inside else []
        return "".join(f"{line}\n" for line in lines)


class Task:
    """One call: what it is for, and what comes of it."""

    def __init__(self, module: AnsibleModule) -> None:
        params = module.params
        self.module = module
        self.check = module.check_mode
        self.vmid, self.release, self.timeout = params["vmid"], params["release"], params["timeout"]
        self.wheels = params["wheels"] or f"{_WORK}/{self.release}/wheels"
        self.store = Store(params["store"])
        self.steps: list[str] = []
        self.result: dict = {
            "sent": 0, "damaged": "", "removed": [], "running": False, "postponed": False, "progress": "", "again": {},
            "refused": {},
        }  # fmt: skip
        # What there was, and what there is after the steps; with check mode, what there would be.
        self.before = self.after = State()

    # --- looking ----------------------------------------------------------------------------------------------------

    def look(self) -> tuple[Seen, store_inside.Found]:
        """What there is, in the container and in the store."""
        now = time.time()
        found = store_inside.look(self.vmid, self.wheels, now, self.timeout)
        claim = self.store.claim(self.release)
        builder = store_plan.NOBODY
        if claim and claim.vmid not in (0, self.vmid):
            builder = store_inside.builder(claim.vmid, claim.wheels, now)
        seen = Seen(
            inside=self._inside(found), busy=found.busy, kept=self.store.manifest(self.release), claim=claim,
            builder=builder,
        )  # fmt: skip
        self._see(State(self.wheels if seen.inside else "", frozenset(self.store.used()), claim.vmid if claim else 0))
        return seen, found

    def _see(self, state: State) -> None:
        self.before = state if self.before == State() else self.before
        self.after = state

    def _inside(self, found: store_inside.Found) -> Manifest | None:
        if found.manifest is None:
            return None
        try:
            return store_plan.manifest(found.manifest, self.release, self.wheels)
        except StoreError:
            # Whoever makes it anew replaces it.
            return None

    # --- given ------------------------------------------------------------------------------------------------------

    def given(self) -> bool:
        """Give the wheels, or the task to make them. True when something changed."""
        self._take_instead()
        end = time.monotonic() + self.module.params["wait"]
        while True:
            seen, found = self.look()
            step = store_plan.plan_given(seen, self.vmid, self.release, time.time(), self.module.params["beside"])
            if step.action == "wait":
                if seen.builder.works and not self.check:
                    # What one that waits has seen, the others needn't look for.
                    self.store.heard(self.release)
                again = {"wait": self.module.params["wait"] or _WAIT}
                self.result.update(progress=step.text, running=not self.check, again=again)
                if self.check or time.monotonic() >= end:
                    self.steps.append(step.text)
                    return False
                time.sleep(_PAUSE)
                continue
            self.result.update(progress="", running=False, again={})
            done = self._do(step.action, seen, found)
            if done is not None:
                self.steps.append(step.text)
                makes = step.action in ("claim", "take over", "own")
                return (makes and self._lend(found)) or done

    def _take_instead(self) -> None:
        """Go on with the release that another container came to, where that is known."""
        candidates = self.module.params["candidates"]
        found = store_plan.instead(self.release, candidates, self.store.manifest)
        if found is None:
            return
        better = candidates[candidates.index(self.release) : candidates.index(found.release)]
        self.result["refused"] = {name: dict(found.refused[name]) for name in better}
        for name, why in self.result["refused"].items():
            self.steps.append(f"{name} is left out, it was refused before: {why.get('message')}")
        self.wheels = f"{self.wheels.rpartition(f'/{self.release}/wheels')[0]}/{found.release}/wheels"
        self.release = found.release

    def _do(self, action: str, seen: Seen, found: store_inside.Found) -> bool | None:
        """One step of giving; None when things are different now and are to be looked at again."""
        if action in ("claim", "take over"):
            if not self.check:
                self.store.prepare()
                mine = Claim(self.vmid, round(time.time(), 3), self.wheels)
                if not self.store.take_claim(self.release, mine, seen.claim):
                    return None
            self.after = replace(self.after, maker=self.vmid)
            return True
        if action == "give":
            if not (self.check or self._give(seen.kept, found)):
                return None
            self.after = replace(self.after, inside=self.wheels)
            self._drop_claim()
            return True
        self.result["postponed"] = action == "postpone" and not self.check
        if action == "own" and not self.check:
            self.store.heard(self.release)
        return self._drop_claim() if action == "there" and seen.kept else False

    def _give(self, manifest: Manifest, found: store_inside.Found) -> bool:
        """Stream a wheelhouse into the container; False when the store hasn't got it any more."""
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(self.store.reading(self.release))
                size = self.store.size(manifest)
            except FileNotFoundError:
                return False
            if size > found.free:
                raise store_inside.no_room(self.vmid, self.wheels, size)
            pieces = archive(folder, manifest, [*manifest.names, MANIFEST])
            try:
                store_inside.give(self.vmid, self.wheels, pieces, size, self.timeout)
            except Damaged as damage:
                self._set_aside(manifest, damage, folder)
                return False
        self.store.mark_used(self.release)
        self.result["sent"] = size
        return True

    def _lend(self, found: store_inside.Found) -> bool:
        """Give it the files that other releases have as well, before it begins to download."""
        manifests = filter(None, map(self.store.manifest, sorted(self.store.used())))
        files = store_plan.known(self.module.params["locked"], manifests)
        if not files or found.wheels or found.busy:
            return False
        self.steps.append(f"give CTID {self.vmid} what other releases in the store have of it: {len(files)} files")
        if not self.check:
            part = Manifest(self.release, files, b"")
            with self.store.incoming() as folder, contextlib.ExitStack() as stack:
                missing = self.store.share(folder, part)
                names = [name for name in part.names if name not in missing]
                size = sum(os.stat(f"{folder}/{name}").st_size for name in names)
                if size > found.free:
                    raise store_inside.no_room(self.vmid, self.wheels, size)
                held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, held)
                pieces = archive(held, part, names)
                try:
                    store_inside.give(self.vmid, self.wheels, pieces, size, self.timeout, whole=False)
                except Damaged as damage:
                    # It was whole a moment ago. Everything can be downloaded.
                    self.module.warn(f"{damage}. Look at the disk of {self.store.root}")
                    return False
            self.result["sent"] = size
        return True

    def _set_aside(self, manifest: Manifest, damage: Damaged, folder: int) -> None:
        place = self.store.set_aside(manifest, damage.name, folder)
        if place is None:
            return
        where = f"it is set aside at {place}, and " if place else ""
        said = f"{damage}: {where}the wheels of {self.release} are made anew. Look at the disk of {self.store.root}"
        self.result["damaged"] = said
        self.module.warn(said)

    # --- kept -------------------------------------------------------------------------------------------------------

    def kept(self) -> bool:
        """Get the wheels out of the container. True when something changed."""
        seen, found = self.look()
        changed = False
        if not seen.kept:
            if not seen.inside and self.check:
                # What would make them didn't run.
                return False
            manifest = self._whole(found)
            self.steps.append(f"keep the wheels of {self.release} in {self.store.root}: {len(manifest.files)} files")
            # Those of the store were all used before this one.
            used = {**self.store.used(), self.release: time.time()}
            self.result["removed"] = store_plan.to_remove(used, self.module.params["keep"], self.store.claimed())
            if not self.check:
                self._keep(manifest)
            self.steps += [f"remove the wheels of {release} from the store" for release in self.result["removed"]]
            self.after = replace(self.after, kept=frozenset(used).difference(self.result["removed"]))
            changed = True
        if found.wheels and not found.busy:
            self.steps.append(f"remove {self.wheels} in CTID {self.vmid}, with what they were made in")
            if not self.check:
                store_inside.remove(self.vmid, self.wheels, self.timeout)
            self.after = replace(self.after, inside="")
            changed = True
        return self._drop_claim() or changed

    def _whole(self, found: store_inside.Found) -> Manifest:
        """:raises StoreError: when there is no whole wheelhouse inside"""
        where = f"CTID {self.vmid}: {self.wheels}"
        if found.manifest is None:
            raise StoreError(f"{where} has no {MANIFEST}, so it is not complete; make it with vllm_release first")
        return store_plan.manifest(found.manifest, self.release, where)

    def _keep(self, manifest: Manifest) -> None:
        self.store.prepare()
        self.store.heard(self.release)
        with self.store.incoming() as folder:
            names = self.store.share(folder, manifest)
            sizes = store_inside.sizes(self.vmid, self.wheels, names, self.timeout) if names else []
            self.store.check_room(sum(sizes))
            receiver = Receiver(folder, manifest, f"CTID {self.vmid}: {self.wheels}")
            cutter = store_plan.Cutter(zip(names, sizes), receiver.begin, receiver.finish)
            if names:
                store_inside.take(self.vmid, self.wheels, names, self._with_beat(cutter.feed), self.timeout)
            if not cutter.is_done:
                raise StoreError(f"CTID {self.vmid}: {self.wheels} changes while it is read; run again")
            self.store.place(folder, manifest)
        self.result.update(sent=sum(sizes), removed=self.store.prune(self.module.params["keep"]))

    def _with_beat(self, feed):
        last = 0.0

        def take(chunk: bytes) -> None:
            nonlocal last
            feed(chunk)
            if time.monotonic() - last > _BEAT:
                last = time.monotonic()
                self.store.heard(self.release)

        return take

    # --- released ---------------------------------------------------------------------------------------------------

    def released(self) -> bool:
        """Take the claim back."""
        claim = self.store.claim(self.release)
        self._see(State("", frozenset(self.store.used()), claim.vmid if claim else 0))
        return self._drop_claim()

    def _drop_claim(self) -> bool:
        claim = self.store.claim(self.release)
        if not claim or claim.vmid != self.vmid:
            return False
        self.steps.append(f"CTID {self.vmid} no longer makes the wheels of {self.release}")
        self.after = replace(self.after, maker=0)
        return self.check or self.store.give_back(self.release, self.vmid)

    def run(self) -> dict:
        """What the module returns."""
        state = self.module.params["state"]
        changed = getattr(self, state)()
        result = dict(
            self.result,
            release=self.release,
            changed=changed,
            steps=self.steps,
            kept=self.release in self.after.kept,
            claimed=self.after.maker == self.vmid,
            builder=self.after.maker,
            diff={"before": self.before.text(self.vmid), "after": self.after.text(self.vmid)},
        )
        return {**result, "given": bool(self.after.inside)} if state == "given" else result


def options_problem(params: dict) -> str:
    """What is wrong with the module's options, or ""."""
    wrong = store_plan.release_problem(params["release"]) or path_problem(params["store"])
    if params["keep"] < 1:
        wrong = wrong or f"keep: {params['keep']} is too few; at least 1 has to stay"
    return wrong or (store_plan.wheels_problem(params["wheels"], params["release"]) if params["wheels"] else "")


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            state=dict(type="str", choices=["given", "kept", "released"], required=True),
            vmid=dict(type="int", required=True),
            release=dict(type="str", required=True),
            candidates=dict(type="list", elements="str", default=[]),
            locked=dict(type="list", elements="str", default=[]),
            wheels=dict(type="str", default=""),
            store=dict(type="path", default=DEFAULT),
            keep=dict(type="int", default=KEEP),
            beside=dict(type="list", elements="int", default=[]),
            wait=dict(type="int", default=0),
            timeout=dict(type="int", default=3600),
        ),
        supports_check_mode=True,
    )
    params = module.params
    wrong = options_problem(params)
    if wrong:
        module.fail_json(msg=wrong)
    task = Task(module)
    try:
        with process.interruptible():
            if params["state"] == "released":
                node.check()
            else:
                inside.check(params["vmid"])
            result = task.run()
    except (StoreError, inside.InsideError, node.NodeError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=task.store.problem(error))
    except process.Interrupted as interrupted:
        module.fail_json(msg=f"CTID {params['vmid']}: the task was ended by {interrupted}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
