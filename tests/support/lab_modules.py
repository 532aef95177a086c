# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's modules as processes on the lab's node, for tests, and what the lab tells of their doing.

The same calls can go through the node's files and C(pct), or through its REST API: L(through).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path("/etc/pve/lxc")
PCT_CALLS = Path("/var/log/phoenix-lab/pct-calls.log")
API_CALLS = Path("/var/log/phoenix-lab/api-calls.log")
API = Path("/var/lib/phoenix-lab/api.json")
RELEASE = Path("/usr/share/perl5/PVE/pvecfg.pm")
OSTEMPLATE = "local:vztmpl/debian-12-lab_12_amd64.tar.zst"
_API_COMMANDS = (
    (r"POST \S+/lxc", "create"), (r"POST .*/clone", "clone"), (r"PUT .*/config", "set"), (r"PUT .*/resize", "resize"),
    (r"POST .*/status/(\w+)", ""), (r"POST .*/template", "template"), (r"DELETE .*/lxc/\d+", "destroy"),
    (r"POST .*/snapshot", "snapshot"), (r"DELETE .*/snapshot/\S+", "delsnapshot"), (r"POST .*/rollback", "rollback"),
)  # fmt: skip
# `ansible-test units` has ansible-core on the path only.
_PATH = os.pathsep.join(filter(None, [str(ROOT / ".ansible/collections"), os.environ.get("PYTHONPATH", "")]))
_way: list[tuple[str, str]] = [("node", "")]


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that an unprivileged container can mount, also when it starts again.

    Below pytest's own it can't: each pytest that begins on the machine closes that one to all others.
    """
    with tempfile.TemporaryDirectory(prefix="phoenix-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def require_lab() -> None:
    """Skip the test where the lab is not up."""
    if not Path("/etc/pve/.phoenix-lab").exists():
        pytest.skip("the lab is not up (make lab-up)")


def api_options(who: str = "user") -> dict:
    """A module's options for the lab's REST API: as root@pam (C(user)), by its token, or as a C(viewer)."""
    access = json.loads(API.read_text())
    options = {"api_host": access["host"], "api_port": access["port"], "ca_path": access["ca"]}
    if who == "user":
        return {**options, "api_user": access["user"], "api_password": access["password"]}
    prefix = {"token": "", "viewer": "viewer_"}[who]
    options["api_user"] = access[f"{prefix}user"]
    return {
        **options,
        "api_token_id": access[f"{prefix}token_id"],
        "api_token_secret": access[f"{prefix}token_secret"],
    }


@contextlib.contextmanager
def through(way: str, who: str = "user") -> Iterator[None]:
    """All module calls of the block go this way: C(node), or C(api).

    :param who: whose login, as for L(api_options); by itself root@pam, who may do all that the API can
    """
    _way.append((way, who))
    try:
        yield
    finally:
        _way.pop()


def way() -> str:
    """The way that module calls go at the moment."""
    return _way[-1][0]


def start_module(name: str, check: bool, options: dict, **variables: str) -> subprocess.Popen:
    """A module of the collection in a process of its own, as Ansible runs it on a node.

    :param variables: of its environment, beside the test's own
    """
    if way() == "api" and "api_host" not in options:
        options = {**options, **api_options(_way[-1][1])}
    arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
    process = subprocess.Popen(
        [
            # What whoever runs the tests ignores (nohup, a shell's background) would be ignored by the module, too.
            *("env", "--default-signal=INT,HUP", sys.executable),
            *("-m", f"ansible_collections.phoenix.hypervisor.plugins.modules.{name}"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": _PATH, **variables},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    process.stdin.close()
    process.stdin = None
    return process


def result_of(process: subprocess.Popen) -> dict:
    """What a module returned. A traceback never reaches a user."""
    out, err = process.communicate(timeout=240)
    assert "Traceback" not in out + err, out + err
    return json.loads(out)


def call(name: str = "pct_container", check: bool = False, **options) -> dict:
    """A module run that must succeed."""
    result = result_of(start_module(name, check, options))
    assert not result.get("failed"), result["msg"]
    return result


def failed(name: str = "pct_container", check: bool = False, **options) -> dict:
    """What a module run returned that must fail."""
    result = result_of(start_module(name, check, options))
    assert result.get("failed"), result
    return result


def failure(name: str = "pct_container", check: bool = False, **options) -> str:
    """The message of a module run that must fail."""
    return failed(name, check, **options)["msg"]


def converge(name: str = "pct_container", check: bool = False, **options) -> dict:
    """A run; what its check mode said before must be what it did, and nothing is left to do after it."""
    shown = call(name, check=True, **options)
    if check:
        return shown
    done = call(name, **options)
    assert (shown["changed"], shown["steps"], shown["commands"]) == (done["changed"], done["steps"], done["commands"])
    unchanged(name, **options)
    return {**done, "shown": shown}


def unchanged(name: str = "pct_container", **options) -> None:
    """A run that changes nothing and calls nothing that could."""
    before = calls(options["vmid"])
    assert call(name, **options)["changed"] is False
    assert calls(options["vmid"]) == before


def names(result: dict) -> list[str]:
    """The commands of a result in pct's words, whichever way they went."""
    found = []
    for words in result["commands"]:
        if words[0] == "pct":
            found.append(words[1])
            continue
        matches = [(re.fullmatch(pattern, f"{words[0]} {words[1]}"), name) for pattern, name in _API_COMMANDS]
        found += [name or match.group(1) for match, name in matches if match]
    return found


def calls(vmid: int) -> int:
    """How many changing calls there were for a container; others may be at work in the lab meanwhile."""
    text = "".join(log.read_text(errors="replace") for log in (PCT_CALLS, API_CALLS) if log.exists())
    return len(re.findall(rf"\b{vmid}\b", text))


def pct(*words: str, good: bool = True) -> str:
    """A call of pct. Returns stdout."""
    return _run(["pct", *words], good)


def _run(words: list[str], good: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0 or not good, done
    return done.stdout


def inside(vmid: int, script: str) -> str:
    """What a shell script in a container prints. It is asked for often, so by what C(pct exec) becomes in the end."""
    return _run(["lxc-attach", "-n", str(vmid), "--keep-env", "--", "sh", "-c", script]).strip()


def start(vmid: int) -> None:
    """Start a container by pct, and wait until its system has started: until then nobody answers systemctl."""
    pct("start", str(vmid))
    wait_until(lambda: "running" in inside(vmid, "systemctl is-system-running --wait || true"), 60)


def info(vmid: int) -> dict:
    """What the node says about a container, by the module pct_container_info."""
    return call("pct_container_info", vmids=[vmid])["containers"][0]


def create(vmid: int, *options: str, storage: str = "local-btrfs") -> None:
    """A new container by pct, not by a module: small, unprivileged, and stopped. One that is there goes first."""
    destroy(vmid)
    pct(
        "create", str(vmid), OSTEMPLATE, "--rootfs", f"{storage}:1", "--unprivileged", "1", "--memory", "256",
        "--features", "nesting=1", "--hostname", f"c{vmid}", *options,
    )  # fmt: skip


def destroy(*vmids: int) -> None:
    """Remove containers whatever their state."""
    for vmid in vmids:
        file = CONFIGS / f"{vmid}.conf"
        if file.exists():
            said = file.read_text(errors="replace")
            if "lock:" in said:
                pct("unlock", str(vmid), good=False)
            if "protection:" in said:
                pct("set", str(vmid), "--protection", "0", good=False)
            pct("destroy", str(vmid), "--force", "--destroy-unreferenced-disks", "1")
        Path(f"/etc/pve/phoenix-hypervisor/{vmid}.json").unlink(missing_ok=True)


def volumes(vmid: int) -> list[str]:
    """The volumes of a container on all storages of the lab, those included that its conf file doesn't name."""
    folders = [place / "images" / str(vmid) for place in Path("/var/lib/phoenix-lab").iterdir() if place.is_dir()]
    folders.append(Path("/var/lib/vz/images") / str(vmid))
    return sorted(entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir())


def wait_until(condition, seconds: float = 20) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.05)


@contextlib.contextmanager
def release(number: str) -> Iterator[None]:
    """The lab plays another release of Proxmox VE for the time of the block."""
    before = RELEASE.read_text()
    RELEASE.write_text(re.sub(r"(sub\s+(?:release|version)\s*\{\s*return\s+')[\d.]+", rf"\g<1>{number}", before))
    try:
        yield
    finally:
        RELEASE.write_text(before)
