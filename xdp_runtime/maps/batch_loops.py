"""Compiled loops over the entries of a map, for user space: BPF_MAP_*_BATCH and NumPy.

A control block of six u64 goes in and comes out:

    0   entries there is room for; how many were done
    8   of a hash: the bucket to begin with, then the one to go on with
    16  1: take the entries out
    24  the element's flags
    32  the worker who writes (that of nobody who is one has the number behind theirs)
    40  1: there is a key to go on behind; then: the last key was stored

Results are those of generic_map_*_batch (kernel/bpf/syscall.c) and of
__htab_map_lookup_and_delete_batch (hashtab.c): -ENOENT at the end of the map, -ENOSPC if not even
the first bucket fits.  A hash goes bucket by bucket, so that an entry is given once whatever
others do meanwhile; values are copied whole (a bucket that changes is copied again).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.maps.family import BPF_F_LOCK, ENOENT, ENOSPC
from xdp_runtime.maps.hash_table import HASH as HASHED
from xdp_runtime.maps.hash_table import KEY, LOCK_TABLE, MATCH, NEXT
from xdp_runtime.maps.lock import UNLOCK
from xdp_runtime.maps.locked import UNDER
from xdp_runtime.maps.pool import GIVE_ONE
from xdp_runtime.maps.shard import LESS, SHARD
from xdp_runtime.object import MapSpec, MapType
from xdp_runtime.template import Template

Factory = Callable[..., Any]
COUNT_AT, BUCKET_AT, REMOVE_AT, FLAGS_AT, WORKER_AT, AFTER_AT = range(0, 48, 8)
CONTROL_BYTES = 48
_LOW = 0xFFFFFFFF
_ONE = 1 << 32


def _bucket_out(m: Any) -> Factory:
    under, match = m.extern(UNDER), m.extern(MATCH)

    def batch_bucket(  # type: ignore
        elements, apart, key_size, value_size, stride, worker_stride, workers, lock_at, flags,
        bucket, room, keys, values
    ):
        """The entries of a bucket; how many, or -1 if there are more than `room`."""
        padded = (value_size + 7) & ~7
        width = value_size
        if workers != 0:
            width = padded * workers
        word = m.acquire_u64(bucket, 0)
        link = word & _LOW
        count = 0
        steps = 0
        while link != 0:
            if count >= room:
                return -1
            element = m.inside(elements, link << 3)
            # an update puts the new element in front before it takes the old one out
            old = 0
            for newer in range(count):
                if match(element, m.gep(keys, newer * key_size), key_size,
                         m.load_u32(element, HASHED)) != 0:
                    old = 1
            m.copy(m.gep(keys, count * key_size), m.inside(element, KEY), key_size)
            out = m.gep(values, count * width)
            value = m.inside(element, KEY + ((key_size + 7) & ~7))
            if workers != 0:
                index = m.udiv(link << 3, stride)
                for each in range(workers):
                    m.copy(m.gep(out, each * padded),
                           m.gep(apart, each * worker_stride + index * padded), padded)
            elif flags & BPF_F_LOCK != 0:
                under(out, value, m.gep(value, lock_at), lock_at << 32 | value_size)
            else:
                m.copy(out, value, value_size)
            if lock_at >= 0:
                m.store_u32(out, lock_at, 0)
            if old == 0:
                count += 1
            link = m.acquire_u32(element, NEXT)
            steps += 1
            # a walk that went astray might go round for ever
            if steps & 63 == 0 and m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) != 0:
                link = 0
        return count

    return batch_bucket


BUCKET = Template("batch_bucket", _bucket_out,
                  "i64(ptr, ptr, i64, i64, i64, i64, i64, i64, i64, ptr, i64, ptr, ptr)",
                  (UNDER, MATCH), inline=False)


def _table(m: Any) -> Factory:
    bucket_out = m.extern(BUCKET)
    lock, unlock, give = m.extern(LOCK_TABLE), m.extern(UNLOCK), m.extern(GIVE_ONE)
    shard_of, less = m.extern(SHARD), m.extern(LESS)

    def batch_table(  # type: ignore
        head, buckets, elements, apart, key_size, value_size, stride, mask, places,
        worker_stride, workers, lock_at, control, keys, values
    ):
        room, index = m.load_u64(control, COUNT_AT), m.load_u64(control, BUCKET_AT)
        remove, flags = m.load_u64(control, REMOVE_AT), m.load_u64(control, FLAGS_AT)
        m.store_u64(control, COUNT_AT, 0)
        if index > mask:
            return -ENOENT
        width = value_size
        if workers != 0:
            width = ((value_size + 7) & ~7) * workers
        total = 0
        while index <= mask:
            bucket = m.inside(buckets, index << 3)
            count = 0
            if m.acquire_u64(bucket, 0) & _LOW != 0:
                shard = shard_of(head, places, index)
                if remove != 0 or flags != 0:
                    lock(head, shard, buckets, elements, stride, mask, key_size, places, index)
                again = 1
                while again != 0:
                    before = m.acquire_u64(bucket, 0)
                    count = bucket_out(
                        elements, apart, key_size, value_size, stride, worker_stride, workers,
                        lock_at, flags, bucket, room - total, m.gep(keys, total * key_size),
                        m.gep(values, total * width))
                    m.fence()
                    again = m.lshr(m.acquire_u64(bucket, 0) ^ before, 32)
                if remove != 0 and count > 0:
                    link = m.relaxed_u64(bucket, 0) & _LOW
                    m.release_u64(bucket, 0, m.add(
                        m.relaxed_u64(bucket, 0) & ~_LOW, m.mul(count, _ONE)))
                    while link != 0:
                        after = m.load_u32(m.inside(elements, link << 3), NEXT)
                        give(head, shard, elements, link)
                        link = after
                    less(head, shard, count)
                if remove != 0 or flags != 0:
                    unlock(shard)
            if count < 0:
                m.store_u64(control, COUNT_AT, total)
                m.store_u64(control, BUCKET_AT, index)
                if total == 0:
                    return -ENOSPC
                return 0
            total += count
            index += 1
        m.store_u64(control, COUNT_AT, total)
        m.store_u64(control, BUCKET_AT, index)
        return -ENOENT

    return batch_table


TABLE = Template("batch_table", _table,
                 "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, i64, ptr, ptr, ptr)",
                 (BUCKET, LOCK_TABLE, UNLOCK, GIVE_ONE, SHARD, LESS), inline=False)


def _hash(locked: bool) -> Template:
    def factory(m: Any) -> Factory:
        table = m.extern(TABLE)

        def batch_hash(  # type: ignore
            head, buckets, elements, key_size, value_size, stride, mask, max_entries, places,
            worker, control, keys, values
        ):
            lock_at = -1
            if locked:
                lock_at = m.lshr(value_size, 32)
            return table(head, buckets, elements, elements, key_size, value_size & _LOW, stride,
                         mask, places, 0, 0, lock_at, control, keys, values)

        return batch_hash

    return Template("batch_locked_hash" if locked else "batch_hash", factory,
                    "i64(ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, ptr, ptr, ptr)",
                    (TABLE,), inline=False)


def _percpu(m: Any) -> Factory:
    table = m.extern(TABLE)

    def batch_percpu_hash(  # type: ignore
        head, buckets, elements, apart, key_size, value_size, stride, mask, max_entries, places,
        worker_stride, workers, worker, control, keys, values
    ):
        return table(head, buckets, elements, apart, key_size, value_size, stride, mask,
                     places, worker_stride, workers, -1, control, keys, values)

    return batch_percpu_hash


HASH, LOCKED_HASH = _hash(False), _hash(True)
PERCPU_HASH = Template(
    "batch_percpu_hash", _percpu,
    "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, i64, i64, ptr, ptr, ptr)",
    (TABLE,), inline=False)


_TABLES = (MapType.HASH, MapType.LRU_HASH, MapType.HASH_OF_MAPS, MapType.DEVMAP_HASH)


def table_of(spec: MapSpec) -> Template | None:
    """The loop over a hash's buckets, after the family's parameters; None for other types."""
    if spec.type in (MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH):
        return PERCPU_HASH
    if spec.type in _TABLES:
        return HASH if spec.lock_at < 0 else LOCKED_HASH
    return None


def by_key(has_read: bool, has_locked: bool, step: str = "next_key") -> Template:
    """The entries behind a key, in next_key's order; `has_read`: the family copies values out
    whole, those of all workers at once.  `step` is the operation that goes on."""

    def factory(m: Any) -> Factory:
        next_key = m.symbol(f"map.0.{step}", "i64(i64, ptr, ptr)")
        read = m.symbol("map.0.read", "i64(i64, ptr, ptr)")
        read_locked = m.symbol("map.0.read_locked", "i64(i64, ptr, ptr)")
        peek = m.symbol("map.0.peek", "ptr(i64, ptr)")

        def batch_by_key(  # type: ignore
            control, last, keys, values, key_size, value_size, workers
        ):
            room = m.load_u64(control, COUNT_AT)
            known, flags = m.load_u64(control, AFTER_AT), m.load_u64(control, FLAGS_AT)
            width = value_size
            if workers != 0:
                width = ((value_size + 7) & ~7) * workers
            key = m.gep(m.alloca(520), 0)
            done = 0
            status = 0
            while done < room and status == 0:
                status = next_key(0, m.null(), key) if known == 0 else next_key(0, last, key)
                if status == 0:
                    known = 1
                    m.copy(last, key, key_size)
                    out = m.gep(values, done * width)
                    missed = 0
                    if has_locked and flags & BPF_F_LOCK != 0:
                        missed = read_locked(0, key, out)
                    elif has_read:
                        missed = read(0, key, out)
                    elif workers == 0:
                        only = peek(0, key)
                        if m.is_null(only):
                            missed = 1
                        else:
                            m.copy(out, only, value_size)
                    else:
                        for worker in range(workers):
                            mine = peek(worker, key)
                            if m.is_null(mine):
                                missed = 1
                            else:
                                m.copy(m.gep(out, worker * ((value_size + 7) & ~7)), mine,
                                       value_size)
                    if missed == 0:
                        m.copy(m.gep(keys, done * key_size), key, key_size)
                        done += 1
            m.store_u64(control, COUNT_AT, done)
            m.store_u64(control, AFTER_AT, known)
            return status

        return batch_by_key

    name = f"batch_by_{step}" + "_read" * has_read + "_locked" * has_locked
    return Template(name, factory, "i64(ptr, ptr, ptr, ptr, i64, i64, i64)", inline=False)


def write(has_all: bool) -> Template:
    """Update entry by entry, until one is refused; the status of the last."""

    def factory(m: Any) -> Factory:
        update = m.symbol("map.0.update", "i64(i64, ptr, ptr, i64)")
        update_all = m.symbol("map.0.update_all", "i64(i64, ptr, ptr, i64)")

        def batch_write(control, keys, values, key_size, value_size, workers):  # type: ignore
            count, flags = m.load_u64(control, COUNT_AT), m.load_u64(control, FLAGS_AT)
            writer = m.load_u64(control, WORKER_AT)
            padded = (value_size + 7) & ~7
            width = value_size
            if workers != 0:
                width = padded * workers
            done = 0
            status = 0
            while done < count and status == 0:
                key, value = m.gep(keys, done * key_size), m.gep(values, done * width)
                if has_all:
                    status = update_all(writer, key, value, flags)
                elif workers == 0:
                    status = update(writer, key, value, flags)
                else:  # an array's: each worker's copy is its own
                    for worker in range(workers):
                        if status == 0:
                            status = update(worker, key, m.gep(value, worker * padded), flags)
                if status == 0:
                    done += 1
            m.store_u64(control, COUNT_AT, done)
            return status

        return batch_write

    return Template("batch_write_all" if has_all else "batch_write", factory,
                    "i64(ptr, ptr, ptr, i64, i64, i64)", inline=False)


def _remove(m: Any) -> Factory:
    delete = m.symbol("map.0.delete", "i64(i64, ptr)")

    def batch_remove(control, keys, key_size):  # type: ignore
        count, writer = m.load_u64(control, COUNT_AT), m.load_u64(control, WORKER_AT)
        done = 0
        status = 0
        while done < count and status == 0:
            status = delete(writer, m.gep(keys, done * key_size))
            if status == 0:
                done += 1
        m.store_u64(control, COUNT_AT, done)
        return status

    return batch_remove


# delete key by key, until one is not there; the status of the last
REMOVE = Template("batch_remove", _remove, "i64(ptr, ptr, i64)", inline=False)
