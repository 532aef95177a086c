# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports on the control node: the action that makes one, its files, and values that came out of variables."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

# What a report on several hosts is asked for.
OF_HOSTS = {
    "hosts": {"type": "list", "elements": "str", "required": True},
    "folder": {"type": "path", "default": ""},
}


class Report(ActionBase):
    """An action plugin that makes a report, and changes nothing that is reported on.

    Attributes:
        OPTIONS: the argument spec of the task.
    """

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    OPTIONS: Mapping[str, Any] = OF_HOSTS

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task."""
        result = super().run(tmp, task_vars)
        _nothing, options = self.validate_argument_spec(argument_spec=dict(self.OPTIONS))
        now = datetime.datetime.now(datetime.timezone.utc)
        return {**result, "changed": False, **self.report(options, (task_vars or {}).get("hostvars", {}), now)}

    def report(self, options: dict[str, Any], hostvars: Mapping[str, Any], now: datetime.datetime) -> dict[str, Any]:
        """Make and show it. Return what the task returns."""
        raise NotImplementedError

    @property
    def check_mode(self) -> bool:
        """Whether no file is to be written."""
        return bool(self._task.check_mode)

    def keep(self, folder: str, name: str, report: Mapping[str, Any], text: str) -> list[str]:
        """Write a report where a folder is named. Return the paths. One that can't be written is a warning."""
        if not folder or self.check_mode:
            return []
        try:
            return write(folder, name, report, text)
        except OSError as error:
            display.warning(
                f"The report could not be written to {folder}: {error.strerror}. It is above; {name}_report_folder "
                "names another folder."
            )
            return []


def moment(time: datetime.datetime) -> str:
    """Return a time as reports have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def write(folder: str, name: str, report: Mapping[str, Any], text: str) -> list[str]:
    """Write a report as JSON and as text, each in one step. Return the paths."""
    os.makedirs(folder, exist_ok=True)
    contents = ((f"{name}.json", json.dumps(report, indent=2, ensure_ascii=False)), (f"{name}.txt", text))
    return [write_file(folder, file_name, f"{content}\n".encode()) for file_name, content in contents]


def write_file(folder: str, name: str, content: bytes) -> str:
    """Write a file in one step. Return its path."""
    path = os.path.join(folder, name)
    temporary = f"{path}.new"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return path


def plain(value: Any) -> Any:
    """Plain lists, dictionaries and text: ansible-core has types of its own for what comes from variables."""
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(member) for member in value]
    return str(value) if isinstance(value, str) else value
