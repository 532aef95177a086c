# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for vLLM where a test is about what is around it: the same command line, the same requests, in a second.

How it behaves is the name of the model's folder (C(dies), C(hangs), C(slow…), else it answers), and so is the folder
that it was installed in: a file C(broken) beside it has it die. C(slow-N) loads for N seconds, C(slow) for twenty,
C(loads…) for three; C(alone…) finds no room beside another server, and the prompt C(Slowly) takes four seconds. Like
vLLM it has its port from its start on, and listens there once it is loaded.

With C(ssl-certfile) it speaks TLS; with C(enable-ssl-refresh) it reads its certificate anew when vLLM would: it
watches the file as it was when it began, so it notices what is written into it, the first rename over it and no further
one, and a link that is switched not at all.

Files in the model's folder change it while it runs: C(deadlocked) has it answer no completion, but all else; C(busy)
the same, while its counters of tokens move; C(refuses) has it refuse a completion.
"""

import contextlib
import ctypes
import http.server
import json
import os
import signal
import ssl
import sys
import threading
import time

assert sys.argv[1] == "serve" and sys.argv[3] == "--config", sys.argv
release = os.path.realpath(__file__).split("/")[3]
model, behaviour = sys.argv[2], os.path.basename(sys.argv[2])
with open(sys.argv[4]) as config:
    lines = dict(line.rstrip("\n").split(": ", 1) for line in config if ": " in line)
if os.path.exists(os.path.join(os.path.dirname(__file__), "broken")):
    behaviour = "dies"


def say(text):
    print("(EngineCore pid=9) INFO 11-21 05:06:44 [core.py:402] " + text, flush=True)


# What is on the command line wins.
port = sys.argv[6] if sys.argv[5:6] == ["--port"] else lines.get("port", 8000)
server = http.server.ThreadingHTTPServer(("0.0.0.0", int(port)), None, bind_and_activate=False)
server.server_bind()
say("serving " + model)
if behaviour == "dies":
    say("Traceback (most recent call last):")
    say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 31.36 GiB")
    sys.exit(1)
if behaviour.startswith("alone") and "--port" in sys.argv:
    say("ValueError: Free memory on device (2.9/31.4 GiB) on startup is less than desired GPU memory utilization")
    sys.exit(1)
if behaviour == "hangs":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        say("Loading safetensors checkpoint shards: 10% Completed")
        time.sleep(1)
if behaviour.startswith("slow"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    shards = int(behaviour[len("slow-"):] or 20)
    for shard in range(1, shards + 1):
        say(f"Loading safetensors checkpoint shards: {shard * 100 // shards}% Completed")
        time.sleep(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
if behaviour.startswith("loads"):
    time.sleep(3)
for folder in ("HF_HOME", "VLLM_CACHE_ROOT", "FLASHINFER_WORKSPACE_BASE"):
    os.makedirs(os.environ[folder], exist_ok=True)
    with open(os.environ[folder] + "/written", "w"):
        pass


def has(name):
    return os.path.exists(os.path.join(model, name))


class Answer(http.server.BaseHTTPRequestHandler):
    tokens = 0

    def do_GET(self):
        if self.path == "/metrics":
            Answer.tokens += has("busy")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'vllm:generation_tokens_total{model_name="m"} %d.0\n' % Answer.tokens)
            return
        self.reply(200, {"data": [{"id": model}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = os.environ.get("VLLM_API_KEY")
        if key and self.headers["Authorization"] != "Bearer " + key:
            return self.reply(401, {"error": "Unauthorized"})
        if asked.get("prompt") == "Slowly":
            time.sleep(4)
        while has("deadlocked") or has("busy"):
            time.sleep(0.1)
        if has("refuses"):
            return self.reply(404, {"error": "The model does not exist."})
        text = f"{release} {behaviour} {lines.get('max-num-seqs')}"
        self.reply(200, {"choices": [{"text": text, "message": {"role": "assistant", "content": text}}]})

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def watch(context, certificate, key):
    """Read the certificate anew as vLLM does (watchfiles, which asks inotify): 50 ms after the file has changed."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init()
    # IN_MODIFY, IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF
    for path in sorted({certificate, key}):
        assert libc.inotify_add_watch(descriptor, path.encode(), 0x2 | 0x4 | 0x400 | 0x800) > 0
    while os.read(descriptor, 4096):
        time.sleep(0.05)
        try:
            # In vLLM one thread does this and begins with connections.
            with Server.lock:
                context.load_cert_chain(certificate, key)
            say("Reloading SSL certificate chain")
        except OSError as error:
            say(f"SSLCertRefresher failed taking action on file change. Error: {error}")


class Server(http.server.ThreadingHTTPServer):
    lock = threading.Lock()
    context = None

    def finish_request(self, request, client_address):
        # In the thread of the request: a client that says nothing holds up nobody else.
        with self.lock:
            request = self.context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        with contextlib.closing(request), contextlib.suppress(OSError):
            request.do_handshake()
            super().finish_request(request, client_address)


files = [lines.get(name, "").strip('"') for name in ("ssl-certfile", "ssl-keyfile")]
if files[0]:
    server.__class__ = Server
    Server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    Server.context.load_cert_chain(*files)
    if lines.get("enable-ssl-refresh") == "true":
        threading.Thread(target=watch, args=(Server.context, *files), daemon=True).start()
server.RequestHandlerClass, server.request_queue_size = Answer, 128
server.server_activate()
server.serve_forever()
