# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entering a container: the command line of lxc-attach, and what it means when that fails."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import family, inside, inside_command, inside_file
from ansible_collections.phoenix.hypervisor.plugins.module_utils.process import Finished, Interrupted


class Node:
    """One container, and a lxc-attach that ends as it is told to."""

    def __init__(self) -> None:
        self.exists, self.running, self.template = True, True, False
        self.rc, self.stderr = 0, ""
        self.calls: list[tuple] = []
        self.stops = False

    def read(self, vmid: int) -> SimpleNamespace:
        values = {"template": "1"} if self.template else {}
        conf = SimpleNamespace(main=SimpleNamespace(values=values))
        return SimpleNamespace(exists=self.exists, running=self.running, conf=conf)

    def run(self, argv, timeout=None, **how) -> Finished:
        self.calls.append((argv, timeout, how))
        self.running = not self.stops
        return Finished(tuple(argv), self.rc, "", self.stderr)


@pytest.fixture
def node(monkeypatch) -> Node:
    it = Node()
    monkeypatch.setattr(inside.node, "read", it.read)
    monkeypatch.setattr(inside.process, "run", it.run)
    monkeypatch.setattr(inside.family, "guarded", lambda mark: contextlib.nullcontext())
    return it


def test_the_command_line(node):
    inside.run(921, ["a", "b c"], 7, variables={"TOKEN": "secret"})
    argv, timeout, how = node.calls[0]
    assert argv[:4] == ["lxc-attach", "-n", "921", "--clear-env"]
    assert argv[argv.index("--") :] == ["--", "a", "b c"]
    options = argv[4 : argv.index("--")]
    pairs = list(zip(options[::2], options[1::2]))
    assert ("--set-var", "HOME=/root") in pairs
    assert [value for option, value in pairs if option == "--keep-var"] == [family.MARK, "TOKEN"]
    assert "secret" not in " ".join(argv)
    assert timeout == 7
    assert how["environment"]["TOKEN"] == "secret"
    assert len(how["environment"][family.MARK]) == 32


def test_each_command_has_a_mark_of_its_own_and_no_limit_when_there_is_none(node):
    inside.run(921, ["a"])
    inside.run(921, ["a"])
    marks = {how["environment"][family.MARK] for _argv, _timeout, how in node.calls}
    assert len(marks) == 2
    assert node.calls[0][1] is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"exists": False, "running": False}, "does not exist on this node"),
        ({"running": False}, "pct start 921"),
        ({"running": False, "template": True}, "is a template"),
    ],
)
def test_a_container_that_can_not_be_entered(node, state, words):
    vars(node).update(state)
    with pytest.raises(inside.InsideError, match=words):
        inside.run(921, ["a"])
    assert node.calls == []


@pytest.mark.parametrize(
    ("rc", "stderr", "words"),
    [
        (
            1,
            "lxc-attach: 921: attach.c: 406 Connection refused - Failed to get init pid",
            "can't be entered: lxc-attach",
        ),
        (127, 'lxc-attach: 921: attach.c: No such file - Failed to exec "/bin/sh"', "has no /bin/sh"),
        (127, "lxc-attach is not installed here: is this a Proxmox VE node?", "CTID 921: lxc-attach is not installed"),
        (126, "lxc-attach can't be run: Argument list too long", "Argument list too long"),
    ],
)
def test_the_way_in_fails(node, rc, stderr, words):
    node.rc, node.stderr = rc, stderr
    with pytest.raises(inside.InsideError, match=words):
        inside.run(921, ["a"])


@pytest.mark.parametrize("stderr", ["", "lxc-attach: other: no", "sh: lxc-attach: not found"])
def test_the_command_itself_fails(node, stderr):
    node.rc, node.stderr = 127, stderr
    assert inside.run(921, ["a"]).rc == 127


def test_a_container_that_stops_meanwhile(node):
    node.rc, node.stderr, node.stops = 137, "some\nlast words\n", True
    with pytest.raises(inside.InsideError, match=r"CTID 921 stopped while .*\(exit code 137\)\. some\nlast words"):
        inside.run(921, ["a"])


def test_a_signal_before_the_process_is_known_ends_it_too(node, monkeypatch):
    ended = []

    def interrupted(*argv, **how):
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(inside.process, "run", interrupted)
    monkeypatch.setattr(inside.family, "end", ended.append)
    with pytest.raises(Interrupted):
        inside.run(921, ["a"])
    assert len(ended) == 1


class TestPlan:
    """A file as it is and as it should be."""

    OLD = inside_file.Found(mode=0o100640, size=3, uid=1, gid=2, sha256="a", owner=5, group=6)

    def test_what_is_not_declared_stays(self):
        wanted = inside_file.wanted(self.OLD, 3, "a", "", "", None)
        assert wanted == inside_file.Wanted(3, "a", 1, 2, 0o640)
        assert inside_file.same_content(self.OLD, wanted)
        assert inside_file.same_attributes(self.OLD, wanted)

    def test_what_is_declared_is_so(self):
        wanted = inside_file.wanted(self.OLD, 3, "b", "x", "y", "04755")
        assert wanted == inside_file.Wanted(3, "b", 5, 6, 0o4755)
        assert not inside_file.same_content(self.OLD, wanted)
        assert not inside_file.same_attributes(self.OLD, wanted)
        assert wanted.attributes() == ("5", "6", "4755")

    @pytest.mark.parametrize("mode", [0, 0o120777])
    def test_nothing_and_a_link_are_no_file_to_keep_anything_of(self, mode):
        found = inside_file.Found(mode=mode, uid=1, gid=1, sha256="")
        assert inside_file.wanted(found, 0, "", "", "", None) == inside_file.Wanted(0, "", 0, 0, 0o644)
        assert not inside_file.same_content(found, inside_file.Wanted(0, "", 0, 0, 0o644))


def test_what_the_look_prints():
    found = inside_file.parse(
        b"owner=unknown\ngroup=\nfolder=yes\nmode=81a4\nsize=4\nuid=1\ngid=2\ncontent\n\ncontent\n\xff"
    )
    assert (found.owner, found.group, found.folder, found.directory) == (None, None, True, False)
    assert (found.mode, found.uid, found.gid, found.content) == (0o100644, 1, 2, b"\ncontent\n\xff")
    assert inside_file.parse(b"owner=1\ngroup=0\n") == inside_file.Found(owner=1, group=0)


@pytest.mark.parametrize("mode", [None, "644", "0644", "1777", "04755"])
def test_good_modes(mode):
    assert inside_file.mode_problem(mode) == ""


@pytest.mark.parametrize("mode", [420, 644, "0o644", "64", "u+x", "8", "", "077777", True])
def test_bad_modes(mode):
    assert "'0644'" in inside_file.mode_problem(mode)


@pytest.mark.parametrize("path", ["/a", "/a b/-c", "/a\nb", "/..a"])
def test_good_paths(path):
    assert inside_file.path_problem("dest", path) == ""


@pytest.mark.parametrize("path", ["", "a", "~/a", "/", "/a/", "/a/.", "/a/..", "/a\0"])
def test_bad_paths(path):
    assert inside_file.path_problem("dest", path).startswith("dest: ")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"a-b": "s3cret"}, "'a-b' is no name"),
        ({"": "s3cret"}, "is no name"),
        ({"A": ["s3cret"]}, "A is a list, not a text"),
        ({"A": True}, "A is a bool"),
        ({"A": None}, "A is a NoneType"),
        ({"A": "s3cret\0"}, "NUL"),
        ({family.MARK: "s3cret"}, "choose another name"),
    ],
)
def test_variables_that_can_not_be(environment, words):
    problem = inside_command.environment_problem(environment)
    assert words in problem
    assert "s3cret" not in problem


def test_variables_that_can_be():
    assert inside_command.environment_problem({"A_1": "x\ny", "b": 1, "_": 1.5, "C": ""}) == ""
