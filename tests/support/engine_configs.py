# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engine configs out of a release's flag table, with values that break what isn't careful."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# What YAML, argparse, systemd, shells and templates have a meaning for.
NASTY = (
    "yes", "no", "true", "null", "~", "1e3", "0x10", "0o7", "1_000", "1.10", "007", ".5", "-1", "-x", "--config", "---",
    "--model=x", "-O3", "-O", "--x.y=1", "-a.b", "=x", "a=b", "{", "{}x", "[1", "a: b", "- a", "# a", "a # b", "&a",
    "*a", "!tag", "|", ">", "%n %i %%", "$HOME ${HOME} $$ $(id)", "{{ 7*7 }}", "{% raw %}", "'", '"', "\\", "\\n",
    "a\nb", "\n", "a\r\nb", "\t", " a ", "a b", "\x1b[0m", "\x7f", "\x85", "\u2028", "\ufeff", "ü", "😀", "@file",
    "2026-01-01", "12:30:45",
)  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
).filter(lambda text: text != "--")
NUMBER = st.one_of(st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=10,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=4)
# What the configuration classes take, each key of its own type; the parser checks them already.
OF_KEYS = {
    "compilation-config": st.fixed_dictionaries(
        {}, optional={"cudagraph_capture_sizes": st.lists(st.integers(1, 512), min_size=1), "cache_dir": TEXT}
    ),
    "eplb-config": st.fixed_dictionaries({}, optional={"window_size": st.integers(1, 9**9)}),
    "kv-transfer-config": st.fixed_dictionaries(
        # Without an engine_id, vLLM makes one up.
        {
            "kv_connector": TEXT,
            "kv_role": st.sampled_from(["kv_producer", "kv_consumer", "kv_both"]),
            "engine_id": TEXT,
        },
        optional={"kv_connector_extra_config": OBJECT},
    ),
    "ec-transfer-config": st.fixed_dictionaries({"engine_id": TEXT}, optional={"ec_connector_extra_config": OBJECT}),
    "kv-events-config": st.fixed_dictionaries({}, optional={"endpoint": TEXT, "topic": TEXT}),
    "structured-outputs-config": st.fixed_dictionaries(
        {}, optional={"enable_in_reasoning": st.booleans(), "reasoning_parser": st.text("abc_")}
    ),
    "attention-config": st.fixed_dictionaries({}, optional={"flash_attn_version": st.sampled_from([2, 3])}),
}
# A model is a word of the unit; it has no control characters, and no dash at its beginning.
MODEL = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"]), min_size=1).filter(
    lambda text: text.strip() and text.isprintable() and not text.startswith("-")
)
GROUPS = ("", "ModelConfig", "CacheConfig", "ServerConfig", "Mine")


def _list(items: st.SearchStrategy, **how: Any) -> st.SearchStrategy:
    """Lists that a command line can hold: several words, of which none begins with a dash; or one; or not a list."""
    several = items.filter(lambda item: not str(item).startswith("-"))
    return st.one_of(
        items, st.lists(items, min_size=1, max_size=1), st.lists(several, min_size=2, max_size=5, **how)
    )


def value(name: str, entry: dict[str, Any]) -> st.SearchStrategy:
    """Values that an argument can have."""
    kind = entry["kind"]
    if kind in ("boolean", "switch"):
        return st.booleans()
    if kind == "object":
        if "keys" in entry:
            objects = OF_KEYS.get(name, st.just({}))
        else:
            objects = OBJECT if "words" in entry else JSON.filter(lambda content: isinstance(content, (dict, list)))
        texts = objects.map(json.dumps)
        words = TEXT.filter(lambda text: text.strip()[:1] != "{") if "words" in entry else st.nothing()
        return st.one_of(objects, texts, words)
    if "choices" in entry:
        one = st.sampled_from(entry["choices"])
        return _list(one) if kind == "list" else one
    if name == "lora-modules":
        return st.lists(st.fixed_dictionaries({"name": TEXT, "path": TEXT}), min_size=1, max_size=3)
    if kind == "list":
        if entry.get("items") == "integer":
            return _list(st.integers(-(10**6), 10**6))
        return _list(st.one_of(TEXT.filter(lambda text: text not in ("", "None")), NUMBER))
    if kind == "repeated":
        return st.lists(TEXT, max_size=4, unique=True)
    if name == "port":
        return st.integers(1024, 65535)
    if name == "device-ids":
        # vLLM reads as a number what str.isdigit() says is one; int() refuses a superscript.
        return st.one_of(TEXT.filter(lambda text: not any(c.isdigit() and not c.isdecimal() for c in text)), NUMBER)
    numbers = {
        "integer": st.integers(-(2**63), 2**63),
        "number": st.one_of(NUMBER, st.floats(0, 1).map(repr)),
        "size": st.one_of(
            st.integers(0, 2**40), st.from_regex(r"[1-9][0-9]{0,3}(\.[0-9])?[kmg]|[1-9][KMG]", fullmatch=True)
        ),
    }
    return numbers[kind] if kind in numbers else st.one_of(TEXT, NUMBER)


@st.composite
def configs(draw: Any, table: dict[str, Any], without: tuple[str, ...] = ()) -> tuple[str, dict, dict]:
    """Return (model, engine config, argument → what is declared for it)."""
    flags = {name: entry for name, entry in table["flags"].items() if name not in ("headless", *without)}
    names = draw(st.lists(st.sampled_from(sorted(flags)), max_size=8, unique=True))
    model = draw(MODEL)
    config: dict[str, Any] = {}
    declared = {}
    for name in ["model", *names]:
        content = model if name == "model" else draw(value(name, flags[name]))
        group = draw(st.sampled_from(GROUPS))
        written = name if draw(st.booleans()) else name.replace("-", "_")
        (config.setdefault(group, {}) if group else config)[written] = content
        if name != "model":
            declared[name] = {"kind": flags[name]["kind"], "value": content}
    return model, config, declared
