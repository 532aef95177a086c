# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args, server_plan, server_switch
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_switch import GIB, Gpu, Here

UNIT = """\
# Written by Ansible (phoenix.hypervisor.vllm_model_server).
[Unit]
Description=vLLM model server
StartLimitBurst=4
[Service]
Type=exec
User=vllm
# Caches.
Environment="HF_HOME=/var/cache/vllm/huggingface"
Environment="VLLM_CPU_KVCACHE_SPACE=1"
EnvironmentFile=/etc/vllm/secrets-d.env
Environment=PHOENIX_DIGEST=0123456789abcdef
ExecStart=/opt/vllm-releases/a/bin/vllm serve /models/m --config /etc/vllm/engine-d.yaml
ExecStopPost=-+/usr/bin/python3 -I guard.py ended FILE
Restart=on-failure
RestartSec=15
TimeoutStopSec=60
ProtectSystem=strict

[Install]
WantedBy=multi-user.target
"""
GPU_UNIT = UNIT.replace("ExecStart=", "ExecStartPre=-+/usr/bin/python3 -I /x/guard.py settle\nExecStart=")


def state(unit: str = UNIT, port: int = 8000, **arguments) -> dict:
    """A state with these arguments in its engine config."""
    config = engine_args.render({name.replace("_", "-"): str(value) for name, value in arguments.items()})
    return {"unit": unit, "config": config, "probe": {"host": "127.0.0.1", "port": port}}


def gpu_room(gpus, old, new, **variables):
    """Whether states that take these shares of the GPUs have room for each other."""
    unit = GPU_UNIT + "".join(f"Environment={name}={value}\n" for name, value in variables.items())
    here = Here(gpus=[Gpu(str(number), *gpu) for number, gpu in enumerate(gpus)], free=64 * GIB, used=3 * GIB,
                weights=GIB)  # fmt: skip
    return server_switch.room(state(GPU_UNIT, **old), state(unit, **new), here)


def test_the_unit_beside():
    text = server_switch.next_unit(UNIT, 40001)
    assert server_switch.port_of(text) == 40001 and server_switch.port_of(UNIT) == server_switch.port_of(None) == 0
    assert "serve /models/m --config /etc/vllm/engine-d.yaml --port 40001\n" in text
    # As the server, with its secrets, its sandbox and its last words; but it is neither started again nor at boot.
    for line in ("User=vllm", "EnvironmentFile=/etc/vllm/secrets-d.env", "ProtectSystem=strict", "TimeoutStopSec=60"):
        assert f"\n{line}\n" in text
    assert "ExecStopPost=" in text and server_plan.digest_in(text) == "0123456789abcdef"
    assert not [word for word in ("Restart", "[Install]", "WantedBy", "StartLimit", "# Caches") if word in text]
    assert text.count("ExecStart=") == 1


def test_the_unit_that_fetches():
    text = server_switch.fetch_unit(GPU_UNIT, "/r/bin/python /x/fetch.py a/b \"\" \"\"")
    assert [line for line in text.splitlines() if line.startswith("Exec")] == [
        'ExecStart=/r/bin/python /x/fetch.py a/b "" ""'
    ]
    assert "EnvironmentFile=/etc/vllm/secrets-d.env\n" in text and "Restart" not in text


def test_names_of_units():
    assert server_switch.other_name("vllm_model_server.service", "next") == "vllm_model_server-next.service"


def test_rules_send_new_connections_only():
    lines = server_switch.rules(8000, 40001).splitlines()
    begins = [line for line in lines if "tcp flags & (fin | syn | rst | ack) == syn" in line]
    # By address family: from outside, from others inside, from root inside.
    assert [re.search("(add|delete) @sent_(ip6?)", line).groups() for line in begins] == [
        (word, family) for family in ("ip", "ip6") for word in ("add", "add", "delete")
    ]
    assert [line for line in lines if line.endswith("tcp dport set 40001") and "tcp dport 8000" not in line] == []
    answers = [line.partition(" answers ")[2] for line in lines if line.startswith("add rule") and " answers " in line]
    assert answers[0] == "tcp sport 40001 ip daddr . tcp dport @sent_ip tcp sport set 8000" and len(answers) == 2
    # The kernel must not track connections for this.
    assert not re.search(r"\bct\b|nat\b", "\n".join(lines))


def test_rules_that_send_no_more_leave_those_that_went():
    one, other = server_switch.rules(8000, 40001), server_switch.rules(8000, 40001, new=False)
    assert " add @sent" not in other and other == one.replace(" add @sent", " delete @sent")
    assert other.count("flush table inet phoenix_model_server\n") == 1 and "flush set" not in other
    assert "delete table" in server_switch.no_rules()


@pytest.mark.parametrize(("host", "family", "none"), [("10.92.0.63", "ip", "ip6"), ("fd00::1", "ip6", "ip")])
def test_rules_for_one_address(host, family, none):
    text = server_switch.rules(8000, 1, host)
    asks = [line for line in text.splitlines() if "tcp dport 8000" in line]
    assert len(asks) == 5 and all(f" {family} daddr {host} tcp dport 8000 " in line for line in asks)
    assert f"{none} saddr" not in text


@pytest.mark.skipif(not shutil.which("nft"), reason="there is no nft here")
@pytest.mark.parametrize(
    "script",
    [server_switch.rules(), server_switch.rules(8000, 1), server_switch.rules(8000, 1, "fd00::1", new=False)],
)
def test_nft_understands_the_rules(script):
    done = subprocess.run(["nft", "--check", "-f", "-"], input=script, capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("only root may ask nft")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("host", "only"), [("127.0.0.1", ""), ("::1", ""), ("10.0.0.1", "10.0.0.1"), ("fd00::1", "fd00::1")]
)
def test_the_address_that_it_listens_on(host, only):
    assert server_switch.only_host({"host": host}) == only


def test_connections_of_a_port():
    table = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000   999        0 11
   1: 3F005C0A:1F40 01005C0A:A001 01 00000000:00000000 00:00000000 00000000   999        0 12
   2: 3F005C0A:1F40 01005C0A:A002 06 00000000:00000000 00:00000000 00000000     0        0 0
   3: 0100007F:A003 0100007F:1F40 01 00000000:00000000 00:00000000 00000000     0        0 13
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:1F40 00000000000000000000000000000000:0000 0A 00000000:00000000
"""
    assert server_switch.sockets(table, 8000) == 1
    assert server_switch.sockets(table, 8000, listening=True) == 2
    assert server_switch.sockets(table, 8001, listening=True) == server_switch.sockets("", 8000) == 0


def test_what_nvidia_smi_says():
    assert server_switch.gpus("0, 32607, 20582\n1, 32607, 2000\n") == [Gpu("0", 32607, 20582), Gpu("1", 32607, 2000)]
    assert server_switch.gpus("0, [N/A], [N/A]\n") == server_switch.gpus("No devices were found\n") == []
    assert server_switch.gpus("") == []


@pytest.mark.parametrize(
    "model", ["/models/m", "org/name", "/models/a b", 'say "x"', "100%", "$HOME", "back\\slash", "a --config b"]
)
def test_the_model_is_read_back_from_the_unit(model):
    words = ["/r/bin/vllm", "serve", model, "--config", "/etc/vllm/e.yaml"]
    assert server_switch.model_in("ExecStart=" + " ".join(map(engine_args.unit_word, words)) + "\n") == model


def test_the_model_of_another_unit_is_not_known():
    assert server_switch.model_in("[Service]\nExecStart=/bin/true\n") == ""


def test_variables_of_a_unit():
    lines = 'Environment=A=1\nEnvironment="B=x \\"y\\" 100%%"\nEnvironment=A=2\nEnvironment="C=\\x40"\n'
    assert server_switch.environment(lines) == {"A": "2", "B": 'x "y" 100%'}


def test_arguments_with_one_value():
    text = engine_args.render({"gpu-memory-utilization": "0.45", "served-model-name": ["a", "b"], "revision": "v 1"})
    told = server_switch.settings(text)
    assert (told["gpu-memory-utilization"], told["revision"]) == ("0.45", "v 1")


HALF, MOST = {"gpu_memory_utilization": 0.45}, {"gpu_memory_utilization": 0.9}
# MiB: 32 GiB in all, half of it free, and with the usual share taken.
HALF_FREE, LITTLE_FREE = (32768, 18000), (32768, 2969)


@pytest.mark.parametrize(
    ("gpus", "old", "new", "overlap", "reason"),
    [
        ([HALF_FREE], HALF, HALF, True, "GPU 0 has 17.6 of 32.0 GiB free, and the new one wants 15.4"),
        ([LITTLE_FREE], MOST, MOST, False, "GPU 0 has 2.9 of 32.0 GiB free, and the new one wants 29.8"),
        # What vLLM takes when nothing is said.
        ([LITTLE_FREE], {}, {}, False, "GPU 0 has 2.9 of 32.0 GiB free, and the new one wants 30.4"),
        # There is room for both, but not for the new one twice: 0.3 of it runs, 0.6 comes.
        ([(32768, 22900)], {"gpu_memory_utilization": 0.3}, {"gpu_memory_utilization": 0.6}, False,
         "GPU 0 has 32.0 GiB free without the old one, and the new one wants 20.2, twice for a moment"),
        # What another container has of the GPU doesn't become free.
        ([(32768, 15700)], {"gpu_memory_utilization": 0.1}, HALF, False,
         "GPU 0 has 15.3 of 32.0 GiB free, and the new one wants 15.4"),
        ([(32768, 16400)], {"gpu_memory_utilization": 0.1}, HALF, False,
         "GPU 0 has 19.2 GiB free without the old one, and the new one wants 15.4, twice for a moment"),
        # One GPU of two is used, the other one may be full; with two, both count.
        ([HALF_FREE, LITTLE_FREE], HALF, HALF, True, "GPU 0 has 17.6 of 32.0 GiB free, and the new one wants 15.4"),
        ([HALF_FREE, LITTLE_FREE], HALF, {**HALF, "tensor_parallel_size": 2}, False,
         "GPU 1 has 2.9 of 32.0 GiB free, and the new one wants 15.4"),
        ([HALF_FREE], HALF, {**HALF, "tensor_parallel_size": 2}, False, "it wants 2 GPUs, and nvidia-smi tells of 1"),
        ([], HALF, HALF, False, "nvidia-smi does not tell how much memory the GPU has"),
        ([HALF_FREE], HALF, {**HALF, "kv_cache_memory_bytes": 9}, False,
         "kv_cache_memory_bytes leaves open how much of the GPU it takes"),
        ([HALF_FREE], HALF, {"gpu_memory_utilization": "much"}, False, "how much of the GPU it takes is not known"),
        ([HALF_FREE], HALF, {**HALF, "data_parallel_rpc_port": 9}, False,
         "two servers can't have the same data-parallel-rpc-port"),
        ([HALF_FREE], HALF, {**HALF, "uds": "/run/x"}, False, "two servers can't have the same uds"),
    ],
)  # fmt: skip
def test_room_on_gpus(gpus, old, new, overlap, reason):
    assert gpu_room(gpus, old, new)[:2] == (overlap, reason)


def test_a_choice_of_gpus_has_all_of_them_looked_at():
    assert not gpu_room([HALF_FREE, LITTLE_FREE], HALF, HALF, CUDA_VISIBLE_DEVICES="1").overlap


@pytest.mark.parametrize(
    ("free", "used", "weights", "cache", "overlap", "reason"),
    [
        (6.0, 2.6, 0.0, "1", True, "6.0 GiB of memory are free, and the new one may want 2.6"),
        # The new one is larger.
        (6.0, 2.6, 1.0, "1", True, "6.0 GiB of memory are free, and the new one may want 3.5"),
        (6.0, 2.6, 4.0, "1", False, "6.0 GiB of the container's memory are free, and the new one may want 6.5"),
        (5.0, 1.0, 1.0, "1", False, "6.0 GiB of the container's memory are free without the old one, and the new one "
         "may want 3.5, twice for a moment"),
        (2.9, 2.6, 0.0, "1", False, "2.9 GiB of the container's memory are free, and the new one may want 2.6"),
        (60.0, 2.6, None, "1", False, "how much memory the new one takes is not known, its model is not here yet"),
        (60.0, 0.0, 0.0, "1", False, "how much memory the old one has is not known"),
        (60.0, 2.6, 0.0, "0", False,
         "how much memory the new one takes is not known (VLLM_CPU_KVCACHE_SPACE is not set)"),
        (60.0, 2.6, 0.0, "", False,
         "how much memory the new one takes is not known (VLLM_CPU_KVCACHE_SPACE is not set)"),
    ],
)  # fmt: skip
def test_room_in_memory(free, used, weights, cache, overlap, reason):
    unit = UNIT.replace("KVCACHE_SPACE=1", f"KVCACHE_SPACE={cache}")
    here = Here([], int(free * GIB), int(used * GIB), None if weights is None else int(weights * GIB))
    room = server_switch.room(state(), state(unit), here)
    assert (room.overlap, room.reason) == (overlap, reason)


def test_a_server_for_a_gpu_needs_memory_too():
    here = Here([Gpu("0", *HALF_FREE)], 3 * GIB, 2 * GIB, GIB)
    room = server_switch.room(state(GPU_UNIT, **HALF), state(GPU_UNIT, **HALF), here)
    assert not room.overlap and "3.0 GiB of the container's memory are free" in room.reason


def test_no_room_whatever_the_memory():
    here = Here([], 60 * GIB, GIB, 0)
    assert server_switch.room(state(), state(), here).overlap
    assert server_switch.room(state(port=8001), state(), here) == (False, "its port changes from 8001 to 8000", False)
    there = Here([], 60 * GIB, GIB, 0, "the container has no nft (Debian's package nftables)")
    assert server_switch.room(state(), state(), there).reason == there.obstacle


@pytest.mark.parametrize(
    ("model", "config", "variables", "name"),
    [
        ("org/name", {}, {}, "org/name"),
        ("gpt2", {}, {}, "gpt2"),
        ("/models/m", {}, {}, ""),
        ("./here", {}, {}, ""),
        ("s3://bucket/m", {}, {}, ""),
        ("org/name:Q4_K_M", {}, {}, ""),
        ("org/name/file.gguf", {}, {}, ""),
        ("org/name", {"load-format": "dummy"}, {}, ""),
        ("org/name", {"load-format": "safetensors"}, {}, "org/name"),
        ("org/name", {}, {"HF_HUB_OFFLINE": "1"}, ""),
        ("org/name", {}, {"TRANSFORMERS_OFFLINE": "True"}, ""),
        ("org/name", {}, {"HF_HUB_OFFLINE": "0"}, "org/name"),
        ("org/name", {}, {"VLLM_USE_MODELSCOPE": "true"}, ""),
    ],
)
def test_what_is_fetched_from_the_hub(model, config, variables, name):
    assert server_switch.repository(model, engine_args.render(config), variables) == name


def test_where_the_hub_s_models_are():
    variables = {"HOME": "/h"}
    assert server_switch.hub_folder("o/n", "", variables) == "/h/.cache/huggingface/hub/models--o--n"
    variables["HF_HOME"] = "/f"
    assert server_switch.hub_folder("o/n", "", variables) == "/f/hub/models--o--n"
    variables["HF_HUB_CACHE"] = "/c"
    assert server_switch.hub_folder("gpt2", "", variables) == "/c/models--gpt2"
    assert server_switch.hub_folder("o/n", 'download-dir: "/d"\n', variables) == "/d/models--o--n"


INDEX = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})


@pytest.mark.parametrize(
    ("names", "index", "whole"),
    [
        (["config.json", "model.safetensors"], "", True),
        (["config.json", "pytorch_model.bin"], "", True),
        (["config.json"], "", False),
        (["model.safetensors"], "", False),
        ([], "", False),
        (["config.json", "1.safetensors"], INDEX, False),
        (["config.json", "1.safetensors", "2.safetensors"], INDEX, True),
        (["config.json", "1.safetensors"], "damaged", False),
        (["config.json", "1.safetensors"], "[]", False),
    ],
)
def test_a_model_that_is_all_there(names, index, whole):
    assert server_switch.is_fetched(names, index) is whole


def test_weights_in_two_forms_count_once():
    assert server_switch.weights({"1.safetensors": 5, "2.safetensors": 6, "model.bin": 11, "config.json": 1}) == 11
    assert server_switch.weights({"model.bin": 7, "tokenizer.json": 3}) == 7
    assert server_switch.weights({}) == 0
