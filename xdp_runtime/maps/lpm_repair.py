"""What a process that died while it changed an LPM trie left undone.

Readers find a whole trie at every moment, but its parts may lag behind each other: the prefixes
that nodes hold, the bitmaps that say so, the best prefixes of the root's slots, the count and the
pools. The first is the truth, and the others are made from it again. A node that was about to be
attached, or was just detached, is lost for good: at most three for each such death, of `spare`.
"""

from __future__ import annotations

from typing import Any

from xdp_runtime.maps.lock import LOCKED
from xdp_runtime.maps.pool import (
    AT,
    COUNT,
    EPOCH,
    FRESH,
    GIVE,
    LIMBO,
    LIVE,
    NEWEST,
    OLDEST,
    QUEUE,
    RIPE,
    YOUNG,
    Factory,
)
from xdp_runtime.template import Template

SEQUENCE = 0
NODE_POOL = 64  # the nodes' pool lies so many bytes behind the elements'
DEPTH, BITMAP, CHILD, EXACT, NODE_BYTES = 0, 4, 8, 64, 192  # EXACT: where number 0 would be


def _walk(m: Any) -> Factory:
    def lpm_repair_below(nodes, elements, place):  # type: ignore
        """Mend the nodes below a link; how many prefixes they hold."""
        trail = m.gep(m.alloca(8320), 0)  # for each level: where its link is, the way looked at
        m.store_ptr(trail, 0, place)
        m.store_u64(trail, 8, 0)
        level = 0
        count = 0
        while level >= 0:
            here = m.gep(trail, level << 4)
            link = m.load_u32(m.load_ptr(here, 0), 0)
            way = m.load_u64(here, 8)
            node = m.inside(nodes, link << 3)
            if link == 0:
                level -= 1
            elif way < 16:
                m.store_u64(here, 8, way + 1)
                level += 1
                below = m.gep(trail, level << 4)
                m.store_ptr(below, 0, m.inside(node, CHILD + (way << 2)))
                m.store_u64(below, 8, 0)
            else:
                bits = 0
                for number in range(2, 32):
                    element = m.load_u32(node, EXACT + (number << 2))
                    if element != 0:
                        bits |= 1 << number
                        m.store_u8(m.inside(elements, element << 3), LIVE, 1)
                        count += 1
                if bits != m.load_u32(node, BITMAP):
                    m.release_u32(node, BITMAP, bits)
                used = bits
                for each in range(16):
                    used |= m.load_u32(node, CHILD + (each << 2))
                if used == 0:  # a delete emptied it, and got no further
                    m.release_u32(m.load_ptr(here, 0), 0, 0)
                level -= 1
        return count

    return lpm_repair_below


WALK = Template("lpm_repair_below", _walk, "i64(ptr, ptr, ptr)", inline=False, rare=True)


def _empty(m: Any) -> Factory:
    def pool_empty(head, pool):  # type: ignore
        m.store_u32(pool, RIPE, 0)
        m.store_u32(pool, LIMBO, 0)
        m.store_u32(pool, YOUNG, 0)
        m.store_u64(pool, AT, m.load_u64(head, EPOCH))
        return 0

    return pool_empty


EMPTY = Template("pool_empty", _empty, "i64(ptr, ptr)")


def _repair(m: Any) -> Factory:
    below, empty, give = m.extern(WALK), m.extern(EMPTY), m.extern(GIVE)

    def lpm_repair(head, root, nodes, elements, root_bits, stride):  # type: ignore
        step = stride >> 3
        fresh = m.load_u32(head, FRESH)
        for link in range(step, fresh, step):
            m.store_u8(m.inside(elements, link << 3), LIVE, 0)
        count = 0
        for number in range(1, 2 << root_bits):
            element = m.load_u32(root, (8 << root_bits) + (number << 2))
            if element != 0:
                m.store_u8(m.inside(elements, element << 3), LIVE, 1)
                count += 1
        for slot in range(1 << root_bits):
            best = 0
            number = (1 << root_bits) | slot
            while number > 0 and best == 0:
                best = m.load_u32(root, (8 << root_bits) + (number << 2))
                number = number >> 1
            if m.load_u32(root, slot << 3) != best:
                m.release_u32(root, slot << 3, best)
            count += below(nodes, elements, m.inside(root, (slot << 3) + 4))
        m.store_u32(head, COUNT, count)
        m.atomic_add_u64(head, SEQUENCE, 1)
        empty(head, head)
        for link in range(step, fresh, step):
            if m.load_u8(m.inside(elements, link << 3), LIVE) == 0:
                give(head, elements, link)
        # what waits of the nodes, as far as its chain is whole
        pool = m.gep(head, NODE_POOL)
        waits = m.load_u32(pool, RIPE) + m.load_u32(pool, LIMBO) + m.load_u32(pool, YOUNG)
        link = m.load_u32(pool, OLDEST)
        newest = m.load_u32(pool, NEWEST)
        found = 1
        while waits != 0 and link != newest and found * (NODE_BYTES >> 3) < m.load_u32(pool, FRESH):
            link = m.load_u32(m.inside(nodes, link << 3), QUEUE)
            found += 1
        empty(head, pool)
        if waits != 0 and link == newest:
            m.store_u32(pool, YOUNG, found)
        return 0

    return lpm_repair


REPAIR = Template("lpm_repair", _repair, "i64(ptr, ptr, ptr, ptr, i64, i64)",
                  (WALK, EMPTY, GIVE), inline=False, rare=True)


def _lock(m: Any) -> Factory:
    lock, repair = m.extern(LOCKED), m.extern(REPAIR)

    def lpm_lock(head, root, nodes, elements, root_bits, stride):  # type: ignore
        if lock(head) != 0:
            repair(head, root, nodes, elements, root_bits, stride)
        return 0

    return lpm_lock


LOCK_TRIE = Template("lpm_lock", _lock, "i64(ptr, ptr, ptr, ptr, i64, i64)", (LOCKED, REPAIR))
