# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pct_exec, pct_push and pct_pull on a real container. Needs a lab that is up; CTIDs 820 to 829."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import lab_modules
import pytest
from lab_modules import ROOT, create, destroy, pct, require_lab, result_of, wait_until

pytestmark = pytest.mark.lab

VMID, STOPPED, MISSING = 820, 821, 829
call = functools.partial(lab_modules.call, vmid=VMID)
failed = functools.partial(lab_modules.failed, vmid=VMID)
failure = functools.partial(lab_modules.failure, vmid=VMID)
# What a shell, an option parser, a pattern or a line-wise reader would take for something else.
ODD_NAMES = ["a b", "it's", 'say "x"', "two\nlines", "end\n", "-rf", "--", "*", "?[a]", "$HOME", "`id`", "ä€𝄞", "a\\nb"]
ODD_NAMES += [";ls", "a=b", "#", "~root", "%s", ".hidden", "x" * 255]


def start_module(name: str, options: dict, **variables: str) -> subprocess.Popen:
    return lab_modules.start_module(name, False, {"vmid": VMID, **options}, **variables)


def inside(*argv: str, data: bytes | None = None) -> str:
    """What a program in the container prints; not by the modules that are tested."""
    words = ["lxc-attach", "-n", str(VMID), "--clear-env", "--", *argv]
    done = subprocess.run(words, input=data or b"", stdout=subprocess.PIPE, timeout=60, check=True)
    return done.stdout.decode()


def shell(script: str) -> str:
    return inside("/bin/sh", "-c", script).strip()


def put(path: str, content: bytes) -> None:
    """A file in the container."""
    inside("/bin/sh", "-c", 'cat >"$0"', path, data=content)


def get(path: str) -> bytes:
    return inside("/bin/sh", "-c", 'exec cat <"$0"', path).encode()


def leftovers(folder: str) -> str:
    return shell(f"ls -A {folder} | grep pct_ || true")


def running_inside(word: str) -> list[str]:
    """Command lines in the container that have a word in them, as its own root sees them."""
    script = (
        f"for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f 2>/dev/null; echo; done | grep '[{word[0]}]{word[1:]}'"
    )
    return shell(f"{script} || true").splitlines()


@pytest.fixture(scope="module", autouse=True)
def containers() -> Iterator[None]:
    """A container that runs and one that doesn't; gone afterwards, also when a test fails."""
    require_lab()
    for vmid in (VMID, STOPPED):
        create(vmid)
    pct("start", str(VMID))
    wait_until(lambda: "systemd" in shell("cat /proc/1/comm"))
    yield
    destroy(VMID, STOPPED)


@pytest.fixture
def folder() -> Iterator[str]:
    """An empty folder in the container."""
    shell("rm -rf /srv/t && mkdir /srv/t")
    yield "/srv/t"
    shell("rm -rf /srv/t")


@pytest.fixture
def small_disk() -> Iterator[str]:
    """A disk of one megabyte in the container."""
    shell("mkdir -p /srv/small && mount -t tmpfs -o size=1m tmpfs /srv/small")
    yield "/srv/small"
    shell("umount /srv/small")


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("pct_exec", {"argv": ["true"]}),
        ("pct_push", {"content": "x", "dest": "/root/x"}),
        ("pct_pull", {"src": "/etc/hostname", "dest": "/root/phoenix-test-x"}),
    ],
)
class TestState:
    def test_a_container_that_does_not_run(self, module, options):
        assert failure(module, vmid=STOPPED, **options).endswith(f"pct start {STOPPED}")

    def test_a_container_that_does_not_exist(self, module, options):
        message = failure(module, vmid=MISSING, **options)
        assert f"CTID {MISSING} does not exist on this node" in message


class TestExec:
    def test_words_are_handed_on_as_they_are(self):
        words = [*ODD_NAMES, ""]
        done = call("pct_exec", argv=["printf", "%s|", *words], strip_empty_ends=False)
        assert done["stdout"] == "".join(f"{word}|" for word in words)
        assert (done["changed"], done["rc"], done["stderr"]) == (True, 0, "")

    def test_a_script(self):
        done = call("pct_exec", cmd='a=1; echo "$a-$0"; echo err >&2', chdir="/tmp")
        assert (done["stdout"], done["stderr"]) == ("1-/bin/sh", "err")
        assert call("pct_exec", cmd="pwd", chdir="/tmp")["stdout"] == "/tmp"

    def test_an_exit_code(self):
        result = failed("pct_exec", cmd="echo why >&2; exit 7")
        assert (result["rc"], result["msg"]) == (7, f"CTID {VMID}: the command ended with 7: why")
        assert failed("pct_exec", cmd="kill -9 $$")["rc"] == 137

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"argv": ["phoenix-none"]}, "there is no program 'phoenix-none' inside"),
            ({"argv": ["/etc/passwd"]}, "'/etc/passwd' can't be run inside: "),
            ({"argv": ["true"], "chdir": "/none"}, "there is no folder /none"),
            ({"argv": ["true"], "chdir": "/none", "creates": "x"}, "there is no folder /none"),
            ({"cmd": "phoenix-none"}, "phoenix-none: not found"),
        ],
    )
    def test_what_can_not_be_run(self, options, words):
        assert words in failure("pct_exec", **options)

    def test_the_environment_is_its_own(self):
        names = {"PHOENIX_SECRET": "x", "LC_ALL": "C", "PATH": f"/opt/host:{os.environ['PATH']}", "HOME": "/opt/home"}
        lines = result_of(start_module("pct_exec", {"argv": ["env"]}, **names))["stdout"].splitlines()
        found = dict(line.split("=", 1) for line in lines)
        del found["PHOENIX_PCT_RUN"]
        assert found == {
            "HOME": "/root",
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": "/bin/sh",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "container": "lxc",
            "PWD": "/",
        }

    def test_variables_of_any_content(self):
        values = {"A": " two\nlines \n", "B": "$HOME `id` '\"\\", "C": "", "LANG": "C", "IFS": "x", "LD_PRELOAD": ""}
        script = "import json, os; print(json.dumps(dict(os.environ)))"
        done = call("pct_exec", argv=["python3", "-c", script], environment={**values, "N": 5})
        found = json.loads(done["stdout"])
        assert {name: found[name] for name in values} == values
        assert found["N"] == "5"
        assert not [name for name in found if name.startswith("PHOENIX_PCT_VALUE")]

    def test_a_variable_that_a_loader_knows_has_no_effect_on_the_node(self):
        done = call("pct_exec", argv=["true"], environment={"LD_PRELOAD": "/phoenix/none.so"})
        assert done["stderr"].count("/phoenix/none.so") == 1

    def test_a_secret_is_on_no_command_line(self):
        secret = "hunter2-of-phoenix"
        options = {"cmd": "touch /tmp/on; sleep 3", "environment": {"TOKEN": secret}, "stdin": f"{secret}-too"}
        shell("rm -f /tmp/on")
        process = start_module("pct_exec", options)
        wait_until(lambda: shell("ls /tmp/on 2>/dev/null || true"))
        on_node = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert "sleep 3" in on_node
        assert secret not in on_node
        assert running_inside("sleep 3")
        assert not running_inside(secret)
        out = process.communicate(timeout=60)[0]
        assert json.loads(out)["rc"] == 0
        assert secret not in out

    def test_creates_and_removes(self, folder):
        options = {"cmd": "touch made; echo ran", "chdir": folder}
        shown = call("pct_exec", check=True, creates="ma*", **options)
        assert (shown["changed"], shell(f"ls {folder}")) == (True, "")
        assert call("pct_exec", creates="ma*", **options)["stdout"] == "ran"
        again = call("pct_exec", creates="ma*", **options)
        assert (again["changed"], again["msg"]) == (False, "Did not run the command since 'ma*' exists")
        assert call("pct_exec", removes="none", **options)["changed"] is False
        assert call("pct_exec", removes=f"{folder}/made", **options)["changed"] is True
        assert call("pct_exec", check=True, **options)["skipped"] is True

    def test_standard_input(self):
        script = "import sys; print(repr(sys.stdin.buffer.read()))"
        argv = ["python3", "-c", script]
        assert call("pct_exec", argv=argv, stdin="a\n\u00e4")["stdout"] == repr("a\n\u00e4\n".encode())
        assert call("pct_exec", argv=argv, stdin="", stdin_add_newline=False)["stdout"] == "b''"
        assert call("pct_exec", argv=argv)["stdout"] == "b''"
        assert call("pct_exec", argv=["wc", "-c"], stdin="x" * 3_000_000)["stdout"] == "3000001"
        assert call("pct_exec", argv=["true"], stdin="x" * 3_000_000)["rc"] == 0

    def test_output_that_is_no_text(self):
        done = call("pct_exec", cmd=r"printf 'a\377\000b\r\n\n'", strip_empty_ends=False)
        assert done["stdout"] == "a\ufffd\0b\r\n\n"

    def test_what_is_left_in_the_background_does_not_hold_the_task(self):
        begin = time.monotonic()
        assert call("pct_exec", cmd="sleep 71 & echo done")["stdout"] == "done"
        assert time.monotonic() - begin < 10
        assert running_inside("sleep 71")
        shell("pkill -f '[s]leep 71'")


# Each leaves its parent in its own way. The last one ignores being told, and drops its environment.
DAEMONS = """
sleep 7101 &
setsid sh -c '(sleep 7102 >/dev/null 2>&1 </dev/null &) ; exit' &
setsid python3 -c 'import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        time.sleep(7103)' &
env -i sh -c 'trap "" TERM; sleep 7104; sleep 7105' &
echo begun
touch /tmp/begun
sleep 7106
"""


def daemons(way: int) -> str:
    """The same for one of several ways to end them at once."""
    return DAEMONS.replace("710", f"71{way}").replace("begun", f"begun{way}")


class TestEnds:
    """Everything that a command has started ends with it."""

    @pytest.fixture(autouse=True)
    def begun(self):
        shell("rm -f /tmp/begun*")

    def test_when_its_time_is_up(self):
        begin = time.monotonic()
        result = failed("pct_exec", cmd=daemons(0), timeout=2)
        assert time.monotonic() - begin < 20
        assert (result["rc"], result["stdout"]) == (124, "begun0")
        assert "still running after 2 s and was ended" in result["msg"]
        assert not running_inside("710[1-6]")

    def test_when_the_module_is_told_to_end_or_killed(self):
        """All at once: each command has some seconds to end by itself, and one of its programs never does."""
        ways = dict(enumerate([signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL], 1))
        processes = {way: start_module("pct_exec", {"cmd": daemons(way)}) for way in ways}
        for way in ways:
            wait_until(lambda way=way: shell(f"ls /tmp/begun{way} 2>/dev/null || true") and running_inside(f"71{way}3"))
            assert len(running_inside(f"71{way}[1-6]")) >= 6
        for way, number in ways.items():
            processes[way].send_signal(number)
        for way in (1, 2, 3):
            result = result_of(processes[way])
            assert f"because this module got {ways[way].name}" in result["msg"]
            assert f"begun{way}" in result["stdout"]
            assert not running_inside(f"71{way}[1-6]")
        processes[4].communicate()
        wait_until(lambda: not running_inside("714[1-6]"))


class TestPush:
    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_any_name(self, folder, name):
        dest = f"{folder}/{name}"
        assert call("pct_push", content=name, dest=dest)["changed"]
        assert get(dest) == name.encode()
        assert call("pct_push", content=name, dest=dest)["changed"] is False
        assert shell(f"ls -A {folder} | wc -l") == str(1 + name.count("\n")) or name == "end\n"
        assert inside("find", folder, "-type", "f", "-printf", "x") == "x"

    @pytest.mark.parametrize("content", [b"", b"\0\1\377\n", b"no newline", b"\n\n", os.urandom(300_000)])
    def test_any_content(self, folder, tmp_path, content):
        (tmp_path / "a b").write_bytes(content)
        options = {"src": str(tmp_path / "a b"), "dest": f"{folder}/file"}
        shown = call("pct_push", check=True, **options)
        assert shell(f"ls -A {folder}") == ""
        done = call("pct_push", **options)
        assert {**shown, "invocation": 0} == {**done, "invocation": 0}
        digest = hashlib.sha256(content).hexdigest()
        assert shell(f"sha256sum <{folder}/file").split()[0] == done["checksum"] == digest
        assert shell(f"stat -c '%s %a %u %g' {folder}/file") == f"{len(content)} 644 0 0"
        again = call("pct_push", **options)
        assert (again["changed"], again["diff"]) == (False, [])

    def test_owner_and_mode_alone(self, folder):
        options = {"content": "x\n", "dest": f"{folder}/file"}
        call("pct_push", **options)
        before = shell(f"stat -c '%i %Y' {folder}/file")
        options.update(owner="www-data", group="33", mode="4750")
        shown = call("pct_push", check=True, **options)
        assert shell(f"stat -c '%a %U' {folder}/file") == "644 root"
        done = call("pct_push", **options)
        assert shown["diff"] == done["diff"]
        assert done["diff"][0]["after"] == "owner: 33\ngroup: 33\nmode: 4750\n"
        assert shell(f"stat -c '%i %Y %a %U %G' {folder}/file") == f"{before} 4750 www-data www-data"
        assert call("pct_push", **options)["changed"] is False
        # What is no longer named stays, with a new content as well.
        done = call("pct_push", content="new\n", dest=f"{folder}/file")
        assert shell(f"stat -c '%a %U %G' {folder}/file") == "4750 www-data www-data"
        assert (done["uid"], done["mode"]) == (33, "4750")

    def test_a_diff(self, folder):
        dest = f"{folder}/file"
        put(dest, b"old\n")
        diff = call("pct_push", content="new\n", dest=dest)["diff"]
        assert diff == [{"before": "old\n", "after": "new\n", "before_header": dest, "after_header": "content"}]
        put(dest, b"\0")
        assert call("pct_push", content="x", dest=dest)["diff"][0]["dst_binary"] == 1
        put(dest, b"x" * 200_000)
        assert call("pct_push", content="x", dest=dest)["diff"][0]["dst_larger"] == 102400

    def test_a_content_is_in_no_result(self, folder):
        process = start_module("pct_push", {"content": "1", "dest": f"{folder}/file", "_ansible_no_log": True})
        result = result_of(process)
        assert result["size"] == 1
        assert result["invocation"]["module_args"]["content"] == "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
        assert all("+1" not in str(part) and part.get("after") != "1" for part in result["diff"])

    @pytest.mark.parametrize(
        ("dest", "words"),
        [
            ("{}", "is a directory in CTID 820; name the file in it"),
            ("{}/link", "is a directory in CTID 820; name the file in it"),
            ("{}/", "is a directory; name the file"),
            ("{}/..", "is a directory; name the file"),
            ("{}/none/file", "the folder of {}/none/file does not exist"),
            ("{}/pipe", "is a named pipe"),
            ("/dev/null", "is a character device"),
            ("file", "is not an absolute path"),
        ],
    )
    def test_where_no_file_can_be(self, folder, dest, words):
        shell(f"ln -s /etc {folder}/link; mkfifo {folder}/pipe")
        assert words.format(folder) in failure("pct_push", content="x", dest=dest.format(folder))

    def test_what_is_no_file(self, folder, tmp_path):
        dest = f"{folder}/file"
        assert "is a directory; name a regular file" in failure("pct_push", src=str(tmp_path), dest=dest)
        missing = failure("pct_push", src=f"{tmp_path}/none", dest=dest)
        assert "none on the node can't be read: No such file or directory" in missing
        assert shell(f"ls -A {folder}") == ""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"owner": "nosuch"}, "there is no user 'nosuch' in CTID 820"),
            ({"group": "nosuch"}, "there is no group 'nosuch' in CTID 820"),
            ({"mode": 420}, "mode: 420 is a number"),
            ({"mode": "0999"}, "is not an octal mode"),
            ({"mode": "u=rw"}, "is not an octal mode"),
        ],
    )
    def test_owners_and_modes_that_are_none(self, folder, options, words):
        assert words in failure("pct_push", content="x", dest=f"{folder}/file", **options)
        assert shell(f"ls -A {folder}") == ""

    def test_a_link_is_replaced(self, folder):
        shell(f"echo kept >{folder}/target; chmod 600 {folder}/target; ln -s target {folder}/link")
        call("pct_push", content="new", dest=f"{folder}/link")
        assert shell(f"stat -c '%F %a' {folder}/link; cat {folder}/target") == "regular file 644\nkept"

    def test_a_full_disk(self, small_disk, tmp_path):
        put(f"{small_disk}/file", b"old")
        (tmp_path / "big").write_bytes(b"x" * 2_000_000)
        message = failure("pct_push", src=str(tmp_path / "big"), dest=f"{small_disk}/file")
        assert "No space left on device" in message
        assert "what was there is untouched" in message
        assert get(f"{small_disk}/file") == b"old"
        assert shell(f"ls -A {small_disk}") == "file"

    def test_killed_in_the_middle(self, folder, tmp_path):
        dest = f"{folder}/file"
        put(dest, b"old")
        with open(tmp_path / "big", "wb") as big:
            big.truncate(1 << 30)
        process = start_module("pct_push", {"src": str(tmp_path / "big"), "dest": dest})
        wait_until(lambda: leftovers(folder))
        process.kill()
        process.communicate()
        assert get(dest) == b"old"
        wait_until(lambda: not running_inside("pct_push"))
        assert get(dest) == b"old"
        call("pct_push", content="new", dest=dest)
        assert (get(dest), leftovers(folder)) == (b"new", "")

    def test_leftovers_of_a_container_that_was_killed(self, folder):
        # The number of the second one is another process's now.
        shell(f"touch {folder}/.pct_push.999999.abcdef {folder}/.pct_push.1.abcdef")
        call("pct_push", content="new", dest=f"{folder}/file")
        assert leftovers(folder) == ""

    def test_two_at_once(self, folder, tmp_path):
        contents = [bytes([number]) * 20_000_000 for number in (1, 2)]
        for number, content in enumerate(contents):
            (tmp_path / str(number)).write_bytes(content)
        runs = [start_module("pct_push", {"src": f"{tmp_path}/{n}", "dest": f"{folder}/file"}) for n in range(2)]
        assert [result_of(run).get("msg") for run in runs] == [None, None]
        assert shell(f"sha256sum <{folder}/file").split()[0] in [hashlib.sha256(c).hexdigest() for c in contents]
        assert leftovers(folder) == ""

    def test_a_source_that_changes_while_it_is_sent(self, folder, tmp_path):
        with open(tmp_path / "big", "wb") as big:
            big.truncate(400_000_000)
        process = start_module("pct_push", {"src": str(tmp_path / "big"), "dest": f"{folder}/file"})
        wait_until(lambda: leftovers(folder))
        os.truncate(tmp_path / "big", 1000)
        message = result_of(process)["msg"]
        assert "bytes arrived that are not the 400000000 bytes that were sent" in message
        assert shell(f"ls -A {folder}") == ""


@pytest.mark.parametrize("module", ["pct_push", "pct_pull"])
def test_a_large_file_in_little_memory(folder, tmp_path, module):
    size = 200_000_000
    if module == "pct_push":
        with open(tmp_path / "big", "wb") as big:
            big.truncate(size)
        options = {"src": str(tmp_path / "big"), "dest": f"{folder}/big"}
    else:
        shell(f"truncate -s {size} {folder}/big")
        options = {"src": f"{folder}/big", "dest": str(tmp_path / "big")}
    # A process of its own, whose children are this module alone.
    script = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdin=sys.stdin, capture_output=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); print(done.stdout.decode())"
    )
    name = f"ansible_collections.phoenix.hypervisor.plugins.modules.{module}"
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {"vmid": VMID, **options, "_ansible_diff": True}})
    done = subprocess.run(
        [sys.executable, "-c", script, sys.executable, "-m", name],
        input=arguments,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".ansible/collections")},
    )
    peak, result = done.stdout.split("\n", 1)
    assert json.loads(result)["changed"] is True
    assert int(peak) * 1024 < 100_000_000
    assert shell(f"stat -c %s {folder}/big") == str(size) == str((tmp_path / "big").stat().st_size)


class TestPull:
    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_any_name(self, folder, tmp_path, name):
        put(f"{folder}/{name}", name.encode())
        options = {"src": f"{folder}/{name}", "dest": f"{tmp_path}/{name}"}
        assert call("pct_pull", **options)["changed"]
        assert (tmp_path / name).read_bytes() == name.encode()
        assert call("pct_pull", **options)["changed"] is False
        assert [path.name for path in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize("content", [b"", b"\0\1\377\n", b"no newline", b"\n\n"])
    def test_any_content(self, folder, tmp_path, content):
        put(f"{folder}/file", content)
        options = {"src": f"{folder}/file", "dest": f"{tmp_path}/file"}
        shown = call("pct_pull", check=True, **options)
        assert list(tmp_path.iterdir()) == []
        done = call("pct_pull", **options)
        assert (shown["changed"], shown["checksum"], shown["diff"]) == (True, done["checksum"], done["diff"])
        assert (tmp_path / "file").read_bytes() == content
        assert done["checksum"] == hashlib.sha256(content).hexdigest()
        assert (done["mode"], done["uid"]) == ("0600", 0)
        again = call("pct_pull", **options)
        assert (again["changed"], again["diff"]) == (False, [])

    def test_owner_and_mode(self, folder, tmp_path):
        dest = tmp_path / "$HOME"
        put(f"{folder}/file", b"one\n")
        options = {"src": f"{folder}/file", "dest": str(dest)}
        call("pct_pull", **options)
        options.update(owner="www-data", group="33", mode="0644")
        before = dest.stat().st_ino
        shown = call("pct_pull", check=True, **options)
        assert (shown["changed"], dest.stat().st_uid) == (True, 0)
        done = call("pct_pull", **options)
        assert shown["diff"] == done["diff"]
        assert (dest.stat().st_ino, dest.stat().st_uid, dest.stat().st_gid) == (before, 33, 33)
        assert call("pct_pull", **options)["changed"] is False
        # What is no longer named stays, with a new content as well.
        put(f"{folder}/file", b"two\n")
        done = call("pct_pull", src=f"{folder}/file", dest=str(dest))
        assert (done["mode"], done["uid"], dest.read_bytes()) == ("0644", 33, b"two\n")
        assert [(part["before"], part["after"]) for part in done["diff"]] == [("one\n", "two\n")]

    @pytest.mark.parametrize(
        ("src", "words"),
        [
            ("{}/none", "there is no {}/none in CTID 820"),
            ("{}", "is a directory in CTID 820"),
            ("{}/pipe", "is a named pipe"),
            ("/dev/zero", "is a character device"),
            ("{}/dangling", "there is no {}/dangling in CTID 820"),
            ("file", "is not an absolute path"),
        ],
    )
    def test_what_is_no_file(self, folder, tmp_path, src, words):
        shell(f"mkfifo {folder}/pipe; ln -s none {folder}/dangling")
        message = failure("pct_pull", src=src.format(folder), dest=f"{tmp_path}/file")
        assert words.format(folder) in message
        assert list(tmp_path.iterdir()) == []

    def test_where_no_file_can_be(self, tmp_path):
        assert "is a directory on the node" in failure("pct_pull", src="/etc/hostname", dest=str(tmp_path))
        message = failure("pct_pull", src="/etc/hostname", dest=f"{tmp_path}/none/file")
        assert "none does not exist on the node; create it first" in message

    def test_links_are_followed_inside_only(self, folder, tmp_path):
        shell(f"echo inner >{folder}/file; ln -s {folder}/file {folder}/link; ln -s /proc/1/root/etc {folder}/out")
        call("pct_pull", src=f"{folder}/link", dest=f"{tmp_path}/a")
        assert (tmp_path / "a").read_text() == "inner\n"
        call("pct_pull", src=f"{folder}/out/hostname", dest=f"{tmp_path}/b")
        assert (tmp_path / "b").read_text() == f"c{VMID}\n"

    def test_a_log_that_grows(self, folder, tmp_path):
        inside("/bin/sh", "-c", f"(while :; do date; done >{folder}/log) >/dev/null 2>&1 & echo $! >{folder}/pid")
        try:
            for number in range(3):
                call("pct_pull", src=f"{folder}/log", dest=f"{tmp_path}/{number}")
        finally:
            shell(f"kill $(cat {folder}/pid)")

    def test_a_file_that_always_changes(self, folder, tmp_path):
        script = f"while :; do for n in 1 2; do printf %s%s $n $(date +%N) | dd of={folder}/x conv=notrunc; done; done"
        put(f"{folder}/x", b"x" * 30_000_000)
        inside("/bin/sh", "-c", f"({script}) >/dev/null 2>&1 & echo $! >{folder}/pid")
        (tmp_path / "file").write_text("old")
        try:
            message = failure("pct_pull", src=f"{folder}/x", dest=f"{tmp_path}/file")
        finally:
            shell(f"kill $(cat {folder}/pid)")
        assert "changes while it is read, and did so 3 times" in message
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]

    def test_a_full_disk(self, folder, tmp_path):
        shell(f"truncate -s 2000000 {folder}/big")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
        try:
            (tmp_path / "file").write_text("old")
            message = failure("pct_pull", src=f"{folder}/big", dest=f"{tmp_path}/file")
            assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]
        finally:
            subprocess.run(["umount", tmp_path], check=True)
        assert "No space left on device" in message

    def test_killed_in_the_middle(self, folder, tmp_path):
        shell(f"truncate -s 1G {folder}/big")
        (tmp_path / "file").write_text("old")
        process = start_module("pct_pull", {"src": f"{folder}/big", "dest": f"{tmp_path}/file"})
        wait_until(lambda: any(path.name.startswith(".pct_pull.") for path in tmp_path.iterdir()))
        process.kill()
        process.communicate()
        assert len(list(tmp_path.iterdir())) == 2
        assert (tmp_path / "file").read_text() == "old"
        call("pct_pull", src="/etc/hostname", dest=f"{tmp_path}/file")
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", f"c{VMID}\n")]
