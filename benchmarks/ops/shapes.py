# SPDX-License-Identifier: Apache-2.0
"""The shapes that the ops share."""

from benchmarks.cells import Case

# Rows of few classes, of image classifiers and of language models (Llama 3 has 128,256 tokens); one long row.
CPU = (
    Case((101, 7), main=True),
    Case((32, 10)),
    Case((1200, 10)),
    Case((65536, 10), main=True, compiled=True),
    Case((262144, 3)),
    Case((512, 1000), main=True),
    Case((4096, 1000), main=True, compiled=True),
    Case((8192, 4096)),
    Case((2048, 32000), main=True, compiled=True),
    Case((512, 128256)),
    Case((1, 128256), main=True),
)

# The last dimension holds the classes: wide rows, narrow ones, rows of few classes.
MASKED = (
    Case((512, 1000), dtypes=("bfloat16",), inputs="half-inf", edge=True),
    *(Case(shape, inputs="half-inf", edge=True) for shape in ((4096, 1000), (4096, 40), (65536, 10))),
    Case((512, 1000), dtypes=("float32", "bfloat16"), inputs="half-1e4", edge=True),
    Case((4096, 40), inputs="half-1e4", edge=True),
    Case((4096, 1000), dtypes=("float32", "bfloat16"), inputs="sparse-inf", edge=True),
    Case((65536, 10), inputs="sparse-inf", edge=True),
    Case((512, 1000), dtypes=("float32", "bfloat16"), inputs="padding", edge=True),
    Case((512, 1000), dtypes=("float32", "bfloat16"), inputs="confident", edge=True),
    Case((65536, 10), inputs="confident", edge=True),
)

# (M, N) of published comparisons of GPU kernels, then vocabularies of language models; rows of few classes.
CUDA_ROWS = (
    (1000000, 10),
    (2048, 4096),
    (8192, 4096),
    *((32768, 2**k) for k in range(8, 17)),
    (16384, 131072),
    (8192, 262144),
    *((2048, vocabulary) for vocabulary in (32000, 50257, 128256, 151936, 256000)),
)
CUDA_COMPILED = ((32768, 4096), (2048, 128256))
CUDA = tuple(
    Case(shape, dtypes=("bfloat16", "float32"), main=True, compiled=shape in CUDA_COMPILED)
    for shape in CUDA_ROWS
)
