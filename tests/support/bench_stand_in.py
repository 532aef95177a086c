# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for C(vllm bench serve), put before C(vllm_stand_in.py) in one program: the same options, result and bar.

It really asks the server, for some of the requests. How fast that was is in the file C(speed) of the model's folder
(tokens per second of one stream, 100 without it), 10 percent more where the server samples with FlashInfer. Another
file, C(client), changes it: C(absent) has no benchmark, C(half) is not answered on the way, C(slow-N) takes N seconds.
The server's log says what it samples with, as that of vLLM does.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request


def bench(words):
    def value(name):
        return words[words.index(name) + 1]

    def file(name, fallback):
        path = os.path.join(value("--tokenizer"), name)
        return open(path).read().strip() if os.path.exists(path) else fallback

    how = file("client", "")
    if how == "absent":
        sys.exit("vllm: error: argument subparser: invalid choice: 'bench' (choose from 'chat', 'complete', 'serve')")
    prompts, streams = int(value("--num-prompts")), int(value("--max-concurrency"))
    made = int(value("--random-output-len"))
    body = json.dumps({"model": value("--model"), "prompt": value("--seed"), "max_tokens": 1}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    url = f"{value('--base-url')}/v1/completions"
    for number in range(1, min(prompts, 4) + 1):
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as reply:
            assert json.load(reply)["choices"]
        sys.stderr.write(f"\r {number * 25}%|##  | {prompts * number // 4}/{prompts} [00:01<00:03, 1.00it/s]")
        time.sleep(float(how[len("slow-"):]) / 4 if how.startswith("slow-") else 0.05)
    show = ["systemctl", "show", "--property=Environment", "vllm_model_server"]
    unit = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    speed = float(file("speed", "100")) * (1.1 if "VLLM_USE_FLASHINFER_SAMPLER=1" in unit else 1)
    # No two runs are the same: by a percent, as the seed has it.
    speed *= 1 + int(value("--seed")) % 11 / 1000
    result = {"completed": prompts, "duration": 1.0, "total_input_tokens": 1, "total_output_tokens": prompts * made,
              "output_throughput": speed * streams, "total_token_throughput": 2 * speed * streams,
              "request_throughput": speed, "errors": []}  # fmt: skip
    for name, factor in (("ttft", 5), ("itl", 1), ("tpot", 1), ("e2el", 50)):
        for kind in ("median", "mean", "p99"):
            result[f"{kind}_{name}_ms"] = factor * 1000 / speed
    if how == "half":
        result.update(completed=prompts // 2, errors=["", "aiohttp.client_exceptions.ServerDisconnectedError"])
    with open(os.path.join(value("--result-dir"), value("--result-filename")), "w") as out:
        json.dump(result, out)


if sys.argv[1:3] == ["bench", "serve"]:
    bench(sys.argv[3:])
    sys.exit(0)
if os.environ.get("VLLM_USE_FLASHINFER_SAMPLER") == "1":
    print("INFO [topk_topp_sampler.py:124] Using FlashInfer for top-p & top-k sampling.", flush=True)
elif re.fullmatch("0", os.environ.get("VLLM_USE_FLASHINFER_SAMPLER", "")):
    print("FlashInfer top-p/top-k sampling disabled via VLLM_USE_FLASHINFER_SAMPLER=0.", flush=True)
