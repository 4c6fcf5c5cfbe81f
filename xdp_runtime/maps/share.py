"""Shares: an LRU map of BPF_F_NO_COMMON_LRU, in which no worker drops what others put there.

As in the kernel (bpf_percpu_lru_pop_free()) max_entries is rounded up to a multiple of the CPUs,
here of the workers, and each may have as many entries as the others.  An entry is in the share of
the worker that wrote it last, of a per-CPU map of the one that made it.  Who has used up its own
drops one of its own, even if others' are empty.

An element names its owner (`OWNER`), and behind the shards each worker has 128 bytes in the head:

    u32 how many entries it has   u32 hand, the element looked at last   u32 how many it may have

The hand goes over all elements, of which it heeds the worker's own: at least one of as many as
there are workers is one, where it has used up its share.  No shard's lock is held meanwhile.

Who is no worker puts a new entry where there are fewest, and leaves an old one where it is.

A count is never too low: an entry is counted before it can be found, and not until it no longer
can.  If a process died between the two, `repair` asks for a recount, with all locks held; so does
a hand that found nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.maps.admit import AGAIN
from xdp_runtime.maps.hash_table import HASH, LOCK_TABLE, RECOUNT, REFERENCED, UNLINK
from xdp_runtime.maps.lock import LOCKED, UNLOCK
from xdp_runtime.maps.pool import (
    COUNT,
    FRESH,
    GIVE_ONE,
    LIVE,
    OWNER,
    SHARD_BYTES,
    SHARDS,
    SHARE_BYTES,
    SHARE_COUNT,
    SHARES_AT,
    WORKERS,
)
from xdp_runtime.template import Template

Factory = Callable[..., Any]
SHARE_HAND, SHARE_MAX = 4, 8
SCANS = 64  # marked elements at which a hand looks before it drops one
_LOW = 0xFFFFFFFF


def _recount(m: Any) -> Factory:
    lock_map, unlock, lock = m.extern(LOCKED), m.extern(UNLOCK), m.extern(LOCK_TABLE)

    def share_recount(  # type: ignore
        head, buckets, elements, stride, mask, key_size, places
    ):
        """Count anew what each worker has; no lock is held."""
        step, span = stride >> 3, places & _LOW
        first, shift = m.inside(head, m.lshr(places, 40) << 6), m.lshr(places, 32) & 31
        shares = m.load_u32(head, SHARES_AT)
        shards = m.load_u32(head, SHARDS)
        alone = shards == 0  # the map's lock is the shard's
        if alone:
            shards = 1
        else:
            lock_map(head)
        for number in range(shards):
            lock(head, m.inside(first, number * SHARD_BYTES), buckets, elements, stride, mask,
                 key_size, places, number << shift)
        for worker in range(m.load_u32(head, WORKERS)):
            m.store_u32(m.inside(head, shares + worker * SHARE_BYTES), SHARE_COUNT, 0)
        for number in range(shards):
            start = step + number * span
            fresh = m.load_u32(m.inside(first, number * SHARD_BYTES), FRESH)
            for link in range(start, fresh, step):
                element = m.inside(elements, link << 3)
                if m.load_u8(element, LIVE) != 0:
                    m.atomic_add_u32(m.inside(
                        head, shares + m.load_u16(element, OWNER) * SHARE_BYTES), SHARE_COUNT, 1)
        m.store_u32(head, RECOUNT, 0)
        for number in range(shards):
            unlock(m.inside(first, number * SHARD_BYTES))
        if not alone:
            unlock(head)
        return 0

    return share_recount


SHARE_RECOUNT = Template("share_recount", _recount, "i64(ptr, ptr, ptr, i64, i64, i64, i64)",
                         (LOCKED, UNLOCK, LOCK_TABLE), inline=False, rare=True)


def _drop(m: Any) -> Factory:
    lock, unlock, unlink = m.extern(LOCK_TABLE), m.extern(UNLOCK), m.extern(UNLINK)
    give, recount = m.extern(GIVE_ONE), m.extern(SHARE_RECOUNT)

    def share_drop(  # type: ignore
        head, buckets, elements, stride, mask, key_size, places, owner
    ):
        """Drop an entry of this worker's, if it still has as many as it may; no lock is held."""
        step, span = stride >> 3, places & _LOW
        first, shift = m.inside(head, m.lshr(places, 40) << 6), m.lshr(places, 32) & 31
        mine = m.inside(head, m.load_u32(head, SHARES_AT) + owner * SHARE_BYTES)
        shards = m.load_u32(head, SHARDS)
        if shards == 0:
            shards = 1
        hand = m.relaxed_u32(mine, SHARE_HAND)
        number = 0
        if hand != 0:
            number = m.udiv(hand - step, span)
        marked = 0
        rounds = 0
        shard = m.inside(first, number * SHARD_BYTES)
        while m.relaxed_u32(mine, SHARE_COUNT) >= m.load_u32(mine, SHARE_MAX):
            hand += step
            if hand >= m.relaxed_u32(shard, FRESH):
                number += 1
                if number == shards:
                    number = 0
                    rounds += 1
                    if rounds > 2:
                        recount(head, buckets, elements, stride, mask, key_size, places)
                        rounds = 0
                shard = m.inside(first, number * SHARD_BYTES)
                hand = number * span
                continue
            element = m.inside(elements, hand << 3)
            if m.load_u8(element, LIVE) != 0 and m.load_u16(element, OWNER) == owner:
                if m.load_u8(element, REFERENCED) != 0 and marked < SCANS:
                    m.store_u8(element, REFERENCED, 0)
                    marked += 1
                    continue
                lock(head, shard, buckets, elements, stride, mask, key_size, places,
                     number << shift)
                if m.load_u8(element, LIVE) != 0 and m.load_u16(element, OWNER) == owner:
                    unlink(m.inside(buckets, (m.load_u32(element, HASH) & mask) << 3), elements,
                           hand)
                    give(head, shard, elements, hand)
                    m.store_u32(shard, COUNT, m.load_u32(shard, COUNT) - 1)
                    unlock(shard)
                    m.relaxed_store_u32(mine, SHARE_HAND, hand)
                    return 0
                unlock(shard)
        return 0

    return share_drop


SHARE_DROP = Template("share_drop", _drop, "i64(ptr, ptr, ptr, i64, i64, i64, i64, i64)",
                      (LOCK_TABLE, UNLOCK, UNLINK, GIVE_ONE, SHARE_RECOUNT), inline=False)


def _room(m: Any) -> Factory:
    unlock, drop, recount = m.extern(UNLOCK), m.extern(SHARE_DROP), m.extern(SHARE_RECOUNT)

    def share_room(  # type: ignore
        head, shard, buckets, elements, stride, mask, key_size, places, worker, old
    ):
        shares, workers = m.load_u32(head, SHARES_AT), m.load_u32(head, WORKERS)
        owner = worker
        was = -1
        if old != 0:
            was = m.load_u16(m.inside(elements, old << 3), OWNER)
        if worker >= workers:
            owner = was
            if was < 0:
                owner = 0
                least = _LOW
                for each in range(workers):
                    count = m.relaxed_u32(m.inside(head, shares + each * SHARE_BYTES), SHARE_COUNT)
                    if count < least:
                        owner = each
                        least = count
        mine = m.inside(head, shares + owner * SHARE_BYTES)
        while True:
            count = m.relaxed_u32(mine, SHARE_COUNT)
            if owner != was and count >= m.load_u32(mine, SHARE_MAX):
                unlock(shard)
                if m.relaxed_u32(head, RECOUNT) != 0:
                    recount(head, buckets, elements, stride, mask, key_size, places)
                else:
                    drop(head, buckets, elements, stride, mask, key_size, places, owner)
                return AGAIN
            if m.cas_u32(mine, SHARE_COUNT, count, count + 1):
                return owner << 1

    return share_room


# room for one more of this worker's, with the lock of the key's shard: the share, from bit 1 on,
# or AGAIN without the lock; `old` is the element that the new one replaces, 0 for a new key
SHARE_ROOM = Template("share_room", _room,
                      "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64)",
                      (UNLOCK, SHARE_DROP, SHARE_RECOUNT), inline=False)
