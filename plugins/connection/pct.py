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
  - Files go through the same way as they are, without a temporary file on the node and without being held in memory.
  - What a task runs in the container ends when the task is given up, by the keyword C(timeout), by C(Ctrl+C), a killed
    Ansible or a closed SSH connection. It gets a V(TERM) and, after five seconds, a V(KILL). Tasks with C(async), and
    what a task that ended by itself has left running, are not touched.
notes:
  - The user on the node has to be root, as for C(pct) itself.
  - The node is reached with ansible-core's own P(ansible.builtin.ssh#connection) plugin. All of its variables
    (C(ansible_ssh_*) and those below), its environment variables and its section of C(ansible.cfg) apply to the node.
  - Become plugins work inside the container, those that ask for a password too, as long as they can read it without a
    terminal (C(sudo), C(su)).
  - ansible-core's worker carries a task to its end when only its master was killed by V(KILL), before 2.19 also by
    V(TERM). So does the container then.
  - The node learns that an SSH connection was cut without a word (a pulled cable) only when its SSH server asks for a
    sign of life; see C(ClientAliveInterval) in C(sshd_config).
extends_documentation_fragment:
  - connection_pipelining
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
  pipelining:
    env:
      - name: ANSIBLE_PIPELINING
      - name: ANSIBLE_SSH_PIPELINING
    ini:
      - section: defaults
        key: pipelining
      - section: connection
        key: pipelining
      - section: ssh_connection
        key: pipelining
    vars:
      - name: ansible_pipelining
      - name: ansible_ssh_pipelining
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

import contextlib
import os
import posixpath
import re
import shlex
import uuid
from collections.abc import Iterator

from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import connection_loader
from ansible.utils.display import Display
from ansible_collections.phoenix.hypervisor.plugins.module_utils.environment import ENVIRONMENT, MARK

display = Display()

# What the ways in write on stderr when it may be them that failed. It may as well be the user's own command: the
# container's state decides.
_SUSPICIONS = (b"lxc-attach: ", b"Configuration file '", b"not running")

# The node's shell functions that end a run. Only numbers are taken from ps: a process inside chooses its own name.
# A child that dropped its environment (su, env -i) is known by its parent; nothing in the node's own PID namespace is
# ever touched. While the process $1 waits for the way in, something may be starting that has no mark yet.
_CUT = r"""
members() {
  marked=$(grep -lsxzF "$MARK=$run" /proc/[0-9]*/environ | tr -dc '0-9\n' | tr '\n' ' ')
  ps -eo pid=,ppid=,stat= | awk -v seeds="$known $marked" '
    $3 !~ /^Z/ { parent[$1] = $2 }
    END {
      split(seeds, seed, " "); for (i in seed) found[seed[i]] = 1
      do { more = 0; for (p in parent) if (!(p in found) && parent[p] in found) more = found[p] = 1 } while (more)
      for (p in parent) if (p in found) print p
    }' | while read -r pid; do
    space=$(readlink "/proc/$pid/ns/pid") && [ "$space" != "$own" ] && echo "$pid"
  done
}
cut_off() {
  own=$(readlink /proc/self/ns/pid); known=; told=' '; round=0
  while [ $((round += 1)) -le 70 ]; do
    known=$(members | tr '\n' ' ')
    [ "$known" ] || kill -0 "$1" || return 0
    for pid in $known; do
      case $told in
        *" $pid "*)
          # All are stopped before one is killed: a shell would start its next command when its last one dies.
          if [ $round -eq 51 ]; then kill -STOP "$pid"; elif [ $round -gt 51 ]; then kill -KILL "$pid"; fi;;
        *) told="$told$pid "; kill -TERM "$pid";;
      esac
    done
    sleep 0.1
  done
}
"""

# Nothing is to be ended when the way in has ended by itself (the process $$ is gone then).
#
# Over SSH, stdin is the sign of life. It brings lines (a password that somebody inside asks for), then the mark and a
# number of bytes, these bytes, and the word that it will be held open: then its end means that the session was cut.
# Without that word the end is only the end of the input.
_FEED = r"""
feed() {
  trap '' HUP INT TERM
  while IFS= read -r line; do
    case $line in
      "$mark "*)
        [ "${line#* }" = 0 ] || head -c "${line#* }"
        exec >&-
        IFS= read -r line && [ "$line" = held ] || exit 0
        read -r line
        break;;
      *) printf '%s\n' "$line";;
    esac
  done
  kill -0 $$ && cut_off $$
}
"""

_HELD = b"held\n"


def enter(vmid: int, command: str, before: str = "") -> str:
    """The node's shell command that runs a shell command inside a container.

    :param vmid: the container's CTID
    :param command: for the container's /bin/sh. The node's shell has its mark in the variable C(run)
    :param before: a command of the node that runs the way in
    """
    inside = shlex.join(["env", "-i", *(f"{key}={value}" for key, value in ENVIRONMENT.items())])
    inside += f' {MARK}="$run" /bin/sh -c ' + shlex.quote(command)
    return (
        f"if command -v lxc-attach >/dev/null; then exec {before}lxc-attach -n {vmid} --clear-env -- {inside}; "
        f"elif command -v pct >/dev/null; then exec {before}pct exec {vmid} -- {inside}; "
        'else echo "$mark noway" >&2; exit 254; fi'
    )


def guarded(vmid: int, command: str, mark: str, alive: str = "") -> str:
    """The node's shell script that enters a container, and ends what it ran there when nobody waits for it any more.

    An exit code of 255, which ssh keeps for itself, comes as 254 with a line on stderr.

    :param mark: a random word
    :param alive: a file to be read whose end means that nobody waits; without it, that is stdin, read by _FEED
    """
    # The caller's folder means nothing inside, but lxc-attach would go there if the container has one of that name.
    # The node's shell adds its own PID to the mark: a second try is another run.
    script = f"cd /; mark={mark}; run=$mark.$$; MARK={MARK}{_CUT}"
    if alive:
        # Ansible ends its workers with a signal to the whole group. What is inside would lose its parents by that, and
        # with them what it is known by: it gets a session of its own.
        script += (
            "trap : HUP INT TERM\n"
            f"{{ trap '' HUP INT TERM; read -r line; kill -0 $$ && cut_off $$; }} <{alive} >/dev/null 2>&1 &\n"
        )
        script += f"({enter(vmid, command, 'setsid ')})"
    else:
        script += f"{_FEED}exec 3<&0\n{{ feed <&3 3<&- 2>/dev/null & }} | {{ exec 3<&-; {enter(vmid, command)}; }}"
    return script + '\nrc=$?; [ $rc -ne 255 ] || { echo "$mark 255" >&2; rc=254; }; exit $rc'


def put_script(path: str, size: int) -> str:
    """The container's shell script that makes its stdin a file, which is there whole or not at all.

    :param size: what the file has at least. An input that ends earlier was cut off
    """
    path = path if path.startswith("/") else f"./{path}"
    # A name of its own length: one that is as long as names can be must not become longer.
    part = shlex.quote(posixpath.join(posixpath.dirname(path), f".ansible-pct-{uuid.uuid4().hex[:12]}"))
    to = shlex.quote(path)
    return (
        f"if [ -e {to} ] && ! [ -f {to} ]; then echo 'the destination is there and is not a file' >&2; exit 1; fi; "
        f"if cat >{part}; then if [ $(wc -c <{part}) -ge {size} ]; then mv -f {part} {to} && exit 0; "
        f"else echo 'it ended before all of it had arrived' >&2; fi; fi; rm -f {part}; exit 1"
    )


def fetch_script(path: str, mark: str) -> str:
    """The container's shell script that writes a file to stdout, and to stderr how much there is of it."""
    path = shlex.quote(path if path.startswith("/") else f"./{path}")
    return f'cat {path} && echo "{mark} $(stat -Lc %s {path})" >&2'


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

    @property
    def _is_local(self) -> bool:
        return self.get_option("node_connection") == "local"

    @property
    def _node_name(self) -> str:
        return "this node" if self._is_local else self.get_option("node_host") or self._play_context.remote_addr

    def _node_connection(self) -> ConnectionBase:
        """ansible-core's plugin for the node, with the options that the container's variables give."""
        if self._node is None:
            name = self.get_option("node_connection")
            if name == "local" and os.geteuid() != 0:
                raise AnsibleError(
                    "entering a container needs root on the node, and Ansible runs here as another user; run it as "
                    "root, or reach the node by SSH as root (ansible_pct_node_connection: ssh)"
                )
            if name == "ssh" and str(self._node_name).startswith("-"):
                raise AnsibleError(
                    f"{self._node_name!r} cannot be the name of a node (ansible_host): ssh would take it for an option"
                )
            self._node = connection_loader.get(f"ansible.builtin.{name}", self._play_context, shell=self._shell)
            self._node.set_options(var_options=self._variables)
            if name == "local":
                # For become: a terminal as stdin would garble what comes out of lxc-attach (lxc#3879).
                self._node.set_option("pipelining", True)
            else:
                _hold_open(self._node)
        return self._node

    def _on_node(self, script: str, in_data: bytes | None = None, sudoable: bool = False) -> tuple[int, bytes, bytes]:
        """Run a shell script on the node. With C(sudoable), the become plugin's prompt is answered."""
        node = self._node_connection()
        node.set_become_plugin(self.become)
        with self._node_problems():
            return node.exec_command("/bin/sh -c " + shlex.quote(script), in_data=in_data, sudoable=sudoable)

    def _stream(self, script: str, redirection: str, in_data: bytes | None = None) -> tuple[int, bytes, bytes]:
        """Run a shell script on the node, its stdin or stdout being a file of the control node.

        ansible-core's ssh plugin holds in memory what goes in and out. It makes the command and runs it here too, with
        all of its options, but the shell has opened the file before it becomes ssh.
        """
        if self._is_local:
            return self._on_node(f"exec {redirection}\n{script}", in_data)
        node = self._node_connection()
        node.host = self._node_name
        ssh = node.get_option("ssh_executable")
        command = node._build_command(ssh, "ssh", node.host, "/bin/sh -c " + shlex.quote(script))
        # What stands before ssh is sshpass with its own arguments.
        at = command.index(to_bytes(ssh))
        command[at:at] = [b"/bin/sh", b"-c", to_bytes(f'exec "$@" {redirection}'), b"sh"]
        with self._node_problems():
            return node._run(command, in_data, sudoable=False)

    @contextlib.contextmanager
    def _node_problems(self) -> Iterator[None]:
        """Failures of the way to the node say that it is the node, not the container."""
        try:
            yield
        except AnsibleAuthenticationFailure:
            raise
        except AnsibleConnectionFailure as error:
            raise AnsibleConnectionFailure(self._unreachable(to_text(error.message).strip())) from None

    def _unreachable(self, words: str) -> str:
        node, vmid = self._node_name, self.get_option("vmid")
        if re.search("privilege escalation|become", words):
            return f"container {vmid}: {words}"
        if re.search("timed out", words, re.IGNORECASE):
            said = f"node {node} did not answer in time (ansible_ssh_timeout)"
        elif re.search(r"closed|broken pipe|reset by peer|from master failed|:\s*$", words, re.IGNORECASE):
            said = f"the SSH connection to node {node} was lost"
        else:
            said = f"node {node} cannot be reached by SSH"
        return f"{said}; container {vmid} is entered from there. {words}"

    def _state_problem(self) -> str:
        """One sentence when the container can't be entered, "" when it can be."""
        vmid, node = self.get_option("vmid"), self._node_name
        script = (
            f"if [ $(id -u) != 0 ]; then echo user; elif ! [ -e /etc/pve/lxc/{vmid}.conf ]; then echo missing; "
            f"elif ! grep -q '@/var/lib/lxc/{vmid}/command$' /proc/net/unix; then echo stopped; fi"
        )
        said = to_text(self._on_node(script)[1])
        if "user" in said:
            return f"entering a container needs root on {node}; set ansible_user to root"
        if "missing" in said:
            return (
                f"container {vmid} does not exist on {node} (there is no /etc/pve/lxc/{vmid}.conf); run site.yml for "
                "it, or correct ansible_pct_vmid or the node"
            )
        if "stopped" in said:
            return f"container {vmid} is not running on {node}; start it with: pct start {vmid}"
        return ""

    # --- the container ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _way_in(self, command: str, mark: str, in_data: bytes | None = None) -> Iterator[tuple[str, bytes | None]]:
        """A script for the node that runs a command inside until this block is left, and its input."""
        if not self._is_local:
            data = in_data or b""
            # Never empty: then ssh gets no terminal, and its stdin stays open until it has ended.
            yield guarded(self.get_option("vmid"), command, mark), b"%s %d\n%s" % (mark.encode(), len(data), data)
            return
        alive, ours = os.pipe()
        try:
            # By this name the node's shell opens it anew, and this process alone holds the other end.
            yield guarded(self.get_option("vmid"), command, mark, f"/proc/{os.getpid()}/fd/{alive}"), in_data
        finally:
            os.close(ours)
            os.close(alive)

    def _result(self, mark: str, rc: int, out: bytes, err: bytes) -> tuple[int, bytes, bytes]:
        """What the command said, without what the script on the node said."""
        if rc == 254 and b"%s noway\n" % mark.encode() in err:
            raise AnsibleConnectionFailure(
                f"there is neither lxc-attach nor pct on {self._node_name}; it is not a Proxmox VE node, or PATH of "
                "its root has no /usr/bin and /usr/sbin"
            )
        line = b"%s 255\n" % mark.encode()
        if rc == 254 and line in err:
            rc, err = 255, err.replace(line, b"")
        if rc != 0 and any(word in err for word in _SUSPICIONS):
            problem = self._state_problem()
            if problem:
                raise AnsibleConnectionFailure(problem)
        return rc, out, err

    # --- what Ansible asks of a connection --------------------------------------------------------------------------

    def _connect(self) -> Connection:
        if not self._connected:
            self._node_connection()._connect()
            self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        display.vvv(f"ENTER {self.get_option('vmid')}: {to_text(cmd)}", host=f"ctid {self.get_option('vmid')}")
        mark = uuid.uuid4().hex
        with self._way_in(to_text(cmd), mark, in_data) as (script, data):
            result = self._on_node(script, data, sudoable)
        return self._result(mark, *result)

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        source = os.path.abspath(in_path)
        if not os.path.exists(to_bytes(source, errors="surrogate_or_strict")):
            raise AnsibleFileNotFound(f"the file to copy into the container does not exist: {in_path}")
        mark = uuid.uuid4().hex
        script = f"cd /; mark={mark}; run=$mark.$$; " + enter(
            self.get_option("vmid"), put_script(out_path, os.path.getsize(to_bytes(source)))
        )
        result = self._result(mark, *self._stream(script, f"<{shlex.quote(source)}"))
        self._check_copy(in_path, out_path, *result)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        # A file that is here already is replaced only by a whole one.
        target = os.path.abspath(out_path)
        part = os.path.join(os.path.dirname(target), f".ansible-pct-{uuid.uuid4().hex[:12]}")
        mark = uuid.uuid4().hex
        try:
            with self._way_in(fetch_script(in_path, mark), mark) as (script, data):
                result = self._stream(script, f">{shlex.quote(part)}", data)
            rc, out, err = self._result(mark, *result)
            self._check_copy(in_path, out_path, rc, out, err)
            size, got = re.search(rb"%s (\d+)" % mark.encode(), err), os.path.getsize(part)
            if size is None or got < int(size[1]):
                raise AnsibleError(
                    f"fetching {in_path} from container {self.get_option('vmid')} ended too early, after {got} bytes; "
                    f"is there room left for {out_path}?"
                )
            try:
                os.replace(part, target)
            except OSError as error:
                raise AnsibleError(f"{out_path} cannot be written: {error.strerror}") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)

    def _check_copy(self, in_path: str, out_path: str, rc: int, out: bytes, err: bytes) -> None:
        if rc == 0:
            return
        problem = self._state_problem()
        if problem:
            raise AnsibleConnectionFailure(problem)
        vmid = self.get_option("vmid")
        words = to_text(err).strip() or to_text(out).strip() or "no message"
        advice = f"; make room there, or see: pct df {vmid}" if "No space left on device" in words else ""
        raise AnsibleError(
            f"copying {in_path} to {out_path} (container {vmid}) failed with exit code {rc}: {words}{advice}"
        )

    def reset(self) -> None:
        if self._node is not None and hasattr(self._node, "reset"):
            self._node.reset()

    def close(self) -> None:
        if self._node is not None:
            self._node.close()
        self._connected = False


class _HeldOpen:
    """A stdin that isn't closed after its input, as long as its command runs."""

    def __init__(self, file) -> None:
        self._file = file
        self.write = file.write

    def close(self) -> None:
        self._file.write(_HELD)
        self._file.flush()


def _hold_open(ssh: ConnectionBase) -> None:
    """Have ansible-core's ssh plugin keep stdin open until the command has ended, or the task is given up."""
    send = ssh._send_initial_data
    ssh._send_initial_data = lambda file, in_data, process: send(_HeldOpen(file), in_data, process)
