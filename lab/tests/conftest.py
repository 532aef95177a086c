# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's tests import the lab's own package, and nothing of the collection."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(scope="session", autouse=True)
def _folders(tmp_path_factory) -> None:
    """Make pytest's own folder at once: it closes the one above to others then, and containers of a test that runs
    beside this one may be about to mount something below it."""
    tmp_path_factory.getbasetemp()
