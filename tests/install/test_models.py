# SPDX-License-Identifier: Apache-2.0
"""softkern.install under models and a training loop of other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from install_checks import Recorder

import softkern

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

STEPS = 10
# A float32 step differs by a few ulp in loss and gradient (at most 6 and 8, docs/accuracy.md; torch's own are
# more). SGD with a small rate passes that on nearly unchanged, so ten steps stay within 16 ulp of the loss.
BOUND = 16 * 2**-23


def losses(build, batch):
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return np.array(seen)


def gpt2():
    transformers = pytest.importorskip("transformers", reason="needs the extra softkern[integrations]")
    config = transformers.GPT2Config(
        vocab_size=97, n_positions=16, n_embd=32, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert():
    transformers = pytest.importorskip("transformers", reason="needs the extra softkern[integrations]")
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, num_labels=5, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


IDS = (torch.arange(64).view(4, 16) * 7) % 97
MODELS = {
    "gpt2": (gpt2, {"input_ids": IDS, "labels": IDS}),
    "bert": (bert, {"input_ids": IDS, "labels": torch.tensor([0, 4, 2, 3])}),
}


@pytest.mark.parametrize(("build", "batch"), MODELS.values(), ids=MODELS)
def test_transformers_train_alike(build, batch):
    theirs = losses(build, batch)
    with softkern.installed(), Recorder() as recorder:
        ours = losses(build, batch)
    ran = [op for op in recorder.ops if op.startswith("softkern.")]
    assert sum("cross_entropy_forward" in op for op in ran) == STEPS, set(ran)
    assert sum(op.startswith("softkern.softmax.") for op in ran) >= 2 * STEPS, "attention of two layers"
    assert theirs[-1] < theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=BOUND, atol=0)


def test_skorch_trains_alike():
    skorch = pytest.importorskip("skorch", reason="needs the extra softkern[integrations]")
    x = torch.linspace(-1, 1, 240).view(60, 4).sin().numpy()
    y = np.arange(60) % 3

    def history():
        torch.manual_seed(0)
        net = skorch.NeuralNetClassifier(
            torch.nn.Linear(4, 3), criterion=torch.nn.CrossEntropyLoss, max_epochs=STEPS,
            lr=0.1, train_split=None, verbose=0, iterator_train__shuffle=False,
        )  # fmt: skip
        return np.array(net.fit(x, y).history[:, "train_loss"])

    theirs = history()
    with softkern.installed(), Recorder() as recorder:
        ours = history()
    assert sum("softkern.cross_entropy_forward" in op for op in recorder.ops) == STEPS
    np.testing.assert_allclose(ours, theirs, rtol=BOUND, atol=0)
