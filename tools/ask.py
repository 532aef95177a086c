# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the model server of a container for a completion, and show how to ask for one oneself."""
from __future__ import annotations

import argparse
import http.client
import json
import ssl
import subprocess
import sys
from pathlib import Path

# The plugins, which know how to ask a server by its address that has a certificate with a name.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / ".ansible" / "collections"))

from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_guard

PROMPT = "The quick brown fox"
TIMEOUT_SECONDS = 60


def declared(inventory: str, host: str) -> dict:
    """The variables of a host, as ansible-inventory has them."""
    run = subprocess.run(
        ["ansible-inventory", "-i", inventory, "--host", host], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(run.stdout)


def has_certificate(variables: dict) -> bool:
    """Whether the role gives the server a certificate, as its default of C(vllm_model_server_tls) says."""
    source = variables.get("certificate_source") or variables.get("certificate_ca_url") or "none"
    return source != "none" and variables.get("certificate_model_server", True) is not False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--cacert", default="", help="the file with the site's CA, for a server with a certificate")
    parser.add_argument("--name", default="", help="the name in that certificate (default: the container's hostname)")
    arguments = parser.parse_args()
    variables = declared(arguments.inventory, arguments.host)
    server = variables["vllm_model_server_engine_config"]["ServerConfig"]
    address, port = variables["container_address"], server["port"]
    probe: dict = {"host": address, "port": port, "tls": False}
    url, trust = f"http://{address}:{port}/v1/completions", ""
    if has_certificate(variables):
        name = arguments.name or variables.get("container_config", {}).get("hostname") or address
        probe["tls"] = {"ca": arguments.cacert, "name": name}
        url = f"https://{name}:{port}/v1/completions"
        trust = (f"--cacert {arguments.cacert} " if arguments.cacert else "") + (
            f"--resolve {name}:{port}:{address} " if name != address else ""
        )
    body = json.dumps({"model": server["served_model_name"], "prompt": PROMPT, "max_tokens": 16})
    headers = {"Content-Type": "application/json"}
    try:
        connection = server_guard.connection(probe, TIMEOUT_SECONDS)
        connection.request("POST", "/v1/completions", body, headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}: {answer}")
    except (ssl.SSLCertVerificationError, server_guard.CertificateError) as error:
        why = server_guard.distrust(error, probe, TIMEOUT_SECONDS)
        print(f"{arguments.host} was not asked at {url}: its certificate {why} (--cacert, --name)", file=sys.stderr)
        return 1
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"{arguments.host} did not answer at {url}: {error}", file=sys.stderr)
        return 1
    print(f"{answer['model']} in {arguments.host} was asked to go on from {PROMPT!r} and answered:\n")
    print(f"    {answer['choices'][0]['text']!r}\n")
    print("Ask it yourself:\n")
    print(f"    curl -s {trust}{url} -H 'Content-Type: application/json' \\\n      -d '{body}'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
