# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which CA certificates a machine trusts besides its distribution's, and the settings of the tools that must know.

Pure functions. The certificates live in a folder of their own below C(/usr/local/share/ca-certificates), so what is
in it and not wanted can be removed without asking whose it is. pip and uv are told to use the system's store; git, curl
and apt do so by themselves.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import ssl
from collections.abc import Mapping

_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\s*(.*?)-----END \1-----", re.S)
_TABLE = re.compile(r"^\s*\[")


class CertificateError(ValueError):
    """A CA file that can't be trusted. The text is one sentence for the user."""


def split(source: str, text: str) -> dict[str, str]:
    """Return file name → PEM text of the certificates in a file; a store wants one certificate a file.

    A name has the digest of its certificate in it, so another certificate is another file.

    Args:
        source: where the text is from (a path), for the name and for messages.
        text: the content.

    Raises:
        CertificateError: there is no certificate in it, one is damaged, or a private key is.
    """
    blocks = _BLOCK.findall(text)
    if any("PRIVATE KEY" in label for label, _body in blocks):
        raise CertificateError(f"{source} has a private key in it: list the file with the CA's certificate only.")
    certificates = [body for label, body in blocks if label == "CERTIFICATE"]
    if not certificates:
        raise CertificateError(f"{source} has no certificate in PEM form (-----BEGIN CERTIFICATE-----) in it.")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.splitext(os.path.basename(source))[0]).strip(".-") or "ca"
    files = {}
    for body in certificates:
        try:
            der = base64.b64decode("".join(body.split()), validate=True)
            ssl.create_default_context(cadata=der)
        except (binascii.Error, ssl.SSLError, ValueError) as error:
            raise CertificateError(f"{source} has a damaged certificate in it: {_reason(error)}.") from None
        lines = base64.b64encode(der).decode()
        wrapped = "\n".join(lines[start : start + 64] for start in range(0, len(lines), 64))
        files[f"{stem}-{hashlib.sha256(der).hexdigest()[:8]}.crt"] = (
            f"-----BEGIN CERTIFICATE-----\n{wrapped}\n-----END CERTIFICATE-----\n"
        )
    return files


def _reason(error: Exception) -> str:
    """Return what an exception says, in a few words."""
    return (getattr(error, "reason", "") or str(error) or "it can't be read").rstrip(".").replace("_", " ").lower()


def wanted_files(sources: Mapping[str, str]) -> dict[str, str]:
    """Return file name → PEM text of all certificates of all files.

    Raises:
        CertificateError: see `split`.
    """
    return {name: pem for source in sorted(sources) for name, pem in split(source, sources[source]).items()}


def set_ini(text: str, section: str, key: str, value: str) -> str:
    """Return the text of an INI file with a key set; everything else stays as it is.

    Args:
        text: the file's text, empty when there is none.
        section: without brackets.
        key: the key, in the spelling that is written when it is new.
        value: one line.
    """
    lines = text.splitlines()
    header = re.compile(rf"\s*\[{re.escape(section)}\]\s*$")
    # pip takes - and _ in a key for the same.
    known = re.compile(rf"{re.escape(key).replace('_', '[-_]')}\s*[=:]", re.I)
    start = next((place for place, line in enumerate(lines) if header.match(line)), None)
    if start is None:
        return "".join(f"{line}\n" for line in [*lines, f"[{section}]", f"{key} = {value}"])
    end = next((place for place in range(start + 1, len(lines)) if _TABLE.match(lines[place])), len(lines))
    found = next((place for place in range(start + 1, end) if known.match(lines[place])), None)
    if found is None:
        lines.insert(start + 1, f"{key} = {value}")
        return "".join(f"{line}\n" for line in lines)
    # A value may go on in indented lines.
    after = found + 1
    while after < end and lines[after][:1] in (" ", "\t"):
        after += 1
    if after == found + 1 and re.split(r"[=:]", lines[found], maxsplit=1)[1].strip() == value:
        return text
    return "".join(f"{line}\n" for line in [*lines[:found], f"{key} = {value}", *lines[after:]])


def set_toml(text: str, key: str, value: str, replaces: tuple[str, ...] = ()) -> str:
    """Return the text of a TOML file with a key of its top level set; everything else stays as it is.

    Args:
        text: the file's text, empty when there is none.
        key: a bare key.
        value: the value in TOML, one line.
        replaces: older names of the key, which must not be there beside it.
    """
    lines = text.splitlines()
    # The top level ends at the first table; a new key goes first, where it can't be part of anything.
    tables = (place for place, line in enumerate(lines) if _TABLE.match(line) and not _is_open(lines[:place]))
    end = next(tables, len(lines))
    kept, found = [], False
    for place, line in enumerate(lines):
        name = re.match(r"\s*\"?([A-Za-z0-9_-]+)\"?\s*=", line)
        if place < end and name and name.group(1) in (key, *replaces):
            if name.group(1) == key and not found:
                found = True
                same = line.split("=", 1)[1].split("#", 1)[0].strip() == value
                kept.append(line if same else f"{key} = {value}")
            continue
        kept.append(line)
    if found and kept == lines:
        return text
    return "".join(f"{line}\n" for line in (kept if found else [f"{key} = {value}", *kept]))


def _is_open(lines: list[str]) -> bool:
    """Return whether a list that began in these lines hasn't ended: a bracket below is an item of it, no table."""
    text = re.sub(r'"(?:\\.|[^"\\])*"|\'[^\']*\'', "", "\n".join(lines))
    text = re.sub(r"#.*", "", text)
    return text.count("[") > text.count("]")
