# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter, made fast enough for a test suite; used where TRITON_INTERPRET=1.

Before each function that a kernel calls, the interpreter looks through all of triton.language for what it has
to replace, and finds that it has replaced it: more than half of its time. Here it looks once for each kernel
and for each of the two modules (triton.language and its core) that a function may know."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from softkern.verify.cases import Case, matrix


class _NothingReplaced:
    def restore(self) -> None:
        pass


def look_once() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter._patch_lang
    scopes: list[Any] = []
    known: set[str] = set()
    modules_of: dict[int, set[str]] = {}

    def patch(fn: Any) -> Any:
        seen = fn.__globals__
        if id(seen) not in modules_of:
            found = (m for m in seen.values() if inspect.ismodule(m) and m in (tl, tl.core))
            modules_of[id(seen)] = {m.__name__ for m in found}
        modules = modules_of[id(seen)]
        if scopes and modules <= known:
            return _NothingReplaced()
        scope = original(fn)
        known.update(modules)
        scopes.append(scope)
        if len(scopes) > 1:
            return _NothingReplaced()
        restore = scope.restore

        def put_back() -> None:
            for inner in reversed(scopes[1:]):
                inner.restore()
            scopes.clear()
            known.clear()
            restore()

        scope.restore = put_back
        return scope

    interpreter._patch_lang = patch


def once(cases: Iterable[Case]) -> Iterator[Case]:
    """Those with something that no case before had: each value of each field, once an op and group."""
    seen: set[tuple[Any, ...]] = set()
    for case in cases:
        fields = dataclasses.asdict(case)
        del fields["seed"]
        new = {(case.group, case.op, name, value) for name, value in fields.items()} - seen
        seen |= new
        if new:
            yield case


if (
    __name__ == "__main__"
):  # softkern.verify with the faster interpreter, and its arguments; --once: fewer cases
    from softkern.verify import runner
    from softkern.verify.__main__ import main

    look_once()
    arguments = [argument for argument in sys.argv[1:] if argument != "--once"]
    if len(arguments) < len(sys.argv) - 1:
        runner.matrix = lambda quick: once(matrix(quick))
    sys.exit(main(["--backend", "triton", *arguments]))
