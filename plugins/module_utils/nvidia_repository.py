# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A flat apt repository, as NVIDIA's are: whom it is signed by, which packages it has, which of them are wanted.

Pure functions. A package's hash comes from C(Packages), whose hash comes from C(InRelease), which a key of a known
fingerprint has signed: so each file is checked without apt, and without a change to what the node's apt trusts.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import lzma
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .nvidia_driver import NvidiaError, branch, numbers

# NVIDIA's signing keys: of the repositories of Ubuntu and of Debian up to 12, and of Debian 13.
FINGERPRINTS = ("EB693B3035CD5710E231E123A4B469963BF863CC", "02182E60104FCDC26EAE1B8597A5D4CB8793F200")
# In the order of wish; the first that a repository has is taken.
INDEXES = ("Packages.xz", "Packages.gz", "Packages")
# The user-space part of a driver: as Debian names its packages, then as Ubuntu does. Those that a repository doesn't
# have are left out, since the files are looked at afterwards.
DRIVER_PACKAGES = (
    "libcuda1", "libcudadebugger1", "libnvcuvid1", "libnvidia-allocator1", "libnvidia-cfg1", "libnvidia-encode1",
    "libnvidia-gpucomp", "libnvidia-ml1", "libnvidia-nvvm4", "libnvidia-nvvm704", "libnvidia-opticalflow1",
    "libnvidia-pkcs11-openssl3", "libnvidia-ptxjitcompiler1", "libnvidia-sandboxutils", "libnvidia-tileiras",
    "nvidia-cuda-mps", "nvidia-driver-cuda", "nvidia-opencl-icd", "nvidia-smi",
    "libnvidia-cfg1-{branch}", "libnvidia-compute-{branch}", "libnvidia-decode-{branch}", "libnvidia-encode-{branch}",
    "libnvidia-gpucomp-{branch}", "nvidia-compute-utils-{branch}", "nvidia-utils-{branch}",
    "libnvidia-compute", "libnvidia-decode", "libnvidia-encode", "nvidia-compute-utils", "nvidia-utils",
)  # fmt: skip
# What FlashInfer's kernels, PyTorch's extensions and a vLLM from source are compiled with; what these depend on comes
# along. Samples, profilers with windows, documentation and drivers don't.
TOOLKIT_PACKAGES = (
    "cuda-nvcc-{v}", "cuda-cudart-dev-{v}", "cuda-cccl-{v}", "cuda-nvrtc-dev-{v}", "cuda-nvtx-{v}",
    "cuda-profiler-api-{v}", "cuda-cuobjdump-{v}", "cuda-nvdisasm-{v}", "cuda-nvml-dev-{v}",
    "libcublas-dev-{v}", "libcufft-dev-{v}", "libcurand-dev-{v}", "libcusolver-dev-{v}", "libcusparse-dev-{v}",
    "libnvjitlink-dev-{v}",
)  # fmt: skip


class Package(NamedTuple):
    """A package of a repository."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int
    depends: tuple[str, ...]


# --- whom it is from ------------------------------------------------------------------------------------------------


def key_names(fingerprints: Iterable[str]) -> list[str]:
    """Return the names that keys have beside NVIDIA's packages; some are in small letters, some in capitals."""
    found: list[str] = []
    for one in fingerprints:
        short = normal_fingerprint(one)[-8:]
        found += [f"{short.lower()}.pub", f"{short}.pub"]
    return list(dict.fromkeys(found))


def normal_fingerprint(text: str) -> str:
    """Return a fingerprint without blanks, in capitals."""
    return re.sub(r"\s+", "", text).upper()


def fingerprint_problem(fingerprints: Sequence[str]) -> str:
    """Return why these can't be the fingerprints of keys, C("") when they can."""
    if not fingerprints:
        return "nvidia_repo_key_fingerprints is empty, and nothing is taken from a repository that isn't checked"
    wrong = [one for one in fingerprints if not re.fullmatch("[0-9A-F]{40}", normal_fingerprint(one))]
    return f"nvidia_repo_key_fingerprints has {wrong[0]!r}, which is no fingerprint of 40 digits" if wrong else ""


def binary_key(data: bytes) -> bytes:
    """Return a public key in its binary form; it may be in ASCII armour.

    Raises:
        NvidiaError: it is none.
    """
    if data[:1] and data[0] & 0x80:
        return data
    text = data.decode("ascii", "replace")
    blocks = re.findall(
        r"-----BEGIN PGP PUBLIC KEY BLOCK-----\s*?\n(?:[A-Za-z]+: [^\n]*\n)*\s*\n?(.*?)"
        r"-----END PGP PUBLIC KEY BLOCK-----",
        text, re.DOTALL,
    )  # fmt: skip
    # The line that begins with = is the armour's checksum.
    bodies = ["".join(line.strip() for line in block.splitlines() if line[:1] != "=") for block in blocks]
    try:
        found = b"".join(base64.b64decode(body, validate=True) for body in bodies)
    except (binascii.Error, ValueError):
        found = b""
    if not found or not found[0] & 0x80:
        raise NvidiaError("is no OpenPGP key")
    return found


UNSIGNED = "has no valid signature"


def signer_problem(status: str, fingerprints: Sequence[str]) -> str:
    """Return what is wrong with a signature, C("") when one of the keys made it.

    Args:
        status: what C(gpgv --status-fd) wrote.
        fingerprints: the keys that are trusted.
    """
    trusted = {normal_fingerprint(one) for one in fingerprints}
    valid = [line.split() for line in re.findall(r"^\[GNUPG:\] VALIDSIG (.*)$", status, re.MULTILINE)]
    # The last field is the primary key, where a subkey has signed.
    signers = [words[-1].upper() for words in valid if words]
    absent = re.search(r"^\[GNUPG:\] (?:NO_PUBKEY|ERRSIG) ([0-9A-F]+)", status, re.MULTILINE)
    changed = re.search(r"^\[GNUPG:\] BADSIG ", status, re.MULTILINE)
    return _problem(signers, trusted, bool(changed), absent[1] if absent else "")


def _problem(signers: Sequence[str], trusted: set[str], changed: bool, absent: str) -> str:
    """Return what is wrong with a signature, as a sentence.

    Args:
        signers: whose signatures are valid.
        trusted: the keys that are trusted.
        changed: whether a signature is of another text.
        absent: whose signature could not be checked.
    """
    if any(signer in trusted for signer in signers):
        return ""
    if signers:
        return f"is signed by the key {signers[0]}, and nvidia_repo_key_fingerprints doesn't have it"
    if changed:
        return "is not what was signed: it was changed on its way, or the repository is damaged"
    if absent:
        return (
            f"is signed by the key …{absent[-16:]}, and none of nvidia_repo_key_fingerprints "
            f"({', '.join(sorted(trusted))}) is that one"
        )
    return UNSIGNED


# What sqv may take, in Sequoia's words. NVIDIA's key for Debian up to 12 is bound to its name by SHA-1 (NVIDIA's
# cuda-repo-management, issue 34), which Sequoia refuses since 2023 and Debian's apt since 2026. The key is known here
# by its fingerprint, whatever binds it; a signature of the repository itself by SHA-1 stays refused.
SQV_POLICY = """[hash_algorithms]
sha1.second_preimage_resistance = "always"
"""


def signed_parts(signed: str) -> tuple[str, str]:
    """Return the text and the signature of a C(InRelease), as two files: sqv before 1.3 knows no signed texts.

    What the text is worth is said by the signature: whoever reads it has to read this one.

    Raises:
        NvidiaError: it isn't a signed text.
    """
    found = re.search(
        r"^-----BEGIN PGP SIGNED MESSAGE-----\n(?:[A-Za-z]+: [^\n]*\n)*\n(.*?)\n"
        r"(-----BEGIN PGP SIGNATURE-----\n.*?^-----END PGP SIGNATURE-----)",
        signed.replace("\r\n", "\n"), re.DOTALL | re.MULTILINE,
    )  # fmt: skip
    if not found:
        raise NvidiaError("isn't a signed text")
    return re.sub(r"^- ", "", found[1], flags=re.MULTILINE), f"{found[2]}\n"


def sqv_problem(stdout: str, stderr: str, fingerprints: Sequence[str]) -> str:
    """Return what is wrong with a signature, C("") when one of the keys made it, by what C(sqv --verbose) says.

    Seen of sqv 1.1.0 (Debian 12) and 1.3.0 (Debian 13): whose signature is valid stands on stdout, a line for each, by
    the primary key's fingerprint; all else is for a person.

    Args:
        stdout: what it wrote.
        stderr: what it said.
        fingerprints: the keys that are trusted.
    """
    signers = [normal_fingerprint(line) for line in stdout.splitlines() if line.strip()]
    trusted = {normal_fingerprint(one) for one in fingerprints}
    absent = re.search(r"^Missing key ([0-9A-F ]+),", stderr, re.MULTILINE)
    changed = "Message has been manipulated" in stderr
    problem = _problem(signers, trusted, changed, absent[1].replace(" ", "") if absent else "")
    if problem != UNSIGNED:
        return problem
    said = " ".join(line.strip() for line in stderr.splitlines() if not re.match(r"\d+ of \d+ signatures", line))
    return f"{UNSIGNED}; sqv said: {said or 'nothing'}"


# --- what it has ----------------------------------------------------------------------------------------------------


def index_of(release: str) -> tuple[str, str]:
    """Return the name and the SHA-256 of the packages' index that a C(Release) names.

    Raises:
        NvidiaError: it names none.
    """
    section = re.search(r"^SHA256:[^\S\n]*\n((?:[^\S\n]+\S.*(?:\n|$))+)", release, re.MULTILINE)
    hashes = {}
    for line in (section[1] if section else "").splitlines():
        words = line.split()
        if len(words) == 3:
            path = words[2][2:] if words[2].startswith("./") else words[2]
            hashes[path] = words[0].lower()
    for index in INDEXES:
        if index in hashes:
            return index, hashes[index]
    raise NvidiaError("names no index of packages with a SHA-256: is it a flat repository, as NVIDIA's are?")


def unpacked(index: str, data: bytes) -> str:
    """Return the text of an index.

    Raises:
        NvidiaError: it can't be unpacked.
    """
    try:
        if index.endswith(".xz"):
            data = lzma.decompress(data)
        elif index.endswith(".gz"):
            data = gzip.decompress(data)
        return data.decode("utf-8", "replace")
    except (OSError, EOFError, lzma.LZMAError, zlib.error):
        raise NvidiaError("can't be unpacked") from None


def packages(text: str) -> dict[str, list[Package]]:
    """Return name → its versions of the packages for this machine's architecture that an index has."""
    found: dict[str, list[Package]] = {}
    for paragraph in re.split(r"\n[^\S\n]*\n", text):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+):[^\S\n]*(.*)$", paragraph, re.MULTILINE))
        if fields.get("Architecture") not in ("amd64", "all") or not fields.get("SHA256"):
            continue
        needs = ",".join(fields.get(key, "") for key in ("Pre-Depends", "Depends"))
        found.setdefault(fields.get("Package", ""), []).append(
            Package(
                fields.get("Package", ""),
                fields.get("Version", ""),
                re.sub(r"^\./", "", fields.get("Filename", "")),
                fields["SHA256"].lower(),
                int(fields.get("Size", "0")) if fields.get("Size", "0").isdigit() else 0,
                tuple(word for word in (re.split(r"[\s(:|]", part.strip())[0] for part in needs.split(",")) if word),
            )
        )
    return found


def upstream(version: str) -> str:
    """Return the part of a package's version that its author chose: C(580.95.05) of C(1:580.95.05-1~bpo1)."""
    return re.sub(r"^\d+:", "", version).rpartition("-")[0].partition("~")[0] or version


def is_kernel(package: str) -> bool:
    """Return whether a package has, or builds, a kernel module, or takes one along: never wanted in a container."""
    return re.search(r"kernel|dkms|firmware|modprobe|persistenced|fabricmanager", package) is not None


def driver_packages(
    there: Mapping[str, Sequence[Package]], version: str, wanted: Sequence[str] = DRIVER_PACKAGES
) -> list[Package]:
    """Return the packages that have a driver's user-space part in exactly this version.

    Raises:
        NvidiaError: the version isn't there. The sentence goes on after the repository's name.
    """
    names = [name.replace("{branch}", branch(version)) for name in wanted]
    kernel = [name for name in names if is_kernel(name)]
    if kernel:
        raise NvidiaError(f"nvidia_packages has {kernel[0]}, which is for a kernel; a container has none of its own")
    chosen = []
    for name in names:
        exact = [package for package in there.get(name, ()) if upstream(package.version) == version]
        if exact:
            chosen.append(max(exact, key=lambda package: numbers(package.version)))
    if not any(package.name.startswith(("libcuda1", "libnvidia-compute")) for package in chosen):
        known = sorted(
            {
                upstream(package.version)
                for name in names
                if name.startswith(("libcuda1", "libnvidia-compute"))
                for package in there.get(name, ())
            },
            key=numbers,
        )
        has = f"it has {', '.join(known[-8:])}" if known else "it has no driver of that branch at all"
        raise NvidiaError(f"has no driver {version}; {has}")
    return chosen


def toolkit_versions(there: Iterable[str]) -> list[str]:
    """Return the versions of CUDA's compiler that a repository has, oldest first."""
    matches = (re.fullmatch(r"cuda-nvcc-(\d+-\d+)", one) for one in there)
    found = {match[1].replace("-", ".") for match in matches if match}
    return sorted(found, key=numbers)


def toolkit_version(there: Iterable[str], wanted: str) -> str:
    """Return the version of the toolkit to take: the wanted one, else the next one of the same major version.

    Raises:
        NvidiaError: there is none. The sentence goes on after the repository's name.
    """
    known = toolkit_versions(there)
    if wanted in known:
        return wanted
    # A newer minor version does what an older one does; another major version doesn't go with PyTorch's CUDA.
    newer = [one for one in known if numbers(one)[0] == numbers(wanted)[0] and numbers(one) > numbers(wanted)]
    if newer:
        return newer[0]
    has = f"it has {', '.join(known)}" if known else "it has none at all"
    raise NvidiaError(f"has no CUDA toolkit {wanted}, and no newer one of the same major version; {has}")


def toolkit_packages(
    there: Mapping[str, Sequence[Package]], version: str, wanted: Sequence[str] = TOOLKIT_PACKAGES
) -> list[Package]:
    """Return the packages of a toolkit, with what they need of the same toolkit, each in its newest version."""
    suffix = version.replace(".", "-")
    queue = [name.replace("{v}", suffix) for name in wanted]
    chosen: dict[str, Package] = {}
    while queue:
        name = queue.pop(0)
        if name in chosen or name not in there or not name.endswith(f"-{suffix}") or is_kernel(name):
            continue
        chosen[name] = max(there[name], key=lambda package: numbers(package.version))
        queue += chosen[name].depends
    return [chosen[name] for name in sorted(chosen)]
