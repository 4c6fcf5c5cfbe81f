"""Maps whose values have a struct bpf_spin_lock: HASH, LRU_HASH and ARRAY.

The lock is a word of the value in shared memory and works as the writers' lock of a map (lock.py):
it names the process that has it, and is taken over if that process died.  What is copied into or
out of a value leaves the word alone; user space sees it as zero.  BPF_F_LOCK copies under the lock:
an update of what exists then changes the value where it is (kernel/bpf/hashtab.c, arraymap.c).

A copy under the lock of a hash map's value holds the lock of the key's shard as well, so that the
element is not freed meanwhile.  Who has a value's lock never waits for a shard's: a program calls
nothing.

The families' parameters are those of the plain ones; the place of the lock is in the upper half of
the value's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdp_runtime.maps.array import _LEADING as ARRAY_LEADING
from xdp_runtime.maps.array import LOOKUP as ARRAY_LOOKUP
from xdp_runtime.maps.array import ArrayFamily
from xdp_runtime.maps.family import (
    BPF_EXIST,
    BPF_F_LOCK,
    BPF_NOEXIST,
    E2BIG,
    EEXIST,
    EINVAL,
    ENOENT,
)
from xdp_runtime.maps.hash import LEADING, LOOKUP, READ, UPDATE, HashFamily, make_take
from xdp_runtime.maps.hash_table import HASH_OF, LOCK_TABLE
from xdp_runtime.maps.lock import LOCK, LOCKED, UNLOCK, Factory
from xdp_runtime.maps.lru import LRU_SHARED_UPDATE, LRU_UPDATE, LruHashFamily
from xdp_runtime.maps.shard import SHARD
from xdp_runtime.object import MapSpec
from xdp_runtime.template import Template

_LOW = 0xFFFFFFFF
_LOCK_BYTES = 4


def _take(m: Any) -> Factory:
    lock = m.extern(LOCKED)

    def spin_lock(where):  # type: ignore
        lock(m.gep(where, -LOCK))
        return 0

    return spin_lock


def _give(m: Any) -> Factory:
    unlock = m.extern(UNLOCK)

    def spin_unlock(where):  # type: ignore
        unlock(m.gep(where, -LOCK))
        return 0

    return spin_unlock


SPIN_LOCK = Template("spin_lock", _take, "i64(ptr)", (LOCKED,))
SPIN_UNLOCK = Template("spin_unlock", _give, "i64(ptr)", (UNLOCK,))


def _around(m: Any) -> Factory:
    def copy_around(to, source, packed):  # type: ignore
        """All of a value but its lock."""
        at = m.lshr(packed, 32)
        m.copy(to, source, at)
        behind = at + _LOCK_BYTES
        m.copy(m.gep(to, behind), m.gep(source, behind), (packed & _LOW) - behind)
        return 0

    return copy_around


AROUND = Template("copy_around_lock", _around, "i64(ptr, ptr, i64)")


def _under(m: Any) -> Factory:
    take, give, around = m.extern(SPIN_LOCK), m.extern(SPIN_UNLOCK), m.extern(AROUND)

    def copy_under_lock(to, source, lock, packed):  # type: ignore
        take(lock)
        around(to, source, packed)
        give(lock)
        return 0

    return copy_under_lock


UNDER = Template("copy_under_lock", _under, "i64(ptr, ptr, ptr, i64)",
                 (SPIN_LOCK, SPIN_UNLOCK, AROUND), inline=False)


# --- ARRAY ----------------------------------------------------------------------------------------
def _array_update(m: Any) -> Factory:
    around, under = m.extern(AROUND), m.extern(UNDER)

    def locked_array_update(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key, value, flags
    ):
        if not m.ule(flags & ~BPF_F_LOCK, BPF_EXIST):
            return -EINVAL
        index = m.load_u32(key, 0)
        if index >= max_entries:
            return -E2BIG
        if flags & BPF_NOEXIST:
            return -EEXIST
        where = m.inside(values, index * stride)
        if flags & BPF_F_LOCK:
            under(where, value, m.gep(where, m.lshr(size, 32)), size)
        else:
            around(where, value, size)
        return 0

    return locked_array_update


def _array_read(locked: bool) -> Template:
    def factory(m: Any) -> Factory:
        around, under = m.extern(AROUND), m.extern(UNDER)

        def locked_array_read(  # type: ignore
            values, worker_stride, stride, size, max_entries, workers, worker, key, out
        ):
            index = m.load_u32(key, 0)
            if index >= max_entries:
                return -ENOENT
            where, lock_at = m.inside(values, index * stride), m.lshr(size, 32)
            if locked:
                under(out, where, m.gep(where, lock_at), size)
            else:
                around(out, where, size)
            m.store_u32(out, lock_at, 0)
            return 0

        return locked_array_read

    return Template("locked_array_read_locked" if locked else "locked_array_read", factory,
                    f"i64({ARRAY_LEADING}, ptr, ptr)", (AROUND, UNDER), inline=False)


ARRAY_UPDATE = Template("locked_array_update", _array_update,
                        f"i64({ARRAY_LEADING}, ptr, ptr, i64)", (AROUND, UNDER))


def _packed(parameters: tuple[str | int, ...], at: int, spec: MapSpec) -> tuple[str | int, ...]:
    """With the place of the lock in the value's size, which is parameter `at`."""
    return (*parameters[:at], spec.value_size | spec.lock_at << 32, *parameters[at + 1:])


class LockedArrayFamily(ArrayFamily):
    """ARRAY with a lock in its values."""

    def __init__(self) -> None:
        super().__init__(per_cpu=False)
        self.operations: Mapping[str, Template] = {
            **self.operations, "lookup": ARRAY_LOOKUP, "update": ARRAY_UPDATE,
            "read": _array_read(False), "read_locked": _array_read(True)}

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return _packed(super().parameters(spec, workers), 3, spec)


# --- HASH and LRU_HASH ----------------------------------------------------------------------------
def _hash_update(name: str, plain: Template) -> Template:
    def factory(m: Any) -> Factory:
        update, lookup, under = m.extern(plain), m.extern(LOOKUP), m.extern(UNDER)
        hold, let_go = m.extern(LOCK_TABLE), m.extern(UNLOCK)
        hash_of, shard_of = m.extern(HASH_OF), m.extern(SHARD)

        def locked_hash_update(  # type: ignore
            head, buckets, elements, key_size, value_size, stride, mask, max_entries, places,
            worker, key, value, flags
        ):
            if not m.ule(flags & ~BPF_F_LOCK, BPF_EXIST):
                return -EINVAL
            lock_at, size = m.lshr(value_size, 32), value_size & _LOW
            wanted = flags & ~BPF_F_LOCK
            given = m.load_u32(value, lock_at)
            while True:
                how = wanted
                if flags & BPF_F_LOCK and wanted != BPF_NOEXIST:
                    index = hash_of(head, key, key_size) & mask
                    shard = shard_of(head, places, index)
                    hold(head, shard, buckets, elements, stride, mask, key_size, places, index)
                    here = lookup(head, buckets, elements, key_size, size, stride, mask,
                                  max_entries, places, worker, key)
                    if not m.is_null(here):
                        under(here, value, m.gep(here, lock_at), value_size)
                        let_go(shard)
                        return 0
                    let_go(shard)
                    if wanted == BPF_EXIST:
                        return -ENOENT
                    how = BPF_NOEXIST  # whoever was first here has the element: it is changed
                # a new element's lock is free, whatever is in the value
                if given != 0:
                    m.store_u32(value, lock_at, 0)
                result = update(head, buckets, elements, key_size, size, stride, mask, max_entries,
                                places, worker, key, value, how)
                if given != 0:
                    m.store_u32(value, lock_at, given)
                if result != -EEXIST or how == wanted:
                    return result

        return locked_hash_update

    return Template(name, factory, f"i64({LEADING}, ptr, ptr, i64)",
                    (plain, LOOKUP, UNDER, LOCK_TABLE, UNLOCK, HASH_OF, SHARD), inline=False)


def _hash_read(m: Any) -> Factory:
    read = m.extern(READ)

    def locked_hash_read(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, places,
        worker, key, out
    ):
        result = read(head, buckets, elements, key_size, value_size & _LOW, stride, mask,
                      max_entries, places, worker, key, out)
        if result == 0:
            m.store_u32(out, m.lshr(value_size, 32), 0)
        return result

    return locked_hash_read


def _hash_read_locked(m: Any) -> Factory:
    lookup, under = m.extern(LOOKUP), m.extern(UNDER)
    hold, let_go = m.extern(LOCK_TABLE), m.extern(UNLOCK)
    hash_of, shard_of = m.extern(HASH_OF), m.extern(SHARD)

    def locked_hash_read_locked(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, places,
        worker, key, out
    ):
        index = hash_of(head, key, key_size) & mask
        shard = shard_of(head, places, index)
        hold(head, shard, buckets, elements, stride, mask, key_size, places, index)
        here = lookup(head, buckets, elements, key_size, value_size & _LOW, stride, mask,
                      max_entries, places, worker, key)
        if m.is_null(here):
            let_go(shard)
            return -ENOENT
        lock_at = m.lshr(value_size, 32)
        under(out, here, m.gep(here, lock_at), value_size)
        let_go(shard)
        m.store_u32(out, lock_at, 0)
        return 0

    return locked_hash_read_locked


HASH_READ = Template("locked_hash_read", _hash_read, f"i64({LEADING}, ptr, ptr)", (READ,),
                     inline=False)
HASH_READ_LOCKED = Template("locked_hash_read_locked", _hash_read_locked,
                            f"i64({LEADING}, ptr, ptr)",
                            (LOOKUP, UNDER, LOCK_TABLE, UNLOCK, HASH_OF, SHARD), inline=False)
HASH_TAKE = make_take("locked_hash_take", UNDER)


LOCKED_LRU_UPDATE = _hash_update("locked_lru_update", LRU_UPDATE)
LOCKED_SHARED_UPDATE = _hash_update("locked_lru_shared_update", LRU_SHARED_UPDATE)


class LockedHashFamily(HashFamily):
    """HASH with a lock in its values."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = {
            **self.operations, "update": _hash_update("locked_hash_update", UPDATE),
            "read": HASH_READ, "read_locked": HASH_READ_LOCKED, "take": HASH_TAKE}

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return _packed(super().parameters(spec, workers), 4, spec)


class LockedLruHashFamily(LruHashFamily):
    """LRU_HASH with a lock in its values."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__(shared)
        self.operations = {
            **self.operations, "update": LOCKED_SHARED_UPDATE if shared else LOCKED_LRU_UPDATE,
            "read": HASH_READ, "read_locked": HASH_READ_LOCKED, "take": HASH_TAKE}

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return _packed(super().parameters(spec, workers), 4, spec)
