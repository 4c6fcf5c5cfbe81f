"""Block: a piece of anonymous memory that templates get as a pointer and Python reads and writes.

Pages that nobody touched cost nothing, so an area may be sized for the worst case.
"""

from __future__ import annotations

import ctypes
import mmap
import struct

# What the kernel keeps behind a packet's buffer, for skb_shared_info: adjust_tail stops before it.
SKB_SHARED_INFO_BYTES = 320


class Block:
    """`size_bytes` of zeroed, page-aligned memory at `address`, until `close`."""

    def __init__(self, size_bytes: int, mapping: mmap.mmap | None = None) -> None:
        self._mapping = mapping if mapping is not None else mmap.mmap(
            -1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self._mapping)
        self.address = ctypes.addressof(self._anchor)
        self.size_bytes = size_bytes

    @property
    def closed(self) -> bool:
        return self._anchor is None

    def get(self, offset: int) -> int:
        """The u64 there."""
        return int(struct.unpack_from("=Q", self._mapping, offset)[0])

    def set(self, offset: int, value: int) -> None:
        """Store a u64: a number, or the address of another block."""
        struct.pack_into("=Q", self._mapping, offset, value)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._mapping[offset:offset + length])

    def write(self, offset: int, content: bytes) -> None:
        self._mapping[offset:offset + len(content)] = content

    def close(self) -> None:
        """Unmap; compiled code must have stopped.  May be called twice."""
        if self._anchor is not None:
            self._anchor = None
            self._mapping.close()
