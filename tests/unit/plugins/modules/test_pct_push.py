# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_push, whole, in a container that is this machine."""

from __future__ import annotations

import functools
import json
import os

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import inside
from ansible_collections.phoenix.hypervisor.plugins.modules import pct_push

ME, MY_GROUP = str(os.getuid()), str(os.getgid())


@pytest.fixture
def run(run_main, attach):
    """A function that runs the module's main in a container that is this machine."""
    return functools.partial(run_main, pct_push, vmid=921)


def mine(**options) -> dict:
    """Options of a file that this test's user may own."""
    return {"owner": ME, "group": MY_GROUP, **options}


def test_a_new_file(run, attach, tmp_path):
    options = mine(content="ä\n", dest=f"{tmp_path}/a b\n")
    shown = run(check=True, **options)
    assert list(tmp_path.iterdir()) == []
    done = run(**options)
    assert {**shown, "invocation": 0} == {**done, "invocation": 0}
    assert (done["changed"], done["size"], done["mode"], done["uid"]) == (True, 3, "0644", int(ME))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a b\n", "ä\n")]
    assert [part["after"] for part in done["diff"]] == ["ä\n", f"owner: {ME}\ngroup: {MY_GROUP}\nmode: 0644\n"]
    # Looked once in check mode; looked and written once each.
    assert len(attach.calls) == 3
    again = run(**options)
    assert (again["changed"], again["diff"], len(attach.calls)) == (False, [], 4)


def test_a_file_of_the_node(run, tmp_path):
    content = os.urandom(600_000)
    (tmp_path / "src").write_bytes(content)
    options = mine(src=f"{tmp_path}/src", dest=f"{tmp_path}/dest", mode="0600")
    assert run(**options)["diff"][0]["src_larger"] == 102400
    assert (tmp_path / "dest").read_bytes() == content
    assert (tmp_path / "dest").stat().st_mode & 0o7777 == 0o600
    assert run(**options)["changed"] is False
    # The same size, another content.
    (tmp_path / "src").write_bytes(content[::-1])
    assert run(**options)["changed"] is True


def test_the_mode_alone(run, tmp_path):
    dest = tmp_path / "dest"
    dest.write_text("x")
    inode = dest.stat().st_ino
    options = {"content": "x", "dest": str(dest), "mode": "0750"}
    shown = run(check=True, **options)
    assert dest.stat().st_mode & 0o7777 != 0o750
    assert run(**options)["diff"] == shown["diff"]
    assert (dest.stat().st_ino, dest.stat().st_mode & 0o7777) == (inode, 0o750)
    assert run(content="y", dest=str(dest))["mode"] == "0750"
    assert dest.stat().st_mode & 0o7777 == 0o750


def test_a_content_is_a_secret(run, attach, tmp_path):
    result = run(diff=False, **mine(content="0644", dest=f"{tmp_path}/dest", mode="0644"))
    assert (result["mode"], result["diff"]) == ("0644", [])
    # ansible-core 2.21 hands the options on only when it is asked to.
    if "invocation" in result:
        assert result["invocation"]["module_args"]["content"] == "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
    result = run(**mine(content="hunter2", dest=f"{tmp_path}/dest", _ansible_no_log=True))
    assert "hunter2" not in json.dumps(result) + str(attach.calls)


@pytest.mark.parametrize(
    ("content", "key"), [(b"\0", "dst_binary"), (b"\xff", "dst_binary"), (b"x" * 102401, "dst_larger")]
)
def test_an_old_content_that_no_diff_shows(run, tmp_path, content, key):
    (tmp_path / "dest").write_bytes(content)
    diff = run(content="new\n", dest=f"{tmp_path}/dest")["diff"][0]
    assert key in diff
    assert (diff["after"], "before" in diff) == ("new\n", False)


def test_a_link_is_replaced(run, tmp_path):
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    run(**mine(content="new", dest=f"{tmp_path}/link"))
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "target").read_text()) == (False, "kept")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dest": "{}"}, "is a directory in CTID 921; name the file in it"),
        ({"dest": "{}/to_folder"}, "is a directory in CTID 921; name the file in it"),
        ({"dest": "{}/none/x"}, "the folder of {}/none/x does not exist in CTID 921"),
        ({"dest": "{}/pipe"}, "is a named pipe in CTID 921"),
        ({"dest": "{}/x", "owner": "phoenix-none"}, "owner: there is no user 'phoenix-none' in CTID 921"),
        ({"dest": "{}/x", "group": "phoenix-none"}, "group: there is no group 'phoenix-none' in CTID 921"),
    ],
)
def test_what_is_in_the_way_is_said_in_check_mode_too(run, attach, tmp_path, options, words):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_folder").symlink_to(tmp_path)
    options = {name: value.format(tmp_path) for name, value in options.items()}
    for check in (True, False):
        result = run(check=check, content="x", **options)
        assert result["failed"]
        assert words.format(tmp_path) in result["msg"]
    # Nothing but looking.
    assert len(attach.calls) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "to_folder"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"content": "x", "dest": "x"}, "is not an absolute path"),
        ({"content": "x", "dest": "/x/"}, "is a directory; name the file"),
        ({"content": "x", "dest": "/x", "mode": 420}, "mode: 420 is a number"),
        ({"src": "/", "dest": "/x"}, "src: / on the node is a directory"),
        ({"src": "/none", "dest": "/x"}, "src: /none on the node can't be read: No such file"),
        ({"src": "/dev/null", "dest": "/x"}, "is a character device"),
        ({"content": "x", "dest": "/x", "vmid": 922}, "CTID 922 does not exist"),
        ({"dest": "/x"}, "one of the following is required"),
    ],
)
def test_what_can_not_be_is_said_before_anything(run, attach, options, words):
    assert words in run(**options)["msg"]
    assert attach.calls == []


def test_what_arrives_damaged_does_not_stay(run, attach, tmp_path, monkeypatch):
    (tmp_path / "dest").write_text("old")
    good = attach.run
    monkeypatch.setattr(
        inside.process,
        "run",
        lambda argv, timeout=None, stdin=(), **how: good(argv, timeout, stdin=[b"ne"] if stdin else (), **how),
    )
    message = run(content="new", dest=f"{tmp_path}/dest")["msg"]
    assert "can't be written, and what was there is untouched: 2 bytes arrived that are not the 3 bytes" in message
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("dest", "old")]


def test_leftovers_go_and_those_of_a_run_at_work_stay(run, tmp_path):
    (tmp_path / ".pct_push.999999999.abcdef").touch()
    (tmp_path / ".pct_push.1.abcdef").touch()
    run(**mine(content="x", dest=f"{tmp_path}/dest"))
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]
