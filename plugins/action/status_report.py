# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the table of a run of status.yml, on the control node."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from ansible.utils.display import Display
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args, status
from ansible_collections.phoenix.hypervisor.plugins.plugin_utils import reports

try:
    from cryptography import x509
except ImportError:  # ansible-core needs it, so a machine without it is a strange one
    x509 = None

display = Display()


class ActionModule(reports.Report):
    """C(plugins/modules/status_report.py) has the documentation."""

    OPTIONS: Mapping[str, Any] = {
        **reports.OF_HOSTS,
        "format": {"type": "str", "choices": ["table", "json"], "default": "table"},
    }

    def report(self, options: dict[str, Any], hostvars: Mapping[str, Any], now: datetime.datetime) -> dict[str, Any]:
        """Make and show it. Return what the task returns."""
        hosts = {host: hostvars[host] for host in options["hosts"]}
        nodes = _nodes(hosts)
        rows = [
            status.row(
                _declared(host, variables), nodes.get(str(variables.get("phoenix_node", "")), {}),
                with_days(reports.plain(variables.get("status_inside") or {}), now),
            )
            for host, variables in hosts.items()
        ]  # fmt: skip
        known = [int(host[len("ctid_") :]) for host in hostvars if host.startswith("ctid_") and host[5:].isdigit()]
        undeclared = {name: status.undeclared(look.get("containers", []), known) for name, look in nodes.items()}
        report = status.report_of(rows, undeclared, reports.moment(now))
        text = status.text_of(report)
        display.display(text if options["format"] == "table" else json.dumps(report, indent=2, ensure_ascii=False))
        return {"report": report, "files": self.keep(options["folder"], "status", report, text)}


def with_days(inside: dict[str, Any], now: datetime.datetime) -> dict[str, Any]:
    """The look inside, with the whole days that each certificate is still good for."""
    if "certificates" in inside:
        inside["certificates"] = [{**one, **_days(one["pem"], now)} for one in inside["certificates"]]
    return inside


def _days(pem: str, now: datetime.datetime) -> dict[str, Any]:
    if x509 is None:
        return {"days": None, "problem": "the control node's Python has no cryptography, which reads certificates"}
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        return {"days": None, "problem": "it holds no certificate"}
    end = getattr(certificate, "not_valid_after_utc", None)
    if end is None:  # cryptography before 42, as Debian 12 has it
        end = certificate.not_valid_after.replace(tzinfo=datetime.timezone.utc)
    return {"days": (end - now).days, "problem": ""}


def _nodes(hosts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The look at each node, which one of its containers' hosts has as a variable."""
    found: dict[str, dict[str, Any]] = {}
    for variables in hosts.values():
        look = reports.plain(variables.get("status_node") or {})
        if look and not look.get("skipped"):
            found[str(variables.get("phoenix_node", ""))] = look
    return found


def _declared(host: str, variables: Any) -> dict[str, Any]:
    """What of a host's declaration is in the table."""
    config = variables.get("vllm_model_server_engine_config") or {}
    try:
        model = engine_args.served_name(engine_args.flatten(config)) if config else ""
    except engine_args.EngineConfigError:
        model = "?"
    return {
        "host": host, "ctid": int(variables["container_vmid"]), "node": str(variables.get("phoenix_node", "")),
        "model": model, "stack": str(variables.get("vllm_stack_name") or "") if model else "",
    }  # fmt: skip
