# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checks of a GPU do. One process of it works on one GPU.

It is run by the Python that has PyTorch, the live release's:

    /opt/vllm/bin/python -I -c "<this file>" '{"gpu": 0, "checks": ["torch", "memory"], …}'

so it needs PyTorch and the standard library only. It says what it begins and what it found, a line each: C(phoenix-gpu)
and JSON. It judges nothing; L(gpu_checks) does. L(gpu_runner) starts it, and ends it when it hangs.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
import time

MARK = "phoenix-gpu"
MIB, GIB = 1 << 20, 1 << 30
BLOCK = 256 * MIB
# Of a matrix product as many rows and columns are computed again, in double precision.
SAMPLES = 64
ROUNDS = 10


def say(**what):
    """Print one line."""
    sys.stdout.write(f"{MARK} {json.dumps(what)}\n")
    sys.stdout.flush()


def decode_e4m3(code):
    """Return the number that an 8-bit code of the format E4M3 (no infinities) means.

    One bit of sign, four of exponent with bias 7, three of mantissa; 0x7f and 0xff are no numbers.
    """
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 0xF, code & 0x7
    if exponent == 0xF and mantissa == 0x7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


class Checks:
    """The checks, a method each, in terms of one GPU.

    Args:
        wish: what is asked for.
    """

    def __init__(self, wish):
        self.wish = wish
        self.torch = None
        self.device = None

    def do(self, name):
        """Do a check and say what came of it."""
        say(check=name, begin=True)
        began = time.monotonic()
        try:
            found = getattr(self, name)()
        except BaseException as error:  # whatever it is, it is the check's result
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
        say(check=name, seconds=round(time.monotonic() - began, 2), **found)
        return "error" not in found

    # -- one GPU ------------------------------------------------------------------------------------------------------

    def torch_(self):
        """Import PyTorch, and compute something small."""
        if self.wish.get("visible"):
            os.environ["CUDA_VISIBLE_DEVICES"] = self.wish["visible"]
        import torch

        self.torch = torch
        if not torch.cuda.is_available():
            return {"error": f"PyTorch {torch.__version__} sees no GPU", "torch": torch.__version__,
                    "cuda": torch.version.cuda or ""}  # fmt: skip
        self.device = torch.device("cuda", self.wish["gpu"])
        torch.cuda.set_device(self.device)
        capability = torch.cuda.get_device_capability(self.device)
        total = float(torch.arange(1000, device=self.device, dtype=torch.float32).sum())
        return {
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "",
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "seen": torch.cuda.device_count(),
            "name": torch.cuda.get_device_name(self.device),
            "capability": f"{capability[0]}.{capability[1]}",
            "architectures": torch.cuda.get_arch_list(),
            "sum": total,
        }

    def memory(self):
        """Take memory, write to all of it, read all of it again, give it back."""
        torch = self.torch
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info(self.device)
        wanted = min(int(free * self.wish["memory_fraction"]), free - self.wish["memory_reserve"] * MIB)
        count = max(wanted, 0) // BLOCK
        words, blocks, wrong = BLOCK // 8, [], 0
        began = time.monotonic()
        for number in range(count):
            # Numbers that no other block has, so that two of them at one place would be seen.
            blocks.append(torch.full((words,), number * 0x0101010101 + 1, dtype=torch.int64, device=self.device))
        torch.cuda.synchronize()
        written = time.monotonic() - began
        for number, block in enumerate(blocks):
            low, high = torch.aminmax(block)
            wrong += not int(low) == int(high) == number * 0x0101010101 + 1
        most_in_use = total - torch.cuda.mem_get_info(self.device)[0]
        blocks.clear()
        if count:
            del block
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        again, _total = torch.cuda.mem_get_info(self.device)
        return {
            "free_mib": free // MIB,
            "total_mib": total // MIB,
            "taken_mib": count * BLOCK // MIB,
            "in_use_mib": most_in_use // MIB,
            "free_after_mib": again // MIB,
            "wrong_blocks": wrong,
            "write_gb_per_s": round(count * BLOCK / written / 1e9, 1) if count else 0.0,
        }

    def side(self, bytes_each):
        """Return the side of square matrices that have room: three of them with a tenth to spare."""
        free = self.torch.cuda.mem_get_info(self.device)[0]
        for side in (8192, 4096, 2048):
            if 3.5 * bytes_each * side * side < 0.9 * free:
                return side
        return 1024

    def compare(self, left, right, product):
        """Return the largest difference between a product and its reference, by the largest number in that.

        Rows and columns that are taken at random are computed again in double precision.
        """
        torch = self.torch
        rows, columns = (torch.randperm(product.shape[place], device=self.device)[:SAMPLES] for place in (0, 1))
        reference = left[rows].double() @ right[:, columns].double()
        seen = product[rows][:, columns].double()
        error = (seen - reference).abs().max() / reference.abs().max()
        return float(error)

    def speed(self, multiply, side):
        """Return how many TFLOP/s a product of square matrices has."""
        torch = self.torch
        start, end = (torch.cuda.Event(enable_timing=True) for _which in range(2))
        for _round in range(3):
            multiply()
        start.record()
        for _round in range(ROUNDS):
            multiply()
        end.record()
        torch.cuda.synchronize()
        return round(2 * side**3 * ROUNDS / (start.elapsed_time(end) / 1000) / 1e12, 1)

    def matrix(self):
        """Multiply matrices of bfloat16."""
        torch = self.torch
        side = self.side(2)
        torch.manual_seed(5)
        left, right = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _which in range(2))
        error = self.compare(left, right, left @ right)
        return {"side": side, "error_relative": error, "tflops": self.speed(lambda: left @ right, side)}

    def fp8(self):
        """Convert all numbers of FP8 (E4M3), and multiply matrices of it."""
        torch = self.torch
        kind = torch.float8_e4m3fn
        codes = torch.arange(256, device=self.device, dtype=torch.uint8)
        numbers = codes.view(kind).to(torch.float32)
        back = numbers.to(kind).view(torch.uint8).tolist()
        wrong = 0
        for code, number in enumerate(numbers.tolist()):
            expected = decode_e4m3(code)
            same = number == expected or (math.isnan(number) and math.isnan(expected))
            wrong += not same or (back[code] != code and not math.isnan(expected))
        side = self.side(6)
        torch.manual_seed(5)
        left = torch.randn(side, side, device=self.device, dtype=torch.bfloat16).to(kind)
        # The second one is stored by columns, as the GPU wants it.
        right = torch.randn(side, side, device=self.device, dtype=torch.bfloat16).to(kind).t()
        scales = [torch.tensor(scale, device=self.device, dtype=torch.float32) for scale in (0.5, 2.0)]

        def multiply():
            return torch._scaled_mm(left, right, scales[0], scales[1], out_dtype=torch.bfloat16)

        error = self.compare(left.float(), right.float(), multiply())
        return {"wrong_codes": wrong, "side": side, "error_relative": error, "tflops": self.speed(multiply, side)}

    # -- all GPUs -----------------------------------------------------------------------------------------------------

    def all_reduce(self):
        """Add up over all GPUs with NCCL."""
        torch, wish = self.torch, self.wish
        from torch import distributed

        world, rank = wish["world"], wish["rank"]
        store = distributed.FileStore(wish["store"], world)
        limit = datetime.timedelta(seconds=wish["seconds"])
        distributed.init_process_group("nccl", store=store, rank=rank, world_size=world, timeout=limit)
        wrong, speeds = [], {}
        free = torch.cuda.mem_get_info(self.device)[0]
        for size in (1 << 10, MIB, 16 * MIB, 256 * MIB):
            if size * 4 > free:
                break
            count = size // 4
            # Whole numbers that are exact in float32, another one at each place.
            place = torch.arange(count, device=self.device, dtype=torch.int64) % 1000
            data = (place + rank).float()
            distributed.all_reduce(data)
            expected = (place * world + world * (world - 1) // 2).float()
            if not torch.equal(data, expected):
                wrong.append(size)
            torch.cuda.synchronize()
            began = time.monotonic()
            for _round in range(ROUNDS):
                distributed.all_reduce(data)
            torch.cuda.synchronize()
            each = (time.monotonic() - began) / ROUNDS
            speeds[str(size)] = round(2 * (world - 1) / world * size / each / 1e9, 2)
        distributed.destroy_process_group()
        return {"world": world, "wrong_sizes": wrong, "bus_gb_per_s": speeds}


def main():
    """Do what is asked for, in its order."""
    wish = json.loads(sys.argv[1])
    checks = Checks(wish)
    # Without PyTorch there is nothing else to be done.
    if checks.do("torch_"):
        for name in wish["checks"]:
            checks.do(name)


if __name__ == "__main__":
    main()
