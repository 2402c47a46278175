# SPDX-License-Identifier: Apache-2.0
"""The pictures of fashion_mnist.py. Each function draws one and saves it."""

import matplotlib

matplotlib.use("agg")  # files only: works without a screen
import matplotlib.pyplot as plt
import numpy as np

STYLES = {"softkern": {"lw": 3, "alpha": 0.6}, "torch": {"lw": 1.2, "ls": "--", "color": "black"}}


def losses(path, title, runs):
    """Training loss and accuracy by epoch; for two runs also the distance between their losses."""
    panels = 3 if len(runs) > 1 else 2
    figure, axes = plt.subplots(1, panels, figsize=(4.6 * panels, 3.9), layout="constrained")
    epochs = list(runs[0].losses)
    marker = "o" if len(epochs) < 3 else None  # one epoch makes no line
    for run in runs:
        style = STYLES[run.name] | {"label": run.name, "marker": marker}
        axes[0].plot(epochs, run.losses.values(), **style)
        axes[1].plot(epochs, run.result[1], **style)
    axes[0].set(title="Training loss", ylabel="cross-entropy", yscale="log")
    axes[1].set(title="Training accuracy", ylabel="share of images that are right")
    if len(runs) > 1:
        a, b = (np.array(list(run.losses.values())) for run in runs)
        axes[2].plot(epochs, np.abs(a - b), color="tab:red", marker=marker)
        axes[2].set(title="Difference of the two losses", ylabel="absolute difference")
        # Runs can agree to the last bit: linear below 1e-9, so that 0 has a place.
        axes[2].set_yscale("symlog", linthresh=1e-9)
        axes[2].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    for axis in axes[:2]:
        axis.legend()
    save(figure, path, title)


def confusion(path, title, matrix, classes):
    """Counts in each field, shaded by their share of the true class."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(8.4, 7.4), layout="constrained")
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if share[row, column] > 0.5 else "black"
            axis.text(column, row, count, ha="center", va="center", color=color)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.8)
    save(figure, path, f"Confusion matrix on the test images: {title}")


def roc(path, title, curves):
    """A curve per class against the rest; the right panel enlarges the upper left corner."""
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 5.6), layout="constrained")
    colors = plt.get_cmap("tab10").colors
    for (name, (fpr, tpr, area)), color in zip(curves.items(), colors, strict=False):
        for axis in axes:
            axis.plot(fpr, tpr, color=color, label=f"{name} (AUC {area:.3f})")
    for axis in axes:
        axis.plot([0, 1], [0, 1], color="gray", ls=":", label="guessing (AUC 0.5)")
        axis.set(xlabel="false positive rate", ylabel="true positive rate")
        axis.grid(alpha=0.3)
    axes[0].set(title="Whole range", xlim=(-0.01, 1), ylim=(0, 1.01))
    axes[1].set(title="Upper left corner", xlim=(-0.002, 0.2), ylim=(0.6, 1.005))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    save(figure, path, f"ROC, each class against the rest: {title}")


def save(figure, path, title):
    figure.suptitle(title, fontsize=13)
    figure.savefig(path, dpi=120)
    plt.close(figure)
