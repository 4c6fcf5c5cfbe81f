"""Queue: one AF_XDP socket, its umem, and the block of memory that the templates work on.

One anonymous mapping holds the umem (aligned to a huge page, so that it may become some), the
block whose layout rings.py gives, and the stack of free frames.  Half of the frames start in the
fill ring, half on the stack: what transmit, send and a slow reader may hold at one time.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from afxdp import native, rings
from dataplane.port import PortQueue
from xdp_runtime.bpf_syscall import AS_ROOT
from xdp_runtime.errors import OutOfMemory, PortError, XdpuError

BUSY_RETRY_S = 0.2  # a queue whose socket was closed stays busy for some 20 ms
_HUGE_PAGE_BYTES = 2 << 20
_TX_BUDGET = 256  # packets one sendto() may send
_POLLIN = 1
_RING_LINES = {"fill": rings.FILL, "comp": rings.COMPLETION, "rx": rings.RX, "tx": rings.TX}
_COUNTERS = {"tx_full": rings.TX_FULL, "no_frame": rings.NO_FRAME, "wakeups": rings.WAKEUPS,
             "wake_errors": rings.WAKE_ERRORS, "malformed": rings.MALFORMED}
_KERNEL_COUNTERS = ("rx_dropped", "rx_invalid_descs", "tx_invalid_descs", "rx_ring_full",
                    "rx_fill_ring_empty_descs", "tx_ring_empty_descs")


@dataclass(frozen=True, slots=True)
class Shape:
    """How a socket is made: frame and ring sizes, and how it is bound."""

    frame_size: int
    ring_size: int
    zero_copy: bool
    need_wakeup: bool

    @property
    def frames(self) -> int:
        return 2 * self.ring_size

    @property
    def tail(self) -> int:
        """FRAME_END's offset in a chunk; a small chunk needs its tail for a full-size packet."""
        return self.frame_size - (rings.SKB_SHARED_INFO_BYTES if self.frame_size >= 4096 else 0)


class BindError(Exception):
    """bind(2) refuses, with this errno."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code
        same = code == errno.EOPNOTSUPP  # Python calls it ENOTSUP, the same number on Linux
        self.name = "EOPNOTSUPP" if same else errno.errorcode.get(code, str(code))


class Queue:
    """An open queue.  Raises BindError, OutOfMemory or PortError; close() gives all back."""

    def __init__(self, ifname: str, index: int, shape: Shape) -> None:
        self._ffi, self._lib = native.load()
        self.ifname, self.index, self.shape = ifname, index, shape
        self.fd = -1
        self._umem: Any = None
        self._socket: Any = None
        umem_bytes = shape.frames * shape.frame_size
        size = umem_bytes + rings.BLOCK_SIZE_BYTES + 8 * shape.frames
        try:
            self._memory = mmap.mmap(-1, size + _HUGE_PAGE_BYTES,
                                     flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise OutOfMemory(f"queue {index} of {ifname}", f"no memory for {shape.frames} frames "
                              f"of {shape.frame_size} bytes", "use a smaller ring") from error
        self._buffer = self._ffi.from_buffer(self._memory)
        start = -self._number(self._buffer) % _HUGE_PAGE_BYTES
        for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTFORK):
            with suppress(OSError):
                self._memory.madvise(advice, start, umem_bytes)
        self.umem_address = self._number(self._buffer) + start
        self._at = start + umem_bytes
        self.address = self.umem_address + umem_bytes
        try:
            self._open(umem_bytes)
        except BaseException:
            self.close()
            raise

    def _number(self, pointer: Any) -> int:
        return int(self._ffi.cast("uintptr_t", pointer))

    def _open(self, umem_bytes: int) -> None:
        ffi, lib, shape = self._ffi, self._lib, self.shape
        self._rings = {"fill": ffi.new("struct xsk_ring_prod *"),
                       "comp": ffi.new("struct xsk_ring_cons *"),
                       "rx": ffi.new("struct xsk_ring_cons *"),
                       "tx": ffi.new("struct xsk_ring_prod *")}
        made = ffi.new("struct xsk_umem **")
        config = ffi.new("struct xsk_umem_config *", {
            "fill_size": shape.ring_size, "comp_size": shape.ring_size,
            "frame_size": shape.frame_size})
        failed = lib.xsk_umem__create(made, ffi.cast("void *", self.umem_address), umem_bytes,
                                      self._rings["fill"], self._rings["comp"], config)
        if failed:
            raise self._umem_error(-failed, umem_bytes)
        self._umem = made[0]
        self._give_frames()
        flags = lib.XDP_ZEROCOPY if shape.zero_copy else lib.XDP_COPY
        if shape.need_wakeup:
            flags |= lib.XDP_USE_NEED_WAKEUP
        socket_config = ffi.new("struct xsk_socket_config *", {
            "rx_size": shape.ring_size, "tx_size": shape.ring_size, "bind_flags": flags,
            "libxdp_flags": lib.XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD})
        bound = ffi.new("struct xsk_socket **")
        failed = lib.xsk_socket__create(bound, self.ifname.encode(), self.index, self._umem,
                                        self._rings["rx"], self._rings["tx"], socket_config)
        if failed:
            raise BindError(-failed)
        self._socket = bound[0]
        self.fd = int(lib.xsk_socket__fd(self._socket))
        lib.max_tx_budget(self.fd, _TX_BUDGET)  # refused before Linux 6.17: more calls then
        self._write_block()

    def _give_frames(self) -> None:
        fill, shape = self._rings["fill"], self.shape
        addresses = [i * shape.frame_size for i in range(shape.frames)]
        entries = self._ffi.cast("__u64 *", fill.ring)
        for i in range(shape.ring_size):
            entries[i] = addresses[i]
        fill.producer[0] = shape.ring_size
        free = addresses[shape.ring_size:]
        struct.pack_into(f"={len(free)}Q", self._memory, self._at + rings.BLOCK_SIZE_BYTES, *free)
        self._store(rings.FREE, len(free))

    def _write_block(self) -> None:
        shape = self.shape
        self._store(rings.UMEM, self.umem_address)
        self._store(rings.FRAME_SIZE, shape.frame_size)
        self._store(rings.TAIL, shape.tail)
        struct.pack_into("=ihh", self._memory, self._at + rings.POLLFD, self.fd, _POLLIN, 0)
        self._store(rings.FLAGS, (0 if shape.need_wakeup else rings.WAKE_ALWAYS)
                    | (rings.ZERO_COPY if shape.zero_copy else 0))
        self._store(rings.STACK, self.address + rings.BLOCK_SIZE_BYTES)
        self._store(rings.FRAMES, shape.frames)
        for name, line in _RING_LINES.items():
            ring = self._rings[name]
            self._store(line + rings.ARRAY, self._number(ring.ring))
            self._store(line + rings.PRODUCER, self._number(ring.producer))
            self._store(line + rings.CONSUMER, self._number(ring.consumer))
            self._store(line + rings.RING_FLAGS, self._number(ring.flags))
            self._store(line + rings.MASK, shape.ring_size - 1)
        self._store(rings.FILL + rings.MINE, shape.ring_size)
        self._store(rings.FILL + rings.PUBLISHED, shape.ring_size)
        self._store(rings.FILL + rings.SEEN, shape.ring_size)
        self._store(rings.TX + rings.SEEN, shape.ring_size)

    def _store(self, offset: int, value: int) -> None:
        struct.pack_into("=Q", self._memory, self._at + offset, value)

    def load(self, offset: int) -> int:
        """A field of the block."""
        return int(struct.unpack_from("=Q", self._memory, self._at + offset)[0])

    def _umem_error(self, code: int, umem_bytes: int) -> XdpuError:
        what = f"queue {self.index} of {self.ifname}"
        if code == errno.ENOBUFS:
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            return OutOfMemory(what, f"its umem needs {umem_bytes >> 10} KiB of locked memory and "
                               f"the limit is {limit >> 10} KiB",
                               f"ulimit -l {umem_bytes >> 10}, CAP_IPC_LOCK, or a smaller ring")
        if code == errno.ENOMEM:
            return OutOfMemory(what, f"the kernel has no memory for a umem of "
                               f"{umem_bytes >> 10} KiB", "use a smaller ring")
        if code == errno.EPERM:
            return PortError(what, "not permitted to make an AF_XDP socket",
                             AS_ROOT + ", and CAP_NET_RAW")
        if code == errno.EAFNOSUPPORT:
            return PortError(what, "the kernel is built without AF_XDP", "CONFIG_XDP_SOCKETS=y")
        return PortError(what, f"the umem is refused: {os.strerror(code)}")

    @property
    def port_queue(self) -> PortQueue:
        return PortQueue(self.index, self.address, self.fd)

    def is_zero_copy(self) -> bool:
        return int(self._lib.is_zero_copy(self.fd)) == 1

    def error(self) -> int:
        """The socket's pending errno, once."""
        return int(self._lib.socket_error(self.fd)) if self.fd >= 0 else 0

    def statistics(self) -> dict[str, int]:
        kernel = self._ffi.new("struct xdp_statistics *")
        self._lib.read_statistics(self.fd, kernel)
        counts = {name: int(getattr(kernel, name)) for name in _KERNEL_COUNTERS}
        return counts | {name: self.load(offset) for name, offset in _COUNTERS.items()}

    def ring(self, name: str) -> tuple[int, int, Any]:
        """fill, comp, rx or tx: its producer and consumer, and its entries (u64)."""
        ring = self._rings[name]
        return int(ring.producer[0]), int(ring.consumer[0]), self._ffi.cast("__u64 *", ring.ring)

    def close(self) -> None:
        """The socket before the umem, and that before its memory."""
        if self._socket is not None:
            self._lib.xsk_socket__delete(self._socket)
        if self._umem is not None:
            self._lib.xsk_umem__delete(self._umem)
        self._socket = self._umem = None
        self.fd = -1
        if not self._memory.closed:
            self._ffi.release(self._buffer)
            self._memory.close()


def open_queue(ifname: str, index: int, shape: Shape) -> Queue:
    """Open a queue, waiting a moment where the socket before it is still being taken down."""
    deadline = time.monotonic() + BUSY_RETRY_S
    while True:
        try:
            return Queue(ifname, index, shape)
        except BindError as error:
            if error.code != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.004)
