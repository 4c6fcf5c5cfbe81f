"""Four workers and a second process on one map, each with a model of what it wrote.

    python -m tests.xdp_runtime.maps.actors [--seconds 30] [--keys 5000] [FAMILY[+shares]...]

Key i belongs to actor i % 5, who alone writes it and knows what must be there; all look at all
keys.  A value is (i, random), of a map of targets a number.  A worker holds the pointer that the
first lookup of its batch gave until the batch's end, and finds the same i there all the time,
whatever happened to the key meanwhile.  Of a queue or stack, what was pushed less what was popped
is what remains; a filter has all that was pushed.  Rings are ring_actors.py's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.xdp_runtime.maps.loops import compile_loops
from xdp_runtime import state as st
from xdp_runtime.arena import start_of
from xdp_runtime.maps.dev import allow
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.pool import ENTER, LEAVE
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.template import Template

WORKERS, ACTORS, KEYS = 4, 5, 5000
PER_CPU = (MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH, MapType.PERCPU_ARRAY)
ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)
KEYLESS = (MapType.QUEUE, MapType.STACK)
TARGETS = (MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP, MapType.XSKMAP)
NUMBERS = 62  # that a target may have
FAMILIES = (MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH,
            MapType.LPM_TRIE, MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.QUEUE, MapType.STACK,
            MapType.BLOOM_FILTER, MapType.ARENA, MapType.STACK_TRACE, *TARGETS)
SHARED = (MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)  # with BPF_F_NO_COMMON_LRU as well
# u64 each
LOST, WRONG, HELD, REFUSED, DONE, PUSHED, POPPED, HITS = range(8)


def _keyed(kind: MapType, keys: int) -> Template:
    trie, fixed, private = kind == MapType.LPM_TRIE, kind in ARRAYS, kind in PER_CPU

    def factory(m: Any) -> Any:
        lookup = m.symbol("map.0.lookup", "ptr(i64, ptr)")
        update = m.symbol("map.0.update", "i64(i64, ptr, ptr, i64)")
        delete = m.symbol("map.0.delete", "i64(i64, ptr)")
        enter, leave = m.extern(ENTER), m.extern(LEAVE)

        def actor(counts, memory, model, me, seed, rounds):  # type: ignore
            key = m.gep(m.alloca(16), 0)
            value = m.gep(m.alloca(16), 0)
            held = m.gep(m.alloca(8), 0)
            m.zero(key, 16)
            m.store_ptr(held, 0, m.null())
            holds = 0
            worker = me & 3 if private else me  # who is no worker has the number behind theirs
            state = seed
            for n in range(rounds):
                if me < WORKERS:
                    if n & 63 == 0:
                        enter(memory)
                        m.store_ptr(held, 0, m.null())
                state = m.add(m.mul(state, 6364136223846793005), 1442695040888963407)
                i = m.lshr(state, 33) % keys
                action = m.lshr(state, 7) & 7
                if action > 2:
                    i = i - i % ACTORS + me
                if trie:
                    m.store_u32(key, 0, 32)
                    m.store_u32(key, 4, m.swap32(i))
                else:
                    m.store_u32(key, 0, i)
                mine = i % ACTORS == me
                known = m.load_u64(model, i << 3)
                if action < 5:
                    found = lookup(worker, key)
                    if m.is_null(found):
                        if mine and known != 0:
                            m.atomic_add_u64(counts, 0, 1)
                    elif me < WORKERS or mine:  # others hold no pointers to what may go
                        m.atomic_add_u64(counts, 56, 1)
                        named = m.relaxed_u64(found, 0)
                        if mine:
                            if fixed and known == 0:
                                known = 0
                            elif known == 0 or m.relaxed_u64(found, 8) != known or named != i:
                                m.atomic_add_u64(counts, 8, 1)
                        elif not private and not fixed and named != i:
                            m.atomic_add_u64(counts, 8, 1)
                        if m.is_null(m.load_ptr(held, 0)) and not private and not fixed:
                            m.store_ptr(held, 0, found)
                            holds = i
                elif action < 7 or fixed:
                    known = state | 1
                    m.store_u64(value, 0, i)
                    m.store_u64(value, 8, known)
                    if update(worker, key, value, 0) != 0:
                        m.atomic_add_u64(counts, 24, 1)
                    else:
                        m.store_u64(model, i << 3, known)
                else:
                    status = delete(worker, key)
                    if (status == 0) != (known != 0):
                        m.atomic_add_u64(counts, 0, 1)
                    m.store_u64(model, i << 3, 0)
                if me < WORKERS and n & 63 == 63:
                    if not m.is_null(m.load_ptr(held, 0)):
                        if m.relaxed_u64(m.load_ptr(held, 0), 0) != holds:
                            m.atomic_add_u64(counts, 16, 1)
                    leave(memory)
            m.atomic_add_u64(counts, 32, rounds)
            return state

        return actor

    return Template(f"actor_{kind.name.lower()}", factory, "i64(ptr, ptr, ptr, i64, i64, i64)",
                    (ENTER, LEAVE))


def _keyless(kind: MapType) -> Template:
    def factory(m: Any) -> Any:
        push = m.symbol("map.0.push_elem", "i64(i64, ptr, i64)")
        pop = m.symbol("map.0.pop_elem", "i64(i64, ptr)")

        def actor(counts, memory, model, me, seed, rounds):  # type: ignore
            value = m.gep(m.alloca(16), 0)
            state = seed
            for _ in range(rounds):
                state = m.add(m.mul(state, 6364136223846793005), 1442695040888963407)
                if m.lshr(state, 60) < 8:
                    m.store_u64(value, 0, state)
                    m.store_u64(value, 8, ~state)
                    if push(0, value, 0) == 0:
                        m.atomic_add_u64(counts, 40, state)
                    else:
                        m.atomic_add_u64(counts, 24, 1)
                elif pop(0, value) == 0:
                    m.atomic_add_u64(counts, 56, 1)
                    m.atomic_add_u64(counts, 48, m.load_u64(value, 0))
                    if m.load_u64(value, 0) != ~m.load_u64(value, 8):
                        m.atomic_add_u64(counts, 8, 1)
            m.atomic_add_u64(counts, 32, rounds)
            return state

        return actor

    return Template(f"actor_{kind.name.lower()}", factory, "i64(ptr, ptr, ptr, i64, i64, i64)")


def _targets(kind: MapType, keys: int) -> Template:
    hashed = kind == MapType.DEVMAP_HASH

    def factory(m: Any) -> Any:
        peek = m.symbol("map.0.peek", "ptr(i64, ptr)")
        update = m.symbol("map.0.update", "i64(i64, ptr, ptr, i64)")
        delete = m.symbol("map.0.delete", "i64(i64, ptr)")
        enter, leave = m.extern(ENTER), m.extern(LEAVE)

        def actor(counts, memory, model, me, seed, rounds):  # type: ignore
            key, value = m.gep(m.alloca(8), 0), m.gep(m.alloca(8), 0)
            state = seed
            for n in range(rounds):
                if hashed and me < WORKERS and n & 63 == 0:
                    enter(memory)
                state = m.add(m.mul(state, 6364136223846793005), 1442695040888963407)
                i = m.lshr(state, 33) % keys
                action = m.lshr(state, 7) & 7
                if action > 2:
                    i = i - i % ACTORS + me
                m.store_u32(key, 0, i)
                mine = i % ACTORS == me
                known = m.load_u64(model, i << 3)
                if action < 5:
                    found = peek(me, key)
                    if mine:
                        if m.is_null(found):
                            if known != 0:
                                m.atomic_add_u64(counts, 0, 1)
                        else:
                            m.atomic_add_u64(counts, 56, 1)
                            if m.relaxed_u32(found, 0) != known:
                                m.atomic_add_u64(counts, 8, 1)
                elif action < 7:
                    known = m.urem(m.lshr(state, 20), NUMBERS) + 1
                    m.store_u32(value, 0, known)
                    if update(me, key, value, 0) != 0:
                        m.atomic_add_u64(counts, 24, 1)
                    else:
                        m.store_u64(model, i << 3, known)
                else:
                    status = delete(me, key)
                    if (status == 0) != (known != 0 or not hashed):
                        m.atomic_add_u64(counts, 0, 1)
                    m.store_u64(model, i << 3, 0)
                if hashed and me < WORKERS and n & 63 == 63:
                    leave(memory)
            m.atomic_add_u64(counts, 32, rounds)
            return state

        return actor

    return Template(f"actor_{kind.name.lower()}", factory, "i64(ptr, ptr, ptr, i64, i64, i64)",
                    (ENTER, LEAVE))


def _filter(keys: int) -> Template:
    def factory(m: Any) -> Any:
        push = m.symbol("map.0.push_elem", "i64(i64, ptr, i64)")
        peek = m.symbol("map.0.peek_elem", "i64(i64, ptr)")

        def actor(counts, memory, model, me, seed, rounds):  # type: ignore
            value = m.gep(m.alloca(16), 0)
            m.zero(value, 16)
            state = seed
            for _ in range(rounds):
                state = m.add(m.mul(state, 6364136223846793005), 1442695040888963407)
                i = m.lshr(state, 33) % keys
                i = i - i % ACTORS + me
                m.store_u64(value, 0, i)
                if m.lshr(state, 7) & 63 == 0:
                    if push(0, value, 0) != 0:
                        m.atomic_add_u64(counts, 24, 1)
                    m.store_u64(model, i << 3, 1)
                elif peek(0, value) == 0:
                    m.atomic_add_u64(counts, 56, 1)
                elif m.load_u64(model, i << 3) != 0:
                    m.atomic_add_u64(counts, 0, 1)
            m.atomic_add_u64(counts, 32, rounds)
            return state

        return actor

    return Template("actor_bloom_filter", factory, "i64(ptr, ptr, ptr, i64, i64, i64)")


def _arena(spec: MapSpec, keys: int) -> Template:
    """Word 0 is everybody's counter; word i of those behind it is actor i % 5's."""
    start = start_of(spec) & 0xFFFFFFFF

    def factory(m: Any) -> Any:
        at = m.symbol("map.0.at", "ptr(i64, i64, i64)")

        def actor(counts, memory, model, me, seed, rounds):  # type: ignore
            state = seed
            for _ in range(rounds):
                state = m.add(m.mul(state, 6364136223846793005), 1442695040888963407)
                i = m.lshr(state, 33) % keys
                i = i - i % ACTORS + me
                word = at(me, start + 8 + (i << 3), 8)
                if m.is_null(word) or m.relaxed_u64(word, 0) != m.load_u64(model, i << 3):
                    m.atomic_add_u64(counts, 0, 1)
                else:
                    m.atomic_add_u64(counts, 56, 1)
                    m.release_u64(word, 0, state)
                    m.store_u64(model, i << 3, state)
                    m.atomic_add_u64(at(me, start, 8), 0, 1)
            if not m.is_null(at(me, start + 4096 * (keys // 512 + 2), 8)):
                m.atomic_add_u64(counts, 8, 1)
            m.atomic_add_u64(counts, 32, rounds)
            return state

        return actor

    return Template("actor_arena", factory, "i64(ptr, ptr, ptr, i64, i64, i64)")


def _stacks(m: Any) -> Any:
    """Nothing can come into it, whatever is tried."""
    lookup = m.symbol("map.0.lookup", "ptr(i64, ptr)")
    update = m.symbol("map.0.update", "i64(i64, ptr, ptr, i64)")
    delete = m.symbol("map.0.delete", "i64(i64, ptr)")
    following = m.symbol("map.0.next_key", "i64(i64, ptr, ptr)")

    def actor(counts, memory, model, me, seed, rounds):  # type: ignore
        key, value = m.gep(m.alloca(8), 0), m.gep(m.alloca(128), 0)
        m.zero(value, 128)
        state = seed
        for _ in range(rounds):
            state = m.add(m.mul(state, 6364136223846793005), 1442695040888963407)
            m.store_u32(key, 0, m.lshr(state, 40))
            if not m.is_null(lookup(me, key)) or following(me, m.null(), value) != -2:
                m.atomic_add_u64(counts, 8, 1)
            if update(me, key, value, 0) != -22 or delete(me, key) >= 0:
                m.atomic_add_u64(counts, 0, 1)
            m.atomic_add_u64(counts, 56, 1)
        m.atomic_add_u64(counts, 32, rounds)
        return state

    return actor


STACKS = Template("actor_stacks", _stacks, "i64(ptr, ptr, ptr, i64, i64, i64)")


def _spec(kind: MapType, keys: int = KEYS, shared: bool = False) -> MapSpec:
    if kind == MapType.ARENA:
        return MapSpec("m", kind, 0, 0, keys // 512 + 1, flags=MapFlag.MMAPABLE)
    if kind == MapType.STACK_TRACE:
        return MapSpec("m", kind, 4, 80, keys)
    if kind in TARGETS:
        return MapSpec("m", kind, 4, 4, keys)
    if kind == MapType.BLOOM_FILTER:
        return MapSpec("m", kind, 0, 16, keys)
    if kind in KEYLESS:
        return MapSpec("m", kind, 0, 16, 1000)
    flags = MapFlag.NO_PREALLOC if kind == MapType.LPM_TRIE else MapFlag(0)
    if shared:  # a worker's share holds all that it writes, and its part of the other process's
        flags, keys = MapFlag.NO_COMMON_LRU, 2 * keys
    return MapSpec("m", kind, 8 if kind == MapType.LPM_TRIE else 4, 16, keys, flags=flags)


def _keys(spec: MapSpec) -> int:
    """That actors have, five words at least left of an arena's last page."""
    if spec.flags & MapFlag.NO_COMMON_LRU:
        return spec.max_entries // 2
    return spec.max_entries * 512 - 8 if spec.type == MapType.ARENA else spec.max_entries


def _compile(one: Map) -> Any:
    kind = MapType(one.spec.type)
    keys = _keys(one.spec)
    template = (_arena(one.spec, keys) if kind == MapType.ARENA else
                STACKS if kind == MapType.STACK_TRACE else
                _keyless(kind) if kind in KEYLESS else _targets(kind, keys) if kind in TARGETS
                else _filter(keys) if kind == MapType.BLOOM_FILTER else _keyed(kind, keys))
    return compile_loops(one, template)[template.name]


def _act(work: Any, me: int, seconds: float, memory: int,
         keys: int) -> tuple[list[int], list[int]]:
    """One actor until the time is over: its counts and its model."""
    counts, model = (ctypes.c_uint64 * 8)(), (ctypes.c_uint64 * keys)()
    until, state = time.monotonic() + seconds, me + 1
    while time.monotonic() < until:
        state = work(ctypes.addressof(counts), memory, ctypes.addressof(model), me, state, 64_000)
    return list(counts), list(model)


def _key(spec: MapSpec, i: int) -> bytes:
    if spec.type == MapType.LPM_TRIE:
        return (32).to_bytes(4, "little") + i.to_bytes(4, "big")
    return i.to_bytes(4, "little")


def run(kind: MapType, seconds: float, keys: int = KEYS, shared: bool = False) -> dict[str, int]:
    """All actors on a map of this family.  Raises AssertionError for what was lost."""
    with (tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
          Map.create(_spec(kind, keys, shared), WORKERS, Path(folder)) as one):
        return _run(kind, one, Path(folder), seconds)


def _run(kind: MapType, one: Map, folder: Path, seconds: float) -> dict[str, int]:
    if kind in TARGETS:
        allow(one, range(1, NUMBERS + 1))
    if kind == MapType.ARENA:
        with one.pages():
            pass  # all are there from now on
    work = _compile(one)
    page = (ctypes.c_uint64 * (16 * WORKERS))()  # workers' memory, as far as a batch needs it
    blocks = []
    for worker in range(WORKERS):
        if one.has_pools:
            block = (ctypes.c_uint64 * 3)(1, *one.line(worker))
            blocks.append(block)
            page[16 * worker + st.W_LINES // 8] = ctypes.addressof(block)
    arguments = "--actor", str(folder / "m"), "--seconds", str(seconds)
    other = subprocess.Popen([sys.executable, "-m", "tests.xdp_runtime.maps.actors", *arguments],
                             stdout=subprocess.PIPE, text=True)
    results: dict[int, tuple[list[int], list[int]]] = {}

    def act(me: int) -> None:
        results[me] = _act(work, me, seconds, ctypes.addressof(page) + 128 * me,
                           _keys(one.spec) + ACTORS)

    threads = [threading.Thread(target=act, args=(me,)) for me in range(WORKERS)]
    for thread in threads:
        thread.start()
    iterated = 0
    while any(thread.is_alive() for thread in threads):
        if kind in (*KEYLESS, MapType.BLOOM_FILTER, MapType.ARENA):
            time.sleep(0.01)
        else:
            iterated += sum(1 for _ in one)
    for thread in threads:
        thread.join()
    text, _ = other.communicate(timeout=600)
    assert other.returncode == 0
    results[WORKERS] = tuple(json.loads(text))
    total = [sum(counts[n] for counts, _ in results.values()) for n in range(8)]
    if kind == MapType.ARENA:
        words = one.memory("pages").cast("Q")
        assert words[0] == total[HITS], "counted"
        assert all(words[1 + i] == results[i % ACTORS][1][i] for i in range(_keys(one.spec)))
        words.release()
    elif kind == MapType.STACK_TRACE:
        assert not list(one)
    elif kind in KEYLESS:
        rest = 0
        while (value := one.pop()) is not None:
            rest += int.from_bytes(value[:8], "little")
        assert (total[PUSHED] - total[POPPED] - rest) % (1 << 64) == 0, "lost"
    elif kind == MapType.BLOOM_FILTER:
        for i in range(one.spec.max_entries):
            inside = one.may_contain(i.to_bytes(16, "little"))
            assert inside or not results[i % ACTORS][1][i], f"value {i}"
    else:
        for i in range(_keys(one.spec)):
            known = results[i % ACTORS][1][i]
            found = one.lookup(_key(one.spec, i))
            if isinstance(found, list):
                found = found[(i % ACTORS) & 3]
            if kind in ARRAYS and known == 0:
                continue
            if kind in TARGETS:
                wanted = known.to_bytes(4, "little") if known else None
            else:
                wanted = i.to_bytes(8, "little") + known.to_bytes(8, "little") if known else None
            assert found == wanted, f"key {i}"
        keys = list(one.keys())
        assert len(keys) == len(set(keys))
        assert len(keys) == len(one)
    early = one.reused_early if one.has_pools else 0
    assert total[LOST] == 0, total
    assert total[WRONG] + total[HELD] == 0, total
    # -ENOMEM: a worker may be without a CPU for longer than the spare elements last
    assert total[REFUSED] <= total[DONE] // 1000 or kind in KEYLESS, total
    assert total[HITS] and total[DONE]
    return {"operations": total[DONE], "hits": total[HITS], "iterated": iterated, "early": early,
            "refused": total[REFUSED], "moved": total[WRONG] + total[HELD]}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*", default=[
        *(kind.name for kind in FAMILIES), *(kind.name + "+shares" for kind in SHARED)])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--actor")
    args = parser.parse_args()
    if args.actor:
        memory = (ctypes.c_uint64 * 16)()
        with Map.open(Path(args.actor)) as one:
            print(json.dumps(_act(_compile(one), WORKERS, args.seconds, ctypes.addressof(memory),
                                  _keys(one.spec) + ACTORS)))
        return 0
    for name in args.families:
        kind, _, shares = name.partition("+")
        found = run(MapType[kind], args.seconds, args.keys, bool(shares))
        print(f"{name}: {found} in {args.seconds:g} s, {os.cpu_count()} CPUs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
