#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: pct_pull
short_description: Get a file out of an LXC container of Proxmox VE
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Makes sure that a file on the node has the content of a file inside a running container.
  - The content is written beside the file, checked by size and SHA-256, and takes the file's place in one step. A
    reader on the node sees the old file or the new one, never a part.
  - A file that grows while it is read, such as a log, is taken as long as it was at the begin. One that changes
    otherwise is tried three times.
  - Needs a shell and coreutils or BusyBox inside, no Python.
  - Runs on the node, as root. The REST API of Proxmox VE can't copy files out of containers.
attributes:
  check_mode:
    description: Compares with the file inside, and changes nothing.
    support: full
  diff_mode:
    description: Owner, group and mode, and the content of text files up to 100 KiB. No content with C(no_log).
    support: full
  idempotence:
    description: A file that is as it should be is not touched.
    support: full
options:
  vmid:
    description: CTID of the container. It has to run.
    type: int
    required: true
  src:
    description:
      - Absolute path of the file inside. Symbolic links are followed, inside; a directory, a device and the like are an
        error.
    type: str
    required: true
  dest:
    description:
      - Absolute path of the file on the node. The folder has to exist. A symbolic link is replaced by the file.
      - The name never comes from inside the container.
    type: str
    required: true
  owner:
    description:
      - Name or number of the owner on the node. Left out, an existing file's stays, and a new file is C(root)'s.
    type: str
  group:
    description: Name or number of the group on the node. Left out, as O(owner).
    type: str
  mode:
    description:
      - Octal mode in quotes, such as V('0644'). Left out, an existing file's stays, and a new file has 0600, because it
        may hold a secret of the container.
    type: raw
  timeout:
    description: Seconds that each of looking and reading may take; V(0) for no limit.
    type: int
    default: 3600
seealso:
  - module: phoenix.hypervisor.pct_push
  - module: phoenix.hypervisor.pct_exec
  - module: ansible.builtin.fetch
"""

EXAMPLES = r"""
- name: The log of a model server
  phoenix.hypervisor.pct_pull:
    vmid: 921
    src: /var/log/vllm.log
    dest: /root/ctid_921-vllm.log

- name: A certificate that others may read
  phoenix.hypervisor.pct_pull:
    vmid: 910
    src: /etc/step-ca/certs/root_ca.crt
    dest: /usr/local/share/ca-certificates/phoenix.crt
    mode: "0644"
"""

RETURN = r"""
checksum:
  description: SHA-256 of the content.
  returned: success
  type: str
  sample: "98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4"
size:
  description: Size of the content in bytes.
  returned: success
  type: int
  sample: 3
uid:
  description: Number of the owner on the node.
  returned: success, but when check mode would create the file
  type: int
  sample: 0
gid:
  description: Number of the group on the node.
  returned: success, but when check mode would create the file
  type: int
  sample: 0
mode:
  description: The mode in octal digits.
  returned: success, but when check mode would create the file
  type: str
  sample: "0644"
"""

import hashlib
import os
import stat

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import inside, inside_file, node, own_file, process

_TRIES = 3


class Differs(Exception):
    """More came than was there when it was looked at."""


def dest_problem(dest: str) -> str:
    """Why a file can't be there on the node, or ""."""
    if not os.path.isdir(os.path.dirname(dest)):
        return f"dest: the folder {os.path.dirname(dest)} does not exist on the node; create it first"
    if os.path.isdir(dest):
        return f"dest: {dest} is a directory on the node; name the file in it"
    if os.path.lexists(dest):
        found = inside_file.Found(mode=os.lstat(dest).st_mode)
        if not found.is_file and not stat.S_ISLNK(found.mode):
            return f"dest: {dest} is {found.kind} on the node; remove it first, or correct dest"
    return ""


def src_problem(params: dict, found: inside_file.Found) -> str:
    """Why there is nothing to get, or ""."""
    src, where = params["src"], f"in CTID {params['vmid']}"
    if not found.exists:
        return f"src: there is no {src} {where}; correct src, or create it first"
    if not found.is_file:
        return f"src: {src} is {found.kind} {where}; name a regular file"
    if not found.sha256:
        return f"src: {src} can't be read {where}; look at it with: pct exec {params['vmid']} -- cat {src}"
    return ""


def look(params: dict, show: bool) -> inside_file.Found:
    """The file inside.

    :raises InsideError: when there is none
    """
    found = inside_file.look(params["vmid"], params["src"], params["timeout"], follow=True, show=show)
    wrong = src_problem(params, found)
    if wrong:
        raise inside.InsideError(wrong)
    return found


def fetch(params: dict, found: inside_file.Found, file) -> inside_file.Found:
    """Write the content of the file inside to a file on the node. Gives what was there when it was read.

    :raises InsideError: when it changes all the time
    """
    for left in reversed(range(_TRIES)):
        if _fetch_once(params, found, file) == found.sha256:
            file.flush()
            os.fsync(file.fileno())
            return found
        if left:
            found = look(params, show=False)
    raise inside.InsideError(
        f"src: {params['src']} in CTID {params['vmid']} changes while it is read, and did so {_TRIES} times; stop what "
        "writes it, or get a copy of it"
    )


def _fetch_once(params: dict, found: inside_file.Found, file) -> str:
    digest, size = hashlib.sha256(), 0
    file.seek(0)
    file.truncate()

    def take(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        if size > found.size:
            raise Differs
        digest.update(piece)
        file.write(piece)

    try:
        inside_file.read(params["vmid"], params["src"], found.size, take, params["timeout"])
    except Differs:
        return ""
    return digest.hexdigest()


def set_attributes(module: AnsibleModule, path: str, changed: bool, diff: dict) -> bool:
    """Give a file of the node the declared owner, group and mode, or only say in check mode that it would change."""
    arguments = module.load_file_common_arguments(module.params, path=path)
    # The path as it is: Ansible would expand a dollar sign in it.
    return module.set_fs_attributes_if_different({**arguments, "path": path}, changed, diff=diff, expand=False)


def pull(module: AnsibleModule) -> dict:
    """Compare and, unless in check mode, write. Gives what the module returns."""
    params, dest = module.params, module.params["dest"]
    found = look(params, show=module._diff)
    is_file = os.path.isfile(dest) and not os.path.islink(dest)
    before, content = "", b""
    if is_file:
        with open(dest, "rb") as old:
            before = inside_file.measure(old)[1]
            content = inside_file.for_diff(old)
    diffs, attributes_diff = [], {}
    changed = before != found.sha256
    if changed and module._diff and not module.no_log:
        diffs.append(inside_file.content_diff(content, found.content, dest, f"{params['src']} in {params['vmid']}"))
    if changed and not module.check_mode:
        with own_file.beside(dest) as (file, name):
            found = fetch(params, found, file)
            own_file.keep_attributes(file, dest)
            # Before it is in its place: it must never be there with more rights than declared.
            set_attributes(module, name, changed, attributes_diff)
            os.replace(name, dest)
    elif is_file:
        changed = set_attributes(module, dest, changed, attributes_diff)
    if module._diff and attributes_diff.get("before") != attributes_diff.get("after"):
        header = f"{dest} (owner, group, mode)"
        sides = {side: _text(attributes_diff[side]) for side in ("before", "after")}
        diffs.append({**sides, "before_header": header, "after_header": header})
    # Not with "dest": Ansible would look up what is there by a name in which it expands dollar signs.
    return dict(changed=changed, checksum=found.sha256, size=found.size, diff=diffs, **attributes_of(dest))


def attributes_of(dest: str) -> dict:
    """Owner, group and mode of a file of the node, if it is there."""
    try:
        status = os.lstat(dest)
    except FileNotFoundError:
        return {}
    return dict(uid=status.st_uid, gid=status.st_gid, mode=f"{stat.S_IMODE(status.st_mode):04o}")


def _text(attributes_diff: dict) -> str:
    return "".join(f"{key}: {value}\n" for key, value in sorted(attributes_diff.items()) if key != "path")


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            vmid=dict(type="int", required=True),
            src=dict(type="str", required=True),
            dest=dict(type="str", required=True),
            owner=dict(type="str"),
            group=dict(type="str"),
            mode=dict(type="raw"),
            timeout=dict(type="int", default=3600),
        ),
        supports_check_mode=True,
    )
    params = module.params
    wrong = (
        inside_file.path_problem("src", params["src"])
        or inside_file.path_problem("dest", params["dest"])
        or inside_file.mode_problem(params["mode"])
        or dest_problem(params["dest"])
    )
    if wrong:
        module.fail_json(msg=wrong)
    try:
        with process.interruptible():
            inside.check(params["vmid"])
            result = pull(module)
    except (inside.InsideError, node.NodeError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"dest: {params['dest']} on the node can't be replaced, and is untouched: {error.strerror}"
        )
    except process.Interrupted as interrupted:
        module.fail_json(msg=f"CTID {params['vmid']}: the task was ended by {interrupted}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
