# SPDX-License-Identifier: Apache-2.0
"""The output of setup.py while ninja compiles: one line per file instead of the whole command."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

FINISHED = re.compile(r"\[(\d+)/(\d+)\] (.+)")


def short(line: str, root: Path, seconds: float) -> str:
    """For a finished command, the line with its file; any other line, such as a compiler's, unchanged."""
    found = FINISHED.fullmatch(line.rstrip("\n"))
    if found is None:
        return line
    try:
        words = shlex.split(found[3])
    except ValueError:
        return line
    names = [word for word in words if word.endswith(".cpp")]
    if not names:
        return line
    name = os.path.relpath(names[0], root)
    return f"softkern: {seconds:.0f} s, compiled {found[1]} of {found[2]}: {name}\n"


@contextmanager
def compiled_lines(root: Path, begun: float) -> Iterator[None]:
    """Shorten the standard output of this process and of the processes that it starts.

    begun: start of the build, by time.monotonic().
    """
    # torch always runs ninja verbosely, and on file descriptor 1, whatever sys.stdout is.
    sys.stdout.flush()
    kept = os.dup(1)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(writer)

    def copy() -> None:
        same = "surrogateescape"  # bytes that the locale can't decode are copied unchanged
        with os.fdopen(reader, errors=same) as lines, os.fdopen(kept, "w", errors=same) as out:
            for line in lines:
                out.write(short(line, root, time.monotonic() - begun))
                out.flush()

    thread = Thread(target=copy)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)  # closes the last writer of the pipe, so the thread ends
        thread.join()
