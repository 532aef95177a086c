# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_firewall on the lab, by files and by the REST API. Needs a lab that is up; CTIDs 850 to 859."""

from __future__ import annotations

import functools
import grp
import json
import re
from collections.abc import Iterator
from pathlib import Path

import lab_modules
import pytest
from lab_modules import api_options, create, destroy, pct, require_lab, through

pytestmark = pytest.mark.lab

FIREWALLS = Path("/etc/pve/firewall")
VMID = 850
FILE = FIREWALLS / f"{VMID}.fw"
call = functools.partial(lab_modules.call, "pct_firewall", vmid=VMID)
failure = functools.partial(lab_modules.failure, "pct_firewall", vmid=VMID)
NET = "name=eth0,bridge=vmbr0,firewall=1,ip=10.92.0.185/24"

SSH = {"type": "in", "action": "SSH(ACCEPT)", "source": "192.168.10.0/24", "comment": "the office"}
VLLM = {"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "8000", "log": "info"}
GROUP = {"type": "group", "action": "monitoring", "iface": "net0"}
OUT = {"type": "out", "action": "REJECT", "dest": "10.0.0.0/8", "enable": False}
PING = {"type": "in", "action": "DROP", "proto": "icmp", "icmp_type": "echo-request"}
LINES = {
    "ssh": "IN SSH(ACCEPT) -source 192.168.10.0/24 # the office",
    "vllm": "IN ACCEPT -p tcp -dport 8000 -log info",
    "group": "GROUP monitoring -i net0",
    "out": "|OUT REJECT -dest 10.0.0.0/8",
    "ping": "IN DROP -p icmp -icmp-type echo-request",
}


@pytest.fixture(scope="module", autouse=True)
def containers() -> Iterator[None]:
    """One container for all; its firewall doesn't outlast it."""
    require_lab()
    create(VMID, "--net0", NET)
    yield
    for vmid in range(850, 860):
        destroy(vmid)
        assert not (FIREWALLS / f"{vmid}.fw").exists()


@pytest.fixture(autouse=True)
def no_rules() -> None:
    FILE.unlink(missing_ok=True)


@pytest.fixture(params=["node", "api"])
def way(request) -> Iterator[None]:
    """A test goes each way to the node; a token is enough for firewalls."""
    with through(request.param, "token"):
        yield


def lines() -> list[str]:
    """The file's lines below [RULES]."""
    text = FILE.read_text().partition("[RULES]\n")[2] if FILE.exists() else ""
    return [line for line in text.splitlines() if line]


def write(*content: str) -> None:
    """A firewall that somebody else wrote."""
    FIREWALLS.mkdir(exist_ok=True)
    FILE.write_text("".join(f"{line}\n" for line in content))


def converge(**options) -> dict:
    """A run; what its check mode said before is what it did, and nothing is left to do after it."""
    before = FILE.read_bytes() if FILE.exists() else None
    shown = call(check=True, **options)
    assert (FILE.read_bytes() if FILE.exists() else None) == before
    done = call(**options)
    for key in ("changed", "steps", "rules", "rules_before", "enabled", "policy_in", "policy_out", "diff"):
        assert shown[key] == done[key], key
    content = FILE.read_bytes() if FILE.exists() else None
    again = call(**options)
    assert (again["changed"], again["steps"]) == (False, [])
    assert (FILE.read_bytes() if FILE.exists() else None) == content
    return done


def test_from_nothing_to_all(way):
    done = converge(enabled=True, policy_in="REJECT", policy_out="DROP", rules=[SSH, VLLM, GROUP, OUT, PING])
    assert lines() == [LINES[name] for name in ("ssh", "vllm", "group", "out", "ping")]
    assert {"enable: 1", "policy_in: REJECT", "policy_out: DROP"} <= set(FILE.read_text().splitlines())
    assert (done["enabled"], done["policy_in"], done["policy_out"]) == (True, "REJECT", "DROP")
    assert done["rules_before"] == []
    assert done["rules"][0] == {
        "type": "in", "action": "ACCEPT", "macro": "SSH", "source": "192.168.10.0/24", "comment": "the office",
        "enable": True,
    }  # fmt: skip
    assert done["rules"][3]["enable"] is False
    assert LINES["ssh"] in done["diff"]["after"]
    assert "warnings" not in done


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        ([SSH, VLLM, GROUP, OUT], 0),
        ([SSH, {**VLLM, "port": "8443"}, GROUP, OUT], 1),
        ([SSH, VLLM, PING, GROUP, OUT], 1),
        ([SSH, GROUP, OUT], 1),
        ([OUT, SSH, VLLM, GROUP], 2),
        ([PING, {**SSH, "comment": ""}, OUT, VLLM], 6),
        ([{**VLLM, "log": ""}], 5),
        ([PING, OUT, PING], 5),
        ([], 4),
    ],
)
def test_rules_one_by_one(way, wanted, steps):
    write("[RULES]", *(LINES[name] for name in ("ssh", "vllm", "group", "out")))
    done = converge(rules=wanted)
    assert len(done["steps"]) == steps, done["steps"]
    assert len(lines()) == len(wanted)


def test_options_alone_leave_rules_and_the_other_way_round(way):
    write("[OPTIONS]", "enable: 1", "policy_in: ACCEPT", "[RULES]", LINES["ssh"], LINES["out"])
    done = converge(policy_out="REJECT")
    assert done["steps"] == ["policy_out becomes REJECT (it was ACCEPT)"]
    assert lines() == [LINES["ssh"], LINES["out"]]
    done = converge(rules=[OUT])
    assert (done["enabled"], done["policy_in"], done["policy_out"]) == (True, "ACCEPT", "REJECT")
    assert converge(enabled=False)["enabled"] is False


def test_what_another_wrote_is_known(way):
    """Written by hand, in another order and case, with what is the default: nothing to do."""
    rule = "IN ssh(ACCEPT) -log nolog -source 192.168.10.0/24 #the office"
    write("[OPTIONS]", "enable: 1", "[RULES]", rule)
    done = call(enabled=True, policy_in="DROP", policy_out="ACCEPT", rules=[SSH])
    assert (done["changed"], done["steps"]) == (False, [])


def test_a_file_of_a_persons_hand_keeps_its_bytes():
    text = (
        "# mine\n[OPTIONS]\nenable: 1\nmacfilter: 0\n\n[ALIASES]\noffice 192.168.10.0/24 # old\n\n"
        f"[IPSET known] # yes\n10.0.0.1\n\n[RULES]\n# first\n{LINES['ssh']}\n\n"
        "# second\nIN ACCEPT --proto tcp -dport 8000\n"
    )
    write(text[:-1])
    converge(policy_in="REJECT", rules=[SSH, PING, {**VLLM, "log": ""}])
    assert FILE.read_text() == text.replace("macfilter: 0\n", "macfilter: 0\npolicy_in: REJECT\n").replace(
        f"{LINES['ssh']}\n", f"{LINES['ssh']}\n{LINES['ping']}\n"
    )
    status = FILE.stat()
    assert (status.st_mode & 0o777, status.st_uid, grp.getgrgid(status.st_gid).gr_name) == (0o640, 0, "www-data")
    assert [path.name for path in FIREWALLS.glob(f"{VMID}*")] == [FILE.name]


def test_a_bad_rule_is_refused_before_anything(way):
    said = failure(enabled=True, rules=[SSH, {"type": "in", "action": "ACCEPT", "port": "22"}])
    assert said == "CTID 850, rules[1].proto: missing, and dport needs it; write tcp, udp, sctp, dccp or udplite"
    assert not FILE.exists()


def test_a_container_that_isnt_there(way):
    assert "CTID 859 does not exist" in failure(vmid=859, rules=[SSH])
    shown = call(check=True, vmid=859, rules=[SSH], enabled=True)
    assert len(shown["steps"]) == 2
    assert not (FIREWALLS / "859.fw").exists()


def test_warns_of_rules_without_effect(way):
    create(851, "--net0", "name=eth0,bridge=vmbr0")
    done = call(vmid=851, enabled=True, rules=[SSH])
    # Newer ansible-core has more than a text for each.
    assert re.search(r"pct set 851 --net0 name=eth0,bridge=vmbr0,firewall=1,", json.dumps(done["warnings"]))
    pct("set", "851", "--net0", "name=eth0,bridge=vmbr0,firewall=1")
    assert "warnings" not in call(vmid=851, enabled=True, rules=[SSH])
    pct("destroy", "851")
    assert not (FIREWALLS / "851.fw").exists()


def test_who_may_only_look_is_told_so():
    said = failure(**api_options("viewer"), rules=[SSH])
    assert "CTID 850" in said
    assert "Permission check failed" in said
    assert not FILE.exists()


def test_a_node_that_cant_be_written_to_is_said(tmp_path):
    FIREWALLS.mkdir(exist_ok=True)
    # A folder in the file's place: nothing can be renamed onto it.
    FILE.mkdir()
    try:
        said = failure(rules=[SSH])
    finally:
        FILE.rmdir()
    assert f"{FILE} can't be" in said
    assert [path.name for path in FIREWALLS.glob(f"{VMID}*")] == []
