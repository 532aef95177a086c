# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that keeps certificates valid: each of its parts, with openssl, without a CA."""

from __future__ import annotations

import datetime
import errno
import http.server
import json
import os
import socket
import ssl
import stat
import threading
import time
import urllib.request

import pytest
from acme_site import Authority
from ansible_collections.phoenix.hypervisor.plugins.module_utils import certificate_renewal as renewal
from ansible_collections.phoenix.hypervisor.plugins.module_utils.certificate_renewal import RenewalError

DAY = datetime.timedelta(days=1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The program's folders, in a folder of this test."""
    for name, path in (("STATE", ""), ("CONFIG", "config.json"), ("STATUS", "status.json"), ("LOCK", "lock"),
                       ("RUN", ""), ("FORCE", "force")):  # fmt: skip
        monkeypatch.setattr(renewal, name, str(tmp_path / path).rstrip("/"))
    return tmp_path


@pytest.fixture(scope="module")
def authority():
    return Authority()


def entry_in(folder, **changes):
    return {"name": "web", "names": ["a.test"], "optional_names": [], "cert_file": str(folder / "pki/c.pem"),
            "key_file": str(folder / "pki/k.pem"), "owner": str(os.getuid()), "group": str(os.getgid()),
            "mode": "0640", "command": [], "only_if": "", **changes}  # fmt: skip


def configure(folder, entry, **changes):
    config = {"source": "files", "directory": "", "ca_file": str(folder / "ca.pem"), "challenge": "http-01",
              "renew_at": 1 / 3, "lifetime_days": 30, "validation_timeout": 10, "certificates": [entry],
              **changes}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return config


def status(folder):
    return json.loads((folder / "status.json").read_text())["certificates"]["web"]


# --- what a certificate says --------------------------------------------------------------------------------------


def test_read_chain(here, authority):
    chain, _key = authority.leaf("A.test", "10.0.0.1", lifetime=DAY)
    said = renewal.read_chain(chain)
    assert said["names"] == ["10.0.0.1", "a.test"]
    assert said["end"] - said["begin"] == 86400 + 30
    # The root at its end is valid for longer; an intermediate that isn't counts.
    assert renewal.read_chain(chain + authority.pem)["end"] == said["end"]
    shorter, _key = authority.intermediate(datetime.timedelta(hours=1))
    assert renewal.read_chain(chain + shorter)["end"] < said["end"] - 80000


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate(text):
    with pytest.raises(RenewalError):
        renewal.read_chain(text)


@pytest.mark.parametrize(
    ("left", "part", "due"),
    [(1000, 1 / 3, False), (334, 1 / 3, False), (333, 1 / 3, True), (0, 1 / 3, True), (-5, 1 / 3, True),
     (334, 0.5, True)],
)
def test_is_due(left, part, due):
    assert renewal.is_due({"begin": 0, "end": 1000}, 1000 - left, part) is due


def test_jitter_is_earlier_and_little():
    said = {"begin": 0, "end": 900}
    assert not renewal.is_due(said, 900 - 331, 1 / 3, 1.0)
    assert renewal.is_due(said, 900 - 329, 1 / 3, 1.0) and not renewal.is_due(said, 900 - 329, 1 / 3, 0.0)


def test_why_due(here, authority):
    now = time.time()
    pair = authority.leaf("a.test", "b.test", lifetime=DAY)
    entry = entry_in(here, names=["a.test", "B.TEST"])

    def why(files=pair, at=now, roots="", **changes):
        return renewal.why_due({**entry, **changes}, files, at, 1 / 3, roots, jitter=False)[0]

    assert why() == ""
    assert why(("", "")) == "there is none yet" == why((pair[0], ""))
    assert why(("x", pair[1])).startswith("the one that is there can't be used: there is no certificate in PEM")
    assert why((pair[0], authority.leaf("a.test")[1])).endswith("the key is that of another certificate")
    assert why(names=["a.test", "c.test"]) == "it has not the name c.test"
    assert why(names=["a.test"]) == "it has the name b.test, which is declared no more"
    assert why(names=["a.test"], optional_names=["b.test"]) == ""
    assert why(at=now + 60000) == "it ends in 7 hours"
    assert why(at=now + 2 * 86400).startswith("it expired at ")
    assert why(at=now - 86400).startswith("it is not valid before ")
    (here / "ca.pem").write_text(authority.pem)
    assert why(roots=str(here / "ca.pem")) == ""
    (here / "ca.pem").write_text(Authority().pem)
    assert why(roots=str(here / "ca.pem")) == "it is from a CA that is not trusted any more"


def test_check_new(here, authority):
    now = time.time()
    (here / "ca.pem").write_text(authority.pem)
    chain, key = authority.leaf("a.test", lifetime=DAY)

    def kind(chain=chain, key=key, names=("a.test",), at=now, roots=str(here / "ca.pem")):
        with pytest.raises(RenewalError) as caught:
            renewal.check_new(chain, key, names, at, roots, str(here))
        return caught.value.kind

    assert renewal.check_new(chain, key, ["a.test"], now, str(here / "ca.pem"), str(here))["names"] == ["a.test"]
    assert kind(key=authority.leaf("a.test")[1]) == "pair"
    assert kind(names=("b.test",)) == "name"
    assert kind(at=now - 86400) == "clock"
    assert kind(at=now + 2 * 86400) == "expired"
    (here / "other.pem").write_text(Authority().pem)
    assert kind(roots=str(here / "other.pem")) == "chain"


# --- putting it in place ------------------------------------------------------------------------------------------


def test_files_are_put_in_place(here, authority):
    """Others can see the folder, the key is as declared, and the command knows no shell."""
    chain, key = authority.leaf("a.test", lifetime=DAY)
    (here / "s.pem").write_text(chain)
    (here / "s.key").write_text(key)
    noted = here / "noted"
    entry = entry_in(here, command=["/bin/sh", "-c", f"printf '%s\\n' \"$@\" >>{noted}", "x", "$(id)", "a b"],
                     source_certificate=str(here / "s.pem"), source_key=str(here / "s.key"))  # fmt: skip
    configure(here, entry)
    assert renewal.run() == 0
    assert (here / "pki/c.pem").read_text() == chain and (here / "pki/k.pem").read_text() == key
    assert stat.S_IMODE((here / "pki/k.pem").stat().st_mode) == 0o640
    assert noted.read_text() == "$(id)\na b\n"
    assert status(here)["renewed"] and status(here)["reason"] == "there is none yet"
    assert renewal.run() == 0
    assert not status(here)["renewed"] and noted.read_text() == "$(id)\na b\n"
    (here / "pki/k.pem").chmod(0o644)
    assert renewal.run() == 0 and status(here)["put_right"]
    assert sorted(path.name for path in (here / "pki").iterdir()) == ["c.pem", "k.pem"]


def test_a_command_that_fails_is_owed(here, authority):
    chain, key = authority.leaf("a.test", lifetime=DAY)
    (here / "s.pem").write_text(chain)
    (here / "s.key").write_text(key)
    program = here / "after"
    entry = entry_in(here, command=[str(program), "x"], source_certificate=str(here / "s.pem"),
                     source_key=str(here / "s.key"))  # fmt: skip
    configure(here, entry)
    assert renewal.run() == renewal.TEMPORARY
    assert "but the command after it" in status(here)["error"] and status(here)["kind"] == "command"
    program.write_text(f"#!/bin/sh\n[ -e {here}/good ] || {{ echo not yet >&2; exit 3; }}\n")
    program.chmod(0o755)
    assert renewal.run() == renewal.TEMPORARY
    assert "failed: it ended with 3: not yet." in status(here)["error"]
    (here / "good").touch()
    assert renewal.run() == 0 and "error" not in status(here)
    # Where there is nobody to tell yet, nothing is owed.
    configure(here, {**entry, "only_if": str(here / "nobody"), "command": ["/none"]})
    assert renewal.run(force=True) == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("which", ["k.pem", "c.pem"])
def test_what_can_not_be_written_leaves_the_old_pair(here, authority, monkeypatch, number, which):
    entry = entry_in(here)
    old, new = authority.leaf("a.test", lifetime=DAY), authority.leaf("a.test", lifetime=DAY)
    renewal.install(entry, *old)
    real = renewal.prepare

    def prepare(path, *words):
        if path.endswith(which):
            raise OSError(number, "no")
        return real(path, *words)

    monkeypatch.setattr(renewal, "prepare", prepare)
    with pytest.raises(RenewalError) as caught:
        renewal.install(entry, *new)
    assert caught.value.temporary and ("disk full" in str(caught.value)) == (number != errno.EROFS)
    assert ((here / "pki/c.pem").read_text(), (here / "pki/k.pem").read_text()) == old
    assert sorted(path.name for path in (here / "pki").iterdir()) == ["c.pem", "k.pem"]


def test_an_unknown_owner(here, authority):
    with pytest.raises(RenewalError, match="There is no user nobody-of-that-name in the container"):
        renewal.install(entry_in(here, owner="nobody-of-that-name"), *authority.leaf("a.test"))
    with pytest.raises(RenewalError, match="There is no group"):
        renewal.install(entry_in(here, group="nobody-of-that-name"), *authority.leaf("a.test"))


@pytest.mark.parametrize("renames", [0, 1])
def test_a_run_that_was_killed_is_gone_on_with(here, monkeypatch, renames):
    """From before the first rename, and from between the two. The source isn't asked again."""
    entry = entry_in(here, command=["true"])
    configure(here, entry, source="self_signed")
    assert renewal.run() == 0
    before = (here / "pki/c.pem").read_text()
    real, done = os.replace, []

    class Killed(BaseException):
        pass

    def replace(source, target):
        if "/pki/" in target:
            if len(done) == renames:
                raise Killed
            done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        renewal.run(force=True)
    monkeypatch.setattr(os, "replace", real)
    assert (here / "pki/c.pem").read_text() == before

    def nobody(*_words):
        raise AssertionError("it was asked again")

    monkeypatch.setattr(renewal, "get_pair", nobody)
    assert renewal.run(force=not renames) == 0
    assert (here / "pki/c.pem").read_text() != before
    renewal.check_pair((here / "pki/c.pem").read_text(), (here / "pki/k.pem").read_text())
    assert status(here)["command"] == "done"
    assert list((here / "certificates/web").iterdir()) == []


def test_a_ca_of_its_own(here):
    entry = entry_in(here, optional_names=["10.0.0.1"])
    configure(here, entry, source="self_signed")
    assert renewal.run() == 0
    first = (here / "pki/c.pem").read_text()
    assert renewal.read_chain(first)["names"] == ["10.0.0.1", "a.test"]
    ca = (here / "ca.pem").read_text()
    context = ssl.create_default_context(cadata=ca)
    assert context.get_ca_certs()
    assert renewal.run(force=True) == 0
    assert (here / "pki/c.pem").read_text() != first and (here / "ca.pem").read_text() == ca
    assert stat.S_IMODE((here / "own_ca/key.pem").stat().st_mode) == 0o600
    # A CA that ends soon is made again, with the same key, so what it has signed is good still.
    key = (here / "own_ca/key.pem").read_text()
    renewal.own_ca(30, time.time() + 3640 * 86400)
    assert (here / "own_ca/key.pem").read_text() == key and (here / "own_ca/ca.pem").read_text() != ca


def test_files_that_can_not_be_used(here, authority):
    chain, key = authority.leaf("a.test", lifetime=DAY)
    source = {"source_certificate": str(here / "s.pem"), "source_key": str(here / "s.key")}
    configure(here, entry_in(here, **source))
    assert renewal.run() == 1 and f"The certificate {here}/s.pem can't be read" in status(here)["error"]
    (here / "s.pem").write_text(chain)
    (here / "s.key").write_text(authority.leaf("a.test")[1])
    assert renewal.run() == 1 and "The key is that of another certificate." in status(here)["error"]
    (here / "s.key").write_bytes(b"\xff\xfe")
    assert renewal.run() == 1 and "is not in PEM form" in status(here)["error"]
    (here / "s.key").write_text(key)
    assert renewal.run() == 0


def test_nothing_to_look_after(here):
    assert renewal.run() == 0


# --- the CA -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A web server: path → (status, content, headers)."""
    pages: dict = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            code, content = pages.get(self.path, (404, b""))
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def date_time_string(self, timestamp=None):
            return super().date_time_string(time.time() + pages.get("ahead", 0))

        def log_message(self, *_words):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", pages
    served.shutdown()
    served.server_close()


def test_fetch_roots(server, authority):
    url, pages = server
    other = Authority()
    both = [authority.fingerprint, other.fingerprint]
    with pytest.raises(RenewalError, match=r"gives no root certificate, neither at /roots\.pem"):
        renewal.fetch_roots(url, both)
    pages["/roots.pem"] = (200, (Authority().pem + authority.pem).encode())
    found, missing = renewal.fetch_roots(url + "/", both)
    assert list(found) == [authority.fingerprint] and missing == [other.fingerprint]
    pages[f"/root/{other.fingerprint}"] = (200, json.dumps({"ca": other.pem}).encode())
    assert renewal.fetch_roots(url, both)[1] == []
    # What is at the address of a fingerprint is believed as little as anything else.
    pages.clear()
    pages[f"/root/{authority.fingerprint}"] = (200, json.dumps({"ca": other.pem}).encode())
    with pytest.raises(RenewalError, match=f"its root has the fingerprint {other.fingerprint}") as caught:
        renewal.fetch_roots(url, [authority.fingerprint])
    assert caught.value.kind == "root" and not caught.value.temporary
    assert "bootstrap_ca_fingerprint: [old, new]" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[1]", b'{"ca": 5}', b'{"ca": null}', b"{", b"null",
                                     b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"])  # fmt: skip
def test_nonsense_for_a_root(server, content):
    url, pages = server
    pages["/roots.pem"] = pages[f"/root/{'ab' * 32}"] = (200, content)
    with pytest.raises(RenewalError):
        renewal.fetch_roots(url, ["ab" * 32])


def test_a_ca_that_is_not_there(here):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RenewalError, match="can't be reached: nothing listens there") as caught:
            renewal.fetch_roots(url, ["ab" * 32])
    assert caught.value.kind == "unreachable" and caught.value.temporary
    with pytest.raises(RenewalError, match="the name can't be resolved"):
        renewal.fetch_roots("http://nowhere.invalid", ["ab" * 32])


def test_check_ca(server, here, authority):
    url, pages = server
    (here / "ca.pem").write_text(authority.pem)
    config = {"directory": f"{url}/dir", "ca_file": str(here / "ca.pem")}
    with pytest.raises(RenewalError, match=r"answers .*/dir with HTTP 404\. That is not its ACME directory") as caught:
        renewal.check_ca(config, time.time())
    assert not caught.value.temporary
    pages["/dir"] = (503, b"")
    with pytest.raises(RenewalError, match=r"with HTTP 503\. It is tried again") as caught:
        renewal.check_ca(config, time.time())
    assert caught.value.temporary
    pages["/dir"] = (200, b"{}")
    renewal.check_ca(config, time.time())
    for ahead, words in ((86400, "24 hours"), (-86400, "24 hours"), (400, "6 minutes")):
        pages["ahead"] = ahead
        with pytest.raises(RenewalError, match=f"The clocks differ by ({words}|23 hours): here it is ") as caught:
            renewal.check_ca(config, time.time())
        assert caught.value.kind == "clock"


# --- challenges ---------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def hooked(monkeypatch, folder, challenge, *words, webroot=""):
    for name, value in (("ANSWERS", str(folder)), ("CHALLENGE", challenge), ("WEBROOT", webroot)):
        monkeypatch.setenv(f"PHOENIX_{name}", value)
    return renewal.hook(*words)


def test_http_01(here, monkeypatch):
    port = free_port()
    with renewal.Answers(str(here), "http-01", port) as answers:
        url = f"http://127.0.0.1:{port}/.well-known/acme-challenge"
        assert hooked(monkeypatch, here, "http-01", "begin", "dns-01", "a.test", "token", "x") == 1
        assert hooked(monkeypatch, here, "http-01", "begin", "http-01", "a.test", "../x", "x") == 1
        assert hooked(monkeypatch, here, "http-01", "begin", "http-01", "A.test", "token", "token.key") == 0
        for path in ("other", "..%2f..%2fetc%2fpasswd", "../status.json"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"{url}/{path}", timeout=5)
        assert answers.visited == {""}
        assert urllib.request.urlopen(f"{url}/token", timeout=5).read() == b"token.key"
        assert "a.test" in answers.visited
        hooked(monkeypatch, here, "http-01", "done", "http-01", "A.test", "token", "token.key")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/token", timeout=5)


def test_http_01_by_somebody_else(here, monkeypatch):
    words = ("http-01", "a.test", "token", "token.key")
    assert hooked(monkeypatch, here, "http-01", "begin", *words, webroot=str(here / "www")) == 0
    file = here / "www/.well-known/acme-challenge/token"
    assert file.read_text() == "token.key" and stat.S_IMODE(file.stat().st_mode) == 0o644
    hooked(monkeypatch, here, "http-01", "failed", *words, webroot=str(here / "www"))
    assert not file.exists()


@pytest.mark.parametrize(("name", "asked"), [("A.test", "a.test"), ("10.0.0.1", "1.0.0.10.in-addr.arpa")])
def test_tls_alpn_01(here, monkeypatch, name, asked):
    port, digest = free_port(), "LWlp5-pPdnzmsK8t9EjXnlBaKPGZnT6u8dT2uru3eLs"
    with renewal.Answers(str(here), "tls-alpn-01", port) as answers:
        assert hooked(monkeypatch, here, "tls-alpn-01", "begin", "tls-alpn-01", name, "token", digest) == 0
        context = renewal.unverified()
        context.set_alpn_protocols(["acme-tls/1"])

        def shown(server_name):
            plain = socket.create_connection(("127.0.0.1", port), timeout=5)
            with context.wrap_socket(plain, server_hostname=server_name) as secure:
                return secure.selected_alpn_protocol(), secure.getpeercert(True)

        protocol, der = shown(asked)
        assert protocol == "acme-tls/1" and asked in answers.visited
        text = renewal.openssl("x509", "-noout", "-text", text=ssl.DER_cert_to_PEM_cert(der))
        assert "1.3.6.1.5.5.7.1.31: critical" in text and name in text
        with pytest.raises(OSError):
            shown("b.test")


def test_who_has_the_port(here):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"(process {os.getpid()})" in renewal.listener_on(port)
        with pytest.raises(RenewalError, match=rf"Port {port} is needed .* \(process {os.getpid()}\) has it") as caught:
            renewal.Answers(str(here), "http-01", port).__enter__()
        assert caught.value.kind == "port" and caught.value.temporary
    assert renewal.listener_on(port) == ""


def problem(kind, detail="no"):
    return f'uacme: running x begin http-01 b.test TOKEN KEY\n{{"type": "urn:ietf:params:acme:error:{kind}", ' \
           f'"detail": "{detail}"}}'  # fmt: skip


@pytest.mark.parametrize(
    ("said", "late", "kind", "temporary", "words"),
    [
        (problem("rejectedIdentifier", "policy"), 0, "name", False, 'does not allow this name: correct common_name'),
        (problem("connection", "could not connect"), 0, "validation", True,
         'could not validate b.test. It says: "could not connect". It did not come to port 80 here'),
        (problem("connection"), 30, "validation", True, "could not validate b.test within 30 s"),
        # A directory that speaks of such accounts, and a nonce that was refused on the way, are none of the reasons.
        ('"externalAccountRequired": false\n' + problem("badNonce") + problem("dns") + problem("badNonce"), 0,
         "validation", True, "could not validate b.test"),
        (problem("unauthorized", "The requested identifiers are not allowed by policy"), 0, "name", False, "not allow"),
        (problem("somethingNew", "x") + "\nuacme: failed\n", 0, "uacme", True, 'no certificate: failed. It says: "x"'),
        (problem("dns"), 0, "validation", True, "does b.test lead to this container where the CA looks it up"),
        (problem("badNonce"), 0, "nonce", True, "refused each nonce"),
        (problem("serverInternal"), 0, "busy", True, "trouble of its own"),
        (problem("rateLimited"), 0, "busy", True, "asked too often"),
        (problem("externalAccountRequired"), 0, "account", False, "EAB"),
        (problem("badCSR"), 0, "refused", False, "refused the request"),
        ("uacme: something else\n", 0, "uacme", True, "uacme got no certificate: something else."),
        ("", 0, "uacme", True, "it said nothing"),
        ("uacme: polling\n", 30, "validation", True, "could not validate a.test within 30 s"),
    ],
)  # fmt: skip
def test_why_not(said, late, kind, temporary, words):
    answers = renewal.Answers("/none", "http-01", 80)
    error = renewal.why_not(said, ["a.test", "b.test"], answers, late)
    assert (error.kind, error.temporary) == (kind, temporary) and words in str(error)
    if kind == "validation" and "b.test" in words:
        answers.visited.add("b.test")
        assert "It came here, and did not accept" in str(renewal.why_not(said, ["a.test"], answers, late))


@pytest.mark.parametrize(
    ("kinds", "asked", "without"),
    [
        ([""], 1, []),
        (["nonce", "busy", ""], 3, []),
        (["name", ""], 2, ["10.0.0.1"]),
        (["validation:10.0.0.1", ""], 2, ["10.0.0.1"]),
        (["validation:a.test"], 1, None),
        (["account"], 1, None),
        (["nonce"] * 10, 10, None),
        (["busy"] * 3, 3, None),
    ],
)
def test_by_acme(here, monkeypatch, kinds, asked, without):
    """What is tried again, and when the address is left out."""
    calls = []

    def ask(_config, names, _key, _folder):
        kind, _colon, name = kinds[len(calls)].partition(":")
        calls.append(list(names))
        if kind:
            raise RenewalError("No.", kind, True, name)
        return "chain"

    monkeypatch.setattr(renewal, "ask", ask)
    monkeypatch.setattr(renewal, "check_ca", lambda *_words: None)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    entry = entry_in(here, optional_names=["10.0.0.1"])
    if without is None:
        with pytest.raises(RenewalError):
            renewal.by_acme({}, entry, str(here), time.time())
    else:
        chain, key, left_out = renewal.by_acme({}, entry, str(here), time.time())
        assert chain == "chain" and "PRIVATE KEY" in key and left_out == without
        assert calls[-1] == (["a.test"] if without else ["a.test", "10.0.0.1"])
    assert len(calls) == asked


def test_an_account_that_is_half_there(here):
    folder = here / "account/private"
    folder.mkdir(parents=True)
    assert not renewal.has_account(str(here / "account"))
    (folder / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nhalf")
    assert not renewal.has_account(str(here / "account")) and not (folder / "key.pem").exists()
    (folder / "key.pem").write_text(renewal.new_key())
    assert renewal.has_account(str(here / "account"))
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 seconds"), (119, "119 seconds"), (120, "2 minutes"), (86400, "24 hours"),
                           (3 * 86400, "3 days"), (-7200, "2 hours")]
)  # fmt: skip
def test_span(seconds, words):
    assert renewal.span(seconds) == words
