# SPDX-License-Identifier: Apache-2.0
"""selective_log_softmax and entropy_from_logits: any shape, dim and layout, and no needless copy."""

from __future__ import annotations

import math

import pytest
import torch
from cases import LAYOUTS, name
from feature_cases import close
from install_checks import ops_run

import softkern

f64 = torch.float64
GENERATOR = torch.Generator().manual_seed(4)
TRANSFORMS = ({}, {"temperature": 0.7}, {"logit_scale": 0.3, "softcap": 2.0, "temperature": 1.5})
over_transforms = pytest.mark.parametrize("options", TRANSFORMS, ids=name)
SHAPES = ((7,), (6, 7), (2, 3, 7), (2, 3, 4, 7), (0, 7), (2, 0, 7))


def randn(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=f64) * 3


def indices(*shape, classes=7):
    return torch.randint(classes, shape, generator=GENERATOR)


def log_softmax(x, dim=-1, logit_scale=1.0, softcap=math.inf, temperature=1.0):
    z = logit_scale * x
    z = z if softcap == math.inf else softcap * torch.tanh(z / softcap)
    return (z / temperature).log_softmax(dim)


def entropy_of(x, dim=-1, **options):
    log_p = log_softmax(x, dim, **options)
    return -(log_p.exp() * log_p).sum(dim)


def gradients(results, x):
    return torch.autograd.grad([y.cos().sum() for y in results], x, retain_graph=True)[0]


@over_transforms
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_selected_log_probabilities(shape, options):
    x = randn(*shape).requires_grad_()
    want = log_softmax(x, **options), entropy_of(x, **options)
    for index in (indices(*shape[:-1]), indices(*shape[:-1], 1), indices(*shape[:-1], 5)):
        many = index.dim() == x.dim()
        chosen = want[0].gather(-1, index if many else index[..., None])
        chosen = chosen if many else chosen[..., 0]
        for dtype in (torch.int64, torch.int32, torch.uint8):
            alone = softkern.selective_log_softmax(x, index.to(dtype), **options)
            both = softkern.selective_log_softmax(x, index.to(dtype), entropy=True, **options)
            assert isinstance(both, tuple) and alone.shape == both[0].shape == index.shape
            close(alone, chosen)
            close(both, (chosen, want[1]))
        close(gradients([alone], x), gradients([chosen], x))
        close(gradients(both, x), gradients([chosen, want[1]], x))


@over_transforms
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_entropies_along_any_dim(shape, options):
    x = randn(*shape).requires_grad_()
    for dim in range(-x.dim(), x.dim()):
        if x.shape[dim] == 0:
            continue
        got, want = softkern.entropy_from_logits(x, dim, **options), entropy_of(x, dim, **options)
        assert got.shape == want.shape
        close(got, want)
        close(gradients([got], x), gradients([want], x))
    close(softkern.entropy_from_logits(x), entropy_of(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    laid, index, many = (
        LAYOUTS[layout](randn(2, 5, 3, 4)),
        indices(2, 5, 3, classes=4),
        indices(2, 5, 3, 2, classes=4),
    )
    x = laid.clone()
    for needs_grad in (False, True):
        laid = laid.detach().requires_grad_(needs_grad)
        for got, want in (
            (
                softkern.selective_log_softmax(laid, index),
                log_softmax(x).gather(-1, index[..., None])[..., 0],
            ),
            (softkern.selective_log_softmax(laid, many), log_softmax(x).gather(-1, many)),
            *((softkern.entropy_from_logits(laid, dim), entropy_of(x, dim)) for dim in range(4)),
        ):
            assert got.is_contiguous() and got.requires_grad == needs_grad
            close(got.detach(), want)


def copied(call):
    """The ops of a call that may copy the logits."""
    _, ops = ops_run(call)
    return [op for op in ops if any(word in op for word in ("clone", "copy", "contiguous", "_to_copy"))]


def test_no_copies():
    x = randn(2, 4, 7)
    index = indices(2, 4)
    cut, padded = randn(2, 5, 7)[:, :-1], randn(2, 4, 9)[..., :7]
    for logits in (x, cut, padded, x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not copied(lambda logits=logits: softkern.selective_log_softmax(logits, index, entropy=True))
    for logits, dim in ((x, 0), (x, 1), (x, 2), (padded, 2), (cut, 0), (x.transpose(1, 2), 1)):
        assert not copied(lambda logits=logits, dim=dim: softkern.entropy_from_logits(logits, dim))
    assert not copied(lambda: softkern.entropy_from_logits(x.requires_grad_()))
    assert copied(lambda: softkern.entropy_from_logits(cut.detach().requires_grad_())), "noticed as a copy"


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, f64), ids=name)
@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_results_are_of_the_compute_dtype(dtype, device):
    compute = f64 if dtype == f64 else torch.float32
    x, index = randn(2, 3, 7).to(device, dtype).requires_grad_(), indices(2, 3).to(device)
    results = (*softkern.selective_log_softmax(x, index, entropy=True), softkern.entropy_from_logits(x))
    assert all(y.dtype == compute and y.shape == (2, 3) and y.device == x.device for y in results)
    assert gradients(results, x).dtype == dtype
    if device == "cpu":
        wide = log_softmax(x.double())
        want = wide.gather(-1, index[..., None])[..., 0], entropy_of(x.double()), entropy_of(x.double())
        for got, expected in zip(results, want, strict=True):
            torch.testing.assert_close(got, expected.to(compute), rtol=1e-5, atol=1e-6)


def test_masked_classes_add_nothing():
    x = randn(3, 7)
    x[:, 4:] = -math.inf
    close(softkern.entropy_from_logits(x), entropy_of(x[:, :4]))
    close(softkern.entropy_from_logits(x, softcap=2.0), entropy_of(x[:, :4], softcap=2.0))
    got = softkern.selective_log_softmax(x, torch.tensor([0, 3, 6]))
    close(got[:2], log_softmax(x)[[0, 1], [0, 3]])
    assert got[2] == -math.inf


def test_no_row_is_ignored():
    x = randn(2, 200)
    got = softkern.selective_log_softmax(x, torch.tensor([100, 156], dtype=torch.uint8))
    close(got, log_softmax(x)[[0, 1], [100, 156]])
