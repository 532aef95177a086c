# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""pct on real containers, by the texts and exit codes of genuine pct. Needs a lab that is up; CTIDs 790 to 799."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

BASE = "local:vztmpl/debian-12-lab_12_amd64.tar.zst"
PCT = "/usr/sbin/pct"
ONE, TWO, THREE = "790", "791", "792"
CONF = Path("/etc/pve/lxc")


def pct(*words: str, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """One call; stdin is closed unless there is data."""
    done = subprocess.run([PCT, *words], input=data or b"", capture_output=True, timeout=120, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def good(*words: str) -> str:
    """A call that must end with 0; returns stdout."""
    done = pct(*words)
    assert done.returncode == 0, done
    return done.stdout


def refused(said: str, *words: str) -> None:
    """A call that must fail with exactly this line on stderr."""
    done = pct(*words)
    assert done.returncode != 0, done
    assert said in done.stderr.splitlines(), done


def destroy(*vmids: str) -> None:
    """Remove containers whatever their state."""
    for vmid in vmids:
        if (CONF / f"{vmid}.conf").exists():
            pct("unlock", vmid)
            pct("set", vmid, "--protection", "0")
            good("destroy", vmid, "--force", "--destroy-unreferenced-disks")


def wait_for(text: str, *command: str, seconds: float = 20) -> None:
    """Until a command in the container prints this."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if text in pct("exec", *command).stdout:
            return
        time.sleep(0.2)
    pytest.fail(f"{command} did not print {text}")


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    if not Path("/etc/pve/.phoenix-lab").exists():
        pytest.skip("the lab is not up")
    destroy(ONE, TWO, THREE)
    yield
    destroy(ONE, TWO, THREE)


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    """A running container, made as small roles would make it."""
    good("create", ONE, BASE, "--hostname", "live", "--rootfs", "local-btrfs:4", "--memory", "256", "--swap", "0",
         "--cores", "1", "--unprivileged", "1", "--features", "nesting=1", "--net0",
         "name=eth0,bridge=vmbr0,ip=10.92.0.239/24,gw=10.92.0.1", "--dev0", "/dev/fuse,gid=44,mode=0640")  # fmt: skip
    assert good("start", ONE) == ""
    yield ONE


def test_boots_to_running_with_network_names_and_limits(running: str) -> None:
    wait_for("running", running, "--", "systemctl", "is-system-running")
    inside = good(
        "exec",
        running,
        "--",
        "sh",
        "-c",
        "hostname; nproc; ip -4 -br addr show eth0; id -u; stat -c %u:%g:%a /dev/fuse",
    )
    assert inside.splitlines()[:2] == ["live", "1"]
    assert "10.92.0.239/24" in inside
    assert inside.splitlines()[3:] == ["0", "0:44:640"]
    assert pct("exec", running, "--", "python3", "-c", "x = bytearray(600 * 1024 * 1024)").returncode == 137
    assert good("status", running) == "status: running\n"
    assert re.search(rf"^{running} +running {{17}}live +$", good("list"), re.M)
    assert f"@/var/lib/lxc/{running}/command" in Path("/proc/net/unix").read_text()


def test_reaches_debian(running: str) -> None:
    good("exec", running, "--", "apt-get", "-q", "update")


def test_exec_is_binary_clean_and_keeps_exit_codes(running: str) -> None:
    blob = os.urandom(3_000_000)
    done = subprocess.run([PCT, "exec", running, "--", "cat"], input=blob, capture_output=True, timeout=60, check=True)
    assert done.stdout == blob
    assert pct("exec", running, "--", "sh", "-c", "echo o; echo e >&2; exit 7").returncode == 7
    assert pct("exec", running, "--", "sh", "-c", "echo o; echo e >&2").stderr == "e\n"
    assert pct("exec", running, "--", "sh", "-c", "kill -9 $$").returncode == 137
    missing = pct("exec", running, "--", "no-such-program")
    assert missing.returncode == 127
    assert missing.stderr.startswith("lxc-attach: ")
    assert 'Failed to exec "no-such-program"' in missing.stderr
    assert pct("exec", running, "--", "printf", "%s|", "a b", "$HOME", "*").stdout == "a b|$HOME|*|"
    assert "HOME=" not in good("exec", running, "--keep-env", "0", "--", "env")
    refused("missing command", "exec", running)


def test_sigterm_ends_pct_and_not_what_runs_inside(running: str) -> None:
    with subprocess.Popen([PCT, "exec", running, "--", "sleep", "4321"], stdin=subprocess.DEVNULL) as process:
        wait_for("4321", running, "--", "sh", "-c", "pgrep -af 'sleep 432[1]' || true")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
    assert good("exec", running, "--", "pgrep", "-f", "sleep 4321")
    good("exec", running, "--", "pkill", "-f", "sleep 4321")


def test_push_and_pull_with_their_weaknesses(running: str, tmp_path: Path) -> None:
    blob = os.urandom(2_000_000)
    source, back = tmp_path / "a file", tmp_path / "back"
    source.write_bytes(blob)
    good("push", running, str(source), "/root/a file", "--perms", "0600", "--user", "nobody")
    assert good("exec", running, "--", "stat", "-c", "%U:%G:%a", "/root/a file") == "nobody:root:600\n"
    good("pull", running, "/root/a file", str(back))
    assert back.read_bytes() == blob
    for words in (("/no/file", "/root/x"), (str(source), "/root"), (str(source), "/no/folder/x")):
        done = pct("push", running, *words)
        assert done.returncode == 0
        assert re.match("failed to (open|create)", done.stderr)
    assert pct("push", running, str(tmp_path), "/root/folder").stderr == ""
    assert good("exec", running, "--", "stat", "-c", "%F", "/root/folder") == "regular empty file\n"


def test_set_live_and_pending(running: str) -> None:
    good("set", running, "--memory", "512", "--hostname", "renamed", "--nameserver", "10.9.9.9", "--tags", "B,a")
    conf = (CONF / f"{running}.conf").read_text()
    assert "memory: 512\n" in conf
    assert "tags: a;b\n" in conf
    assert conf.endswith("\n[pve:pending]\nnameserver: 10.9.9.9\n")
    assert "nameserver: 10.9.9.9" in good("config", running)
    assert "nameserver" not in good("config", running, "--current")
    assert "new nameserver: 10.9.9.9\n" in good("pending", running)
    assert good("exec", running, "--", "python3", "-c", "x = bytearray(300 * 1024 * 1024); print(len(x))")
    before = (CONF / f"{running}.conf").stat().st_mtime_ns
    good("set", running, "--memory", "512")
    assert (CONF / f"{running}.conf").stat().st_mtime_ns == before
    good("set", running, "--revert", "nameserver")
    assert "[pve:pending]" not in (CONF / f"{running}.conf").read_text()
    assert oct((CONF / f"{running}.conf").stat().st_mode) == "0o100640"


def test_set_plugs_mounts_devices_and_cards(running: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "seen").write_text("yes\n")
    good("set", running, "--mp0", f"{tmp_path},mp=/srv/plugged,ro=1", "--dev1", "/dev/zero,mode=0666",
         "--net1", "name=eth1,bridge=vmbr0,ip=10.92.0.238/24", "--mp1", "local-btrfs:1,mp=/data")  # fmt: skip
    assert good("exec", running, "--", "cat", "/srv/plugged/seen") == "yes\n"
    assert pct("exec", running, "--", "touch", "/srv/plugged/x").returncode != 0
    good("exec", running, "--", "sh", "-c", "touch /data/mine; head -c 3 /dev/zero | wc -c")
    assert "10.92.0.238/24" in good("exec", running, "--", "ip", "-br", "addr", "show", "eth1")
    refused("snapshot feature is not available", "snapshot", running, "snap1")
    good("set", running, "--delete", "net1,mp0,mp1,dev1")
    assert pct("exec", running, "--", "ip", "link", "show", "eth1").returncode != 0
    conf = (CONF / f"{running}.conf").read_text()
    assert "delete: dev1,mp0,mp1\n" in conf


def test_set_refuses_before_it_changes_anything(running: str) -> None:
    before = (CONF / f"{running}.conf").read_text()
    for said, words in (
        (
            "net5: unable to hotplug net5: bridge 'nobr' does not exist",
            ("--onboot", "1", "--net5", "name=e5,bridge=nobr"),
        ),
        ("mp5: unable to hotplug mp5: directory '/nope' does not exist", ("--onboot", "1", "--mp5", "/nope,mp=/x")),
        ("Device /dev/nope does not exist", ("--onboot", "1", "--dev5", "/dev/nope")),
        ("unable to modify read-only option: 'unprivileged'", ("--onboot", "1", "--unprivileged", "0")),
        ("unable to delete required option 'rootfs'", ("--onboot", "1", "--delete", "rootfs")),
        ("delete: unknown option 'nope'", ("--onboot", "1", "--delete", "nope")),
        ("memory: type check ('integer') failed - got 'lots'", ("--onboot", "1", "--memory", "lots")),
        (
            "detected modified configuration - file changed by other user? Try again.",
            ("--onboot", "1", "--digest", "0" * 40),
        ),
        ("Unknown option: lxc.idmap", ("--lxc.idmap", "u 0 1 1")),
    ):
        refused(said, "set", running, *words)
    assert (CONF / f"{running}.conf").read_text() == before
    done = pct("set", running, "--delete", "startup")
    assert (done.returncode, done.stderr) == (0, "cannot delete 'startup' - not set in current configuration!\n")
    digest = hashlib.sha1(before.encode()).hexdigest()
    good("set", running, "--onboot", "1", "--digest", digest)


def test_lock_property(running: str) -> None:
    good("set", running, "--lock", "backup")
    for words in (("stop", running), ("set", running, "--onboot", "0"), ("destroy", running), ("clone", running, TWO)):
        refused("CT is locked (backup)", *words)
    assert re.search(rf"^{running} +running +backup ", good("list"), re.M)
    assert good("exec", running, "--", "echo", "in") == "in\n"
    assert good("unlock", running) == ""
    refused("no lock found trying to remove any lock", "unlock", running)


def test_flock_is_waited_for(running: str) -> None:
    with subprocess.Popen(["flock", "-F", f"/run/lock/lxc/pve-config-{running}.lock", "sleep", "1"]):
        time.sleep(0.3)
        done = pct("set", running, "--onboot", "0")
    assert (done.returncode, done.stderr) == (0, "trying to acquire lock... OK\n")


def test_states_are_refused_in_genuine_words(running: str) -> None:
    refused(f"CT {running} already running", "start", running)
    refused(f"unable to destroy CT {running} - container is running", "destroy", running)
    refused("you can't convert a CT to template if the CT is running", "template", running)
    refused("Full clone of a running container is only possible from a snapshot", "clone", running, TWO)
    missing = "Configuration file 'nodes/{}/lxc/799.conf' does not exist".format(os.uname().nodename.split(".")[0])
    for command in ("status", "config", "start", "destroy", "listsnapshot", "unlock", "template"):
        refused(missing, command, "799")
    refused("CT 799 not running", "stop", "799")
    refused("can only push files to a running CT", "push", "799", "/etc/hostname", "/x")
    refused(
        f"unable to create CT {running} - CT {running} already exists on node '{os.uname().nodename.split('.')[0]}'",
        "create", running, BASE, "--rootfs", "local-btrfs:1",
    )  # fmt: skip
    refused("storage 'nope' does not exist", "create", "799", BASE, "--rootfs", "nope:1")


def test_reboot_inside_applies_pending_and_poweroff_ends(running: str) -> None:
    good("set", running, "--searchdomain", "lab.example")
    boot = good("exec", running, "--", "stat", "-c", "%Y", "/proc/1")
    pct("exec", running, "--", "systemctl", "reboot")
    deadline = time.monotonic() + 20
    while pct("exec", running, "--", "stat", "-c", "%Y", "/proc/1").stdout in ("", boot):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    wait_for("lab.example", running, "--", "cat", "/etc/resolv.conf")
    conf = (CONF / f"{running}.conf").read_text()
    assert "[pve:pending]" not in conf
    assert re.search(r"^unused0: local-btrfs:790/vm-790-disk-1\.subvol$", conf, re.M)
    good("set", running, "--delete", "unused0")
    assert not Path("/var/lib/phoenix-lab/btrfs/images/790/vm-790-disk-1.subvol").exists()
    wait_for("running", running, "--", "systemctl", "is-system-running")
    assert pct("shutdown", running, "--timeout", "20").returncode == 0
    assert good("status", running) == "status: stopped\n"
    refused(f"CT {running} not running", "shutdown", running)
    refused(f"container '{running}' not running!", "exec", running, "--", "true")


def test_a_start_that_fails_says_why(running: str, tmp_path: Path) -> None:
    good("set", running, "--mp7", f"{tmp_path}/gone,mp=/x")
    done = pct("start", running)
    assert done.returncode == 255
    assert done.stderr == f"startup for container '{running}' failed\n"
    assert f'Failed to run lxc.hook.pre-start for container "{running}"' in done.stdout
    assert f"directory '{tmp_path}/gone' does not exist" in Path(f"/var/log/lxc/{running}.log").read_text()
    logs = sorted(
        Path("/var/log/pve/tasks").glob(f"*/UPID:*:vzstart:{running}:root@pam:"), key=lambda p: p.stat().st_mtime
    )
    assert logs[-1].read_text().endswith(f"TASK ERROR: startup for container '{running}' failed\n")
    good("set", running, "--delete", "mp7")


def test_snapshots_clones_templates(running: str) -> None:
    with (CONF / f"{running}.conf").open("a") as conf:
        conf.write("lxc.apparmor.profile: unconfined\n")
    good("snapshot", running, "first", "--description", "one\ntwo")
    refused("snapshot name 'first' already used", "snapshot", running, "first")
    refused("snapshot 'nope' does not exist", "rollback", running, "nope")
    good("set", running, "--memory", "300")
    good("start", running)
    good("exec", running, "--", "touch", "/root/later")
    good("snapshot", running, "second")
    lines = good("listsnapshot", running).splitlines()
    assert re.fullmatch(r"`-> first {22} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d     two", lines[0])
    assert lines[1].startswith(" `-> second ")
    assert lines[2].split() == ["`->", "current", "You", "are", "here!"]
    good("clone", running, TWO, "--snapname", "first", "--hostname", "copy")
    good("rollback", running, "first")
    assert good("status", running) == "status: stopped\n"
    assert "memory: 512" in good("config", running)
    assert not Path("/var/lib/phoenix-lab/btrfs/images/790/vm-790-disk-0.subvol/root/later").exists()
    refused("unable to create template, because CT contains snapshots", "template", running)
    good("delsnapshot", running, "first")
    good("delsnapshot", running, "second")
    assert good("listsnapshot", running).split() == ["`->", "current", "You", "are", "here!"]

    assert good("template", running) == ""
    source = good("config", running)
    assert "rootfs: local-btrfs:790/base-790-disk-0.subvol,size=4G" in source
    assert "template: 1" in source
    refused("you can't start a CT if it's a template", "start", running)
    refused("you can't convert a template to a template", "template", running)
    refused("you can't take a snapshot if it's a template", "snapshot", running, "third")
    refused("parameter 'storage' not allowed for linked clones", "clone", running, THREE, "--storage", "local-dir")
    assert good("clone", running, THREE) == (
        "create linked clone of mountpoint rootfs (local-btrfs:790/base-790-disk-0.subvol)\n"
    )
    clone = good("config", THREE)
    assert "template" not in clone
    assert "lxc.apparmor.profile: unconfined" in clone
    assert re.findall("hwaddr=(.{17})", clone) != re.findall("hwaddr=(.{17})", source)
    good("set", THREE, "--net0", "name=eth0,bridge=vmbr0,ip=10.92.0.237/24,gw=10.92.0.1")
    good("start", THREE)
    wait_for("running", THREE, "--", "systemctl", "is-system-running")
    ids = [good("exec", THREE, "--", "cat", "/etc/machine-id")]
    assert ids[0].strip()
    good("set", THREE, "--protection", "1")
    good("stop", THREE)
    refused(f"can't remove CT {THREE} - protection mode enabled", "destroy", THREE)
    destroy(THREE)
    assert not Path("/var/lib/phoenix-lab/btrfs/images/792").exists()


def test_a_source_is_locked_while_it_is_cloned(running: str) -> None:
    """A second clone of the same source at the same time fails, as on Proxmox."""
    destroy(TWO, THREE)
    first = subprocess.Popen([PCT, "clone", running, TWO, "--full"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 10
    while "lock: disk" not in (CONF / f"{running}.conf").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    refused("CT is locked (disk)", "clone", running, THREE)
    assert first.wait(60) == 0
    first.communicate()
    assert "lock" not in (CONF / f"{running}.conf").read_text()
    assert not (CONF / f"{THREE}.conf").exists()
    destroy(TWO)


def test_a_clone_that_is_killed_leaves_its_locks_and_half_a_volume() -> None:
    """Its worker dies at the next word, and nobody tidies up: the same command again fails until somebody does."""
    destroy(TWO, THREE)
    good("create", TWO, BASE, "--rootfs", "local-btrfs:2", "--unprivileged", "1")
    active = Path("/var/log/pve/tasks/active")
    with subprocess.Popen(
        [PCT, "clone", TWO, THREE, "--full"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as clone:
        deadline = time.monotonic() + 10
        while "lock: disk" not in (CONF / f"{TWO}.conf").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        lines = active.read_text().splitlines()
        (upid,) = (line.split()[0] for line in lines if line.endswith(f":vzclone:{TWO}:root@pam: 0"))
        clone.kill()
    worker = int(upid.split(":")[2], 16)
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline + 20
        time.sleep(0.02)
    assert (CONF / f"{THREE}.conf").read_text() == "lock: create\n"
    assert "lock: disk" in (CONF / f"{TWO}.conf").read_text()
    volume = Path("/var/lib/phoenix-lab/btrfs/images/792/vm-792-disk-0.subvol")
    assert volume.exists()
    refused("CT is locked (create)", "destroy", THREE)
    refused("CT is locked (disk)", "clone", TWO, "799")
    good("unlock", TWO)  # any task's start and end brings the lists up to date
    good("unlock", THREE)
    good("destroy", THREE)
    assert volume.exists()  # the conf didn't name it
    assert re.search(rf"^{re.escape(upid)} 1 [0-9A-F]{{8}} unexpected status$", active.read_text(), re.M)
    good("clone", TWO, THREE)
    good("destroy", THREE, "--destroy-unreferenced-disks")
    assert not volume.exists()
    destroy(TWO)


def test_plain_directories_have_no_snapshots_and_no_linked_clones() -> None:
    good("create", TWO, BASE, "--rootfs", "local-dir:2", "--unprivileged", "0")
    refused("snapshot feature is not available", "snapshot", TWO, "snap1")
    volume = "local-dir:791/vm-791-disk-0.subvol"
    refused(f"Linked clone feature for '{volume}' is not available", "clone", TWO, THREE, "--full", "0")
    good("template", TWO)
    base = "local-dir:791/base-791-disk-0.subvol"
    refused(f"Linked clone feature for '{base}' is not available", "clone", TWO, THREE)
    good("clone", TWO, THREE, "--full")
    good("start", THREE)  # privileged: root inside is root outside
    assert "0          0 4294967295" in good("exec", THREE, "--", "cat", "/proc/self/uid_map")
    destroy(THREE, TWO)


def test_resize() -> None:
    good("create", TWO, BASE, "--rootfs", "local-btrfs:2")
    refused("unable to shrink disk size", "resize", TWO, "rootfs", "1G")
    refused("disk is already at specified size", "resize", TWO, "rootfs", "2G")
    good("resize", TWO, "rootfs", "+512M")
    assert "size=2560M" in good("config", TWO)
    destroy(TWO)


def test_a_failed_create_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar.zst"
    broken.write_bytes(b"not an archive")
    done = pct("create", TWO, str(broken), "--rootfs", "local-btrfs:2")
    assert done.returncode == 255
    assert done.stderr.startswith(f"unable to create CT {TWO} - ")
    assert not (CONF / f"{TWO}.conf").exists()
    assert not Path("/var/lib/phoenix-lab/btrfs/images/791").exists()


def test_each_call_is_counted_without_secrets() -> None:
    log = Path("/var/log/phoenix-lab/pct-calls.log")
    start = len(log.read_text().splitlines())
    pct("create", "799", "nope", "--password", "hunter2")
    new = log.read_text().splitlines()[start:]
    assert sum("create 799" in line for line in new) == 1
    assert "hunter2" not in "\n".join(new)
