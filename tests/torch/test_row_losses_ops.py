# SPDX-License-Identifier: Apache-2.0
"""The six ops of row_losses in the dispatcher: schemas, fake implementations, registrations."""

from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, logits, name
from cross_entropy_cases import REDUCTIONS
from row_losses_cases import ALL, over_targets, row_problem
from row_losses_checks import DIFFERENTIABLE, OUTPUTS, arguments, possible
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import softkern  # noqa: F401  registers the ops

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]

ops = torch.ops.softkern
OPTIONS = (
    "int reduction=1, SymInt ignore_index=-100, float label_smoothing=0., SymInt valid_classes=-1, "
    "float logit_scale=1., float softcap=0., float temperature=1., float z_loss=0., int outputs=1"
)
TENSORS = (
    "Tensor? target=None, Tensor? weight=None, Tensor? row_weight=None, Tensor? num_items=None, "
    "Tensor? target_probs=None"
)
RESULTS = "Tensor loss, Tensor log_prob, Tensor lse, Tensor entropy, Tensor argmax, Tensor correct"


def test_the_schemas_are_the_published_ones():
    """Exported programs name the ops by them."""
    for op, self in (("row_losses", "Tensor self"), ("row_losses_", "Tensor(a!) self")):
        schema = f"softkern::{op}({self}, {TENSORS}, {OPTIONS}) -> ({RESULTS})"
        assert str(getattr(ops, op).default._schema) == schema


def problem(target, shape=(4, 7, 3), **kind):
    """Finite everywhere, since opcheck compares results with equal signs."""
    x, options = row_problem(shape, target=target, **kind)
    options = {k: v.nan_to_num(0.1) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    return x.nan_to_num(0.5), options


@over_targets
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_opcheck_row_losses(reduction, target):
    for kind in ({}, ALL):
        x, options = problem(target, **kind)
        args = arguments(x, possible(x, **options), **options, reduction=reduction)
        torch.library.opcheck(ops.row_losses.default, (x.requires_grad_(), *args))


@pytest.mark.parametrize("layout", ("transposed", "padded", "every_other"))
def test_opcheck_of_layouts(layout):
    x, options = problem("index", **ALL)
    args = arguments(x, OUTPUTS, **options)
    torch.library.opcheck(ops.row_losses.default, (LAYOUTS[layout](x).requires_grad_(), *args))


def test_opcheck_with_the_defaults():
    """The dispatcher drops arguments that equal the default; a fake must cope."""
    x = logits(4, 5)
    torch.library.opcheck(ops.row_losses.default, (x, torch.arange(4)))
    torch.library.opcheck(ops.row_losses.default, (x.requires_grad_(), torch.arange(4)))


@over_targets
@pytest.mark.parametrize("wanted", ("loss", "all"))
def test_opcheck_of_the_ops_below(wanted, target):
    x, options = problem(target, **ALL)
    names = possible(x, **options) if wanted == "all" else ("loss",)
    if not set(names) <= set(possible(x, **options)):
        pytest.skip("this target has no loss")
    args = arguments(x, names, **options)
    for need_grad in (False, True):
        torch.library.opcheck(ops.row_losses_forward.default, (x, *args, need_grad))
    torch.library.opcheck(ops.row_losses_.default, (x.clone(), *args))
    torch.library.opcheck(ops.row_losses_forward_.default, (x.clone(), *args))
    results = zip(DIFFERENTIABLE, ops.row_losses(x, *args)[:4], strict=True)
    grads = [logits(*t.shape, seed=7) if n in names else None for n, t in results]
    torch.library.opcheck(ops.row_losses_backward.default, (*grads, x, *args))
    torch.library.opcheck(ops.row_losses_backward_.default, (*grads, x.clone(), *args))


def like(t):
    """Symbolic sizes become the numbers that they were made from."""
    return [int(n) for n in t.shape], t.dtype, [int(n) for n in t.stride()], t.requires_grad


@over_targets
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.float64), ids=name)
@pytest.mark.parametrize("symbolic", (False, True))
def test_fake_tensors(symbolic, dtype, target):
    """Results and gradients look like those of the kernels: shapes, dtypes and strides."""

    def both_ways(x, options):
        x = x.requires_grad_()
        found = ops.row_losses(x, *arguments(x, possible(x, **options), **options))
        results = [t for t in found[:4] if t.requires_grad and t.numel()]
        return (*found, *torch.autograd.grad([t.sum() for t in results], x))

    for layout in ("clone", "transposed", "every_other"):
        x, options = row_problem((4, 7, 3), dtype, target=target, row_weight=True, padding=2)
        x = LAYOUTS[layout](x)
        mode = FakeTensorMode(shape_env=ShapeEnv() if symbolic else None)
        given = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        fake = mode.from_tensor(x)
        with mode:
            got = both_ways(fake, given)
        expected = both_ways(x, options)
        assert [like(t) for t in got] == [like(t) for t in expected]


@pytest.mark.parametrize("op", ("row_losses_forward", "row_losses_forward_", "row_losses_backward"))
def test_the_ops_below_refuse_what_the_kernels_do_not_take(op):
    """With an error that names them, before anything is written."""
    x, y = logits(4, 5), torch.arange(4)
    grads = (None,) * 4 if "backward" in op else ()
    more = (True,) if op == "row_losses_forward" else ()
    before = x.clone()
    for bad in (
        {"target": y[:3]},
        {"target": y, "row_weight": torch.ones(3)},
        {"target": y, "row_weight": torch.ones(4).double()},
        {"target": y, "weight": torch.ones(4)},
        {"target": y, "num_items": torch.ones(2)},
        {"target": y, "target_probs": torch.ones(4, 2)},
        {"target": torch.zeros(4, 2).long()},
        {"target": x.double()},
        {},
    ):
        with pytest.raises(RuntimeError, match="arguments that the kernels don't take"):
            getattr(ops, op)(*grads, x, *arguments(x, ("loss",), **bad), *more)
    with pytest.raises(ValueError, match=r"valid_classes in \[1, 5\], got 6"):
        getattr(ops, op)(*grads, x, *arguments(x, ("loss",), target=y, valid_classes=6), *more)
    assert torch.equal(x, before)
