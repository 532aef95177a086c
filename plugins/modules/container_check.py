#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: container_check
short_description: Find out whether a check of a container passes
version_added: 0.1.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Runs a command or a script inside a container, or asks for a URL, and says whether that succeeded. A check that does
    not pass is a result, no failure of the module; the task that uses it decides.
  - O(command) and O(script) run as root inside, as with M(phoenix.hypervisor.pct_exec); no shell of the node's sees
    them. The module has to run on the container's node, as root. O(url) is asked for by the host that it runs on.
  - What a check prints is returned, its last lines only, without O(api_key) and without what a terminal would obey.
attributes:
  check_mode:
    description: Runs nothing, since what a check does is not known, and says that it was skipped.
    support: full
  diff_mode:
    description: What a check changes is not known.
    support: none
  idempotence:
    description: A check is run each time. The module reports no change.
    support: full
options:
  vmid:
    description: CTID of the container. Needed with O(command) and O(script).
    type: int
  command:
    description: A script for the container's C(/bin/sh). It passes when it ends with 0.
    type: str
  script:
    description:
      - The text of a program. It is put into a folder of its own in the container's C(/tmp), run, and removed. Its
        first line says with what it is run, C(#!/usr/bin/python3) for example; without such a line it is the shell.
      - It passes when it ends with 0.
    type: str
  script_name:
    description: What the file of O(script) is called inside.
    type: str
    default: test
  url:
    description: A URL that is asked for, C(http) or C(https). It passes with a status of 200 to 299. No proxy is used.
    type: str
  ca:
    description:
      - The text of the CAs (PEM) that a C(https) O(url) is trusted with; those of the host that asks when it is empty.
      - A certificate that isn't trusted is told in RV(certificate).
    type: str
    default: ""
  server_name:
    description: The name that the certificate must have, where it isn't the host in O(url).
    type: str
    default: ""
  body:
    description: What is sent to O(url) as JSON, with POST. Without it, it is GET.
    type: dict
  api_key:
    description:
      - Sent to O(url) as a bearer token, and known to O(command) and O(script) as C(API_KEY) in their environment. It
        is on no command line, and replaced by C(***) in what is returned.
    type: str
    default: ""
  environment:
    description: Further variables of O(command) and O(script). They are no secrets.
    type: dict
    default: {}
  timeout:
    description:
      - Seconds that one try may take. After that a command is ended with everything that it has started.
    type: int
    default: 60
  retries:
    description: How often a check that doesn't pass is tried again.
    type: int
    default: 0
  interval:
    description: Seconds between two tries.
    type: int
    default: 5
seealso:
  - module: phoenix.hypervisor.pct_exec
"""

EXAMPLES = r"""
- name: Is the service well?
  phoenix.hypervisor.container_check:
    vmid: 921
    command: curl -fsS http://localhost:8000/health
    retries: 5
    interval: 10
  register: check

- name: Ask from the node
  phoenix.hypervisor.container_check:
    url: http://10.92.0.121:8000/v1/models
    api_key: "{{ vllm_model_server_api_key }}"
  register: check

- name: A test of one's own
  phoenix.hypervisor.container_check:
    vmid: 921
    script: "{{ lookup('ansible.builtin.file', 'tests/vllm/answers.py', rstrip=false) }}"
    timeout: 600
  register: check
  failed_when: not check.passed
"""

RETURN = r"""
passed:
  description: Whether it passed, in the end.
  returned: when it ran
  type: bool
  sample: false
outcome:
  description: How the last try ended, as the end of a sentence.
  returned: when it ran
  type: str
  sample: exit code 7
rc:
  description: The exit code of the last try, 124 when it was ended before its time.
  returned: when a command or script ran inside
  type: int
  sample: 7
status:
  description: The HTTP status of the last try, 0 without an answer.
  returned: when a URL was asked for
  type: int
  sample: 200
lines:
  description: The last lines that it printed, at most 20, or that were answered.
  returned: when it ran
  type: list
  elements: str
  sample: ["curl: (7) Failed to connect to localhost port 8000"]
content:
  description: What was answered, up to a mebibyte.
  returned: when a URL was asked for
  type: str
  sample: '{"object": "list"}'
url:
  description: The URL that was asked for.
  returned: when a URL was asked for
  type: str
  sample: http://10.92.0.121:8000/v1/models
certificate:
  description:
    - C(problem), what is wrong with the certificate, empty when nothing is; and of one that is trusted C(names),
      C(serial), C(not_after), C(life) and C(left), the last two in seconds.
  returned: when a C(https) URL was asked for with O(ca) or O(server_name), and it showed a certificate
  type: dict
  sample:
    problem: ""
    names: [vllm-921]
    serial: 0A1B2C
    not_after: 2026-11-29 00:00 UTC
    life: 86400
    left: 50000
attempts:
  description: How often it was tried.
  returned: when it ran
  type: int
  sample: 6
seconds:
  description: How long the last try took.
  returned: when it ran
  type: float
  sample: 0.04
"""

import http.client
import json
import re
import secrets
import ssl
import time
import urllib.error
import urllib.parse

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.phoenix.hypervisor.plugins.module_utils import (
    inside,
    inside_command,
    node,
    process,
    server_guard,
    verification,
)

MOST_BYTES = 1 << 20
# The name that the shell gives to its own messages.
NAME = "check"
# Arguments: folder, name of the file, which comes on standard input.
_LAUNCH = """umask 077
mkdir -- "$1" || exit 125
trap 'rm -rf -- "$1"' EXIT
cat >"$1/$2" && chmod 0700 "$1/$2" || exit 125
"$1/$2" </dev/null 2>&1
"""


class CannotRun(Exception):
    """It can't be tried, and trying again is no help; the text is the end of a sentence."""


def try_inside(params: dict, api_key: str) -> dict:
    """Run the command or script once."""
    environment = {**params["environment"], **({"API_KEY": api_key} if api_key else {})}
    wrong = inside_command.environment_problem(environment)
    if wrong:
        raise CannotRun(wrong)
    folder, stdin = "", ()
    if params["script"] is None:
        argv = ["/bin/sh", "-c", 'exec /bin/sh -c "$1" 2>&1', NAME, params["command"]]
    else:
        folder = f"/tmp/phoenix-test-{secrets.token_hex(8)}"
        argv = ["/bin/sh", "-c", _LAUNCH, NAME, folder, params["script_name"]]
        stdin = (params["script"].encode("utf-8", "surrogateescape"),)
    words = inside_command.command_line({"argv": argv, "chdir": "/"}, list(environment))
    try:
        done = inside.run(
            params["vmid"], words, params["timeout"], variables=inside_command.variables(environment), stdin=stdin
        )
        if folder and done.ended_by:
            # The shell that would have removed it was ended, too.
            inside.run(params["vmid"], ["rm", "-rf", folder], 30)
    except (inside.InsideError, node.NodeError) as error:
        raise CannotRun(str(error)) from error
    if done.ended_by and done.ended_by != "time":
        raise process.Interrupted(done.ended_by)
    outcome = f"exit code {done.rc}"
    if done.ended_by == "time":
        outcome = f"it was still running after {params['timeout']} s and was ended, with all that it had started"
    elif done.rc > 128:
        outcome += f" (128 and signal {done.rc - 128})"
    # What the check itself writes comes on stdout; stderr has the way's own words.
    text = done.stdout if done.ended_by else done.stdout + done.stderr
    return {"passed": done.rc == 0, "rc": done.rc, "outcome": outcome, "text": text}


def try_url(params: dict, api_key: str) -> dict:
    """Ask for the URL once."""
    url, body = params["url"], params["body"]
    if not re.match(r"https?://[^\s/:]", url):
        raise CannotRun(f"{url!r} is no URL that can be asked for; write one such as http://10.92.0.121:8000/health")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    if body is not None:
        headers["Content-Type"] = "application/json"
    data = None if body is None else json.dumps(body).encode()
    status, content, why, certificate = 0, "", "", None
    try:
        if url.startswith("https:") and (params["ca"] or params["server_name"]):
            status, content, certificate = ask_with_trust(url, data, headers, params)
            why = f"its certificate {certificate['problem']}" if certificate["problem"] else ""
        else:
            reply = open_url(
                url, data, headers, "GET" if body is None else "POST", use_proxy=False, timeout=params["timeout"]
            )
            with reply:
                status, content = reply.status, reply.read(MOST_BYTES).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read(MOST_BYTES).decode("utf-8", "replace")
    except TimeoutError:
        why = f"no answer within {params['timeout']} s"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        why = f"no answer: {getattr(reason, 'strerror', None) or str(reason) or type(reason).__name__}"
    outcome = why or f"HTTP status {status}"
    return {
        "passed": 200 <= status < 300, "status": status, "outcome": outcome, "text": content, "content": content,
        "url": url, **({"certificate": certificate} if certificate else {}),
    }  # fmt: skip


def ask_with_trust(url: str, data: bytes | None, headers: dict, params: dict) -> tuple[int, str, dict]:
    """Ask a server whose certificate is checked with other CAs or another name. Gives status, content, certificate."""
    parts = urllib.parse.urlsplit(url)
    tls = {"ca_text": params["ca"], "name": params["server_name"] or parts.hostname}
    probe = {"host": parts.hostname, "port": parts.port or 443, "tls": tls}
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    try:
        connection = server_guard.connection(probe, params["timeout"])
        try:
            connection.request("GET" if data is None else "POST", path, data, headers)
            said = connection.sock.getpeercert()
            reply = connection.getresponse()
            status, content = reply.status, reply.read(MOST_BYTES).decode("utf-8", "replace")
        finally:
            connection.close()
    except (ssl.SSLCertVerificationError, server_guard.CertificateError) as error:
        return 0, "", {"problem": server_guard.distrust(error, probe, params["timeout"])}
    begin, end = (ssl.cert_time_to_seconds(said[name]) for name in ("notBefore", "notAfter"))
    names = [name for _kind, name in said.get("subjectAltName", ())]
    found = {
        "problem": "", "names": names, "serial": said["serialNumber"],
        "not_after": server_guard.day(said["notAfter"]), "life": end - begin, "left": end - int(time.time()),
    }  # fmt: skip
    return status, content, found


def check(params: dict, api_key: str) -> dict:
    """Try until it passes, or as often as it may. Gives what the module returns."""
    attempts = 0
    while True:
        attempts += 1
        start = time.monotonic()
        try:
            result = (try_url if params["url"] is not None else try_inside)(params, api_key)
        except CannotRun as reason:
            return {"passed": False, "outcome": str(reason), "lines": [], "attempts": attempts, "seconds": 0.0}
        result.update(attempts=attempts, seconds=round(time.monotonic() - start, 2))
        if result["passed"] or attempts > params["retries"]:
            return result
        time.sleep(params["interval"])


def without(secret: str, result: dict) -> dict:
    """The same with the secret taken out of all text, and the text cut into its last lines."""
    if secret:
        texts = {key: value.replace(secret, "***") for key, value in result.items() if isinstance(value, str)}
        result = {**result, **texts}
    if "text" in result:
        result["lines"] = verification.last_lines(result.pop("text"))
    return {**result, "outcome": verification.clean(result["outcome"])}


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            vmid=dict(type="int"),
            command=dict(type="str"),
            script=dict(type="str"),
            script_name=dict(type="str", default="test"),
            url=dict(type="str"),
            ca=dict(type="str", default=""),
            server_name=dict(type="str", default=""),
            body=dict(type="dict"),
            api_key=dict(type="str", default="", no_log=True),
            environment=dict(type="dict", default={}),
            timeout=dict(type="int", default=60),
            retries=dict(type="int", default=0),
            interval=dict(type="int", default=5),
        ),
        required_one_of=[["command", "script", "url"]],
        mutually_exclusive=[["command", "script", "url"]],
        required_by={"command": ["vmid"], "script": ["vmid"]},
        supports_check_mode=True,
    )
    params = module.params
    api_key = inside.take_secret(module, "api_key")
    if "\0" in f"{params['command'] or ''}{params['script_name']}":
        module.fail_json(msg="there is a NUL character in command or script_name, which no command line can have")
    if "/" in params["script_name"]:
        module.fail_json(msg=f"script_name: {params['script_name']!r} has a slash; write a name without a folder")
    if params["timeout"] < 1:
        module.fail_json(msg=f"timeout: {params['timeout']} is no limit in seconds; write 1 or more")
    if module.check_mode:
        module.exit_json(changed=False, skipped=True, msg="A check is not run in check mode")
    try:
        with process.interruptible():
            result = check(params, api_key)
    except process.Interrupted as interrupted:
        module.fail_json(msg=f"the check was ended by {interrupted}")
    module.exit_json(changed=False, **without(api_key, result))


if __name__ == "__main__":
    main()
