"""lookup_and_delete: the same values, misses and refusals as in the kernel."""

from __future__ import annotations

import random

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps.traces import compiled_map, random_keys
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.limits import ENOTSUPP
from xdp_runtime.object import MapFlag, MapSpec, MapType

HASHES = (MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH)
OTHERS = (MapSpec("m", MapType.ARRAY, 4, 4, 8),
          MapSpec("m", MapType.LPM_TRIE, 8, 4, 8, flags=MapFlag.NO_PREALLOC),
          MapSpec("m", MapType.PERCPU_ARRAY, 4, 4, 8), MapSpec("m", MapType.DEVMAP_HASH, 4, 4, 8))


@pytest.mark.parametrize("kind", HASHES, ids=lambda kind: kind.name)
@pytest.mark.root
@needs_bpf()[1]
def test_as_the_kernel(kind: MapType) -> None:
    spec = MapSpec("m", kind, 12, 13, 1000)
    keys = random_keys(spec, 40)
    rng = random.Random(kind)
    hits = 0
    with KernelMap(spec) as kernel, compiled_map(spec, 3) as ours:
        for _ in range(2000):
            key, value = rng.choice(keys), rng.randbytes(13)
            if rng.random() < 0.5:
                kernel.update(key, value)
                ours.update(key, [value] * 3 if ours.family.per_cpu else value)
                continue
            theirs, mine = kernel.lookup_and_delete(key), ours.lookup_and_delete(key)
            assert (theirs is None) == (mine is None)
            if theirs is not None:
                hits += 1
                for one in mine if isinstance(mine, list) else [mine]:
                    assert one == theirs[:13]
        assert sorted(kernel.keys()) == sorted(ours.keys()) and len(ours) == len(list(ours))
    assert hits > 100


@pytest.mark.parametrize("spec", OTHERS, ids=lambda spec: spec.type.name)
@pytest.mark.root
@needs_bpf()[1]
def test_refused_as_by_the_kernel(spec: MapSpec) -> None:
    key = bytes([8, 0, 0, 0, 1, 0, 0, 0])[:spec.key_size]
    with KernelMap(spec) as kernel, compiled_map(spec) as ours:
        for one in (kernel, ours):
            with pytest.raises(OSError) as caught:
                one.lookup_and_delete(key)
            assert caught.value.errno == ENOTSUPP
