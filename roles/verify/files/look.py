# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks in the container whether the model server's unit runs what is locked. Prints JSON. Changes nothing."""

import hashlib
import json
import os
import re
import ssl
import subprocess
import sys


def properties(unit):
    """Return what systemd says of the unit."""
    names = "ActiveState,SubState,UnitFileState,MainPID,Result,NRestarts,StartLimitBurst,ExecMainStartTimestamp"
    command = ["systemctl", "show", unit, f"--property={names}"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def given_up(unit):
    """Return why the watchdog killed the server's last run, "" when it didn't."""
    path = f"/var/lib/{unit.rpartition('.')[0]}/ends.jsonl"
    try:
        with open(path, encoding="utf-8") as file:
            return json.loads(file.readlines()[-1]).get("watchdog", "")
    except (OSError, ValueError, LookupError, AttributeError):
        return ""


def unwatched(unit):
    """Return what is wrong with the timer of the watchdog, "" when it runs or there is none."""
    timer = f"{unit.rpartition('.')[0]}_watchdog.timer"
    seen = properties(timer)
    if seen.get("UnitFileState", "") == "" or (seen["UnitFileState"], seen.get("ActiveState")) == ("enabled", "active"):
        return ""
    return (f"{timer} is {seen['UnitFileState']} and {seen.get('ActiveState')}, so a server that hangs is not "
            "restarted: run site.yml")  # fmt: skip


def trusted(path):
    """Return the text of the CAs that the container trusts the server's certificate with, and their fingerprints."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return "", []
    found = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.S)
    return "\n".join(found), [hashlib.sha256(ssl.PEM_cert_to_DER_cert(one)).hexdigest() for one in found]


def renewal(timer):
    """Return what is wrong with the timer that renews the certificate, and when it is due next."""
    command = ["systemctl", "show", timer, "--property=ActiveState,UnitFileState,NextElapseUSecRealtime,"
               "NextElapseUSecMonotonic,Unit,LoadState"]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    seen = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if seen.get("LoadState") != "loaded":
        return f"there is no {timer}, so the certificate is not renewed: run site.yml", ""
    if (seen.get("ActiveState"), seen.get("UnitFileState")) != ("active", "enabled"):
        return (f"{timer} is {seen.get('UnitFileState')} and {seen.get('ActiveState')}, so the certificate is not "
                "renewed: run site.yml"), ""  # fmt: skip
    result = properties(seen["Unit"]).get("Result")
    if result not in ("success", "", None):
        return f"the last renewal failed (systemd says {result}); see journalctl -u {seen['Unit']}", ""
    due = seen.get("NextElapseUSecRealtime") or seen.get("NextElapseUSecMonotonic") or ""
    return ("" if due not in ("", "infinity", "0") else f"{timer} has no next time: run site.yml"), due


def release_of(pid):
    """Return the folder of the release that a process of vLLM was started from."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = os.fsdecode(file.read()).split("\0")
    except OSError:
        return ""
    return next((word[: -len("/bin/vllm")] for word in words if word.endswith("/bin/vllm")), "")


def installed(release):
    """Return name → version of the distributions in a release."""
    found = {}
    for folder, names, _files in os.walk(os.path.join(release, "lib")):
        if os.path.basename(folder) == "site-packages":
            matches = (re.fullmatch(r"(.+?)-([^-]+)\.dist-info", name) for name in names)
            found.update({normal(match[1]): match[2] for match in matches if match})
            names.clear()
    return found


def normal(name):
    """Return a distribution's name as all its spellings have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(release):
    """Return name → version of a release's lock."""
    try:
        with open(os.path.join(release, "requirements.lock"), encoding="utf-8") as file:
            lines = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)(?!.*;)", file.read(), re.M)
    except OSError:
        return {}
    return {normal(name): version for name, version in lines}


def main(unit, ca="", timer=""):
    """Print what there is, and what is wrong with it, a sentence each."""
    problems, differences = [], []
    seen = properties(unit)
    why = given_up(unit) if seen.get("ActiveState") == "failed" else ""
    if why:
        # systemd's own count of restarts has the one that it refused, too.
        restarts = int(seen.get("StartLimitBurst") or 1) - 1
        problems.append(f"{unit} was left stopped after its last restart (vllm_model_server_restarts: {restarts}), "
                        f"because it did not answer ({why}). See journalctl -u {unit}; site.yml starts it again, or, "
                        f"inside, systemctl reset-failed {unit} and systemctl start {unit}")  # fmt: skip
    elif seen.get("ActiveState") != "active":
        problems.append(f"{unit} is not active, but {seen.get('ActiveState')} (systemd says {seen.get('Result')}); "
                        f"see journalctl -u {unit}")  # fmt: skip
    if seen.get("UnitFileState") != "enabled":
        problems.append(f"{unit} is not enabled, so it does not start with the container: run site.yml")
    if unwatched(unit):
        problems.append(unwatched(unit))
    release = release_of(seen.get("MainPID"))
    record, there = {}, installed(release) if release else {}
    try:
        with open(os.path.join(release, "release.json"), encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError):
        # A vLLM that a site installed in its own way: there is nothing to compare it with.
        pass
    expected = {**locked(release), **{name: record[name] for name in ("vllm", "torch") if name in record and there}}
    for name, version in sorted(expected.items()):
        # A build's own mark (+cpu, +cu128) is written in the file's name as it is, or not at all.
        if there.get(name, "").split("+")[0] != version.split("+")[0]:
            has = there.get(name, "none")
            differences.append(f"{name} is locked at {version}, and {release} has {has}: run site.yml")
    tls = {}
    if ca:
        tls["ca"], tls["fingerprints"] = trusted(ca)
    if timer:
        tls["renewal"], tls["next"] = renewal(timer)
    print(json.dumps({
        "tls": tls, "problems": problems, "differences": differences,
        "release": os.path.basename(release), "unit": seen, "record": record,
        "vllm": record.get("vllm", ""), "compared": len(expected),
    }))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
