"""Random maps and random operations on them, here and in the kernel: the same errno and contents.

A seed gives a map of any size and flags (refused by both with the same errno, or made by both), the
operations of user space one by one and in batches, and those of a program on any CPU, with all
flags and illegal arguments; at last the map may be frozen.

    python -m tests.xdp_runtime.maps.test_kernel_traces 1 2000 [HASH ...]     more seeds
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps import kernel_batch
from tests.xdp_runtime.maps.kernel_pair import (
    CPUS,
    KEYLESS,
    LOCK_AT,
    LOCKABLE,
    PER_CPU,
    Pair,
    create,
    pair,
    program_operations,
    with_lock,
)
from xdp_runtime.bpf_syscall import Cmd
from xdp_runtime.btf import Btf
from xdp_runtime.maps.batch import BatchError
from xdp_runtime.maps.limits import FLAGS, refusal
from xdp_runtime.object import MapFlag, MapSpec, MapType

pytestmark = [pytest.mark.root, needs_bpf()[1]]
ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)
LRU = (MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)
KINDS = (MapType.HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_HASH,
         MapType.LRU_PERCPU_HASH, MapType.LPM_TRIE, *KEYLESS)
ODD_FLAGS = (*(0,) * 20, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 1 << 31, 1 << 32, (1 << 64) - 1)
STEPS = 150


def spec_of(kind: MapType, rng: random.Random) -> tuple[MapSpec, Btf | None]:
    """Mostly one that can be made."""
    key = rng.choice((1, 2, 3, 4, 5, 7, 8, 12, 13, 16, 20, 64, rng.randrange(1, 513)))
    value = rng.choice((1, 2, 4, 5, 8, 12, 16, 17, 24, 64, rng.randrange(1, 300)))
    entries = rng.choice((1, 2, 3, 5, 8, 17))
    flags = MapFlag(0)
    if rng.random() < 0.6:
        known = [flag for flag in FLAGS[kind] if flag != MapFlag.INNER_MAP]
        for flag in rng.sample(known, rng.choice((1, 1, 2, 3))):
            flags |= flag
    if rng.random() < 0.03:
        flags |= 1 << rng.randrange(32)
    if kind in ARRAYS:
        key = 4
    elif kind in KEYLESS:
        key = 0
    elif kind == MapType.LPM_TRIE:
        key = rng.choice((5, 6, 8, 9, 12, 20, 4 + rng.randrange(1, 257)))
        flags |= MapFlag.NO_PREALLOC
    if kind in LRU:
        entries = 20_000  # the kernel drops early, and which one is its own choice
    if kind == MapType.BLOOM_FILTER:  # so large that what was not pushed is not in it
        value, entries = rng.choice((4, 5, 8, 17)), 100_000
        flags |= MapFlag.ZERO_SEED
    spec = MapSpec("m", kind, key, value, entries, int(flags))
    return with_lock(spec) if kind in LOCKABLE and rng.random() < 0.2 else (spec, None)


class Trace:
    """Random steps on a pair."""

    def __init__(self, both: Pair, rng: random.Random) -> None:
        self.both, self.rng, self.spec = both, rng, both.spec
        self.keys = self._keys()
        self.done: Counter[str] = Counter()

    def _keys(self) -> list[bytes]:
        spec, rng = self.spec, self.rng
        if spec.type in KEYLESS:
            return [b""]
        if spec.type in ARRAYS:
            numbers = [*range(min(spec.max_entries, 8)), spec.max_entries, spec.max_entries + 1,
                       1 << 31, (1 << 32) - 1]
            return [number.to_bytes(4, "little") for number in numbers]
        if spec.type == MapType.LPM_TRIE:
            bits = 8 * (spec.key_size - 4)
            return [rng.choice((*range(bits + 1), bits + 1, 1 << 31)).to_bytes(4, "little")
                    + bytes(rng.choice((0, 0, 0, 1, 128, 255)) for _ in range(spec.key_size - 4))
                    for _ in range(14)]
        keys = {rng.randbytes(spec.key_size) for _ in range(min(spec.max_entries, 8) + 3)}
        return sorted(keys)

    def value(self) -> bytes:
        out = bytearray(self.rng.randbytes(self.spec.value_size))
        if self.spec.type == MapType.BLOOM_FILTER:
            out[:] = self.rng.choice((b"abcd", b"efgh", b"ijkl")).ljust(len(out), b"\1")
        if self.spec.lock_at >= 0:  # a program's update leaves it alone, what is there is not read
            out[LOCK_AT:LOCK_AT + 4] = bytes(4)
        return bytes(out)

    def step(self) -> None:
        rng, both = self.rng, self.both
        key, flags = rng.choice(self.keys), rng.choice(ODD_FLAGS)
        by_key = self.spec.type not in KEYLESS
        names = ["lookup", "update", "update", "update", "delete", "take", "next", "program",
                 "program", "program", "program"]
        names += ["lookups", "takes", "updates", "deletes"] if by_key else []
        name = rng.choice(names)
        self.done[name] += 1
        if name == "program":
            self._program(key, flags)
            return
        if name.endswith("s"):
            getattr(self, f"_{name}")()
            return
        values = [self.value() for _ in range(CPUS if self.spec.type in PER_CPU else 1)]
        match name:
            case "lookup" if self.spec.type == MapType.BLOOM_FILTER:
                code = _found(lambda: both.ours.may_contain(values[0]))
                asked = both.theirs.call(Cmd.MAP_LOOKUP_ELEM, b"", values[0])
                assert code == asked[0], (name, values[0])
                return
            case "lookup":  # without a key flags cannot be given here
                mine, there = both.lookup(key, flags if by_key else 0)
            case "take":
                mine, there = both.take(key, flags if by_key else 0)
            case "update":
                mine, there = both.update(key, values, flags)
            case "delete":
                mine, there = both.delete(key)
            case _:
                self._next(key if rng.random() < 0.8 else None)
                return
        assert mine == there, (name, key.hex(), flags, mine, there)
        self.done["refused" if mine[0] else "done"] += 1

    def _next(self, key: bytes | None) -> None:
        mine, there = self.both.next_key(key)
        assert mine[0] == there[0] or not _has_order(self.spec), (key, mine, there)
        if _has_order(self.spec):
            assert mine == there, (key, mine, there)
            return
        if key is not None and self.both.lookup(key)[0][0] == errno.ENOENT:
            for found, first in zip((mine, there), self.both.next_key(None), strict=True):
                assert found == first, key  # from one that is not there it begins anew

    def _program(self, key: bytes, flags: int) -> None:
        names = program_operations(self.spec)
        if not names:
            return
        name, cpu = self.rng.choice(names), self.rng.randrange(CPUS)
        if name == "lookup_percpu":
            flags = self.rng.choice((*range(CPUS + 1), 1 << 32, (1 << 64) - 1))
        value = self.value()
        mine, there = self.both.run(cpu, name, key, value, flags)
        assert mine == there, (name, cpu, key.hex(), flags, mine.hex(), there.hex())

    # --- batches --------------------------------------------------------------------------------
    def _batch(self, command: int, keys: Sequence[bytes], values: Any, flags: int) -> None:
        """Keys and values given: errno, and how many were done."""
        one, theirs = self.both.ours, self.both.theirs
        given = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), self.spec.key_size)
        raw = values.tobytes() if values is not None else b""
        if values is not None and self.spec.type in PER_CPU:
            padded = np.zeros((*values.shape[:2], theirs.stride), np.uint8)
            padded[:, :, :self.spec.value_size] = values
            raw = padded.tobytes()
        there = kernel_batch.call(theirs, command, len(keys), None, b"".join(keys), raw,
                                  flags)
        try:
            done = (one.delete_batch(given, flags) if command == kernel_batch.DELETE
                    else one.update_batch(given, values, flags))
            mine = 0, done
        except BatchError as refused:
            mine = refused.errno or 0, refused.done
        except OSError as refused:
            mine = refused.errno or 0, there.count
        assert mine == (there.error, there.count), (command, [k.hex() for k in keys], flags)

    def _flags(self) -> int:
        return self.rng.choice((0, 0, 0, 0, 0, 4, 4, 1, 2, 5, 8, 1 << 40))

    def _updates(self) -> None:
        keys = self.rng.choices(self.keys, k=self.rng.randrange(6))
        copies = CPUS if self.spec.type in PER_CPU else 1
        raw = b"".join(self.value() for _ in range(len(keys) * copies))
        values = np.frombuffer(raw, np.uint8).reshape(len(keys), copies, self.spec.value_size)
        self._batch(kernel_batch.UPDATE, keys, values, self._flags())

    def _deletes(self) -> None:
        keys = self.rng.choices(self.keys, k=self.rng.randrange(4))
        self._batch(kernel_batch.DELETE, keys, None, self._flags())

    def _lookups(self, remove: bool = False) -> None:
        """All of it, or parts where they are the same."""
        one, theirs, flags = self.both.ours, self.both.theirs, self._flags()
        whole = not _has_order(self.spec)
        count = 40 if whole else self.rng.choice((0, 1, 2, 3, 7, 40))
        command = kernel_batch.LOOKUP_AND_DELETE if remove else kernel_batch.LOOKUP
        token = None
        if not whole and self.rng.random() < 0.5:
            token = self.rng.choice(self.keys)
        there = kernel_batch.call(theirs, command, count, token, elem_flags=flags)
        try:
            part = (one.lookup_and_delete_batch if remove else one.lookup_batch)(
                token, count, flags)
        except OSError as refused:
            assert refused.errno == there.error, (remove, flags, count, token)
            return
        assert there.error == (errno.ENOENT if part.ended else 0), (remove, flags, count, token)
        mine = [(k.tobytes(), v.tobytes()) for k, v in zip(part.keys, part.values, strict=True)]
        size, stride = self.spec.value_size, theirs.stride
        found = [(k, b"".join(v[at:at + size] for at in range(0, len(v), stride)))
                 for k, v in zip(there.keys, there.values, strict=True)]
        if whole:
            mine, found = sorted(mine), sorted(found)
        assert mine == found, (remove, flags, count, token)

    def _takes(self) -> None:
        self._lookups(remove=True)


def _found(ask: Any) -> int:
    try:
        return 0 if ask() else errno.ENOENT
    except OSError as error:
        return error.errno or 0


def _has_order(spec: MapSpec) -> bool:
    return spec.type in (*ARRAYS, MapType.LPM_TRIE)


def run(kind: MapType, seed: int, opt: int = 3) -> Counter[str]:
    """One seed.  Raises AssertionError where the two differ."""
    rng = random.Random(f"{kind}-{seed}")
    spec, types = spec_of(kind, rng)
    ours = refusal(spec)
    try:
        fd = create(spec, types)
    except OSError as error:
        assert ours is not None and ours[0] == error.errno, (spec, ours, error)
        return Counter(["not made"])
    os.close(fd)
    assert ours is None, (spec, ours)
    with pair(spec, types, opt) as both:
        trace = Trace(both, rng)
        for number in range(STEPS):
            try:
                trace.step()
                if number % 25 == 24:
                    mine, there = both.contents()
                    assert mine == there
                if rng.random() < 0.003:
                    mine_code, their_code = both.freeze()
                    assert mine_code == their_code
            except AssertionError as error:
                raise AssertionError(f"{kind.name} seed {seed} step {number} {spec}: {error}"
                                     ) from error
    return trace.done


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_traces(kind: MapType, seed: int) -> None:
    done = run(kind, seed, opt=0 if seed % 2 else 3)
    assert done["program"] + done["not made"] > 0


def main(words: Sequence[str]) -> None:
    first, last = int(words[0]), int(words[1])
    kinds = [MapType[name] for name in words[2:]] or KINDS
    total: Counter[str] = Counter()
    for seed in range(first, last):
        for kind in kinds:
            total += run(kind, seed, opt=0)
    print(dict(total))


if __name__ == "__main__":
    main(sys.argv[1:])
