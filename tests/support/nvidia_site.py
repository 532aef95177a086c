# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What NVIDIA publishes and a node with a GPU has, in miniature and made here; no byte of it is NVIDIA's.

Libraries are real ones that a loader takes: glibc's empty libutil and its libthread_db, with other sonames of the same
length. Runfiles are shell scripts with an archive behind them, as makeself makes them. The repository is signed.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

LIBRARIES = Path("/lib/x86_64-linux-gnu")
SMI = '#!/bin/sh\necho "NVIDIA-SMI {0}  Driver Version: {0}"\n'
RUN = """#!/bin/sh
# A stand-in for NVIDIA's self-extracting archive.
MD5="@MD5@"
skip=@SKIP@
target=.
action=run
while [ $# -gt 0 ]; do
    case $1 in
        --check) action=check;;
        -x|--extract-only|--noexec) action=extract;;
        --target) shift; target=$1;;
    esac
    shift
done
payload() { tail -n "+$skip" "$0"; }
case $action in
    check)
        test "$(payload | md5sum | cut -c1-32)" = "$MD5" || { echo "Error in MD5 checksums" >&2; exit 2; };;
    extract)
        mkdir -p "$target" && payload | tar -xz -C "$target";;
    run)
        # A real one would build a kernel module now.
        touch @RAN@; exit 1;;
esac
exit 0
"""


def library(soname: str, version: str = "") -> bytes:
    """A shared library with this soname, which says a version somewhere."""
    source = {12: "libutil.so.1", 17: "libthread_db.so.1"}.get(len(soname))
    if source is None:
        return f"{soname} {version}".encode()
    data = (LIBRARIES / source).read_bytes()
    assert source.encode() in data
    return data.replace(source.encode(), soname.encode()) + f"\0{version}\0".encode()


def driver_files(version: str) -> dict[str, bytes]:
    """The files of a driver, as a runfile has them: name → content."""
    return {
        f"libcuda.so.{version}": library("libcuda.so.1", version),
        f"libnvidia-ml.so.{version}": library("libnvidia-ml.so.1", version),
        f"libnvidia-ptxjitcompiler.so.{version}": library("x", version),
        f"libnvidia-nvvm.so.{version}": library("y", version),
        "nvidia-smi": SMI.format(version).encode(),
    }


def toolkit_files(version: str) -> dict[str, bytes]:
    """The files of a toolkit, below its folder."""
    nvcc = f'#!/bin/sh\necho "Cuda compilation tools, release {version}, V{version}.88"\n'
    return {
        "bin/nvcc": nvcc.encode(),
        "targets/x86_64-linux/include/cuda_runtime.h": f"// {version}\n".encode(),
        "targets/x86_64-linux/lib/libcudart_static.a": b"!<arch>\n",
        "nvvm/bin/cicc": b"#!/bin/sh\n",
    }


def runfile(path: Path, files: Mapping[str, bytes], ran: Path) -> str:
    """Write a runfile, and give its SHA-256.

    :param ran: what it makes when somebody runs what is in it
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755 if data.startswith(b"#!") else 0o644
            archive.addfile(member, io.BytesIO(data))
    body = packed.getvalue()
    text = RUN.replace("@RAN@", str(ran)).replace("@MD5@", hashlib.md5(body).hexdigest())
    text = text.replace("@SKIP@", str(len(text.splitlines()) + 1))
    path.write_bytes(text.encode() + body)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def node_root(root: Path, version: str, folder: str = "usr/lib/x86_64-linux-gnu") -> None:
    """What a node with a driver has: its libraries, and what its kernel says."""
    (root / "usr/bin").mkdir(parents=True, exist_ok=True)
    (root / folder).mkdir(parents=True, exist_ok=True)
    for old in (root / folder).glob("lib*"):
        old.unlink()
    for name, data in driver_files(version).items():
        path = root / ("usr/bin" if name == "nvidia-smi" else folder) / name
        path.write_bytes(data)
        path.chmod(0o755)
    kernel(root, version)


def kernel(root: Path, version: str) -> Path:
    """What the kernel's driver says, in its own words."""
    path = root / "proc/driver/nvidia/version"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (dvs@U22)\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    return path


class Repository:
    """A flat apt repository, signed by a key of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._home = folder.parent / f"gpg-{folder.name}"
        self._home.mkdir(mode=0o700)
        self._stanzas: list[str] = []
        self._gpg("--quick-gen-key", "Stand-in <x@example.org>", "ed25519", "sign", "never")
        colons = self._gpg("--with-colons", "--list-keys").decode()
        self.fingerprint = next(line.split(":")[9] for line in colons.splitlines() if line.startswith("fpr"))
        (folder / f"{self.fingerprint[-8:]}.pub").write_bytes(self._gpg("--armor", "--export"))

    def close(self) -> None:
        """End what gpg has left running."""
        subprocess.run(["gpgconf", "--homedir", str(self._home), "--kill", "all"], check=False, capture_output=True)

    def _gpg(self, *words: str, data: bytes = b"") -> bytes:
        command = ["gpg", "--homedir", str(self._home), "--batch", "--yes", "--passphrase", "", *words]
        # gpg waits five seconds for its agent to start, which is not enough on a loaded machine.
        for _attempt in range(4):
            done = subprocess.run(command, input=data, check=False, capture_output=True)
            if done.returncode == 0:
                return done.stdout
        raise AssertionError(done.stderr.decode())

    def add(self, name: str, version: str, files: Mapping[str, bytes], depends: str = "") -> None:
        """Add a package."""
        tree = self.folder.parent / "tree"
        for path, data in files.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o755 if data.startswith(b"#!") else 0o644)
        (tree / "DEBIAN").mkdir(parents=True)
        needs = f"Depends: {depends}\n" if depends else ""
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n{needs}"
        control += "Maintainer: x <x@example.org>\nDescription: a stand-in\n"
        (tree / "DEBIAN/control").write_text(control)
        file = f"{name}_{version}_amd64.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(self.folder / file)],
            check=True, capture_output=True,
        )  # fmt: skip
        shutil.rmtree(tree)
        data = (self.folder / file).read_bytes()
        self._stanzas.append(
            f"{control}Filename: ./{file}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        )

    def add_driver(self, version: str) -> None:
        """Add the packages of a driver, one with a kernel module among them."""
        files = driver_files(version)
        lib = "usr/lib/x86_64-linux-gnu"
        packages = {
            "libcuda1": ("libcuda", "libnvidia-nvvm."), "libnvidia-ml1": ("libnvidia-ml",),
            "libnvidia-ptxjitcompiler1": ("libnvidia-ptxjit",),
        }  # fmt: skip
        for name, starts in packages.items():
            self.add(name, f"{version}-1", {f"{lib}/{k}": v for k, v in files.items() if k.startswith(starts)})
        self.add("nvidia-smi", f"{version}-1", {"usr/bin/nvidia-smi": files["nvidia-smi"]}, "libnvidia-ml1")
        self.add("nvidia-kernel-dkms", f"{version}-1", {"usr/src/nvidia/nvidia.ko": b"kernel"})

    def add_toolkit(self, version: str) -> None:
        """Add the packages of a toolkit."""
        files = {f"usr/local/cuda-{version}/{path}": data for path, data in toolkit_files(version).items()}
        dash = version.replace(".", "-")
        nvvm = {path: data for path, data in files.items() if "/nvvm/" in path}
        rest = {path: data for path, data in files.items() if path not in nvvm}
        self.add(f"cuda-nvvm-{dash}", f"{version}.88-1", nvvm)
        self.add(f"cuda-nvcc-{dash}", f"{version}.88-1", rest, f"cuda-nvvm-{dash}, build-essential")

    def sign(self) -> None:
        """Write the index, and sign it."""
        index = gzip.compress("\n".join(self._stanzas).encode(), mtime=0)
        (self.folder / "Packages.gz").write_bytes(index)
        release = f"Origin: stand-in\nSHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} Packages.gz\n"
        (self.folder / "InRelease").write_bytes(self._gpg("--clearsign", data=release.encode()))


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder.

    :ivar asked: the paths that were asked for
    :ivar cut: names that end in the middle, as when a connection breaks
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.cut: set[str] = set()
        super().__init__((address, 0), _Handler)

    @property
    def url(self) -> str:
        """The folder's URL."""
        return f"http://{self.server_address[0]}:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        self.server.asked.append(self.path)
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = len(data) // 2 if path.name in self.server.cut else len(data)
        with contextlib.suppress(OSError):
            self.wfile.write(data[start:end])

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path, address: str = "127.0.0.1") -> Iterator[Server]:
    """A server for the time of the block."""
    server = Server(folder, address)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def with_tools() -> bool:
    """Whether this machine has what a repository is made and checked with."""
    return all(shutil.which(name) for name in ("gpg", "gpgv", "dpkg-deb")) and os.path.exists(LIBRARIES)
