# SPDX-License-Identifier: Apache-2.0
"""The small GPT of language_model.py, with its vocabulary spread over several processes.

Each process (rank) has a part of the vectors of the classes. They are the embedding of the input tokens
and, tied, the head:

embedding  a rank looks up the tokens that it has a vector of. The vectors are summed over the ranks.
head       a rank computes the logits of its classes. No rank ever has those of all of them.
loss       softkern.parallel.cross_entropy: the ranks exchange 20 bytes for each token.

Everything else is computed by all ranks alike. The vocabulary of 6,583 classes is padded to 6,592, which
makes 64 tiles of 103 classes. Given the logits, the loss then has the same bits for every number of ranks.

Run:  torchrun --nproc-per-node 2 examples/tensor_parallel.py --check
      python examples/tensor_parallel.py  (one rank)
"""

import argparse
import math
import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from common import print_losses, train_one, warm_up
from language_gpt import CONTEXT, GPT, WIDTH, add_training_options, mean_loss, train_steps
from language_text import draw_batch, load
from torch import nn

import softkern
import softkern.parallel

TILES = 64

# What rounding can make of the losses of ranks and of one process. Matrix products of other sizes may add
# up in another order, and so does the gradient of the hidden states, a sum over the ranks. Each step of
# training enlarges the difference.
FIRST_STEPS, SAME_FIRST_STEPS, SAME_LOSS = 10, 1e-5, 0.01


class ToRanks(torch.autograd.Function):
    """The same tensor. Each rank uses it for its own classes, so its gradient is the sum over the ranks."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return summed(grad)


class FromRanks(torch.autograd.Function):
    """The sum over the ranks. All of them go on with it alike, so each has its gradient already."""

    @staticmethod
    def forward(ctx, x):
        return summed(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def summed(x):
    x = x.clone()
    dist.all_reduce(x)
    return x


class ShardedEmbedding(nn.Module):
    """The vectors of the classes from ``first`` on that this rank has, out of all of them."""

    def __init__(self, vectors, widths, rank):
        super().__init__()
        self.first = sum(widths[:rank])
        padding = sum(widths) - len(vectors)
        self.weight = nn.Parameter(F.pad(vectors, (0, 0, 0, padding)).split(widths)[rank].clone())

    def forward(self, x):
        own = x - self.first
        mine = (own >= 0) & (own < len(self.weight))
        vectors = F.embedding(own.where(mine, 0), self.weight) * mine.unsqueeze(-1)
        return FromRanks.apply(vectors)


class ShardedGPT(GPT):
    """Starts as the GPT of the same seed."""

    def __init__(self, classes):
        super().__init__(classes)
        self.classes = classes
        tile = math.ceil(classes / TILES)
        parts = torch.arange(TILES).tensor_split(dist.get_world_size())
        self.widths = [tile * len(tiles) for tiles in parts]
        self.embedding = ShardedEmbedding(self.embedding.weight.detach(), self.widths, dist.get_rank())

    def logits(self, hidden):
        """Return those of this rank's classes."""
        return F.linear(ToRanks.apply(hidden), self.embedding.weight)

    def loss(self, hidden, target):
        return softkern.parallel.cross_entropy(
            self.logits(hidden), target.flatten(), classes=self.widths, valid_classes=self.classes
        )


def of_ranks():
    ranks = dist.get_world_size()
    return f"{ranks} rank{'s' if ranks > 1 else ''}"


def train_sharded(args, classes, tokens):
    torch.manual_seed(args.seed)
    model = ShardedGPT(classes)
    quiet = None if dist.get_rank() == 0 else True
    return train_steps(model, model.loss, args, tokens, of_ranks(), quiet), model


def train_whole(args, classes, tokens):
    torch.manual_seed(args.seed)
    model = GPT(classes)
    return train_steps(model, lambda *rows: whole_loss(model, *rows), args, tokens, "one process"), model


def whole_loss(model, hidden, target):
    return softkern.cross_entropy(F.linear(hidden, model.embedding.weight), target.flatten())


@torch.no_grad()
def same_bits(model, tokens, args):
    """Whether the ranks compute the loss that one rank computes from the logits of all of them."""
    x, target = draw_batch(tokens, args.batch, CONTEXT, torch.Generator().manual_seed(args.seed))
    hidden = model(x)
    shards = [None] * dist.get_world_size()
    dist.all_gather_object(shards, model.logits(hidden))
    alone, *_ = (dist.new_group([rank]) for rank in range(dist.get_world_size()))
    loss = model.loss(hidden, target)
    if dist.get_rank() > 0:
        return True
    whole = softkern.parallel.cross_entropy(
        torch.cat(shards, 1), target.flatten(), alone, valid_classes=model.classes
    )
    return torch.equal(loss, whole)


def compare(runs, held_out, equal):
    """Print how far the two runs differ, beside what rounding can explain; return whether it does."""
    a, b = (list(run.losses.values()) for run in runs)
    first = max(abs(x - y) / y for x, y in zip(a[:FIRST_STEPS], b[:FIRST_STEPS], strict=True))
    checks = [
        (f"losses of the first {len(a[:FIRST_STEPS])} steps", first, SAME_FIRST_STEPS),
        ("loss on the held-out text", abs(held_out[0] - held_out[1]) / held_out[1], SAME_LOSS),
    ]
    print(f"\n{'relative difference of the two':42} {'found':>9} {'allowed':>9}")
    for name, found, allowed in checks:
        print(f"{name:42} {found:9.1e} {allowed:9.1e}")
    print(f"the loss of the same logits has {'equal' if equal else 'DIFFERENT'} bits on all ranks and on one")
    agree = equal and all(found <= allowed for _, found, allowed in checks)
    print("ranks and one process agree" if agree else "RANKS AND ONE PROCESS DIFFER by more than rounding")
    return agree


def run(args):
    """Return the exit code."""
    vocabulary, tokens, held_out_tokens = load()
    classes, rank = len(vocabulary), dist.get_rank()
    warm_up()
    sharded = train_one(of_ranks(), softkern.parallel, lambda _: train_sharded(args, classes, tokens))
    model = sharded.result
    held_out = [mean_loss(model, model.loss, held_out_tokens, args.batch)]
    equal = same_bits(model, tokens, args) if args.check else True
    if rank > 0:
        return 0
    print(
        f"{classes:,} classes, padded to {sum(model.widths):,}; of each rank: "
        f"{', '.join(f'{width:,}' for width in model.widths)}\n"
        f"vectors of a rank: {model.embedding.weight.nbytes / 2**20:.2f} MiB instead of "
        f"{classes * WIDTH * 4 / 2**20:.2f}; logits of a step: "
        f"{args.batch * CONTEXT * model.widths[0] * 4 / 2**20:.1f} MiB instead of "
        f"{args.batch * CONTEXT * classes * 4 / 2**20:.1f}\n"
    )
    runs = [sharded]
    if args.check:
        runs.append(train_one("1 process", softkern, lambda _: train_whole(args, classes, tokens)))
    print_losses(runs, "step", every=math.ceil(args.steps / 10))
    if args.check:
        whole = runs[1].result
        held_out.append(mean_loss(whole, lambda *rows: whole_loss(whole, *rows), held_out_tokens, args.batch))
    print("loss on the held-out text: " + ", ".join(f"{loss:.4f}" for loss in held_out))
    return 0 if not args.check or compare(runs, held_out, equal) else 1


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_training_options(parser)
    parser.add_argument(
        "--check", action="store_true", help="train in one process, too; exit code 1 if the two differ"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if "RANK" in os.environ:  # torchrun
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return run(args)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
