"""One instruction, and a register that is a pointer on one path to it and a number on another: what
a compiler makes that moves a packet's length behind a call which may move the packet."""

from __future__ import annotations

import pytest

from tests.privileges import needs_bpf
from xdp_runtime.asm import assemble
from xdp_runtime.compiler import target
from xdp_runtime.errors import LoadError
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.program import load

# r7 is the packet, r9 its end, r3 zero or one.
_BEGIN = """
    r6 = r1
    r7 = *(u32 *)(r6 + 0)
    r9 = *(u32 *)(r6 + 4)
    r2 = r7
    r2 += 64
    r0 = 2
    if r2 > r9 goto out
    r3 = *(u8 *)(r7 + 20)
    r3 &= 1
    r4 = r7
    r5 = r7
    r5 += 9
"""
_END = """
out:
    exit
"""
_CASES = {
    "distance": """
        if r3 == 0 goto both
        r9 = 100
        r7 = 40
    both:
        r9 -= r7
        r0 = r9
    """,
    "distance in 32 bits": """
        if r3 == 0 goto both
        r9 = 100
        r7 = 40
    both:
        w9 -= w7
        r0 = r9
    """,
    "sum with a constant": """
        if r3 == 0 goto both
        r4 = 40
    both:
        r4 += 5
        r0 = r4
        if r3 != 0 goto out
        r0 = *(u8 *)(r4 + 0)
    """,
    "number plus either": """
        r5 = 7
        if r3 == 0 goto both
        r4 = 40
    both:
        r5 += r4
        r5 -= 2
        r0 = r5
        if r3 != 0 goto out
        r0 = *(u8 *)(r5 + 0)
    """,
    "pointer minus either": """
        if r3 == 0 goto both
        r4 = 3
    both:
        r5 -= r4
        r0 = r5
        if r3 == 0 goto out
        r0 = *(u8 *)(r5 + 0)
    """,
    "a place on the stack": """
        *(u64 *)(r10 - 16) = 77
        r4 = r10
        if r3 == 0 goto both
        r4 = 300
    both:
        r4 += -16
        r0 = r4
        if r3 != 0 goto out
        r0 = *(u64 *)(r4 + 0)
    """,
    "length behind a call that may move the packet": """
        *(u64 *)(r10 - 8) = r7
        *(u64 *)(r10 - 24) = r3
        r4 = r10
        r3 <<= 3
        r4 += r3
        *(u64 *)(r4 - 32) = 0
        r3 = *(u64 *)(r10 - 24)
        if r3 == 0 goto both
        r1 = r6
        r2 = 4
        call bpf_xdp_adjust_head#44
    both:
        r2 = *(u64 *)(r10 - 8)
        r9 -= r2
        r0 = r9
    """,
}
PACKETS = [bytes(range(size)) for size in (64, 100)] + [b"\1" * 64, bytes(20) + b"\5" * 80]


def _object(body: str) -> Object:
    return Object("test", (ProgramSpec("test", "xdp", "xdp", assemble(_BEGIN + body + _END)),), (),
                  "GPL")


def _interpreted(obj: Object) -> list[int]:
    return [Machine(obj, obj.programs[0]).run(packet).verdict for packet in PACKETS]


@pytest.mark.parametrize("opt", target.TESTED)
@pytest.mark.parametrize("name", _CASES)
def test_compiled_is_interpreted(name: str, opt: int) -> None:
    obj = _object(_CASES[name])
    with load(obj, opt=opt) as program:
        assert [program.run(packet).retval for packet in PACKETS] == _interpreted(obj)


@pytest.mark.root
@needs_bpf()[1]
@pytest.mark.parametrize("name", _CASES)
def test_kernel(name: str) -> None:
    obj = _object(_CASES[name])
    with load_into_kernel(obj) as program:
        assert [program.run(packet).retval for packet in PACKETS] == _interpreted(obj)


def test_which_of_two_registers_has_the_pointer_is_not_decided_at_run_time() -> None:
    obj = _object("""
        r5 = 7
        if r3 == 0 goto both
        r4 = 40
        r5 = r7
    both:
        r5 += r4
        r0 = *(u8 *)(r5 + 0)
    """)
    with pytest.raises(LoadError, match="pointer is in either register"):
        load(obj)
