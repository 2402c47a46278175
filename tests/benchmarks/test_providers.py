# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' peers compute the op that is timed.

Each is checked in its own process, because several frameworks in one process disturb each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product

import benchmark_peers
import pytest
import torch
from benchmark_peers import LAYOUTS, PROVIDERS, cells, complaints
from isas import ISAS

from benchmarks import problems, providers
from benchmarks.answers import answers
from benchmarks.cells import Cell
from benchmarks.ops import all_cells
from benchmarks.providers.base import PEER_PASSES
from benchmarks.providers.cuda_peer import CudaPeer
from benchmarks.providers.torch_family import SoftkernBackend

ALL = set(product(LAYOUTS, PEER_PASSES))
LOSS = set(product(("cross_entropy",), PEER_PASSES))
SOFTMAX = set(product(("softmax",), PEER_PASSES))
DTYPES = {"float32", "bfloat16", "float16"}
# What a peer has to take part in: (op, pass), dtypes, options of cross_entropy.
PART = {
    "numpy": (ALL, {"float32", "float64"}, {""}),
    "jax": (ALL, DTYPES, {"", "label_smoothing", "probabilities", "none"}),
    "tensorflow": (ALL - {("cross_entropy", "no-grad")}, DTYPES, {"", "probabilities"}),
    "onnxruntime": (set(product(LAYOUTS, {"no-grad"})), {"float32"}, {""}),
    "liger": (SOFTMAX | LOSS, DTYPES, {""}),
    "quack": (SOFTMAX | LOSS, DTYPES, {""}),
    "flash-attention": (LOSS, DTYPES, {""}),
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_peer_computes_the_answers(name):
    environment = dict(os.environ)
    for regime in PROVIDERS[name].regimes:
        environment |= PROVIDERS[name].environment(regime)
    command = [sys.executable, benchmark_peers.__file__, name]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["early"] == []  # its module has to import without the framework
    if "absent" in report:
        assert "\n" not in report["absent"]
        pytest.skip(report["absent"])
    assert report["wrong"] == []
    passes, dtypes, options = PART[name]
    assert {(op, pass_name) for op, pass_name, _, _ in report["took"]} == passes
    assert {dtype for _, _, dtype, _ in report["took"]} == dtypes
    assert {option for _, _, _, option in report["took"]} == options


@pytest.mark.parametrize("name", PROVIDERS)
def test_left_out_gives_a_reason_or_none(name):
    provider = PROVIDERS[name]
    for device in ("cpu", "cuda"):
        for cell, threads in product(all_cells(device) + cells(device), (1, None)):
            reason = provider.left_out(cell, threads)
            assert reason is None or (isinstance(reason, str) and reason and "\n" not in reason)


@pytest.mark.parametrize(
    ("name", "cell", "reason"),
    [
        ("numpy", ("cross_entropy", "no-grad", "float32", (64, 10), 1, "none"), "plain cross_entropy"),
        ("jax", ("cross_entropy", "no-grad", "float32", (64, 10), 1, "weight+ignore_index"), "weight"),
        ("tensorflow", ("cross_entropy", "no-grad", "float32", (64, 10), 1), "gradient in every forward"),
        ("tensorflow", ("cross_entropy", "forward+backward", "float32", (2, 5, 4), 1), "last dimension only"),
        ("onnxruntime", ("softmax", "forward+backward", "float32", (64, 10)), "inference only"),
        ("onnxruntime", ("cross_entropy", "no-grad", "float32", (2, 5, 4)), "dimension 1 only"),
        ("liger", ("softmax", "no-grad", "float32", (4, 131072)), "at most 65536 classes"),
        ("quack", ("softmax", "no-grad", "bfloat16", (4, 50257)), "multiples of 8 classes"),
        ("quack", ("softmax", "no-grad", "float32", (4, 50257)), "multiples of 4 classes"),
        ("flash-attention", ("cross_entropy", "no-grad", "float32", (2, 5, 4), 1), "two dimensions"),
    ],
)
def test_left_out_says_why(name, cell, reason):
    assert reason in PROVIDERS[name].left_out(Cell(*cell, main=True), None)


class StandIn(CudaPeer):
    """torch in the place of a CUDA library, one that writes the gradient over the logits if asked to."""

    ops = tuple(LAYOUTS)

    def __init__(self, overwrites_logits: bool) -> None:
        self.overwrites_logits = overwrites_logits
        self.calls = {
            "softmax": lambda x: torch.softmax(x, -1),
            "log_softmax": lambda x: torch.log_softmax(x, -1),
            "cross_entropy": self.cross_entropy,
        }

    def cross_entropy(self, x, target):
        loss = torch.nn.functional.cross_entropy(x, target)
        if self.overwrites_logits and x.requires_grad:
            (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
            x.data = gradient
        return loss


@pytest.mark.parametrize("overwrites_logits", [False, True])
def test_cuda_plumbing(overwrites_logits):
    peer = StandIn(overwrites_logits)
    took = 0
    for cell in cells("cpu"):
        if peer.left_out(cell, None) is None:
            problem = problems.make(cell)
            expected = answers(cell, problem)
            prepared = peer.prepare(cell, problem, 1)
            prepared.step(0)
            assert complaints(cell, prepared.results(prepared.step(0)), expected) == []
            took += 1
    assert took == 3 * 2 * 3 * 2  # ops, passes, dtypes, shapes of two dimensions


def test_every_instruction_set_takes_part():
    """Typed there, best first: the registry is softkern's, which workers of other providers must not load."""
    backends = [p for p in providers.PROVIDERS.values() if isinstance(p, SoftkernBackend)]
    assert [p.backend for p in backends if p.devices == ("cpu",)] == list(ISAS)
