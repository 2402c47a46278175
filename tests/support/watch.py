# SPDX-License-Identifier: Apache-2.0
"""Finds out whether softkern's kernels or torch's computed, from the records of kernels and dispatcher."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor

import softkern

FUSED, TORCH, BOTH, SHAPES = "fused", "through torch", "fused + torch", "shapes"
REFUSED = "not supported"

# What computes a softmax or differentiates one, in torch.
_TORCHS = {
    "aten::_softmax",
    "aten::_log_softmax",
    "aten::_softmax_backward_data",
    "aten::_log_softmax_backward_data",
    "aten::nll_loss_forward",
    "aten::nll_loss2d_forward",
}

_NOTHING = "nothing ran"


class Watch:
    """`with watch:` around softkern's calls, and around nothing of torch.nn.functional."""

    def __init__(self) -> None:
        self.ops: set[str] = set()  # softkern's, as the dispatcher saw them
        self._kernels = self._torchs = False
        self._shapes = self._refused = False

    def __enter__(self) -> Watch:
        # Whatever is recorded afterwards is that of the watched kernels.
        softkern._C.set_last("", _NOTHING)
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self._profile.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._profile.__exit__(*exception)
        names = {event.name for event in self._profile.events()}
        self.ops |= {name for name in names if name.startswith("softkern::")}
        self._torchs |= bool(names & _TORCHS)
        self._kernels |= softkern._C.last_path() != _NOTHING

    def only_shapes(self, *results: torch.Tensor) -> None:
        """The watched calls gave tensors without values."""
        assert not self._kernels and all(r.is_meta or isinstance(r, FakeTensor) for r in results)
        self._shapes = True

    def refused(self) -> None:
        """The watched calls raised, after nothing was computed."""
        assert not self._kernels and not self._torchs
        self._refused = True

    def seen_elsewhere(self, other: Watch | tuple[bool, bool]) -> None:
        """Takes over what was seen in another process or thread: a watch, or its `kernels_and_torchs`."""
        self._kernels, self._torchs = other.kernels_and_torchs if isinstance(other, Watch) else other

    @property
    def kernels_and_torchs(self) -> tuple[bool, bool]:
        return self._kernels, self._torchs

    @property
    def way(self) -> str:
        if self._shapes or self._refused:
            return SHAPES if self._shapes else REFUSED
        assert self._kernels or self._torchs, f"nothing was computed; ops seen: {sorted(self.ops)}"
        return {(True, False): FUSED, (False, True): TORCH}.get((self._kernels, self._torchs), BOTH)
