# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates from a real CA, in real containers: Caddy's ACME server, which is smallstep's (CTID 103).

One container (CTID 560) serves all tests of this file, in their order.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator

import pytest
from acme_site import CA, CONFIG, URL, Authority, Client, install, listens
from lab_modules import ROOT, require_lab, wait_until

pytestmark = pytest.mark.lab

CHECK = str(ROOT / "playbooks/certificates.yml")
FOLDER = "/etc/phoenix-hypervisor/certificates"
CHAIN, KEY = f"{FOLDER}/web/fullchain.pem", f"{FOLDER}/web/privkey.pem"
SERVICE, TIMER = "phoenix_certificate.service", "phoenix_certificate.timer"
PROGRAM = "/usr/local/libexec/phoenix_certificate/renew.py"
# The command notes each renewal; what a shell would take for its own stays as it is.
NOTE = "/root/note"
WEB = {"name": "web", "mode": "0640", "group": "www-data", "post_renewal_command": [NOTE, "$(id)", "a b", ";"]}


@pytest.fixture(scope="module")
def ca(tmp_path_factory) -> Iterator[CA]:
    """The CA, as a site has it."""
    require_lab()
    ca = CA(tmp_path_factory.mktemp("ca"))
    try:
        ca.create()
        ca.start()
        yield ca
    finally:
        ca.close()


@pytest.fixture(scope="module")
def client(ca, tmp_path_factory) -> Iterator[Client]:
    """A container with a web server's certificate."""
    client = Client(560, "10.92.0.20", ca, tmp_path_factory.mktemp("client"))
    try:
        client.create()
        client.inside(f"printf '#!/bin/sh\\nprintf \"<%%s>\" \"$@\" >>/root/noted; echo >>/root/noted\\n' >{NOTE} "
                      f"&& chmod +x {NOTE}")  # fmt: skip
        client.ca.knows(other=client.address)
        install(client.vmid, "faketime")
        client.variables = {"certificate_services": [{**WEB, "common_name": client.full}]}
        yield client
    finally:
        client.close()


@pytest.fixture(scope="module")
def issued(client) -> None:
    """The certificate is there as test_issue leaves it, also where that one does not run (make test-campaigns)."""
    if not client.serial(CHAIN):
        client.run()


def noted(client: Client) -> int:
    """How often the command was run."""
    return int(client.inside("cat /root/noted 2>/dev/null | wc -l"))


def subject(client: Client, path: str = CHAIN) -> str:
    """The names of the certificate that is there."""
    return client.inside(f"openssl x509 -in {path} -noout -ext subjectAltName | tail -1").strip()


def consistent(client: Client) -> bool:
    """Whether key and certificate belong together, and openssl trusts them."""
    script = (f"[ \"$(openssl x509 -in {CHAIN} -noout -pubkey)\" = \"$(openssl pkey -in {KEY} -pubout)\" ] && openssl "
              f"verify -CAfile {FOLDER}/ca.pem -untrusted {CHAIN} {CHAIN} >/dev/null && echo yes || true")  # fmt: skip
    return client.inside(script) == "yes"


@contextlib.contextmanager
def configured(client: Client, **changes) -> Iterator[None]:
    """Other settings of the program for the time of the block; those of the certificate have its keys."""
    before = client.inside(f"cat {CONFIG}")

    def change(config: dict) -> None:
        for name, value in changes.items():
            (config["certificates"][0] if name in config["certificates"][0] else config)[name] = value

    client.configure(change)
    try:
        yield
    finally:
        client.put(CONFIG, before)


# --- the role -----------------------------------------------------------------------------------------------------


def test_a_wrong_fingerprint(client):
    other = Authority("Somebody else")
    said = client.run(code=2, certificate_ca_fingerprint=[other.fingerprint])
    assert f"The CA at {URL} is not the one that is declared: its root has the fingerprint " in said
    assert client.ca.authority.fingerprint in said and "bootstrap_ca_fingerprint: [old, new]" in said
    assert client.inside(f"ls /usr/local/share/ca-certificates/phoenix-certificate {FOLDER} 2>/dev/null || true") == ""


def test_issue(client):
    done = client.run("--diff")
    assert f"get a certificate web for {client.full}, because there is none yet" in done
    assert consistent(client)
    # The address is a name of its own kind.
    assert subject(client) == f"DNS:{client.full}, IP Address:{client.address}"
    assert client.inside(f"stat -c '%a %U %G' {CHAIN} {KEY}") == "644 root www-data\n640 root www-data"
    assert client.inside("stat -c %a /var/lib/phoenix_certificate/account/private/key.pem") in ("400", "600")
    assert client.inside("cat /root/noted") == "<$(id)><a b><;>"
    # Whatever takes the system's store trusts the CA.
    ask = f"import urllib.request as r; print(r.urlopen('{URL}/acme/acme/directory').status)"
    assert client.inside(f'python3 -c "{ask}"') == "200"
    assert client.inside(f"systemctl is-active {TIMER}; systemctl is-enabled {TIMER}") == "active\nenabled"
    assert client.inside(f"systemd-analyze verify /etc/systemd/system/{SERVICE} /etc/systemd/system/{TIMER} 2>&1") == ""


def test_a_second_run_changes_nothing(client):
    before = client.serial(CHAIN)
    assert "changed=0" in client.run()
    assert client.serial(CHAIN) == before and noted(client) == 1


def test_no_secret_of_a_ca_is_inside(client):
    found = client.inside("grep -rlE 'PRIVATE KEY|[Pp]assword' /etc/phoenix-hypervisor /var/lib/phoenix_certificate "
                          "/etc/systemd/system/phoenix_certificate* || true")  # fmt: skip
    assert found.split() == [KEY, "/var/lib/phoenix_certificate/account/private/key.pem"]


# --- the program --------------------------------------------------------------------------------------------------


def test_it_leaves_alone_what_is_not_due(client):
    before, times = client.serial(CHAIN), noted(client)
    assert client.renew() == "exit 0"
    assert client.serial(CHAIN) == before and noted(client) == times


def test_owner_and_mode_are_put_right(client):
    client.inside(f"chmod 644 {KEY}; chown nobody {CHAIN}")
    before = client.serial(CHAIN)
    assert client.renew() == "exit 0"
    assert client.inside(f"stat -c '%a %U' {KEY} {CHAIN}") == "640 root\n644 root"
    assert client.serial(CHAIN) == before


@pytest.mark.full
@pytest.mark.usefixtures("issued")
def test_another_name(client):
    times = noted(client)
    with configured(client, names=[client.full, "other.lab.test"]):
        assert "because it has not the name other.lab.test" in client.renew()
        assert "DNS:other.lab.test" in subject(client) and noted(client) == times + 1
    assert "because it has the name other.lab.test, which is declared no more" in client.renew()
    assert "other" not in subject(client)


def test_a_name_that_the_ca_can_not_validate(client):
    """It leads nowhere. What there was stays."""
    before = client.serial(CHAIN)
    with configured(client, names=[client.full, "nowhere.lab.test"], validation_timeout=6):
        said = client.renew()
    assert "The CA could not validate nowhere.lab.test within 6 s" in said
    assert "It did not come to port 80 here: does nowhere.lab.test lead to this container" in said
    assert said.endswith("exit 75") and client.serial(CHAIN) == before and consistent(client)


def test_port_80_is_taken(client):
    before = client.serial(CHAIN)
    client.inside(f"systemd-run -q --unit web python3 -m http.server 80 --directory /srv; {listens(80)}")
    try:
        said = client.renew("force")
        assert re.search(r"Port 80 is needed to answer the CA \(http-01\), and python3 \(process \d+\) has it", said)
        assert said.endswith("exit 75") and client.serial(CHAIN) == before
        # The other challenge needs another port.
        with configured(client, challenge="tls-alpn-01"):
            assert client.renew("force").endswith("exit 0")
        assert client.serial(CHAIN) != before and consistent(client)
        assert subject(client) == f"DNS:{client.full}, IP Address:{client.address}"
    finally:
        client.inside("systemctl stop web")


@pytest.mark.full
@pytest.mark.usefixtures("issued")
def test_a_web_server_answers_the_ca(client):
    before = client.serial(CHAIN)
    client.inside(f"systemd-run -q --unit web python3 -m http.server 80 --directory /srv; {listens(80)}")
    try:
        with configured(client, webroot="/srv"):
            assert client.renew("force").endswith("exit 0")
        assert client.serial(CHAIN) != before and client.inside("find /srv -type f") == ""
    finally:
        client.inside("systemctl stop web")


def test_the_ca_is_away_and_comes_back(client):
    """The unit goes on trying by itself, also when there is nothing to serve any more."""
    client.ca.stop()
    before = client.serial(CHAIN)
    said = client.renew("force")
    assert f"The CA at {URL} can't be reached: nothing listens there. It is tried again by itself." in said
    assert said.endswith("exit 75") and client.serial(CHAIN) == before
    client.inside(f"rm {CHAIN}; systemctl start {SERVICE} || true")
    wait_until(lambda: "(auto-restart)" in client.inside(f"systemctl status {SERVICE} --no-pager || true"), 30)
    client.ca.start()
    wait_until(lambda: client.serial(CHAIN), 60)
    assert consistent(client)


# Runs the program, and kills it where the hook says.
KILLED = """
import importlib.machinery, importlib.util, os
loader = importlib.machinery.SourceFileLoader("program", {program!r})
program = importlib.util.module_from_spec(importlib.util.spec_from_loader("program", loader))
loader.exec_module(program)
real = os.replace

def replace(source, target):
    if target.endswith({target!r}):
        os.kill(os.getpid(), 9)
    real(source, target)

os.replace = replace
program.run(force=True)
"""


@pytest.mark.parametrize("target", ["privkey.pem", "fullchain.pem"])
def test_killed_in_the_middle(client, target):
    """Before the first rename, and between the two: the next run goes on with what is there, without the CA."""
    before, times = client.serial(CHAIN), noted(client)
    client.put("/root/killed.py", KILLED.format(program=PROGRAM, target=target))
    assert client.inside("python3 /root/killed.py >/dev/null 2>&1; echo $?").endswith("137")
    assert client.serial(CHAIN) == before and consistent(client) == (target == "privkey.pem")
    client.ca.stop()
    try:
        said = client.renew("force" if target == "privkey.pem" else "")
    finally:
        client.ca.start()
    assert said.endswith("exit 0"), said
    assert client.serial(CHAIN) != before and consistent(client) and noted(client) == times + 1


@pytest.mark.full
@pytest.mark.usefixtures("issued")
def test_two_at_once(client):
    """The second one waits for the first, and finds nothing to do."""
    client.inside(f"rm {CHAIN}")
    times = noted(client)
    client.inside(f"{PROGRAM} run & {PROGRAM} run & wait")
    assert consistent(client) and noted(client) == times + 1


def test_the_disk_is_full(client):
    """The pair is on a small disk of its own, and there is no room for another one."""
    client.inside("mkdir -p /full && mount -t tmpfs -o size=16k tmpfs /full")
    try:
        with configured(client, cert_file="/full/a.pem", key_file="/full/a.key"):
            assert client.renew().endswith("exit 0")
            before = client.inside("cat /full/a.pem /full/a.key")
            client.inside("cat /dev/zero >/full/filler 2>/dev/null || true")
            said = client.renew("force")
            assert "There is no room for the new certificate in /full (disk full): the one that is there stays." in said
            assert said.endswith("exit 75")
            assert client.inside("cat /full/a.pem /full/a.key") == before
            assert client.inside("ls -A /full").split() == ["a.key", "a.pem", "filler"]
            client.inside("rm /full/filler")
            assert client.renew("force").endswith("exit 0"), "it goes on with the pair that it has"
            assert client.inside("cat /full/a.pem /full/a.key") != before
    finally:
        client.inside("umount /full; rmdir /full")


@pytest.mark.full
@pytest.mark.usefixtures("issued")
@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_off_by_a_day(client, days):
    before = client.serial(CHAIN)
    said = client.run_in(days * 86400, f"{PROGRAM} run force 2>&1; echo exit $?")
    sentence = r"The clocks differ by (24|23) hours: here it is .* UTC, at the CA .* The container.s clock is the node"
    assert re.search(sentence, said) and said.endswith("exit 75"), said
    assert client.serial(CHAIN) == before


def test_a_command_that_fails_is_run_again(client):
    client.inside(f"mv {NOTE} {NOTE}.not")
    said = client.renew("force")
    assert f"but the command after it ({NOTE} $(id) a b ;) failed: No such file or directory" in said
    assert said.endswith("exit 75")
    before, times = client.serial(CHAIN), noted(client)
    client.inside(f"mv {NOTE}.not {NOTE}")
    assert client.renew() == "exit 0"
    assert client.serial(CHAIN) == before and noted(client) == times + 1


# --- more of the role ---------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.usefixtures("issued")
def test_a_changed_root(client):
    """Only with its fingerprint; both roots are good while they change."""
    old, before = client.ca.authority, client.serial(CHAIN)
    new = client.ca.authority = Authority("New root")
    client.ca.start()
    said = client.run(code=2, certificate_ca_fingerprint=[old.fingerprint])
    assert new.fingerprint in said and "declare both roots while it changes" in said
    assert "its certificate comes from no root in" in client.renew("force")
    assert client.serial(CHAIN) == before
    client.run(certificate_ca_fingerprint=[old.fingerprint, new.fingerprint])
    assert client.serial(CHAIN) == before, "it is from the old root, which is good still"
    assert "changed=0" in client.run(certificate_ca_fingerprint=[old.fingerprint, new.fingerprint])
    assert "a CA that is not trusted any more" in client.run("--diff", certificate_ca_fingerprint=[new.fingerprint])
    assert client.serial(CHAIN) != before and consistent(client)


@pytest.mark.full
@pytest.mark.usefixtures("issued")
def test_check_mode_and_a_ca_that_is_away(client):
    """A run of the role takes what is valid as it is; what was asked for fails it."""
    before = client.serial(CHAIN)
    shown = client.run("--check", "--diff", certificate_renew=True)
    assert f"get a certificate web for {client.full}, because it was asked for" in shown
    client.ca.stop()
    try:
        assert "The roots that are in" in client.run()
        # A certificate that is due, and valid.
        assert "The one that is there is valid until" in client.run(certificate_renew_at=1.0)
        assert "can't be reached" in client.run(code=2, certificate_renew=True)
    finally:
        client.ca.start()
    assert client.serial(CHAIN) == before
    client.run()


@pytest.mark.full
@pytest.mark.usefixtures("issued")
def test_the_playbook_checks_and_renews(client):
    said = client.run(playbook=CHECK)
    assert "remaining" in said and client.full in said
    said = client.run("-e", f"certificate_limit_seconds={13 * 3600}", playbook=CHECK, code=2)
    assert "is below the limit of 13 hours" in said
    before = client.serial(CHAIN)
    client.run("-e", "certificate_renew=true", playbook=CHECK)
    assert client.serial(CHAIN) != before
    client.inside(f"systemctl stop {TIMER}")
    assert f"{TIMER} does not run" in client.run(playbook=CHECK, code=2)
    assert "changed=1" in client.run()


@pytest.mark.full
def test_a_ca_of_its_own(client):
    own = {"certificate_source": "self_signed", "certificate_ca_url": ""}
    client.run(**own)
    assert consistent(client)
    assert "DNS:localhost" in subject(client) and f"IP Address:{client.address}" in subject(client)
    assert client.inside("stat -c %a /var/lib/phoenix_certificate/own_ca/key.pem") == "600"
    assert "changed=0" in client.run(**own)
    before = client.serial(CHAIN)
    run = f"{PROGRAM} run 2>&1; echo exit $?"
    assert client.run_in(18 * 86400, run).endswith("exit 0")
    assert client.serial(CHAIN) == before, "more than a third is left"
    assert client.run_in(40 * 86400, run).endswith("exit 0")
    assert client.serial(CHAIN) != before, "it had expired"
    client.run(**own)


@pytest.mark.full
def test_files(client, tmp_path):
    authority = Authority("Files")
    chain, key = authority.leaf(client.full)
    _chain, other = authority.leaf(client.full)
    (tmp_path / "c.pem").write_text(chain)
    (tmp_path / "k.pem").write_text(key)
    service = {**WEB, "common_name": client.full, "source_certificate": str(tmp_path / "c.pem"),
               "source_key": str(tmp_path / "k.pem")}  # fmt: skip
    files = {"certificate_source": "files", "certificate_ca_url": "", "certificate_services": [service]}
    times = noted(client)
    client.run("-vvv", **files)
    assert client.inside(f"cat {CHAIN}") == chain.strip() and noted(client) == times + 1
    assert "changed=0" in client.run(**files)
    (tmp_path / "k.pem").write_text(other)
    assert "The key is that of another certificate." in client.run(code=2, **files)
    old = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=9)
    for names, begin, fault in (
        (("other.test",), None, f"It has not the name {client.full}; it is for other.test."),
        ((client.full,), old, "It has expired, at "),
    ):
        chain2, key2 = authority.leaf(*names, begin=begin, lifetime=datetime.timedelta(days=2))
        (tmp_path / "c.pem").write_text(chain2)
        (tmp_path / "k.pem").write_text(key2)
        assert fault in client.run(code=2, **files)
    assert client.inside(f"cat {CHAIN}") == chain.strip()
    # Files that somebody keeps in the container are followed.
    chain3, key3 = authority.leaf(client.full)
    client.put("/root/c.pem", chain)
    client.put("/root/k.pem", key)
    inside = {**service, "source_certificate": "/root/c.pem", "source_key": "/root/k.pem"}
    client.run(**{**files, "certificate_services": [inside]})
    client.put("/root/c.pem", chain3)
    client.put("/root/k.pem", key3)
    assert client.renew().endswith("exit 0")
    assert client.inside(f"cat {CHAIN}") == chain3.strip()


@pytest.mark.full
@pytest.mark.usefixtures("issued")
def test_none_takes_it_all_away_but_the_certificates(client):
    none = {"certificate_source": "none", "certificate_ca_url": ""}
    shown = client.run("--check", "--diff", **none)
    assert f"stop {TIMER}" in client.run("-v", **none) and TIMER in shown
    assert client.inside(f"ls /etc/systemd/system/{TIMER} {PROGRAM} 2>/dev/null || true") == ""
    assert client.inside(f"ls {CHAIN}") == CHAIN
    assert "changed=0" in client.run(**none)
