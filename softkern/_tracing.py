# SPDX-License-Identifier: Apache-2.0
"""Whether torch.compile puts `F.cross_entropy` into a graph as one call, or traces its code.

Only tracing finds softkern's op in it. Nothing here imports torch's compiler, which takes seconds. If the
compiler is imported later, `_Watch` tells it then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType

_RULES = "torch._dynamo.trace_rules"
_NAME = "torch.nn.functional.cross_entropy"


def look_into(function: FunctionType) -> None:
    _watch.wanted, _watch.function = True, function
    if _RULES not in sys.modules and _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)
    _tell()


def take_as_it_is(function: FunctionType) -> None:
    _watch.wanted, _watch.function = False, function
    _tell()


def _tell() -> None:
    if _RULES in sys.modules:
        _watch.tell(import_module(_RULES))  # waits if another thread is importing it


class _Watch(MetaPathFinder):
    """Notices the import of torch's compiler."""

    wanted = False
    function: object = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _RULES:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.tell(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def tell(self, rules: ModuleType) -> None:
        """Change the table of names, and the table of functions if it has already been made from names."""
        names = getattr(rules, "torch_non_c_binding_in_graph_functions", {})
        if _NAME not in names:
            return
        rule = rules.UserFunctionVariable if self.wanted else rules.TorchInGraphFunctionVariable
        names[_NAME] = rule
        if rules.get_torch_obj_rule_map.cache_info().currsize:
            rules.get_torch_obj_rule_map()[self.function] = rule


_watch = _Watch()
