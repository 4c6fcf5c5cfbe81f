"""The operations of a map as functions: IR that a program's module exports, or a module of its own.

Each operation of a map becomes `@"map.<index>.<operation>"`, a function without the leading
parameters (regions are symbols, sizes are constants): lookup(worker, key), peek(worker, key),
update(worker, key, value, flags), delete(worker, key), next_key(worker, key, out), and
read(worker, key, out) where the family has it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xdp_runtime import cache
from xdp_runtime.compiler import target, templates
from xdp_runtime.compiler.link import declaration
from xdp_runtime.maps import family_of
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
    parts = [target.pause_definition().replace("define internal", "define", 1),
             *(declaration(t) + "\n" for t in wanted)]
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
                     spec.lock_at, workers)[:32]
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
    return operations


def compile_batches(one: Map) -> Mapping[str, Callable[..., Any]]:
    """Compiled loops over the operations of a map: map_batch_read and map_batch_write."""
    if one.batches:
        return one.batches
    spec, workers, family = one.spec, one.workers, family_of(one.spec)
    loops = (_batch_read("read" in family.operations), _batch_write(
        "update_all" in family.operations))
    names = [loop.name for loop in loops]
    key = cache.key("map-batches", target.host_fingerprint(), spec.type, spec.key_size,
                    spec.value_size, spec.max_entries, spec.flags, spec.map_extra,
                     spec.lock_at, workers)[:32]
    image = cache.get(f"{key}.batch.o")
    if image is None:
        wrappers = "".join(
            f"define i64 @{loop.name}_of({parameters}) {{\n"
            f"  %r = call i64 @{loop.name}({parameters})\n  ret i64 %r\n}}\n"
            for loop in loops
            for parameters in [", ".join(f"{kind} %a{n}"
                                         for n, kind in enumerate(loop.parameters))])
        built = module([spec], workers, loops, wrappers, [f"{name}_of" for name in names])
        target.optimise(built)
        image = target.emit_object(built)
        cache.put(f"{key}.batch.o", image)
    code = target.Code(image, imports([(0, one)]), [f"{name}_of" for name in names])
    functions = {}
    for loop, name in zip(loops, ("map_batch_read", "map_batch_write"), strict=True):
        functions[name] = code.function(f"{loop.name}_of", ctypes.c_int64,
                                        *(_CTYPES[kind] for kind in loop.parameters))
        functions[name].code = code
    one.batches = functions
    return functions


def _batch_read(has_read: bool) -> Template:
    """The entries behind `after` (null: all), at most `count`; how many.  `has_read`: the family
    copies values out whole, those of all workers at once."""

    def factory(m: Any) -> Callable[..., Any]:
        next_key = m.symbol("map.0.next_key", "i64(i64, ptr, ptr)")
        read = m.symbol("map.0.read", "i64(i64, ptr, ptr)")
        peek = m.symbol("map.0.peek", "ptr(i64, ptr)")

        def map_batch(after, keys, values, count, key_size, value_size, workers):  # type: ignore
            here = m.gep(m.alloca(520), 0)
            first = m.is_null(after)
            if not first:
                m.copy(here, after, key_size)
            padded = (value_size + 7) & ~7
            done = 0
            while done < count:
                key = m.gep(keys, done * key_size)
                status = next_key(0, m.null(), key) if first else next_key(0, here, key)
                if status != 0:
                    break
                first = False
                m.copy(here, key, key_size)
                value = m.gep(values, done * workers * padded)
                if has_read:
                    if read(0, key, value) == 0:
                        done += 1
                else:
                    found = 1
                    for worker in range(workers):
                        mine = peek(worker, key)
                        if m.is_null(mine):
                            found = 0
                        else:
                            m.copy(m.gep(value, worker * padded), mine, value_size)
                    done += found
            return done

        return map_batch

    return Template("map_batch_read" if has_read else "map_batch_peek", factory,
                    "i64(ptr, ptr, ptr, i64, i64, i64, i64)", inline=False)


def _batch_write(has_all: bool) -> Template:
    """Update entry by entry; how many.  A refusal ends it, and is stored in `status`."""

    def factory(m: Any) -> Callable[..., Any]:
        update = m.symbol("map.0.update", "i64(i64, ptr, ptr, i64)")
        update_all = m.symbol("map.0.update_all", "i64(i64, ptr, ptr, i64)")

        def map_batch(  # type: ignore
            keys, values, count, key_size, value_size, workers, flags, status
        ):
            padded = (value_size + 7) & ~7
            for done in range(count):
                key = m.gep(keys, done * key_size)
                value = m.gep(values, done * workers * padded)
                result = 0
                if has_all:
                    result = update_all(0, key, value, flags)
                else:
                    for worker in range(workers):
                        if result == 0:
                            result = update(worker, key, m.gep(value, worker * padded), flags)
                if result != 0:
                    m.store_u64(status, 0, result)
                    return done
            return count

        return map_batch

    return Template("map_batch_write_all" if has_all else "map_batch_write", factory,
                    "i64(ptr, ptr, i64, i64, i64, i64, i64, ptr)", inline=False)
