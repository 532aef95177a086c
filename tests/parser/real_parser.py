# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hands command lines to the real parser of an installed vLLM and compares what it understood. No Ansible, no pytest.

It runs with the Python of tools/parser_environment. Each line on stdin is a case, {"words": after `vllm`, "config": the
text of the file that stands for the word CONFIG, "model": …, "expected": {argument: {"kind": …, "value": …}}}; each
line on stdout is the list of what went wrong.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from typing import Any

# Older releases log to stdout, where the answers go.
os.environ["VLLM_CONFIGURE_LOGGING"] = "0"


class Caught(Exception):
    """vLLM has made its parser."""


def make_parser() -> Any:
    """Return the parser that vLLM's own main() makes."""
    from vllm.entrypoints.cli import main

    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:  # before 0.11
        from vllm.utils import FlexibleArgumentParser

    def catch(self, *_arguments):
        raise Caught(self)

    original, FlexibleArgumentParser.parse_args = FlexibleArgumentParser.parse_args, catch
    sys.argv = ["vllm", "serve", "m"]
    try:
        main.main()
    except Caught as caught:
        return caught.args[0]
    finally:
        FlexibleArgumentParser.parse_args = original
    raise SystemExit("vLLM made no parser")


def function_names(function: Any) -> list[str]:
    """Return the names of a type function and of what it wraps."""
    names = []
    while function is not None:
        names.append(getattr(function, "__name__", ""))
        inner = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        function = next((content for content in inner if callable(content)), None)
    return names


def wanted(action: Any, kind: str, value: Any) -> Any:
    """Return what the server should have for a declared value."""
    names = function_names(action.type)
    if kind in ("boolean", "switch"):
        return value
    if kind == "repeated":
        return [text(item) for item in (value if isinstance(value, list) else [value])]
    if kind == "list":
        items = value if isinstance(value, list) else [value]
        if action.dest == "lora_modules":
            return [{"name": item["name"], "path": item["path"]} for item in items]
        return [int(item) for item in items] if "int" in names else [text(item) for item in items]
    if kind == "object":
        if "parse_dataclass" in names:
            return action.type(value if isinstance(value, str) else json.dumps(value))
        if isinstance(value, str) and ("union_dict_and_str" not in names or value.strip()[:1] == "{"):
            return json.loads(value)
        # vLLM's own words for "nothing".
        return None if value in ("", "None") and "_optional_type" in names else value
    if kind == "integer":
        return int(value)
    if kind == "number":
        return float(value)
    if kind == "size":
        return value if isinstance(value, int) else action.type(value)
    if "<lambda>" in names:
        return action.type(text(value))
    return None if value in ("", "None") and "_optional_type" in names else text(value)


def text(value: Any) -> str:
    """Return what a string or a number is as a word."""
    return value if isinstance(value, str) else repr(value)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are the same, with the same types all the way in."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or one is other)


class Judge:
    """Compares what vLLM understands with what was declared."""

    def __init__(self) -> None:
        self.parser = make_parser()
        (commands,) = [action for action in self.parser._actions if action.dest == "subparser"]
        self.actions = {word: action for action in commands.choices["serve"]._actions for word in action.option_strings}
        self.nothing = vars(self.parser.parse_args(["serve", "m"]))
        # Written anew for each case.
        self.file = os.path.join(tempfile.mkdtemp(), "engine.yaml")

    def judge(self, case: dict[str, Any]) -> list[str]:
        """Return what went wrong in a case."""
        with open(self.file, "w", encoding="ascii") as file:
            file.write(case["config"])
        words = [self.file if word == "CONFIG" else word for word in case["words"]]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                got = vars(self.parser.parse_args(words))
        except SystemExit:
            return [f"refused: {said.getvalue()[-300:]}"]
        except Exception as error:
            return [f"{type(error).__name__}: {error}"[:300]]
        wrong = []
        expected = {**self.nothing, "config": got.get("config"), "model_tag": case["model"]}
        for name, declared in case["expected"].items():
            action = self.actions["--" + name]
            expected[action.dest] = wanted(action, declared["kind"], declared["value"])
        for dest in expected.keys() | got.keys():
            one, other = expected.get(dest), got.get(dest)
            if dest == "lora_modules" and isinstance(other, list):
                other = [{"name": item.name, "path": item.path} for item in other]
            if not same(one, other):
                wrong.append(f"{dest} is {other!r}, and should be {one!r}"[:600])
        return wrong


def main() -> None:
    """Run as a command."""
    answers = os.fdopen(os.dup(1), "w")
    # Whatever a library prints is no answer.
    os.dup2(2, 1)
    judge = Judge()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(judge.judge(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
