# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_declared, server_guard
from ansible_collections.phoenix.hypervisor.plugins.module_utils.engine_args import EngineConfigError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import UnitError

UNIT = """[Service]
Environment=PHOENIX_DIGEST=@DIGEST@
Environment="HOME=@CACHE@"
@ENVIRONMENT@
@CERTIFICATE@
ExecStart=@EXEC_START@
ExecStopPost=-+@GUARD@ ended FILE
"""


@pytest.fixture
def release(tmp_path):
    """A release, which a link points at."""
    folder = tmp_path / "releases" / "cpu-0123456789ab"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "vllm").write_text(f"#!{folder}/bin/python\n")
    (folder / "bin" / "python").write_text("")
    (folder / "release.json").write_text(json.dumps({"vllm": "0.32.0"}))
    (tmp_path / "vllm").symlink_to(folder)
    return folder


@pytest.fixture
def declare(tmp_path, release):
    """Return (the state that these options declare, what was to be hidden)."""

    def run(engine=None, salt=b"salt", **options):
        hidden = []
        parameters = {
            "engine_config": engine or {"ModelConfig": {"model": "org/tiny"}}, "api_key": "", "huggingface_token": "",
            "flags": {}, "user": "vllm", "tls": {}, "stop_timeout": 60, "ready_timeout": 1800, "cache": "/cache",
            "link": str(tmp_path / "vllm"), "config_file": "/etc/vllm/engine.yaml", "unit": UNIT,
            "flashinfer_sampler": None, "flash_attn_version": 0, **options,
        }  # fmt: skip
        state = server_declared.declared(parameters, lambda: salt, hidden.extend)
        return state, {secret for secret in hidden if secret}

    return run


def test_a_state(declare, release):
    state, hidden = declare()
    assert (state.release, state.cache, state.model, state.secrets) == (str(release), "/cache", "org/tiny", "")
    lines = state.unit.splitlines()
    assert f"Environment=PHOENIX_DIGEST={state.digest}" in lines and 'Environment="HOME=/cache"' in lines
    config = f"/etc/vllm/engine-{state.digest}.yaml"
    assert f"ExecStart={release}/bin/vllm serve org/tiny --config {config}" in lines
    assert f"ExecStopPost=-+{server_guard.PROGRAM} ended FILE" in lines and "@" not in state.unit
    assert not any(line.startswith("ExecStartPre") for line in lines) and state.probe["tls"] is False
    assert state.probe["key"] == "" and state.probe["port"] == 8000 and hidden == set()
    assert declare()[0] == state and declare(salt=b"other")[0].digest != state.digest


@pytest.mark.parametrize("how", ["option", "config"])
def test_secrets_are_in_their_file_only(declare, how):
    config = {"ModelConfig": {"model": "org/tiny"}}
    if how == "option":
        state, hidden = declare(config, api_key="k3y", huggingface_token="t0ken")
    else:
        config["ModelConfig"]["hf_token"] = "t0ken"
        state, hidden = declare({**config, "ServerConfig": {"api_key": "k3y"}})
    assert hidden == {"k3y", "t0ken"} and state.probe["key"] == "k3y"
    assert state.secrets.splitlines()[1:] == ['HF_TOKEN="t0ken"', 'VLLM_API_KEY="k3y"']
    assert "k3y" not in state.unit + state.config and "t0ken" not in state.unit + state.config
    assert f"EnvironmentFile=/etc/vllm/secrets-{state.digest}.env" in state.unit.replace('"', "")


def test_secrets_are_hidden_before_a_mistake_is_told(declare):
    hidden = []
    parameters = {"engine_config": {"ServerConfig": {"api_key": "k3y", "port": [1]}}, "api_key": "", "flags": {},
                  "huggingface_token": "", "user": "vllm", "tls": {}}  # fmt: skip
    with pytest.raises(EngineConfigError):
        server_declared.declared(parameters, lambda: b"", hidden.extend)
    assert "k3y" in hidden


def test_a_certificate_is_copied_before_the_server_and_is_no_part_of_its_state(declare):
    files = {"certificate_file": "/c/full.pem", "key_file": "/c/key.pem", "ca_file": "", "name": "a"}
    state, _hidden = declare(tls=files)
    words = f"/usr/bin/python3 -I {server_guard.PROGRAM} certificate /c/full.pem /c/key.pem vllm"
    assert f"ExecStartPre=+{words}" in state.unit
    assert (state.probe["tls"]["drain"], state.probe["tls"]["ready"], state.probe["tls"]["user"]) == (60, 1800, "vllm")
    assert state.probe["tls"]["file"] in state.config


def test_one_of_the_engine_config_s_own_is_part_of_it(declare, tmp_path):
    (tmp_path / "cert.pem").write_text("one")
    engine = {"ModelConfig": {"model": "org/tiny"}, "ServerConfig": {"ssl_certfile": str(tmp_path / "cert.pem")}}
    before = declare(engine)[0].digest
    (tmp_path / "cert.pem").write_text("two")
    assert declare(engine)[0].digest != before


def test_a_model_that_is_a_link_is_named_by_its_revision(declare, tmp_path):
    (tmp_path / ".tiny" / "abc").mkdir(parents=True)
    link = tmp_path / "tiny"
    link.symlink_to(tmp_path / ".tiny" / "abc")
    state, _hidden = declare({"ModelConfig": {"model": str(link)}})
    assert f" serve {tmp_path}/.tiny/abc --config " in state.unit and state.model == str(link)


def test_a_release_that_was_made_under_another_path_is_started_by_its_python(declare, release):
    (release / "bin" / "vllm").write_text("#!/opt/vllm/bin/python\n")
    assert f"ExecStart={release}/bin/python {release}/bin/vllm serve " in declare()[0].unit


@pytest.mark.parametrize("writable", [True, False])
def test_the_cache_is_on_the_models_volume_where_it_can_be_written(declare, tmp_path, monkeypatch, writable):
    monkeypatch.setattr(server_declared.os.path, "ismount", lambda path: path in ("/", str(tmp_path)))
    monkeypatch.setattr(server_declared.os, "access", lambda path, mode: writable)
    monkeypatch.setattr(server_declared.socket, "gethostname", lambda: "c921")
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    state, _hidden = declare({"ModelConfig": {"model": str(tmp_path / "org/tiny")}}, cache="")
    assert state.cache == (str(tmp_path / ".vllm-cache" / "c921") if writable else server_declared.CACHE)
    assert declare(cache="")[0].cache == server_declared.CACHE, "a name of the hub is on no volume"


def test_the_watchdog_is_two_units_or_none():
    found = server_declared.watchdog({"service": "ExecStart=@GUARD@ watch", "timer": "t"}, "x.service")
    assert found == {"x_watchdog.service": f"ExecStart={server_guard.PROGRAM} watch", "x_watchdog.timer": "t"}
    assert server_declared.watchdog({}, "x.service") == {} and server_declared.watchdog(None, "x.service") is None
    for wrong in ({"service": "s"}, {"service": "s", "timer": 1}):
        with pytest.raises(UnitError, match="two units, service and timer"):
            server_declared.watchdog(wrong, "x.service")
