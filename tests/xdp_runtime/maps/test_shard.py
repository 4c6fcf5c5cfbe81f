"""Shards of large hashes: exactly max_entries fit, whatever was where before."""

from __future__ import annotations

import ctypes
import itertools
import random
import threading

import numpy as np
import pytest

from tests.xdp_runtime.maps.test_lock import check, dead_pid
from tests.xdp_runtime.maps.traces import compiled_map
from xdp_runtime.maps.batch import BatchError
from xdp_runtime.maps.lock import LOCK
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.pool import LINES, places
from xdp_runtime.maps.shard import LEFT, SCARCE, capacity_of, shards_of
from xdp_runtime.object import MapFlag, MapSpec, MapType

ENTRIES = 1 << 14
PLAIN = (MapType.HASH, MapType.PERCPU_HASH)
LRU = (MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)


def spec_of(kind: MapType, entries: int = ENTRIES, flags: int = 0) -> MapSpec:
    return MapSpec("m", kind, 4, 8, entries, flags=flags)


def insert(one: Map, keys: np.ndarray) -> int:
    """How many went in before the first that was refused."""
    shape = (len(keys), one.workers) if one.family.per_cpu else (len(keys),)
    values = np.broadcast_to(keys.astype(np.uint64).reshape(-1, *([1] * (len(shape) - 1))), shape)
    try:
        return one.update_batch(keys, np.ascontiguousarray(values))
    except BatchError as full:
        assert full.errno == 7
        return full.done


def numbers(rng: random.Random, count: int) -> np.ndarray:
    return np.array(rng.sample(range(1 << 32), count), dtype=np.uint32)


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
@pytest.mark.parametrize("entries", [2048, 5000, ENTRIES, 100_001])
def test_exactly_as_many_as_there_may_be(kind: MapType, entries: int) -> None:
    rng = random.Random(entries)
    with compiled_map(spec_of(kind, entries), 2) as one:
        assert len(places(one.memory("head"))) == shards_of(entries) > 1
        for _ in range(3):
            keys = numbers(rng, entries + 10)
            assert insert(one, keys) == entries == len(one)
            some = rng.sample(list(range(entries)), 700)
            assert one.delete_batch(keys[some]) == 700
            assert insert(one, numbers(rng, 710)) == 700
            check(one)
            part = one.lookup_and_delete_batch(None, entries)
            assert len(part) == entries and len(one) == 0


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
def test_nearly_full(kind: MapType) -> None:
    """One by one around the limit, from one end of the table to the other."""
    rng = random.Random(3)
    with compiled_map(spec_of(kind, 2048)) as one:
        keys = [key.tobytes() for key in numbers(rng, 2048)]
        for key in keys:
            one[key] = [bytes(8)] if one.family.per_cpu else bytes(8)
        for _ in range(3000):
            new = rng.randbytes(4)
            if new in one:
                continue
            with pytest.raises(OSError, match=r"Errno 7\]"):
                one[new] = [bytes(8)] if one.family.per_cpu else bytes(8)
            del one[keys.pop(rng.randrange(len(keys)))]
            one[new] = [bytes(8)] if one.family.per_cpu else bytes(8)
            keys.append(new)
        assert sorted(one) == sorted(keys)
        check(one)


@pytest.mark.parametrize("kind", LRU, ids=lambda kind: kind.name)
def test_lru_is_full_before_it_drops(kind: MapType) -> None:
    rng = random.Random(4)
    with compiled_map(spec_of(kind, 5000), 2) as one:
        keys = numbers(rng, 20_000)
        assert insert(one, keys[:5000]) == 5000 == len(one)
        assert set(one) == {key.tobytes() for key in keys[:5000]}
        assert insert(one, keys[5000:]) == 15_000
        assert len(one) == 5000
        check(one)
        first = b"".join(sorted(one)[:1200])
        assert one.delete_batch(np.frombuffer(first, np.uint32)) == 1200
        assert insert(one, numbers(rng, 1200)) == 1200 and len(one) == 5000


@pytest.mark.parametrize("kind", LRU, ids=lambda kind: kind.name)
def test_a_shard_without_entries_lets_others_drop(kind: MapType) -> None:
    with compiled_map(spec_of(kind, 2048)) as one:
        rng = random.Random(5)
        insert(one, numbers(rng, 6000))
        part = one.lookup_batch(None, 2048)
        half = part.keys[:len(part) // 2 - 100]  # by bucket: nearly all of the first shard
        one.delete_batch(half)
        while len(one) < 2048:
            insert(one, numbers(rng, 100))
        first = [key.tobytes() for key in one.lookup_batch(None, 2048).keys]
        one.delete_batch(np.frombuffer(b"".join(first), np.uint32))
        assert insert(one, numbers(rng, 5000)) == 5000 and len(one) == 2048
        check(one)


def test_writers_at_the_limit() -> None:
    """Four threads keep a table full: never more than may be, and nothing is lost of it."""
    with compiled_map(spec_of(MapType.HASH, 4096)) as one:
        stop = threading.Event()
        refused = [0] * 4
        one.update_batch(np.zeros(1, np.uint32), np.zeros(1, np.uint64))  # compiled
        one.delete_batch(np.zeros(1, np.uint32))

        def write(me: int) -> None:
            rng = random.Random(me)
            own: list[int] = []
            fresh = itertools.count(me, 4)
            while not stop.is_set():
                keys = np.array([next(fresh) for _ in range(64)], np.uint32)
                done = insert(one, keys)
                refused[me] += done < len(keys)
                own += [int(key) for key in keys[:done]]
                gone = np.array([own.pop(rng.randrange(len(own)))
                                 for _ in range(min(len(own), rng.randrange(70)))], np.uint32)
                assert one.delete_batch(gone) == len(gone)
            mine[me] = own

        mine: dict[int, list[int]] = {}
        threads = [threading.Thread(target=write, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        stop.wait(4)
        stop.set()
        for thread in threads:
            thread.join()
        assert all(refused) and len(mine) == 4
        wanted = sorted(key for own in mine.values() for key in own)
        assert sorted(int.from_bytes(key, "little") for key in one) == wanted
        check(one)
        free = one.spec.max_entries - len(one)
        assert insert(one, np.arange(free + 3, dtype=np.uint32) + (1 << 31)) == free


def test_who_dies_loses_no_room() -> None:
    """A process that died between two numbers: after its shard is mended all fit again."""
    rng = random.Random(9)
    with compiled_map(spec_of(MapType.HASH, 4096)) as one:
        keys = numbers(rng, 4096)
        assert insert(one, keys) == 4096 and insert(one, numbers(rng, 1)) == 0
        head = one.memory("head")
        left = ctypes.c_uint32.from_buffer(head, LEFT)
        scarce = ctypes.c_uint32.from_buffer(head, SCARCE)
        one.delete_batch(keys[:300])
        assert scarce.value == 1 and left.value == 300
        left.value = 290  # as if it had taken ten
        for place in places(head):
            ctypes.c_uint32.from_buffer(head, place + LOCK).value = dead_pid()
        del left, scarce
        assert insert(one, numbers(rng, 400)) == 300
        check(one)


def test_layout() -> None:
    """Shards' lines are apart from each other, from the workers' and from those that all read."""
    for entries, workers in ((2048, 1), (1 << 20, 3), (1 << 20, 4)):
        with Map.create(spec_of(MapType.HASH, entries), workers) as one:
            found = places(one.memory("head"))
            lines = {(place + at) // 64 for place in found for at in (LOCK, 128)}
            assert len(lines) == 2 * len(found)
            assert all((place + LOCK) % 128 == 0 for place in found)
            assert min(lines) >= (LINES + 64 * (workers + 1)) // 64
            assert (max(lines) + 1) * 64 <= one.family.regions(one.spec, workers)[0].size_bytes
    for entries in (1, 2047, 2048, 3000, 1 << 20, 1 << 30):
        shards = shards_of(entries)
        assert shards & (shards - 1) == 0 and shards * capacity_of(entries, shards) >= entries
    zero = spec_of(MapType.HASH, 1 << 20, MapFlag.ZERO_SEED)
    with Map.create(zero, 1) as one:
        assert places(one.memory("head")) == [0]
