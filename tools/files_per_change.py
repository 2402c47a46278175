# SPDX-License-Identifier: Apache-2.0
"""How many files a change touches: a formula, an option, an op, an instruction set.

CONTRIBUTING.md lists the files for each kind of change. This script looks for the lines that an existing
example of the kind has in the sources, and compares: a file with such lines that the list lacks is an error,
and so is a listed file without them. So the lists stay true, and their length is the cost of the next change.

    python tools/files_per_change.py              # the table; ends with 1 if a list is wrong or too long
    python tools/files_per_change.py --tree PATH  # counts another checkout, without its lists
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("csrc", "softkern", ".ci", "setup.py", "Makefile")
SUFFIXES = ("", ".h", ".cpp", ".cu", ".cuh", ".py", ".pyi")
# F's own signature, which softkern.install() repeats, and the matrix of softkern.verify, which is a test.
LEFT_OUT = ("softkern/patching.py", "softkern/verify/")


@dataclass(frozen=True)
class Kind:
    heading: str  # of the list in CONTRIBUTING.md
    example: str
    lines: str  # regular expression of a line that the example has
    most: int  # files
    placeholder: str = ""  # what the list writes for the example's name
    name: str = ""  # of the example, in paths

    def files(self, tree: Path) -> list[str]:
        """The files that have such lines, or the example's name."""
        found = []
        for source in SOURCES:
            top = tree / source
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                name = path.relative_to(tree).as_posix()
                if path.suffix not in SUFFIXES or name.startswith(LEFT_OUT) or not path.is_file():
                    continue
                named = self.name and self.name in path.stem
                if named or re.search(self.lines, path.read_text(encoding="utf-8")):
                    found.append(name)
        return sorted(found)

    def listed(self, page: str) -> list[str]:
        """The files that CONTRIBUTING.md lists: the first word in code of each point."""
        section = re.search(rf"^## {self.heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None, f"CONTRIBUTING.md has no section {self.heading!r}"
        names = re.findall(r"^- `([^`]+)`", section[1], re.MULTILINE)
        return sorted(
            name.replace(self.placeholder, self.name) if self.placeholder else name for name in names
        )


KINDS = (
    Kind(
        "A new formula",
        "the shares of label smoothing",
        r"\b1 ?- ?(s\b|e\b|(\w+\.)?label_smoothing)|\bs ?/ ?(C|classes)\b|\be / classes\b|label_smoothing ?/",
        9,
    ),
    Kind("A new option", "z_loss", r"\bz_loss\b", 14),
    Kind(
        "A new op",
        "log_softmax and its backward",
        r"log_softmax_backward|def log_softmax\(|\"log_softmax\"|class LogSoftmax\b",
        16,
        "<op>",
        "log_softmax",
    ),
    Kind("A new instruction set", "avx512", r"[Aa]vx512", 5, "<isa>", "avx512"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, help="another checkout: counted, without its lists")
    tree = parser.parse_args().tree
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    wrong = 0
    for kind in KINDS:
        files = kind.files(tree or ROOT)
        print(f"{kind.heading} ({kind.example}): {len(files)} files, at most {kind.most}")
        listed = files if tree else kind.listed(page)
        for name in sorted({*files, *listed}):
            missing = "" if name in listed else "  not in CONTRIBUTING.md"
            missing = missing if name in files else "  listed, but the example has nothing there"
            print(f"    {name}{missing}")
        wrong += files != listed or len(files) > kind.most
    return 0 if tree else int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
