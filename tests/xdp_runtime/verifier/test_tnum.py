"""Tnums against concrete values: each operation has what it must, and nothing else where it can.

At 8 bits all pairs of tnums are tried.  The least tnum that has every result is computed from the
concrete operation alone: of a pair with an unknown bit it is the union over both cases of that bit.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xdp_runtime.interp_alu import signed
from xdp_runtime.verifier import tnum
from xdp_runtime.verifier.tnum import Tnum

Words = NDArray[np.int64]
Bytes = NDArray[np.uint8]


def _all(bits: int) -> list[Tnum]:
    """In ternary order of the digits 0, 1 and unknown, the highest bit first."""
    tnums = [(0, 0)]
    for _ in range(bits):
        tnums = [(value << 1 | digit & 1, mask << 1 | digit >> 1)
                 for value, mask in tnums for digit in (0, 1, 2)]
    return tnums


def _values(a: Tnum) -> list[int]:
    found, sub = [], a[1]
    while True:
        found.append(a[0] | sub)
        if not sub:
            return found
        sub = sub - 1 & a[1]


def _least(bits: int, op: Callable[[Words, Words], Words]) -> tuple[Bytes, Bytes]:
    """For each pair of tnums the bits that are set in every result, and those set in any."""
    top = (1 << bits) - 1
    values = np.arange(top + 1, dtype=np.int64)
    every = (op(values[:, None], values[None, :]) & top).astype(np.uint8).reshape((2,) * 2 * bits)
    some = every
    for axis in range(2 * bits):
        zero, one = np.split(every, 2, axis)
        every = np.concatenate((zero, one, zero & one), axis)
        zero, one = np.split(some, 2, axis)
        some = np.concatenate((zero, one, zero | one), axis)
    return every.reshape(3 ** bits, -1), some.reshape(3 ** bits, -1)


@pytest.mark.parametrize(("transfer", "op"), [
    (lambda a, b: tnum.add(a, b, 0xFF), operator.add),
    (lambda a, b: tnum.sub(a, b, 0xFF), operator.sub),
    (tnum.and_, operator.and_), (tnum.or_, operator.or_), (tnum.xor, operator.xor),
], ids=["add", "sub", "and", "or", "xor"])
def test_all_pairs_of_8_bits_are_exact(transfer: Callable[[Any, Any], Any],
                                       op: Callable[[Words, Words], Words]) -> None:
    every, some = _least(8, op)
    tnums = np.array(_all(8), dtype=np.int64)
    b = tnums[:, 0], tnums[:, 1]
    for row, a in enumerate(_all(8)):
        value, mask = transfer(a, b)
        np.testing.assert_array_equal(value, every[row])
        np.testing.assert_array_equal(mask, some[row] & ~every[row])


def test_mul_of_all_pairs_of_5_bits() -> None:
    every, some = _least(5, operator.mul)
    exact = 0
    for row, a in enumerate(_all(5)):
        for column, b in enumerate(_all(5)):
            value, mask = tnum.mul(a, b, 31)
            low, high = int(every[row, column]), int(some[row, column])
            assert low & ~mask == value and high & ~mask == value, (a, b)
            exact += mask == high & ~low
    assert exact >= 0.85 * 3 ** 10       # the product of tnums has no cheap least one


def test_mul_at_64_bits() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        masks = [rng.getrandbits(64) & rng.getrandbits(64) & rng.getrandbits(64)
                 for _ in range(2)]
        a, b = ((rng.getrandbits(64) & ~mask, mask) for mask in masks)
        product = tnum.mul(a, b)
        for _ in range(4):
            x, y = a[0] | a[1] & rng.getrandbits(64), b[0] | b[1] & rng.getrandbits(64)
            assert tnum.has(product, x * y & tnum.TOP)
    assert tnum.mul(tnum.const(7), tnum.const(-1)) == tnum.const(-7)
    assert tnum.mul(tnum.UNKNOWN, (3, 4)) == tnum.UNKNOWN
    assert tnum.mul((0, 0xFF), tnum.const(20)) == (0, 0x1FFC)


@pytest.mark.parametrize("count", range(8))
def test_shifts_of_all_of_8_bits_are_exact(count: int) -> None:
    for a in _all(8):
        values = _values(a)
        for found, results in (
                (tnum.lshift(a, count, 0xFF), [x << count & 0xFF for x in values]),
                (tnum.rshift(a, count), [x >> count for x in values]),
                (tnum.arshift(a, count, 8), [signed(x, 8) >> count & 0xFF for x in values])):
            assert found == _least_of(results), a


def _least_of(values: list[int]) -> Tnum:
    found = (values[0], 0)
    for value in values:
        found = tnum.union(found, (value, 0))
    return found


def test_neg_and_sign_extension_of_all_of_8_bits() -> None:
    for a in _all(8):
        values = _values(a)
        assert tnum.neg(a, 0xFF) == _least_of([-x & 0xFF for x in values])
        for bits in range(1, 8):
            assert tnum.sign_extend(a, bits, 0xFF) == _least_of(
                [signed(x, bits) & 0xFF for x in values])


def test_sets_of_all_pairs_of_4_bits() -> None:
    for a in _all(4):
        for b in _all(4):
            one, other = set(_values(a)), set(_values(b))
            both = tnum.intersect(a, b)
            assert (set(_values(both)) if both else set()) == one & other
            either = tnum.union(a, b)
            assert either == _least_of([*one, *other])
            assert tnum.in_(a, b) == (other <= one)
    for a in _all(8):
        assert {x for x in range(256) if tnum.has(a, x)} == set(_values(a))


def test_from_all_ranges_of_8_bits() -> None:
    for low in range(256):
        for high in range(low, 256):
            value, mask = tnum.from_range(low, high)
            assert low & ~mask == high & ~mask == value
            assert mask == 0 or (low ^ high) & (mask + 1 >> 1)    # no shorter mask would do


def test_neighbours_of_all_of_8_bits() -> None:
    for a in _all(8)[::7] + _all(4):
        values = sorted(_values(a))
        for bound in range(256):
            above = [x for x in values if x >= bound]
            below = [x for x in values if x <= bound]
            assert tnum.next_at_least(a, bound) == (above[0] if above else None)
            assert tnum.last_at_most(a, bound, 0xFF) == (below[-1] if below else None)


def test_parts() -> None:
    a = (0x1200_0000_0000_0034, 0x00FF_0000_0000_FF00)
    assert tnum.cast(a, 1) == (0x34, 0)
    assert tnum.cast(a, 2) == (0x34, 0xFF00)
    assert tnum.cast(a, 8) == a
    assert tnum.subreg(a) == (0x34, 0xFF00)
    assert tnum.clear_subreg(a) == (0x1200_0000_0000_0000, 0x00FF_0000_0000_0000)
    assert tnum.with_subreg(a, (1, 2)) == (0x1200_0000_0000_0001, 0x00FF_0000_0000_0002)
    assert tnum.const_subreg(a, 5) == (0x1200_0000_0000_0005, 0x00FF_0000_0000_0000)
    assert tnum.is_const(tnum.const(-1)) and not tnum.is_const(tnum.UNKNOWN)
    assert tnum.describe(a) == "(0x1200000000000034; 0xff00000000ff00)"


# --- at 64 bits, by proof ---------------------------------------------------------------------

@pytest.mark.parametrize(("transfer", "op"), [
    (tnum.add, operator.add), (tnum.sub, operator.sub), (tnum.and_, operator.and_),
    (tnum.or_, operator.or_), (tnum.xor, operator.xor),
], ids=["add", "sub", "and", "or", "xor"])
def test_proof_at_64_bits(transfer: Callable[[Any, Any], Any],
                          op: Callable[[Any, Any], Any]) -> None:
    z3 = pytest.importorskip("z3", reason="the z3-solver package is not installed")
    av, am, bv, bm, x, y = z3.BitVecs("av am bv bm x y", 64)
    value, mask = transfer((av, am), (bv, bm))
    solver = z3.Solver()
    solver.add(av & am == 0, bv & bm == 0, x & ~am == av, y & ~bm == bv)
    solver.add(z3.Or(op(x, y) & ~mask != value, value & mask != 0))
    assert solver.check() == z3.unsat
