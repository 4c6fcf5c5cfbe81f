"""Rings of a library made ahead of time: what is read from them is what a run of xdpu reads."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import select
import struct
import threading
from pathlib import Path

import pytest

from tests.xdp_runtime.aot.library import Library
from xdp_runtime.aot import build
from xdp_runtime.elf import read_object
from xdp_runtime.program import load

OBJECT = read_object(Path(__file__).with_name("rings.o"))
EVENT = struct.Struct("<I12s")
RING_BYTES = 4096
Record = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Rings(Library):
    """The ring functions of xdpu.h."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        pointer, number = ctypes.c_void_p, ctypes.c_uint
        self.c.xdpu_ring_count.argtypes = [pointer]
        self.c.xdpu_ring_consume.argtypes = [pointer, number, Record, pointer]
        self.c.xdpu_ring_consume.restype = ctypes.c_int64
        self.c.xdpu_ring_event.argtypes = [pointer, number]
        self.c.xdpu_ring_lost.argtypes = [pointer, number]
        self.c.xdpu_ring_lost.restype = ctypes.c_uint64
        self.c.xdpu_ring_produce.argtypes = [pointer, ctypes.c_char_p, ctypes.c_size_t]

    def count(self, name: str) -> int:
        return int(self.c.xdpu_ring_count(self.find(name)))

    def consume(self, name: str, most: int = -1) -> list[bytes]:
        """`most` records, -1: all there are."""
        records: list[bytes] = []

        def record(context: int, data: int, size: int) -> int:
            records.append(ctypes.string_at(data, size))
            return int(len(records) == most)

        count = self.c.xdpu_ring_consume(self.find(name), 0, Record(record), None)
        assert count == len(records)
        return records

    def produce(self, name: str, record: bytes) -> int:
        return int(self.c.xdpu_ring_produce(self.find(name), record, len(record)))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rings") / "rings.so"
    build(OBJECT, OBJECT.program(), out)
    return out


@pytest.fixture
def library(built: Path, tmp_path: Path) -> Rings:
    """Loaded anew, so with memory of its own."""
    copy = tmp_path / "rings.so"
    copy.write_bytes(built.read_bytes())
    return Rings(copy)


def packets(seed: int, count: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.randrange(14, 90)) for _ in range(count)]


def test_records_are_those_of_a_run(library: Rings) -> None:
    assert (library.count("events"), library.count("samples")) == (1, 1)
    assert (library.count("sums"), library.count("commands")) == (0, 0)
    with load(OBJECT) as program:
        for at in range(40):
            batch = packets(at, 30)
            library.run(batch, 1)
            for packet in batch:
                program.run(packet)
            for name in ("events", "samples"):
                expected = program.raw_maps[name].consume()
                assert library.consume(name) == expected and len(expected) > 5


def test_as_many_as_wanted(library: Rings) -> None:
    given = [struct.pack("<13sB", b"packet %d" % n, 0) for n in range(10)]
    library.run(given, 1)
    assert len(library.consume("events", 3)) == 3
    rest = library.consume("events")
    assert [EVENT.unpack(record)[1][:8] for record in rest] == [p[:8] for p in given[3:]]
    assert not library.consume("events")


def test_a_full_ring_loses_and_counts(library: Rings) -> None:
    room = (RING_BYTES - 1) // (8 + EVENT.size)
    library.run([bytes(14)] * (room + 7), 1)
    assert library.c.xdpu_ring_lost(library.find("events"), 0) == 7
    assert len(library.consume("events")) == room
    library.run([bytes(14)], 1)
    assert len(library.consume("events")) == 1


def test_an_event_says_that_there_is_something(library: Rings) -> None:
    fd = library.c.xdpu_ring_event(library.find("events"), 0)
    assert fd > 0 and library.c.xdpu_ring_event(library.find("events"), 0) == fd
    assert not select.select([fd], [], [], 0)[0]
    library.run([bytes(14)], 1)
    assert select.select([fd], [], [], 30)[0]
    assert os.read(fd, 8) == struct.pack("<Q", 1)
    library.run([bytes(14)], 1)  # nothing was read meanwhile: no further signal is needed
    assert not select.select([fd], [], [], 0)[0]
    assert len(library.consume("events")) == 2
    library.run([bytes(14)], 1)
    assert select.select([fd], [], [], 30)[0]


def test_a_reader_sleeps_and_misses_nothing(library: Rings) -> None:
    """A thread waits for the event and reads while another writes: nothing is late or lost but what
    found no room."""
    fd = library.c.xdpu_ring_event(library.find("events"), 0)
    found: list[int] = []
    total, many = 0, 60
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if select.select([fd], [], [], 60)[0]:
                os.read(fd, 8)
            found.extend(EVENT.unpack(record)[0] for record in library.consume("events"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(300):
        library.run([bytes(14)] * many, 1)
        total += many
    lost = library.c.xdpu_ring_lost(library.find("events"), 0)
    done.set()
    library.run([bytes(14)], 1)
    os.write(fd, struct.pack("<Q", 1))
    reader.join(60)
    found.extend(EVENT.unpack(record)[0] for record in library.consume("events"))
    assert len(found) + library.c.xdpu_ring_lost(library.find("events"), 0) == total + 1
    assert lost <= total


def test_programs_drain_what_is_produced(library: Rings) -> None:
    for number in (5, 70, 900):
        assert library.produce("commands", struct.pack("<I", number)) == 0
    library.run([bytes(13) + b"\4"], 1)
    assert library.lookup("sums", bytes(4), 8) == struct.pack("<Q", 975)
    assert library.produce("commands", bytes(RING_BYTES)) == -errno.E2BIG
    fitting = 0
    while (status := library.produce("commands", b"x" * 100)) == 0:
        fitting += 1
    assert status == -errno.ENOSPC and fitting == RING_BYTES // 112
    library.run([bytes(13) + b"\4"], 1)
    assert library.produce("commands", b"x" * 100) == 0


def test_what_is_no_ring(library: Rings) -> None:
    assert library.c.xdpu_ring_event(library.find("sums"), 0) == -errno.EOPNOTSUPP
    assert library.c.xdpu_ring_event(library.find("events"), 1) == -errno.EOPNOTSUPP
    assert library.produce("events", b"x") == -errno.EOPNOTSUPP
    assert library.c.xdpu_ring_consume(library.find("commands"), 0, Record(lambda *_: 0), None) == (
        -errno.EOPNOTSUPP)
