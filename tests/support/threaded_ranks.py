# SPDX-License-Identifier: Apache-2.0
"""Threads of this process as the ranks of a group: 64 of them take seconds on two cores."""

from __future__ import annotations

import threading
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
        for thread in threads:
            thread.join(SECONDS)
        if any(thread.is_alive() for thread in threads):
            raise TimeoutError(f"a rank waits for the others: {[t.is_alive() for t in threads]}")
    finally:
        multi_threaded_pg._uninstall_threaded_pg()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
        del world
    for error in errors:
        if error is not None:
            raise error
    return results
