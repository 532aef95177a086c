# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's REST API, asked by proxmoxer: logins, permissions, tasks, errors. CTIDs 790 to 793."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from proxmoxer import ProxmoxAPI
from proxmoxer.core import AuthenticationError, ResourceException

pytestmark = pytest.mark.lab

ARCHIVE = "local:vztmpl/debian-12-lab_12_amd64.tar.zst"
ONE, TWO, THREE, NONE = 790, 791, 792, 793
CONF = Path("/etc/pve/lxc")
FIREWALL = Path(f"/etc/pve/firewall/{ONE}.fw")
API_CALLS, PCT_CALLS = (Path(f"/var/log/phoenix-lab/{name}-calls.log") for name in ("api", "pct"))
UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"


def pct(*words: str) -> subprocess.CompletedProcess[str]:
    argv = ["/usr/sbin/pct", *words]
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False)


@pytest.fixture(scope="session")
def known() -> dict[str, Any]:
    """How to log in, as `lab up` wrote it down."""
    path = Path("/var/lib/phoenix-lab/api.json")
    if not path.exists():
        pytest.skip("the lab is not up")
    assert path.stat().st_mode & 0o777 == 0o600
    return json.loads(path.read_text())


def login(known: dict[str, Any], kind: str, host: str = "127.0.0.1") -> ProxmoxAPI:
    """As root@pam with a ticket, with a token of root@pam, or with the token of someone who may only look."""
    if kind == "ticket":
        secrets = {"user": known["user"], "password": known["password"]}
    else:
        prefix = "viewer_" if kind == "viewer" else ""
        secrets = {"user": known[f"{prefix}user"], "token_name": known[f"{prefix}token_id"]}
        secrets["token_value"] = known[f"{prefix}token_secret"]
    return ProxmoxAPI(host, port=known["port"], verify_ssl=known["ca"], timeout=20, **secrets)


@pytest.fixture(scope="module")
def ticket(known: dict[str, Any]) -> ProxmoxAPI:
    return login(known, "ticket")


@pytest.fixture(scope="module")
def token(known: dict[str, Any]) -> ProxmoxAPI:
    return login(known, "token")


@pytest.fixture(scope="module")
def viewer(known: dict[str, Any]) -> ProxmoxAPI:
    return login(known, "viewer")


@pytest.fixture(scope="module", params=["ticket", "token"])
def api(request: pytest.FixtureRequest) -> ProxmoxAPI:
    """Both ways to log in as root@pam."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", autouse=True)
def container(known: dict[str, Any], ticket: ProxmoxAPI) -> Iterator[None]:
    """A stopped container, made by the API."""

    def remove() -> None:
        for vmid in (ONE, TWO, THREE):
            if (CONF / f"{vmid}.conf").exists():
                pct("unlock", str(vmid))
                assert pct("destroy", str(vmid), "--force", "--destroy-unreferenced-disks").returncode == 0

    remove()
    upid = ticket.nodes(known["node"]).lxc.post(
        vmid=ONE, ostemplate=ARCHIVE, rootfs="local-btrfs:2", memory=128, swap=0, unprivileged=1, hostname="api",
        features="nesting=1", net0="name=eth0,bridge=vmbr0,ip=10.92.0.235/24", password="only-in-the-shadow",
    )  # fmt: skip
    assert ended(ticket, upid)["exitstatus"] == "OK"
    yield
    remove()


def lxc(api: ProxmoxAPI, vmid: int | None = None) -> Any:
    """The containers of the only node, or one of them."""
    place = api.nodes(api.nodes.get()[0]["node"]).lxc
    return place if vmid is None else place(vmid)


def ended(api: ProxmoxAPI, upid: str, seconds: float = 30) -> dict[str, Any]:
    """The status of a task that is over."""
    assert re.fullmatch(r"UPID:[^:]+:[0-9A-F]{8}:[0-9A-F]{8}:[0-9A-F]{8}:\w+:\d+:root@pam(!lab)?:", upid), upid
    deadline = time.monotonic() + seconds
    while True:
        status = api.nodes(upid.split(":")[1]).tasks(upid).status.get()
        if status["status"] == "stopped":
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def refused(call: Any, status: int, content: str, errors: dict[str, str] | None = None, **given: Any) -> None:
    """A request that is answered with this status, reason and errors."""
    with pytest.raises(ResourceException) as answer:
        call(**given)
    got = answer.value
    found = {name: text.strip() for name, text in (got.errors or {}).items()}
    assert (got.status_code, got.content, found) == (status, content, errors or {})


def wrong(call: Any, errors: dict[str, str], **given: Any) -> None:
    refused(call, 400, "Parameter verification failed.", errors, **given)


# --- logins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.92.0.1"])
def test_the_certificate_is_good_for_every_name(known: dict[str, Any], host: str) -> None:
    if host == "10.92.0.1":
        host = known["host"]
    assert login(known, "token", host).version.get()["release"] == ticket_release()


def ticket_release() -> str:
    return re.findall(r"sub release \{\s*return '([\d.]+)'", Path("/usr/share/perl5/PVE/pvecfg.pm").read_text())[0]


def test_the_certificate_needs_the_labs_ca(known: dict[str, Any]) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"https://127.0.0.1:{known['port']}/api2/json/version", verify=True, timeout=10)


def test_a_wrong_password_or_user(known: dict[str, Any]) -> None:
    url = f"https://127.0.0.1:{known['port']}/api2/json/access/ticket"
    for data in ({"username": "root@pam", "password": "x"}, {"username": "x@pam", "password": known["password"]}):
        answer = requests.post(url, data=data, verify=known["ca"], timeout=10)
        assert (answer.status_code, answer.reason, answer.json()) == (401, "authentication failure", {"data": None})
    with pytest.raises(AuthenticationError):
        login({**known, "password": "x"}, "ticket")


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "No ticket"),
        ({"Cookie": "PVEAuthCookie=PVE:root@pam:00000000::x"}, "permission denied - invalid PVE ticket"),
        ({"Authorization": "PVEAPIToken=root@pam!lab=x"}, "invalid token value!"),
        ({"Authorization": "PVEAPIToken=root@pam!nope=x"}, "no such token 'nope' for user 'root@pam'"),
        ({"Authorization": "PVEAPIToken=no@pve!lab=x"}, "no such user ('no@pve')"),
    ],
)
def test_no_login(known: dict[str, Any], headers: dict[str, str], reason: str) -> None:
    answer = requests.get(
        f"https://127.0.0.1:{known['port']}/api2/json/version", headers=headers, verify=known["ca"], timeout=10
    )
    assert (answer.status_code, answer.reason) == (401, reason)


def test_a_ticket_writes_only_with_its_csrf_token(known: dict[str, Any], ticket: ProxmoxAPI) -> None:
    url = f"https://127.0.0.1:{known['port']}/api2/json/nodes/{known['node']}/lxc/{ONE}/config"
    cookies = {"PVEAuthCookie": ticket.get_tokens()[0]}
    for headers in ({}, {"CSRFPreventionToken": "00000000:x"}):
        answer = requests.put(url, data={"onboot": 1}, cookies=cookies, headers=headers, verify=known["ca"], timeout=10)
        assert (answer.status_code, answer.reason) == (401, "Permission denied - invalid csrf token")
    assert requests.get(url, cookies=cookies, verify=known["ca"], timeout=10).status_code == 200


def test_a_ticket_renews_itself(known: dict[str, Any], ticket: ProxmoxAPI) -> None:
    answer = ticket.access.ticket.post(username="root@pam", password=ticket.get_tokens()[0])
    assert answer["username"] == "root@pam"


def pct_calls() -> str:
    """What was logged of pct; nothing when nobody has called it since the lab is up."""
    return PCT_CALLS.read_text() if PCT_CALLS.exists() else ""


def test_writes_are_counted_without_values_and_are_no_pct_calls(api: ProxmoxAPI) -> None:
    before, calls = API_CALLS.read_text(), pct_calls()
    lxc(api, ONE).config.put(description="a secret")
    lxc(api, ONE).config.get()
    new = API_CALLS.read_text()[len(before) :]
    mine = [line.split(" ", 1)[1] for line in new.splitlines() if f"/lxc/{ONE}" in line]
    assert [re.sub("/nodes/[^/]+", "", line) for line in mine] == [f"PUT /lxc/{ONE}/config"]
    assert f"set {ONE}" not in pct_calls()[len(calls) :]
    for log in ("api", "api-calls"):
        text = Path(f"/var/log/phoenix-lab/{log}.log").read_text()
        assert "a secret" not in text and "only-in-the-shadow" not in text
    lxc(api, ONE).config.put(delete="description")


# --- reading ---------------------------------------------------------------------------------------------------------


def test_config_has_types_a_digest_raw_lines_and_a_decoded_description(api: ProxmoxAPI) -> None:
    path = CONF / f"{ONE}.conf"
    before = path.read_text()
    raw = "lxc.idmap: u 0 100000 65536\nlxc.idmap: g 0 100000 65536\n"
    path.write_text(f"#l\u00e4ne one%3A\n#two\n{before}{raw}".replace("\u00e4", "%C3%A4"))
    try:
        config = lxc(api, ONE).config.get()
        digest = subprocess.run(["sha1sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
    finally:
        path.write_text(before)
    assert (config["memory"], config["swap"], config["unprivileged"], config["hostname"]) == (128, 0, 1, "api")
    assert config["lxc"] == [["lxc.idmap", "u 0 100000 65536"], ["lxc.idmap", "g 0 100000 65536"]]
    assert config["description"] == "l\u00e4ne one:\ntwo\n"
    assert config["digest"] == digest


def test_who_is_there(api: ProxmoxAPI, known: dict[str, Any]) -> None:
    assert [entry["node"] for entry in api.nodes.get()] == [known["node"]]
    assert {entry["type"] for entry in api.cluster.resources.get()} == {"lxc", "node", "storage"}
    (entry,) = (one for one in api.cluster.resources.get(type="vm") if one["vmid"] == ONE)
    assert (entry["id"], entry["name"], entry["status"], entry["template"]) == (f"lxc/{ONE}", "api", "stopped", 0)
    assert [one["name"] for one in lxc(api).get() if one["vmid"] == ONE] == ["api"]
    assert api.cluster.status.get()[0]["local"] == 1
    assert int(api.cluster.nextid.get()) not in {one["vmid"] for one in lxc(api).get()}
    wrong(api.cluster.nextid.get, {"vmid": f"VM {ONE} already exists"}, vmid=ONE)
    storages = {entry["storage"]: entry["type"] for entry in api.nodes(known["node"]).storage.get(content="rootdir")}
    assert storages == {"local-btrfs": "btrfs", "local-dir": "dir"}
    volids = [entry["volid"] for entry in api.nodes(known["node"]).storage("local").content.get(content="vztmpl")]
    assert ARCHIVE in volids


def test_errors_in_genuine_words(api: ProxmoxAPI, known: dict[str, Any]) -> None:
    here = lxc(api, ONE)
    place = f"nodes/{known['node']}/lxc/{NONE}.conf"
    refused(lxc(api, NONE).config.get, 500, f"Configuration file '{place}' does not exist")
    refused(here.config.get, 500, "snapshot 'nope' does not exist", snapshot="nope")
    wrong(here.config.put, {"lxc.idmap": UNDEFINED}, **{"lxc.idmap": "u 0 1 1"})
    wrong(here.config.put, {"memory": "type check ('integer') failed - got 'lots'"}, memory="lots")
    wrong(here.config.put, {"net1": "invalid format - format error\nnet1.name: property is missing and it is not "
                            "optional"}, net1="bridge=vmbr0")  # fmt: skip
    wrong(here.clone.post, {"newid": "property is missing and it is not optional"})
    wrong(
        api.nodes(known["node"]).lxc(7).config.get, {"vmid": "invalid format - value does not look like a valid VM ID"}
    )
    refused(here.config.put, 500, "unable to modify read-only option: 'unprivileged'", unprivileged=0)
    said = "detected modified configuration - file changed by other user? Try again."
    refused(here.config.put, 500, said, onboot=1, digest="0" * 40)
    refused(here.config.put, 500, "no options specified")
    refused(here.status.stop.post, 500, f"CT {ONE} not running")
    refused(api.nodes(known["node"]).nothing.get, 501, f"Method 'GET /nodes/{known['node']}/nothing' not implemented")
    with pytest.raises(ResourceException, match="hostname lookup 'other' failed"):
        api.nodes("other").lxc.get()


# --- permissions -----------------------------------------------------------------------------------------------------

TOKEN_MAY_NOT = [
    ({"dev0": "/dev/null"}, "configuring device passthrough is only allowed for root@pam"),
    ({"mp0": "/tmp,mp=/x"}, "mount point type bind is only allowed for root@pam"),
    ({"mp0": "/dev/loop0,mp=/x"}, "mount point type device is only allowed for root@pam"),
    ({"features": "nesting=1,keyctl=1"}, "changing feature flags (except nesting) is only allowed for root@pam"),
    ({"hookscript": "local:snippets/x"}, "changing the hookscript is only allowed for root@pam"),
]


@pytest.mark.parametrize(("given", "reason"), TOKEN_MAY_NOT)
def test_a_token_of_root_is_not_root(token: ProxmoxAPI, given: dict[str, str], reason: str) -> None:
    before = (CONF / f"{ONE}.conf").read_text()
    refused(lxc(token, ONE).config.put, 403, f"Permission check failed ({reason})", onboot=1, **given)
    assert (CONF / f"{ONE}.conf").read_text() == before
    create = {"vmid": TWO, "ostemplate": ARCHIVE, "rootfs": "local-btrfs:1", "unprivileged": 1}
    refused(lxc(token).post, 403, f"Permission check failed ({reason})", **create, **given)


def test_a_token_may_set_nesting_and_keep_what_is_there(token: ProxmoxAPI, ticket: ProxmoxAPI) -> None:
    lxc(ticket, ONE).config.put(features="nesting=1,keyctl=1")
    lxc(token, ONE).config.put(features="keyctl=1,nesting=0")
    said = "Permission check failed (changing feature flags (except nesting) is only allowed for root@pam)"
    refused(lxc(token, ONE).config.put, 403, said, delete="features")
    lxc(ticket, ONE).config.put(features="nesting=1")
    said = "Permission check failed (changing feature flags for privileged container is only allowed for root@pam)"
    create = {"vmid": TWO, "ostemplate": ARCHIVE, "rootfs": "local-btrfs:1", "unprivileged": 0}
    refused(lxc(token).post, 403, said, **create, features="nesting=1")
    wrong(lxc(token, ONE).status.start.post, {"skiplock": "Only root may use this option."}, skiplock=1)


def test_a_ticket_of_root_may(ticket: ProxmoxAPI) -> None:
    lxc(ticket, ONE).config.put(dev0="/dev/null,mode=0666", mp0="/tmp,mp=/x", features="nesting=1,fuse=1")
    lxc(ticket, ONE).config.put(delete="dev0,mp0", features="nesting=1")


def test_who_may_only_look(viewer: ProxmoxAPI, known: dict[str, Any]) -> None:
    here = lxc(viewer, ONE)
    assert here.config.get()["memory"] == 128
    assert here.status.current.get()["status"] == "stopped"
    for call, privilege, given in (
        (here.config.put, "VM.Config.Memory", {"memory": 256}),
        (here.config.put, "VM.Config.CPU", {"cores": 1}),
        (here.config.put, "VM.Config.Network", {"hostname": "x"}),
        (here.config.put, "VM.Config.Options", {"onboot": 1}),
        (here.config.put, "VM.Config.Disk", {"delete": "mp0"}),
        (here.status.start.post, "VM.PowerMgmt", {}),
        (here.snapshot.post, "VM.Snapshot", {"snapname": "snap"}),
        (here.clone.post, "VM.Clone", {"newid": TWO}),
        (here.delete, "VM.Allocate", {}),
        (here.firewall.options.put, "VM.Config.Network", {"enable": 1}),
    ):
        refused(call, 403, f"Permission check failed (/vms/{ONE}, {privilege})", **given)


# --- changing, with tasks --------------------------------------------------------------------------------------------


def test_what_waits_for_a_restart(api: ProxmoxAPI) -> None:
    here = lxc(api, ONE)
    assert ended(api, here.status.start.post())["exitstatus"] == "OK"
    try:
        here.config.put(nameserver="10.9.9.9", memory=140)
        assert here.config.get()["nameserver"] == "10.9.9.9"
        assert "nameserver" not in here.config.get(current=1)
        entries = {entry["key"]: entry for entry in here.pending.get()}
        assert entries["nameserver"] == {"key": "nameserver", "pending": "10.9.9.9"}
        assert entries["memory"] == {"key": "memory", "value": 140}
        here.config.put(revert="nameserver", memory=128)
        status = here.status.current.get()
        assert (status["status"], status["name"], status["vmid"]) == ("running", "api", ONE)
        assert status["uptime"] < 60 < status["mem"]
        deadline = time.monotonic() + 20  # the guest's own boot gives the address
        while {entry["name"]: entry.get("inet") for entry in here.interfaces.get()}["eth0"] != "10.92.0.235/24":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        refused(here.status.start.post, 500, f"CT {ONE} already running")
        refused(here.delete, 500, f"unable to destroy CT {ONE} - container is running")
        assert ended(api, here.status.reboot.post(timeout=10))["exitstatus"] == "OK"
    finally:
        assert ended(api, here.status.stop.post())["exitstatus"] == "OK"


def test_a_task_runs_behind_the_request_and_is_listed(api: ProxmoxAPI, known: dict[str, Any]) -> None:
    """Somebody holds the container's flock: the task waits, is seen, and goes on."""
    tasks = api.nodes(known["node"]).tasks
    with subprocess.Popen(["flock", "-F", f"/run/lock/lxc/pve-config-{ONE}.lock", "sleep", "1.5"]):
        time.sleep(0.3)
        upid = lxc(api, ONE).snapshot.post(snapname="waiting")
        assert tasks(upid).status.get()["status"] == "running"
        (entry,) = tasks.get(vmid=ONE, source="active", typefilter="vzsnapshot")[:1]
        assert (entry["upid"], "endtime" in entry) == (upid, False)
        lines = Path("/var/log/pve/tasks/active").read_text().splitlines()
        assert f"{upid} 0" in lines
        pid, started = (int(part, 16) for part in upid.split(":")[2:4])
        assert int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]) == started
    assert ended(api, upid)["exitstatus"] == "OK"
    log = [line["t"] for line in tasks(upid).log.get()]
    assert log == ["trying to acquire lock... OK", "TASK OK"]
    assert tasks.get(vmid=ONE)[0]["upid"] == upid
    assert re.search(rf"^{re.escape(upid)} [0-9A-F]{{8}} OK$", Path("/var/log/pve/tasks/index").read_text(), re.M)
    ended(api, lxc(api, ONE).snapshot("waiting").delete())


def test_a_task_that_fails_says_why(api: ProxmoxAPI, ticket: ProxmoxAPI) -> None:
    lxc(ticket, ONE).config.put(lock="backup")
    try:
        status = ended(api, lxc(api, ONE).status.start.post())
        assert status["exitstatus"] == "CT is locked (backup)"
        refused(lxc(api, ONE).config.put, 500, "CT is locked (backup)", onboot=1)
    finally:
        pct("unlock", str(ONE))


def test_a_task_that_is_stopped(api: ProxmoxAPI, known: dict[str, Any]) -> None:
    with subprocess.Popen(["flock", "-F", f"/run/lock/lxc/pve-config-{ONE}.lock", "sleep", "20"]) as holder:
        time.sleep(0.3)
        upid = lxc(api, ONE).status.start.post()
        task = api.nodes(known["node"]).tasks(upid)
        # On a machine that is busy the worker may not even have begun.
        end = time.monotonic() + 5
        while not any("acquire lock" in line["t"] for line in task.log.get()) and time.monotonic() < end:
            time.sleep(0.1)
        task.delete()
        assert ended(api, upid)["exitstatus"] == "interrupted by signal"
        holder.terminate()


def test_a_task_with_warnings(api: ProxmoxAPI, ticket: ProxmoxAPI) -> None:
    lxc(ticket, ONE).config.put(features="nesting=0")
    try:
        assert ended(api, lxc(api, ONE).status.start.post())["exitstatus"] == "WARNINGS: 1"
    finally:
        ended(api, lxc(api, ONE).status.stop.post())
        lxc(ticket, ONE).config.put(features="nesting=1")


def test_snapshot_rollback_and_their_configs(api: ProxmoxAPI) -> None:
    here = lxc(api, ONE)
    assert ended(api, here.snapshot.post(snapname="first", description="one"))["exitstatus"] == "OK"
    try:
        here.config.put(memory=150)
        assert here.config.get(snapshot="first")["memory"] == 128
        assert here.snapshot("first").config.get()["description"] == "one\n"
        here.snapshot("first").config.put(description="other")
        first, current = here.snapshot.get()
        assert (first["name"], first["description"], current["name"]) == ("first", "other\n", "current")
        assert (current["parent"], current["running"]) == ("first", 0)
        assert abs(first["snaptime"] - time.time()) < 60
        assert ended(api, here.snapshot("first").rollback.post())["exitstatus"] == "OK"
        assert here.config.get()["memory"] == 128
        wrong(here.snapshot.post, {"snapname": "invalid format - invalid configuration ID 'x'"}, snapname="x")
    finally:
        assert ended(api, here.snapshot("first").delete())["exitstatus"] == "OK"
    assert ended(api, here.snapshot("first").delete())["exitstatus"] == "snapshot 'first' does not exist"


def test_clone_resize_template_destroy(api: ProxmoxAPI) -> None:
    upid = lxc(api, ONE).clone.post(newid=TWO, full=1, hostname="copy", storage="local-btrfs")
    assert "lock: disk" in (CONF / f"{ONE}.conf").read_text() or ended(api, upid)
    assert ended(api, upid)["exitstatus"] == "OK"
    two = lxc(api, TWO)
    assert two.config.get()["hostname"] == "copy"
    refused(two.resize.put, 500, "unable to shrink disk size", disk="rootfs", size="1G")
    assert ended(api, two.resize.put(disk="rootfs", size="+1G"))["exitstatus"] == "OK"
    assert "size=3G" in two.config.get()["rootfs"]
    assert two.template.post() is None
    deadline = time.monotonic() + 10
    while two.config.get().get("template") != 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ended(api, two.clone.post(newid=THREE))["exitstatus"] == "OK"
    refused(two.clone.post, 500, "parameter 'storage' not allowed for linked clones", newid=NONE, storage="local-dir")
    for vmid in (THREE, TWO):
        assert ended(api, lxc(api, vmid).delete(purge=1))["exitstatus"] == "OK"
        assert not (CONF / f"{vmid}.conf").exists()


def test_the_same_source_twice_at_once(token: ProxmoxAPI) -> None:
    first = lxc(token, ONE).clone.post(newid=TWO, full=1)
    with pytest.raises(ResourceException, match=r"CT is locked \(disk\)"):
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:  # until the first one has its lock
            if "lock: disk" in (CONF / f"{ONE}.conf").read_text():
                lxc(token, ONE).clone.post(newid=THREE, full=1)
    assert ended(token, first)["exitstatus"] == "OK"
    assert ended(token, lxc(token, TWO).delete())["exitstatus"] == "OK"


def test_volumes_come_and_go(api: ProxmoxAPI) -> None:
    here = lxc(api, ONE)
    for place in ("local-btrfs", "local-dir"):
        here.config.put(mp0=f"{place}:1,mp=/data")
        assert re.fullmatch(rf"{place}:{ONE}/vm-{ONE}-disk-\d\.subvol,mp=/data,size=1G", here.config.get()["mp0"])
        assert ended(api, here.clone.post(newid=TWO, full=1))["exitstatus"] == "OK"
        assert lxc(api, TWO).config.get()["mp0"].startswith(f"{place}:{TWO}/vm-{TWO}-disk-")
        assert ended(api, lxc(api, TWO).delete())["exitstatus"] == "OK"
        here.config.put(delete="mp0")
        here.config.put(delete="unused0")


# --- firewall --------------------------------------------------------------------------------------------------------


def test_firewall_rules_one_by_one(api: ProxmoxAPI) -> None:
    firewall = lxc(api, ONE).firewall
    FIREWALL.unlink(missing_ok=True)
    assert firewall.rules.get() == []
    firewall.options.put(enable=1, policy_in="DROP")
    firewall.rules.post(type="in", action="DROP", enable=1)
    firewall.rules.post(
        type="in", action="ACCEPT", source="10.0.0.0/8", proto="tcp", dport="22", log="nolog", comment="ssh", enable=1
    )
    firewall.rules.post(type="out", action="ACCEPT", macro="DNS")
    assert FIREWALL.read_text() == (
        "[OPTIONS]\n\nenable: 1\npolicy_in: DROP\n\n[RULES]\n\n|OUT DNS(ACCEPT)\n"
        "IN ACCEPT -source 10.0.0.0/8 -p tcp -dport 22 -log nolog # ssh\nIN DROP\n\n"
    )
    assert FIREWALL.stat().st_mode & 0o777 == 0o640
    rules = firewall.rules.get()
    assert [(rule["pos"], rule["type"], rule["action"], rule["enable"]) for rule in rules] == [
        (0, "out", "ACCEPT", 0), (1, "in", "ACCEPT", 1), (2, "in", "DROP", 1),
    ]  # fmt: skip
    firewall.rules(0).put(moveto=3)
    assert [rule["type"] for rule in firewall.rules.get()] == ["in", "in", "out"]
    firewall.rules(2).put(enable=1, comment="names", digest=firewall.rules.get()[0]["digest"])
    assert firewall.rules(2).get()["comment"] == "names"
    said = "detected modified configuration - file changed by other user? Try again."
    refused(firewall.rules(0).delete, 500, said, digest="0" * 40)
    firewall.rules(2).put(delete="comment")
    assert "comment" not in firewall.rules(2).get()
    firewall.rules(1).delete()
    assert FIREWALL.read_text().endswith(
        "IN ACCEPT -source 10.0.0.0/8 -p tcp -dport 22 -log nolog # ssh\nOUT DNS(ACCEPT)\n\n"
    )
    refused(firewall.rules(7).get, 500, "no rule at position 7")
    wrong(firewall.rules.post, {"nope": UNDEFINED}, type="in", action="DROP", nope=1)
    firewall.options.put(delete="enable,policy_in")
    for _rule in range(2):
        firewall.rules(0).delete()
    assert not FIREWALL.exists()


def test_firewall_goes_with_its_container(api: ProxmoxAPI) -> None:
    lxc(api, ONE).firewall.options.put(enable=1)
    try:
        assert ended(api, lxc(api, ONE).clone.post(newid=TWO, full=1))["exitstatus"] == "OK"
        copy = FIREWALL.with_name(f"{TWO}.fw")
        assert copy.read_text() == FIREWALL.read_text()
        assert ended(api, lxc(api, TWO).delete())["exitstatus"] == "OK"
        assert not copy.exists()
    finally:
        lxc(api, ONE).firewall.options.put(delete="enable")
