# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can go wrong, in the words of Proxmox VE."""

from __future__ import annotations


class PctError(Exception):
    """An error with the genuine text. ``code`` is the exit code that pct ends with (255 unless told)."""

    def __init__(self, text: str, code: int = 255) -> None:
        super().__init__(text)
        self.code = code


class UsageError(PctError):
    """A mistake in the command line; the usage of the command follows the text."""


class ParameterError(UsageError):
    """Parameters that are wrong, each with its reason: lines on pct's stderr, ``errors`` of the REST API."""

    def __init__(self, errors: dict[str, str]) -> None:
        lines = "".join(f"{name}: {reason}\n" for name, reason in errors.items())
        super().__init__(f"400 Parameter verification failed.\n{lines}")
        self.errors = errors


class Refusal(PctError):
    """An answer of the REST API with another status than 500: no login, no permission, no such path."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
