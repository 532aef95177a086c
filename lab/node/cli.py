# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``pct``: the command table, and from errors to lines on stderr and exit codes."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from node import changes, files, lifecycle, options, release, runtime, schema, settings, snapshots, store, views
from node import conf as conf_format
from node.errors import ParameterError, PctError, UsageError
from node.options import Parsed

# The release that brought an option of a command that is no config option
_SINCE = {"keep-env": (8, 2), "overrule-shutdown": (8, 2), "ha-managed": (9, 1)}
Handler = Callable[[int, Parsed], Optional[int]]
_FLAGS = (
    "start", "force", "restore", "unique", "ignore-unpack-errors", "full", "verbose", "current", "debug", "skiplock",
    "overrule-shutdown", "forceStop", "purge", "destroy-unreferenced-disks", "keep-env", "ha-managed",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """One subcommand: its handler, the names of what follows the CTID, and its own options."""

    handler: Handler
    arguments: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    takes_config: bool = False
    takes_extra: bool = False
    vmid: bool = True


def _flag(parsed: Parsed, name: str, default: str = "0") -> bool:
    try:
        return schema.boolean(parsed.options.get(name, default)) == "1"
    except ValueError as reason:
        raise ParameterError({name: str(reason)}) from None


def _number(parsed: Parsed, name: str, default: int) -> int:
    try:
        return int(schema.integer(0)(parsed.options.get(name, str(default))))
    except ValueError as reason:
        raise ParameterError({name: str(reason)}) from None


def _create(vmid: int, parsed: Parsed) -> int:
    own = {name: value for name, value in parsed.options.items() if schema.validator(name) is None}
    if "ssh-public-keys" in own:
        try:
            own["ssh-public-keys"] = Path(own["ssh-public-keys"]).read_text()
        except OSError as reason:
            raise PctError(f"unable to read '{own['ssh-public-keys']}' - {reason.strerror}") from None
    return lifecycle.create(vmid, parsed.arguments[0], schema.checked_config(parsed.options), own)


def _set(vmid: int, parsed: Parsed) -> None:
    own = parsed.options
    delete, revert = ([w for w in re.split(r"[,;\s]+", own.get(name, "")) if w] for name in ("delete", "revert"))
    changes.update(vmid, schema.checked_config(own), delete, revert, own.get("digest", ""))


def _list(vmid: int, parsed: Parsed) -> None:
    ids = store.all_ids()
    running = runtime.running_ids()
    if ids:
        print(f"{'VMID':<10} {'Status':<10} {'Lock':<12} {'Name':<20}")
    for number in ids:
        try:
            section = store.load(number).active
        except PctError:
            continue  # gone since we looked
        status = "running" if number in running else "stopped"
        name = section.options.get("hostname", f"CT{number}")
        print(f"{number:<10} {status:<10} {section.options.get('lock', ''):<12} {name:<20}")


def _status(vmid: int, parsed: Parsed) -> None:
    if not _flag(parsed, "verbose"):
        store.load(vmid)
        print("status: running" if runtime.is_running(vmid) else "status: stopped")
        return
    values = views.status(vmid)
    for key in sorted(values):
        print(f"{key}: {values[key]}")


def _config(vmid: int, parsed: Parsed) -> None:
    conf = store.load(vmid)
    name = parsed.options.get("snapshot")
    if name:
        if name not in conf.snapshots:
            raise PctError(f"snapshot '{name}' does not exist")
        section = conf.snapshots[name]
    else:
        section = conf.active if _flag(parsed, "current") else conf_format.merged(conf)
    for line in conf_format.config_lines(section):
        print(line)


def _pending(vmid: int, parsed: Parsed) -> None:
    for line in conf_format.pending_lines(store.load(vmid)):
        print(line)


def _exec(vmid: int, parsed: Parsed) -> None:
    command = parsed.arguments + parsed.extra
    if not command:
        raise PctError("missing command")
    store.load(vmid)
    if not runtime.is_running(vmid):
        raise PctError(f"container '{vmid}' not running!")
    keep = "--keep-env" if _flag(parsed, "keep-env", "1") else "--clear-env"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp("lxc-attach", ["lxc-attach", "-n", str(vmid), keep, "--", *command])


def _enter(vmid: int, parsed: Parsed) -> None:
    store.load(vmid)
    if not runtime.is_running(vmid):
        raise PctError(f"container '{vmid}' not running!")
    sys.stdout.flush()
    os.execvp("lxc-attach", ["lxc-attach", "-n", str(vmid), "--keep-env"])


def _reboot(vmid: int, parsed: Parsed) -> int:
    return lifecycle.reboot(vmid, _number(parsed, "timeout", 60))


COMMANDS: dict[str, Command] = {
    "clone": Command(
        lambda v, p: lifecycle.clone(v, _vmid(p.arguments[0], "newid"), {**p.options, **_clone_config(p)}),
        ("newid",),
        ("full", "snapname", "storage", "hostname", "description", "pool", "target", "bwlimit"),
    ),
    "config": Command(_config, own=("current", "snapshot")),
    "create": Command(
        _create,
        ("ostemplate",),
        (
            "storage",
            "password",
            "ssh-public-keys",
            "start",
            "pool",
            "force",
            "restore",
            "unique",
            "ignore-unpack-errors",
            "bwlimit",
            "ha-managed",
        ),
        takes_config=True,
    ),
    "delsnapshot": Command(
        lambda v, p: snapshots.delete(v, p.arguments[0], _flag(p, "force")), ("snapname",), ("force",)
    ),
    "destroy": Command(
        lambda v, p: lifecycle.destroy(v, p.options), own=("force", "purge", "destroy-unreferenced-disks")
    ),
    "df": Command(lambda v, p: lifecycle.disk_usage(v)),
    "enter": Command(_enter),
    "exec": Command(_exec, takes_extra=True, own=("keep-env",)),
    "list": Command(_list, vmid=False),
    "listsnapshot": Command(lambda v, p: snapshots.show(v)),
    "pending": Command(_pending),
    "pull": Command(
        lambda v, p: files.pull(v, p.arguments[0], p.arguments[1], p.options),
        ("path", "destination"),
        ("user", "group", "perms"),
    ),
    "push": Command(
        lambda v, p: files.push(v, p.arguments[0], p.arguments[1], p.options),
        ("file", "destination"),
        ("user", "group", "perms"),
    ),
    "reboot": Command(_reboot, own=("timeout",)),
    "resize": Command(
        lambda v, p: lifecycle.resize(v, p.arguments[0], p.arguments[1], p.options.get("digest", "")),
        ("disk", "size"),
        ("digest",),
    ),
    "rollback": Command(
        lambda v, p: snapshots.rollback(v, p.arguments[0], _flag(p, "start")), ("snapname",), ("start",)
    ),
    "set": Command(_set, own=("delete", "revert", "digest"), takes_config=True),
    "shutdown": Command(
        lambda v, p: lifecycle.shutdown(v, _number(p, "timeout", 60), _flag(p, "forceStop")),
        own=("timeout", "forceStop"),
    ),
    "snapshot": Command(
        lambda v, p: snapshots.snapshot(v, p.arguments[0], p.options.get("description", "")),
        ("snapname",),
        ("description",),
    ),
    "start": Command(
        lambda v, p: lifecycle.start(v, _flag(p, "skiplock"), _flag(p, "debug")), own=("skiplock", "debug")
    ),
    "status": Command(_status, own=("verbose",)),
    "stop": Command(lambda v, p: lifecycle.stop(v, _flag(p, "skiplock")), own=("skiplock", "overrule-shutdown")),
    "template": Command(lambda v, p: lifecycle.template(v)),
    "unlock": Command(lambda v, p: lifecycle.unlock(v)),
}


def _clone_config(parsed: Parsed) -> dict[str, str]:
    return schema.checked_config({k: v for k, v in parsed.options.items() if k in ("hostname", "description")})


def _vmid(text: str, name: str = "vmid") -> int:
    if not text.isdigit():
        raise ParameterError({name: f"type check ('integer') failed - got '{text}'"})
    if not 100 <= int(text) <= 999999999:
        raise ParameterError({name: schema.NO_VMID})
    return int(text)


def usage_line(name: str) -> str:
    """``pct <cmd> <vmid> … [OPTIONS]``."""
    command = COMMANDS[name]
    words = (["<vmid>"] if command.vmid else []) + [f"<{word}>" for word in command.arguments]
    words += ["[<extra-args>]"] if command.takes_extra else []
    return " ".join(["pct", name, *words] + (["[OPTIONS]"] if command.own or command.takes_config else []))


def usage() -> str:
    """The list of all commands."""
    return "USAGE: pct <COMMAND> [ARGS] [OPTIONS]\n\n" + "".join(f"       {usage_line(name)}\n" for name in COMMANDS)


def dispatch(words: list[str]) -> int:
    """Parse and run one pct command line; raises :class:`PctError`."""
    if not words or words[0] in ("help", "--help", "-h"):
        print(usage(), end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 255
    name = words[0]
    if name not in COMMANDS:
        raise PctError(f"ERROR: unknown command 'pct {name}'\n{usage()}".rstrip("\n"))
    command = COMMANDS[name]
    own = [option for option in command.own if option not in _SINCE or release.at_least(*_SINCE[option])]
    names = [*own, *(schema.option_names() if command.takes_config else [])]
    flags = [*_FLAGS, *(schema.BOOLEANS if command.takes_config else [])]
    try:
        parsed = options.parse(words[1:], names, [flag for flag in flags if flag in names], ("password",))
        wanted = (1 if command.vmid else 0) + len(command.arguments)
        if len(parsed.arguments) < wanted:
            raise UsageError("400 not enough arguments")
        if not command.takes_extra and (len(parsed.arguments) > wanted or parsed.extra):
            raise UsageError("400 too many arguments")
        vmid = 0
        if command.vmid:
            vmid = _vmid(parsed.arguments.pop(0))
        return command.handler(vmid, parsed) or 0
    except UsageError as reason:
        raise UsageError(f"{reason}\n{usage_line(name)}", reason.code) from None


def count_call(words: list[str]) -> None:
    """One line per call of pct, for measurements: time and words, secrets left out."""
    try:
        settings.CALL_LOG.parent.mkdir(parents=True, exist_ok=True)
        with open(settings.CALL_LOG, "a") as handle:
            handle.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {shlex.join(options.without_secrets(words))}\n")
    except OSError as reason:
        print(f"cannot count this call in {settings.CALL_LOG}: {reason.strerror}", file=sys.stderr)


def _delay() -> None:
    """Imitate the CPU second that genuine pct takes to load, when asked to."""
    text = os.environ.get("PHOENIX_LAB_PCT_DELAY", "")
    if not text and settings.DELAY_FILE.exists():
        text = settings.DELAY_FILE.read_text().strip()
    try:
        seconds = float(text or 0)
    except ValueError:
        print(f"PHOENIX_LAB_PCT_DELAY must be seconds, not '{text}'", file=sys.stderr)
        return
    # Burnt, not slept: Perl compiles all that time, and whoever measures CPU seconds is to see it. Python's own start
    # is part of it.
    while time.process_time() < seconds:
        pass


def main(words: list[str]) -> int:
    """Run pct and return its exit code."""
    if os.geteuid() != 0:
        print("ipcc_send_rec[1] failed: Unknown error -1", file=sys.stderr)
        print("Unable to load access control list: Unknown error -1", file=sys.stderr)
        return 255
    os.environ["PATH"] = settings.SAFE_PATH
    os.umask(0o022)
    if not settings.MARKER.exists():
        print("the lab is not up - run 'lab/lab up' first", file=sys.stderr)
        return 255
    count_call(words)
    _delay()
    try:
        return dispatch(words)
    except PctError as reason:
        sys.stdout.flush()
        print(reason, file=sys.stderr)
        return reason.code
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment]
        return 141
    except OSError as reason:
        print(f"{reason.filename or 'system call'}: {reason.strerror}", file=sys.stderr)
        return reason.errno or 255
