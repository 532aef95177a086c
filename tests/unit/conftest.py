# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several unit tests use.

Property tests generate as many cases as Hypothesis itself thinks right, or many with HYPOTHESIS_PROFILE=full.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from ansible.module_utils import basic
from ansible_collections.phoenix.hypervisor.plugins.module_utils import inside, process
from hypothesis import settings

try:
    from ansible.module_utils.testing import patch_module_args
except ImportError:
    # ansible-core 2.17 has no function for it.
    @contextlib.contextmanager
    def patch_module_args(args: dict) -> Iterator[None]:
        """Let the next module that is run in this process find these arguments."""
        basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": args}).encode()
        try:
            yield
        finally:
            basic._ANSIBLE_ARGS = None


# pyproject.toml says this to pytest; `ansible-test units` has settings of its own.
sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

# A loaded machine is slow now and then; a case that takes long is no fault.
settings.register_profile("usual", deadline=None)
settings.register_profile("full", max_examples=10_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))


@pytest.fixture
def run_main(monkeypatch) -> Callable[..., dict]:
    """A function that runs a module's main with options, and gives what it returns, its warnings included."""

    def run(module: ModuleType, check: bool = False, diff: bool = True, **options) -> dict:
        out, warnings = io.StringIO(), []
        monkeypatch.setattr(basic.sys, "stdout", out)
        # Where a warning goes depends on what of Ansible other tests have loaded.
        monkeypatch.setattr(basic.AnsibleModule, "warn", lambda self, warning: warnings.append(warning))
        # The log of the machine that runs the tests is none of theirs.
        monkeypatch.setattr(basic.AnsibleModule, "log", lambda *_words, **_options: None)
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": diff}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return {**json.loads(out.getvalue()), "warnings": warnings}

    return run


class Attach:
    """Enters a container that is this machine: runs what follows lxc-attach's own words."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.running = True
        self._run = process.run

    def read(self, vmid: int) -> SimpleNamespace:
        conf = SimpleNamespace(main=SimpleNamespace(values={}))
        return SimpleNamespace(exists=vmid == 921, running=self.running, conf=conf)

    def run(self, argv, timeout=None, **how) -> process.Finished:
        self.calls.append(tuple(argv))
        return self._run(argv[argv.index("--") + 1 :], timeout, **how)


@pytest.fixture
def attach(monkeypatch) -> Attach:
    """The container 921 is this machine."""
    it = Attach()
    monkeypatch.setattr(inside.node, "read", it.read)
    monkeypatch.setattr(inside.process, "run", it.run)
    monkeypatch.setattr(inside.family, "guarded", lambda mark: contextlib.nullcontext())
    return it
