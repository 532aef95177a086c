# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""create, clone, template, destroy, resize and starting and stopping."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from node import changes, firewall, guest, release, runtime, schema, settings, storage, store, tasks
from node.conf import Conf, Section
from node.errors import PctError
from node.schema import MOUNT, ROOTFS

_DECOMPRESS = {".zst": ["zstd", "-dc"], ".gz": ["gzip", "-dc"], ".xz": ["xz", "-dc"], ".tar": ["cat"]}


def _id_map(section: Section) -> list[tuple[str, int, int, int]]:
    unprivileged = section.options.get("unprivileged") == "1"
    return schema.id_map(section.raw, unprivileged, settings.ID_START, settings.ID_COUNT)


def unpack(archive: Path, rootfs: Path, section: Section) -> None:
    """Unpack a template archive with the container's ids."""
    decompress = _DECOMPRESS.get(archive.suffix)
    if not decompress:
        raise PctError(f"unable to detect the compression of '{archive}'")
    tar = ["tar", "xpf", "-", "--totals", "--numeric-owner", "--sparse", "--acls", "--xattrs"]
    tar += ["--xattrs-include=user.*", "--xattrs-include=security.capability"]
    tar += ["--warning=no-file-ignored", "--warning=no-xattr-write", "--exclude", "./dev/*", "-C", str(rootfs)]
    maps = [part for line in _id_map(section) for part in ("-m", ":".join(map(str, line)))]
    if maps:
        tar = ["lxc-usernsexec", *maps, "--", *tar]
    print(f"extracting archive '{archive}'", flush=True)
    with subprocess.Popen([*decompress, str(archive)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as reader:
        code = subprocess.run(tar, stdin=reader.stdout, check=False).returncode
        assert reader.stdout is not None
        reader.stdout.close()
    if code or reader.returncode:
        raise PctError(f"command 'tar xpf - {archive}' failed: exit code {code or reader.returncode}")


def create(vmid: int, ostemplate: str, params: dict[str, str], extra: dict[str, str]) -> int:
    """Create a container. ``params`` are checked config options, ``extra`` the other options of the command."""
    archive = storage.template_path(ostemplate)
    default_storage = extra.get("storage", "local")
    section = Section({"arch": "amd64", "hostname": f"CT{vmid}", "memory": "512", "swap": "512"})
    section.options["unprivileged"] = "1" if release.at_least(9, 0) else "0"
    description = params.pop("description", "")
    section.description = description + "\n" if description else ""
    properties = ROOTFS.parse(params.pop("rootfs", "4"))
    if re.fullmatch(r"\d+(\.\d+)?", properties["volume"]):
        properties["volume"] = f"{default_storage}:{properties['volume']}"
    if not changes.NEW_VOLUME.fullmatch(properties["volume"]):
        raise PctError(f"unable to create CT {vmid} - rootfs needs STORAGE:SIZE_IN_GiB")
    storage.for_rootdir(properties["volume"].split(":")[0])
    section.options.update({key: value for key, value in params.items() if not key.startswith("unused")})
    changes.fill_in_nets(section.options)
    for key in [key for key in section.options if re.fullmatch(r"dev\d+", key)]:
        runtime.check_device(schema.DEVICE.parse(section.options[key]))
    password_hash = guest.hash_password(extra["password"]) if extra.get("password") else ""

    with store.flocked(vmid, 5):
        store.reserve(vmid, Conf(Section({"lock": "create"})))

    def work() -> None:
        made: list[storage.Volume] = []
        try:
            options = dict(section.options)
            text, volume = changes.allocate_volume(vmid, properties, section, ROOTFS)
            made.append(volume)
            options["rootfs"] = text
            for key, mount in runtime.mount_points(section).items():
                if changes.NEW_VOLUME.fullmatch(mount["volume"]):
                    text, extra_volume = changes.allocate_volume(vmid, mount, section, MOUNT)
                    made.append(extra_volume)
                    options[key] = text
            section.options = options
            unpack(archive, volume.path, section)
            os.makedirs(volume.path / "dev", exist_ok=True)
            ostype, _version = guest.os_release(volume.path)
            section.options.setdefault("ostype", ostype)
            print("Detected container architecture: amd64", flush=True)
            if section.options["ostype"] != "unmanaged":
                zone = section.options.get("timezone", "")
                guest.prepare_new(volume.path, section, password_hash, extra.get("ssh-public-keys", ""), zone)
                guest.prepare_start(volume.path, section)
            with store.flocked(vmid):
                store.save(vmid, Conf(section))
        except BaseException as reason:
            for volume in made:
                storage.free(volume)
            store.remove(vmid)
            if isinstance(reason, PctError):
                raise PctError(f"unable to create CT {vmid} - {reason}") from None
            raise
        if schema.boolean(extra.get("start", "0")) == "1":
            _start(vmid, Conf(section))

    return tasks.run_task("vzcreate", vmid, work)


def clone(vmid: int, new: int, extra: dict[str, str]) -> int:
    """Clone a container: linked from a template unless told otherwise, full from others."""
    target = extra.get("target", settings.node_name())
    if target != settings.node_name():
        raise PctError(f"no such cluster node '{target}'")
    snapname = extra.get("snapname", "")
    conf = store.load(vmid)
    store.refuse_locked(conf)
    if store.exists(new):
        raise PctError(f"unable to create CT {new}: config file already exists")
    is_template = conf.active.options.get("template") == "1"
    full = schema.boolean(extra["full"]) == "1" if "full" in extra else not is_template
    if snapname and snapname not in conf.snapshots:
        raise PctError(f"snapshot '{snapname}' does not exist")
    source = conf.snapshots[snapname] if snapname else conf.active
    if full and not snapname and runtime.is_running(vmid):
        if release.at_least(9, 1):
            raise PctError("Full clone of a running container is only possible from a snapshot")
        raise PctError("Cannot do full clones on a running container without snapshots")
    if not full and "storage" in extra:
        raise PctError("parameter 'storage' not allowed for linked clones")
    volumes: dict[str, storage.Volume] = {"rootfs": runtime.rootfs_volume(source)}
    for key, mount in runtime.mount_points(source).items():
        if mount["volume"].startswith("/"):
            kind = "device" if mount["volume"].startswith("/dev/") else "bind"
            raise PctError(f"unable to clone mountpoint '{key}' (type {kind})")
        volumes[key] = storage.volume(mount["volume"])
    for volume in volumes.values():
        if not full and not volume.storage.can_snapshot:
            raise PctError(f"Linked clone feature for '{volume}' is not available")
    elsewhere = storage.for_rootdir(extra["storage"]) if "storage" in extra else None

    section = source.copy()
    for key in list(section.options):
        if key in ("template", "snaptime", "parent", "lock", "snapstate") or key.startswith("unused"):
            del section.options[key]
    for key, net in guest.networks(section).items():
        net.pop("hwaddr", None)
        section.options[f"net{key}"] = schema.NET.render(schema.with_hwaddr(net))
    if "hostname" in extra:
        section.options["hostname"] = extra["hostname"]
    if "description" in extra:
        section.description = extra["description"] + "\n"

    def work() -> None:
        made: list[storage.Volume] = []
        try:
            with store.property_lock(vmid, "disk"):
                for key, volume in volumes.items():
                    kind = "full" if full else "linked"
                    print(f"create {kind} clone of mountpoint {key} ({volume})", flush=True)
                    if full:
                        copy = storage.full_clone(volume, elsewhere or volume.storage, new, snapname)
                        print(f"total size is {storage.used_bytes(copy.path):,}  speedup is 1.00", flush=True)
                    else:
                        copy = storage.linked_clone(volume, new, snapname)
                    made.append(copy)
                    form = ROOTFS if key == "rootfs" else MOUNT
                    section.options[key] = form.render({**form.parse(source.options[key]), "volume": str(copy)})
            root = made[0].path
            if section.options.get("ostype") != "unmanaged":
                guest.inside(root, section, guest.reset_machine_id)
                guest.prepare_start(root, section)
            with store.flocked(new):
                firewall.clone(vmid, new)
                store.save(new, Conf(section))
        except BaseException as reason:
            for volume in made:
                storage.free(volume)
            store.remove(new)
            if isinstance(reason, PctError):
                raise PctError(f"clone failed: {reason}" if "locked" not in str(reason) else str(reason)) from None
            raise

    with store.flocked(new, 5):
        store.reserve(new, Conf(Section({"lock": "create"})))
    return tasks.run_task("vzclone", vmid, work)


def template(vmid: int) -> int:
    """Convert a container to a template."""
    with store.flocked(vmid):
        conf = store.load(vmid)
        store.refuse_locked(conf)
        if conf.snapshots:
            raise PctError("unable to create template, because CT contains snapshots")
        if conf.active.options.get("template") == "1":
            raise PctError("you can't convert a template to a template")
        if runtime.is_running(vmid):
            raise PctError("you can't convert a CT to template if the CT is running")

    def work() -> None:
        with store.flocked(vmid):
            conf = store.load(vmid)
            mounts = runtime.mount_points(conf.active)
            for key in ["rootfs", *mounts]:
                form = ROOTFS if key == "rootfs" else MOUNT
                properties = form.parse(conf.active.options[key])
                if properties["volume"].startswith("/"):
                    continue
                properties["volume"] = str(storage.make_base(storage.volume(properties["volume"])))
                conf.active.options[key] = form.render(properties)
            store.save(vmid, conf)
            conf.active.options["template"] = "1"
            store.save(vmid, conf)

    return tasks.run_task("vztemplate", vmid, work, keeps_rc=False)


def destroy(vmid: int, extra: dict[str, str]) -> int:
    """Destroy a container and the volumes that its conf names; others of its number only when told so."""
    force = schema.boolean(extra.get("force", "0")) == "1"
    unreferenced = schema.boolean(extra.get("destroy-unreferenced-disks", "0")) == "1"
    purge = schema.boolean(extra.get("purge", "0")) == "1"
    conf = store.load(vmid)
    _refuse_destroy(vmid, conf, force)

    def work() -> None:
        with store.flocked(vmid):
            conf = store.load(vmid)
            _refuse_destroy(vmid, conf, force)
            if runtime.is_running(vmid):
                print(f"forced to stop CT {vmid} before destroying!", flush=True)
                runtime.stop(vmid)
            conf = store.load(vmid)
            conf.active.options["lock"] = "destroyed"
            store.save(vmid, conf)
            volumes = {str(v): v for v in storage.leftovers(vmid)} if unreferenced else {}
            for section in [conf.active, *conf.snapshots.values()]:
                for volid in changes.volumes_of(section):
                    found = storage.volume(volid)
                    if found.owner == vmid:
                        volumes[volid] = found
            for found in volumes.values():
                for name in conf.snapshots:
                    storage.delete_snapshot(found, name)
                storage.free(found)
            if purge:
                print(f"purging CT {vmid} from related configurations..", flush=True)
            runtime.forget(vmid)
            firewall.remove(vmid)
            store.remove(vmid)

    return tasks.run_task("vzdestroy", vmid, work)


def _refuse_destroy(vmid: int, conf: Conf, force: bool) -> None:
    store.refuse_locked(conf, "destroyed")
    if conf.active.options.get("protection") == "1":
        raise PctError(f"can't remove CT {vmid} - protection mode enabled")
    if runtime.is_running(vmid) and not force:
        raise PctError(f"unable to destroy CT {vmid} - container is running")


def resize(vmid: int, disk: str, size: str, digest: str) -> int:
    """Grow a volume. The lab writes the size down; no storage of it enforces one."""
    if not re.fullmatch(r"rootfs|mp\d+", disk):
        raise PctError(f"disk '{disk}' does not exist")
    if not re.fullmatch(r"\+?\d+(\.\d+)?[KMGT]?", size):
        raise PctError(f"invalid size string '{size}'")
    with store.flocked(vmid):
        changes.check_digest(vmid, digest)
        conf = store.load(vmid)
        store.refuse_locked(conf)
        if disk not in conf.active.options:
            raise PctError(f"disk '{disk}' does not exist")
        form = ROOTFS if disk == "rootfs" else MOUNT
        properties = form.parse(conf.active.options[disk])
        if properties["volume"].startswith("/"):
            raise PctError("can't resize mount point owned by another container or not of type volume")
        now = schema.size_bytes(properties.get("size", "0"))
        wanted = schema.size_bytes(size.lstrip("+")) + (now if size.startswith("+") else 0)
        if wanted < now:
            raise PctError("unable to shrink disk size")
        if wanted == now:
            raise PctError("disk is already at specified size")

    def work() -> None:
        with store.flocked(vmid):
            conf = store.load(vmid)
            properties["size"] = schema.size_text(wanted)
            conf.active.options[disk] = form.render(properties)
            store.save(vmid, conf)

    return tasks.run_task("resize", vmid, work, keeps_rc=False)


def _start(vmid: int, conf: Conf, debug: bool = False) -> None:
    if conf.pending or conf.delete:
        changes.apply_pending(vmid, conf)
        store.save(vmid, conf)
    runtime.start(vmid, conf.active, debug)


def _startable(vmid: int, conf: Conf, skiplock: bool) -> None:
    if not skiplock:
        store.refuse_locked(conf, "mounted")
    if conf.active.options.get("template") == "1":
        raise PctError("you can't start a CT if it's a template")


def start(vmid: int, skiplock: bool = False, debug: bool = False) -> int:
    """Start a container."""
    if runtime.is_running(vmid):
        raise PctError(f"CT {vmid} already running")

    def work() -> None:
        with store.flocked(vmid):
            conf = store.load(vmid)
            if runtime.is_running(vmid):
                raise PctError(f"CT {vmid} already running")
            _startable(vmid, conf, skiplock)
            _start(vmid, conf, debug)

    return tasks.run_task("vzstart", vmid, work)


def stop(vmid: int, skiplock: bool = False) -> int:
    """Kill a container."""
    if not runtime.is_running(vmid):
        raise PctError(f"CT {vmid} not running")

    def work() -> None:
        with store.flocked(vmid):
            if not skiplock:
                store.refuse_locked(store.load(vmid), "mounted")
            if not runtime.is_running(vmid):
                raise PctError(f"CT {vmid} not running")
            runtime.stop(vmid)

    return tasks.run_task("vzstop", vmid, work)


def shutdown(vmid: int, seconds: int, force: bool) -> int:
    """Ask a container to shut down."""
    if not runtime.is_running(vmid):
        raise PctError(f"CT {vmid} not running")

    def work() -> None:
        with store.flocked(vmid):
            store.refuse_locked(store.load(vmid))
            runtime.shutdown(vmid, seconds, force)

    return tasks.run_task("vzshutdown", vmid, work)


def reboot(vmid: int, seconds: int) -> int:
    """Shut down (kill after ``seconds``), start; pending changes take effect. The ``lock:`` stops only the start."""
    if not runtime.is_running(vmid):
        raise PctError(f"VM {vmid} not running")

    def work() -> None:
        with store.flocked(vmid):
            runtime.shutdown(vmid, seconds, True)
            conf = store.load(vmid)
            if conf.active.options.get("lock"):
                print(f"CT is locked ({conf.active.options['lock']})", file=sys.stderr, flush=True)
                raise PctError(f"startup for container '{vmid}' failed")
            _startable(vmid, conf, False)
            _start(vmid, conf)

    return tasks.run_task("vzreboot", vmid, work)


def unlock(vmid: int) -> None:
    """Take the ``lock:`` property away."""
    with store.flocked(vmid):
        conf = store.load(vmid)
        if "lock" not in conf.active.options:
            raise PctError("no lock found trying to remove any lock")
        del conf.active.options["lock"]
        store.save(vmid, conf)


def disk_usage(vmid: int) -> None:
    """Print ``pct df``."""
    section = store.load(vmid).active
    rows = [("rootfs", ROOTFS.parse(section.options["rootfs"]), "/")]
    rows += [(key, mount, mount["mp"]) for key, mount in runtime.mount_points(section).items()]
    cells = [("MP", "Volume", "Size", "Used", "Avail", "Use%", "Path")]
    for key, properties, path in rows:
        source = runtime.mount_source(properties)
        fs = os.statvfs(source)
        total = schema.size_bytes(properties.get("size", "0")) or fs.f_blocks * fs.f_frsize
        used = storage.used_bytes(source)
        share = f"{used / total:.1f}" if total else "0.0"
        numbers = (_human(total), _human(used), _human(max(0, total - used)), share)
        cells.append((key, properties["volume"], *numbers, path))
    widths = [max(len(row[i]) for row in cells) for i in range(7)]
    for row in cells:
        print(" ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _human(count: int) -> str:
    size = float(count)
    for unit in ("", "K", "M", "G"):
        if size < 1024:
            return f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}T"
