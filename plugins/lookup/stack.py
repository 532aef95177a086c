# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup stack."""

from __future__ import annotations

DOCUMENTATION = r"""
name: stack
author: The Phoenix Hypervisor team (@phoenix)
version_added: 0.1.0
short_description: A stack, and the candidates to install it
description:
  - Reads a stack's folder (C(stack.yml), C(requirements.lock), C(build.lock)), merges the overrides into it, checks it,
    and returns every way to install it, in the order in which they are tried.
  - A stack that can't be installed is refused with the sentence that says what is wrong and what to do.
options:
  _terms:
    description: The stack's name.
    type: str
    required: true
  folders:
    description:
      - Folders of stacks on the control node. The first one that has the stack wins; the collection's own comes last.
    type: list
    elements: path
    default: []
  overrides:
    description: Values that replace those of C(stack.yml), with its keys. A null takes one away.
    type: dict
    default: {}
  repository:
    description: A mirror of vLLM's git repository. Where the source comes from doesn't change what is built.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show what would be installed
  ansible.builtin.debug:
    msg: "{{ (lookup('phoenix.hypervisor.stack', 'cpu').candidates | first).release }}"

- name: Show another commit's release
  ansible.builtin.debug:
    msg: "{{ lookup('phoenix.hypervisor.stack', 'own', folders=['/srv/stacks'], overrides=overrides).candidates }}"
  vars:
    overrides:
      vllm:
        commit: main
"""

RETURN = r"""
_raw:
  description:
    - One dictionary with C(name), C(title), C(method), C(folder), C(environment) (of its model servers), C(gpu), and
      the lists C(candidates), C(known_holes), C(notes) and C(warnings) (sentences; the last one is notes and holes).
  type: list
  elements: dict
"""

import os

import yaml
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.phoenix.hypervisor.plugins.lookup.stacks import names, with_shipped
from ansible_collections.phoenix.hypervisor.plugins.module_utils import stack as stacks
from ansible_collections.phoenix.hypervisor.plugins.module_utils.stack import StackError


def read(path: str) -> str:
    """Return a file's text, C("") when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise StackError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from None


def find(name: str, folders: list[str]) -> str:
    """Return the folder of a stack, in the first of the folders that has it."""
    for folder in folders:
        path = os.path.join(folder, name)
        if name and os.path.basename(name) == name and os.path.exists(os.path.join(path, "stack.yml")):
            return path
    there = names(folders)
    said = stacks.nearest(name, there) if there else "There is none."
    raise StackError(f"There is no stack {name!r} in {', '.join(folders) or 'no folder'}. {said}")


def load(name: str, folders: list[str], overrides: dict, repository: str = "") -> dict:
    """Return what the lookup returns for a stack.

    Raises:
        StackError: it can't be installed.
    """
    folder = find(name, folders)
    path = os.path.join(folder, "stack.yml")
    try:
        stack = yaml.safe_load(read(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise StackError(f"{path}:{line} it isn't YAML ({getattr(error, 'problem', None) or error}).") from None
    if not isinstance(stack, dict):
        raise StackError(f"{path} must have keys with values.")
    if stack.get("name") != name:
        raise StackError(f"{path}: name is {stack.get('name')!r}, and its folder is {name}: make them the same.")
    locks = [read(os.path.join(folder, file)) for file in ("requirements.lock", "build.lock")]
    stack = stacks.merged(stack, overrides)
    stacks.check(stack, *locks)
    return {
        "name": name,
        "title": stack.get("title", ""),
        "method": stack["method"],
        "folder": folder,
        "environment": {key: str(value) for key, value in stack.get("environment", {}).items()},
        "gpu": stack.get("gpu", True),
        "candidates": stacks.candidates(stack, *locks, settings={"repository": repository}),
        "known_holes": stack.get("known_holes", []),
        "notes": stack.get("notes", []),
        "warnings": [*stack.get("notes", []), *(hole_sentence(stack, hole) for hole in stack.get("known_holes", []))],
    }


def hole_sentence(stack: dict, hole: dict) -> str:
    """Return what is said of a security hole."""
    return f"vLLM {stack['vllm']['version']} has {hole['id']}: {hole['text']}; fixed in {hole['fixed_in']}."


class LookupModule(LookupBase):
    """What Ansible looks for."""

    def run(self, terms, variables=None, **kwargs):
        """Return what is known of each stack that is named."""
        self.set_options(var_options=variables, direct=kwargs)
        folders = with_shipped(self.get_option("folders"))
        try:
            return [
                load(str(term), folders, self.get_option("overrides"), self.get_option("repository")) for term in terms
            ]
        except StackError as error:
            raise AnsibleLookupError(str(error)) from None
