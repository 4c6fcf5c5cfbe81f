"""Dynptrs over the packet and the functions on dynptrs: interpreted = compiled = the kernel."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.program import load

OBJECT = Path(__file__).with_name("packet_dynptrs.o")
COMMAND, RESULT = struct.Struct("<8I"), struct.Struct("<32x4i5I")
E2BIG, EINVAL, ERANGE = -7, -22, -34


def packets(seed: int, count: int) -> list[bytes]:
    rng, out = random.Random(seed), []
    for _ in range(count):
        size = rng.randrange(102, 300)  # of the packet
        start = rng.choice((0, 0, 1, 14, 64, size, rng.randrange(size + 4), 0xFFFFFFFF))
        end = rng.choice((size, size, 64, start, size - 8, size + 1, rng.randrange(size),
                          0xFFFFFFFF))
        out.append(COMMAND.pack(
            rng.random() < 0.1, start, end,
            rng.choice((0, 0, 1, 40, size - 20, size, rng.randrange(size), 0xFFFFFFFF)),
            rng.choice((0, 1, 4, 16, 32, rng.randrange(33))),
            rng.choice((0, 0, 0, 1, 40, size)), rng.random() < 0.25, 0)
            + rng.randbytes(size - COMMAND.size))
    return out


def interpreted(given: list[bytes]) -> list[tuple[int, bytes]]:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program("packet"))
    runs = [machine.run(packet) for packet in given]
    return [(run.verdict, run.data_out) for run in runs]


@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_is_interpreted(opt: int) -> None:
    given = packets(1, 1500)
    with load(read_object(OBJECT), "packet", opt=opt) as program:
        for packet, expected in zip(given, interpreted(given), strict=True):
            run = program.run(packet)
            assert (run.retval, run.data_out) == expected, COMMAND.unpack_from(packet)


@pytest.mark.root
@needs_bpf()[1]
def test_kernel() -> None:
    given = packets(2, 1500)
    with load_into_kernel(read_object(OBJECT), "packet") as program:
        for packet, expected in zip(given, interpreted(given), strict=True):
            run = program.run(packet)
            assert (run.retval, run.data_out) == expected, (
                COMMAND.unpack_from(packet), len(packet))


def test_every_error_is_met() -> None:
    seen: set[tuple[str, int]] = set()
    for verdict, data in interpreted(packets(1, 1500)):
        if verdict == 2:
            seen.update(zip(("made", "adjusted", "read", "written"), RESULT.unpack_from(data),
                            strict=False))
    assert seen >= {("made", 0), ("made", EINVAL), ("adjusted", 0), ("adjusted", EINVAL),
                    ("adjusted", ERANGE), ("read", 0), ("read", EINVAL), ("read", E2BIG),
                    ("written", 0), ("written", EINVAL), ("written", E2BIG)}
