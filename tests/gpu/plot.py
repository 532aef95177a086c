# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture of what proof.py compared: tokens per second, and the ratio of each round. Needs matplotlib.

    python tests/gpu/plot.py docs/benchmarks/…/result.json

writes comparison.svg and comparison.png beside it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import report
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Blue and orange differ for everybody, in print, too.
COLORS = ("#0b62a4", "#d95f02")


def short(load: Mapping[str, int]) -> str:
    """A load in three short lines."""
    return f"{report.plural(load['streams'], 'stream')}\n{load['input_tokens']} in\n{load['output_tokens']} out"


def rates(axes: Any, found: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Tokens per second of each run of both arms, their medians as lines."""
    for number, (name, color, runs) in enumerate(zip(names, COLORS, found["runs"].values())):
        for place in range(len(found["loads"])):
            values = [run["figures"]["output_tokens_per_second"] for run in runs if run["load"] == place]
            middle = place + (number - 0.5) * 0.4
            step = 0.28 / max(len(values) - 1, 1)
            xs = [middle + (turn - (len(values) - 1) / 2) * step for turn in range(len(values))]
            axes.plot(xs, values, "os"[number], color=color, markersize=3.5, alpha=0.7, markeredgewidth=0)
            median = statistics.median(values)
            axes.plot([middle - 0.18, middle + 0.18], [median] * 2, color=color, linewidth=2)
            axes.annotate(f"{median:,.0f}", (middle, max(values)), (0, 4), textcoords="offset points", ha="center",
                          fontsize=7.5, color=color)  # fmt: skip
        axes.plot([], [], "os"[number] + "-", color=color, markersize=3.5, linewidth=2, label=name)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_xticks(range(len(found["loads"])), [short(load) for load in found["loads"]], fontsize=8)
    axes.set_title("output tokens per second, each run; the line is the median", loc="left", fontsize=9)
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")


def ratios(axes: Any, found: Mapping[str, Any], limit: bool) -> None:
    """The ratio of each round, the median, and where it lies in 95 % of resamples."""
    series = [*found["ratios"].values(), found["overall"]]
    for place, one in enumerate(series):
        values = one["values"]
        step = 0.5 / max(len(values) - 1, 1)
        xs = [place + (turn - (len(values) - 1) / 2) * step for turn in range(len(values))]
        axes.plot(xs, values, "o", color="#777777", markersize=3.5, alpha=0.7, markeredgewidth=0)
        low, high = one["interval"]
        axes.errorbar([place], [one["median"]], [[one["median"] - low], [high - one["median"]]], color=COLORS[0],
                      fmt="D", markersize=5, capsize=4, linewidth=1.6)  # fmt: skip
        axes.annotate(f"{one['median']:.3f}", (place, one["median"]), (9, 3), textcoords="offset points", fontsize=8,
                      color=COLORS[0])  # fmt: skip
    axes.axhline(1, color="#555555", linewidth=0.8, zorder=0)
    if limit:
        axes.axhline(report.RATIO, color="#b00020", linewidth=1, linestyle="--", zorder=0)
        axes.annotate(f"{report.RATIO}", (len(series) - 0.42, report.RATIO), color="#b00020", fontsize=8, va="top",
                      ha="right")  # fmt: skip
    axes.set_xticks(range(len(series)), [*(short(load) for load in found["loads"]), "all loads"], fontsize=8)
    axes.set_xlim(-0.5, len(series) - 0.4)
    axes.set_title("ratio: each round, the median, 95 % of resamples", loc="left", fontsize=9)


def draw(result: Mapping[str, Any]) -> Figure:
    """The picture."""
    shown = [(title, names, result[key]) for key, title, names in report.COMPARISONS if result.get(key)]
    machine = result["machine"]
    figure = Figure(figsize=(12, 0.6 + 3.5 * len(shown)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    gpus = machine["gpus"]
    what = f"{len(gpus)} x {gpus[0]['name']} ({gpus[0]['architecture']})" if gpus else "no GPU"
    versions = machine["versions"]
    figure.suptitle(f"{what}, driver {machine['driver']}, vLLM {versions['vllm']}, torch {versions['torch']}, "
                    f"{result['date'][:10]}", x=0.01, ha="left", fontsize=10)  # fmt: skip
    parts = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
    for (title, names, found), part in zip(shown, parts):
        part.suptitle(f"{title}; {report.counted(found)}", x=0.01, ha="left", fontsize=9.5, fontweight="bold")
        left, right = part.subplots(1, 2)
        rates(left, found, names)
        ratios(right, found, "hand" in names[1])
        for axes in (left, right):
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(length=0, labelsize=8)
    return figure


def main() -> None:
    path = Path(sys.argv[1])
    # Text stays text, so that the SVG can be searched; the same result gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gpu-proof", "font.size": 9,
                                "axes.spines.top": False, "axes.spines.right": False}):  # fmt: skip
        figure = draw(json.loads(path.read_text()))
        FigureCanvasAgg(figure).print_figure(path.with_name("comparison.png"), format="png", dpi=110)
        FigureCanvasSVG(figure).print_figure(path.with_name("comparison.svg"), format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
