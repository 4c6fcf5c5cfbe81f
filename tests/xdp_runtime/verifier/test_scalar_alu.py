"""Transfer functions against the interpreter's arithmetic: no result may be outside.

At 4 bits (sub-register of 2) all pairs of ranges and all pairs of tnums are tried with all their
values, at 8 bits (4) Scalars of any shape with all their values, at 64 bits samples.
"""

from __future__ import annotations

import functools
import itertools
import random
from typing import Any

import pytest

from tests.xdp_runtime.verifier.narrow import Narrow, narrow
from tests.xdp_runtime.verifier.scalars import narrow_sample, sample
from xdp_runtime import interp_alu
from xdp_runtime.isa import AluOp, SwapOrder
from xdp_runtime.verifier import scalar, scalar_alu
from xdp_runtime.verifier.scalar import UNKNOWN
from xdp_runtime.verifier.tnum import TOP

_BOTH = (True, False)


def _set(world: Narrow, made: Any) -> int:
    """As one number with a bit for every value."""
    return sum(1 << value for value in world.members(made))


class _Images:
    """What an operation makes of sets of values, as sets: unions of those of one pair each."""

    def __init__(self, world: Narrow, op: AluOp, is64: bool) -> None:
        self.single = [[1 << world.alu(op, is64, x, y) for y in world.values]
                       for x in world.values]
        self.of_set = functools.cache(self._of_set)

    def _of_set(self, x: int, second: tuple[int, ...]) -> int:
        return functools.reduce(int.__or__, (self.single[x][y] for y in second))

    def __call__(self, first: tuple[int, ...], second: tuple[int, ...]) -> int:
        return functools.reduce(int.__or__, (self.of_set(x, second) for x in first))


@functools.cache
def _shapes(kind: str) -> list[Any]:
    world = narrow(4)
    made = {"unsigned": [world.full(unsigned=pair) for pair in world.ranges()],
            "signed": [world.full(signed=(low - world.sign, high - world.sign))
                       for low, high in world.ranges()],
            "bits": [world.full(tnum) for tnum in world.tnums()]}
    return made[kind]


@pytest.mark.parametrize("op", AluOp, ids=lambda op: op.name)
@pytest.mark.parametrize("kind", ["unsigned", "signed", "bits"])
def test_all_pairs_of_4_bits(op: AluOp, kind: str) -> None:
    world = narrow(4)
    sets: dict[int, int] = {}
    for is64 in _BOTH:
        images = _Images(world, op, is64)
        for a, b in itertools.product(_shapes(kind), _shapes(kind)):
            made = world.arith._alu(op.value, is64, a, b)
            if id(made) not in sets:
                sets[id(made)] = _set(world, made)
            assert not images(world.members(a), world.members(b)) & ~sets[id(made)], (a, b, made)


@pytest.mark.parametrize("op", AluOp, ids=lambda op: op.name)
def test_any_shapes_of_8_bits(op: AluOp) -> None:
    world, rng = narrow(8), random.Random(op.value)
    for is64 in _BOTH:
        for _ in range(250):
            a, b = narrow_sample(world, rng), narrow_sample(world, rng)
            if rng.random() < 0.3:
                b = world.scalar.const(rng.choice(world.values))
            made = set(world.members(world.arith.alu(op, is64, a, b)))
            one, other = (world.members(s) if len(world.members(s)) <= 40 else
                          (*rng.choices(world.members(s), k=38), world.members(s)[0],
                           world.members(s)[-1]) for s in (a, b))
            for x, y in itertools.product(one, other):
                assert world.alu(op, is64, x, y) in made, (a, b)


@pytest.mark.parametrize("op", AluOp, ids=lambda op: op.name)
def test_samples_of_64_bits(op: AluOp) -> None:
    rng = random.Random(op.value)
    for _ in range(1500):
        (a, one), (b, other) = sample(rng), sample(rng)
        for is64 in _BOTH:
            made = scalar_alu.alu(op, is64, a, b)
            for x, y in itertools.product(one, other):
                result = interp_alu.alu(op, is64, x, y)
                assert made.has(result), (is64, a, b, x, y, made)


@pytest.mark.parametrize("op", AluOp, ids=lambda op: op.name)
def test_constants_give_constants(op: AluOp) -> None:
    rng = random.Random(op.value)
    for _ in range(1000):
        x, y = rng.getrandbits(64), rng.getrandbits(rng.choice((3, 6, 32, 64)))
        for is64 in _BOTH:
            made = scalar_alu.alu(op, is64, scalar.const(x), scalar.const(y))
            assert made.const == interp_alu.alu(op, is64, x, y)


def test_one_operand_at_8_bits() -> None:
    world, rng = narrow(8), random.Random(1)
    for _ in range(600):
        a = narrow_sample(world, rng)
        values = world.members(a)
        for is64 in _BOTH:
            negated = world.arith.neg(is64, a)
            assert all(negated.has(-x & (0xFF if is64 else 0xF)) for x in values)
            for bits in (2, 3, 4, 8) if is64 else (2, 3, 4):
                extended = world.arith.sign_extend(a, bits, is64)
                keep = 0xFF if is64 else 0xF
                assert all(extended.has(interp_alu.signed(x, bits) & keep) for x in values), a
        assert all(world.arith.mov32(a).has(x & 0xF) for x in values)
        for bits in range(1, 9):
            cut = world.arith.truncate(a, bits)
            assert all(cut.has(x & (1 << bits) - 1) for x in values), (a, bits)


def test_one_operand_at_64_bits() -> None:
    rng = random.Random(2)
    for _ in range(3000):
        a, values = sample(rng)
        for value in values:
            for is64 in _BOTH:
                keep = TOP if is64 else 0xFFFF_FFFF
                assert scalar_alu.neg(is64, a).has(-value & keep)
                for bits in (8, 16, 32):
                    extended = interp_alu.sign_extend(value, bits) & keep
                    assert scalar_alu.sign_extend(a, bits, is64).has(extended)
            assert scalar_alu.mov32(a).has(value & 0xFFFF_FFFF)
            for bits in (16, 32, 64):
                for order in SwapOrder:
                    swapped = interp_alu.swap(order, bits, value)
                    assert scalar_alu.swap(a, bits, order).has(swapped)
            for size in (1, 2, 4, 8):
                low = value & (1 << 8 * size) - 1
                assert scalar_alu.load_extend(a, size).has(low)
                assert scalar_alu.load_extend(a, size, True).has(
                    interp_alu.sign_extend(value, 8 * size))


def test_results_are_remembered() -> None:
    a, b = scalar.from_range(1, 5), scalar.from_range(2, 9)
    assert scalar_alu.alu(AluOp.ADD, True, a, b) is scalar_alu.alu(AluOp.ADD, True, a, b)


_BYTE, _HALF_WORD = scalar.unsigned(1), scalar.unsigned(2)


@pytest.mark.parametrize(("op", "is64", "a", "b", "words"), [
    # What programs do with lengths and offsets.
    (AluOp.AND, True, _BYTE, scalar.const(15), "0..15"),
    (AluOp.LSH, True, scalar.from_range(5, 15), scalar.const(2), "20..60"),
    (AluOp.ADD, True, scalar.from_range(20, 60), scalar.const(14), "34..74"),
    (AluOp.SUB, True, scalar.from_range(20, 60), scalar.const(20), "0..40"),
    (AluOp.MUL, True, _BYTE, scalar.const(20), "0..5100"),
    (AluOp.MOD, True, UNKNOWN, scalar.const(65537), "0..65536"),
    (AluOp.MOD, False, UNKNOWN, scalar.const(10), "0..9"),
    (AluOp.DIV, True, _HALF_WORD, scalar.const(10), "0..6553"),
    (AluOp.DIV, True, scalar.from_range(100, 200), scalar.from_range(5, 10), "10..40"),
    (AluOp.SDIV, True, scalar.signed(2), scalar.const(-2), "-16383..16384"),
    (AluOp.SMOD, True, UNKNOWN, scalar.const(10), "-9..9"),
    (AluOp.RSH, True, UNKNOWN, scalar.const(60), "0..15"),
    (AluOp.RSH, True, _BYTE, scalar.from_range(4, 7), "0..15"),
    (AluOp.LSH, True, scalar.const(1), scalar.from_range(0, 7), "1..128"),
    (AluOp.ARSH, True, UNKNOWN, scalar.const(63), "-1..0"),
    (AluOp.OR, True, _BYTE, scalar.const(256), "256..511"),
    (AluOp.XOR, True, _BYTE, scalar.const(255), "0..255"),
    # Both ends overflow, so the range does not.
    (AluOp.ADD, True, scalar.from_range(TOP - 5, TOP), scalar.const(10), "4..9"),
    (AluOp.SUB, False, scalar.from_range(0, 3), scalar.const(4), "4294967292..4294967295"),
])
def test_ranges(op: AluOp, is64: bool, a: scalar.Scalar, b: scalar.Scalar, words: str) -> None:
    made = scalar_alu.alu(op, is64, a, b)
    assert f"{made.smin}..{made.smax}" == words


def test_alignment_survives() -> None:
    times = scalar_alu.alu(AluOp.MUL, True, UNKNOWN, scalar.const(24))
    assert (times.value & 7, times.mask & 7) == (0, 0)
    rest = scalar_alu.alu(AluOp.MOD, True, times, scalar.const(1000))
    assert (rest.value & 7, rest.mask & 7, rest.umax) == (0, 0, 999)


def test_spilled_bytes() -> None:
    assert scalar_alu.load_extend(UNKNOWN, 2, True) is scalar.signed(2)
    assert scalar_alu.load_extend(_BYTE, 4) is _BYTE
    assert scalar_alu.swap(scalar.const(0x0800), 16, SwapOrder.BE).const == 0x0008
