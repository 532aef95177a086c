# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report on the control node: what is kept, what is refused, and the plot."""

from __future__ import annotations

import builtins
import errno
import json
import re
import struct
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.phoenix.hypervisor.plugins.action import benchmark_report
from ansible_collections.phoenix.hypervisor.plugins.module_utils import benchmark
from ansible_collections.phoenix.hypervisor.plugins.plugin_utils import benchmark_plot

LOADS = [{"streams": 1, "input_tokens": 16, "output_tokens": 8, "prompts": 8},
         {"streams": 256, "input_tokens": 16, "output_tokens": 8, "prompts": 1024}]  # fmt: skip
SERVER = {"hardware": {"gpus": ["NVIDIA H200"]}, "model": "/models/tiny", "driver": "580", "release": "r-1",
          "versions": {"vllm": "0.10.2"}, "digest": "abcd", "sampler_used": "flashinfer"}  # fmt: skip


def measured(speed: float = 100.0, runs: int = 3) -> dict:
    """Measurements with about this many tokens per second."""
    found = []
    for turn in range(1, runs + 1):
        for load in range(len(LOADS)):
            figures = {**dict.fromkeys(benchmark.FIGURES, 10.0), "output_tokens_per_second": speed + turn / 10}
            found.append({"load": load, "round": turn, "prompts": 8, "seed": turn, "figures": figures})
    return {"runs": found, "loads": LOADS, "sampling": {"temperature": 0.8, "top_k": 50}, "seed": 1}


@pytest.fixture
def report(monkeypatch, tmp_path):
    """Run the action. Returns (result, what was shown, warnings)."""
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp, task_vars: {})

    def run(check_mode=False, **options):
        shown, warnings = [], []
        monkeypatch.setattr(benchmark_report.display, "display", shown.append)
        monkeypatch.setattr(benchmark_report.display, "warning", warnings.append)
        action = benchmark_report.ActionModule.__new__(benchmark_report.ActionModule)
        given = {"folder": str(tmp_path / "921"), "host": "ctid_921", "ctid": 921, "node": "pve", "plot": False}
        action._task = SimpleNamespace(args={**given, **options}, check_mode=check_mode)
        return action.run(task_vars={}), "\n".join(shown), "\n".join(warnings)

    return run


def names(tmp_path) -> list[str]:
    """The kinds of files that there are."""
    return sorted(re.sub(r"^\d+T\d+Z", "", path.name) for path in (tmp_path / "921").iterdir())


def test_before_it_is_measured_only_the_folder_is_looked_at(report, tmp_path):
    result, shown, _warnings = report()
    assert result == {"changed": False, "accepted": False, "files": []} and shown == ""
    assert names(tmp_path) == []


def test_check_mode_makes_nothing(report, tmp_path):
    report(check_mode=True)
    result, shown, _warnings = report(check_mode=True, measured=measured(), server=SERVER)
    assert result["files"] == [] and "It is the first result" in shown and not (tmp_path / "921").exists()


def test_a_result_is_kept_as_json_text_and_plot(report, tmp_path):
    result, shown, warnings = report(measured=measured(), server=SERVER, plot=True)
    assert names(tmp_path) == [".json", ".png", ".svg", ".txt", "accepted.json"] and warnings == ""
    assert [file.rpartition(".")[2] for file in result["files"]] == ["json", "txt", "png", "svg", "json"]
    kept = json.loads((tmp_path / "921/accepted.json").read_text())
    assert kept == json.loads(json.dumps(result["result"])) and kept["verdict"]["accepted"] is True
    assert result["table"] in shown and kept["ctid"] == 921 and kept["verdict"]["limits"] == benchmark.LIMITS


def test_the_accepted_result_stays_until_a_person_says_so(report, tmp_path):
    report(measured=measured(), server=SERVER)
    before = (tmp_path / "921/accepted.json").read_text()
    result, shown, _warnings = report(measured=measured(50), server={**SERVER, "digest": "efgh"})
    assert result["verdict"]["passed"] is False and "LOST" in shown and result["accepted_digest"] == "abcd"
    assert (tmp_path / "921/accepted.json").read_text() == before
    result, _shown, _warnings = report(measured=measured(50), server={**SERVER, "digest": "efgh"}, accept=True)
    assert result["verdict"]["passed"] is True
    assert json.loads((tmp_path / "921/accepted.json").read_text())["digest"] == "efgh"


def test_a_limit_is_taken(report):
    report(measured=measured(), server=SERVER)
    result, _shown, _warnings = report(
        measured=measured(97), server=SERVER, limits={"output_tokens_per_second": "1"}
    )
    assert result["verdict"]["passed"] is False


def test_without_matplotlib_there_is_a_warning_that_names_it(report, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    result, _shown, warnings = report(measured=measured(), server=SERVER, plot=True)
    assert "pip install matplotlib" in warnings and names(tmp_path) == [".json", ".txt", "accepted.json"]
    assert result["verdict"]["passed"]


@pytest.mark.parametrize(("options", "message"), [
    ({"limits": {"speed": 1}}, "benchmark_loss_limit has speed"),
    ({"limits": {"request_ms": "x"}}, "benchmark_loss_limit: request_ms is 'x'"),
])  # fmt: skip
def test_what_is_wrong_is_told_before_it_is_measured(report, options, message):
    with pytest.raises(AnsibleActionFail, match=message):
        report(**options)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe\x00", b"{}", b""])
def test_a_damaged_accepted_result_is_told_of_and_stays(report, tmp_path, text):
    (tmp_path / "921").mkdir()
    (tmp_path / "921/accepted.json").write_bytes(text)
    for options in ({}, {"measured": measured(), "server": SERVER}):
        with pytest.raises(AnsibleActionFail, match="the next run is accepted as the first"):
            report(**options)
    assert (tmp_path / "921/accepted.json").read_bytes() == text and names(tmp_path) == ["accepted.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_folder_that_can_t_be_written_is_told_of_and_the_figures_are_shown(report, tmp_path, monkeypatch, number):
    def refuse(*_words, **_more):
        raise OSError(number, benchmark_report.os.strerror(number))

    shown = []
    with monkeypatch.context() as patch:
        patch.setattr(benchmark_report.os, "replace", refuse)
        patch.setattr(benchmark_report.display, "display", shown.append)
        with pytest.raises(AnsibleActionFail, match=r"can't be kept in .*: .*Make room .*benchmark_folder"):
            action = benchmark_report.ActionModule.__new__(benchmark_report.ActionModule)
            action._task = SimpleNamespace(check_mode=False, args={
                "folder": str(tmp_path / "921"), "host": "h", "measured": measured(), "server": SERVER, "plot": False,
            })  # fmt: skip
            action.run(task_vars={})
    # No half of a file is left.
    assert names(tmp_path) == []


def test_a_file_in_the_folder_s_place_is_told_of(report, tmp_path):
    (tmp_path / "921").write_text("")
    with pytest.raises(AnsibleActionFail, match="can't be kept in"):
        report()


def arms(on: float, off: float, rounds: int = 4) -> dict:
    """What was measured with the sampler on and off."""
    def each(speed, used):
        return [{"measured": measured(speed + turn / 10, 1), "server": {**SERVER, "sampler_used": used, "digest": used}}
                for turn in range(rounds)]  # fmt: skip

    return {"on": each(on, "flashinfer"), "off": each(off, "pytorch")}


def test_the_sampler_s_comparison_is_in_the_result(report):
    result, shown, _warnings = report(measured=measured(), server=SERVER, sampler=arms(125, 100))
    sampler = result["result"]["sampler"]
    assert (sampler["rounds"], sampler["used"]) == (4, {"on": ["flashinfer"], "off": ["pytorch"]})
    assert sampler["digests"] == {"on": "flashinfer", "off": "pytorch"}
    assert [run["round"] for run in sampler["runs"]["on"]] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert "on FP8 was seen (at most 24.9 %)" in shown and sampler["comparison"][0]["verdict"] == "better"
    assert benchmark.parse_result(json.dumps(result["result"]), "x")


def test_why_the_sampler_was_not_compared_is_in_the_result(report):
    result, shown, _warnings = report(measured=measured(), server=SERVER, sampler={"problem": "It hung."})
    assert result["result"]["sampler"]["problem"] == "It hung." and "The sampler was not compared: It hung." in shown


# --- the plot -------------------------------------------------------------------------------------------------------


def result_of(speed: float = 100.0, **more) -> dict:
    """A result."""
    where = {"host": "ctid_921", "ctid": 921, "node": "pve"}
    return {**benchmark.make_result(measured(speed), SERVER, where, "2026-11-28T01:00:00Z"), **more}


def test_a_plot_is_a_png_and_an_svg_with_its_text_in_it():
    pictures = benchmark_plot.draw(result_of())
    svg = pictures["svg"].decode()
    assert pictures["png"].startswith(b"\x89PNG\r\n") and len(pictures["png"]) > 10_000
    for text in ("ctid_921: /models/tiny", "NVIDIA H200, driver 580, vLLM 0.10.2, release r-1", "3 runs of each load",
                 "Output, tokens per second", "more is better", "less is better", "256 streams", "16 in",
                 "a run; the line is the median"):  # fmt: skip
        assert f">{text}" in svg or text in svg, text
    assert "accepted" not in svg


def test_the_same_result_gives_the_same_plot():
    assert benchmark_plot.draw(result_of()) == benchmark_plot.draw(result_of())


def test_what_is_compared_is_in_the_plot():
    made = result_of(95, sampler=benchmark_report.sampler_of(arms(125, 100), LOADS, {"top_k": 50}))
    svg = benchmark_plot.draw(made, result_of(), benchmark.LIMITS)["svg"].decode()
    for text in ("Against the accepted result", "accepted, 2026-11-28T01:00:00Z", "limit of a loss", "% of accepted",
                 "FlashInfer sampler on and off in turns, 4 rounds", "sampler off", "% of sampler off"):  # fmt: skip
        assert text in svg, text


@pytest.mark.parametrize(("name", "value"), [
    ("first_token_ms", 0.0), ("output_tokens_per_second", 1e9), ("inter_token_ms", 1e-6),
])  # fmt: skip
def test_odd_figures_can_be_drawn(name, value):
    runs = measured()
    for run in runs["runs"]:
        run["figures"][name] = value
    server = {**SERVER, "hardware": {"processor": "x", "cores": 2}, "versions": {}}
    made = benchmark.make_result(runs, server, {}, "now")
    assert benchmark_plot.draw(made, made, benchmark.LIMITS)["png"]


@pytest.mark.parametrize("loads", [1, 8])
def test_few_and_many_loads_can_be_drawn(loads):
    given = [{"streams": 2**number, "input_tokens": 16, "output_tokens": 8, "prompts": 1024} for number in range(loads)]
    runs = [{"load": load, "round": 1, "prompts": 8, "seed": 1, "figures": dict.fromkeys(benchmark.FIGURES, 10.0)}
            for load in range(loads)]  # fmt: skip
    made = benchmark.make_result({"runs": runs, "loads": given, "sampling": {}, "seed": 1}, SERVER, {}, "now")
    pictures = benchmark_plot.draw(made)
    assert f"{given[-1]['streams']} stream" in pictures["svg"].decode()
    # One that a screen has to make smaller can't be read.
    assert struct.unpack(">I", pictures["png"][16:20])[0] < 2000


@pytest.mark.parametrize(
    ("values", "relative", "said"),
    [([396, 398.4, 397], False, "397\n396 to 398"), ([2.5, 2.5], False, "2.50"), ([396, 398, 397], True, "397")],
)
def test_what_is_said_of_some_runs(values, relative, said):
    assert benchmark_plot._said(values, relative) == said
