# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws the result of a benchmark, as PNG and SVG.

Each figure has a panel, each load a place in it, each run a point, and the median a line through its points. Points
rather than bars: with runs as few as these the points are the spread, which also stands above them in numbers, since a
load that is small beside another one lies flat. What is compared is drawn in percent of what it
is compared with, since a difference of some percent can't be seen beside a load that is thirty times as large; the
medians stand beside it.

matplotlib is needed for this alone; a run without it only makes no plot.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils import benchmark

# Figure → its name and unit in a panel's title.
PANELS = {
    "output_tokens_per_second": ("Output", "tokens per second"),
    "first_token_ms": ("Time to the first token", "ms"),
    "inter_token_ms": ("Time between two tokens", "ms"),
}
# Blue, orange and gray differ for everybody, in print, too.
NOW, ACCEPTED, OFF, LIMIT = "#0b62a4", "#777777", "#d95f02", "#b00020"
# As many loads are drawn with the panels beside each other.
_BESIDE = 4
NOT_THERE = (
    "There is no plot, because matplotlib is not installed here: pip install matplotlib (requirements-dev.txt has a "
    "version that works). All figures are in the JSON."
)


class Missing(Exception):
    """matplotlib is not there."""


# What is drawn of each load: its label, color, marker, and figure → the values of each load.
Series = tuple[str, str, str, Mapping[str, Sequence[Sequence[float]]]]


def draw(
    result: Mapping[str, Any],
    accepted: Mapping[str, Any] | None = None,
    limits: Mapping[str, float] | None = None,
) -> dict[str, bytes]:
    """Return the plot of a result: C(png) and C(svg).

    Args:
        result: of a run, with C(sampler) where that was compared.
        accepted: the result that it is compared with.
        limits: figure → percent that it may be worse than that.

    Raises:
        Missing: matplotlib is not there.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise Missing(NOT_THERE) from None
    loads = [row["load"] for row in result["summary"]]
    now = ("a run; the line is the median, in numbers with the least and the most", NOW, "o", _values(result))
    rows = [(f"{result['repeats']} runs of each load", [now], False, {})]
    if accepted is not None:
        then = (f"accepted, {accepted['date']}", ACCEPTED, "s", _values(accepted))
        rows.append(("Against the accepted result", [then, ("now", *now[1:])], True, limits or {}))
    sampler = result.get("sampler") or {}
    if sampler.get("comparison"):
        off, on = (_arm(sampler["comparison"], name) for name in ("off", "on"))
        heading = f"FlashInfer sampler on and off in turns, {sampler['rounds']} rounds"
        rows.append((heading, [("sampler off", OFF, "s", off), ("sampler on", NOW, "o", on)], True, {}))
    # Beside each other, or one below the other: a picture that is wider than a screen can't be read.
    columns = len(PANELS) if len(loads) <= _BESIDE else 1
    lines = -(-len(PANELS) // columns)
    width = max(10.5, 1.25 * columns * len(loads))
    # Text stays text, so that the SVG can be searched and is small; the same result gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmark", "font.size": 9,
                                "axes.spines.top": False, "axes.spines.right": False}):  # fmt: skip
        figure = Figure(figsize=(width, 0.9 + 3.4 * len(rows) * lines), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.08, w_pad=0.1)
        figure.suptitle(_title(result, int(width * 12)), x=0.01, ha="left", fontsize=10)
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for (heading, series, relative, bounds), part in zip(rows, parts):
            part.suptitle(heading, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
            axes = part.subplots(lines, columns, squeeze=False).ravel()
            for name, panel in zip(PANELS, axes):
                _panel(panel, name, loads, series, relative)
                if name in bounds:
                    _bound(panel, name, bounds[name])
            # Only a panel that has a limit has its line; all have the series.
            handles = dict(zip(*reversed(axes[0].get_legend_handles_labels())))
            part.legend(handles.values(), handles, loc="outside lower left", ncols=len(handles), frameon=False,
                        fontsize=8.5)  # fmt: skip
        png, svg = io.BytesIO(), io.BytesIO()
        FigureCanvasAgg(figure).print_figure(png, format="png", dpi=150)
        FigureCanvasSVG(figure).print_figure(svg, format="svg", metadata={"Date": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}


def _title(result: Mapping[str, Any], width: int) -> str:
    """Return what was measured, in lines that fit."""
    versions = result.get("versions") or {}
    vllm = f", vLLM {versions['vllm']}" if versions.get("vllm") else ""
    driver = f", driver {result['driver']}" if result.get("driver") else ""
    lines = [
        f"{result.get('host', '')}: {benchmark.plain(result['model'])}, {result['date']}".lstrip(": "),
        f"{_hardware(result['hardware'])}{driver}{vllm}, release {result.get('release') or 'unknown'}",
    ]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, width))


def _hardware(hardware: Mapping[str, Any]) -> str:
    """Return the hardware in a few words."""
    gpus = list(hardware.get("gpus") or [])
    if gpus:
        counts = {name: gpus.count(name) for name in dict.fromkeys(gpus)}
        return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())
    return f"{hardware.get('processor', 'unknown')}, {hardware.get('cores', '?')} cores, no GPU"


def _values(result: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Return figure → the values of each load."""
    return {name: [row["figures"][name]["values"] for row in result["summary"]] for name in PANELS}


def _arm(rows: Sequence[Mapping[str, Any]], arm: str) -> dict[str, list[list[float]]]:
    """Return the same of one of two settings."""
    return {name: [row[arm]["values"] for row in rows if row["figure"] == name] for name in PANELS}


def _panel(
    axes: Any, name: str, loads: Sequence[Mapping[str, int]], series: Sequence[Series], relative: bool
) -> None:
    """Draw a panel: at each load the runs of each series beside each other, and their median.

    Args:
        axes: where.
        name: of the figure.
        loads: what was asked.
        series: what is drawn; the first one is what the others are compared with.
        relative: whether in percent of the first one's median.
    """
    shown: list[float] = []
    for number, (label, color, marker, figures) in enumerate(series):
        middle = (number - (len(series) - 1) / 2) * 0.42
        for place, values in enumerate(figures[name][: len(loads)]):
            base = benchmark.median(series[0][3][name][place]) if relative else 100.0
            scaled = [100 * value / base if base else 100.0 for value in values]
            # Runs with the same value would hide each other.
            step = min(0.06, 0.24 / max(len(values) - 1, 1))
            xs = [place + middle + (turn - (len(values) - 1) / 2) * step for turn in range(len(values))]
            axes.plot(xs, scaled, marker, color=color, markersize=4, alpha=0.7, markeredgewidth=0)
            edges = [place + middle - 0.17, place + middle + 0.17]
            axes.plot(edges, [benchmark.median(scaled)] * 2, color=color, linewidth=2)
            axes.annotate(_said(values, relative), (place + middle, max(scaled)), (0, 5), ha="center",
                          textcoords="offset points", fontsize=7.5, color=color, linespacing=1.15,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85})  # fmt: skip
            shown += scaled
        axes.plot([], [], marker=marker, markersize=4, linewidth=2, color=color, label=label)
    what, unit = PANELS[name]
    better = "more is better" if benchmark.FIGURES[name][2] else "less is better"
    axes.set_title(f"{what}, {unit}\n{better}", fontsize=9, loc="left")
    axes.set_xticks(range(len(loads)), [_tick(load) for load in loads], fontsize=8)
    axes.set_xlim(-0.6, len(loads) - 0.4)
    if relative:
        low, high = min([*shown, 95.0]), max([*shown, 105.0])
        axes.set_ylim(low - 0.08 * (high - low), high + 0.18 * (high - low))
        axes.set_ylabel(f"% of {series[0][0].split(',')[0]}", fontsize=8)
        axes.axhline(100, color="#555555", linewidth=0.8, zorder=0)
    else:
        # From 0 on, so that lengths can be compared; with room for the numbers above.
        axes.set_ylim(0, max(shown, default=0) * 1.22 or 1)
        axes.set_ylabel(unit, fontsize=8)
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8)


def _said(values: Sequence[float], relative: bool) -> str:
    """Return a median in numbers and, where the points can't show it, what it is the median of."""
    least, median, most = (benchmark.number(value) for value in (min(values), benchmark.median(values), max(values)))
    return median if relative or least == most else f"{median}\n{least} to {most}"


def _bound(axes: Any, name: str, limit: float) -> None:
    """Draw the limit of a loss."""
    bound = 100 - limit if benchmark.FIGURES[name][2] else 100 + limit
    axes.axhline(bound, color=LIMIT, linewidth=1, linestyle="--", zorder=0, label="limit of a loss")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, bound - 0.04 * (high - low)), max(high, bound + 0.04 * (high - low)))


def _tick(load: Mapping[str, int]) -> str:
    plural = "" if load["streams"] == 1 else "s"
    return f"{load['streams']} stream{plural}\n{load['input_tokens']} in\n{load['output_tokens']} out"
