"""Every type with every flag and absurd sizes: made, or refused with the kernel's errno."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import pytest

from tests.privileges import needs_bpf
from xdp_runtime import bpf_syscall
from xdp_runtime.maps import FAMILIES
from xdp_runtime.maps.limits import FLAGS, refusal
from xdp_runtime.object import MapFlag, MapSpec, MapType

KEYLESS = (MapType.QUEUE, MapType.STACK, MapType.BLOOM_FILTER)
OUTER = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
HASHES = (MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH,
          MapType.HASH_OF_MAPS)
SIZES = [0, 1, 3, 4, 5, 8, 12, 13, 256, 260, 261, 512, 513, 4096, 32760, 32769, 65536,
         (1 << 22) - 64, (1 << 22) - 53, (1 << 22) - 52, (1 << 22) - 48, 1 << 22,
         (1 << 22) + 1,
         (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
_FLAGS_KNOWN = [1 << bit for bit in range(20)]  # all that the kernel has names for, and more
FLAG_SETS = [1 << bit for bit in range(32)] + [
    sum(some) for some in combinations(_FLAGS_KNOWN, 2)]


def plain(kind: MapType) -> MapSpec:
    if kind in KEYLESS:
        return MapSpec("m", kind, 0, 4, 4)
    if kind in (MapType.RINGBUF, MapType.USER_RINGBUF):
        return MapSpec("m", kind, 0, 0, 4096)
    if kind == MapType.ARENA:
        return MapSpec("m", kind, 0, 0, 4, flags=MapFlag.MMAPABLE)
    if kind == MapType.LPM_TRIE:
        return MapSpec("m", kind, 8, 4, 4, flags=MapFlag.NO_PREALLOC)
    if kind == MapType.STACK_TRACE:
        return MapSpec("m", kind, 4, 80, 4)
    return MapSpec("m", kind, 4, 4, 4)


def variants(kind: MapType) -> Iterator[MapSpec]:
    one = plain(kind)
    yield one
    for flags in FLAG_SETS:
        yield replace(one, flags=one.flags | flags)
    yield replace(one, flags=0)
    for size in SIZES:
        yield replace(one, key_size=size)
        # what is not refused the kernel takes, and clears: that is seconds for 8 GiB
        fewer = 1 if kind == MapType.ARRAY and size > 1 << 22 else one.max_entries
        yield replace(one, value_size=size, max_entries=fewer)
        yield replace(one, key_size=size, value_size=size)
        yield replace(one, key_size=size, max_entries=0)
    for node in (0, 77, 1 << 31, 0xFFFFFFFF):
        yield replace(one, flags=one.flags | MapFlag.NUMA_NODE, numa_node=node)
        yield replace(one, flags=one.flags | MapFlag.NUMA_NODE | MapFlag.NO_COMMON_LRU,
                      numa_node=node)
    for entries in (0, 1, 3, 1000, 4096, 4097):
        yield replace(one, max_entries=entries)
    for extra in (1, 15, 16, 1 << 40):
        yield replace(one, map_extra=extra)


def kernels_answer(spec: MapSpec, inner: int) -> int:
    try:
        os.close(bpf_syscall.map_create(
            spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags, "m",
            inner if spec.type in OUTER else 0, spec.numa_node, spec.map_extra))
    except OSError as error:
        return error.errno or 0
    return 0


def differs_knowingly(spec: MapSpec) -> bool:
    """docs/maps.md says these."""
    long_key = spec.type in HASHES and spec.key_size > 512
    cpus = spec.type == MapType.CPUMAP and spec.max_entries > bpf_syscall.possible_cpus()
    rings = spec.type == MapType.PERF_EVENT_ARRAY and spec.max_entries == 0  # libbpf fills it in
    return long_key or cpus or rings


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: MapType(kind).name)
@pytest.mark.root
@needs_bpf()[1]
def test_as_the_kernel(kind: MapType) -> None:
    inner = bpf_syscall.map_create(MapType.ARRAY, 4, 4, 1)
    wrong, count = [], 0
    try:
        for spec in variants(kind):
            if differs_knowingly(spec):
                continue
            found = refusal(spec)
            ours, theirs = found[0] if found else 0, kernels_answer(spec, inner)
            if ours != theirs:
                wrong.append(f"{spec}: kernel {theirs}, ours {found}")
            count += 1
    finally:
        os.close(inner)
    assert not wrong, "\n".join(wrong)
    assert count > 50


def test_flags_of_every_family() -> None:
    assert set(FAMILIES) <= set(FLAGS)
