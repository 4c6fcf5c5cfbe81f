"""What is freed stays as it was until every worker has ended its batch."""

from __future__ import annotations

import ctypes

import pytest

from tests.xdp_runtime.maps import actors, ring_actors
from tests.xdp_runtime.maps.traces import compiled_map
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.pool import EPOCH, spare
from xdp_runtime.object import MapFlag, MapSpec, MapType

SPECS = [MapSpec("h", MapType.HASH, 8, 8, 4), MapSpec("l", MapType.LRU_HASH, 8, 8, 4),
         MapSpec("t", MapType.LPM_TRIE, 8, 8, 4, flags=MapFlag.NO_PREALLOC)]


def key_of(spec: MapSpec, i: int) -> bytes:
    head = 32 if spec.type == MapType.LPM_TRIE else 7
    return head.to_bytes(4, "little") + i.to_bytes(4, "big")


def address(one: Map, key: bytes) -> int:
    found = one._operation("peek")(0, key)
    assert found
    return int(found)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.type.name)
def test_a_batch_keeps_what_is_freed(spec: MapSpec) -> None:
    with compiled_map(spec, workers=3) as one:
        line, epoch = (ctypes.c_uint64.from_address(where) for where in one.line(2))
        one[key_of(spec, 0)] = b"heldheld"
        held = address(one, key_of(spec, 0))
        line.value = epoch.value  # worker 2 begins a batch, and finds it
        del one[key_of(spec, 0)]
        used = set()
        for i in range(3000):
            one[key_of(spec, 1)] = i.to_bytes(8, "little")
            used.add(address(one, key_of(spec, 1)))
        assert held not in used and ctypes.string_at(held, 8) == b"heldheld"
        line.value = 0  # and ends it
        for i in range(3000):
            one[key_of(spec, 1)] = i.to_bytes(8, "little")
            used.add(address(one, key_of(spec, 1)))
        assert held in used
        assert one.reused_early == 0


def test_without_batches_memory_is_reused_soon() -> None:
    with compiled_map(SPECS[0]) as one:
        used = set()
        for i in range(5000):
            one[key_of(SPECS[0], 1)] = i.to_bytes(8, "little")
            used.add(address(one, key_of(SPECS[0], 1)))
        assert len(used) < 200


def test_more_than_there_is_in_one_batch() -> None:
    """As in the kernel an update of a key that exists never fails; but it is told."""
    spec = MapSpec("h", MapType.HASH, 8, 1 << 16, 2)
    with compiled_map(spec) as one:
        line, epoch = (ctypes.c_uint64.from_address(where) for where in one.line(0))
        line.value = epoch.value
        for i in range(spare(1 << 16) + 100):
            one[key_of(spec, 1)] = i.to_bytes(8, "little") * (1 << 13)
        assert one.reused_early > 0
        assert one.memory("head")[EPOCH] >= 1
        assert one[key_of(spec, 1)][:8] == i.to_bytes(8, "little")


@pytest.mark.parametrize("kind", actors.FAMILIES, ids=lambda kind: kind.name)
def test_workers_and_another_process_lose_nothing(kind: MapType) -> None:
    found = actors.run(kind, 1.0)
    assert found["operations"] > 100_000


@pytest.mark.parametrize("kind", ring_actors.FAMILIES, ids=lambda kind: kind.name)
def test_records_arrive_once_and_in_order(kind: MapType) -> None:
    assert ring_actors.run(kind, 1.0)["records"] > 100
