"""Shares: an LRU map of BPF_F_NO_COMMON_LRU, in which no worker drops what others put there.

As in the kernel (bpf_percpu_lru_pop_free()) max_entries is rounded up to a multiple of the CPUs,
here of the workers, and each may have as many entries as the others.  An entry is in the share of
the worker that wrote it last, of a per-CPU map of the one that made it.  Who has used up its own
drops one of its own, even if others' are empty.

An element names its owner (`OWNER`), and behind the shards each worker has in the head, 384 bytes
apart from the next one's:

    u32 how many entries it has   u32 how many it may have
    from 128 on for each shard u32 hand: the element looked at last

What is dropped is of the shard into which the new key goes, where the lock is held: the hand goes
over its elements, and heeds the worker's own.  Only if there is none another shard is looked at.

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
from xdp_runtime.maps.shard import START
from xdp_runtime.template import Template

Factory = Callable[..., Any]
SHARE_MAX, SHARE_HANDS = 4, 128
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


def _evict(m: Any) -> Factory:
    unlink, give, start_of = m.extern(UNLINK), m.extern(GIVE_ONE), m.extern(START)

    def share_evict(  # type: ignore
        head, shard, buckets, elements, stride, mask, places, index, owner
    ):
        """Drop an entry of this worker's in this shard, under its lock: the mark of the new one;
        -1 if there is none."""
        step, start = stride >> 3, start_of(places, stride, index)
        fresh = m.load_u32(shard, FRESH)
        hands = m.inside(head, m.load_u32(head, SHARES_AT) + owner * SHARE_BYTES + SHARE_HANDS)
        at = m.lshr(index, m.lshr(places, 32) & 31) << 2
        hand = m.load_u32(hands, at)
        marked = 0
        for _ in range(2 * m.udiv(fresh - start, step)):
            hand += step
            if hand >= fresh or hand < start:
                hand = start
            element = m.inside(elements, hand << 3)
            if m.load_u8(element, LIVE) != 0 and m.load_u16(element, OWNER) == owner:
                if m.load_u8(element, REFERENCED) == 0 or marked >= SCANS:
                    unlink(m.inside(buckets, (m.load_u32(element, HASH) & mask) << 3), elements,
                           hand)
                    give(head, shard, elements, hand)
                    m.store_u32(shard, COUNT, m.load_u32(shard, COUNT) - 1)
                    m.store_u32(hands, at, hand)
                    if marked >= SCANS:
                        return 1
                    return 0
                m.store_u8(element, REFERENCED, 0)
                marked += 1
        return -1

    return share_evict


SHARE_EVICT = Template("share_evict", _evict, "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64)",
                       (UNLINK, GIVE_ONE, START), inline=False)


def _elsewhere(m: Any) -> Factory:
    lock, unlock = m.extern(LOCK_TABLE), m.extern(UNLOCK)
    evict, recount = m.extern(SHARE_EVICT), m.extern(SHARE_RECOUNT)

    def share_elsewhere(  # type: ignore
        head, buckets, elements, stride, mask, key_size, places, index, owner
    ):
        """Drop an entry of this worker's in another shard; no lock is held."""
        shift = m.lshr(places, 32) & 31
        if m.relaxed_u32(head, RECOUNT) == 0:
            for _ in range(1, m.load_u32(head, SHARDS)):
                index = ((m.lshr(index, shift) + 1) << shift) & mask
                shard = m.inside(head, (m.lshr(places, 40) << 6)
                                 + m.lshr(index, shift) * SHARD_BYTES)
                lock(head, shard, buckets, elements, stride, mask, key_size, places, index)
                mark = evict(head, shard, buckets, elements, stride, mask, places, index, owner)
                unlock(shard)
                if mark >= 0:
                    return 0
        return recount(head, buckets, elements, stride, mask, key_size, places)

    return share_elsewhere


SHARE_ELSEWHERE = Template(
    "share_elsewhere", _elsewhere, "i64(ptr, ptr, ptr, i64, i64, i64, i64, i64, i64)",
    (LOCK_TABLE, UNLOCK, SHARE_EVICT, SHARE_RECOUNT), inline=False, rare=True)


def _room(m: Any) -> Factory:
    unlock, evict, elsewhere = m.extern(UNLOCK), m.extern(SHARE_EVICT), m.extern(SHARE_ELSEWHERE)

    def share_room(  # type: ignore
        head, shard, buckets, elements, stride, mask, key_size, places, index, worker, old
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
        mark = 0
        while True:
            count = m.relaxed_u32(mine, SHARE_COUNT)
            if owner == was or count < m.load_u32(mine, SHARE_MAX):
                if m.cas_u32(mine, SHARE_COUNT, count, count + 1):
                    return owner << 1 | mark
                continue
            mark = -1
            if m.relaxed_u32(head, RECOUNT) == 0:
                mark = evict(head, shard, buckets, elements, stride, mask, places, index, owner)
            if mark < 0:
                unlock(shard)
                elsewhere(head, buckets, elements, stride, mask, key_size, places, index, owner)
                return AGAIN

    return share_room


# room for one more of this worker's, with the lock of the key's shard: the new element's mark and,
# from bit 1 on, its share; or AGAIN without the lock.  `old` is what the new one replaces, or 0
SHARE_ROOM = Template("share_room", _room,
                      "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64)",
                      (UNLOCK, SHARE_EVICT, SHARE_ELSEWHERE), inline=False)
