"""Where a lookup will look, fetched into the cache for a whole batch before its programs run.

A lookup in a table larger than the cache waits for memory, two or three times in a row, each time
for an address that the last one brought.  A scout (compiler/scout.py) finds out the first such
lookup of each packet of a batch and writes it down in a *place* of its own; then all places go on
by one step at a time, so that the batch waits together:

    BUCKET   the bucket's word is read, and its first element prefetched
    ELEMENT  the element's hash is not that of the key: its successor is prefetched
    ROOT     the trie's root slot is read, its best element and child node are prefetched
    NODE     the node is read, its longest prefix of the key and the next child are prefetched

Nothing is written but places, and nothing depends on what is read: an element may be changed or
reused in the meantime, then the prefetch was for nothing.  Links always lie inside their region.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdp_runtime.maps import hash, lpm, percpu_hash
from xdp_runtime.maps.hash_table import HASH, HASH_OF, NEXT, Factory, value_offset
from xdp_runtime.maps.lpm_repair import BITMAP, CHILD, DEPTH, EXACT
from xdp_runtime.object import MapType
from xdp_runtime.template import Template

# what a loop calls
SCOUT = "xdpu.scout"  # i64(ptr state, ptr place)
STEPS = "xdpu.scout.steps"  # i64(): how many steps to take; 0: there is nothing to scout

LARGE_BYTES = 256 << 10  # of a map: a quarter of a common second-level cache
PLACE_BYTES = 64
KIND = 0  # u32, what the next step is; 0: none
_VALUE = 4  # u32, offset of the value in an element, if it is not in the first line
_WHERE = 8  # ptr, of the bucket or the root's slot
_ELEMENTS = 16  # ptr
_NODES = 24  # ptr
_LINK = 32  # u64, of element or node
_HASHED = 40  # u64
_DATA = 48  # the key's data

_BUCKET, _ELEMENT, _ROOT, _NODE = 1, 2, 3, 4
_LOW = 0xFFFFFFFF
_LINE = 64
DATA_MAX_BYTES = 16  # of the keys of a trie


def _hash_scout(m: Any) -> Factory:
    hash_of = m.extern(HASH_OF)

    def hash_scout(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, key, place
    ):
        hashed = hash_of(head, key, key_size)
        bucket = m.inside(buckets, (hashed & mask) << 3)
        m.prefetch(bucket, 0)
        value = KEY_BYTES + ((key_size + 7) & ~7)
        if stride <= _LINE or value < _LINE:
            value = 0
        m.store_u32(place, KIND, _BUCKET)
        m.store_u32(place, _VALUE, value)
        m.store_ptr(place, _WHERE, bucket)
        m.store_ptr(place, _ELEMENTS, elements)
        m.store_u64(place, _HASHED, hashed & _LOW)
        return 0

    return hash_scout


KEY_BYTES = value_offset(0)
HASH_SCOUT = Template("hash_scout", _hash_scout, f"i64({hash.LEADING}, ptr, ptr)", (HASH_OF,))


def _percpu_scout(m: Any) -> Factory:
    hash_scout = m.extern(HASH_SCOUT)

    def percpu_scout(  # type: ignore
        head, buckets, elements, values, key_size, value_size, stride, mask, max_entries, end,
        worker_stride, workers, worker, key, place
    ):
        return hash_scout(head, buckets, elements, key_size, 0, stride, mask, max_entries, end,
                          worker, key, place)

    return percpu_scout


PERCPU_SCOUT = Template("percpu_scout", _percpu_scout, f"i64({percpu_hash.LEADING}, ptr, ptr)",
                        (HASH_SCOUT,))


def _lpm_scout(m: Any) -> Factory:
    top_of = m.extern(lpm.TOP)

    def lpm_scout(  # type: ignore
        head, root, nodes, elements, data_size, value_size, root_bits, stride, max_entries,
        element_end, node_end, worker, key, place
    ):
        if data_size > DATA_MAX_BYTES:
            return 0
        data = m.gep(key, 4)
        slot = m.inside(root, top_of(data, root_bits) << 3)
        m.prefetch(slot, 0)
        m.store_u32(place, KIND, _ROOT)
        m.store_ptr(place, _WHERE, slot)
        m.store_ptr(place, _ELEMENTS, elements)
        m.store_ptr(place, _NODES, nodes)
        m.store_u64(place, _HASHED, data_size << 3)
        m.zero(m.inside(place, _DATA), DATA_MAX_BYTES)
        m.copy(m.inside(place, _DATA), data, data_size)
        return 0

    return lpm_scout


LPM_SCOUT = Template("lpm_scout", _lpm_scout, f"i64({lpm.LEADING}, ptr, ptr)", (lpm.TOP,))


def _step(m: Any) -> Factory:
    nibble = m.extern(lpm.NIBBLE)

    def scout_step(place):  # type: ignore
        kind = m.load_u32(place, KIND)
        elements = m.load_ptr(place, _ELEMENTS)
        if kind == _BUCKET or kind == _ELEMENT:
            if kind == _BUCKET:
                link = m.relaxed_u64(m.load_ptr(place, _WHERE), 0) & _LOW
            else:
                element = m.inside(elements, m.load_u64(place, _LINK) << 3)
                link = m.relaxed_u32(element, NEXT)
                if m.relaxed_u32(element, HASH) == m.load_u64(place, _HASHED):
                    link = 0
            if link == 0:
                m.store_u32(place, KIND, 0)
                return 0
            element = m.inside(elements, link << 3)
            m.prefetch(element, 0)
            value = m.load_u32(place, _VALUE)
            if value != 0:
                m.prefetch(element, value)
            m.store_u64(place, _LINK, link)
            m.store_u32(place, KIND, _ELEMENT)
        elif kind == _ROOT or kind == _NODE:
            data = m.inside(place, _DATA)
            nodes = m.load_ptr(place, _NODES)
            if kind == _ROOT:
                word = m.relaxed_u64(m.load_ptr(place, _WHERE), 0)
                best, link = word & _LOW, m.lshr(word, 32)
            else:
                node = m.inside(nodes, m.load_u64(place, _LINK) << 3)
                depth, bits = m.relaxed_u32(node, DEPTH), m.relaxed_u32(node, BITMAP)
                best = link = 0
                if depth < m.load_u64(place, _HASHED):
                    way = nibble(data, depth)
                    bits &= (1 << (16 + way)) | (1 << (8 + (way >> 1))) | (
                        1 << (4 + (way >> 2))) | (1 << (2 + (way >> 3)))
                    if bits != 0:
                        number = 63 - m.leading_zeros(bits)
                        best = m.relaxed_u32(node, EXACT + (number << 2))
                    link = m.relaxed_u32(node, CHILD + (way << 2))
            if best != 0:
                m.prefetch(m.inside(elements, best << 3), 0)
            if link == 0:
                m.store_u32(place, KIND, 0)
                return 0
            node = m.inside(nodes, link << 3)
            for line in range(0, 3 * _LINE, _LINE):
                m.prefetch(node, line)
            m.store_u64(place, _LINK, link)
            m.store_u32(place, KIND, _NODE)
        return 0

    return scout_step


# one step of one place; a place without a kind stays as it is
STEP = Template("scout_step", _step, "i64(ptr)", (lpm.NIBBLE,))

# by map type: the scout of a lookup, and how many steps it is worth to take
SCOUTS: Mapping[int, tuple[Template, int]] = {
    MapType.HASH: (HASH_SCOUT, 2),
    MapType.LRU_HASH: (HASH_SCOUT, 2),
    MapType.PERCPU_HASH: (PERCPU_SCOUT, 2),
    MapType.LRU_PERCPU_HASH: (PERCPU_SCOUT, 2),
    MapType.LPM_TRIE: (LPM_SCOUT, 3),
}
