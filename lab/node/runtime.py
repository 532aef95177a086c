# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The running side: LXC's own config, start and stop, and what can change while a container runs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from node import guest, release, settings, storage, tasks
from node.conf import Section
from node.errors import PctError
from node.schema import DEVICE, FEATURES, MOUNT, ROOTFS, Properties, id_map, to_host
from node.system import in_child, pure_cgroup2, run, succeeds


@dataclass(frozen=True)
class Host:
    """What the rendering needs to know of the host."""

    cgroup2: bool
    hook: str
    cpus: tuple[int, ...]
    shared_folders: tuple[str, ...] = field(default=())


def is_running(vmid: int) -> bool:
    """Whether the abstract socket of the container's monitor is there, as genuine pct decides."""
    wanted = f"@/var/lib/lxc/{vmid}/command"
    with open("/proc/net/unix") as handle:
        return any(line.rstrip().endswith(wanted) for line in handle)


def running_ids() -> set[int]:
    """All running containers of this node."""
    with open("/proc/net/unix") as handle:
        return {int(i) for i in re.findall(r"@/var/lib/lxc/(\d+)/command", handle.read())}


def init_pid(vmid: int) -> int:
    """The process id of the container's init, seen from the host."""
    text = run(["lxc-info", "-n", str(vmid), "-p", "-H"], check=False).strip()
    if not text.isdigit() or int(text) < 1:
        raise PctError(f"CT {vmid} not running")
    return int(text)


def rootfs_volume(section: Section) -> storage.Volume:
    """The volume of the root file system."""
    text = section.options.get("rootfs")
    if not text:
        raise PctError("missing rootfs in configuration")
    return storage.volume(ROOTFS.parse(text)["volume"])


def mount_points(section: Section) -> dict[str, Properties]:
    """mpN by key, in the order of their numbers."""
    keys = [key for key in section.options if re.fullmatch(r"mp\d+", key)]
    return {key: MOUNT.parse(section.options[key]) for key in sorted(keys, key=lambda k: int(k[2:]))}


def devices(section: Section) -> dict[str, Properties]:
    """devN by key, in the order of their numbers."""
    keys = [key for key in section.options if re.fullmatch(r"dev\d+", key)]
    return {key: DEVICE.parse(section.options[key]) for key in sorted(keys, key=lambda k: int(k[3:]))}


def mount_source(properties: Properties) -> Path:
    """The folder or device on the host behind a mount point."""
    where = properties["volume"]
    return Path(where) if where.startswith("/") else storage.volume(where).path


def check_device(properties: Properties) -> os.stat_result:
    """The device on the host; the genuine refusals when there is none."""
    path = properties["path"]
    try:
        found = os.stat(path)
    except OSError:
        raise PctError(f"Device {path} does not exist") from None
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise PctError(f"{path} is not a device")
    return found


def passthrough(vmid: int) -> Path:
    """Where the device nodes of a container are made."""
    return settings.LXC_STATE / str(vmid) / "passthrough"


def device_rule(properties: Properties) -> str:
    """The cgroup rule of a device, such as ``c 195:0 rw``."""
    found = check_device(properties)
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
    access = "r" if properties.get("deny-write") == "1" else "rw"
    return f"{kind} {os.major(found.st_rdev)}:{os.minor(found.st_rdev)} {access}"


def limits(options: dict[str, str], cgroup2: bool) -> list[tuple[str, str]]:
    """(cgroup file, value) of memory, swap and CPU, in the names of the host's cgroup version."""
    memory = int(options.get("memory", "512")) * 1024**2
    swap = int(options.get("swap", "512")) * 1024**2
    limit = float(options.get("cpulimit", "0"))
    units = options.get("cpuunits")
    if cgroup2:
        # memory.high a little below, so that the guest is slowed down before it is killed (as on Proxmox)
        high = memory * 1016 // 1024
        found = [("memory.max", str(memory)), ("memory.high", str(high)), ("memory.swap.max", str(swap))]
        if limit:
            found.append(("cpu.max", f"{int(limit * 100000)} 100000"))
        if units:
            found.append(("cpu.weight", str(min(10000, max(1, int(units))))))
        return found
    found = [("memory.limit_in_bytes", str(memory)), ("memory.memsw.limit_in_bytes", str(memory + swap))]
    if limit:
        found += [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", str(int(limit * 100000)))]
    if units:
        found.append(("cpu.shares", units))
    return found


def render_config(vmid: int, section: Section, host: Host, rules: dict[str, str]) -> str:
    """LXC's config of a container. ``rules`` has the cgroup rule of each devN."""
    options = section.options
    unprivileged = options.get("unprivileged") == "1"
    features = FEATURES.parse(options.get("features", ""))
    cgroup = "lxc.cgroup2" if host.cgroup2 else "lxc.cgroup"
    lines = ["# Made by the lab's pct at each start; edit /etc/pve/lxc instead."]
    lines.append("lxc.include = /usr/share/lxc/config/common.conf")
    if unprivileged:
        lines.append("lxc.include = /usr/share/lxc/config/userns.conf")
    lines += [
        f"lxc.uts.name = {guest.full_names(options.get('hostname', f'CT{vmid}'), '')[0]}",
        f"lxc.arch = {options.get('arch', 'amd64')}",
        f"lxc.rootfs.path = dir:{rootfs_volume(section).path}",
        f"lxc.tty.max = {options.get('tty', '2')}",
        "lxc.apparmor.profile = unconfined",
        f"lxc.hook.pre-start = {host.hook}",
        f"lxc.hook.post-stop = {host.hook}",
        "lxc.environment = TERM=linux",
    ]
    if features.get("nesting") == "1":
        lines += [
            "lxc.mount.entry = proc dev/.lxc/proc proc create=dir,optional 0 0",
            "lxc.mount.entry = sys dev/.lxc/sys sysfs create=dir,optional 0 0",
        ]
    if features.get("fuse") == "1":
        lines.append("lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file,optional 0 0")
    lines += [f"{cgroup}.{name} = {value}" for name, value in limits(options, host.cgroup2)]
    lines.append(f"{cgroup}.cpuset.cpus = {','.join(map(str, host.cpus))}")
    for key, properties in devices(section).items():
        lines.append(f"{cgroup}.devices.allow = {rules[key]}")
        lines.append(_mount_entry(str(passthrough(vmid)) + properties["path"], properties["path"], "bind,create=file"))
    for properties in mount_points(section).values():
        source = mount_source(properties)
        words = ["bind", "create=" + ("dir" if source.is_dir() else "file")]
        words += ["ro"] if properties.get("ro") == "1" else []
        words += [word for word in properties.get("mountoptions", "").split(";") if word in _BIND_OPTIONS]
        lines.append(_mount_entry(str(source), properties["mp"], ",".join(words)))
    for folder in host.shared_folders:
        lines.append(_mount_entry(folder, folder, "bind,ro,create=dir,optional"))
    for kind, inside, outside, count in id_map(section.raw, unprivileged, settings.ID_START, settings.ID_COUNT):
        lines.append(f"lxc.idmap = {kind} {inside} {outside} {count}")
    for number, net in sorted(guest.networks(section).items()):
        prefix = f"lxc.net.{number}"
        lines += [f"{prefix}.type = veth", f"{prefix}.name = {net['name']}"]
        lines.append(f"{prefix}.veth.pair = veth{vmid}i{number}")
        lines += [f"{prefix}.hwaddr = {net['hwaddr']}"] if "hwaddr" in net else []
        lines += [f"{prefix}.link = {net['bridge']}"] if "bridge" in net else []
        lines += [f"{prefix}.mtu = {net['mtu']}"] if "mtu" in net else []
        lines += [f"{prefix}.flags = up"] if net.get("link_down") != "1" else []
    for key, value in section.raw:
        if key == "lxc.idmap":
            continue
        if key.startswith("lxc.cgroup2.devices.") and not host.cgroup2:
            # So that a device rule written for Proxmox has its effect here too. The line itself stays, as on Proxmox.
            lines.append(f"{key.replace('cgroup2', 'cgroup')} = {value}")
        if key == "lxc.environment.runtime":
            key = "lxc.environment"  # LXC 5.0 has one kind of environment, LXC 6 tells hooks' and runtime's apart
        lines.append(f"{key} = {value}")
    return "".join(line + "\n" for line in lines)


_BIND_OPTIONS = frozenset({"nodev", "nosuid", "noexec", "noatime"})


def _mount_entry(source: str, target: str, words: str) -> str:
    """A line of LXC's config for a bind mount; paths are escaped as fstab wants them."""
    return f"lxc.mount.entry = {_escape(source)} {_escape(target.lstrip('/'))} none {words} 0 0"


def _escape(path: str) -> str:
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def choose_cpus(wanted: int | None, available: list[int], taken: list[list[int]]) -> tuple[int, ...]:
    """The CPUs that carry the fewest containers; all of them when ``cores`` is unset or more than there are."""
    if wanted is None or wanted >= len(available):
        return tuple(available)
    load = {cpu: sum(cpu in others for others in taken if len(others) < len(available)) for cpu in available}
    return tuple(sorted(sorted(available, key=lambda cpu: (load[cpu], cpu))[:wanted]))


def parse_cpu_list(text: str) -> list[int]:
    """``0-2,5`` as [0, 1, 2, 5]."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        low, high = part.partition("-")[::2]
        found += range(int(low), int(high or low) + 1)
    return found


def cpus_for(vmid: int, options: dict[str, str]) -> tuple[int, ...]:
    """The CPUs that a container gets now."""
    taken = []
    for other in running_ids() - {vmid}:
        with contextlib.suppress(OSError):
            text = (settings.LXC_STATE / str(other) / "config").read_text()
            for found in re.findall(r"^lxc\.cgroup2?\.cpuset\.cpus = (.*)$", text, re.M):
                taken.append(parse_cpu_list(found))
    wanted = int(options["cores"]) if "cores" in options else None
    return choose_cpus(wanted, sorted(os.sched_getaffinity(0)), taken)


def host_facts(vmid: int, options: dict[str, str]) -> Host:
    """What this host is, for :func:`render_config`."""
    shared: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        shared = json.loads(settings.STATE_FILE.read_text()).get("shared_folders", [])
    return Host(
        cgroup2=pure_cgroup2(),
        hook=str(settings.CHECKOUT_LAB / "node/hook"),
        cpus=cpus_for(vmid, options),
        shared_folders=tuple(folder for folder in shared if os.path.isdir(folder)),
    )


def pre_start(vmid: int, section: Section) -> None:
    """LXC's pre-start hook: check what the conf names, make device nodes, write the guest's network."""
    rootfs = rootfs_volume(section).path
    if not rootfs.is_dir():
        raise PctError(f"directory '{rootfs}' does not exist")
    for properties in mount_points(section).values():
        if not mount_source(properties).exists():
            raise PctError(f"directory '{mount_source(properties)}' does not exist")
    shutil.rmtree(passthrough(vmid), ignore_errors=True)
    for properties in devices(section).values():
        make_device_node(vmid, section, properties)
    if section.options.get("ostype") != "unmanaged":
        guest.prepare_start(rootfs, section)


def make_device_node(vmid: int, section: Section, properties: Properties) -> Path:
    """A device node with the owner and mode of devN, for a bind mount into the container."""
    found = check_device(properties)
    maps = id_map(section.raw, section.options.get("unprivileged") == "1", settings.ID_START, settings.ID_COUNT)
    node = Path(str(passthrough(vmid)) + properties["path"])
    node.parent.mkdir(parents=True, exist_ok=True)
    node.unlink(missing_ok=True)
    os.mknod(node, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev)
    uid, gid = (to_host(maps, kind, int(properties.get(f"{kind}id", "0"))) for kind in "ug")
    os.chown(node, uid, gid)
    os.chmod(node, int(properties.get("mode", "0660"), 8))
    return node


def start(vmid: int, section: Section, debug: bool = False) -> None:
    """Start a container; done when LXC says RUNNING. LXC's stderr goes to our stdout when it fails."""
    rules = {key: device_rule(properties) for key, properties in devices(section).items()}
    folder = settings.LXC_STATE / str(vmid)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    (folder / "config").write_text(render_config(vmid, section, host_facts(vmid, section.options), rules))
    settings.LXC_LOG.mkdir(parents=True, exist_ok=True)
    settings.RUN.mkdir(parents=True, exist_ok=True)
    log, words = settings.LXC_LOG / f"{vmid}.log", settings.RUN / f"ct-{vmid}.stderr"
    log.unlink(missing_ok=True)
    with open(words, "wb") as errors:
        process = subprocess.Popen(
            ["lxc-start", "-F", "-n", str(vmid), "-o", str(log)] + (["-l", "DEBUG"] if debug else []),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env={"PATH": settings.SAFE_PATH, "LANG": "C.UTF-8"},
        )
    while process.poll() is None:
        if succeeds(["lxc-wait", "-n", str(vmid), "-s", "RUNNING", "-t", "0"]):
            break
        time.sleep(0.03)
    else:
        print(words.read_text(errors="replace"), end="")
        if debug:
            print(log.read_text(errors="replace"), end="")
        raise PctError(f"startup for container '{vmid}' failed")
    version = guest.systemd_version(rootfs_volume(section).path)
    nesting = FEATURES.parse(section.options.get("features", "")).get("nesting") == "1"
    if version and release.at_least(9, 1) and section.options.get("unprivileged") == "1" and not nesting:
        tasks.warn(f"Systemd {version} detected. You may need to enable nesting.")


def _wait_gone(vmid: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while is_running(vmid):
        if time.monotonic() > deadline:
            raise PctError("container did not stop")
        time.sleep(0.02)


def stop(vmid: int) -> None:
    """Kill a container."""
    run(["lxc-stop", "-n", str(vmid), "--kill"], check=False)
    _wait_gone(vmid)


def shutdown(vmid: int, seconds: int, kill: bool) -> None:
    """Ask the container's init to end; kill it after ``seconds`` when ``kill``, else fail."""
    # stderr is left alone: LXC's noise shows up in the task, as it does on Proxmox
    argv = ["lxc-stop", "-n", str(vmid), "--timeout", str(seconds)] + ([] if kill else ["--nokill"])
    sys.stdout.flush()
    subprocess.run(argv, stdin=subprocess.DEVNULL, check=False)
    if is_running(vmid) and not kill:
        with contextlib.suppress(PctError):
            _wait_gone(vmid, 1)
        if is_running(vmid):
            raise PctError("container did not stop")
    _wait_gone(vmid)


@contextlib.contextmanager
def frozen(vmid: int) -> Iterator[None]:
    """Hold a running container still for a snapshot; nothing to do for a stopped one."""
    if not is_running(vmid):
        yield
        return
    run(["lxc-freeze", "-n", str(vmid)])
    try:
        os.sync()
        yield
    finally:
        run(["lxc-unfreeze", "-n", str(vmid)])


def clean_up(vmid: int) -> None:
    """After a stop: the device nodes are not needed any more."""
    shutil.rmtree(passthrough(vmid), ignore_errors=True)


def forget(vmid: int) -> None:
    """After a destroy: LXC's folder and logs of the container."""
    shutil.rmtree(settings.LXC_STATE / str(vmid), ignore_errors=True)
    (settings.RUN / f"ct-{vmid}.stderr").unlink(missing_ok=True)


# --- while it runs ---------------------------------------------------------------------------------------------------


def cgroup_set(vmid: int, name: str, value: str) -> None:
    """Write one cgroup file of a running container."""
    run(["lxc-cgroup", "-n", str(vmid), name, value])


def apply_limits(vmid: int, old: dict[str, str], new: dict[str, str]) -> None:
    """Bring memory, swap and CPU limits of a running container to the new values."""
    two = pure_cgroup2()
    before, wanted = dict(limits(old, two)), dict(limits(new, two))
    idle = {"cpu.max": "max 100000", "cpu.weight": "100", "cpu.cfs_quota_us": "-1", "cpu.shares": "1024"}
    changed = [name for name in wanted if wanted[name] != before.get(name)]
    for name in before.keys() - wanted.keys():
        if name in idle:
            wanted[name] = idle[name]
            changed.append(name)
    # v1 refuses a memory limit above memory+swap: when growing the sum goes first, when shrinking it goes last
    growing = int(wanted.get("memory.memsw.limit_in_bytes", 0)) >= int(before.get("memory.memsw.limit_in_bytes", 0))
    changed.sort(key=lambda name: (name == "memory.memsw.limit_in_bytes") != growing)
    for name in changed:
        cgroup_set(vmid, name, wanted[name])


def apply_cores(vmid: int, options: dict[str, str]) -> None:
    """Give a running container the CPUs that its conf asks for (on Proxmox pvestatd does this, seconds later)."""
    cgroup_set(vmid, "cpuset.cpus", ",".join(map(str, cpus_for(vmid, options))))


def bridge_exists(name: str) -> bool:
    """Whether a bridge of this name is there."""
    return Path(f"/sys/class/net/{name}/bridge").is_dir()


def _mtu_of(bridge: str) -> str:
    return Path(f"/sys/class/net/{bridge}/mtu").read_text().strip() if bridge else "1500"


def apply_net(vmid: int, number: int, old: Properties | None, new: Properties | None, section: Section) -> None:
    """Plug, change or unplug a network card of a running container. ``section`` already has the new state."""
    pair = f"veth{vmid}i{number}"
    pid = str(init_pid(vmid))
    netns = ["nsenter", "-t", pid, "-n", "--"]
    link_keys = ("name", "bridge", "hwaddr", "mtu", "tag", "link_down")
    replug = old is None or new is None or any(old.get(key) != new.get(key) for key in link_keys)
    if replug and old is not None:
        run(["ip", "link", "del", pair], check=False)
    if new is not None:
        name = new["name"]
        if replug:
            mtu = new.get("mtu") or _mtu_of(new.get("bridge", ""))
            peer = f"{pair}p"
            ends = ["type", "veth", "peer", "name", peer, "mtu", mtu, "address", new["hwaddr"]]
            run(["ip", "link", "add", pair, "mtu", mtu, *ends])
            if "bridge" in new:
                run(["ip", "link", "set", pair, "master", new["bridge"]])
            run(["ip", "link", "set", pair, "up"])
            run(["ip", "link", "set", peer, "netns", pid, "name", name])
        else:
            run([*netns, "ip", "addr", "flush", "dev", name, "scope", "global"])
        if new.get("link_down") != "1":
            run([*netns, "ip", "link", "set", name, "up"])
            for family, key, gateway in (("-4", "ip", "gw"), ("-6", "ip6", "gw6")):
                if "/" in new.get(key, ""):
                    run([*netns, "ip", family, "addr", "replace", new[key], "dev", name])
                    if gateway in new:
                        run([*netns, "ip", family, "route", "replace", "default", "via", new[gateway], "dev", name])
    if section.options.get("ostype") != "unmanaged":
        guest.prepare_network(rootfs_volume(section).path, section)


_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _CLONE, _CLOEXEC, _RDONLY = -100, 0x1000, 1, 0o2000000, 1
_CLONE_NEWNS = 0x20000


def _attach_mount(vmid: int, source: Path, target: str, read_only: bool) -> None:
    """Bind a path of the host into the mount namespace of a running container."""
    pid = init_pid(vmid)

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)

        def checked(result: int, what: str) -> int:
            if result < 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error), what)
            return result

        tree = checked(libc.syscall(_OPEN_TREE, _AT_FDCWD, str(source).encode(), _CLONE | _CLOEXEC), str(source))
        if read_only:
            attributes = (ctypes.c_uint64 * 4)(_RDONLY, 0, 0, 0)
            checked(libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), 32), str(source))
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        root = os.open(f"/proc/{pid}/root", os.O_RDONLY)
        checked(libc.setns(namespace, _CLONE_NEWNS), "setns")
        os.fchdir(root)
        os.chroot(".")
        checked(libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, target.encode(), 4), target)

    in_child(work)


def plug_mount(vmid: int, properties: Properties) -> None:
    """Add a mount point to a running container."""
    source = mount_source(properties)
    make = 'mkdir -p -- "$1"' if source.is_dir() else 'mkdir -p -- "$(dirname -- "$1")" && touch -- "$1"'
    run(["lxc-attach", "-n", str(vmid), "--clear-env", "--", "sh", "-c", make, "sh", properties["mp"]])
    _attach_mount(vmid, source, properties["mp"], properties.get("ro") == "1")


def plug_device(vmid: int, section: Section, properties: Properties) -> None:
    """Add a device to a running container."""
    node = make_device_node(vmid, section, properties)
    cgroup_set(vmid, "devices.allow", device_rule(properties))
    make = 'mkdir -p -- "$(dirname -- "$1")" && touch -- "$1"'
    run(["lxc-attach", "-n", str(vmid), "--clear-env", "--", "sh", "-c", make, "sh", properties["path"]])
    _attach_mount(vmid, node, properties["path"], False)


def read_cgroup(vmid: int, name: str) -> str:
    """A cgroup file of a running container, empty when it isn't there."""
    return run(["lxc-cgroup", "-n", str(vmid), name], check=False).strip()
