# SPDX-License-Identifier: Apache-2.0
"""Fully connected networks on Fashion-MNIST: 28 x 28 pixels in, one of ten classes out.

--net small    784 -> 30 -> 10             23,860 parameters
--net deep     784 -> 500 -> 500 -> 10    648,010 parameters
--net deeper   784 -> 500 x 5 -> 10     1,399,510 parameters

The set-up is Keras's: raw pixels (0..255), Glorot-uniform weights, zero biases, ReLU, Adam.

Run:  python examples/fashion_mnist.py --net deep --epochs 50 --batch-size 1200 --loss both
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import torch
from common import add_loss_option, largest_difference, positive, print_losses, train_each
from fashion_data import CLASSES, add_data_options, load
from sklearn.metrics import (
    auc,
    confusion_matrix,
    multilabel_confusion_matrix,
    precision_recall_fscore_support,
    roc_curve,
)
from torch import nn
from tqdm import tqdm

HIDDEN = {"small": [30], "deep": [500] * 2, "deeper": [500] * 5}


def build(net):
    layers = [nn.Flatten()]
    for inputs, outputs in pairwise([784, *HIDDEN[net], 10]):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(linear.weight)  # another name for Glorot-uniform
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])  # the last layer gives logits: no ReLU


def train(ops, args, x, y):
    """Return {epoch: mean loss over the epoch's batches}, and (model, accuracy of each epoch)."""
    torch.manual_seed(args.seed)
    model = build(args.net)
    # eps is Keras's; torch's own default is 1e-8.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)
    shuffle = torch.Generator().manual_seed(args.seed)  # both runs see the same batches

    losses, accuracies = {}, []
    steps = args.epochs * -(-len(x) // args.batch_size)
    # disable=None: a bar on a terminal, silence in a log file.
    with tqdm(total=steps, unit="batch", desc=ops.__name__, disable=None) as progress:
        for epoch in range(1, args.epochs + 1):
            loss_sum, correct = 0.0, 0
            for batch in torch.randperm(len(x), generator=shuffle).split(args.batch_size):
                logits = model(x[batch])
                loss = ops.cross_entropy(logits, y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss_sum += loss.item() * len(batch)
                correct += (logits.argmax(dim=1) == y[batch]).sum().item()
                progress.update()
            losses[epoch] = loss_sum / len(x)
            accuracies.append(correct / len(x))
            progress.set_postfix(epoch=epoch, loss=f"{losses[epoch]:.4f}")
    return losses, (model, accuracies)


@torch.no_grad()
def evaluate(ops, model, x, y):
    """Return the test loss, the accuracy and the probabilities (N, 10)."""
    logits = model(x)
    loss = ops.cross_entropy(logits, y).item()
    accuracy = (logits.argmax(dim=1) == y).sum().item() / len(y)
    return loss, accuracy, ops.softmax(logits, dim=1)


def roc_curves(y, probabilities):
    """Return {class: (false positive rates, true positive rates, area)}, each against the rest."""
    curves = {}
    for c, name in enumerate(CLASSES):
        if 0 < (y == c).sum() < len(y):  # a small subset can lack a class
            fpr, tpr, _ = roc_curve(y == c, probabilities[:, c])
            curves[name] = fpr, tpr, auc(fpr, tpr)
    return curves


def print_per_class(y, predicted, curves):
    labels = range(len(CLASSES))
    precision, recall, f1, support = precision_recall_fscore_support(
        y, predicted, labels=labels, zero_division=0
    )
    counts = multilabel_confusion_matrix(y, predicted, labels=labels)  # (10, 2, 2)
    print(f"\n{'class':12} precision    recall        F1  specificity       FPR       AUC  images")
    for c, name in enumerate(CLASSES):
        (true_negative, false_positive), _ = counts[c]
        fpr = false_positive / max(true_negative + false_positive, 1)
        area = f"{curves[name][2]:.4f}" if name in curves else "-"
        print(
            f"{name:12} {precision[c]:9.3f} {recall[c]:9.3f} {f1[c]:9.3f} {1 - fpr:12.4f} "
            f"{fpr:9.4f} {area:>9} {support[c]:7d}"
        )


def print_confusion(matrix):
    print("\nconfusion matrix (row: true class, column: predicted class)")
    print(" " * 12 + "".join(f"{name[:7]:>8}" for name in CLASSES))
    for name, row in zip(CLASSES, matrix, strict=True):
        print(f"{name:12}" + "".join(f"{count:8d}" for count in row))


def history(args, parameters, runs, tests):
    """Return what --history writes."""
    options = ("net", "epochs", "batch_size", "seed", "threads", "subset")
    record = {option: getattr(args, option) for option in options}
    record["parameters"] = parameters
    record["runs"] = {
        run.name: {
            "loss": list(run.losses.values()),
            "accuracy": run.result[1],
            "test_loss": loss,
            "test_accuracy": accuracy,
            "seconds": run.seconds,
        }
        for run, (loss, accuracy, _) in zip(runs, tests, strict=True)
    }
    if len(runs) > 1:
        record["largest_difference"] = largest_difference(runs)
    return record


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", choices=list(HIDDEN), default="small")
    parser.add_argument("--epochs", type=positive, default=20)
    parser.add_argument("--batch-size", type=positive, default=1200)
    parser.add_argument("--seed", type=int, default=0, help="start and order of the batches")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: torch's choice)")
    parser.add_argument("--subset", type=positive, metavar="N", help="only the first N images")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="save pictures in this folder")
    parser.add_argument("--history", type=Path, metavar="FILE", help="save the losses as JSON")
    add_data_options(parser)
    add_loss_option(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    x_train, y_train, x_test, y_test = (
        tensor[: args.subset] for tensor in load(args.data, download=not args.no_download)
    )
    parameters = sum(p.numel() for p in build(args.net).parameters())
    print(f"{args.net}: {parameters:,} parameters; {len(x_train):,} training images")

    runs = train_each(args.loss, lambda ops: train(ops, args, x_train, y_train))
    print_losses(runs)
    tests = [evaluate(run.ops, run.result[0], x_test, y_test) for run in runs]
    for run, (loss, accuracy, _) in zip(runs, tests, strict=True):
        print(f"test with {run.name}: loss {loss:.4f}, accuracy {accuracy:.4f}")

    # Tables and pictures are of the first run.
    y, probabilities = y_test.numpy(), tests[0][2].numpy()
    predicted = probabilities.argmax(axis=1)
    curves = roc_curves(y, probabilities)
    matrix = confusion_matrix(y, predicted, labels=range(len(CLASSES)))
    print_per_class(y, predicted, curves)
    print_confusion(matrix)

    if args.history:
        args.history.parent.mkdir(parents=True, exist_ok=True)
        record = history(args, parameters, runs, tests)
        args.history.write_text(json.dumps(record, indent=1) + "\n")
    if args.plots:
        import fashion_plots

        args.plots.mkdir(parents=True, exist_ok=True)
        title = f"{args.net} network, {args.epochs} epochs"
        fashion_plots.losses(args.plots / "losses.png", title, runs)
        fashion_plots.confusion(args.plots / "confusion.png", title, matrix, CLASSES)
        fashion_plots.roc(args.plots / "roc.png", title, curves)
        print(f"\npictures: {args.plots}/losses.png, confusion.png, roc.png")


if __name__ == "__main__":
    main()
