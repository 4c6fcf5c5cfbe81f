"""Queue: one AF_XDP socket and the block of memory that the templates work on.

The block's layout is rings.py's; the packets are in a umem that other queues of the same worker
may share (umem.py).  A queue brings two rings' worth of frames: one starts in the fill ring, one in
the pool: what transmit, send and a slow reader may hold at one time.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import socket
import struct
import time
from dataclasses import dataclass

from afxdp import native, rings, umem, xsk
from afxdp.umem import Layout, Umem, Umems
from afxdp.xsk import BindError, Ring, Socket
from dataplane.port import PortQueue
from xdp_runtime.bpf_syscall import AS_ROOT
from xdp_runtime.errors import OutOfMemory, PortError, XdpuError
from xdp_runtime.state import HEADROOM_BYTES

__all__ = ["BindError", "Queue", "Shape", "open_queue"]

_CANNOT_SHARE = (errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
BUSY_RETRY_S = 0.2  # a queue whose socket was closed stays busy for some 20 ms
_TX_BUDGET = 256  # packets one sendto() may send
_POLLIN = 1
_RING_LINES = {"fill": rings.FILL, "comp": rings.COMPLETION, "rx": rings.RX, "tx": rings.TX}
_COUNTERS = {"tx_full": rings.TX_FULL, "no_frame": rings.NO_FRAME, "wakeups": rings.WAKEUPS,
             "wake_errors": rings.WAKE_ERRORS, "malformed": rings.MALFORMED,
             "tx_checksums": rings.TX_CHECKSUMS}
_KERNEL_COUNTERS = ("rx_dropped", "rx_invalid_descs", "tx_invalid_descs", "rx_ring_full",
                    "rx_fill_ring_empty_descs", "tx_ring_empty_descs")


@dataclass(frozen=True, slots=True)
class Shape:
    """How a socket is made: frame and ring sizes, and how it is bound.

    `frames` it brings into its umem, 0 for two rings' worth; `busy_poll` packets one call may take
    from the driver, 0 for interrupts; `frags`: packets may take several frames (sg.py);
    `metadata_bytes` as in umem.Layout.
    """

    frame_size: int
    ring_size: int
    zero_copy: bool
    need_wakeup: bool
    unaligned: bool = False
    pages: str = "auto"
    own_frames: int = 0
    busy_poll: int = 0
    frags: bool = False
    metadata_bytes: int = 0

    @property
    def frames(self) -> int:
        return self.own_frames or 2 * self.ring_size

    @property
    def layout(self) -> Layout:
        return Layout(self.frame_size, self.unaligned, self.pages, self.metadata_bytes)

    @property
    def tail(self) -> int:
        return self.layout.tail

    @property
    def room(self) -> int:
        """Bytes of the longest packet that one frame holds."""
        return self.frame_size - HEADROOM_BYTES

    @property
    def bind_flags(self) -> int:
        return (xsk.ZEROCOPY if self.zero_copy else xsk.COPY) \
            | (xsk.USE_NEED_WAKEUP if self.need_wakeup else 0) \
            | (xsk.USE_SG if self.frags else 0)

    @property
    def block_flags(self) -> int:
        return (0 if self.need_wakeup else rings.WAKE_ALWAYS) \
            | (rings.ZERO_COPY if self.zero_copy else 0) \
            | (rings.BUSY_POLL if self.busy_poll else 0)


class Queue:
    """An open queue.  Raises BindError, OutOfMemory or PortError; close() gives all back.

    `frames` is its umem; where that has a leader already, the socket shares it.  With `fd` the
    socket is one that another process has bound and given frames.
    """

    def __init__(self, ifname: str, index: int, shape: Shape, frames: Umem, fd: int = -1) -> None:
        self._ffi, self._lib = native.load()
        self.ifname, self.index, self.shape, self.umem = ifname, index, shape, frames
        self.fd, self.alone = -1, ""  # why it shares no umem though it should
        self._taken: list[int] = []
        self._socket: Socket | None = None
        self._rings: dict[str, Ring] = {}
        self._memory = mmap.mmap(-1, rings.BLOCK_SIZE_BYTES)
        self.address = xsk.address_of(self._memory)
        try:
            if fd < 0:
                self._open()
            else:
                self._adopt(fd)
        except BaseException:
            self.close()
            raise

    def _adopt(self, fd: int) -> None:
        self._socket = Socket(fd)
        self.fd = self._socket.fd
        self._rings = self._socket.map_rings(self.shape.ring_size)
        self._write_block()

    def _open(self) -> None:
        shape, frames = self.shape, self.umem
        try:
            self._socket = made = Socket()
            if frames.leader == umem.NOBODY:
                made.register(frames.address, frames.size_bytes, shape.frame_size,
                              shape.layout.flags, shape.metadata_bytes)
            made.size_rings(shape.ring_size)
            self._rings = made.map_rings(shape.ring_size)
        except OSError as error:
            raise self._refusal(error.errno or 0) from error
        self.fd = made.fd
        self._give_frames()
        if shape.busy_poll:
            made.prefer_busy_poll(shape.busy_poll)
        flags = shape.bind_flags if frames.leader == umem.NOBODY else xsk.SHARED_UMEM
        made.bind(_ifindex(self.ifname), self.index, flags, frames.leader)
        if frames.leader == umem.NOBODY:
            frames.leader = made.fd
        self._taken.clear()
        made.set_tx_budget(_TX_BUDGET)
        self._write_block()

    def _give_frames(self) -> None:
        fill = self._rings["fill"]
        taken = self._taken = self.umem.take(self.shape.ring_size)
        ctypes.memmove(fill.entries, struct.pack(f"={len(taken)}Q", *taken), 8 * len(taken))
        ctypes.c_uint32.from_address(fill.producer).value = len(taken)

    def _write_block(self) -> None:
        shape, frames = self.shape, self.umem
        self.store(rings.UMEM, frames.address)
        self.store(rings.FRAME_SIZE, shape.frame_size)
        self.store(rings.TAIL, shape.tail)
        self.store(rings.POOL, frames.pool)
        self.store(rings.CHUNK_MASK, shape.layout.chunk_mask)
        self.store(rings.OFFSET_SHIFT, rings.OFFSET_BITS_AT if shape.unaligned else 0)
        struct.pack_into("=ihh", self._memory, rings.POLLFD, self.fd, _POLLIN, 0)
        self.store(rings.FLAGS, shape.block_flags)
        self.store(rings.COPY_AT, rings.BEHIND_METADATA if shape.metadata_bytes else 0)
        for name, line in _RING_LINES.items():
            ring = self._rings[name]
            self.store(line + rings.ARRAY, ring.entries)
            self.store(line + rings.PRODUCER, ring.producer)
            self.store(line + rings.CONSUMER, ring.consumer)
            self.store(line + rings.RING_FLAGS, ring.flags)
            self.store(line + rings.MASK, shape.ring_size - 1)
        self.store(rings.FILL + rings.MINE, shape.ring_size)
        self.store(rings.FILL + rings.PUBLISHED, shape.ring_size)
        self.store(rings.FILL + rings.SEEN, shape.ring_size)
        self.store(rings.TX + rings.SEEN, shape.ring_size)
        self.store(rings.LIVE_LEAST, rings.LIVE_NEVER)  # unless live_tx.py says so

    def store(self, offset: int, value: int) -> None:
        """Set a field of the block."""
        struct.pack_into("=Q", self._memory, offset, value)

    def load(self, offset: int) -> int:
        """A field of the block."""
        return int(struct.unpack_from("=Q", self._memory, offset)[0])

    def _refusal(self, code: int) -> XdpuError:
        what = f"queue {self.index} of {self.ifname}"
        umem_bytes = self.umem.size_bytes
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
        return PortQueue(self.index, self.address, self.fd, self.umem.pool)

    def is_zero_copy(self) -> bool:
        return self._socket is not None and self._socket.is_zero_copy()

    def error(self) -> int:
        """The socket's pending errno, once."""
        return self._socket.error() if self._socket is not None else 0

    def statistics(self) -> dict[str, int]:
        kernel = self._ffi.new("struct xdp_statistics *")
        self._lib.read_statistics(self.fd, kernel)
        counts = {name: int(getattr(kernel, name)) for name in _KERNEL_COUNTERS}
        return counts | {name: self.load(offset) for name, offset in _COUNTERS.items()}

    @property
    def received(self) -> int:
        """Packets taken from the RX ring so far."""
        return self.load(rings.RX + rings.MINE)

    def ring(self, name: str) -> tuple[int, int, ctypes.Array[ctypes.c_uint64]]:
        """fill, comp, rx or tx: its producer and consumer, and its entries (u64)."""
        ring = self._rings[name]
        words = ring.size * (1 if name in ("fill", "comp") else 2)
        entries = (ctypes.c_uint64 * words).from_address(ring.entries)
        return xsk.read_word(ring.producer), xsk.read_word(ring.consumer), entries

    def close(self) -> None:
        """The socket before the umem, and that before its memory."""
        if self._memory.closed:
            return
        if self._socket is not None:
            if self.umem.leader == self.fd:
                self.umem.leader = umem.GONE
            self._socket.close()
        self._socket, self._rings, self.fd = None, {}, -1
        self.umem.give(self._taken)  # of a queue that could not be opened
        self._memory.close()
        self.umem.leave()


def _ifindex(ifname: str) -> int:
    """Raises BindError, ENODEV, for an interface that went away."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError as error:
        raise BindError(errno.ENODEV) from error


def open_queue(ifname: str, index: int, shape: Shape, umems: Umems | None = None,
               position: int = 0) -> Queue:
    """Open a queue, waiting a moment where the socket before it is still being taken down.

    `position` among its port's queues decides which of the `umems` is its; None: one of its own.
    """
    umems = umems or Umems(1, 1)
    deadline, alone = time.monotonic() + BUSY_RETRY_S, ""
    while True:
        frames = umems.own(shape.layout, shape.frames) if alone \
            else umems.find(position, shape.layout, shape.frames)
        sharing = frames.leader != umem.NOBODY
        try:
            queue = Queue(ifname, index, shape, frames)
            queue.alone = alone
            return queue
        except BindError as error:
            if sharing and error.code in _CANNOT_SHARE:
                alone = error.name
            elif error.code != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.004)
