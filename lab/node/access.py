# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who calls the REST API, and what they may do: tickets, tokens, permissions.

Three callers: ``root@pam`` with a ticket may do everything; a token of root@pam has every privilege, but isn't
root@pam to the checks that ask for the name; a token of ``viewer@pve`` may only look.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import unquote

from node import schema, settings
from node.errors import ParameterError, Refusal
from node.system import write_atomically

ROOT, VIEWER = "root@pam", "viewer@pve"
_TICKET_SECONDS = 7200
_AUDIT = frozenset({"", "VM.Audit", "Sys.Audit", "Datastore.Audit"})


@dataclass(frozen=True)
class Caller:
    """Who is logged in; ``token`` is the name of the API token, empty with a ticket."""

    user: str
    token: str = ""

    @property
    def name(self) -> str:
        """The name as tasks carry it."""
        return f"{self.user}!{self.token}" if self.token else self.user

    @property
    def is_root(self) -> bool:
        """Whether this is root@pam to the checks that ask for the name. Its tokens aren't."""
        return self.name == ROOT

    def has(self, privilege: str) -> bool:
        """Whether the caller has a privilege, on whatever path."""
        return self.user == ROOT or privilege in _AUDIT


def ensure_secrets(address: str) -> None:
    """Make passwords and tokens at the first ``lab up``; they stay until ``lab down``."""
    if not settings.API_KEY.exists():
        write_atomically(settings.API_KEY, secrets.token_hex(32) + "\n", 0o600)
    if settings.API_SECRETS.exists():
        return
    known = {
        "host": address, "port": settings.API_PORT, "ca": str(settings.CA_CERTIFICATE), "node": settings.node_name(),
        "user": ROOT, "password": secrets.token_urlsafe(18), "token_id": "lab", "token_secret": _uuid(),
        "viewer_user": VIEWER, "viewer_token_id": "lab", "viewer_token_secret": _uuid(),
    }  # fmt: skip
    write_atomically(settings.API_SECRETS, json.dumps(known, indent=1) + "\n", 0o600)


def _uuid() -> str:
    digits = secrets.token_hex(16)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _known() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(settings.API_SECRETS.read_text())
    return found


def _signed(text: str) -> str:
    key = settings.API_KEY.read_text().strip().encode()
    return base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode().rstrip("=")


def _csrf_token(user: str, now: int) -> str:
    return f"{now:08X}:{_signed(f'csrf {now:08X} {user}')}"


def _still_good(stamp: str) -> bool:
    return -300 < time.time() - int(stamp, 16) < _TICKET_SECONDS


def new_ticket(username: str, password: str) -> dict[str, str]:
    """The answer to a login. A ticket that is still good is as good as the password, and makes a new one."""
    good = hmac.compare_digest(password.encode(), _known()["password"].encode()) or _user_of(password) == username
    if username != ROOT or not good:
        raise Refusal(401, "authentication failure")
    now = int(time.time())
    plain = f"PVE:{username}:{now:08X}"
    ticket = f"{plain}::{_signed(plain)}"
    return {"username": username, "ticket": ticket, "CSRFPreventionToken": _csrf_token(username, now)}


def _user_of(ticket: str) -> str:
    """Whose ticket this is; empty when it is none, or too old."""
    match = re.fullmatch(r"(PVE:([^:]+):([0-9A-F]{8}))::(\S+)", ticket)
    if match and hmac.compare_digest(_signed(match[1]).encode(), match[4].encode()) and _still_good(match[3]):
        return match[2]
    return ""


def caller(method: str, authorization: str, cookie: str, csrf: str) -> Caller:
    """Who calls, from three headers; refuses who can't show that."""
    if authorization.startswith("PVEAPIToken="):
        return _by_token(authorization.partition("=")[2])
    jar = SimpleCookie(cookie)
    if "PVEAuthCookie" not in jar:
        raise Refusal(401, "No ticket")
    user = _user_of(unquote(jar["PVEAuthCookie"].value))
    if not user:
        raise Refusal(401, "permission denied - invalid PVE ticket")
    stamp = csrf.partition(":")[0]
    if method != "GET":
        good = re.fullmatch("[0-9A-F]{8}", stamp) and _still_good(stamp)
        if not good or not hmac.compare_digest(csrf.encode(), _csrf_token(user, int(stamp, 16)).encode()):
            raise Refusal(401, "Permission denied - invalid csrf token")
    return Caller(user)


def _by_token(text: str) -> Caller:
    match = re.fullmatch(r"([^!=\s]+@[^!=\s]+)!([^=\s]+)=(\S+)", text)
    if not match:
        raise Refusal(401, "no tokenid specified")
    known = _known()
    for prefix, user in (("", ROOT), ("viewer_", VIEWER)):
        if match[1] != user:
            continue
        if match[2] != known[f"{prefix}token_id"]:
            raise Refusal(401, f"no such token '{match[2]}' for user '{user}'")
        if not hmac.compare_digest(match[3].encode(), known[f"{prefix}token_secret"].encode()):
            raise Refusal(401, "invalid token value!")
        return Caller(user, match[2])
    raise Refusal(401, f"no such user ('{match[1]}')")


# --- permissions -----------------------------------------------------------------------------------------------------


def _failed(what: str) -> Refusal:
    return Refusal(403, f"Permission check failed ({what})")


def check(who: Caller, path: str, privilege: str) -> None:
    """Refuse a caller without a privilege on a path."""
    if not who.has(privilege):
        raise _failed(f"{path}, {privilege}")


def check_skiplock(who: Caller, given: str) -> None:
    """``skiplock`` is for root@pam."""
    if given == "1" and not who.is_root:
        raise ParameterError({"skiplock": "Only root may use this option."})


_PRIVILEGES = {
    **dict.fromkeys(("cores", "cpuunits", "cpulimit"), "VM.Config.CPU"),
    **dict.fromkeys(("memory", "swap"), "VM.Config.Memory"),
    **dict.fromkeys(("net", "nameserver", "searchdomain", "hostname"), "VM.Config.Network"),
    **dict.fromkeys(("rootfs", "mp", "unused"), "VM.Config.Disk"),
}
_ONLY_ROOT = {"dev": "configuring device passthrough", "hookscript": "changing the hookscript"}


def check_config(
    who: Caller, vmid: int, new: dict[str, str], delete: Iterable[str], old: dict[str, str], unprivileged: bool
) -> None:
    """Refuse a change of configuration that the caller may not make. ``new`` has checked values."""
    if who.is_root:
        return
    for key in [*new, *delete]:
        stem = key.rstrip("0123456789")
        if stem in _ONLY_ROOT:
            raise _failed(f"{_ONLY_ROOT[stem]} is only allowed for root@pam")
        if stem == "features":
            _check_features(who, vmid, new.get(key, ""), old.get(key, ""), unprivileged)
            continue
        check(who, f"/vms/{vmid}", _PRIVILEGES.get(stem, "VM.Config.Options"))
        if stem in ("rootfs", "mp") and key in new:
            volume = (schema.ROOTFS if stem == "rootfs" else schema.MOUNT).parse(new[key])["volume"]
            if volume.startswith("/"):
                kind = "device" if volume.startswith("/dev/") else "bind"
                raise _failed(f"mount point type {kind} is only allowed for root@pam")


def _check_features(who: Caller, vmid: int, new: str, old: str, unprivileged: bool) -> None:
    if not unprivileged:
        raise _failed("changing feature flags for privileged container is only allowed for root@pam")
    wanted, current = schema.FEATURES.parse(new), schema.FEATURES.parse(old)
    changed = {key for key in {*wanted, *current} if wanted.get(key, "") != current.get(key, "")}
    if changed - {"nesting"}:
        raise _failed("changing feature flags (except nesting) is only allowed for root@pam")
    check(who, f"/vms/{vmid}", "VM.Allocate" if changed else "VM.Config.Options")
