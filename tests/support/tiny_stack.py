# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stack that takes a second to install: wheels made here, with a vLLM that can say its version, and an index of them.

The index is a real HTTP server that the lab's containers reach. It can be told to be slow or to break.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import unquote

import yaml
from ansible_collections.phoenix.hypervisor.plugins.module_utils import stack as stacks

ADDRESS = "10.92.0.1"
ROOT = Path(__file__).resolve().parents[2]
CPU = ROOT / "roles/vllm_stack/files/stacks/cpu/stack.yml"
# What a server of vLLM imports, and so what a gate imports.
MODULES = ("vllm/__init__.py", "vllm/entrypoints/__init__.py", "vllm/entrypoints/cli/__init__.py",
           "vllm/v1/__init__.py", "vllm/v1/engine/__init__.py")  # fmt: skip
DATE = (2026, 1, 1, 0, 0, 0)
SAY = "def main():\n    print('{says}')\n"


def make_wheel(
    folder: Path, name: str, version: str, files: dict[str, str], scripts: dict[str, str] | None = None
) -> Path:
    """Make a wheel.

    :param files: path → text
    :param scripts: command → what it calls
    """
    info = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if scripts:
        lines = "".join(f"{command} = {target}\n" for command, target in scripts.items())
        content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}"
    rows = []
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in content.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append(f"{file},sha256={digest},{len(text.encode())}\n")
            archive.writestr(zipfile.ZipInfo(file, DATE), text, zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", DATE), "".join(rows) + f"{info}/RECORD,,\n")
    return path


def sha256(path: Path) -> str:
    """The digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Tiny:
    """The stack's wheels, and candidates of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.uv = yaml.safe_load(CPU.read_text())["uv"]
        command = ["download", "--quiet", "--no-deps", "--dest", str(folder), f"uv=={self.uv['version']}"]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True, timeout=300)
        make_wheel(folder, "torch", "9.9.0", {
            "torch/__init__.py": "from . import version\n__version__ = version.__version__\n",
            "torch/version.py": "__version__ = '9.9.0'\ncuda = None\n",
        })  # fmt: skip

    def candidate(self, vllm: str = "1.0", says: str = "", **change) -> dict:
        """A candidate: one version of vLLM, and what it says that it is.

        :param change: keys of the candidate with other values
        """
        says = says or vllm
        wheel = self.folder / f"vllm-{vllm}-py3-none-any.whl"
        if not wheel.exists():
            make_wheel(self.folder, "vllm", vllm, parts_of(vllm, says), {"vllm": "vllm.entrypoints.cli.main:main"})
        torch = self.folder / "torch-9.9.0-py3-none-any.whl"
        lines = {"torch": ("9.9.0", sha256(torch)), "vllm": (vllm, sha256(wheel))}
        made = {
            "stack": "tiny", "title": "tiny", "python": "3.11", "vllm": vllm, "torch": "9.9.0", "cuda": "",
            "channel": "stable", "torch_index": "", "method": "wheel", "flashinfer": "",
            "requirements": "".join(f"{name}=={v} \\\n    --hash=sha256:{h}\n" for name, (v, h) in lines.items()),
            "build_requirements": "", "aliases": {}, "uv": self.uv, "pip": {}, "source": {},
            "requires": {"driver": "", "toolkit": "", "arch": []}, "environment": {},
            "packages": {"install": [], "build": []}, **change,
        }  # fmt: skip
        return {"release": stacks.release_name(made), **made}

    def write(self, stacks_folder: Path, vllm: str = "1.0", says: str = "", source: dict | None = None, **more) -> None:
        """Write the stack C(tiny) into a folder of stacks.

        :param vllm: its version, and C(says) what its wheel says that it is
        :param source: where its sources are, C(repository) and C(commit)
        :param more: keys of its C(stack.yml)
        """
        made = self.candidate(vllm, says)
        folder = stacks_folder / "tiny"
        folder.mkdir(parents=True, exist_ok=True)
        stack = {
            "name": "tiny", "method": "wheel", "python": "3.11", "gpu": False, "uv": made["uv"],
            "torch": {"version": "9.9.0", "cuda": "cpu"}, "vllm": {"version": vllm, **(source or {})}, **more,
        }  # fmt: skip
        (folder / "stack.yml").write_text(yaml.safe_dump(stack))
        (folder / "requirements.lock").write_text(made["requirements"])
        # A FlashInfer with hashes of its own may be a source distribution: there must be what would build it.
        build = made["requirements"].split("vllm==")[0] + self.setuptools()
        (folder / "build.lock").write_text(build)

    def setuptools(self) -> str:
        """The lines of a lock with what builds Python packages."""
        if not list(self.folder.glob("setuptools-*.whl")):
            command = ["download", "--quiet", "--no-deps", "--dest", str(self.folder), "setuptools==79.0.1"]
            subprocess.run([sys.executable, "-m", "pip", *command], check=True, timeout=300)
        (wheel,) = self.folder.glob("setuptools-*.whl")
        return f"setuptools=={wheel.name.split('-')[1]} \\\n    --hash=sha256:{sha256(wheel)}\n"


def parts_of(vllm: str, says: str) -> dict[str, str]:
    """The files of a vLLM, path → text.

    :param vllm: its version
    :param says: what it says that it is
    """
    cli = {"serve": "", "main": SAY.format(says=says)}
    return {
        **dict.fromkeys(MODULES, ""),
        **{f"vllm/entrypoints/cli/{name}.py": text for name, text in cli.items()},
        **{f"vllm/v1/engine/{name}.py": "" for name in ("core", "async_llm")},
        # Another text makes another wheel of the same version.
        "vllm/README": f"{vllm} says {says}\n" + "x" * 50_000,
    }


# As vLLM's: the version comes from the environment of the build.
SETUP = """
import os
from setuptools import find_packages, setup
setup(name="vllm", version=os.environ["SETUPTOOLS_SCM_PRETEND_VERSION"], packages=find_packages(),
      entry_points={"console_scripts": ["vllm = vllm.entrypoints.cli.main:main"]})
"""


def write_sources(tree: Path, vllm: str) -> None:
    """Write the sources of a vLLM, which say what they are whatever they are built as."""
    for name, text in {**parts_of(vllm, vllm), "setup.py": SETUP, "requirements.txt": "torch == 2.8.0\n"}.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Index:
    """A simple index of a folder's files on the lab's bridge, without hashes, as small mirrors are.

    Attributes:
        requests: the paths that were asked for.
        pause: seconds that each file takes.
        broken: file → an HTTP status, or C(cut) for an answer that ends in the middle.
    """

    def __init__(self, folder: Path):
        self.requests: list[str] = []
        self.pause = 0.0
        self.broken: dict[str, int | str] = {}
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """Answers."""

            protocol_version = "HTTP/1.0"

            def log_message(self, *words):
                """Say nothing."""

            def do_GET(self):
                """Give a page of an index, or a file."""
                path = unquote(self.path)
                index.requests.append(path)
                name = path.strip("/").rpartition("/")[2]
                if path.startswith("/simple/"):
                    there = [file.name for file in folder.iterdir()]
                    names = [file for file in there if file.split("-")[0] == name.replace("-", "_")]
                    anchors = "".join(f'<a href="/files/{file}">{file}</a>\n' for file in names)
                    self.answer(anchors.encode(), "text/html")
                    return
                time.sleep(index.pause)
                problem = index.broken.get(name)
                if isinstance(problem, int):
                    self.send_error(problem)
                    return
                body = (folder / name).read_bytes()
                self.answer(body, "application/octet-stream", len(body) // 2 if problem == "cut" else len(body))

            def answer(self, body: bytes, content_type: str, count: int | None = None):
                """Send a body, or the first bytes of it."""
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:count])

        self.server = http.server.ThreadingHTTPServer((ADDRESS, 0), Handler)
        # Whoever asks may be killed before the answer.
        self.server.handle_error = lambda request, address: None
        self.url = f"http://{ADDRESS}:{self.server.server_port}/simple"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def files(self) -> list[str]:
        """The files that were asked for."""
        return [path.rpartition("/")[2] for path in self.requests if path.startswith("/files/")]

    def mend(self) -> None:
        """Be a good index again, that was asked for nothing."""
        self.pause, self.broken = 0.0, {}
        self.requests.clear()

    def close(self) -> None:
        """End."""
        self.server.shutdown()
        self.server.server_close()
