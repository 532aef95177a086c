# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import http.server
import threading
import urllib.request
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import download
from ansible_collections.phoenix.hypervisor.plugins.module_utils.download import Unreachable

CONTENT = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Reply:
    """An answer from a byte on, that breaks off after some."""

    def __init__(self, content: bytes, start: int, status: int = 206, breaks: int | None = None, length: bool = True):
        self.status = status
        self._content = content[start if status == 206 else 0 :]
        self.headers = {"Content-Length": str(len(self._content))} if length else {}
        self._left = len(self._content) if breaks is None else breaks

    def read(self, size: int) -> bytes:
        piece = self._content[: min(size, self._left)]
        self._content = self._content[len(piece) :]
        self._left -= len(piece)
        return piece

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass


def http_error(code: int, headers: dict[str, str] | None = None) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("https://h/x", code, "no", headers or {}, None)


def fetch(tmp_path: Path, *replies, size: int = 0, there: bytes = b"", pauses=(0.0, 0.0)) -> tuple[str, list[int], int]:
    """Digest, from where each attempt asked, and the sum of what was told."""
    part = tmp_path / "part"
    part.write_bytes(there)
    asked, told, left = [], [], list(replies)

    def opened(start: int):
        asked.append(start)
        reply = left.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return reply(start)

    found = download.download(opened, part, hashlib.sha256, told.append, size, pauses)
    assert not left and part.stat().st_size == sum(told)
    return found, asked, sum(told)


def whole(start: int) -> Reply:
    return Reply(CONTENT, start)


def cut(after: int, **more):
    return lambda start: Reply(CONTENT, start, breaks=after, **more)


def test_from_the_beginning(tmp_path):
    assert fetch(tmp_path, whole) == (SHA256, [0], len(CONTENT))


def test_goes_on_with_what_is_there(tmp_path):
    assert fetch(tmp_path, whole, there=CONTENT[:1000]) == (SHA256, [1000], len(CONTENT))


def test_what_is_there_whole_is_only_hashed(tmp_path):
    assert fetch(tmp_path, size=len(CONTENT), there=CONTENT) == (SHA256, [], len(CONTENT))


def test_goes_on_where_it_was_cut(tmp_path):
    assert fetch(tmp_path, cut(10), cut(20), whole) == (SHA256, [0, 10, 30], len(CONTENT))


def test_is_cut_without_saying_how_long_it_is(tmp_path):
    found = fetch(tmp_path, cut(10, length=False), whole, size=len(CONTENT))
    assert found == (SHA256, [0, 10], len(CONTENT))


def test_an_attempt_that_brought_something_is_no_failure(tmp_path):
    """A big file may be cut more often than there are attempts."""
    cuts = [cut(download.BLOCK) for _time in range(4)]
    assert fetch(tmp_path, *cuts, whole, pauses=(0.0,)) == (SHA256, [n << 20 for n in range(5)], len(CONTENT))


def test_a_server_that_knows_no_ranges_begins_again(tmp_path):
    found = fetch(tmp_path, lambda start: Reply(CONTENT, start, status=200), there=b"other bytes")
    assert found == (SHA256, [11], len(CONTENT))


@pytest.mark.parametrize("there", [b"x" * (len(CONTENT) + 5), CONTENT])
def test_more_than_there_is(tmp_path, there):
    assert fetch(tmp_path, http_error(416), whole, there=there) == (SHA256, [len(there), 0], len(CONTENT))


@pytest.mark.parametrize("error", [http_error(500), http_error(429), TimeoutError("timed out"), ConnectionError("x")])
def test_tries_again(tmp_path, error):
    assert fetch(tmp_path, error, error, whole)[:2] == (SHA256, [0, 0, 0])
    with pytest.raises(Unreachable) as raised:
        fetch(tmp_path, error, error, error)
    assert raised.value.may_pass and raised.value.code == getattr(error, "code", 0)


@pytest.mark.parametrize("code", [400, 401, 403, 404])
def test_does_not_ask_again_what_is_answered(tmp_path, code):
    with pytest.raises(Unreachable) as raised:
        fetch(tmp_path, http_error(code, {"X-Error-Code": "GatedRepo"}), whole)
    assert (raised.value.code, raised.value.headers, str(raised.value)) == (
        code, {"x-error-code": "GatedRepo"}, f"HTTP {code}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "pause"), [("", 2.0), ("1", 2.0), ("7", 7.0), ("9999", 60.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 2.0)]
)
def test_patience_that_a_server_asks_for(asked, pause):
    assert download.pause_after(Unreachable("x", http_error(429, {"Retry-After": asked})), 2.0) == pause


def test_a_disk_that_can_t_be_written_is_no_matter_of_the_network(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        download.download(whole, tmp_path / "no" / "part", hashlib.sha256, lambda count: None)


@pytest.fixture
def servers():
    """Two servers; the first redirects to wherever the path says. Gives their addresses, and the logins seen."""
    seen: list[tuple[int, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.server.server_port, self.headers.get("Authorization")))
            if self.path.startswith("/to/"):
                self.send_response(308 if "308" in self.path else 302)
                self.send_header("Location", self.path.removeprefix("/to/"))
            else:
                self.send_response(200)
            self.end_headers()

        def log_message(self, *_words):
            pass

    both = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _server in range(2)]
    for server in both:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}" for server in both], seen
    for server in both:
        server.shutdown()
        server.server_close()


def test_a_login_goes_to_its_own_host_only(servers):
    (one, two), seen = servers
    for address in (f"{one}/to/{one}/x", f"{one}/to/{two}/x308", f"{one}/to/{two}/to/{one}/x"):
        request = urllib.request.Request(address, headers={"Authorization": "Bearer secret"})
        with download.opener().open(request):
            pass
    ports = [int(address.rpartition(":")[2]) for address in (one, two)]
    logins = [(ports.index(port), bool(login)) for port, login in seen]
    assert logins == [(0, True), (0, True), (0, True), (1, False), (0, True), (1, False), (0, False)]
