"""bpf_user_ringbuf_drain: interpreted = compiled = kernel, for good records and spoilt ones."""

from __future__ import annotations

import mmap
import os
import random
import select
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.helpers.test_for_each import pinned
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import KernelProgram
from xdp_runtime.maps.ringbuf import BUSY, CONSUMER, DATA, DISCARD, PRODUCER
from xdp_runtime.maps.user_ring_model import ModelUserRing
from xdp_runtime.program import load

OBJECT = Path(__file__).with_name("drain.o")
COMMAND = struct.Struct("<QIIqqQQqqII")
SIZE, PAGE = 4096, mmap.PAGESIZE
EBUSY, E2BIG, EINVAL = -16, -7, -22
NO_WAKEUP, FORCE_WAKEUP = 1, 2

Runner = Callable[[bytes], tuple[int, bytes]]


class Ring:
    """A ring of any of the three: how to write its data and producer position, read the other."""

    def __init__(self, write: Callable[[int, bytes], None], produced: Callable[[int], None],
                 consumed: Callable[[], int]) -> None:
        self.write, self.tell, self.consumed = write, produced, consumed
        self.produced = 0

    def put(self, record: bytes, head: int | None = None) -> None:
        whole = (len(record) if head is None else head).to_bytes(8, "little") + record
        whole += bytes(-len(whole) % 8)
        for at in range(0, len(whole), 8):
            self.write((self.produced + at) % SIZE, whole[at : at + 8])
        self.produced += len(whole)
        self.tell(self.produced)


def command(flags: int = 0, stop_after: int = 0, nested: int = 0) -> bytes:
    return COMMAND.pack(flags, stop_after, nested, *[0] * 8).ljust(COMMAND.size + 10, b"\0")


def script(ring: Ring, run: Runner) -> Iterator[tuple[object, ...]]:
    """The same steps for all three; what is seen of them."""
    rng = random.Random(5)

    def drain(*arguments: int) -> tuple[object, ...]:
        verdict, data = run(command(*arguments))
        return verdict, COMMAND.unpack_from(data), ring.consumed()

    yield drain()
    for number in range(3):
        ring.put(struct.pack("<QI", number, 7))
    yield drain()
    yield drain()
    for flags in (1 << 2, 1 << 63, NO_WAKEUP, FORCE_WAKEUP, 3):
        ring.put(struct.pack("<QI", 5, flags & 3))
        yield drain(flags)
    for _ in range(6):  # stopped by the callback
        ring.put(struct.pack("<QI", 9, 1))
    yield drain(0, 2)
    yield drain(0, 1)
    yield drain(0, 4)
    for size in (0, 1, 3, 4, 8, 11, 12, 13, 100):  # too short to be read or written
        ring.put(rng.randbytes(size))
        yield drain()
    for nested in (1, 2):
        ring.put(bytes(12))
        yield drain(0, 0, nested)
    ring.put(bytes(8), 8 | DISCARD)
    ring.put(bytes(8), 8 | DISCARD | BUSY)
    ring.put(struct.pack("<QI", 1, 1))
    ring.put(bytes(8), 8 | DISCARD)
    yield drain()
    at = ring.produced
    ring.put(bytes(16), 16 | BUSY)
    ring.put(struct.pack("<QI", 2, 2))
    yield drain()
    ring.write(at % SIZE, (16).to_bytes(8, "little"))
    yield drain()
    for _ in range(400):  # round and round
        for _ in range(rng.randrange(5)):
            record = rng.randbytes(rng.choice((8, 12, 40, 200)))
            ring.put(record, None if rng.random() < 0.8 else len(record) | DISCARD)
        yield drain(0, rng.randrange(4))
        yield drain()
    at = ring.produced
    ring.put(bytes(8), 4000)  # longer than what was produced
    yield drain()
    ring.write(at % SIZE, (8).to_bytes(8, "little"))
    yield drain()
    at = ring.produced
    ring.write(at % SIZE, (5000).to_bytes(8, "little"))
    ring.tell(at + 8000)  # than the ring
    yield drain()
    ring.tell(at + 4)
    yield drain()
    ring.tell(at)
    yield drain()


def interpreted() -> list[tuple[object, ...]]:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program("drain"))
    model = next(m for m in machine.maps if m.spec.name == "ring")
    assert isinstance(model, ModelUserRing)

    def write(at: int, data: bytes) -> None:
        model.data[at : at + len(data)] = data

    def tell(produced: int) -> None:
        model.produced = produced

    def run(packet: bytes) -> tuple[int, bytes]:
        result = machine.run(packet)
        return result.verdict, result.data_out

    return list(script(Ring(write, tell, lambda: model.consumed), run))


def test_what_is_expected() -> None:
    seen = interpreted()
    results = [found[1][3] for found in seen]  # type: ignore[index]
    assert results[:3] == [0, 3, 0] and results[3:8] == [EINVAL, EINVAL, 3, 1, 1]
    assert results[8:11] == [2, 1, 3]
    assert [found[1][4] for found in seen[20:22]] == [EBUSY, 0]  # type: ignore[index]
    assert results[22:25] == [1, 0, 2]
    assert results[-5:] == [EINVAL, 1, E2BIG, EINVAL, 0]


@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_is_interpreted(opt: int) -> None:
    with load(read_object(OBJECT), "drain", opt=opt) as program:
        memory = program.raw_maps["ring"].memory("ring")

        def write(at: int, data: bytes) -> None:
            memory[DATA + at : DATA + at + len(data)] = data

        def tell(produced: int) -> None:
            memory[PRODUCER : PRODUCER + 8] = produced.to_bytes(8, "little")

        def consumed() -> int:
            return int.from_bytes(memory[CONSUMER : CONSUMER + 8], "little")

        def run(packet: bytes) -> tuple[int, bytes]:
            result = program.run(packet)
            return result.retval, result.data_out

        ours = list(script(Ring(write, tell, consumed), run))
        memory.release()
    assert ours == interpreted()


def test_who_waits_is_woken() -> None:
    """As the flags say; without samples only if forced to."""
    with load(read_object(OBJECT), "drain") as program:
        ring = program.raw_maps["ring"]
        os.eventfd_read(ring.fileno())

        def woken(flags: int) -> bool:
            program.run(command(flags))
            return bool(select.select([ring], [], [], 0)[0])

        assert [woken(flags) for flags in (0, NO_WAKEUP, FORCE_WAKEUP)] == [False, False, True]
        for flags, expected in ((0, True), (NO_WAKEUP, False), (FORCE_WAKEUP, True), (3, True)):
            ring.produce(b"a sample")
            assert woken(flags) is expected, flags


@contextmanager
def in_kernel() -> Iterator[tuple[KernelProgram, int]]:
    """bpftool loads it: without types of functions the kernel takes no callback."""
    where = Path(f"/sys/fs/bpf/xdpu-test-drain-{os.getpid()}")
    maps = Path(f"{where}-maps")
    subprocess.run(["bpftool", "prog", "loadall", OBJECT, where, "pinmaps", maps], check=True)
    fd = pinned(maps / "ring")
    try:
        spec = read_object(OBJECT).program("drain")
        with KernelProgram(spec, pinned(where / spec.name), {}) as program:
            yield program, fd
    finally:
        os.close(fd)
        for directory in (where, maps):
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()


@pytest.mark.root
@needs_bpf()[1]
def test_kernel() -> None:
    with in_kernel() as (program, fd):
        consumer = mmap.mmap(fd, PAGE, prot=mmap.PROT_READ)
        producer = mmap.mmap(fd, PAGE + 2 * SIZE, offset=PAGE)

        def write(at: int, data: bytes) -> None:
            producer[PAGE + at : PAGE + at + len(data)] = data

        def tell(produced: int) -> None:
            producer[:8] = produced.to_bytes(8, "little")

        def consumed() -> int:
            return int.from_bytes(consumer[:8], "little")

        def run(packet: bytes) -> tuple[int, bytes]:
            result = program.run(packet)
            return result.retval, result.data_out

        theirs = list(script(Ring(write, tell, consumed), run))
        consumer.close()
        producer.close()
    assert theirs == interpreted()
