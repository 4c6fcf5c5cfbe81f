"""A baseline compile: machine code a tenth of a second earlier, which is slower by two to four.

The program, its maps' operations and helpers become one object file, by passes of linear time; the
code around it another, which is the same for all programs and comes from the cache.  They call each
other by the names below, so nothing of the program is inlined into the loop.  What is proven, and
how it is lowered, is as in every other compile.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdp_runtime import cache
from xdp_runtime.compiler import target, templates
from xdp_runtime.compiler.image import Image
from xdp_runtime.compiler.link import (
    ENTRY,
    SECOND,
    TARGETS,
    UNSEEN,
    UNSEEN_VERDICT,
    Lowered,
    Unit,
    assemble,
    external_symbols,
    intrinsics,
)
from xdp_runtime.maps.scout import SCOUT, STEPS
from xdp_runtime.maps.timers import TIMERS

# what code around a program calls of its module
_CALLED = {ENTRY: ("i32", "ptr"), UNSEEN_VERDICT: ("i64", ""), UNSEEN: ("i32", "ptr"),
           SECOND: ("i32", "i64, ptr"), TARGETS: ("i64", "i64, i64, ptr, i64"),
           TIMERS: ("i64", "ptr, i64")}
_CALLED_TO_SCOUT = {SCOUT: ("i64", "ptr, ptr"), STEPS: ("i64", "")}


def compile_apart(lowered: Lowered, units: Sequence[Unit]) -> Image:
    """The programs, and the units around them, each in an object file of its own."""
    called = dict(_CALLED)
    if any(unit.scout for unit in units):
        called |= _CALLED_TO_SCOUT
    module, _, symbols, _ = assemble(lowered, (), exports=tuple(called))
    code = target.compile_module(module, target.BASELINE, lowered.slots)
    externals = external_symbols(units, templates.closure(
        template for unit in units for template in unit.templates))
    return Image(code, tuple(name for unit in units for name in unit.exports),
                 tuple(dict.fromkeys([*symbols, *externals])),
                 tuple(around(unit) for unit in units),
                 target.pipeline(target.BASELINE, lowered.slots))


def around(unit: Unit) -> bytes:
    """An object file with the functions of a unit, which calls those of a program's module."""
    needed = templates.closure(unit.templates)
    called = _CALLED | (_CALLED_TO_SCOUT if unit.scout else {})
    name = cache.key("around", target.host_fingerprint(), unit.name, unit.text, str(unit.scout),
                     *unit.exports, *unit.externals,
                     *(f"{t.name}{cache.source_fingerprint(t.factory)}" for t in needed))
    name = f"{unit.name}-{name[:32]}.around"
    found = cache.get(name)
    if found is None:
        text = "\n".join([
            *(f'@"{symbol}" = external global i8, align 64'
              for symbol in external_symbols([unit], needed)),
            *(templates.declaration(template) for template in needed),
            *(f'declare {result} @"{symbol}"({parameters})'
              for symbol, (result, parameters) in called.items()),
            intrinsics(), unit.text, target.pause_definition(apart=True)])
        module = target.link(text, templates.bitcodes(needed), unit.exports)
        found = target.compile_module(module, target.BASELINE, 0)
        cache.put(name, found)
    return found
