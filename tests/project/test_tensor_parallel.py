# SPDX-License-Identifier: Apache-2.0
"""examples/tensor_parallel.py: on one rank and on two, and whether it notices what is wrong."""

import importlib
import os
import re
import subprocess
import sys

import pytest
import torch
from places import EXAMPLES

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch was built without torch.distributed's gloo", allow_module_level=True)

import softkern
import softkern.parallel

sys.path.insert(0, str(EXAMPLES))  # the scripts import each other by name, as when run
tensor_parallel = importlib.import_module("tensor_parallel")

QUICK = ["--steps", "3", "--batch", "2", "--check"]
# Both runs in one start of the processes, which takes seconds. A process that hangs tells where, and ends.
TWICE = f"""
import faulthandler
import sys

import torch.distributed as dist

faulthandler.dump_traceback_later(100, exit=True)
sys.path.insert(0, {str(EXAMPLES)!r})
import tensor_parallel as example

vocabulary, tokens, held_out = example.load()
example.load = lambda: (vocabulary, tokens, held_out[:200])
dist.init_process_group("gloo")
codes = [example.run(example.parse_arguments({QUICK}))]
example.ToRanks.backward = staticmethod(lambda ctx, grad: grad)
codes.append(example.run(example.parse_arguments({QUICK})))
print("exit codes", codes, flush=True)
dist.destroy_process_group()
"""


@pytest.fixture
def short(monkeypatch):
    """Few held-out tokens: three windows. And no process group is left over."""
    vocabulary, tokens, held_out = tensor_parallel.load()
    monkeypatch.setattr(tensor_parallel, "load", lambda: (vocabulary, tokens, held_out[:200]))
    yield
    assert not torch.distributed.is_initialized()


@pytest.mark.usefixtures("short")
def test_one_rank(capsys):
    assert tensor_parallel.main([*QUICK, "--threads", str(torch.get_num_threads())]) == 0
    output = capsys.readouterr().out
    assert "6,583 classes, padded to 6,592; of each rank: 6,592\n" in output
    assert " step     1 rank  1 process\n" in output
    assert "ranks and one process agree\n" in output


@pytest.mark.usefixtures("short")
def test_a_wrong_loss_is_noticed(monkeypatch, capsys):
    right = softkern.parallel.cross_entropy
    monkeypatch.setattr(softkern.parallel, "cross_entropy", lambda *a, **k: right(*a, **k) - 1e-3)
    assert tensor_parallel.main(QUICK) == 1
    assert "RANKS AND ONE PROCESS DIFFER" in capsys.readouterr().out


def test_two_ranks_and_a_gradient_that_is_not_summed(tmp_path):
    script = tmp_path / "twice.py"
    script.write_text(TWICE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, script],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"exit codes \[.*\]", done.stdout)) == ["exit codes [0, 0]", "exit codes [0, 1]"]
    right, wrong = done.stdout.split("ranks and one process agree")
    assert "of each rank: 3,296, 3,296\n" in right and "equal bits on all ranks and on one" in right
    assert "RANKS AND ONE PROCESS DIFFER" in wrong
