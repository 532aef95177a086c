# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""pct's command line: options with one or two dashes, ``--opt value`` or ``--opt=value``, unique abbreviations,
booleans with an optional value, everything behind ``--`` verbatim. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from node.errors import UsageError


@dataclass
class Parsed:
    """A command line taken apart. ``extra`` is what stands behind ``--``."""

    arguments: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)


_BOOLEAN_WORDS = {"0", "1", "on", "off", "yes", "no", "true", "false"}


def parse(words: list[str], names: Iterable[str], booleans: Iterable[str], optional: Iterable[str] = ()) -> Parsed:
    """Take a command line apart. ``optional`` options may stand without a value (such as ``--password``)."""
    known, flags, loose = set(names), set(booleans), set(optional)
    done = Parsed()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            done.extra = rest
            break
        if not word.startswith("-") or word == "-":
            done.arguments.append(word)
            continue
        given, equals, value = word.lstrip("-").partition("=")
        name = _full_name(given, known)
        if not equals:
            if name in flags:
                value = rest.pop(0) if rest and rest[0].lower() in _BOOLEAN_WORDS else "1"
            elif rest and not (name in loose and rest[0].startswith("-")):
                value = rest.pop(0)
            elif name in loose:
                value = ""
            else:
                raise UsageError(f"Option {name} requires an argument\n400 unable to parse option", 255)
        done.options[name] = value
    return done


def _full_name(given: str, known: set[str]) -> str:
    if given in known:
        return given
    matches = sorted(name for name in known if name.startswith(given))
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"Option {given} is ambiguous ({', '.join(matches[:8])})\n400 unable to parse option", 255)
    raise UsageError(f"Unknown option: {given}\n400 unable to parse option", 2)


def without_secrets(words: list[str]) -> list[str]:
    """The words of a command line for a log: passwords replaced, the inner command of exec left out."""
    shown: list[str] = []
    hide = False
    for number, word in enumerate(words):
        if word == "--" and words[:1] == ["exec"]:
            shown.append(f"-- ({len(words) - number - 1} words)")
            break
        bare = word.lstrip("-").partition("=")[0]
        secret = word.startswith("-") and len(bare) > 1 and "password".startswith(bare)
        if hide and not word.startswith("-"):
            shown.append("***")
        elif secret and "=" in word:
            shown.append(word.partition("=")[0] + "=***")
        else:
            shown.append(word)
        hide = secret and "=" not in word
    return shown
