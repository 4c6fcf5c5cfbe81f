"""BPF_MAP_*_BATCH here and in the kernel: the same types, flags, counts, errors and contents."""

from __future__ import annotations

import errno
import os
import random
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps import kernel_batch
from tests.xdp_runtime.maps.kernel_batch import DELETE, LOOKUP, LOOKUP_AND_DELETE, UPDATE
from tests.xdp_runtime.maps.test_limits import OUTER, plain
from tests.xdp_runtime.maps.traces import compiled_map, random_keys
from xdp_runtime import bpf_syscall
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps import FAMILIES
from xdp_runtime.maps.batch import BatchError
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapFlag, MapSpec, MapType

pytestmark = [pytest.mark.root, needs_bpf()[1]]
NAMES = {LOOKUP: "lookup", LOOKUP_AND_DELETE: "lookup_and_delete", UPDATE: "update",
         DELETE: "delete"}
CPUS = bpf_syscall.possible_cpus()
HASHES = [MapSpec("m", kind, 6, 5, 64) for kind in (
    MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH)]
ORDERED = [MapSpec("m", MapType.ARRAY, 4, 12, 50), MapSpec("m", MapType.PERCPU_ARRAY, 4, 5, 50),
           MapSpec("m", MapType.LPM_TRIE, 8, 7, 64, flags=MapFlag.NO_PREALLOC)]


def name_of(spec: MapSpec) -> str:
    return MapType(spec.type).name


@contextmanager
def both(spec: MapSpec) -> Iterator[tuple[Map, KernelMap]]:
    with compiled_map(spec, CPUS) as ours, KernelMap(spec) as theirs:
        yield ours, theirs


def keys_of(spec: MapSpec, count: int, rng: random.Random) -> list[bytes]:
    if spec.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
        return [struct.pack("<I", n) for n in rng.sample(range(spec.max_entries), count)]
    if spec.type == MapType.LPM_TRIE:
        found = {struct.pack("<I", length) + bytes(rng.randrange(4) for _ in range(4))
                 for length in rng.choices(range(33), k=3 * count)}
        return sorted(found)[:count]
    return random_keys(spec, count, rng.randrange(1000))


def array(spec: MapSpec, keys: Sequence[bytes]) -> Any:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), spec.key_size)


def values_of(spec: MapSpec, count: int, rng: random.Random, per_cpu: bool) -> tuple[Any, bytes]:
    """For Map and, padded, for the system call."""
    copies = CPUS if per_cpu else 1
    raw = np.frombuffer(rng.randbytes(count * copies * spec.value_size), np.uint8).reshape(
        count, copies, spec.value_size)
    if not per_cpu:
        return raw[:, 0], raw.tobytes()
    padded = np.zeros((count, copies, (spec.value_size + 7) & ~7), np.uint8)
    padded[:, :, :spec.value_size] = raw
    return raw, padded.tobytes()


def outcome(call: Any) -> tuple[int, int]:
    """(errno, entries done)"""
    try:
        return 0, call()
    except BatchError as refused:
        return refused.errno or 0, refused.done
    except OSError as refused:
        return refused.errno or 0, 0


def answer_of(one: KernelMap, command: int, keys: Sequence[bytes], values: bytes = b"",
              flags: int = 0) -> tuple[int, int]:
    found = kernel_batch.call(one, command, len(keys), None, b"".join(keys), values, flags)
    return found.error, found.count


def contents(one: Map | KernelMap) -> dict[bytes, bytes]:
    return {key: b"".join(value) if isinstance(value, list) else bytes(value)
            for key, value in one.items()}


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: MapType(kind).name)
def test_types_and_flags(kind: MapType) -> None:
    """Which types have which command, and what each says to flags, counts of 0, an empty map."""
    spec = plain(kind)
    inner = bpf_syscall.map_create(MapType.ARRAY, 4, 4, 1)
    try:
        with (KernelMap(spec, inner if kind in OUTER else 0) as theirs,
              Map.create(spec, CPUS) as ours):
            if "next_key" in ours.family.operations:
                compile_operations(ours)
            key, size = b"\x01" * spec.key_size, ours.spec.value_size
            value = [b"\0" * size] * (CPUS if ours.family.per_cpu else 1)
            for command, count, flags in [(c, n, f) for c in NAMES for n in (0, 1)
                                          for f in (0, 1, 2, 4, 5, 8, 1 << 63)]:
                if kind in OUTER and command == UPDATE:
                    continue  # its values are descriptors there
                width = kernel_batch.stride(theirs)
                if not width:
                    continue  # rings have no entries at all
                found = kernel_batch.call(theirs, command, count, None, key * count,
                                          b"\0" * width * count, flags)
                mine = _mine(ours, command, count, flags, key, b"".join(value))
                ends = command in (LOOKUP, LOOKUP_AND_DELETE) and found.error == errno.ENOENT
                wanted = 0 if ends else found.error
                assert mine[0] == wanted, (NAMES[command], count, flags, found)
                if not found.error or ends:
                    assert mine[1] == found.count, (NAMES[command], count, flags)
    finally:
        os.close(inner)


def _mine(one: Map, command: int, count: int, flags: int, key: bytes,
          value: bytes) -> tuple[int, int]:
    keys = [key] * count
    given, values = array(one.spec, keys), np.frombuffer(value * count, np.uint8)
    match command:
        case 24:
            return outcome(lambda: len(one.lookup_batch(None, count, flags)))
        case 25:
            return outcome(lambda: len(one.lookup_and_delete_batch(None, count, flags)))
        case 26:
            return outcome(lambda: one.update_batch(given, values, flags))
        case _:
            return outcome(lambda: one.delete_batch(given, flags))


@pytest.mark.parametrize("spec", [*HASHES[::2], *ORDERED, *(
    replace(one, max_entries=20_000) for one in HASHES[1::2])], ids=name_of)  # LRU drops nothing
def test_updates_and_deletes(spec: MapSpec) -> None:
    """Random batches, some of which are refused in their midst."""
    rng = random.Random(spec.type)
    with both(spec) as (ours, theirs):
        per_cpu = ours.family.per_cpu
        for _ in range(30):
            count = rng.randrange(1, 40)
            keys = keys_of(spec, count, rng)
            if spec.type in (MapType.ARRAY, MapType.PERCPU_ARRAY) and rng.random() < 0.3:
                keys[rng.randrange(count)] = struct.pack("<I", spec.max_entries + 1)
            if spec.type == MapType.LPM_TRIE and rng.random() < 0.3:
                keys[rng.randrange(len(keys))] = struct.pack("<I", 33) + bytes(4)
            mine, raw = values_of(spec, len(keys), rng, per_cpu)
            given = array(spec, keys)
            assert outcome(lambda: ours.update_batch(given, mine)) == answer_of(  # noqa: B023
                theirs, UPDATE, keys, raw)
            some = rng.sample(keys, rng.randrange(len(keys) + 1))
            if rng.random() < 0.4:
                some.insert(rng.randrange(len(some) + 1), keys_of(spec, 1, rng)[0])
            if spec.type not in (MapType.ARRAY, MapType.PERCPU_ARRAY) and some:
                given = array(spec, some)
                assert outcome(lambda: ours.delete_batch(given)) == answer_of(  # noqa: B023
                    theirs, DELETE, some)
            assert contents(ours) == contents(theirs)


@pytest.mark.parametrize("spec", ORDERED, ids=name_of)
def test_tokens_of_keys(spec: MapSpec) -> None:
    """Arrays and tries go on behind the last key: the same parts, in the same order."""
    rng = random.Random(5)
    with both(spec) as (ours, theirs):
        keys = keys_of(spec, 40, rng)
        mine, raw = values_of(spec, len(keys), rng, ours.family.per_cpu)
        assert ours.update_batch(array(spec, keys), mine) == len(keys)
        assert answer_of(theirs, UPDATE, keys, raw) == (0, len(keys))
        for size in (1, 7, 40, 50, 64):
            token, after, ended = None, None, False
            while not ended:
                part = ours.lookup_batch(token, size)
                found = kernel_batch.call(theirs, LOOKUP, size, after)
                assert (len(part), part.ended) == (found.count, found.error == errno.ENOENT)
                assert [key.tobytes() for key in part.keys] == found.keys
                width = (spec.value_size + 7) & ~7
                assert [value.tobytes() for value in part.values] == (
                    found.values if not ours.family.per_cpu else
                    [b"".join(v[at:at + spec.value_size] for at in range(0, len(v), width))
                     for v in found.values])
                if found.count:
                    assert part.token == found.token[:spec.key_size]
                token, after, ended = part.token, found.token[:spec.key_size], part.ended


@pytest.mark.parametrize("remove", [False, True], ids=["lookup", "lookup_and_delete"])
@pytest.mark.parametrize("spec", HASHES, ids=name_of)
def test_tokens_of_buckets(spec: MapSpec, remove: bool) -> None:
    """A hash goes bucket by bucket: each entry once, ENOSPC where the next does not fit."""
    rng = random.Random(6)
    command = LOOKUP_AND_DELETE if remove else LOOKUP
    crowded = 0
    with both(spec) as (ours, theirs):
        keys = keys_of(spec, 60, rng)
        for size in (1, 2, 3, 10, 60, 100):
            mine, raw = values_of(spec, len(keys), rng, ours.family.per_cpu)
            ours.update_batch(array(spec, keys), mine)
            answer_of(theirs, UPDATE, keys, raw)
            wanted = contents(ours)
            for walk in (_walk_ours(ours, size, remove), _walk_theirs(theirs, command, size)):
                seen: dict[bytes, bytes] = {}
                for key, value in walk:
                    if key is None:
                        crowded += 1
                        continue
                    assert key not in seen
                    seen[key] = value
                if size >= 60 or not remove:
                    assert set(seen) <= set(wanted)
                if size >= 60:
                    assert seen == wanted
            if remove and size >= 60:
                assert len(ours) == 0 and not contents(theirs)
        assert crowded, "no bucket of two"
        token = (1 << 31).to_bytes(4, "little")
        last = ours.lookup_batch(token, 5)
        beyond = kernel_batch.call(theirs, LOOKUP, 5, token)
        assert (len(last), last.ended) == (beyond.count, beyond.error == errno.ENOENT) == (0, True)


def _walk_ours(one: Map, size: int, remove: bool) -> Iterator[tuple[bytes | None, bytes]]:
    token, take = None, one.lookup_and_delete_batch if remove else one.lookup_batch
    while True:
        try:
            part = take(token, size)
        except OSError as full:
            assert full.errno == errno.ENOSPC
            yield None, b""
            return
        assert len(part) <= size
        yield from zip((k.tobytes() for k in part.keys), (v.tobytes() for v in part.values),
                       strict=True)
        token = part.token
        if part.ended:
            return


def _walk_theirs(one: KernelMap, command: int,
                 size: int) -> Iterator[tuple[bytes | None, bytes]]:
    token, width = None, (one.spec.value_size + 7) & ~7
    while True:
        found = kernel_batch.call(one, command, size, token)
        if found.error == errno.ENOSPC:
            assert found.count == 0
            yield None, b""
            return
        for key, value in zip(found.keys, found.values, strict=True):
            yield key, value if not one.is_per_cpu else b"".join(
                value[at:at + one.spec.value_size] for at in range(0, len(value), width))
        if found.error == errno.ENOENT:
            return
        assert not found.error
        token = found.token[:4]


def test_writers_meanwhile() -> None:
    """What is read while others replace and move entries is whole, and each key is given once."""
    spec = MapSpec("m", MapType.HASH, 4, 24, 4000)
    with compiled_map(spec) as one:
        keys = np.arange(3000, dtype=np.uint32)
        one.update_batch(keys, np.repeat(keys.astype(np.uint64), 3).reshape(-1, 3))
        stop = threading.Event()

        def write() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                some = keys[n % 7::7]
                one.update_batch(some, np.repeat(
                    some.astype(np.uint64) + (n << 32), 3).reshape(-1, 3))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(200):
                found, raw = one.to_numpy()
                assert sorted(found) == list(range(3000))
                words = np.frombuffer(raw.tobytes(), np.uint64).reshape(-1, 3)
                assert (words == words[:, :1]).all()
                assert (words[:, 0] & 0xFFFFFFFF == found).all()
        finally:
            stop.set()
            writer.join()
