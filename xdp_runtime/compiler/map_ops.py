"""The operations of a map as functions: IR that a program's module exports, or a module of its own.

Each operation of a map becomes `@"map.<index>.<operation>"`, a function without the leading
parameters (regions are symbols, sizes are constants): lookup(worker, key), peek(worker, key),
update(worker, key, value, flags), delete(worker, key), next_key(worker, key, out), and
read(worker, key, out) where the family has it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdp_runtime import cache
from xdp_runtime.compiler import target, templates
from xdp_runtime.maps import batch_loops, family_of
from xdp_runtime.object import MapSpec
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.maps.map import Map

_CTYPES = {"i64": ctypes.c_int64, "ptr": ctypes.c_void_p}


def symbol_name(index: int, name: str) -> str:
    """The symbol of a region or an operation of map `index`."""
    return f"map.{index}.{name}"


def region_declarations(index: int, spec: MapSpec, workers: int) -> str:
    """The map's regions as external symbols; pages, so aligned to them."""
    return "".join(
        f'@"{symbol_name(index, region.name)}" = external global i8, align 4096\n'
        for region in family_of(spec).regions(spec, workers))


def operation_wrappers(index: int, spec: MapSpec, workers: int) -> str:
    """Definitions of the map's operations; regions and templates are declared elsewhere."""
    family = family_of(spec)
    leading = [f'ptr @"{symbol_name(index, p)}"' if isinstance(p, str) else f"i64 {p}"
               for p in family.parameters(spec, workers)]
    return "".join(_wrapper(symbol_name(index, name), template, leading)
                   for name, template in sorted(family.operations.items()))


def _wrapper(symbol: str, template: Template, leading: Sequence[str]) -> str:
    own = [f"{kind} %a{i}" for i, kind in enumerate(template.parameters[len(leading):])]
    return f"""
define {template.result} @"{symbol}"({", ".join(own)}) {{
  %result = call {template.result} @{template.name}({", ".join([*leading, *own])})
  ret {template.result} %result
}}
"""


def operation_symbols(index: int, spec: MapSpec) -> list[str]:
    """What operation_wrappers defines: the exports of a module."""
    return [symbol_name(index, name) for name in sorted(family_of(spec).operations)]


def ctypes_signature(template: Template, leading: int) -> tuple[Any, ...]:
    """(result, *parameters) of the function that operation_wrappers makes of an operation:
    those of the template from `worker` on."""
    return tuple(_CTYPES[kind] for kind in (template.result, *template.parameters[leading:]))


def bind_operations(code: target.Code, index: int, spec: MapSpec) -> dict[str, Callable[..., Any]]:
    """The exported operations as ctypes functions, as Map.bind takes them."""
    bound = {}
    leading = len(family_of(spec).parameters(spec, 1))
    for name, template in family_of(spec).operations.items():
        bound[name] = code.function(symbol_name(index, name), *ctypes_signature(template, leading))
        bound[name].code = code  # the functions live as long as the code does
    return bound


def module(maps: Sequence[MapSpec], workers: int, more: Iterable[Template] = (),
           text: str = "", exports: Iterable[str] = ()) -> Any:
    """An LLVM module with the operations of these maps exported, not yet optimised.

    `text` is more IR that may call them and the templates in `more`; `exports` its symbols."""
    used = [t for spec in maps for t in family_of(spec).operations.values()] + list(more)
    wanted = templates.closure(used)
    parts = [target.pause_definition(),
             *(templates.declaration(t) + "\n" for t in wanted)]
    names = list(exports)
    for index, spec in enumerate(maps):
        parts.append(region_declarations(index, spec, workers))
        parts.append(operation_wrappers(index, spec, workers))
        names += operation_symbols(index, spec)
    bitcodes = templates.bitcodes(wanted)
    return target.link("".join(parts) + text, bitcodes, names)


def imports(maps: Iterable[tuple[int, Map]]) -> dict[str, int]:
    """Region symbols of the maps, each with its index, and where they are in this process."""
    return {symbol_name(index, region): address
            for index, one in maps for region, address in one.symbols().items()}


def compile_operations(one: Map) -> Mapping[str, Callable[..., Any]]:
    """Compile and bind the operations of one map, without any program."""
    spec, workers = one.spec, one.workers
    name = cache.key("map-operations", target.host_fingerprint(), spec.type, spec.key_size,
                     spec.value_size, spec.max_entries, spec.flags, spec.map_extra,
                     spec.lock_at, spec.timer_at, workers)[:32]
    name += ".map.o"
    image = cache.get(name)
    if image is None:
        built = module([spec], workers)
        target.optimise(built)
        image = target.emit_object(built)
        cache.put(name, image)
    code = target.Code(image, imports([(0, one)]), operation_symbols(0, spec))
    operations = bind_operations(code, 0, spec)
    one.bind(operations)
    one.compile_batches = partial(compile_batches, one)
    return operations


def open_map(path: str | Path) -> Map:
    """A map of another process by its file, its operations compiled when first used.  Raises
    LoadError, OutOfMemory."""
    from xdp_runtime.maps.map import Map

    one = Map.open(Path(path))
    one.bind_later(partial(compile_operations, one))
    return one


def compile_batches(one: Map) -> None:
    """Compile and bind loops over the operations of a map (maps/batch_loops.py): `lookup` by key,
    or `table` bucket by bucket, `read` without beginning anew, `update` and `delete`."""
    spec, workers, family = one.spec, one.workers, family_of(one.spec)
    operations = family.operations
    loops = {"lookup": batch_loops.by_key("read" in operations, "read_locked" in operations),
             "delete": batch_loops.REMOVE}
    if "after" in operations:
        loops["read"] = batch_loops.by_key("read" in operations, False, "after")
    if "update" in operations:
        loops["update"] = batch_loops.write("update_all" in operations)
    table = batch_loops.table_of(spec)
    leading = [f'ptr @"{symbol_name(0, p)}"' if isinstance(p, str) else f"i64 {p}"
               for p in family.parameters(spec, workers)]
    texts = {f"batch.{name}": _wrapper(f"batch.{name}", loop, [])
             for name, loop in loops.items()}
    if table is not None:
        texts["batch.table"] = _wrapper("batch.table", table, leading)
    image_name = cache.key("map-batches", target.host_fingerprint(), spec.type, spec.key_size,
                           spec.value_size, spec.max_entries, spec.flags, spec.map_extra,
                           spec.lock_at, spec.timer_at, workers)[:32] + ".batch.o"
    image = cache.get(image_name)
    if image is None:
        more = [*loops.values(), *([table] if table is not None else [])]
        built = module([spec], workers, more, "".join(texts.values()), list(texts))
        target.optimise(built)
        image = target.emit_object(built)
        cache.put(image_name, image)
    code = target.Code(image, imports([(0, one)]), list(texts))
    functions = {}
    for name, loop in loops.items():
        functions[name] = code.function(f"batch.{name}", *ctypes_signature(loop, 0))
    if table is not None:
        functions["table"] = code.function("batch.table", *ctypes_signature(table, len(leading)))
    for function in functions.values():
        function.code = code
    one.batches = functions
