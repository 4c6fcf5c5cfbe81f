"""ARRAY_OF_MAPS and HASH_OF_MAPS: a lookup gives a program another map.

The outer map's value is a u32, the number of a *descriptor*; programs get its address. A descriptor
is the inner map's leading parameters (maps/family.py) as 8 bytes each: addresses of its regions,
and numbers. What all maps of the inner definition have in common, whatever their max_entries, is
compiled in all the same; only the rest is read from there (`describe`).

The addresses are those of the process whose workers run the program: only it may set inner maps.
Descriptors lie behind the slots of an array, or behind the workers' lines in a hash's head, and are
not changed as long as a slot has their number.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xdp_runtime.maps import array, hash
from xdp_runtime.maps.family import E2BIG, EINVAL, ENOENT, Family, Region, no_entries, round_up
from xdp_runtime.maps.hash_table import Factory
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.maps.map import Map

DESCRIPTOR_BYTES = 128
_PAGE = 4096
_BEHIND_LINES = 16 * _PAGE  # in the head of a hash: room for the lines of 1020 workers
LEADING = "ptr, i64, i64"  # slots, offset of the descriptors, max_entries


def _lookup(m: Any) -> Factory:
    def maps_lookup(slots, descriptors, max_entries, worker, key):  # type: ignore
        index = m.load_u32(key, 0)
        if index >= max_entries:
            return m.null()
        number = m.acquire_u32(slots, index << 2)
        if number == 0:
            return m.null()
        return m.inside(slots, descriptors + number * DESCRIPTOR_BYTES)

    return maps_lookup


def _peek(m: Any) -> Factory:
    def maps_peek(slots, descriptors, max_entries, worker, key):  # type: ignore
        index = m.load_u32(key, 0)
        if index >= max_entries or m.acquire_u32(slots, index << 2) == 0:
            return m.null()
        return m.inside(slots, index << 2)

    return maps_peek


def _update(m: Any) -> Factory:
    def maps_update(slots, descriptors, max_entries, worker, key, value, flags):  # type: ignore
        if flags != 0:
            return -EINVAL
        index = m.load_u32(key, 0)
        if index >= max_entries:
            return -E2BIG
        m.release_u32(slots, index << 2, m.load_u32(value, 0))
        return 0

    return maps_update


def _delete(m: Any) -> Factory:
    def maps_delete(slots, descriptors, max_entries, worker, key):  # type: ignore
        index = m.load_u32(key, 0)
        if index >= max_entries:
            return -E2BIG
        if m.load_u32(slots, index << 2) == 0:
            return -ENOENT
        m.release_u32(slots, index << 2, 0)
        return 0

    return maps_delete


def _next_key(m: Any) -> Factory:
    after = m.extern(array.NEXT_KEY)

    def maps_next_key(slots, descriptors, max_entries, worker, key, out):  # type: ignore
        return after(slots, 0, 4, 4, max_entries, 1, worker, key, out)

    return maps_next_key


def _hash_lookup(m: Any) -> Factory:
    find = m.extern(hash.LOOKUP)

    def hash_maps_lookup(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, key
    ):
        value = find(head, buckets, elements, key_size, value_size, stride, mask, max_entries,
                     end, worker, key)
        if m.is_null(value):
            return m.null()
        return m.inside(head, _BEHIND_LINES + m.acquire_u32(value, 0) * DESCRIPTOR_BYTES)

    return hash_maps_lookup


def capacity(spec: MapSpec) -> int:
    """Descriptors: more than slots, so that one that was replaced may still be looked at."""
    return 2 * spec.max_entries + 64


class ArrayOfMapsFamily:
    """ARRAY_OF_MAPS"""

    per_cpu = False

    def __init__(self) -> None:
        self.operations: Mapping[str, Template] = {
            "lookup": Template("maps_lookup", _lookup, f"ptr({LEADING}, i64, ptr)"),
            "peek": Template("maps_peek", _peek, f"ptr({LEADING}, i64, ptr)"),
            "update": Template("maps_update", _update, f"i64({LEADING}, i64, ptr, ptr, i64)"),
            "delete": Template("maps_delete", _delete, f"i64({LEADING}, i64, ptr)"),
            "next_key": Template("maps_next_key", _next_key, f"i64({LEADING}, i64, ptr, ptr)",
                                 (array.NEXT_KEY,), inline=False)}

    def check(self, spec: MapSpec) -> str | None:
        if spec.key_size != 4 or spec.value_size != 4:
            return f"key and value have {spec.key_size} and {spec.value_size} bytes, must be 4"
        if spec.max_entries == 0:
            return no_entries(spec)
        return check_inner(spec)

    def descriptors(self, spec: MapSpec) -> tuple[str, int]:
        return "slots", round_up(4 * spec.max_entries, _PAGE)

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        start = self.descriptors(spec)[1]
        return (Region("slots", start + capacity(spec) * DESCRIPTOR_BYTES),)

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("slots", self.descriptors(spec)[1], spec.max_entries)

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        """All slots are empty."""


class HashOfMapsFamily(hash.HashFamily):
    """HASH_OF_MAPS"""

    def __init__(self) -> None:
        super().__init__()
        self.operations = {
            **self.operations,
            "lookup": Template("hash_maps_lookup", _hash_lookup, f"ptr({hash.LEADING}, ptr)",
                               (hash.LOOKUP,))}
        del self.operations["take"]

    def check(self, spec: MapSpec) -> str | None:
        if spec.value_size != 4:
            return f"value size is {spec.value_size}, must be 4"
        return super().check(spec) or check_inner(spec)

    def _shards(self, spec: MapSpec) -> int:
        return 1  # only user space writes

    def descriptors(self, spec: MapSpec) -> tuple[str, int]:
        return "head", _BEHIND_LINES

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        _, *rest = super().regions(spec, workers)
        return (Region("head", _BEHIND_LINES + capacity(spec) * DESCRIPTOR_BYTES), *rest)


def check_inner(spec: MapSpec) -> str | None:
    """A map of maps that was opened by another process has no inner definition, and needs none."""
    if spec.inner is None:
        return None
    if spec.inner.inner is not None:
        return "maps of maps of maps do not exist"
    return None


def parameters_of(family: Family, inner: MapSpec, workers: int) -> Sequence[str | int | None]:
    """The leading parameters of every map of this definition; None: read it from the descriptor."""
    one = family.parameters(inner, workers)
    other = family.parameters(replace(inner, max_entries=4 * inner.max_entries + 3), workers)
    return [a if a == b and not isinstance(a, str) else None
            for a, b in zip(one, other, strict=True)]


def describe(one: Map) -> bytes:
    """The descriptor of an inner map: its parameters, and at the end its id."""
    where = one.symbols()
    numbers = [where[p] if isinstance(p, str) else p
               for p in one.family.parameters(one.spec, one.workers)]
    return struct.pack(f"<{len(numbers)}Q", *numbers).ljust(DESCRIPTOR_BYTES - 8, b"\0") + (
        one.id.to_bytes(8, "little"))


def fits(inner: MapSpec, one: MapSpec) -> bool:
    """bpf_map_meta_equal(), and array_map_meta_equal() and xsk_map_meta_equal()"""
    alike = inner.max_entries == one.max_entries or not (
        inner.type == MapType.XSKMAP
        or (inner.type == MapType.ARRAY and not inner.flags & MapFlag.INNER_MAP))
    return alike and (inner.type, inner.key_size, inner.value_size, inner.flags) == (
        one.type, one.key_size, one.value_size, one.flags)
