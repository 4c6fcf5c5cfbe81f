"""An AF_XDP socket as the kernel offers it: options, rings, bind.  uapi: linux/if_xdp.h.

libxdp's xsk_* calls are not used for this: they map a socket's rings for the process that made it,
and ours may come from another one (setup.py).  What they do is in this file: four ring sizes by
setsockopt, the rings' offsets by getsockopt, four mmap, one bind.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from afxdp import native

AF_XDP, SOL_XDP = 44, 283
_MMAP_OFFSETS, _RX_RING, _TX_RING, _UMEM_REG, _FILL_RING, _COMPLETION_RING = 1, 2, 3, 4, 5, 6
_RINGS = {  # option of its size, bytes of an entry, where it is mapped
    "rx": (_RX_RING, 16, 0), "tx": (_TX_RING, 16, 0x80000000),
    "fill": (_FILL_RING, 8, 0x100000000), "comp": (_COMPLETION_RING, 8, 0x180000000)}
_OFFSETS_ORDER = ("rx", "tx", "fill", "comp")  # in struct xdp_mmap_offsets

SHARED_UMEM, COPY, ZEROCOPY, USE_NEED_WAKEUP, USE_SG = 1, 2, 4, 8, 16  # sxdp_flags
UNALIGNED_CHUNKS, UMEM_TX_METADATA_LEN = 1, 4  # xdp_umem_reg.flags
_UMEM = struct.Struct("=QQIIII")  # struct xdp_umem_reg: address, bytes, chunk bytes, headroom,
# flags, metadata bytes; a kernel that knows less takes the front of it
_SO_BUSY_POLL, _SO_PREFER_BUSY_POLL, _SO_BUSY_POLL_BUDGET = 46, 69, 70
_BUSY_POLL_US = 20  # how long one call may poll; any number but 0 allows it


class BindError(Exception):
    """bind(2) refuses, with this errno."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code
        same = code == errno.EOPNOTSUPP  # Python calls it ENOTSUP, the same number on Linux
        self.name = "EOPNOTSUPP" if same else errno.errorcode.get(code, str(code))


@dataclass(frozen=True, slots=True)
class Ring:
    """Addresses of a mapped ring: its two counters, flags and entries; their number."""

    producer: int
    consumer: int
    flags: int
    entries: int
    size: int


class Socket:
    """One socket: made here, or received from another process (`fd`).  OSError as the kernel says.

    close() gives everything back; the rings must not be used any more then.
    """

    def __init__(self, fd: int = -1) -> None:
        _, self._lib = native.load()
        self._socket = socket.socket(AF_XDP, socket.SOCK_RAW, 0, fd if fd >= 0 else None)
        self._maps: list[mmap.mmap] = []

    @property
    def fd(self) -> int:
        return self._socket.fileno()

    def register(self, address: int, size_bytes: int, frame_size: int, flags: int,
                 metadata_bytes: int = 0) -> None:
        """XDP_UMEM_REG: this memory, pinned, is where the packets will be; `metadata_bytes` in
        front of those that are sent are the kernel's to read (Linux 6.11)."""
        flags |= UMEM_TX_METADATA_LEN if metadata_bytes else 0
        self._socket.setsockopt(SOL_XDP, _UMEM_REG, _UMEM.pack(
            address, size_bytes, frame_size, 0, flags, metadata_bytes))

    def size_rings(self, size: int) -> None:
        """All four rings, before bind."""
        for option, _, _ in _RINGS.values():
            self._socket.setsockopt(SOL_XDP, option, size)

    def map_rings(self, size: int) -> dict[str, Ring]:
        """fill, comp, rx and tx, `size` entries each."""
        numbers = struct.unpack("=16Q", self._socket.getsockopt(SOL_XDP, _MMAP_OFFSETS, 128))
        offsets = {name: numbers[4 * i:4 * i + 4] for i, name in enumerate(_OFFSETS_ORDER)}
        rings = {}
        for name, (_, entry_bytes, where) in _RINGS.items():
            producer, consumer, entries, flags = offsets[name]
            memory = mmap.mmap(self.fd, entries + size * entry_bytes,
                               mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=where)
            self._maps.append(memory)
            base = address_of(memory)
            rings[name] = Ring(base + producer, base + consumer, base + flags, base + entries,
                               size)
        return rings

    def bind(self, ifindex: int, queue: int, flags: int, shared_fd: int = -1) -> None:
        """Raises BindError.  With SHARED_UMEM the modes are those of the socket `shared_fd`."""
        failed = self._lib.bind_queue(self.fd, ifindex, queue, flags, max(shared_fd, 0))
        if failed:
            raise BindError(-failed)

    def prefer_busy_poll(self, budget: int) -> None:
        """The driver works when this socket asks it to, at most `budget` packets a call."""
        for option, value in ((_SO_PREFER_BUSY_POLL, 1), (_SO_BUSY_POLL, _BUSY_POLL_US),
                              (_SO_BUSY_POLL_BUDGET, budget)):
            self._socket.setsockopt(socket.SOL_SOCKET, option, value)
        self._socket.setblocking(False)  # what read(2) needs to poll and return

    def set_tx_budget(self, packets: int) -> None:
        """Packets that one sendto() may send in copy mode; before Linux 6.17 it is always 32."""
        self._lib.max_tx_budget(self.fd, packets)

    def is_zero_copy(self) -> bool:
        return int(self._lib.is_zero_copy(self.fd)) == 1

    def error(self) -> int:
        """The pending errno, once."""
        return int(self._lib.socket_error(self.fd)) if self.fd >= 0 else 0

    def close(self) -> None:
        """Again is no error."""
        for memory in self._maps:
            memory.close()
        self._maps.clear()
        self._socket.close()


def address_of(memory: mmap.mmap) -> int:
    kept: Any = ctypes.c_char.from_buffer(memory)
    return ctypes.addressof(kept)


def read_word(address: int) -> int:
    """A counter of a ring."""
    return int(ctypes.c_uint32.from_address(address).value)
