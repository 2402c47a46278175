# SPDX-License-Identifier: Apache-2.0
"""Starts a worker, with what has to be settled before its process begins. Imports nothing that takes time.

Without address space randomisation, where that is allowed: how an output lies to the bounds of huge pages,
and whether freed pieces of the heap join, depends on the addresses a process starts with; by luck, the same
call took up to three times as long in one of two equal processes.
"""

import ctypes
import os
import signal
import sys

ADDR_NO_RANDOMIZE = 0x0040000  # sys/personality.h
PR_SET_PDEATHSIG = 1  # sys/prctl.h

if __name__ == "__main__":
    libc = ctypes.CDLL(None)
    # A worker whose turn it is not is stopped: it would not notice the end of a conductor that was killed.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.personality(ADDR_NO_RANDOMIZE)
    if os.environ.get("SOFTKERN_BENCH_CORE"):
        os.sched_setaffinity(0, {int(os.environ["SOFTKERN_BENCH_CORE"])})
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.engine.worker"])
