# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of what F lacks: answers, bytes, the check of each provider's results, who takes part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from counted_memory import Memory

from benchmarks import cli, ops, options, problems, providers, results
from benchmarks.answers import answers
from benchmarks.cells import Cell
from benchmarks.engine import devices
from benchmarks.ops import quick
from benchmarks.ops.selective_log_softmax import Selected
from benchmarks.providers import torch_formulas

ROWS, CLASSES = 6, 40
LOSSES = [Cell("cross_entropy", "forward+backward", "float32", (ROWS, CLASSES), 1, o) for o in options.OWN]
SELECTED = [
    Cell("selective_log_softmax", pass_name, dtype, (2, 3, CLASSES), -1, "entropy")
    for pass_name in ("no-grad", "forward+backward")
    for dtype in ("float32", "bfloat16")
]
LISTED = [cell for cell in quick.cells("cpu") if options.is_own(cell)]


def in_float64(cell: Cell, problem: problems.Problem) -> dict[str, np.ndarray]:
    """The formulas of the provider torch, with autograd."""
    x, target = torch.from_numpy(problem.x).double().requires_grad_(), torch.from_numpy(problem.target)
    weight = None if problem.weight is None else torch.from_numpy(problem.weight).double()
    op = ops.OPS[cell.op]
    output = op.call(torch_formulas.api(cell), cell, x, target, weight)
    op.summed_up(cell, output, weight).backward()
    found = output if isinstance(output, Selected) else output[1] if isinstance(output, tuple) else None
    values = {} if found is None else found._asdict()
    if cell.op == "cross_entropy":
        values["output"] = op.summed_up(cell, output, weight)
    arrays = {name: value.detach().numpy().reshape(-1) for name, value in values.items()}
    return {**arrays, "gradient": problems.by_row(x.grad.numpy(), cell.dim)}


# The answers


@pytest.mark.parametrize("cell", LOSSES + SELECTED, ids=lambda c: c.name)
def test_answers_are_those_of_autograd(cell):
    """The oracle of the benchmarks is written in NumPy; torch is the second opinion."""
    problem = problems.make(cell)
    found, expected = answers(cell, problem), in_float64(cell, problem)
    if cell.op == "cross_entropy":
        plain, without = problems.without_option(cell, problem)
        x = torch.from_numpy(without.x).double().requires_grad_()
        loss = F.cross_entropy(x, torch.from_numpy(without.target))
        (gradient,) = torch.autograd.grad(loss, x)
        assert not options.is_own(plain)
        np.testing.assert_array_equal(without.target, problem.target.reshape(ROWS, -1)[:, 0])
        expected |= {"plain output": loss.detach().numpy()[None], "plain gradient": gradient.numpy()}
    assert {name for name in found if not name.endswith(" scale")} == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12)


def test_several_targets_a_row_may_be_the_same():
    cell = next(cell for cell in LOSSES if cell.option == "target_probs:8")
    problem = problems.make(cell)
    problem.target[:] = problem.target[:, :1]
    np.testing.assert_allclose(answers(cell, problem)["output"], in_float64(cell, problem)["output"])


# Bytes


def loss_row_by_row(cell: Cell, problem: problems.Problem) -> dict[str, np.ndarray]:
    """Loads of a row what the option needs, and stores what it gives."""
    x = Memory(problem.x[:, : options.valid_classes(cell)].astype(float), cell.item_size)
    dx = Memory(np.zeros(cell.shape), cell.item_size)
    target, weight = Memory(problem.target, 8), problem.weight
    share = np.full(ROWS, 1 / ROWS)  # of a row in the loss
    if cell.option == "num_items":
        weight = Memory(weight[None], 8).load(0)
        share[:] = 1
    elif weight is not None:
        weight = Memory(weight, cell.item_size)
        share = weight.values / weight.values.sum() if cell.option == "row_weight" else share
    stats = {name: Memory(np.empty(ROWS), {"argmax": 8, "correct": 1}.get(name, 4)) for name in STATS}
    total = 0.0
    for i in range(ROWS):
        row, at = torch.tensor(x.load(i))[None].requires_grad_(), torch.tensor(target.load(i))[None]
        own = weight.load(i) if isinstance(weight, Memory) else weight
        keywords = options.keywords(cell, None if own is None else torch.tensor(own)[None])
        output = torch_formulas.api(cell).cross_entropy(row, at, **keywords)
        loss, values = output if cell.option == "stats" else (output, None)
        (gradient,) = torch.autograd.grad(loss.sum() * share[i], row)
        total += loss.item() * share[i]
        dx.store(i, np.pad(gradient[0].numpy(), (0, CLASSES - gradient.numel())))
        for name in STATS if values else ():
            stats[name].store(i, getattr(values, name).numpy()[0])
    return {
        "output": np.array([total]),
        "gradient": dx.values,
        **{name: memory.values for name, memory in stats.items() if cell.option == "stats"},
    }


STATS = options.RowStats._fields


def selected_row_by_row(cell: Cell, problem: problems.Problem) -> dict[str, np.ndarray]:
    x, dx = (Memory(np.array(problem.x).reshape(ROWS, CLASSES), cell.item_size) for _ in range(2))
    index = Memory(problem.target.reshape(-1), 8)
    log_prob, entropy = (Memory(np.empty(ROWS), 4) for _ in range(2))
    of_log_prob, of_entropy = (Memory(part, 4) for part in problem.weight.reshape(2, ROWS))

    def forward(i: int) -> tuple[torch.Tensor, Selected]:
        row, at = torch.tensor(x.load(i)).double().requires_grad_(), torch.tensor(index.load(i))
        return row, torch_formulas.selective_log_softmax(row, at, entropy=True)

    for i in range(ROWS):
        for memory, value in zip((log_prob, entropy), forward(i)[1], strict=True):
            memory.store(i, value.item())
    for i in range(ROWS if cell.pass_name == "forward+backward" else 0):
        row, output = forward(i)
        upstream = [
            torch.tensor(float(part.load(i)), dtype=torch.float64) for part in (of_log_prob, of_entropy)
        ]
        dx.store(i, torch.autograd.grad(output, row, upstream)[0].numpy())
    return {"log_prob": log_prob.values, "entropy": entropy.values, "gradient": dx.values}


@pytest.mark.parametrize("cell", LOSSES + SELECTED, ids=lambda c: c.name)
def test_declared_bytes_are_what_a_toy_kernel_moves(cell):
    problem = problems.make(cell)
    Memory.moved = 0
    got = (loss_row_by_row if cell.op == "cross_entropy" else selected_row_by_row)(cell, problem)
    assert ops.bytes_moved(cell) == Memory.moved
    expected = answers(cell, problem)
    for name in got if cell.pass_name == "forward+backward" else ("log_prob", "entropy"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6)


# The check


def refused(cell: Cell, expected: problems.Answers, **arrays: np.ndarray) -> bool:
    return problems.verdict(cell, problems.errors(cell, arrays, expected)) is not None


def damaged(cell: Cell, array: np.ndarray) -> dict[str, np.ndarray]:
    found = {"scaled": array * np.float32(1 + max(0.01, 2 * problems.BOUND[cell.dtype]))}
    if array.size > 1:
        found["shifted"] = np.roll(array, 1)
    return found


@pytest.mark.parametrize("cell", [cell for cell in LOSSES if cell.option != "stats"], ids=lambda c: c.option)
def test_a_provider_that_leaves_the_option_out_is_refused(cell):
    expected = answers(cell, problems.make(cell))
    for name in ("output", "gradient"):
        assert not refused(cell, expected, **{name: expected[name].astype(np.float32)})
        assert refused(cell, expected, **{name: expected[f"plain {name}"].astype(np.float32)})


def test_a_gradient_without_that_of_the_entropy_is_refused():
    for cell in SELECTED[2:]:
        problem = problems.make(cell)
        expected = answers(cell, problem)
        problem.weight[1] = 0
        assert refused(cell, expected, gradient=answers(cell, problem)["gradient"])


NAMES = {
    "cross_entropy": ["output", "gradient"],
    "selective_log_softmax": ["log_prob", "entropy", "gradient"],
}


@pytest.mark.parametrize("cell", LISTED, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["torch", "softkern", "softkern:inplace", "softkern:plain", "trl"])
def test_providers_compute_the_answers(name, cell):
    provider = providers.PROVIDERS[name]
    if provider.left_out(cell, None):
        return
    problem = problems.make(cell)
    expected = answers(cell, problem)
    names = list(NAMES[cell.op])
    if cell.option == "stats":
        names[1:1] = STATS
    if name == "softkern:plain":
        names = [f"plain {n}" for n in NAMES[cell.op]]
    prepared = provider.prepare(cell, problem, 2)
    for i in range(2):
        got = prepared.results(prepared.step(i))
        assert list(got) == [n for n in names if n != "gradient" or cell.pass_name != "no-grad"]
        assert not refused(cell, expected, **got)
        for part, array in got.items():
            for how, bad in damaged(cell, array).items():
                assert refused(cell, expected, **{part: bad}), f"{part} {how}"


def test_a_device_hands_over_statistics_by_name():
    """Of the gradient, the sampled rows alone."""
    cuda = devices.Cuda.__new__(devices.Cuda)
    cuda.torch = torch
    cell = Cell("cross_entropy", "forward+backward", "float32", (5000, 300), 1, "stats")
    stats = options.RowStats(*(torch.zeros(5000) for _ in STATS))
    (loss, kept), gradient = cuda.to_check(cell, ((torch.zeros(()), stats), torch.zeros(cell.shape)))
    assert kept._fields == STATS and kept.lse.shape == (5000,) and loss.shape == ()
    assert gradient.shape == (problems.SAMPLED_ROWS, 300)


# The cells


def test_who_takes_part():
    own = [cell for cell in ops.all_cells("cpu", ops.OWN)]
    assert all(options.is_own(cell) and not cell.main and not cell.edge for cell in own)
    assert {cell.option for cell in own} == {*options.OWN, "entropy"}
    everywhere = {"torch", "softkern", "torch-compile"}
    others = {"cross_entropy": {"softkern:inplace", "softkern:plain"}, "selective_log_softmax": {"trl"}}
    for cell in own:
        there = {
            n for n, p in providers.PROVIDERS.items() if "cpu" in p.devices and not p.left_out(cell, None)
        }
        assert there == everywhere | others[cell.op], cell.name
    for group in (ops.FULL, ops.EDGES):
        assert not any(options.is_own(cell) for cell in ops.all_cells("cpu", group))


def test_left_out_gives_a_reason_or_none():
    for name, provider in providers.PROVIDERS.items():
        for cell in ops.all_cells("cpu", ops.OWN) + ops.all_cells("cuda", ops.OWN):
            reason = provider.left_out(cell, None)
            assert reason is None or (reason and "\n" not in reason), name


def test_a_quick_run_may_be_of_what_f_lacks():
    cells = cli.plan_of(cli.parse_run(["--quick", "--group", "own"])).cells
    assert [cell.name for cell in cells] == [cell.name for cell in LISTED]


def test_the_plain_call_has_its_turns_beside_the_option(tmp_path):
    output = tmp_path / "own.json"
    arguments = ["--quick", "--group", "own", "--option", "stats", "--threads", "1", "--regime", "default"]
    names = ("torch", "softkern", "softkern:plain")
    assert cli.main([*arguments, "--provider", ",".join(names), "--output", str(output)]) == 0
    rows = {row["provider"]: row for row in results.read(output)["rows"]}
    assert tuple(rows) == names and {row["option"] for row in rows.values()} == {"stats"}
    times = results.paired_ratio(rows["softkern"]["samples"], rows["softkern:plain"]["samples"])
    assert rows["softkern"]["times_plain"] == pytest.approx(times, rel=1e-3)
    assert not any("times_plain" in rows[name] for name in ("torch", "softkern:plain"))
    assert set(rows["softkern:plain"]["error"]) == {"plain output", "plain gradient"}
