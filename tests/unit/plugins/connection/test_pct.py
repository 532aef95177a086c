# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection pct, with a node connection that runs shells here: no container, no SSH."""

from __future__ import annotations

import os
import subprocess

import pytest
import yaml
from ansible import constants as C
from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.playbook.play_context import PlayContext
from ansible_collections.phoenix.hypervisor.plugins.connection import pct

STAND_IN = """\
#!/bin/sh
# Takes what lxc-attach takes, and runs it here.
printf '%s\\n' "$*" >>"$(dirname "$0")/../calls"
if [ -e "$(dirname "$0")/../broken" ]; then echo "lxc-attach: 700: no such container" >&2; exit 1; fi
while [ "$1" != -- ]; do shift; done; shift
exec "$@"
"""


class FakeNode:
    """A connection to a node: commands run in a shell here, with a stand-in for a way into a container."""

    def __init__(self, folder, way_in: str) -> None:
        self.folder = folder
        self.commands: list[str] = []
        self.state = ""
        (folder / "bin").mkdir()
        (folder / "bin" / way_in).write_text(STAND_IN)
        (folder / "bin" / way_in).chmod(0o755)
        for tool in ("sh", "dirname", "env", "cat", "mv", "rm", "wc", "stat", "head", "setsid"):
            (folder / "bin" / tool).symlink_to(f"/bin/{tool}" if os.path.exists(f"/bin/{tool}") else f"/usr/bin/{tool}")

    def set_become_plugin(self, plugin):
        self.become = plugin

    def get_option(self, name):
        assert name == "ssh_executable"
        return "ssh"

    def exec_command(self, command, in_data=None, sudoable=True):
        return self._run(["/bin/sh", "-c", command], in_data, sudoable)

    def _build_command(self, binary, subsystem, host, command):
        """The node's command as ssh would run it, with what may stand before ssh."""
        assert (binary, subsystem, host) == ("ssh", "ssh", "pve")
        ssh = self.folder / "bin" / "ssh"
        ssh.write_text('#!/bin/sh\nexec /bin/sh -c "$1"\n')
        ssh.chmod(0o755)
        return [b"env", b"ssh", command.encode()]

    def _run(self, command, in_data=None, sudoable=True):
        self.commands.append(" ".join(map(str, command)))
        if any("/proc/net/unix" in str(word) for word in command):
            return 0, self.state.encode(), b""
        done = subprocess.run(
            command,
            # As ssh gets it: nothing is sent after the input, so it is no sign of life.
            input=in_data or b"",
            capture_output=True,
            env={"PATH": str(self.folder / "bin"), "PHOENIX_SECRET": "of the node", "odd.name": "x"},
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def _connect(self):
        return self

    def close(self):
        self.commands.append("closed")


# The plugin is made without Ansible's loader of collections, which would take over all imports of this process.
NAME = "phoenix.hypervisor.pct"
C.config.initialize_plugin_configuration_definitions("connection", NAME, yaml.safe_load(pct.DOCUMENTATION)["options"])


def bare() -> pct.Connection:
    """The plugin without options."""
    connection = pct.Connection(PlayContext())
    connection._load_name = NAME
    return connection


def connection_with(**variables):
    """The plugin as Ansible makes it, with a host's variables."""
    connection = bare()
    extras = {key: value for key, value in variables.items() if key.startswith("ansible_ssh_")}
    connection.set_options(var_options={"ansible_pct_vmid": 700, **variables, "_extras": extras})
    return connection


@pytest.fixture(params=["lxc-attach", "pct"])
def way_in(request) -> str:
    return request.param


@pytest.fixture(params=["local", "ssh"])
def connection(request, tmp_path, way_in, monkeypatch):
    """The plugin on a fake node, for both ways to the node and both ways into a container."""
    it = connection_with(ansible_pct_node_connection=request.param, ansible_host="pve")
    (tmp_path / "node").mkdir()
    fake = FakeNode(tmp_path / "node", way_in)
    monkeypatch.setattr(it, "_node_connection", lambda: fake)
    it._connected = True
    it.fake = fake
    return it


class TestEnter:
    @pytest.mark.parametrize("vmid", [100, 921])
    def test_both_ways(self, vmid):
        command = pct.enter(vmid, "true")
        assert f"exec lxc-attach -n {vmid} --clear-env -- env -i " in command
        assert f"exec pct exec {vmid} -- env -i " in command

    @pytest.mark.parametrize("text", ["a b", "$HOME `id`", "'", '"', "\\", "a\nb", "*", "ü", "-n", ";exit 3", "#"])
    def test_a_command_comes_through_all_shells_as_it_is(self, connection, text):
        quoted = "'" + text.replace("'", "'\\''") + "'"
        rc, out, err = connection.exec_command(f"printf '%s' {quoted}")
        assert (rc, out.decode(), err) == (0, text, b"")

    def test_the_environment_is_its_own(self, connection):
        out = connection.exec_command("/usr/bin/env")[1].decode()
        environment = dict(line.split("=", 1) for line in out.splitlines())
        environment.pop("PWD", None)
        mark = environment.pop(pct.MARK)
        assert len(mark) > 32
        assert {key: environment[key] for key in pct.ENVIRONMENT} == pct.ENVIRONMENT
        assert not set(environment) - set(pct.ENVIRONMENT) - {"_", "SHLVL", "OLDPWD"}

    def test_each_run_has_a_mark_of_its_own(self, connection):
        assert connection.exec_command(f"echo ${pct.MARK}")[1] != connection.exec_command(f"echo ${pct.MARK}")[1]

    def test_one_way_in_for_each_command(self, connection, way_in):
        connection.exec_command("true")
        calls = (connection.fake.folder / "calls").read_text().splitlines()
        assert len(calls) == 1
        assert calls[0].startswith("-n 700 --clear-env -- " if way_in == "lxc-attach" else "exec 700 -- ")

    @pytest.mark.parametrize("code", [0, 1, 2, 127, 254, 255])
    def test_exit_code_outputs_and_input(self, connection, code):
        rc, out, err = connection.exec_command(f"cat; echo err >&2; exit {code}", in_data=b"a\0b\xff")
        assert (rc, out, err) == (code, b"a\0b\xff", b"err\n")


class TestProblems:
    @pytest.mark.parametrize(
        ("state", "sentence"),
        [
            ("missing\nstopped\n", "container 700 does not exist on "),
            ("stopped\n", "container 700 is not running on .*; start it with: pct start 700"),
            ("user\n", "entering a container needs root on .*; set ansible_user to root"),
        ],
    )
    def test_the_state_decides(self, connection, state, sentence, tmp_path):
        (connection.fake.folder / "broken").touch()
        connection.fake.state = state
        (tmp_path / "file").write_text("x")
        for call in (
            lambda: connection.exec_command("true"),
            lambda: connection.put_file(str(tmp_path / "file"), "/x"),
            lambda: connection.fetch_file("/x", str(tmp_path / "y")),
        ):
            with pytest.raises(AnsibleConnectionFailure, match=sentence):
                call()

    def test_the_users_own_words_are_no_reason(self, connection):
        rc, _out, err = connection.exec_command("echo 'lxc-attach: it is not running' >&2; exit 3")
        assert (rc, err) == (3, b"lxc-attach: it is not running\n")

    def test_nothing_is_asked_when_nothing_is_suspicious(self, connection):
        connection.exec_command("exit 3")
        assert len(connection.fake.commands) == 1

    def test_no_way_in(self, connection, way_in, tmp_path):
        (connection.fake.folder / "bin" / way_in).unlink()
        (tmp_path / "file").write_text("x")
        for call in (
            lambda: connection.exec_command("true"),
            lambda: connection.put_file(str(tmp_path / "file"), "/x"),
            lambda: connection.fetch_file("/x", str(tmp_path / "y")),
        ):
            with pytest.raises(AnsibleConnectionFailure, match="there is neither lxc-attach nor pct on "):
                call()

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            ("ssh: connect to host pve port 22: Connection timed out", "node pve did not answer in time"),
            ("ssh: connect to host pve port 22: Connection refused", "node pve cannot be reached by SSH; "),
            ("Failed to connect to the host via ssh: ", "the SSH connection to node pve was lost; "),
            ("client_loop: send disconnect: Broken pipe", "the SSH connection to node pve was lost; "),
            ("Connection reset by peer", "the SSH connection to node pve was lost; "),
        ],
    )
    def test_the_node_is_not_the_container(self, connection, monkeypatch, words, sentence):
        def fail(*_args, **_more):
            raise AnsibleConnectionFailure(words)

        if connection.get_option("node_connection") == "local":
            pytest.skip("there is no way to lose")
        monkeypatch.setattr(connection.fake, "_run", fail)
        with pytest.raises(AnsibleConnectionFailure) as failure:
            connection.exec_command("true")
        assert str(failure.value).startswith(sentence)
        assert str(failure.value).endswith("container 700 is entered from there. " + words.strip())

    def test_a_password_that_is_refused_is_told_as_it_is(self, connection, monkeypatch):
        def fail(*_args, **_more):
            raise AnsibleAuthenticationFailure("Invalid/incorrect password")

        monkeypatch.setattr(connection.fake, "_run", fail)
        with pytest.raises(AnsibleAuthenticationFailure, match=r"^[^;]*Invalid/incorrect password$"):
            connection.exec_command("true")

    def test_a_full_disk(self, connection, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(AnsibleError, match=r"No space left on device; make room there, or see: pct df 700"):
            connection._check_copy("file", "/x", 1, b"", b"cat: write error: No space left on device\n")

    @pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "-4"])
    def test_a_host_is_no_option(self, host):
        with pytest.raises(AnsibleError, match="cannot be the name of a node"):
            connection_with(ansible_host=host).exec_command("true")

    def test_a_vmid_is_a_number(self):
        with pytest.raises(AnsibleError, match="vmid"):
            connection_with(ansible_pct_vmid="700; touch x").exec_command("true")

    def test_local_needs_root(self, monkeypatch):
        monkeypatch.setattr(pct.os, "geteuid", lambda: 1000)
        with pytest.raises(AnsibleError, match="needs root on the node"):
            connection_with(ansible_pct_node_connection="local").exec_command("true")


class TestFiles:
    @pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 5000], ids=["empty", "one", "binary"])
    @pytest.mark.parametrize("name", ["plain", "a b'c\"d$e;f*\nü", "-n"])
    def test_both_ways(self, connection, tmp_path, content, name):
        (tmp_path / "there").mkdir()
        (tmp_path / f"in{name}").write_bytes(content)
        connection.put_file(str(tmp_path / f"in{name}"), str(tmp_path / "there" / name))
        connection.fetch_file(str(tmp_path / "there" / name), str(tmp_path / f"out{name}"))
        assert (tmp_path / f"out{name}").read_bytes() == content
        assert os.listdir(tmp_path / "there") == [name]
        assert sorted(os.listdir(tmp_path)) == sorted([f"in{name}", f"out{name}", "there", "node"])

    def test_one_command_on_the_node_and_no_file_there(self, connection, tmp_path):
        (tmp_path / "file").write_text("x")
        connection.put_file(str(tmp_path / "file"), str(tmp_path / "to"))
        connection.fetch_file(str(tmp_path / "to"), str(tmp_path / "back"))
        assert len(connection.fake.commands) == 2
        assert not any("/var/tmp" in command for command in connection.fake.commands)

    def test_a_name_as_long_as_names_can_be(self, connection, tmp_path):
        (tmp_path / "file").write_text("x")
        connection.put_file(str(tmp_path / "file"), str(tmp_path / ("n" * 255)))
        connection.fetch_file(str(tmp_path / ("n" * 255)), str(tmp_path / ("m" * 255)))
        assert (tmp_path / ("m" * 255)).read_text() == "x"

    def test_a_put_that_was_cut_off_leaves_what_was_there(self, tmp_path):
        (tmp_path / "to").write_text("old")
        done = subprocess.run(
            ["/bin/sh", "-c", pct.put_script(str(tmp_path / "to"), 5)], input=b"new", capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (1, b"it ended before all of it had arrived\n")
        assert (tmp_path / "to").read_text() == "old"
        assert os.listdir(tmp_path) == ["to"]

    def test_a_device_is_not_replaced(self, connection, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(AnsibleError, match="is not a file"):
            connection.put_file(str(tmp_path / "file"), "/dev/null")
        assert not os.path.isfile("/dev/null")

    def test_a_fetch_that_brought_too_little_leaves_what_was_there(self, connection, tmp_path, monkeypatch):
        """ssh's own exit code is 0 when the disk here gets full with the last bytes."""
        (tmp_path / "file").write_text("all of it")
        (tmp_path / "kept").write_text("kept")
        monkeypatch.setattr(pct.os.path, "getsize", lambda path: 3)
        with pytest.raises(AnsibleError, match=r"fetching .* from container 700 ended too early"):
            connection.fetch_file(str(tmp_path / "file"), str(tmp_path / "kept"))
        assert (tmp_path / "kept").read_text() == "kept"

    def test_a_failed_put_leaves_what_was_there(self, connection, tmp_path):
        (tmp_path / "file").write_text("new")
        (tmp_path / "folder").mkdir()
        with pytest.raises(AnsibleError, match=r"copying .* \(container 700\) failed with exit code 1: "):
            connection.put_file(str(tmp_path / "file"), str(tmp_path / "folder"))
        assert os.listdir(tmp_path / "folder") == []
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]

    def test_a_failed_fetch_leaves_what_was_there(self, connection, tmp_path):
        (tmp_path / "kept").write_text("kept")
        with pytest.raises(AnsibleError, match="No such file"):
            connection.fetch_file(str(tmp_path / "none"), str(tmp_path / "kept"))
        assert (tmp_path / "kept").read_text() == "kept"
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]

    def test_a_folder_is_no_target(self, connection, tmp_path):
        (tmp_path / "file").write_text("x")
        (tmp_path / "folder").mkdir()
        with pytest.raises(AnsibleError, match="folder cannot be written: "):
            connection.fetch_file(str(tmp_path / "file"), str(tmp_path / "folder"))
        assert sorted(os.listdir(tmp_path)) == ["file", "folder", "node"]

    def test_a_missing_source(self, connection, tmp_path):
        with pytest.raises(AnsibleFileNotFound, match="does not exist"):
            connection.put_file(str(tmp_path / "none"), "/x")
        assert connection.fake.commands == []


class TestNode:
    """The node's own connection gets the host's variables."""

    @pytest.fixture(autouse=True)
    def without_collections(self, monkeypatch):
        """ansible.builtin's plugins are found by their short names where no loader of collections is at work."""
        get = pct.connection_loader.get
        monkeypatch.setattr(
            pct.connection_loader, "get", lambda name, *args, **more: get(name.rpartition(".")[2], *args, **more)
        )

    def test_ssh(self):
        inner = connection_with(
            ansible_host="pve.example.org",
            ansible_port=2222,
            ansible_user="root",
            ansible_private_key_file="/keys/pve",
            ansible_ssh_common_args="-o ProxyJump=jump",
        )._node_connection()
        assert inner.transport == "ssh"
        assert {name: inner.get_option(name) for name in ("host", "port", "remote_user", "ssh_common_args")} == {
            "host": "pve.example.org",
            "port": 2222,
            "remote_user": "root",
            "ssh_common_args": "-o ProxyJump=jump",
        }
        assert inner.get_option("private_key_file") == "/keys/pve"

    def test_local(self, monkeypatch):
        monkeypatch.setattr(pct.os, "geteuid", lambda: 0)
        assert connection_with(ansible_pct_node_connection="local")._node_connection().transport == "local"

    def test_another_host_with_the_same_object(self):
        connection = connection_with(ansible_host="one")
        first = connection._node_connection()
        connection.set_options(var_options={"ansible_pct_vmid": 701, "ansible_host": "two"})
        assert connection._node_connection() is not first
        assert connection._node_connection().get_option("host") == "two"

    def test_a_vmid_is_needed(self):
        connection = bare()
        with pytest.raises(AnsibleError, match="vmid"):
            connection.set_options(var_options={"ansible_host": "pve"})
            connection.exec_command("true")
