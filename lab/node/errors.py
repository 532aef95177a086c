# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one exception that becomes a line on stderr and an exit code."""

from __future__ import annotations


class PctError(Exception):
    """A failure with the genuine text. ``code`` is the exit code that pct ends with (255 unless told)."""

    def __init__(self, text: str, code: int = 255) -> None:
        super().__init__(text)
        self.code = code


class UsageError(PctError):
    """A mistake in the command line; the usage of the command follows the text."""
