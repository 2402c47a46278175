# SPDX-License-Identifier: Apache-2.0
"""Tensors that are not plain memory: F's result or F's error, in every mode."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from messages import text

import softkern

# torch warns, once each, of what it calls beta, prototypes and deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")

MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def rows(n=4, c=6):
    return torch.linspace(-3, 3, n * c).sin().reshape(n, c)


def nested(*parts, layout=torch.strided):
    return torch.nested.nested_tensor(list(parts), layout=layout)


KINDS = {
    "plain": rows,
    "nested": lambda: nested(rows(2), rows(3)),
    "nested, transposed": lambda: nested(rows(2), rows(3)).transpose(1, 2),
    "nested, of integers": lambda: nested(rows(2).long(), rows(3).long()),
    "jagged": lambda: nested(rows(2), rows(3), layout=torch.jagged),
    "coo": lambda: rows().to_sparse(),
    "coo, hybrid": lambda: rows().to_sparse(1),
    "csr": lambda: rows().to_sparse_csr(),
    "csc": lambda: rows().to_sparse_csc(),
    "bsr": lambda: rows().to_sparse_bsr((2, 3)),
    "bsc": lambda: rows().to_sparse_bsc((2, 3)),
    "mkldnn": lambda: rows().to_mkldnn(),
    "quantized": lambda: torch.quantize_per_tensor(rows(), 0.1, 0, torch.quint8),
    "meta": lambda: rows().to("meta"),
    "negative bit": lambda: torch.complex(rows(), rows()).conj().imag,
    "conjugate bit": lambda: torch.complex(rows(), rows()).conj(),
    "zero tensor": lambda: torch._efficientzerotensor((4, 6)),
    "channels last": lambda: rows(4, 6 * 4).reshape(4, 6, 2, 2).to(memory_format=torch.channels_last),
    "float8": lambda: rows().to(torch.float8_e4m3fn),
}


def plainly(y):
    """What a tensor holds, as plain tensors, for a comparison."""
    if y.is_nested:
        return [y.layout, *(plainly(part) for part in y.unbind())]
    if y.is_quantized:
        return [y.q_scale(), y.int_repr()]
    return [y.layout, y.shape, y.dtype, y if y.is_meta else y.detach().to_dense()]


def outcome(f, *args, **options):
    """The result and the gradient where there is one, each as the error it may be."""
    found = []
    try:
        found.append(plainly(y := f(*args, **options)))
        if y.requires_grad and not y.is_nested:
            found.append(plainly(torch.autograd.grad(y.to_dense().abs().square().sum(), args[0])[0]))
    except Exception as error:
        # What follows lists the kernels of the op.
        found.append((type(error), text(error).split(". This could be")[0]))
    return found


def same(actual, expected):
    if isinstance(actual, torch.Tensor) and isinstance(expected, torch.Tensor) and not actual.is_meta:
        torch.testing.assert_close(actual, expected, equal_nan=True)
    elif isinstance(actual, list):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            same(a, b)
    elif not isinstance(actual, torch.Tensor):
        assert actual == expected


over_kinds = pytest.mark.parametrize("kind", KINDS)
over_modes = pytest.mark.parametrize("mode", MODES)
needing_gradients = pytest.mark.parametrize("needs_grad", (False, True), ids=("", "requires_grad"))


def assert_same(mode, op, *make, **options):
    """softkern and torch, each with arguments of its own."""
    with MODES[mode]():
        same(
            *(outcome(getattr(namespace, op), *(m() for m in make), **options) for namespace in (softkern, F))
        )


def made(kind, needs_grad):
    x = KINDS[kind]()
    if needs_grad and torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        with contextlib.suppress(RuntimeError):  # integers
            x.requires_grad_()
    return x


@needing_gradients
@over_modes
@over_kinds
@pytest.mark.parametrize("op", ("softmax", "log_softmax"))
def test_the_softmaxes_do_what_torch_does(op, kind, mode, needs_grad):
    for dim, dtype in ((-1, None), (1, torch.float64), (0, None)):
        assert_same(mode, op, partial(made, kind, needs_grad), dim=dim, dtype=dtype)


LABELS = {
    "indices": lambda: torch.tensor([0, 5, 2, 3]),
    "probabilities": lambda: torch.full((4, 6), 1 / 6),
    "nested indices": lambda: nested(torch.tensor([0, 1]), torch.tensor([2, 3, 4])),
    "nested probabilities": lambda: nested(rows(2).abs(), rows(3).abs()),
    "sparse indices": lambda: torch.tensor([0, 5, 2, 3]).to_sparse(),
    "sparse probabilities": lambda: rows().abs().to_sparse(),
    "mkldnn probabilities": lambda: rows().abs().to_mkldnn(),
}


@needing_gradients
@over_modes
@over_kinds
def test_cross_entropy_does_what_torch_does(kind, mode, needs_grad):
    for labels in LABELS.values():
        for reduction in ("mean", "none"):
            assert_same(mode, "cross_entropy", partial(made, kind, needs_grad), labels, reduction=reduction)


@over_modes
@over_kinds
def test_weights_of_any_kind_do_what_torch_does(kind, mode):
    one_row = kind in ("plain", "coo", "meta", "zero tensor")  # others can't be indexed, or not in every mode
    for weight in (KINDS[kind](), KINDS[kind]()[0]) if one_row else (KINDS[kind](),):
        assert_same(mode, "cross_entropy", rows, LABELS["indices"], weight=weight)


@over_modes
def test_nested_tensors_through_torchs_own_names(mode, restored):
    """Nested tensors that are not contiguous, as torch's own tests have them."""
    x = KINDS["nested, transposed"]()
    with MODES[mode]():
        want = outcome(F.softmax, x, -1)
        softkern.install()
        for f in (
            F.softmax,
            torch.softmax,
            torch.special.softmax,
            torch.Tensor.softmax,
            torch.nn.Softmax(-1),
        ):
            same(outcome(f, x, *() if isinstance(f, torch.nn.Module) else (-1,)), want)


@pytest.mark.feature("nested tensors")
@over_modes
@pytest.mark.parametrize(
    "op, kind",
    [
        ("softmax", "nested"),
        ("softmax", "nested, transposed"),
        ("softmax", "jagged"),
        ("log_softmax", "jagged"),
    ],
)
def test_nested_tensors(op, kind, mode, watch):
    with MODES[mode]():
        with watch:
            got = getattr(softkern, op)(KINDS[kind](), -1)
        for row, want in zip(got.unbind(), KINDS[kind]().unbind(), strict=True):
            torch.testing.assert_close(row, getattr(F, op)(want, -1))


def test_a_backend_that_was_named_refuses_nested_tensors():
    refused = pytest.raises(RuntimeError, match="'portable' was asked for")
    with softkern.use_backend("portable"), torch.inference_mode(), refused:
        softkern.softmax(KINDS["nested"](), -1)
