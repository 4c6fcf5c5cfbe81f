"""Entries to and from NumPy arrays."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from tests.xdp_runtime.maps.traces import compiled_map, random_keys
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapFlag, MapSpec, MapType


def filled(one: Map, count: int) -> dict[bytes, object]:
    rng = random.Random(1)
    if one.spec.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
        keys = [struct.pack("<I", n) for n in range(one.spec.max_entries)]
    elif one.spec.type == MapType.LPM_TRIE:
        keys = [struct.pack("<I", rng.randrange(33)) + rng.randbytes(4) for _ in range(count)]
    else:
        keys = random_keys(one.spec, count)
    for key in keys:
        values = [rng.randbytes(one.spec.value_size) for _ in range(one.workers)]
        one[key] = values if one.family.per_cpu else values[0]
    return dict(one.items())


@pytest.mark.parametrize("spec", [
    MapSpec("m", MapType.HASH, 4, 8, 2000), MapSpec("m", MapType.HASH, 13, 5, 2000),
    MapSpec("m", MapType.LRU_HASH, 8, 4, 2000), MapSpec("m", MapType.PERCPU_HASH, 4, 3, 2000),
    MapSpec("m", MapType.ARRAY, 4, 12, 100), MapSpec("m", MapType.PERCPU_ARRAY, 4, 8, 50),
    MapSpec("m", MapType.LPM_TRIE, 8, 8, 2000, flags=MapFlag.NO_PREALLOC),
], ids=lambda s: f"{MapType(s.type).name}-{s.key_size}-{s.value_size}")
def test_there_and_back(spec: MapSpec) -> None:
    with compiled_map(spec, 3) as one, compiled_map(spec, 3) as other:
        items = filled(one, 1500)
        keys, values = one.to_numpy()
        assert len(keys) == len(values) == len(items)
        for key, value in zip(keys, values, strict=True):
            expected = items[key.tobytes()]
            if isinstance(expected, list):
                expected = b"".join(expected)
            assert value.tobytes() == expected
        assert other.from_numpy(keys, values) == len(keys)
        assert dict(other.items()) == items


def test_numbers_and_refusals() -> None:
    with compiled_map(MapSpec("m", MapType.HASH, 4, 8, 10)) as one:
        keys = np.arange(20, dtype=np.uint32)
        with pytest.raises(OSError, match="after 10 entries"):
            one.from_numpy(keys, keys.astype(np.uint64) * 3)
        read_keys, read_values = one.to_numpy()
        assert read_keys.dtype == np.uint32 and read_values.dtype == np.uint64
        assert sorted(read_keys) == list(range(10))
        assert (read_values == read_keys * 3).all()
        with pytest.raises(ValueError, match="76 bytes"):
            one.from_numpy(keys[:10], keys[:19])
        one.freeze()
        with pytest.raises(PermissionError):
            one.from_numpy(keys[:1], read_values[:1])


def test_empty() -> None:
    with compiled_map(MapSpec("m", MapType.HASH, 4, 8, 10)) as one:
        keys, values = one.to_numpy()
        assert keys.shape == values.shape == (0,)
    with compiled_map(MapSpec("q", MapType.QUEUE, 0, 8, 10)) as one, pytest.raises(OSError):
        one.to_numpy()
