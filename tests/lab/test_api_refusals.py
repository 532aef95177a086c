# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the REST API can't do, or doesn't allow, is one sentence before anything changes. CTIDs 870 to 872."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_modules import API_CALLS, OSTEMPLATE, api_options, call, destroy, failure, info, require_lab

pytestmark = pytest.mark.lab

VMID = 870


@pytest.fixture(scope="module", autouse=True)
def container() -> Iterator[None]:
    require_lab()
    destroy(872, 871, 870)
    call(vmid=VMID, ostemplate=OSTEMPLATE, storage="local-btrfs", disk_gb=1, unprivileged=True,
         config={"features": {"nesting": 1}})  # fmt: skip
    yield
    destroy(872, 871, 870)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"devices": [{"path": "/dev/fuse"}]}, "dev0"),
        ({"config": {"features": {"nesting": 1, "keyctl": 1}}}, "features"),
        ({"config": {"hookscript": "local:snippets/x"}}, "hookscript"),
        ({"mounts": [{"source": "/srv", "mp": "/srv"}]}, "mp0"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_what_only_root_may_do_is_said_to_a_token(options, what, check):
    before = API_CALLS.read_text()
    message = failure(vmid=VMID, check=check, **options, **api_options("token"))
    assert f"{what} is what only root@pam may set, and no token counts as root@pam" in message
    assert "without api_host" in message
    assert API_CALLS.read_text() == before


def test_a_token_may_do_the_rest():
    options = api_options("token")
    call(vmid=VMID, config={"memory": 300, "features": {"nesting": 0}, "tags": "a"}, disk_gb=2, **options)
    call(vmid=871, clone={"vmid": VMID}, config={"hostname": "clone"}, **options)
    call(vmid=871, state="absent", **options)
    assert info(VMID)["config"]["memory"] == "300"


@pytest.mark.parametrize("check", [True, False])
def test_what_nobody_may_do_is_said(check):
    message = failure(vmid=VMID, check=check, raw=["lxc.cap.drop: sys_boot"], **api_options())
    assert "raw lines: nothing → lxc.cap.drop: sys_boot: the REST API can't do that, for nobody" in message


def test_a_right_that_is_missing_is_named():
    message = failure(vmid=VMID, config={"memory": 301}, **api_options("viewer"))
    assert f"(/vms/{VMID}, VM.Config.Memory)" in message
    assert "give the user or token a role with that right" in message
    assert info(VMID)["config"]["memory"] != "301"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"api_password": "wrong"}, "refuses the password of root@pam"),
        ({"api_password": None}, "api_host needs api_password, or api_token_id"),
        ({"api_user": None}, "api_host needs api_user"),
        ({"api_token_id": "none", "api_token_secret": "x"}, "refuses the login of root@pam"),
        ({"api_token_id": "none"}, "api_token_id needs api_token_secret"),
        ({"api_port": 1}, "can't be reached: connection refused; correct api_host or api_port"),
        ({"api_host": "no-such-host.invalid"}, "no-such-host.invalid:8006 can't be reached"),
        ({"ca_path": None}, "can't be trusted"),
        ({"ca_path": "/no/such/file"}, "/no/such/file"),
        ({"node": "other"}, "has no node other; name one in `node`: "),
    ],
)
def test_no_way_in_is_one_sentence_with_a_remedy(options, words):
    message = failure(vmid=VMID, **{**api_options(), **options})
    assert words in message
    assert "\n" not in message


def test_without_validation_and_without_a_ca():
    options = {**api_options(), "ca_path": None, "validate_certs": False}
    assert call("pct_container_info", vmids=[VMID], **options)["containers"][0]["exists"]


def test_both_ways_say_the_same_of_a_container():
    here, there = (call("pct_container_info", vmids=[VMID, 872], **options) for options in ({}, api_options("token")))
    assert here["containers"] == there["containers"]


def test_no_secret_is_in_a_result(capfd):
    options = api_options()
    result = call(vmid=VMID, config={"memory": 302}, **options)
    assert options["api_password"] not in str(result)
    assert options["api_password"] not in Path("/var/log/phoenix-lab/api.log").read_text()
