# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# The one file that runs processes on the node.
# pylint: disable=ansible-bad-function
"""The one place that runs processes on a node, and turns their failures into one sentence."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

# pct's own search path: nothing from /usr/local, nothing from the caller.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_CHUNK = 1 << 16
# How long something left in the background may hold the pipes of a process that has ended.
_LINGER = 1.0
# How long a process may take to end once it was told to.
_GRACE = 10.0


# Of what a process said at length, its beginning and its end tell why.
_FIRST, _LAST, _HALF_LINE = 3, 5, 200


def _ends_of(lines: Sequence[str]) -> list[str]:
    """The first and the last of many lines, long ones without their middle."""
    left_out = len(lines) - _FIRST - _LAST
    if left_out > 1:
        lines = [*lines[:_FIRST], f"… ({left_out} lines) …", *lines[-_LAST:]]
    return [
        line if len(line) <= 2 * _HALF_LINE else f"{line[:_HALF_LINE]} … {line[-_HALF_LINE:]}" for line in lines
    ]


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    :ivar rc: exit code; 127 when the program is not there, 124 when it was ended before its time
    :ivar ended_by: why it was ended before its time: C(time), or the name of a signal that this module was sent
    """

    argv: tuple[str, ...]
    rc: int
    stdout: str
    stderr: str
    ended_by: str = ""

    @property
    def failed(self) -> bool:
        return self.rc != 0

    def sentence(self) -> str:
        """What ran, how it ended, and what it said: a task's own output is merged on stdout, its error on stderr."""
        parts = [" / ".join(_ends_of(text.strip().splitlines())) for text in (self.stderr, self.stdout)]
        said = "; ".join(part for part in parts if part)
        return f"`{' '.join(self.argv)}` ended with {self.rc}: {said or 'it said nothing'}"


class Interrupted(BaseException):
    """A signal asked this module to end; the text is the signal's name."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Signals that ask for an end raise L(Interrupted), so that what was begun is put in order first."""

    def interrupt(number, frame):
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    # A signal that the caller ignores (nohup) stays ignored.
    before = {each: signal.getsignal(each) for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN}
    for each in before:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def run(
    argv: Sequence[str],
    timeout: float | None = None,
    *,
    stdin: Iterable[bytes] = (),
    environment: Mapping[str, str] | None = None,
    sink: Callable[[bytes], object] | None = None,
    end: Callable[[], object] | None = None,
) -> Finished:
    """Run a process to its end, in memory that does not grow with what is read from an iterator or goes to a sink.

    :param timeout: seconds after which it is ended; pct hands that on to the task that it started
    :param stdin: pieces of its standard input; there is nothing on it by default
    :param environment: variables that it has besides the few that every process has
    :param sink: gets stdout piece by piece; L(Finished.stdout) is "" then
    :param end: ends what the process itself would leave behind when it is ended before its time
    """
    argv = tuple(argv)
    variables = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/root"), **(environment or {})}
    ended_by = ""
    try:
        process = subprocess.Popen(
            [_encoded(word) for word in argv],
            stdin=subprocess.DEVNULL if stdin == () else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={_encoded(name): _encoded(value) for name, value in variables.items()},
            cwd="/",
            bufsize=0,
        )
    except FileNotFoundError:
        return Finished(argv, 127, "", f"{argv[0]} is not installed here: is this a Proxmox VE node?")
    except OSError as error:
        return Finished(argv, 126, "", f"{argv[0]} can't be run: {error.strerror}")
    with process, contextlib.closing(_Pipes(process, stdin, sink)) as pipes:
        try:
            if not pipes.exchange(timeout):
                ended_by = "time"
        except Interrupted as interrupted:
            ended_by = str(interrupted)
        except BaseException:
            # The sink's or the input's own error, which is the caller's.
            _end(process, end)
            process.kill()
            raise
        if ended_by:
            _end(process, end)
            if not pipes.exchange(_GRACE):
                process.kill()
                pipes.exchange(_GRACE)
    out, err = pipes.text(process.stdout), pipes.text(process.stderr)
    if ended_by == "time":
        return Finished(argv, 124, out, f"{err}\nit was ended after {timeout:g} s", ended_by)
    if ended_by:
        return Finished(argv, 124, out, f"{err}\nit was ended by {ended_by}", ended_by)
    return Finished(argv, process.returncode, out, err)


def _encoded(text: str) -> bytes:
    """Names and values reach a process as UTF-8 whatever the caller's locale; bytes that aren't stay as they were."""
    return text.encode("utf-8", "surrogateescape")


def _end(process: subprocess.Popen, end: Callable[[], object] | None) -> None:
    if end is not None:
        end()
    process.terminate()


class _Pipes:
    """What goes into a process and comes out of it, all at the same time."""

    def __init__(self, process: subprocess.Popen, stdin: Iterable[bytes], sink: Callable | None) -> None:
        self._process = process
        self._pieces = iter(stdin)
        self._rest = memoryview(b"")
        self._sinks: dict = {process.stdout: sink, process.stderr: None}
        self._chunks: dict = {process.stdout: [], process.stderr: []}
        # When to stop reading although somebody still holds the pipes; None while the process runs.
        self._lingers_until: float | None = None
        self._pidfd = os.pidfd_open(process.pid)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pidfd, selectors.EVENT_READ, self._exited)
        for file in (process.stdout, process.stderr):
            self._selector.register(file, selectors.EVENT_READ, self._read)
        if process.stdin:
            os.set_blocking(process.stdin.fileno(), False)
            self._selector.register(process.stdin, selectors.EVENT_WRITE, self._write)

    def exchange(self, timeout: float | None) -> bool:
        """Exchange until the process has ended. False when the time is up before that."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._selector.get_map():
            until = deadline if self._lingers_until is None else self._lingers_until
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return self._lingers_until is not None
            for key, _mask in self._selector.select(left):
                if key.fd in self._selector.get_map():
                    key.data(key.fileobj)
        return True

    def text(self, file) -> str:
        return b"".join(self._chunks[file]).decode("utf-8", "replace")

    def close(self) -> None:
        self._selector.close()
        os.close(self._pidfd)

    def _exited(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        self._process.wait()
        self._lingers_until = time.monotonic() + _LINGER
        if self._process.stdin and not self._process.stdin.closed:
            self._drop(self._process.stdin)

    def _read(self, file) -> None:
        chunk = os.read(file.fileno(), _CHUNK)
        if not chunk:
            self._drop(file)
        elif self._sinks[file]:
            self._sinks[file](chunk)
        else:
            self._chunks[file].append(chunk)

    def _write(self, file) -> None:
        try:
            if not self._rest:
                self._rest = memoryview(next(self._pieces))
            self._rest = self._rest[os.write(file.fileno(), self._rest) :]
        except (StopIteration, BrokenPipeError):
            # All is written, or nobody reads any more; how the process ends tells which.
            self._drop(file)

    def _drop(self, file) -> None:
        self._selector.unregister(file)
        file.close()
