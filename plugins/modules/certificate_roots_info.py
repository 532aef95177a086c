#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: certificate_roots_info
short_description: Fetch the root certificates of a CA by their fingerprints
version_added: 0.2.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Asks a CA for its root certificates as step-ca gives them (C(/root/<fingerprint>), C(/roots.pem)), and returns those
    whose SHA-256 fingerprint is declared. Nothing else is believed, so the CA need not be trusted for it.
  - A CA that shows another root is a failure that says what to do.
  - A CA that gives no answer is none where O(known) has a declared root already.
options:
  url:
    description: Address of the CA, such as V(https://10.0.0.10:9000).
    type: str
    required: true
  fingerprints:
    description:
      - SHA-256 fingerprints of root certificates, with or without colons. Several while a CA changes its root; one of
        them must be there.
    type: list
    elements: str
    required: true
  known:
    description: A file with the roots that were accepted before.
    type: path
    default: /etc/phoenix-hypervisor/certificates/ca.pem
  timeout:
    description: Seconds that an answer may take.
    type: int
    default: 20
extends_documentation_fragment:
  - phoenix.hypervisor.look
"""

EXAMPLES = r"""
- name: Get the root of the site's CA
  phoenix.hypervisor.certificate_roots_info:
    url: https://10.0.0.10:9000
    fingerprints:
      - 2b6b8a0b0f0f3b6e5f6a7c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b
  register: roots
"""

RETURN = r"""
roots:
  description: The root certificates (PEM), one after the other, in the order of their declaration.
  type: str
  returned: success
missing:
  description: Declared fingerprints that neither the CA nor the file has.
  type: list
  elements: str
  returned: success
reached:
  description: Whether the CA answered.
  type: bool
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import certificate
from ansible_collections.phoenix.hypervisor.plugins.module_utils import certificate_renewal as renewal


def main():
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "fingerprints": {"type": "list", "elements": "str", "required": True},
            "known": {"type": "path", "default": "/etc/phoenix-hypervisor/certificates/ca.pem"},
            "timeout": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    try:
        fingerprints = certificate.fingerprints(module.params["fingerprints"])
        known = known_in(module.params["known"])
        kept = {one: known[one] for one in fingerprints if one in known}
        reached = True
        try:
            found, _missing = renewal.fetch_roots(module.params["url"], fingerprints, module.params["timeout"])
        except renewal.RenewalError as error:
            if error.kind != "unreachable" or not kept:
                raise
            module.warn(f"{error} The roots that are in {module.params['known']} stay.")
            found, reached = {}, False
    except (certificate.CertificateError, renewal.RenewalError) as error:
        module.fail_json(msg=str(error))
    roots = {**kept, **found}
    module.exit_json(
        changed=False,
        roots="".join(roots[one] for one in fingerprints if one in roots),
        missing=[one for one in fingerprints if one not in roots],
        reached=reached,
    )


def known_in(path):
    """Return fingerprint → PEM of the certificates in a file."""
    blocks = renewal.PEM_CERTIFICATE.findall(renewal.read_text(path))
    return {renewal.fingerprint(block): f"{block}\n" for block in blocks}


if __name__ == "__main__":
    main()
