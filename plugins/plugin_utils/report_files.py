# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports on the control node: files, and values that came out of variables."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any


def write(folder: str, name: str, report: Mapping[str, Any], text: str) -> list[str]:
    """Write a report as JSON and as text, each in one step. Return the paths."""
    os.makedirs(folder, exist_ok=True)
    written = []
    contents = ((f"{name}.json", json.dumps(report, indent=2, ensure_ascii=False)), (f"{name}.txt", text))
    for file_name, content in contents:
        path = os.path.join(folder, file_name)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(content + "\n")
        os.replace(f"{path}.new", path)
        written.append(path)
    return written


def plain(value: Any) -> Any:
    """Plain lists, dictionaries and text: ansible-core has types of its own for what comes from variables."""
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(member) for member in value]
    return str(value) if isinstance(value, str) else value
