# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter engine_config_problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args


def engine_config_problem(config: Mapping[str, Any], flags: Mapping[str, Any] | None = None) -> str:
    """Return what is wrong with an engine config, in one sentence; "" when it can be used."""
    try:
        others = engine_args.split_model(engine_args.flatten(config))[1]
        engine_args.check(others, flags)
    except engine_args.EngineConfigError as error:
        return str(error)
    return ""


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {"engine_config_problem": engine_config_problem}
