# SPDX-License-Identifier: Apache-2.0
"""How calls are prepared for a CUDA device; a record of what is asked of torch takes the device's place."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import results
from benchmarks.cells import Cell
from benchmarks.engine import devices
from benchmarks.engine.worker import Session

MIB = 1 << 20


class FakeTorch:
    """Its memory grows by a call's results, which a graph keeps."""

    def __init__(self, error: str = "") -> None:
        self.done: list[str] = []
        self.error = error
        self.allocated = self.most = 0
        stream = SimpleNamespace(wait_stream=lambda other: None)
        self.cuda: Any = SimpleNamespace(
            Stream=lambda: stream,
            current_stream=lambda: stream,
            stream=self.noted("side stream"),
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: self.done.append("replay")),
            graph=self.noted("capture"),
            empty_cache=lambda: self.done.append("empty cache"),
            synchronize=lambda: None,
            reset_peak_memory_stats=lambda: setattr(self, "most", self.allocated),
            memory_allocated=lambda: self.allocated,
            max_memory_allocated=lambda: self.most,
        )

    def noted(self, what: str) -> Any:
        @contextmanager
        def context(*_: Any) -> Any:
            self.done.append(what)
            if what == "capture" and self.error:
                raise RuntimeError(self.error)
            yield

        return context

    def step(self, i: int) -> None:
        self.done.append("step")
        self.most = max(self.most, self.allocated + 3 * MIB)


def cuda(torch: FakeTorch) -> devices.Cuda:
    device = devices.Cuda.__new__(devices.Cuda)
    device.torch = torch
    return device


@pytest.mark.parametrize(("size", "room"), [(MIB, False), (255 * MIB, False), (1 << 30, True)])
def test_calls_are_replayed_from_a_graph(size: int, room: bool) -> None:
    torch = FakeTorch()
    step, how = cuda(torch).prepare(torch.step, size, room)
    assert how == results.REPLAYED
    # What the first calls leave behind is free before the graph takes memory.
    assert torch.done == ["side stream", *["step"] * 3, "empty cache", "capture", "step"]
    step(0)
    assert torch.done[-1] == "replay"


def test_graphs_that_would_not_fit_together_are_not_made() -> None:
    torch = FakeTorch()
    step, how = cuda(torch).prepare(torch.step, 256 * MIB, room=False)
    assert step == torch.step and torch.done == []
    assert how.startswith(results.NOT_CAPTURED) and "memory" in how


def test_jobs_without_logits_are_not_captured() -> None:
    torch = FakeTorch()
    assert cuda(torch).prepare(torch.step, 0, room=True) == (torch.step, "") and torch.done == []


def test_who_cannot_be_captured_is_timed_with_its_launches() -> None:
    torch = FakeTorch(error="operation not permitted\nmore")
    step, how = cuda(torch).prepare(torch.step, 1 << 30, room=True)
    assert step == torch.step and how == f"{results.NOT_CAPTURED}: operation not permitted"


@pytest.mark.parametrize("error", ["", "not permitted"])
def test_the_peak_is_that_of_a_call_without_a_graph(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = FakeTorch(error)
    session = Session(1)
    session.device, session.device_name = cuda(torch), "cuda"
    session.provider = SimpleNamespace(prepare=lambda *_: SimpleNamespace(step=torch.step))  # type: ignore[assignment]
    monkeypatch.setattr(session, "_check", lambda *_: {})
    cell = Cell("softmax", "no-grad", "float32", (8192, 8192), device="cuda")
    answer = session.prepare(cell.as_dict(), None, 1, room=True)
    assert answer["how"].startswith(results.NOT_CAPTURED if error else results.REPLAYED)
    steps = torch.done.count("step")
    assert session.peak() == {"bytes": 3 * MIB}
    assert torch.done.count("step") == steps + bool(error)
