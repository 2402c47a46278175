# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST: where to find it, how to fetch it, how to read it.

60,000 training and 10,000 test images of 28 x 28 pixels in 10 classes, by Zalando Research
(MIT licence, https://github.com/zalandoresearch/fashion-mnist).
"""

import gzip
import hashlib
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

# SHA-256 of the uncompressed files. Not of the .gz files: their headers hold a name and a time
# that differ between copies of the same data (Debian's package drops the name).
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

UNREADABLE = (OSError, EOFError, ValueError, zlib.error)  # what a bad or cut-off file raises

HOW_TO_GET_IT = f"""\
Fashion-MNIST is needed: {", ".join(SHA256)} (each plain or as .gz).
There are three ways to get it:
  - on Debian or Ubuntu:  apt-get install dataset-fashion-mnist  (found without any option)
  - let this script download it (30 MB):  pip install pooch tqdm,  and leave out --no-download
  - put the four files into a folder and name it:  --data DIR  or  SOFTKERN_DATA=DIR
    (files: https://github.com/zalandoresearch/fashion-mnist#get-the-data)"""


def add_data_options(parser):
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder with the Fashion-MNIST files (default: $SOFTKERN_DATA, else Debian's "
        f"{DEBIAN}, else download)",
    )
    parser.add_argument("--no-download", action="store_true", help="never use the network")


def load(data=None, download=True):
    """Return train images (N, 28, 28), train labels (N,), test images and test labels.

    Pixels stay 0..255, as float32; labels are int64. Without the data, ends the program with a
    message that says how to get it.
    """
    folder = find(data, download)
    tensors = []
    for name in SHA256:
        try:
            array = read_idx(folder / name)
        except UNREADABLE as error:
            sys.exit(f"Cannot read {folder / name}: {error}\n\n{HOW_TO_GET_IT}")
        tensors.append(torch.from_numpy(array.astype("float32" if array.ndim == 3 else "int64")))
    x_train, y_train, x_test, y_test = tensors
    if len(x_train) != len(y_train) or len(x_test) != len(y_test):
        sys.exit(f"The files in {folder} do not belong together: not as many labels as images.")
    return x_train, y_train, x_test, y_test


def find(data, download):
    """Return the folder to read. One that was named is the one used: no silent second choice."""
    named = data or os.environ.get("SOFTKERN_DATA")
    if named:
        missing = missing_files(Path(named))
        if missing:
            origin = "--data" if data else "$SOFTKERN_DATA"
            sys.exit(f"{origin} is {named}; not there: {', '.join(missing)}\n\n{HOW_TO_GET_IT}")
        return Path(named)
    if not missing_files(DEBIAN):
        return DEBIAN
    if not download:
        sys.exit(f"No Fashion-MNIST here, and downloading is off.\n\n{HOW_TO_GET_IT}")
    try:
        return fetch()
    except (ImportError, *UNREADABLE) as error:
        sys.exit(f"Download failed: {error}\n\n{HOW_TO_GET_IT}")


def missing_files(folder):
    return [
        name for name in SHA256 if not (folder / name).is_file() and not (folder / f"{name}.gz").is_file()
    ]


def fetch():
    """Download what is not yet in the user's cache, check it and return the cache folder."""
    import pooch

    folder = Path(pooch.os_cache("softkern")) / "fashion-mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for name, sha256 in SHA256.items():
        if (folder / name).is_file():
            continue
        partial = folder / f"{name}.part"
        pooch.HTTPDownloader(progressbar=True)(f"{URL}{name}.gz", str(partial), None)
        content = gzip.decompress(partial.read_bytes())
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{name}.gz is not the published file (its SHA-256 differs)")
        # Checked content only ever appears whole under the final name, even if interrupted.
        partial.write_bytes(content)
        partial.replace(folder / name)
    return folder


def read_idx(path):
    """Read an IDX file of bytes, plain or gzipped.

    The format: two zero bytes, 8 for "unsigned byte", the number of dimensions; then each
    dimension as a big-endian 32-bit integer; then the bytes.
    """
    if path.is_file():
        content = path.read_bytes()
    else:
        content = gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of unsigned bytes")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], dtype=">u4").astype(int)
    data = np.frombuffer(content, dtype=np.uint8, offset=start)
    if len(shape) != dimensions or data.size != shape.prod():
        raise ValueError(f"{data.size} bytes of data do not fill the shape {shape.tolist()}")
    return data.reshape(shape)
