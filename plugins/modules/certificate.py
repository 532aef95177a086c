#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: certificate
short_description: Have certificates that renew themselves, in a container
version_added: 0.2.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Writes the program, its configuration and the systemd units that get certificates and renew them, has the timer run,
    and gets those that are missing or due. What a certificate is due for is the program's own judgement, so a run and
    the timer can't disagree.
  - Certificates come from a CA that speaks ACME (step-ca and others), from files, or from a CA of the container's own.
    No password or key of a CA is needed or kept.
  - Fails with the cause in a sentence when a certificate could not be had. What was there before stays in its place.
  - Runs in the container, as root. Needs systemd, C(openssl), and C(uacme) for O(source=step_ca).
options:
  source:
    description:
      - Where certificates come from. V(none) removes the units, the program and its configuration; certificates that
        are there stay.
    type: str
    choices: [step_ca, files, self_signed, none]
    required: true
  ca_url:
    description: Address of the CA, for O(source=step_ca).
    type: str
    default: ""
  provisioner:
    description: Name of the CA's ACME provisioner.
    type: str
    default: acme
  directory:
    description: Address of the ACME directory, where it isn't C(<ca_url>/acme/<provisioner>/directory).
    type: str
    default: ""
  roots:
    description: The CA's root certificates (PEM), as M(phoenix.hypervisor.certificate_roots_info) returns them.
    type: str
    default: ""
  challenge:
    description: How the CA makes sure that a name is this container's. Port 80 or 443 must be free for a moment.
    type: str
    choices: [http-01, tls-alpn-01]
    default: http-01
  webroot:
    description: A folder that a server on port 80 serves already; then no port is needed. Only for V(http-01).
    type: str
    default: ""
  name:
    description: The container's own name, in each certificate that declares none.
    type: str
    required: true
  sans:
    description: Further names of the model server.
    type: list
    elements: str
    default: []
  optional_names:
    description: Names or addresses that are in each certificate where the CA allows them.
    type: list
    elements: str
    default: []
  model_server:
    description: Whether the model server has a certificate.
    type: bool
    default: false
  services:
    description: The other certificates. One called C(vllm_model_server) says more of the model server's.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: A name for it; made of the common name where it is left out.
        type: str
      common_name:
        description: Its first name.
        type: str
      sans:
        description: Its further names and addresses.
        type: list
        elements: str
        default: []
      cert_file:
        description: Where the chain is put; C(fullchain.pem) in a folder of its own by itself.
        type: str
      key_file:
        description: Where the key is put; C(privkey.pem) beside that by itself.
        type: str
      owner:
        description: Owner of both files.
        type: str
        default: root
      group:
        description: Group of both files.
        type: str
        default: root
      mode:
        description: Mode of the key. The chain's is 0644.
        type: str
        default: "0600"
      post_renewal_command:
        description: The words of a command that is run after each renewal, without a shell, until it succeeds.
        type: list
        elements: str
        default: []
      source_certificate:
        description: Path in the container of the chain that is copied, for O(source=files).
        type: str
      source_key:
        description: Path in the container of its key.
        type: str
      certificate_text:
        description: The chain itself, in place of O(services[].source_certificate).
        type: str
      key_text:
        description: The key itself.
        type: str
  renew_at:
    description: The part of its life that is left when a certificate is renewed.
    type: float
    default: 0.333
  lifetime_days:
    description: Days that a certificate of the container's own CA is valid.
    type: int
    default: 30
  validation_timeout:
    description: Seconds that the CA may take for one certificate.
    type: int
    default: 120
  service:
    description: The text of the systemd service. C(@PROGRAM@) becomes the program.
    type: str
    default: ""
  timer:
    description: The text of the systemd timer.
    type: str
    default: ""
  renew:
    description: Whether each certificate is renewed, due or not.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Tells the steps of the plan that the real run executes. The CA isn't asked.
  diff_mode:
    support: full
    description: Shows the files before and after; no keys.
  idempotent:
    support: full
    description: Unless O(renew) is set.
"""

EXAMPLES = r"""
- name: A certificate for the model server from the site's CA
  phoenix.hypervisor.certificate:
    source: step_ca
    ca_url: https://10.0.0.10:9000
    roots: "{{ roots.roots }}"
    name: llm.example.internal
    model_server: true
    service: "{{ lookup('ansible.builtin.template', 'phoenix_certificate.service.j2') }}"
    timer: "{{ lookup('ansible.builtin.template', 'phoenix_certificate.timer.j2') }}"
"""

RETURN = r"""
plan:
  description: What was done, or would be done in check mode, a sentence for each step.
  type: list
  elements: str
  returned: always
certificates:
  description: The certificates that are there.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: Its name.
      type: str
    names:
      description: The names and addresses that it is for.
      type: list
      elements: str
    without:
      description: Names and addresses that the CA refused, so that it has not got them.
      type: list
      elements: str
    not_before:
      description: From when on it is valid.
      type: str
    not_after:
      description: Until when it and its chain are valid.
      type: str
    remaining_seconds:
      description: How long that is.
      type: int
    cert_file:
      description: The chain.
      type: str
    key_file:
      description: The key.
      type: str
ca:
  description: The root certificates that the certificates come from (PEM); empty for O(source=files).
  type: str
  returned: always
"""

import inspect
import json
import os
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phoenix.hypervisor.plugins.module_utils import certificate
from ansible_collections.phoenix.hypervisor.plugins.module_utils import certificate_renewal as renewal

SERVICE = f"/etc/systemd/system/{renewal.UNIT}"
TIMER_UNIT = "phoenix_certificate.timer"
TIMER = f"/etc/systemd/system/{TIMER_UNIT}"
CA_FILE = f"{certificate.FOLDER}/ca.pem"
GIVEN = f"{renewal.STATE}/given"
# Why a certificate that is valid still could not be renewed: no reason to end a run, the timer goes on trying.
PASSING = ("unreachable", "busy")
MODES = {renewal.PROGRAM: 0o755, SERVICE: 0o644, TIMER: 0o644, CA_FILE: 0o644}
SERVICE_OPTIONS = {
    "name": {"type": "str"},
    "common_name": {"type": "str"},
    "sans": {"type": "list", "elements": "str", "default": []},
    "cert_file": {"type": "str"},
    "key_file": {"type": "str", "no_log": False},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str", "default": "0600"},
    "post_renewal_command": {"type": "list", "elements": "str", "default": []},
    "source_certificate": {"type": "str"},
    "source_key": {"type": "str", "no_log": False},
    "certificate_text": {"type": "str"},
    "key_text": {"type": "str", "no_log": True},
}


class Run:
    """One run of the module."""

    def __init__(self, module):
        self.module, self.params = module, module.params
        self.entries, self.given = [], {}
        if self.params["source"] != "none":
            self.entries = certificate.entries(
                self.params["services"],
                self.params["model_server"],
                {"name": self.params["name"], "sans": self.params["sans"], "optional": self.params["optional_names"]},
            )
        if self.params["source"] == "files":
            self.take_files()
        if self.params["source"] == "step_ca" and not self.params["roots"]:
            raise certificate.CertificateError("There is no root certificate of the CA: give it in roots.")

    def take_files(self):
        """Fill in where each certificate is copied from."""
        texts = {service.get("name") or "": service for service in self.params["services"]}
        for entry in self.entries:
            service = texts.get(entry["name"]) or next(
                (one for one in self.params["services"] if one.get("common_name") in entry["names"]), {}
            )
            for what in ("certificate", "key"):
                if service.get(f"{what}_text"):
                    path = f"{GIVEN}/{entry['name']}.{what}.pem"
                    self.given[path] = service[f"{what}_text"].rstrip("\n") + "\n"
                    entry[f"source_{what}"] = path
                if not entry[f"source_{what}"]:
                    raise certificate.CertificateError(
                        f"The certificate {entry['name']} comes from files (certificate_source: files), but nothing "
                        f"says which: give its source_certificate and source_key."
                    )

    def wanted(self):
        """Return path → text of the files that there should be."""
        params = self.params
        config = {
            "source": params["source"],
            "directory": certificate.directory_of(params["ca_url"], params["provisioner"], params["directory"])
            if params["source"] == "step_ca" else "",
            "ca_file": CA_FILE,
            "challenge": params["challenge"],
            "webroot": params["webroot"],
            "renew_at": params["renew_at"],
            "lifetime_days": params["lifetime_days"],
            "validation_timeout": params["validation_timeout"],
            "certificates": self.entries,
        }  # fmt: skip
        files = {
            renewal.PROGRAM: f"#!/usr/bin/python3 -I\n{inspect.getsource(renewal)}",
            **self.given,
            renewal.CONFIG: json.dumps(config, indent=1, sort_keys=True) + "\n",
            SERVICE: params["service"].replace("@PROGRAM@", renewal.PROGRAM),
            TIMER: params["timer"],
        }
        if params["source"] == "step_ca":
            files[CA_FILE] = params["roots"]
        return files

    def look(self, wanted):
        """Return what there is."""
        paths = wanted or (renewal.PROGRAM, renewal.CONFIG, SERVICE, TIMER)
        files = {path: renewal.read_text(path) for path in paths if os.path.exists(path)}
        modes = {path: os.stat(path).st_mode & 0o7777 == MODES.get(path, 0o600) for path in files}
        code, out, _err = self.module.run_command(["systemctl", "is-enabled", TIMER_UNIT])
        enabled = not code and out.strip() == "enabled"
        active = not self.module.run_command(["systemctl", "is-active", TIMER_UNIT])[0]
        due = {}
        for entry in self.entries:
            why = self.why(entry, wanted)
            if why:
                due[entry["name"]] = why
        return certificate.Seen(files, modes, (enabled and active) if wanted else (enabled or active), due)

    def why(self, entry, wanted):
        """Return why the program has something to do for a certificate, C("") when it hasn't."""
        texts = (renewal.read_text(entry["cert_file"]), renewal.read_text(entry["key_file"]))
        source = self.params["source"]
        # Compared with the roots that there will be.
        with tempfile.NamedTemporaryFile("w", suffix=".pem", encoding="utf-8") as file:
            file.write(wanted.get(CA_FILE, ""))
            file.flush()
            roots = renewal.roots_of(source, file.name)
            why, _said = renewal.why_due(entry, texts, time.time(), self.params["renew_at"], roots, jitter=False)
        if source == "files":
            given = tuple(self.given.get(path, renewal.read_text(path))
                          for path in (entry["source_certificate"], entry["source_key"]))  # fmt: skip
            if why.startswith("it ends") and given == texts:
                why = ""
            why = why or ("" if given == texts else "another one is declared")
        if why:
            return why
        record = f"{renewal.STATE}/certificates/{entry['name']}"
        if os.path.exists(f"{record}/owed"):
            return "the command after its renewal has not succeeded yet"
        if renewal.drift(entry):
            return "owner, group or mode of its files are others"
        return ""

    def do(self, steps, wanted):
        """Execute the plan."""
        for folder, mode in ((renewal.STATE, 0o700), (GIVEN, 0o700), (os.path.dirname(renewal.PROGRAM), 0o755),
                             (certificate.FOLDER, 0o755)):  # fmt: skip
            if self.params["source"] != "none":
                os.makedirs(folder, mode=mode, exist_ok=True)
        for step in steps:
            if step.action == "write":
                renewal.write(step.path, wanted[step.path], MODES.get(step.path, 0o600))
            elif step.action == "remove":
                os.unlink(step.path)
            elif step.action == "reload":
                self.systemctl("daemon-reload")
            elif step.action == "stop":
                self.systemctl("disable", "--now", TIMER_UNIT)
        if any(step.action == "renew" for step in steps):
            self.renew()
        if any(step.action == "timer" for step in steps):
            self.systemctl("enable", TIMER_UNIT)
            self.systemctl("restart", TIMER_UNIT)

    def systemctl(self, *words):
        """Have systemd do something."""
        code, out, err = self.module.run_command(["systemctl", *words])
        if code:
            raise certificate.CertificateError(f"systemctl {' '.join(words)} failed: {(err or out).strip()}")

    def renew(self):
        """Have the unit do what is due, as the timer would, and make sure that it did."""
        began = time.time()
        if self.params["renew"]:
            renewal.write(renewal.FORCE, "")
        # It ends with a failure, too, when something is still to be done; why is in the status. A run of the timer's
        # that had begun before this one's changes is waited for, and doesn't count.
        for _number in range(3):
            self.module.run_command(["systemctl", "start", renewal.UNIT])
            status = renewal.read_json(renewal.STATUS)
            if status.get("began", 0) >= began:
                break
        if status.get("began", 0) < began:
            _code, out, _err = self.module.run_command(
                ["journalctl", "-u", renewal.UNIT, "-n", "5", "--no-pager", "--quiet", "--output=cat"])  # fmt: skip
            raise certificate.CertificateError(
                f"{renewal.UNIT} did not come to its end: {' '.join(out.split()) or 'see journalctl'}"
            )
        errors = []
        for name, result in status["certificates"].items():
            if not result.get("error"):
                continue
            text = f"Certificate {name}: {result['error']}"
            if result["kind"] in PASSING and self.is_good(name) and not self.params["renew"]:
                self.module.warn(f"{text} The one that is there is valid until {iso(result['not_after'])}.")
            else:
                errors.append(text)
        if errors:
            raise certificate.CertificateError("\n".join(errors))

    def is_good(self, name):
        """Return whether the certificate that is there can be served for now."""
        entry = next(entry for entry in self.entries if entry["name"] == name)
        said = renewal.look(entry)
        return bool(
            said["not_after"]
            and said["not_after"] > time.time()
            and {renewal.plain_name(one) for one in entry["names"]} <= set(said["names"])
        )

    def certificates(self):
        """Return what there is, for the result."""
        status, now = renewal.read_json(renewal.STATUS).get("certificates", {}), time.time()
        found = []
        for entry in self.entries:
            said = renewal.look(entry)
            if said["not_after"] is not None:
                found.append({
                    "name": entry["name"], "names": said["names"], "cert_file": entry["cert_file"],
                    "key_file": entry["key_file"], "not_before": iso(said["not_before"]),
                    "not_after": iso(said["not_after"]), "remaining_seconds": int(said["not_after"] - now),
                    "without": status.get(entry["name"], {}).get("without", []),
                })  # fmt: skip
        return found


def iso(seconds):
    """Return a time as ISO 8601 has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def main():
    """Run as a module."""
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "choices": list(certificate.SOURCES), "required": True},
            "ca_url": text,
            "provisioner": {"type": "str", "default": "acme"},
            "directory": text,
            "roots": text,
            "challenge": {"type": "str", "choices": ["http-01", "tls-alpn-01"], "default": "http-01"},
            "webroot": text,
            "name": {"type": "str", "required": True},
            "sans": {"type": "list", "elements": "str", "default": []},
            "optional_names": {"type": "list", "elements": "str", "default": []},
            "model_server": {"type": "bool", "default": False},
            "services": {"type": "list", "elements": "dict", "default": [], "options": SERVICE_OPTIONS},
            "renew_at": {"type": "float", "default": 0.333},
            "lifetime_days": {"type": "int", "default": 30},
            "validation_timeout": {"type": "int", "default": 120},
            "service": text,
            "timer": text,
            "renew": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    plan = []
    try:
        run = Run(module)
        wanted = run.wanted() if module.params["source"] != "none" else {}
        seen = run.look(wanted)
        if wanted:
            names = {entry["name"]: entry for entry in run.entries}
            steps = certificate.plan(wanted, seen, TIMER_UNIT, names, module.params["renew"])
        else:
            steps = certificate.removal(seen, TIMER_UNIT, (SERVICE, TIMER))
        plan = [step.text for step in steps]
        if not module.check_mode:
            run.do(steps, wanted)
        ca = "" if module.params["source"] in ("files", "none") else renewal.read_text(CA_FILE)
        module.exit_json(changed=bool(steps), plan=plan, certificates=run.certificates(), ca=ca,
                         diff=diff(seen, wanted, steps))  # fmt: skip
    except (certificate.CertificateError, renewal.RenewalError) as error:
        module.fail_json(msg=str(error), plan=plan)
    except OSError as error:
        module.fail_json(msg=f"{error.filename or 'A file'} can't be written: {error.strerror}.", plan=plan)


def diff(seen, wanted, steps):
    """Return what differs, a list of before and after. The program and what was given are named only."""
    shown = []
    for step in steps:
        if step.action in ("write", "remove"):
            quiet = step.path == renewal.PROGRAM or step.path.startswith(f"{GIVEN}/")
            before, after = seen.files.get(step.path, ""), wanted.get(step.path, "")
            shown.append({
                "before_header": step.path, "after_header": step.path,
                "before": "" if quiet else before, "after": "(not shown)\n" if quiet else after,
            })  # fmt: skip
        elif step.action == "renew":
            shown.append({"before_header": "", "after_header": "certificate", "before": "", "after": f"{step.text}\n"})
    return shown


if __name__ == "__main__":
    main()
