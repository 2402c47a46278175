# SPDX-License-Identifier: Apache-2.0
"""Starts a worker after the settings that must precede its process. It imports nothing that takes time.

Workers run without address space randomisation, if the system allows that. The start addresses of a process
decide how an output lies relative to huge pages, and whether freed pieces of the heap join. With random ones,
the same call took up to three times as long in one of two equal processes.
"""

import ctypes
import os
import signal
import sys

ADDR_NO_RANDOMIZE = 0x0040000  # sys/personality.h
PR_SET_PDEATHSIG = 1  # sys/prctl.h

if __name__ == "__main__":
    libc = ctypes.CDLL(None)
    # Waiting workers are stopped: they would not notice that the conductor was killed.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.personality(ADDR_NO_RANDOMIZE)
    if os.environ.get("SOFTKERN_BENCH_CORE"):
        os.sched_setaffinity(0, {int(os.environ["SOFTKERN_BENCH_CORE"])})
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.engine.worker"])
