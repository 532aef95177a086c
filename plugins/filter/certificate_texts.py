# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter certificate_texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError


def certificate_texts(services: Iterable[Mapping[str, Any]], source: str) -> list[dict[str, Any]]:
    """Return services as the module C(certificate) takes them: what lies on the control node is read.

    Raises:
        AnsibleFilterError: such a file can't be read.
    """
    found = []
    for service in services:
        entry = {key: value for key, value in service.items() if value is not None}
        for what in ("certificate", "key"):
            path = os.path.expanduser(str(entry.get(f"source_{what}", "")))
            if source != "files" or not os.path.isfile(path):
                continue
            try:
                with open(path, encoding="utf-8") as file:
                    entry[f"{what}_text"] = file.read()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not in PEM form"
                raise AnsibleFilterError(f"The {what} {path} can't be read on the control node: {reason}.") from None
            del entry[f"source_{what}"]
        found.append(entry)
    return found


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable]:
        """Return name → filter."""
        return {"certificate_texts": certificate_texts}
