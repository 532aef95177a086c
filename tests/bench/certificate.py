# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure certificates from a CA (Caddy's ACME server, which is smallstep's), in containers of the lab.

C(ca_recovery_seconds): from the moment in which a CA that was away answers again to the new certificate in its place,
with the role's own times; the largest of three rounds. C(acme_renewal_failed_requests): a hundred renewals, each by the
CA, while a client asks a small TLS server that loads the new pair when the command after the renewal says so; every
request is a connection of its own, and checks chain and name.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / ".ansible" / "collections"), str(ROOT / "tests" / "support")]

from acme_site import CA, Client
from lab_modules import wait_until

VMID, ADDRESS = 562, "10.92.0.22"
RENEWALS, ROUNDS = 100, 3
CHAIN = "/etc/phoenix-hypervisor/certificates/web/fullchain.pem"
SERVICE = "phoenix_certificate.service"
# Loads the pair anew on SIGHUP; connections that are open stay as they are.
SERVER = """
import http.server, signal, ssl
folder = "/etc/phoenix-hypervisor/certificates/web"

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def setup(self):
        self.request = context.wrap_socket(self.request, server_side=True)
        super().setup()

    def log_message(self, *words):
        pass

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

def load(*_signal):
    context.load_cert_chain(f"{folder}/fullchain.pem", f"{folder}/privkey.pem")

load()
signal.signal(signal.SIGHUP, load)
http.server.ThreadingHTTPServer(("", 8443), Handler).serve_forever()
"""

Figures = dict[str, dict]


class Asking(threading.Thread):
    """A client that asks again and again, each time by a connection of its own."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(daemon=True)
        self.context, self.asked, self.failures, self.ended = context, 0, [], threading.Event()
        self.serials: set = set()

    def run(self) -> None:
        """Ask until it is told to end."""
        while not self.ended.wait(0.05):
            self.asked += 1
            connection = http.client.HTTPSConnection(ADDRESS, 8443, timeout=20, context=self.context)
            try:
                connection.request("GET", "/")
                self.serials.add(connection.sock.getpeercert()["serialNumber"])
                if connection.getresponse().read() != b"ok":
                    raise OSError("another answer")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(str(error))
            finally:
                connection.close()


def renewals(client: Client) -> dict:
    """Renew so often while a client asks. :raises RuntimeError: a renewal failed, or the server never served the new"""
    client.put("/root/server.py", SERVER)
    client.inside("systemd-run -q --unit web python3 /root/server.py")
    context = ssl.create_default_context(cadata=client.inside("cat /etc/phoenix-hypervisor/certificates/ca.pem"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    asking = Asking(context)
    time.sleep(1)
    asking.start()
    began, seconds = time.monotonic(), []
    for _number in range(RENEWALS):
        start = time.monotonic()
        said = client.renew("force")
        seconds.append(time.monotonic() - start)
        if not said.endswith("exit 0"):
            raise RuntimeError(said)
    asking.ended.set()
    asking.join()
    if len(asking.serials) < RENEWALS / 2:
        raise RuntimeError(f"the server served {len(asking.serials)} certificates in {RENEWALS} renewals")
    return {
        "value": len(asking.failures), "unit": "requests", "against": asking.asked, "renewals": RENEWALS,
        "seconds": round(time.monotonic() - began, 1), "median_seconds": round(sorted(seconds)[len(seconds) // 2], 2),
        "failures": asking.failures[:5],
    }  # fmt: skip


def recovery(client: Client) -> float:
    """The seconds from a CA that answers again to the new certificate."""
    client.ca.stop()
    client.inside(f"rm {CHAIN}; systemctl start {SERVICE} || true")
    wait_until(lambda: "(auto-restart)" in client.inside(f"systemctl status {SERVICE} --no-pager || true"), 60)
    client.ca.start()
    began = time.monotonic()
    wait_until(lambda: time.sleep(0.2) or client.serial(CHAIN), 300)
    return time.monotonic() - began


def figures() -> Figures:
    """The figures."""
    with tempfile.TemporaryDirectory() as folder:
        ca = CA(Path(folder))
        client = Client(VMID, ADDRESS, ca, Path(folder))
        try:
            ca.create()
            ca.start()
            client.create()
            command = ["systemctl", "kill", "--signal=HUP", "web"]
            client.variables = {
                "certificate_services": [{"name": "web", "common_name": client.full, "post_renewal_command": command}],
                "certificate_retry": 20,
            }
            # There is nobody to tell before the server is there.
            client.run(certificate_services=[{"name": "web", "common_name": client.full}])
            client.run()
            failed = renewals(client)
            rounds = [recovery(client) for _number in range(ROUNDS)]
        finally:
            client.close()
            ca.close()
    return {
        "ca_recovery_seconds": {"value": round(max(rounds), 1), "unit": "s", "rounds": [round(s, 1) for s in rounds]},
        "acme_renewal_failed_requests": failed,
    }


if __name__ == "__main__":
    print(json.dumps(figures(), indent=1))
