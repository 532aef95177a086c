# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Damaged files: each is either read whole, or refused with the place of every mistake. Never a traceback.

500 files; 20,000 with PHOENIX_FULL=1 in the environment. The number of a case makes it again: it is the seed.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.phoenix.hypervisor.plugins.inventory import lxc_configs

ROOT = Path(__file__).resolve().parents[4]
CASES = 20000 if os.environ.get("PHOENIX_FULL") or os.environ.get("HYPOTHESIS_PROFILE") == "full" else 500
BATCHES = 20
FILES = {
    "phoenix_lxc_configs.json": (ROOT / "inventories/example/phoenix_lxc_configs.json").read_bytes(),
    "overrides.json": (ROOT / "inventories/lab/overrides.json").read_bytes(),
}
OPTIONS: dict[str, Any] = {
    "config_files": ["phoenix_lxc_configs.json"],
    "override_files": ["overrides.json"],
    "nodes": {"pve": {}},
    "default_node": None,
    **dict.fromkeys(("live", "compose", "groups", "keyed_groups")),
}
HOSTILE = [
    "{{ 1 / 0 }}", "{% for a in b %}", "{#", "{{ lookup('pipe', 'touch /tmp/hostile') }}", "$(touch /tmp/hostile)",
    "`id`", "'; id; '", '"', "%n %h", "a\n[Service]\nExecStart=/bin/id", "a,hwaddr=BC:24:11:00:00:00", "../../etc",
    "--help", "\u0000", "\u202e", "ü", "a" * 300, "!unsafe", "null", "٣", "10.92.0.100/24", "900",
]  # fmt: skip
JUNK = [None, True, False, 0, -1, 10**30, 0.5, 1e308, "", [], {}, [[]], [None], {"": None}, *HOSTILE]
BYTES = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\xff", b"\x00", b"\\ud800", b"NaN", b"1e999", b"//", b"\n"]


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or list in there, with each of its keys."""
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from places(data[key])


def another_value(data: Any, chance: random.Random) -> None:
    """Change one place of the structure: another value, gone, moved, doubled, under a hostile name."""
    members = list(places(data))
    if not members:
        return
    holder, key = chance.choice(members)
    kind = chance.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        giver, given = chance.choice(members)
        holder[key] = copy.deepcopy(giver[given])
    elif kind == 2 and isinstance(holder, dict):
        holder[chance.choice([*HOSTILE, "900", "99", "name", "ip"])] = holder.pop(key)
    elif kind == 3:
        holder[key] = [holder[key]]
    else:
        holder[key] = copy.deepcopy(chance.choice(JUNK))


def other_bytes(content: bytes, chance: random.Random) -> bytes:
    """Change the text: something put in, cut out, doubled or cut off."""
    begin = chance.randrange(len(content) + 1)
    end = min(len(content), begin + chance.choice([0, 1, 1, 2, 20, 500]))
    kind = chance.randrange(4)
    if kind == 0:
        return content[:begin] + chance.choice(BYTES) + content[begin:]
    if kind == 1:
        return content[:begin] + content[end:]
    if kind == 2:
        return content[:end] + content[begin:end] + content[end:]
    return content[:begin]


def damaged(case: int) -> dict[str, bytes]:
    """The files of a case."""
    chance = random.Random(case)
    files = dict(FILES)
    name = chance.choice(sorted(files))
    if chance.random() < 0.6:
        data = json.loads(files[name])
        for _change in range(chance.choice([1, 1, 1, 2, 5])):
            another_value(data, chance)
        files[name] = json.dumps(data, indent=chance.choice([None, 2]), ensure_ascii=chance.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    else:
        for _change in range(chance.choice([1, 1, 2])):
            files[name] = other_bytes(files[name], chance)
    return files


def is_json(content: bytes) -> bool:
    try:
        json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def read(folder: Path, files: dict[str, bytes]) -> tuple[InventoryData, list[str]]:
    """The inventory, and the sentences of what is wrong."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    inventory, plugin = InventoryData(), lxc_configs.InventoryModule()
    # The source itself is right, and needs no plugin loader to be read.
    plugin._options = OPTIONS
    plugin.get_option = OPTIONS.__getitem__
    plugin._read_config_data = lambda path: {"plugin": "phoenix.hypervisor.lxc_configs"}
    try:
        plugin.parse(inventory, DataLoader(), str(folder / "lxc_configs.yml"), cache=False)
    except AnsibleParserError as error:
        return inventory, str(error.message).split("\n")
    return inventory, []


def check_refusal(folder: Path, files: dict[str, bytes], inventory: InventoryData, sentences: list[str]) -> None:
    assert list(inventory.hosts) == []
    for sentence in sentences:
        match = re.fullmatch(rf"{re.escape(str(folder))}/({'|'.join(files)})(:\d+)?: .+; .+\.", sentence)
        assert match, sentence
        assert match.group(2) or not is_json(files[match.group(1)]), sentence


def check_inventory(files: dict[str, bytes], inventory: InventoryData) -> None:
    """Everything is there, and nothing in it is a template."""
    data = {name: json.loads(content.decode("utf-8-sig")) for name, content in files.items()}
    containers = {name: content.get("lxc_configs", {}) for name, content in data.items()}
    gone = {ctid for ctid, patch in containers["overrides.json"].items() if patch is None}
    declared = {f"ctid_{ctid}" for ctid in containers["phoenix_lxc_configs.json"] if ctid not in gone}
    assert set(inventory.hosts) == {"pve", *declared}
    templar = Templar(loader=DataLoader(), variables={})
    for name in declared:
        variables = inventory.hosts[name].vars
        text = json.dumps(variables["phoenix_definition"])
        assert variables["container_vmid"] == int(name.partition("_")[2])
        assert inventory.hosts[name] in inventory.groups["phoenix_containers"].hosts
        if "{{" in text or "{%" in text or "{#" in text:
            assert json.dumps(templar.template(variables["phoenix_definition"])) == text
    # What Ansible takes without a warning: letters are those of any language, as in the names that models have.
    assert all(re.fullmatch(r"[^\W\d]\w*", group) for group in inventory.groups)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_damaged_files(batch: int, tmp_path: Path) -> None:
    for case in range(batch, CASES, BATCHES):
        files = damaged(case)
        try:
            inventory, sentences = read(tmp_path, files)
            if sentences:
                check_refusal(tmp_path, files, inventory, sentences)
            else:
                check_inventory(files, inventory)
        except Exception as error:
            raise AssertionError(f"case {case}: {type(error).__name__}: {error}") from error


def test_the_damage_is_of_all_kinds(tmp_path: Path) -> None:
    """The cases are worth something: some are read, some are no JSON, some are JSON with mistakes."""
    kinds = {"read": 0, "no JSON": 0, "mistakes": 0}
    for case in range(100):
        files = damaged(case)
        is_whole = all(map(is_json, files.values()))
        _inventory, sentences = read(tmp_path, files)
        kinds["read" if not sentences else "mistakes" if is_whole else "no JSON"] += 1
    assert min(kinds.values()) >= 10, kinds
