"""LRU_HASH: a hash map that makes room for a new key by dropping one not used lately.

CLOCK: a lookup marks its element as referenced (it writes only if the mark is not there yet, so a
busy entry's cache line stays shared).  In a full table a hand goes over the elements in order of
address, takes marks away, and drops the first element that has none; after `_SCANS` marked ones it
drops the next regardless, so that an insert has a bound.  The hand then moves fast, and the new
key gets a mark so as not to be met and dropped first.  Else, as in the kernel, a new key starts
without a mark, an updated one with it, and user space (`peek`, `read`) leaves none.  Unlike in the
kernel, nothing is dropped before max_entries keys are there.
"""

from __future__ import annotations

from typing import Any

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
from xdp_runtime.maps.hash_table import FIND, HAND, HASH, REFERENCED, UNLINK, Factory
from xdp_runtime.maps.pool import COUNT, FRESH, GIVE, LIVE
from xdp_runtime.maps.walk import HASH_WALK
from xdp_runtime.object import MapFlag, MapSpec
from xdp_runtime.template import Template

_SCANS = 64


def _lookup(m: Any) -> Factory:
    find = m.extern(FIND)

    def lru_lookup(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, key
    ):
        return find(head, buckets, elements, key_size, mask, 1, key)

    return lru_lookup


def _evict(m: Any) -> Factory:
    unlink, give = m.extern(UNLINK), m.extern(GIVE)

    def lru_evict(head, buckets, elements, stride, mask):  # type: ignore
        step = stride >> 3
        hand = m.load_u32(head, HAND)
        fresh = m.load_u32(head, FRESH)
        marked = 0
        while True:
            hand += step
            if hand >= fresh:
                hand = step
            element = m.inside(elements, hand << 3)
            if m.load_u8(element, LIVE) != 0:
                if m.load_u8(element, REFERENCED) == 0 or marked >= _SCANS:
                    bucket = m.inside(buckets, (m.load_u32(element, HASH) & mask) << 3)
                    unlink(bucket, elements, hand)
                    give(head, elements, hand)
                    m.store_u32(head, COUNT, m.load_u32(head, COUNT) - 1)
                    m.store_u32(head, HAND, hand)
                    if marked >= _SCANS:
                        return 1
                    return 0
                m.store_u8(element, REFERENCED, 0)
                marked += 1

    return lru_evict


LRU_LOOKUP = Template("lru_lookup", _lookup, f"ptr({LEADING}, ptr)", uses=(FIND,))
EVICT = Template("lru_evict", _evict, "i64(ptr, ptr, ptr, i64, i64)", uses=(UNLINK, GIVE),
                 inline=False)
LRU_UPDATE = make_update("lru_update", EVICT)


class LruHashFamily(HashFamily):
    """LRU_HASH.  BPF_F_NO_COMMON_LRU is accepted; there is one table for all workers all the same.
    """

    def __init__(self) -> None:
        self.operations = {
            "lookup": LRU_LOOKUP, "peek": LOOKUP, "read": READ, "update": LRU_UPDATE,
            "delete": DELETE, "next_key": NEXT_KEY, "take": TAKE_OUT,
            "walk": HASH_WALK,
        }

    def _takes_no_common_lru(self) -> bool:
        return True

    def check(self, spec: MapSpec) -> str | None:
        if spec.flags & MapFlag.NO_PREALLOC:
            return "BPF_F_NO_PREALLOC is not for LRU maps"
        return super().check(spec)
