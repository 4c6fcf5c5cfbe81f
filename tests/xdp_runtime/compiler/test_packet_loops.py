"""Loops over a packet that end at its end: vector code, and the same result at each length."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.compiler.test_shown import COMPARISONS, program
from xdp_runtime.compiler import link, target
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import Object
from xdp_runtime.program import load
from xdp_runtime.repeat import UNIT

ROUNDS = 300
LENGTHS = (14, 15, 16, 17, 18, 33, 34, 47, 48, 49, 79, 80, 81, 145, 146, 147, 273, 274, 401,
           ROUNDS * 2 + 13, ROUNDS * 2 + 14, ROUNDS * 2 + 15, ROUNDS * 2 + 16, 900)


def total(comparison: str, inside: bool) -> Object:
    """The sum of the packet's 16-bit words behind its first 14 bytes, ROUNDS of them at most."""
    if inside:
        first, again = f"if {comparison} goto round\ngoto out", f"if {comparison} goto round"
    else:
        first, again = f"if {comparison} goto out", f"if {comparison} goto out\ngoto round"
    return program(f"""
        r2 = *(u32 *)(r1 + 0)
        r3 = *(u32 *)(r1 + 4)
        r0 = 0
        r6 = 0
        r4 = r2
        r4 += 16
        {first}
    round:
        r5 = *(u16 *)(r4 - 2)
        w0 += w5
        w6 += 1
        if w6 > {ROUNDS - 1} goto out
        r4 += 2
        {again}
    out:
        exit
    """)


def indexed(comparison: str, inside: bool) -> Object:
    """As `total`, but compared before a round, which ends by a count."""
    leave = f"if {comparison} goto round\ngoto out" if inside else f"if {comparison} goto out"
    return program(f"""
        r2 = *(u32 *)(r1 + 0)
        r3 = *(u32 *)(r1 + 4)
        r0 = 0
        r6 = 0
    again:
        r5 = r2
        r5 += r6
        r4 = r5
        r4 += 16
        {leave}
    round:
        r5 = *(u16 *)(r5 + 14)
        w0 += w5
        r6 += 2
        if r6 != {ROUNDS * 2} goto again
    out:
        exit
    """)


def flip(comparison: str, inside: bool) -> Object:
    """Turn all bits of the packet, byte for byte."""
    away = "goto out" if inside else ""
    return program(f"""
        r2 = *(u32 *)(r1 + 0)
        r3 = *(u32 *)(r1 + 4)
        r6 = 0
        r4 = r2
        r4 += 1
    next:
        if {comparison} goto {"round" if inside else "out"}
        {away}
    round:
        r5 = *(u8 *)(r4 - 1)
        r5 ^= 0xff
        *(u8 *)(r4 - 1) = r5
        r4 += 1
        w6 += 1
        if w6 < {ROUNDS} goto next
    out:
        r0 = 2
        exit
    """)


def packet(size: int) -> bytes:
    return bytes((n * 37 + 11) & 0xFF for n in range(size))


@pytest.mark.parametrize(("comparison", "inside"), COMPARISONS)
def test_the_rounds_are_counted_in_advance(comparison: str, inside: bool) -> None:
    for make, vector in ((total, r"load <\d+ x i16>"), (indexed, r"load <\d+ x i16>"),
                         (flip, r"store <\d+ x i8> ")):
        obj = make(comparison, inside)
        module, _, _ = link.build_module(obj, obj.program(), 1, [UNIT])
        target.optimise(module, 3)
        assert re.search(vector, str(module)), make.__name__


@pytest.mark.parametrize("make", [total, indexed, flip])
@pytest.mark.parametrize(("comparison", "inside", "opt"),
                         [(*COMPARISONS[0], 0), *((*one, 3) for one in COMPARISONS)])
def test_every_length(comparison: str, inside: bool, make: Callable[[str, bool], Object],
                      opt: int) -> None:
    obj = make(comparison, inside)
    machine = Machine(obj, obj.programs[0])
    with load(obj, opt=opt) as compiled:
        for size in LENGTHS:
            ours, model = compiled.run(packet(size)), machine.run(packet(size))
            assert (ours.retval, ours.data_out) == (model.verdict, model.data_out), size


class TestAgainstTheKernel:
    pytestmark = needs_bpf()

    @pytest.mark.parametrize("make", [total, indexed, flip])
    def test_every_length(self, make: Callable[[str, bool], Object]) -> None:
        obj = make("r4 > r3", False)
        with load(obj) as compiled, load_into_kernel(obj) as kernel:
            for size in LENGTHS:
                ours, theirs = compiled.run(packet(size)), kernel.run(packet(size))
                assert (ours.retval, ours.data_out) == (theirs.retval, theirs.data_out), size
