# SPDX-License-Identifier: Apache-2.0
"""Providers with errors, for `python -m benchmarks --plugin`."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from benchmarks.providers.base import Absent, Prepared
from benchmarks.providers.numpy_ import NumPy
from benchmarks.providers.torch_family import Torch


class Wrong(NumPy):
    """A thousandth too large, as if a term of a long sum was forgotten."""

    name = "wrong"

    def prepare(self, cell, problem, buffers):
        right = super().prepare(cell, problem, buffers)
        results = lambda value: {name: array * 1.001 for name, array in right.results(value).items()}  # noqa: E731
        return Prepared(right.step, results)


class NotANumber(NumPy):
    name = "not-a-number"

    def prepare(self, cell, problem, buffers):
        right = super().prepare(cell, problem, buffers)
        return Prepared(right.step, lambda value: {"output": right.results(value)["output"] * float("nan")})


class Lowest(Torch):
    """Takes the lowest number for -inf: what many masks hold, and right in probabilities alone."""

    name = "lowest"

    def prepare(self, cell, problem, buffers):
        right = super().prepare(cell, problem, buffers)
        lowest = np.finfo(np.float32).min
        results = lambda value: {n: np.maximum(a, lowest) for n, a in right.results(value).items()}  # noqa: E731
        return Prepared(right.step, results)


class Misbehaving(NumPy):
    """Right in the first few calls, which are the check and the warm-up."""

    def prepare(self, cell, problem, buffers):
        right, calls = super().prepare(cell, problem, buffers), []

        def step(i):
            calls.append(i)
            if len(calls) > 4:
                self.misbehave()
            return right.step(i)

        return Prepared(step, right.results)


class Raising(Misbehaving):
    name = "raising"

    def misbehave(self):
        raise RuntimeError("out of luck")


class Killed(Misbehaving):
    name = "killed"

    def misbehave(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Exiting(Misbehaving):
    name = "exiting"

    def misbehave(self):
        os.write(2, b"cannot go on\n")
        os._exit(3)


class Hanging(Misbehaving):
    name = "hanging"

    def misbehave(self):
        time.sleep(60)


class Missing(NumPy):
    name = "missing"

    def load(self, threads):
        raise Absent("libmissing.so is\nnot there")


class Slow(NumPy):
    name = "slow"

    def prepare(self, cell, problem, buffers):
        right = super().prepare(cell, problem, buffers)

        def step(i):
            time.sleep(0.05)
            return right.step(i)

        return Prepared(step, right.results)


PROVIDERS = [Wrong(), NotANumber(), Lowest(), Raising(), Killed(), Exiting(), Hanging(), Missing(), Slow()]
