from __future__ import annotations

import math
import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps import hammer
from tests.xdp_runtime.maps.traces import (
    Model,
    Step,
    apply,
    compare,
    compiled_map,
    random_keys,
    trace,
)
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.errors import LoadError
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.hash_table import stride
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.pool import COUNT, FRESH, LIMBO, RIPE, YOUNG, places
from xdp_runtime.object import MapFlag, MapSpec, MapType

E2BIG, EEXIST, ENOENT, EINVAL = -7, -17, -2, -22
# every kind of key: part of a word, words with and without a rest, long enough for the hash first
SHAPES = [(1, 1), (3, 5), (4, 8), (6, 4), (8, 16), (12, 3), (16, 40), (20, 24), (36, 7), (64, 8),
          (77, 100), (512, 1)]


def shape(spec: MapSpec) -> str:
    return f"{spec.type.name}-{spec.key_size}-{spec.value_size}-{spec.flags:#x}"  # type: ignore


SPECS = [MapSpec("h", MapType.HASH, key, value, 30) for key, value in SHAPES]


@pytest.mark.parametrize("spec", SPECS, ids=shape)
def test_same_as_model(spec: MapSpec) -> None:
    keys = random_keys(spec, 45)  # more than fit
    compare(spec, Model(spec), trace(spec, keys, 1, 5000))
    compare(spec, Model(spec), trace(spec, keys, 2, 5000, deletes=0.05))


@pytest.mark.parametrize("spec", SPECS, ids=shape)
@pytest.mark.root
@needs_bpf()[1]
def test_same_as_kernel(spec: MapSpec) -> None:
    # not more keys than fit: a full table in the kernel has a few spare elements per CPU
    keys = random_keys(spec, 30)
    with KernelMap(spec) as kernel:
        compare(spec, kernel, trace(spec, keys, 3, 3000))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("uuudl"), st.integers(0, 11), st.integers(0, 255),
                          st.integers(0, 3)), max_size=120))
def test_any_trace_is_the_models(steps: list[tuple[str, int, int, int]]) -> None:
    spec = MapSpec("h", MapType.HASH, 4, 1, 6, flags=MapFlag.ZERO_SEED)
    names = {"u": "update", "d": "delete", "l": "lookup"}
    compare(spec, Model(spec), (
        Step(names[kind], struct.pack("<I", key), bytes([value]), flags)
        for kind, key, value, flags in steps))


@pytest.mark.parametrize("entries", [1, 2, 3, 64, 1000])
def test_full(entries: int) -> None:
    with compiled_map(MapSpec("h", MapType.HASH, 8, 16, entries)) as one:
        keys = [i.to_bytes(8, "big") for i in range(entries + 1)]
        for key in keys[:-1]:
            one[key] = key * 2
        assert apply(one, Step("update", keys[-1], bytes(16))) == E2BIG
        for _ in range(3):  # an update of what is there succeeds, and takes no room for good
            for key in keys[:-1]:
                assert apply(one, Step("update", key, b"x" * 16, 2)) == 0
        assert apply(one, Step("update", keys[-1], bytes(16))) == E2BIG
        del one[keys[0]]
        one[keys[-1]] = bytes(16)
        assert len(one) == entries and set(one) == set(keys[1:])


def test_codes() -> None:
    with compiled_map(MapSpec("h", MapType.HASH, 4, 4, 2)) as one:
        key, value = b"abcd", b"1234"
        assert apply(one, Step("delete", key)) == ENOENT
        assert apply(one, Step("update", key, value, 2)) == ENOENT
        assert apply(one, Step("update", key, value, 1)) == 0
        assert apply(one, Step("update", key, value, 1)) == EEXIST
        assert apply(one, Step("update", key, value, 3)) == EINVAL
        assert apply(one, Step("lookup", key)) == value


def test_python_view() -> None:
    with compiled_map(MapSpec("h", MapType.HASH, 4, 4, 8)) as one:
        one[b"aaaa"] = b"1111"
        assert b"aaaa" in one and b"bbbb" not in one and one[b"aaaa"] == b"1111"
        with pytest.raises(KeyError):
            one[b"bbbb"]
        with pytest.raises(KeyError):
            del one[b"bbbb"]
        with pytest.raises(FileNotFoundError):
            one.delete(b"bbbb")
        with pytest.raises(FileExistsError):
            one.update(b"aaaa", b"2222", 1)
        with pytest.raises(ValueError, match="a key has 4 bytes, got 3"):
            one.lookup(b"aaa")
        with pytest.raises(ValueError, match="a value has 4 bytes, got 5"):
            one.update(b"aaaa", b"22222")


def test_iteration() -> None:
    with compiled_map(MapSpec("h", MapType.HASH, 4, 4, 500), workers=2) as one:
        assert one.next_key() is None and list(one) == []
        keys = random_keys(one.spec, 500)
        for key in keys:
            one[key] = key
        assert sorted(one) == keys
        assert one.next_key(b"none") == one.next_key() == next(iter(one))
        # updates, which move elements, do not disturb it; neither does deleting the current key
        seen = []
        for n, key in enumerate(one):
            seen.append(key)
            for other in random.Random(n).sample(keys, 20):
                if other in one:
                    one[other] = b"new!"
            if n % 2:
                del one[key]
        assert sorted(seen) == keys and len(one) == 250


def test_iteration_in_long_chains() -> None:
    """More keys in one bucket than are fetched at a time, found by trying."""
    spec = MapSpec("h", MapType.HASH, 4, 4, 300, flags=MapFlag.ZERO_SEED)
    with compiled_map(spec) as one:
        buckets = one.memory("buckets")
        chosen: list[bytes] = []
        number = 0
        while len(chosen) < 270:  # keys whose first bucket is number 5
            key = struct.pack("<I", number)
            one[key] = key
            if buckets[5 * 8:5 * 8 + 4] != bytes(4):
                chosen.append(key)
            del one[key]
            number += 1
        for key in chosen:
            one[key] = key[::-1]
        walk, at = [], one.next_key()
        while at is not None:
            walk.append(at)
            at = one.next_key(at)
        assert walk == sorted(chosen, key=lambda k: int.from_bytes(k, "little"))
        assert sorted(one) == sorted(chosen)
        assert all(one[key] == key[::-1] for key in chosen)
        for key in chosen[::2]:
            del one[key]
        assert sorted(one) == sorted(chosen[1::2])
        buckets.release()


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def test_fresh_memory_stays_sparse() -> None:
    spec = MapSpec("h", MapType.HASH, 8, 48, 1_000_000)
    before = resident_pages()
    with compiled_map(spec) as one:
        for i in range(10):
            one[i.to_bytes(8, "little")] = bytes(48)
        pages = resident_pages() - before
        _, _, elements = one.regions
    assert elements.size_bytes > 60 << 20
    assert pages * os.sysconf("SC_PAGESIZE") < 30 << 20


def test_small_elements_do_not_straddle_lines() -> None:
    for key, value in SHAPES:
        assert stride(key, value) % 8 == 0
        assert stride(key, value) > 64 or 64 % stride(key, value) == 0


@pytest.mark.parametrize("spec", [
    MapSpec("m", MapType.HASH, 0, 4, 1), MapSpec("m", MapType.HASH, 4, 0, 1),
    MapSpec("m", MapType.HASH, 4, 4, 0), MapSpec("m", MapType.HASH, 4, 1 << 22, 1),
    MapSpec("m", MapType.HASH, 4, 4, 1, flags=1 << 20),
    MapSpec("m", MapType.HASH, 4, 4, 1, flags=MapFlag.MMAPABLE),
    MapSpec("m", MapType.HASH, 4, 4, 1, flags=MapFlag.NO_COMMON_LRU),
    MapSpec("m", MapType.HASH, 4, 4, 1, flags=MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG),
    MapSpec("m", MapType.LRU_HASH, 4, 4, 1, flags=MapFlag.NO_PREALLOC),
    MapSpec("m", MapType.LRU_HASH, 4, 4, 0),
], ids=shape)
@pytest.mark.root
@needs_bpf()[1]
def test_refused_as_by_the_kernel(spec: MapSpec) -> None:
    with pytest.raises(LoadError):
        KernelMap(spec)
    with pytest.raises(LoadError):
        Map.create(spec, 1)


@pytest.mark.parametrize("flags", [0, MapFlag.NO_PREALLOC, MapFlag.ZERO_SEED, MapFlag.RDONLY_PROG])
@pytest.mark.root
@needs_bpf()[1]
def test_taken_as_by_the_kernel(flags: int) -> None:
    spec = MapSpec("m", MapType.HASH, 4, 4, 8, flags=flags)
    KernelMap(spec).close()
    Map.create(spec, 1).close()


def test_too_long_a_key_is_refused() -> None:
    with pytest.raises(LoadError, match="key size is 513, must be 1 to 512"):
        Map.create(MapSpec("m", MapType.HASH, 513, 4, 1), 1)


def test_seeds() -> None:
    """The seed orders the keys; two maps differ, BPF_F_ZERO_SEED ones do not."""
    orders = []
    for flags in (0, 0, MapFlag.ZERO_SEED, MapFlag.ZERO_SEED):
        with compiled_map(MapSpec("h", MapType.HASH, 4, 4, 64, flags=flags)) as one:
            for key in random_keys(one.spec, 64):
                one[key] = key
            orders.append(tuple(one))
    assert orders[0] != orders[1] != orders[2] == orders[3]


@pytest.mark.parametrize("key_size", [2, 4, 8, 13, 16, 20, 36])
def test_hash_spreads_similar_keys(key_size: int) -> None:
    """Counting keys, and keys that differ in few bits anywhere, fill buckets as random ones do."""
    spec = MapSpec("h", MapType.HASH, key_size, 4, 4096)
    for seed in range(12):
        with Map.create(spec, 1, seed=random.Random(seed).getrandbits(128)) as one:
            compile_operations(one)
            for n in range(3000):
                key = bytearray(n.to_bytes(key_size, "big" if seed % 2 else "little"))
                if seed >= 6:
                    key = bytearray(key_size)
                    key[n % key_size] = n // key_size & 255
                    key[(n + 1) % key_size] ^= n // key_size >> 8
                one[bytes(key)] = bytes(4)
            words = one.memory("buckets")
            used = sum(words[i:i + 4] != bytes(4) for i in range(0, 8 * 8192, 8))
            words.release()
            expected = 8192 * (1 - math.exp(-len(one) / 8192))
            assert abs(used - expected) < 4.5 * math.sqrt(8192) / 2, (seed, used, expected)


@pytest.mark.parametrize(("entries", "keys", "stable"), [(48, 96, 24), (1024, 1500, 300),
                                                       (8192, 14000, 3000)])
def test_hammer(entries: int, keys: int, stable: int) -> None:
    """Four threads on one table: no key lost, no value torn or foreign, nothing leaked."""
    spec = MapSpec("h", MapType.HASH, hammer.KEY_BYTES, hammer.VALUE_BYTES, entries)
    with Map.create(spec, 1, seed=5) as one:
        counts, seen = hammer.hammer(one, keys, stable, rounds=5_000_000)
        assert counts[hammer.LOST] == counts[hammer.WRONG] == 0, counts
        assert counts[hammer.HITS] and counts[hammer.MISSES] and counts[hammer.DELETES]
        assert counts[hammer.REFUSED], "the table was never full"
        wanted = {hammer.key_of(i) for i in range(stable)}
        assert seen and all(wanted <= set(keys_seen) for keys_seen in seen)
        known = {hammer.key_of(i): i for i in range(keys)}
        items = list(one.items())
        assert all(hammer.is_right(known[key], value) for key, value in items)  # type: ignore
        assert len(items) == len(dict(items)) == len(one)
        size = stride(hammer.KEY_BYTES, hammer.VALUE_BYTES)
        span = int(one.family.parameters(spec, 1)[8]) & 0xFFFFFFFF
        head = one.memory("head")
        total = 0
        for number, place in enumerate(places(head)):
            count, fresh, *waiting = (int.from_bytes(head[place + at:place + at + 4], "little")
                                      for at in (COUNT, FRESH, RIPE, LIMBO, YOUNG))
            used = fresh - number * span
            assert used // (size // 8) - 1 == count + sum(waiting)
            assert used <= span + size // 8
            total += count
        head.release()
        assert total == len(items)
