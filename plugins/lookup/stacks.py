# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup stacks."""

from __future__ import annotations

DOCUMENTATION = r"""
name: stacks
author: The Phoenix Hypervisor team (@phoenix)
version_added: 0.1.0
short_description: Names of the stacks that there are
description:
  - Lists what a container's C(vllm_stack) can be, the collection's own stacks and those of a site.
options:
  _terms:
    description: Folders of stacks on the control node, besides the collection's own.
    type: list
    elements: path
  paths:
    description: Whether the stacks' folders are returned instead of their names.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show the stacks of a site
  ansible.builtin.debug:
    msg: "{{ query('phoenix.hypervisor.stacks', '/srv/stacks') }}"
"""

RETURN = r"""
_raw:
  description:
    - Names, sorted, each once. A folder that does not exist has none.
    - With O(paths), of a name that several folders have, the first one's folder.
  type: list
  elements: str
"""

import glob
import os

from ansible.plugins.lookup import LookupBase

SHIPPED = os.path.normpath(
    os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "roles", "vllm_stack", "files", "stacks")
)


def with_shipped(folders):
    """Return folders of stacks and the collection's own after them, so that a site's stack wins over one of ours."""
    return [*folders, SHIPPED]


def stacks(folders):
    """Return name → folder of the stacks in folders; of those with the same name the first one."""
    found = [path for folder in folders for path in glob.glob(os.path.join(glob.escape(folder), "*", "stack.yml"))]
    paths = [os.path.dirname(path) for path in reversed(found)]
    return dict(sorted({os.path.basename(path): path for path in paths}.items()))


def names(folders):
    """Return the names of the stacks in folders."""
    return list(stacks(folders))


class LookupModule(LookupBase):
    """What Ansible looks for."""

    def run(self, terms, variables=None, **kwargs):
        """Return the names of the stacks in all terms."""
        self.set_options(var_options=variables, direct=kwargs)
        found = stacks(with_shipped(terms))
        return list(found.values() if self.get_option("paths") else found)
