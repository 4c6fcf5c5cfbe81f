"""Branch refinement: who takes an edge is in what it says, and an edge that is taken is there."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.xdp_runtime.verifier.narrow import Narrow, narrow
from tests.xdp_runtime.verifier.scalars import narrow_sample, sample
from xdp_runtime import interp_alu
from xdp_runtime.isa import JmpOp
from xdp_runtime.verifier import scalar, scalar_branch
from xdp_runtime.verifier.scalar import UNKNOWN, Scalar
from xdp_runtime.verifier.tnum import TOP

_BOTH = (True, False)


def _check(world: Narrow, op: JmpOp, is64: bool, a: Any, b: Any,
           outcomes: list[list[bool]]) -> tuple[int, int]:
    """How many edges never taken there are, and how many of them were seen to be so."""
    never = seen = 0
    firsts, seconds = world.members(a), world.members(b)
    for taken in _BOTH:
        edge = world.cond.branch(op, is64, a, b, taken)
        pairs = [(x, y) for x in firsts for y in seconds if outcomes[x][y] == taken]
        if edge is None:
            assert not pairs, (op, is64, a, b, taken)
        else:
            assert {x for x, _ in pairs} <= set(world.members(edge[0])), (op, is64, a, b, taken)
            assert {y for _, y in pairs} <= set(world.members(edge[1])), (op, is64, a, b, taken)
            if is64 or op is not JmpOp.SET:  # of which the kernel forgets the whole's sign
                assert world.scalar.contains(a, edge[0]) and world.scalar.contains(b, edge[1])
        never += not pairs
        seen += edge is None
    return never, seen


def _outcomes(world: Narrow, op: JmpOp, is64: bool) -> list[list[bool]]:
    return [[world.compare(op, is64, x, y) for y in world.values] for x in world.values]


@pytest.mark.parametrize("op", JmpOp, ids=lambda op: op.name)
@pytest.mark.parametrize("is64", _BOTH, ids=["64", "32"])
def test_all_ranges_and_bits_of_4_bits(op: JmpOp, is64: bool) -> None:
    """All unsigned ranges with all signed ones, with all numbers, and all tnums with all numbers.

    With a number on one side a comparison that never holds is always seen as such.
    """
    world = narrow(4)
    outcomes = _outcomes(world, op, is64)
    ranges = [world.full(unsigned=pair) for pair in world.ranges()]
    signed = [world.full(signed=(low - 8, high - 8)) for low, high in world.ranges()]
    for a, b in itertools.product(ranges[::3], signed[::2]):
        _check(world, op, is64, a, b, outcomes)
    tnums = [world.full(tnum) for tnum in world.tnums()]
    never = seen = 0
    for a, b in itertools.product(ranges + signed + tnums, world.values):
        counts = _check(world, op, is64, a, world.scalar.const(b), outcomes)
        never, seen = never + counts[0], seen + counts[1]
        _check(world, op, is64, world.scalar.const(b), a, outcomes)
    assert seen == never if op is not JmpOp.SET else seen >= 0.9 * never


@pytest.mark.parametrize("op", JmpOp, ids=lambda op: op.name)
@pytest.mark.parametrize("is64", _BOTH, ids=["64", "32"])
def test_any_shapes_of_8_bits(op: JmpOp, is64: bool) -> None:
    world, rng = narrow(8), random.Random(op.value + is64)
    outcomes = _outcomes(world, op, is64)
    for _ in range(200):
        _check(world, op, is64, narrow_sample(world, rng), narrow_sample(world, rng), outcomes)


@pytest.mark.parametrize("op", JmpOp, ids=lambda op: op.name)
def test_samples_of_64_bits(op: JmpOp) -> None:
    rng = random.Random(op.value)
    for _ in range(2000):
        (a, one), (b, other) = sample(rng), sample(rng)
        for is64 in _BOTH:
            edges = {taken: scalar_branch.branch(op, is64, a, b, taken) for taken in _BOTH}
            known = scalar_branch.always(op, is64, a, b)
            for x, y in itertools.product(one, other):
                outcome = interp_alu.compare(op, is64, x, y)
                edge = edges[outcome]
                assert edge is not None and edge[0].has(x) and edge[1].has(y), (is64, a, b, x, y)
                assert known in (None, outcome)


def _range(low: int, high: int) -> Scalar:
    return scalar.from_range(low, high)


@pytest.mark.parametrize(("op", "is64", "a", "b", "taken", "expected"), [
    (JmpOp.LT, True, UNKNOWN, scalar.const(64), True, (0, 63)),
    (JmpOp.LT, True, UNKNOWN, scalar.const(64), False, (64, TOP)),
    (JmpOp.GT, True, UNKNOWN, scalar.const(64), False, (0, 64)),
    (JmpOp.GE, True, _range(0, 100), scalar.const(64), True, (64, 100)),
    (JmpOp.LE, True, _range(0, 100), _range(10, 20), True, (0, 20)),
    (JmpOp.EQ, True, UNKNOWN, scalar.const(8), True, (8, 8)),
    (JmpOp.NE, True, _range(0, 9), scalar.const(0), True, (1, 9)),
    (JmpOp.NE, True, _range(0, 9), scalar.const(9), True, (0, 8)),
    (JmpOp.SGT, True, _range(0, 100), scalar.const(-1), False, None),
    (JmpOp.LT, True, UNKNOWN, scalar.const(0), True, None),
    (JmpOp.SET, True, _range(0, 7), scalar.const(8), True, None),
    (JmpOp.SET, True, _range(0, 7), scalar.const(4), True, (4, 7)),
    (JmpOp.SET, True, _range(0, 7), scalar.const(4), False, (0, 3)),
    (JmpOp.SGE, False, UNKNOWN, scalar.const(0), True, (0, TOP - (1 << 31))),
    (JmpOp.LT, False, scalar.unsigned(4), scalar.const(64), True, (0, 63)),
    (JmpOp.SLT, False, scalar.signed(4), scalar.const(0), False, (0, 0x7FFF_FFFF)),
])
def test_what_programs_ask(op: JmpOp, is64: bool, a: Scalar, b: Scalar, taken: bool,
                           expected: tuple[int, int] | None) -> None:
    edge = scalar_branch.branch(op, is64, a, b, taken)
    assert (edge and (edge[0].umin, edge[0].umax)) == expected


def test_always() -> None:
    assert scalar_branch.always(JmpOp.LT, True, _range(0, 9), scalar.const(10)) is True
    assert scalar_branch.always(JmpOp.GE, True, _range(0, 9), scalar.const(10)) is False
    assert scalar_branch.always(JmpOp.GE, True, _range(0, 10), scalar.const(10)) is None


def test_what_is_not_refined_is_the_same_object() -> None:
    a, b = _range(0, 9), scalar.const(20)
    assert scalar_branch.branch(JmpOp.LT, True, a, b, True) == (a, b)
    edge = scalar_branch.branch(JmpOp.NE, True, a, b, True)
    assert edge is not None and edge[0] is a and edge[1] is b
