# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a release must pass before it goes live."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import release_gates as gates
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_plan import JobError, Refused

HASH = "--hash=sha256:" + "a" * 64
# In the shape that `cuobjdump --list-elf` gives of the published wheel of vLLM 0.10.2, shortened.
LISTING = "".join(
    f"ELF file {number:4}: _C.abi3.{number}.{name}.cubin\n"
    for number, name in enumerate(("sm_52", "sm_80", "sm_90a", "sm_100", "sm_120", "sm_120", "sm_120a"), 1)
)
NO_CODE = "cuobjdump info    : File 'vllm/cumem_allocator.abi3.so' does not contain device code\n"


def refused(function, *arguments) -> Refused:
    """What a judge objects to."""
    with pytest.raises(Refused) as caught:
        function(*arguments)
    assert caught.value.piece
    assert caught.value.remedy
    assert caught.value.message.endswith(".")
    return caught.value


# --- driver and toolkit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", ["570.86", "570.86.15", "570.133.07", "580.1"])
def test_a_driver_that_will_do(found):
    assert gates.judge_driver("570.86", found) == f"NVIDIA driver {found}"


@pytest.mark.parametrize("found, words", [("", "sees none"), ("570.9", "is 570.9"), ("535.261.03", "is 535.261.03")])
def test_a_driver_that_is_missing_or_old(found, words):
    assert words in refused(gates.judge_driver, "570.86", found).message


def test_toolkit():
    assert gates.judge_toolkit("12.8", "13.0") == "CUDA toolkit 13.0"
    assert gates.judge_toolkit("12.8", "12.8") == "CUDA toolkit 12.8"
    assert "it has 12.4" in refused(gates.judge_toolkit, "12.8", "12.4").message
    assert "it has none" in refused(gates.judge_toolkit, "12.8", "").message


@pytest.mark.parametrize(
    "text, version",
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (x@y)  Tue Sep 23\n"
            "GCC version:  gcc version 14.2.0 (Debian 14.2.0-19)\n",
            "580.95.05",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Thu Jul  3 03:26:29 UTC 2025\n", "535.261.03"),
        ("", ""),
    ],
)
def test_the_driver_is_read(tmp_path, text, version):
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert gates.Look(None, tmp_path).driver() == version
    assert gates.Look(None, tmp_path / "nowhere").driver() == ""


def test_the_toolkit_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    nvcc = tmp_path / "usr/local/cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n")
    nvcc.chmod(0o755)
    assert gates.Look(None, tmp_path).toolkit() == "12.8"
    assert gates.Look(None, tmp_path / "nowhere").toolkit() == ""


# --- versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted, found, same",
    [
        ("2.8.0", "2.8.0", True),
        ("2.8.0", "2.8.0+cu128", True),
        ("2.8.0+cu128", "2.8.0+cu128", True),
        ("2.8.0+cu128", "2.8.0", False),
        ("2.8.0+cu128", "2.8.0+cpu", False),
        ("2.8.0", "2.8.1", False),
        ("2.12.0.dev20260407+cu128", "2.12.0.dev20260407+cu128", True),
    ],
)
def test_same_version(wanted, found, same):
    assert gates.same_version(wanted, found) is same


def metadata(*needs: str) -> str:
    lines = ["Metadata-Version: 2.1", "Name: x", *(f"Requires-Dist: {need}" for need in needs)]
    return "\n".join([*lines, "", "Requires-Dist: torch==1", ""])


def test_pins_that_fit():
    assert gates.judge_pins("2.8.0+cu128", {"vllm": metadata("torch==2.8.0"), "a": metadata("torch>=2")}) == (
        "vllm pin torch 2.8.0+cu128"
    )
    assert "no wheel" in gates.judge_pins("2.8.0", {"a": metadata("torchvision==0.1", "torch==1; extra == 'x'")})


@pytest.mark.parametrize("pin", ["torch==2.8.0", "torch (==2.8.0)", 'torch ==2.8.0 ; sys_platform == "linux"'])
def test_a_wheel_for_another_torch_is_refused(pin):
    error = refused(gates.judge_pins, "2.12.0.dev20260407+cu128", {"xformers": metadata(pin)})
    assert error.piece == "xformers"
    assert "built for torch 2.8.0, and the stack has torch 2.12.0.dev20260407+cu128" in error.message


CANDIDATE = {"vllm": "0.10.2", "cuda": "12.8", "flashinfer": "0.3.1"}
SAID = {
    "errors": {},
    "torch": {"version": "2.8.0+cu128", "cuda": "12.8"},
    "torchvision": {"version": "0.23.0+cu128", "cuda": "12.8"},
    "torchaudio": {"version": "2.8.0+cu128", "cuda": ""},
    "flashinfer": {"version": "0.3.1", "cuda": ""},
    "vllm": "0.10.2",
}


def test_words_that_fit():
    assert gates.judge_words(CANDIDATE, "2.8.0", SAID) == [
        "torch 2.8.0+cu128 (CUDA 12.8)",
        "torchvision 0.23.0+cu128",
        "torchaudio 2.8.0+cu128",
        "flashinfer 0.3.1",
        "vllm 0.10.2",
    ]
    assert gates.judge_words({"vllm": "1"}, "", {"vllm": "1"}) == ["vllm 1"]


@pytest.mark.parametrize(
    "change, piece, words",
    [
        ({"torch": {"version": "2.9.0+cu128", "cuda": "12.8"}}, "torch", "locked at 2.8.0"),
        ({"torch": {"version": "2.8.0+cpu", "cuda": ""}}, "torch", "built for CUDA 12.8, and it is built for the CPU"),
        ({"torchvision": {"version": "0.23.0+cu130", "cuda": "13.0"}}, "torchvision", "torch for CUDA 12.8"),
        ({"flashinfer": {"version": "0.2", "cuda": ""}}, "flashinfer", "says 0.2"),
        ({"vllm": "0.10.1"}, "vllm", "`vllm --version` says 0.10.1"),
        ({"vllm": ""}, "vllm", "says nothing"),
        ({"errors": {"torchvision": "RuntimeError: no torchvision::nms"}}, "torchvision", "beside torch 2.8.0+cu128"),
        ({"errors": {"vllm": "ImportError: x", "torch": "OSError: x"}}, "torch", "torch can't be used: OSError"),
    ],
)
def test_words_that_do_not_fit(change, piece, words):
    error = refused(gates.judge_words, CANDIDATE, "2.8.0", {**SAID, **change})
    assert error.piece == piece
    assert words in error.message


def test_a_missing_library_is_named():
    problem = "OSError: libnuma.so.1: cannot open shared object file: No such file or directory"
    error = refused(gates.judge_words, CANDIDATE, "2.8.0", {**SAID, "errors": {"vllm": problem}})
    assert "libnuma.so.1" in error.remedy
    assert "system_packages" in error.remedy


# --- files ----------------------------------------------------------------------------------------------------------


def row(name: str, content: bytes) -> tuple[str, str, str]:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return name, f"sha256={digest}", str(len(content))


@pytest.fixture
def release(tmp_path) -> Path:
    """A release with a torch, a vllm and a Python that is this one."""
    site = tmp_path / "release/lib/python3.11/site-packages"
    contents = {
        "torch/__init__.py": b'__version__ = "2.13.0+cpu"\nclass version: cuda = None\n',
        "torch/lib/big.so": b"x" * 9,
        "vllm/__init__.py": b"",
    }
    for module in ("entrypoints/cli/serve", "v1/engine/core", "v1/engine/async_llm"):
        contents[f"vllm/{module}.py"] = b""
    for name, content in contents.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)
    for name, version, files in (("torch", "2.13.0+cpu", list(contents)[:2]), ("vllm", "1", list(contents)[2:])):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        rows = [row(file, contents[file]) for file in files] + [(f"{info.name}/RECORD", "", "")]
        (info / "RECORD").write_text("".join(",".join(line) + "\n" for line in rows))
    binary = tmp_path / "release/bin"
    binary.mkdir()
    (binary / "vllm").write_text("import sys\nprint('a warning')\nprint('1')\n")
    (binary / "python").write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    (binary / "python").chmod(0o755)
    return tmp_path / "release"


def run(argv, environment=None):
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise JobError("python failed", tail=done.stderr.splitlines())
    return done.stdout


CPU = {"vllm": "1", "cuda": "", "requirements": f"torch==2.13.0+cpu {HASH}\n"}


def test_a_release_that_is_as_it_should_be(release, tmp_path):
    said = gates.gates(CPU, release, tmp_path / "gone", gates.Look(run, tmp_path))
    assert said == ["the 3 files of torch-2.13.0+cpu are as it brought them", "torch 2.13.0+cpu (the CPU)", "vllm 1"]
    # What was imported is compiled now.
    assert list(release.rglob("__pycache__/async_llm*.pyc"))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("torch/__init__.py", b"# other\n", "torch/__init__.py is not the one"),
        ("torch/lib/big.so", b"longer than it was", "torch/lib/big.so is not the one"),
        ("torch/lib/big.so", None, "torch/lib/big.so is missing"),
    ],
)
def test_a_torch_that_was_touched(release, tmp_path, name, content, words):
    path = release / "lib/python3.11/site-packages" / name
    path.write_bytes(content) if content is not None else path.unlink()
    error = refused(gates.gates, CPU, release, tmp_path / "gone", gates.Look(run, tmp_path))
    assert error.piece == "torch"
    assert words in error.message


def test_who_brought_a_file_of_torch_is_named(release, tmp_path):
    site = release / "lib/python3.11/site-packages"
    (site / "torch/__init__.py").write_text("# mine\n")
    (site / "evil-1.0.dist-info").mkdir()
    (site / "evil-1.0.dist-info/RECORD").write_text(",".join(row("torch/__init__.py", b"# mine\n")) + "\n")
    error = refused(gates.gates, CPU, release, tmp_path / "gone", gates.Look(run, tmp_path))
    assert "evil-1.0 brings a file of that name" in error.message
    assert error.remedy == "Take that package out of the lock."


def test_no_torch_at_all():
    assert "not installed" in refused(gates.judge_untouched, {"torchvision-1.dist-info": []}, None).message


def test_a_python_that_crashes_is_the_releases_fault(release, tmp_path):
    (release / "lib/python3.11/site-packages/vllm/v1/engine/core.py").write_text("import os; os.abort()\n")
    error = refused(gates.gates, CPU, release, tmp_path / "gone", gates.Look(run, tmp_path))
    assert (error.piece, "crashed" in error.message) == ("vllm", True)


def test_a_vllm_that_cannot_be_imported(release, tmp_path):
    engine = release / "lib/python3.11/site-packages/vllm/v1/engine/core.py"
    engine.write_text("raise AttributeError('no attribute x')\n")
    error = refused(gates.gates, CPU, release, tmp_path / "gone", gates.Look(run, tmp_path))
    assert "vllm can't be used beside torch 2.13.0+cpu: AttributeError: no attribute x." in error.message


def test_headers():
    assert gates.judge_headers("0.3.1", ["x", "flashinfer/data/cutlass/include/cute/a.hpp"])
    assert refused(gates.judge_headers, "0.3.1", ["flashinfer/data/cutlass/include/"]).piece == "flashinfer"


def test_wheels_are_looked_at_before_they_are_installed(tmp_path):
    for name, needs in (("vllm", "torch==2.8.0"), ("flashinfer_python", "torch")):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}-1.dist-info/METADATA", metadata(needs))
            archive.writestr("flashinfer/data/cutlass/include/a.h", "")
    assert gates.wheelhouse({"requirements": f"torch==2.8.0 {HASH}\n", "flashinfer": "1"}, tmp_path)
    error = refused(gates.wheelhouse, {"requirements": f"torch==2.13.0 {HASH}\n"}, tmp_path)
    assert error.piece == "vllm"
    with zipfile.ZipFile(tmp_path / "flashinfer_python-1-py3-none-any.whl", "w") as archive:
        archive.writestr("flashinfer_python-1.dist-info/METADATA", metadata())
    error = refused(gates.wheelhouse, {"requirements": f"torch==2.8.0 {HASH}\n", "flashinfer": "1"}, tmp_path)
    assert error.piece == "flashinfer"


# --- compiled code --------------------------------------------------------------------------------------------------


def test_a_listing_is_read():
    assert gates.architectures_of(LISTING) == ["sm_52", "sm_80", "sm_90a", "sm_100", "sm_120", "sm_120a"]
    assert gates.architectures_of(NO_CODE) == []


def test_code_for_the_gpus():
    found = {"_C.abi3.so": gates.architectures_of(LISTING)}
    assert gates.judge_code(["12.0"], found) == "vllm holds code for 12.0"
    assert gates.judge_code(["12.0", "9.0"], found)
    assert gates.judge_code(["12.0"], {"_C.abi3.so": ["sm_120f"]})
    assert "no cuobjdump" in gates.judge_code(["12.0"], None)
    error = refused(gates.judge_code, ["12.1"], found)
    assert "12.1 (sm_121); it holds code for sm_52, sm_80, sm_90a, sm_100, sm_120, sm_120a" in error.message
    assert "no GPU at all" in refused(gates.judge_code, ["12.0"], {"_C.abi3.so": []}).message


def test_cuobjdump_of_triton_is_used(release, tmp_path):
    site = release / "lib/python3.11/site-packages"
    look = gates.Look(run, tmp_path)
    tool = site / "triton/backends/nvidia/bin/cuobjdump"
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTING}END\n")
    assert look.code(release, site) is None
    tool.chmod(0o755)
    (site / "vllm/_C.abi3.so").write_text("")
    assert look.code(release, site) == {"_C.abi3.so": gates.architectures_of(LISTING)}


def test_the_machine_is_asked_only_for_what_is_wanted(tmp_path):
    look = gates.Look(run, tmp_path)
    assert gates.machine({"requires": {"driver": "", "toolkit": "", "arch": []}}, look) == []
    assert refused(gates.machine, {"requires": {"driver": "570.86"}}, look).piece == "driver"
