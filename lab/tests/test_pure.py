# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Command lines, set's split, guest files, LXC's config, the image's files, refusals, releases, tasks,
firewall files, logins: values to values.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from node import (
    access,
    active,
    changes,
    cli,
    firewall,
    guest,
    image,
    lab,
    options,
    release,
    runtime,
    schema,
    settings,
    storage,
)
from node.conf import Section
from node.errors import ParameterError, PctError, Refusal, UsageError

# --- command line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "arguments", "given", "extra"),
    [
        (["700", "--memory", "5"], ["700"], {"memory": "5"}, []),
        (["700", "-memory=5"], ["700"], {"memory": "5"}, []),
        (["--start", "700"], ["700"], {"start": "1"}, []),
        (["--start", "0", "700"], ["700"], {"start": "0"}, []),
        (["700", "--mem", "5"], ["700"], {"memory": "5"}, []),
        (["700", "--", "ls", "-la", "--"], ["700"], {}, ["ls", "-la", "--"]),
        (["700", "--password", "--start"], ["700"], {"password": "", "start": "1"}, []),
    ],
)
def test_options(words: list[str], arguments: list[str], given: dict[str, str], extra: list[str]) -> None:
    parsed = options.parse(words, ["memory", "mp0", "start", "password"], ["start"], ["password"])
    assert (parsed.arguments, parsed.options, parsed.extra) == (arguments, given, extra)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--foo", "1"], "Unknown option: foo"), (["--m", "1"], "ambiguous"), (["--memory"], "requires an argument")],
)
def test_wrong_options(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        options.parse(words, ["memory", "mp0"], [])


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["create", "1", "--password", "x y", "--start"], ["create", "1", "--password", "***", "--start"]),
        (["create", "1", "--password=x"], ["create", "1", "--password=***"]),
        (["create", "1", "-pass", "x"], ["create", "1", "-pass", "***"]),
        (["exec", "1", "--", "sh", "-c", "secret"], ["exec", "1", "-- (3 words)"]),
        (["set", "1", "--protection", "1"], ["set", "1", "--protection", "1"]),
    ],
)
def test_secrets_stay_out_of_the_log(words: list[str], shown: list[str]) -> None:
    assert options.without_secrets(words) == shown


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["bogus"], 255, "ERROR: unknown command 'pct bogus'\nUSAGE"),
        (["status"], 255, "400 not enough arguments\npct status <vmid> [OPTIONS]"),
        (["status", "700", "701"], 255, "400 too many arguments"),
        (["status", "99"], 255, "vmid: invalid format - value does not look like a valid VM ID"),
        (
            ["set", "700", "--lxc.idmap", "x"],
            2,
            "Unknown option: lxc.idmap\n400 unable to parse option\npct set <vmid>",
        ),
    ],
)
def test_usage_errors(words: list[str], code: int, said: str) -> None:
    with pytest.raises(PctError) as refused:
        cli.dispatch(words)
    assert said in str(refused.value)
    assert refused.value.code == code


# --- set -------------------------------------------------------------------------------------------------------------


def test_stopped_container_takes_everything_at_once() -> None:
    parts = changes.split({"memory": "1"}, {"memory": "2", "features": "nesting=1"}, ["nameserver"], running=False)
    assert parts.live == {"memory": "2", "features": "nesting=1"}
    assert parts.live_delete == ["nameserver"]
    assert not parts.later
    assert not parts.later_delete


def test_running_container_takes_some_now_and_the_rest_later() -> None:
    active = {"memory": "1", "features": "nesting=1", "dev0": "/dev/null", "mp0": "/a,mp=/a"}
    params = {
        "memory": "2", "hostname": "x", "net0": "name=eth0", "mp1": "/b,mp=/b", "dev1": "/dev/zero",
        "dev0": "/dev/full", "nameserver": "1.1.1.1", "features": "nesting=1",
    }  # fmt: skip
    parts = changes.split(active, params, ["mp0", "net1", "searchdomain", "tags"], running=True)
    assert set(parts.live) == {"memory", "hostname", "net0", "mp1", "dev1", "features"}
    assert set(parts.later) == {"dev0", "nameserver"}
    assert parts.live_delete == ["net1", "tags"]
    assert parts.later_delete == ["mp0", "searchdomain"]


def test_a_changed_card_keeps_its_hwaddr() -> None:
    new = {"net0": "name=eth0,bridge=vmbr0"}
    changes.fill_in_nets(new, {"net0": "name=eth0,hwaddr=BC:24:11:00:00:01,type=veth"})
    assert new == {"net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,type=veth"}


# --- guest -----------------------------------------------------------------------------------------------------------

NET = "name=eth0,bridge=vmbr0,gw=10.92.0.1,hwaddr=BC:24:11:00:00:01,ip=10.92.0.121/24,type=veth"


def test_interfaces() -> None:
    section = Section({"net0": NET, "net1": "name=eth1,ip=dhcp,ip6=fd00::5/64,gw6=fd00::1"})
    assert guest.interfaces_text(section) == (
        "auto lo\niface lo inet loopback\n\n"
        "auto eth0\niface eth0 inet static\n\taddress 10.92.0.121/24\n\tgateway 10.92.0.1\n\n"
        "auto eth1\niface eth1 inet dhcp\n\niface eth1 inet6 static\n\taddress fd00::5/64\n\tgateway fd00::1\n"
    )


def test_gateway_outside_the_subnet_gets_a_route() -> None:
    text = guest.interfaces_text(Section({"net0": "name=eth0,ip=10.0.0.5/32,gw=192.168.1.1"}))
    assert "\tpost-up ip route add 192.168.1.1 dev eth0\n" in text
    assert "\tgateway" not in text


def test_hosts_block_is_replaced_and_the_rest_kept() -> None:
    section = Section({"hostname": "web.example.org", "net0": NET})
    once = guest.hosts_text("127.0.0.1 localhost\n10.1.1.1 mine\n", section)
    assert "10.92.0.121 web.example.org web\n" in once
    section.options["hostname"] = "other"
    twice = guest.hosts_text(once, section)
    assert twice == ("127.0.0.1 localhost\n10.1.1.1 mine\n# --- BEGIN PVE ---\n10.92.0.121 other\n# --- END PVE ---\n")


def test_resolver_follows_the_conf_else_the_node() -> None:
    host = "search corp.example\nnameserver 198.51.100.53\n"
    assert "search corp.example\nnameserver 198.51.100.53\n" in guest.resolver_text(Section(), host)
    own = guest.resolver_text(Section({"nameserver": "1.1.1.1 9.9.9.9", "searchdomain": "a.example"}), host)
    assert own == "# --- BEGIN PVE ---\nsearch a.example\nnameserver 1.1.1.1\nnameserver 9.9.9.9\n# --- END PVE ---\n"


def test_work_in_a_guest_cannot_leave_it(tmp_path: Path) -> None:
    # needs root for chroot; the link would lead to the host's file without it
    if not hasattr(guest.os, "geteuid") or guest.os.geteuid() != 0:
        pytest.skip("chroot needs root")
    outside = tmp_path / "outside"
    outside.write_text("host\n")
    rootfs = tmp_path / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    (rootfs / "etc/hosts").symlink_to(outside)
    guest.prepare_start(rootfs, Section({"hostname": "c", "net0": NET}))
    assert outside.read_text() == "host\n"
    assert (rootfs / "etc/hostname").read_text() == "c\n"


# --- LXC's config ----------------------------------------------------------------------------------------------------


@pytest.fixture
def storages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = storage.parse_storage_cfg(lab.STORAGE_CFG)
    monkeypatch.setattr(storage, "storages", lambda: found)


def section(**more: str) -> Section:
    base = {"hostname": "web", "memory": "512", "swap": "256", "unprivileged": "1", "net0": NET}
    return Section({**base, "rootfs": "local-btrfs:700/vm-700-disk-0.subvol,size=8G", **more})


@pytest.mark.usefixtures("storages")
def test_lxc_config_on_cgroup_v2_and_v1() -> None:
    for two, memory, swap in (
        (True, "lxc.cgroup2.memory.max = 536870912", "lxc.cgroup2.memory.swap.max = 268435456"),
        (False, "lxc.cgroup.memory.limit_in_bytes = 536870912", "lxc.cgroup.memory.memsw.limit_in_bytes = 805306368"),
    ):
        lines = runtime.render_config(700, section(), runtime.Host(two, "/hook", (0, 2)), {}).splitlines()
        assert memory in lines
        assert swap in lines
        assert f"lxc.cgroup{'2' if two else ''}.cpuset.cpus = 0,2" in lines
        assert "lxc.idmap = u 0 100000 65536" in lines
        assert "lxc.net.0.hwaddr = BC:24:11:00:00:01" in lines


@pytest.mark.usefixtures("storages")
def test_privileged_has_no_map_and_raw_lines_come_last() -> None:
    one = section(unprivileged="0", mp0="/srv/a b,mp=/mnt/x,ro=1", dev0="/dev/null,deny-write=1")
    one.raw = [("lxc.cgroup2.devices.allow", "c 195:* rwm"), ("lxc.apparmor.profile", "generated")]
    text = runtime.render_config(700, one, runtime.Host(False, "/hook", (0,), ("/srv/wheels",)), {"dev0": "c 1:3 r"})
    assert "idmap" not in text
    assert "userns.conf" not in text
    assert "lxc.cgroup.devices.allow = c 1:3 r\n" in text
    assert "lxc.mount.entry = /srv/a\\040b mnt/x none bind,create=file,ro 0 0\n" in text
    assert "lxc.mount.entry = /srv/wheels srv/wheels none bind,ro,create=dir,optional 0 0\n" in text
    # The line as it was declared stays; on cgroup v1 another one has its effect.
    assert text.endswith(
        "lxc.cgroup.devices.allow = c 195:* rwm\nlxc.cgroup2.devices.allow = c 195:* rwm\n"
        "lxc.apparmor.profile = generated\n"
    )


@pytest.mark.parametrize(
    ("wanted", "taken", "chosen"),
    [
        (None, [], (0, 1, 2, 3)),
        (9, [], (0, 1, 2, 3)),
        (2, [], (0, 1)),
        (2, [[0, 1]], (2, 3)),
        (1, [[0], [1], [0, 1, 2, 3]], (2,)),
    ],
)
def test_cpus_are_shared_out(wanted: int | None, taken: list[list[int]], chosen: tuple[int, ...]) -> None:
    assert runtime.choose_cpus(wanted, [0, 1, 2, 3], taken) == chosen


def test_cpu_lists() -> None:
    assert runtime.parse_cpu_list("0-2,5") == [0, 1, 2, 5]


# --- storage ---------------------------------------------------------------------------------------------------------


def test_storage_cfg() -> None:
    found = storage.parse_storage_cfg(lab.STORAGE_CFG)
    assert list(found) == ["local", "local-btrfs", "local-dir"]
    assert found["local-btrfs"].can_snapshot
    assert not found["local-dir"].can_snapshot
    assert "rootdir" not in found["local"].content


@pytest.mark.usefixtures("storages")
def test_volumes() -> None:
    base = storage.volume("local-btrfs:900/base-900-disk-0.subvol")
    assert (base.owner, base.is_base) == (900, True)
    assert base.snapshot_path("s1").name == "base-900-disk-0.subvol@s1"
    for wrong in ("local-btrfs:900/../x.subvol", "x", "local-btrfs:8"):
        with pytest.raises(PctError, match="unable to parse volume ID"):
            storage.volume(wrong)
    with pytest.raises(PctError, match="storage 'x' does not exist"):
        storage.volume("x:900/vm-900-disk-0.subvol")


# --- the image -------------------------------------------------------------------------------------------------------


def test_mirrors_of_both_formats() -> None:
    new = (
        "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n"
        "Types: deb\nURIs: http://m.example/sec/\nSuites: bookworm-security\nComponents: main\n"
    )
    old = "deb [signed-by=/x] http://m.example/debian bookworm main\ndeb http://m.example/sec bookworm-security main\n"
    assert image.debian_mirrors(new) == image.debian_mirrors(old) == ("http://m.example/debian", "http://m.example/sec")
    assert image.debian_mirrors("") == ("", "")


def test_only_the_way_to_mirrors_is_taken_from_apt() -> None:
    dump = (
        'APT::Install-Recommends "1";\nAcquire::http::Proxy "http://p.example:3128";\nAcquire::Check-Date "false";\n'
        'Acquire::http::Proxy-Auto-Detect "/usr/local/bin/detect";\nDPkg::Post-Invoke:: "x";\n'
    )
    assert image.apt_settings(dump) == (
        'Acquire::http::Proxy "http://p.example:3128";',
        'Acquire::Check-Date "false";',
    )


def test_pip_settings_files_then_environment() -> None:
    files = ["[global]\nindex-url = https://a.example/simple\ntimeout = 5\n", "[install]\nfind-links =\n  /w\n  /x\n"]
    environ = {"PIP_INDEX_URL": "https://b.example/simple", "PIP_NO_INPUT": "1", "PIP_CONFIG_FILE": "/c", "PIPX": "no"}
    found = image.pip_settings(files, environ)
    assert found == {"index-url": "https://b.example/simple", "timeout": "5", "find-links": "/w\n/x"}


def test_local_folders_of_pip() -> None:
    pip = {
        "find-links": "/srv/wheels https://x.example/y relative",
        "extra-index-url": "file:///srv/pypi/simple file:///srv/my%20index",
        "index-url": "https://pypi.example/simple",
    }
    assert image.local_folders(pip) == ["/srv/my index", "/srv/pypi", "/srv/wheels"]


def machine(**more: object) -> image.Machine:
    return image.Machine("http://m.example/debian", "http://m.example/security", **more)  # type: ignore[arg-type]


def test_a_plain_machine_adds_nothing_for_pip_and_uv() -> None:
    files = image.archive_files(machine())
    assert set(files) == {"/etc/apt/sources.list", "/etc/default/locale"}


def test_certificates_and_indexes_reach_pip_and_uv() -> None:
    one = machine(
        pip={"extra-index-url": "file:///srv/simple", "find-links": "/w /x"},
        certificates={"corp.crt": "PEM"},
        proxies={"https_proxy": "http://p.example:1"},
    )
    files = image.archive_files(one)
    assert files["/usr/local/share/ca-certificates/corp.crt"] == "PEM"
    assert "cert = /etc/ssl/certs/ca-certificates.crt\n" in files["/etc/pip.conf"]
    assert "proxy = http://p.example:1\n" in files["/etc/pip.conf"]
    assert files["/etc/uv/uv.toml"] == (
        'extra-index-url = ["file:///srv/simple"]\nindex-strategy = "unsafe-best-match"\n'
        'find-links = ["/w", "/x"]\nsystem-certs = true\n'
    )
    assert 'Acquire::https::Proxy "http://p.example:1";' in files["/etc/apt/apt.conf.d/90phoenix-lab"]
    assert image.recipe_digest(one) != image.recipe_digest(machine())


# --- lab up's refusals -----------------------------------------------------------------------------------------------


def test_nothing_of_the_callers_environment_gets_into_the_archive() -> None:
    callers = {"PATH": "/bin", "HOME": "/home/me", "PYTHONPYCACHEPREFIX": "/home/me/cache", "LANG": "de_DE.UTF-8"}
    seen = image.build_environment(machine(proxies={"https_proxy": "http://p:1"}), callers)
    assert seen == {
        "PATH": "/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": "/var/tmp",
        "https_proxy": "http://p:1",
    }


def test_real_proxmox_is_refused(tmp_path: Path) -> None:
    lab.refuse_real_node(tmp_path)
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/pvesh").touch()
    with pytest.raises(PctError, match=r"this machine has Proxmox VE .* nothing was changed"):
        lab.refuse_real_node(tmp_path)


def test_subnet_in_use() -> None:
    address = [{"ifname": "eth0", "addr_info": [{"family": "inet", "local": "10.92.0.7", "prefixlen": 16}]}]
    assert lab.overlapping("10.92.0", address, []) == "eth0"
    assert lab.overlapping("10.93.0", address, []) == ""
    assert lab.overlapping("10.92.0", [{**address[0], "ifname": "vmbr0"}], []) == ""
    assert (
        lab.overlapping("10.92.0", [], [{"dst": "default", "dev": "e"}, {"dst": "10.92.0.0/25", "dev": "wg0"}]) == "wg0"
    )


def test_nft_table_can_be_loaded_again() -> None:
    text = lab.nft_rules("10.92.0")
    assert text.startswith("table ip phoenix_lab\ndelete table ip phoenix_lab\n")
    assert "ip saddr 10.92.0.0/24 ip daddr != 10.92.0.0/24 masquerade" in text


FIREWALL = """\
[OPTIONS]

enable: 1
policy_in: DROP

[ALIASES]

lan 10.0.0.0/8 # home

[RULES]

IN SSH(ACCEPT) -i net0 -source 10.0.0.0/8 -log nolog # from home
|OUT DROP -dest 10.9.9.9 -p tcp -dport 80,443 -sport 1000:2000
IN ACCEPT -p icmp -icmp-type echo-request
GROUP webserver

"""


def test_a_firewall_file_is_written_as_it_was_read() -> None:
    found = firewall.parse(FIREWALL)
    assert firewall.render(found) == FIREWALL
    assert found.options == {"enable": "1", "policy_in": "DROP"}
    assert found.rules[0] == {
        "type": "in", "action": "ACCEPT", "macro": "SSH", "enable": "1", "iface": "net0", "source": "10.0.0.0/8",
        "log": "nolog", "comment": "from home",
    }  # fmt: skip
    assert (found.rules[1]["enable"], found.rules[1]["dport"], found.rules[3]["type"]) == ("0", "80,443", "group")
    assert firewall.parse("IN ACCEPT\n[RULES]\nnonsense\n") == firewall.Firewall()


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ({"type": "in", "action": "ACCEPT", "dport": "22"}, "proto"),
        ({"type": "in", "action": "nothing"}, "action"),
    ],
)
def test_a_rule_that_no_firewall_takes(rule: dict[str, str], name: str) -> None:
    with pytest.raises(ParameterError) as refused:
        firewall.check_rule(rule)
    assert list(refused.value.errors) == [name]


def test_a_upid_names_its_process_and_its_log() -> None:
    text = active.upid("vzstart", 700, os.getpid(), 0x6B0185EA, "root@pam!lab")
    task = active.Task(text)
    assert task.fields["pid"] == os.getpid()
    assert (task.fields["type"], task.fields["id"], task.fields["user"]) == ("vzstart", "700", "root@pam!lab")
    assert str(task.log) == f"/var/log/pve/tasks/A/{text}"
    assert active.is_running(task)
    assert not active.is_running(active.Task(text.replace(f":{task.fields['pstart']:08X}:", ":00000001:")))


@pytest.mark.parametrize(
    ("log", "status"),
    [
        ("x\nTASK OK\n", "OK"),
        ("TASK WARNINGS: 2\n", "WARNINGS: 2"),
        ("trying to acquire lock...TASK ERROR: got timeout\n", "got timeout"),
        ("half a word", "unexpected status"),
        ("", "unexpected status"),
    ],
)
def test_how_a_task_ended(log: str, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "TASK_LOG", tmp_path)
    task = active.Task("UPID:pve:00000001:00000002:0000000A:vzstart:700:root@pam:")
    task.log.parent.mkdir()
    task.log.write_text(log)
    assert active.status_in_log(task) == status


@pytest.mark.parametrize("wanted", ["9", "10.1", "6.4", "8.4.1", "x"])
def test_a_release_that_there_is_not(wanted: str) -> None:
    with pytest.raises(PctError, match="PHOENIX_LAB_RELEASE must be a release"):
        release.checked(wanted)


def test_the_release_decides_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "PVECFG", tmp_path / "pvecfg.pm")
    known = {}
    for name in ("7.4", "8.1", "8.3", "9.1"):
        settings.PVECFG.write_text(release.text(name))
        assert release.name() == name
        known[name] = {"dev0", "env"} & set(schema.option_names())
    assert known == {"7.4": set(), "8.1": {"dev0"}, "8.3": {"dev0"}, "9.1": {"dev0", "env"}}


def test_passwords_and_tokens_of_others_are_no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "API_KEY", tmp_path / "key")
    monkeypatch.setattr(settings, "API_SECRETS", tmp_path / "api.json")
    access.ensure_secrets("10.92.0.1")
    password = json.loads(settings.API_SECRETS.read_text())["password"]
    made = access.new_ticket("root@pam", password)
    cookie = f"PVEAuthCookie={made['ticket']}"
    assert access.caller("PUT", "", cookie, made["CSRFPreventionToken"]) == access.Caller("root@pam")
    monkeypatch.setattr(access.time, "time", lambda: time.time_ns() / 1e9 + 7300)
    with pytest.raises(Refusal, match="invalid PVE ticket"):
        access.caller("GET", "", cookie, "")
    settings.API_KEY.write_text("other\n")
    with pytest.raises(Refusal, match="authentication failure"):
        access.new_ticket("root@pam", made["ticket"])
