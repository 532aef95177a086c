# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that runs processes: what came out, how it ended, one sentence about it."""

from __future__ import annotations

import os
import signal
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


class TestStandardInput:
    def test_it_is_fed_piece_by_piece(self):
        assert (
            process.run(["cat"], stdin=iter([b"a", b"", b"\xc3\xa4\n", b"x" * 300_000])).stdout
            == "aä\n" + "x" * 300_000
        )

    def test_what_is_fed_while_much_comes_out(self):
        done = process.run(["cat"], stdin=(b"x" * 100_000 for _each in range(50)))
        assert len(done.stdout) == 5_000_000

    def test_a_process_that_does_not_want_it(self):
        assert process.run(["true"], stdin=(b"x" * 100_000 for _each in range(50))).rc == 0

    def test_an_input_that_fails_ends_the_process(self):
        def pieces():
            yield b"a"
            raise OSError("the disk is gone")

        begin = time.monotonic()
        with pytest.raises(OSError, match="the disk is gone"):
            process.run(["sh", "-c", "cat; sleep 20"], stdin=pieces())
        assert time.monotonic() - begin < 5


class TestSink:
    def test_it_gets_what_comes_out(self):
        pieces: list[bytes] = []
        done = process.run(["sh", "-c", r"printf 'a\377\r\n'; echo err >&2"], sink=pieces.append)
        assert (b"".join(pieces), done.stdout, done.stderr) == (b"a\xff\r\n", "", "err\n")

    def test_one_that_fails_ends_the_process(self):
        def full(piece):
            raise OSError("no space left")

        ended = []
        with pytest.raises(OSError, match="no space left"):
            process.run(["sh", "-c", "echo x; sleep 20"], sink=full, end=lambda: ended.append(True))
        assert ended == [True]


class TestEnds:
    def test_what_was_said_until_then_is_kept(self):
        done = process.run(["sh", "-c", "echo out; echo err >&2; exec sleep 20"], 0.3)
        assert (done.rc, done.ended_by, done.stdout) == (124, "time", "out\n")
        assert done.stderr.startswith("err\n")

    def test_what_is_left_elsewhere_is_ended_too(self):
        ended = []
        assert process.run(["sleep", "20"], 0.2, end=lambda: ended.append(True)).rc == 124
        assert ended == [True]
        process.run(["true"], 5, end=lambda: ended.append(True))
        assert ended == [True]

    def test_who_holds_the_pipes_does_not_hold_the_caller(self):
        begin = time.monotonic()
        assert shell("sleep 5 & echo done").stdout == "done\n"
        assert time.monotonic() - begin < 4

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal(self, number):
        def before(number, frame):
            pytest.fail("it came to who was here before")

        # Whoever runs the tests may ignore it (nohup, a shell's background), and so would they.
        own = signal.signal(number, before)
        with process.interruptible():
            done = process.run(["sh", "-c", f"echo begun; sleep 0.3; kill -{int(number)} {os.getpid()}; exec sleep 20"])
        assert (done.ended_by, done.rc, done.stdout) == (number.name, 124, "begun\n")
        assert f"ended by {number.name}" in done.sentence()
        assert signal.signal(number, own) is before

    def test_a_signal_between_two_processes(self):
        with pytest.raises(process.Interrupted, match="SIGTERM"), process.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)


def test_variables_of_one_process(monkeypatch):
    monkeypatch.setenv("LANG", "C")
    done = process.run(["sh", "-c", 'printf "%s" "$A"'], environment={"A": "ä\n"})
    assert done.stdout == "ä\n"


def test_a_command_line_that_is_too_long():
    assert "can't be run: Argument list too long" in process.run(["true", "x" * 5_000_000]).sentence()[-200:]


def test_what_is_said_at_length_is_shortened_in_a_sentence():
    lines = [f"line {number}" for number in range(5000)] + ["x" * 1000 + "end", "why"]
    sentence = process.Finished(("tar",), 1, "\n".join(lines), "first\nsecond").sentence()
    assert sentence.startswith("`tar` ended with 1: first / second; line 0 / line 1 / line 2 / … (")
    assert sentence.endswith("xend / why")
    assert len(sentence) < 700
