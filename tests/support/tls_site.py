# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container of the lab with a model server that has a certificate.

The role `certificate` is played here: the files are written as it does, by rename, and what the role
`vllm_model_server` says is run after that.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_guard
from certificates import Authority, serial
from lab_modules import pct
from model_site import KEY, PORT, Site
from steady_client import SteadyClient

FOLDER = "/etc/phoenix-hypervisor/certificates"
PAIR = f"{FOLDER}/vllm_model_server/fullchain.pem", f"{FOLDER}/vllm_model_server/privkey.pem"
FLAGS = {
    "ssl-certfile": "text", "ssl-keyfile": "text", "enable-ssl-refresh": "boolean", "port": "integer",
    "max-num-seqs": "integer",
}  # fmt: skip


class TlsSite(Site):
    """The same with a CA, whose root is in the container.

    :ivar authority: that CA
    :ivar name: the container's, which its certificates have
    """

    def __init__(self, vmid: int, address: str, folder: Path) -> None:
        super().__init__(vmid, address, folder)
        self.name = f"server{vmid}"
        self.authority = Authority(folder)
        self.ca = str(self.authority.file)
        # What certificate_source: step_ca and the container's hostname give.
        self.variables = {
            "certificate_source": "step_ca", "container_config": {"hostname": self.name},
            "vllm_model_server_environment": {"VLLM_CPU_KVCACHE_SPACE": "1"},
        }  # fmt: skip
        self.can_reload(True)

    def can_reload(self, can: bool) -> None:
        """Say whether the release can reload a certificate."""
        flags = {name: {"kind": kind} for name, kind in FLAGS.items() if can or name != "enable-ssl-refresh"}
        (self.folder / "stacks/fake/flags.json").write_text(json.dumps({"flags": flags}))

    def set_up(self, models: Iterable[str] = ("good",), **how) -> None:
        """Make the container, without a certificate yet."""
        self.create(models, memory=8192, **how)
        self.inside(f"mkdir -p {FOLDER}/vllm_model_server")
        pct("push", str(self.vmid), self.ca, f"{FOLDER}/ca.pem", "--perms", "0644")

    def write(self, certificate: str, key: str) -> int:
        """Write a pair. Returns its serial number."""
        for path, text in zip(PAIR, (certificate, key)):
            self.inside(f"umask 077; cat >{path}.new <<'EOF'\n{text}\nEOF\nmv {path}.new {path}")
        return serial(certificate)

    def issue(self, **how: float) -> int:
        """Write a new certificate."""
        return self.write(*self.authority.issue(self.name, self.address, **how))

    def renewed(self, code: int = 0) -> str:
        """Run what is to be run after a renewal. Returns what it said."""
        said = self.inside(f"{' '.join(server_guard.RENEWED)} 2>&1; echo \"code $?\"")
        assert said.endswith(f"code {code}"), said
        return said.rpartition("\n")[0]

    def serves(self) -> int:
        """The serial number of the certificate that a client is shown, which it has verified."""
        context = ssl.create_default_context(cafile=self.ca)
        with socket.create_connection((self.address, PORT), 20) as plain, context.wrap_socket(
            plain, server_hostname=self.name
        ) as shown:
            said = shown.getpeercert()
            assert said
            return int(str(said["serialNumber"]), 16)

    def client(self, key: str = KEY, model: str = "m", per_second: float = 20) -> SteadyClient:
        """A client of the container's server."""
        return SteadyClient(self.address, PORT, key, model, per_second, 60, self.ca)
