"""RINGBUF, and the rings of a PERF_EVENT_ARRAY: records from programs to user space.

    page 0   the lock (64), u32 event descriptor or 0 (128), u64 records lost (136)
    page 1   u64 consumer position, written by user space
    page 2   u64 producer position, u64 position of the oldest record not committed
    page 3.. the data, and behind it the same memory once more, so that no record is ever split

From page 1 on this is what the kernel's ring buffer maps: a record is u32 length | BUSY | DISCARD,
u32 pages back to page 0, then its bytes, padded to 8.  Positions only grow.  Reserving takes the
lock; committing is one exchange of the length (kernel/bpf/ringbuf.c), or a store where the flags
say whether to wake.  A ring of one worker needs no lock.  Where the consumer has read all there
was before this record, or is asked to, its eventfd is signalled; that of the process that made the
map.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from xdp_runtime.fragments import ONE_PIECE, SEVERAL, Pieces
from xdp_runtime.maps.array import NEXT_KEY
from xdp_runtime.maps.family import (
    E2BIG,
    EAGAIN,
    EFAULT,
    EINVAL,
    ENOENT,
    ENOSPC,
    EOPNOTSUPP,
    Region,
)
from xdp_runtime.maps.lock import LOCKED, UNLOCK, Factory
from xdp_runtime.object import MapFlag, MapSpec
from xdp_runtime.template import Template

PAGE = 4096
EVENT, LOST = 128, 136  # in page 0
CONSUMER, PRODUCER, PENDING, DATA = PAGE, 2 * PAGE, 2 * PAGE + 8, 3 * PAGE
BUSY, DISCARD = 1 << 31, 1 << 30
RECORD_HEAD_BYTES = 8
NO_WAKEUP, FORCE_WAKEUP = 1, 2
# struct bpf_dynptr_kern: pointer, size with the type and a flag above its 24 bits, offset
DYNPTR_DATA, DYNPTR_SIZE, DYNPTR_OFFSET = 0, 8, 12
DYNPTR_SIZE_MAX, DYNPTR_READ_ONLY = (1 << 24) - 1, 1 << 31
_LOW = 0xFFFFFFFF
_PERF_BYTES = 256 << 10  # a worker's ring of a PERF_EVENT_ARRAY
_RECORD_MAX_BYTES = _LOW // 4

# ring, data_bytes; worker
LEADING = "ptr, i64, i64"


def _reserve(m: Any) -> Factory:
    lock, unlock = m.extern(LOCKED), m.extern(UNLOCK)

    def ring_reserve(ring, data_bytes, shared, size):  # type: ignore
        length = ((size + 7) & ~7) + RECORD_HEAD_BYTES
        if not m.ule(size, _RECORD_MAX_BYTES) or length > data_bytes:
            return m.null()
        mask = data_bytes - 1
        consumed = m.acquire_u64(ring, CONSUMER)
        if shared != 0:
            lock(ring)
        pending = m.load_u64(ring, PENDING)
        produced = m.load_u64(ring, PRODUCER)
        after = produced + length
        while pending < produced:
            head = m.acquire_u32(ring, DATA + (pending & mask))
            if head & BUSY != 0:
                break
            pending += (((head & ~DISCARD) + 7) & ~7) + RECORD_HEAD_BYTES
        m.store_u64(ring, PENDING, pending)
        # unsigned, as a reader that claims more than there is gets nothing
        if m.ult(mask, after - consumed) or m.ult(mask, after - pending):
            m.store_u64(ring, LOST, m.load_u64(ring, LOST) + 1)
            if shared != 0:
                unlock(ring)
            return m.null()
        at = produced & mask
        record = m.inside(ring, DATA + at)
        m.store_u32(record, 0, size | BUSY)
        m.store_u32(record, 4, (at + DATA) >> 12)
        m.release_u64(ring, PRODUCER, after)
        if shared != 0:
            unlock(ring)
        return m.inside(record, RECORD_HEAD_BYTES)

    return ring_reserve


RESERVE = Template("ring_reserve", _reserve, "ptr(ptr, i64, i64, i64)", (LOCKED, UNLOCK))


def _wake(m: Any) -> Factory:
    def ring_wake(ring):  # type: ignore
        descriptor = m.relaxed_u32(ring, EVENT)
        if descriptor != 0:
            one = m.gep(m.alloca(8), 0)
            m.store_u64(one, 0, 1)
            m.c_write(descriptor, one, 8)
        return 0

    return ring_wake


WAKE = Template("ring_wake", _wake, "i64(ptr)", inline=False)


def _commit(m: Any) -> Factory:
    wake = m.extern(WAKE)

    def ring_commit(record, flags, discard):  # type: ignore
        head = m.gep(record, -RECORD_HEAD_BYTES)
        back = m.load_u32(head, 4) << 12
        ring = m.gep(head, -(m.address(head) & (PAGE - 1)) - back)
        at = m.diff(head, ring) - DATA
        length = m.load_u32(head, 0) ^ BUSY | discard
        if flags & (NO_WAKEUP | FORCE_WAKEUP) != 0:
            m.release_u32(head, 0, length)
            if flags & FORCE_WAKEUP != 0:
                wake(ring)
        else:
            m.atomic_swap_u32(head, 0, length)  # before the consumer's position is read
            # the data's size is a power of two: the consumer is here if no bit up to it differs
            consumed = m.acquire_u64(ring, CONSUMER)
            if (consumed - at) & m.load_u64(ring, PRODUCER + 16) == 0:
                wake(ring)
        return 0

    return ring_commit


# `discard` is 0 or DISCARD; the ring is found from the record
COMMIT = Template("ring_commit", _commit, "i64(ptr, i64, i64)", (WAKE,))


def _ringbuf_reserve(m: Any) -> Factory:
    reserve = m.extern(RESERVE)

    def ringbuf_reserve(ring, data_bytes, worker, size, flags):  # type: ignore
        if flags != 0:
            return m.null()
        return reserve(ring, data_bytes, 1, size)

    return ringbuf_reserve


def _ringbuf_output(m: Any) -> Factory:
    reserve, commit = m.extern(RESERVE), m.extern(COMMIT)

    def ringbuf_output(ring, data_bytes, worker, data, size, flags):  # type: ignore
        if flags & ~(NO_WAKEUP | FORCE_WAKEUP) != 0:
            return -EINVAL
        record = reserve(ring, data_bytes, 1, size)
        if m.is_null(record):
            return -EAGAIN
        m.copy(record, data, size)
        commit(record, flags, 0)
        return 0

    return ringbuf_output


def _ringbuf_query(m: Any) -> Factory:
    def ringbuf_query(ring, data_bytes, worker, what):  # type: ignore
        if what == 0:
            return m.acquire_u64(ring, PRODUCER) - m.acquire_u64(ring, CONSUMER)
        if what == 1:
            return data_bytes
        if what == 2:
            return m.acquire_u64(ring, CONSUMER)
        if what == 3:
            return m.acquire_u64(ring, PRODUCER)
        return 0

    return ringbuf_query


def _perf_output(m: Any, pieces: Pieces) -> Factory:
    reserve, commit = m.extern(RESERVE), m.extern(COMMIT)
    length, copy = m.extern(pieces.length), m.extern(pieces.copy)

    def perf_output(  # type: ignore
        rings, data_bytes, ring_bytes, max_entries, worker, run, flags, data, size
    ):
        packet_bytes = m.lshr(flags, 32)
        if packet_bytes > 0xFFFFF:
            return -EINVAL
        if packet_bytes > length(run):
            return -EFAULT
        index = flags & _LOW
        if index == _LOW:
            index = worker
        if index >= max_entries:
            return -E2BIG
        if index != worker:
            return -EOPNOTSUPP
        ring = m.inside(rings, worker * ring_bytes)
        record = reserve(ring, data_bytes, 0, size + packet_bytes)
        if m.is_null(record):
            return -ENOSPC
        m.copy(record, data, size)
        if packet_bytes != 0:
            copy(run, 0, m.gep(record, size), packet_bytes, 0)
        commit(record, 0, 0)
        return 0

    return perf_output


def _ringbuf_reserve_dynptr(m: Any) -> Factory:
    reserve = m.extern(RESERVE)

    def ringbuf_reserve_dynptr(ring, data_bytes, worker, size, flags, place):  # type: ignore
        size = size & _LOW
        m.store_ptr(place, DYNPTR_DATA, m.null())
        m.store_u64(place, DYNPTR_SIZE, 0)
        if flags != 0:
            return -EINVAL
        if size > DYNPTR_SIZE_MAX:
            return -E2BIG
        record = reserve(ring, data_bytes, 1, size)
        if m.is_null(record):
            return -EINVAL
        m.store_ptr(place, DYNPTR_DATA, record)
        m.store_u32(place, DYNPTR_SIZE, size)
        return 0

    return ringbuf_reserve_dynptr


def _perf_next_key(m: Any) -> Factory:
    after = m.extern(NEXT_KEY)

    def perf_next_key(ring, data_bytes, ring_bytes, entries, worker, key, out):  # type: ignore
        return after(ring, 0, 4, 4, entries, 1, worker, key, out)

    return perf_next_key


def _perf_delete(m: Any) -> Factory:
    def perf_delete(ring, data_bytes, ring_bytes, entries, worker, key):  # type: ignore
        """There are rings, but no events of the kernel."""
        if m.load_u32(key, 0) >= entries:
            return -E2BIG
        return -ENOENT

    return perf_delete


RINGBUF_RESERVE = Template("ringbuf_reserve", _ringbuf_reserve, f"ptr({LEADING}, i64, i64)",
                           (RESERVE,))
RINGBUF_RESERVE_DYNPTR = Template("ringbuf_reserve_dynptr", _ringbuf_reserve_dynptr,
                                  f"i64({LEADING}, i64, i64, ptr)", (RESERVE,))
RINGBUF_OUTPUT = Template("ringbuf_output", _ringbuf_output, f"i64({LEADING}, ptr, i64, i64)",
                          (RESERVE, COMMIT))
RINGBUF_QUERY = Template("ringbuf_query", _ringbuf_query, f"i64({LEADING}, i64)")
_PERF_SIGNATURE = "i64(ptr, i64, i64, i64, i64, ptr, i64, ptr, i64)"
PERF_OUTPUT = Template("perf_output", partial(_perf_output, pieces=ONE_PIECE), _PERF_SIGNATURE,
                       (RESERVE, COMMIT, *ONE_PIECE.templates))
PERF_OUTPUT_FRAGS = Template("perf_output_frags", partial(_perf_output, pieces=SEVERAL),
                             _PERF_SIGNATURE, (RESERVE, COMMIT, *SEVERAL.templates))
PERF_NEXT_KEY = Template("perf_next_key", _perf_next_key, "i64(ptr, i64, i64, i64, i64, ptr, ptr)",
                         (NEXT_KEY,), inline=False)
PERF_DELETE = Template("perf_delete", _perf_delete, "i64(ptr, i64, i64, i64, i64, ptr)",
                       inline=False)


class RingbufFamily:
    """RINGBUF.  `rings` gives what Map.consume reads: where each ring starts, and its data's size.
    """

    per_cpu = False

    def __init__(self) -> None:
        self.operations: Mapping[str, Template] = {
            "reserve": RINGBUF_RESERVE, "output": RINGBUF_OUTPUT, "query": RINGBUF_QUERY,
            "reserve_dynptr": RINGBUF_RESERVE_DYNPTR}

    def check(self, spec: MapSpec) -> str | None:
        if spec.key_size or spec.value_size:
            return "a ring buffer has neither keys nor values"
        if spec.flags & ~int(MapFlag.NUMA_NODE):
            return f"flags {spec.flags:#x} are not known for a ring buffer"
        size = spec.max_entries
        if size == 0 or size & (size - 1) or size % PAGE:
            return f"its size is {size}, must be a power of two of at least {PAGE}"
        return None

    def rings(self, spec: MapSpec, workers: int) -> tuple[tuple[int, int], ...]:
        return ((0, spec.max_entries),)

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        return (_ring_region(self.rings(spec, workers)),)

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("ring", spec.max_entries)

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        _initialise(self.rings(spec, 1), memory["ring"])


class PerfEventArrayFamily:
    """PERF_EVENT_ARRAY: a ring a worker; an index names a worker."""

    per_cpu = False

    def __init__(self) -> None:
        self.operations: Mapping[str, Template] = {
            "perf_output": PERF_OUTPUT, "perf_output_frags": PERF_OUTPUT_FRAGS,
            "next_key": PERF_NEXT_KEY, "delete": PERF_DELETE}

    def check(self, spec: MapSpec) -> str | None:
        if spec.key_size != 4 or spec.value_size != 4:
            return f"key and value have {spec.key_size} and {spec.value_size} bytes, must be 4"
        return None

    def rings(self, spec: MapSpec, workers: int) -> tuple[tuple[int, int], ...]:
        return tuple((worker * _ring_bytes(_PERF_BYTES), _PERF_BYTES) for worker in range(workers))

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        return (_ring_region(self.rings(spec, workers)),)

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("ring", _PERF_BYTES, _ring_bytes(_PERF_BYTES), spec.max_entries or workers)

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        ring_bytes = _ring_bytes(_PERF_BYTES)
        count = len(memory["ring"]) // ring_bytes
        _initialise(self.rings(spec, count), memory["ring"])


def _ring_bytes(data_bytes: int) -> int:
    return DATA + 2 * data_bytes


def _ring_region(rings: tuple[tuple[int, int], ...]) -> Region:
    return Region("ring", sum(_ring_bytes(size) for _, size in rings),
                  tuple((start + DATA, size) for start, size in rings))


def _initialise(rings: tuple[tuple[int, int], ...], memory: memoryview) -> None:
    """Each ring knows its mask, which committing needs."""
    for start, size in rings:
        at = start + PRODUCER + 16
        memory[at:at + 8] = (size - 1).to_bytes(8, "little")


def consume(memory: memoryview, start: int, data_bytes: int) -> list[bytes]:
    """All committed records of a ring, which is thereby emptied up to the first that is not."""
    def position(at: int) -> int:
        return int.from_bytes(memory[start + at:start + at + 8], "little")

    records = []
    consumed, produced = position(CONSUMER), position(PRODUCER)
    while consumed < produced:
        at = start + DATA + consumed % data_bytes
        head = int.from_bytes(memory[at:at + 4], "little")
        if head & BUSY:
            break
        size = head & ~DISCARD
        if not head & DISCARD:
            first = at + RECORD_HEAD_BYTES
            records.append(bytes(memory[first:first + size]))
        consumed += (size + 7 & ~7) + RECORD_HEAD_BYTES
    memory[start + CONSUMER:start + CONSUMER + 8] = consumed.to_bytes(8, "little")
    return records


def has_record(memory: memoryview, start: int, data_bytes: int) -> bool:
    """Has the next record been committed?"""
    consumed = int.from_bytes(memory[start + CONSUMER:start + CONSUMER + 8], "little")
    produced = int.from_bytes(memory[start + PRODUCER:start + PRODUCER + 8], "little")
    at = start + DATA + consumed % data_bytes
    return consumed < produced and not int.from_bytes(memory[at:at + 4], "little") & BUSY
