"""The keys of a hash for who looks at it from outside: each once, whatever others do meanwhile.

next_key begins anew behind a key that has gone, as the kernel's does, so that whoever goes from key
to key may never arrive while others delete.  `scan(place, room, out)` goes bucket by bucket: a key
has one, and one that changes while it is copied is copied again.  `place` is the u64 number of the
next bucket, 0 at first.  It gives how many keys it copied, 0 at the end, -ENOSPC if the next bucket
has more than `room`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.maps.family import ENOSPC
from xdp_runtime.maps.hash_table import HASH, KEY, MATCH, NEXT
from xdp_runtime.template import Template

Factory = Callable[..., Any]
_LOW = 0xFFFFFFFF


def _table_scan(m: Any) -> Factory:
    match = m.extern(MATCH)

    def table_scan(buckets, elements, key_size, mask, place, room, out):  # type: ignore
        index = m.load_u64(place, 0)
        total = 0
        while index <= mask:
            bucket = m.inside(buckets, index << 3)
            word = m.acquire_u64(bucket, 0)
            link = word & _LOW
            count = 0
            steps = 0
            while link != 0 and total + count < room:
                element = m.inside(elements, link << 3)
                first = m.gep(out, total * key_size)
                # an update puts the new element in front before it takes the old one out
                old = 0
                for newer in range(count):
                    if match(element, m.gep(first, newer * key_size), key_size,
                             m.load_u32(element, HASH)) != 0:
                        old = 1
                m.copy(m.gep(first, count * key_size), m.inside(element, KEY), key_size)
                if old == 0:
                    count += 1
                link = m.acquire_u32(element, NEXT)
                steps += 1
                # a walk that went astray might go round for ever
                if steps & 63 == 0 and m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) != 0:
                    link = 0
            m.fence()
            if m.lshr(m.acquire_u64(bucket, 0) ^ word, 32) == 0:
                if link != 0:
                    break
                total += count
                index += 1
        m.store_u64(place, 0, index)
        if total == 0 and index <= mask:
            return -ENOSPC
        return total

    return table_scan


TABLE_SCAN = Template("table_scan", _table_scan, "i64(ptr, ptr, i64, i64, ptr, i64, ptr)",
                      (MATCH,), inline=False)


def _hash_scan(m: Any) -> Factory:
    scan = m.extern(TABLE_SCAN)

    def hash_scan(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, place, room, out
    ):
        return scan(buckets, elements, key_size, mask, place, room, out)

    return hash_scan


HASH_SCAN = Template(
    "hash_scan", _hash_scan,
    "i64(ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, ptr, i64, ptr)", (TABLE_SCAN,))


def _percpu_scan(m: Any) -> Factory:
    scan = m.extern(TABLE_SCAN)

    def percpu_scan(  # type: ignore
        head, buckets, elements, values, key_size, value_size, stride, mask, max_entries, end,
        worker_stride, workers, worker, place, room, out
    ):
        return scan(buckets, elements, key_size, mask, place, room, out)

    return percpu_scan


PERCPU_SCAN = Template(
    "percpu_hash_scan", _percpu_scan,
    "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, i64, i64, ptr, i64, ptr)",
    (TABLE_SCAN,))
