# SPDX-License-Identifier: Apache-2.0
"""The picture of language_model.py."""

import numpy as np
from fashion_plots import STYLES, plt, save


def losses(path, runs, guessing):
    """Training loss by step; for two runs also the distance between their losses."""
    panels = len(runs)
    figure, axes = plt.subplots(1, panels, figsize=(5.4 * panels, 3.9), layout="constrained", squeeze=False)
    steps = list(runs[0].losses)
    marker = "o" if len(steps) == 1 else None  # one step makes no line
    loss = axes[0, 0]
    for run in runs:
        loss.plot(steps, run.losses.values(), **STYLES[run.name], label=run.name, marker=marker)
    loss.axhline(guessing, color="gray", ls=":", label="guessing")
    loss.set(title="Training loss", ylabel="cross-entropy")
    loss.legend()
    if len(runs) > 1:
        a, b = (np.array(list(run.losses.values())) for run in runs)
        axes[0, 1].plot(steps, np.abs(a - b), color="tab:red", marker=marker)
        axes[0, 1].set(title="Difference of the two losses", ylabel="absolute difference")
        # Runs can agree to the last bit: linear below 1e-9, so that 0 has a place.
        axes[0, 1].set_yscale("symlog", linthresh=1e-9)
        axes[0, 1].set_ylim(bottom=0)
    for axis in axes[0]:
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    save(figure, path, "A small GPT on the novel Persuasion")
