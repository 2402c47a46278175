# SPDX-License-Identifier: Apache-2.0
"""Hashes of the bits that a backend computes, to be compared before and after a change of the code.

A line for each op, element type and way (the name that the kernel gives it): how many tensors were computed,
and a hash of their bits. All NaNs count as one, since their sign and payload are the hardware's. Equal lines
mean equal bits. torch makes the inputs: another machine's lines may differ for that reason alone.

    python tools/bits.py --backend avx2 > before.txt
    TRITON_INTERPRET=1 python tools/bits.py --backend triton --quick

The CUDA kernels without a GPU, in a build that emulates them (SOFTKERN_CUDA=emulate, see `make emulate`):

    PYTHONPATH=build/emulated/lib python -P tools/bits.py --backend cuda
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import softkern
from softkern import _C

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Rows of few classes, of some (each in whole vectors of 16 bytes and not), of many, of more than a block or a
# cluster of a GPU keeps; rows whose classes lie apart.
QUICK = ((4, 10), (3, 130), (2, 7, 3))
SOME = ((7, 1), (9, 10), (18, 32), (20, 45), (2, 1000), (2, 1025), (3, 7, 5), (2, 40, 33))
LONG = ((3, 128), (2, 509), (17, 250), (2, 4096), (2, 5001), (1, 17001), (1, 40000), (2, 70001), (1, 131200))
APART = ((1, 300, 34), (1, 2500, 9), (2, 4500, 20))
INF = math.inf


class Hashes:
    """One for each op, element type and way."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str, str], Any] = {}
        self.count: dict[tuple[str, str, str], int] = {}

    def add(self, op: str, x: Tensor, *results: Tensor) -> None:
        key = (op, str(x.dtype).removeprefix("torch."), _C.last_path())
        hash_ = self.of.setdefault(key, hashlib.sha256())
        for result in results:
            one_nan = torch.where(result.isnan(), torch.full_like(result, math.nan), result).contiguous()
            hash_.update(one_nan.reshape(-1).view(torch.uint8).numpy().tobytes())
            self.count[key] = self.count.get(key, 0) + 1

    def print(self) -> None:
        whole = hashlib.sha256()
        for key in sorted(self.of):
            op, dtype, way = key
            text = f"{op:31} {dtype:9} {way:22} {self.count[key]:4} {self.of[key].hexdigest()[:16]}"
            whole.update(text.encode())
            print(text)
        print(f"all: {whole.hexdigest()[:16]}")


def logits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Each row in one of eight ways that have their own roundings, by its number and the seed's."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    rows = x.movedim(1, -1).reshape(-1, shape[1])
    for i, row in enumerate(rows):
        way = (i + seed) % 8
        if way == 1:
            row += 1e4 if dtype != torch.float16 else 1000
        elif way == 2:
            row[: shape[1] // 2] = -INF
        elif way == 3:
            row[seed % shape[1]] = 40
        elif way == 4:
            row *= 100
        elif way == 5:
            row.round_()
        elif way == 6 and shape[1] > 2:
            row[1] = (math.nan, INF, 0.0)[seed % 3]
            row[2] = -INF
        elif way == 7:
            row -= 1500
    return rows.reshape(*shape[:1], *shape[2:], shape[1]).movedim(-1, 1).contiguous().to(dtype)


def targets(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Class indices and probabilities, with each option and with all."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    index.view(-1)[0] = seed % shape[1]
    some = index.clone()
    some.view(-1)[1::4] = -100
    probability = torch.rand(shape, generator=generator, dtype=torch.float64)
    probability = (probability / probability.sum(1, keepdim=True)).to(dtype)
    weight = (torch.rand(shape[1], generator=generator) + 0.5).to(dtype)
    yield some, {}
    yield index.int(), {"weight": weight}
    yield index, {"label_smoothing": 0.1}
    yield some, {"label_smoothing": 0.1, "weight": weight}
    yield probability, {}
    yield probability, {"label_smoothing": 0.1, "weight": weight}


def softmaxes(x: Tensor, dim: int, seed: int, hashes: Hashes) -> None:
    generator = torch.Generator().manual_seed(seed)
    for op in ("softmax", "log_softmax"):
        leaf = x.detach().requires_grad_()
        y = getattr(softkern, op)(leaf, dim)
        hashes.add(op, x, y.detach())
        grad = torch.randn(y.shape, generator=generator).to(x.dtype)
        hashes.add(f"{op}_backward", x, *torch.autograd.grad(y, leaf, grad))


def cross_entropies(x: Tensor, target: Tensor, options: dict[str, Any], seed: int, hashes: Hashes) -> None:
    generator = torch.Generator().manual_seed(seed)
    hashes.add("cross_entropy", x, softkern.cross_entropy(x, target, reduction="none", **options))
    for reduction in ("none", ("mean", "sum")[seed % 2]):
        for in_place in (False, True):
            leaf = x.detach().requires_grad_()
            own = leaf * 1
            loss = softkern.cross_entropy(
                own, target, reduction=reduction, inplace_backward=in_place, **options
            )
            way = " in place" if in_place else ""
            hashes.add(f"cross_entropy{way}", x, loss.detach())
            one = reduction != "none"
            grad = torch.ones_like(loss) if one else torch.randn(loss.shape, generator=generator).to(x.dtype)
            (dx,) = torch.autograd.grad(loss, leaf, grad)
            hashes.add(f"cross_entropy_backward{way}", x, dx)


def compute(quick: bool) -> Hashes:
    hashes = Hashes()
    for dtype in DTYPES:
        for seed, shape in enumerate(QUICK if quick else QUICK + SOME + LONG + APART):
            x = logits(shape, dtype, seed)
            softmaxes(x, 1, seed, hashes)
            if len(shape) == 2 and math.prod(shape) < 10000:
                softmaxes(x.t().contiguous(), 0, seed, hashes)
            for number, (target, options) in enumerate(targets(shape, dtype, seed)):
                if math.prod(shape) < 100000 or (number + seed) % 3 == 0:
                    cross_entropies(x, target, options, seed + number, hashes)
                if len(shape) == 2 and number == seed % 6:  # classes apart, rows side by side
                    cross_entropies(x.t().contiguous().t(), target, options, seed, hashes)
    return hashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", required=True, help="as softkern.use_backend takes it")
    parser.add_argument("--quick", action="store_true", help="a few rows, for Triton's interpreter")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    _C.set_patience(math.inf)  # long rows are shared by threads, whatever else the machine does
    with softkern.use_backend(arguments.backend):
        hashes = compute(arguments.quick)
        if arguments.backend == "cuda" and not arguments.quick:
            # The emulator plays a device without clusters.
            os.environ["SIMT_CLUSTERS"] = "0"
            for seed, dtype in enumerate(DTYPES):
                for shape in LONG[-4:-1]:
                    x = logits(shape, dtype, seed)
                    softmaxes(x, 1, seed, hashes)
                    target, options = list(targets(shape, dtype, seed))[(seed + shape[1]) % 6]
                    cross_entropies(x, target, options, seed, hashes)
    hashes.print()


if __name__ == "__main__":
    main()
