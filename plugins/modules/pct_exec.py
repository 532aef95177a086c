#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: pct_exec
short_description: Run a command inside an LXC container of Proxmox VE
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Runs a command as root inside a running container, as C(pct exec) does, but without its cost of a second and without
    the node's environment.
  - A command that takes too long is ended with everything that it has started, and so is one whose task is ended.
  - Runs on the node, as root. The REST API of Proxmox VE can't run commands in containers.
  - To run Ansible's modules inside, use the connection plugin P(phoenix.hypervisor.pct#connection).
attributes:
  check_mode:
    description: Says whether the command would run.
    details: With O(creates) or O(removes) only. Without them the task is skipped.
    support: partial
  diff_mode:
    description: What a command changes is not known.
    support: none
  idempotence:
    description: A second run does nothing when the command has done what O(creates) or O(removes) say.
    details: With O(creates) or O(removes) only. Without them the command always runs.
    support: partial
options:
  vmid:
    description: CTID of the container. It has to run.
    type: int
    required: true
  argv:
    description: The command as a list of words, the program first. No shell touches them.
    type: list
    elements: str
  cmd:
    description: The command as a script for the container's C(/bin/sh).
    type: str
  chdir:
    description: Folder inside where the command runs.
    type: str
    default: /
  creates:
    description:
      - Path or pattern inside. When something matches, the command does not run. Relative to O(chdir).
    type: str
  removes:
    description:
      - Path or pattern inside. When nothing matches, the command does not run. Relative to O(chdir).
    type: str
  stdin:
    description:
      - What the command reads on its standard input. The way for secrets, as O(environment) is.
    type: str
  stdin_add_newline:
    description: Whether a newline is added to O(stdin).
    type: bool
    default: true
  strip_empty_ends:
    description: Whether empty lines are removed from the end of RV(stdout) and RV(stderr).
    type: bool
    default: true
  environment:
    description:
      - Variables that the command has besides C(HOME), C(USER), C(LOGNAME), C(SHELL), C(PATH), C(LANG=C.UTF-8),
        C(TERM=dumb) and C(container=lxc), or instead of them. Nothing of the node's environment gets in.
      - The values may be secrets. They are on no command line, neither on the node nor inside, and neither in a log nor
        in what the module returns; what the command itself prints is returned as it is.
    type: dict
    default: {}
  timeout:
    description:
      - Seconds that the command may take; V(0) for no limit.
      - After that, everything that it has started is told to end, and killed five seconds later. It is known by the
        variable C(PHOENIX_PCT_RUN), which the command finds in its environment, or by its parent. Only a process that
        has got rid of both stays, such as a service that systemd started.
      - The same happens when the task is ended, by C(async) for example.
    type: int
    default: 3600
notes:
  - A process that is left in the background keeps running when the command ends in time, as in a shell.
seealso:
  - module: phoenix.hypervisor.pct_push
  - module: phoenix.hypervisor.pct_pull
  - module: ansible.builtin.command
"""

EXAMPLES = r"""
- name: Ask for the release inside
  phoenix.hypervisor.pct_exec:
    vmid: 921
    argv: [cat, /etc/os-release]
  changed_when: false

- name: Make an SSH host key once
  phoenix.hypervisor.pct_exec:
    vmid: 921
    argv: [ssh-keygen, -q, -t, ed25519, -N, "", -f, /etc/ssh/ssh_host_ed25519_key]
    creates: /etc/ssh/ssh_host_ed25519_key

- name: A script with a secret and a time limit
  phoenix.hypervisor.pct_exec:
    vmid: 921
    chdir: /var/tmp
    cmd: |
      set -e
      curl --fail --oauth2-bearer "$TOKEN" -o model.tar https://models.example.org/model.tar
      tar -xf model.tar
    environment:
      TOKEN: "{{ model_token }}"
    timeout: 600
  no_log: true

- name: Set a password
  phoenix.hypervisor.pct_exec:
    vmid: 921
    argv: [chpasswd]
    stdin: "service:{{ service_password }}"
"""

RETURN = r"""
cmd:
  description: The command, O(argv) or O(cmd).
  returned: always
  type: raw
  sample: ["cat", "/etc/os-release"]
rc:
  description: The command's exit code; 124 when it was ended before its time, 128 and the signal when one ended it.
  returned: when the container could be entered, or in check mode
  type: int
  sample: 0
stdout:
  description: What it printed. Bytes that are no UTF-8 are replaced.
  returned: when the container could be entered, or in check mode
  type: str
  sample: 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"'
stderr:
  description: What it printed on its standard error.
  returned: when the container could be entered, or in check mode
  type: str
  sample: ""
start:
  description: When it started, on the node's clock.
  returned: when it ran
  type: str
  sample: "2026-11-21 11:03:48.083128"
end:
  description: When it ended.
  returned: when it ran
  type: str
  sample: "2026-11-21 11:03:48.103657"
delta:
  description: How long it took.
  returned: when it ran
  type: str
  sample: "0:00:00.020529"
msg:
  description: Why it did not run, or what went wrong.
  returned: when it did not run, or failed
  type: str
  sample: "Did not run the command since '/etc/ssh/ssh_host_ed25519_key' exists"
"""

import datetime

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import inside, inside_command, node, process


def not_needed(params: dict, verb: str) -> str:
    """Why the command need not run, or ""."""
    patterns = {option: params[option] for option in ("creates", "removes") if params[option]}
    if not patterns:
        return ""
    existing = inside_command.existing(params["vmid"], params["chdir"], list(patterns.values()), params["timeout"])
    exists = dict(zip(patterns, existing))
    if exists.get("creates"):
        return f"{verb} not run the command since '{params['creates']}' exists"
    if not exists.get("removes", True):
        return f"{verb} not run the command since '{params['removes']}' does not exist"
    return ""


def run(params: dict, environment: dict, stdin: str | None) -> tuple:
    """Run the command. Gives how it ended and what the module returns of it."""
    text = "" if stdin is None else stdin + ("\n" if params["stdin_add_newline"] else "")
    start = datetime.datetime.now()
    done = inside.run(
        params["vmid"],
        inside_command.command_line(params, list(environment)),
        params["timeout"],
        variables=inside_command.variables(environment),
        stdin=[text.encode("utf-8", "surrogateescape")] if text else (),
    )
    end = datetime.datetime.now()
    out, err = done.stdout, done.stderr
    if params["strip_empty_ends"]:
        out, err = out.rstrip("\r\n"), err.rstrip("\r\n")
    times = dict(start=str(start), end=str(end), delta=str(end - start))
    return done, dict(rc=done.rc, stdout=out, stderr=err, **times)


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            vmid=dict(type="int", required=True),
            argv=dict(type="list", elements="str"),
            cmd=dict(type="str"),
            chdir=dict(type="str", default="/"),
            creates=dict(type="str"),
            removes=dict(type="str"),
            stdin=dict(type="str", no_log=True),
            stdin_add_newline=dict(type="bool", default=True),
            strip_empty_ends=dict(type="bool", default=True),
            environment=dict(type="dict", default={}, no_log=True),
            timeout=dict(type="int", default=3600),
        ),
        required_one_of=[["argv", "cmd"]],
        mutually_exclusive=[["argv", "cmd"]],
        supports_check_mode=True,
    )
    params = module.params
    environment = inside.take_secret(module, "environment")
    stdin = inside.take_secret(module, "stdin")
    cmd = params["argv"] if params["cmd"] is None else params["cmd"]
    wrong = inside_command.options_problem(params) or inside_command.environment_problem(environment)
    if wrong:
        module.fail_json(msg=wrong, cmd=cmd)
    try:
        with process.interruptible():
            inside.check(params["vmid"])
            reason = not_needed(params, "Would" if module.check_mode else "Did")
            if reason:
                module.exit_json(changed=False, msg=reason, cmd=cmd, rc=0, stdout="", stderr="")
            if module.check_mode:
                known = bool(params["creates"] or params["removes"])
                skipped = {} if known else {"skipped": True}
                message = "Command would have run if not in check mode"
                module.exit_json(changed=known, msg=message, cmd=cmd, rc=0, stdout="", stderr="", **skipped)
            done, result = run(params, environment, stdin)
    except (inside.InsideError, node.NodeError) as error:
        module.fail_json(msg=str(error), cmd=cmd)
    except process.Interrupted as interrupted:
        module.fail_json(msg=f"CTID {params['vmid']}: the task was ended by {interrupted}", cmd=cmd)
    if done.failed:
        program = (params["argv"] or [""])[0]
        message = inside_command.problem(params["vmid"], params["chdir"], program, done, params["timeout"])
        module.fail_json(msg=message, cmd=cmd, changed=True, **result)
    module.exit_json(changed=True, cmd=cmd, **result)


if __name__ == "__main__":
    main()
