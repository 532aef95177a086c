#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_release
short_description: Install a release of a vLLM stack and make it the live one
version_added: 0.1.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - A release is a folder (a Python virtual environment) below O(releases), named by the digest of the stack's lock.
    It is installed beside the live one, tried, and then made the live one by moving the link O(link) in one step.
  - A folder whose installation did not finish is recognised (it has no C(release.json)) and installed again.
  - The releases that were there before stay.
  - Runs where the model server runs, in the container. Needs Python's C(venv) there; it brings its own C(uv).
options:
  stack:
    description:
      - What the stack is, as its C(stack.yml) says.
    type: dict
    required: true
    suboptions:
      name:
        description: The stack's name; the release's name begins with it.
        type: str
        required: true
      title:
        description: What it is, for people.
        type: str
      method:
        description: How it is installed.
        type: str
        choices: [wheel]
        required: true
      python:
        description: The version of Python that it is locked for, C(3.11) for example.
        type: str
        required: true
      vllm:
        description: The version that C(vllm --version) must say.
        type: str
        required: true
      uv:
        description: The uv that installs it.
        type: dict
        required: true
        suboptions:
          version:
            description: Its version.
            type: str
            required: true
          hashes:
            description: SHA-256 digests of its wheels.
            type: list
            elements: str
            required: true
      distribution_aliases:
        description: Distributions (name and version) that are recorded as installed and have no files.
        type: dict
        default: {}
      torch_backend:
        description:
          - uv's torch backend that has this stack's PyTorch. It is asked when the container's own index and
            find-links folder don't have all packages.
        type: str
        default: ""
      excluded:
        description: Packages that were left out of the lock.
        type: list
        elements: str
        default: []
      system_packages:
        description: Packages of the distribution that the stack needs. The role installs them.
        type: list
        elements: str
        default: []
      environment:
        description: Environment variables of every model server on this stack. Not used here.
        type: dict
        default: {}
      gpu:
        description: Whether the stack needs a GPU. Not used here.
        type: bool
        default: false
  requirements:
    description:
      - The lock, every package with its version and its hashes (the format of C(pip --require-hashes)).
    type: str
    required: true
  torch_index:
    description:
      - URL of an index that has the stack's PyTorch, for a site with a mirror. Empty asks uv's own place for it.
    type: str
    default: ""
  releases:
    description: The folder of the releases.
    type: path
    default: /opt/vllm-releases
  link:
    description: The link to the live release.
    type: path
    default: /opt/vllm
  log:
    description: The file that the installer's output goes to, as it comes.
    type: path
    default: /var/log/vllm-release.log
attributes:
  check_mode:
    support: full
    description: Tells the steps of the plan that the real run executes.
  diff_mode:
    support: full
    description: Shows the live release before and after.
  idempotent:
    support: full
    description: A release that is live costs two reads.
"""

EXAMPLES = r"""
- name: Install the stack for the CPU
  phoenix.hypervisor.vllm_release:
    stack: "{{ lookup('ansible.builtin.file', 'stacks/cpu/stack.yml') | from_yaml }}"
    requirements: "{{ lookup('ansible.builtin.file', 'stacks/cpu/requirements.lock') }}"
"""

RETURN = r"""
release:
  description: The name of the release.
  type: str
  returned: success
  sample: cpu-0123456789ab
path:
  description: Its folder.
  type: str
  returned: success
  sample: /opt/vllm-releases/cpu-0123456789ab
previous:
  description: The folder that was live before, empty when there was none.
  type: str
  returned: success
  sample: ""
plan:
  description: What was done, or would be done in check mode, a sentence for each step.
  type: list
  elements: str
  returned: success
  sample: ["install release cpu-0123456789ab"]
built:
  description: Whether the release was installed by this run (or would be, in check mode).
  type: bool
  returned: success
log:
  description: Where the installer's output is.
  type: str
  returned: success
seconds:
  description: How long the installation took when it was done.
  type: float
  returned: success
"""

import contextlib
import fcntl
import json
import os
import shutil
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import release_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.release_plan import Seen, StackError

# The service can't write into the release, so without this Python would compile thousands of files again at every
# start. The gate imports, as root and once, what a server imports, and lets the command say its version.
GATE = (
    "import runpy, sys; import vllm.entrypoints.cli.serve, vllm.v1.engine.core, vllm.v1.engine.async_llm; "
    "sys.argv = [sys.argv[1], '--version']; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def read_json(path):
    """Return the object in a JSON file, None when there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write(path, text):
    """Write a file in one step, readable for everyone."""
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Installer:
    """Reads what there is and executes the steps of a plan."""

    def __init__(self, module):
        self.module = module
        self.stack = module.params["stack"]
        self.requirements = module.params["requirements"]
        self.releases = module.params["releases"]
        self.link = module.params["link"]
        self.log = module.params["log"]
        self.release = release_plan.release_name(self.stack, self.requirements)
        self.path = os.path.join(self.releases, self.release)
        self.tools = os.path.join(self.releases, f".uv-{self.stack['uv']['version']}")
        self.uv = os.path.join(self.tools, "bin", "uv")

    def look(self):
        """Return what there is."""
        is_link = os.path.islink(self.link)
        record = read_json(os.path.join(self.path, release_plan.RECORD))
        return Seen(
            live=os.path.join(os.path.dirname(self.link), os.readlink(self.link)) if is_link else "",
            in_the_way=not is_link and os.path.lexists(self.link),
            record=record,
            half_done=record is None and os.path.lexists(self.path),
            uv=os.path.exists(os.path.join(self.tools, "complete")),
        )

    def run(self, what, argv, environment=None, fatal=True):
        """Run a program with its output in the log. Return (exit code, output).

        Args:
            what: what it is for, for the message.
            argv: the program and its arguments.
            environment: variables to set besides those that are there.
            fatal: end the module when it fails.
        """
        start = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        # The shell only opens the log: the output is there while the program runs.
        shell = ["/bin/sh", "-c", 'log=$1; shift; exec "$@" >>"$log" 2>&1 </dev/null', "sh", self.log, *argv]
        # With this variable set Python would not keep what it compiles.
        code, _stdout, _stderr = self.module.run_command(
            shell, environ_update={"PYTHONDONTWRITEBYTECODE": "", **(environment or {})}
        )
        with open(self.log, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            output = file.read()
        if code and fatal:
            self.fail(what, code, output)
        return code, output

    def fail(self, what, code, output):
        """End the module: one sentence, what to do, the installer's last words and where the others are."""
        tail = release_plan.last_lines(output)
        remedy = release_plan.explain(output, self.stack["python"])
        self.module.fail_json(
            msg=f"Release {self.release} could not be installed: {what} failed (exit code {code}). "
            + (f"{remedy} " if remedy else "")
            + f"The live release was not touched. The whole output is in {self.log}; its end:\n"
            + "\n".join(tail),
            release=self.release,
            log=self.log,
        )

    def apply(self, step):
        """Execute one step."""
        getattr(self, f"do_{step.action}")()

    def do_uv(self):
        """Install uv into a virtual environment of its own."""
        shutil.rmtree(self.tools, ignore_errors=True)
        requirement = os.path.join(self.releases, ".uv-requirements.txt")
        write(requirement, release_plan.uv_requirement(self.stack))
        self.run("making a virtual environment for uv", ["/usr/bin/python3", "-m", "venv", self.tools])
        self.run(
            "installing uv with pip",
            [
                os.path.join(self.tools, "bin", "pip"), "install", "--disable-pip-version-check", "--no-input",
                "--no-cache-dir", "--no-compile", "--require-hashes", "--no-deps", "--only-binary", ":all:",
                "--requirement", requirement,
            ],
        )  # fmt: skip
        write(os.path.join(self.tools, "complete"), "")

    def do_remove(self):
        """Remove what an unfinished installation left."""
        shutil.rmtree(self.path)

    def do_build(self):
        """Install the release. Its record comes last."""
        began = time.monotonic()
        # Wheels are unpacked once in the cache and linked into the releases: it takes no room of its own.
        environment = {
            "UV_CACHE_DIR": os.path.join(self.releases, ".cache"),
            "UV_PYTHON_INSTALL_DIR": os.path.join(self.releases, ".python"),
            "UV_NO_PROGRESS": "1",
        }
        python = os.path.join(self.path, "bin", "python")
        self.run(
            f"making the virtual environment (Python {self.stack['python']})",
            [self.uv, "venv", "--python", self.stack["python"], self.path],
            environment,
        )
        lock = os.path.join(self.path, "requirements.lock")
        write(lock, self.requirements)
        install = [
            *[self.uv, "pip", "install", "--python", python],
            *["--require-hashes", "--no-deps", "--requirement", lock],
        ]
        code = 1
        output = ""
        for places in self.places():
            code, output = self.run("installing the packages", [*install, *places], environment, fatal=False)
            # A further place helps when a package wasn't found, and nothing else.
            if not code or "no solution found" not in output.lower():
                break
        if code:
            self.fail("installing the packages", code, output)
        self.record_aliases(python, environment)
        self.gate(python)
        record = release_plan.record(
            self.stack,
            self.requirements,
            time.monotonic() - began,
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        write(os.path.join(self.path, release_plan.RECORD), json.dumps(record, indent=2, sort_keys=True) + "\n")

    def places(self):
        """Return where packages are looked for, in turn, as options of uv. Hashes make any place as good as another."""
        if self.module.params["torch_index"]:
            index = self.module.params["torch_index"]
            return [["--extra-index-url", index, "--index-strategy", "unsafe-best-match"]]
        backend = self.stack["torch_backend"]
        return [[], ["--torch-backend", backend]] if backend else [[]]

    def record_aliases(self, python, environment):
        """Record the distributions that have a name and a version only."""
        for name, version in sorted(self.stack["distribution_aliases"].items()):
            _code, output = self.run(
                "finding the release's site-packages",
                [python, "-c", "import sysconfig; print('purelib=' + sysconfig.get_path('purelib'))"],
                environment,
            )
            folder = [line[8:] for line in output.splitlines() if line.startswith("purelib=")][-1]
            entry = os.path.join(folder, f"{name}-{version}.dist-info")
            os.makedirs(entry, exist_ok=True)
            write(os.path.join(entry, "METADATA"), release_plan.alias_metadata(name, version))
            write(os.path.join(entry, "INSTALLER"), "phoenix.hypervisor\n")
            write(os.path.join(entry, "RECORD"), "".join(
                f"{name}-{version}.dist-info/{file},,\n" for file in ("METADATA", "INSTALLER", "RECORD")
            ))

    def gate(self, python):
        """Make sure that the release works before it can go live."""
        command = os.path.join(self.path, "bin", "vllm")
        code, output = self.run("`vllm --version` (the gate of the release)", [python, "-c", GATE, command])
        said = release_plan.last_lines(output, 1)
        if said != [self.stack["vllm"]]:
            self.fail(f"the version check (wanted {self.stack['vllm']}, it says {' '.join(said)!r})", code, output)

    def do_switch(self):
        """Make the release the live one, in one step."""
        temporary = f"{self.link}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(self.path, temporary)
        os.replace(temporary, self.link)


def main():
    """Run as a module."""
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "stack": {
                "type": "dict",
                "required": True,
                "options": {
                    "name": text,
                    "title": {"type": "str"},
                    "method": {"type": "str", "choices": ["wheel"], "required": True},
                    "python": text,
                    "vllm": text,
                    "uv": {
                        "type": "dict",
                        "required": True,
                        "options": {
                            "version": text,
                            "hashes": {"type": "list", "elements": "str", "required": True},
                        },
                    },
                    "distribution_aliases": {"type": "dict", "default": {}},
                    "torch_backend": {"type": "str", "default": ""},
                    "excluded": {"type": "list", "elements": "str", "default": []},
                    "system_packages": {"type": "list", "elements": "str", "default": []},
                    "environment": {"type": "dict", "default": {}},
                    "gpu": {"type": "bool", "default": False},
                },
            },
            "requirements": text,
            "torch_index": {"type": "str", "default": ""},
            "releases": {"type": "path", "default": "/opt/vllm-releases"},
            "link": {"type": "path", "default": "/opt/vllm"},
            "log": {"type": "path", "default": "/var/log/vllm-release.log"},
        },
        supports_check_mode=True,
    )
    try:
        release_plan.check_stack(module.params["stack"], module.params["requirements"])
        converge(module, Installer(module))
    except StackError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"The release could not be installed: {error.strerror} ({error.filename}). "
            + release_plan.explain(str(error.strerror), module.params["stack"]["python"])
        )


def converge(module, installer):
    """Read, plan, and execute the plan unless only asked to tell it."""

    def steps_now():
        seen = installer.look()
        steps = release_plan.plan(
            seen, installer.release, installer.path, installer.link, installer.stack["uv"]["version"]
        )
        return seen, steps

    seen, steps = steps_now()
    if steps and not module.check_mode:
        os.makedirs(installer.releases, mode=0o755, exist_ok=True)
        with open(os.path.join(installer.releases, ".lock"), "w", encoding="utf-8") as lock:
            # Another run may be installing: wait for it, then look again at what is left to do.
            fcntl.flock(lock, fcntl.LOCK_EX)
            seen, steps = steps_now()
            for step in steps:
                installer.apply(step)
    record = read_json(os.path.join(installer.path, release_plan.RECORD)) or {}
    after = installer.path if steps else seen.live
    module.exit_json(
        changed=bool(steps),
        release=installer.release,
        path=installer.path,
        previous=seen.live,
        plan=[step.text for step in steps],
        built=any(step.action == "build" for step in steps),
        log=installer.log,
        seconds=record.get("seconds", 0.0),
        diff={
            "before_header": installer.link,
            "after_header": installer.link,
            "before": f"{seen.live or 'no release'}\n",
            "after": f"{after}\n" + "".join(f"# {step.text}\n" for step in steps),
        },
    )


if __name__ == "__main__":
    main()
