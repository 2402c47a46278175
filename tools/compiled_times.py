# SPDX-License-Identifier: Apache-2.0
"""Ratio of the times of softkern.softmax and F.softmax in code compiled by inductor: docs/softmax.md.

    python tools/compiled_times.py

It uses two threads. The two functions take turns. The ratio is that of their best times, because other
processes can only make a time longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import softkern

Softmax = Callable[[Tensor, int], Tensor]


def alone(softmax: Softmax) -> Callable[..., Tensor]:
    return lambda x: softmax(x, -1)


def between(softmax: Softmax) -> Callable[..., Tensor]:
    return lambda x: softmax(x * 2 + 1, -1).relu()


def attention(softmax: Softmax) -> Callable[..., Tensor]:
    return lambda q, k, v: softmax(q @ k.transpose(-1, -2) / 8.0, -1) @ v


CASES: tuple[
    tuple[str, Callable[[Softmax], Callable[..., Tensor]], tuple[tuple[int, ...], ...], int], ...
] = (
    ("attention, 2x8x512x64", attention, ((2, 8, 512, 64),) * 3, 60),
    ("softmax(2x + 1).relu(), 4096x1000", between, ((4096, 1000),), 60),
    ("softmax, 4096x1000", alone, ((4096, 1000),), 60),
    ("softmax, 2048x32000", alone, ((2048, 32000),), 9),
    ("softmax, 65536x10", alone, ((65536, 10),), 60),
)


def seconds(f: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor, training: bool) -> float:
    with torch.set_grad_enabled(training):
        start = time.perf_counter()
        y = f(*inputs)
        if training:
            torch.autograd.grad(y, inputs, upstream)
        return time.perf_counter() - start


def ratio(
    make: Callable[[Softmax], Callable[..., Tensor]],
    shapes: tuple[tuple[int, ...], ...],
    turns: int,
    training: bool,
) -> float:
    torch._dynamo.reset()
    inputs = [torch.randn(shape, requires_grad=training) for shape in shapes]
    upstream = torch.randn_like(make(F.softmax)(*inputs))
    compiled = [torch.compile(make(f), fullgraph=True, dynamic=False) for f in (softkern.softmax, F.softmax)]
    times = [[seconds(f, inputs, upstream, training) for f in compiled] for _ in range(turns + 2)][2:]
    ours, torchs = (min(column) for column in zip(*times, strict=True))
    return ours / torchs


def main() -> None:
    torch.set_num_threads(2)
    print("| softkern's time by torch's | forward | training step |\n|---|---:|---:|")
    for name, make, shapes, turns in CASES:
        forward, training = (ratio(make, shapes, turns, training) for training in (False, True))
        print(f"| {name} | {forward:.1f} | {training:.1f} |", flush=True)


if __name__ == "__main__":
    main()
