"""An AF_XDP queue in ordinary memory, and the kernel's side of its rings played by Python."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

from afxdp import rings
from afxdp.queue import Shape
from dataplane.port import PortKind, PortQueue

_U32 = 0xFFFFFFFF
_LINES = {"fill": (rings.FILL, 8), "comp": (rings.COMPLETION, 8),
          "rx": (rings.RX, 16), "tx": (rings.TX, 16)}


class FakeRing:
    """Producer, consumer and flags, each on a line of its own, then the entries."""

    def __init__(self, size: int, entry_bytes: int, start: int) -> None:
        self._memory = (ctypes.c_char * (192 + size * entry_bytes))()
        self.size, self.entry_bytes = size, entry_bytes
        self.address = ctypes.addressof(self._memory)
        self.produced = self.consumed = start
        self.producer = ctypes.c_uint32.from_buffer(self._memory, 0)
        self.consumer = ctypes.c_uint32.from_buffer(self._memory, 64)
        self.flags = ctypes.c_uint32.from_buffer(self._memory, 128)
        self.producer.value = self.consumer.value = start & _U32
        self.entries = (ctypes.c_uint64 * (size * entry_bytes // 8)).from_buffer(self._memory, 192)

    def has_room(self) -> bool:
        return self.producer.value - self.consumer.value & _U32 < self.size

    def put(self, *words: int) -> None:
        where = self.producer.value % self.size * len(words)
        self.entries[where:where + len(words)] = list(words)
        self.producer.value = self.producer.value + 1 & _U32

    def take(self) -> list[int] | None:
        if self.producer.value == self.consumer.value:
            return None
        words = self.entry_bytes // 8
        where = self.consumer.value % self.size * words
        entry = list(self.entries[where:where + words])
        self.consumer.value = self.consumer.value + 1 & _U32
        return entry


class FakePool:
    """As afxdp.umem.Umem: the frames that are free."""

    def __init__(self, frames: int, frame_size: int) -> None:
        words = rings.POOL_SIZE_BYTES // 8
        self._memory = (ctypes.c_uint64 * (words + frames))(
            frames, *[0] * (words - 1), *(i * frame_size for i in range(frames)))
        self.address = ctypes.addressof(self._memory)
        self._memory[rings.STACK // 8] = self.address + rings.POOL_SIZE_BYTES
        self._memory[rings.FRAMES // 8] = frames

    def load(self, offset: int) -> int:
        return int(self._memory[offset // 8])


class FakeQueue:
    """As afxdp.queue.Queue, and the kernel: deliver(), transmit(), complete().

    `start` is where all counters begin: just below 2**32 to see them wrap.
    """

    def __init__(self, ring_size: int = 64, frame_size: int = 2048, start: int = 0,
                 unaligned: bool = False) -> None:
        self.shape = Shape(frame_size, ring_size, False, True, unaligned)
        frames = self.shape.frames
        self._memory = (ctypes.c_char * (rings.BLOCK_SIZE_BYTES + 64))()
        self.umem = FakePool(frames, frame_size)
        self._umem = (ctypes.c_char * ((frames + 1) * frame_size))()
        self.umem_address = -(-ctypes.addressof(self._umem) // frame_size) * frame_size
        self.address = (ctypes.addressof(self._memory) + 63) & ~63
        self.rings = {name: FakeRing(ring_size, size, start) for name, (_, size) in _LINES.items()}
        for name, (line, _) in _LINES.items():
            ring = self.rings[name]
            for field, value in ((rings.ARRAY, ring.address + 192),
                                 (rings.PRODUCER, ring.address),
                                 (rings.CONSUMER, ring.address + 64),
                                 (rings.RING_FLAGS, ring.address + 128),
                                 (rings.MASK, ring_size - 1), (rings.MINE, start),
                                 (rings.SEEN, start)):
                self.store(line + field, value)
        for line in (rings.TX, rings.FILL):
            self.store(line + rings.PUBLISHED, start)
            self.store(line + rings.SEEN, start + ring_size)
        self.rings["tx"].flags.value = rings.NEED_WAKEUP
        self.store(rings.UMEM, self.umem_address)
        self.store(rings.FRAME_SIZE, frame_size)
        self.store(rings.TAIL, self.shape.tail)
        self.store(rings.POLLFD, struct.unpack("=Q", struct.pack("=ihh", -1, 1, 0))[0])
        self.store(rings.POOL, self.umem.address)
        self.store(rings.CHUNK_MASK, self.shape.layout.chunk_mask)
        self.store(rings.OFFSET_SHIFT, rings.OFFSET_BITS_AT if unaligned else 0)
        self._sent: list[int] = []  # addresses taken from TX, not completed

    def store(self, offset: int, value: int) -> None:
        ctypes.c_uint64.from_address(self.address + offset).value = value

    def load(self, offset: int) -> int:
        return int(ctypes.c_uint64.from_address(self.address + offset).value)

    def ring(self, name: str) -> tuple[int, int, Any]:
        ring = self.rings[name]
        return ring.producer.value, ring.consumer.value, ring.entries

    def deliver(self, packet: bytes) -> bool:
        """A packet arrives.  False: dropped, for want of a frame or of room in RX."""
        if not self.rings["rx"].has_room() or (taken := self.rings["fill"].take()) is None:
            return False
        chunk = taken[0] & self.shape.layout.chunk_mask
        ctypes.memmove(self.umem_address + chunk + 256, packet, len(packet))
        self.rings["rx"].put(chunk + (256 << self.load(rings.OFFSET_SHIFT)), len(packet))
        return True

    def transmit(self) -> bytes | None:
        """Take one packet from TX; its frame is the kernel's until complete().

        As in the kernel, only when COMPLETION will have room for it.
        """
        comp = self.rings["comp"]
        if len(self._sent) + (comp.producer.value - comp.consumer.value & _U32) >= comp.size:
            return None
        if (taken := self.rings["tx"].take()) is None:
            return None
        address, length_and_options = taken
        assert length_and_options <= self.shape.frame_size
        self._sent.append(address)
        start = (address & rings.ADDRESS_MASK) + (address >> rings.OFFSET_BITS_AT)
        return ctypes.string_at(self.umem_address + start, length_and_options)

    def complete(self, count: int = 1) -> None:
        for _ in range(min(count, len(self._sent))):
            self.rings["comp"].put(self._sent.pop(0))


class FakePort:
    """A Port of one FakeQueue, for the driver."""

    kind: PortKind = rings.AFXDP
    name, ifindex, mode, mtu = "fake", 0, "fake", 1500

    def __init__(self, **shape: Any) -> None:
        self.queue = FakeQueue(**shape)
        self.queues: Sequence[PortQueue] = [PortQueue(0, self.queue.address, -1)]

    def statistics(self) -> dict[str, int]:
        return {}

    def finished(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing is open."""
