# SPDX-License-Identifier: Apache-2.0
"""The cells of --quick: tiny, but with every op, pass, option, kind of logits, layout and regime."""

from __future__ import annotations

from benchmarks import inputs, options
from benchmarks.cells import CREATE_GRAPH, HEAD_OP, Case, Cell, expand
from benchmarks.ops import cross_entropy, end_to_end, selective_log_softmax, softmax

WHOLE = ("no-grad", "forward+backward")
NORMALISERS = (
    Case((64, 10), main=True),
    Case((512, 1000), main=True, passes=WHOLE),  # large enough for the regimes and the peak memory
    Case((4, 10, 6), dim=1, passes=WHOLE),
    *(Case((4, 10, 10), passes=("no-grad",), inputs=kind, edge=True) for kind in inputs.KINDS),
    *(Case((64, 10), passes=("backward",), option=option, edge=True) for option in softmax.OPTIONS),
)
LOSS = (
    Case((64, 10), dim=1, main=True, passes=("no-grad", "forward", "backward")),
    Case((64, 10), dim=1, main=True, passes=("forward+backward",), compiled=True),
    Case((512, 1000), dim=1, main=True, passes=WHOLE),
    Case((2, 5, 8, 8), dim=1, passes=WHOLE, dtypes=("float32", "bfloat16")),
    *(Case((64, 10), dim=1, passes=WHOLE, option=option) for option in cross_entropy.OPTIONS),
    Case((64, 10), dim=1, passes=WHOLE, inputs="half-inf", edge=True),
    Case((64, 10), 1, ("float16",), ("forward+backward",), "probabilities", edge=True),
    Case((64, 10), dim=1, passes=(CREATE_GRAPH,), edge=True),
    *(Case((64, 10), dim=1, passes=("forward+backward",), option=option) for option in options.OWN),
)
TOKENS = (
    Case((4, 16, 10), dtypes=("float32", "bfloat16"), passes=WHOLE, option=selective_log_softmax.ENTROPY),
)
HEADS = (
    Case((12, 20, 1000), dtypes=("float32", "bfloat16"), passes=WHOLE),
    Case((32, 8, 8192), passes=("forward+backward",)),  # large enough for the peak memory
)


def cells(device: str) -> list[Cell]:
    found = expand("softmax", NORMALISERS, device) + expand("log_softmax", NORMALISERS, device)
    found += expand("cross_entropy", LOSS, device) + expand("selective_log_softmax", TOKENS, device)
    found += expand(HEAD_OP, HEADS, device)
    found.append(Cell(end_to_end.HEAD, "step", "float32", (64, 1000), 1, device=device, main=True))
    if device != "cpu":
        return [cell for cell in found if not cell.edge]
    return [*found, Cell("zoo", "epoch", "float32", main=True)]
