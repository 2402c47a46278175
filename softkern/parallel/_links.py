# SPDX-License-Identifier: Apache-2.0
"""Which way of exchanging numbers takes less time (`softkern.parallel.cost` has the formulas)."""

from __future__ import annotations

from typing import NamedTuple


class Link(NamedTuple):
    """seconds for a collective, and bytes a second that a rank sends and receives"""

    latency: float
    bandwidth: float


# Assumed, not measured.
LINKS = {
    "NVLink": Link(12e-6, 300e9),
    "10 GbE": Link(50e-6, 1.25e9),
    "1 GbE": Link(100e-6, 125e6),
    "internet, 100 Mbit/s": Link(50e-3, 12.5e6),
}
_OF_BACKEND = {"nccl": LINKS["NVLink"]}
# Of a row with a class index and no further option: m, ties, rest, z of the index, and whether a rank has
# failed; float32.
ROW_BYTES = 5 * 4


class Cost(NamedTuple):
    """seconds, and bytes that each rank receives"""

    seconds: float
    bytes: float


def costs(
    ranks: int, rows: int, link: Link, row_bytes: int = ROW_BYTES, logits_bytes: float = 0
) -> dict[str, Cost]:
    """The costs of each way. `logits_bytes`: of a row of all classes; 0 leaves out the last way."""

    def cost(collectives: int, received: float) -> Cost:
        return Cost(collectives * link.latency + received / link.bandwidth, received)

    others = ranks - 1
    ways = {
        "gather": cost(1, rows * row_bytes * others),
        "rows": cost(2, 2 * rows * row_bytes * others / ranks),
        "loss_parallel": cost(3, 3 * 2 * 4 * rows * others / ranks),
    }
    if logits_bytes:
        ways["gather the logits"] = cost(1, rows * logits_bytes * others / ranks)
    return ways


def prefers_rows(backend: str, ranks: int, rows: int) -> bool:
    """Whether "auto" means "rows". All ranks decide alike: nothing here depends on a rank."""
    ways = costs(ranks, rows, _OF_BACKEND.get(backend, LINKS["10 GbE"]))
    return ways["rows"].seconds < ways["gather"].seconds
