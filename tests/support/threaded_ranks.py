# SPDX-License-Identifier: Apache-2.0
"""Threads of this process as the ranks of a group: 64 of them take seconds on two cores."""

from __future__ import annotations

import threading
import time
import traceback

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg

SECONDS = 120


def on_ranks(ranks, f):
    """[f(rank) of each rank], or the first rank's exception."""
    results, errors = [None] * ranks, [None] * ranks
    store = dist.HashStore()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    world = multi_threaded_pg._install_threaded_pg()

    def run(rank):
        torch.set_num_threads(1)
        dist.init_process_group("threaded", rank=rank, world_size=ranks, store=store)
        try:
            results[rank] = f(rank)
        except BaseException as error:
            error.text = traceback.format_exc()
            errors[rank] = error
        finally:
            dist.destroy_process_group()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    try:
        for thread in threads:
            thread.start()
        until = time.monotonic() + SECONDS
        for thread in threads:
            thread.join(max(0, until - time.monotonic()))
        waiting = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
        if waiting:
            _end(threads)
            raise TimeoutError(f"ranks that wait for the others: {waiting}") from _first(errors)
    finally:
        multi_threaded_pg._uninstall_threaded_pg()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
        del world
    if error := _first(errors):
        raise error
    return results


def _first(errors):
    return next((error for error in errors if isinstance(error, Exception)), None)


def _end(threads):
    """Lets ranks that wait raise SystemExit, and forgets what they wait for: the next group would join."""
    multi_threaded_pg.ProcessLocalGroup.exception_handle(None)
    for thread in threads:
        thread.join(SECONDS)
    multi_threaded_pg.ProcessLocalGroup.reset()
