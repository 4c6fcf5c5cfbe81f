"""BLOOM_FILTER: bits that say "never pushed" for certain, or "perhaps".

    head      the two seeds
    bits      u64 words: about max_entries * hashes * 7 / 5 bits, rounded up to a power of two

Each hash is the first plus a multiple of the second half of one hash (Kirsch and Mitzenmacher),
where the kernel computes Jenkins' hash anew for each.  A push sets bits by atomic or, a peek looks
at them; nothing can be taken back.  Sizes and return codes are those of bloom_filter.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdp_runtime.maps.family import EINVAL, ENOENT, Region, no_entries
from xdp_runtime.maps.hash_table import HASH_OF, SEED_0, Factory
from xdp_runtime.object import MapFlag, MapSpec
from xdp_runtime.template import Template

HEAD_BYTES = 64
_FLAGS = (MapFlag.NUMA_NODE | MapFlag.ZERO_SEED | MapFlag.RDONLY | MapFlag.WRONLY
          | MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG)
_HASHES = 5  # where map_extra says nothing
_BITS_MAX = 1 << 32

# head, bits, value_size, hashes, mask; worker
LEADING = "ptr, ptr, i64, i64, i64, i64"


def _push(m: Any) -> Factory:
    hash_of = m.extern(HASH_OF)

    def bloom_push(head, bits, size, hashes, mask, worker, value, flags):  # type: ignore
        if flags != 0:
            return -EINVAL
        hashed = hash_of(head, value, size)
        step = m.lshr(hashed, 32) | 1
        for _ in range(hashes):
            at = hashed & mask
            place = m.inside(bits, m.lshr(at, 6) << 3)
            bit = 1 << (at & 63)
            if m.relaxed_u64(place, 0) & bit == 0:
                m.atomic_or_u64(place, 0, bit)
            hashed = m.add(hashed, step)
        return 0

    return bloom_push


def _peek(m: Any) -> Factory:
    hash_of = m.extern(HASH_OF)

    def bloom_peek(head, bits, size, hashes, mask, worker, value):  # type: ignore
        hashed = hash_of(head, value, size)
        step = m.lshr(hashed, 32) | 1
        for _ in range(hashes):
            at = hashed & mask
            if m.relaxed_u64(bits, m.lshr(at, 6) << 3) & (1 << (at & 63)) == 0:
                return -ENOENT
            hashed = m.add(hashed, step)
        return 0

    return bloom_peek


PUSH = Template("bloom_push", _push, f"i64({LEADING}, ptr, i64)", (HASH_OF,))
PEEK = Template("bloom_peek", _peek, f"i64({LEADING}, ptr)", (HASH_OF,))


class BloomFamily:
    """BLOOM_FILTER; `map_extra` is the number of hashes."""

    per_cpu = False

    def __init__(self) -> None:
        self.operations: Mapping[str, Template] = {"push_elem": PUSH, "peek_elem": PEEK}

    def check(self, spec: MapSpec) -> str | None:
        if spec.key_size:
            return f"key size is {spec.key_size}, must be 0"
        if spec.max_entries == 0:
            return no_entries(spec)
        if spec.value_size == 0:
            return "value size is 0"
        if spec.flags & ~int(_FLAGS):
            return f"flags {spec.flags:#x} are not known for a bloom filter"
        if spec.flags & MapFlag.RDONLY_PROG and spec.flags & MapFlag.WRONLY_PROG:
            return "it can be neither read nor written by programs"
        if spec.value_size > 1 << 22:
            return f"value size is {spec.value_size}, too large"
        if spec.map_extra & ~0xF:
            return f"map_extra is {spec.map_extra:#x}, must be up to 15 hash functions"
        return None

    def _hashes(self, spec: MapSpec) -> int:
        return spec.map_extra or _HASHES

    def _bits(self, spec: MapSpec) -> int:
        bits = max(spec.max_entries * self._hashes(spec) // 5 * 7, 64)
        return min(1 << (bits - 1).bit_length(), _BITS_MAX)

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        return (Region("head", HEAD_BYTES), Region("bits", self._bits(spec) // 8))

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("head", "bits", spec.value_size, self._hashes(spec), self._bits(spec) - 1)

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        if not spec.flags & MapFlag.ZERO_SEED:
            memory["head"][SEED_0:SEED_0 + 16] = seed.to_bytes(16, "little")
