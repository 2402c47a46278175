# SPDX-License-Identifier: Apache-2.0
"""The course's labs: published loss tables to the last printed digit, and the Zoo data."""

import csv
import importlib
import subprocess
import sys
from collections import Counter

import pytest
import torch.nn.functional as F
from places import EXAMPLES

import softkern

sys.path.insert(0, str(EXAMPLES))  # the scripts import each other by name, as when run
lab = importlib.import_module("lab")
zoo = importlib.import_module("zoo")
common = importlib.import_module("common")

PUBLISHED = {
    "logits": "1.098612 0.761050 0.689991 0.643229 0.604117 0.568255 "
    "0.533922 0.500291 0.466908 0.433507 0.399962",
    "twice": "1.098612 0.901535 0.839114 0.807826 0.788472 0.774822 "
    "0.764449 0.756191 0.749398 0.743671 0.738749",
}
CLASS_COUNTS = [41, 20, 5, 13, 4, 8, 10]
COLUMN_SUMS = [43, 20, 59, 41, 24, 36, 56, 61, 83, 80, 8, 17, 287, 75, 13, 44]

# Both columns are float32 and pass through 1000 steps: a few units in the last place of the
# losses (2.4e-7 for 2 <= loss < 4) is what rounding alone can make of them.
ZOO_BOUND = 1e-6


@pytest.mark.parametrize("ops", [softkern, F], ids=["softkern", "torch"])
@pytest.mark.parametrize("variant", PUBLISHED)
def test_lab_prints_the_published_table(ops, variant, capsys):
    run = common.train_one("loss", ops, lambda ops: lab.train(ops, variant))
    common.print_losses([run])
    _header, *rows, _time = capsys.readouterr().out.splitlines()
    expected = zip(range(0, 1001, 100), PUBLISHED[variant].split(), strict=True)
    assert [tuple(row.split()) for row in rows] == [(str(e), loss) for e, loss in expected]


def test_lab_accuracy():
    # One sample of class 2 stays on the wrong side after 1000 epochs.
    assert lab.train(softkern, "logits")[1] == 7 / 8


def test_zoo_file():
    with open(zoo.DATA, newline="") as file:
        header, *rows = csv.reader(file)
    assert header[0] == "name"
    assert header[-1] == "type"
    assert len(header) == 18
    assert len(rows) == 101
    assert {len(row) for row in rows} == {18}
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    legs = header.index("legs")
    for row in rows:
        assert row[legs] in {"0", "2", "4", "5", "6", "8"}
        assert set(row[1:legs] + row[legs + 1 : -1]) <= {"0", "1"}
    counts = Counter(row[-1] for row in rows)
    assert [counts[name] for name in zoo.CLASSES] == CLASS_COUNTS


def test_zoo_known_animals():
    """Spot checks that no column has moved: what anyone knows about these animals."""
    with open(zoo.DATA, newline="") as file:
        animals = {row["name"]: row for row in csv.DictReader(file)}
    assert animals["ladybird"]["legs"] == "6"
    assert animals["ladybird"]["type"] == "insect"
    assert animals["scorpion"]["venomous"] == "1"
    assert animals["scorpion"]["legs"] == "8"
    assert animals["platypus"]["eggs"] == animals["platypus"]["milk"] == "1"
    assert animals["ostrich"]["airborne"] == "0"
    assert animals["ostrich"]["feathers"] == "1"


def test_zoo_load():
    x, y = zoo.load()
    assert x.shape == (101, 16)
    assert y.bincount().tolist() == CLASS_COUNTS
    assert x.sum(dim=0).int().tolist() == COLUMN_SUMS  # a changed cell shows here


@pytest.mark.parametrize(
    ("train", "first", "last"),
    [
        (lambda ops, x, y: zoo.train_from_zero(ops, x, y), "1.945910", "0.100694"),
        (lambda ops, x, y: zoo.train_module(ops, x, y, seed=0), "2.290539", "0.098045"),
    ],
    ids=["from zero", "module"],
)
def test_zoo_trains_alike_with_both(train, first, last):
    x, y = zoo.load()
    runs = common.train_each("both", lambda ops: train(ops, x, y))
    assert [run.name for run in runs] == ["softkern", "torch"]
    assert [run.ops for run in runs] == [softkern, F]
    for run in runs:
        assert list(run.losses) == list(range(0, 1001, 100))
        assert f"{run.losses[0]:.6f}" == first  # from zero: log 7
        assert run.losses[1000] == pytest.approx(float(last), abs=2e-6)
        assert (run.result == y).all()
    assert common.largest_difference(runs) <= ZOO_BOUND


def test_zoo_prints_scikit_learns_numbers(capsys):
    metrics = pytest.importorskip("sklearn.metrics")
    _, y = zoo.load()
    predicted = y.clone()
    predicted[::3] = 0
    predicted[y == 2] = 1  # a class that nothing is taken for
    zoo.print_classes(y, predicted)
    _header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    report = metrics.precision_recall_fscore_support(y, predicted, zero_division=0)
    classes = zip(zoo.CLASSES, *report, strict=True)
    assert rows == [[name, f"{p:.3f}", f"{r:.3f}", f"{f:.3f}", str(n)] for name, p, r, f, n in classes]


@pytest.mark.parametrize("script", ("lab.py", "zoo.py"))
def test_the_demo_needs_torch_alone(script):
    """`make demo` installs nothing for it: what it imports is torch's, Python's or here."""
    hidden = ["sklearn", "scipy", "matplotlib", "pandas", "tqdm", "pooch"]
    program = f"import runpy, sys; sys.modules.update(dict.fromkeys({hidden})); runpy.run_path({script!r})"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_largest_difference_sees_a_single_epoch():
    same, other = {0: 1.0, 100: 0.5, 200: 0.25}, {0: 1.0, 100: 0.75, 200: 0.25}
    runs = [common.Run("", None, losses, None, 0.0) for losses in (same, other)]
    assert common.largest_difference(runs) == 0.25


def test_runs_of_different_length_are_refused():
    runs = [common.Run("a", None, {0: 1.0}, None, 0.0), common.Run("b", None, {}, None, 0.0)]
    with pytest.raises(ValueError, match="zip"):
        common.largest_difference(runs)
