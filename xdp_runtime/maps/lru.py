"""LRU_HASH: a hash map that makes room for a new key by dropping one not used lately.

CLOCK: a lookup marks its element as referenced (it writes only if the mark is not there yet, so a
busy entry's cache line stays shared).  In a full table a hand goes over the elements of the key's
shard in order of address, takes marks away, and drops the first that has none; after `SCANS`
marked ones it drops the next regardless, so that an insert has a bound.  The hand then moves fast,
and the new key gets a mark so as not to be met and dropped first.  Else, as in the kernel, a new
key starts without a mark, an updated one with it, and user space (`peek`, `read`) leaves none.
Unlike in the kernel, nothing is dropped before max_entries keys are there, or, where workers have
shares, before one has used up its own (share.py).
"""

from __future__ import annotations

from typing import Any

from xdp_runtime.maps.admit import AGAIN, ROOM_SIGNATURE
from xdp_runtime.maps.hash import (
    DELETE,
    LEADING,
    LOOKUP,
    NEXT_KEY,
    READ,
    TAKE_OUT,
    HashFamily,
    make_update,
)
from xdp_runtime.maps.hash_table import (
    FIND,
    HAND,
    HASH,
    LOCK_TABLE,
    REFERENCED,
    SWEEP,
    UNLINK,
    Factory,
)
from xdp_runtime.maps.lock import UNLOCK
from xdp_runtime.maps.pool import COUNT, FRESH, GIVE_ONE, LIVE
from xdp_runtime.maps.scan import HASH_SCAN
from xdp_runtime.maps.shard import CAPACITY, GIVE_BACK, GROW, LEFT, SCARCE, START
from xdp_runtime.maps.share import SCANS, SHARE_ROOM
from xdp_runtime.maps.walk import HASH_WALK
from xdp_runtime.object import MapFlag, MapSpec
from xdp_runtime.template import Template


def _lookup(m: Any) -> Factory:
    find = m.extern(FIND)

    def lru_lookup(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, key
    ):
        return find(head, buckets, elements, key_size, mask, 1, key)

    return lru_lookup


def _evict(m: Any) -> Factory:
    unlink, give, start_of = m.extern(UNLINK), m.extern(GIVE_ONE), m.extern(START)

    def lru_evict(head, shard, buckets, elements, stride, mask, places, index):  # type: ignore
        """Drop an entry of this shard, which has one."""
        step, start = stride >> 3, start_of(places, stride, index)
        hand = m.load_u32(shard, HAND)
        fresh = m.load_u32(shard, FRESH)
        marked = 0
        while True:
            hand += step
            if hand >= fresh or hand < start:
                hand = start
            element = m.inside(elements, hand << 3)
            if m.load_u8(element, LIVE) != 0:
                if m.load_u8(element, REFERENCED) == 0 or marked >= SCANS:
                    bucket = m.inside(buckets, (m.load_u32(element, HASH) & mask) << 3)
                    unlink(bucket, elements, hand)
                    give(head, shard, elements, hand)
                    m.store_u32(shard, COUNT, m.load_u32(shard, COUNT) - 1)
                    m.store_u32(shard, HAND, hand)
                    if marked >= SCANS:
                        return 1
                    return 0
                m.store_u8(element, REFERENCED, 0)
                marked += 1

    return lru_evict


def _room(m: Any) -> Factory:
    grow, sweep, unlock = m.extern(GROW), m.extern(SWEEP), m.extern(UNLOCK)
    evict, lock, give_back = m.extern(EVICT), m.extern(LOCK_TABLE), m.extern(GIVE_BACK)

    def lru_room(  # type: ignore
        head, shard, buckets, elements, stride, mask, key_size, max_entries, places, index, worker,
        old
    ):
        if grow(head, shard) != 0:
            return 0
        if m.load_u32(shard, COUNT) == m.load_u32(shard, CAPACITY):
            return evict(head, shard, buckets, elements, stride, mask, places, index)
        if m.acquire_u32(head, SCARCE) == 0:
            unlock(shard)
            sweep(head, buckets, elements, stride, mask, key_size, max_entries, places)
            return AGAIN
        if m.load_u32(shard, COUNT) != 0:
            return evict(head, shard, buckets, elements, stride, mask, places, index)
        # this shard has nothing to drop: another one must
        unlock(shard)
        shift = m.lshr(places, 32) & 31
        other = ((m.lshr(index, shift) + 1) << shift) & mask
        one = m.inside(head, (m.lshr(places, 40) << 6) + (m.lshr(other, shift) << 7))
        while True:
            lock(head, one, buckets, elements, stride, mask, key_size, places, other)
            if m.load_u32(one, COUNT) != 0:
                evict(head, one, buckets, elements, stride, mask, places, other)
                give_back(head, one, 1)
                unlock(one)
                return AGAIN
            unlock(one)
            if m.relaxed_u32(head, LEFT) != 0:
                return AGAIN
            other = ((m.lshr(other, shift) + 1) << shift) & mask
            one = m.inside(head, (m.lshr(places, 40) << 6) + (m.lshr(other, shift) << 7))

    return lru_room


def _shared_room(m: Any) -> Factory:
    share_room, evict = m.extern(SHARE_ROOM), m.extern(EVICT)

    def lru_shared_room(  # type: ignore
        head, shard, buckets, elements, stride, mask, key_size, max_entries, places, index, worker,
        old
    ):
        share = share_room(head, shard, buckets, elements, stride, mask, key_size, places,
                           index, worker, old)
        if share >= 0 and old == 0 and m.load_u32(shard, COUNT) == m.load_u32(shard, CAPACITY):
            share |= evict(head, shard, buckets, elements, stride, mask, places, index)
        return share

    return lru_shared_room


LRU_LOOKUP = Template("lru_lookup", _lookup, f"ptr({LEADING}, ptr)", uses=(FIND,))
EVICT = Template("lru_evict", _evict, "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64)",
                 uses=(UNLINK, GIVE_ONE, START), inline=False)
ROOM = Template("lru_room", _room, ROOM_SIGNATURE,
                uses=(GROW, SWEEP, UNLOCK, EVICT, LOCK_TABLE, GIVE_BACK), inline=False)
SHARED_ROOM = Template("lru_shared_room", _shared_room, ROOM_SIGNATURE, uses=(SHARE_ROOM, EVICT),
                       inline=False)
LRU_UPDATE = make_update("lru_update", ROOM)
LRU_SHARED_UPDATE = make_update("lru_shared_update", SHARED_ROOM, shared=True)


class LruHashFamily(HashFamily):
    """LRU_HASH; `shared`: with BPF_F_NO_COMMON_LRU, each worker has its share of it (share.py)."""

    def __init__(self, shared: bool = False) -> None:
        self.operations = {
            "lookup": LRU_LOOKUP, "peek": LOOKUP, "read": READ,
            "update": LRU_SHARED_UPDATE if shared else LRU_UPDATE,
            "delete": DELETE, "next_key": NEXT_KEY, "take": TAKE_OUT,
            "walk": HASH_WALK, "scan": HASH_SCAN,
        }

    def _takes_no_common_lru(self) -> bool:
        return True

    def check(self, spec: MapSpec) -> str | None:
        if spec.flags & MapFlag.NO_PREALLOC:
            return "BPF_F_NO_PREALLOC is not for LRU maps"
        return super().check(spec)
