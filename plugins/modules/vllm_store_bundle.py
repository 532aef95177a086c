#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_store_bundle
short_description: Carry the wheels of a vLLM release to a node without a network
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Writes the wheels of a release that the node's store has (M(phoenix.hypervisor.vllm_store)) into one file, the
    bundle, and puts those of a bundle into the store of another node. Containers there install the release without a
    network and without a compiler.
  - Every file is checked by SHA-256 on both ways. The bundle, and the wheels in the store, are there whole or not at
    all, also when the disk is full or the task is killed.
  - Runs on the node, as root.
attributes:
  check_mode:
    description: Reads and checks what a run would, and writes nothing.
    support: full
  diff_mode:
    description: The wheels that the store has, or the bundle, by their names.
    support: full
  idempotence:
    description: A bundle that has these wheels, whole, is not written again. Wheels that the store has stay.
    support: full
options:
  state:
    description: V(exported) writes the bundle, V(imported) reads it.
    type: str
    choices: [exported, imported]
    required: true
  path:
    description: The bundle, on the node.
    type: path
    required: true
  release:
    description:
      - What is exported, a release's name, or that of a stack for its release that was used last. Needed to export.
      - What is imported is said by the bundle.
    type: str
    default: ""
  store:
    description: The folder of the store on the node.
    type: path
    default: /var/lib/phoenix-hypervisor/wheels
  keep:
    description: How many wheelhouses stay in the store at most, when one is imported.
    type: int
    default: 5
seealso:
  - module: phoenix.hypervisor.vllm_store
"""

EXAMPLES = r"""
- name: Write the wheels of a stack into one file
  phoenix.hypervisor.vllm_store_bundle:
    state: exported
    release: vllm-0.10.2-cu128-source
    path: /root/vllm-0.10.2-cu128-source.tar

- name: Take them to another node's store
  phoenix.hypervisor.vllm_store_bundle:
    state: imported
    path: /root/vllm-0.10.2-cu128-source.tar
"""

RETURN = r"""
release:
  description: The release that the bundle has.
  returned: success
  type: str
  sample: cpu-0123456789ab
files:
  description: How many files there are in it.
  returned: success
  type: int
  sample: 74
size:
  description: Bytes of these files.
  returned: success
  type: int
  sample: 524288000
steps:
  description: What was done, or with check mode would be, one sentence each.
  returned: success
  type: list
  elements: str
  sample: ["write 74 files of cpu-0123456789ab into /root/cpu.tar"]
removed:
  description: The wheelhouses that went from the store, to keep no more than O(keep).
  returned: success
  type: list
  elements: str
  sample: []
"""

import errno
import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import own_file, process, store_bundle, store_plan
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
    Damaged,
    Manifest,
    StoreError,
)


def is_whole(path: str, manifest: Manifest) -> bool:
    """Is there a bundle with exactly these wheels?"""
    try:
        with store_bundle.opened(path) as bundle:
            if bundle.manifest.text != manifest.text:
                return False
            bundle.sizes()
            checked = Receiver("", manifest, path, ())
            bundle.read(checked.begin, checked.finish)
            return True
    except (StoreError, OSError):
        return False


def exported(module: AnsibleModule, store: Store) -> dict:
    """Write the bundle, unless it is there."""
    path, used = module.params["path"], store.used()
    release = store_plan.newest_of(module.params["release"], used)
    manifest = store.manifest(release) if release else None
    if not manifest:
        there = f"it has {', '.join(sorted(used))}" if used else "it is empty"
        raise StoreError(
            f"release: the store {store.root} has no whole wheels of {module.params['release']!r}; {there}. Converge a "
            "container with that stack on this node first, or correct release"
        )
    size = store.size(manifest)
    changed = not is_whole(path, manifest)
    steps = [f"write {len(manifest.files)} files of {release} into {path}"] if changed else []
    if changed and not module.check_mode:
        write(store, manifest, path, size)
    diff = {"before": "" if changed else f"{release}\n", "after": f"{release}\n"}
    return dict(changed=changed, steps=steps, release=release, files=len(manifest.files), size=size, diff=diff)


def write(store: Store, manifest: Manifest, path: str, size: int) -> None:
    """Write the bundle beside its place, then move it there."""
    there = os.statvfs(os.path.dirname(path))
    if size > there.f_bavail * there.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with store.reading(manifest.release) as folder, own_file.beside(path) as (file, name):
        try:
            for piece in archive(folder, manifest, [MANIFEST, *manifest.names], f"{manifest.release}/"):
                file.write(piece)
        except Damaged as damage:
            place = store.set_aside(manifest, damage.name, folder)
            where = f", and is set aside at {place}" if place else ""
            raise StoreError(
                f"{damage}{where}. Look at the disk of {store.root}; converge a container with this stack to have the "
                "wheels made anew, then export them"
            ) from None
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
        os.rename(name, path)


def imported(module: AnsibleModule, store: Store) -> dict:
    """Put what the bundle has into the store, unless it is there."""
    with store_bundle.opened(module.params["path"]) as bundle:
        manifest, sizes = bundle.manifest, bundle.sizes()
        release, used = manifest.release, store.used()
        result = dict(release=release, files=len(sizes), size=sum(sizes.values()), removed=[])
        text = "".join(f"{each}\n" for each in sorted(used))
        there = store.manifest(release)
        if there:
            other = there.text != manifest.text
            steps = [f"the store has other wheels of {release} already, and they stay"] if other else []
            return dict(result, changed=False, steps=steps, diff={"before": text, "after": text})
        take(module, store, bundle, sizes)
        used[release] = time.time()
        result["removed"] = store_plan.to_remove(used, module.params["keep"], store.claimed())
        if not module.check_mode:
            result["removed"] = store.prune(module.params["keep"])
        steps = [f"put {len(sizes)} files of {release} into {store.root}"]
        steps += [f"remove the wheels of {each} from the store" for each in result["removed"]]
        after = "".join(f"{each}\n" for each in sorted(set(used).difference(result["removed"])))
        return dict(result, changed=True, steps=steps, diff={"before": text, "after": after})


def take(module: AnsibleModule, store: Store, bundle: store_bundle.Bundle, sizes: dict) -> None:
    """Read and check all of a bundle and, unless in check mode, place it in the store."""
    manifest, source = bundle.manifest, f"path: {bundle.path}"
    if module.check_mode:
        checked = Receiver("", manifest, source, ())
        bundle.read(checked.begin, checked.finish)
        return
    store.prepare()
    with store.incoming() as folder:
        missing = store.share(folder, manifest)
        store.check_room(sum(sizes[name] for name in missing))
        checked = Receiver(folder, manifest, source, missing)
        bundle.read(checked.begin, checked.finish)
        store.place(folder, manifest)


def options_problem(params: dict) -> str:
    """What is wrong with the module's options, or ""."""
    path = params["path"]
    wrong = path_problem(params["store"])
    if not path.startswith("/") or os.path.isdir(path):
        wrong = wrong or f"path: {path!r} is not the absolute path of a file"
    if params["state"] == "exported" and not os.path.isdir(os.path.dirname(path)):
        wrong = wrong or f"path: the folder {os.path.dirname(path)} does not exist on the node; create it first"
    if params["state"] == "imported" and not os.path.isfile(path):
        wrong = wrong or f"path: there is no {path} on the node; copy the bundle there, or correct path"
    if params["keep"] < 1:
        wrong = wrong or f"keep: {params['keep']} is too few; at least 1 has to stay"
    return wrong


def problem(error: OSError, params: dict, store: Store) -> str:
    """Why something could not be written or read."""
    if params["state"] == "imported":
        return store.problem(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"path: the disk of {params['path']} on the node has no room for the bundle; make room there, or name "
            "another path. What was there is untouched"
        )
    return f"path: {params['path']} on the node can't be written, and what was there is untouched: {error.strerror}"


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            state=dict(type="str", choices=["exported", "imported"], required=True),
            path=dict(type="path", required=True),
            release=dict(type="str", default=""),
            store=dict(type="path", default=DEFAULT),
            keep=dict(type="int", default=KEEP),
        ),
        required_if=[("state", "exported", ["release"])],
        supports_check_mode=True,
    )
    params = module.params
    wrong = options_problem(params)
    if wrong:
        module.fail_json(msg=wrong)
    store = Store(params["store"])
    try:
        with process.interruptible():
            result = exported(module, store) if params["state"] == "exported" else imported(module, store)
    except StoreError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=problem(error, params, store))
    except process.Interrupted as interrupted:
        module.fail_json(msg=f"path: {params['path']}: the task was ended by {interrupted}")
    module.exit_json(**{"removed": [], **result})


if __name__ == "__main__":
    main()
