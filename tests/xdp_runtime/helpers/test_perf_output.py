"""bpf_perf_event_output: interpreted = compiled = what comes out of the kernel's perf events."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.oracle import one_program, packet_in
from xdp_runtime.interp import Machine
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Call,
    Exit,
    Imm,
    Insn,
    LoadImm64,
    LoadMap,
    Mov,
    Reg,
    Store,
)
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.kernel_event import KernelEvent
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.model import ModelEvents
from xdp_runtime.object import MapSpec, MapType
from xdp_runtime.program import load

PERF_EVENT_OUTPUT, CURRENT_CPU = 25, 0xFFFFFFFF
SAMPLES = MapSpec("samples", MapType.PERF_EVENT_ARRAY, 4, 4, os.cpu_count() or 1)


def program(size: int, flags: int) -> list[Insn]:
    """`size` bytes of the stack, and of the packet what the flags say; the result goes into it."""
    return [Mov(True, 7, Reg(1)), *packet_in(6, 16),
            LoadImm64(2, 0x8877665544332211), Store(10, -24, 8, Reg(2)), Store(10, -16, 8, Reg(2)),
            Store(10, -8, 8, Reg(2)), Mov(True, 1, Reg(7)), LoadMap(2, 0), LoadImm64(3, flags),
            Mov(True, 4, Reg(10)), Alu(AluOp.ADD, True, 4, Imm(-24)), Mov(True, 5, Imm(size)),
            Call(PERF_EVENT_OUTPUT), Store(6, 0, 8, Reg(0)), Mov(True, 0, Imm(2)), Exit()]


@contextmanager
def this_cpu() -> Iterator[int]:
    """Stay on one CPU, which the kernel's event is of."""
    before = os.sched_getaffinity(0)
    cpu = min(before)
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, before)


def cases(seed: int, count: int) -> list[tuple[int, int, bytes]]:
    """(bytes of the stack, flags, packet)"""
    rng, out = random.Random(seed), []
    for _ in range(count):
        packet = rng.randbytes(rng.randrange(16, 200))
        of_packet = rng.choice((0, 0, 1, 14, len(packet), len(packet) + 1, 0xFFFFF, 0x100000))
        index = rng.choice((CURRENT_CPU,) * 6 + (10_000, 0xFFFFFFFE))
        out.append((rng.choice((0, 1, 7, 8, 16, 24)), index | of_packet << 32, packet))
    return out


Found = tuple[int, list[bytes]]


def interpreted(size: int, flags: int, packet: bytes) -> Found:
    obj = one_program(program(size, flags), (SAMPLES,))
    machine = Machine(obj, obj.programs[0])
    result = int.from_bytes(machine.run(packet).data_out[:8], "little", signed=True)
    events = machine.maps[0]
    assert isinstance(events, ModelEvents)
    return result, events.records


@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_is_interpreted(opt: int) -> None:
    for size, flags, packet in cases(1, 12):
        with load(one_program(program(size, flags), (SAMPLES,)), opt=opt) as made:
            result = int.from_bytes(made.run(packet).data_out[:8], "little", signed=True)
            assert (result, made.raw_maps["samples"].consume()) == interpreted(size, flags, packet)


@pytest.mark.root
@needs_bpf()[1]
def test_kernel() -> None:
    met = set()
    with this_cpu() as cpu:
        event = KernelEvent(cpu)
        try:
            for size, flags, packet in cases(2, 120):
                with load_into_kernel(one_program(program(size, flags), (SAMPLES,))) as made:
                    _put(made.maps["samples"], cpu, event.fd)
                    run = made.run(packet)
                    result = int.from_bytes(run.data_out[:8], "little", signed=True)
                    expected, records = interpreted(size, flags, packet)
                    assert result == expected, (size, hex(flags), len(packet))
                    theirs = event.records()
                    assert len(theirs) == len(records)
                    for mine, their in zip(records, theirs, strict=True):
                        assert their.startswith(mine) and len(their) - len(mine) < 8
                    met.add(result)
        finally:
            event.close()
    assert len(met) == 4  # 0, -EINVAL, -EFAULT, -E2BIG


def _put(samples: KernelMap, cpu: int, fd: int) -> None:
    samples.update(struct.pack("=I", cpu), struct.pack("=I", fd))
