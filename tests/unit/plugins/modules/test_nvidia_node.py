# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.modules import nvidia_node

NAME, UNIT = "phoenix-nvidia.service", "[Unit]\nDescription=x\n"


class Failed(Exception):
    pass


class Module:
    """A module on a node whose systemd is a folder and two words."""

    def __init__(self, folder: Path, check: bool = False) -> None:
        self.folder, self.check_mode, self.active, self.said = folder, check, False, []
        self.params = {"name": NAME, "unit": UNIT, "modprobe": str(folder / "nvidia-modprobe")}
        self.broken = ""

    def run_command(self, words: list[str]) -> tuple[int, str, str]:
        self.said.append(words[1])
        if words[1] == self.broken:
            return 1, "", "Job failed."
        if words[1] == "is-active":
            return 0 if self.active else 3, "", ""
        if words[1] == "enable":
            link = self.folder / "multi-user.target.wants" / NAME
            link.parent.mkdir(exist_ok=True)
            link.symlink_to("x")
        self.active = self.active or words[1] == "restart"
        return 0, "", ""

    def fail_json(self, msg: str) -> None:
        raise Failed(msg)


@pytest.fixture
def module(tmp_path, monkeypatch) -> Module:
    monkeypatch.setattr(nvidia_node, "FOLDER", str(tmp_path))
    monkeypatch.setattr(nvidia_node, "BOOTED", str(tmp_path))
    (tmp_path / "nvidia-modprobe").touch()
    return Module(tmp_path)


def test_it_is_written_enabled_and_started_once(module):
    module.check_mode = True
    shown = nvidia_node.converge(module)
    assert not (module.folder / NAME).exists()
    module.check_mode = False
    done = nvidia_node.converge(module)
    assert shown["plan"] == done["plan"]
    assert len(done["plan"]) == 3
    assert (module.folder / NAME).read_text() == UNIT
    assert done["diff"]["after"] == UNIT
    module.said.clear()
    again = nvidia_node.converge(module)
    assert (again["changed"], again["plan"], module.said) == (False, [], ["is-active"])


def test_a_changed_unit_is_started_again(module):
    nvidia_node.converge(module)
    module.params["unit"] = UNIT + "# more\n"
    assert nvidia_node.converge(module)["plan"] == [f"write {module.folder}/{NAME}", f"start {NAME}"]
    assert module.said[-2:] == ["daemon-reload", "restart"]


@pytest.mark.parametrize("what", ["active", "enabled"])
def test_what_somebody_switched_off_is_switched_on(module, what):
    nvidia_node.converge(module)
    if what == "active":
        module.active = False
    else:
        (module.folder / "multi-user.target.wants" / NAME).unlink()
    assert len(nvidia_node.converge(module)["plan"]) == 1
    assert nvidia_node.converge(module)["changed"] is False


@pytest.mark.parametrize(("without", "words"), [("systemd", "booted by systemd"), ("nvidia", "has no ")])
def test_another_node_is_left_as_it_is(module, monkeypatch, without, words):
    if without == "systemd":
        monkeypatch.setattr(nvidia_node, "BOOTED", str(module.folder / "none"))
    else:
        (module.folder / "nvidia-modprobe").unlink()
    done = nvidia_node.converge(module)
    assert (done["changed"], module.said) == (False, [])
    assert words in done["reason"]


@pytest.mark.parametrize("step", ["daemon-reload", "enable", "restart"])
def test_a_failure_is_one_sentence(module, step):
    module.broken = step
    with pytest.raises(Failed, match=f"systemctl {step}.* on the node: Job failed; journalctl -u {NAME}"):
        nvidia_node.converge(module)
