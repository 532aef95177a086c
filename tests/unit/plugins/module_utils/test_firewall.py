# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall file, what may be declared, and the edits between them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import firewall
from ansible_collections.phoenix.hypervisor.plugins.module_utils.firewall import (
    Content,
    Declared,
    FirewallError,
    Rule,
)
from hypothesis import given
from hypothesis import strategies as st

# A file of a person's hand: comments, an alias, an IP set, a disabled rule, a line that is none, no order of words.
BY_HAND = """\
# keep this
[OPTIONS]
enable: 1
dhcp: 1
Policy_In: drop

[ALIASES]
office 192.168.10.0/24 # the office

[IPSET trusted] # known ones
10.0.0.1
!10.0.0.2

[rules]
# who may come in
IN SSH(ACCEPT) -log nolog -source office
|IN ACCEPT -i net0 --proto tcp -dport 80,443 # web, # later

IN ACCEPT -port 22
GROUP monitoring -i net0
OUT DROP -dest +trusted -p udp --sport 53"""

RULES = (
    Rule("in", "ACCEPT", "SSH", source="office", log="nolog"),
    Rule("in", "ACCEPT", iface="net0", proto="tcp", dport="80,443", comment="web, # later", enable=False),
    Rule("group", "monitoring", iface="net0"),
    Rule("out", "DROP", dest="+trusted", proto="udp", sport="53"),
)

words = st.sampled_from(["", "10.0.0.0/8", "+trusted", "office"])
comments = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=12).filter(str.isprintable)
filters = st.builds(
    Rule,
    type=st.sampled_from(["in", "out"]),
    action=st.sampled_from(firewall.ACTIONS),
    macro=st.sampled_from(["", "SSH", "HTTPS"]),
    iface=st.sampled_from(["", "net0", "net31"]),
    source=words,
    dest=words,
    proto=st.sampled_from(["", "tcp", "47"]),
    dport=st.sampled_from(["", "22", "80,443", "8000:8010"]),
    sport=st.sampled_from(["", "53"]),
    log=st.sampled_from(["", *firewall.LOG_LEVELS]),
    icmp_type=st.sampled_from(["", "echo-request"]),
    comment=comments.map(lambda text: text.strip(" \t")),
    enable=st.booleans(),
)
groups = st.builds(
    Rule,
    type=st.just("group"),
    action=st.sampled_from(["monitoring", "web"]),
    iface=st.sampled_from(["", "net1"]),
    enable=st.booleans(),
)
rules = st.lists(filters | groups, max_size=7)
# Few different ones, so that lists have much in common.
few = st.lists(st.sampled_from([*RULES, Rule("in", "DROP"), Rule("out", "REJECT")]), max_size=8)


def planned(text: str, wanted: list[Rule] | None, **options: str) -> str:
    """A file's content after a plan."""
    return firewall.edit_text(text, firewall.plan(Declared(options, wanted), firewall.parse(text)))


# --- the file -----------------------------------------------------------------------------------------------------


def test_reads_what_proxmox_reads():
    content = firewall.parse(BY_HAND)
    assert content.rules == RULES
    assert (content.option("enable"), content.option("policy_in"), content.option("policy_out")) == (
        "1",
        "DROP",
        "ACCEPT",
    )
    assert content.strange == ("IN ACCEPT -port 22",)


def test_writes_a_rule_as_proxmox_does():
    rule = Rule("in", "ACCEPT", "", "net0", "10.0.0.0/8", "+web", "tcp", "22", "1:9", "info", "", "ours", False)
    line = "|IN ACCEPT -i net0 -source 10.0.0.0/8 -dest +web -p tcp -dport 22 -sport 1:9 -log info # ours"
    assert rule.line == line
    assert Rule("group", "monitoring", iface="net0", source="x").line == "GROUP monitoring -i net0"
    assert Rule("in", "DROP", "Ping").line == "IN Ping(DROP)"


@pytest.mark.parametrize(
    "line",
    [
        "IN",
        "| IN ACCEPT",
        "IN ACCEPT -i  net0",
        "IN ACCEPT -comment x",
        "IN ACCEPT -log loud",
        "GROUP web -p tcp",
        "IN ACCEPT --i net0",
    ],
)
def test_a_line_that_proxmox_passes_over_is_no_rule(line):
    assert firewall.parse_rule(line) is None


@given(rules)
def test_a_written_rule_is_read_as_the_same(some):
    content = firewall.parse("[RULES]\n" + "".join(f"{rule.line}\n" for rule in some))
    assert list(content.rules) == some
    assert not content.strange


@given(few, few)
def test_what_is_no_rule_stays_to_the_byte(before, wanted):
    around = "# top\n[ALIASES]\na  10.0.0.1\n\n[IPSET x]\n10.0.0.9 # y\n\n[RULES]\n\n"
    text = around + "".join(f"# about {number}\n{rule.line}\n" for number, rule in enumerate(before))
    after = planned(text, wanted)
    assert after.startswith(around)
    assert [line for line in after.splitlines() if line.startswith("# about")] == [
        f"# about {number}" for number in range(len(before))
    ]
    assert [*map(firewall.normalised, firewall.parse(after).rules)] == [*map(firewall.normalised, wanted)]


def test_rules_that_stay_keep_their_own_writing():
    after = planned(BY_HAND, [replace(RULES[0], log=""), *RULES[1:]])
    assert after == BY_HAND
    after = planned(BY_HAND, [*RULES[:2], Rule("in", "DROP"), *RULES[2:3]])
    assert after == BY_HAND.replace("# later\n", "# later\nIN DROP\n").replace(
        "\nOUT DROP -dest +trusted -p udp --sport 53", "\n"
    )


def test_sections_that_are_missing_are_made_where_proxmox_has_them():
    assert planned("", [Rule("in", "DROP")], enable="1") == "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\nIN DROP\n\n"
    after = planned("# mine\n[ALIASES]\n\na 10.0.0.1\n", [Rule("in", "DROP")], policy_in="REJECT")
    assert after == "# mine\n\n[OPTIONS]\n\npolicy_in: REJECT\n\n[ALIASES]\n\na 10.0.0.1\n\n[RULES]\n\nIN DROP\n\n"


def test_an_option_that_proxmox_passes_over_is_replaced():
    assert planned("[OPTIONS]\nenable: yes\n", None, enable="1") == "[OPTIONS]\nenable: 1\n"
    # Of two lines the last one counts.
    assert planned("[OPTIONS]\nenable: 1\nenable: 0\n", None, enable="1") == "[OPTIONS]\nenable: 1\nenable: 1\n"


def test_defaults_need_no_line():
    assert planned("", [], enable="0", policy_in="DROP", policy_out="ACCEPT") == ""


# --- the plan -----------------------------------------------------------------------------------------------------


@given(few, few)
def test_the_plan_leads_to_what_is_declared_and_then_nothing_is_left(before, wanted):
    declared = Declared({"enable": "1", "policy_in": "REJECT"}, wanted)
    actual = Content({}, tuple(before))
    after = firewall.after(firewall.plan(declared, actual), actual)
    assert [*map(firewall.normalised, after.rules)] == [*map(firewall.normalised, wanted)]
    assert not firewall.plan(declared, after).steps


@given(few, few)
def test_nothing_that_stays_is_ever_away_and_nothing_goes_before_all_is_there(before, wanted):
    plan = firewall.plan(Declared({}, wanted), Content({}, tuple(before)))
    staying = [rule for rule in before if rule in wanted]
    rules = list(before)
    for edit in plan.edits:
        if edit.kind == "replace":
            assert rules[edit.pos] == edit.old
            rules[edit.pos] = edit.rule
        else:
            rules.insert(edit.pos, edit.rule)
    assert all(rule in rules for rule in [*staying, *wanted])
    for edit in plan.deletes:
        assert rules.pop(edit.pos) == edit.rule
        assert all(rule in rules for rule in wanted)


def common(one: list, two: list) -> int:
    """The length of the longest common subsequence, the slow way."""
    if not one or not two:
        return 0
    if one[0] == two[0]:
        return 1 + common(one[1:], two[1:])
    return max(common(one[1:], two), common(one, two[1:]))


@given(st.lists(st.sampled_from(RULES), max_size=6), st.lists(st.sampled_from(RULES), max_size=6))
def test_there_is_no_shorter_way(before, wanted):
    edits = firewall.edits_between(before, wanted)
    cost = sum(2 if edit.kind == "replace" else 1 for edit in edits)
    assert cost == len(before) + len(wanted) - 2 * common(before, wanted)


def test_one_changed_rule_is_one_replacement():
    changed = replace(RULES[1], dport="8443")
    (edit,) = firewall.edits_between(RULES, [RULES[0], changed, *RULES[2:]])
    assert (edit.kind, edit.pos, edit.rule, edit.old) == ("replace", 1, changed, RULES[1])
    assert "-dport 8443" in edit.sentence
    assert "80,443" in edit.sentence


def test_case_log_nothing_and_blanks_make_no_difference():
    one = Rule("in", "ACCEPT", "ssh", source="OFFICE", log="nolog", comment="x ")
    two = Rule("in", "ACCEPT", "SSH", source="office", comment="x")
    assert not firewall.edits_between([one], [two])
    assert firewall.edits_between([one], [replace(two, enable=False)])


def test_what_is_not_declared_stays():
    content = firewall.parse(BY_HAND)
    assert not firewall.plan(Declared({}, None), content).steps
    plan = firewall.plan(Declared({"policy_in": "ACCEPT"}, None), content)
    assert (dict(plan.options), plan.edits, plan.deletes) == ({"policy_in": "ACCEPT"}, (), ())


# --- the API ------------------------------------------------------------------------------------------------------


@given(filters | groups)
def test_a_rule_by_the_api_is_the_same_rule(rule):
    sent = firewall.to_api(rule)
    assert firewall.from_api({**sent, "enable": int(sent["enable"]), "pos": 3, "digest": "x", "ipversion": 4}) == rule


def test_a_changed_rule_says_what_goes():
    old = Rule("in", "ACCEPT", proto="icmp", icmp_type="echo-request", comment="x")
    assert firewall.to_api(Rule("in", "ACCEPT", "SSH"), old) == {
        "type": "in",
        "action": "ACCEPT",
        "macro": "SSH",
        "enable": "1",
        "delete": "proto,icmp-type,comment",
    }


# --- what is declared ---------------------------------------------------------------------------------------------


def test_declared_rules_are_brought_into_proxmox_form():
    entries = [
        {"type": "IN", "action": "ssh(accept)", "source": "10.0.0.0/8", "enable": None},
        {"type": "in", "action": "drop", "proto": "TCP", "dport": "8000:8010,http", "log": None, "enable": False},
        {"type": "group", "action": "monitoring", "iface": "net0", "comment": " ours "},
        {"type": "out", "action": "REJECT", "proto": "icmp", "icmp_type": "echo-request", "dest": "10.0.0.1-10.0.0.9"},
        {"type": "in", "action": "ACCEPT", "source": "dc/office", "proto": "6", "sport": 22},
        {"type": "in", "action": "ACCEPT", "source": "fd00::/64,fe80::1", "proto": "icmpv6", "dport": "echo-request"},
    ]
    assert [rule.line for rule in firewall.declared_rules(921, entries)] == [
        "IN ssh(ACCEPT) -source 10.0.0.0/8",
        "|IN DROP -p tcp -dport 8000:8010,http",
        "GROUP monitoring -i net0 # ours",
        "OUT REJECT -dest 10.0.0.1-10.0.0.9 -p icmp -icmp-type echo-request",
        "IN ACCEPT -source dc/office -p 6 -sport 22",
        "IN ACCEPT -source fd00::/64,fe80::1 -p icmpv6 -dport echo-request",
    ]


WRONG = {
    "no type": ({"type": ""}, "type", "missing", "write in"),
    "unknown type": ({"type": "forward"}, "type", "'forward'", "write in"),
    "no action": ({"action": ""}, "action", "missing", "ACCEPT, DROP or REJECT"),
    "unknown action": ({"action": "ALLOW"}, "action", "'ALLOW'", "ACCEPT, DROP or REJECT"),
    "unknown action of a macro": ({"action": "SSH(ALLOW)"}, "action", "'ALLOW'", "SSH(ACCEPT)"),
    "two macros": ({"action": "SSH(ACCEPT)", "macro": "HTTP"}, "macro", "'HTTP'", "keep one"),
    "macro with blanks": ({"macro": "a b"}, "macro", "'a b'", "such as SSH"),
    "macro and port": ({"macro": "SSH", "dport": "22"}, "dport", "macro SSH", "leave the macro out"),
    "macro and protocol": ({"action": "SSH(DROP)", "proto": "tcp"}, "proto", "macro SSH", "leave it out"),
    "group without name": ({"type": "group", "action": ""}, "action", "missing", "name the security group"),
    "group of a bad name": ({"type": "group", "action": "a b"}, "action", "'a b'", "name the security group"),
    "group with a source": ({"type": "group", "source": "10.0.0.1"}, "source", "own rules", "leave it out"),
    "port without protocol": ({"dport": "22"}, "proto", "dport needs it", "tcp, udp"),
    "port of a protocol without ports": ({"proto": "gre", "dport": "22"}, "proto", "no meaning to gre", "tcp, udp"),
    "source port of ICMP": ({"proto": "icmp", "sport": "22"}, "proto", "no meaning to icmp", "tcp, udp"),
    "unknown protocol": ({"proto": "tpc"}, "proto", "'tpc'", "/etc/protocols"),
    "protocol by a number too high": ({"proto": "256"}, "proto", "'256'", "/etc/protocols"),
    "range with a dash": ({"proto": "tcp", "dport": "80-85"}, "dport", "'80-85'", 'write "80:85"'),
    "range backwards": ({"proto": "tcp", "dport": "85:80"}, "dport", "backwards", 'write "80:85"'),
    "port too high": ({"proto": "tcp", "dport": "65536"}, "dport", "last port", "65535"),
    "a comma too many": ({"proto": "tcp", "dport": "80,"}, "dport", "''", '"80,443"'),
    "too many ports": ({"proto": "tcp", "dport": ",".join(map(str, range(1, 17)))}, "dport", "16", "two rules"),
    "ICMP type without ICMP": ({"proto": "tcp", "icmp_type": "any"}, "icmp_type", "ICMP only", "proto icmp"),
    "ICMP type twice": (
        {"proto": "icmp", "icmp_type": "any", "dport": "any"},
        "dport",
        "beside icmp_type",
        "keep icmp_type",
    ),
    "interface of the guest": ({"iface": "eth0"}, "iface", "'eth0'", "net0"),
    "log level": ({"log": "loud"}, "log", "'loud'", "nolog"),
    "comment in two lines": ({"comment": "a\nb"}, "comment", "line break", "one line"),
    "any address": ({"source": "any"}, "source", "'any'", "leave it out"),
    "bits behind the prefix": ({"dest": "10.0.0.1/8"}, "dest", "'10.0.0.1/8'", "write 10.0.0.0/8"),
    "no address": ({"source": "10.0.0.300"}, "source", "'10.0.0.300'", "+ipset"),
    "range in a list": ({"source": "10.0.0.1-10.0.0.2,10.0.0.9"}, "source", "'10.0.0.1-10.0.0.2'", "alone"),
    "both IP versions": ({"source": "10.0.0.1", "dest": "fd00::1"}, "dest", "mixed", "a rule for each"),
    "IPv6 of ICMP": ({"source": "fd00::1", "proto": "icmp"}, "source", "mixed", "a rule for each"),
    "a word too much": ({"source": "10.0.0.1 -p tcp"}, "source", "'10.0.0.1 -p tcp'", "+ipset"),
    "too many addresses": ({"source": ",".join(["10.0.0.1"] * 60)}, "source", "512", "IP set"),
}


@pytest.mark.parametrize(("entry", "key", "fault", "remedy"), WRONG.values(), ids=WRONG.keys())
def test_refuses_what_proxmox_would_refuse_or_pass_over(entry, key, fault, remedy):
    good = {"type": "in", "action": "ACCEPT"}
    with pytest.raises(FirewallError) as caught:
        firewall.declared_rules(921, [good, {**good, **entry}])
    where, _place, rest = str(caught.value).partition(": ")
    assert where == f"CTID 921, rules[1].{key}"
    assert fault in rest
    assert remedy in rest.partition("; ")[2]
