# SPDX-License-Identifier: Apache-2.0
"""Programs of torch.export and torch.jit.trace, installed and by name, and where they can be loaded."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import problem

import softkern

# What torch says about itself while it exports and traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),  # of torch.export.save
]

X, Y, _ = problem((6, 10))


class Model(torch.nn.Module):
    def __init__(self, functional=F, owner=torch):
        super().__init__()
        self.functional, self.owner = functional, owner

    def forward(self, x):
        loss = self.functional.cross_entropy(x, Y) + self.owner.softmax(x, 1).sum()
        return loss + x.log_softmax(1).sum() + torch.nn.Softmax(0)(x)[0]


@pytest.mark.parametrize("strict", (True, False))
def test_an_exported_program_holds_torchs_ops(strict):
    """It is loaded where softkern may not be."""
    with softkern.installed():
        program = torch.export.export(Model(), (X,), strict=strict)
        traced = torch.export.export(Model(softkern, softkern), (X,), strict=strict)
    assert "softkern" not in " ".join(str(n.target) for n in program.graph.nodes)
    torch.testing.assert_close(program.module()(X), Model()(X))
    text = str(traced.graph)
    assert "softkern.cross_entropy" in text and "softkern.softmax" in text, "called by name"


def test_a_trace_holds_torchs_ops():
    with softkern.installed():
        traced = torch.jit.trace(Model(), X)
        by_name = torch.jit.trace(Model(softkern, softkern), X)
    assert "softkern::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(X), Model()(X))
    text = str(by_name.inlined_graph)
    assert "softkern::cross_entropy" in text and "softkern::softmax" in text


LOAD = """
import sys, torch
x, y = torch.load("tensors.pt")
models = [torch.export.load(name).module() for name in ("installed.pt2", "decomposed.pt2", "twice.pt2")]
for model in (*models, torch.jit.load("installed.pt")):
    torch.testing.assert_close(model(x), y)
assert "softkern" not in sys.modules
"""


def test_what_is_saved_without_softkerns_ops_loads_where_softkern_is_not(tmp_path):
    """Made while it is installed, or by name and decomposed, at once or after torch's own decompositions."""
    with softkern.installed():
        torch.export.save(torch.export.export(Model(), (X,)), tmp_path / "installed.pt2")
        torch.jit.save(torch.jit.trace(Model(), X), tmp_path / "installed.pt")
    program = torch.export.export(Model(softkern, softkern), (X,))
    for name, by_name in (("decomposed", program), ("twice", program.run_decompositions())):
        decomposed = by_name.run_decompositions(softkern.decompositions())
        assert "softkern" not in " ".join(str(n.target) for n in decomposed.graph.nodes)
        torch.export.save(decomposed, tmp_path / f"{name}.pt2")
    torch.save((X, Model()(X)), tmp_path / "tensors.pt")
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD], check=True, cwd=tmp_path)


def test_every_op_that_a_program_may_hold_is_decomposed():
    class Everything(torch.nn.Module):
        def forward(self, x, y, w):
            logits = softkern.log_softmax(softkern.softmax(x, 0), -1)
            options = {"reduction": "none", "ignore_index": 1, "label_smoothing": 0.25}
            in_place = softkern.cross_entropy(x * 1, y, inplace_backward=True)
            return softkern.cross_entropy(logits, y.int(), w, **options) + in_place

    given = (X, Y.abs() % 10, torch.linspace(1, 2, 10))
    program = torch.export.export(Everything(), given).run_decompositions(softkern.decompositions())
    assert "softkern" not in " ".join(str(n.target) for n in program.graph.nodes)
    torch.testing.assert_close(program.module()(*given), Everything()(*given))


def test_the_example_of_decompositions():
    assert doctest.testmod(softkern.exporting, extraglobs={"torch": torch, "softkern": softkern}) == (0, 4)
