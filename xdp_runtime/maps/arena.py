"""ARENA: pages that programs and user space share, and the kernel's answers for those not there.

`pages` are the memory, sparse; `present` has a byte for each: user space that maps a page makes it
(Map.mmap), for no XDP program may.  A program's access is one call of `at`, which finds the memory,
or nothing: then what is read is zero, and what is written is gone, as after a fault in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xdp_runtime.arena import PAGE_BYTES, start_of
from xdp_runtime.maps.family import Region, round_up
from xdp_runtime.object import MapFlag, MapSpec
from xdp_runtime.template import Template

LEADING = "ptr, ptr, i64, i64"  # pages, present, bytes, the lower half of the start; worker


def _at(m: Any) -> Callable[..., Any]:
    def arena_at(pages, present, size_bytes, start, worker, address, size):  # type: ignore
        first = address - start
        last = first + size - 1
        if first < 0 or last >= size_bytes:
            return m.null()
        if m.load_u8(present, m.lshr(first, 12)) == 0 or m.load_u8(present, m.lshr(last, 12)) == 0:
            return m.null()
        return m.inside(pages, first)

    return arena_at


AT = Template("arena_at", _at, f"ptr({LEADING}, i64, i64, i64)")


class ArenaFamily:
    """ARENA"""

    per_cpu = False

    def __init__(self) -> None:
        self.operations: Mapping[str, Template] = {"at": AT}

    def check(self, spec: MapSpec) -> str | None:
        if spec.key_size or spec.value_size:
            return f"key and value have {spec.key_size} and {spec.value_size} bytes, must be 0"
        if spec.max_entries == 0:
            return "max_entries, the number of pages, is 0"
        if not spec.flags & MapFlag.MMAPABLE:
            return "it has not BPF_F_MMAPABLE"
        if spec.map_extra % PAGE_BYTES:
            return f"its address, map_extra, is {spec.map_extra:#x}, not that of a page"
        return None

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        return (Region("present", spec.max_entries),
                Region("pages", PAGE_BYTES * spec.max_entries))

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("pages", "present", PAGE_BYTES * spec.max_entries, start_of(spec) & 0xFFFFFFFF)

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        """Only the pages of the program's variables are there."""
        content = spec.initial
        memory["pages"][:len(content)] = content
        count = round_up(len(content), PAGE_BYTES) // PAGE_BYTES
        memory["present"][:count] = b"\1" * count
