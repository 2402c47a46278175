# SPDX-License-Identifier: Apache-2.0
"""The text of language_model.py: a novel, cut into tokens, and the batches for training."""

import re
from pathlib import Path

import torch

TEXT = Path(__file__).parent / "data" / "persuasion.txt"

# The end of a paragraph, a word, or a run of punctuation marks. A space belongs to the token after it,
# so that the joined tokens are the text again.
TOKEN = re.compile(r"\n\n| ?\w+(?:['-]\w+)*| ?[^\w\s]+")
PARAGRAPH_END = "\n\n"
TRAINING_SHARE = 0.9  # of the tokens; the end of the novel is held out


def read():
    """Return the novel with one line per paragraph and an empty line between two paragraphs."""
    paragraphs = re.split(r"\n\s*\n", TEXT.read_text(encoding="utf-8").strip())
    return PARAGRAPH_END.join(" ".join(paragraph.split()) for paragraph in paragraphs)


def load():
    """Return the vocabulary (token -> class), and the classes of the training and of the held-out tokens.

    The vocabulary is that of the whole novel: every token has a class, and none stands for "unknown".
    """
    tokens = TOKEN.findall(read())
    vocabulary = {token: c for c, token in enumerate(sorted(set(tokens)))}
    classes = torch.tensor([vocabulary[token] for token in tokens])
    return vocabulary, *classes.tensor_split([int(TRAINING_SHARE * len(classes))])


def draw_batch(classes, batch, context, generator):
    """Return ``batch`` random windows, and the token that follows each of their tokens, as classes."""
    starts = torch.randint(len(classes) - context, (batch,), generator=generator)
    windows = classes.unfold(0, context + 1, 1)[starts]  # (batch, context + 1)
    return windows[:, :-1], windows[:, 1:]


def all_batches(classes, batch, context):
    """The same for all windows that follow one another, in their order."""
    windows = classes.unfold(0, context + 1, context)
    for part in windows.split(batch):
        yield part[:, :-1], part[:, 1:]
