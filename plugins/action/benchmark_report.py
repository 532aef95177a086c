# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares a benchmark with the accepted one, shows it and keeps it, on the control node."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Mapping
from functools import partial
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.utils.display import Display
from ansible_collections.phoenix.hypervisor.plugins.module_utils import benchmark, benchmark_client
from ansible_collections.phoenix.hypervisor.plugins.plugin_utils import benchmark_plot, reports

display = Display()

ACCEPTED = "accepted.json"


class ActionModule(reports.Report):
    """C(plugins/modules/benchmark_report.py) has the documentation."""

    OPTIONS: Mapping[str, Any] = {
        "folder": {"type": "path", "required": True},
        "host": {"type": "str", "required": True},
        "ctid": {"type": "int", "default": 0},
        "node": {"type": "str", "default": ""},
        "measured": {"type": "dict", "default": {}},
        "server": {"type": "dict", "default": {}},
        "sampler": {"type": "dict", "default": {}},
        "limits": {"type": "dict", "default": {}},
        "accept": {"type": "bool", "default": False},
        "plot": {"type": "bool", "default": True},
    }

    def report(self, options: dict[str, Any], hostvars: Mapping[str, Any], now: datetime.datetime) -> dict[str, Any]:
        """Make and show it. Return what the task returns."""
        options = reports.plain(options)
        try:
            limits = benchmark.checked_limits(options["limits"])
            accepted = load(options["folder"])
            if options["measured"]:
                return self.compare(options, limits, accepted, now)
            if not self.check_mode:
                probe(options["folder"])
            return {"accepted": bool(accepted), "files": []}
        except (benchmark.ResultError, benchmark_client.BenchmarkError) as error:
            raise AnsibleActionFail(str(error)) from None
        except OSError as error:
            raise AnsibleActionFail(
                f"The results can't be kept in {options['folder']} on the control node: {error.strerror}. Make room or "
                "give it to this user, or name another folder (benchmark_folder)."
            ) from None

    def compare(
        self, options: Mapping[str, Any], limits: Mapping[str, float], accepted: dict[str, Any] | None,
        now: datetime.datetime,
    ) -> dict[str, Any]:  # fmt: skip
        """Compare, show and keep a result."""
        where = {name: options[name] for name in ("host", "ctid", "node")}
        made = benchmark.make_result(options["measured"], options["server"], where, reports.moment(now))
        if options["sampler"]:
            made["sampler"] = sampler_of(options["sampler"], made["loads"], made["sampling"])
        outcome = benchmark.verdict(made, accepted, limits, options["accept"])
        made["verdict"] = {**outcome, "limits": dict(limits), "against": accepted["date"] if accepted else ""}
        text = benchmark.report(made, outcome)
        # All figures are seen also where they can't be kept.
        display.display(text)
        files: list[str] = []
        if not self.check_mode:
            stem = now.strftime("%Y%m%dT%H%M%SZ")
            files = self.keep_result(options, made, text, stem, accepted if outcome["comparable"] else None)
            display.display(f"The result is in {' and '.join(files)}.")
        return {
            "result": made, "verdict": outcome, "table": text, "files": files,
            "accepted": bool(accepted) or outcome["accepted"],
            "accepted_digest": (accepted or {}).get("digest", ""),
        }  # fmt: skip

    def keep_result(
        self, options: Mapping[str, Any], made: dict[str, Any], text: str, stem: str, accepted: dict[str, Any] | None
    ) -> list[str]:
        """Write the result, the table, the plot; and the result once more when it is the accepted one."""
        folder = options["folder"]
        os.makedirs(folder, exist_ok=True)
        content = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        write = partial(reports.write_file, folder)
        files = [write(f"{stem}.json", content.encode()), write(f"{stem}.txt", f"{text}\n".encode())]
        if options["plot"]:
            try:
                pictures = benchmark_plot.draw(made, accepted, made["verdict"]["limits"])
                files += [write(f"{stem}.{form}", picture) for form, picture in pictures.items()]
            except benchmark_plot.Missing as error:
                display.warning(str(error))
        # Last: what is accepted is kept whole.
        if made["verdict"]["accepted"]:
            files.append(write(ACCEPTED, content.encode()))
        return files


def load(folder: str) -> dict[str, Any] | None:
    """Return the accepted result, C(None) when there is none.

    Raises:
        ResultError: it can't be used.
    """
    path = os.path.join(folder, ACCEPTED)
    try:
        with open(path, encoding="utf-8") as file:
            return benchmark.parse_result(file.read(), path)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return benchmark.parse_result("", path)


def probe(folder: str) -> None:
    """See whether the folder can be written, before something is measured for half an hour.

    Raises:
        OSError: it can't be.
    """
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        # A result with its plots; a full disk takes a file's name, and refuses its content.
        file.write(b"x" * 1_000_000)
        file.flush()
        os.fsync(file.fileno())


def sampler_of(sampler: Mapping[str, Any], loads: list[Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the comparison of the sampler on and off came to, for the result.

    Args:
        sampler: C(on) and C(off), lists of what the module M(vllm_benchmark) returned; or C(problem).
        loads: what was asked.
        sampling: how the answers were sampled.
    """
    if sampler.get("problem"):
        return {"problem": sampler["problem"], "rounds": 0, "comparison": [],
                "verdict": [f"The sampler was not compared: {sampler['problem']}"]}  # fmt: skip
    runs: dict[str, list[Any]] = {}
    used: dict[str, list[str]] = {}
    for name in ("on", "off"):
        runs[name] = [
            {**run, "round": turn}
            for turn, each in enumerate(sampler[name], 1)
            for run in each["measured"]["runs"]
        ]  # fmt: skip
        used[name] = sorted({each["server"].get("sampler_used", "") for each in sampler[name]})
    rounds = len(sampler["on"])
    rows = benchmark.compare_arms(runs["on"], runs["off"], loads)
    told = benchmark.sampler_verdict(rows, rounds, used, benchmark_client.reaches_sampler(sampling))
    digests = {name: sampler[name][0]["server"].get("digest", "") for name in ("on", "off")}
    return {"rounds": rounds, "used": used, "digests": digests, "comparison": rows, "verdict": told, "runs": runs}
