# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the model server's unit runs before and after the server, by the container's own Python.

    guard.py settle                 before: wait until the memory in use of the GPUs doesn't change any more
    guard.py ended FILE             after: keep why it ended, in FILE

It is part of no release, and needs the standard library only. The server is never kept from starting by it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

# A server that begins to load changes its GPU's memory every few seconds; a process that was killed gives it back
# within some.
EVERY, LIMIT = 3.0, 120.0
# MiB; a desktop or a monitor on the same GPU moves by less.
STILL = 64
LINES, KEPT = 25, 50


def used():
    """Return the memory in use of each GPU in MiB, an empty list where nobody can tell."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return [int(line) for line in done.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def settle():
    """Wait until two looks in a row see the same."""
    end = time.monotonic() + LIMIT
    before = used()
    while before and time.monotonic() < end:
        time.sleep(EVERY)
        now = used()
        if len(now) == len(before) and all(abs(one - other) <= STILL for one, other in zip(now, before)):
            return
        sys.stdout.write(f"GPU memory changes ({before}, {now} MiB): another server starts or ends, waiting for it\n")
        sys.stdout.flush()
        before = now


def ended(path):
    """Add a line to the file that says how the server ended, unless it ended well."""
    if os.environ.get("SERVICE_RESULT", "success") == "success":
        return
    run = os.environ.get("INVOCATION_ID", "")
    command = ["journalctl", f"_SYSTEMD_INVOCATION_ID={run}", "+", f"INVOCATION_ID={run}", f"--lines={LINES}",
               "--no-pager", "--quiet", "--output=cat"]  # fmt: skip
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        lines = []
    entry = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "result": os.environ["SERVICE_RESULT"],
        "code": os.environ.get("EXIT_CODE", ""),
        "status": os.environ.get("EXIT_STATUS", ""),
        "digest": os.environ.get("PHOENIX_DIGEST", ""),
        "lines": lines,
    }
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        with open(path, encoding="utf-8") as file:
            kept = file.readlines()[1 - KEPT :]
    except OSError:
        kept = []
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines([*kept, json.dumps(entry) + "\n"])
    os.replace(temporary, path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["settle"]:
        settle()
    elif len(sys.argv) == 3 and sys.argv[1] == "ended":
        ended(sys.argv[2])
    else:
        raise SystemExit("usage: guard.py settle | guard.py ended FILE")
