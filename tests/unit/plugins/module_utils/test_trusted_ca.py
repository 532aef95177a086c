# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import subprocess

import pytest
import tomllib
from ansible_collections.phoenix.hypervisor.plugins.module_utils import trusted_ca
from ansible_collections.phoenix.hypervisor.plugins.module_utils.trusted_ca import CertificateError

STORE = "/etc/ssl/certs/ca-certificates.crt"


@pytest.fixture(scope="module")
def pems(tmp_path_factory) -> tuple[str, str, str]:
    """Two real CA certificates and a private key."""
    folder = tmp_path_factory.mktemp("ca")
    made = []
    for name in ("one", "two"):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        subprocess.run(
            [*command, "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt", "-subj", f"/CN={name}"],
            check=True,
            capture_output=True,
        )
        made.append((folder / f"{name}.crt").read_text())
    return made[0], made[1], (folder / "one.key").read_text()


def test_a_bundle_becomes_a_file_per_certificate(pems):
    one, two, _key = pems
    files = trusted_ca.split("/site/My CA.pem", f"comment\r\n{one}between{two}")
    assert len(files) == 2
    assert all(name.startswith("My-CA-") and name.endswith(".crt") for name in files)
    assert list(files.values()) == [one, two]


def test_the_name_follows_the_content(pems):
    one, two, _key = pems
    assert trusted_ca.wanted_files({"/a/x.crt": one}) == trusted_ca.wanted_files({"/b/x.crt": one + "\n"})
    assert set(trusted_ca.wanted_files({"x.crt": one})) != set(trusted_ca.wanted_files({"x.crt": two}))
    assert trusted_ca.wanted_files({}) == {}


def test_what_is_no_ca_is_refused(pems):
    one, _two, key = pems
    lines = one.splitlines()
    for text, sentence in (
        ("", "no certificate in PEM form"),
        ("hello", "no certificate in PEM form"),
        (key, "has a private key"),
        (one + key, "has a private key"),
        ("\n".join([lines[0], *lines[2:]]), "damaged certificate"),
        ("\n".join([lines[0], "AAAA", lines[-1]]), "damaged certificate"),
        ("\n".join([lines[0], "?", lines[-1]]), "damaged certificate"),
    ):
        with pytest.raises(CertificateError, match=sentence) as error:
            trusted_ca.split("/site/ca.crt", text)
        assert "/site/ca.crt" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "[global]\ncert = X\n"),
        ("[global]\nfind-links = /w\n", "[global]\ncert = X\nfind-links = /w\n"),
        ("[global]\ncert = X\n", None),
        ("[global]\ncert=X", None),
        ("[global]\ncert = Y\ntimeout = 1\n", "[global]\ncert = X\ntimeout = 1\n"),
        ("[global]\ncert =\n    Y\ntimeout = 1\n", "[global]\ncert = X\ntimeout = 1\n"),
        ("# mine\n[install]\ncert = Y\n", "# mine\n[install]\ncert = Y\n[global]\ncert = X\n"),
        ("[global]\na = 1\n  2\n[install]\ncert = Y\n", "[global]\ncert = X\na = 1\n  2\n[install]\ncert = Y\n"),
    ],
)
def test_pip_settings_are_merged(before, after):
    wanted = before if after is None else after
    assert trusted_ca.set_ini(before, "global", "cert", "X") == wanted
    assert trusted_ca.set_ini(wanted, "global", "cert", "X") == wanted


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "system-certs = true\n"),
        ("system-certs = true\n", None),
        ("system-certs = true # ours", None),
        ("system-certs = false\n", "system-certs = true\n"),
        ('find-links = ["/w"]\n', 'system-certs = true\nfind-links = ["/w"]\n'),
        ("native-tls = true\n", "system-certs = true\n"),
        ("native-tls = false\nsystem-certs = true\n", "system-certs = true\n"),
        ("[pip]\nsystem-certs = false\n", "system-certs = true\n[pip]\nsystem-certs = false\n"),
        (
            'find-links = [\n  "/w",\n]\n[[index]]\nurl = "x"\n',
            'system-certs = true\nfind-links = [\n  "/w",\n]\n[[index]]\nurl = "x"\n',
        ),
        ('a = [\n["x"],\n]\nsystem-certs = false\n', 'a = [\n["x"],\n]\nsystem-certs = true\n'),
    ],
)
def test_uv_settings_are_merged(before, after):
    wanted = before if after is None else after
    got = trusted_ca.set_toml(before, "system-certs", "true", replaces=("native-tls",))
    assert got == wanted
    assert tomllib.loads(got)["system-certs"] is True
    assert trusted_ca.set_toml(got, "system-certs", "true", replaces=("native-tls",)) == got
    others = {key: value for key, value in tomllib.loads(before).items() if key not in ("system-certs", "native-tls")}
    assert {key: value for key, value in tomllib.loads(got).items() if key != "system-certs"} == others
