from __future__ import annotations

import pytest

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
from xdp_runtime.errors import LoadError
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapFlag, MapSpec, MapType

SHAPES = [(4, 4), (8, 16), (20, 24), (36, 7)]


def key(number: int) -> bytes:
    return number.to_bytes(8, "little")


def use(one: Map, number: int) -> bool:
    """A lookup as by a program."""
    return bool(one._operation("lookup")(0, key(number)))


@pytest.mark.parametrize(("key_size", "value_size"), SHAPES)
def test_same_as_model_while_it_fits(key_size: int, value_size: int) -> None:
    spec = MapSpec("l", MapType.LRU_HASH, key_size, value_size, 64)
    compare(spec, Model(spec), trace(spec, random_keys(spec, 64), 1, 5000))


@pytest.mark.parametrize(("key_size", "value_size"), SHAPES)
@pytest.mark.parametrize("flags", [0, MapFlag.NO_COMMON_LRU])
@pytest.mark.root
@needs_bpf()[1]
def test_same_as_kernel_while_it_fits(key_size: int, value_size: int, flags: int) -> None:
    spec = MapSpec("l", MapType.LRU_HASH, key_size, value_size, 8192, flags=flags)
    with KernelMap(spec) as kernel:  # which evicts long before it is full
        compare(spec, kernel, trace(spec, random_keys(spec, 64), 1, 3000))


@pytest.mark.parametrize("entries", [1, 2, 7, 64, 1000])
def test_full_makes_room(entries: int) -> None:
    with compiled_map(MapSpec("l", MapType.LRU_HASH, 8, 8, entries)) as one:
        for n in range(3 * entries):
            one[key(n)] = key(n)
            assert one[key(n)] == key(n)
            assert len(one) == min(n + 1, entries)
        # without lookups it is first in, first out
        assert set(one) == {key(n) for n in range(2 * entries, 3 * entries)}
        for n in range(2 * entries, 3 * entries):  # updating what is there drops nothing
            assert apply(one, Step("update", key(n), bytes(8), 2)) == 0
        assert len(one) == entries
        assert apply(one, Step("update", key(0), bytes(8), 2)) == -2
        assert apply(one, Step("update", key(2 * entries), bytes(8), 1)) == -17
        assert apply(one, Step("update", key(0), bytes(8), 3)) == -22
        assert len(one) == entries


def test_used_entries_stay() -> None:
    with compiled_map(MapSpec("l", MapType.LRU_HASH, 8, 8, 1000)) as one:
        for n in range(1000):
            one[key(n)] = key(n)
        used = range(0, 1000, 10)
        for flood in range(20):  # 10 000 new keys while every tenth old one is in use
            assert all(use(one, n) for n in used)
            for n in range(500):
                one[key(10_000 + flood * 500 + n)] = bytes(8)
        assert all(key(n) in one for n in used)
        assert not any(key(n) in one for n in range(1000) if n % 10)


def test_reading_by_user_space_is_no_use() -> None:
    with compiled_map(MapSpec("l", MapType.LRU_HASH, 8, 8, 100)) as one:
        for n in range(100):
            one[key(n)] = key(n)
        assert use(one, 1) and one[key(0)] == key(0) and dict(one.items())
        for n in range(50):
            one[key(1000 + n)] = bytes(8)
        assert key(0) not in one and key(1) in one


def test_all_used_still_makes_room() -> None:
    with compiled_map(MapSpec("l", MapType.LRU_HASH, 8, 8, 5000)) as one:
        for n in range(5000):
            one[key(n)] = key(n)
        for n in range(5000):
            assert use(one, n)
        for n in range(5000, 5100):
            one[key(n)] = key(n)
            assert key(n) in one and len(one) == 5000
        # of the new ones hardly any was among the dropped
        assert sum(key(n) in one for n in range(5000, 5100)) >= 98


def test_a_deleted_entry_is_not_evicted_again() -> None:
    with compiled_map(MapSpec("l", MapType.LRU_HASH, 8, 8, 50)) as one:
        for n in range(2000):
            one[key(n)] = key(n)
            if n > 10 and n % 3 == 0 and key(n - 10) in one:
                del one[key(n - 10)]
            assert len(one) == len(list(one)) <= 50


def test_no_prealloc_is_refused() -> None:
    with pytest.raises(LoadError, match="NO_PREALLOC"):
        Map.create(MapSpec("l", MapType.LRU_HASH, 4, 4, 8, flags=MapFlag.NO_PREALLOC), 1)


def test_hammer() -> None:
    """Four threads that evict each other's keys: no value torn or foreign."""
    spec = MapSpec("l", MapType.LRU_HASH, hammer.KEY_BYTES, hammer.VALUE_BYTES, 200)
    with Map.create(spec, 1, seed=5) as one:
        counts, _ = hammer.hammer(one, keys=600, stable=0, rounds=5_000_000)
        assert counts[hammer.LOST] == counts[hammer.WRONG] == counts[hammer.REFUSED] == 0, counts
        assert counts[hammer.HITS] and counts[hammer.MISSES] and counts[hammer.DELETES]
        known = {hammer.key_of(i): i for i in range(600)}
        items = list(one.items())
        assert all(hammer.is_right(known[k], value) for k, value in items)  # type: ignore
        assert len(items) == len(dict(items)) == len(one) <= 200
