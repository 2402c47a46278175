# SPDX-License-Identifier: Apache-2.0
"""Two classes of Fashion-MNIST: a sigmoid and a softmax of two logits are the same model.

A linear model gives each image one number z, the logit. Logistic regression reads it as
sigmoid(z), the probability of the second class. A softmax of the logits (0, z) gives

    (exp(0), exp(z)) / (exp(0) + exp(z)) = (1 - sigmoid(z), sigmoid(z)),

so training with cross-entropy on (0, z) must end with the same predictions. The script trains
both from zero weights and compares.

Run:  python examples/binary.py --classes 2 4
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from common import add_loss_option, positive, print_losses, train_each, train_one
from fashion_data import CLASSES, add_data_options, load


def sigmoid_loss(z, y):
    return F.binary_cross_entropy_with_logits(z, y.float())


def two_logits(z):
    return torch.stack([torch.zeros_like(z), z], dim=1)  # (N, 2)


def train(loss_function, x, y, epochs):
    """Return {epoch: mean loss over the epoch's batches} and the trained (w, b)."""
    w = torch.zeros(784, requires_grad=True)
    b = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([w, b], lr=0.02)
    shuffle = torch.Generator().manual_seed(0)  # every run sees the same batches
    losses = {}
    for epoch in range(1, epochs + 1):
        loss_sum = 0.0
        for batch in torch.randperm(len(x), generator=shuffle).split(200):
            loss = loss_function(x[batch] @ w + b, y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(batch)
        losses[epoch] = loss_sum / len(x)
    return losses, (w.detach(), b.detach())


def pick(images, labels, classes, subset):
    """Return the images of the two classes as (N, 784) in 0..1, and 0 or 1 for each."""
    first, second = classes
    keep = ((labels == first) | (labels == second)).nonzero().squeeze(1)[:subset]
    if len(keep) == 0:
        sys.exit(f"The data has no image of class {first} or {second}.")
    return images[keep].flatten(1) / 255, (labels[keep] == second).long()


def compare(softmax, sigmoid, x, y):
    """Print how a model trained through a softmax relates to logistic regression."""
    z = logits(softmax, x)
    z_sigmoid = logits(sigmoid, x)
    predicted = softmax.ops.softmax(two_logits(z), dim=1).argmax(dim=1)
    predicted_sigmoid = (torch.sigmoid(z_sigmoid) > 0.5).long()
    # The identity itself, on the same logits.
    by_softmax = softmax.ops.softmax(two_logits(z), dim=1)  # (N, 2)
    by_sigmoid = torch.stack([1 - torch.sigmoid(z), torch.sigmoid(z)], dim=1)

    print(f"\nsigmoid against the softmax of {softmax.name}, {len(y)} test images")
    print(f"accuracy, sigmoid:             {(predicted_sigmoid == y).float().mean():.4f}")
    print(f"accuracy, softmax:             {(predicted == y).float().mean():.4f}")
    print(f"different predictions:         {(predicted != predicted_sigmoid).sum()}")
    print(f"largest difference of logits:  {(z - z_sigmoid).abs().max():.1e}")
    print(f"softmax(0, z) - sigmoid(z):    {(by_softmax - by_sigmoid).abs().max():.1e}")


def logits(run, x):
    w, b = run.result
    return x @ w + b


def plot(path, z, y, names):
    """Draw odds and logit over the probability, and the sigmoid with the test images on it."""
    import matplotlib

    matplotlib.use("agg")  # files only: works without a screen
    import matplotlib.pyplot as plt

    p = torch.linspace(0.002, 0.998, 500)
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    axes[0].plot(p, p / (1 - p))
    axes[0].axhline(1, color="gray", ls=":", label="even odds")
    axes[0].set(title="odds = p / (1 - p)", xlabel="probability p", ylabel="odds", ylim=(0, 20))
    axes[1].plot(p, torch.log(p / (1 - p)))
    axes[1].axhline(0, color="gray", ls=":", label="even odds: logit 0")
    axes[1].set(title="logit = log(odds)", xlabel="probability p", ylabel="logit z")

    reach = z.abs().max().item()
    line = torch.linspace(-reach, reach, 500)
    axes[2].plot(line, torch.sigmoid(line), color="black", label="sigmoid(z)")
    bins = torch.linspace(-reach, reach, 60).tolist()
    shares = axes[2].twinx()
    for number, color in enumerate(["tab:blue", "tab:orange"]):
        shares.hist(z[y == number], bins=bins, alpha=0.45, color=color, label=names[number])
    shares.set_ylabel("test images")
    shares.set_ylim(bottom=0)
    axes[2].set(title="sigmoid: from logit to probability", xlabel="logit z", ylim=(0, 1.05))
    axes[2].set_ylabel(f"probability of {names[1]}")
    axes[2].legend(loc="upper left")
    shares.legend(loc="center right", title="test images of class")
    for axis in axes[:2]:
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--classes",
        type=int,
        nargs=2,
        choices=range(10),
        default=[2, 4],
        metavar=("A", "B"),
        help="default: 2 4; " + ", ".join(f"{n} {name}" for n, name in enumerate(CLASSES)),
    )
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--subset", type=positive, metavar="N", help="only the first N images")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="save a picture in this folder")
    add_data_options(parser)
    add_loss_option(parser)
    args = parser.parse_args(argv)
    if args.classes[0] == args.classes[1]:
        parser.error("--classes needs two different classes")

    x_train, y_train, x_test, y_test = load(args.data, download=not args.no_download)
    x_train, y_train = pick(x_train, y_train, args.classes, args.subset)
    x_test, y_test = pick(x_test, y_test, args.classes, args.subset)
    names = [CLASSES[number] for number in args.classes]

    def train_softmax(ops):
        def softmax_loss(z, y):
            return ops.cross_entropy(two_logits(z), y)

        return train(softmax_loss, x_train, y_train, args.epochs)

    runs = train_each(args.loss, train_softmax)
    sigmoid = train_one("sigmoid", F, lambda _: train(sigmoid_loss, x_train, y_train, args.epochs))

    print(f"{names[0]} (0) against {names[1]} (1), {len(y_train)} training images")
    print_losses([sigmoid, *runs])
    for run in runs:
        compare(run, sigmoid, x_test, y_test)
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)
        plot(args.plots / "sigmoid.png", logits(runs[0], x_test), y_test, names)
        print(f"\npicture: {args.plots / 'sigmoid.png'}")


if __name__ == "__main__":
    main()
