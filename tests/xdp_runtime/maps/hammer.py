"""A compiled worker that looks up, updates and deletes at random, and checks what it reads.

Key i is 20 bytes that all derive from i; a value is 40 bytes: i, a random word, and three words
derived from these, so that a torn or foreign value shows.  Keys below `stable` are put there before
and only updated, so they must always be found.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from tests.xdp_runtime.maps.loops import compile_loops
from xdp_runtime.maps.map import Map
from xdp_runtime.template import Template

KEY_BYTES, VALUE_BYTES = 20, 40
MASK = (1 << 64) - 1
C = 0x9E3779B97F4A7C15

# results of a worker, u64 each
LOST, WRONG, REFUSED, HITS, MISSES, POINTER_WRONG, UPDATES, DELETES = range(8)


def _work(m: Any) -> Any:
    lookup = m.symbol("map.0.lookup", "ptr(i64, ptr)")
    read = m.symbol("map.0.read", "i64(i64, ptr, ptr)")
    update = m.symbol("map.0.update", "i64(i64, ptr, ptr, i64)")
    delete = m.symbol("map.0.delete", "i64(i64, ptr)")

    def hammer_work(counts, seed, rounds, keys, stable):  # type: ignore
        key = m.alloca(24)
        value = m.alloca(40)
        state = seed
        for _ in range(rounds):
            state = m.add(m.mul(state, 6364136223846793005), 1442695040888963407)
            dice = m.lshr(state, 33)
            i = m.urem(dice, keys)
            action = m.lshr(state, 7) & 15
            m.store_u64(key, 0, i)
            m.store_u64(key, 8, m.mul(i, 0x9E3779B97F4A7C15 - (1 << 64)))
            m.store_u32(key, 16, i ^ 0x5A5A5A5A)
            if action < 6:
                status = read(0, key, value)
                if status == 0:
                    random = m.load_u64(value, 8)
                    wrong = m.load_u64(value, 0) ^ i
                    wrong |= m.load_u64(value, 16) ^ m.mum(random, i | 1)
                    wrong |= m.load_u64(value, 24) ^ random ^ i
                    wrong |= m.load_u64(value, 32) ^ m.add(random, i)
                    if wrong != 0:
                        m.atomic_add_u64(counts, 8, 1)
                    m.atomic_add_u64(counts, 24, 1)
                else:
                    if i < stable:
                        m.atomic_add_u64(counts, 0, 1)
                    m.atomic_add_u64(counts, 32, 1)
            elif action < 10:
                found = lookup(0, key)
                if m.is_null(found):
                    if i < stable:
                        m.atomic_add_u64(counts, 0, 1)
                    m.atomic_add_u64(counts, 32, 1)
                else:
                    random = m.relaxed_u64(found, 8)
                    wrong = m.relaxed_u64(found, 0) ^ i
                    wrong |= m.relaxed_u64(found, 16) ^ m.mum(random, i | 1)
                    if wrong != 0:
                        m.atomic_add_u64(counts, 40, 1)
                    m.atomic_add_u64(counts, 24, 1)
            elif action < 14 or i < stable:
                m.store_u64(value, 0, i)
                m.store_u64(value, 8, state)
                m.store_u64(value, 16, m.mum(state, i | 1))
                m.store_u64(value, 24, state ^ i)
                m.store_u64(value, 32, m.add(state, i))
                status = update(0, key, value, 0)
                m.atomic_add_u64(counts, 48, 1)
                if status == -7 and i >= stable:
                    m.atomic_add_u64(counts, 16, 1)
                elif status != 0:
                    m.atomic_add_u64(counts, 0, 1)
            else:
                status = delete(0, key)
                if status == 0:
                    m.atomic_add_u64(counts, 56, 1)
        return 0

    return hammer_work


WORK = Template("hammer_work", _work, "i64(ptr, i64, i64, i64, i64)")


def key_of(i: int) -> bytes:
    return (i.to_bytes(8, "little") + (i * C & MASK).to_bytes(8, "little")
            + (i ^ 0x5A5A5A5A).to_bytes(4, "little"))


def value_of(i: int, random: int = 1) -> bytes:
    product = random * (i | 1)
    words = (i, random, (product ^ product >> 64) & MASK, random ^ i, (random + i) & MASK)
    return b"".join(word.to_bytes(8, "little") for word in words)


def is_right(i: int, value: bytes) -> bool:
    return value == value_of(i, int.from_bytes(value[8:16], "little"))


def hammer(one: Map, keys: int, stable: int, rounds: int,
           threads: int = 4) -> tuple[list[int], list[list[bytes]]]:
    """Run the workers; their counts, and the key lists this thread iterated meanwhile."""
    work = compile_loops(one, WORK)["hammer_work"]
    for i in range(stable):
        one[key_of(i)] = value_of(i)
    counts = bytearray(64)
    where = ctypes.addressof(ctypes.c_char.from_buffer(counts))
    workers = [threading.Thread(target=work, args=(where, 77 + n, rounds, keys, stable))
               for n in range(threads)]
    for worker in workers:
        worker.start()
    seen = []
    while any(worker.is_alive() for worker in workers):
        seen.append(list(one.keys()))
    for worker in workers:
        worker.join()
    return [int.from_bytes(counts[i:i + 8], "little") for i in range(0, 64, 8)], seen
