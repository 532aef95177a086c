# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM's own benchmark client without its start: it is imported once, and each run of it is a copy of that process.

    client.py serve SOCKET                 by the release's Python; says "ready" when it is
    client.py SOCKET bench serve …         in the place of `vllm bench serve …`

To import vLLM takes ten seconds and more, and a proof runs the client some hundred times. What runs then is the same
code with the same arguments, in a process of its own.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys

# In its environment: the processors that it may use, so that no server is disturbed by it.
PROCESSORS = "PROOF_PROCESSORS"


def run(words: list[str]) -> None:
    """Do what `vllm bench serve` does."""
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm bench serve")
    add_cli_args(parser)
    main(parser.parse_args(words))


def serve(path: str) -> None:
    """Import it, and run it as often as it is asked for."""
    import vllm.benchmarks.serve
    import vllm.utils.argparse_utils

    assert vllm.benchmarks.serve and vllm.utils.argparse_utils
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(16)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    # Each connection has a process that waits for the client, so nobody is left over.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _address = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            one(connection)
        connection.close()


def one(connection: socket.socket) -> None:
    """Run the client for one connection, tell how it ended, and end."""
    descriptors = array.array("i")
    size = descriptors.itemsize
    message, ancillary, _flags, _address = connection.recvmsg(1 << 20, socket.CMSG_SPACE(2 * size))
    for _level, _kind, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % size])
    wish = json.loads(message)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            connection.close()
            os.setsid()
            for place, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, place)
            os.environ.clear()
            os.environ.update(wish["environment"])
            os.chdir(wish["folder"])
            if os.environ.get(PROCESSORS):
                os.sched_setaffinity(0, map(int, os.environ[PROCESSORS].split(",")))
            run(wish["words"])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    # Who asked has gone: so must the client.
    connection.settimeout(0.05)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            connection.settimeout(5)
            connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        try:
            if not connection.recv(1):
                os.killpg(child, signal.SIGKILL)
        except (socket.timeout, ProcessLookupError):
            continue


def ask(path: str, words: list[str]) -> int:
    """Have it run, and give what it ended with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        wish = {"words": words, "environment": dict(os.environ), "folder": os.getcwd()}
        connection.sendmsg([json.dumps(wish).encode()],
                           [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2]))])  # fmt: skip
        answer = connection.recv(16)
    code = int(answer or b"1")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    assert sys.argv[2:4] == ["bench", "serve"], sys.argv
    sys.exit(ask(sys.argv[1], sys.argv[4:]))
