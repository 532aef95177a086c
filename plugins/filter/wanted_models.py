# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter wanted_models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.phoenix.hypervisor.plugins.module_utils import model_places
from ansible_collections.phoenix.hypervisor.plugins.module_utils.model_places import Wanted


def wanted_models(hostvars: Mapping[str, Mapping[str, Any]], host: str, hosts: Sequence[str]) -> dict[str, list]:
    """Return which models a host of a play fetches, for itself and those that share its node.

    Args:
        hostvars: what Ansible knows of all hosts.
        host: the one that asks.
        hosts: those of the play, in order.
    """
    wanted = {name: _of_host(hostvars[name], name) for name in hosts}
    nodes = {name: str(hostvars[name].get("phoenix_node") or name) for name in hosts}
    return asdict(model_places.shared(wanted, nodes, host))


def _of_host(variables: Mapping[str, Any], name: str) -> Wanted:
    mounts = variables.get("container_mounts") or []
    listed = variables.get("phoenix_models")
    if listed:
        if isinstance(listed, (str, Mapping)) or not all(isinstance(entry, Mapping) for entry in listed):
            raise AnsibleFilterError(f"{name}: phoenix_models is no list of models, such as [{{repository: org/name}}]")
        return Wanted(fetch=model_places.of_list(listed, mounts))
    config = variables.get("vllm_model_server_engine_config")
    if not config:
        return Wanted()
    return model_places.of_container(variables.get("phoenix_ctid", name), config, mounts)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {"wanted_models": wanted_models}
