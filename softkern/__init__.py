# SPDX-License-Identifier: Apache-2.0
"""Fused, exact and reproducible softmax, log-softmax and cross-entropy for PyTorch.

`softkern.softmax`, `softkern.log_softmax` and `softkern.cross_entropy` replace the functions of
`torch.nn.functional` with these names. `softkern.cross_entropy` has more options, and returns statistics of
the rows; `softkern.selective_log_softmax` and `softkern.entropy_from_logits` compute statistics alone.
`softkern.linear_cross_entropy` is a linear layer and `softkern.cross_entropy`, without the logits between
them. The modules `softkern.Softmax`, `softkern.LogSoftmax`, `softkern.CrossEntropyLoss` and
`softkern.LinearCrossEntropyLoss` replace those of `torch.nn`. `softkern.install` puts the functions behind
torch's names.
"""

import torch  # noqa: F401  (loads the libraries that _C is linked against)

from softkern import _fake, _fake_parts  # noqa: F401  (shapes of the ops for torch.compile and torch.export)
from softkern._version import __version__
from softkern.backends import Backend, backends, choose_from_environment, use_backend
from softkern.exporting import decompositions
from softkern.functional import cross_entropy, log_softmax, softmax
from softkern.linear_losses import LinearCrossEntropyOptions, linear_cross_entropy
from softkern.modules import CrossEntropyLoss, LinearCrossEntropyLoss, LogSoftmax, Softmax
from softkern.patching import install, installed, uninstall
from softkern.row_losses import RowStats, entropy_from_logits, selective_log_softmax

__all__ = [
    "Backend",
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropyOptions",
    "LogSoftmax",
    "RowStats",
    "Softmax",
    "__version__",
    "backends",
    "cross_entropy",
    "decompositions",
    "entropy_from_logits",
    "install",
    "installed",
    "linear_cross_entropy",
    "log_softmax",
    "selective_log_softmax",
    "softmax",
    "uninstall",
    "use_backend",
]

# Last: a backend chosen by a variable is loaded here, and may import from this package.
choose_from_environment()
del choose_from_environment
