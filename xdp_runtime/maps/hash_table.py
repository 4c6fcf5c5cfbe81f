"""The table under HASH and LRU_HASH: chains of elements in three regions, read without a lock.

    head      line 0: the two seeds (only read)          line 1: the lock (lock.py), the epoch
              line 2: a pool of elements (pool.py), hand (only under the lock)
              line 3: what is left of max_entries (shard.py)
              from line 4 on one line a worker: the epoch of its batch; then the shards, if any;
              then the workers' shares, if they have any (share.py)
    buckets   u64 each: link of the chain's first element | sequence << 32
    elements  u32 next, u32 hash, u8 referenced, u8 live, u16 owner, u32 queue link, key, value

A link is an element's offset in units of 8 bytes (an x86 addressing mode multiplies by 8 for
nothing); 0 ends a chain, and the first stride of `elements` is left unused for it.  Keys and values
are padded to 8 bytes, keys with zeros.  An element of up to 64 bytes lies in one cache line.

Writers hold the lock of the bucket's shard (shard.py).  Readers do not, and an element may be
reused while a reader stands on it.  What makes that safe is the bucket's sequence number, which
counts unlinked elements:

- A reader takes first link and sequence with one load, walks, and believes in a *hit* always: the
  element it compared was in the chain at some moment of the lookup.  It believes in a *miss* only
  if the sequence is still the same: then nothing was unlinked, so nothing it walked was reused.
  (The kernel's end-of-chain markers detect a walk that ended in another chain, but not one that
  passed a place before the key moved there by an update; hence not those.)
- Insert publishes a complete element as first of its chain; the sequence stays.
- Delete unlinks, then counts; only then may the element be reused.
- Update publishes the new element as first and counts, unlinks the old one, and counts again; if
  the old element was the first, one store does it all.  Readers see the old value or the new.
- Who copies a value out (`read`) checks the sequence after the copy: same rule, so never torn.

A freed element is reused only after every worker passed a batch boundary (pool.py), so a program
may hold a pointer into it.  Elements never used before are taken in order of address, so an empty
table occupies no memory.

At every moment the chains are whole, and say all there is: what else the head and the elements
have can be told from them.  So a process may die with a lock held; whoever takes the lock over
makes count and pool of that shard anew, drops what an update had not yet unlinked, and counts in
every bucket of it (`repair`).

All loads of what a writer may be writing are acquire loads: free on x86, ldar on Arm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.maps.family import round_up
from xdp_runtime.maps.lock import LOCKED
from xdp_runtime.maps.pool import AT, COUNT, EPOCH, FRESH, GIVE, LIMBO, LIVE, RIPE, YOUNG
from xdp_runtime.maps.shard import SCARCE, START, make_sweep
from xdp_runtime.template import Template

Factory = Callable[..., Any]

SEED_0, SEED_1 = 0, 8
HAND = 184  # u32 in a shard, where LRU looks next
RECOUNT = 84  # u32, 1: what share.py counts may be too much

NEXT, HASH, REFERENCED, KEY = 0, 4, 8, 16  # and LIVE, QUEUE of pool.py

_LOW = 0xFFFFFFFF
_ONE = 1 << 32  # one unlinked element in a bucket word
_LONG_KEY = 64  # from here on the stored hash is compared before the key
_K0 = 0x2D358DCCAA6C78A5  # odd constants with 32 bits set (wyhash)
_K1 = 0x4B33A62ED433D4A3


def value_offset(key_size: int) -> int:
    return KEY + round_up(key_size, 8)


def stride(key_size: int, value_size: int) -> int:
    """Bytes from one element to the next; small elements do not straddle cache lines."""
    size = value_offset(key_size) + round_up(value_size, 8)
    if size <= 64:
        return 32 if size <= 32 else 64
    return round_up(size, 16)


def _tail(m: Any) -> Factory:
    def table_tail(key, at, rest):  # type: ignore
        word = 0
        shift = 0
        if rest & 4:
            word = m.load_u32(key, at)
            at += 4
            shift = 32
        if rest & 2:
            word |= m.load_u16(key, at) << shift
            at += 2
            shift += 16
        if rest & 1:
            word |= m.load_u8(key, at) << shift
        return word

    return table_tail


# the last `rest` < 8 bytes of a key as a word
TAIL = Template("table_tail", _tail, "i64(ptr, i64, i64)")


def _hash(m: Any) -> Factory:
    tail = m.extern(TAIL)

    def table_hash(head, key, key_size):  # type: ignore
        # pairs of words multiplied, each pair with constants of its own, products xored: the
        # multiplications do not wait for each other
        seed_0 = m.load_u64(head, SEED_0)
        seed_1 = m.load_u64(head, SEED_1)
        result = 0
        k = _K0
        at = 0
        while at + 16 <= key_size:
            a = m.load_u64(key, at) ^ seed_0 ^ k
            b = m.load_u64(key, at + 8) ^ seed_1 ^ m.mul(k, _K1)
            result ^= m.mum(a, b)
            k = m.add(k, _K1)
            at += 16
        rest = key_size - at
        if rest > 0:
            b = seed_1 ^ m.mul(k, _K1)
            a = seed_0 ^ k
            if rest >= 8:
                a ^= m.load_u64(key, at)
                if rest > 8:
                    b ^= tail(key, at + 8, rest - 8)
            else:
                a ^= tail(key, at, rest)
            result ^= m.mum(a, b)
        # once more: the product of a counter and a constant is too regular
        return m.mum(result ^ seed_1, _K0)

    return table_hash


HASH_OF = Template("table_hash", _hash, "i64(ptr, ptr, i64)", uses=(TAIL,))


def _match(m: Any) -> Factory:
    tail = m.extern(TAIL)

    def table_match(element, key, key_size, hashed):  # type: ignore
        if key_size >= _LONG_KEY and m.acquire_u32(element, HASH) != hashed & _LOW:
            return 0
        different = 0
        at = 0
        while at + 8 <= key_size:
            different |= m.acquire_u64(element, KEY + at) ^ m.load_u64(key, at)
            at += 8
        if at < key_size:
            different |= m.acquire_u64(element, KEY + at) ^ tail(key, at, key_size - at)
        if different == 0:
            return 1
        return 0

    return table_match


# 1 if the element's key is this key
MATCH = Template("table_match", _match, "i64(ptr, ptr, i64, i64)", uses=(TAIL,))


def _find(m: Any) -> Factory:
    hash_of, match = m.extern(HASH_OF), m.extern(MATCH)

    def table_find(head, buckets, elements, key_size, mask, mark, key):  # type: ignore
        hashed = hash_of(head, key, key_size)
        bucket = m.inside(buckets, (hashed & mask) << 3)
        word = m.acquire_u64(bucket, 0)
        while True:
            link = word & _LOW
            steps = 0
            while link != 0:
                element = m.inside(elements, link << 3)
                if match(element, key, key_size, hashed) != 0:
                    if mark != 0 and m.load_u8(element, REFERENCED) == 0:
                        m.store_u8(element, REFERENCED, 1)
                    # one sum, or LLVM takes it apart and cannot tell that it is not null
                    return m.inside(element, (key_size + KEY + 7) & ~7)
                link = m.acquire_u32(element, NEXT)
                steps += 1
                # a walk that went astray might go round for ever
                if steps & 63 == 0 and m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) != 0:
                    link = 0
            again = m.acquire_u64(bucket, 0)
            if m.lshr(again ^ word, 32) == 0:
                return m.null()
            word = again

    return table_find


# the value of this key, or null, without the lock; `mark` (0 or 1) marks it as referenced
FIND = Template("table_find", _find, "ptr(ptr, ptr, ptr, i64, i64, i64, ptr)",
                uses=(HASH_OF, MATCH))


def _before(m: Any) -> Factory:
    def table_before(elements, first, link):  # type: ignore
        before = 0
        while first != link:
            before = first
            first = m.load_u32(m.inside(elements, first << 3), NEXT)
        return before

    return table_before


# the link in front of `link` in the chain that starts at `first`, 0 if it is the first
BEFORE = Template("table_before", _before, "i64(ptr, i64, i64)")


def _unlink(m: Any) -> Factory:
    before_of = m.extern(BEFORE)

    def table_unlink(bucket, elements, link):  # type: ignore
        word = m.relaxed_u64(bucket, 0)
        first = word & _LOW
        after = m.load_u32(m.inside(elements, link << 3), NEXT)
        before = before_of(elements, first, link)
        if before == 0:
            first = after
        else:
            m.release_u32(m.inside(elements, before << 3), NEXT, after)
        m.release_u64(bucket, 0, m.add(word & ~_LOW, _ONE) | first)
        return 0

    return table_unlink


# take an element out of its chain, under the lock
UNLINK = Template("table_unlink", _unlink, "i64(ptr, ptr, i64)", uses=(BEFORE,))


def _repair(m: Any) -> Factory:
    give, start_of = m.extern(GIVE), m.extern(START)

    def table_repair(  # type: ignore
        head, shard, buckets, elements, stride, mask, key_size, places, index
    ):
        step = stride >> 3
        start, fresh = start_of(places, stride, index), m.load_u32(shard, FRESH)
        for link in range(start, fresh, step):
            m.store_u8(m.inside(elements, link << 3), LIVE, 0)
        count = 0
        shift = m.lshr(places, 32) & 31
        number = m.lshr(index, shift)
        behind = (number + 1) << shift
        if behind > mask + 1:
            behind = mask + 1
        for at_bucket in range(number << shift, behind):
            bucket = m.inside(buckets, at_bucket << 3)
            word = m.relaxed_u64(bucket, 0)
            first = word & _LOW
            before = 0
            link = first
            while link != 0:
                element = m.inside(elements, link << 3)
                other = first
                same = 0
                while other != link and same == 0:
                    differ = 0
                    for at in range(KEY, KEY + key_size, 8):
                        differ |= m.load_u64(element, at) ^ m.load_u64(
                            m.inside(elements, other << 3), at)
                    if differ == 0:
                        same = 1
                    other = m.load_u32(m.inside(elements, other << 3), NEXT)
                after = m.load_u32(element, NEXT)
                if same != 0:  # an update put the new one first, and got no further
                    m.release_u32(m.inside(elements, before << 3), NEXT, after)
                else:
                    m.store_u8(element, LIVE, 1)
                    count += 1
                    before = link
                link = after
            m.release_u64(bucket, 0, m.add(word, _ONE))
        m.store_u32(shard, COUNT, count)
        m.store_u32(shard, RIPE, 0)
        m.store_u32(shard, LIMBO, 0)
        m.store_u32(shard, YOUNG, 0)
        m.store_u64(shard, AT, m.load_u64(head, EPOCH))
        for link in range(start, fresh, step):
            if m.load_u8(m.inside(elements, link << 3), LIVE) == 0:
                give(shard, elements, link)
        if m.relaxed_u32(head, SCARCE) == 1:
            m.release_u32(head, SCARCE, 0)
        m.store_u32(head, RECOUNT, 1)
        return 0

    return table_repair


_LOCK_SIGNATURE = "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64)"
# what a process that died with the lock of a bucket's shard left undone
REPAIR = Template("table_repair", _repair, _LOCK_SIGNATURE, uses=(GIVE, START), inline=False,
                  rare=True)


def _lock_table(m: Any) -> Factory:
    lock, repair = m.extern(LOCKED), m.extern(REPAIR)

    def table_lock(  # type: ignore
        head, shard, buckets, elements, stride, mask, key_size, places, index
    ):
        if lock(shard) != 0:
            repair(head, shard, buckets, elements, stride, mask, key_size, places, index)
        return 0

    return table_lock


# the lock of a bucket's shard
LOCK_TABLE = Template("table_lock", _lock_table, _LOCK_SIGNATURE, uses=(LOCKED, REPAIR))
SWEEP = make_sweep("table_sweep", LOCK_TABLE)
