# SPDX-License-Identifier: Apache-2.0
"""examples/language_model.py: its text, its model, and whether it notices a wrong head."""

import importlib
import sys
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from places import EXAMPLES

import softkern

sys.path.insert(0, str(EXAMPLES))  # the scripts import each other by name, as when run
language_model = importlib.import_module("language_model")
language_text = importlib.import_module("language_text")

QUICK = ["--steps", "3", "--batch", "2", "--threads", str(torch.get_num_threads()), "--sample", "0"]


@pytest.fixture
def short(monkeypatch):
    """Few held-out tokens: three windows."""
    vocabulary, tokens, held_out = language_text.load()
    held_out = held_out[: 3 * language_model.CONTEXT + 1]
    monkeypatch.setattr(language_model, "load", lambda: (vocabulary, tokens, held_out))


def test_the_novel_is_whole():
    lines = language_text.TEXT.read_bytes().decode("ascii").splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("Persuasion", "Finis", 8328)
    assert [line for line in lines if line.startswith("Chapter ")] == [f"Chapter {i}" for i in range(1, 25)]


def test_the_joined_tokens_are_the_text():
    vocabulary, *parts = language_text.load()
    assert list(vocabulary.values()) == list(range(6583))
    tokens = list(vocabulary)
    assert "".join(tokens[c] for c in torch.cat(parts)) == language_text.read()
    assert [len(part) for part in parts] == [87_806, 9_757]


def test_targets_are_the_next_tokens():
    classes = torch.arange(50)
    for x, target in [
        language_text.draw_batch(classes, 4, 8, torch.Generator().manual_seed(0)),
        *language_text.all_batches(classes, 4, 8),
    ]:
        assert torch.equal(x + 1, target)
    held_out = torch.cat([target.flatten() for _, target in language_text.all_batches(classes, 4, 8)])
    assert held_out.tolist() == list(range(1, 49))  # each once; the last window would not be full


def test_no_token_sees_those_after_it():
    torch.manual_seed(0)
    model = language_model.GPT(100)
    x = torch.randint(0, 100, (1, 10))
    changed = x.clone()
    changed[0, 6] = (x[0, 6] + 1) % 100
    same = (model(x) == model(changed)).all(dim=1)
    assert same.tolist() == [True] * 6 + [False] * 4


@pytest.mark.usefixtures("short")
def test_both_heads_agree(capsys, tmp_path):
    picture = tmp_path / "new" / "losses.png"
    assert language_model.main([*QUICK, "--loss", "both", "--plot", str(picture), "--sample", "5"]) == 0
    output = capsys.readouterr().out
    assert " step   softkern      torch\n" in output
    assert "the two heads agree\n" in output
    assert picture.read_bytes().startswith(b"\x89PNG")


def loss_of_others(ops, hidden, weight, target):
    return ops(hidden, weight, target.roll(1))


def half_the_gradient_of_the_vectors(ops, hidden, weight, target):
    return ops(hidden, (weight + weight.detach()) / 2, target)


def half_the_gradient_of_the_hidden_states(ops, hidden, weight, target):
    return ops((hidden + hidden.detach()) / 2, weight, target)


def a_little_less(ops, hidden, weight, target):
    return ops(hidden, weight, target) - 1e-4


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "wrong",
    [
        loss_of_others,
        half_the_gradient_of_the_vectors,
        half_the_gradient_of_the_hidden_states,
        a_little_less,
    ],
)
def test_a_wrong_head_is_noticed(wrong, monkeypatch, capsys):
    right = softkern.linear_cross_entropy
    monkeypatch.setattr(softkern, "linear_cross_entropy", lambda *args: wrong(right, *args))
    assert language_model.main([*QUICK, "--loss", "both"]) == 1
    assert "THE TWO HEADS DIFFER" in capsys.readouterr().out


@pytest.mark.parametrize("ops", [softkern, F], ids=["softkern", "torch"])
def test_memory_of_the_head(ops):
    rows, width, classes = 2048, 8, 4000
    hidden, weight = torch.randn(rows, width), torch.randn(classes, width)
    target = torch.randint(0, classes, (rows,))
    _, peak = language_model.run_head(ops, hidden, weight, target)
    logits = rows * classes * 4
    if ops is softkern:
        assert (hidden.nbytes + weight.nbytes) < peak < logits / 2
    else:
        # F keeps the logarithms of the probabilities, and in backward also has the gradient of the logits.
        assert 2 * logits < peak < 3.5 * logits


def test_the_seed_decides_the_sample():
    torch.manual_seed(0)
    vocabulary = {token: c for c, token in enumerate(["\n\n", " a", " b", " c", ","])}
    model = language_model.GPT(len(vocabulary))

    def sample(seed):
        args = Namespace(seed=seed, sample=2 * language_model.CONTEXT, temperature=1.0)
        return language_model.generate(softkern, model, vocabulary, args)

    assert sample(1) == sample(1) != sample(2)
