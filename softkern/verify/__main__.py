# SPDX-License-Identifier: Apache-2.0
"""`python -m softkern.verify`: the correctness matrix on this machine, a table, an exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from softkern.verify.render import text
from softkern.verify.runner import DEVICES, choose, run

EPILOG = "exit code: 0 if everything holds, 1 if not, 2 if the arguments can't be used"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m softkern.verify", description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "--device", choices=DEVICES, default="cpu", help="where the tensors are (default: cpu)"
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        metavar="NAME",
        help="names from softkern.backends() (default: all that can run here on the device)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and combinations: some seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write environment and all checks to FILE")
    args = parser.parse_args(argv)
    try:
        choose(args.device, args.backend)
        if args.json is not None:  # known before the checks, not after them
            args.json.open("a").close()
    except (ValueError, RuntimeError) as error:
        parser.error(str(error).removeprefix("verify: "))
    except OSError as error:
        parser.error(f"--json: can't write {str(args.json)!r}: {error.strerror}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; bad arguments raise SystemExit(2), as argparse does."""
    args = _arguments(argv)
    report = run(args.device, args.backend, quick=args.quick)
    if args.json is not None:
        args.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    print(text(report))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
