# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What measurements of a server mean: their spread, two of them compared, a verdict, tables. Pure functions.

A figure of a load is measured several times. It is told as its median and its range, the least and the most; with runs
as few as these, nothing cleverer is more honest.

Two kinds of comparison:

- *Before and after a change* (`compare`): a figure is lost when its median is worse than that of the accepted run by
  more than the limit, and each of the new runs is worse than each of the accepted ones. What lies within the spread is
  no loss.
- *Two settings in turns* (`compare_arms`): the exact Mann-Whitney test over the rounds, two-sided, at 5 %. It assumes
  nothing of the figures but that the rounds don't depend on each other. Four rounds are the fewest that can show
  anything (3 % by chance).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils.benchmark_client import FIGURES, load_name

SCHEMA_VERSION = 1
KIND = "phoenix.hypervisor.benchmark"
# Percent that a median may be worse than the accepted one.
LIMITS = {"output_tokens_per_second": 5.0, "first_token_ms": 20.0, "inter_token_ms": 10.0}
# What a table shows.
SHOWN = ("output_tokens_per_second", "first_token_ms", "first_token_p99_ms", "inter_token_ms", "inter_token_p99_ms")
TITLES = {
    "output_tokens_per_second": "tokens/s",
    "first_token_ms": "first token ms",
    "first_token_p99_ms": "first p99 ms",
    "inter_token_ms": "between tokens ms",
    "inter_token_p99_ms": "between p99 ms",
}
# A figure's name in a sentence.
NAMES = {
    "output_tokens_per_second": "tokens per second",
    "total_tokens_per_second": "tokens per second, those of the prompts included",
    "requests_per_second": "requests per second",
    "first_token_ms": "time to the first token",
    "first_token_mean_ms": "mean time to the first token",
    "first_token_p99_ms": "99th percentile of the time to the first token",
    "inter_token_ms": "time between two tokens",
    "inter_token_mean_ms": "mean time between two tokens, of all requests",
    "inter_token_p99_ms": "99th percentile of the time between two tokens",
    "request_ms": "time of a request",
    "request_p99_ms": "99th percentile of the time of a request",
}
SIGNIFICANT = 0.05
FEWEST_ROUNDS = 4
RESAMPLES = 4000
# What requirement document 4 expects of the FlashInfer sampler on FP8, in percent.
EXPECTED_GAIN = 20.0


class ResultError(ValueError):
    """A kept result that can't be used. The text is one sentence for the user."""


# --- numbers --------------------------------------------------------------------------------------------------------


def median(values: Iterable[float]) -> float:
    """Return the median."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Return what several runs of one figure come to: median, range, and the values themselves, in order."""
    found = list(values)
    return {"median": median(found), "least": min(found), "most": max(found), "values": found}


def chance(one: Sequence[float], other: Sequence[float]) -> float:
    """Return how probable it is that two series of one thing are as far apart as these (Mann-Whitney, two-sided).

    Exact: all ways to deal the ranks out are counted. Equal values share their ranks.
    """
    everything = sorted([*one, *other])
    # Twice a rank is a whole number, also when it is shared.
    ranks = {value: 2 * everything.index(value) + 1 + everything.count(value) for value in set(everything)}
    dealt = [ranks[value] for value in everything]
    # ways[count][sum]: so many ways to take so many values with this sum of ranks.
    ways: list[dict[int, int]] = [{0: 1}, *({} for _value in one)]
    for rank in dealt:
        for count in range(len(one), 0, -1):
            for total, number in ways[count - 1].items():
                ways[count][total + rank] = ways[count].get(total + rank, 0) + number
    mean = len(one) * sum(dealt) / len(dealt)
    seen = abs(sum(ranks[value] for value in one) - mean)
    found = ways[len(one)]
    return sum(number for total, number in found.items() if abs(total - mean) >= seen - 1e-9) / sum(found.values())


def bounds(resamples: Iterable[float]) -> tuple[float, float]:
    """Return between which numbers 95 % of resamples lie.

    Args:
        resamples: what each of them comes to.
    """
    found = sorted(resamples)
    return found[int(0.025 * len(found))], found[int(0.975 * len(found)) - 1]


def interval(one: Sequence[float], other: Sequence[float], seed: int = 1) -> tuple[float, float]:
    """Return where the ratio of the medians (one to other) lies in 95 % of resamples of both (bootstrap).

    Args:
        one: values.
        other: values, none of them 0.
        seed: the same one gives the same answer.
    """
    dice = random.Random(seed)
    return bounds(
        median(dice.choices(one, k=len(one))) / median(dice.choices(other, k=len(other)))
        for _number in range(RESAMPLES)
    )


def gain(name: str, new: float, old: float) -> float:
    """Return by how many percent a figure is better than another, negative when it is worse.

    A time that is half as long is 50 % better; one that is twice as long is 100 % worse.
    """
    if old == 0:
        return 0.0
    change = (new / old - 1) * 100
    return change if FIGURES[name][2] else -change


def summarise(runs: Iterable[Mapping[str, Any]], loads: Sequence[Mapping[str, int]]) -> list[dict[str, Any]]:
    """Return for each load what its runs come to: the load, and figure → `spread`.

    Args:
        runs: as `benchmark_client.measure` returns them.
        loads: the same.
    """
    by_load: list[list[Mapping[str, Any]]] = [[] for _load in loads]
    for run in runs:
        by_load[run["load"]].append(run["figures"])
    return [
        {"load": dict(load), "figures": {name: spread(run[name] for run in found) for name in FIGURES}}
        for load, found in zip(loads, by_load)
    ]


# --- before and after -----------------------------------------------------------------------------------------------


def checked_limits(limits: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the limits as numbers, those that are not given as they are by themselves.

    Raises:
        ResultError: one isn't known, or no number.
    """
    found = dict(LIMITS)
    for name, value in (limits or {}).items():
        if name not in FIGURES:
            raise ResultError(f"benchmark_loss_limit has {name}, which is no figure: there are {', '.join(FIGURES)}.")
        try:
            found[name] = float(str(value))
        except ValueError:
            found[name] = -1.0
        # Text as nan compares with nothing.
        if not 0 <= found[name] < 1e6:
            raise ResultError(f"benchmark_loss_limit: {name} is {value!r}, and should be percent, 0 or more.")
    return found


def incomparable(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Return why two results can't be compared, a sentence each; nothing when they can.

    The machine, the model and what was asked must be the same. All else (releases, drivers, the engine config) is what
    a change may change.
    """
    reasons = []
    for name, what in (("hardware", "the hardware"), ("model", "the model")):
        if new[name] != old[name]:
            reasons.append(f"{what} was {plain(old[name])}, and is {plain(new[name])}")
    if new["loads"] != old["loads"]:
        before, now = ("; ".join(_load_text(load) for load in each["loads"]) for each in (old, new))
        reasons.append(f"the loads were {before}, and are {now}")
    if new["sampling"] != old["sampling"]:
        before, now = plain(old["sampling"]), plain(new["sampling"])
        reasons.append(f"the requests were sampled with {before}, and are with {now}")
    return reasons


def _load_text(load: Mapping[str, int]) -> str:
    return f"{load_name(load)}, {load['prompts']} requests"


def plain(value: Any) -> str:
    """Return a value for a sentence."""
    if isinstance(value, Mapping):
        members = {name: member for name, member in value.items() if member not in ("", None, [])}
        return ", ".join(f"{name} {plain(member)}" for name, member in members.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "none"
    return str(value) or "unknown"


def compare(new: Mapping[str, Any], old: Mapping[str, Any], limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return each limited figure of each load, now and in the accepted run, and whether it was lost.

    Args:
        new: a result.
        old: the accepted one; both are comparable.
        limits: figure → percent that it may be worse.
    """
    rows = []
    for now, then in zip(new["summary"], old["summary"]):
        for name, limit in limits.items():
            one, other = now["figures"][name], then["figures"][name]
            better = round(gain(name, one["median"], other["median"]), 2)
            more = FIGURES[name][2]
            apart = one["most"] < other["least"] if more else one["least"] > other["most"]
            rows.append({
                "load": now["load"], "figure": name, "now": one["median"], "then": other["median"],
                "gain_percent": better, "limit_percent": limit, "beyond_spread": apart,
                "lost": better < -limit and apart,
            })  # fmt: skip
    return rows


def loss_sentence(row: Mapping[str, Any]) -> str:
    """Return what was lost, as a sentence."""
    unit = FIGURES[row["figure"]][1]
    return (
        f"{load_name(row['load'])}: {NAMES[row['figure']]} {'fell' if FIGURES[row['figure']][2] else 'rose'} from "
        f"{number(row['then'])} to {number(row['now'])} {unit}, {abs(row['gain_percent']):.1f} % worse (limit "
        f"{row['limit_percent']:g} %, and no run was as good as one of the accepted)"
    )


# --- two settings in turns ------------------------------------------------------------------------------------------


def turns(rounds: int, names: Sequence[str] = ("on", "off")) -> list[dict[str, Any]]:
    """Return which setting is measured when: A B A B …, each as often.

    Raises:
        ResultError: there are no rounds.
    """
    if rounds < 1:
        raise ResultError(f"benchmark_sampler_rounds is {rounds}, and should be 1 or more; {FEWEST_ROUNDS} are the "
                          "fewest for a verdict.")  # fmt: skip
    return [{"round": turn, "sampler": name} for turn in range(1, rounds + 1) for name in names]


def compare_arms(
    on: Sequence[Mapping[str, Any]], off: Sequence[Mapping[str, Any]], loads: Sequence[Mapping[str, int]],
    names: Iterable[str] = tuple(LIMITS),
) -> list[dict[str, Any]]:  # fmt: skip
    """Return for each load and figure how a setting switched on compares with it switched off.

    Args:
        on: the runs with it on, as `benchmark_client.measure` returns them; of each round those of all loads.
        off: the same with it off.
        loads: what they were asked to do.
        names: the figures.
    """
    rows = []
    for place, load in enumerate(loads):
        for name in names:
            one, other = (
                [run["figures"][name] for run in runs if run["load"] == place] for runs in (on, off)
            )  # fmt: skip
            row: dict[str, Any] = {"load": dict(load), "figure": name, "on": spread(one), "off": spread(other)}
            row["gain_percent"] = round(gain(name, row["on"]["median"], row["off"]["median"]), 2)
            if min(one) > 0 and min(other) > 0:
                low, high = (gain(name, bound, 1.0) for bound in interval(one, other))
                row["gain_interval_percent"] = sorted((round(low, 2), round(high, 2)))
            else:
                row["gain_interval_percent"] = [0.0, 0.0]
            row["chance"] = round(chance(one, other), 4)
            row["verdict"] = _verdict(row, min(len(one), len(other)))
            rows.append(row)
    return rows


def _verdict(row: Mapping[str, Any], rounds: int) -> str:
    if rounds < FEWEST_ROUNDS:
        return "too few rounds"
    if row["chance"] > SIGNIFICANT:
        return "no difference seen"
    return "better" if row["gain_percent"] > 0 else "worse"


def sampler_verdict(
    rows: Sequence[Mapping[str, Any]], rounds: int, used: Mapping[str, Iterable[str]], reached: bool = True
) -> list[str]:
    """Return what the comparison of the FlashInfer sampler on and off says, a sentence each.

    Args:
        rows: as `compare_arms` returns them.
        rounds: how often each was measured.
        used: C(on) and C(off): what the servers' logs said that they sampled with (C(flashinfer), C(pytorch), C("")).
        reached: whether the requests were sampled by top-k or top-p at all.
    """
    found = []
    if not reached:
        found.append("The requests were sampled without top-k and top-p, which is all that FlashInfer's sampler does: "
                     "on and off are the same here (benchmark_sampling).")  # fmt: skip
    on, off = (set(used.get(name, ())) for name in ("on", "off"))
    if "pytorch" in on:
        found.append("With the sampler on, vLLM did not use FlashInfer (its log says so): on and off are the same.")
    elif "flashinfer" not in on:
        found.append("Whether vLLM used FlashInfer with the sampler on is not known: its log doesn't say.")
    if "flashinfer" in off:
        found.append("With the sampler off, vLLM used FlashInfer all the same (its log says so).")
    figures = [row for row in rows if row["figure"] == "output_tokens_per_second"]
    if rounds < FEWEST_ROUNDS:
        plural = "s are" if rounds != 1 else " is"
        found.append(f"{rounds} round{plural} too few for a verdict: with {FEWEST_ROUNDS} or more "
                     "(benchmark_sampler_rounds) a difference can be told from chance.")  # fmt: skip
    for row in figures:
        low, high = row["gain_interval_percent"]
        if row["verdict"] in ("better", "worse"):
            more = "more" if row["gain_percent"] > 0 else "fewer"
            what = f"{abs(row['gain_percent']):.1f} % {more} tokens per second"
            sure = f", which chance alone gives in {row['chance'] * 100:.2g} % of cases"
        else:
            what = f"{row['gain_percent']:+.1f} % tokens per second, which may be chance"
            sure = f" (p = {row['chance']:.2g})" if row["verdict"] != "too few rounds" else ""
        found.append(
            f"{load_name(row['load'])}: with the FlashInfer sampler {what}{sure}; {low:+.1f} to {high:+.1f} % in 95 % "
            "of resamples."
        )
    best = max((row["gain_percent"] for row in figures if row["verdict"] == "better"), default=0.0)
    if best >= EXPECTED_GAIN:
        found.append(f"The gain of {EXPECTED_GAIN:g} % that the plan expects on FP8 was seen (at most {best:.1f} %).")
    else:
        most = f" (at most {best:.1f} %)" if best else ""
        found.append(f"The gain of {EXPECTED_GAIN:g} % that the plan expects on FP8 was not seen{most}.")
    return found


# --- results --------------------------------------------------------------------------------------------------------


def parse_result(text: str, path: str) -> dict[str, Any]:
    """Return a kept result.

    Args:
        text: of the file.
        path: for messages.

    Raises:
        ResultError: it is none.
    """
    remedy = "Remove it, and the next run is accepted as the first; or put one of the results beside it in its place."
    try:
        content = json.loads(text)
    except ValueError:
        raise ResultError(f"The accepted result {path} is damaged: it is no JSON. {remedy}") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ResultError(f"{path} is no result of a benchmark. {remedy}")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ResultError(
            f"The accepted result {path} has version {content.get('schema_version')!r} of the form of results, and "
            f"this collection reads {SCHEMA_VERSION}. {remedy}"
        )
    try:
        for name in ("hardware", "model", "loads", "sampling", "date"):
            content[name]
        for row in content["summary"]:
            load_name(row["load"])
            for name in FIGURES:
                values = row["figures"][name]
                if not all(isinstance(values[key], (int, float)) for key in ("median", "least", "most")):
                    raise TypeError
        if len(content["summary"]) != len(content["loads"]) or not content["loads"]:
            raise LookupError
        for load in content["loads"]:
            _load_text(load)
    except (LookupError, TypeError, AttributeError):
        raise ResultError(f"The accepted result {path} is damaged: parts of it are missing. {remedy}") from None
    return content


def make_result(
    measured: Mapping[str, Any], server: Mapping[str, Any], where: Mapping[str, Any], date: str
) -> dict[str, Any]:
    """Return the result of a run.

    Args:
        measured: as `benchmark_client.measure` returns it.
        server: what was measured: C(hardware), C(model), C(gpus), C(driver), C(release), C(versions), C(stack),
            C(digest), C(engine_config) and what else is known.
        where: C(host), C(ctid) and C(node).
        date: of the run.
    """
    return {
        "kind": KIND, "schema_version": SCHEMA_VERSION, "date": date, **where, **server,
        "loads": list(measured["loads"]), "sampling": dict(measured["sampling"]), "seed": measured["seed"],
        "repeats": max((run["round"] for run in measured["runs"]), default=0),
        "summary": summarise(measured["runs"], measured["loads"]), "runs": list(measured["runs"]),
    }  # fmt: skip


def model_name(path: str) -> tuple[str, str]:
    """Return a model as people name it, and its revision (C("") when the path has none).

    Models that this collection fetched are folders of their revision: C(/models/org/.name/<commit>).
    """
    match = re.fullmatch(r"(.*)/\.([^/]+)/([0-9a-f]{7,64})/?", path)
    return (f"{match[1]}/{match[2]}", match[3]) if match else (path.rstrip("/"), "")


# What the client has of the server's environment: where its files are, and how it trusts others.
_SHARED = re.compile(
    r"HOME|PATH|LANG|LD_LIBRARY_PATH|CUDA_HOME|CUDA_VISIBLE_DEVICES|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|XDG_CACHE_HOME|"
    r"(?:HF|HUGGINGFACE|TRANSFORMERS|TORCHINDUCTOR|TRITON|FLASHINFER)_\w+|VLLM_CACHE_ROOT|VLLM_TARGET_DEVICE|"
    r"VLLM_USE_MODELSCOPE|\w+_proxy|\w+_PROXY"
)


def client_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a server's environment that its client needs, too, no secret among them.

    Args:
        environment: of the server's process.
    """
    secret = re.compile(r"TOKEN|KEY|SECRET|PASSW", re.I)
    return {name: value for name, value in environment.items() if _SHARED.fullmatch(name) and not secret.search(name)}


# What a server's speed depends on, besides its engine config: how its GPUs are counted and talk to each other is as
# much of it as what vLLM itself is told.
_TOLD = re.compile(r"(?:VLLM|NCCL|CUDA|TORCH|PYTORCH|TORCHINDUCTOR|TRITON|FLASHINFER|OMP)_\w+|LD_LIBRARY_PATH")


def told_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a server's unit that belong in its result, no secret among them.

    Args:
        environment: what the unit sets.
    """
    # A number of tokens is no secret.
    secret = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD)$", re.I)
    return {name: value for name, value in environment.items() if _TOLD.fullmatch(name) and not secret.search(name)}


def server_url(probe: Mapping[str, Any]) -> str:
    """Return the URL of a server, by how its state says that it is asked."""
    tls = probe.get("tls")
    host = (tls.get("name") if isinstance(tls, Mapping) else "") or probe["host"]
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http{'s' if tls else ''}://{host}:{probe['port']}"


GPU_QUERY = ("name", "uuid", "memory.total", "driver_version", "compute_cap", "power.limit")


def gpus_in(output: str) -> list[dict[str, str]]:
    """Return what C(nvidia-smi --query-gpu=… --format=csv,noheader,nounits) printed of each GPU."""
    names = ("name", "uuid", "memory_mib", "driver", "compute_capability", "power_limit_watts")
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines() if line.strip()]
    return [dict(zip(names, row)) for row in rows if len(row) == len(names)]


def processor_in(cpuinfo: str) -> str:
    """Return the processor's name in the text of C(/proc/cpuinfo)."""
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.M)
    return match[1].strip() if match else "unknown"


def sampler_in(journal: str) -> str:
    """Return what a server's log says that it samples with: C(flashinfer), C(pytorch), or C("") when it doesn't say."""
    if re.search(r"Using FlashInfer for top-p & top-k sampling", journal):
        return "flashinfer"
    if re.search(r"Falling back to (?:the )?PyTorch-native implementation of top-p & top-k|"
                 r"FlashInfer top-p/top-k sampling (?:disabled|unavailable)", journal):  # fmt: skip
        return "pytorch"
    return ""


def verdict(
    new: Mapping[str, Any], old: Mapping[str, Any] | None, limits: Mapping[str, float], accept: bool
) -> dict[str, Any]:
    """Return what a result means beside the accepted one.

    Args:
        new: the result.
        old: the accepted one, C(None) when there is none.
        limits: figure → percent that it may be worse.
        accept: whether a person accepts it whatever it is.

    Returns:
        C(accepted) (whether it is the accepted one from now on), C(passed), C(reason), C(losses), C(comparison).
    """
    if old is None:
        return _outcome(True, True, "It is the first result, so it is the accepted one from now on.")
    reasons = incomparable(new, old)
    since = f"the accepted run of {old['date']}"
    if reasons:
        how = "It is the accepted one from now on (benchmark_accept)." if accept else (
            "-e benchmark_accept=true makes it the accepted one.")  # fmt: skip
        return _outcome(accept, True, f"It is not compared with {since}: {'; '.join(reasons)}. {how}", comparable=False)
    rows = compare(new, old, limits)
    losses = [loss_sentence(row) for row in rows if row["lost"]]
    if losses and not accept:
        return _outcome(False, False, f"It is worse than {since}.", losses, rows)
    if losses:
        reason = f"It is worse than {since}, and accepted all the same (benchmark_accept)."
        return _outcome(True, True, reason, losses, rows)
    kept = "It is the accepted one from now on (benchmark_accept)." if accept else "That stays the accepted one."
    return _outcome(accept, True, f"Nothing was lost against {since}. {kept}", (), rows)


def _outcome(
    accepted: bool, passed: bool, reason: str, losses: Iterable[str] = (), rows: Iterable[Mapping[str, Any]] = (),
    comparable: bool = True,
) -> dict[str, Any]:  # fmt: skip
    return {"accepted": accepted, "passed": passed, "reason": reason, "losses": list(losses),
            "comparison": list(rows), "comparable": comparable}  # fmt: skip


# --- for people -----------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return a number with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def ranged(values: Mapping[str, float]) -> str:
    """Return a figure with its range."""
    if values["least"] == values["most"]:
        return number(values["median"])
    return f"{number(values['median'])} ({number(values['least'])} to {number(values['most'])})"


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines, the first column to the left, the others to the right; the first row is a head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def table(result: Mapping[str, Any]) -> str:
    """Return a result as a table: each load, the medians with their range."""
    rows = [["load", *(TITLES[name] for name in SHOWN)]]
    for row in result["summary"]:
        cells = [ranged(row["figures"][name]) for name in SHOWN]
        rows.append([load_name(row["load"]), *cells])
    return "\n".join(grid(rows))


def _titled(name: str) -> str:
    """Return a figure's name with its unit, unless the name says it."""
    unit = FIGURES[name][1]
    return NAMES[name] if unit.endswith("/s") else f"{NAMES[name]}, {unit}"


def comparison_table(rows: Sequence[Mapping[str, Any]], then: str = "accepted", now: str = "now") -> str:
    """Return a comparison as a table."""
    cells = [["load", "figure", then, now, "better by", "limit", ""]]
    for row in rows:
        mark = "LOST" if row["lost"] else ""
        cells.append([
            load_name(row["load"]), _titled(row["figure"]), number(row["then"]),
            number(row["now"]), f"{row['gain_percent']:+.1f} %", f"-{row['limit_percent']:g} %", mark,
        ])  # fmt: skip
    return "\n".join(grid(cells))


def arms_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the comparison of a setting on and off as a table."""
    cells = [["load", "figure", "on", "off", "on is better by", "95 % of resamples", "p", "verdict"]]
    for row in rows:
        low, high = row["gain_interval_percent"]
        cells.append([
            load_name(row["load"]), _titled(row["figure"]), ranged(row["on"]),
            ranged(row["off"]), f"{row['gain_percent']:+.1f} %", f"{low:+.1f} to {high:+.1f} %",
            f"{row['chance']:.3f}", row["verdict"],
        ])  # fmt: skip
    return "\n".join(grid(cells))


def report(result: Mapping[str, Any], outcome: Mapping[str, Any] | None = None) -> str:
    """Return all that a person should see of a run.

    Args:
        result: of the run, with C(sampler) where that was compared.
        outcome: as `verdict` returns it.
    """
    versions = ", ".join(f"{name} {value}" for name, value in result.get("versions", {}).items() if value)
    lines = [
        f"{result.get('host', '')}: {plain(result['model'])} on {plain(result['hardware'])}",
        f"release {result.get('release') or 'unknown'}" + (f" ({versions})" if versions else "")
        + (f", driver {result['driver']}" if result.get("driver") else ""),
        f"{result['repeats']} runs of each load; median (least to most)",
        "",
        table(result),
    ]  # fmt: skip
    sampler = result.get("sampler")
    if sampler:
        lines += ["", f"FlashInfer sampler on and off in turns, {sampler['rounds']} rounds:",
                  arms_table(sampler["comparison"]), *sampler["verdict"]]  # fmt: skip
    if outcome:
        if outcome["comparison"]:
            lines += ["", "Against the accepted run:", comparison_table(outcome["comparison"])]
        lines += ["", outcome["reason"], *outcome["losses"]]
    return "\n".join(lines)
