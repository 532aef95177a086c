# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that runs processes: what came out, how it ended, one sentence about it."""

from __future__ import annotations

import os
import sys
import time

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import process


def shell(script: str, timeout: float | None = None) -> process.Finished:
    return process.run(["/bin/sh", "-c", script], timeout)


def test_what_came_out():
    done = shell("echo out; echo err >&2; exit 3")
    assert (done.rc, done.stdout, done.stderr, done.failed) == (3, "out\n", "err\n", True)
    assert not shell("true").failed


def test_its_sentence_has_command_exit_code_and_both_outputs():
    sentence = shell("echo out; echo two; echo err >&2; exit 3").sentence()
    assert sentence.endswith("ended with 3: err; out / two")
    assert "\n" not in process.run(["/bin/sh", "-c", "echo a; echo b; false"]).sentence()
    assert process.run(["/bin/false"]).sentence() == "`/bin/false` ended with 1: it said nothing"


def test_a_missing_program_is_a_sentence():
    done = process.run(["phoenix-no-such-program", "x"])
    assert done.rc == 127
    assert "phoenix-no-such-program is not installed here" in done.sentence()


def test_a_file_that_is_no_program_is_a_sentence(tmp_path):
    file = tmp_path / "data"
    file.write_text("x")
    done = process.run([str(file)])
    assert done.rc == 126
    assert "can't be run: Permission denied" in done.sentence()


def test_nothing_of_the_environment_gets_in(monkeypatch):
    monkeypatch.setenv("PHOENIX_SECRET", "x")
    monkeypatch.setenv("PATH", "/nowhere")
    environment = dict(line.split("=", 1) for line in shell("env").stdout.splitlines())
    assert "PHOENIX_SECRET" not in environment
    assert environment["PATH"] == "/usr/sbin:/usr/bin:/sbin:/bin"


def test_standard_input_is_empty_and_the_folder_is_the_root():
    assert shell("cat; pwd").stdout == "/\n"


def test_output_that_is_no_utf_8():
    assert shell(r"printf 'a\377b'").stdout == "a\ufffdb"


def test_large_output_on_both_sides():
    done = shell("head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2")
    assert (len(done.stdout), len(done.stderr)) == (300000, 300000)


def test_a_process_whose_time_is_up_is_ended():
    begin = time.monotonic()
    done = process.run(["sleep", "20"], 0.2)
    assert time.monotonic() - begin < 5
    assert done.rc == 124
    assert "ended after 0.2 s" in done.sentence()


def test_words_are_handed_on_as_they_are():
    words = ["a b", "", "$HOME", "*", "-x", "ü", "'", '"']
    script = "import sys; print(sys.argv[1:])"
    assert process.run([sys.executable, "-c", script, *words]).stdout == f"{words}\n"


@pytest.mark.parametrize("home", ["/root", "/home/x"])
def test_home_is_the_callers(monkeypatch, home):
    monkeypatch.setitem(os.environ, "HOME", home)
    assert shell("echo $HOME").stdout == f"{home}\n"
