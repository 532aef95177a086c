# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_container when others are at work, processes die and disks are full. Needs a lab that is up; CTIDs 500 to 539."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab_modules import (
    API_CALLS,
    CONFIGS,
    OSTEMPLATE,
    PCT_CALLS,
    call,
    calls,
    converge,
    destroy,
    failure,
    inside,
    names,
    pct,
    release,
    require_lab,
    result_of,
    start_module,
    through,
    unchanged,
    volumes,
    wait_until,
    way,
)

pytestmark = pytest.mark.lab

STORAGES = Path("/etc/pve/storage.cfg")
TASKS = Path("/var/log/pve/tasks")
DELAY = Path("/var/lib/phoenix-lab/pct-delay")
FULL = Path("/var/lib/phoenix-lab/trouble-full")
DEVICE = Path("/dev/phoenix-trouble")

# A template whose init is a loop, so that a container is up as soon as it runs.
SOURCE = 500
INIT = "#!/bin/sh\ntrap 'exit 0' PWR TERM INT\nwhile :; do sleep 1000 & wait $!; done\n"
ONE = 510


@pytest.fixture(scope="module", autouse=True)
def lab() -> Iterator[None]:
    """The template; and all that these tests make is gone before and after, also when one fails."""
    require_lab()

    remove_all()
    try:
        make_source()
        yield
    finally:
        remove_all()


def remove_all() -> None:
    remove(*range(539, 499, -1))
    DEVICE.unlink(missing_ok=True)


def make_source() -> None:
    pct("create", str(SOURCE), OSTEMPLATE, "--rootfs", "local-btrfs:1", "--unprivileged", "1", "--memory", "128")
    root = Path(f"/var/lib/phoenix-lab/btrfs/images/{SOURCE}/vm-{SOURCE}-disk-0.subvol")
    init = root / "usr/sbin/init"
    owner = init.lstat()
    init.unlink()
    init.write_text(INIT)
    init.chmod(0o755)
    os.chown(init, owner.st_uid, owner.st_gid)
    (root / "usr/bin/systemctl").unlink()
    pct("template", str(SOURCE))


@pytest.fixture(scope="module", params=["node", pytest.param("api", marks=pytest.mark.full)])
def each_way(request) -> Iterator[str]:
    with through(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def own_way(request) -> Iterator[None]:
    """Who asks for no way goes by the node: the way of the tests before is still set up, for those that share it."""
    with contextlib.nullcontext() if "each_way" in request.fixturenames else through("node"):
        yield


@pytest.fixture
def one() -> Iterator[int]:
    """A CTID that is free before and after."""
    remove(ONE)
    yield ONE
    remove(ONE)


def remove(*vmids: int) -> None:
    """Remove containers; one call for each that is in no trouble."""
    for vmid in vmids:
        if conf(vmid):
            pct("destroy", str(vmid), "--force", "--destroy-unreferenced-disks", "1", good=False)
    destroy(*vmids)


def make(vmid: int, kind: str = "stopped") -> None:
    """Bring a CTID into a state without the module."""
    remove(vmid)
    if kind != "nothing":
        pct("clone", str(SOURCE), str(vmid))
    if kind == "running":
        pct("start", str(vmid))
    if kind == "template":
        pct("template", str(vmid))


def conf(vmid: int) -> str:
    """The conf file as it is, "" for none."""
    path = CONFIGS / f"{vmid}.conf"
    return path.read_text() if path.exists() else ""


def values(vmid: int) -> dict[str, str]:
    """The main section of a conf file."""
    main = re.split(r"^\[", conf(vmid), maxsplit=1, flags=re.MULTILINE)[0]
    return dict(line.split(": ", 1) for line in main.splitlines() if ": " in line and not line.startswith("#"))


def kind_of(vmid: int) -> str:
    """Which of the four states a CTID is in, as Proxmox says it."""
    if not conf(vmid):
        return "nothing"
    if "template" in values(vmid):
        return "template"
    # Not by `pct status`: calls of pct are counted here.
    is_running = f"@/var/lib/lxc/{vmid}/command\n" in Path("/proc/net/unix").read_text()
    return "running" if is_running else "stopped"


def all_at_once(runs: dict[str, dict], check: bool = False) -> dict[str, dict]:
    """Several runs of the module at the same time, and the result of each."""
    processes = {name: start_module("pct_container", check, options) for name, options in runs.items()}
    return {name: result_of(process) for name, process in processes.items()}


# --- every state change from every state ---------------------------------------------------------------------------

STATES = ["present", "started", "stopped", "restarted", "template", "absent"]
# From → to → the commands and the state after them; or why it can't be.
TRANSITIONS = {
    "nothing": {
        "present": (["clone"], "stopped"),
        "started": (["clone", "start"], "running"),
        "stopped": (["clone"], "stopped"),
        "restarted": (["clone", "start"], "running"),
        "template": (["clone", "template"], "template"),
        "absent": ([], "nothing"),
    },
    "stopped": {
        "present": ([], "stopped"),
        "started": (["start"], "running"),
        "stopped": ([], "stopped"),
        "restarted": (["start"], "running"),
        "template": (["template"], "template"),
        "absent": (["destroy"], "nothing"),
    },
    "running": {
        "present": ([], "running"),
        "started": ([], "running"),
        "stopped": (["shutdown"], "stopped"),
        "restarted": (["reboot"], "running"),
        "template": (["shutdown", "template"], "template"),
        "absent": (["stop", "destroy"], "nothing"),
    },
    "template": {
        "present": ([], "template"),
        "started": "is a template and can't be started; clone it",
        "stopped": ([], "template"),
        "restarted": "is a template and can't be started; clone it",
        "template": ([], "template"),
        "absent": (["destroy"], "nothing"),
    },
}


@pytest.fixture(scope="module", params=TRANSITIONS)
def row(each_way, request) -> Iterator[dict]:
    """From one state to all others at once: check mode, the run, and a second one."""
    vmids = dict(zip(STATES, range(501, 507)))
    for vmid in vmids.values():
        make(vmid, request.param)
    runs = {state: {"vmid": vmid, "state": state, "clone": {"vmid": SOURCE}} for state, vmid in vmids.items()}

    def now() -> dict:
        return {state: (conf(vmid), kind_of(vmid), calls(vmid)) for state, vmid in vmids.items()}

    before = now()
    shown = all_at_once(runs, check=True)
    after_check = now()
    done = all_at_once(runs)
    after = now()
    again = all_at_once(runs)
    last = now()
    yield {
        "from": request.param,
        **{
            state: {
                "before": before[state], "shown": shown[state], "after_check": after_check[state],
                "done": done[state], "after": after[state], "again": again[state], "last": last[state],
            }
            for state in STATES
        },
    }  # fmt: skip
    remove(*vmids.values())


class TestEveryStateFromEveryState:
    @pytest.mark.parametrize("state", STATES)
    def test_it(self, row, state):
        seen, expected = row[state], TRANSITIONS[row["from"]][state]
        shown, done, again = seen["shown"], seen["done"], seen["again"]
        assert seen["after_check"] == seen["before"]
        if isinstance(expected, str):
            for result in (shown, done, again):
                assert result["failed"]
                assert expected in result["msg"]
            assert seen["last"] == seen["before"]
            return
        commands, kind = expected
        for result in (shown, done):
            assert not result.get("failed"), result["msg"]
            assert (names(result), result["changed"]) == (commands, bool(commands))
        told = ("steps", "commands", "status", "restart_required")
        assert [shown[name] for name in told] == [done[name] for name in told]
        assert done["status"] == {"nothing": "absent", "template": "stopped"}.get(kind, kind)
        assert seen["after"][1] == seen["last"][1] == kind
        if state == "restarted":
            assert names(again) == ["reboot"]
        else:
            assert not again.get("failed") and again["changed"] is False
            assert seen["last"] == seen["after"]


# --- a lock held by somebody else -----------------------------------------------------------------------------------

# What is done, with the CTID that is locked meanwhile: its own, or the clone source's.
LOCKED = {
    "set": (511, {"vmid": 511, "config": {"memory": 200}}),
    "start": (512, {"vmid": 512, "state": "started"}),
    "raw": (513, {"vmid": 513, "raw": ["lxc.environment: A=b"]}),
    "clone": (514, {"vmid": 519, "clone": {"vmid": 514}}),
    "absent": (515, {"vmid": 515, "state": "absent"}),
}
REACHED: dict[str, Callable[[], bool]] = {
    "set": lambda: values(511)["memory"] == "200",
    "start": lambda: kind_of(512) == "running",
    "raw": lambda: values(513)["lxc.environment"] == "A=b",
    "clone": lambda: kind_of(519) == "stopped",
    "absent": lambda: kind_of(515) == "nothing",
}
LEFT_OVER, HELD, RELEASED = "left over", "held", "released"


def locked_runs(**options) -> dict[str, dict]:
    """The runs against a lock; the REST API has no raw lines."""
    return {name: {**run, **options} for name, (_vmid, run) in LOCKED.items() if (name, way()) != ("raw", "api")}


def make_locked_ones() -> None:
    remove(519)
    for vmid, _run in LOCKED.values():
        make(vmid)


@contextlib.contextmanager
def backup() -> Iterator[int]:
    """A task that lives, and that the node's list of tasks has for each container; gives its process id."""
    process = subprocess.Popen(["sleep", "300"])
    started = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    node = socket.gethostname().partition(".")[0]
    numbers = f"{process.pid:08X}:{started:08X}:{int(time.time()):08X}"
    try:
        with open(TASKS / ".active.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with open(TASKS / "active", "a") as active:
                for vmid, _run in LOCKED.values():
                    active.write(f"UPID:{node}:{numbers}:vzdump:{vmid}:root@pam: 0\n")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def set_locks() -> None:
    for vmid, _run in LOCKED.values():
        pct("set", str(vmid), "--lock", "backup")


def take_locks_away() -> None:
    for vmid, _run in LOCKED.values():
        pct("unlock", str(vmid))


@pytest.fixture(scope="module")
def locked(each_way) -> Iterator[dict]:
    make_locked_ones()
    found: dict = {"way": each_way}
    set_locks()
    begun = time.monotonic()
    found[LEFT_OVER] = all_at_once(locked_runs(timeout=600))
    found["took"] = time.monotonic() - begun
    with backup() as pid:
        found["pid"] = pid
        found[HELD] = all_at_once(locked_runs(timeout=2))
        runs = locked_runs(timeout=60)
        before = {name: calls(LOCKED[name][0]) for name in runs}
        processes = {name: start_module("pct_container", False, options) for name, options in runs.items()}
        time.sleep(3)
        found["early"] = [name for name in runs if calls(LOCKED[name][0]) != before[name]]
        found["ended"] = [name for name, process in processes.items() if process.poll() is not None]
        take_locks_away()
    found[RELEASED] = {name: result_of(process) for name, process in processes.items()}
    yield found
    remove(519, *range(515, 510, -1))


class TestLocked:
    """C(lock: backup) in the conf file."""

    @pytest.fixture(params=LOCKED)
    def name(self, locked, request) -> str:
        if request.param not in locked[HELD]:
            pytest.skip("the REST API has no raw lines")
        return request.param

    def test_left_over_it_is_told_at_once_with_the_remedy(self, locked, name):
        result = locked[LEFT_OVER][name]
        assert result["failed"]
        assert "CT is locked (backup), and no task of this node is at work on it" in result["msg"]
        assert f"pct unlock {LOCKED[name][0]}" in result["msg"]
        assert locked["took"] < 20

    def test_held_it_says_by_whom(self, locked, name):
        result = locked[HELD][name]
        assert result["failed"]
        assert f"CTID {LOCKED[name][0]}: CT is locked (backup) by the task vzdump of root@pam" in result["msg"]
        assert "waited" in result["msg"]
        if locked["way"] == "node":
            assert f"(process {locked['pid']}, since " in result["msg"]

    def test_released_it_is_done(self, locked, name):
        assert (locked["early"], locked["ended"]) == ([], [])
        result = locked[RELEASED][name]
        assert not result.get("failed"), result["msg"]
        assert REACHED[name]()


@contextlib.contextmanager
def flocked(*vmids: int) -> Iterator[None]:
    """This process holds the lock that pct itself takes for a change."""
    with contextlib.ExitStack() as stack:
        for vmid in vmids:
            file = stack.enter_context(open(f"/run/lock/lxc/pve-config-{vmid}.lock", "a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@pytest.fixture(scope="module")
def behind_flock() -> Iterator[dict]:
    make_locked_ones()
    vmids = [vmid for vmid, _run in LOCKED.values()]
    with flocked(*vmids):
        held = all_at_once(locked_runs(timeout=2))
        runs = locked_runs(timeout=60)
        processes = {name: start_module("pct_container", False, options) for name, options in runs.items()}
        time.sleep(3)
        ended = [name for name, process in processes.items() if process.poll() is not None]
    yield {HELD: held, "ended": ended, RELEASED: {name: result_of(each) for name, each in processes.items()}}
    remove(519, *range(515, 510, -1))


class TestFlocked:
    """The flock on the conf file, held by another process."""

    @pytest.mark.parametrize("name", LOCKED)
    def test_held_it_says_by_whom(self, behind_flock, name):
        result = behind_flock[HELD][name]
        assert result["failed"]
        who = Path(f"/proc/{os.getpid()}/cmdline").read_text().split("\0")[0]
        assert f"CTID {LOCKED[name][0]}: its conf file is locked by process {os.getpid()} (" in result["msg"]
        assert os.path.basename(who) in result["msg"]

    @pytest.mark.parametrize("name", LOCKED)
    def test_released_it_is_done(self, behind_flock, name):
        assert behind_flock["ended"] == []
        result = behind_flock[RELEASED][name]
        assert not result.get("failed"), result["msg"]
        assert REACHED[name]()

    def test_through_the_api_it_is_waited_for_too(self, one):
        make(one)
        with through("api"):
            with flocked(one):
                process = start_module("pct_container", False, {"vmid": one, "config": {"memory": 200}})
                time.sleep(3)
                assert process.poll() is None
            assert result_of(process)["changed"]
        assert values(one)["memory"] == "200"


# --- somebody else between read and write ---------------------------------------------------------------------------


@contextlib.contextmanager
def slow_pct() -> Iterator[None]:
    """Each call of pct takes a while before it does anything."""
    before = DELAY.read_text() if DELAY.exists() else None
    DELAY.write_text("0.7")
    try:
        yield
    finally:
        if before is None:
            DELAY.unlink(missing_ok=True)
        else:
            DELAY.write_text(before)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def pct_of(process: subprocess.Popen, command: str) -> int:
    """The process of a module's call of pct, 0 when there is none at the moment."""
    for child in children(process.pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            if command in words and "pct" in map(os.path.basename, words):
                return child
    return 0


@contextlib.contextmanager
def held(command: str, **options) -> Iterator[tuple[subprocess.Popen, int]]:
    """A run whose call of pct has begun and done nothing: the block comes between its look and its doing."""
    with slow_pct():
        process = start_module("pct_container", False, {"timeout": 60, **options})
        wait_until(lambda: pct_of(process, command) or process.poll() is not None)
        pid = pct_of(process, command)
        assert pid, result_of(process)
        os.kill(pid, signal.SIGSTOP)
    try:
        yield process, pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def meanwhile(command: str, *others: tuple[str, ...], **options) -> dict:
    """The result of a run with other calls of pct between its look and its doing."""
    with held(command, **options) as (process, _pid):
        for words in others:
            pct(*words)
    return result_of(process)


def good(result: dict) -> dict:
    assert not result.get("failed"), result["msg"]
    return result


def sentence(result: dict) -> str:
    """A failure's message, which has to be one for a person."""
    assert result.get("failed"), result
    assert f"CTID {ONE}" in result["msg"]
    return result["msg"]


NUMBER = str(ONE)
ORIGIN = 516
FROM_SOURCE = {"vmid": SOURCE}
FROM_ORIGIN = {"vmid": ORIGIN}
MORE = {"memory": 200}
NET = {"name": "eth0", "bridge": "vmbr0", "ip": "10.92.0.150/24", "gw": "10.92.0.1"}
THEIR_NET = "name=eth0,bridge=vmbr0,ip=10.92.0.151/24,hwaddr=BC:24:11:00:05:10,firewall=1"
NET_OF_BOTH = (
    "name=eth0,bridge=vmbr0,firewall=1,gw=10.92.0.1,hwaddr=BC:24:11:00:05:10,ip=10.92.0.150/24,type=veth"
)  # fmt: skip

# Name: the state before, the call of pct that is held, what others do meanwhile, the declaration, and what is there in
# the end: all that was declared, and what the others changed of the rest.
BOTH_STAY: dict[str, tuple[str, str, tuple[str, ...], dict, str, dict]] = {
    "set, another key": (
        "stopped", "set", ("set", NUMBER, "--cores", "1"), {"config": MORE}, "stopped", {"memory": "200", "cores": "1"},
    ),
    "set, the same key": (
        "stopped", "set", ("set", NUMBER, "--memory", "300"), {"config": MORE}, "stopped", {"memory": "200"},
    ),
    "set, parts of the same net": (
        "stopped", "set", ("set", NUMBER, "--net0", THEIR_NET), {"config": {"net0": NET}}, "stopped",
        {"net0": NET_OF_BOTH},
    ),
    "set, started": (
        "stopped", "set", ("start", NUMBER), {"config": {**MORE, "features": {"nesting": 1}}}, "running",
        {"memory": "200", "features": "nesting=1"},
    ),
    "set, stopped": (
        "running", "set", ("stop", NUMBER), {"state": "started", "config": {"features": {"nesting": 1}}}, "running",
        {"features": "nesting=1"},
    ),
    "set, made a template": (
        "stopped", "set", ("template", NUMBER), {"config": MORE}, "template", {"memory": "200"},
    ),
    "resize, another key": (
        "stopped", "resize", ("set", NUMBER, "--cores", "1"), {"disk_gb": 2}, "stopped",
        {"cores": "1", "rootfs": f"local-btrfs:{ONE}/vm-{ONE}-disk-0.subvol,size=2G"},
    ),
    "resize, resized": (
        "stopped", "resize", ("resize", NUMBER, "rootfs", "2G"), {"disk_gb": 2}, "stopped",
        {"rootfs": f"local-btrfs:{ONE}/vm-{ONE}-disk-0.subvol,size=2G"},
    ),
    "start, another key": (
        "stopped", "start", ("set", NUMBER, "--cores", "1"), {"state": "started", "config": MORE}, "running",
        {"memory": "200", "cores": "1"},
    ),
    "start, the same key": (
        "stopped", "start", ("set", NUMBER, "--memory", "300"), {"state": "started", "config": MORE}, "running",
        {"memory": "200"},
    ),
    "reboot, another key": (
        "running", "reboot", ("set", NUMBER, "--cores", "1"), {"state": "started", "config": {"features": "nesting=1"}},
        "running", {"features": "nesting=1", "cores": "1"},
    ),
    "clone, the source's keys": (
        "nothing", "clone", ("set", str(ORIGIN), "--cores", "1", "--memory", "99"),
        {"clone": FROM_ORIGIN, "config": MORE}, "stopped", {"memory": "200", "cores": "1"},
    ),
}  # fmt: skip
# Name: the state before, the call of pct that is held, what others do meanwhile, the declaration, what pct says to
# that, and the state after one more run; None where what they did makes the declaration impossible.
IN_THE_WAY: dict[str, tuple[str, str, tuple[str, ...], dict, str, str | None]] = {
    "set, destroyed": ("stopped", "set", ("destroy", NUMBER), {"config": MORE}, "does not exist", None),
    "set, destroyed, with a source": (
        "stopped", "set", ("destroy", NUMBER), {"config": MORE, "clone": FROM_SOURCE}, "does not exist", "stopped",
    ),
    "start, started": ("stopped", "start", ("start", NUMBER), {"state": "started"}, "already running", "running"),
    "start, destroyed": (
        "stopped", "start", ("destroy", NUMBER), {"state": "started", "clone": FROM_SOURCE}, "does not exist",
        "running",
    ),
    "start, made a template": ("stopped", "start", ("template", NUMBER), {"state": "started"}, "a template", None),
    "start, locked": (
        "stopped", "start", ("set", NUMBER, "--lock", "backup"), {"state": "started"}, r"locked \(backup\)", None,
    ),
    "shutdown, stopped": ("running", "shutdown", ("stop", NUMBER), {"state": "stopped"}, "not running", "stopped"),
    "shutdown, destroyed": (
        "running", "shutdown", ("destroy", NUMBER, "--force"), {"state": "stopped"}, "not running|does not exist", None,
    ),
    "reboot, stopped": ("running", "reboot", ("stop", NUMBER), {"state": "restarted"}, "not running", "running"),
    "reboot for a key, stopped": (
        "running", "reboot", ("stop", NUMBER), {"state": "started", "config": {"features": "nesting=1"}}, "not running",
        "running",
    ),
    "clone, made by another": (
        "nothing", "clone", ("clone", str(SOURCE), NUMBER), {"clone": FROM_SOURCE, "config": MORE}, "already exists",
        "stopped",
    ),
    "clone, the source destroyed": (
        "nothing", "clone", ("destroy", str(ORIGIN)), {"clone": FROM_ORIGIN}, f"{ORIGIN}.* does not exist", None,
    ),
    "clone, the source started": (
        "nothing", "clone", ("start", str(ORIGIN)), {"clone": FROM_ORIGIN}, "of a running container", None,
    ),
    "create, made by another": (
        "nothing", "create", ("clone", str(SOURCE), NUMBER),
        {"ostemplate": OSTEMPLATE, "storage": "local-btrfs", "disk_gb": 1, "config": MORE}, "already exists", "stopped",
    ),
    "template, started": (
        "stopped", "template", ("start", NUMBER), {"state": "template"}, "the CT is running", "template",
    ),
    "template, made one": (
        "stopped", "template", ("template", NUMBER), {"state": "template"}, "a template to a template", "template",
    ),
    "destroy, destroyed": ("stopped", "destroy", ("destroy", NUMBER), {"state": "absent"}, "does not exist", "nothing"),
    "destroy, started": ("stopped", "destroy", ("start", NUMBER), {"state": "absent"}, "is running", "nothing"),
    "destroy, protected": (
        "stopped", "destroy", ("set", NUMBER, "--protection", "1"), {"state": "absent"}, "protect", None,
    ),
    "stop, stopped": ("running", "stop", ("stop", NUMBER), {"state": "absent"}, "not running", "nothing"),
}  # fmt: skip


def prepare(before: str, options: dict) -> None:
    make(ONE, before)
    if options.get("clone") == FROM_ORIGIN:
        make(ORIGIN)


class TestSomebodyElseBetweenLookAndDoing:
    @pytest.fixture(autouse=True)
    def both_gone(self, one) -> Iterator[None]:
        yield
        remove(ORIGIN)

    @pytest.mark.parametrize("name", BOTH_STAY)
    def test_what_both_changed_is_there(self, name):
        before, command, others, options, kind, wanted = BOTH_STAY[name]
        prepare(before, options)
        good(meanwhile(command, others, vmid=ONE, **options))
        there = values(ONE)
        assert {key: there.get(key) for key in wanted} == wanted
        assert (kind_of(ONE), len(volumes(ONE))) == (kind, 1)
        assert "lock" not in there and "[pve:pending]" not in conf(ONE)
        unchanged(vmid=ONE, **options)

    @pytest.mark.parametrize("name", IN_THE_WAY)
    def test_it_is_done_all_the_same_or_said_in_a_sentence(self, name):
        before, command, others, options, said, kind = IN_THE_WAY[name]
        prepare(before, options)
        result = meanwhile(command, others, vmid=ONE, **options)
        if result.get("failed"):
            assert re.search(said, sentence(result)), result["msg"]
            # A note of the steps before is a line of its own; no log, which would be another start's.
            assert len(result["msg"].splitlines()) <= 2
            assert "lock" not in values(ONE) or "--lock" in others
        if kind is None:
            assert result.get("failed"), result
            assert failure(vmid=ONE, timeout=1, **options)
            return
        if result.get("failed"):
            call(vmid=ONE, **options)
        assert kind_of(ONE) == kind
        assert len(volumes(ONE)) == (kind != "nothing")
        if options.get("state") != "restarted":
            unchanged(vmid=ONE, **options)

    def test_a_raw_line_waits_for_the_flock_and_is_planned_anew(self, one):
        make(one)
        raw = ["lxc.environment: OURS=1"]
        remembered = Path(f"/etc/pve/phoenix-hypervisor/{one}.json")
        with flocked(one):
            process = start_module("pct_container", False, {"vmid": one, "raw": raw, "timeout": 60})
            # It has looked and planned when it has written down what it is about to do.
            wait_until(remembered.exists)
            path = CONFIGS / f"{one}.conf"
            path.write_text(path.read_text().replace("memory: 128", "memory: 150") + "lxc.cap.drop: sys_boot\n")
        assert good(result_of(process))["changed"]
        assert values(one)["memory"] == "150"
        assert [line for line in conf(one).splitlines() if line.startswith("lxc.")] == ["lxc.cap.drop: sys_boot", *raw]
        unchanged(vmid=one, raw=raw)

    def test_a_raw_line_of_a_container_that_is_destroyed_meanwhile(self, one):
        make(one)
        remembered = Path(f"/etc/pve/phoenix-hypervisor/{one}.json")
        with flocked(one):
            process = start_module("pct_container", False, {"vmid": one, "raw": ["lxc.cap.drop: a"], "timeout": 60})
            wait_until(remembered.exists)
            kept = CONFIGS / f"{one}.conf"
            text = kept.read_text()
            kept.unlink()
        result = result_of(process)
        kept_absent = not kept.exists()
        # Only for the cleaning up: its volume is there still.
        kept.write_text(text)
        assert "does not exist" in sentence(result)
        assert kept_absent


# --- killed ---------------------------------------------------------------------------------------------------------


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def end_of(process: subprocess.Popen) -> None:
    """The run ends: killed, or with a sentence."""
    if process.poll() is None:
        process.wait(60)
    out = process.stdout.read() + process.stderr.read()
    assert "Traceback" not in out, out


def is_as_declared(volumes_wanted: int, mounts_wanted: int, **options) -> None:
    """There is a whole container, with nothing double and nothing left over, and a run has nothing to do."""
    assert values(ONE).get("rootfs", "nothing").partition(",")[0].endswith(f":{ONE}/{volumes(ONE)[0]}")
    assert len(volumes(ONE)) == volumes_wanted
    assert len(re.findall(r"^mp\d+: ", conf(ONE), re.MULTILINE)) == mounts_wanted
    assert "unused" not in conf(ONE)
    assert {vmid: values(vmid).get("lock") for vmid in (ONE, SOURCE, ORIGIN)} == dict.fromkeys((ONE, SOURCE, ORIGIN))
    unchanged(**options)


def is_alive(pid: int) -> bool:
    """Whether a process is at work: one that has ended and that nobody has collected yet is not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


VICTIMS = {"the module": (True, False), "pct": (False, True), "both": (True, True)}


def victims(often: str, *others: str) -> list:
    """One victim for every run of the tests, others for the full one."""
    return [often, *(pytest.param(name, marks=pytest.mark.full) for name in others)]


class TestKilled:
    """With SIGKILL, which nobody can tidy up after."""

    @pytest.fixture(autouse=True)
    def both_gone(self, one) -> Iterator[None]:
        yield
        remove(ORIGIN)

    @pytest.mark.parametrize("killed", victims("both", "the module", "pct"))
    @pytest.mark.parametrize("command", ["clone", "set", "start"])
    def test_between_two_steps(self, command, killed, folder):
        is_module, is_pct = VICTIMS[killed]
        options = {
            "vmid": ONE,
            "state": "started",
            "clone": FROM_SOURCE,
            "config": {"memory": 200, "net0": NET},
            "mounts": [{"mp": "/data", "storage": "local-btrfs", "size_gb": 1}, {"mp": "/srv", "source": str(folder)}],
            "raw": ["lxc.environment: A=b"],
        }
        with held(command, **options) as (process, pid):
            kill(*([process.pid] if is_module else []), *([pid] if is_pct else []))
        end_of(process)
        call(**options)
        is_as_declared(2, 2, **options)
        assert inside(ONE, "tr '\\0' '\\n' </proc/1/environ | grep ^A=") == "A=b"
        assert [values(ONE)[key] for key in ("memory", "lxc.environment")] == ["200", "A=b"]

    @pytest.mark.parametrize("killed", victims("both and the worker", *VICTIMS))
    @pytest.mark.parametrize("command", ["create", "clone"])
    def test_in_the_middle(self, command, killed):
        """While it unpacks or copies: the CTID is reserved, the volume is there, and the source is locked."""
        if command == "create":
            options = {"ostemplate": OSTEMPLATE, "storage": "local-btrfs", "disk_gb": 1, "unprivileged": True}
        else:
            make(ORIGIN)
            options = {"clone": {**FROM_ORIGIN, "full": True}, "storage": "local-dir"}
        options = {"vmid": ONE, **options, "config": MORE}
        process = start_module("pct_container", False, options)
        wait_until(lambda: volumes(ONE))
        pid = pct_of(process, command)
        workers = children(pid)
        assert values(ONE) == {"lock": "create"}
        assert pid and workers
        if killed == "both and the worker":
            # Its tar or cp has no reason to end before it has said all.
            for worker in workers:
                os.killpg(worker, signal.SIGKILL)
            kill(process.pid, pid)
        else:
            is_module, is_pct = VICTIMS[killed]
            kill(*([process.pid] if is_module else []), *([pid] if is_pct else []))
        end_of(process)
        try:
            call(**options)
        finally:
            # Nobody is left who could still tidy up what is the next run's now.
            wait_until(lambda: not any(map(is_alive, [pid, *workers])))
        assert values(ONE)["memory"] == "200"
        is_as_declared(1, 0, **options)

    def test_before_a_raw_line(self, one):
        make(one)
        options = {"vmid": one, "raw": ["lxc.environment: A=b", "lxc.environment: C=d"]}
        with flocked(one):
            process = start_module("pct_container", False, options)
            wait_until(Path(f"/etc/pve/phoenix-hypervisor/{one}.json").exists)
            kill(process.pid)
            end_of(process)
        call(**options)
        is_as_declared(1, 0, **options)
        assert re.findall(r"^lxc\..*", conf(one), re.MULTILINE) == options["raw"]
        # It is remembered that these are ours: not declared any more, they go.
        call(vmid=one, raw=[])
        assert "lxc." not in conf(one)


# --- a storage that is full -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_storage(lab) -> Iterator[str]:
    """A storage with 16 MiB, which no container fits in."""
    block = f"\ndir: trouble-full\n\tpath {FULL}\n\tcontent rootdir\n"
    FULL.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=755", "trouble", str(FULL)], check=True)
    try:
        STORAGES.write_text(STORAGES.read_text() + block)
        yield "trouble-full"
    finally:
        STORAGES.write_text(STORAGES.read_text().replace(block, ""))
        subprocess.run(["umount", "--lazy", str(FULL)], check=True)
        FULL.rmdir()


@pytest.mark.parametrize("command", ["create", "clone"])
def test_a_full_storage(each_way, full_storage, one, command):
    if command == "create":
        options: dict = {"ostemplate": OSTEMPLATE, "unprivileged": True, "disk_gb": 1}
    else:
        options = {"clone": {"vmid": SOURCE, "full": True}}
    message = failure(vmid=one, storage=full_storage, config=MORE, **options)
    assert message.startswith(f"CTID {one}: ")
    assert "No space left on device" in message
    assert len(message) < 2000
    assert (kind_of(one), volumes(one)) == ("nothing", [])
    assert "lock" not in values(SOURCE)
    call(vmid=one, storage="local-btrfs", config=MORE, **options)
    assert kind_of(one) == "stopped"


# --- many at once ---------------------------------------------------------------------------------------------------


def end_of_log(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def since(log: Path, before: int) -> str:
    """What came to a log since its end was there."""
    return log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""


def declared_clone(vmid: int) -> dict:
    net = {"name": "eth0", "bridge": "vmbr0", "ip": f"10.92.0.{vmid - 400}/24"}
    return {"vmid": vmid, "clone": FROM_SOURCE, "config": {"hostname": f"ct{vmid}", "memory": vmid - 300, "net0": net}}


@pytest.fixture
def many() -> Iterator[range]:
    vmids = range(520, 540)
    remove(*vmids)
    yield vmids
    remove(*vmids)


def assert_cloned(runs: dict[str, dict], results: dict[str, dict]) -> None:
    assert [result.get("msg") for result in results.values()] == [None] * len(results)
    macs = set()
    for options in runs.values():
        there = values(options["vmid"])
        assert kind_of(options["vmid"]) == "stopped"
        assert (there["hostname"], there["memory"]) == (options["config"]["hostname"], str(options["config"]["memory"]))
        assert "lock" not in there and len(volumes(options["vmid"])) == 1
        net = dict(part.split("=") for part in there["net0"].split(","))
        assert net["ip"] == options["config"]["net0"]["ip"]
        macs.add(net["hwaddr"])
    assert len(macs) == len(runs)
    assert "lock" not in values(SOURCE)


def test_twenty_clones_of_one_template_at_once(many):
    """Proxmox refuses parallel clones of a source; each waits for its turn and clones once."""
    runs = {str(vmid): declared_clone(vmid) for vmid in many}
    before = end_of_log(PCT_CALLS)
    results = all_at_once(runs)
    called = since(PCT_CALLS, before)
    assert_cloned(runs, results)
    assert [len(re.findall(rf" clone {SOURCE} {vmid}\b", called)) for vmid in many] == [1] * 20
    assert [len(re.findall(rf" set {vmid} ", called)) for vmid in many] == [1] * 20
    again = all_at_once(runs)
    assert [result.get("changed") for result in again.values()] == [False] * 20


def test_four_clones_at_once_through_the_api(many):
    """It has no turn to wait for: who comes too early asks again."""
    runs = {str(vmid): declared_clone(vmid) for vmid in many[:4]}
    before = end_of_log(API_CALLS)
    with through("api"):
        assert_cloned(runs, all_at_once(runs))
    assert len(re.findall(rf"POST \S+/lxc/{SOURCE}/clone", since(API_CALLS, before))) >= 4


# --- two writers ----------------------------------------------------------------------------------------------------


def test_two_runs_with_different_keys_at_once(one):
    """Neither overwrites what the other wrote, in 15 rounds."""
    make(one)
    for number in range(15):
        keys = [{"memory": 200 + number, "cores": 1 + number % 2}, {"swap": 300 + number, "tags": f"round{number}"}]
        runs = {str(index): {"vmid": one, "config": config} for index, config in enumerate(keys)}
        results = all_at_once(runs)
        assert [result.get("msg") for result in results.values()] == [None, None]
        there = values(one)
        wanted = {key: str(value) for config in keys for key, value in config.items()}
        assert {key: there.get(key) for key in wanted} == wanted
    assert set(there) == {*wanted, "arch", "hostname", "ostype", "rootfs", "unprivileged"}


def test_two_runs_with_the_same_key_at_once(one):
    """One of the two values is there, and the rest is untouched, in 15 rounds."""
    make(one)
    rest = {key: value for key, value in values(one).items() if key != "memory"}
    for number in range(15):
        choices = (200 + number, 300 + number)
        runs = {str(memory): {"vmid": one, "config": {"memory": memory}} for memory in choices}
        results = all_at_once(runs)
        assert [result.get("msg") for result in results.values()] == [None, None]
        there = values(one)
        assert int(there.pop("memory")) in choices
        assert there == rest


# --- volumes, mounts ------------------------------------------------------------------------------------------------


def test_a_volume_is_one_volume_ever(one):
    """Fault of the old system: a 50 GB volume more on every run."""
    make(one, "running")
    options = {"vmid": one, "state": "started"}
    mounts = [{"mp": "/data", "storage": "local-btrfs", "size_gb": 1}]
    converge(mounts=mounts, **options)
    there = volumes(one)
    assert len(there) == 2
    inside(one, "echo kept >/data/file")
    converge(mounts=[], **options)
    assert [key for key in values(one) if key.startswith(("mp", "unused"))] == ["unused0"]
    assert inside(one, "ls -A /data; mount | grep -c ' /data '; true") == "0"
    converge(mounts=mounts, **options)
    assert [key for key in values(one) if key.startswith(("mp", "unused"))] == ["mp0"]
    assert inside(one, "cat /data/file") == "kept"
    assert volumes(one) == there


def test_the_owner_of_a_bind_mount_is_the_one_inside(one, folder):
    make(one, "running")
    mounts = [{"mp": "/srv/models", "source": str(folder), "owner_uid": 1000, "owner_gid": 1001}]
    converge(vmid=one, state="started", mounts=mounts)
    assert inside(one, "stat -c %u:%g /srv/models") == "1000:1001"
    assert (folder.stat().st_uid, folder.stat().st_gid) == (101000, 101001)


# --- releases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "commands"), [("8.4", ["set", "reboot"]), ("9.1", ["set"])])
def test_a_new_device_of_a_running_container(one, number, commands):
    """Plugged into it from Proxmox VE 9.0 on; before that, it needs a restart."""
    make(one, "running")
    DEVICE.unlink(missing_ok=True)
    os.mknod(DEVICE, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    pid = pct("status", str(one), "--verbose").partition("pid: ")[2].split()[0]
    with release(number):
        done = converge(vmid=one, state="started", devices=[{"path": str(DEVICE)}])
    assert names(done) == commands
    assert inside(one, f"head -c 3 {DEVICE} | od -An -tx1") == "00 00 00"
    is_same = pct("status", str(one), "--verbose").partition("pid: ")[2].split()[0] == pid
    assert is_same is ("reboot" not in commands)
