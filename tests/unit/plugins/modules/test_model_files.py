# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module against a hub on this machine. In most tests the work is done in the test's own process."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import stat
import time
from collections import namedtuple
from pathlib import Path

import lab_modules
import model_hub
import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import download, model_fetch, model_store
from ansible_collections.phoenix.hypervisor.plugins.module_utils.model_plan import MANIFEST, ModelError
from ansible_collections.phoenix.hypervisor.plugins.modules import model_files
from model_hub import Model

NAME = "org/name"
BIG = random.Random(1).randbytes(5_000_000)
FILES = {"config.json": b"{}", "model.safetensors": BIG, "sub/vocab.txt": b"a\nb\n", "empty": b"", "README.md": b"one"}
SECRET = "hf_right"


@pytest.fixture
def hub(monkeypatch):
    """A hub with a model; nothing waits long for it."""
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(model_fetch, "PAUSES", (0.0, 0.0))
    with model_hub.serving() as fake:
        fake.models[NAME] = Model()
        fake.models[NAME].push(FILES)
        yield fake


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "models"


class Failed(Exception):
    """What a module tells when it fails."""


class Module:
    """As much of AnsibleModule as the task uses."""

    def __init__(self, params: dict, check_mode: bool) -> None:
        self.params, self.check_mode, self.warnings = params, check_mode, []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


DEFAULTS = {
    "repository": NAME, "revision": "main", "token": "", "source": None, "name": "", "include": [], "exclude": None,
    "keep": 2, "verify": False, "threads": 4, "wait": 5, "job": "",
}  # fmt: skip


@pytest.fixture
def call(hub, folder, monkeypatch):
    """A function that runs the module's task, the work in this process, and gives its result."""

    def start(task, plan) -> str:
        """As the process in the background does it, without one."""
        job = {"id": "x", "pid": 0, "text": "begins", "ended": False}
        try:
            job["result"] = task.act(plan, lambda text: task.place.write_job({**job, "text": text}))
        except ModelError as error:
            job["error"] = str(error)
        except OSError as error:
            job["error"] = task.place.problem(error)
        task.place.write_job({**job, "ended": True})
        return "x"

    monkeypatch.setattr(model_files.Task, "start", start)

    def run(check: bool = False, **options) -> dict:
        params = {**DEFAULTS, "endpoint": hub.endpoint, "folder": str(folder), **options}
        wrong = model_files.options_problem(params)
        if wrong:
            raise Failed(wrong)
        module = Module(params, check)
        task = model_files.Task(module)
        try:
            result = task.run()
        except ModelError as error:
            raise Failed(str(error)) from None
        except OSError as error:
            raise Failed(task.place.problem(error)) from None
        finally:
            task.place.leave()
        return {**result, "warnings": module.warnings}

    return run


def found(path: Path) -> dict[str, bytes]:
    """The files below a folder, without the record."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def tree(path: Path) -> dict[str, tuple]:
    """All that is below a folder, with what shows a change."""
    return {
        str(entry): (entry.lstat().st_mtime_ns, entry.lstat().st_mode, entry.lstat().st_ino)
        for entry in sorted(path.rglob("*"))
    }


def revisions(folder: Path) -> list[str]:
    return sorted(entry.name for entry in (folder / "org/.name").iterdir() if not entry.name.startswith("."))


class TestTheWay:
    def test_from_nothing_to_a_model(self, call, hub, folder):
        commit = hub.models[NAME].refs["main"]
        shown = call(check=True)
        assert not folder.exists()
        done = call()
        assert (done["changed"], done["steps"], done["diff"]) == (True, shown["steps"], shown["diff"])
        assert done["steps"] == [
            f"fetch {NAME} (main, {commit[:12]}) from {hub.endpoint}: 5 files, 4.8 MiB",
            f"point {folder}/{NAME} at {commit[:12]}",
        ]
        assert "fetch model.safetensors 4.8 MiB\n" in done["diff"]["after"]
        assert (done["revision"], done["model"], done["files"]) == (commit, f"{folder}/{NAME}", 5)
        assert done["fetched"] == done["size"] == sum(map(len, FILES.values()))
        assert found(folder / NAME) == FILES
        assert os.readlink(folder / NAME) == f".name/{commit}"
        assert sorted(os.listdir(folder / "org/.name")) == [".job.json", ".lock", commit]

    def test_a_second_run_changes_nothing(self, call, hub, folder):
        call()
        before, count = tree(folder), len(hub.requests)
        again = call()
        assert (again["changed"], again["steps"], again["fetched"]) == (False, [], 0)
        assert again["diff"]["before"] == again["diff"]["after"]
        assert tree(folder) == before
        asked = [path.partition("?")[0] for _server, _method, path in hub.requests[count:]]
        assert asked == [f"/api/models/{NAME}/revision/main"]

    def test_everybody_may_read_and_root_alone_may_write(self, call, folder):
        os.umask(0o077)
        call()
        for entry in [folder, *folder.rglob("*")]:
            there = entry.lstat()
            assert (there.st_uid, there.st_gid) == (0, 0)
            if not entry.is_symlink() and entry.name not in (".lock", ".job.json"):
                assert stat.S_IMODE(there.st_mode) == (0o755 if entry.is_dir() else 0o644), entry

    def test_owner_and_mode_converge(self, call, folder):
        call()
        os.chown(folder / NAME / "config.json", 100000, 100000)
        (folder / NAME / "sub").chmod(0o700)
        done = call()
        assert len(done["steps"]) == 1 and done["steps"][0].startswith("set owner and mode of 2 files")
        assert (folder / NAME / "config.json").stat().st_uid == 0
        assert stat.S_IMODE((folder / NAME / "sub").stat().st_mode) == 0o755
        assert call()["changed"] is False

    def test_a_commit_that_is_there_needs_no_network(self, call, hub):
        commit = hub.models[NAME].refs["main"]
        call(revision=commit)
        count = len(hub.requests)
        again = call(revision=commit)
        assert (again["changed"], again["revision"], hub.requests[count:]) == (False, commit, [])
        assert call(revision=commit, endpoint="http://127.0.0.1:1")["changed"] is False

    def test_a_renamed_model_is_found_with_its_token(self, call, hub):
        hub.models[NAME].gated = "yes"
        hub.renamed["old/name"] = NAME
        done = call(repository="old/name", token=SECRET, check=True)
        assert done["files"] == 5

    def test_a_mirror_below_a_path_is_asked_there(self, call, hub):
        with pytest.raises(Failed, match="has no model"):
            call(endpoint=f"{hub.endpoint}/hf/")
        assert hub.requests[0][2].startswith(f"/hf/api/models/{NAME}/revision/main")

    def test_names_that_a_url_must_not_take_as_they_are(self, call, hub, folder):
        files = {"a b#c?.txt": b"1", "ünï/%41.json": b"2"}
        hub.models[NAME].push(files, "feature/x")
        call(revision="feature/x")
        assert found(folder / NAME) == files


class TestRevisions:
    def test_a_branch_moves_on(self, call, hub, folder):
        one = call()["revision"]
        served = os.open(folder / NAME / "model.safetensors", os.O_RDONLY)
        inode = (folder / NAME / "model.safetensors").stat().st_ino
        two = hub.models[NAME].push({**FILES, "README.md": b"two", "new.json": b"[]"})
        hub.sent.clear()
        shown = call(check=True)
        done = call()
        assert done["steps"] == shown["steps"] and "3 are in an older revision" not in done["steps"][0]
        assert "4 are in an older revision" in done["steps"][0]
        assert f"point {folder}/{NAME} at {two[:12]}, in place of {one[:12]}" in done["steps"]
        # What didn't change isn't fetched again, and takes no room again.
        assert dict(hub.sent) == {"README.md": 3, "new.json": 2}
        assert (folder / NAME / "model.safetensors").stat().st_ino == inode
        assert (folder / NAME / "README.md").read_bytes() == b"two"
        assert (folder / "org/.name" / one / "README.md").read_bytes() == b"one"
        assert os.pread(served, 10, 0) == BIG[:10]
        os.close(served)
        back = call(revision=one, endpoint="http://127.0.0.1:1")
        assert (back["steps"], back["fetched"]) == ([f"point {folder}/{NAME} at {one[:12]}, in place of {two[:12]}"], 0)

    def test_old_ones_go(self, call, hub, folder):
        commits = []
        for number in range(4):
            hub.models[NAME].push({**FILES, "README.md": b"%d" % number})
            commits.append(call(keep=3)["revision"])
        assert revisions(folder) == sorted(commits[1:])
        done = call(keep=1)
        assert done["steps"] == [f"remove the revision {commit[:12]}" for commit in commits[1:3]]
        assert revisions(folder) == [commits[3]] and found(folder / NAME)["README.md"] == b"3"

    @pytest.mark.parametrize("mapped", [False, True])
    def test_one_that_a_process_has_open_stays(self, call, hub, folder, mapped):
        import mmap

        old = call()["revision"]
        with open(folder / NAME / "README.md", "rb") as file:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else None
            if mapped:
                file.close()
            hub.models[NAME].push({**FILES, "README.md": b"two"})
            new = call(keep=1)["revision"]
            assert revisions(folder) == sorted([old, new])
            assert call(keep=1)["changed"] is False
            if held:
                held.close()
        assert call(keep=1)["steps"] == [f"remove the revision {old[:12]}"]

    def test_other_patterns_are_another_folder(self, call, hub, folder):
        whole = call()["revision"]
        done = call(include=["*.json", "*.txt"])
        assert done["fetched"] == 0 and done["revision"].startswith(f"{whole}-")
        assert sorted(found(folder / NAME)) == ["config.json", "sub/vocab.txt"]
        assert sorted(found(folder / "org/.name" / whole)) == sorted(FILES)
        with pytest.raises(Failed, match="leave no file of it"):
            call(include=["*.gguf"])


class TestTrouble:
    def test_cut_connections(self, call, hub, folder):
        hub.cuts["model.safetensors"] = [2_000_000, 2_000_000]
        done = call()
        assert found(folder / NAME) == FILES
        assert hub.sent["model.safetensors"] == done["fetched"] - 9 == len(BIG)

    def test_a_hub_that_knows_no_ranges(self, call, hub, folder):
        hub.ignores_ranges = True
        hub.cuts["model.safetensors"] = [2_000_000]
        call()
        assert found(folder / NAME) == FILES

    def test_what_came_before_an_end_is_gone_on_with(self, call, hub, folder):
        hub.cuts["model.safetensors"] = [3_000_000, 0, 0, 0, 0, 0]
        with pytest.raises(Failed, match="can't be reached: the connection ended in the middle of the file"):
            call()
        assert not (folder / NAME).exists() and revisions(folder) == []
        hub.cuts.clear()
        hub.sent.clear()
        shown = call(check=True)
        assert "2.9 MiB of it came in an earlier run" in shown["steps"][0]
        done = call()
        assert found(folder / NAME) == FILES
        assert hub.sent["model.safetensors"] == done["fetched"] == len(BIG) - 3_000_000
        assert not (folder / "org/.name/.parts").exists()

    def test_wrong_bytes_once(self, call, hub, folder):
        hub.wrong["model.safetensors"] = [b"x" * len(BIG)]
        call()
        assert found(folder / NAME) == FILES

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_wrong_bytes_twice(self, call, hub, folder, name):
        hub.wrong[name] = [b"x" * len(FILES[name])] * 2
        with pytest.raises(Failed, match=rf"{name} came twice with another checksum \([0-9a-f]+\) than"):
            call()
        assert not (folder / NAME).exists()
        call()
        assert found(folder / NAME) == FILES

    def test_an_html_page_in_place_of_a_file(self, call, hub):
        hub.wrong["config.json"] = [b"<html>log in here</html>"] * 2
        with pytest.raises(Failed, match="what is between here and there changes it"):
            call()

    @pytest.mark.parametrize("code", [500, 503, 429])
    def test_a_server_that_is_ill(self, call, hub, folder, code):
        hub.failing.update({f"api {NAME}": [code], "config.json": [code, code], "cdn model.safetensors": [code]})
        call()
        assert found(folder / NAME) == FILES

    def test_a_signed_address_that_is_too_old(self, call, hub, folder):
        hub.failing["cdn model.safetensors"] = [403, 403]
        call()
        assert found(folder / NAME) == FILES

    def test_a_server_that_stays_ill(self, call, hub):
        hub.failing["cdn model.safetensors"] = [503] * 9
        with pytest.raises(Failed, match=r"can't be reached: HTTP 503.*models_endpoint") as raised:
            call()
        assert "Signature" not in str(raised.value)
        hub.failing[f"api {NAME}"] = [429] * 9
        with pytest.raises(Failed, match="wants fewer requests"):
            call()

    def test_no_network(self, call):
        with pytest.raises(Failed, match=r"127.0.0.1:1 can't be reached: Connection refused. Check the node's network"):
            call(endpoint="http://127.0.0.1:1")

    def test_a_certificate_that_nobody_trusts(self):
        from ansible_collections.phoenix.hypervisor.plugins.module_utils.model_hub import _remedy

        assert "SSL_CERT_FILE" in _remedy("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")

    def test_a_site_that_is_no_hub(self, call, hub):
        hub.told = lambda reply: {"hello": "world"}
        with pytest.raises(Failed, match="isn't the answer of a model hub; check the endpoint"):
            call()

    def test_a_name_that_leads_elsewhere(self, call, hub, folder, tmp_path):
        def told(reply):
            reply["siblings"][0]["rfilename"] = "../../../escaped"
            return reply

        hub.told = told
        with pytest.raises(Failed, match="leads out of the model's folder; nothing is fetched"):
            call()
        assert not list(tmp_path.rglob("escaped")) and hub.fetched() == []

    def test_a_file_that_is_listed_and_not_there(self, call, hub):
        def told(reply):
            reply["siblings"].append({**reply["siblings"][0], "rfilename": "ghost.json"})
            return reply

        hub.told = told
        with pytest.raises(Failed, match=r"lists ghost.json"):
            call()

    def test_a_full_disk(self, call, hub, folder, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(model_store.shutil, "disk_usage", lambda path: usage(9, 9, 70_000_000))
        with pytest.raises(Failed, match=r"4.8 MiB are to be fetched, and the disk of .* has 67 MiB free; make room"):
            call()
        assert hub.fetched() == []

    def test_a_disk_that_gets_full(self, call, hub, folder, monkeypatch):
        real = download.download

        def full(opened, part, digest, tell, size=0, pauses=None):
            if size == len(BIG):
                raise OSError(28, "No space left on device", str(part))
            return real(opened, part, digest, tell, size, pauses)

        monkeypatch.setattr(model_fetch.download, "download", full)
        with pytest.raises(Failed, match=r"is full; make room, or name another folder. What was fetched is kept"):
            call()
        assert not (folder / NAME).exists()


class TestWhoMay:
    def test_a_gated_model_without_a_token(self, call, hub):
        hub.models[NAME].gated = "yes"
        says = rf"{NAME} is gated: accept its license on {hub.endpoint}/{NAME} .*models_token"
        with pytest.raises(Failed, match=says):
            call()

    def test_a_gated_model_with_a_token(self, call, hub, folder):
        hub.models[NAME].gated = "yes"
        done = call(token=SECRET)
        assert found(folder / NAME) == FILES
        # Neither the place that big files come from nor anything that stays has seen it.
        assert {server for server, _login in hub.logins} == {"hub"}
        assert SECRET not in json.dumps(done) + "".join(path for _s, _m, path in hub.requests)
        assert not [file for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]

    def test_an_account_without_access(self, call, hub):
        hub.models[NAME].gated = "no access"
        with pytest.raises(Failed, match="the account of the token has no access yet: accept its license"):
            call(token=SECRET)

    def test_a_token_that_is_none(self, call):
        with pytest.raises(Failed, match=r"doesn't accept the token \(Invalid credentials") as raised:
            call(token="hf_wrong")
        assert "hf_wrong" not in str(raised.value)

    @pytest.mark.parametrize("token", ["", SECRET])
    def test_a_model_that_there_isn_t(self, call, token):
        with pytest.raises(Failed, match=rf"has no model org/nam, .*Did you mean {NAME}\?"):
            call(repository="org/nam", token=token)
        with pytest.raises(Failed, match=r"has no model zzz/zzz, .*Check its name"):
            call(repository="zzz/zzz", token=token)

    def test_a_revision_that_there_isn_t(self, call, hub):
        hub.models[NAME].push(FILES, "v1.0")
        with pytest.raises(Failed, match=r"has no revision v1.1 on .*; it has main, v1.0. Did you mean v1.0\?"):
            call(revision="v1.1")
        with pytest.raises(Failed, match="has no revision"):
            call(revision="0" * 40)


class TestWhatStays:
    def test_a_branch_whose_hub_is_gone(self, call, folder):
        call()
        before = tree(folder)
        done = call(endpoint="http://127.0.0.1:1")
        assert done["changed"] is False and tree(folder) == before
        assert len(done["warnings"]) == 1 and "stays at" in done["warnings"][0]

    def test_not_what_was_asked_for(self, call):
        call()
        for options in ({"revision": "v2"}, {"revision": "0" * 40}, {"repository": "org/other", "name": NAME}):
            with pytest.raises(Failed, match="can't be reached"):
                call(endpoint="http://127.0.0.1:1", **options)

    def test_not_half_a_model(self, call, folder):
        call()
        (folder / NAME / "config.json").unlink()
        with pytest.raises(Failed, match="can't be reached"):
            call(endpoint="http://127.0.0.1:1")

    def test_a_folder_of_somebody_s_own(self, call, folder):
        (folder / "org/mine").mkdir(parents=True)
        (folder / "org/mine/config.json").write_text("{}")
        before = tree(folder)
        done = call(repository="org/mine")
        assert "wasn't made here, and stays as it is" in done["warnings"][0]
        assert done["changed"] is False
        assert tree(folder) == before


class TestRepair:
    def test_a_file_that_is_missing(self, call, hub, folder):
        call()
        (folder / NAME / "sub/vocab.txt").unlink()
        (folder / NAME / "sub").rmdir()
        hub.sent.clear()
        done = call()
        assert done["steps"][0].startswith(f"replace what is missing or damaged in {NAME}")
        assert found(folder / NAME) == FILES and dict(hub.sent) == {"sub/vocab.txt": 4}

    def test_damage_is_found_when_it_is_looked_for(self, call, hub, folder):
        call()
        damaged = folder / NAME / "model.safetensors"
        damaged.write_bytes(b"x" * len(BIG))
        assert call()["changed"] is False
        shown = call(verify=True, check=True)
        assert "1 file, 4.8 MiB" in shown["steps"][0]
        done = call(verify=True)
        assert done["steps"] == [f"replace what is damaged in {shown['steps'][0].split(' in ')[1].split(', from')[0]}: "
                                 "model.safetensors"]  # fmt: skip
        assert done["changed"] is True and found(folder / NAME) == FILES
        again = call(verify=True)
        assert (again["changed"], again["fetched"]) == (False, 0)

    def test_damage_isn_t_passed_on(self, call, hub, folder):
        old = call()["revision"]
        (folder / NAME / "model.safetensors").write_bytes(b"x" * len(BIG))
        hub.models[NAME].push({**FILES, "README.md": b"two"})
        call()
        assert found(folder / NAME) == {**FILES, "README.md": b"two"}
        assert (folder / "org/.name" / old / "model.safetensors").read_bytes() == b"x" * len(BIG)

    def test_leftovers_of_killed_runs_go(self, call, hub, folder):
        call()
        for name in (".incoming-x", ".gone-y", ".parts"):
            (folder / "org/.name" / name / "sub").mkdir(parents=True)
        hub.models[NAME].push({**FILES, "README.md": b"two"})
        call()
        assert sorted(each for each in os.listdir(folder / "org/.name") if each[0] == ".") == [".job.json", ".lock"]

    def test_a_record_that_is_broken(self, call, folder):
        call()
        (folder / NAME / MANIFEST).write_text("{")
        done = call()
        assert done["changed"] and found(folder / NAME) == FILES


class TestPlaces:
    def test_a_plain_folder_is_made_use_of(self, call, hub, folder):
        there = folder / NAME
        (there / "sub").mkdir(parents=True)
        (there / "model.safetensors").write_bytes(BIG)
        (there / "config.json").write_bytes(b"[]")
        (there / "sub/vocab.txt").symlink_to("/etc/hostname")
        (there / "notes.txt").write_text("mine")
        os.chown(there / "model.safetensors", 101000, 101000)
        shown = call(check=True)
        assert "which is kept as .before-<date>" in shown["steps"][1]
        call()
        assert found(folder / NAME) == FILES and hub.sent["model.safetensors"] == 0
        assert (folder / NAME / "model.safetensors").stat().st_uid == 0
        (before,) = (folder / "org/.name").glob(".before-*")
        assert (before / "notes.txt").read_text() == "mine"
        assert (before / "model.safetensors").stat().st_uid == 101000
        assert call()["changed"] is False

    @pytest.mark.parametrize("target", ["/etc", "../elsewhere", ".name/.parts"])
    def test_a_link_of_somebody_else_s(self, call, folder, target):
        (folder / "org").mkdir(parents=True)
        (folder / NAME).symlink_to(target)
        with pytest.raises(Failed, match=r"is a link to .*, not made here; remove it"):
            call()

    def test_a_file_in_its_place(self, call, folder):
        (folder / "org").mkdir(parents=True)
        (folder / NAME).write_text("x")
        with pytest.raises(Failed, match="is a file, and should be a model"):
            call()

    @pytest.mark.parametrize("name", ["org", "org/.name"])
    def test_a_link_on_the_way(self, call, folder, tmp_path, name):
        (tmp_path / "elsewhere").mkdir()
        (folder / name).parent.mkdir(parents=True)
        (folder / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Failed, match=rf"{folder}/{name} is no folder, so no model can be below it"):
            call()
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_a_hidden_folder_that_others_can_write_to(self, call, folder):
        (folder / "org/.name").mkdir(parents=True)
        os.chown(folder / "org/.name", 101000, 101000)
        with pytest.raises(Failed, match=r"/org/\.name is writable for others than root"):
            call()

    def test_the_folder_may_be_a_link_of_the_administrator_s(self, call, folder, tmp_path):
        (tmp_path / "disk").mkdir()
        folder.symlink_to(tmp_path / "disk")
        call()
        assert found(folder / NAME) == FILES

    def test_a_folder_on_a_disk_that_isn_t_mounted(self, call, tmp_path):
        with pytest.raises(Failed, match=f"there is no {tmp_path}/tank on the node; mount what has it"):
            call(folder=f"{tmp_path}/tank/models")
        assert not (tmp_path / "tank").exists()

    def test_somebody_s_folder_stays_somebody_s(self, call, folder):
        folder.mkdir(mode=0o775)
        os.chown(folder, 101000, 101000)
        call()
        assert (folder.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (101000, 0o755)
        assert (folder / "org").stat().st_uid == 0

    def test_a_folder_that_containers_can_t_enter_is_told_of(self, folder):
        folder.mkdir(mode=0o750)
        assert f"chmod o+x {folder}" in model_store.Place(str(folder), NAME).world_problem()


class TestFromAFolder:
    @pytest.fixture
    def source(self, tmp_path) -> Path:
        for name, content in FILES.items():
            (tmp_path / "nas" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "nas" / name).write_bytes(content)
        (tmp_path / "nas/.git").mkdir()
        (tmp_path / "nas/.git/HEAD").write_text("x")
        return tmp_path / "nas"

    @pytest.fixture
    def copy(self, call, source):
        return lambda **options: call(**{"repository": "", "name": NAME, "source": str(source), **options})

    def test_from_there_to_here(self, copy, folder, source, hub):
        shown = copy(check=True)
        done = copy()
        assert done["steps"] == shown["steps"]
        assert done["steps"][0] == f"fetch {NAME} from {source}: 5 files, 4.8 MiB"
        assert found(folder / NAME) == FILES and hub.requests == []
        record = json.loads((folder / NAME / MANIFEST).read_text())
        digests = {file["path"]: file["digest"] for file in record["files"]}
        assert digests == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
        assert copy()["changed"] is False

    def test_a_change_there_is_a_new_revision(self, copy, folder, source):
        copy()
        inode = (folder / NAME / "model.safetensors").stat().st_ino
        (source / "README.md").write_text("other")
        done = copy()
        assert "4 are in an older revision" in done["steps"][0] and done["fetched"] == 5
        assert (folder / NAME / "README.md").read_text() == "other"
        assert (folder / NAME / "model.safetensors").stat().st_ino == inode

    @pytest.mark.parametrize("gone", [shutil.rmtree, lambda path: [shutil.rmtree(path), path.mkdir()]])
    def test_one_that_isn_t_mounted(self, copy, folder, source, gone):
        copy()
        gone(source)
        done = copy()
        assert done["changed"] is False and "stays at folder-" in done["warnings"][0]
        with pytest.raises(Failed, match="source: "):
            copy(name="org/other")

    def test_checksums_of_its_own(self, copy, folder, source):
        (source / "SHA256SUMS").write_text(f"{hashlib.sha256(BIG).hexdigest()}  model.safetensors\n")
        copy()
        assert found(folder / NAME) == FILES
        (source / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
        (source / "README.md").write_text("other")
        with pytest.raises(Failed, match=r"model.safetensors came twice with another checksum"):
            copy()

    def test_a_copy_of_a_revision(self, call, copy, folder, tmp_path):
        revision = call(repository=NAME)["revision"]
        shutil.copytree(folder / "org/.name" / revision, tmp_path / "copy")
        copy(source=str(tmp_path / "copy"), name="org/two")
        assert found(folder / "org/two") == FILES
        (tmp_path / "copy/model.safetensors").write_bytes(b"x" * len(BIG))
        with pytest.raises(Failed, match="came twice with another checksum"):
            copy(source=str(tmp_path / "copy"), name="org/three")
        (tmp_path / "copy/model.safetensors").write_bytes(b"x")
        with pytest.raises(Failed, match="the copy isn't whole"):
            copy(source=str(tmp_path / "copy"), name="org/three")

    def test_a_snapshot_in_hugging_face_s_cache(self, copy, folder, tmp_path):
        base = tmp_path / "cache/models--org--name"
        snapshot = base / "snapshots/0123"
        for name, content in FILES.items():
            digest = hashlib.sha256(content).hexdigest() if content is BIG else model_hub.git_blob(content)
            (base / "blobs").mkdir(parents=True, exist_ok=True)
            (base / "blobs" / digest).write_bytes(content)
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(base / "blobs" / digest)
        copy(source=str(snapshot))
        assert found(folder / NAME) == FILES
        (base / "blobs" / hashlib.sha256(BIG).hexdigest()).write_bytes(b"x" * len(BIG))
        with pytest.raises(Failed, match="came twice with another checksum"):
            copy(source=str(snapshot), name="org/two")

    @pytest.mark.parametrize(("name", "target"), [("secret", "/etc/shadow"), ("dir", "sub"), ("up", "../other")])
    def test_a_link_that_leads_elsewhere(self, copy, source, name, target):
        (source / name).symlink_to(target)
        with pytest.raises(Failed, match=r"is a link (that leads out of the folder|to a folder)|No such file"):
            copy()

    def test_what_is_no_file(self, copy, source):
        os.mkfifo(source / "pipe")
        with pytest.raises(Failed, match="pipe is neither a file nor a folder"):
            copy()

    def test_one_that_changes_meanwhile(self, copy, source, monkeypatch):
        monkeypatch.setattr(model_fetch.Folder, "is_same", lambda self, file: file.path != "README.md")
        with pytest.raises(Failed, match=r"README.md changes at its source while it is read"):
            copy()

    def test_its_own_place(self, copy, folder):
        with pytest.raises(Failed, match="is where the model goes to"):
            copy(source=f"{folder}/{NAME}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repository": "name"}, "organisation/name"),
        ({"repository": "", "source": "/x"}, "give name"),
        ({"name": "../x"}, "no path below"),
        ({"revision": ""}, "revision"),
        ({"revision": "a b"}, "revision"),
        ({"folder": "models"}, "no absolute path"),
        ({"endpoint": "huggingface.co"}, "no http or https URL"),
        ({"endpoint": "ftp://x"}, "no http or https URL"),
        ({"endpoint": "https://me:pw@x"}, "without a login"),
        ({"endpoint": "https://x:99999"}, "no http or https URL"),
        ({"keep": 0}, "keep"),
        ({"threads": 0}, "threads"),
    ],
)
def test_options_that_can_t_be(call, options, says):
    with pytest.raises(Failed, match=says):
        call(**options)


class TestProcesses:
    """The module as it is, with its process in the background."""

    @pytest.fixture
    def options(self, hub, folder) -> dict:
        return {"repository": NAME, "endpoint": hub.endpoint, "folder": str(folder), "wait": 30}

    def test_it_ends_when_the_model_is_there(self, options, folder):
        done = lab_modules.call("model_files", **options)
        assert (done["changed"], done["running"]) == (True, False) and found(folder / NAME) == FILES
        assert lab_modules.call("model_files", **options)["changed"] is False
        text = lab_modules.failure("model_files", **{**options, "repository": "org/other"})
        assert "has no model org/other" in text

    def test_long_work_is_shown_killed_and_gone_on_with(self, options, folder, hub):
        hub.models[NAME].gated = "yes"
        options.update(token=SECRET)
        hub.slow = 0.1
        begun = lab_modules.call("model_files", **{**options, "wait": 2})
        assert begun["running"] and not (folder / NAME).exists()
        assert " of 5 MiB, since " in begun["progress"]
        for place in ("cmdline", "environ"):
            assert SECRET.encode() not in Path(f"/proc/{begun['pid']}/{place}").read_bytes()
        # Another run waits for it.
        other = lab_modules.call("model_files", **{**options, "wait": 0})
        assert other["running"] and other["progress"].startswith(f"{NAME}: another run is at it: ")
        os.kill(begun["pid"], signal.SIGKILL)
        text = lab_modules.failure("model_files", **{**options, **begun["again"]})
        assert "was killed" in text and "run again" in text
        assert not (folder / NAME).exists()
        sent, hub.slow = hub.sent["model.safetensors"], 0
        done = lab_modules.call("model_files", **options)
        assert found(folder / NAME) == FILES
        # No more than what was on the wire when it was killed came twice.
        assert done["fetched"] < len(BIG) - 1_000_000 <= sent + done["fetched"]

    def test_two_at_once(self, options, folder, hub):
        hub.slow = 0.005
        both = [lab_modules.start_module("model_files", False, options) for _run in range(2)]
        results = [lab_modules.result_of(process) for process in both]
        assert sorted(result["changed"] for result in results) == [False, True]
        assert found(folder / NAME) == FILES and hub.sent["model.safetensors"] == len(BIG)

    def test_the_next_call_gets_the_result(self, options, folder, hub):
        hub.slow = 0.02
        begun = lab_modules.call("model_files", **{**options, "wait": 0})
        assert begun["running"] and begun["changed"] is False
        end = time.monotonic() + 30
        while begun["running"] and time.monotonic() < end:
            begun = lab_modules.call("model_files", **{**options, **begun["again"], "wait": 1})
        assert begun["changed"] and len(begun["steps"]) == 2
        assert found(folder / NAME) == FILES
