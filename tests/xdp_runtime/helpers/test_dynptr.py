"""Dynptrs over a map's value and over a record: interpreted = compiled = the kernel."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.maps.model import ModelArray, ModelRing
from xdp_runtime.program import load

OBJECT = Path(__file__).with_name("dynptrs.o")
PROGRAMS = ("local", "record")
Outcome = tuple[int, bytes]
E2BIG, EINVAL = -7, -22


def commands(seed: int, count: int = 300) -> list[bytes]:
    rng, out = random.Random(seed), []
    for _ in range(count):
        flags = 1 << rng.randrange(8) if rng.random() < 0.2 else 0
        offset = rng.choice((0, 0, 1, 7, 8, rng.randrange(70), 0xFFFFFFFF, 0xFFFFFFF8, 1 << 32,
                             (1 << 32) + 3, (1 << 64) - 1, (1 << 64) - 8))
        reserved = rng.choice((0, 1, 8, 16, 40, 64, rng.randrange(200), 4088, 4096, 5000,
                               1 << 24, (1 << 24) - 1, (1 << 32) + 8, (1 << 64) - 1))
        out.append(struct.pack(
            "<4B4BQQ4q", flags, rng.choice((0, 8, 16, 64, rng.randrange(256))), rng.randrange(60),
            rng.randrange(60), rng.randrange(2), rng.choice((0, 0, 4, 60, rng.randrange(256))),
            0, 0, offset, reserved, 9, 9, 9, 9)
            + rng.randbytes(48) + bytes(48) + bytes(4))
    return out


def interpreted(name: str, packets: list[bytes]) -> tuple[list[Outcome], bytes, int]:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program(name))
    results = [machine.run(packet) for packet in packets]
    by_name = {model.spec.name: model for model in machine.maps}
    memory, ring = by_name["memory"], by_name["ring"]
    assert isinstance(memory, ModelArray) and isinstance(ring, ModelRing)
    return ([(r.verdict, r.data_out) for r in results], bytes(memory.lookup(bytes(4)) or b""),
            ring.produced)


def records_interpreted(packets: list[bytes]) -> list[bytes]:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program("record"))
    ring = next(model for model in machine.maps if isinstance(model, ModelRing))
    out = []
    for packet in packets:
        machine.run(packet)
        out += ring.consume()
    return out


@pytest.mark.parametrize("opt", [0, 3])
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_is_interpreted(name: str, opt: int) -> None:
    for seed in range(3):
        packets = commands(seed)
        expected, memory, produced = interpreted(name, packets)
        with load(read_object(OBJECT), name, opt=opt) as program:
            for number, (packet, one) in enumerate(zip(packets, expected, strict=True)):
                run = program.run(packet)
                assert (run.retval, run.data_out) == one, (seed, number, packet[:24].hex())
            assert program.raw_maps["memory"].lookup(bytes(4)) == memory
            assert program.raw_maps["ring"]._operation("query")(0, 3) == produced


@pytest.mark.root
@needs_bpf()[1]
@pytest.mark.parametrize("name", PROGRAMS)
def test_kernel(name: str) -> None:
    for seed in range(6):
        packets = commands(seed)
        expected, memory, _ = interpreted(name, packets)
        with load_into_kernel(read_object(OBJECT), name) as program:
            for number, (packet, one) in enumerate(zip(packets, expected, strict=True)):
                run = program.run(packet)
                assert (run.retval, run.data_out) == one, (seed, number, packet[:24].hex())
            assert program.maps["memory"].lookup(bytes(4)) == memory


@pytest.mark.parametrize("opt", [0, 3])
def test_records_come_out(opt: int) -> None:
    packets = commands(7)
    expected = records_interpreted(packets)
    assert len(expected) > 50
    found = []
    with load(read_object(OBJECT), "record", opt=opt) as program:
        for packet in packets:
            program.run(packet)
            found += program.raw_maps["ring"].consume()
    assert [len(one) for one in found] == [len(one) for one in expected]


def test_every_error_is_met() -> None:
    results: set[tuple[str, int]] = set()
    for name in PROGRAMS:
        for _, data in interpreted(name, commands(0))[0]:
            results.update(zip(("made", "written", "read", "moved"),
                               struct.unpack_from("<4q", data, 24), strict=True))
    assert results >= {("made", 0), ("made", EINVAL), ("made", E2BIG), ("written", 0),
                       ("written", EINVAL), ("written", E2BIG), ("read", 0), ("read", EINVAL),
                       ("read", E2BIG), ("moved", 0), ("moved", 1)}
