# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: pct
short_description: Run tasks inside LXC containers of a Proxmox VE node
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Reaches the node locally or by SSH and enters the container from there, so that a container needs neither an address
    nor an SSH server.
  - Enters with C(lxc-attach), or with C(pct exec) where that is missing. A task with pipelining is one process in the
    container and no call of C(pct).
  - The container's root runs the commands, with an environment of its own; nothing of the node's environment gets in.
notes:
  - The user on the node has to be root, as for C(pct) itself.
  - The node is reached with ansible-core's own P(ansible.builtin.ssh#connection) plugin. All of its variables
    (C(ansible_ssh_*) and those below), its environment variables and its section of C(ansible.cfg) apply to the node.
  - With O(node_connection=ssh), a command inside that ends with 255 is taken for a lost connection, as with every host
    that Ansible reaches by SSH.
options:
  vmid:
    description: CTID of the container.
    type: int
    required: true
    vars:
      - name: ansible_pct_vmid
  node_connection:
    description: How the node is reached. V(local) when Ansible runs on the node itself.
    type: str
    choices: [ssh, local]
    default: ssh
    vars:
      - name: ansible_pct_node_connection
  node_host:
    description: Name or address of the node, with O(node_connection=ssh).
    type: str
    vars:
      - name: inventory_hostname
      - name: ansible_host
      - name: delegated_vars['ansible_host']
  node_user:
    description: User on the node, with O(node_connection=ssh).
    type: str
    vars:
      - name: ansible_user
  node_port:
    description: Port of the node's SSH server.
    type: int
    vars:
      - name: ansible_port
  node_password:
    description: Password of the user on the node. Keys are the better way.
    type: str
    vars:
      - name: ansible_password
  node_private_key_file:
    description: The private key that the node accepts.
    type: path
    vars:
      - name: ansible_private_key_file
  node_host_key_checking:
    description: Whether the node's host key is checked. ansible-core's own setting applies where this one is silent.
    type: bool
    vars:
      - name: ansible_host_key_checking
  node_control_path:
    description: Where SSH keeps the socket of the shared connection to the node.
    type: str
    vars:
      - name: ansible_control_path
  node_control_path_dir:
    description: The folder of these sockets.
    type: str
    vars:
      - name: ansible_control_path_dir
"""

EXAMPLES = r"""
# An inventory without the plugin phoenix.hypervisor.lxc_configs, which sets these variables by itself:
#
# containers:
#   hosts:
#     ctid_921:
#       ansible_pct_vmid: 921
#   vars:
#     ansible_connection: phoenix.hypervisor.pct
#     ansible_host: pve.example.org
#     ansible_user: root
- name: Ask a container for its name
  hosts: containers
  gather_facts: false
  tasks:
    - name: Ask
      ansible.builtin.command: hostname
      changed_when: false
"""

import os
import shlex
import uuid

from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import connection_loader
from ansible.utils.display import Display

display = Display()

# What a command inside finds in its environment. lxc-attach alone leaves HOME unset, and Ansible would make a folder
# named "~"; pct exec hands the node's environment on.
ENVIRONMENT = {
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/sh",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "container": "lxc",
}

# What the ways in write on stderr when it may be them that failed. It may as well be the user's own command: the
# container's state decides.
_SUSPICIONS = (b"lxc-attach: ", b"Configuration file '", b"not running")


def enter(vmid: int, command: str) -> str:
    """The node's shell command that runs a shell command inside a container, as one chain of exec.

    :param vmid: the container's CTID
    :param command: for the container's /bin/sh
    """
    inside = shlex.join(["env", "-i", *(f"{key}={value}" for key, value in ENVIRONMENT.items())])
    inside += " /bin/sh -c " + shlex.quote(command)
    # The caller's folder means nothing inside, but lxc-attach would go there if the container has one of that name.
    return (
        f"cd /; if command -v lxc-attach >/dev/null 2>&1; then exec lxc-attach -n {vmid} --clear-env -- {inside}; "
        f"else exec pct exec {vmid} -- {inside}; fi"
    )


class Connection(ConnectionBase):
    """A shell inside a container, over a connection to its node."""

    transport = "phoenix.hypervisor.pct"
    has_pipelining = True
    # Commands run as root inside, so `become: true` to root needs no sudo there.
    default_user = "root"
    # Variables that begin with ansible_ssh_ are handed to this plugin although it doesn't name them; they are the
    # inner plugin's.
    allow_extras = True

    def __init__(self, play_context, *args, **kwargs) -> None:
        super().__init__(play_context, *args, **kwargs)
        self._node = None
        self._variables: dict = {}

    @property
    def extras_prefix(self) -> str:
        return "ssh"

    def set_options(self, task_keys=None, var_options=None, direct=None) -> None:
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        self._variables = {**(var_options or {}), **((var_options or {}).get("_extras") or {})}
        self._variables.pop("_extras", None)
        self._node = None

    # --- the node ---------------------------------------------------------------------------------------------------

    def _node_connection(self) -> ConnectionBase:
        """ansible-core's plugin for the node, with the options that the container's variables give."""
        if self._node is None:
            name = self.get_option("node_connection")
            if name == "local" and os.geteuid() != 0:
                raise AnsibleError(
                    "entering a container needs root on the node, and Ansible runs here as another user; run it as "
                    "root, or reach the node by SSH as root (ansible_pct_node_connection: ssh)"
                )
            # The inner plugin must not wrap anything in `become`: that happens inside the container.
            self._node = connection_loader.get(f"ansible.builtin.{name}", self._play_context, shell=self._shell)
            self._node.set_options(var_options=self._variables)
        return self._node

    def _on_node(self, command: str, in_data: bytes | None = None) -> tuple[int, bytes, bytes]:
        # Not "sudoable": that would make ssh ask for a terminal, which garbles piped output (lxc#3879).
        return self._node_connection().exec_command(
            "/bin/sh -c " + shlex.quote(command), in_data=in_data, sudoable=False
        )

    def _state_problem(self) -> str:
        """One sentence when the container can't be entered, "" when it can be."""
        vmid = self.get_option("vmid")
        node = "this node" if self.get_option("node_connection") == "local" else self.get_option("node_host")
        script = (
            f"test -e /etc/pve/lxc/{vmid}.conf || echo missing; "
            f"grep -q '@/var/lib/lxc/{vmid}/command$' /proc/net/unix || echo stopped"
        )
        said = to_text(self._on_node(script)[1])
        if "missing" in said:
            return (
                f"container {vmid} does not exist on {node} (there is no /etc/pve/lxc/{vmid}.conf); run site.yml for "
                "it, or correct ansible_pct_vmid or the node"
            )
        if "stopped" in said:
            return f"container {vmid} is not running on {node}; start it with: pct start {vmid}"
        return ""

    # --- what Ansible asks of a connection --------------------------------------------------------------------------

    def _connect(self) -> Connection:
        if not self._connected:
            self._node_connection()._connect()
            self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        vmid = self.get_option("vmid")
        display.vvv(f"ENTER {vmid}: {to_text(cmd)}", host=f"ctid {vmid}")
        rc, out, err = self._on_node(enter(vmid, to_text(cmd)), in_data)
        if rc != 0 and any(word in err for word in _SUSPICIONS):
            problem = self._state_problem()
            if problem:
                raise AnsibleConnectionFailure(problem)
        return rc, out, err

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        if not os.path.exists(to_bytes(in_path, errors="surrogate_or_strict")):
            raise AnsibleFileNotFound(f"the file to copy into the container does not exist: {in_path}")
        # Complete or not there: a connection that breaks leaves no half a file under the name.
        part = f"{out_path}.{uuid.uuid4().hex[:8]}.part"
        script = (
            f"cat >{shlex.quote(part)} && mv -fT -- {shlex.quote(part)} {shlex.quote(out_path)} "
            f"|| {{ rm -f -- {shlex.quote(part)}; exit 1; }}"
        )
        with _OnNode(self, in_path) as there:
            if not there.is_local:
                self._node_connection().put_file(in_path, there.path)
            self._copy(f"{{ {enter(self.get_option('vmid'), script)}; }} <{shlex.quote(there.path)}", in_path, out_path)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        script = f"exec cat -- {shlex.quote(in_path)}"
        # A file that is here already is replaced only by a whole one.
        part = f"{out_path}.{uuid.uuid4().hex[:8]}.part"
        try:
            with _OnNode(self, part) as there:
                command = f"{{ {enter(self.get_option('vmid'), script)}; }} >{shlex.quote(there.path)}"
                self._copy(command, in_path, out_path)
                if not there.is_local:
                    self._node_connection().fetch_file(there.path, part)
            os.replace(part, out_path)
        finally:
            if os.path.exists(part):
                os.unlink(part)

    def _copy(self, command: str, in_path: str, out_path: str) -> None:
        rc, out, err = self._on_node(command)
        if rc != 0:
            problem = self._state_problem()
            if problem:
                raise AnsibleConnectionFailure(problem)
            raise AnsibleError(
                f"copying {in_path} to {out_path} (container {self.get_option('vmid')}) failed with exit code {rc}: "
                f"{to_text(err).strip() or to_text(out).strip() or 'no message'}"
            )

    def reset(self) -> None:
        if self._node is not None and hasattr(self._node, "reset"):
            self._node.reset()

    def close(self) -> None:
        if self._node is not None:
            self._node.close()
        self._connected = False


class _OnNode:
    """Where a file of the control node is found on the node: itself, or a temporary file that goes away again."""

    def __init__(self, connection: Connection, path: str) -> None:
        self._connection = connection
        self.is_local = connection.get_option("node_connection") == "local"
        self.path = os.path.abspath(path) if self.is_local else f"/var/tmp/ansible-pct-{uuid.uuid4().hex}"

    def __enter__(self) -> _OnNode:
        if not self.is_local:
            # Nobody else on the node may read what is passing through.
            self._connection._on_node(f"umask 077 && : >{self.path}")
        return self

    def __exit__(self, *exception) -> None:
        if not self.is_local:
            self._connection._on_node(f"rm -f {self.path}")
