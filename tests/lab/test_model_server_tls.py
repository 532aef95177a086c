# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model server with a certificate that is renewed while it serves, in a container of the lab.

The role `certificate` is played by the test: it writes the files, by rename, and runs what the role says. A small
program stands in for vLLM (tests/support/vllm_stand_in.py); what vLLM itself does is in test_vllm_tls.py. One container
(CTID 565) serves all tests of this file, in their order.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import serial
from lab_modules import pct, require_lab, wait_until
from model_site import KEY, PORT, UNIT
from tls_site import FOLDER, PAIR, TlsSite

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
VMID, ADDRESS, NAME = 565, "10.92.0.35", "server565"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[TlsSite]:
    require_lab()
    site = TlsSite(VMID, ADDRESS, tmp_path_factory.mktemp("site"))
    try:
        site.set_up(("good", "loads", "dies"))
        yield site
    finally:
        site.close()


def test_without_the_files_nothing_is_touched(site):
    said = site.run(code=2)
    assert f"The model server's certificate {PAIR[0]} can't be read: No such file or directory." in said
    assert "The role certificate issues it (certificate_source)" in said and "was not touched" in said
    assert site.inside(f"ls /etc/systemd/system/{UNIT} 2>/dev/null || true") == ""


def test_two_certificates_are_told(site):
    said = site.run(code=2, **site.engine_config("good", ssl_certfile="/mine.pem"), vllm_model_server_tls=True)
    assert "ssl_certfile is in vllm_engine_config, and the role has a certificate for the server, too" in said


def test_it_serves_with_the_certificate(site):
    number = site.issue()
    said = site.run()
    assert "changed=1" in said and site.serves() == number and site.answer() == "fake-111111111111 good None"
    own = site.inside("ls /run/vllm_model_server/*.pem")
    assert re.fullmatch(r"/run/vllm_model_server/[0-9a-f]{16}\.pem", own)
    assert site.inside(f"stat -c '%U %G %a' {own} {PAIR[1]}") == "vllm vllm 400\nroot root 600"
    assert site.inside(f"systemd-analyze verify /etc/systemd/system/{UNIT} 2>&1") == ""
    config = site.inside("cat /etc/vllm/engine.yaml").replace("'", "").replace('"', "").splitlines()
    assert {f"ssl-certfile: {own}", f"ssl-keyfile: {own}", "enable-ssl-refresh: true"} <= set(config)
    pid = site.main_pid()
    assert "changed=0" in site.run() and site.main_pid() == pid
    # No key is in the journal or in a unit, and nobody else reads it.
    assert "PRIVATE KEY" not in site.inside(f"journalctl --no-pager -o cat; systemctl cat {UNIT}; cat /etc/vllm/*")
    code = site.inside(f"setpriv --reuid=nobody --clear-groups cat {own} >/dev/null 2>&1; echo $?")
    assert code != "0"


@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.full)])
def test_a_renewal_fails_no_request(site, times):
    # Alone, it is the first one.
    site.issue()
    site.run()
    pid = site.main_pid()
    with site.client() as steady:
        time.sleep(0.5)
        for _number in range(times):
            number = site.issue()
            assert site.renewed() == f"{UNIT} serves the new certificate."
            assert site.serves() == number
        time.sleep(0.5)
    assert steady.failed == [] and len(steady.requests) > 20
    assert site.main_pid() == pid and site.renewed() == f"{UNIT} serves the certificate already."


def test_a_renewal_that_goes_wrong_is_told_and_the_old_one_is_served(site):
    number = site.serves()
    certificate, _key = site.authority.issue(NAME, ADDRESS)
    old_key = site.inside(f"cat {PAIR[1]}")
    with site.client() as steady:
        site.write(certificate, old_key)
        assert f"key {PAIR[1]} is that of another certificate; its certificate is {PAIR[0]}" in site.renewed(1)
        assert "is that of another certificate" in site.run(code=2)
        time.sleep(0.5)
    assert steady.failed == [] and site.serves() == number


def test_a_renewal_that_was_killed_is_taken_over_by_the_next_run(site):
    number = site.issue()
    assert site.serves() != number
    shown = site.run("--check", "--diff")
    assert f"have {UNIT} serve the certificate that was renewed" in shown and site.serves() != number
    pid = site.main_pid()
    with site.client() as steady:
        said = site.run("--diff")
    assert f"have {UNIT} serve the certificate that was renewed" in said and "changed=1" in said
    assert site.serves() == number and site.main_pid() == pid and steady.failed == []
    assert "changed=0" in site.run()


def test_a_restart_takes_the_newest(site):
    number = site.issue()
    site.inside(f"systemctl restart {UNIT}")
    wait_until(site.answers, 60)
    assert site.serves() == number
    site.inside(f"systemctl stop {UNIT}")
    assert site.renewed() == f"{UNIT} does not run; it takes the certificate when it starts."
    site.inside(f"systemctl start {UNIT}")


def test_one_server_takes_another_one_s_place_with_tls(site):
    site.inside("apt-get update -q && apt-get install -qy --no-install-recommends nftables")
    wait_until(site.answers, 60)
    before = site.answer()
    with site.client() as steady:
        assert "Nothing answered for" not in site.run(**site.engine_config("loads"))
    assert steady.failed == [] and steady.answers == [before, "fake-111111111111 loads None"]
    assert site.renewed() == f"{UNIT} serves the certificate already."
    site.run()


def test_verify_asks_over_tls_and_looks_at_the_renewal(site):
    """The timer is the role `certificate`'s; here it is one of the test's."""
    timer = "phoenix_certificate.timer"
    units = {timer: "[Timer]\nOnCalendar=hourly\n[Install]\nWantedBy=timers.target",
             "phoenix_certificate.service": "[Service]\nType=oneshot\nExecStart=/bin/true"}  # fmt: skip
    for name, text in units.items():
        site.inside(f"cat >/etc/systemd/system/{name} <<'EOF'\n{text}\nEOF")
    site.inside(f"systemctl daemon-reload; systemctl --quiet enable --now {timer}")
    site.issue()
    site.renewed()
    tests = {"t": [{"name": "models", "type": "http", "path": "/v1/models"},
                   {"name": "inside", "type": "command", "path": "test $PHOENIX_URL = https://server565:8000 && "
                    "test -r $PHOENIX_CA_FILE && getent hosts server565"}]}  # fmt: skip

    def checks(code: int = 0, **variables) -> dict[str, tuple[str, str]]:
        folder = site.folder / "report"
        said = site.run(playbook=str(ROOT / "playbooks/verify.yml"), code=code, verify_tests=tests,
                        verify_report_folder=str(folder), **variables)  # fmt: skip
        report = json.loads((folder / "verify.json").read_text())["containers"][0]
        assert report["url"] == f"https://{ADDRESS}:{PORT}"
        found = {check.get("name", check["check"]): (check["result"], check["message"]) for check in report["checks"]}
        # What a person can do with it; YAML may have quoted it.
        shown = f"curl -s --cacert {FOLDER}/ca.pem --resolve {NAME}:{PORT}:{ADDRESS} https://{NAME}:{PORT}/v1/completions"
        assert code or shown in said
        return found

    found = checks()
    assert {name: result for name, (result, _message) in found.items()} == dict.fromkeys(
        ("unit", "release", "certificate", "renewal", "completion", "models", "inside"), "passed"), found  # fmt: skip
    assert found["certificate"][1].startswith(f"{NAME}, {ADDRESS}, until 20")
    assert re.match(r"next at \w{3} 20", found["renewal"][1])
    # Each failure in a sentence of its own.
    site.issue(begins=-86400, ends=7200)
    site.renewed()
    site.inside(f"systemctl --quiet disable --now {timer}")
    found = checks(2)
    assert re.fullmatch(r"it ends at 20\S+ \S+ UTC, \d+ minutes from now, and should have been renewed before; .*",
                        found["certificate"][1])  # fmt: skip
    assert found["renewal"][1] == f"{timer} is disabled and inactive, so the certificate is not renewed: run site.yml"
    assert found["completion"][0] == "passed"
    found = checks(2, verify_certificate_name="other", verify_certificate_timer="")
    assert found["certificate"] == ("failed", "it is not for the name other") and "renewal" not in found
    assert found["completion"] == ("skipped", "not asked, see the certificate")
    found = checks(2, certificate_ca_fingerprint=["ab" * 32])
    assert "and the declared one is abab" in found["certificate"][1]


def test_an_expired_certificate_is_told_and_restarts_nothing(site):
    """By the watchdog, and by the module: the model lives."""
    pid = site.main_pid()
    site.issue(ends=-60)
    assert site.renewed() == f"{UNIT} serves the new certificate."
    site.inside("for i in 1 2 3; do systemctl start vllm_model_server_watchdog.service; done; journalctl --sync")
    told = site.inside(f"journalctl --no-pager --quiet --output=cat -u {UNIT} -t watchdog").splitlines()
    assert len(told) == 1, told
    assert re.fullmatch(
        r"The model server is taken for alive, but its certificate has expired, at 20\S+ \S+ UTC\. Clients don't "
        r"accept it; look why it was not renewed\.", told[0]
    )  # fmt: skip
    said = site.run(code=2)
    assert "The model server answers, but its certificate has expired, at 20" in said
    assert "The change was undone" not in said and site.main_pid() == pid
    # A change is made all the same: the former state has no better one.
    said = site.run(code=2, **site.engine_config("good", max_num_seqs=2))
    assert "The model server answers, but its certificate has expired" in said and "was undone" not in said
    number = site.issue()
    site.renewed()
    assert "changed=0" in site.run(**site.engine_config("good", max_num_seqs=2)) and site.serves() == number


def test_a_name_and_a_ca_that_don_t_fit_are_told(site):
    said = site.run(code=2, vllm_model_server_certificate_name="other")
    assert "The model server answers, but its certificate is not for the name other." in said
    said = site.run(code=2, vllm_model_server_ca_file="")
    assert "its certificate is from no CA that is in the system's store of CAs" in said
    assert "changed=0" in site.run()


def test_where_the_release_can_t_reload_it_finishes_its_requests_and_restarts(site):
    site.can_reload(False)
    site.run(**site.engine_config("loads"))
    assert "enable-ssl-refresh" not in site.inside("cat /etc/vllm/engine.yaml")
    pid, number, answers = site.main_pid(), site.issue(), []

    def slowly() -> None:
        context = ssl.create_default_context(cafile=site.ca)
        body = json.dumps({"model": "m", "prompt": "Slowly"})
        connection = http.client.HTTPSConnection(ADDRESS, PORT, timeout=60, context=context)
        connection.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {KEY}"})
        answers.append(json.load(connection.getresponse())["choices"][0]["text"])

    with site.client() as steady:
        thread = threading.Thread(target=slowly)
        thread.start()
        time.sleep(0.5)
        assert site.renewed() == f"{UNIT} serves the new certificate, since it was restarted."
        thread.join()
        time.sleep(0.5)
    assert answers == ["fake-111111111111 loads None"], "a request in flight was cut off"
    assert site.serves() == number and site.main_pid() != pid
    # New ones are refused, none is cut off.
    assert steady.failed and {one.problem.partition(":")[0] for one in steady.failed} == {"ConnectionRefusedError"}
    gap = steady.gap()
    assert steady.failed_outside(gap) == 0
    assert site.inside("nft list tables") == ""
    assert "changed=0" in site.run(**site.engine_config("loads"))
    # The same by a run, for a renewal that nobody took over.
    number = site.issue()
    said = site.run("--diff", **site.engine_config("loads"))
    assert "for which it is restarted when it has answered its requests" in said and site.serves() == number
    assert "changed=0" in site.run(**site.engine_config("loads"))


def test_a_certificate_of_one_s_own_in_the_engine_config_stays_as_it_was(site):
    certificate, key = site.authority.issue(NAME, ADDRESS)
    for name, text in (("own.pem", certificate), ("own.key", key)):
        site.inside(f"cat >/opt/{name} <<'EOF'\n{text}\nEOF\nchown vllm /opt/{name}; chmod 400 /opt/{name}")
    own = site.engine_config("good", ssl_certfile="/opt/own.pem", ssl_keyfile="/opt/own.key")
    assert "changed=1" in site.run(**own)
    assert site.serves() == serial(certificate) and "changed=0" in site.run(**own)
    assert site.inside("ls /run/vllm_model_server/") == "", "the key of a former state is left"
    assert site.renewed() == f"{UNIT} runs without a certificate of the role's; there is nothing to do."
    said = site.run(code=2, **own, vllm_model_server_ca_file=f"{FOLDER}/ca.pem",
                    vllm_model_server_certificate_name="other")  # fmt: skip
    assert "its certificate is not for the name other" in said


def test_with_the_role_certificate(tmp_path):
    """From nothing: the role makes a certificate, the server has it, verify is content, and renewals reload it."""
    site = TlsSite(VMID + 3, "10.92.0.38", tmp_path)
    # By its name, and trusted by the system's store, as curl would.
    asks = "import os, urllib.request as r; r.urlopen(os.environ['PHOENIX_URL'] + '/v1/models')"
    site.variables.update(certificate_source="self_signed", certificate_model_server=True,
                          verify_health_check={"command": f'python3 -c "{asks}"', "retries": 0})  # fmt: skip
    play = tmp_path / "all.yml"
    roles = [{"name": role, "ansible.builtin.include_role": {"name": f"phoenix.hypervisor.{role}"}}
             for role in ("certificate", "vllm_model_server", "verify")]  # fmt: skip
    play.write_text(json.dumps([{"name": "All", "hosts": f"ctid_{site.vmid}", "gather_facts": False, "tasks": roles}]))
    try:
        site.create(("good",), memory=8192)
        site.run(playbook=str(play))
        site.ca = str(tmp_path / "own.pem")
        pct("pull", str(site.vmid), f"{FOLDER}/ca.pem", site.ca)
        number, pid = site.serves(), site.main_pid()
        assert site.answer() == "fake-111111111111 good None"
        with site.client() as steady:
            for _number in range(2):
                site.inside("/usr/local/libexec/phoenix_certificate/renew.py run force")
                assert site.serves() != number
                number = site.serves()
        assert steady.failed == [] and site.main_pid() == pid
        said = site.run(playbook=str(play))
        assert "changed=0" in said, said
    finally:
        site.close()
