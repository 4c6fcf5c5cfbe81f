"""Shards: parts of a hash table that are written independently of each other.

A large table is cut into up to 64 shards, equal ranges of its buckets.  Each has a lock, a pool of
elements of its own (pool.py) and an allowance: how many entries it may hold.  Readers know nothing
of it.  Where a shard is, the parameter `places` of the templates says:

    bits 0-31   elements of a shard, in units of 8 bytes
    bits 32-36  shift: bucket >> shift is the number of the shard
    from 40     where the first one is in the head, in units of 64 bytes; 0: the head is itself one

A shard's head is like a map's (the lock at 64, the pool from 128), and only these two lines of it
exist, so shards are 128 bytes apart.  Hashing spreads keys evenly: a shard has elements for its
share and 8 standard deviations more.  With a seed that everybody knows (BPF_F_ZERO_SEED) they could
be aimed at one shard, so there is but one.

The allowances and what is left (`LEFT`) add up to max_entries at all times.  A shard that has used
up its own takes some of what is left, else, once, all is swept together: with all locks held each
shard is left what it has, and from then on (`SCARCE`) takes one by one and gives back at once what
is deleted.  So an insert is refused if and only if there are max_entries entries.

Who holds the lock of a shard waits for no other: the sweep takes the map's lock, then those of all
shards, and nobody who sweeps holds one.  If a process died between two of these steps, numbers may
be lost: `repair` ends the scarcity, and the next sweep counts again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xdp_runtime.maps.lock import LOCKED, UNLOCK
from xdp_runtime.maps.pool import COUNT, SHARD_BYTES, SHARDS
from xdp_runtime.template import Template

Factory = Callable[..., Any]

LEFT, SCARCE = 208, 212  # u32 in a map's head; SCARCE is 2 where shards share nothing
ALLOWED, CAPACITY = 176, 180  # u32 in a shard's
_SHARDS_MAX, _SHARE_MIN = 64, 1024
_CHUNK = 64  # entries that a shard takes at a time of what is left
_LOW = 0xFFFFFFFF


def shards_of(max_entries: int) -> int:
    """A power of two: shards of a table of so many entries."""
    share = max_entries // _SHARE_MIN
    return min(_SHARDS_MAX, 1 << (share.bit_length() - 1)) if share > 1 else 1


def capacity_of(max_entries: int, shards: int) -> int:
    """Entries for which a shard has elements."""
    if shards == 1:
        return max_entries
    share = -(-max_entries // shards)
    return min(max_entries, share + 8 * math.isqrt(share) + _CHUNK)


def pack(span: int, shift: int, first: int) -> int:
    """The parameter `places`."""
    return span | shift << 32 | first >> 6 << 40


def _shard(m: Any) -> Factory:
    def shard_of(head, places, index):  # type: ignore
        number = m.lshr(index, m.lshr(places, 32) & 31)
        return m.inside(head, (m.lshr(places, 40) << 6) + (number << 7))

    return shard_of


# the shard of a bucket
SHARD = Template("shard_of", _shard, "ptr(ptr, i64, i64)")


def _start(m: Any) -> Factory:
    def shard_start(places, stride, index):  # type: ignore
        return m.lshr(stride, 3) + m.lshr(index, m.lshr(places, 32) & 31) * (places & _LOW)

    return shard_start


# link of the first element of a bucket's shard; the shard's end is `places & _LOW` further on
START = Template("shard_start", _start, "i64(i64, i64, i64)")


def _grow(m: Any) -> Factory:
    def shard_grow(head, shard):  # type: ignore
        """1 if the shard may hold more now; under its lock."""
        while True:
            left = m.relaxed_u32(head, LEFT)
            allowed = m.load_u32(shard, ALLOWED)
            part = m.lshr(left, 8) + 1
            if part > _CHUNK:
                part = _CHUNK
            if m.acquire_u32(head, SCARCE) != 0:
                part = 1
            if part > m.load_u32(shard, CAPACITY) - allowed:
                part = m.load_u32(shard, CAPACITY) - allowed
            if left == 0 or part == 0:
                return 0
            if m.cas_u32(head, LEFT, left, left - part):
                m.store_u32(shard, ALLOWED, allowed + part)
                return 1

    return shard_grow


GROW = Template("shard_grow", _grow, "i64(ptr, ptr)", inline=False, rare=True)


def _give_back(m: Any) -> Factory:
    def shard_give_back(head, shard, count):  # type: ignore
        m.store_u32(shard, ALLOWED, m.load_u32(shard, ALLOWED) - count)
        left = m.atomic_add_u32(head, LEFT, count) + count
        if left > 2 * _CHUNK * m.load_u32(head, SHARDS):
            m.release_u32(head, SCARCE, 0)
        return 0

    return shard_give_back


GIVE_BACK = Template("shard_give_back", _give_back, "i64(ptr, ptr, i64)", inline=False,
                     rare=True)


def _less(m: Any) -> Factory:
    give_back = m.extern(GIVE_BACK)

    def shard_less(head, shard, count):  # type: ignore
        m.store_u32(shard, COUNT, m.load_u32(shard, COUNT) - count)
        if m.relaxed_u32(head, SCARCE) == 1:
            give_back(head, shard, count)
        return 0

    return shard_less


# so many entries went, under the shard's lock
LESS = Template("shard_less", _less, "i64(ptr, ptr, i64)", (GIVE_BACK,))


def make_sweep(name: str, lock_table: Template) -> Template:
    """All that shards are allowed and do not use goes to what is left; no lock is held."""

    def factory(m: Any) -> Factory:
        lock_map, unlock, lock = m.extern(LOCKED), m.extern(UNLOCK), m.extern(lock_table)

        def shard_sweep(  # type: ignore
            head, buckets, elements, stride, mask, key_size, max_entries, places
        ):
            shards, shift = m.load_u32(head, SHARDS), m.lshr(places, 32) & 31
            first = m.inside(head, m.lshr(places, 40) << 6)
            lock_map(head)
            if m.relaxed_u32(head, SCARCE) == 0:
                used = 0
                for number in range(shards):
                    one = m.inside(first, number * SHARD_BYTES)
                    lock(head, one, buckets, elements, stride, mask, key_size, places,
                         number << shift)
                for number in range(shards):
                    one = m.inside(first, number * SHARD_BYTES)
                    used += m.load_u32(one, COUNT)
                    m.store_u32(one, ALLOWED, m.load_u32(one, COUNT))
                m.store_u32(head, LEFT, max_entries - used)
                if max_entries - used < _CHUNK * shards:
                    m.release_u32(head, SCARCE, 1)
                for number in range(shards):
                    unlock(m.inside(first, number * SHARD_BYTES))
            unlock(head)
            return 0

        return shard_sweep

    return Template(name, factory, "i64(ptr, ptr, ptr, i64, i64, i64, i64, i64)",
                    (LOCKED, UNLOCK, lock_table), inline=False, rare=True)
