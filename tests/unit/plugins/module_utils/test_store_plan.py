# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the store of wheels decides, from values to values."""

from __future__ import annotations

import json

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import store_inside, store_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.store_plan import (
    Builder,
    Claim,
    Cutter,
    Manifest,
    Seen,
    StoreError,
    is_alive,
    newest_of,
    plan_given,
    to_remove,
)
from hypothesis import given
from hypothesis import strategies as st

RELEASE = "cpu-0123456789ab"
DIGEST = "0" * 64
NOW = 1_000_000.0
WHOLE = Manifest(RELEASE, {"a.whl": DIGEST}, b"{}")


def content(files: object, release: object = RELEASE) -> bytes:
    return json.dumps({"release": release, "files": files, "built": {}, "python": "3.11"}).encode()


class TestManifest:
    @pytest.mark.parametrize(
        "name",
        ["a-1.0+cu128-py3-none-any.whl", "a-1!2.0-py3-none-any.whl", "python/cpython-3.11.14%2B2026.tar.gz", "A_b.whl"],
    )
    def test_names_of_files(self, name):
        assert store_plan.manifest(content({name: DIGEST}), RELEASE, "x").names == [name]

    @pytest.mark.parametrize(
        "name",
        ["../a.whl", "/etc/passwd", "a/b.whl", "python/../a", "python/", "..", ".", "", "-rf", ".hidden", "a\nb", "a b",
         "manifest.json", "a\0b", "x" * 256, "python/python/a", "a\n"],
    )  # fmt: skip
    def test_names_that_lead_elsewhere(self, name):
        with pytest.raises(StoreError, match=r"names .*, which is no file of a wheelhouse"):
            store_plan.manifest(content({"a.whl": DIGEST, name: DIGEST}), RELEASE, "x")

    @pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "0" * 63 + "G", "0" * 64 + "\n"])
    def test_what_is_no_digest(self, digest):
        with pytest.raises(StoreError, match=r"names 'a\.whl', which is no file"):
            store_plan.manifest(content({"a.whl": digest}), RELEASE, "x")

    @pytest.mark.parametrize(
        "text",
        [b"", b"{", b"[]", b"null", b'{"release": "x"}', content([]), content(None), content({"a.whl": 1}), b"\xff",
         b"[" * 100_000, content("a")],
    )  # fmt: skip
    def test_what_is_none(self, text):
        with pytest.raises(StoreError, match=r"^CTID 1: its manifest\.json is none"):
            store_plan.manifest(text, RELEASE, "CTID 1")

    def test_another_release(self):
        with pytest.raises(StoreError, match=r"is that of 'x', not of cpu-0123456789ab"):
            store_plan.manifest(content({"a.whl": DIGEST}, "x"), RELEASE, "CTID 1")

    def test_no_files(self):
        with pytest.raises(StoreError, match=r"names no files"):
            store_plan.manifest(content({}), RELEASE, "CTID 1")


@pytest.mark.parametrize(
    ("release", "good"),
    [(RELEASE, True), ("vllm-0.10.2-cu128-source-0123456789ab", True), ("cpu", False), ("../x-0123456789ab", False),
     (".x-0123456789ab", False), ("x-0123456789AB", False), ("x-0123456789ab\n", False), ("files", False)],
)  # fmt: skip
def test_names_of_releases(release, good):
    assert (store_plan.release_problem(release) == "") is good


@pytest.mark.parametrize(
    ("wheels", "good"),
    [(f"/opt/r/.work/{RELEASE}/wheels", True), (f"opt/{RELEASE}/wheels", False), (f"/opt/../{RELEASE}/wheels", False),
     (f"/opt//{RELEASE}/wheels", False), (f"/opt/{RELEASE}", False), (f"/opt/x-{RELEASE}/wheels", False),
     ("/wheels", False), (f"/opt/{RELEASE}/wheels/", False)],
)  # fmt: skip
def test_the_folder_that_is_removed_later(wheels, good):
    assert (store_plan.wheels_problem(wheels, RELEASE) == "") is good


WHEEL, SOURCE, LAST = "v-00000000000a", "v-00000000000b", "v-00000000000c"
WHY = {"piece": "vllm", "message": "It lies."}


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ({}, None),
        # What was wanted is there.
        ({WHEEL: [], SOURCE: [WHEEL]}, None),
        ({SOURCE: [WHEEL]}, SOURCE),
        # Somebody chose it, for other reasons.
        ({SOURCE: []}, None),
        ({LAST: [WHEEL]}, None),
        ({LAST: [WHEEL, SOURCE]}, LAST),
        # The best of those that hold.
        ({SOURCE: [WHEEL], LAST: [WHEEL, SOURCE]}, SOURCE),
        ({SOURCE: [], LAST: [WHEEL, SOURCE]}, LAST),
    ],
)
def test_what_is_given_instead(kept, found):
    wheelhouses = {name: Manifest(name, {}, b"", dict.fromkeys(refused, WHY)) for name, refused in kept.items()}
    given_instead = store_plan.instead(WHEEL, [WHEEL, SOURCE, LAST], wheelhouses.get)
    assert (given_instead and given_instead.release) == found
    assert store_plan.instead(WHEEL, [], wheelhouses.get) is None


@pytest.mark.parametrize("refused", [None, [], "x", {WHEEL: "a text"}, {WHEEL: None}])
def test_refusals_that_can_not_be_read_are_none(refused):
    text = json.dumps({"release": RELEASE, "files": {"a.whl": DIGEST}, "refused": refused}).encode()
    assert store_plan.manifest(text, RELEASE, "here").refused == {}


class TestPlanGiven:
    mine = Claim(921, NOW - 300, "", NOW - 300)
    other = Claim(922, NOW - 300, "", NOW - 300)
    working = Builder(runs=True, unit=True, progress={"state": "running"})

    @pytest.mark.parametrize(
        ("seen", "action"),
        [
            (Seen(), "claim"),
            (Seen(kept=WHOLE), "give"),
            (Seen(kept=WHOLE, claim=other, builder=working), "give"),
            (Seen(inside=WHOLE), "there"),
            (Seen(inside=WHOLE, kept=WHOLE, claim=other), "there"),
            # What works on it inside has that folder open.
            (Seen(kept=WHOLE, busy=True), "claim"),
            (Seen(claim=mine), "own"),
            (Seen(claim=other, builder=working), "wait"),
            (Seen(claim=other, builder=working, busy=True), "busy"),
            (Seen(claim=other), "take over"),
        ],
    )
    def test_actions(self, seen, action):
        assert plan_given(seen, 921, RELEASE, NOW).action == action

    @pytest.mark.parametrize(
        ("builder", "age", "action"),
        [
            (Builder(runs=True), 30, "postpone"),
            # What was said last says nothing of what goes on.
            (Builder(runs=True, age=5), 300, "postpone"),
            (working, 300, "wait"),
            (Builder(runs=True, packages=True), 300, "wait"),
            (Builder(runs=True), 300, "take over"),
        ],
    )
    def test_a_container_of_the_same_play(self, builder, age, action):
        claim = Claim(922, NOW - 300, "", NOW - age)
        assert plan_given(Seen(claim=claim, builder=builder), 921, RELEASE, NOW, [921, 922]).action == action
        others = plan_given(Seen(claim=claim, builder=builder), 921, RELEASE, NOW, [921, 923]).action
        assert others == ("wait" if action == "postpone" else action)

    def test_who_was_silent(self):
        step = plan_given(Seen(claim=self.other), 921, RELEASE, NOW)
        assert "instead of CTID 922, of which nothing was heard for 300 s" in step.text


class TestLife:
    old, new = Claim(922, NOW - 300, "", NOW - 61), Claim(922, NOW - 300, "", NOW - 59)

    @pytest.mark.parametrize(
        ("claim", "builder", "alive"),
        [
            (new, Builder(), True),
            (old, Builder(), False),
            (old, Builder(runs=True), False),
            (old, Builder(runs=True, unit=True), True),
            (old, Builder(runs=True, unit=True, progress={"state": "running"}), True),
            # The unit works on another release by now.
            (old, Builder(runs=True, unit=True, progress={"state": "failed"}, age=61), False),
            (old, Builder(runs=True, progress={"state": "done"}, age=59), True),
            (old, Builder(runs=True, progress={"state": "running"}, age=61), False),
            (old, Builder(runs=True, packages=True), True),
            (old, Builder(runs=False, unit=True, packages=True, age=1), False),
        ],
    )
    def test_signs(self, claim, builder, alive):
        assert is_alive(claim, builder, NOW) is alive

    @pytest.mark.parametrize(
        ("builder", "text"),
        [
            (Builder(progress={"text": "building vLLM", "detail": "[12/345]"}), ": building vLLM: [12/345]"),
            (Builder(progress={"text": "fetching", "detail": ""}), ": fetching"),
            (Builder(packages=True), ": it installs packages of its distribution"),
            (Builder(progress={"text": None}), ": it has not said yet what it does"),
        ],
    )
    def test_what_it_does(self, builder, text):
        said = store_plan.waiting(self.new, builder, RELEASE)
        assert said.startswith(f"waits for the wheels of {RELEASE}, which CTID 922 makes since ")
        assert said.endswith(text)

    @pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"vmid": "x"}', b"\xff", b'{"vmid": 1, "since": null}'])
    def test_a_claim_that_can_not_be_read_is_nobodys(self, text):
        found = store_plan.claim(text, NOW)
        assert (found.vmid, found.heard) == (0, NOW)
        assert not is_alive(found, Builder(), NOW + 61)

    def test_a_claim(self):
        assert store_plan.claim(self.old.text().encode(), self.old.heard) == self.old


USED = {"a-000000000001": 1.0, "a-000000000002": 2.0, "b-000000000003": 3.0}


def test_what_other_releases_have_of_a_lock():
    one, two = ({"a.whl": DIGEST, "b.whl": "b" * 64}, {"c.whl": "c" * 64, "a.whl": DIGEST})
    found = [store_plan.Manifest(RELEASE, files, b"") for files in (one, two)]
    assert store_plan.known([DIGEST, "c" * 64, "d" * 64], found) == {"a.whl": DIGEST, "c.whl": "c" * 64}
    assert store_plan.known([], found) == {}


class TestWhatGoes:
    @pytest.mark.parametrize(
        ("keep", "spared", "gone"),
        [(3, (), []), (2, (), ["a-000000000001"]), (2, ("a-000000000001",), []),
         (1, ("a-000000000002",), ["a-000000000001"])],
    )  # fmt: skip
    def test_the_ones_that_were_used_least_lately(self, keep, spared, gone):
        assert to_remove(USED, keep, spared) == gone

    @pytest.mark.parametrize(
        ("name", "found"), [("a", "a-000000000002"), ("a-000000000001", "a-000000000001"), ("c", "")]
    )
    def test_by_the_name_of_a_stack(self, name, found):
        assert newest_of(name, USED) == found


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_a_stream_is_cut_into_its_files(files, chunks):
    got: dict[str, list] = {}
    done: list[str] = []

    def begin(name: str):
        got[name] = []
        return lambda piece: got[name].append(bytes(piece))

    cutter = Cutter(((f"f{i}", len(file)) for i, file in enumerate(files)), begin, done.append)
    stream, sizes = b"".join(files), iter(chunks)
    while stream:
        size = next(sizes, 1000)
        cutter.feed(stream[:size])
        stream = stream[size:]
    assert cutter.is_done
    assert [b"".join(got[name]) for name in done] == files
    with pytest.raises(StoreError, match="1 bytes more"):
        cutter.feed(b"x")


def test_what_the_look_prints():
    output = (
        b'unit=yes\nchanged=999990\nprogress={"state": "running", "text": "a=b"}\nwheels=yes\nfree=4\n'
        b'content\n{"x":\n1}'
    )
    found = store_inside.parse(output, NOW)
    assert (found.manifest, found.wheels, found.free, found.busy) == (b'{"x":\n1}', True, 4096, True)
    assert found.builder == Builder(True, True, False, {"state": "running", "text": "a=b"}, 10.0)
    nothing = store_inside.parse(b"free=\nprogress=[]\nchanged=\n", NOW)
    assert nothing == store_inside.Found(Builder(runs=True))
