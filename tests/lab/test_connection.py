# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection pct into a real container, on the node itself and over SSH. Needs a lab that is up; CTIDs 700 to 719.

The SSH server is one of these tests' own: on loopback, with keys and a configuration in a temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.playbook.play_context import PlayContext
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import connection_loader
from ansible.release import __version__
from lab_modules import wait_until

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
SSHD = "/usr/sbin/sshd"
VMID, STOPPED, PRIVILEGED, MISSING = 700, 701, 702, 719
OSTEMPLATE = "local:vztmpl/debian-12-lab_12_amd64.tar.zst"
CALLS = Path("/var/log/phoenix-lab/pct-calls.log")
ODD = "a b'c\"d$e;f*g\\h-ü\n.bin"


def pct(*words: str) -> str:
    """A call of pct that must end with 0. Returns stdout."""
    done = subprocess.run(
        ["pct", *words], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def container() -> Iterator[None]:
    """A running container and a stopped one; gone before and after, also when a test fails."""
    if not Path("/etc/pve/.phoenix-lab").exists():
        pytest.skip("the lab is not up (make lab-up)")

    def remove() -> None:
        for vmid in (VMID, STOPPED, PRIVILEGED):
            if Path(f"/etc/pve/lxc/{vmid}.conf").exists():
                pct("destroy", str(vmid), "--force")

    remove()
    for vmid in (VMID, STOPPED, PRIVILEGED):
        pct(
            "create", str(vmid), OSTEMPLATE, "--hostname", "inside", "--rootfs", "local-btrfs:2", "--memory", "512",
            "--unprivileged", str(int(vmid != PRIVILEGED)), "--features", "nesting=1",
        )  # fmt: skip
    pct("start", str(VMID))
    pct("start", str(PRIVILEGED))
    yield
    remove()


@pytest.fixture(scope="module")
def sshd() -> Iterator[dict]:
    """An SSH server on loopback; the variables by which a node is reached through it."""
    if not Path(SSHD).exists():
        pytest.skip(f"{SSHD} is missing (apt-get install --no-install-recommends openssh-server)")
    # A control socket's path must be short: not below pytest's own folders.
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\nMaxSessions 20\n"
    )
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    try:
        for _attempt in range(100):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            pytest.fail("the SSH server does not answer")
        yield {
            "ansible_pct_node_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": port,
            "ansible_user": "root",
            "ansible_private_key_file": str(folder / "user"),
            "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={folder}/known -o IdentitiesOnly=yes",
            "ansible_control_path_dir": str(folder / "cp"),
            "pid": server.pid,
        }
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["local", "ssh"])
def variables(request) -> dict:
    """A host's variables, for both ways to the node."""
    if request.param == "ssh":
        return request.getfixturevalue("sshd")
    return {"ansible_pct_node_connection": "local", "ansible_host": "localhost"}


@pytest.fixture(scope="module")
def connect(variables):
    """A function from a CTID to the connection, as Ansible's worker makes it."""
    made: list[ConnectionBase] = []

    def connect_to(vmid: int = VMID) -> ConnectionBase:
        connection = connection_loader.get("phoenix.hypervisor.pct", PlayContext())
        extras = {key: value for key, value in variables.items() if key.startswith("ansible_ssh_")}
        connection.set_options(var_options={**variables, "ansible_pct_vmid": vmid, "_extras": extras})
        made.append(connection)
        return connection

    yield connect_to
    for connection in made:
        connection.reset() if connection.get_option("node_connection") == "ssh" else connection.close()


@pytest.fixture(scope="module")
def inside(connect):
    """A function that runs a command in the container and gives exit code, stdout and stderr."""
    connection = connect()

    def run(command: str, data: bytes | None = None) -> tuple[int, bytes, bytes]:
        return connection.exec_command(command, in_data=data)

    return run


class TestCommands:
    @pytest.mark.parametrize("code", [0, 1, 2, 77, 126, 127, 254, 255])
    def test_exit_codes(self, inside, code):
        rc, out, err = inside(f"echo out; echo err >&2; exit {code}")
        assert (rc, out, err.splitlines()[-1]) == (code, b"out\n", b"err")

    def test_a_signal(self, inside):
        assert inside("kill -9 $$")[0] == 137

    def test_both_outputs_are_apart(self, inside):
        _rc, out, err = inside("echo out; echo err >&2")
        assert (out, err.splitlines()[-1]) == (b"out\n", b"err")

    def test_it_is_root_inside_in_the_root_folder(self, inside):
        assert inside("hostname; id -u; pwd; umask")[1] == b"inside\n0\n/\n0022\n"

    @pytest.mark.parametrize("text", ["a b", "$HOME `id` $(id)", "'", '"', "\\", "a\nb", "*", "ü", "%s", "-n"])
    def test_quoting(self, inside, text):
        quoted = "'" + text.replace("'", "'\\''") + "'"
        assert inside(f"printf %s {quoted}")[1].decode() == text

    def test_standard_input_is_binary_clean(self, inside):
        data = os.urandom(3_000_000)
        rc, out, _err = inside("cat", data)
        assert rc == 0
        assert out == data

    def test_large_output(self, inside):
        assert len(inside("head -c 5000000 /dev/zero")[1]) == 5_000_000

    def test_nothing_of_the_nodes_environment_gets_in(self, connect, monkeypatch):
        odd = {"PHOENIX_SECRET": "x", "odd.name": "x", "BASH_FUNC_f%%": "() { echo x; }", "ü b": "x\ny", "OLDPWD": "/x"}
        for name, value in odd.items():
            monkeypatch.setenv(name, value)
        out = connect().exec_command("env")[1].decode()
        environment = dict(line.split("=", 1) for line in out.splitlines())
        assert not set(odd) & set(environment)
        assert {key: environment[key] for key in ("HOME", "USER", "LANG")} == {
            "HOME": "/root", "USER": "root", "LANG": "C.UTF-8",
        }  # fmt: skip
        assert environment["PATH"].startswith("/usr/local/sbin:")
        assert not any(key.startswith("SSH_") for key in environment)

    def test_no_call_of_pct(self, inside):
        before = CALLS.read_text(errors="replace").count(f" {VMID}")
        assert inside("true")[0] == 0
        assert CALLS.read_text(errors="replace").count(f" {VMID}") == before

    def test_words_of_the_users_own_command_are_no_reason_to_give_up(self, inside):
        rc, _out, err = inside("echo \"Configuration file 'x' does not exist; not running\" >&2; exit 2")
        assert rc == 2
        assert b"not running" in err


class TestFiles:
    @pytest.mark.parametrize("size", [0, 1, 4096, 20_000_001])
    def test_both_ways_byte_exact(self, connect, tmp_path, size):
        connection = connect()
        there, back = tmp_path / "there", tmp_path / "back"
        there.write_bytes(os.urandom(size))
        connection.put_file(str(there), "/root/file")
        connection.fetch_file("/root/file", str(back))
        assert back.read_bytes() == there.read_bytes()
        assert os.listdir(tmp_path) == ["there", "back"] or sorted(os.listdir(tmp_path)) == ["back", "there"]

    def test_odd_names(self, connect, inside, tmp_path):
        connection = connect()
        (tmp_path / ODD).write_bytes(b"odd")
        connection.put_file(str(tmp_path / ODD), f"/root/{ODD}")
        connection.fetch_file(f"/root/{ODD}", str(tmp_path / f"{ODD}.back"))
        assert (tmp_path / f"{ODD}.back").read_bytes() == b"odd"
        inside("rm -f /root/a*")

    def test_a_file_is_replaced_and_nothing_is_left_over(self, connect, inside, tmp_path):
        connection = connect()
        inside("mkdir -p /root/d && echo a longer content >/root/d/f")
        (tmp_path / "new").write_text("new\n")
        connection.put_file(str(tmp_path / "new"), "/root/d/f")
        assert inside("cat /root/d/f; ls -A /root/d")[1] == b"new\nf\n"
        assert not list(Path("/var/tmp").glob("ansible-pct-*"))

    def test_a_full_disk_is_loud_and_leaves_what_was_there(self, connect, inside, tmp_path):
        connection = connect()
        assert (
            inside("mkdir -p /root/full && mount -t tmpfs -o size=1m none /root/full && echo old >/root/full/f")[0] == 0
        )
        (tmp_path / "big").write_bytes(bytes(3_000_000))
        try:
            with pytest.raises(AnsibleError, match="No space left on device"):
                connection.put_file(str(tmp_path / "big"), "/root/full/f")
            assert inside("cat /root/full/f; ls -A /root/full")[1] == b"old\nf\n"
        finally:
            inside("umount /root/full")

    def test_a_full_disk_here_is_loud_and_leaves_what_was_there(self, connect, inside, tmp_path):
        inside("head -c 3000000 /dev/urandom >/root/big")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], check=True)
        try:
            (tmp_path / "kept").write_text("kept")
            with pytest.raises(AnsibleError, match=r"No space left on device|ended too early|exit code"):
                connect().fetch_file("/root/big", str(tmp_path / "kept"))
            assert (tmp_path / "kept").read_text() == "kept"
            assert os.listdir(tmp_path) == ["kept"]
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)
            inside("rm /root/big")

    def test_no_file_is_held_in_memory(self, connect, inside, tmp_path):
        connection, size = connect(), 300 << 20
        with open(tmp_path / "big", "wb") as file:
            file.truncate(size)
        connection.exec_command("true")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        connection.put_file(str(tmp_path / "big"), "/root/big")
        connection.fetch_file("/root/big", str(tmp_path / "back"))
        inside("rm /root/big")
        assert (tmp_path / "back").stat().st_size == size
        (tmp_path / "back").unlink()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB

    def test_a_folder_is_no_destination(self, connect, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(AnsibleError, match=r"copying .* failed with exit code"):
            connect().put_file(str(tmp_path / "file"), "/root")

    def test_a_missing_source(self, connect, tmp_path):
        with pytest.raises(AnsibleFileNotFound, match="does not exist"):
            connect().put_file(str(tmp_path / "none"), "/root/none")

    def test_a_failed_fetch_leaves_what_was_there(self, connect, tmp_path):
        (tmp_path / "kept").write_text("kept")
        with pytest.raises(AnsibleError, match="No such file or directory"):
            connect().fetch_file("/root/none", str(tmp_path / "kept"))
        assert (tmp_path / "kept").read_text() == "kept"
        assert os.listdir(tmp_path) == ["kept"]


class TestNoWayIn:
    def test_a_node_that_cannot_be_reached(self, sshd):
        connection = connection_loader.get("phoenix.hypervisor.pct", PlayContext())
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            host = {**sshd, "ansible_port": taken.getsockname()[1], "ansible_pct_vmid": VMID}
            connection.set_options(var_options=host)
            with pytest.raises(AnsibleConnectionFailure, match=r"node .* cannot be reached by SSH; container 700"):
                connection.exec_command("true")

    def test_a_container_that_does_not_exist(self, connect, tmp_path):
        with pytest.raises(AnsibleConnectionFailure, match=f"container {MISSING} does not exist on "):
            connect(MISSING).exec_command("true")
        (tmp_path / "file").write_text("x")
        with pytest.raises(AnsibleConnectionFailure, match=f"container {MISSING} does not exist on "):
            connect(MISSING).put_file(str(tmp_path / "file"), "/root/x")

    def test_a_container_that_does_not_run(self, connect, tmp_path):
        sentence = f"container {STOPPED} is not running on .*; start it with: pct start {STOPPED}"
        with pytest.raises(AnsibleConnectionFailure, match=sentence):
            connect(STOPPED).exec_command("true")
        with pytest.raises(AnsibleConnectionFailure, match=sentence):
            connect(STOPPED).fetch_file("/root/x", str(tmp_path / "x"))


class TestPlaybook:
    """The whole way, with modules, files and become, as a user runs it."""

    TASKS = (
        {"ansible.builtin.command": "id -un", "register": "me", "changed_when": False},
        {"ansible.builtin.copy": {"content": "copied ü\n", "dest": f"/root/{ODD.strip()}", "mode": "0600"}},
        {"ansible.builtin.slurp": {"src": f"/root/{ODD.strip()}"}, "register": "slurped"},
        {
            "ansible.builtin.command": "id -un",
            "become": True,
            "become_user": "nobody",
            "become_method": "ansible.builtin.su",
            "vars": {"ansible_su_flags": "-s /bin/sh"},
            "register": "other",
            "changed_when": False,
        },
        {"ansible.builtin.file": {"path": f"/root/{ODD.strip()}", "state": "absent"}},
        {"ansible.builtin.stat": {"path": "/~"}, "register": "tilde"},
        {
            "ansible.builtin.assert": {
                "that": [
                    "me.stdout == 'root'",
                    "other.stdout == 'nobody'",
                    "slurped.content | b64decode == 'copied ü\\n'",
                    "not tilde.stat.exists",
                ]
            }
        },
    )

    @pytest.mark.parametrize("pipelining", [True, False])
    def test_it(self, variables, tmp_path, pipelining):
        host = {
            **variables,
            "ansible_connection": "phoenix.hypervisor.pct",
            "ansible_pct_vmid": VMID,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_pipelining": pipelining,
        }
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"inside": host}}}))
        (tmp_path / "play.yml").write_text(
            yaml.safe_dump([{"hosts": "inside", "gather_facts": False, "tasks": list(self.TASKS)}], sort_keys=False)
        )
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                "-i",
                tmp_path / "hosts.yml",
                tmp_path / "play.yml",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "WARNING" not in done.stdout + done.stderr


def playbook(folder: Path, variables: dict, tasks: list[dict], **host) -> list[str]:
    """The command that runs tasks in the container, from an inventory and a playbook in a folder."""
    host = {
        "ansible_connection": "phoenix.hypervisor.pct",
        "ansible_pct_vmid": VMID,
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_pipelining": True,
        **variables,
        **host,
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"inside": host}}}))
    play = {"hosts": "inside", "gather_facts": False, "tasks": tasks}
    (folder / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False))
    return [
        str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(folder / "hosts.yml"),
        str(folder / "play.yml"),
    ]  # fmt: skip


def play(folder: Path, variables: dict, tasks: list[dict], **host) -> subprocess.CompletedProcess:
    """Run tasks in the container."""
    return subprocess.run(
        playbook(folder, variables, tasks, **host),
        cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def children(pid: int) -> list[int]:
    """The children of a process of this machine."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


WORKERS_OUTLIVE_THEIR_MASTER = pytest.mark.skipif(
    tuple(map(int, __version__.split(".")[:2])) < (2, 19),
    reason="before ansible-core 2.19 a worker does not learn that its master alone was ended, and carries on",
)


class TestGivenUp:
    """A task that nobody waits for any more leaves nothing behind in the container."""

    # A child, one that has dropped its environment, and one that doesn't want to end.
    TASK = "sleep 4321 & env -i sleep 4322 & (trap '' TERM; env -i sleep 4323; sleep 4324); wait"

    @pytest.fixture
    def sleepers(self, inside):
        def running() -> list[str]:
            return inside("pgrep -a sleep | cut -d' ' -f2-; true")[1].decode().splitlines()

        yield running
        inside("pkill -9 -f 'sleep 43'; true")

    @pytest.fixture
    def started(self, variables, sleepers, tmp_path):
        """A playbook whose task runs inside."""
        tasks = [{"ansible.builtin.shell": self.TASK, "changed_when": False}]
        process = subprocess.Popen(
            playbook(tmp_path, variables, tasks), cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        wait_until(lambda: len(sleepers()) == 3)
        yield process
        # Its worker too, which may have outlived it and would hold its output open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    @pytest.mark.parametrize("how", ["INT", pytest.param("TERM", marks=WORKERS_OUTLIVE_THEIR_MASTER)])
    def test_ansible_is_ended(self, started, sleepers, how):
        number = getattr(signal, f"SIG{how}")
        # Ctrl+C reaches the whole group, as at a terminal.
        os.killpg(started.pid, number) if how == "INT" else os.kill(started.pid, number)
        wait_until(lambda: not sleepers())

    def test_its_worker_is_killed(self, started, sleepers):
        (worker,) = children(started.pid)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not sleepers())

    def test_the_ssh_connection_breaks(self, started, sleepers, variables, sshd):
        if variables["ansible_pct_node_connection"] == "local":
            pytest.skip("there is none")
        for pid in children(sshd["pid"]):
            os.kill(pid, signal.SIGKILL)
        out, _none = started.communicate(timeout=30)
        # The callback may have folded it.
        said = b" ".join(out.split())
        assert b"the SSH connection to node 127.0.0.1 was lost; container 700 is entered from there" in said, out
        wait_until(lambda: not sleepers())

    def test_the_task_takes_too_long(self, variables, sleepers, tmp_path):
        done = play(
            tmp_path, variables, [{"ansible.builtin.shell": self.TASK, "timeout": 3, "changed_when": False}]
        )
        assert done.returncode == 2
        # ansible-core's own sentence, before and from 2.19 on.
        assert re.search(r"imed out|expected\s+time\s+frame", done.stdout), done.stdout
        wait_until(lambda: not sleepers())

    def test_only_what_is_given_up_ends(self, variables, sleepers, started, inside, tmp_path):
        """Tasks of other runs, async jobs, and what an earlier task has left running on purpose stay."""
        (tmp_path / "other").mkdir()
        tasks = [
            {"ansible.builtin.shell": "nohup sleep 4325 >/dev/null 2>&1 &", "changed_when": False},
            {"ansible.builtin.command": "sleep 4326", "async": 60, "poll": 0, "changed_when": False},
            {"ansible.builtin.shell": "pgrep -fx 'sleep 4325' && pgrep -fx 'sleep 4326'", "changed_when": False},
        ]
        done = play(tmp_path / "other", variables, tasks)
        assert done.returncode == 0, done.stdout
        os.killpg(started.pid, signal.SIGINT)
        wait_until(lambda: sorted(sleepers()) == ["sleep 4325", "sleep 4326"])
        time.sleep(1)
        assert sorted(sleepers()) == ["sleep 4325", "sleep 4326"]

    def test_nothing_of_the_guard_is_left_on_the_node(self, inside):
        def guards() -> list[bytes]:
            found = []
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    found.append(path.read_bytes())
            # Of this container: other tests that run meanwhile have their own.
            return [one[:40] for one in found if b"cut_off()" in one and b"lxc-attach -n %d " % VMID in one]

        inside("true")
        wait_until(lambda: not guards(), 5)


PASSWORD = "p ä'$word\\"


@pytest.fixture(scope="module")
def users(inside, connect, tmp_path_factory) -> Iterator[None]:
    """Two users with a password, and sudo that asks the worker for his."""
    folder = tmp_path_factory.mktemp("sudo")
    subprocess.run(["apt-get", "download", "-q", "sudo"], cwd=folder, check=True, capture_output=True, timeout=120)
    (package,) = folder.glob("sudo_*.deb")
    connect().put_file(str(package), "/root/sudo.deb")
    rc, out, err = inside(
        "dpkg -i /root/sudo.deb && rm /root/sudo.deb && useradd -m -s /bin/sh worker && useradd -m -s /bin/sh boss && "
        "chpasswd && echo 'worker ALL=(ALL) ALL' >/etc/sudoers.d/worker",
        f"worker:{PASSWORD}\nboss:{PASSWORD}\n".encode(),
    )
    assert rc == 0, out + err
    yield
    inside("userdel -r worker; userdel -r boss; rm /etc/sudoers.d/worker; dpkg -P sudo")


@pytest.mark.usefixtures("users")
class TestBecome:
    """Other users inside, with and without a password, with and without pipelining."""

    @pytest.mark.parametrize("pipelining", [True, False])
    @pytest.mark.parametrize("method", ["ansible.builtin.sudo", "ansible.builtin.su"])
    def test_another_user(self, variables, tmp_path, method, pipelining):
        # From root, no password is asked for; one that is given does no harm.
        tasks = [
            {"ansible.builtin.command": "id -un", "register": "who", "changed_when": False},
            {"ansible.builtin.copy": {"content": "ü", "dest": "/home/worker/mine", "mode": "0600"}},
            {"ansible.builtin.stat": {"path": "/home/worker/mine"}, "register": "mine"},
            {"ansible.builtin.assert": {"that": ["who.stdout == 'worker'", "mine.stat.pw_name == 'worker'"]}},
        ]
        become = {
            "ansible_become": True, "ansible_become_user": "worker", "ansible_become_method": method,
            "ansible_pipelining": pipelining,
        }  # fmt: skip
        done = play(tmp_path, variables, tasks, **become)
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize("pipelining", [True, False])
    @pytest.mark.parametrize("method", ["sudo", "su"])
    @pytest.mark.parametrize("password", [PASSWORD, "wrong"], ids=["right", "wrong"])
    def test_a_password_is_asked_for(self, variables, tmp_path, method, pipelining, password):
        # Root would not be asked: it is the worker who becomes somebody else here.
        become = {
            "ansible_become": True,
            "ansible_become_user": "boss",
            "ansible_become_method": f"ansible.builtin.{method}",
            "ansible_become_exe": f"setpriv --reuid=worker --regid=worker --init-groups {method}",
            "ansible_become_password": password,
            "ansible_pipelining": pipelining,
        }
        tasks = [
            {"ansible.builtin.command": "sh -c 'id -un; wc -c'",
             "args": {"stdin": "x" * 1000, "stdin_add_newline": False}, "register": "who", "changed_when": False},
            {"ansible.builtin.assert": {"that": ["who.stdout_lines == ['boss', '1000']"]}},
        ]  # fmt: skip
        done = play(tmp_path, variables, tasks, **become)
        assert PASSWORD not in done.stdout + done.stderr
        if password == "wrong":
            assert done.returncode != 0
        else:
            assert done.returncode == 0, done.stdout


class TestNothingIsRunThatIsText:
    """Values that try to template, to end a quotation or to be an option stay text, all the way in."""

    TEXTS = (
        "$(touch /pwned)", "`touch /pwned`", "; touch /pwned;", "'; touch /pwned; '", '"; touch /pwned; "',
        "\\'$(touch /pwned)", "a\n touch /pwned\n", "-rf", "--help", "{{ lookup('pipe', 'touch /pwned') }}",
        "{% raw %}", "%n %i", "|| touch /pwned", "* ?", "~/x", "!touch", "\t", "ü\u2028\u202e",
    )  # fmt: skip

    def test_all_the_way(self, variables, inside, tmp_path):
        name = "in'; touch /pwned; '$(touch /pwned)"
        host = {
            **{key: value for key, value in variables.items() if key != "pid"},
            "ansible_connection": "phoenix.hypervisor.pct",
            "ansible_pct_vmid": VMID,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {name: host}}}))
        texts = [_Unsafe(text) for text in self.TEXTS]
        names = [_Unsafe(text.replace("/", "_")) for text in self.TEXTS]
        (tmp_path / "vars.yml").write_text(yaml.dump({"texts": texts, "names": names}))
        tasks = [
            {"ansible.builtin.file": {"path": "/root/t", "state": "directory"}},
            {"ansible.builtin.command": {"argv": ["printf", "%s", "{{ item }}"], "expand_argument_vars": False},
             "loop": "{{ texts }}", "register": "argv"},
            {"ansible.builtin.command": "printenv VALUE", "environment": {"VALUE": "{{ item }}"}, "loop": "{{ texts }}",
             "register": "set"},
            {"ansible.builtin.copy": {"dest": "/root/t/{{ item }}", "content": "{{ item }}"}, "loop": "{{ names }}"},
            {"ansible.builtin.fetch": {"src": "/root/t/{{ item }}", "dest": f"{tmp_path}/got/", "flat": True},
             "loop": "{{ names }}"},
            {"ansible.builtin.command": {"argv": ["printf", "%s", "{{ inventory_hostname }}"],
                                         "expand_argument_vars": False},
             "register": "host"},
            {"ansible.builtin.file": {"path": "/root/t", "state": "absent"}},
            {"ansible.builtin.assert": {"that": [
                "argv.results | map(attribute='stdout') | list == "
                "texts | map('regex_replace', '[\\r\\n]+$', '') | list",
                "set.results | map(attribute='stdout') | list == argv.results | map(attribute='stdout') | list",
                "host.stdout == inventory_hostname"]}},
        ]  # fmt: skip
        play = {"hosts": "all", "gather_facts": False, "vars_files": ["vars.yml"], "tasks": tasks}
        (tmp_path / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False))
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-i", tmp_path / "hosts.yml",
             tmp_path / "play.yml"],
            cwd=ROOT, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(os.listdir(tmp_path / "got")) == sorted(map(str, names))
        assert not Path("/pwned").exists()
        assert inside("ls /pwned")[0] == 2


class _Unsafe(str):
    """Text that Ansible doesn't template, as the inventory plugin marks it."""


yaml.add_representer(_Unsafe, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text), style='"'))


@pytest.fixture(scope="module")
def conformance() -> Path:
    """ansible-core's own tests of connections, of the release that is installed, from its source archive."""
    cache = ROOT / ".cache" / "ansible-core"
    folder = cache / f"ansible_core-{__version__}" / "test" / "integration" / "targets" / "connection"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(cache),
             f"ansible-core=={__version__}"],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        archive = cache / f"ansible_core-{__version__}.tar.gz"
        if not archive.exists():
            pytest.fail(f"PyPI does not give the source archive of ansible-core {__version__}: {done.stderr[-500:]}")
        subprocess.run(["tar", "-xzf", str(archive), "-C", str(cache)], check=True)
    return folder


@pytest.mark.parametrize("vmid", [VMID, PRIVILEGED], ids=["unprivileged", "privileged"])
def test_ansible_cores_own_conformance_tests(variables, conformance, tmp_path, vmid):
    host = {
        **{name: value for name, value in variables.items() if name != "pid"},
        "ansible_connection": "phoenix.hypervisor.pct",
        "ansible_pct_vmid": vmid,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    hosts = {"pipelining": {"ansible_pipelining": True}, "no-pipelining": {"ansible_ssh_pipelining": False}}
    inventory = {"pct": {"hosts": hosts, "vars": host}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": inventory}}))
    done = subprocess.run(
        ["./test.sh", "-e", "target_hosts=pct", "-e", "action_prefix=", "-e", f"local_tmp={tmp_path}/local",
         "-e", "remote_tmp=/tmp/ansible-remote"],
        cwd=conformance, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False,
        env={**os.environ, "INVENTORY": str(tmp_path / "hosts.yml"), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "SUCCESS: Connection vars not found" in done.stdout
    # The other two playbooks consist of resets, which the recap does not count.
    assert len(re.findall(r"pipelining +: ok=1\d +changed=\d+ +unreachable=0 +failed=0 ", done.stdout)) == 2
