# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The certificate of a model server: its copy, what is wrong with it, its renewal. With real handshakes."""

from __future__ import annotations

import getpass
import http.server
import json
import os
import re
import socket
import ssl
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_guard
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_guard import CertificateError
from certificates import Authority

BODY = {"model": "m", "prompt": "Hello", "max_tokens": 4}
DAY = 86400


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where copies of certificates are."""
    monkeypatch.setattr(server_guard, "CERTIFICATES", str(tmp_path / "run"))
    monkeypatch.setattr(server_guard, "no_drain", lambda: None)
    return tmp_path


def write(folder: Path, certificate: str, key: str) -> tuple[str, str]:
    """Write a pair as the role certificate does. Returns the paths."""
    paths = folder / "fullchain.pem", folder / "privkey.pem"
    for path, text in zip(paths, (certificate, key)):
        path.write_text(text)
    return str(paths[0]), str(paths[1])


class Server(http.server.ThreadingHTTPServer):
    """Answers as vLLM does, with a certificate, which it reads anew when it is told to."""

    def __init__(self, certificate: str, key: str, folder: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.folder, self.status, self.metrics, self.seen = folder, 200, b"", []
        self.load(certificate, key)
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def load(self, certificate: str, key: str) -> None:
        self.context.load_cert_chain(*write(self.folder, certificate, key))

    def finish_request(self, request, client_address):
        try:
            request = self.context.wrap_socket(request, server_side=True)
        except OSError:
            return
        with request:
            super().finish_request(request, client_address)

    def probe(self, **tls) -> dict:
        return {"host": "127.0.0.1", "port": self.server_port, "tls": tls, "path": "/v1/completions", "body": BODY,
                "key": "k3y"}  # fmt: skip


class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(self.headers["Authorization"])
        self.reply(json.dumps({"choices": [{"text": " a"}]}).encode())

    def do_GET(self):
        self.server.seen.append(self.headers["Authorization"])
        self.reply(b"vllm:generation_tokens_total 12.0\n")

    def reply(self, content):
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(folder):
    """A function that starts a server with a certificate."""
    servers = []

    def start(certificate: str, key: str) -> Server:
        place = folder / f"server{len(servers)}"
        place.mkdir()
        servers.append(Server(certificate, key, place))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


# --- the copy -----------------------------------------------------------------------------------------------------


def test_the_copy_has_key_and_chain_and_is_its_user_s_alone(authority, folder):
    pair = write(folder, *authority.issue("a", chain=[authority.text]))
    server_guard.copy_certificate(*pair, getpass.getuser())
    path = server_guard.own_file(*pair)
    text = Path(path).read_text()
    assert re.findall("BEGIN (.*)-----", text) == ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o400 and os.stat(path).st_uid == os.getuid()
    assert path.startswith(str(folder / "run")) and server_guard.own_file(pair[1], pair[0]) != path
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, path)


def test_it_is_overwritten_in_place_also_by_a_shorter_one(authority, folder):
    user = getpass.getuser()
    pair = write(folder, *authority.issue("a", chain=[authority.text]))
    server_guard.copy_certificate(*pair, user)
    path = Path(server_guard.own_file(*pair))
    inode, certificate = path.stat().st_ino, authority.issue("b")
    write(folder, *certificate)
    server_guard.copy_certificate(*pair, user)
    assert path.stat().st_ino == inode and path.read_text() == certificate[1] + certificate[0]


def test_a_link_is_not_followed_and_full_memory_changes_nothing(authority, folder, monkeypatch):
    user = getpass.getuser()
    pair = write(folder, *authority.issue("a"))
    server_guard.copy_certificate(*pair, user)
    path = Path(server_guard.own_file(*pair))
    before = path.read_bytes()
    write(folder, *authority.issue("b", chain=[authority.text]))

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(server_guard.os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space"):
            server_guard.copy_certificate(*pair, user)
    assert path.read_bytes() == before
    path.unlink()
    path.symlink_to(folder / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        server_guard.copy_certificate(*pair, user)
    assert not (folder / "elsewhere").exists()


def test_what_can_t_be_used_is_said(authority, folder):
    certificate, key = authority.issue("a")
    other, locked = authority.issue("b")[1], authority.issue("c", password="secret")
    cases = {
        (certificate, other): "privkey.pem is that of another certificate; its certificate is ",
        (key, key): "fullchain.pem has no certificate in it",
        (certificate, certificate): "privkey.pem has no key in it",
        locked: "privkey.pem can't be used (",
        (certificate.replace("MII", "XXX"), key): "privkey.pem can't be used (",
        ("", key): "fullchain.pem has no certificate in it",
    }
    for (one, two), expected in cases.items():
        pair = write(folder, one, two)
        with pytest.raises(CertificateError) as caught:
            server_guard.read_pair(*pair)
        assert expected in str(caught.value), expected
    os.unlink(pair[1])
    with pytest.raises(CertificateError, match="has no certificate"):
        server_guard.read_pair(*pair)
    os.unlink(pair[0])
    with pytest.raises(CertificateError, match=r"fullchain.pem can't be read: No such file"):
        server_guard.read_pair(*pair)


# --- asking with verification -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.example", ""])
def test_a_server_is_asked_by_its_address_and_checked_by_its_name(authority, serve, name):
    server = serve(*authority.issue("model.example"))
    probe = server.probe(ca=str(authority.file), name=name)
    assert server_guard.ask(probe, 20) == server_guard.Seen("answer", "", text=" a")
    assert server_guard.request(probe, "GET", "/metrics", None, 20)[0] == 200
    assert server_guard.counted(probe, 20) == 12
    said, certificate = server_guard.certificate_of(probe, 20)
    assert said["subjectAltName"] == (("DNS", "model.example"),) and certificate[:1] == b"\x30"
    text = {**probe, "tls": {"ca_text": f"# Übung\n{authority.text}", "name": name}}
    assert server_guard.ask(text, 20).kind == "answer"


def distrusted(authority, tmp_path):
    """A certificate and how it is checked, and what is said of it."""
    other = Authority(tmp_path, "other")
    good = {"ca": str(authority.file), "name": "a"}
    return {
        r"has expired, at 20\d\d-\d\d-\d\d \d\d:\d\d UTC": (authority.issue("a", begins=-2 * DAY, ends=-60), good),
        r"is not valid before 20.* UTC; is the clock right\?": (authority.issue("a", begins=DAY, ends=2 * DAY), good),
        "is not for the name a": (authority.issue("b"), good),
        "is not for the name 10.0.0.1": (authority.issue("a"), {**good, "name": "10.0.0.1"}),
        f"is from no CA that is in {authority.file}": (other.issue("a"), good),
        "is from no CA that is in the system's store of CAs": (authority.issue("a"), {"ca": "", "name": "a"}),
        "is from no CA that is in the site's CA": (authority.issue("a"), {"ca_text": other.text, "name": "a"}),
        "can't be checked, because the site's CA has no certificate in it": (
            authority.issue("a"), {"ca_text": authority.text.replace("MII", "Mü"), "name": "a"},
        ),
        "can't be checked, because /nowhere can't be read: No such file or directory": (
            authority.issue("a"), {"ca": "/nowhere", "name": "a"},
        ),
        "can't be checked, because /etc/hostname has no certificate in it": (
            authority.issue("a"), {"ca": "/etc/hostname", "name": "a"},
        ),
    }  # fmt: skip


def test_a_certificate_that_is_not_trusted_is_no_silence(authority, serve, tmp_path):
    """The model lives, and it is said what is wrong with its certificate: nothing that a restart would change."""
    for expected, (pair, tls) in distrusted(authority, tmp_path).items():
        probe = serve(*pair).probe(**tls)
        with pytest.raises((ssl.SSLCertVerificationError, CertificateError)) as caught:
            server_guard.request(probe, "GET", "/metrics", None, 20)
        assert re.fullmatch(expected, server_guard.distrust(caught.value, probe, 20)), expected
        seen = server_guard.ask(probe, 20)
        assert seen.kind == "refusal"
        assert re.fullmatch(f"its certificate {expected}. Clients don't accept it; .*", seen.words), seen
        assert server_guard.counted(probe, 20) == 12
        memory = server_guard.judge(server_guard.remembered({}, "i"), seen, 500, 100, 900, 20, 60)
        assert memory["answered"] and memory["killed"] is None and memory["said"] == seen.words


def test_a_server_that_gives_no_token_is_silent_whatever_its_certificate(authority, serve):
    server = serve(*authority.issue("a", ends=-1))
    server.status = 500
    probe = server.probe(ca=str(authority.file), name="a")
    assert server_guard.ask(probe, 20).kind == "silence"
    server.status = 404
    assert server_guard.ask(probe, 20).kind == "refusal"


def test_the_key_goes_to_no_port_that_somebody_looks_at_for_tokens_only(authority, serve):
    server = serve(*authority.issue("a", ends=-1))
    probe = server.probe(ca=str(authority.file), name="a")
    assert server_guard.counted(probe, 20) == 12 and server.seen == [None]
    server_guard.ask(probe, 20)
    assert server.seen[1:] == ["Bearer k3y"]


def test_a_server_without_tls_and_one_that_says_nothing(authority):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        probe = {"host": "127.0.0.1", "port": port, "tls": {"ca": str(authority.file), "name": "a"}, "path": "/",
                 "body": {}, "key": ""}  # fmt: skip
        assert server_guard.ask(probe, 0.3) == server_guard.Seen("silence", f"no answer on port {port}")

        def answer() -> None:
            with listener.accept()[0] as peer:
                peer.recv(1000)
                peer.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        # The one that nobody took is closed first.
        listener.accept()[0].close()
        threading.Thread(target=answer, daemon=True).start()
        seen = server_guard.ask(probe, 20)
    assert seen == server_guard.Seen("silence", f"no answer on port {port} (SSLError)")


# --- a renewal ----------------------------------------------------------------------------------------------------


@pytest.fixture
def renewal(authority, serve, folder, monkeypatch):
    """A server, its state, and a certificate that is newer than what it serves."""

    class Renewal:
        def __init__(self) -> None:
            self.source = folder / "source"
            self.source.mkdir()
            old = authority.issue("a")
            self.server = serve(*old)
            self.pair = write(self.source, *old)
            self.user = getpass.getuser()
            self.own = server_guard.own_file(*self.pair)
            server_guard.copy_certificate(*self.pair, self.user)
            self.tls = {"ca": str(authority.file), "name": "a", "certificate": self.pair[0], "key": self.pair[1],
                        "file": self.own, "refresh": True, "user": self.user, "drain": 0, "ready": 3}  # fmt: skip
            self.shown = {"MainPID": "77", "ActiveState": "active", "SubState": "running"}
            self.commands: list[list[str]] = []
            self.on_restart = lambda: None

        def new(self) -> None:
            write(self.source, *authority.issue("a"))

        def watch(self, until: float = 60) -> None:
            """What vLLM does: read the file when it has changed."""
            before, end = Path(self.own).read_text(), time.monotonic() + until
            while time.monotonic() < end and Path(self.own).read_text() == before:
                time.sleep(0.02)
            self.server.context.load_cert_chain(self.own, self.own)

        def run(self, **how) -> str:
            return server_guard.renewed("u.service", "/states", **how)

    made = Renewal()
    monkeypatch.setattr(server_guard, "show", lambda unit: made.shown)
    monkeypatch.setattr(server_guard, "probe_of", lambda pid, states: made.server.probe(**made.tls))
    monkeypatch.setattr(server_guard, "NOTICED", 1.5)
    monkeypatch.setattr(server_guard, "AGAIN", 0.4)
    monkeypatch.setattr(server_guard, "nft", lambda script: made.commands.append(["nft", script]))

    def run(command, **_how):
        made.commands.append(command)
        made.on_restart()

    monkeypatch.setattr(server_guard.subprocess, "run", run)
    return made


def test_a_server_that_reloads_is_given_it(renewal):
    assert renewal.run() == "u.service serves the certificate already."
    renewal.new()
    watcher = threading.Thread(target=renewal.watch, daemon=True)
    watcher.start()
    inode = os.stat(renewal.own).st_ino
    assert renewal.run() == "u.service serves the new certificate."
    assert os.stat(renewal.own).st_ino == inode and renewal.commands == []
    assert renewal.run() == "u.service serves the certificate already."


def test_one_that_does_not_notice_is_told_again_and_then_it_fails(renewal, monkeypatch):
    renewal.new()
    written, put = [], server_guard.put
    monkeypatch.setattr(server_guard, "put", lambda *what: (written.append(what), put(*what)))
    with pytest.raises(CertificateError, match=r"u.service does not serve the certificate in .*, but another one"):
        renewal.run()
    assert len(written) >= 3 and renewal.commands == []


def test_a_new_pair_that_does_not_fit_changes_nothing(renewal):
    before = Path(renewal.own).read_text()
    renewal.new()
    Path(renewal.pair[1]).write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(CertificateError, match="has no key in it"):
        renewal.run()
    assert Path(renewal.own).read_text() == before


@pytest.mark.parametrize(
    ("shown", "tls", "expected"),
    [
        ({"MainPID": "0", "ControlPID": "0"}, {}, "does not run; it takes the certificate when it starts."),
        ({"ActiveState": "deactivating"}, {}, "does not run; it takes the certificate when it starts."),
        ({}, None, "runs without a certificate of the role's; there is nothing to do."),
    ],
)
def test_where_there_is_nothing_to_do(renewal, monkeypatch, shown, tls, expected):
    renewal.new()
    renewal.shown.update(shown)
    if tls is None:
        monkeypatch.setattr(server_guard, "probe_of", lambda pid, states: {"tls": True})
    assert renewal.run() == f"u.service {expected}"


@pytest.mark.parametrize("shown", [{}, {"MainPID": "0", "ControlPID": "78", "ActiveState": "activating"}])
def test_one_that_is_loading_gets_its_copy(renewal, shown):
    renewal.new()
    renewal.shown.update(shown)
    renewal.server.shutdown()
    renewal.server.server_close()
    said = renewal.run()
    assert said == "u.service does not listen yet; it takes the certificate when it has loaded."
    assert Path(renewal.own).read_text() == server_guard.read_pair(*renewal.pair)[0]


@pytest.mark.parametrize("wait", [True, False])
def test_one_that_can_t_reload_is_restarted_when_it_is_quiet(renewal, monkeypatch, wait):
    renewal.new()
    renewal.tls.update(refresh=False, drain=20)
    renewal.on_restart = lambda: renewal.server.context.load_cert_chain(renewal.own, renewal.own)
    counts = iter([2, 1, 0])
    monkeypatch.setattr(server_guard, "connections", lambda port: next(counts))
    said = renewal.run(wait=wait)
    assert said == (
        "u.service serves the new certificate, since it was restarted." if wait
        else "u.service was restarted for its new certificate."
    )  # fmt: skip
    assert [command[0] for command in renewal.commands] == ["nft", "systemctl"]
    assert f"{renewal.server.server_port} timeout 50s" in renewal.commands[0][1]
    assert renewal.commands[1] == ["systemctl", "restart", "u.service"] and next(counts, None) is None


def test_a_restart_that_fails_is_told(renewal, monkeypatch):
    renewal.new()
    renewal.tls.update(refresh=False)

    def fail() -> None:
        raise subprocess.CalledProcessError(1, ["systemctl"])

    renewal.on_restart = fail
    with pytest.raises(CertificateError, match=r"u.service could not be restarted for its new certificate"):
        renewal.run()
    renewal.on_restart = lambda: renewal.shown.update(ActiveState="failed")
    began = time.monotonic()
    renewal.tls["ready"] = 60
    with pytest.raises(CertificateError, match="does not serve the certificate"):
        renewal.run()
    assert time.monotonic() - began < 30


def test_connections_are_those_of_the_port(monkeypatch):
    tables = {
        "/proc/net/tcp": "  sl  local_address rem_address   st\n"
        "   0: 00000000:1F40 00000000:0000 0A\n   1: 0100007F:1F40 0100007F:D431 01\n"
        "   2: 0100007F:D431 0100007F:1F40 01\n   3: 0100007F:1F41 0100007F:D431 01\n",
        "/proc/net/tcp6": "  sl\n   0: 0000000000000000FFFF00000100007F:1F40 "
        "0000000000000000FFFF00000100007F:A000 01\n",
    }
    monkeypatch.setattr(server_guard, "read_text", tables.get)
    assert server_guard.connections(8000) == 2
    assert server_guard.connections(9) == 0
