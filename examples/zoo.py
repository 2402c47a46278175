# SPDX-License-Identifier: Apache-2.0
"""Linear softmax classifier for the Zoo data: 101 animals, 16 features, 7 classes.

It is trained twice: with weight and bias written by hand, from zero, and as an nn.Module with a seed.

Run:  python examples/zoo.py --loss both
"""

import argparse
import csv
from pathlib import Path

import torch
from common import add_loss_option, print_losses, train_each

DATA = Path(__file__).parent / "data" / "zoo.csv"
CLASSES = ["mammal", "bird", "reptile", "fish", "amphibian", "insect", "invertebrate"]
EPOCHS = 1000


def load():
    """Return the features (101, 16) and the class numbers (101,)."""
    with open(DATA, newline="") as file:
        _header, *rows = csv.reader(file)
    x = torch.tensor([[float(value) for value in row[1:-1]] for row in rows])
    y = torch.tensor([CLASSES.index(row[-1]) for row in rows])
    return x, y


def train_from_zero(ops, x, y):
    W = torch.zeros(16, 7, requires_grad=True)
    b = torch.zeros(7, requires_grad=True)
    return train(ops, lambda x: x @ W + b, [W, b], x, y)


def train_module(ops, x, y, seed):
    torch.manual_seed(seed)
    model = torch.nn.Linear(16, 7)
    return train(ops, model, model.parameters(), x, y)


def train(ops, model, parameters, x, y):
    """Return {epoch: loss before that epoch's step} and the classes predicted after the last."""
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    losses = {}
    for epoch in range(EPOCHS + 1):
        loss = ops.cross_entropy(model(x), y)
        if epoch % 100 == 0:
            losses[epoch] = loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, model(x).argmax(dim=1)


def print_classes(y, predicted):
    """Print precision, recall and F1 of each class, as scikit-learn does; this script does not need it."""
    print(f"{'':>12}  precision  recall      f1  animals")
    for c, name in enumerate(CLASSES):
        right = ((predicted == c) & (y == c)).sum().item()
        named, there = (predicted == c).sum().item(), (y == c).sum().item()
        precision, recall = right / max(named, 1), right / max(there, 1)
        f1 = 2 * right / max(named + there, 1)
        print(f"{name:>12}  {precision:9.3f}  {recall:6.3f}  {f1:6.3f}  {there:7d}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="start of the nn.Module (default: 0)")
    add_loss_option(parser)
    args = parser.parse_args()

    x, y = load()
    ways = {
        "weights from zero": lambda ops: train_from_zero(ops, x, y),
        f"nn.Linear(16, 7), seed {args.seed}": lambda ops: train_module(ops, x, y, args.seed),
    }
    for way, train_this_way in ways.items():
        print(f"\n{way}")
        runs = train_each(args.loss, train_this_way)
        print_losses(runs)
        for run in runs:
            print(f"accuracy with {run.name}: {(run.result == y).double().mean():.3f}")
        print(f"\nper class, {runs[0].name}:")
        print_classes(y, runs[0].result)


if __name__ == "__main__":
    main()
