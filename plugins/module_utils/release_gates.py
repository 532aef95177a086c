# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs without a module, whose run_command it can't have.
# pylint: disable=ansible-bad-function
"""What a release must pass before it can go live. The judges are pure; one observer looks.

Three moments: C(machine) before anything is downloaded, C(wheelhouse) before anything is installed, C(gates) before the
release is recorded. A judge that has nothing to object to returns a sentence for the record; what it can't find out is
no objection. Runs in the container, on the standard library, called by C(release_job).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import stack
from .release_plan import JobError, Refused

# Read whole and compared by digest. Larger files of PyTorch (its libraries) are compared by size.
SMALL = 1 << 20
# What a container has or hasn't; a refusal because of it holds for that container only.
MACHINE = ("driver", "toolkit")
FLASHINFER_HEADERS = "flashinfer/data/cutlass/include/"
# What the release's own Python is asked. It imports, as root and once, what a server imports: the service can't write
# into the release, so without this Python would compile thousands of files at every start.
WORDS = """
import contextlib, importlib, io, json, runpy, sys
said = {"errors": {}}
def ask(piece, *modules):
    try:
        loaded = [importlib.import_module(name) for name in modules]
        return loaded[0]
    except BaseException as error:
        said["errors"][piece] = f"{type(error).__name__}: {error}"
if torch := ask("torch", "torch"):
    said["torch"] = {"version": torch.__version__, "cuda": torch.version.cuda or ""}
for name in sys.argv[2:]:
    if module := ask(name, name):
        cuda = getattr(getattr(module, "version", None), "cuda", None)
        said[name] = {"version": getattr(module, "__version__", ""), "cuda": cuda or ""}
ask("vllm", "vllm.entrypoints.cli.serve", "vllm.v1.engine.core", "vllm.v1.engine.async_llm")
command, output = sys.argv[1], io.StringIO()
sys.argv = [command, "--version"]
try:
    with contextlib.redirect_stdout(output):
        runpy.run_path(command, run_name="__main__")
except SystemExit as end:
    if end.code not in (None, 0):
        said["errors"]["vllm"] = f"it ended with {end.code}"
except BaseException as error:
    said["errors"].setdefault("vllm", f"{type(error).__name__}: {error}")
said["vllm"] = (output.getvalue().split() or [""])[-1]
print("\\nphoenix-words " + json.dumps(said))
"""


# --- when -----------------------------------------------------------------------------------------------------------


def machine(candidate: Mapping[str, Any], look: Look) -> list[str]:
    """Make sure that the container has the driver and the toolkit that a candidate asks for.

    Returns:
        What was found, a sentence each.

    Raises:
        Refused: it hasn't.
    """
    requires = candidate.get("requires") or {}
    said = []
    if wanted := requires.get("driver"):
        said.append(judge_driver(wanted, look.driver()))
    if wanted := requires.get("toolkit"):
        said.append(judge_toolkit(wanted, look.toolkit()))
    return said


def wheelhouse(candidate: Mapping[str, Any], wheels: Path) -> list[str]:
    """Make sure that the wheels go together: what pins PyTorch pins the one that is installed.

    Raises:
        Refused: they don't.
    """
    torch = torch_version(candidate)
    metadata = {path.name.split("-")[0]: wheel_metadata(path) for path in sorted(wheels.glob("*.whl"))}
    said = [judge_pins(torch, metadata)] if torch else []
    if candidate.get("flashinfer"):
        for path in sorted(wheels.glob("flashinfer_python-*.whl")):
            with zipfile.ZipFile(path) as archive:
                judge_headers(candidate["flashinfer"], archive.namelist())
    return said


def gates(candidate: Mapping[str, Any], release: Path, wheels: Path, look: Look) -> list[str]:
    """Make sure that an installed release is what it should be.

    Args:
        candidate: what was installed.
        release: the folder of the release.
        wheels: the folder that it was installed from; it may be gone.
        look: sees what is there.

    Returns:
        What was found, a sentence each.

    Raises:
        Refused: something isn't as it should be.
    """
    said = machine(candidate, look)
    if wheels.is_dir():
        said += wheelhouse(candidate, wheels)
    site = look.site(release)
    torch = torch_version(candidate)
    if torch:
        records = {path.parent.name: read_record(path) for path in sorted(site.glob("*.dist-info/RECORD"))}
        said.append(judge_untouched(records, lambda name, small: look.file(site / name, small)))
    if candidate.get("flashinfer"):
        said.append(judge_headers(candidate["flashinfer"], look.below(site, FLASHINFER_HEADERS)))
    others = [name for name in ("torchvision", "torchaudio") if (site / name).is_dir()]
    others += ["flashinfer"] if candidate.get("flashinfer") else []
    said += judge_words(candidate, torch, look.words(release, others))
    if architectures := (candidate.get("requires") or {}).get("arch"):
        said.append(judge_code(architectures, look.code(release, site)))
    return said


# --- judges ---------------------------------------------------------------------------------------------------------


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, to compare."""
    return tuple(int(word) for word in re.findall(r"\d+", version.partition("+")[0]))


def judge_driver(wanted: str, found: str) -> str:
    """Compare the driver of the node's kernel with what is asked for."""
    if not found:
        raise Refused(
            f"The stack needs NVIDIA driver {wanted} or newer, and the container sees none.",
            "driver",
            "Give the container a GPU (gpu_assignment), and see on the node whether the driver is loaded (nvidia-smi).",
        )
    if numbers(found) < numbers(wanted):
        raise Refused(
            f"The stack needs NVIDIA driver {wanted} or newer, and the node's is {found}.",
            "driver",
            "Install a newer driver on the node, or choose a stack for an older CUDA.",
        )
    return f"NVIDIA driver {found}"


def judge_toolkit(wanted: str, found: str) -> str:
    """Compare the CUDA toolkit with what is asked for."""
    if not found or numbers(found)[:2] < numbers(wanted)[:2]:
        there = f"it has {found}" if found else "it has none"
        raise Refused(
            f"The stack needs CUDA toolkit {wanted} or newer (nvcc) in the container, and {there}.",
            "toolkit",
            "Have the feature nvidia before vllm in the container's features, with a toolkit of that version.",
        )
    return f"CUDA toolkit {found}"


def torch_version(candidate: Mapping[str, Any]) -> str:
    """Return the version of PyTorch that the lock of a candidate has, C("") when it has none."""
    pin = stack.pins(candidate["requirements"]).get("torch")
    return pin.version if pin else ""


def same_version(wanted: str, found: str) -> bool:
    """Compare versions. The part after "+" counts where it is asked for: PyPI's files leave it out, PyTorch says it."""
    public, _plus, local = wanted.partition("+")
    return found.partition("+")[0] == public and (not local or found.partition("+")[2] == local)


def judge_pins(torch: str, metadata: Mapping[str, str]) -> str:
    """Compare the PyTorch that wheels pin with the one that is installed.

    Args:
        torch: the locked version.
        metadata: distribution → text of its metadata.
    """
    pinning = []
    for name, text in metadata.items():
        head = text.split("\n\n")[0]
        for pin in re.findall(r"^Requires-Dist: *torch *\(?===? *([^\s;,)]+)\)?(?![^\n]*extra)", head, re.MULTILINE):
            if not same_version(pin, torch):
                raise Refused(
                    f"The wheel of {name} was built for torch {pin}, and the stack has torch {torch}.",
                    name,
                    f"Lock the {name} that was built for torch {torch}, or build it from source (method: source).",
                )
            pinning.append(name)
    return f"{', '.join(pinning)} pin torch {torch}" if pinning else f"no wheel pins another torch than {torch}"


def judge_untouched(
    records: Mapping[str, Sequence[tuple[str, str, str]]], look: Callable[[str, bool], tuple[int, str]]
) -> str:
    """Compare the files of PyTorch with what its own record says of them.

    Args:
        records: dist-info folder → its record: file, digest, size.
        look: of a file, its size (-1 when it isn't there) and, if it is small, its digest as records have it.
    """
    own = next((name for name in records if re.match(r"torch-\d", name)), None)
    if own is None:
        raise Refused("torch is not installed in the release.", "torch", "Write the lock again (make lock).")
    for path, digest, size in records[own]:
        if not digest or path.endswith(".pyc"):
            continue
        small = int(size or 0) <= SMALL
        found, found_digest = look(path, small)
        if found != int(size or 0) or (small and found_digest != digest):
            others = [name for name, record in records.items() if name != own and any(path == row[0] for row in record)]
            by = f"; {others[0].removesuffix('.dist-info')} brings a file of that name" if others else ""
            state = "is missing" if found < 0 else "is not the one that it was installed with"
            raise Refused(
                f"A package touched torch: its file {path} {state}{by}.",
                "torch",
                "Take that package out of the lock."
                if others
                else "Write the lock again (make lock), and look which package changes torch when it is installed.",
            )
    return f"the {len(records[own])} files of {own.removesuffix('.dist-info')} are as it brought them"


def judge_words(candidate: Mapping[str, Any], torch: str, said: Mapping[str, Any]) -> list[str]:
    """Judge what the parts of a release say of themselves."""
    errors = said.get("errors") or {}
    again = "Write the lock again (make lock), or choose another stack."
    for piece in ("torch", "torchvision", "torchaudio", "flashinfer", "vllm"):
        if piece in errors:
            together = f" beside torch {said['torch']['version']}" if piece != "torch" and said.get("torch") else ""
            library = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", errors[piece])
            advice = f"List the distribution's package that has {library[1]} in system_packages." if library else again
            raise Refused(f"{piece} can't be used{together}: {errors[piece].rstrip('.')}.", piece, advice)
    sentences = []
    if torch:
        found = said["torch"]
        if not same_version(torch, found["version"]):
            raise Refused(
                f"torch is locked at {torch}, and the one in the release says {found['version']}.",
                "torch",
                "Look which package of the lock brings files of torch, and take it out.",
            )
        if "cuda" in candidate and (candidate["cuda"] or "") != found["cuda"]:
            raise Refused(
                f"torch should be built for {_cuda(candidate['cuda'])}, and it is built for {_cuda(found['cuda'])}.",
                "torch",
                "Correct torch.cuda in the stack, or lock the torch that it names.",
            )
        sentences.append(f"torch {found['version']} ({_cuda(found['cuda'])})")
        for name in ("torchvision", "torchaudio"):
            if (other := said.get(name)) and other["cuda"] and _major(other["cuda"]) != _major(found["cuda"]):
                raise Refused(
                    f"{name} {other['version']} is built for {_cuda(other['cuda'])}, torch for {_cuda(found['cuda'])}.",
                    name,
                    f"Lock the {name} of the same index as torch.",
                )
            if other:
                sentences.append(f"{name} {other['version']}")
    wanted = candidate.get("flashinfer")
    if wanted:
        if not same_version(wanted, said["flashinfer"]["version"]):
            raise Refused(
                f"flashinfer should be {wanted}, and says {said['flashinfer']['version']}.", "flashinfer", again
            )
        sentences.append(f"flashinfer {wanted}")
    if said.get("vllm") != candidate["vllm"]:
        raise Refused(
            f"vLLM should be {candidate['vllm']}, and `vllm --version` says {said.get('vllm') or 'nothing'}.",
            "vllm",
            "Correct vllm.version in the stack, or lock the wheel that it names.",
        )
    sentences.append(f"vllm {said['vllm']}")
    return sentences


def _cuda(version: str) -> str:
    return f"CUDA {version}" if version else "the CPU"


def _major(version: str) -> str:
    return ".".join(version.split(".")[:2])


def judge_headers(version: str, files: Iterable[str]) -> str:
    """Make sure that FlashInfer has the headers that it compiles with at run time."""
    if not any(name.startswith(FLASHINFER_HEADERS) and not name.endswith("/") for name in files):
        raise Refused(
            f"flashinfer {version} has no CUTLASS headers, and can't compile a kernel without them.",
            "flashinfer",
            "It was made from a tree without its submodules. Lock the sources or the wheel of PyPI.",
        )
    return f"flashinfer {version} has its headers"


def judge_code(architectures: Sequence[str], found: Mapping[str, Sequence[str]] | None) -> str:
    """Make sure that vLLM's compiled files hold code for the GPUs that it is for.

    Args:
        architectures: compute capabilities, C(12.0) for example.
        found: file → architectures (C(sm_120)) that it holds code for; None when that can't be found out.
    """
    if found is None:
        return "what GPUs vllm was compiled for can't be told: there is no cuobjdump"
    held = {name for names in found.values() for name in names}
    for wanted in architectures:
        exact = "sm_" + wanted.replace(".", "")
        # "a" and "f" are the same GPU with more instructions.
        if not held & {exact, f"{exact}a", f"{exact}f"}:
            listed = ", ".join(sorted(held, key=lambda name: (numbers(name), name))) or "no GPU at all"
            raise Refused(
                f"vllm holds no code for compute capability {wanted} ({exact}); it holds code for {listed}.",
                "vllm",
                f'Build it from source with TORCH_CUDA_ARCH_LIST: "{wanted}" (method: source).',
            )
    return f"vllm holds code for {', '.join(architectures)}"


def architectures_of(listing: str) -> list[str]:
    """Return the architectures in what C(cuobjdump --list-elf) prints, in the order of their first object."""
    return list(dict.fromkeys(re.findall(r"^ELF file +\d+: .*\.(sm_\d+[af]?)\.cubin$", listing, re.MULTILINE)))


# --- what is seen ---------------------------------------------------------------------------------------------------


def read_record(path: Path) -> list[tuple[str, str, str]]:
    """Return the rows of a distribution's record: file, digest, size."""
    with open(path, encoding="utf-8", newline="") as file:
        return [(row[0], row[1], row[2]) for row in csv.reader(file) if len(row) == 3]


def wheel_metadata(path: Path) -> str:
    """Return the text of a wheel's metadata."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return archive.read(name).decode("utf-8", "replace")


class Look:
    """Sees what there is in this container.

    Args:
        run: runs a program with its output in the log, and returns the output; raises JobError when it fails.
        root: the root of the file system.
    """

    def __init__(self, run: Callable[..., str], root: Path = Path("/")) -> None:
        self.run = run
        self.root = root

    def driver(self) -> str:
        """Return the version of the node's NVIDIA driver, C("") when there is none."""
        try:
            text = (self.root / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        found = re.search(r"NVRM version: .*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
        return found[1] if found else ""

    def tool(self, name: str) -> str:
        """Return the path of a program of the CUDA toolkit, C("") when there is none."""
        cuda = self.root / "usr/local/cuda/bin" / name
        return str(cuda) if cuda.exists() else shutil.which(name) or ""

    def toolkit(self) -> str:
        """Return the version of the CUDA toolkit, C("") when there is none."""
        nvcc = self.tool("nvcc")
        found = re.search(r"release (\d+\.\d+)", _output([nvcc, "--version"])) if nvcc else None
        return found[1] if found else ""

    def site(self, release: Path) -> Path:
        """Return the folder of a release's packages."""
        return next(iter(sorted(release.glob("lib/python3*/site-packages"))), release / "lib")

    def file(self, path: Path, digest: bool) -> tuple[int, str]:
        """Return a file's size (-1 when it isn't there) and, when asked for, its digest as records have it."""
        try:
            if not digest:
                return path.stat().st_size, ""
            content = path.read_bytes()
        except OSError:
            return -1, ""
        text = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        return len(content), f"sha256={text}"

    def below(self, site: Path, folder: str) -> list[str]:
        """Return a first file below a folder of the packages, if there is one."""
        for path, _folders, files in os.walk(site / folder):
            if files:
                return [f"{os.path.relpath(path, site)}/{files[0]}"]
        return []

    def words(self, release: Path, others: Sequence[str]) -> dict[str, Any]:
        """Return what the parts of a release say of themselves.

        Args:
            release: its folder.
            others: modules to ask besides torch and vllm.
        """
        # FlashInfer makes its cache when it is imported. With the first variable set nothing would be kept compiled.
        scratch = release / ".gates"
        variables = {"PYTHONDONTWRITEBYTECODE": "", "FLASHINFER_WORKSPACE_BASE": str(scratch)}
        try:
            command = [str(release / "bin" / "python"), "-c", WORDS, str(release / "bin" / "vllm"), *others]
            output = self.run(command, environment=variables)
        except JobError as error:
            last = error.tail[-1] if error.tail else error.message
            return {"errors": {"vllm": f"its Python crashed: {last}"}}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        found = re.findall(r"^phoenix-words (\{.*\})$", output, re.MULTILINE)
        return json.loads(found[-1]) if found else {"errors": {"vllm": "its Python ended without a word"}}

    def code(self, release: Path, site: Path) -> dict[str, list[str]] | None:
        """Return, of vLLM's compiled files, the architectures that they hold code for; None without cuobjdump."""
        triton = site / "triton/backends/nvidia/bin/cuobjdump"
        tool = str(triton) if os.access(triton, os.X_OK) else self.tool("cuobjdump")
        if not tool:
            return None
        files = sorted(site.glob("vllm/_C*.so"))
        return {path.name: architectures_of(_output([tool, "--list-elf", str(path)])) for path in files}


def _output(argv: Sequence[str]) -> str:
    """Return what a program prints, whatever it ends with."""
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout + done.stderr
