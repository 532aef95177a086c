# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The stand-in compared with what is known of genuine pct, sentence by sentence. CTIDs 780 to 789.

One table. A row has the section of the fact sheet, the words of a pct call, and what is expected of it: success or
not, a pattern that the whole of stdout matches, and the exact lines of stderr. ``prepare`` names what is done before
(and undone after), ``then`` is a look at what the call left behind, ``release`` another release of Proxmox VE.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import pytest

pytestmark = pytest.mark.lab

ARCHIVE = "local:vztmpl/debian-12-lab_12_amd64.tar.zst"
CONF = Path("/etc/pve/lxc")
TASKS = Path("/var/log/pve/tasks")
PVECFG = "/usr/share/perl5/PVE/pvecfg.pm"
NODE = os.uname().nodename.split(".")[0]
# a running container; a stopped one with a snapshot; a template; one on plain directories; a number that nobody has
RUN, OFF, TPL, DIR, NEW, NONE = 780, 781, 782, 783, 788, 789
NAMES = {"RUN": RUN, "OFF": OFF, "TPL": TPL, "DIR": DIR, "NEW": NEW, "NONE": NONE, "ARCHIVE": ARCHIVE, "NODE": NODE}
DENIED = "400 Parameter verification failed."


def filled(text: str) -> str:
    """{RUN}, {OFF} and so on by their numbers."""
    return re.sub(r"\{([A-Z]+)\}", lambda match: str(NAMES[match[1]]), text)


def pct(words: str, wrap: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [*wrap, "/usr/sbin/pct", *shlex.split(filled(words))]
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False)


def good(words: str) -> str:
    done = pct(words)
    assert done.returncode == 0, done
    return done.stdout


def conf(vmid: int) -> str:
    return (CONF / f"{vmid}.conf").read_text()


def gone(*vmids: int) -> None:
    for vmid in vmids:
        if (CONF / f"{vmid}.conf").exists():
            pct(f"unlock {vmid}")
            pct(f"set {vmid} --protection 0")
            good(f"destroy {vmid} --force --destroy-unreferenced-disks")


@pytest.fixture(scope="module", autouse=True)
def containers() -> Iterator[None]:
    """Made once for all rows."""
    if not Path("/etc/pve/.phoenix-lab").exists():
        pytest.skip("the lab is not up")
    mine = (RUN, OFF, DIR, NEW, NONE, TPL)
    gone(*mine)
    good("create {TPL} {ARCHIVE} --hostname tpl --rootfs local-btrfs:2 --memory 128 --swap 0 --features nesting=1 "
         "--unprivileged 1 --net0 name=eth0,bridge=vmbr0,ip=10.92.0.236/24")  # fmt: skip
    good("clone {TPL} {OFF} --full --hostname off")
    good("clone {TPL} {DIR} --full --hostname dir --storage local-dir")
    good("clone {TPL} {RUN} --full --hostname run")
    good("template {TPL}")
    good("snapshot {OFF} base --description 'one\ntwo'")
    good("start {RUN}")
    yield
    gone(*mine)


# --- preparations ----------------------------------------------------------------------------------------------------


def calls(before: str, after: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """pct calls before and after a row, separated by semicolons."""

    @contextlib.contextmanager
    def prepared() -> Iterator[None]:
        for words in filter(None, before.split(";")):
            good(words)
        try:
            yield
        finally:
            for words in filter(None, after.split(";")):
                pct(words)

    return prepared


def edited(vmid: int, change: Callable[[str], str]) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """The conf file written by hand, and put back after the row."""

    @contextlib.contextmanager
    def prepared() -> Iterator[None]:
        path = CONF / f"{vmid}.conf"
        before = path.read_text()
        path.write_text(change(before))
        try:
            yield
        finally:
            path.write_text(before)

    return prepared


def above_sections(line: str) -> Callable[[str], str]:
    return lambda text: text.replace("\n\n[", f"\n{line}\n\n[", 1) if "\n\n[" in text else f"{text}{line}\n"


@contextlib.contextmanager
def flocked(vmid: int, seconds: str) -> Iterator[None]:
    with subprocess.Popen(["flock", "-F", f"/run/lock/lxc/pve-config-{vmid}.lock", "sleep", seconds]) as holder:
        time.sleep(0.3)
        try:
            yield
        finally:
            holder.terminate()


@contextlib.contextmanager
def killed_create() -> Iterator[None]:
    (CONF / f"{NONE}.conf").write_text("lock: create\n")
    try:
        yield
    finally:
        gone(NONE)


@contextlib.contextmanager
def a_file_inside() -> Iterator[None]:
    good("exec {RUN} -- sh -c 'printf abc > /root/three; chmod 640 /root/three'")
    try:
        yield
    finally:
        Path("/tmp/lab-pulled").unlink(missing_ok=True)


OF_OFF = "delete mp0,mp1,dev0,net1,tags,onboot,description,unused0,nameserver"
PREPARE: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "": calls("", ""),
    "off changed": calls("", f"set {{OFF}} --memory 128 --{OF_OFF};set {{OFF}} --delete unused0"),
    "run changed": calls("", "set {RUN} --revert nameserver,dev0;set {RUN} --memory 128 --delete onboot,tags"),
    "off locked": calls("set {OFF} --lock backup", "unlock {OFF}"),
    "off mounted": calls("set {OFF} --lock mounted", "stop {OFF};unlock {OFF}"),
    "run locked": calls("set {RUN} --lock backup", "unlock {RUN};start {RUN}"),
    "template locked": calls("set {TPL} --lock disk", "unlock {TPL}"),
    "off protected": calls("set {OFF} --protection 1", "set {OFF} --protection 0"),
    "off running": calls("start {OFF}", "stop {OFF}"),
    "off started": calls("", "stop {OFF}"),
    "off without nesting": calls("set {OFF} --features nesting=0", "stop {OFF};set {OFF} --features nesting=1"),
    "run pending": calls("set {RUN} --nameserver 10.9.9.9", "set {RUN} --revert nameserver"),
    "run waits for a deletion": calls(
        "set {RUN} --timezone UTC;stop {RUN};start {RUN};set {RUN} --delete timezone", "set {RUN} --revert timezone"
    ),
    "off described": calls("set {OFF} --description 'line1\nline2 ü: x'", "set {OFF} --delete description"),
    "off volume": calls("set {OFF} --mp0 local-btrfs:1,mp=/data", "set {OFF} --delete mp0;set {OFF} --delete unused0"),
    "off unused": calls("set {OFF} --mp0 local-btrfs:1,mp=/data;set {OFF} --delete mp0", "set {OFF} --delete unused0"),
    "off bind": calls("set {OFF} --mp1 /tmp,mp=/host", "set {OFF} --delete mp1"),
    "off gone device": edited(OFF, above_sections("dev0: /dev/gone")),
    "off raw": edited(OFF, above_sections("lxc.apparmor.profile = unconfined")),
    "off unknown raw": edited(OFF, above_sections("lxc.nonsense: 1")),
    "off nonsense": edited(OFF, above_sections("what is this")),
    "off comment": edited(OFF, lambda text: text.replace("memory:", "#kept\nmemory:", 1)),
    "off foreign ids": edited(OFF, above_sections("lxc.idmap: u 0 300000 65536\nlxc.idmap: g 0 300000 65536")),
    "off flocked for a second": lambda: flocked(OFF, "1"),
    "new flocked": lambda: flocked(NEW, "20"),
    "new": calls("", "destroy {NEW} --force"),
    "new exists": calls("clone {TPL} {NEW}", "destroy {NEW}"),
    "new with volume": calls("clone {TPL} {NEW};set {NEW} --mp0 local-btrfs:1,mp=/data", "destroy {NEW}"),
    "killed create": killed_create,
    "second snapshot": calls("snapshot {OFF} later", "delsnapshot {OFF} later"),
    "file inside": a_file_inside,
    "pushed file": calls("push {RUN} /etc/hostname /root/pushed", "exec {RUN} -- rm -f /root/pushed"),
}


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A sentence of the fact sheet."""

    section: int
    words: str
    fails: bool = False
    out: str | None = ""  # the whole of stdout; None: not looked at
    err: tuple[str, ...] | None = ()  # all lines of stderr; None: not looked at
    prepare: str = ""
    release: str = ""
    wrap: tuple[str, ...] = ()
    code: int | None = None
    then: Callable[[], bool] | None = None


def bad(section: int, words: str, *err: str, prepare: str = "", release: str = "", out: str | None = "",
        code: int | None = None, then: Callable[[], bool] | None = None) -> Row:  # fmt: skip
    return Row(section, words, True, out, err, prepare, release, (), code, then)


def denied(section: int, words: str, *reasons: str, release: str = "") -> Row:
    """A usage error: the reasons, an empty line, the command's usage."""
    arguments = {"set": "", "create": " <ostemplate>", "clone": " <newid>", "snapshot": " <snapname>"}
    name = words.split()[0]
    usage = f"pct {name} <vmid>{arguments[name]} [OPTIONS]"
    return Row(section, words, True, "", (DENIED, *reasons, "", usage), release=release)


def last_task(kind: str, vmid: int) -> str:
    logs = sorted(TASKS.glob(f"?/UPID:{NODE}:*:{kind}:{vmid}:root@pam:"), key=lambda path: path.stat().st_mtime_ns)
    return logs[-1].read_text().splitlines()[-1]


def inside(words: str) -> str:
    return good(f"exec {{RUN}} -- {words}").strip()


def volume(vmid: int, number: int, name: str = "vm") -> bool:
    return Path(f"/var/lib/phoenix-lab/btrfs/images/{vmid}/{name}-{vmid}-disk-{number}.subvol").exists()


UNKNOWN = "Configuration file 'nodes/{NODE}/lxc/{NONE}.conf' does not exist"
LOCKED = "CT is locked (backup)"
UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
TREE_LINE = r"`-> base {24}\d{4}-\d\d-\d\d \d\d:\d\d:\d\d     two\n"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

TABLE = [
    # 1. Conventions
    Row(1, "list", True, "", ("ipcc_send_rec[1] failed: Unknown error -1",
                              "Unable to load access control list: Unknown error -1"), wrap=NOBODY, code=255),
    Row(1, "exec {RUN} -- sh -c 'echo $PATH'", out="/sbin:/bin:/usr/sbin:/usr/bin\n"),
    Row(1, "set {OFF} -memory 129", prepare="off changed", then=lambda: "memory: 129\n" in conf(OFF)),
    Row(1, "set {OFF} --memory=130", prepare="off changed", then=lambda: "memory: 130\n" in conf(OFF)),
    Row(1, "set {OFF} --mem 131", prepare="off changed", then=lambda: "memory: 131\n" in conf(OFF)),
    Row(1, "set {OFF} --onboot", prepare="off changed", then=lambda: "onboot: 1\n" in conf(OFF)),
    Row(1, "set {OFF} --onboot 0", prepare="off changed", then=lambda: "onboot: 0\n" in conf(OFF)),
    Row(1, "set 99 --onboot 1", True, "",
        (DENIED, "vmid: invalid format - value does not look like a valid VM ID", "", "pct set <vmid> [OPTIONS]")),
    denied(1, "set abc --onboot 1", "vmid: type check ('integer') failed - got 'abc'"),
    bad(1, "set {OFF} --bogus 1", "Unknown option: bogus", "400 unable to parse option", "pct set <vmid> [OPTIONS]",
        code=2),
    bad(1, "clone {OFF}", "400 not enough arguments", "pct clone <vmid> <newid> [OPTIONS]"),
    bad(1, "unlock {OFF} more", "400 too many arguments", "pct unlock <vmid>"),
    Row(1, "bogus", True, err=None, code=255),
    Row(1, "start {OFF}", prepare="off started", then=lambda: last_task("vzstart", OFF) == "TASK OK"),
    Row(1, "start {OFF}", True, None, ("startup for container '{OFF}' failed",), "off foreign ids", code=255,
        then=lambda: last_task("vzstart", OFF) == f"TASK ERROR: startup for container '{OFF}' failed"),
    Row(1, "start {OFF}", False, "WARN: Systemd 252 detected. You may need to enable nesting.\n",
        ("Task finished with 1 warning(s)!",), "off without nesting",
        then=lambda: last_task("vzstart", OFF) == "TASK WARNINGS: 1"),
    Row(1, "set {OFF} --delete startup", err=("cannot delete 'startup' - not set in current configuration!",)),
    bad(1, "status {NONE}", UNKNOWN, code=2),
    bad(1, "config {NONE}", UNKNOWN, code=2),
    bad(1, "set {NONE} --onboot 1", UNKNOWN, code=2),
    bad(1, "start {NONE}", UNKNOWN, code=255),
    bad(1, "snapshot {NONE} name", UNKNOWN, code=255),
    bad(1, "stop {NONE}", "CT {NONE} not running"),
    bad(1, "shutdown {NONE}", "CT {NONE} not running"),
    bad(1, "reboot {NONE}", "VM {NONE} not running"),
    bad(1, "push {NONE} /etc/hostname /x", "can only push files to a running CT"),
    Row(1, "set {OFF} --onboot 1", err=("trying to acquire lock... OK",), prepare="off flocked for a second",
        then=lambda: good("set {OFF} --delete onboot") == ""),
    bad(1, "create {NEW} {ARCHIVE} --rootfs local-btrfs:1", "trying to acquire lock...",
        "can't lock file '/run/lock/lxc/pve-config-{NEW}.lock' - got timeout", prepare="new flocked", code=4),
    bad(1, "set {OFF} --onboot 1", LOCKED, prepare="off locked"),
    bad(1, "snapshot {OFF} name", LOCKED, prepare="off locked"),
    bad(1, "clone {OFF} {NEW}", LOCKED, prepare="off locked"),
    bad(1, "destroy {OFF}", LOCKED, prepare="off locked"),
    bad(1, "resize {OFF} rootfs +1G", LOCKED, prepare="off locked"),
    bad(1, "template {OFF}", LOCKED, prepare="off locked"),
    bad(1, "start {OFF}", LOCKED, prepare="off locked"),
    Row(1, "start {OFF}", prepare="off mounted"),
    Row(1, "config {OFF}", out=r"(?s).*^lock: backup$.*", prepare="off locked"),
    Row(1, "exec {RUN} -- true", prepare="run locked"),
    bad(1, "shutdown {RUN}", LOCKED, prepare="run locked"),
    Row(1, "reboot {RUN}", True, None, ("startup for container '{RUN}' failed",), "run locked",
        then=lambda: good("status {RUN}") == "status: stopped\n"),
    Row(1, "status {OFF}", out="status: stopped\n", prepare="off nonsense",
        err=("vm {OFF} - unable to parse config: what is this",)),
    # 2. Queries
    Row(2, "list", out=r"(?s)VMID       Status     Lock         Name {16}\n.*^{RUN}        running {17}run {17}\n.*"),
    Row(2, "list", out=r"(?s).*^{OFF}        stopped    backup       off {17}\n.*", prepare="off locked"),
    Row(2, "list", out=r"(?s).*^{NONE}        stopped    create       CT{NONE} {15}\n.*", prepare="killed create"),
    Row(2, "status {RUN}", out="status: running\n"),
    Row(2, "status {OFF} --verbose",
        out=r"(?s)cpus: \d+\ndisk: 0\n.*maxmem: 134217728\n.*status: stopped\n.*vmid: {OFF}\n"),
    Row(2, "config {OFF}", out=r"(?s)arch: amd64\nfeatures: .*unprivileged: 1\nlxc\.apparmor\.profile: unconfined\n",
        prepare="off raw"),
    Row(2, "config {RUN}", out=r"(?s).*^nameserver: 10\.9\.9\.9$.*", prepare="run pending"),
    Row(2, "config {RUN} --current", out=r"(?s)(?!.*nameserver).*", prepare="run pending"),
    Row(2, "config {OFF}", out=r"(?s).*^description: line1%0Aline2 %C3%BC%3A x%0A$.*", prepare="off described"),
    Row(2, "config {OFF} --snapshot base", out=r"(?s).*^snaptime: \d+$.*"),
    bad(2, "config {OFF} --snapshot nope", "snapshot 'nope' does not exist"),
    Row(2, "pending {RUN}", out=r"(?s)cur arch: amd64\n.*^new nameserver: 10\.9\.9\.9\n.*", prepare="run pending"),
    Row(2, "pending {RUN}", out=r"(?s).*^del timezone: UTC\n.*", prepare="run waits for a deletion"),
    Row(2, "pending {OFF}", out=r"(?s)(?!.*lxc\.).*", prepare="off raw"),
    Row(2, "listsnapshot {DIR}", out=r"`-> current {45}You are here!\n"),
    Row(2, "listsnapshot {OFF}", out=TREE_LINE + r" `-> current {44}You are here!\n"),
    Row(2, "listsnapshot {OFF}", prepare="second snapshot",
        out=TREE_LINE + r" `-> later {22}\d{4}-\S+ \S+ {5}no-description\n  `-> current {43}You are here!\n"),
    Row(2, "df {OFF}",
        out=r"MP +Volume +Size +Used +Avail +Use% +Path\nrootfs +local-btrfs:\S+ +2\.0G +\S+M +\S+G +0\.\d +/\n"),
    # 3. The conf file
    Row(3, "set {OFF} --onboot 1", prepare="off raw",
        then=lambda: "\nunprivileged: 1\nlxc.apparmor.profile: unconfined\n\n[base]\n" in conf(OFF)
        and good("set {OFF} --delete onboot") == ""),
    Row(3, "set {OFF} --onboot 1", prepare="off unknown raw",
        err=("vm {OFF} - unable to parse config: lxc.nonsense: 1",),
        then=lambda: "lxc.nonsense" not in conf(OFF)),
    Row(3, "set {OFF} --onboot 1", prepare="off comment", then=lambda: conf(OFF).startswith("#kept\narch: amd64\n")),
    Row(3, "set {RUN} --nameserver 10.1.1.1", prepare="run changed",
        then=lambda: conf(RUN).endswith("\n\n[pve:pending]\nnameserver: 10.1.1.1\n")),
    Row(3, "set {OFF} --description 'a\nb: ü'", prepare="off changed",
        then=lambda: conf(OFF).startswith("#a\n#b%3A %C3%BC\narch: ")),
    Row(3, "set {OFF} --onboot 1", prepare="off changed",
        then=lambda: stat.filemode((CONF / f"{OFF}.conf").stat().st_mode) == "-rw-r-----"
        and (CONF / f"{OFF}.conf").stat().st_gid == 33),
    bad(3, "set {OFF} --onboot 1 --digest 0000000000000000000000000000000000000000",
        "detected modified configuration - file changed by other user? Try again."),
    bad(3, "set {OFF} --lxc.idmap 'u 0 1 1'", "Unknown option: lxc.idmap", "400 unable to parse option",
        "pct set <vmid> [OPTIONS]", code=2),
    bad(3, "set {OFF} --dev0 /dev/nope", "Device /dev/nope does not exist"),
    bad(3, "set {OFF} --dev0 /dev/shm", "/dev/shm is not a device"),
    denied(3, "set {OFF} --dev0 fuse", "dev0: invalid format - format error",
           "dev0.path: invalid format - value 'fuse' is not a valid device path"),
    denied(3, "set {OFF} --dev0 /dev/null,mode=666", "dev0: invalid format - format error",
           "dev0.mode: value does not match the regex pattern"),
    Row(3, "set {OFF} --dev0 mode=0666,uid=1,path=/dev/null,gid=44,deny-write=1", prepare="off changed",
        then=lambda: "\ndev0: /dev/null,deny-write=1,gid=44,mode=0666,uid=1\n" in conf(OFF)),
    Row(3, "start {OFF}", True, None, None, "off gone device",
        then=lambda: "Device /dev/gone does not exist" in last_task("vzstart", OFF)),
    denied(3, "set {OFF} --net1 bridge=vmbr0", "net1: invalid format - format error",
           "net1.name: property is missing and it is not optional"),
    Row(3, "set {OFF} --net1 name=eth1,bridge=vmbr0", prepare="off changed",
        then=lambda: re.search(r"^net1: name=eth1,bridge=vmbr0,hwaddr=BC:24:11:.{8},type=veth$", conf(OFF), re.M)
        is not None),
    Row(3, "set {OFF} --mp0 local-btrfs:1,mp=/data", prepare="off changed",
        then=lambda: "\nmp0: local-btrfs:781/vm-781-disk-1.subvol,mp=/data,size=1G\n" in conf(OFF) and volume(OFF, 1)),
    Row(3, "start {OFF}", True, r"(?s).*newuidmap: uid range \[0-65536\) -> \[300000-365536\) not allowed.*"
        r"Failed to set up id mapping\.\n.*", None, "off foreign ids"),
    # 4. set
    bad(4, "set {OFF}", "no options specified"),
    bad(4, "set {OFF} --onboot 1 --delete rootfs", "unable to delete required option 'rootfs'",
        then=lambda: "onboot" not in conf(OFF)),
    bad(4, "set {OFF} --delete memory", "unable to delete required option 'memory'"),
    bad(4, "set {OFF} --unprivileged 0", "unable to modify read-only option: 'unprivileged'"),
    denied(4, "set {OFF} --delete nope", "delete: unknown option 'nope'"),
    denied(4, "set {RUN} --net5 name=e5,bridge=nobr",
           "net5: unable to hotplug net5: bridge 'nobr' does not exist"),
    denied(4, "set {RUN} --mp5 /nope,mp=/x", "mp5: unable to hotplug mp5: directory '/nope' does not exist"),
    Row(4, "set {OFF} --memory 128", then=lambda: "memory: 128\n" in conf(OFF)),
    Row(4, "set {RUN} --memory 160 --onboot 1", prepare="run changed",
        then=lambda: "memory: 160\n" in conf(RUN) and "[pve:pending]" not in conf(RUN)),
    Row(4, "set {RUN} --tags 'B;a,B c'", prepare="run changed", then=lambda: "\ntags: a;b;c\n" in conf(RUN)),
    Row(4, "set {RUN} --dev0 /dev/null", prepare="run changed",
        then=lambda: "\ndev0: /dev/null\n" in conf(RUN) and good("set {RUN} --delete dev0") == ""
        and conf(RUN).endswith("[pve:pending]\ndelete: dev0\n")),
    bad(4, "set {OFF} --mp0 local-btrfs:1,mp=/d", "can't update CT {OFF} drive 'mp0' - protection mode enabled",
        prepare="off protected"),
    Row(4, "set {OFF} --delete mp0", prepare="off volume",
        then=lambda: "\nunused0: local-btrfs:781/vm-781-disk-1.subvol\n" in conf(OFF) and volume(OFF, 1)),
    Row(4, "set {OFF} --delete unused0", prepare="off unused", then=lambda: not volume(OFF, 1)),
    # 5. Lifecycle
    bad(5, "start {RUN}", "CT {RUN} already running"),
    bad(5, "start {TPL}", "you can't start a CT if it's a template"),
    bad(5, "stop {OFF}", "CT {OFF} not running"),
    Row(5, "stop {OFF}", prepare="off running", then=lambda: good("status {OFF}") == "status: stopped\n"),
    bad(5, "reboot {OFF}", "VM {OFF} not running"),
    Row(5, "unlock {OFF}", prepare="off locked", then=lambda: "lock:" not in conf(OFF)),
    bad(5, "unlock {OFF}", "no lock found trying to remove any lock"),
    bad(5, "resize {OFF} rootfs 1G", "unable to shrink disk size"),
    bad(5, "resize {OFF} rootfs 2G", "disk is already at specified size"),
    bad(5, "destroy {RUN}", "unable to destroy CT {RUN} - container is running"),
    bad(5, "destroy {OFF}", "can't remove CT {OFF} - protection mode enabled", prepare="off protected"),
    Row(5, "destroy {NEW} --purge", out="purging CT {NEW} from related configurations..\n", prepare="new exists"),
    Row(5, "destroy {NEW}", prepare="new with volume", then=lambda: not volume(NEW, 1) and not volume(NEW, 0)),
    bad(5, "destroy {NONE}", "CT is locked (create)", prepare="killed create"),
    Row(5, "unlock {NONE}", prepare="killed create", then=lambda: good("destroy {NONE}") == ""),
    # 6. create, clone, template
    bad(6, "create {RUN} {ARCHIVE} --rootfs local-btrfs:1",
        "unable to create CT {RUN} - CT {RUN} already exists on node '{NODE}'"),
    bad(6, "create {NEW} {ARCHIVE} --rootfs nope:1", "storage 'nope' does not exist"),
    Row(6, "create {NEW} {ARCHIVE} --rootfs local-btrfs:1", out=None, err=None, prepare="new",
        then=lambda: "\nmemory: 512\n" in conf(NEW) and "\nswap: 512\nunprivileged: 1\n" in conf(NEW)
        and f"\nhostname: CT{NEW}\n" in conf(NEW)),
    Row(6, "create {NEW} /etc/hostname.zst --rootfs local-btrfs:1", True, err=None,
        then=lambda: not (CONF / f"{NEW}.conf").exists()),
    Row(6, "clone {TPL} {NEW}", prepare="new",
        out=r"create linked clone of mountpoint rootfs \(local-btrfs:782/base-782-disk-0\.subvol\)\n",
        then=lambda: "template" not in conf(NEW)),
    Row(6, "clone {OFF} {NEW}", prepare="new", out=r"(?s)create full clone of mountpoint rootfs \(local-btrfs:781/.*",
        then=lambda: volume(NEW, 0) and "[base]" not in conf(NEW) and "parent" not in conf(NEW)),
    Row(6, "clone {OFF} {NEW} --snapname base --hostname other", prepare="new", out=None,
        then=lambda: "\nhostname: other\n" in conf(NEW)),
    bad(6, "clone {OFF} {NEW} --snapname nope", "snapshot 'nope' does not exist"),
    bad(6, "clone {TPL} {NEW} --storage local-dir", "parameter 'storage' not allowed for linked clones"),
    bad(6, "clone {DIR} {NEW} --full 0",
        "Linked clone feature for 'local-dir:783/vm-783-disk-0.subvol' is not available"),
    bad(6, "clone {RUN} {NEW}", "Full clone of a running container is only possible from a snapshot"),
    bad(6, "clone {OFF} {NEW}", "unable to clone mountpoint 'mp1' (type bind)", prepare="off bind"),
    bad(6, "clone {OFF} {NEW} --target elsewhere", "no such cluster node 'elsewhere'"),
    bad(6, "clone {TPL} {NEW}", "CT is locked (disk)", prepare="template locked"),
    Row(6, "clone {OFF} {NEW}", prepare="off volume", out=None,
        then=lambda: volume(NEW, 1) and "mp0: local-btrfs:788/vm-788-disk-1.subvol,mp=/data,size=1G\n" in conf(NEW)
        and good("destroy {NEW}") == ""),
    bad(6, "template {RUN}", "you can't convert a CT to template if the CT is running"),
    bad(6, "template {TPL}", "you can't convert a template to a template"),
    bad(6, "template {OFF}", "unable to create template, because CT contains snapshots"),
    Row(6, "config {TPL}", out=r"(?s).*^rootfs: local-btrfs:782/base-782-disk-0\.subvol,size=2G$.*^template: 1$.*"),
    # 7. Snapshots
    denied(7, "snapshot {OFF} x", "snapname: invalid format - invalid configuration ID 'x'"),
    denied(7, "snapshot {OFF} 1st", "snapname: invalid format - invalid configuration ID '1st'"),
    denied(7, f"snapshot {{OFF}} {'n' * 41}", "snapname: value may only be 40 characters long"),
    bad(7, "snapshot {OFF} current", "unable to use snapshot name 'current' (reserved name)"),
    bad(7, "snapshot {DIR} name", "snapshot feature is not available"),
    bad(7, "snapshot {OFF} name", "snapshot feature is not available", prepare="off bind"),
    bad(7, "snapshot {OFF} base", "snapshot name 'base' already used"),
    bad(7, "snapshot {TPL} name", "you can't take a snapshot if it's a template"),
    bad(7, "rollback {OFF} nope", "snapshot 'nope' does not exist"),
    bad(7, "delsnapshot {OFF} nope", "snapshot 'nope' does not exist"),
    Row(7, "rollback {OFF} base", prepare="off running", then=lambda: good("status {OFF}") == "status: stopped\n"),
    Row(7, "rollback {OFF} base --start", prepare="off started",
        then=lambda: good("status {OFF}") == "status: running\n"),
    # 8. exec, push, pull
    Row(8, "exec {RUN} -- sh -c 'pwd; umask; id -u'", out="/\n0022\n0\n"),
    Row(8, "exec {RUN} -- printf '%s|' --keep-env 'a b' '$HOME'", out=r"--keep-env\|a b\|\$HOME\|"),
    bad(8, "exec {RUN} -- sh -c 'exit 7'", code=7),
    bad(8, "exec {RUN} -- sh -c 'kill -9 $$'", code=137),
    Row(8, "exec {RUN} -- /etc/hostname", True, err=None, code=126),
    Row(8, "exec {RUN} -- nothing-there", True, err=None, code=127),
    bad(8, "exec {RUN}", "missing command"),
    bad(8, "exec {OFF} -- true", "container '{OFF}' not running!"),
    Row(8, "exec {RUN} -- sh -c 'echo ${HOME-none}'", out="/secret\n", wrap=("env", "HOME=/secret")),
    Row(8, "exec {RUN} --keep-env 0 -- env", out=r"(?s)(?!.*(HOME|USER|LANG)=).*PATH=\S*/usr/local/bin\S*\n.*"),
    Row(8, "push {RUN} /etc/hostname /root/pushed", prepare="pushed file",
        then=lambda: inside("stat -c %U:%G:%a /root/pushed") == "root:root:644"),
    Row(8, "push {RUN} /etc/hostname /root/pushed --perms 600 --user nobody --group daemon", prepare="pushed file",
        then=lambda: inside("stat -c %U:%G:%a /root/pushed") == "nobody:daemon:600"),
    Row(8, "push {RUN} /etc /root/pushed", prepare="pushed file",
        then=lambda: inside("stat -c %F /root/pushed") == "regular empty file"),
    Row(8, "push {RUN} /no/file /root/x", err=("failed to open /no/file for reading: No such file or directory",)),
    Row(8, "push {RUN} /etc/hostname /root", err=("failed to create file: /root: Is a directory",)),
    Row(8, "push {RUN} /etc/hostname /root/x --user noone", err=("failed to get uid for: noone",)),
    Row(8, "push {RUN} /etc/hostname /root/x --perms 09x", err=("invalid mode: '09x'",)),
    bad(8, "push {OFF} /etc/hostname /root/x", "can only push files to a running CT"),
    Row(8, "pull {RUN} /root/three /tmp/lab-pulled", prepare="file inside",
        then=lambda: Path("/tmp/lab-pulled").read_text() == "abc"
        and stat.filemode(Path("/tmp/lab-pulled").stat().st_mode) == "-rw-r--r--"),
    Row(8, "pull {RUN} /root/nothing /tmp/lab-pulled", err=None, prepare="file inside",
        then=lambda: Path("/tmp/lab-pulled").read_bytes() == b""),
    Row(8, "pull {OFF} /root/x /tmp/x", True, err=None),
    # 9. Releases
    bad(9, "set {OFF} --dev0 /dev/null", "Unknown option: dev0", "400 unable to parse option",
        "pct set <vmid> [OPTIONS]", release="8.0", code=2),
    Row(9, "set {OFF} --dev0 /dev/null", release="8.1", prepare="off changed", then=lambda: "\ndev0: " in conf(OFF)),
    denied(9, "set {OFF} --dev0 /dev/null,deny-write=1", "dev0: invalid format - format error",
           f"dev0.deny-write: {UNDEFINED}", release="8.2"),
    Row(9, "set {OFF} --dev0 /dev/null,deny-write=1", release="8.3", prepare="off changed",
        then=lambda: "deny-write=1" in conf(OFF)),
    bad(9, "exec {RUN} --keep-env 0 -- true", "Unknown option: keep-env", "400 unable to parse option",
        "pct exec <vmid> [<extra-args>] [OPTIONS]", release="7.4", code=2),
    Row(9, "exec {RUN} --keep-env 0 -- true", release="8.2"),
    Row(9, "stop {RUN} --overrule-shutdown", True, err=None, release="8.1", code=2),
    Row(9, "set {OFF} --env A=b", True, err=None, release="9.0", code=2),
    Row(9, "set {OFF} --entrypoint /sbin/init", True, err=None, release="8.4", code=2),
    Row(9, "create {NEW} {ARCHIVE} --ha-managed 1", True, err=None, release="9.0", code=2),
    denied(9, "set {OFF} --net1 name=eth1,host-managed=1", "net1: invalid format - format error",
           f"net1.host-managed: {UNDEFINED}", release="9.0"),
    Row(9, "set {RUN} --dev0 /dev/zero", release="8.4", prepare="run changed",
        then=lambda: conf(RUN).endswith("[pve:pending]\ndev0: /dev/zero\n")),
    bad(9, "clone {RUN} {NEW}", "Cannot do full clones on a running container without snapshots", release="9.0"),
    Row(9, "start {OFF}", release="8.4", prepare="off without nesting"),
    Row(9, "create {NEW} {ARCHIVE} --rootfs local-btrfs:1", out=None, err=None, prepare="new", release="8.4",
        then=lambda: "\nunprivileged: 0\n" in conf(NEW)),
]  # fmt: skip


def row_id(row: Row) -> str:
    return "-".join(filter(None, [f"{row.section}", row.release, filled(row.words)[:50], row.prepare]))


def as_release(release: str, folder: Path) -> tuple[str, ...]:
    """In a mount namespace of its own another release stands in the node's file; nobody else sees it."""
    text = Path(PVECFG).read_text()
    current = re.search(r"sub release \{\s*return '([\d.]+)'", text)
    assert current is not None
    other = folder / "pvecfg.pm"
    other.write_text(text.replace(f"'{current[1]}", f"'{release}"))
    return ("unshare", "-m", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(other), PVECFG)


@pytest.mark.parametrize("row", TABLE, ids=row_id)
def test_pct_answers_as_the_fact_sheet_says(row: Row, tmp_path: Path) -> None:
    wrap = as_release(row.release, tmp_path) if row.release else row.wrap
    with PREPARE[row.prepare]():
        done = pct(row.words, wrap)
        assert (done.returncode != 0) is row.fails, done
        if row.code is not None:
            assert done.returncode == row.code, done
        if row.out is not None:
            assert re.fullmatch(filled(row.out), done.stdout, re.M), done
        if row.err is not None:
            assert tuple(done.stderr.splitlines()) == tuple(map(filled, row.err)), done
        if row.then is not None:
            assert row.then(), (done, row.prepare)


def test_the_table_is_long_enough_and_has_every_section() -> None:
    assert {row.section for row in TABLE} == set(range(1, 10))
    assert len(TABLE) >= 90
