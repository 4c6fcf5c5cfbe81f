"""USER_RINGBUF: records from user space to programs, which drain them (bpf_user_ringbuf_drain).

It lies in memory as a RINGBUF does (ringbuf.py), with the roles changed: user space writes the
producer's position and the records, programs the consumer's.  A record is u32 length | BUSY |
DISCARD, u32 unused, then its bytes, padded to 8 (Documentation/bpf/ringbuf.rst; libbpf's
user_ring_buffer__reserve gives the errors; kernel/bpf/ringbuf.c those of draining).

One program at a time drains a ring: who does has the ring's lock (lock.py), and others are told
-EBUSY.  Between the callbacks of a drain its progress is in memory of the program, 64 bytes: the
dynptr that the callback is given, samples and discarded ones so far, the size of the sample at hand
plus one (0: none), the flags, and at last the result.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from typing import Any

from xdp_runtime.maps.family import E2BIG, EINVAL
from xdp_runtime.maps.lock import GONE, LOCK, UNLOCK, Factory
from xdp_runtime.maps.ringbuf import (
    BUSY,
    CONSUMER,
    DATA,
    DISCARD,
    DYNPTR_DATA,
    DYNPTR_SIZE,
    DYNPTR_SIZE_MAX,
    FORCE_WAKEUP,
    LEADING,
    NO_WAKEUP,
    PRODUCER,
    RECORD_HEAD_BYTES,
    WAKE,
    RingbufFamily,
)
from xdp_runtime.object import MapSpec
from xdp_runtime.template import Template

EBUSY = 16
SAMPLES_MAX = 128 * 1024  # BPF_MAX_USER_RINGBUF_SAMPLES
DRAIN_BYTES = 64
_SAMPLES, _DISCARDED, _SIZE, _FLAGS, RESULT = 16, 24, 32, 40, 48
DYNPTR_LOCAL = 1 << 28  # BPF_DYNPTR_TYPE_LOCAL, above the size


def _begin(m: Any) -> Factory:
    gone = m.extern(GONE)

    def user_ring_begin(ring, data_bytes, worker, drain, flags):  # type: ignore
        """0 or -errno; `drain` is then what `next` goes on with."""
        if flags & ~(NO_WAKEUP | FORCE_WAKEUP) != 0:
            return -EINVAL
        me = m.c_getpid()
        if not m.cas_u32(ring, LOCK, 0, me):
            owner = m.relaxed_u32(ring, LOCK)
            if owner == 0 or owner == me or gone(owner) == 0:
                return -EBUSY
            if not m.cas_u32(ring, LOCK, owner, me):
                return -EBUSY
        m.zero(drain, DRAIN_BYTES)
        m.store_u64(drain, _FLAGS, flags)
        return 0

    return user_ring_begin


def _next(m: Any) -> Factory:
    wake, unlock = m.extern(WAKE), m.extern(UNLOCK)

    def user_ring_next(ring, data_bytes, worker, drain, answer):  # type: ignore
        """1 with the next sample in the dynptr, 0 with the result; `answer` is the callback's."""
        samples = m.load_u64(drain, _SAMPLES)
        discarded = m.load_u64(drain, _DISCARDED)
        at = m.acquire_u64(ring, CONSUMER)
        size = m.load_u64(drain, _SIZE)
        if size != 0:
            at += ((size - 1 + RECORD_HEAD_BYTES) + 7) & ~7
            m.release_u64(ring, CONSUMER, at)
            samples += 1
        error = 0
        while samples < SAMPLES_MAX and answer == 0:
            produced = m.acquire_u64(ring, PRODUCER)
            if produced & 7 != 0:
                error = -EINVAL
                break
            if not m.ult(at, produced):
                break
            record = m.inside(ring, DATA + (at & (data_bytes - 1)))
            head = m.acquire_u32(record, 0)
            size = head & ~(BUSY | DISCARD)
            length = (size + RECORD_HEAD_BYTES + 7) & ~7
            if m.ult(produced - at, length):
                error = -EINVAL
                break
            if length > data_bytes or size > DYNPTR_SIZE_MAX:
                error = -E2BIG
                break
            if head & DISCARD != 0:
                at += length
                m.release_u64(ring, CONSUMER, at)
                discarded += 1
                samples += 1
                continue
            if head & BUSY != 0:
                break
            m.store_ptr(drain, DYNPTR_DATA, m.inside(record, RECORD_HEAD_BYTES))
            m.store_u64(drain, DYNPTR_SIZE, size | DYNPTR_LOCAL)
            m.store_u64(drain, _SAMPLES, samples)
            m.store_u64(drain, _DISCARDED, discarded)
            m.store_u64(drain, _SIZE, size + 1)
            return 1
        m.store_u64(drain, RESULT, error if error != 0 else samples - discarded)
        unlock(ring)
        flags = m.load_u64(drain, _FLAGS)
        if flags & FORCE_WAKEUP != 0 or (flags & NO_WAKEUP == 0 and samples > 0):
            wake(ring)
        return 0

    return user_ring_next


BEGIN = Template("user_ring_begin", _begin, f"i64({LEADING}, ptr, i64)", (GONE,), inline=False)
NEXT = Template("user_ring_next", _next, f"i64({LEADING}, ptr, i64)", (WAKE, UNLOCK), inline=False)


class UserRingbufFamily(RingbufFamily):
    """USER_RINGBUF; the parameters are those of a RINGBUF."""

    def __init__(self) -> None:
        self.operations: Mapping[str, Template] = {"drain": NEXT, "drain_begin": BEGIN}

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        """Zeros are an empty ring."""


def produce(memory: memoryview, data_bytes: int, record: bytes) -> None:
    """Put a record into the ring.  One process and thread at a time may do so.

    Raises OSError: E2BIG if it can never fit, ENOSPC if programs must drain others first."""
    length = RECORD_HEAD_BYTES + (len(record) + 7 & ~7)
    if length > data_bytes:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    consumer = ctypes.c_uint64.from_buffer(memory, CONSUMER)
    producer = ctypes.c_uint64.from_buffer(memory, PRODUCER)
    at = producer.value
    if data_bytes - (at - consumer.value) < length:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    start = DATA + at % data_bytes
    body = start + RECORD_HEAD_BYTES
    memory[body:body + len(record)] = record
    memory[start:body] = len(record).to_bytes(RECORD_HEAD_BYTES, "little")
    producer.value = at + length  # the last to be seen
