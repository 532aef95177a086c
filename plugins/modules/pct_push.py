#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: pct_push
short_description: Put a file into an LXC container of Proxmox VE
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Makes sure that a file inside a running container has this content, owner, group and mode.
  - The content is written beside the file, checked by size and SHA-256, and takes the file's place in one step. A
    reader inside sees the old file or the new one, never a part, also when the disk is full or the task is killed.
  - Needs a shell and coreutils or BusyBox inside, no Python.
  - Runs on the node, as root. The REST API of Proxmox VE can't copy files into containers.
attributes:
  check_mode:
    description: Compares with the file inside, and changes nothing.
    support: full
  diff_mode:
    description:
      - Owner, group and mode, and the content of text files up to 100 KiB. No content with C(no_log).
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
      - The file on the node. M(ansible.builtin.copy) brings one there.
    type: str
  content:
    description: The content itself. It is shown nowhere but in a diff.
    type: str
  dest:
    description:
      - Absolute path of the file inside. The folder has to exist.
      - A symbolic link is replaced by the file, as M(ansible.builtin.copy) does it; a directory, a device and the like
        are an error.
    type: str
    required: true
  owner:
    description:
      - Name or number of the owner, inside. Left out, an existing file's stays, and a new file is C(root)'s.
    type: str
    default: ""
  group:
    description: Name or number of the group, inside. Left out, as O(owner).
    type: str
    default: ""
  mode:
    description:
      - Octal mode in quotes, such as V('0644'). Left out, an existing file's stays, and a new file has 0644.
    type: raw
  timeout:
    description: Seconds that each of looking and writing may take; V(0) for no limit.
    type: int
    default: 3600
notes:
  - The file is a new one each time its content changes; hard links to the old one, its ACLs and extended attributes
    stay behind.
seealso:
  - module: phoenix.hypervisor.pct_pull
  - module: phoenix.hypervisor.pct_exec
  - module: ansible.builtin.copy
"""

EXAMPLES = r"""
- name: A file of the node
  phoenix.hypervisor.pct_push:
    vmid: 921
    src: /etc/ssl/certs/ca-certificates.crt
    dest: /etc/ssl/certs/node.crt
    mode: "0644"

- name: A file with a secret
  phoenix.hypervisor.pct_push:
    vmid: 921
    content: "{{ api_key }}\n"
    dest: /etc/service.key
    owner: root
    group: www-data
    mode: "0640"
  no_log: true
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
  description: Number of the owner, inside.
  returned: success
  type: int
  sample: 0
gid:
  description: Number of the group, inside.
  returned: success
  type: int
  sample: 33
mode:
  description: The mode in octal digits.
  returned: success
  type: str
  sample: "0640"
"""

import contextlib
import io
import stat

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import inside, inside_file, node, process


def options_problem(params: dict) -> str:
    """What is wrong with the module's options, or ""."""
    wrong = inside_file.path_problem("dest", params["dest"]) or inside_file.mode_problem(params["mode"])
    return wrong or ("" if params["src"] is None else inside_file.file_problem("src", params["src"]))


def dest_problem(params: dict, found: inside_file.Found) -> str:
    """Why a file can't be there, or ""."""
    dest, where = params["dest"], f"in CTID {params['vmid']}"
    if not found.folder:
        return f"dest: the folder of {dest} does not exist {where}; create it first, with pct_exec and mkdir"
    if found.directory:
        return f"dest: {dest} is a directory {where}; name the file in it"
    if found.exists and not found.is_file and not stat.S_ISLNK(found.mode):
        return f"dest: {dest} is {found.kind} {where}; remove it first, or correct dest"
    for option, what, number in (("owner", "user", found.owner), ("group", "group", found.group)):
        if params[option] and number is None:
            return f"{option}: there is no {what} {params[option]!r} {where}; create it first, or correct {option}"
    return ""


def diff_of(found: inside_file.Found, wanted: inside_file.Wanted, source, params: dict, quiet: bool) -> list:
    """What changes, in Ansible's form."""
    diffs = []
    if not inside_file.same_content(found, wanted) and not quiet:
        before = found.content if found.is_file else b""
        origin = params["src"] or "content"
        diffs.append(inside_file.content_diff(before, inside_file.for_diff(source), params["dest"], origin))
    if not inside_file.same_attributes(found, wanted):
        header = f"{params['dest']} (owner, group, mode)"
        before = inside_file.attributes_text(found.uid, found.gid, stat.S_IMODE(found.mode)) if found.exists else ""
        after = inside_file.attributes_text(wanted.uid, wanted.gid, wanted.mode)
        diffs.append({"before": before, "after": after, "before_header": header, "after_header": header})
    return diffs


def push(module: AnsibleModule, source) -> dict:
    """Compare and, unless in check mode, write. Gives what the module returns."""
    params = module.params
    vmid, dest, timeout = params["vmid"], params["dest"], params["timeout"]
    size, sha256 = inside_file.measure(source)
    found = inside_file.look(
        vmid, dest, timeout, checksum_of=size, show=module._diff, owner=params["owner"], group=params["group"]
    )
    wrong = dest_problem(params, found)
    if wrong:
        raise inside.InsideError(wrong)
    wanted = inside_file.wanted(found, size, sha256, params["owner"], params["group"], params["mode"])
    new_content = not inside_file.same_content(found, wanted)
    new_attributes = not inside_file.same_attributes(found, wanted)
    if new_content and not module.check_mode:
        inside_file.write(vmid, dest, inside_file.pieces(source), wanted, timeout)
    elif new_attributes and not module.check_mode:
        inside_file.set_attributes(vmid, dest, wanted, timeout)
    # Neither "dest" nor "path" is returned: Ansible would add what the node has at that path.
    return dict(
        changed=new_content or new_attributes,
        checksum=sha256,
        size=size,
        uid=wanted.uid,
        gid=wanted.gid,
        mode=f"{wanted.mode:04o}",
        diff=diff_of(found, wanted, source, params, quiet=module.no_log) if module._diff else [],
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            vmid=dict(type="int", required=True),
            src=dict(type="str"),
            content=dict(type="str", no_log=True),
            dest=dict(type="str", required=True),
            owner=dict(type="str", default=""),
            group=dict(type="str", default=""),
            mode=dict(type="raw"),
            timeout=dict(type="int", default=3600),
        ),
        required_one_of=[["src", "content"]],
        mutually_exclusive=[["src", "content"]],
        supports_check_mode=True,
    )
    params = module.params
    content = inside.take_secret(module, "content")
    wrong = options_problem(params)
    if wrong:
        module.fail_json(msg=wrong)
    try:
        with process.interruptible(), contextlib.ExitStack() as stack:
            inside.check(params["vmid"])
            if content is None:
                source = stack.enter_context(open(params["src"], "rb"))
            else:
                source = io.BytesIO(content.encode("utf-8", "surrogateescape"))
            result = push(module, source)
    except (inside.InsideError, node.NodeError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"src: {params['src']} on the node can't be read: {error.strerror}")
    except process.Interrupted as interrupted:
        module.fail_json(msg=f"CTID {params['vmid']}: the task was ended by {interrupted}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
