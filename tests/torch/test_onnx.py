# SPDX-License-Identifier: Apache-2.0
"""Both exporters to ONNX accept models that call softkern, by name and installed; ONNX's results are equal.

An export takes seconds, so each uses one model that calls everything.
"""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F

import softkern

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters' own

X = torch.linspace(-2, 2, 15).sin().reshape(3, 5)
Y = torch.tensor([0, 4, -100])
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0])


class Model(torch.nn.Module):
    """Functions and modules of a namespace of functions and one of modules."""

    def __init__(self, functional, nn):
        super().__init__()
        self.functional = functional
        self.layer = torch.nn.Linear(5, 5)
        self.softmax, self.log_softmax, self.loss = nn.Softmax(0), nn.LogSoftmax(-1), nn.CrossEntropyLoss()

    def forward(self, x, y):
        f, x = self.functional, self.layer(x)
        rows = f.softmax(x, 1), f.log_softmax(x, -1), self.softmax(x), self.log_softmax(x)
        return *rows, f.cross_entropy(x, y, WEIGHT), f.cross_entropy(x, y, reduction="sum"), self.loss(x, y)


class Own(Model):
    """With what torch's functions lack."""

    def __init__(self):
        super().__init__(softkern, softkern)

    def forward(self, x, y):
        narrow = softkern.cross_entropy(x, y.int())
        return *super().forward(x, y), narrow, softkern.cross_entropy(x * 1, y, inplace_backward=True)


class Installed(Model):
    """By every name that softkern is behind."""

    def __init__(self):
        super().__init__(F, torch.nn)

    def forward(self, x, y):
        softmaxes = torch.softmax(x, 1), torch.special.softmax(x, 1), x.softmax(1)
        logs = torch.log_softmax(x, 1), torch.special.log_softmax(x, 1), x.log_softmax(1)
        return *super().forward(x, y), *softmaxes, *logs


def by_the_old_exporter(model):
    file = io.BytesIO()
    axes = {"input_names": ["x", "y"], "dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}}
    torch.onnx.export(model, (X, Y), file, dynamo=False, verbose=False, **axes)
    return file.getvalue()


def by_the_new_exporter(model):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    if isinstance(model, torch.export.ExportedProgram):
        program = torch.onnx.export(model, dynamo=True, verbose=False)
    else:
        shapes = {"dynamic_shapes": ({0: "n"}, {0: "n"})}
        program = torch.onnx.export(model, (X, Y), dynamo=True, verbose=False, **shapes)
    return program.model_proto.SerializeToString()


over_exporters = pytest.mark.parametrize("export", (by_the_old_exporter, by_the_new_exporter))


def assert_right(data, model, x=X, y=Y):
    """What the model computes, of nodes that are ONNX's own."""
    assert {node.domain for node in onnx.load_from_string(data).graph.node} <= {
        "",
        "pkg.onnxscript.torch_lib",
    }
    got = onnxruntime.InferenceSession(data).run(None, {"x": x.numpy(), "y": y.numpy()})
    want = model(x, y)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b.detach(), rtol=1e-5, atol=1e-5)


@over_exporters
def test_models_by_name(export):
    """Of any number of rows; and softkern is what it was afterwards."""
    model = Own()
    data = export(model)
    for n in (2, 7):
        assert_right(data, model, torch.randn(n, 5), torch.arange(n) % 5)
    assert "softkern::softmax" in str(torch.jit.trace(model, (X, Y)).inlined_graph)
    assert "softkern.softmax" in torch.export.export(model, (X, Y)).graph_module.code


@over_exporters
def test_installed(export, restored):
    softkern.install()
    model = Installed()
    assert_right(export(model), model)


@pytest.mark.parametrize("strict", (False, True))
def test_programs_that_torch_export_has_made(strict):
    """They hold softkern's ops, and are exported all the same."""
    model = Own()
    program = torch.export.export(model, (X, Y), strict=strict)
    assert "softkern" in program.graph_module.code
    assert_right(by_the_new_exporter(program.run_decompositions() if strict else program), model)


def test_a_backend_that_was_named_does_not_matter():
    model = Own()
    with softkern.use_backend("portable"):
        data = by_the_old_exporter(model)
    assert_right(data, model)
