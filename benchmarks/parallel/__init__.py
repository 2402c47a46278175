# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of logits whose classes are spread over processes of this machine.

`__main__` is the command line, `ranks` what each process does, `ways` who computes the loss, and `table`
the results in Markdown. The results file:

    schema       SCHEMA
    environment, command, started, finished, warnings    as in benchmarks.results
    ranks        number of processes, each with one thread
    rows         [row], one for each shape, dtype and way:

    rows, classes, dtype   the whole logits
    provider     the way
    status, reason         "ok", or "refused" (wrong result), and why
    samples      [seconds] of a forward and backward, of the slowest rank in each round. All ways take a turn
                 in each round
    median, q20, q80       seconds
    ratio        BASELINE's time / this one's, median over the rounds
    error        {"loss": e, "gradient": e}: largest distance from the float64 answer, in units of the
                 dtype's eps times the loss and the largest term of a gradient's row
    peak_bytes   growth of a rank's resident set in one call, the largest; null where not measured
    logits_bytes of a rank
    collectives  of one call
"""

SCHEMA = "parallel 1"
BASELINE = "loss_parallel"
