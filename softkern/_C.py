# SPDX-License-Identifier: Apache-2.0
"""The compiled part of softkern, in the way that serves this torch; the stub lists its functions."""

from softkern._binding import choose

globals().update(choose().functions)
