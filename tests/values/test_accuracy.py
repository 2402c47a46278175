# SPDX-License-Identifier: Apache-2.0
"""Compares the bounds of docs/accuracy.md with a measurement, and the page with its JSON."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from itertools import product
from types import ModuleType

import pytest
import torch
from places import DOCS

import softkern
from softkern.verify import bounds

OPS = {
    "`softmax`": "softmax",
    "`log_softmax`": "log_softmax",
    "`cross_entropy`, one row, class index": "cross_entropy",
    "its gradient": "cross_entropy gradient",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = DOCS.parent / "tools" / "measure_accuracy.py"
    spec = importlib.util.spec_from_file_location("measure_accuracy", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stated_bounds() -> dict[str, float]:
    rows = re.findall(
        r"^\| (.+?) \| (\d+) \|$", (DOCS / "accuracy.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    return {OPS[name]: float(bound) for name, bound in rows if name in OPS}


def test_every_op_has_a_stated_bound() -> None:
    """Those that softkern.verify holds the kernels to."""
    assert stated_bounds() == bounds.STATED
    assert set(stated_bounds()) == set(OPS.values())


def test_docstrings_state_the_same_bounds() -> None:
    for op in ("softmax", "log_softmax"):
        assert f"at most {bounds.STATED[op]:g} ulp in float32" in (getattr(softkern, op).__doc__ or "")
    text = softkern.cross_entropy.__doc__ or ""
    for quantity, words in (("cross_entropy", "class index"), ("cross_entropy gradient", "its gradient")):
        assert f"{words} at most {bounds.STATED[quantity]:g} ulp" in text


def test_float32_errors_are_within_the_stated_bounds(tool: ModuleType) -> None:
    bounds = stated_bounds()
    for row in tool.measure(0.05, {"float32": torch.float32}):
        assert row["softkern"] <= bounds[row["op"]], row


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_results_are_below_one_ulp(tool: ModuleType, dtype: torch.dtype) -> None:
    for row in tool.measure(0.02, {str(dtype): dtype}):
        assert row["softkern"] < 1, row


OF_OPTIONS = {"loss, log-probability, lse, entropy": "value", "gradient": "gradient"}


def bound_of_option(result: object) -> float:
    return bounds.STATED_OPTIONS["gradient" if str(result).endswith(" gradient") else "value"]


def test_the_page_states_the_bounds_of_options() -> None:
    text = (DOCS / "accuracy.md").read_text(encoding="utf-8").split("## Options and statistics")[1]
    rows = re.findall(r"^\| (.+?) \| (\d+) \|$", text, re.MULTILINE)
    assert {OF_OPTIONS[name]: float(bound) for name, bound in rows} == bounds.STATED_OPTIONS


def test_every_option_is_measured(tool: ModuleType) -> None:
    options = {
        p.name
        for p in inspect.signature(softkern.cross_entropy).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "inplace_backward"
    }
    measured = {re.split(r"\W", call)[0] for call in tool.CALLS}
    assert measured == options | {"selective_log_softmax", "entropy_from_logits"}
    rows = json.loads((DOCS / "accuracy.json").read_text(encoding="utf-8"))["options"]["rows"]
    assert {(r["call"], r["dtype"]) for r in rows} == set(product(tool.CALLS, ("float32", "bfloat16")))
    for row in rows:
        statistic = row["result"] in (
            "log_prob",
            "lse",
            "entropy",
            "selective_log_softmax",
            "entropy_from_logits",
        )
        in_float32 = row["dtype"] == "float32" or statistic
        assert row["softkern"] <= (bound_of_option(row["result"]) if in_float32 else 1), row


def test_errors_of_options_are_within_the_stated_bounds(tool: ModuleType) -> None:
    for row in tool.measure_options(0.03, {"float32": torch.float32}):
        assert row["softkern"] <= bound_of_option(row["result"]), row


def test_the_measurement_of_options_sees_lost_digits(tool: ModuleType, monkeypatch) -> None:
    """torch's formula has errors of thousands of ulp."""

    def entropy(logits: torch.Tensor, dim: int) -> torch.Tensor:
        log_p = logits.log_softmax(dim)
        return -(log_p.exp() * log_p).sum(dim)

    monkeypatch.setattr(softkern, "entropy_from_logits", entropy)
    rows = tool.measure_options(0.03, {"float32": torch.float32})
    (row,) = (r for r in rows if r["result"] == "entropy_from_logits")
    assert row["softkern"] == row["torch"] > 1000


def test_the_measurement_sees_a_wrong_digit(tool: ModuleType) -> None:
    answer = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert tool.ulp_error(answer.float(), answer) == 0
    off = torch.nextafter(answer.float(), torch.tensor(10.0))
    assert tool.ulp_error(off, answer) == 1


def test_page_is_what_the_json_gives(tool: ModuleType) -> None:
    page = (DOCS / "accuracy.md").read_text(encoding="utf-8")
    measured = json.loads((DOCS / "accuracy.json").read_text(encoding="utf-8"))
    assert tool.render(measured, page) == page


@pytest.mark.parametrize(
    ("ops", "logits", "label"),
    [
        (("cross_entropy", "cross_entropy gradient"), "N(0, 10), C = 10", "65,536 x 10"),
        (("softmax",), "N(0, 10), C = 1000", "`softmax`, 4,096 x 1,000"),
    ],
)
def test_the_readme_states_what_the_json_says(ops: tuple[str, ...], logits: str, label: str) -> None:
    rows = json.loads((DOCS / "accuracy.json").read_text(encoding="utf-8"))["rows"]
    rows = [r for r in rows if r["op"] in ops and (r["dtype"], r["input"]) == ("float32", logits)]
    torchs, ours = (max(row[name] for row in rows) for name in ("torch", "softkern"))
    lines = (DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if label in line)
    assert line.endswith(f"| {torchs:,.0f} ulp | **{ours:.1f} ulp** |")


# linear_cross_entropy


def by_call(rows: list[dict[str, object]]) -> dict[tuple[object, ...], list[dict[str, object]]]:
    """The rows of each dtype, spread of the logits and call; those of fewer chunks first."""
    calls: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in rows:
        calls.setdefault((row["dtype"], row["spread"], row["call"]), []).append(row)
    return calls


def lost(tool: ModuleType, rows: list[dict[str, object]]) -> list[tuple[object, ...]]:
    """Where softkern's errors are larger than the roundings explain, with any number of chunks."""
    calls, found = by_call(rows), []
    for (dtype, spread, call), of_call in calls.items():
        if not str(call).startswith("softkern"):
            continue
        (once,) = calls[dtype, spread, tool.ONCE]
        (torchs,) = calls[dtype, spread, "torch, two calls"]
        for row, name in product(of_call, tool.RESULTS):
            # In float32, torch's products decide. A loss is one number: its error is a matter of luck.
            allowed = max(once[name], torchs[name]) if dtype == "float32" else once[name]
            allowed = max(allowed, 2 * EPS[dtype]) if name == "loss" else allowed
            if row[name] > 1.1 * allowed:
                found.append((dtype, spread, call, row["chunks"], name))
    return found


EPS = {"float32": 2.0**-24, "bfloat16": 2.0**-8}


def test_the_table_of_heads_is_whole_and_chunks_lose_nothing(tool: ModuleType) -> None:
    rows = json.loads((DOCS / "accuracy.json").read_text(encoding="utf-8"))["linear"]["rows"]
    calls = by_call(rows)
    assert set(calls) == set(product(EPS, tool.SPREADS, (tool.ONCE, *tool.HEADS)))
    assert all(
        [r["chunks"] for r in calls[key]] == list(tool.HEADS[key[2]][1])
        for key in calls
        if key[2] != tool.ONCE
    )
    assert lost(tool, rows) == []


def test_the_measurement_of_heads_sees_logits_in_16_bits(tool: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(tool, "CLASSES", 300)
    assert lost(tool, tool.measure_linear(0.01, ("bfloat16",))) == []
    two_calls = tool.HEADS["torch, two calls"][0]
    monkeypatch.setitem(tool.HEADS, "softkern, fast", (two_calls, (1,)))
    found = lost(tool, tool.measure_linear(0.01, ("bfloat16",)))
    assert {call for _, _, call, _, _ in found} == {"softkern, fast"}
    assert {"input", "weight"} <= {name for *_, name in found}
