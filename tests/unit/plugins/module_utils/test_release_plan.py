# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import release_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_plan import JobError, Seen, StackError, Wanted
from hypothesis import given
from hypothesis import strategies as st

RELEASES, LINK = "/opt/vllm-releases", "/opt/vllm"
WHEEL, SOURCE = "cpu-000000000001", "cpu-000000000002"


def candidate(release: str, **more) -> dict:
    uv = {"version": "0.13.8", "hashes": ["0" * 64]}
    return {
        "release": release, "stack": "cpu", "python": "3.11", "vllm": "1.0", "method": "wheel", "requirements": "a",
        "uv": uv, **more,
    }  # fmt: skip


CANDIDATES = [candidate(WHEEL, flashinfer="0.3.1"), candidate(SOURCE, method="source")]


def path(name: str) -> str:
    return f"{RELEASES}/{name}"


def steps(seen: Seen, **options) -> list[tuple[str, str]]:
    wanted = Wanted(**{"candidates": CANDIDATES, "today": "2026-11-21", "keep_wheels": True, **options})
    return [(step.action, step.name) for step in release_plan.plan(wanted, seen)]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({}, [("install", WHEEL), ("switch", WHEEL)]),
        ({"half_done": {WHEEL}}, [("install", WHEEL), ("switch", WHEEL)]),
        ({"complete": {WHEEL}}, [("switch", WHEEL)]),
        ({"complete": {WHEEL}, "live": path(WHEEL)}, []),
        ({"complete": {WHEEL, "old"}, "live": path("old")}, [("switch", WHEEL)]),
        ({"live": path(WHEEL)}, [("install", WHEEL)]),
        ({"refused": {WHEEL: {}}}, [("install", SOURCE), ("switch", SOURCE)]),
        ({"refused": {WHEEL: {}}, "complete": {SOURCE}, "live": path(SOURCE)}, []),
        ({"in_the_way": "folder"}, [("take_over", "before-2026-11-21"), ("install", WHEEL), ("switch", WHEEL)]),
        (
            {"in_the_way": "folder", "complete": {WHEEL, "before-2026-11-21"}},
            [("take_over", "before-2026-11-21-2"), ("switch", WHEEL)],
        ),
    ],
)
def test_plans(seen, expected):
    sets = {name: frozenset(value) if isinstance(value, set) else value for name, value in seen.items()}
    assert steps(Seen(**sets)) == expected


def test_a_refused_candidate_is_tried_again_when_asked():
    seen = Seen(refused={WHEEL: {}}, complete=frozenset({SOURCE}), live=path(SOURCE))
    assert steps(seen, retry=True) == [("forgive", WHEEL), ("install", WHEEL), ("switch", WHEEL)]


def test_when_all_are_refused_the_reasons_are_told():
    refused = {WHEEL: {"message": "It has no sm_120 code.", "remedy": "Build it."}, SOURCE: {"message": "It is torn."}}
    with pytest.raises(StackError) as error:
        steps(Seen(refused=refused))
    said = str(error.value)
    assert "It has no sm_120 code. Build it." in said and "It is torn." in said and "vllm_stack_retry" in said


def test_what_is_no_folder_is_left_alone():
    with pytest.raises(StackError, match=r"mv /opt/vllm /opt/vllm\.old"):
        steps(Seen(in_the_way="other"))


def test_going_back():
    seen = Seen(complete=frozenset({"a", "b", "c"}), live=path("c"), history=["a", "b", "c"])
    assert steps(seen, candidates=[], release="previous") == [("switch", "b")]
    assert steps(seen, candidates=CANDIDATES, release="a") == [("switch", "a")]
    assert steps(seen, candidates=[], release="c") == []
    with pytest.raises(StackError, match=r"no release x in /opt/vllm-releases; it has a, b, c"):
        steps(seen, candidates=[], release="x")
    with pytest.raises(StackError, match="no release before the live one"):
        steps(Seen(live=path("c"), complete=frozenset({"c"}), history=["c"]), candidates=[], release="previous")


def test_the_previous_one_is_there_and_is_another():
    assert release_plan.previous(["a", "b", "c", "b", "c"], "c", {"a", "b", "c"}) == "b"
    assert release_plan.previous(["a", "b", "c"], "c", {"a", "c"}) == "a"
    assert release_plan.previous(["a"], "c", {"a", "c"}) == "a", "the switch to c was not written down"
    assert release_plan.previous([], "c", {"a", "c"}) == ""


@pytest.mark.parametrize(
    ("keep", "in_use", "removed"),
    [
        (5, set(), []),
        (4, set(), ["a"]),
        (3, set(), ["a", "b"]),
        (1, set(), ["a", "b", "c"]),
        (1, {"a"}, ["b", "c"]),
    ],
)
def test_old_releases_go(keep, in_use, removed):
    """Live is d, the wheel's comes on top of it; d stays as the one to go back to."""
    seen = Seen(
        complete=frozenset("abcd"), live=path("d"), history=["b", "a", "b", "c", "d"], in_use=frozenset(in_use)
    )
    done = steps(seen, keep=keep)
    assert [name for action, name in done if action == "remove"] == sorted(removed, key="abcd".index)
    assert done[:2] == [("install", WHEEL), ("switch", WHEEL)]


def test_what_was_never_finished_goes_unless_it_is_still_wanted():
    seen = Seen(half_done=frozenset({"x", SOURCE}), works=frozenset({"y", WHEEL, SOURCE}))
    assert steps(seen)[2:] == [("remove", "x"), ("remove", "y")]
    refused = Seen(works=frozenset({WHEEL, SOURCE}), refused={WHEEL: {}})
    assert steps(refused)[2:] == [("remove", WHEEL)], "its wheels have been of use for the next candidate"


def test_the_working_folder_goes_unless_its_wheels_are_fetched():
    live = {"complete": frozenset({WHEEL}), "live": path(WHEEL)}
    assert steps(Seen(**live, works=frozenset({WHEEL})), keep_wheels=False) == [("clean", WHEEL)]
    assert steps(Seen(**live, works=frozenset({WHEEL}))) == []
    assert steps(Seen(**live), keep_wheels=False) == []
    assert steps(Seen(), keep_wheels=False)[-1] == ("clean", WHEEL)


NAMES = st.sampled_from([*"abcde", WHEEL, SOURCE])


@given(
    complete=st.frozensets(NAMES),
    half_done=st.frozensets(NAMES),
    works=st.frozensets(NAMES),
    history=st.lists(NAMES, max_size=6),
    live=st.one_of(st.just(""), NAMES),
    in_use=st.frozensets(NAMES),
    keep=st.integers(1, 4),
    keep_wheels=st.booleans(),
)
def test_a_plan_that_was_executed_leaves_nothing_to_do(
    complete, half_done, works, history, live, in_use, keep, keep_wheels
):
    wanted = Wanted(CANDIDATES[:1], keep=keep, keep_wheels=keep_wheels)
    seen = Seen(
        live=path(live) if live else "", complete=complete, half_done=half_done - complete, works=works,
        history=history, in_use=in_use,
    )  # fmt: skip
    plan = release_plan.plan(wanted, seen)
    removed = {step.name for step in plan if step.action == "remove"}
    assert not removed & (in_use | {WHEEL, live})
    assert release_plan.previous([*history, live], WHEEL, complete) not in removed
    gone = removed | {step.name for step in plan if step.action == "clean"}
    switched = [step.name for step in plan if step.action == "switch"]
    after = Seen(
        live=path(WHEEL), complete=(complete | {WHEEL}) - removed, half_done=seen.half_done - removed - {WHEEL},
        works=works - gone, history=[*history, *([live] if live and switched else []), *switched], in_use=in_use,
    )  # fmt: skip
    assert release_plan.plan(wanted, after) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"release": "../x"}, "must be a stack's name"),
        ({"release": "cpu"}, "must be a stack's name"),
        ({"vllm": "", "uv": {}}, "has no vllm, uv"),
        ({"method": "magic"}, "must be wheel or source"),
    ],
)
def test_candidates_are_checked(change, sentence):
    with pytest.raises(StackError, match=sentence):
        release_plan.check_candidates([candidate(WHEEL), {**candidate(SOURCE), **change}])


def test_the_record_says_what_it_is_and_what_it_is_not():
    whole = candidate(WHEEL, source={"repository": "r", "commit": "c", "precompiled": "x"}, torch="2.13.0+cpu")
    refused = {SOURCE: {"message": "no"}}
    record = release_plan.record(whole, refused, {"fetch": 1.26, "gates": 2.0}, "2026-01-01T00:00:00Z", found=["all"])
    assert record["release"] == WHEEL and record["vllm"] == "1.0" and record["torch"] == "2.13.0+cpu"
    assert record["seconds"] == 3.3 and record["phases"] == {"fetch": 1.3, "gates": 2.0}
    assert record["refused"] == refused and record["source"] == {"repository": "r", "commit": "c"}
    assert record["found"] == ["all"] and "requirements" not in record


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("error: failed to write: No space left on device (os error 28)", "disk is full"),
        ("error: Hash mismatch for `torch==2.13.0+cpu`", "isn't the one that was locked"),
        ("error: No interpreter found for Python 3.11", "no Python 3.11"),
        ("invalid peer certificate: UnknownIssuer", "trusted_ca_files"),
        ("certificate verify failed: self-signed certificate", "trusted_ca_files"),
        ("cause: dns error: failed to lookup address", "can't reach the package index"),
        ("Temporary failure in name resolution", "can't reach the package index"),
        ("Connection refused", "can't reach the package index"),
        ("c++: fatal error: Cannot allocate memory", "memory is not enough"),
        ("No solution found when resolving dependencies: torch", "no such file"),
        ("something new", ""),
    ],
)
def test_known_failures_say_what_to_do(output, remedy):
    said = release_plan.explain(output, "3.11")
    assert remedy in said and bool(said) == bool(remedy)


@pytest.mark.parametrize(
    ("python", "remedy"),
    [
        ("3.11", "no Python 3.11: use a template that has it (Debian 12), or name a mirror"),
        ("3.12.4", "no Python 3.12.4: use a template that has it (Ubuntu 24.04), or name a mirror"),
        ("3.9", "no Python 3.9: name a mirror of Python builds (vllm_stack_python_mirror)."),
    ],
)
def test_a_missing_python_is_one_of_a_distribution(python, remedy):
    assert remedy in release_plan.explain("error: No interpreter found", python)


@pytest.mark.parametrize(
    ("properties", "message", "remedy"),
    [
        ({"Result": "oom-kill"}, "memory was not enough while it was building vllm", "max_jobs: 1"),
        ({"Result": "timeout"}, "longer than its time limit of 6 h 0 min while", "time_limit"),
        ({"Result": "signal", "ExecMainStatus": "9"}, r"killed \(signal 9\)", "gone on with"),
        ({"Result": "exit-code"}, "systemd says exit-code", "gone on with"),
        ({}, "was stopped", "gone on with"),
    ],
)
def test_why_a_job_ended_that_said_nothing(properties, message, remedy):
    error = release_plan.ended(properties, "building vllm", release_plan.duration(21600))
    assert isinstance(error, JobError) and remedy in error.remedy
    with pytest.raises(JobError, match=message):
        raise error


def test_packages_of_the_distribution():
    status = (
        "Package: git\nStatus: install ok installed\nProvides: git-completion, git-core (= 1:2)\n\n"
        "Package: gone\nStatus: deinstall ok config-files\n\nPackage: libnuma1\nStatus: install ok installed\n"
    )
    assert release_plan.installed_packages(status) == {"git", "git-completion", "git-core", "libnuma1"}
    whole = candidate(WHEEL, packages={"install": ["libnuma1"], "build": ["g++", "git"]})
    assert release_plan.packages_needed(whole, has_wheels=False) == ["g++", "git", "libnuma1"]
    assert release_plan.packages_needed(whole, has_wheels=True) == ["libnuma1"]
    assert release_plan.packages_needed(candidate(WHEEL), has_wheels=False) == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (99.9, "99 s"), (100, "1 min"), (5999, "99 min"), (6000, "1 h 40 min")]
)
def test_durations(seconds, words):
    assert release_plan.duration(seconds) == words


def test_progress_is_one_line():
    progress = {"release": WHEEL, "text": "building vllm", "detail": "[12/345]", "since": 1000}
    assert release_plan.sentence(progress, 1012) == f"{WHEEL}: building vllm [12/345], for 12 s"
    assert "a release" in release_plan.sentence({}, 5)


def test_logins_are_not_shown():
    text = "git clone https://me:s3cret@example.org/x and http://example.org/a@b"
    assert release_plan.without_secrets(text) == "git clone https://***@example.org/x and http://example.org/a@b"


def test_last_lines_skip_what_says_nothing():
    assert release_plan.last_lines("a\n\nb  \n \nc\n", 2) == ["b", "c"]
