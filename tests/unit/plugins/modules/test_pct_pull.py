# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_pull, whole, from a container that is this machine."""

from __future__ import annotations

import fcntl
import functools
import json
import os

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import inside
from ansible_collections.phoenix.hypervisor.plugins.modules import pct_pull

ME, MY_GROUP = str(os.getuid()), str(os.getgid())


@pytest.fixture
def run(run_main, attach):
    """A function that runs the module's main in a container that is this machine."""
    return functools.partial(run_main, pct_pull, vmid=921)


@pytest.fixture
def src(tmp_path):
    """A file inside; those of the node are in a folder of their own."""
    (tmp_path / "node").mkdir()
    (tmp_path / "src").write_text("ä\n")
    return tmp_path / "src"


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "node" / "$HOME b"


def test_a_new_file(run, src, dest, attach):
    options = {"src": str(src), "dest": str(dest)}
    shown = run(check=True, **options)
    assert (shown["changed"], dest.exists()) == (True, False)
    done = run(**options)
    assert shown["diff"] == done["diff"]
    assert done["diff"][0]["after"] == "ä\n"
    assert (done["size"], done["mode"], done["uid"]) == (3, "0600", int(ME))
    assert [(path.name, path.read_text()) for path in dest.parent.iterdir()] == [(dest.name, "ä\n")]
    assert len(attach.calls) == 3
    again = run(**options)
    assert (again["changed"], again["diff"], len(attach.calls)) == (False, [], 4)


def test_mode_alone_and_with_a_new_content(run, src, dest):
    options = {"src": str(src), "dest": str(dest)}
    run(**options)
    inode = dest.stat().st_ino
    shown = run(check=True, mode="0640", **options)
    assert (shown["changed"], dest.stat().st_mode & 0o7777) == (True, 0o600)
    done = run(mode="0640", group=MY_GROUP, **options)
    assert shown["diff"] == done["diff"]
    assert (dest.stat().st_ino, dest.stat().st_mode & 0o7777) == (inode, 0o640)
    src.write_text("new")
    assert run(**options)["mode"] == "0640"
    assert (dest.read_text(), dest.stat().st_mode & 0o7777) == ("new", 0o640)


def test_a_link_on_the_node_is_replaced(run, src, dest):
    other = dest.parent / "other"
    other.write_text("kept")
    dest.symlink_to(other)
    run(src=str(src), dest=str(dest))
    assert (dest.is_symlink(), dest.read_text(), other.read_text()) == (False, "ä\n", "kept")


def test_no_content_of_a_secret(run, src, dest):
    src.write_text("hunter2")
    assert "hunter2" not in json.dumps(run(src=str(src), dest=str(dest), _ansible_no_log=True))
    assert dest.read_text() == "hunter2"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"src": "{}/none"}, "src: there is no {}/none in CTID 921"),
        ({"src": "{}"}, "src: {} is a directory in CTID 921"),
        ({"src": "/dev/zero"}, "is a character device in CTID 921"),
        ({"src": "x"}, "src: 'x' is not an absolute path"),
        ({"dest": "{}/node"}, "dest: {}/node is a directory on the node"),
        ({"dest": "{}/none/x"}, "dest: the folder {}/none does not exist on the node"),
        ({"dest": "/dev/null"}, "dest: /dev/null is a character device on the node"),
        ({"mode": 644}, "mode: 644 is a number"),
        ({"vmid": 922}, "CTID 922 does not exist"),
    ],
)
def test_what_can_not_be_is_said(run, src, dest, tmp_path, options, words):
    options = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in options.items()}
    for check in (True, False):
        result = run(check=check, **{"src": str(src), "dest": str(dest), **options})
        assert result["failed"]
        assert words.format(tmp_path) in result["msg"]
    assert list((tmp_path / "node").iterdir()) == []


class TestWhileItChanges:
    """Something inside writes the file between looking and reading."""

    @pytest.fixture
    def meanwhile(self, attach, src, monkeypatch):
        """A list of contents, each written before one of the readings."""
        contents: list[str] = []

        def run(argv, timeout=None, **how):
            if "pct_pull" in argv and contents:
                src.write_text(contents.pop(0))
            return attach.run(argv, timeout, **how)

        monkeypatch.setattr(inside.process, "run", run)
        return contents

    def test_it_is_tried_again(self, run, src, dest, meanwhile):
        meanwhile += ["b", "much longer"]
        assert run(src=str(src), dest=str(dest))["size"] == len("much longer")
        assert dest.read_text() == "much longer"

    def test_a_log_that_grows_is_taken_as_it_was(self, run, src, dest, meanwhile):
        meanwhile += ["ä\nand more"]
        run(src=str(src), dest=str(dest))
        assert dest.read_text() == "ä\n"

    def test_it_is_not_tried_for_ever(self, run, src, dest, meanwhile):
        dest.write_text("old")
        meanwhile += ["1", "2", "3", "4"]
        message = run(src=str(src), dest=str(dest))["msg"]
        assert "changes while it is read, and did so 3 times" in message
        assert [(path.name, path.read_text()) for path in dest.parent.iterdir()] == [(dest.name, "old")]

    def test_it_goes(self, run, src, dest, attach, monkeypatch):
        def gone(argv, timeout=None, **how):
            if "pct_pull" in argv:
                src.unlink()
            return attach.run(argv, timeout, **how)

        monkeypatch.setattr(inside.process, "run", gone)
        assert f"CTID 921: {src} can't be read: " in run(src=str(src), dest=str(dest))["msg"]
        assert list(dest.parent.iterdir()) == []


def test_more_than_was_looked_at_is_not_taken(run, src, dest, attach, monkeypatch):
    """A container that lies about a size can't fill the node's disk."""

    def liar(argv, timeout=None, sink=None, **how):
        if "pct_pull" in argv:
            argv = ["lxc-attach", "--", "cat", "/dev/zero"]
        return attach.run(argv, timeout, sink=sink, **how)

    monkeypatch.setattr(inside.process, "run", liar)
    assert "changes while it is read" in run(src=str(src), dest=str(dest))["msg"]
    assert list(dest.parent.iterdir()) == []


def test_leftovers_go_and_those_of_a_run_at_work_stay(run, src, dest):
    (dest.parent / ".pct_pull.left").touch()
    with open(dest.parent / ".pct_pull.busy", "wb") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        run(src=str(src), dest=str(dest))
        assert {path.name for path in dest.parent.iterdir()} == {dest.name, ".pct_pull.busy"}
