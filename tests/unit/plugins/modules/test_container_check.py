# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""container_check, whole, in a container that is this machine, and with a server on loopback."""

from __future__ import annotations

import functools
import glob
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest
from ansible_collections.phoenix.hypervisor.plugins.modules import container_check
from certificates import Authority, serial

KEY = "hunter2-$HOME\"'%"


@pytest.fixture
def run(run_main, attach, monkeypatch):
    """A function that runs the module's main in a container that is this machine."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    return functools.partial(run_main, container_check)


class Answer(http.server.BaseHTTPRequestHandler):
    """Says what it was asked."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        said = f"{self.command} {body} {self.headers['Authorization']}".encode()
        self.send_response(int(self.path.rpartition("/")[2] or 200))
        self.end_headers()
        self.wfile.write(said)

    do_POST = do_GET

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("command", ["true", "printf '%s' '{{ x }}' \"$HOME\" | grep -qF '{{ x }}/'", "false ||\n:"])
def test_a_command_that_passes(run, command):
    result = run(vmid=921, command=command)
    assert (result["passed"], result["rc"], result["attempts"]) == (True, 0, 1)
    assert result["changed"] is False and not result.get("failed")


def test_a_command_that_fails_is_a_result(run):
    result = run(vmid=921, command="echo one; echo two >&2; printf '\\033[1mthree'; exit 7")
    assert not result.get("failed") and result["passed"] is False
    assert (result["outcome"], result["lines"]) == ("exit code 7", ["one", "two", "three"])
    assert run(vmid=921, command="sh -c 'kill -9 $$'; exit $?")["outcome"] == "exit code 137 (128 and signal 9)"


def test_only_the_last_lines(run):
    lines = run(vmid=921, command="seq 1 1000; exit 1")["lines"]
    assert lines == [str(number) for number in range(981, 1001)]


def test_trying_again(run, tmp_path):
    count = f"echo x >>{tmp_path}/tries; test $(wc -l <{tmp_path}/tries) = 3"
    result = run(vmid=921, command=count, retries=5, interval=0)
    assert (result["passed"], result["attempts"]) == (True, 3)
    result = run(vmid=921, command="exit 4", retries=2, interval=0)
    assert (result["passed"], result["attempts"], result["rc"]) == (False, 3, 4)
    assert run(vmid=921, command="exit 4")["attempts"] == 1


def test_a_limit_for_a_try(run):
    began = time.monotonic()
    result = run(vmid=921, command="echo begun; sleep 30", timeout=1)
    assert result["outcome"] == "it was still running after 1 s and was ended, with all that it had started"
    assert result["lines"][0] == "begun" and time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("script", "passed", "lines"),
    [
        ("#!/bin/sh\necho \"{{ $0 }}\" | grep -o 'x y.sh'; test ! -t 0; cat\n", True, ["x y.sh"]),
        ("#!/usr/bin/env python3\nimport sys\nprint('ä')\nsys.exit(3)\n", False, ["ä"]),
        ("echo without a first line\n", True, ["without a first line"]),
        ("", True, []),
    ],
)
def test_a_script(run, script, passed, lines):
    result = run(vmid=921, script=script, script_name="x y.sh")
    assert result["passed"] is passed
    assert [line.replace("echo ", "") for line in result["lines"]] == lines
    assert glob.glob("/tmp/phoenix-test-*") == []


def test_nothing_of_a_script_stays_when_it_is_ended(run):
    result = run(vmid=921, script="#!/bin/sh\nsleep 30\n", timeout=1)
    assert not result["passed"] and glob.glob("/tmp/phoenix-test-*") == []


def test_the_environment_and_the_key_that_is_nowhere(run, attach):
    command = 'echo "$API_KEY|$PHOENIX_URL"; test "${API_KEY#hunter}" != "$API_KEY"'
    result = run(vmid=921, command=command, api_key=KEY, environment={"PHOENIX_URL": "u"})
    assert result["passed"] and result["lines"] == ["***|u"]
    assert "hunter2" not in json.dumps(result) and "hunter2" not in json.dumps(attach.calls)
    assert run(vmid=921, command='test -z "${API_KEY+set}"')["passed"]
    short = run(vmid=921, command="echo 1 >&2; exit 1", api_key="1")
    assert (short["rc"], short["lines"], short["outcome"]) == (1, ["***"], "exit code ***")


def test_a_container_that_cannot_be_entered(run, attach):
    result = run(vmid=922, command="true", retries=50)
    assert "CTID 922 does not exist" in result["outcome"] and result["attempts"] == 1
    attach.running = False
    assert "CTID 921 is not running; start it" in run(vmid=921, script="x")["outcome"]


def test_a_request(run, url):
    result = run(url=url, api_key=KEY)
    assert (result["passed"], result["status"], result["content"]) == (True, 200, "GET  Bearer ***")
    assert result["lines"] == ["GET  Bearer ***"]
    result = run(url=f"{url}x/404", retries=1, interval=0)
    assert (result["passed"], result["status"], result["outcome"]) == (False, 404, "HTTP status 404")
    assert result["attempts"] == 2
    assert run(url=url, body={"a": "{{ ä }}"})["content"] == 'POST {"a": "{{ \\u00e4 }}"} None'


def test_nobody_answers(run):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        result = run(url=f"http://127.0.0.1:{port}/", timeout=1)
        assert (result["passed"], result["status"], result["outcome"]) == (False, 0, "no answer within 1 s")
    assert run(url=f"http://127.0.0.1:{port}/")["outcome"] == "no answer: Connection refused"
    assert run(url="http://phoenix.invalid/")["outcome"].startswith("no answer: ")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x", "x", "http://", "http:///x", "http://:80/x", ""])
def test_a_url_that_is_none(run, url):
    result = run(url=url)
    assert "is no URL that can be asked for; write one such as" in result["outcome"] and not result["passed"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "one of the following is required: command, script, url"),
        ({"command": "a", "url": "b"}, "mutually exclusive"),
        ({"command": "a"}, "missing parameter(s) required by 'command': vmid"),
        ({"vmid": 921, "command": "a", "timeout": 0}, "timeout: 0 is no limit in seconds"),
        ({"vmid": 921, "command": "a\0b"}, "there is a NUL character"),
        ({"vmid": 921, "script": "a", "script_name": "a/b"}, "script_name: 'a/b' has a slash"),
    ],
)
def test_options_that_do_not_fit(run, options, words):
    result = run(**options)
    assert result["failed"] and words in result["msg"]


def test_a_name_that_no_variable_can_have(run):
    assert "'a b' is no name of a variable" in run(vmid=921, command="true", environment={"a b": "c"})["outcome"]


def test_check_mode_runs_nothing(run, tmp_path):
    result = run(check=True, vmid=921, command=f"touch {tmp_path}/ran")
    assert result["skipped"] and not result["changed"] and not (tmp_path / "ran").exists()


# --- with a certificate -------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path) -> Iterator:
    """A function that starts the server with a certificate, and returns its URL."""
    servers = []

    def start(certificate: str, key: str) -> str:
        (tmp_path / "both.pem").write_text(key + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "both.pem")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"https://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_url_with_a_certificate(run, tls, tmp_path):
    authority = Authority(tmp_path)
    pair = authority.issue("model.example", "10.0.0.1", ends=7200)
    url = tls(*pair)
    result = run(url=f"{url}v1?y=/201", ca=authority.text, server_name="model.example", body={"a": 1}, api_key=KEY)
    assert result["passed"] and result["content"] == 'POST {"a": 1} Bearer ***', result
    assert result["status"] == 201, "the whole path has arrived"
    certificate = result["certificate"]
    assert certificate["names"] == ["model.example", "10.0.0.1"] and certificate["problem"] == ""
    assert int(certificate["serial"], 16) == serial(pair[0]) and certificate["not_after"].endswith(" UTC")
    assert certificate["life"] == 7200 + 3600 and 7000 < certificate["left"] <= 7200
    assert run(url=f"{url}404", ca=authority.text, server_name="model.example")["outcome"] == "HTTP status 404"


def test_what_is_wrong_with_a_certificate_is_told(run, tls, tmp_path):
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    good, expired = tls(*authority.issue("a")), tls(*authority.issue("a", begins=-9000, ends=-60))
    cases = {
        "is not for the name b": (good, authority.text, "b"),
        "is not for the name 127.0.0.1": (good, authority.text, ""),
        "is from no CA that is in the site's CA": (good, other.text, "a"),
        "is from no CA that is in the system's store of CAs": (good, "", "a"),
        "has expired, at 20": (expired, authority.text, "a"),
        "can't be checked, because the site's CA has no certificate in it": (good, "nothing", "a"),
    }
    for expected, (url, ca, name) in cases.items():
        result = run(url=url, ca=ca, server_name=name, api_key=KEY)
        assert result["certificate"]["problem"].startswith(expected), expected
        assert not result["passed"] and result["outcome"].startswith(f"its certificate {expected}")
        assert (result["status"], result["content"]) == (0, "")


def test_a_server_that_speaks_no_tls(run, url):
    result = run(url=url.replace("http", "https"), server_name="a")
    assert not result["passed"] and result["outcome"].startswith("no answer: ") and "certificate" not in result
