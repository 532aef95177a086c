# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rendered server against the hand-made command line, several results of proof.py together.

    python tests/gpu/pooled.py docs/benchmarks/*/result.json

A start is one of one machine, and starts are what is resampled. Results without that comparison are left out.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import proof
import report
from ansible_collections.phoenix.hypervisor.plugins.module_utils import benchmark, benchmark_client

# Medians don't mind a round that was disturbed; the geometric mean uses all that a round says.
CENTERS = (("median", benchmark.median), ("geometric mean", statistics.geometric_mean))


def pooled(results: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[list[float]]]:
    """The ratios of all results: of each load, and of all loads of a round together, a list for each start.

    :param results: as proof.py writes them
    :param name: of the comparison
    """
    loads: dict[str, list[list[float]]] = {}
    overall: list[list[float]] = []
    for found in (result[name] for result in results if result.get(name)):
        # Results of before servers were started again don't say which start it was.
        one, other = ([{"start": 1, "gpu": 0, **run} for run in runs] for runs in found["runs"].values())
        ratios = [proof.paired(one, other, number) for number in range(len(found["loads"]))]
        for load, of_load in zip(found["loads"], ratios):
            loads.setdefault(benchmark_client.load_name(load), []).extend(of_load)
        overall += proof.over_all_loads(ratios)
    return {**loads, "all loads": overall}


def table(ratios: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """The table of what they come to, with where it lies in 95 % of resamples."""
    rows = []
    for load, starts in ratios.items():
        cells = []
        for _name, center in CENTERS:
            low, high = proof.resampled(starts, center)
            all_of_them = [ratio for start in starts for ratio in start]
            cells.append(f"{center(all_of_them):.3f} ({low:.3f} to {high:.3f})")
        rows.append([load, str(sum(map(len, starts))), str(len(starts)), *cells])
    return report.table(["rendered / hand-made", "rounds", "starts", *(name for name, _center in CENTERS)], rows)


if __name__ == "__main__":
    known = [json.loads(Path(path).read_text()) for path in sys.argv[1:]]
    sys.stdout.write("\n".join(table(pooled(known, proof.NAMES["rendered"]))) + "\n")
