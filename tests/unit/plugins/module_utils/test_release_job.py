# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import release_job
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_job import Job
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_plan import JobError, Refused

RELEASE = "tiny-000000000001"
HASHES = {name: letter * 64 for name, letter in (("a-1-py3-none-any.whl", "a"), ("vllm-1.0-py3-none-any.whl", "b"))}


@pytest.fixture
def job(tmp_path) -> Job:
    work = tmp_path / "releases/.work" / RELEASE
    work.mkdir(parents=True)
    candidate = {"release": RELEASE, "python": "3.11", "method": "source", "requirements": "", "vllm": "1.0"}
    content = {"id": "1", "candidate": candidate, "places": {}, "releases": str(tmp_path / "releases")}
    return Job({**content, "log": str(tmp_path / "log")}, work)


def progress(job: Job) -> dict:
    return json.loads((job.work / "progress.json").read_text())


def test_output_is_in_the_log_and_is_watched(job, tmp_path):
    seen = []
    said = job.run(["sh", "-c", "echo one; echo two >&2; printf '%s' $THREE"], {"THREE": "3"}, watch=seen.append)
    assert said == "one\ntwo\n3" and seen == ["one", "two", "3"] and said in (tmp_path / "log").read_text()


def test_a_command_that_fails_says_how_and_what_it_said_last(job):
    with pytest.raises(JobError, match=r"sh -c .* failed \(exit code 3\)") as error:
        job.run(["sh", "-c", "echo https://me:s3cret@h/x; echo No space left on device; exit 3"])
    assert error.value.tail == ["https://***@h/x", "No space left on device"] and "disk is full" in error.value.remedy
    with pytest.raises(JobError, match="killed by signal 9, often because"):
        job.run(["sh", "-c", "kill -9 $$"])
    with pytest.raises(JobError, match="can't be run: No such file"):
        job.run(["/nowhere/x"])


def test_progress(job):
    job.say("building vllm", "[1/2]")
    since = progress(job)["since"]
    job.say("building vllm", "[2/2]")
    assert progress(job)["detail"] == "[2/2]" and progress(job)["since"] == since
    assert (progress(job)["state"], progress(job)["release"], progress(job)["job"]) == ("running", RELEASE, "1")
    job.end("failed", JobError("It broke.", "torch", "Mend it.", ["last"]))
    said = progress(job)
    assert said["state"] == "failed"
    assert said["error"] == {"message": "It broke.", "piece": "torch", "remedy": "Mend it.", "tail": ["last"]}


def test_what_is_installed_is_locked_to_the_files_that_are_here(job):
    """A package whose sources were locked is installed as what was built of them."""
    entries = [("a==1", ["a", "c"]), ("flash==2", ["d"])]
    job.candidate["requirements"] = "".join(
        f"{name} {' '.join(f'--hash=sha256:{letter * 64}' for letter in letters)}\n" for name, letters in entries
    )
    job.manifest = {
        "files": {**HASHES, "flash-2-py3-none-any.whl": "e" * 64},
        "built": {"vllm-1.0-py3-none-any.whl": {}, "flash-2-py3-none-any.whl": {}},
    }
    lines = job.lock().replace(" \\\n    ", " ").splitlines()
    assert lines == [f"{name} --hash=sha256:{letter * 64}" for name, letter in
                     (("a==1", "a"), ("flash==2", "e"), ("vllm==1.0", "b"))]  # fmt: skip


def test_a_wheelhouse_is_whole_when_it_says_so_and_has_all_files(job):
    job.wheels.mkdir()
    for name in HASHES:
        (job.wheels / name).touch()
    assert not release_job.whole_wheelhouse(job.wheels, RELEASE)
    release_job.write_json(job.wheels / "manifest.json", {"release": RELEASE, "files": HASHES})
    assert release_job.whole_wheelhouse(job.wheels, RELEASE)
    assert not release_job.whole_wheelhouse(job.wheels, "another")
    (job.wheels / "a-1-py3-none-any.whl").unlink()
    assert not release_job.whole_wheelhouse(job.wheels, RELEASE)


def test_the_next_container_learns_what_is_refused_there_too(job):
    """A toolkit or a driver that this container lacks says nothing of the next one."""
    job.wheels.mkdir()
    reasons = {"tiny-a": {"piece": "vllm", "message": "It lies."}, "tiny-b": {"piece": "toolkit", "message": "None."}}
    job.job["refused"] = {**reasons, RELEASE: {"piece": "vllm", "message": "Earlier."}}
    job.manifest = {"files": {}, "built": {}}
    job.write_manifest()
    assert json.loads((job.wheels / "manifest.json").read_text())["refused"] == {"tiny-a": reasons["tiny-a"]}


@pytest.mark.parametrize("wanted", [True, False])
def test_what_python_compiled_is_part_of_the_wheelhouse(job, wanted):
    job.wheels.mkdir()
    cache = job.release / "lib/python3.11/site-packages/vllm/__pycache__"
    cache.mkdir(parents=True)
    (cache / "__init__.cpython-311.pyc").write_bytes(b"x" * 99)
    job.job["keep_wheels"] = wanted
    job.manifest = {"files": {}, "built": {}}
    job.write_manifest()
    job.keep_bytecode()
    assert list(json.loads((job.wheels / "manifest.json").read_text())["files"]) == ["bytecode.zip"] * wanted
    assert release_job.whole_wheelhouse(job.wheels, RELEASE)


def test_a_refused_candidate_is_written_down_and_its_folder_goes(job):
    job.release.mkdir()
    release_job.refuse(job, Refused("It lies.", "vllm", "Correct it."))
    said = json.loads((job.releases / "refused.json").read_text())[RELEASE]
    assert said["message"] == "It lies." and said["piece"] == "vllm" and not job.release.exists()


def test_secrets_of_a_job_are_for_root_only(tmp_path):
    release_job.write_json(tmp_path / "job.json", {"a": 1}, mode=0o600)
    assert (tmp_path / "job.json").stat().st_mode & 0o777 == 0o600
    assert release_job.read_json(tmp_path / "job.json") == {"a": 1}
    assert release_job.read_json(tmp_path / "job.json", list) is None
