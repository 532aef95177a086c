# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a model hub, Hugging Face's or a mirror of it, in the words of its HTTP API.

C(/api/models/<repository>/revision/<revision>?blobs=true) tells the commit and its files with their checksums,
C(/<repository>/resolve/<commit>/<path>) is a file. Big ones are elsewhere: the hub redirects to a signed address, which
gets no token and is never shown.
"""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from . import download, model_plan
from .download import Unreachable
from .model_plan import HUB, File, ModelError, NotThere

TIMEOUT = 30.0
# What a hub tells of a model is some hundred kilobytes.
_LIMIT = 64 << 20


class Hub:
    """A hub at an endpoint, asked with a token or without."""

    def __init__(self, endpoint: str, token: str = "", timeout: float = TIMEOUT) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.timeout = timeout
        self._token = token
        self._opener = download.opener()

    def __str__(self) -> str:
        return self.endpoint

    def look(self, repository: str, revision: str) -> tuple[str, list[File]]:
        """The commit of a revision, and all of its files.

        Raises:
            NotThere: it gives no answer, or doesn't know the model.
            ModelError: it doesn't give it to us.
        """
        path = f"/api/models/{repository}/revision/{urllib.parse.quote(revision, safe='')}"
        try:
            reply = self._json(f"{path}?blobs=true")
        except Unreachable as problem:
            raise self._explained(problem, repository, revision) from None
        commit, files = model_plan.hub_files(reply, f"{self.endpoint}{path}")
        if model_plan.is_commit(revision) and commit != revision:
            raise ModelError(f"{self.endpoint}{path} answers with the commit {commit}; check the endpoint")
        return commit, files

    def opened(self, repository: str, commit: str, file: File) -> Callable[[int], Any]:
        """What opens a file from a byte on, for L(download.download)."""
        url = f"{self.endpoint}/{repository}/resolve/{commit}/{urllib.parse.quote(file.path)}"

        def opens(start: int) -> Any:
            try:
                return self._open(url, start)
            except urllib.error.HTTPError as error:
                if download.origin(error.url or url) != download.origin(url) and error.code in (401, 403, 404, 410):
                    # A signed address has its time. The next attempt gets a new one.
                    error.code = 503
                raise

        return opens

    def problem(self, problem: Unreachable, repository: str, commit: str, path: str) -> ModelError:
        """What it means that a file can't be had."""
        if problem.code == 404:
            return ModelError(f"{self.endpoint} lists {path} in {repository} at {commit}, and hasn't got it; run again")
        return self._explained(problem, repository, commit)

    # --- what goes over the wire ------------------------------------------------------------------------------------

    def _open(self, url: str, start: int = 0) -> Any:
        headers = {"User-Agent": download.AGENT, "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return self._opener.open(urllib.request.Request(url, headers=headers), timeout=self.timeout)

    def _json(self, path: str, attempts: bool = True) -> Any:
        pauses = list(download.PAUSES) if attempts else []
        while True:
            try:
                with download.answered(lambda _start: self._open(f"{self.endpoint}{path}"), 0) as reply:
                    text = b"".join(download.blocks(reply))[:_LIMIT]
                break
            except Unreachable as problem:
                if not problem.may_pass or not pauses:
                    raise
                time.sleep(download.pause_after(problem, pauses.pop(0)))
        try:
            return json.loads(text)
        except ValueError:
            return None

    # --- what its refusals mean -------------------------------------------------------------------------------------

    def _explained(self, problem: Unreachable, repository: str, revision: str) -> ModelError:
        said = problem.headers.get("x-error-code", "")
        message = problem.headers.get("x-error-message", "")
        page = f"{self.endpoint if self.endpoint != HUB else HUB}/{repository}"
        if said == "GatedRepo" or (problem.code == 403 and not said):
            if not self._token:
                return ModelError(
                    f"{repository} is gated: accept its license on {page} with your account, and give a token of that "
                    "account (token; models_token of the role)"
                )
            return ModelError(
                f"{repository} is gated, and the account of the token has no access yet: accept its license on {page}, "
                "wait until its authors agree where they have to, and see that the token may read gated repositories"
            )
        if problem.code == 401 and self._token and said != "RepoNotFound":
            return ModelError(
                f"{self.endpoint} doesn't accept the token ({message or 'HTTP 401'}): make a new one that may read, on "
                f"{self.endpoint}/settings/tokens, and give it as token (models_token of the role)"
            )
        if said == "RevisionNotFound":
            return ModelError(self._no_revision(repository, revision))
        if problem.code in (401, 404, 410) or said == "RepoNotFound":
            return NotThere(self._no_repository(repository))
        if problem.code == 429:
            return NotThere(
                f"{self.endpoint} wants fewer requests (HTTP 429): run again later, or with a token, which may ask more"
            )
        return NotThere(f"{self.endpoint} can't be reached: {problem.reason}. {_remedy(problem.reason)}")

    def _no_revision(self, repository: str, revision: str) -> str:
        known = []
        try:
            refs = self._json(f"/api/models/{repository}/refs", attempts=False) or {}
            known = [str(ref["name"]) for kind in ("branches", "tags") for ref in refs.get(kind) or []]
        except (Unreachable, KeyError, TypeError, AttributeError):
            pass
        has = f"; it has {', '.join(sorted(known)[:20])}" if known else ""
        near = model_plan.nearest(revision, known, 1)
        return f"{repository} has no revision {revision} on {self.endpoint}{has}" + (
            f". Did you mean {near[0]}?" if near else "; correct revision"
        )

    def _no_repository(self, repository: str) -> str:
        name = repository.partition("/")[2]
        near = []
        try:
            query = urllib.parse.urlencode({"search": name, "limit": 20})
            found = self._json(f"/api/models?{query}", attempts=False) or []
            near = model_plan.nearest(repository, [str(each["id"]) for each in found])
        except (Unreachable, KeyError, TypeError):
            pass
        meant = f" Did you mean {' or '.join(near)}?" if near and repository not in near else ""
        private = "or the token's account may not see it" if self._token else "or it is private and needs a token"
        return (
            f"{self.endpoint} has no model {repository}, {private} (token; models_token of the role).{meant or ' '}"
            f"{'' if meant else 'Check its name on its page.'}"
        )


def _remedy(reason: str) -> str:
    text = reason.lower()
    if "certificate" in text or "ssl" in text:
        return (
            "The node doesn't trust its certificate: add the CA to the node's (update-ca-certificates), or name a file "
            "in SSL_CERT_FILE of the task's environment"
        )
    return (
        "Check the node's network and proxy (HTTPS_PROXY of the task's environment), or name a mirror (endpoint; "
        "models_endpoint of the role) or a folder (source)"
    )


def endpoint_problem(endpoint: str) -> str:
    """What is wrong with an endpoint, or C("")."""
    try:
        parts = urllib.parse.urlsplit(endpoint)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        right = False
    if not right:
        return f"endpoint: {endpoint!r} is no http or https URL, such as {HUB}"
    if parts.username is not None or parts.query or parts.fragment:
        return "endpoint: give it without a login and a query; a login belongs into token"
    return ""
