# SPDX-License-Identifier: Apache-2.0
"""The command line.

python -m benchmarks.parallel [options]    measure; prints the table
python -m benchmarks.parallel report FILE  the table of a results file again, in Markdown
"""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import machine, results
from benchmarks.cells import BadArgument, check_names
from benchmarks.cli import names
from benchmarks.parallel import SCHEMA, table

SHAPES, DTYPES = ("512x32000", "2048x128256"), ("float32", "bfloat16")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", type=names, default=SHAPES, metavar="A,B", help="rows x classes")
    parser.add_argument("--dtype", type=names, default=DTYPES, metavar="A,B", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--provider", type=names, metavar="A,B", help="only these")
    parser.add_argument("--ranks", type=int, default=2, metavar="P", help="processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, metavar="K", help="samples (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="results, JSON (default: a new file here)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        return report(argv[1:]) if argv[:1] == ["report"] else run(argv)
    except (BadArgument, results.BadResults) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def run(argv: list[str]) -> int:
    from benchmarks.parallel import ranks, ways

    args = parse(argv)
    check_names("dtype", args.dtype, DTYPES)
    check_names("provider", args.provider or [], ways.WAYS)
    if args.ranks < 1 or args.rounds < 1:
        raise BadArgument("--ranks and --rounds: expected a positive number")
    cells = [ranks.Cell(*_sizes(shape, args.ranks), dtype) for shape in args.shape for dtype in args.dtype]
    started = datetime.now(timezone.utc)
    output = args.output or Path(f"softkern-parallel-{started:%Y%m%d-%H%M%S}.json")
    if output.exists():
        raise BadArgument(f"--output: {output} exists; move it or name another file")
    environment = machine.environment()
    watch = machine.Watch()
    rows = ranks.measure(cells, args.provider or list(ways.WAYS), args.ranks, args.rounds)
    found: results.Results = {
        "schema": SCHEMA,
        "environment": environment,
        "command": "python -m benchmarks.parallel " + shlex.join(argv),
        "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        "finished": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        "warnings": machine.unfit_before(environment) + machine.unfit_after(watch),
        "ranks": args.ranks,
        "rows": rows,
    }
    results.write(found, output)
    print(table.block(found, output.name))
    return 1 if any(row["status"] != "ok" for row in rows) else 0


def _sizes(shape: str, ranks: int) -> tuple[int, int]:
    sizes = shape.split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise BadArgument(f"--shape: expected rows x classes, such as {SHAPES[0]}, got {shape}")
    rows, classes = map(int, sizes)
    if classes % ranks:
        raise BadArgument(f"--shape: {ranks} ranks can't have equal parts of {classes} classes")
    return rows, classes


def report(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallel report")
    parser.add_argument("file", type=Path)
    path = parser.parse_args(argv).file
    print(table.block(results.read(path, SCHEMA), path.name), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
