# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import Seen, UnitError, Wanted

UNIT, DIGEST = server_plan.fill_unit("A=@DIGEST@\nExecStart=@EXEC_START@\n", "/opt/vllm/bin/vllm serve m", "c", "r")
WANTED = Wanted(config="c", unit=UNIT, digest=DIGEST, user="vllm")
RUNNING = {
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
    "MainPID": "7",
    "NRestarts": "0",
}
SEEN = Seen(user=True, config="c", config_access=True, unit=UNIT, properties=RUNNING, digest=DIGEST)


def actions(**change) -> list[str]:
    properties = {**RUNNING, **change.pop("properties", {})}
    seen = replace(SEEN, properties=properties, **change)
    return [step.action for step in server_plan.plan(WANTED, seen, "x.service", "/etc/vllm/engine.yaml")]


def test_nothing_to_do():
    assert actions() == []


def test_a_machine_with_nothing():
    nothing = {"ActiveState": "inactive", "UnitFileState": ""}
    assert actions(user=False, config=None, config_access=False, unit=None, properties=nothing, digest="") == [
        *["user", "config", "unit", "reload", "enable", "start"]
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"config": "old", "digest": "old"}, ["config", "restart"]),
        ({"config_access": False}, ["config"]),
        ({"unit": "old", "digest": "old"}, ["unit", "reload", "restart"]),
        ({"properties": {"NeedDaemonReload": "yes"}}, ["reload"]),
        ({"properties": {"UnitFileState": "disabled"}}, ["enable"]),
        ({"properties": {"ActiveState": "failed"}, "digest": ""}, ["start"]),
        # A run that died between writing and restarting; a new release behind the same link.
        ({"digest": "old"}, ["restart"]),
        ({"digest": ""}, ["restart"]),
        ({"properties": {"ActiveState": "activating", "SubState": "auto-restart"}, "digest": ""}, ["restart"]),
        # It is still loading: nothing to do but to wait.
        ({"properties": {"ActiveState": "activating", "SubState": "start"}}, []),
    ],
)
def test_plans(change, expected):
    assert actions(**change) == expected


def test_the_digest_follows_unit_config_and_release():
    template = "@DIGEST@ @EXEC_START@"
    digests = {
        server_plan.fill_unit(*arguments)[1]
        for arguments in (
            (template, "a", "c", "r"),
            (template + " ", "a", "c", "r"),
            (template, "b", "c", "r"),
            (template, "a", "d", "r"),
            (template, "a", "c", "s"),
        )
    }
    assert len(digests) == 5
    unit, digest = server_plan.fill_unit(template, "a", "c", "r")
    assert unit == f"{digest} a"
    # A command line that has one of the words in it keeps it.
    unit, digest = server_plan.fill_unit(template, "@DIGEST@ @EXEC_START@", "c", "r")
    assert unit == f"{digest} @DIGEST@ @EXEC_START@"


@pytest.mark.parametrize("template", ["@DIGEST@", "@EXEC_START@"])
def test_a_template_without_its_words_is_refused(template):
    with pytest.raises(UnitError, match="template has no @"):
        server_plan.fill_unit(template, "a", "c", "r")


@pytest.mark.parametrize(
    ("now", "dead"),
    [
        ({}, False),
        ({"ActiveState": "activating", "SubState": "start"}, False),
        ({"ActiveState": "failed", "SubState": "failed"}, True),
        ({"ActiveState": "inactive", "SubState": "dead"}, True),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, True),
        ({"NRestarts": "1"}, True),
        # The former server is being stopped for a restart.
        ({"ActiveState": "deactivating", "SubState": "stop-sigterm"}, False),
        ({"ActiveState": "failed", "Job": "123"}, False),
        ({"ActiveState": "failed", "Job": "0"}, True),
    ],
)
def test_a_server_that_ended_is_noticed(now, dead):
    assert server_plan.is_dead({**RUNNING, **now}, RUNNING) is dead


def test_restarts_before_the_waiting_do_not_count():
    assert not server_plan.is_dead({**RUNNING, "NRestarts": "3"}, {**RUNNING, "NRestarts": "3"})
    assert not server_plan.is_dead({**RUNNING, "NRestarts": "0"}, {**RUNNING, "NRestarts": "3"})


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([], ""),
        (["INFO all is well"], ""),
        (
            [
                "(EngineCore pid=9) ERROR 11-21 05:06:44 [core.py:402] Traceback (most recent call last):",
                "(EngineCore pid=9) ERROR 11-21 05:06:44 [core.py:402] torch.OutOfMemoryError: CUDA out of memory.",
                "(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above. Failed: {}",
            ],
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
        (
            ["Traceback (most recent call last):", '  File "x"', "ValueError: no such model"],
            "ValueError: no such model",
        ),
        (["usage: vllm serve", "vllm serve: error: unrecognized arguments: --x"], "vllm serve: error: unrecognized "
         "arguments: --x"),
        (["KeyboardInterrupt"], "KeyboardInterrupt"),
        (["OSError: [Errno 98] Address already in use", "done"], "OSError: [Errno 98] Address already in use"),
    ],
)
def test_the_cause_is_the_first_process_exception(lines, cause):
    assert server_plan.cause(lines) == cause


def test_reading():
    assert server_plan.properties("A=1\nB=x=y\n\nC=\n") == {"A": "1", "B": "x=y", "C": ""}
    assert server_plan.environment(b"A=1\0PHOENIX_DIGEST=ab\0\0x") == {"A": "1", "PHOENIX_DIGEST": "ab"}
    assert server_plan.tail(["a", "", "b ", "c"], 2) == ["b", "c"]
