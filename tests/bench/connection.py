# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the connection pct: against the local connection, ``community.proxmox.proxmox_pct_remote`` and ``cat``.

One SSH server on loopback, one container, the same ``pct``; tasks and transfers take turns, and figures are medians.
The peer runs with an ansible-core of its own, the same release, from an environment in ``.cache``.

A genuine ``pct`` costs a CPU second a call, the lab's 50 ms. Figures against the peer are measured with that second
imitated, for both sides, and say so in their unit; those named ``…_lab_pct`` are with the lab's own. We make no call
of ``pct``, the peer makes several for a task (``task_pct_calls``).

CPU seconds of the node are those of the SSH server of the one who is measured and of all that it started, from the
server's ``/proc/<pid>/stat`` (user and system, with its ended children) plus what its living descendants have. The
module that runs inside the container is in it, for both alike.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / ".cache" / "bench" / "peer"
PEER_PACKAGES = ("ansible==12.2.0", "ansible-core==2.19.14", "paramiko==3.5.1")
OSTEMPLATE = "local:vztmpl/debian-12-lab_12_amd64.tar.zst"
PCT_CALLS = Path("/var/log/phoenix-lab/pct-calls.log")
VMID = 710
ROUNDS = 9
# CPU seconds of a call of a genuine pct, and how a figure's unit says that they are imitated.
PCT_COST, GENUINE = 1, ", pct of 1 CPU s"
# Tasks of a playbook, the first of which is not timed. The peer connects anew for each, so two tell all.
TASKS = {"ours": 5, "local": 5, "local_pct": 5, "peer": 2}
MEBIBYTES = 64
TICKS = os.sysconf("SC_CLK_TCK")

Figures = dict[str, dict]


class Failed(RuntimeError):
    """A measured command failed; the message says which, and shows the end of its output."""


def run(command: list[str], **options) -> str:
    """Run a command and return its stdout. :raises Failed: with its last lines, when it fails."""
    done = subprocess.run(
        command, cwd=ROOT, text=True, stderr=subprocess.PIPE, check=False,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **options},
    )  # fmt: skip
    if done.returncode:
        tail = "\n".join(((done.stdout or "") + done.stderr).splitlines()[-20:])
        raise Failed(f"`{' '.join(command)}` ended with {done.returncode}; its last lines:\n{tail}")
    return done.stdout


def peer_playbook() -> str:
    """The peer's ansible-playbook, installed when it is missing."""
    program = PEER / "bin" / "ansible-playbook"
    if not program.exists():
        run([sys.executable, "-m", "venv", str(PEER)])
        run([str(PEER / "bin" / "python"), "-m", "pip", "install", "-q", *PEER_PACKAGES])
    return str(program)


@contextlib.contextmanager
def container() -> Iterator[None]:
    """A running container of the benchmark's own."""
    def remove() -> None:
        if Path(f"/etc/pve/lxc/{VMID}.conf").exists():
            run(["pct", "destroy", str(VMID), "--force"])

    remove()
    run(["pct", "create", str(VMID), OSTEMPLATE, "--rootfs", "local-btrfs:4", "--memory", "512", "--unprivileged", "1",
         "--features", "nesting=1"])  # fmt: skip
    try:
        run(["pct", "start", str(VMID)])
        yield
    finally:
        remove()


def pct_calls() -> int:
    """How many calls of pct there were for the benchmark's container."""
    return PCT_CALLS.read_text(errors="replace").count(f" {VMID}") if PCT_CALLS.exists() else 0


class Server:
    """An SSH server on loopback, with keys of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir()
        self.folder = folder
        for name in ("host", "user"):
            # paramiko and OpenSSH both read this form.
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # A home without start-up files: those of this machine's root are not what is measured. The first SetEnv counts.
        (folder / "home").mkdir()
        setenv = " ".join(f"{name}={value}" for name, value in {"HOME": folder / "home", **environment}.items())
        (folder / "config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            f"Subsystem sftp internal-sftp\nMaxSessions 20\nSetEnv {setenv}\n"
        )
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {(folder / 'host.pub').read_text()}")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL
        )
        for _attempt in range(100):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise Failed("the SSH server does not answer")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)

    def variables(self) -> dict:
        """A host's variables that lead to it."""
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_private_key_file": str(self.folder / "user"),
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    def ssh(self) -> list[str]:
        """ssh to it, over one shared and compressed connection, as ansible-core makes it."""
        return [
            "ssh", "-C", "-F", "none", "-o", f"UserKnownHostsFile={self.folder}/known", "-o", "ControlMaster=auto",
            "-o", "ControlPersist=60s", "-o", f"ControlPath={self.folder}/s", "-i", str(self.folder / "user"),
            "-o", "IdentitiesOnly=yes", "-p", str(self.port), "root@127.0.0.1",
        ]  # fmt: skip

    def cpu(self) -> float:
        """CPU seconds of the server and all that it has started."""
        stats = {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = entry.read_text(errors="replace").rpartition(")")[2].split()
                stats[int(entry.parent.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
        found = {self.process.pid}
        while True:
            more = {pid for pid, (parent, _ticks) in stats.items() if parent in found} - found
            if not more:
                return sum(stats[pid][1] for pid in found if pid in stats) / TICKS
            found |= more


def play(program: str, folder: Path, host: dict, tasks: list[dict]) -> list[float]:
    """Run a playbook. The seconds of its tasks, in order."""
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {"bench": host}}}))
    (folder / "play.json").write_text(json.dumps([{"hosts": "bench", "gather_facts": False, "tasks": tasks}]))
    times = folder / "times.jsonl"
    times.unlink(missing_ok=True)
    run(
        [program, "-i", str(folder / "hosts.json"), str(folder / "play.json")],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "bench" / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "task_times",
            "TASK_TIMES_FILE": str(times),
        },
    )
    return [json.loads(line)["seconds"] for line in times.read_text().splitlines()]


class Bench:
    """What is measured, each side on a server of its own so that its CPU seconds can be told apart."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.servers = {side: Server(folder / side, environment) for side in ("ours", "peer")}
        ours, peer = (self.servers[side].variables() for side in ("ours", "peer"))
        self.hosts = {
            "ours": {
                **ours,
                "ansible_connection": "phoenix.hypervisor.pct",
                "ansible_pct_vmid": VMID,
                "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={folder}/ours/known -o IdentitiesOnly=yes",
                "ansible_control_path_dir": str(folder / "cp"),
            },
            "peer": {
                **peer,
                "ansible_connection": "community.proxmox.proxmox_pct_remote",
                "proxmox_vmid": VMID,
                "ansible_host_key_checking": False,
            },
            "local": {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"},
            "local_pct": {
                "ansible_connection": "phoenix.hypervisor.pct",
                "ansible_pct_vmid": VMID,
                "ansible_pct_node_connection": "local",
                "ansible_python_interpreter": "/usr/bin/python3",
            },
        }
        own = str(Path(sys.executable).with_name("ansible-playbook"))
        self.programs = {"ours": own, "local": own, "local_pct": own, "peer": peer_playbook()}

    def stop(self) -> None:
        """End the servers."""
        subprocess.run([*self.servers["ours"].ssh()[:-1], "-O", "exit", "root@127.0.0.1"], check=False,
                       capture_output=True)  # fmt: skip
        for server in self.servers.values():
            server.stop()

    def tasks(self, task: dict, rounds: int, sides: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """Medians of a task's seconds, node CPU seconds and calls of pct, each side in turn.

        A playbook's first task starts up; it is in the CPU seconds, not in the seconds.
        """
        taken: dict[str, dict[str, list[float]]] = {side: {"seconds": [], "cpu": [], "calls": []} for side in sides}
        for _round in range(rounds):
            for side, values in taken.items():
                server, calls = self.servers.get(side), pct_calls()
                cpu = server.cpu() if server else 0
                seconds = play(self.programs[side], self.folder, self.hosts[side], [task] * TASKS[side])
                values["seconds"] += seconds[1:]
                values["cpu"].append((server.cpu() - cpu) / len(seconds) if server else 0)
                values["calls"].append((pct_calls() - calls) / len(seconds))
        return {
            side: {name: statistics.median(numbers) for name, numbers in values.items()}
            for side, values in taken.items()
        }

    def copies(self, rounds: int) -> dict[str, float]:
        """Medians of the seconds of a file's way in and out: ours, and cat through the same SSH and lxc-attach."""
        there, back = self.folder / "there", self.folder / "back"
        there.write_bytes(os.urandom(MEBIBYTES << 20))
        ssh = self.servers["ours"].ssh()
        enter = f"lxc-attach -n {VMID} --clear-env --"
        connection = _Ours(self.hosts["ours"])
        times: dict[str, list[float]] = {"put": [], "put_cat": [], "fetch": [], "fetch_cat": []}
        for _round in range(rounds + 1):
            for name in times:
                begin = time.monotonic()
                if name == "put":
                    connection.put(str(there), "/root/there")
                elif name == "fetch":
                    connection.fetch("/root/there", str(back))
                elif name == "put_cat":
                    with there.open("rb") as file:
                        run([*ssh, f"{enter} sh -c 'cat >/root/cat'"], stdin=file)
                else:
                    with back.open("wb") as file:
                        run([*ssh, f"{enter} cat /root/there"], stdout=file)
                times[name].append(time.monotonic() - begin)
            if back.read_bytes() != there.read_bytes():
                raise Failed("what came back is not what was sent")
        # The first round opens the shared connections.
        return {name: statistics.median(values[1:]) for name, values in times.items()}


class _Ours:
    """Our connection plugin in this process, as Ansible's worker makes it."""

    def __init__(self, variables: dict) -> None:
        from ansible.playbook.play_context import PlayContext
        from ansible.plugins.loader import connection_loader, init_plugin_loader

        init_plugin_loader([str(ROOT / ".ansible" / "collections")])
        connection = connection_loader.get("phoenix.hypervisor.pct", PlayContext())
        extras = {key: value for key, value in variables.items() if key.startswith("ansible_ssh_")}
        connection.set_options(var_options={**variables, "_extras": extras})
        self.put, self.fetch = connection.put_file, connection.fetch_file


def _ratio(value: float, against: float, ratio: float, unit: str = "s") -> dict:
    return {"value": round(value, 3), "unit": unit, "against": round(against, 3), "ratio": round(ratio, 2)}


def _against_local(times: dict[str, dict[str, float]], suffix: str) -> Figures:
    seconds = {side: values["seconds"] for side, values in times.items()}
    floor = seconds["local"]
    return {
        f"task_vs_local{suffix}": _ratio(seconds["local_pct"], floor, seconds["local_pct"] / floor),
        f"task_ssh_vs_local{suffix}": _ratio(seconds["ours"], floor, seconds["ours"] / floor),
    }


def _against_peer(times: dict[str, dict[str, float]], suffix: str, words: str) -> Figures:
    ours, peer = times["ours"], times["peer"]
    return {
        f"task_vs_peer{suffix}": _ratio(
            ours["seconds"], peer["seconds"], peer["seconds"] / ours["seconds"], f"s{words}"
        ),
        f"task_vs_peer_node_cpu{suffix}": _ratio(ours["cpu"], peer["cpu"], peer["cpu"] / ours["cpu"], f"CPU s{words}"),
    }


COMMAND = {"name": "command", "ansible.builtin.command": "true", "changed_when": False}
PING = {"name": "ping", "ansible.builtin.ping": {}}
TASK_KINDS = (("", COMMAND), ("_ping", PING))


def _with_the_labs_pct(bench: Bench, rounds: int) -> Figures:
    figures: Figures = {}
    for suffix, task in TASK_KINDS:
        times = bench.tasks(task, rounds, ("ours", "local", "local_pct", "peer"))
        figures |= _against_local(times, suffix) | _against_peer(times, f"{suffix}_lab_pct", "")
    copies = bench.copies(rounds)
    for way in ("put", "fetch"):
        ours, cat = copies[way], copies[f"{way}_cat"]
        # Speed over speed: 1 is as fast as cat.
        figures[f"{way}_{MEBIBYTES}m_vs_cat"] = _ratio(ours, cat, cat / ours)
    return figures


def _with_a_genuine_cost(bench: Bench, rounds: int) -> Figures:
    figures: Figures = {}
    for suffix, task in TASK_KINDS:
        times = bench.tasks(task, rounds, ("ours", "peer"))
        figures |= _against_peer(times, suffix, GENUINE)
        calls = {side: round(values["calls"], 1) for side, values in times.items()}
        figures[f"task_pct_calls{suffix}"] = {"value": calls["ours"], "unit": "calls", "against": calls["peer"]}
    return figures


def connection(rounds: int = ROUNDS) -> Figures:
    """All figures of the connection."""
    figures: Figures = {}
    folder = Path(tempfile.mkdtemp())
    measured = ((_with_the_labs_pct, {}), (_with_a_genuine_cost, {"PHOENIX_LAB_PCT_DELAY": str(PCT_COST)}))
    try:
        with container():
            for number, (measure, environment) in enumerate(measured):
                # Short names: in it are the sockets of shared connections.
                place = folder / str(number)
                place.mkdir()
                bench = Bench(place, environment)
                try:
                    figures |= measure(bench, rounds)
                finally:
                    bench.stop()
        return figures
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    print(json.dumps(connection(parser.parse_args().rounds), indent=1))
