# SPDX-License-Identifier: Apache-2.0
"""The progress of a run: a bar on a terminal, otherwise a line from time to time."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

EVERY = 60.0  # seconds between lines without a terminal


class Progress:
    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self.bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=1.0, left="")
        self.start = self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def report(self, what: str, seconds_left: float) -> None:
        now = time.monotonic()
        passed = now - self.start
        share = passed / (passed + seconds_left)
        left = f"{seconds_left / 60:.0f} min left" if seconds_left > 90 else f"{seconds_left:.0f} s left"
        self.bar.update(self.task, completed=share, description=what, left=left)
        if not self.console.is_terminal and now - self.last_line > EVERY:
            self.last_line = now
            self.console.print(f"{share:4.0%} {left:>12}  {what}", highlight=False, soft_wrap=True)
