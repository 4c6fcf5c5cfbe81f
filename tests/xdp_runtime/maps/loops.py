"""Compiled loops over a map's operations: what Python is too slow to do to a map."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from xdp_runtime.compiler import map_ops, target
from xdp_runtime.maps.map import Map
from xdp_runtime.template import Template

I64, PTR = ctypes.c_int64, ctypes.c_void_p


def compile_loops(one: Map, *loops: Template) -> dict[str, Callable[..., Any]]:
    """The map's operations, bound to it, and the loops, which call them as `map.0.<operation>`."""
    module = map_ops.module([one.spec], one.workers, more=loops,
                            exports=[loop.name for loop in loops])
    target.optimise(module)
    names = [*map_ops.operation_symbols(0, one.spec), *(loop.name for loop in loops)]
    code = target.Code(target.emit_object(module), map_ops.imports([(0, one)]), names)
    one.bind(map_ops.bind_operations(code, 0, one.spec))
    functions = {}
    for loop in loops:
        kinds: Sequence[Any] = [I64 if p == "i64" else PTR for p in loop.parameters]
        functions[loop.name] = code.function(loop.name, I64, *kinds)
        functions[loop.name].code = code
    return functions
