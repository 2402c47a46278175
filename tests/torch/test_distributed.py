# SPDX-License-Identifier: Apache-2.0
"""DTensor, DistributedDataParallel and fully_shard on two gloo processes.

The checks are functions of distributed_*_checks.py. Both processes run all of them once, and each is a test
here, with its name.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from places import SUPPORT

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch was built without torch.distributed's gloo", allow_module_level=True)

import distributed_classes_checks  # noqa: F401
import distributed_linear_checks  # noqa: F401
import distributed_linear_training_checks  # noqa: F401
import distributed_parallel_checks  # noqa: F401
import distributed_processes
import distributed_rows_checks  # noqa: F401
import distributed_tensor_checks  # noqa: F401
import distributed_training_checks  # noqa: F401
from compatibility import COLUMNS

NAMES = tuple(distributed_processes.CHECKS)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found: {check: "" or its traceback}, {(feature, op): who computed}."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join((str(SUPPORT), os.environ.get("PYTHONPATH", "")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("OMP_NUM_THREADS", "1")
        return distributed_processes.run(folder, NAMES, seconds=240)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "planted"])
def test_on_two_ranks(name, ranks):
    for rank, (results, _) in enumerate(ranks):
        assert name in results, f"rank {rank} did not come to it"
        assert not results[name], f"rank {rank}:\n{results[name]}"


def test_a_check_that_fails_is_seen_on_every_rank(ranks):
    for results, _ in ranks:
        assert "AssertionError" in results["planted"] and "bits differ" in results["planted"]


def _way(ranks, watch, feature, op):
    one, two = (ways[feature, op] for _, ways in ranks)
    assert one == two, "the ranks went different ways"
    watch.seen_elsewhere(one)


@pytest.mark.feature("DTensor, rows sharded or replicated")
@pytest.mark.parametrize("op", COLUMNS)
def test_who_computes_whole_rows_of_dtensors(op, ranks, watch):
    _way(ranks, watch, "rows", op)


@pytest.mark.feature("DTensor, classes sharded")
@pytest.mark.parametrize("op", COLUMNS)
def test_who_computes_sharded_classes_of_dtensors(op, ranks, watch):
    _way(ranks, watch, "classes", op)


@pytest.mark.feature("DistributedDataParallel", "softmax", "cross_entropy")
def test_who_computes_in_ddp(ranks, watch):
    _way(ranks, watch, "DistributedDataParallel", "both")


@pytest.mark.feature("FSDP2 (fully_shard)", "softmax", "cross_entropy")
def test_who_computes_in_fsdp2(ranks, watch):
    _way(ranks, watch, "fully_shard", "both")


@pytest.mark.feature("DistributedDataParallel", "linear_cross_entropy")
def test_who_computes_a_head_in_ddp(ranks, watch):
    _way(ranks, watch, "DistributedDataParallel", "head")


@pytest.mark.feature("FSDP2 (fully_shard)", "linear_cross_entropy")
def test_who_computes_a_head_in_fsdp2(ranks, watch):
    _way(ranks, watch, "fully_shard", "head")


@pytest.mark.feature("DataParallel", "softmax", "cross_entropy")
def test_who_computes_in_data_parallel(ranks, watch):
    _way(ranks, watch, "DataParallel", "both")


def test_importing_softkern_imports_nothing_distributed():
    """Beyond what torch does by itself."""
    code = "import sys, torch; had = set(sys.modules); import softkern; print(*(set(sys.modules) - had))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = result.stdout.split()
    assert "softkern" in new
    assert [m for m in new if m.startswith("torch.distributed")] == []
