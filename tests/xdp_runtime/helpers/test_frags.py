"""Helpers on packets in several buffers: compiled = interpreted = the kernel."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object
from xdp_runtime.errors import ConfigError
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.program import load

OBJECT = Path(__file__).with_name("frags.o")
LENGTH, LOAD, STORE, TAIL, HEAD, META, OUTPUT = range(7)
COMMAND = struct.Struct("<IIII")
COMMANDS, ROOM = 4, 256
FIRST, PAGE = 4096 - 256 - 320, 4096
KEY = bytes(4)
Case = tuple[bytes, int | None]  # a packet, and how much of it is in the first buffer
Outcome = tuple[int, bytes, bytes, bytes | None]


def a_command(rng: random.Random, length: int) -> bytes:
    what = rng.choice((LENGTH, LOAD, LOAD, STORE, STORE, TAIL, TAIL, TAIL, HEAD, META))
    edges = [0, length, FIRST, *range(FIRST, length, PAGE)]
    near = rng.choice(edges) + rng.randrange(-300, 300)
    match what:
        case 3:
            offset = rng.choice((
                -rng.randrange(length + 20), -rng.randrange(300), rng.randrange(300), 1, -1, 0,
                near - length, PAGE - (length - FIRST) % PAGE, rng.randrange(PAGE), -(1 << 31),
                (1 << 31) - 1))
        case 4 | 5:
            offset = rng.choice((-4, 4, -32, 14, -200, rng.randrange(-300, 300)))
        case _:
            offset = rng.choice((near, near, rng.randrange(length), length - ROOM, 0xFFFF, 0x10000,
                                 1 << 31, -1))
    size = rng.choice((1, 2, ROOM, rng.randrange(1, ROOM + 1)))
    return COMMAND.pack(what, offset & 0xFFFFFFFF, size, rng.randrange(256))


def cases(seed: int, count: int) -> Iterator[Case]:
    rng = random.Random(seed)
    for _ in range(count):
        length = rng.choice((
            rng.randrange(64, 73152), rng.randrange(64, 10000), FIRST, FIRST + 1, FIRST + PAGE,
            FIRST + PAGE + 1, FIRST + 17 * PAGE, 9000, 65535))
        linear = rng.choice((None, None, rng.randrange(64, FIRST), 64, 100))
        if linear is not None and length > linear + 17 * PAGE:
            linear = None
        commands = b"".join(a_command(rng, length) for _ in range(COMMANDS))
        yield commands + rng.randbytes(length - len(commands)), linear


def interpreted(given: list[Case], name: str = "frags") -> list[Outcome]:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program(name))
    results = machine.maps[obj.map_index("results")]
    out: list[Outcome] = []
    for packet, linear in given:
        run = machine.run(packet, linear_bytes=linear)
        out.append((run.verdict, run.data_out, run.meta, bytes(results.lookup(KEY) or b"")))
    return out


def words(outcome: Outcome) -> tuple[object, ...]:
    """For messages."""
    verdict, packet, meta, results = outcome
    return verdict, len(packet), len(meta), struct.unpack_from("<12i", results or b"")


@pytest.mark.parametrize("name", ["frags", "linear"])
@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_is_interpreted(opt: int, name: str) -> None:
    given = list(cases(1, 800))
    if name == "linear":
        given = [(packet[:3000], None) for packet, _ in given]
    with load(read_object(OBJECT), name, opt=opt) as program:
        results = program.raw_maps["results"]
        for case, expected in zip(given, interpreted(given, name), strict=True):
            run = program.run(case[0], linear_bytes=case[1])
            got = run.retval, run.data_out, run.meta, bytes(results.lookup(KEY) or b"")  # type: ignore[arg-type]
            assert words(got) == words(expected), case[0][:64].hex()
            assert got == expected, case[0][:64].hex()


@pytest.mark.root
@needs_bpf()[1]
def test_kernel() -> None:
    given = list(cases(2, 1500))
    with load_into_kernel(read_object(OBJECT), "frags") as program:
        for case, expected in zip(given, interpreted(given), strict=True):
            run = program.run(case[0], linear_bytes=case[1])
            got = (run.retval, run.data_out, run.meta, program.maps["results"].lookup(KEY))
            assert words(got) == words(expected), (len(case[0]), case[1], case[0][:64].hex())
            assert got == expected, case[0][:64].hex()


def test_every_error_is_met() -> None:
    seen: set[tuple[int, int]] = set()
    for packet, outcome in zip(cases(1, 800), interpreted(list(cases(1, 800))), strict=True):
        for n in range(COMMANDS):
            what = COMMAND.unpack_from(packet[0], n * COMMAND.size)[0]
            seen.add((what, min(struct.unpack_from("<i", outcome[3] or b"", 4 * n)[0], 0)))
    assert seen >= {(LOAD, 0), (LOAD, -14), (LOAD, -22), (STORE, 0), (STORE, -14), (STORE, -22),
                    (TAIL, 0), (TAIL, -22), (HEAD, 0), (HEAD, -22), (META, -13)}


def test_repeated_from_the_pristine_packet() -> None:
    packet = COMMAND.pack(TAIL, -5000 & 0xFFFFFFFF, 1, 0) + bytes(48) + bytes(range(256)) * 40
    with load(read_object(OBJECT), "frags") as program:
        assert program.repeat(packet, 1000).data_out == packet[:-5000]


def test_too_many_fragments() -> None:
    with load(read_object(OBJECT), "frags") as program:
        program.run(bytes(FIRST + 17 * PAGE))
        with pytest.raises(ConfigError, match="18 buffers behind the first"):
            program.run(bytes(FIRST + 17 * PAGE + 1))


def test_output_across_fragments() -> None:
    packet = COMMAND.pack(OUTPUT, 9000, 0, 0) + COMMAND.pack(OUTPUT, 3000, 0, 0) + \
        COMMAND.pack(OUTPUT, 9001, 0, 0) + COMMAND.pack(OUTPUT, 1 << 20, 0, 0)
    packet += random.Random(3).randbytes(9000 - len(packet))
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program("frags"))
    ours = machine.run(packet)
    records = machine.maps[obj.map_index("events")].records  # type: ignore[attr-defined]
    assert [record[4:] for record in records] == [packet, packet[:3000]]
    result = machine.maps[obj.map_index("results")].lookup(KEY)
    assert struct.unpack_from("<4i", bytes(result or b"")) == (0, 0, -14, -22)
    with load(obj, "frags") as program:
        assert program.run(packet).data_out == ours.data_out
        assert program.raw_maps["results"].lookup(KEY) == bytes(result or b"")
        assert [bytes(one) for one in program.raw_maps["events"].consume()] == records
