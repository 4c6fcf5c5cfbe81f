"""The reference model of a USER_RINGBUF: the ring's bytes, and what a drain makes of them."""

from __future__ import annotations

from collections.abc import Iterator

from xdp_runtime.maps.family import E2BIG, EINVAL, EOPNOTSUPP
from xdp_runtime.maps.ringbuf import BUSY, DISCARD, DYNPTR_SIZE_MAX, RECORD_HEAD_BYTES
from xdp_runtime.object import MapSpec

OVER = 0  # instead of a sample: there is none


class ModelUserRing:
    """`data` are the records, `busy` while a program drains."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self.data = bytearray(spec.max_entries)
        self.produced = self.consumed = 0
        self.busy = False

    def produce(self, record: bytes, head: int | None = None) -> None:
        """Put a record into the ring; `head` is what to have in place of its length."""
        first = len(record) if head is None else head
        whole = first.to_bytes(RECORD_HEAD_BYTES, "little") + record + bytes(-len(record) % 8)
        for at, byte in enumerate(whole, self.produced):
            self.data[at % len(self.data)] = byte
        self.produced += len(whole)

    def peek_sample(self) -> bytearray | int | None:
        """The next sample; None: it was discarded; OVER or -errno."""
        if self.produced % 8:
            return -EINVAL
        if self.consumed >= self.produced:
            return OVER
        head = int.from_bytes(self._bytes(self.consumed, 4), "little")
        size = head & ~(BUSY | DISCARD)
        length = size + RECORD_HEAD_BYTES + 7 & ~7
        if length > self.produced - self.consumed:
            return -EINVAL
        if length > len(self.data) or size > DYNPTR_SIZE_MAX:
            return -E2BIG
        if head & DISCARD:
            self.consumed += length
            return None
        if head & BUSY:
            return OVER
        return self._bytes(self.consumed + RECORD_HEAD_BYTES, size)

    def release(self, sample: bytearray) -> None:
        """The sample was seen, and perhaps written."""
        for at, byte in enumerate(sample, self.consumed + RECORD_HEAD_BYTES):
            self.data[at % len(self.data)] = byte
        self.consumed += len(sample) + RECORD_HEAD_BYTES + 7 & ~7

    def _bytes(self, start: int, size: int) -> bytearray:
        return bytearray(self.data[at % len(self.data)] for at in range(start, start + size))

    # --- as a map: nothing of it is found by keys ---------------------------------------------
    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        return None

    peek = lookup

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        return -EOPNOTSUPP

    def delete(self, key: bytes) -> int:
        return -EOPNOTSUPP

    def items(self, cpu: int = 0) -> Iterator[tuple[bytes, bytes]]:
        return iter(())
