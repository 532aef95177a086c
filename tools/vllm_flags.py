# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the table of what `vllm serve` takes, read from the parser of an installed release.

    /opt/vllm/bin/python tools/vllm_flags.py > roles/vllm_stack/files/stacks/cpu/flags.json

Run it with the Python of the release. The table is what module_utils/engine_args.py checks an engine config with:
argument → {"kind": …, "choices": […]}. The kinds are described there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from typing import Any

# How the parser's own type functions are called (the inner name where one wraps another) → kind.
KIND_OF_TYPE = {
    "int": "integer",
    "float": "number",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size",
    "loads": "object",
    "union_dict_and_str": "object",
    "parse_dataclass": "object",
    "_parse_type": "object",
}


def inner_type_name(function: Any) -> str:
    """Return the name of an argparse type function, or of what it wraps in its closure."""
    while function is not None:
        name = getattr(function, "__name__", "")
        inner = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        inner = [content for content in inner if callable(content)]
        if name not in ("_optional_type", "_parse_type") or not inner:
            return name
        if name == "_parse_type" and getattr(inner[0], "__name__", "") not in KIND_OF_TYPE:
            return "_parse_type"
        function = inner[0]
    return ""


def describe(action: argparse.Action) -> dict[str, Any]:
    """Return an argument's entry in the table."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return {"kind": "boolean"}
    if action.nargs == 0:
        return {"kind": "switch"}
    if isinstance(action, argparse._AppendAction):
        return {"kind": "repeated"}
    entry: dict[str, Any] = {"kind": KIND_OF_TYPE.get(inner_type_name(action.type), "text")}
    if action.nargs in ("+", "*"):
        entry["kind"] = "list"
    choices = [str(choice) for choice in action.choices or () if choice is not None]
    if choices:
        entry["choices"] = choices
    return entry


def main() -> int:
    """Run as a command. Return the exit code."""
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # before 0.32
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    flags = {
        next(word for word in action.option_strings if word.startswith("--"))[2:]: describe(action)
        for action in parser._actions
        if any(word.startswith("--") for word in action.option_strings)
    }
    # The model is positional; a config file can't name another one; the others end the program.
    for name in ("model", "config", "help", "version"):
        flags.pop(name, None)
    version = importlib.metadata.version("vllm")
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(flags[name], sort_keys=True)}" for name in sorted(flags))
    sys.stdout.write(f'{{"vllm": {json.dumps(version)},\n"flags": {{\n{lines}\n}}}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
