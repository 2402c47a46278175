# SPDX-License-Identifier: Apache-2.0
"""The command line.

python -m benchmarks [options]                    measure; --quick tries everything in under a minute
python -m benchmarks list                         ops, passes, dtypes, shapes, options and providers
python -m benchmarks report FILE [options]        table, CSV, plots, the README's table
python -m benchmarks compare OLD NEW              what changed beyond the spread
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import signal
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import machine, ops, providers, results
from benchmarks.cells import BadArgument, Cell, check_names, select, with_plain
from benchmarks.engine import conductor, regimes
from benchmarks.engine.plan import Plan, Rounds
from benchmarks.engine.process import Options
from benchmarks.ops import quick as quick_cells

FULL_ROUNDS, QUICK_ROUNDS = Rounds(5, 9, 31, 101), Rounds(3, 3, 3, 3)
MINUTES = 27.0  # what is expected may be off by a tenth: a full run with its table ends within half an hour
SELECTORS = ("op", "pass", "dtype", "shape", "option", "inputs")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv and argv[0] in COMMANDS else "run"
    missing = [name for name in ("rich", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"benchmarks: {', '.join(missing)} not installed: pip install 'softkern[bench]'", file=sys.stderr
        )
        return 2
    try:
        return COMMANDS[command](argv[1:] if argv[:1] == [command] else argv)
    except (BadArgument, results.BadResults) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def names(text: str) -> list[str]:
    """The argument type of comma-separated names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_run(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for selector in SELECTORS:
        plural = selector.removesuffix("s") + "s" if selector != "pass" else "passes"
        parser.add_argument(
            f"--{selector}", type=names, default=[], metavar="A,B", help=f"only these {plural}"
        )
    parser.add_argument(
        "--group", type=names, metavar="A,B", help=f"of {', '.join(ops.GROUPS)} (default: {ops.FULL})"
    )
    parser.add_argument("--provider", type=names, metavar="A,B", help="only these; the first is the baseline")
    parser.add_argument("--regime", type=names, metavar="A,B", help=f"of {', '.join(regimes.REGIMES)}")
    parser.add_argument("--threads", type=names, metavar="A,B", help="numbers, or 'all' (default: 1,all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny cells, few rounds: does everything run?")
    parser.add_argument("--rounds", type=int, nargs=2, metavar=("LEAST", "MOST"), help="samples of a row")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        metavar="M",
        help="time for the run, dealt out to its cells (default: %(default)g); few cells take less",
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds for a worker to answer")
    parser.add_argument("--plugin", metavar="FILE", help="Python file with providers of your own: PROVIDERS")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="results, JSON (default: a new file here)"
    )
    return parser.parse_args(argv)


def plan_of(args: argparse.Namespace) -> Plan:
    """Raises BadArgument, listing the choices."""
    cells = cells_of(args)
    known = providers.PROVIDERS | (providers.from_file(Path(args.plugin)) if args.plugin else {})
    # softkern is asked for in any case: where it has no kernels for the device, that is to be said.
    usual = [name for name, p in known.items() if args.device in p.devices or name == "softkern"]
    line_up = providers.line_up(args.provider or usual, known)
    check_names("regime", args.regime or [], regimes.REGIMES)
    count = machine.cpus()
    wanted = args.threads or ["1", "all"]
    check_names("number of threads", wanted, ["all", *map(str, range(1, count + 1))])
    # All threads first: a run that is cut short has the figures that most people ask for.
    threads = sorted(
        {None if t in ("all", str(count)) else int(t) for t in wanted}, key=lambda t: -(t or 1e9)
    )
    rounds = QUICK_ROUNDS if args.quick else FULL_ROUNDS
    if args.rounds:
        least, most = args.rounds
        if not 1 <= least <= most:
            raise BadArgument(f"--rounds: expected 1 <= LEAST <= MOST, got {least} {most}")
        rounds = Rounds(least, least, most, most)
    if not args.minutes > 0:
        raise BadArgument(f"--minutes: expected a positive number, got {args.minutes:g}")
    if args.device == "cuda":
        require_cuda()
        threads = [None]
    return Plan(
        cells=cells,
        line_up=line_up,
        regimes=args.regime or (list(regimes.REGIMES) if args.device == "cpu" else ["default"]),
        threads=threads,
        all_threads=count,
        rounds=rounds,
        sample=3e-4 if args.quick else 3e-3,
        minutes=args.minutes,
        options=Options(args.device, args.plugin, args.timeout),
        quick=args.quick,
        chosen=bool(args.regime or args.threads),
    )


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """The chosen ones, and whose of plain logits theirs are compared with. A quick run has all groups."""
    check_names("group", args.group or [], ops.GROUPS)
    if args.device != "cpu" and ops.EDGES in (args.group or []):
        raise BadArgument(f"--group {ops.EDGES}: its cells are of the CPU alone")
    if args.quick:
        cells = quick_cells.cells(args.device)
        cells = [c for c in cells if not args.group or ops.group_of(c) in args.group]
    else:
        cells = [c for group in args.group or [ops.FULL] for c in ops.all_cells(args.device, group)]
    passes = getattr(args, "pass")
    return with_plain(select(cells, args.op, passes, args.dtype, args.shape, args.option, args.inputs))


def require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise BadArgument("--device cuda: torch finds no CUDA device on this machine")


def run(argv: list[str]) -> int:
    from rich.console import Console

    from benchmarks.progress import Progress
    from benchmarks.report import table

    args = parse_run(argv)
    plan = plan_of(args)
    environment = machine.environment(args.device)
    started = datetime.now(timezone.utc)
    output = args.output or Path(f"softkern-benchmark-{args.device}-{started:%Y%m%d-%H%M%S}.json")
    if output.exists():
        raise BadArgument(f"--output: {output} exists; move it or name another file")
    console = Console()
    into: results.Results = {
        "schema": results.SCHEMA,
        "environment": environment,
        "command": "python -m benchmarks " + shlex.join(argv),
        "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        "finished": None,
        "interrupted": False,
        "warnings": machine.unfit_before(environment),
        "bandwidth": [],
        "absent": [],
        "left_out": [],
        "rows": [],
    }

    def tell(warning: str) -> None:
        console.print(f"warning: {warning}", style="yellow")

    def warn(warning: str) -> None:
        into["warnings"].append(warning)
        tell(warning)

    for warning in into["warnings"]:
        tell(warning)
    watch = machine.Watch()

    def save() -> None:
        into["finished"] = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
        into["environment"]["steal percent"] = f"{watch.steal_percent():.2f}"
        results.write(into, output)

    # Asked to end in another way, a run ends as with Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Progress(console) as progress:
            conductor.run(plan, into, save, progress.report, warn)
    except KeyboardInterrupt:
        into["interrupted"] = True
    finally:
        signal.signal(signal.SIGTERM, before)
    into["warnings"] += machine.unfit_after(watch)
    save()
    table.render(into, console)
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            write_reports(into, Path(folder), str(output))
    console.print(f"{output}: {len(into['rows'])} rows")
    if into["interrupted"]:
        return 130
    return 1 if any(row["status"] != "ok" for row in into["rows"]) else 0


def write_reports(found: results.Results, folder: Path, source: str) -> list[Path]:
    from benchmarks.report import plots, readme, table_csv

    folder.mkdir(parents=True, exist_ok=True)
    table_csv.write(found, folder / f"{Path(source).stem}.csv")
    (folder / f"{Path(source).stem}.md").write_text(readme.block(found, source))
    return plots.write(found, folder)


def report(argv: list[str]) -> int:
    from rich.console import Console

    from benchmarks.report import readme, table

    parser = argparse.ArgumentParser(prog="python -m benchmarks report")
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", type=Path, metavar="DIR", help="CSV, plots and the summary table there")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="replace the table between its markers")
    args = parser.parse_args(argv)
    found = results.read(args.file)
    if args.write:
        for path in write_reports(found, args.write, args.file.name):
            print(path)
    if args.readme:
        readme.update(args.readme, args.file)
    if not args.write and not args.readme:
        table.render(found, Console())
    return 0


def compare(argv: list[str]) -> int:
    from rich.console import Console

    from benchmarks import compare

    parser = argparse.ArgumentParser(prog="python -m benchmarks compare")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args(argv)
    old, new = results.read(args.old), results.read(args.new)
    compare.render(compare.compare(old, new), old, new, Console())
    return 0


def list_names(argv: list[str]) -> int:
    argparse.ArgumentParser(prog="python -m benchmarks list").parse_args(argv)
    cells = [cell for group in ops.GROUPS for cell in ops.all_cells("cpu", group)]
    rows: dict[str, Any] = {
        "op": [c.op for c in cells],
        "pass": [c.pass_name for c in cells],
        "dtype": [c.dtype for c in cells],
        "shape (CPU)": [c.shape_text for c in cells],
        "shape (CUDA)": [c.shape_text for group in ops.GROUPS for c in ops.all_cells("cuda", group)],
        "option": [c.option or "plain" for c in cells],
        "inputs": [c.inputs or "plain" for c in cells],
        "group": list(ops.GROUPS),
        "provider": list(providers.PROVIDERS),
        "regime": list(regimes.REGIMES),
    }
    for what, choices in rows.items():
        print(f"{what:<13} {'  '.join(choice for choice in dict.fromkeys(choices) if choice)}")
    return 0


COMMANDS = {"run": run, "report": report, "compare": compare, "list": list_names}
