"""Does a program's result depend on addresses, or on what was on its stack before?

Root's programs may make numbers of pointers and read what they did not write: then nothing has to
agree with anything.  Our interpreter tells: it makes its addresses up, and its stacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.fuzz.batch import Batch
from bench.fuzz.engines import LISTS, UNSEEN, Interpreted, Step
from bench.fuzz.steps import rounds
from xdp_runtime import interp, interp_memory
from xdp_runtime.interp_memory import Pointer, Stack, Trap
from xdp_runtime.isa import Call
from xdp_runtime.object import Object

_FILL = 0x5A
_STRIDE = 0x0001_2347_1010  # so that no two regions move alike, nor their lower halves little

_CHANCE = {5, 7, 8, 42, 125, 160, 208}  # helpers: clocks, random numbers, CPU and NUMA node


@contextmanager
def elsewhere() -> Iterator[None]:
    """Other addresses for all memory, and stacks that are not zeros."""
    address, new_stack = Pointer.address, interp_memory.new_stack

    def moved(self: Pointer) -> int:
        region = self.region
        return (region.base * 3 + _STRIDE + self.offset) & interp_memory.U64

    def filled(depth: int) -> Stack:
        stack = new_stack(depth)
        stack.data[:] = bytes((_FILL,)) * len(stack.data)
        return stack

    Pointer.address = property(moved)  # type: ignore[assignment, method-assign]
    interp.new_stack = filled  # type: ignore[attr-defined]
    try:
        yield
    finally:
        Pointer.address = address  # type: ignore[method-assign]
        interp.new_stack = new_stack  # type: ignore[attr-defined]


def unsteady(obj: Object, packets: Sequence[bytes], steps: Sequence[Step]) -> bool:
    """Whether it does, on these packets."""
    if any(isinstance(insn, Call) and insn.helper in _CHANCE
           for program in obj.programs for insn in program.insns):
        return True
    here = _results(obj, packets, steps)
    with elsewhere():
        return _results(obj, packets, steps) != here


def _results(obj: Object, packets: Sequence[bytes], steps: Sequence[Step]) -> Any:
    engine = Interpreted(obj)
    out: list[Any] = []
    try:
        for _, some, operations in rounds(packets, steps):
            headers, bodies = engine.run(Batch(some))
            out += [headers.tobytes(), bodies.tobytes()]
            out += [engine.operate(step) for step in operations]
    except Trap as trap:
        return str(trap)
    return out + [engine.contents(spec) for spec in obj.maps
                  if spec.type not in UNSEEN and spec.type not in LISTS]
