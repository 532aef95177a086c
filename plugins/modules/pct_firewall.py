#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: pct_firewall
short_description: The firewall of an LXC container of Proxmox VE, rule by rule
version_added: 0.1.0
author: The Phoenix Hypervisor team (@phoenix)
description:
  - Brings the firewall rules of one container, and whether they count, to what is declared. Rules that are as declared
    stay where they are; the others are inserted, replaced and deleted one by one, insertions first, so that there is no
    moment without rules.
  - On the node it writes C(/etc/pve/firewall/<vmid>.fw), once and atomically; comments, aliases and IP sets in it stay
    as they are. With O(api_host) it uses the REST API, which doesn't keep comments of their own lines.
  - Every rule is checked before anything changes. Proxmox itself passes over what it doesn't understand in that file,
    and says so in a log only.
  - Rules have an effect only where the firewall is switched on in three places, in the container (O(enabled)), at its
    network interface (C(firewall=1) in C(netN)), and for the data center (C(enable) in
    C(/etc/pve/firewall/cluster.fw)). This module sees to the first one, and warns when the second is missing.
  - The file goes with its container when that is destroyed.
  - Runs on the node, as root, or from anywhere with O(api_host).
attributes:
  check_mode:
    description: Says what would be done, and changes nothing. A container that is missing is taken for one without
      rules.
    support: full
  diff_mode:
    description: Options and rules before and after, as Proxmox writes them.
    support: full
  idempotence:
    description: A second run changes nothing.
    support: full
extends_documentation_fragment:
  - phoenix.hypervisor.api
options:
  vmid:
    description: CTID of the container.
    type: int
    required: true
  enabled:
    description: Whether the rules count. Left out, this stays as it is; Proxmox begins with V(false).
    type: bool
  policy_in:
    description: What happens to a packet to the container that no rule is about. Left out, this stays as it is; Proxmox
      begins with V(DROP).
    type: str
    choices: [ACCEPT, DROP, REJECT]
  policy_out:
    description: What happens to a packet from the container that no rule is about. Left out, this stays as it is;
      Proxmox begins with V(ACCEPT).
    type: str
    choices: [ACCEPT, DROP, REJECT]
  rules:
    description: Exactly the container's rules, in this order; the first one that matches a packet decides. An empty
      list removes all. Left out, the rules stay as they are.
    type: list
    elements: dict
    suboptions:
      type:
        description: C(in) for packets to the container, C(out) for those from it, C(group) for a security group.
        type: str
        required: true
      action:
        description: C(ACCEPT), C(DROP) or C(REJECT), or one of these with a macro, such as C(SSH(ACCEPT)); for a
          C(group) the name of the security group.
        type: str
        required: true
      macro:
        description: Name of a macro, such as C(SSH), which stands for protocol and port.
        type: str
      source:
        description: Addresses, separated by commas (C(10.0.0.0/8)), a range, an IP set (C(+office)) or an alias.
        type: str
      dest:
        description: Addresses, as in O(rules[].source).
        type: str
      proto:
        description: Protocol, such as C(tcp).
        type: str
      dport:
        description: Port, range (C(8000:8010)) or list (C(80,443)) to which a packet goes. Needs O(rules[].proto).
        type: str
        aliases: [port]
      sport:
        description: Port that a packet comes from, as in O(rules[].dport).
        type: str
      icmp_type:
        description: Type of an ICMP packet, such as C(echo-request).
        type: str
      iface:
        description: Only this network interface, such as C(net0).
        type: str
      log:
        description: Level at which a packet is logged, C(nolog) for not at all.
        type: str
      comment:
        description: A note, in one line.
        type: str
      enable:
        description: Whether the rule counts.
        type: bool
        default: true
seealso:
  - module: phoenix.hypervisor.pct_container
"""

EXAMPLES = r"""
- name: Only SSH from the office and the model server's port
  phoenix.hypervisor.pct_firewall:
    vmid: 921
    enabled: true
    policy_in: DROP
    rules:
      - type: in
        action: SSH(ACCEPT)
        source: 192.168.10.0/24
        comment: the office
      - type: in
        action: ACCEPT
        proto: tcp
        dport: 8000
        comment: vLLM
      - type: group
        action: monitoring
        iface: net0

- name: No rules, and none that count
  phoenix.hypervisor.pct_firewall:
    vmid: 921
    enabled: false
    rules: []

- name: From another machine
  phoenix.hypervisor.pct_firewall:
    vmid: 921
    policy_out: REJECT
    api_host: pve.example.com
    api_user: automation@pve
    api_token_id: ansible
    api_token_secret: "{{ vault_token_secret }}"
"""

RETURN = r"""
rules:
  description: The container's rules afterwards, in their order, each with the keys that it has.
  returned: success
  type: list
  elements: dict
  sample: [{"type": "in", "action": "ACCEPT", "macro": "SSH", "source": "192.168.10.0/24", "enable": true}]
rules_before:
  description: The container's rules before, in the same form.
  returned: success
  type: list
  elements: dict
  sample: []
enabled:
  description: Whether the rules count afterwards.
  returned: success
  type: bool
  sample: true
policy_in:
  description: What happens to a packet to the container that no rule is about, afterwards.
  returned: success
  type: str
  sample: DROP
policy_out:
  description: What happens to a packet from the container that no rule is about, afterwards.
  returned: success
  type: str
  sample: ACCEPT
steps:
  description: What was done, or would be. When the module fails, what was done before that. Positions are those that
    Proxmox shows, from 0, each at the moment of its step.
  returned: always
  type: list
  elements: str
  sample: ["rule 0 is inserted: IN SSH(ACCEPT) -source 192.168.10.0/24 # the office"]
"""

import contextlib
import grp
import os
from collections.abc import Mapping
from dataclasses import asdict, replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import firewall, node, nodes, pct_conf
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Call
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.firewall import (
    Content,
    Declared,
    Edit,
    FirewallError,
    Plan,
    Rule,
)

_FIREWALLS = "/etc/pve/firewall"
# How often a plan is made anew when somebody else changes the rules meanwhile.
_ROUNDS = 5
# Seconds for one request to the API; none of these starts a task.
_REQUEST_TIMEOUT = 60


class FileWay:
    """A container's firewall by its file."""

    def __init__(self, vmid: int) -> None:
        self._path = f"{_FIREWALLS}/{vmid}.fw"
        self._text = ""

    def read(self) -> Content:
        self._text = self._read()
        return firewall.parse(self._text)

    def follow(self, plan: Plan, done: list) -> None:
        """Write the file as it is after a plan, unless somebody else has changed it since it was read.

        :param done: takes the sentences of what was done
        """
        os.makedirs(_FIREWALLS, exist_ok=True)
        temporary = f"{self._path}.tmp.{os.getpid()}"
        try:
            with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                file.write(firewall.edit_text(self._text, plan))
                # What everything in /etc/pve has; the cluster file system refuses any other.
                os.fchmod(file.fileno(), 0o640)
                with contextlib.suppress(KeyError):
                    os.fchown(file.fileno(), 0, grp.getgrnam("www-data").gr_gid)
            if self._read() == self._text:
                os.replace(temporary, self._path)
                done += plan.steps
        except OSError as error:
            raise FirewallError(f"{self._path} can't be written: {error.strerror}; is the cluster quorate?") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def _read(self) -> str:
        try:
            with open(self._path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                return file.read()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise FirewallError(f"{self._path} can't be read: {error.strerror}; run as root, on the node") from None


class Overtaken(Exception):
    """Somebody else has changed the rules since they were read."""


class ApiWay:
    """A container's firewall by the REST API: one request for each change, none on rules that aren't the known ones."""

    def __init__(self, there: nodes.Node, vmid: int) -> None:
        self._there = there
        self._vmid = vmid
        self._base = f"lxc/{vmid}/firewall"
        # The options and rules as they should be now, and what the API knows those rules by.
        self._options: dict = {}
        self._rules: list[Rule] = []
        self._digest = ""

    def read(self) -> Content:
        self._options, _digest = self._read_options()
        self._rules = self._read_rules()
        return Content(self._options, tuple(self._rules))

    def follow(self, plan: Plan, done: list) -> None:
        """Do what a plan says, up to where somebody else comes between.

        :param done: takes the sentences of what was done
        """
        with contextlib.suppress(Overtaken):
            for edit in plan.edits:
                self._edit(edit)
                done.append(edit.sentence)
            if plan.options:
                self._set_options(plan.options)
                done += plan.steps[len(plan.edits) : len(plan.edits) + len(plan.options)]
            for edit in plan.deletes:
                self._edit(edit)
                done.append(edit.sentence)

    def _edit(self, edit: Edit) -> None:
        if edit.kind == "delete":
            self._change("DELETE", f"/{edit.pos}", {}, [*self._rules[: edit.pos], *self._rules[edit.pos + 1 :]])
        elif edit.kind == "replace":
            self._put(edit.pos, firewall.to_api(edit.rule, edit.old), edit.rule)
        elif edit.pos == 0:
            self._change("POST", "", firewall.to_api(edit.rule), [edit.rule, *self._rules])
        else:
            # The API puts a new rule before all others. There it must not count; it does once it is in its place.
            waiting = replace(edit.rule, enable=False)
            others = self._rules
            self._change("POST", "", firewall.to_api(waiting), [waiting, *others])
            # To the place before the one that has this position now.
            moved = [*others[: edit.pos], waiting, *others[edit.pos :]]
            self._change("PUT", "/0", {"moveto": str(edit.pos + 1)}, moved)
            if edit.rule.enable:
                self._put(edit.pos, {"enable": "1"}, edit.rule)

    def _put(self, pos: int, parameters: Mapping, rule: Rule) -> None:
        self._change("PUT", f"/{pos}", parameters, [*self._rules[:pos], rule, *self._rules[pos + 1 :]])

    def _change(self, method: str, path: str, parameters: Mapping, expected: list) -> None:
        """One request, after which the rules are the expected ones.

        :raises Overtaken: when they aren't, or weren't the known ones before
        """
        self._write(method, f"rules{path}", parameters, self._digest)
        self._rules = self._read_rules()
        if [*map(firewall.normalised, self._rules)] != [*map(firewall.normalised, expected)]:
            raise Overtaken

    def _set_options(self, options: Mapping) -> None:
        known, digest = self._read_options()
        if known != self._options:
            raise Overtaken
        self._write("PUT", "options", options, digest)
        # Its digest may be one for both.
        self._rules = self._read_rules()

    def _read_options(self) -> tuple:
        options = {name: str(value) for name, value in self._get("options").items()}
        digest = options.pop("digest", "")
        return options, digest

    def _read_rules(self) -> list:
        entries = sorted(self._get("rules"), key=lambda entry: int(entry["pos"]))
        self._digest = str(entries[0].get("digest", "")) if entries else ""
        return [firewall.from_api(entry) for entry in entries]

    def _get(self, path: str) -> object:
        return self._there.get(f"{self._base}/{path}")

    def _write(self, method: str, path: str, parameters: Mapping, digest: str) -> None:
        done = self._there.request(Call(method, f"{self._base}/{path}", parameters), _REQUEST_TIMEOUT, digest)
        if nodes.has_changed(done):
            raise Overtaken
        if done.failed:
            raise FirewallError(f"CTID {self._vmid}: {done.sentence()}")


def declared_by(params: Mapping) -> Declared:
    """The module's options as the plan wants them."""
    options = {"policy_in": params["policy_in"], "policy_out": params["policy_out"]}
    if params["enabled"] is not None:
        options["enable"] = pct_conf.plain(params["enabled"])
    rules = None if params["rules"] is None else firewall.declared_rules(params["vmid"], params["rules"])
    # As Proxmox's own interface lists them.
    return Declared({name: options[name] for name in firewall.DEFAULTS if options.get(name)}, rules)


def converge(way: FileWay | ApiWay, vmid: int, declared: Declared, done: list) -> Content:
    """Follow plans until nothing is left to do.

    :param done: takes the sentences of what was done
    :raises FirewallError: when that doesn't come to an end
    """
    for _round in range(_ROUNDS):
        actual = way.read()
        planned = firewall.plan(declared, actual)
        if not planned.steps:
            return actual
        way.follow(planned, done)
    raise FirewallError(
        f"CTID {vmid}: its firewall is still not as declared after {_ROUNDS} times: somebody else changes it at the "
        "same time, or Proxmox keeps another thing than it was told; look at it there (Firewall), then run again"
    )


def as_result(rules: tuple) -> list:
    """Rules as the module returns them."""
    return [{name: value for name, value in asdict(rule).items() if value != ""} for rule in rules]


def warnings(vmid: int, declared: Declared, container: Container, actual: Content) -> list:
    """What keeps the rules from having an effect, or isn't one of them."""
    found = []
    nets = {key: value for key, value in pct_conf.with_pending(container.conf).values.items() if key.startswith("net")}
    parts = {key: pct_conf.split_property(key, value) for key, value in sorted(nets.items())}
    is_at_one = any(part.get("firewall") == "1" for part in parts.values())
    if declared.options.get("enable") == "1" and container.exists and not is_at_one:
        key, part = next(iter(parts.items()), ("net0", {"name": "eth0", "bridge": "vmbr0"}))
        net = pct_conf.join_property(key, {**part, "firewall": "1"})
        found.append(
            f"CTID {vmid}: the firewall is enabled, but at none of its network interfaces, so no rule has an effect; "
            f"switch it on there: pct set {vmid} --{key} {net}"
        )
    found += [f"CTID {vmid}: Proxmox doesn't understand this line of its firewall: {line}" for line in actual.strange]
    return found


def main() -> None:
    text = dict(type="str")
    rule = dict(
        type=dict(type="str", required=True),
        action=dict(type="str", required=True),
        macro=text,
        source=text,
        dest=text,
        proto=text,
        dport=dict(type="str", aliases=["port"]),
        sport=text,
        icmp_type=text,
        iface=text,
        log=text,
        comment=text,
        enable=dict(type="bool", default=True),
    )
    module = AnsibleModule(
        argument_spec=dict(
            vmid=dict(type="int", required=True),
            enabled=dict(type="bool"),
            policy_in=dict(type="str", choices=["ACCEPT", "DROP", "REJECT"]),
            policy_out=dict(type="str", choices=["ACCEPT", "DROP", "REJECT"]),
            rules=dict(type="list", elements="dict", options=rule),
            **nodes.ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    vmid = module.params["vmid"]
    done: list = []
    try:
        declared = declared_by(module.params)
        there = nodes.connect(module.params)
        container = there.read(vmid)
        if not container.exists and not module.check_mode:
            raise FirewallError(f"CTID {vmid} does not exist on this node; correct vmid or node")
        way = FileWay(vmid) if there.is_local else ApiWay(there, vmid)
        before = way.read() if container.exists else Content({}, ())
        if module.check_mode:
            planned = firewall.plan(declared, before)
            done += planned.steps
            after = firewall.after(planned, before)
        else:
            after = converge(way, vmid, declared, done)
    except (FirewallError, node.NodeError) as error:
        begun = f"\nDone before that: {'; '.join(done)}. The next run goes on from there." if done else ""
        module.fail_json(msg=f"{error}{begun}", steps=done)
    for warning in warnings(vmid, declared, container, after):
        module.warn(warning)
    module.exit_json(
        changed=bool(done),
        rules=as_result(after.rules),
        rules_before=as_result(before.rules),
        enabled=after.option("enable") == "1",
        policy_in=after.option("policy_in"),
        policy_out=after.option("policy_out"),
        steps=done,
        diff={
            "before": before.text,
            "after": after.text,
            "before_header": f"CTID {vmid}",
            "after_header": f"CTID {vmid}",
        },
    )


if __name__ == "__main__":
    main()
