# SPDX-License-Identifier: Apache-2.0
"""Time, memory and error of softkern and its peers on this machine: `python -m benchmarks --help`."""
