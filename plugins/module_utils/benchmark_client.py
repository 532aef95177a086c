# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs without a module, whose run_command it can't have.
# pylint: disable=ansible-bad-function
"""Runs vLLM's own benchmark client (C(vllm bench serve)) at loads, and gathers what it measured.

    benchmark_client.py JOB STATUS

JOB is a JSON file of what `measure` takes; whoever starts the program removes it, for it may have a key in it. STATUS
is a JSON file that says how far it is, and in the end what came of it.

The file needs the standard library only. It is written into the container as it is, and run there by the container's
own Python; the client is run by the release's. It can be imported, too: `measure(job, say)` returns the measurements.

The requests of a run are random tokens. No two runs have the same ones, since what a server has seen before it answers
from its prefix cache. They are sampled (C(sampling)), because greedy requests never reach the sampler.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

# The figures of a run: name → (the client's own name, unit, whether more is better).
FIGURES = {
    "output_tokens_per_second": ("output_throughput", "tokens/s", True),
    "total_tokens_per_second": ("total_token_throughput", "tokens/s", True),
    "requests_per_second": ("request_throughput", "requests/s", True),
    "first_token_ms": ("median_ttft_ms", "ms", False),
    "first_token_mean_ms": ("mean_ttft_ms", "ms", False),
    "first_token_p99_ms": ("p99_ttft_ms", "ms", False),
    # Of each request the mean, and of these the median. The median of all single pauses says nothing where two tokens
    # come in one packet: half of them are 0 then.
    "inter_token_ms": ("median_tpot_ms", "ms", False),
    "inter_token_mean_ms": ("mean_itl_ms", "ms", False),
    "inter_token_p99_ms": ("p99_itl_ms", "ms", False),
    "request_ms": ("median_e2el_ms", "ms", False),
    "request_p99_ms": ("p99_e2el_ms", "ms", False),
}
# What a load says, and what it may.
LOAD_KEYS = ("streams", "input_tokens", "output_tokens", "prompts")
# So many requests for each stream, and no fewer in all: with fewer the beginning and the end of a run, where not all
# streams are busy, are what is measured.
PER_STREAM, AT_LEAST = 4, 8
SAMPLING = {"temperature": float, "top_p": float, "top_k": int, "min_p": float}
RUN_TIMEOUT = 3600
# Lines of a client that failed, and characters of one.
LINES, WIDTH = 15, 300
# Seconds between two looks at a client.
LOOK = 0.5
# Seconds between two looks at what is around it.
LOOK_AROUND = 5.0
# Bytes of a log that is begun anew.
LOG = 10_000_000
# A client that is told to end saves nothing; what it doesn't do in so many seconds it will not do.
GRACE = 10
# With nobody asking for so many seconds nobody wants the result.
UNASKED = 120


class BenchmarkError(Exception):
    """Why there is no measurement. The text is for the user."""


# --- loads ----------------------------------------------------------------------------------------------------------


def checked_loads(loads):
    """Return the loads with all of their keys.

    Args:
        loads: a list of dictionaries with C(streams), C(input_tokens), C(output_tokens) and perhaps C(prompts).

    Raises:
        BenchmarkError: one of them is none.
    """
    if not isinstance(loads, (list, tuple)) or not loads:
        raise BenchmarkError("benchmark_loads has no load: give at least one, as {streams: 1, input_tokens: 256, "
                             "output_tokens: 256}.")  # fmt: skip
    found = [checked_load(load, number) for number, load in enumerate(loads, 1)]
    for number, load in enumerate(found, 1):
        if load in found[: number - 1]:
            raise BenchmarkError(f"benchmark_loads: load {number} is there twice ({load_name(load)}); remove one.")
    return found


def checked_load(load, number):
    """Return one load with all of its keys."""
    where = f"benchmark_loads: load {number}"
    if not isinstance(load, dict):
        raise BenchmarkError(f"{where} is {load!r}, and should be {{streams: …, input_tokens: …, output_tokens: …}}.")
    for name in load:
        if name not in LOAD_KEYS:
            raise BenchmarkError(f"{where} has {name}, which no load has: there are {', '.join(LOAD_KEYS)}.")
    found = {}
    for name in LOAD_KEYS:
        value = load.get(name)
        if value is None and name == "prompts":
            value = max(PER_STREAM * found["streams"], AT_LEAST)
        if value is None:
            raise BenchmarkError(f"{where} has no {name}.")
        found[name] = whole_number(value, f"{where}: {name}")
    if found["prompts"] < found["streams"]:
        raise BenchmarkError(
            f"{where} has {found['prompts']} prompts for {found['streams']} streams: some would have nothing to do. "
            f"Give at least {found['streams']}, better {PER_STREAM * found['streams']}."
        )
    if found["output_tokens"] == 1:
        raise BenchmarkError(f"{where}: output_tokens is 1, and between two tokens there are two: give at least 2.")
    return found


def whole_number(value, what):
    """Return a whole number above 0, of a number or its text (as a variable given with -e is)."""
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise BenchmarkError(f"{what} is {value!r}, and should be a whole number from 1 on.")
    return number


def load_name(load):
    """Return a load in a few words."""
    plural = "" if load["streams"] == 1 else "s"
    return f"{load['streams']} stream{plural}, {load['input_tokens']} in, {load['output_tokens']} out"


def checked_sampling(sampling):
    """Return the settings of sampling as numbers.

    Raises:
        BenchmarkError: one isn't known, or no number.
    """
    found = {}
    for name, value in (sampling or {}).items():
        if name not in SAMPLING:
            raise BenchmarkError(f"benchmark_sampling has {name}: there are {', '.join(SAMPLING)}.")
        try:
            found[name] = SAMPLING[name](str(value))
        except ValueError:
            raise BenchmarkError(f"benchmark_sampling: {name} is {value!r}, which is no number.") from None
    return found


def reaches_sampler(sampling):
    """Return whether requests with these settings are sampled by top-k or top-p, which is what FlashInfer does."""
    greedy = sampling.get("temperature", 1.0) == 0
    return not greedy and (sampling.get("top_p", 1.0) < 1 or sampling.get("top_k", 0) > 0)


# --- the client -----------------------------------------------------------------------------------------------------


def arguments(job, load, prompts, seed, path):
    """Return the client's command line. All of these are known from vLLM 0.10.2 to 0.32 at least.

    Args:
        job: as `measure` takes it.
        load: what it is to do.
        prompts: how many requests.
        seed: of the random tokens.
        path: of the file that it writes its result into.
    """
    words = [
        *job["program"], "bench", "serve",
        "--base-url", job["url"].rstrip("/"),
        # The name in requests. The tokenizer would be looked for under it, so that is named, too.
        "--model", job["model"],
        "--tokenizer", job["tokenizer"],
        "--dataset-name", "random",
        "--random-input-len", str(load["input_tokens"]),
        "--random-output-len", str(load["output_tokens"]),
        "--num-prompts", str(prompts),
        "--max-concurrency", str(load["streams"]),
        # Else an answer ends where the model wants it to, and no two runs make the same number of tokens.
        "--ignore-eos",
        "--seed", str(seed),
        "--percentile-metrics", "ttft,tpot,itl,e2el",
        "--metric-percentiles", "50,90,99",
        # It is known to answer. What it refuses is asked again until this is over.
        "--ready-check-timeout-sec", "5",
        "--save-result", "--save-detailed",
        "--result-dir", os.path.dirname(path),
        "--result-filename", os.path.basename(path),
    ]  # fmt: skip
    if job.get("tokenizer_mode"):
        words += ["--tokenizer-mode", job["tokenizer_mode"]]
    if job.get("trust_remote_code"):
        words.append("--trust-remote-code")
    for name, value in sorted(job.get("sampling", {}).items()):
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def client_environment(job, base):
    """Return the environment of the client.

    Args:
        job: as `measure` takes it.
        base: what it is made from.
    """
    found = {**base, "VLLM_NO_USAGE_STATS": "1", **job.get("environment", {})}
    # What the client takes the key from. It is in no command line, and in no file that stays.
    found.pop("OPENAI_API_KEY", None)
    if job.get("api_key"):
        found["OPENAI_API_KEY"] = job["api_key"]
    if job.get("ca_file"):
        found["SSL_CERT_FILE"] = job["ca_file"]
    # The client asks the proxy that the environment names; the server is near.
    host = urlsplit(job["url"]).hostname or ""
    for name in ("no_proxy", "NO_PROXY"):
        found[name] = ",".join(part for part in (found.get(name, ""), host) if part)
    return found


def figures(text, prompts, load=None):
    """Return the figures of what the client has written.

    Args:
        text: of its result.
        prompts: how many requests there were.
        load: the load, to see whether it did what it was asked to.

    Raises:
        BenchmarkError: it is no result, or not all requests were answered.
    """
    try:
        content = json.loads(text)
    except ValueError:
        raise BenchmarkError("The client's result is damaged: it is no JSON.") from None
    if not isinstance(content, dict):
        raise BenchmarkError("The client's result is none: it is no JSON object.")
    completed = content.get("completed")
    if completed != prompts:
        errors = [str(error).strip() for error in content.get("errors") or [] if error]
        why = f" The first error: {last_line(errors[0])}" if errors else ""
        raise BenchmarkError(f"{completed or 0} of {prompts} requests were answered.{why}")
    found = {}
    for name, (key, _unit, _more) in FIGURES.items():
        value = content.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise BenchmarkError(f"The client's result has no {key}, or no number there ({value!r}).")
        found[name] = float(value)
    made = content.get("total_output_tokens")
    if found["output_tokens_per_second"] == 0 or not made:
        raise BenchmarkError("The server made no token: its model answers with nothing.")
    found["seconds"] = float(content.get("duration") or 0)
    found["input_tokens"] = int(content.get("total_input_tokens") or 0)
    found["output_tokens"] = int(made)
    if load and made < 0.9 * prompts * load["output_tokens"]:
        raise BenchmarkError(
            f"The server made {made} tokens where {prompts * load['output_tokens']} were asked for: its answers end "
            "early, and runs of such answers can't be compared. Is max_model_len too short for this load?"
        )
    return found


def last_line(text):
    """Return the last line of an error that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:WIDTH] if lines else ""


def progress(text):
    """Return (done, all) of the client's last progress bar, C(None) when it shows none.

    Args:
        text: the end of what it has said.
    """
    found = re.findall(r"\|\s*(\d+)/(\d+) \[", text)
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def said(text, secret=""):
    """Return the last lines of what a client said: no progress bars, no traceback, no secret, no endless lines."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    lines = [line for line in lines if line.strip() and not re.search(r"\d+/\d+ \[|\|.*\| \d+:\d+ elapsed", line)]
    # What is indented are a traceback's lines of code; its last line, the error itself, is not.
    lines = [line for line in lines if not line.startswith(_NOISE) and "Traceback (most recent call last)" not in line]
    return [(line.replace(secret, "…") if secret else line)[:WIDTH] for line in lines[-LINES:]]


_NOISE = (" ", "\t", "Namespace(", "The above exception was", "During handling of the above")

# What a client says when it can't work → what to do about it.
_KNOWN = (
    (r"invalid choice: '?bench'?|No such command '?bench'?|invalid choice: '?serve'?",
     "This release's vLLM has no benchmark client: it needs vLLM 0.9.2 or newer."),
    (r"ModuleNotFoundError: No module named '?([\w.]+)'?|Please install vllm\[bench\]|PlaceholderModule",
     "A package that the client needs is not in the release. Add it to the stack's requirements (vllm[bench] names "
     "them all), or benchmark with another release."),
    (r"unrecognized arguments: (.*)", "This release's client knows other arguments than those that are used here."),
    (r"CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError|ClientConnectorCertificateError",
     "The client doesn't trust the server's certificate, or it has another name: benchmark_ca_file names the CA's "
     "file inside, benchmark_url a name that is in the certificate."),
    (r"Name or service not known|Temporary failure in name resolution|getaddrinfo failed",
     "The container doesn't know the server's name: benchmark_url gives an address, or a name that it knows."),
    (r"Unauthorized|\b401\b", "The server wants another API key than the one of its own unit (benchmark_api_key)."),
    (r"Can't load tokenizer|is not a local folder and is not a valid model|OSError: .*tokenizer|Repository Not Found|"
     r"Repo id must be|does not appear to have a file named|Unrecognized model in",
     "The client can't load the model's tokenizer: benchmark_tokenizer names one, a folder inside or a name of the "
     "hub."),
    (r"maximum context length|max_model_len|longer than the maximum model length",
     "The load is longer than the server's max_model_len: make input_tokens and output_tokens of the load smaller."),
    (r"The model .* does not exist|NotFoundError|Not Found",
     "The server doesn't know this model name, or this path: benchmark_model and benchmark_url say them."),
    (r"Error: Bad Request",
     "The server refuses the requests: they are longer than its max_model_len (benchmark_loads), or it doesn't take "
     "how they are sampled (benchmark_sampling). Its own log says which."),
    (r"Cannot connect to host|Connect call failed",
     "The server can't be reached where the client looks for it: benchmark_url says where, with http or https."),
    (r"No space left on device", "The container's disk is full."),
)  # fmt: skip


def explain(code, text, secret=""):
    """Return why a client failed, and what to do, with its last words.

    Args:
        code: its exit status, negative for a signal.
        text: what it has said.
        secret: what is not to be told.
    """
    how = f"was ended by signal {-code}" if code < 0 else f"failed (exit status {code})"
    if code == -signal.SIGKILL:
        how += ", perhaps because the container's memory is full"
    remedy = next((remedy for pattern, remedy in _KNOWN if re.search(pattern, text)), "")
    lines = said(text, secret)
    last = ("Its last lines:\n" + "\n".join(lines)) if lines else "It said nothing."
    return f"vLLM's benchmark client {how}. {remedy + ' ' if remedy else ''}{last}"


def plan(job):
    """Return what is run, in order: the warm-ups, then each load in each round.

    The rounds are the outer loop, so that what changes slowly meets all loads alike.
    """
    loads, seed = job["loads"], job["seed"]
    runs = [{"load": number, "round": 0, "prompts": min(load["prompts"], max(load["streams"], 2))}
            for number, load in enumerate(loads) if job.get("warm_up", True)]  # fmt: skip
    for turn in range(1, job["repeats"] + 1):
        runs += [{"load": number, "round": turn, "prompts": load["prompts"]} for number, load in enumerate(loads)]
    # Another seed for each: with the same one, what was asked before would be in the prefix cache.
    return [{**run, "seed": seed + place} for place, run in enumerate(runs)]


def doing(job, run, seen=None):
    """Return in a few words what is being measured."""
    text = load_name(job["loads"][run["load"]])
    turn = f"run {run['round']} of {job['repeats']}" if run["round"] else "warm-up"
    return f"{text}: {turn}" + (f", {seen[0]} of {seen[1]} requests" if seen else "")


# --- the work -------------------------------------------------------------------------------------------------------


def checked(job):
    """Return a job with all of its keys, checked.

    Raises:
        BenchmarkError: something in it is wrong.
    """
    for name in ("program", "url", "model", "tokenizer", "folder"):
        if not job.get(name):
            raise BenchmarkError(f"The benchmark has no {name}.")
    if not re.match(r"https?://[^/]", job["url"]):
        raise BenchmarkError(f"benchmark_url is {job['url']!r}, and should begin with http:// or https://.")
    return {
        "repeats": 1, "warm_up": True, "seed": 0, "timeout": RUN_TIMEOUT, **job,
        "loads": checked_loads(job.get("loads")), "sampling": checked_sampling(job.get("sampling")),
    }  # fmt: skip


def measure(job, say=lambda text: None, still=lambda: ""):
    """Measure a server that answers. Return C(runs): what each run measured, in order.

    Args:
        job: what to measure. C(program) (the words that start vLLM's command line), C(url), C(model) (the name in
            requests), C(tokenizer), C(folder) (for the client's files), C(loads); perhaps C(repeats), C(warm_up),
            C(seed), C(sampling), C(tokenizer_mode), C(trust_remote_code), C(api_key), C(ca_file), C(environment) and
            C(timeout) (seconds for one run of the client).
        say: is told in a few words what is being done, again and again.
        still: returns why the measuring has to end, C("") to go on.

    Raises:
        BenchmarkError: there is no measurement, and why.
    """
    job = checked(job)
    os.makedirs(job["folder"], exist_ok=True)
    runs = []
    with open(os.path.join(job["folder"], "client.log"), "a", encoding="utf-8") as log:
        for run in plan(job):
            try:
                found = run_client(job, run, log, say, still)
            except BenchmarkError as error:
                raise BenchmarkError(f"{doing(job, run)}: {error}") from None
            if run["round"]:
                runs.append({**run, "figures": found})
                rate = found["output_tokens_per_second"]
                say(f"{doing(job, run)}: {rate:.1f} tokens/s, first token {found['first_token_ms']:.0f} ms, "
                    f"then {found['inter_token_ms']:.1f} ms")  # fmt: skip
    return {"runs": runs, "loads": job["loads"], "sampling": job["sampling"], "seed": job["seed"]}


def run_client(job, run, log, say, still):
    """Run the client once. Return its figures."""
    load = job["loads"][run["load"]]
    path = os.path.join(job["folder"], "client.json")
    for name in (path, f"{path[:-5]}.pytorch.json"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    words = arguments(job, load, run["prompts"], run["seed"], path)
    log.write(f"\n== {doing(job, run)}\n$ {' '.join(words)}\n")
    log.flush()
    began = os.path.getsize(log.name)
    say(doing(job, run))
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=job["folder"],
            env=client_environment(job, os.environ), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise BenchmarkError(
            f"vLLM's benchmark client can't be started: {error.strerror} ({words[0]}). Is the release installed?"
        ) from None
    try:
        watch(job, run, process, log.name, began, say, still)
    finally:
        end(process)
    text = tail(log.name, began)
    if process.returncode != 0:
        raise BenchmarkError(explain(process.returncode, text, job.get("api_key", "")))
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            result = file.read()
    except FileNotFoundError:
        raise BenchmarkError("vLLM's benchmark client ended well, but wrote no result. Its last lines:\n"
                             + "\n".join(said(text, job.get("api_key", "")))) from None  # fmt: skip
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return figures(result, run["prompts"], load)


def watch(job, run, process, path, began, say, still):
    """Wait for the client, and tell how far it is."""
    until, shown = time.monotonic() + job["timeout"], None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK)
            return
        why = still()
        if why:
            raise BenchmarkError(why)
        if time.monotonic() > until:
            raise BenchmarkError(
                f"vLLM's benchmark client was not done after {job['timeout']} s (benchmark_timeout). Its last lines:\n"
                + "\n".join(said(tail(path, began), job.get("api_key", "")))
            )
        seen = progress(tail(path, began, 4000))
        # The bar of the ready check counts seconds.
        if seen and seen != shown and seen[1] == run["prompts"]:
            say(doing(job, run, seen))
            shown = seen


def tail(path, began, count=200_000):
    """Return the end of a log, no more than was written since it had this size."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(began, size - count))
        return file.read().decode("utf-8", "replace")


def end(process):
    """End the client and all that it has started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


# --- as a program ---------------------------------------------------------------------------------------------------


def write_json(path, content):
    """Write a file in one step, so that nobody reads half of it."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(f"{path}.new", path)


def main_pid(unit):
    """Return the process of a unit's server, 0 when none runs."""
    command = ["systemctl", "show", "--value", "--property=MainPID", unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


class Watch:
    """Whether the measuring still makes sense: the same server runs, and somebody asks how far it is.

    The job says which (C(unit), C(pid)), and which file is touched by whoever asks (C(asked)).
    """

    def __init__(self, job, now=time.time):
        self.job, self.now, self.looked = job, now, -LOOK_AROUND

    def still(self):
        """Return why the measuring has to end, C("") to go on."""
        if time.monotonic() - self.looked < LOOK_AROUND:
            return ""
        self.looked = time.monotonic()
        unit, pid = self.job.get("unit", ""), self.job.get("pid", 0)
        there = main_pid(unit) if unit else pid
        if there != pid:
            what = "ended" if not there else "was restarted"
            return (f"The server {what} while it was measured; see journalctl -u {unit}. Where somebody else was at "
                    "work on it, run the benchmark again.")  # fmt: skip
        try:
            silence = self.now() - os.stat(self.job["asked"]).st_mtime
        except (OSError, LookupError):
            return ""
        if silence <= UNASKED:
            return ""
        return f"Nobody has asked for the result for {silence:.0f} s, so the run was ended."


def main(job_path, status_path):
    """Run as a program."""
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    log = os.path.join(job.get("folder", ""), "client.log")
    if os.path.exists(log) and os.path.getsize(log) > LOG:
        os.unlink(log)
    status = {"id": job.get("id", ""), "began": time.time(), "progress": "the benchmark begins", "done": False}
    lock = threading.Lock()

    def say(text):
        with lock:
            status["progress"] = text
            write_json(status_path, status)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    # systemd's way to end it: the client has to go, too.
    signal.signal(signal.SIGTERM, stop)
    try:
        result = {"measured": measure(job, say, Watch(job).still)}
    except BenchmarkError as error:
        result = {"error": str(error)}
    except OSError as error:
        result = {"error": f"The benchmark could not be run: {error.strerror} ({error.filename})."}
    write_json(status_path, {**status, **result, "done": True, "ended": time.time()})


def stop(*_signal):
    """End by way of all C(finally)."""
    raise SystemExit(143)


if __name__ == "__main__":
    main(*sys.argv[1:3])
