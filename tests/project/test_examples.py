# SPDX-License-Identifier: Apache-2.0
"""The example scripts, run as a user runs them; images are made here, so no data set is needed."""

import functools
import gzip
import hashlib
import http.server
import importlib
import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from places import EXAMPLES

sys.path.insert(0, str(EXAMPLES))  # the scripts import each other by name, as when run
fashion_data = importlib.import_module("fashion_data")
fashion_mnist = importlib.import_module("fashion_mnist")

WAYS_TO_GET_IT = ["apt-get install dataset-fashion-mnist", "pip install pooch", "--data DIR"]


def run(script, *options, **environment):
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, options)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
        check=False,
    )


def output_of(script, *options, **environment):
    result = run(script, *options, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def largest_differences(output):
    return [float(text) for text in re.findall(r"largest difference: (\S+)", output)]


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return header + array.tobytes()


def images(count, seed):
    """A bright bar at a height of its own for each class, on noise."""
    random = np.random.default_rng(seed)
    y = (np.arange(count) % 10).astype(np.uint8)
    x = random.integers(0, 100, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[2 * label + 4 : 2 * label + 7] += 120
    return x, y


@pytest.fixture(scope="module")
def contents():
    """The four files, uncompressed, by name."""
    return {
        f"{part}-{kind}": idx(array)
        for part, count, seed in [("train", 600, 0), ("t10k", 200, 1)]
        for kind, array in zip(["images-idx3-ubyte", "labels-idx1-ubyte"], images(count, seed), strict=True)
    }


@pytest.fixture(scope="module")
def data(contents, tmp_path_factory):
    """A folder with the four files, two of them plain and two gzipped."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    for name, content in contents.items():
        if "labels" in name:
            (folder / name).write_bytes(content)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
    return folder


@pytest.mark.parametrize("script", ["lab.py", "zoo.py"])
def test_both_columns_agree(script):
    output = output_of(script, "--loss", "both")
    assert output.count("epoch   softkern      torch") == 2
    differences = largest_differences(output)
    assert len(differences) == 2
    assert max(differences) <= 1e-6
    assert output.count("time: softkern ") == 2


def test_one_column_by_default():
    output = output_of("lab.py", "--variant", "logits")
    assert output.count("epoch   softkern\n") == 1
    assert "torch" not in output
    assert " 1000   0.399962\n" in output


@pytest.mark.parametrize(("net", "parameters"), [("small", 23_860), ("deep", 648_010), ("deeper", 1_399_510)])
def test_parameters_and_start(net, parameters):
    model = fashion_mnist.build(net)
    assert sum(p.numel() for p in model.parameters()) == parameters
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            limit = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert 0.9 * limit < layer.weight.abs().max() <= limit
            assert not layer.bias.any()
    assert isinstance(model[-1], torch.nn.Linear)


def test_fashion_mnist_both(data, tmp_path):
    history, plots = tmp_path / "history.json", tmp_path / "new" / "plots"
    options = ["--epochs", 6, "--batch-size", 50, "--subset", 500, "--threads", 1]
    options += ["--data", data, "--history", history, "--plots", plots, "--loss", "both"]
    output = output_of("fashion_mnist.py", *options)
    assert "small: 23,860 parameters; 500 training images" in output

    record = json.loads(history.read_text())
    assert record["subset"] == 500
    softkern, torch_ = record["runs"]["softkern"], record["runs"]["torch"]
    assert len(softkern["loss"]) == len(softkern["accuracy"]) == 6
    assert softkern["loss"][5] < 0.5 * softkern["loss"][0]
    assert softkern["test_accuracy"] >= 0.9
    # 60 steps from the same start over the same batches.
    np.testing.assert_allclose(softkern["loss"], torch_["loss"], rtol=1e-4)
    assert record["largest_difference"] == max(
        abs(a - b) for a, b in zip(softkern["loss"], torch_["loss"], strict=True)
    )

    rows = re.findall(r"^(\S.*?) +([\d. ]+?) +20$", output, flags=re.MULTILINE)
    assert [name for name, _ in rows] == fashion_data.CLASSES
    for _, numbers in rows:
        precision, recall, f1, specificity, fpr, area = map(float, numbers.split())
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=2e-3)
        assert specificity + fpr == pytest.approx(1, abs=1.1e-4)
        assert 0.9 < area <= 1
    confusion = output.split("confusion matrix")[1].splitlines()[2:12]
    diagonal = sum(int(row.split()[c - 10]) for c, row in enumerate(confusion))
    assert diagonal == round(200 * softkern["test_accuracy"])

    for name in ["losses.png", "confusion.png", "roc.png"]:
        assert (plots / name).read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_run(data, tmp_path):
    records = []
    for seed in (1, 1, 2):
        file = tmp_path / "history.json"
        options = ["--epochs", "1", "--seed", str(seed), "--data", str(data)]
        fashion_mnist.main([*options, "--history", str(file), "--loss", "torch"])
        records.append(json.loads(file.read_text())["runs"]["torch"]["loss"])
    assert records[0] == records[1] != records[2]


def test_binary(data, tmp_path):
    options = ["--classes", 2, 4, "--loss", "both", "--plots", tmp_path]
    output = output_of("binary.py", *options, SOFTKERN_DATA=str(data))
    assert "Pullover (0) against Coat (1), 120 training images" in output
    assert "epoch    sigmoid   softkern      torch" in output
    assert max(largest_differences(output)) <= 1e-6
    assert re.findall(r"different predictions: +(\d+)", output) == ["0", "0"]
    for identity in re.findall(r"softmax\(0, z\) - sigmoid\(z\): +(\S+)", output):
        assert float(identity) <= 2.4e-7  # 2 units in the last place of 1
    assert (tmp_path / "sigmoid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", ["fashion_mnist.py", "binary.py"])
@pytest.mark.parametrize("how", ["--data", "$SOFTKERN_DATA"])
def test_named_folder_without_data(script, how, data, tmp_path):
    """The error names the missing files and the ways to get them; no other source is tried."""
    present = "train-labels-idx1-ubyte"
    (tmp_path / present).write_bytes((data / present).read_bytes())
    if how == "--data":
        result = run(script, "--data", tmp_path, SOFTKERN_DATA=str(data))
    else:
        result = run(script, SOFTKERN_DATA=str(tmp_path))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith(f"{how} is {tmp_path}; not there: train-images-idx3-ubyte, t10")
    for way in WAYS_TO_GET_IT:
        assert way in result.stderr


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No data set on this machine, an empty cache, and a server that is not there."""
    monkeypatch.delenv("SOFTKERN_DATA", raising=False)
    monkeypatch.setattr(fashion_data, "DEBIAN", tmp_path / "not-installed")
    monkeypatch.setattr(fashion_data, "URL", "http://127.0.0.1:9/")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "softkern" / "fashion-mnist"


def test_no_data_and_no_download(nowhere):
    with pytest.raises(SystemExit) as exit_:
        fashion_mnist.main(["--no-download"])
    message = str(exit_.value)  # a text as exit code: printed to stderr, and the code is 1
    assert message.startswith("No Fashion-MNIST here, and downloading is off.")
    for way in WAYS_TO_GET_IT:
        assert way in message
    assert not nowhere.exists()


def test_download_without_a_server(nowhere):
    with pytest.raises(SystemExit) as exit_:
        fashion_mnist.main([])
    assert str(exit_.value).startswith("Download failed: ")
    for way in WAYS_TO_GET_IT:
        assert way in str(exit_.value)
    assert [path for path in nowhere.iterdir() if path.suffix != ".part"] == []


@pytest.fixture
def server(contents, nowhere, monkeypatch, tmp_path):
    """The same, but with a server, and with the checksums of what it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
        monkeypatch.setitem(fashion_data.SHA256, name, hashlib.sha256(content).hexdigest())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever).start()
        monkeypatch.setattr(fashion_data, "URL", f"http://127.0.0.1:{httpd.server_port}/")
        yield folder
        httpd.shutdown()


def test_download_is_checked_and_kept(server, nowhere, contents, monkeypatch):
    x_train, y_train, x_test, y_test = fashion_data.load()
    assert x_train.shape == (600, 28, 28)
    assert x_train.dtype == torch.float32
    assert y_train.tolist() == list(range(10)) * 60
    assert (len(x_test), len(y_test)) == (200, 200)
    assert {path.name: path.read_bytes() for path in nowhere.iterdir()} == contents
    # The second time the cache answers.
    monkeypatch.setattr(fashion_data, "URL", "http://127.0.0.1:9/")
    assert torch.equal(fashion_data.load()[0], x_train)


def test_wrong_download_is_refused(server, nowhere):
    bad = server / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(bad.read_bytes()))
    content[-1] ^= 1
    bad.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(SystemExit, match=r"t10k-labels-idx1-ubyte\.gz is not the published file"):
        fashion_data.load()
    assert not (nowhere / "t10k-labels-idx1-ubyte").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\1\0\0\0\4abcd", "not an IDX file of unsigned bytes"),  # 0x0d: floats
        (b"\0\0\x08\1\0\0\0\5abcd", r"4 bytes of data do not fill the shape \[5\]"),
        (b"\0\0\x08\3\0\0\0\1", "do not fill|no greater than buffer"),
    ],
)
def test_bad_idx_files(content, complaint, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        fashion_data.read_idx(tmp_path / "file")


def test_cut_off_file(data, tmp_path):
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    os.truncate(tmp_path / "train-images-idx3-ubyte.gz", 1000)
    with pytest.raises(SystemExit, match=r"Cannot read .*train-images-idx3-ubyte: "):
        fashion_data.load(tmp_path)


def test_files_that_do_not_belong_together(data, contents, tmp_path):
    for name in contents:  # the test labels twice
        source = name.replace("train-labels", "t10k-labels")
        for file in data.glob(f"{source}*"):
            (tmp_path / file.name.replace(source, name)).write_bytes(file.read_bytes())
    with pytest.raises(SystemExit, match="not as many labels as images"):
        fashion_data.load(tmp_path)


@pytest.mark.skipif(
    bool(fashion_data.missing_files(fashion_data.DEBIAN)),
    reason="the package dataset-fashion-mnist is not installed",
)
def test_checksums_are_those_of_the_real_data():
    for name, sha256 in fashion_data.SHA256.items():
        content = gzip.decompress((fashion_data.DEBIAN / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == sha256
