# SPDX-License-Identifier: Apache-2.0
r"""What the exchange of `softkern.parallel` costs, from the latency and the bandwidth of the links.

With P ranks, M rows, a latency of :math:`\alpha` seconds for a collective, a bandwidth of :math:`\beta` bytes
a second for each rank, and b bytes that a rank sends for a row:

- "gather", one all-gather: :math:`\alpha + M b (P - 1) / \beta`
- "rows", an all-to-all and an all-gather: :math:`2 \alpha + 2 M b (P - 1) / (P \beta)`
- torch's ``loss_parallel``, three all-reduces of one float32 a row:
  :math:`3 \alpha + 3 \cdot 2 \cdot 4 M (P - 1) / (P \beta)`
- the logits themselves, gathered: :math:`\alpha + M C s (P - 1) / (P \beta)` for C classes of s bytes

``python -m softkern.parallel.cost --ranks 64 --rows 8192`` prints them for some links, or for the one that
``--latency`` and ``--bandwidth`` describe.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from softkern.parallel._links import LINKS, Link, costs


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m softkern.parallel.cost",
        description="Time and bytes of what ranks exchange for cross_entropy with sharded classes.",
    )
    parser.add_argument("--ranks", type=int, default=8, help="P (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8192, help="M (default: %(default)s)")
    parser.add_argument("--latency", type=float, help="of a collective, in seconds")
    parser.add_argument("--bandwidth", type=float, help="of a rank, in bytes a second")
    parser.add_argument("--classes", type=int, default=128256, help="C (default: %(default)s)")
    parser.add_argument("--logit-bytes", type=int, default=2, help="of a logit (default: %(default)s)")
    given = parser.parse_args(arguments)
    if (given.latency is None) != (given.bandwidth is None):
        parser.error("--latency and --bandwidth go together")
    if min(given.ranks, given.rows, given.classes, given.logit_bytes) < 1:
        parser.error("--ranks, --rows, --classes and --logit-bytes must be at least 1")
    if given.latency is not None and (given.latency < 0 or given.bandwidth <= 0):
        parser.error("--latency must not be negative, and --bandwidth must be positive")
    links = LINKS if given.latency is None else {"this link": Link(given.latency, given.bandwidth)}
    print(f"{given.ranks} ranks, {given.rows:,} rows, {given.classes:,} classes")
    for name, link in links.items():
        print(f"\n{name}: {link.latency * 1e6:,.0f} us, {link.bandwidth / 1e9:,.4g} GB/s")
        ways = costs(given.ranks, given.rows, link, logits_bytes=given.classes * given.logit_bytes)
        own = {way: cost for way, cost in ways.items() if way in ("gather", "rows")}
        best = min(own, key=lambda way: own[way].seconds)
        for way, cost in ways.items():
            mark = "  <- softkern" if way == best else ""
            print(f"  {way:<18} {cost.seconds * 1e3:12,.3f} ms {cost.bytes / 1e6:14,.3f} MB{mark}")


if __name__ == "__main__":
    main()
