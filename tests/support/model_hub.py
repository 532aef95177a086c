# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model hub on this machine, for tests: Hugging Face's HTTP API as far as it is used, and all that may go wrong.

Small files come from the hub itself, big ones from a second server, to which the hub redirects with a signed address.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = 1 << 16


def git_blob(content: bytes) -> str:
    """The SHA-1 that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit_of(files: dict[str, bytes]) -> str:
    """A commit, for files that are so."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@dataclass
class Model:
    """A repository.

    Attributes:
        commits: commit → its files.
        refs: branch or tag → commit.
        gated: whether its files need a token; C(no access) when that token isn't enough.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: str = ""

    def push(self, files: dict[str, bytes], ref: str = "main") -> str:
        """A new commit on a branch."""
        commit = commit_of(files)
        self.commits[commit] = dict(files)
        self.refs[ref] = commit
        return commit


class FakeHub:
    """The hub, and what it is to do wrong.

    Attributes:
        models: repository → model.
        token: the one that it accepts.
        big: from how many bytes on a file is in LFS, and elsewhere.
        wrong: path → bytes that come in place of the right ones, so many times.
        cuts: path → after how many bytes of each answer the connection ends, so many times.
        failing: path → HTTP status, so many times.
        slow: seconds between two pieces of a file.
        told: changes what the API tells of a model.
        requests: (server, method, path with query) of each request, in order.
        logins: (server, Authorization) of each request that had one.
        sent: path → bytes of it that went out.
    """

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.token = "hf_right"
        self.big = 1000
        self.wrong: dict[str, list[bytes]] = {}
        self.cuts: dict[str, list[int]] = {}
        self.failing: dict[str, list[int]] = {}
        self.slow = 0.0
        self.told = lambda reply: reply
        self.renamed: dict[str, str] = {}
        self.ignores_ranges = False
        self.requests: list[tuple[str, str, str]] = []
        self.logins: list[tuple[str, str]] = []
        self.sent: Counter[str] = Counter()
        self.hub = self.cdn = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.hub.server_port}"

    def fetched(self) -> list[str]:
        """The paths of the files that somebody asked for, signed addresses left out."""
        found = [path.partition("/resolve/")[2] for _server, _method, path in self.requests if "/resolve/" in path]
        return [urllib.parse.unquote(path.partition("/")[2]) for path in found]

    def stop(self) -> None:
        for server in (self.hub, self.cdn):
            server.shutdown()
            server.server_close()


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[FakeHub]:
    """A hub that runs for the time of the block."""
    fake = FakeHub()
    for name in ("hub", "cdn"):
        handler = type(f"{name.title()}Handler", (_Handler,), {"fake": fake, "name": name})
        server = ThreadingHTTPServer((host, 0), handler)
        server.daemon_threads = True
        setattr(fake, name, server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield fake
    finally:
        fake.stop()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    name = ""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_words) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.fake
        fake.requests.append((self.name, "GET", self.path))
        if self.headers.get("Authorization"):
            fake.logins.append((self.name, self.headers["Authorization"]))
        address = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(address.path), urllib.parse.parse_qs(address.query)
        if self.name == "cdn":
            repository, commit, name = path.strip("/").split("@", 2)
            self._file(name, fake.models[repository].commits[commit][name])
        elif path == "/api/models":
            word = query["search"][0].lower()
            self._json([{"id": name} for name in fake.models if word in name.lower() or name.lower() in word])
        elif path.startswith("/api/models/"):
            self._api(address.path.removeprefix("/api/models/"), query)
        else:
            self._resolve(path.strip("/"))

    def _api(self, path: str, query: dict) -> None:
        repository, _slash, rest = path.partition("/revision/")
        if not rest:
            repository = path.removesuffix("/refs")
        if self._fails(f"api {repository}"):
            return
        if repository in self.fake.renamed:
            self._redirect(f"/api/models/{self.fake.renamed[repository]}/revision/{rest}?blobs=true")
            return
        model = self._model(repository)
        if not model:
            return
        if path.endswith("/refs"):
            refs = [{"name": name, "targetCommit": commit} for name, commit in model.refs.items()]
            self._json({"branches": refs, "tags": []})
            return
        revision = urllib.parse.unquote(rest)
        commit = model.refs.get(revision, revision)
        if commit not in model.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = []
        for name, content in model.commits[commit].items():
            entry = {"rfilename": name}
            if query.get("blobs") == ["true"]:
                entry.update(size=len(content), blobId=git_blob(content))
                if len(content) >= self.fake.big:
                    lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
                    entry.update(blobId=git_blob(b"pointer"), lfs=lfs)
            siblings.append(entry)
        self._json(self.fake.told({"id": repository, "sha": commit, "siblings": siblings}))

    def _resolve(self, path: str) -> None:
        repository, _slash, rest = path.partition("/resolve/")
        commit, _slash, name = rest.partition("/")
        if self._fails(name):
            return
        model = self._model(repository)
        if not model:
            return
        if model.gated and not self._may(model):
            return
        content = model.commits.get(commit, {}).get(name)
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found")
        elif len(content) >= self.fake.big:
            signed = urllib.parse.quote(f"/{repository}@{commit}@{name}")
            self._redirect(f"http://127.0.0.1:{self.fake.cdn.server_port}{signed}?Signature=very-secret-signature")
        else:
            self._file(name, content)

    def _may(self, model: Model) -> bool:
        if self.headers.get("Authorization") != f"Bearer {self.fake.token}":
            self._error(401, "GatedRepo", "Access to model is restricted. You must be authenticated to access it.")
            return False
        if model.gated == "no access":
            self._error(403, "GatedRepo", "Access to model is restricted and you are not in the authorized list.")
            return False
        return True

    def _model(self, repository: str) -> Model | None:
        login = self.headers.get("Authorization")
        if login and login != f"Bearer {self.fake.token}":
            self._error(401, "", "Invalid credentials in Authorization header")
        elif repository not in self.fake.models:
            # The hub doesn't tell strangers which private models there are.
            self._error(404 if login else 401, "RepoNotFound", "Repository not found")
        else:
            return self.fake.models[repository]
        return None

    def _file(self, name: str, content: bytes) -> None:
        fake = self.fake
        if self.name == "cdn" and self._fails(f"cdn {name}"):
            return
        if fake.wrong.get(name):
            content = fake.wrong[name].pop(0)
        start = 0
        asked = self.headers.get("Range", "")
        if asked and not fake.ignores_ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if fake.cuts.get(name):
            end = min(start + fake.cuts[name].pop(0), end)
            self.close_connection = True
        try:
            for at in range(start, end, CHUNK):
                piece = content[at : min(at + CHUNK, end)]
                self.wfile.write(piece)
                fake.sent[name] += len(piece)
                if fake.slow:
                    time.sleep(fake.slow)
        except OSError:
            self.close_connection = True

    def _fails(self, what: str) -> bool:
        if not self.fake.failing.get(what):
            return False
        self._error(self.fake.failing[what].pop(0), "", "it fails")
        return True

    def _redirect(self, address: str) -> None:
        self.send_response(302)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, code: int, name: str, message: str) -> None:
        self.send_response(code)
        if name:
            self.send_header("X-Error-Code", name)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()
