# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import nvidia_driver as driver
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_driver import (
    AUTO,
    File,
    NvidiaError,
    Seen,
    Source,
    Wanted,
)
from hypothesis import given
from hypothesis import strategies as st

V = "580.95.05"
SHA = "ab" * 32
RUN = "https://download.nvidia.com/XFree86/Linux-x86_64/580.95.05/NVIDIA-Linux-x86_64-580.95.05.run"
REPO = "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/"
FULL = Source("auto", RUN, SHA, REPO)
CLOSED = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
)
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.64.03  Release Build  (dvs-builder@U22-I3)  Tue Jul\n"
    "GCC version:  gcc version 14.2.0 (Debian 14.2.0-19)\n"
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (CLOSED, V),
        (OPEN, "575.64.03"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256  Thu\n", "470.256"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  1000.1.2\n", "1000.1.2"),
        ("", ""),
        ("GCC version:  gcc version 580.95.05\n", ""),
        ("NVRM version: something else 12.2\n", ""),
        ("x" * 100, ""),
    ],
)
def test_the_kernels_version(text, version):
    assert driver.kernel_version(text) == version


@given(st.text())
def test_any_text_is_read(text):
    version = driver.kernel_version(text)
    assert version == "" or driver.is_version(version)


@pytest.mark.parametrize(
    ("declared", "told"),
    [("", False), (V, False), ("580", False), ("580.95", False), ("58", True), ("580.9", True), ("575.64.03", True),
     ("580.95.050", True), ("latest", True)],
)  # fmt: skip
def test_the_node_wins_over_the_declaration_and_it_is_told(declared, told):
    sentence = driver.differs(declared, V)
    assert bool(sentence) == told
    if told:
        assert f"nvidia_driver_version is {declared}" in sentence
        assert f"the container gets {V}" in sentence


@pytest.mark.parametrize(
    ("url", "version"),
    [
        (RUN, V),
        (f"{RUN}?x=1", V),
        ("file:///root/NVIDIA-Linux-x86_64-575.64.03.run", "575.64.03"),
        ("https://us.download.nvidia.com/tesla/580.95.05/NVIDIA-Linux-x86_64-580.95.05-no-compat32.run", V),
        ("https://example.org/nvidia.run", ""),
        ("https://example.org/580.95.05/driver.run", ""),
        ("", ""),
    ],
)
def test_the_version_in_a_runfiles_name(url, version):
    assert driver.url_version(url) == version


@pytest.mark.parametrize(
    ("source", "methods", "reasons"),
    [
        (FULL, list(AUTO), []),
        (FULL._replace(method="apt"), ["apt"], []),
        (FULL._replace(method="node"), ["node"], []),
        (Source(), ["node"], ["runfile: nvidia_runfile_url is not set", "apt: nvidia_repo_url is not set"]),
        (FULL._replace(runfile_sha256=""), ["node", "apt"], ["runfile: nvidia_runfile_sha256 is not set"]),
        (FULL._replace(runfile_sha256="ab"), ["node", "apt"], ["must be 64 hexadecimal digits"]),
        (
            FULL._replace(runfile_url=RUN.replace(V, "575.64.03")), ["node", "apt"],
            ["nvidia_runfile_url is that of 575.64.03, and the node's kernel driver is 580.95.05"],
        ),
    ],
)  # fmt: skip
def test_the_order_and_why_one_is_left_out(source, methods, reasons):
    found, said = driver.methods(source, V)
    assert found == methods
    assert len(said) == len(reasons)
    assert all(reason in text for reason, text in zip(reasons, said))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Source("runfile"), "nvidia_runfile_url is not set"),
        (Source("runfile", RUN), "nvidia_runfile_sha256 is not set"),
        (Source("runfile", RUN.replace(V, "470.1"), SHA), "is that of 470.1"),
        (Source("apt"), "nvidia_repo_url is not set"),
    ],
)
def test_what_is_asked_for_and_can_not_work_is_refused(source, words):
    with pytest.raises(NvidiaError, match=words):
        driver.methods(source, V)


WANTED_NAMES = {
    f"libcuda.so.{V}": f"lib/libcuda.so.{V}",
    f"libnvidia-ml.so.{V}": f"lib/libnvidia-ml.so.{V}",
    f"libnvidia-ptxjitcompiler.so.{V}": f"lib/libnvidia-ptxjitcompiler.so.{V}",
    f"libnvidia-pkcs11-openssl3.so.{V}": f"lib/libnvidia-pkcs11-openssl3.so.{V}",
    f"libnvidia-nvvm.so.{V}": f"lib/libnvidia-nvvm.so.{V}",
    "libnvidia-nvvm70.so.4": "lib/libnvidia-nvvm70.so.4",
    # Since 590.
    f"libnvidia-tileiras.so.{V}": f"lib/libnvidia-tileiras.so.{V}",
    "nvidia-smi": "bin/nvidia-smi",
    "nvidia-cuda-mps-server": "bin/nvidia-cuda-mps-server",
}
OTHER_NAMES = [
    "libcuda.so.575.64.03", "libcuda.so.1", "libcuda.so", f"libcuda.so.{V}.1", f"xlibcuda.so.{V}", "nvidia.ko",
    "nvidia-uvm.ko", "nvidia-modprobe", "nvidia-installer", "nvidia-persistenced", "gsp_ga10x.bin", "kernel",
    f"libGLX_nvidia.so.{V}", f"libnvidia-glcore.so.{V}", f"libnvidia-cudax.so.{V}", "libcuda.so.580x95x05", "",
]  # fmt: skip


@pytest.mark.parametrize(("name", "path"), [*WANTED_NAMES.items(), *((name, "") for name in OTHER_NAMES)])
def test_which_files_are_a_drivers(name, path):
    assert driver.place(name, V) == path


@pytest.mark.parametrize("name", ["nvidia.ko", "nvidia-drm.ko", "nvidia-modeset.ko.xz", "dkms.conf", "nvidia-modprobe"])
def test_never_a_kernel_module(name):
    assert driver.place(name, V) == ""
    assert not driver.foreign(name)


@pytest.mark.parametrize(
    ("name", "is_foreign"),
    [
        ("libcuda.so.535.183.01", True), ("libcuda.so.1", True), ("libcuda.so", True), ("nvidia-smi", True),
        ("libnvidia-ml.so.580.95.05", True), ("libnvidia-nvvm70.so.4", True), ("libcudart.so.12", False),
        ("libcudnn.so.9", False), ("libOpenCL.so.1", False), ("libcuda.so.1.bak", False), ("libc.so.6", False),
        ("libnvidia-container.so.1", False), ("nvidia-container-cli", False), ("libcuda.a", False),
    ],
)  # fmt: skip
def test_what_another_driver_left(name, is_foreign):
    assert driver.foreign(name) == is_foreign


def test_links_are_those_that_programs_ask_for():
    files = list(WANTED_NAMES.values())
    links = driver.driver_links(files, V)
    assert links["lib/libcuda.so.1"] == f"libcuda.so.{V}"
    assert links["lib/libcuda.so"] == "libcuda.so.1"
    assert links["lib/libnvidia-nvvm.so.4"] == f"libnvidia-nvvm.so.{V}"
    assert "lib/libnvidia-pkcs11-openssl3.so.1" not in links
    assert driver.driver_links([], V) == {}


@pytest.mark.parametrize(
    "absent", [*(f"lib{name}.so.{V}" for name in ("cuda", "nvidia-ml", "nvidia-ptxjitcompiler")), "nvidia-smi"]
)
def test_a_bundle_without_what_is_needed_is_none(absent):
    files = [path for path in WANTED_NAMES.values() if not path.endswith(f"/{absent}")]
    assert driver.missing("driver", V, files) == absent
    assert driver.missing("driver", V, WANTED_NAMES.values()) == ""


def test_a_toolkit_without_nvcc_is_none():
    assert driver.missing("toolkit", "13.0", ["bin/ptxas"]) == "nvcc"


FILES = {"lib/libcuda.so.1": File("aa" * 32, 5, False), "bin/nvidia-smi": File("bb" * 32, 7, True)}


def test_the_same_content_is_the_same_bundle_wherever_it_came_from():
    one = driver.manifest("driver", V, FILES, {"lib/x": "y", "lib/a": "b"})
    other = driver.manifest("driver", V, dict(reversed(FILES.items())), {"lib/a": "b", "lib/x": "y"})
    assert driver.digest(one) == driver.digest(other)
    changed = {**FILES, "bin/nvidia-smi": File("cc" * 32, 7, True)}
    assert driver.digest(driver.manifest("driver", V, changed, {})) != driver.digest(one)
    assert driver.name("driver", V, driver.digest(one)).startswith(f"driver-{V}-")


def test_a_manifest_is_read_as_it_was_written():
    text = driver.manifest("driver", V, FILES, {"lib/x": "y"})
    assert driver.parse_manifest(text) == {"kind": "driver", "version": V, "files": FILES, "links": {"lib/x": "y"}}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"kind": "driver", "version": "1", "files": [], "links": {}}',
     '{"kind": "driver", "version": "1", "files": {"a": [1]}, "links": {}}',
     '{"kind": "driver", "version": "1", "files": {}, "links": null}'],
)  # fmt: skip
def test_a_manifest_that_can_not_be_read(text):
    with pytest.raises(NvidiaError, match="can't be read"):
        driver.parse_manifest(text)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a//b", "", ".", "a/./b", "a\0b"])
def test_no_path_of_a_manifest_leads_out(path):
    text = json.dumps({"kind": "driver", "version": V, "files": {path: ["aa", 1, False]}, "links": {}})
    with pytest.raises(NvidiaError, match="has the path"):
        driver.parse_manifest(text)


@pytest.mark.parametrize(
    ("path", "target", "leads_out"),
    [("lib/a", "b", False), ("lib/a", "../bin/b", False), ("lib/a", "../../b", True), ("a", "..", True),
     ("a", "/etc/x", True), ("a/b/c", "../../d", False), ("a/b/c", "../../../d", True), ("a", "", True),
     ("a", "./b", False), ("a", "b/../../c", True)],
)  # fmt: skip
def test_no_link_leads_out(path, target, leads_out):
    assert driver.target_problem(path, target) == leads_out
    text = json.dumps({"kind": "driver", "version": V, "files": {}, "links": {path: target}})
    if leads_out:
        with pytest.raises(NvidiaError, match="has the path"):
            driver.parse_manifest(text)
    else:
        assert driver.parse_manifest(text)["links"] == {path: target}


LINK = "/opt/nvidia/driver"
WANTED = Wanted("driver", V, SHA)
RIGHT = Seen(live=WANTED.name, others=(WANTED.name,), loader=f"{LINK}/lib/libcuda.so.1")


def steps(seen: Seen, wanted: Wanted = WANTED) -> list[str]:
    return [step.name for step in driver.plan(wanted, seen, LINK)]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (RIGHT, []),
        (Seen(problems=("not there",), settings=("x",)), ["unpack", "switch", "settings", "loader"]),
        (
            RIGHT._replace(live="driver-575.64.03-x", problems=("not there",), others=("driver-575.64.03-x",)),
            ["unpack", "switch", "loader", "prune"],
        ),
        (RIGHT._replace(problems=("lib/libcuda.so.1 is missing",)), ["unpack", "loader"]),
        (RIGHT._replace(loader="/usr/lib/x86_64-linux-gnu/libcuda.so.1"), ["loader"]),
        (RIGHT._replace(loader=""), ["loader"]),
        (RIGHT._replace(packages=("libcuda1",)), ["purge", "loader"]),
        (RIGHT._replace(files=("/usr/lib/libcuda.so.535.1.2",)), ["remove", "loader"]),
        (RIGHT._replace(others=("driver-1-x", WANTED.name)), ["prune"]),
        (RIGHT._replace(live=""), ["switch", "loader"]),
    ],
)  # fmt: skip
def test_what_is_to_be_done(seen, expected):
    assert steps(seen) == expected


def test_what_was_there_goes_last():
    """Nothing of the former driver goes before the new one is whole and in use."""
    everything = Seen("driver-1-x", ("not there",), ("c",), ("p",), ("f",), ("driver-1-x",), "/usr/lib/libcuda.so.1")
    assert steps(everything) == ["unpack", "switch", "settings", "purge", "remove", "loader", "prune"]


def test_a_toolkit_has_no_loader_and_leaves_others_alone():
    wanted = Wanted("toolkit", "13.0", SHA)
    assert steps(Seen(problems=("not there",)), wanted) == ["unpack", "switch"]
    assert steps(Seen(live=wanted.name, others=(wanted.name,)), wanted) == []


def test_the_plan_says_why():
    seen = RIGHT._replace(problems=("a is missing", "b is missing", "c is missing"), files=tuple("abcdef"))
    texts = [step.text for step in driver.plan(WANTED, seen, LINK)]
    assert texts[0] == f"unpack NVIDIA driver {V} ({WANTED.name}), because of what is there: a is missing and 2 more"
    assert texts[1] == "remove what another driver left: a, b, c, 3 more"


@given(
    st.builds(
        Seen,
        live=st.sampled_from(["", WANTED.name, "driver-1-x"]),
        problems=st.sampled_from([(), ("not there",), ("x",)]),
        settings=st.sampled_from([(), ("s",)]),
        packages=st.sampled_from([(), ("p",)]),
        files=st.sampled_from([(), ("f",)]),
        others=st.sampled_from([(), (WANTED.name,), ("driver-1-x", WANTED.name)]),
        loader=st.sampled_from(["", "/usr/lib/libcuda.so.1", f"{LINK}/lib/libcuda.so.1"]),
    )
)
def test_nothing_is_done_exactly_where_all_is_right(seen):
    right = seen._replace(others=()) == RIGHT._replace(others=()) and "driver-1-x" not in seen.others
    assert (steps(seen) == []) == right
    assert WANTED.name not in [name for step in driver.plan(WANTED, seen, LINK) if step.name == "prune"
                               for name in step.text.split()]
