# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which certificates a container has, and the steps to have them looked after: from values to values.

The program that gets and renews them is C(certificate_renewal.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils import certificate_renewal as renewal
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_guard

FOLDER = "/etc/phoenix-hypervisor/certificates"
# The entry of the model server; its key is copied by the server's unit for the server's user, so it is root's here.
MODEL_SERVER = "vllm_model_server"
SOURCES = ("step_ca", "files", "self_signed", "none")
_SHELLS = ("sh", "bash", "dash", "zsh", "ash", "ksh")


class CertificateError(ValueError):
    """A declaration that can't be carried out. The text is a sentence for the user."""


# --- commands -----------------------------------------------------------------------------------------------------


def command_words(value: str | Iterable[str]) -> list[str]:
    """Return the words of a command that is run without a shell.

    Args:
        value: a list of words, taken as it is; or text, which is split as a shell splits it.

    Raises:
        CertificateError: the text has something in it that only a shell understands. The sentence has no subject.
    """
    if not isinstance(value, str):
        words = [str(word) for word in value]
        if words and not words[0]:
            raise CertificateError("names no program; give the program and its words")
        return words
    remedy = "no shell runs it: write one command with its words, or the path of a script in the container"
    found = re.search(r"\$\(|\$\{?\w+|`|[\r\n]", re.sub(r"'[^']*'", "", value))
    if found:
        raise CertificateError(f"has shell syntax in it ({found[0].strip() or 'a line end'}); {remedy}")
    try:
        words = shlex.split(value)
        lexer = shlex.shlex(value, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        operators = [word for word in lexer if word and not word.strip("();<>|&")]
    except ValueError as error:
        raise CertificateError(f"can't be split into words ({error}); close every quote") from None
    if operators:
        raise CertificateError(f"has shell syntax in it ({operators[0]}); {remedy}")
    for place, word in enumerate(words[:-1]):
        if word.rpartition("/")[2] in _SHELLS and re.fullmatch(r"-\w*c", words[place + 1]):
            raise CertificateError(f"calls a shell ({word} {words[place + 1]}); {remedy}")
    return words


def without_pct_exec(words: list[str], ctid: str) -> list[str]:
    """Return a command without C(pct exec CTID --) before it: it runs inside by itself.

    Raises:
        CertificateError: it is for another container, or for a VM.
    """
    if words[:2] != ["pct", "exec"] and words[:3] != ["qm", "guest", "exec"]:
        return words
    whose = words[3] if words[0] == "qm" else (words[2] if len(words) > 2 else "")
    if words[0] == "qm" or whose != ctid:
        raise CertificateError(
            f"runs something in {'VM' if words[0] == 'qm' else 'CTID'} {whose}; it is run inside the container whose "
            "certificate it is: declare the certificate there"
        )
    return words[4:] if words[3:4] == ["--"] else words[3:]


# --- which certificates -------------------------------------------------------------------------------------------


def name_of(common_name: str) -> str:
    """Return a name for a certificate, fit for a folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", common_name).strip("_") or "certificate"


def fingerprints(values: Iterable[str]) -> list[str]:
    """Return SHA-256 fingerprints in one form: 64 digits, small letters.

    Raises:
        CertificateError: one is none.
    """
    found = []
    for value in values:
        digits = re.sub(r"[\s:]", "", str(value)).lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digits):
            raise CertificateError(
                f"{value!r} is no SHA-256 fingerprint of a root certificate (64 hexadecimal digits): the CA tells it "
                "with `step certificate fingerprint root_ca.crt`."
            )
        found.append(digits)
    return list(dict.fromkeys(found))


def entries(
    services: Iterable[Mapping[str, Any]], model_server: bool, names: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the certificates of a container, each complete.

    Args:
        services: what is declared; one that is called as the model server says more of that one's.
        model_server: whether the model server has one.
        names: C(name), the container's own; C(sans), the model server's others; C(optional), what is in each
            certificate where the CA allows it.

    Raises:
        CertificateError: something is missing, or two have the same name or file.
    """
    declared = [dict(service) for service in services]
    if model_server and not any(service.get("name") == MODEL_SERVER for service in declared):
        declared.insert(0, {"name": MODEL_SERVER})
    found: list[dict[str, Any]] = []
    for service in declared:
        is_server = service.get("name") == MODEL_SERVER
        common = service.get("common_name") or (names.get("name") if is_server or not service.get("sans") else "")
        if not common and not service.get("sans"):
            raise CertificateError(f"The certificate {service.get('name')!r} has no name: give it a common_name.")
        sans = [*(names.get("sans") or () if is_server else ()), *(service.get("sans") or ())]
        name = service.get("name") or name_of(common or sans[0])
        folder = f"{FOLDER}/{name}"
        entry = {
            "name": name,
            "names": list(dict.fromkeys(str(one).strip() for one in ([common] if common else []) + sans)),
            "optional_names": list(names.get("optional") or []),
            "cert_file": service.get("cert_file") or f"{folder}/fullchain.pem",
            "key_file": service.get("key_file") or f"{folder}/privkey.pem",
            "owner": str(service.get("owner") or "root"),
            "group": str(service.get("group") or "root"),
            "mode": f"{int(str(service.get('mode') or '0600'), 8):04o}",
            "command": command_words(service.get("post_renewal_command") or []),
            "only_if": "",
            "source_certificate": service.get("source_certificate") or "",
            "source_key": service.get("source_key") or "",
        }
        if is_server and not entry["command"]:
            entry.update(command=list(server_guard.RENEWED), only_if=server_guard.PROGRAM)
        found.append(entry)
    _no_two(found)
    return found


def _no_two(found: list[dict[str, Any]]) -> None:
    """Make sure that no two certificates have the same name or file."""
    seen: dict[str, str] = {}
    for entry in found:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", entry["name"]):
            raise CertificateError(f"{entry['name']!r} is no name for a certificate: use letters, digits, _ and -.")
        for what in (entry["name"], entry["cert_file"], entry["key_file"]):
            if what in seen:
                both = f"{seen[what]}, {entry['name']}"
                raise CertificateError(f"Two certificates ({both}) have {what}: give each its own.")
            seen[what] = entry["name"]
        for path in (entry["cert_file"], entry["key_file"]):
            if not path.startswith("/") or ".." in path.split("/"):
                raise CertificateError(f"{path} is no absolute path for the certificate {entry['name']}.")


def directory_of(ca_url: str, provisioner: str, given: str) -> str:
    """Return the address of the CA's ACME directory, as step-ca has it unless another one is given."""
    return given or f"{ca_url.rstrip('/')}/acme/{provisioner}/directory"


# --- what is to be done -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        action: C(write), C(remove), C(reload), C(timer), C(renew), C(stop).
        text: what is done, for people.
        path: the file, where it is about one.
    """

    action: str
    text: str
    path: str = ""


@dataclass(frozen=True)
class Seen:
    """What there is.

    Attributes:
        files: path → text of the files that are looked at; those that aren't there are left out.
        modes: path → mode and owner are as they should be.
        timer: whether the timer is enabled and runs.
        due: name → why a certificate is to be made, or its command run; only those that are.
    """

    files: Mapping[str, str]
    modes: Mapping[str, bool]
    timer: bool
    due: Mapping[str, str] = field(default_factory=dict)


def plan(wanted: Mapping[str, str], seen: Seen, timer_unit: str, entries_by_name: Mapping[str, Mapping[str, Any]],
         force: bool) -> list[Step]:  # fmt: skip
    """Return the steps to have certificates looked after, in their order.

    Args:
        wanted: path → text of the files.
        seen: what there is.
        timer_unit: the timer's name.
        entries_by_name: the certificates.
        force: whether each is renewed, due or not.
    """
    steps = [
        Step("write", f"{'change' if path in seen.files else 'write'} {path}", path)
        for path, text in wanted.items()
        if seen.files.get(path) != text or not seen.modes.get(path, True)
    ]
    units = any(step.path.startswith("/etc/systemd/") for step in steps)
    if units:
        steps.append(Step("reload", "have systemd read its units again"))
    for name, entry in entries_by_name.items():
        why = seen.due.get(name) or ("it was asked for" if force else "")
        if why:
            steps.append(Step("renew", f"get a certificate {name} for {', '.join(entry['names'])}, because {why}"))
    if units or not seen.timer:
        steps.append(Step("timer", f"have {timer_unit} run, and started at boot"))
    return steps


def removal(seen: Seen, timer_unit: str, units: Iterable[str]) -> list[Step]:
    """Return the steps after which nothing looks after certificates any more. The certificates stay."""
    there = list(seen.files)
    steps = [Step("stop", f"stop {timer_unit}")] if seen.timer else []
    steps += [Step("remove", f"remove {path}", path) for path in there]
    if set(there) & set(units):
        steps.append(Step("reload", "have systemd read its units again"))
    return steps


def problem(entry: Mapping[str, Any], said: Mapping[str, Any], error: str, now: float, renew_at: float,
            limit: int) -> str:  # fmt: skip
    """Return what is wrong with a certificate that is there, C("") for nothing.

    Args:
        entry: of the configuration.
        said: what the program's C(look) returns.
        error: why its last renewal failed.
        now: the time.
        renew_at: the part of its life that is left when it is renewed.
        limit: seconds that it must be valid for, 0 for half of that part.
    """
    name, end = entry["name"], said["not_after"]
    why = f" Its last renewal failed: {error}" if error else ""
    if end is None:
        return f"The certificate {name} is not there, or key and certificate don't belong together.{why}"
    if end <= now:
        return f"The certificate {name} has expired, {renewal.span(now - end)} ago.{why}"
    needed = limit or (end - said["not_before"]) * renew_at / 2
    if end - now < needed:
        return (
            f"The certificate {name} is valid for {renewal.span(end - now)} only, which is below the limit of "
            f"{renewal.span(needed)}.{why}"
        )
    return f"The certificate {name}:{why}" if why else ""
