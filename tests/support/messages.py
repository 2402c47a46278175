# SPDX-License-Identifier: Apache-2.0
"""Calls that raise: what they raise, and what of its text is compared."""

from __future__ import annotations

import re

import pytest
import torch

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 4, 2])


def raised(f, *args, **kwargs) -> BaseException:
    try:
        f(*args, **kwargs)
    except Exception as error:
        return error
    pytest.fail(f"{f.__module__}.{f.__name__} raised nothing")


def text(error: BaseException) -> str:
    """The message; not the C++ backtrace and addresses some of them end with."""
    return re.split(r"\nException raised from|\n\nCPU: registered at|'\.?\n", str(error))[0]
