# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs without a module, whose run_command it can't have.
# pylint: disable=ansible-bad-function
"""Keeps the certificates of a container valid; run by a timer inside, by the container's own Python.

    renew.py run               look at each certificate; get, install and tell of those that are due
    renew.py run force         the same for all of them, also for those that are not due
    renew.py begin|done|failed KIND NAME TOKEN ANSWER   what uacme calls with a challenge; not for people

It needs the standard library, C(openssl) and, for a CA that speaks ACME, C(uacme); both are packages of the
distribution. What is to be done is in C(config.json), what came of it in C(status.json) beside the account's key.

A new pair is made in a folder of its own, is checked, and is complete on the disk before the old one is touched. Then
two renames put it in place, the key's first, one right after the other. A run that was killed anywhere leaves the old
pair, or the new one beside it, which the next run puts in place without asking the CA again. The command that follows a
renewal is owed from before the renames until it has succeeded, so it is not lost with a run either.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import fcntl
import grp
import hashlib
import http.client
import http.server
import ipaddress
import json
import os
import pwd
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from email.utils import parsedate_to_datetime

STATE = "/var/lib/phoenix_certificate"
CONFIG = f"{STATE}/config.json"
STATUS = f"{STATE}/status.json"
PROGRAM = "/usr/local/libexec/phoenix_certificate/renew.py"
RUN = "/run"
LOCK = f"{RUN}/phoenix_certificate.lock"
# Where this file is, each certificate is renewed once.
FORCE = f"{RUN}/phoenix_certificate.force"
UNIT = "phoenix_certificate.service"
# Seconds that two clocks may differ by.
CLOCK = 300
# What ended with that may go well the next time; systemd tries it again soon.
TEMPORARY = 75
# Days that the container's own CA is valid.
OWN_CA_DAYS = 3650
# Seconds for one answer of the CA; for a command after a renewal (a model may have to be loaded again).
ANSWER, COMMAND = 20, 3600
# How often the CA is asked when that is what it takes: one that is busy; one that refuses nonces that were good, of
# which uacme itself takes three for each request.
TRIES = {"busy": 3, "uacme": 3, "nonce": 10}
PEM_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
# The extension of RFC 8737 with which a certificate answers a tls-alpn-01 challenge.
ACME_IDENTIFIER = "1.3.6.1.5.5.7.1.31"


class RenewalError(Exception):
    """A certificate that could not be had. The text is one or two sentences for the user.

    :ivar kind: one word for the cause, for programs
    :ivar temporary: whether another try may go well without anybody doing anything
    :ivar name: the name that it is about, C("") when that isn't known
    """

    def __init__(self, text, kind, temporary=False, name=""):
        super().__init__(text)
        self.kind, self.temporary, self.name = kind, temporary, name


# --- small things -------------------------------------------------------------------------------------------------


def tell(text):
    """Say something in the journal."""
    sys.stdout.write(f"{' '.join(text.split())}\n")
    sys.stdout.flush()


def read_json(path):
    """Return the object in a JSON file, an empty one when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_text(path):
    """Return a file's text, C("") when it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def write(path, text, mode=0o600, uid=-1, gid=-1):
    """Write a file in one step, of one's own unless somebody else's. It is there whole, or as it was."""
    ready = prepare(path, text, mode, uid, gid)
    os.replace(ready, path)
    sync_folder(os.path.dirname(path))


def prepare(path, text, mode, uid, gid):
    """Write what is to take a file's place, beside it, to the disk. Return its path."""
    ready = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.phoenix")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(ready)
    descriptor = os.open(ready, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchown(file.fileno(), uid, gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(ready)
        raise
    return ready


def sync_folder(folder):
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def openssl(*words, text=""):
    """Return what openssl printed. Raise C(RenewalError) with its own words when it fails."""
    try:
        done = subprocess.run(["openssl", *words], input=text, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise RenewalError("There is no openssl in the container: install the package openssl.", "openssl") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it gave no reason"]
        raise RenewalError(f"openssl {words[0]} failed: {lines[-1]}", "openssl")
    return done.stdout


def moment(seconds):
    """Return a time as people write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def span(seconds):
    """Return a length of time in words."""
    seconds = abs(int(seconds))
    for name, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {name}s"
    return f"{seconds} seconds"


def is_address(name):
    """Return whether a name of a certificate is an IP address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, name)
            return True
    return False


def fingerprint(pem):
    """Return the SHA-256 fingerprint of a certificate in PEM."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


# --- what a certificate says ----------------------------------------------------------------------------------------


def parse_certificate(text):
    """Return what `openssl x509` said of a certificate: begin, end, names, key (public).

    Args:
        text: the output of C(openssl x509 -noout -startdate -enddate -ext subjectAltName -pubkey).
    """
    found = {name: re.search(rf"^{name}=(.*)$", text, re.M) for name in ("notBefore", "notAfter")}
    key = re.search(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", text, re.S)
    if not all(found.values()) or not key:
        raise RenewalError("It is no certificate that openssl can read.", "certificate")
    names = re.findall(r"(?:DNS|IP Address):([^,\s]+)", text)
    return {
        "begin": ssl.cert_time_to_seconds(found["notBefore"][1]),
        "end": ssl.cert_time_to_seconds(found["notAfter"][1]),
        "names": sorted(plain_name(name) for name in names),
        "key": key[0],
    }


def plain_name(name):
    """Return a name in the form in which two can be compared."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            return socket.inet_ntop(family, socket.inet_pton(family, name))
    return name.lower()


def read_chain(text):
    """Return what the first certificate of a chain says, with C(end) of the one in the chain that ends first.

    Raises:
        RenewalError: there is no certificate in it, or one is damaged.
    """
    blocks = PEM_CERTIFICATE.findall(text)
    if not blocks:
        raise RenewalError("There is no certificate in PEM form in it.", "certificate")
    words = ("x509", "-noout", "-startdate", "-enddate", "-ext", "subjectAltName", "-pubkey")
    leaf = parse_certificate(openssl(*words, text=blocks[0]))
    for block in blocks[1:]:
        # A chain is worth as much as its shortest part; a root at its end is none of it.
        end = re.search(r"^notAfter=(.*)$", openssl("x509", "-noout", "-enddate", text=block), re.M)
        leaf["end"] = min(leaf["end"], ssl.cert_time_to_seconds(end[1]))
    return leaf


def public_key(text):
    """Return the public key of a private one in PEM."""
    return openssl("pkey", "-pubout", "-passin", "pass:", text=text).strip()


def check_pair(chain, key):
    """Return what a chain says, when the key is its own.

    Raises:
        RenewalError: a file is damaged, or the two don't belong together.
    """
    said = read_chain(chain)
    if public_key(key) != said["key"].strip():
        raise RenewalError("The key is that of another certificate.", "pair")
    return said


def check_new(chain, key, names, now, roots, folder):
    """Check a pair that is to be put in place. Return what its certificate says.

    Args:
        chain, key: PEM texts.
        names: those that it must have, C(None) when that is not looked at.
        now: the time.
        roots: path of the file with the roots, C("") when nobody says which is trusted.
        folder: where files may be made for openssl.

    Raises:
        RenewalError: it must not be put in place.
    """
    said = check_pair(chain, key)
    missing = sorted({plain_name(name) for name in names or ()} - set(said["names"]))
    if missing:
        raise RenewalError(f"It has not the name {', '.join(missing)}; it is for {', '.join(said['names'])}.", "name")
    if said["begin"] - now > CLOCK:
        raise RenewalError(
            f"It is not valid before {moment(said['begin'])}, and here it is {moment(now)}: a clock is wrong. The "
            "container's is the node's; set that, or the CA's.",
            "clock",
            True,
        )
    if said["end"] <= now:
        raise RenewalError(f"It has expired, at {moment(said['end'])}.", "expired")
    if roots:
        blocks = PEM_CERTIFICATE.findall(chain)
        write(f"{folder}/leaf.pem", blocks[0])
        write(f"{folder}/others.pem", "\n".join(blocks[1:]) + "\n")
        try:
            words = ("-no-CApath", "-no-CAstore", "-CAfile", roots, *(["-untrusted", f"{folder}/others.pem"]
                     if blocks[1:] else []), "-purpose", "sslserver", f"{folder}/leaf.pem")  # fmt: skip
            openssl("verify", *words)
        except RenewalError as error:
            raise RenewalError(f"It does not come from the CA that is trusted ({roots}): {error}", "chain") from None
    return said


def is_due(said, now, part, jitter=0.0):
    """Return whether a certificate is to be renewed now: when no more than this part of its life is left.

    Args:
        said: what `read_chain` returns.
        now: the time.
        part: such as 0.333.
        jitter: between 0 and 1; with it, up to a tenth of the rest earlier, so that many don't come at once.
    """
    life = max(said["end"] - said["begin"], 1)
    return said["end"] - now <= life * part * (1 + 0.1 * jitter)


def why_due(entry, files, now, part, roots, jitter=True):
    """Return why a certificate has to be made, C("") when it hasn't, and what the present one says.

    Args:
        entry: of the configuration.
        files: (chain, key), the texts that are there.
        now: the time.
        part: see `is_due`.
        roots: the path of the roots that must be at its end, C("") for any.
        jitter: whether it may be due somewhat earlier.
    """
    chain, key = files
    if not chain or not key:
        return "there is none yet", None
    try:
        said = check_pair(chain, key)
    except RenewalError as error:
        return f"the one that is there can't be used: {str(error)[0].lower()}{str(error)[1:].rstrip('.')}", None
    wanted = {plain_name(name) for name in entry["names"]}
    if not wanted <= set(said["names"]):
        return f"it has not the name {', '.join(sorted(wanted - set(said['names'])))}", said
    optional = {plain_name(name) for name in entry.get("optional_names", [])}
    others = sorted(set(said["names"]) - wanted - optional)
    if others:
        return f"it has the name {', '.join(others)}, which is declared no more", said
    if said["end"] <= now:
        return f"it expired at {moment(said['end'])}", said
    if said["begin"] - now > CLOCK:
        # Made while a clock was wrong, or it is wrong now; who makes the next one knows which.
        return f"it is not valid before {moment(said['begin'])}", said
    if is_due(said, now, part, random.random() if jitter else 0.0):
        return f"it ends in {span(said['end'] - now)}", said
    if roots:
        try:
            with scratch() as folder:
                check_new(chain, key, None, now, roots, folder)
        except RenewalError as error:
            if error.kind == "chain":
                return "it is from a CA that is not trusted any more", said
            raise
    return "", said


@contextlib.contextmanager
def scratch():
    """A folder for root's eyes, in memory, which is gone afterwards."""
    folder = f"{RUN}/phoenix_certificate.{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder, 0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- a new key, a request -------------------------------------------------------------------------------------------


def new_key():
    """Return a new private key in PEM."""
    return openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


def san(names):
    """Return names as openssl's subjectAltName has them."""
    return ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in names)


def request_for(names, key_file):
    """Return a request for a certificate with these names.

    The common name is the first one, where it fits into one (64 characters) and is no address.
    """
    common = names[0] if not is_address(names[0]) and len(names[0]) <= 64 else ""
    return openssl("req", "-new", "-key", key_file, "-subj", f"/CN={common}" if common else "/", "-addext",
                   f"subjectAltName={san(names)}")  # fmt: skip


# --- the CA -----------------------------------------------------------------------------------------------------------


def get(url, context=None, timeout=ANSWER):
    """Return (status, headers, content) of what a CA answers.

    Raises:
        OSError, http.client.HTTPException: it doesn't.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("GET", parts.path or "/", headers={"User-Agent": "phoenix.hypervisor"})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read(1 << 20)


def unverified():
    """Return a TLS context that trusts anybody: what comes through it is compared with a fingerprint, or believed
    by nobody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def clock_difference(headers, now):
    """Return by how many seconds this clock is ahead of the one of who answered, C(None) when it doesn't say."""
    try:
        return now - parsedate_to_datetime(headers["Date"]).timestamp()
    except (TypeError, ValueError, KeyError):
        return None


def clock_sentence(ahead, now):
    """Return what is wrong with the clocks."""
    return (
        f"The clocks differ by {span(ahead)}: here it is {moment(now)}, at the CA {moment(now - ahead)}, so no "
        "certificate of it is valid here. The container's clock is the node's: set that one (timedatectl, chrony), or "
        "the CA's."
    )


def unreachable(url, error):
    """Return the error for a CA that can't be reached."""
    why = {
        errno.ECONNREFUSED: "nothing listens there",
        errno.EHOSTUNREACH: "there is no way to it",
        errno.ENETUNREACH: "there is no way to it",
        errno.ECONNRESET: "it closed the connection",
    }.get(getattr(error, "errno", None))
    if isinstance(error, socket.gaierror):
        why = f"the name can't be resolved ({error.strerror})"
    elif isinstance(error, socket.timeout):
        why = "it gives no answer"
    parts = urllib.parse.urlsplit(url)
    return RenewalError(
        f"The CA at {parts.scheme}://{parts.netloc} can't be reached: {why or error}. It is tried again by itself.",
        "unreachable",
        True,
    )


def no_longer_trusted(url, shown):
    """Return the error for a CA whose root is none of those that are declared."""
    parts = urllib.parse.urlsplit(url)
    return RenewalError(
        f"The CA at {parts.scheme}://{parts.netloc} is not the one that is declared: {shown}. When it has a new root "
        "on purpose, compare its fingerprint on the CA itself (step certificate fingerprint root_ca.crt) and declare "
        "both roots while it changes: bootstrap_ca_fingerprint: [old, new]. Otherwise somebody answers in its place.",
        "root",
    )


def check_ca(config, now):
    """Make sure that the CA is there, is the declared one, and lives in the same time.

    Raises:
        RenewalError: it isn't so.
    """
    url, roots = config["directory"], config["ca_file"]
    secure = url.startswith("https:")
    try:
        context = ssl.create_default_context(cafile=roots) if secure else None
    except OSError as error:
        raise RenewalError(f"The file of the roots, {roots}, can't be used: {error}.", "root") from None
    if context:
        # As curl has it; a CA that a site made itself may lack what the strict way wants.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    try:
        status, headers, _content = get(url, context)
    except ssl.SSLCertVerificationError as error:
        check_clock(url, now)
        if error.verify_code in (62, 64):
            host = urllib.parse.urlsplit(url).hostname
            raise RenewalError(
                f"The certificate of the CA's own server is not for {host}: name the CA in bootstrap_ca_url as its "
                "certificate does, or give the CA that name (step-ca: dnsNames).",
                "ca name",
            ) from None
        if error.verify_code in (9, 10):
            raise RenewalError(
                f"The certificate of the CA's own server at {url} is out of date ({error.verify_message}): look at the "
                "CA.",
                "ca expired",
                True,
            ) from None
        raise no_longer_trusted(url, f"its certificate comes from no root in {roots}") from None
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(url, error) from None
    ahead = clock_difference(headers, now)
    if ahead is not None and abs(ahead) > CLOCK:
        raise RenewalError(clock_sentence(ahead, now), "clock", True)
    if status != 200:
        raise RenewalError(
            f"The CA answers {url} with HTTP {status}. "
            + (
                "That is not its ACME directory: look at the provisioner's name (certificate_acme_provisioner; on the "
                "CA: step ca provisioner list) or write the whole address in certificate_acme_directory."
                if status < 500
                else "It is tried again by itself."
            ),
            "directory",
            status >= 500,
        )


def check_clock(url, now):
    """Raise C(RenewalError) when the CA's clock says something else; who it is, is not looked at."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        ahead = clock_difference(get(url, unverified())[1], now)
        if ahead is not None and abs(ahead) > CLOCK:
            raise RenewalError(clock_sentence(ahead, now), "clock", True)


def fetch_roots(ca_url, fingerprints, timeout=ANSWER):
    """Return the roots of a CA, in PEM, that have one of these fingerprints, and those that it doesn't have.

    Nothing else is believed, so who answers need not be known: C(/root/<fingerprint>) and C(/roots.pem), as step-ca has
    them.

    Raises:
        RenewalError: it can't be reached, or has none of them.
    """
    found, others, base = {}, {}, ca_url.rstrip("/")
    for path in (*(f"/root/{one}" for one in fingerprints), "/roots.pem"):
        if len(found) == len(fingerprints):
            break
        try:
            status, _headers, content = get(f"{base}{path}", unverified(), timeout)
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(base, error) from None
        if status != 200:
            continue
        text = content.decode("utf-8", "replace")
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            text = str(json.loads(text)["ca"])
        for pem in PEM_CERTIFICATE.findall(text):
            with contextlib.suppress(ValueError, binascii.Error):
                one = fingerprint(pem)
                (found if one in fingerprints else others)[one] = f"{pem}\n"
    if not found and others:
        raise no_longer_trusted(base, f"its root has the fingerprint {', '.join(sorted(others))}")
    if not found:
        raise RenewalError(
            f"{base} gives no root certificate, neither at /roots.pem nor at /root/<fingerprint>, as step-ca does: "
            "look at bootstrap_ca_url. For another CA, give the file of its root in certificate_ca_roots.",
            "root",
        )
    return found, [one for one in fingerprints if one not in found]


# --- answering challenges -------------------------------------------------------------------------------------------


def listener_on(port):
    """Return in words which process listens on a port, C("") when that can't be seen."""
    sockets = set()
    for name in ("tcp", "tcp6"):
        for row in (line.split() for line in read_text(f"/proc/net/{name}").splitlines()[1:]):
            if len(row) > 9 and row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{row[9]}]")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if any(os.readlink(f"/proc/{pid}/fd/{one}") in sockets for one in os.listdir(f"/proc/{pid}/fd")):
                return f"{read_text(f'/proc/{pid}/comm').strip()} (process {pid})"
    return ""


class Answers:
    """What a CA that comes to validate is told, and whether it came.

    :ivar visited: the names for which a CA came and asked
    """

    def __init__(self, folder, challenge, port, webroot=""):
        self.folder, self.challenge, self.port, self.webroot = folder, challenge, port, webroot
        self.visited, self.server = set(), None

    def entry(self, name):
        """Return a challenge that the hook has written, nothing when there is no such."""
        return read_json(os.path.join(self.folder, name)) if re.fullmatch(r"[A-Za-z0-9_-]+", name) else {}

    def __enter__(self):
        if self.webroot:
            return self
        try:
            self.server = self.serve()
        except OSError as error:
            who = listener_on(self.port) if error.errno == errno.EADDRINUSE else ""
            other = "tls-alpn-01 (port 443)" if self.challenge == "http-01" else "http-01 (port 80)"
            raise RenewalError(
                f"Port {self.port} is needed to answer the CA ({self.challenge}), and "
                + (f"{who or 'another process'} has it" if error.errno == errno.EADDRINUSE else f"{error.strerror}")
                + f": stop that, let it serve the challenges from a folder (certificate_webroot), or set "
                f"certificate_challenge to {other}.",
                "port",
                True,
            ) from None
        threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_error):
        if self.server:
            self.server.shutdown()
            self.server.server_close()

    def serve(self):
        """Return a server that listens, on IPv6 too where there is that."""
        answers = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """Answers http-01."""

            def do_GET(self):
                place, _slash, name = self.path.rpartition("/")
                entry = answers.entry(name) if place == "/.well-known/acme-challenge" else {}
                body = entry.get("answer", "").encode()
                answers.visited.add(entry.get("name", ""))
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_words):
                """Say nothing."""

        class TLSHandler(Handler):
            """Answers tls-alpn-01: the handshake is all that the CA looks at."""

            def setup(self):
                """Do the handshake here, so that one that hangs keeps nobody waiting."""
                self.request.settimeout(10)
                self.request = answers.alpn_context().wrap_socket(self.request, server_side=True)
                super().setup()

        class Server(http.server.ThreadingHTTPServer):
            """A server on all addresses."""

            daemon_threads = True

            def server_bind(self):
                """Take IPv4 as well as IPv6."""
                if self.address_family == socket.AF_INET6:
                    self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                # Connections of a minute ago keep nobody from the port.
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind(self.server_address)
                self.server_name, self.server_port = "", answers.port

            def handle_error(self, *_words):
                """A client that went away, or whose handshake failed, is none of ours."""

        handler = Handler if self.challenge == "http-01" else TLSHandler
        try:
            Server.address_family = socket.AF_INET6
            return Server(("::", self.port), handler)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            Server.address_family = socket.AF_INET
            return Server(("0.0.0.0", self.port), handler)

    def alpn_context(self):
        """Return the context that shows each name its own answer."""

        def context_for(entry):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.set_alpn_protocols(["acme-tls/1"])
            if entry:
                context.load_cert_chain(entry)
            return context

        def choose(connection, name, _context):
            path = os.path.join(self.folder, f"{(name or '').lower()}.pem")
            if "/" in (name or "") or not os.path.exists(path):
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            connection.context = context_for(path)
            self.visited.add(name.lower())
            return None

        context = context_for("")
        context.sni_callback = choose
        return context


def server_name(identifier):
    """Return what a CA that validates by TLS asks for: an address in the form of RFC 8738."""
    if not is_address(identifier):
        return identifier.lower()
    return ipaddress.ip_address(identifier).reverse_pointer


def alpn_certificate(identifier, digest):
    """Return certificate and key, in PEM, with which a tls-alpn-01 challenge is answered.

    Args:
        identifier: the name or address that is validated.
        digest: uacme's: the SHA-256 of the key authorization, in base64url.
    """
    raw = base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
    with scratch() as folder:
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
            "/CN=acme", "-addext", f"subjectAltName={san([identifier])}", "-addext",
            f"{ACME_IDENTIFIER}=critical,DER:0420{raw}", "-keyout", f"{folder}/key", "-out", f"{folder}/certificate",
        )  # fmt: skip
        return read_text(f"{folder}/certificate") + read_text(f"{folder}/key")


def hook(method, kind, identifier, token, answer):
    """Do what uacme asks for. Return its exit code: 0 done, 1 not this kind of challenge.

    What it has to know is in the environment: the kind that is answered, and the folder of the answers.
    """
    folder, wanted, webroot = (os.environ[f"PHOENIX_{name}"] for name in ("ANSWERS", "CHALLENGE", "WEBROOT"))
    if kind != wanted or not re.fullmatch(r"[A-Za-z0-9_-]+", token):
        return 1
    if kind == "tls-alpn-01":
        path = os.path.join(folder, f"{server_name(identifier)}.pem")
        content, mode = (alpn_certificate(identifier, answer), 0o600) if method == "begin" else ("", 0)
    elif webroot:
        path = os.path.join(webroot, ".well-known/acme-challenge", token)
        content, mode = answer, 0o644
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    else:
        path = os.path.join(folder, token)
        content, mode = json.dumps({"answer": answer, "name": server_name(identifier)}), 0o600
    if method == "begin":
        write(path, content, mode)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return 0


# --- getting one -----------------------------------------------------------------------------------------------------


# What a CA says (the error types of RFC 8555), and what it means for a person.
REFUSALS = {
    "rejectedIdentifier": ("name", "The CA does not allow this name: correct common_name or sans, or allow it there "
                           "(step-ca: the policy of the ACME provisioner)"),
    "unsupportedIdentifier": ("name", "The CA gives no certificates for such names"),
    "externalAccountRequired": ("account", "The CA wants an account that was made beforehand (EAB), which this role "
                                "does not do: use a provisioner without it"),
    "rateLimited": ("busy", "The CA was asked too often"),
    "serverInternal": ("busy", "The CA has trouble of its own"),
    "badNonce": ("nonce", "The CA refused each nonce"),
    **dict.fromkeys(("dns", "connection", "tls", "incorrectResponse", "unauthorized", "caa"), ("validation", "")),
    **dict.fromkeys(("malformed", "badCSR", "badPublicKey", "badSignatureAlgorithm", "userActionRequired"),
                    ("refused", "The CA refused the request")),
}  # fmt: skip
TEMPORARY_KINDS = {"busy", "nonce", "validation", "timeout"}


def refusal(said):
    """Return (kind, sentence, what the CA said) for the output of uacme at its most talkative.

    The last error counts. A nonce that was refused is tried again, so it counts only where there was nothing else.
    """
    errors = re.findall(r'"type":\s*"urn:ietf:params:acme:error:(\w+)"(?:,\s*"detail":\s*"((?:\\.|[^"\\])*)")?', said)
    if not errors:
        return "", "", ""
    which, detail = ([error for error in errors if error[0] != "badNonce"] or errors)[-1]
    detail = json.loads(f'"{detail}"')
    if which in ("unauthorized", "badCSR") and re.search("not (?:allowed|authorized)|policy", detail):
        which = "rejectedIdentifier"
    return (*REFUSALS.get(which, ("", "")), detail)


def why_not(said, names, answers, late):
    """Return the C(RenewalError) for a request that came to nothing.

    Args:
        said: what uacme said.
        names: what was asked for.
        answers: C(Answers), which knows whether the CA came.
        late: seconds after which it was given up; 0 when uacme ended by itself.
    """
    kind, sentence, detail = refusal(said)
    for_whom = re.findall(r"running \S+ begin \S+ (\S+) ", said)
    name = for_whom[-1] if for_whom and kind in ("validation", "") else names[0]
    quoted = f' It says: "{detail.rstrip(".")}".' if detail else ""
    if kind == "validation" or (late and not kind):
        port = answers.port
        if server_name(name) in answers.visited:
            came = f"It came here, and did not accept the answer for {name}: does {name} lead to another machine, too?"
        elif answers.webroot:
            came = f"Is {answers.webroot} what http://{name}/ serves?"
        else:
            came = (
                f"It did not come to port {port} here: does {name} lead to this container where the CA looks it up, "
                f"and is port {port} open (firewall)?"
            )
        wait = f" within {late} s" if late else ""
        return RenewalError(f"The CA could not validate {name}{wait}.{quoted} {came}", "validation", True, name)
    if kind:
        sure = f" ({', '.join(names)})" if kind == "name" else ""
        return RenewalError(f"{sentence}{sure}.{quoted}", kind, kind in TEMPORARY_KINDS)
    lines = [line for line in said.splitlines() if line.startswith("uacme: ")] or said.strip().splitlines()
    last = (lines or ["it said nothing"])[-1].replace("uacme: ", "", 1)
    return RenewalError(f"uacme got no certificate: {last}.{quoted}", "uacme", True)


def ask(config, names, key_file, folder, environment=None):
    """Return the chain that the CA gives for these names.

    Args:
        config: the configuration.
        names: the first is the common name.
        key_file: the path of its key.
        folder: for root's eyes.
        environment: further variables, for tests.

    Raises:
        RenewalError: it gives none.
    """
    request, answers_folder = f"{folder}/request.csr", f"{folder}/answers"
    write(request, request_for(names, key_file))
    os.makedirs(answers_folder, mode=0o700, exist_ok=True)
    account = f"{STATE}/account"
    os.makedirs(account, mode=0o700, exist_ok=True)
    challenge, limit = config["challenge"], config["validation_timeout"]
    port = config.get("port") or {"http-01": 80, "tls-alpn-01": 443}[challenge]
    variables = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LC_ALL": "C",
                 "PHOENIX_ANSWERS": answers_folder, "PHOENIX_CHALLENGE": challenge,
                 "PHOENIX_WEBROOT": config.get("webroot", ""), **(environment or {})}  # fmt: skip
    base = ["uacme", "--acme-url", config["directory"], "--confdir", account, "--type", "EC", "--yes", "-v", "-v"]
    with Answers(answers_folder, challenge, port, config.get("webroot", "")) as answers:
        issue = ["--force", "--hook", PROGRAM, "issue", request]
        for words in [issue] if has_account(account) else [["new"], issue]:
            code, said = call([*base, *words], folder, variables, limit)
            if code != 0 and words != ["new"] and re.search("accountDoesNotExist", said):
                # A CA that was made anew doesn't know it any more.
                code, said = call([*base, "new"], folder, variables, limit)
                if code == 0:
                    code, said = call([*base, *words], folder, variables, limit)
            if code is None:
                raise why_not(said, names, answers, limit)
            if code:
                raise why_not(said, names, answers, 0)
    chain = read_text(f"{folder}/request-cert.pem")
    if not chain:
        raise RenewalError("uacme left no certificate.", "uacme", True)
    return chain


def has_account(folder):
    """Return whether there is a key of an account that can be used: a run that was killed may have left half of one."""
    key = f"{folder}/private/key.pem"
    if not os.path.exists(key):
        return False
    try:
        public_key(read_text(key))
    except RenewalError:
        os.unlink(key)
        return False
    os.chmod(key, 0o600)
    return True


def call(words, folder, variables, limit):
    """Return (exit code, output) of uacme; the code is C(None) when it was given up."""
    try:
        process = subprocess.Popen(words, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace",
                                   start_new_session=True)  # fmt: skip
    except FileNotFoundError:
        raise RenewalError("There is no uacme in the container: install the package uacme.", "uacme") from None
    try:
        return_said = process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        return None, process.communicate()[0]
    return process.returncode, return_said


def by_acme(config, entry, folder, now):
    """Return (chain, key, names that the CA refused) of a new certificate from the CA.

    Raises:
        RenewalError: there is none.
    """
    check_ca(config, now)
    key = new_key()
    write(f"{folder}/key.pem", key)
    names, optional = entry["names"], [name for name in entry.get("optional_names", []) if name not in entry["names"]]
    tried = dict.fromkeys(TRIES, 0)
    while True:
        try:
            return ask(config, [*names, *optional], f"{folder}/key.pem", folder), key, []
        except RenewalError as error:
            if (optional and error.kind in ("name", "refused")) or error.name in optional:
                last = error
                break
            tried[error.kind] = tried.get(error.kind, 0) + 1
            if tried[error.kind] >= TRIES.get(error.kind, 1):
                raise
            time.sleep(0.5 if error.kind == "nonce" else 2 * tried[error.kind])
    # An address is more than many a CA allows; without it the certificate is good, too.
    tell(f"{entry['name']}: there is no certificate with {', '.join(optional)} in it, so it is asked without. {last}")
    return ask(config, names, f"{folder}/key.pem", folder), key, optional


def own_ca(days, now):
    """Return the paths of key and certificate of this container's own CA. It is made where there is none.

    Its certificate is made again, with the same key, in time.
    """
    folder = f"{STATE}/own_ca"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    key, certificate = f"{folder}/key.pem", f"{folder}/ca.pem"
    try:
        public_key(read_text(key))
    except RenewalError:
        write(key, new_key())
    try:
        said = check_pair(read_text(certificate), read_text(key))
        good = said["begin"] <= now and said["end"] - now > 2 * days * 86400
    except RenewalError:
        good = False
    if not good:
        text = openssl(
            "req", "-x509", "-key", key, "-days", str(max(OWN_CA_DAYS, 3 * days)),
            "-subj", f"/CN={socket.gethostname()} own CA",
            "-addext", "basicConstraints=critical,CA:TRUE,pathlen:0",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        write(certificate, text, 0o644)
    return key, certificate


def by_own_ca(config, entry, folder, now):
    """Return (chain, key, []) of a new certificate from the container's own CA."""
    ca_key, ca = own_ca(config["lifetime_days"], now)
    # Trusted is what signed the certificates that are there, too.
    if read_text(config["ca_file"]) != read_text(ca):
        write(config["ca_file"], read_text(ca), 0o644)
    key = new_key()
    write(f"{folder}/key.pem", key)
    names = [*entry["names"], *(name for name in entry.get("optional_names", []) if name not in entry["names"])]
    write(f"{folder}/request.csr", request_for(names, f"{folder}/key.pem"))
    write(f"{folder}/extensions", f"subjectAltName={san(names)}\nbasicConstraints=critical,CA:FALSE\n"
          "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
          "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")  # fmt: skip
    chain = openssl(
        "x509", "-req", "-in", f"{folder}/request.csr", "-CA", ca, "-CAkey", ca_key, "-set_serial",
        f"0x{os.urandom(15).hex()}", "-days", str(config["lifetime_days"]), "-extfile", f"{folder}/extensions",
    )  # fmt: skip
    return chain, key, []


def roots_of(source, ca_file):
    """Return the path of the roots that a certificate must come from; C("") when nobody says which."""
    return {"step_ca": ca_file, "self_signed": f"{STATE}/own_ca/ca.pem"}.get(source, "")


def by_files(entry):
    """Return (chain, key, []) of the files that somebody else keeps."""
    texts = []
    for what, path in (("certificate", entry["source_certificate"]), ("key", entry["source_key"])):
        try:
            with open(path, encoding="utf-8") as file:
                texts.append(file.read())
        except OSError as error:
            raise RenewalError(f"The {what} {path} can't be read: {error.strerror}.", "files") from None
        except UnicodeDecodeError:
            raise RenewalError(f"The {what} {path} is not in PEM form.", "files") from None
    return texts[0], texts[1], []


# --- putting it in place ------------------------------------------------------------------------------------------


def attributes(entry):
    """Return (uid, gid, mode of the key, mode of the certificate) of an entry's files."""
    try:
        uid = int(entry["owner"]) if entry["owner"].isdigit() else pwd.getpwnam(entry["owner"]).pw_uid
    except KeyError:
        raise RenewalError(f"There is no user {entry['owner']} in the container (owner).", "owner") from None
    try:
        gid = int(entry["group"]) if entry["group"].isdigit() else grp.getgrnam(entry["group"]).gr_gid
    except KeyError:
        raise RenewalError(f"There is no group {entry['group']} in the container (group).", "owner") from None
    return uid, gid, int(entry["mode"], 8), 0o644


def drift(entry):
    """Return whether owner, group or mode of an entry's files are others than declared."""
    uid, gid, key_mode, mode = attributes(entry)
    for path, wanted in ((entry["key_file"], key_mode), (entry["cert_file"], mode)):
        with contextlib.suppress(FileNotFoundError):
            is_now = os.stat(path)
            if (is_now.st_uid, is_now.st_gid, is_now.st_mode & 0o7777) != (uid, gid, wanted):
                return True
    return False


def put_right(entry):
    """Give an entry's files the declared owner, group and mode."""
    uid, gid, key_mode, mode = attributes(entry)
    for path, wanted in ((entry["key_file"], key_mode), (entry["cert_file"], mode)):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, wanted)
            finally:
                os.close(descriptor)


def no_room(error, path):
    """Return the error for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RenewalError(
            f"There is no room for the new certificate in {os.path.dirname(path)} (disk full): the one that is there "
            "stays. Make room; it is tried again by itself.",
            "disk",
            True,
        )
    text = f"{path} can't be written: {error.strerror}. The certificate that is there stays."
    return RenewalError(text, "write", True)


def install(entry, chain, key):
    """Put a pair in place: both are on the disk beside their places before the first of two renames.

    Raises:
        RenewalError: it could not be; the old pair is as it was.
    """
    uid, gid, key_mode, mode = attributes(entry)
    ready = []
    try:
        for path, text, wanted in ((entry["key_file"], key, key_mode), (entry["cert_file"], chain, mode)):
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            ready.append((prepare(path, text, wanted, uid, gid), path))
    except OSError as error:
        for temporary, _path in ready:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise no_room(error, path) from None
    for temporary, path in ready:
        os.replace(temporary, path)
    for folder in sorted({os.path.dirname(path) for _temporary, path in ready}):
        sync_folder(folder)


class Record:
    """What the program keeps of a certificate: a pair that waits for its place, and the command that is owed."""

    def __init__(self, name):
        self.folder = os.path.join(STATE, "certificates", name)
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self.staged, self.owed = f"{self.folder}/staged.pem", f"{self.folder}/owed"

    def stage(self, chain, key, without):
        """Keep a pair until it is in its place."""
        write(self.staged, json.dumps({"chain": chain, "key": key, "without": without}))

    def waiting(self):
        """Return (chain, key, without) of a pair that a run which was killed has left, or nothing."""
        kept = read_json(self.staged)
        return (kept["chain"], kept["key"], kept["without"]) if {"chain", "key", "without"} <= set(kept) else None

    def done(self):
        """Forget the pair."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.staged)

    def owe(self):
        """Keep that the command has to be run."""
        write(self.owed, "")

    def owes(self):
        """Return whether it has."""
        return os.path.exists(self.owed)

    def paid(self):
        """It was run, and succeeded."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.owed)


def get_pair(config, entry, folder, now):
    """Return (chain, key, names that it is without) of a new, checked pair.

    Raises:
        RenewalError: there is none.
    """
    source = config["source"]
    if source == "files":
        chain, key, without = by_files(entry)
        names, roots = entry["names"], ""
    else:
        chain, key, without = (by_acme if source == "step_ca" else by_own_ca)(config, entry, folder, now)
        names, roots = entry["names"], config["ca_file"]
    try:
        check_new(chain, key, names, time.time(), roots, folder)
    except RenewalError as error:
        whose = {"files": f"The certificate {entry.get('source_certificate')} is not put in place.",
                 "step_ca": "The certificate that the CA gave is not put in place."}.get(
                     source, "The new certificate is not put in place.")  # fmt: skip
        raise RenewalError(f"{whose} {error}", error.kind, error.temporary) from None
    return chain, key, without


def renew(config, entry, force, now):
    """Look at one certificate, and do what is due. Return what came of it, as the status has it."""
    record, part = Record(entry["name"]), config["renew_at"]
    roots = roots_of(config["source"], config["ca_file"])
    files = (read_text(entry["cert_file"]), read_text(entry["key_file"]))
    why, _said = why_due(entry, files, now, part, roots)
    if config["source"] == "files":
        texts = tuple(read_text(entry[name]) for name in ("source_certificate", "source_key"))
        why = "" if texts == files and why.startswith("it ends") else why
        why = why or ("" if texts == files else "another one is declared")
    before = read_json(STATUS).get("certificates", {}).get(entry["name"], {})
    result = {"renewed": False, "without": list(before.get("without", []))}
    waits = record.waiting()
    if waits:
        with contextlib.suppress(RenewalError), scratch() as folder:
            new = check_new(*waits[:2], entry["names"], now, roots, folder)
            if not is_due(new, now, part) and (why or force):
                why, force = "a run that ended early had it already", False
                result["reason"] = why
                place(record, entry, *waits[:2])
                result.update(renewed=True, without=waits[2])
                why = ""
        record.done()
    if why or force:
        result["reason"] = why or "it was asked for"
        with scratch() as folder:
            chain, key, without = get_pair(config, entry, folder, now)
        try:
            record.stage(chain, key, without)
        except OSError as error:
            raise no_room(error, record.staged) from None
        place(record, entry, chain, key)
        result.update(renewed=True, without=without)
        tell(f"{entry['name']}: there is a new certificate, because {result['reason']}.")
    elif drift(entry):
        put_right(entry)
        result["put_right"] = True
    return result


def place(record, entry, chain, key):
    """Put a staged pair in place; the command is owed from before that on."""
    try:
        if entry["command"]:
            record.owe()
        install(entry, chain, key)
        record.done()
    except OSError as error:
        raise no_room(error, entry["cert_file"]) from None


def run_command(record, entry):
    """Run the command that a renewal owes. No shell sees it.

    Raises:
        RenewalError: it failed; it is owed still.
    """
    if not entry["command"] or (entry.get("only_if") and not os.path.exists(entry["only_if"])):
        record.paid()
        return
    words = entry["command"]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=COMMAND, check=False)  # fmt: skip
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        why = f"it ended with {done.returncode}" + (f": {said[0]}" if said else "") if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"it did not end in {COMMAND} s"
    except OSError as error:
        why = error.strerror
    if why:
        raise RenewalError(
            f"The certificate is new, but the command after it ({' '.join(words)}) failed: {why.rstrip('.')}. It is "
            "run again by itself until it succeeds.",
            "command",
            True,
        )
    record.paid()


def look(entry):
    """Return what the status says of the pair that is there."""
    try:
        said = check_pair(read_text(entry["cert_file"]), read_text(entry["key_file"]))
    except RenewalError:
        return {"not_before": None, "not_after": None, "names": []}
    return {"not_before": said["begin"], "not_after": said["end"], "names": said["names"]}


def one(config, entry, force):
    """Return what came of one certificate, whatever happens."""
    record, result = None, {}
    try:
        record = Record(entry["name"])
        result = renew(config, entry, force, time.time())
        if record.owes():
            run_command(record, entry)
            result["command"] = "done"
    except RenewalError as error:
        result.update(error=str(error), kind=error.kind, temporary=error.temporary)
    except OSError as error:
        problem = no_room(error, error.filename or entry["cert_file"])
        result.update(error=str(problem), kind=problem.kind, temporary=True)
    if result.get("error"):
        tell(f"{entry['name']}: {result['error']}")
    return {**look(entry), **result}


def run(force=False):
    """Do all that is due. Return the exit code."""
    # Folders of certificates can be read by everybody; each file gets its own mode.
    os.umask(0o022)
    with open(LOCK, "w", encoding="utf-8") as lock:
        # Two runs at once would both ask; the second one finds nothing to do.
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = read_json(CONFIG)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(FORCE)
            force = True
        if not config.get("certificates"):
            tell("There is no certificate to look after.")
            return 0
        began = time.time()
        results = {entry["name"]: one(config, entry, force) for entry in config["certificates"]}
        with contextlib.suppress(OSError):
            write(STATUS, json.dumps({"began": began, "ended": time.time(), "certificates": results}, indent=1) + "\n")
    bad = [result for result in results.values() if result.get("error")]
    if not bad:
        return 0
    return TEMPORARY if any(result["temporary"] for result in bad) else 1


if __name__ == "__main__":
    if sys.argv[1:] in (["run"], ["run", "force"]):
        raise SystemExit(run(sys.argv[2:] == ["force"]))
    if len(sys.argv) == 6 and sys.argv[1] in ("begin", "done", "failed"):
        raise SystemExit(hook(*sys.argv[1:]))
    raise SystemExit("usage: renew.py run [force]")
