# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node by Proxmox VE's REST API, through proxmoxer."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime

from ansible_collections.phoenix.hypervisor.plugins.module_utils import nodes, pct_conf, pct_keys
from ansible_collections.phoenix.hypervisor.plugins.module_utils.command import Call, Command
from ansible_collections.phoenix.hypervisor.plugins.module_utils.container import Container
from ansible_collections.phoenix.hypervisor.plugins.module_utils.node import NodeError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.process import Finished

try:
    import requests
    from proxmoxer import ProxmoxAPI
    from proxmoxer.core import AuthenticationError, ResourceException
except (ImportError, SystemExit):  # proxmoxer itself exits when requests is missing
    ProxmoxAPI = None

# Seconds for one request; a task that takes long is asked for again and again.
_REQUEST_TIMEOUT = 30
_POLL = 0.5
# Lines of a task's log that are asked for; without a number, only its first 50 would come.
_LOG_LINES = 5000
_ON_THE_NODE = "run the module on the node, without api_host"
# Not values of the configuration, although the API has them among those.
_NOT_CONFIG = ("digest", "description", "lxc", "snapname")


class ApiNode:
    """A node that is reached by its REST API."""

    is_local = False

    def __init__(self, params: Mapping) -> None:
        """:raises NodeError: when it can't be reached, refuses the login, or it isn't clear which node is meant"""
        if ProxmoxAPI is None:
            raise NodeError(
                "api_host needs the Python packages proxmoxer and requests where the module runs; install them there: "
                "python3 -m pip install proxmoxer requests"
            )
        self._where = f"{params['api_host']}:{params['api_port']}"
        self._user = params.get("api_user") or ""
        self._by_token = bool(params.get("api_token_id"))
        self._api = self._login(params)
        self.name = self._node_name(params.get("node"))

    @property
    def is_root(self) -> bool:
        """May it do what only root@pam may? A token of root@pam may not: Proxmox counts it as another user."""
        return self._user == "root@pam" and not self._by_token

    def _login(self, params: Mapping) -> ProxmoxAPI:
        if not self._user:
            raise NodeError("api_host needs api_user, such as root@pam, with api_password or a token of that user")
        if self._by_token:
            if not params.get("api_token_secret"):
                raise NodeError("api_token_id needs api_token_secret")
            # Some write the whole id, as Proxmox shows it: user@realm!name.
            login = {
                "token_name": params["api_token_id"].rpartition("!")[2],
                "token_value": params["api_token_secret"],
            }
        elif params.get("api_password"):
            login = {"password": params["api_password"]}
        else:
            raise NodeError("api_host needs api_password, or api_token_id with api_token_secret")
        verify = (params.get("ca_path") or True) if params["validate_certs"] else False
        with self._said():
            return ProxmoxAPI(
                params["api_host"], port=params["api_port"], user=self._user, verify_ssl=verify,
                timeout=_REQUEST_TIMEOUT, **login,
            )  # fmt: skip

    def _node_name(self, wanted: str | None) -> str:
        with self._said():
            names = sorted(member["node"] for member in self._api.nodes.get())
        if wanted in names or (wanted is None and len(names) == 1):
            return wanted or names[0]
        fault = f"has no node {wanted}" if wanted else "has more than one node"
        raise NodeError(f"the cluster at {self._where} {fault}; name one in `node`: {', '.join(names)}")

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Turn what goes wrong in a request into a sentence.

        :raises NodeError: for everything but an answer with an error in it
        """
        try:
            yield
        except AuthenticationError:
            raise NodeError(
                f"{self._where} refuses the password of {self._user}; correct api_user (with its realm, such as "
                "root@pam) or api_password"
            ) from None
        except requests.exceptions.SSLError as error:
            raise NodeError(
                f"the certificate of {self._where} can't be trusted ({_cause(error)}); name the file of the cluster's "
                "CA in ca_path (on a node it is /etc/pve/pve-root-ca.pem)"
            ) from None
        except requests.exceptions.RequestException as error:
            raise NodeError(
                f"the API at {self._where} can't be reached: {_cause(error)}; correct api_host or api_port, or look "
                "there with: systemctl status pveproxy"
            ) from None
        except ResourceException as error:
            if error.status_code != 401:
                raise
            raise NodeError(
                f"{self._where} refuses the login of {self._user}: {error.content}; correct api_token_id and "
                "api_token_secret, or the password"
            ) from None

    def get(self, path: str, **parameters: object) -> object:
        """What the API says below C(/nodes/<node>/). :raises NodeError: with its own words, when it is an error"""
        return self._get(self._below(path), **parameters)

    def request(self, call: Call, timeout: float, digest: str = "") -> Finished:
        """Send a request, and wait for the end of its task when it starts one.

        :param digest: do it only while what it changes is still this
        """
        words = tuple(_words(call, self._below(call.path)))
        parameters = {**call.parameters, **({"digest": digest} if digest else {})}
        try:
            with self._said():
                answer = getattr(self._api(self._below(call.path)), call.method.lower())(**parameters)
        except ResourceException as error:
            return Finished(words, 1, "", _sentence(error))
        if not (isinstance(answer, str) and answer.startswith("UPID:")):
            return Finished(words, 0, "", "")
        return self._end_of(answer, words, timeout)

    def _get(self, path: str, **parameters: object) -> object:
        try:
            with self._said():
                return self._api(path).get(**parameters)
        except ResourceException as error:
            raise NodeError(f"GET {path} at {self._where}: {_sentence(error)}") from None

    def _below(self, path: str) -> str:
        return f"nodes/{self.name}/{path}"

    # --- reading ------------------------------------------------------------------------------------------------------

    def release(self) -> tuple:
        found = re.match(r"(\d+)\.(\d+)", str(self._get("version").get("release", "")))
        return (int(found.group(1)), int(found.group(2))) if found else pct_keys.NEWEST

    def vmids(self) -> list[int]:
        return sorted(int(member["vmid"]) for member in self.get("lxc"))

    def read(self, vmid: int) -> Container:
        try:
            with self._said():
                here = self._api(self._below(f"lxc/{vmid}"))
                active = here.config.get(current=1)
                pending = here.pending.get()
                status = here.status.current.get()
                names = [entry["name"] for entry in here.snapshot.get() if entry["name"] != "current"]
                snapshots = {name: _section(here.config.get(snapshot=name)) for name in names}
        except ResourceException as error:
            if "does not exist" in str(error):
                return Container()
            raise NodeError(f"CTID {vmid} at {self._where}: {_sentence(error)}") from None
        conf = pct_conf.Conf(_section(active), _waiting(pending), snapshots)
        return Container(
            exists=True,
            running=status.get("status") == "running",
            text=pct_conf.render_conf(conf),
            digest=str(active.get("digest", "")),
        )

    def storage_types(self) -> dict[str, str]:
        return {member["storage"]: member["type"] for member in self.get("storage")}

    def workers(self, vmid: int, or_clones: bool = False) -> list[str]:
        return [
            f"the task {task['type']} of {task['user']} (since "
            f"{datetime.fromtimestamp(int(task['starttime'])).strftime('%H:%M:%S')})"
            for task in self.get("tasks", source="active")
            if not task.get("endtime")
            and (str(task.get("id")) == str(vmid) or (or_clones and task["type"] == "vzclone"))
        ]

    def flock_holder(self, vmid: int) -> str:
        return ""

    @contextlib.contextmanager
    def turn(self, vmid: int, timeout: float) -> Iterator[None]:
        yield

    # --- changing -----------------------------------------------------------------------------------------------------

    def words(self, command: Command) -> list[str]:
        return _words(command.call, self._below(command.call.path))

    def refusal(self, command: Command, container: Container) -> str:
        if not command.has_call:
            return f"the REST API has no `{' '.join(command.argv)}`; {_ON_THE_NODE}"
        if self.is_root:
            return ""
        options = dict(command.options)
        is_unprivileged = container.conf.main.values.get("unprivileged", options.get("unprivileged")) == "1"
        options.update(dict.fromkeys(options.pop("delete", "").split(","), ""))
        theirs = [name for name, value in options.items() if _is_roots(name, value, container, is_unprivileged)]
        if not theirs:
            return ""
        return (
            f"{', '.join(sorted(theirs))} is what only root@pam may set, and no token counts as root@pam; log in with "
            f"api_user root@pam and its api_password, or {_ON_THE_NODE}"
        )

    def settle(self, vmid: int, timeout: float) -> None:
        nodes.settle(self, vmid, timeout)

    def run(self, command: Command, timeout: float, digest: str = "") -> Finished:
        return nodes.run_when_free(self, command, timeout, lambda left: self.request(command.call, left, digest))

    def _end_of(self, upid: str, words: tuple[str, ...], timeout: float) -> Finished:
        """Wait for a task. What it printed is on the result's stdout, what ended it on its stderr, as pct has it."""
        end = time.monotonic() + timeout
        while True:
            status = self.get(f"tasks/{upid}/status")
            if status["status"] == "stopped":
                break
            if time.monotonic() > end:
                with self._said(), contextlib.suppress(ResourceException):
                    self._api(self._below(f"tasks/{upid}")).delete()
                return Finished(words, 124, "", f"it was ended after {timeout:g} s (task {upid})")
            time.sleep(_POLL)
        lines = self.get(f"tasks/{upid}/log", limit=_LOG_LINES)
        printed = "\n".join(line["t"] for line in lines if not line["t"].startswith("TASK "))
        said = str(status.get("exitstatus", "it says nothing of its end"))
        good = said == "OK" or said.startswith("WARNINGS")
        return Finished(words, 0 if good else 1, printed, "" if good else said)


def _words(call: Call, path: str) -> list[str]:
    return [call.method, f"/{path}", *(f"{name}={value}" for name, value in call.parameters.items())]


def _is_roots(name: str, value: str, container: Container, is_unprivileged: bool) -> bool:
    """Is this a change that Proxmox allows to root@pam alone (pct.md, "Conventions")?"""
    base = pct_keys.base(name)
    if base == "features":
        before = container.conf.main.values.get("features", "")
        one, other = (pct_conf.normalised(name, text) for text in (before, value))
        changed = {part for part in {*one, *other} if one.get(part) != other.get(part)}
        return bool(changed - {"nesting"}) or (bool(changed) and not is_unprivileged)
    if base == "mp":
        return value.startswith("/") or container.conf.main.values.get(name, "").startswith("/")
    return base in ("dev", "hookscript")


def _section(answer: Mapping) -> pct_conf.Section:
    values = {key: str(value) for key, value in answer.items() if key not in _NOT_CONFIG}
    raw = [(str(key), str(value)) for key, value in answer.get("lxc", [])]
    return pct_conf.Section(values, raw, pct_conf.as_comments(str(answer.get("description", ""))))


def _waiting(answer: list) -> pct_conf.Section:
    """The section C([pve:pending]) from what the API says of each key."""
    values = {entry["key"]: str(entry["pending"]) for entry in answer if "pending" in entry}
    deleted = sorted(entry["key"] for entry in answer if entry.get("delete"))
    return pct_conf.Section({**values, **({"delete": ",".join(deleted)} if deleted else {})})


def _cause(error: BaseException) -> str:
    """The innermost reason, in a few words: requests wraps it several times."""
    text = str(error)
    for pattern in (r"certificate verify failed: ([^(]+)", r"\[Errno -?\d+\] ([^'\")]+)", r"(timed out)"):
        found = re.search(pattern, text)
        if found:
            return found.group(1).strip().rstrip(".").lower()
    return type(error).__name__


def _sentence(error: ResourceException) -> str:
    """What the API says, with what can be done where it is about rights."""
    errors = error.errors if isinstance(error.errors, dict) else {}
    faults = "; ".join(f"{name}: {str(reason).strip()}" for name, reason in sorted(errors.items()))
    said = " - ".join(part for part in (str(error.content).strip(), faults) if part) or str(error)
    if re.search(r"root@pam|only root", said):
        return (
            f"{said} - that is what only root@pam may do, and no token counts as root@pam. Log in with api_user "
            f"root@pam and its api_password, or {_ON_THE_NODE}"
        )
    if error.status_code == 403:
        return f"{said} - give the user or token a role with that right (Datacenter, Permissions)"
    return said
