# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import model_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.model_plan import File, ModelError, Revision

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = "a" * 64
BLOB = "b" * 40


def reply(*entries: dict, sha: str = COMMIT) -> dict:
    return {"id": "org/name", "sha": sha, "siblings": list(entries)}


SMALL = {"rfilename": "config.json", "size": 2, "blobId": BLOB}
BIG = {
    "rfilename": "model.safetensors", "size": 134, "blobId": BLOB,
    "lfs": {"sha256": SHA256, "size": 5000, "pointerSize": 134},
}  # fmt: skip


def test_the_files_of_a_hub():
    commit, files = model_plan.hub_files(reply(BIG, SMALL), "h")
    assert commit == COMMIT
    assert files == [File("config.json", 2, "git", BLOB), File("model.safetensors", 5000, "sha256", SHA256)]


def test_git_s_digest_of_a_file():
    """As `git hash-object` says it."""
    hashed = File("x", 6, "git", "").hasher()
    hashed.update(b"hello\n")
    assert hashed.hexdigest() == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert File("x", 6, "sha256", "").hasher().hexdigest() == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    "said",
    [None, [], "x", {}, {"sha": COMMIT}, {"sha": "main", "siblings": []}, {"sha": None, "siblings": []},
     {"sha": COMMIT, "siblings": ["x"]}, {"sha": COMMIT.upper(), "siblings": []}],
)  # fmt: skip
def test_an_answer_of_something_else(said):
    with pytest.raises(ModelError, match="isn't the answer of a model hub"):
        model_plan.hub_files(said, "h")


@pytest.mark.parametrize(
    "entry",
    [{**SMALL, "blobId": None}, {**SMALL, "blobId": "x" * 40}, {**SMALL, "size": None}, {**SMALL, "size": -1},
     {**SMALL, "size": True}, {"rfilename": "a"}, {**BIG, "lfs": {"sha256": "short", "size": 1}}],
)  # fmt: skip
def test_a_file_that_could_not_be_checked(entry):
    with pytest.raises(ModelError, match="no checksum or no size"):
        model_plan.hub_files(reply(entry), "h")


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./x", "a/.", "a/", "..", "a\\b", "a\nb", "a\0b", None, 7,
     "x" * 300, "a/" * 600 + "b", model_plan.MANIFEST, f"{model_plan.MANIFEST}/x"],
)  # fmt: skip
def test_a_path_that_leads_elsewhere(path):
    assert model_plan.path_problem(path)
    with pytest.raises(ModelError, match="nothing is fetched"):
        model_plan.hub_files(reply({**SMALL, "rfilename": path}), "h")


@pytest.mark.parametrize("path", ["a", "a/b/c.json", ".gitattributes", "..a", "a..b/c", "with space", "ünï", "a:b"])
def test_a_path_of_a_model(path):
    assert model_plan.path_problem(path) == ""


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("x/a", "x/a/b/c")])
def test_two_files_at_one_place(paths):
    with pytest.raises(ModelError, match="twice"):
        model_plan.hub_files(reply(*({**SMALL, "rfilename": path} for path in paths)), "h")


@pytest.mark.parametrize("name", ["org/name", "Qwen/Qwen2.5-7B-Instruct", "a/b_c", "01-ai/Yi"])
def test_repositories(name):
    assert model_plan.repository_problem(name) == ""


@pytest.mark.parametrize(
    "name", ["", "name", "a/b/c", "/a", "a/", "../x", "a/..", "a/b..c", "a b/c", "a/b?x", "é/b", "-a/b"]
)
def test_no_repositories(name):
    assert model_plan.repository_problem(name)


@pytest.mark.parametrize("name", ["", "/a", "a/", "../a", "a/../b", ".a/b", "a/.b", "a//b"])
def test_no_names_below_a_folder(name):
    assert model_plan.name_problem(name)


def test_a_folder_of_a_revision():
    assert model_plan.folder_name(COMMIT, [], None) == COMMIT
    others = {
        model_plan.folder_name(COMMIT, *patterns)
        for patterns in ([["a"], None], [[], ["a"]], [[], []], [["a"], []], [["a", "b"], None], [["b", "a"], None])
    }
    assert len(others) == 5 and all(name.startswith(f"{COMMIT}-") for name in others)


def files(*paths: str) -> list[File]:
    return [File(path, 1, "git", BLOB) for path in paths]


def paths(*arguments) -> list[str]:
    return [file.path for file in model_plan.selected(*arguments)]


DUPLICATES = (
    "original/consolidated.00.pth", "original/params.json", "pytorch_model.bin", "pytorch_model-00001-of-2.bin",
    "pytorch_model.bin.index.json", "onnx/model.onnx", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "m.gguf",
)  # fmt: skip


class TestSelected:
    @pytest.mark.parametrize(
        "weights", ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    )
    def test_other_forms_of_the_same_weights(self, weights):
        there = files(weights, "config.json", "consolidated.safetensors", "custom.bin", "LICENSE", *DUPLICATES)
        assert paths(there, [], None) == [weights, "config.json", "consolidated.safetensors", "custom.bin", "LICENSE"]

    def test_weights_that_are_the_only_ones(self):
        there = files("config.json", "adapter.safetensors", "sub/model.safetensors", *DUPLICATES)
        assert paths(there, [], None) == [file.path for file in there]

    def test_patterns_of_one_s_own(self):
        there = files("model.safetensors", "config.json", "a/config.json", "m.gguf")
        assert paths(there, [], []) == [file.path for file in there]
        assert paths(there, [], ["*.json"]) == ["model.safetensors", "m.gguf"]
        assert paths(there, ["*.gguf", "config.json"], None) == ["config.json", "m.gguf"]
        assert paths(there, ["*.json"], ["a/*"]) == ["config.json"]
        assert paths(there, ["Config.json"], None) == []


def test_digests_of_a_folder_s_files_are_remembered():
    known = Revision("r", {}, (File("a", 1, "sha256", SHA256, 7), File("b", 1, "sha256", SHA256, 7)))
    now = [File("a", 1, mtime=7), File("b", 1, mtime=8), File("c", 1, mtime=7), File("d", 1, "git", BLOB, 7)]
    assert [file.digest for file in model_plan.with_known_digests(now, [known])] == [SHA256, "", "", BLOB]


def test_the_revision_of_a_folder():
    one = [File("a", 1, mtime=7), File("b", 2, mtime=7)]
    name = model_plan.folder_revision_name(one)
    assert name.startswith("folder-") and name == model_plan.folder_revision_name(one[::-1])
    assert model_plan.folder_revision_name([File("a", 1, "sha256", SHA256, 7), one[1]]) == name
    for other in ([one[0]], [one[0], File("b", 3, mtime=7)], [one[0], File("b", 2, mtime=8)]):
        assert model_plan.folder_revision_name(other) != name


def test_checksums():
    text = f"{SHA256}  a.json\n{'B' * 64} *./sub/b c.bin\n# no\n{BLOB}  sha1\n"
    assert model_plan.checksums(text) == {"a.json": SHA256, "sub/b c.bin": "b" * 64}


def test_a_record_says_what_it_was_told():
    both = (File("a", 1, "git", BLOB), File("b/ü", 2, "sha256", SHA256, 7))
    revision = Revision("r", {"repository": "org/name"}, both)
    assert model_plan.parse_manifest(model_plan.manifest(revision)) == revision
    assert (revision.size, revision.same_source({"repository": "org/name"})) == (3, True)
    assert not revision.same_source({"repository": "org/name", "source": "/x"})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"name": "r", "origin": {}, "files": [{"path": "../x", "size": 1}]}',
     '{"name": "r", "origin": {}, "files": [{"path": "x", "size": "1"}]}',
     '{"name": "r", "origin": {}, "files": [{"path": "x", "size": 1, "algorithm": "git", "digest": "zz"}]}',
     '{"name": "r", "origin": {}, "files": [{"path": "x", "size": 1, "algorithm": "md5", "digest": "00"}]}',
     '{"name": "r", "origin": [], "files": []}', '{"name": "r", "origin": {}, "files": [{"where": "x"}]}'],
)  # fmt: skip
def test_no_record(text):
    with pytest.raises(ModelError):
        model_plan.parse_manifest(text)


@pytest.mark.parametrize(
    ("keep", "gone"), [(1, ["a", "b", "c"]), (2, ["a", "b"]), (3, ["a"]), (4, []), (9, []), (0, ["a", "b", "c"])]
)
def test_what_goes(keep, gone):
    assert model_plan.to_prune({"live": 0.0, "c": 3.0, "a": 1.0, "b": 2.0}, "live", keep) == gone


def test_the_nearest_names():
    assert model_plan.nearest("qwen/qwen2-7b-instruct", ["Qwen/Qwen2.5-7B-Instruct", "meta/other"]) == [
        "Qwen/Qwen2.5-7B-Instruct"
    ]
    assert model_plan.nearest("zzz", ["main"]) == []
