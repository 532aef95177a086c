# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup asked_stack."""

from __future__ import annotations

DOCUMENTATION = r"""
name: asked_stack
author: The Phoenix Hypervisor team (@phoenix)
version_added: 0.1.0
short_description: The stack that a run was asked for, in place of the declared one
description:
  - A person (at AWX, by a survey) can ask for another stack, or for another version of vLLM, without a change of the
    JSON. This says which stack is meant, or what is wrong with the wish.
options:
  _terms:
    description: The declared stack. An empty one, of a container without vLLM, stays empty.
    type: str
    required: true
  stack:
    description: The stack that is asked for. Empty for the declared one.
    type: str
    default: ""
  version:
    description:
      - The version of vLLM that is asked for, such as V(0.32.0). Empty for that of the stack.
      - Without O(stack) it is a stack with this version that is for a GPU when the declared one is, and of these the
        one whose vLLM comes by the same method.
    type: str
    default: ""
  folders:
    description: Folders of stacks on the control node, besides the collection's own.
    type: list
    elements: path
    default: []
"""

EXAMPLES = r"""
- name: Show which stack a version means
  ansible.builtin.debug:
    msg: "{{ lookup('phoenix.hypervisor.asked_stack', 'vllm-0.10.2-cu128', version='0.32.0') }}"
"""

RETURN = r"""
_raw:
  description: The name of a stack for each term.
  type: list
  elements: str
"""

import os

import yaml
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.phoenix.hypervisor.plugins.lookup.stacks import stacks, with_shipped
from ansible_collections.phoenix.hypervisor.plugins.module_utils.stack import nearest


def described(folders: list[str]) -> dict[str, dict]:
    """Return what each stack says of itself; one that can't be read says nothing (the lookup stack tells why)."""
    found = {}
    for name, folder in stacks(folders).items():
        try:
            with open(os.path.join(folder, "stack.yml"), encoding="utf-8") as file:
                text = yaml.safe_load(file)
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            text = None
        text = text if isinstance(text, dict) else {}
        vllm = text.get("vllm")
        version = str(vllm.get("version", "")) if isinstance(vllm, dict) else ""
        found[name] = {"version": version, "gpu": bool(text.get("gpu", True)), "method": text.get("method")}
    return found


def is_version(given: str, version: str) -> bool:
    """Whether a version is the one that is asked for. What follows C(+) says how it was built, and may be left out."""
    return given in (version, version.partition("+")[0])


def choose(declared: str, stack: str, version: str, there: dict[str, dict]) -> str:
    """Return the name of the stack that is meant.

    Raises:
        AnsibleLookupError: there is none, or several.
    """
    if not declared or not (stack or version):
        return declared
    version = version[1:] if version[:1] == "v" else version
    if stack and stack not in there:
        raise AnsibleLookupError(
            f"phoenix_stack is {stack!r}, and there is no such stack. {nearest(stack, list(there))}"
        )
    if stack:
        if version and not is_version(version, there[stack]["version"]):
            raise AnsibleLookupError(
                f"phoenix_stack is {stack!r}, which has vLLM {there[stack]['version']}, and phoenix_version is "
                f"{version!r}. Leave one of them empty."
            )
        return stack
    mine = there.get(declared, {"version": "", "gpu": True, "method": None})
    if is_version(version, mine["version"]):
        return declared
    alike = {name: one for name, one in there.items() if one["gpu"] == mine["gpu"]}
    fitting = [name for name, one in alike.items() if is_version(version, one["version"])]
    if not fitting:
        known = sorted({one["version"].partition("+")[0] for one in alike.values()} - {""})
        kind = "for a GPU" if mine["gpu"] else "without a GPU"
        raise AnsibleLookupError(
            f"phoenix_version is {version!r}, and no stack {kind} has this version of vLLM. There are "
            f"{', '.join(known)}."
        )
    same = [name for name in fitting if there[name]["method"] == mine["method"]]
    if len(fitting) > 1 and len(same) != 1:
        raise AnsibleLookupError(
            f"phoenix_version is {version!r}, which several stacks have: {', '.join(sorted(fitting))}. Name one of "
            f"them as phoenix_stack."
        )
    return (same if len(fitting) > 1 else fitting)[0]


class LookupModule(LookupBase):
    """What Ansible looks for."""

    def run(self, terms, variables=None, **kwargs):
        """Return the stack that is meant in place of each declared one."""
        self.set_options(var_options=variables, direct=kwargs)
        stack, version = (str(self.get_option(name) or "").strip() for name in ("stack", "version"))
        # Nothing is read where nothing is asked for.
        there = described(with_shipped(self.get_option("folders"))) if stack or version else {}
        return [choose(str(term or ""), stack, version, there) for term in terms]
