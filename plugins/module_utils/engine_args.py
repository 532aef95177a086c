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
number, size (an integer, ``8k``; ``auto`` where the entry says so), text, object (any JSON; ``keys`` when it is an
object with these keys, ``words`` when it is an object or a word), list (several words after one ``--x``, integers
where ``items`` says so), repeated (``--x`` once per item). ``choices`` are all words that there are.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_history

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
# vLLM has fractions with powers of 1000 only, and no t before 0.32.
_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?[kmg]|[0-9]+[KMG]?|-1")
# Arguments whose choices vLLM takes in small and capital letters.
_ANY_CASE = frozenset({"attention-backend", "quantization"})
_SHOWN_LENGTH = 60
# What vLLM takes of each GPU's memory when gpu_memory_utilization says nothing, as read in its releases 0.10.2, 0.19.1,
# 0.20.0 and 0.32.0: until 0.20, and since.
_SHARES, _SHARES_SINCE = (0.9, 0.92), (0, 20)


def default_share(vllm: str = "", most: bool = False) -> float:
    """Return which part of each GPU's memory vLLM takes when an engine config doesn't say.

    Args:
        vllm: the release, C("") where it isn't known.
        most: whether it is the larger one that is wanted where it isn't known. What is refused for taking too much must
            be sure of it, so the smaller one is the usual answer; what has to have room asks for the larger.
    """
    numbers = re.match(r"(\d+)\.(\d+)", vllm)
    if numbers:
        return _SHARES[tuple(map(int, numbers.groups())) >= _SHARES_SINCE]
    return max(_SHARES) if most else min(_SHARES)


class EngineConfigError(ValueError):
    """An engine config that can't be handed to vLLM.

    Attributes:
        problems: a sentence for the user about each mistake. The error's text has them all.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(" ".join(problems))
        self.problems = list(problems)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return argument → value of an engine config, without its groups, in the config's order.

    Names are written with dashes. C(null) stands for "vLLM's own default" and is left out.

    Raises:
        EngineConfigError: a group is no object, a name can't be an argument, or an argument is given two values.
    """
    arguments, _places, found = _read(config)
    if found:
        raise EngineConfigError(*found)
    return arguments


def served_names(config: Mapping[str, Any]) -> list[str]:
    """Return the names under which a server with this engine config answers; none where it can't be read."""
    try:
        arguments = flatten(config)
    except EngineConfigError:
        return []
    named = arguments.get("served-model-name") or arguments.get("model") or []
    return [str(name) for name in (named if isinstance(named, (list, tuple)) else [named])]


def problems(
    config: Mapping[str, Any], table: Mapping[str, Any] | None = None, elsewhere: Mapping[str, Mapping] | None = None
) -> list[str]:
    """Return a sentence about each mistake in an engine config, in its own order.

    Args:
        config: the engine config, with its groups.
        table: the flag table of the stack's release; see `check`.
        elsewhere: name → flag table of other stacks, to tell which one knows an argument that this one doesn't.
    """
    arguments, places, found = _read(config)
    try:
        _model, arguments = split_model(arguments)
    except EngineConfigError as error:
        found += error.problems
        arguments.pop("model", None)
    return found + _checked(arguments, table, places, elsewhere or {})[1]


def _read(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return (argument → value, argument → where it is given, what is wrong) of an engine config."""
    arguments: dict[str, Any] = {}
    places: dict[str, str] = {}
    found: list[str] = []
    for place, key, value in _entries(config, found):
        name = str(key).replace("_", "-").lstrip("-")
        name = ALIASES.get(name, name)
        if not _NAME.fullmatch(name):
            found.append(_impossible(place, name))
        elif name in REFUSED:
            found.append(f"{place} can't be set in an engine config: {REFUSED[name]}. Remove it.")
        elif value is None:
            continue
        elif name in arguments and not _same(arguments[name], value):
            found.append(
                f"{_label(name)} is given twice, {places[name]} says {_shown(name, arguments[name])} and {place} says "
                f"{_shown(name, value)}: keep one."
            )
        else:
            arguments[name] = value
            places.setdefault(name, place)
    return arguments, places, found


def _impossible(place: str, name: str) -> str:
    """Return the sentence about a key that is no name of an argument."""
    whole, dot, inner = name.partition(".")
    if dot and _NAME.fullmatch(whole):
        return f"{place} can't be an argument of vLLM: write it as an object, {_label(whole)}: {{{inner}: …}}."
    return f"{place} can't be an argument of vLLM: use names like max_model_len."


def _entries(config: Mapping[str, Any], found: list[str]) -> list[tuple[str, str, Any]]:
    """Return (place, key, value) of every argument in a config. A name with a capital is a group."""
    entries = []
    for key, value in config.items():
        if not str(key)[:1].isupper():
            entries.append((str(key), key, value))
        elif value is None:
            continue
        elif not isinstance(value, dict):
            found.append(f"{key} is a group and must be an object, not {_kind_of(value)}.")
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
        raise EngineConfigError(
            f"ModelConfig.model is {_shown('model', model)}: it must be a model of a hub or the path of a folder."
        )
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
    checked, found = _checked(arguments, table, {}, {})
    if found:
        raise EngineConfigError(*found)
    return checked


def _checked(
    arguments: Mapping[str, Any],
    table: Mapping[str, Any] | None,
    places: Mapping[str, str],
    elsewhere: Mapping[str, Mapping],
) -> tuple[dict[str, Any], list[str]]:
    """Return (what `check` returns, a sentence about each mistake)."""
    checked: dict[str, Any] = {}
    found: list[str] = []
    for name, value in arguments.items():
        entry = table["flags"].get(name) if table else {"kind": _kind_by_value(value)}
        if entry is None:
            fault = _unknown(name, value, table, elsewhere)
        else:
            try:
                checked[name] = _words(name, value, entry)
                continue
            except _WrongValue as error:
                fault = str(error)
                if table and "choices" in entry:
                    fault = f"vLLM {table['vllm']} takes {', '.join(entry['choices'])}"
        found.append(f"{places.get(name, _label(name))} is {_shown(name, value)}: {fault}.")
    return checked, found


def _unknown(name: str, value: Any, table: Mapping[str, Any], elsewhere: Mapping[str, Mapping]) -> str:
    """Return what is to be said about an argument that a release doesn't have."""
    flags = table["flags"]
    fault = f"it is no argument of vLLM {table['vllm']}"
    positive = name[3:] if name.startswith("no-") else ""
    if positive in flags:
        return f"{fault}; write {_label(positive)}: {'true' if value is False else 'false'}"
    advice = engine_history.advice(name, value, flags)
    if advice:
        return f"{fault}; {advice}"
    nearest = difflib.get_close_matches(name, list(flags), n=1, cutoff=0.7)
    knowing = {other["vllm"]: stack for stack, other in sorted(elsewhere.items()) if name in other["flags"]}
    if knowing:
        stacks = ", ".join(f"{version} (stack {stack})" for version, stack in knowing.items())
        return f"{fault}, but of {stacks}; remove it or take that stack"
    if nearest:
        return f"{fault}; the nearest that it has is {_label(nearest[0])}"
    return f"{fault}; see `vllm serve --help=all` of that release"


def _label(name: str) -> str:
    """Return an argument's name as people write it in the JSON."""
    return name.replace("-", "_")


def _shown(name: str, value: Any) -> str:
    """Return a value as a message has it: short, and never a secret."""
    if name in SECRET_ARGUMENTS or isinstance(value, (dict, list)) or value is None:
        return _kind_of(value)
    if isinstance(value, bool):
        return str(value).lower()
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_LENGTH else f"{shown[: _SHOWN_LENGTH - 1]}…"


def _kind_of(value: Any) -> str:
    """Return what a value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, (list, tuple)) else "nothing that JSON has"


def _kind_by_value(value: Any) -> str:
    """Return the kind that a value has when there is no table."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, dict):
        return "object"
    if isinstance(value, list):
        return "list" if value and not any(isinstance(item, (list, dict)) for item in value) else "object"
    return "text"


class _WrongValue(ValueError):
    """A value that an argument can't have. The text is what is to be said about it."""


def _words(name: str, value: Any, entry: Mapping[str, Any]) -> Any:
    """Return a value as a boolean, a string, a list or a tuple of strings, as its entry in the table asks.

    Raises:
        _WrongValue: the value is something else.
    """
    kind = entry["kind"]
    if kind in ("boolean", "switch"):
        if not isinstance(value, bool):
            raise _WrongValue("it must be true or false")
        return value
    if kind in ("list", "repeated"):
        words = _list(name, value, entry)
        return tuple(words) if kind == "repeated" else words
    if kind == "object":
        return _object(value, entry)
    word = _scalar(value, {"integer": "an integer", "number": "a number"}.get(kind, "a string or a number"))
    if kind == "integer":
        _integer(word)
    elif kind == "number" and not _is_number(word):
        raise _WrongValue("it must be a number")
    elif kind == "size" and not _SIZE.fullmatch(word) and not (word == "auto" and entry.get("auto", False)):
        auto = ", or auto" if entry.get("auto") else ""
        raise _WrongValue(f"it must be an integer, or one with k, m or g (powers of 1000) or K, M or G{auto}")
    _one_of_choices(name, word, entry)
    if name == "port" and not 1024 <= int(word) <= 65535:
        raise _WrongValue("the server is no superuser, so use a port from 1024 to 65535")
    return word


def _one_of_choices(name: str, word: str, entry: Mapping[str, Any]) -> None:
    """Raise an error when there are choices and the word is none."""
    choices = entry.get("choices", [word])
    if word not in choices and not (name in _ANY_CASE and word.lower() in map(str.lower, choices)):
        raise _WrongValue(f"it must be one of {', '.join(choices)}")


def _integer(word: str) -> None:
    """Raise an error when a word is no integer."""
    if not re.fullmatch(r"-?[0-9]+", word):
        raise _WrongValue("it must be an integer")


def _list(name: str, value: Any, entry: Mapping[str, Any]) -> list[str]:
    """Return the words of an argument that takes several."""
    integers = entry.get("items") == "integer"
    words = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and name == "lora-modules":
            words.append(_json(item))
            continue
        word = _scalar(item, "a list of integers" if integers else "a list of strings or numbers")
        if integers:
            _integer(word)
        _one_of_choices(name, word, entry)
        words.append(word)
    if entry["kind"] == "repeated":
        if len(set(words)) < len(words):
            raise _WrongValue("it names one of them twice")
        return words
    if not words:
        raise _WrongValue("vLLM can't be given an empty list; leave it out")
    # One word can be written --x=-1; several can't.
    bad = [word for word in words if word.startswith("-")]
    if bad and len(words) > 1:
        raise _WrongValue(f"vLLM takes {bad[0]!r} in it for an argument, because it begins with a dash")
    if {"", "None"} & set(words):
        raise _WrongValue("vLLM reads an empty string and the word None in a list as nothing; leave them out")
    return words


def _object(value: Any, entry: Mapping[str, Any]) -> str:
    """Return the JSON text of an argument that takes it, or the word of one that takes a word too."""
    keys, words = entry.get("keys"), entry.get("words", False)
    content = value
    if isinstance(value, str):
        text = _scalar(value, "a string")
        if words and not re.fullmatch(r"\s*\{.*\}\s*", text, flags=re.S):
            return text
        try:
            content = json.loads(text)
        except ValueError:
            raise _WrongValue("a string here must be JSON; write an object or a list") from None
    elif isinstance(value, (dict, list)):
        text = _json(value)
    elif entry == {"kind": "object"}:
        # Any JSON: a number or a boolean is that, too.
        text = _json(value)
    else:
        raise _WrongValue("it must be an object" + (" or a string" if words else ""))
    if (keys is not None or words) and not isinstance(content, dict):
        raise _WrongValue("it must be an object" + (" or a string" if words else ""))
    for key in content if keys is not None else ():
        if key not in keys:
            nearest = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.6)
            raise _WrongValue(f"it has no key {key}; " + (f"is {nearest[0]} meant" if nearest else ", ".join(keys)))
    return text


def _json(value: Any) -> str:
    """Return the JSON text of a value, in ASCII."""
    try:
        return json.dumps(value, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError):
        raise _WrongValue("it holds something that JSON hasn't (a date, an infinite number)") from None


def _scalar(value: Any, wanted: str) -> str:
    """Return the word for a string or a number.

    Raises:
        _WrongValue: it is neither, or has what no command line can hold.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _WrongValue(f"it must be {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _WrongValue("it must be a finite number")
    word = str(value) if isinstance(value, str) else repr(value)
    if "\0" in word or any(0xD800 <= ord(character) <= 0xDFFF for character in word):
        raise _WrongValue("it has a character that no argument can hold (NUL or half of a pair)")
    # Python's argparse drops the value of --x=-- before it looks at it.
    if word == "--":
        raise _WrongValue("vLLM can't be given two dashes and nothing else")
    return word


def _is_number(word: str) -> bool:
    """Return whether Python's float() takes the word for a finite number."""
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


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
