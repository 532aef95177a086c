# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
from dataclasses import replace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import Seen, StateError, Target, UnitError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_switch import Room

RELEASE = "/opt/vllm-releases/cpu-0123456789ab"
PROBE = {"host": "127.0.0.1", "port": 8000, "tls": False, "path": "/v1/completions", "body": {}, "key": "k3y"}
TARGET = Target("d", "unit", "config", 'HF_TOKEN="a\\"b"\n', RELEASE, "/var/cache/vllm", PROBE, "tiny")
RUNNING = {"ActiveState": "active", "SubState": "running", "UnitFileState": "enabled", "NeedDaemonReload": "no",
           "NRestarts": "0", "InvocationID": "i1"}  # fmt: skip
SEEN = Seen(
    user=True, config="config", files=frozenset(server_plan.file_names("d")), files_right=True, unit="unit", guard=True,
    cache=True, link=RELEASE, properties=RUNNING, digest="d", good="d",
    watchdog={}, watching=False,
)  # fmt: skip


def actions(**change) -> list[str]:
    """The steps for what there is when one thing is not as it should be."""
    seen = replace(SEEN, **{**change, "properties": {**RUNNING, **change.get("properties", {})}})
    steps = server_plan.plan(TARGET, seen, "vllm", "x.service", "/etc/vllm/engine.yaml", "/opt/vllm")
    assert all(step.text for step in steps)
    return [step.action for step in steps]


def test_nothing_to_do():
    assert actions() == []


def test_the_first_time():
    steps = actions(
        user=False, config=None, files=frozenset(), files_right=False, unit=None, guard=False, cache=False, digest="",
        good="", properties={"ActiveState": "inactive", "UnitFileState": ""},
    )  # fmt: skip
    assert steps == ["user", "cache", "guard", "config", "unit", "reload", "enable", "start", "keep"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"config": "old", "files": frozenset({"engine-o.yaml"}), "files_right": False, "unit": "o", "digest": "o",
             "good": "o"},
            ["config", "unit", "reload", "restart", "keep", "tidy"],
        ),
        ({"files_right": False}, ["config"]),
        ({"guard": False}, ["guard"]),
        ({"cache": False}, ["cache"]),
        ({"properties": {"NeedDaemonReload": "yes"}}, ["reload"]),
        ({"properties": {"UnitFileState": "disabled"}}, ["enable"]),
        ({"properties": {"ActiveState": "failed"}, "digest": ""}, ["start"]),
        # A run that died between writing and restarting.
        ({"digest": "old", "good": "old"}, ["restart", "keep"]),
        ({"digest": ""}, ["restart"]),
        ({"properties": {"ActiveState": "activating", "SubState": "auto-restart"}, "digest": ""}, ["restart"]),
        # It is still loading: nothing to do but to wait.
        ({"properties": {"ActiveState": "activating", "SubState": "start"}}, []),
        # One that died after the server answered, before it was written down; and one after that.
        ({"good": "old"}, ["keep"]),
        ({"files": SEEN.files | {"engine-old.yaml"}}, ["tidy"]),
        # Back on another release.
        ({"link": "/opt/vllm-releases/other"}, ["link"]),
        # A folder of one's own at the place of the link is left alone.
        ({"link": ""}, []),
    ],
)  # fmt: skip
def test_plans(change, expected):
    assert actions(**change) == expected


NAMES = ("x_watchdog.service", "x_watchdog.timer")
UNITS = dict(zip(NAMES, ("service", "timer")))


@pytest.mark.parametrize(
    ("there", "watching", "wanted", "expected"),
    [
        ({}, False, None, []),
        (UNITS, False, None, []),
        ({}, False, {}, []),
        ({}, False, UNITS, [("watch", "write x_watchdog.service and x_watchdog.timer")]),
        (UNITS, True, UNITS, []),
        (UNITS, False, UNITS, [("watch", "start x_watchdog.timer")]),
        ({**UNITS, NAMES[0]: "o"}, True, UNITS, [("watch", "change x_watchdog.service and x_watchdog.timer")]),
        # A run that was killed between the two files.
        ({NAMES[0]: "service"}, False, UNITS, [("watch", "change x_watchdog.service and x_watchdog.timer")]),
        (UNITS, True, {}, [("unwatch", "stop and remove x_watchdog.service and x_watchdog.timer")]),
        ({NAMES[1]: "timer"}, False, {}, [("unwatch", "stop and remove x_watchdog.timer")]),
    ],
)
def test_the_watchdog(there, watching, wanted, expected):
    assert server_plan.watchdog_names("x.service") == NAMES
    seen = replace(SEEN, watchdog=there, watching=watching)
    steps = server_plan.plan(TARGET, seen, "vllm", "x.service", "/etc/vllm/engine.yaml", watchdog=wanted)
    assert [(step.action, step.text) for step in steps] == expected


def test_the_watchdog_knows_how_long_a_server_may_load_before_it_starts():
    seen = replace(SEEN, unit="old", digest="old")
    steps = server_plan.plan(TARGET, seen, "vllm", "x.service", "/etc/vllm/engine.yaml", watchdog=UNITS)
    assert [step.action for step in steps] == ["unit", "reload", "watch", "restart"]


def test_the_files_are_there_before_the_unit_that_names_them():
    """The unit is the one thing that a change replaces; what it names has to be whole by then."""
    steps = actions(config="old", files_right=False, unit="old", digest="old", link="/x")
    assert steps.index("config") < steps.index("unit") < steps.index("reload") < steps.index("restart")


def test_a_state_comes_back_from_its_text():
    assert Target.from_json(TARGET.to_json()) == TARGET
    for text in ("", "{}", "[]", "null", TARGET.to_json()[:-20]):
        with pytest.raises(StateError, match="damaged"):
            Target.from_json(text)


def test_what_is_hidden_is_what_the_file_of_secrets_stands_for():
    assert TARGET.hidden == ["k3y", 'a"b']
    text = server_plan.secrets_file({"HF_TOKEN": 'q"\\$`%#', "VLLM_API_KEY": ""})
    assert text.splitlines()[1:] == ['HF_TOKEN="q\\"\\\\\\$\\`%#"']
    assert replace(TARGET, secrets=text).hidden[1] == 'q"\\$`%#'
    assert server_plan.secrets_file({"HF_TOKEN": "", "VLLM_API_KEY": ""}) == ""


@pytest.mark.parametrize("value", ["two words", "line\n", "ü", "\0"])
def test_a_key_that_no_header_holds_is_refused_without_being_shown(value):
    with pytest.raises(UnitError, match="VLLM_API_KEY: a key has only") as caught:
        server_plan.secrets_file({"VLLM_API_KEY": value})
    assert value not in str(caught.value).replace(" ", "  ")


WORDS = {"@EXEC_START@": "a", "@DIGEST@": "d", "@ENVIRONMENT@": "", "@CACHE@": "/c", "@GUARD@": "/g"}


def test_the_unit_is_filled_in_at_once():
    template = '@DIGEST@ @EXEC_START@\n@ENVIRONMENT@\n"@CACHE@" @GUARD@ @OTHER@\n'
    assert server_plan.fill_unit(template, WORDS) == 'd a\n"/c" /g @OTHER@\n'
    filled = server_plan.fill_unit(template, {**WORDS, "@EXEC_START@": "@DIGEST@ @CACHE@", "@ENVIRONMENT@": "E=1"})
    assert filled == 'd @DIGEST@ @CACHE@\nE=1\n"/c" /g @OTHER@\n'


@pytest.mark.parametrize("template", ["@DIGEST@", "@EXEC_START@", "@DIGEST@ @EXEC_START@"])
def test_a_template_without_its_words_is_refused(template):
    with pytest.raises(UnitError, match="template has no @"):
        server_plan.fill_unit(template, {**WORDS, "@ENVIRONMENT@": "E=1"})


def test_the_digest_follows_all_that_a_state_is_made_of():
    digests = {server_plan.make_digest(b"s", *material) for material in ("ab", "ac", "bb", ["a", "b", ""])}
    assert len(digests) == 4
    assert server_plan.make_digest(b"s", "a") == server_plan.make_digest(b"s", "a")
    # Nobody who reads the unit can try keys against it.
    assert server_plan.make_digest(b"s", "a") != server_plan.make_digest(b"t", "a")
    unit = f"Environment=PHOENIX_DIGEST={server_plan.make_digest(b's', 'a')}\n"
    assert server_plan.digest_in(unit) == server_plan.make_digest(b"s", "a")
    assert server_plan.digest_in(None) == server_plan.digest_in("Environment=PHOENIX_DIGEST=\n") == ""


@pytest.mark.parametrize(
    ("record", "version", "sampler", "expected"),
    [
        ({"flashinfer": "0.3.1"}, "0.10.2", True, "1"),
        ({"flashinfer": ""}, "0.10.2", True, "0"),
        ({"flashinfer": "0.3.1"}, "0.10.2", False, "0"),
        # A record of the time before it said so, or none.
        ({}, "0.10.2", True, "1"),
        ({}, "", True, "1"),
        # An explicit 1 ends a server of these where it can't work.
        ({"flashinfer": "0.6.6"}, "0.26.0", True, None),
        ({"flashinfer": "0.6.6"}, "0.32.0+cu130", True, None),
        ({"flashinfer": ""}, "0.32.0", True, "0"),
        ({"flashinfer": "0.6.6"}, "0.32.0", False, "0"),
        # No GPU.
        ({"flashinfer": ""}, "0.32.0+cpu", None, None),
    ],
)
def test_the_sampler_follows_config_and_release(record, version, sampler, expected):
    found = server_plan.release_environment("/r", record, version, sampler, 0)
    assert found.pop("VLLM_USE_FLASHINFER_SAMPLER", None) == expected
    assert list(found) == ["PATH"] and found["PATH"].startswith("/r/bin:")


@pytest.mark.parametrize(("version", "expected"), [("0.10.2", "2"), ("0.25.1", "2"), ("0.26.0", None)])
def test_flash_attention_is_said_where_it_is_read(version, expected):
    found = server_plan.release_environment("/r", {}, version, True, 2)
    assert found.get("VLLM_FLASH_ATTN_VERSION") == expected
    assert "VLLM_FLASH_ATTN_VERSION" not in server_plan.release_environment("/r", {}, version, True, 0)


def test_variables_are_quoted_for_systemd():
    lines = server_plan.environment_lines({"B": '50% "x"\n', "A": "1"}, "/etc/vllm/secrets-d.env")
    assert lines.splitlines() == [
        'Environment="A=1"', 'Environment="B=50%% \\"x\\"\\n"', "EnvironmentFile=/etc/vllm/secrets-d.env"
    ]  # fmt: skip
    assert server_plan.environment_lines({}, "") == ""


@pytest.mark.parametrize(
    ("now", "dead"),
    [
        ({}, False),
        ({"ActiveState": "activating", "SubState": "start"}, False),
        ({"ActiveState": "failed", "SubState": "failed"}, True),
        ({"ActiveState": "inactive", "SubState": "dead"}, True),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, True),
        # systemd has started it again between two looks.
        ({"NRestarts": "1", "InvocationID": "i2"}, True),
        # It had restarts before; or somebody restarted it by hand.
        ({"NRestarts": "3"}, False),
        ({"InvocationID": "i2"}, False),
        # The former server is being stopped for a restart.
        ({"ActiveState": "deactivating", "SubState": "stop-sigterm"}, False),
        ({"ActiveState": "failed", "Job": "123"}, False),
        ({"ActiveState": "failed", "Job": "0"}, True),
    ],
)
def test_a_server_that_ended_is_noticed(now, dead):
    assert server_plan.is_dead({**RUNNING, **now}, "i1") is dead


def test_what_it_does_in_words():
    assert "stopped" in server_plan.doing({"ActiveState": "deactivating", "SubState": "stop-sigterm"})
    assert "GPU" in server_plan.doing({"ActiveState": "activating", "SubState": "start-pre"})
    assert "loading" in server_plan.doing(RUNNING)


HISTORY = [
    {"digest": name, "release": f"r-{name[0]}", "model": "m", "at": "t"} for name in ("aa1", "bb1", "aa1", "ab2", "cc3")
]
THERE = {"aa1", "ab2", "cc3"}


def test_the_former_state_is_the_last_good_one_that_is_still_there():
    assert server_plan.former(HISTORY, "cc3", THERE) == "ab2"
    assert server_plan.former(HISTORY, "other", THERE) == "cc3"
    assert server_plan.former(HISTORY, "cc3", {"bb1", "cc3"}) == "bb1"
    assert server_plan.former(HISTORY, "cc3", {"cc3"}) == server_plan.former([], "", THERE) == ""


def test_of_each_state_the_latest_entry_stays():
    assert [entry["digest"] for entry in server_plan.kept(HISTORY, 9)] == ["bb1", "aa1", "ab2", "cc3"]
    assert [entry["digest"] for entry in server_plan.kept(HISTORY, 2)] == ["ab2", "cc3"]


@pytest.mark.parametrize(
    ("name", "digest"), [("previous", "ab2"), ("aa1", "aa1"), ("ab", "ab2"), ("r-a", "ab2"), ("c", "cc3")]
)
def test_a_state_is_found_by_what_people_call_it(name, digest):
    assert server_plan.find(name, HISTORY, "cc3", THERE) == digest


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a", "2 states begin with a. Kept are: aa1 (release r-a, model m, t); ab2"),
        ("zz", "There is no state zz. Kept are: .*cc3 .release r-c, model m, t, live"),
        ("bb1", "There is no state bb1"),
    ],
)
def test_a_state_that_there_is_not_is_refused_with_those_that_there_are(name, sentence):
    pattern = sentence if ".*" in sentence else sentence.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(StateError, match=pattern):
        server_plan.find(name, HISTORY, "cc3", THERE)


def test_nothing_before_is_said():
    with pytest.raises(StateError, match="no former state"):
        server_plan.find("previous", HISTORY[-1:], "cc3", THERE)


def test_reading():
    assert server_plan.properties("A=1\nB=x=y\n\nC=\n") == {"A": "1", "B": "x=y", "C": ""}
    assert server_plan.environment(b"A=1\0PHOENIX_DIGEST=ab\0\0x") == {"A": "1", "PHOENIX_DIGEST": "ab"}


OLD = {"unit": "o", "digest": "o", "good": "o"}


@pytest.mark.parametrize(
    ("room", "change", "expected"),
    [
        (Room(True, "why"), OLD, ["beside", "unit", "reload", "restart", "keep", "over"]),
        (Room(False, "why"), OLD, ["unit", "reload", "restart", "keep"]),
        (Room(False, "why", fetch=True), OLD, ["fetch", "unit", "reload", "restart", "keep"]),
        (None, OLD, ["unit", "reload", "restart", "keep"]),
        # It runs what is declared, or nothing runs: nobody's place is taken.
        (Room(True, "why"), {}, []),
        (Room(True, "why", fetch=True), {"properties": {"ActiveState": "failed"}, "digest": ""}, ["start"]),
        # What a run that was killed left.
        (None, {"beside": "x"}, ["over"]),
        (None, {**OLD, "beside": "d"}, ["unit", "reload", "restart", "keep", "over"]),
    ],
)
def test_plans_of_a_switch(room, change, expected):
    seen = replace(SEEN, **{**change, "properties": {**RUNNING, **change.get("properties", {})}})
    steps = server_plan.plan(TARGET, seen, "vllm", "x.service", "/etc/vllm/engine.yaml", "", room, 57.3)
    assert [step.action for step in steps] == expected
    told = next((step.text for step in steps if step.action == "restart"), "")
    if told:
        assert told == "restart x.service" + (
            "" if room is None
            else ", while the one beside it answers" if room.overlap
            else ", and nothing answers until it has loaded: why; the last start took 57 s"
        )  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("ready", "the model server is loading"),
        ("beside", "the new server is loading beside the old one"),
        ("fetch", "the model is being fetched, the old server answers"),
        ("drain", "the new server answers, the old one finishes what it has begun"),
        ("over", "the new server answers, the one beside it finishes what it has begun"),
    ],
)
def test_how_far_a_switch_is(phase, words):
    assert server_plan.doing({"ActiveState": "active", "SubState": "running"}, phase) == words
    waits = server_plan.doing({"ActiveState": "activating", "SubState": "start-pre"}, phase)
    assert (waits == words) == (phase not in ("ready", "beside"))


# --- its certificate ----------------------------------------------------------------------------------------------

FLAGS = {"ssl-certfile": {"kind": "text"}, "enable-ssl-refresh": {"kind": "boolean"}}
PAIR = ("/c/fullchain.pem", "/c/privkey.pem")


@pytest.mark.parametrize(
    ("arguments", "ca", "expected"),
    [
        ({}, "", False),
        ({}, "/c/ca.pem", False),
        ({"ssl-certfile": "/mine.pem"}, "", True),
        ({"ssl-certfile": "/mine.pem"}, "/c/ca.pem", {"ca": "/c/ca.pem", "name": "a"}),
    ],
)
def test_without_a_certificate_of_the_role_s(arguments, ca, expected):
    assert server_plan.tls("", "", ca, "a", arguments, FLAGS) == (expected, {})


@pytest.mark.parametrize(
    ("arguments", "flags", "refresh"),
    [
        ({}, FLAGS, True),
        ({"enable-ssl-refresh": True}, FLAGS, True),
        ({"enable-ssl-refresh": False}, FLAGS, False),
        # Another release, or one whose table nobody has.
        ({}, {"ssl-certfile": {}}, False),
        ({}, {}, False),
    ],
)
def test_a_certificate_of_the_role_s(arguments, flags, refresh):
    asked, added = server_plan.tls(*PAIR, "/c/ca.pem", "a", arguments, flags)
    assert asked["refresh"] is refresh and added.get("enable-ssl-refresh", False) is refresh
    assert (asked["ca"], asked["name"], asked["certificate"], asked["key"]) == ("/c/ca.pem", "a", *PAIR)
    assert added["ssl-certfile"] == added["ssl-keyfile"] == asked["file"]
    assert re.fullmatch(r"/run/vllm_model_server/[0-9a-f]{16}\.pem", asked["file"])


@pytest.mark.parametrize("arguments", [{"ssl-certfile": "/mine.pem"}, {"ssl-keyfile": "/mine.pem"}])
def test_two_certificates_are_refused(arguments):
    with pytest.raises(UnitError, match=r"^ssl_(cert|key)file is in vllm_engine_config, and the role has a "):
        server_plan.tls(*PAIR, "", "a", arguments, FLAGS)
    with pytest.raises(UnitError, match="vllm_model_server_key_file is not: set both"):
        server_plan.tls(PAIR[0], "", "", "a", {}, FLAGS)


@pytest.mark.parametrize(
    ("refresh", "how"), [(True, ""), (False, ", for which it is restarted when it has answered its requests")]
)
def test_a_renewal_that_was_not_taken_over_is_a_step(refresh, how):
    target = replace(TARGET, probe={**PROBE, "tls": {"refresh": refresh}})
    [step] = server_plan.plan(target, replace(SEEN, certified=False), "vllm", "x.service", "/c")
    assert (step.action, step.text) == ("certificate", f"have x.service serve the certificate that was renewed{how}")
    # One that is replaced takes it by itself.
    steps = server_plan.plan(target, replace(SEEN, certified=False, digest="o"), "vllm", "x.service", "/c")
    assert [step.action for step in steps] == ["restart"]


def test_what_copies_the_certificate_is_a_line_of_the_unit():
    words = {"@EXEC_START@": "x", "@DIGEST@": "d", "@CERTIFICATE@": "ExecStartPre=+copy"}
    template = "a\n@CERTIFICATE@\n@EXEC_START@ @DIGEST@\n"
    assert server_plan.fill_unit(template, words) == "a\nExecStartPre=+copy\nx d\n"
    assert server_plan.fill_unit(template, {**words, "@CERTIFICATE@": ""}) == "a\nx d\n"
    with pytest.raises(UnitError, match="has no @CERTIFICATE@ in it"):
        server_plan.fill_unit(template.replace("@CERTIFICATE@", ""), words)


def test_the_diff_shows_what_changes_and_no_secret():
    seen = replace(SEEN, config='api-key: "k3y"\nport: 1\n', unit=None, watchdog={"w.timer": "old"})
    steps = [server_plan.Step("config", "write it"), server_plan.Step("start", "start it")]
    config, unit, timer, told = server_plan.diff(TARGET, seen, steps, "/etc/vllm/engine.yaml", "/x.service", {})
    assert (config["before_header"], config["after"]) == ("/etc/vllm/engine.yaml", "config")
    assert "port: 1" in config["before"] and "k3y" not in config["before"]
    assert (unit["before"], unit["after"], unit["after_header"]) == ("", "unit", "/x.service")
    assert timer == {"before_header": "w.timer", "after_header": "w.timer", "before": "old", "after": ""}
    assert told == {"prepared": "write it\nstart it\n"}
    assert len(server_plan.diff(TARGET, seen, steps, "a", "b", None)) == 3, "nothing is said of the watchdog"
