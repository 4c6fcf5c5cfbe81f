"""How an update of a hash begins: the lock, the search of the chain, the flags, room if it must.

`hash_admit` returns with the lock of the key's shard held

    bits 0-31   link of the element that has the key, 0 if none has
    bit 32      the mark with which an LRU map's new element begins
    from 33     whose share it is in, of an LRU map whose workers have shares (share.py)

and READY (pool.py) has said that an element may be taken; or -errno, and the lock is free.

Where a shard holds what it may, the `room` template makes room: the bits from 32 on, or -errno, or
AGAIN where it let the lock go and the chain must be searched again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.maps.family import EEXIST, ENOENT, ENOMEM
from xdp_runtime.maps.hash_table import LOCK_TABLE, MATCH, NEXT
from xdp_runtime.maps.lock import UNLOCK
from xdp_runtime.maps.pool import COUNT, PREPARE_ONE, READY
from xdp_runtime.maps.shard import ALLOWED, CAPACITY, START
from xdp_runtime.template import Template

Factory = Callable[..., Any]
AGAIN = -1000
# head, shard, buckets, elements, stride, mask, key_size, max_entries, places, index, worker, old
ROOM_SIGNATURE = "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, i64)"
_LOW = 0xFFFFFFFF


def _search(m: Any) -> Factory:
    match = m.extern(MATCH)

    def hash_search(bucket, elements, key, key_size, hashed):  # type: ignore
        link = m.relaxed_u64(bucket, 0) & _LOW
        while link != 0 and match(m.inside(elements, link << 3), key, key_size, hashed) == 0:
            link = m.load_u32(m.inside(elements, link << 3), NEXT)
        return link

    return hash_search


# link of the element that has this key, or 0, under the lock
SEARCH = Template("hash_search", _search, "i64(ptr, ptr, ptr, i64, i64)", (MATCH,))


def make_admit(name: str, room: Template, in_place: bool, shared: bool) -> Template:
    """`in_place`: an update of what exists takes no element; `shared`: workers have shares."""

    def factory(m: Any) -> Factory:
        lock, unlock, search = m.extern(LOCK_TABLE), m.extern(UNLOCK), m.extern(SEARCH)
        make_room, prepare, ready = m.extern(room), m.extern(PREPARE_ONE), m.extern(READY)
        start_of = m.extern(START)

        def hash_admit(  # type: ignore
            head, shard, buckets, elements, stride, mask, key_size, max_entries, places, index,
            hashed, worker, key, flags
        ):
            end = start_of(places, stride, index) + (places & _LOW)
            step = stride >> 3
            spare_end = (places & _LOW) - m.load_u32(shard, CAPACITY) * step
            prepare(head, shard, step, m.lshr(spare_end, 2), end, worker)
            while True:
                lock(head, shard, buckets, elements, stride, mask, key_size, places, index)
                old = search(m.inside(buckets, index << 3), elements, key, key_size, hashed)
                result = 0
                if old != 0 and flags == 1:
                    result = -EEXIST
                elif old == 0 and flags == 2:
                    result = -ENOENT
                elif in_place and old != 0:
                    return old
                elif ready(head, shard, stride, end, 1, worker) == 0:
                    result = -ENOMEM
                elif old == 0:
                    if m.load_u32(shard, COUNT) >= m.load_u32(shard, ALLOWED):
                        result = make_room(head, shard, buckets, elements, stride, mask, key_size,
                                           max_entries, places, index, worker, 0)
                elif shared:
                    result = make_room(head, shard, buckets, elements, stride, mask, key_size,
                                       max_entries, places, index, worker, old)
                if result == AGAIN:
                    continue
                if result < 0:
                    unlock(shard)
                    return result
                return result << 32 | old

        return hash_admit

    return Template(name, factory,
                    "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, i64, ptr, i64)",
                    (LOCK_TABLE, UNLOCK, SEARCH, room, PREPARE_ONE, READY, START))
