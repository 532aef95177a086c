# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the table of what `vllm serve` takes, read from the parser of an installed release.

    /opt/vllm/bin/python tools/vllm_flags.py > roles/vllm_stack/files/stacks/cpu/flags.json
    …/python tools/vllm_flags.py --version 0.10.2    # read from another build of the same release

Run it with the Python of the release, or of a build of it that needs no device (`make test-parser` makes one). The
table is what module_utils/engine_args.py checks an engine config with: argument → {"kind": …, "choices": […], …}. What
an entry may say is described there.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
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


def functions_of(function: Any) -> list[Any]:
    """Return an argparse type function, and what it wraps in its closure, the outermost first."""
    functions = []
    while function is not None:
        functions.append(function)
        inner = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        function = next((content for content in inner if callable(content)), None)
    return functions


def inner_type_name(function: Any) -> str:
    """Return the name of an argparse type function, or of what it wraps in its closure."""
    names = [getattr(function, "__name__", "") for function in functions_of(function)]
    return next((name for name in names if name != "_optional_type" and (name in KIND_OF_TYPE or name == "str")), "")


def keys_of(function: Any) -> list[str]:
    """Return the keys of the configuration class that an argparse type function makes, [] when it makes none."""
    for inner in functions_of(function):
        for default in getattr(inner, "__defaults__", None) or ():
            if dataclasses.is_dataclass(default):
                return sorted(field.name for field in dataclasses.fields(default) if field.init)
    return []


def describe(action: argparse.Action) -> dict[str, Any]:
    """Return an argument's entry in the table."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return {"kind": "boolean"}
    if action.nargs == 0:
        return {"kind": "switch"}
    if isinstance(action, argparse._AppendAction):
        return {"kind": "repeated"}
    inner = inner_type_name(action.type)
    entry: dict[str, Any] = {"kind": KIND_OF_TYPE.get(inner, "text")}
    if action.nargs in ("+", "*"):
        if entry["kind"] == "integer":
            entry["items"] = "integer"
        entry["kind"] = "list"
    if inner == "human_readable_int_or_auto":
        entry["auto"] = True
    if inner == "union_dict_and_str":
        entry["words"] = True
    if keys_of(action.type):
        entry["keys"] = keys_of(action.type)
    # None is vLLM's own default, and the word None stands for it.
    choices = [str(choice) for choice in action.choices or () if choice not in (None, "None")]
    if choices:
        entry["choices"] = choices
    return entry


def names_of_methods() -> dict[str, list[str]]:
    """Return argument → the names that it takes, where the parser takes any text and the server fails later."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    names = {"quantization": sorted(QUANTIZATION_METHODS)}
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum
    except ImportError:  # before 0.12
        return names
    return {**names, "attention-backend": ["AUTO", *sorted(AttentionBackendEnum.__members__)]}


def main() -> int:
    """Run as a command. Return the exit code."""
    options = argparse.ArgumentParser(description="Print the table of what `vllm serve` takes.")
    options.add_argument("--version", help="the release, when what is installed calls itself something else")
    version = options.parse_args().version or importlib.metadata.version("vllm")
    # Older releases log to stdout, where the table goes.
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # before 0.32
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:  # before 0.11
        from vllm.utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    flags = {
        next(word for word in action.option_strings if word.startswith("--"))[2:]: describe(action)
        for action in parser._actions
        if any(word.startswith("--") for word in action.option_strings)
    }
    # The model is positional; a config file can't name another one; the others end the program.
    for name in ("model", "config", "help", "version"):
        flags.pop(name, None)
    for name, choices in names_of_methods().items():
        if name in flags:
            flags[name]["choices"] = choices
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(flags[name], sort_keys=True)}" for name in sorted(flags))
    sys.stdout.write(f'{{"vllm": {json.dumps(version)},\n"flags": {{\n{lines}\n}}}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
