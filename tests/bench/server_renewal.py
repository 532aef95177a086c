# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what clients see of a hundred renewals of a model server's certificate: requests that failed.

A client asks twenty times a second over TLS, each time by a new connection and a handshake with verification. After
each renewal the server must serve the new certificate. The program that stands in for vLLM in tests reloads as vLLM
does, and answers at once; with vLLM itself it is tests/lab/test_vllm_tls.py.
"""
from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / ".ansible" / "collections"), str(ROOT / "tests" / "support")]

from tls_site import TlsSite

VMID, ADDRESS = 567, "10.92.0.37"
RENEWALS = 100

Figures = dict[str, dict]


def figures() -> Figures:
    """How many requests failed over a hundred renewals, and how long one took until it was served.

    :raises RuntimeError: a renewed certificate was not served, or the server was restarted
    """
    with tempfile.TemporaryDirectory() as folder:
        site = TlsSite(VMID, ADDRESS, Path(folder))
        try:
            site.set_up()
            site.issue()
            site.run()
            pid, times = site.main_pid(), []
            with site.client() as client:
                time.sleep(1)
                for _number in range(RENEWALS):
                    number = site.issue()
                    began = time.monotonic()
                    site.renewed()
                    times.append(time.monotonic() - began)
                    if site.serves() != number:
                        raise RuntimeError("the server does not serve the certificate that was renewed")
                time.sleep(1)
            if site.main_pid() != pid:
                raise RuntimeError("the server was restarted")
        finally:
            site.close()
    return {
        "renewal_failed_requests": {
            "value": len(client.failed), "unit": "requests", "of": len(client.requests), "renewals": RENEWALS,
            "served_after_seconds": round(statistics.median(times), 2),
        }
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(figures(), indent=2))
