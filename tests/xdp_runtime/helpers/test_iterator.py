"""Loops by bpf_iter_num_*, and sections: interpreted = compiled = the kernel."""

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

OBJECT = read_object(Path(__file__).with_name("iterators.o"))
COMMAND = struct.Struct("<6iq")
LOW, HIGH, MOST = -(1 << 31), (1 << 31) - 1, 8 << 20


def packets(seed: int, count: int) -> list[bytes]:
    rng = random.Random(seed)
    out = [COMMAND.pack(start, end, start, 63, 0, 0, 0) for start, end in (
        (0, 0), (1, 0), (LOW, HIGH), (LOW, LOW), (HIGH, HIGH), (LOW, LOW + 3), (HIGH - 3, HIGH),
        (0, MOST), (0, MOST + 1), (-5, MOST - 5), (-5, MOST - 4), (HIGH, LOW))]
    for _ in range(count):
        start = rng.choice((0, 1, -7, 100, rng.randrange(-50, 50)))
        end = start + rng.randrange(-2, 60)
        out.append(COMMAND.pack(start, end, rng.randrange(start - 5, end + 5), rng.randrange(80),
                                0, 0, 0))
    return out


def interpreted(given: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    machine = Machine(OBJECT, OBJECT.programs[0])
    out = [machine.run(packet).data_out for packet in given]
    cells = machine.maps[0]
    return out, [bytes(cells.lookup(struct.pack("<I", n)) or b"") for n in range(16)]


@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_is_interpreted(opt: int) -> None:
    given = packets(1, 300)
    expected, cells = interpreted(given)
    with load(OBJECT, opt=opt) as program:
        assert [program.run(packet).data_out for packet in given] == expected
        assert [program.raw_maps["cells"].lookup(struct.pack("<I", n)) for n in range(16)] == cells


@pytest.mark.root
@needs_bpf()[1]
def test_kernel() -> None:
    given = packets(2, 300)
    expected, cells = interpreted(given)
    with load_into_kernel(OBJECT) as program:
        assert [program.run(packet).data_out for packet in given] == expected
        assert [program.maps["cells"].lookup(struct.pack("<I", n)) for n in range(16)] == cells
