# SPDX-License-Identifier: Apache-2.0
"""Write the generated parts of docs/<op>.md, made from docstrings, docs/accuracy.json and calls.

    python tools/write_docs.py            # write the pages
    python tools/write_docs.py --check    # only say which of them are out of date

docs/parallel.md is that of softkern.parallel.cross_entropy. The parts lie between markers,
<!-- NAME: begin --> and <!-- NAME: end -->; the rest of a page is written by hand.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import inspect
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure_accuracy import measured_with
from torch import Tensor

import softkern
import softkern.parallel
from softkern import row_losses
from softkern.parallel import cost

DOCS = Path(__file__).resolve().parent.parent / "docs"
OPS: dict[str, Callable[..., Any]] = {
    "softmax": softkern.softmax,
    "log_softmax": softkern.log_softmax,
    "cross_entropy": softkern.cross_entropy,
    "selective_log_softmax": softkern.selective_log_softmax,
    "entropy_from_logits": softkern.entropy_from_logits,
    "linear_cross_entropy": softkern.linear_cross_entropy,
    "parallel": softkern.parallel.cross_entropy,
}
OF_F = ("softmax", "log_softmax", "cross_entropy")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)

_OF_SOFTMAX = (
    "softkern.{op}(torch.zeros(2, 3), dim=2)",
    "softkern.{op}(torch.zeros(2, 3), dim='batch')",
    "softkern.{op}(torch.zeros(2, 3, dtype=torch.int64), dim=1)",
    "softkern.{op}([0.0, 1.0], dim=0)",
)
_OF_LOGITS = (
    "softkern.{op}(logits{index}, softcap=0.0)",
    "softkern.{op}(logits{index}, temperature=-1.0)",
    "softkern.{op}(logits{index}, logit_scale=float('inf'))",
    "softkern.{op}(logits.long(){index})",
)
# Calls that raise; `logits` is (2, 3), as a page says.
GUARDS = {
    "softmax": tuple(call.format(op="softmax") for call in _OF_SOFTMAX),
    "log_softmax": tuple(call.format(op="log_softmax") for call in _OF_SOFTMAX),
    "cross_entropy": (
        "softkern.cross_entropy(logits, torch.tensor([0, 9]))",
        "softkern.cross_entropy(logits, torch.tensor([0, -1]))",
        "softkern.cross_entropy(logits, torch.tensor([0, 1, 2]))",
        "softkern.cross_entropy(logits, torch.tensor([0.0, 1.0]))",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), torch.ones(2))",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), torch.ones(3, dtype=torch.float64))",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), reduction='average')",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), label_smoothing=1.5)",
        "softkern.cross_entropy(logits, logits.softmax(1), ignore_index=0)",
        "softkern.cross_entropy(logits.requires_grad_(), torch.tensor([0, 1]), inplace_backward=True)",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), row_weight=torch.ones(3))",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), row_weight=torch.ones(2, dtype=torch.float64))",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), num_items=torch.ones(2))",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), valid_classes=4)",
        "softkern.cross_entropy(logits, torch.tensor([0, 2]), valid_classes=2)",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), target_probs=torch.ones(2))",
        "softkern.cross_entropy(logits, torch.eye(2).long(), target_probs=torch.eye(2), ignore_index=0)",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), softcap=0.0)",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), temperature=-1.0)",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), logit_scale=float('inf'))",
        "softkern.cross_entropy(logits, torch.tensor([0, 1]), stats=('probability',))",
        "softkern.cross_entropy(logits, logits.softmax(1), stats=('log_prob',))",
    ),
    "selective_log_softmax": (
        "softkern.selective_log_softmax(logits, torch.tensor([0, 3]))",
        "softkern.selective_log_softmax(logits, torch.tensor([0, 1, 2]))",
        "softkern.selective_log_softmax(logits, torch.tensor([0.0, 1.0]))",
        *(call.format(op="selective_log_softmax", index=", torch.tensor([0, 1])") for call in _OF_LOGITS),
    ),
    "entropy_from_logits": (
        "softkern.entropy_from_logits(logits, dim=2)",
        "softkern.entropy_from_logits(logits, dim='classes')",
        *(call.format(op="entropy_from_logits", index="") for call in _OF_LOGITS),
    ),
    "linear_cross_entropy": (
        *(
            f"softkern.linear_cross_entropy({arguments})"
            for arguments in (
                "logits, torch.ones(4, 2), torch.tensor([0, 1])",
                "logits, torch.ones(3), torch.tensor([0, 1])",
                "logits, torch.ones(4, 3), torch.tensor([0, 1]), linear_bias=torch.ones(3)",
                "logits, torch.ones(4, 3).double(), torch.tensor([0, 1])",
                "logits[0], torch.ones(4, 5, 3), torch.tensor(0)",
                "logits, torch.ones(4, 3), torch.tensor([0, 4])",
                "logits, torch.ones(4, 3), torch.tensor([0, 1, 2])",
                "logits[None], torch.ones(4, 3), torch.tensor([0, 1])",
                "logits, torch.ones(4, 3), torch.ones(2, 4), ignore_index=-100",
                "logits, torch.ones(4, 3), torch.tensor([0, 1]), reduction='average'",
                "logits, torch.ones(4, 3), torch.tensor([0, 1]), options='lean'",
                "logits, torch.ones(4, 3), torch.tensor([0, 1]), row_weight=torch.ones(3)",
            )
        ),
        "softkern.LinearCrossEntropyOptions(plan='tiny')",
        "softkern.LinearCrossEntropyOptions(max_bytes=0)",
        "softkern.LinearCrossEntropyOptions(chunk_rows=0.5)",
    ),
    # In a group of one rank.
    "parallel": tuple(
        f"softkern.parallel.cross_entropy({arguments})"
        for arguments in (
            "logits, torch.tensor([0, 3])",
            "logits, torch.tensor([0, 1, 2])",
            "logits, torch.tensor([0, 1]), classes=4",
            "logits[:, :0], torch.tensor([0, 1])",
            "logits, torch.ones(2, 4)",
            "logits, torch.tensor([0, 1]), weight=torch.ones(2)",
            "logits, torch.tensor([0, 1]), weight=torch.ones(3).requires_grad_()",
            "logits, torch.tensor([0, 1]), row_weight=torch.ones(3)",
            "logits, torch.tensor([0, 1]), valid_classes=4",
            "logits, torch.tensor([0, 1]), stats=('probability',)",
            "logits, torch.tensor([0, 1]), tiles=2",
            "logits, torch.tensor([0, 1]), exchange='ring'",
            "logits, torch.tensor([0, 1]), row_chunks=0",
        )
    ),
}


def markdown(text: str) -> str:
    """A docstring's inline markup in GitHub's Markdown."""
    text = re.sub(r":math:`([^`]+)`", r"$`\1`$", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"`docs/(\w+\.md)`", r"[\1](\1)", text)


def one_line(text: str) -> str:
    return " ".join(text.split())


def entries(block: str) -> list[tuple[str, str]]:
    """Entries `name: text`; further lines of a text are indented."""
    found = re.findall(r"^(\S[^:]*):\s(.*(?:\n[ ]+.*)*)", textwrap.dedent(block), re.MULTILINE)
    if not found:
        raise ValueError(f"no `name: text` in {block!r}")
    return [(name, markdown(one_line(text))) for name, text in found]


def section(paragraph: str) -> str:
    """One paragraph of a docstring in Markdown."""
    head, _, body = paragraph.partition("\n")
    if head.startswith(".. math::"):
        formula = textwrap.dedent(paragraph.removeprefix(".. math::").replace("\n", "\n ")).strip()
        return f"```math\n{one_line(formula)}\n```"
    if head == "Args:":
        rows = [f"| `{names.replace(', ', '`, `')}` | {text} |" for names, text in entries(body)]
        return "\n".join(["| argument | |", "|---|---|", *rows])
    if head == "Raises:":
        rows = [f"| `{name}` | {text} |" for name, text in entries(body)]
        return "\n".join(["| raises | when |", "|---|---|", *rows])
    if head == "Returns:":
        return f"**Returns:** {markdown(one_line(body))}"
    if label := re.match(r"(Gradients|Error|Bits|Memory|Differs from torch|Source): ", head):
        return f"**{label[1]}:** {markdown(one_line(paragraph[label.end() :]))}"
    return markdown(one_line(paragraph))


def signature(function: Callable[..., Any]) -> str:
    """The signature as the source has it, with the keywords of the function that gets `**options`."""
    head = _head(function)
    if "**options" in head:
        own = _head(row_losses.cross_entropy).partition("    *,\n")[2].rpartition(")")[0]
        head = re.sub(r"^    \*\*options.*\n", own, head, flags=re.MULTILINE)
    return head.rstrip().removesuffix(":")


def _head(function: Callable[..., Any]) -> str:
    """The lines of a source above the docstring."""
    source = inspect.getsource(function)
    definition = ast.parse(source).body[-1]
    assert isinstance(definition, ast.FunctionDef)
    return "".join(source.splitlines(keepends=True)[definition.lineno - 1 : definition.body[0].lineno - 1])


def docstring_block(op: str) -> str:
    doc = inspect.getdoc(OPS[op])
    assert doc, f"softkern.{op} has no docstring"
    parts = [section(p) for p in re.split(r"\n\s*\n", doc)]
    return "\n\n".join([f"```python\n{signature(OPS[op])}\n```", *parts])


def error_block(op: str) -> str:
    measured = json.loads((DOCS / "accuracy.json").read_text())
    lines = ["| result | dtype | softkern, ulp | torch, ulp |", "|---|---|---:|---:|"]
    of_op = [{**row, "result": row["op"]} for row in measured["rows"] if row["op"] in (op, f"{op} gradient")]
    if op not in OF_F:
        measured = measured["options"]
        of_op = [row for row in measured["rows"] if row["op"] == op]
    for name, dtype in dict.fromkeys((row["result"], row["dtype"]) for row in of_op):
        rows = [row for row in of_op if (row["result"], row["dtype"]) == (name, dtype)]
        worst = (max(row[of] for row in rows) for of in ("softkern", "torch"))
        lines.append(f"| {name} | {dtype} | {' | '.join(f'{value:,.2f}' for value in worst)} |")
    return f"{measured_with(measured['environment'])}\n\n" + "\n".join(lines)


def call(op: str, dtype: torch.dtype) -> Tensor:
    x = torch.ones(2, 3).to(dtype)
    if op == "linear_cross_entropy":
        loss: Tensor = OPS[op](x, torch.ones(4, 3).to(dtype), torch.tensor([0, 1]))
        return loss
    of_targets = op in ("cross_entropy", "selective_log_softmax")
    result: Tensor = OPS[op](x, torch.tensor([0, 1])) if of_targets else OPS[op](x, dim=1)
    return result


def dtype_block(op: str) -> str:
    lines = ["| `input` | computed by | computed in | result |", "|---|---|---|---|"]
    for dtype in DTYPES:
        try:
            result = call(op, dtype)
        except Exception as error:
            as_f = ", as F does" if op in (*OF_F, "linear_cross_entropy") else ""
            lines.append(f"| {_short(dtype)} | none: raises {type(error).__name__}{as_f} | | |")
            continue
        within = dtype if dtype == torch.float64 else torch.float32
        by = f"softkern | {_short(within)}" if has_kernel(op, dtype) else f"torch | {_short(dtype)}"
        lines.append(f"| {_short(dtype)} | {by} | {_short(result.dtype)} |")
    return "\n".join(lines)


def has_kernel(op: str, dtype: torch.dtype) -> bool:
    """Uses that a named backend computes or raises, and never falls back."""
    with softkern.use_backend("portable"):
        try:
            call(op, dtype)
        except RuntimeError:
            return False
    return True


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def guard_block(op: str) -> str:
    with one_rank() if op == "parallel" else contextlib.nullcontext():
        rows = [f"| `{guarded}` | {raised(guarded)} |" for guarded in GUARDS[op]]
    return "\n".join([f"Texts as of torch {torch_minor()}.", "", "| call | raises |", "|---|---|", *rows])


def raised(guarded: str) -> str:
    try:
        eval(guarded, {"torch": torch, "softkern": softkern, "logits": torch.zeros(2, 3)})
    except Exception as error:
        text = str(error).splitlines()[0].replace("|", "\\|")
        return f"{type(error).__name__}: {text}"
    raise AssertionError(f"{guarded} raised nothing")


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def cost_block(op: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cost.main([])
    return f"```\n$ python -m softkern.{op}.cost\n{printed.getvalue()}```"


def torch_minor() -> str:
    return ".".join(torch.__version__.split(".")[:2])


BLOCKS = {
    "docstring": docstring_block,
    "dtypes": dtype_block,
    "guards": guard_block,
    "errors": error_block,
    "cost": cost_block,
}


def blocks_of(op: str) -> list[str]:
    """The generated parts of an op's page. What has not been measured has no table of errors."""
    if op == "parallel":
        return ["docstring", "guards", "cost"]
    missing = {"cost", "errors"} if op == "linear_cross_entropy" else {"cost"}
    return [block for block in BLOCKS if block not in missing]


def between(block: str) -> tuple[str, str]:
    return f"<!-- {block}: begin -->\n", f"<!-- {block}: end -->"


def written(page: str, op: str, blocks: list[str]) -> str:
    """The page with these blocks made again."""
    for block in blocks:
        begin, end = between(block)
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"docs/{op}.md: expected the markers of {block!r} once")
        head, tail = page.split(begin)[0], page.split(end)[1]
        page = f"{head}{begin}{BLOCKS[block](op)}\n{end}{tail}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if it would change")
    check = parser.parse_args().check
    stale = False
    for op in OPS:
        path = DOCS / f"{op}.md"
        old = path.read_text(encoding="utf-8")
        new = written(old, op, blocks_of(op))
        stale = stale or new != old
        if not check:
            path.write_text(new, encoding="utf-8")
        for line in difflib.unified_diff(old.splitlines(), new.splitlines(), path.name, "new", lineterm=""):
            print(line)
    raise SystemExit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
