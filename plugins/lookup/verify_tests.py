# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup verify_tests."""

from __future__ import annotations

DOCUMENTATION = r"""
name: verify_tests
author: The Phoenix Hypervisor team (@phoenix)
version_added: 0.1.0
short_description: The tests that a container declares, each with what is to be run
description:
  - Goes through the groups of tests, and finds the file of each script.
  - A test that can't be run is returned with the reason, so that the others are run.
options:
  _terms:
    description: What a container's C(tests) declares, lists of tests by group.
    type: dict
    required: true
  groups:
    description: The groups that are wanted, as a list or as text with commas; all when it is empty.
    type: raw
    default: []
  folders:
    description:
      - Folders on the control node, as a list or as text with commas. The first one that has the script wins.
      - A relative one is below the folder that Ansible was started in, for AWX the project's.
    type: raw
    default: []
  url:
    description: The model server's URL, which the paths of type C(http) are below.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show the tests
  ansible.builtin.debug:
    msg: "{{ query('phoenix.hypervisor.verify_tests', tests, folders=['tests']) }}"
  vars:
    tests:
      health_checks:
        - {name: It answers, type: script, path: vllm/answers.sh}
"""

RETURN = r"""
_raw:
  description:
    - For each test C(group), C(name), C(type), and one of C(command), C(file) (with C(file_name)), C(url) (with C(own),
      whether it is the model server's) and C(problem).
  type: list
  elements: dict
"""

import os

from ansible.plugins.lookup import LookupBase
from ansible_collections.phoenix.hypervisor.plugins.module_utils import verification


def find(path: str, folders: list[str]) -> tuple[str, str]:
    """Return the file of a script and what is wrong, one of them empty."""
    if ".." in path.split("/"):
        return "", f"its path {path} has '..' in it; write one below the folder of tests"
    places = list(dict.fromkeys(os.path.abspath(os.path.expanduser(folder)) for folder in folders))
    for place in places:
        file = os.path.join(place, path)
        if not os.path.isfile(file):
            continue
        try:
            with open(file, encoding="utf-8") as handle:
                handle.read()
        except UnicodeDecodeError:
            return "", f"{file} is no UTF-8 text; a test is a script"
        except OSError as error:
            return "", f"{file} can't be read: {error.strerror}"
        return file, ""
    where = ", ".join(places) or "no folder"
    return "", f"there is no {path} in {where}; put it there, or name its folder in verify_tests_folders"


def planned(terms, groups, folders, url: str) -> list[dict]:
    """Return the tests of several declarations, each with what is to be run."""
    places = verification.names_of(folders)
    result = []
    for term in terms:
        result += verification.planned_tests(term, groups, url, lambda path: find(path, places))
    return result


class LookupModule(LookupBase):
    """What Ansible looks for."""

    def run(self, terms, variables=None, **kwargs):
        """Return the tests of all terms."""
        self.set_options(var_options=variables, direct=kwargs)
        return planned(terms, self.get_option("groups"), self.get_option("folders"), self.get_option("url"))
