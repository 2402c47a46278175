# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' masked and confident rows: their values, the refusal of wrong results in them, and the
plain rows that they are compared with."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import cli, inputs, ops, options, problems, providers, results
from benchmarks.answers import answers
from benchmarks.cells import CREATE_GRAPH, HEAD_OP, Cell
from benchmarks.engine.plan import groups_of
from benchmarks.ops import quick
from benchmarks.ops import softmax as softmax_op
from benchmarks.providers.torch_family import Torch

SHAPES = (((3, 40, 40), -1), ((2, 9, 9), 1))
SIXTEEN_BITS = ("float32", "bfloat16")


def plain_and_masked(kind: str, dtype: str, shape=(3, 40, 40), dim=-1) -> tuple[np.ndarray, np.ndarray]:
    """Logits by row, classes last."""
    cell = Cell("softmax", "no-grad", dtype, shape, dim, inputs=kind)
    return tuple(np.moveaxis(problems.make(c).x, dim, -1) for c in (cell.plain, cell))


# What the kinds are


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("dtype", problems.EPS)
@pytest.mark.parametrize("kind", inputs.MASKS)
def test_masked_classes_hold_the_masks_number_and_the_others_what_they_had(kind, dtype, shape, dim):
    dtype_of = getattr(torch, dtype)
    numbers = {"half-1e4": -1e4, "padding": torch.finfo(dtype_of).min}
    number = torch.tensor(numbers.get(kind, -torch.inf), dtype=dtype_of).item()
    plain, masked = plain_and_masked(kind, dtype, shape, dim)
    changed = masked != plain
    assert (masked[changed] == number).all() and np.isfinite(plain).all()
    assert changed.any() and not changed.all(-1).any()


def test_who_is_masked():
    i = np.arange(40)
    masked = {}
    for kind in inputs.MASKS:
        plain, changed = plain_and_masked(kind, "float32")
        masked[kind] = plain != changed
    assert (masked["causal"] == (i > i[:, None])).all()
    for kind in ("half-inf", "half-1e4"):
        assert (masked[kind] == (i >= 20)).all()
    assert 0.03 < masked["sparse-inf"].mean() < 0.07
    lengths = 40 - masked["padding"].sum(-1)
    assert lengths.min() >= 10 and lengths.max() == 40 and len(set(lengths.ravel())) > 20
    assert (masked["padding"] == (i >= lengths[..., None])).all()


@pytest.mark.parametrize("kind", [kind for kind in inputs.MASKS if kind != "causal"])
def test_no_row_is_masked_as_a_whole(kind):
    x = problems.make(Cell("softmax", "no-grad", "float32", (4000, 2), inputs=kind)).x
    assert (x > -1e3).any(-1).all() and (x < -1e3).any()


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_a_certain_row_has_one_logit_far_above_the_rest(dtype):
    plain, certain = plain_and_masked(inputs.CONFIDENT, dtype)
    assert ((plain != certain).sum(-1) == 1).all()
    top = np.sort(certain, -1)
    np.testing.assert_allclose(top[..., -1] - top[..., -2], 300, atol=15)
    assert len(set(certain.argmax(-1).ravel())) > 20
    # Rounded to the dtype, all others' exponentials are no number but 0.
    assert (np.exp(top[..., :-1] - top[..., -1:], dtype=np.float32) == 0).all()


@pytest.mark.parametrize(("shape", "dim"), [((60, 40), 1), ((9, 9, 9), 1)])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_targets_are_any_classes_that_are_not_masked(kind, shape, dim):
    cell = Cell("cross_entropy", "no-grad", "float32", shape, dim, inputs=kind)
    problem = problems.make(cell)
    x, target = np.moveaxis(problem.x, dim, -1), problem.target
    assert target.dtype == np.int64 and target.shape == x.shape[:-1]
    hit = np.take_along_axis(x, target[..., None], -1)
    assert (hit > -1e3).all()
    assert len(set(target.ravel())) > 3


# The check


def damaged(kind: str, x: np.ndarray, output: np.ndarray) -> dict[str, np.ndarray]:
    """Wrong results of a log_softmax: of what is masked, and of what lies beside it."""
    masked, rows = x < -1e3, np.arange(x.shape[0])
    kept = np.where(masked, -np.inf, output).argmax(-1)
    found = {"one beside it": (rows, kept, 1e-2 if masked.any() else 0.1)}  # certain rows have terms of 300
    if masked.any():
        row, column = (int(i[0]) for i in np.nonzero(masked))
        found["one of it"] = (row, column, 1.0 if kind == "half-1e4" else np.inf)
    wrong = {}
    for name, (row, column, off) in found.items():
        wrong[name] = output.copy()
        wrong[name][row, column] = off if np.isinf(off) else wrong[name][row, column] * (1 + off) + off
    if np.isinf(x).any():
        wrong["finite where it is not"] = np.maximum(output, np.finfo(np.float32).min)
    wrong["not a number"] = np.where(masked, np.nan, output) if masked.any() else output * np.nan
    wrong["infinite where it is not"] = output.copy()
    wrong["infinite where it is not"][rows, kept] = -np.inf
    return wrong


@pytest.mark.parametrize("kind", [kind for kind in inputs.KINDS if kind != "causal"])
def test_wrong_results_of_masked_rows_are_refused(kind):
    """However large the masked logits are."""
    cell = Cell("log_softmax", "no-grad", "float32", (30, 40), inputs=kind)
    problem = problems.make(cell)
    expected = answers(cell, problem)

    def verdict(output: np.ndarray) -> str | None:
        return problems.verdict(cell, problems.errors(cell, {"output": output}, expected))

    output = F.log_softmax(torch.from_numpy(problem.x), -1).numpy()
    assert verdict(output) is None
    for how, wrong in damaged(kind, problem.x, output).items():
        assert "wrong output" in (verdict(wrong) or ""), how


@pytest.mark.parametrize("kind", inputs.MASKS)
def test_probability_of_what_is_masked_is_refused(kind):
    cell = Cell("softmax", "no-grad", "float32", (3, 40, 40), inputs=kind)
    problem = problems.make(cell)
    expected = answers(cell, problem)
    output = F.softmax(torch.from_numpy(problem.x), -1).numpy()
    assert problems.verdict(cell, problems.errors(cell, {"output": output}, expected)) is None
    wrong = np.where(problem.x < -1e3, np.float32(1e-3), output)
    assert "wrong output" in problems.verdict(cell, problems.errors(cell, {"output": wrong}, expected))


def test_plain_rows_are_checked_by_the_row_as_before():
    cell = Cell("log_softmax", "no-grad", "float32", (30, 40))
    expected = answers(cell, problems.make(cell))
    np.testing.assert_array_equal(expected["output scale"], np.abs(expected["output"]).max(-1))


EDGES = [cell for cell in quick.cells("cpu") if cell.edge]


@pytest.mark.parametrize("cell", EDGES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["torch", "softkern"])
def test_torch_and_softkern_are_right_in_the_edges(name, cell):
    provider = providers.PROVIDERS[name]
    assert provider.left_out(cell, None) is None
    problem = problems.make(cell)
    prepared = provider.prepare(cell, problem, 2)
    for i in (0, 1, 0):
        got = prepared.results(prepared.step(i))
        expected = ["output"] if cell.pass_name == "no-grad" else ["output", "gradient"]
        assert list(got) == (["gradient"] if cell.pass_name == "backward" else expected)
        found = problems.errors(cell, got, answers(cell, problem))
        assert problems.verdict(cell, found) is None


@pytest.mark.parametrize("shape", [(50000, 2), (2, 3, 256, 256)])
def test_losses_of_float16_do_not_overflow_in_torchs_sum(shape):
    cell = Cell("cross_entropy", "forward+backward", "float16", shape, 1, "probabilities")
    problem = problems.make(cell)
    x, target = (torch.from_numpy(a).half() for a in (problem.x, problem.target))
    assert F.cross_entropy(x, target).isfinite()
    spread = problem.target.max(1)
    assert 0.5 < spread.mean() < 0.99


# What autograd hands over


class Recorded(Torch):
    """softmax whose backward keeps how its gradient comes."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def api(self, cell):
        seen = self.gradients

        class Softmax(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.softmax(-1)

            @staticmethod
            def backward(ctx, gradient):
                seen.append(gradient)
                return gradient

        return SimpleNamespace(softmax=lambda x, dim: Softmax.apply(x))


@pytest.mark.parametrize("pass_name", softmax_op.BACKWARD)
@pytest.mark.parametrize(("option", "strides"), [("sum", (0, 0)), ("mean", None), ("row-weights", (1, 0))])
def test_the_gradient_of_a_summed_output_is_as_autograd_hands_it_over(pass_name, option, strides):
    cell = Cell("softmax", pass_name, "float32", (6, 5), option=option)
    recorded, problem = Recorded(), problems.make(cell)
    recorded.prepare(cell, problem, 1).step(0)
    (gradient,) = recorded.gradients
    wanted = {"sum": torch.ones(6, 5), "mean": torch.full((6, 5), 1 / 30)}.get(option)
    if wanted is None:
        wanted = torch.from_numpy(problem.weight)[:, None].expand(6, 5)
    torch.testing.assert_close(gradient, wanted)
    assert strides is None or gradient.stride() == strides


@pytest.mark.parametrize("name", ["torch", "softkern"])
def test_a_gradient_with_a_graph_can_be_differentiated(name):
    cell = Cell("cross_entropy", CREATE_GRAPH, "float32", (6, 5), 1)
    _, gradient = providers.PROVIDERS[name].prepare(cell, problems.make(cell), 1).step(0)
    assert gradient.requires_grad


SUMMED = Cell("softmax", "forward+backward", "float32", (64, 10), option="sum", main=True)
WITH_GRAPH = Cell("cross_entropy", CREATE_GRAPH, "float32", (64, 10), 1, main=True)


PEERS = [n for n, p in providers.PROVIDERS.items() if p.peer and not n.startswith("softkern:")]


@pytest.mark.parametrize("name", [*PEERS, "softkern:inplace"])
@pytest.mark.parametrize("cell", [SUMMED, WITH_GRAPH], ids=lambda c: c.name)
def test_peers_do_other_work(name, cell):
    """Those who are handed the whole gradient, or have no graph of it."""
    reason = providers.PROVIDERS[name].left_out(cell, None)
    assert reason and "\n" not in reason


# The cells


def cells_of(*arguments: str) -> list[Cell]:
    return cli.plan_of(cli.parse_run(list(arguments))).cells


def test_the_edges_have_what_people_meet():
    cells = ops.all_cells("cpu", ops.EDGES)
    assert all(cell.edge and not cell.main for cell in cells)
    for kind in inputs.KINDS:
        kinds = {cell.op for cell in cells if cell.inputs == kind}
        assert kinds == ({"softmax", "log_softmax"} | ({"cross_entropy"} if kind != "causal" else set())), (
            kind
        )
        assert {c.dtype for c in cells if c.inputs == kind} >= set(SIXTEEN_BITS), kind
    assert {c.dim for c in cells if c.inputs and len(c.shape) > 1} == {-1, 0, 1}
    half = [c.shape for c in cells if c.dtype == "float16" and c.option == "probabilities"]
    assert sorted(half) == [(2, 3, 256, 256), (8, 21, 64, 64), (50000, 2)]
    for option in softmax_op.OPTIONS:
        assert {c.pass_name for c in cells if c.option == option} == set(softmax_op.BACKWARD)
    ordinary = {(c.shape, c.pass_name) for c in cells if not c.option and not c.inputs and c.op == "softmax"}
    assert ordinary == {(s, p) for s in ((100, 100, 3, 3), (4, 4096, 8)) for p in softmax_op.BACKWARD}
    assert {c.shape for c in cells if c.pass_name == CREATE_GRAPH} == {(512, 1000), (4096, 1000)}


def test_edges_are_cells_of_the_cpu(capsys):
    assert ops.all_cells("cuda", ops.EDGES) == []
    assert not any(cell.edge for cell in [*ops.all_cells("cuda"), *quick.cells("cuda")])
    assert cli.main(["--device", "cuda", "--group", "edges"]) == 2
    assert "of the CPU alone" in capsys.readouterr().err


def test_no_cell_is_listed_twice():
    for group in ops.GROUPS:
        names = [cell.name for cell in ops.all_cells("cpu", group)]
        assert len(names) == len(set(names))


def test_the_full_run_has_few_edges_and_their_plain_cells():
    full = cells_of()
    edges = {cell.name for cell in cells_of("--group", "edges")}
    few = [cell.name for cell in full if cell.edge]
    assert 0 < len(few) < len(edges) / 8 and edges.issuperset(few)
    assert {cell.op for cell in full if cell.edge} == set(ops.OPS) - {*options.OWN_OPS, HEAD_OP}


@pytest.mark.parametrize("arguments", [(), ("--group", "edges"), ("--group", "full,edges"), ("--quick",)])
def test_each_kind_of_logits_is_measured_after_the_plain_ones(arguments):
    plan = cli.plan_of(cli.parse_run(list(arguments)))
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)
    seen = 0
    for _, _, cells in groups_of(plan):
        names = [cell.name for cell in cells]
        for cell in cells:
            if cell.inputs:
                assert cell.plain.name in names[: names.index(cell.name)]
                seen += 1
    assert seen


def test_plain_cells_come_with_those_that_were_chosen():
    cells = cells_of("--group", "edges", "--inputs", "causal", "--op", "softmax", "--shape", "8x1024x1024")
    assert {(c.inputs, c.edge) for c in cells} == {("causal", True), ("", False)}
    assert len(cells) == 2 * len(softmax_op.MASKED_PASSES)
    main = next(c for c in cells_of() if c.name == "softmax/no-grad/float32/512x1000")
    assert main.main  # as it is listed, not made from the masked one


def test_a_quick_run_may_be_of_a_group():
    assert all(cell.edge or not cell.inputs for cell in cells_of("--quick", "--group", "edges"))
    assert not any(cell.edge for cell in cells_of("--quick", "--group", "full"))
    assert {c.name for c in cells_of("--quick")} > {c.name for c in cells_of("--quick", "--group", "full")}


# Times plain


def rows_of(cell: Cell, **medians: float) -> list[results.Row]:
    where = {"regime": "default", "threads": 2, "status": "ok"}
    return [{"cell": cell.name, "provider": p, "median": m, **where} for p, m in medians.items()]


def test_times_plain_is_of_the_same_provider_regime_and_number_of_threads():
    cell = Cell("softmax", "no-grad", "float32", (512, 1000), inputs="half-inf")
    measured = rows_of(cell.plain, torch=2.0, softkern=1.0)
    measured += [{**row, "threads": 1, "median": 9.0} for row in measured]
    measured += [{**row, "regime": "hugepages", "median": 9.0} for row in measured]
    measured += rows_of(Cell("softmax", "forward", "float32", (512, 1000)), torch=9.0, softkern=9.0)
    rows = results.beside_plain(rows_of(cell, torch=2.5, softkern=4.0, other=1.0), cell, measured)
    assert [row["times_plain"] for row in rows] == [1.25, 4.0, None]
    assert "times_plain" not in results.beside_plain(rows_of(cell.plain, torch=2.0), cell.plain, measured)[0]


def test_what_has_no_time_has_no_times_plain():
    cell = Cell("softmax", "no-grad", "float32", (512, 1000), inputs="half-inf")
    lost = {"cell": cell.name, "provider": "torch", "status": "refused"}
    plain = {"cell": cell.plain.name, "provider": "torch", "status": "refused"}
    assert "times_plain" not in results.beside_plain([dict(lost)], cell, [plain])[0]
    (row,) = results.beside_plain(rows_of(cell, torch=1.0), cell, [plain])
    assert row["times_plain"] is None
