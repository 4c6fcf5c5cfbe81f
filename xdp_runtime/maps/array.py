"""ARRAY, PERCPU_ARRAY and PROG_ARRAY: values side by side, addressed by a u32 index.

ARRAY: value i at i * stride, stride = value_size rounded up to 8 (the kernel's elem_size).
PERCPU_ARRAY: one such array per worker, each from a page of its own, so that no two workers write
to one cache line.  PROG_ARRAY: u32 per slot, program number + 1, 0 for an empty slot; programs
cannot look values up, bpf_tail_call reads the slot in lowered code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xdp_runtime.maps.family import (
    BPF_EXIST,
    BPF_F_LOCK,
    BPF_NOEXIST,
    E2BIG,
    EEXIST,
    EINVAL,
    ENOENT,
    Region,
    no_entries,
    round_up,
)
from xdp_runtime.maps.walk import ARRAY_WALK
from xdp_runtime.object import MapSpec
from xdp_runtime.template import Template

_PAGE = 4096
_PERCPU_MAX_BYTES = 32 << 10  # PCPU_MIN_UNIT_SIZE
Factory = Callable[..., Any]


def _lookup(m: Any) -> Factory:
    def array_lookup(values, worker_stride, stride, size, max_entries, workers, worker, key):  # type: ignore
        index = m.load_u32(key, 0)
        if index < max_entries:  # one sum less, or LLVM forgets that this is not null
            return m.inside(m.inside(values, worker * worker_stride), index * stride)
        return m.null()

    return array_lookup


def _lookup_of(m: Any) -> Factory:
    def array_lookup_of(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key, cpu
    ):
        index, cpu = m.load_u32(key, 0), cpu & 0xFFFFFFFF
        if index < max_entries and cpu < workers:
            return m.inside(m.inside(values, cpu * worker_stride), index * stride)
        return m.null()

    return array_lookup_of


def _update(m: Any) -> Factory:
    def array_update(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key, value, flags
    ):
        if not m.ule(flags & ~BPF_F_LOCK, BPF_EXIST):
            return -EINVAL
        index = m.load_u32(key, 0)
        if index >= max_entries:
            return -E2BIG
        if flags & BPF_NOEXIST:
            return -EEXIST
        if flags & BPF_F_LOCK:  # no value holds a spin lock yet
            return -EINVAL
        m.copy(m.inside(values, worker * worker_stride + index * stride), value, size)
        return 0

    return array_update


def _delete(m: Any) -> Factory:
    def array_delete(values, worker_stride, stride, size, max_entries, workers, worker, key):  # type: ignore
        return -EINVAL

    return array_delete


def _next_key(m: Any) -> Factory:
    def array_next_key(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key, out
    ):
        index = 0
        if not m.is_null(key):
            index = m.load_u32(key, 0) + 1
            if index == max_entries:
                return -ENOENT
            if index > max_entries:
                index = 0
        m.store_u32(out, 0, index)
        return 0

    return array_next_key


def _slot(m: Any) -> Factory:
    find = m.extern(LOOKUP)

    def slot_peek(values, worker_stride, stride, size, max_entries, workers, worker, key):  # type: ignore
        value = find(values, worker_stride, stride, size, max_entries, workers, worker, key)
        if not m.is_null(value) and m.relaxed_u32(value, 0) == 0:
            return m.null()
        return value

    return slot_peek


def _slot_update(m: Any) -> Factory:
    def slot_update(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key, value, flags
    ):
        if flags != 0:
            return -EINVAL
        index = m.load_u32(key, 0)
        if index >= max_entries:
            return -E2BIG
        m.release_u32(values, index * stride, m.load_u32(value, 0))
        return 0

    return slot_update


def _slot_delete(m: Any) -> Factory:
    def slot_delete(values, worker_stride, stride, size, max_entries, workers, worker, key):  # type: ignore
        index = m.load_u32(key, 0)
        if index >= max_entries:
            return -E2BIG
        if m.relaxed_u32(values, index * stride) == 0:
            return -ENOENT
        m.release_u32(values, index * stride, 0)
        return 0

    return slot_delete


_LEADING = "ptr, i64, i64, i64, i64, i64, i64"
LOOKUP = Template("array_lookup", _lookup, f"ptr({_LEADING}, ptr)")
LOOKUP_OF = Template("array_lookup_of", _lookup_of, f"ptr({_LEADING}, ptr, i64)")
UPDATE = Template("array_update", _update, f"i64({_LEADING}, ptr, ptr, i64)")
DELETE = Template("array_delete", _delete, f"i64({_LEADING}, ptr)")
SLOT = Template("slot_peek", _slot, f"ptr({_LEADING}, ptr)", (LOOKUP,))
SLOT_UPDATE = Template("slot_update", _slot_update, f"i64({_LEADING}, ptr, ptr, i64)")
SLOT_DELETE = Template("slot_delete", _slot_delete, f"i64({_LEADING}, ptr)")
NEXT_KEY = Template("array_next_key", _next_key, f"i64({_LEADING}, ptr, ptr)", inline=False)


class ArrayFamily:
    """ARRAY and PERCPU_ARRAY."""

    def __init__(self, per_cpu: bool) -> None:
        self.per_cpu = per_cpu
        self.operations: Mapping[str, Template] = {
            "lookup": LOOKUP, "update": UPDATE, "delete": DELETE, "next_key": NEXT_KEY,
            "peek": LOOKUP, "walk": ARRAY_WALK,
        }
        if per_cpu:
            self.operations = {**self.operations, "lookup_percpu": LOOKUP_OF}

    def check(self, spec: MapSpec) -> str | None:
        if spec.key_size != 4:
            return f"key size is {spec.key_size}, must be 4"
        if not 0 < spec.value_size < 1 << 31:
            return f"value size is {spec.value_size}"
        if self.per_cpu and round_up(spec.value_size, 8) > _PERCPU_MAX_BYTES:
            return f"value size is {spec.value_size}, per-CPU values have {_PERCPU_MAX_BYTES}"
        if spec.max_entries == 0:
            return no_entries(spec)
        return None

    def worker_stride(self, spec: MapSpec) -> int:
        return round_up(round_up(spec.value_size, 8) * spec.max_entries, _PAGE)

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        copies = workers if self.per_cpu else 1
        return (Region("values", self.worker_stride(spec) * copies),)

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        worker_stride = self.worker_stride(spec) if self.per_cpu else 0
        stride = round_up(spec.value_size, 8)
        return ("values", worker_stride, stride, spec.value_size, spec.max_entries, workers)

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        if spec.initial:
            memory["values"][: len(spec.initial)] = spec.initial


class ProgArrayFamily(ArrayFamily):
    """PROG_ARRAY: the Python view writes the slots; programs only tail-call through it."""

    def __init__(self) -> None:
        super().__init__(per_cpu=False)
        self.operations = {"lookup": SLOT, "peek": SLOT, "update": SLOT_UPDATE,
                           "delete": SLOT_DELETE, "next_key": NEXT_KEY}

    def check(self, spec: MapSpec) -> str | None:
        if spec.value_size != 4:
            return f"value size is {spec.value_size}, must be 4"
        return super().check(spec)

    def worker_stride(self, spec: MapSpec) -> int:
        return round_up(4 * spec.max_entries, _PAGE)

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("values", 0, 4, 4, spec.max_entries, workers)
