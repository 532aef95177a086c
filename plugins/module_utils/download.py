# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads files over HTTP: in constant memory, gone on with where it was cut, a login to its own host only."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

BLOCK = 1 << 20
PAUSES = (0.5, 2.0, 5.0)
AGENT = "phoenix.hypervisor"
# A server may ask for more patience than L(PAUSES) has, within reason.
_LONGEST_PAUSE = 60.0
_PORTS = {"http": 80, "https": 443}


class Unreachable(Exception):
    """A place that gave no answer, or one that is none.

    Attributes:
        reason: what went wrong.
        code: the HTTP status, 0 when there was none.
        headers: the answer's headers, names in lower case.
        url: where the answer came from, after redirects.
    """

    def __init__(self, reason: str, error: urllib.error.HTTPError | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = error.code if error else 0
        self.headers = {name.lower(): value for name, value in error.headers.items()} if error else {}
        self.url = str(error.url or "") if error else ""

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed a little later."""
        return not self.code or self.code >= 500 or self.code in (408, 416, 429)


class _OwnHostOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects. Python's own handler would hand a login on to whomever a redirect names."""

    # Python knows it since 3.11.
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        new = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
        if new is not None and origin(new.full_url) != origin(req.full_url):
            new.remove_header("Authorization")
        return new


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL: what a login is for."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)


def opener(context: ssl.SSLContext | None = None, proxy: str = "") -> urllib.request.OpenerDirector:
    """Return what opens URLs.

    Args:
        context: whom to trust; the system's CAs by default.
        proxy: the proxy, C("") for those of the environment.
    """
    proxies = {"http": proxy, "https": proxy} if proxy else None
    return urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPSHandler(context=context or ssl.create_default_context()),
        _OwnHostOnly(),
    )


def reason(error: BaseException) -> str:
    """Return what went wrong with a connection, without Python's words around it."""
    inner = getattr(error, "reason", error)
    return str(getattr(inner, "strerror", None) or inner or type(error).__name__)


def pause_after(problem: Unreachable, pause: float) -> float:
    """Return the seconds to wait before another attempt; the server may have asked for more."""
    asked = problem.headers.get("retry-after", "")
    return max(pause, min(float(asked), _LONGEST_PAUSE)) if asked.isdigit() else pause


def download(
    opened: Callable[[int], Any],
    part: Path,
    digest: Callable[[], Any],
    tell: Callable[[int], None],
    size: int = 0,
    pauses: Sequence[float] | None = None,
) -> str:
    """Download into a file, going on with what is there of it, and return its hash.

    An attempt that brought something is no failure: a big file may be cut many times.

    Args:
        opened: opens what is downloaded from a byte on.
        part: the file.
        digest: makes an empty hash, such as C(hashlib.sha256).
        tell: is called with how many bytes came, or with a negative number when they have to come again.
        size: how many bytes it has, 0 where nobody knows.
        pauses: seconds before each further attempt.

    Raises:
        Unreachable: it can't be had.
        OSError: the file can't be written.
    """
    left = list(PAUSES if pauses is None else pauses)
    start, hashed = 0, digest()
    with open(part, "ab+") as file:
        file.seek(0)
        for block in iter(lambda: file.read(BLOCK), b""):
            hashed.update(block)
            start += len(block)
        tell(start)
        while not size or start != size:
            before = start
            try:
                with answered(opened, start) as reply:
                    if start and (reply.status != 206 or (size and start > size)):
                        # It comes from its beginning.
                        tell(-start)
                        file.truncate(0)
                        start, before, hashed = 0, 0, digest()
                    expected = reply.headers.get("Content-Length")
                    for block in blocks(reply):
                        file.write(block)
                        hashed.update(block)
                        start += len(block)
                        tell(len(block))
                if start - before < int(expected) if expected else start < size:
                    raise Unreachable("the connection ended in the middle of the file")
                break
            except Unreachable as problem:
                if problem.code == 416:
                    tell(-start)
                    file.truncate(0)
                    start, hashed = 0, digest()
                if start - before >= BLOCK:
                    left = list(PAUSES if pauses is None else pauses)
                if not problem.may_pass or not left:
                    raise
                time.sleep(pause_after(problem, left.pop(0)))
    return hashed.hexdigest()


def answered(opened: Callable[[int], Any], start: int) -> Any:
    """Return what opens from a byte on, or why it doesn't.

    Raises:
        Unreachable: there is no such answer.
    """
    try:
        return opened(start)
    except urllib.error.HTTPError as error:
        error.close()
        raise Unreachable(f"HTTP {error.code}", error) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(reason(error)) from None


def blocks(reply: Any) -> Iterator[bytes]:
    """Return an answer piece by piece.

    Raises:
        Unreachable: it ends before its time.
    """
    while True:
        try:
            block = reply.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(reason(error)) from None
        if not block:
            return
        yield block


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()
