# SPDX-License-Identifier: Apache-2.0
"""The steps of tools/gpu_run.py."""
