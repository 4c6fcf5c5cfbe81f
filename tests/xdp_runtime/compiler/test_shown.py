"""What a comparison with the end of a packet shows to exist, LLVM may load at any time; no more."""

from __future__ import annotations

import re

import pytest

from tests.privileges import needs_bpf
from xdp_runtime.asm import assemble
from xdp_runtime.compiler import link, target
from xdp_runtime.compiler.lower import Lowering
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.program import load
from xdp_runtime.repeat import UNIT

LENGTH = 600
# (comparison, is the pointer inside where it jumps?)
COMPARISONS = [
    ("r4 > r3", False), ("r4 >= r3", False), ("r3 < r4", False), ("r3 <= r4", False),
    ("r4 < r3", True), ("r4 <= r3", True), ("r3 > r4", True), ("r3 >= r4", True),
]


def program(text: str) -> Object:
    insns = assemble(text, [])
    return Object("test", (ProgramSpec("test", "xdp", "xdp", insns),), (), "GPL")


def scan(comparison: str, inside: bool) -> Object:
    """Where the first zero is in LENGTH bytes of packet."""
    body = f"""
        r0 = 0
    again:
        r5 = r2
        r5 += r0
        r5 = *(u8 *)(r5 + 0)
        if r5 == 0 goto out
        r0 += 1
        if r0 != {LENGTH} goto again
        goto out
    """
    beyond = "r0 = 1000\ngoto out\n"
    sides = beyond + "far:\n" + body if inside else body + "far:\n" + beyond
    return program(f"""
        r2 = *(u32 *)(r1 + 0)
        r3 = *(u32 *)(r1 + 4)
        r4 = r2
        r4 += {LENGTH}
        if {comparison} goto far
        {sides}
    out:
        exit
    """)


def shown(text: str) -> list[tuple[str, int]]:
    """(lowered, bytes) of each block that begins with what was shown."""
    return [(label, int(size)) for label, size in re.findall(
        r'^([\w.]+):\n  call void @llvm.assume\(i1 true\) \[ "dereferenceable"\(ptr [^,]+, '
        r"i64 (\d+)\) \]$", text, re.M)]


def lowered(obj: Object) -> str:
    spec = obj.programs[0]
    return Lowering(spec, 0, obj.maps, 1, [0], link.proven_facts(obj, spec)).lower().text


@pytest.mark.parametrize(("comparison", "inside"), COMPARISONS)
def test_bytes_are_shown_on_the_side_where_they_exist(comparison: str, inside: bool) -> None:
    text = lowered(scan(comparison, inside))
    ((label, size),) = shown(text)
    assert size == LENGTH
    taken, falls = re.findall(rf"br i1 %\w+, label %({label}|\S+), label %({label}|\S+)", text)[0]
    assert (taken if inside else falls) == label


def test_a_loop_with_two_exits_becomes_vector_code() -> None:
    obj = scan("r4 > r3", False)
    module, _, _ = link.build_module(obj, obj.program(), 1, [UNIT])
    target.optimise(module, 3)
    assert re.search(r"load <\d+ x i8>, ptr", str(module))


@pytest.mark.parametrize("opt", [0, 3])
@pytest.mark.parametrize(("comparison", "inside"), COMPARISONS)
def test_every_place_of_the_zero_and_every_length(comparison: str, inside: bool, opt: int) -> None:
    obj = scan(comparison, inside)
    machine = Machine(obj, obj.programs[0])
    packets = [(b"\1" * at + bytes(1)).ljust(LENGTH, b"\7") for at in range(0, LENGTH, 7)]
    packets += [b"\1" * size for size in range(LENGTH - 2, LENGTH + 3)]
    with load(obj, opt=opt) as compiled:
        for packet in packets:
            assert compiled.run(packet).retval == machine.run(packet).verdict


def reach(comparison: str, steps: str) -> Object:
    """2 if it jumps, 1 if not: a pointer so many steps behind the packet's start, and its end."""
    return program(f"""
        r2 = *(u32 *)(r1 + 0)
        r3 = *(u32 *)(r1 + 4)
        r0 = 0
        r4 = r2
        r4 += 14
        if r4 > r3 goto out
        r5 = *(u8 *)(r2 + 13)
        r4 = r2
        {steps}
        r0 = 1
        if {comparison} goto far
        goto out
    far:
        r0 = 2
    out:
        exit
    """)


STEPS = ["r4 += 20", "r4 += r5\nr4 += 20", "r4 += 20\nr4 += r5", "r4 += r5"]
REACHED = [bytes(13) + bytes([step]) + bytes(rest) for step in (0, 1, 6, 200, 255)
           for rest in (0, 1, 5, 6, 7, 12, 191, 192, 205, 206, 207, 241, 260, 261, 262)]


@pytest.mark.parametrize("opt", [0, 3])
@pytest.mark.parametrize("comparison", [one for one, _ in COMPARISONS])
@pytest.mark.parametrize("steps", STEPS)
def test_without_a_loop_pointers_before_at_and_behind_the_end(steps: str, comparison: str,
                                                             opt: int) -> None:
    obj = reach(comparison, steps)
    machine = Machine(obj, obj.programs[0])
    with load(obj, opt=opt) as compiled:
        results = [compiled.run(packet).retval for packet in REACHED]
    assert results == [machine.run(packet).verdict for packet in REACHED]
    assert {1, 2} <= set(results)


class TestAgainstTheKernel:
    pytestmark = needs_bpf()

    @pytest.mark.parametrize("steps", STEPS)
    def test_bounds(self, steps: str) -> None:
        for comparison, _ in COMPARISONS:
            obj = reach(comparison, steps)
            with load(obj) as compiled, load_into_kernel(obj) as kernel:
                assert [compiled.run(packet).retval for packet in REACHED] == \
                    [kernel.run(packet).retval for packet in REACHED]

    def test_where_the_zero_is(self) -> None:
        obj = scan("r4 > r3", False)
        with load(obj) as compiled, load_into_kernel(obj) as kernel:
            for at in (0, 1, 15, 16, 63, 64, 65, 127, 128, 575, 576, 598, 599, 600):
                packet = (b"\1" * at + bytes(1)).ljust(LENGTH, b"\2")[:LENGTH]
                assert compiled.run(packet).retval == kernel.run(packet).retval == at


def _edges(text: str) -> list[int]:
    """Of the comparisons of a program, in order."""
    obj = program(text)
    edges = link.proven_facts(obj, obj.programs[0]).edges
    return [edges[slot] for slot in sorted(edges)]


_EDGES = "r2 = *(u32 *)(r1 + 0)\nr3 = *(u32 *)(r1 + 4)\nr4 = r2\n"
_OUT = "out:\nr0 = 2\nexit"


def test_the_least_of_all_paths() -> None:
    assert _edges(f"""
        r5 = *(u32 *)(r1 + 16)
        {_EDGES} r4 += 10
        if r5 == 0 goto one
        r4 += 10
    one:
        if r4 > r3 goto out
    {_OUT}""") == [10]


def test_behind_a_variable_offset_only_what_is_constant() -> None:
    assert _edges(f"""
        {_EDGES} r4 += 14
        if r4 > r3 goto out
        r5 = *(u8 *)(r2 + 0)
        r2 += r5
        r2 += 20
        if r3 < r2 goto out
    {_OUT}""") == [14, -20]


@pytest.mark.parametrize("compared", [
    "r4 += -4\nif r4 > r3 goto out",
    "if r4 > r3 goto out",
    "r5 = *(u32 *)(r1 + 16)\nr5 &= 0x1ffff\nr4 += r5\nr4 += 20\nif r4 > r3 goto out",
    "r4 += 20\nif r4 > r2 goto out",
])
def test_what_shows_nothing(compared: str) -> None:
    assert _edges(f"{_EDGES}{compared}\n{_OUT}") == [0]
