#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: certificate_info
short_description: How long the certificates of a container are valid, and what is wrong with them
version_added: 0.2.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Reads the certificates that M(phoenix.hypervisor.certificate) looks after, and what came of their last renewal.
  - Runs in the container, as root. The CA isn't asked.
options:
  limit:
    description:
      - Seconds that each must be valid for. With V(0), half of the part of its life at which it is renewed; with less
        than that left, its renewal fails.
    type: int
    default: 0
extends_documentation_fragment:
  - phoenix.hypervisor.look
"""

EXAMPLES = r"""
- name: Look at the certificates
  phoenix.hypervisor.certificate_info:
  register: certificates

- name: Make sure that all are well
  ansible.builtin.assert:
    that: certificates.problems | length == 0
"""

RETURN = r"""
configured:
  description: Whether anything is looked after.
  type: bool
  returned: success
source:
  description: Where certificates come from.
  type: str
  returned: success
timer:
  description: Whether the timer is enabled and runs.
  type: bool
  returned: success
certificates:
  description: The certificates.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
    names:
      description: The names and addresses that it is for.
      type: list
      elements: str
    not_after:
      description: Until when it and its chain are valid; empty when there is none.
      type: str
    remaining_seconds:
      description: How long that is.
      type: int
    remaining:
      description: The same in words.
      type: str
    error:
      description: Why the last renewal failed, empty when it didn't.
      type: str
problems:
  description: What is wrong, a sentence each.
  type: list
  elements: str
  returned: success
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import certificate
from ansible_collections.phoenix.hypervisor.plugins.module_utils import certificate_renewal as renewal

TIMER_UNIT = "phoenix_certificate.timer"


def main():
    """Run as a module."""
    module = AnsibleModule(argument_spec={"limit": {"type": "int", "default": 0}}, supports_check_mode=True)
    config, status = renewal.read_json(renewal.CONFIG), renewal.read_json(renewal.STATUS)
    if not config:
        module.exit_json(changed=False, configured=False, source="none", timer=False, certificates=[], problems=[])
    timer = all(not module.run_command(["systemctl", word, TIMER_UNIT])[0] for word in ("is-active", "is-enabled"))
    now, found = time.time(), []
    problems = [] if timer else [f"{TIMER_UNIT} does not run: nothing renews the certificates. site.yml starts it."]
    try:
        for entry in config.get("certificates", []):
            said, last = renewal.look(entry), status.get("certificates", {}).get(entry["name"], {})
            problem = certificate.problem(entry, said, last.get("error", ""), now, config["renew_at"],
                                          module.params["limit"])  # fmt: skip
            if problem:
                problems.append(problem)
            end = said["not_after"]
            found.append({
                "name": entry["name"], "names": said["names"], "error": last.get("error", ""),
                "not_after": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end)) if end else "",
                "remaining_seconds": max(0, int(end - now)) if end else 0,
                "remaining": renewal.span(max(0, end - now)) if end else "nothing",
            })  # fmt: skip
    except renewal.RenewalError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or os.sep} can't be read: {error.strerror}.")
    module.exit_json(changed=False, configured=True, source=config["source"], timer=timer, certificates=found,
                     problems=problems)  # fmt: skip


if __name__ == "__main__":
    main()
