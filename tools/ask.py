# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the model server of a container for a completion, and show how to ask for one oneself."""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import urllib.error
import urllib.request

PROMPT = "The quick brown fox"
TIMEOUT_SECONDS = 60


def declared(inventory: str, host: str) -> dict:
    """The variables of a host, as ansible-inventory has them."""
    run = subprocess.run(
        ["ansible-inventory", "-i", inventory, "--host", host], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(run.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", required=True)
    parser.add_argument("--host", required=True)
    arguments = parser.parse_args()
    variables = declared(arguments.inventory, arguments.host)
    server = variables["vllm_model_server_engine_config"]["ServerConfig"]
    url = f"http://{variables['container_address']}:{server['port']}/v1/completions"
    body = json.dumps({"model": server["served_model_name"], "prompt": PROMPT, "max_tokens": 16})
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    # The containers are on this machine's own bridge; a proxy of the environment can't reach them.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            answer = json.load(response)
    except (OSError, urllib.error.URLError) as error:
        print(f"{arguments.host} did not answer at {url}: {error}", file=sys.stderr)
        return 1
    print(f"{answer['model']} in {arguments.host} was asked to go on from {PROMPT!r} and answered:\n")
    print(f"    {answer['choices'][0]['text']!r}\n")
    print("Ask it yourself:\n")
    print(f"    curl -s {url} -H 'Content-Type: application/json' \\\n      -d '{body}'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
