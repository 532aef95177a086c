# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import fnmatch
import sys
import time
from types import SimpleNamespace

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_failures, server_fetch


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub with these files. Returns what it was asked for."""
    asked = {}

    def make(sizes: dict[str, int], failure: Exception | None = None) -> dict:
        class HfApi:
            def model_info(self, model, revision, files_metadata):
                asked.update(model=model, revision=revision)
                if failure:
                    raise failure
                return SimpleNamespace(
                    siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
                )

        def download(model, revision, cache_dir, ignore_patterns):
            asked.update(folder=cache_dir, files=[
                name for name in sizes if not any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns)
            ])  # fmt: skip
            blobs = tmp_path / "models--o--n" / "blobs"
            blobs.mkdir(parents=True)
            (blobs / "x").write_bytes(b"x" * 8192)
            time.sleep(0.1)

        module = SimpleNamespace(
            HfApi=HfApi, snapshot_download=download, constants=SimpleNamespace(HF_HUB_CACHE=str(tmp_path))
        )
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        return asked

    return make


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (
            ["config.json", "tokenizer.model", "model.safetensors", "pytorch_model.bin", "x.gguf", "original/a.pth"],
            ["config.json", "tokenizer.model", "model.safetensors"],
        ),
        (["config.json", "pytorch_model.bin", "tf_model.h5"], ["config.json", "pytorch_model.bin"]),
        (["config.json", "model.pt"], ["config.json", "model.pt"]),
        # Safetensors of something else don't stand for the model's weights.
        (["config.json", "model.bin", "adapter/a.safetensors"], ["config.json", "model.bin", "adapter/a.safetensors"]),
    ],
)
def test_the_files_that_vllm_reads(hub, names, wanted):
    asked = hub(dict.fromkeys(names, 1))
    server_fetch.fetch("o/n", "", "", say=lambda text: None)
    assert asked["files"] == wanted
    assert (asked["revision"], asked["folder"]) == (None, None)


def test_it_says_how_far_it_is(hub, monkeypatch):
    monkeypatch.setattr(server_fetch, "EVERY", 0.03)
    asked, said = hub({"model.safetensors": 3 * 1024**3, "model.bin": 9 * 1024**3}), []
    server_fetch.fetch("o/n", "v1", "", said.append)
    assert asked["revision"] == "v1"
    assert (said[0], said[-1]) == ("fetching o/n, 3.0 GiB", "o/n is here")
    assert set(said[1:-1]) == {"0.0 of 3.0 GiB of o/n are here"}


def test_a_failure_is_its_own(hub):
    class GatedRepoError(Exception):
        pass

    hub({}, GatedRepoError("401 Client Error. Access to model o/n is restricted."))
    with pytest.raises(GatedRepoError):
        server_fetch.fetch("o/n", "", "", say=lambda text: None)


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url x.", "gated model"),
        ("huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found for url: x",
         "model not found"),
        ("OSError: [Errno 28] No space left on device", "disk full"),
        ("httpx.ConnectError: [Errno -3] Temporary failure in name resolution", "hub not reached"),
        ("requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries "
         "exceeded with url: /api/models/o/n (Caused by NewConnectionError)", "hub not reached"),
        ("huggingface_hub.errors.RevisionNotFoundError: 404 Client Error. Revision Not Found for url: x",
         "model not found"),
    ],
)  # fmt: skip
def test_why_a_model_could_not_be_fetched_is_known(line, failure):
    assert server_failures.known(["Traceback (most recent call last):", line]).name == failure
