# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A page of what proof.py measured.

    python tests/gpu/report.py docs/benchmarks/…/result.json >docs/benchmarks/…/README.md
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

UNITS = {"output_tokens_per_second": ("tokens/s", 0), "first_token_ms": ("first token, ms", 1),
         "inter_token_ms": ("between tokens, ms", 2)}  # fmt: skip
# What the rendered server must have of the hand-made one's tokens per second.
RATIO = 0.98
# Name in the result, title, what the two are called.
COMPARISONS = (
    ("rendered_to_hand_made", "The rendered server and the hand-made command line", ("rendered", "hand-made")),
    ("rendered_to_hand_made_tp2", "The same with tensor parallel 2", ("rendered", "hand-made")),
    ("sampler_on_to_off", "FlashInfer's sampler on and off", ("on", "off")),
)
SERVERS = {
    "cold_rendered": "rendered, empty caches", "rendered": "rendered, kept caches",
    "hand_made": "hand-made, the same kept caches", "cold_sampler_off": "rendered with the sampler off, empty caches",
    "sampler_off": "rendered with the sampler off, kept caches",
    "cold_rendered_tp2": "rendered, tensor parallel 2, caches empty but for FlashInfer's kernels",
    "rendered_tp2": "rendered, tensor parallel 2, kept caches",
    "hand_made_tp2": "hand-made, tensor parallel 2, the same kept caches",
}  # fmt: skip


def load_name(load: Mapping[str, int]) -> str:
    """A load in a few words."""
    return f"{plural(load['streams'], 'stream')}, {load['input_tokens']} in, {load['output_tokens']} out"


def warning(machine: Mapping[str, Any]) -> str:
    """Which GPU this was, and that it says nothing of another one."""
    names = sorted({gpu["name"] for gpu in machine["gpus"]}) or ["no GPU"]
    kinds = sorted({gpu["architecture"] for gpu in machine["gpus"]})
    if not machine["gpus"]:
        return "**Without a GPU: a try of the harness, not a measurement.**"
    what = f"{len(machine['gpus'])} {names[0]}, {kinds[0]}"
    if kinds == ["Blackwell"]:
        return f"Measured on {what}."
    return (
        f"**Measured on {what}, not Blackwell.** What it shows is that the rendered server works and loses nothing; "
        "figures of speed on an RTX 50-series card (sm_120) are others, and so may be what the sampler gains."
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def number(value: float, digits: int) -> str:
    """A figure."""
    return f"{value:,.{digits}f}"


def plural(count: int, what: str) -> str:
    """A number of things."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def counted(found: Mapping[str, Any]) -> str:
    """How often it was measured."""
    return f"{plural(found['rounds'], 'round')} of {plural(found['starts'], 'start')}"


def compared(found: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Lines that compare two servers.

    :param names: what they are called
    """
    rows = []
    for load, ratio in [*found["ratios"].items(), ("all loads", found["overall"])]:
        low, high = ratio["interval"]
        rows.append([load, f"**{ratio['median']:.3f}**", f"{low:.3f} to {high:.3f}"])
    header = ["tokens per second", f"{names[0]} / {names[1]}: median of the rounds", "in 95 % of resamples"]
    lines = [*table(header, rows), ""]
    rows = []
    for row in found["rows"]:
        unit, digits = UNITS[row["figure"]]
        cells = [f"{number(row[arm]['median'], digits)} ({number(row[arm]['least'], digits)} to "
                 f"{number(row[arm]['most'], digits)})" for arm in ("on", "off")]  # fmt: skip
        chance = "" if row["verdict"] == "too few rounds" else f"{row['chance']:.2g}"
        rows.append([load_name(row["load"]), unit, *cells, chance])
    lines += table(["load", "figure", *(f"{name}: median (range)" for name in names), "p"], rows)
    if "same_settings" in found:
        same = "the same" if found["same_settings"] else "**different**"
        lines += ["", f"By their own logs both engines had {same} settings."]
    return lines


def quoted(word: str) -> str:
    """A word for a shell, in which the names that stand for a machine's folders are left to the shell."""
    folder = re.match(r"\$(WORK|RELEASE|OUT)(?=/|$)", word)
    rest = word[folder.end() :] if folder else word
    return word if (folder and not rest) or shlex.quote(rest) == rest else shlex.quote(word)


def server(name: str, found: Mapping[str, Any]) -> list[str]:
    """Lines about one server: how it was started, and what it said."""
    lines = [f"### {name}", ""]
    if "error" in found:
        return [*lines, "It did not answer:", "", "```", *found["error"].splitlines()[-15:], "```", ""]
    variables = " ".join(f"{key}={quoted(value)}" for key, value in sorted(found["environment"].items()))
    lines += ["```", f"{variables} \\", f"  {' '.join(map(quoted, found['command']))}", "```", ""]
    if found.get("engine_config_file"):
        lines += ["with the engine config", "", "```yaml", *found["engine_config_file"].strip().splitlines(), "```", ""]
    if found["log"]:
        lines += ["What it said of itself:", "", "```", *found["log"], "```", ""]
    return lines


def page(result: Mapping[str, Any]) -> str:
    """The page."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [
        f"# Proof on a GPU, {result.get('date', '')[:10]}", "", warning(machine), "",
        "`tests/gpu/proof.py` takes the definition of container 921 from `inventories/example` (Llama 3.2 3B's "
        "architecture, made-up weights, fp8 weights and fp8 KV cache), lets the inventory plugin, the role "
        "`vllm_model_server`, its template and its module render it, and starts the real vLLM with what came out.", "",
        *table(["", ""], [
            ["driver", f"{machine['driver']}, CUDA {machine['cuda_driver']}"],
            ["CUDA toolkit", machine["toolkit"] or "none"],
            ["software", f"Python {machine['python']}, {versions}"],
            ["machine", f"{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}"],
        ]), "",
    ]  # fmt: skip
    if result.get("remark"):
        lines += [result["remark"], ""]
    wrong = result.get("wrong") or []
    if wrong:
        lines += ["**Not as it should be:**", "", *(f"- {line}" for line in wrong), ""]
    started = [(what, result[f"server_{name}"].get("starts") or []) for name, what in SERVERS.items()
               if f"server_{name}" in result]  # fmt: skip
    rows = [[what, ", ".join(f"{seconds:.1f}" for seconds in starts) + " s"] for what, starts in started if starts]
    if rows:
        lines += ["## From the start to the first completion", "", *table(["", "each start"], rows), ""]
    shown = [(title, names, result[name]) for name, title, names in COMPARISONS if result.get(name)]
    if shown:
        lines += [
            "## Compared", "",
            "In turns, one load of one after the same load of the other, both on the same GPUs. A ratio is of two such "
            "runs that follow each other.", "",
            "![tokens per second of each run, and the ratio of each round](comparison.svg)", "",
        ]  # fmt: skip
    for title, names, found in shown:
        lines += [f"### {title}", "", f"{counted(found)}.", "", *compared(found, names), ""]
        lines += [*(f"- {line}" for line in found.get("verdict", ())), ""] if found.get("verdict") else []
    for name in ("verify", "verify_tp2"):
        if name in result:
            found = result[name]
            lines += [f"## {name}", "", f"{'Passed' if found['passed'] else 'Failed'}: {found.get('answer', '')!r}", ""]
    if "gpu_check" in result:
        found = result["gpu_check"]
        lines += [f"## gpu_check ({found['seconds']} s)", "", "```", *found["table"], "```", ""]
    folders = "`$WORK` is the harness's folder for caches, logs and the model, `$RELEASE` the folder with vLLM"
    lines += ["## The servers", "", f"{folders} (`--work`, `--release`).", ""]
    for name, what in SERVERS.items():
        if f"server_{name}" in result:
            lines += server(what[0].upper() + what[1:], result[f"server_{name}"])
    asked = result["asked"]
    arguments = re.sub(r'(["\\`])', r"\\\1", " ".join(map(quoted, asked["arguments"])))
    lines += [
        "## To repeat it", "", "```", f'make gpu-proof ARGS="{arguments}"', "```", "",
        f"Requests were sampled with {json.dumps(asked['sampling'])}, random tokens, `--ignore-eos`, by `vllm bench "
        "serve`. `result.json` beside this page has each run, the unit, all packages and what NVML said.", "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page(json.loads(Path(sys.argv[1]).read_text())))
