"""Scalars with values known to be in them, for the tests that compare with concrete execution."""

from __future__ import annotations

import random
from typing import Any

from tests.xdp_runtime.verifier.narrow import Narrow
from xdp_runtime.verifier import scalar
from xdp_runtime.verifier.scalar import Scalar
from xdp_runtime.verifier.tnum import TOP

EDGES = (0, 1, 2, 7, 8, 255, 256, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32,
         (1 << 63) - 1, 1 << 63, TOP, TOP - 7, 0xFFFF_FFFF_0000_0000, 0xFFFF_FFFF_8000_0000)


def number(rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(EDGES) + rng.randint(-3, 3) & TOP
    if kind < 0.6:
        return rng.getrandbits(rng.randint(1, 64))
    return rng.getrandbits(8 if kind < 0.8 else 64)


def sample(rng: random.Random) -> tuple[Scalar, list[int]]:
    """A 64-bit Scalar of any shape, and up to six of its values."""
    values = [number(rng)]
    for _ in range(rng.randint(0, 3)):
        near = rng.random() < 0.6
        values.append(values[0] + rng.randint(-20, 20) & TOP if near else number(rng))
    made = scalar.const(values[0])
    for value in values[1:]:
        made = scalar.union(made, scalar.const(value))
    if rng.random() < 0.4:
        low, high = sorted((number(rng), number(rng)))
        other = scalar.from_range(min(low, values[0]), max(high, values[0]))
        met = scalar.meet(made, other)
        assert met is not None
        made = met
    values += [made.umin, made.umax, made.smin & TOP, made.smax & TOP]
    values += [made.value | made.mask & rng.getrandbits(64)]
    return made, [value for value in values[:7] if made.has(value)]


def narrow_sample(world: Narrow, rng: random.Random) -> Any:
    """A Scalar at a few bits: a union of a few numbers, or what a mix of facts leaves."""
    while True:
        made = None
        for value in rng.choices(world.values, k=rng.randint(1, 4)):
            one = world.scalar.const(value)
            made = one if made is None else world.scalar.union(made, one)
        if rng.random() < 0.5:
            low, high = sorted(rng.choices(world.values, k=2))
            half_low, half_high = sorted(rng.choices(range(world.top_half + 1), k=2))
            mask = rng.choice(world.values) & rng.choice(world.values)
            made = world.full((rng.choice(world.values) & mask, world.top & ~mask),
                              (low, high) if rng.random() < 0.5 else None,
                              (low - world.sign, high - world.sign) if rng.random() < 0.5 else None,
                              (half_low, half_high) if rng.random() < 0.3 else None)
        if made is not None and world.members(made):
            return made
