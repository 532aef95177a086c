# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an engine config to what ``vllm serve MODEL --config FILE`` reads. Pure functions, no Ansible.

An engine config has groups (C(ModelConfig), C(CacheConfig), …) of arguments. The groups are for the reader: an
argument is accepted in any of them, or in none. ``vllm serve`` turns each entry of its YAML file into words of a
command line, in its own way; `render` writes the entries so that every value arrives exactly:

- A boolean is an entry ``x: true`` or ``no-x: true`` (``x: false`` is dropped without a word by older releases).
- A value that begins with a dash would be taken for an argument. It is written ``"x=-1": true``, which becomes
  ``--x=-1``.
- An object is written as the JSON text that the argument takes.
- Strings are quoted in ASCII, so neither YAML's types nor the service's locale can change them.

The kinds of the flag table (tools/vllm_flags.py): boolean (``--x`` / ``--no-x``), switch (``--x`` only), integer,
number, size (an integer, ``8k``, ``auto``), text, object (JSON or, for some, a word), list (several words after one
``--x``), repeated (``--x`` once per item).
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

# Names that people know from vLLM's config classes, where the argument has another name.
ALIASES = {"cache-dtype": "kv-cache-dtype", "policy": "scheduling-policy"}
# Arguments whose values never appear in a diff, a message or a log of ours.
SECRET_ARGUMENTS = frozenset({"api-key", "hf-token", "ssl-keyfile-password"})
# What this collection sets itself, and why an engine config can't.
REFUSED = {
    "config": "the engine config is that file",
    "headless": "a headless server answers nobody",
    "help": "it ends the server",
    "version": "it ends the server",
}
HIDDEN = "(hidden)"

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_PLAIN_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?[kKmMgGtT]?|auto|-1")


class EngineConfigError(ValueError):
    """An engine config that can't be handed to vLLM. The text is one sentence for the user."""


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return argument → value of an engine config, without its groups, in the config's order.

    Names are written with dashes. C(null) stands for "vLLM's own default" and is left out.

    Raises:
        EngineConfigError: a group is no object, a name can't be an argument, or an argument is given two values.
    """
    arguments: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, key, value in _entries(config):
        name = str(key).replace("_", "-").lstrip("-")
        name = ALIASES.get(name, name)
        if not _NAME.fullmatch(name):
            raise EngineConfigError(f"{place} can't be an argument of vLLM: use names like max_model_len.")
        if name in REFUSED:
            raise EngineConfigError(f"{place} can't be set in an engine config: {REFUSED[name]}. Remove it.")
        if value is None:
            continue
        if name in arguments and not _same(arguments[name], value):
            shown = ("two values", "other") if name in SECRET_ARGUMENTS else (repr(arguments[name]), repr(value))
            raise EngineConfigError(
                f"{name.replace('-', '_')} is given twice, {places[name]} says {shown[0]} and {place} says {shown[1]}: "
                "keep one."
            )
        arguments[name] = value
        places.setdefault(name, place)
    return arguments


def _entries(config: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Return (place, key, value) of every argument in a config. A name with a capital is a group."""
    entries = []
    for key, value in config.items():
        if not str(key)[:1].isupper():
            entries.append((str(key), key, value))
        elif value is None:
            continue
        elif not isinstance(value, dict):
            raise EngineConfigError(f"{key} is a group and must be an object, not {_kind_of(value)}.")
        else:
            entries += [(f"{key}.{inner}", inner, content) for inner, content in value.items()]
    return entries


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are the same, a boolean never being the number it equals in Python."""
    return type(one) is type(other) and one == other


def split_model(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the model, which `vllm serve` wants as its first word, and the other arguments.

    Raises:
        EngineConfigError: there is no model, or it is no name or path.
    """
    others = dict(arguments)
    model = others.pop("model", None)
    if model is None:
        raise EngineConfigError("ModelConfig.model is missing: name a model of a hub or the path of its folder.")
    if not isinstance(model, str) or not model.strip() or model.startswith("-") or not model.isprintable():
        raise EngineConfigError(f"ModelConfig.model is {model!r}: it must be a model of a hub or the path of a folder.")
    return model, others


def check(arguments: Mapping[str, Any], table: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments in the form that `render` writes, checked against a release's flag table.

    The result has a boolean, a string, a list of strings or (for a repeated argument) a tuple of strings for each name.

    Args:
        arguments: from `split_model`.
        table: the flag table of the release, ``{"vllm": version, "flags": {name: entry}}``. Without it nothing is known
            about the names, and the values say themselves what they are.

    Raises:
        EngineConfigError: unknown name, wrong type, a value that isn't among the choices, a port that can't be had.
    """
    if not table:
        return {name: _words(name, value, _kind_by_value(value)) for name, value in arguments.items()}
    flags, version = table["flags"], table["vllm"]
    checked = {}
    for name, value in arguments.items():
        if name not in flags:
            raise EngineConfigError(_unknown(name, flags, version))
        checked[name] = _words(name, value, flags[name]["kind"])
        choices = flags[name].get("choices", [])
        given = checked[name] if isinstance(checked[name], (list, tuple)) else [checked[name]]
        bad = [word for word in given if choices and word not in choices]
        if bad:
            raise EngineConfigError(f"{_label(name)} is {bad[0]!r}: vLLM {version} takes {', '.join(choices)}.")
    port = checked.get("port")
    if port is not None and not 1024 <= int(port) <= 65535:
        raise EngineConfigError(f"port is {port}: the server is no superuser, so use a port from 1024 to 65535.")
    return checked


def _unknown(name: str, flags: Mapping[str, Any], version: str) -> str:
    """Return the sentence about an argument that a release doesn't have."""
    known = list(flags)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    positive = name[3:] if name.startswith("no-") else ""
    if positive in flags:
        hint = f"write {positive.replace('-', '_')}: false"
    elif nearest:
        hint = f"the nearest that it has is {nearest[0].replace('-', '_')}"
    else:
        hint = "see `vllm serve --help=all` of that release"
    return f"{name.replace('-', '_')} is no argument of vLLM {version}: {hint}."


def _label(name: str) -> str:
    """Return an argument's name as people write it in the JSON."""
    return name.replace("-", "_")


def _kind_of(value: Any) -> str:
    """Return what a value is, in JSON's words."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, (list, tuple)) else "null"


def _kind_by_value(value: Any) -> str:
    """Return the kind that a value has when there is no table."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, dict):
        return "object"
    if isinstance(value, list):
        return "list" if value and not any(isinstance(item, (list, dict)) for item in value) else "object"
    return "text"


def _words(name: str, value: Any, kind: str) -> Any:
    """Return a value as a boolean, a string, a list or a tuple of strings, as its kind asks.

    Raises:
        EngineConfigError: the value is of another kind.
    """
    if kind in ("boolean", "switch"):
        if not isinstance(value, bool):
            raise EngineConfigError(_wrong(name, value, "true or false"))
        return value
    if kind in ("list", "repeated"):
        items = value if isinstance(value, list) else [value]
        # lora_modules takes objects, each as its JSON.
        words = [
            json.dumps(item)
            if isinstance(item, dict) and name not in SECRET_ARGUMENTS
            else _scalar(name, item, "a list of strings or numbers")
            for item in items
        ]
        if kind == "repeated":
            return tuple(words)
        if not words:
            raise EngineConfigError(f"{_label(name)} is an empty list, which vLLM can't be given: leave it out.")
        bad = [word for word in words if word.startswith("-")]
        # One word can be written --x=-1; several can't.
        if bad and len(words) > 1:
            raise EngineConfigError(
                f"{_label(name)} has {bad[0]!r}: vLLM takes a word of a list that begins with a dash for an argument."
            )
        return words
    if kind == "object":
        if isinstance(value, (dict, list)):
            return json.dumps(value, ensure_ascii=True)
        return _scalar(name, value, "an object, a list, or their JSON as a string")
    word = _scalar(name, value, {"integer": "an integer", "number": "a number"}.get(kind, "a string or a number"))
    if kind == "integer" and not re.fullmatch(r"-?[0-9]+", word):
        raise EngineConfigError(_wrong(name, value, "an integer"))
    if kind == "number" and not _is_number(word):
        raise EngineConfigError(_wrong(name, value, "a number"))
    if kind == "size" and not _SIZE.fullmatch(word):
        raise EngineConfigError(_wrong(name, value, "an integer, or one with k, m, g or t, or auto"))
    return word


def _scalar(name: str, value: Any, wanted: str) -> str:
    """Return the word for a string or a number.

    Raises:
        EngineConfigError: it is neither, or has what no command line can hold.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise EngineConfigError(_wrong(name, value, wanted))
    if isinstance(value, float) and not math.isfinite(value):
        raise EngineConfigError(_wrong(name, value, "a finite number"))
    word = value if isinstance(value, str) else repr(value)
    if "\0" in word or any(0xD800 <= ord(character) <= 0xDFFF for character in word):
        raise EngineConfigError(f"{_label(name)} has a character that no argument can hold (NUL or half of a pair).")
    return word


def _is_number(word: str) -> bool:
    """Return whether Python's float() takes the word for a finite number."""
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _wrong(name: str, value: Any, wanted: str) -> str:
    """Return the sentence about a value of the wrong type."""
    shown = _kind_of(value) if name in SECRET_ARGUMENTS or isinstance(value, (dict, list)) else repr(value)
    return f"{_label(name)} is {shown}: it must be {wanted}."


def entries(checked: Mapping[str, Any], table: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what the YAML file has: key → true, a string or a list of strings."""
    flags = table["flags"] if table else {}
    lines: dict[str, Any] = {}
    for name in sorted(checked):
        value = checked[name]
        if isinstance(value, bool):
            if value:
                lines[name] = True
            elif flags.get(name, {}).get("kind") != "switch":
                lines["no-" + name] = True
        elif isinstance(value, tuple):
            # One key can't be there twice, but these are different keys, and each becomes --x=item.
            lines.update({f"{name}={word}": True for word in value})
        elif isinstance(value, list):
            if len(value) == 1 and value[0].startswith("-"):
                lines[f"{name}={value[0]}"] = True
            else:
                lines[name] = value
        elif value.startswith("-"):
            lines[f"{name}={value}"] = True
        else:
            lines[name] = value
    return lines


def render(checked: Mapping[str, Any], table: Mapping[str, Any] | None = None) -> str:
    """Return the text of the YAML file for ``vllm serve MODEL --config FILE``.

    Args:
        checked: from `check`.
        table: the same table.
    """
    lines = ["# Written by Ansible (phoenix.hypervisor.vllm_model_server) from the engine config. Don't edit."]
    for key, value in entries(checked, table).items():
        if value is True:
            lines.append(f"{_key(key)}: true")
        elif isinstance(value, list):
            lines.append(f"{_key(key)}:")
            lines += [f"- {_yaml(item)}" for item in value]
        else:
            lines.append(f"{_key(key)}: {_yaml(value)}")
    # `vllm serve` can't read a file that has nothing in it.
    return "\n".join(lines) + ("\n" if len(lines) > 1 else "\n{}\n")


def hide(text: str) -> str:
    """Return the text of such a file as people may see it, with a placeholder for every secret value."""
    names = "|".join(sorted(SECRET_ARGUMENTS))
    return re.sub(rf'^"?({names})(?:[":=]).*(?:\n- .*)*', rf'\1: "{HIDDEN}"', text, flags=re.M)


def _key(text: str) -> str:
    """Return a mapping key in YAML."""
    return text if _NAME.fullmatch(text) else quote(text)


def _yaml(text: str) -> str:
    """Return a scalar in YAML that is read back as this string, or as a number that Python prints like it."""
    return text if _PLAIN_NUMBER.fullmatch(text) and _same_number(text) else quote(text)


def _same_number(text: str) -> bool:
    """Return whether Python's print of the number is the text itself."""
    return text == (repr(float(text)) if "." in text else str(int(text)))


def quote(text: str) -> str:
    """Return a double-quoted YAML scalar, in ASCII, that is read back as exactly this text."""
    escaped = []
    for character in text:
        code = ord(character)
        if character in '"\\':
            escaped.append("\\" + character)
        elif 0x20 <= code < 0x7F:
            escaped.append(character)
        elif code < 0x100:
            escaped.append(f"\\x{code:02x}")
        elif code < 0x10000:
            escaped.append(f"\\u{code:04x}")
        else:
            escaped.append(f"\\U{code:08x}")
    return '"' + "".join(escaped) + '"'


def unit_word(text: str) -> str:
    """Return a word of an ExecStart= line that systemd hands to the program as exactly this text.

    Raises:
        EngineConfigError: it holds a control character.
    """
    if not text.isprintable():
        raise EngineConfigError(f"{text!r} can't be written into a unit: it holds a control character.")
    if re.fullmatch(r"[A-Za-z0-9_./:@+,=-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") + '"'


def secrets(arguments: Mapping[str, Any]) -> list[str]:
    """Return the values among arguments (from `flatten`) that no output may show."""
    found = []
    for name in SECRET_ARGUMENTS & set(arguments):
        value = arguments[name]
        found += [str(item) for item in (value if isinstance(value, list) else [value]) if item is not None]
    return sorted(found)


def address(arguments: Mapping[str, Any]) -> tuple[str, int]:
    """Return (host, port) under which the server can be asked from its own machine.

    Args:
        arguments: from `flatten`. vLLM listens on every address, port 8000, where they are silent.
    """
    host = str(arguments.get("host") or "0.0.0.0")
    if host in ("0.0.0.0", "*"):
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return host, int(arguments.get("port") or 8000)


def served_name(arguments: Mapping[str, Any]) -> str:
    """Return the name that a request must give for the model: the first served name, or the model itself."""
    names = arguments.get("served-model-name") or []
    names = names if isinstance(names, list) else [names]
    return str(names[0]) if names else str(arguments.get("model", ""))


def probe(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return (path, body) of the smallest request that only a living engine can answer.

    A pooling model is asked for an embedding, any other for a few tokens.
    """
    name = served_name(arguments)
    convert = arguments.get("convert")
    if convert in ("classify", "reward"):
        return {"classify": "/classify", "reward": "/pooling"}[convert], {"model": name, "input": "Hello"}
    # `task` is what releases before 0.11 called it.
    if convert == "embed" or arguments.get("runner") == "pooling" or arguments.get("task") in ("embed", "embedding"):
        return "/v1/embeddings", {"model": name, "input": "Hello"}
    return "/v1/completions", {"model": name, "prompt": "Hello", "max_tokens": 4, "temperature": 0}
