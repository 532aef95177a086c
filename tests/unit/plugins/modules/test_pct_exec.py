# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_exec, whole, in a container that is this machine."""

from __future__ import annotations

import functools
import json
import os

import pytest
from ansible_collections.phoenix.hypervisor.plugins.modules import pct_exec

ME, MY_GROUP = str(os.getuid()), str(os.getgid())


@pytest.fixture
def run(run_main, attach):
    """A function that runs the module's main in a container that is this machine."""
    return functools.partial(run_main, pct_exec, vmid=921)


def test_a_command(run):
    result = run(argv=["sh", "-c", "echo out; echo err >&2"])
    assert (result["changed"], result["rc"], result["stdout"], result["stderr"]) == (True, 0, "out", "err")
    assert result["cmd"] == ["sh", "-c", "echo out; echo err >&2"]
    assert {"start", "end", "delta"} <= set(result)


def test_a_script_in_a_folder(run, tmp_path):
    result = run(cmd='pwd; echo "$TOKEN"', chdir=str(tmp_path), environment={"TOKEN": "a  b\n$c"})
    assert result["stdout"] == f"{tmp_path}\na  b\n$c"


def test_empty_ends(run):
    assert run(cmd="printf 'a\\r\\n\\n'")["stdout"] == "a"
    assert run(cmd="printf 'a\\r\\n\\n'", strip_empty_ends=False)["stdout"] == "a\r\n\n"


def test_standard_input(run):
    assert run(argv=["cat"], stdin="ä", strip_empty_ends=False)["stdout"] == "ä\n"
    assert run(argv=["cat"], stdin="ä", stdin_add_newline=False, strip_empty_ends=False)["stdout"] == "ä"
    assert run(argv=["cat"])["stdout"] == ""


def test_secrets_are_nowhere_and_other_results_stay_as_they_are(run, attach):
    result = run(cmd="echo 10; exit 1", environment={"A": "1", "B": "hunter2"}, stdin="0")
    assert (result["rc"], result["stdout"]) == (1, "10")
    # ansible-core 2.21 hands the options on only when it is asked to.
    if "invocation" in result:
        arguments = result["invocation"]["module_args"]
        assert arguments["environment"] == arguments["stdin"] == "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
    assert "hunter2" not in json.dumps(result)
    assert "hunter2" not in " ".join(attach.calls[0])


def test_a_failure(run):
    result = run(cmd="echo one >&2; echo two >&2; exit 3")
    assert result["failed"]
    assert (result["rc"], result["changed"]) == (3, True)
    assert result["msg"] == "CTID 921: the command ended with 3: one\ntwo"
    assert run(cmd="exit 4")["msg"] == "CTID 921: the command ended with 4: it said nothing"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"argv": ["phoenix-none"]}, "there is no program 'phoenix-none' inside; install it"),
        ({"argv": ["/etc/passwd"]}, "'/etc/passwd' can't be run inside"),
        ({"argv": ["true"], "chdir": "/none"}, "chdir: there is no folder /none in CTID 921"),
        ({"argv": ["true"], "chdir": "/none", "removes": "x"}, "chdir: there is no folder /none in CTID 921"),
        ({"argv": ["true"], "vmid": 922}, "CTID 922 does not exist"),
        ({"cmd": "sleep 20", "timeout": 1}, "still running after 1 s and was ended"),
    ],
)
def test_what_fails_says_why(run, options, words):
    assert words in run(**options)["msg"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"argv": []}, "argv: there is no program"),
        ({"argv": [""]}, "argv: there is no program"),
        ({"argv": ["a", "b\0"]}, "argv: there is a NUL"),
        ({"cmd": "a\0"}, "cmd: there is a NUL"),
        ({"cmd": "a", "chdir": "tmp"}, "chdir: 'tmp' is not an absolute path"),
        ({"cmd": "a", "environment": {"a-b": 1}}, "environment: 'a-b'"),
        ({"cmd": "a", "argv": ["a"]}, "mutually exclusive"),
        ({}, "one of the following is required"),
    ],
)
def test_options_that_can_not_be_are_refused_before_anything(run, attach, options, words):
    assert words in run(**options)["msg"]
    assert attach.calls == []


def test_a_command_of_its_own_that_says_127(run):
    result = run(cmd="phoenix-none")
    assert result["rc"] == 127
    assert "phoenix-none: not found" in result["msg"]
    assert "there is no program" not in result["msg"]


def test_creates_and_removes(run, tmp_path, attach):
    (tmp_path / "a b").touch()
    (tmp_path / "dangling").symlink_to("none")
    folder = str(tmp_path)
    for pattern in ("a b", "a*", "?[ ]b", "dangling", f"{tmp_path}/a b"):
        result = run(cmd="touch ran", chdir=folder, creates=pattern)
        assert (result["changed"], result["rc"]) == (False, 0)
        assert result["msg"] == f"Did not run the command since '{pattern}' exists"
        assert run(check=True, cmd="touch ran", chdir=folder, removes=pattern)["changed"] is True
    for pattern in ("c", "c*", "a", "-e", ""):
        assert run(check=True, cmd="touch ran", chdir=folder, creates=pattern)["msg"].startswith("Command would have")
    result = run(cmd="touch ran", chdir=folder, removes="c*")
    assert (result["changed"], result["msg"]) == (False, "Did not run the command since 'c*' does not exist")
    assert not (tmp_path / "ran").exists()
    assert run(cmd="touch ran", chdir=folder, creates="ran", removes="a b")["changed"] is True
    assert run(cmd="touch ran", chdir=folder, creates="ran", removes="a b")["changed"] is False


def test_check_mode_without_them_is_a_skip(run, attach):
    result = run(check=True, cmd="touch /phoenix")
    assert (result["skipped"], result["changed"]) == (True, False)
    assert attach.calls == []


def test_a_stopped_container_is_said_in_check_mode_too(run, attach):
    attach.running = False
    assert "start it" in run(check=True, cmd="true")["msg"]
