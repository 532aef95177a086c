# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``lab up|down|status``: makes this machine a node in miniature, and makes it what it was again.

Each step looks first and does only what is missing, so ``up`` may run at any time: from nothing, when all is there,
after a reboot that took the mounts and the bridge. What it changes outside its own folders is noted in the state file
*before* it is done, so ``down`` works from any half-built state.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from node import api, image, release, runtime, settings, store
from node.errors import PctError
from node.system import mounted, run, succeeds, write_atomically

PACKAGES = (
    "lxc", "uidmap", "mmdebstrap", "btrfs-progs", "nftables", "zstd", "iproute2", "debian-archive-keyring", "openssl",
    "procps",
)  # fmt: skip
_ALIAS = "phoenix-lab"
_NOT_HERE = "the lab is for machines without it; nothing was changed"
_LOCK = Path("/run/phoenix-lab.lock")
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_SUBIDS = f"root:{settings.ID_START}:{settings.ID_COUNT}"

USAGE = """\
usage: lab up      make this machine a stand-in Proxmox VE node (or repair it after a reboot)
       lab down    remove everything: containers, storage, network, packages that 'up' installed
       lab status  what is there
"""


def say(text: str) -> None:
    """One line of progress."""
    print(f"lab: {text}", flush=True)


class State:
    """What ``down`` must know. Saved at every change."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            try:
                self.values = json.loads(settings.STATE_FILE.read_text())
            except ValueError:
                text = f"{settings.STATE_FILE} is not JSON; repair or remove it, then run the same again"
                raise PctError(text, 1) from None

    def set(self, key: str, value: Any) -> None:
        """Note a value."""
        if self.values.get(key) != value:
            self.values[key] = value
            write_atomically(settings.STATE_FILE, json.dumps(self.values, indent=1, sort_keys=True) + "\n", 0o600)

    def add(self, key: str, *items: str) -> None:
        """Note items of a list, each once."""
        old = self.values.get(key, [])
        self.set(key, old + [item for item in items if item not in old])


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One ``lab`` at a time."""
    with open(_LOCK, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# --- refusals --------------------------------------------------------------------------------------------------------


def refuse_real_node(root: Path = Path("/")) -> None:
    """Never touch a machine that has the real thing."""
    for name in ("usr/bin/pvesh", "usr/bin/pmxcfs", "usr/share/perl5/PVE/CLI/pct.pm"):
        if (root / name).exists():
            raise PctError(f"this machine has Proxmox VE ({root / name}); {_NOT_HERE}", 1)
    if root == Path("/") and mounted(settings.PVE):
        raise PctError(f"{settings.PVE} is a mount (Proxmox VE?); {_NOT_HERE}", 1)


def overlapping(subnet: str, addresses: list[dict[str, Any]], routes: list[dict[str, Any]]) -> str:
    """The name of an interface other than the bridge that uses the lab's subnet, empty when there is none. Pure."""
    network = ipaddress.ip_network(f"{subnet}.0/24")
    for link in addresses:
        for entry in link.get("addr_info", []):
            if entry.get("family") == "inet" and link.get("ifname") != settings.BRIDGE:
                other = ipaddress.ip_interface(f"{entry['local']}/{entry['prefixlen']}").network
                if other.overlaps(network) and other.prefixlen > 8:
                    return str(link["ifname"])
    for route in routes:
        if route.get("dst") not in (None, "default") and route.get("dev") != settings.BRIDGE:
            other = ipaddress.ip_network(route["dst"], strict=False)
            if other.version == 4 and other.prefixlen > 8 and other.overlaps(network):
                return str(route.get("dev", "a route"))
    return ""


def _refuse_foreign(state: State) -> None:
    if settings.PVE.exists() and not settings.MARKER.exists() and "folders" not in state.values:
        raise PctError(f"{settings.PVE} is there and not the lab's: move it away first; nothing was changed", 1)
    link = settings.PCT_LINK
    if (link.exists() or link.is_symlink()) and not _our_link(link):
        raise PctError(f"{link} is there and not the lab's: move it away first; nothing was changed", 1)


def _our_link(link: Path) -> bool:
    return link.is_symlink() and os.readlink(link).endswith("/lab/pct")


# --- up --------------------------------------------------------------------------------------------------------------


def up() -> None:
    """Everything that is missing, in the order in which it is needed."""
    refuse_real_node()
    started = time.monotonic()
    settings.STATE.parent.mkdir(parents=True, exist_ok=True)
    with _alone():
        state = State()
        _refuse_foreign(state)
        _refuse_network(state)
        _folders(state)
        _packages(state)
        _subids(state)
        _network(state)
        _pool()
        _pve(state)
        _release(state)
        api.start(f"{_subnet(state)}.1")
        _base(state)
        _models()
        _link(state)
    took = f"{time.monotonic() - started:.0f} s"
    place = f"bridge {settings.BRIDGE} {_subnet(state)}.0/24, base local:vztmpl/{settings.BASE_NAME}"
    say(f"up ({took}): Proxmox VE {release.name()}, pct at {settings.PCT_LINK}, {place}")


def _subnet(state: State) -> str:
    return str(state.values.get("subnet", settings.SUBNET))


def _own_folder(state: State, path: Path, mode: int = 0o755) -> None:
    """Make a folder and note the highest one that wasn't there before."""
    if path.is_dir():
        return
    top = path
    while not top.parent.exists():
        top = top.parent
    state.add("folders", str(top))
    path.mkdir(parents=True, mode=mode)


def _folders(state: State) -> None:
    new = not settings.STATE.exists()
    settings.STATE.mkdir(mode=0o755, exist_ok=True)
    if new or "folders" not in state.values:
        state.add("folders", str(settings.STATE))
    state.set("subnet", _subnet(state))
    for path in (settings.POOL_MOUNT, settings.DIR_STORAGE / "images", settings.BASE_ARCHIVE.parent, settings.PVE,
                 settings.CALL_LOG.parent, settings.TASK_LOG, settings.RUN, settings.LOCK_DIR):  # fmt: skip
        _own_folder(state, path)
    if not settings.MARKER.exists():
        settings.MARKER.write_text("This is not Proxmox VE but the lab of phoenix.hypervisor; see lab/README.md.\n")


def installed(names: tuple[str, ...] = ()) -> set[str]:
    """Installed Debian packages, all or those of ``names``."""
    text = run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n", *names], check=False)
    return {line.split()[1] for line in text.splitlines() if line.startswith("ii ")}


def _packages(state: State) -> None:
    if not shutil.which("apt-get"):
        raise PctError("the lab needs Debian or Ubuntu: there is no apt-get on this machine", 1)
    missing = sorted(set(PACKAGES) - installed(PACKAGES))
    if not missing:
        return
    say(f"installing {' '.join(missing)}")
    before = installed()
    state.set("packages_before", sorted(before))
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    install = ["apt-get", "-q", "-y", "--no-install-recommends", "install", *missing]
    with _services_stay_off():
        for argv in (install, ["apt-get", "-q", "update"], install):
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, check=False
            )
            if done.returncode == 0 and argv is install:
                break
        else:
            words = "\n".join(done.stderr.strip().splitlines()[-8:])
            raise PctError(f"apt-get could not install {' '.join(missing)}:\n{words}", 1)
    state.add("packages", *sorted(installed() - before))
    state.set("packages_before", [])


@contextlib.contextmanager
def _services_stay_off() -> Iterator[None]:
    """The lab wants LXC's programs, not its services (lxc-net would make a bridge of its own)."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _subids(state: State) -> None:
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        text = path.read_text() if path.exists() else ""
        if _SUBIDS not in text.splitlines():
            state.add("subids", str(path))
            if text and not text.endswith("\n"):
                text += "\n"
            write_atomically(path, text + _SUBIDS + "\n")


def _refuse_network(state: State) -> None:
    if not shutil.which("ip"):
        return  # a machine this bare has no other bridge; iproute2 comes with the packages
    ours = _bridge_is_ours()
    if Path(f"/sys/class/net/{settings.BRIDGE}").exists() and not ours:
        raise PctError(f"a network interface {settings.BRIDGE} is there and not the lab's; nothing was changed", 1)
    addresses = json.loads(run(["ip", "-j", "-4", "addr"]) or "[]")
    routes = json.loads(run(["ip", "-j", "-4", "route"]) or "[]")
    user = overlapping(_subnet(state), addresses, routes)
    if user:
        raise PctError(
            f"the lab's subnet {_subnet(state)}.0/24 is in use by {user}: choose another one with"
            " PHOENIX_LAB_SUBNET=10.x.y lab up (and in the lab's inventory); nothing was changed",
            1,
        )


def _bridge_is_ours() -> bool:
    alias = Path(f"/sys/class/net/{settings.BRIDGE}/ifalias")
    return alias.exists() and alias.read_text().strip() == _ALIAS


def _uplink_mtu() -> str:
    routes = json.loads(run(["ip", "-j", "-4", "route", "show", "default"]) or "[]")
    if routes:
        return Path(f"/sys/class/net/{routes[0]['dev']}/mtu").read_text().strip()
    return "1500"


def nft_rules(subnet: str) -> str:
    """The lab's own nftables table: NAT for the containers, nothing else."""
    table = settings.NFT_TABLE
    return (
        f"table ip {table}\ndelete table ip {table}\n"
        f"table ip {table} {{\n"
        "  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n"
        f"    ip saddr {subnet}.0/24 ip daddr != {subnet}.0/24 masquerade\n  }}\n"
        "  chain forward {\n    type filter hook forward priority filter - 10; policy accept;\n"
        f'    iifname "{settings.BRIDGE}" accept\n    oifname "{settings.BRIDGE}" accept\n  }}\n}}\n'
    )


def _network(state: State) -> None:
    subnet = _subnet(state)
    if not _bridge_is_ours():
        run(["ip", "link", "add", settings.BRIDGE, "type", "bridge"])
        run(["ip", "link", "set", settings.BRIDGE, "alias", _ALIAS])
    # without a fixed address of its own the bridge takes that of its newest port, and the containers' ARP goes stale
    hwaddr = "0e:00:00:" + ":".join(f"{int(part):02x}" for part in subnet.split("."))
    run(["ip", "link", "set", settings.BRIDGE, "address", hwaddr])
    run(["ip", "link", "set", settings.BRIDGE, "mtu", _uplink_mtu(), "up"])
    run(["ip", "addr", "replace", f"{subnet}.1/24", "brd", "+", "dev", settings.BRIDGE])
    if _FORWARD.read_text().strip() != "1":
        state.set("ip_forward", _FORWARD.read_text().strip())
        _FORWARD.write_text("1\n")
    run(["nft", "-f", "-"], data=nft_rules(subnet))
    _open_forward_chain()


_FORWARD_RULES = (("-i", settings.BRIDGE), ("-o", settings.BRIDGE))


def _open_forward_chain() -> None:
    """An accept in our own table doesn't undo a drop in another one: Docker and ufw set that policy in iptables."""
    if not shutil.which("iptables") or "-P FORWARD DROP" not in run(["iptables", "-S", "FORWARD"], check=False):
        return
    for rule in _FORWARD_RULES:
        words = [*rule, "-m", "comment", "--comment", _ALIAS, "-j", "ACCEPT"]
        if not succeeds(["iptables", "-C", "FORWARD", *words]):
            run(["iptables", "-I", "FORWARD", *words])


def _pool() -> None:
    if mounted(settings.POOL_MOUNT):
        return
    if not settings.POOL_IMAGE.exists():
        partial = settings.POOL_IMAGE.with_suffix(".new")
        partial.unlink(missing_ok=True)
        with open(partial, "wb") as handle:
            handle.truncate(settings.POOL_BYTES)
        partial.chmod(0o600)
        run(["mkfs.btrfs", "-q", "-L", "phoenix-lab", str(partial)])
        partial.rename(settings.POOL_IMAGE)
    settings.POOL_MOUNT.mkdir(exist_ok=True)
    mount_options = "loop,noatime,discard=async"
    run(["mount", "-t", "btrfs", "-o", mount_options, str(settings.POOL_IMAGE), str(settings.POOL_MOUNT)])
    (settings.POOL_MOUNT / "images").mkdir(exist_ok=True)


STORAGE_CFG = f"""\
dir: local
\tpath {settings.VZ}
\tcontent vztmpl,backup,iso

btrfs: local-btrfs
\tpath {settings.POOL_MOUNT}
\tcontent images,rootdir

dir: local-dir
\tpath {settings.DIR_STORAGE}
\tcontent rootdir
"""


def _pve(state: State) -> None:
    settings.conf_dir().mkdir(parents=True, exist_ok=True)
    for name, target in (("lxc", f"nodes/{settings.node_name()}/lxc"), ("local", f"nodes/{settings.node_name()}")):
        link = settings.PVE / name
        if not link.is_symlink():
            link.symlink_to(target)
    if not settings.STORAGE_CFG.exists():
        write_atomically(settings.STORAGE_CFG, STORAGE_CFG, 0o640, store.WWW_DATA)
    for path in (settings.LXC_STATE, settings.LXC_LOG):
        _own_folder(state, path)
    # the containers' root has no rights on this host: it must be able to walk to its own files
    settings.LXC_STATE.chmod(0o755)


def _release(state: State) -> None:
    """The file in which a node says its release; PHOENIX_LAB_RELEASE writes it anew."""
    wanted = os.environ.get("PHOENIX_LAB_RELEASE", "")
    if wanted or not settings.PVECFG.exists():
        _own_folder(state, settings.PVECFG.parent)
        write_atomically(settings.PVECFG, release.text(release.checked(wanted or release.DEFAULT)))


def _base(state: State) -> None:
    machine = image.read_machine()
    folders = [folder for folder in image.local_folders(machine.pip) if os.path.isdir(folder)]
    state.set("shared_folders", folders)
    wanted = image.recipe_digest(machine)
    if settings.BASE_ARCHIVE.exists() and state.values.get("base_digest") == wanted:
        return
    say(f"building {settings.BASE_NAME} from {machine.mirror or 'Debian'}")
    image.build(machine, settings.BASE_ARCHIVE)
    state.set("base_digest", wanted)


def _models() -> None:
    maker = settings.CHECKOUT_LAB / "tiny_llama.py"
    if maker.exists():
        settings.MODELS.mkdir(mode=0o755, exist_ok=True)
        run(["/usr/bin/python3", "-I", str(maker), str(settings.MODELS / "tiny-llama")])
        run(["chmod", "-R", "a+rX", str(settings.MODELS)])


def _link(state: State) -> None:
    link = settings.PCT_LINK
    if link.is_symlink() and os.readlink(link) == str(settings.PCT_PROGRAM):
        return
    state.set("link", str(link))
    temporary = link.with_name(".pct.phoenix-lab")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(settings.PCT_PROGRAM)
    temporary.rename(link)


# --- down ------------------------------------------------------------------------------------------------------------


def down() -> None:
    """Undo everything, in the reverse order; what is not there is passed over."""
    refuse_real_node()
    with _alone():
        state = State()
        if not settings.STATE.exists():
            say("nothing is there")
            _LOCK.unlink(missing_ok=True)
            return
        api.stop()
        _containers_down()
        if _our_link(settings.PCT_LINK):
            settings.PCT_LINK.unlink()
        _pool_down()
        _network_down(state)
        _subids_down(state)
        _packages_down(state)
        _folders_down(state)
        _LOCK.unlink(missing_ok=True)
    say("down: this machine is what it was")


def _our_containers() -> set[int]:
    found = set(store.all_ids()) if settings.conf_dir().is_dir() else set()
    for place in (settings.POOL_MOUNT, settings.DIR_STORAGE):
        if (place / "images").is_dir():
            found |= {int(entry.name) for entry in (place / "images").iterdir() if entry.name.isdigit()}
    return found


def _containers_down() -> None:
    running = runtime.running_ids()
    for vmid in sorted(_our_containers()):
        say(f"removing container {vmid}")
        store.remove(vmid)  # first: the post-stop hook must not start it again
        if vmid in running:
            runtime.stop(vmid)
        runtime.forget(vmid)
        (settings.LXC_LOG / f"{vmid}.log").unlink(missing_ok=True)
        (settings.LOCK_DIR / f"pve-config-{vmid}.lock").unlink(missing_ok=True)


def _pool_down() -> None:
    deadline = time.monotonic() + 20
    while mounted(settings.POOL_MOUNT):
        if not succeeds(["umount", str(settings.POOL_MOUNT)]):
            if time.monotonic() > deadline:
                hint = f"see 'fuser -vm {settings.POOL_MOUNT}', then run 'lab down' again"
                raise PctError(f"{settings.POOL_MOUNT} is still in use: {hint}", 1)
            time.sleep(0.2)
    # a loop device normally goes with its mount; one that was left over by a crash is found by its file
    if shutil.which("losetup"):
        for line in run(["losetup", "-j", str(settings.POOL_IMAGE)], check=False).splitlines():
            run(["losetup", "-d", line.split(":")[0]], check=False)


def _network_down(state: State) -> None:
    if shutil.which("nft"):
        run(["nft", "delete", "table", "ip", settings.NFT_TABLE], check=False)
    if shutil.which("iptables"):
        for rule in _FORWARD_RULES:
            words = [*rule, "-m", "comment", "--comment", _ALIAS, "-j", "ACCEPT"]
            while succeeds(["iptables", "-C", "FORWARD", *words]) and succeeds(["iptables", "-D", "FORWARD", *words]):
                pass
    if _bridge_is_ours():
        run(["ip", "link", "del", settings.BRIDGE])
    if "ip_forward" in state.values:
        _FORWARD.write_text(state.values["ip_forward"] + "\n")


def _subids_down(state: State) -> None:
    for name in state.values.get("subids", []):
        lines = Path(name).read_text().splitlines() if Path(name).exists() else []
        write_atomically(Path(name), "".join(line + "\n" for line in lines if line != _SUBIDS))


def _packages_down(state: State) -> None:
    names = set(state.values.get("packages", []))
    if state.values.get("packages_before"):  # an installation that was cut off
        names |= installed() - set(state.values["packages_before"])
    names &= installed()
    if not names:
        return
    say(f"purging {' '.join(sorted(names))}")
    done = subprocess.run(
        ["apt-get", "-q", "-y", "purge", *sorted(names)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        check=False,
    )
    if done.returncode:
        words = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise PctError(f"apt-get could not purge the lab's packages:\n{words}", 1)
    if "lxc" in names:
        shutil.rmtree("/run/lxc", ignore_errors=True)  # LXC's own lock files


def _folders_down(state: State) -> None:
    last = str(settings.STATE)
    for name in [*sorted(set(state.values.get("folders", [])) - {last}, reverse=True), last]:
        if os.path.isdir(name):
            shutil.rmtree(name)


# --- status ----------------------------------------------------------------------------------------------------------


def _release_name() -> str:
    return release.name() if settings.PVECFG.exists() else "of Proxmox VE"


def status() -> int:
    """Print what is there; 0 when the lab is up, 3 when it isn't (or only in part)."""
    state = State()
    checks = {
        f"bridge {settings.BRIDGE} {_subnet(state)}.1/24": _bridge_is_ours(),
        f"storage local-btrfs at {settings.POOL_MOUNT}": mounted(settings.POOL_MOUNT),
        f"storage local-dir at {settings.DIR_STORAGE}": settings.DIR_STORAGE.is_dir(),
        f"base archive {settings.BASE_ARCHIVE}": settings.BASE_ARCHIVE.exists(),
        f"release {_release_name()} in {settings.PVECFG}": settings.PVECFG.exists(),
        f"REST API on port {settings.API_PORT}, access in {settings.API_SECRETS}": api.is_up(),
        f"pct at {settings.PCT_LINK}": _our_link(settings.PCT_LINK) and settings.PCT_LINK.exists(),
    }
    for name, good in checks.items():
        print(f"{'ok     ' if good else 'missing'} {name}")
    if settings.conf_dir().is_dir():
        running = runtime.running_ids()
        for vmid in store.all_ids():
            print(f"container {vmid} {'running' if vmid in running else 'stopped'}")
    return 0 if all(checks.values()) else 3


def main(words: list[str]) -> int:
    """Run one command."""
    os.environ["PATH"] = settings.SAFE_PATH
    os.umask(0o022)
    if words not in (["up"], ["down"], ["status"]):
        print(USAGE, end="", file=sys.stderr if words not in (["-h"], ["--help"], ["help"]) else sys.stdout)
        return 0 if words in (["-h"], ["--help"], ["help"]) else 2
    if words != ["status"] and os.geteuid() != 0:
        print("lab: must run as root", file=sys.stderr)
        return 1
    try:
        if words == ["status"]:
            return status()
        (up if words == ["up"] else down)()
    except PctError as reason:
        print(f"lab: {reason}", file=sys.stderr)
        return 1
    except OSError as reason:
        print(f"lab: {reason.filename or 'system call'}: {reason.strerror}", file=sys.stderr)
        return 1
    return 0
