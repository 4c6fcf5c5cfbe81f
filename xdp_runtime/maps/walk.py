"""bpf_for_each_map_elem: from one element of a map to the next, without the lock.

`walk(found, cursor)` puts the addresses of an element's key and value into the first 16 bytes of
`found` (24 bytes; the key of an array lies in the last 8) and returns the cursor of the next one,
or -1 when there is none.  The first cursor is 0.

A hash's cursor is the next bucket << 32 | link of the next element in the chain at hand, read
before the callback runs, as the kernel does: the callback may delete the element it is given.  An
element that is deleted keeps its link and is not used again before this worker's batch ends, so the
walk goes on from there; elements that come or go meanwhile may be visited or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.maps.hash_table import KEY, NEXT
from xdp_runtime.template import Template

Factory = Callable[..., Any]
_LOW = 0xFFFFFFFF


def _array_walk(m: Any) -> Factory:
    def array_walk(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, found, cursor
    ):
        if cursor >= max_entries:
            return -1
        m.store_ptr(found, 0, m.gep(found, 16))
        m.store_ptr(found, 8, m.inside(values, worker * worker_stride + cursor * stride))
        m.store_u64(found, 16, cursor)
        return cursor + 1

    return array_walk


ARRAY_WALK = Template("array_walk", _array_walk, "i64(ptr, i64, i64, i64, i64, i64, i64, ptr, i64)")


def _table_walk(m: Any) -> Factory:
    def table_walk(buckets, elements, key_size, mask, found, cursor):  # type: ignore
        link = cursor & _LOW
        index = m.lshr(cursor, 32)
        while link == 0:
            if index > mask:
                return -1
            link = m.acquire_u64(m.inside(buckets, index << 3), 0) & _LOW
            index += 1
        element = m.inside(elements, link << 3)
        m.store_ptr(found, 0, m.inside(element, KEY))
        m.store_ptr(found, 8, m.inside(element, KEY + ((key_size + 7) & ~7)))
        return index << 32 | m.acquire_u32(element, NEXT)

    return table_walk


TABLE_WALK = Template("table_walk", _table_walk, "i64(ptr, ptr, i64, i64, ptr, i64)")


def _hash_walk(m: Any) -> Factory:
    walk = m.extern(TABLE_WALK)

    def hash_walk(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, found, cursor
    ):
        return walk(buckets, elements, key_size, mask, found, cursor)

    return hash_walk


HASH_WALK = Template(
    "hash_walk", _hash_walk,
    "i64(ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, ptr, i64)", (TABLE_WALK,))


def _percpu_walk(m: Any) -> Factory:
    walk = m.extern(TABLE_WALK)

    def percpu_walk(  # type: ignore
        head, buckets, elements, values, key_size, value_size, stride, mask, max_entries, end,
        worker_stride, workers, worker, found, cursor
    ):
        following = walk(buckets, elements, key_size, mask, found, cursor)
        if following != -1:  # the value of this worker, as percpu_hash.PLACE has it
            at = m.diff(m.load_ptr(found, 0), elements) - KEY
            place = worker * worker_stride + m.udiv(at, stride) * ((value_size + 7) & ~7)
            m.store_ptr(found, 8, m.inside(values, place))
        return following

    return percpu_walk


PERCPU_WALK = Template(
    "percpu_hash_walk", _percpu_walk,
    "i64(ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, i64, i64, ptr, i64)",
    (TABLE_WALK,))
