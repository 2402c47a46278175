# SPDX-License-Identifier: Apache-2.0
"""How a run is made: who is asked what and when, in which process, with which memory."""
