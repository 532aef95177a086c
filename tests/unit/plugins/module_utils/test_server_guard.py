# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import http.server
import json
import os
import socket
import stat
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_guard


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs that print something, found before all others."""

    def make(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return make


@pytest.mark.parametrize(
    ("readings", "looks"),
    [
        (["10 20", "10 20"], 2),
        # A monitor on the same card.
        (["10 20", "40 20"], 2),
        # Another server loads, then is done.
        (["10 20", "900 20", "9000 20", "9000 20"], 4),
        # A GPU appears.
        (["10", "10 20", "10 20"], 3),
    ],
)
def test_it_waits_until_the_memory_in_use_is_still(monkeypatch, capsys, readings, looks):
    seen = iter([[int(word) for word in reading.split()] for reading in readings])
    count = []
    monkeypatch.setattr(server_guard, "used", lambda: count.append(1) or next(seen))
    monkeypatch.setattr(server_guard.time, "sleep", lambda seconds: None)
    server_guard.settle()
    assert len(count) == looks
    assert ("waiting for it" in capsys.readouterr().out) == (looks > 2)


def test_it_waits_no_longer_than_its_limit(monkeypatch):
    clock, memory = iter(range(0, 10_000, 10)), iter(range(0, 10_000_000, 1000))
    monkeypatch.setattr(server_guard.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(server_guard.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(server_guard, "used", lambda: [next(memory)])
    server_guard.settle()
    assert next(clock) <= server_guard.LIMIT + 30


@pytest.mark.parametrize("script", ["exit 1", "echo No devices were found", "echo '[N/A]'"])
def test_where_nobody_can_tell_nothing_is_waited_for(programs, monkeypatch, script):
    programs("nvidia-smi", script)
    clock = SimpleNamespace(sleep=lambda seconds: pytest.fail("it waited"), monotonic=lambda: 0.0)
    monkeypatch.setattr(server_guard, "time", clock)
    assert server_guard.used() == []
    server_guard.settle()


def test_what_nvidia_smi_says_is_read(programs):
    programs("nvidia-smi", "printf '1024, 32607\\n32000, 32607\\n'")
    assert server_guard.used() == [1024, 32000]
    assert server_guard.gpus() == [(1024, 32607), (32000, 32607)]


@pytest.mark.parametrize(
    ("shares", "there", "waits"),
    [
        ([], [(0, 1000)], False),
        ([0.5], [(0, 1000)], True),
        ([0.5], [(440, 1000)], True),
        ([0.5], [(460, 1000)], False),
        ([0.0, 0.4], [(0, 1000), (900, 1000)], False),
        ([0.4, 0.4], [(900, 1000), (0, 1000)], True),
        # Nobody can tell.
        ([0.5], [], False),
    ],
)
def test_those_before_it_are_there_when_they_have_their_memory(shares, there, waits):
    assert bool(server_guard.missing(shares, there)) == waits


class Boot:
    """A container that has just started, beside a server that loads."""

    def __init__(self, monkeypatch, folder, shares, started=0.0):
        self.now, self.started = 1000.0, started
        (folder / "shares_before.json").write_text(json.dumps(shares))
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(server_guard, "time", clock)
        monkeypatch.setattr(server_guard, "__file__", str(folder / "guard.py"))
        monkeypatch.setattr(server_guard, "started_at", lambda: self.started)
        monkeypatch.setattr(server_guard, "gpus", lambda: [(min(500, int(self.now - 1000) * 10), 1000)])

    def sleep(self, seconds):
        self.now += seconds


def test_after_a_boot_the_servers_before_it_are_waited_for(monkeypatch, tmp_path, capsys):
    boot = Boot(monkeypatch, tmp_path, [0.5], started=990.0)
    server_guard.wait_for_those_before()
    assert boot.now == 1045.0
    assert "waits for the model servers that start before it: GPU 0 has 0 MiB in use, and they take 500" in (
        capsys.readouterr().out
    )


def test_one_that_never_comes_is_not_waited_for_for_ever(monkeypatch, tmp_path):
    boot = Boot(monkeypatch, tmp_path, [0.9], started=990.0)
    server_guard.wait_for_those_before()
    assert boot.now == 1000.0 + server_guard.LIMIT_BEFORE


@pytest.mark.parametrize(("shares", "started"), [([0.5], 10.0), ([], 990.0), ({"a": 1}, 990.0), (["x"], 990.0)])
def test_later_or_without_others_nobody_is_waited_for(monkeypatch, tmp_path, shares, started):
    boot = Boot(monkeypatch, tmp_path, shares, started)
    server_guard.wait_for_those_before()
    assert boot.now == 1000.0


def test_when_the_container_started_is_asked_of_systemd(programs):
    programs("systemctl", "echo 12500000")
    assert server_guard.started_at() == 12.5
    programs("systemctl", "exit 1")
    assert server_guard.started_at() == 0.0


def test_why_it_ended_is_kept_and_does_not_grow(programs, tmp_path, monkeypatch):
    programs("journalctl", "echo 'last words'")
    path = tmp_path / "state" / "ends.jsonl"
    monkeypatch.setenv("SERVICE_RESULT", "success")
    server_guard.ended(str(path))
    assert not path.exists(), "it was stopped on purpose"
    monkeypatch.setenv("SERVICE_RESULT", "exit-code")
    monkeypatch.setenv("PHOENIX_DIGEST", "abc")
    for number in range(server_guard.KEPT + 5):
        monkeypatch.setenv("EXIT_STATUS", str(number))
        server_guard.ended(str(path))
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["status"] for entry in entries] == [str(number) for number in range(5, server_guard.KEPT + 5)]
    assert entries[-1]["lines"] == ["last words"] and entries[-1]["digest"] == "abc"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["ends.jsonl"]


UP = {"ActiveState": "active", "SubState": "running", "Job": "", "MainPID": "9", "InvocationID": "i",
      "ExecMainStartTimestampMonotonic": "1000000000", "StartLimitBurst": "4"}  # fmt: skip
LIMIT, READY, STARTED = 120, 1800, 1000.0
ANSWERS = {**server_guard.remembered({}, "i"), "answered": True}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"Job": "0"}, True),
        ({"Job": "77"}, False),
        ({"ActiveState": "inactive", "SubState": "dead", "MainPID": "0"}, False),
        ({"ActiveState": "failed", "SubState": "failed", "MainPID": "0"}, False),
        ({"ActiveState": "activating", "SubState": "start-pre"}, False),
        ({"ActiveState": "activating", "SubState": "auto-restart", "MainPID": "0"}, False),
        ({"ActiveState": "deactivating", "SubState": "stop-sigterm"}, False),
    ],
)
def test_only_a_server_that_should_answer_is_watched(change, expected):
    assert server_guard.watched({**UP, **change}) is expected
    assert server_guard.watched({}) is False


def test_another_run_of_the_server_is_remembered_nothing_of():
    memory = {**ANSWERS, "since": 1.0, "killed": {"at": 1.0, "why": "w"}}
    assert server_guard.remembered(memory, "i") == memory
    assert server_guard.remembered({"run": "i", "answered": True}, "i") == ANSWERS
    for old in ({}, memory):
        new = server_guard.remembered(old, "j")
        assert (new["run"], new["answered"], new["since"], new["killed"]) == ("j", False, None, None)
    # systemd doesn't know the unit.
    assert server_guard.remembered({**memory, "run": ""}, "")["killed"] is None


def looks(memory, *seen, asked=5000.0, limit=LIMIT, ready=READY):
    """What is remembered after looks (seconds after the request, kind, counters) at a server."""
    for seconds, kind, counters in seen:
        saw = server_guard.Seen(kind, f"words {kind}", counters)
        memory = server_guard.judge(memory, saw, asked, STARTED, asked + seconds, limit, ready)
    return memory


@pytest.mark.parametrize("kind", ["answer", "refusal"])
def test_an_answer_ends_the_count(kind):
    after = looks(ANSWERS, (5, "silence", 7.0), (10, "silence", 7.0), (12, kind, None))
    assert (after["answered"], after["since"], after["counters"], after["killed"]) == (True, None, None, None)
    assert after["said"] == ("words refusal" if kind == "refusal" else "")
    assert looks(server_guard.remembered({}, "i"), (1, kind, None))["answered"]


def every_five(until, counters):
    """Looks at a silent server every five seconds, and what its counters are then."""
    return [(seconds, "silence", counters(seconds)) for seconds in range(5, until + 1, 5)]


def test_one_that_does_not_answer_is_killed_at_the_limit():
    assert looks(ANSWERS, *every_five(LIMIT - 5, lambda at: 7.0))["killed"] is None
    after = looks(ANSWERS, *every_five(LIMIT, lambda at: 7.0))
    assert after["killed"]["why"] == "it has not answered for 120 s (the limit is 120 s): words silence"


@pytest.mark.parametrize("counters", [None, 7.0])
def test_the_count_goes_on_with_the_next_request(counters):
    """Such as one that is refused at once, by a closed port."""
    memory = ANSWERS
    for asked in range(5000, 5000 + LIMIT, 5):
        memory = looks(memory, (0.1, "silence", counters), asked=float(asked))
        assert memory["killed"] is None and memory["since"] == 5000.0
    assert looks(memory, (0.1, "silence", counters), asked=5000.0 + LIMIT)["killed"]


def test_a_busy_one_is_alive_as_long_as_its_counters_move():
    after = looks(ANSWERS, *every_five(20 * LIMIT, float))
    assert after["killed"] is None and after["since"] == 5000.0 + 20 * LIMIT
    # Then it hangs: the limit counts from there.
    stop = 300
    still = every_five(stop + LIMIT - 5, lambda at: float(min(at, stop)))
    assert looks(ANSWERS, *still)["killed"] is None
    assert looks(ANSWERS, *still, (stop + LIMIT, "silence", float(stop)))["killed"]
    # A look at which it doesn't even tell its counters is none.
    assert looks(ANSWERS, *every_five(LIMIT, lambda at: None if at % 10 else float(at)))["killed"] is None
    assert looks(ANSWERS, *every_five(LIMIT, lambda at: None if at % 10 else 7.0))["killed"]


def test_counters_of_an_earlier_silence_are_no_sign_of_life():
    memory = looks(ANSWERS, (5, "silence", 7.0), (6, "answer", None))
    assert looks(memory, *every_five(LIMIT, lambda at: 900.0), asked=9000.0)["killed"]


def test_one_that_loads_has_its_time():
    new = server_guard.remembered({}, "i")
    for seconds in (5, LIMIT, READY - 5):
        assert looks(new, (0.1, "silence", None), asked=STARTED + seconds)["killed"] is None
    memory = looks(new, (0.1, "silence", None), asked=STARTED + READY - LIMIT - 5)
    memory = {**memory, "at": STARTED + READY - 5}
    after = looks(memory, (0.1, "silence", None), asked=STARTED + READY)
    assert after["killed"]["why"].startswith("it has not answered once in the 1800 s since it was started (1800 s are")
    # Once it has counted tokens it is up.
    up = looks(new, (5, "silence", 0.0), (10, "silence", 3.0), asked=STARTED + 60)
    assert up["answered"] and up["since"] == STARTED + 70


def test_a_watchdog_that_knows_nothing_yet_is_patient():
    """It was just installed beside a server that is up for long, and busy."""
    new = server_guard.remembered({}, "i")
    assert looks(new, *every_five(LIMIT - 5, lambda at: None), asked=90000.0)["killed"] is None
    assert looks(new, *every_five(LIMIT, lambda at: None), asked=90000.0)["killed"]


@pytest.mark.parametrize("before", [[], every_five(100, lambda at: 7.0)])
def test_a_container_that_was_frozen_has_its_count_begin_anew(before):
    """A backup, or a node that slept: the server could not answer either."""
    later = (before[-1][0] if before else 0) + 3600
    memory = looks(ANSWERS, *before, (later, "silence", 7.0))
    assert memory["killed"] is None and memory["since"] == 5000.0 + later
    rest = [(later + seconds, "silence", 7.0) for seconds in range(5, LIMIT + 1, 5)]
    assert looks(memory, *rest[:-1])["killed"] is None
    assert looks(memory, *rest)["killed"]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's C(replies) say, and keeps what it was asked."""

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, body and json.loads(body), self.headers.get("Authorization")))
        status, content = self.server.replies[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """A server, and how it is asked."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.replies = [], {}
    server.probe = {"host": "127.0.0.1", "port": server.server_port, "tls": False, "path": "/v1/completions",
                    "body": {"model": "m", "prompt": "Hello", "max_tokens": 4}, "key": "k3y"}  # fmt: skip
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "content", "kind", "words"),
    [
        (200, b'{"choices": [{"text": "a"}]}', "answer", ""),
        (200, b'{"data": [{"embedding": [1]}]}', "answer", ""),
        (200, b'{"error": "dead"}', "silence", "no token"),
        (200, b"[]", "silence", "no token"),
        (200, b'{"choices": []}', "silence", "none of vLLM's"),
        (200, b"1", "silence", "none of vLLM's"),
        (200, b"<html>", "silence", "none of vLLM's"),
        (401, b"k3y", "refusal", "but refuses /v1/completions: HTTP 401"),
        (404, b"", "refusal", "HTTP 404"),
        (429, b"", "silence", "HTTP 429"),
        (500, b"", "silence", "HTTP 500"),
    ],
)
def test_what_an_answer_means(server, status, content, kind, words):
    server.replies["/v1/completions"] = (status, content)
    seen = server_guard.ask(server.probe, 20)
    assert seen.kind == kind and words in seen.words and "k3y" not in seen.words
    assert server.asked == [("/v1/completions", {"model": "m", "prompt": "Hello", "max_tokens": 1}, "Bearer k3y")]


@pytest.mark.parametrize(
    ("status", "content", "text"),
    [
        (200, b'{"choices": [{"text": "a b"}]}', "a b"),
        (200, b'{"data": [{"embedding": [1]}]}', "(an embedding)"),
        (404, b"no such model" + b"!" * 1000, "no such model" + "!" * 287),
        (500, b"a", ""),
    ],
)
def test_the_answer_itself(server, status, content, text):
    server.replies["/v1/completions"] = (status, content)
    assert server_guard.ask(server.probe, 20, short=False).text == text
    assert server.asked[0][1] == server.probe["body"]


def test_no_answer_at_all(server):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        silent = {**server.probe, "port": listener.getsockname()[1]}
        assert "ConnectionRefusedError" in server_guard.ask(silent, 20).words
        listener.listen()
        assert server_guard.ask(silent, 0.2) == ("silence", f"no answer on port {silent['port']}", None, "", "")
        assert server_guard.counted(silent, 0.2) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "# HELP vllm:prompt_tokens_total Number of prefill tokens.\n# TYPE vllm:prompt_tokens_total counter\n"
            'vllm:prompt_tokens_total{engine="0",model_name="a } b"} 12.0\n'
            'vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09\n'
            'vllm:generation_tokens_total{engine="0",model_name="m"} 3.0\n'
            'vllm:generation_tokens_total{engine="1",model_name="m"} 1e+03\n'
            'vllm:request_prompt_tokens_bucket{le="1.0"} 9.0\n',
            1015.0,
        ),
        ("vllm:prompt_tokens 5\nvllm:generation_tokens 6\n", 11.0),
        ("vllm:num_requests_running 5\n", None),
        ("vllm:prompt_tokens_total many\n", None),
        ("", None),
    ],
)
def test_counters_are_read(server, text, expected):
    server.replies["/metrics"] = (200, text.encode())
    assert server_guard.counted(server.probe, 20) == expected
    server.replies["/metrics"] = (404, text.encode())
    assert server_guard.counted(server.probe, 20) is None


@pytest.fixture
def watched(server, tmp_path, monkeypatch, programs):
    """A unit whose process is this one's child, with a state; what was told; and a systemctl that notes its words."""
    monkeypatch.setattr(server_guard, "MEMORY", str(tmp_path / "memory.json"))
    told = []
    monkeypatch.setattr(server_guard, "tell", lambda unit, run, text: told.append(text))
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "abc.json").write_text(json.dumps({"probe": server.probe}))
    child = subprocess.Popen(["sleep", "1000"], env={"PATH": os.environ["PATH"], "PHOENIX_DIGEST": "abc"})

    def unit(**change) -> None:
        shown = {**UP, "MainPID": child.pid, "ExecMainStartTimestampMonotonic": 1, **change}
        text = "\n".join(f"{name}={value}" for name, value in shown.items())
        programs("systemctl", f"echo \"$@\" >>{tmp_path}/calls\n[ $1 = kill ] || cat <<'X'\n{text}\nX")

    unit()
    yield SimpleNamespace(
        unit=unit, told=told, look=lambda: server_guard.watch("x.service", str(tmp_path), 1, 1),
        killed=lambda: "kill --signal=KILL x.service" in (tmp_path / "calls").read_text().splitlines(),
        memory=lambda: json.loads((tmp_path / "memory.json").read_text()),
    )  # fmt: skip
    child.kill()
    child.wait()


def test_a_look_at_one_that_answers(watched, server):
    server.replies["/v1/completions"] = (200, b'{"choices": [{"text": "a"}]}')
    watched.look()
    assert watched.memory()["answered"] and not watched.killed() and watched.told == []


def test_a_look_at_one_that_does_not(watched, server):
    server.replies.update({"/v1/completions": (500, b""), "/metrics": (404, b"")})
    watched.look()
    assert not watched.killed()
    time.sleep(1)
    watched.look()
    assert watched.killed() and "x.service" not in watched.told[0]
    assert "HTTP 500. systemd starts it again, unless it was started 4 times lately" in watched.told[0]
    # The next one finds what became of it.
    watched.unit(ActiveState="failed", SubState="failed", MainPID="0")
    watched.look()
    watched.look()
    assert len(watched.told) == 2
    assert "is left stopped after its last restart (vllm_model_server_restarts: 3): it has" in watched.told[1]


def test_one_that_is_killed_but_does_not_end_is_told_of(watched, server, monkeypatch):
    server.replies.update({"/v1/completions": (500, b""), "/metrics": (404, b"")})
    watched.look()
    time.sleep(1)
    watched.look()
    watched.look()
    assert len(watched.told) == 1
    monkeypatch.setattr(server_guard, "GONE", 0.0)
    watched.look()
    watched.look()
    assert len(watched.told) == 2 and "hangs in the kernel" in watched.told[1]


def test_what_somebody_does_with_the_unit_meanwhile_is_not_disturbed(watched, server, monkeypatch):
    server.replies.update({"/v1/completions": (500, b""), "/metrics": (404, b"")})
    watched.look()
    time.sleep(1)
    judge = server_guard.judge

    def slow(*arguments):
        watched.unit(Job="12")
        return judge(*arguments)

    monkeypatch.setattr(server_guard, "judge", slow)
    watched.look()
    assert not watched.killed() and watched.told == []


def test_without_a_state_nobody_knows_how_to_ask(watched, tmp_path, server):
    (tmp_path / "states" / "abc.json").unlink()
    watched.look()
    watched.look()
    assert len(watched.told) == 1 and "does not know how to ask" in watched.told[0]
    assert server.asked == [] and not watched.killed()


@pytest.mark.parametrize("change", [{"ActiveState": "inactive"}, {"Job": "7"}, {"SubState": "stop-sigterm"}])
def test_one_that_should_not_answer_is_not_asked(watched, server, change):
    watched.unit(**change)
    watched.look()
    assert server.asked == [] and not watched.killed()


def test_that_the_watchdog_killed_it_is_kept(programs, tmp_path, monkeypatch):
    programs("journalctl", "true")
    monkeypatch.setattr(server_guard, "MEMORY", str(tmp_path / "memory.json"))
    for name, value in {"SERVICE_RESULT": "signal", "INVOCATION_ID": "i", "PHOENIX_DIGEST": "abc"}.items():
        monkeypatch.setenv(name, value)
    server_guard.save({**ANSWERS, "killed": {"at": 1.0, "why": "no word"}})
    assert stat.S_IMODE((tmp_path / "memory.json").stat().st_mode) == 0o600
    server_guard.ended(str(tmp_path / "ends.jsonl"))
    monkeypatch.setenv("INVOCATION_ID", "j")
    server_guard.ended(str(tmp_path / "ends.jsonl"))
    entries = [json.loads(line) for line in (tmp_path / "ends.jsonl").read_text().splitlines()]
    assert [entry.get("watchdog") for entry in entries] == ["no word", None]
