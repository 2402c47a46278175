# SPDX-License-Identifier: Apache-2.0
"""The checks and their outcomes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """All checks of one backend, group, quantity and dtype.

    Attributes:
        backend: the backend that computed.
        group: part of the matrix.
        quantity: the op's name, the name with " gradient", or the name of a statistic.
        dtype: dtype of the logits.
        checks: how many results were checked.
        failed: how many of them are wrong.
        error: the worst error in ulp of the answer, if the documentation states a bound in ulp.
        stated: that bound.
        torch_error: torch's worst error, in the same unit and on the same inputs.
        share: the worst error divided by its bound; None if no distance was measured.
    """

    backend: str
    group: str
    quantity: str
    dtype: str
    checks: int = 0
    failed: int = 0
    error: float | None = None
    stated: float | None = None
    torch_error: float | None = None
    share: float | None = None

    def add(self, why: str, **worst: float | None) -> None:
        """One more check; of each value that is not None the largest is kept."""
        self.checks += 1
        self.failed += bool(why)
        for name, value in worst.items():
            if value is not None and not math.isnan(value):
                before = getattr(self, name)
                setattr(self, name, value if before is None else max(before, value))


@dataclass(frozen=True)
class Failure:
    """A check that failed.

    Attributes:
        backend, group, quantity: as in `Row`.
        subject: the call; a `softkern.verify.Case` if its inputs come from the matrix.
        why: what is wrong, with the worst element.
    """

    backend: str
    group: str
    quantity: str
    subject: str
    why: str


@dataclass
class Report:
    """The result of `softkern.verify.run`.

    Attributes:
        environment: `softkern.info.environment()`.
        device, quick: the arguments of `run`.
        backends: names of the backends that were checked.
        not_checked: parts that were left out, and why.
        rows: the checks.
        failures: the checks that failed.
        seconds: duration of the run.
    """

    environment: dict[str, str]
    device: str
    quick: bool
    backends: list[str]
    not_checked: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    _index: dict[tuple[str, ...], Row] = field(default_factory=dict, repr=False)

    @property
    def checks(self) -> int:
        return sum(row.checks for row in self.rows)

    @property
    def ok(self) -> bool:
        """Whether there were checks and all of them hold."""
        return self.checks > 0 and not self.failures

    def add(
        self,
        backend: str,
        group: str,
        quantity: str,
        dtype: str,
        subject: object,
        why: str = "",
        **worst: float | None,
    ) -> None:
        """Enter one check; `why` says what is wrong, and is empty if the check holds."""
        key = (backend, group, quantity, dtype)
        row = self._index.get(key)
        if row is None:
            row = self._index[key] = Row(*key)
            self.rows.append(row)
        row.add(why, **worst)
        if why:
            self.failures.append(Failure(backend, group, quantity, str(subject), why))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite become None."""
        return {
            "schema": 1,
            "ok": self.ok,
            "environment": self.environment,
            "device": self.device,
            "quick": self.quick,
            "backends": self.backends,
            "not_checked": self.not_checked,
            "seconds": round(self.seconds, 2),
            "checks": self.checks,
            "rows": [{k: _finite(v) for k, v in asdict(row).items()} for row in self.rows],
            "failures": [asdict(failure) for failure in self.failures],
        }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
