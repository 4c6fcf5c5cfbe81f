"""PERCPU_HASH and LRU_PERCPU_HASH: the table of hash_table.py with the values beside it.

An element holds only its key.  Its values lie in a region of their own, one array a worker, each
from a page of its own, so that no two workers write to one cache line: the value of element i for
worker w is at w * worker_stride + i * value_stride.

As in the kernel, a program's update of a key that exists writes this worker's value in place and
leaves the others; a new key starts with zeros for the others.  User space reads and writes the
values of all workers at once (`read`, `update_all`), each padded to 8 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdp_runtime.maps.admit import SEARCH, make_admit
from xdp_runtime.maps.family import EINVAL, ENOENT, Region, round_up
from xdp_runtime.maps.hash import DELETE, DROP, FULL, NEXT_KEY, HashFamily
from xdp_runtime.maps.hash_table import (
    FIND,
    HASH,
    HASH_OF,
    KEY,
    LOCK_TABLE,
    MATCH,
    NEXT,
    REFERENCED,
    TAIL,
    Factory,
    stride,
)
from xdp_runtime.maps.lock import UNLOCK
from xdp_runtime.maps.lru import ROOM, SHARED_ROOM
from xdp_runtime.maps.pool import COUNT, LIVE, OWNER, TAKE, spare
from xdp_runtime.maps.scan import PERCPU_SCAN
from xdp_runtime.maps.shard import SHARD, START
from xdp_runtime.maps.walk import PERCPU_WALK
from xdp_runtime.object import MapFlag, MapSpec
from xdp_runtime.template import Template

# head, buckets, elements, values, key_size, value_size, stride, mask, max_entries, places,
# worker_stride, workers; worker
LEADING = "ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, i64, i64"
_LOW = 0xFFFFFFFF
_ONE = 1 << 32
_PAGE = 4096


def _place(m: Any) -> Factory:
    def percpu_place(values, value_size, stride, worker_stride, worker, at):  # type: ignore
        index = m.udiv(at, stride)
        return m.inside(values, worker * worker_stride + index * ((value_size + 7) & ~7))

    return percpu_place


# a worker's value of the element `at` bytes into the elements
PLACE = Template("percpu_place", _place, "ptr(ptr, i64, i64, i64, i64, i64)")


def _make_lookup(name: str, mark: int) -> tuple[Template, Template]:
    """The lookup of this worker's value, and of any worker's."""

    def lookup(m: Any) -> Factory:
        find, place = m.extern(FIND), m.extern(PLACE)

        def percpu_lookup(  # type: ignore
            head, buckets, elements, values, key_size, value_size, stride, mask, max_entries,
            places, worker_stride, workers, worker, key
        ):
            behind = find(head, buckets, elements, key_size, mask, mark, key)
            if m.is_null(behind):
                return m.null()
            at = m.diff(behind, elements) - KEY - ((key_size + 7) & ~7)
            return place(values, value_size, stride, worker_stride, worker, at)

        return percpu_lookup

    def lookup_of(m: Any) -> Factory:
        find, place = m.extern(FIND), m.extern(PLACE)

        def percpu_lookup_of(  # type: ignore
            head, buckets, elements, values, key_size, value_size, stride, mask, max_entries,
            places, worker_stride, workers, worker, key, cpu
        ):
            cpu &= _LOW
            if cpu >= workers:
                return m.null()
            behind = find(head, buckets, elements, key_size, mask, mark, key)
            if m.is_null(behind):
                return m.null()
            at = m.diff(behind, elements) - KEY - ((key_size + 7) & ~7)
            return place(values, value_size, stride, worker_stride, cpu, at)

        return percpu_lookup_of

    uses = (FIND, PLACE)
    return (Template(name, lookup, f"ptr({LEADING}, ptr)", uses),
            Template(f"{name}_of", lookup_of, f"ptr({LEADING}, ptr, i64)", uses))


def _read(m: Any) -> Factory:
    hash_of, match, place = m.extern(HASH_OF), m.extern(MATCH), m.extern(PLACE)

    def percpu_read(  # type: ignore
        head, buckets, elements, values, key_size, value_size, stride, mask, max_entries, places,
        worker_stride, workers, worker, key, out
    ):
        hashed = hash_of(head, key, key_size)
        bucket = m.inside(buckets, (hashed & mask) << 3)
        padded = (value_size + 7) & ~7
        while True:
            word = m.acquire_u64(bucket, 0)
            link = word & _LOW
            result = -ENOENT
            steps = 0
            while link != 0:
                if match(m.inside(elements, link << 3), key, key_size, hashed) != 0:
                    for each in range(workers):
                        value = place(values, value_size, stride, worker_stride, each, link << 3)
                        at = 0
                        while at < padded:
                            m.store_u64(out, each * padded + at, m.acquire_u64(value, at))
                            at += 8
                    result = 0
                    link = 0
                else:
                    link = m.acquire_u32(m.inside(elements, link << 3), NEXT)
                    steps += 1
                    if steps & 63 == 0 and m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) != 0:
                        link = 0
            if m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) == 0:
                return result
            m.pause()

    return percpu_read


def _make_update(name: str, room: Template, mark: int,
                 shared: bool = False) -> tuple[Template, Template]:
    """Update of this worker's value, and of all workers' from values 8-byte padded."""

    admission = make_admit(f"{name}_admit", room, in_place=True, shared=shared)

    def put(m: Any) -> Factory:
        hash_of, tail, admit = m.extern(HASH_OF), m.extern(TAIL), m.extern(admission)
        unlock, take, place = m.extern(UNLOCK), m.extern(TAKE), m.extern(PLACE)
        shard_of, start_of = m.extern(SHARD), m.extern(START)

        def percpu_put(  # type: ignore
            head, buckets, elements, values, key_size, value_size, stride, mask, max_entries,
            places, worker_stride, workers, worker, key, value, flags, every
        ):
            if not m.ule(flags, 2):
                return -EINVAL
            hashed = hash_of(head, key, key_size)
            index = hashed & mask
            bucket = m.inside(buckets, index << 3)
            shard = shard_of(head, places, index)
            admitted = admit(head, shard, buckets, elements, stride, mask, key_size, max_entries,
                             places, index, hashed, worker, key, flags)
            if admitted < 0:
                return admitted
            link = admitted & _LOW
            found = link != 0
            if not found:
                link = take(head, shard, elements, stride,
                            start_of(places, stride, index) + (places & _LOW))
            element = m.inside(elements, link << 3)
            padded = (value_size + 7) & ~7
            for each in range(workers):
                mine = place(values, value_size, stride, worker_stride, each, link << 3)
                if every != 0:
                    m.copy(mine, m.gep(value, each * padded), value_size)
                elif each == worker:
                    m.copy(mine, value, value_size)
                elif not found:
                    m.zero(mine, padded)
            if found:
                if mark != 0:
                    m.store_u8(element, REFERENCED, 1)
                unlock(shard)
                return 0
            m.store_u32(element, HASH, hashed)
            m.store_u8(element, REFERENCED, m.lshr(admitted, 32) & 1)
            m.store_u8(element, LIVE, 1)
            if shared:
                m.store_u16(element, OWNER, m.lshr(admitted, 33))
            at = 0
            while at + 8 <= key_size:
                m.store_u64(element, KEY + at, m.load_u64(key, at))
                at += 8
            if at < key_size:
                m.store_u64(element, KEY + at, tail(key, at, key_size - at))
            word = m.relaxed_u64(bucket, 0)
            m.relaxed_store_u32(element, NEXT, word & _LOW)
            m.release_u64(bucket, 0, (word & ~_LOW) | link)
            m.store_u32(shard, COUNT, m.load_u32(shard, COUNT) + 1)
            unlock(shard)
            return 0

        return percpu_put

    body = Template(f"{name}_put", put, f"i64({LEADING}, ptr, ptr, i64, i64)",
                    (HASH_OF, TAIL, admission, UNLOCK, TAKE, PLACE, SHARD, START))

    def front(every: int) -> Any:
        def factory(m: Any) -> Factory:
            put_it = m.extern(body)

            def percpu_update(  # type: ignore
                head, buckets, elements, values, key_size, value_size, stride, mask, max_entries,
                places, worker_stride, workers, worker, key, value, flags
            ):
                return put_it(head, buckets, elements, values, key_size, value_size, stride, mask,
                              max_entries, places, worker_stride, workers, worker, key,
                              value, flags, every)

            return percpu_update

        return factory

    signature = f"i64({LEADING}, ptr, ptr, i64)"
    return (Template(name, front(0), signature, (body,)),
            Template(f"{name}_all", front(1), signature, (body,), inline=False))


def _delete(m: Any) -> Factory:
    table_delete = m.extern(DELETE)

    def percpu_delete(  # type: ignore
        head, buckets, elements, values, key_size, value_size, stride, mask, max_entries, places,
        worker_stride, workers, worker, key
    ):
        return table_delete(head, buckets, elements, key_size, value_size, stride, mask,
                            max_entries, places, worker, key)

    return percpu_delete


def _take_out(m: Any) -> Factory:
    hash_of, search, place = m.extern(HASH_OF), m.extern(SEARCH), m.extern(PLACE)
    lock, unlock, drop = m.extern(LOCK_TABLE), m.extern(UNLOCK), m.extern(DROP)
    shard_of = m.extern(SHARD)

    def percpu_take(  # type: ignore
        head, buckets, elements, values, key_size, value_size, stride, mask, max_entries, places,
        worker_stride, workers, worker, key, out
    ):
        hashed = hash_of(head, key, key_size)
        bucket = m.inside(buckets, (hashed & mask) << 3)
        padded = (value_size + 7) & ~7
        shard = shard_of(head, places, hashed & mask)
        lock(head, shard, buckets, elements, stride, mask, key_size, places, hashed & mask)
        link = search(bucket, elements, key, key_size, hashed)
        result = -ENOENT
        if link != 0:
            for each in range(workers):
                m.copy(m.gep(out, each * padded),
                       place(values, value_size, stride, worker_stride, each, link << 3), padded)
            result = drop(head, shard, bucket, elements, link)
        unlock(shard)
        return result

    return percpu_take


def _next_key(m: Any) -> Factory:
    table_next = m.extern(NEXT_KEY)

    def percpu_next_key(  # type: ignore
        head, buckets, elements, values, key_size, value_size, stride, mask, max_entries, places,
        worker_stride, workers, worker, key, out
    ):
        return table_next(head, buckets, elements, key_size, value_size, stride, mask,
                          max_entries, places, worker, key, out)

    return percpu_next_key


LOOKUP, LOOKUP_OF = _make_lookup("percpu_hash_lookup", 0)
LRU_LOOKUP, LRU_LOOKUP_OF = _make_lookup("percpu_lru_lookup", 1)
READ = Template("percpu_hash_read", _read, f"i64({LEADING}, ptr, ptr)", (HASH_OF, MATCH, PLACE),
                inline=False)
UPDATE, UPDATE_ALL = _make_update("percpu_hash_update", FULL, 0)
LRU_UPDATE, LRU_UPDATE_ALL = _make_update("percpu_lru_update", ROOM, 1)
SHARED_UPDATE, SHARED_UPDATE_ALL = _make_update("percpu_lru_shared_update", SHARED_ROOM, 1, True)
PERCPU_DELETE = Template("percpu_hash_delete", _delete, f"i64({LEADING}, ptr)", (DELETE,))
PERCPU_NEXT_KEY = Template("percpu_hash_next_key", _next_key, f"i64({LEADING}, ptr, ptr)",
                           (NEXT_KEY,), inline=False)
PERCPU_TAKE = Template("percpu_hash_take", _take_out, f"i64({LEADING}, ptr, ptr)",
                       (HASH_OF, SEARCH, PLACE, LOCK_TABLE, UNLOCK, SHARD, DROP), inline=False)
_PERCPU_MAX_BYTES = 32 << 10  # PCPU_MIN_UNIT_SIZE


class PerCpuHashFamily(HashFamily):
    """PERCPU_HASH; `lru`: LRU_PERCPU_HASH; `shared`: this one with BPF_F_NO_COMMON_LRU."""

    per_cpu = True

    def __init__(self, lru: bool = False, shared: bool = False) -> None:
        self.lru = lru
        update, update_all = UPDATE, UPDATE_ALL
        if lru:
            update, update_all = LRU_UPDATE, LRU_UPDATE_ALL
        if shared:
            update, update_all = SHARED_UPDATE, SHARED_UPDATE_ALL
        self.operations: Mapping[str, Template] = {
            "lookup": LRU_LOOKUP if lru else LOOKUP, "peek": LOOKUP, "read": READ,
            "lookup_percpu": LRU_LOOKUP_OF if lru else LOOKUP_OF,
            "update": update, "update_all": update_all, "delete": PERCPU_DELETE,
            "next_key": PERCPU_NEXT_KEY, "take": PERCPU_TAKE,
            "walk": PERCPU_WALK, "scan": PERCPU_SCAN,
        }

    def _takes_no_common_lru(self) -> bool:
        return self.lru

    def check(self, spec: MapSpec) -> str | None:
        if self.lru and spec.flags & MapFlag.NO_PREALLOC:
            return "BPF_F_NO_PREALLOC is not for LRU maps"
        if round_up(spec.value_size, 8) > _PERCPU_MAX_BYTES:
            return f"value size is {spec.value_size}, per-CPU values have {_PERCPU_MAX_BYTES}"
        return super().check(spec)

    def _stride(self, spec: MapSpec) -> int:
        return stride(spec.key_size, 0)

    def _spare(self, spec: MapSpec) -> int:
        return spare(self._stride(spec) + 4 * round_up(spec.value_size, 8))

    def _worker_stride(self, spec: MapSpec) -> int:
        count = self._end(spec) // self._stride(spec)
        return round_up(round_up(spec.value_size, 8) * count, _PAGE)

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        spec = self.made(spec, workers)
        return (*super().regions(spec, workers),
                Region("values", self._worker_stride(spec) * workers))

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        spec = self.made(spec, workers)
        return ("head", "buckets", "elements", "values", spec.key_size, spec.value_size,
                self._stride(spec), self._buckets(spec) - 1, spec.max_entries,
                self._places(spec, workers), self._worker_stride(spec), workers)
