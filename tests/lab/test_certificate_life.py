# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates that live for less than a minute, and a CA that is hard to get on with (Pebble), in real containers."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator

import pytest
from acme_site import CA, PEBBLE_URL, Client
from lab_modules import require_lab, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.full]

CHAIN = "/etc/phoenix-hypervisor/certificates/web/fullchain.pem"
SERVICE, TIMER = "phoenix_certificate.service", "phoenix_certificate.timer"


@pytest.fixture(scope="module")
def ca(tmp_path_factory) -> Iterator[CA]:
    """The CA's container, with both CAs."""
    require_lab()
    ca = CA(tmp_path_factory.mktemp("ca"))
    try:
        ca.create("pebble", "curl")
        yield ca
    finally:
        ca.close()


@pytest.fixture(scope="module")
def client(ca, tmp_path_factory) -> Iterator[Client]:
    """A container whose timer looks every five seconds."""
    client = Client(561, "10.92.0.21", ca, tmp_path_factory.mktemp("client"))
    try:
        client.create()
        client.variables = {
            "certificate_services": [{"name": "web", "common_name": client.full}],
            "certificate_check": "*:*:0/5",
        }
        yield client
    finally:
        client.close()


def ends(client: Client) -> float:
    """When what is there ends, chain and all."""
    return client.status()["certificates"]["web"]["not_after"] or 0


def test_it_renews_by_itself_again_and_again(client):
    """Each is worth a minute; at a third of that there is a new one."""
    minute = datetime.timedelta(minutes=1)
    client.ca.start(minute)
    client.run()
    for _number in range(2):
        before, end = client.serial(CHAIN), ends(client)
        # The intermediate of the CA is what ends first, so it gets another one.
        client.ca.start(minute)
        wait_until(lambda before=before: time.sleep(1) or client.serial(CHAIN) != before, 120)
        assert time.time() < end, "it was valid all the time"


def test_the_ca_comes_back_after_they_have_expired(client):
    client.ca.start(datetime.timedelta(seconds=40))
    client.inside(f"rm {CHAIN}")
    wait_until(lambda: time.sleep(1) or client.serial(CHAIN), 60)
    client.ca.stop()
    wait_until(lambda: time.sleep(1) or time.time() > ends(client) + 5, 120)
    before = client.serial(CHAIN)
    assert client.inside(f"systemctl is-active {TIMER}") == "active"
    client.ca.start()
    wait_until(lambda: time.sleep(0.5) or client.serial(CHAIN) != before, 60)
    # What is told of it is written after it.
    wait_until(lambda: ends(client) > time.time() + 3600)


@pytest.mark.parametrize("challenge", ["http-01", "tls-alpn-01"])
def test_a_ca_that_refuses_nonces_and_validates_slowly(client, challenge):
    """Three of ten good nonces are refused; each validation waits some seconds; a restart has forgotten everything."""
    roots = client.folder / "roots.pem"

    def start() -> dict:
        root = client.ca.start_pebble(PEBBLE_WFE_NONCEREJECT="30", PEBBLE_VA_SLEEPTIME="4")
        roots.write_text(client.ca.authority.pem + root + "\n")
        return {"certificate_ca_roots": str(roots), "certificate_acme_directory": f"{PEBBLE_URL}/dir",
                "certificate_challenge": challenge, "certificate_validation_timeout": 90}  # fmt: skip

    try:
        client.run(**start())
        for _number in range(3):
            before = client.serial(CHAIN)
            said = client.renew("force")
            assert said.endswith("exit 0"), said
            assert client.serial(CHAIN) != before
        assert "a CA that is not trusted any more" in client.run("--diff", **start())
    finally:
        client.ca.stop_pebble()
