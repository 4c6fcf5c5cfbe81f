"""Who looks at a map from outside while threads put in and take out: each key once, none missed."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.xdp_runtime.maps.loops import compile_loops
from tests.xdp_runtime.maps.test_lpm import a_spec, prefixes
from tests.xdp_runtime.maps.traces import compiled_map
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.template import Template

KEYS, STAY = 3000, 500
KINDS = {kind: MapSpec("m", kind, 8, 16, 2 * KEYS, flags=(
    MapFlag.NO_PREALLOC if kind == MapType.LPM_TRIE else 0)) for kind in (
        MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH,
        MapType.LPM_TRIE)}


def _churn(kind: MapType) -> Template:
    trie = kind == MapType.LPM_TRIE

    def factory(m: Any) -> Any:
        update = m.symbol("map.0.update", "i64(i64, ptr, ptr, i64)")
        delete = m.symbol("map.0.delete", "i64(i64, ptr)")

        def readers_churn(over, seed):  # type: ignore
            """Keys below STAY are only updated; until told that it is over."""
            key, value = m.gep(m.alloca(8), 0), m.gep(m.alloca(16), 0)
            state = seed
            while m.relaxed_u64(over, 0) == 0:
                state = m.add(m.mul(state, 6364136223846793005), 1442695040888963407)
                i = m.lshr(state, 33) % KEYS
                m.store_u64(key, 0, i)
                if trie:
                    m.store_u32(key, 0, 32)
                    m.store_u32(key, 4, m.swap32(i))
                m.store_u64(value, 0, i)
                m.store_u64(value, 8, ~i)
                if i < STAY or m.lshr(state, 8) & 1:
                    update(0, key, value, 0)
                else:
                    delete(0, key)
            return 0

        return readers_churn

    return Template(f"readers_churn_{kind.name.lower()}", factory, "i64(ptr, i64)")


def _key(one: Map, i: int) -> bytes:
    if one.spec.type == MapType.LPM_TRIE:
        return (32).to_bytes(4, "little") + i.to_bytes(4, "big")
    return i.to_bytes(8, "little")


def _numbers(one: Map, keys: Iterator[bytes]) -> list[int]:
    if one.spec.type == MapType.LPM_TRIE:
        return [int.from_bytes(key[4:], "big") for key in keys]
    return [int.from_bytes(key, "little") for key in keys]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_all_that_stays_once(kind: MapType) -> None:
    """next_key, which begins anew behind what has gone, would hardly come to an end here."""
    with compiled_map(KINDS[kind]) as one:
        churn = _churn(kind)
        work = compile_loops(one, churn)[churn.name]
        over = np.zeros(1, np.uint64)
        threads = [threading.Thread(target=work, args=(over.ctypes.data, 7 + n)) for n in range(2)]
        for thread in threads:
            thread.start()
        try:
            while not all(_key(one, i) in one for i in range(STAY)):
                pass
            one.to_numpy()  # compiled now
            for _ in range(5):
                columns, _ = one.to_numpy()
                rows = columns.view(np.uint8).reshape(len(columns), -1)
                for found in (_numbers(one, iter(one)), _numbers(one, (k for k, _ in one.items())),
                              _numbers(one, (row.tobytes() for row in rows))):
                    counted = Counter(found)
                    assert max(counted.values()) == 1
                    assert counted.keys() >= set(range(STAY))
        finally:
            over[0] = 1
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("seed", range(12))
def test_behind_a_prefix_that_has_gone(seed: int) -> None:
    """The walk over a trie goes on where it was: as if the prefix were still there."""
    rng = random.Random(seed)
    spec = a_spec(rng.choice((1, 2, 4, 16)), entries=(64, 300, 5000)[seed % 3])
    with compiled_map(spec) as one:
        kept = prefixes(spec, 40, seed, too_long=False)
        for key in kept[:rng.choice((0, 1, 5, 40))]:
            one[key] = bytes(8)
        after = one._operation("after")
        for key in prefixes(spec, 60, seed + 100, too_long=False):
            found = bytearray(spec.key_size)
            view = np.frombuffer(found, np.uint8)
            status = after(0, key, view.ctypes.data)
            was_there = any(_bits(other) == _bits(key) for other in one)
            if not was_there:
                one[key] = bytes(8)
            wanted = one.next_key(key)
            if not was_there:
                del one[key]
            assert (bytes(found) if not status else None) == wanted, key.hex()


def _bits(key: bytes) -> tuple[int, int]:
    length = int.from_bytes(key[:4], "little")
    return length, int.from_bytes(key[4:], "big") >> 8 * len(key[4:]) - length
