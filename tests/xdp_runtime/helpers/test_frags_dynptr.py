"""Kernel functions on packets in several buffers: interpreted = compiled = the kernel."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.privileges import needs_bpf
from xdp_runtime import bpf_syscall
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import KernelProgram
from xdp_runtime.program import load

OBJECT = Path(__file__).with_name("frags_dynptr.o")
COMMAND, RESULT = struct.Struct("<10I"), struct.Struct("<40x5i")
ROOM, SIZE = 200, 40 + 40 + 200
FIRST, PAGE = 4096 - 256 - 320, 4096
_OBJ_GET = 7
Case = tuple[bytes, int | None]


def cases(seed: int, count: int) -> list[Case]:
    rng, out = random.Random(seed), []
    for _ in range(count):
        length = rng.choice((rng.randrange(SIZE + 60, 20000), rng.randrange(SIZE + 60, 73000),
                             FIRST, FIRST + PAGE, 9000))
        linear = rng.choice((None, None, 14, 64, rng.randrange(14, FIRST)))
        if linear is not None and length > linear + 17 * PAGE:
            linear = None
        first = min(length, FIRST, linear or FIRST)
        edges = (first, length, FIRST + 200, first + PAGE, rng.randrange(length + 10), 0)
        near = [max(rng.choice(edges) + rng.choice((0, 0, 1, -1, -100, rng.randrange(-200, 200))),
                    0) for _ in range(6)]
        out.append((COMMAND.pack(
            near[0], near[1], rng.choice((0, 0, 0, 20, 100)), rng.choice((0, 0, 4, 32)),
            rng.choice((0, 0, -1, -300, 50, -rng.randrange(length), 1000)) & 0xFFFFFFFF,
            rng.choice((0, 0, 1, 3000, near[4])), rng.choice((length, length, near[5])),
            near[2], near[3], rng.choice((0, 1, ROOM, rng.randrange(ROOM)))
            ) + rng.randbytes(length - COMMAND.size), linear))
    return out


def interpreted(given: list[Case], name: str = "frags") -> list[tuple[int, bytes, bytes]]:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program(name))
    runs = [machine.run(packet, linear_bytes=linear) for packet, linear in given]
    return [(run.verdict, run.data_out, run.meta) for run in runs]


@pytest.mark.parametrize("name", ["frags", "linear"])
@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_is_interpreted(opt: int, name: str) -> None:
    given = cases(1, 1000)
    if name == "linear":
        given = [(packet[:3400], None) for packet, _ in given]
    with load(read_object(OBJECT), name, opt=opt) as program:
        for (packet, linear), expected in zip(given, interpreted(given, name), strict=True):
            run = program.run(packet, linear_bytes=linear)
            assert (run.retval, run.data_out, run.meta) == expected, COMMAND.unpack_from(packet)


@contextmanager
def in_kernel() -> Iterator[KernelProgram]:
    """Loaded by bpftool, as functions of the kernel are found by its types."""
    where = f"/sys/fs/bpf/xdpu-test-frags-{os.getpid()}"
    subprocess.run(["bpftool", "prog", "loadall", OBJECT, where], check=True)
    try:
        path = ctypes.create_string_buffer(f"{where}/frags".encode())
        attr = bytearray(struct.pack("=QII", ctypes.addressof(path), 0, 0))
        fd = bpf_syscall.bpf(_OBJ_GET, attr)  # type: ignore[arg-type]
        with KernelProgram(read_object(OBJECT).program("frags"), fd, {}) as program:
            yield program
    finally:
        subprocess.run(["rm", "-r", where], check=True)


@pytest.mark.root
@needs_bpf()[1]
def test_kernel() -> None:
    given = cases(2, 1500)
    with in_kernel() as program:
        for (packet, linear), expected in zip(given, interpreted(given), strict=True):
            run = program.run(packet, linear_bytes=linear)
            assert (run.retval, run.data_out, run.meta) == expected, (
                COMMAND.unpack_from(packet), len(packet), linear)


def test_every_outcome_is_met() -> None:
    seen: set[tuple[str, int]] = set()
    for verdict, data, _ in interpreted(cases(1, 1000)):
        if verdict == 2:
            seen.update(zip(("pulled", "again", "adjusted", "read", "written"),
                            RESULT.unpack_from(data), strict=True))
    assert seen >= {("pulled", 0), ("pulled", -22), ("again", 0), ("again", -22), ("read", 0),
                    ("read", -7), ("read", -22), ("written", 0), ("written", -7), ("adjusted", 0),
                    ("adjusted", -22), ("adjusted", -34)}
