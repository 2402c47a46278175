# SPDX-License-Identifier: Apache-2.0
"""A small GPT that learns to write like Jane Austen, one word or punctuation mark after the other.

For each token of the text it predicts the next one, out of all the different tokens of the novel
"Persuasion": 6,583 classes. Its head multiplies the hidden state of each token by the vectors of all
classes, and takes the cross-entropy of these logits:

torch      F.linear, then F.cross_entropy: the logits and their gradient are tensors of tokens x classes
softkern   softkern.linear_cross_entropy: the same loss and gradients, from a part of the logits at a time

The head is tied: the vectors of the classes are also the embedding of the input tokens, so their
gradient comes from both ends of the network.

Run:  python examples/language_model.py --loss both
"""

import argparse
import math
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from common import add_loss_option, print_losses, train_each
from language_gpt import CONTEXT, GPT, WIDTH, add_training_options, mean_loss, train_steps
from language_text import PARAGRAPH_END, draw_batch, load

import softkern

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler is to print nothing when it starts and stops

# What rounding can make of the same loss. The two heads add up the same products in another order: on the
# same batch, their results differ by a few units in the last place of float32 (6e-8), which sums of
# terms of both signs enlarge. Each step of training enlarges the difference further.
SAME_BATCH = 1e-5
FIRST_STEPS, SAME_FIRST_STEPS = 10, 1e-5
SAME_PERPLEXITY = 0.01


def head_loss(ops, hidden, weight, target):
    """The mean loss of the hidden states (N, width), for the vectors (classes, width) of all classes."""
    if ops is softkern:
        return softkern.linear_cross_entropy(hidden, weight, target.flatten())
    return ops.cross_entropy(F.linear(hidden, weight), target.flatten())


def train(ops, args, classes, tokens):
    """Return {step: loss of its batch before it} and the model."""
    torch.manual_seed(args.seed)
    model = GPT(classes)
    return train_steps(model, of_tokens(ops, model), args, tokens, ops.__name__), model


def of_tokens(ops, model):
    """The loss of the model's hidden states and the targets."""
    return lambda hidden, target: head_loss(ops, hidden, model.embedding.weight, target)


def run_head(ops, hidden, weight, target):
    """Return the loss with both its gradients, and the memory that it took in bytes.

    The memory is the most that forward and backward held at a time beyond their inputs, the gradients
    included: the sum of all that torch's allocator gave out and took back, as the profiler recorded it.
    The peak of the process's memory would also count what the allocator keeps for later.
    """
    hidden, weight = (tensor.detach().clone().requires_grad_() for tensor in (hidden, weight))
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        loss = head_loss(ops, hidden, weight, target)
        loss.backward()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return (loss.detach(), hidden.grad, weight.grad), peak


def relative_difference(a, b):
    """Largest difference of the elements, in units of the largest element."""
    return ((a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max())).item()


@torch.no_grad()
def generate(ops, model, vocabulary, args):
    """Return text by the model: each token is drawn from the probabilities that the model gives it."""
    tokens = list(vocabulary)
    draw = torch.Generator().manual_seed(args.seed)
    written = [vocabulary[PARAGRAPH_END]]
    for _ in range(args.sample):
        hidden = model(torch.tensor([written[-CONTEXT:]]))[-1]
        logits = F.linear(hidden, model.embedding.weight)
        probabilities = ops.softmax(logits / args.temperature, dim=0)
        written.append(torch.multinomial(probabilities, 1, generator=draw).item())
    return "".join(tokens[c] for c in written).strip()


def print_table(runs, heads, held_out, args):
    rows = {
        "loss of the last tenth of the steps": [f"{last_loss(run):.4f}" for run in runs],
        "loss on the held-out text": [f"{loss:.4f}" for loss in held_out],
        "perplexity of the held-out text": [f"{math.exp(loss):.2f}" for loss in held_out],
        "training, tokens per second": [
            f"{args.steps * args.batch * CONTEXT / run.seconds:,.0f}" for run in runs
        ],
        "memory of the head, MiB": [f"{peak / 2**20:.1f}" for _, peak in heads],
    }
    print(f"\n{'':36}" + " ".join(f"{run.name:>10}" for run in runs))
    for name, columns in rows.items():
        print(f"{name:36}" + " ".join(f"{column:>10}" for column in columns))


def last_loss(run):
    losses = list(run.losses.values())[-math.ceil(len(run.losses) / 10) :]
    return sum(losses) / len(losses)


def compare(runs, heads, held_out):
    """Print how far the two runs differ, beside what rounding can explain; return whether it does."""
    first = [torch.tensor(list(run.losses.values())[:FIRST_STEPS]) for run in runs]
    perplexity = [torch.tensor(loss).exp() for loss in held_out]
    names = ["loss", "gradient of the hidden states", "gradient of the vectors"]
    checks = [
        (f"one batch, {name}", a, b, SAME_BATCH)
        for name, a, b in zip(names, *(results for results, _ in heads), strict=True)
    ]
    checks.append((f"losses of the first {len(first[0])} steps", *first, SAME_FIRST_STEPS))
    checks.append(("perplexity of the held-out text", *perplexity, SAME_PERPLEXITY))

    print(f"\n{'relative difference of the two':42} {'found':>9} {'allowed':>9}")
    differences = [relative_difference(a, b) for _, a, b, _ in checks]
    for (name, _, _, allowed), found in zip(checks, differences, strict=True):
        print(f"{name:42} {found:9.1e} {allowed:9.1e}")
    agree = all(found <= check[-1] for check, found in zip(checks, differences, strict=True))
    print("the two heads agree" if agree else "THE TWO HEADS DIFFER by more than rounding")
    return agree


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_training_options(parser)
    parser.add_argument("--sample", type=int, default=80, metavar="N", help="write N tokens at the end")
    parser.add_argument(
        "--temperature", type=float, default=0.7, help="below 1: likelier tokens in the sample, above: bolder"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="save the loss curves as a picture")
    add_loss_option(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    vocabulary, tokens, held_out_tokens = load()
    classes = len(vocabulary)
    parameters = sum(p.numel() for p in GPT(classes).parameters())
    print(
        f"{len(tokens):,} tokens for training, {len(held_out_tokens):,} held out, {classes:,} classes; "
        f"{parameters:,} parameters, {classes * WIDTH:,} of them in the head\n"
        f"a model that guesses has the loss log({classes:,}) = {math.log(classes):.4f}\n"
    )

    runs = train_each(args.loss, lambda ops: train(ops, args, classes, tokens))
    print_losses(runs, "step", every=math.ceil(args.steps / 10))
    held_out = [
        mean_loss(run.result, of_tokens(run.ops, run.result), held_out_tokens, args.batch) for run in runs
    ]
    # Both heads on the same inputs: those of the first model.
    model = runs[0].result.requires_grad_(False)
    x, target = draw_batch(tokens, args.batch, CONTEXT, torch.Generator().manual_seed(args.seed))
    heads = [run_head(run.ops, model(x), model.embedding.weight, target) for run in runs]
    print_table(runs, heads, held_out, args)
    agree = compare(runs, heads, held_out) if len(runs) > 1 else True

    if args.plot:
        import language_plot

        args.plot.parent.mkdir(parents=True, exist_ok=True)
        language_plot.losses(args.plot, runs, math.log(classes))
        print(f"\npicture: {args.plot}")
    if args.sample > 0:
        print(f"\n{generate(runs[0].ops, model, vocabulary, args)}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
