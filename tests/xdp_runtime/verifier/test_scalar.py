"""What `sync`, `union` and their like make of sets of numbers, none of which may be lost."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.xdp_runtime.verifier.narrow import narrow
from tests.xdp_runtime.verifier.scalars import narrow_sample, sample
from xdp_runtime.verifier import scalar
from xdp_runtime.verifier.scalar import UNKNOWN, Scalar
from xdp_runtime.verifier.tnum import TOP

# --- at 4 and 8 bits: every value --------------------------------------------------------------

def test_sync_of_all_bits_and_all_ranges_of_4_bits() -> None:
    """Bits with an unsigned range, and with a signed one: none is lost, no bound is exceeded, and
    one number alone is found.  More the kernel does not see."""
    world = narrow(4)
    for tnum in world.tnums():
        inside = [x for x in world.values if x & ~tnum[1] == tnum[0]]
        for low, high in world.ranges():
            made = world.full(tnum, unsigned=(low, high))
            expected = [x for x in inside if low <= x <= high]
            _holds(made, expected, low, high)
            less, more = low - world.sign, high - world.sign
            made = world.full(tnum, signed=(less, more))
            _holds(made, [x for x in inside if less <= world.signed(x) <= more])


def _holds(made: Scalar | None, expected: list[int], low: int = 0, high: int = 15) -> None:
    if not expected:
        return
    assert made is not None
    assert set(narrow(4).members(made)) >= set(expected)
    assert low <= made.umin and made.umax <= high
    if len(expected) == 1:
        assert made.const == expected[0]


def test_sync_of_all_pairs_of_ranges_of_4_bits() -> None:
    world = narrow(4)
    for (low, high), (less, more) in itertools.product(world.ranges(), world.ranges()):
        less, more = less - world.sign, more - world.sign
        expected = [x for x in world.values
                    if low <= x <= high and less <= world.signed(x) <= more]
        made = world.full(unsigned=(low, high), signed=(less, more))
        if not expected:
            assert made is None
            continue
        assert world.members(made) == tuple(expected)
        signed = [world.signed(x) for x in expected]
        assert (made.umin, made.umax) == (expected[0], expected[-1])
        assert (made.smin, made.smax) == (min(signed), max(signed))


def test_sync_with_all_ranges_of_the_low_half() -> None:
    """Bounds move to numbers that have such a low half; the result is the set itself."""
    world = narrow(4)
    halves = [(low, high) for low in range(4) for high in range(low, 4)]
    for (low, high), half, half_signed in itertools.product(world.ranges(), halves, halves):
        signed_half = half_signed[0] - 2, half_signed[1] - 2
        expected = tuple(
            x for x in world.values if low <= x <= high and half[0] <= x & 3 <= half[1]
            and signed_half[0] <= (x & 3 ^ 2) - 2 <= signed_half[1])
        made = world.full(unsigned=(low, high), unsigned32=half, signed32=signed_half)
        if made is None:
            assert not expected
            continue
        assert world.members(made) == expected
        if expected and signed_half == (-2, 1):
            assert (made.umin, made.umax) == (expected[0], expected[-1])


def test_sync_of_anything_loses_nothing_at_8_bits() -> None:
    world, rng = narrow(8), random.Random(1)
    for _ in range(3000):
        mask = rng.choice(world.values) | rng.choice(world.values)
        value = rng.choice(world.values) & ~mask
        low, high = sorted(rng.choices(world.values, k=2))
        less, more = sorted(rng.choices(range(-128, 128), k=2))
        half = sorted(rng.choices(range(16), k=2))
        half_signed = sorted(rng.choices(range(-8, 8), k=2))
        expected = tuple(
            x for x in world.values if x & ~mask == value and low <= x <= high
            and less <= world.signed(x) <= more and half[0] <= x & 15 <= half[1]
            and half_signed[0] <= (x & 15 ^ 8) - 8 <= half_signed[1])
        made = world.scalar.sync(value, mask, low, high, less, more, *half, *half_signed)
        assert (world.members(made) if made else ()) == expected
        if made is not None:
            assert world.scalar.sync(*made.fields()) == made      # nothing more to say


def test_sets_at_8_bits() -> None:
    world, rng = narrow(8), random.Random(2)
    for _ in range(1500):
        a, b = narrow_sample(world, rng), narrow_sample(world, rng)
        one, other = set(world.members(a)), set(world.members(b))
        assert one | other <= set(world.members(world.scalar.union(a, b)))
        assert one | other <= set(world.members(world.scalar.widen(a, b)))
        both = world.scalar.meet(a, b)
        assert one & other == (set(world.members(both)) if both else set())
        if world.scalar.contains(a, b):
            assert other <= one


def test_widening_comes_to_rest() -> None:
    world, rng = narrow(8), random.Random(3)
    for _ in range(300):
        grown, steps = narrow_sample(world, rng), 0
        for _ in range(100):
            wider = world.scalar.widen(grown, narrow_sample(world, rng))
            steps += wider != grown
            grown = wider
        assert steps <= 16


# --- at 64 bits ----------------------------------------------------------------------------------

def test_sets_at_64_bits() -> None:
    rng = random.Random(4)
    for _ in range(4000):
        (a, one), (b, other) = sample(rng), sample(rng)
        assert one and other
        union, widened, met = scalar.union(a, b), scalar.widen(a, b), scalar.meet(a, b)
        for value in one + other:
            assert union.has(value) and widened.has(value)
        assert scalar.contains(union, a) and scalar.contains(union, b)
        assert scalar.contains(widened, union)
        for value in one:
            if b.has(value):
                assert met is not None and met.has(value)
        if met is not None:
            assert scalar.contains(a, met) and scalar.contains(b, met)


def test_makers() -> None:
    assert scalar.const(-1) == scalar.const(TOP)
    assert scalar.const(-1).const == TOP and scalar.const(-1).smin == -1
    assert scalar.const(5) is scalar.const(5)
    assert scalar.const(5).is_const and scalar.const(5).is_const32
    assert UNKNOWN.const is None and not UNKNOWN.is_const
    assert scalar.unsigned(8) == scalar.signed(8) == UNKNOWN
    assert scalar.unsigned(4).umax == 0xFFFF_FFFF and scalar.unsigned(4).smax == 0xFFFF_FFFF
    assert scalar.signed(2).smin == -0x8000 and scalar.signed(2).s32max == 0x7FFF
    assert scalar.from_range(14, 1500).smin == 14
    assert scalar.from_signed_range(-3, -1) == scalar.from_range(TOP - 2, TOP)
    for make in (scalar.from_range, scalar.from_signed_range):
        with pytest.raises(ValueError, match="no number is in 2 to 1"):
            make(2, 1)


def test_equality() -> None:
    a, b = scalar.from_range(1, 2), scalar.from_range(1, 2)
    assert a is not b and a == b and hash(a) == hash(b) and a != scalar.from_range(1, 3)
    assert a != 1
    assert {a: 1}[b] == 1


def test_widening_keeps_alignment() -> None:
    """A loop that counts in eights has a multiple of eight, however often it goes round."""
    counter = scalar.const(0)
    for _ in range(6):
        counter = scalar.widen(counter, scalar.from_range(counter.umin, counter.umax + 8 & TOP)
                               if not counter.is_const else scalar.const(8))
    assert counter.umin == 0
    down = scalar.widen(scalar.const(0), scalar.const(-8))
    assert down.mask & 7 == 0 and down.value & 7 == 0 and down.smin <= -8


@pytest.mark.parametrize(("made", "words"), [
    (UNKNOWN, "scalar()"),
    (scalar.const(7), "7"), (scalar.const(-22), "-22"),
    (scalar.const(0x12345), "0x12345"), (scalar.const(-0x12345), "0xfffffffffffedcbb"),
    (scalar.unsigned(1), "scalar(smin=smin32=0,smax=umax=smax32=umax32=255,"
                         "var_off=(0x0; 0xff))"),
    (scalar.unsigned(4), "scalar(smin=0,smax=umax=0xffffffff,var_off=(0x0; 0xffffffff))"),
    (scalar.signed(2), "scalar(smin=smin32=-32768,smax=smax32=32767)"),
], ids=str)
def test_words(made: Scalar, words: str) -> None:
    assert scalar.describe(made) == str(made) == words
