"""Maps whose values have a struct bpf_timer: HASH, LRU_HASH and ARRAY.

Its 16 bytes hold the number of a timer (timers.py), 0 if it is not initialised.  A new element
begins with 0, whatever is in the value that it is given; so does, as in the kernel, an element of
an array that is updated, and one of a hash, whose update puts a new element in place of the old.
User space sees zeros.  A timer whose number is not in its value any more, or whose element was
freed, does not fire.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

from xdp_runtime.maps.array import _LEADING as ARRAY_LEADING
from xdp_runtime.maps.array import LOOKUP as ARRAY_LOOKUP
from xdp_runtime.maps.family import BPF_F_LOCK, ENOENT, ENOMEM, Family
from xdp_runtime.maps.hash import LEADING
from xdp_runtime.maps.hash import LOOKUP as HASH_LOOKUP
from xdp_runtime.template import Template

TIMER_BYTES = 16
_STACK_BYTES = 4096  # a larger value is copied elsewhere
Factory = Any


@lru_cache(maxsize=256)
def _array_update(plain: Template, timer_at: int) -> Template:
    def factory(m: Any) -> Factory:
        update, lookup = m.extern(plain), m.extern(ARRAY_LOOKUP)

        def timed_array_update(  # type: ignore
            values, worker_stride, stride, size, max_entries, workers, worker, key, value, flags
        ):
            result = update(values, worker_stride, stride, size, max_entries, workers, worker, key,
                            value, flags)
            if result == 0:
                here = lookup(values, worker_stride, stride, size, max_entries, workers, worker,
                              key)
                m.release_u64(here, timer_at, 0)
            return result

        return timed_array_update

    return Template(f"timed_{plain.name}_{timer_at}", factory, plain.signature,
                    (plain, ARRAY_LOOKUP), inline=False)


def _array_read(m: Any) -> Factory:
    lookup = m.extern(ARRAY_LOOKUP)

    def array_read(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key, out
    ):
        here = lookup(values, worker_stride, stride, size, max_entries, workers, worker, key)
        if m.is_null(here):
            return -ENOENT
        m.copy(out, here, size)
        return 0

    return array_read


ARRAY_READ = Template("array_read", _array_read, f"i64({ARRAY_LEADING}, ptr, ptr)",
                      (ARRAY_LOOKUP,), inline=False)


@lru_cache(maxsize=256)
def _array_shown(plain: Template, timer_at: int) -> Template:
    """`read` or `read_locked`."""

    def factory(m: Any) -> Factory:
        read = m.extern(plain)

        def timed_array_read(  # type: ignore
            values, worker_stride, stride, size, max_entries, workers, worker, key, out
        ):
            result = read(values, worker_stride, stride, size, max_entries, workers, worker, key,
                          out)
            if result == 0:
                m.zero(m.gep(out, timer_at), TIMER_BYTES)
            return result

        return timed_array_read

    return Template(f"timed_{plain.name}_{timer_at}", factory, plain.signature, (plain,),
                    inline=False)


@lru_cache(maxsize=256)
def _hash_update(plain: Template, timer_at: int, value_size: int) -> Template:
    on_stack = value_size <= _STACK_BYTES
    stack_bytes = value_size if on_stack else 8

    def factory(m: Any) -> Factory:
        update, lookup = m.extern(plain), m.extern(HASH_LOOKUP)

        def timed_hash_update(  # type: ignore
            head, buckets, elements, key_size, size, stride, mask, max_entries, places, worker,
            key, value, flags
        ):
            given = m.gep(m.alloca(stack_bytes), 0)
            if not on_stack:
                given = m.c_malloc(value_size)
                if m.is_null(given):
                    return -ENOMEM
            m.copy(given, value, value_size)
            m.zero(m.gep(given, timer_at), TIMER_BYTES)
            if flags & BPF_F_LOCK != 0:  # what is there is changed in its place
                here = lookup(head, buckets, elements, key_size, value_size, stride, mask,
                              max_entries, places, worker, key)
                if not m.is_null(here):
                    m.store_u64(given, timer_at, m.acquire_u64(here, timer_at))
            result = update(head, buckets, elements, key_size, size, stride, mask, max_entries,
                            places, worker, key, given, flags)
            if not on_stack:
                m.c_free(given)
            return result

        return timed_hash_update

    return Template(f"timed_{plain.name}_{timer_at}_{value_size}", factory, plain.signature,
                    (plain, HASH_LOOKUP), inline=False)


@lru_cache(maxsize=256)
def _hash_read(plain: Template, timer_at: int) -> Template:
    """`read`, `read_locked` or `take`."""

    def factory(m: Any) -> Factory:
        read = m.extern(plain)

        def timed_hash_read(  # type: ignore
            head, buckets, elements, key_size, size, stride, mask, max_entries, places, worker,
            key, out
        ):
            result = read(head, buckets, elements, key_size, size, stride, mask, max_entries,
                          places, worker, key, out)
            if result == 0:
                m.zero(m.gep(out, timer_at), TIMER_BYTES)
            return result

        return timed_hash_read

    return Template(f"timed_{plain.name}_{timer_at}", factory, plain.signature, (plain,),
                    inline=False)


@lru_cache(maxsize=256)
def timed(family: Family, timer_at: int, value_size: int) -> Family:
    """The family of maps like those of `family`, with a timer in their values."""
    plain, made = family.operations, copy.copy(family)
    if plain["update"].parameters[:3] == ("ptr", "ptr", "ptr"):
        assert plain["update"].signature.startswith(f"i64({LEADING}")
        operations = {"update": _hash_update(plain["update"], timer_at, value_size)} | {
            name: _hash_read(plain[name], timer_at)
            for name in ("read", "read_locked", "take") if name in plain}
    else:
        operations = {"update": _array_update(plain["update"], timer_at)} | {
            name: _array_shown(template, timer_at)
            for name, template in {"read": ARRAY_READ, **plain}.items()
            if name in ("read", "read_locked")}
    made.operations = {**plain, **operations}  # type: ignore[misc]
    return made
