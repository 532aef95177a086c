# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What verify checks, and its report."""

from __future__ import annotations

import json

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import verification
from hypothesis import given
from hypothesis import strategies as st

URL = "http://10.92.0.121:8000"
GOOD = {"passed": True, "outcome": "exit code 0", "seconds": 0.25, "attempts": 1, "lines": []}
BAD = {"passed": False, "outcome": "exit code 7", "seconds": 0.5, "attempts": 1, "lines": ["a", "b"]}
UNREACHABLE = {"unreachable": True, "msg": "CTID 921 is not running;\nstart it."}


def found(path: str) -> tuple[str, str]:
    """The file of a script; none for those that begin with no/."""
    return ("", f"there is no {path}") if path.startswith("no/") else (f"/srv/tests/{path}", "")


def planned(chosen=(), **groups) -> list[dict]:
    return verification.planned_tests(groups, chosen, URL, found)


def only(check: dict) -> dict:
    """The test that was planned for this one, without what all have."""
    (test,) = planned(group=[{"name": "n", **check}])
    return {key: value for key, value in test.items() if key not in ("group", "name", "type", "path")}


# --- what is to be done -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ({"type": "script", "path": "vllm/x.sh"}, {"file": "/srv/tests/vllm/x.sh", "file_name": "x.sh"}),
        ({"path": "x.py"}, {"file": "/srv/tests/x.py", "file_name": "x.py"}),
        ({"path": "/opt/it's mine/x"}, {"command": "'/opt/it'\\''s mine/x'"}),
        ({"type": "command", "path": "test -e '/a b' && true"}, {"command": "test -e '/a b' && true"}),
        ({"type": "http", "path": "/v1/models"}, {"url": f"{URL}/v1/models", "own": True}),
        ({"type": "http", "path": "health?a=b"}, {"url": f"{URL}/health?a=b", "own": True}),
        ({"type": "http", "path": "https://x.example/y"}, {"url": "https://x.example/y", "own": False}),
        ({"type": "http", "path": "file:///etc/passwd"}, {"url": "file:///etc/passwd", "own": False}),
        ({"path": "no/x.sh"}, {"problem": "there is no no/x.sh"}),
        ({"type": "odd", "path": "x"}, {"problem": "there is no type of tests 'odd'; write script, command or http"}),
    ],
)
def test_what_is_run_for_a_test(check, expected):
    assert only(check) == expected


@pytest.mark.parametrize("kind", [None, "script", "command", "http"])
def test_a_test_without_a_path(kind):
    assert only({"type": kind})["problem"].startswith("it has no path; write a")


def test_names_and_kinds_that_are_silent():
    (named, nameless) = planned(health=[{"path": "a.sh"}, {}])
    assert (named["name"], named["type"], named["group"]) == ("a.sh", "script", "health")
    assert nameless["name"] == "a test without a name"


@pytest.mark.parametrize(
    ("chosen", "names"),
    [([], "abc"), ("", "abc"), (None, "abc"), ("one", "ab"), (["two"], "c"), ("two, one", "abc"), ("other", "")],
)
def test_groups_are_chosen_and_stay_in_their_order(chosen, names):
    tests = planned(chosen, one=[{"path": "a"}, {"path": "b"}], two=[{"path": "c"}])
    assert "".join(test["name"] for test in tests) == names


def test_nothing_declared():
    assert verification.planned_tests({}, "", URL, found) == verification.planned_tests(None, "", URL, found) == []


def test_groups_that_there_are_not():
    declared = [{"a": [], "b": []}, {}, None, {"c": []}]
    for chosen in ("", [], None, "a", "a, c", ["b"]):
        assert verification.unknown_groups(chosen, declared) == ""
    said = verification.unknown_groups("x,a,y", declared)
    assert said.startswith("verify_groups: there is no group x, y. The containers of this run have a, b, c; correct")
    assert "No container of this run has tests" in verification.unknown_groups("x", [])


# --- what came of it ----------------------------------------------------------------------------------------------


def check_of(**seen) -> dict:
    """The one check that these results give."""
    (check,) = verification.result_of(seen)["checks"]
    return check


def test_a_health_check_that_passed():
    expected = {"check": "health_check", "result": "passed", "message": "", "seconds": 0.25, "attempts": 1}
    assert check_of(health_check=GOOD, command="true") == expected
    assert check_of(health_check={**GOOD, "attempts": 3})["message"] == "passed at try 3"


def test_a_health_check_that_failed():
    result = verification.result_of({"ctid": 921, "health_check": {**BAD, "attempts": 4}, "command": "curl -f x"})
    (check,) = result["checks"]
    assert not result["passed"] and result["failed"] == ["health_check"] and result["ctid"] == 921
    assert check["message"] == "`curl -f x` failed in each of 4 tries, the last time: exit code 7"
    assert result["failures"] == [f"health_check: {check['message']}. The last that it said:\n    a\n    b"]
    assert check_of(health_check=BAD, command="c")["message"] == "`c` failed: exit code 7"


@pytest.mark.parametrize(
    ("done", "result", "message"),
    [
        ({"skipped": True, "skip_reason": "x"}, "skipped", "not run in check mode"),
        (UNREACHABLE, "failed", "it can't be reached: CTID 921 is not running; start it"),
        ({"failed": False, "msg": "No module named x.\n"}, "failed", "`c`: No module named x"),
        ({"msg": ""}, "failed", "`c`:"),
        ({"other": 1}, "failed", "`c`: it gave no result"),
    ],
)
def test_what_did_not_get_as_far_as_the_health_check(done, result, message):
    check = check_of(health_check=done, command="c")
    assert (check["result"], check["message"].strip()) == (result, message)


def test_what_is_not_checked_is_no_check():
    assert verification.result_of({"host": "h", "look": {}, "completion": {}, "health_check": {}, "tests": []}) == {
        "host": "h", "checks": [], "passed": True, "failed": [], "failures": [],
    }  # fmt: skip


def test_results_of_tests():
    items = planned(
        g=[{"name": "a", "path": "a.sh"}, {"name": "b", "type": "http", "path": "/x"}, {"name": "c", "type": "odd"}]
    )
    done = [
        {**GOOD, "item": items[0]},
        {**BAD, "outcome": "HTTP status 500", "item": items[1]},
        {"skipped": True, "item": items[2]},
    ]
    result = verification.result_of({"tests": done})
    assert [check["result"] for check in result["checks"]] == ["passed", "failed", "failed"]
    assert result["failed"] == ["test g/b", "test g/c"]
    assert result["checks"][1]["message"] == f"GET {URL}/x failed: HTTP status 500"
    assert "there is no type of tests 'odd'" in result["checks"][2]["message"]


def look(**values) -> dict:
    """The result of the task that looks inside."""
    known = {"problems": [], "differences": [], "release": "cpu-1", "compared": 120}
    return {"rc": 0, "stdout": json.dumps({**known, **values})}


def both_of(done: dict) -> list[tuple[str, str]]:
    unit, release = verification.result_of({"look": done})["checks"]
    assert (unit["check"], release["check"]) == ("unit", "release")
    return [(unit["result"], unit["message"]), (release["result"], release["message"])]


@pytest.mark.parametrize(
    ("done", "unit", "release"),
    [
        (look(), ("passed", ""), ("passed", "cpu-1: 120 packages are as locked")),
        (look(compared=0), ("passed", ""), ("passed", "there is no lock to compare it with")),
        (look(problems=["a", "b"]), ("failed", "a. b"), ("passed", "cpu-1: 120 packages are as locked")),
        (look(problems=["a"], release=""), ("failed", "a"), ("skipped", "see the unit")),
        (look(differences=["torch is locked"]), ("passed", ""), ("failed", "torch is locked")),
        ({"skipped": True}, ("skipped", "not run in check mode"), ("skipped", "see the unit")),
        (UNREACHABLE, ("failed", "it can't be reached: CTID 921 is not running; start it"),
         ("skipped", "see the unit")),
        ({"rc": 127, "stdout": "", "stderr": "\nno python3\n"},
         ("failed", "what runs inside could not be looked at (python3 is needed there): no python3"),
         ("skipped", "see the unit")),
        ({"rc": 2, "msg": "No such file"},
         ("failed", "what runs inside could not be looked at (python3 is needed there): No such file"),
         ("skipped", "see the unit")),
    ],
)  # fmt: skip
def test_unit_and_release(done, unit, release):
    assert both_of(done) == [unit, release]


def test_the_release_is_told_of():
    assert verification.result_of({"look": look()})["release"] == "cpu-1"


def reply(content, **values) -> dict:
    text = content if isinstance(content, str) else json.dumps(content)
    return {"passed": True, "status": 200, "outcome": "HTTP status 200", "seconds": 0.4, "url": f"{URL}/v1/completions",
            "content": text, **values}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "pooling", "answer"),
    [
        ({"choices": [{"text": " Paris\n"}]}, False, " Paris\n"),
        ({"data": [{"embedding": [0.1, 0.2]}]}, True, "an embedding of 2 numbers"),
    ],
)
def test_an_answer(content, pooling, answer):
    result = verification.result_of({"completion": reply(content), "pooling": pooling})
    assert result["passed"] and result["answer"] == answer
    assert result["checks"][0]["seconds"] == 0.4 and result["checks"][0]["message"] == verification.clean(answer)


@pytest.mark.parametrize("content", ["", "<html>\x1b[31mhello", "{", "\n", "null x"])
def test_what_answers_is_no_json(content):
    check = check_of(completion=reply(content))
    assert check["result"] == "failed"
    told = f"what answered at {URL}/v1/completions is no JSON, so no vLLM; see what listens there: "
    assert check["message"].startswith(told) and "\x1b" not in check["message"]


@pytest.mark.parametrize("pooling", [False, True])
@pytest.mark.parametrize(
    "content",
    [[], "null", "1", '"a"', {}, {"choices": []}, {"choices": None}, {"choices": [None]}, {"choices": [{"text": ""}]},
     {"choices": {"a": 1}}, {"data": [{"embedding": []}]}, {"data": "x"}],
)  # fmt: skip
def test_what_answers_gives_no_answer(content, pooling):
    check = check_of(completion=reply(content), pooling=pooling)
    assert f"gave no {'embedding' if pooling else 'text'}: " in check["message"] and check["result"] == "failed"


@pytest.mark.parametrize(
    ("done", "message"),
    [
        (reply('{"error": "x"}', passed=False, status=404, outcome="HTTP status 404"),
         f'the model did not answer at {URL}/v1/completions: HTTP status 404, {{"error": "x"}}'),
        (reply("", passed=False, status=0, outcome="no answer: Connection refused"),
         f"the model did not answer at {URL}/v1/completions: no answer: Connection refused; check that the address is "
         "reachable from the node and that the server listens on it"),
        (UNREACHABLE, "it can't be reached: CTID 921 is not running; start it"),
        ({"msg": "timeout: 0 is no limit"}, "timeout: 0 is no limit"),
        ({"passed": False, "outcome": "'http://:8000/v1/completions' is no URL", "url": "http://:8000"},
         "its address is not known, as with dhcp; say it in verify_address"),
    ],
)  # fmt: skip
def test_no_answer(done, message):
    assert check_of(completion=done)["message"] == message


@given(st.text())
def test_nothing_that_a_terminal_obeys(text):
    told = verification.clean(text)
    assert told.isprintable() and "\n" not in told
    lines = verification.last_lines(text)
    assert len(lines) <= verification.LINES and all(line and line.isprintable() for line in lines)


def test_the_last_lines():
    assert verification.last_lines("\x1b[1;31mred\x1b[0m\r\n\n a\tb\x07\n") == ["red", "a b\N{REPLACEMENT CHARACTER}"]
    assert verification.last_lines("\n".join(map(str, range(100))))[0] == "80"
    assert len(verification.last_lines("x" * 10_000)[0]) == 500


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)
                    | st.dictionaries(st.sampled_from(["choices", "data", "text", "embedding", "x"]), inner)),
       st.booleans())  # fmt: skip
def test_any_reply_is_judged(content, pooling):
    result = verification.result_of({"completion": reply(json.dumps(content)), "pooling": pooling})
    assert result["passed"] == ("answer" in result)


# --- the report ---------------------------------------------------------------------------------------------------


def a_report(**options) -> dict:
    good = verification.result_of({"host": "ctid_1", "look": look(), "completion": reply({"choices": [{"text": "Hi"}]}),
                                   "health_check": BAD, "command": "c"})  # fmt: skip
    none = verification.result_of({"host": "ctid_1000"})
    lost = verification.unverified("ctid_2", "Nobody\nis there.")
    template = verification.unverified("ctid_3", "it is a template", verification.SKIPPED)
    return verification.report_of([good, none, lost, template], "2026-11-27T21:00:00Z", **options)


def test_the_report_in_json():
    report = a_report()
    assert json.loads(json.dumps(report)) == report
    assert not report["passed"] and report["time"] == "2026-11-27T21:00:00Z" and not report["check_mode"]
    assert report["counts"] == {"containers": 4, "checks": 6, "passed": 3, "failed": 2, "skipped": 1}
    assert [container["passed"] for container in report["containers"]] == [False, True, False, True]
    assert report["containers"][0]["failed"] == ["health_check"] and "failures" not in report["containers"][0]


def test_the_report_for_people():
    assert verification.text_of(a_report()).splitlines() == [
        "CONTAINER  CHECK         RESULT   SECONDS",
        "ctid_1     unit          passed",
        "ctid_1     release       passed            cpu-1: 120 packages are as locked",
        "ctid_1     completion    passed       0.4  Hi",
        "ctid_1     health_check  failed       0.5  see below",
        "ctid_1000  -             skipped           it declares nothing to check",
        "ctid_2     reach it      failed            see below",
        "ctid_3     reach it      skipped           it is a template",
        "",
        "ctid_1, health_check: `c` failed: exit code 7. The last that it said:",
        "    a",
        "    b",
        "ctid_2, reach it: Nobody is there.",
        "",
        "4 containers, 6 checks: 3 passed, 2 failed, 1 skipped.",
    ]


def test_a_report_of_nothing():
    report = verification.report_of([], "t", True)
    assert report["passed"] and report["check_mode"]
    assert verification.text_of(report).splitlines()[-1] == "0 containers, 0 checks."


# --- the certificate ----------------------------------------------------------------------------------------------

HOUR = 3600
TLS = {"percent": 20, "days": 14, "fingerprints": [], "timer": "c.timer"}
SHOWN = {"problem": "", "names": ["a", "10.0.0.1"], "serial": "0A", "not_after": "2026-12-01 00:00 UTC",
         "life": 24 * HOUR, "left": 20 * HOUR}  # fmt: skip
ARMED = {"tls": {"ca": "text", "fingerprints": ["ab" * 32], "renewal": "", "next": "Sat 2026-11-28 08:00:00 UTC"}}


def of_tls(
    shown: dict | None = None, inside: dict | None = None, done: dict | None = None, **tls
) -> dict[str, tuple]:
    """Check → (result, message), of a server with a certificate, a good one with a timer by itself."""
    done = done or reply({"choices": [{"text": "Hi"}]}, certificate=shown or SHOWN)
    result = verification.result_of({"tls": {**TLS, **tls}, "look": look(**(inside or ARMED)), "completion": done})
    return {check["check"]: (check["result"], check["message"]) for check in result["checks"]}


def test_a_good_certificate():
    assert of_tls() == {
        "unit": ("passed", ""), "release": ("passed", "cpu-1: 120 packages are as locked"),
        "certificate": ("passed", "a, 10.0.0.1, until 2026-12-01 00:00 UTC"),
        "renewal": ("passed", "next at Sat 2026-11-28 08:00:00 UTC"), "completion": ("passed", "Hi"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("life", "left", "passed"),
    [
        (24 * HOUR, 5 * HOUR, True),
        (24 * HOUR, 4 * HOUR, False),
        # Of a long one, so many days are enough.
        (365 * 24 * HOUR, 15 * 24 * HOUR, True),
        (365 * 24 * HOUR, 13 * 24 * HOUR, False),
        (5 * 60, 61, True),
        (5 * 60, 59, False),
        (24 * HOUR, 0, False),
        (24 * HOUR, -5, False),
    ],
)
def test_its_remaining_life(life, left, passed):
    result, message = of_tls({**SHOWN, "life": life, "left": left})["certificate"]
    assert result == ("passed" if passed else "failed"), message
    assert passed or message.startswith("it ends at 2026-12-01 00:00 UTC, ")


def test_times_in_words():
    assert [verification._duration(seconds) for seconds in (-1, 5, 200, 9 * HOUR, 71 * HOUR)] == [
        "0 seconds", "5 seconds", "3 minutes", "9 hours", "3 days"]  # fmt: skip


def test_a_certificate_that_is_not_trusted_is_told_once():
    bad = {"passed": False, "status": 0, "outcome": "its certificate has expired", "url": f"{URL}/v1/completions",
           "certificate": {"problem": "has expired, at \x1b2026"}}  # fmt: skip
    found = of_tls(done=bad)
    assert found["certificate"] == ("failed", "it has expired, at \N{REPLACEMENT CHARACTER}2026")
    assert found["completion"] == ("skipped", "not asked, see the certificate")


def test_without_an_answer_it_is_seen_in_the_completion():
    done = {"passed": False, "status": 0, "outcome": "no answer: Connection refused", "url": f"{URL}/v1/completions"}
    found = of_tls(done=done)
    assert found["certificate"] == ("skipped", "none was shown, see the completion")
    assert found["completion"][0] == "failed"
    assert of_tls(done={"skipped": True})["certificate"] == ("skipped", "not run in check mode")
    assert of_tls(done=UNREACHABLE)["certificate"][0] == "failed"


@pytest.mark.parametrize(
    ("fingerprints", "passed"),
    [
        ([], True), (["ab" * 32], True), (["cd" * 32, ":".join(["AB"] * 32)], True), ("ab" * 32, True),
        (["cd" * 32], False),
    ],
)  # fmt: skip
def test_the_ca_is_the_declared_one(fingerprints, passed):
    result, message = of_tls(fingerprints=fingerprints)["certificate"]
    assert result == ("passed" if passed else "failed")
    assert passed or message.startswith(f"the CA that the container trusts has the fingerprint {'ab' * 32}, and")


def test_its_timer():
    told = {"tls": {**ARMED["tls"], "renewal": "c.timer is disabled", "next": ""}}
    assert of_tls(inside=told)["renewal"] == ("failed", "c.timer is disabled")
    assert "renewal" not in of_tls(timer="")
    assert "renewal" not in verification.result_of({"tls": TLS, "look": UNREACHABLE, "completion": UNREACHABLE})
