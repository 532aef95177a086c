# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One thing that Proxmox VE is told to do with a container, in the words of C(pct) and in those of its REST API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Command → HTTP method, path below /nodes/<node>/, and the names of its arguments where the path doesn't have them.
_CALLS = {
    "create": ("POST", "lxc", ("ostemplate",)),
    "clone": ("POST", "lxc/{vmid}/clone", ("newid",)),
    "set": ("PUT", "lxc/{vmid}/config", ()),
    "resize": ("PUT", "lxc/{vmid}/resize", ("disk", "size")),
    "start": ("POST", "lxc/{vmid}/status/start", ()),
    "stop": ("POST", "lxc/{vmid}/status/stop", ()),
    "shutdown": ("POST", "lxc/{vmid}/status/shutdown", ()),
    "reboot": ("POST", "lxc/{vmid}/status/reboot", ()),
    "template": ("POST", "lxc/{vmid}/template", ()),
    "destroy": ("DELETE", "lxc/{vmid}", ()),
    "snapshot": ("POST", "lxc/{vmid}/snapshot", ("snapname",)),
    "delsnapshot": ("DELETE", "lxc/{vmid}/snapshot/{0}", ()),
    "rollback": ("POST", "lxc/{vmid}/snapshot/{0}/rollback", ()),
}


@dataclass(frozen=True)
class Call:
    """A request to the REST API: method, path below C(/nodes/<node>/), parameters."""

    method: str
    path: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Command:
    """A subcommand of C(pct): what to do, with which container.

    :ivar name: C(set), C(clone), …
    :ivar vmid: the container's CTID; the source's for C(clone)
    :ivar arguments: what stands behind the CTID (the new CTID of a clone, the name of a snapshot, disk and size)
    :ivar options: option and value, in their order
    """

    name: str
    vmid: int
    arguments: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The words of the C(pct) call."""
        options = (word for name, value in self.options for word in (f"--{name}", value))
        return ("pct", self.name, str(self.vmid), *self.arguments, *options)

    @property
    def has_call(self) -> bool:
        """Does the REST API have this command?"""
        return self.name in _CALLS

    @property
    def call(self) -> Call:
        """The request to the REST API.

        :raises KeyError: for a command that it doesn't have
        """
        method, path, names = _CALLS[self.name]
        parameters = dict(zip(names, self.arguments)) | dict(self.options)
        if self.name == "create":
            parameters["vmid"] = str(self.vmid)
        return Call(method, path.format(*self.arguments, vmid=self.vmid), parameters)
