# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cluster's CA and the node's certificate, at the genuine paths below /etc/pve."""

from __future__ import annotations

import tempfile
from pathlib import Path

from node import settings
from node.system import run, write_atomically

_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def ensure(address: str) -> None:
    """Make what is missing. ``address`` is the node's own, the bridge's."""
    certificate, key = settings.node_certificate()
    if not (settings.CA_CERTIFICATE.exists() and settings.CA_KEY.exists()):
        _make_ca()
        certificate.unlink(missing_ok=True)
    if not (certificate.exists() and key.exists()):
        _make_node_certificate(certificate, key, address)


def _make_ca() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        argv = ["openssl", "req", "-x509", *_NEW_KEY, "-days", "3650", "-subj", "/CN=Phoenix lab/O=Cluster Manager CA"]
        argv += ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        run([*argv, "-keyout", str(work / "key"), "-out", str(work / "pem")])
        write_atomically(settings.CA_KEY, (work / "key").read_text(), 0o600)
        write_atomically(settings.CA_CERTIFICATE, (work / "pem").read_text(), 0o644)


def _make_node_certificate(certificate: Path, key: Path, address: str) -> None:
    node = settings.node_name()
    names = f"DNS:localhost,DNS:{node},IP:127.0.0.1,IP:::1,IP:{address}"
    extensions = (
        "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth\n"
        f"subjectAltName={names}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "extensions").write_text(extensions)
        argv = ["openssl", "req", "-new", *_NEW_KEY, "-subj", f"/CN={node}"]
        run([*argv, "-keyout", str(work / "key"), "-out", str(work / "request")])
        argv = ["openssl", "x509", "-req", "-days", "730", "-in", str(work / "request")]
        argv += ["-CA", str(settings.CA_CERTIFICATE), "-CAkey", str(settings.CA_KEY), "-CAcreateserial"]
        argv += ["-CAserial", str(work / "serial"), "-extfile", str(work / "extensions"), "-out", str(work / "pem")]
        run(argv)
        write_atomically(key, (work / "key").read_text(), 0o600)
        write_atomically(certificate, (work / "pem").read_text(), 0o644)
