# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs without a module, whose run_command it can't have.
# pylint: disable=ansible-bad-function
"""What the model server's units run beside the server, by the container's own Python.

    guard.py settle                          before it: wait for the servers that start before it on the same GPUs, and
                                             until the memory in use of the GPUs doesn't change any more
    guard.py certificate CERT KEY USER       before it: copy its certificate and key to where the server reads them
    guard.py renewed UNIT FOLDER             after a renewal: have the running server serve the new certificate
    guard.py ended FILE                      after it: keep why it ended, in FILE
    guard.py watch UNIT FOLDER LIMIT READY   beside it: ask it for one token, and kill it when it doesn't answer

It is part of no release, and needs the standard library only. The server is never kept from starting by it, but by a
certificate that can't be used.

A server with a certificate reads a copy of its own, one file with key and chain. It watches that file, and what watches
a file (inotify) sees the first rename over it and no further one, and no switch of a link at all. So the copy is
overwritten in place. With two files it would read the one before the other came, and then every handshake fails. The
copy is in memory (C(/run)) and the service user's alone, so the files that it is made of can be root's.

The watchdog ends only what is up and should answer. It counts from the first request that got no answer, or from the
last moment in which the server's own counters of tokens moved: one that is busy answers late, but they move. A server
that has not answered once since it started is given the time that a load may take. What was killed is started again, or
left stopped, by systemd, which counts how often. A server that answers with a certificate that nobody trusts is told
of, and left running: another start would not give it a better one.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import pwd
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from typing import NamedTuple

# Where this program is in a container, and the words that take over a renewed certificate there.
PROGRAM = "/usr/local/libexec/vllm_model_server/guard.py"
RENEWED = ("/usr/bin/python3", "-I", PROGRAM, "renewed", "vllm_model_server.service", "/var/lib/vllm_model_server")
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
PROPERTIES = ("ActiveState", "SubState", "Job", "MainPID", "ControlPID", "InvocationID",
              "ExecMainStartTimestampMonotonic", "StartLimitBurst")  # fmt: skip
# The copies of certificates and keys that servers read.
CERTIFICATES = "/run/vllm_model_server"
# Seconds in which a server notices a new certificate; it looks after 50 ms. The file is written anew so often
# meanwhile, should it have been written in the moment before the server began to watch it.
NOTICED, AGAIN = 30.0, 5.0
# A server may have several processes that answer, and each reads its certificate by itself.
HANDSHAKES = 5
# The table of nftables that keeps new connections out while the server finishes what it has begun.
DRAIN_TABLE = "phoenix_model_server_drain"
# OpenSSL's flag for a look at a certificate in which its dates don't count.
NO_CHECK_TIME = 0x200000
PEM_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
PEM_KEY = re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?-----END \1PRIVATE KEY-----", re.S)
COUNTERS = re.compile(r"^vllm:(?:prompt|generation)_tokens(?:_total)?(?:\{.*\})? (\S+)", re.M)


class CertificateError(Exception):
    """A certificate that can't be used, or is not served. The text is for the user."""


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
    """What came of a request.

    Attributes:
        kind: C(answer); C(refusal), which is an answer of some sort; or C(silence).
        words: what was seen, for people.
        counters: how many tokens the server has counted until now, C(None) when it doesn't say.
        text: what it answered; of a refusal the beginning.
        distrust: what is wrong with its certificate, as `distrust` says it. Then it is a refusal of an answer.
    """

    kind: str
    words: str
    counters: float | None = None
    text: str = ""
    distrust: str = ""


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


def trust(tls, without_dates=False):
    """Return the TLS context of one that asks a server, as its state says.

    Args:
        tls: C(True) to look at no certificate; else the file of the CAs that are trusted (C(ca), or their text in
            C(ca_text); the system's when both are empty) and the name that the certificate must have (C(name), any when
            it is empty).
        without_dates: whether one that has expired is good, too.

    Raises:
        CertificateError: the file of the CAs can't be used.
    """
    if tls is True:
        # It is asked by its own address, which no certificate names; nobody else can listen there.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    # Between certificates there may be anything.
    text = "\n".join(PEM_CERTIFICATE.findall(tls.get("ca_text") or "")).encode("ascii", "replace").decode()
    if tls.get("ca_text") and not text:
        raise CertificateError(f"can't be checked, because {ca_of(tls)} has no certificate in it")
    try:
        context = ssl.create_default_context(cafile=tls.get("ca") or None, cadata=text or None)
    except OSError as error:
        why = "has no certificate in it" if isinstance(error, ssl.SSLError) else f"can't be read: {error.strerror}"
        raise CertificateError(f"can't be checked, because {ca_of(tls)} {why}") from None
    # As curl and older Pythons have it; a CA that a site made itself may lack what the strict way wants.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if without_dates:
        context.verify_flags |= NO_CHECK_TIME
    context.check_hostname = bool(tls.get("name"))
    return context


def ca_of(tls):
    """Return in words which CAs are trusted."""
    return tls.get("ca") or ("the site's CA" if tls.get("ca_text") else "the system's store of CAs")


class Connection(http.client.HTTPSConnection):
    """A connection to an address, with a certificate that has another name."""

    def __init__(self, host, port, timeout, tls, without_dates=False):
        self.trusted = trust(tls, without_dates)
        self.name = (tls.get("name") or None) if isinstance(tls, dict) else None
        super().__init__(host, port, timeout=timeout, context=self.trusted)

    def connect(self):
        """Connect."""
        http.client.HTTPConnection.connect(self)
        self.sock = self.trusted.wrap_socket(self.sock, server_hostname=self.name)


def connection(probe, seconds, without_dates=False):
    """Return a connection to the server that is to be made yet."""
    if probe.get("tls"):
        return Connection(probe["host"], probe["port"], seconds, probe["tls"], without_dates)
    return http.client.HTTPConnection(probe["host"], probe["port"], timeout=seconds)


def certificate_of(probe, seconds, without_dates=False):
    """Return what the server's certificate says, as the module C(ssl) tells it, and the certificate itself (DER).

    It says nothing when it is not looked at (C(tls) is C(True)).
    """
    with contextlib.closing(connection(probe, seconds, without_dates)) as shown:
        shown.connect()
        return shown.sock.getpeercert(), shown.sock.getpeercert(True)


def day(text):
    """Return a date of a certificate as people write it."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ssl.cert_time_to_seconds(text)))


def distrust(error, probe, seconds):
    """Return what is wrong with the server's certificate, the end of a sentence that begins with "its certificate".

    Args:
        error: from a handshake that ended with it, or a `CertificateError`.
        probe: how the server is asked.
        seconds: that a look at its dates may take.
    """
    tls, code = probe["tls"], getattr(error, "verify_code", 0)
    if isinstance(error, CertificateError):
        return str(error)
    if code in (9, 10):
        try:
            said = certificate_of(probe, seconds, without_dates=True)[0]
            end, begin = said["notAfter"], said["notBefore"]
        except (OSError, LookupError, CertificateError):
            return "has expired" if code == 10 else "is not valid yet"
        if code == 9:
            return f"is not valid before {day(begin)}; is the clock right?"
        if ssl.cert_time_to_seconds(end) > time.time():
            return "is signed by one that has expired"
        return f"has expired, at {day(end)}"
    if code in (62, 64):
        return f"is not for the name {tls.get('name')}"
    if code in (18, 19, 20, 21):
        return f"is from no CA that is in {ca_of(tls)}"
    return f"can't be verified ({getattr(error, 'verify_message', '') or error})"


def request(probe, method, path, body, seconds):
    """Return (status, content) of an answer of the server.

    Raises:
        CertificateError: its certificate can't be checked.
        ssl.SSLCertVerificationError: its certificate is not to be trusted.
    """
    headers = {"Content-Type": "application/json"}
    if probe.get("key"):
        headers["Authorization"] = f"Bearer {probe['key']}"
    with contextlib.closing(connection(probe, seconds)) as asked:
        asked.request(method, path, body, headers)
        response = asked.getresponse()
        return response.status, response.read()


def ask(probe, seconds, short=True):
    """Ask the server. Return what came of it.

    Args:
        probe: how it is asked.
        seconds: that its answer may take.
        short: whether one token is enough.
    """
    body = dict(probe["body"])
    if short and "max_tokens" in body:
        body["max_tokens"] = 1
    where = f"port {probe['port']}"
    try:
        status, content = request(probe, "POST", probe["path"], json.dumps(body), seconds)
    except (ssl.SSLCertVerificationError, CertificateError) as error:
        # Whether it lives has nothing to do with that. Nobody but root's own server can listen there.
        seen = ask({**probe, "tls": True}, seconds, short)
        if seen.kind == "answer":
            why = distrust(error, probe, min(LOOK, seconds))
            words = f"its certificate {why}. Clients don't accept it; look why it was not renewed"
            seen = seen._replace(kind="refusal", words=words, distrust=why)
        return seen
    except socket.timeout:
        return Seen("silence", f"no answer on {where}")
    except (OSError, http.client.HTTPException) as error:
        return Seen("silence", f"no answer on {where} ({error.__class__.__name__})")
    if 400 <= status < 500 and status != 429:
        words = f"it answers on {where}, but refuses {probe['path']}: HTTP {status}"
        return Seen("refusal", words, text=content[:300].decode("utf-8", "replace"))
    if status != 200:
        return Seen("silence", f"it answers {probe['path']} on {where} with HTTP {status}")
    try:
        answer = json.loads(content)
        if not {"choices", "data"} & set(answer):
            return Seen("silence", f"no token on {where}")
        return Seen("answer", "", text=answer["choices"][0]["text"] if "choices" in answer else "(an embedding)")
    except (ValueError, LookupError, TypeError):
        return Seen("silence", f"its answer on {where} is none of vLLM's")


def counted(probe, seconds):
    """Return how many tokens the server has read and written, C(None) when it doesn't say."""
    try:
        # A server whose certificate has expired may be busy, too. No secret goes there.
        status, content = request({**probe, "tls": bool(probe.get("tls")), "key": ""}, "GET", "/metrics", None, seconds)
        values = [float(value) for value in COUNTERS.findall(content.decode("utf-8", "replace"))]
    except (OSError, http.client.HTTPException, ValueError):
        return None
    return sum(values) if status == 200 and values else None


def own_file(certificate, key):
    """Return the path of the copy that a server with these files reads."""
    name = hashlib.sha256(f"{certificate}\0{key}".encode()).hexdigest()[:16]
    return f"{CERTIFICATES}/{name}.pem"


def read_pair(certificate, key):
    """Return the text of a server's own copy, and the server's certificate in it (DER).

    Raises:
        CertificateError: a file can't be read, or the two don't belong together.
    """
    found = {}
    for what, path, pattern in (("certificate", certificate, PEM_CERTIFICATE), ("key", key, PEM_KEY)):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                found[what] = [match[0] for match in pattern.finditer(file.read())]
        except OSError as error:
            raise CertificateError(f"The model server's {what} {path} can't be read: {error.strerror}.") from None
        if not found[what]:
            raise CertificateError(f"The model server's {what} {path} has no {what} in it (PEM is what it must be).")
    text = "\n".join([found["key"][0], *found["certificate"]]) + "\n"
    # OpenSSL takes a pair from files only; this one is on no disk.
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, text.encode())
        # Without a password it would ask on the terminal for that of a key that has one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        why = "is that of another certificate" if reason == "KEY_VALUES_MISMATCH" else f"can't be used ({reason})"
        raise CertificateError(f"The model server's key {key} {why}; its certificate is {certificate}.") from None
    finally:
        os.close(descriptor)
    return text, ssl.PEM_cert_to_DER_cert(found["certificate"][0])


def put(path, text, user):
    """Overwrite a server's own copy in place, or make it. It is there whole, or as it was when memory is full."""
    os.makedirs(CERTIFICATES, exist_ok=True)
    # Whatever the umask of the unit is that this runs in.
    os.chmod(CERTIFICATES, 0o755)
    owner, content = pwd.getpwnam(user), text.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o400)
    try:
        os.fchmod(descriptor, 0o400)
        os.fchown(descriptor, owner.pw_uid, owner.pw_gid)
        os.posix_fallocate(descriptor, 0, len(content))
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def copy_certificate(certificate, key, user):
    """Make the copy that the server reads, before it starts."""
    no_drain()
    put(own_file(certificate, key), read_pair(certificate, key)[0], user)


def is_served(probe, certificate):
    """Return whether each of some new connections is shown this certificate; C(None) when nobody listens.

    Args:
        probe: how the server is asked.
        certificate: in DER.
    """
    unseen = {**probe, "tls": True}
    try:
        return all(certificate_of(unseen, LOOK)[1] == certificate for _number in range(HANDSHAKES))
    except ConnectionRefusedError:
        return None
    except OSError:
        return False


def renewed(unit, folder, wait=True):
    """Have the running server serve the certificate that is there now. Return a sentence about what was done.

    A server that can reload it is given it. Another one is restarted, when it has finished what it had begun.

    Args:
        unit: the server's.
        folder: where the states are.
        wait: whether to wait for a server that was restarted.

    Raises:
        CertificateError: the certificate can't be used, or the server does not serve it.
    """
    properties = show(unit)
    # What runs before the server has the state in its environment, too.
    pid = next((properties[name] for name in ("MainPID", "ControlPID") if properties.get(name, "0") != "0"), "")
    if not pid or properties.get("ActiveState") == "deactivating":
        return f"{unit} does not run; it takes the certificate when it starts."
    probe = probe_of(pid, folder)
    tls = probe.get("tls")
    if not (isinstance(tls, dict) and "file" in tls):
        return f"{unit} runs without a certificate of the role's; there is nothing to do."
    text, certificate = read_pair(tls["certificate"], tls["key"])
    if is_served(probe, certificate) and read_text(tls["file"]) == text:
        return f"{unit} serves the certificate already."
    put(tls["file"], text, tls["user"])
    if is_served(probe, certificate) is None:
        return f"{unit} does not listen yet; it takes the certificate when it has loaded."
    if not tls["refresh"]:
        drain(probe, tls["drain"])
        try:
            subprocess.run(["systemctl", "restart", unit], timeout=1800, check=True, capture_output=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise CertificateError(f"{unit} could not be restarted for its new certificate: {error}.") from None
        finally:
            no_drain()
        if not wait:
            return f"{unit} was restarted for its new certificate."
    end = time.monotonic() + (NOTICED if tls["refresh"] else tls["ready"])
    again = time.monotonic() + AGAIN
    while not is_served(probe, certificate):
        now = time.monotonic()
        if now >= end or show(unit).get("ActiveState") == "failed":
            raise CertificateError(
                f"{unit} does not serve the certificate in {tls['certificate']}, but another one, or does not answer. "
                f"See journalctl -u {unit}; `systemctl restart {unit}` has it read the certificate anew."
            )
        if tls["refresh"] and now >= again:
            put(tls["file"], text, tls["user"])
            again = now + AGAIN
        time.sleep(0.2)
    return f"{unit} serves the new certificate{'' if tls['refresh'] else ', since it was restarted'}."


def read_text(path):
    """Return a file's text, C("") when it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def drain_rules(port, seconds):
    """Return what `nft -f -` reads to refuse new connections of a port for so many seconds.

    The time is nftables' own, so that nobody is kept out for longer if this program ends.
    """
    return (
        f"add table inet {DRAIN_TABLE}\n"
        f"add set inet {DRAIN_TABLE} ports {{ type inet_service; flags timeout; }}\n"
        f"add element inet {DRAIN_TABLE} ports {{ {port} timeout {seconds}s }}\n"
        f"add chain inet {DRAIN_TABLE} drain {{ type filter hook input priority 0; }}\n"
        f"add rule inet {DRAIN_TABLE} drain tcp dport @ports tcp flags & (fin | syn | rst | ack) == syn "
        "reject with tcp reset\n"
    )


def nft(script):
    """Have nft do what a script says, where it is there. Return whether it did."""
    try:
        return not subprocess.run(["nft", "-f", "-"], input=script, text=True, capture_output=True, timeout=20,
                                  check=False).returncode  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False


def no_drain():
    """Let new connections in."""
    nft(f"add table inet {DRAIN_TABLE}\ndelete table inet {DRAIN_TABLE}\n")


def connections(port):
    """Return how many connections of a port there are."""
    end, found = f":{port:04X}", 0
    for name in ("tcp", "tcp6"):
        rows = [line.split() for line in read_text(f"/proc/net/{name}").splitlines()]
        found += sum(len(row) > 3 and row[1].endswith(end) and row[3] == "01" for row in rows)
    return found


def drain(probe, seconds):
    """Wait until the server has no connections any more, for so many seconds at most; it gets no new ones meanwhile."""
    no_drain()
    nft(drain_rules(probe["port"], int(seconds) + 30))
    end = time.monotonic() + seconds
    while connections(probe["port"]) and time.monotonic() < end:
        time.sleep(0.1)


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
    elif len(sys.argv) == 5 and sys.argv[1] == "certificate":
        try:
            copy_certificate(*sys.argv[2:])
        except CertificateError as problem:
            raise SystemExit(str(problem)) from None
        except (OSError, KeyError) as problem:
            raise SystemExit(f"The model server's certificate could not be copied: {problem}.") from None
    elif len(sys.argv) == 4 and sys.argv[1] == "renewed":
        try:
            sys.stdout.write(f"{renewed(*sys.argv[2:])}\n")
        except CertificateError as problem:
            raise SystemExit(str(problem)) from None
        except (OSError, KeyError) as problem:
            raise SystemExit(f"The model server could not be given its new certificate: {problem}.") from None
    elif len(sys.argv) == 3 and sys.argv[1] == "ended":
        ended(sys.argv[2])
    elif len(sys.argv) == 6 and sys.argv[1] == "watch":
        watch(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        raise SystemExit("usage: guard.py settle | certificate CERT KEY USER | renewed UNIT FOLDER | ended FILE | "
                         "watch UNIT FOLDER LIMIT READY")  # fmt: skip
