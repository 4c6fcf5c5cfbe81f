"""Slices, clones, copies and fills of dynptrs: interpreted = compiled = the kernel; packets in one
buffer and in several."""

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

OBJECT = read_object(Path(__file__).with_name("slices.o"))
COMMAND = struct.Struct("<10I3i2I16s")
E2BIG, EINVAL = -7, -22
LINEAR = 512  # of a packet in several buffers
PAGE = 4096


def packets(seed: int, count: int, longest: int) -> list[bytes]:
    rng, out = random.Random(seed), []
    for _ in range(count):
        size = rng.randrange(COMMAND.size + 14, longest)
        local = rng.random() < 0.25
        has = 512 if local else size

        def place(has: int = has) -> int:
            edges = (0, 0, 1, has, has - 16, has - 8, LINEAR, LINEAR - 7, LINEAR + PAGE - 9,
                     rng.randrange(has), 0xFFFFFFFF)
            return max(rng.choice(edges), 0)

        start = rng.choice((0, 0, 0, 1, 14, place()))
        end = rng.choice((has, has, has, has - start if has > start else 0, place()))
        out.append(COMMAND.pack(
            rng.randrange(16), local, place(), start, end,
            rng.choice((0, 0, 0, 1, 40, size // 2)), place(),
            rng.choice((0, 1, 16, 40, 300, rng.randrange(has))), rng.random() < 0.1,
            rng.getrandbits(8), 0, 0, 0, 0, 0, b"") + rng.randbytes(size - COMMAND.size))
    return out


def interpreted(given: list[bytes], name: str, linear: int | None = None
                ) -> list[tuple[int, bytes]]:
    machine = Machine(OBJECT, OBJECT.program(name))
    runs = [machine.run(packet, linear_bytes=linear) for packet in given]
    return [(run.verdict, run.data_out) for run in runs]


@pytest.mark.parametrize("opt", [0, 3])
@pytest.mark.parametrize(("name", "longest", "linear"), [("whole", 600, None),
                                                         ("pieces", 9000, LINEAR)])
def test_compiled_is_interpreted(opt: int, name: str, longest: int, linear: int | None) -> None:
    given = packets(1, 2000, longest)
    with load(OBJECT, name, opt=opt) as program:
        for packet, expected in zip(given, interpreted(given, name, linear), strict=True):
            run = program.run(packet, linear_bytes=linear)
            assert (run.retval, run.data_out) == expected, (
                COMMAND.unpack_from(packet), len(packet))


def overlaps(packet: bytes) -> bool:
    """A copy onto itself: between buffers it is the kernel's memcpy(), which promises nothing."""
    what, local, offset, start, _, _, to, size, *_ = COMMAND.unpack_from(packet)
    return what & 1 == 1 and not local and abs(start + offset - to) < size


@pytest.mark.root
@needs_bpf()[1]
@pytest.mark.parametrize(("name", "longest", "linear"), [("whole", 600, None),
                                                         ("pieces", 9000, LINEAR)])
def test_kernel(name: str, longest: int, linear: int | None) -> None:
    given = [packet for packet in packets(2, 2000, longest) if not overlaps(packet)]
    with load_into_kernel(OBJECT, name) as program:
        for packet, expected in zip(given, interpreted(given, name, linear), strict=True):
            run = program.run(packet, linear_bytes=linear)
            assert (run.retval, run.data_out) == expected, (
                COMMAND.unpack_from(packet), len(packet),
                COMMAND.unpack_from(run.data_out), COMMAND.unpack_from(expected[1]))


def test_everything_is_met() -> None:
    seen: set[tuple[str, int]] = set()
    for _, data in interpreted(packets(1, 2000, 9000), "pieces", LINEAR):
        if len(data) >= COMMAND.size:
            seen.update(zip(("cloned", "copied", "filled", "bytes", "found"),
                            COMMAND.unpack_from(data)[10:15], strict=True))
    assert seen >= {("cloned", 0), ("cloned", EINVAL), ("copied", 0), ("copied", E2BIG),
                    ("copied", EINVAL), ("filled", 0), ("filled", E2BIG), ("found", 0),
                    ("found", 1)}
