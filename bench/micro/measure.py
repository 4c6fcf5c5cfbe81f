"""One micro program on all sides, in turns, as records."""

from __future__ import annotations

import mmap
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from bench.cases import EXAMPLES, Case
from bench.micro import many, native, records
from bench.micro.cases import Micro, build
from bench.micro.records import Record
from bench.prog import KernelSide, Mismatch, OurSide, Sample, compare
from xdp_runtime.elf import read_object
from xdp_runtime.errors import XdpuError
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.maps.ringbuf import CONSUMER, PRODUCER
from xdp_runtime.object import Object
from xdp_runtime.program import Program, load

_PAGE = mmap.PAGESIZE
_TRIES = 3  # a round, the middle one of which counts
_CHUNK = 12_000  # records of 72 bytes that a ring of 1 MiB holds


class Side(Protocol):
    def sample(self, count: int) -> Sample: ...


class _Drained:
    """A side whose ring is emptied, unmeasured, before it is full."""

    def __init__(self, side: Side, drain: Callable[[], None]) -> None:
        self._side, self._drain = side, drain

    def sample(self, count: int) -> Sample:
        chunks = []
        for _ in range(max(count // _CHUNK, 1)):
            self._drain()
            chunks.append(self._side.sample(_CHUNK))
        return {name: statistics.median(chunk[name] for chunk in chunks) for name in chunks[0]}


def _drain_kernel(fd: int, stack: ExitStack) -> Callable[[], None]:
    consumer = stack.enter_context(mmap.mmap(fd, _PAGE))
    producer = stack.enter_context(mmap.mmap(fd, _PAGE, prot=mmap.PROT_READ, offset=_PAGE))

    def drain() -> None:
        consumer[:8] = producer[:8]

    return drain


def _drain_ours(program: Program, name: str) -> Callable[[], None]:
    def drain() -> None:
        memory = program.raw_maps[name].memory("ring")
        memory[CONSUMER:CONSUMER + 8] = memory[PRODUCER:PRODUCER + 8]
        memory.release()

    return drain


def measure(micro: Micro, where: Path, repeat: int, rounds: int) -> list[Record]:
    """Compared, then timed.  What does not agree has no figures."""
    obj = read_object(build(micro.source, where, *micro.flags))
    count = max(repeat // micro.slow, 2)
    with ExitStack() as stack:
        try:
            if micro.stream is not None:
                kernel, ours = many.prepare(obj, micro, where, stack)
                # a loop is started and waited for: it has to run for long
                samples = _take((kernel, ours), count * _TRIES, rounds)
                many.compare_maps(micro, kernel, ours)
                ways = ("many", "many")
            else:
                *sides, way = _single(obj, micro, stack)
                samples = _take((sides[0], sides[1]), count, rounds)
                ways = (way, "plain")
            out = [_record(micro, engine, way, side) for engine, way, side in zip(
                ("kernel", "xdpu"), ways, samples, strict=True)]
            if micro.stream is not None:
                out += [records.make(micro.name, "xdpu", f"many look-ahead {how}",
                                     *_columns(samples[1], f"look_ahead_{how}"))
                        for how in ("on", "off")]
            if micro.native:
                out += native.compare(micro, where, count, rounds)
        except (Mismatch, XdpuError) as mismatch:
            return [records.mismatch(micro.name, str(mismatch))]
    if micro.goal is not None:
        records.judge(micro.goal, out)
    return out


def _single(obj: Object, micro: Micro, stack: ExitStack) -> tuple[Side, Side, str]:
    """(kernel, ours, how the kernel's is repeated)"""
    kernel = stack.enter_context(load_into_kernel(obj, micro.program))
    program = stack.enter_context(load(obj, micro.program))
    idle = read_object(EXAMPLES / "pass.o")
    case = Case(micro.name, micro.packet, micro.verdict,
                ignored=(micro.drained, *micro.uncompared))
    _fill(micro, kernel, program)
    compare(case, kernel, program)
    theirs = KernelSide(kernel, case, stack.enter_context(load_into_kernel(idle)))
    stack.callback(theirs.close)
    mine = OurSide(program, case, stack.enter_context(load(idle)))
    if not micro.drained:
        return theirs, mine, theirs.method
    return (_Drained(theirs, _drain_kernel(kernel.maps[micro.drained].fd, stack)),
            _Drained(mine, _drain_ours(program, micro.drained)), theirs.method)


def _fill(micro: Micro, kernel: KernelProgram, ours: Program) -> None:
    for name, entries in micro.entries().items():
        for key, value in entries.items():
            kernel.maps[name].update(key, value)
            ours.raw_maps[name].update(key, value)


def _take(sides: tuple[Side, Side], count: int, rounds: int
          ) -> tuple[list[Sample], list[Sample]]:
    samples: tuple[list[Sample], list[Sample]] = ([], [])
    for side in sides:
        side.sample(max(count // 10, 2))  # warm
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            samples[which].append(_middle(sides[which], max(count // _TRIES, 2)))
    return samples


def _middle(side: Side, count: int) -> Sample:
    """Of some in a row: others run on this machine, too."""
    return sorted((side.sample(count) for _ in range(_TRIES)), key=lambda one: one["net"])[
        _TRIES // 2]


def _columns(samples: Sequence[Sample], net: str) -> tuple[list[float], list[float]]:
    """(raw, net)"""
    return ([one[net] + one["floor"] if net != "net" else one["raw"] for one in samples],
            [one[net] for one in samples])


def _record(micro: Micro, engine: str, way: str, samples: Sequence[Sample]) -> Record:
    return records.make(micro.name, engine, way, *_columns(samples, "net"))
