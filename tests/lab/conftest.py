# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab tests share.

Ansible finds the collection before a test imports anything of it: a package that Python's own import system has
loaded first has no collection metadata, and Ansible then loads no plugin of it in this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.plugins.loader import init_plugin_loader
from lab_modules import open_folder

init_plugin_loader([str(Path(__file__).resolve().parents[2] / ".ansible/collections")])


@pytest.fixture(scope="session", autouse=True)
def _folders(tmp_path_factory) -> None:
    """Make pytest's own folder at once: it closes the one above to others then, and containers of a test that runs
    beside this one may be about to mount something below it."""
    tmp_path_factory.getbasetemp()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that containers can mount."""
    with open_folder() as made:
        yield made
