# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A command of the user's inside a container: the scripts around it, and what went wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ansible_collections.phoenix.hypervisor.plugins.module_utils import family, inside

# The scripts' own name in the shell's messages.
NAME = "pct_exec"
_NO_FOLDER = f"{NAME}: no such folder"
_NO_FOLDER_RC = 125

# Variables travel under another name: LD_PRELOAD, for one, would have its effect on lxc-attach already, on the node.
_TRAVELS_AS = "PHOENIX_PCT_VALUE_"

_CHANGE_FOLDER = f'cd -- "$1" 2>/dev/null || {{ echo "{_NO_FOLDER}" >&2; exit {_NO_FOLDER_RC}; }}'

# Arguments: folder, patterns. Prints for each whether something matches it.
_EXISTING = f"""
{_CHANGE_FOLDER}
shift
IFS=
for pattern do
  set -- $pattern
  if [ -e "$1" ] || [ -L "$1" ]; then echo yes; else echo no; fi
done
"""


def options_problem(params: Mapping) -> str:
    """What is wrong with the module's options, or ""."""
    argv, chdir = params["argv"], params["chdir"]
    if argv is not None and not (argv and argv[0]):
        return "argv: there is no program in it; its first word is the program's name"
    if not chdir.startswith("/"):
        return f"chdir: {chdir!r} is not an absolute path; write it from the root on, such as /root/{chdir}"
    for option in ("argv", "cmd", "chdir", "creates", "removes"):
        if "\0" in "".join(params[option] or ""):
            return f"{option}: there is a NUL character in it, which no command line can have; hand it in with stdin"
    return ""


def environment_problem(environment: Mapping) -> str:
    """What is wrong with variables, or "". It doesn't show a value: it may be a secret."""
    for name, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            return f"environment: {name!r} is no name of a variable; use letters, digits and underscores"
        if name == family.MARK:
            return f"environment: {name} is what the command's processes are known by; choose another name"
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            return f"environment: the value of {name} is a {type(value).__name__}, not a text; write it in quotes"
        if "\0" in str(value):
            return f"environment: the value of {name} has a NUL character, which none can have; remove it"
    return ""


def variables(environment: Mapping) -> dict[str, str]:
    """The user's variables as they travel."""
    return {f"{_TRAVELS_AS}{name}": str(value) for name, value in environment.items()}


def command_line(params: Mapping, names: Sequence[str]) -> list[str]:
    """The command with its folder and its variables, for L(inside.run)."""
    lines = [_CHANGE_FOLDER, "unset OLDPWD", "shift"]
    for name in names:
        lines.append(f'export {name}="${_TRAVELS_AS}{name}"; unset {_TRAVELS_AS}{name}')
    lines.append('exec "$@"')
    argv = params["argv"] or ["/bin/sh", "-c", params["cmd"]]
    return ["/bin/sh", "-c", "\n".join(lines), NAME, params["chdir"], *argv]


def existing(vmid: int, chdir: str, patterns: Sequence[str], timeout: float) -> list[bool]:
    """Whether there is something inside that matches each pattern.

    :raises InsideError: when the folder doesn't exist
    """
    done = inside.run(vmid, ["/bin/sh", "-c", _EXISTING, NAME, chdir, *patterns], timeout)
    if done.failed:
        raise inside.InsideError(problem(vmid, chdir, "", done, timeout))
    return [line == "yes" for line in done.stdout.split()]


def problem(vmid: int, chdir: str, program: str, done, timeout: float) -> str:
    """Why a command failed, in a sentence or two."""
    said = inside.last_lines(done.stderr) or inside.last_lines(done.stdout)
    if done.rc == _NO_FOLDER_RC and done.stderr.strip() == _NO_FOLDER:
        return f"chdir: there is no folder {chdir} in CTID {vmid}; create it, or correct chdir"
    if done.ended_by == "time":
        return (
            f"CTID {vmid}: the command was still running after {timeout:g} s and was ended, with all that it had "
            f"started; raise timeout if it needs longer. The last that it said:\n{said}"
        )
    if done.ended_by:
        return (
            f"CTID {vmid}: the command was ended, with all that it had started, because this module got "
            f"{done.ended_by}. The last that it said:\n{said}"
        )
    refused = re.search(rf"^{NAME}: .*\bexec: (.*)", done.stderr, re.MULTILINE)
    if done.rc == 127 and refused:
        return f"CTID {vmid}: there is no program {program!r} inside; install it, or correct argv ({refused.group(1)})"
    if done.rc == 126 and refused:
        return f"CTID {vmid}: {program!r} can't be run inside: {refused.group(1)}; correct its mode, or argv"
    return f"CTID {vmid}: the command ended with {done.rc}: {said or 'it said nothing'}"
