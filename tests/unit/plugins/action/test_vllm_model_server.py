# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible.plugins.action import ActionBase
from ansible_collections.phoenix.hypervisor.plugins.action.vllm_model_server import ActionModule
from ansible_collections.phoenix.hypervisor.plugins.plugin_utils import progress

RUNNING = {"running": True, "changed": True, "progress": "loading, for 8 s", "plan": ["restart x"], "diff": ["d"],
           "again": {"waiting": {"digest": "d"}, "wait": 30}}  # fmt: skip
LATER = {"running": True, "changed": True, "progress": "loading, for 40 s", "again": RUNNING["again"]}


@pytest.fixture
def call(monkeypatch):
    """Run the action with a module that gives these results in turn. Returns (result, options of each call)."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    said = []
    monkeypatch.setattr(progress.display, "display", said.append)
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp, task_vars: {})

    def run(*results):
        left, calls = list(results), []

        def execute(module_args=None, task_vars=None):
            calls.append(module_args)
            return dict(left.pop(0))

        action = ActionModule.__new__(ActionModule)
        action._task = SimpleNamespace(args={"unit": "u"})
        action._execute_module = execute
        result = action.run(task_vars={"inventory_hostname": "ctid_921"})
        assert not left
        return result, calls

    run.said = said
    return run


def test_a_server_that_answers_at_once_is_one_call(call):
    result, calls = call({"changed": False, "completion": "x"})
    assert result == {"changed": False, "completion": "x"} and calls == [None]


def test_what_the_first_call_planned_is_the_task_s(call):
    result, calls = call(RUNNING, LATER, {"changed": True, "completion": "x"})
    assert (result["plan"], result["diff"], result["changed"]) == (["restart x"], ["d"], True)
    assert "running" not in result and result["completion"] == "x"
    assert calls == [None, {"unit": "u", **RUNNING["again"]}, {"unit": "u", **RUNNING["again"]}]
    assert call.said == ["[ctid_921] loading, for 8 s", "[ctid_921] loading, for 40 s"], "what the first call said, too"


def test_a_change_that_was_undone_failed(call):
    result, _calls = call(RUNNING, {"failed": True, "undone": True, "changed": True, "msg": "m"})
    assert result["failed"] and result["undone"] and result["plan"] == ["restart x"]


def test_a_mistake_is_told_after_one_call(call):
    result, calls = call({"failed": True, "msg": "The engine config can't be used"})
    assert result["failed"] and len(calls) == 1
