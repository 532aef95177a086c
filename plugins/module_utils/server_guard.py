# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the model server's units run beside the server, by the container's own Python.

    guard.py settle                          before it: wait for the servers that start before it on the same GPUs, and
                                             until the memory in use of the GPUs doesn't change any more
    guard.py ended FILE                      after it: keep why it ended, in FILE
    guard.py watch UNIT FOLDER LIMIT READY   beside it: ask it for one token, and kill it when it doesn't answer

It is part of no release, and needs the standard library only. The server is never kept from starting by it.

The watchdog ends only what is up and should answer. It counts from the first request that got no answer, or from the
last moment in which the server's own counters of tokens moved: one that is busy answers late, but they move. A server
that has not answered once since it started is given the time that a load may take. What was killed is started again, or
left stopped, by systemd, which counts how often.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from typing import NamedTuple

# A server that begins to load changes its GPU's memory every few seconds; a process that was killed gives it back
# within some.
EVERY, LIMIT = 3.0, 120.0
# What the servers before it take of each GPU, a part of 1; it lies beside this program. With less than that by so much
# they are not there yet. They are waited for only while the container has just started, as with its node, and so long.
SHARES = "shares_before.json"
NEARLY, JUST_STARTED, LIMIT_BEFORE = 0.05, 900.0, 600.0
# MiB; a desktop or a monitor on the same GPU moves by less.
STILL = 64
LINES, KEPT = 25, 50
# What the watchdog remembers between two looks. Its unit makes the folder.
MEMORY = "/run/vllm_model_server_watchdog/memory.json"
# Seconds between two looks at a server that has not answered yet.
LOOK = 5.0
# Seconds without a look after which the count begins anew: the container was frozen or its node asleep, and so was the
# server.
GAP = 30.0
# Seconds in which a process that was killed is gone, unless it hangs in the kernel.
GONE = 30.0
PROPERTIES = ("ActiveState", "SubState", "Job", "MainPID", "InvocationID", "ExecMainStartTimestampMonotonic",
              "StartLimitBurst")  # fmt: skip
COUNTERS = re.compile(r"^vllm:(?:prompt|generation)_tokens(?:_total)?(?:\{.*\})? (\S+)", re.M)


def gpus():
    """Return (in use, in all) of each GPU's memory in MiB, an empty list where nobody can tell."""
    command = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        rows = [line.split(",") for line in done.stdout.splitlines()]
        return [(int(in_use), int(in_all)) for in_use, in_all in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def used():
    """Return the memory in use of each GPU in MiB, an empty list where nobody can tell."""
    return [in_use for in_use, _in_all in gpus()]


def missing(shares, there):
    """Return what the servers before this one haven't taken yet, C("") when they are there or nobody can tell.

    Args:
        shares: what they take of each GPU, a part of 1.
        there: what `gpus` returns.
    """
    for number, (share, (in_use, in_all)) in enumerate(zip(shares, there)):
        if in_use < (share - NEARLY) * in_all:
            return f"GPU {number} has {in_use} MiB in use, and they take {share * in_all:.0f}"
    return ""


def started_at():
    """Return when the container's systemd started, in seconds of C(time.monotonic()); 0 when it doesn't say."""
    command = ["systemctl", "show", "--property=UserspaceTimestampMonotonic", "--value"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return int(done.stdout) / 1e6
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0.0


def wait_for_those_before():
    """Wait until the servers that start before this one have their memory; two that measure it at once get it wrong."""
    try:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), SHARES), encoding="utf-8") as file:
            shares = [float(share) for share in json.load(file)]
    except (OSError, ValueError, TypeError):
        return
    if not any(shares) or time.monotonic() - started_at() > JUST_STARTED:
        return
    end, said = time.monotonic() + LIMIT_BEFORE, ""
    while (text := missing(shares, gpus())) and time.monotonic() < end:
        if text != said:
            said = text
            sys.stdout.write(f"waits for the model servers that start before it: {text}\n")
            sys.stdout.flush()
        time.sleep(EVERY)


def settle():
    """Wait for the servers before this one, and then until two looks in a row see the same."""
    wait_for_those_before()
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
    memory = remembered(read_json(MEMORY), run)
    if memory["killed"]:
        entry["watchdog"] = memory["killed"]["why"]
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


class Seen(NamedTuple):
    """What came of a request for one token.

    Attributes:
        kind: C(answer); C(refusal), which is an answer of some sort; or C(silence).
        words: what was seen, for people.
        counters: how many tokens the server has counted until now, C(None) when it doesn't say.
    """

    kind: str
    words: str
    counters: float | None = None


def read_json(path):
    """Return the object in a JSON file, an empty one when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remembered(memory, run):
    """Return what is remembered of this run of the server; what another one did doesn't count.

    run: systemd's name for it. answered: whether it has ever. since, at: from when on it doesn't answer, and the last
    look at that. counters: its tokens then. said: what was told already. killed: when and why.
    """
    new = {"run": run, "answered": False, "since": None, "at": 0.0, "counters": None, "said": "", "killed": None}
    return {**new, **memory} if run and memory.get("run") == run else new


def watched(properties):
    """Return whether there is a server that should answer: none that is stopped, starts, or is being changed."""
    return (
        (properties.get("ActiveState"), properties.get("SubState")) == ("active", "running")
        and properties.get("Job", "") in ("", "0")
        and properties.get("MainPID", "0") != "0"
    )


def end_of(memory, asked, started, limit, ready):
    """Return the moment until which the server has to show that it lives."""
    end = (asked if memory["since"] is None else memory["since"]) + limit
    return end if memory["answered"] else max(end, started + ready)


def judge(memory, seen, asked, started, now, limit, ready):
    """Return what is to be remembered after a look at the server. When C(killed) is in it, that is to be done.

    Args:
        memory: what is remembered.
        seen: what came of the request until now.
        asked: when that was sent.
        started: when the server was started.
        now: the time. All times are seconds of one clock.
        limit: seconds that a server may go without an answer.
        ready: seconds that it may take from its start to its first answer.
    """
    if seen.kind == "refusal":
        memory = {**memory, "said": seen.words}
    if seen.kind != "silence":
        return {**memory, "answered": True, "since": None, "counters": None}
    before, counters = memory["counters"], seen.counters
    after = {**memory, "at": now, "counters": before if counters is None else counters}
    if None not in (before, counters) and before != counters:
        return {**after, "answered": True, "since": now}
    since = asked if memory["since"] is None else memory["since"]
    last = asked if memory["since"] is None else memory["at"]
    if now - last > GAP:
        since = now
    after["since"] = since
    if now < end_of(after, asked, started, limit, ready):
        return after
    why = (
        f"it has not answered for {now - since:.0f} s (the limit is {limit} s)"
        if memory["answered"]
        else f"it has not answered once in the {now - started:.0f} s since it was started ({ready} s are its limit)"
    )
    return {**after, "killed": {"at": now, "why": f"{why}: {seen.words}"}}


def show(unit):
    """Return what systemd says of the unit, nothing when it doesn't."""
    command = ["systemctl", "show", unit, f"--property={','.join(PROPERTIES)}"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def probe_of(pid, folder):
    """Return how the running server is asked, as its state says; nothing when there is no such state."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            match = re.search(rb"(?:^|\0)PHOENIX_DIGEST=([0-9a-f]+)(?:\0|$)", file.read())
    except OSError:
        return {}
    return read_json(f"{folder}/states/{match[1].decode()}.json").get("probe", {}) if match else {}


def request(probe, method, path, body, seconds):
    """Return (status, content) of an answer of the server."""
    headers = {"Content-Type": "application/json"}
    if probe.get("key"):
        headers["Authorization"] = f"Bearer {probe['key']}"
    if probe.get("tls"):
        # It is asked by its own address, which no certificate names; nobody else can listen there.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(probe["host"], probe["port"], timeout=seconds, context=context)
    else:
        connection = http.client.HTTPConnection(probe["host"], probe["port"], timeout=seconds)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ask(probe, seconds):
    """Ask the server for one token. Return what came of it."""
    body = dict(probe["body"])
    if "max_tokens" in body:
        body["max_tokens"] = 1
    where = f"port {probe['port']}"
    try:
        status, content = request(probe, "POST", probe["path"], json.dumps(body), seconds)
    except socket.timeout:
        return Seen("silence", f"no answer on {where}")
    except (OSError, http.client.HTTPException) as error:
        return Seen("silence", f"no answer on {where} ({error.__class__.__name__})")
    if 400 <= status < 500 and status != 429:
        return Seen("refusal", f"it answers on {where}, but refuses {probe['path']}: HTTP {status}")
    if status != 200:
        return Seen("silence", f"it answers {probe['path']} on {where} with HTTP {status}")
    try:
        answer = json.loads(content)
        return Seen("answer", "") if {"choices", "data"} & set(answer) else Seen("silence", f"no token on {where}")
    except (ValueError, TypeError):
        return Seen("silence", f"its answer on {where} is none of vLLM's")


def counted(probe, seconds):
    """Return how many tokens the server has read and written, C(None) when it doesn't say."""
    try:
        status, content = request(probe, "GET", "/metrics", None, seconds)
        values = [float(value) for value in COUNTERS.findall(content.decode("utf-8", "replace"))]
    except (OSError, http.client.HTTPException, ValueError):
        return None
    return sum(values) if status == 200 and values else None


class Question(threading.Thread):
    """A request that waits for its answer. When nobody waits for it any more, it ends with the program."""

    def __init__(self, probe, seconds):
        super().__init__(daemon=True)
        self.probe, self.seconds, self.seen = probe, seconds, Seen("silence", f"no answer on port {probe['port']}")
        self.start()

    def run(self):
        """Ask."""
        self.seen = ask(self.probe, self.seconds)


def tell(unit, run, text):
    """Say something in the journal, where `systemctl status` and `journalctl -u` of the server's unit show it."""
    fields = {"PRIORITY": "4", "SYSLOG_IDENTIFIER": "watchdog", "OBJECT_SYSTEMD_UNIT": unit, "INVOCATION_ID": run,
              "MESSAGE": " ".join(text.split())}  # fmt: skip
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            message = "".join(f"{name}={value}\n" for name, value in fields.items())
            journal.sendto(message.encode(), "/run/systemd/journal/socket")
    except OSError:
        sys.stderr.write(f"{text}\n")


def save(memory):
    """Remember."""
    descriptor = os.open(f"{MEMORY}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(memory, file)
    os.replace(f"{MEMORY}.new", MEMORY)


def kill(unit, memory, properties):
    """Kill the server, unless somebody else has done something with it meanwhile."""
    now, why = show(unit), memory["killed"]["why"]
    if not watched(now) or now.get("InvocationID") != memory["run"]:
        return
    save(memory)
    tell(unit, memory["run"], f"The model server is killed: {why}. systemd starts it again, unless it was started "
         f"{properties.get('StartLimitBurst')} times lately; then it is left stopped.")  # fmt: skip
    try:
        # A process that was stopped or hangs doesn't hear anything else.
        subprocess.run(["systemctl", "kill", "--signal=KILL", unit], timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        tell(unit, memory["run"], f"The model server could not be killed: {error}. It is tried again.")
        save({**memory, "killed": None})


def said(memory, unit, text):
    """Say something once for a run of the server."""
    if memory["said"] != text:
        tell(unit, memory["run"], text)
        save({**memory, "said": text})


def after_kill(memory, unit, properties, now):
    """Say what became of a server that was killed, when that is its end or not even that."""
    killed = memory["killed"]
    if properties.get("ActiveState") == "failed":
        # systemd's own count of restarts has the one that it refused, too.
        restarts = int(properties.get("StartLimitBurst") or 1) - 1
        said(
            memory,
            unit,
            f"The model server is left stopped after its last restart (vllm_model_server_restarts: {restarts}): "
            f"{killed['why']}. `systemctl reset-failed {unit}; systemctl start {unit}` starts it.",
        )
    elif watched(properties) and now - killed["at"] > GONE:
        said(memory, unit, "The model server was killed, but its process does not end: it hangs in the kernel, usually "
             "in the GPU's driver. Restart the container; when that hangs too, the node.")  # fmt: skip


def watch(unit, folder, limit, ready):
    """Ask the server for one token, and kill it when it has not shown for too long that it lives."""
    properties = show(unit)
    memory = remembered(read_json(MEMORY), properties.get("InvocationID", ""))
    if memory["killed"]:
        after_kill(memory, unit, properties, time.monotonic())
        return
    if not watched(properties):
        return
    probe = probe_of(properties["MainPID"], folder)
    if not probe:
        # One that has just ended has no environment any more.
        if show(unit).get("MainPID") == properties["MainPID"]:
            said(memory, unit, f"The watchdog does not know how to ask this server: {folder} has no state of it.")
        return
    asked, started = time.monotonic(), int(properties["ExecMainStartTimestampMonotonic"]) / 1e6
    question = Question(probe, limit)
    while True:
        left = end_of(memory, asked, started, limit, ready) - time.monotonic()
        question.join(min(LOOK, max(1.0, left - LOOK)))
        done, seen = not question.is_alive(), question.seen
        if seen.kind == "silence":
            seen = seen._replace(counters=counted(probe, min(LOOK, max(1.0, left))))
        now, before = time.monotonic(), memory
        memory = judge(memory, seen, asked, started, now, limit, ready)
        if memory["killed"]:
            kill(unit, memory, properties)
            return
        if memory["said"] != before["said"]:
            tell(unit, memory["run"], f"The model server is taken for alive, but {memory['said']}.")
        if memory != before:
            save(memory)
        if done or now - asked >= limit:
            return


if __name__ == "__main__":
    if sys.argv[1:2] == ["settle"]:
        settle()
    elif len(sys.argv) == 3 and sys.argv[1] == "ended":
        ended(sys.argv[2])
    elif len(sys.argv) == 6 and sys.argv[1] == "watch":
        watch(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        raise SystemExit("usage: guard.py settle | guard.py ended FILE | guard.py watch UNIT FOLDER LIMIT READY")
