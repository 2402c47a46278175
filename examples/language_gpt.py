# SPDX-License-Identifier: Apache-2.0
"""The network of language_model.py and tensor_parallel.py, and its training."""

import torch
from common import positive
from language_text import all_batches, draw_batch
from torch import nn
from tqdm import tqdm

CONTEXT, WIDTH, HEADS, LAYERS = 64, 128, 4, 3


class GPT(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embedding = nn.Embedding(classes, WIDTH)
        self.position = nn.Parameter(torch.empty(CONTEXT, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        # Small vectors give small logits: the first predictions are almost uniform.
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, x):
        """Return the hidden states (batch * length, width) of the tokens (batch, length)."""
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)  # no token sees those after it
        hidden = self.embedding(x) + self.position[:length]
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return self.norm(hidden).flatten(0, 1)


def train_steps(model, loss_of, args, tokens, name, quiet=None):
    """Train with the loss ``loss_of(hidden, target)``; return {step: loss of its batch before it}.

    ``quiet``: None shows a bar on a terminal and nothing in a log file, True shows nothing.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(args.seed)  # all runs see the same batches
    losses = {}
    with tqdm(range(1, args.steps + 1), unit="step", desc=name, disable=quiet) as steps:
        for step in steps:
            x, target = draw_batch(tokens, args.batch, CONTEXT, draw)
            loss = loss_of(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[step] = loss.item()
            steps.set_postfix(loss=f"{losses[step]:.3f}")
    return losses


@torch.no_grad()
def mean_loss(model, loss_of, tokens, batch):
    """Return the mean loss over the tokens."""
    total = count = 0
    for x, target in all_batches(tokens, batch, CONTEXT):
        total += loss_of(model(x), target).item() * target.numel()
        count += target.numel()
    return total / count


def add_training_options(parser):
    parser.add_argument("--steps", type=positive, default=300)
    parser.add_argument("--batch", type=positive, default=16, help=f"windows of {CONTEXT} tokens per step")
    parser.add_argument("--seed", type=int, default=0, help="start, batches and sample")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: torch's choice)")
