"""Ring buffers that nobody reads run full, and then a program does something else: they are emptied
between chunks of runs, unmeasured."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from bench.sides import Sample, Side
from xdp_runtime.kernel import KernelProgram
from xdp_runtime.maps.ringbuf import CONSUMER, PRODUCER
from xdp_runtime.object import MapType
from xdp_runtime.program import Program

_PAGE = mmap.PAGESIZE
_FULL = 0.9  # of a ring


class Drained:
    """A side whose rings are emptied before they are full."""

    def __init__(self, side: Side, drain: Callable[[], None], chunk: int) -> None:
        self._side, self._drain, self._chunk = side, drain, chunk
        self.name, self.method = side.name, side.method

    def sample(self, count: int) -> Sample:
        chunks = []
        for _ in range(max(count // self._chunk, 1)):
            self._drain()
            chunks.append(self._side.sample(min(self._chunk, count)))
        return {name: sum(chunk[name] for chunk in chunks) / len(chunks) for name in chunks[0]}

    def timed(self) -> dict[str, Callable[[int], object]]:
        return {}  # what empties the ring would be counted, too


def drain_kernel(program: KernelProgram, stack: ExitStack) -> Callable[[], None]:
    rings = []
    for ring in program.maps.values():
        if ring.spec.type == MapType.RINGBUF:
            rings.append((stack.enter_context(mmap.mmap(ring.fd, _PAGE)), stack.enter_context(
                mmap.mmap(ring.fd, _PAGE, prot=mmap.PROT_READ, offset=_PAGE))))

    def drain() -> None:
        for consumer, producer in rings:
            consumer[:8] = producer[:8]

    return drain


def drain_ours(program: Program) -> Callable[[], None]:
    names = [m.spec.name for m in program.raw_maps.values() if m.spec.type == MapType.RINGBUF]

    def drain() -> None:
        for name in names:
            memory = program.raw_maps[name].memory("ring")
            memory[CONSUMER:CONSUMER + 8] = memory[PRODUCER:PRODUCER + 8]
            memory.release()

    return drain


def chunk_of(program: Program, run: Callable[[], object]) -> int | None:
    """How many runs fill the rings nearly; None if a run puts nothing into one."""
    rings = [m for m in program.raw_maps.values() if m.spec.type == MapType.RINGBUF]
    before = [_produced(program, m.spec.name) for m in rings]
    run()
    grown = [_produced(program, m.spec.name) - was for m, was in zip(rings, before, strict=True)]
    fits = [int(m.spec.max_entries * _FULL) // growth
            for m, growth in zip(rings, grown, strict=True) if growth]
    return max(min(fits), 2) & ~1 if fits else None


def _produced(program: Program, name: str) -> int:
    memory = program.raw_maps[name].memory("ring")
    try:
        return int.from_bytes(memory[PRODUCER:PRODUCER + 8], "little")
    finally:
        memory.release()


def drained(sides: Sequence[Side], ours: Program, kernel: KernelProgram | None,
            run: Callable[[], object], stack: ExitStack) -> list[Side]:
    """The sides, wrapped if the program writes into rings."""
    chunk = chunk_of(ours, run)
    if chunk is None:
        return list(sides)
    drains: dict[str, Callable[[], None]] = {"ours": drain_ours(ours)}
    if kernel is not None:
        drains["kernel"] = drain_kernel(kernel, stack)
    return [Drained(side, drains[side.name], chunk) if side.name in drains else side
            for side in sides]
