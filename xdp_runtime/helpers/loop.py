"""Helpers that call back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.interp_memory import Pointer, Region
from xdp_runtime.loops_in_line import loops_in_line
from xdp_runtime.object import MapType

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine
    from xdp_runtime.interp_memory import Value
    from xdp_runtime.maps.model import ModelMap

E2BIG, EINVAL = 7, 22
MAX_LOOPS = 8 * 1024 * 1024  # BPF_MAX_LOOPS
_KEY_BASE = 0x2F0000000000  # an address that no other region has


def _interpret_loop(machine: Machine, count: int, code: Value, handed: Value, flags: int) -> int:
    """The compiled form is lowering's own (compiler/loops.py, also for what depends on this)."""
    if flags:
        return -EINVAL
    in_line = count > MAX_LOOPS and loops_in_line(machine.running_program.insns, machine.call_slot)
    if not in_line:
        count &= 0xFFFFFFFF
    if count > MAX_LOOPS:
        return -E2BIG & 0xFFFFFFFF if in_line else -E2BIG
    for done in range(count):
        if machine.call_back(code, [done, handed]):
            return done + 1
    return count


def _interpret_for_each(
    machine: Machine, map: ModelMap, code: Value, handed: Value, flags: int
) -> int:
    """Elements that the callback deletes before their turn are left out."""
    if flags:
        return -EINVAL
    visited = 0
    for key in [key for key, _ in map.items(machine.cpu)]:
        cell = map.peek(key, machine.cpu)
        if cell is None:
            continue
        visited += 1
        data = bytearray(key)
        at = Pointer(Region("a key", data, 0, len(data), _KEY_BASE, writable=False), 0)
        value = machine.value_pointer(map, cell)
        if machine.call_back(code, [machine.map_pointer(map), at, value, handed]):
            break
    return visited


_ITERATED = frozenset({
    MapType.HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_HASH,
    MapType.LRU_PERCPU_HASH})

HELPERS = (
    Helper(164, "for_each_map_elem",
           (Arg.MAP, Arg.CALLBACK, Arg.STACK_OR_NULL, Arg.ANYTHING), Ret.SCALAR,
           _interpret_for_each, map_op="walk", maps=_ITERATED),
    Helper(181, "loop", (Arg.ANYTHING, Arg.CALLBACK, Arg.STACK_OR_NULL, Arg.ANYTHING), Ret.SCALAR,
           _interpret_loop),
)
