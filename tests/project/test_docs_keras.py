# SPDX-License-Identifier: Apache-2.0
"""Recomputes every number on docs/coming-from-keras.md.

The softkern blocks run as doctests. The TensorFlow blocks cannot run here (TensorFlow is no test
dependency), so each of their expressions has its formula below, evaluated by numpy in float64.
"""

import doctest
import re

import numpy as np
import pytest
import torch
from places import DOCS

import softkern

PAGE = DOCS / "coming-from-keras.md"

Z = np.array([[2.0, 1.0, 0.1], [1.0, 3.0, -0.5], [9.0, 0.0, -31.0]])
Y = np.array([0, 1, 2])
ONE_HOT = np.eye(3)[Y]
SAMPLE_WEIGHT = np.array([3.0, 1.0, 0.5])
EPSILON = 1e-7  # keras.config.epsilon()


def log_softmax(z):
    shifted = z - z.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def loss(z, one_hot):
    return -(one_hot * log_softmax(z)).sum(axis=-1)


def categorical_crossentropy(one_hot, p):
    """Keras: renormalise, clip, and take the logarithm."""
    p = p / p.sum(axis=-1, keepdims=True)
    return -(one_hot * np.log(np.clip(p, EPSILON, 1 - EPSILON))).sum(axis=-1)


def sparse_categorical_crossentropy(one_hot, p):
    """Keras: clip, and hand the logarithm on as if it were logits."""
    return loss(np.log(np.clip(p, EPSILON, 1 - EPSILON)), one_hot)


P = np.exp(log_softmax(Z))
SCCE = "keras.losses.SparseCategoricalCrossentropy"
CCE = "keras.losses.CategoricalCrossentropy"
FORMULAS = {
    "tf.nn.softmax(logits)": P,
    "tf.nn.log_softmax(logits)": log_softmax(Z),
    "tf.nn.softmax_cross_entropy_with_logits(labels=one_hot, logits=logits)": loss(Z, ONE_HOT),
    "tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)": loss(Z, ONE_HOT),
    f"{SCCE}(from_logits=True)(labels, logits)": loss(Z, ONE_HOT).mean(),
    f"{CCE}(from_logits=True, label_smoothing=0.1)(one_hot, logits)": loss(Z, 0.9 * ONE_HOT + 0.1 / 3).mean(),
    f"{SCCE}(from_logits=True, ignore_class=2)(labels, logits)": loss(Z, ONE_HOT)[Y != 2].mean(),
    f"{SCCE}(from_logits=True)(labels, logits, sample_weight=tf.constant([3.0, 1.0, 0.5]))": (
        SAMPLE_WEIGHT * loss(Z, ONE_HOT)
    ).mean(),
    "keras.losses.categorical_crossentropy(one_hot, probabilities)": categorical_crossentropy(ONE_HOT, P),
    "keras.losses.sparse_categorical_crossentropy(labels, probabilities)": (
        sparse_categorical_crossentropy(ONE_HOT, P)
    ),
    f"{SCCE}(from_logits=False)(labels, probabilities)": sparse_categorical_crossentropy(ONE_HOT, P).mean(),
}


def tensorflow_examples(page):
    """Return {expression: numbers in the comment lines below it} of all TensorFlow blocks."""
    examples = {}
    for block in re.findall(r"```python\n# TensorFlow\n(.*?)```", page, flags=re.DOTALL):
        for expression, comments in re.findall(r"^(\w.*)\n((?:#.*\n)*)", block, flags=re.MULTILINE):
            if not re.match(r"\w+ = ", expression):  # an assignment prints nothing
                examples[expression] = [float(n) for n in comments.replace("#", " ").split()]
    return examples


@pytest.fixture
def default_printing():
    """The page sets print options; put torch's own back."""
    yield
    torch.set_printoptions(profile="default")


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def run_doctests(text):
    example = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    output = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=output.append)
    return result, "".join(output)


def test_softkern_prints_what_the_page_says(page, default_printing):
    result, output = run_doctests(page)
    assert result.attempted >= 20
    assert result.failed == 0, output


def test_a_changed_digit_on_the_page_is_noticed(page, default_printing):
    result, _ = run_doctests(page.replace("tensor(13.5234)", "tensor(13.5235)"))
    assert result.failed == 1


def test_every_tensorflow_expression_has_a_formula(page):
    assert list(tensorflow_examples(page)) == list(FORMULAS)


@pytest.mark.parametrize("expression", FORMULAS)
def test_tensorflow_numbers(page, expression):
    numbers = tensorflow_examples(page)[expression]
    # Four decimals: half a unit of the last, plus what float32 loses (2 ulp of 40).
    bound = 0.5e-4 + 8e-6
    np.testing.assert_allclose(numbers, np.ravel(FORMULAS[expression]), rtol=0, atol=bound)


def test_softkern_agrees_with_the_formulas():
    """Closer than four decimals show: within a few float32 ulp."""
    z, y = torch.tensor(Z, dtype=torch.float32), torch.tensor(Y)
    clipped = softkern.softmax(z, dim=-1).clamp(EPSILON, 1 - EPSILON)
    pairs = [
        (softkern.softmax(z, dim=-1), P),
        (softkern.log_softmax(z, dim=-1), log_softmax(Z)),
        (softkern.cross_entropy(z, y, reduction="none"), loss(Z, ONE_HOT)),
        (softkern.CrossEntropyLoss()(z, y), loss(Z, ONE_HOT).mean()),
        (
            softkern.cross_entropy(clipped.log(), y, reduction="none"),
            sparse_categorical_crossentropy(ONE_HOT, P),
        ),
    ]
    for ours, formula in pairs:
        np.testing.assert_allclose(ours.numpy(), formula, rtol=1e-6, atol=3e-7)


def test_gradient_of_targets_that_do_not_sum_to_one():
    z = torch.tensor(Z[:2], requires_grad=True)
    softkern.cross_entropy(z, torch.tensor(2 * ONE_HOT[:2]), reduction="sum").backward()
    np.testing.assert_allclose(z.grad.numpy(), 2 * P[:2] - 2 * ONE_HOT[:2], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("classes", "floor"), [(3, "0.55"), (10, "1.46")])
def test_lowest_loss_of_a_second_softmax(page, classes, floor):
    """The page's warning sign: the best case is probability 1 for the right class."""
    perfect = torch.eye(classes, dtype=torch.float64)
    lowest = softkern.cross_entropy(perfect, torch.arange(classes))
    assert f"{lowest:.2f}" == floor
    assert floor in page
