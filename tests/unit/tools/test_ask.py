# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import http.server
import importlib.util
import json
import ssl
import sys
import threading
from pathlib import Path

import pytest
from certificates import Authority

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("ask", ROOT / "tools" / "ask.py")
assert SPEC and SPEC.loader
ask = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ask)


class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"model": asked["model"], "choices": [{"text": " a"}]}).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture(params=["http", "https"])
def server(request, tmp_path, monkeypatch):
    """A server, whose variables ansible-inventory tells; its CA."""
    authority, made = Authority(tmp_path), http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    variables = {
        "container_address": "127.0.0.1", "container_config": {"hostname": "model"},
        "vllm_model_server_engine_config": {"ServerConfig": {"port": made.server_port, "served_model_name": "tiny"}},
        "certificate_source": {"http": "none", "https": "step_ca"}[request.param],
    }  # fmt: skip
    if request.param == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (tmp_path / "both.pem").write_text("".join(authority.issue("model")[::-1]))
        context.load_cert_chain(tmp_path / "both.pem")
        made.socket = context.wrap_socket(made.socket, server_side=True)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    monkeypatch.setattr(ask, "declared", lambda inventory, host: variables)
    yield request.param, str(authority.file), made.server_port
    made.shutdown()
    made.server_close()


def run(monkeypatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ask.py", "--inventory", "i", "--host", "ctid_1", *options])
    return ask.main()


def test_it_asks_and_says_how_to(server, monkeypatch, capsys):
    scheme, ca, port = server
    assert run(monkeypatch, "--cacert", ca) == 0
    said = capsys.readouterr().out
    assert "tiny in ctid_1 was asked" in said and "' a'" in said
    expected = {
        "http": f"curl -s http://127.0.0.1:{port}/v1/completions -H",
        "https": f"curl -s --cacert {ca} --resolve model:{port}:127.0.0.1 https://model:{port}/v1/completions -H",
    }
    assert expected[scheme] in said


def test_a_certificate_that_is_not_trusted(server, monkeypatch, capsys):
    scheme, ca, port = server
    if scheme == "http":
        assert run(monkeypatch) == 0
        return
    assert run(monkeypatch) == 1
    assert "its certificate is from no CA that is in the system's store of CAs (--cacert" in capsys.readouterr().err
    assert run(monkeypatch, "--cacert", ca, "--name", "other") == 1
    assert f"at https://other:{port}/v1/completions: its certificate is not for the name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"certificate_source": ""}, False),
        ({"certificate_source": "none", "certificate_ca_url": "https://ca"}, False),
        ({"certificate_ca_url": "https://ca"}, True),
        ({"certificate_source": "self_signed"}, True),
        ({"certificate_source": "files", "certificate_model_server": False}, False),
    ],
)
def test_whether_it_has_a_certificate(variables, expected):
    assert ask.has_certificate(variables) is expected
