# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import release_fetch
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_fetch import Fetcher, Locked, Settings
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_plan import JobError

TORCH = Locked("torch", "2.11.0+cu128", frozenset({"a" * 64}))


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def locked(name: str, version: str, content: bytes) -> Locked:
    return Locked(name, version, frozenset({sha(content)}))


def test_a_lock_is_read():
    text = (
        f"# a comment\nFoo.Bar[extra]==1.0 \\\n    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'b' * 64}  # both\n"
        f"--index-url x\nbaz==2; python_version>'3' --hash=sha256:{'c' * 64}\n"
    )
    assert release_fetch.parse_lock(text) == [
        Locked("foo-bar", "1.0", frozenset({"a" * 64, "b" * 64})),
        Locked("baz", "2", frozenset({"c" * 64})),
    ]
    for line in ("foo>=1 --hash=sha256:" + "a" * 64, "foo==1"):
        with pytest.raises(JobError, match="without a version or a hash"):
            release_fetch.parse_lock(line)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("torch-2.11.0+cu128-cp311-cp311-manylinux_2_28_x86_64.whl", 6),
        ("torch-2.11.0%2Bcu128-cp311-cp311-linux_x86_64.whl", 6),
        ("torch-2.11.0+cu128-cp39-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 5),
        ("torch-2.11.0+cu128-cp312-abi3-manylinux2014_x86_64.whl", 0),
        ("torch-2.11.0+cu128-py3-none-any.whl", 2),
        ("torch-2.11.0+cu128-py2.py3-none-any.whl", 2),
        ("torch-2.11.0+cu128-1-py3-none-any.whl", 2),
        ("torch-2.11.0+cu128.tar.gz", 1),
        ("torch-2.11.0+cu128-cp312-cp312-manylinux_2_28_x86_64.whl", 0),
        ("torch-2.11.0+cu128-cp311-cp311-manylinux_2_28_aarch64.whl", 0),
        ("torch-2.11.0+cu128-cp311-cp311-manylinux_2_40_x86_64.whl", 0),
        ("torch-2.11.0+cu128-cp311-cp311-musllinux_1_2_x86_64.whl", 0),
        ("torch-2.11.0+cu128-cp311-cp311-win_amd64.whl", 0),
        ("torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl", 0),
        ("torchvision-2.11.0+cu128-py3-none-any.whl", 0),
        ("torch-2.11.0+cu128.whl", 0),
    ],
)
def test_which_file_suits(name, rank):
    assert release_fetch.rank(name, TORCH, "3.11", "x86_64", (2, 36)) == rank


def test_pages_of_all_kinds():
    page = b'<a href="../../f/a-1.whl#sha256=ff">a</a><a href="/f/b%2B1.whl">b</a><a name="x">c</a>'
    found = release_fetch.links_of(page, "text/html; charset=utf-8", "https://h/simple/a/")
    assert [(link.url, link.name, link.sha256) for link in found] == [
        ("https://h/f/a-1.whl", "a-1.whl", "ff"),
        ("https://h/f/b%2B1.whl", "b+1.whl", ""),
    ]
    files = {"files": [{"url": "x.whl", "filename": "x.whl", "hashes": {"sha256": "ee"}, "size": 7}]}
    found = release_fetch.links_of(json.dumps(files).encode(), release_fetch.JSON_TYPE, "https://h/simple/x/")
    assert (found[0].url, found[0].sha256, found[0].size) == ("https://h/simple/x/x.whl", "ee", 7)


def test_the_settings_of_pip_and_uv(tmp_path):
    pip, uv = tmp_path / "pip.conf", tmp_path / "uv.toml"
    pip.write_text("[global]\nindex-url = https://mirror/simple\nextra-index-url = https://a\n  https://b\n"
                   "timeout = 7\n[download]\nfind_links = /wheels\ntrusted-host = a b\n")
    uv.write_text('extra-index-url = ["https://b", "https://c"]\nfind-links = ["/more"]\n')
    files = (str(pip), str(uv), str(tmp_path / "none"))
    said = release_fetch.read_settings({}, {}, files)
    assert said.indexes == ["https://mirror/simple", "https://a", "https://b", "https://c"]
    assert said.find_links == ["/wheels", "/more"] and said.timeout == 7 and said.trusted == {"a", "b"}
    assert release_fetch.read_settings({}, {}, ()).indexes == [release_fetch.PYPI]
    told = release_fetch.read_settings({"index": "https://own"}, {"PIP_TIMEOUT": "9"}, files)
    assert told.indexes[0] == "https://own" and "https://mirror/simple" not in told.indexes and told.timeout == 9
    alone = release_fetch.read_settings({"find_links": "/x"}, {"PIP_NO_INDEX": "1"}, files)
    assert alone.indexes == [] and alone.find_links[0] == "/x"
    pip.write_text("no section\n")
    with pytest.raises(JobError, match=r"pip\.conf can't be read"):
        release_fetch.read_settings({}, {}, files)


class Server:
    """A folder as an index, with a login, that counts and breaks."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.asked, self.status, self.headers = files, [], 0, []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def do_GET(self):
                server.asked.append(self.path)
                server.headers.append(dict(self.headers))
                if server.status:
                    self.send_error(server.status)
                    return
                name = self.path.rpartition("/")[2]
                start = int(self.headers.get("Range", "bytes=0-")[6:-1])
                body = server.files[name][start:] if name else "".join(
                    f'<a href="/f/{file}">' for file in server.files
                ).encode()
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.it = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.it.server_port}"
        threading.Thread(target=self.it.serve_forever, daemon=True).start()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(release_fetch, "PAUSES", (0.0, 0.0))
    servers = []

    def start(files):
        servers.append(Server(files))
        return servers[-1]

    yield start
    for server in servers:
        server.it.shutdown()
        server.it.server_close()


def fetcher(folder, indexes=(), find_links=(), extra=(), say=lambda text, detail: None) -> Fetcher:
    return Fetcher(Settings(list(indexes), list(find_links)), list(extra), "3.11", folder / "wheels", say)


def test_what_is_on_this_machine_is_asked_first_and_the_extra_index_last(tmp_path, serve):
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a-1-py3-none-any.whl").write_bytes(b"a")
    (tmp_path / "links/b-1-py3-none-any.whl").write_bytes(b"another b")
    server = serve({"b-1-py3-none-any.whl": b"b", "a-1-py3-none-any.whl": b"a"})
    extra = serve({})
    it = fetcher(tmp_path, [f"http://{server.address}/simple"], [str(tmp_path / "links")], [f"http://{extra.address}"])
    found = it.fetch([locked("a", "1", b"a"), locked("b", "1", b"b")])
    assert found == {"a-1-py3-none-any.whl": sha(b"a"), "b-1-py3-none-any.whl": sha(b"b")}
    assert server.asked == ["/simple/b/", "/f/b-1-py3-none-any.whl"] and extra.asked == []
    assert (tmp_path / "wheels/a-1-py3-none-any.whl").read_bytes() == b"a"
    # A second time nothing is asked for.
    assert fetcher(tmp_path).fetch([locked("a", "1", b"a"), locked("b", "1", b"b")]) == found


def test_a_file_with_another_hash_is_not_taken_and_another_place_is(tmp_path, serve):
    name = "a-1-py3-none-any.whl"
    bad, good = serve({name: b"bad"}), serve({name: b"good"})
    places = [f"http://{server.address}/simple" for server in (bad, good)]
    assert fetcher(tmp_path, places).fetch([locked("a", "1", b"good")]) == {name: sha(b"good")}
    with pytest.raises(JobError, match=r"another hash than the lock \(hash mismatch; it came from 127\.0\.0\.1\)"):
        fetcher(tmp_path / "x", places[:1]).fetch([locked("a", "1", b"good")])
    assert not list((tmp_path / "x/wheels").iterdir())


def test_a_download_is_gone_on_with(tmp_path, serve):
    name, content = "a-1-py3-none-any.whl", b"0123456789" * 1000
    server = serve({name: content})
    (tmp_path / "wheels").mkdir()
    (tmp_path / f"wheels/{name}.part").write_bytes(content[:4000])
    assert fetcher(tmp_path, [f"http://{server.address}/simple"]).fetch([locked("a", "1", content)])
    assert server.headers[-1]["Range"] == "bytes=4000-"
    # What was there was something else: it is found out by the hash, and done again from the start.
    (tmp_path / "x/wheels").mkdir(parents=True)
    (tmp_path / f"x/wheels/{name}.part").write_bytes(b"9" * 4000)
    assert fetcher(tmp_path / "x", [f"http://{server.address}/simple"]).fetch([locked("a", "1", content)])


def test_a_login_goes_to_its_host_and_into_no_message(tmp_path, serve):
    name = "a-1-py3-none-any.whl"
    server = serve({name: b"a"})
    url = f"http://me:s3cret@{server.address}/simple"
    fetcher(tmp_path, [url]).fetch([locked("a", "1", b"a")])
    wanted = "Basic " + base64.b64encode(b"me:s3cret").decode()
    assert [headers["Authorization"] for headers in server.headers] == [wanted, wanted]
    server.status = 403
    with pytest.raises(JobError) as error:
        fetcher(tmp_path / "x", [url]).fetch([locked("a", "1", b"a")])
    assert "can't be reached: HTTP 403" in str(error.value) and "s3cret" not in str(error.value)


def test_a_place_that_gives_no_answer_is_asked_once(tmp_path, serve):
    server = serve({f"{name}-1-py3-none-any.whl": b"x" for name in "abcdefghij"})
    entries = [locked(name, "1", b"x") for name in "abcdefghij"]
    dead = fetcher(tmp_path, ["http://127.0.0.1:1/simple", f"http://{server.address}/simple"])
    dead.fetch(entries)
    assert dead.places[0].dead == "Connection refused" and server.asked.count("/simple/a/") == 1
    with pytest.raises(JobError) as error:
        fetcher(tmp_path / "x", ["http://127.0.0.1:1/simple"]).fetch(entries)
    assert "can't be reached: Connection refused" in error.value.message and "gateway" in error.value.remedy


def test_a_nightly_that_is_gone_names_what_to_do(tmp_path, serve):
    server = serve({})
    entry = Locked("torch", "2.12.0.dev20260407+cu128", frozenset({"a" * 64}))
    with pytest.raises(JobError, match="is in none of the places") as error:
        fetcher(tmp_path, [f"http://{server.address}/simple"]).fetch([entry])
    assert "nightly" in error.value.remedy and "make lock" in error.value.remedy


def test_other_wheelhouses_of_this_machine_are_used(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a-1-py3-none-any.whl").write_bytes(b"a")
    (tmp_path / "other/b-1-py3-none-any.whl").write_bytes(b"damaged")
    it = fetcher(tmp_path)
    assert it.fetch([locked("a", "1", b"a")], [tmp_path / "other"]) == {"a-1-py3-none-any.whl": sha(b"a")}
    assert (tmp_path / "wheels/a-1-py3-none-any.whl").stat().st_nlink == 2
    with pytest.raises(JobError):
        it.fetch([locked("b", "1", b"b")], [tmp_path / "other"])
    assert (tmp_path / "other/b-1-py3-none-any.whl").exists()
