# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from ansible_collections.phoenix.hypervisor.plugins.lookup.stacks import LookupModule, names


def test_folders_with_a_stack(tmp_path):
    for name in ("cpu", "own[1]/cuda", "own[1]/aside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cpu/stack.yml").touch()
    (tmp_path / "own[1]/cuda/stack.yml").touch()
    folders = [str(tmp_path), str(tmp_path / "own[1]"), str(tmp_path / "missing")]
    assert names(folders) == ["cpu", "cuda"]
    assert {"cpu", "cuda"} <= set(LookupModule().run(folders))
