# SPDX-License-Identifier: Apache-2.0
"""The providers by name, and the user's own providers from a file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from benchmarks.cells import BadArgument, check_names
from benchmarks.providers.base import Provider
from benchmarks.providers.cut_cross_entropy_ import CutCrossEntropy
from benchmarks.providers.flash_attention import FlashAttention
from benchmarks.providers.head import SoftkernLogits, SoftkernPlan, TorchChunked
from benchmarks.providers.jax_ import Jax
from benchmarks.providers.liger import Liger
from benchmarks.providers.numpy_ import NumPy
from benchmarks.providers.onnxruntime_ import OnnxRuntime
from benchmarks.providers.quack import Quack
from benchmarks.providers.softkern_inplace import SoftkernInPlace
from benchmarks.providers.softkern_plain import SoftkernPlain
from benchmarks.providers.tensorflow_ import TensorFlow
from benchmarks.providers.torch_family import Softkern, SoftkernBackend, Torch, TorchCompile
from benchmarks.providers.torch_out import TorchOut
from benchmarks.providers.trl import Trl

# Those of softkern.backends(), which a peer's process cannot ask: softkern imports torch. A test compares.
ISAS = ("avx512", "avx2", "neon", "portable")

# In the order of the columns. Ratios compare with the first one.
PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Torch(),
        Softkern(),
        SoftkernInPlace(),
        *(SoftkernBackend(isa) for isa in ISAS),
        SoftkernBackend("cuda", "cuda"),
        SoftkernBackend("triton", "cuda"),
        SoftkernPlain(),
        *(SoftkernPlan(plan) for plan in ("fast", "lean")),
        SoftkernLogits(),
        TorchOut(),
        TorchChunked(),
        TorchCompile(),
        Trl(),
        Jax(),
        TensorFlow(),
        OnnxRuntime(),
        NumPy(),
        Liger(),
        CutCrossEntropy(),
        Quack(),
        FlashAttention(),
    )
}


def from_file(path: Path) -> dict[str, Provider]:
    """The providers that a Python file lists in PROVIDERS, by name."""
    spec = importlib.util.spec_from_file_location("benchmark_plugin", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BadArgument(f"plugin {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, "PROVIDERS", None)
    if not found or not all(isinstance(provider, Provider) for provider in found):
        raise BadArgument(f"plugin {path}: expected a list PROVIDERS of benchmarks.providers.base.Provider")
    return {provider.name: provider for provider in found}


def line_up(names: list[str], known: dict[str, Provider]) -> list[tuple[str, Provider]]:
    """(label, provider) for each name; the second provider of the same name gets the label name#2."""
    check_names("provider", names, known)
    labels: list[tuple[str, Provider]] = []
    for name in names:
        again = sum(label.split("#")[0] == name for label, _ in labels)
        labels.append((f"{name}#{again + 1}" if again else name, known[name]))
    return labels
