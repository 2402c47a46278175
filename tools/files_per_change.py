# SPDX-License-Identifier: Apache-2.0
"""How many files a change touches: a formula, an option, an op, an instruction set.

CONTRIBUTING.md lists the files for each kind of change. This script looks for what one that exists has left in the
sources (the example), and compares: a file that the example has and the list has not, or the other way round, is an
error. So the list stays true, and its length is the price of the next change.

    python tools/files_per_change.py              # the table; ends with 1 if a list is wrong
    python tools/files_per_change.py --tree PATH  # counts another checkout, without its lists
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("csrc", "softkern", "tools", ".ci", "setup.py", "Makefile")
SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".py", ".pyi", "", ".yml"}
# Not touched by a new one: F's own signature, which softkern.install() has to repeat; the matrix of
# softkern.verify, which tests values and not names; this script.
LEFT_OUT = ("softkern/patching.py", "softkern/verify/", "tools/files_per_change.py")


@dataclass(frozen=True)
class Kind:
    """A kind of change, by the lines that its example has left."""

    heading: str  # of the list in CONTRIBUTING.md
    example: str
    lines: str  # regular expression of a line
    names: str = r"$^"  # regular expression of a path
    most: int = 0  # files


KINDS = (
    Kind(
        "A formula",
        "the shares of label smoothing",
        r"1 ?- ?(s|e|\w*\.?(options\.)?label_smoothing)\b|(s|e|label_smoothing|smoothing) ?/ ?(C\b|classes|.*classes)",
        most=6,
    ),
    Kind("An option", "label_smoothing", r"\blabel_smoothing\b", most=10),
    Kind(
        "An op",
        "log_softmax_backward",
        r"\b(log_softmax_backward|LogSoftmaxOp|LogSoftmax)\b",
        r"log_softmax",
        most=15,
    ),
    Kind("An instruction set", "avx2", r"(?i)\bavx2\b|_avx2", r"avx2", most=5),
)


def files_of(kind: Kind, tree: Path) -> list[str]:
    """The files in which the example has left lines, or which have its name."""
    found = []
    for source in SOURCES:
        top = tree / source
        paths = sorted(p for p in top.rglob("*") if p.is_file()) if top.is_dir() else [top]
        for path in paths:
            name = path.relative_to(tree).as_posix()
            if path.suffix not in SUFFIXES or name.startswith(LEFT_OUT) or "__pycache__" in name:
                continue
            if re.search(kind.names, name) or re.search(kind.lines, path.read_text(encoding="utf-8")):
                found.append(name)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=ROOT)
    tree = parser.parse_args().tree
    for kind in KINDS:
        files = files_of(kind, tree)
        print(f"{kind.heading} ({kind.example}): {len(files)} files, at most {kind.most}")
        for name in files:
            print(f"    {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
