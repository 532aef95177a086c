# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import gzip
import lzma

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import nvidia_repository as repository
from ansible_collections.phoenix.hypervisor.plugins.module_utils.nvidia_driver import NvidiaError
from hypothesis import given
from hypothesis import strategies as st

V = "580.95.05"
KEY = "EB693B3035CD5710E231E123A4B469963BF863CC"
OTHER = "02182E60104FCDC26EAE1B8597A5D4CB8793F200"


def stanza(name: str, version: str, depends: str = "", arch: str = "amd64", sha: str = "ab" * 32) -> str:
    needs = f"Depends: {depends}\n" if depends else ""
    return (
        f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\n{needs}Filename: ./{name}_{version}_amd64.deb\n"
        f"Size: 10\nSHA256: {sha}\nDescription: x\n more of it: y\n"
    )


def index(*stanzas: str) -> dict:
    return repository.packages("\n".join(stanzas))


DEBIAN = [stanza(name, f"{V}-1") for name in ("libcuda1", "libnvidia-ml1", "nvidia-driver-cuda", "nvidia-smi")]
UBUNTU = [stanza(f"{name}-580", f"{V}-0ubuntu1") for name in ("libnvidia-compute", "nvidia-utils", "nvidia-dkms")]


@pytest.mark.parametrize(
    ("version", "upstream"),
    [("580.95.05-1", V), ("580.95.05-0ubuntu1", V), ("1:580.95.05-1~bpo12+1", V), ("580.95.05~rc1-1", V), (V, V),
     ("13.0.88-1", "13.0.88"), ("550.163.01-2", "550.163.01")],
)  # fmt: skip
def test_the_authors_version(version, upstream):
    assert repository.upstream(version) == upstream


@pytest.mark.parametrize("stanzas", [DEBIAN, UBUNTU])
def test_a_driver_is_taken_in_exactly_its_version(stanzas):
    old = [text.replace(V, "575.64.03") for text in stanzas]
    chosen = repository.driver_packages(index(*old, *stanzas), V)
    assert chosen
    assert {repository.upstream(package.version) for package in chosen} == {V}
    assert not any(repository.is_kernel(package.name) for package in chosen)


def test_of_one_version_the_newest_packaging_is_taken():
    there = index(stanza("libcuda1", f"{V}-1"), stanza("libcuda1", f"{V}-3"), stanza("libcuda1", f"{V}-2"))
    assert [package.version for package in repository.driver_packages(there, V)] == [f"{V}-3"]


@pytest.mark.parametrize(
    ("stanzas", "words"),
    [
        ([], "it has no driver of that branch at all"),
        ([stanza("libcuda1", "575.64.03-1"), stanza("libcuda1", "580.65.06-1")], "it has 575.64.03, 580.65.06"),
        ([stanza("libnvidia-compute-575", "575.64.03-1")], "no driver of that branch"),
        ([stanza("nvidia-smi", f"{V}-1")], f"has no driver {V}"),
    ],
)
def test_a_version_that_is_not_there(stanzas, words):
    with pytest.raises(NvidiaError, match=words):
        repository.driver_packages(index(*stanzas), V)


@pytest.mark.parametrize(
    "name", ["nvidia-kernel-dkms", "nvidia-dkms-{branch}", "nvidia-kernel-open-dkms", "firmware-nvidia-gsp",
             "nvidia-modprobe"],
)
def test_a_package_for_a_kernel_is_refused(name):
    with pytest.raises(NvidiaError, match="is for a kernel"):
        repository.driver_packages(index(*DEBIAN), V, ["libcuda1", name])


def test_other_packages_can_be_named():
    there = index(stanza("libcuda1", f"{V}-1"), stanza("own-580", f"{V}-1"))
    chosen = repository.driver_packages(there, V, ["libcuda1", "own-{branch}"])
    assert [package.name for package in chosen] == ["libcuda1", "own-580"]


@pytest.mark.parametrize("name", repository.DRIVER_PACKAGES)
def test_no_usual_package_is_for_a_kernel(name):
    assert not repository.is_kernel(name)


def test_an_index_is_read():
    there = index(stanza("a", "1-1", "b (>= 1), c | d, e:amd64"), stanza("a", "2-1"), stanza("x", "1", arch="arm64"))
    assert [package.version for package in there["a"]] == ["1-1", "2-1"]
    assert there["a"][0].depends == ("b", "c", "e")
    assert there["a"][0].filename == "a_1-1_amd64.deb"
    assert there["a"][0].size == 10
    assert "x" not in there


def test_a_package_without_a_hash_is_none():
    assert index(stanza("a", "1").replace("SHA256", "MD5sum")) == {}


@given(st.text())
def test_any_index_is_read(text):
    assert isinstance(repository.packages(text), dict)


RELEASE = f"""Origin: NVIDIA
MD5Sum:
 d41d8cd98f00b204e9800998ecf8427e 10 Packages
SHA256:
 {"aa" * 32} 100 Packages
 {"bb" * 32} 50 Packages.gz
Date: x
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (RELEASE, ("Packages.gz", "bb" * 32)),
        (RELEASE.replace("Packages.gz", "./Packages.gz"), ("Packages.gz", "bb" * 32)),
        (RELEASE.replace("Packages.gz", "Packages.xz"), ("Packages.xz", "bb" * 32)),
        (RELEASE.replace("Packages.gz", "other"), ("Packages", "aa" * 32)),
        (RELEASE.replace("Date: x\n", ""), ("Packages.gz", "bb" * 32)),
    ],
)
def test_which_index_is_read(text, found):
    assert repository.index_of(text) == found


@pytest.mark.parametrize(
    "text", ["", "SHA256:\n", "SHA256:\n aa 1 main/binary-amd64/Packages\n", RELEASE.replace("SHA256", "SHA1")]
)
def test_a_release_without_an_index(text):
    with pytest.raises(NvidiaError, match="names no index"):
        repository.index_of(text)


@pytest.mark.parametrize(
    ("name", "pack"), [("Packages", bytes), ("Packages.gz", gzip.compress), ("Packages.xz", lzma.compress)]
)
def test_an_index_is_unpacked(name, pack):
    assert repository.unpacked(name, pack(b"Package: x\n")) == "Package: x\n"


@pytest.mark.parametrize("name", ["Packages.gz", "Packages.xz"])
# What is packed has the time in it, and so its name would have: workers that share the tests must agree on names.
@pytest.mark.parametrize(
    "data", [b"", b"x", gzip.compress(b"Package: x\n" * 100)[:20], lzma.compress(b"x" * 99)[:30]],
    ids=["nothing", "no archive", "half a gzip", "half an xz"],
)  # fmt: skip
def test_a_damaged_index(name, data):
    if not data and name.endswith("gz"):
        assert repository.unpacked(name, data) == ""
        return
    with pytest.raises(NvidiaError, match="can't be unpacked"):
        repository.unpacked(name, data)


VALID = "[GNUPG:] NEWSIG\n[GNUPG:] VALIDSIG {0} 2025-09-01 1756684800 0 4 0 1 10 01 {1}\n"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (VALID.format(KEY, KEY), ""),
        (VALID.format("11" * 20, KEY), ""),  # a subkey of it
        (VALID.format(OTHER, OTHER), ""),
        (VALID.format("22" * 20, "22" * 20), f"is signed by the key {'22' * 20}"),
        (VALID.format(KEY, "22" * 20), "nvidia_repo_key_fingerprints doesn't have it"),
        ("[GNUPG:] NO_PUBKEY A4B469963BF863CC\n", "is signed by the key …A4B469963BF863CC, and none of"),
        ("[GNUPG:] ERRSIG A4B469963BF863CC 1 10 01 1 9 -\n", "is signed by the key …A4B469963BF863CC"),
        (f"[GNUPG:] BADSIG {KEY[-16:]} x\n", "is not what was signed"),
        ("", "has no valid signature"),
        ("VALIDSIG " + KEY, "has no valid signature"),
    ],
)
def test_who_has_signed(status, words):
    problem = repository.signer_problem(status, [KEY, "0218 2E60 104F CDC2 6EAE  1B85 97A5 D4CB 8793 f200"])
    assert (words in problem) if words else problem == ""


UNBOUND = """Signing key on {0} is not bound:
           No binding signature at time 2026-11-28T11:17:48Z
  because: SHA1 is not considered secure since 2013-02-01T00:00:00Z
0 of 1 signatures are valid (threshold is: 1).
"""


@pytest.mark.parametrize(
    ("stdout", "stderr", "words"),
    [
        (f"{KEY}\n", "1 of 1 signatures are valid (threshold is: 1).\n", ""),
        (f"{'22' * 20}\n{OTHER}\n", "", ""),
        # As the first releases of sqv write a fingerprint.
        ("EB69 3B30 35CD 5710 E231  E123 A4B4 6996 3BF8 63CC\n", "", ""),
        (f"{'22' * 20}\n", "", f"is signed by the key {'22' * 20}, and nvidia_repo_key_fingerprints doesn't have it"),
        ("", f"Missing key {'AB' * 20}, which is needed to verify signature.\n", f"the key …{'AB' * 8}, and none of"),
        ("", "Verifying signature:\n           Message has been manipulated\n", "is not what was signed"),
        ("", UNBOUND.format(KEY), f"sqv said: Signing key on {KEY} is not bound: No binding signature at"),
        ("", "", "has no valid signature; sqv said: nothing"),
    ],
)  # fmt: skip
def test_who_has_signed_by_sqv(stdout, stderr, words):
    problem = repository.sqv_problem(stdout, stderr, [KEY, OTHER])
    assert (words in problem) if words else problem == ""
    assert "1 signatures" not in problem


SIGNED = """-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA512

Origin: x
- - a line with a dash
- -----BEGIN PGP SIGNATURE-----
SHA256:
-----BEGIN PGP SIGNATURE-----

abcd
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize("signed", [SIGNED, f"evil\n{SIGNED}evil\n", SIGNED.replace("\n", "\r\n")])
def test_the_parts_of_a_signed_text(signed):
    text, signature = repository.signed_parts(signed)
    assert text == "Origin: x\n- a line with a dash\n-----BEGIN PGP SIGNATURE-----\nSHA256:"
    assert signature == "-----BEGIN PGP SIGNATURE-----\n\nabcd\n-----END PGP SIGNATURE-----\n"


@pytest.mark.parametrize("signed", ["", "Origin: x\n", SIGNED[:-30], SIGNED.replace("\n\nOrigin", "\nOrigin")])
def test_what_is_no_signed_text(signed):
    with pytest.raises(NvidiaError, match="isn't a signed text"):
        repository.signed_parts(signed)


@pytest.mark.parametrize(
    ("fingerprints", "words"),
    [([KEY], ""), ([KEY.lower()], ""), ([], "is empty"), ([KEY[-8:]], "is no fingerprint"), (["x" * 40], "no fing")],
)
def test_what_a_fingerprint_is(fingerprints, words):
    problem = repository.fingerprint_problem(fingerprints)
    assert (words in problem) if words else problem == ""


def test_the_names_of_keys():
    assert repository.key_names([KEY]) == ["3bf863cc.pub", "3BF863CC.pub"]
    assert "8793F200.pub" in repository.key_names(repository.FINGERPRINTS)


BODY = bytes([0x99, 1, 13]) + bytes(range(200))
ARMOUR = (
    "-----BEGIN PGP PUBLIC KEY BLOCK-----\nVersion: GnuPG v2.0.22 (GNU/Linux)\n\n{0}\n=abcd\n"
    "-----END PGP PUBLIC KEY BLOCK-----\n"
)


@pytest.mark.parametrize(
    "data",
    [BODY, ARMOUR.format(base64.encodebytes(BODY).decode()).encode(),
     ARMOUR.replace("Version: GnuPG v2.0.22 (GNU/Linux)\n", "").format(base64.encodebytes(BODY).decode()).encode()],
)  # fmt: skip
def test_a_key_in_either_form(data):
    assert repository.binary_key(data) == BODY


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", ARMOUR.format("!!!").encode(), ARMOUR.format("").encode()])
def test_what_is_no_key(data):
    with pytest.raises(NvidiaError, match="is no OpenPGP key"):
        repository.binary_key(data)


TOOLKITS = [f"cuda-nvcc-{version}" for version in ("12-6", "12-8", "12-9", "13-0", "13-1")]


@pytest.mark.parametrize(
    ("there", "wanted", "found"),
    [
        (TOOLKITS, "12.8", "12.8"), (TOOLKITS, "12.9", "12.9"), (TOOLKITS, "13.0", "13.0"),
        (TOOLKITS, "12.7", "12.8"), ([*TOOLKITS, "cuda-nvcc-12-10"], "12.10", "12.10"),
        (["cuda-nvcc-13-2", "cuda-nvcc-13-1"], "13.0", "13.1"),
    ],
)  # fmt: skip
def test_which_toolkit_is_taken(there, wanted, found):
    assert repository.toolkit_version(there, wanted) == found


@pytest.mark.parametrize(
    ("there", "wanted", "words"),
    [
        (TOOLKITS, "12.10", "has no CUDA toolkit 12.10, and no newer one of the same major version; it has 12.6, 12.8"),
        (["cuda-nvcc-13-0"], "12.8", "it has 13.0"),
        (["cuda-nvcc-dev", "x"], "12.8", "it has none at all"),
    ],
)
def test_a_toolkit_that_is_not_there(there, wanted, words):
    with pytest.raises(NvidiaError, match=words):
        repository.toolkit_version(there, wanted)


def test_a_toolkits_packages_come_with_what_they_need_of_it():
    there = index(
        stanza("cuda-nvcc-13-0", "13.0.48-1", "cuda-crt-13-0, build-essential"),
        stanza("cuda-nvcc-13-0", "13.0.88-1", "cuda-crt-13-0, cuda-nvvm-13-0 (>= 13.0.88)"),
        stanza("cuda-crt-13-0", "13.0.88-1"),
        stanza("cuda-nvvm-13-0", "13.0.88-1", "cuda-drivers-13-0"),
        stanza("cuda-drivers-12-9", "12"),
        stanza("cuda-nvcc-12-9", "12.9.1-1"),
        stanza("libcublas-dev-13-0", "13.1.0-1", "libcublas-13-0"),
        stanza("libcublas-13-0", "13.1.0-1", "libnvidia-compute-580"),
        stanza("libnvidia-compute-580", f"{V}-1"),
    )
    chosen = {package.name: package.version for package in repository.toolkit_packages(there, "13.0")}
    assert chosen == {
        "cuda-crt-13-0": "13.0.88-1", "cuda-nvcc-13-0": "13.0.88-1", "cuda-nvvm-13-0": "13.0.88-1",
        "libcublas-13-0": "13.1.0-1", "libcublas-dev-13-0": "13.1.0-1",
    }  # fmt: skip


def test_a_circle_of_packages_ends():
    there = index(stanza("cuda-nvcc-13-0", "1-1", "a-13-0"), stanza("a-13-0", "1-1", "cuda-nvcc-13-0"))
    assert [package.name for package in repository.toolkit_packages(there, "13.0")] == ["a-13-0", "cuda-nvcc-13-0"]
