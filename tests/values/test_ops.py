# SPDX-License-Identifier: Apache-2.0
"""The dispatcher's ops: schemas, fake implementations, autograd registration, and their values."""

from __future__ import annotations

import pytest
import torch
from cases import HALVES, logits, name, upstream
from compare import assert_close
from cross_entropy_cases import OPTIONS, REDUCTIONS, problem
from softmax_checks import OPS

import softkern  # noqa: F401  registers the ops
from softkern import reference

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]

ops = torch.ops.softkern
over_softmaxes = pytest.mark.parametrize("op", ("softmax", "log_softmax"))
SCHEMAS = {
    "softmax": "(Tensor self, int dim) -> Tensor",
    "log_softmax": "(Tensor self, int dim) -> Tensor",
    "softmax_backward": "(Tensor grad_output, Tensor output, int dim) -> Tensor",
    "log_softmax_backward": "(Tensor grad_output, Tensor output, int dim) -> Tensor",
    "cross_entropy": "(Tensor self, Tensor target, Tensor? weight=None, int reduction=1, "
    "SymInt ignore_index=-100, float label_smoothing=0.) -> Tensor",
}
INPUTS = {
    "contiguous": lambda: logits(3, 7),
    "transposed": lambda: logits(7, 3).t(),
    "4-d": lambda: logits(2, 5, 3, 4),
    "channels last": lambda: logits(2, 5, 3, 4).contiguous(memory_format=torch.channels_last),
    "bf16": lambda: logits(3, 7, dtype=torch.bfloat16),
    "float64": lambda: logits(3, 7, dtype=torch.float64),
    "no rows": lambda: logits(0, 7),
}
over_inputs = pytest.mark.parametrize("case", INPUTS)


@pytest.mark.parametrize("op", SCHEMAS)
def test_the_schema_is_the_published_one(op):
    """Exported programs name the op by it."""
    assert str(getattr(ops, op).default._schema) == f"softkern::{op}{SCHEMAS[op]}"


@over_softmaxes
@over_inputs
@pytest.mark.parametrize("grad", (False, True), ids=("", "requires_grad"))
def test_opcheck_softmax(op, case, grad):
    x = INPUTS[case]().requires_grad_(grad)
    torch.library.opcheck(getattr(ops, op).default, (x, 1))


@over_softmaxes
@over_inputs
def test_opcheck_softmax_backward(op, case):
    y = getattr(ops, op)(INPUTS[case](), 1)
    torch.library.opcheck(getattr(ops, f"{op}_backward").default, (upstream(y, "random"), y, 1))


@pytest.mark.parametrize("reduction", range(3), ids=REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_opcheck_cross_entropy(options, reduction):
    x, target, kwargs = problem((4, 5, 3), **options)
    args = x.requires_grad_(), target, kwargs.get("weight"), reduction
    more = kwargs.get("ignore_index", -100), kwargs.get("label_smoothing", 0.0)
    torch.library.opcheck(ops.cross_entropy.default, (*args, *more))


def test_opcheck_cross_entropy_with_its_defaults():
    """The dispatcher drops arguments that equal the default; a fake must cope."""
    x, target, _ = problem((4, 5))
    torch.library.opcheck(ops.cross_entropy.default, (x, target))
    torch.library.opcheck(ops.cross_entropy.default, (x.requires_grad_(), target))


def inner_arguments(shape, options, reduction, dtype=torch.float32):
    x, target, kwargs = problem(shape, dtype, **options)
    more = kwargs.get("ignore_index", -100), kwargs.get("label_smoothing", 0.0)
    return (x, target, kwargs.get("weight"), reduction, *more), kwargs


@pytest.mark.parametrize("need_grad", (False, True))
@pytest.mark.parametrize("reduction", range(3), ids=REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS[::3], ids=name)
def test_opcheck_cross_entropy_forward_and_backward(options, reduction, need_grad):
    args, _ = inner_arguments((4, 5, 3), options, reduction)
    torch.library.opcheck(ops.cross_entropy_forward.default, (*args, need_grad))
    if need_grad:
        loss, grad, scale = ops.cross_entropy_forward(*args, True)
        args = upstream(loss, "random"), grad, scale, args[1], args[4]
        torch.library.opcheck(ops.cross_entropy_backward.default, args)
        torch.library.opcheck(ops.cross_entropy_backward_.default, args)


@pytest.mark.parametrize("dtype", (torch.float32, *HALVES), ids=name)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS[::3], ids=name)
def test_the_two_halves_of_cross_entropy_make_the_whole(options, reduction, dtype):
    args, kwargs = inner_arguments((4, 5, 3), options, REDUCTIONS.index(reduction), dtype)
    loss, grad, scale = ops.cross_entropy_forward(*args, True)
    without, _, _ = ops.cross_entropy_forward(*args, False)
    assert torch.equal(loss, without), "the loss depends on whether a gradient is wanted"
    assert torch.equal(loss, ops.cross_entropy(*args))
    g = upstream(loss, "random")
    x = args[0].clone().requires_grad_()
    (dx,) = torch.autograd.grad(ops.cross_entropy(x, *args[1:]), x, g)
    inner = g, grad, scale, args[1], args[4]
    assert torch.equal(ops.cross_entropy_backward(*inner), dx)
    ops.cross_entropy_backward_(*inner)
    assert torch.equal(grad, dx), "in place and out of place differ"
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    target = args[1].double() if args[1].is_floating_point() else args[1]
    expected = reference.cross_entropy_backward(
        g.double(), args[0].double(), target, reduction=reduction, **wide
    )
    scale = (1 + g.double().abs().max()).expand_as(expected) * 4
    assert_close(dx, expected, dtype, scale=scale, roundings=2)


@over_softmaxes
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, *HALVES), ids=name)
@pytest.mark.parametrize("dim", (0, 1, -1))
def test_backward_ops_alone(op, dtype, dim):
    o, x = OPS[op], logits(5, 33, dtype=dtype)
    y, g = getattr(ops, op)(x, dim), logits(5, 33, dtype=dtype, seed=2)
    dx = getattr(ops, f"{op}_backward")(g, y, dim)
    y64, g64 = y.double(), g.double()
    scale = o.backward_scale(g64, y64, dim)
    assert_close(dx, o.backward(g64, y64, dim), dtype, scale=scale)
