# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings the files of a lock into a folder, each with its hash.

It looks where the container's own settings for pip and uv say: folders and indexes on this machine first, then those on
the network, and PyTorch's index for what none of them has. As every file is known by its hash, the first place that has
it is as good as any, and a place that can't be reached is asked once and no more. On the standard library alone: a
container needs no pip, and no other file than the locked ones is ever downloaded.
"""

from __future__ import annotations

import base64
import configparser
import errno
import hashlib
import html.parser
import http.client
import json
import os
import platform
import re
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .download import AGENT, PAUSES, Unreachable, download, opener, sha256_of
from .download import reason as _reason
from .release_plan import JobError, explain, without_secrets

PYPI = "https://pypi.org/simple"
# Waiting for one more index or server costs nothing but time; hashing is what two cores are busy with.
THREADS = 6
TIMEOUT = 30.0
# An index that can't be reached must not cost minutes, whatever pip's settings say of a download's timeout.
INDEX_TIMEOUT = 30.0
# PyTorch's index is an extra.
EXTRA_TIMEOUT = 15.0
JSON_TYPE = "application/vnd.pypi.simple.v1+json"
ACCEPT = f"{JSON_TYPE}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MACHINES = {"x86_64": ("x86_64",), "aarch64": ("aarch64", "arm64")}


@dataclass(frozen=True)
class Locked:
    """An entry of a lock: one version of a package, and the hashes (SHA-256) that its files may have."""

    name: str
    version: str
    hashes: frozenset[str]

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Link:
    """A file that a place has.

    Attributes:
        url: where it is.
        name: its file name.
        sha256: what the place says that its hash is, C("") when it says nothing.
        size: its size in bytes, 0 when the place says nothing.
    """

    url: str
    name: str
    sha256: str = ""
    size: int = 0


def parse_lock(text: str) -> list[Locked]:
    """Return the entries of a lock in the format of `pip --require-hashes`.

    Raises:
        JobError: an entry has no version or no hash.
    """
    entries: dict[tuple[str, str], set[str]] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if not line or line.startswith("-"):
            continue
        match = re.match(r"([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?\s*==\s*([^\s;]+)", line)
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", line)
        if not match or not hashes:
            raise JobError(f"The lock has {line.split()[0]} without a version or a hash.", "lock", "Write it again.")
        entries.setdefault((normalized(match[1]), match[2]), set()).update(hashes)
    return [Locked(name, version, frozenset(hashes)) for (name, version), hashes in entries.items()]


def normalized(name: str) -> str:
    """Return the name of a distribution in the one form that indexes use."""
    return re.sub(r"[-_.]+", "-", name).lower()


def rank(filename: str, entry: Locked, python: str, machine: str, glibc: tuple[int, int]) -> int:
    """Return how well a file suits, 0 when it doesn't: an exact wheel before a portable one, a wheel before sources.

    Args:
        filename: its name.
        entry: what is wanted.
        python: the version of Python, C(3.11) for example.
        machine: the machine's architecture, C(x86_64) for example.
        glibc: the version of the C library.
    """
    if filename.endswith((".tar.gz", ".zip")):
        base = filename.removesuffix(".tar.gz").removesuffix(".zip")
        name, _dash, version = base.rpartition("-")
        return int(normalized(name) == entry.name and _same_version(version, entry.version))
    parts = filename.removesuffix(".whl").split("-")
    if not filename.endswith(".whl") or len(parts) not in (5, 6):
        return 0
    if normalized(parts[0]) != entry.name or not _same_version(parts[1], entry.version):
        return 0
    pythons, abis, platforms = (part.split(".") for part in parts[-3:])
    if not any(_fits(tag, machine, glibc) for tag in platforms):
        return 0
    minor = int(python.split(".")[1])
    exact = f"cp3{minor}"
    if exact in pythons and exact in abis:
        return 6
    older = [int(tag[3:]) <= minor for tag in pythons if re.fullmatch(r"cp3\d+", tag)]
    if "abi3" in abis and any(older):
        return 5
    if "none" in abis and (exact in pythons or f"py3{minor}" in pythons):
        return 4
    if "none" in abis and any(tag in ("py3", "cp3") or _older_py(tag, minor) for tag in pythons):
        # A wheel for every platform leaves out what one for this platform brings along (soundfile's library).
        return 2 if "any" in platforms else 3
    return 0


class _Anchors(html.parser.HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take an anchor's link."""
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def links_of(body: bytes, content_type: str, base: str) -> list[Link]:
    """Return the files that a page of an index, or of a find-links place, names."""
    if "json" in content_type:
        files = json.loads(body).get("files", [])
        return [
            Link(
                urllib.parse.urljoin(base, file["url"]),
                file["filename"],
                (file.get("hashes") or {}).get("sha256", ""),
                int(file.get("size") or 0),
            )
            for file in files
        ]
    parser = _Anchors()
    parser.feed(body.decode("utf-8", "replace"))
    found = []
    for href in parser.found:
        url, _hash, fragment = urllib.parse.urljoin(base, href).partition("#")
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        found.append(Link(url, name, fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""))
    return found


@dataclass
class Settings:
    """How packages are reached: what pip's and uv's files say, with what this installation was told before them.

    Attributes:
        indexes: URLs of indexes, in order.
        find_links: folders, and URLs of pages, that have files.
        certificate: a file with the CAs to trust, C("") for the system's.
        client_certificate: a file with a certificate of one's own.
        proxy: the proxy, C("") for that of the environment.
        timeout: seconds without an answer.
        trusted: host names whose certificates aren't checked.
    """

    indexes: list[str]
    find_links: list[str] = field(default_factory=list)
    certificate: str = ""
    client_certificate: str = ""
    proxy: str = ""
    timeout: float = TIMEOUT
    trusted: frozenset[str] = frozenset()


def read_settings(places: Mapping[str, str], environment: Mapping[str, str], files: Iterable[str]) -> Settings:
    """Return how packages are reached.

    Args:
        places: what this installation was told: C(index) and C(find_links), C("") for what the container says.
        environment: environment variables, those of pip count.
        files: pip's and uv's configuration files, those that matter least first.
    """
    said: dict[str, str] = {}
    more: list[str] = []
    links: list[str] = []
    for path in files:
        if path.endswith(".toml"):
            uv = _read_toml(path)
            more += [str(url) for url in uv.get("extra-index-url", [])]
            links += [str(place) for place in uv.get("find-links", [])]
            if uv.get("index-url"):
                said.setdefault("index-url", str(uv["index-url"]))
            continue
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise JobError(f"{path} can't be read: {str(error).splitlines()[0]}", "index", "Correct it.") from None
        for section in ("global", "download", "install"):
            if parser.has_section(section):
                said.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            said[name[4:].lower().replace("_", "-")] = value
    no_index = said.get("no-index", "").lower() in ("1", "true", "yes", "on")
    first = [places["index"]] if places.get("index") else [] if no_index else [said.get("index-url") or PYPI]
    extra = [] if no_index else [*said.get("extra-index-url", "").split(), *more]
    links = [*places.get("find_links", "").split(), *said.get("find-links", "").split(), *links]
    timeout = said.get("timeout") or said.get("default-timeout") or ""
    return Settings(
        indexes=list(dict.fromkeys([*first, *extra])),
        find_links=list(dict.fromkeys(links)),
        certificate=said.get("cert", "") or environment.get("REQUESTS_CA_BUNDLE", ""),
        client_certificate=said.get("client-cert", ""),
        proxy=said.get("proxy", ""),
        timeout=float(timeout) if re.fullmatch(r"\d+(\.\d+)?", timeout) else TIMEOUT,
        trusted=frozenset(said.get("trusted-host", "").split()),
    )


class Web:
    """Opens URLs as the settings say."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        trusting = ssl.create_default_context()
        if settings.certificate:
            trusting.load_verify_locations(settings.certificate)
        blind = ssl.create_default_context()
        blind.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE
        for context in (trusting, blind):
            if settings.client_certificate:
                context.load_cert_chain(settings.client_certificate)
        self._openers = {False: opener(trusting, settings.proxy), True: opener(blind, settings.proxy)}

    def open(self, url: str, timeout: float, start: int = 0) -> http.client.HTTPResponse:
        """Open a URL.

        Args:
            url: it may hold a login.
            timeout: seconds without an answer.
            start: the first byte that is wanted.
        """
        parts = urllib.parse.urlsplit(url)
        headers = {"Accept": ACCEPT, "User-Agent": AGENT, "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        if parts.username:
            login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
            parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        request = urllib.request.Request(parts.geturl(), headers=headers)
        return self._openers[parts.hostname in self.settings.trusted].open(request, timeout=timeout)


class Place:
    """An index, or a folder or page of files."""

    def __init__(self, web: Web, url: str, index: bool, timeout: float, extra: bool = False) -> None:
        self.web = web
        self.index = index
        self.timeout = timeout
        # What is asked only for what no other place has.
        self.extra = extra
        self.pauses = PAUSES[:1] if extra else PAUSES
        self.url = url if "://" in url else Path(url).resolve().as_uri()
        self.local = self.url.startswith("file:")
        self.dead = ""
        self._lock = threading.Lock()
        self._page: list[Link] | None = None

    def __str__(self) -> str:
        return without_secrets(urllib.parse.unquote(self.url.removeprefix("file://")) if self.local else self.url)

    def links(self, name: str) -> list[Link]:
        """Return the files that it has of a package. A place that gave no answer is not asked again."""
        if self.dead:
            return []
        try:
            if self.index:
                return self._read(f"{self.url.rstrip('/')}/{name}/")
            with self._lock:
                if self._page is None:
                    self._page = self._read(self.url)
            return self._page
        except Unreachable as error:
            self.dead = self.dead or str(error)
            return []

    def _read(self, url: str) -> list[Link]:
        if self.local:
            return self._read_folder(Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)))
        for pause in (*self.pauses, None):
            try:
                with self.web.open(url, self.timeout) as reply:
                    content_type = reply.headers.get("Content-Type", "")
                    links = links_of(reply.read(), content_type, reply.geturl())
            except urllib.error.HTTPError as error:
                if error.code in (404, 410):
                    return []
                reason = f"HTTP {error.code}"
                if error.code not in (408, 429) and error.code < 500:
                    raise Unreachable(reason) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = _reason(error)
                # It had its time once; more attempts of that kind would add up to minutes.
                if isinstance(getattr(error, "reason", error), TimeoutError):
                    break
            else:
                return [_with_login(link, url) for link in links]
            if pause is None or self.dead:
                break
            time.sleep(pause)
        raise Unreachable(reason)

    @staticmethod
    def _read_folder(path: Path) -> list[Link]:
        page = path / "index.html" if path.is_dir() else path
        if page.is_file():
            return links_of(page.read_bytes(), "text/html", page.as_uri())
        if path.is_dir():
            return [Link(entry.as_uri(), entry.name) for entry in sorted(path.iterdir()) if entry.is_file()]
        return []


class Fetcher:
    """Brings the entries of locks into a folder.

    Args:
        settings: how packages are reached.
        extra: URLs of indexes that are asked for what no other place has.
        python: the version of Python, C(3.11) for example.
        folder: where the files go.
        say: is called with how far it is.
    """

    def __init__(
        self, settings: Settings, extra: Sequence[str], python: str, folder: Path, say: Callable[[str, str], None]
    ) -> None:
        self.settings = settings
        web = Web(settings)
        patience = min(settings.timeout, INDEX_TIMEOUT)
        places = [Place(web, url, False, patience) for url in settings.find_links]
        places += [Place(web, url, True, patience) for url in settings.indexes]
        # A stable sort: what is on this machine first, and in the order of the settings.
        self.places = sorted(places, key=lambda place: not place.local)
        self.places += [Place(web, url, True, min(patience, EXTRA_TIMEOUT), True) for url in extra]
        self.web = web
        self.python = python
        self.folder = folder
        self.say = say
        self.machine = platform.machine()
        libc = re.fullmatch(r"(\d+)\.(\d+).*", platform.libc_ver()[1] or "2.17")
        self.glibc = (int(libc[1]), int(libc[2])) if libc else (2, 17)
        self._lock = threading.Lock()
        self._bytes = 0
        self._files = 0
        self._at = 0.0

    def fetch(self, entries: Sequence[Locked], more: Sequence[Path] = ()) -> dict[str, str]:
        """Bring the files of the entries. What is there already with the right hash stays. Return {file: SHA-256}.

        Args:
            entries: what is wanted.
            more: folders on this machine that may have some of the files.

        Raises:
            JobError: a file can't be had.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                there = self._there(pool, entries, more)
                missing = [entry for entry in entries if entry not in there]
                found = dict(zip(missing, pool.map(self._find, missing)))
                self._room(found.values())
                total = sum(link.size for links in found.values() for link in links[:1])
                jobs = sorted(missing, key=lambda entry: -found[entry][0].size)
                begun = [pool.submit(self._bring, entry, found[entry], total, len(jobs)) for entry in jobs]
                there.update(zip(jobs, [job.result() for job in begun]))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return dict(there.values())

    def _there(self, pool: ThreadPoolExecutor, entries: Sequence[Locked], more: Sequence[Path]) -> dict:
        """Return entry → (file, SHA-256) for what is here already, linked from elsewhere on this machine if need be."""
        found: dict[Locked, tuple[str, str]] = {}
        for folder in (self.folder, *more):
            wanted = [entry for entry in entries if entry not in found]
            files = sorted(path for path in folder.glob("*") if path.is_file() and path.suffix != ".part")
            pairs = [(entry, path) for entry in wanted for path in files if self._rank(path.name, entry)]
            for (entry, path), digest in zip(pairs, pool.map(lambda pair: sha256_of(pair[1]), pairs)):
                if digest not in entry.hashes:
                    continue
                if folder != self.folder:
                    _link_or_copy(path, self.folder / path.name)
                found[entry] = (path.name, digest)
        return found

    def _rank(self, name: str, entry: Locked) -> int:
        return rank(name, entry, self.python, self.machine, self.glibc)

    def _find(self, entry: Locked) -> list[Link]:
        """Return where the entry's file is, in the order to try; places that tell no hashes may have another one."""
        unsure: list[Link] = []
        others = False
        for place in self.places:
            if place.extra and unsure:
                break
            ranked = [(self._rank(link.name, entry), link) for link in place.links(entry.name)]
            fitting = [link for value, link in sorted(ranked, key=lambda pair: -pair[0]) if value]
            if place.local:
                fitting = [link if link.sha256 else with_hash(link) for link in fitting]
            sure = [link for link in fitting if link.sha256 in entry.hashes]
            if sure and not unsure:
                return sure[:1]
            unsure += [*sure, *(link for link in fitting if not link.sha256)]
            others = others or any(link.sha256 and link.sha256 not in entry.hashes for link in fitting)
            if sure:
                return unsure
        if unsure:
            return unsure
        raise self._missing(entry, others)

    def _missing(self, entry: Locked, others: bool) -> JobError:
        asked = ", ".join(str(place) for place in self.places if not place.dead)
        dead = "; ".join(f"{place} can't be reached: {place.dead}" for place in self.places if place.dead)
        text = f"{entry} is in none of the places for packages ({asked or 'none could be asked'})"
        if others:
            text += "; a file of that name there has another hash than the lock"
        remedy = explain(dead) if dead else explain("hash mismatch") if others else ""
        if not remedy and re.search(r"\.dev\d{8}", entry.version):
            remedy = (
                "PyTorch removes nightly builds after some time. Use a stack with a stable PyTorch (vllm_stack), or "
                "lock this one to a newer nightly (make lock)."
            )
        return JobError(
            f"{text}{'. ' + dead if dead else ''}.",
            entry.name,
            remedy or "Check the index and the find-links folder in the container's pip.conf, or write the lock again.",
        )

    def _room(self, found: Iterable[Sequence[Link]]) -> None:
        """Make sure that the disk has room for the files and for what is in them, as far as their size is known."""
        size = sum(links[0].size for links in found if links)
        free = shutil.disk_usage(self.folder).free
        if size * 4 > free:
            raise JobError(
                f"The container's disk has not enough room: {size / 1e9:.1f} GB are to be downloaded and take about "
                f"{size * 4 / 1e9:.1f} GB once installed; {free / 1e9:.1f} GB are free.",
                "disk",
                "Give it more room (storage_size_gb) and run again.",
            )

    def _bring(self, entry: Locked, links: Sequence[Link], total: int, files: int) -> tuple[str, str]:
        """Bring one file of so many bytes and files. Return its name and its SHA-256."""
        problem = ""
        for link in links:
            path = self.folder / link.name
            part = path.with_name(f"{path.name}.part")
            try:
                resumed = part.exists()
                digest = self._download(link, part, lambda count: self._tell(count, 0, total, files))
                if resumed and digest not in entry.hashes:
                    # What was there of it may have been of another file.
                    part.unlink()
                    digest = self._download(link, part, lambda count: self._tell(count, 0, total, files))
            except Unreachable as error:
                problem = f"{without_secrets(link.url)} can't be downloaded: {error}"
                continue
            if digest in entry.hashes:
                os.replace(part, path)
                self._tell(0, 1, total, files)
                return path.name, digest
            part.unlink()
            problem = f"{link.name} has another hash than the lock (hash mismatch; it came from {_host(link.url)})"
        raise JobError(f"{problem}.", entry.name, explain(problem), [])

    def _download(self, link: Link, part: Path, tell: Callable[[int], None]) -> str:
        """Download into a file, going on with what is there of it, and return its SHA-256."""
        try:
            return download(
                lambda start: self.web.open(link.url, self.settings.timeout, start),
                part, hashlib.sha256, tell, link.size, PAUSES,
            )  # fmt: skip
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise Unreachable(_reason(error)) from None
            raise JobError(
                f"The container's disk is full while {link.name} is downloaded.", "disk", explain(str(error))
            ) from None

    def _tell(self, count: int, files: int, total: int, of_files: int) -> None:
        with self._lock:
            self._bytes += count
            self._files += files
            if time.monotonic() - self._at > 0.5:
                self._at = time.monotonic()
                of = f" of {total / 1e6:.0f}" if total else ""
                detail = f"({self._files} of {of_files} files, {self._bytes / 1e6:.0f}{of} MB)"
                self.say("downloading packages", detail)


def with_hash(link: Link) -> Link:
    """Return a link to a file on this machine with the hash that the file has."""
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(link.url).path))
    try:
        return Link(link.url, link.name, sha256_of(path), path.stat().st_size)
    except OSError:
        return link


def _link_or_copy(source: Path, target: Path) -> None:
    """Put a file in place under another name without taking room twice, where the disk can do that."""
    temporary = target.with_name(f"{target.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _same_version(text: str, version: str) -> bool:
    """Return whether a file name's version is a version; file names may write a dash as an underscore."""
    return urllib.parse.unquote(text).replace("_", "-").lower() == version.replace("_", "-").lower()


def _older_py(tag: str, minor: int) -> bool:
    return bool(re.fullmatch(r"py3\d+", tag)) and int(tag[3:]) <= minor


def _fits(tag: str, machine: str, glibc: tuple[int, int]) -> bool:
    """Return whether a wheel's platform is this one."""
    if tag == "any":
        return True
    names = MACHINES.get(machine, (machine,))
    old = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17), "linux": (0, 0)}
    for name in names:
        base = tag.removesuffix(f"_{name}")
        if base == tag:
            continue
        if base in old:
            return old[base] <= glibc
        match = re.fullmatch(r"manylinux_(\d+)_(\d+)", base)
        return bool(match) and (int(match[1]), int(match[2])) <= glibc
    return False


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or "this machine"


def _with_login(link: Link, page: str) -> Link:
    """Return a link with the login of the page that it was on, where it is on the same host."""
    asked, parts = urllib.parse.urlsplit(page), urllib.parse.urlsplit(link.url)
    if not asked.username or parts.username or parts.hostname != asked.hostname:
        return link
    login = asked.netloc.rpartition("@")[0]
    url = parts._replace(netloc=f"{login}@{parts.netloc}").geturl()
    return Link(url, link.name, link.sha256, link.size)


def _read_toml(path: str) -> dict:
    """Return a TOML file's content; nothing where it isn't there or this Python can't read it."""
    try:
        import tomllib
    except ImportError:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
