#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: trusted_ca
short_description: Trust exactly these CA certificates besides the distribution's
version_added: 0.1.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Puts CA certificates into the system's store (Debian, Ubuntu), in a folder of their own. A certificate in that
    folder that is no longer listed is removed; what else is in the store stays.
  - Tells pip (C(/etc/pip.conf)) and uv (C(/etc/uv/uv.toml)) to use the system's store. Other settings in these files
    stay. git, curl and apt use it by themselves.
  - All certificates are checked before anything is changed.
options:
  certificates:
    description: The name or path of each file (for messages and names) and its content, one or more PEM certificates.
    type: dict
    required: true
  folder:
    description: The name of the folder below C(/usr/local/share/ca-certificates).
    type: str
    default: phoenix
attributes:
  check_mode:
    support: full
    description: Tells the steps of the plan that the real run executes.
  diff_mode:
    support: full
    description: Shows the certificates' names, and the settings before and after.
  idempotent:
    support: full
    description: Certificates are compared by their content, settings by their value.
"""

EXAMPLES = r"""
- name: Trust the CA of the proxy
  phoenix.hypervisor.trusted_ca:
    certificates:
      proxy.crt: "{{ lookup('ansible.builtin.file', 'proxy.crt') }}"
"""

RETURN = r"""
plan:
  description: What was done, or would be done in check mode, a sentence for each step.
  type: list
  elements: str
  returned: success
  sample: ["trust proxy-0123abcd.crt"]
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import trusted_ca
from ansible_collections.phoenix.hypervisor.plugins.module_utils.text_file import read_text, write
from ansible_collections.phoenix.hypervisor.plugins.module_utils.trusted_ca import CertificateError

LOCAL = "/usr/local/share/ca-certificates"
STORE = "/etc/ssl/certs/ca-certificates.crt"
PIP = "/etc/pip.conf"
UV = "/etc/uv/uv.toml"


def certificates_in(folder):
    """Return file name → text of the certificates in a folder."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".crt")) if os.path.isdir(folder) else []
    return {name: read_text(os.path.join(folder, name), "") for name in names}


def missing_from_store(certificates):
    """Return whether one of the certificates isn't in the store: a run may have ended before the store was made."""
    store = read_text(STORE, "")
    return any(pem not in store for pem in certificates.values())


def main():
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "certificates": {"type": "dict", "required": True},
            "folder": {"type": "str", "default": "phoenix"},
        },
        supports_check_mode=True,
    )
    try:
        wanted = trusted_ca.wanted_files({name: str(text) for name, text in module.params["certificates"].items()})
        converge(module, wanted)
    except CertificateError as error:
        module.fail_json(msg=f"{error} Nothing was changed.")
    except OSError as error:
        module.fail_json(msg=f"The trusted CAs could not be set: {error.strerror} ({error.filename}).")


def converge(module, wanted):
    """Read, plan, and execute the plan unless only asked to tell it."""
    folder = os.path.join(LOCAL, module.params["folder"])
    seen = certificates_in(folder)
    settings = {path: read_text(path, "", "surrogateescape") for path in (PIP, UV)}
    changed = {
        PIP: trusted_ca.set_ini(settings[PIP], "global", "cert", STORE),
        UV: trusted_ca.set_toml(settings[UV], "system-certs", "true", replaces=("native-tls",)),
    }
    add = [name for name in wanted if seen.get(name) != wanted[name]]
    remove = [name for name in seen if name not in wanted]
    refresh = bool(add or remove) or missing_from_store(wanted)
    configure = [path for path in settings if changed[path] != settings[path]]
    plan = [f"trust {name}" for name in add] + [f"no longer trust {name}" for name in remove]
    plan += ["make the system's store again"] if refresh else []
    plan += [f"have {path} use the system's store" for path in configure]
    if not module.check_mode:
        for name in add:
            write(os.path.join(folder, name), wanted[name])
        for name in remove:
            os.unlink(os.path.join(folder, name))
        if refresh:
            make_store(module, fresh=bool(remove))
        for path in configure:
            write(path, changed[path])
    diff = [{"before_header": path, "after_header": path, "before": settings[path], "after": changed[path]}
            for path in configure]
    if add or remove:
        diff.append({
            "before_header": folder,
            "after_header": folder,
            "before": "".join(f"{name}\n" for name in sorted(seen)),
            "after": "".join(f"{name}\n" for name in sorted(wanted)),
        })
    module.exit_json(changed=bool(plan), plan=plan, diff=diff)


def make_store(module, fresh):
    """Make the system's store again.

    Args:
        module: the module.
        fresh: whether links to certificates that are gone must go, too.
    """
    command = module.get_bin_path("update-ca-certificates")
    if not command:
        module.fail_json(
            msg="There is no update-ca-certificates: install the package ca-certificates first (feature base_setup)."
        )
    code, stdout, stderr = module.run_command([command, *(["--fresh"] if fresh else [])])
    if code:
        module.fail_json(msg=f"update-ca-certificates failed: {(stderr or stdout).strip()}")


if __name__ == "__main__":
    main()
