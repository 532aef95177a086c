# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters gpu_neighbours and gpu_shares_before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args


def gpu_neighbours(
    hostvars: Mapping[str, Mapping[str, Any]], host: str, candidates: Sequence[str], run: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the other model servers that may open a GPU of a host's, with why they run at the same time as its own."""
    own = hostvars[host]
    mine = set(own.get("container_gpus") or ())
    found = []
    for name in candidates if mine and not own.get("container_template") else ():
        other = hostvars[name]
        # The GPUs first: it is what most containers don't have.
        if name == host or not mine & set(other.get("container_gpus") or ()) or other.get("container_template"):
            continue
        if not other.get("phoenix_application") or not other.get("vllm_model_server_engine_config"):
            continue
        together = ""
        if name in run and host in run:
            together = "this run starts both"
        elif _starts_at_boot(own) and _starts_at_boot(other):
            together = "both start with the node"
        found.append(
            {
                "ctid": int(other["phoenix_ctid"]),
                "gpus": list(other["container_gpus"]),
                "engine_config": other["vllm_model_server_engine_config"],
                "together": together,
                "before": _starts_at_boot(own) and _starts_at_boot(other) and _order(other) < _order(own),
            }
        )
    return found


def gpu_shares_before(neighbours: Sequence[Mapping[str, Any]], gpus: Sequence[int] | None) -> list[float]:
    """Return what the model servers that start before a container's own take of each of its GPUs, a part of 1.

    Args:
        neighbours: what `gpu_neighbours` returns.
        gpus: the numbers of the container's GPUs; inside, they are counted from 0 in this order.
    """
    # More than they take would be waited for until the time is up.
    least, shares = engine_args.default_share(), []
    for gpu in sorted(gpus or ()):
        taken = [
            float(engine_args.flatten(one["engine_config"]).get("gpu-memory-utilization", least))
            for one in neighbours
            if one["before"] and gpu in one["gpus"]
        ]
        shares.append(round(sum(taken), 3))
    return shares if any(shares) else []


def _order(host: Mapping[str, Any]) -> tuple[int, int]:
    """Return the place of a container in the order in which Proxmox starts them with the node."""
    startup = (host.get("container_config") or {}).get("startup") or {}
    # Those without a number come last.
    return int(startup.get("order", 1 << 31)), int(host["phoenix_ctid"])


def _starts_at_boot(host: Mapping[str, Any]) -> bool:
    """Return whether Proxmox starts a container with the node."""
    return bool((host.get("container_config") or {}).get("onboot"))


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {"gpu_neighbours": gpu_neighbours, "gpu_shares_before": gpu_shares_before}
