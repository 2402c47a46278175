# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing: forwards are computed twice or once, as the policy says."""

from __future__ import annotations

import pytest
from feature_cases import both, close, leaf, over_ops
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


@pytest.mark.feature("activation checkpointing, reentrant and not")
@pytest.mark.parametrize("use_reentrant", (True, False))
@over_ops
def test_checkpoint(op, use_reentrant, watch):
    def gradient(f):
        x = leaf()
        y = checkpoint(lambda x: f(x * 2), x * 1, use_reentrant=use_reentrant)
        y.square().sum().backward()
        return y.detach(), x.grad

    ours, theirs = both(op)
    with watch:
        got = gradient(ours)
    close(got, gradient(theirs))


class Calls(TorchDispatchMode):
    """Around checkpointing's own modes, so that it sees what they compute and not what they remember."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **kwargs or {})


@pytest.mark.feature("selective checkpointing")
@pytest.mark.parametrize("keep", (True, False))
@over_ops
def test_selective_checkpoint(op, keep, watch):
    """softkern's op is one that can be named in a policy."""
    name = f"softkern::{op}" + "_forward" * (op == "cross_entropy")

    def policy(ctx, func, *args, **kwargs):
        kept = keep and func.name() in (name, f"aten::_{op}")
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def gradient(f):
        x = leaf()
        context = lambda: create_selective_checkpoint_contexts(policy)  # noqa: E731
        y = checkpoint(lambda x: f(x * 2) + 1, x, use_reentrant=False, context_fn=context)
        y.square().sum().backward()
        return y.detach(), x.grad

    ours, theirs = both(op)
    calls = Calls()
    with watch, calls:
        got = gradient(ours)
    assert calls.names.count(name) == (1 if keep else 2)
    close(got, gradient(theirs))
