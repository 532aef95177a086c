# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs commands inside a container, from its node."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence

from ansible_collections.phoenix.hypervisor.plugins.module_utils import family, node, process
from ansible_collections.phoenix.hypervisor.plugins.module_utils.environment import ENVIRONMENT


class InsideError(Exception):
    """Something inside can't be done; the text is for the user."""


def check(vmid: int) -> None:
    """:raises InsideError: when the container can't be entered"""
    container = node.read(vmid)
    if not container.exists:
        raise InsideError(
            f"CTID {vmid} does not exist on this node (there is no /etc/pve/lxc/{vmid}.conf); create it with "
            "pct_container, or correct vmid or the node"
        )
    if container.running:
        return
    if container.conf.main.values.get("template") == "1":
        raise InsideError(f"CTID {vmid} is a template, and nothing can run in it; use a clone of it")
    raise InsideError(f"CTID {vmid} is not running; start it with pct_container (state: started) or: pct start {vmid}")


def run(
    vmid: int,
    argv: Sequence[str],
    timeout: float = 0,
    *,
    variables: Mapping[str, str] | None = None,
    stdin: Iterable[bytes] = (),
    sink: Callable[[bytes], object] | None = None,
) -> process.Finished:
    """Run a program inside, as the container's root in C(/). What it started ends with it when it is ended early.

    C(lxc-attach) is what C(pct exec) runs; without pct's Perl it takes 20 ms, and no lock of pct's is needed.

    :param timeout: seconds after which it is ended; 0 for none
    :param variables: further variables of its environment, which are on no command line
    :raises InsideError: when the container can't be entered, or stopped meanwhile
    """
    check(vmid)
    mark = secrets.token_hex(16)
    # Handed on through lxc-attach's own environment: what is on a command line, everyone on the node can read.
    handed_on = {family.MARK: mark, **(variables or {})}
    words = ["lxc-attach", "-n", str(vmid), "--clear-env"]
    for name, value in ENVIRONMENT.items():
        words += ["--set-var", f"{name}={value}"]
    for name in handed_on:
        words += ["--keep-var", name]
    end = functools.partial(family.end, mark)
    with family.guarded(mark):
        try:
            done = process.run(
                [*words, "--", *argv], timeout or None, stdin=stdin, environment=handed_on, sink=sink, end=end
            )
        except process.Interrupted:
            # It came before the process was known, or when it was known no more.
            end()
            raise
    if done.failed and not done.ended_by:
        _explain(vmid, done)
    return done


def _explain(vmid: int, done: process.Finished) -> None:
    """:raises InsideError: when it is not the program itself that failed"""
    if not node.read(vmid).running:
        raise InsideError(f"CTID {vmid} stopped while the command ran in it (exit code {done.rc}). {_said(done)}")
    own = [line for line in done.stderr.splitlines() if line.startswith(f"lxc-attach: {vmid}: ")]
    if own and 'Failed to exec "/bin/sh"' in own[0]:
        raise InsideError(f"CTID {vmid} has no /bin/sh that can be run, and nothing works in it without: {own[0]}")
    if own:
        raise InsideError(f"CTID {vmid} can't be entered: {' / '.join(own)}")
    if done.rc in (126, 127) and done.stderr.startswith("lxc-attach "):
        raise InsideError(f"CTID {vmid}: {done.stderr}")


def ask(vmid: int, script: str, arguments: Sequence[str], what: str, timeout: float = 0, **how) -> process.Finished:
    """Run a script of the collection's own in the container's C(/bin/sh).

    :param what: what it is for, as the begin of a sentence
    :raises InsideError: when it fails
    """
    done = run(vmid, ["/bin/sh", "-c", script, *arguments], timeout, **how)
    if done.failed:
        raise InsideError(f"CTID {vmid}: {what}: {_said(done)}")
    return done


def _said(done: process.Finished) -> str:
    return last_lines(done.stderr) or last_lines(done.stdout) or f"it ended with {done.rc} and said nothing"


def last_lines(text: str, lines: int = 5) -> str:
    """The last lines of an output, for the end of a sentence."""
    return "\n".join(text.strip().splitlines()[-lines:])


def take_secret(module, name: str):
    """The value of an option that is C(no_log), kept out of logs and of what the module returns.

    Ansible would replace the value wherever it occurs in the result; with a value such as C(1) nothing of an exit code
    or a checksum would be left. So the option itself is masked and the rest of the result is left alone.
    """
    value = module.params[name]
    if value is not None:
        module.params[name] = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
    module.no_log_values.clear()
    return value
