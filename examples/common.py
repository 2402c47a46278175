# SPDX-License-Identifier: Apache-2.0
"""Shared by the scripts: the choice of the loss, and printing the losses of the runs."""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

import softkern

# softkern has functions with the names of torch.nn.functional, so a training loop can take the
# module that contains cross_entropy as an argument.
IMPLEMENTATIONS = {"softkern": softkern, "torch": F}


@dataclass
class Run:
    """One finished training run."""

    name: str  # column title
    ops: Any  # the module whose loss it used
    losses: dict[int, float]  # epoch or step -> loss
    result: Any  # the other result of train()
    seconds: float


def positive(text):
    """The argument type of counts."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def add_loss_option(parser):
    parser.add_argument(
        "--loss",
        choices=[*IMPLEMENTATIONS, "both"],
        default="softkern",
        help="whose softmax and cross-entropy to train with; 'both' trains twice from the same "
        "initial state and compares (default: %(default)s)",
    )


def train_each(choice, train):
    """Call ``train(ops)`` for each chosen implementation and return the list of runs.

    ``train`` returns ``(losses, result)``. It must build its own initial state (zeros, or a seed
    set inside it), so that both runs start from the same state.
    """
    warm_up()
    names = IMPLEMENTATIONS if choice == "both" else [choice]
    return [train_one(name, IMPLEMENTATIONS[name], train) for name in names]


def train_one(name, ops, train):
    start = time.perf_counter()
    losses, result = train(ops)
    return Run(name, ops, losses, result, time.perf_counter() - start)


def warm_up():
    """Take one tiny step with each: the first step loads code, which should not count in a run."""
    for ops in IMPLEMENTATIONS.values():
        model = torch.nn.Linear(784, 10)
        optimizer = torch.optim.Adam(model.parameters())
        ops.cross_entropy(model(torch.zeros(1000, 784)), torch.zeros(1000).long()).backward()
        optimizer.step()


def largest_difference(runs):
    """Largest difference between the runs' losses at the same epoch or step."""
    columns = zip(*(run.losses.values() for run in runs), strict=True)
    return max(max(losses) - min(losses) for losses in columns)


def print_losses(runs, unit="epoch", every=1):
    """Print a row for each (or every n-th) loss, a column per run; below, the difference and the times."""
    print(f"{unit:>5} " + " ".join(f"{run.name:>10}" for run in runs))
    for index in list(runs[0].losses)[::every]:
        print(f"{index:5d} " + " ".join(f"{run.losses[index]:10.6f}" for run in runs))
    if len(runs) > 1:
        print(f"largest difference: {largest_difference(runs):.1e}")
    print("time: " + ", ".join(f"{run.name} {run.seconds:.2f} s" for run in runs))
