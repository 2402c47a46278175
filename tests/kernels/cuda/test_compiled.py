# SPDX-License-Identifier: Apache-2.0
"""nvcc's output for the CUDA kernels, with or without a GPU: registers, spills, stack and accesses for each
architecture, and an extension that loads. It reads the objects and texts that a build leaves in
build/cuda."""

from __future__ import annotations

import functools
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from places import ROOT

import softkern

BUILD = softkern._C.build()
# Another architecture list leaves other objects; the default one has these.
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
OBJECTS = sorted(path.relative_to(ROOT / "build/cuda").stem for path in (ROOT / "build/cuda").glob("*.o"))

pytestmark = [
    pytest.mark.skipif(
        not BUILD["cuda_architectures"],
        reason="built without CUDA kernels; FORCE_CUDA=1 compiles them where nvcc is",
    ),
    pytest.mark.skipif(BUILD["cuda_emulated"], reason="the emulated kernels are the host compiler's"),
    pytest.mark.skipif(
        BUILD["cuda_architectures"] != "8.0;9.0;10.0;12.0+PTX", reason="built for other architectures"
    ),
    pytest.mark.skipif(not OBJECTS, reason="installed from elsewhere: no objects in build/cuda"),
]

# softmax's and log_softmax's, of one row kept in registers, in shared memory or read again; cross_entropy's,
# whose first parameter says how the target mass is spread; and row_losses', whose first is the form of the
# kernel, also for some classes of rows. Then how they access it, and what a thread keeps, if it may.
KERNEL = re.compile(
    r"(?:(?P<softmax>forward|backward)(?P<sharing>_shared)?_kernelINS1_\w+?OpE"
    r"|(?P<loss>cross_entropy|row_losses|row_parts)(?P<lossing>_shared)?_kernelI)"
    r"(?P<element>f|d|NS_8BFloat16E|NS_4HalfE)"
    r"(?:LNS\w*?_6SpreadE(?P<spread>[012])E|LNS\w*?_4FormE(?P<form>[012])E)?"
    r"LNS\w*?_6AccessE(?P<access>[012])E(?:Li(?P<kept>\d+)E)?"
)
# Of rows whose classes are apart, in shared memory.
COLUMNS = re.compile(r"_columns_kernelI\w*?(?P<element>f|d|NS_8BFloat16E|NS_4HalfE)(?:LNS|EEv)")
TILE = re.compile(
    r"tile_kernelI\w*?(?P<element>f|d|NS_8BFloat16E|NS_4HalfE)"
    r"(?:LNS\w*?_6SpreadE(?P<spread>[012])E|LNS\w*?_4FormE(?P<form>[012])E)?Li(?P<kept>8|16|32)E"
)
BY_ELEMENTS, BY_VECTORS, SPANS = "012"
NO_SPREAD, UNIFORM, ANY_SPREAD = "012"
IN_16_BYTES = {"f": 4, "d": 2, "NS_8BFloat16E": 8, "NS_4HalfE": 8}


class Use(NamedTuple):
    registers: int
    stack: int
    spilled: int


def compiled() -> dict[str, dict[str, Use]]:
    """Of each architecture, what its kernels use."""
    found: dict[str, dict[str, Use]] = defaultdict(dict)
    for path in (ROOT / "build/cuda").glob("*.log"):
        name = architecture = ""
        stack = spilled = -1
        for line in path.read_text().splitlines():
            if entry := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
                name, architecture = entry.groups()
                name = f"{path.stem}: {name}"
            elif memory := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
                stack, spilled = map(int, memory.groups())
            elif used := re.search(r"Used (\d+) registers", line):
                found[architecture][name] = Use(int(used[1]), stack, spilled)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills_or_has_a_stack(architecture):
    kernels = compiled()[architecture]
    assert len(kernels) > 180, len(kernels)
    assert {name: use for name, use in kernels.items() if use.stack or use.spilled} == {}


def is_shared(match: re.Match[str]) -> bool:
    return bool(match["sharing"] or match["lossing"])


def ceiling(name: str) -> int:
    """Registers of a thread, so that a multiprocessor has room for 1,024 threads of the kernels that keep
    short rows or are the usual ones, 512 of those with more to remember."""
    match = KERNEL.search(name)
    if "scale_kernel" in name:
        return 64
    if "row_merge_kernel" in name:
        return 128 if "kernelId" in name else 80
    if tile := TILE.search(name):  # blocks of 128 threads (float64: 64), whose threads keep up to 8, 16 or 32
        # One more tensor, or sums of several indices: room for three blocks of them.
        several = tile["spread"] == ANY_SPREAD or tile["form"] == "2"
        if tile["element"] == "d":
            return 255 if several else 192 if tile["kept"] == "32" else 128
        return 168 if several else 96 if tile["kept"] == "32" else 80
    if columns := COLUMNS.search(name):  # as many threads as of rows in shared memory
        return 168 if columns["element"] == "d" else 80
    if match is None:  # sums
        return 100
    element, access, kept = match["element"], match["access"], int(match["kept"] or 0)
    if is_shared(match):  # 768 threads on a multiprocessor, 384 with elements of 8 bytes
        return 168 if element == "d" else 80
    if match["loss"] == "row_parts":
        return 168 if element == "d" else 80 if match["form"] == "0" else 128
    double, spread = element == "d", match["spread"] == ANY_SPREAD or match["loss"] == "row_losses"
    few = access == BY_ELEMENTS and kept in (4, 8) and not (double and kept == 8)
    if few:
        return 128 if double else 112 if spread else 64
    if double or spread:
        return 255 if double and spread else 168 if access == BY_ELEMENTS else 128
    many = element not in "fd" and access == SPANS and match["loss"] and kept == 64
    return 72 if many else 128 if access == BY_ELEMENTS else 64


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registers_stay_below_what_the_blocks_leave_them(architecture):
    kernels = compiled()[architecture]
    assert {name: use.registers for name, use in kernels.items() if use.registers > ceiling(name)} == {}


def accesses(text: str, name: str, bits: int) -> list[int]:
    """The distances that instructions of that width have from their register."""
    width = "" if bits == 32 else rf"\.(?:\w+\.)*{bits}"
    found = re.findall(rf"\b{name}\.E{width}(?:\.CONSTANT)? [^;]*?\.64(?:\+(-?0x[0-9a-f]+))?\]", text)
    return [int(at or "0", 16) for at in found]


@functools.cache  # a second or several for each object
def machine_code(name: str) -> list[tuple[str, str]]:
    """Of an object, each kernel for sm_90 and its instructions."""
    nvidia = pytest.importorskip("triton.backends.nvidia", reason="its cuobjdump is Triton's")
    tool = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton has no cuobjdump")
    command = [tool, "--dump-sass", "--gpu-architecture", "sm_90", ROOT / f"build/cuda/{name}.o"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    instructions = re.sub(r" +/\* 0x[0-9a-f]{16} \*/\n?", "\n", done.stdout)  # a third of the text
    return [(text.split("\n", 1)[0].strip(), text) for text in instructions.split("Function : ")[1:]]


@pytest.mark.parametrize("name", OBJECTS)
def test_no_thread_waits_for_all_its_accesses_to_memory(name):
    """A cluster's threads did, three times a row, when its barrier released and acquired. Only several class
    indices a row need it: other blocks read what one has stored for them."""
    waits = {kernel: set(re.findall(r"\bMEMBAR\S*", text)) for kernel, text in machine_code(name)}
    several = {kernel for kernel in waits if re.search(r"row_losses_kernel\w*FormE2", kernel)}
    assert {kernel: of for kernel, of in waits.items() if of and kernel not in several} == {}
    assert all(waits[kernel] for kernel in several)


@pytest.mark.parametrize(
    "name", [name for name in OBJECTS if name.startswith(("reduce", "scale", "cross_entropy."))]
)
def test_a_kernel_that_begins_early_waits_before_it_accesses_memory(name):
    for kernel, text in machine_code(name):
        found = re.findall(r"\b(PREEXIT|ACQBULK|LDGSTS|LDG|LD|STG|ST)\b", text)
        assert found[:2] == ["PREEXIT", "ACQBULK"], kernel


@pytest.mark.parametrize("name", [name for name in OBJECTS if name.startswith("cross_entropy.")])
def test_a_kept_row_is_on_its_way_before_any_thread_waits(name):
    """Its loads come before the first barrier and, with it, before what depends on the target."""
    checked = 0
    for kernel, text in machine_code(name):
        match = KERNEL.search(kernel)
        if match is None or is_shared(match) or match["spread"] == ANY_SPREAD or not int(match["kept"] or 0):
            continue
        if match["access"] != BY_VECTORS:
            continue
        before = re.split(r"\b(?:BAR|UCGABAR|SYNCS)", text)[0]
        chunks = int(match["kept"]) // IN_16_BYTES[match["element"]]
        assert len(accesses(before, "LDG", 128)) >= chunks, kernel
        checked += 1
    assert checked > 0


@pytest.mark.parametrize("name", OBJECTS)
def test_rows_are_read_and_written_16_bytes_at_a_time_or_element_by_element(name):
    """The latter, two of 16 bits together, by distances that are part of the instruction; rows in shared
    memory by copies that go there."""
    checked = 0
    for kernel, text in machine_code(name):
        if "scale_kernel" in kernel:  # one after the other, before the first of them is stored
            words = re.findall(r"\b(LDG|STG)\.E\.128", text)
            assert "LDG LDG LDG LDG STG STG STG STG" in " ".join(words), kernel
            checked += 1
        if columns := COLUMNS.search(kernel):  # by copies of each size that rows allow
            sizes = {"f": {32, 64, 128}, "d": {64, 128}}.get(columns["element"], {32, 64, 128})
            copies = re.findall(r"\bLDGSTS\.E(?:\.BYPASS)?(?:\.LTC\d+B)?((?:\.\d+)?)", text)
            assert {int(size[1:] or 32) for size in copies} == sizes, kernel
            assert all(accesses(text, "STG", size) for size in sizes), kernel
            checked += 1
        match = KERNEL.search(kernel)
        if match is None or match["access"] == BY_ELEMENTS:
            continue
        in_16_bytes, spans = IN_16_BYTES[match["element"]], match["access"] == SPANS
        bits = 128 if not spans else 64 if match["element"] == "d" else 32
        loads, stores = accesses(text, "LDG", bits), accesses(text, "STG", bits)
        if is_shared(match):
            copies = re.findall(r"\bLDGSTS\.E(?:\.BYPASS)?((?:\.LTC\d+B)?(?:\.\d+)?)", text)
            widths = {int(width.rpartition(".")[2] or 32) for width in copies}
            assert widths == {bits}, kernel
            assert stores, kernel
            if not spans:  # by no more accesses to shared memory than to the tensor
                assert len(re.findall(r"\bLDS\.128", text)) >= 3, kernel
            checked += 1
            continue
        chunks = max(1, int(match["kept"] or 0) // max(1, in_16_bytes * bits // 128))
        # A row that is kept is read once: as many loads as it has chunks, and one more tensor in a backward.
        tensors = 2 if match["softmax"] == "backward" else 1
        assert len(loads) >= tensors * chunks, kernel
        assert len(stores) >= chunks, kernel
        if spans:  # each 32 such accesses behind the one before
            assert {at - min(stores) for at in stores} >= {32 * bits // 8 * j for j in range(chunks)}, kernel
        checked += 1
    assert checked > 0 or name.partition(".")[0] in ("reduce", "row_merge")  # numbers of rows alone


# Of the loops that add up the terms of a row and that write what becomes of them, at most. The memory of an
# H200 leaves a multiprocessor time for about 28 instructions an element of 16 bits that is read and written.
INSTRUCTIONS_OF_A_TERM = {
    "forward_shared": (6.5, 8.5),
    "cross_entropy_shared": (9.5, 8),
    "cross_entropy_shared, uniform": (12, 8),
    "forward_columns": (7, 9),
    "cross_entropy_columns": (9, 9),
    "cross_entropy_columns, uniform": (15, 9),
}


def instructions_of_a_term(text: str) -> list[float]:
    """Of each innermost loop with exponentials, in the order in which they come."""
    code = [(int(at, 16), line.strip()) for at, line in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]+);", text)]
    back = [
        (int(jump[1], 16), at)
        for at, line in code
        if (jump := re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", line)) and int(jump[1], 16) < at
    ]
    found = []
    for begin, end in back:
        if any(begin <= inner < end and last < end for inner, last in back):
            continue
        loop = [line for at, line in code if begin <= at <= end]
        if terms := sum("MUFU.EX2" in line for line in loop):
            found.append(len(loop) / terms)
    return found


@pytest.mark.parametrize("name", [n for n in OBJECTS if n in ("softmax.bfloat16", "cross_entropy.bfloat16")])
def test_a_term_takes_few_instructions(name):
    """docs/cuda.md's predictions rest on it."""
    checked = set()
    for kernel, text in machine_code(name):
        named = re.search(r"(forward|cross_entropy)_(shared|columns)_kernel", kernel)
        match = KERNEL.search(kernel)
        if named is None or (match is not None and match["access"] != BY_VECTORS):
            continue
        uniform = ", uniform" if f"SpreadE{UNIFORM}" in kernel else ""
        key = f"{named[1]}_{named[2]}{uniform}"
        found, most = instructions_of_a_term(text), INSTRUCTIONS_OF_A_TERM[key]
        assert len(found) == 2 and found[0] <= most[0] and found[1] <= most[1], (kernel, found)
        checked.add(key)
    op = "forward" if name.startswith("softmax") else "cross_entropy"
    assert checked == {key for key in INSTRUCTIONS_OF_A_TERM if key.startswith(op)}


def test_the_extension_loads_and_needs_no_cuda_library():
    backend = {b.name: b for b in softkern.backends()}["cuda"]
    assert backend.compiled
    extension = pytest.importorskip(
        "softkern._pybind", reason="the wheel's libraries: tools/check_libraries.py"
    )
    needed = subprocess.run(["ldd", extension.__file__], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in needed, needed
    assert not re.search(r"libcudart|c10_cuda|torch_cuda|libcuda\.", needed), needed
