# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-core's programs, wherever they are."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def command(name: str) -> list[str]:
    """Return the beginning of a command line that starts a program of the ansible-core that tests are run with.

    It is beside the interpreter in an environment, and somewhere on the path under C(ansible-test units).
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"there is no {name} beside {sys.executable} or on the path"
    return [sys.executable, found]
