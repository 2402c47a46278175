# SPDX-License-Identifier: Apache-2.0
"""Runs the matrix on every backend and compares them with the answer, with torch and with each other."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import softkern
from softkern import _C, info
from softkern.verify.case import LINEAR, NAMES, Case, build
from softkern.verify.cases import matrix
from softkern.verify.edges import difference, edges
from softkern.verify.judge import Measure, expectations, measure, results
from softkern.verify.report import Report

DEVICES = ("cpu", "cuda", "xpu")


def run(device: str = "cpu", backends: Sequence[str] | None = None, *, quick: bool = False) -> Report:
    """Check softkern on this machine.

    Args:
        device: "cpu", "cuda" or "xpu".
        backends: names from `softkern.backends()`. None: all that can run here on `device`, except an
            interpreted "triton" and an emulated "cuda", which take long.
        quick: fewer sizes and combinations, but all groups of checks.

    Returns:
        A report; its `ok` says whether all checks hold. Wrong results do not raise.

    Raises:
        ValueError: `device` or a backend is unknown, or a backend computes on another device.
        RuntimeError: the device or a named backend can't be used here; the text says why.
    """
    names = choose(device, backends)
    start = time.perf_counter()
    report = Report(info.environment(), device, quick, names)
    for b in softkern.backends():
        if b.device == device and not b.usable:
            report.not_checked[f"backend {b.name}"] = b.reason
        elif b.device == device and backends is None and b.name not in names:
            report.not_checked[f"backend {b.name}"] = "takes long on the CPU: it has to be named"
    if len(_isas(names)) < 2:
        report.not_checked["bits of the backends against each other"] = "no two of them have the same"
    if device != "cpu":
        report.not_checked["targets out of range"] = "a wrong target stops the device, as torch's kernels do"
    threads = torch.get_num_threads()
    try:
        # The caller's context (no_grad, autocast) must not change what is checked.
        with torch.enable_grad(), torch.autocast(device, enabled=False):
            torch.set_num_threads(1)  # thousands of small calls: waiting for each other takes longer
            for case in matrix(quick):
                _check_case(report, case)
            for name in names:
                with softkern.use_backend(name):
                    for group, op, dtype, subject, why in edges(
                        device, quick, threads if _isas([name]) else None
                    ):
                        report.add(name, group, op, dtype, subject, why)
    finally:
        torch.set_num_threads(threads)
    report.seconds = time.perf_counter() - start
    return report


def choose(device: str, wanted: Sequence[str] | None) -> list[str]:
    """The backends to check, best first; raises as `run` says."""
    if device not in DEVICES:
        raise ValueError(
            f"verify: expected device to be one of {', '.join(map(repr, DEVICES))}, got {device!r}"
        )
    if device == "xpu" and not torch.xpu.is_available():
        raise RuntimeError("verify: device 'xpu' can't be used here: torch sees none")
    if device == "cuda" and not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        why = "it sees no device that it can use" if torch.version.cuda else "it computes on the CPU alone"
        raise RuntimeError(f"verify: device 'cuda' can't be used here: this torch is {built}, {why}")
    known = {b.name: b for b in softkern.backends()}
    here = [b for b in known.values() if b.device == device]
    if wanted is None:
        names = [b.name for b in here if b.usable and (device != "cpu" or _isas([b.name]))]
        if not names:
            reasons = "; ".join(f"{b.name}: {b.reason}" for b in here) or "this build has none for it"
            raise RuntimeError(f"verify: no backend can compute on {device!r} here ({reasons})")
        return names
    for name in wanted:
        if name not in known:
            listed = ", ".join(map(repr, known))
            raise ValueError(f"verify: expected backend to be one of {listed}, got {name!r}")
        if known[name].device != device:
            raise ValueError(
                f"verify: backend {name!r} computes on {known[name].device!r}, not on {device!r}"
            )
        if not known[name].usable:
            raise RuntimeError(f"verify: backend {name!r} can't run here: {known[name].reason}")
    return list(dict.fromkeys(wanted))


def _isas(names: Sequence[str]) -> list[str]:
    """The instruction sets of the CPU among the backends; they all give the same bits."""
    known = {name for name, _, _ in _C.isas()}
    return [name for name in names if name in known]


def _check_case(report: Report, case: Case) -> None:
    """Check one case on all backends. An instruction set with the first one's bits has the same errors."""
    problem = build(case, report.device)
    try:
        theirs = results(F, case, problem) if _torch_matters(case) else {}
    except Exception as error:
        report.add("torch", case.group, case.op, case.dtype, case, f"torch raised {error!r}")
        return
    first: tuple[str, dict[str, Tensor], list[Measure]] | None = None
    for name in report.backends:
        try:
            with softkern.use_backend(name):
                ours = results(softkern, case, problem)
            if report.device == "cpu" and _C.last_isa() != name:
                raise RuntimeError(f"{_C.last_isa()!r} computed in the place of {name!r}")
            compared = first if _isas([name]) and case.op != LINEAR else None  # whose products are torch's
            unlike = difference(ours, compared[1], f"those of {compared[0]}") if compared else ""
            if compared and not unlike:
                measures = compared[2]
            else:
                expected = expectations(case, problem, ours)
                measures = [measure(case, q, ours[q], e, theirs.get(q)) for q, e in expected.items()]
        except Exception as error:
            why = f"raised {type(error).__name__}: {error}"
            report.add(name, case.group, case.op, case.dtype, case, why)
            continue
        for m in measures:
            why = ": ".join(text for text in (m.why, m.detail) if text)
            numbers = {"error": m.error, "stated": m.stated, "torch_error": m.torch_error, "share": m.share}
            report.add(name, case.group, m.quantity, case.dtype, case, why, **numbers)
        if compared:
            report.add(name, f"same bits as {compared[0]}", case.op, case.dtype, case, unlike)
        elif _isas([name]):
            first = name, ours, measures


def _torch_matters(case: Case) -> bool:
    """Whether torch's error is used in the bound or the table; its 16-bit results are not.

    torch has no calls with softkern's own options.
    """
    return NAMES[case.dtype].itemsize > 2 and not case.beyond_f
