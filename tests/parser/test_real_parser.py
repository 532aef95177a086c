# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is declared arrives in vLLM exactly: the real parsers of two releases read what the role writes.

Each case goes the whole way: an engine config with groups, the checks, the file for ``--config``, the words of
``ExecStart=`` with systemd's quotes, and vLLM's own command line, in an environment that `make test-parser` makes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args
from engine_configs import configs, value
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parents[2]
STACKS = ROOT / "roles" / "vllm_stack" / "files" / "stacks"
# Release → a stack with its table.
RELEASES = {"0.32.0": "cpu", "0.10.2": "vllm-0.10.2-cu128"}
CASES = int(os.environ.get("PHOENIX_PARSER_CASES", "3000"))


class Parser:
    """A vLLM that only reads its arguments."""

    def __init__(self, release: str) -> None:
        python = ROOT / ".cache" / "parsers" / release / "bin" / "python"
        if not (python.parents[1] / "complete").exists():
            pytest.skip(f"vLLM {release} isn't installed for this; `make test-parser` does that")
        self.table = json.loads((STACKS / RELEASES[release] / "flags.json").read_text())
        self.python = python
        self.cases = 0
        self.arguments = 0
        # The service has no locale either.
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C"}
        self.process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("real_parser.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="ascii",
            env=environment,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def wrong(self, model: str, config: dict[str, Any], declared: dict[str, Any]) -> list[str]:
        """Return what arrives otherwise than it is declared."""
        named, others = engine_args.split_model(engine_args.flatten(config))
        text = engine_args.render(engine_args.check(others, self.table), self.table)
        line = " ".join(map(engine_args.unit_word, ["serve", named, "--config", "CONFIG"]))
        case = {"words": words_of_systemd(line), "config": text, "model": model, "expected": declared}
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        self.cases += 1
        self.arguments += len(declared)
        return json.loads(self.process.stdout.readline())

    def one(self, name: str, content: Any) -> list[str]:
        """Return what is wrong with one argument on its own."""
        declared = {name: {"kind": self.table["flags"][name]["kind"], "value": content}}
        return self.wrong("m", {"model": "m", name: content}, declared)


@pytest.fixture(scope="module", params=RELEASES)
def parser(request) -> Iterator[Parser]:
    it = Parser(request.param)
    yield it
    it.process.stdin.close()
    it.process.wait(30)
    print(f"\nvLLM {it.table['vllm']}: {it.cases} command lines with {it.arguments} arguments", file=sys.stderr)


def words_of_systemd(line: str) -> list[str]:
    """What systemd makes of the rest of a line ExecStart= (systemd.service, "Command lines")."""
    words = []
    for quoted, plain in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line):
        word = plain or re.sub(r"\\(.)", r"\1", quoted)
        assert re.fullmatch(r"(?:[^%$]|%%|\$\$)*", word), "a specifier or a variable"
        words.append(word.replace("%%", "%").replace("$$", "$"))
    return words


def test_the_shipped_table_is_the_parsers(parser):
    written = subprocess.run(
        [str(parser.python), "tools/vllm_flags.py", "--version", parser.table["vllm"]],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert json.loads(written) == parser.table


def test_every_boolean_both_ways(parser):
    flags = parser.table["flags"]
    booleans = {name for name in flags if flags[name]["kind"] in ("boolean", "switch")} - {"headless"}
    assert len(booleans) > 45
    assert {name: wrong for name in sorted(booleans) for on in (True, False) if (wrong := parser.one(name, on))} == {}


def test_every_choice(parser):
    flags = parser.table["flags"]
    choices = [(name, word) for name, entry in flags.items() for word in entry.get("choices", [])]
    assert len(choices) > 100
    assert {choice: wrong for choice in choices if (wrong := parser.one(*choice))} == {}


def test_everything_at_once(parser):
    """One engine config with an example of every argument that the release has."""

    @given(st.data())
    @settings(max_examples=50, deadline=None, database=None, phases=[Phase.generate], derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def run(data):
        declared = {
            name: {"kind": entry["kind"], "value": data.draw(value(name, entry))}
            for name, entry in parser.table["flags"].items()
            if name != "headless"
        }
        config = {name: entry["value"] for name, entry in declared.items()}
        assert parser.wrong("m", {"model": "m", "Mine": config}, declared) == []

    run()


def test_any_config_arrives(parser):
    @given(configs(parser.table))
    @settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def run(case):
        assert parser.wrong(*case) == []

    run()
