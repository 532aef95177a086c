# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The REST API's web server: HTTPS on port 8006, JSON, one forked process per connection (as pveproxy's workers are).

A process of its own per connection is what lets the functions behind pct serve here as they are: they fork tasks,
print warnings, change their ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import ssl
import sys
import time
import traceback
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from node import access, active, certificate, routing, settings, tasks
from node import endpoints_firewall as _firewall  # noqa: F401 - they register themselves
from node import endpoints_lxc as _lxc  # noqa: F401
from node import endpoints_node as _node  # noqa: F401
from node.errors import ParameterError, PctError, Refusal
from node.system import write_atomically

_IDLE = 60  # seconds after which a silent connection is closed


class Handler(BaseHTTPRequestHandler):
    """The requests of one connection."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    # Headers and body in one packet: two would wait for each other's acknowledgement, 40 ms in each answer.
    wbufsize = -1

    def do_GET(self) -> None:
        """Answer one request, whatever its method."""
        url = urlsplit(self.path)
        status, reason, body = 200, "OK", {}
        try:
            body = self._answer(url.path, dict(self._parameters(url.query)))
        except ParameterError as wrong:
            status, reason = 400, "Parameter verification failed."
            body = {"data": None, "errors": {name: text + "\n" for name, text in wrong.errors.items()}}
        except Refusal as refusal:
            status, reason, body = refusal.status, str(refusal), {"data": None}
        except PctError as failure:
            status, reason, body = 500, str(failure), {"data": None}
        except Exception as mistake:  # a fault of the lab: said, and written down
            traceback.print_exc()
            status, reason, body = 500, f"{type(mistake).__name__}: {mistake}", {"data": None}
        self._send(status, " ".join(reason.split()), body)

    do_POST = do_PUT = do_DELETE = do_GET

    def _parameters(self, query: str) -> Iterable[tuple[str, str]]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
        if self.headers.get_content_type() == "application/json" and body.strip():
            try:
                given = json.loads(body)
            except ValueError:
                given = None
            if not isinstance(given, dict):
                raise Refusal(400, "unable to decode JSON")
            found = [(name, str(int(v) if isinstance(v, bool) else v)) for name, v in given.items() if v is not None]
        else:
            found = parse_qsl(body, keep_blank_values=True)
        return [*parse_qsl(query, keep_blank_values=True), *found]

    def _answer(self, path: str, parameters: dict[str, str]) -> dict[str, Any]:
        prefix, path = path[: len("/api2/json")], path[len("/api2/json") :].rstrip("/") or "/"
        if prefix not in ("/api2/json", "/api2/extjs"):
            raise Refusal(501, f"no such file '{self.path.partition('?')[0]}'")
        if (self.command, path) == ("POST", "/access/ticket"):
            missing = [name for name in ("username", "password") if name not in parameters]
            if missing:
                raise ParameterError(dict.fromkeys(missing, "property is missing and it is not optional"))
            return {"data": access.new_ticket(parameters["username"], parameters["password"])}
        heads = [self.headers.get(name, "") for name in ("Authorization", "Cookie", "CSRFPreventionToken")]
        who = access.caller(self.command, *heads)
        if self.command != "GET":
            _count_call(self.command, path)
        tasks.user = who.name
        return routing.answer(who, self.command, path, parameters)

    def _send(self, status: int, reason: str, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        # one line of Latin-1 is all that HTTP's reason phrase can carry
        self.send_response(status, reason.encode("latin-1", "replace").decode("latin-1")[:4000])
        self.send_header("Content-Type", "application/json;charset=UTF-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def version_string(self) -> str:
        """What the header Server says."""
        return "pve-api-daemon/3.0"

    def log_message(self, format: str, *args: Any) -> None:
        """One line per request; queries may carry what a log must not."""
        print(
            f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {self.command} {self.path.partition('?')[0]} {args[1:]}", flush=True
        )


def _count_call(method: str, path: str) -> None:
    with open(settings.API_CALL_LOG, "a") as handle:
        handle.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {method} {path}\n")


def _serve(connection: socket.socket, address: Any, context: ssl.SSLContext) -> None:
    """One connection, in a process of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.settimeout(_IDLE)
    # who hangs up, talks no TLS or doesn't trust the certificate is nobody's fault here
    with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
        Handler(secure, address, None)  # type: ignore[arg-type]


def _listen(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, settings.API_PORT))
    listener.listen(64)
    return listener


def main() -> int:
    """Listen on loopback and on the bridge until a signal comes."""
    os.environ["PATH"] = settings.SAFE_PATH
    os.umask(0o022)
    address = json.loads(settings.API_SECRETS.read_text())["host"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, settings.node_certificate()))
    try:
        listeners = [_listen("127.0.0.1"), _listen(address)]
    except OSError as reason:
        print(f"port {settings.API_PORT}: {reason.strerror}", flush=True)
        return 1
    with contextlib.suppress(OSError):  # a machine without IPv6
        listeners.append(_listen("::1"))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    noted = {"pid": os.getpid(), "started": active.start_ticks(os.getpid()), "code": _code()}
    write_atomically(settings.API_PID, json.dumps(noted) + "\n")
    while True:
        for ready in select.select(listeners, [], [])[0]:
            connection, peer = ready.accept()
            if os.fork() == 0:
                for listener in listeners:
                    listener.close()
                try:
                    _serve(connection, peer, context)
                finally:
                    sys.stdout.flush()
                    os._exit(0)
            connection.close()


# --- as a background process of the lab ------------------------------------------------------------------------------


def _code() -> str:
    """Changes with the lab's code and its place: a server of older code, or of another checkout, is started anew."""
    folder = settings.CHECKOUT_LAB / "node"
    parts = (bytes(folder), *(path.read_bytes() for path in sorted(folder.glob("*.py"))))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _running() -> dict[str, Any]:
    """What the pid file says of a server that lives, else nothing."""
    try:
        noted: dict[str, Any] = json.loads(settings.API_PID.read_text())
    except (OSError, ValueError):
        return {}
    return noted if noted.get("started") == active.start_ticks(int(noted.get("pid", 0))) != 0 else {}


def is_up() -> bool:
    """Whether the server runs."""
    return bool(_running())


def start(address: str) -> None:
    """Have a server of this code; ``address`` is the bridge's."""
    certificate.ensure(address)
    access.ensure_secrets(address)
    if _running().get("code") == _code():
        return
    stop()
    argv = ["/usr/bin/python3", "-I", str(settings.CHECKOUT_LAB / "node"), "api"]
    pid = os.posix_spawn(
        argv[0], argv, {"PATH": settings.SAFE_PATH, "LANG": "C.UTF-8"}, setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(settings.API_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )  # fmt: skip
    deadline = time.monotonic() + 10
    while _running().get("pid") != pid:  # it notes itself as soon as it listens
        if time.monotonic() > deadline or os.waitpid(pid, os.WNOHANG)[0]:
            words = settings.API_LOG.read_text().splitlines()[-3:]
            raise PctError(f"the REST API did not start; {settings.API_LOG} ends with:\n" + "\n".join(words), 1)
        time.sleep(0.05)


def stop() -> None:
    """End the server and its connections. Tasks that it began go on, as they do on Proxmox VE."""
    noted = _running()
    if noted:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(noted["pid"], signal.SIGTERM)
        deadline = time.monotonic() + 5
        while active.start_ticks(noted["pid"]) == noted["started"] and time.monotonic() < deadline:
            time.sleep(0.02)
    Path(settings.API_PID).unlink(missing_ok=True)
