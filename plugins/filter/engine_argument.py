# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter engine_argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args


def engine_argument(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return an argument of an engine config, whichever group it is in.

    Raises:
        AnsibleFilterError: the engine config has a mistake.
    """
    try:
        value = engine_args.flatten(config).get(name.replace("_", "-"))
    except engine_args.EngineConfigError as error:
        raise AnsibleFilterError(f"The engine config can't be used: {error}") from error
    return default if value is None else value


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {"engine_argument": engine_argument}
