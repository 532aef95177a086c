# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that asks a model server again and again, whatever becomes of it, and counts what failed.

Each request has a connection of its own and begins at its time, also when others before it still wait.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """What became of one request.

    Attributes:
        began, ended: when, as C(time.monotonic()) has it.
        answer: the text that came back, C("") when it failed.
        problem: why it failed, C("") when it didn't.
    """

    began: float
    ended: float
    answer: str
    problem: str


class SteadyClient:
    """Asks from the beginning of a block to its end.

    :param ca: the file of the CA that is trusted, for a server with TLS; its certificate must have the host's name
    :ivar requests: those that have ended, in the order of their end
    """

    def __init__(
        self, host: str, port: int, key: str = "", model: str = "m", per_second: float = 20, timeout: float = 30,
        ca: str = "",
    ) -> None:
        self.context = ssl.create_default_context(cafile=ca) if ca else None
        self.host, self.port, self.timeout, self.every = host, port, timeout, 1 / per_second
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 2})
        self.requests: list[Request] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clock = threading.Thread(target=self._run)

    def __enter__(self) -> SteadyClient:
        self._clock.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._clock.join()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        at = time.monotonic()
        while not self._stop.wait(max(0.0, at - time.monotonic())):
            at += self.every
            thread = threading.Thread(target=self._ask)
            thread.start()
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]

    def _ask(self) -> None:
        began = time.monotonic()
        answer, problem = ask(self.host, self.port, self.headers, self.body, self.timeout, self.context)
        self.requests.append(Request(began, time.monotonic(), answer, problem))

    @property
    def failed(self) -> list[Request]:
        """The requests that failed."""
        return sorted((one for one in self.requests if one.problem), key=lambda one: one.began)

    @property
    def answers(self) -> list[str]:
        """The different answers, in the order of their first coming."""
        return list(dict.fromkeys(one.answer for one in sorted(self.requests, key=lambda one: one.ended) if one.answer))

    def gap(self) -> tuple[float, float]:
        """The longest time without an answer between two answered requests: when it began, when it ended."""
        ends = sorted(one.ended for one in self.requests if one.answer)
        return max(zip(ends, ends[1:]), key=lambda pair: pair[1] - pair[0], default=(0.0, 0.0))

    def failed_outside(self, gap: tuple[float, float]) -> int:
        """How many requests failed that neither began nor ended in a gap."""
        return sum(one.ended < gap[0] or one.began > gap[1] for one in self.failed)


def ask(
    host: str, port: int, headers: dict[str, str], body: str, timeout: float, context: ssl.SSLContext | None = None
) -> tuple[str, str]:
    """One request. Returns the text of its answer, and what failed: one of the two is empty."""
    connection: http.client.HTTPConnection
    if context:
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("POST", "/v1/completions", body, headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            return "", f"HTTP {response.status}"
        return json.loads(content)["choices"][0]["text"] or " ", ""
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        return "", f"{type(error).__name__}: {error}"
    finally:
        connection.close()
