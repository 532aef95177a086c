#!/usr/bin/python3
"""Does the model write as many tokens as it is asked for? Runs inside the container, by playbooks/verify.yml."""

import json
import os
import sys
import urllib.request

WANTED = 8

body = {"model": os.environ["PHOENIX_MODEL"], "prompt": "Once upon a time", "max_tokens": WANTED, "ignore_eos": True}
headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ.get("API_KEY", "")}
request = urllib.request.Request(os.environ["PHOENIX_URL"] + "/v1/completions", json.dumps(body).encode(), headers)
with urllib.request.urlopen(request, timeout=120) as reply:
    written = json.load(reply)["usage"]["completion_tokens"]
print(f"{written} of {WANTED} tokens")
sys.exit(written != WANTED)
