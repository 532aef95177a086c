# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what the project claims: a table on the terminal, and build/bench.json for machines.

The file is an object of named figures, each ``{"value": …, "unit": …}``, with ``"against"`` and ``"ratio"`` where the
figure is a comparison. A run of one group keeps the other groups' figures in the file.
"""
from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "build" / "bench.json"
PCT_CALLS = Path("/var/log/phoenix-lab/pct-calls.log")
PLAYBOOK = ["ansible-playbook", "site.yml", "-l", "ctid_921"]
TASK_REPETITIONS = 12

Figures = dict[str, dict]


class Failed(Exception):
    """A measured command failed; the message says which, and shows the end of its output."""


def run(command: list[str], **environment: str) -> str:
    """Run a command in the checkout and return what it printed. :raises Failed: with the last lines, when it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise Failed(f"`{' '.join(command)}` ended with {done.returncode}; its last lines:\n{tail}")
    return done.stdout


def pct_calls() -> int:
    """How often the lab's `pct` was called since it is up."""
    return len(PCT_CALLS.read_text().splitlines()) if PCT_CALLS.exists() else 0


def changed(output: str) -> int:
    """The sum of `changed=` over all hosts of a recap."""
    return sum(int(count) for count in re.findall(r"\bchanged=(\d+)", output))


def first_run() -> Figures:
    """From a machine with nothing (no lab, no Python environment, no apt packages of ours) to the completion."""
    # The environment that runs this benchmark must not vanish under it: it is put aside and back again.
    aside = ROOT / ".cache" / "bench-venv"
    run(["make", "lab-down"])
    aside.parent.mkdir(exist_ok=True)
    (ROOT / ".venv").rename(aside)
    try:
        begin = time.monotonic()
        run(["make", "demo"])
        seconds = time.monotonic() - begin
    finally:
        shutil.rmtree(ROOT / ".venv", ignore_errors=True)
        aside.rename(ROOT / ".venv")
    return {"first_run_seconds": {"value": round(seconds, 1), "unit": "s"}}


def second_run() -> Figures:
    """A run over what is already as declared."""
    run(["make", "demo"])
    calls = pct_calls()
    begin = time.monotonic()
    output = run(PLAYBOOK)
    seconds = time.monotonic() - begin
    return {
        "second_run_seconds": {"value": round(seconds, 1), "unit": "s"},
        "second_run_pct_calls": {"value": pct_calls() - calls, "unit": "calls"},
        "second_run_changed": {"value": changed(output), "unit": "tasks"},
    }


def task() -> Figures:
    """A module task through the connection, against the same task on the local connection, interleaved in one run."""
    run(["make", "demo"])
    inside = {"name": "inside", "ansible.builtin.command": "true", "changed_when": False}
    local = {**inside, "name": "local", "delegate_to": "bench_local", "vars": {"ansible_connection": "local"}}
    play = {"name": "Time", "hosts": "ctid_921", "gather_facts": False, "tasks": [inside, local] * TASK_REPETITIONS}
    with tempfile.TemporaryDirectory() as folder:
        playbook, times = Path(folder, "tasks.yml"), Path(folder, "times.jsonl")
        playbook.write_text(json.dumps([play]))  # JSON is YAML
        run(
            ["ansible-playbook", str(playbook), "-e", "ansible_python_interpreter=/usr/bin/python3"],
            ANSIBLE_CALLBACK_PLUGINS=str(ROOT / "tests" / "bench" / "callback_plugins"),
            ANSIBLE_CALLBACKS_ENABLED="task_times",
            TASK_TIMES_FILE=str(times),
        )
        lines = [json.loads(line) for line in times.read_text().splitlines()]
    # The first pair also starts the connection and fills caches.
    medians = {
        name: statistics.median([line["seconds"] for line in lines if line["task"] == name][1:])
        for name in ("inside", "local")
    }
    return {
        "task_seconds": {
            "value": round(medians["inside"], 3),
            "unit": "s",
            "against": round(medians["local"], 3),
            "ratio": round(medians["inside"] / medians["local"], 2),
        }
    }


def of_file(name: str, function: str) -> Callable[[], Figures]:
    """A group that a file beside this one measures; the file says what is measured how."""

    def measured() -> Figures:
        run(["make", "lab-up"])
        try:
            return getattr(importlib.import_module(name), function)()
        except (RuntimeError, AssertionError) as error:
            raise Failed(str(error)) from error

    return measured


GROUPS: dict[str, Callable[[], Figures]] = {
    "first_run": first_run, "second_run": second_run, "task": task, "containers": of_file("containers", "figures"),
    "connection": of_file("connection", "connection"), "inventory": of_file("inventory", "inventory"),
    "stack": of_file("stack", "stack"), "server": of_file("server", "server"),
    "sandbox": of_file("server_sandbox", "figures"),
    "renewal": of_file("server_renewal", "figures"), "certificate": of_file("certificate", "figures"),
}  # fmt: skip


def table(figures: Figures) -> str:
    """The figures as aligned lines."""
    rows = [("figure", "value", "unit", "against", "ratio")]
    for name, figure in figures.items():
        rows.append((name, *(str(figure.get(key, "")) for key in ("value", "unit", "against", "ratio"))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", choices=list(GROUPS), help="measure this group only")
    name = parser.parse_args().name
    figures: Figures = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for group in [name] if name else GROUPS:
        print(f"measuring {group} …", file=sys.stderr, flush=True)
        try:
            figures.update(GROUPS[group]())
        except Failed as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
