# SPDX-License-Identifier: Apache-2.0
"""What the libraries of a wheel may need of the process that loads them, by their ELF tables.

A symbol of Python in a library for every Python, or one of torch's C++ in the library for every torch, works
where it was compiled and fails at some users'.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from elftools.elf.elffile import ELFFile

SYSTEM = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
SYSTEM |= {"ld-linux-aarch64.so.1", "libdl.so.2", "librt.so.1", "libpthread.so.0"}
PYTHON = re.compile(r"_?Py[A-Z_]|_ZN8pybind11")
TORCHS_CXX = re.compile(r"_Z(T[ISV])?NK?(2at|3c10|5torch|6caffe2)\d")


class Rule(NamedTuple):
    libraries: set[str]  # that it may need, besides the system's
    forbidden: list[re.Pattern[str]]  # symbols that it may not take from others
    exports: re.Pattern[str] | None  # the only symbols that others may take from it; None: no rule


RULES = {
    "libsoftkern.so": Rule(set(), [PYTHON, TORCHS_CXX], re.compile(r"_Z\w*8softkern(3cpu|4cuda)")),
    "stable.so": Rule({"libsoftkern.so", "libtorch.so", "libtorch_cpu.so"}, [PYTHON, TORCHS_CXX], None),
    "torch*.so": Rule({"libsoftkern.so", "libc10.so", "libtorch_cpu.so"}, [PYTHON], None),
    "_behind.abi3.so": Rule(set(), [TORCHS_CXX], re.compile("PyInit__behind")),
}  # fmt: skip


class Tables(NamedTuple):
    needed: set[str]
    undefined: set[str]
    defined: set[str]


def tables(path: Path) -> Tables:
    with path.open("rb") as file:
        elf = ELFFile(file)
        dynamic, symbols = elf.get_section_by_name(".dynamic"), elf.get_section_by_name(".dynsym")
        needed = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
        undefined, defined = set(), set()
        for symbol in symbols.iter_symbols():
            if symbol.name and symbol["st_info"]["bind"] != "STB_LOCAL":
                (undefined if symbol["st_shndx"] == "SHN_UNDEF" else defined).add(symbol.name)
    return Tables(needed, undefined, defined)


def problems(folder: Path) -> list[str]:
    """What breaks a rule in the libraries of an unpacked wheel."""
    found = []
    for pattern, rule in RULES.items():
        paths = sorted(folder.rglob(pattern))
        if not paths and pattern != "stable.so":
            found.append(f"{pattern}: not there")
        for path in paths:
            found += [f"{path.name}: {problem}" for problem in broken(tables(path), rule)]
    return found


def broken(has: Tables, rule: Rule) -> list[str]:
    found = [f"needs {name}" for name in sorted(has.needed - rule.libraries - SYSTEM)]
    for pattern in rule.forbidden:
        found += [f"takes {name} from others" for name in sorted(has.undefined) if pattern.match(name)]
    if rule.exports is not None:
        found += [f"exports {name}" for name in sorted(has.defined) if not rule.exports.match(name)]
    return found
