"""One micro program on both sides, in turns, as a record."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from bench import native_compare
from bench.cases import EXAMPLES, Case
from bench.micro import many
from bench.micro.cases import Goal, Micro, build, build_native
from bench.prog import (
    LEAST_KERNEL_NS,
    LEAST_OURS_NS,
    KernelSide,
    Mismatch,
    OurSide,
    Sample,
    compare,
)
from bench.samples import Spread
from xdp_runtime.elf import read_object
from xdp_runtime.errors import XdpuError
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.maps.ringbuf import CONSUMER, PRODUCER
from xdp_runtime.object import Object
from xdp_runtime.program import Program, load

_PAGE = mmap.PAGESIZE
_CHUNK = 12_000  # records of 72 bytes that a ring of 1 MiB holds
_LEAST_NATIVE_NS = 1.0


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
        return {name: sum(chunk[name] for chunk in chunks) / len(chunks) for name in chunks[0]}


def _drain_kernel(fd: int, stack: ExitStack) -> Callable[[], None]:
    consumer = stack.enter_context(mmap.mmap(fd, _PAGE))
    producer = stack.enter_context(mmap.mmap(fd, _PAGE, prot=mmap.PROT_READ, offset=_PAGE))

    def drain() -> None:
        consumer[:8] = producer[:8]

    return drain


def _drain_ours(program: Program, name: str) -> Callable[[], None]:
    def drain() -> None:
        memory = program.maps[name].memory("ring")
        memory[CONSUMER:CONSUMER + 8] = memory[PRODUCER:PRODUCER + 8]
        memory.release()

    return drain


def measure(micro: Micro, where: Path, repeat: int, rounds: int) -> dict[str, Any]:
    """Compared, then timed.  What does not agree has no figures."""
    record: dict[str, Any] = {"name": micro.name, "verdict": micro.verdict.name,
                              "packet_bytes": len(micro.packet)}
    if micro.stream is not None:
        record["flows"] = micro.stream.flows
    obj = read_object(build(micro.source, where, *micro.flags))
    count = max(repeat // micro.slow, 2)
    with ExitStack() as stack:
        try:
            if micro.stream is not None:
                record["method"] = "many"
                sides: tuple[Side, Side] = many.prepare(obj, micro, where, stack)
            else:
                sides = _single(obj, micro, stack, record)
            samples = _take(sides, count, rounds)
            if micro.stream is not None:
                record["compared_entries"] = many.compare_maps(micro, *sides)  # type: ignore
        except (Mismatch, XdpuError) as mismatch:
            return {**record, "ok": False, "mismatch": str(mismatch)}
        record |= {"ok": True, "kernel": summary(samples[0]), "ours": summary(samples[1]),
                   "ratio": ratio(*samples)}
    if micro.native:
        record["native"] = against_native(obj, micro, where, count, rounds)
    if micro.goal is not None:
        record["goal"], record["met"] = str(micro.goal), is_met(micro.goal, record)
    return record


def _single(obj: Object, micro: Micro, stack: ExitStack, record: dict[str, Any]
            ) -> tuple[Side, Side]:
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
    record["method"] = theirs.method
    if not micro.drained:
        return theirs, mine
    return (_Drained(theirs, _drain_kernel(kernel.maps[micro.drained].fd, stack)),
            _Drained(mine, _drain_ours(program, micro.drained)))


def _fill(micro: Micro, kernel: KernelProgram, ours: Program) -> None:
    for name, entries in micro.entries().items():
        for key, value in entries.items():
            kernel.maps[name].update(key, value)
            ours.maps[name].update(key, value)


def _take(sides: tuple[Side, Side], count: int, rounds: int
          ) -> tuple[list[Sample], list[Sample]]:
    samples: tuple[list[Sample], list[Sample]] = ([], [])
    for side in sides:
        side.sample(max(count // 10, 2))  # warm
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            samples[which].append(sides[which].sample(count))
    return samples


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    columns = {name: [round(sample[name], 3) for sample in samples] for name in samples[0]}
    return {**{name: Spread.of(values).record() for name, values in columns.items()},
            "samples": columns}


def ratio(theirs: Sequence[Sample], mine: Sequence[Sample]) -> dict[str, float] | None:
    """Kernel net / ours net, round by round; None when there is nothing to divide."""
    kernel = [sample["net"] for sample in theirs]
    if Spread.of(kernel).median < LEAST_KERNEL_NS:
        return None
    ours = [max(sample["net"], LEAST_OURS_NS) for sample in mine]
    return Spread.of([k / o for k, o in zip(kernel, ours, strict=True)]).record(2)


def against_native(obj: Object, micro: Micro, where: Path, count: int, rounds: int
                   ) -> dict[str, Any]:
    """The same C, inlined by clang -O2 -march=native in the same loop over the same frames."""
    with ExitStack() as stack:
        library = ctypes.CDLL(str(build_native(micro.source, where)))
        ring = native_compare.Frames()
        program = stack.enter_context(load(obj, micro.program))
        idle = stack.enter_context(load(read_object(EXAMPLES / "pass.o")))
        runs = {"ours": native_compare.compiled(program, ring),
                "ours_floor": native_compare.compiled(idle, ring),
                "native": native_compare.natively(library, micro.program, ring),
                "native_floor": native_compare.natively(library, "empty", ring)}
        columns: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds + 1):
            for name in sorted(runs, reverse=turn % 2 == 0):
                verdict, packet, took = runs[name](micro.packet, count)
                if verdict != micro.verdict or packet != micro.packet:
                    raise Mismatch(f"{name}: verdict {verdict}")
                if turn:  # the first one warms
                    columns[name].append(round(took, 3))
    net = {side: [a - b for a, b in zip(columns[side], columns[f"{side}_floor"], strict=True)]
           for side in ("ours", "native")}
    native = Spread.of(net["native"]).median
    return {"ours": Spread.of(net["ours"]).record(), "native": Spread.of(net["native"]).record(),
            "ratio": round(Spread.of(net["ours"]).median / native, 3)
            if native >= _LEAST_NATIVE_NS else None,
            "gross_ratio": Spread.of([a / b for a, b in zip(
                columns["ours"], columns["native"], strict=True)]).record(),
            "samples": columns}


def is_met(goal: Goal, record: dict[str, Any]) -> bool:
    match goal.against:
        case "native":
            native = record["native"]
            share = native["ratio"] if native["ratio"] is not None else (
                native["gross_ratio"]["median"])
            return bool(share <= goal.bound)
        case "kernel":
            return record["ratio"] is not None and bool(record["ratio"]["median"] >= goal.bound)
        case _:
            return bool(record["ours"]["net"]["median"] <= goal.bound)
