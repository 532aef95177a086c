# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model server of a container: what there is of it, and each step of a plan as something that is done.

Reads and does one thing at a time; what is to be done is `server_plan`'s to say, and in which order the module's.
"""

from __future__ import annotations

import contextlib
import glob
import grp
import inspect
import json
import os
import pwd
import socket
import stat
from collections.abc import Mapping
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    engine_args,
    release_source,
    server_declared,
    server_fetch,
    server_guard,
    server_plan,
    server_switch,
)
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_guard import CertificateError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import Seen, StateError, Target
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_states import States, now_text
from ansible_collections.phoenix.hypervisor.plugins.module_utils.text_file import (
    is_like,
    point,
    read_json,
    read_text,
    write,
)

UNIT_FOLDER = "/etc/systemd/system"
SHARES = os.path.join(os.path.dirname(server_guard.PROGRAM), server_guard.SHARES)
FETCH = "/usr/local/libexec/vllm_model_server/fetch.py"
# The group reads the engine config, nobody else: an API key may be in it. Secrets are read by systemd, which is root.
CONFIG_MODE = 0o640
SECRETS_MODE = 0o600
UNIT_MODE = 0o644
JOURNAL_LINES = 400


class ServerError(Exception):
    """Something that can't be done with the service. The text is for the user."""


class Server:
    """The model server of the container that this runs in.

    Attributes:
        watchdog: the texts of the units that look after it, by name; C(None) when nothing is said of them.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        parameters = module.params
        self.name = parameters["name"]
        self.user = parameters["user"]
        self.config_file = parameters["config_file"]
        self.link = parameters["link"]
        self.unit_file = os.path.join(UNIT_FOLDER, self.name)
        self.beside_name, self.fetch_name = (server_switch.other_name(self.name, word) for word in ("next", "fetch"))
        self.beside_file, self.fetch_file = (
            os.path.join(server_switch.FOLDER, name) for name in (self.beside_name, self.fetch_name)
        )
        self.watchdog = server_declared.watchdog(parameters["watchdog"], self.name)
        self.run_file = f"/run/{self.name.rpartition('.')[0]}.run"
        self.states = States(parameters["state_folder"])

    def cache_is_right(self, folder: str) -> bool:
        """Return whether the folder of the caches is the service's own. systemd makes the usual one."""
        if folder == server_declared.CACHE:
            return True
        try:
            status = os.lstat(folder)
            owner = pwd.getpwnam(self.user).pw_uid
        except (OSError, KeyError):
            return False
        return stat.S_ISDIR(status.st_mode) and status.st_uid == owner

    def systemctl(self, *words: str, fatal: bool = True) -> str:
        """Run systemctl. Return its output."""
        code, stdout, stderr = self.module.run_command(["systemctl", *words])
        if code and fatal:
            raise ServerError(f"`systemctl {' '.join(words)}` failed: {(stderr or stdout).strip()}")
        return stdout

    def properties(self, name: str = "") -> dict[str, str]:
        """Return the properties of the server's unit, or of another one."""
        names = ",".join(server_plan.PROPERTIES)
        return server_plan.properties(self.systemctl("show", name or self.name, f"--property={names}", fatal=False))

    def running_digest(self, properties: Mapping[str, str]) -> str:
        """Return the digest that the server's process carries, or what runs before it, "" when there is none."""
        pid = int(properties.get("MainPID") or 0)
        # What runs after a server that ended has the digest of the unit as it is by then.
        if not pid and properties.get("SubState", "").startswith("start"):
            pid = int(properties.get("ControlPID") or 0)
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                return server_plan.environment(file.read()).get(server_plan.DIGEST_VARIABLE, "")
        except OSError:
            return ""

    def look(self, target: Target) -> Seen:
        """Return what there is."""
        properties = self.properties()
        try:
            group = grp.getgrnam(self.user).gr_gid
            pwd.getpwnam(self.user)
            user = True
        except KeyError:
            group, user = -1, False
        folder = os.path.dirname(self.config_file)
        unit = read_text(self.unit_file)
        watchdog = {name: read_text(os.path.join(UNIT_FOLDER, name)) for name in server_plan.watchdog_names(self.name)}
        config_name, _secrets_name = server_plan.file_names(server_plan.digest_in(unit) or target.digest)
        return Seen(
            user=user,
            config=read_text(os.path.join(folder, config_name)),
            files=frozenset(
                os.path.basename(path)
                for pattern in server_plan.file_names("*")
                for path in glob.glob(os.path.join(folder, pattern))
            ),
            files_right=all(is_like(*file) for file in self.files(target, group)) and self.is_named(target),
            unit=unit,
            guard=is_like(server_guard.PROGRAM, inspect.getsource(server_guard), 0o755, 0) and self.shares_are_right(),
            cache=self.cache_is_right(target.cache),
            link=os.path.realpath(self.link) if os.path.islink(self.link) else "",
            properties=properties,
            digest=self.running_digest(properties),
            good=self.states.good,
            watchdog={name: text for name, text in watchdog.items() if text is not None},
            watching=bool(self.watchdog) and self.is_watching(),
            beside=server_plan.digest_in(read_text(self.beside_file)),
            certified=self.is_certified(target, properties),
        )

    def is_certified(self, target: Target, properties: Mapping[str, str]) -> bool:
        """Return whether the running server serves the certificate that is in its files, or has none."""
        tls = target.probe["tls"]
        if not isinstance(tls, dict) or "file" not in tls or self.running_digest(properties) != target.digest:
            return True
        try:
            text, certificate = server_guard.read_pair(tls["certificate"], tls["key"])
        except CertificateError:
            # Nobody could serve that.
            return True
        # One that does not listen yet reads the copy when it does.
        return read_text(tls["file"]) == text and server_guard.is_served(target.probe, certificate) is not False

    def is_watching(self) -> bool:
        """Return whether the watchdog's timer runs and is started at boot, and systemd knows what the units say."""
        names = "--property=ActiveState,UnitFileState,NeedDaemonReload"
        said = self.systemctl("show", names, *server_plan.watchdog_names(self.name), fatal=False)
        # A block for each unit, in their order.
        timer = server_plan.properties(said.rpartition("\n\n")[2])
        runs = (timer.get("ActiveState"), timer.get("UnitFileState")) == ("active", "enabled")
        return runs and "NeedDaemonReload=yes" not in said

    def sockets(self, port: int, listening: bool = False) -> int:
        """Return how many connections a port has, or how many listen on it."""
        tables = (read_text(f"/proc/net/{name}") or "" for name in ("tcp", "tcp6"))
        return server_switch.sockets("\n".join(tables), port, listening)

    def room(self, target: Target, seen: Seen) -> server_switch.Room | None:
        """Return whether the old server answers until the new one does, None when none answers."""
        if not server_plan.is_replaced(target, seen) or seen.digest != seen.good:
            return None
        try:
            old = self.states.load(seen.digest)
        except StateError:
            return None
        if not self.sockets(old.probe["port"], listening=True):
            return None
        variables = server_switch.environment(target.unit)
        model = server_switch.model_in(target.unit)
        name = server_switch.repository(model, target.config, variables)
        folder = snapshot(name, target.config, variables) if name else model
        python = os.path.join(target.release, "bin", "python")
        fetch = bool(name) and not folder and os.path.exists(python)
        if self.module.params["overlap"] == "never":
            return server_switch.Room(False, "vllm_model_server_overlap is never", fetch)
        if seen.beside == target.digest:
            return server_switch.Room(True, "an earlier run has started it")
        memory = release_source.room()
        here = server_switch.Here(
            gpus=self.gpus(),
            free=memory.free,
            used=memory_of(int(seen.properties.get("MainPID") or 0)),
            weights=server_switch.weights(sizes(folder)) if folder else None,
            obstacle=self.obstacle(),
        )
        room = server_switch.room(vars(old), vars(target), here)
        # One that is loaded beside the old server fetches its model by itself.
        return room if room.overlap else room._replace(fetch=fetch)

    def obstacle(self) -> str:
        """Return why connections can't be sent to another port, "" when they can."""
        try:
            # In check mode only the words are looked at. Else rules for no port tell what the kernel has.
            self.nft(server_switch.rules(), *(["--check"] if self.module.check_mode else []))
            if not self.module.check_mode:
                self.nft(server_switch.no_rules())
        except ServerError as error:
            return str(error)
        return ""

    def nft(self, script: str, *options: str) -> None:
        """Have nft do what a script says."""
        program = self.module.get_bin_path("nft")
        if not program:
            raise ServerError("the container has no nft (Debian's package nftables)")
        code, _stdout, stderr = self.module.run_command([program, *options, "-f", "-"], data=script)
        if code:
            raise ServerError(f"nft can't send connections to another port ({' '.join(stderr.split())[:200]})")

    def gpus(self) -> list[server_switch.Gpu]:
        """Return the GPUs, none where nobody can tell."""
        program = self.module.get_bin_path("nvidia-smi")
        if not program:
            return []
        query = ["--query-gpu=index,memory.total,memory.free", "--format=csv,noheader,nounits"]
        code, stdout, _stderr = self.module.run_command([program, *query])
        return [] if code else server_switch.gpus(stdout)

    def files(self, target: Target, group: int) -> list[tuple[str, str, int, int]]:
        """Return (path, text, mode, group) of the files that a state's unit names."""
        folder = os.path.dirname(self.config_file)
        config, secrets = (os.path.join(folder, name) for name in server_plan.file_names(target.digest))
        files = [(config, target.config, CONFIG_MODE, group)]
        return [*files, (secrets, target.secrets, SECRETS_MODE, 0)] if target.secrets else files

    def is_named(self, target: Target) -> bool:
        """Return whether the engine config's name for people stands for a state's."""
        config = server_plan.file_names(target.digest)[0]
        return os.path.islink(self.config_file) and os.readlink(self.config_file) == config

    def do_user(self, target: Target) -> None:
        """Add the service's user."""
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        code, _stdout, stderr = self.module.run_command(
            [*command, "--home-dir", self.module.params["home"], self.user]
        )
        if code:
            raise ServerError(f"The user {self.user} could not be added: {stderr.strip()}")

    def do_cache(self, target: Target) -> None:
        """Make the folder of the caches. Its parent may be shared with other containers, so a link is not followed."""
        os.makedirs(os.path.dirname(target.cache), mode=0o755, exist_ok=True)
        if os.path.islink(target.cache):
            os.unlink(target.cache)
        if not os.path.isdir(target.cache):
            os.mkdir(target.cache, 0o750)
        user = pwd.getpwnam(self.user)
        try:
            os.chown(target.cache, user.pw_uid, user.pw_gid, follow_symlinks=False)
        except OSError as error:
            raise ServerError(
                f"{target.cache} can't be given to the user {self.user} ({error.strerror}): set the owner of that "
                "volume (owner_uid in mount_points), or name another folder in vllm_model_server_cache."
            ) from None

    def do_guard(self, target: Target) -> None:
        """Write the program that runs before and after the server."""
        os.makedirs(os.path.dirname(server_guard.PROGRAM), mode=0o755, exist_ok=True)
        write(server_guard.PROGRAM, inspect.getsource(server_guard), 0o755)
        shares = self.module.params["shares_before"]
        if shares:
            write(SHARES, json.dumps(shares) + "\n", 0o644)
        elif shares is not None and os.path.exists(SHARES):
            os.unlink(SHARES)

    def shares_are_right(self) -> bool:
        """Return whether what other servers take of the GPUs before this one is written down as it was said."""
        shares = self.module.params["shares_before"]
        return shares is None or read_json(SHARES, []) == shares

    def do_config(self, target: Target) -> None:
        """Write the files that the unit names; those that the live unit names stay as they are."""
        os.makedirs(os.path.dirname(self.config_file), mode=0o755, exist_ok=True)
        for file in self.files(target, grp.getgrnam(self.user).gr_gid):
            write(*file)

    def do_unit(self, target: Target) -> None:
        """Write the unit: from here on the new state is the one that starts."""
        write(self.unit_file, target.unit, UNIT_MODE)

    def do_link(self, target: Target) -> None:
        """Point the link at the release, and write it down where the installer looks for what was live before."""
        point(self.link, target.release)
        history = os.path.join(os.path.dirname(target.release), "history.json")
        entries = read_json(history, [])
        if isinstance(entries, list):
            write(history, json.dumps([*entries, {"release": target.release_name, "at": now_text()}]) + "\n", 0o644)

    def do_reload(self, target: Target) -> None:
        """Have systemd read its units again."""
        self.systemctl("daemon-reload")

    def do_enable(self, target: Target) -> None:
        """Have the unit started at boot."""
        self.systemctl("--quiet", "enable", self.name)

    def do_watch(self, target: Target) -> None:
        """Have the watchdog look after the server, as its units say."""
        for name, text in self.watchdog.items():
            write(os.path.join(UNIT_FOLDER, name), text, UNIT_MODE)
        _service, timer = server_plan.watchdog_names(self.name)
        self.systemctl("daemon-reload")
        self.systemctl("--quiet", "enable", timer)
        self.systemctl("restart", timer)

    def do_unwatch(self, target: Target) -> None:
        """Stop and remove the watchdog."""
        service, timer = server_plan.watchdog_names(self.name)
        self.systemctl("--quiet", "disable", "--now", timer, fatal=False)
        self.systemctl("stop", service, fatal=False)
        for name in (service, timer):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(UNIT_FOLDER, name))
        self.systemctl("daemon-reload")

    def do_start(self, target: Target) -> None:
        """Start the server; it is waited for elsewhere."""
        # After too many failures systemd would refuse.
        self.systemctl("reset-failed", self.name, fatal=False)
        self.systemctl("--no-block", "start", self.name)

    def do_restart(self, target: Target) -> None:
        """Restart the server; it is waited for elsewhere."""
        self.systemctl("reset-failed", self.name, fatal=False)
        self.systemctl("--no-block", "restart", self.name)

    def do_certificate(self, target: Target) -> None:
        """Have the running server serve the certificate that is in its files."""
        try:
            server_guard.renewed(self.name, self.states.folder, wait=False)
        except CertificateError as error:
            raise ServerError(str(error)) from None

    def do_fetch(self, target: Target) -> None:
        """Have the model fetched by the release's own program, as the service's user."""
        os.makedirs(os.path.dirname(FETCH), mode=0o755, exist_ok=True)
        write(FETCH, inspect.getsource(server_fetch), 0o644)
        told = server_switch.settings(target.config)
        command = [os.path.join(target.release, "bin", "python"), FETCH, server_switch.model_in(target.unit)]
        command += [told.get(name, "") for name in ("revision", "download-dir")]
        words = map(engine_args.unit_word, command)
        unit = server_switch.fetch_unit(target.unit, " ".join(words))
        if read_text(self.fetch_file) == unit and self.properties(self.fetch_name).get("SubState") == "running":
            # An earlier run has begun with it.
            return
        self.end_other(self.fetch_name, kill=True)
        self.start_other(self.fetch_name, unit)

    def do_beside(self, target: Target) -> None:
        """Start the new state beside the running server, or go on with the one that an earlier run has started."""
        digest = server_plan.digest_in(read_text(self.beside_file))
        if digest == target.digest and self.properties(self.beside_name).get("ActiveState") == "active":
            return
        self.end_beside(kill=True)
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        own = f"{self.unit_file}.d"
        if os.path.isdir(own):
            # What a person added to the server's unit is meant for it, whatever it is called meanwhile.
            point(f"{self.beside_file}.d", own)
        self.start_other(self.beside_name, server_switch.next_unit(target.unit, port))

    def start_other(self, name: str, unit: str) -> None:
        """Start a unit that is there for the time of a change only."""
        os.makedirs(server_switch.FOLDER, exist_ok=True)
        write(os.path.join(server_switch.FOLDER, name), unit, UNIT_MODE)
        self.systemctl("daemon-reload")
        self.systemctl("reset-failed", name, fatal=False)
        self.systemctl("--no-block", "start", name)

    def end_other(self, name: str, kill: bool = False) -> None:
        """End such a unit and forget it; nothing when there is none."""
        file = os.path.join(server_switch.FOLDER, name)
        if not os.path.lexists(file):
            return
        if kill:
            self.systemctl("kill", "--signal=KILL", name, fatal=False)
        self.systemctl("stop", name, fatal=False)
        for path in (f"{file}.d", file):
            if os.path.lexists(path):
                os.unlink(path)
        self.systemctl("daemon-reload")
        self.systemctl("reset-failed", name, fatal=False)

    def beside_port(self) -> int:
        """Return the port of the server beside, 0 when there is none."""
        return server_switch.port_of(read_text(self.beside_file))

    def send(self, probe: Mapping[str, Any], new: bool) -> None:
        """Send new connections to the server beside, or to the server itself again; those that went stay there."""
        self.nft(server_switch.rules(probe["port"], self.beside_port(), server_switch.only_host(probe), new))

    def end_beside(self, kill: bool = False) -> None:
        """End the server beside, and have no rule left."""
        self.end_other(self.beside_name, kill)
        with contextlib.suppress(ServerError):
            self.nft(server_switch.no_rules())

    def do_tidy(self, target: Target) -> None:
        """Remove the files that only former states' units name."""
        folder = os.path.dirname(self.config_file)
        for pattern in server_plan.file_names("*"):
            for path in glob.glob(os.path.join(folder, pattern)):
                if os.path.basename(path) not in server_plan.file_names(target.digest):
                    os.unlink(path)
        tls = target.probe["tls"]
        for path in glob.glob(f"{server_guard.CERTIFICATES}/*.pem"):
            # Those of former states, with their keys.
            if not (isinstance(tls, dict) and tls.get("file") == path):
                os.unlink(path)

    def journal(
        self, invocation: str = "", count: int = JOURNAL_LINES, systemd: bool = True, name: str = ""
    ) -> list[str]:
        """Return the journal's last lines of one run of the server, of the newest one by default.

        What systemd itself says of that run is among them: it is all that there is when the program can't be started.
        """
        invocation = invocation or self.properties(name).get("InvocationID", "")
        match = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else ["--unit", name or self.name]
        match += ["+", f"INVOCATION_ID={invocation}"] if invocation and systemd else []
        _code, stdout, _stderr = self.module.run_command(
            ["journalctl", *match, f"--lines={count}", "--no-pager", "--quiet", "--output=cat"]
        )
        return stdout.splitlines()


def memory_of(pid: int) -> int:
    """Return how many bytes of memory a process and all that it started have for themselves, 0 if unknown."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for path in glob.glob("/proc/[0-9]*/status"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = dict(line.split(":", 1) for line in (read_text(path) or "").splitlines() if ":" in line)
            number = int(lines["Pid"])
            parents[number] = int(lines["PPid"])
            used[number] = sum(int(lines.get(key, "0").split()[0]) for key in ("RssAnon", "RssShmem", "VmSwap"))
    family = [pid] if pid in used else []
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return sum(used[member] for member in family) * 1024


def snapshot(name: str, config: str, variables: Mapping[str, str]) -> str:
    """Return the folder with a model of the hub, "" when it isn't all there."""
    folder = server_switch.hub_folder(name, config, variables)
    wanted = server_switch.settings(config).get("revision") or "main"
    revision = (read_text(os.path.join(folder, "refs", wanted)) or wanted).strip()
    place = os.path.join(folder, "snapshots", revision)
    index = read_text(os.path.join(place, "model.safetensors.index.json")) or ""
    whole = server_switch.is_fetched(sizes(place), index)
    return place if whole and not glob.glob(os.path.join(glob.escape(folder), "blobs", "*.incomplete")) else ""


def sizes(folder: str) -> dict[str, int]:
    """Return the size of each file in a folder."""
    found = {}
    for path in glob.glob(os.path.join(glob.escape(folder), "*")):
        with contextlib.suppress(OSError):
            found[os.path.basename(path)] = os.stat(path).st_size
    return found
