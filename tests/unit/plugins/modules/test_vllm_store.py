# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_store and vllm_store_bundle, whole, in a container that is this machine."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import tarfile
import time
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import inside, release_job, store
from ansible_collections.phoenix.hypervisor.plugins.modules import vllm_store, vllm_store_bundle

RELEASE, OTHER = "cpu-0123456789ab", "cpu-0123456789ac"
FILES = {"a-1.0-py3-none-any.whl": b"a" * 300_000, "b-1.0-py3-none-any.whl": b"", "python/cpython.tar.gz": b"python"}


class Place:
    """A store, and a container's folder of releases."""

    def __init__(self, folder: Path) -> None:
        self.root, self.work = folder / "store" / "wheels", folder / "work"

    def wheels(self, release: str = RELEASE) -> Path:
        return self.work / release / "wheels"

    def make(self, release: str = RELEASE, files: dict | None = None, **manifest: object) -> Path:
        """A whole wheelhouse in the container."""
        files = FILES if files is None else files
        wheels = self.wheels(release)
        for name, content in files.items():
            (wheels / name).parent.mkdir(parents=True, exist_ok=True)
            (wheels / name).write_bytes(content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        (wheels / "manifest.json").write_text(json.dumps({"release": release, "files": digests, **manifest}))
        return wheels

    def claim(self, release: str = RELEASE, vmid: int = 922, silent: float = 0.0) -> None:
        """Another container's claim."""
        path = self.root / "claims" / f"{release}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"vmid": vmid, "since": time.time() - silent, "wheels": str(self.wheels(release))}))
        os.utime(path, (time.time() - silent,) * 2)

    def tree(self) -> list[str]:
        """All that is in the store."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*"))


def content_of(folder: Path) -> dict[str, bytes]:
    names = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def run(run_main, attach, place, monkeypatch):
    """A function that runs vllm_store's main in a container that is this machine."""
    monkeypatch.setattr(inside.node, "check", lambda: None)

    def run(state: str, release: str = RELEASE, vmid: int = 921, **options) -> dict:
        options = {"wheels": str(place.wheels(release)), "store": str(place.root), **options}
        return run_main(vllm_store, state=state, vmid=vmid, release=release, **options)

    return run


@pytest.fixture
def bundle(run_main, place, tmp_path):
    return functools.partial(run_main, vllm_store_bundle, store=str(place.root), path=str(tmp_path / "bundle.tar"))


@pytest.fixture
def kept(run, place) -> Place:
    """A store that has the wheels."""
    place.make()
    assert run("kept")["changed"] is True
    return place


def both(run, *words, **options) -> dict:
    """A run; what its check mode said before is what it did, but for the seconds that went by between the two."""

    def told(result: dict) -> dict:
        steps = [re.sub(r"\bfor \d+ s\b", "for some time", step) for step in result["steps"]]
        return {**{key: value for key, value in result.items() if key not in ("invocation", "sent")}, "steps": steps}

    shown, done = run(*words, check=True, **options), run(*words, **options)
    assert told(shown) == told(done)
    return done


class TestTheWay:
    def test_from_one_container_to_the_next(self, run, place):
        first = both(run, "given")
        assert (first["changed"], first["given"], first["claimed"], first["kept"]) == (True, False, True, False)
        again = run("given")
        assert (again["changed"], again["claimed"], again["diff"]["after"]) == (False, True, first["diff"]["after"])
        place.make()
        (place.work / RELEASE / "src").mkdir()
        done = both(run, "kept")
        assert (done["changed"], done["kept"], done["claimed"], done["sent"]) == (True, True, False, 300_006)
        assert not (place.work / RELEASE).exists()
        assert content_of(place.root / RELEASE) == FILES
        assert run("kept")["changed"] is False
        second = both(run, "given")
        assert (second["changed"], second["given"], second["claimed"], second["sent"]) == (True, True, False, 300_006)
        assert content_of(place.wheels()) == FILES
        assert [path.name for path in (place.work / RELEASE).iterdir()] == ["wheels"]
        again = both(run, "given")
        assert (again["changed"], again["given"], again["sent"]) == (False, True, 0)

    def test_what_a_job_leaves_is_taken(self, run, place):
        """Two pieces of the collection agree on what a wheelhouse is."""
        wheels = place.make()
        (wheels / "manifest.json").unlink()
        candidate = {"release": RELEASE, "python": "3.11"}
        job = {"id": "1", "candidate": candidate, "releases": place.work, "log": "/dev/null"}
        it = release_job.Job(job, wheels.parent)
        listed = {path.name: release_job.release_fetch.sha256_of(path) for path in wheels.glob("*.whl")}
        it.manifest = {"files": listed, "built": {}}
        it.write_manifest()
        assert release_job.whole_wheelhouse(wheels, RELEASE)
        run("kept")
        run("given")
        assert content_of(wheels) == FILES
        assert release_job.whole_wheelhouse(wheels, RELEASE)

    def test_what_was_refused_before_is_left_out(self, run, place):
        """The wheels of the next candidate come at once, with the reason."""
        why = {"piece": "vllm", "message": "It lies.", "remedy": "Mend it.", "at": "2026-01-01T00:00:00Z"}
        place.make(OTHER, refused={RELEASE: why})
        run("kept", OTHER)
        done = both(run, "given", candidates=[RELEASE, OTHER])
        assert (done["release"], done["given"], done["claimed"]) == (OTHER, True, False)
        assert done["refused"] == {RELEASE: why}
        assert done["steps"][0] == f"{RELEASE} is left out, it was refused before: It lies."
        assert content_of(place.wheels(OTHER)) == FILES and not place.wheels(RELEASE).exists()
        # Who wants to try it again names no candidates.
        done = run("given")
        assert (done["release"], done["claimed"], done["refused"]) == (RELEASE, True, {})

    def test_what_other_releases_have_as_well_is_given_to_who_makes_one(self, run, kept):
        """And comes back from the store when its wheels are kept."""
        same = {name: content for name, content in FILES.items() if name.startswith("a-")}
        locked = [hashlib.sha256(content).hexdigest() for content in (*same.values(), b"c")]
        done = both(run, "given", OTHER, locked=locked)
        assert (done["changed"], done["given"], done["claimed"], done["sent"]) == (True, False, True, 300_000)
        assert done["steps"][1] == "give CTID 921 what other releases in the store have of it: 1 files"
        assert content_of(kept.wheels(OTHER)) == same and not (kept.wheels(OTHER) / "manifest.json").exists()
        again = both(run, "given", OTHER, locked=locked)
        assert (again["changed"], again["claimed"], again["sent"]) == (False, True, 0)
        kept.make(OTHER, {**same, "c-1.0-py3-none-any.whl": b"c"})
        assert run("kept", OTHER)["sent"] == 1

    def test_a_damaged_file_of_another_release_is_not_given(self, run, kept):
        name = "a-1.0-py3-none-any.whl"
        (kept.root / RELEASE / name).write_bytes(b"other")
        locked = [hashlib.sha256(content).hexdigest() for content in FILES.values()]
        assert run("given", OTHER, locked=locked)["sent"] == len(b"python")
        assert name not in content_of(kept.wheels(OTHER))
        assert [path.name.startswith("a-1.0") for path in (kept.root / "damaged").iterdir()] == [True]

    def test_check_mode_makes_nothing(self, run, place):
        run("given", check=True)
        place.make()
        run("kept", check=True)
        assert not place.root.exists()

    def test_what_did_not_run_in_check_mode_keeps_nothing(self, run, place):
        assert run("kept", check=True)["changed"] is False

    def test_everybody_may_read_root_alone_may_write(self, kept):
        os.umask(0o077)
        modes = {str(path.relative_to(kept.root)): path.stat().st_mode & 0o777 for path in kept.root.rglob("*")}
        assert {mode for name, mode in modes.items() if (kept.root / name).is_dir()} == {0o755}
        assert {mode for name, mode in modes.items() if (kept.root / name).is_file()} == {0o644}

    def test_a_part_inside_is_replaced(self, run, kept):
        kept.wheels().mkdir(parents=True)
        (kept.wheels() / "half.whl").write_text("x")
        assert run("given")["given"] is True
        assert content_of(kept.wheels()) == FILES

    def test_leftovers_of_a_killed_run_go(self, run, kept):
        for name in (".vllm_store.999999.abc", ".vllm_store.999999.abc.old"):
            (kept.work / RELEASE / name).mkdir(parents=True)
        leftover = kept.root / ".incoming.abc"
        leftover.mkdir()
        run("given")
        assert [path.name for path in (kept.work / RELEASE).iterdir()] == ["wheels"]
        kept.make(OTHER)
        run("kept", OTHER)
        assert not leftover.exists()

    def test_a_file_of_two_releases_is_there_once(self, run, kept):
        kept.make(OTHER, {**FILES, "c-1.0-py3-none-any.whl": b"c"})
        assert run("kept", OTHER)["sent"] == 1
        name = "a-1.0-py3-none-any.whl"
        assert (kept.root / RELEASE / name).samefile(kept.root / OTHER / name)

    def test_the_wheels_that_were_used_least_lately_go(self, run, kept):
        os.utime(kept.root / RELEASE / "manifest.json", (1, 1))
        kept.make(OTHER, {"c-1.0-py3-none-any.whl": b"c"})
        done = both(run, "kept", OTHER, keep=1)
        assert done["removed"] == [RELEASE]
        assert [name for name in kept.tree() if len(name) < 70] == sorted(
            [OTHER, f"{OTHER}/c-1.0-py3-none-any.whl", f"{OTHER}/manifest.json", ".lock", "claims", "files"]
        )
        assert len(list((kept.root / "files").iterdir())) == 1

    def test_what_is_claimed_or_read_stays(self, run, kept):
        os.utime(kept.root / RELEASE / "manifest.json", (1, 1))
        kept.claim(RELEASE)
        kept.make(OTHER)
        assert run("kept", OTHER, keep=1)["removed"] == []
        (kept.root / "claims" / f"{RELEASE}.json").unlink()
        kept.make("x-000000000000")
        with store.Store(str(kept.root)).reading(RELEASE):
            assert run("kept", "x-000000000000", keep=1)["removed"] == [OTHER]

    def test_the_first_wheels_of_a_release_stay(self, run, kept):
        kept.make(files={"a-1.0-py3-none-any.whl": b"another build"})
        done = run("kept")
        assert (done["changed"], done["sent"]) == (True, 0)
        assert content_of(kept.root / RELEASE) == FILES

    def test_released(self, run, place):
        assert run("released")["changed"] is False
        run("given")
        done = both(run, "released")
        assert (done["changed"], done["claimed"]) == (True, False)
        assert run("released")["changed"] is False


class TestWaiting:
    def test_for_another(self, run, place):
        place.claim(vmid=922, silent=30)
        done = run("given")
        assert (done["running"], done["claimed"], done["changed"], done["builder"]) == (True, False, False, 922)
        assert "which CTID 922 makes since " in done["progress"]
        shown = run("given", check=True)
        assert (shown["running"], shown["progress"]) == (False, done["progress"])

    def test_a_dead_claim_is_taken_over(self, run, place):
        place.claim(vmid=922, silent=61)
        done = both(run, "given")
        assert (done["claimed"], done["changed"], done["builder"]) == (True, True, 921)
        assert "instead of CTID 922" in done["steps"][0]
        assert run("given")["changed"] is False

    def test_a_claim_of_nobody(self, run, place):
        place.claim()
        path = place.root / "claims" / f"{RELEASE}.json"
        path.write_text("")
        assert run("given")["running"] is True
        os.utime(path, (1, 1))
        assert run("given")["claimed"] is True

    def test_released_is_only_what_is_its_own(self, run, place):
        place.claim(vmid=922)
        assert run("released")["changed"] is False
        assert (place.root / "claims" / f"{RELEASE}.json").exists()

    def test_the_wheels_come_while_it_waits(self, run, kept, monkeypatch):
        away = kept.root / "away"
        (kept.root / RELEASE).rename(away)
        kept.claim()
        monkeypatch.setattr(vllm_store.time, "sleep", lambda seconds: away.rename(kept.root / RELEASE))
        done = run("given", wait=5)
        assert (done["given"], done["running"], done["progress"]) == (True, False, "")

    def test_of_two_that_find_it_dead_one_gets_it(self, place):
        place.claim(vmid=922, silent=61)
        it = store.Store(str(place.root))
        dead = it.claim(RELEASE)
        assert it.take_claim(RELEASE, vllm_store.Claim(921, 1.0, "/x"), dead) is True
        assert it.take_claim(RELEASE, vllm_store.Claim(923, 1.0, "/x"), dead) is False
        assert it.take_claim(RELEASE, vllm_store.Claim(923, 1.0, "/x"), None) is False
        assert it.claim(RELEASE).vmid == 921


class TestDamage:
    def test_on_the_node(self, run, kept):
        name = "a-1.0-py3-none-any.whl"
        with (kept.root / RELEASE / name).open("r+b") as file:
            file.write(b"b")
        done = run("given")
        assert (done["given"], done["claimed"], done["kept"], done["changed"]) == (False, True, False, True)
        assert done["warnings"] == [done["damaged"]]
        assert f"{name} of {RELEASE} in the store has another SHA-256 now" in done["damaged"]
        (aside,) = (kept.root / "damaged").iterdir()
        assert str(aside) in done["damaged"]
        assert not kept.wheels().exists()
        kept.make()
        # The other files come from the store, the damaged one doesn't.
        assert run("kept")["sent"] == 300_000
        assert content_of(kept.root / RELEASE) == FILES
        assert run("given")["given"] is True

    def test_of_damaged_files_the_last_ones_are_kept(self, kept):
        it = store.Store(str(kept.root))
        places = []
        for number in range(5):
            path = kept.root / f"bad{number}"
            path.write_text("x")
            places.append(it._keep_damaged(str(path), f"bad{number}"))
            os.utime(places[-1], (number, number))
        assert sorted(path.name for path in (kept.root / "damaged").iterdir()) == ["bad2", "bad3", "bad4"]

    def test_a_file_that_is_missing_is_no_wheelhouse(self, run, kept):
        (kept.root / RELEASE / "python/cpython.tar.gz").unlink()
        done = run("given")
        assert (done["claimed"], done["damaged"]) == (True, "")
        kept.make()
        run("kept")
        assert content_of(kept.root / RELEASE) == FILES

    def test_of_a_file_that_another_release_shares(self, run, kept):
        with (kept.root / RELEASE / "python/cpython.tar.gz").open("r+b") as file:
            file.write(b"P")
        kept.make(OTHER)
        assert run("kept", OTHER)["sent"] == 6
        assert content_of(kept.root / OTHER) == FILES

    def test_inside(self, run, place):
        wheels = place.make()
        (wheels / "python/cpython.tar.gz").write_bytes(b"Python")
        done = run("kept")
        assert done["failed"]
        assert f"CTID 921: {wheels}: python/cpython.tar.gz is not what its manifest.json says" in done["msg"]
        assert sorted(name for name in place.tree() if "." in name) == [".lock"]
        assert wheels.exists()

    def test_a_file_that_is_none(self, run, place):
        wheels = place.make()
        (wheels / "python/cpython.tar.gz").unlink()
        assert "can't be looked at" in run("kept")["msg"]
        os.mkfifo(wheels / "python/cpython.tar.gz")
        assert run("kept")["msg"].endswith("cpython.tar.gz is no regular file, and the manifest names it")
        (wheels / "python/cpython.tar.gz").unlink()
        (wheels / "python/cpython.tar.gz").symlink_to("/etc/hostname")
        assert run("kept")["msg"].endswith("cpython.tar.gz is no regular file, and the manifest names it")

    def test_a_manifest_that_leads_elsewhere(self, run, place, tmp_path):
        wheels = place.make()
        (wheels / "manifest.json").write_text(json.dumps({"release": RELEASE, "files": {"../../x": "0" * 64}}))
        assert "names '../../x', which is no file of a wheelhouse" in run("kept")["msg"]
        (wheels / "manifest.json").unlink()
        assert "has no manifest.json, so it is not complete" in run("kept")["msg"]


class TestRoom:
    def test_none_on_the_node(self, run, place, monkeypatch):
        place.make()

        def full(*args) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(store.os, "fsync", full)
        message = run("kept")["msg"]
        assert message.startswith(f"store: the disk of {place.root} on the node is full;")
        assert message.endswith("The store is as it was")
        assert sorted(name for name in place.tree() if "." in name) == [".lock"]

    def test_less_than_needed_on_the_node(self, run, place, monkeypatch):
        place.make()
        there = type("There", (), {"f_bavail": 1, "f_frsize": 4096})
        monkeypatch.setattr(store.os, "statvfs", lambda path: there)
        message = run("kept")["msg"]
        assert f"the disk of {place.root} on the node has 1 MiB left, and the wheels need 1 MiB" in message
        assert not (place.root / RELEASE).exists()

    def test_none_inside(self, run, kept, monkeypatch):
        look = vllm_store.store_inside.look

        def small(*args):
            return vllm_store.replace(look(*args), free=1000)

        monkeypatch.setattr(vllm_store.store_inside, "look", small)
        message = run("given")["msg"]
        assert message.startswith("CTID 921: its disk has no room for the wheels, 1 MiB under ")
        assert not kept.wheels().exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"release": "cpu"}, "release: 'cpu' is no release"),
        ({"wheels": "/etc"}, "wheels: '/etc' is not the folder of this release's wheels"),
        ({"store": "/"}, "store: '/' is no folder for a store"),
        ({"store": "/var/../x"}, "is no folder for a store"),
        ({"keep": 0}, "keep: 0 is too few"),
    ],
)
def test_options_that_can_not_be(run_main, attach, options, words):
    good = {"state": "given", "vmid": 921, "release": RELEASE}
    assert words in run_main(vllm_store, **{**good, **options})["msg"]


class TestBundle:
    def test_to_another_node(self, bundle, kept, tmp_path):
        done = both(lambda **o: bundle(state="exported", release="cpu", **o))
        assert (done["changed"], done["release"], done["files"], done["size"]) == (True, RELEASE, 3, 300_006)
        first = (tmp_path / "bundle.tar").read_bytes()
        assert both(lambda **o: bundle(state="exported", release=RELEASE, **o))["changed"] is False
        there = str(tmp_path / "other" / "wheels")
        taken = both(lambda **o: bundle(state="imported", store=there, **o))
        assert (taken["changed"], taken["release"]) == (True, RELEASE)
        assert content_of(Path(there) / RELEASE) == FILES
        assert both(lambda **o: bundle(state="imported", store=there, **o))["changed"] is False
        # From there it is the same, byte by byte.
        bundle(state="exported", release="cpu", store=there, path=str(tmp_path / "second.tar"))
        assert (tmp_path / "second.tar").read_bytes() == first
        assert (tmp_path / "bundle.tar").stat().st_mode & 0o777 == 0o644

    def test_a_damaged_bundle_is_written_again(self, bundle, kept, tmp_path):
        bundle(state="exported", release="cpu")
        whole = (tmp_path / "bundle.tar").read_bytes()
        (tmp_path / "bundle.tar").write_bytes(whole.replace(b"python\0", b"Python\0"))
        assert bundle(state="exported", release="cpu")["changed"] is True
        assert (tmp_path / "bundle.tar").read_bytes() == whole

    def test_a_damaged_store_is_not_exported(self, bundle, kept, tmp_path):
        (kept.root / RELEASE / "python/cpython.tar.gz").write_bytes(b"Python")
        message = bundle(state="exported", release="cpu")["msg"]
        assert f"python/cpython.tar.gz of {RELEASE} in the store has another SHA-256" in message
        assert [path.name for path in tmp_path.iterdir() if "bundle" in path.name] == []

    def test_what_there_is_not(self, bundle, kept):
        message = bundle(state="exported", release="gpu")["msg"]
        assert f"has no whole wheels of 'gpu'; it has {RELEASE}." in message

    def test_damage_on_the_way(self, bundle, kept, tmp_path):
        bundle(state="exported", release="cpu")
        path, there = tmp_path / "bundle.tar", tmp_path / "other" / "wheels"
        whole = path.read_bytes()
        for broken in (whole.replace(b"aaaa", b"aaab", 1), whole.replace(b"python\0", b"Python\0")):
            path.write_bytes(broken)
            for check in (True, False):
                done = bundle(state="imported", store=str(there), check=check)
                assert "is not what its manifest.json says" in done["msg"]
        assert [path.name for path in there.iterdir() if path.name == RELEASE] == []

    @pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9])
    def test_a_part_of_one(self, bundle, kept, tmp_path, part):
        bundle(state="exported", release="cpu")
        path = tmp_path / "bundle.tar"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
        done = bundle(state="imported", store=str(tmp_path / "other" / "wheels"))
        assert done["failed"]
        assert "copy it again" in done["msg"] or "no bundle of wheels" in done["msg"]
        assert not (tmp_path / "other" / "wheels" / RELEASE).exists()

    @pytest.mark.parametrize(
        ("name", "kind"),
        [(f"{RELEASE}/../x.whl", tarfile.REGTYPE), ("/etc/x", tarfile.REGTYPE), (f"{RELEASE}/a.whl", tarfile.SYMTYPE),
         (f"{RELEASE}/c.whl", tarfile.REGTYPE), (f"{OTHER}/a.whl", tarfile.REGTYPE),
         (f"{RELEASE}/a.whl", tarfile.DIRTYPE)],
    )  # fmt: skip
    def test_names_that_lead_elsewhere(self, bundle, tmp_path, name, kind):
        manifest = json.dumps({"release": RELEASE, "files": {"a.whl": hashlib.sha256(b"a").hexdigest()}}).encode()
        with tarfile.open(tmp_path / "bundle.tar", "w") as archive:
            first = (f"{RELEASE}/manifest.json", manifest, tarfile.REGTYPE)
            for each, content, its_kind in (first, (name, b"a", kind)):
                member = tarfile.TarInfo(each)
                member.size, member.type, member.linkname = len(content), its_kind, "/etc/passwd"
                archive.addfile(member, io.BytesIO(content))
        message = bundle(state="imported")["msg"]
        assert f"has {name!r}, which its manifest.json doesn't name (once)" in message

    @pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 20_000])
    def test_what_is_none(self, bundle, tmp_path, content):
        (tmp_path / "bundle.tar").write_bytes(content)
        assert "no bundle of wheels" in bundle(state="imported")["msg"]

    def test_none(self, bundle, tmp_path):
        assert "there is no " in bundle(state="imported")["msg"]
        message = bundle(state="exported", release="cpu", path=str(tmp_path / "x" / "y"))["msg"]
        assert "does not exist on the node; create it first" in message
