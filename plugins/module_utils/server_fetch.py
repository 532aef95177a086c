# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches a model from the hub into the cache where vLLM looks for it, by the release's own Python.

    fetch.py MODEL REVISION FOLDER

An empty REVISION is the hub's default, an empty FOLDER the usual cache. What was fetched before goes on where it was
left. The token is in the environment. A failure is a traceback in the journal; whoever started it explains that.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

GIB = 1024**3
# Seconds between two lines.
EVERY = 10.0
# Other forms of the same weights, and other programs' formats.
OTHERS = ("original/*", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "*.mlmodel", "*.pt", "*.pth")


def without(names):
    """Return the patterns of the files that vLLM doesn't read of a model with these files."""
    if any(name.endswith(".safetensors") and "/" not in name for name in names):
        return [*OTHERS, "*.bin"]
    return [pattern for pattern in OTHERS if pattern not in ("*.pt", "*.pth")]


def size_of(folder):
    """Return how many bytes the files below a folder take on the disk."""
    found = 0
    for place, _folders, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found += os.lstat(os.path.join(place, name)).st_blocks * 512
    return found


def fetch(model, revision, folder, say):
    """Fetch it, and say how far that is."""
    from huggingface_hub import HfApi, constants, snapshot_download

    files = HfApi().model_info(model, revision=revision or None, files_metadata=True).siblings
    patterns = without([file.rfilename for file in files])
    ends = tuple(pattern[1:] for pattern in patterns if pattern.startswith("*"))
    total = sum(file.size or 0 for file in files if not file.rfilename.endswith(ends))
    blobs = os.path.join(folder or constants.HF_HUB_CACHE, "models--" + model.replace("/", "--"), "blobs")
    done = threading.Event()

    def watch():
        while not done.wait(EVERY):
            say(f"{min(size_of(blobs), total) / GIB:.1f} of {total / GIB:.1f} GiB of {model} are here")

    say(f"fetching {model}, {total / GIB:.1f} GiB")
    threading.Thread(target=watch, daemon=True).start()
    try:
        snapshot_download(model, revision=revision or None, cache_dir=folder or None, ignore_patterns=patterns)
    finally:
        done.set()
    say(f"{model} is here")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: fetch.py MODEL REVISION FOLDER")
    # What it says goes to the journal as it comes.
    sys.stdout.reconfigure(line_buffering=True)
    fetch(*sys.argv[1:], say=lambda text: sys.stdout.write(f"{text}\n"))
