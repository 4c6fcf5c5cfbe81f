"""bpf_loop: counts, flags and callbacks chosen by path: interpreted = compiled = the kernel."""

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

OBJECT = read_object(Path(__file__).with_name("loops.o"))
COMMAND, WAYS = struct.Struct("<IIQQqQQ"), 12
MOST = 1 << 23
COUNTS = (0, 1, 3, 4, 5, 10, MOST - 1, MOST, MOST + 1, 0xFFFFFFFF, 1 << 32, (1 << 32) + 3,
          1 << 63, (1 << 64) - 1)
FLAGS = (0, 0, 0, 1, 1 << 32, 1 << 63)


def packets(seed: int, count: int) -> list[bytes]:
    """Every callback ends within 50 rounds, or the count does."""
    rng = random.Random(seed)
    return [COMMAND.pack(number % WAYS, rng.randrange(50), rng.choice(COUNTS), rng.choice(FLAGS),
                         0, 0, 0) for number in range(count)]


def interpreted(given: list[bytes]) -> list[bytes]:
    machine = Machine(OBJECT, OBJECT.programs[0])
    return [machine.run(packet).data_out for packet in given]


@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_is_interpreted(opt: int) -> None:
    given = packets(1, 600)
    with load(OBJECT, opt=opt) as program:
        for packet, expected in zip(given, interpreted(given), strict=True):
            assert program.run(packet).data_out == expected, COMMAND.unpack(packet)


@pytest.mark.root
@needs_bpf()[1]
def test_kernel() -> None:
    given = packets(2, 600)
    with load_into_kernel(OBJECT) as program:
        for packet, expected in zip(given, interpreted(given), strict=True):
            assert program.run(packet).data_out == expected, COMMAND.unpack(packet)


def test_every_answer_is_met() -> None:
    seen = {COMMAND.unpack(data)[4] for data in interpreted(packets(1, 600))}
    assert {-22, -7, -7 & 0xFFFFFFFF, 0, 3, 4} <= seen
