# SPDX-License-Identifier: Apache-2.0
"""The rows of docs/compatibility.md, and the file as text and as cells.

A row is a feature of torch; its tests carry `@pytest.mark.feature(<name>)`. The cells are found by running
them (`compatibility_plugin.py`), the notes are written here.
"""

from __future__ import annotations

from places import DOCS

OPS = ("softmax", "log_softmax", "cross_entropy")
# The columns of the page: op and heading. row_losses is cross_entropy with softkern's own options.
COLUMNS = {
    **{op: op for op in OPS},
    "row_losses": "cross_entropy with options",
    "linear_cross_entropy": "linear_cross_entropy",
}
PAGE = DOCS / "compatibility.md"
NONE = "-"  # no test: the feature is not one of this op

# heading: {feature: note}
FEATURES: dict[str, dict[str, str]] = {
    "Derivatives and function transforms": {
        "torch.func.grad": "",
        "torch.func.vjp": "",
        "torch.func.jvp": "",
        "jacrev": "",
        "jacfwd": "",
        "hessian": "",
        "grad(grad)": "",
        "vmap": "",
        "vmap(grad)": "",
        "vmap(vmap)": "",
        "vmap over other dimensions": "",
        "vmap over targets and weights": "",
        "functional_call, ensembles of modules": "",
        "functionalize": "",
        "forward-mode dual numbers": "",
        "forward over reverse, dual numbers through backward": "",
        "double backward": "the first derivative is the kernels', those of it are torch's",
        "is_grads_batched": "",
        "torch.autograd.functional.hessian, vectorised and not": "",
    },
    "Autograd": {
        "upstream gradients: ones, random, stride 0": "",
        "upstream gradients: transposed, of another dtype's cast": "",
        "inputs that are not leaves, hooks on them": "",
        "retain_graph": "",
        "a freed graph": "torch's error",
        "no_grad": "",
        "inference_mode": "",
        "gradients in probabilities and weights": "",
        "saved-tensor hooks": "",
        "save_on_cpu": "",
        "allow_mutation_on_saved_tensors": "",
        "activation checkpointing, reentrant and not": "",
        "selective checkpointing": "",
        "detect_anomaly": "",
        "deterministic algorithms": "",
    },
    "Compilers and exporters": {
        "torch.compile(fullgraph), static shapes": "backends eager, aot_eager, inductor",
        "torch.compile(fullgraph), dynamic shapes": "one graph for all sizes",
        "torch.compile(fullgraph) and torch.export of rows that a mask selects": "",
        "softkern's ops in compiled graphs, forward and backward": "",
        "torch.compile of torch.func.grad and vmap": "",
        "torch.compile of a module's functional_call": "",
        "torch.compile under autocast": "",
        "compiled autograd": "",
        "torch.export, static and dynamic shapes": "",
        "torch.export: save, load, run_decompositions": "loaded where softkern is imported: see below",
        "AOTInductor packages": "",
        "make_fx, of gradients too": "",
        "make_fx of torch.func.grad": "",
        "torch.fx.symbolic_trace": "",
        "torch.jit.trace, saved and loaded": "loaded where softkern is imported: see below",
        "torch.jit.script": "deprecated by torch; torch.jit.trace works",
    },
    "Tensors and modes": {
        "any strides": "",
        "nn.Parameter and nn.Buffer": "",
        "views with the negative bit": "",
        "nested tensors": "where torch takes them",
        "zero tensors as upstream gradients": "",
        "subclasses with __torch_function__": "",
        "subclasses with __torch_dispatch__": "they know torch's ops alone, so they get these",
        "TorchFunctionMode": "",
        "TorchDispatchMode": "",
        "meta tensors, their backward too": "",
        "fake tensors, their backward too": "",
        "CPU autocast to bfloat16 and float16": "F's dtypes",
        "autocast disabled within autocast": "",
        "autocast around a layer, gradients of its parameters": "",
    },
    "Many at once": {
        "DTensor, rows sharded or replicated": "a mean is that of all rows",
        "DTensor, classes sharded": "over one mesh dimension; no second derivatives",
        "DistributedDataParallel": "",
        "FSDP2 (fully_shard)": "",
        "DataParallel": "",
        "several Python threads": "in forked and spawned processes too",
    },
    "Modules and the rest": {
        "modules: copy.deepcopy": "",
        "modules: pickle": "",
        "modules: torch.save and torch.load": "",
        "modules: state_dict loaded with weights_only": "",
        "modules: hooks, to(), half(), train and eval": "",
        "results: torch.save and copy.deepcopy": "",
        "no warnings but torch's": "",
    },
}

HEAD = """# Compatibility with torch's features

This page says which of torch's features run in softkern's kernels, which go through torch, and which are
not supported. `pytest tests --write-compatibility` writes it, and a test run fails if it finds other cells.
The tests of a cell compare values with `torch.nn.functional`: `git grep 'feature("<row>"' tests` finds
them.

- **fused**: softkern's kernels computed the results and their gradients; torch's softmax did not run.
- **through torch**: softkern passes the call to torch's function. The results are right, at torch's speed.
- **fused + torch**: kernels compute the results, torch's formulas the derivatives of higher order.
- **shapes**: there are no values to compute.
- **not supported**: raises an error where torch's function does not.
- **-**: the op does not have this feature, or no test of its own for it.

The cells are those of tensors on the CPU. "cross_entropy with options" is `softkern.cross_entropy` with
softkern's own options and row statistics, which `softkern.linear_cross_entropy` has, too; both are compared
with the same formulas in torch.
"""

NOTES = """
## Programs that leave the process

`torch.export` and `torch.jit.trace` keep calls of softkern by name as softkern's ops. Such a program can be
loaded only after softkern was imported; otherwise torch reports that it does not know `softkern::...`. In
programs of `torch.export`, `softkern.decompositions()` replaces these ops with torch's:

    torch.export.save(program.run_decompositions(softkern.decompositions()), "model.pt2")

Programs that are made while softkern is [installed](install.md) contain torch's ops, unless softkern is
called by name. `torch.onnx.export` always uses torch's ops, for models with `dynamo=True` and without, and
for programs of `torch.export` with `dynamo=True`: ONNX does not have softkern's ops.

## Other differences

- `isinstance(y.grad_fn, torch.autograd.graph.Node)` is False, as for the C++ nodes of every extension. The
  nodes have the methods of torch's: `name()`, `next_functions`, `metadata`, `register_hook`,
  `register_prehook`.
- The kernels require that the CPU rounds to nearest. In another mode (`fesetround`) the errors are up to
  about 2e-11 in float64 and 2e-5 in float32; torch's are 7e-14 and 8e-5.
- Some tools look modules up by their exact type (captum's `DeepLift`, the leaf modules of `torch.fx`). They
  know `torch.nn.Softmax`, but not its subclass `softkern.Softmax`. For them, use torch's modules and
  [install](install.md) softkern.
"""


def features() -> list[str]:
    return [name for rows in FEATURES.values() for name in rows]


def render(cells: dict[tuple[str, str], str]) -> str:
    """The page for {(feature, op): cell}."""
    parts = [HEAD]
    for heading, rows in FEATURES.items():
        parts.append(f"\n## {heading}\n\n| feature | {' | '.join(COLUMNS.values())} | notes |\n")
        parts.append(f"|{'---|' * (len(COLUMNS) + 2)}\n")
        for feature, note in rows.items():
            line = " | ".join(cells.get((feature, op), NONE) for op in COLUMNS)
            parts.append(f"| {feature} | {line} | {note} |".replace("|  |", "| |") + "\n")
    return "".join((*parts, NOTES))


def parse(text: str) -> dict[tuple[str, str], str]:
    """The cells of a page, without those that stand for no test."""
    cells = {}
    for line in text.splitlines():
        if not line.startswith("| ") or line.startswith("| feature |"):
            continue
        feature, *row = (cell.strip() for cell in line.strip("|").split("|"))
        pairs = zip(COLUMNS, row[: len(COLUMNS)], strict=True)
        cells |= {(feature, op): cell for op, cell in pairs if cell != NONE}
    return cells


def committed() -> dict[tuple[str, str], str]:
    return parse(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
