# SPDX-License-Identifier: Apache-2.0
"""The compiled part of softkern, in the way that serves this torch; the stub lists its functions."""

from softkern import _binding

globals().update(_binding.choose().functions)
