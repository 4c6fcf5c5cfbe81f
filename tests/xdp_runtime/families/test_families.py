"""Programs that use each map family: interpreted, compiled, in the kernel."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.privileges import needs_bpf
from xdp_runtime.compiler import target
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.maps.model import ModelEvents, ModelRing
from xdp_runtime.program import load

OBJECT = Path(__file__).with_name("families.o")
PROGRAMS = ("queues", "rings", "tries", "percpus", "nested", "bytes", "redirects", "texts")
LOOPS = ("loops", "nested_loops")  # the kernel wants BTF with a callback, which load_raw has not
COMMANDS = 600


def a_text(rng: random.Random) -> bytes:
    """What looks like a number, mostly."""
    size = rng.randrange(64)
    if rng.random() < 0.3:
        return rng.randbytes(size)
    start = rng.choice((b"", b" ", b"\t-", b"-", b"0x", b"0", b" -0X", b"0x12a", b"0x12ab\0"))
    digits = rng.choice((b"01", b"01234567", b"0123456789", b"0123456789abcdefABCDEFxg"))
    text = start + bytes(rng.choice(digits) for _ in range(rng.randrange(24)))
    return (text + b"\0" * rng.randrange(2) + rng.randbytes(64))[:size]


def commands(seed: int) -> list[bytes]:
    rng, out = random.Random(seed), []
    keys = [rng.getrandbits(32) for _ in range(6)]
    for _ in range(COMMANDS):
        key = rng.choice(keys) ^ (rng.getrandbits(1) << rng.randrange(32))
        out.append(struct.pack("<4IqQ", rng.getrandbits(8), key, rng.getrandbits(8),
                               rng.getrandbits(8), 0, 0) + a_text(rng))
    return out


def one_cpu(run: Any) -> Any:
    """The kernel runs on the CPU that asks; per-CPU values are those of CPU 0."""
    import os
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    try:
        return run()
    finally:
        os.sched_setaffinity(0, before)


def outcomes_interpreted(name: str, seed: int) -> list[tuple[int, bytes]]:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program(name))
    results = [machine.run(packet) for packet in commands(seed)]
    return [(result.verdict, result.data_out) for result in results]


def outcomes_compiled(name: str, seed: int, opt: int) -> list[tuple[int, bytes]]:
    with load(read_object(OBJECT), name, opt=opt) as program:
        results = [program.run(packet) for packet in commands(seed)]
    return [(result.retval, result.data_out) for result in results]


@pytest.mark.parametrize("name", PROGRAMS + LOOPS)
@pytest.mark.parametrize("seed", range(3))
def test_compiled_is_interpreted(name: str, seed: int) -> None:
    expected = outcomes_interpreted(name, seed)
    for opt in target.TESTED:
        found = outcomes_compiled(name, seed, opt)
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            assert one == other, (name, opt, number, commands(seed)[number][:16].hex())


@pytest.mark.root
@needs_bpf()[1]
@pytest.mark.parametrize("name", PROGRAMS)
def test_interpreted_is_the_kernels(name: str) -> None:
    def in_kernel() -> list[tuple[int, bytes]]:
        with load_into_kernel(read_object(OBJECT), name) as program:
            results = [program.run(packet) for packet in commands(5)]
        return [(result.retval, result.data_out) for result in results]

    expected, found = one_cpu(in_kernel), outcomes_interpreted(name, 5)
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert one == other, (name, number, commands(5)[number][:16].hex())


def test_records() -> None:
    """What the ring held, and what programs hand to user space by events."""
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program("rings"))
    ring = machine.maps[obj.map_index("ring")]
    assert isinstance(ring, ModelRing)
    with load(obj, "rings") as program:
        taken = 0
        for number, packet in enumerate(commands(9)):
            assert program.run(packet).data_out == machine.run(packet).data_out
            if number % 50 == 0:
                records = program.raw_maps["ring"].consume()
                assert records == ring.consume()
                taken += len(records)
    assert taken > 100


@pytest.mark.parametrize("opt", target.TESTED)
def test_events_and_bloom(opt: int) -> None:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program("events"))
    events = machine.maps[obj.map_index("events_out")]
    assert isinstance(events, ModelEvents)
    with load(obj, "events", opt=opt) as program:
        for packet in commands(11)[:200]:
            found, expected = program.run(packet), machine.run(packet)
            assert (found.retval, found.data_out) == (expected.verdict, expected.data_out)
        assert program.raw_maps["events_out"].consume() == events.records
        assert len(events.records) > 20
