# SPDX-License-Identifier: Apache-2.0
"""Softmax classifier on eight samples: four features, three classes, weights from zero.

It is trained with two kinds of loss:

logits   cross-entropy of the logits, as it should be
twice    cross-entropy written by hand after a softmax. Its log_softmax is a second softmax, so
         probabilities are treated as logits. It still learns, but slowly and not towards zero:
         logits between 0 and 1 cannot give a loss below log(1 + 2/e) = 0.5514.

Run:  python examples/lab.py --loss both
"""

import argparse

import torch
from common import add_loss_option, print_losses, train_each

X = [
    [1, 2, 1, 1],
    [2, 1, 3, 2],
    [3, 1, 3, 4],
    [4, 1, 5, 5],
    [1, 7, 5, 5],
    [1, 2, 5, 6],
    [1, 6, 6, 6],
    [1, 7, 7, 7],
]
Y = [2, 2, 2, 1, 1, 1, 0, 0]
EPOCHS = 1000


def loss_on_logits(ops, z, y):
    return ops.cross_entropy(z, y)


def loss_softmax_twice(ops, z, y):
    one_hot = torch.nn.functional.one_hot(y, num_classes=3).float()  # (8, 3)
    probabilities = ops.softmax(z, dim=1)  # (8, 3)
    return -(one_hot * ops.log_softmax(probabilities, dim=1)).sum(dim=1).mean()


VARIANTS = {"logits": loss_on_logits, "twice": loss_softmax_twice}


def train(ops, variant):
    """Return {epoch: loss before that epoch's step} and the accuracy after the last step."""
    x = torch.tensor(X, dtype=torch.float32)  # (8, 4)
    y = torch.tensor(Y)  # (8,)
    W = torch.zeros(4, 3, requires_grad=True)
    b = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([W, b], lr=0.1)

    losses = {}
    for epoch in range(EPOCHS + 1):
        z = x @ W + b  # (8, 3)
        loss = VARIANTS[variant](ops, z, y)
        if epoch % 100 == 0:
            losses[epoch] = loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    accuracy = ((x @ W + b).argmax(dim=1) == y).float().mean().item()
    return losses, accuracy


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=[*VARIANTS, "all"], default="all")
    add_loss_option(parser)
    args = parser.parse_args()

    for variant in VARIANTS if args.variant == "all" else [args.variant]:
        print(f"\nvariant: {variant}")
        runs = train_each(args.loss, lambda ops, variant=variant: train(ops, variant))
        print_losses(runs)
        for run in runs:
            print(f"accuracy with {run.name}: {run.result:.3f}")


if __name__ == "__main__":
    main()
