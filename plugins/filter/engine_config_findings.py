# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter engine_config_findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args, engine_checks
from ansible_collections.phoenix.hypervisor.plugins.module_utils.engine_checks import Neighbour, Place


def engine_config_findings(
    config: Mapping[str, Any],
    flags: Mapping[str, Any] | None = None,
    place: Mapping[str, Any] | None = None,
    elsewhere: Mapping[str, Mapping] | None = None,
) -> dict[str, list[str]]:
    """Return what is wrong with an engine config, and what may be.

    Raises:
        AnsibleFilterError: the place has a key that isn't known.
    """
    problems = engine_args.problems(config, flags or None, elsewhere)
    if problems:
        return {"problems": problems, "warnings": []}
    # Before ansible-core 2.19 a template that gives none gives an empty text, and a number a text.
    around = {key: value for key, value in (place or {}).items() if value not in (None, "")}
    try:
        for key in {"ctid", "gateway_port"} & set(around):
            around[key] = int(around[key])
        around["neighbours"] = [Neighbour(**neighbour) for neighbour in around.get("neighbours") or ()]
        found = engine_checks.findings(engine_args.flatten(config), Place(**around), flags or None)
    except (TypeError, ValueError) as error:
        raise AnsibleFilterError(f"engine_config_findings: the place can't be understood: {error}") from error
    return {
        "problems": [finding.text for finding in found if finding.certain],
        "warnings": [finding.text for finding in found if not finding.certain],
    }


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {"engine_config_findings": engine_config_findings}
