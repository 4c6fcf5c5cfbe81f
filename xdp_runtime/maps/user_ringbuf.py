"""USER_RINGBUF: records from user space to programs, which drain them.

It lies in memory as a RINGBUF does (ringbuf.py), with the roles changed: user space writes the
producer's position and the records, programs the consumer's.  A record is u32 length | BUSY |
DISCARD, u32 unused, then its bytes, padded to 8 (Documentation/bpf/ringbuf.rst; libbpf's
user_ring_buffer__reserve gives the errors).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping

from xdp_runtime.maps.ringbuf import CONSUMER, DATA, PRODUCER, RECORD_HEAD_BYTES, RingbufFamily
from xdp_runtime.object import MapSpec
from xdp_runtime.template import Template


class UserRingbufFamily(RingbufFamily):
    """USER_RINGBUF; the parameters are those of a RINGBUF."""

    def __init__(self) -> None:
        self.operations: Mapping[str, Template] = {}

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
