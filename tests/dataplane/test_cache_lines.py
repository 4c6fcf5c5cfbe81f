"""No two workers write one cache line while packets run: why one more does not slow the others.

Four workers, each with a queue of its own, of which one at a time gets packets.  The memory that
the engine and its port have is compared before and after, line by line: what changed is what that
worker wrote, in its control block, counters, maps, scratch, its port's queue.  Besides there are
only the thread's stack and the compiled code, which has no variables.  Programs are those whose
maps have a value for each worker, or are only read: one that writes a shared map shares it by its
own wish.

This sees every write there is, without asking the code where it writes; what it cannot see is one
that leaves a line as it was, so packets and counts are such that all that counts changes.
"""

from __future__ import annotations

import ctypes
import gc
import io
import mmap
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from dataplane import memory, worker_block
from dataplane.engine import Engine
from dataplane.memory import MemoryPort
from tests.control.run_xdpu import EXAMPLES, until
from xdp_runtime.core_relo import read_settled

WORKERS, LINE_BYTES = 4, 64
LARGEST_BYTES = 256 << 20  # what is looked at
PACKETS = 1000


def mappings() -> list[tuple[int, int]]:
    """Writable shared memory of this process; Python's own, which changes all the time, is not."""
    found = []
    with open("/proc/self/maps") as file:
        for line in file:
            span, rights, *_ = line.split()
            if rights.startswith("rw-s"):
                start, end = (int(part, 16) for part in span.split("-"))
                found.append((start, end))
    return found


def without(spans: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]],
            ) -> Iterator[tuple[int, int]]:
    """What of `spans` is not in `others`; both sorted."""
    for start, end in spans:
        for low, high in others:
            if low < end and high > start:
                if start < low:
                    yield start, low
                start = max(start, high)
        if start < end:
            yield start, end


def words(start: int, end: int) -> np.ndarray:
    """That memory itself, in words of 8 bytes."""
    memory = memoryview((ctypes.c_char * (end - start)).from_address(start))
    return np.frombuffer(memory, np.uint64)


def snapshot(spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    return [words(*span).copy() for span in spans]


def changed(spans: Sequence[tuple[int, int]], before: list[np.ndarray]) -> set[int]:
    """Lines, by number, that are not as they were."""
    lines: set[int] = set()
    for (start, end), old in zip(spans, before, strict=True):
        at = np.flatnonzero(old != words(start, end)) // (LINE_BYTES // 8)
        lines |= {start // LINE_BYTES + int(line) for line in np.unique(at)}
    return lines


@pytest.fixture(autouse=True)
def blocks_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of memory are like Python's own otherwise."""
    monkeypatch.setattr("dataplane.block.mmap.MAP_PRIVATE", mmap.MAP_SHARED)


@contextmanager
def resting(name: str) -> Iterator[tuple[Engine, Callable[[int], None], list[tuple[int, int]]]]:
    """An engine whose workers sleep; a function that gives one of them packets and waits until it
    sleeps again; the memory that came with it."""
    rng = random.Random(11)
    flows = [bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x11" + rng.randbytes(50)
             for _ in range(8)]
    frames = [flow for flow in flows for _ in range(WORKERS)]  # the same for each
    gc.collect()  # memory of engines before, which goes any time and may be given to this one
    known = mappings()
    port = MemoryPort(frames, queues=WORKERS, count=0, discard=True, out_bytes=1 << 20)
    engine = Engine(read_settled(str(EXAMPLES / f"{name}.o")), [port], busy_poll=False)

    def asleep(worker: int) -> bool:
        where = worker_block.C_WHERE
        code = ctypes.c_uint32.from_address(engine.workers[worker]._base + where).value
        return worker_block.WHERE[code] == "asleep"

    def work(worker: int) -> None:
        rounds = port.queues[worker].address + memory._ROUNDS
        ctypes.c_uint64.from_address(rounds).value = PACKETS // 8
        os.eventfd_write(engine.workers[worker]._event, 1)
        until(lambda: not ctypes.c_uint64.from_address(rounds).value, "its packets")
        os.eventfd_read(engine.workers[worker]._event)
        until(lambda: asleep(worker), "its rest")

    engine.start()
    try:
        until(lambda: all(asleep(worker) for worker in range(WORKERS)), "all asleep")
        spans = list(without(mappings(), known))
        assert sum(end - start for start, end in spans) < LARGEST_BYTES
        yield engine, work, spans
    finally:
        engine.stop()
        engine.close()
        port.close()


def alone(engine: Engine, work: Callable[[int], None], spans: Sequence[tuple[int, int]],
          worker: int) -> set[int]:
    """The lines that this worker writes; again if one of the others looked up meanwhile: it has
    counted a round, or poll(2) has just written what it found."""
    others = [one for one in engine.workers if one.number != worker]
    polled = {one._pollfds // LINE_BYTES for one in others}

    def rounds() -> list[int]:
        return [ctypes.c_uint64.from_address(one._base + worker_block.C_ROUNDS).value
                for one in others]

    while True:
        before, received = rounds(), engine.stats.total()["rx_packets"]
        memory_before = snapshot(spans)
        work(worker)
        lines = changed(spans, memory_before)
        assert engine.stats.total()["rx_packets"] == received + PACKETS
        if rounds() == before and not lines & polled:
            return lines


@pytest.mark.parametrize("name", ["drop", "tx", "counter", "firewall"])
def test_workers_write_no_line_together(name: str) -> None:
    with resting(name) as (engine, work, spans):
        wrote = [alone(engine, work, spans, worker) for worker in range(WORKERS)]
        for worker in range(WORKERS):
            own = engine.workers[worker]._base // LINE_BYTES
            assert own + worker_block.C_ROUNDS // LINE_BYTES in wrote[worker], "it has worked"
            for other in range(worker):
                assert not wrote[worker] & wrote[other], f"workers {worker} and {other}"


def variables(object_code: bytes) -> set[str]:
    """What of a compiled object can be written to."""
    code = ELFFile(io.BytesIO(object_code))
    writable = {number for number, section in enumerate(code.iter_sections())
                if section["sh_flags"] & SH_FLAGS.SHF_WRITE and section["sh_size"]}
    symbols = code.get_section_by_name(".symtab")
    assert isinstance(symbols, SymbolTableSection)
    return {symbol.name for symbol in symbols.iter_symbols()
            if symbol["st_shndx"] in writable and symbol["st_size"]}


@pytest.mark.parametrize("name", ["drop", "firewall", "flow_table"])
def test_compiled_code_has_no_variables(name: str) -> None:
    with resting(name) as (engine, _, _):
        image = engine.program.image
        assert image.apart, "a worker loop has rare templates"
        assert variables(image.object_code) <= {"xdpu.own"}, "its address is what locks take"
        assert not [code for code in image.apart if variables(code)]


def test_the_proof_sees_a_shared_line() -> None:
    """A hash that all workers write is one."""
    with resting("flow_table") as (engine, work, spans):
        first, second = (alone(engine, work, spans, worker) for worker in range(2))
        assert first & second
