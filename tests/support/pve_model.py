# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Proxmox VE node made of dictionaries, for tests without a lab: what each command does to the conf files.

Written from what was seen (pct.md), not from the plan that is tested with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator

from ansible_collections.phoenix.hypervisor.plugins.module_utils import pct_conf
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Command
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.process import Finished

LIVE = {"cores", "cpulimit", "cpuunits", "description", "hookscript", "hostname", "memory", "onboot", "protection",
        "startup", "swap", "tags"}  # fmt: skip
DEFAULT_MAP = "lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n"


class PveModel:
    """A node: conf files, running containers, and what these were started with."""

    is_local = True

    def __init__(self, release: tuple = (9, 1)) -> None:
        self.version = release
        self.texts: dict[int, str] = {}
        self.started: dict[int, str] = {}
        self.calls: list[tuple[str, ...]] = []
        # Answers that are given instead of doing a command, by the command, one each time.
        self.answers: dict[str, list[Finished]] = {}
        self.at_work: dict[int, list[str]] = {}

    # --- reading ----------------------------------------------------------------------------------------------------

    def release(self) -> tuple:
        return self.version

    def vmids(self) -> list[int]:
        return sorted(self.texts)

    def storage_types(self) -> dict[str, str]:
        return {"fast": "zfspool", "local": "dir", "local-btrfs": "btrfs", "local-dir": "dir"}

    def workers(self, vmid: int, or_clones: bool = False) -> list[str]:
        return self.at_work.get(vmid, [])

    def flock_holder(self, vmid: int) -> str:
        return ""

    @contextlib.contextmanager
    def turn(self, vmid: int, timeout: float) -> Iterator[None]:
        yield

    def settle(self, vmid: int, timeout: float) -> None:
        pass

    def words(self, command: Command) -> list[str]:
        return list(command.argv)

    def refusal(self, command: Command, container: Container) -> str:
        return ""

    def read(self, vmid: int) -> Container:
        if vmid not in self.texts:
            return Container()
        text = self.texts[vmid]
        digest = hashlib.sha1(text.encode()).hexdigest()
        return Container(True, vmid in self.started, text, digest, self.started.get(vmid))

    # --- changing ---------------------------------------------------------------------------------------------------

    def run(self, command: Command, timeout: float = 0, digest: str = "") -> Finished:
        self.calls.append(command.argv)
        if self.answers.get(command.name):
            return self.answers[command.name].pop(0)
        if digest and digest != self.read(command.vmid).digest:
            return Finished(command.argv, 255, "", "detected modified configuration - file changed by other user?")
        getattr(self, f"_{command.name}")(command.vmid, command.arguments, dict(command.options))
        return Finished(command.argv, 0, "", "")

    def edit_raw(self, vmid: int, digest: str, removed, added, timeout: float = 0) -> None:
        assert digest == self.read(vmid).digest
        self.texts[vmid] = pct_conf.edit_raw(self.texts[vmid], removed, added)

    def _conf(self, vmid: int) -> pct_conf.Conf:
        return pct_conf.parse(self.texts[vmid])

    def _save(self, vmid: int, conf: pct_conf.Conf) -> None:
        self.texts[vmid] = pct_conf.render_conf(conf)

    def _create(self, vmid: int, arguments, options) -> None:
        assert vmid not in self.texts
        storage, _colon, size = options.pop("rootfs", "local:4").partition(":")
        rootfs = f"{storage}:vm-{vmid}-disk-0,size={size}G"
        self.texts[vmid] = f"memory: 512\nrootfs: {rootfs}\n"
        self._set(vmid, (), options)

    def _clone(self, vmid: int, arguments, options) -> None:
        new = int(arguments[0])
        assert new not in self.texts
        conf = self._conf(vmid)
        section = conf.snapshots[options["snapname"]] if "snapname" in options else conf.main
        values = {
            key: re.sub(r"hwaddr=[^,]+", "hwaddr=BC:24:11:11:22:33", value)
            for key, value in section.values.items()
            if key not in ("template", "snaptime", "parent", "lock") and not key.startswith("unused")
        }
        self._save(new, pct_conf.Conf(pct_conf.Section(values, list(section.raw), list(section.comments))))
        if "hostname" in options:
            self._set(new, (), {"hostname": options["hostname"]})

    def _set(self, vmid: int, arguments, options) -> None:
        conf = self._conf(vmid)
        is_running = vmid in self.started
        for key in filter(None, options.pop("delete", "").split(",")):
            conf.pending.values.pop(key, None)
            if is_running and not self._is_live(key, True):
                waiting = {*filter(None, conf.pending.values.get("delete", "").split(",")), key}
                conf.pending.values["delete"] = ",".join(sorted(waiting))
            else:
                self._drop(vmid, conf, key)
        for key, value in options.items():
            kept = [k for k in conf.pending.values.get("delete", "").split(",") if k and k != key]
            conf.pending.values.pop("delete", None)
            if kept:
                conf.pending.values["delete"] = ",".join(kept)
            conf.pending.values.pop(key, None)
            if is_running and not self._is_live(key, key in conf.main.values):
                conf.pending.values[key] = value
            else:
                self._put(vmid, conf, key, value)
        self._save(vmid, conf)

    def _is_live(self, key: str, is_there: bool) -> bool:
        stem = key.rstrip("0123456789")
        if stem == "dev":
            return not is_there and self.version >= (9, 0)
        return stem in LIVE or stem == "net" or (stem == "mp" and not is_there)

    def _put(self, vmid: int, conf: pct_conf.Conf, key: str, value: str) -> None:
        if key == "description":
            conf.main.comments = pct_conf.as_comments(value)
            return
        allocation = re.match(r"([^/:]+):(\d+)(?=,|$)", value) if key.startswith("mp") else None
        if allocation:
            number = len(re.findall(rf"vm-{vmid}-disk-", pct_conf.render_conf(conf)))
            value = value.replace(allocation.group(0), f"{allocation.group(1)}:vm-{vmid}-disk-{number}", 1)
            value += f",size={allocation.group(2)}G"
        for unused in [k for k, v in conf.main.values.items() if k.startswith("unused") and v == value.split(",")[0]]:
            del conf.main.values[unused]
        conf.main.values[key] = value

    def _drop(self, vmid: int, conf: pct_conf.Conf, key: str) -> None:
        if key == "description":
            conf.main.comments = []
            return
        value = conf.main.values.pop(key)
        volume = value.split(",")[0]
        if key.startswith("mp") and not volume.startswith("/"):
            number = next(n for n in range(9) if f"unused{n}" not in conf.main.values)
            conf.main.values[f"unused{number}"] = volume

    def _apply_pending(self, vmid: int) -> None:
        conf = self._conf(vmid)
        for key in filter(None, conf.pending.values.pop("delete", "").replace("!", "").split(",")):
            if key in conf.main.values:
                self._drop(vmid, conf, key)
        for key, value in conf.pending.values.items():
            self._put(vmid, conf, key, value)
        conf.pending.values.clear()
        self._save(vmid, conf)

    def _resize(self, vmid: int, arguments, options) -> None:
        conf = self._conf(vmid)
        disk, size = arguments
        conf.main.values[disk] = re.sub(r"size=[^,]+", f"size={size}", conf.main.values[disk])
        self._save(vmid, conf)

    def _start(self, vmid: int, arguments, options) -> None:
        assert vmid not in self.started
        self._apply_pending(vmid)
        conf = self._conf(vmid)
        lines = [f"lxc.uts.name = {conf.main.values.get('hostname', f'CT{vmid}')}\n"]
        if not any(key == "lxc.idmap" for key, _value in conf.main.raw) and conf.main.values.get("unprivileged") == "1":
            lines.append(DEFAULT_MAP)
        lines += [f"{key} = {value}\n" for key, value in conf.main.raw]
        self.started[vmid] = "".join(lines)

    def _shutdown(self, vmid: int, arguments, options) -> None:
        del self.started[vmid]
        self._apply_pending(vmid)

    _stop = _shutdown

    def _reboot(self, vmid: int, arguments, options) -> None:
        self._shutdown(vmid, (), {})
        self._start(vmid, (), {})

    def _template(self, vmid: int, arguments, options) -> None:
        assert vmid not in self.started
        self.texts[vmid] += "template: 1\n"
        self._save(vmid, self._conf(vmid))

    def _destroy(self, vmid: int, arguments, options) -> None:
        assert vmid not in self.started
        del self.texts[vmid]

    def _unlock(self, vmid: int, arguments, options) -> None:
        conf = self._conf(vmid)
        del conf.main.values["lock"]
        self._save(vmid, conf)
