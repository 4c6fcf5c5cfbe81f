"""HASH: the operations of a hash map over the table of hash_table.py.

Return codes are those of kernel/bpf/hashtab.c.  Iteration visits buckets in order and the keys of
a bucket in the order of their bytes as words, so that an update of a key, which moves its element,
does not move it past the iterating process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xdp_runtime.maps.admit import AGAIN, ROOM_SIGNATURE, SEARCH, make_admit
from xdp_runtime.maps.family import E2BIG, EINVAL, ENOENT, Mended, Region, no_entries, round_up
from xdp_runtime.maps.hash_table import (
    FIND,
    HASH,
    HASH_OF,
    KEY,
    LOCK_TABLE,
    MATCH,
    NEXT,
    REFERENCED,
    SEED_0,
    SWEEP,
    TAIL,
    UNLINK,
    Factory,
    stride,
)
from xdp_runtime.maps.lock import UNLOCK
from xdp_runtime.maps.pool import (
    COUNT,
    FRESH,
    GIVE_ONE,
    LIVE,
    OWNER,
    SHARD_BYTES,
    SHARDS,
    SHARDS_AT,
    SHARE_BYTES,
    SHARES_AT,
    TAKE,
    WORKERS,
    head_bytes,
    spare,
    total,
)
from xdp_runtime.maps.scan import HASH_SCAN
from xdp_runtime.maps.shard import (
    ALLOWED,
    CAPACITY,
    GROW,
    LEFT,
    LESS,
    SCARCE,
    SHARD,
    START,
    capacity_of,
    pack,
    shards_of,
)
from xdp_runtime.maps.share import SHARE_MAX
from xdp_runtime.maps.walk import HASH_WALK
from xdp_runtime.object import MapFlag, MapSpec
from xdp_runtime.template import Template

# head, buckets, elements, key_size, value_size, stride, mask, max_entries, places; worker
LEADING = "ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64"

_LOW = 0xFFFFFFFF
_ONE = 1 << 32
_KEY_MAX_BYTES = 512  # a program's stack
_ELEMENT_MAX_BYTES = (1 << 22) - 48  # KMALLOC_MAX_SIZE - sizeof(struct htab_elem)
_ELEMENTS_MAX_BYTES = 1 << 35  # what a link of 32 bits in units of 8 bytes reaches
_FLAGS = (MapFlag.NO_PREALLOC | MapFlag.NO_COMMON_LRU | MapFlag.NUMA_NODE | MapFlag.ZERO_SEED
          | MapFlag.RDONLY | MapFlag.WRONLY | MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG)


def _lookup(m: Any) -> Factory:
    find = m.extern(FIND)

    def hash_lookup(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, places,
        worker, key
    ):
        return find(head, buckets, elements, key_size, mask, 0, key)

    return hash_lookup


def _read(m: Any) -> Factory:
    hash_of, match = m.extern(HASH_OF), m.extern(MATCH)

    def hash_read(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, places,
        worker, key, out
    ):
        hashed = hash_of(head, key, key_size)
        bucket = m.inside(buckets, (hashed & mask) << 3)
        while True:
            word = m.acquire_u64(bucket, 0)
            link = word & _LOW
            result = -ENOENT
            steps = 0
            while link != 0:
                element = m.inside(elements, link << 3)
                if match(element, key, key_size, hashed) != 0:
                    value = m.inside(element, KEY + ((key_size + 7) & ~7))
                    at = 0
                    while at + 8 <= value_size:
                        m.store_u64(out, at, m.acquire_u64(value, at))
                        at += 8
                    if at < value_size:
                        rest = m.acquire_u64(value, at)
                        while at < value_size:
                            m.store_u8(out, at, rest & 255)
                            rest = m.lshr(rest, 8)
                            at += 1
                    result = 0
                    link = 0
                else:
                    link = m.acquire_u32(element, NEXT)
                    steps += 1
                    if steps & 63 == 0 and m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) != 0:
                        link = 0
            if m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) == 0:
                return result
            m.pause()

    return hash_read


def make_update(name: str, room: Template, shared: bool = False) -> Template:
    """The update template of a family; `room` and `shared` as for make_admit."""
    admission = make_admit(f"{name}_admit", room, in_place=False, shared=shared)

    def factory(m: Any) -> Factory:
        hash_of, tail, admit = m.extern(HASH_OF), m.extern(TAIL), m.extern(admission)
        unlock, take, give = m.extern(UNLOCK), m.extern(TAKE), m.extern(GIVE_ONE)
        unlink, shard_of, start_of = m.extern(UNLINK), m.extern(SHARD), m.extern(START)

        def hash_update(  # type: ignore
            head, buckets, elements, key_size, value_size, stride, mask, max_entries, places,
            worker, key, value, flags
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
            old = admitted & _LOW
            new = take(head, shard, elements, stride,
                       start_of(places, stride, index) + (places & _LOW))
            element = m.inside(elements, new << 3)
            m.store_u32(element, HASH, hashed)
            mark = m.lshr(admitted, 32) & 1
            if old != 0:
                mark = 1
            m.store_u8(element, REFERENCED, mark)
            m.store_u8(element, LIVE, 1)
            if shared:
                m.store_u16(element, OWNER, m.lshr(admitted, 33))
            at = 0
            while at + 8 <= key_size:
                m.store_u64(element, KEY + at, m.load_u64(key, at))
                at += 8
            if at < key_size:
                m.store_u64(element, KEY + at, tail(key, at, key_size - at))
            m.copy(m.inside(element, KEY + ((key_size + 7) & ~7)), value, value_size)
            word = m.relaxed_u64(bucket, 0)
            first = word & _LOW
            word = word & ~_LOW
            if old == 0:
                m.relaxed_store_u32(element, NEXT, first)
                m.release_u64(bucket, 0, word | new)
                m.store_u32(shard, COUNT, m.load_u32(shard, COUNT) + 1)
            else:
                if old == first:
                    m.relaxed_store_u32(
                        element, NEXT, m.load_u32(m.inside(elements, old << 3), NEXT))
                    m.release_u64(bucket, 0, m.add(word, _ONE) | new)
                else:
                    m.relaxed_store_u32(element, NEXT, first)
                    m.release_u64(bucket, 0, m.add(word, _ONE) | new)
                    unlink(bucket, elements, old)
                give(head, shard, elements, old)
            unlock(shard)
            return 0

        return hash_update

    return Template(name, factory, f"i64({LEADING}, ptr, ptr, i64)",
                    uses=(HASH_OF, TAIL, admission, UNLOCK, TAKE, GIVE_ONE, UNLINK, SHARD, START))


def _refuse(m: Any) -> Factory:
    grow, sweep, unlock = m.extern(GROW), m.extern(SWEEP), m.extern(UNLOCK)

    def hash_full(  # type: ignore
        head, shard, buckets, elements, stride, mask, key_size, max_entries, places, index, worker,
        old
    ):
        if grow(head, shard) != 0:
            return 0
        if m.acquire_u32(head, SCARCE) != 0 or (
                m.load_u32(shard, ALLOWED) == m.load_u32(shard, CAPACITY)):
            return -E2BIG
        unlock(shard)
        sweep(head, buckets, elements, stride, mask, key_size, max_entries, places)
        return AGAIN

    return hash_full


def _drop(m: Any) -> Factory:
    unlink, give, less = m.extern(UNLINK), m.extern(GIVE_ONE), m.extern(LESS)

    def hash_drop(head, shard, bucket, elements, link):  # type: ignore
        """Under the lock of its shard."""
        unlink(bucket, elements, link)
        give(head, shard, elements, link)
        less(head, shard, 1)
        return 0

    return hash_drop


# an element out of its chain and the table
DROP = Template("hash_drop", _drop, "i64(ptr, ptr, ptr, ptr, i64)", (UNLINK, GIVE_ONE, LESS))


def _delete(m: Any) -> Factory:
    hash_of, search, shard_of = m.extern(HASH_OF), m.extern(SEARCH), m.extern(SHARD)
    lock, unlock, drop = m.extern(LOCK_TABLE), m.extern(UNLOCK), m.extern(DROP)

    def hash_delete(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, places,
        worker, key
    ):
        hashed = hash_of(head, key, key_size)
        bucket = m.inside(buckets, (hashed & mask) << 3)
        shard = shard_of(head, places, hashed & mask)
        lock(head, shard, buckets, elements, stride, mask, key_size, places, hashed & mask)
        link = search(bucket, elements, key, key_size, hashed)
        result = -ENOENT
        if link != 0:
            result = drop(head, shard, bucket, elements, link)
        unlock(shard)
        return result

    return hash_delete


def make_take(name: str, under: Template | None = None) -> Template:
    """Lookup and delete in one step; `under` copies values that have a lock (locked.py)."""

    def factory(m: Any) -> Factory:
        hash_of, search, shard_of = m.extern(HASH_OF), m.extern(SEARCH), m.extern(SHARD)
        lock, unlock, drop = m.extern(LOCK_TABLE), m.extern(UNLOCK), m.extern(DROP)
        has_lock = under is not None
        copy_under = m.extern(under or DROP)

        def hash_take(  # type: ignore
            head, buckets, elements, key_size, value_size, stride, mask, max_entries, places,
            worker, key, out
        ):
            hashed = hash_of(head, key, key_size)
            bucket = m.inside(buckets, (hashed & mask) << 3)
            shard = shard_of(head, places, hashed & mask)
            lock(head, shard, buckets, elements, stride, mask, key_size, places, hashed & mask)
            link = search(bucket, elements, key, key_size, hashed)
            result = -ENOENT
            if link != 0:
                value = m.inside(elements, (link << 3) + KEY + ((key_size + 7) & ~7))
                if has_lock:
                    lock_at = m.lshr(value_size, 32)
                    copy_under(out, value, m.gep(value, lock_at), value_size)
                    m.store_u32(out, lock_at, 0)
                else:
                    m.copy(out, value, value_size)
                result = drop(head, shard, bucket, elements, link)
            unlock(shard)
            return result

        return hash_take

    uses = (HASH_OF, SEARCH, LOCK_TABLE, UNLOCK, SHARD, DROP)
    return Template(name, factory, f"i64({LEADING}, ptr, ptr)",
                    uses=uses if under is None else (*uses, under), inline=False)


def _order(m: Any) -> Factory:
    def hash_order(a, b, words_bytes):  # type: ignore
        at = 0
        while at < words_bytes:
            x = m.acquire_u64(a, at)
            y = m.acquire_u64(b, at)
            if x != y:
                if m.ult(x, y):
                    return -1
                return 1
            at += 8
        return 0

    return hash_order


def _least(m: Any) -> Factory:
    order = m.extern(ORDER)

    def hash_least(bucket, elements, key_size, after, out):  # type: ignore
        padded = (key_size + 7) & ~7
        while True:
            word = m.acquire_u64(bucket, 0)
            link = word & _LOW
            best = 0
            steps = 0
            while link != 0:
                element = m.inside(elements, link << 3)
                key = m.inside(element, KEY)
                if after == 0 or order(key, m.inside(elements, (after << 3) + KEY), padded) > 0:
                    if best == 0 or order(
                            key, m.inside(elements, (best << 3) + KEY), padded) < 0:
                        best = link
                link = m.acquire_u32(element, NEXT)
                steps += 1
                if steps & 63 == 0 and m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) != 0:
                    link = 0
            if best != 0:
                at = 0
                while at < key_size:
                    m.store_u8(out, at, m.load_u8(elements, (best << 3) + KEY + at))
                    at += 1
            if m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) == 0:
                return best
            if after != 0:
                return -1
            m.pause()

    return hash_least


def _next_key(m: Any) -> Factory:
    least, hash_of, match = m.extern(LEAST), m.extern(HASH_OF), m.extern(MATCH)

    def hash_next_key(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, places,
        worker, key, out
    ):
        index = 0
        if not m.is_null(key):
            hashed = hash_of(head, key, key_size)
            bucket = m.inside(buckets, (hashed & mask) << 3)
            found = -1
            while found < 0:
                word = m.acquire_u64(bucket, 0)
                link = word & _LOW
                steps = 0
                while link != 0 and match(
                        m.inside(elements, link << 3), key, key_size, hashed) == 0:
                    link = m.acquire_u32(m.inside(elements, link << 3), NEXT)
                    steps += 1
                    if steps & 63 == 0 and m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) != 0:
                        link = 0
                if m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) != 0:
                    m.pause()
                elif link == 0:
                    found = 0
                    index = -1
                else:
                    # `link` names the key; -1 if the chain changed, so it may do so no longer
                    found = least(bucket, elements, key_size, link, out)
                    if found >= 0 and m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) != 0:
                        found = -1
            if found > 0:
                return 0
            if index < 0:
                index = 0
            else:
                index = (hashed & mask) + 1
        while index <= mask:
            bucket = m.inside(buckets, index << 3)
            if m.relaxed_u64(bucket, 0) & _LOW != 0:
                if least(bucket, elements, key_size, 0, out) > 0:
                    return 0
            index += 1
        return -ENOENT

    return hash_next_key


LOOKUP = Template("hash_lookup", _lookup, f"ptr({LEADING}, ptr)", uses=(FIND,))
READ = Template("hash_read", _read, f"i64({LEADING}, ptr, ptr)", uses=(HASH_OF, MATCH),
                inline=False)
FULL = Template("hash_full", _refuse, ROOM_SIGNATURE, (GROW, SWEEP, UNLOCK), inline=False)
UPDATE = make_update("hash_update", FULL)
DELETE = Template("hash_delete", _delete, f"i64({LEADING}, ptr)",
                  uses=(HASH_OF, SEARCH, LOCK_TABLE, UNLOCK, SHARD, DROP))
TAKE_OUT = make_take("hash_take")
ORDER = Template("hash_order", _order, "i64(ptr, ptr, i64)")
LEAST = Template("hash_least", _least, "i64(ptr, ptr, i64, i64, ptr)", uses=(ORDER,),
                 inline=False)
NEXT_KEY = Template("hash_next_key", _next_key, f"i64({LEADING}, ptr, ptr)",
                    uses=(LEAST, HASH_OF, MATCH), inline=False)


class HashFamily:
    """HASH.  `read(key, out)` beside the usual operations copies a value whole."""

    per_cpu = False
    pools = True  # its head has an epoch and workers' lines

    def __init__(self) -> None:
        self.operations: Mapping[str, Template] = {
            "lookup": LOOKUP, "peek": LOOKUP, "read": READ, "update": UPDATE, "delete": DELETE,
            "next_key": NEXT_KEY, "take": TAKE_OUT,
            "walk": HASH_WALK, "scan": HASH_SCAN,
        }

    def check(self, spec: MapSpec) -> str | None:
        flags = spec.flags
        if flags & ~int(_FLAGS):
            return f"flags {spec.flags:#x} are not known for a hash map"
        if flags & MapFlag.RDONLY_PROG and flags & MapFlag.WRONLY_PROG:
            return "it can be neither read nor written by programs"
        if flags & MapFlag.NO_COMMON_LRU and not self._takes_no_common_lru():
            return "BPF_F_NO_COMMON_LRU is for LRU maps"
        if spec.max_entries == 0:
            return no_entries(spec)
        if not 0 < spec.key_size <= _KEY_MAX_BYTES:
            return f"key size is {spec.key_size}, must be 1 to {_KEY_MAX_BYTES}"
        if spec.value_size == 0:
            return "value size is 0"
        if spec.key_size + spec.value_size >= _ELEMENT_MAX_BYTES:
            return f"value size is {spec.value_size}, too large for a hash map"
        if spec.max_entries > 1 << 31 or self._end(spec) > _ELEMENTS_MAX_BYTES:
            return Mended(f"{spec.max_entries} entries of this size are more than {1 << 35} "
                          "bytes", "lower max_entries")
        return None

    def _takes_no_common_lru(self) -> bool:
        return False

    def _stride(self, spec: MapSpec) -> int:
        return stride(spec.key_size, spec.value_size)

    def _shards(self, spec: MapSpec) -> int:
        return 1 if spec.flags & MapFlag.ZERO_SEED else shards_of(spec.max_entries)

    def _spare(self, spec: MapSpec) -> int:
        return spare(self._stride(spec))

    def _per_shard(self, spec: MapSpec) -> int:
        """Elements of a shard: those of its entries, the spare ones."""
        shards = self._shards(spec)
        return capacity_of(spec.max_entries, shards) + max(64, self._spare(spec) // shards)

    def _end(self, spec: MapSpec) -> int:
        """Size of the elements region: the unused first one, then the shards'."""
        return self._stride(spec) * (1 + self._shards(spec) * self._per_shard(spec))

    def _buckets(self, spec: MapSpec) -> int:
        # Twice as many as the kernel has: a chain of one needs no guess whether it goes on, which
        # is worth 4 ns of a lookup where all buckets are in use (bench.micro flow_table_1k).
        return 2 << (spec.max_entries - 1).bit_length()

    def _first_shard(self, spec: MapSpec, workers: int) -> int:
        """Where it is in the head, so that the two lines of each are one of 128 bytes."""
        if self._shards(spec) == 1:
            return 0
        return round_up(head_bytes(workers), SHARD_BYTES) + SHARD_BYTES // 2

    def made(self, spec: MapSpec, workers: int) -> MapSpec:
        """As it is made: max_entries is a multiple of the workers if they have shares."""
        entries = round_up(spec.max_entries, workers if self._shares(spec) else 1)
        return replace(spec, max_entries=entries)

    def _shares(self, spec: MapSpec) -> bool:
        return bool(spec.flags & MapFlag.NO_COMMON_LRU)

    def _first_share(self, spec: MapSpec, workers: int) -> int:
        behind = head_bytes(workers)
        if self._shards(spec) > 1:
            behind = self._first_shard(spec, workers) + SHARD_BYTES * (self._shards(spec) + 1)
        return round_up(behind, SHARD_BYTES) if self._shares(spec) else behind

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        spec = self.made(spec, workers)
        head = self._first_share(spec, workers)
        if self._shares(spec):
            head += SHARE_BYTES * workers
        return (Region("head", head), Region("buckets", 8 * self._buckets(spec)),
                Region("elements", self._end(spec)))

    def _places(self, spec: MapSpec, workers: int) -> int:
        shards = self._shards(spec)
        shift = (self._buckets(spec) // shards).bit_length() - 1 if shards > 1 else 31
        return pack(self._per_shard(spec) * self._stride(spec) // 8, shift,
                    self._first_shard(spec, workers))

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        spec = self.made(spec, workers)
        return ("head", "buckets", "elements", spec.key_size, spec.value_size, self._stride(spec),
                self._buckets(spec) - 1, spec.max_entries, self._places(spec, workers))

    def length(self, spec: MapSpec, memory: Mapping[str, memoryview]) -> int:
        return total(memory["head"], COUNT)

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        """`seed` is 128 bits; BPF_F_ZERO_SEED makes it 0."""
        if spec.flags & MapFlag.ZERO_SEED:
            seed = 0
        head, step = memory["head"], self._stride(spec) // 8
        workers = int.from_bytes(head[WORKERS:WORKERS + 4], "little")
        spec = self.made(spec, workers)
        shared, shards = self._shares(spec), self._shards(spec)
        capacity = capacity_of(spec.max_entries, shards)

        def put(at: int, value: int) -> None:
            head[at:at + 4] = value.to_bytes(4, "little")

        head[SEED_0:SEED_0 + 16] = seed.to_bytes(16, "little")
        if shards == 1:
            put(FRESH, step)
            put(ALLOWED, 0 if shared else capacity)
            put(CAPACITY, capacity)
            put(SCARCE, 2)
        else:
            first = self._first_shard(spec, workers)
            put(SHARDS_AT, first)
            put(SHARDS, shards)
            put(LEFT, 0 if shared else spec.max_entries)
            put(SCARCE, 2 if shared else 0)
            for number in range(shards):
                one = first + SHARD_BYTES * number
                put(one + FRESH, step * (1 + number * self._per_shard(spec)))
                put(one + CAPACITY, capacity)
        if shared:  # a shard is allowed nothing, so that all comes past SHARE_ROOM
            place = self._first_share(spec, workers)
            put(SHARES_AT, place)
            for worker in range(workers):
                put(place + SHARE_BYTES * worker + SHARE_MAX, spec.max_entries // workers)
