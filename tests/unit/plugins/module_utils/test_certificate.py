# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which certificates a container has, and the commands that follow a renewal."""

from __future__ import annotations

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import certificate, lxc_config
from ansible_collections.phoenix.hypervisor.plugins.module_utils.certificate import CertificateError
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("systemctl reload nginx", ["systemctl", "reload", "nginx"]),
        ("/usr/local/bin/after 'a b' \"c d\" e\\ f", ["/usr/local/bin/after", "a b", "c d", "e f"]),
        ("  a   b ", ["a", "b"]),
        ("say '$(id) | & ; > <'", ["say", "$(id) | & ; > <"]),
        ('say "a; b"', ["say", "a; b"]),
        ("python3 -c 'print(1)'", ["python3", "-c", "print(1)"]),
        ("", []),
    ],
)
def test_text_is_split(text, words):
    assert certificate.command_words(text) == words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a && b", "&&"), ("a&&b", "&&"), ("a | b", "|"), ("a > /b", ">"), ("a >/b", ">"), ("a; b", ";"), ("a &", "&"),
        ("a $(b)", "$("), ('a "$(b)"', "$("), ("a `b`", "`"), ("a $HOME", "$HOME"), ("a ${HOME}", "${HOME"),
        ("a < b", "<"), ("a\nb", "a line end"), ("( a )", "("), ("a || b", "||"),
    ],
)  # fmt: skip
def test_shell_syntax_is_refused(text, shown):
    with pytest.raises(CertificateError, match="has shell syntax in it") as caught:
        certificate.command_words(text)
    assert f"({shown})" in str(caught.value) and "no shell runs it: write one command" in str(caught.value)


@pytest.mark.parametrize("text", ["bash -c 'a && b'", "/bin/sh -c a", "pct exec 101 -- /bin/bash -c 'mkdir -p /a'",
                                  "env A=1 sh -ec a"])  # fmt: skip
def test_a_shell_in_a_text_is_refused(text):
    with pytest.raises(CertificateError, match="calls a shell"):
        certificate.command_words(text)


def test_an_open_quote_is_refused():
    with pytest.raises(CertificateError, match="close every quote"):
        certificate.command_words("a 'b")


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1), max_size=4))
def test_a_list_is_taken_as_it_is(words):
    assert certificate.command_words(words) == words


@given(st.text(max_size=30))
def test_no_text_is_a_traceback(text):
    try:
        words = certificate.command_words(text)
    except CertificateError as error:
        assert "; " in str(error)
    else:
        assert all(isinstance(word, str) for word in words)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["pct", "exec", "102", "--", "systemctl", "restart", "traefik"], ["systemctl", "restart", "traefik"]),
        (["pct", "exec", "102", "systemctl", "x"], ["systemctl", "x"]),
        (["systemctl", "x"], ["systemctl", "x"]),
        ([], []),
    ],
)
def test_pct_exec_is_left_out(words, left):
    assert certificate.without_pct_exec(words, "102") == left


@pytest.mark.parametrize(
    ("words", "whose"), [(["pct", "exec", "103", "--", "a"], "CTID 103"), (["qm", "guest", "exec", "1", "a"], "VM 1")]
)
def test_another_container_is_refused(words, whose):
    with pytest.raises(CertificateError, match=f"runs something in {whose}; "):
        certificate.without_pct_exec(words, "102")


def test_the_model_servers_entry():
    (entry,) = certificate.entries([], True, {"name": "llm.example", "sans": ["a"], "optional": ["10.0.0.1"]})
    assert entry["names"] == ["llm.example", "a"] and entry["optional_names"] == ["10.0.0.1"]
    assert entry["cert_file"] == "/etc/phoenix-hypervisor/certificates/vllm_model_server/fullchain.pem"
    assert (entry["owner"], entry["mode"]) == ("root", "0600")
    assert entry["command"][3:] == ["renewed", "vllm_model_server.service", "/var/lib/vllm_model_server"]
    assert entry["only_if"] == entry["command"][2], "before the server is there, there is nobody to tell"


def test_the_model_servers_entry_can_say_more():
    services = [{"name": "vllm_model_server", "common_name": "x.example", "sans": ["y"]},
                {"common_name": "web.example"}]  # fmt: skip
    server, web = certificate.entries(services, True, {"name": "llm", "sans": ["z"], "optional": []})
    assert server["names"] == ["x.example", "z", "y"] and server["only_if"]
    assert web["name"] == "web_example" and web["names"] == ["web.example"] and web["command"] == []
    assert certificate.entries([], False, {"name": "llm"}) == []


@pytest.mark.parametrize(
    ("services", "fault"),
    [
        ([{"name": "a"}, {"name": "a"}], "Two certificates (a, a) have a"),
        ([{"name": "a", "cert_file": "/x"}, {"name": "b", "key_file": "/x"}], "Two certificates (a, b) have /x"),
        ([{"name": "a", "cert_file": "/x", "key_file": "/x"}], "have /x"),
        ([{"name": "a", "cert_file": "x"}], "x is no absolute path"),
        ([{"name": "a", "key_file": "/x/../y"}], "is no absolute path"),
        ([{"name": "../a"}], "is no name for a certificate"),
    ],
)
def test_wrong_entries(services, fault):
    with pytest.raises(CertificateError) as caught:
        certificate.entries(services, False, {"name": "n"})
    assert fault in str(caught.value)


def test_fingerprints():
    colons = ":".join(["AB"] * 32)
    assert certificate.fingerprints([colons, "ab" * 32, " cd" * 32]) == ["ab" * 32, "cd" * 32]
    for wrong in ("", "ab", "zz" * 32, "ab" * 20):
        with pytest.raises(CertificateError, match="no SHA-256 fingerprint"):
            certificate.fingerprints([wrong])


def test_directory():
    assert certificate.directory_of("https://ca:9000/", "acme", "") == "https://ca:9000/acme/acme/directory"
    assert certificate.directory_of("https://ca:9000/", "acme", "https://x/dir") == "https://x/dir"


ENTRY = {"name": "web", "names": ["a", "b"], "cert_file": "/c", "key_file": "/k"}
FILES = {"/program": "1", "/etc/systemd/system/x.service": "2"}


def actions(steps):
    return [step.action for step in steps]


def test_plan_from_nothing():
    seen = certificate.Seen({}, {}, False, {"web": "there is none yet"})
    steps = certificate.plan(FILES, seen, "x.timer", {"web": ENTRY}, False)
    assert actions(steps) == ["write", "write", "reload", "renew", "timer"]
    assert steps[3].text == "get a certificate web for a, b, because there is none yet"


@pytest.mark.parametrize(
    ("seen", "force", "expected"),
    [
        (certificate.Seen(FILES, {}, True), False, []),
        (certificate.Seen(FILES, {}, True), True, ["renew"]),
        (certificate.Seen(FILES, {}, False), False, ["timer"]),
        (certificate.Seen({**FILES, "/program": "0"}, {}, True), False, ["write"]),
        (certificate.Seen(FILES, {"/program": False}, True), False, ["write"]),
        (certificate.Seen(FILES, {}, True, {"web": "x"}), False, ["renew"]),
    ],
)
def test_plan(seen, force, expected):
    assert actions(certificate.plan(FILES, seen, "x.timer", {"web": ENTRY}, force)) == expected


def test_removal():
    units = ("/etc/systemd/system/x.service",)
    steps = certificate.removal(certificate.Seen(FILES, {}, True), "x.timer", units)
    assert actions(steps) == ["stop", "remove", "remove", "reload"]
    assert certificate.removal(certificate.Seen({}, {}, False), "x.timer", units) == []


NOW = 1_000_000


@pytest.mark.parametrize(
    ("begin", "end", "error", "limit", "said"),
    [
        (NOW - 100, NOW + 900, "", 0, ""),
        (NOW - 890, NOW + 110, "", 0, "is valid for 110 seconds only, which is below the limit of 2 minutes"),
        (NOW - 100, NOW + 900, "", 901, "is below the limit of 15 minutes"),
        (NOW - 100, NOW + 900, "The CA is away.", 0, "The certificate web: Its last renewal failed: The CA is away."),
        (NOW - 900, NOW - 7200, "The CA is away.", 0, "has expired, 2 hours ago. Its last renewal failed: The CA is"),
        (None, None, "", 0, "is not there, or key and certificate don't belong together"),
    ],
)
def test_problem(begin, end, error, limit, said):
    text = certificate.problem(ENTRY, {"not_before": begin, "not_after": end}, error, NOW, 1 / 3, limit)
    assert said in text and bool(said) == bool(text)


# --- the JSON -----------------------------------------------------------------------------------------------------


def model(**entry):
    return lxc_config.Model({"lxc_configs": {"102": {"template": "x", "name": "traefik", **entry}}}, "file.json")


# As people have it in their manifest.
OLD = {
    "common_name": "traefik-client.example", "sans": [""], "guest_id": 102, "guest_type": "lxc",
    "cert_path": "/etc/traefik/client-cert.pem", "key_path": "/etc/traefik/client-key.pem", "owner": "root:root",
    "permissions": "640", "post_renewal_command": "pct exec 102 -- systemctl restart traefik",
}  # fmt: skip


def test_an_entry_of_the_old_manifest():
    found = model(certificates=[OLD], bootstrap_ca_url="https://ca:9000", bootstrap_ca_fingerprint="AB" * 32)
    assert found.problems == []
    variables = found.role_variables("102")
    assert variables["certificate_ca_url"] == "https://ca:9000"
    assert variables["certificate_ca_fingerprint"] == ["ab" * 32]
    assert variables["certificate_services"] == [{
        "common_name": "traefik-client.example", "sans": [], "cert_file": "/etc/traefik/client-cert.pem",
        "key_file": "/etc/traefik/client-key.pem", "owner": "root", "group": "root", "mode": "0640",
        "post_renewal_command": ["systemctl", "restart", "traefik"],
    }]  # fmt: skip


def test_a_silent_declaration_says_nothing():
    variables = model().role_variables("102")
    assert not any(name.startswith("certificate_") for name in variables)


@pytest.mark.parametrize(
    ("change", "key", "fault"),
    [
        ({"guest_id": 103}, "certificates[0].guest_id", "it is for CTID 103; move it to that entry."),
        ({"guest_type": "vm"}, "certificates[0].guest_type", "is no container"),
        ({"mode": "0600"}, "certificates[0].permissions", "differs from mode"),
        ({"group": "x"}, "certificates[0].group", "differs from owner"),
        ({"common_name": ""}, "certificates[0].common_name", "it is missing"),
        ({"common_name": "a b"}, "certificates[0].common_name", "is not a name that a certificate can have"),
        ({"cert_path": "x"}, "certificates[0].cert_path", "is not an absolute path"),
        ({"permissions": "rw"}, "certificates[0].permissions", "is not the mode of a file"),
        ({"post_renewal_command": "a && b"}, "certificates[0].post_renewal_command", "has shell syntax in it (&&)"),
        ({"post_renewal_command": "pct exec 9 -- a"}, "certificates[0].post_renewal_command", "something in CTID 9"),
        ({"post_renewal_command": {}}, "certificates[0].post_renewal_command", "is no command"),
        ({"key_path": "/etc/traefik/client-cert.pem"}, "certificates", "have /etc/traefik/client-cert.pem; give each"),
    ],
)
def test_mistakes_in_an_entry(change, key, fault):
    found = [str(problem) for problem in model(certificates=[{**OLD, **change}]).problems]
    assert len(found) == 1, found
    assert f"CTID 102, key {key}" in found[0] and fault in found[0]


def test_a_key_for_everybody_is_a_note():
    notes = [str(note) for note in model(certificates=[{**OLD, "permissions": "0644"}]).notes]
    assert any("lets everybody read the key" in note for note in notes)
